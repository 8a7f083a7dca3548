//! Snapshots: what lies in a folder, remembered to tell later what has changed.
//!
//! Of every file its metadata is kept, and of small ones the content: so a change is seen also when the clock is too
//! coarse to show it, and can be shown itself. Whatever the folder holds, time and memory are bounded: by the number of
//! files, their depth, the length of their names, what is read and what is kept. Links are never followed.

mod compare;
mod content;
mod diff;
mod tree;
mod walk;

use std::{
    collections::VecDeque,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use cloud_sandbox_proto::agent::v1::{
    CompareSnapshotRequest, CompareSnapshotResponse, TakeSnapshotRequest, TakeSnapshotResponse,
};
use nix::fcntl::AT_FDCWD;
use tonic::Status;

use crate::{files, kernel, status, worker};
use tree::Tree;
pub(crate) use walk::order;

/// How many are kept; a node that asks for more has forgotten the first.
const MAX_KEPT: usize = 64;
/// How much all of them may hold, in bytes: a few of the largest.
const MAX_HELD: usize = 48 * 1024 * 1024;

/// The snapshots that are kept.
#[derive(Default)]
pub(crate) struct Snapshots(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    last: u64,
    /// Oldest first.
    snapshots: VecDeque<Snapshot>,
}

struct Snapshot {
    number: u64,
    folder: PathBuf,
    tree: Tree,
}

impl Snapshots {
    /// Remembers what lies in a folder.
    pub(crate) async fn take(&self, request: TakeSnapshotRequest) -> Result<TakeSnapshotResponse, Status> {
        let folder = files::parse_path(&request.path)?;
        let (folder, tree) = worker::run(move |call| {
            let root = open(&folder).map_err(|error| failure(&folder, &error))?;
            let tree = Tree::take(&root, call)?;
            Ok((folder, tree))
        })
        .await?;
        let snapshot = self.kept().keep(folder, tree);
        Ok(TakeSnapshotResponse { snapshot })
    }

    /// Tells what has changed since, and forgets it.
    pub(crate) async fn compare(&self, request: CompareSnapshotRequest) -> Result<CompareSnapshotResponse, Status> {
        let number = request.snapshot;
        let Snapshot { folder, tree, .. } = self
            .kept()
            .forget(number)
            .ok_or_else(|| Status::not_found(format!("snapshot {number} is not kept (any more)")))?;
        let changes = worker::run(move |call| {
            let root = match open(&folder) {
                Ok(root) => Some(root),
                // It has gone, and all that lay in it.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
                Err(error) => return Err(failure(&folder, &error)),
            };
            compare::compare(&folder, root.as_ref(), &tree, call)
        });
        Ok(CompareSnapshotResponse { changes: Some(changes.await?) })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn keep(&mut self, folder: PathBuf, tree: Tree) -> u64 {
        self.last += 1;
        self.snapshots.push_back(Snapshot { number: self.last, folder, tree });
        let mut held: usize = self.snapshots.iter().map(|snapshot| snapshot.tree.held()).sum();
        while self.snapshots.len() > 1 && (self.snapshots.len() > MAX_KEPT || held > MAX_HELD) {
            let oldest = self.snapshots.pop_front();
            held -= oldest.map_or(0, |oldest| oldest.tree.held());
        }
        self.last
    }

    fn forget(&mut self, number: u64) -> Option<Snapshot> {
        let index = self.snapshots.binary_search_by_key(&number, |snapshot| snapshot.number).ok()?;
        self.snapshots.remove(index)
    }
}

fn open(folder: &Path) -> io::Result<File> {
    Ok(kernel::open_folder(AT_FDCWD, folder)?.into())
}

fn failure(folder: &Path, error: &io::Error) -> Status {
    let folder = folder.to_string_lossy();
    status::from_io(&format!("look into {folder:.1000}"), error)
}
