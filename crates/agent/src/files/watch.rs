//! Watches a folder or a file. Events are read from the kernel when the caller takes them: its queue is the bound for a
//! slow one, and says so when it overflows. The watch ends with its stream.

mod events;
mod folders;

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    path::PathBuf,
    time::Duration,
};

use cloud_sandbox_proto::v1::{FileEvent, FileEventType, FileType, WatchFilesRequest, WatchFilesResponse};
use futures::{Stream, stream};
use nix::{
    errno::Errno,
    sys::inotify::{InitFlags, Inotify},
};
use tokio::{io::unix::AsyncFd, time::Instant};
use tonic::{Code, Status};

use super::{failed, parse_raw, shown};
use crate::worker;
use events::{Events, Root};
use folders::Folders;

/// How often to see whether the path still leads to what is watched: nothing tells when a folder above is renamed.
const CHECK: Duration = Duration::from_secs(2);

/// The kernel's queue.
struct Queue(Inotify);

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Queue {
    fn new() -> io::Result<Self> {
        match Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK) {
            Ok(inotify) => Ok(Self(inotify)),
            Err(error) => Err(error.into()),
        }
    }
}

/// A watch under way.
struct Watch {
    queue: AsyncFd<Queue>,
    events: Events,
    ready: VecDeque<FileEvent>,
    check: Instant,
    failed: Option<Status>,
}

/// Begins to watch. The first event says that what follows is complete.
pub(super) async fn watch(
    request: WatchFilesRequest,
) -> Result<impl Stream<Item = Result<WatchFilesResponse, Status>> + use<>, Status> {
    let path = parse_raw(&request.path, &request.raw_path)?;
    let (queue, events) = worker::run(move |call| {
        let refused = |error: io::Error| refused(path.clone())(error);
        let root = Root::find(path.clone()).map_err(refused)?;
        let queue = Queue::new().map_err(refused)?;
        let mut folders = Folders::new(root.folder.clone(), request.recursive && root.only.is_none());
        folders.add_all(&queue.0, call)?;
        Ok((queue, Events::new(root, folders)))
    })
    .await?;
    let started = events.about_root(FileEventType::Started);
    // SAFETY: the descriptor is the queue's own, stays the same and is open for as long as the queue lives.
    let queue =
        unsafe { AsyncFd::register(queue) }.map_err(|error| failed("watch", &events.root.path)(error.into()))?;
    let watch = Watch { queue, events, ready: [started].into(), check: Instant::now() + CHECK, failed: None };
    Ok(stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        match watch.next().await {
            Ok(event) => Some((Ok(WatchFilesResponse { event: Some(event) }), Some(watch))),
            Err(status) => Some((Err(status), None)),
        }
    }))
}

/// Says why something cannot be watched: the limits are on watches, not on space.
fn refused(path: PathBuf) -> impl Fn(io::Error) -> Status {
    move |error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EMFILE | Errno::ENFILE) => {
            Status::resource_exhausted(format!("failed to watch {}: too many watches", shown(&path)))
        }
        _ => failed("watch", &path)(error),
    }
}

impl Watch {
    async fn next(&mut self) -> Result<FileEvent, Status> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            if let Some(status) = self.failed.take() {
                return Err(status);
            }
            self.wait().await;
        }
    }

    /// Waits until something may have happened, and finds out what.
    async fn wait(&mut self) {
        let due = self.events.due().map_or(self.check, |due| self.check.min(due));
        let read = tokio::select! {
            biased;
            ready = self.queue.readable() => match ready {
                Ok(mut ready) => match ready.try_io(|queue| Ok(queue.get_ref().0.read_events()?)) {
                    Ok(read) => read,
                    Err(_would_block) => Ok(Vec::new()),
                },
                Err(error) => Err(error),
            },
            () = tokio::time::sleep_until(due) => Ok(Vec::new()),
        };
        let taken = match read {
            Ok(happened) => self.take(happened),
            Err(error) => Err(failed("watch", &self.events.root.path)(error)),
        };
        if let Err(status) = taken {
            self.failed = Some(status);
        }
    }

    fn take(&mut self, happened: Vec<nix::sys::inotify::InotifyEvent>) -> Result<(), Status> {
        let now = Instant::now();
        if happened.is_empty() {
            self.events.drained();
        }
        let mut gone = false;
        for event in happened {
            gone |= self.events.take(&self.queue.get_ref().0, event, now, &mut self.ready)?;
        }
        self.events.tell_due(now, &self.queue.get_ref().0, &mut self.ready);
        if now >= self.check {
            self.check = now + CHECK;
            gone |= self.events.root.has_gone();
        }
        if gone {
            self.events.tell_all(&self.queue.get_ref().0, &mut self.ready);
            if !self.events.has_told_the_end() {
                self.ready.push_back(self.events.about_root(FileEventType::Removed));
            }
            let message = format!("{} is gone", shown(&self.events.root.path));
            return Err(Status::new(Code::NotFound, message));
        }
        Ok(())
    }
}

/// An event about `path`.
fn event(happened: FileEventType, path: &std::path::Path, kind: FileType) -> FileEvent {
    FileEvent {
        r#type: happened.into(),
        path: super::info::lossy(path),
        raw_path: super::info::raw(path),
        file_type: kind.into(),
        ..FileEvent::default()
    }
}
