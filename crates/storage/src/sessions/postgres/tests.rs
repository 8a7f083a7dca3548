//! The conformance suite on a private server, and what only a server can do: fail.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use sqlx::{ConnectOptions, Executor, PgConnection};
use tokio::time::{sleep, timeout};

use super::*;
use crate::{
    sessions::conformance::{record, run_all, session_cases},
    sql::postgres::{
        ACQUIRE_WITHIN, ANSWER_WITHIN, CONNECTIONS, TRUSTED_FOR, options,
        server::{PASSWORD, PostgresServer, left_out},
    },
};

/// A connection beside the store's.
async fn connection(server: &PostgresServer, database: &str) -> PgConnection {
    options(&server.url(database)).unwrap().connect().await.unwrap()
}

async fn connect(url: &str) -> Result<PostgresSessions, StorageError> {
    Ok(PostgresDatabase::connect(url).await?.sessions())
}

/// A store in a new database.
async fn store(server: &PostgresServer, database: &str) -> PostgresSessions {
    let create = format!("CREATE DATABASE {database}");
    connection(server, "postgres").await.execute(sqlx::AssertSqlSafe(create)).await.unwrap();
    connect(&server.url(database)).await.unwrap()
}

/// Ends the store's connections from the server's side, and gives how many there were.
async fn cut(beside: &mut PgConnection, state: &str) -> usize {
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE application_name = 'cloud-sandbox' AND pid <> pg_backend_pid() AND state = $1";
    sqlx::query(cut).bind(state).fetch_all(beside).await.unwrap().len()
}

fn is_unavailable<T>(result: &Result<T, StorageError>) -> bool {
    matches!(result, Err(StorageError::Unavailable { .. }))
}

#[tokio::test]
async fn postgres_does_what_every_session_store_must() {
    if left_out() {
        return;
    }
    let server = PostgresServer::start();
    let mut number = 0;
    session_cases!(run_all!({
        number += 1;
        store(&server, &format!("case{number}")).await
    }));
}

#[tokio::test]
async fn replicas_that_start_at_once_make_the_tables_once() {
    if left_out() {
        return;
    }
    let server = PostgresServer::start();
    let url = server.url("postgres");
    let started: Vec<_> = (0..8)
        .map(|_| {
            tokio::spawn({
                let url = url.clone();
                async move { connect(&url).await }
            })
        })
        .collect();
    for store in started {
        store.await.unwrap().unwrap().check().await.unwrap();
    }
    // and one that starts later finds them
    connect(&url).await.unwrap().check().await.unwrap();
}

#[tokio::test]
async fn schema_of_a_later_version_is_refused_and_a_broken_one_too() {
    if left_out() {
        return;
    }
    let server = PostgresServer::start();
    let store = store(&server, "later").await;
    let mut beside = connection(&server, "later").await;
    let later = "INSERT INTO _sqlx_migrations VALUES (99, 'later', now(), true, '', 0)";
    beside.execute(later).await.unwrap();
    let refused = connect(&server.url("later")).await;
    assert!(matches!(refused, Err(StorageError::Newer { found: 99, known: 3, .. })), "{refused:?}");
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("later version") && text.contains("99"), "{text}");
    // the version before goes on meanwhile
    store.check().await.unwrap();

    beside.execute("DELETE FROM _sqlx_migrations WHERE version = 99").await.unwrap();
    beside.execute("UPDATE _sqlx_migrations SET checksum = 'x'").await.unwrap();
    assert!(is_unavailable(&connect(&server.url("later")).await));
}

#[tokio::test]
async fn connection_cut_in_a_statement_leaves_the_old_session_or_the_new_one() {
    if left_out() {
        return;
    }
    let server = PostgresServer::start();
    let store = store(&server, "cut").await;
    let first = record("ada", Some("r"));
    store.insert(&first, &Along::default()).await.unwrap();
    let mut beside = connection(&server, "cut").await;
    let mut locker = connection(&server, "cut").await;
    locker.execute("BEGIN; LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE").await.unwrap();

    let writing = tokio::spawn({
        let (store, first) = (store.clone(), first.clone());
        async move { store.update(&first, &Along::default()).await }
    });
    while cut(&mut beside, "active").await == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    let written = writing.await.unwrap();
    assert!(is_unavailable(&written), "nobody knows whether it was written: {written:?}");

    // a read whose connection is cut is sent again, and waits for the lock
    let reading = tokio::spawn({
        let store = store.clone();
        async move { store.get(first.id).await }
    });
    while cut(&mut beside, "active").await == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    locker.execute("COMMIT").await.unwrap();
    assert_eq!(reading.await.unwrap().unwrap(), Some(first.clone()));
    assert!(store.update(&first, &Along::default()).await.unwrap());

    // all at rest are cut: the next calls do not notice, once they have rested for a while
    sleep(TRUSTED_FOR + Duration::from_millis(200)).await;
    assert!(cut(&mut beside, "idle").await > 0);
    assert_eq!(store.get(first.id).await.unwrap().unwrap().version, 2);
    assert!(store.delete(first.id, 2).await.unwrap());
}

