//! The route table, built from the `google.api.http` annotations of `cloud_sandbox.v1`.
//!
//! Invariant: an endpoint (HTTP method and path) has at most one RPC of each form: unary, stream of events, download and
//! upload of raw bytes.

use std::borrow::Cow;

use cloud_sandbox_proto::DESCRIPTOR_SET;
use http::{Method, uri::PathAndQuery};
use prost_reflect::{
    DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, MessageDescriptor, MethodDescriptor,
};

use crate::{
    Error,
    raw::{Download, Upload},
    template::Template,
};

/// The package whose services clients may call.
pub const PACKAGE: &str = "cloud_sandbox.v1";

/// What of the request message the HTTP body carries.
#[derive(Debug, Clone)]
pub enum BodyRule {
    None,
    Whole,
    Field(FieldDescriptor),
}

/// One annotated RPC.
#[derive(Debug, Clone)]
pub struct Binding {
    /// the RPC
    pub rpc: MethodDescriptor,
    /// its gRPC path
    pub path: PathAndQuery,
    pub body: BodyRule,
    /// the one field of the response that the answer shows; the whole response otherwise
    pub response_body: Option<FieldDescriptor>,
}

/// An HTTP method and path with the RPCs behind it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub method: Method,
    pub template: Template,
    pub unary: Option<Binding>,
    /// a stream of events
    pub streaming: Option<Binding>,
    /// an answer of raw bytes
    pub download: Option<Download>,
    /// a request of raw bytes
    pub upload: Option<Upload>,
}

impl Endpoint {
    fn new(method: Method, template: Template) -> Self {
        Self { method, template, unary: None, streaming: None, download: None, upload: None }
    }

    /// Every RPC behind this endpoint, the one that it is known by first.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> {
        let download = self.download.iter().map(|download| &download.binding);
        let upload = self.upload.iter().map(|upload| &upload.binding);
        self.unary.iter().chain(&self.streaming).chain(download).chain(upload)
    }

    fn add(&mut self, binding: Binding) -> Result<(), String> {
        let taken = if binding.rpc.is_client_streaming() {
            self.upload.replace(Upload::of(binding)?).map(|other| other.binding)
        } else if let Some(download) = Download::of(&binding) {
            self.download.replace(download).map(|other| other.binding)
        } else if binding.rpc.is_server_streaming() {
            self.streaming.replace(binding)
        } else {
            self.unary.replace(binding)
        };
        taken.map_or(Ok(()), |other| Err(format!("{} has the same route", other.rpc.full_name())))
    }
}

/// All endpoints, the most specific template first.
#[derive(Debug)]
pub struct RouteTable {
    endpoints: Vec<Endpoint>,
    pool: DescriptorPool,
}

/// A matched endpoint and the path's values for request fields.
pub type Found<'a> = (&'a Endpoint, Vec<(&'a str, String)>);

/// Why no endpoint takes a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Miss {
    /// no endpoint has this path
    Path,
    /// the path exists with other methods
    Method(Vec<Method>),
}

impl RouteTable {
    /// The table of the contracts that this program was built with.
    pub fn from_contracts() -> Result<Self, Error> {
        Self::of(&DescriptorPool::decode(DESCRIPTOR_SET)?)
    }

    fn of(pool: &DescriptorPool) -> Result<Self, Error> {
        let mut table = Self { endpoints: Vec::new(), pool: pool.clone() };
        let Some(http) = pool.get_extension_by_name("google.api.http") else { return Ok(table) };
        for rpc in pool.services().filter(|service| service.package_name() == PACKAGE).flat_map(|s| {
            let methods: Vec<_> = s.methods().collect();
            methods
        }) {
            for rule in rules(&rpc, &http) {
                let added = table.add(&rpc, &rule);
                added.map_err(|fault| Error::Route { method: rpc.full_name().to_owned(), fault })?;
            }
        }
        table.endpoints.sort_by_key(|endpoint| endpoint.template.specificity());
        Ok(table)
    }

    fn add(&mut self, rpc: &MethodDescriptor, rule: &DynamicMessage) -> Result<(), String> {
        let (method, path) = pattern(rule)?;
        let template = Template::parse(&path)?;
        for field in template.fields() {
            field_at(&rpc.input(), field)?;
        }
        let body = match text(rule, "body").as_str() {
            "" => BodyRule::None,
            "*" => BodyRule::Whole,
            name => BodyRule::Field(field_at(&rpc.input(), name)?),
        };
        let response_body = match text(rule, "response_body").as_str() {
            "" => None,
            name => Some(field_at(&rpc.output(), name)?),
        };
        let service = rpc.parent_service();
        let path = PathAndQuery::try_from(format!("/{}/{}", service.full_name(), rpc.name()));
        let path = path.map_err(|error| error.to_string())?;
        let binding = Binding { rpc: rpc.clone(), path, body, response_body };

        let known = |endpoint: &&mut Endpoint| endpoint.method == method && endpoint.template == template;
        let endpoint = match self.endpoints.iter_mut().find(known) {
            Some(endpoint) => endpoint,
            None => {
                self.endpoints.push(Endpoint::new(method, template));
                self.endpoints.last_mut().expect("one was just pushed")
            }
        };
        endpoint.add(binding)
    }

    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    pub fn pool(&self) -> &DescriptorPool {
        &self.pool
    }

