//! What of a sandbox's running work comes back in another one. Both sandboxes are of this machine and share its `/tmp`,
//! as if that had been saved and restored.

use std::path::Path;

use cloud_sandbox_proto::{
    checkpoint::v1::Contents,
    v1::{CreateContextRequest, ExecuteRequest},
};

use super::contexts_bench::{Bench, error_of};
use crate::{
    contents::{Restored, gather, restore},
    contexts::values_file,
};

async fn gathered(bench: &Bench) -> Contents {
    let node = bench.world.node.shared();
    gather(node, &node.sandbox(bench.id).unwrap()).await
}

async fn restored(bench: &Bench, contents: Contents, restart_commands: bool) -> Restored {
    let node = bench.world.node.shared();
    restore(node, &node.sandbox(bench.id).unwrap(), contents, restart_commands).await
}

#[tokio::test]
async fn variables_and_contexts_come_back_under_their_ids() {
    let (old, new) = (Bench::start().await, Bench::start().await);
    old.run("default", "a = []\nb = [a]\ndef f(n): return n + len(a)\nsteps = (i for i in a)").await;
    let request = CreateContextRequest { request_id: "r".into(), ..old.creating("js") };
    let javascript = old.create(request).await.unwrap().context_id;
    old.run(&javascript, "class A { get() { return 5 } } const x = new A(), y = new Map([[x, 1]])").await;
    new.run("default", "of_the_other = 1").await;

    let contents = gathered(&old).await;
    assert_eq!(contents.contexts[0].variables, ["a", "b", "f"]);
    assert_eq!(contents.contexts[0].lost[0].name, "steps");
    assert_eq!(old.value("default", "b[0] is a").await, "True");
    let back = restored(&new, contents, false).await;
    assert_eq!(back.contexts[0].variables, ["a", "b", "f"]);
    assert!(back.contexts[0].lost[0].reason.contains("generator"), "{back:?}");
    assert_eq!(back.contexts[1].variables, ["A", "x", "y"]);
    assert!(back.lost.is_empty() && !Path::new(&values_file(&javascript)).exists());

    assert_eq!(new.value("default", "b[0] is a and f(1)").await, "1");
    assert_eq!(error_of(&new.run("default", "of_the_other").await).0, "NameError");
    assert_eq!(new.value(&javascript, "x.get() + y.get(x)").await, "6");
    let contexts = new.list().await;
    assert_eq!(contexts.len(), 2);
    assert!(contexts[0].is_default && contexts[1].context_id == javascript);
    let again = CreateContextRequest { request_id: "r".into(), ..new.creating("javascript") };
    assert_eq!(new.create(again).await.unwrap().context_id, javascript);
}

#[tokio::test]
async fn busy_context_is_not_interrupted_and_its_variables_are_lost() {
    let (old, new) = (Bench::start().await, Bench::start().await);
    let id = old.context("python").await;
    old.run(&id, "kept = 1").await;
    let name = old.path("go").to_str().unwrap().to_owned();
    let wait = format!(
        "import os, time\nopen({name:?} + '1', 'w')\nwhile not os.path.exists({name:?}): time.sleep(0.01)\nkept"
    );
    let running = old.world.begin(old.cell(&id, &wait)).await.unwrap().execution_id;
    old.until_there("go1").await;
    let contents = gathered(&old).await;
    assert!(contents.contexts[0].variables.is_empty());
    let reasons: Vec<_> = contents.lost.iter().map(|lost| (lost.kind.as_str(), lost.reason.as_str())).collect();
    let code = ("process", "code in a context cannot be started again");
    assert_eq!(reasons, [("variable", "its code was running"), code]);
    assert!(contents.lost[1].what.contains(&running));
    std::fs::write(name, "").unwrap();
    assert_eq!(old.value(&id, "kept").await, "1");

    let back = restored(&new, contents, true).await;
    assert_eq!((back.contexts.len(), back.lost.len(), back.commands.len()), (1, 2, 0));
    assert_eq!(error_of(&new.run(&id, "kept").await).0, "NameError");
}

#[tokio::test]
async fn background_commands_start_again_where_that_is_asked_for() {
    let (old, told, started) = (Bench::start().await, Bench::start().await, Bench::start().await);
    let line = |bench: &Bench| ExecuteRequest {
        sandbox_id: bench.id.to_string(),
        command: Some("echo $X; cat; sleep 600".into()),
        env: [("X".to_owned(), "é".to_owned())].into(),
        stdin: "in".into(),
        tag: "t".into(),
        request_id: "once".into(),
        ..Default::default()
    };
    let execution = old.world.begin(line(&old)).await.unwrap();
    let contents = gathered(&old).await;
    let request = contents.commands[0].request.clone().unwrap();
    assert_eq!((request.request_id.as_str(), request.sandbox_id.as_str(), request.tag.as_str()), ("", "", "t"));

    let back = restored(&told, contents.clone(), false).await;
    assert_eq!(
        (back.commands[0].execution_id.as_str(), back.commands[0].restarted_as.as_str()),
        (&*execution.execution_id, "")
    );
    assert_eq!((back.commands[0].command.as_str(), back.commands[0].tag.as_str()), ("echo $X; cat; sleep 600", "t"));

    let back = restored(&started, contents, true).await;
    let again = &back.commands[0].restarted_as;
    assert_ne!(*again, execution.execution_id);
    let found = started.world.execution(started.id, again).await.unwrap();
    assert_eq!((found.tag.as_str(), found.request_id.as_str(), found.exit.is_none()), ("t", "", true));
    for bench in [&told, &started] {
        let refused = bench.world.begin(line(bench)).await.unwrap_err();
        assert_eq!(refused.words(), ("FAILED_PRECONDITION", "RESULT_EXPIRED"));
        assert!(refused.message.contains(&execution.execution_id), "{}", refused.message);
        let other = ExecuteRequest { tag: "other".into(), ..line(bench) };
        assert_eq!(bench.world.begin(other).await.unwrap_err().reason, "REQUEST_ID_REUSED");
    }
}

#[tokio::test]
async fn context_that_cannot_be_is_lost_with_the_reason() {
    let (old, new) = (Bench::start().await, Bench::start().await);
    let id = old.context("python").await;
    old.run(&id, "x = 1").await;
    let mut contents = gathered(&old).await;
    contents.contexts[0].language = "cobol".into();
    let back = restored(&new, contents, false).await;
    assert!(back.contexts.is_empty());
    assert_eq!(back.lost[0].kind, "context");
    assert!(back.lost[0].what.contains(&id) && back.lost[0].reason.contains("language"), "{back:?}");
    // the files of this bench are not served, so that the node could not remove it
    std::fs::remove_file(values_file(&id)).unwrap();
}
