//! What is changed in a container that lives, and what it has used.

use std::{io, sync::PoisonError, time::Duration};

use bollard::query_parameters::StatsOptionsBuilder;
use cloud_sandbox_model::{Limits, SandboxId};
use cloud_sandbox_runtime::{RuntimeError, Usage};
use cloud_sandbox_runtime_linux as linux;
use futures::StreamExt;

use crate::{engine::has_status, facts::Kernel, limits, runtime::Inner, sandbox::Sandbox};

impl Inner {
    pub(crate) async fn set_limits(
        &self,
        sandbox: &Sandbox,
        id: SandboxId,
        limits: Limits,
    ) -> Result<(), RuntimeError> {
        let now = *sandbox.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let unsupported =
            |what: &str| Err(RuntimeError::Unsupported(format!("change {what} of a container that runs")));
        if limits.disk_bytes != now.disk_bytes {
            return unsupported("the disk limit");
        }
        let process = sandbox.first.get().and_then(|first| first.process.as_ref());
        let rlimit = (limits.open_files != now.open_files).then_some((libc::RLIMIT_NOFILE, limits.open_files.into()));
        if let Some(rlimit) = rlimit {
            let Some(process) = process.filter(|_| sandbox.kernel == Kernel::Hosts) else {
                return unsupported("the limit of open files");
            };
            match process.limit(&[rlimit]) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return unsupported("the limit of open files");
                }
                limited => {
                    limited.map_err(|error| RuntimeError::host(format!("limit the processes of {id}"), error))?
                }
            }
        }
        let (before, update) = (limits::update(&now, sandbox.kernel), limits::update(&limits, sandbox.kernel));
        if before != update {
            let updated = self.engine.client()?.update_container(&sandbox.container, update).await;
            match updated {
                Ok(()) => {}
                Err(error) if has_status(&error, 404) => {
                    // Podman before 5 has no such call, and answers as if there were no such container
                    let there = self.engine.container(&sandbox.container).await?.is_some();
                    return if there { unsupported("limits") } else { Err(RuntimeError::Gone(id)) };
                }
                Err(error) if sandbox.kernel == Kernel::Own => {
                    tracing::debug!(sandbox_id = %id, %error, "an OCI runtime does not change limits");
                    return unsupported("limits");
                }
                Err(error) => return Err(self.engine.error(format!("limit sandbox {id}"), error)),
            }
        }
        *sandbox.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
        Ok(())
    }

    pub(crate) async fn set_frozen(&self, sandbox: &Sandbox, id: SandboxId, frozen: bool) -> Result<(), RuntimeError> {
        let _acting = sandbox.acting.lock().await;
        let client = self.engine.client()?;
        let (operation, done) = if frozen {
            ("pause", client.pause_container(&sandbox.container).await)
        } else {
            ("unpause", client.unpause_container(&sandbox.container).await)
        };
        match done {
            Ok(()) => {}
            Err(error) if has_status(&error, 404) => return Err(RuntimeError::Gone(id)),
            Err(error) => match self.is_paused(sandbox).await {
                // it is as it should be
                Some(paused) if paused == frozen => {}
                _ if sandbox.has_ended() => return Err(RuntimeError::Gone(id)),
                _ => return Err(self.engine.error(format!("{operation} sandbox {id}"), error)),
            },
        }
        sandbox.set_frozen(frozen);
        Ok(())
    }

    /// Whether the daemon has it paused.
    pub(crate) async fn is_paused(&self, sandbox: &Sandbox) -> Option<bool> {
        self.engine.container(&sandbox.container).await.ok()?.map(|seen| seen.paused)
    }

    pub(crate) async fn usage(&self, sandbox: &Sandbox, id: SandboxId) -> Result<Usage, RuntimeError> {
        let here = sandbox.first.get().filter(|first| first.process.is_some());
        let seen = here.and_then(|first| linux::usage_of(first.pid));
        let mut usage = match seen {
            Some(usage) => usage,
            None => self.stats(sandbox, id).await?,
        };
        if sandbox.kernel == Kernel::Own {
            // the host sees the threads of that kernel, and not what it runs
            (usage.pids, usage.pids_refused) = (None, None);
        }
        usage.oom_kills = usage.oom_kills.max(Some(sandbox.oom_kills()));
        Ok(usage)
    }

    async fn stats(&self, sandbox: &Sandbox, id: SandboxId) -> Result<Usage, RuntimeError> {
        let options = StatsOptionsBuilder::default().stream(false).one_shot(true).build();
        let client = self.engine.client()?;
        let told = client.stats(&sandbox.container, Some(options)).next().await;
        let told = told.ok_or(RuntimeError::Gone(id))?.map_err(|error| {
            if has_status(&error, 404) {
                RuntimeError::Gone(id)
            } else {
                self.engine.error("ask for statistics", error)
            }
        })?;
        let cpu = told.cpu_stats.and_then(|cpu| cpu.cpu_usage).and_then(|cpu| cpu.total_usage);
        Ok(Usage {
            memory_bytes: told.memory_stats.and_then(|memory| memory.usage),
            pids: told.pids_stats.and_then(|pids| pids.current),
            cpu_time: cpu.map(Duration::from_nanos),
            ..Usage::default()
        })
    }
}