    /// The endpoint for `method` and a path's decoded segments.
    pub fn find(&self, method: &Method, path: &[Cow<'_, str>]) -> Result<Found<'_>, Miss> {
        let mut methods = Vec::new();
        for endpoint in &self.endpoints {
            let Some(values) = endpoint.template.matches(path) else { continue };
            if endpoint.method == *method {
                return Ok((endpoint, values));
            }
            methods.push(endpoint.method.clone());
        }
        if methods.is_empty() { Err(Miss::Path) } else { Err(Miss::Method(methods)) }
    }
}

/// The field of `message` at a dotted path.
pub fn field_at(message: &MessageDescriptor, path: &str) -> Result<FieldDescriptor, String> {
    let mut message = message.clone();
    let mut parts = path.split('.').peekable();
    while let Some(part) = parts.next() {
        let field = message.get_field_by_name(part);
        let field = field.ok_or_else(|| format!("{} has no field {part}", message.full_name()))?;
        if parts.peek().is_none() {
            return Ok(field);
        }
        let inner = field.kind().as_message().cloned();
        message = inner.ok_or_else(|| format!("{} is not a message", field.full_name()))?;
    }
    Err("an empty field path".to_owned())
}

/// The method's rule and its additional bindings.
fn rules(rpc: &MethodDescriptor, http: &ExtensionDescriptor) -> Vec<DynamicMessage> {
    let options = rpc.options();
    if !options.has_extension(http) {
        return Vec::new();
    }
    let rule = options.get_extension(http).into_owned();
    let Some(rule) = rule.as_message() else { return Vec::new() };
    let mut rules = vec![rule.clone()];
    if let Some(more) = rule.get_field_by_name("additional_bindings")
        && let Some(more) = more.as_list()
    {
        rules.extend(more.iter().filter_map(|rule| rule.as_message().cloned()));
    }
    rules
}

fn pattern(rule: &DynamicMessage) -> Result<(Method, String), String> {
    let plain = [
        ("get", Method::GET),
        ("put", Method::PUT),
        ("post", Method::POST),
        ("delete", Method::DELETE),
        ("patch", Method::PATCH),
    ];
    for (name, method) in plain {
        if rule.has_field_by_name(name) {
            return Ok((method, text(rule, name)));
        }
    }
    let custom = rule.get_field_by_name("custom").ok_or("the rule has no pattern")?;
    let custom = custom.as_message().ok_or("the rule has no pattern")?;
    let method = Method::from_bytes(text(custom, "kind").as_bytes()).map_err(|error| error.to_string())?;
    Ok((method, text(custom, "path")))
}

fn text(message: &DynamicMessage, field: &str) -> String {
    let value = message.get_field_by_name(field);
    value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::segments;

    fn table() -> RouteTable {
        RouteTable::from_contracts().unwrap()
    }

    #[test]
    fn literal_path_wins_over_a_variable() {
        let table = table();
        let (endpoint, values) =
            table.find(&Method::GET, &segments("/api/v1/sandbox/stats").unwrap()).unwrap_or_else(|_| unreachable!());
        assert_eq!(endpoint.unary.as_ref().unwrap().rpc.name(), "GetSandboxStats");
        assert!(values.is_empty());
        let (endpoint, values) = table.find(&Method::GET, &segments("/api/v1/sandbox/sb1").unwrap()).unwrap();
        assert_eq!(endpoint.unary.as_ref().unwrap().rpc.name(), "GetSandbox");
        assert_eq!(values, [("sandbox_id", "sb1".to_owned())]);
    }

    #[test]
    fn unary_and_streaming_rpc_share_an_endpoint() {
        let table = table();
        let (endpoint, _) = table.find(&Method::POST, &segments("/api/v1/execute").unwrap()).unwrap();
        assert_eq!(endpoint.unary.as_ref().unwrap().rpc.name(), "Execute");
        assert_eq!(endpoint.streaming.as_ref().unwrap().rpc.name(), "ExecuteStream");
    }

    #[test]
    fn raw_and_json_form_share_an_endpoint() {
        let table = table();
        let find = |method, path| table.find(&method, &segments(path).unwrap()).unwrap().0;
        let get = find(Method::GET, "/api/v1/files");
        assert_eq!(get.unary.as_ref().unwrap().rpc.name(), "ReadFile");
        let download = get.download.as_ref().unwrap();
        assert_eq!((download.binding.rpc.name(), download.media_type()), ("DownloadFile", "application/octet-stream"));
        let put = find(Method::PUT, "/api/v1/files");
        assert_eq!(put.unary.as_ref().unwrap().rpc.name(), "WriteFile");
        assert_eq!(put.upload.as_ref().unwrap().binding.rpc.name(), "UploadFile");
        let archive = find(Method::GET, "/api/v1/files/archive");
        assert!(archive.unary.is_none() && archive.streaming.is_none());
        assert_eq!(archive.download.as_ref().unwrap().media_type(), "application/x-tar");
        let events = find(Method::GET, "/api/v1/files/watch");
        assert!(events.streaming.is_some() && events.download.is_none());
    }

    #[test]
    fn only_public_services_have_routes() {
        let table = table();
        for binding in table.endpoints().iter().flat_map(Endpoint::bindings) {
            assert_eq!(binding.rpc.parent_service().package_name(), PACKAGE);
        }
    }

    #[test]
    fn misses_say_what_would_have_matched() {
        let table = table();
        let miss = |method, path: &str| table.find(&method, &segments(path).unwrap()).err();
        assert_eq!(miss(Method::GET, "/api/v1/nothing"), Some(Miss::Path));
        assert_eq!(miss(Method::GET, "/api/v1/sandbox/acquire/x"), Some(Miss::Path));
        assert_eq!(miss(Method::GET, "/api/v1/execute"), Some(Miss::Method(vec![Method::POST])));
    }
}
