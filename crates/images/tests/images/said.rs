//! Registries, and the servers of their tokens, that say what no good one says.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use cloud_sandbox_images::{ImageError, ImageStore};

use crate::{
    layers::source,
    pack::pack,
    push::{digest, here, manifest},
    rig::{REFERENCE, Rig, names, options},
};

/// Answers each request for a path, which may come with a token, until the test's process ends. The answers know the address.
fn registry(answers: impl Fn(&str, &str, bool) -> Vec<u8> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let (answers, own) = (Arc::new(answers), host.clone());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (answers, own) = (Arc::clone(&answers), own.clone());
            thread::spawn(move || answer(stream, |path, has_token| answers(&own, path, has_token)));
        }
    });
    host
}

fn answer(mut stream: TcpStream, answers: impl Fn(&str, bool) -> Vec<u8>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let has_token =
        lines.take_while(|line| !line.is_empty()).any(|line| line.to_lowercase().starts_with("authorization: bearer"));
    // whoever has heard enough goes away
    let _ = stream.write_all(&answers(first.split(' ').nth(1).unwrap_or_default(), has_token));
}

fn says(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}").into_bytes()
}

/// What a registry says to whoever has no token.
fn asks_for_a_token(host: &str) -> Vec<u8> {
    says("401 Unauthorized", &format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"it\"\r\n"), "")
}

/// What becomes of an image of a registry whose server of tokens says this.
async fn with_token(status: &'static str, body: &'static str) -> ImageError {
    let host = registry(move |host, path, has_token| match path {
        _ if path.starts_with("/token") => says(status, "", body),
        _ if has_token => says("404 Not Found", "", "{}"),
        _ => asks_for_a_token(host),
    });
    fails(&host).await
}

async fn fails(host: &str) -> ImageError {
    let rig = Rig::new().await;
    let error = rig.prepare(&source(&format!("{host}/image"))).await.unwrap_err();
    rig.assert_empty();
    error
}

