//! The numbers of a user that a template names. They are needed before anything runs, for folders that are to be the user's;
//! so they are looked up where the container itself would: in the image's `/etc/passwd`.

use std::{io, sync::Arc};

use bollard::{
    Docker,
    models::{ContainerCreateBody, HostConfig},
    query_parameters::{CreateContainerOptions, DownloadFromContainerOptionsBuilder, RemoveContainerOptionsBuilder},
};
use cloud_sandbox_model::SandboxId;
use cloud_sandbox_runtime::RuntimeError;
use futures::StreamExt;

use crate::{
    container::{INSTANCE, SANDBOX},
    engine::has_status,
    runtime::Inner,
};

const PASSWD: &str = "/etc/passwd";
/// More than any such file that is meant.
const PASSWD_MAX: usize = 1024 * 1024;
/// Of a tar archive: its header, and where in that the length of the file is, in octal digits (POSIX.1, ustar).
const HEADER: usize = 512;
const SIZE: std::ops::Range<usize> = 124..135;

/// A user as `UID:GID`; what names nobody stays empty. One that is a number has the group of that number, whatever the image
/// says: what it does not know, the daemon would put into root's group.
pub async fn numbers(inner: &Arc<Inner>, template: &str, image: &str, user: &str) -> Result<String, RuntimeError> {
    if user.is_empty() {
        return Ok(String::new());
    }
    if user.chars().all(|c| c.is_ascii_digit()) {
        return Ok(format!("{user}:{user}"));
    }
    let looking = {
        let (inner, image) = (Arc::clone(inner), image.to_owned());
        // on its own, so that a caller that goes away leaves no container
        tokio::spawn(async move { passwd(&inner, &image).await })
    };
    let passwd = looking.await.map_err(|error| RuntimeError::host("look into an image", io::Error::other(error)))??;
    let found = passwd.as_deref().and_then(|passwd| find(passwd, user));
    found.ok_or_else(|| {
        let why = format!("its image has no user {user} in {PASSWD}");
        RuntimeError::Template { template: template.to_owned(), why }
    })
}

/// The file of an image, by a container that is never started; `None` where there is none.
async fn passwd(inner: &Inner, image: &str) -> Result<Option<String>, RuntimeError> {
    let client = inner.engine.client()?;
    // it is found by that where its server was killed meanwhile
    let id = SandboxId::generate();
    let _making = inner.making(id);
    let labels = [(SANDBOX, id.to_string()), (INSTANCE, inner.options.instance.clone())];
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        // never run; without one, an image may have none and is refused
        entrypoint: Some(vec!["/".to_owned()]),
        labels: Some(labels.map(|(name, value)| (name.to_owned(), value)).into()),
        host_config: Some(HostConfig { network_mode: Some("none".into()), ..HostConfig::default() }),
        ..ContainerCreateBody::default()
    };
    let created = client.create_container(None::<CreateContainerOptions>, body).await;
    let created = created.map_err(|error| inner.engine.error("look into an image", error))?;
    let read = read(&client, &created.id).await;
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    let removed = client.remove_container(&created.id, Some(options)).await;
    removed.map_err(|error| inner.engine.error("remove a container that was looked into", error))?;
    match read {
        Err(error) if has_status(&error, 404) => Ok(None),
        read => read.map_err(|error| inner.engine.error(format!("read {PASSWD} of an image"), error)),
    }
}

async fn read(client: &Docker, container: &str) -> Result<Option<String>, bollard::errors::Error> {
    let options = DownloadFromContainerOptionsBuilder::default().path(PASSWD).build();
    let mut archive = std::pin::pin!(client.download_from_container(container, Some(options)));
    let mut bytes = Vec::new();
    while let Some(piece) = archive.next().await {
        bytes.extend_from_slice(&piece?);
        if bytes.len() > PASSWD_MAX {
            break;
        }
    }
    Ok(only_file(&bytes))
}

/// The content of the one file of an archive.
fn only_file(archive: &[u8]) -> Option<String> {
    let digits = std::str::from_utf8(archive.get(SIZE)?).ok()?;
    let size = usize::from_str_radix(digits.trim(), 8).ok()?;
    let content = archive.get(HEADER..HEADER.checked_add(size)?)?;
    String::from_utf8(content.to_vec()).ok()
}

/// The numbers of a user in a file like `/etc/passwd`: `name:password:uid:gid:…`.
fn find(passwd: &str, user: &str) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != user {
            return None;
        }
        let (user, group): (u32, u32) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(format!("{user}:{group}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_their_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/false\nbad:x:y:0::\n";
        assert_eq!(find(passwd, "web").as_deref(), Some("33:34"));
        assert_eq!(find(passwd, "root").as_deref(), Some("0:0"));
        for nobody in ["we", "bad", "x", ""] {
            assert_eq!(find(passwd, nobody), None, "{nobody:?}");
        }
    }

    #[test]
    fn archive_is_read_by_its_length_and_not_beyond() {
        let mut archive = vec![0; HEADER];
        archive[SIZE].copy_from_slice(b"00000000005");
        archive.extend_from_slice(b"helloxxxx");
        assert_eq!(only_file(&archive).as_deref(), Some("hello"));
        archive.truncate(HEADER + 4);
        assert_eq!(only_file(&archive), None);
        assert_eq!(only_file(b"short"), None);
    }
}
