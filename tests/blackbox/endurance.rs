//! Sessions over many cycles and through crashes at every step, on local disk and in S3.

use std::{collections::HashMap, time::Duration};

use cloud_sandbox_session::steps::Step;
use serde_json::{Value, json};

use crate::{
    harness::{Api, eventually},
    s3_server::{S3Server, left_out},
    survival::{Store, create, digest, folders, get, pause, resume, run, start, work},
};

/// Random work, pauses and resumes, with the server killed now and then: the tree is always that of a checkpoint.
async fn survives_cycles(store: Store, cycles: u64) {
    let (mut server, mut api) = start(tempfile::tempdir().unwrap(), &store, &[]).await;
    let id = create(&api, json!({"timeout_seconds": 86400})).await;
    let mut saved: HashMap<String, String> = HashMap::new();
    for cycle in 0..cycles {
        work(&api, &id, cycle).await;
        let now = digest(&api, &id).await;
        if cycle % 10 == 7 {
            // killed while it saves, sooner or later
            let path = format!("/api/v1/sessions/{id}/pause");
            let pausing = api.post(&path, json!({"depth": "checkpointed"}));
            let killed = tokio::time::timeout(Duration::from_millis(5 + cycle * 3 % 60), pausing).await;
            let folder = server.kill();
            (server, api) = start(folder, &store, &[]).await;
            eventually("what was left half-way is settled", || async {
                matches!(get(&api, &id).await["state"].as_str(), Some("failed" | "paused"))
            })
            .await;
            let session = get(&api, &id).await;
            let last = session["checkpoint_id"].as_str().unwrap().to_owned();
            if !saved.contains_key(&last) {
                // it was saved, and nobody was told
                saved.insert(last.clone(), now);
            }
            let manifest = resume(&api, &id).await;
            assert_eq!(manifest["checkpoint_id"], json!(last), "{session} {killed:?}");
            assert_eq!(digest(&api, &id).await, saved[&last], "cycle {cycle}: {session}");
            continue;
        }
        let paused = pause(&api, &id).await;
        saved.insert(paused["checkpoint_id"].as_str().unwrap().to_owned(), now.clone());
        resume(&api, &id).await;
        assert_eq!(digest(&api, &id).await, now, "cycle {cycle}");
    }
    let kept = api.get(&format!("/api/v1/sessions/{id}/checkpoints")).await.1["checkpoints"].as_array().unwrap().len();
    assert_eq!(kept, 5);
    assert_eq!(api.delete(&format!("/api/v1/sessions/{id}")).await.0, 200);
    let folder = store.folder(&server.data_dir);
    eventually("nothing is left in the store", || async { folders(&folder).is_empty() }).await;
}

#[tokio::test]
async fn fifty_cycles_keep_the_tree_on_local_disk() {
    survives_cycles(Store::Local, 50).await;
}

#[tokio::test]
async fn fifty_cycles_keep_the_tree_in_s3() {
    if left_out() {
        return;
    }
    survives_cycles(Store::S3(Box::new(S3Server::start())), 50).await;
}

/// Everything that takes steps, until the server ends.
async fn everything(api: &Api) -> Option<()> {
    async fn call(api: &Api, path: String, body: Value) -> Option<Value> {
        let answer = api.request("POST", &path).json(&body).send().await.ok()?;
        answer.json().await.ok()
    }
    let created = call(api, "/api/v1/sessions".into(), json!({"request_id": "r"})).await?;
    let id = created["session_id"].as_str()?.to_owned();
    let path = |what: &str| format!("/api/v1/sessions/{id}/{what}");
    call(api, "/api/v1/execute".into(), json!({"session_id": id, "command": "echo kept > note"})).await?;
    call(api, path("checkpoints"), json!({})).await?;
    call(api, path("pause"), json!({"depth": "frozen"})).await?;
    call(api, path("resume"), json!({})).await?;
    call(api, path("pause"), json!({"depth": "checkpointed"})).await?;
    call(api, path("resume"), json!({})).await?;
    let fork = call(api, path("fork"), json!({})).await?;
    let fork = format!("/api/v1/sessions/{}", fork["session_id"].as_str()?);
    api.request("DELETE", &fork).send().await.ok()?;
    Some(())
}

#[tokio::test]
async fn server_that_ends_at_any_step_leaves_sessions_that_go_on() {
    for step in Step::ALL {
        for moment in ["before", "after"] {
            let at = format!("{}:{moment}", step.as_str());
            let folder = tempfile::tempdir().unwrap();
            let (mut server, api) =
                start(folder, &Store::Local, &[("CLOUD_SANDBOX_CRASH_AT", &at), ("POOL_MIN_SIZE", "2")]).await;
            assert_eq!(everything(&api).await, None, "the server does not end at {at}");
            server.wait();
            let (server, api) = start(server.kill(), &Store::Local, &[("POOL_MIN_SIZE", "2")]).await;
            eventually("what was left half-way is settled", || async {
                for session in api.get("/api/v1/sessions").await.1["sessions"].as_array().unwrap() {
                    // unlike a list, this looks whether the sandbox is still there
                    let now = get(&api, session["session_id"].as_str().unwrap()).await;
                    if !matches!(now["state"].as_str(), Some("paused" | "failed")) {
                        return false;
                    }
                }
                true
            })
            .await;
            for session in api.get("/api/v1/sessions").await.1["sessions"].as_array().unwrap() {
                let id = session["session_id"].as_str().unwrap();
                if session["checkpoint_id"] != "" {
                    resume(&api, id).await;
                    assert_eq!(run(&api, id, json!({"command": "cat note"})).await, "kept\n", "{at}");
                }
                assert_eq!(api.delete(&format!("/api/v1/sessions/{id}")).await.0, 200, "{at}");
            }
            let store = server.data_dir.join("workspaces");
            eventually("nothing is left in the store", || async { folders(&store).is_empty() }).await;
        }
    }
}
