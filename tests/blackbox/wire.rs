//! One client for both ways in: a method is named as in the contracts and given JSON; over REST it takes the way that
//! the method's own HTTP annotation says, over gRPC the message is made from the descriptor. So each test is written
//! once and runs over both.

use bytes::{Buf, BufMut, Bytes};
use cloud_sandbox_model::Error;
use cloud_sandbox_proto::DESCRIPTOR_SET;
use cloud_sandbox_rpc::from_status;
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    MethodDescriptor, SerializeOptions,
};
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tonic::{
    Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};

use crate::harness::{Api, Server};

/// What was refused, as both ways tell it.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// `NOT_FOUND` for example
    pub status: String,
    pub reason: String,
    pub message: String,
    /// the fields that broke a rule
    pub fields: Vec<String>,
}

/// A way in, with a user's token.
#[derive(Clone)]
pub enum Wire {
    Rest(Api),
    Grpc(Channel, String),
}

/// Both ways to a server.
pub async fn wires(server: &Server, user: &str) -> [Wire; 2] {
    let api = server.user(user).await;
    let token = api.token.clone().unwrap();
    let channel = Channel::from_shared(server.url.clone()).unwrap().connect_lazy();
    [Wire::Rest(api), Wire::Grpc(channel, token)]
}

/// The elements of a streamed answer. An error is the last.
pub struct Events(mpsc::Receiver<Result<Value, Failure>>);

impl Events {
    /// The next element; `None` at the end. Panics when nothing comes for a long time: no stream may hang.
    pub async fn next(&mut self) -> Option<Result<Value, Failure>> {
        let next = tokio::time::timeout(std::time::Duration::from_secs(30), self.0.recv()).await;
        next.expect("a stream hangs")
    }

    /// Every element up to the end, and the error that it ended with.
    pub async fn rest(mut self) -> (Vec<Value>, Option<Failure>) {
        let mut all = Vec::new();
        while let Some(next) = self.next().await {
            match next {
                Ok(value) => all.push(value),
                Err(failure) => return (all, Some(failure)),
            }
        }
        (all, None)
    }
}

impl Wire {
    /// The name of the way, for messages of failed tests.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rest(_) => "REST",
            Self::Grpc(..) => "gRPC",
        }
    }

    /// Calls `Service.Method` of `cloud_sandbox.v1`.
    pub async fn try_call(&self, method: &str, request: Value) -> Result<Value, Failure> {
        let rpc = method_named(method);
        match self {
            Self::Rest(api) => {
                let answer = rest_request(api, &rpc, request, "application/json").send().await.unwrap();
                let ok = answer.status().is_success();
                let text = answer.text().await.unwrap();
                let value: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{method}: {text}"));
                if ok { Ok(whole(&rpc, value)) } else { Err(rest_failure(&value)) }
            }
            Self::Grpc(channel, token) => {
                let mut client = Grpc::new(channel.clone()).max_decoding_message_size(32 << 20);
                client.ready().await.unwrap();
                let answer = client.unary(grpc_request(&rpc, request, token), path_of(&rpc), Raw).await;
                answer.map(|answer| json_of(&rpc, answer.into_inner())).map_err(|status| grpc_failure(&status))
            }
        }
    }

    /// The same, which must succeed.
    pub async fn call(&self, method: &str, request: Value) -> Value {
        let shown = request.to_string();
        let answer = self.try_call(method, request).await;
        answer.unwrap_or_else(|failure| panic!("{} {method} {shown:.300}: {failure:?}", self.name()))
    }

    /// The same, which must be refused.
    pub async fn refused(&self, method: &str, request: Value) -> Failure {
        let shown = request.to_string();
        match self.try_call(method, request).await {
            Err(failure) => failure,
            Ok(answer) => panic!("{} {method} {shown:.300} is not refused: {answer:.500}", self.name()),
        }
    }

    /// Calls a method that streams its answer.
    pub async fn stream(&self, method: &str, request: Value) -> Events {
        let rpc = method_named(method);
        let (send, receive) = mpsc::channel(1);
        match self {
            Self::Rest(api) => {
                let answer = rest_request(api, &rpc, request, "application/x-ndjson").send().await.unwrap();
                tokio::spawn(rest_stream(answer, rpc, send));
            }
            Self::Grpc(channel, token) => {
                let mut client = Grpc::new(channel.clone()).max_decoding_message_size(32 << 20);
                client.ready().await.unwrap();
                let answer = client.server_streaming(grpc_request(&rpc, request, token), path_of(&rpc), Raw).await;
                tokio::spawn(grpc_stream(answer, rpc, send));
            }
        }
        Events(receive)
    }

    /// A sandbox of one's own.
    pub async fn acquire(&self) -> String {
        let answer = self.call("SchedulerService.AcquireSandbox", serde_json::json!({})).await;
        answer["sandbox"]["sandbox_id"].as_str().unwrap().to_owned()
    }

    /// Runs a shell line and gives the whole answer.
    pub async fn shell(&self, sandbox: &str, line: &str) -> Value {
        self.call("ExecService.Execute", serde_json::json!({"sandbox_id": sandbox, "command": line})).await
    }
}

