//! Files: uploads and downloads as streams, and tokens for one file.

use std::time::Duration;

use cloud_sandbox_auth::{FileAccess, FileGrant, Principal, Role};
use cloud_sandbox_model::{ErrorKind, error::reason};
use cloud_sandbox_proto::v1::{
    DeleteFileRequest, DownloadFileRequest, ExecuteRequest, ReadFileRequest, UploadFileHeader, UploadFileRequest,
    WriteFileRequest, upload_file_request::Part,
};
use cloud_sandbox_rpc::from_status;
use cloud_sandbox_sim_node::{Fault, assert_eventually, principal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use crate::support::{World, commit, data, error, header};

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn files_are_relayed() {
    let world = World::new().await;
    let id = world.node.host("ada").await.to_string();
    let mut files = world.ada().files;
    let path = "/workspace/a".to_owned();
    let write = WriteFileRequest { sandbox_id: id.clone(), path: path.clone(), ..WriteFileRequest::default() };
    assert_eq!(files.write_file(write).await.unwrap().into_inner().file.unwrap().path, path);
    let read = ReadFileRequest { sandbox_id: id.clone(), path: path.clone(), ..ReadFileRequest::default() };
    assert_eq!(files.read_file(read).await.unwrap().into_inner().file.unwrap().path, path);
    let delete = DeleteFileRequest { sandbox_id: id, path: path.clone(), ..DeleteFileRequest::default() };
    let deleted = files.delete_file(delete).await.unwrap().into_inner();
    assert_eq!((deleted.path, deleted.deleted), (path, true));
}

#[tokio::test]
async fn download_and_upload_are_relayed_whole() {
    let world = World::new().await;
    let id = world.node.host("ada").await.to_string();
    let mut files = world.ada().files;
    let length = 5 * MIB as u64 + 7;
    let request = DownloadFileRequest { sandbox_id: id.clone(), path: "/a".into(), length, ..Default::default() };
    let mut pieces = files.download_file(request).await.unwrap().into_inner();
    assert_eq!(pieces.message().await.unwrap().unwrap().file.unwrap().path, "/a");
    let mut got = 0;
    while let Some(piece) = pieces.message().await.unwrap() {
        got += piece.data.len() as u64;
    }
    assert_eq!(got, length);

    let messages = [header(&id), data(vec![1; 4 * MIB]), data(vec![2; 7]), commit()];
    let uploaded = files.upload_file(tokio_stream::iter(messages)).await.unwrap().into_inner();
    assert_eq!(uploaded.file.unwrap().path, "/a");
    assert_eq!(world.node.uploads(), [format!("commit {}", 4 * MIB + 7)]);
    assert_eq!(world.node.in_flight(), 0);
}

#[tokio::test]
async fn half_an_upload_reaches_the_node_as_an_end_without_commit() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let ended = error(world.ada().files.upload_file(tokio_stream::iter([header(id), data("abc")])).await);
    assert_eq!(ended.kind(), ErrorKind::Cancelled);
    assert_eq!(world.node.uploads(), ["end 3"]);
}

#[tokio::test]
async fn upload_must_begin_with_its_header() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    for messages in [vec![], vec![data("x"), header(id)], vec![UploadFileRequest { part: None }], vec![commit()]] {
        let refused = error(world.ada().files.upload_file(tokio_stream::iter(messages)).await);
        assert_eq!((refused.kind(), refused.violations()[0].field.as_str()), (ErrorKind::InvalidArgument, "header"));
    }
    assert_eq!(world.node.calls(), [""; 0]);
}

#[tokio::test]
async fn upload_that_stalls_ends_at_its_deadline_and_drops_the_nodes_call() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    for first in [vec![], vec![header(id), data("abc")]] {
        let (send, receive) = mpsc::channel(4);
        for message in first {
            send.send(message).await.unwrap();
        }
        let mut request = Request::new(ReceiverStream::new(receive));
        request.set_timeout(Duration::from_millis(80));
        let ended = error(world.ada().files.upload_file(request).await);
        assert_eq!(ended.kind(), ErrorKind::DeadlineExceeded);
        drop(send);
    }
    assert_eventually("the drop", || world.node.in_flight() == 0).await;
    assert!(!world.node.uploads().iter().any(|upload| upload.starts_with("commit")));
}

#[tokio::test]
async fn node_that_refuses_an_upload_in_the_middle_is_heard_at_once() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    world.node.fail("UploadFile", Fault::Refuse(ErrorKind::ResourceExhausted));
    let (send, receive) = mpsc::channel(4);
    send.send(header(id)).await.unwrap();
    let refused = error(world.ada().files.upload_file(ReceiverStream::new(receive)).await);
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    drop(send);
}

