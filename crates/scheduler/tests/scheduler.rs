//! SchedulerService against simulated nodes.

#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use cloud_sandbox_model::{Error, ErrorKind, NodeId, SandboxId, error::reason};
use cloud_sandbox_proto::v1::{
    AcquireSandboxRequest, GetSandboxRequest, GetSandboxStatsRequest, KeepAliveSandboxRequest, ListSandboxesRequest,
    ReleaseSandboxRequest, ResourceLimits, Sandbox, SandboxState, scheduler_service_server::SchedulerService as _,
};
use cloud_sandbox_rpc::{LocalDial, from_status};
use cloud_sandbox_scheduler::{SchedulerService, TemplateOptions, Templates};
use cloud_sandbox_sim_node::{Fault, SimNode, assert_eventually, by, by_admin};
use cloud_sandbox_storage::{Claim, Directory, MemoryDirectory, MemoryTemplates};
use tonic::{Request, Response, Status};

struct World {
    directory: Arc<MemoryDirectory>,
    dial: LocalDial,
    service: SchedulerService,
}

impl World {
    fn new() -> Self {
        let (directory, dial) = (Arc::new(MemoryDirectory::new()), LocalDial::new());
        let options = TemplateOptions { default_template: "host".into(), docker_image: "python:3.11-slim".into() };
        let templates = Templates::new(Arc::new(MemoryTemplates::new()), options);
        let service = SchedulerService::new(directory.clone(), Arc::new(dial.clone()), templates);
        Self { directory, dial, service }
    }

    /// Nodes of which the first is the best, and so on.
    async fn nodes<const N: usize>(&self) -> [SimNode; N] {
        let mut nodes = Vec::new();
        for number in 0..N {
            let capacity = u32::try_from(N - number).unwrap() * 10;
            let node = SimNode::start(self.directory.clone(), &self.dial, 1, capacity).await;
            nodes.push(node);
        }
        // equally free by part, so the order is by id: sort by it
        nodes.sort_by_key(SimNode::id);
        nodes.try_into().unwrap_or_else(|_| unreachable!())
    }

    async fn acquire(&self, request: Request<AcquireSandboxRequest>) -> Result<Sandbox, Error> {
        let response = self.service.acquire_sandbox(request).await;
        response.map(|response| response.into_inner().sandbox.unwrap()).map_err(|status| from_status(&status))
    }
}

fn anything() -> AcquireSandboxRequest {
    AcquireSandboxRequest::default()
}

fn once(id: &str) -> AcquireSandboxRequest {
    AcquireSandboxRequest { request_id: id.into(), ..anything() }
}

fn error<T: std::fmt::Debug>(result: Result<Response<T>, Status>) -> Error {
    from_status(&result.unwrap_err())
}

#[tokio::test]
async fn best_node_is_asked_and_the_others_are_not() {
    let world = World::new();
    let [first, second] = world.nodes().await;
    let sandbox = world.acquire(by("ada", anything())).await.unwrap();
    assert_eq!((sandbox.node_id, sandbox.user_id.as_str()), (first.id().to_string(), "ada"));
    assert_eq!(second.calls(), [""; 0]);
}

#[tokio::test]
async fn refused_node_is_skipped() {
    let world = World::new();
    let [full, free] = world.nodes().await;
    full.fail("AcquireSandbox", Fault::Refuse(ErrorKind::ResourceExhausted));
    assert_eq!(world.acquire(by("ada", anything())).await.unwrap().node_id, free.id().to_string());
}

#[tokio::test]
async fn dead_node_is_skipped() {
    let world = World::new();
    let [dead, draining, alive] = world.nodes().await;
    dead.cut_off();
    draining.fail("AcquireSandbox", Fault::Refuse(ErrorKind::Unavailable));
    assert_eq!(world.acquire(by("ada", anything())).await.unwrap().node_id, alive.id().to_string());
}

#[tokio::test]
async fn attempts_are_bounded_and_then_there_is_no_room() {
    let world = World::new();
    let nodes: [SimNode; 5] = world.nodes().await;
    for node in &nodes {
        node.fail("AcquireSandbox", Fault::Refuse(ErrorKind::ResourceExhausted));
    }
    let refused = world.acquire(by("ada", once("r"))).await.unwrap_err();
    assert_eq!((refused.kind(), refused.reason()), (ErrorKind::ResourceExhausted, reason::CAPACITY));
    assert_eq!(refused.retry_after(), Some(Duration::from_secs(1)));
    assert_eq!(nodes.iter().map(|node| node.called("AcquireSandbox")).sum::<usize>(), 3);
}

