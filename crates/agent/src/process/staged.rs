//! A file that lives as long as a process, to hold its code.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
};

use cloud_sandbox_proto::agent::v1::StagedFile;
use nix::fcntl::AT_FDCWD;
use tonic::Status;

use super::user::User;
use crate::{files, kernel, status};

/// Removes what it made when dropped: the file, its folder with whatever the process left in it, and further parents
/// as far as they are empty.
#[derive(Debug, Default)]
pub(super) struct Staged {
    file: Option<PathBuf>,
    folder: Option<PathBuf>,
    parents: Vec<PathBuf>,
}

impl Staged {
    /// Writes the file, for the eyes of its owner only: `user`, or the agent's own.
    pub(super) fn write(request: &StagedFile, user: Option<&User>) -> Result<Self, Status> {
        let path = files::parse_path(&request.path)?;
        let mut staged = Self::default();
        staged
            .make(&path, &request.content, user)
            .map_err(|error| status::from_io(&format!("stage {:.1000}", request.path), &error))?;
        Ok(staged)
    }

    fn make(&mut self, path: &Path, content: &[u8], user: Option<&User>) -> io::Result<()> {
        if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
            if let Some(above) = folder.parent() {
                files::create_folders(above, &mut self.parents)?;
            }
            DirBuilder::new().mode(0o700).create(folder)?;
            self.folder = Some(folder.to_owned());
            if let Some(user) = user {
                let folder = kernel::open_folder(AT_FDCWD, folder)?;
                fchown(folder, Some(user.uid), Some(user.gid))?;
            }
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        self.file = Some(path.to_owned());
        file.write_all(content)?;
        user.map_or(Ok(()), |user| fchown(&file, Some(user.uid), Some(user.gid)))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // The process may have removed or replaced any of it; what is gone needs no removal.
        match (&self.folder, &self.file) {
            (Some(folder), _) => drop(fs::remove_dir_all(folder)),
            (None, Some(file)) => drop(fs::remove_file(file)),
            (None, None) => {}
        }
        for parent in self.parents.iter().rev() {
            let _ = fs::remove_dir(parent);
        }
    }
}
