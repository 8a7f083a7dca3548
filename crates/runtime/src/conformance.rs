//! What every runtime must do, as functions that panic where one does not. Each implementation runs them all with
//! [`check_all`], on itself and a template that it has prepared.

use std::{sync::Arc, time::Duration};

use cloud_sandbox_model::{Limits, SandboxId};
use tokio::{io::AsyncWriteExt, time::timeout};

use crate::{INTERFACE, Prepared, Runtime, RuntimeError, SandboxSpec};

const SOON: Duration = Duration::from_secs(10);
const NOT_NOW: Duration = Duration::from_millis(50);

/// Runs the whole suite.
pub async fn check_all(runtime: Arc<dyn Runtime>, template: Prepared) {
    let suite = Suite { runtime, template };
    suite.sandbox_is_made_reached_and_destroyed().await;
    suite.writable_folders_are_absolute_and_in_order();
    suite.what_does_not_exist_is_gone_and_can_be_destroyed().await;
    suite.sandbox_ends_when_it_is_destroyed().await;
    suite.freezing_and_thawing_twice_is_once().await;
    suite.frozen_sandbox_is_destroyed().await;
    suite.limits_change_while_it_lives().await;
    suite.ports_are_served_until_the_sandbox_ends().await;
    suite.interface_is_given_and_taken().await;
    suite.many_are_made_and_destroyed_at_once().await;
}

struct Suite {
    runtime: Arc<dyn Runtime>,
    template: Prepared,
}

/// A sandbox of the suite's template.
async fn made(runtime: &dyn Runtime, template: &Prepared) -> SandboxId {
    let id = SandboxId::generate();
    let spec = SandboxSpec { template: template.clone(), limits: Limits::DEFAULT };
    runtime.create(id, &spec).await.expect("a sandbox is made");
    id
}

impl Suite {
    async fn made(&self) -> SandboxId {
        made(&*self.runtime, &self.template).await
    }

    async fn sandbox_is_made_reached_and_destroyed(&self) {
        let id = self.made().await;
        let mut first = self.runtime.connect(id).await.expect("the agent is reached");
        // taken up with the first byte; an agent of a fake may not listen to it
        let _ = first.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        let second = self.runtime.connect(id).await.expect("and reached again");
        drop((first, second));
        self.runtime.usage(id).await.expect("its use is known");
        self.runtime.destroy(id).await.expect("it is destroyed");
        assert!(matches!(self.runtime.connect(id).await, Err(RuntimeError::Gone(gone)) if gone == id));
    }

    fn writable_folders_are_absolute_and_in_order(&self) {
        let folders = self.runtime.writable_folders(&self.template);
        assert!(!folders.is_empty() && folders.iter().all(|folder| folder.is_absolute()), "{folders:?}");
        // an agent wants their names in the order of their bytes
        let names: Vec<_> = folders.iter().map(|folder| folder.as_os_str()).collect();
        assert!(names.is_sorted_by(|one, other| one < other), "{folders:?}");
    }

    async fn what_does_not_exist_is_gone_and_can_be_destroyed(&self) {
        let id = SandboxId::generate();
        assert!(matches!(self.runtime.connect(id).await.map(drop), Err(RuntimeError::Gone(_))));
        assert!(matches!(self.runtime.freeze(id).await, Err(RuntimeError::Gone(_))));
        assert!(matches!(self.runtime.thaw(id).await, Err(RuntimeError::Gone(_))));
        assert!(matches!(self.runtime.usage(id).await, Err(RuntimeError::Gone(_))));
        self.runtime.destroy(id).await.expect("nothing of it is left, which is what was asked");
        timeout(SOON, self.runtime.ended(id)).await.expect("it has ended");
    }

