//! Folders saved and restored whole, on a tmpfs as in a sandbox.

use std::{
    fs::{self, File, FileTimes, OpenOptions, Permissions},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use cloud_sandbox_proto::checkpoint::v1::{EntryKind, TreeEntry};
use nix::{sys::stat::Mode, unistd::mkfifo};
use tempfile::TempDir;
use tonic::Code;

use crate::{
    rig::{Agent, eventually, left_out},
    saved::{Saved, fingerprint, noise, restore, save, save_over, set_xattr, try_save},
};

const MIB: usize = 1024 * 1024;

/// An agent and a root on a tmpfs.
struct Scene {
    agent: Agent,
    _folder: TempDir,
    root: PathBuf,
}

impl Scene {
    async fn new() -> Self {
        Self::of(Agent::start().await)
    }

    fn of(agent: Agent) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        Self { agent, _folder: folder, root }
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    async fn save(&self) -> Saved {
        save(&self.agent, &[&self.root]).await
    }

    /// Saves a change of one file of 8 MiB; how many bytes were sent for it.
    async fn sent_after(&self, change: impl FnOnce(&Path)) -> usize {
        self.write("file", noise(1, 8 * MIB));
        let mut first = self.save().await;
        assert!(first.sent() >= 8 * MIB);
        change(&self.root.join("file"));
        let second = save_over(&self.agent, &[&self.root], &first.entries).await;
        let sent = second.sent();
        first.chunks.extend(second.chunks);
        let entry = second.entries.iter().find(|entry| entry.path.ends_with(b"/file")).unwrap();
        if entry.kind() == EntryKind::File {
            assert!(first.content(entry) == fs::read(self.root.join("file")).unwrap());
        }
        sent
    }
}

/// Fills a folder with what is hard to keep.
fn fill_with_nasty_things(root: &Path) {
    let at = |seconds: i64| match seconds {
        0.. => SystemTime::UNIX_EPOCH + Duration::new(seconds as u64, 123_456_789),
        _ => SystemTime::UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()),
    };
    let set_time = |path: &Path, seconds| {
        File::open(path).unwrap().set_times(FileTimes::new().set_modified(at(seconds))).unwrap();
    };
    let set_mode = |name: &str, mode| fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
    for folder in ["a/b/c", "a-b", "empty", "closed/inner", "shared", "many"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    for name in ["a.txt", "a/b/c/deep", "a/b.txt", "a-b/x", "closed/inner/secret", "secret", "program", "old", "new"] {
        fs::write(root.join(name), format!("content of {name}")).unwrap();
    }
    fs::write(root.join("nothing"), "").unwrap();
    fs::write(root.join("big"), noise(2, 3 * MIB)).unwrap();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"not \xff utf-8\n")), "x").unwrap();
    for number in 0..10_000 {
        fs::write(root.join(format!("many/{number}")), number.to_string()).unwrap();
    }
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(64 * MIB as u64).unwrap();
    sparse.write_all_at(b"in the middle", 32 * MIB as u64 + 5).unwrap();
    File::create(root.join("hole")).unwrap().set_len(MIB as u64).unwrap();
    symlink("a.txt", root.join("link")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    symlink("/etc", root.join("outside")).unwrap();
    fs::hard_link(root.join("closed/inner/secret"), root.join("second name")).unwrap();
    fs::hard_link(root.join("a/b/c/deep"), root.join("zz")).unwrap();
    fs::hard_link(root.join("a/b/c/deep"), root.join("zzz")).unwrap();
    mkfifo(&root.join("fifo"), Mode::from_bits_truncate(0o640)).unwrap();
    let xattrs = set_xattr(&root.join("a.txt"), "user.note", b"kept\0whole") && set_xattr(root, "user.root", b"");
    assert!(xattrs, "the tests need a tmpfs with extended attributes");
    set_mode("program", 0o4755);
    set_mode("shared", 0o2775);
    set_mode("a-b", 0o1777);
    set_mode("a", 0o500);
    set_time(&root.join("old"), -86_400 * 365);
    set_time(&root.join("new"), 20_000_000_000);
    set_time(&root.join("empty"), 1_000_000_000);
    set_mode("secret", 0o000);
    set_mode("closed/inner", 0o000);
    set_mode("closed", 0o000);
    set_time(&root.join("closed"), 1_100_000_000);
    set_time(root, 1_200_000_000);
}

