//! The node's state, and what a test may do to it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use cloud_sandbox_model::{Error, ErrorKind, Limits, NodeId, SandboxId, error::reason};
use cloud_sandbox_proto::{
    node::v1::{Owner, node_service_server::NodeServiceServer},
    v1,
};
use cloud_sandbox_rpc::{LocalDial, in_process};
use cloud_sandbox_storage::{Directory, NodeEntry, SandboxEntry};
use tonic::{Request, Status};

/// How a method fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It answers with an error of this kind and does nothing.
    Refuse(ErrorKind),
    /// It does its work, and the reply is lost.
    LoseReply,
    /// It never answers.
    Hang,
    /// It does its work when it is healed.
    Hold,
}

/// A simulated node. Clones are the same node.
#[derive(Clone)]
pub struct SimNode(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) id: NodeId,
    pub(crate) address: String,
    pub(crate) directory: Arc<dyn Directory>,
    dial: LocalDial,
    state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) capacity: usize,
    pub(crate) sandboxes: HashMap<SandboxId, (Owner, v1::Sandbox)>,
    /// the first answer to each request id of an owner
    pub(crate) answers: HashMap<String, (v1::AcquireSandboxRequest, v1::Sandbox)>,
    faults: HashMap<&'static str, Fault>,
    calls: Vec<&'static str>,
    in_flight: usize,
    pub(crate) input: Vec<String>,
    last_request_id: Option<String>,
    last_had_deadline: bool,
}

/// Counts a call as under way until it is dropped.
pub(crate) struct InFlight(SimNode);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.state().in_flight -= 1;
    }
}

impl SimNode {
    /// Starts a node that reports `ready` warm sandboxes of `capacity`, and has it known to the directory and the dial.
    pub async fn start(directory: Arc<dyn Directory>, dial: &LocalDial, ready: u32, capacity: u32) -> Self {
        let id = NodeId::generate();
        let address = format!("sim://{id}");
        let state = Mutex::new(State { capacity: capacity as usize, ..State::default() });
        let node = Self(Arc::new(Inner { id, address: address.clone(), directory, dial: dial.clone(), state }));
        let server = NodeServiceServer::new(node.clone())
            .max_decoding_message_size(cloud_sandbox_rpc::upstream::MESSAGE_MAX)
            .max_encoding_message_size(cloud_sandbox_rpc::upstream::MESSAGE_MAX);
        dial.put(&address, in_process(server));
        node.report(ready, capacity, false).await;
        node
    }

    /// Reports the node to the directory.
    pub async fn report(&self, ready: u32, capacity: u32, draining: bool) {
        let acquired = u32::try_from(self.sandboxes().len()).expect("tests are small");
        let entry = NodeEntry {
            id: self.id(),
            address: self.0.address.clone(),
            templates: vec!["host".into()],
            ready,
            acquired,
            paused: 0,
            creating: 0,
            capacity,
            draining,
        };
        self.0.directory.put_node(&entry, Duration::from_secs(60)).await.expect("the directory takes nodes");
    }

