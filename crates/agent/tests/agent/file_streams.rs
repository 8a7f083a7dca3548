//! Files as streams: uploads and downloads of any size.

use std::{fs, os::unix::fs::symlink, time::Duration};

use bytes::Bytes;
use cloud_sandbox_proto::v1::{
    DownloadFileRequest, FileInfo, UploadCommit, UploadFileHeader, UploadFileRequest, upload_file_request::Part,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status};

use crate::{
    files::{Files, code, fifo},
    rig::{Agent, eventually},
};

fn message(part: Part) -> UploadFileRequest {
    UploadFileRequest { part: Some(part) }
}

fn header(path: &str) -> Part {
    Part::Header(UploadFileHeader { path: path.to_owned(), ..Default::default() })
}

fn data(bytes: &[u8]) -> Part {
    Part::Data(Bytes::copy_from_slice(bytes))
}

fn commit() -> Part {
    Part::Commit(UploadCommit {})
}

impl Files {
    async fn upload(&self, parts: Vec<Part>) -> Result<FileInfo, Status> {
        let requests = tokio_stream::iter(parts.into_iter().map(message));
        self.client.clone().upload_file(requests).await.map(|response| response.into_inner().file.unwrap())
    }

    async fn download(&self, path: &str, offset: u64, length: u64) -> Result<(FileInfo, Vec<u8>), Status> {
        let request = DownloadFileRequest { path: path.to_owned(), offset, length, ..Default::default() };
        let mut pieces = self.client.clone().download_file(request).await?.into_inner();
        let (mut file, mut content) = (None, Vec::new());
        while let Some(piece) = pieces.message().await? {
            assert_eq!(piece.file.is_some(), file.is_none(), "the first message alone has the file");
            file = file.or(piece.file);
            content.extend_from_slice(&piece.data);
        }
        Ok((file.unwrap(), content))
    }
}

#[tokio::test]
async fn what_was_uploaded_in_pieces_is_downloaded() {
    let agent = Files::start().await;
    let path = agent.path("new/big");
    let piece: Vec<u8> = (0..1024 * 1024_u32).flat_map(u32::to_le_bytes).collect();
    let mut parts = vec![header(&path)];
    parts.extend((0..8).map(|_| data(&piece)));
    parts.push(commit());
    let file = agent.upload(parts).await.unwrap();
    assert_eq!((file.size, file.mode, file.path.as_str()), (32 * 1024 * 1024, 0o644, path.as_str()));
    let (described, content) = agent.download(&path, 0, 0).await.unwrap();
    assert_eq!(described, file);
    assert!(content == piece.repeat(8));
    assert_eq!(agent.names("new"), ["big"]);
}

#[tokio::test]
async fn a_range_is_downloaded() {
    let agent = Files::start().await;
    let path = agent.path("a");
    fs::write(&path, b"0123456789").unwrap();
    assert_eq!(agent.download(&path, 3, 4).await.unwrap().1, b"3456");
    assert_eq!(agent.download(&path, 8, 100).await.unwrap().1, b"89");
    assert_eq!(agent.download(&path, 8, 0).await.unwrap().1, b"89");
    let (file, content) = agent.download(&path, 100, 0).await.unwrap();
    assert_eq!((file.size, content.len()), (10, 0));
    assert!(agent.download("/proc/version", 0, 0).await.unwrap().1.starts_with(b"Linux"));
}

#[tokio::test]
async fn half_an_upload_leaves_everything_as_it_was() {
    let agent = Files::start().await;
    let kept = agent.path("kept");
    fs::write(&kept, "old").unwrap();
    for path in [kept.clone(), agent.path("new/folder/file")] {
        let error = agent.upload(vec![header(&path), data(b"half")]).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains("without commit"), "{}", error.message());
        assert_eq!(code(agent.upload(vec![header(&path), header(&path)]).await), Code::InvalidArgument);
    }
    assert_eq!(code(agent.upload(vec![data(b"x"), commit()]).await), Code::InvalidArgument);
    assert_eq!(code(agent.upload(vec![]).await), Code::InvalidArgument);
    assert_eq!(
        (agent.names(""), fs::read_to_string(kept).unwrap()),
        (vec!["agent.sock".into(), "kept".into()], "old".into())
    );
}

#[tokio::test]
async fn a_dropped_upload_leaves_everything_as_it_was() {
    let agent = Files::start().await;
    let (parts, requests) = mpsc::channel(1);
    let mut client = agent.client.clone();
    let upload =
        tokio::spawn(async move { client.upload_file(ReceiverStream::new(requests)).await.map(Response::into_inner) });
    parts.send(message(header(&agent.path("new/file")))).await.unwrap();
    parts.send(message(data(&[1; 100_000]))).await.unwrap();
    eventually("the upload begins", || agent.folder().join("new").exists()).await;
    upload.abort();
    eventually("the upload is undone", || !agent.folder().join("new").exists()).await;
    assert_eq!(agent.names(""), ["agent.sock"]);
}

