//! The journal of one node: which logs there are, and how much they take together.
//!
//! Lock order: a log's writer, then the registry, then a log's index. A second log's writer is only locked when that log
//! has ended or its sandbox is removed, when nobody waits for anything under it.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use cloud_sandbox_model::{ExecutionId, SandboxId};
use tokio::sync::Notify;

use crate::{
    frame::{self, FRAME_HEADER, MAX_DATA, SEGMENT_HEADER, Tag},
    index::{Index, Segment},
    lock,
    log::Log,
    place::Place,
    recovery::{self, Recovered},
    spares::Spares,
    writer::{self, Writer},
};

pub(crate) const LOCK_FILE: &str = "lock";
pub(crate) const SANDBOX_FILE: &str = "sandbox";
/// Smaller logs could not hold a beginning, an end and a piece between them.
const LEAST_LOG_BYTES: u64 = 64 << 10;
const MOST_SEGMENT_BYTES: u64 = 1 << 20;

/// What a journal can be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// where it is kept; made when it is not there, private to its user
    pub dir: PathBuf,
    /// how long a log is kept after its end
    pub retention: Duration,
    /// how much one log takes on disk, at least 64 KiB
    pub log_bytes: u64,
    /// how much all logs take together, but for the floors of those that run
    pub total_bytes: u64,
    /// how much of its beginning and its end a log that runs may always keep; at most a quarter of a log
    pub floor_bytes: u64,
    /// how long what a paced reader has not read is kept for him while there is no room and he reads nothing
    pub reader_patience: Duration,
}

impl Options {
    /// A log's default size: what a long build prints, many times over.
    pub const LOG_BYTES: u64 = 64 << 20;
    /// A node's default: a share of a small node's disk that can be spared.
    pub const TOTAL_BYTES: u64 = 4 << 30;
    /// How long a log is kept by default after its end: long enough to come back after lunch.
    pub const RETENTION: Duration = Duration::from_secs(2 * 60 * 60);

    /// A log's default floor: more than most executions print, and little even for thousands of them.
    pub const FLOOR_BYTES: u64 = 256 << 10;
    /// A paced reader's default: longer than connections stall without being broken.
    pub const READER_PATIENCE: Duration = Duration::from_secs(60);

    /// The defaults, in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            retention: Self::RETENTION,
            log_bytes: Self::LOG_BYTES,
            total_bytes: Self::TOTAL_BYTES,
            floor_bytes: Self::FLOOR_BYTES,
            reader_patience: Self::READER_PATIENCE,
        }
    }
}

/// How much one log takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// all of it
    pub log: u64,
    /// what it may always keep of its beginning and its end
    pub floor: u64,
}

impl Bounds {
    fn new(log: u64, floor: u64) -> Self {
        let log = log.max(LEAST_LOG_BYTES);
        Self { log, floor: floor.min(log / 4) }
    }

    pub fn segment_bytes(self) -> u64 {
        MOST_SEGMENT_BYTES.min(self.log / 16)
    }

    /// Of a log that is kept within its floor.
    pub fn small_segment_bytes(self) -> u64 {
        self.segment_bytes().min(self.floor / 4)
    }

    /// The most of a stream in one frame.
    pub fn piece(self) -> usize {
        writer::piece_of(self.segment_bytes())
    }

    /// The most data in one frame: a log must always hold a few.
    pub fn largest(self) -> usize {
        MAX_DATA.min((self.log / 8) as usize)
    }
}

/// What logs and journal share. Holds the lock file for as long as any of them is there.
#[derive(Debug)]
pub(crate) struct Ground {
    pub options: Options,
    bytes: AtomicU64,
    /// something was freed, or a log ended and can be evicted now
    pub room: Notify,
    pub spares: Spares,
    _lock: File,
    #[cfg(test)]
    pub fault: Mutex<Option<ErrorKind>>,
}

impl Ground {
    pub fn folder(&self, sandbox: SandboxId) -> PathBuf {
        self.options.dir.join(sandbox.to_string())
    }

