//! What changed in a folder.

use std::{
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cloud_sandbox_proto::{
    agent::v1::{CompareSnapshotRequest, TakeSnapshotRequest},
    v1::{FileChange, FileChangeType, FileChanges},
};
use nix::{
    fcntl::{OFlag, openat},
    sys::stat::{Mode, mkdirat},
    unistd::mkfifo,
};
use tonic::{Code, Status};

use crate::rig::{Agent, left_out};

const CREATED: &str = "created";
const MODIFIED: &str = "modified";
const DELETED: &str = "deleted";

/// An agent and a folder to change.
struct Scene {
    agent: Agent,
    folder: PathBuf,
}

impl Scene {
    async fn new() -> Self {
        Self::of(Agent::start().await)
    }

    fn of(agent: Agent) -> Self {
        let folder = agent.folder().join("workspace");
        fs::create_dir(&folder).unwrap();
        Self { agent, folder }
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    async fn take(&self) -> u64 {
        self.take_of(self.folder.to_str().unwrap()).await.unwrap()
    }

    async fn take_of(&self, path: &str) -> Result<u64, Status> {
        let request = TakeSnapshotRequest { path: path.to_owned() };
        self.agent.client.clone().take_snapshot(request).await.map(|answer| answer.into_inner().snapshot)
    }

    async fn try_compare(&self, snapshot: u64) -> Result<FileChanges, Status> {
        let answer = self.agent.client.clone().compare_snapshot(CompareSnapshotRequest { snapshot }).await?;
        Ok(answer.into_inner().changes.unwrap())
    }

    async fn compare(&self, snapshot: u64) -> FileChanges {
        self.try_compare(snapshot).await.unwrap()
    }

    /// The changes as words and paths within the folder.
    async fn changes(&self, snapshot: u64) -> Vec<(&'static str, String)> {
        let changes = self.compare(snapshot).await;
        assert!(!changes.truncated);
        changes.files.iter().map(|change| (word(change), self.name(change))).collect()
    }

    fn name(&self, change: &FileChange) -> String {
        Path::new(&change.path).strip_prefix(&self.folder).unwrap().to_str().unwrap().to_owned()
    }
}

fn word(change: &FileChange) -> &'static str {
    match change.r#type() {
        FileChangeType::Created => CREATED,
        FileChangeType::Modified => MODIFIED,
        FileChangeType::Deleted => DELETED,
        FileChangeType::Unspecified => panic!("{change:?}"),
    }
}

