//! Builds a sandbox and becomes its agent. See the library for what it is told.

mod control;
mod fault;
mod landlock;
mod namespaces;
mod network;
mod new_root;
mod privileges;
mod quotas;
mod rootfs;

use std::{
    os::fd::{AsRawFd, OwnedFd},
    process::ExitCode,
};

use cloud_sandbox_jailer::{LISTENER_FD, Order, PROC_FD, Reply, Spec};
use nix::{
    sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask},
    unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid},
};

use crate::{
    control::{Control, malformed},
    fault::{Fault, Step},
};

fn main() -> ExitCode {
    let control = match Control::take_stdin() {
        Ok(control) => control,
        Err(fault) => {
            eprintln!("the jailer is started by a node only: {fault}");
            return ExitCode::FAILURE;
        }
    };
    match jail(&control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            control.send(&Reply::Failed { step: fault.step, errno: fault.error as i32 });
            ExitCode::FAILURE
        }
    }
}

/// Does what it is told.
fn jail(control: &Control) -> Result<(), Fault> {
    let (order, descriptors) = control.receive()?;
    match order {
        Order::Build(spec) => build(control, &spec, &Descriptors::of(descriptors)?),
        Order::Listen { port } => network::listen(control, &only(descriptors)?, port),
        Order::Attach(interface) => network::attach(control, &only(descriptors)?, &interface),
    }
}

/// Clones the sandbox's first process and ends; in the clone it returns only on a fault.
fn build(control: &Control, spec: &Spec, descriptors: &Descriptors) -> Result<(), Fault> {
    for procs in &spec.cgroup_procs {
        // 0 is whoever writes
        std::fs::write(procs, "0").step(|| format!("join cgroup {}", procs.display()))?;
    }
    match namespaces::clone(spec.ids)? {
        namespaces::Side::Jailer(child) => {
            control.send(&Reply::Cloned(child));
            Ok(())
        }
        namespaces::Side::Sandbox => become_agent(spec, descriptors),
    }
}

/// What a sandbox is built with.
struct Descriptors {
    listener: OwnedFd,
    agent: OwnedFd,
    seccomp: OwnedFd,
}

impl Descriptors {
    fn of(received: Vec<OwnedFd>) -> Result<Self, Fault> {
        let [listener, agent, seccomp]: [OwnedFd; 3] = received.try_into().map_err(|_| malformed())?;
        Ok(Self { listener, agent, seccomp })
    }
}

fn only(received: Vec<OwnedFd>) -> Result<OwnedFd, Fault> {
    let [process]: [OwnedFd; 1] = received.try_into().map_err(|_| malformed())?;
    Ok(process)
}

fn become_agent(spec: &Spec, descriptors: &Descriptors) -> Result<(), Fault> {
    namespaces::configure(&spec.hostname)?;
    // as long as this process may enter the folders above it
    let base = rootfs::open_base(&spec.root)?;
    privileges::become_namespace_root(spec.ids)?;
    let proc = rootfs::build(&spec.root, base.as_ref(), spec.user)?;
    setsid().step(|| "start a session".into())?;
    reset_signals()?;
    arrange_descriptors(&descriptors.listener, &proc)?;
    privileges::limit(&spec.rlimits)?;
    privileges::drop(spec)?;
    landlock::wall_off(spec, &proc)?;
    privileges::filter_syscalls(&descriptors.seccomp, &spec.seccomp)?;
    Err(execute(&descriptors.agent))
}

/// The agent's world begins with the default disposition and nothing blocked.
fn reset_signals() -> Result<(), Fault> {
    // SAFETY: SIG_DFL is no handler; nothing of this program runs in a signal.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, nix::sys::signal::SigHandler::SigDfl) }
        .step(|| "reset SIGPIPE".into())?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).step(|| "unblock signals".into())
}

/// Leaves the agent with null as its standard streams, its listener and its `/proc`, and nothing else beyond exec.
fn arrange_descriptors(listener: &OwnedFd, proc: &OwnedFd) -> Result<(), Fault> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").step(|| "open /dev/null".into())?;
    dup2_stdin(&null)
        .and_then(|()| dup2_stdout(&null))
        .and_then(|()| dup2_stderr(&null))
        .step(|| "close streams".into())?;
    drop(null);
    // SAFETY: plain system calls on numbers; this program's own descriptors are high, so the agent's is owned by nobody.
    unsafe {
        if libc::dup2(listener.as_raw_fd(), LISTENER_FD) < 0 {
            return Err(Fault::last("place the listener"));
        }
        if libc::dup2(proc.as_raw_fd(), PROC_FD) < 0 {
            return Err(Fault::last("place proc"));
        }
        let first = (PROC_FD + 1) as libc::c_uint;
        let flags = libc::CLOSE_RANGE_CLOEXEC;
        if libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) != 0 {
            return Err(Fault::last("mark descriptors to be closed"));
        }
    }
    Ok(())
}

fn execute(agent: &OwnedFd) -> Fault {
    let listener = LISTENER_FD.to_string() + "\0";
    let proc = PROC_FD.to_string() + "\0";
    let argv = [
        c"agent".as_ptr(),
        c"--listen-fd".as_ptr(),
        listener.as_ptr().cast(),
        c"--proc-fd".as_ptr(),
        proc.as_ptr().cast(),
        std::ptr::null(),
    ];
    let envp = [std::ptr::null::<libc::c_char>()];
    // SAFETY: all strings end with NUL, both arrays with a null pointer, and they live beyond the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            agent.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    Fault::last("execute the agent")
}
