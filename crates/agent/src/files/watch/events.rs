//! Turns what the kernel says into what the contract says.
//!
//! The two halves of a rename are told apart and joined by their cookie; a half that stays alone came from or went to a
//! place that is not watched. Writes are told at the close, or a second after the first, whichever is sooner. Drafts of
//! this agent are not told: what they become is.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ffi::OsString,
    fs::Metadata,
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use cloud_sandbox_proto::v1::{FileEvent, FileEventType, FileType};
use nix::sys::inotify::{AddWatchFlags, Inotify, InotifyEvent};
use tokio::time::Instant;
use tonic::Status;

use super::{event, folders::Folders};
use crate::{
    files::{draft::PREFIX, info::Facts, info::lossy},
    worker::Call,
};

/// How long the second half of a rename may take: the kernel queues both at once.
const RENAME: Duration = Duration::from_millis(50);
const WRITES: Duration = Duration::from_secs(1);
/// Events, and writes to be told, that are kept; more is an overflow.
const MAX_KEPT: usize = 8192;

/// What is watched, as the request named it.
pub(super) struct Root {
    pub(super) path: PathBuf,
    /// the folder in which things happen
    pub(super) folder: PathBuf,
    /// the one name in it that counts, when a file is watched
    pub(super) only: Option<OsString>,
    identity: (u64, u64),
    kind: FileType,
}

impl Root {
    pub(super) fn find(path: PathBuf) -> io::Result<Self> {
        let metadata = path.metadata()?;
        let real = path.canonicalize()?;
        let kind = Facts::from(&metadata).kind();
        let (folder, only) = match (real.parent(), real.file_name()) {
            (Some(parent), Some(name)) if kind != FileType::Directory => (parent.to_owned(), Some(name.to_owned())),
            _ => (real, None),
        };
        Ok(Self { path, folder, only, identity: identity(&metadata), kind })
    }

    /// Whether the path leads to something else now, or nowhere. A file may be replaced.
    pub(super) fn has_gone(&self) -> bool {
        let found = self.path.metadata();
        if self.only.is_some() { found.is_err() } else { !found.is_ok_and(|it| identity(&it) == self.identity) }
    }

    /// A path as the caller sees it.
    fn seen(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.folder) {
            Ok(_) if self.only.is_some() => self.path.clone(),
            Ok(rest) => self.path.join(rest),
            Err(_) => path.to_owned(),
        }
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// The first half of a rename.
struct Moved {
    cookie: u32,
    path: PathBuf,
    is_folder: bool,
    until: Instant,
}

/// What is known between two events.
pub(super) struct Events {
    pub(super) root: Root,
    folders: Folders,
    moved: VecDeque<Moved>,
    /// when to tell of files that are being written to
    written: HashMap<PathBuf, Instant>,
    /// told when their folder was looked into, and perhaps still in the kernel's queue
    told: HashSet<PathBuf>,
    /// the last that was told of a watched file is that it is gone
    ended: bool,
}

impl Events {
    pub(super) fn new(root: Root, folders: Folders) -> Self {
        Self { root, folders, moved: VecDeque::new(), written: HashMap::new(), told: HashSet::new(), ended: false }
    }

    /// An event about the root itself.
    pub(super) fn about_root(&self, happened: FileEventType) -> FileEvent {
        event(happened, &self.root.path, self.root.kind)
    }

    /// Whether it was told that a watched file is gone.
    pub(super) fn has_told_the_end(&self) -> bool {
        self.ended
    }

    /// When something is to be told although nothing happens.
    pub(super) fn due(&self) -> Option<Instant> {
        self.moved.iter().map(|moved| moved.until).chain(self.written.values().copied()).min()
    }

    /// The kernel's queue is empty: what comes from now on is new.
    pub(super) fn drained(&mut self) {
        self.told.clear();
    }

