//! A sandbox's tree as a checkpoint in a workspace store, and back. The format is `cloud_sandbox.checkpoint.v1`: packs of
//! compressed chunks, and a manifest that says what the tree is made of and where its chunks lie.
//!
//! A [`Save`] stands between an agent that reads a tree and the store, a [`restore`] between the store and an agent that
//! writes one. Neither knows transports: they take and give streams of the agent's messages.
//!
//! Invariant: a manifest is written after everything that it points to, and only a manifest makes a checkpoint. So a save
//! that failed or was dropped leaves packs that nothing points to, which go with the folder, and no checkpoint.
//!
//! Invariant: nothing is taken on trust. An agent runs beside hostile code: its messages are checked and its chunks hashed
//! before they count. What comes out of the store is hashed before it goes anywhere.
//!
//! Invariant: memory is bounded whatever the size of the data: what is under way is counted in bytes, what describes a tree
//! is at most [`MANIFEST_MAX`].

mod compress;
mod damage;
mod manifest;
mod pack;
mod plan;
mod restore;
mod rules;
mod save;
mod upload;
mod writer;

#[cfg(test)]
mod tests;

pub use manifest::{Checkpoint, Hash, MANIFEST_MAX, Place};
pub use pack::PackId;
pub use restore::restore;
pub use rules::CHUNK_MAX;
pub use save::{Save, Saved};
