//! Reads folders whole.
//!
//! Entries wait until there is enough to verify on two threads, and are then cut and sent in their order.

use std::{collections::HashMap, fs::File, io, ops::Range, os::unix::ffi::OsStrExt, path::Path};

use cloud_sandbox_proto::{
    agent::v1::{SaveTreeEnd, save_tree_response::Part},
    checkpoint::v1::{EntryKind, LostThing, TreeEntry},
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::{FileStat, Mode, SFlag, fstat},
};
use tonic::Status;

use super::{
    base::Base,
    chunks::{Cutter, Known},
    meta::{self, xattrs},
    opened::{Opened, READ, READ_AND_ENTER},
    outbox::Outbox,
    roots::{Place, Roots, failed, shown},
    runs::runs,
    verify::{Piece, Verifier},
};
use crate::files::walk::{Step, Walk};

/// How many bytes of files are verified at once, how many files are open for that, and how many entries wait for it.
const BATCH_BYTES: u64 = 64 * 1024 * 1024;
const BATCH_FILES: usize = 64;
const BATCH_ENTRIES: usize = 512;

/// Sends all that is in `roots`, or why it cannot be.
pub(super) fn save(roots: &Roots, base: Base, out: Outbox) {
    let mut saving = Saving {
        roots,
        base,
        out,
        waiting: Vec::new(),
        files: 0,
        bytes: 0,
        links: HashMap::new(),
        verifier: Verifier::new(),
        cutter: Cutter::default(),
        sent: SaveTreeEnd::default(),
    };
    if let Err(status) = saving.run() {
        saving.out.fail(status);
    }
}

struct Saving<'a> {
    roots: &'a Roots,
    base: Base,
    out: Outbox,
    waiting: Vec<Waiting>,
    /// files that wait, and their bytes
    files: usize,
    bytes: u64,
    /// files with several names, until all of them were seen: the first name, and how many more there are
    links: HashMap<(libc::dev_t, libc::ino_t), (Vec<u8>, u64)>,
    verifier: Verifier,
    cutter: Cutter,
    sent: SaveTreeEnd,
}

/// What is to be sent, in its order.
enum Waiting {
    Entry(TreeEntry),
    File(TreeEntry, Box<Content>),
    Lost(LostThing),
}

/// The content of a file, before it was read.
struct Content {
    file: File,
    stat: FileStat,
    runs: Vec<Range<u64>>,
    known: Known,
}

/// A folder on the way.
struct Level {
    _opened: Option<Opened>,
    stat: FileStat,
}

