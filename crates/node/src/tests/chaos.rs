//! Many callers at once, in real time on several threads, while sandboxes die and callers hang up.

use std::{sync::Arc, time::Duration};

use cloud_sandbox_proto::v1::{AcquireSandboxRequest, ExecuteRequest};
use tokio::{
    runtime::Handle,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::harness::*;

const CALLERS: u64 = 12;
const ROUNDS: u64 = 40;

/// A caller whose doings follow from its number.
async fn caller(world: Arc<World>, number: u64) {
    for round in 0..ROUNDS {
        let dice = (number * 7919 + round * 104_729) % 13;
        let request_id = if dice < 4 { format!("c{}-{round}", number % 3) } else { String::new() };
        let acquire = world.try_acquire(AcquireSandboxRequest { request_id, ..Default::default() });
        let patience = if dice == 5 { Duration::from_micros(200) } else { Duration::from_secs(20) };
        let Ok(Ok(answer)) = timeout(patience, acquire).await else { continue };
        let id = id_of(&answer);
        match dice {
            6 => world.runtime.kill(id),
            7 => drop(timeout(Duration::from_millis(1), world.execute(argv(id, &["wait", "100"]))).await),
            8 => drop(world.pause(id).await),
            _ => {
                let request = ExecuteRequest { request_id: "r".into(), ..argv(id, &["echo", "a"]) };
                drop(world.execute(request).await);
            }
        }
        if dice.is_multiple_of(2) {
            drop(world.release(id).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_left_after_a_storm() {
    let world = Arc::new(World::start_with(options(4, 24), |_| {}).await);
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let (world, threads) = (Arc::clone(&world), Handle::current());
            spawn_blocking(move || threads.block_on(caller(world, number)))
        })
        .collect();
    for _ in 0..20 {
        sleep(Duration::from_millis(5)).await;
        if let Some(id) = world.runtime.sandboxes().first() {
            world.runtime.kill(*id);
        }
        assert!(world.runtime.sandboxes().len() <= 24);
    }
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(world.node.shutdown(Duration::from_secs(20)).await, 0);
    assert!(world.runtime.sandboxes().is_empty());
    let counts = world.node.counts();
    assert_eq!(counts, Default::default());
    sleep(Duration::from_millis(50)).await;
    assert_eq!(world.script.running(), 0);
}