    /// Takes an event of the kernel; true when the root may be gone.
    pub(super) fn take(
        &mut self,
        queue: &Inotify,
        happened: InotifyEvent,
        now: Instant,
        ready: &mut VecDeque<FileEvent>,
    ) -> Result<bool, Status> {
        let mask = happened.mask;
        if mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return self.begin_anew(queue, ready).map(|()| self.root.has_gone());
        }
        if mask.contains(AddWatchFlags::IN_IGNORED) {
            self.folders.forget(happened.wd);
            return Ok(false);
        }
        // Queued before its folder was let go of.
        let Some(folder) = self.folders.path(happened.wd) else { return Ok(false) };
        let Some(name) = happened.name else {
            return Ok(folder == self.root.folder && self.itself(mask, ready));
        };
        let path = folder.join(&name);
        let is_draft = name.as_bytes().starts_with(PREFIX.as_bytes());
        if is_draft || self.root.only.as_ref().is_some_and(|only| *only != name) {
            self.elsewhere(&path, mask, happened.cookie, now);
            return Ok(false);
        }
        self.named(queue, path, mask, happened.cookie, now, ready)?;
        if ready.len() > MAX_KEPT || self.written.len() > MAX_KEPT || self.told.len() > 4 * MAX_KEPT {
            self.begin_anew(queue, ready)?;
        }
        Ok(self.root.only.is_some() && self.root.has_gone())
    }

    /// Something happened to the root itself.
    fn itself(&self, mask: AddWatchFlags, ready: &mut VecDeque<FileEvent>) -> bool {
        let gone = self.root.has_gone();
        if !gone && self.root.only.is_none() && mask.contains(AddWatchFlags::IN_ATTRIB) {
            ready.push_back(self.about_root(FileEventType::Changed));
        }
        gone
    }

    /// Something happened to what is not told of, but may become what is.
    fn elsewhere(&mut self, path: &Path, mask: AddWatchFlags, cookie: u32, now: Instant) {
        if mask.contains(AddWatchFlags::IN_MOVED_FROM) {
            let is_folder = mask.contains(AddWatchFlags::IN_ISDIR);
            self.moved.push_back(Moved { cookie, path: path.to_owned(), is_folder, until: now + RENAME });
        } else if mask.contains(AddWatchFlags::IN_MOVED_TO) {
            // What was told of is now what is not.
            if let Some(moved) = self.moved.iter_mut().find(|moved| moved.cookie == cookie) {
                moved.until = now;
            }
        }
    }

    fn named(
        &mut self,
        queue: &Inotify,
        path: PathBuf,
        mask: AddWatchFlags,
        cookie: u32,
        now: Instant,
        ready: &mut VecDeque<FileEvent>,
    ) -> Result<(), Status> {
        let is_folder = mask.contains(AddWatchFlags::IN_ISDIR);
        let first_half = self.moved.iter().position(|moved| moved.cookie == cookie && cookie != 0);
        if first_half.is_none() {
            self.tell_moved(queue, |moved| path.starts_with(&moved.path), ready);
        }
        if mask.contains(AddWatchFlags::IN_CREATE) {
            return self.created(queue, &path, is_folder, ready);
        }
        if mask.contains(AddWatchFlags::IN_MOVED_TO) {
            let from = first_half.and_then(|index| self.moved.remove(index));
            return self.moved_to(queue, from, &path, is_folder, ready);
        }
        if mask.contains(AddWatchFlags::IN_MOVED_FROM) {
            self.forget(&path);
            self.moved.push_back(Moved { cookie, path, is_folder, until: now + RENAME });
        } else if mask.contains(AddWatchFlags::IN_DELETE) {
            self.forget(&path);
            self.tell(FileEventType::Removed, &path, kind_of_gone(is_folder), ready);
        } else if mask.contains(AddWatchFlags::IN_CLOSE_WRITE) {
            self.written.remove(&path);
            self.tell_existing(FileEventType::Written, &path, ready);
        } else if mask.contains(AddWatchFlags::IN_MODIFY) {
            self.written.entry(path).or_insert(now + WRITES);
        } else if mask.contains(AddWatchFlags::IN_ATTRIB) {
            self.tell_existing(FileEventType::Changed, &path, ready);
        }
        Ok(())
    }

    fn created(
        &mut self,
        queue: &Inotify,
        path: &Path,
        is_folder: bool,
        ready: &mut VecDeque<FileEvent>,
    ) -> Result<(), Status> {
        if self.told.remove(path) {
            return Ok(());
        }
        let kind = kind_at(path).unwrap_or(kind_of_gone(is_folder));
        self.tell(FileEventType::Created, path, kind, ready);
        if is_folder { self.look_into(queue, path, ready) } else { Ok(()) }
    }

    /// Tells what is in a folder that has come.
    fn look_into(&mut self, queue: &Inotify, path: &Path, ready: &mut VecDeque<FileEvent>) -> Result<(), Status> {
        let mut found = Vec::new();
        let mut too_many = false;
        self.folders.add(queue, path, |path, kind| {
            too_many |= found.len() > MAX_KEPT;
            if !too_many {
                found.push((path, kind));
            }
        })?;
        if too_many {
            ready.push_back(self.about_root(FileEventType::Overflow));
            return Ok(());
        }
        for (path, kind) in found {
            self.tell(FileEventType::Created, &path, kind, ready);
            self.told.insert(path);
        }
        Ok(())
    }

