//! What every runtime must do, as functions that panic where one does not. Each implementation runs them all with
//! [`check_all`], on itself.

use std::{sync::Arc, time::Duration};

use cloud_sandbox_model::{Limits, SandboxId};
use tokio::time::timeout;

use crate::{HOST_TEMPLATE, INTERFACE, Runtime, RuntimeError, SandboxSpec};

const SOON: Duration = Duration::from_secs(10);
const NOT_NOW: Duration = Duration::from_millis(50);

/// Runs the whole suite.
pub async fn check_all(runtime: Arc<dyn Runtime>) {
    sandbox_is_made_reached_and_destroyed(&*runtime).await;
    unknown_template_is_refused(&*runtime).await;
    writable_folders_are_absolute_and_in_order(&*runtime);
    what_does_not_exist_is_gone_and_can_be_destroyed(&*runtime).await;
    sandbox_ends_when_it_is_destroyed(Arc::clone(&runtime)).await;
    freezing_and_thawing_twice_is_once(&*runtime).await;
    frozen_sandbox_is_destroyed(&*runtime).await;
    limits_change_while_it_lives(&*runtime).await;
    ports_are_served_until_the_sandbox_ends(&*runtime).await;
    interface_is_given_and_taken(&*runtime).await;
    many_are_made_and_destroyed_at_once(runtime).await;
}

fn spec() -> SandboxSpec {
    SandboxSpec { template: HOST_TEMPLATE.into(), limits: Limits::DEFAULT }
}

async fn made(runtime: &dyn Runtime) -> SandboxId {
    let id = SandboxId::generate();
    runtime.create(id, &spec()).await.expect("a sandbox is made");
    id
}

async fn sandbox_is_made_reached_and_destroyed(runtime: &dyn Runtime) {
    let id = made(runtime).await;
    let first = runtime.connect(id).await.expect("the agent is reached");
    let second = runtime.connect(id).await.expect("and reached again");
    drop((first, second));
    runtime.usage(id).await.expect("its use is known");
    runtime.destroy(id).await.expect("it is destroyed");
    assert!(matches!(runtime.connect(id).await, Err(RuntimeError::Gone(gone)) if gone == id));
}

async fn unknown_template_is_refused(runtime: &dyn Runtime) {
    let id = SandboxId::generate();
    let spec = SandboxSpec { template: "no-such-template".into(), limits: Limits::DEFAULT };
    let refused = runtime.create(id, &spec).await;
    assert!(matches!(refused, Err(RuntimeError::UnknownTemplate(name)) if name == "no-such-template"));
    assert!(matches!(runtime.usage(id).await, Err(RuntimeError::Gone(_))), "nothing of it is left");
}

fn writable_folders_are_absolute_and_in_order(runtime: &dyn Runtime) {
    let folders = runtime.writable_folders(HOST_TEMPLATE);
    assert!(!folders.is_empty() && folders.iter().all(|folder| folder.is_absolute()), "{folders:?}");
    // an agent wants their names in the order of their bytes
    let names: Vec<_> = folders.iter().map(|folder| folder.as_os_str()).collect();
    assert!(names.is_sorted_by(|one, other| one < other), "{folders:?}");
    assert!(runtime.writable_folders("no-such-template").is_empty());
}

async fn what_does_not_exist_is_gone_and_can_be_destroyed(runtime: &dyn Runtime) {
    let id = SandboxId::generate();
    assert!(matches!(runtime.connect(id).await.map(drop), Err(RuntimeError::Gone(_))));
    assert!(matches!(runtime.freeze(id).await, Err(RuntimeError::Gone(_))));
    assert!(matches!(runtime.thaw(id).await, Err(RuntimeError::Gone(_))));
    assert!(matches!(runtime.usage(id).await, Err(RuntimeError::Gone(_))));
    runtime.destroy(id).await.expect("nothing of it is left, which is what was asked");
    timeout(SOON, runtime.ended(id)).await.expect("it has ended");
}

