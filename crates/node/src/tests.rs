//! The node through its own service, with a runtime and an agent that are scripted. Time is paused: it moves when
//! everybody waits.

mod acquire;
mod agent;
mod chaos;
mod execute;
mod files;
mod harness;
mod interactive;
mod lifecycle;
mod pool;
mod real;
mod stream;
