//! Reads files: whole, in pieces, or as a stream.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use cloud_sandbox_proto::v1::{
    DownloadFileRequest, DownloadFileResponse, FileInfo, ReadFileRequest, ReadFileResponse, read_file_response::Body,
};
use futures::{Stream, stream};
use tonic::Status;

use super::{failed, info::file_info, is_folder, list, neither, parse_raw, shown};

/// The most of a file in one answer, in bytes.
const MAX_READ: u32 = 8 * 1024 * 1024;
/// What a download reads at a time: below what the allocator returns to the system with each free.
const PIECE: usize = 96 * 1024;

/// Reads a piece of a file or a page of a folder.
pub(super) fn read(request: &ReadFileRequest) -> Result<ReadFileResponse, Status> {
    let path = parse_raw(&request.path, &request.raw_path)?;
    if request.limit > MAX_READ {
        return Err(Status::invalid_argument(format!("limit {} is more than {MAX_READ}", request.limit)));
    }
    if path.metadata().map_err(failed("read", &path))?.is_dir() {
        return list::page_of_folder(&path, request);
    }
    let (file, metadata) = open(&path)?;
    let limit = if request.limit == 0 { MAX_READ } else { request.limit };
    // One more than fits, so that a file that does not can be told from one that just does.
    let most = u64::from(limit) + u64::from(request.limit == 0);
    let mut data = piece(&file, metadata.len(), request.offset, most).map_err(failed("read", &path))?;
    if data.len() > MAX_READ as usize {
        let message = format!(
            "{} is too large to be read whole: it has {} bytes, {MAX_READ} fit; give offset and limit",
            shown(&path),
            metadata.len()
        );
        return Err(Status::out_of_range(message));
    }
    data.shrink_to_fit();
    let body = match String::from_utf8(data) {
        Ok(text) => Body::Content(text),
        Err(error) => Body::Data(error.into_bytes().into()),
    };
    Ok(ReadFileResponse { file: Some(file_info(&path, &metadata)), body: Some(body), ..ReadFileResponse::default() })
}

/// Reads to the limit or the end, whichever is first. The size is a hint only: files of `/proc` say 0.
fn piece(file: &File, size: u64, offset: u64, limit: u64) -> io::Result<Vec<u8>> {
    let expected = size.saturating_sub(offset).min(limit);
    let mut data = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
    seek(file, offset)?;
    file.take(limit).read_to_end(&mut data)?;
    Ok(data)
}

/// What is beyond every end reads as nothing, as what is beyond the file's.
fn seek(mut file: &File, offset: u64) -> io::Result<()> {
    file.seek(SeekFrom::Start(offset.min(i64::MAX as u64))).map(drop)
}

/// Opens a file, and nothing whose opening or reading would wait.
pub(super) fn open(path: &Path) -> Result<(File, Metadata), Status> {
    let failed = failed("read", path);
    let check = |metadata: Metadata| {
        if metadata.is_dir() {
            Err(is_folder(path))
        } else if metadata.is_file() {
            Ok(metadata)
        } else {
            Err(neither(path))
        }
    };
    check(path.metadata().map_err(&failed)?)?;
    // It may have become something else since.
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).map_err(&failed)?;
    let metadata = check(file.metadata().map_err(&failed)?)?;
    Ok((file, metadata))
}

/// A file on its way out.
struct Download {
    path: PathBuf,
    file: File,
    first: Option<FileInfo>,
    remaining: u64,
    buffer: BytesMut,
}

/// Streams a file, or a range of it. Each piece is read when the one before was taken.
pub(super) fn download(
    request: &DownloadFileRequest,
) -> Result<impl Stream<Item = Result<DownloadFileResponse, Status>> + use<>, Status> {
    let path = parse_raw(&request.path, &request.raw_path)?;
    let (file, metadata) = open(&path)?;
    seek(&file, request.offset).map_err(failed("read", &path))?;
    let download = Download {
        first: Some(file_info(&path, &metadata)),
        remaining: if request.length == 0 { u64::MAX } else { request.length },
        buffer: BytesMut::new(),
        path,
        file,
    };
    Ok(stream::unfold(Some(download), |download| async move {
        let mut download = download?;
        match download.next() {
            Ok(Some(response)) => Some((Ok(response), Some(download))),
            Ok(None) => None,
            Err(error) => Some((Err(failed("read", &download.path)(error)), None)),
        }
    }))
}

impl Download {
    fn next(&mut self) -> io::Result<Option<DownloadFileResponse>> {
        let data = self.read()?;
        self.remaining -= data.len() as u64;
        let file = self.first.take();
        let over = data.is_empty() && file.is_none();
        Ok((!over).then_some(DownloadFileResponse { file, data }))
    }

    /// The next bytes; none at the end. The buffer is used again once its last piece was sent.
    fn read(&mut self) -> io::Result<Bytes> {
        let wanted = usize::try_from(self.remaining).map_or(PIECE, |remaining| remaining.min(PIECE));
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        self.buffer.resize(wanted, 0);
        let read = loop {
            match (&self.file).read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.buffer.truncate(read);
        Ok(self.buffer.split().freeze())
    }
}
