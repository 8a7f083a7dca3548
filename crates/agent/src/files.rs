//! Files: `FileService` for the agent's own sandbox. `sandbox_id` is ignored: there is only one here.
//!
//! Paths are resolved here, inside the sandbox, with the rights of its user; the node never looks at them but to refuse
//! what is malformed. Nothing here waits for another process: what is neither file nor folder is not opened.
//!
//! What one message bounds is done inline, and streams of bytes piece by piece; what goes through folders is done by
//! [`crate::worker`], and ends when its call is dropped.

mod archive;
mod content;
mod copy;
mod delete;
mod draft;
mod folder;
mod glob;
mod info;
mod list;
mod mode;
mod read;
mod search;
mod service;
mod times;
pub(crate) mod walk;
mod watch;
mod write;

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use tonic::{Code, Status};

use crate::status;
pub(crate) use draft::{create_folders, of_descriptor};
pub(crate) use service::Files;

/// PATH_MAX (limits.h), with the NUL that ends it.
const MAX_PATH: usize = 4096;
/// How much of a path an error message shows, in characters: messages travel as headers.
const SHOWN: usize = 1000;

/// Takes a path as the contract wants it: absolute, without NUL and `..`.
pub(crate) fn parse_path(path: &str) -> Result<PathBuf, Status> {
    parse_raw(path, &[])
}

/// Takes a path from its two fields, of which the second is for what is not UTF-8.
fn parse_raw(path: &str, raw: &[u8]) -> Result<PathBuf, Status> {
    let shown = String::from_utf8_lossy(raw);
    if !raw.is_empty() && !path.is_empty() && shown != path {
        return Err(Status::invalid_argument(format!("path {path:.200} and its raw bytes {shown:.200} differ")));
    }
    let bytes = if raw.is_empty() { path.as_bytes() } else { raw };
    let given = Path::new(OsStr::from_bytes(bytes));
    let fault = if bytes.len() >= MAX_PATH {
        "is too long"
    } else if bytes.contains(&0) {
        "must not contain NUL"
    } else if !given.is_absolute() {
        "must be absolute"
    } else if given.components().any(|part| part == Component::ParentDir) {
        "must not contain .."
    } else {
        // Puts it together anew, without slashes and dots that mean nothing.
        return Ok(given.components().collect());
    };
    Err(Status::invalid_argument(format!("path {:.200} {fault}", given.to_string_lossy())))
}

/// A path as messages show it.
pub(crate) fn shown(path: &Path) -> String {
    path.to_string_lossy().chars().take(SHOWN).collect()
}

/// Says what went wrong with `operation` on `path`. The sandbox refusing its own user is a matter of its state, not of
/// the caller's rights.
pub(crate) fn failed(operation: &str, path: &Path) -> impl Fn(io::Error) -> Status + use<> {
    let operation = format!("{operation} {}", shown(path));
    move |error| {
        let status = status::from_io(&operation, &error);
        match status.code() {
            Code::PermissionDenied => Status::failed_precondition(status.message()),
            _ => status,
        }
    }
}

fn neither(path: &Path) -> Status {
    Status::failed_precondition(format!("{} is neither a file nor a folder", shown(path)))
}

fn is_folder(path: &Path) -> Status {
    Status::failed_precondition(format!("{} is a folder", shown(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_put_together_anew() {
        assert_eq!(parse_path("/a//./b/").unwrap().to_str(), Some("/a/b"));
        assert_eq!(parse_path("/").unwrap().to_str(), Some("/"));
    }

    #[test]
    fn malformed_paths_are_refused_with_the_reason() {
        let long = format!("/{}", "a".repeat(4095));
        let cases = [("", "absolute"), ("a", "absolute"), ("/a\0", "NUL"), ("/a/../b", ".."), (&long, "too long")];
        for (path, reason) in cases {
            for error in [parse_path(path).unwrap_err(), parse_raw("", path.as_bytes()).unwrap_err()] {
                assert_eq!(error.code(), Code::InvalidArgument);
                assert!(error.message().contains(reason), "{}", error.message());
                assert!(error.message().len() < 300);
            }
        }
    }

    #[test]
    fn raw_bytes_win_unless_the_path_is_another() {
        assert_eq!(parse_raw("", b"/a\xff").unwrap().as_os_str().as_bytes(), b"/a\xff");
        assert_eq!(parse_raw("/a\u{fffd}", b"/a\xff").unwrap().as_os_str().as_bytes(), b"/a\xff");
        assert_eq!(parse_raw("/b", b"/a").unwrap_err().code(), Code::InvalidArgument);
    }

    #[test]
    fn what_the_sandbox_refuses_its_user_is_a_failed_precondition() {
        let status = failed("write", Path::new("/etc/a"))(io::Error::from_raw_os_error(libc::EACCES));
        assert_eq!(
            (status.code(), status.message()),
            (Code::FailedPrecondition, "failed to write /etc/a: permission denied")
        );
    }
}
