//! Files one at a time: read, write, describe, delete.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
};

use bytes::Bytes;
use cloud_sandbox_proto::v1::{
    ChangeModeRequest, DeleteFileRequest, FileInfo, FileType, MakeFolderRequest, ReadFileRequest, ReadFileResponse,
    StatFileRequest, WriteFileRequest, WriteFilesRequest, file_service_client::FileServiceClient,
    read_file_response::Body, write_file_request::Body as Written,
};
use tonic::{Code, Response, Status, transport::Channel};

use crate::rig::Agent;

/// An agent and the client of its files.
pub struct Files {
    pub agent: Agent,
    pub client: FileServiceClient<Channel>,
}

impl std::ops::Deref for Files {
    type Target = Agent;

    fn deref(&self) -> &Agent {
        &self.agent
    }
}

impl Files {
    pub async fn start() -> Self {
        Self::of(Agent::start().await).await
    }

    pub async fn of(agent: Agent) -> Self {
        Self { client: agent.files().await, agent }
    }

    async fn read(&self, path: &str, offset: u64, limit: u32) -> Result<ReadFileResponse, Status> {
        let request = ReadFileRequest { path: path.to_owned(), offset, limit, ..Default::default() };
        self.client.clone().read_file(request).await.map(Response::into_inner)
    }

    pub async fn write_with(&self, path: &str, data: &[u8], with: WriteFileRequest) -> Result<FileInfo, Status> {
        let body = Some(Written::Data(Bytes::copy_from_slice(data)));
        let request = WriteFileRequest { path: path.to_owned(), body, ..with };
        self.client.clone().write_file(request).await.map(|response| response.into_inner().file.unwrap())
    }

    pub async fn write(&self, path: &str, data: &[u8], mode: u32) -> Result<FileInfo, Status> {
        self.write_with(path, data, WriteFileRequest { mode, ..Default::default() }).await
    }

    pub async fn delete(&self, path: &str, recursive: bool) -> Result<(), Status> {
        let request = DeleteFileRequest { path: path.to_owned(), recursive, ..Default::default() };
        let deleted = self.client.clone().delete_file(request).await?.into_inner();
        assert_eq!((deleted.path.as_str(), deleted.deleted), (path, true));
        Ok(())
    }

    pub async fn stat(&self, path: &str) -> Result<FileInfo, Status> {
        let request = StatFileRequest { path: path.to_owned(), ..Default::default() };
        self.client.clone().stat_file(request).await.map(|response| response.into_inner().file.unwrap())
    }

    pub async fn chmod(&self, path: &str, mode: u32, recursive: bool) -> Result<FileInfo, Status> {
        let request = ChangeModeRequest { path: path.to_owned(), mode, recursive, ..Default::default() };
        self.client.clone().change_mode(request).await.map(|response| response.into_inner().file.unwrap())
    }

