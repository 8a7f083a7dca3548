//! Unpacks archives. Each file appears whole; what was unpacked before an error stays, and the error says how much.

use std::{
    cell::{Cell, RefCell},
    ffi::OsStr,
    fs::{File, Permissions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::PermissionsExt},
    },
    path::{Path, PathBuf},
};

use bytes::{Buf, Bytes};
use cloud_sandbox_proto::v1::UploadArchiveResponse;
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, renameat},
    sys::{
        stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat},
        time::TimeSpec,
    },
    unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat},
};
use tar::{Archive, Entry, EntryType};
use tokio::sync::mpsc::Receiver;
use tonic::Status;

use super::entry::{Root, inside};
use crate::files::{
    draft::{Parents, open_folder, unused_name},
    failed,
    times::{Times, set_times},
};

/// What may lie between the content of two entries, in bytes: headers, long names, maps of sparse files. The library
/// holds all of it.
const MAX_HEADERS: u64 = 1024 * 1024;
const BUFFER: usize = 128 * 1024;
/// How many folders get their own mode after all is unpacked, when it would have been in the way.
const MAX_LATER: usize = 65_536;
/// What an owner needs to unpack into a folder.
const WRITE_AND_ENTER: u32 = 0o300;

/// Unpacks what comes into the folder at `path`, which is made when it is missing.
pub(super) fn unpack(path: &Path, pieces: Receiver<Option<Bytes>>) -> Result<UploadArchiveResponse, Status> {
    let incoming = Incoming::new(pieces);
    let refused = failed("unpack into", path);
    let mut parents = Parents::create(path).map_err(&refused)?;
    let root = Root::new(open_folder(path).map_err(&refused)?);
    let mut unpacking =
        Unpacking { path, root, later: Vec::new(), buffer: vec![0; BUFFER], done: UploadArchiveResponse::default() };
    let result = unpacking.run(&incoming);
    unpacking.set_modes();
    if unpacking.done.entries > 0 || result.is_ok() {
        parents.keep();
    }
    let done = unpacking.done;
    result
        .map(|()| done)
        .map_err(|status| Status::new(status.code(), format!("{}; {}", status.message(), so_far(done.entries))))
}

fn so_far(entries: u64) -> String {
    match entries {
        1 => "1 entry was unpacked".into(),
        entries => format!("{entries} entries were unpacked"),
    }
}

/// The error of an upload whose archive is complete, but not its stream.
pub(super) fn uncommitted(entries: u64) -> Status {
    Status::invalid_argument(format!("the upload ended without commit; {}", so_far(entries)))
}

struct Unpacking<'a> {
    path: &'a Path,
    root: Root,
    later: Vec<(PathBuf, u32)>,
    buffer: Vec<u8>,
    done: UploadArchiveResponse,
}

