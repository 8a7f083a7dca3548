//! A crash before and after every step of every saga, and what the keeper of another replica makes of it.
//!
//! A saga that is held for ever, by a replica that believes its word for hours, is what a crash leaves. The other replica
//! believes a word for a second, so that one that reaches hours ahead is over to it.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use cloud_sandbox_model::{Error, SessionState as State};
use cloud_sandbox_proto::v1::PauseDepth;
use cloud_sandbox_session::{
    Options,
    steps::{Moment, Probe, Step},
};
use cloud_sandbox_storage::{SessionRecord, SessionStore, sessions::Depth};
use tokio::sync::Notify;

use crate::world::{Replica, World, anything, fork_of, sandbox};

pub(crate) const WORK: &str = "one\ntwo\n";
/// The longest lease of a sandbox that no row names, with some time to spare.
const SHORT_LEASE: Duration = Duration::from_secs(130);

/// What a saga is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    Create,
    Freeze,
    Thaw,
    PauseCheckpointed,
    Deepen,
    CheckpointRunning,
    Resume,
    GoBack,
    Fork,
    Delete,
}

impl Scenario {
    pub(crate) const ALL: [Self; 10] = [
        Self::Create,
        Self::Freeze,
        Self::Thaw,
        Self::PauseCheckpointed,
        Self::Deepen,
        Self::CheckpointRunning,
        Self::Resume,
        Self::GoBack,
        Self::Fork,
        Self::Delete,
    ];

    /// Makes the session that it happens to, if any: with a checkpoint of the half of its work.
    pub(crate) async fn prepare(self, world: &World) -> String {
        if self == Self::Create {
            return String::new();
        }
        let session = world.session_with("one\n").await;
        let id = session.session_id.clone();
        world.checkpoint(&id).await.unwrap();
        world.node.set_content(sandbox(&session), WORK);
        match self {
            Self::Thaw | Self::Deepen => {
                world.pause(&id, PauseDepth::Auto).await.unwrap();
            }
            Self::Resume => {
                world.pause(&id, PauseDepth::Checkpointed).await.unwrap();
            }
            Self::GoBack => {
                world.checkpoint(&id).await.unwrap();
                world.pause(&id, PauseDepth::Frozen).await.unwrap();
            }
            _ => {}
        }
        if self == Self::Deepen {
            world.rewrite(&id, |record| record.details.paused.as_mut().unwrap().since_ms = 0).await;
            world.make_due().await;
        }
        id
    }

    /// Does it.
    pub(crate) async fn act(self, replica: Replica, id: String) -> Result<(), Error> {
        match self {
            Self::Create => replica.create("ada", anything()).await.map(drop),
            Self::Freeze => replica.pause(&id, PauseDepth::Frozen).await.map(drop),
            Self::Thaw | Self::Resume => replica.resume(&id).await.map(drop),
            Self::PauseCheckpointed => replica.pause(&id, PauseDepth::Checkpointed).await.map(drop),
            Self::Deepen => {
                replica.keeper.round().await;
                Ok(())
            }
            Self::CheckpointRunning => replica.checkpoint(&id).await.map(drop),
            Self::GoBack => {
                let newest = replica.checkpoints(&id).await[0].clone();
                replica.resume_from(&id, &newest).await.map(drop)
            }
            Self::Fork => replica.fork(fork_of(&id)).await.map(drop),
            Self::Delete => replica.delete(&id).await,
        }
    }
}

/// Notes which steps are met, holds one of them up for ever, and has one taken twice.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) hold: Option<(Step, Moment)>,
    pub(crate) twice: Option<Step>,
    pub(crate) met: Mutex<Vec<Step>>,
    pub(crate) held: Notify,
}

impl Script {
    /// The steps met so far, each once.
    pub(crate) fn met(&self) -> Vec<Step> {
        let mut seen = HashSet::new();
        let mut met = self.met.lock().unwrap().clone();
        met.retain(|step| seen.insert(*step));
        met
    }
}

