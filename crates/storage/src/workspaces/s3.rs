//! The checkpoints of a fleet, in S3 or what speaks its protocol: `<prefix><checkpoint id>/<name>` in one bucket.
//!
//! Every request may be sent again: what is written is written whole, and twice the same. So the client repeats what
//! failed on the way (with pauses that grow and differ), and this file repeats downloads that broke in the middle, which
//! the client does not. What a server answers with a reason is not repeated, but told.

mod client;
mod failure;

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use aws_sdk_s3::{
    Client,
    operation::get_object::GetObjectOutput,
    primitives::ByteStream,
    types::{Delete, ObjectIdentifier},
};
use bytes::{Bytes, BytesMut};
use cloud_sandbox_model::CheckpointId;
use tokio::time::{Instant, sleep};

use super::{WorkspaceStore, is_name, nameless};
use crate::error::StorageError;
pub use client::S3Options;
use client::{at_once, with_time_for};
use failure::{STORE, failed, is_missing, is_out_of_range, unavailable};

/// The most that one listing gives and one deletion takes.
const BATCH: usize = 1000;
/// No object is larger: 5 TiB. Some servers cannot read the numbers of ranges beyond.
const OBJECT_MAX: u64 = 5 << 40;
/// How often a download is begun that broke in the middle.
const DOWNLOADS: u32 = 4;
/// Before it is begun again, in milliseconds, doubled each time: some at random, so that not all come back at once.
const AGAIN_AFTER: Range<u64> = 50..150;
/// What is written to see whether writing works. It is no folder of ours.
const PROBE: &str = "check";
/// A store that took a write is only asked whether it answers, for so long: a write costs money.
const TRUSTED_FOR: Duration = Duration::from_secs(60);

/// A [`WorkspaceStore`] in S3.
#[derive(Debug)]
pub struct S3Workspaces {
    client: Client,
    bucket: String,
    prefix: String,
    written: Mutex<Option<Instant>>,
}

impl S3Workspaces {
    /// Connects, and fails unless the bucket is there and lets itself be listed and written.
    pub async fn connect(options: S3Options) -> Result<Self, StorageError> {
        let client = client::make(&options);
        let S3Options { bucket, prefix, .. } = options;
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let store = Self { client, bucket, prefix, written: Mutex::default() };
        // unlike the bucket's head, an answer to this says what is wrong
        store.page("", None, None, 1).await?;
        store.write(&store.probe(), Bytes::new()).await?;
        Ok(store)
    }

    fn object(&self, folder: CheckpointId, name: &str) -> String {
        format!("{}{folder}/{name}", self.prefix)
    }

    fn probe(&self) -> String {
        format!("{}{PROBE}", self.prefix)
    }

    async fn write(&self, key: &str, content: Bytes) -> Result<(), StorageError> {
        let time = with_time_for(content.len());
        let put = self.client.put_object().bucket(&self.bucket).key(key).body(ByteStream::from(content));
        put.customize().config_override(time).send().await.map_err(|error| failed(&error, &self.bucket))?;
        Ok(())
    }

