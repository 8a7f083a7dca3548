//! Files: read, list, write, delete.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
};

use cloud_sandbox_proto::{
    agent::v1::{DeleteFileRequest, ReadFileRequest, ReadFileResponse, WriteFileRequest},
    v1::{FileInfo, FileType},
};
use tonic::{Code, Status};

use crate::rig::Agent;

impl Agent {
    async fn read(&self, path: &str, offset: u64, limit: u32) -> Result<ReadFileResponse, Status> {
        let request = ReadFileRequest { path: path.to_owned(), offset, limit, page_size: 1000, ..Default::default() };
        self.client.clone().read_file(request).await.map(tonic::Response::into_inner)
    }

    async fn write(&self, path: &str, data: &[u8], mode: u32) -> Result<FileInfo, Status> {
        let request = WriteFileRequest { path: path.to_owned(), data: data.to_vec().into(), mode };
        self.client.clone().write_file(request).await.map(|response| response.into_inner().file.unwrap())
    }

    async fn delete(&self, path: &str, recursive: bool) -> Result<(), Status> {
        let request = DeleteFileRequest { path: path.to_owned(), recursive };
        self.client.clone().delete_file(request).await.map(drop)
    }

    fn mode_of(&self, name: &str) -> u32 {
        fs::metadata(self.folder().join(name)).unwrap().permissions().mode() & 0o7777
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.folder().join(folder)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

fn fifo(agent: &Agent, name: &str) -> String {
    let path = agent.path(name);
    nix::unistd::mkfifo(path.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    path
}

#[tokio::test]
async fn what_was_written_is_read_back() {
    let agent = Agent::start().await;
    let path = agent.path("a.txt");
    let written = agent.write(&path, b"hello", 0).await.unwrap();
    assert_eq!((written.path.as_str(), written.name.as_str(), written.size), (path.as_str(), "a.txt", 5));
    assert_eq!((written.r#type(), written.mode), (FileType::File, 0o644));
    let read = agent.read(&path, 0, 100).await.unwrap();
    assert_eq!((read.data.as_ref(), read.file), (&b"hello"[..], Some(written)));
    assert_eq!(agent.names(""), ["a.txt", "agent.sock"]);
}

#[tokio::test]
async fn a_piece_is_read_from_the_middle() {
    let agent = Agent::start().await;
    let path = agent.path("a");
    agent.write(&path, b"0123456789", 0).await.unwrap();
    assert_eq!(agent.read(&path, 3, 4).await.unwrap().data.as_ref(), b"3456");
    assert_eq!(agent.read(&path, 8, 4).await.unwrap().data.as_ref(), b"89");
    assert_eq!(agent.read(&path, 100, 4).await.unwrap().data.len(), 0);
    assert_eq!(agent.read(&path, 0, 0).await.unwrap().file.unwrap().size, 10);
}

#[tokio::test]
async fn eight_mebibytes_go_there_and_back() {
    let agent = Agent::start().await;
    let content: Vec<u8> = (0..2 * 1024 * 1024_u32).flat_map(u32::to_le_bytes).collect();
    agent.write(&agent.path("big"), &content, 0).await.unwrap();
    let read = agent.read(&agent.path("big"), 0, 8 * 1024 * 1024).await.unwrap();
    assert!(read.data == content);
}

#[tokio::test]
async fn a_file_that_hides_its_size_is_read() {
    let agent = Agent::start().await;
    let read = agent.read("/proc/version", 0, 4096).await.unwrap();
    assert!(read.data.starts_with(b"Linux"));
}

#[tokio::test]
async fn missing_parents_are_created() {
    let agent = Agent::start().await;
    agent.write(&agent.path("x/y/z.txt"), b"", 0o600).await.unwrap();
    assert_eq!((agent.mode_of("x"), agent.mode_of("x/y"), agent.mode_of("x/y/z.txt")), (0o755, 0o755, 0o600));
}

#[tokio::test]
async fn a_replaced_file_keeps_its_mode_unless_told() {
    let agent = Agent::start().await;
    let path = agent.path("tool");
    agent.write(&path, b"1", 0o750).await.unwrap();
    agent.write(&path, b"2", 0).await.unwrap();
    assert_eq!(agent.mode_of("tool"), 0o750);
    agent.write(&path, b"3", 0o640).await.unwrap();
    assert_eq!(agent.mode_of("tool"), 0o640);
}

#[tokio::test]
async fn a_link_is_written_through() {
    let agent = Agent::start().await;
    fs::create_dir(agent.folder().join("real")).unwrap();
    symlink("real/file", agent.folder().join("link")).unwrap();
    symlink("link", agent.folder().join("link-to-link")).unwrap();
    // At first it points at nothing, then at a file.
    for content in ["new", "newer"] {
        agent.write(&agent.path("link-to-link"), content.as_bytes(), 0).await.unwrap();
        assert_eq!(fs::read_to_string(agent.folder().join("real/file")).unwrap(), content);
    }
    assert!(agent.folder().join("link").is_symlink());
    assert_eq!(agent.read(&agent.path("link"), 0, 10).await.unwrap().data.as_ref(), b"newer");
}

#[tokio::test]
async fn a_failed_write_leaves_nothing_behind() {
    let agent = Agent::start().await;
    let too_long = agent.path(&format!("new/folder/{}", "n".repeat(256)));
    assert_eq!(code(agent.write(&too_long, b"x", 0).await), Code::InvalidArgument);
    assert_eq!(agent.names(""), ["agent.sock"]);
}

#[tokio::test]
async fn a_full_disk_leaves_the_old_file_and_nothing_else() {
    let Some(agent) = Agent::start_with_small_disk().await else {
        eprintln!("skipped: this host does not let us mount");
        return;
    };
    agent.write(&agent.path("full/kept"), b"old", 0).await.unwrap();
    for name in ["full/kept", "full/new/file"] {
        let error = agent.write(&agent.path(name), &vec![1; 2 * 1024 * 1024], 0).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted);
        assert!(error.message().ends_with("no space left"), "{}", error.message());
    }
    assert_eq!(agent.read(&agent.path("full/kept"), 0, 10).await.unwrap().data.as_ref(), b"old");
    let listed = agent.read(&agent.path("full"), 0, 0).await.unwrap().entries;
    assert_eq!(listed.len(), 1, "{listed:?}");
    // Room is room again.
    agent.write(&agent.path("full/new/file"), &vec![1; 512 * 1024], 0).await.unwrap();
}

#[tokio::test]
async fn what_is_neither_file_nor_folder_is_refused_without_waiting() {
    let agent = Agent::start().await;
    for path in [fifo(&agent, "fifo").as_str(), &agent.path("agent.sock"), "/dev/null"] {
        assert_eq!(code(agent.read(path, 0, 10).await), Code::FailedPrecondition, "{path}");
        assert_eq!(code(agent.write(path, b"x", 0).await), Code::FailedPrecondition, "{path}");
    }
}

#[tokio::test]
async fn a_folder_is_listed_in_byte_order_page_by_page() {
    let agent = Agent::start().await;
    let folder = agent.folder().join("d");
    fs::create_dir(&folder).unwrap();
    let names: [&[u8]; 5] = [b"B", b"a", b"b\xff", b"c", "\u{e9}".as_bytes()];
    for name in names.iter().rev() {
        fs::write(folder.join(OsStr::from_bytes(name)), "").unwrap();
    }
    let (mut seen, mut pages, mut after_name) = (Vec::new(), 0, Vec::new());
    loop {
        let request = ReadFileRequest {
            path: agent.path("d"),
            page_size: 2,
            after_name: after_name.into(),
            ..Default::default()
        };
        let page = agent.client.clone().read_file(request).await.unwrap().into_inner();
        assert_eq!(page.file.unwrap().r#type(), FileType::Directory);
        seen.extend(page.entries.into_iter().map(|entry| entry.name));
        pages += 1;
        after_name = page.next_after_name.to_vec();
        if after_name.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["B", "a", "b\u{fffd}", "c", "\u{e9}"]);
    assert_eq!(pages, 3);
}

#[tokio::test]
async fn a_listed_link_is_shown_as_itself() {
    let agent = Agent::start().await;
    fs::create_dir(agent.folder().join("d")).unwrap();
    symlink("/nowhere", agent.folder().join("d/link")).unwrap();
    let entries = agent.read(&agent.path("d"), 0, 0).await.unwrap().entries;
    assert_eq!((entries[0].r#type(), entries[0].target.as_str()), (FileType::Symlink, "/nowhere"));
    assert_eq!(entries[0].path, agent.path("d/link"));
}

#[tokio::test]
async fn a_deleted_link_leaves_what_it_points_to() {
    let agent = Agent::start().await;
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
    let agent = Agent::start().await;
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
    let agent = Agent::start().await;
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
    for path in ["", "relative", "/a/../b", "/a\0b"] {
        assert_eq!(code(agent.read(path, 0, 1).await), Code::InvalidArgument);
        assert_eq!(code(agent.write(path, b"", 0).await), Code::InvalidArgument);
        assert_eq!(code(agent.delete(path, true).await), Code::InvalidArgument);
    }
    assert_eq!(code(agent.delete("/proc", true).await), Code::FailedPrecondition);
    assert_eq!(code(agent.delete("/", true).await), Code::FailedPrecondition);
}
