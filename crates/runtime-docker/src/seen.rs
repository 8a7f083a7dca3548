//! What an engine says of its containers. Asked without bollard, which has no ear for the states that are Podman's alone, and
//! reads nothing of a whole list where one container is in such a state.

use std::{collections::HashMap, io, time::Duration};

use bollard::errors::Error;
use bytes::Bytes;
use cloud_sandbox_images::host::Address;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, client::conn::http1::handshake, header::HOST};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use crate::container::INSTANCE;

/// More than any list of containers that one server has.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

/// A container, as its engine sees it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub id: String,
    pub labels: HashMap<String, String>,
    /// it is there and has ended: nothing of it runs, or is paused
    pub ended: bool,
    pub paused: bool,
    /// its first process as the engine numbers it, where that lives; not in a list
    pub pid: Option<i32>,
    /// what that ended with; not in a list
    pub status: Option<i64>,
}

/// One container, by its name or id.
pub async fn one(address: &Address, container: &str, patience: Duration) -> Result<Seen, Error> {
    let found = get(address, &format!("/containers/{container}/json"), patience).await?;
    let state = &found["State"];
    Ok(Seen {
        ended: has_ended(&state["Status"]),
        paused: state["Paused"] == true,
        pid: state["Pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0),
        status: state["ExitCode"].as_i64(),
        ..Seen::of(&found["Id"], &found["Config"]["Labels"])
    })
}

/// The containers of a server, in whatever state: for a list of those that live, Podman leaves out those that are paused.
pub async fn all(address: &Address, instance: &str, patience: Duration) -> Result<Vec<Seen>, Error> {
    let filters = serde_json::json!({"label": [format!("{INSTANCE}={instance}")]}).to_string();
    let path = format!("/containers/json?all=true&filters={}", escaped(&filters));
    let found = get(address, &path, patience).await?;
    let seen = |found: &Value| Seen {
        ended: has_ended(&found["State"]),
        paused: found["State"] == "paused",
        ..Seen::of(&found["Id"], &found["Labels"])
    };
    Ok(found.as_array().into_iter().flatten().map(seen).collect())
}

fn has_ended(state: &Value) -> bool {
    ["exited", "stopped", "dead"].iter().any(|ended| state == ended)
}

impl Seen {
    fn of(id: &Value, labels: &Value) -> Self {
        let label = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
        let labels = labels.as_object().into_iter().flatten().filter_map(label).collect();
        Self { id: id.as_str().unwrap_or_default().to_owned(), labels, ..Self::default() }
    }
}

/// What an engine answers to a question.
pub async fn get(address: &Address, path: &str, patience: Duration) -> Result<Value, Error> {
    let answered = async {
        match address {
            Address::Socket(socket) => exchange(UnixStream::connect(socket).await?, path).await,
            Address::Tcp(host) => exchange(TcpStream::connect(host).await?, path).await,
        }
    };
    let (status, text) = timeout(patience, answered).await.map_err(|_| Error::RequestTimeoutError)??;
    let answer: Result<Value, _> = serde_json::from_slice(&text);
    if status.is_client_error() || status.is_server_error() {
        let message = answer.unwrap_or_default()["message"].as_str().unwrap_or_default().to_owned();
        return Err(Error::DockerResponseServerError { status_code: status.as_u16(), message });
    }
    answer.map_err(broken)
}

/// The status and the whole of an answer, over a connection that is its own.
async fn exchange(stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> Result<(StatusCode, Bytes), Error> {
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::get(path).header(HOST, "docker").body(Empty::<Bytes>::new()).map_err(broken)?;
    let answered = async move {
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let text = Limited::new(answer.into_body(), ANSWER_MAX).collect().await.map_err(broken)?;
        Ok((status, text.to_bytes()))
    };
    // it ends when the sender is dropped; what is wrong with it, the sender says
    tokio::join!(answered, connection).0
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::IOError { err: io::Error::other(error) }
}

fn escaped(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    use super::*;
    use crate::engine::has_status;

    /// What is made of an engine's answer, and what it was asked.
    async fn told(answer: &'static str, list: bool) -> (Result<Vec<Seen>, Error>, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        let engine = UnixListener::bind(&path).unwrap();
        let serving = async {
            let mut stream = engine.accept().await.unwrap().0;
            let mut asked = vec![0; 4096];
            let length = stream.read(&mut asked).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&asked[..length]).into_owned()
        };
        let (address, patience) = (Address::Socket(path), Duration::from_secs(60));
        let asking = async {
            if list {
                all(&address, "here", patience).await
            } else {
                one(&address, "c", patience).await.map(|seen| vec![seen])
            }
        };
        tokio::join!(asking, serving)
    }

    #[tokio::test]
    async fn states_of_podman_hide_no_container() {
        let answer = "HTTP/1.0 200 OK\r\nServer: x\r\n\r\n[{\"Id\":\"a\",\"State\":\"initialized\",\"Labels\":{\"l\":\"1\"}},\
                      {\"Id\":\"b\",\"State\":\"paused\",\"Labels\":null},{\"Id\":\"c\",\"State\":\"stopped\"}]";
        let (seen, asked) = told(answer, true).await;
        let (seen, labels) = (seen.unwrap(), [("l".to_owned(), "1".to_owned())].into());
        assert_eq!(seen[0], Seen { id: "a".into(), labels, ..Seen::default() });
        assert_eq!((&*seen[1].id, seen[1].paused, seen[1].ended), ("b", true, false));
        assert_eq!((&*seen[2].id, seen[2].paused, seen[2].ended), ("c", false, true));
        let path = "/containers/json?all=true&filters=%7B%22label%22%3A%5B%22cloud-sandbox.instance%3Dhere%22%5D%7D";
        assert!(asked.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{asked}");
        let answer =
            "HTTP/1.0 200 OK\r\n\r\n{\"Id\":\"c\",\"State\":{\"Status\":\"stopped\",\"Pid\":0,\"ExitCode\":3}}";
        let seen = told(answer, false).await.0.unwrap().remove(0);
        assert_eq!((&*seen.id, seen.pid, seen.status, seen.ended, seen.paused), ("c", None, Some(3), true, false));
    }

    #[tokio::test]
    async fn refusals_keep_their_status_and_half_an_answer_is_none() {
        let refused =
            told("HTTP/1.0 404 Not Found\r\n\r\n{\"message\":\"no such container\"}", false).await.0.unwrap_err();
        assert!(has_status(&refused, 404) && refused.to_string().contains("no such container"), "{refused}");
        for answer in ["", "HTTP/1.0 200 OK\r\n", "HTTP/1.0 200 OK\r\n\r\n{\"Id\":", "what?\r\n\r\n{}"] {
            let (seen, _) = told(answer, false).await;
            assert!(matches!(seen, Err(Error::IOError { .. })), "{answer:?}");
        }
    }
}
