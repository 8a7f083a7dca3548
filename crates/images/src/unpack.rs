//! Unpacks an archive into a new folder as the files of a sandbox: read-only for whoever uses them, and owned by root.
//!
//! Archives are hostile. No entry gets out of the folder (see [`crate::root`]); devices, sockets and pipes are left out,
//! and so are owners, extended attributes and all rights beyond reading and executing; sizes and counts are bounded.

use std::{
    ffi::OsStr,
    fs::{File, FileTimes, Permissions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::BorrowedFd,
        unix::{ffi::OsStrExt, fs::PermissionsExt},
    },
    path::{Component, Path, PathBuf},
    time::{Duration, SystemTime},
};

use nix::{
    errno::Errno,
    fcntl::AtFlags,
    unistd::{linkat, symlinkat},
};
use tar::{Archive, Entry, EntryType};

use crate::{
    ImageError,
    archive::Incoming,
    error::{writing, writing_at},
    job::Job,
    limits::Budget,
    root::{self, Kind, Root},
};

const BUFFER: usize = 128 * 1024;
/// How much of an entry's name an error shows, in characters.
const SHOWN: usize = 200;
/// What may follow an archive's end: tar pads to 10 KiB, others to a megabyte.
const PADDING: u64 = 16 << 20;

/// Where an archive ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The archive has to say so itself.
    Said,
    /// It is known to be complete: its digest was right. Some tools leave the end out.
    Known,
}

/// Unpacks what comes; returns how much it was.
pub(crate) fn unpack(
    reader: impl Read,
    root: &mut Root,
    job: &Job,
    budget: Budget,
    end: End,
) -> Result<Budget, ImageError> {
    let incoming = Incoming::new(reader, job)?;
    let mut unpacking = Unpacking { root, incoming: &incoming, job, budget, buffer: vec![0; BUFFER] };
    unpacking.run(end)?;
    incoming.finish(PADDING)?;
    Ok(unpacking.budget)
}

struct Unpacking<'a, 'r> {
    root: &'a mut Root,
    incoming: &'a Incoming<'r>,
    job: &'a Job,
    budget: Budget,
    buffer: Vec<u8>,
}

type Item<'a, 'r> = Entry<'a, &'a Incoming<'r>>;

