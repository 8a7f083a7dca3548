//! The standard streams of a container as the way to its agent, attached through the daemon.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use bollard::{Docker, container::LogOutput, query_parameters::AttachContainerOptionsBuilder};
use bytes::Bytes;
use cloud_sandbox_runtime::multiplex::{Streams, multiplex};
use futures::{Stream, StreamExt, future::ready};
use tokio::io::{AsyncReadExt, AsyncWriteExt, join};
use tokio_util::io::StreamReader;

/// What is kept of what an agent says that cannot start, in bytes.
const COMPLAINT_MAX: usize = 4096;

/// What whoever begins an HTTP/2 connection sends, and no settings (RFC 9113, 3.4). It is answered with settings.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// What a container has printed beside its agent's stream.
#[derive(Clone, Default)]
pub struct Complaint(Arc<Mutex<Vec<u8>>>);

impl Complaint {
    /// The text, in one line; empty where it printed nothing.
    pub fn text(&self) -> String {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&text).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn add(&self, bytes: &[u8]) {
        let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = COMPLAINT_MAX.saturating_sub(text.len());
        text.extend(bytes.iter().take(room));
    }
}

/// Attaches to a container that is not started yet. Its agent's connections are streams of one session, which is driven
/// until either end is gone.
pub async fn attach(client: &Docker, container: &str) -> Result<(Streams, Complaint), bollard::errors::Error> {
    let options = AttachContainerOptionsBuilder::default().stream(true).stdin(true).stdout(true).stderr(true).build();
    let attached = client.attach_container(container, Some(options)).await?;
    let complaint = Complaint::default();
    let output = StreamReader::new(agents(attached.output, complaint.clone()));
    let (streams, session) = multiplex(join(output, attached.input));
    let container = container.to_owned();
    tokio::spawn(async move {
        // the end of a container is told by the daemon
        if let Err(error) = session.await {
            tracing::debug!(container, %error, "the stream to an agent has ended");
        }
    });
    Ok((streams, complaint))
}

/// Resolves when the agent at the other end of a session has said its first word.
pub async fn answered(streams: &Streams) {
    let greeted = async {
        let mut stream = streams.connect().await?;
        stream.write_all(GREETING).await?;
        stream.flush().await?;
        stream.read_u8().await
    };
    if let Err(error) = greeted.await {
        // the daemon says what became of the container
        tracing::debug!(%error, "an agent does not answer");
        std::future::pending().await
    }
}

type Output = Pin<Box<dyn Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>>;

/// The standard output alone.
fn agents(output: Output, complaint: Complaint) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin {
    output.filter_map(move |piece| {
        ready(match piece {
            Ok(LogOutput::StdErr { message }) => {
                complaint.add(&message);
                None
            }
            Ok(piece) => Some(Ok(piece.into_bytes())),
            Err(error) => Some(Err(io::Error::other(error))),
        })
    })
}
