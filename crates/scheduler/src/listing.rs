//! Lists and counts, from what the directory holds.

use cloud_sandbox_auth::{Principal, Role};
use cloud_sandbox_model::{
    Error, Result, SandboxId,
    input::{page_size, parse_labels},
};
use cloud_sandbox_proto::v1::{
    GetSandboxStatsResponse, ListSandboxesRequest, ListSandboxesResponse, NodeStats, Sandbox, SandboxState,
};
use cloud_sandbox_rpc::limits_message;
use cloud_sandbox_storage::{Directory, NodeEntry, SandboxEntry, SandboxFilter, page};

const PAGE_DEFAULT: u32 = 100;
const PAGE_MAX: u32 = 1000;

/// One page of what `principal` may see.
pub(crate) async fn list(
    directory: &dyn Directory,
    principal: &Principal,
    request: &ListSandboxesRequest,
) -> Result<ListSandboxesResponse> {
    let size = page_size(request.page_size, PAGE_DEFAULT, PAGE_MAX)?;
    let after: Option<SandboxId> = page::after(&request.page_token)?;
    let state = SandboxState::try_from(request.state);
    let paused = match state.map_err(|_| Error::invalid("state", "must be a known state"))? {
        SandboxState::Unspecified => None,
        SandboxState::Acquired => Some(false),
        SandboxState::Paused => Some(true),
        // nobody owns a sandbox in these states, so nobody can list it
        SandboxState::Creating | SandboxState::Ready | SandboxState::Terminating => {
            return Ok(ListSandboxesResponse::default());
        }
    };
    let filter = SandboxFilter {
        tenant: principal.tenant.clone(),
        user: (principal.role == Role::User).then(|| principal.user.clone()),
        template: (!request.template.is_empty()).then(|| request.template.clone()),
        paused,
        metadata: parse_labels("metadata", &request.metadata)?,
    };
    let mut found = directory.sandboxes(&filter, after, size + 1).await?;
    let next_page_token = page::cut(&mut found, size, |entry| entry.id);
    Ok(ListSandboxesResponse { sandboxes: found.into_iter().map(sandbox).collect(), next_page_token })
}

fn sandbox(entry: SandboxEntry) -> Sandbox {
    let state = if entry.paused { SandboxState::Paused } else { SandboxState::Acquired };
    Sandbox {
        sandbox_id: entry.id.to_string(),
        template: entry.template,
        runtime: entry.runtime,
        state: state.into(),
        user_id: entry.user,
        node_id: entry.node.to_string(),
        limits: Some(limits_message(entry.limits)),
        metadata: entry.metadata.into_iter().collect(),
        create_time: Some(entry.acquired_at.into()),
        expire_time: Some(entry.expires_at.into()),
        ..Default::default()
    }
}

/// The sums over `nodes`.
pub(crate) fn stats(nodes: &[NodeEntry]) -> GetSandboxStatsResponse {
    let sum = |count: fn(&NodeEntry) -> u32| nodes.iter().map(count).fold(0, u32::saturating_add);
    let (ready, acquired, creating) = (sum(|n| n.ready), sum(|n| n.acquired), sum(|n| n.creating));
    GetSandboxStatsResponse {
        total: ready.saturating_add(acquired).saturating_add(creating),
        ready,
        acquired,
        paused: sum(|n| n.paused),
        creating,
        capacity: sum(|n| n.capacity),
        nodes: nodes.iter().map(node_stats).collect(),
    }
}

fn node_stats(node: &NodeEntry) -> NodeStats {
    NodeStats {
        node_id: node.id.to_string(),
        ready: node.ready,
        acquired: node.acquired,
        paused: node.paused,
        creating: node.creating,
        capacity: node.capacity,
        draining: node.draining,
    }
}