fn names(expected: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    expected.iter().map(|(word, name)| (*word, (*name).to_owned())).collect()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn what_is_new_changed_and_gone_is_told_by_path() {
    let scene = Scene::new().await;
    scene.write("same", "same");
    scene.write("a/deep/gone", "gone\n");
    scene.write("a-b", "before");
    symlink("old", scene.folder.join("link")).unwrap();
    let snapshot = scene.take().await;

    fs::remove_dir_all(scene.folder.join("a")).unwrap();
    scene.write("a-b", "afterwards");
    scene.write("new/file", "new\n");
    fs::remove_file(scene.folder.join("link")).unwrap();
    symlink("other", scene.folder.join("link")).unwrap();

    let changes = scene.compare(snapshot).await;
    let told: Vec<_> = changes.files.iter().map(|it| (word(it), scene.name(it), it.old_size, it.new_size)).collect();
    let expected = [
        (DELETED, "a", 0, 0),
        (MODIFIED, "a-b", 6, 10),
        (DELETED, "a/deep", 0, 0),
        (DELETED, "a/deep/gone", 5, 0),
        (MODIFIED, "link", 3, 5),
        (CREATED, "new", 0, 0),
        (CREATED, "new/file", 0, 4),
    ];
    assert_eq!(told, expected.map(|(word, name, old, new)| (word, name.to_owned(), old, new)));
    assert!(!changes.truncated);
}

#[tokio::test]
async fn texts_have_unified_diffs() {
    let scene = Scene::new().await;
    scene.write("lines", "1\n2\n3\n4\n5\n6\n7\r\n8");
    scene.write("gone", "gone\n");
    scene.write("binary", b"a\0b");
    scene.write("latin", b"caf\xe9");
    let snapshot = scene.take().await;
    scene.write("lines", "1\n2\n3\n4\n5\nsix\n7\r\n8");
    fs::remove_file(scene.folder.join("gone")).unwrap();
    scene.write("binary", b"a\0c");
    scene.write("latin", b"the\xe9");
    scene.write("new\nname", "new\n");
    scene.write("void", "");

    let changes = scene.compare(snapshot).await;
    let diffs: Vec<_> = changes.files.iter().map(|it| it.diff.as_str()).collect();
    let expected = [
        "",
        "--- a/gone\n+++ /dev/null\n@@ -1 +0,0 @@\n-gone\n",
        "",
        "--- a/lines\n+++ b/lines\n@@ -3,6 +3,6 @@\n 3\n 4\n 5\n-6\n+six\n 7\r\n 8\n\\ No newline at end of file\n",
        "--- /dev/null\n+++ b/new\u{fffd}name\n@@ -0,0 +1 @@\n+new\n",
        "",
    ];
    assert_eq!(diffs, expected);
    assert!(changes.files.iter().all(|it| !it.diff_truncated));
}

#[tokio::test]
async fn a_change_within_one_tick_of_the_clock_is_seen() {
    let scene = Scene::new().await;
    let mut unseen_by_times = 0;
    for round in 0..30 {
        scene.write("text", format!("{round:04}"));
        scene.write("binary", [0, round]);
        let before = fs::metadata(scene.folder.join("text")).unwrap();
        let snapshot = scene.take().await;
        fs::write(scene.folder.join("text"), format!("{:04}", round + 100)).unwrap();
        fs::write(scene.folder.join("binary"), [0, round + 100]).unwrap();
        let after = fs::metadata(scene.folder.join("text")).unwrap();
        unseen_by_times += u32::from((before.ctime(), before.ctime_nsec()) == (after.ctime(), after.ctime_nsec()));
        assert_eq!(scene.changes(snapshot).await, names(&[(MODIFIED, "binary"), (MODIFIED, "text")]));
    }
    println!("{unseen_by_times} of 30 changes left the times alone");
}

#[tokio::test]
async fn a_large_file_cannot_hide_a_change_behind_its_time() {
    let scene = Scene::new().await;
    let path = scene.folder.join("large");
    scene.write("large", vec![b'x'; 100_000]);
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    // Else the clock has not moved on.
    tokio::time::sleep(Duration::from_millis(30)).await;
    let snapshot = scene.take().await;
    scene.write("large", vec![b'y'; 100_000]);
    fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    let changes = scene.compare(snapshot).await;
    assert_eq!(changes.files.len(), 1);
    assert!(changes.files[0].diff.is_empty() && changes.files[0].diff_truncated);
}

#[tokio::test]
async fn what_only_looks_changed_is_not() {
    let scene = Scene::new().await;
    for name in ["touched", "rewritten", "replaced", "mode"] {
        scene.write(name, name);
    }
    scene.write("folder/file", "x");
    let snapshot = scene.take().await;
    let touched = fs::File::options().write(true).open(scene.folder.join("touched")).unwrap();
    touched.set_modified(std::time::UNIX_EPOCH).unwrap();
    scene.write("rewritten", "rewritten");
    scene.write("other", "replaced");
    fs::rename(scene.folder.join("other"), scene.folder.join("replaced")).unwrap();
    scene.write("folder/passing", "");
    fs::remove_file(scene.folder.join("folder/passing")).unwrap();
    set_mode(&scene.folder.join("mode"), 0o755);
    assert_eq!(scene.changes(snapshot).await, names(&[(MODIFIED, "mode")]));
}

#[tokio::test]
async fn a_file_that_becomes_a_folder_is_modified() {
    let scene = Scene::new().await;
    scene.write("it", "text");
    scene.write("folder/inside", "text");
    let snapshot = scene.take().await;
    fs::remove_file(scene.folder.join("it")).unwrap();
    scene.write("it/inside", "");
    fs::remove_dir_all(scene.folder.join("folder")).unwrap();
    scene.write("folder", "");
    let expected = [(MODIFIED, "folder"), (DELETED, "folder/inside"), (MODIFIED, "it"), (CREATED, "it/inside")];
    assert_eq!(scene.changes(snapshot).await, names(&expected));
}

#[tokio::test]
async fn links_are_never_followed() {
    let scene = Scene::new().await;
    let outside = scene.agent.folder().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, scene.folder.join("out")).unwrap();
    symlink(".", scene.folder.join("loop")).unwrap();
    let snapshot = scene.take().await;
    fs::write(outside.join("secret"), "secret").unwrap();
    assert_eq!(scene.changes(snapshot).await, []);

    let link = scene.agent.folder().join("link");
    symlink(&scene.folder, &link).unwrap();
    let error = scene.take_of(link.to_str().unwrap()).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{}", error.message());
}

