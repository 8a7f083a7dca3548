//! Lists folders a page at a time, in byte order, holding no more than a page of names however many there are.

use std::{collections::BinaryHeap, ffi::OsString, fs, io, os::unix::ffi::OsStringExt, path::Path};

use cloud_sandbox_proto::v1::FileInfo;

use super::file_info;

/// The most entries in one answer.
const MAX_PAGE: usize = 1000;

/// A page of entries, and the name to go on after; empty at the end.
pub(super) struct Page {
    pub(super) entries: Vec<FileInfo>,
    pub(super) next_after_name: Vec<u8>,
}

/// The first `size` entries of `folder` whose name sorts after `after`.
pub(super) fn page(folder: &Path, after: &[u8], size: usize) -> io::Result<Page> {
    let size = size.min(MAX_PAGE);
    let mut names = first_names(folder, after, size + 1)?;
    let more = names.len() > size;
    names.truncate(size);
    let next_after_name = names.last().filter(|_| more).cloned().unwrap_or_default();
    let entries = names.into_iter().filter_map(|name| {
        let path = folder.join(OsString::from_vec(name));
        // What has gone since its name was read is left out.
        let metadata = path.symlink_metadata().ok()?;
        Some(file_info(&path, &metadata))
    });
    Ok(Page { entries: entries.collect(), next_after_name })
}

/// The smallest `count` names after `after`, in order.
fn first_names(folder: &Path, after: &[u8], count: usize) -> io::Result<Vec<Vec<u8>>> {
    let mut smallest = BinaryHeap::with_capacity(count + 1);
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().into_vec();
        if name.as_slice() > after {
            smallest.push(name);
            if smallest.len() > count {
                smallest.pop();
            }
        }
    }
    Ok(smallest.into_sorted_vec())
}
