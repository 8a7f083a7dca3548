//! Calls that name a session: whose it is, and what its state means to them.

use std::time::Duration;

use cloud_sandbox_auth::{FileAccess, FileGrant, Principal, Role};
use cloud_sandbox_model::{ErrorKind, SessionId, error::reason};
use cloud_sandbox_proto::v1::{ReadFileRequest, SessionState};
use cloud_sandbox_sim_node::{assert_eventually, principal};
use tonic::Request;

use crate::{
    calls::every_call,
    support::{World, code, error},
};

#[tokio::test]
async fn session_manager_is_asked_once_for_many_executions() {
    let world = World::new().await;
    let session = world.sessions.running("ada", world.node.host("ada").await);
    let mut exec = world.ada().exec;
    for _ in 0..5 {
        assert_eq!(exec.execute(code(&session, "1")).await.unwrap().into_inner().stdout, "1");
    }
    assert_eq!(world.sessions.called("GetSession"), 1);
    assert_eq!(world.node.called("Execute"), 5);
}

#[tokio::test]
async fn somebody_elses_session_is_not_found_by_any_call_even_when_its_sandbox_was_just_asked_for() {
    let world = World::new().await;
    let session = world.sessions.running("ada", world.node.host("ada").await);
    let clients = world.shared();
    clients("ada").exec.execute(code(&session, "1")).await.unwrap();
    let mut heard = every_call(clients("bob"), &session).await;
    heard.extend(every_call(world.ada(), &SessionId::generate().to_string()).await);
    for (method, error) in heard {
        let error = error.unwrap();
        assert_eq!((error.kind(), error.reason()), (ErrorKind::NotFound, reason::SESSION_NOT_FOUND), "{method}");
    }
    assert_eq!(world.node.calls(), ["Execute"]);
}

#[tokio::test]
async fn session_and_sandbox_together_are_refused_by_every_call_and_malformed_sessions_too() {
    let world = World::new().await;
    let sandbox = world.node.host("ada").await;
    let session = world.sessions.running("ada", sandbox);
    let fields = |error: &cloud_sandbox_model::Error| {
        error.violations().iter().map(|violation| violation.field.clone()).collect::<Vec<_>>()
    };
    for (method, error) in every_call(world.ada(), &format!("{sandbox}+{session}")).await {
        let error = error.unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{method}");
        assert_eq!(fields(&error), ["sandbox_id", "session_id"], "{method}");
    }
    for malformed in ["se", "session", "se/../1", &session.to_uppercase().replace("SE", "se")] {
        let error = error(world.ada().exec.execute(code(malformed, "1")).await);
        assert_eq!((error.kind(), fields(&error)), (ErrorKind::InvalidArgument, vec!["session_id".into()]));
    }
    assert_eq!((world.node.calls().len(), world.sessions.called("GetSession")), (0, 0));
}

#[tokio::test]
async fn paused_session_says_to_resume_it() {
    let world = World::new().await;
    let session = world.sessions.running("ada", world.node.host("ada").await);
    world.sessions.pause(&session, false, None);
    for (method, error) in every_call(world.ada(), &session).await {
        let error = error.unwrap();
        assert_eq!((error.kind(), error.reason()), (ErrorKind::FailedPrecondition, reason::SESSION_STATE), "{method}");
        assert_eq!(error.metadata(), [("state".to_owned(), "paused".to_owned())], "{method}");
        assert!(error.message().contains("resume"), "{method}: {error}");
    }
    assert_eq!((world.node.calls().len(), world.sessions.called("ResumeSession")), (0, 0));
}

#[tokio::test]
async fn paused_session_with_auto_resume_is_resumed_once_and_runs() {
    let world = World::new().await;
    let session = world.sessions.running("ada", world.node.host("ada").await);
    let restored = world.node.host("ada").await;
    world.sessions.pause(&session, true, Some(restored));
    let mut exec = world.ada().exec;
    for _ in 0..2 {
        exec.execute(code(&session, "1")).await.unwrap();
    }
    assert_eq!((world.sessions.called("ResumeSession"), world.node.called("Execute")), (1, 2));
}

