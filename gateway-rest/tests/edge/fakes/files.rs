//! Files that are not there: what is downloaded depends on the path, what is uploaded is counted.

use super::*;

/// The content of `/ten`.
pub const TEN: &[u8] = b"0123456789";
const PIECE: usize = 256 * 1024;

/// What came of uploads.
#[derive(Debug, Default, Clone)]
pub struct Uploaded {
    pub bytes: u64,
    pub pieces: Vec<usize>,
    pub commits: usize,
    /// streams that ended without a commit
    pub ends: usize,
    pub sum: u64,
}

impl Uploaded {
    fn add(&mut self, data: &[u8]) {
        self.bytes += data.len() as u64;
        self.pieces.push(data.len());
        self.sum = data.iter().fold(self.sum, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
    }
}

/// The sum that [`Uploaded`] makes of `data`.
pub fn sum_of(data: &[u8]) -> u64 {
    let mut uploaded = Uploaded::default();
    uploaded.add(data);
    uploaded.sum
}

fn file(path: &str, size: u64) -> FileInfo {
    FileInfo {
        path: path.to_owned(),
        name: path.rsplit('/').next().unwrap_or_default().to_owned(),
        size,
        etag: format!("e-{size}"),
        r#type: FileType::File.into(),
        modify_time: Some(prost_reflect::prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        ..Default::default()
    }
}

/// Zeros, or `/ten`.
fn content(path: &str, size: u64, offset: u64, length: u64) -> Vec<Bytes> {
    if let Some(all) = Some(TEN).filter(|_| !path.starts_with("/zeros/")) {
        let (from, to) = (offset as usize, (offset + length) as usize);
        return all[from..to.min(size as usize)].chunks(4).map(Bytes::copy_from_slice).collect();
    }
    let zeros = Bytes::from_static(&[0; PIECE]);
    let whole = (length / PIECE as u64) as usize;
    let mut pieces = vec![zeros.clone(); whole];
    pieces.push(zeros.slice(..(length % PIECE as u64) as usize));
    pieces
}

fn size_of(path: &str) -> Result<u64, Status> {
    match path {
        "/missing" => Err(to_status(Error::new(ErrorKind::NotFound, reason::FILE_NOT_FOUND, "there is no such file"))),
        "/empty" | "/proc/made-up" => Ok(0),
        "/endless" => Ok(1 << 40),
        _ => path.strip_prefix("/zeros/").map_or(Ok(10), |size| Ok(size.parse().unwrap())),
    }
}

#[async_trait]
impl FileService for Fake {
    async fn read_file(&self, request: Request<ReadFileRequest>) -> Answer<ReadFileResponse> {
        self.0.note(&request);
        let body = Some(read_file_response::Body::Data(vec![0, 0xff].into()));
        Ok(Response::new(ReadFileResponse { body, ..Default::default() }))
    }

    type DownloadFileStream = Events<DownloadFileResponse>;

    async fn download_file(&self, request: Request<DownloadFileRequest>) -> Answer<Self::DownloadFileStream> {
        self.0.note(&request);
        let wanted = request.into_inner();
        self.0.downloads.lock().unwrap().push((wanted.offset, wanted.length));
        let size = size_of(&wanted.path)?;
        if wanted.offset > size {
            return Err(to_status(Error::new(ErrorKind::OutOfRange, "RANGE", "the file is not that long")));
        }
        let left = size - wanted.offset;
        let length = if wanted.length == 0 { left } else { left.min(wanted.length) };
        let seen = Arc::clone(&self.0);
        let messages = stream! {
            let count = CountDrop(seen);
            let data = |data| Ok(DownloadFileResponse { file: None, data });
            yield Ok(DownloadFileResponse { file: Some(file(&wanted.path, size)), data: Bytes::new() });
            match wanted.path.as_str() {
                "/broken" | "/short" => {
                    yield data(Bytes::from_static(b"0123"));
                    if wanted.path == "/broken" {
                        yield Err(to_status(Error::new(ErrorKind::Unavailable, reason::SANDBOX_GONE, "gone")));
                    }
                }
                "/long" => yield data(Bytes::from_static(b"0123456789A")),
                "/proc/made-up" => yield data(Bytes::from_static(b"made up")),
                "/endless" => loop {
                    yield data(Bytes::from_static(&[0; PIECE]));
                },
                path => {
                    for piece in content(path, size, wanted.offset, length) {
                        yield data(piece);
                    }
                }
            }
            drop(count);
        };
        Ok(Response::new(Box::pin(messages)))
    }

    async fn write_file(&self, request: Request<WriteFileRequest>) -> Answer<WriteFileResponse> {
        self.0.note(&request);
        let wanted = request.into_inner();
        let size = match wanted.body {
            Some(write_file_request::Body::Content(text)) => text.len(),
            Some(write_file_request::Body::Data(data)) => data.len(),
            None => 0,
        };
        check_etag(&wanted.if_etag)?;
        Ok(Response::new(WriteFileResponse { file: Some(file(&wanted.path, size as u64)) }))
    }

    async fn upload_file(&self, request: Request<Streaming<UploadFileRequest>>) -> Answer<UploadFileResponse> {
        use upload_file_request::Part;
        self.0.note(&request);
        let _count = CountDrop(Arc::clone(&self.0));
        let mut messages = request.into_inner();
        let Some(UploadFileRequest { part: Some(Part::Header(header)) }) = messages.message().await? else {
            return Err(Status::invalid_argument("no header"));
        };
        *self.0.request.lock().unwrap() = format!("{header:?}");
        if header.path == "/refused" {
            return Err(to_status(Error::sandbox_not_found("sb1")));
        }
        check_etag(&header.if_etag)?;
        while let Some(message) = messages.message().await? {
            let mut uploaded = self.0.uploaded.lock().unwrap();
            match message.part {
                // a measure of speed is not one of this sum
                Some(Part::Data(data)) if header.path == "/counted" => uploaded.bytes += data.len() as u64,
                Some(Part::Data(data)) => uploaded.add(&data),
                Some(Part::Commit(_)) => {
                    uploaded.commits += 1;
                    return Ok(Response::new(UploadFileResponse { file: Some(file(&header.path, uploaded.bytes)) }));
                }
                other => panic!("{other:?}"),
            }
            if header.path == "/full" && uploaded.bytes > 100_000 {
                return Err(to_status(Error::new(ErrorKind::ResourceExhausted, "DISK_FULL", "the disk is full")));
            }
        }
        self.0.uploaded.lock().unwrap().ends += 1;
        Err(Status::aborted("no commit"))
    }

    async fn write_files(&self, request: Request<WriteFilesRequest>) -> Answer<WriteFilesResponse> {
        self.0.note(&request);
        let files = request.into_inner().files.iter().map(|wanted| file(&wanted.path, 0)).collect();
        Ok(Response::new(WriteFilesResponse { files }))
    }

    async fn delete_file(&self, request: Request<DeleteFileRequest>) -> Answer<DeleteFileResponse> {
        self.0.note(&request);
        Ok(Response::new(DeleteFileResponse { path: request.into_inner().path, deleted: true }))
    }

    async fn list_files(&self, request: Request<ListFilesRequest>) -> Answer<ListFilesResponse> {
        self.0.note(&request);
        Ok(Response::new(ListFilesResponse::default()))
    }

    async fn stat_file(&self, request: Request<StatFileRequest>) -> Answer<StatFileResponse> {
        self.0.note(&request);
        Ok(Response::new(StatFileResponse { file: Some(file(&request.into_inner().path, 10)) }))
    }

    async fn make_folder(&self, request: Request<MakeFolderRequest>) -> Answer<MakeFolderResponse> {
        self.0.note(&request);
        Ok(Response::new(MakeFolderResponse::default()))
    }

    async fn change_mode(&self, request: Request<ChangeModeRequest>) -> Answer<ChangeModeResponse> {
        self.0.note(&request);
        Ok(Response::new(ChangeModeResponse::default()))
    }

    async fn move_file(&self, request: Request<MoveFileRequest>) -> Answer<MoveFileResponse> {
        self.0.note(&request);
        Ok(Response::new(MoveFileResponse { file: Some(file(&request.into_inner().destination, 1)) }))
    }

    async fn copy_file(&self, request: Request<CopyFileRequest>) -> Answer<CopyFileResponse> {
        self.0.note(&request);
        Ok(Response::new(CopyFileResponse::default()))
    }

    async fn search_files(&self, request: Request<SearchFilesRequest>) -> Answer<SearchFilesResponse> {
        self.0.note(&request);
        Ok(Response::new(SearchFilesResponse::default()))
    }

    type WatchFilesStream = Events<WatchFilesResponse>;

    async fn watch_files(&self, request: Request<WatchFilesRequest>) -> Answer<Self::WatchFilesStream> {
        self.0.note(&request);
        let event = FileEvent { r#type: FileEventType::Started.into(), ..Default::default() };
        let events = stream! { yield Ok(WatchFilesResponse { event: Some(event) }); };
        Ok(Response::new(Box::pin(events)))
    }

    type DownloadArchiveStream = Events<DownloadArchiveResponse>;

    async fn download_archive(&self, request: Request<DownloadArchiveRequest>) -> Answer<Self::DownloadArchiveStream> {
        self.0.note(&request);
        let path = request.into_inner().path;
        size_of(&path)?;
        let messages = stream! {
            for data in ["tar", "ball"] {
                yield Ok(DownloadArchiveResponse { data: Bytes::from_static(data.as_bytes()) });
            }
            if path == "/broken" {
                yield Err(to_status(Error::new(ErrorKind::Unavailable, reason::SANDBOX_GONE, "gone")));
            }
        };
        Ok(Response::new(Box::pin(messages)))
    }

    async fn upload_archive(&self, request: Request<Streaming<UploadArchiveRequest>>) -> Answer<UploadArchiveResponse> {
        use upload_archive_request::Part;
        self.0.note(&request);
        let mut messages = request.into_inner();
        while let Some(message) = messages.message().await? {
            let mut uploaded = self.0.uploaded.lock().unwrap();
            match message.part {
                Some(Part::Header(header)) => *self.0.request.lock().unwrap() = format!("{header:?}"),
                Some(Part::Data(data)) => uploaded.add(&data),
                _ => {
                    return Ok(Response::new(UploadArchiveResponse { entries: 1, bytes: uploaded.bytes }));
                }
            }
        }
        Err(Status::aborted("no commit"))
    }
}

fn check_etag(if_etag: &str) -> Result<(), Status> {
    if if_etag == "stale" {
        return Err(to_status(Error::new(ErrorKind::Aborted, reason::FILE_CHANGED, "the file has changed")));
    }
    Ok(())
}