type Send = mpsc::Sender<Result<Value, Failure>>;

async fn rest_stream(mut answer: reqwest::Response, rpc: MethodDescriptor, send: Send) {
    if !answer.status().is_success() {
        let value = answer.json().await.unwrap();
        let _ = send.send(Err(rest_failure(&value))).await;
        return;
    }
    let mut text = Vec::new();
    loop {
        let chunk = tokio::select! {
            chunk = answer.chunk() => chunk,
            () = send.closed() => return,
        };
        let chunk = match chunk {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => {
                let message = error.to_string();
                let failure = Failure { status: "BROKEN".into(), reason: String::new(), message, fields: Vec::new() };
                return drop(send.send(Err(failure)).await);
            }
        };
        text.extend_from_slice(&chunk);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let value: Value = serde_json::from_slice(&line).unwrap();
            let failed = value.get("error").is_some_and(|error| error.get("status").is_some());
            let element = if failed { Err(rest_failure(&value)) } else { Ok(whole(&rpc, value)) };
            if send.send(element).await.is_err() {
                return;
            }
        }
    }
    assert!(text.is_empty(), "the last line is cut: {}", String::from_utf8_lossy(&text));
}

async fn grpc_stream(
    answer: Result<tonic::Response<tonic::Streaming<Bytes>>, Status>,
    rpc: MethodDescriptor,
    send: Send,
) {
    let mut messages = match answer {
        Ok(answer) => answer.into_inner(),
        Err(status) => return drop(send.send(Err(grpc_failure(&status))).await),
    };
    loop {
        let next = tokio::select! {
            next = messages.message() => next,
            () = send.closed() => return,
        };
        let element = match next {
            Ok(None) => return,
            Ok(Some(message)) => Ok(json_of(&rpc, message)),
            Err(status) => Err(grpc_failure(&status)),
        };
        let last = element.is_err();
        if send.send(element).await.is_err() || last {
            return;
        }
    }
}

fn method_named(name: &str) -> MethodDescriptor {
    static POOL: std::sync::LazyLock<DescriptorPool> =
        std::sync::LazyLock::new(|| DescriptorPool::decode(DESCRIPTOR_SET).unwrap());
    let (service, method) = name.split_once('.').unwrap();
    let service = POOL.get_service_by_name(&format!("cloud_sandbox.v1.{service}"));
    let service = service.unwrap_or_else(|| panic!("no service of {name}"));
    service.methods().find(|rpc| rpc.name() == method).unwrap_or_else(|| panic!("no method {name}"))
}

/// The method's HTTP verb, path, field for the body, and field of the answer.
fn annotation(rpc: &MethodDescriptor) -> (String, String, String, String) {
    let http = rpc.parent_pool().get_extension_by_name("google.api.http").unwrap();
    let options = rpc.options();
    let rule = options.get_extension(&http);
    let rule = rule.as_message().unwrap();
    let text = |name: &str| rule.get_field_by_name(name).unwrap().as_str().unwrap().to_owned();
    let verb = ["get", "put", "post", "delete", "patch"].into_iter().find(|verb| rule.has_field_by_name(verb));
    let verb = verb.unwrap_or_else(|| panic!("{} has no REST form", rpc.full_name()));
    (verb.to_uppercase(), text(verb), text("body"), text("response_body"))
}

fn rest_request(api: &Api, rpc: &MethodDescriptor, request: Value, accept: &str) -> reqwest::RequestBuilder {
    let (verb, mut path, body, _) = annotation(rpc);
    let Value::Object(mut fields) = request else { panic!("a request is an object") };
    let encoded = |value: &Value| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.bytes().fold(String::new(), |mut all, byte| {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => all.push(byte.into()),
                _ => all.push_str(&format!("%{byte:02X}")),
            }
            all
        })
    };
    while let Some((before, rest)) = path.clone().split_once('{') {
        let (name, after) = rest.split_once('}').unwrap();
        let value = fields.remove(name).unwrap_or_default();
        path = format!("{before}{}{after}", encoded(&value));
    }
    let content = match body.as_str() {
        "" => None,
        "*" => Some(Value::Object(std::mem::take(&mut fields))),
        name => Some(fields.remove(name).unwrap_or(Value::Object(Map::new()))),
    };
    let pairs = fields.iter().flat_map(|(name, value)| match value {
        Value::Array(values) => values.iter().map(|value| format!("{name}={}", encoded(value))).collect(),
        value => vec![format!("{name}={}", encoded(value))],
    });
    let query: Vec<String> = pairs.collect();
    let path = if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) };
    let request = api.request(&verb, &path).header("accept", accept);
    match content {
        Some(content) => request.json(&content),
        None => request,
    }
}

