//! What templates are made of, as root file systems on this machine's disk: for the native runtime, which has no daemon
//! that does it.
//!
//! A [`Source`](cloud_sandbox_model::template::Source) is a folder, an archive, an image of a Docker Engine or one of a
//! registry. [`ImageStore::prepare`] makes a tree of it once, which is then used read-only by any number of sandboxes.
//! All files are root's, readable by everybody, and give nobody any rights. Images are hostile: nothing of one is ever
//! written or read outside of its folder.

mod access;
mod archive;
mod config;
mod docker;
mod error;
mod fit;
mod folder;
pub mod host;
mod job;
mod limits;
mod merge;
pub mod pulls;
mod registry;
mod root;
mod source;
mod store;
mod text;
mod turns;
mod unpack;
mod users;
mod work;

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf};

pub use crate::{
    error::ImageError,
    fit::{NSSWITCH, about_itself},
    limits::Limits,
    store::ImageStore,
    users::{group, passwd},
};

/// What a store can be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// its folder; made if it is missing, for its owner alone, and used by one process at a time
    pub folder: PathBuf,
    /// where the Docker daemon listens, as in the variable `DOCKER_HOST`, which is looked at where this says nothing; then
    /// the usual sockets are
    pub docker_host: Option<String>,
    /// who answers questions for names inside a sandbox
    pub nameserver: Ipv4Addr,
    /// how large an image may be
    pub limits: Limits,
}

impl Options {
    /// A store in a folder, with defaults for the rest.
    pub fn new(folder: impl Into<PathBuf>, nameserver: Ipv4Addr) -> Self {
        Self { folder: folder.into(), docker_host: None, nameserver, limits: Limits::default() }
    }
}

/// A root file system that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// the template's, under which it was made
    pub reference: String,
    /// the folder to be shown as `/`, read-only
    pub root: PathBuf,
    /// what the image sets for all programs
    pub env: BTreeMap<String, String>,
    /// bytes of all files; what is shared with other images counts too, and what one layer has replaced of another
    pub bytes: u64,
    /// What it is made of: of an image that of its configuration (the id of an image at a daemon), of a tarball that of
    /// the file, of a folder that of names, modes and contents.
    pub digest: String,
}
