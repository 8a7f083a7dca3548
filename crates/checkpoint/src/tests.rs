//! Checkpoints with a store in memory, whose faults tests choose, and an agent that is a tree in memory.

mod agent;
mod damage;
mod nonsense;
mod round_trip;
mod store;
mod upload;

use std::sync::Arc;

use cloud_sandbox_model::{CheckpointId, error::Result};
use cloud_sandbox_proto::checkpoint::v1::Contents;

use crate::{Checkpoint, Save, Saved, restore};
use agent::Tree;
use store::FakeStore;

/// More than any tree here has.
const BYTES_MAX: u64 = 1 << 30;

fn save_of(store: &Arc<FakeStore>, tree: &Tree, base: Option<Arc<Checkpoint>>) -> Save {
    let roots = tree.root_names();
    let save = Save::new(Arc::clone(store) as _, CheckpointId::generate(), roots, Contents::default(), BYTES_MAX);
    save.unwrap().with_base(base)
}

async fn save(store: &Arc<FakeStore>, tree: &Tree, base: Option<&Arc<Checkpoint>>) -> Result<Saved> {
    let save = save_of(store, tree, base.cloned());
    let sent = agent::save(tree, save.requests()).await;
    save.run(sent).await
}

async fn open(store: &Arc<FakeStore>, saved: &Saved) -> Result<Arc<Checkpoint>> {
    Checkpoint::open(store.as_ref(), saved.id, &saved.digest).await
}

async fn restored(store: &Arc<FakeStore>, checkpoint: &Arc<Checkpoint>) -> Result<agent::Seen> {
    agent::restore(restore(Arc::clone(store) as _, Arc::clone(checkpoint))).await
}
