//! Copies what is in a file: within the kernel where it can, and holes as holes.

use std::{
    fs::{File, Metadata},
    io::{self, Read, Write},
    os::unix::fs::FileExt,
};

use nix::{
    errno::Errno,
    fcntl::copy_file_range,
    unistd::{Whence, lseek},
};
use tonic::Status;

use crate::worker::Call;

/// How much the kernel copies between two looks at whether anybody still waits.
const RANGE: usize = 8 * 1024 * 1024;
const BUFFER: usize = 128 * 1024;

/// Why a copy ended early.
pub(super) enum Fault {
    /// nobody waits for it
    Call(Status),
    Io(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Fault {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

impl Fault {
    /// What it is to the caller.
    pub(super) fn status(self, failed: impl Fn(io::Error) -> Status) -> Status {
        match self {
            Self::Call(status) => status,
            Self::Io(error) => failed(error),
        }
    }
}

/// Copies all of `source`, described by `metadata`, to the empty file `copy`.
pub(super) fn copy(source: &File, metadata: &Metadata, copy: &File, call: &Call) -> Result<(), Fault> {
    let size = i64::try_from(metadata.len()).map_err(|_| Errno::EFBIG)?;
    // Files of /proc do not tell their size.
    if size == 0 {
        return copy_unsized(source, copy, call);
    }
    let mut position = 0;
    while position < size {
        let (data, hole) = next_data(source, position, size)?;
        if data >= hole || copy_range(source, copy, data, hole, call)? < hole {
            break;
        }
        position = hole;
    }
    Ok(copy.set_len(metadata.len())?)
}

/// The next part that is no hole; empty when there is none.
fn next_data(file: &File, from: i64, size: i64) -> nix::Result<(i64, i64)> {
    let data = match lseek(file, from, Whence::SeekData) {
        Ok(data) => data.min(size),
        Err(Errno::ENXIO) => return Ok((size, size)),
        // The file system does not know.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok((from, size)),
        Err(error) => return Err(error),
    };
    Ok((data, lseek(file, data, Whence::SeekHole).unwrap_or(size).min(size)))
}

/// Copies a range to the same place; returns where it came to, which is before the end when the file has shrunk.
fn copy_range(source: &File, copy: &File, mut from: i64, to: i64, call: &Call) -> Result<i64, Fault> {
    let mut buffer = Vec::new();
    while from < to {
        call.check().map_err(Fault::Call)?;
        let wanted = usize::try_from(to - from).unwrap_or(RANGE).min(RANGE);
        let copied = if buffer.is_empty() {
            let (mut from_source, mut to_copy) = (from, from);
            match copy_file_range(source, Some(&mut from_source), copy, Some(&mut to_copy), wanted) {
                Err(Errno::EINTR) => continue,
                Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM) => {
                    buffer.resize(BUFFER, 0);
                    continue;
                }
                copied => copied?,
            }
        } else {
            let wanted = wanted.min(buffer.len());
            let read = source.read_at(&mut buffer[..wanted], from.unsigned_abs())?;
            // Where the kernel does not know its holes, they are found here.
            if buffer[..read].iter().any(|byte| *byte != 0) {
                copy.write_all_at(&buffer[..read], from.unsigned_abs())?;
            }
            read
        };
        if copied == 0 {
            break;
        }
        from += i64::try_from(copied).unwrap_or(0);
    }
    Ok(from)
}

fn copy_unsized(mut source: &File, mut copy: &File, call: &Call) -> Result<(), Fault> {
    let mut buffer = vec![0; BUFFER];
    loop {
        call.check().map_err(Fault::Call)?;
        match source.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => copy.write_all(&buffer[..read])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}
