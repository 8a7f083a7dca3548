//! Every step of every saga taken twice: it is as if it were taken once.

use std::{collections::BTreeSet, sync::Arc};

use cloud_sandbox_storage::SessionStore;

use crate::{
    crash::{Scenario, Script, of_hours, steps_of},
    world::World,
};

/// What is left by a saga: of each session its state, depth, content and numbers of events and checkpoints; and how many
/// sandboxes and folders there are.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    sessions: BTreeSet<String>,
    sandboxes: usize,
    folders: usize,
}

impl Left {
    async fn by(scenario: Scenario, script: Script) -> Self {
        let world = World::new().await;
        let id = scenario.prepare(&world).await;
        scenario.act(world.watched(of_hours(), Arc::new(script)), id).await.unwrap();
        let mut sessions = BTreeSet::new();
        for record in world.all().await {
            let checkpoints = world.store.checkpoints(record.id).await.unwrap();
            let content = record.sandbox.map(|sandbox| {
                (world.node.content(sandbox), world.node.is_frozen(sandbox), world.node.is_stopped(sandbox))
            });
            let depth = record.details.paused.map(|paused| (paused.depth, paused.auto));
            let kinds = world.kinds(&record.id.to_string()).await;
            let flight = (record.details.flight, record.details.discarded.len());
            sessions.insert(format!(
                "{:?} {depth:?} {content:?} {kinds:?} {flight:?} {}",
                record.state,
                checkpoints.len()
            ));
        }
        world.keeper.collect().await;
        Self { sessions, sandboxes: world.node.sandboxes().len(), folders: world.workspaces.all().len() }
    }
}

async fn take_every_step_twice(scenarios: &[Scenario]) {
    for scenario in scenarios {
        let once = Left::by(*scenario, Script::default()).await;
        for step in steps_of(*scenario).await {
            let twice = Left::by(*scenario, Script { twice: Some(step), ..Script::default() }).await;
            assert_eq!(once, twice, "{scenario:?}, {} twice", step.as_str());
        }
    }
}

#[tokio::test]
async fn every_step_of_a_life_in_one_sandbox_can_be_taken_twice() {
    take_every_step_twice(&[Scenario::Create, Scenario::Freeze, Scenario::Thaw, Scenario::Delete]).await;
}

#[tokio::test]
async fn every_step_of_a_save_can_be_taken_twice() {
    take_every_step_twice(&[Scenario::PauseCheckpointed, Scenario::Deepen, Scenario::CheckpointRunning]).await;
}

#[tokio::test]
async fn every_step_of_a_restore_can_be_taken_twice() {
    take_every_step_twice(&[Scenario::Resume, Scenario::GoBack, Scenario::Fork]).await;
}