#[tokio::test]
async fn an_unfinished_upload_has_no_name() {
    let agent = Files::start().await;
    fs::create_dir(agent.folder().join("d")).unwrap();
    let (parts, requests) = mpsc::channel(1);
    let mut client = agent.client.clone();
    let upload =
        tokio::spawn(async move { client.upload_file(ReceiverStream::new(requests)).await.map(Response::into_inner) });
    parts.send(message(header(&agent.path("d/file")))).await.unwrap();
    for _ in 0..3 {
        parts.send(message(data(b"abc"))).await.unwrap();
    }
    assert_eq!(agent.names("d"), Vec::<String>::new());
    parts.send(message(commit())).await.unwrap();
    assert_eq!(upload.await.unwrap().unwrap().file.unwrap().size, 9);
    assert_eq!(agent.names("d"), ["file"]);
}

#[tokio::test]
async fn an_upload_keeps_mode_and_link_and_minds_the_etag() {
    let agent = Files::start().await;
    fs::create_dir(agent.folder().join("d")).unwrap();
    agent.write(&agent.path("d/tool"), b"1", 0o750).await.unwrap();
    symlink("d/tool", agent.folder().join("link")).unwrap();
    let file = agent.upload(vec![header(&agent.path("link")), data(b"2"), commit()]).await.unwrap();
    assert_eq!((file.mode, agent.folder().join("link").is_symlink()), (0o750, true));
    assert_eq!(fs::read(agent.path("d/tool")).unwrap(), b"2");

    let only_if = |etag: &str| {
        let header = UploadFileHeader { path: agent.path("d/tool"), if_etag: etag.to_owned(), ..Default::default() };
        vec![Part::Header(header), data(b"3"), commit()]
    };
    assert_eq!(code(agent.upload(only_if("*none")).await), Code::Aborted);
    assert_eq!(code(agent.upload(only_if("0")).await), Code::Aborted);
    agent.upload(only_if(&file.etag)).await.unwrap();
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_uploaded_is_not_overwritten_unasked() {
    let agent = Files::start().await;
    let path = agent.path("file");
    let (parts, requests) = mpsc::channel(1);
    let mut client = agent.client.clone();
    let upload =
        tokio::spawn(async move { client.upload_file(ReceiverStream::new(requests)).await.map(Response::into_inner) });
    let header = UploadFileHeader { path: path.clone(), if_etag: "*none".into(), ..Default::default() };
    parts.send(message(Part::Header(header))).await.unwrap();
    parts.send(message(data(b"mine"))).await.unwrap();
    parts.send(message(data(b"mine"))).await.unwrap();
    fs::write(&path, "theirs").unwrap();
    parts.send(message(commit())).await.unwrap();
    assert_eq!(code(upload.await.unwrap()), Code::Aborted);
    assert_eq!(fs::read(&path).unwrap(), b"theirs");
}

#[tokio::test]
async fn an_upload_to_a_full_disk_leaves_nothing() {
    let Some(agent) = Agent::start_with_small_disk().await else {
        eprintln!("SKIPPED: this host does not let us mount");
        return;
    };
    let agent = Files::of(agent).await;
    let mut parts = vec![header(&agent.path("full/new/file"))];
    parts.extend((0..8).map(|_| data(&vec![1; 512 * 1024])));
    let error = agent.upload(parts).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().ends_with("no space left"), "{}", error.message());
    assert_eq!(code(agent.stat(&agent.path("full/new")).await), Code::NotFound);
    let parts = vec![header(&agent.path("full/file")), data(&vec![1; 700 * 1024]), commit()];
    agent.upload(parts).await.unwrap();
}

#[tokio::test]
async fn only_files_go_up_and_down() {
    let agent = Files::start().await;
    symlink("loop", agent.folder().join("loop")).unwrap();
    symlink("/sys/new", agent.folder().join("elsewhere")).unwrap();
    for path in [agent.path(""), fifo(&agent, "fifo"), agent.path("loop"), "/dev/null".to_owned()] {
        assert_eq!(code(agent.download(&path, 0, 0).await), Code::FailedPrecondition, "{path}");
        assert_eq!(code(agent.upload(vec![header(&path), commit()]).await), Code::FailedPrecondition, "{path}");
    }
    assert_eq!(code(agent.download(&agent.path("none"), 0, 0).await), Code::NotFound);
    let error = agent.upload(vec![header(&agent.path("elsewhere")), commit()]).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("permission denied") || error.message().contains("read-only"), "{error}");
}

#[tokio::test]
async fn a_download_that_nobody_reads_holds_up_nobody_and_ends_with_its_call() {
    let agent = Files::start().await;
    let path = agent.path("big");
    fs::File::create(&path).unwrap().set_len(4 << 30).unwrap();
    let before = agent.memory_kib();
    let mut streams = Vec::new();
    for _ in 0..20 {
        let request = DownloadFileRequest { path: path.clone(), ..Default::default() };
        streams.push(agent.client.clone().download_file(request).await.unwrap().into_inner());
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    // Over another connection: what waits in this one is the client's.
    let other = Files { client: agent.agent.files().await, agent: agent.agent };
    other.stat(&path).await.unwrap();
    let grown = other.memory_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB");
    drop(streams);
    let descriptors = || other.proc_names(&format!("{}/fd", other.pid()));
    eventually("the files are closed", || !descriptors().iter().any(|(_, target)| target.ends_with("big"))).await;
}
