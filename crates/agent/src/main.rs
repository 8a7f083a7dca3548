//! Starts the agent: `--listen-fd N` takes over a socket that listens already, `--listen PATH` makes one, `--dial PATH`
//! connects to one that its node listens on, and `--stdio` has standard input and output carry all connections. With
//! `--proc-fd N` it reads about processes in the `/proc` behind that descriptor; with `--apart-from UID` it acts as that
//! user under an id of its own.
//!
//! User code runs beside this process under the same user id, as its children. Invariant: nothing of the agent is
//! theirs. It cannot be traced or read, and no descriptor of it survives an exec.

mod arguments;

use std::{
    ffi::CStr,
    fs::OpenOptions,
    io,
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use cloud_sandbox_agent::{Agent, Children, Stdio, dial, read_processes_by, serve_agent, serve_stdio, stand_apart};
use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sys::{
        prctl,
        signal::{SigSet, SigmaskHow, sigprocmask},
        stat::{Mode, umask},
    },
    unistd::{Uid, dup2_stderr, dup2_stdin, dup2_stdout, pipe2},
};

use crate::arguments::{Arguments, WayIn};

/// What `ps` and `top` call it, whatever the name of its file.
const NAME: &CStr = c"sandbox-agent";

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("cloud-sandbox-agent: {message}");
            ExitCode::FAILURE
        }
    }
}

/// A way in that is ready to be served.
enum Door {
    Listener(UnixListener),
    Dial(PathBuf),
    Stdio(Stdio),
}

fn start() -> Result<(), String> {
    let Arguments { way_in, proc, apart_from } = Arguments::parse(std::env::args().skip(1))?;
    if let Some(proc) = proc {
        read_processes_by(proc);
    }
    umask(Mode::from_bits_truncate(0o022));
    close_on_exec().map_err(|error| format!("failed to guard the open descriptors: {error}"))?;
    reset_signals().map_err(|error| format!("failed to reset signals: {error}"))?;
    return_freed_memory();
    prctl::set_name(NAME).map_err(|error| format!("failed to take a name: {error}"))?;
    // While /proc/self is still ours.
    let children = Children::of_init();
    if let Some(user) = apart_from {
        let user = Uid::from_raw(user);
        stand_apart(user).map_err(|error| format!("failed to stand apart from user {user}: {error}"))?;
    }
    prctl::set_child_subreaper(true).map_err(|error| format!("failed to become a subreaper: {error}"))?;
    prctl::set_dumpable(false).map_err(|error| format!("failed to become undumpable: {error}"))?;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .thread_stack_size(256 * 1024)
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .map_err(|error| format!("failed to start the runtime: {error}"))?;
    let door =
        runtime.block_on(async { open(&way_in) }).map_err(|error| format!("failed to open {way_in}: {error}"))?;
    silence().map_err(|error| format!("failed to let go of the standard streams: {error}"))?;
    runtime
        .block_on(async {
            let agent = Agent::new(children)?;
            match door {
                Door::Listener(listener) => serve_agent(tokio::net::UnixListener::from_std(listener)?, agent).await,
                Door::Dial(path) => dial(&path, agent).await,
                Door::Stdio(stdio) => serve_stdio(stdio, agent).await,
            }
        })
        .map_err(|error| format!("failed to serve: {error}"))
}

fn open(way_in: &WayIn) -> io::Result<Door> {
    let listener = match way_in {
        WayIn::Inherited(fd) => {
            fcntl(borrow(*fd), FcntlArg::F_GETFD)?;
            // SAFETY: open, as was just seen, and ours alone: it was inherited for this.
            UnixListener::from(unsafe { OwnedFd::from_raw_fd(*fd) })
        }
        WayIn::Listen(path) => UnixListener::bind(path)?,
        WayIn::Dial(path) => return Ok(Door::Dial(path.into())),
        WayIn::Stdio => return Stdio::take().map(Door::Stdio),
    };
    // Fails where it is not a Unix socket that listens.
    listener.local_addr()?;
    listener.set_nonblocking(true)?;
    Ok(Door::Listener(listener))
}

/// Keeps whatever was inherited from what users run.
fn close_on_exec() -> io::Result<()> {
    // SAFETY: a plain system call on descriptors; it closes none now.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 {
        return Ok(());
    }
    // A kernel before 5.11, or a filter that does not know the call.
    for entry in std::fs::read_dir("/proc/self/fd")? {
        if let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()).filter(|fd| *fd > 2) {
            fcntl(borrow(fd), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
    }
    Ok(())
}

/// Undoes what the starter may have blocked or ignored: children inherit both.
fn reset_signals() -> nix::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    // The first two are the Rust runtime's handlers; it resets the third, which it ignores, in its children.
    let kept = [libc::SIGSEGV, libc::SIGBUS, libc::SIGPIPE];
    // The kernel's sigaction: all zero, on every architecture, is the default action.
    let default = [0_u64; 4];
    let mask_size = size_of::<u64>();
    for number in (1..=64).filter(|number| !kept.contains(number)) {
        // The system call, since glibc keeps 32 and 33 to itself. SIGKILL and SIGSTOP refuse, and need nothing.
        // SAFETY: reads one sigaction, which installs no handler; tokio has not installed its own yet.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), std::ptr::null::<u64>(), mask_size) };
    }
    Ok(())
}

/// A file of 8 MiB has passed through: glibc would keep so much from then on, by raising its thresholds. Threads shall
/// not have heaps of their own either.
fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: only sets numbers of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 * 1024);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Lets go of the starter's terminal or log: what reads is at the end, and what prints loses it.
fn silence() -> io::Result<()> {
    let (input, output) = match OpenOptions::new().read(true).write(true).open("/dev/null") {
        Ok(null) => (null.try_clone()?.into(), null.into()),
        // An image may come without devices: pipes of which the other ends are closed.
        Err(_) => (pipe2(OFlag::O_CLOEXEC)?.0, pipe2(OFlag::O_CLOEXEC)?.1),
    };
    dup2_stdin(input)?;
    dup2_stdout(&output)?;
    dup2_stderr(output)?;
    Ok(())
}

fn borrow(fd: RawFd) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: used for one fcntl, which says so when it is not open.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}
