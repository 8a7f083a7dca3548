//! The templates of one process, for as long as it lives.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use super::{AllTemplates, Created, TemplateRecord, TemplateStore, is_full};
use crate::{error::StorageError, sql::text};

/// A [`TemplateStore`] in memory.
#[derive(Debug, Default)]
pub struct MemoryTemplates(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    revision: u64,
    last_versions: BTreeMap<String, u32>,
    templates: BTreeMap<(String, u32), TemplateRecord>,
    bytes: usize,
}

impl MemoryTemplates {
    /// A store without templates.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn by_request(&self, record: &TemplateRecord) -> Option<&TemplateRecord> {
        let id = record.request_id.as_ref()?;
        self.templates.values().find(|stored| {
            (&stored.tenant, &stored.user) == (&record.tenant, &record.user) && stored.request_id.as_ref() == Some(id)
        })
    }

    fn of<'a>(&'a self, name: &str) -> impl DoubleEndedIterator<Item = &'a TemplateRecord> + use<'a> {
        let versions = (name.to_owned(), 0)..=(name.to_owned(), u32::MAX);
        self.templates.range(versions).map(|(_, record)| record)
    }
}

#[async_trait]
impl TemplateStore for MemoryTemplates {
    async fn create(&self, record: &TemplateRecord) -> Result<Created, StorageError> {
        let mut state = self.lock();
        if let Some(existing) = state.by_request(record) {
            return Ok(Created::Existing(existing.clone()));
        }
        let bytes = text(&record.template)?.len();
        if is_full(state.templates.len(), state.bytes, bytes) {
            return Ok(Created::Full);
        }
        let last = state.last_versions.entry(record.template.name.clone()).or_default();
        *last += 1;
        let mut stored = record.clone();
        stored.template.version = *last;
        state.templates.insert((stored.template.name.clone(), stored.template.version), stored.clone());
        state.bytes += bytes;
        state.revision += 1;
        Ok(Created::New(stored))
    }

    async fn get(&self, name: &str, version: Option<u32>) -> Result<Option<TemplateRecord>, StorageError> {
        let state = self.lock();
        let mut versions = state.of(name);
        Ok(match version {
            Some(version) => versions.find(|record| record.template.version == version),
            None => versions.next_back(),
        }
        .cloned())
    }

    async fn newest(&self, after: Option<&str>, limit: usize) -> Result<Vec<TemplateRecord>, StorageError> {
        let state = self.lock();
        // of several with one key, the last stays
        let newest: BTreeMap<_, _> =
            state.templates.iter().map(|((name, _), record)| (name.as_str(), record)).collect();
        let wanted = newest.into_iter().filter(|(name, _)| after.is_none_or(|after| *name > after));
        Ok(wanted.take(limit).map(|(_, record)| record.clone()).collect())
    }

    async fn versions(
        &self,
        name: &str,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<TemplateRecord>, StorageError> {
        let state = self.lock();
        let wanted = state.of(name).rev().filter(|record| before.is_none_or(|before| record.template.version < before));
        Ok(wanted.take(limit).cloned().collect())
    }

    async fn all(&self) -> Result<AllTemplates, StorageError> {
        let state = self.lock();
        let templates = state.templates.values().map(|record| record.template.clone()).collect();
        Ok(AllTemplates { revision: state.revision, templates })
    }

    async fn revision(&self) -> Result<u64, StorageError> {
        Ok(self.lock().revision)
    }

    async fn delete(&self, name: &str, version: Option<u32>) -> Result<Vec<u32>, StorageError> {
        let mut state = self.lock();
        let versions = state.of(name).map(|record| record.template.version);
        let gone: Vec<_> = versions.filter(|found| version.is_none_or(|version| version == *found)).collect();
        for version in &gone {
            if let Some(record) = state.templates.remove(&(name.to_owned(), *version)) {
                state.bytes -= text(&record.template)?.len().min(state.bytes);
            }
        }
        if !gone.is_empty() {
            state.revision += 1;
        }
        Ok(gone)
    }

    async fn check(&self) -> Result<(), StorageError> {
        Ok(())
    }

    async fn close(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::templates::conformance::{template_cases, test_each};

    template_cases!(test_each!(((), MemoryTemplates::new())));
}
