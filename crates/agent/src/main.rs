//! Starts the agent: `--listen-fd N` takes over a socket that listens already, `--listen PATH` makes one. With
//! `--proc-fd N` it reads about processes in the `/proc` behind that descriptor.
//!
//! User code runs beside this process under the same user id, as its children. Invariant: nothing of the agent is
//! theirs. It cannot be traced or read, and no descriptor of it survives an exec.

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    process::ExitCode,
    time::Duration,
};

use cloud_sandbox_agent::{Agent, Children, read_processes_by, serve_agent};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        prctl,
        signal::{SigSet, SigmaskHow, sigprocmask},
        stat::{Mode, umask},
    },
};

const USAGE: &str = "usage: cloud-sandbox-agent (--listen-fd FD | --listen PATH) [--proc-fd FD]";

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("cloud-sandbox-agent: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Where to listen.
#[derive(Debug, Eq, PartialEq)]
enum Listen {
    Inherited(RawFd),
    Path(String),
}

fn start() -> Result<(), String> {
    let (listen, proc) = parse(std::env::args().skip(1))?;
    if let Some(proc) = proc {
        read_processes_by(proc);
    }
    umask(Mode::from_bits_truncate(0o022));
    close_on_exec().map_err(|error| format!("failed to guard the open descriptors: {error}"))?;
    let listener = listener(&listen).map_err(|error| format!("failed to listen on {listen:?}: {error}"))?;
    reset_signals().map_err(|error| format!("failed to reset signals: {error}"))?;
    return_freed_memory();
    // While /proc/self is still ours.
    let children = Children::of_init();
    prctl::set_child_subreaper(true).map_err(|error| format!("failed to become a subreaper: {error}"))?;
    prctl::set_dumpable(false).map_err(|error| format!("failed to become undumpable: {error}"))?;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .thread_stack_size(256 * 1024)
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .map_err(|error| format!("failed to start the runtime: {error}"))?;
    silence();
    runtime
        .block_on(async {
            let agent = Agent::new(children)?;
            serve_agent(tokio::net::UnixListener::from_std(listener)?, agent).await
        })
        .map_err(|error| format!("failed to serve: {error}"))
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<(Listen, Option<RawFd>), String> {
    let listen = match (arguments.next().as_deref(), arguments.next()) {
        (Some("--listen-fd"), Some(fd)) => match fd.parse() {
            Ok(fd) if fd > 2 => Listen::Inherited(fd),
            _ => return Err(format!("--listen-fd must be a number above 2, not {fd:?}")),
        },
        (Some("--listen"), Some(path)) => Listen::Path(path),
        _ => return Err(USAGE.to_owned()),
    };
    let proc = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => None,
        (Some("--proc-fd"), Some(fd)) => match fd.parse() {
            Ok(fd) if fd > 2 => Some(fd),
            _ => return Err(format!("--proc-fd must be a number above 2, not {fd:?}")),
        },
        _ => return Err(USAGE.to_owned()),
    };
    if arguments.next().is_some() { Err(USAGE.to_owned()) } else { Ok((listen, proc)) }
}

fn listener(listen: &Listen) -> io::Result<UnixListener> {
    let listener = match listen {
        Listen::Inherited(fd) => {
            fcntl(borrow(*fd), FcntlArg::F_GETFD)?;
            // SAFETY: open, as was just seen, and ours alone: it was inherited for this.
            UnixListener::from(unsafe { OwnedFd::from_raw_fd(*fd) })
        }
        Listen::Path(path) => UnixListener::bind(path)?,
    };
    // Fails where it is not a Unix socket that listens.
    listener.local_addr()?;
    listener.set_nonblocking(true)?;
    Ok(listener)
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

/// Lets go of the starter's terminal or log, as far as there is a `/dev/null` to put in its place.
fn silence() {
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        for fd in 0..=2 {
            // SAFETY: both are open, and the standard descriptors belong to nobody in particular.
            unsafe { libc::dup2(null.as_fd().as_raw_fd(), fd) };
        }
    }
}

fn borrow(fd: RawFd) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: used for one fcntl, which says so when it is not open.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<(Listen, Option<RawFd>), String> {
        parse(arguments.iter().map(ToString::to_string))
    }

    #[test]
    fn one_place_to_listen_is_taken() {
        assert_eq!(parsed(&["--listen-fd", "3"]), Ok((Listen::Inherited(3), None)));
        assert_eq!(parsed(&["--listen-fd", "3", "--proc-fd", "4"]), Ok((Listen::Inherited(3), Some(4))));
        assert_eq!(parsed(&["--listen", "/run/a.sock"]), Ok((Listen::Path("/run/a.sock".to_owned()), None)));
    }

    #[test]
    fn anything_else_is_refused() {
        for arguments in [
            &["--listen-fd", "3", "--proc-fd"][..],
            &["--listen-fd", "3", "--proc-fd", "x"],
            &[],
            &["--listen-fd"],
            &["--listen-fd", "2"],
            &["--listen", "a", "b"],
            &["--help", "x"],
        ] {
            assert!(parsed(arguments).is_err(), "{arguments:?}");
        }
    }
}