#[async_trait]
impl Probe for Script {
    async fn at(&self, step: Step, moment: Moment) {
        self.met.lock().unwrap().push(step);
        if self.hold == Some((step, moment)) {
            self.held.notify_one();
            std::future::pending().await
        }
    }

    fn repeats(&self, step: Step) -> bool {
        self.twice == Some(step)
    }
}

/// Options of a replica that will crash.
pub(crate) fn of_hours() -> Options {
    Options { flight_lease: Duration::from_secs(36_000), ..Options::default() }
}

/// Options of the replica that recovers.
pub(crate) fn of_a_second() -> Options {
    Options { flight_lease: Duration::from_secs(1), ..Options::default() }
}

/// The steps that a scenario takes when nothing happens to it.
pub(crate) async fn steps_of(scenario: Scenario) -> Vec<Step> {
    let world = World::new().await;
    let id = scenario.prepare(&world).await;
    let script = Arc::new(Script::default());
    scenario.act(world.watched(of_hours(), script.clone()), id).await.unwrap();
    script.met()
}

async fn crash_at_every_step(scenario: Scenario) {
    for step in steps_of(scenario).await {
        for moment in [Moment::Before, Moment::After] {
            let at = format!("{scenario:?}, {moment:?} {}", step.as_str());
            let world = World::with(of_a_second()).await;
            let id = scenario.prepare(&world).await;
            let script = Arc::new(Script { hold: Some((step, moment)), ..Script::default() });
            let acting = tokio::spawn(scenario.act(world.watched(of_hours(), script.clone()), id));
            tokio::time::timeout(Duration::from_secs(60), script.held.notified()).await.expect(&at);
            acting.abort();
            world.keeper.collect().await;
            nothing_is_lost(&world, scenario, &at).await;
        }
    }
}

/// Has the keeper recover, and looks at what there is then.
pub(crate) async fn nothing_is_lost(world: &World, scenario: Scenario, at: &str) {
    recover(world, at).await;
    check(world, scenario, at).await;
    use_and_delete(world, at).await;
}

/// Has the keeper look until nothing is left to do.
async fn recover(world: &World, at: &str) {
    for _ in 0..4 {
        world.look().await;
    }
    for record in world.all().await {
        let stable = matches!(record.state, State::Running | State::Paused | State::Failed);
        assert!(stable, "{at}: {:?}", record.state);
        assert_eq!((&record.details.flight, record.details.discarded.len()), (&None, 0), "{at}");
    }
}

async fn check(world: &World, scenario: Scenario, at: &str) {
    let records = world.all().await;
    for record in &records {
        let may_fail = record.state != State::Failed || matches!(scenario, Scenario::Create | Scenario::Fork);
        assert!(may_fail, "{at}: it failed with {}", record.failure);
    }
    assert!(scenario == Scenario::Create || scenario == Scenario::Delete || !records.is_empty(), "{at}");
    no_sandbox_is_left_over(world, &records, at);
    world.keeper.collect().await;
    let needed = world.store.needed_folders().await.unwrap();
    let left: Vec<_> = world.workspaces.all().into_iter().filter(|folder| !needed.contains(folder)).collect();
    assert_eq!(left, [], "{at}: folders that nobody needs");
    for record in &records {
        assert!(world.store.checkpoints(record.id).await.unwrap().iter().all(|kept| kept.complete), "{at}");
        content_is_there(world, scenario, record, at).await;
    }
}

