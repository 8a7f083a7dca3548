//! New namespaces, and the ids in them.

use std::{
    fs,
    io::{Read, Write},
    net::UdpSocket,
    os::fd::AsRawFd,
};

use cloud_sandbox_jailer::IdMap;
use nix::unistd::{Uid, sethostname};

use crate::fault::{Fault, Step};

const NEW: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Which of the two processes goes on.
pub enum Side {
    /// the jailer; the sandbox's process id on the host
    Jailer(i32),
    /// the sandbox's first process
    Sandbox,
}

/// Clones the caller into new namespaces with the given ids. The clone's parent is the caller's parent, so that it
/// outlives the jailer and is waited for by the node.
pub fn clone(ids: IdMap) -> Result<Side, Fault> {
    let (mut go, mut tell) = std::io::pipe().step(|| "make a pipe".into())?;
    let flags = (NEW | libc::CLONE_PARENT | libc::SIGCHLD) as libc::c_ulong;
    // SAFETY: without CLONE_VM and with no stack given this is fork(2), and this program has one thread only.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match child {
        -1 => Err(Fault::last("clone into new namespaces")),
        0 => {
            drop(tell);
            let mut word = [0];
            // the end of the pipe without a word means that the jailer has failed, and has said so
            go.read_exact(&mut word).step(|| "wait for the id map".into())?;
            Ok(Side::Sandbox)
        }
        child => {
            let child = i32::try_from(child).expect("a process id fits");
            if let Err(fault) = map_ids(child, ids) {
                // SAFETY: plain system call; the child is not reaped by us, so its id is still its own.
                unsafe { libc::kill(child, libc::SIGKILL) };
                return Err(fault);
            }
            tell.write_all(b"g").step(|| "let the sandbox go on".into())?;
            Ok(Side::Jailer(child))
        }
    }
}

fn map_ids(child: i32, ids: IdMap) -> Result<(), Fault> {
    let line = format!("{} {} {}\n", ids.inside, ids.outside, ids.count);
    if !Uid::effective().is_root() {
        // user_namespaces(7): without privilege a group map may only be written once setgroups is denied
        write(child, "setgroups", "deny")?;
    }
    write(child, "uid_map", &line)?;
    let groups = if Uid::effective().is_root() {
        line
    } else {
        format!("{} {} {}\n", ids.inside, nix::unistd::getegid(), ids.count)
    };
    write(child, "gid_map", &groups)
}

fn write(child: i32, file: &str, text: &str) -> Result<(), Fault> {
    fs::write(format!("/proc/{child}/{file}"), text).step(|| format!("write {file}"))
}

/// Names the host and brings up loopback, the only network inside.
pub fn configure(hostname: &str) -> Result<(), Fault> {
    sethostname(hostname).step(|| "set the host name".into())?;
    bring_up_loopback().step(|| "bring up loopback".into())
}

fn bring_up_loopback() -> std::io::Result<()> {
    // any socket of the namespace will do for the request; this one is bound to nothing that leaves it
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is a whole ifreq that lives beyond the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}
