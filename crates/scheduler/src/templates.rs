//! Templates as the control plane knows them: those in the store, and those that are built into nodes.
//!
//! The store owns what a template is; how far a node is with it is the node's to say, in the directory. A built-in template
//! has no version and no record: it is there where a living node reports it.

mod listing;
mod plan;
mod publisher;
mod service;
mod state;

use std::sync::Arc;

use cloud_sandbox_model::{
    Error, ErrorKind, Result, Template,
    error::reason,
    template::{DOCKER, HOST, split_reference},
};
use cloud_sandbox_storage::{NodeEntry, TemplateRecord, TemplateStore};
use tokio::sync::Notify;

pub use publisher::TemplatePublisher;
pub use service::TemplateService;
pub(crate) use state::why_not_ready;

/// What is decided elsewhere about templates.
#[derive(Debug, Clone)]
pub struct TemplateOptions {
    /// the template of callers who name none
    pub default_template: String,
    /// the image of the built-in template `docker`
    pub docker_image: String,
}

/// The templates that there are. Clones are the same.
#[derive(Clone)]
pub struct Templates {
    store: Arc<dyn TemplateStore>,
    options: Arc<TemplateOptions>,
    /// told when the store has changed, so that nodes hear of it at once
    changed: Arc<Notify>,
}

impl Templates {
    /// Those in `store`.
    #[must_use]
    pub fn new(store: Arc<dyn TemplateStore>, options: TemplateOptions) -> Self {
        Self { store, options: Arc::new(options), changed: Arc::default() }
    }

    /// The name that a caller means who may have named none.
    pub(crate) fn meant<'a>(&'a self, name: &'a str) -> &'a str {
        if name.is_empty() { &self.options.default_template } else { name }
    }

    /// What `name` means now: the newest version of it, unless it names one. NOT_FOUND when there is none.
    pub(crate) async fn resolve(&self, name: &str, nodes: &[NodeEntry]) -> Result<String> {
        if is_reported_built_in(name, nodes) {
            return Ok(name.to_owned());
        }
        Ok(self.record(name).await?.template.reference())
    }

    /// The record of a template that is not built in.
    async fn record(&self, reference: &str) -> Result<TemplateRecord> {
        let found = match split_reference(reference) {
            Some((name, version)) => self.store.get(name, version).await?,
            None => None,
        };
        found.ok_or_else(|| not_found(reference))
    }

    /// A built-in template, as far as its name tells.
    fn built_in(&self, name: &str) -> Option<Template> {
        match name {
            HOST => Some(Template::host()),
            DOCKER => Some(Template::docker(&self.options.docker_image)),
            _ => None,
        }
    }
}

/// Whether `name` is that of a built-in template of some node.
fn is_reported_built_in(name: &str, nodes: &[NodeEntry]) -> bool {
    !name.contains('@') && nodes.iter().any(|node| node.templates.iter().any(|own| own.reference == name))
}

fn not_found(reference: &str) -> Error {
    let message = format!("template '{reference}' does not exist");
    Error::new(ErrorKind::NotFound, reason::TEMPLATE_NOT_FOUND, message)
}