#[tokio::test]
async fn what_cannot_be_looked_at_is_no_error_and_not_gone() {
    let scene = Scene::of(Agent::start_without_capabilities().await);
    scene.write("closed/inside", "x");
    scene.write("unreadable", "x");
    set_mode(&scene.folder.join("unreadable"), 0o000);
    mkfifo(&scene.folder.join("fifo"), Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(scene.folder.join("socket")).unwrap();
    let snapshot = scene.take().await;
    set_mode(&scene.folder.join("closed"), 0o000);
    let changes = scene.changes(snapshot).await;
    let snapshot = scene.take().await;
    set_mode(&scene.folder.join("closed"), 0o755);
    assert_eq!(changes, names(&[(MODIFIED, "closed")]));
    assert_eq!(scene.changes(snapshot).await, names(&[(MODIFIED, "closed")]));
}

#[tokio::test]
async fn names_that_are_not_utf_8_are_shown() {
    let scene = Scene::new().await;
    let snapshot = scene.take().await;
    fs::write(scene.folder.join(std::ffi::OsStr::from_bytes(b"caf\xe9")), "x").unwrap();
    assert_eq!(scene.changes(snapshot).await, names(&[(CREATED, "caf\u{fffd}")]));
}

#[tokio::test]
async fn a_folder_that_is_gone_has_lost_everything() {
    let scene = Scene::new().await;
    scene.write("a/b", "x");
    let snapshot = scene.take().await;
    fs::remove_dir_all(&scene.folder).unwrap();
    assert_eq!(scene.changes(snapshot).await, names(&[(DELETED, "a"), (DELETED, "a/b")]));
}

#[tokio::test]
async fn diffs_are_bounded_by_file_and_in_all() {
    let scene = Scene::new().await;
    let lines = |word: &str| (0..6000).map(|number| format!("{word}{number}\n")).collect::<String>();
    for number in 0..6 {
        scene.write(&format!("file{number}"), lines("old"));
    }
    scene.write("grown", "small");
    let snapshot = scene.take().await;
    for number in 0..6 {
        scene.write(&format!("file{number}"), lines("new"));
    }
    scene.write("grown", vec![b'x'; 65_537]);
    scene.write("just", vec![b'x'; 65_536]);
    let changes = scene.compare(snapshot).await;
    assert_eq!(changes.files.len(), 8);
    assert!(changes.files.iter().all(|it| it.diff_truncated && it.diff.len() <= 64 * 1024));
    let all: usize = changes.files.iter().map(|it| it.diff.len()).sum();
    assert!((255 * 1024..=256 * 1024).contains(&all), "{all} bytes of diffs");
    assert!(changes.files.iter().filter(|it| !it.diff.is_empty()).all(|it| it.diff.ends_with('\n')));
    assert!(!changes.truncated);
}

#[tokio::test]
async fn a_diff_that_is_hard_to_make_is_made_in_time() {
    let scene = Scene::new().await;
    // Few different lines in many orders: the worst for any algorithm.
    let noise = |mut seed: u32| {
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from(b'a' + (seed >> 24) as u8 % 8)
        };
        (0..32_000).flat_map(|_| [next(), '\n']).collect::<String>()
    };
    for number in 0..20 {
        scene.write(&format!("file{number}"), noise(number));
        scene.write(&format!("line{number}"), "\n".repeat(65_000));
    }
    let snapshot = scene.take().await;
    for number in 0..20 {
        scene.write(&format!("file{number}"), noise(number + 1000));
        scene.write(&format!("line{number}"), "\n".repeat(33_000) + "x\n" + &"\n".repeat(32_000));
    }
    let began = Instant::now();
    let changes = scene.compare(snapshot).await;
    let took = began.elapsed();
    assert_eq!(changes.files.len(), 40);
    assert!(took < Duration::from_secs(30), "{took:?}");
}

#[tokio::test]
async fn a_thousand_changes_are_told() {
    let scene = Scene::new().await;
    let snapshot = scene.take().await;
    for number in 0..1001 {
        scene.write(&format!("{number:04}"), "");
    }
    let changes = scene.compare(snapshot).await;
    assert_eq!((changes.files.len(), changes.truncated), (1000, true));
    assert_eq!(scene.name(&changes.files[999]), "0999");

    let snapshot = scene.take().await;
    fs::remove_file(scene.folder.join("1000")).unwrap();
    fs::remove_dir_all(&scene.folder).unwrap();
    let changes = scene.compare(snapshot).await;
    assert_eq!((changes.files.len(), changes.truncated), (1000, true));
}

