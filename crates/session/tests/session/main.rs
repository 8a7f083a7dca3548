//! SessionService and SessionKeeper over a real scheduler, a real store and simulated nodes.

#![allow(clippy::unwrap_used)]

mod checkpoints;
mod crash;
mod creates;
mod forks;
mod keeping;
mod lives;
mod networks;
mod nodes;
mod pauses;
mod races;
mod stores;
mod templates;
mod timeouts;
mod twice;
mod world;
