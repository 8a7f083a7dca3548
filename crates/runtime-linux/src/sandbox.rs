//! What the host keeps for one sandbox: its process, and the socket that its agent listens on.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{fs::OpenOptionsExt, net::UnixListener},
    },
    path::Path,
    sync::Arc,
};

use cloud_sandbox_jailer::IdMap;
use cloud_sandbox_model::SandboxId;
use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, waitid},
};
use tokio::{io::unix::AsyncFd, sync::watch};

/// A sandbox on this host.
pub struct Sandbox {
    /// its first process
    pub process: Process,
    /// its agent's socket
    pub socket: Socket,
    /// its range of ids
    pub ids: IdMap,
}

/// The first process of a sandbox, by a descriptor that names it and never another.
#[derive(Clone, Debug)]
pub struct Process {
    pid: i32,
    fd: Arc<OwnedFd>,
    ended: watch::Receiver<bool>,
}

impl Process {
    /// Takes over the child `pid`, which nobody else waits for: it is reaped here when it ends. A process that is somebody
    /// else's child is watched only.
    pub fn adopt(pid: i32) -> io::Result<Self> {
        // SAFETY: plain system call; the result is checked before it is owned.
        let fd = unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?)
        };
        let (send, ended) = watch::channel(false);
        let watched = watched(fd.try_clone()?)?;
        let fd = Arc::new(fd);
        tokio::spawn(async move {
            // a process descriptor becomes readable when the process has ended (pidfd_open(2))
            let _ = watched.readable().await;
            let reaped = waitid(Id::PIDFd(watched.get_ref().as_fd()), WaitPidFlag::WEXITED);
            if let Err(error) = reaped.map(drop)
                && error != Errno::ECHILD
            {
                tracing::warn!(pid, %error, "a child could not be waited for");
            }
            send.send_replace(true);
        });
        Ok(Self { pid, fd, ended })
    }

    /// The descriptor that names it.
    pub fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Ends the process and, as it is the first of its PID namespace, all processes there.
    pub fn kill(&self) {
        // SAFETY: plain system call on a descriptor that is ours. ESRCH, it has ended, is what is wanted.
        unsafe {
            let none = std::ptr::null::<libc::siginfo_t>();
            libc::syscall(libc::SYS_pidfd_send_signal, self.fd.as_raw_fd(), libc::SIGKILL, none, 0);
        }
    }

    /// Limits the process and all that come from it, which are all of its PID namespace, to `rlimits`.
    pub fn limit(&self, rlimits: &[(u32, u64)]) -> io::Result<()> {
        // what is started meanwhile may still have the old ones: looked for until nothing new is found
        let mut limited = BTreeSet::new();
        loop {
            if *self.ended.borrow() {
                return Ok(());
            }
            let family = family(self.pid);
            let fresh: Vec<_> = family.difference(&limited).copied().collect();
            if fresh.is_empty() {
                return Ok(());
            }
            for pid in fresh {
                rlimits.iter().try_for_each(|&(resource, value)| limit(pid, resource, value))?;
                limited.insert(pid);
            }
        }
    }

    /// Resolves when the process has ended and is reaped: nothing of its PID namespace runs any more.
    pub async fn ended(&self) {
        // an error means that the reaper is gone, and with it the runtime of this whole process
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }
}

/// A process and all its descendants (`/proc/PID/task/TID/children`, proc(5)).
fn family(pid: i32) -> BTreeSet<i32> {
    let (mut family, mut unseen) = (BTreeSet::new(), vec![pid]);
    while let Some(pid) = unseen.pop() {
        if !family.insert(pid) {
            continue;
        }
        // what ended meanwhile has no children any more
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            unseen.extend(children.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        }
    }
    family
}

fn limit(pid: i32, resource: u32, value: u64) -> io::Result<()> {
    let new = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: the new limit is valid, and the old one is not asked for.
    let result = unsafe { libc::prlimit(pid, resource, &raw const new, std::ptr::null_mut()) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        error if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(()),
        error => Err(error),
    }
}

/// A descriptor that can be waited for.
pub fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps its one descriptor open for as long as it lives, which is as long as the result does.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

/// The agent's socket. It has no name: it is reached by a descriptor, so nothing of it can be left on a disk.
pub struct Socket(File);

impl Socket {
    /// Makes the socket, and the listener for the agent. `folder` is where it has a name for a moment.
    pub fn create(folder: &Path, id: SandboxId) -> io::Result<(Self, OwnedFd)> {
        // through a descriptor, because a socket's path has room for 108 bytes only
        let folder = File::open(folder)?;
        let path = format!("/proc/self/fd/{}/{id}", folder.as_raw_fd());
        let listener = UnixListener::bind(&path)?;
        let handle = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&path);
        let removed = fs::remove_file(&path);
        let handle = handle?;
        removed?;
        Ok((Self(handle), listener.into()))
    }

    /// A new connection to the agent.
    pub async fn connect(&self) -> io::Result<tokio::net::UnixStream> {
        tokio::net::UnixStream::connect(format!("/proc/self/fd/{}", self.0.as_raw_fd())).await
    }
}
