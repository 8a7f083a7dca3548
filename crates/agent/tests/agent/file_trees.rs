//! Folders with all that is in them: list, copy, move, delete, change modes.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    time::{Duration, Instant},
};

use cloud_sandbox_proto::v1::{
    CopyFileRequest, DeleteFileRequest, FileInfo, FileType, ListFilesRequest, ListFilesResponse, MoveFileRequest,
};
use nix::{
    fcntl::{OFlag, open, openat},
    sys::stat::{Mode, mkdirat},
};
use tonic::{Code, Response, Status};

use crate::{
    files::{Files, code, fifo},
    rig::{Agent, PATIENCE, eventually, left_out},
};

impl Files {
    async fn list(&self, request: ListFilesRequest) -> Result<ListFilesResponse, Status> {
        self.client.clone().list_files(request).await.map(Response::into_inner)
    }

    /// All paths below `folder`, from there, in pages of `page_size`.
    async fn listed(&self, folder: &str, depth: u32, glob: &str, page_size: u32) -> Vec<String> {
        let root = format!("{}/", self.path(folder));
        let (mut paths, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListFilesRequest {
                path: self.path(folder),
                depth,
                glob: glob.to_owned(),
                page_size,
                page_token,
                ..Default::default()
            };
            let page = self.list(request).await.unwrap();
            paths.extend(page.files.iter().map(|file| file.path.strip_prefix(&root).unwrap().to_owned()));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return paths;
            }
            assert_eq!(page.files.len(), page_size as usize);
        }
    }

    async fn copy(
        &self,
        source: &str,
        destination: &str,
        overwrite: bool,
        recursive: bool,
    ) -> Result<FileInfo, Status> {
        let request = CopyFileRequest {
            source: self.path(source),
            destination: self.path(destination),
            overwrite,
            recursive,
            ..Default::default()
        };
        self.client.clone().copy_file(request).await.map(|response| response.into_inner().file.unwrap())
    }

    async fn r#move(&self, source: &str, destination: &str, overwrite: bool) -> Result<FileInfo, Status> {
        let (source, destination) = (self.path(source), self.path(destination));
        let request = MoveFileRequest { source, destination, overwrite, ..Default::default() };
        self.client.clone().move_file(request).await.map(|response| response.into_inner().file.unwrap())
    }

    fn put(&self, name: &str, content: &str) {
        let path = self.folder().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn content(&self, name: &str) -> String {
        fs::read_to_string(self.folder().join(name)).unwrap()
    }
}