#[tokio::test]
async fn a_nasty_tree_comes_back_as_it_was() {
    if left_out() {
        return;
    }
    let scene = Scene::of(Agent::start_without_capabilities().await);
    fill_with_nasty_things(&scene.root);
    let before = fingerprint(&scene.root);
    let saved = scene.save().await;
    assert_eq!(fingerprint(&scene.root), before, "saving leaves everything as it was");
    assert_eq!(saved.end.entries, saved.entries.len() as u64);
    assert!(saved.lost.is_empty());

    fs::remove_dir_all(scene.root.join("many")).unwrap();
    scene.write("many", "a file now");
    scene.write("junk/more/junk", "x");
    fs::set_permissions(scene.root.join("junk/more"), Permissions::from_mode(0o000)).unwrap();
    fs::remove_file(scene.root.join("secret")).unwrap();
    fs::create_dir(scene.root.join("secret")).unwrap();
    let done = restore(&scene.agent, &[&scene.root], saved.to_requests()).await.unwrap();
    assert_eq!((done.entries, done.bytes), (saved.end.entries, saved.end.bytes));
    let after = fingerprint(&scene.root);
    for (path, state) in &before {
        assert_eq!(after.get(path), Some(state), "{}", path.display());
    }
    assert_eq!(after.len(), before.len());
    let again = save_over(&scene.agent, &[&scene.root], &saved.entries).await;
    assert_eq!(again.sent(), 0);
    assert!(again.entries == saved.entries);
}

#[tokio::test]
async fn entries_come_in_order_with_parents_first() {
    let scene = Scene::new().await;
    for name in ["a/b/x", "a/y", "a-/z", "a.txt", "b"] {
        scene.write(name, "");
    }
    let saved = scene.save().await;
    let root = scene.root.to_str().unwrap();
    let paths: Vec<_> = saved.entries.iter().map(|entry| std::str::from_utf8(&entry.path).unwrap()).collect();
    let names: Vec<_> = paths.iter().map(|path| path.strip_prefix(root).unwrap()).collect();
    assert_eq!(names, ["", "/a", "/a/b", "/a/b/x", "/a/y", "/a-", "/a-/z", "/a.txt", "/b"]);
}

#[tokio::test]
async fn sockets_are_lost_and_named() {
    if left_out() {
        return;
    }
    let scene = Scene::new().await;
    let _listener = UnixListener::bind(scene.root.join("socket")).unwrap();
    let saved = scene.save().await;
    assert_eq!(saved.entries.len(), 1);
    assert_eq!(saved.lost.len(), 1);
    assert_eq!(saved.lost[0].kind, "socket");
    assert_eq!(Path::new(&saved.lost[0].what), scene.root.join("socket"));
}

#[tokio::test]
async fn holes_are_neither_sent_nor_made() {
    if left_out() {
        return;
    }
    let scene = Scene::new().await;
    let file = File::create(scene.root.join("sparse")).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(b"end", (1 << 40) - 3).unwrap();
    let saved = scene.save().await;
    assert!(saved.end.bytes <= 4096 && saved.sent() <= 4096);
    restore(&scene.agent, &[&scene.root], saved.to_requests()).await.unwrap();
    let metadata = fs::metadata(scene.root.join("sparse")).unwrap();
    assert_eq!(metadata.len(), 1 << 40);
    assert!(metadata.blocks() <= 8);
}

#[tokio::test]
async fn a_root_in_a_root_is_saved_once_and_survives_the_outer_one() {
    let scene = Scene::new().await;
    scene.write("way/inner/file", "inner");
    scene.write("way/file", "outer");
    scene.write("z", "last");
    let inner = scene.root.join("way/inner");
    let before = fingerprint(&scene.root);
    let roots = [scene.root.as_path(), inner.as_path()];
    let saved = save(&scene.agent, &roots).await;
    let names: Vec<_> = saved.entries.iter().map(|entry| entry.path.rsplit(|byte| *byte == b'/').next()).collect();
    assert_eq!(names, [&b"root"[..], b"way", b"file", b"z", b"inner", b"file"].map(Some));
    let inode = fs::metadata(&inner).unwrap().ino();
    fs::write(inner.join("junk"), "").unwrap();
    restore(&scene.agent, &roots, saved.to_requests()).await.unwrap();
    assert_eq!(fingerprint(&scene.root), before);
    assert_eq!(fs::metadata(&inner).unwrap().ino(), inode);
    assert_eq!(save_over(&scene.agent, &roots, &saved.entries).await.sent(), 0);
}

#[tokio::test]
async fn deep_folders_are_kept() {
    let scene = Scene::new().await;
    let deep = "d/".repeat(300);
    scene.write(&format!("{deep}file"), "deep");
    let before = fingerprint(&scene.root);
    let saved = scene.save().await;
    restore(&scene.agent, &[&scene.root], saved.to_requests()).await.unwrap();
    assert_eq!(fingerprint(&scene.root), before);
}

#[tokio::test]
async fn what_changed_in_a_file_is_all_that_is_sent() {
    let scene = Scene::new().await;
    let overwritten = |offset: u64| {
        move |path: &Path| OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"?", offset).unwrap()
    };
    assert_eq!(scene.sent_after(|_| {}).await, 0);
    let in_the_middle = scene.sent_after(overwritten(4 * MIB as u64)).await;
    assert!((1..3 * MIB).contains(&in_the_middle), "{in_the_middle}");
    let inserted = |path: &Path| {
        let content = fs::read(path).unwrap();
        fs::write(path, [b"at the front", content.as_slice()].concat()).unwrap();
    };
    assert!(scene.sent_after(inserted).await < 3 * MIB);
    let truncated = |path: &Path| OpenOptions::new().write(true).open(path).unwrap().set_len(5_000_001).unwrap();
    assert!(scene.sent_after(truncated).await < 2 * MIB);
    let grown = |path: &Path| fs::write(path, [noise(1, 8 * MIB), noise(2, 1000)].concat()).unwrap();
    assert!(scene.sent_after(grown).await < 2 * MIB);
    let punched = |path: &Path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let mode = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
        nix::fcntl::fallocate(&file, mode, 2 * MIB as i64, MIB as i64).unwrap();
    };
    assert!(scene.sent_after(punched).await < 3 * MIB);
    let replaced = |path: &Path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    };
    assert_eq!(scene.sent_after(replaced).await, 0);
}

