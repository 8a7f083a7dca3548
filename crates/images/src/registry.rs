//! An image of an OCI registry, without a daemon. What the registry says is checked against digests before it is used,
//! and bounded by the sizes that were said before.

use std::path::PathBuf;

use cloud_sandbox_model::{error::said, template::Image as Wanted};
use futures::{StreamExt, TryStreamExt};
use oci_client::{
    Reference,
    client::SizedStream,
    errors::{DigestError, OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};
use serde::Deserialize;
use tokio::{
    fs::File,
    io::{AsyncWriteExt, BufWriter},
};

use crate::{
    ImageError,
    access::{Access, TEXT_MOST},
    config::{self, Config, ConfigFile},
    error::writing,
    job::Job,
    text::{layer_name, said_by},
};

const BUFFER: usize = 256 * 1024;

/// An image that was found at its registry.
pub(crate) struct Remote {
    access: Access,
    reference: Reference,
    /// as the template names it
    image: String,
    pub(crate) config: Config,
    /// of its configuration, by which daemons name an image too
    pub(crate) id: String,
    /// from the lowest to the topmost
    pub(crate) layers: Vec<Blob>,
}

/// A blob as a manifest describes it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Blob {
    pub(crate) digest: String,
    pub(crate) size: u64,
}

/// A manifest of one image or of several.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    manifests: Option<Vec<Entry>>,
    config: Option<Blob>,
    layers: Option<Vec<Blob>>,
}

#[derive(Deserialize)]
struct Entry {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

impl Remote {
    /// Finds an image, of several of one name that of this machine.
    pub(crate) async fn find(wanted: &Wanted, plain_http: bool) -> Result<Self, ImageError> {
        let image = wanted.image.clone();
        let not = |reason: String| ImageError::NotAnImage { image: image.clone(), reason };
        let reference: Reference =
            wanted.image.parse().map_err(|error| not(format!("its reference cannot be read: {error}")))?;
        let auth = wanted.credentials.as_ref().map_or(RegistryAuth::Anonymous, |credentials| {
            RegistryAuth::Basic(credentials.username.clone(), credentials.password.clone())
        });
        let access = Access::new(reference.clone(), auth, plain_http);
        let access = access.map_err(|error| fault(&image, &reference, &error))?;
        let mut remote =
            Self { access, reference, image, config: Config::default(), id: String::new(), layers: Vec::new() };
        let mut manifest = remote.manifest(&remote.reference).await?;
        if let Some(entries) = &manifest.manifests {
            let chosen = remote.choose(entries)?;
            manifest = remote.manifest(&chosen).await?;
        }
        let (Some(config), Some(layers)) = (manifest.config, manifest.layers) else {
            return Err(remote.not("its manifest has no configuration or no layers"));
        };
        for blob in layers.iter().chain([&config]) {
            if layer_name(&blob.digest).is_none() {
                return Err(remote.not(&format!("its manifest has a digest of an unknown kind, {:?}", blob.digest)));
            }
        }
        let text = remote.text(&config).await?;
        remote.config = ConfigFile::read(&remote.image, &text)?;
        remote.id = config.digest;
        remote.layers = layers;
        Ok(remote)
    }

    async fn manifest(&self, reference: &Reference) -> Result<Manifest, ImageError> {
        let text = self.access.manifest(reference).await.map_err(|error| self.fault(&error))?;
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|error| self.not(&format!("its manifest cannot be read: {error}")))?;
        if manifest.schema_version != 2 {
            return Err(self.not("its manifest is of the old schema 1; push it again with a newer tool"));
        }
        Ok(manifest)
    }

    fn choose(&self, entries: &[Entry]) -> Result<Reference, ImageError> {
        let fits = |platform: &Platform| {
            (platform.os.as_str(), platform.architecture.as_str()) == (config::OS, config::architecture())
        };
        match entries.iter().find(|entry| entry.platform.as_ref().is_some_and(fits)) {
            Some(entry) if layer_name(&entry.digest).is_none() => {
                Err(self.not(&format!("its manifest has a digest of an unknown kind, {:?}", entry.digest)))
            }
            Some(entry) => Ok(self.reference.clone_with_digest(entry.digest.clone())),
            None => {
                let named = entries.iter().filter_map(|entry| entry.platform.as_ref());
                let named = named.filter(|platform| platform.os != "unknown");
                let mut named: Vec<_> = named.map(|it| format!("{}/{}", it.os, it.architecture)).collect();
                named.dedup();
                let found = if named.is_empty() { "nothing for a named system".to_owned() } else { named.join(", ") };
                Err(config::platform(&self.image, &found))
            }
        }
    }

    /// A small blob.
    async fn text(&self, blob: &Blob) -> Result<Vec<u8>, ImageError> {
        if blob.size > TEXT_MOST {
            return Err(self.not(&format!("its configuration has {} bytes, and may have {TEXT_MOST}", blob.size)));
        }
        let mut stream = self.open(blob).await?;
        let mut text = Vec::new();
        while let Some(piece) = stream.try_next().await.map_err(|error| self.broken(blob, &error))? {
            text.extend_from_slice(&piece);
            self.check_size(blob, text.len() as u64, false)?;
        }
        self.check_size(blob, text.len() as u64, true)?;
        Ok(text)
    }

