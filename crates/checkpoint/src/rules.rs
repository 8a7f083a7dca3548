//! What a tree may look like, as an agent sends it and as a manifest holds it: entries in order, each in a folder that came
//! before it, each with the fields of its kind alone.

use std::collections::HashSet;

use cloud_sandbox_proto::checkpoint::v1::{EntryKind, Extent, TreeEntry};

use crate::{damage::shown, manifest::Hash};

/// The longest chunk, in bytes.
pub const CHUNK_MAX: u32 = 4 << 20;
/// The longest path, in bytes. The kernel takes 4096 at a time, but folders can be nested deeper than that.
const PATH_MAX: usize = 16 << 10;
/// The longest name, of a file as of an attribute.
const NAME_MAX: usize = 255;
/// The largest value of an attribute.
const XATTR_MAX: usize = 64 << 10;
/// The largest file, in bytes: offsets are signed in the kernel.
const SIZE_MAX: u64 = i64::MAX as u64;

/// The hash that bytes of a message are.
pub(crate) fn hash_of(bytes: &[u8]) -> Result<Hash, String> {
    bytes.try_into().map_err(|_| format!("a hash of {} bytes", bytes.len()))
}

/// Absolute folders, ascending, without anything to resolve in them.
pub(crate) fn check_roots(roots: &[String]) -> Result<(), String> {
    if roots.is_empty() {
        return Err("no roots".to_owned());
    }
    for (index, root) in roots.iter().enumerate() {
        let plain = root.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|name| is_name(name.as_bytes())));
        if !plain || root.len() > PATH_MAX {
            return Err(format!("{root:?} is no root"));
        }
        if index > 0 && roots[index - 1] >= *root {
            return Err(format!("root {root:?} is out of order"));
        }
    }
    Ok(())
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && name != b"."
        && name != b".."
        && !name.contains(&0)
        && !name.contains(&b'/')
}

/// A folder that further entries may come into.
struct Open {
    /// how much of the last folder's path is its own
    length: usize,
    /// the last name in it
    last: Vec<u8>,
}

/// A walk through a tree, entry by entry.
pub(crate) struct Walk {
    roots: Vec<String>,
    roots_seen: usize,
    path: Vec<u8>,
    open: Vec<Open>,
    /// hashes of the paths that a hard link may name, cut to 16 bytes: paths are long, and many
    linkable: HashSet<[u8; 16]>,
    entries: u64,
    bytes: u64,
}

