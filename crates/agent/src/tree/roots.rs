//! The folders that are saved or restored, and which of them a path belongs to.

use std::{
    cmp::Ordering,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use tonic::Status;

use crate::{files, snapshot::order};

/// The folders, ascending. One may lie in another, and is left out there then.
#[derive(Debug)]
pub(super) struct Roots(Vec<PathBuf>);

impl Roots {
    /// Takes the paths as the contract wants them: absolute, and ascending.
    pub(super) fn parse(paths: &[String]) -> Result<Self, Status> {
        if paths.is_empty() {
            return Err(Status::invalid_argument("roots must name a folder"));
        }
        let mut roots: Vec<PathBuf> = Vec::with_capacity(paths.len());
        for path in paths {
            let root = files::parse_path(path)?;
            if root == Path::new("/") {
                return Err(Status::invalid_argument("roots must not be the root of the file system"));
            }
            if roots.last().is_some_and(|last| last.as_os_str() >= root.as_os_str()) {
                return Err(Status::invalid_argument(format!("roots must ascend: {path:.200} comes too late")));
            }
            roots.push(root);
        }
        Ok(Self(roots))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Path)> {
        self.0.iter().map(PathBuf::as_path).enumerate()
    }

    /// The number of the innermost root that a path is or lies in.
    pub(super) fn of(&self, path: &[u8]) -> Option<usize> {
        let path = Path::new(OsStr::from_bytes(path));
        let around = self.iter().filter(|(_, root)| path.starts_with(root));
        around.max_by_key(|(_, root)| root.as_os_str().len()).map(|(number, _)| number)
    }

    pub(super) fn path(&self, number: usize) -> &[u8] {
        self.0[number].as_os_str().as_bytes()
    }

    pub(super) fn is_root(&self, path: &[u8]) -> bool {
        self.0.iter().any(|root| root.as_os_str().as_bytes() == path)
    }

    /// Whether a path is a root or lies on the way to one.
    pub(super) fn leads_to_root(&self, path: &[u8]) -> bool {
        self.0.iter().any(|root| root.starts_with(OsStr::from_bytes(path)))
    }
}

/// Where an entry comes in a tree: by its root, and there by its path.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Place {
    pub(super) root: usize,
    pub(super) path: Vec<u8>,
}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        self.root.cmp(&other.root).then_with(|| order(&self.path, &other.path))
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A path as messages show it.
pub(super) fn shown(path: &[u8]) -> String {
    files::shown(Path::new(OsStr::from_bytes(path)))
}

/// Says what went wrong with `operation` on `path`.
pub(super) fn failed<E: Into<std::io::Error>>(operation: &str, path: &[u8]) -> impl FnOnce(E) -> Status + use<E> {
    let failed = files::failed(operation, Path::new(OsStr::from_bytes(path)));
    move |error| failed(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(paths: &[&str]) -> Result<Roots, Status> {
        Roots::parse(&paths.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn roots_must_be_absolute_ascending_and_below_the_top() {
        for paths in [&[][..], &["/"], &["a"], &["/a/../b"], &["/b", "/a"], &["/a", "/a"], &["/a", "/a/"]] {
            assert_eq!(roots(paths).unwrap_err().code(), tonic::Code::InvalidArgument, "{paths:?}");
        }
        assert!(roots(&["/a", "/a/b", "/b"]).is_ok());
    }

    #[test]
    fn a_path_belongs_to_the_innermost_root() {
        let roots = roots(&["/a", "/a/b/c", "/d"]).unwrap();
        let numbers = ["/a", "/a/b", "/a/b/c", "/a/b/c/d", "/ab", "/d/x", "/"].map(|path| roots.of(path.as_bytes()));
        assert_eq!(numbers, [Some(0), Some(0), Some(1), Some(1), None, Some(2), None]);
        assert!(roots.leads_to_root(b"/a/b") && roots.leads_to_root(b"/a/b/c"));
        assert!(!roots.leads_to_root(b"/a/b/c/d") && !roots.leads_to_root(b"/a/x"));
        assert!(roots.is_root(b"/a/b/c") && !roots.is_root(b"/a/b"));
    }

    #[test]
    fn roots_come_one_after_the_other_whatever_their_paths() {
        let place = |root, path: &str| Place { root, path: path.into() };
        assert!(place(0, "/a/z") < place(1, "/a/b"));
        assert!(place(0, "/a/b/c") < place(0, "/a/b-"));
    }
}