    fn moved_to(
        &mut self,
        queue: &Inotify,
        from: Option<Moved>,
        path: &Path,
        is_folder: bool,
        ready: &mut VecDeque<FileEvent>,
    ) -> Result<(), Status> {
        let Some(from) = from else { return self.created(queue, path, is_folder, ready) };
        let kind = kind_at(path).unwrap_or(kind_of_gone(is_folder));
        if self.is_untold(&from.path) {
            // A draft takes the place of a file, or is a folder that is new.
            if !is_folder && kind == FileType::File {
                self.tell(FileEventType::Written, path, kind, ready);
                return Ok(());
            }
            return self.created(queue, path, is_folder, ready);
        }
        if is_folder {
            self.folders.rename(&from.path, path);
        }
        let old_path = lossy(&self.root.seen(&from.path));
        ready.push_back(FileEvent { old_path, ..event(FileEventType::Renamed, &self.root.seen(path), kind) });
        Ok(())
    }

    /// Whether a path is none that is told of.
    fn is_untold(&self, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default();
        name.as_bytes().starts_with(PREFIX.as_bytes()) || self.root.only.as_ref().is_some_and(|only| only != name)
    }

    fn forget(&mut self, path: &Path) {
        self.written.remove(path);
        self.told.remove(path);
    }

    fn tell(&mut self, happened: FileEventType, path: &Path, kind: FileType, ready: &mut VecDeque<FileEvent>) {
        self.ended = self.root.only.is_some() && happened == FileEventType::Removed;
        ready.push_back(event(happened, &self.root.seen(path), kind));
    }

    /// Tells of what is still there; what has gone since is told of as that.
    fn tell_existing(&mut self, happened: FileEventType, path: &Path, ready: &mut VecDeque<FileEvent>) {
        if let Some(kind) = kind_at(path) {
            self.tell(happened, path, kind, ready);
        }
    }

    /// Tells what has waited long enough.
    pub(super) fn tell_due(&mut self, now: Instant, queue: &Inotify, ready: &mut VecDeque<FileEvent>) {
        self.tell_moved(queue, |moved| moved.until <= now, ready);
        let due: Vec<_> = self.written.extract_if(|_, due| *due <= now).map(|(path, _)| path).collect();
        for path in due {
            self.tell_existing(FileEventType::Written, &path, ready);
        }
    }

    /// Tells all that is left at the end.
    pub(super) fn tell_all(&mut self, queue: &Inotify, ready: &mut VecDeque<FileEvent>) {
        self.tell_moved(queue, |_| true, ready);
    }

    /// Tells of first halves that stay alone.
    fn tell_moved(&mut self, queue: &Inotify, alone: impl Fn(&Moved) -> bool, ready: &mut VecDeque<FileEvent>) {
        let (gone, kept) = self.moved.drain(..).partition(alone);
        self.moved = kept;
        let gone: VecDeque<Moved> = gone;
        for moved in gone.into_iter().filter(|moved| !self.is_untold(&moved.path)).collect::<Vec<_>>() {
            if moved.is_folder {
                self.folders.remove(queue, &moved.path);
            }
            self.tell(FileEventType::Removed, &moved.path, kind_of_gone(moved.is_folder), ready);
        }
    }

    /// Says that something was missed, and watches all that is there now.
    fn begin_anew(&mut self, queue: &Inotify, ready: &mut VecDeque<FileEvent>) -> Result<(), Status> {
        self.moved.clear();
        self.written.clear();
        self.told.clear();
        self.folders.clear(queue);
        ready.clear();
        ready.push_back(self.about_root(FileEventType::Overflow));
        match self.folders.add_all(queue, &Call::default()) {
            // Its end is told by whoever looks next.
            Err(_) if self.root.has_gone() => Ok(()),
            added => added,
        }
    }
}

/// All that is known of what is not there any more.
fn kind_of_gone(is_folder: bool) -> FileType {
    if is_folder { FileType::Directory } else { FileType::Unspecified }
}

fn kind_at(path: &Path) -> Option<FileType> {
    path.symlink_metadata().ok().map(|metadata| Facts::from(&metadata).kind())
}
