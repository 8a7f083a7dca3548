//! Folders as tar archives, in and out, at constant memory: a thread reads or writes the folder, and a short queue of
//! pieces holds it back to the pace of the call.

mod entry;
mod pack;
mod unpack;

use cloud_sandbox_proto::v1::{
    DownloadArchiveRequest, DownloadArchiveResponse, UploadArchiveRequest, UploadArchiveResponse,
    upload_archive_request::Part,
};
use futures::Stream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::parse_raw;
use crate::worker;

/// How many archives may be on their way at once: each holds a thread for as long as its caller likes.
const ARCHIVES: usize = 8;
/// Pieces between the call and the thread.
const QUEUE: usize = 2;

static TURNS: Semaphore = Semaphore::const_new(ARCHIVES);

fn turn() -> Result<tokio::sync::SemaphorePermit<'static>, Status> {
    let refused = |_| Status::resource_exhausted(format!("{ARCHIVES} archives are on their way already"));
    TURNS.try_acquire().map_err(refused)
}

/// Streams a folder or a file as an archive.
pub(super) fn download(
    request: &DownloadArchiveRequest,
) -> Result<impl Stream<Item = Result<DownloadArchiveResponse, Status>> + use<>, Status> {
    let path = parse_raw(&request.path, &request.raw_path)?;
    let turn = turn()?;
    let source = pack::Source::open(path)?;
    let (pieces, stream) = mpsc::channel(QUEUE);
    worker::spawn(move || {
        source.pack(&pieces);
        drop(turn);
    })?;
    Ok(ReceiverStream::new(stream))
}

/// Unpacks what comes into a folder.
pub(super) async fn upload(mut parts: Streaming<UploadArchiveRequest>) -> Result<UploadArchiveResponse, Status> {
    let first = parts.message().await?.and_then(|message| message.part);
    let Some(Part::Header(header)) = first else {
        return Err(Status::invalid_argument("the first message of an upload must be header"));
    };
    let path = parse_raw(&header.path, &header.raw_path)?;
    let turn = turn()?;
    let (pieces, incoming) = mpsc::channel(QUEUE);
    let (done, mut result) = oneshot::channel();
    worker::spawn(move || {
        let unpacked = unpack::unpack(&path, incoming);
        drop(turn);
        // Nobody waits any more.
        let _ = done.send(unpacked);
    })?;
    let lost = |_| Status::internal("the archive's thread ended without a result");
    let mut pieces = Some(pieces);
    let mut unpacked = None;
    while let Some(message) = parts.message().await? {
        match message.part {
            Some(Part::Data(data)) => {
                // What follows the end of the archive is padding.
                let Some(sender) = pieces.as_ref().filter(|_| unpacked.is_none()) else { continue };
                if sender.send(Some(data)).await.is_err() {
                    unpacked = Some((&mut result).await.map_err(lost)??);
                }
            }
            Some(Part::Commit(_)) => {
                if let Some(unpacked) = unpacked {
                    return Ok(unpacked);
                }
                if let Some(sender) = pieces.take() {
                    // It may have found the end by itself.
                    let _ = sender.send(None).await;
                }
                return result.await.map_err(lost)?;
            }
            Some(Part::Header(_)) => return Err(Status::invalid_argument("header comes once")),
            None => {}
        }
    }
    drop(pieces);
    // It says how far it came, and fails unless the archive's end had come.
    let unpacked = match unpacked {
        Some(unpacked) => unpacked,
        None => result.await.map_err(lost)??,
    };
    Err(unpack::uncommitted(unpacked.entries))
}
