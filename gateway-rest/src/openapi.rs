//! The OpenAPI 3.1 document, from the same route table that serves the calls and the comments of the contracts.

mod comments;
mod raw;
mod schema;

use cloud_sandbox_auth::{Access, access};
use http::Method;
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use crate::{
    openapi::{comments::Comments, schema::Schemas},
    routes::{Binding, BodyRule, Endpoint, PACKAGE, RouteTable},
};

const DESCRIPTION: &str = "Isolated places to run code in, over REST. The same calls are served over gRPC and gRPC-Web \
    on the same port, by the contracts that this document is made from. Every call carries `authorization: Bearer \
    <token>`; `POST /api/v1/auth/token` hands tokens out.";

/// The document of `routes`.
pub fn document(routes: &RouteTable) -> Value {
    let comments = Comments::of(routes.pool());
    let mut schemas = Schemas::new(&comments);
    let mut paths: Map<String, Value> = Map::new();
    for endpoint in routes.endpoints() {
        let Some(operation) = operation(endpoint, &comments, &mut schemas) else { continue };
        let path = paths.entry(endpoint.template.plain()).or_insert_with(|| json!({}));
        path[endpoint.method.as_str().to_ascii_lowercase()] = operation;
    }
    let services = routes.pool().services().filter(|service| service.package_name() == PACKAGE);
    let tags: Vec<_> = services
        .map(|service| json!({"name": service.name(), "description": comments.text(service.parent_file().name(), service.path())}))
        .collect();
    let mut schemas = schemas.finish();
    schemas.insert("Error".to_owned(), schema::error());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Cloud Sandbox",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {"Error": {
                "description": "The call failed; the status says how, `details` say it to programs.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            }},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                raw::FILE_URL: raw::scheme(),
            },
        },
    })
}

fn operation(endpoint: &Endpoint, comments: &Comments, schemas: &mut Schemas<'_>) -> Option<Value> {
    let main = endpoint.bindings().next()?;
    let texts: Vec<_> = endpoint.bindings().map(|b| comments.text(b.rpc.parent_file().name(), b.rpc.path())).collect();
    let summary = summary(&texts[0], main.rpc.name());
    let mut content = Map::new();
    if let Some(unary) = &endpoint.unary {
        content.insert("application/json".to_owned(), json!({"schema": shown(unary, schemas)}));
    }
    if let Some(streaming) = &endpoint.streaming {
        let schema = shown(streaming, schemas);
        content.insert("application/x-ndjson".to_owned(), json!({"schema": schema}));
        content.insert("text/event-stream".to_owned(), json!({"schema": schema}));
    }
    if let (None, Some(upload)) = (&endpoint.unary, &endpoint.upload) {
        content.insert("application/json".to_owned(), json!({"schema": shown(&upload.binding, schemas)}));
    }
    let mut operation = json!({
        "operationId": format!("{}_{}", main.rpc.parent_service().name(), main.rpc.name()),
        "tags": [main.rpc.parent_service().name()],
        "summary": summary,
        "description": texts.join("\n\n"),
        "responses": {
            "200": {"description": "The answer.", "content": content},
            "default": {"$ref": "#/components/responses/Error"},
        },
    });
    if let Some(body) = request_body(endpoint, main, schemas) {
        operation["requestBody"] = body;
    }
    let mut parameters = parameters(endpoint, main, comments, schemas);
    raw::describe(endpoint, &mut operation, &mut parameters);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if access::of(main.path.path()) == Some(Access::Public) {
        // an optional token: who shows one may be given more
        operation["security"] = json!([{}, {"bearer": []}]);
    }
    Some(operation)
}