#[tokio::test]
async fn store_tells_a_server_that_is_away_hangs_or_is_read_only_and_finds_it_again() {
    if left_out() {
        return;
    }
    let mut server = PostgresServer::start();
    let store = store(&server, "away").await;
    let record = record("ada", Some("r"));
    store.insert(&record, &Along::default()).await.unwrap();

    server.kill();
    let asked = Instant::now();
    assert!(is_unavailable(&store.check().await));
    assert!(is_unavailable(&store.update(&record, &Along::default()).await));
    assert!(asked.elapsed() < 4 * ACQUIRE_WITHIN, "bounded: {:?}", asked.elapsed());
    server.start_again();
    assert_eq!(store.get(record.id).await.unwrap(), Some(record.clone()));

    server.signal_all("STOP");
    let asked = Instant::now();
    let calls = (0..2 * CONNECTIONS).map(|_| {
        let (store, record) = (store.clone(), record.clone());
        tokio::spawn(async move { store.update(&record, &Along::default()).await })
    });
    for call in calls.collect::<Vec<_>>() {
        assert!(is_unavailable(&call.await.unwrap()));
    }
    assert!(asked.elapsed() < 2 * (ACQUIRE_WITHIN + ANSWER_WITHIN), "bounded: {:?}", asked.elapsed());
    server.signal_all("CONT");
    store.check().await.unwrap();
    assert!(store.get(record.id).await.unwrap().is_some_and(|stored| stored.version <= 2), "written once at most");

    connection(&server, "away")
        .await
        .execute("ALTER DATABASE away SET default_transaction_read_only = on")
        .await
        .unwrap();
    store.database.pool.close().await;
    let store = PostgresDatabase { pool: PostgresDatabase::pool(options(&server.url("away")).unwrap()) }.sessions();
    assert!(is_unavailable(&store.check().await) && is_unavailable(&store.update(&record, &Along::default()).await));
    assert!(store.get(record.id).await.unwrap().is_some(), "what can be read is");
}

#[tokio::test]
async fn statement_that_waits_for_a_lock_ends_and_a_caller_who_gives_up_leaves_none_behind() {
    if left_out() {
        return;
    }
    let server = PostgresServer::start();
    let store = store(&server, "slow").await;
    let record = record("ada", None);
    store.insert(&record, &Along::default()).await.unwrap();
    let mut locker = connection(&server, "slow").await;
    locker.execute("BEGIN; LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE").await.unwrap();
    // more than there are connections, all given up at once
    for _ in 0..2 * CONNECTIONS {
        assert!(timeout(Duration::from_millis(50), store.get(record.id)).await.is_err());
    }
    store.check().await.unwrap();
    let ended = store.update(&record, &Along::default()).await;
    let is_by_the_server = is_unavailable(&ended) && format!("{ended:?}").contains("statement timeout");
    assert!(is_by_the_server, "{ended:?}");
    locker.execute("COMMIT").await.unwrap();
    assert_eq!(store.get(record.id).await.unwrap(), Some(record));
}

#[tokio::test]
async fn server_that_starts_late_is_waited_for_and_one_that_refuses_is_not() {
    if left_out() {
        return;
    }
    let mut server = PostgresServer::start();
    let url = server.url("postgres");
    for wrong in [url.replace(PASSWORD, "wrong-password"), server.url("nowhere"), "mysql://host".into()] {
        let asked = Instant::now();
        let refused = connect(&wrong).await;
        assert!(is_unavailable(&refused) && asked.elapsed() < Duration::from_secs(30), "{refused:?}");
        let text = format!("{:?}", refused.unwrap_err());
        assert!(!text.contains("wrong-password") && !text.contains(PASSWORD), "{text}");
    }
    server.kill();
    let connecting = tokio::spawn(async move { connect(&url).await });
    sleep(Duration::from_millis(500)).await;
    assert!(!connecting.is_finished());
    server.launch();
    connecting.await.unwrap().unwrap().check().await.unwrap();
}

/// A self-signed certificate in `folder`, and the settings of a server that shows it.
fn certificate(folder: &Path) -> Vec<String> {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "key.pem"])
        .args(["-out", "cert.pem"])
        .current_dir(folder)
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    let set = |name: &str, file: &str| format!("{name}={}", folder.join(file).display());
    vec!["ssl=on".into(), set("ssl_cert_file", "cert.pem"), set("ssl_key_file", "key.pem")]
}

#[tokio::test]
async fn tls_is_as_strict_as_the_url_asks() {
    if left_out() {
        return;
    }
    let mut root = std::path::PathBuf::new();
    let server = PostgresServer::with(|folder| {
        root = folder.join("cert.pem");
        certificate(folder)
    });
    let by_name = server.url("postgres").replace("127.0.0.1", "localhost");
    for (url, parameters, is_let_in) in [
        (server.url("postgres"), "sslmode=require".to_owned(), true),
        (by_name.clone(), format!("sslmode=verify-full&sslrootcert={}", root.display()), true),
        (server.url("postgres"), format!("sslmode=verify-full&sslrootcert={}", root.display()), false),
        (by_name, "sslmode=verify-full".to_owned(), false),
    ] {
        let connected = connect(&format!("{url}?{parameters}")).await;
        assert_eq!(connected.is_ok(), is_let_in, "{parameters}: {connected:?}");
        if let Ok(store) = connected {
            let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
            let encrypted: bool = sqlx::query_scalar(encrypted).fetch_one(&store.database.pool).await.unwrap();
            assert!(encrypted, "{parameters}");
        }
    }
    let plain = PostgresServer::start();
    let refused = connect(&format!("{}?sslmode=require", plain.url("postgres"))).await;
    assert!(is_unavailable(&refused), "never in plain text where TLS was asked for");
}
