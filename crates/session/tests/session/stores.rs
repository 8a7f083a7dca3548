//! A store that fails in the middle, or does what it is told without saying so.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use async_trait::async_trait;
use cloud_sandbox_model::{CheckpointId, SessionId};
use cloud_sandbox_storage::{
    CheckpointRecord, SessionFilter, SessionRecord, SessionStore, SqliteSessions, StorageError,
    sessions::{Along, Inserted, SessionEvent},
};

use crate::{
    crash::{Scenario, nothing_is_lost, of_a_second, of_hours},
    world::World,
};

/// More writes than any saga makes.
const WRITES: usize = 8;

/// How a write fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failing {
    /// it is not written, once
    Once,
    /// it is written, and nobody is told, once
    SilentlyOnce,
    /// it is written and nobody is told, and the store answers nothing from then on
    SilentlyForGood,
    /// it is not written, and nothing is from then on
    ForGood,
}

/// A store whose write of a number fails.
struct Faulty {
    inner: Arc<SqliteSessions>,
    failing: Failing,
    nth: usize,
    writes: AtomicUsize,
}

fn away() -> StorageError {
    StorageError::Unavailable { store: "the faulty store", source: "it is away".into() }
}

impl Faulty {
    fn met(&self) -> bool {
        self.writes.load(Ordering::SeqCst) > self.nth
    }

    fn readable(&self) -> Result<(), StorageError> {
        let for_good = matches!(self.failing, Failing::ForGood | Failing::SilentlyForGood);
        if for_good && self.met() { Err(away()) } else { Ok(()) }
    }

    async fn write<T>(&self, write: impl Future<Output = Result<T, StorageError>> + Send) -> Result<T, StorageError> {
        self.readable()?;
        if self.writes.fetch_add(1, Ordering::SeqCst) != self.nth {
            return write.await;
        }
        if matches!(self.failing, Failing::SilentlyOnce | Failing::SilentlyForGood) {
            write.await?;
        }
        Err(away())
    }
}

#[async_trait]
impl SessionStore for Faulty {
    async fn insert(&self, record: &SessionRecord, along: &Along) -> Result<Inserted, StorageError> {
        self.write(self.inner.insert(record, along)).await
    }

    async fn get(&self, id: SessionId) -> Result<Option<SessionRecord>, StorageError> {
        self.readable()?;
        self.inner.get(id).await
    }

    async fn list(
        &self,
        filter: &SessionFilter,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionRecord>, StorageError> {
        self.readable()?;
        self.inner.list(filter, after, limit).await
    }

    async fn update(&self, record: &SessionRecord, along: &Along) -> Result<bool, StorageError> {
        self.write(self.inner.update(record, along)).await
    }

    async fn postpone(&self, record: &SessionRecord, due_at: Option<SystemTime>) -> Result<bool, StorageError> {
        self.readable()?;
        self.inner.postpone(record, due_at).await
    }

    async fn delete(&self, id: SessionId, version: i64) -> Result<bool, StorageError> {
        self.write(self.inner.delete(id, version)).await
    }

    async fn events(&self, session: SessionId, after: i64, limit: usize) -> Result<Vec<SessionEvent>, StorageError> {
        self.readable()?;
        self.inner.events(session, after, limit).await
    }

    async fn checkpoints(&self, session: SessionId) -> Result<Vec<CheckpointRecord>, StorageError> {
        self.readable()?;
        self.inner.checkpoints(session).await
    }

    async fn needed_folders(&self) -> Result<BTreeSet<CheckpointId>, StorageError> {
        self.readable()?;
        self.inner.needed_folders().await
    }

    async fn check(&self) -> Result<(), StorageError> {
        self.inner.check().await
    }

    async fn close(&self) {}
}

/// Does it over a store whose nth write fails, for each n, until there is no such write.
async fn fail_every_write(scenario: Scenario, failing: Failing) {
    for nth in 0..WRITES {
        let at = format!("{scenario:?}, write {nth} fails: {failing:?}");
        let world = World::with(of_a_second()).await;
        let id = scenario.prepare(&world).await;
        let faulty = Arc::new(Faulty { inner: world.store.clone(), failing, nth, writes: AtomicUsize::new(0) });
        let done = scenario.act(world.over(faulty.clone(), of_hours()), id).await;
        let met = faulty.met();
        if matches!(failing, Failing::Once | Failing::SilentlyOnce) && scenario != Scenario::Delete {
            done.expect(&at);
        }
        nothing_is_lost(&world, scenario, &at).await;
        if !met {
            assert!(nth > 0, "{at}: nothing is written");
            return;
        }
    }
    panic!("{scenario:?} writes more often than {WRITES} times");
}

macro_rules! failures {
    ($($name:ident: $failing:ident,)*) => {$(
        #[tokio::test]
        async fn $name() {
            for scenario in Scenario::ALL {
                fail_every_write(scenario, Failing::$failing).await;
            }
        }
    )*};
}

failures! {
    write_that_fails_once_is_sent_again: Once,
    write_of_which_nobody_told_is_found: SilentlyOnce,
    store_that_goes_away_at_any_write_loses_nothing: ForGood,
    store_that_goes_away_after_any_write_loses_nothing: SilentlyForGood,
}
