//! The folder of everything that is kept: who may use it, and the secret in it.
//!
//! Invariant: of the processes that host sandboxes (`serve` and `node`), one alone uses a folder at a time. The lock is
//! the kernel's, so that it ends with the process, however that ends.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use cloud_sandbox_auth::token::SECRET_MIN;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

const LOCK: &str = "lock";
const SECRET: &str = "jwt-secret";
const SECRET_BYTES: usize = 32;

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("data_dir {} is in use by another server (process {holder}); give this one a folder of its own with --data-dir", path.display())]
    InUse { path: PathBuf, holder: String },
    #[error("the secret in {} is shorter than {SECRET_MIN} bytes; remove the file to have a new one made", path.display())]
    Weak { path: PathBuf },
    #[error("failed to {operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { operation, path, source }
}

/// A folder that exists and is this user's.
#[derive(Debug, Clone)]
pub struct DataDir(PathBuf);

/// The right to be the one server in a folder, for as long as it lives.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl DataDir {
    /// Makes the folder unless it is there. Nobody else may look into a new one: secrets lie there.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make the folder", path))?;
        Ok(Self(path.to_owned()))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A folder in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Becomes the one server in this folder, or says who is.
    pub fn lock(&self) -> Result<Lock, DataDirError> {
        let path = self.join(LOCK);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(failed("open", &path))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                return Err(DataDirError::InUse { path: self.0.clone(), holder: holder(&mut file) });
            }
            Err((_, error)) => return Err(failed("lock", &path)(error.into())),
        };
        // the number is for people; a failure to write it costs them a line and nobody else anything
        _ = lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| write!(lock, "{}", std::process::id()));
        Ok(Lock { _file: lock })
    }

    /// The secret that was made in the folder at `path`; `None` where there is none that this user may read.
    pub fn known_secret(path: &Path) -> Result<Option<String>, DataDirError> {
        let path = path.join(SECRET);
        match std::fs::read_to_string(&path) {
            Ok(secret) => strong(secret, path).map(Some),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// The secret that was made here, made now if there is none. Several roles may ask at once: one makes it.
    pub fn secret(&self) -> Result<String, DataDirError> {
        let path = self.join(SECRET);
        match std::fs::read_to_string(&path) {
            Ok(secret) => return strong(secret, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("read", &path)(error)),
        }
        let mut secret = [0_u8; SECRET_BYTES];
        rand::fill(&mut secret);
        let text: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        // written whole under a name of its own, then linked: nobody ever reads half a secret
        let draft = self.join(&format!("{SECRET}.{}", std::process::id()));
        write_private(&draft, &text).map_err(|error| {
            // on a full disk it is there, and empty
            _ = std::fs::remove_file(&draft);
            failed("write", &draft)(error)
        })?;
        let linked = std::fs::hard_link(&draft, &path);
        _ = std::fs::remove_file(&draft);
        match linked {
            Ok(()) => Ok(text),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let secret = std::fs::read_to_string(&path).map_err(failed("read", &path))?;
                strong(secret, path)
            }
            Err(error) => Err(failed("write", &path)(error)),
        }
    }
}

/// What was put there by somebody else must not be weaker than what is made here, or empty.
fn strong(secret: String, path: PathBuf) -> Result<String, DataDirError> {
    if secret.len() < SECRET_MIN { Err(DataDirError::Weak { path }) } else { Ok(secret) }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(1..) => text,
        _ => "unknown".to_owned(),
    }
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, DataDir) {
        let parent = tempfile::tempdir().unwrap();
        let folder = DataDir::open(&parent.path().join("a/b")).unwrap();
        (parent, folder)
    }

    #[test]
    fn second_server_is_told_who_has_the_folder_and_gets_it_afterwards() {
        let (_parent, folder) = folder();
        let lock = folder.lock().unwrap();
        let refusal = folder.lock().unwrap_err().to_string();
        assert!(refusal.contains(&format!("process {}", std::process::id())), "{refusal}");
        drop(lock);
        folder.lock().unwrap();
    }

    #[test]
    fn secret_is_made_once_and_is_for_its_owner_alone() {
        let (_parent, folder) = folder();
        let secret = folder.secret().unwrap();
        assert_eq!((secret.len(), folder.secret().unwrap()), (64, secret.clone()));
        assert_eq!(DataDir::known_secret(folder.path()).unwrap(), Some(secret));
        assert_eq!(DataDir::known_secret(&folder.join("nowhere")).unwrap(), None);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder.join(SECRET)), mode(folder.path())), (0o600, 0o700));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn empty_or_short_secret_is_never_signed_with() {
        let (_parent, folder) = folder();
        for weak in ["", "short"] {
            std::fs::write(folder.join(SECRET), weak).unwrap();
            let refusal = folder.secret().unwrap_err().to_string();
            assert!(refusal.contains("jwt-secret") && refusal.contains("32 bytes"), "{refusal}");
        }
    }
}
