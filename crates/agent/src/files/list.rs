//! Lists folders a page at a time, in byte order. A page goes on after the last path of the one before, whatever has come
//! or gone meanwhile.

use std::{
    collections::BinaryHeap,
    ffi::OsString,
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use cloud_sandbox_proto::v1::{FileInfo, ListFilesRequest, ListFilesResponse, ReadFileRequest, ReadFileResponse};
use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
};
use tonic::Status;

use super::{
    failed,
    glob::Glob,
    info::{describe, file_info},
    parse_raw,
    walk::{Kind, Step, Walk, has_gone},
};
use crate::worker::Call;

/// The most entries in one answer.
const MAX_PAGE: usize = 1000;
const MAX_DEPTH: u32 = 64;

/// The page of a folder that a read asks for.
pub(super) fn page_of_folder(path: &Path, request: &ReadFileRequest) -> Result<ReadFileResponse, Status> {
    let size = page_size(request.page_size)?;
    let after = parse_token(&request.page_token)?;
    let failed = failed("read", path);
    let mut names = first_names(path, &after, size + 1).map_err(&failed)?;
    let more = names.len() > size;
    names.truncate(size);
    let next_page_token = names.last().filter(|_| more).map_or_else(String::new, |name| token(name));
    let entries = names.into_iter().filter_map(|name| {
        let path = path.join(OsString::from_vec(name));
        // What has gone since its name was read is left out.
        let metadata = path.symlink_metadata().ok()?;
        Some(file_info(&path, &metadata))
    });
    let metadata = path.metadata().map_err(&failed)?;
    Ok(ReadFileResponse {
        file: Some(file_info(path, &metadata)),
        entries: entries.collect(),
        next_page_token,
        ..ReadFileResponse::default()
    })
}

/// Lists what lies in a folder and below it. What may not be entered is listed itself.
pub(super) fn list(request: &ListFilesRequest, call: &Call) -> Result<ListFilesResponse, Status> {
    let path = parse_raw(&request.path, &request.raw_path)?;
    if request.depth > MAX_DEPTH {
        return Err(Status::invalid_argument(format!("depth {} is more than {MAX_DEPTH}", request.depth)));
    }
    let size = page_size(request.page_size)?;
    let glob = Glob::parse(&request.glob)?;
    let after = parse_token(&request.page_token)?;
    let failed = failed("list", &path);
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let root = open(&path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    let depth = request.depth.max(1) as usize;
    let mut walk = Walk::new(root, depth, after).map_err(&failed)?;

    let mut response = ListFilesResponse::default();
    let mut last = Vec::new();
    while let Some(step) = walk.next().map_err(&failed)? {
        call.check()?;
        let Step::Entry(kind) = step else { continue };
        if glob.as_ref().is_some_and(|glob| !glob.matches(walk.path())) {
            continue;
        }
        if response.files.len() == size {
            response.next_page_token = token(&last);
            break;
        }
        match entry(&walk, &path, kind) {
            Ok(file) => response.files.push(file),
            Err(error) if has_gone(&error) => continue,
            Err(error) => return Err(failed(error)),
        }
        last.clear();
        last.extend_from_slice(walk.path().as_os_str().as_bytes());
    }
    Ok(response)
}

fn entry(walk: &Walk, root: &Path, kind: Kind) -> io::Result<FileInfo> {
    let stat = walk.stat()?;
    let target = if kind == Kind::Link { walk.link().ok() } else { None };
    Ok(describe(&walk.path_from(root), &(&stat).into(), target.as_deref()))
}

/// The smallest `count` names after `after`, in order.
fn first_names(folder: &Path, after: &[u8], count: usize) -> io::Result<Vec<Vec<u8>>> {
    let mut smallest = BinaryHeap::with_capacity(count + 1);
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if name.as_bytes() > after {
            smallest.push(name.into_vec());
            if smallest.len() > count {
                smallest.pop();
            }
        }
    }
    Ok(smallest.into_sorted_vec())
}

fn page_size(asked: u32) -> Result<usize, Status> {
    match asked as usize {
        0 => Ok(MAX_PAGE),
        size if size <= MAX_PAGE => Ok(size),
        size => Err(Status::invalid_argument(format!("page_size {size} is more than {MAX_PAGE}"))),
    }
}

/// Names what a page ended with. It holds also when files come and go.
fn token(last: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(last)
}

fn parse_token(token: &str) -> Result<Vec<u8>, Status> {
    let refused = |_| Status::invalid_argument("page_token must be the next_page_token of an earlier answer");
    BASE64_URL_SAFE_NO_PAD.decode(token).map_err(refused)
}