    pub fn mode_of(&self, name: &str) -> u32 {
        fs::metadata(self.folder().join(name)).unwrap().permissions().mode() & 0o7777
    }

    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.folder().join(folder)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// What was read, whichever way it was told.
fn bytes(response: &ReadFileResponse) -> &[u8] {
    match response.body.as_ref().unwrap() {
        Body::Content(text) => text.as_bytes(),
        Body::Data(data) => {
            assert!(std::str::from_utf8(data).is_err());
            data
        }
    }
}

pub fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

pub fn fifo(agent: &Agent, name: &str) -> String {
    let path = agent.path(name);
    nix::unistd::mkfifo(path.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    path
}

#[tokio::test]
async fn what_was_written_is_read_back() {
    let agent = Files::start().await;
    let path = agent.path("a.txt");
    let written = agent.write(&path, b"hello", 0).await.unwrap();
    assert_eq!((written.path.as_str(), written.name.as_str(), written.size), (path.as_str(), "a.txt", 5));
    assert_eq!((written.r#type(), written.mode), (FileType::File, 0o644));
    let read = agent.read(&path, 0, 100).await.unwrap();
    assert_eq!((bytes(&read), read.file.clone()), (&b"hello"[..], Some(written)));
    assert_eq!(agent.names(""), ["a.txt", "agent.sock"]);
}

#[tokio::test]
async fn a_piece_is_read_from_the_middle() {
    let agent = Files::start().await;
    let path = agent.path("a");
    agent.write(&path, b"0123456789", 0).await.unwrap();
    assert_eq!(bytes(&agent.read(&path, 3, 4).await.unwrap()), b"3456");
    assert_eq!(bytes(&agent.read(&path, 8, 4).await.unwrap()), b"89");
    let beyond = agent.read(&path, 100, 4).await.unwrap();
    assert_eq!((bytes(&beyond), beyond.file.as_ref().unwrap().size), (&b""[..], 10));
}

#[tokio::test]
async fn eight_mebibytes_go_there_and_back() {
    let agent = Files::start().await;
    let content: Vec<u8> = (0..2 * 1024 * 1024_u32).flat_map(u32::to_le_bytes).collect();
    agent.write(&agent.path("big"), &content, 0).await.unwrap();
    let read = agent.read(&agent.path("big"), 0, 8 * 1024 * 1024).await.unwrap();
    assert!(bytes(&read) == content);
}

#[tokio::test]
async fn a_file_that_hides_its_size_is_read() {
    let agent = Files::start().await;
    let read = agent.read("/proc/version", 0, 4096).await.unwrap();
    assert!(bytes(&read).starts_with(b"Linux"));
}

#[tokio::test]
async fn missing_parents_are_created() {
    let agent = Files::start().await;
    agent.write(&agent.path("x/y/z.txt"), b"", 0o600).await.unwrap();
    assert_eq!((agent.mode_of("x"), agent.mode_of("x/y"), agent.mode_of("x/y/z.txt")), (0o755, 0o755, 0o600));
}

#[tokio::test]
async fn a_replaced_file_keeps_its_mode_unless_told() {
    let agent = Files::start().await;
    let path = agent.path("tool");
    agent.write(&path, b"1", 0o750).await.unwrap();
    agent.write(&path, b"2", 0).await.unwrap();
    assert_eq!(agent.mode_of("tool"), 0o750);
    agent.write(&path, b"3", 0o640).await.unwrap();
    assert_eq!(agent.mode_of("tool"), 0o640);
}

#[tokio::test]
async fn a_link_is_written_through() {
    let agent = Files::start().await;
    fs::create_dir(agent.folder().join("real")).unwrap();
    symlink("real/file", agent.folder().join("link")).unwrap();
    symlink("link", agent.folder().join("link-to-link")).unwrap();
    // At first it points at nothing, then at a file.
    for content in ["new", "newer"] {
        agent.write(&agent.path("link-to-link"), content.as_bytes(), 0).await.unwrap();
        assert_eq!(fs::read_to_string(agent.folder().join("real/file")).unwrap(), content);
    }
    assert!(agent.folder().join("link").is_symlink());
    assert_eq!(bytes(&agent.read(&agent.path("link"), 0, 10).await.unwrap()), b"newer");
}

#[tokio::test]
async fn a_failed_write_leaves_nothing_behind() {
    let agent = Files::start().await;
    let too_long = agent.path(&format!("new/folder/{}", "n".repeat(256)));
    assert_eq!(code(agent.write(&too_long, b"x", 0).await), Code::InvalidArgument);
    assert_eq!(agent.names(""), ["agent.sock"]);
}

#[tokio::test]
async fn a_full_disk_leaves_the_old_file_and_nothing_else() {
    let Some(agent) = Agent::start_with_small_disk().await else {
        eprintln!("SKIPPED: this host does not let us mount");
        return;
    };
    let agent = Files::of(agent).await;
    agent.write(&agent.path("full/kept"), b"old", 0).await.unwrap();
    for name in ["full/kept", "full/new/file"] {
        let error = agent.write(&agent.path(name), &vec![1; 2 * 1024 * 1024], 0).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted);
        assert!(error.message().ends_with("no space left"), "{}", error.message());
    }
    assert_eq!(bytes(&agent.read(&agent.path("full/kept"), 0, 10).await.unwrap()), b"old");
    let listed = agent.read(&agent.path("full"), 0, 0).await.unwrap().entries;
    assert_eq!(listed.len(), 1, "{listed:?}");
    // Room is room again.
    agent.write(&agent.path("full/new/file"), &vec![1; 512 * 1024], 0).await.unwrap();
}

#[tokio::test]
async fn what_is_neither_file_nor_folder_is_refused_without_waiting() {
    let agent = Files::start().await;
    for path in [fifo(&agent, "fifo").as_str(), &agent.path("agent.sock"), "/dev/null"] {
        assert_eq!(code(agent.read(path, 0, 10).await), Code::FailedPrecondition, "{path}");
        assert_eq!(code(agent.write(path, b"x", 0).await), Code::FailedPrecondition, "{path}");
    }
}

#[tokio::test]
async fn a_folder_is_listed_in_byte_order_page_by_page() {
    let agent = Files::start().await;
    let folder = agent.folder().join("d");
    fs::create_dir(&folder).unwrap();
    let names: [&[u8]; 5] = [b"B", b"a", b"b\xff", b"c", "\u{e9}".as_bytes()];
    for name in names.iter().rev() {
        fs::write(folder.join(OsStr::from_bytes(name)), "").unwrap();
    }
    let (mut seen, mut pages, mut page_token) = (Vec::new(), 0, String::new());
    loop {
        let request = ReadFileRequest { path: agent.path("d"), page_size: 2, page_token, ..Default::default() };
        let page = agent.client.clone().read_file(request).await.unwrap().into_inner();
        assert_eq!(page.file.unwrap().r#type(), FileType::Directory);
        seen.extend(page.entries.into_iter().map(|entry| entry.name));
        pages += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["B", "a", "b\u{fffd}", "c", "\u{e9}"]);
    assert_eq!(pages, 3);
}

#[tokio::test]
async fn a_listed_link_is_shown_as_itself() {
    let agent = Files::start().await;
    fs::create_dir(agent.folder().join("d")).unwrap();
    symlink("/nowhere", agent.folder().join("d/link")).unwrap();
    let entries = agent.read(&agent.path("d"), 0, 0).await.unwrap().entries;
    assert_eq!((entries[0].r#type(), entries[0].target.as_str()), (FileType::Symlink, "/nowhere"));
    assert_eq!(entries[0].path, agent.path("d/link"));
}

#[tokio::test]
async fn a_deleted_link_leaves_what_it_points_to() {
    let agent = Files::start().await;
    fs::create_dir_all(agent.folder().join("kept")).unwrap();
    fs::write(agent.folder().join("kept/file"), "").unwrap();
    fs::create_dir(agent.folder().join("gone")).unwrap();
    symlink(agent.folder().join("kept"), agent.folder().join("gone/link")).unwrap();
    symlink(agent.folder().join("kept"), agent.folder().join("link")).unwrap();
    agent.delete(&agent.path("link"), true).await.unwrap();
    agent.delete(&agent.path("gone"), true).await.unwrap();
    assert_eq!(agent.names(""), ["agent.sock", "kept"]);
    assert_eq!(agent.names("kept"), ["file"]);
}

#[tokio::test]
async fn a_full_folder_is_deleted_only_when_told() {
    let agent = Files::start().await;
    agent.write(&agent.path("d/e/f"), b"", 0).await.unwrap();
    assert_eq!(code(agent.delete(&agent.path("d"), false).await), Code::FailedPrecondition);
    agent.delete(&agent.path("d/e/f"), false).await.unwrap();
    agent.delete(&agent.path("d/e"), false).await.unwrap();
    agent.write(&agent.path("d/e/f"), b"", 0).await.unwrap();
    agent.delete(&agent.path("d"), true).await.unwrap();
    assert_eq!(agent.names(""), ["agent.sock"]);
}

#[tokio::test]
async fn each_bad_path_has_its_code() {
    let agent = Files::start().await;
    agent.write(&agent.path("file"), b"", 0).await.unwrap();
    symlink("loop", agent.folder().join("loop")).unwrap();
    let (missing, below_file) = (agent.path("none"), agent.path("file/below"));
    assert_eq!(code(agent.read(&missing, 0, 1).await), Code::NotFound);
    assert_eq!(code(agent.delete(&missing, true).await), Code::NotFound);
    for result in [agent.read(&below_file, 0, 1).await.map(drop), agent.write(&below_file, b"", 0).await.map(drop)] {
        assert_eq!(code(result), Code::FailedPrecondition);
    }
    assert_eq!(code(agent.delete(&below_file, false).await), Code::FailedPrecondition);
    assert_eq!(code(agent.read(&agent.path("loop"), 0, 1).await), Code::FailedPrecondition);
    assert_eq!(code(agent.write(&agent.path("loop"), b"", 0).await), Code::FailedPrecondition);
    assert_eq!(code(agent.write(&agent.path(""), b"", 0).await), Code::FailedPrecondition);
    assert_eq!(code(agent.read(&agent.path(&"n".repeat(256)), 0, 1).await), Code::InvalidArgument);
    assert_eq!(code(agent.write(&agent.path("x"), b"", 0o4755).await), Code::InvalidArgument);
    for path in ["", "relative", "/a/../b", "/a\0b", &format!("/{}", "a/".repeat(2048))] {
        assert_eq!(code(agent.read(path, 0, 1).await), Code::InvalidArgument);
        assert_eq!(code(agent.write(path, b"", 0).await), Code::InvalidArgument);
        assert_eq!(code(agent.delete(path, true).await), Code::InvalidArgument);
    }
    assert_eq!(code(agent.delete("/proc", true).await), Code::FailedPrecondition);
    assert_eq!(code(agent.delete("/", true).await), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_file_that_does_not_fit_is_never_cut() {
    let agent = Files::start().await;
    let path = agent.path("big");
    fs::write(&path, vec![b'x'; 8 * 1024 * 1024]).unwrap();
    assert_eq!(bytes(&agent.read(&path, 0, 0).await.unwrap()).len(), 8 * 1024 * 1024);
    fs::write(&path, vec![b'x'; 8 * 1024 * 1024 + 1]).unwrap();
    assert_eq!(code(agent.read(&path, 0, 0).await), Code::OutOfRange);
    assert_eq!(bytes(&agent.read(&path, 1, 0).await.unwrap()).len(), 8 * 1024 * 1024);
    assert_eq!(bytes(&agent.read(&path, 0, 7).await.unwrap()).len(), 7);
    assert_eq!(code(agent.read(&path, 0, 8 * 1024 * 1024 + 1).await), Code::InvalidArgument);
}

#[tokio::test]
async fn a_name_that_is_not_utf8_survives_a_round_trip() {
    let agent = Files::start().await;
    let mut client = agent.client.clone();
    let raw = Bytes::from([agent.folder().as_os_str().as_bytes(), b"/n\xff\xfe"].concat());
    let body = Some(Written::Data("\u{e9}".into()));
    let request = WriteFileRequest { raw_path: raw.clone(), body, ..Default::default() };
    let written = client.write_file(request).await.unwrap().into_inner().file.unwrap();
    assert_eq!((written.raw_path.as_ref(), written.name.as_str()), (raw.as_ref(), "n\u{fffd}\u{fffd}"));
    // As a client that knows both fields sends it back.
    let request = ReadFileRequest { path: written.path.clone(), raw_path: written.raw_path, ..Default::default() };
    let read = client.read_file(request).await.unwrap().into_inner();
    assert_eq!(bytes(&read), "\u{e9}".as_bytes());
    let listed = agent.read(&agent.path(""), 0, 0).await.unwrap().entries;
    assert!(listed.iter().any(|entry| entry.raw_path == raw));
    let differs = ReadFileRequest { path: "/other".into(), raw_path: raw.clone(), ..Default::default() };
    assert_eq!(code(client.read_file(differs).await), Code::InvalidArgument);
    client.delete_file(DeleteFileRequest { raw_path: raw, ..Default::default() }).await.unwrap();
    assert_eq!(agent.names(""), ["agent.sock"]);
}

#[tokio::test]
async fn an_etag_changes_with_the_content_and_guards_it() {
    let agent = Files::start().await;
    let path = agent.path("a");
    let only_if = |etag: &str| WriteFileRequest { if_etag: etag.to_owned(), ..Default::default() };
    let first = agent.write_with(&path, b"1", only_if("*none")).await.unwrap();
    assert!(!first.etag.is_empty());
    assert_eq!(agent.stat(&path).await.unwrap().etag, first.etag);
    assert_eq!(code(agent.write_with(&path, b"x", only_if("*none")).await), Code::Aborted);
    let second = agent.write_with(&path, b"2", only_if(&first.etag)).await.unwrap();
    assert_ne!(second.etag, first.etag);
    assert_eq!(code(agent.write_with(&path, b"x", only_if(&first.etag)).await), Code::Aborted);
    let append = WriteFileRequest { append: true, ..only_if(&first.etag) };
    assert_eq!(code(agent.write_with(&path, b"x", append).await), Code::Aborted);
    assert_eq!(code(agent.write_with(&agent.path("none"), b"x", only_if("0")).await), Code::Aborted);
    assert_eq!(fs::read(&path).unwrap(), b"2");
    assert_eq!(agent.stat(&agent.path("")).await.unwrap().etag, "");
}

#[tokio::test]
async fn appended_bytes_go_to_the_end_of_the_same_file() {
    let agent = Files::start().await;
    let path = agent.path("new/log");
    let append = || WriteFileRequest { append: true, ..Default::default() };
    assert_eq!(agent.write_with(&path, b"one", append()).await.unwrap().mode, 0o644);
    let other_name = agent.folder().join("link");
    fs::hard_link(&path, &other_name).unwrap();
    assert_eq!(agent.write_with(&path, b"two", append()).await.unwrap().size, 6);
    assert_eq!(fs::read(other_name).unwrap(), b"onetwo");
    let changed = agent.write_with(&path, b"", WriteFileRequest { mode: 0o600, ..append() }).await.unwrap();
    assert_eq!(changed.mode, 0o600);
    assert_eq!(code(agent.write_with(&agent.path(""), b"x", append()).await), Code::FailedPrecondition);
    assert_eq!(code(agent.write_with(&fifo(&agent, "fifo"), b"x", append()).await), Code::FailedPrecondition);
}

#[tokio::test]
async fn an_append_to_a_full_disk_is_taken_back() {
    let Some(agent) = Agent::start_with_small_disk().await else {
        eprintln!("SKIPPED: this host does not let us mount");
        return;
    };
    let agent = Files::of(agent).await;
    let append = || WriteFileRequest { append: true, ..Default::default() };
    agent.write_with(&agent.path("full/log"), b"kept", append()).await.unwrap();
    for name in ["full/log", "full/new/log"] {
        let error = agent.write_with(&agent.path(name), &vec![1; 2 * 1024 * 1024], append()).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted);
    }
    assert_eq!(agent.stat(&agent.path("full/log")).await.unwrap().size, 4);
    assert_eq!(code(agent.stat(&agent.path("full/new")).await), Code::NotFound);
}

#[tokio::test]
async fn a_batch_is_written_up_to_the_first_that_fails() {
    let agent = Files::start().await;
    let file = |name: &str| WriteFileRequest {
        path: agent.path(name),
        body: Some(Written::Content(name.to_owned())),
        ..Default::default()
    };
    let mut client = agent.client.clone();
    let files = (0..1000).map(|number| file(&format!("many/{number:03}"))).collect();
    let written = client.write_files(WriteFilesRequest { files, ..Default::default() }).await.unwrap().into_inner();
    assert_eq!((written.files.len(), written.files[999].name.as_str()), (1000, "999"));
    let files = vec![file("a"), file("many"), file("c")];
    let error = client.write_files(WriteFilesRequest { files, ..Default::default() }).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().starts_with("file 2 of 3: "), "{}", error.message());
    assert!(error.message().contains(&agent.path("many")));
    assert_eq!(agent.names(""), ["a", "agent.sock", "many"]);
    for count in [0, 1001] {
        let request = WriteFilesRequest { files: vec![file("x"); count], ..Default::default() };
        assert_eq!(code(client.write_files(request).await), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_link_is_described_itself_when_asked() {
    let agent = Files::start().await;
    symlink("/nowhere", agent.folder().join("dangling")).unwrap();
    symlink(agent.folder(), agent.folder().join("link")).unwrap();
    assert_eq!(code(agent.stat(&agent.path("dangling")).await), Code::NotFound);
    assert_eq!(agent.stat(&agent.path("link")).await.unwrap().r#type(), FileType::Directory);
    let request = StatFileRequest { path: agent.path("dangling"), no_follow: true, ..Default::default() };
    let link = agent.client.clone().stat_file(request).await.unwrap().into_inner().file.unwrap();
    assert_eq!((link.r#type(), link.target.as_str()), (FileType::Symlink, "/nowhere"));
    assert_eq!(agent.stat("/dev/null").await.unwrap().r#type(), FileType::Other);
}

#[tokio::test]
async fn a_folder_is_made_once_with_its_parents() {
    let agent = Files::start().await;
    let make = async |name: &str, mode| {
        let request = MakeFolderRequest { path: agent.path(name), mode, ..Default::default() };
        agent.client.clone().make_folder(request).await.map(|response| response.into_inner().file.unwrap())
    };
    assert_eq!(make("a/b/c", 0).await.unwrap().mode, 0o755);
    assert_eq!(make("d", 0o777).await.unwrap().mode, 0o777);
    assert_eq!(make("d", 0o700).await.unwrap().mode, 0o777, "it is left as it was");
    agent.write(&agent.path("file"), b"", 0).await.unwrap();
    assert_eq!(code(make("file", 0).await), Code::AlreadyExists);
    assert_eq!(code(make("file/below", 0).await), Code::FailedPrecondition);
    assert_eq!(code(make("e", 0o1777).await), Code::InvalidArgument);
    assert_eq!(code(make(&format!("new/{}", "n".repeat(256)), 0).await), Code::InvalidArgument);
    assert_eq!(agent.names(""), ["a", "agent.sock", "d", "file"]);
}