impl Walk {
    /// A walk through roots that have been checked.
    pub(crate) fn new(roots: Vec<String>) -> Self {
        Self {
            roots,
            roots_seen: 0,
            path: Vec::new(),
            open: Vec::new(),
            linkable: HashSet::new(),
            entries: 0,
            bytes: 0,
        }
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes the next entry, or says what is wrong with it. Of its chunks it checks their form alone.
    pub(crate) fn enter(&mut self, entry: &TreeEntry) -> Result<(), String> {
        self.try_enter(entry).map_err(|what| format!("entry {}: {what}", shown(cut(&entry.path))))
    }

    fn try_enter(&mut self, entry: &TreeEntry) -> Result<(), String> {
        if entry.hard_link.is_empty() {
            let kind = EntryKind::try_from(entry.kind).unwrap_or_default();
            self.place(&entry.path, kind == EntryKind::Folder)?;
            self.bytes += check_fields(entry, kind)?;
            if kind != EntryKind::Folder {
                self.linkable.insert(short(&entry.path));
            }
        } else {
            self.place(&entry.path, false)?;
            let alone =
                TreeEntry { path: entry.path.clone(), hard_link: entry.hard_link.clone(), ..Default::default() };
            if *entry != alone {
                return Err("a hard link with fields of its own".to_owned());
            }
            if !self.linkable.contains(&short(&entry.hard_link)) {
                return Err(format!("a hard link to {}, which did not come before", shown(cut(&entry.hard_link))));
            }
        }
        self.entries += 1;
        Ok(())
    }

    /// Whether every root was there.
    pub(crate) fn finish(&self) -> Result<(), String> {
        match self.roots.get(self.roots_seen) {
            Some(missing) => Err(format!("root {missing:?} is missing")),
            None => Ok(()),
        }
    }

    fn place(&mut self, path: &[u8], folder: bool) -> Result<(), String> {
        if path.len() > PATH_MAX {
            return Err(format!("a path of {} bytes", path.len()));
        }
        if self.roots.get(self.roots_seen).is_some_and(|root| root.as_bytes() == path) {
            if !folder {
                return Err("a root that is no folder".to_owned());
            }
            self.roots_seen += 1;
            self.open.clear();
        } else {
            let slash = path.iter().rposition(|byte| *byte == b'/').ok_or("a path that is not absolute")?;
            let (parent, name) = (&path[..slash], &path[slash + 1..]);
            while self.open.last().is_some_and(|top| self.path[..top.length] != *parent) {
                self.open.pop();
            }
            let top = self.open.last_mut().ok_or("in no folder that came before")?;
            if !is_name(name) {
                return Err("a name that no file has".to_owned());
            }
            if *name <= *top.last {
                return Err("out of order".to_owned());
            }
            top.last = name.to_owned();
        }
        if folder {
            self.path = path.to_owned();
            self.open.push(Open { length: path.len(), last: Vec::new() });
        }
        Ok(())
    }
}

/// Enough of a path to tell which.
fn cut(path: &[u8]) -> &[u8] {
    &path[..path.len().min(NAME_MAX)]
}

fn short(path: &[u8]) -> [u8; 16] {
    *blake3::hash(path).as_bytes().first_chunk().expect("a hash has 32 bytes")
}

/// The bytes of data in an entry that has the fields of its kind alone.
fn check_fields(entry: &TreeEntry, kind: EntryKind) -> Result<u64, String> {
    if entry.mode > 0o7777 {
        return Err(format!("mode {:o}", entry.mode));
    }
    if entry.mtime_nanos > 999_999_999 {
        return Err(format!("{} nanoseconds", entry.mtime_nanos));
    }
    for xattr in &entry.xattrs {
        let name = xattr.name.strip_prefix(b"user.").is_some_and(|rest| !rest.is_empty() && !rest.contains(&0));
        if !name || xattr.name.len() > NAME_MAX || xattr.value.len() > XATTR_MAX {
            return Err(format!("attribute {}", shown(cut(&xattr.name))));
        }
    }
    if kind == EntryKind::Unspecified {
        return Err(format!("kind {}", entry.kind));
    }
    let target = !entry.target.is_empty() && entry.target.len() <= PATH_MAX && !entry.target.contains(&0);
    if target != (kind == EntryKind::Symlink) || (!target && !entry.target.is_empty()) {
        return Err("a target that no link has".to_owned());
    }
    if kind != EntryKind::File && (entry.size > 0 || !entry.extents.is_empty()) {
        return Err("data in what is no file".to_owned());
    }
    if entry.size > SIZE_MAX {
        return Err(format!("a size of {} bytes", entry.size));
    }
    check_extents(&entry.extents, entry.size)
}

fn check_extents(extents: &[Extent], size: u64) -> Result<u64, String> {
    let (mut end, mut bytes) = (0u64, 0u64);
    for extent in extents {
        if extent.offset < end {
            return Err("extents out of order".to_owned());
        }
        if extent.chunks.is_empty() {
            return Err("an extent without data".to_owned());
        }
        end = extent.offset;
        for chunk in &extent.chunks {
            hash_of(&chunk.hash)?;
            check_length(chunk.length)?;
            end = end.checked_add(chunk.length.into()).filter(|end| *end <= size).ok_or("data past its end")?;
            bytes += u64::from(chunk.length);
        }
    }
    Ok(bytes)
}

/// A chunk's length.
pub(crate) fn check_length(length: u32) -> Result<(), String> {
    if (1..=CHUNK_MAX).contains(&length) { Ok(()) } else { Err(format!("a chunk of {length} bytes")) }
}