    /// Of a log that is to take no more than `bytes`.
    pub fn bounds(&self, bytes: u64) -> Bounds {
        Bounds::new(self.options.log_bytes.min(bytes), self.options.floor_bytes)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn took(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn freed(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.room.notify_waiters();
    }

    pub fn short_of(&self, need: u64) -> bool {
        self.bytes().saturating_add(need) > self.options.total_bytes
    }

    pub fn write(&self, file: &File, parts: &[&[u8]]) -> io::Result<()> {
        #[cfg(test)]
        if let Some(kind) = *lock(&self.fault) {
            // like a disk that fills up in the middle of a frame
            let part = parts.last().map_or(&[][..], |part| &part[..part.len() / 2]);
            writer::write_parts(file, &[parts[0], part])?;
            return Err(kind.into());
        }
        writer::write_parts(file, parts)
    }
}

#[derive(Debug, Default)]
struct Sandbox {
    logs: HashMap<ExecutionId, Arc<Log>>,
    /// of an earlier process: nobody will remove it when its logs are gone
    left_over: bool,
}

#[derive(Debug, Default)]
struct Registry {
    sandboxes: HashMap<SandboxId, Sandbox>,
    /// what can be evicted, oldest first
    ended: BTreeSet<(SystemTime, SandboxId, ExecutionId)>,
    /// what was, and has not been told yet
    evicted: Vec<(SandboxId, ExecutionId)>,
}

/// A log that was taken out of the registry.
struct TakenOut {
    log: Arc<Log>,
    /// nobody will remove the sandbox's folder
    last: bool,
}

impl Registry {
    fn take(&mut self, sandbox: SandboxId, execution: ExecutionId) -> Option<TakenOut> {
        let entry = self.sandboxes.get_mut(&sandbox)?;
        let log = entry.logs.remove(&execution)?;
        let last = entry.left_over && entry.logs.is_empty();
        if last {
            self.sandboxes.remove(&sandbox);
        }
        Some(TakenOut { log, last })
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub ground: Arc<Ground>,
    registry: Mutex<Registry>,
    /// when nothing was found that could be dropped
    pub barren: Mutex<Option<Instant>>,
}

/// The journal of one node. Clones are the same journal.
#[derive(Clone, Debug)]
pub struct Journal(pub(crate) Arc<Inner>);

impl Journal {
    /// Opens the journal in a folder, and says what earlier processes left there: logs that can be read as before. Their
    /// files are repaired where a process died while it wrote. Blocks for as long as that takes.
    ///
    /// A disk that is full is made room on, as it is later.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] when another process has it open; else what the file system says, also of a folder that
    /// nothing can be written in.
    pub fn open(options: Options) -> io::Result<(Self, Vec<Recovered>)> {
        let dir = options.dir.clone();
        let unusable = |error| named("the journal cannot be kept in", &dir, &error);
        create_folder(&dir).map_err(unusable)?;
        let lock = take_lock(&dir)?;
        let spares = Spares::open(&dir).map_err(unusable)?;
        let ground = Arc::new(Ground {
            options,
            bytes: AtomicU64::new(0),
            room: Notify::new(),
            spares,
            _lock: lock,
            #[cfg(test)]
            fault: Mutex::default(),
        });
        let inner = Arc::new(Inner { ground, registry: Mutex::default(), barren: Mutex::default() });
        let recovered = recovery::recover(&inner).map_err(unusable)?;
        for sandbox in &recovered {
            inner.adopt(sandbox);
        }
        inner.making_room(|| inner.ground.spares.check()).map_err(unusable)?;
        Ok((Self(inner), recovered))
    }

    /// Notes what the node will want to know about a sandbox when it finds its logs again. Replaces what was noted.
    ///
    /// # Errors
    /// What the file system says; what was noted before is still there then.
    pub fn describe_sandbox(&self, sandbox: SandboxId, blob: &[u8]) -> io::Result<()> {
        let ground = &self.0.ground;
        let folder = ground.folder(sandbox);
        create_folder(&folder)?;
        let fresh = folder.join("sandbox.new");
        let mut file = match ground.spares.take(&fresh) {
            // half of one, from an attempt that failed
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                fs::remove_file(&fresh)?;
                ground.spares.take(&fresh)
            }
            other => other,
        }?;
        file.write_all(blob)?;
        fs::rename(fresh, folder.join(SANDBOX_FILE))
    }

    /// Begins an execution's log. `head` is what the node wants to know about it in any case: when this returns, a later
    /// process will find it. Costs a file that is at hand as a rule, and a
    /// folder for a sandbox's first.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] for an execution that has a log; [`ErrorKind::InvalidInput`] for a head over 8 MiB
    /// or an eighth of a log; else what the file system says.
    pub fn create(&self, sandbox: SandboxId, execution: ExecutionId, head: &[u8]) -> io::Result<Arc<Log>> {
        self.create_within(sandbox, execution, head, u64::MAX)
    }

    /// The same, of a log that takes no more than `bytes` of the disk, where that is less than [`Options::log_bytes`].
    pub fn create_within(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        head: &[u8],
        bytes: u64,
    ) -> io::Result<Arc<Log>> {
        let ground = &self.0.ground;
        let bounds = ground.bounds(bytes);
        if head.len() > bounds.largest() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "head of a log is too large"));
        }
        let bytes = (SEGMENT_HEADER + FRAME_HEADER + head.len()) as u64;
        while ground.short_of(bytes) && (self.0.evict_oldest() || self.0.drop_elsewhere_soon()) {}
        let path = ground.folder(sandbox).join(format!("{execution}.0"));
        let file = self.0.making_room(|| self.0.begin(&path, head))?;
        ground.took(bytes);
        let segment = Segment {
            number: 0,
            start: Place::default(),
            kept: Place::default(),
            bytes,
            pinned: true,
            lease: Arc::default(),
        };
        let log = Arc::new(Log::new(
            (sandbox, execution),
            Bytes::copy_from_slice(head),
            (Arc::clone(ground), Arc::downgrade(&self.0), bounds),
            Writer::new(file),
            Index::new([segment].into(), Place::default(), Place::default()),
        ));
        let mut registry = lock(&self.0.registry);
        let entry = registry.sandboxes.entry(sandbox).or_default();
        entry.left_over = false;
        entry.logs.insert(execution, Arc::clone(&log));
        Ok(log)
    }

    /// The log of an execution, unless it was evicted or never there.
    #[must_use]
    pub fn log(&self, sandbox: SandboxId, execution: ExecutionId) -> Option<Arc<Log>> {
        lock(&self.0.registry).sandboxes.get(&sandbox)?.logs.get(&execution).cloned()
    }

    /// Deletes one log, if there is one. One that still runs is closed without a tail, so its readers end. Costs about as
    /// much as beginning one, and more for one that printed much.
    pub fn remove(&self, sandbox: SandboxId, execution: ExecutionId) {
        let taken = {
            let mut guard = lock(&self.0.registry);
            let registry = &mut *guard;
            registry.take(sandbox, execution).inspect(|taken| {
                if let Some(at) = taken.log.ended_at() {
                    registry.ended.remove(&(at, sandbox, execution));
                }
            })
        };
        if let Some(taken) = taken {
            self.0.delete(&taken);
        }
    }

    /// Deletes everything of a sandbox. Logs that still run are closed without a tail, so readers end: finish them
    /// first. Takes a while when there is much: for a blocking thread.
    ///
    /// # Errors
    /// What the file system says; the logs are gone from the journal in any case.
    pub fn remove_sandbox(&self, sandbox: SandboxId) -> io::Result<()> {
        let logs = {
            let mut registry = lock(&self.0.registry);
            registry.ended.retain(|(_, of, _)| *of != sandbox);
            registry.sandboxes.remove(&sandbox).map(|entry| entry.logs).unwrap_or_default()
        };
        for log in logs.values() {
            log.evict();
        }
        match fs::remove_dir_all(self.0.ground.folder(sandbox)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Bytes on disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.ground.bytes()
    }
}