    /// An object or a part of it, begun again when it breaks in the middle.
    async fn download(&self, key: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, StorageError> {
        let mut attempt = 1;
        loop {
            let get = self.client.get_object().bucket(&self.bucket).key(key);
            let get = get.set_range(range.as_ref().map(|range| format!("bytes={}-{}", range.start, range.end - 1)));
            let object = match get.send().await {
                Ok(object) => object,
                Err(error) if is_missing(&error) || is_out_of_range(&error) => return Ok(None),
                Err(error) => return Err(failed(&error, &self.bucket)),
            };
            match body(object, range.as_ref()).await {
                Ok(content) => return Ok(content),
                Err(error) if attempt == DOWNLOADS => return Err(error),
                Err(error) => tracing::debug!(error = cloud_sandbox_model::error::chain(&error), key, "download broke"),
            }
            sleep(Duration::from_millis(rand::random_range(AGAIN_AFTER) << attempt)).await;
            attempt += 1;
        }
    }

    /// An object's size.
    async fn size(&self, key: &str) -> Result<Option<u64>, StorageError> {
        let head = self.client.head_object().bucket(&self.bucket).key(key).send().await;
        match head {
            Ok(head) => Ok(Some(head.content_length().and_then(|size| u64::try_from(size).ok()).unwrap_or(0))),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(failed(&error, &self.bucket)),
        }
    }

    /// One page of what begins with the prefix and `below`.
    async fn page(
        &self,
        below: &str,
        delimiter: Option<&str>,
        after: Option<String>,
        limit: usize,
    ) -> Result<Page, StorageError> {
        let list = self.client.list_objects_v2().bucket(&self.bucket).prefix(format!("{}{below}", self.prefix));
        let list = list.set_delimiter(delimiter.map(str::to_owned)).set_start_after(after);
        let list = list.max_keys(i32::try_from(limit.min(BATCH)).unwrap_or(i32::MAX));
        let page = list.send().await.map_err(|error| failed(&error, &self.bucket))?;
        let folders = page.common_prefixes().iter().filter_map(|folder| folder.prefix().map(str::to_owned));
        let objects = page.contents().iter().filter_map(|object| object.key().map(str::to_owned));
        Ok(Page { folders: folders.collect(), objects: objects.collect(), more: page.is_truncated() == Some(true) })
    }

    /// Deletes objects, first to last.
    async fn remove(&self, keys: &[String]) -> Result<(), StorageError> {
        let object = |key: &String| ObjectIdentifier::builder().key(key).build();
        let objects = keys.iter().map(object).collect::<Result<_, _>>().map_err(unavailable)?;
        let doomed = Delete::builder().set_objects(Some(objects)).quiet(true).build().map_err(unavailable)?;
        let deleted = self.client.delete_objects().bucket(&self.bucket).delete(doomed).send().await;
        match deleted {
            Ok(deleted) => match deleted.errors().first() {
                None => Ok(()),
                Some(error) => Err(failure::of_code(error.code(), error.message())),
            },
            Err(error) if failure::asks_for_less(&error) => self.remove_each(keys).await,
            Err(error) => Err(failed(&error, &self.bucket)),
        }
    }

    /// The same on servers that delete one by one only, or want a checksum of theirs with many.
    async fn remove_each(&self, keys: &[String]) -> Result<(), StorageError> {
        for key in keys {
            let deleted = self.client.delete_object().bucket(&self.bucket).key(key).send().await;
            match deleted {
                Ok(_) => {}
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(failed(&error, &self.bucket)),
            }
        }
        Ok(())
    }

    fn was_written(&self) -> bool {
        let written = *self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.is_some_and(|at| at.elapsed() < TRUSTED_FOR)
    }
}

struct Page {
    folders: Vec<String>,
    objects: Vec<String>,
    more: bool,
}

/// What an answer brings; `None` when the object ends before the range does. An error when the answer broke.
async fn body(object: GetObjectOutput, range: Option<&Range<u64>>) -> Result<Option<Bytes>, StorageError> {
    let announced = object.content_length().and_then(|length| usize::try_from(length).ok());
    // a server may send all of it, whatever was asked for
    let part = range.filter(|_| object.content_range().is_some());
    let wanted = part.and_then(|part| usize::try_from(part.end - part.start).ok());
    if wanted.is_some() && announced.is_some() && wanted != announced {
        return Ok(None);
    }
    // no more at once than a pack has: the number is the server's
    let mut content = BytesMut::with_capacity(announced.unwrap_or(0).min(64 << 20));
    let mut stream = object.body;
    while let Some(piece) = stream.try_next().await.map_err(unavailable)? {
        content.extend_from_slice(&piece);
    }
    if announced.is_some_and(|announced| announced != content.len()) {
        return Err(unavailable("the answer ended early"));
    }
    let content = content.freeze();
    match range {
        Some(range) if part.is_none() => {
            let within = |at: u64| usize::try_from(at).ok().filter(|at| *at <= content.len());
            Ok(within(range.start).zip(within(range.end)).map(|(start, end)| content.slice(start..end)))
        }
        _ => Ok(Some(content).filter(|content| wanted.is_none_or(|wanted| wanted == content.len()))),
    }
}

#[async_trait]
impl WorkspaceStore for S3Workspaces {
    async fn put(&self, folder: CheckpointId, name: &str, content: Bytes) -> Result<(), StorageError> {
        if !is_name(name) {
            return Err(nameless(STORE, name));
        }
        self.write(&self.object(folder, name), content).await
    }

    async fn get(&self, folder: CheckpointId, name: &str) -> Result<Option<Bytes>, StorageError> {
        if !is_name(name) {
            return Ok(None);
        }
        self.download(&self.object(folder, name), None).await
    }

    async fn read(&self, folder: CheckpointId, name: &str, range: Range<u64>) -> Result<Option<Bytes>, StorageError> {
        if !is_name(name) || range.end > OBJECT_MAX {
            return Ok(None);
        }
        let key = self.object(folder, name);
        if range.is_empty() {
            // there is no way to ask for nothing
            let size = self.size(&key).await?;
            return Ok(size.filter(|size| range.end <= *size).map(|_| Bytes::new()));
        }
        self.download(&key, Some(range)).await
    }

    async fn folders(&self, after: Option<CheckpointId>, limit: usize) -> Result<Vec<CheckpointId>, StorageError> {
        let mut found = Vec::new();
        // `0` is what comes after `/`, and so after everything in that folder
        let mut from = after.map(|after| format!("{}{after}0", self.prefix));
        while found.len() < limit {
            let page = self.page("", Some("/"), from, BATCH).await?;
            let names = page.folders.iter().filter_map(|folder| folder.strip_prefix(&self.prefix)?.strip_suffix('/'));
            let ids = names.filter_map(|name| name.parse::<CheckpointId>().ok());
            found.extend(ids.filter(|id| after.is_none_or(|after| *id > after)));
            let last = page.folders.last().map(|folder| format!("{}0", folder.trim_end_matches('/')));
            from = last.max(page.objects.last().cloned());
            if !page.more || from.is_none() {
                break;
            }
        }
        found.sort_unstable();
        found.dedup();
        found.truncate(limit);
        Ok(found)
    }

    async fn delete(&self, folder: CheckpointId) -> Result<(), StorageError> {
        let below = format!("{folder}/");
        let mut from = None;
        loop {
            // the manifest is the first of them: what is half deleted has none, and is still listed
            let page = self.page(&below, None, from, BATCH).await?;
            let Some(last) = page.objects.last() else { return Ok(()) };
            self.remove(&page.objects).await?;
            if !page.more {
                return Ok(());
            }
            from = Some(last.clone());
        }
    }

    async fn check(&self) -> Result<(), StorageError> {
        if self.was_written() {
            let head = self.client.head_bucket().bucket(&self.bucket).customize().config_override(at_once());
            head.send().await.map_err(|error| failed(&error, &self.bucket))?;
            return Ok(());
        }
        let put = self.client.put_object().bucket(&self.bucket).key(self.probe()).body(ByteStream::default());
        let put = put.customize().config_override(at_once()).send().await;
        put.map_err(|error| failed(&error, &self.bucket))?;
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