    async fn sandbox_ends_when_it_is_destroyed(&self) {
        let id = self.made().await;
        let watcher = Arc::clone(&self.runtime);
        let mut ended = tokio::spawn(async move { watcher.ended(id).await });
        assert!(timeout(NOT_NOW, &mut ended).await.is_err(), "it lives until it is destroyed");
        self.runtime.destroy(id).await.expect("it is destroyed");
        timeout(SOON, ended).await.expect("its end is told").expect("the watcher lives");
        self.runtime.destroy(id).await.expect("and destroyed again");
    }

    async fn freezing_and_thawing_twice_is_once(&self) {
        let id = self.made().await;
        match self.runtime.freeze(id).await {
            Err(RuntimeError::Unsupported(_)) => {}
            frozen => {
                frozen.expect("it freezes");
                self.runtime.freeze(id).await.expect("and freezes again");
                self.runtime.thaw(id).await.expect("it thaws");
                self.runtime.thaw(id).await.expect("and thaws again");
                self.runtime.connect(id).await.map(drop).expect("the agent is reached");
            }
        }
        self.runtime.destroy(id).await.expect("it is destroyed");
    }

    async fn frozen_sandbox_is_destroyed(&self) {
        let id = self.made().await;
        let _ = self.runtime.freeze(id).await;
        timeout(SOON, self.runtime.destroy(id)).await.expect("within its time").expect("it is destroyed");
    }

    async fn limits_change_while_it_lives(&self) {
        let id = self.made().await;
        for pids in [8, 512] {
            let limits = Limits {
                pids,
                memory_bytes: u64::from(pids) << 20,
                open_files: pids * 16,
                cpu_weight: pids,
                ..Limits::DEFAULT
            };
            match self.runtime.set_limits(id, limits).await {
                Err(RuntimeError::Unsupported(_)) => {}
                changed => changed.expect("limits change"),
            }
        }
        self.runtime.destroy(id).await.expect("it is destroyed");
    }

    async fn ports_are_served_until_the_sandbox_ends(&self) {
        const PORT: u16 = 3128;
        let id = self.made().await;
        match self.runtime.listen(id, PORT).await {
            Err(RuntimeError::Unsupported(_)) => {}
            listening => {
                let mut first = listening.expect("it listens");
                let second = self.runtime.listen(id, PORT).await.expect("it listens twice");
                assert_ne!(first.number, second.number, "a port that is taken is another");
                assert!(timeout(NOT_NOW, first.listener.accept()).await.is_err(), "nobody connects");
                self.runtime.destroy(id).await.expect("it is destroyed");
                let ended = timeout(SOON, first.listener.accept()).await.expect("its end is told");
                assert!(ended.is_err(), "nobody can connect any more");
            }
        }
        self.runtime.destroy(id).await.expect("it is destroyed");
        assert!(matches!(
            self.runtime.listen(id, PORT).await.map(drop),
            Err(RuntimeError::Gone(_) | RuntimeError::Unsupported(_))
        ));
    }

    async fn interface_is_given_and_taken(&self) {
        let id = self.made().await;
        for _ in 0..2 {
            match self.runtime.attach_interface(id, INTERFACE).await {
                Err(RuntimeError::Unsupported(_)) => {}
                // dropped, it can be given again
                attached => drop(attached.expect("it is attached")),
            }
        }
        timeout(SOON, self.runtime.destroy(id)).await.expect("within its time").expect("it is destroyed");
    }

    async fn many_are_made_and_destroyed_at_once(&self) {
        let lives = (0..8).map(|_| {
            let (runtime, template) = (Arc::clone(&self.runtime), self.template.clone());
            tokio::spawn(async move {
                let id = made(&*runtime, &template).await;
                runtime.connect(id).await.map(drop).expect("the agent is reached");
                runtime.destroy(id).await.expect("it is destroyed");
            })
        });
        for life in lives.collect::<Vec<_>>() {
            life.await.expect("each lives its life");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FakeRuntime;

    #[tokio::test]
    async fn fake_conforms() {
        check_all(Arc::new(FakeRuntime::new(|_, _| ())), Prepared::host()).await;
    }
}