impl Inner {
    /// Takes up what was recovered.
    fn adopt(&self, sandbox: &Recovered) {
        let mut registry = lock(&self.registry);
        for found in &sandbox.logs {
            let ended_at = found.log.ended_at().unwrap_or(SystemTime::UNIX_EPOCH);
            registry.ended.insert((ended_at, sandbox.sandbox, found.execution));
        }
        let logs = sandbox.logs.iter().map(|found| (found.execution, Arc::clone(&found.log))).collect();
        registry.sandboxes.insert(sandbox.sandbox, Sandbox { logs, left_over: true });
    }

    /// A log can be evicted from now on.
    pub fn ended(&self, log: &Log, at: SystemTime) {
        let mut registry = lock(&self.registry);
        if registry.sandboxes.get(&log.sandbox()).is_some_and(|entry| entry.logs.contains_key(&log.execution())) {
            registry.ended.insert((at, log.sandbox(), log.execution()));
        }
    }

    /// Evicts the oldest ended log that `which` accepts. Says whether there was one.
    pub fn evict(&self, which: impl Fn(SystemTime, &Log) -> bool) -> bool {
        let taken = {
            let mut guard = lock(&self.registry);
            let registry = &mut *guard;
            let sandboxes = &registry.sandboxes;
            let found = registry.ended.iter().copied().find(|key| {
                let log = sandboxes.get(&key.1).and_then(|entry| entry.logs.get(&key.2));
                log.is_some_and(|log| which(key.0, log))
            });
            let Some(key) = found else { return false };
            registry.ended.remove(&key);
            registry.evicted.push((key.1, key.2));
            registry.take(key.1, key.2)
        };
        if let Some(taken) = taken {
            self.delete(&taken);
        }
        true
    }

