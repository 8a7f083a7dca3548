//! Standard input to the program, what it prints to standard output and standard error, piece by piece.

use anyhow::{Context as _, bail};
use cloud_sandbox_proto::v1::{
    ExecCloseStdin, ExecEvent, ExecOutput, ExecRequest, ExecStart, ExecuteRequest, exec_event::Event,
    exec_output::Content, exec_request::Input, exec_service_client::ExecServiceClient,
};
use cloud_sandbox_rpc::Upstream;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, stderr, stdin, stdout},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

use super::Outcome;
use crate::client::failure;

/// The largest piece of standard input (as ExecRequest has it).
const PIECE: usize = 64 * 1024;
/// Pieces on their way: a program that reads slowly slows whoever writes.
const PIECES: usize = 4;

/// Runs the program on this process's standard input, output and error.
pub(super) async fn attach(
    exec: &mut ExecServiceClient<Upstream>,
    request: ExecuteRequest,
    forward_input: bool,
) -> anyhow::Result<Outcome> {
    let (send, receive) = mpsc::channel(PIECES);
    let start = Input::Start(ExecStart { request: Some(request), ..ExecStart::default() });
    send.try_send(message(start)).context("failed to begin")?;
    tokio::spawn(async move {
        if forward_input {
            forward(stdin(), &send).await;
        }
        _ = send.send(message(Input::CloseStdin(ExecCloseStdin {}))).await;
        // the stream stays open until the program has ended: its end would look like a caller that hung up
        send.closed().await;
    });
    let mut events = exec.exec(ReceiverStream::new(receive)).await.map_err(failure)?.into_inner();
    let (mut out, mut err) = (stdout(), stderr());
    while let Some(response) = events.message().await.map_err(failure)? {
        let written = match response.event {
            Some(ExecEvent { event: Some(Event::Stdout(piece)) }) => write(&mut out, piece).await,
            Some(ExecEvent { event: Some(Event::Stderr(piece)) }) => write(&mut err, piece).await,
            Some(ExecEvent { event: Some(Event::Exited(exited)) }) => return Ok(Outcome::Exited(exited)),
            _ => Ok(()),
        };
        if written.is_err() {
            return Ok(Outcome::NoReader);
        }
    }
    bail!("the server ended the stream before the program ended")
}

fn message(input: Input) -> ExecRequest {
    ExecRequest { input: Some(input) }
}

async fn forward(mut source: impl AsyncRead + Unpin, send: &mpsc::Sender<ExecRequest>) {
    let mut buffer = vec![0; PIECE];
    loop {
        match source.read(&mut buffer).await {
            Ok(0) => return,
            Ok(read) => {
                let piece = buffer[..read].to_vec();
                if send.send(message(Input::Stdin(piece.into()))).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "failed to read standard input");
                return;
            }
        }
    }
}

async fn write(sink: &mut (impl AsyncWrite + Unpin), piece: ExecOutput) -> std::io::Result<()> {
    match piece.content {
        Some(Content::Text(text)) => sink.write_all(text.as_bytes()).await?,
        Some(Content::Data(data)) => sink.write_all(&data).await?,
        None => {}
    }
    sink.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn input_is_forwarded_in_order_to_its_end() {
        let text = "x".repeat(3 * PIECE / 2);
        let (send, mut receive) = mpsc::channel(PIECES);
        forward(text.as_bytes(), &send).await;
        drop(send);
        let mut read = Vec::new();
        while let Some(request) = receive.recv().await {
            let Some(Input::Stdin(piece)) = request.input else { panic!("not input") };
            assert!(piece.len() <= PIECE);
            read.extend_from_slice(&piece);
        }
        assert_eq!(read, text.as_bytes());
    }

    #[tokio::test]
    async fn text_and_bytes_are_written_as_they_are() {
        let mut sink = Vec::new();
        for content in [Content::Text("ä".into()), Content::Data(vec![0xff].into())] {
            write(&mut sink, ExecOutput { offset: 0, content: Some(content) }).await.unwrap();
        }
        assert_eq!(sink, [0xc3, 0xa4, 0xff]);
    }
}
