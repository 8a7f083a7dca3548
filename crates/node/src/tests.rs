//! The node through its own service, with a runtime and an agent that are scripted. Time is paused: it moves when
//! everybody waits.

mod acquire;
mod agent;
mod chaos;
mod checkpoints;
mod contents;
mod contexts;
mod contexts_bad;
mod contexts_bench;
mod execute;
mod files;
mod follow;
mod harness;
mod interactive;
mod lifecycle;
mod limits;
mod network;
mod once;
mod outside;
mod pool;
mod processes;
mod real;
mod restart;
mod shelves;
mod start;
mod stream;
mod templates;