/// The first sentence of a method's comment, without the method's name that it begins with.
fn summary(comment: &str, method: &str) -> String {
    let sentence = comment.split_inclusive(". ").next().unwrap_or_default().trim_end().trim_end_matches('.');
    let sentence = sentence.strip_prefix(method).unwrap_or(sentence).trim_start();
    let mut letters = sentence.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn shown(binding: &Binding, schemas: &mut Schemas<'_>) -> Value {
    match &binding.response_body {
        Some(field) => schemas.of_field(field),
        None => schemas.reference(&binding.rpc.output()),
    }
}

fn parameters(endpoint: &Endpoint, main: &Binding, comments: &Comments, schemas: &mut Schemas<'_>) -> Vec<Value> {
    let in_path: Vec<_> = endpoint.template.fields().map(str::to_owned).collect();
    let mut parameters = Vec::new();
    for name in &in_path {
        if let Ok(field) = crate::routes::field_at(&main.rpc.input(), name) {
            parameters.push(parameter("path", name, &field, comments, schemas));
        }
    }
    let mut known = in_path;
    for (form, binding) in endpoint.bindings().enumerate() {
        for (name, field) in in_query(endpoint, binding) {
            if known.contains(&name) {
                continue;
            }
            let mut parameter = parameter("query", &name, &field, comments, schemas);
            if form > 0 {
                // what one form of several takes, none can require
                parameter["required"] = false.into();
                let text = parameter["description"].as_str().unwrap_or_default();
                parameter["description"] = format!("{text} {}", only_in(endpoint, binding)).into();
            }
            known.push(name);
            parameters.push(parameter);
        }
    }
    parameters
}

/// The fields of an RPC that its query sets.
fn in_query(endpoint: &Endpoint, binding: &Binding) -> Vec<(String, FieldDescriptor)> {
    let mut query = Vec::new();
    let uploaded = endpoint.upload.as_ref().filter(|upload| upload.binding.rpc == binding.rpc);
    let message = uploaded.map_or_else(|| binding.rpc.input(), |upload| upload.header_message());
    match &binding.body {
        BodyRule::Whole => {}
        BodyRule::Field(field) => {
            let under = format!("{}.", field.name());
            scalars(&message, "", &mut query);
            query.retain(|(name, _)| name != field.name() && !name.starts_with(&under));
        }
        BodyRule::None => scalars(&message, "", &mut query),
    }
    query
}

fn only_in(endpoint: &Endpoint, binding: &Binding) -> &'static str {
    let streams = endpoint.streaming.as_ref().is_some_and(|streaming| streaming.rpc == binding.rpc);
    if streams { "Streamed form only." } else { "Raw form only." }
}

fn parameter(
    place: &str,
    name: &str,
    field: &FieldDescriptor,
    comments: &Comments,
    schemas: &mut Schemas<'_>,
) -> Value {
    json!({
        "name": name,
        "in": place,
        "required": place == "path" || schema::is_required(field),
        "description": comments.text(field.parent_message().parent_file().name(), field.path()),
        "schema": schemas.of_field(field),
    })
}

/// The fields that a query can set, with their dotted paths.
fn scalars(message: &MessageDescriptor, prefix: &str, found: &mut Vec<(String, FieldDescriptor)>) {
    for field in message.fields() {
        let path = format!("{prefix}{}", field.name());
        match field.kind() {
            Kind::Message(inner) if !field.is_list() && !field.is_map() && inner.package_name() == PACKAGE => {
                scalars(&inner, &format!("{path}."), found);
            }
            Kind::Message(_) => {}
            _ => found.push((path, field)),
        }
    }
}