    /// The node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.0.id
    }

    /// Where it is dialled.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// Makes `method` fail from now on.
    pub fn fail(&self, method: &'static str, fault: Fault) {
        self.state().faults.insert(method, fault);
    }

    /// Makes `method` work again.
    pub fn heal(&self, method: &'static str) {
        self.state().faults.remove(method);
    }

    /// Cuts the node off: whoever dials it gets a transport error. What it hosts stays in the directory.
    pub fn cut_off(&self) {
        self.0.dial.remove(&self.0.address);
    }

    /// Ends a sandbox without a word to the directory, as a crash in it would.
    pub fn forget(&self, id: SandboxId) {
        self.state().sandboxes.remove(&id);
    }

    /// The methods called so far.
    #[must_use]
    pub fn calls(&self) -> Vec<&'static str> {
        self.state().calls.clone()
    }

    /// How often `method` was called.
    #[must_use]
    pub fn called(&self, method: &str) -> usize {
        self.state().calls.iter().filter(|call| **call == method).count()
    }

    /// How many calls are under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.state().in_flight
    }

    /// What interactive executions were sent: `start`, `stdin …`, `close`, `resize`, `signal …`, `end`.
    #[must_use]
    pub fn input(&self) -> Vec<String> {
        self.state().input.clone()
    }

    /// The sandboxes it hosts.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<SandboxId> {
        self.state().sandboxes.keys().copied().collect()
    }

    /// The `x-request-id` of the latest call, and whether it had a deadline.
    #[must_use]
    pub fn last_context(&self) -> (Option<String>, bool) {
        let state = self.state();
        (state.last_request_id.clone(), state.last_had_deadline)
    }

    /// Puts a sandbox of `user` here, as if acquired before.
    pub async fn host(&self, user: &str) -> SandboxId {
        let owner = Owner { tenant: "default".into(), user_id: user.into() };
        let sandbox = self.make(&owner, &v1::AcquireSandboxRequest::default()).await.expect("there is room");
        sandbox.sandbox_id.parse().expect("the node makes good ids")
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the call and meets its fault. Says whether the reply is to be lost.
    pub(crate) async fn enter<T>(&self, method: &'static str, request: &Request<T>) -> Result<Entered, Status> {
        let fault = {
            let mut state = self.state();
            state.calls.push(method);
            state.in_flight += 1;
            let id = request.metadata().get("x-request-id").and_then(|id| id.to_str().ok());
            state.last_request_id = id.map(str::to_owned);
            state.last_had_deadline = request.metadata().contains_key("grpc-timeout");
            state.faults.get(method).copied()
        };
        let in_flight = InFlight(self.clone());
        match fault {
            Some(Fault::Refuse(kind)) => {
                let reason = if kind == ErrorKind::ResourceExhausted { reason::CAPACITY } else { "SIMULATED" };
                Err(cloud_sandbox_rpc::to_status(Error::new(kind, reason, "the simulated node refuses")))
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Hold) => {
                while self.state().faults.contains_key(method) {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Ok(Entered { loses_reply: false, in_flight })
            }
            Some(Fault::LoseReply) => Ok(Entered { loses_reply: true, in_flight }),
            None => Ok(Entered { loses_reply: false, in_flight }),
        }
    }

    pub(crate) async fn make(&self, owner: &Owner, wanted: &v1::AcquireSandboxRequest) -> Result<v1::Sandbox, Status> {
        let id = SandboxId::generate();
        let lease = Duration::from_secs(if wanted.timeout_seconds == 0 { 300 } else { wanted.timeout_seconds.into() });
        let now = SystemTime::now();
        let entry = SandboxEntry {
            id,
            tenant: owner.tenant.clone(),
            user: owner.user_id.clone(),
            node: self.id(),
            node_address: self.0.address.clone(),
            template: if wanted.template.is_empty() { "host".into() } else { wanted.template.clone() },
            paused: false,
            limits: Limits::DEFAULT,
            metadata: wanted.metadata.clone().into_iter().collect(),
            acquired_at: now,
            expires_at: now + lease,
        };
        let sandbox = v1::Sandbox {
            sandbox_id: id.to_string(),
            template: entry.template.clone(),
            state: v1::SandboxState::Acquired.into(),
            user_id: entry.user.clone(),
            node_id: self.id().to_string(),
            limits: None,
            metadata: wanted.metadata.clone(),
            create_time: Some(now.into()),
            expire_time: Some(entry.expires_at.into()),
        };
        {
            let mut state = self.state();
            if state.sandboxes.len() >= state.capacity {
                return Err(status(ErrorKind::ResourceExhausted, reason::CAPACITY, "the node is full"));
            }
            state.sandboxes.insert(id, (owner.clone(), sandbox.clone()));
        }
        self.0.directory.put_sandbox(&entry).await.expect("the directory takes sandboxes");
        Ok(sandbox)
    }

    /// A hosted sandbox.
    pub(crate) fn hosted(&self, id: &str) -> Result<v1::Sandbox, Status> {
        let parsed: SandboxId = id.parse().map_err(cloud_sandbox_rpc::to_status)?;
        let found = self.state().sandboxes.get(&parsed).map(|(_, sandbox)| sandbox.clone());
        found.ok_or_else(|| cloud_sandbox_rpc::to_status(Error::sandbox_not_found(id)))
    }
}

/// A call that goes on.
pub(crate) struct Entered {
    loses_reply: bool,
    pub(crate) in_flight: InFlight,
}

impl Entered {
    /// The reply, unless it is lost.
    pub(crate) fn reply<T>(&self, message: T) -> Result<tonic::Response<T>, Status> {
        if self.loses_reply {
            return Err(Status::unavailable("the reply was lost"));
        }
        Ok(tonic::Response::new(message))
    }
}

pub(crate) fn status(kind: ErrorKind, reason: &str, message: &str) -> Status {
    cloud_sandbox_rpc::to_status(Error::new(kind, reason, message))
}
