//! What of the network a session sees, from its creation on and after each resume.

use cloud_sandbox_model::{ErrorKind, error::reason};
use cloud_sandbox_proto::v1::{
    CreateSessionRequest, NetworkMode, NetworkPolicy, PauseDepth, SessionState, UpdateSessionRequest,
};
use cloud_sandbox_session::Options;
use cloud_sandbox_sim_node::{Fault, assert_eventually};

use crate::world::{World, anything, sandbox};

fn egress(allow: &[&str]) -> Option<NetworkPolicy> {
    let allow = allow.iter().map(ToString::to_string).collect();
    Some(NetworkPolicy { mode: NetworkMode::Egress.into(), allow, deny: Vec::new() })
}

fn change(session_id: &str, network: Option<NetworkPolicy>) -> UpdateSessionRequest {
    UpdateSessionRequest { session_id: session_id.to_owned(), network, ..Default::default() }
}

/// What the session's sandbox sees, as its node has it.
async fn seen(world: &World, session: &str) -> Option<NetworkPolicy> {
    world.node.network(sandbox(&world.get(session).await.unwrap()))
}

#[tokio::test]
async fn policy_holds_from_creation_through_changes_and_resumes() {
    let world = World::new().await;
    let wanted = CreateSessionRequest { network: egress(&["pypi.org"]), ..anything() };
    let made = world.create("ada", wanted).await.unwrap();
    let id = made.session_id;
    assert_eq!(made.network, egress(&["pypi.org"]));
    assert_eq!(seen(&world, &id).await, egress(&["pypi.org"]));

    let changed = world.update(change(&id, egress(&["crates.io:443"]))).await.unwrap();
    assert_eq!(changed.network, egress(&["crates.io:443"]));
    assert_eq!(seen(&world, &id).await, egress(&["crates.io:443"]));

    world.pause(&id, PauseDepth::Checkpointed).await.unwrap();
    let none = NetworkPolicy { mode: NetworkMode::None.into(), ..Default::default() };
    world.update(change(&id, Some(none.clone()))).await.unwrap();
    world.resume(&id).await.unwrap();
    assert_eq!(seen(&world, &id).await, Some(none.clone()), "what was changed while there was no sandbox");
    assert_eq!(world.get(&id).await.unwrap().network, Some(none));
}

#[tokio::test]
async fn bad_policies_are_refused_with_the_entry_and_change_nothing() {
    let world = World::new().await;
    let fields = |error: cloud_sandbox_model::Error| {
        error.violations().iter().map(|violation| violation.field.clone()).collect::<Vec<_>>()
    };
    let wanted = CreateSessionRequest { network: egress(&["ok.example", "169.254.169.254"]), ..anything() };
    assert_eq!(fields(world.create("ada", wanted).await.unwrap_err()), ["network.allow[1]"]);

    let id = world.create("ada", anything()).await.unwrap().session_id;
    let unknown = NetworkPolicy { mode: 9, ..Default::default() };
    assert_eq!(fields(world.update(change(&id, Some(unknown))).await.unwrap_err()), ["network.mode"]);
    assert_eq!(world.get(&id).await.unwrap().network.unwrap().mode(), NetworkMode::None);
    assert_eq!(world.node.called("UpdateSandbox"), 0);
}

#[tokio::test]
async fn policy_that_the_node_cannot_serve_is_not_kept() {
    let world = World::new().await;
    let id = world.create("ada", anything()).await.unwrap().session_id;
    world.node.fail("UpdateSandbox", Fault::Refuse(ErrorKind::FailedPrecondition));
    let refused = world.update(change(&id, egress(&["*"]))).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    assert_eq!(world.get(&id).await.unwrap().network.unwrap().mode(), NetworkMode::None);
}

#[tokio::test]
async fn policy_is_not_changed_while_a_sandbox_is_on_its_way() {
    let world = World::new().await;
    let id = world.session_with("one\n").await.session_id;
    world.pause(&id, PauseDepth::Checkpointed).await.unwrap();
    world.node.fail("RestoreSandbox", Fault::Hold);
    let (replica, resumed) = (world.another(Options::default()), id.clone());
    let resuming = tokio::spawn(async move { replica.resume(&resumed).await });
    assert_eventually("the restore", || world.node.in_flight() == 1).await;
    let refused = world.update(change(&id, egress(&["*"]))).await.unwrap_err();
    assert_eq!((refused.kind(), refused.reason()), (ErrorKind::FailedPrecondition, reason::SESSION_STATE));
    world.node.heal("RestoreSandbox");
    assert_eq!(resuming.await.unwrap().unwrap().state(), SessionState::Running);
    world.update(change(&id, egress(&["*"]))).await.unwrap();
    assert_eq!(seen(&world, &id).await, egress(&["*"]));
}
