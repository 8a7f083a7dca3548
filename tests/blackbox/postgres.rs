//! Sessions in PostgreSQL: several session managers on one database, and a database that goes away.

use serde_json::{Value, json};

use crate::{
    fleet::{self, Fleet},
    harness::{Api, Server, command, eventually, left_of, reason},
    postgres_server::{PASSWORD, PostgresServer, left_out},
};

fn path(session: &Value) -> String {
    format!("/api/v1/sessions/{}", session["session_id"].as_str().unwrap())
}

/// The status and the text of a readiness probe.
async fn readiness(url: &str) -> (u16, String) {
    let answer = reqwest::get(format!("{url}/readyz")).await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn is_not_ready(url: &str, why: &str) -> bool {
    let (status, text) = readiness(url).await;
    status == 503 && text.contains(why)
}

#[tokio::test]
async fn session_of_one_session_manager_is_a_session_of_all() {
    if left_out() || fleet::left_out() {
        return;
    }
    let database = PostgresServer::start();
    let fleet = Fleet::on_database(database.url("postgres")).await;
    let one = fleet.user("ada").await;
    let other = Api { url: fleet.other_url.clone(), ..one.clone() };
    let first = fleet.acquire(&one).await;
    one.release(&first).await;

    let wanted = json!({"request_id": "once", "metadata": {"job": "1"}});
    let (first, second) =
        tokio::join!(one.post("/api/v1/sessions", wanted.clone()), other.post("/api/v1/sessions", wanted));
    assert_eq!((first.0, second.0), (200, 200), "{first:?} {second:?}");
    assert_eq!(first.1["session_id"], second.1["session_id"], "a request made through both made one session");
    let (session, path) = (&first.1, path(&first.1));
    let sandbox = session["sandbox_id"].as_str().unwrap();
    for (pausing, resuming) in [(&one, &other), (&other, &one)] {
        assert_eq!(pausing.post(&format!("{path}/pause"), json!({})).await.1["state"], "paused");
        assert_eq!(resuming.get(&path).await.1["state"], "paused");
        assert_eq!(resuming.post(&format!("{path}/resume"), json!({})).await.1["state"], "running");
        assert_eq!(pausing.shell(sandbox, "echo here").await, "here\n");
    }

    all_at_once(&one, &other, &path).await;
    let state = one.get(&path).await.1["state"].clone();
    assert_eq!(other.get(&path).await.1["state"], state);
    let (status, answer) = other.post("/api/v1/execute", json!({"sandbox_id": sandbox, "command": "true"})).await;
    match state.as_str().unwrap() {
        "running" => assert_eq!(status, 200, "{answer}"),
        "paused" => assert_eq!(reason(&answer), "SANDBOX_PAUSED", "{answer}"),
        state => panic!("left in the middle: {state}"),
    }

    assert_eq!(other.delete(&path).await.0, 200);
    assert_eq!((one.get(&path).await.0, other.get(&path).await.0), (404, 404));
    assert_eq!(left_of(sandbox), Vec::<String>::new());
}

/// Twenty pauses and resumes through both; each is done, or is told why not.
async fn all_at_once(one: &Api, other: &Api, path: &str) {
    let calls: Vec<_> = (0..20)
        .map(|number| {
            let api = if number % 2 == 0 { one.clone() } else { other.clone() };
            let path = format!("{path}/{}", if number % 4 < 2 { "pause" } else { "resume" });
            tokio::spawn(async move { api.post(&path, json!({})).await })
        })
        .collect();
    let mut done = 0;
    for call in calls {
        let (status, answer) = call.await.unwrap();
        done += usize::from(status == 200);
        let told = matches!(status, 400 | 409) && reason(&answer) == "SESSION_STATE";
        assert!(status == 200 || told, "{status} {answer}");
    }
    assert!(done > 0, "one of them wins");
}

#[tokio::test]
async fn database_that_is_away_is_named_and_found_again() {
    if left_out() || fleet::left_out() {
        return;
    }
    let mut database = PostgresServer::start();
    let mut fleet = Fleet::on_database(database.url("postgres")).await;
    let api = fleet.user("ada").await;
    let id = fleet.acquire(&api).await;
    let (status, session) = api.post("/api/v1/sessions", json!({})).await;
    assert_eq!(status, 200, "{session}");

    database.kill();
    let (status, text) = readiness(&fleet.session_url).await;
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("sessions: ") && !text.contains("directory"), "{text}");
    eventually("the edge says so", || is_not_ready(&fleet.url, "session-manager")).await;
    let path = path(&session);
    let pause = format!("{path}/pause");
    // at once, as each waits for the database
    let (got, made, paused, deleted) = tokio::join!(
        api.get(&path),
        api.post("/api/v1/sessions", json!({})),
        api.post(&pause, json!({})),
        api.delete(&path)
    );
    for (status, answer) in [got, made, paused, deleted] {
        assert_eq!((status, reason(&answer)), (503, "STORE_UNAVAILABLE"), "{answer}");
        assert!(!answer.to_string().contains("127.0.0.1"), "{answer}");
    }
    assert_eq!(api.shell(&id, "echo on").await, "on\n", "what needs no session goes on");

    database.start_again();
    fleet.wait_until_ready().await;
    assert_eq!(api.post(&format!("{path}/pause"), json!({})).await.1["state"], "paused");
    assert_eq!(api.delete(&path).await.0, 200);

    fleet.kill_redis();
    eventually("the other store is named", || is_not_ready(&fleet.session_url, "directory: ")).await;
    assert!(!readiness(&fleet.session_url).await.1.contains("sessions: "));
    let logs = fleet.logs();
    assert!(logs.contains("not ready: sessions: ") && !logs.contains(PASSWORD), "{logs}");
}

#[tokio::test]
async fn server_of_everything_keeps_its_sessions_in_the_database_and_names_it_when_away() {
    if left_out() {
        return;
    }
    let mut database = PostgresServer::start();
    let url = database.url("postgres");
    let settings = [("DATABASE_URL", url.as_str())];
    let server = Server::with(&settings).await;
    let session = server.user("ada").await.post("/api/v1/sessions", json!({})).await.1;
    assert!(!server.data_dir.join("sessions.db").exists());
    // with nothing of the folder that it had
    drop(server.kill());
    let server = Server::with(&settings).await;
    let api = server.user("ada").await;
    assert_eq!(api.get(&path(&session)).await.1["state"], "failed", "its sandbox ended with the server");
    database.kill();
    let named = "session-manager\":\"sessions: the database is unavailable";
    assert!(is_not_ready(&server.url, named).await, "{:?}", readiness(&server.url).await);
    database.start_again();
    eventually("ready again", || async { readiness(&server.url).await.0 == 200 }).await;
    assert_eq!(api.delete(&path(&session)).await.0, 200);
}

#[test]
fn database_that_refuses_ends_the_start_without_its_password() {
    if left_out() {
        return;
    }
    let database = PostgresServer::start();
    let folder = tempfile::tempdir().unwrap();
    let wrong = database.url("postgres").replace(PASSWORD, "not-the-password");
    let output = command(&["serve", "--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"])
        .env("DATA_DIR", folder.path())
        .env("POOL_MIN_SIZE", "0")
        .env("DATABASE_URL", wrong)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("database_url") && text.contains("password authentication failed"), "{text}");
    assert!(!text.contains("not-the-password"), "{text}");
}