impl Saving<'_> {
    fn run(&mut self) -> Result<(), Status> {
        for (number, root) in self.roots.iter() {
            self.root(number, root)?;
        }
        self.flush()?;
        self.base.finish(self.roots)?;
        self.out.put(Part::End(self.sent), 0)?;
        self.out.flush()
    }

    fn root(&mut self, number: usize, root: &Path) -> Result<(), Status> {
        let path = root.as_os_str().as_bytes();
        let (folder, _opened) = open_root(root).map_err(failed("save", path))?;
        let before = fstat(&folder).map_err(failed("save", path))?;
        let mut entry = meta::entry(path, EntryKind::Folder, &before);
        // The rights that it has by now may be more than its own.
        if let Some(opened) = &_opened {
            entry.mode = opened.mode();
        }
        entry.xattrs = xattrs(&folder).map_err(failed("save", path))?;
        self.push(Waiting::Entry(entry))?;
        self.links.clear();

        let mut walk =
            Walk::by_parts(folder.try_clone().map_err(failed("save", path))?.into()).map_err(failed("save", path))?;
        let mut levels = Vec::new();
        loop {
            let step = walk.next().map_err(failed("save", path))?;
            let Some(step) = step else { break };
            self.out.check()?;
            let place = Place { root: number, path: walk.path_from(root).into_os_string().into_encoded_bytes() };
            self.step(&mut walk, step, &before, &place, &mut levels)?;
        }
        unchanged(&before, &fstat(&folder).map_err(failed("save", path))?, path)
    }

    fn step(
        &mut self,
        walk: &mut Walk,
        step: Step,
        root: &FileStat,
        place: &Place,
        levels: &mut Vec<Level>,
    ) -> Result<(), Status> {
        let path = &place.path;
        if step == Step::Closed {
            return Err(failed("save", path)(Errno::EACCES));
        }
        let stat = walk.stat().map_err(failed("save", path))?;
        if step == Step::Left {
            return match levels.pop() {
                Some(level) => unchanged(&level.stat, &stat, path),
                None => Ok(()),
            };
        }
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR if self.roots.is_root(path) => walk.pass_over(),
            SFlag::S_IFDIR if stat.st_dev != root.st_dev => {
                walk.pass_over();
                self.lose("file", path, "another file system is mounted there")?;
            }
            SFlag::S_IFDIR => levels.push(self.folder(walk, stat, path).map_err(failed("save", path))??),
            SFlag::S_IFSOCK => self.lose("socket", path, "sockets are not kept")?,
            SFlag::S_IFBLK | SFlag::S_IFCHR => self.lose("file", path, "devices are not kept")?,
            kind => {
                if let Some(first) = self.first_name(&stat, path) {
                    let entry =
                        TreeEntry { path: path.clone().into(), hard_link: first.into(), ..TreeEntry::default() };
                    return self.push(Waiting::Entry(entry));
                }
                match kind {
                    SFlag::S_IFLNK => {
                        let mut entry = meta::entry(path, EntryKind::Symlink, &stat);
                        let target = walk.link().map_err(failed("save", path))?;
                        entry.target = target.into_os_string().into_encoded_bytes().into();
                        self.push(Waiting::Entry(entry))?;
                    }
                    SFlag::S_IFIFO => self.push(Waiting::Entry(meta::entry(path, EntryKind::Fifo, &stat)))?,
                    _ => self.file(walk, &stat, place)?,
                }
            }
        }
        Ok(())
    }

    /// Takes a folder up, and lets the walk into it.
    fn folder(&mut self, walk: &Walk, stat: FileStat, path: &[u8]) -> io::Result<Result<Level, Status>> {
        let opened = Opened::open_up(walk.folder()?, walk.name(), &stat, READ_AND_ENTER)?;
        let mut entry = meta::entry(path, EntryKind::Folder, &stat);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        entry.xattrs = xattrs(&openat(walk.folder()?, walk.name(), flags, Mode::empty())?)?;
        Ok(self.push(Waiting::Entry(entry)).map(|()| Level { _opened: opened, stat }))
    }

    fn file(&mut self, walk: &Walk, stat: &FileStat, place: &Place) -> Result<(), Status> {
        let opened = open_file(walk, stat).and_then(|file| {
            let stat = fstat(&file)?;
            let runs = runs(&file, &stat)?;
            Ok((file, stat, runs))
        });
        let (file, stat, runs) = opened.map_err(failed("save", &place.path))?;
        let mut entry = meta::entry(&place.path, EntryKind::File, &stat);
        entry.size = u64::try_from(stat.st_size).unwrap_or(0);
        entry.xattrs = xattrs(&file).map_err(failed("save", &place.path))?;
        let known = Known::new(self.base.take(self.roots, place)?, &runs);
        self.files += 1;
        self.bytes += runs.iter().map(|run| run.end - run.start).sum::<u64>();
        self.push(Waiting::File(entry, Box::new(Content { file, stat, runs, known })))
    }

    /// The name under which a file was seen already.
    fn first_name(&mut self, stat: &FileStat, path: &[u8]) -> Option<Vec<u8>> {
        if stat.st_nlink < 2 {
            return None;
        }
        let inode = (stat.st_dev, stat.st_ino);
        let Some((first, left)) = self.links.get_mut(&inode) else {
            self.links.insert(inode, (path.to_vec(), stat.st_nlink - 1));
            return None;
        };
        *left -= 1;
        if *left > 0 {
            return Some(first.clone());
        }
        self.links.remove(&inode).map(|(first, _)| first)
    }

    fn lose(&mut self, kind: &str, path: &[u8], reason: &str) -> Result<(), Status> {
        let what = String::from_utf8_lossy(path).into_owned();
        self.push(Waiting::Lost(LostThing { kind: kind.into(), what, reason: reason.into() }))
    }

    fn push(&mut self, waiting: Waiting) -> Result<(), Status> {
        self.waiting.push(waiting);
        let is_full = self.files >= BATCH_FILES || self.bytes >= BATCH_BYTES || self.waiting.len() >= BATCH_ENTRIES;
        if is_full { self.flush() } else { Ok(()) }
    }

    /// Sends what waits.
    fn flush(&mut self) -> Result<(), Status> {
        let waiting = std::mem::take(&mut self.waiting);
        (self.files, self.bytes) = (0, 0);
        let known: Vec<(&File, &[Piece])> = waiting
            .iter()
            .filter_map(|waiting| match waiting {
                Waiting::File(_, content) => Some((&content.file, content.known.pieces.as_slice())),
                _ => None,
            })
            .collect();
        let out = &self.out;
        self.verifier.verify(&known, || out.check().is_err());
        for waiting in waiting {
            self.out.check()?;
            match waiting {
                Waiting::Entry(entry) => self.entry(entry)?,
                Waiting::File(entry, content) => self.content(entry, &content)?,
                Waiting::Lost(lost) => self.out.put(Part::Lost(lost), 0)?,
            }
        }
        // What this thread does next may take long, and need no buffer.
        self.cutter.rest();
        Ok(())
    }

    fn entry(&mut self, entry: TreeEntry) -> Result<(), Status> {
        self.sent.entries += 1;
        self.out.entry(entry)
    }

    fn content(&mut self, mut entry: TreeEntry, content: &Content) -> Result<(), Status> {
        let Content { file, stat, runs, known } = content;
        let out = &mut self.out;
        let cut = self.cutter.cut(file, runs, known, |hash, data| out.chunk(hash, data).map_err(Fault::Status));
        entry.extents = cut.map_err(|fault| match fault {
            Fault::Status(status) => status,
            Fault::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => changed(&entry.path),
            Fault::Io(error) => failed("save", &entry.path)(error),
        })?;
        unchanged(stat, &fstat(file).map_err(failed("save", &entry.path))?, &entry.path)?;
        self.sent.bytes += runs.iter().map(|run| run.end - run.start).sum::<u64>();
        self.entry(entry)
    }
}

enum Fault {
    Status(Status),
    Io(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Opens a root to look into, whatever its mode.
fn open_root(root: &Path) -> io::Result<(File, Option<Opened>)> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let folder = open(root, flags | OFlag::O_PATH, Mode::empty())?;
    let opened = Opened::open_folder_up(&folder, READ_AND_ENTER)?;
    Ok((openat(&folder, ".", flags, Mode::empty())?.into(), opened))
}

/// Opens a file to read it, whatever its mode.
fn open_file(walk: &Walk, stat: &FileStat) -> io::Result<File> {
    let _opened = Opened::open_up(walk.folder()?, walk.name(), stat, READ)?;
    walk.open()
}

/// Refuses what was written to between two looks. What was done to its mode may have been us.
fn unchanged(before: &FileStat, after: &FileStat, path: &[u8]) -> Result<(), Status> {
    let marks = |stat: &FileStat| (stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    if marks(before) == marks(after) { Ok(()) } else { Err(changed(path)) }
}

fn changed(path: &[u8]) -> Status {
    Status::aborted(format!("{} changed while it was saved", shown(path)))
}
