//! The bytes of one connection, in both directions, each of which may end before the other.

use std::io;

use bytes::Bytes;
use cloud_sandbox_proto::agent::v1::{AcceptEnd, AcceptRequest, AcceptResponse, accept_request, accept_response::Part};
use tokio::{
    io::AsyncWriteExt,
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc::Sender,
};
use tonic::{Status, Streaming};

/// Pieces on their way to the node.
pub(super) const PIECES: usize = 2;
/// The most that goes into one.
const PIECE: usize = 32 * 1024;

type Responses = Sender<Result<AcceptResponse, Status>>;

/// Returns when both directions have ended, or one of both ends has failed, which the node is told.
pub(super) async fn relay(stream: TcpStream, parts: Streaming<AcceptRequest>, responses: &Responses) {
    let (read, write) = stream.into_split();
    if let Err(status) = tokio::try_join!(send(read, responses), receive(write, parts)) {
        let _ = responses.send(Err(status)).await;
    }
}

/// Sends what the program sends.
async fn send(read: OwnedReadHalf, responses: &Responses) -> Result<(), Status> {
    loop {
        // Room first: what has been read must not wait in memory. Without anybody who hears it, the relay is dropped.
        let Ok(room) = responses.reserve().await else { return Ok(()) };
        let piece = piece(&read).await.map_err(|error| cut(&error))?;
        if piece.is_empty() {
            room.send(Ok(response(Part::End(AcceptEnd {}))));
            return Ok(());
        }
        room.send(Ok(response(Part::Data(piece))));
    }
}

/// Reads once, into a piece of just the size it needs.
async fn piece(read: &OwnedReadHalf) -> io::Result<Bytes> {
    loop {
        read.readable().await?;
        let mut scratch = [0; PIECE];
        match read.try_read(&mut scratch) {
            Ok(length) => return Ok(Bytes::copy_from_slice(&scratch[..length])),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Hands to the program what comes for it, and its end.
async fn receive(mut write: OwnedWriteHalf, mut parts: Streaming<AcceptRequest>) -> Result<(), Status> {
    while let Some(message) = parts.message().await? {
        match message.part {
            Some(accept_request::Part::Data(data)) => write.write_all(&data).await.map_err(|error| cut(&error))?,
            _ => return Err(Status::invalid_argument("every message but the first must be data")),
        }
    }
    // Fails where the program has gone, which the other direction tells as well.
    let _ = write.shutdown().await;
    Ok(())
}

fn cut(error: &io::Error) -> Status {
    Status::aborted(format!("the connection was cut: {error}"))
}

fn response(part: Part) -> AcceptResponse {
    AcceptResponse { part: Some(part) }
}
