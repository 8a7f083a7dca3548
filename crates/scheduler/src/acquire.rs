//! Acquiring: try the best node, then the next, a few times.
//!
//! A node's RESOURCE_EXHAUSTED means "try another node", and so does a node that cannot be reached; every other refusal
//! is the caller's answer. With a `request_id`, the node that was asked first is kept as a claim in the directory, so
//! that a retry, through whichever scheduler, goes to the node that knows the first answer; and with it the version of
//! the template, so that it is the same request there though a newer version was created meanwhile.
//!
//! When the caller hangs up, its deadline passes, or a reply is lost after the node acquired, nobody knows the sandbox:
//! its lease ends it.

use std::time::Duration;

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::{Error, ErrorKind, NodeId, Result, error::reason, input::Violations};
use cloud_sandbox_node_client::{NodeClient, Nodes, failure, missing, within};
use cloud_sandbox_proto::{node, v1};
use cloud_sandbox_rpc::CallContext;
use cloud_sandbox_storage::{Claim, NodeEntry};

use crate::{
    placement::{PlacementRequest, offers, place},
    templates::{Templates, why_not_ready},
};

/// How many nodes are asked for one acquire.
const ATTEMPTS: usize = 3;
/// How long a request id is known: as long as the longest lease.
const CLAIMED_FOR: Duration = Duration::from_secs(24 * 3600);
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// One acquire.
pub(crate) struct Acquire<'a> {
    nodes: &'a Nodes,
    templates: &'a Templates,
    context: &'a CallContext,
    principal: &'a Principal,
    request: &'a v1::AcquireSandboxRequest,
    /// the claim's key; `None` without a `request_id`
    key: Option<String>,
}

impl<'a> Acquire<'a> {
    /// Checks what needs no node.
    pub(crate) fn new(
        nodes: &'a Nodes,
        templates: &'a Templates,
        context: &'a CallContext,
        principal: &'a Principal,
        request: &'a v1::AcquireSandboxRequest,
    ) -> Result<Self> {
        let mut violations = Violations::default();
        violations.request_id("request_id", &request.request_id);
        violations.template("template", &request.template);
        violations.finish()?;
        let (tenant, user, id) = (&principal.tenant, &principal.user, &request.request_id);
        let key = (!id.is_empty()).then(|| format!("acquire:{tenant}:{user}:{id}"));
        Ok(Self { nodes, templates, context, principal, request, key })
    }

