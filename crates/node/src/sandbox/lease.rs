//! What a sandbox is to the one who acquired it.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, SystemTime},
};

use cloud_sandbox_model::{Limits, SandboxState, network::NetworkPolicy};
use cloud_sandbox_proto::v1;
use cloud_sandbox_rpc::{limits_message, network_message};
use cloud_sandbox_storage::SandboxEntry;

use super::Sandbox;
use crate::{executions::Owned, options::Options};

/// Whose acquire it was: tenant, user and their `request_id`.
pub(crate) type ClaimKey = (String, String, String);

/// Whose a sandbox is, as what, and until when.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) tenant: String,
    pub(crate) user: String,
    pub(crate) env: HashMap<String, String>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) limits: Limits,
    pub(crate) network: NetworkPolicy,
    /// the variables by which programs find the way to the network
    pub(crate) proxy: HashMap<String, String>,
    pub(crate) length: Duration,
    pub(crate) acquired_at: SystemTime,
    pub(crate) expires_at: SystemTime,
    pub(crate) claim: Option<ClaimKey>,
}

impl Lease {
    /// What the environment of all that is run in the sandbox has beside the template's: what its owner gave wins.
    pub(crate) fn environment(&self) -> HashMap<String, String> {
        let mut environment = self.proxy.clone();
        environment.extend(self.env.clone());
        environment
    }

    /// The same, begun anew now.
    pub(crate) fn renewed(&self, length: Duration) -> Self {
        Self { length, expires_at: SystemTime::now() + length, ..self.clone() }
    }

    pub(super) fn describe(&self, sandbox: &Sandbox, state: SandboxState, options: &Options) -> v1::Sandbox {
        v1::Sandbox {
            sandbox_id: sandbox.id.to_string(),
            template: sandbox.template().to_owned(),
            state: state_message(state).into(),
            user_id: self.user.clone(),
            node_id: options.id.to_string(),
            limits: Some(limits_message(self.limits)),
            metadata: self.metadata.clone().into_iter().collect(),
            create_time: Some(self.acquired_at.into()),
            expire_time: Some(self.expires_at.into()),
            network: Some(network_message(&self.network)),
            usage: None,
            runtime: sandbox.origin.prepared.runtime.to_string(),
        }
    }

    /// Whose the sandbox is, as the journal keeps it.
    pub(crate) fn owned(&self, sandbox: &Sandbox) -> Owned {
        let acquired_at = self.acquired_at.duration_since(SystemTime::UNIX_EPOCH);
        Owned {
            tenant: self.tenant.clone(),
            user: self.user.clone(),
            template: sandbox.template().to_owned(),
            limits: Some(limits_message(self.limits)),
            acquired_at: acquired_at.map_or(0, |since| since.as_secs()),
            cause: String::new(),
            cause_text: String::new(),
            runtime: sandbox.origin.prepared.runtime.to_string(),
        }
    }

    pub(super) fn entry(&self, sandbox: &Sandbox, paused: bool, options: &Options) -> SandboxEntry {
        SandboxEntry {
            id: sandbox.id,
            tenant: self.tenant.clone(),
            user: self.user.clone(),
            node: options.id,
            node_address: options.address.clone(),
            template: sandbox.template().to_owned(),
            runtime: sandbox.origin.prepared.runtime.to_string(),
            paused,
            ended: false,
            limits: self.limits,
            metadata: self.metadata.clone(),
            acquired_at: self.acquired_at,
            expires_at: self.expires_at,
        }
    }
}

fn state_message(state: SandboxState) -> v1::SandboxState {
    match state {
        SandboxState::Creating => v1::SandboxState::Creating,
        SandboxState::Ready => v1::SandboxState::Ready,
        SandboxState::Acquired => v1::SandboxState::Acquired,
        SandboxState::Paused => v1::SandboxState::Paused,
        SandboxState::Terminating => v1::SandboxState::Terminating,
    }
}
