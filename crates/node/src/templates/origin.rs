//! What a sandbox is made from, and what makes it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use cloud_sandbox_model::{
    Limits, Template,
    error::{Error, ErrorKind, Result, reason},
};
use cloud_sandbox_runtime::{Prepared, Runtime, RuntimeError};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{executions::environment, languages::Language};

/// A template that is ready on this node. Each of its sandboxes keeps it, also when the node has another of its name by then.
pub(crate) struct Origin {
    pub(crate) template: Template,
    pub(crate) prepared: Prepared,
    pub(crate) runtime: Arc<dyn Runtime>,
    /// limits of a sandbox that asks for none
    pub(crate) limits: Limits,
    /// environment of all that runs in its sandboxes, before that of their owners
    pub(crate) env: HashMap<String, String>,
    /// cancelled when no more sandboxes are to be made from it
    pub(crate) retired: CancellationToken,
    /// one for each sandbox of the template, until nothing is left of that
    pub(crate) users: TaskTracker,
    /// it has turned out that its runtime may not be there, or what was prepared
    pub(super) doubted: Notify,
    /// languages that have code contexts and turned out not to be there
    absent: Mutex<BTreeSet<&'static str>>,
}

impl Origin {
    pub(super) fn new(
        template: Template,
        prepared: Prepared,
        runtime: Arc<dyn Runtime>,
        limits: Limits,
        users: TaskTracker,
    ) -> Arc<Self> {
        let mut env = environment::of_image(&prepared);
        env.extend(template.env.clone());
        Arc::new(Self {
            template,
            prepared,
            runtime,
            limits,
            env,
            retired: CancellationToken::new(),
            users,
            doubted: Notify::new(),
            absent: Mutex::default(),
        })
    }

    /// The template's reference.
    pub(crate) fn reference(&self) -> &str {
        &self.prepared.template
    }

    /// Whether another is made from the same, in the same way.
    pub(super) fn is_like(&self, template: &Template, prepared: &Prepared) -> bool {
        self.template == *template && self.prepared == *prepared
    }

    /// Takes note of what went wrong with making a sandbox.
    pub(crate) fn note(&self, error: &RuntimeError) {
        if matches!(error, RuntimeError::Unavailable(_) | RuntimeError::Template { .. }) {
            self.doubted.notify_one();
        }
    }

    /// Refuses a language that the template does not list, where it lists any.
    pub(crate) fn allows(&self, language: &str) -> Result<()> {
        let listed = &self.template.languages;
        let is_it = |name: &String| Language::find(name).is_some_and(|listed| listed.name == language);
        if listed.is_empty() || listed.iter().any(is_it) {
            return Ok(());
        }
        let (template, allowed) = (self.reference(), listed.join(", "));
        let message = format!("language {language} is not available: template {template} allows {allowed}");
        Err(Error::new(ErrorKind::FailedPrecondition, reason::LANGUAGE_UNAVAILABLE, message)
            .with_metadata("language", language)
            .with_metadata("template", template))
    }

    /// Takes note that a language is not there. Says whether that is news.
    pub(crate) fn lacks(&self, language: &'static str) -> bool {
        self.absent.lock().unwrap_or_else(PoisonError::into_inner).insert(language)
    }

    /// Whether it may have a language, as far as is known.
    pub(crate) fn may_have(&self, language: &'static str) -> bool {
        self.allows(language).is_ok() && !self.absent.lock().unwrap_or_else(PoisonError::into_inner).contains(language)
    }
}
