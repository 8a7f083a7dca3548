//! Templates as images of the daemon: pulled, imported, looked at, and removed.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, PoisonError},
    time::Duration,
};

use bollard::{
    Docker, body_try_stream,
    errors::Error,
    models::{CreateImageInfo, ImageInspect, ImageSummary},
    query_parameters::{CreateImageOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptionsBuilder},
};
use bytes::Bytes;
use cloud_sandbox_images::pulls::{Layers, SILENT_FOR, credentials, with_registry_auth, with_tag};
use cloud_sandbox_model::{
    RuntimeName, Template,
    error::chain,
    template::{Image, Progress, PullPolicy, Source},
};
use cloud_sandbox_runtime::{Prepared, Root, RuntimeError};
use futures::{Stream, StreamExt};
use tokio::time::timeout;
use tokio_util::io::ReaderStream;

use crate::{
    container::{Brought, env_of},
    engine::{LONG, has_status},
    facts::{Facts, usual_name},
    runtime::Inner,
    users,
};

/// The name of images that were imported from archives; their tags tell the templates apart.
const IMPORTED: &str = "cloud-sandbox-import";
/// The label of such an image, `INSTANCE/TEMPLATE/STAMP`: who imported it, for what and from what. One label for all three,
/// since Podman keeps no more than one.
const IMPORT: &str = "cloud-sandbox.import";
/// Bytes of an archive that are sent at once.
const PIECE: usize = 256 * 1024;

/// Fetches the image of a template, or finds it.
pub async fn prepare(
    inner: &Arc<Inner>,
    facts: &Facts,
    template: &Template,
    runtime: RuntimeName,
    progress: &Progress,
) -> Result<Prepared, RuntimeError> {
    let reference = template.reference();
    let job = Job { inner, client: inner.engine.client()?, template: &reference, progress };
    let image = match &template.source {
        Source::DockerImage(image) | Source::Registry { image, .. } => job.image(image).await?,
        Source::Tarball { path } => job.archive(path).await?,
        source @ (Source::Host | Source::Folder { .. }) => {
            return Err(RuntimeError::Unsupported(format!("make a container of a {}", source.kind())));
        }
    };
    let id = image.id.clone().ok_or_else(|| job.fault("the daemon gives its image no id"))?;
    job.check(&image, facts)?;
    let brought = inner.keep_brought(&id, &image);
    brought.check().map_err(|why| job.fault(why))?;
    let user = users::numbers(inner, &reference, &id, &template.user).await?;
    let env = image.config.and_then(|config| config.env).unwrap_or_default();
    tracing::debug!(template = reference, image = id, volumes = brought.volumes.len(), "a template is prepared");
    Ok(Prepared {
        template: reference,
        runtime,
        root: Root::Image(id),
        user,
        writable_root: template.writable_root,
        env: env_of(&env),
    })
}

/// Removes what was imported for a template.
pub async fn discard(inner: &Inner, template: &str) -> Result<(), RuntimeError> {
    remove_imported(inner, template, None).await
}