#[tokio::test]
async fn two_calls_at_once_resume_a_session_once_and_both_run() {
    let world = World::new().await;
    let session = world.sessions.running("ada", world.node.host("ada").await);
    world.sessions.pause(&session, true, None);
    world.sessions.hold(true);
    let run = || {
        let (mut exec, request) = (world.ada().exec, code(&session, "1"));
        tokio::spawn(async move { exec.execute(request).await })
    };
    let first = run();
    assert_eventually("the resume", || world.sessions.called("ResumeSession") == 1).await;
    let asked = world.sessions.called("GetSession");
    let second = run();
    assert_eventually("the second waits", || world.sessions.called("GetSession") > asked + 1).await;
    world.sessions.hold(false);
    assert!(first.await.unwrap().is_ok() && second.await.unwrap().is_ok());
    assert_eq!((world.sessions.called("ResumeSession"), world.node.called("Execute")), (1, 2));
}

#[tokio::test]
async fn call_that_comes_late_to_a_resume_runs_all_the_same() {
    let world = World::new().await;
    let session = world.sessions.running("ada", world.node.host("ada").await);
    world.sessions.pause(&session, true, None);
    world.sessions.come_late();
    world.ada().exec.execute(code(&session, "1")).await.unwrap();
    assert_eq!((world.sessions.called("ResumeSession"), world.node.called("Execute")), (1, 1));
}

#[tokio::test]
async fn session_on_its_way_is_waited_for_until_the_deadline() {
    for state in [SessionState::Creating, SessionState::Pausing, SessionState::Resuming] {
        let world = World::new().await;
        let session = world.sessions.running("ada", world.node.host("ada").await);
        world.sessions.change(&session, |session| session.state = state.into());
        let mut request = Request::new(code(&session, "1"));
        request.set_timeout(Duration::from_millis(80));
        let late = error(world.ada().exec.execute(request).await);
        assert_eq!(late.kind(), ErrorKind::DeadlineExceeded, "{state:?}");
        assert_eq!(world.node.called("Execute"), 0);

        let (mut exec, request) = (world.ada().exec, code(&session, "1"));
        let asked = world.sessions.called("GetSession");
        let call = tokio::spawn(async move { exec.execute(request).await });
        assert_eventually("it is waited for", || world.sessions.called("GetSession") > asked + 1).await;
        world.sessions.change(&session, |session| session.state = SessionState::Running.into());
        assert!(call.await.unwrap().is_ok(), "{state:?}");
    }
}

#[tokio::test]
async fn session_that_does_not_arrive_is_not_waited_for_without_end() {
    let world = World::new().await;
    let session = world.sessions.running("ada", world.node.host("ada").await);
    world.sessions.change(&session, |session| session.state = SessionState::Resuming.into());
    tokio::time::pause();
    let late = error(world.ada().exec.execute(code(&session, "1")).await);
    assert_eq!((late.kind(), late.reason()), (ErrorKind::Unavailable, reason::SESSION_STATE));
    assert!(late.retry_after().is_some());
}

#[tokio::test]
async fn failed_and_deleted_sessions_say_why() {
    let world = World::new().await;
    let session = world.sessions.running("ada", world.node.host("ada").await);
    for (state, word) in [(SessionState::Failed, "failed"), (SessionState::Deleting, "deleting")] {
        world.sessions.change(&session, |session| {
            session.state = state.into();
            session.failure = "its sandbox ended".into();
        });
        let refused = error(world.ada().exec.execute(code(&session, "1")).await);
        assert_eq!((refused.kind(), refused.reason()), (ErrorKind::FailedPrecondition, reason::SESSION_STATE));
        assert_eq!(refused.metadata(), [("state".to_owned(), word.to_owned())]);
        assert!(refused.message().ends_with(&format!("is {word}: its sandbox ended")), "{refused}");
    }
}

#[tokio::test]
async fn token_for_a_file_opens_no_session() {
    let world = World::new().await;
    let sandbox = world.node.host("ada").await;
    let session_id = world.sessions.running("ada", sandbox);
    let grant = FileGrant { sandbox: sandbox.to_string(), path: "/a".into(), access: FileAccess::Read };
    let granted = Principal { grant: Some(grant), ..principal("ada", Role::User) };
    let request = ReadFileRequest { session_id, path: "/a".into(), ..ReadFileRequest::default() };
    let refused = error(world.as_principal(granted).files.read_file(request).await);
    assert_eq!((refused.kind(), refused.reason()), (ErrorKind::PermissionDenied, reason::ROLE_DENIED));
    assert_eq!(world.sessions.called("GetSession"), 0);
}
