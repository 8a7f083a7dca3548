//! What the kernel counts for each user of the whole host, bounded for the sandbox alone.
//!
//! What a process takes is charged to its user namespace and to that of whoever made it, up to the host's own: without
//! bounds one sandbox takes all that the node's user may have on the host (namespaces(7), "/proc/sys/user").

use std::{fs, io, path::Path};

use crate::fault::{Fault, Step};

/// The file's name, and how many the sandbox may have. A host allows a user 128 instances and at least 8192 watches.
const QUOTAS: [(&str, u32); 12] = [
    ("max_inotify_instances", 16),
    ("max_inotify_watches", 8192),
    ("max_fanotify_groups", 0),
    ("max_fanotify_marks", 0),
    // those that it is in are made; seccomp keeps it from making others, and so does this
    ("max_cgroup_namespaces", 0),
    ("max_ipc_namespaces", 0),
    ("max_mnt_namespaces", 0),
    ("max_net_namespaces", 0),
    ("max_pid_namespaces", 0),
    ("max_time_namespaces", 0),
    ("max_user_namespaces", 0),
    ("max_uts_namespaces", 0),
];

/// Bounds the caller's user namespace, by a `/proc` that can be written.
pub fn set(proc: &Path) -> Result<(), Fault> {
    for (name, most) in QUOTAS {
        match fs::OpenOptions::new()
            .write(true)
            .open(proc.join("sys/user").join(name))
            .and_then(|mut file| io::Write::write_all(&mut file, most.to_string().as_bytes()))
        {
            // a kernel that does not count it has not got it
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            written => written.step(|| format!("set {name}"))?,
        }
    }
    Ok(())
}
