//! Starting a jailer, and hearing from it what became of it.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use cloud_sandbox_jailer::{MESSAGE_MAX, Order, Reply, Spec};
use cloud_sandbox_runtime::RuntimeError;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
    },
};
use tokio::{io::unix::AsyncFd, sync::oneshot, time::timeout};

use crate::{
    programs,
    sandbox::{Process, watched},
};

/// A jailer that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(10);

/// Starts jailers, always from the same thread: a sandbox dies with the *thread* that is its parent
/// (PR_SET_PDEATHSIG), so that must be one that lives as long as this process.
pub struct Launcher {
    jobs: mpsc::Sender<Job>,
    jailer: OwnedFd,
}

struct Job {
    command: Command,
    started: oneshot::Sender<io::Result<std::process::Child>>,
}

impl Launcher {
    pub fn new(jailer: &[u8]) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::Builder::new().name("jail-launcher".into()).spawn(move || {
            for mut job in queue {
                // whoever has stopped waiting finds its sandbox's socket closed, and so does the jailer
                let _ = job.started.send(job.command.spawn());
            }
        })?;
        Ok(Self { jobs, jailer: programs::sealed(c"cloud-sandbox-jailer", jailer)? })
    }

    /// Starts a sandbox and waits until its agent is executed.
    pub async fn launch(
        &self,
        spec: Spec,
        listener: OwnedFd,
        agent: &OwnedFd,
        seccomp: &OwnedFd,
    ) -> Result<Process, RuntimeError> {
        let fds = [listener.as_raw_fd(), agent.as_raw_fd(), seccomp.as_raw_fd()];
        let (jailer, control) = self.order(&Order::Build(Box::new(spec)), &fds).await?;
        drop(listener);
        let mut process = None;
        let built = timeout(DEADLINE, follow(&control, &mut process)).await.unwrap_or_else(|_| {
            jailer.kill();
            Err(RuntimeError::host("build a sandbox", io::ErrorKind::TimedOut.into()))
        });
        let died = || RuntimeError::host("build a sandbox: the jailer died", io::ErrorKind::BrokenPipe.into());
        let error = match (built, process.take()) {
            (Ok(()), Some(process)) => return Ok(process),
            (Ok(()), None) => died(),
            (Err(error), half_built) => {
                if let Some(process) = half_built {
                    process.kill();
                    process.ended().await;
                }
                error
            }
        };
        jailer.ended().await;
        Err(error)
    }

    /// Has something made in the network of a sandbox, whose first process is given. Its port, and its descriptor.
    pub async fn make(&self, order: &Order, process: &Process) -> Result<(u16, OwnedFd), RuntimeError> {
        let (jailer, control) = self.order(order, &[process.as_raw_fd()]).await?;
        let answer = timeout(DEADLINE, receive(&control)).await;
        if answer.is_err() {
            jailer.kill();
        }
        jailer.ended().await;
        let died = || io::Error::from(io::ErrorKind::BrokenPipe);
        let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let host = |error| RuntimeError::host("hear from the jailer", error);
        match answer.and_then(|answer| answer.ok_or_else(died)).map_err(host)? {
            (Reply::Made { port }, Some(made)) => Ok((port, made)),
            (Reply::Failed { step, errno }, _) => Err(failure(step, errno)),
            (Reply::Made { .. } | Reply::Cloned(_), _) => Err(host(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Starts a jailer that is told what to do.
    async fn order(&self, order: &Order, fds: &[RawFd]) -> Result<(Process, AsyncFd<OwnedFd>), RuntimeError> {
        let host = |operation: &'static str| move |error: io::Error| RuntimeError::host(operation, error);
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )
        .map_err(|error| RuntimeError::host("make a control socket", error.into()))?;
        let text = serde_json::to_vec(order).map_err(|error| RuntimeError::host("write an order", error.into()))?;
        let (parts, rights) = ([IoSlice::new(&text)], [ControlMessage::ScmRights(fds)]);
        // before the jailer exists, so that it never waits
        sendmsg::<()>(ours.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None)
            .map_err(|error| RuntimeError::host("send an order", error.into()))?;
        let jailer = self.spawn(theirs).await.map_err(host("start the jailer"))?;
        // the jailer is waited for as the sandbox is; a Child would wait for it too
        let pid = i32::try_from(jailer.id())
            .map_err(|error| RuntimeError::host("adopt the jailer", io::Error::other(error)))?;
        let jailer = Process::adopt(pid).map_err(host("adopt the jailer"))?;
        let control = watched(ours).map_err(host("watch the control socket"))?;
        Ok((jailer, control))
    }

    async fn spawn(&self, control: OwnedFd) -> io::Result<std::process::Child> {
        // by descriptor: resolved in the child before its descriptors close
        let mut command = Command::new(format!("/proc/self/fd/{}", self.jailer.as_raw_fd()));
        command.env_clear().stdin(Stdio::from(control)).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        let (started, child) = oneshot::channel();
        self.jobs.send(Job { command, started }).map_err(|_| io::Error::other("the launcher has ended"))?;
        child.await.map_err(io::Error::other)?
    }
}

/// Reads the jailer's answers to the end, which without a failure means that the agent was executed. `process` is the
/// sandbox's from when it is known, also when this ends badly or is given up.
async fn follow(control: &AsyncFd<OwnedFd>, process: &mut Option<Process>) -> Result<(), RuntimeError> {
    loop {
        match receive(control).await {
            Ok(Some((Reply::Cloned(pid), _))) => {
                *process = Some(Process::adopt(pid).map_err(|error| RuntimeError::host("adopt a sandbox", error))?);
            }
            Ok(Some((Reply::Failed { step, errno }, _))) => return Err(failure(step, errno)),
            Ok(Some((Reply::Made { .. }, _))) => {
                return Err(RuntimeError::host("hear from the jailer", io::ErrorKind::InvalidData.into()));
            }
            Ok(None) => return Ok(()),
            Err(error) => return Err(RuntimeError::host("hear from the jailer", error)),
        }
    }
}

/// The next answer, and the descriptor that comes with it.
async fn receive(control: &AsyncFd<OwnedFd>) -> io::Result<Option<(Reply, Option<OwnedFd>)>> {
    let mut text = vec![0; MESSAGE_MAX];
    loop {
        let mut ready = control.readable().await?;
        match receive_now(control.get_ref(), &mut text) {
            // a sequenced packet of no length is the end
            Ok((0, _)) | Err(Errno::ECONNRESET) => return Ok(None),
            Ok((length, fd)) => return Ok(Some((serde_json::from_slice(&text[..length])?, fd))),
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn receive_now(control: &OwnedFd, text: &mut [u8]) -> nix::Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(text)];
    let message = recvmsg::<()>(control.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let rights = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just put this descriptor into this process, for nobody else here; there is room for one only.
    let fd = rights.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    Ok((message.bytes, fd))
}

/// What the host lacks is told apart from what it is only short of.
fn failure(step: String, errno: i32) -> RuntimeError {
    let error = io::Error::from_raw_os_error(errno);
    match Errno::from_raw(errno) {
        Errno::EAGAIN | Errno::ENOMEM | Errno::ENOSPC | Errno::EUSERS => {
            RuntimeError::Exhausted(format!("failed to {step}: {error}"))
        }
        _ => RuntimeError::host(step, error),
    }
}
