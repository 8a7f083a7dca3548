//! The conformance suite on a private server, and several schedulers at once.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, ConnectOptions, Executor};

use super::*;
use crate::{
    sql::postgres::{
        options,
        server::{PostgresServer, left_out},
    },
    templates::conformance::{record, run_all, template_cases},
};

/// Templates in a new database.
async fn store(server: &PostgresServer, database: &str) -> PostgresTemplates {
    let mut beside = options(&server.url("postgres")).unwrap().connect().await.unwrap();
    beside.execute(AssertSqlSafe(format!("CREATE DATABASE {database}"))).await.unwrap();
    PostgresDatabase::connect(&server.url(database)).await.unwrap().templates()
}

#[tokio::test]
async fn postgres_does_what_every_template_store_must() {
    if left_out() {
        return;
    }
    let server = PostgresServer::start();
    let mut number = 0;
    template_cases!(run_all!({
        number += 1;
        store(&server, &format!("case{number}")).await
    }));
}

#[tokio::test]
async fn schedulers_that_create_at_once_get_versions_of_their_own() {
    if left_out() {
        return;
    }
    let server = PostgresServer::start();
    let one = store(&server, "many").await;
    let other = PostgresDatabase::connect(&server.url("many")).await.unwrap().templates();
    let creates = (0..20).map(|number| {
        let store = if number % 2 == 0 { one.clone() } else { other.clone() };
        tokio::spawn(async move { store.create(&record("a", "ada", None)).await })
    });
    let mut versions = BTreeSet::new();
    for created in creates.collect::<Vec<_>>() {
        match created.await.unwrap().unwrap() {
            Created::New(record) => assert!(versions.insert(record.template.version)),
            other => panic!("not new: {other:?}"),
        }
    }
    assert_eq!(versions.into_iter().collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
    assert_eq!(one.all().await.unwrap(), other.all().await.unwrap());
}
