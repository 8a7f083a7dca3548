//! What is remembered of a folder.

use std::{fs::File, ops::ControlFlow, time::SystemTime};

use nix::sys::stat::FileStat;
use tonic::Status;

use super::{
    content::{self, MAX_FILE, Reader, as_text, digest},
    walk::{Found, Reach, walk},
};
use crate::worker::Call;

/// The most that is kept of contents, in bytes.
const MAX_TEXTS: usize = 8 * 1024 * 1024;
/// The most that is read, in bytes.
const MAX_READ: usize = 32 * 1024 * 1024;
/// A file changed twice within one tick of the kernel's clock, which is up to 10 ms, may look unchanged.
const TICKS: i64 = 20_000_000;

/// Everything in a folder, in the order of the walk. Few large pieces of memory, which all go back at the end.
pub(super) struct Tree {
    entries: Vec<Entry>,
    paths: Vec<u8>,
    texts: Vec<u8>,
    reach: Reach,
    /// Changes from then on may show the same time as what was seen. Nanoseconds of the system's clock.
    blurred_from: i64,
}

/// One file, folder or link.
pub(super) struct Entry {
    path: Piece,
    pub(super) marks: Marks,
    pub(super) content: Content,
    /// Of a folder: that what lies in it is here as well.
    pub(super) is_open: bool,
}

/// What the file system says of it. Times are in nanoseconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Marks {
    /// Kind and permissions.
    pub(super) mode: u32,
    pub(super) size: u64,
    inode: u64,
    modified: i64,
    changed: i64,
}

/// What is known of a file's content, or of a link's target.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content {
    Unknown,
    Kept(Piece),
    /// The digest of a text that there was no room for.
    Text(u64),
    /// The digest of anything else.
    Binary(u64),
}

/// A part of one of the large pieces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    start: u32,
    length: u32,
}

impl Tree {
    /// Remembers what lies in `root`.
    pub(super) fn take(root: &File, call: &Call) -> Result<Self, Status> {
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos());
        let mut tree = Self {
            entries: Vec::new(),
            paths: Vec::new(),
            texts: Vec::new(),
            reach: Reach::default(),
            blurred_from: i64::try_from(now).unwrap_or(i64::MAX) - TICKS,
        };
        let mut reader = Reader::default();
        let mut left = MAX_READ;
        tree.reach = walk(root, call, |found| {
            let content = tree.remember(found, &mut reader, &mut left);
            let path = append(&mut tree.paths, found.path);
            tree.entries.push(Entry { path, marks: Marks::of(&found.stat), content, is_open: found.is_open });
            ControlFlow::Continue(())
        })?;
        tree.entries.shrink_to_fit();
        tree.paths.shrink_to_fit();
        tree.texts.shrink_to_fit();
        Ok(tree)
    }

    fn remember(&mut self, found: &Found<'_>, reader: &mut Reader, left: &mut usize) -> Content {
        let marks = Marks::of(&found.stat);
        if marks.is_link() {
            return content::target(found).map_or(Content::Unknown, |target| self.keep(&target));
        }
        let size = usize::try_from(marks.size).unwrap_or(usize::MAX);
        if !marks.is_file() || size > *left {
            return Content::Unknown;
        }
        let Some(content) = reader.read(found) else { return Content::Unknown };
        *left = left.saturating_sub(content.len());
        if as_text(content).is_some() { self.keep(content) } else { Content::Binary(digest(content)) }
    }

    fn keep(&mut self, content: &[u8]) -> Content {
        if self.texts.len() + content.len() > MAX_TEXTS {
            return Content::Text(digest(content));
        }
        Content::Kept(append(&mut self.texts, content))
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn reach(&self) -> Reach {
        self.reach
    }

    pub(super) fn path(&self, entry: &Entry) -> &[u8] {
        entry.path.of(&self.paths)
    }

    /// What was kept of a content.
    pub(super) fn kept(&self, content: Content) -> Option<&[u8]> {
        match content {
            Content::Kept(piece) => Some(piece.of(&self.texts)),
            Content::Unknown | Content::Text(_) | Content::Binary(_) => None,
        }
    }

    /// Whether `content` is what it was; none when that is not known.
    pub(super) fn holds(&self, known: Content, content: &[u8]) -> Option<bool> {
        match known {
            Content::Unknown => None,
            Content::Kept(piece) => Some(piece.of(&self.texts) == content),
            Content::Text(known) | Content::Binary(known) => Some(known == digest(content)),
        }
    }

    /// Whether a file may have changed although its marks are the same.
    pub(super) fn is_blurred(&self, entry: &Entry) -> bool {
        entry.marks.changed >= self.blurred_from
    }

    /// How much memory it takes, in bytes.
    pub(super) fn held(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>() + self.paths.capacity() + self.texts.capacity()
    }
}

impl Entry {
    /// Whether there is no diff because of the size, of it or of all that would have to be kept.
    pub(super) fn lacks_text(&self) -> bool {
        self.marks.is_large() || matches!(self.content, Content::Text(_))
    }
}

impl Marks {
    pub(super) fn of(stat: &FileStat) -> Self {
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        Self {
            mode: stat.st_mode,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            inode: stat.st_ino,
            modified: nanos(stat.st_mtime, stat.st_mtime_nsec),
            changed: nanos(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    pub(super) fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    pub(super) fn is_file(&self) -> bool {
        self.kind() == libc::S_IFREG
    }

    pub(super) fn is_link(&self) -> bool {
        self.kind() == libc::S_IFLNK
    }

    pub(super) fn is_folder(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }

    /// Whether its size alone forbids a diff.
    pub(super) fn is_large(&self) -> bool {
        self.is_file() && self.size > MAX_FILE as u64
    }

    /// The size of what has one that means something.
    pub(super) fn shown_size(&self) -> u64 {
        if self.is_file() || self.is_link() { self.size } else { 0 }
    }
}

impl Piece {
    fn of(self, all: &[u8]) -> &[u8] {
        &all[self.start as usize..][..self.length as usize]
    }
}

fn append(all: &mut Vec<u8>, piece: &[u8]) -> Piece {
    let place = Piece { start: all.len() as u32, length: piece.len() as u32 };
    all.extend_from_slice(piece);
    place
}
