//! How fast large bodies pass, over loopback and with nothing behind the edge. Measured by hand:
//! `cargo nextest run --release -p cloud-sandbox-gateway-rest --run-ignored only throughput --no-capture`.

use std::time::{Duration, Instant};

use axum::{body::Body, extract::Request};
use bytes::Bytes;
use cloud_sandbox_auth::Role;
use cloud_sandbox_proto::v1::{file_service_client::FileServiceClient, upload_file_request::Part, *};
use futures::{StreamExt, stream};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tonic::transport::Endpoint;
use tower::ServiceExt;

use crate::support::{Edge, authorized, token};

const GIB: u64 = 1 << 30;
const LARGE: u32 = 4 << 20;

/// What the HTTP/2 side of a port is told.
#[derive(Debug, Clone, Copy)]
struct Http2 {
    stream_window: u32,
    connection_window: u32,
    frame: u32,
}

/// The edge behind a port with these settings.
async fn serve(edge: &Edge, http2: Http2) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = edge.gateway.router();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            connection.set_nodelay(true).unwrap();
            let router = router.clone();
            let service = tower::service_fn(move |request: Request<hyper::body::Incoming>| {
                router.clone().oneshot(request.map(Body::new))
            });
            let mut builder = Builder::new(TokioExecutor::new());
            builder
                .http2()
                .initial_stream_window_size(http2.stream_window)
                .initial_connection_window_size(http2.connection_window)
                .max_frame_size(http2.frame)
                .max_send_buf_size(LARGE as usize);
            tokio::spawn(async move {
                let service = TowerToHyperService::new(service);
                let _ = builder.serve_connection(TokioIo::new(connection), service).await;
            });
        }
    });
    address
}

fn report(what: &str, bytes: u64, took: Duration) {
    eprintln!("{what:60} {:7.0} MB/s, peak memory {}", bytes as f64 / 1e6 / took.as_secs_f64(), peak());
}

fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default().trim().to_owned()
}

async fn rest(address: std::net::SocketAddr) {
    let bearer = token("ada", Role::User);
    let mut connection = TcpStream::connect(address).await.unwrap();
    let started = Instant::now();
    let head = format!(
        "GET /api/v1/files?sandbox_id=s&path=/zeros/{GIB} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {bearer}\r\n\
         accept: application/octet-stream\r\n\r\n"
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    let (mut buffer, mut received) = (vec![0; 1 << 20], 0);
    while received < GIB {
        received += connection.read(&mut buffer).await.unwrap() as u64;
    }
    report("REST download", GIB, started.elapsed());

    let mut connection = TcpStream::connect(address).await.unwrap();
    let started = Instant::now();
    let head = format!(
        "PUT /api/v1/files?sandbox_id=s&path=/counted HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {bearer}\r\n\
         content-type: application/octet-stream\r\ncontent-length: {GIB}\r\n\r\n"
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..GIB >> 20 {
        connection.write_all(&buffer).await.unwrap();
    }
    let read = connection.read(&mut buffer).await.unwrap();
    assert!(buffer[..read].starts_with(b"HTTP/1.1 200"));
    report("REST upload", GIB, started.elapsed());
}

async fn grpc(address: std::net::SocketAddr, http2: Http2, piece: usize) {
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().tcp_nodelay(true);
    let channel = channel
        .initial_stream_window_size(http2.stream_window)
        .initial_connection_window_size(http2.connection_window)
        .connect()
        .await
        .unwrap();
    let mut client = FileServiceClient::new(channel).max_decoding_message_size(8 << 20);
    let started = Instant::now();
    let wanted = DownloadFileRequest { path: format!("/zeros/{GIB}"), ..Default::default() };
    let mut messages = client.download_file(authorized(wanted)).await.unwrap().into_inner();
    let mut received = 0;
    while let Some(message) = messages.next().await {
        received += message.unwrap().data.len() as u64;
    }
    assert_eq!(received, GIB);
    report(&format!("gRPC download, {http2:?}"), GIB, started.elapsed());

    let started = Instant::now();
    let header = UploadFileHeader { path: "/counted".into(), ..Default::default() };
    let data = Bytes::from(vec![0; piece]);
    let parts = std::iter::once(Part::Header(header))
        .chain((0..GIB / piece as u64).map(move |_| Part::Data(data.clone())))
        .chain([Part::Commit(UploadCommit {})]);
    let messages = stream::iter(parts.map(|part| UploadFileRequest { part: Some(part) }));
    let answer = client.upload_file(authorized(messages)).await.unwrap().into_inner();
    assert!(answer.file.unwrap().size >= GIB);
    report(&format!("gRPC upload by {piece}"), GIB, started.elapsed());
}

#[ignore = "measures; by hand and in release mode"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gibibyte_passes() {
    let edge = Edge::start().await;
    let settings = |stream_window, connection_window, frame| Http2 { stream_window, connection_window, frame };
    let now = settings(1 << 20, 4 << 20, 16 * 1024);
    rest(serve(&edge, now).await).await;
    for http2 in [
        now,
        settings(1 << 20, 4 << 20, 256 * 1024),
        settings(LARGE, 2 * LARGE, 256 * 1024),
        settings(LARGE, 2 * LARGE, 1 << 20),
    ] {
        let address = serve(&edge, http2).await;
        for piece in [256 * 1024, 1 << 20] {
            grpc(address, http2, piece).await;
        }
    }
}
