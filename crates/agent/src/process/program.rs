//! Finds the program to run, as the process itself would, so that a failure says what is wrong.

use std::{
    fs::Metadata,
    path::{Path, PathBuf},
};

use nix::unistd::AccessFlags;
use tonic::Status;

use crate::kernel;

/// Where to look when the environment has no `PATH`, as execvp(3) does.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The file that `name` means to a process in `cwd` with `search` as its `PATH`.
pub(super) fn find(name: &str, search: Option<&str>, cwd: &Path) -> Result<PathBuf, Status> {
    if name.contains('/') {
        return check(name, cwd.join(name));
    }
    let mut refused = None;
    for folder in search.unwrap_or(DEFAULT_PATH).split(':') {
        // An empty part means the current folder.
        match check(name, cwd.join(folder).join(name)) {
            Ok(program) => return Ok(program),
            Err(status) if status.code() == tonic::Code::PermissionDenied => refused = refused.or(Some(status)),
            Err(_) => {}
        }
    }
    Err(refused.unwrap_or_else(|| Status::not_found(format!("program {name:.200} not found in PATH"))))
}

fn check(name: &str, path: PathBuf) -> Result<PathBuf, Status> {
    match path.metadata() {
        Ok(metadata) if is_executable(&path, &metadata) => Ok(path),
        Ok(_) => Err(Status::permission_denied(format!("program {name:.200} is not executable"))),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(Status::permission_denied(format!("program {name:.200} is in a folder that may not be entered")))
        }
        Err(_) => Err(Status::not_found(format!("program {name:.200} not found"))),
    }
}

fn is_executable(path: &Path, metadata: &Metadata) -> bool {
    metadata.is_file() && kernel::may(path, AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use tonic::Code;

    use super::*;

    fn folder_with(name: &str, mode: u32) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        folder
    }

    #[test]
    fn a_later_executable_wins_over_an_earlier_one_that_is_not() {
        let (first, second) = (folder_with("tool", 0o644), folder_with("tool", 0o755));
        let search = format!("{}:{}", first.path().display(), second.path().display());
        let found = find("tool", Some(&search), Path::new("/")).unwrap();
        assert_eq!(found, second.path().join("tool"));
    }

    #[test]
    fn a_file_without_the_bit_is_refused_by_name() {
        let folder = folder_with("tool", 0o644);
        let error = find("tool", folder.path().to_str(), Path::new("/")).unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::PermissionDenied, "program tool is not executable"));
    }

    #[test]
    fn a_name_with_a_slash_is_meant_from_the_current_folder() {
        let folder = folder_with("tool", 0o755);
        assert_eq!(find("./tool", Some(""), folder.path()).unwrap(), folder.path().join("./tool"));
        assert_eq!(find("./none", Some(""), folder.path()).unwrap_err().code(), Code::NotFound);
    }

    #[test]
    fn an_empty_part_of_path_is_the_current_folder() {
        let folder = folder_with("tool", 0o755);
        assert!(find("tool", Some("/nowhere:"), folder.path()).is_ok());
        assert!(find("tool", Some("/nowhere"), folder.path()).is_err());
    }
}
