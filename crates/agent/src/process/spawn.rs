//! Starts a process in a session of its own, on pipes or a terminal.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use cloud_sandbox_proto::agent::v1::{Start, WindowSize};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::{AccessFlags, access},
};
use tokio::sync::oneshot;
use tonic::Status;

use super::{
    children::{Children, Exit, pid_of},
    input::Stdin,
    output::{Output, Source},
    program,
    terminal::{self, Terminal},
};
use crate::{files, status};

/// A process that has been started.
pub(super) struct Spawned {
    pub(super) pid: i32,
    pub(super) began: Instant,
    pub(super) exit: oneshot::Receiver<Exit>,
    pub(super) stdin: Stdin,
    pub(super) outputs: Vec<Output>,
}

/// Our ends of what a process reads and writes.
type Ends = (Stdin, Vec<Output>);

/// Starts what `start` describes; its staged file is the caller's.
pub(super) fn spawn(children: &Children, start: Start) -> Result<Spawned, Status> {
    let Start { argv, mut env, cwd, terminal, staged: _ } = start;
    check_strings(&argv, &env)?;
    if let Some(size) = terminal {
        terminal::check_size(size).ok_or_else(|| {
            Status::invalid_argument(format!("no terminal is {} rows by {} columns", size.rows, size.cols))
        })?;
        env.entry("TERM".to_owned()).or_insert_with(|| "xterm-256color".to_owned());
    }
    let cwd = check_cwd(&cwd)?;
    let program = program::find(&argv[0], env.get("PATH").map(String::as_str), &cwd)?;

    let mut command = Command::new(program);
    command.arg0(&argv[0]).args(&argv[1..]).env_clear().envs(&env).current_dir(cwd);
    let (child, exit, began, (stdin, outputs)) = match terminal {
        Some(size) => on_terminal(children, command, size),
        None => on_pipes(children, command),
    }
    .map_err(|error| refusal(&argv[0], &error))?;
    Ok(Spawned { pid: pid_of(&child), began, exit, stdin, outputs })
}

type Begun = (Child, oneshot::Receiver<Exit>, Instant, Ends);

fn on_pipes(children: &Children, mut command: Command) -> io::Result<Begun> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: setsid is async-signal-safe.
    unsafe { command.pre_exec(|| Errno::result(libc::setsid()).map(drop).map_err(io::Error::from)) };
    let began = Instant::now();
    let (mut child, exit) = children.spawn(&mut command)?;

    let stdin = child.stdin.take().map(OwnedFd::from).expect("its input is a pipe");
    let stdout = child.stdout.take().map(OwnedFd::from).expect("its output is a pipe");
    let stderr = child.stderr.take().map(OwnedFd::from).expect("its errors are a pipe");
    let ends = ends_of_pipes(stdin, stdout, stderr).inspect_err(|_| abandon(&child))?;
    Ok((child, exit, began, ends))
}

fn ends_of_pipes(stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Ends> {
    let stdin = Stdin::new(nonblocking(stdin)?, false)?;
    let stdout = Output::new(nonblocking(stdout)?, Source::Stdout)?;
    let stderr = Output::new(nonblocking(stderr)?, Source::Stderr)?;
    Ok((stdin, vec![stdout, stderr]))
}

fn on_terminal(children: &Children, mut command: Command, size: WindowSize) -> io::Result<Begun> {
    let Terminal { master, slave } = terminal::open(size)?;
    let ends = (Stdin::new(master.try_clone()?, true)?, vec![Output::new(master, Source::Terminal)?]);
    command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
    // SAFETY: setsid and ioctl are async-signal-safe; descriptor 0 is the terminal by now.
    unsafe {
        command.pre_exec(|| {
            Errno::result(libc::setsid())?;
            Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            Ok(())
        });
    }
    let began = Instant::now();
    let (child, exit) = children.spawn(&mut command)?;
    Ok((child, exit, began, ends))
}

/// Kills a process that nobody can hear or talk to.
fn abandon(child: &Child) {
    super::session::signal_group(pid_of(child), libc::SIGKILL);
}

fn nonblocking(end: OwnedFd) -> io::Result<File> {
    let flags = OFlag::from_bits_retain(fcntl(end.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(end.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(File::from(end))
}

fn check_strings(argv: &[String], env: &HashMap<String, String>) -> Result<(), Status> {
    if argv.first().is_none_or(String::is_empty) {
        return Err(Status::invalid_argument("argv must name a program"));
    }
    if argv.iter().any(|argument| argument.contains('\0')) {
        return Err(Status::invalid_argument("argv must not contain NUL"));
    }
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(Status::invalid_argument(format!("env has the malformed entry {name:.200}")));
        }
    }
    Ok(())
}

fn check_cwd(cwd: &str) -> Result<PathBuf, Status> {
    let path =
        files::parse_path(cwd).map_err(|error| Status::new(error.code(), format!("cwd: {}", error.message())))?;
    match Path::metadata(&path) {
        Ok(metadata) if !metadata.is_dir() => {
            Err(Status::failed_precondition(format!("cwd {cwd:.1000} is not a folder")))
        }
        Ok(_) if access(&path, AccessFlags::X_OK).is_err() => {
            Err(Status::permission_denied(format!("cwd {cwd:.1000} may not be entered")))
        }
        Ok(_) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Status::failed_precondition(format!("cwd {cwd:.1000} does not exist")))
        }
        Err(error) => Err(status::from_io(&format!("enter cwd {cwd:.1000}"), &error)),
    }
}

/// Why a program that was found did not start.
fn refusal(program: &str, error: &io::Error) -> Status {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => Status::not_found(format!("the interpreter of program {program:.200} was not found")),
        Some(Errno::EACCES | Errno::EPERM) => {
            Status::permission_denied(format!("program {program:.200} is not executable"))
        }
        Some(Errno::ENOEXEC) => {
            Status::permission_denied(format!("program {program:.200} is not executable: unknown format"))
        }
        Some(Errno::E2BIG) => Status::invalid_argument(format!("argv and env are too long for program {program:.200}")),
        Some(Errno::EAGAIN) => {
            Status::resource_exhausted(format!("failed to start program {program:.200}: too many processes"))
        }
        _ => status::from_io(&format!("start program {program:.200}"), error),
    }
}