fn request_body(endpoint: &Endpoint, main: &Binding, schemas: &mut Schemas<'_>) -> Option<Value> {
    let in_path: Vec<_> = endpoint.template.fields().collect();
    let (schema, required) = match &main.body {
        BodyRule::None => return None,
        BodyRule::Field(field) => (schemas.of_field(field), schema::is_required(field)),
        BodyRule::Whole => {
            let input = main.rpc.input();
            let required = input.fields().any(|f| schema::is_required(&f) && !in_path.contains(&f.name()));
            let whole = in_path.is_empty();
            (if whole { schemas.reference(&input) } else { schemas.without(&input, &in_path) }, required)
        }
    };
    debug_assert!(endpoint.method != Method::GET, "GET has no body");
    Some(json!({"required": required, "content": {"application/json": {"schema": schema}}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Value {
        super::document(&RouteTable::from_contracts().unwrap())
    }

    #[test]
    fn every_annotated_route_is_in_the_document_and_nothing_else() {
        let (routes, document) = (RouteTable::from_contracts().unwrap(), document());
        let mut documented = Vec::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            documented.extend(operations.as_object().unwrap().keys().map(|method| format!("{method} {path}")));
        }
        let served = routes.endpoints().iter();
        let mut served: Vec<_> =
            served.map(|e| format!("{} {}", e.method.as_str().to_ascii_lowercase(), e.template.plain())).collect();
        documented.sort();
        served.sort();
        assert_eq!(documented, served);
        assert!(documented.contains(&"post /api/v1/sandbox/acquire".to_owned()));
    }

    #[test]
    fn document_is_the_committed_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        let text = format!("{:#}\n", document());
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(committed == text, "the REST surface changed: run this test with UPDATE_SNAPSHOTS=1 and commit {path}");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn check(value: &Value, document: &Value) {
            match value {
                Value::Object(members) => {
                    if let Some(Value::String(reference)) = members.get("$ref") {
                        assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
                    }
                    members.values().for_each(|value| check(value, document));
                }
                Value::Array(values) => values.iter().for_each(|value| check(value, document)),
                _ => {}
            }
        }
        let document = document();
        check(&document, &document);
    }

    #[test]
    fn operations_are_named_once() {
        let document = document();
        let mut names = std::collections::HashSet::new();
        for operation in document["paths"].as_object().unwrap().values().flat_map(|p| p.as_object().unwrap().values()) {
            assert!(names.insert(operation["operationId"].as_str().unwrap().to_owned()));
            assert!(!operation["summary"].as_str().unwrap().is_empty());
        }
    }

    #[test]
    fn shapes_follow_the_contract() {
        let document = document();
        let schemas = &document["components"]["schemas"];
        assert_eq!(schemas["ExecuteRequest"].get("required"), None, "it names a sandbox or a session");
        assert_eq!(schemas["KeepAliveSandboxRequest"]["required"], json!(["sandbox_id"]));
        assert_eq!(schemas["Sandbox"]["properties"]["create_time"]["format"], "date-time");
        assert_eq!(schemas["Sandbox"]["properties"]["metadata"]["additionalProperties"]["type"], "string");
        assert_eq!(schemas["Role"]["enum"], json!(["unspecified", "user", "admin"]));
        assert!(schemas.get("NodeService").is_none() && schemas.get("AgentStatus").is_none());
        let execute = &document["paths"]["/api/v1/execute"]["post"];
        let forms: Vec<_> = execute["responses"]["200"]["content"].as_object().unwrap().keys().collect();
        assert_eq!(forms, ["application/json", "application/x-ndjson", "text/event-stream"]);
        let list = &document["paths"]["/api/v1/sandbox"]["get"]["parameters"];
        assert!(list.as_array().unwrap().iter().any(|p| p["name"] == "state" && p["in"] == "query"));
        let get = &document["paths"]["/api/v1/sandbox/{sandbox_id}"]["get"]["parameters"][0];
        assert_eq!((get["in"].as_str(), get["required"].as_bool()), (Some("path"), Some(true)));
        assert_eq!(document["paths"]["/api/v1/auth/token"]["post"]["security"], json!([{}, {"bearer": []}]));
    }

    #[test]
    fn raw_forms_are_in_the_document() {
        let document = document();
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let parameter = |operation: &Value, name: &str| {
            let parameters = operation["parameters"].as_array().unwrap();
            parameters.iter().find(|parameter| parameter["name"] == name).cloned().unwrap_or_default()
        };
        let files = &document["paths"]["/api/v1/files"];
        let get = &files["get"];
        assert_eq!(keys(&get["responses"]["200"]["content"]), ["application/json", "application/octet-stream"]);
        for status in ["206", "304", "412", "416"] {
            assert!(get["responses"][status].is_object(), "{status}");
        }
        assert_eq!(parameter(get, "Range")["in"], "header");
        assert_eq!(parameter(get, "length")["required"], false);
        assert!(parameter(get, "length")["description"].as_str().unwrap().ends_with("Raw form only."));
        assert_eq!(get["security"], json!([{"bearer": []}, {"file_url": []}]));
        assert_eq!(document["components"]["securitySchemes"]["file_url"]["name"], "access_token");
        let put = &files["put"];
        assert_eq!(keys(&put["requestBody"]["content"]), ["application/json", "application/octet-stream"]);
        assert_eq!(parameter(put, "path")["in"], "query");
        assert_eq!(parameter(put, "sandbox_id")["required"], false, "JSON has it in the body");
        assert!(files["delete"].get("security").is_none());
        let archive = &document["paths"]["/api/v1/files/archive"];
        assert_eq!(keys(&archive["get"]["responses"]["200"]["content"]), ["application/x-tar"]);
        assert_eq!(keys(&archive["put"]["requestBody"]["content"]), ["application/x-tar"]);
        for id in ["sandbox_id", "session_id"] {
            assert_eq!(parameter(&archive["put"], id)["required"], false, "one of the two is given");
        }
        let terminal = &document["paths"]["/api/v1/executions/{execution_id}/terminal"]["put"];
        assert!(parameter(terminal, "terminal.rows").is_null(), "the body's fields are no parameters");
    }
}