    /// Writes a blob to a new file. It is what its digest says when this returns it.
    pub(crate) async fn fetch(&self, blob: &Blob, job: &Job) -> Result<Draft, ImageError> {
        let failed = writing(&job.store, "write a layer");
        let mut stream = self.open(blob).await?;
        let draft = Draft(job.draft());
        // not on another thread: it would make the file after this call was dropped, and the file removed
        let file = std::fs::File::create_new(&draft.0).map_err(&failed)?;
        let mut file = BufWriter::with_capacity(BUFFER, File::from_std(file));
        let mut size = 0;
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| self.broken(blob, &error))?;
            size += piece.len() as u64;
            self.check_size(blob, size, false)?;
            file.write_all(&piece).await.map_err(&failed)?;
            job.progress.advance(piece.len() as u64);
        }
        self.check_size(blob, size, true)?;
        file.flush().await.map_err(failed)?;
        Ok(draft)
    }

    /// A stream that ends with an error unless it is what the digest says.
    async fn open(&self, blob: &Blob) -> Result<SizedStream, ImageError> {
        // the digest alone: manifests may name other places too, but whoever wrote one does not say where we connect to
        let blobs = self.access.blobs().await.map_err(|error| self.fault(&error))?;
        let stream = blobs.pull_blob_stream(&self.reference, blob.digest.as_str()).await;
        stream.map_err(|error| match &error {
            OciDistributionError::RegistryError { envelope, .. }
                if envelope.errors.iter().any(|error| error.code == OciErrorCode::BlobUnknown) =>
            {
                self.damaged(blob, "the registry does not have it")
            }
            _ => self.fault(&error),
        })
    }

    fn check_size(&self, blob: &Blob, size: u64, ended: bool) -> Result<(), ImageError> {
        if size > blob.size || (ended && size < blob.size) {
            let than = if ended { "has" } else { "has more than" };
            return Err(self.damaged(
                blob,
                &format!("it {than} {} bytes, and its manifest says {}", size.min(blob.size), blob.size),
            ));
        }
        Ok(())
    }

    /// What an error in the middle of a blob is.
    fn broken(&self, blob: &Blob, error: &std::io::Error) -> ImageError {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<DigestError>()) {
            Some(digest) => self.damaged(blob, &digest.to_string()),
            None => ImageError::Registry {
                image: self.image.clone(),
                registry: self.reference.resolve_registry().to_owned(),
                source: said_by(error).into(),
            },
        }
    }

    fn damaged(&self, blob: &Blob, reason: &str) -> ImageError {
        ImageError::Blob { image: self.image.clone(), digest: blob.digest.clone(), reason: said(reason) }
    }

    fn not(&self, reason: &str) -> ImageError {
        ImageError::NotAnImage { image: self.image.clone(), reason: said(reason) }
    }

    fn fault(&self, error: &OciDistributionError) -> ImageError {
        fault(&self.image, &self.reference, error)
    }
}

/// What an answer of the registry means, or that there is none.
fn fault(image: &str, reference: &Reference, error: &OciDistributionError) -> ImageError {
    let registry = reference.resolve_registry().to_owned();
    let image = image.to_owned();
    let refused =
        |reason: &str| ImageError::Refused { image: image.clone(), place: registry.clone(), reason: said(reason) };
    let missing = || ImageError::Missing { image: image.clone(), place: registry.clone() };
    match error {
        OciDistributionError::UnauthorizedError { .. } => return refused("it asks for credentials"),
        OciDistributionError::AuthenticationFailure(reason) if is_about_credentials(reason) => return refused(reason),
        OciDistributionError::AuthenticationFailure(reason) => {
            let source = said(&format!("it gives no token for it: {reason}")).into();
            return ImageError::Registry { image, registry, source };
        }
        OciDistributionError::ServerError { code: 401 | 403, message, .. } => return refused(message),
        OciDistributionError::ServerError { code: 404, .. } => return missing(),
        OciDistributionError::RegistryError { envelope, .. } => {
            for said in &envelope.errors {
                match said.code {
                    OciErrorCode::Unauthorized | OciErrorCode::Denied => return refused(&said.message),
                    OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown | OciErrorCode::NotFound => {
                        return missing();
                    }
                    _ => {}
                }
            }
        }
        OciDistributionError::DigestError(digest) => {
            let reason = said(&digest.to_string());
            return ImageError::Blob { image, digest: "(manifest)".to_owned(), reason };
        }
        OciDistributionError::RequestError(request) if request.is_connect() || request.is_timeout() => {
            return ImageError::Unreachable { image, registry, source: said_by(request).into() };
        }
        _ => {}
    }
    ImageError::Registry { image, registry, source: said_by(error).into() }
}

/// Whether a token server's words are about who asks: the client keeps the words alone, and one that is busy or broken gives
/// no token either.
fn is_about_credentials(reason: &str) -> bool {
    let reason = reason.to_ascii_lowercase();
    ["unauthorized", "denied", "forbidden", "password", "credential"].iter().any(|word| reason.contains(word))
}

/// A file that goes with its guard.
pub(crate) struct Draft(pub(crate) PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
