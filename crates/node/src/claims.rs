//! Acquires that carry a `request_id`: the first one acts, the others get its answer for as long as its sandbox lives.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cloud_sandbox_model::SandboxId;
use tokio::sync::watch;
use tonic::Status;

use crate::sandbox::{ClaimKey, Sandbox};

/// An acquired sandbox, and whether it was warm.
#[derive(Clone)]
pub(crate) struct Acquired {
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) warm: bool,
}

/// What came of an acquire; none while it is under way.
pub(crate) type Outcome = Option<Result<Acquired, Status>>;

struct Claim {
    fingerprint: u64,
    outcome: watch::Receiver<Outcome>,
}

/// Whose turn it is.
pub(crate) enum Turn {
    /// the caller's: it says what came of it
    First(watch::Sender<Outcome>, watch::Receiver<Outcome>),
    /// somebody was here before
    Later(watch::Receiver<Outcome>),
    /// the id stands for other content
    Reused,
}

/// The claims of a node.
#[derive(Default)]
pub(crate) struct Claims(Mutex<HashMap<ClaimKey, Claim>>);

impl Claims {
    pub(crate) fn turn(&self, key: &ClaimKey, fingerprint: u64) -> Turn {
        let mut claims = self.claims();
        if let Some(claim) = claims.get(key).filter(|claim| !claim.is_over()) {
            if claim.fingerprint != fingerprint {
                return Turn::Reused;
            }
            return Turn::Later(claim.outcome.clone());
        }
        let (sender, outcome) = watch::channel(None);
        claims.insert(key.clone(), Claim { fingerprint, outcome: outcome.clone() });
        Turn::First(sender, outcome)
    }

    /// The claim on a sandbox that has ended. One that was made anew since stays.
    pub(crate) fn forget(&self, key: &ClaimKey, id: SandboxId) {
        let mut claims = self.claims();
        let is_its =
            |claim: &Claim| matches!(&*claim.outcome.borrow(), Some(Ok(acquired)) if acquired.sandbox.id == id);
        if claims.get(key).is_some_and(is_its) {
            claims.remove(key);
        }
    }

    /// A claim that came to nothing: the next one tries again.
    pub(crate) fn forget_failed(&self, key: &ClaimKey) {
        let mut claims = self.claims();
        if claims.get(key).is_some_and(Claim::is_over) {
            claims.remove(key);
        }
    }

    fn claims(&self) -> MutexGuard<'_, HashMap<ClaimKey, Claim>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    fn is_over(&self) -> bool {
        match &*self.outcome.borrow() {
            Some(Ok(acquired)) => acquired.sandbox.ended.is_cancelled(),
            Some(Err(_)) => true,
            // nobody will say any more what came of it
            None => self.outcome.has_changed().is_err(),
        }
    }
}
