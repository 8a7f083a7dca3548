//! Tells what has changed since a snapshot, by walking the folder again beside what is remembered of it.

use std::{cmp::Ordering, ffi::OsStr, fs::File, ops::ControlFlow, os::unix::ffi::OsStrExt, path::Path};

use cloud_sandbox_proto::v1::{FileChange, FileChangeType, FileChanges};
use tonic::Status;

use super::{
    content::{self, Reader, as_text},
    diff::Diffs,
    tree::{Content, Entry, Marks, Tree},
    walk::{Found, Reach, order, walk},
};
use crate::worker::Call;

/// The most that is told.
const MAX_CHANGES: usize = 1000;

/// What has become of `tree`, which was taken of `folder`; none of it is left when that has no `root` any more.
pub(super) fn compare(folder: &Path, root: Option<&File>, tree: &Tree, call: &Call) -> Result<FileChanges, Status> {
    let mut merge = Merge::new(folder, tree);
    let whole = Reach { to_the_end: true, too_deep: false };
    let reach = match root {
        Some(root) => walk(root, call, |found| merge.visit(found))?,
        None => whole,
    };
    if reach.to_the_end && !merge.ended {
        merge.rest_is_gone();
    }
    let truncated = merge.ended || reach != whole || tree.reach() != whole;
    let mut changes = merge.changes;
    changes.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(FileChanges { files: changes.into_iter().map(|(_, change)| change).collect(), truncated })
}

struct Merge<'a> {
    folder: &'a Path,
    tree: &'a Tree,
    /// What of the tree the walk has not come to yet.
    rest: &'a [Entry],
    /// A folder that could not be looked into, then or now: what it holds is not known.
    unknown: Option<Vec<u8>>,
    changes: Vec<(Vec<u8>, FileChange)>,
    /// The walk has gone as far as it shall.
    ended: bool,
    reader: Reader,
    diffs: Diffs,
}

impl<'a> Merge<'a> {
    fn new(folder: &'a Path, tree: &'a Tree) -> Self {
        let rest = tree.entries();
        let (changes, reader, diffs) = (Vec::new(), Reader::default(), Diffs::default());
        Self { folder, tree, rest, unknown: None, changes, ended: false, reader, diffs }
    }

    fn visit(&mut self, found: &Found<'_>) -> ControlFlow<()> {
        while let Some((entry, rest)) = self.rest.split_first() {
            match order(self.tree.path(entry), found.path) {
                Ordering::Less => {
                    self.rest = rest;
                    self.deleted(entry);
                }
                Ordering::Equal => {
                    self.rest = rest;
                    self.still_there(entry, found);
                    return self.go_on();
                }
                Ordering::Greater => break,
            }
        }
        if self.rest.is_empty() && !self.tree.reach().to_the_end {
            // The snapshot does not say whether this was there.
            self.ended = true;
        } else {
            self.created(found);
        }
        self.go_on()
    }

    fn go_on(&self) -> ControlFlow<()> {
        if self.ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn rest_is_gone(&mut self) {
        for entry in self.rest {
            self.deleted(entry);
        }
    }

    fn created(&mut self, found: &Found<'_>) {
        if self.is_unknown(found.path) {
            return;
        }
        let marks = Marks::of(&found.stat);
        let content = if marks.is_file() { self.reader.read(found) } else { None };
        let (diff, diff_truncated) = match content {
            Some(content) => {
                as_text(content).map(|text| self.diffs.diff(found.path, None, Some(text))).unwrap_or_default()
            }
            None => (String::new(), marks.is_large()),
        };
        let new_size = marks.shown_size();
        let r#type = FileChangeType::Created.into();
        self.tell(found.path, FileChange { r#type, new_size, diff, diff_truncated, ..FileChange::default() });
    }

    fn deleted(&mut self, entry: &Entry) {
        let path = self.tree.path(entry);
        if self.is_unknown(path) {
            return;
        }
        let kept = if entry.marks.is_file() { self.tree.kept(entry.content) } else { None };
        let (diff, diff_truncated) = match kept.and_then(as_text) {
            Some(text) => self.diffs.diff(path, Some(text), None),
            None => (String::new(), entry.lacks_text()),
        };
        let old_size = entry.marks.shown_size();
        let r#type = FileChangeType::Deleted.into();
        self.tell(path, FileChange { r#type, old_size, diff, diff_truncated, ..FileChange::default() });
    }

    /// Something is there as it was before; is it the same?
    fn still_there(&mut self, entry: &Entry, found: &Found<'_>) {
        let marks = Marks::of(&found.stat);
        if marks.is_folder() && entry.marks.is_folder() && !(found.is_open && entry.is_open) {
            self.unknown = Some(found.path.to_vec());
        }
        let same_kind = entry.marks.kind() == marks.kind();
        let difference = if !same_kind {
            Some(Default::default())
        } else if marks.is_file() {
            self.of_file(entry, found, &marks)
        } else if marks.is_link() {
            let target = content::target(found);
            let same =
                target.and_then(|target| self.tree.holds(entry.content, &target)).unwrap_or(entry.marks == marks);
            (!same).then(Default::default)
        } else {
            None
        };
        let difference = difference.or_else(|| (entry.marks.mode != marks.mode).then(Default::default));
        if let Some((diff, diff_truncated)) = difference {
            let (old_size, new_size) = (entry.marks.shown_size(), marks.shown_size());
            let r#type = FileChangeType::Modified.into();
            let change = FileChange { r#type, old_size, new_size, diff, diff_truncated, ..FileChange::default() };
            self.tell(found.path, change);
        }
    }

    /// How the content of a file differs, if it does.
    fn of_file(&mut self, entry: &Entry, found: &Found<'_>, marks: &Marks) -> Option<(String, bool)> {
        let is_known = !matches!(entry.content, Content::Unknown);
        if entry.marks == *marks && !(is_known && self.tree.is_blurred(entry)) {
            return None;
        }
        let Some(content) = self.reader.read(found) else {
            // Too large, or not to be read: what the file system says must do.
            return (entry.marks != *marks).then(|| (String::new(), marks.is_large() || entry.lacks_text()));
        };
        if self.tree.holds(entry.content, content) == Some(true) {
            return None;
        }
        let new = as_text(content);
        let old = self.tree.kept(entry.content).and_then(as_text);
        Some(match (old, new) {
            (Some(old), Some(new)) => self.diffs.diff(found.path, Some(old), Some(new)),
            (None, Some(_)) => (String::new(), entry.lacks_text()),
            (_, None) => Default::default(),
        })
    }

    fn is_unknown(&self, path: &[u8]) -> bool {
        let inside = |folder: &Vec<u8>| path.strip_prefix(folder.as_slice()).is_some_and(|rest| rest.starts_with(b"/"));
        self.unknown.as_ref().is_some_and(inside)
    }

    fn tell(&mut self, path: &[u8], change: FileChange) {
        if self.changes.len() == MAX_CHANGES {
            self.ended = true;
            return;
        }
        let shown = self.folder.join(OsStr::from_bytes(path)).to_string_lossy().into_owned();
        self.changes.push((path.to_vec(), FileChange { path: shown, ..change }));
    }
}