impl Unpacking<'_> {
    fn run(&mut self, incoming: &Incoming) -> Result<(), Status> {
        let damaged = |error| incoming.fault(&error);
        let mut archive = Archive::new(incoming);
        let mut entries = archive.entries().map_err(damaged)?;
        loop {
            incoming.allowance.set(MAX_HEADERS);
            let Some(entry) = entries.next() else { break };
            let mut entry = entry.map_err(damaged)?;
            incoming.allowance.set(u64::MAX);
            if self.entry(&mut entry, incoming)? {
                self.done.entries += 1;
            }
            // What belongs to an entry that has no content.
            io::copy(&mut entry, &mut io::sink()).map_err(damaged)?;
        }
        // The end of an archive is said by zeros, not by the end of the stream.
        if incoming.ended.get() { Err(incoming.fault(&io::ErrorKind::UnexpectedEof.into())) } else { Ok(()) }
    }

    /// Unpacks one entry; false when it is none.
    fn entry(&mut self, entry: &mut Entry<'_, &Incoming>, incoming: &Incoming) -> Result<bool, Status> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(false);
        }
        let name = entry.path_bytes().into_owned();
        let shown_name = String::from_utf8_lossy(&name).chars().take(1000).collect::<String>();
        let refuse = |reason: &str| Status::invalid_argument(format!("entry {shown_name} {reason}"));
        let path = inside(&name).ok_or_else(|| refuse("leads out of the folder"))?;
        if is_sparse_pax(entry).map_err(|error| incoming.fault(&error))? {
            return Err(refuse("is a sparse file in a form that is not understood"));
        }
        let mode = entry.header().mode().map_err(|error| incoming.fault(&error))? & 0o777;
        let full = self.path.join(&path);
        let refused = |error: Errno| match error {
            Errno::EXDEV => refuse("leads out of the folder through a link"),
            error => failed("unpack", &full)(error.into()),
        };
        match kind {
            EntryType::Directory => self.folder(&path, mode).map_err(refused)?,
            EntryType::Regular if name.ends_with(b"/") => self.folder(&path, mode).map_err(refused)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                return self.file(&path, mode, entry, incoming, refused).map(|()| true);
            }
            EntryType::Symlink | EntryType::Link => {
                let target = entry.link_name_bytes().map(|target| target.into_owned()).unwrap_or_default();
                if target.is_empty() || target.contains(&0) {
                    return Err(refuse("is a link to nothing"));
                }
                if kind == EntryType::Symlink {
                    self.symlink(&path, &target).map_err(refused)?;
                } else {
                    let target = inside(&target).ok_or_else(|| refuse("is a link that leads out of the folder"))?;
                    self.hard_link(&path, &target).map_err(refused)?;
                }
            }
            _ => return Err(refuse("is neither a file, a folder nor a link")),
        }
        Ok(true)
    }

    fn folder(&mut self, path: &Path, mode: u32) -> nix::Result<()> {
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let folder = self.root.make(path)?;
        let usable = mode | WRITE_AND_ENTER;
        if usable != mode && self.later.len() < MAX_LATER {
            self.later.push((path.to_owned(), mode));
        }
        // The folder itself, however its name leads there.
        fchmodat(&folder, ".", Mode::from_bits_truncate(usable), FchmodatFlags::FollowSymlink)
    }

    fn set_modes(&mut self) {
        for (path, mode) in self.later.drain(..).rev() {
            if let Ok(folder) = self.root.open(&path, OFlag::O_PATH | OFlag::O_DIRECTORY) {
                // It has a mode that lets its owner in, which does.
                let _ = fchmodat(&folder, ".", Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink);
            }
        }
    }

    fn file(
        &mut self,
        path: &Path,
        mode: u32,
        entry: &mut Entry<'_, &Incoming>,
        incoming: &Incoming,
        refused: impl Fn(Errno) -> Status,
    ) -> Result<(), Status> {
        let (parent, name) = self.root.parent(path).map_err(&refused)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let temporary = Temporary { folder: parent, name: unused_name() };
        let mut file =
            File::from(openat(parent, &temporary.name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(&refused)?);
        let refused = |error: io::Error| match error.raw_os_error() {
            Some(number) => refused(Errno::from_raw(number)),
            None => incoming.fault(&error),
        };
        let mut size = 0;
        loop {
            let read = entry.read(&mut self.buffer).map_err(|error| incoming.fault(&error))?;
            if read == 0 {
                break;
            }
            let data = &self.buffer[..read];
            let is_hole = entry.header().entry_type() == EntryType::GNUSparse && data.iter().all(|byte| *byte == 0);
            let written =
                if is_hole { file.seek(SeekFrom::Current(read as i64)).map(drop) } else { file.write_all(data) };
            written.map_err(&refused)?;
            size += read as u64;
        }
        file.set_len(size).map_err(&refused)?;
        if size != entry.size() {
            return Err(incoming.fault(&io::ErrorKind::UnexpectedEof.into()));
        }
        let modified = entry.header().mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0);
        let modified = TimeSpec::new(modified, 0);
        set_times(&file, &Times { accessed: modified, modified }).map_err(&refused)?;
        file.set_permissions(Permissions::from_mode(mode)).map_err(&refused)?;
        renameat(parent, &temporary.name, parent, name.as_os_str()).map_err(|error| refused(error.into()))?;
        self.done.bytes += size;
        Ok(())
    }

    fn symlink(&mut self, path: &Path, target: &[u8]) -> nix::Result<()> {
        let (parent, name) = self.root.parent(path)?;
        let temporary = Temporary { folder: parent, name: unused_name() };
        symlinkat(OsStr::from_bytes(target), parent, &temporary.name)?;
        renameat(parent, &temporary.name, parent, name.as_os_str())
    }

    fn hard_link(&mut self, path: &Path, target: &Path) -> nix::Result<()> {
        let (Some(folder), Some(target)) = (target.parent(), target.file_name()) else { return Err(Errno::EISDIR) };
        let folder = self.root.open(folder, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let linked = openat(&folder, target, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
        if fstat(&linked)?.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
            return Err(Errno::EPERM);
        }
        let (parent, name) = self.root.parent(path)?;
        let temporary = Temporary { folder: parent, name: unused_name() };
        linkat(&folder, target, parent, &temporary.name, AtFlags::empty())?;
        renameat(parent, &temporary.name, parent, name.as_os_str())
    }
}

