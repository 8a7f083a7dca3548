//! Starts a process in a session of its own, on pipes or a terminal, with a control channel where one is asked for.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::fchown, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use cloud_sandbox_proto::agent::v1::{Start, WindowSize};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::AccessFlags,
};
use tokio::sync::oneshot;
use tonic::Status;

use super::{
    children::{Children, Exit, pid_of},
    control,
    input::{Control, Inputs, Stdin},
    output::{Output, Source},
    program,
    terminal::{self, Terminal},
    user::{self, User},
};
use crate::{files, kernel, status};

/// A process that has been started.
pub(super) struct Spawned {
    pub(super) pid: i32,
    pub(super) began: Instant,
    pub(super) exit: oneshot::Receiver<Exit>,
    pub(super) ends: Ends,
}

/// Our ends of what a process reads and writes.
pub(super) struct Ends {
    pub(super) inputs: Inputs,
    pub(super) outputs: Vec<Output>,
    pub(super) control: Option<Output>,
}

/// Starts what `start` describes as `user`, or as the agent's own; its staged file is the caller's.
pub(super) fn spawn(children: &Children, start: Start, user: Option<User>) -> Result<Spawned, Status> {
    let Start { argv, mut env, cwd, terminal, staged: _, user: name, control } = start;
    check_strings(&argv, &env)?;
    if let Some(size) = terminal {
        check_terminal(size, control)?;
        env.entry("TERM".to_owned()).or_insert_with(|| "xterm-256color".to_owned());
    }
    if let Some(user) = &user {
        user.complete(&mut env);
    }
    let cwd = check_cwd(&cwd)?;
    let program = program::find(&argv[0], env.get("PATH").map(String::as_str), &cwd)?;

    let mut command = Command::new(program);
    command.arg0(&argv[0]).args(&argv[1..]).env_clear().envs(&env).current_dir(cwd);
    let name = user.is_some().then_some(name);
    match terminal {
        Some(size) => on_terminal(children, command, size, user),
        None => on_pipes(children, command, control, user),
    }
    .map_err(|error| refusal(&argv[0], name.as_deref(), &error))
}

fn on_pipes(children: &Children, mut command: Command, control: bool, user: Option<User>) -> io::Result<Spawned> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: setsid is async-signal-safe.
    unsafe { command.pre_exec(|| Errno::result(libc::setsid()).map(drop).map_err(io::Error::from)) };
    let (control, theirs) = control.then(control::open).transpose()?.unzip();
    if let Some(theirs) = &theirs {
        theirs.give(&mut command);
    }
    user::apply(user, &mut command);
    let began = Instant::now();
    let (mut child, exit) = children.spawn(&mut command)?;
    // Else the channel would never end.
    drop(theirs);
    let ends = ends_of_pipes(&mut child, control).inspect_err(|_| abandon(&child))?;
    Ok(Spawned { pid: pid_of(&child), began, exit, ends })
}

fn ends_of_pipes(child: &mut Child, control: Option<File>) -> io::Result<Ends> {
    let stdin = child.stdin.take().map(OwnedFd::from).expect("its input is a pipe");
    let stdout = child.stdout.take().map(OwnedFd::from).expect("its output is a pipe");
    let stderr = child.stderr.take().map(OwnedFd::from).expect("its errors are a pipe");
    let stdout = Output::new(nonblocking(stdout)?, Source::Stdout)?;
    let stderr = Output::new(nonblocking(stderr)?, Source::Stderr)?;
    let to_control = control.as_ref().map(File::try_clone).transpose()?.map(Control::new).transpose()?;
    let control = control.map(|file| Output::new(file, Source::Control)).transpose()?;
    let inputs = Inputs { stdin: Stdin::new(nonblocking(stdin)?, false)?, control: to_control };
    Ok(Ends { inputs, outputs: vec![stdout, stderr], control })
}

fn on_terminal(children: &Children, mut command: Command, size: WindowSize, user: Option<User>) -> io::Result<Spawned> {
    let Terminal { master, slave } = terminal::open(size)?;
    let inputs = Inputs { stdin: Stdin::new(master.try_clone()?, true)?, control: None };
    let ends = Ends { inputs, outputs: vec![Output::new(master, Source::Terminal)?], control: None };
    if let Some(user) = &user {
        // So that it can be opened by its name, too; a kernel that refuses has its reasons, and most programs no need.
        let _ = fchown(&slave, Some(user.uid), None);
    }
    command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
    // SAFETY: setsid and ioctl are async-signal-safe; descriptor 0 is the terminal by now.
    unsafe {
        command.pre_exec(|| {
            Errno::result(libc::setsid())?;
            Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            Ok(())
        });
    }
    user::apply(user, &mut command);
    let began = Instant::now();
    let (child, exit) = children.spawn(&mut command)?;
    Ok(Spawned { pid: pid_of(&child), began, exit, ends })
}

/// Kills a process that nobody can hear or talk to.
fn abandon(child: &Child) {
    super::session::signal_group(pid_of(child), libc::SIGKILL);
}

/// Makes our end one that never waits.
pub(crate) fn nonblocking(end: OwnedFd) -> io::Result<File> {
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

fn check_terminal(size: WindowSize, control: bool) -> Result<(), Status> {
    if control {
        return Err(Status::invalid_argument("a process on a terminal has no control channel"));
    }
    let WindowSize { rows, cols } = size;
    terminal::check_size(size)
        .map(drop)
        .ok_or_else(|| Status::invalid_argument(format!("no terminal is {rows} rows by {cols} columns")))
}

fn check_cwd(cwd: &str) -> Result<PathBuf, Status> {
    let path =
        files::parse_path(cwd).map_err(|error| Status::new(error.code(), format!("cwd: {}", error.message())))?;
    match Path::metadata(&path) {
        Ok(metadata) if !metadata.is_dir() => {
            Err(Status::failed_precondition(format!("cwd {cwd:.1000} is not a folder")))
        }
        Ok(_) if kernel::may(&path, AccessFlags::X_OK).is_err() => {
            Err(Status::permission_denied(format!("cwd {cwd:.1000} may not be entered")))
        }
        Ok(_) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Status::failed_precondition(format!("cwd {cwd:.1000} does not exist")))
        }
        Err(error) => Err(status::from_io(&format!("enter cwd {cwd:.1000}"), &error)),
    }
}

/// Why a program that was found did not start, as another user when one is named.
fn refusal(program: &str, user: Option<&str>, error: &io::Error) -> Status {
    match error.raw_os_error().map(Errno::from_raw) {
        // The user namespace does not have that user, or nobody may change groups in it.
        Some(Errno::EPERM | Errno::EINVAL) if let Some(user) = user => {
            Status::failed_precondition(format!("this sandbox cannot run processes as user {user:.200}"))
        }
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