/// A tree of one of each.
fn tree(agent: &Files) {
    agent.put("tree/a/one", "1");
    agent.put("tree/a.txt", "2");
    agent.put("tree/z/deep/two.rs", "3");
    symlink("a/one", agent.folder().join("tree/link")).unwrap();
    symlink("/", agent.folder().join("tree/root")).unwrap();
    fs::set_permissions(agent.folder().join("tree/a/one"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(agent.folder().join("tree/a"), fs::Permissions::from_mode(0o711)).unwrap();
}

/// Makes a folder in a folder in a folder …
fn deep(path: &Path, levels: usize) {
    fs::create_dir(path).unwrap();
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut folder = open(path, flags, Mode::empty()).unwrap();
    for _ in 0..levels {
        mkdirat(&folder, "d", Mode::S_IRWXU).unwrap();
        folder = openat(&folder, "d", flags, Mode::empty()).unwrap();
    }
}

#[tokio::test]
async fn a_tree_is_listed_by_path_whatever_the_page() {
    let agent = Files::start().await;
    tree(&agent);
    let all = ["a", "a.txt", "a/one", "link", "root", "z", "z/deep", "z/deep/two.rs"];
    for page_size in [1, 2, 3, 7, 1000] {
        assert_eq!(agent.listed("tree", 64, "", page_size).await, all, "{page_size}");
    }
    assert_eq!(agent.listed("tree", 0, "", 1000).await, ["a", "a.txt", "link", "root", "z"]);
    assert_eq!(agent.listed("tree", 2, "", 2).await, &all[..7]);
    assert_eq!(agent.listed("tree", 64, "*.{rs,txt}", 1).await, ["a.txt", "z/deep/two.rs"]);
    assert_eq!(agent.listed("tree", 64, "z/**", 1000).await, ["z/deep", "z/deep/two.rs"]);
    assert_eq!(agent.listed("tree", 64, "none", 1000).await, Vec::<String>::new());
}

#[tokio::test]
async fn pages_go_on_while_files_come_and_go() {
    let agent = Files::start().await;
    for name in ["b", "d", "f", "h"] {
        agent.put(&format!("d/{name}"), "");
    }
    let request = ListFilesRequest { path: agent.path("d"), page_size: 2, ..Default::default() };
    let first = agent.list(request.clone()).await.unwrap();
    fs::remove_file(agent.path("d/d")).unwrap();
    agent.put("d/a", "");
    agent.put("d/e", "");
    let rest =
        agent.list(ListFilesRequest { page_token: first.next_page_token, page_size: 0, ..request }).await.unwrap();
    let names: Vec<_> = rest.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!((names, rest.next_page_token.as_str()), (vec!["e", "f", "h"], ""));
}

#[tokio::test]
async fn ten_thousand_files_are_listed_in_ten_pages() {
    let agent = Files::start().await;
    fs::create_dir(agent.folder().join("many")).unwrap();
    for number in 0..10_000 {
        fs::write(agent.folder().join(format!("many/{number:05}")), "").unwrap();
    }
    let started = Instant::now();
    let listed = agent.listed("many", 1, "", 1000).await;
    assert_eq!(listed.len(), 10_000);
    assert!(listed.is_sorted());
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    agent.delete(&agent.path("many"), true).await.unwrap();
}

#[tokio::test]
async fn a_bad_list_is_refused() {
    let agent = Files::start().await;
    agent.put("file", "");
    let of = |name: &str| ListFilesRequest { path: agent.path(name), ..Default::default() };
    assert_eq!(code(agent.list(of("none")).await), Code::NotFound);
    assert_eq!(code(agent.list(of("file")).await), Code::FailedPrecondition);
    for request in [
        ListFilesRequest { depth: 65, ..of("") },
        ListFilesRequest { page_size: 1001, ..of("") },
        ListFilesRequest { page_token: "!".into(), ..of("") },
        ListFilesRequest { glob: "[".into(), ..of("") },
    ] {
        assert_eq!(code(agent.list(request).await), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_closed_folder_is_listed_itself() {
    let agent = Files::of(Agent::start_without_capabilities().await).await;
    agent.put("d/closed/file", "");
    agent.put("d/open/file", "");
    fs::set_permissions(agent.folder().join("d/closed"), fs::Permissions::from_mode(0o0)).unwrap();
    assert_eq!(agent.listed("d", 64, "", 1000).await, ["closed", "open", "open/file"]);
    assert_eq!(code(agent.copy("d", "e", false, true).await), Code::FailedPrecondition);
    assert_eq!(code(agent.delete(&agent.path("d"), true).await), Code::FailedPrecondition);
    agent.chmod(&agent.path("d"), 0o755, true).await.unwrap();
    agent.delete(&agent.path("d"), true).await.unwrap();
    assert_eq!(agent.names(""), ["agent.sock"]);
}

#[tokio::test]
async fn a_tree_is_copied_whole() {
    let agent = Files::start().await;
    tree(&agent);
    let copy = agent.copy("tree", "new/copy", false, true).await.unwrap();
    assert_eq!((copy.r#type(), copy.path), (FileType::Directory, agent.path("new/copy")));
    assert_eq!(agent.listed("new/copy", 64, "", 1000).await, agent.listed("tree", 64, "", 1000).await);
    assert_eq!((agent.content("new/copy/a/one"), agent.mode_of("new/copy/a/one")), ("1".into(), 0o751));
    assert_eq!(agent.mode_of("new/copy/a"), 0o711);
    assert_eq!(fs::read_link(agent.folder().join("new/copy/root")).unwrap().to_str(), Some("/"));
    assert_eq!(agent.names("new"), ["copy"]);
}

#[tokio::test]
async fn a_copy_replaces_a_file_only_when_told_and_a_folder_never() {
    let agent = Files::start().await;
    agent.put("a", "a");
    agent.put("b", "b");
    agent.put("d/f", "f");
    symlink("a", agent.folder().join("link")).unwrap();
    assert_eq!(code(agent.copy("a", "b", false, false).await), Code::AlreadyExists);
    agent.copy("a", "b", true, false).await.unwrap();
    assert_eq!(agent.content("b"), "a");
    agent.copy("link", "copied-link", false, false).await.unwrap();
    assert!(agent.folder().join("copied-link").is_symlink());
    for (source, destination, overwrite, recursive, wanted) in [
        ("a", "d", true, false, Code::FailedPrecondition),
        ("a", "d", false, false, Code::AlreadyExists),
        ("d", "e", false, false, Code::FailedPrecondition),
        ("d", "a", true, true, Code::FailedPrecondition),
        ("d", "a", false, true, Code::AlreadyExists),
        ("d", "d", false, true, Code::AlreadyExists),
        ("none", "e", false, true, Code::NotFound),
        ("a", "b/c", false, true, Code::FailedPrecondition),
        ("agent.sock", "e", false, true, Code::FailedPrecondition),
    ] {
        let result = agent.copy(source, destination, overwrite, recursive).await;
        assert_eq!(code(result), wanted, "{source} to {destination}");
    }
    assert_eq!(agent.names(""), ["a", "agent.sock", "b", "copied-link", "d", "link"]);
}

#[tokio::test]
async fn a_folder_goes_into_itself_by_no_way() {
    let agent = Files::start().await;
    agent.put("d/e/f", "");
    symlink("d/e", agent.folder().join("way")).unwrap();
    for destination in ["d/new", "d/e/x/y", "way/new"] {
        assert_eq!(code(agent.copy("d", destination, false, true).await), Code::FailedPrecondition, "{destination}");
        assert_eq!(code(agent.r#move("d", destination, false).await), Code::FailedPrecondition, "{destination}");
    }
    assert_eq!(agent.listed("d", 64, "", 100).await, ["e", "e/f"]);
}

#[tokio::test]
async fn holes_stay_holes_and_large_files_are_copied_whole() {
    if left_out() {
        return;
    }
    let agent = Files::start().await;
    let file = fs::File::create(agent.folder().join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 512 << 20).unwrap();
    file.set_len(1 << 30).unwrap();
    agent.copy("sparse", "copy", false, false).await.unwrap();
    let copy = fs::metadata(agent.folder().join("copy")).unwrap();
    assert_eq!(copy.len(), 1 << 30);
    assert!(copy.blocks() * 512 < 16 << 20, "{} blocks", copy.blocks());
    let mut middle = [0; 6];
    let copy = fs::File::open(agent.folder().join("copy")).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&copy, &mut middle, 512 << 20).unwrap();
    assert_eq!(&middle, b"middle");
}

#[tokio::test]
async fn a_move_keeps_all_and_replaces_only_when_told() {
    let agent = Files::start().await;
    tree(&agent);
    agent.put("a", "a");
    agent.put("b", "b");
    let before = agent.listed("tree", 64, "", 100).await;
    agent.r#move("tree", "new/place", false).await.unwrap();
    assert_eq!(agent.listed("new/place", 64, "", 100).await, before);
    assert_eq!(code(agent.r#move("a", "b", false).await), Code::AlreadyExists);
    agent.r#move("a", "b", true).await.unwrap();
    assert_eq!(agent.content("b"), "a");
    for (source, destination, overwrite, wanted) in [
        ("b", "new", true, Code::FailedPrecondition),
        ("new", "b", true, Code::FailedPrecondition),
        ("none", "c", true, Code::NotFound),
        ("b", "b/c", false, Code::FailedPrecondition),
    ] {
        assert_eq!(code(agent.r#move(source, destination, overwrite).await), wanted, "{source} to {destination}");
    }
    assert_eq!(code(agent.r#move("none", "x/y/z", false).await), Code::NotFound);
    assert_eq!(agent.names(""), ["agent.sock", "b", "new"]);
}

#[tokio::test]
async fn a_file_moved_over_another_name_of_it_loses_the_first() {
    let agent = Files::start().await;
    agent.put("a", "a");
    fs::hard_link(agent.folder().join("a"), agent.folder().join("b")).unwrap();
    agent.r#move("a", "b", true).await.unwrap();
    agent.r#move("b", "b", true).await.unwrap();
    assert_eq!((agent.names(""), agent.content("b")), (vec!["agent.sock".into(), "b".into()], "a".into()));
}

#[tokio::test]
async fn a_move_to_another_file_system_is_a_copy_and_a_delete() {
    if left_out() {
        return;
    }
    let Some(agent) = Agent::start_with_small_disk().await else {
        eprintln!("SKIPPED: this host does not let us mount");
        return;
    };
    let agent = Files::of(agent).await;
    tree(&agent);
    fifo(&agent, "tree/fifo");
    let before = agent.listed("tree", 64, "", 100).await;
    let time = agent.stat(&agent.path("tree/a/one")).await.unwrap().modify_time;
    agent.r#move("tree", "full/new/tree", false).await.unwrap();
    assert!(!agent.folder().join("tree").exists());
    assert_eq!(agent.listed("full/new/tree", 64, "", 100).await, before);
    let moved = agent.stat(&agent.path("full/new/tree/a/one")).await.unwrap();
    assert_eq!((moved.modify_time, moved.mode), (time, 0o751));

    // What does not fit stays where it is.
    agent.put("big/file", &"x".repeat(2 << 20));
    assert_eq!(code(agent.r#move("big", "full/big", false).await), Code::ResourceExhausted);
    assert_eq!(agent.listed("full", 1, "", 100).await, ["new"]);
    assert_eq!(agent.content("big/file").len(), 2 << 20);
    agent.r#move("full/new/tree/a.txt", "back", false).await.unwrap();
    assert_eq!(agent.content("back"), "2");
}

#[tokio::test]
async fn twenty_thousand_levels_are_deleted() {
    if left_out() {
        return;
    }
    let agent = Files::start().await;
    // In memory, where they are as fast as the agent; a disk needs a minute, whoever deletes.
    let memory = Path::new("/dev/shm");
    let folder = tempfile::tempdir_in(if memory.is_dir() { memory } else { agent.folder() }).unwrap();
    let deepest = folder.path().join("deep");
    deep(&deepest, 20_000);
    agent.delete(deepest.to_str().unwrap(), true).await.unwrap();
    assert!(!deepest.exists());
}

#[tokio::test]
async fn deep_trees_are_listed_and_copied_as_far_as_asked() {
    let agent = Files::start().await;
    deep(&agent.folder().join("deep"), 500);
    assert_eq!(agent.listed("deep", 64, "", 1000).await.len(), 64);
    agent.copy("deep", "copy", false, true).await.unwrap();
    agent.chmod(&agent.path("copy"), 0o755, true).await.unwrap();
    agent.delete(&agent.path("copy"), true).await.unwrap();
    agent.delete(&agent.path("deep"), true).await.unwrap();
}

/// How many files there are below the folders of a folder from which others may be removed meanwhile.
fn below(folder: &Path) -> usize {
    let names = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    names(folder).map(|folder| names(&folder.path()).count()).sum()
}

#[tokio::test]
async fn a_dropped_delete_stops() {
    let agent = Files::start().await;
    for folder in 0..300 {
        fs::create_dir_all(agent.folder().join(format!("d/{folder:03}"))).unwrap();
        for file in 0..100 {
            fs::write(agent.folder().join(format!("d/{folder:03}/{file}")), "").unwrap();
        }
    }
    let mut client = agent.client.clone();
    let request = DeleteFileRequest { path: agent.path("d"), recursive: true, ..Default::default() };
    let call = tokio::spawn(async move { client.delete_file(request).await });
    eventually("the delete begins", || !agent.folder().join("d/000").exists()).await;
    call.abort();
    let begun = Instant::now();
    let mut left = usize::MAX;
    loop {
        let last = std::mem::replace(&mut left, below(&agent.folder().join("d")));
        if last == left {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "it goes on, with {left} left");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(left > 0, "it was stopped before the end");
}

#[tokio::test]
async fn modes_change_below_and_never_through_links() {
    let agent = Files::start().await;
    tree(&agent);
    agent.put("outside", "");
    symlink(agent.folder().join("outside"), agent.folder().join("tree/out")).unwrap();
    agent.chmod(&agent.path("outside"), 0o640, false).await.unwrap();
    assert_eq!(agent.chmod(&agent.path("tree"), 0o604, true).await.unwrap().mode, 0o704);
    assert_eq!((agent.mode_of("tree/a"), agent.mode_of("tree/a/one"), agent.mode_of("outside")), (0o704, 0o604, 0o640));
    agent.chmod(&agent.path("tree/out"), 0o600, false).await.unwrap();
    assert_eq!(agent.mode_of("outside"), 0o600);
    agent.chmod(&agent.path("outside"), 0, true).await.unwrap();
    assert_eq!(agent.mode_of("outside"), 0);
    assert_eq!(code(agent.chmod(&agent.path("outside"), 0o4755, false).await), Code::InvalidArgument);
    assert_eq!(code(agent.chmod(&agent.path("none"), 0o755, false).await), Code::NotFound);
}