/// GNU's newer forms put the map of a sparse file into the content, and its name elsewhere.
fn is_sparse_pax(entry: &mut Entry<'_, &Incoming>) -> io::Result<bool> {
    let Some(records) = entry.pax_extensions()? else { return Ok(false) };
    for record in records {
        if record?.key_bytes().starts_with(b"GNU.sparse.") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What has not got its name yet. Removed when that fails, and when it had that name before: then a rename does nothing.
struct Temporary<'a> {
    folder: &'a OwnedFd,
    name: PathBuf,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        let _ = unlinkat(self.folder, &self.name, UnlinkatFlags::NoRemoveDir);
    }
}

/// The archive's bytes as they come.
struct Incoming {
    pieces: RefCell<Receiver<Option<Bytes>>>,
    piece: RefCell<Bytes>,
    /// how much may be read before content must come
    allowance: Cell<u64>,
    /// all has been read, up to the commit
    ended: Cell<bool>,
    /// what the archive begins with
    beginning: RefCell<Vec<u8>>,
}

impl Incoming {
    fn new(pieces: Receiver<Option<Bytes>>) -> Self {
        Self {
            pieces: RefCell::new(pieces),
            piece: RefCell::default(),
            allowance: Cell::new(MAX_HEADERS),
            ended: Cell::new(false),
            beginning: RefCell::default(),
        }
    }

    /// Waits for a piece; false at the end.
    fn fill(&self) -> io::Result<bool> {
        while self.piece.borrow().is_empty() {
            if self.ended.get() {
                return Ok(false);
            }
            match self.pieces.borrow_mut().blocking_recv() {
                Some(Some(piece)) => *self.piece.borrow_mut() = piece,
                Some(None) => self.ended.set(true),
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        Ok(true)
    }

    /// What an error while reading the archive is to the caller.
    fn fault(&self, error: &io::Error) -> Status {
        let compressed = match self.beginning.borrow().as_slice() {
            [0x1f, 0x8b, ..] => Some("gzip"),
            [b'B', b'Z', b'h', ..] => Some("bzip2"),
            [0xfd, b'7', b'z', b'X', ..] => Some("xz"),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("zstd"),
            _ => None,
        };
        Status::invalid_argument(match (compressed, error.kind()) {
            (Some(format), _) => format!("the archive is compressed with {format}; send a plain tar archive"),
            (None, io::ErrorKind::ConnectionAborted) => "the upload ended without commit".into(),
            (None, io::ErrorKind::UnexpectedEof) => "the archive is cut off".into(),
            (None, _) if self.ended.get() => "the archive is cut off".into(),
            (None, _) => format!("the archive is damaged: {error:.200}"),
        })
    }
}

impl Read for &Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.fill()? {
            return Ok(0);
        }
        let mut piece = self.piece.borrow_mut();
        let length = buffer.len().min(piece.len()).min(usize::try_from(self.allowance.get()).unwrap_or(usize::MAX));
        if length == 0 && !buffer.is_empty() {
            return Err(io::Error::other("a header is too long"));
        }
        buffer[..length].copy_from_slice(&piece[..length]);
        let mut beginning = self.beginning.borrow_mut();
        let missing = 4_usize.saturating_sub(beginning.len()).min(length);
        beginning.extend_from_slice(&buffer[..missing]);
        piece.advance(length);
        self.allowance.set(self.allowance.get().saturating_sub(length as u64));
        Ok(length)
    }
}
