//! Sessions as the contract has them.

use cloud_sandbox_model::{Error, Result, SessionState, network::NetworkMode};
use cloud_sandbox_proto::v1;
use cloud_sandbox_rpc::limits_message;
use cloud_sandbox_storage::{
    CheckpointRecord, SessionRecord,
    sessions::{Depth, SessionEvent, TimeoutAction, WantedNetwork},
};
use prost::Message;

use crate::{due::expiry, pause};

/// The session as callers see it.
pub(crate) fn shown(record: SessionRecord) -> v1::Session {
    let expire_time = expiry(&record).map(Into::into);
    let details = record.details;
    // what cannot be read was written by a later version
    let manifest = Some(&details.manifest).filter(|bytes| !bytes.is_empty());
    let resume_manifest = manifest.and_then(|bytes| v1::ResumeManifest::decode(bytes.as_slice()).ok());
    let pause_depth = match details.paused.filter(|_| record.state == SessionState::Paused).map(|paused| paused.depth) {
        None => v1::PauseDepth::Unspecified,
        Some(Depth::Frozen) => v1::PauseDepth::Frozen,
        Some(Depth::Checkpointed) => v1::PauseDepth::Checkpointed,
    };
    let on_timeout = match details.on_timeout {
        TimeoutAction::Pause => v1::TimeoutAction::Pause,
        TimeoutAction::Delete => v1::TimeoutAction::Delete,
    };
    v1::Session {
        session_id: record.id.to_string(),
        sandbox_id: record.sandbox.map(|id| id.to_string()).unwrap_or_default(),
        user_id: record.user,
        state: state(record.state).into(),
        template: record.template,
        metadata: record.metadata.into_iter().collect(),
        create_time: Some(record.created_at.into()),
        update_time: Some(record.updated_at.into()),
        failure: record.failure,
        timeout_seconds: details.timeout_seconds,
        idle_timeout_seconds: details.idle_timeout_seconds,
        on_timeout: on_timeout.into(),
        auto_resume: details.auto_resume,
        expire_time,
        pause_depth: pause_depth.into(),
        checkpoint_id: details.checkpoint.map(|id| id.to_string()).unwrap_or_default(),
        resume_manifest,
        forked_from: details.forked_from.map(|id| id.to_string()).unwrap_or_default(),
        limits: details.limits.map(limits_message),
        network: Some(network_message(&details.network)),
    }
}

/// A network policy as the contract has it.
pub(crate) fn network_message(network: &WantedNetwork) -> v1::NetworkPolicy {
    let mode = NetworkMode::from_word(&network.mode).unwrap_or_default().number();
    v1::NetworkPolicy { mode, allow: network.allow.clone(), deny: network.deny.clone() }
}

/// The same, to be kept. A mode that is not known has been refused.
pub(crate) fn wanted_network(message: Option<&v1::NetworkPolicy>) -> WantedNetwork {
    let Some(message) = message else { return WantedNetwork::default() };
    let mode = NetworkMode::from_number(message.mode).unwrap_or_default();
    let mode = if mode == NetworkMode::None { String::new() } else { mode.to_string() };
    WantedNetwork { mode, allow: message.allow.clone(), deny: message.deny.clone() }
}

/// A checkpoint as callers see it.
pub(crate) fn shown_checkpoint(record: &CheckpointRecord) -> v1::Checkpoint {
    v1::Checkpoint {
        checkpoint_id: record.id.to_string(),
        session_id: record.session.to_string(),
        create_time: Some(record.created_at.into()),
        files: record.files,
        bytes: record.bytes,
        stored_bytes: record.stored_bytes,
        parent_id: record.parent.map(|id| id.to_string()).unwrap_or_default(),
    }
}

/// An event as callers see it.
pub(crate) fn shown_event(event: SessionEvent) -> v1::SessionEvent {
    v1::SessionEvent {
        sequence: u64::try_from(event.sequence).unwrap_or_default(),
        time: Some(event.happened_at.into()),
        kind: event.kind,
        message: event.message,
    }
}

fn state(state: SessionState) -> v1::SessionState {
    match state {
        SessionState::Creating => v1::SessionState::Creating,
        SessionState::Running => v1::SessionState::Running,
        SessionState::Pausing => v1::SessionState::Pausing,
        SessionState::Paused => v1::SessionState::Paused,
        SessionState::Resuming => v1::SessionState::Resuming,
        SessionState::Failed => v1::SessionState::Failed,
        SessionState::Deleting => v1::SessionState::Deleting,
    }
}

/// The state that a filter names; `None` for any.
pub(crate) fn state_filter(word: i32) -> Result<Option<SessionState>> {
    let wanted = v1::SessionState::try_from(word).map_err(|_| Error::invalid("state", "must be a known state"))?;
    Ok(SessionState::ALL.into_iter().find(|own| state(*own) == wanted))
}

/// Whether a list begins with the newest.
pub(crate) fn newest_first(word: i32) -> Result<bool> {
    match v1::SessionOrder::try_from(word) {
        Ok(order) => Ok(order == v1::SessionOrder::NewestFirst),
        Err(_) => Err(Error::invalid("order_by", "must be oldest_first or newest_first")),
    }
}

/// How deep to pause.
pub(crate) fn depth(word: i32) -> Result<pause::Wanted> {
    match v1::PauseDepth::try_from(word) {
        Ok(v1::PauseDepth::Unspecified | v1::PauseDepth::Auto) => Ok(pause::Wanted::Auto),
        Ok(v1::PauseDepth::Frozen) => Ok(pause::Wanted::Frozen),
        Ok(v1::PauseDepth::Checkpointed) => Ok(pause::Wanted::Checkpointed),
        Err(_) => Err(Error::invalid("depth", "must be frozen, checkpointed or auto")),
    }
}