#[tokio::test]
async fn invalid_request_is_answered_at_once() {
    let world = World::new();
    let [first, second] = world.nodes().await;
    first.fail("AcquireSandbox", Fault::Refuse(ErrorKind::InvalidArgument));
    assert_eq!(world.acquire(by("ada", anything())).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(second.calls(), [""; 0]);

    let bad = AcquireSandboxRequest { template: "x".repeat(1 << 20), ..once("not an id") };
    let bad = world.acquire(by("ada", bad)).await.unwrap_err();
    let fields: Vec<_> = bad.violations().iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, ["request_id", "template"]);
    assert_eq!(first.calls().len(), 1);
}

#[tokio::test]
async fn without_a_node_or_the_template_the_caller_is_told_which() {
    let world = World::new();
    let nobody = world.acquire(by("ada", anything())).await.unwrap_err();
    assert_eq!((nobody.kind(), nobody.retry_after().is_some()), (ErrorKind::Unavailable, true));
    let [node] = world.nodes().await;
    let unknown = AcquireSandboxRequest { template: "cobol".into(), ..anything() };
    let unknown = world.acquire(by("ada", unknown)).await.unwrap_err();
    assert_eq!((unknown.kind(), unknown.reason()), (ErrorKind::NotFound, reason::TEMPLATE_NOT_FOUND));
    node.report(1, 10, true).await;
    let draining = world.acquire(by("ada", anything())).await.unwrap_err();
    assert_eq!((draining.kind(), draining.reason()), (ErrorKind::ResourceExhausted, reason::CAPACITY));
    node.cut_off();
    node.report(1, 10, false).await;
    let cut = world.acquire(by("ada", anything())).await.unwrap_err();
    assert_eq!((cut.kind(), cut.reason()), (ErrorKind::Unavailable, reason::NODE_UNREACHABLE));
}

#[tokio::test]
async fn retry_with_a_request_id_gets_the_first_answer_from_the_same_node() {
    let world = World::new();
    let [first, second] = world.nodes().await;
    let sandbox = world.acquire(by("ada", once("r1"))).await.unwrap();
    // the other node is the better one now
    first.report(0, 10, false).await;
    assert_eq!(world.acquire(by("ada", anything())).await.unwrap().node_id, second.id().to_string());
    assert_eq!(world.acquire(by("ada", once("r1"))).await.unwrap(), sandbox);

    let limits = Some(ResourceLimits { pids: 9, ..ResourceLimits::default() });
    let other = world.acquire(by("ada", AcquireSandboxRequest { limits, ..once("r1") })).await.unwrap_err();
    assert_eq!((other.kind(), other.reason()), (ErrorKind::AlreadyExists, reason::REQUEST_ID_REUSED));
    assert_ne!(world.acquire(by("bob", once("r1"))).await.unwrap().sandbox_id, sandbox.sandbox_id);
}

#[tokio::test]
async fn lost_reply_to_a_request_id_is_asked_for_again() {
    let world = World::new();
    let [node] = world.nodes().await;
    node.fail("AcquireSandbox", Fault::LoseReply);
    let healed = node.clone();
    let heal = tokio::spawn(async move {
        assert_eventually("the first try", || healed.called("AcquireSandbox") > 0).await;
        healed.heal("AcquireSandbox");
    });
    let _ = world.acquire(by("ada", once("r1"))).await;
    heal.await.unwrap();
    let sandbox = world.acquire(by("ada", once("r1"))).await.unwrap();
    assert_eq!(node.sandboxes(), [sandbox.sandbox_id.parse::<SandboxId>().unwrap()]);
}

#[tokio::test]
async fn claim_of_a_node_that_refuses_or_died_is_given_up() {
    let world = World::new();
    let [full, free] = world.nodes().await;
    full.fail("AcquireSandbox", Fault::Refuse(ErrorKind::ResourceExhausted));
    let sandbox = world.acquire(by("ada", once("r1"))).await.unwrap();
    assert_eq!(sandbox.node_id, free.id().to_string());
    full.heal("AcquireSandbox");
    assert_eq!(world.acquire(by("ada", once("r1"))).await.unwrap(), sandbox);

    let died = NodeId::generate().to_string();
    let claim = world.directory.claim("acquire:default:ada:r2", &died, Duration::from_secs(9)).await.unwrap();
    assert_eq!(claim, Claim::Won);
    assert!(world.acquire(by("ada", once("r2"))).await.is_ok());
}