impl<'r> Unpacking<'_, 'r> {
    fn run(&mut self, end: End) -> Result<(), ImageError> {
        let damaged = |error| self.incoming.fault(&error);
        let incoming = self.incoming;
        let mut archive = Archive::new(incoming);
        let mut entries = archive.entries().map_err(damaged)?;
        loop {
            self.job.go_on()?;
            incoming.expect_header();
            let Some(entry) = entries.next() else { break };
            let mut entry = entry.map_err(|error| incoming.fault(&error))?;
            // one more, so that a file that is too large is found to be just that
            incoming.expect_content(self.budget.bytes_left().saturating_add(1));
            self.budget.spend(&self.job.what, 1, 0)?;
            self.entry(&mut entry)?;
            self.budget.spend(&self.job.what, self.root.take_made(), 0)?;
            self.skip(&mut entry)?;
        }
        if incoming.is_cut_off() && (end == End::Said || self.budget.entries == 0) {
            let empty = io::Error::other("it is empty");
            return Err(match self.budget.entries {
                0 => incoming.fault(&empty),
                _ => ImageError::Truncated { what: self.job.what.clone() },
            });
        }
        Ok(())
    }

    fn entry(&mut self, entry: &mut Item<'_, 'r>) -> Result<(), ImageError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let name = entry.path_bytes().into_owned();
        let job = self.job;
        let refuse = |reason: &str| {
            let entry = String::from_utf8_lossy(&name).chars().take(SHOWN).collect::<String>();
            ImageError::Entry { what: job.what.clone(), entry: format!("{entry:?}"), reason: reason.to_owned() }
        };
        let path = inside(&name).ok_or_else(|| refuse("leads out of the archive"))?;
        let refused = |errno: Errno| match errno {
            Errno::ENAMETOOLONG => refuse("has a name that is too long, or folders that are nested too deep"),
            Errno::ELOOP => refuse("leads through too many links"),
            Errno::ENOTDIR => refuse("is in a folder that is a file"),
            Errno::EINVAL | Errno::EILSEQ => refuse("has a name that this file system cannot have"),
            errno => writing_at(&job.store, "unpack")(errno),
        };
        if path.as_os_str().is_empty() {
            return match kind {
                EntryType::Directory => Ok(()),
                _ => Err(refuse("has no name")),
            };
        }
        match kind {
            EntryType::Directory => self.folder(&path).map_err(refused),
            EntryType::Regular if name.ends_with(b"/") => self.folder(&path).map_err(refused),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                if is_sparse_pax(entry).map_err(|error| self.incoming.fault(&error))? {
                    return Err(refuse("is a sparse file in a form that is not understood; pack it without --sparse"));
                }
                let file = self.file(&path).map_err(refused)?;
                self.content(entry, file)
            }
            EntryType::Symlink | EntryType::Link => {
                let target = entry.link_name_bytes().map(|target| target.into_owned()).unwrap_or_default();
                if target.is_empty() || target.contains(&0) {
                    return Err(refuse("is a link to nothing"));
                }
                if kind == EntryType::Symlink {
                    return self.symlink(&path, &target).map_err(refused);
                }
                let target = inside(&target).ok_or_else(|| refuse("is a link that leads out of the archive"))?;
                match self.hard_link(&path, &target) {
                    Err(Errno::ENOENT) => Err(refuse("is a hard link to what is not there")),
                    Err(Errno::EPERM | Errno::EISDIR) => Err(refuse("is a hard link to what is no file")),
                    linked => linked.map_err(refused),
                }
            }
            // nothing that a sandbox could use, and on the host it would be one of the host's
            EntryType::Char | EntryType::Block | EntryType::Fifo => Ok(()),
            _ => Err(refuse("is of a kind that is not understood")),
        }
    }

    fn folder(&mut self, path: &Path) -> nix::Result<()> {
        let (parent, name) = self.root.parent(path)?;
        root::ensure_folder(parent, name, root::FOLDER)?;
        self.root.forget();
        Ok(())
    }

    fn file(&mut self, path: &Path) -> nix::Result<File> {
        let (parent, name) = self.root.parent(path)?;
        let are_paths_changed = clear(parent, name)?;
        let file = root::make_file(parent, name)?;
        if are_paths_changed {
            self.root.forget();
        }
        Ok(file)
    }

    fn content(&mut self, entry: &mut Item<'_, 'r>, mut file: File) -> Result<(), ImageError> {
        let failed = writing(&self.job.store, "unpack");
        let header = entry.header();
        let mode = header.mode().map_err(|error| self.incoming.fault(&error))?;
        let modified =
            header.mtime().ok().and_then(|time| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(time)));
        let is_sparse = header.entry_type() == EntryType::GNUSparse;
        let mut size = 0;
        loop {
            let read = entry.read(&mut self.buffer).map_err(|error| self.incoming.fault(&error))?;
            if read == 0 {
                break;
            }
            self.budget.spend(&self.job.what, 0, read as u64)?;
            let data = &self.buffer[..read];
            let is_hole = is_sparse && data.iter().all(|byte| *byte == 0);
            let written =
                if is_hole { file.seek(SeekFrom::Current(read as i64)).map(drop) } else { file.write_all(data) };
            written.map_err(&failed)?;
            size += read as u64;
        }
        if size != entry.size() {
            return Err(self.incoming.fault(&io::ErrorKind::UnexpectedEof.into()));
        }
        if is_sparse {
            file.set_len(size).map_err(&failed)?;
        }
        if let Some(modified) = modified {
            // a time that the file system cannot have is no reason to refuse the file
            let _ = file.set_times(FileTimes::new().set_accessed(modified).set_modified(modified));
        }
        file.set_permissions(Permissions::from_mode(root::file_mode(mode))).map_err(&failed)
    }

    /// Reads what belongs to an entry that has no content.
    fn skip(&mut self, entry: &mut Item<'_, 'r>) -> Result<(), ImageError> {
        loop {
            match entry.read(&mut self.buffer).map_err(|error| self.incoming.fault(&error))? {
                0 => return Ok(()),
                read => self.budget.spend_on_nothing(&self.job.what, 0, read as u64)?,
            }
        }
    }

    fn symlink(&mut self, path: &Path, target: &[u8]) -> nix::Result<()> {
        let (parent, name) = self.root.parent(path)?;
        clear(parent, name)?;
        symlinkat(OsStr::from_bytes(target), parent, name)?;
        self.root.forget();
        Ok(())
    }

    fn hard_link(&mut self, path: &Path, target: &Path) -> nix::Result<()> {
        let (Some(folder), Some(target_name)) = (target.parent(), target.file_name()) else {
            return Err(Errno::EISDIR);
        };
        let folder = self.root.resolve(folder, false)?;
        let wanted = root::stat(std::os::fd::AsFd::as_fd(&folder), target_name)?;
        if !matches!(root::kind(&wanted), Kind::File | Kind::Link) {
            return Err(Errno::EPERM);
        }
        let (parent, name) = self.root.parent(path)?;
        // a link to itself stays what it is
        if let Ok(there) = root::stat(parent, name)
            && (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino)
        {
            return Ok(());
        }
        let are_paths_changed = clear(parent, name)?;
        linkat(&folder, target_name, parent, name, AtFlags::empty())?;
        if are_paths_changed || root::kind(&wanted) == Kind::Link {
            self.root.forget();
        }
        Ok(())
    }
}

/// Makes room for an entry: what an earlier one of the same name was goes. Says whether paths may lead elsewhere then. The
/// entry has to be made in the same folder before: the way there may lead through what was removed, and would be made anew.
fn clear(parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<bool> {
    let was = root::kind_at(parent, name)?;
    if was.is_some() {
        root::remove(parent, name)?;
    }
    Ok(matches!(was, Some(Kind::Folder | Kind::Link)))
}

/// The path of an entry within the folder; none when it leads out of it. A slash at its beginning is that of the image's
/// root, which some tools write.
fn inside(name: &[u8]) -> Option<PathBuf> {
    if name.contains(&0) {
        return None;
    }
    let mut path = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(name)).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

/// GNU's newer forms put the map of a sparse file into the content, and its name elsewhere.
fn is_sparse_pax(entry: &mut Item<'_, '_>) -> io::Result<bool> {
    let Some(records) = entry.pax_extensions()? else { return Ok(false) };
    for record in records {
        if record?.key_bytes().starts_with(b"GNU.sparse.") {
            return Ok(true);
        }
    }
    Ok(false)
}
