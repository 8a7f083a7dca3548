//! Makes the root file system of an image fit for a sandbox: the places that something is mounted on exist, and the
//! few files that tell programs where they are say so.
//!
//! A link in such a place is replaced and never followed. A file is replaced and never written to: it may be another
//! name of a layer's.

use std::{
    ffi::{OsStr, OsString},
    fs::{File, Permissions},
    io::{Read, Write},
    net::Ipv4Addr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
};

use nix::{
    fcntl::{OFlag, openat, readlinkat},
    sys::stat::Mode,
};

use crate::{
    ImageError,
    error::{writing, writing_at},
    job::Job,
    root::{self, FOLDER, Kind, Root},
    users,
};

/// What a sandbox has mounts on, or programs expect.
const FOLDERS: [&str; 9] = ["/proc", "/dev", "/sys", "/tmp", "/var/tmp", "/run", "/workspace", "/home/user", "/etc"];
/// What a daemon leaves in the root of a container: some programs take it for a sign that they run in one.
const CONTAINER: &str = "/.dockerenv";
/// What is at the top of an image is told to whoever shows it in one message of 64 KiB, as JSON: how much of that the names
/// there and the targets of links may take, and what each takes besides. Real images have some thirty names there.
const TOP_MOST: usize = 32 << 10;
const TOP_EACH: usize = 64;
/// Real lists of users are a few kilobytes.
const USERS_MOST: u64 = 1 << 20;

/// Where names of users, groups and hosts are looked up.
pub const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// Files of `/etc` that tell a sandbox about itself, by their names.
#[must_use]
pub fn about_itself(nameserver: Ipv4Addr) -> [(&'static str, String); 3] {
    [
        ("hosts", "127.0.0.1 localhost sandbox\n::1 localhost\n".to_owned()),
        ("hostname", "sandbox\n".to_owned()),
        // who answers in network mode `open`; without an interface there is no way there, which is found out at once
        ("resolv.conf", format!("nameserver {nameserver}\n")),
    ]
}

/// Adds what is missing.
pub(crate) fn fit(root: &Root, nameserver: Ipv4Addr, job: &Job) -> Result<(), ImageError> {
    let failed = writing(&job.store, "add what a sandbox needs to the image");
    for path in FOLDERS {
        folder(root, Path::new(path)).map_err(&failed)?;
    }
    root::remove(root.folder().as_fd(), OsStr::new(&CONTAINER[1..])).map_err(|errno| failed(errno.into()))?;
    let etc = folder(root, Path::new("/etc")).map_err(&failed)?;
    let users = read(&etc, "passwd");
    let groups = read(&etc, "group");
    let files = [
        ("passwd", users::passwd(&users)),
        ("group", users::group(&groups)),
        // each sandbox has one of its own in its place
        ("machine-id", String::new()),
    ];
    for (name, content) in files.into_iter().chain(about_itself(nameserver)) {
        write(&etc, name, &content).map_err(&failed)?;
    }
    if root::kind_at(etc.as_fd(), OsStr::new("nsswitch.conf")).map_err(|errno| failed(errno.into()))?.is_none() {
        write(&etc, "nsswitch.conf", NSSWITCH).map_err(&failed)?;
    }
    check_top(root, job)
}

/// Refuses what cannot be told to whoever shows the image.
fn check_top(root: &Root, job: &Job) -> Result<(), ImageError> {
    let failed = writing_at(&job.store, "look at the image");
    let mut length = 0;
    for name in root::names(root.folder()).map_err(&failed)? {
        let refuse = |reason: String| {
            Err(ImageError::Entry { what: job.what.clone(), entry: format!("{:?}", name.to_string_lossy()), reason })
        };
        let target = match root::kind_at(root.folder().as_fd(), &name).map_err(&failed)? {
            Some(Kind::Link) => readlinkat(root.folder(), name.as_os_str()).map_err(&failed)?,
            _ => OsString::new(),
        };
        let (Some(shown), Some(target)) = (name.to_str(), target.to_str()) else {
            return refuse(
                "has a name, or leads to one, that is no UTF-8 text, which at the top of an image it must be".into(),
            );
        };
        // the name is told twice: where it is, and where it is to be
        length += TOP_EACH + 2 * json_length(shown) + json_length(target);
        if length > TOP_MOST {
            let room = TOP_MOST >> 10;
            return refuse(format!(
                "is too much at the top of an image: names and links there may take {room} KiB in all"
            ));
        }
    }
    Ok(())
}

fn json_length(text: &str) -> usize {
    serde_json::Value::from(text).to_string().len()
}

/// The folder at a path, and a real one in each step to it.
fn folder(root: &Root, path: &Path) -> std::io::Result<OwnedFd> {
    let mut here = root.folder().try_clone()?;
    for part in path.iter().skip(1) {
        here = root::ensure_folder(here.as_fd(), part, FOLDER)?;
    }
    Ok(here)
}

/// What a file says; nothing when it is no file, or no text.
fn read(folder: &OwnedFd, name: &str) -> String {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut text = String::new();
    let is_file = root::kind_at(folder.as_fd(), OsStr::new(name)) == Ok(Some(Kind::File));
    if let (true, Ok(file)) = (is_file, openat(folder, name, flags, Mode::empty()))
        && File::from(file).take(USERS_MOST).read_to_string(&mut text).is_err()
    {
        text.clear();
    }
    text
}

fn write(folder: &OwnedFd, name: &str, content: &str) -> std::io::Result<()> {
    let name = OsStr::new(name);
    root::remove(folder.as_fd(), name)?;
    let mut file = root::make_file(folder.as_fd(), name)?;
    file.write_all(content.as_bytes())?;
    file.set_permissions(Permissions::from_mode(0o644))
}