#[tokio::test]
async fn download_that_breaks_ends_with_an_error() {
    let world = World::new().await;
    let id = world.node.host("ada").await.to_string();
    world.node.fail("DownloadFile", Fault::Break(2));
    let request = DownloadFileRequest { sandbox_id: id, length: 9 * MIB as u64, ..DownloadFileRequest::default() };
    let mut pieces = world.ada().files.download_file(request).await.unwrap().into_inner();
    for _ in 0..2 {
        pieces.message().await.unwrap().unwrap();
    }
    let broken = from_status(&pieces.message().await.unwrap_err());
    assert_eq!((broken.kind(), broken.reason()), (ErrorKind::Unavailable, reason::NODE_UNREACHABLE));
    assert_eq!(world.node.in_flight(), 0);
}

fn granted(sandbox: &str, access: FileAccess) -> Principal {
    let grant = FileGrant { sandbox: sandbox.into(), path: "/a".into(), access };
    Principal { grant: Some(grant), ..principal("ada", Role::User) }
}

fn read(id: &str, path: &str) -> ReadFileRequest {
    ReadFileRequest { sandbox_id: id.into(), path: path.into(), ..ReadFileRequest::default() }
}

fn write(id: &str, path: &str) -> WriteFileRequest {
    WriteFileRequest { sandbox_id: id.into(), path: path.into(), ..WriteFileRequest::default() }
}

#[tokio::test]
async fn token_for_a_file_opens_that_file_and_its_makers_sandbox_alone() {
    let world = World::new().await;
    let id = world.node.host("ada").await.to_string();
    let mut reads = world.as_principal(granted(&id, FileAccess::Read)).files;
    reads.read_file(read(&id, "/a")).await.unwrap();
    let download = DownloadFileRequest { sandbox_id: id.clone(), path: "/a".into(), ..Default::default() };
    reads.download_file(download).await.unwrap();
    let mut writes = world.as_principal(granted(&id, FileAccess::Write)).files;
    writes.write_file(write(&id, "/a")).await.unwrap();
    writes.upload_file(tokio_stream::iter([header(&id), commit()])).await.unwrap();

    let bobs = Principal { user: "bob".into(), ..granted(&id, FileAccess::Read) };
    let theirs = error(world.as_principal(bobs).files.read_file(read(&id, "/a")).await);
    assert_eq!(theirs.reason(), reason::SANDBOX_NOT_FOUND, "it is worth what its maker's rights are worth");
}

#[tokio::test]
async fn token_for_a_file_opens_nothing_else() {
    let world = World::new().await;
    let (id, other) = (world.node.host("ada").await.to_string(), world.node.host("ada").await.to_string());
    let clients = world.as_principal(granted(&id, FileAccess::Read));
    let (mut reads, mut exec) = (clients.files, clients.exec);
    let mut writes = world.as_principal(granted(&id, FileAccess::Write)).files;
    let raw = ReadFileRequest { raw_path: "/b".into(), ..read(&id, "/a") };
    let raw_download =
        DownloadFileRequest { sandbox_id: id.clone(), path: "/a".into(), raw_path: "/b".into(), ..Default::default() };
    let elsewhere = |path: &str, raw_path: &'static str| {
        let header = UploadFileHeader {
            sandbox_id: id.clone(),
            path: path.into(),
            raw_path: raw_path.into(),
            ..UploadFileHeader::default()
        };
        tokio_stream::iter([UploadFileRequest { part: Some(Part::Header(header)) }, commit()])
    };
    let refused = [
        error(reads.read_file(read(&id, "/b")).await),
        error(reads.read_file(read(&id, "//a")).await),
        error(reads.read_file(read(&other, "/a")).await),
        error(reads.read_file(raw).await),
        error(reads.download_file(raw_download).await),
        error(reads.write_file(write(&id, "/a")).await),
        error(reads.upload_file(tokio_stream::iter([header(&id), commit()])).await),
        error(
            reads
                .delete_file(DeleteFileRequest { sandbox_id: id.clone(), path: "/a".into(), ..Default::default() })
                .await,
        ),
        error(exec.execute(ExecuteRequest { sandbox_id: id.clone(), ..ExecuteRequest::default() }).await),
        error(writes.read_file(read(&id, "/a")).await),
        error(writes.write_file(write(&id, "/a/../b")).await),
        error(writes.upload_file(elsewhere("/b", "")).await),
        error(writes.upload_file(elsewhere("/a", "/b")).await),
    ];
    for (number, error) in refused.into_iter().enumerate() {
        let words = (error.kind(), error.reason());
        assert_eq!(words, (ErrorKind::PermissionDenied, reason::ROLE_DENIED), "case {number}");
    }
    assert_eq!(world.node.calls(), [""; 0]);
}