#[tokio::test]
async fn a_server_of_tokens_that_is_busy_is_not_taken_for_one_that_refuses() {
    for (status, body) in [("429 Too Many Requests", "slow down"), ("503 Service Unavailable", "in repair")] {
        let error = with_token(status, body).await;
        assert!(matches!(error, ImageError::Registry { .. }), "{error:?}");
        assert!(error.chain().contains(body) && !error.chain().contains("credentials"), "{}", error.chain());
    }
    let error = with_token("401 Unauthorized", r#"{"details":"incorrect username or password"}"#).await;
    assert!(matches!(error, ImageError::Refused { .. }), "{error:?}");
    let host = registry(|_, _, _| asks_for_a_token("127.0.0.1:1"));
    let error = fails(&host).await;
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error:?}");
    assert!(error.chain().contains("127.0.0.1:1/token"), "{}", error.chain());
    assert!(matches!(with_token("200 OK", r#"{"token":"good"}"#).await, ImageError::Missing { .. }));
}

#[tokio::test]
async fn a_token_that_cannot_be_sent_is_refused() {
    for body in [r#"{"token":"a\r\nb"}"#, r#"{"token":"\u0000"}"#, r#"{"access_token":"\u007f"}"#] {
        let error = with_token("200 OK", body).await;
        assert!(matches!(error, ImageError::Registry { .. }), "{error:?}");
        assert!(error.chain().contains("no header may have"), "{}", error.chain());
    }
}

#[tokio::test]
async fn a_manifest_is_read_up_to_a_bound() {
    for headers in ["Content-Length: 100000000\r\n", ""] {
        let host = registry(move |_, path, _| match path {
            "/v2/" => says("200 OK", "", ""),
            _ => {
                let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{headers}\r\n");
                [head.as_bytes(), &vec![b' '; 100_000_000]].concat()
            }
        });
        let error = fails(&host).await;
        assert!(error.chain().contains("more than 4194304 bytes"), "{}", error.chain());
    }
}

#[tokio::test]
async fn a_manifest_is_what_its_digests_say() {
    let other = format!("sha256:{}", "0".repeat(64));
    let headers = format!("Docker-Content-Digest: {other}\r\n");
    let host = registry(move |_, path, _| says("200 OK", if path == "/v2/" { "" } else { &headers }, "{}"));
    assert!(matches!(fails(&host).await, ImageError::Blob { .. }));
    let host = registry(|_, _, _| says("200 OK", "", "{}"));
    let rig = Rig::new().await;
    let error = rig.prepare(&source(&format!("{host}/image@{other}"))).await.unwrap_err();
    assert!(matches!(error, ImageError::Blob { .. }), "{error:?}");
}

#[tokio::test]
async fn what_a_registry_says_is_shown_short_and_plain_and_without_signatures() {
    let long = "\u{1b}[2J\r\nhttps://cdn.example/blob?signature=secret ".repeat(10_000);
    let body = format!(r#"{{"errors":[{{"code":"DENIED","message":{:?}}}]}}"#, "x\t".repeat(10_000));
    for (status, body) in
        [("500 Internal Server Error", long.clone()), ("403 Forbidden", long), ("403 Forbidden", body)]
    {
        let host = registry(move |_, path, _| says(if path == "/v2/" { "200 OK" } else { status }, "", &body));
        let told = fails(&host).await.chain();
        assert!(told.len() < 1000 && !told.contains(char::is_control) && !told.contains("secret"), "{told}");
    }
    let host = registry(|_, path, _| match path {
        "/v2/" => says("200 OK", "", ""),
        _ => says("307 Temporary Redirect", "Location: http://127.0.0.1:1/blob?signature=secret\r\n", ""),
    });
    let told = fails(&host).await.chain();
    assert!(told.contains("refused") && !told.contains("secret"), "{told}");
}

/// A registry with an image of two layers, of which the second breaks off after the first one is in the store.
struct Flaky {
    image: String,
    breaks: Arc<AtomicBool>,
    /// how often the first layer was asked for
    fetches: Arc<AtomicUsize>,
}

impl Flaky {
    fn of(rig: &Rig) -> Self {
        let blob = |bytes: &[u8]| serde_json::json!({ "digest": digest(bytes), "size": bytes.len() });
        let config = here().to_string().into_bytes();
        let layers = ["first", "second"].map(|name| pack().file(name, "1").bytes());
        let manifest = manifest(&blob(&config), &layers.each_ref().map(|layer| blob(layer))).to_string();
        let (breaks, fetches) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let (does_break, counted, store) = (Arc::clone(&breaks), Arc::clone(&fetches), rig.path("layers"));
        let host = registry(move |_, path, _| {
            let head =
                |length: usize| format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
            let send = |body: &[u8], length: usize| [head(body.len()).as_bytes(), &body[..length]].concat();
            match path {
                "/v2/" => says("200 OK", "", ""),
                _ if path.contains("/manifests/") => says("200 OK", "", &manifest),
                _ if path.ends_with(&digest(&config)) => send(&config, config.len()),
                _ if path.ends_with(&digest(&layers[0])) => {
                    counted.fetch_add(1, Ordering::Relaxed);
                    send(&layers[0], layers[0].len())
                }
                _ if does_break.load(Ordering::Relaxed) => {
                    while names(&store).is_empty() {
                        thread::sleep(Duration::from_millis(5));
                    }
                    send(&layers[1], 700)
                }
                _ => send(&layers[1], layers[1].len()),
            }
        });
        Self { image: format!("{host}/image"), breaks, fetches }
    }

    /// Fails to prepare the image, of which one layer has come.
    async fn fail(&self, rig: &Rig) {
        self.breaks.store(true, Ordering::Relaxed);
        let error = rig.prepare(&source(&self.image)).await.unwrap_err();
        assert!(matches!(error, ImageError::Registry { .. }), "{error:?}");
        rig.assert_holds(&[], 1);
    }
}

#[tokio::test]
async fn layers_that_came_before_the_way_broke_are_there_for_the_next_call() {
    let rig = Rig::new().await;
    let flaky = Flaky::of(&rig);
    flaky.fail(&rig).await;
    flaky.fail(&rig).await;
    // nor do they go where the registry does not even say what there is, or with other images
    rig.prepare(&source("127.0.0.1:1/image")).await.unwrap_err();
    rig.store.remove("other@1").await.unwrap();
    flaky.breaks.store(false, Ordering::Relaxed);
    rig.prepare(&source(&flaky.image)).await.unwrap();
    assert_eq!(flaky.fetches.load(Ordering::Relaxed), 1);
    rig.assert_holds(&[REFERENCE], 2);
    rig.store.remove(REFERENCE).await.unwrap();
    rig.assert_empty();
}

#[tokio::test]
async fn layers_that_came_go_with_what_they_came_for() {
    let rig = Rig::new().await;
    let flaky = Flaky::of(&rig);
    flaky.fail(&rig).await;
    rig.store.remove(REFERENCE).await.unwrap();
    rig.assert_empty();
    // another source has no use for them
    flaky.fail(&rig).await;
    rig.unpack(&pack().file("a", "1").bytes()).await.unwrap();
    rig.assert_holds(&[REFERENCE], 0);
    rig.store.remove(REFERENCE).await.unwrap();
    flaky.fail(&rig).await;
    rig.unpack(b"no archive").await.unwrap_err();
    rig.assert_empty();
    // nor does the next process know what they are for
    flaky.fail(&rig).await;
    let Rig { folder, store } = rig;
    drop(store);
    let store = ImageStore::open(options(&folder.path().join("store"))).await.unwrap();
    Rig { folder, store }.assert_empty();
}
