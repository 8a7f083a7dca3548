//! A file whose data comes.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    fs::File,
    io,
    ops::Range,
    os::{fd::BorrowedFd, unix::fs::FileExt},
};

use cloud_sandbox_proto::checkpoint::v1::TreeEntry;
use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};
use tonic::Status;

use crate::tree::{
    base::check_extents,
    meta,
    roots::{failed, shown},
};

/// What a file system gives space to at a time. Zeros that fill one need none.
const PAGE: usize = 4096;
static ZEROS: [u8; PAGE] = [0; PAGE];

pub(super) struct Content {
    file: File,
    entry: TreeEntry,
    /// where data is still to come
    missing: VecDeque<Range<u64>>,
}

impl Content {
    /// Makes the file, all of it a hole.
    pub(super) fn create(folder: BorrowedFd<'_>, name: &OsStr, mut entry: TreeEntry) -> Result<Self, Status> {
        if check_extents(&entry)? > entry.size {
            let message = format!("extents of {} must end within its size", shown(&entry.path));
            return Err(Status::invalid_argument(message));
        }
        let missing = std::mem::take(&mut entry.extents).into_iter().map(|extent| {
            let length: u64 = extent.chunks.iter().map(|chunk| u64::from(chunk.length)).sum();
            extent.offset..extent.offset + length
        });
        let missing = missing.collect();
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = openat(folder, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map(File::from);
        let file = made.map_err(failed("restore", &entry.path))?;
        if entry.size > 0 {
            file.set_len(entry.size).map_err(failed("restore", &entry.path))?;
        }
        Ok(Self { file, entry, missing })
    }

    /// Takes the next data.
    pub(super) fn write(&mut self, mut data: &[u8]) -> Result<(), Status> {
        while !data.is_empty() {
            let Some(run) = self.missing.front_mut() else {
                let message = format!("{} has got more data than its extents have", shown(&self.entry.path));
                return Err(Status::invalid_argument(message));
            };
            let length = data.len().min(usize::try_from(run.end - run.start).unwrap_or(usize::MAX));
            let (now, later) = data.split_at(length);
            write_but_zeros(&self.file, now, run.start).map_err(failed("restore", &self.entry.path))?;
            run.start += length as u64;
            if run.is_empty() {
                self.missing.pop_front();
            }
            data = later;
        }
        Ok(())
    }

    /// Ends it, when all of its data has come.
    pub(super) fn finish(self) -> Result<(), Status> {
        let missing: u64 = self.missing.iter().map(|run| run.end - run.start).sum();
        if missing > 0 {
            let message = format!("{} lacks {missing} bytes of its extents", shown(&self.entry.path));
            return Err(Status::invalid_argument(message));
        }
        meta::apply(&self.file, &self.entry).map_err(failed("restore", &self.entry.path))
    }
}

/// Writes data into a hole, and leaves a hole where whole pages are zero: small holes were sent as zeros.
fn write_but_zeros(file: &File, data: &[u8], offset: u64) -> io::Result<()> {
    // Up to the next page, and then page by page.
    let first = (PAGE - (offset % PAGE as u64) as usize).min(data.len());
    let (mut start, mut end) = (0, first);
    while end < data.len() {
        let page = &data[end..data.len().min(end + PAGE)];
        if page.len() == PAGE && *page == ZEROS {
            file.write_all_at(&data[start..end], offset + start as u64)?;
            start = end + PAGE;
        }
        end += page.len();
    }
    // A page of zeros may have been the last.
    file.write_all_at(&data[start.min(end)..end], offset + start as u64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn pages_of_zeros_stay_holes() {
        let mut data = vec![0; 64 * PAGE + 17];
        for page in [0, 7, 8, 63] {
            data[page * PAGE + 100] = 1;
        }
        for offset in [0, 1, PAGE as u64 - 1, PAGE as u64, 3 * PAGE as u64 + 5] {
            let file = tempfile::tempfile_in("/dev/shm").unwrap();
            file.set_len(offset + data.len() as u64).unwrap();
            write_but_zeros(&file, &data, offset).unwrap();
            let mut written = vec![1; data.len()];
            file.read_exact_at(&mut written, offset).unwrap();
            assert!(written == data, "{offset}");
            assert!(file.metadata().unwrap().blocks() <= 12 * PAGE as u64 / 512, "{offset}");
        }
    }
}
