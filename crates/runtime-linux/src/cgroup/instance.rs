//! The folder that holds all groups of one server, and the lock that says the server lives.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use cloud_sandbox_model::SandboxId;
use nix::fcntl::{Flock, FlockArg};

use super::{kill_group, patiently, remove_folder};

const PREFIX: &str = "cloud-sandbox-";
/// Hexadecimal digits of a server's own part of the name.
const NAME_DIGITS: usize = 16;

/// A server's own folder in one hierarchy.
pub struct Instance {
    path: PathBuf,
    _alive: Flock<File>,
}

impl Instance {
    /// Makes and locks the folder called `name` below `base`.
    pub fn create(base: &Path, name: &str) -> io::Result<Self> {
        let path = base.join(format!("{PREFIX}{name}"));
        fs::create_dir(&path)?;
        let alive = lock(&path).and_then(|lock| {
            // between the two calls another server may have taken it for a dead one's and removed it
            let still = fs::metadata(&path).is_ok_and(|now| lock.metadata().is_ok_and(|then| now.ino() == then.ino()));
            if still { Ok(lock) } else { Err(io::Error::other("the folder was removed by another server")) }
        });
        match alive {
            Ok(alive) => Ok(Self { path, _alive: alive }),
            Err(error) => {
                let _ = fs::remove_dir(&path);
                Err(error)
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn group(&self, id: SandboxId) -> PathBuf {
        self.path.join(id.to_string())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // with a sandbox left in it this fails, and the next server reclaims it
        let _ = fs::remove_dir(&self.path);
    }
}

/// A name that no other server has.
pub fn new_name() -> String {
    format!("{:0NAME_DIGITS$x}", rand::random::<u64>())
}

fn lock(path: &Path) -> io::Result<Flock<File>> {
    let folder = File::open(path)?;
    Flock::lock(folder, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error.into())
}

/// Ends and removes what dead servers left in any hierarchy, and names their sandboxes.
pub fn reclaim() -> Vec<SandboxId> {
    let mut found = Vec::new();
    let bases: Vec<_> = super::v2::bases().into_iter().chain(super::v1::bases().into_values()).collect();
    // what is frozen in one hierarchy cannot be ended from another
    for path in bases.iter().flat_map(|base| folders(base)).filter(|path| is_instance(path)) {
        if let Ok(_dead) = lock(&path) {
            folders(&path).for_each(|group| thaw(&group));
        }
    }
    for base in bases {
        for path in folders(&base).filter(|path| is_instance(path)) {
            // a lock that somebody holds means a server that lives
            let Ok(_dead) = lock(&path) else { continue };
            for group in folders(&path) {
                end_all(&group);
                if let Err(error) = remove_folder(&group) {
                    tracing::warn!(cgroup = %group.display(), %error, "a leftover cgroup could not be removed");
                }
                found.extend(group.file_name().and_then(|name| name.to_str()?.parse::<SandboxId>().ok()));
            }
            let _ = remove_folder(&path);
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Whether a folder has a name of [`new_name`]. Others may begin theirs as we do, and what is in those is not ours to kill.
fn is_instance(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(PREFIX));
    name.is_some_and(|name| {
        name.len() == NAME_DIGITS && name.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
    })
}

fn folders(path: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// Lets a group go on, if its hierarchy is the one that freezes.
fn thaw(group: &Path) {
    let _ = super::write(group, "cgroup.freeze", 0);
    let _ = super::write(group, "freezer.state", "THAWED");
}

/// Kills every process of a group.
fn end_all(group: &Path) {
    let ended = patiently("ending a leftover sandbox", || Ok(!kill_group(group)?));
    if let Err(error) = ended {
        tracing::warn!(cgroup = %group.display(), %error, "a leftover sandbox could not be ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_begins_like_a_servers_folder_is_somebody_elses() {
        assert!(is_instance(Path::new(&format!("/sys/fs/cgroup/{PREFIX}{}", new_name()))));
        for name in ["cloud-sandbox-engine", "cloud-sandbox-", "cloud-sandbox-0123456789abcdeX", "0123456789abcdef"] {
            assert!(!is_instance(&Path::new("/sys/fs/cgroup").join(name)), "{name}");
        }
    }

    #[test]
    fn folder_of_a_living_server_cannot_be_locked_by_another() {
        let base = std::env::temp_dir().join(format!("instance-{}", new_name()));
        fs::create_dir(&base).unwrap();
        let instance = Instance::create(&base, "a").unwrap();
        assert!(lock(instance.path()).is_err());
        let path = instance.path().to_path_buf();
        drop(instance);
        assert!(!path.exists(), "a clean end leaves nothing");
        fs::remove_dir(&base).unwrap();
    }
}
