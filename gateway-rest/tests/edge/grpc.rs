use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use cloud_sandbox_auth::Role;
use cloud_sandbox_proto::{
    node,
    v1::{
        exec_event::Event, exec_request::Input, exec_service_client::ExecServiceClient,
        file_service_client::FileServiceClient, scheduler_service_client::SchedulerServiceClient,
        upload_file_request::Part, *,
    },
};
use futures::{StreamExt, stream};
use prost::Message;
use reqwest::Method;
use tonic::{Code, Request};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use tonic_types::StatusExt;

use crate::support::{Edge, authorized, token};

#[tokio::test]
async fn unary_call_passes_through_with_its_context_alone() {
    let edge = Edge::start().await;
    let mut client = SchedulerServiceClient::new(edge.channel().await);
    let mut request = authorized(AcquireSandboxRequest { template: "t".into(), ..Default::default() });
    request.metadata_mut().insert("x-request-id", "req-9".parse().unwrap());
    request.metadata_mut().insert("cookie", "secret".parse().unwrap());
    request.set_timeout(Duration::from_secs(3));
    let answer = client.acquire_sandbox(request).await.unwrap();
    assert_eq!(answer.metadata().get("x-request-id").unwrap(), "req-9");
    assert_eq!(answer.into_inner().sandbox.unwrap().template, "t");
    assert_eq!(edge.seen.header("x-request-id").unwrap(), "req-9");
    assert_eq!(edge.seen.header("cookie"), None);
    assert!(edge.seen.header("grpc-timeout").is_some());
}

#[tokio::test]
async fn status_details_pass_through() {
    let edge = Edge::start().await;
    let mut client = SchedulerServiceClient::new(edge.channel().await);
    let get = authorized(GetSandboxRequest { sandbox_id: "missing".into() });
    let status = client.get_sandbox(get).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(status.get_details_error_info().unwrap().reason, "SANDBOX_NOT_FOUND");
}

