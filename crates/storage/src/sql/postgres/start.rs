//! The start: waiting for a server that is on its way up, and bringing the tables up to date.

use std::time::Duration;

use cloud_sandbox_model::error::chain;
use sqlx::{
    ConnectOptions, Connection, Executor,
    migrate::{MigrateError, Migrator},
    postgres::PgConnectOptions,
};
use tokio::time::{Instant, sleep, timeout};

use super::Failure;
use crate::{
    error::StorageError,
    sql::{not_migrated, unavailable},
};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// How long a server may take to be there: one that is started along with us takes some seconds.
const START_WITHIN: Duration = Duration::from_secs(15);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long one waits for another that is bringing the tables up to date, in milliseconds.
const LOCK_TIMEOUT: &str = "SET lock_timeout = 60000";

/// Brings the tables up to date once the server is there.
pub(super) async fn prepare(options: &PgConnectOptions) -> Result<(), StorageError> {
    let deadline = Instant::now() + START_WITHIN;
    let mut pause = PAUSE_MIN;
    loop {
        let Err(failure) = migrate(options).await else { return Ok(()) };
        if !failure.passing || Instant::now() + pause >= deadline {
            return Err(failure.error);
        }
        if pause == PAUSE_MIN {
            tracing::warn!(error = chain(&failure.error), "waiting for PostgreSQL");
        }
        sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// On a connection of its own, which takes the lock of the migrations along when anything fails.
async fn migrate(options: &PgConnectOptions) -> Result<(), Failure> {
    let connected = timeout(CONNECT_WITHIN, options.connect()).await;
    let mut connection = connected.map_err(|elapsed| Failure { error: unavailable(elapsed), passing: true })??;
    connection.execute(LOCK_TIMEOUT).await?;
    // not `run`: its future is not Send with a connection outside of a pool (rust-lang/rust#100013)
    MIGRATIONS.run_direct(None, &mut connection, false).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
        error => Failure { error: not_migrated(error, &MIGRATIONS), passing: false },
    })?;
    connection.close().await?;
    Ok(())
}
