//! A session's id in place of its sandbox's, over REST and over gRPC.

use serde_json::{Value, json};

use crate::{
    harness::Server,
    wire::{Wire, wires},
};

async fn create(wire: &Wire, wanted: Value) -> (String, String) {
    let session = wire.call("SessionService.CreateSession", wanted).await["session"].take();
    let text = |name: &str| session[name].as_str().unwrap().to_owned();
    (text("session_id"), text("sandbox_id"))
}

fn of(session: &str, mut fields: Value) -> Value {
    fields["session_id"] = session.into();
    fields
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn code_files_contexts_and_streams_are_reached_by_the_sessions_id() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let (session, sandbox) = create(&wire, json!({})).await;
        let call = async |method: &str, fields: Value| wire.call(method, of(&session, fields)).await;

        let answer = call("ExecService.Execute", json!({"command": "echo hi > note; cat note"})).await;
        assert_eq!(answer["stdout"], "hi\n", "{answer}");
        assert_eq!(wire.shell(&sandbox, "cat note").await["stdout"], "hi\n", "it is the session's sandbox");

        call("FileService.WriteFile", json!({"path": "/workspace/a", "content": "A"})).await;
        assert_eq!(call("FileService.ReadFile", json!({"path": "/workspace/a"})).await["content"], "A");
        assert_eq!(call("FileService.StatFile", json!({"path": "/workspace/a"})).await["file"]["size"], 1);

        let context = call("ContextService.CreateContext", json!({"language": "python"})).await["context"].take();
        let run = async |code: &str| {
            call("ExecService.Execute", json!({"code": code, "context_id": context["context_id"]})).await
        };
        run("x = 41").await;
        assert_eq!(run("x + 1").await["results"][0]["text"], "42");
        let listed = call("ContextService.ListContexts", json!({})).await;
        assert_eq!(listed["contexts"].as_array().unwrap().len(), 1, "{listed}");

        let start = json!({"request": {"session_id": session, "command": "echo out; sleep 0.1; echo end"}});
        let started = wire.call("ExecService.StartExecution", start).await;
        let id = &started["execution"]["execution_id"];
        let (events, failure) =
            wire.stream("ExecService.AttachExecution", of(&session, json!({"execution_id": id}))).await.rest().await;
        assert_eq!(failure, None, "{events:?}");
        assert!(events.last().is_some_and(|event| !event["event"]["exited"].is_null()), "{events:?}");
        let found = call("ExecService.GetExecution", json!({"execution_id": id})).await;
        assert_eq!(found["execution"]["sandbox_id"], sandbox.as_str(), "answers show the sandbox");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn session_that_cannot_be_used_says_why() {
    let server = Server::start().await;
    let theirs = wires(&server, "bob").await;
    for (wire, theirs) in wires(&server, "ada").await.into_iter().zip(theirs) {
        let (session, sandbox) = create(&wire, json!({})).await;
        let run = json!({"session_id": session, "command": "true"});
        wire.call("ExecService.Execute", run.clone()).await;
        let foreign = theirs.refused("ExecService.Execute", run.clone()).await;
        assert_eq!((foreign.status.as_str(), foreign.reason.as_str()), ("NOT_FOUND", "SESSION_NOT_FOUND"));
        let both = json!({"session_id": session, "sandbox_id": sandbox, "command": "true"});
        let both = wire.refused("ExecService.Execute", both).await;
        assert_eq!(
            (both.status.as_str(), both.fields),
            ("INVALID_ARGUMENT", vec!["sandbox_id".into(), "session_id".into()])
        );
        let neither = wire.refused("ExecService.Execute", json!({"command": "true"})).await;
        assert_eq!((neither.fields, neither.message.contains("session_id")), (vec!["sandbox_id".into()], true));
        let malformed = wire.refused("FileService.StatFile", json!({"session_id": "se1", "path": "/"})).await;
        assert_eq!((malformed.status.as_str(), malformed.fields), ("INVALID_ARGUMENT", vec!["session_id".into()]));

        wire.call("SessionService.DeleteSession", json!({"session_id": session})).await;
        assert_eq!(wire.refused("ExecService.Execute", run).await.reason, "SESSION_NOT_FOUND");
    }
}
