//! What can be wrong with a source. The texts are for operators: what is the matter, with what, and what to do.

use std::{io, path::PathBuf};

use nix::errno::Errno;
use thiserror::Error;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no image. The cause, where there is one, is [`source`](std::error::Error::source) and not in the text;
/// [`chain`](Self::chain) has both.
#[derive(Debug, Error)]
pub enum ImageError {
    #[error("template reference {0:?} is not of the form name@version")]
    Reference(String),
    #[error("folder {} cannot be copied", .path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("tarball {} cannot be read", .path.display())]
    Tarball { path: PathBuf, source: io::Error },
    #[error("{what} is no tar archive{hint}")]
    NotAnArchive { what: String, hint: String },
    #[error("{what} is cut off: its end is missing")]
    Truncated { what: String },
    #[error("{what} is damaged: {reason}")]
    Damaged { what: String, reason: String },
    #[error("{what} is refused: entry {entry} {reason}")]
    Entry { what: String, entry: String, reason: String },
    #[error(
        "{what} is an archive of images (docker save, or an OCI layout) and not of a root file system; \
         make one with `docker export`, or load it into a daemon or a registry and name the image as the source"
    )]
    ImageArchive { what: String },
    #[error("{what} has more than {limit}, which is the most that an image may have")]
    TooLarge { what: String, limit: String },
    #[error("the disk of {} is full: there is no room for the image", .0.display())]
    DiskFull(PathBuf),
    #[error("{0}")]
    DockerHost(String),
    #[error("no Docker daemon answers at {address}; start it, or name its socket in DOCKER_HOST")]
    NoDaemon { address: String, source: Cause },
    #[error(
        "no permission to use the Docker daemon's socket {}; \
         run the node as root or as a member of the group that the socket belongs to",
        .socket.display()
    )]
    NoPermission { socket: PathBuf, source: Cause },
    #[error("the Docker daemon failed to {doing}")]
    Daemon { doing: String, source: Cause },
    #[error("image {image} does not exist at {place}")]
    Missing { image: String, place: String },
    #[error("image {image} is not here, and its pull policy is \"never\"")]
    NeverPulled { image: String },
    #[error("{place} refuses image {image}: {reason}; check the template's credentials, and the image's name")]
    Refused { image: String, place: String, reason: String },
    #[error("registry {registry} cannot be reached for image {image}")]
    Unreachable { image: String, registry: String, source: Cause },
    #[error("registry {registry} failed to deliver image {image}")]
    Registry { image: String, registry: String, source: Cause },
    #[error("blob {digest} of image {image} is not what was asked for: {reason}")]
    Blob { image: String, digest: String, reason: String },
    #[error("image {image} is not made for this machine, which needs {wanted}; there is {found}")]
    Platform { image: String, wanted: String, found: String },
    #[error("{image} is no image of a root file system: {reason}")]
    NotAnImage { image: String, reason: String },
    #[error("the folder of images {} is used by another process", .0.display())]
    InUse(PathBuf),
    #[error("failed to {doing} in the folder of images")]
    Store { doing: String, source: io::Error },
    #[error("the making of the image was stopped")]
    Stopped,
}

impl ImageError {
    /// Whether it says nothing of the image but that the way to its registry broke, or the registry did.
    pub(crate) fn is_of_the_way(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Registry { .. })
    }

    /// The text with the texts of all causes.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let next = error.to_string();
            // some causes repeat their own
            if !text.ends_with(&next) {
                text = format!("{text}: {next}");
            }
            cause = error.source();
        }
        text
    }
}

/// What an error of writing below `folder` is.
pub(crate) fn writing(folder: &std::path::Path, doing: &str) -> impl Fn(io::Error) -> ImageError + use<> {
    let (folder, doing) = (folder.to_owned(), doing.to_owned());
    move |source| match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => ImageError::DiskFull(folder.clone()),
        _ => ImageError::Store { doing: doing.clone(), source },
    }
}

/// The same for the calls of nix.
pub(crate) fn writing_at(folder: &std::path::Path, doing: &str) -> impl Fn(Errno) -> ImageError + use<> {
    let told = writing(folder, doing);
    move |errno| told(errno.into())
}
