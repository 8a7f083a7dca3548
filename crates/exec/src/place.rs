//! Where a call goes: to the node of the sandbox that it names, or that the session which it names has now.

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::{Error, ErrorKind, Result, SessionId, error::reason};
use cloud_sandbox_node_client::Nodes;
use cloud_sandbox_rpc::CallContext;
use cloud_sandbox_storage::SandboxEntry;

use crate::{
    about::{About, Repeat, Subject},
    sessions::Sessions,
};

/// Where a call goes.
pub(crate) struct Place {
    pub(crate) entry: SandboxEntry,
    /// the session that was named, if one was
    session: Option<SessionId>,
    /// whether the session manager was not asked for this call
    from_memory: bool,
}

impl Place {
    pub(crate) fn is_of_a_session(&self) -> bool {
        self.session.is_some()
    }

    /// The session, when `error` tells that it may have another sandbox, or may be resumed, and that the call can be made
    /// there: nothing of it began here, or twice is the same as once.
    pub(crate) fn outdated(&self, error: &Error, repeat: Repeat) -> Option<SessionId> {
        let outdated = match error.reason() {
            // said by nodes and by the directory before anything is done
            reason::SANDBOX_PAUSED | reason::SANDBOX_NOT_FOUND => true,
            // a sandbox that ends says so to what runs in it, too
            reason::SANDBOX_GONE => error.is_before_it_began() || repeat == Repeat::Safe,
            // it may be one of the sandbox that the session has by now
            reason::EXECUTION_NOT_FOUND => self.from_memory,
            _ => false,
        };
        self.session.filter(|_| outdated)
    }
}

/// Whether what was known of a session a moment ago will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// for calls that can be made again when it is out of date
    WillDo,
    /// for those that cannot, once they have begun to flow
    WillNotDo,
}

/// Finds places.
#[derive(Clone)]
pub(crate) struct Places {
    pub(crate) nodes: Nodes,
    pub(crate) sessions: Sessions,
}

impl Places {
    /// Where the sandbox is that `message` is about, if `principal` may say that. The message is about that sandbox then,
    /// as its node is told it.
    pub(crate) async fn find(
        &self,
        principal: &Principal,
        context: &CallContext,
        message: &mut impl About,
        memory: Memory,
    ) -> Result<Place> {
        let subject = message.ids()?.subject()?;
        if principal.grant.as_ref().is_some_and(|grant| !message.is_granted(grant)) {
            let message = "the token is for another file, or for something else to be done with it";
            return Err(Error::new(ErrorKind::PermissionDenied, reason::ROLE_DENIED, message));
        }
        let place = match subject {
            Subject::Sandbox(id) => {
                Place { entry: self.nodes.locate(principal, &id).await?, session: None, from_memory: false }
            }
            Subject::Session(id) => self.of_session(principal, context, id, memory).await?,
        };
        message.ids()?.set(place.entry.id);
        Ok(place)
    }

    async fn of_session(
        &self,
        principal: &Principal,
        context: &CallContext,
        id: SessionId,
        memory: Memory,
    ) -> Result<Place> {
        if memory == Memory::WillDo
            && let Some(sandbox) = self.sessions.known(principal, id)
        {
            match self.nodes.locate(principal, &sandbox.to_string()).await {
                Ok(entry) if !entry.ended => return Ok(Place { entry, session: Some(id), from_memory: true }),
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                // it is not the session's any more
                _ => self.sessions.forget(id),
            }
        }
        let sandbox = self.sessions.ask(principal, context, id).await?;
        let entry = self.nodes.locate(principal, &sandbox.to_string()).await?;
        Ok(Place { entry, session: Some(id), from_memory: false })
    }

    /// Where the session `id` is now. The message is about the sandbox there then.
    pub(crate) async fn find_again(
        &self,
        principal: &Principal,
        context: &CallContext,
        id: SessionId,
        message: &mut impl About,
    ) -> Result<Place> {
        let place = self.of_session(principal, context, id, Memory::WillNotDo).await?;
        message.ids()?.set(place.entry.id);
        Ok(place)
    }

    /// Has the next call ask where the session is, if `place` is of one.
    pub(crate) fn doubt(&self, place: &Place) {
        if let Some(id) = place.session {
            self.sessions.forget(id);
        }
    }
}
