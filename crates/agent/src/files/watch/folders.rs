//! The folders that are watched, by what the kernel calls them.
//!
//! A watch follows its folder when that is renamed; the names here must follow too.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use cloud_sandbox_proto::v1::FileType;
use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, Inotify, WatchDescriptor},
};
use tonic::Status;

use super::refused;
use crate::{
    files::{
        shown,
        walk::{Kind, Step, Walk, has_gone},
    },
    worker::Call,
};

const MAX_FOLDERS: usize = 8192;
const EVENTS: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_MODIFY)
    .union(AddWatchFlags::IN_CLOSE_WRITE)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);

/// What is watched.
pub(super) struct Folders {
    root: PathBuf,
    recursive: bool,
    paths: HashMap<WatchDescriptor, PathBuf>,
}

impl Folders {
    pub(super) fn new(root: PathBuf, recursive: bool) -> Self {
        Self { root, recursive, paths: HashMap::new() }
    }

    /// Watches the root, and all below it if that is wanted.
    pub(super) fn add_all(&mut self, queue: &Inotify, call: &Call) -> Result<(), Status> {
        let root = self.root.clone();
        let watched = queue.add_watch(&root, EVENTS).map_err(|error| refused(root.clone())(error.into()))?;
        self.paths.insert(watched, root.clone());
        if self.recursive { self.below(queue, &root, call, |_, _| {}) } else { Ok(()) }
    }

    /// Watches a folder that has come, and what is in it; tells `found` of that.
    pub(super) fn add(
        &mut self,
        queue: &Inotify,
        path: &Path,
        found: impl FnMut(PathBuf, FileType),
    ) -> Result<(), Status> {
        if !self.recursive || !self.add_one(queue, path)? {
            return Ok(());
        }
        self.below(queue, path, &Call::default(), found)
    }

    /// False for what has gone again, or is no folder any more.
    fn add_one(&mut self, queue: &Inotify, path: &Path) -> Result<bool, Status> {
        match queue.add_watch(path, EVENTS | AddWatchFlags::IN_DONT_FOLLOW) {
            Ok(watched) => {
                self.paths.insert(watched, path.to_owned());
            }
            // Nobody may look into it, or name it.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EACCES | Errno::ENAMETOOLONG) => {
                return Ok(false);
            }
            Err(error) => return Err(refused(path.to_owned())(error.into())),
        }
        if self.paths.len() > MAX_FOLDERS {
            let message = format!("{} has more than {MAX_FOLDERS} folders to watch", shown(&self.root));
            return Err(Status::resource_exhausted(message));
        }
        Ok(true)
    }

    /// Each folder is watched before it is listed, so that nothing can come unseen in between.
    fn below(
        &mut self,
        queue: &Inotify,
        path: &Path,
        call: &Call,
        mut found: impl FnMut(PathBuf, FileType),
    ) -> Result<(), Status> {
        let refused = |error| refused(path.to_owned())(error);
        let mut walk = match Walk::of(path) {
            Ok(walk) => walk,
            Err(error) if has_gone(&error) || error.kind() == std::io::ErrorKind::PermissionDenied => return Ok(()),
            Err(error) => return Err(refused(error)),
        };
        while let Some(step) = walk.next().map_err(refused)? {
            call.check()?;
            let Step::Entry(kind) = step else { continue };
            let path = walk.path_from(path);
            if kind == Kind::Folder {
                self.add_one(queue, &path)?;
            }
            found(path, file_type(kind));
        }
        Ok(())
    }

    pub(super) fn path(&self, watched: WatchDescriptor) -> Option<&Path> {
        self.paths.get(&watched).map(PathBuf::as_path)
    }

    /// Forgets a folder that the kernel has forgotten.
    pub(super) fn forget(&mut self, watched: WatchDescriptor) {
        self.paths.remove(&watched);
    }

    /// Forgets all, to begin anew.
    pub(super) fn clear(&mut self, queue: &Inotify) {
        for (watched, _) in self.paths.drain() {
            let _ = queue.rm_watch(watched);
        }
    }

    /// Follows the rename of a folder.
    pub(super) fn rename(&mut self, from: &Path, to: &Path) {
        for path in self.paths.values_mut() {
            if let Ok(rest) = path.strip_prefix(from) {
                *path = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            }
        }
    }

    /// Stops watching a folder that went elsewhere, and all below it.
    pub(super) fn remove(&mut self, queue: &Inotify, path: &Path) {
        self.paths.retain(|watched, watched_path| {
            let stays = !watched_path.starts_with(path);
            if !stays {
                let _ = queue.rm_watch(*watched);
            }
            stays
        });
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::File,
        Kind::Folder => FileType::Directory,
        Kind::Link => FileType::Symlink,
        Kind::Other => FileType::Other,
    }
}
