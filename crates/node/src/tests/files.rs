use cloud_sandbox_model::SandboxId;
use cloud_sandbox_proto::{
    node::v1 as node,
    v1::{
        DeleteFileRequest, FileInfo, ReadFileRequest, ReadFileResponse, WriteFileRequest, read_file_response,
        write_file_request,
    },
};
use tonic::Status;

use super::harness::*;

const MIB: usize = 1024 * 1024;

impl World {
    async fn read(&self, request: ReadFileRequest) -> Result<ReadFileResponse, Failure> {
        let answer = self.client().read_file(node::ReadFileRequest { request: Some(request) }).await;
        answer.map(|answer| answer.into_inner().response.unwrap()).map_err(|status| Failure::of(&status))
    }

    async fn write(&self, request: WriteFileRequest) -> Result<FileInfo, Failure> {
        let answer = self.client().write_file(node::WriteFileRequest { request: Some(request) }).await;
        answer.map(|answer| answer.into_inner().file.unwrap()).map_err(|status| Failure::of(&status))
    }

    async fn delete(&self, id: SandboxId, path: &str) -> Result<(), Failure> {
        let request = DeleteFileRequest { sandbox_id: id.to_string(), path: path.into(), recursive: false };
        let answer = self.client().delete_file(node::DeleteFileRequest { request: Some(request) }).await;
        answer.map(drop).map_err(|status| Failure::of(&status))
    }
}

fn reading(id: SandboxId, path: &str) -> ReadFileRequest {
    ReadFileRequest { sandbox_id: id.to_string(), path: path.into(), ..Default::default() }
}

fn writing(id: SandboxId, path: &str, data: impl Into<Vec<u8>>) -> WriteFileRequest {
    let body = Some(write_file_request::Body::Data(data.into().into()));
    WriteFileRequest { sandbox_id: id.to_string(), path: path.into(), body, mode: 0 }
}

async fn world() -> (World, SandboxId) {
    let world = World::start(1, 5).await;
    let id = world.acquire().await;
    (world, id)
}

#[tokio::test(start_paused = true)]
async fn what_is_written_is_read_as_text_or_as_bytes_and_deleted() {
    let (world, id) = world().await;
    let body = Some(write_file_request::Body::Content("é".into()));
    let file = world.write(WriteFileRequest { body, mode: 0o600, ..writing(id, "/workspace/a", "") }).await.unwrap();
    assert_eq!((file.size, file.mode), (2, 0o600));
    let answer = world.read(reading(id, "/workspace/a")).await.unwrap();
    assert_eq!(answer.body, Some(read_file_response::Body::Content("é".into())));
    assert_eq!(answer.file.unwrap().name, "a");

    world.write(writing(id, "/workspace/a", [0xFF, 0xFE])).await.unwrap();
    let answer = world.read(reading(id, "/workspace/a")).await.unwrap();
    assert_eq!(answer.body, Some(read_file_response::Body::Data(vec![0xFF, 0xFE].into())));

    let piece = ReadFileRequest { offset: 1, limit: 1, ..reading(id, "/workspace/a") };
    assert_eq!(world.read(piece).await.unwrap().body, Some(read_file_response::Body::Data(vec![0xFE].into())));

    world.delete(id, "/workspace/a").await.unwrap();
    let failure = world.read(reading(id, "/workspace/a")).await.unwrap_err();
    assert_eq!(failure.words(), ("NOT_FOUND", "FILE_NOT_FOUND"));
    assert!(failure.message.contains("/workspace/a"));
    assert_eq!(world.delete(id, "/workspace/a").await.unwrap_err().reason, "FILE_NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn file_that_does_not_fit_whole_is_refused_and_read_in_pieces() {
    let (world, id) = world().await;
    world.write(writing(id, "/a", vec![b'a'; 8 * MIB])).await.unwrap();
    assert!(world.read(reading(id, "/a")).await.is_ok());
    world.script.files.lock().unwrap().insert("/a".into(), vec![b'a'; 8 * MIB + 1]);
    let failure = world.read(reading(id, "/a")).await.unwrap_err();
    assert_eq!(failure.words(), ("OUT_OF_RANGE", "FILE_TOO_LARGE"));
    assert!(failure.message.contains("8388609"), "{}", failure.message);
    let piece = ReadFileRequest { limit: 8 * MIB as u32, ..reading(id, "/a") };
    assert!(world.read(piece).await.is_ok());
    let rest = ReadFileRequest { offset: 1, ..reading(id, "/a") };
    assert!(world.read(rest).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn folder_is_listed_page_by_page() {
    let (world, id) = world().await;
    for name in ["a", "b", "ü"] {
        world.write(writing(id, &format!("/d/{name}"), "")).await.unwrap();
    }
    let mut names = Vec::new();
    let mut request = ReadFileRequest { page_size: 1, ..reading(id, "/d") };
    loop {
        let answer = world.read(request.clone()).await.unwrap();
        assert!(answer.body.is_none());
        names.extend(answer.entries.into_iter().map(|entry| entry.name));
        if answer.next_page_token.is_empty() {
            break;
        }
        request.page_token = answer.next_page_token;
    }
    assert_eq!(names, ["a", "b", "ü"]);
}

#[tokio::test(start_paused = true)]
async fn every_bad_field_is_named() {
    let (world, id) = world().await;
    for path in ["", "a", "/a/../b", "/a\0"] {
        assert_eq!(world.read(reading(id, path)).await.unwrap_err().fields[0], "path");
        assert_eq!(world.write(writing(id, path, "")).await.unwrap_err().fields[0], "path");
        assert_eq!(world.delete(id, path).await.unwrap_err().fields[0], "path");
    }
    let request =
        ReadFileRequest { limit: 8 * MIB as u32 + 1, page_size: 1001, page_token: "?".into(), ..reading(id, "/a") };
    assert_eq!(world.read(request).await.unwrap_err().fields, ["limit", "page_size", "page_token"]);
    let request = WriteFileRequest { mode: 0o1777, ..writing(id, "/a", vec![0; 8 * MIB + 1]) };
    assert_eq!(world.write(request).await.unwrap_err().fields, ["content", "mode"]);
}

#[tokio::test(start_paused = true)]
async fn refusals_of_the_agent_keep_their_words_and_name_the_path() {
    let (world, id) = world().await;
    let cases = [
        (Status::permission_denied("failed to write /a: permission denied"), "FAILED_PRECONDITION", "FILE_REFUSED"),
        (Status::failed_precondition("it is a folder"), "FAILED_PRECONDITION", "FILE_REFUSED"),
        (Status::resource_exhausted("no space left"), "RESOURCE_EXHAUSTED", "FILE_REFUSED"),
        (Status::internal("odd"), "INTERNAL", "INTERNAL"),
    ];
    for (status, kind, reason) in cases {
        *world.script.refusal.lock().unwrap() = Some(status.clone());
        let failure = world.write(writing(id, "/a", "")).await.unwrap_err();
        assert_eq!(failure.words(), (kind, reason));
        if kind != "INTERNAL" {
            assert!(failure.message.contains("/a") && failure.message.contains(status.message()));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn paused_sandbox_refuses_files() {
    let (world, id) = world().await;
    world.pause(id).await.unwrap();
    assert_eq!(world.read(reading(id, "/a")).await.unwrap_err().reason, "SANDBOX_PAUSED");
    assert_eq!(world.write(writing(id, "/a", "")).await.unwrap_err().reason, "SANDBOX_PAUSED");
    assert_eq!(world.delete(id, "/a").await.unwrap_err().reason, "SANDBOX_PAUSED");
}