/// The node hosts what rows name, and else only what soon ends by itself.
fn no_sandbox_is_left_over(world: &World, records: &[SessionRecord], at: &str) {
    let hosted = world.node.sandboxes();
    for record in records {
        let depth = record.details.paused.map(|paused| paused.depth);
        let without = record.state == State::Failed || depth == Some(Depth::Checkpointed);
        assert_eq!(record.sandbox.is_none(), without, "{at}");
        assert!(record.sandbox.is_none_or(|sandbox| hosted.contains(&sandbox)), "{at}");
    }
    for sandbox in hosted {
        let named = records.iter().any(|record| record.sandbox == Some(sandbox));
        let soon = world.node.lease_end(sandbox).is_none_or(|end| end < SystemTime::now() + SHORT_LEASE);
        assert!(named || soon, "{at}: {sandbox} is left over");
    }
}

async fn content_is_there(world: &World, scenario: Scenario, record: &SessionRecord, at: &str) {
    let id = record.id.to_string();
    let content = if scenario == Scenario::Create { "" } else { WORK };
    match record.sandbox {
        Some(sandbox) => {
            assert_eq!(world.node.content(sandbox), content, "{at}");
            let frozen = record.state == State::Paused;
            assert_eq!(world.node.is_frozen(sandbox), frozen, "{at}");
            assert!(frozen || !world.node.is_stopped(sandbox), "{at}: its processes stand still");
        }
        None if record.details.checkpoint.is_some() => {
            world.resume(&id).await.expect(at);
            assert_eq!(world.content(&id).await, content, "{at}");
        }
        None => assert_eq!((scenario, record.state), (Scenario::Create, State::Failed), "{at}"),
    }
}

/// Everything can be done with what is left, and nothing is left of that.
async fn use_and_delete(world: &World, at: &str) {
    for record in world.all().await {
        let id = record.id.to_string();
        if record.state == State::Failed && record.details.checkpoint.is_none() {
            world.delete(&id).await.expect(at);
            continue;
        }
        world.resume(&id).await.expect(at);
        let content = world.content(&id).await;
        world.checkpoint(&id).await.expect(at);
        world.pause(&id, PauseDepth::Frozen).await.expect(at);
        world.pause(&id, PauseDepth::Checkpointed).await.expect(at);
        let fork = world.fork(fork_of(&id)).await.expect(at);
        assert_eq!(world.content(&fork.session_id).await, content, "{at}");
        world.resume(&id).await.expect(at);
        assert_eq!(world.content(&id).await, content, "{at}");
        world.delete(&id).await.expect(at);
        world.delete(&fork.session_id).await.expect(at);
    }
    no_sandbox_is_left_over(world, &[], at);
    world.keeper.collect().await;
    assert_eq!((world.all().await, world.workspaces.all()), (vec![], vec![]), "{at}");
}

macro_rules! crashes {
    ($($name:ident: $scenario:ident,)*) => {$(
        #[tokio::test]
        async fn $name() {
            crash_at_every_step(Scenario::$scenario).await;
        }
    )*};
}

crashes! {
    crash_at_any_step_of_a_create_leaves_nothing_broken: Create,
    crash_at_any_step_of_a_freeze_loses_nothing: Freeze,
    crash_at_any_step_of_a_thaw_loses_nothing: Thaw,
    crash_at_any_step_of_a_pause_loses_nothing: PauseCheckpointed,
    crash_at_any_step_of_deepening_loses_nothing: Deepen,
    crash_at_any_step_of_a_checkpoint_loses_nothing: CheckpointRunning,
    crash_at_any_step_of_a_resume_loses_nothing: Resume,
    crash_at_any_step_of_going_back_loses_nothing: GoBack,
    crash_at_any_step_of_a_fork_loses_nothing: Fork,
    crash_at_any_step_of_a_delete_is_finished_or_never_was: Delete,
}

#[tokio::test]
async fn scenarios_meet_every_step_there_is() {
    let mut met = HashSet::new();
    for scenario in Scenario::ALL {
        met.extend(steps_of(scenario).await);
    }
    let missed: Vec<_> = Step::ALL.iter().filter(|step| !met.contains(*step)).collect();
    assert!(missed.is_empty(), "{missed:?}");
}
