//! The node's state, and what a test may do to it.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use cloud_sandbox_model::{Error, ErrorKind, Limits, NodeId, SandboxId, error::reason};
use cloud_sandbox_proto::{
    node::v1::{Owner, node_service_server::NodeServiceServer},
    v1::{
        self, context_service_server::ContextServiceServer, exec_service_server::ExecServiceServer,
        file_service_server::FileServiceServer,
    },
};
use cloud_sandbox_rpc::{LocalDial, in_process, upstream::MESSAGE_MAX};
use cloud_sandbox_storage::{Directory, NodeEntry, NodeTemplate, SandboxEntry, TemplateState, WorkspaceStore};
use futures::{Stream, StreamExt};
use tonic::{Request, Status, service::Routes};

use crate::checkpoints::Inside;

/// How a method fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It answers with an error of this kind and does nothing.
    Refuse(ErrorKind),
    /// It does its work, and the reply is lost.
    LoseReply,
    /// The same for one call; then it works again.
    LoseOneReply,
    /// It never answers.
    Hang,
    /// It does its work when it is healed.
    Hold,
    /// Its stream breaks after this many messages.
    Break(usize),
    /// Its stream stands still after this many messages.
    Stall(usize),
    /// Its sandbox ends while it is at work.
    EndMeanwhile,
    /// Its sandbox turns out to be gone when an upload has brought a second message.
    GoneAtSecondMessage,
}

/// The lease of who asks for none, in seconds.
pub(crate) const LEASE_DEFAULT: u32 = 300;
/// What a client hears when a connection breaks.
const BROKEN: &str = "the connection broke";