#[tokio::test]
async fn of_too_many_files_the_first_are_compared_and_nothing_is_made_up() {
    let scene = Scene::new().await;
    for folder in 0..7 {
        fs::create_dir(scene.folder.join(folder.to_string())).unwrap();
    }
    for number in 0..25_000 {
        fs::write(scene.folder.join(format!("{}/{number:05}", number % 7)), "").unwrap();
    }
    let snapshot = scene.take().await;
    let changes = scene.compare(snapshot).await;
    assert_eq!((changes.files.len(), changes.truncated), (0, true));

    let snapshot = scene.take().await;
    scene.write("0/new", "");
    scene.write("6/beyond", "");
    for number in 100..400 {
        fs::remove_file(scene.folder.join(format!("{}/{number:05}", number % 7))).unwrap();
    }
    let changes = scene.compare(snapshot).await;
    assert!(changes.truncated);
    let of = |wanted: &str| changes.files.iter().filter(|change| word(change) == wanted).count();
    let near = (100..400).filter(|number| number % 7 < 5).count();
    // The sixth folder was seen in part: what was deleted there lies at its beginning.
    let sixth = (100..400).filter(|number| number % 7 == 5).count();
    assert_eq!((of(CREATED), of(MODIFIED), of(DELETED)), (1, 0, near + sixth));
}

#[tokio::test]
async fn a_hostile_tree_costs_little() {
    let scene = Scene::new().await;
    let before = scene.agent.memory_kib();
    let long = "n".repeat(200);
    let mut deep = scene.folder.clone();
    for _ in 0..15 {
        deep.push(&long);
    }
    fs::create_dir_all(&deep).unwrap();
    // Deeper than a path may be long.
    let mut folder = fs::File::open(&deep).unwrap();
    for _ in 0..150 {
        mkdirat(&folder, long.as_str(), Mode::S_IRWXU).unwrap();
        let inside = openat(&folder, long.as_str(), OFlag::O_RDONLY, Mode::empty()).unwrap();
        folder = inside.into();
    }
    scene.write("z", "before");
    let snapshot = scene.take().await;
    scene.write("z", "after");
    let changes = scene.compare(snapshot).await;
    assert!(changes.truncated);
    assert_eq!(changes.files.iter().map(|it| scene.name(it)).collect::<Vec<_>>(), ["z"]);
    let grown = scene.agent.memory_kib().saturating_sub(before);
    assert!(grown < 4096, "the agent grew by {grown} KiB");
}

#[tokio::test]
async fn files_that_change_all_the_time_are_no_fault() {
    let scene = Scene::new().await;
    let script = "cd \"$0\"; while :; do for i in 1 2 3 4 5; do
        echo $i > f$i; mkdir -p d$i/e; ln -sf /etc l$i; mv f$i d$i/e/f; rm -rf d$i; cat /proc/self/stat >> g; done; done";
    let folder = scene.folder.to_str().unwrap();
    let running = scene.agent.open(crate::rig::program(&["sh", "-c", script, folder])).await.unwrap();
    for _ in 0..100 {
        let snapshot = scene.take().await;
        scene.compare(snapshot).await;
    }
    assert!(running.signal(0).await.unwrap());
}

#[tokio::test]
async fn a_snapshot_is_compared_once_and_the_oldest_of_many_is_forgotten() {
    let scene = Scene::new().await;
    let first = scene.take().await;
    let second = scene.take().await;
    for _ in 0..63 {
        scene.take().await;
    }
    assert_eq!(scene.try_compare(first).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(scene.changes(second).await, []);
    assert_eq!(scene.try_compare(second).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_folder_that_is_none_is_refused() {
    let scene = Scene::new().await;
    scene.write("file", "");
    let file = scene.folder.join("file");
    let cases = [
        ("relative", Code::InvalidArgument),
        ("/a/../b", Code::InvalidArgument),
        ("/no/such/folder", Code::NotFound),
        (file.to_str().unwrap(), Code::FailedPrecondition),
    ];
    for (path, code) in cases {
        assert_eq!(scene.take_of(path).await.unwrap_err().code(), code, "{path}");
    }
}

#[tokio::test]
async fn many_snapshots_of_a_small_tree_take_little_memory() {
    if left_out() {
        return;
    }
    let scene = Scene::new().await;
    for number in 0..100 {
        scene.write(&format!("{}/{number}", number % 10), format!("{number}\n").repeat(100));
    }
    for number in 0..64 {
        scene.write(&format!("more/{number}"), vec![b'x'; 60_000]);
    }
    let before = scene.agent.memory_kib();
    let mut last = 0;
    for _ in 0..20 {
        last = scene.take().await;
    }
    let held = scene.agent.memory_kib().saturating_sub(before);
    assert!((16 * 1024..56 * 1024).contains(&held), "the agent holds {held} KiB");
    for number in 0..=last {
        let _ = scene.try_compare(number).await;
    }
    let kept = scene.agent.memory_kib().saturating_sub(before);
    assert!(kept < 2048, "the agent kept {kept} KiB");
}