async fn remove_imported(inner: &Inner, template: &str, kept: Option<&str>) -> Result<(), RuntimeError> {
    let client = inner.engine.client()?;
    let is_meant = |(id, imported): &(String, String)| imported == template && kept != Some(id);
    for (id, _) in imported(inner).await?.into_iter().filter(is_meant) {
        let options = RemoveImageOptionsBuilder::default().force(false).build();
        match client.remove_image(&id, Some(options), None).await {
            Err(error) if !has_status(&error, 404) => {
                return Err(inner.engine.error(format!("remove the image {id} of template {template}"), error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The templates that something was imported for.
pub async fn templates(inner: &Inner) -> Result<Vec<String>, RuntimeError> {
    let mut templates: Vec<_> = imported(inner).await?.into_iter().map(|(_, template)| template).collect();
    templates.sort_unstable();
    templates.dedup();
    Ok(templates)
}

/// The ids of the images that were imported by this instance, each with its template. One that has another name as well, or
/// was built of one by somebody, is not ours to remove.
async fn imported(inner: &Inner) -> Result<Vec<(String, String)>, RuntimeError> {
    let filters = HashMap::from([("label", vec![IMPORT.to_owned()])]);
    let options = ListImagesOptionsBuilder::default().filters(&filters).build();
    let listed = inner.engine.client()?.list_images(Some(options)).await;
    let listed = listed.map_err(|error| inner.engine.error("list images", error))?;
    let is_ours = |name: &String| name.contains(&format!("{IMPORTED}:")) || name == "<none>:<none>";
    let of_this = |image: ImageSummary| {
        let (template, _stamp) =
            image.labels.get(IMPORT)?.strip_prefix(&inner.options.instance)?.strip_prefix('/')?.split_once('/')?;
        Some((image.id, template.to_owned()))
    };
    Ok(listed.into_iter().filter(|image| image.repo_tags.iter().all(is_ours)).filter_map(of_this).collect())
}

/// What an image brings that a container of it has to be told.
pub async fn brought(inner: &Inner, template: &str, image: &str) -> Result<Arc<Brought>, RuntimeError> {
    if let Some(brought) = inner.brought.lock().unwrap_or_else(PoisonError::into_inner).get(image) {
        return Ok(Arc::clone(brought));
    }
    match inner.engine.client()?.inspect_image(image).await {
        Ok(found) => Ok(inner.keep_brought(image, &found)),
        Err(error) if has_status(&error, 404) => {
            let why = "its image is not there any more: prepare the template again".to_owned();
            Err(RuntimeError::Template { template: template.to_owned(), why })
        }
        Err(error) => Err(inner.engine.error(format!("look at the image {image}"), error)),
    }
}

impl Inner {
    fn keep_brought(&self, id: &str, image: &ImageInspect) -> Arc<Brought> {
        let config = image.config.clone().unwrap_or_default();
        let env = env_of(&config.env.unwrap_or_default());
        let brought = Brought {
            volumes: config.volumes.unwrap_or_default(),
            env: env.into_keys().collect(),
            healthcheck: config.healthcheck.is_some(),
        };
        let brought = Arc::new(brought);
        self.brought.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), Arc::clone(&brought));
        brought
    }
}

/// The tag of an image that was imported for a template. Names of templates may have what tags may not.
fn tag(instance: &str, template: &str) -> String {
    blake3::hash(format!("{instance}\n{template}").as_bytes()).to_hex()[..32].to_owned()
}

/// One preparing.
struct Job<'a> {
    inner: &'a Inner,
    client: Docker,
    template: &'a str,
    progress: &'a Progress,
}

impl Job<'_> {
    fn fault(&self, why: impl Into<String>) -> RuntimeError {
        RuntimeError::Template { template: self.template.to_owned(), why: why.into() }
    }

    async fn image(&self, image: &Image) -> Result<ImageInspect, RuntimeError> {
        let name = &image.image;
        if image.pull != PullPolicy::Always
            && let Some(found) = self.find(name).await?
        {
            return Ok(found);
        }
        if image.pull == PullPolicy::Never {
            return Err(self.fault(format!("the daemon has no image {name}, and it is never to be pulled")));
        }
        self.progress.begin("pulling", 0);
        let name = with_tag(name);
        tracing::info!(template = self.template, image = name, "an image is pulled");
        let options = CreateImageOptionsBuilder::default().from_image(&name).build();
        let client = with_registry_auth(self.client.clone());
        let pulled = client.create_image(Some(options), None, image.credentials.as_ref().map(credentials));
        self.follow(pulled, &format!("image {name} cannot be pulled"), SILENT_FOR).await?;
        self.find(&name).await?.ok_or_else(|| self.fault(format!("image {name} was pulled and is not there")))
    }

    async fn find(&self, name: &str) -> Result<Option<ImageInspect>, RuntimeError> {
        match self.client.inspect_image(name).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if has_status(&error, 404) => Ok(None),
            Err(error) => Err(self.inner.engine.error(format!("look at the image {name}"), error)),
        }
    }

    /// Reads what the daemon says of something that takes long, to its end. It may be silent for so long.
    async fn follow(
        &self,
        told: impl Stream<Item = Result<CreateImageInfo, Error>>,
        failed: &str,
        silent: Duration,
    ) -> Result<(), RuntimeError> {
        let mut told = std::pin::pin!(told);
        let mut layers = Layers::default();
        loop {
            let info = match timeout(silent, told.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some(info)) => info,
                Err(_) => return Err(self.fault(format!("{failed}: nothing came for {} s", silent.as_secs()))),
            };
            match info {
                Ok(info) => {
                    let (done, total) = layers.take(&info);
                    if total > 0 {
                        self.progress.set(done, total);
                    }
                }
                Err(Error::DockerStreamError { error: message })
                | Err(Error::DockerResponseServerError { message, .. }) => {
                    return Err(match crate::engine::refused(failed, &message) {
                        full @ RuntimeError::Exhausted(_) => full,
                        _ => self.fault(format!("{failed}: {message}")),
                    });
                }
                Err(error) => return Err(self.inner.engine.error(failed, error)),
            }
        }
    }

    /// Imports an archive, unless that was done with the same one.
    async fn archive(&self, path: &Path) -> Result<ImageInspect, RuntimeError> {
        let unreadable = |error: io::Error| self.fault(format!("{} cannot be read: {error}", path.display()));
        let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
        let metadata = file.metadata().await.map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(self.fault(format!("{} is no file", path.display())));
        }
        let instance = &self.inner.options.instance;
        let import = format!("{instance}/{}/{}", self.template, stamp(path, &metadata));
        let tag = tag(instance, self.template);
        let name = format!("{IMPORTED}:{tag}");
        if let Some(found) = self.find(&name).await?
            && label(&found, IMPORT) == Some(&import)
        {
            return Ok(found);
        }
        let (mut sent, size) = (0, metadata.len());
        self.progress.begin("importing", size);
        let changes = vec![format!("LABEL {IMPORT}={import}")];
        // with the tag in the name: Podman does not look at the one beside it
        let options = CreateImageOptionsBuilder::default().from_src("-").repo(&name).changes(changes).build();
        let mut client = self.client.clone();
        let long = Duration::from_secs(LONG);
        client.set_timeout(long);
        let (send, pieces) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(2);
        // the body is sent by another task than the one that has the progress
        let reading = async {
            let mut read = ReaderStream::with_capacity(file, PIECE);
            while let Some(piece) = read.next().await {
                sent += piece.as_ref().map_or(0, |piece| piece.len() as u64);
                self.progress.set(sent, size);
                if send.send(piece).await.is_err() {
                    break;
                }
            }
            drop(send);
        };
        let pieces = futures::stream::unfold(pieces, |mut pieces| async { Some((pieces.recv().await?, pieces)) });
        let imported = client.create_image(Some(options), Some(body_try_stream(pieces)), None);
        let failed = format!("{} cannot be imported", path.display());
        let ((), imported) = tokio::join!(reading, self.follow(imported, &failed, long));
        imported?;
        let image = self.find(&name).await?.ok_or_else(|| self.fault("it was imported and is not there"))?;
        if let Err(error) = remove_imported(self.inner, self.template, image.id.as_deref()).await {
            let error = chain(&error);
            tracing::warn!(template = self.template, error, "an older import stays until the template is deleted");
        }
        Ok(image)
    }

    /// Whether this machine can run it.
    fn check(&self, image: &ImageInspect, facts: &Facts) -> Result<(), RuntimeError> {
        let os = image.os.as_deref().unwrap_or("linux");
        if !os.is_empty() && os != "linux" {
            return Err(self.fault(format!("its image is for {os}, and sandboxes run linux")));
        }
        let architecture = usual_name(image.architecture.as_deref().unwrap_or_default());
        if !architecture.is_empty() && architecture != facts.architecture {
            let own = &facts.architecture;
            return Err(self.fault(format!("its image is for {architecture}, and this machine is {own}")));
        }
        Ok(())
    }
}

/// What an archive is known by: reading all of it, only to see that it is the same, would take longer than most imports.
fn stamp(path: &Path, metadata: &fs::Metadata) -> String {
    let text = format!("{}\n{}\n{}\n{}", path.display(), metadata.len(), metadata.mtime(), metadata.mtime_nsec());
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

fn label<'a>(image: &'a ImageInspect, name: &str) -> Option<&'a String> {
    image.config.as_ref()?.labels.as_ref()?.get(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_templates_have_tags_of_their_own() {
        assert_ne!(tag("here", "python@1"), tag("here", "python@2"));
        assert_ne!(tag("here", "python@1"), tag("there", "python@1"));
        assert!(tag("here", "-._").chars().all(|c| c.is_ascii_hexdigit()));
    }
}
