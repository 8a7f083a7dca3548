//! Users that processes run as: the agent's own, or where it may change to another, that one.

use std::{
    collections::HashMap,
    fs::OpenOptions,
    io::{self, Read},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    process::Command,
};

use nix::{
    errno::Errno,
    unistd::{geteuid, getuid},
};
use tonic::Status;

use crate::apart::CAPABILITIES;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
/// The most that is read of either: they are the sandbox's, and may be anything.
const MAX_TABLE: u64 = 1024 * 1024;
/// The most groups of a user; the kernel takes 65536.
const MAX_GROUPS: usize = 1024;

/// What it takes to run, own files as, and end a process as somebody else (linux/capability.h).
const CAP_KILL: u32 = 1 << 5;
const CAP_SETGID: u32 = 1 << 6;
const CAP_SETUID: u32 = 1 << 7;
const CHANGE: u32 = CAP_KILL | CAP_SETGID | CAP_SETUID;

/// The user of a sandbox, by name and number, where its template does not say otherwise.
const SANDBOX_USER: &str = "user";
const SANDBOX_UID: libc::uid_t = 1000;

/// A user other than the agent's own.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct User {
    pub(super) uid: libc::uid_t,
    pub(super) gid: libc::gid_t,
    groups: Vec<libc::gid_t>,
    name: String,
    home: String,
}

/// The user that `wanted` names, by name or number; none when it is the agent's own.
pub(super) fn resolve(wanted: &str) -> Result<Option<User>, Status> {
    if wanted.is_empty() {
        return Ok(None);
    }
    let own = geteuid().as_raw();
    let accounts = read_table(PASSWD);
    let found = find(wanted, &accounts);
    if found.is_none() && wanted == SANDBOX_USER && own == SANDBOX_UID {
        // an image need not know the user that every sandbox has
        return Ok(None);
    }
    let mut user = found.ok_or_else(|| Status::failed_precondition(format!("user {wanted:.200} is not known")))?;
    if user.uid == own {
        return Ok(None);
    }
    if !may_change() {
        let own = name_of(own, &accounts);
        let message = format!("cannot run as user {wanted:.200}: this sandbox runs everything as {own:.200}");
        return Err(Status::failed_precondition(message));
    }
    user.groups = groups_of(&user, &read_table(GROUP));
    Ok(Some(user))
}

impl User {
    /// Tells the process who it is, as far as `env` does not.
    pub(super) fn complete(&self, env: &mut HashMap<String, String>) {
        for (name, value) in [("HOME", &self.home), ("USER", &self.name), ("LOGNAME", &self.name)] {
            env.entry(name.to_owned()).or_insert_with(|| value.clone());
        }
    }