#[tokio::test]
async fn writes_through_a_mapping_are_seen_although_no_time_tells() {
    let scene = Scene::new().await;
    let path = scene.root.join("mapped");
    scene.write("mapped", noise(3, 2 * MIB));
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let length = std::num::NonZeroUsize::new(2 * MIB).unwrap();
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping of a file that stays as long as this test.
    let mapping = unsafe {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        libc::mmap(std::ptr::null_mut(), length.get(), protection, libc::MAP_SHARED, fd, 0)
    };
    assert_ne!(mapping, libc::MAP_FAILED);
    // SAFETY: within the mapping; the first write may set times, the one below does not.
    unsafe { mapping.cast::<u8>().add(MIB).write_volatile(1) };
    let first = scene.save().await;
    let before = fs::metadata(&path).unwrap();
    // SAFETY: within the mapping.
    unsafe { mapping.cast::<u8>().add(MIB).write_volatile(2) };
    let after = fs::metadata(&path).unwrap();
    assert_eq!((before.mtime_nsec(), before.ctime_nsec()), (after.mtime_nsec(), after.ctime_nsec()));
    let second = save_over(&scene.agent, &[&scene.root], &first.entries).await;
    assert!((1..2 * MIB).contains(&second.sent()), "{}", second.sent());
    // SAFETY: mapped above, and not used any more.
    unsafe { libc::munmap(mapping, length.get()) };
}

#[tokio::test]
async fn big_files_take_little_memory_and_give_it_back() {
    let scene = Scene::new().await;
    scene.write("big", noise(4, 48 * MIB));
    scene.agent.sh("true").await;
    let before = scene.agent.memory_kib();
    let (saved, peak) = {
        let saving = scene.save();
        tokio::pin!(saving);
        let mut peak = 0;
        let saved = loop {
            tokio::select! {
                saved = &mut saving => break saved,
                () = tokio::time::sleep(Duration::from_millis(1)) => peak = peak.max(scene.agent.memory_kib()),
            }
        };
        (saved, peak)
    };
    assert!(peak < before + 8 * 1024, "grew from {before} to {peak} KiB");
    restore(&scene.agent, &[&scene.root], saved.to_requests()).await.unwrap();
    save_over(&scene.agent, &[&scene.root], &saved.entries).await;
    eventually("the return of memory", || scene.agent.memory_kib() < before + 1024).await;
}

#[tokio::test]
async fn a_cut_save_leaves_the_agent_ready_for_the_next() {
    let scene = Scene::new().await;
    scene.write("big", noise(5, 16 * MIB));
    for _ in 0..3 {
        let (client, connection) = scene.agent.client_to_cut().await;
        let mut stream = try_save(client, &[&scene.root], &[], true).await.unwrap();
        stream.message().await.unwrap();
        connection.shutdown(std::net::Shutdown::Both).unwrap();
    }
    assert!(scene.save().await.sent() >= 16 * MIB);
}

#[tokio::test]
async fn a_save_without_base_end_is_refused() {
    let scene = Scene::new().await;
    let mut stream = try_save(scene.agent.client.clone(), &[&scene.root], &[], false).await.unwrap();
    let status = loop {
        match stream.message().await {
            Ok(message) => assert!(message.is_some(), "it fails"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("base_end"), "{status}");
}

#[tokio::test]
async fn bad_saves_are_refused_with_the_reason() {
    let scene = Scene::new().await;
    scene.write("file", "x");
    let missing = scene.root.join("missing");
    let file = scene.root.join("file");
    let entry = |path: &Path| TreeEntry { path: path.as_os_str().as_bytes().to_vec().into(), ..Default::default() };
    let out_of_order = [entry(&scene.root.join("b")), entry(&scene.root.join("a"))];
    let cases: [(&[&Path], &[TreeEntry], Code, &str); 6] = [
        (&[], &[], Code::InvalidArgument, "roots"),
        (&[Path::new("relative")], &[], Code::InvalidArgument, "absolute"),
        (&[&missing], &[], Code::NotFound, "missing"),
        (&[&file], &[], Code::FailedPrecondition, "file"),
        (&[&scene.root], &[entry(Path::new("/etc/passwd"))], Code::InvalidArgument, "/etc/passwd"),
        (&[&scene.root], &out_of_order, Code::InvalidArgument, "order"),
    ];
    for (roots, base, code, reason) in cases {
        let status = crate::saved::collect(scene.agent.client.clone(), roots, base).await.err().unwrap();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(reason), "{status}");
    }
}