/// What a stream answers.
pub(crate) type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

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
    /// what has ended and can still be read
    pub(crate) ended: HashSet<SandboxId>,
    /// what is inside those in which something was done
    pub(crate) inside: HashMap<SandboxId, Inside>,
    pub(crate) workspaces: Option<Arc<dyn WorkspaceStore>>,
    /// the first answer to each request id of an owner
    pub(crate) answers: HashMap<String, (v1::AcquireSandboxRequest, v1::Sandbox)>,
    /// the list that it was told, and its revision
    pub(crate) told: Vec<v1::Template>,
    pub(crate) revision: u64,
    /// how far it says that it is with those that it was told; ready unless something is said
    states: HashMap<String, (TemplateState, String)>,
    /// the templates that it was last told to make sandboxes from, in order
    pub(crate) acquired_templates: Vec<String>,
    /// as it was last reported: warm sandboxes, capacity, draining, short of memory
    reported: (u32, u32, bool, bool),
    faults: HashMap<&'static str, Fault>,
    calls: Vec<&'static str>,
    in_flight: usize,
    pub(crate) input: Vec<String>,
    pub(crate) uploads: Vec<String>,
    sent: HashMap<&'static str, usize>,
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
        dial.put(&address, in_process(node.routes().prepare()));
        node.report(ready, capacity, false).await;
        node
    }

    /// What it serves.
    #[must_use]
    pub fn routes(&self) -> Routes {
        macro_rules! server {
            ($server:ident) => {
                $server::new(self.clone()).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
            };
        }
        Routes::new(server!(NodeServiceServer))
            .add_service(server!(ExecServiceServer))
            .add_service(server!(ContextServiceServer))
            .add_service(server!(FileServiceServer))
    }

    /// Reports the node to the directory.
    pub async fn report(&self, ready: u32, capacity: u32, draining: bool) {
        self.report_as(ready, capacity, draining, false).await;
    }

    /// Reports that its machine is short of memory.
    pub async fn report_low_memory(&self) {
        self.report_as(0, 9, false, true).await;
    }

    async fn report_as(&self, ready: u32, capacity: u32, draining: bool, low_memory: bool) {
        self.state().reported = (ready, capacity, draining, low_memory);
        self.report_again().await;
    }

    /// How far it is with a template that it was told, from now on, and why.
    pub async fn set_template(&self, reference: &str, state: TemplateState, detail: &str) {
        self.state().states.insert(reference.to_owned(), (state, detail.to_owned()));
        self.report_again().await;
    }

    /// The references that it was told, and the revision of the list.
    #[must_use]
    pub fn told(&self) -> (Vec<String>, u64) {
        let state = self.state();
        let reference = |template: &v1::Template| format!("{}@{}", template.name, template.version);
        (state.told.iter().map(reference).collect(), state.revision)
    }

    /// The templates that it was told, passwords included.
    #[must_use]
    pub fn told_templates(&self) -> Vec<v1::Template> {
        self.state().told.clone()
    }

    /// The templates that sandboxes were asked for of, as it was asked.
    #[must_use]
    pub fn acquired_templates(&self) -> Vec<String> {
        self.state().acquired_templates.clone()
    }

    /// Forgets what it was told, as a node that started anew under its old id.
    pub async fn forget_templates(&self) {
        {
            let mut state = self.state();
            state.told.clear();
            state.revision = 0;
        }
        self.report_again().await;
    }

    fn reported_templates(&self) -> Vec<NodeTemplate> {
        let mut templates = vec![NodeTemplate::ready("host", "linux")];
        let (references, _) = self.told();
        let state = self.state();
        templates.extend(references.into_iter().map(|reference| match state.states.get(&reference) {
            Some((how, detail)) => NodeTemplate {
                state: *how,
                detail: detail.clone(),
                runtime: String::new(),
                ..NodeTemplate::ready(reference, "linux")
            },
            None => NodeTemplate::ready(reference, "linux"),
        }));
        templates
    }

    /// Reports the node as it was last reported, with the templates that it knows now.
    pub(crate) async fn report_again(&self) {
        let (ready, capacity, draining, low_memory) = self.state().reported;
        let acquired = u32::try_from(self.sandboxes().len()).expect("tests are small");
        let entry = NodeEntry {
            id: self.id(),
            address: self.0.address.clone(),
            templates: self.reported_templates(),
            ready,
            acquired,
            paused: 0,
            creating: 0,
            capacity,
            draining,
            low_memory,
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

    /// Freezes a sandbox, which is refused then.
    pub fn freeze(&self, id: SandboxId) {
        self.put_state(id, v1::SandboxState::Paused);
    }

    /// Lets a frozen sandbox go on.
    pub fn thaw(&self, id: SandboxId) {
        self.put_state(id, v1::SandboxState::Acquired);
    }

    fn put_state(&self, id: SandboxId, state: v1::SandboxState) {
        if let Some((_, sandbox)) = self.state().sandboxes.get_mut(&id) {
            sandbox.state = state.into();
        }
    }

    /// Ends a sandbox without a word to the directory, as a crash in it would.
    pub fn forget(&self, id: SandboxId) {
        let mut state = self.state();
        state.sandboxes.remove(&id);
        state.inside.remove(&id);
        state.ended.remove(&id);
    }

    /// What of the network a sandbox sees, as it was last told.
    #[must_use]
    pub fn network(&self, id: SandboxId) -> Option<v1::NetworkPolicy> {
        self.state().sandboxes.get(&id).and_then(|(_, sandbox)| sandbox.network.clone())
    }

    /// Ends a sandbox, whose output can be read on.
    pub async fn end(&self, id: SandboxId) {
        {
            let mut state = self.state();
            state.sandboxes.remove(&id);
            state.inside.remove(&id);
            state.ended.insert(id);
        }
        let entry = self.0.directory.sandbox(id).await.expect("the directory answers");
        let entry = entry.expect("the sandbox was put into the directory");
        let ended = SandboxEntry { ended: true, ..entry };
        self.0.directory.put_sandbox(&ended).await.expect("the directory takes sandboxes");
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

    /// How many messages the streams of `method` have sent.
    #[must_use]
    pub fn sent(&self, method: &str) -> usize {
        self.state().sent.get(method).copied().unwrap_or_default()
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

    /// What was uploaded: `commit N` or `end N`, with how many bytes came before.
    #[must_use]
    pub fn uploads(&self) -> Vec<String> {
        self.state().uploads.clone()
    }

    /// The sandboxes it hosts.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<SandboxId> {
        self.state().sandboxes.keys().copied().collect()
    }

    /// When the lease of a hosted sandbox ends.
    #[must_use]
    pub fn lease_end(&self, id: SandboxId) -> Option<SystemTime> {
        let state = self.state();
        let (_, sandbox) = state.sandboxes.get(&id)?;
        SystemTime::try_from(sandbox.expire_time?).ok()
    }

    /// Whether a hosted sandbox is frozen.
    #[must_use]
    pub fn is_frozen(&self, id: SandboxId) -> bool {
        self.state().sandboxes.get(&id).is_some_and(|(_, sandbox)| sandbox.state() == v1::SandboxState::Paused)
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

    /// Notes the call and meets its fault.
    pub(crate) async fn enter<T>(&self, method: &'static str, request: &Request<T>) -> Result<Entered, Status> {
        let fault = {
            let mut state = self.state();
            state.calls.push(method);
            state.in_flight += 1;
            let id = request.metadata().get("x-request-id").and_then(|id| id.to_str().ok());
            state.last_request_id = id.map(str::to_owned);
            state.last_had_deadline = request.metadata().contains_key("grpc-timeout");
            let fault = state.faults.get(method).copied();
            if fault == Some(Fault::LoseOneReply) {
                state.faults.remove(method);
            }
            fault
        };
        let entered = Entered { method, fault, in_flight: InFlight(self.clone()) };
        match fault {
            Some(Fault::Refuse(kind)) => {
                let reason = if kind == ErrorKind::ResourceExhausted { reason::CAPACITY } else { "SIMULATED" };
                Err(status(kind, reason, "the simulated node refuses"))
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Hold) => {
                while self.state().faults.contains_key(method) {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Ok(entered)
            }
            _ => Ok(entered),
        }
    }

    pub(crate) async fn make(&self, owner: &Owner, wanted: &v1::AcquireSandboxRequest) -> Result<v1::Sandbox, Status> {
        let id = SandboxId::generate();
        let seconds = if wanted.timeout_seconds == 0 { LEASE_DEFAULT } else { wanted.timeout_seconds };
        let lease = Duration::from_secs(seconds.into());
        let now = SystemTime::now();
        let entry = SandboxEntry {
            id,
            tenant: owner.tenant.clone(),
            user: owner.user_id.clone(),
            node: self.id(),
            node_address: self.0.address.clone(),
            template: if wanted.template.is_empty() { "host".into() } else { wanted.template.clone() },
            runtime: "linux".into(),
            paused: false,
            ended: false,
            limits: Limits::DEFAULT,
            metadata: wanted.metadata.clone().into_iter().collect(),
            acquired_at: now,
            expires_at: now + lease,
        };
        let sandbox = v1::Sandbox {
            runtime: "linux".into(),
            sandbox_id: id.to_string(),
            template: entry.template.clone(),
            state: v1::SandboxState::Acquired.into(),
            user_id: entry.user.clone(),
            node_id: self.id().to_string(),
            limits: None,
            metadata: wanted.metadata.clone(),
            create_time: Some(now.into()),
            expire_time: Some(entry.expires_at.into()),
            network: wanted.network.clone(),
            usage: None,
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
        let state = self.state();
        if state.ended.contains(&parsed) {
            return Err(cloud_sandbox_rpc::to_status(gone().before_it_began()));
        }
        let found = state.sandboxes.get(&parsed).map(|(_, sandbox)| sandbox.clone());
        found.ok_or_else(|| cloud_sandbox_rpc::to_status(Error::sandbox_not_found(id)))
    }

    /// A hosted sandbox that is not paused.
    pub(crate) fn usable(&self, id: &str) -> Result<(), Status> {
        if self.hosted(id)?.state() == v1::SandboxState::Paused {
            return Err(status(ErrorKind::FailedPrecondition, reason::SANDBOX_PAUSED, "the sandbox is paused"));
        }
        Ok(())
    }

    /// Whether what a sandbox printed can be read: it is hosted, or has ended.
    pub(crate) fn readable(&self, id: &str) -> Result<(), Status> {
        let parsed: SandboxId = id.parse().map_err(cloud_sandbox_rpc::to_status)?;
        let ended = self.state().ended.contains(&parsed);
        if ended { Ok(()) } else { self.hosted(id).map(drop) }
    }
}

/// A call that goes on.
pub(crate) struct Entered {
    method: &'static str,
    fault: Option<Fault>,
    in_flight: InFlight,
}

impl Entered {
    /// The reply, unless it is lost.
    pub(crate) fn reply<T>(&self, message: T) -> Result<tonic::Response<T>, Status> {
        match self.fault {
            Some(Fault::LoseReply | Fault::LoseOneReply) => Err(Status::unavailable(BROKEN)),
            Some(Fault::EndMeanwhile) => Err(cloud_sandbox_rpc::to_status(gone())),
            _ => Ok(tonic::Response::new(message)),
        }
    }

    /// Whether an upload is read on.
    pub(crate) fn go_on(&self) -> Result<(), Status> {
        match self.fault {
            Some(Fault::GoneAtSecondMessage) => Err(cloud_sandbox_rpc::to_status(gone().before_it_began())),
            _ => Ok(()),
        }
    }

    /// The stream as the reply, stalled or broken as the method's fault says.
    pub(crate) fn stream<T: Send + 'static>(
        self,
        messages: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> Result<tonic::Response<Events<T>>, Status> {
        let fault = self.fault;
        let _ = self.reply(())?;
        let events = async_stream::stream! {
            let in_flight = self.in_flight;
            let mut messages = std::pin::pin!(messages);
            let mut sent = 0;
            loop {
                match fault {
                    Some(Fault::Break(after)) if sent == after => {
                        yield Err(Status::unavailable(BROKEN));
                        return;
                    }
                    Some(Fault::Stall(after)) if sent == after => std::future::pending().await,
                    _ => {}
                }
                let Some(message) = messages.next().await else { return };
                yield message;
                sent += 1;
                *in_flight.0.state().sent.entry(self.method).or_default() += 1;
            }
        };
        Ok(tonic::Response::new(Box::pin(events)))
    }
}

pub(crate) fn status(kind: ErrorKind, reason: &str, message: &str) -> Status {
    cloud_sandbox_rpc::to_status(Error::new(kind, reason, message))
}

fn gone() -> Error {
    Error::new(ErrorKind::NotFound, reason::SANDBOX_GONE, "the sandbox is gone")
}

/// The sandbox of a request. Sessions are none of a node's business.
pub(crate) fn only<'a>(sandbox_id: &'a str, session_id: &str) -> Result<&'a str, Status> {
    if session_id.is_empty() { Ok(sandbox_id) } else { Err(Status::invalid_argument("a node was told a session_id")) }
}

pub(crate) fn wanted<T>(part: Option<T>) -> Result<T, Status> {
    part.ok_or_else(|| Status::invalid_argument("the request is missing"))
}

/// A whole service of the node: methods that say nothing but yes for a sandbox that they can find by `usable` or
/// `readable`, and the others as they are.
macro_rules! service {
    ($trait:path; $($check:ident $name:literal $method:ident($request:ident) -> $response:ident;)* { $($rest:tt)* }) => {
        #[tonic::async_trait]
        impl $trait for SimNode {
            $(
                async fn $method(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                    let call = self.enter($name, &request).await?;
                    self.$check(only(&request.get_ref().sandbox_id, &request.get_ref().session_id)?)?;
                    call.reply($response::default())
                }
            )*

            $($rest)*
        }
    };
}
pub(crate) use service;