    pub(crate) async fn run(self) -> Result<v1::Sandbox> {
        let alive = self.nodes.directory().nodes().await?;
        if alive.is_empty() {
            let error = Error::new(ErrorKind::Unavailable, reason::NODE_UNREACHABLE, "no node is alive");
            return Err(error.with_retry_after(RETRY_AFTER));
        }
        let template = self.templates.resolve(self.template(), &alive).await?;
        if !alive.iter().any(|node| offers(node, &template)) {
            return Err(why_not_ready(&template, &alive));
        }
        let mut excluded = Vec::new();
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let Some(choice) = self.choose(&alive, &template, &excluded).await? else { break };
            let error = match self.ask(&choice).await {
                Ok(sandbox) => return Ok(sandbox),
                Err(error) => error,
            };
            if !matches!(error.kind(), ErrorKind::ResourceExhausted | ErrorKind::Unavailable) {
                if is_refusal(error.kind()) {
                    // it stands for nothing; kept, refused calls would fill the directory for a day
                    self.unclaim(&choice).await?;
                }
                return Err(error);
            }
            tracing::info!(node_id = %choice.node.id, reason = error.reason(), "node did not take the sandbox");
            self.unclaim(&choice).await?;
            excluded.push(choice.node.id);
            last = Some(error);
        }
        Err(nowhere(last))
    }

    /// What the caller wants, by name.
    fn template(&self) -> &str {
        self.templates.meant(&self.request.template)
    }

    /// The node to ask next: the one that holds the claim, else the best.
    async fn choose<'n>(
        &self,
        alive: &'n [NodeEntry],
        template: &str,
        excluded: &[NodeId],
    ) -> Result<Option<Choice<'n>>> {
        let by_id = |id: NodeId| alive.iter().find(|node| node.id == id);
        let request = PlacementRequest { template, excluded };
        let Some(best) = place(alive, &request).first().and_then(|id| by_id(*id)) else { return Ok(None) };
        let choice = |node, template: &str, claim| Some(Choice { node, template: template.to_owned(), claim });
        let Some(key) = &self.key else { return Ok(choice(best, template, String::new())) };
        let value = format!("{} {template}", best.id);
        // a claim that leads nowhere is given up and tried again; somebody else may be quicker, but not for ever
        for _ in 0..ATTEMPTS {
            match self.nodes.directory().claim(key, &value, CLAIMED_FOR).await? {
                Claim::Won => return Ok(choice(best, template, value)),
                Claim::Held(held) => {
                    let (id, first) = held.split_once(' ').unwrap_or((&held, template));
                    let node = id.parse().ok().filter(|id| !excluded.contains(id)).and_then(by_id);
                    if let Some(node) = node {
                        let first = if self.means(first) { first } else { template };
                        return Ok(choice(node, first, held.clone()));
                    }
                    self.nodes.directory().unclaim(key, &held).await?;
                }
            }
        }
        Err(Error::new(ErrorKind::Aborted, "REQUEST_ID_BUSY", "other calls with this request_id are under way"))
    }

    /// Whether what the caller wants is the template that is called `reference`, or some version of it that this may be.
    fn means(&self, reference: &str) -> bool {
        let rest = reference.strip_prefix(self.template());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('@'))
    }

    /// Asks one node. With a `request_id` a lost reply is asked for again: the node knows its first answer.
    async fn ask(&self, choice: &Choice<'_>) -> Result<v1::Sandbox> {
        let result = self.ask_once(choice).await;
        match result {
            Err(error) if self.key.is_some() && error.reason() == reason::NODE_UNREACHABLE => {
                self.ask_once(choice).await
            }
            result => result,
        }
    }

    async fn ask_once(&self, choice: &Choice<'_>) -> Result<v1::Sandbox> {
        let owner = node::v1::Owner { tenant: self.principal.tenant.clone(), user_id: self.principal.user.clone() };
        let wanted = v1::AcquireSandboxRequest { template: choice.template.clone(), ..self.request.clone() };
        let request = node::v1::AcquireSandboxRequest { owner: Some(owner), request: Some(wanted) };
        let mut client: NodeClient = self.nodes.client(&choice.node.address)?;
        let answer = within(self.context, client.acquire_sandbox(self.context.outbound(request))).await?;
        missing(answer.map_err(|status| failure(&status))?.into_inner().sandbox, "sandbox")
    }

    async fn unclaim(&self, choice: &Choice<'_>) -> Result<()> {
        if let Some(key) = &self.key {
            self.nodes.directory().unclaim(key, &choice.claim).await?;
        }
        Ok(())
    }
}

/// The node that is asked.
struct Choice<'n> {
    node: &'n NodeEntry,
    /// what it is asked for, by reference
    template: String,
    /// the value of the claim; empty without one
    claim: String,
}

/// Whether the node certainly made nothing for this `request_id`, nor did it before.
const fn is_refusal(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::InvalidArgument | ErrorKind::NotFound | ErrorKind::FailedPrecondition)
}

/// What the caller hears when no node took its sandbox: that there is no room, unless no node could even be asked.
fn nowhere(last: Option<Error>) -> Error {
    match last {
        Some(error) if error.kind() == ErrorKind::Unavailable => error.with_retry_after(RETRY_AFTER),
        _ => Error::new(ErrorKind::ResourceExhausted, reason::CAPACITY, "no node has room for another sandbox")
            .with_retry_after(RETRY_AFTER),
    }
}
