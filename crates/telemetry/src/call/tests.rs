use std::convert::Infallible;

use ::metrics::with_local_recorder;
use http::HeaderMap;
use http_body_util::{BodyExt, Empty, Full, combinators::WithTrailers};
use metrics_exporter_prometheus::PrometheusBuilder;
use std::future::{Ready, ready};
use tower::ServiceExt;

use super::*;

const PATH: &str = "/cloud_sandbox.v1.ExecService/Execute";

type Answer = WithTrailers<Full<&'static [u8]>, Ready<Option<Result<HeaderMap, Infallible>>>>;

fn trailers(code: &'static str) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static(code))])
}

async fn answer(code: &'static str) -> Result<Response<Answer>, Infallible> {
    let body = Full::new(&b"answer"[..]).with_trailers(ready(Some(Ok(trailers(code)))));
    Ok(Response::new(body))
}

/// What was counted while `work` ran.
fn counted(work: impl Future<Output = ()>) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    with_local_recorder(&recorder, || runtime.block_on(work));
    let text = recorder.handle().render();
    let lines = text.lines().filter(|line| line.starts_with("cloud_sandbox_grpc_server_requests_total{"));
    lines.collect::<Vec<_>>().join("\n")
}

fn request(path: &str) -> Request<()> {
    Request::builder().uri(path).body(()).unwrap()
}

#[test]
fn call_is_counted_with_the_code_of_its_trailers() {
    let text = counted(async {
        let service = CallLayer.layer(tower::service_fn(|_: Request<()>| answer("5")));
        let response = service.oneshot(request(PATH)).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "answer");
    });
    let labels = "service=\"ExecService\",method=\"Execute\",code=\"NOT_FOUND\"";
    assert_eq!(text, format!("cloud_sandbox_grpc_server_requests_total{{{labels}}} 1"));
}

#[test]
fn answer_without_a_body_is_counted_with_the_code_of_its_headers() {
    let text = counted(async {
        let inner = |_: Request<()>| async {
            let mut response = Response::new(Empty::<&[u8]>::new());
            response.headers_mut().extend(trailers("16"));
            Ok::<_, Infallible>(response)
        };
        drop(CallLayer.layer(tower::service_fn(inner)).oneshot(request(PATH)).await.unwrap());
    });
    assert!(text.contains("code=\"UNAUTHENTICATED\"} 1"), "{text}");
}

#[test]
fn caller_that_hangs_up_is_counted_once_as_cancelled() {
    let text = counted(async {
        let service = CallLayer.layer(tower::service_fn(|_: Request<()>| answer("0")));
        drop(service.oneshot(request(PATH)).await.unwrap());
    });
    assert!(text.ends_with("code=\"CANCELLED\"} 1"), "{text}");
    let text = counted(async {
        let inner = |_: Request<()>| std::future::pending::<Result<Response<Empty<&[u8]>>, Infallible>>();
        drop(CallLayer.layer(tower::service_fn(inner)).oneshot(request(PATH)));
    });
    // a future that was never polled has not called the service
    assert_eq!(text, "");
}

#[test]
fn methods_that_do_not_exist_share_one_series() {
    let text = counted(async {
        for path in ["/made.Up/One", "/made.Up/Two"] {
            let service = CallLayer.layer(tower::service_fn(|_: Request<()>| answer("12")));
            let _ = service.oneshot(request(path)).await.unwrap().into_body().collect().await;
        }
    });
    assert!(text.ends_with("{service=\"unknown\",method=\"unknown\",code=\"UNIMPLEMENTED\"} 2"), "{text}");
}

#[tokio::test]
async fn request_id_reaches_the_service_and_the_answer() {
    let inner = |request: Request<()>| async move {
        assert!(request.headers().contains_key(REQUEST_ID));
        Ok::<_, Infallible>(Response::new(Empty::<&[u8]>::new()))
    };
    let service = CallLayer.layer(tower::service_fn(inner));
    let response = service.clone().oneshot(request(PATH)).await.unwrap();
    assert_eq!(response.headers()[REQUEST_ID].len(), 26);
    let mut named = request(PATH);
    named.headers_mut().insert(REQUEST_ID, HeaderValue::from_static("r1"));
    assert_eq!(service.oneshot(named).await.unwrap().headers()[REQUEST_ID], "r1");
}
