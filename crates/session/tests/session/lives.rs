//! A session from its creation to its end, as its owner sees it.

use cloud_sandbox_model::{ErrorKind, SessionId, SessionState as State, error::reason};
use cloud_sandbox_proto::v1::{
    CreateSessionRequest, DeleteSessionRequest, GetSessionRequest, ListSessionsRequest, PauseDepth,
    PauseSessionRequest, ResumeSessionRequest, SessionState, session_service_server::SessionService as _,
};
use cloud_sandbox_sim_node::by_admin;
use cloud_sandbox_storage::Directory as _;

use crate::world::{World, anything, call, outcome, sandbox};

#[tokio::test]
async fn session_lives_through_pause_and_resume_until_it_is_deleted() {
    let world = World::new().await;
    let session = world.create("ada", anything()).await.unwrap();
    assert_eq!((session.state(), session.user_id.as_str()), (SessionState::Running, "ada"));
    assert_eq!(world.node.sandboxes(), [sandbox(&session)]);
    let id = session.session_id.clone();
    for _ in 0..2 {
        assert_eq!(world.pause(&id, PauseDepth::Frozen).await.unwrap().state(), SessionState::Paused);
    }
    for _ in 0..2 {
        assert_eq!(world.resume(&id).await.unwrap().state(), SessionState::Running);
    }
    assert_eq!((world.node.called("PauseSandbox"), world.node.called("ResumeSandbox")), (1, 1));
    assert_eq!(world.get(&id).await.unwrap().sandbox_id, session.sandbox_id);
    world.delete(&id).await.unwrap();
    assert_eq!(world.node.sandboxes(), []);
    for gone in [world.get(&id).await.unwrap_err(), world.delete(&id).await.unwrap_err()] {
        assert_eq!((gone.kind(), gone.reason()), (ErrorKind::NotFound, reason::SESSION_NOT_FOUND));
    }
}

#[tokio::test]
async fn bad_fields_are_named_before_anything_is_stored() {
    let world = World::new().await;
    let metadata = [("a=b".to_owned(), String::new())].into();
    let template = "x".repeat(1000);
    let bad = CreateSessionRequest { request_id: "a b".into(), metadata, template, ..anything() };
    let refused = world.create("ada", bad).await.unwrap_err();
    let fields: Vec<_> = refused.violations().iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, ["request_id", "metadata", "template"]);
    for id in ["", "nonsense"] {
        assert_eq!(world.get(id).await.unwrap_err().violations()[0].field, "session_id");
    }
}

#[tokio::test]
async fn session_whose_sandbox_ended_is_failed_and_can_be_deleted() {
    let world = World::new().await;
    let session = world.create("ada", anything()).await.unwrap();
    world.node.forget(sandbox(&session));
    let failed = world.get(&session.session_id).await.unwrap();
    assert_eq!((failed.state(), failed.failure.as_str()), (SessionState::Failed, "its sandbox ended"));
    for refused in [world.pause(&session.session_id, PauseDepth::Frozen).await, world.resume(&session.session_id).await]
    {
        let refused = refused.unwrap_err();
        assert_eq!((refused.kind(), refused.reason()), (ErrorKind::FailedPrecondition, reason::SESSION_STATE));
        assert_eq!(refused.metadata(), [("state".to_owned(), "failed".to_owned())]);
    }
    world.delete(&session.session_id).await.unwrap();
}

#[tokio::test]
async fn pause_that_finds_the_sandbox_gone_fails_the_session() {
    let world = World::new().await;
    let session = world.create("ada", anything()).await.unwrap();
    world.node.forget(sandbox(&session));
    assert_eq!(world.pause(&session.session_id, PauseDepth::Frozen).await.unwrap_err().reason(), reason::SESSION_STATE);
    assert_eq!(world.stored(&session.session_id).await.unwrap().state, State::Failed);
}

#[tokio::test]
async fn delete_succeeds_though_the_sandbox_is_gone() {
    let world = World::new().await;
    let session = world.create("ada", anything()).await.unwrap();
    world.node.forget(sandbox(&session));
    world.directory.remove_sandbox(sandbox(&session)).await.unwrap();
    world.delete(&session.session_id).await.unwrap();
}

#[tokio::test]
async fn somebody_elses_and_unknown_sessions_are_not_found() {
    let world = World::new().await;
    let id = world.create("ada", anything()).await.unwrap().session_id;
    for session_id in [id.clone(), SessionId::generate().to_string()] {
        let pause = PauseSessionRequest { session_id: session_id.clone(), depth: 0 };
        let resume = ResumeSessionRequest { session_id: session_id.clone(), ..Default::default() };
        for refused in [
            outcome(world.service.get_session(call("bob", GetSessionRequest { session_id: session_id.clone() })).await)
                .unwrap_err(),
            outcome(world.service.pause_session(call("bob", pause)).await).unwrap_err(),
            outcome(world.service.resume_session(call("bob", resume)).await).unwrap_err(),
            outcome(world.service.delete_session(call("bob", DeleteSessionRequest { session_id })).await).unwrap_err(),
        ] {
            assert_eq!((refused.kind(), refused.reason()), (ErrorKind::NotFound, reason::SESSION_NOT_FOUND));
        }
    }
    assert_eq!(world.get(&id).await.unwrap().state(), SessionState::Running);
}

#[tokio::test]
async fn list_pages_and_filters() {
    let world = World::new().await;
    let mut own = Vec::new();
    for number in 0..3 {
        let metadata = [("n".to_owned(), number.to_string())].into();
        own.push(world.create("ada", CreateSessionRequest { metadata, ..anything() }).await.unwrap().session_id);
        world.create("bob", anything()).await.unwrap();
    }
    own.sort();
    world.pause(&own[1], PauseDepth::Frozen).await.unwrap();
    let default = ListSessionsRequest::default;
    let list = async |request| {
        let page = world.service.list_sessions(call("ada", request)).await.unwrap().into_inner();
        let ids: Vec<_> = page.sessions.into_iter().map(|session| session.session_id).collect();
        (ids, page.next_page_token)
    };
    let (first, token) = list(ListSessionsRequest { page_size: 2, ..default() }).await;
    let (second, end) = list(ListSessionsRequest { page_size: 2, page_token: token, ..default() }).await;
    assert_eq!(([first, second].concat(), end.as_str()), (own.clone(), ""));
    let paused = ListSessionsRequest { state: SessionState::Paused.into(), ..default() };
    assert_eq!(list(paused).await.0, own[1..2]);
    assert_eq!(list(ListSessionsRequest { metadata: vec!["n=2".into()], ..default() }).await.0.len(), 1);
    let all = world.service.list_sessions(by_admin(default())).await.unwrap().into_inner();
    assert_eq!(all.sessions.len(), 6);
    let bad = ListSessionsRequest { page_token: "junk".into(), ..default() };
    assert_eq!(
        outcome(world.service.list_sessions(call("ada", bad)).await).unwrap_err().violations()[0].field,
        "page_token"
    );
}