#[tokio::test]
async fn both_directions_stream() {
    let edge = Edge::start().await;
    let mut client = ExecServiceClient::new(edge.channel().await);
    let (send, receive) = tokio::sync::mpsc::channel(4);
    let inputs = tokio_stream::wrappers::ReceiverStream::new(receive);
    let mut events = client.exec(authorized(inputs)).await.unwrap().into_inner();
    for text in ["one", "two"] {
        send.send(ExecRequest { input: Some(Input::Stdin(Bytes::from_static(text.as_bytes()))) }).await.unwrap();
        let event = events.next().await.unwrap().unwrap().event.unwrap().event.unwrap();
        let Event::Stdout(ExecOutput { content: Some(exec_output::Content::Data(data)), .. }) = event else {
            panic!("{event:?}")
        };
        assert_eq!(data, text);
    }
    drop(send);
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn dropped_stream_drops_the_call() {
    let edge = Edge::start().await;
    let mut client = ExecServiceClient::new(edge.channel().await);
    let run = ExecuteRequest { code: Some("endless".into()), ..Default::default() };
    let request = authorized(ExecuteStreamRequest { request: Some(run) });
    let mut events = client.execute_stream(request).await.unwrap().into_inner();
    events.next().await.unwrap().unwrap();
    drop(events);
    edge.seen.assert_dropped().await;
}

#[tokio::test]
async fn deadline_ends_unary_calls_and_streams() {
    let edge = Edge::start_with(|options| options.max_timeout = Duration::from_millis(200)).await;
    let mut client = SchedulerServiceClient::new(edge.channel().await);
    let get = authorized(GetSandboxRequest { sandbox_id: "slow".into() });
    assert_eq!(client.get_sandbox(get).await.unwrap_err().code(), Code::DeadlineExceeded);
    let mut client = ExecServiceClient::new(edge.channel().await);
    let silent = authorized(stream::pending::<ExecRequest>());
    // it may come before the stream is open
    let ended = match client.exec(silent).await {
        Ok(events) => events.into_inner().next().await.unwrap().unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(ended.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn refusals_are_grpc_statuses() {
    let edge = Edge::start().await;
    let mut client = SchedulerServiceClient::new(edge.channel().await);
    let status = client.get_sandbox_stats(GetSandboxStatsRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(status.get_details_error_info().unwrap().reason, "TOKEN_MISSING");
}

#[tokio::test]
async fn node_service_is_not_there_even_for_services() {
    let edge = Edge::start().await;
    for role in [Role::User, Role::Admin, Role::Service] {
        let mut client = node::v1::node_service_client::NodeServiceClient::new(edge.channel().await);
        let mut request = Request::new(node::v1::ReleaseSandboxRequest::default());
        let bearer = format!("Bearer {}", token("x", role)).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        assert_eq!(client.release_sandbox(request).await.unwrap_err().code(), Code::Unimplemented);
    }
}

#[tokio::test]
async fn health_serves_until_the_edge_is_draining() {
    let edge = Edge::start().await;
    let mut client = HealthClient::new(edge.channel().await);
    let ask = |service: &str| HealthCheckRequest { service: service.to_owned() };
    for service in ["", "cloud_sandbox.v1.ExecService", "cloud_sandbox.v1.AuthService"] {
        assert_eq!(client.check(ask(service)).await.unwrap().into_inner().status, 1, "{service}");
    }
    assert_eq!(client.check(ask("cloud_sandbox.node.v1.NodeService")).await.unwrap_err().code(), Code::NotFound);
    let mut watch = client.watch(ask("")).await.unwrap().into_inner();
    assert_eq!(watch.next().await.unwrap().unwrap().status, 1);
    edge.gateway.set_draining();
    assert_eq!(watch.next().await.unwrap().unwrap().status, 2);
    assert_eq!(client.check(ask("")).await.unwrap().into_inner().status, 2);
}

/// Every service of the contracts that is for clients.
fn public_services() -> Vec<String> {
    let pool = prost_reflect::DescriptorPool::decode(cloud_sandbox_proto::DESCRIPTOR_SET).unwrap();
    let public = pool.services().filter(|service| service.package_name() == "cloud_sandbox.v1");
    public.map(|service| service.full_name().to_owned()).collect()
}

#[tokio::test]
async fn every_public_service_of_the_contracts_is_served() {
    let edge = Edge::start().await;
    let mut health = HealthClient::new(edge.channel().await);
    let services = public_services();
    assert!(services.contains(&"cloud_sandbox.v1.TemplateService".to_owned()), "{services:?}");
    for service in services {
        let answer = health.check(HealthCheckRequest { service: service.clone() }).await;
        assert_eq!(answer.map(|answer| answer.into_inner().status).ok(), Some(1), "{service}");
    }
}

#[tokio::test]
async fn reflection_shows_the_public_services_alone() {
    let edge = Edge::start().await;
    let mut client = ServerReflectionClient::new(edge.channel().await);
    let asked = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("cloud_sandbox.v1.ExecService".into()),
        MessageRequest::FileContainingSymbol("cloud_sandbox.node.v1.NodeService".into()),
        MessageRequest::FileByFilename("google/api/annotations.proto".into()),
    ];
    let requests =
        asked.map(|request| ServerReflectionRequest { message_request: Some(request), ..Default::default() });
    let answers = client.server_reflection_info(stream::iter(requests)).await.unwrap().into_inner();
    let answers: Vec<_> = answers.collect().await;
    let answers: Vec<_> = answers.into_iter().map(|answer| answer.map(|a| a.message_response.unwrap())).collect();
    let Ok(MessageResponse::ListServicesResponse(list)) = &answers[0] else { panic!("{answers:?}") };
    let mut names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    names.sort_unstable();
    let mut wanted = public_services();
    wanted.sort_unstable();
    wanted.push("grpc.health.v1.Health".into());
    assert_eq!(names, wanted);
    let found = |answer: &Result<_, _>| matches!(answer, Ok(MessageResponse::FileDescriptorResponse(_)));
    assert_eq!(answers.iter().skip(1).map(found).collect::<Vec<_>>()[..2], [true, false]);
}

/// A gRPC-Web answer: its messages and its trailers.
fn unframed(mut body: Bytes) -> (Vec<Bytes>, String) {
    let (mut messages, mut trailers) = (Vec::new(), String::new());
    while body.has_remaining() {
        let flag = body.get_u8();
        let length = body.get_u32() as usize;
        let data = body.split_to(length);
        match flag {
            0 => messages.push(data),
            _ => trailers = String::from_utf8(data.to_vec()).unwrap(),
        }
    }
    (messages, trailers)
}

fn framed(message: &impl Message) -> Vec<u8> {
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(message.encoded_len() as u32);
    message.encode(&mut body).unwrap();
    body.to_vec()
}

#[tokio::test]
async fn browser_makes_unary_and_streaming_calls_over_http_1() {
    let edge = Edge::start().await;
    let call = |path: &str, body: Vec<u8>| {
        let call = edge.call(Method::POST, path).header("content-type", "application/grpc-web+proto");
        call.header("x-grpc-web", "1").header("origin", "https://app.example").body(body)
    };
    let request = AcquireSandboxRequest { template: "web".into(), ..Default::default() };
    let path = "/cloud_sandbox.v1.SchedulerService/AcquireSandbox";
    let answer = call(path, framed(&request)).send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["access-control-allow-origin"]),
        (200, &"*".parse().unwrap())
    );
    assert!(answer.headers()["access-control-expose-headers"].to_str().unwrap().contains("grpc-status"));
    let (messages, trailers) = unframed(answer.bytes().await.unwrap());
    let answer = AcquireSandboxResponse::decode(messages[0].clone()).unwrap();
    assert_eq!(answer.sandbox.unwrap().template, "web");
    assert!(trailers.contains("grpc-status:0"), "{trailers}");

    let request = ExecuteStreamRequest { request: Some(ExecuteRequest::default()) };
    let answer = call("/cloud_sandbox.v1.ExecService/ExecuteStream", framed(&request)).send().await.unwrap();
    assert_eq!(unframed(answer.bytes().await.unwrap()).0.len(), 4);
}

#[tokio::test]
async fn preflight_allows_any_origin_without_credentials() {
    let edge = Edge::start().await;
    let preflight = edge.bare(Method::OPTIONS, "/cloud_sandbox.v1.ExecService/Execute");
    let preflight = preflight.header("origin", "https://app.example").header("access-control-request-method", "POST");
    let answer = preflight.header("access-control-request-headers", "authorization,x-grpc-web").send().await.unwrap();
    assert_eq!(answer.status(), 204);
    let headers = answer.headers();
    let allowed = headers["access-control-allow-headers"].to_str().unwrap();
    for name in ["authorization", "range", "if-match", "if-none-match"] {
        assert!(allowed.split(", ").any(|header| header == name), "{name} in {allowed}");
    }
    assert_eq!(headers["access-control-allow-origin"], "*");
    let allowed = headers["access-control-allow-headers"].to_str().unwrap();
    for name in ["authorization", "content-type", "x-grpc-web", "x-user-agent", "x-request-id", "grpc-timeout"] {
        assert!(allowed.contains(name), "{name}");
    }
    assert!(!headers.contains_key("access-control-allow-credentials"));
}

#[tokio::test]
async fn plain_grpc_over_http_1_is_refused_in_words() {
    let edge = Edge::start().await;
    let call =
        edge.call(Method::POST, "/cloud_sandbox.v1.ExecService/Execute").header("content-type", "application/grpc");
    let answer = call.body(vec![0; 5]).send().await.unwrap();
    assert_eq!(answer.status(), 400);
    assert!(answer.text().await.unwrap().contains("HTTP/2"));
}

#[tokio::test]
async fn unreachable_service_is_unavailable() {
    let edge = Edge::start_with(|options| {
        options.upstreams.scheduler = cloud_sandbox_rpc::connect("http://127.0.0.1:1").unwrap();
    })
    .await;
    let mut client = SchedulerServiceClient::new(edge.channel().await);
    let status = client.get_sandbox_stats(authorized(GetSandboxStatsRequest {})).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.get_details_error_info().unwrap().reason, "UPSTREAM_UNREACHABLE");
}

#[tokio::test]
async fn large_streams_pass_whole_both_ways() {
    const SIZE: u64 = 40_000_000;
    let edge = Edge::start().await;
    let mut client = FileServiceClient::new(edge.channel().await).max_decoding_message_size(8 << 20);
    let wanted = DownloadFileRequest { path: format!("/zeros/{SIZE}"), ..Default::default() };
    let mut messages = client.download_file(authorized(wanted)).await.unwrap().into_inner();
    let mut received = 0;
    while let Some(message) = messages.next().await {
        received += message.unwrap().data.len() as u64;
    }
    assert_eq!(received, SIZE);

    let data = Bytes::from(vec![7; 4_000_000]);
    let header = UploadFileHeader { path: "/counted".into(), ..Default::default() };
    let parts = [Part::Header(header)].into_iter().chain((0..10).map(move |_| Part::Data(data.clone())));
    let parts = parts.chain([Part::Commit(UploadCommit {})]);
    let messages = stream::iter(parts.map(|part| UploadFileRequest { part: Some(part) }));
    let answer = client.upload_file(authorized(messages)).await.unwrap().into_inner();
    assert_eq!(answer.file.unwrap().size, SIZE);
}