    fn apply(self, command: &mut Command) {
        let Self { uid, gid, groups, .. } = self;
        let change = move || {
            // System calls, since the C library's functions of these names stop the other threads, which a fork leaves
            // behind. The user is last: it takes the right to the others along.
            // SAFETY: the list lives as long as the command.
            unsafe {
                Errno::result(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
                Errno::result(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
                Errno::result(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
            }
            Ok(())
        };
        // SAFETY: plain system calls are async-signal-safe.
        unsafe { command.pre_exec(change) };
    }
}

/// Lets what `command` starts be `user`, or the agent's own: wholly, also where the agent stands apart and is its own user
/// by the effective id alone.
pub(super) fn apply(user: Option<User>, command: &mut Command) {
    let own = geteuid().as_raw();
    match user {
        Some(user) => user.apply(command),
        None if getuid().as_raw() != own => {
            // Three ids that it has already, so that it takes no capability.
            // SAFETY: a plain system call is async-signal-safe.
            let change = move || unsafe { Errno::result(libc::syscall(libc::SYS_setresuid, own, own, own)) };
            // SAFETY: as above.
            unsafe { command.pre_exec(move || change().map(drop).map_err(io::Error::from)) };
        }
        None => {}
    }
}

/// Looks up a user without the groups it is in. Numbers need no account.
fn find(wanted: &str, accounts: &str) -> Option<User> {
    let number = wanted.parse().ok().filter(|number| *number != libc::uid_t::MAX);
    let account = accounts.lines().filter_map(account).find(|user| user.name == wanted || Some(user.uid) == number);
    account.or_else(|| {
        // Everywhere the same, also where an image has no accounts.
        let uid = if wanted == "root" { 0 } else { number? };
        let home = if uid == 0 { "/root" } else { "/" };
        Some(User { uid, gid: uid, groups: Vec::new(), name: wanted.to_owned(), home: home.to_owned() })
    })
}

/// A line of passwd(5).
fn account(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
    let home = fields.nth(1).filter(|home| home.starts_with('/') && !home.contains('\0')).unwrap_or("/");
    let known = uid != libc::uid_t::MAX && gid != libc::gid_t::MAX && !name.contains('\0');
    known.then(|| User { uid, gid, groups: Vec::new(), name: name.to_owned(), home: home.to_owned() })
}

fn name_of(uid: libc::uid_t, accounts: &str) -> String {
    let account = accounts.lines().filter_map(account).find(|user| user.uid == uid);
    account.map_or_else(|| uid.to_string(), |user| user.name)
}

/// Its own group, and those that list it (group(5)).
fn groups_of(user: &User, table: &str) -> Vec<libc::gid_t> {
    let listed = table.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(2);
        let gid = fields.next()?.parse().ok().filter(|gid| *gid != libc::gid_t::MAX)?;
        fields.next()?.split(',').any(|member| member == user.name).then_some(gid)
    });
    let mut groups: Vec<libc::gid_t> = std::iter::once(user.gid).chain(listed).take(MAX_GROUPS).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// The text of a table; empty where there is none.
fn read_table(path: &str) -> String {
    let read = || -> io::Result<Vec<u8>> {
        // It may be something whose opening would wait.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
        let mut text = Vec::new();
        if file.metadata()?.is_file() {
            file.take(MAX_TABLE).read_to_end(&mut text)?;
        }
        Ok(text)
    };
    read().map_or_else(|_| String::new(), |text| String::from_utf8_lossy(&text).into_owned())
}

/// Whether the agent has the capabilities in effect (capget(2)).
fn may_change() -> bool {
    let header = [CAPABILITIES, 0];
    // Effective, permitted and inheritable, of the first and of the second 32.
    let mut data = [0_u32; 6];
    // SAFETY: both are as large as version 3 of the call has them, and live.
    let done = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) };
    done == 0 && data[0] & CHANGE == CHANGE
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNTS: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\n\nada:x:1000:100:Ada,,:/home/ada:/bin/sh
:x:5:5::/:\nhomeless:x:7:8::relative:\nhuge:x:4294967295:1::/:\n";

    fn ids(wanted: &str) -> Option<(u32, u32)> {
        find(wanted, ACCOUNTS).map(|user| (user.uid, user.gid))
    }

    #[test]
    fn users_are_found_by_name_and_by_number() {
        assert_eq!(ids("ada"), Some((1000, 100)));
        assert_eq!(ids("1000"), Some((1000, 100)));
        assert_eq!(ids("4000"), Some((4000, 4000)));
        assert_eq!(find("root", "").map(|user| user.uid), Some(0));
        assert_eq!(find("homeless", ACCOUNTS).unwrap().home, "/");
    }

    #[test]
    fn nonsense_names_nobody() {
        for wanted in ["nobody-here", "huge", "4294967295", "-1", "", "ada:x", "broken"] {
            assert_eq!(ids(wanted), None, "{wanted}");
        }
    }

    #[test]
    fn groups_are_its_own_and_those_that_list_it() {
        let user = find("ada", ACCOUNTS).unwrap();
        let table = "wheel:x:10:bob,ada\nnone:x:11:\nbroken\nadas:x:12:adam\nusers:x:100:ada\n";
        assert_eq!(groups_of(&user, table), [10, 100]);
    }

    #[test]
    fn what_the_caller_says_of_the_user_stands() {
        let mut env: HashMap<String, String> = [("HOME".to_owned(), "/tmp".to_owned())].into();
        find("ada", ACCOUNTS).unwrap().complete(&mut env);
        let of = |name: &str| env[name].as_str();
        assert_eq!((of("HOME"), of("USER"), of("LOGNAME")), ("/tmp", "ada", "ada"));
    }
}
