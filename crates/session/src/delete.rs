//! Deleting a session: its sandboxes first, then everything that is known of it.

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::{Result, SessionState};
use cloud_sandbox_rpc::CallContext;
use cloud_sandbox_storage::SessionRecord;

use crate::{
    life::{Sessions, not_found},
    pilot::Pilot,
    steps::Step,
};

impl Sessions {
    /// Deletes the session, whatever is being done with it. What fails on the way is finished by the next delete, or by
    /// the keeper.
    pub(crate) async fn delete(&self, who: &Principal, context: &CallContext, id: &str) -> Result<()> {
        loop {
            let record = self.find(who, id).await?;
            if let Some(pilot) = self.begin_delete(&record).await? {
                return self.fly(context, pilot.delete()).await;
            }
        }
    }

    /// `None` when somebody else wrote the session just now.
    pub(crate) async fn begin_delete(&self, record: &SessionRecord) -> Result<Option<Pilot>> {
        Pilot::begin(self, record, Step::BeginDelete, |change, flight| {
            let deleting = change.landed().state(SessionState::Deleting);
            deleting.with(|session| session.details.flight = Some(flight))
        })
        .await
    }
}

impl Pilot {
    pub(crate) async fn delete(mut self) -> Result<()> {
        let hosts = self.sessions.hosts.clone();
        let steps = self.sessions.steps.clone();
        let sandboxes: Vec<_> = self.record.sandbox.into_iter().chain(self.record.details.discarded.clone()).collect();
        for sandbox in sandboxes {
            let released = steps.take(Step::Release, || hosts.release(sandbox, false));
            self.during(None, released).await?;
        }
        loop {
            let (store, record) = (self.sessions.store.clone(), self.record.clone());
            let forgotten = steps.take(Step::Forget, || async { Ok(store.delete(record.id, record.version).await?) });
            if forgotten.await? {
                self.sessions.superfluous.notify_one();
                return Ok(());
            }
            self.record = self.sessions.store.get(record.id).await?.ok_or_else(|| not_found(record.id))?;
        }
    }
}
