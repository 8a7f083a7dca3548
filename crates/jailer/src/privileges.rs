//! What the agent and everything it starts may not do.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::fs::FileExt},
};

use cloud_sandbox_jailer::{IdMap, Spec};
use nix::{
    sys::prctl::set_no_new_privs,
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};

use crate::fault::{Fault, Step};

/// More than the last capability of any kernel so far; the kernel says where its own end.
const CAPABILITIES_MAX: libc::c_ulong = 64;

/// Takes the ids with which the root file system is built: root of the namespace where the map has one.
pub fn become_namespace_root(ids: IdMap) -> Result<(), Fault> {
    if ids.inside != 0 {
        return Ok(());
    }
    setgroups(&[]).step(|| "leave all groups".into())?;
    set_ids(0)
}

fn set_ids(id: u32) -> Result<(), Fault> {
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    setresgid(group, group, group).step(|| format!("become group {id}"))?;
    setresuid(user, user, user).step(|| format!("become user {id}"))
}

/// Sets resource limits, soft and hard; never above what this process has.
pub fn limit(limits: &[(u32, u64)]) -> Result<(), Fault> {
    for (resource, value) in limits {
        let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: both calls get a valid rlimit.
        unsafe {
            if libc::getrlimit(*resource as _, &raw mut now) != 0 {
                return Err(Fault::last(&format!("read resource limit {resource}")));
            }
            let value = (*value).min(now.rlim_max);
            let new = libc::rlimit { rlim_cur: value, rlim_max: value };
            if libc::setrlimit(*resource as _, &raw const new) != 0 {
                return Err(Fault::last(&format!("set resource limit {resource}")));
            }
        }
    }
    Ok(())
}

/// Gives up every capability for good and becomes the sandbox's user.
pub fn drop(spec: &Spec) -> Result<(), Fault> {
    for capability in 0..CAPABILITIES_MAX {
        // SAFETY: plain system call. EINVAL is the first number that this kernel does not know.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            break;
        }
    }
    set_ids(spec.user)?;
    clear_capabilities()?;
    set_no_new_privs().step(|| "set no_new_privs".into())?;
    // set last: the kernel forgets it when ids change
    // SAFETY: plain system call.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) } != 0 {
        return Err(Fault::last("tie the sandbox's life to the node's"));
    }
    Ok(())
}

/// capset(2), version 3: two words for each set.
fn clear_capabilities() -> Result<(), Fault> {
    const VERSION_3: u32 = 0x2008_0522;
    #[repr(C)]
    struct Head {
        version: u32,
        pid: i32,
    }
    let head = Head { version: VERSION_3, pid: 0 };
    let none = [0_u32; 6];
    // SAFETY: the head names version 3, for which the data is two structs of three words.
    unsafe {
        if libc::syscall(libc::SYS_capset, &raw const head, none.as_ptr()) != 0 {
            return Err(Fault::last("drop capabilities"));
        }
        // an ambient set cannot outlive the inheritable one; said once more because it is cheap
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    }
    Ok(())
}

/// Installs the seccomp programs, each an array of `struct sock_filter`, for this process and all after it.
pub fn filter_syscalls(programs: &OwnedFd, lengths: &[u16]) -> Result<(), Fault> {
    let file = File::from(programs.try_clone().step(|| "open the seccomp programs".into())?);
    let mut offset = 0;
    for length in lengths {
        let mut bytes = vec![0; usize::from(*length) * size_of::<libc::sock_filter>()];
        // by offset: the descriptor's position is shared by all jailers
        file.read_exact_at(&mut bytes, offset).step(|| "read a seccomp program".into())?;
        offset += bytes.len() as u64;
        let program = libc::sock_fprog { len: *length, filter: bytes.as_mut_ptr().cast() };
        // SAFETY: the program points at `length` whole instructions in `bytes`, which lives beyond the call; they may
        // be less aligned than sock_filter, and the kernel copies them bytewise.
        let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
        if done != 0 {
            return Err(Fault::last("install a seccomp program"));
        }
    }
    Ok(())
}