async fn sandbox_ends_when_it_is_destroyed(runtime: Arc<dyn Runtime>) {
    let id = made(&*runtime).await;
    let watcher = Arc::clone(&runtime);
    let mut ended = tokio::spawn(async move { watcher.ended(id).await });
    assert!(timeout(NOT_NOW, &mut ended).await.is_err(), "it lives until it is destroyed");
    runtime.destroy(id).await.expect("it is destroyed");
    timeout(SOON, ended).await.expect("its end is told").expect("the watcher lives");
    runtime.destroy(id).await.expect("and destroyed again");
}

async fn freezing_and_thawing_twice_is_once(runtime: &dyn Runtime) {
    let id = made(runtime).await;
    match runtime.freeze(id).await {
        Err(RuntimeError::Unsupported(_)) => {}
        frozen => {
            frozen.expect("it freezes");
            runtime.freeze(id).await.expect("and freezes again");
            runtime.thaw(id).await.expect("it thaws");
            runtime.thaw(id).await.expect("and thaws again");
            runtime.connect(id).await.map(drop).expect("the agent is reached");
        }
    }
    runtime.destroy(id).await.expect("it is destroyed");
}

async fn frozen_sandbox_is_destroyed(runtime: &dyn Runtime) {
    let id = made(runtime).await;
    let _ = runtime.freeze(id).await;
    timeout(SOON, runtime.destroy(id)).await.expect("within its time").expect("it is destroyed");
}

async fn limits_change_while_it_lives(runtime: &dyn Runtime) {
    let id = made(runtime).await;
    for pids in [8, 512] {
        let limits = Limits {
            pids,
            memory_bytes: u64::from(pids) << 20,
            open_files: pids * 16,
            cpu_weight: pids,
            ..Limits::DEFAULT
        };
        match runtime.set_limits(id, limits).await {
            Err(RuntimeError::Unsupported(_)) => {}
            changed => changed.expect("limits change"),
        }
    }
    runtime.destroy(id).await.expect("it is destroyed");
}

async fn ports_are_served_until_the_sandbox_ends(runtime: &dyn Runtime) {
    const PORT: u16 = 3128;
    let id = made(runtime).await;
    match runtime.listen(id, PORT).await {
        Err(RuntimeError::Unsupported(_)) => {}
        listening => {
            let mut first = listening.expect("it listens");
            let second = runtime.listen(id, PORT).await.expect("it listens twice");
            assert_ne!(first.number, second.number, "a port that is taken is another");
            assert!(timeout(NOT_NOW, first.listener.accept()).await.is_err(), "nobody connects");
            runtime.destroy(id).await.expect("it is destroyed");
            let ended = timeout(SOON, first.listener.accept()).await.expect("its end is told");
            assert!(ended.is_err(), "nobody can connect any more");
        }
    }
    runtime.destroy(id).await.expect("it is destroyed");
    assert!(matches!(
        runtime.listen(id, PORT).await.map(drop),
        Err(RuntimeError::Gone(_) | RuntimeError::Unsupported(_))
    ));
}

async fn interface_is_given_and_taken(runtime: &dyn Runtime) {
    let id = made(runtime).await;
    for _ in 0..2 {
        match runtime.attach_interface(id, INTERFACE).await {
            Err(RuntimeError::Unsupported(_)) => {}
            // dropped, it can be given again
            attached => drop(attached.expect("it is attached")),
        }
    }
    timeout(SOON, runtime.destroy(id)).await.expect("within its time").expect("it is destroyed");
}

async fn many_are_made_and_destroyed_at_once(runtime: Arc<dyn Runtime>) {
    let lives = (0..8).map(|_| {
        let runtime = Arc::clone(&runtime);
        tokio::spawn(async move {
            let id = made(&*runtime).await;
            runtime.connect(id).await.map(drop).expect("the agent is reached");
            runtime.destroy(id).await.expect("it is destroyed");
        })
    });
    for life in lives.collect::<Vec<_>>() {
        life.await.expect("each lives its life");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FakeRuntime;

    #[tokio::test]
    async fn fake_conforms() {
        check_all(Arc::new(FakeRuntime::new(|_, _| ()))).await;
    }
}
