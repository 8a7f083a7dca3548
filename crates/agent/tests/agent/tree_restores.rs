//! What a restore refuses, and what it says then.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cloud_sandbox_proto::{
    agent::v1::{RestoreTreeCommit, restore_tree_request::Part},
    checkpoint::v1::{Chunk, EntryKind, Extent, TreeEntry},
};
use tonic::{Code, Status};

use crate::{
    rig::Agent,
    saved::{restore, restore_requests},
};

fn entry(path: &str, kind: EntryKind) -> Part {
    Part::Entry(TreeEntry { path: path.to_owned().into(), kind: kind.into(), mode: 0o755, ..Default::default() })
}

fn file(path: &str, size: u64, chunks: &[(u64, u32)]) -> Part {
    let extents = chunks.iter().map(|(offset, length)| Extent {
        offset: *offset,
        chunks: vec![Chunk { hash: vec![0; 32].into(), length: *length }],
    });
    let entry = TreeEntry { size, extents: extents.collect(), mode: 0o600, ..Default::default() };
    Part::Entry(TreeEntry { path: path.to_owned().into(), kind: EntryKind::File.into(), ..entry })
}

fn commit() -> Part {
    Part::Commit(RestoreTreeCommit {})
}

struct Scene {
    agent: Agent,
    root: PathBuf,
}

impl Scene {
    async fn new() -> Self {
        let agent = Agent::start().await;
        let root = agent.folder().join("root");
        fs::create_dir(&root).unwrap();
        Self { agent, root }
    }

    fn path(&self, name: &str) -> String {
        self.root.join(name).to_str().unwrap().to_owned()
    }

    /// Sends the root's entry and then `parts`.
    async fn refusal(&self, parts: Vec<Part>) -> Status {
        let root = entry(self.root.to_str().unwrap(), EntryKind::Folder);
        let parts = std::iter::once(root).chain(parts).collect();
        let requests = restore_requests(&[&self.root], parts);
        restore(&self.agent, &[&self.root], requests).await.expect_err("it is refused")
    }
}

#[tokio::test]
async fn paths_that_leave_the_roots_are_refused() {
    let scene = Scene::new().await;
    fs::write(scene.agent.folder().join("outside"), "mine").unwrap();
    std::os::unix::fs::symlink(scene.agent.folder(), scene.root.join("way out")).unwrap();
    let outside = scene.agent.path("outside");
    for path in [
        &outside,
        &scene.path("../outside"),
        &scene.path("a/../../x"),
        "/etc/passwd",
        "relative",
        "",
        &scene.path("./a"),
    ] {
        let status = scene.refusal(vec![file(path, 0, &[]), commit()]).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    let link = TreeEntry {
        path: scene.path("link").into(),
        kind: EntryKind::Symlink.into(),
        target: scene.agent.path("").into(),
        ..Default::default()
    };
    let status = scene.refusal(vec![Part::Entry(link), file(&scene.path("link/outside"), 0, &[]), commit()]).await;
    assert_eq!(status.code(), Code::InvalidArgument, "a link is no folder: {status}");
    assert_eq!(fs::read_to_string(&outside).unwrap(), "mine");
}

#[tokio::test]
async fn entries_without_their_folder_or_order_are_refused() {
    let scene = Scene::new().await;
    let folder = |name: &str| entry(&scene.path(name), EntryKind::Folder);
    let empty = |name: &str| file(&scene.path(name), 0, &[]);
    let hard_link = |name: &str, first: &str| {
        let (path, hard_link) = (scene.path(name).into(), scene.path(first).into());
        Part::Entry(TreeEntry { path, hard_link, ..Default::default() })
    };
    let cases = [
        (vec![empty("a/b")], "folder"),
        (vec![folder("a"), empty("b"), empty("a/b")], "order"),
        (vec![empty("b"), empty("a")], "order"),
        (vec![empty("a"), empty("a")], "order"),
        (vec![empty("a"), empty("a/b")], "folder"),
        (vec![hard_link("b", "a")], "hard_link"),
        (vec![hard_link("b", "../../outside")], "hard_link"),
        (vec![empty("b"), hard_link("c", "d")], "hard_link"),
        (vec![entry(&scene.path("a"), EntryKind::Unspecified)], "kind"),
    ];
    for (mut parts, reason) in cases {
        parts.push(commit());
        let status = scene.refusal(parts).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(reason), "{status} lacks {reason}");
    }
}

#[tokio::test]
async fn data_that_does_not_fit_its_extents_is_refused() {
    let scene = Scene::new().await;
    let path = scene.path("file");
    let data = |length: usize| Part::Data(vec![1; length].into());
    let cases = [
        (vec![file(&path, 10, &[(0, 10)]), data(9), commit()], "lacks 1"),
        (vec![file(&path, 10, &[(0, 10)]), data(11), commit()], "more data"),
        (vec![file(&path, 10, &[(0, 11)]), data(11), commit()], "size"),
        (vec![file(&path, 10, &[(4, 2), (0, 2)]), data(4), commit()], "ascend"),
        (vec![data(1), commit()], "data must follow"),
        (vec![file(&path, 10, &[(0, 10)]), data(10)], "commit"),
    ];
    for (parts, reason) in cases {
        let status = scene.refusal(parts).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(reason), "{status} lacks {reason}");
    }
}

#[tokio::test]
async fn a_missing_root_is_refused_before_anything_is_removed() {
    let scene = Scene::new().await;
    fs::write(scene.root.join("kept"), "x").unwrap();
    let missing = scene.agent.folder().join("z");
    let roots: [&Path; 2] = [&scene.root, &missing];
    let status = restore(&scene.agent, &roots, restore_requests(&roots, vec![commit()])).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(scene.root.join("kept").exists());
}

#[tokio::test]
async fn an_empty_restore_empties_the_root() {
    let scene = Scene::new().await;
    fs::create_dir_all(scene.root.join("a/b")).unwrap();
    fs::write(scene.root.join("a/b/c"), "x").unwrap();
    let roots: [&Path; 1] = [&scene.root];
    restore(&scene.agent, &roots, restore_requests(&roots, vec![commit()])).await.unwrap();
    assert_eq!(fs::read_dir(&scene.root).unwrap().count(), 0);
}

#[tokio::test]
async fn a_full_disk_is_told_with_the_path() {
    let Some(agent) = Agent::start_with_small_disk().await else {
        panic!("the tests need a file system of their own");
    };
    let root = agent.folder().join("full");
    let path = root.join("large").to_str().unwrap().to_owned();
    let large = file(&path, 2 << 20, &[(0, 2 << 20)]);
    let parts = vec![
        entry(root.to_str().unwrap(), EntryKind::Folder),
        large,
        Part::Data(vec![1; 1 << 20].into()),
        Part::Data(vec![1; 1 << 20].into()),
        commit(),
    ];
    let status = restore(&agent, &[&root], restore_requests(&[&root], parts)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains(&path), "{status}");
}

#[tokio::test]
async fn an_owner_that_cannot_be_set_is_told_with_the_path() {
    let agent = Agent::start_without_capabilities().await;
    let root = agent.folder().join("root");
    fs::create_dir(&root).unwrap();
    let path = root.join("theirs").to_str().unwrap().to_owned();
    let theirs = TreeEntry { path: path.clone().into(), kind: EntryKind::File.into(), uid: 4711, ..Default::default() };
    let parts = vec![entry(root.to_str().unwrap(), EntryKind::Folder), Part::Entry(theirs), commit()];
    let status = restore(&agent, &[&root], restore_requests(&[&root], parts)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains(&path), "{status}");
}