#[tokio::test]
async fn refused_request_leaves_no_claim() {
    let world = World::new();
    let [node] = world.nodes().await;
    node.fail("AcquireSandbox", Fault::Refuse(ErrorKind::InvalidArgument));
    assert_eq!(world.acquire(by("ada", once("r1"))).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    let claim = world.directory.claim("acquire:default:ada:r1", "nobody", Duration::from_secs(9)).await.unwrap();
    assert_eq!(claim, Claim::Won);
}

#[tokio::test]
async fn hanging_up_drops_the_nodes_call() {
    let world = World::new();
    let [node] = world.nodes().await;
    node.fail("AcquireSandbox", Fault::Hang);
    let service = world.service.clone();
    let call = tokio::spawn(async move { service.acquire_sandbox(by("ada", anything())).await });
    assert_eventually("the call's arrival", || node.in_flight() == 1).await;
    call.abort();
    assert_eventually("the call's drop", || node.in_flight() == 0).await;
}

#[tokio::test]
async fn deadline_and_request_id_travel_and_the_deadline_holds() {
    let world = World::new();
    let [node] = world.nodes().await;
    node.fail("AcquireSandbox", Fault::Hang);
    let mut request = by("ada", anything());
    request.set_timeout(Duration::from_secs(2));
    request.metadata_mut().insert("x-request-id", "r7".parse().unwrap());
    assert_eq!(world.acquire(request).await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(node.last_context(), (Some("r7".into()), true));
}

/// Release, keep-alive and get of a sandbox by `user`, as errors.
async fn every_call(world: &World, user: &str, id: &str) -> [Error; 3] {
    let sandbox_id = id.to_owned();
    let get = GetSandboxRequest { sandbox_id: sandbox_id.clone() };
    let keep = KeepAliveSandboxRequest { sandbox_id: sandbox_id.clone(), timeout_seconds: 9 };
    [
        error(world.service.get_sandbox(by(user, get)).await),
        error(world.service.keep_alive_sandbox(by(user, keep)).await),
        error(world.service.release_sandbox(by(user, ReleaseSandboxRequest { sandbox_id })).await),
    ]
}

#[tokio::test]
async fn own_sandbox_is_shown_kept_and_released_once() {
    let world = World::new();
    let [node] = world.nodes().await;
    let id = world.acquire(by("ada", anything())).await.unwrap().sandbox_id;
    let get = GetSandboxRequest { sandbox_id: id.clone() };
    let shown = world.service.get_sandbox(by("ada", get.clone())).await.unwrap().into_inner();
    assert_eq!(shown.sandbox.unwrap().sandbox_id, id);
    assert!(world.service.get_sandbox(by_admin(get)).await.is_ok(), "an admin sees its tenant's");
    let keep = KeepAliveSandboxRequest { sandbox_id: id.clone(), timeout_seconds: 9 };
    assert!(world.service.keep_alive_sandbox(by("ada", keep)).await.is_ok());
    let release = ReleaseSandboxRequest { sandbox_id: id.clone() };
    assert!(world.service.release_sandbox(by("ada", release)).await.unwrap().into_inner().released);
    for gone in every_call(&world, "ada", &id).await {
        assert_eq!((gone.kind(), gone.reason()), (ErrorKind::NotFound, reason::SANDBOX_NOT_FOUND));
    }
    assert_eq!(node.called("ReleaseSandbox"), 1);
}

#[tokio::test]
async fn ended_sandbox_is_gone_and_can_be_released_once() {
    let world = World::new();
    let [node] = world.nodes().await;
    let id = node.host("ada").await;
    node.end(id).await;
    let (sandbox_id, list) = (id.to_string(), ListSandboxesRequest::default());
    let get = GetSandboxRequest { sandbox_id: sandbox_id.clone() };
    let keep = KeepAliveSandboxRequest { sandbox_id: sandbox_id.clone(), timeout_seconds: 9 };
    for gone in [
        error(world.service.get_sandbox(by("ada", get)).await),
        error(world.service.keep_alive_sandbox(by("ada", keep)).await),
    ] {
        assert_eq!((gone.kind(), gone.reason()), (ErrorKind::NotFound, reason::SANDBOX_GONE));
    }
    assert_eq!(world.service.list_sandboxes(by("ada", list)).await.unwrap().into_inner().sandboxes, []);
    assert_eq!(node.calls(), [""; 0]);
    assert!(world.directory.sandbox(id).await.unwrap().is_some(), "what it printed can be read on");

    let release = ReleaseSandboxRequest { sandbox_id: sandbox_id.clone() };
    assert!(world.service.release_sandbox(by("ada", release)).await.unwrap().into_inner().released);
    assert_eq!(node.calls(), ["ReleaseSandbox"]);
    for gone in every_call(&world, "ada", &sandbox_id).await {
        assert_eq!(gone.reason(), reason::SANDBOX_NOT_FOUND);
    }
}

#[tokio::test]
async fn somebody_elses_and_unknown_sandboxes_are_not_found() {
    let world = World::new();
    let [node] = world.nodes().await;
    let id = node.host("ada").await;
    for id in [id, SandboxId::generate()] {
        for refused in every_call(&world, "bob", &id.to_string()).await {
            assert_eq!((refused.kind(), refused.reason()), (ErrorKind::NotFound, reason::SANDBOX_NOT_FOUND));
        }
    }
    for refused in every_call(&world, "ada", "sandbox-1").await {
        assert_eq!((refused.kind(), refused.reason()), (ErrorKind::InvalidArgument, reason::INVALID_ID));
    }
    assert_eq!(node.calls(), [""; 0]);
}

#[tokio::test]
async fn sandbox_that_its_node_does_not_know_is_not_found_and_forgotten() {
    let world = World::new();
    let [node] = world.nodes().await;
    let id = node.host("ada").await;
    node.forget(id);
    let release = ReleaseSandboxRequest { sandbox_id: id.to_string() };
    let gone = error(world.service.release_sandbox(by("ada", release)).await);
    assert_eq!(gone.reason(), reason::SANDBOX_NOT_FOUND);
    assert_eq!(world.directory.sandbox(id).await.unwrap(), None);
}

#[tokio::test]
async fn unreachable_node_is_unavailable() {
    let world = World::new();
    let [node] = world.nodes().await;
    let id = node.host("ada").await;
    node.cut_off();
    for cut in every_call(&world, "ada", &id.to_string()).await {
        assert_eq!((cut.kind(), cut.reason()), (ErrorKind::Unavailable, reason::NODE_UNREACHABLE));
    }
}

#[tokio::test]
async fn call_without_a_principal_is_unauthenticated() {
    let world = World::new();
    let refused = error(world.service.get_sandbox_stats(Request::new(GetSandboxStatsRequest {})).await);
    assert_eq!(refused.kind(), ErrorKind::Unauthenticated);
}

#[tokio::test]
async fn list_pages_through_the_callers_own_and_an_admins_tenant() {
    let world = World::new();
    let [node] = world.nodes().await;
    let mut own = Vec::new();
    for _ in 0..5 {
        own.push(node.host("ada").await.to_string());
        node.host("bob").await;
    }
    own.sort();
    let (mut seen, mut page_token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let request = ListSandboxesRequest { page_size: 2, page_token, ..ListSandboxesRequest::default() };
        let page = world.service.list_sandboxes(by("ada", request)).await.unwrap().into_inner();
        seen.extend(page.sandboxes.into_iter().map(|sandbox| sandbox.sandbox_id));
        pages += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!((seen, pages), (own, 3));
    let all = world.service.list_sandboxes(by_admin(ListSandboxesRequest::default())).await.unwrap().into_inner();
    assert_eq!((all.sandboxes.len(), all.next_page_token.as_str()), (10, ""));
}

#[tokio::test]
async fn list_filters_and_refuses_what_it_cannot_read() {
    let world = World::new();
    let [node] = world.nodes().await;
    node.host("ada").await;
    let default = ListSandboxesRequest::default;
    let count = async |request| world.service.list_sandboxes(by("ada", request)).await.unwrap().into_inner();
    for (state, found) in [(SandboxState::Acquired, 1), (SandboxState::Paused, 0), (SandboxState::Ready, 0)] {
        let request = ListSandboxesRequest { state: state.into(), ..default() };
        assert_eq!(count(request).await.sandboxes.len(), found, "{state:?}");
    }
    assert!(count(ListSandboxesRequest { template: "python".into(), ..default() }).await.sandboxes.is_empty());
    assert!(count(ListSandboxesRequest { metadata: vec!["a=b".into()], ..default() }).await.sandboxes.is_empty());
    let bad = [
        ("page_token", ListSandboxesRequest { page_token: "junk".into(), ..default() }),
        ("page_size", ListSandboxesRequest { page_size: 1001, ..default() }),
        ("metadata", ListSandboxesRequest { metadata: vec!["a".into()], ..default() }),
        ("state", ListSandboxesRequest { state: 99, ..default() }),
    ];
    for (field, request) in bad {
        let refused = error(world.service.list_sandboxes(by("ada", request)).await);
        assert_eq!(refused.violations()[0].field, field);
    }
}

#[tokio::test]
async fn stats_are_the_sums_over_living_nodes() {
    let world = World::new();
    let [first, second] = world.nodes().await;
    first.host("ada").await;
    first.report(3, 10, false).await;
    second.report(2, 7, true).await;
    let stats = world.service.get_sandbox_stats(by("bob", GetSandboxStatsRequest {})).await.unwrap().into_inner();
    assert_eq!((stats.total, stats.ready, stats.acquired, stats.capacity), (6, 5, 1, 17));
    assert_eq!(stats.nodes.iter().map(|node| node.draining).collect::<Vec<_>>(), [false, true]);
}
