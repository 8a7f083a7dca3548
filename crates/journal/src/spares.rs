//! Empty files at hand, so that a log begins with a rename instead of a new inode.
//!
//! A new file costs ext4 some hundred microseconds where many were deleted within the last minute, which is what a
//! journal does; a rename costs twenty. So files are emptied and kept instead of deleted, and a thread makes new ones
//! ahead of need.
//!
//! Invariant: a file comes here only when nobody has it open, so nobody reads in it what somebody else writes.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use crate::lock;

/// The folder's name beside those of the sandboxes.
pub(crate) const FOLDER: &str = "spare";
/// Fewer than this, and the thread makes more.
const LOW: usize = READY / 3;
/// So many are made ahead; fewer for tests, which open many journals.
const READY: usize = if cfg!(test) { 12 } else { 96 };
/// More are not kept: what a burst left behind.
const MOST: usize = 1024;
/// So much must be written to know that a disk takes anything: more than what is kept with an inode.
const CHECK: usize = 64 << 10;

#[derive(Debug)]
struct Pool {
    folder: PathBuf,
    free: Mutex<Vec<u64>>,
    next: AtomicU64,
    stop: AtomicBool,
}

/// The pool and the thread that fills it. The thread ends with it; when the thread cannot go on, files are made when
/// they are needed.
#[derive(Debug)]
pub(crate) struct Spares {
    pool: Arc<Pool>,
    wanted: Option<mpsc::SyncSender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Spares {
    /// Takes up what an earlier process had.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let folder = dir.join(FOLDER);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let mut free = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let number = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
            let metadata = entry.metadata()?;
            match number.filter(|_| metadata.is_file() && metadata.len() == 0) {
                Some(number) => free.push(number),
                // best effort: it is only not used
                None => drop(fs::remove_file(entry.path())),
            }
        }
        let next = AtomicU64::new(free.iter().max().map_or(0, |last| last + 1));
        let pool = Arc::new(Pool { folder, free: Mutex::new(free), next, stop: AtomicBool::new(false) });
        let (wanted, asked) = mpsc::sync_channel(1);
        let filling = Arc::clone(&pool);
        let keeper = std::thread::Builder::new()
            .name("journal-spares".into())
            .spawn(move || while asked.recv().is_ok() && filling.fill() {})?;
        Ok(Self { pool, wanted: Some(wanted), keeper: Some(keeper) })
    }

    /// Whether files can be made and written here.
    pub fn check(&self) -> io::Result<()> {
        // not a number: one that is left by a crash is not taken for a spare
        let path = self.pool.folder.join("check");
        let written = fs::write(&path, [0; CHECK]);
        let removed = fs::remove_file(&path);
        written.and(removed)
    }

    /// An empty file at `path`, open for appending. There must be none yet.
    pub fn take(&self, path: &Path) -> io::Result<File> {
        let (number, left) = {
            let mut free = lock(&self.pool.free);
            (free.pop(), free.len())
        };
        if left < LOW
            && let Some(wanted) = &self.wanted
        {
            // full: it is on its way
            let _ = wanted.try_send(());
        }
        if fs::symlink_metadata(path).is_ok() {
            lock(&self.pool.free).extend(number);
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let Some(number) = number else { return create(path) };
        let spare = self.pool.path(number);
        let Ok(file) = OpenOptions::new().append(true).open(&spare) else { return create(path) };
        match fs::rename(&spare, path) {
            Ok(()) => Ok(file),
            Err(error) => {
                lock(&self.pool.free).push(number);
                Err(error)
            }
        }
    }

    /// Empties a file that nobody has open, and keeps it.
    pub fn give(&self, path: &Path) -> io::Result<()> {
        if lock(&self.pool.free).len() >= MOST || self.keep(path).is_err() {
            return fs::remove_file(path);
        }
        Ok(())
    }

    fn keep(&self, path: &Path) -> io::Result<()> {
        OpenOptions::new().write(true).truncate(true).open(path)?;
        let number = self.pool.number();
        fs::rename(path, self.pool.path(number))?;
        lock(&self.pool.free).push(number);
        Ok(())
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        self.pool.stop.store(true, Ordering::Relaxed);
        self.wanted = None;
        if let Some(keeper) = self.keeper.take() {
            // it has nothing to say, and panics nowhere
            let _ = keeper.join();
        }
    }
}

impl Pool {
    /// Whether to go on.
    fn fill(&self) -> bool {
        while lock(&self.free).len() < READY {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            let number = self.number();
            if let Err(error) = create(&self.path(number)) {
                tracing::debug!(%error, "failed to make a spare file for the journal");
                break;
            }
            lock(&self.free).push(number);
        }
        true
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(number.to_string())
    }
}

/// A new file to append to, for its owner only.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn given_file_is_taken_again_empty() {
        let dir = tempfile::TempDir::new().unwrap();
        let spares = Spares::open(dir.path()).unwrap();
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        spares.take(&first).unwrap().write_all(b"secret").unwrap();
        assert_eq!(spares.take(&first).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(spares.take(&dir.path().join("no/folder")).unwrap_err().kind(), io::ErrorKind::NotFound);
        spares.give(&first).unwrap();
        assert!(!first.exists());
        let mut file = spares.take(&second).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        file.write_all(b"x").unwrap();
        assert_eq!(fs::read(second).unwrap(), b"x");
    }

    #[test]
    fn spares_are_made_ahead_and_taken_up_by_the_next_process() {
        let dir = tempfile::TempDir::new().unwrap();
        let spares = Spares::open(dir.path()).unwrap();
        spares.take(&dir.path().join("file")).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while lock(&spares.pool.free).len() < READY {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        drop(spares);
        fs::write(dir.path().join("spare/7"), b"not empty").unwrap();
        fs::write(dir.path().join("spare/notes"), b"").unwrap();
        let spares = Spares::open(dir.path()).unwrap();
        assert!(lock(&spares.pool.free).len() >= READY - 2);
        assert!(!dir.path().join("spare/7").exists() && !dir.path().join("spare/notes").exists());
    }
}
