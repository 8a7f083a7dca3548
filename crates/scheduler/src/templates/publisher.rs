//! Tells every living node the templates: at the start, after each change, when a node is new, and when one reports others.
//!
//! It keeps nothing that matters: any number of them may run at once, since a node heeds the list with the highest revision.
//! When nothing changes, a look costs one small query and a read of the directory.

use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};

use cloud_sandbox_model::{NodeId, Result, error::chain};
use cloud_sandbox_node_client::{NodeClient, Nodes, failure, unreachable};
use cloud_sandbox_proto::node::v1::SetTemplatesRequest;
use cloud_sandbox_rpc::{Dial, template_message};
use cloud_sandbox_storage::{AllTemplates, Directory};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use tonic::Request;

use super::{Templates, plan::Plan};

/// How often is looked for nodes that are new, and for what other schedulers have written.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A node answers before it begins to prepare anything.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How many nodes are told at once.
const AT_ONCE: usize = 16;

/// Keeps nodes told.
pub struct TemplatePublisher {
    nodes: Nodes,
    templates: Templates,
    plan: Plan,
    list: Option<List>,
    telling: JoinSet<(NodeId, u64, Result<()>)>,
    /// the last look failed, which was said
    failing: bool,
}

/// The templates, ready to be told.
struct List {
    message: SetTemplatesRequest,
    references: BTreeSet<String>,
}

impl List {
    fn of(all: &AllTemplates) -> Self {
        Self {
            message: SetTemplatesRequest {
                templates: all.templates.iter().map(|template| template_message(template, true)).collect(),
                revision: all.revision,
            },
            references: all.templates.iter().map(cloud_sandbox_model::Template::reference).collect(),
        }
    }
}

impl TemplatePublisher {
    /// One that tells the nodes in `directory`, called through `dial`.
    #[must_use]
    pub fn new(templates: Templates, directory: Arc<dyn Directory>, dial: Arc<dyn Dial>) -> Self {
        let nodes = Nodes::new(directory, dial);
        Self { nodes, templates, plan: Plan::default(), list: None, telling: JoinSet::new(), failing: false }
    }

    /// Keeps at it until `shutdown` resolves.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let changed = Arc::clone(&self.templates.changed);
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = &mut shutdown => return,
                _ = looks.tick() => {}
                () = changed.notified() => {}
                Some(told) = self.telling.join_next() => {
                    if let Ok((node, revision, outcome)) = told {
                        self.note(node, revision, outcome);
                    }
                    // somebody may have waited for room
                    if self.telling.len() + 1 < AT_ONCE {
                        continue;
                    }
                }
            }
            let looked = self.look().await;
            let failed = looked.as_ref().err().map(|error| chain(error));
            if let (Some(error), false) = (&failed, self.failing) {
                tracing::warn!(error, "failed to see which templates nodes have to be told; trying again");
            }
            self.failing = failed.is_some();
        }
    }

    async fn look(&mut self) -> Result<()> {
        let revision = self.templates.store.revision().await?;
        let list = match self.list.take().filter(|list| list.message.revision == revision) {
            Some(list) => self.list.insert(list),
            None => self.list.insert(List::of(&self.templates.store.all().await?)),
        };
        let alive = self.nodes.directory().nodes().await?;
        let room = AT_ONCE.saturating_sub(self.telling.len());
        let revision = list.message.revision;
        for id in self.plan.due(&alive, revision, &list.references, Instant::now(), room) {
            let Some(node) = alive.iter().find(|node| node.id == id) else { continue };
            let (nodes, address, message) = (self.nodes.clone(), node.address.clone(), list.message.clone());
            self.telling.spawn(async move { (id, revision, tell(&nodes, &address, message).await) });
        }
        Ok(())
    }

    fn note(&mut self, node: NodeId, revision: u64, outcome: Result<()>) {
        match outcome {
            Ok(()) => {
                self.plan.told(node, Some(revision), Instant::now());
            }
            Err(error) => {
                if self.plan.told(node, None, Instant::now()) {
                    let error = chain(&error);
                    tracing::warn!(node_id = %node, error, "failed to tell a node the templates; trying again");
                }
            }
        }
    }
}

async fn tell(nodes: &Nodes, address: &str, message: SetTemplatesRequest) -> Result<()> {
    let mut client: NodeClient = nodes.client(address)?;
    let mut request = Request::new(message);
    request.set_timeout(ANSWER_WITHIN);
    let answer = timeout(ANSWER_WITHIN, client.set_templates(request)).await.map_err(unreachable)?;
    answer.map(drop).map_err(|status| failure(&status))
}