    /// Deletes the files of a log that is not in the registry any more.
    fn delete(&self, taken: &TakenOut) {
        taken.log.evict();
        if !taken.last {
            return;
        }
        let folder = self.ground.folder(taken.log.sandbox());
        if let Err(error) = fs::remove_dir_all(&folder) {
            tracing::warn!(path = %folder.display(), %error, "failed to remove a journal folder");
        }
    }

    /// Does something on disk, and drops what can be dropped for as long as it is full.
    fn making_room<T>(&self, attempt: impl Fn() -> io::Result<T>) -> io::Result<T> {
        loop {
            match attempt() {
                Err(error) if writer::full(&error) && (self.evict_oldest() || self.drop_elsewhere()) => {}
                other => return other,
            }
        }
    }

    /// The first file of a log, with its head.
    fn begin(&self, path: &Path, head: &[u8]) -> io::Result<File> {
        let ground = &self.ground;
        let file = match (ground.spares.take(path), path.parent()) {
            (Err(error), Some(folder)) if error.kind() == ErrorKind::NotFound => {
                create_folder(folder)?;
                ground.spares.take(path)
            }
            (other, _) => other,
        }?;
        let start = frame::segment_header(Place::default(), Place::default());
        if let Err(error) = ground.write(&file, &[&start, &frame::header(Tag::Head, head), head]) {
            let _ = fs::remove_file(path);
            return Err(error);
        }
        Ok(file)
    }

    /// The logs that have not ended.
    pub fn running(&self) -> Vec<Arc<Log>> {
        let registry = lock(&self.registry);
        let logs = registry.sandboxes.values().flat_map(|entry| entry.logs.values());
        logs.filter(|log| !log.with_index(|index| index.closed())).cloned().collect()
    }

    pub fn take_evicted(&self) -> Vec<(SandboxId, ExecutionId)> {
        std::mem::take(&mut lock(&self.registry).evicted)
    }
}

fn take_lock(dir: &Path) -> io::Result<File> {
    let path = dir.join(LOCK_FILE);
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = opened.map_err(|error| named("the journal cannot be locked with", &path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(io::Error::new(
            ErrorKind::WouldBlock,
            format!("the journal in {} is in use by another process", dir.display()),
        )),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// An error that says what could not be done, and where.
fn named(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

fn create_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}
