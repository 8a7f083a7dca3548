//! Copies a folder of the host as the root file system of an image, so that a version of a template does not change when
//! the folder does. Links are copied as links, hard links stay such, and what is mounted in the folder is left out: a
//! tree that was set up with debootstrap may still have `/proc` there.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{File, FileTimes, Permissions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{MetadataExt, PermissionsExt},
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::stat::{Mode, fstat},
    unistd::{linkat, symlinkat},
};
use sha2::{Digest, Sha256};

use crate::{
    ImageError,
    error::{writing, writing_at},
    job::Job,
    limits::Budget,
    root::{self, FOLDER, Kind, Root},
    text::hex,
};

const BUFFER: usize = 256 * 1024;

/// Copies all of `from`; returns how much it was, and a digest of names, modes and contents.
pub(crate) fn copy(from: &Path, root: &Root, job: &Job) -> Result<(Budget, String), ImageError> {
    let unreadable = |source: io::Error| ImageError::Folder { path: from.to_owned(), source };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let source = nix::fcntl::open(from, flags, Mode::empty()).map_err(|errno| unreadable(errno.into()))?;
    let device = fstat(&source).map_err(|errno| unreadable(errno.into()))?.st_dev;
    let store = std::fs::metadata(&job.store).map_err(writing(&job.store, "look"))?;
    let mut copying = Copying {
        from,
        job,
        root,
        device,
        store: (store.dev(), store.ino()),
        path: PathBuf::new(),
        linked: HashMap::new(),
        budget: Budget::new(job.limits),
        digest: Sha256::new(),
        buffer: vec![0; BUFFER],
    };
    copying.folder(&source, root.folder(), 0)?;
    let digest = format!("sha256:{}", hex(&copying.digest.finalize()));
    Ok((copying.budget, digest))
}

struct Copying<'a> {
    from: &'a Path,
    job: &'a Job,
    root: &'a Root,
    /// the file system that is copied
    device: u64,
    /// the store's own folder, which is left out
    store: (u64, u64),
    /// of the entry, from the folder
    path: PathBuf,
    /// where files with several names have been copied to
    linked: HashMap<u64, PathBuf>,
    budget: Budget,
    digest: Sha256,
    buffer: Vec<u8>,
}

impl Copying<'_> {
    fn folder(&mut self, source: &OwnedFd, target: &OwnedFd, depth: usize) -> Result<(), ImageError> {
        if depth > root::DEEPEST {
            return Err(self.unreadable(Errno::ENAMETOOLONG.into()));
        }
        for name in root::names(source).map_err(|errno| self.unreadable(errno.into()))? {
            self.job.go_on()?;
            self.path.push(&name);
            self.entry(source, target, &name, depth)?;
            self.path.pop();
        }
        Ok(())
    }

    fn entry(&mut self, source: &OwnedFd, target: &OwnedFd, name: &OsStr, depth: usize) -> Result<(), ImageError> {
        let stat = root::stat(source.as_fd(), name).map_err(|errno| self.unreadable(errno.into()))?;
        if stat.st_dev != self.device || (stat.st_dev, stat.st_ino) == self.store {
            return Ok(());
        }
        self.budget.spend(&self.job.what, 1, 0)?;
        match root::kind(&stat) {
            Kind::Folder => {
                self.note(b'd', &[]);
                let below = root::open_folder(source.as_fd(), name).map_err(|errno| self.unreadable(errno.into()))?;
                let made = root::make_folder(target.as_fd(), name, FOLDER).map_err(self.failed())?;
                self.folder(&below, &made, depth + 1)
            }
            Kind::Link => {
                let link = readlinkat(source, name).map_err(|errno| self.unreadable(errno.into()))?;
                self.note(b'l', link.as_bytes());
                symlinkat(link.as_os_str(), target, name).map_err(self.failed())
            }
            Kind::File => {
                if stat.st_nlink > 1 && self.link(stat.st_ino, target, name)? {
                    return Ok(());
                }
                self.file(source, target, name)?;
                if stat.st_nlink > 1 {
                    self.linked.insert(stat.st_ino, self.path.clone());
                }
                Ok(())
            }
            Kind::Other => Ok(()),
        }
    }

    /// Links a file to where it was copied to under another name; false when it was not.
    fn link(&mut self, number: u64, target: &OwnedFd, name: &OsStr) -> Result<bool, ImageError> {
        let Some(first) = self.linked.get(&number).cloned() else { return Ok(false) };
        let (Some(folder), Some(first_name)) = (first.parent(), first.file_name()) else { return Ok(false) };
        self.note(b'h', first.as_os_str().as_bytes());
        let failed = self.failed();
        let folder = self.root.resolve(folder, false).map_err(&failed)?;
        linkat(&folder, first_name, target, name, AtFlags::empty()).map_err(failed)?;
        Ok(true)
    }

    fn file(&mut self, source: &OwnedFd, target: &OwnedFd, name: &OsStr) -> Result<(), ImageError> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let opened = openat(source, name, flags, Mode::empty());
        let mut original = File::from(opened.map_err(|errno| self.unreadable(errno.into()))?);
        let told = original.metadata().map_err(|error| self.unreadable(error))?;
        let mode = root::file_mode(told.mode());
        self.note(b'f', &mode.to_le_bytes());
        let failed = writing(&self.job.store, "copy");
        let mut copy = root::make_file(target.as_fd(), name).map_err(self.failed())?;
        let mut size = 0_u64;
        loop {
            self.job.go_on()?;
            let read = original.read(&mut self.buffer).map_err(|error| self.unreadable(error))?;
            if read == 0 {
                break;
            }
            self.budget.spend(&self.job.what, 0, read as u64)?;
            self.digest.update(&self.buffer[..read]);
            copy.write_all(&self.buffer[..read]).map_err(&failed)?;
            self.job.progress.advance(read as u64);
            size += read as u64;
        }
        // so that no content can pass for what follows it
        self.digest.update(size.to_le_bytes());
        if let Ok(modified) = told.modified() {
            // a time that this file system cannot have is no reason to refuse the file
            let _ = copy.set_times(FileTimes::new().set_accessed(modified).set_modified(modified));
        }
        copy.set_permissions(Permissions::from_mode(mode)).map_err(failed)
    }

    /// Adds an entry to the digest.
    fn note(&mut self, kind: u8, about: &[u8]) {
        let path = self.path.as_os_str().as_bytes();
        for part in [&[kind][..], path, about] {
            self.digest.update((part.len() as u64).to_le_bytes());
            self.digest.update(part);
        }
    }

    fn unreadable(&self, source: io::Error) -> ImageError {
        ImageError::Folder { path: self.from.join(&self.path), source }
    }

    fn failed(&self) -> impl Fn(Errno) -> ImageError + use<> {
        writing_at(&self.job.store, "copy")
    }
}
