//! The one table from system errors to what the node is told: a code, and a lowercase message that names the input.
//!
//! Messages travel as headers, percent-encoded and bounded; whoever names a long input in one cuts it.

use std::io;

use nix::errno::Errno;
use tonic::{Code, Status};

/// Turns the failure of `operation` (as in `read /workspace/a`) into what the node is told.
pub(crate) fn from_io(operation: &str, error: &io::Error) -> Status {
    let Some(errno) = error.raw_os_error().map(Errno::from_raw) else {
        return Status::internal(format!("failed to {operation}: {error}"));
    };
    let (code, reason) = meaning(errno);
    Status::new(code, format!("failed to {operation}: {reason}"))
}

fn meaning(errno: Errno) -> (Code, &'static str) {
    match errno {
        Errno::ENOENT => (Code::NotFound, "no such file or folder"),
        Errno::EACCES | Errno::EPERM => (Code::PermissionDenied, "permission denied"),
        Errno::EROFS => (Code::PermissionDenied, "the file system is read-only"),
        Errno::ENOTDIR => (Code::FailedPrecondition, "a part of the path is not a folder"),
        Errno::EISDIR => (Code::FailedPrecondition, "it is a folder"),
        Errno::EEXIST => (Code::AlreadyExists, "it exists already"),
        Errno::ENOTEMPTY => (Code::FailedPrecondition, "the folder is not empty"),
        Errno::ELOOP => (Code::FailedPrecondition, "too many symbolic links"),
        Errno::EBUSY => (Code::FailedPrecondition, "it is in use as a mount point"),
        Errno::ETXTBSY => (Code::FailedPrecondition, "it is open for writing"),
        Errno::ENXIO | Errno::ENODEV | Errno::EAGAIN => (Code::FailedPrecondition, "not a file or folder"),
        Errno::ENAMETOOLONG => (Code::InvalidArgument, "the name is too long"),
        Errno::EINVAL => (Code::InvalidArgument, "the file system refuses it"),
        Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => (Code::ResourceExhausted, "no space left"),
        Errno::ENOMEM => (Code::ResourceExhausted, "out of memory"),
        Errno::EMFILE | Errno::ENFILE => (Code::ResourceExhausted, "too many open files"),
        other => (Code::Internal, other.desc()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_full_quota_are_told_alike() {
        for errno in [Errno::ENOSPC, Errno::EDQUOT] {
            let status = from_io("write /workspace/a", &io::Error::from_raw_os_error(errno as i32));
            assert_eq!(status.code(), Code::ResourceExhausted);
            assert_eq!(status.message(), "failed to write /workspace/a: no space left");
        }
    }

    #[test]
    fn an_error_without_a_number_is_internal() {
        assert_eq!(from_io("read /a", &io::Error::other("odd")).code(), Code::Internal);
    }
}
