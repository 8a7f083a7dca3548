//! What somebody outside does to a sandbox: pauses it, or lets it go on.

use std::{future::pending, ops::ControlFlow};

use cloud_sandbox_model::{SandboxState, error::chain};

use super::{EndCause, owner::Owner};

impl Owner {
    /// Resolves when somebody else has paused the sandbox, or let it go on, and says which. While it is held, its processes
    /// run and stand still as the one who holds it wants; what others did is seen after that.
    pub(super) fn paused_by_others(&self) -> impl Future<Output = bool> + Send + use<> {
        let known = match self.slot.state() {
            _ if self.held => None,
            SandboxState::Ready | SandboxState::Acquired => Some(false),
            SandboxState::Paused => Some(true),
            SandboxState::Creating | SandboxState::Terminating => None,
        };
        let (runtime, id) = (self.sandbox.origin.runtime.clone(), self.sandbox.id);
        async move {
            match known {
                Some(known) => runtime.frozen_by_others(id, known).await,
                None => pending().await,
            }
        }
    }

    /// Makes that the sandbox's state. A warm one is of no use any more.
    pub(super) async fn note_paused(&mut self, paused: bool) -> ControlFlow<EndCause> {
        let Ok(lease) = self.lease() else {
            return ControlFlow::Break(EndCause::FromOutside("was paused from outside".to_owned()));
        };
        let next = if paused { SandboxState::Paused } else { SandboxState::Acquired };
        match self.enter(next) {
            Ok(()) => {
                tracing::warn!(paused, "the sandbox was paused or let go on from outside");
                self.view.send_modify(|view| view.paused_from_outside = paused);
                self.cpu.forget();
                self.put_again(&lease, paused).await;
            }
            Err(error) => tracing::error!(error = chain(&error), "what was done from outside fits no state"),
        }
        ControlFlow::Continue(())
    }
}