/// An answer as the whole message, also where REST shows one field of it.
fn whole(rpc: &MethodDescriptor, value: Value) -> Value {
    match annotation(rpc).3.as_str() {
        "" => value,
        field => Value::Object(Map::from_iter([(field.to_owned(), value)])),
    }
}

fn rest_failure(value: &Value) -> Failure {
    let error = &value["error"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let details = error["details"].as_array().cloned().unwrap_or_default();
    let violations = details.iter().flat_map(|detail| detail["field_violations"].as_array().cloned());
    Failure {
        status: text(&error["status"]),
        reason: details
            .iter()
            .map(|detail| text(&detail["reason"]))
            .find(|reason| !reason.is_empty())
            .unwrap_or_default(),
        message: text(&error["message"]),
        fields: violations.flatten().map(|violation| text(&violation["field"])).collect(),
    }
}

fn grpc_failure(status: &Status) -> Failure {
    let error: Error = from_status(status);
    Failure {
        status: error.kind().name().to_owned(),
        reason: error.reason().to_owned(),
        message: error.message().to_owned(),
        fields: error.violations().iter().map(|violation| violation.field.clone()).collect(),
    }
}

fn grpc_request(rpc: &MethodDescriptor, request: Value, token: &str) -> tonic::Request<Bytes> {
    let request = with_enum_names(&rpc.input(), request);
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let message = DynamicMessage::deserialize_with_options(rpc.input(), request.clone(), &options);
    let message = message.unwrap_or_else(|error| panic!("{} {request}: {error}", rpc.full_name()));
    let mut request = tonic::Request::new(Bytes::from(message.encode_to_vec()));
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

fn path_of(rpc: &MethodDescriptor) -> http::uri::PathAndQuery {
    format!("/{}/{}", rpc.parent_service().full_name(), rpc.name()).parse().unwrap()
}

fn json_of(rpc: &MethodDescriptor, message: Bytes) -> Value {
    let message = DynamicMessage::decode(rpc.output(), message).unwrap();
    let options =
        SerializeOptions::new().use_proto_field_name(true).skip_default_fields(false).stringify_64_bit_integers(false);
    let value = message.serialize_with_options(serde_json::value::Serializer, &options).unwrap();
    with_enum_words(&rpc.output(), value)
}

/// Puts `f` on every enum value of a document.
fn each_enum(kind: &MessageDescriptor, value: Value, f: &impl Fn(&EnumDescriptor, Value) -> Value) -> Value {
    let Value::Object(fields) = value else { return value };
    let one = |field: &FieldDescriptor, value: Value| match (field.kind(), value) {
        (Kind::Message(_), Value::Object(entries)) if field.is_map() => Value::Object(entries),
        (Kind::Message(kind), Value::Array(values)) => {
            Value::Array(values.into_iter().map(|value| each_enum(&kind, value, f)).collect())
        }
        (Kind::Message(kind), value) => each_enum(&kind, value, f),
        (Kind::Enum(kind), value) => f(&kind, value),
        (_, value) => value,
    };
    let named = fields.into_iter().map(|(name, value)| match kind.get_field_by_name(&name) {
        Some(field) => (name, one(&field, value)),
        None => (name, value),
    });
    Value::Object(named.filter(|(_, value)| !value.is_null()).collect())
}

fn prefix(kind: &EnumDescriptor) -> String {
    kind.values().next().unwrap().name().trim_end_matches("UNSPECIFIED").to_owned()
}

fn with_enum_words(kind: &MessageDescriptor, value: Value) -> Value {
    each_enum(kind, value, &|kind, value| match value.as_str() {
        Some(name) => name.trim_start_matches(&prefix(kind)).to_lowercase().into(),
        None => value,
    })
}

fn with_enum_names(kind: &MessageDescriptor, value: Value) -> Value {
    each_enum(kind, value, &|kind, value| match value.as_str() {
        Some(word) if kind.get_value_by_name(word).is_none() => {
            format!("{}{}", prefix(kind), word.to_uppercase()).into()
        }
        _ => value,
    })
}

/// Messages that are encoded already.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}
