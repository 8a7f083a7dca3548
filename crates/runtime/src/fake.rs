//! A runtime without isolation, for tests of what stands on the port: a sandbox is an in-memory connection to whatever
//! the test serves as its agent, and every operation can be made to fail.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use cloud_sandbox_model::{Limits, RuntimeName, SandboxId, Template, template::Progress};
use tokio::{io::DuplexStream, net::TcpListener, sync::watch};

use crate::{BoxedStream, End, Listener, Port, Prepared, Root, Runtime, RuntimeError, SandboxSpec, Usage};

/// Serves one connection as the agent of a sandbox.
pub type Agent = Arc<dyn Fn(SandboxId, DuplexStream) + Send + Sync>;

const PIPE: usize = 64 * 1024;
/// What cannot be done without what a runtime works with.
const OF_DAEMONS: [&str; 6] = ["available", "prepare", "prepared_templates", "create", "destroy", "reclaim"];

/// A runtime whose sandboxes are served by the test.
pub struct FakeRuntime {
    family: &'static str,
    agent: Agent,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sandboxes: HashMap<SandboxId, Fake>,
    failing: HashSet<&'static str>,
    unsupported: HashSet<&'static str>,
    created: usize,
    leftovers: Vec<SandboxId>,
    writable: Option<Vec<PathBuf>>,
    walls: Vec<&'static str>,
    prepared: BTreeSet<String>,
    /// what it works with does not answer
    unavailable: bool,
    /// it panics where it is to prepare a template
    panicking: bool,
    /// what is not answered
    hanging: watch::Sender<HashSet<&'static str>>,
    preparing: Preparing,
}

/// How templates are prepared.
#[derive(Default)]
struct Preparing {
    /// nothing is prepared while this is so
    held: watch::Sender<bool>,
    count: usize,
    now: usize,
    most: usize,
}

struct Fake {
    alive: watch::Sender<bool>,
    frozen: watch::Sender<bool>,
    usage: Usage,
    template: String,
    end: End,
}

impl FakeRuntime {
    /// A runtime whose agents are served by `agent`.
    pub fn new(agent: impl Fn(SandboxId, DuplexStream) + Send + Sync + 'static) -> Self {
        Self::named("linux", agent)
    }

    /// The same in the place of the runtime of this name.
    pub fn named(family: &'static str, agent: impl Fn(SandboxId, DuplexStream) + Send + Sync + 'static) -> Self {
        Self { family, agent: Arc::new(agent), state: Mutex::default() }
    }

    /// Makes every later call of `operation` (`"create"`, `"freeze"`, …) fail, or work again.
    pub fn set_failing(&self, operation: &'static str, failing: bool) {
        let mut state = self.state();
        if failing {
            state.failing.insert(operation);
        } else {
            state.failing.remove(operation);
        }
    }

    /// Makes every later call of `operation` fail for what this host cannot do, or work again.
    pub fn set_unsupported(&self, operation: &'static str, unsupported: bool) {
        let mut state = self.state();
        if unsupported {
            state.unsupported.insert(operation);
        } else {
            state.unsupported.remove(operation);
        }
    }

    /// Makes it as if what it works with were not there, or there again.
    pub fn set_unavailable(&self, unavailable: bool) {
        self.state().unavailable = unavailable;
    }

    /// Makes every later call of `"available"` or `"create"` wait, or go on with those that wait.
    pub fn set_hanging(&self, operation: &'static str, hanging: bool) {
        self.state().hanging.send_modify(|all| {
            if hanging {
                all.insert(operation);
            } else {
                all.remove(operation);
            }
        });
    }

    /// Makes it panic when it is to prepare a template, or not any more.
    pub fn set_panicking(&self, panicking: bool) {
        self.state().panicking = panicking;
    }

    /// Makes everything that is prepared wait, or go on.
    pub fn hold_preparing(&self, held: bool) {
        self.state().preparing.held.send_replace(held);
    }

    /// How often templates were prepared, and the most that were being prepared at once.
    pub fn times_prepared(&self) -> (usize, usize) {
        let state = self.state();
        (state.preparing.count, state.preparing.most)
    }

    /// The sandboxes that exist.
    pub fn sandboxes(&self) -> Vec<SandboxId> {
        self.state().sandboxes.keys().copied().collect()
    }

    /// How many were ever made.
    pub fn created(&self) -> usize {
        self.state().created
    }

    /// Whether the sandbox is frozen.
    pub fn is_frozen(&self, id: SandboxId) -> bool {
        self.state().sandboxes.get(&id).is_some_and(|fake| *fake.frozen.borrow())
    }

    /// Freezes a sandbox, or lets it go on, as somebody from outside does.
    pub fn set_frozen_from_outside(&self, id: SandboxId, frozen: bool) {
        if let Some(fake) = self.state().sandboxes.get(&id) {
            fake.frozen.send_replace(frozen);
        }
    }

    /// The templates that are prepared.
    pub fn prepared(&self) -> Vec<String> {
        self.state().prepared.iter().cloned().collect()
    }

    /// Leaves what an earlier process prepared of a template.
    pub fn leave_prepared(&self, template: &str) {
        self.state().prepared.insert(template.to_owned());
    }

    /// What a sandbox was made from.
    pub fn template_of(&self, id: SandboxId) -> Option<String> {
        self.state().sandboxes.get(&id).map(|fake| fake.template.clone())
    }

    /// Ends a sandbox as if its agent had been killed.
    pub fn kill(&self, id: SandboxId) {
        if let Some(fake) = self.state().sandboxes.get(&id) {
            fake.alive.send_replace(false);
        }
    }

    /// Ends a sandbox as somebody from outside does.
    pub fn kill_from_outside(&self, id: SandboxId, what: &str) {
        if let Some(fake) = self.state().sandboxes.get_mut(&id) {
            fake.end.from_outside = Some(what.to_owned());
            fake.alive.send_replace(false);
        }
    }

    /// Ends a sandbox as one of which the runtime was told that it was killed for memory.
    pub fn kill_for_memory(&self, id: SandboxId) {
        if let Some(fake) = self.state().sandboxes.get_mut(&id) {
            fake.end.out_of_memory = true;
            fake.alive.send_replace(false);
        }
    }

    /// Says what [`Runtime::usage`] reports from now on.
    pub fn set_usage(&self, id: SandboxId, usage: Usage) {
        if let Some(fake) = self.state().sandboxes.get_mut(&id) {
            fake.usage = usage;
        }
    }

    /// Says which folders are writable, in place of `/workspace`.
    pub fn set_writable_folders(&self, folders: Vec<PathBuf>) {
        self.state().writable = Some(folders);
    }

    /// Says which walls its sandboxes have: none until then.
    pub fn set_walls(&self, walls: Vec<&'static str>) {
        self.state().walls = walls;
    }

    /// Leaves a sandbox of an earlier process for [`Runtime::reclaim`] to find.
    pub fn leave_behind(&self, id: SandboxId) {
        self.state().leftovers.push(id);
    }

    /// Returns once this is answered.
    async fn until_answered(&self, operation: &'static str) {
        let mut hanging = self.state().hanging.subscribe();
        // its sender lives as long as this
        let _ = hanging.wait_for(|all| !all.contains(operation)).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn operate<T>(
        &self,
        operation: &'static str,
        id: SandboxId,
        act: impl FnOnce(&mut Fake) -> T,
    ) -> Result<T, RuntimeError> {
        let mut state = self.state();
        state.refuse_if_failing(operation)?;
        let fake = state.sandboxes.get_mut(&id).filter(|fake| *fake.alive.borrow());
        fake.map(act).ok_or(RuntimeError::Gone(id))
    }
}

impl State {
    fn refuse_if_failing(&self, operation: &'static str) -> Result<(), RuntimeError> {
        if self.failing.contains(operation) {
            return Err(RuntimeError::host(operation, io::Error::other("made to fail")));
        }
        if self.unavailable && OF_DAEMONS.contains(&operation) {
            return Err(RuntimeError::Unavailable("made to be away".to_owned()));
        }
        if self.unsupported.contains(operation) {
            return Err(RuntimeError::Unsupported(operation.to_owned()));
        }
        Ok(())
    }
}

/// Counts one as being prepared.
struct Counted<'a>(&'a FakeRuntime);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.state().preparing.now -= 1;
    }
}

struct FakeListener {
    listener: TcpListener,
    alive: watch::Receiver<bool>,
}

#[async_trait]
impl Listener for FakeListener {
    async fn accept(&mut self) -> io::Result<BoxedStream> {
        tokio::select! {
            accepted = self.listener.accept() => Ok(Box::new(accepted?.0)),
            // an error means that the sandbox was destroyed
            _ = self.alive.wait_for(|alive| !alive) => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    fn name(&self) -> &'static str {
        self.family
    }

    async fn available(&self, _name: &RuntimeName) -> Result<(), RuntimeError> {
        self.until_answered("available").await;
        self.state().refuse_if_failing("available")
    }

    async fn prepare(
        &self,
        template: &Template,
        runtime: &RuntimeName,
        progress: &Arc<Progress>,
    ) -> Result<Prepared, RuntimeError> {
        progress.begin("pulling", 2);
        progress.advance(1);
        let mut held = {
            let mut state = self.state();
            state.preparing.count += 1;
            state.preparing.now += 1;
            state.preparing.most = state.preparing.most.max(state.preparing.now);
            state.preparing.held.subscribe()
        };
        let _counted = Counted(self);
        // its sender lives as long as this
        let _ = held.wait_for(|held| !held).await;
        let mut state = self.state();
        assert!(!state.panicking, "made to panic");
        state.refuse_if_failing("prepare")?;
        state.prepared.insert(template.reference());
        progress.advance(1);
        Ok(Prepared {
            template: template.reference(),
            runtime: runtime.clone(),
            root: Root::Host,
            user: template.user.clone(),
            writable_root: template.writable_root,
            env: BTreeMap::new(),
        })
    }

    async fn discard(&self, template: &str) -> Result<(), RuntimeError> {
        let mut state = self.state();
        state.refuse_if_failing("discard")?;
        state.prepared.remove(template);
        Ok(())
    }

    async fn prepared_templates(&self) -> Result<Vec<String>, RuntimeError> {
        self.state().refuse_if_failing("prepared_templates")?;
        Ok(self.prepared())
    }

    fn writable_folders(&self, _template: &Prepared) -> Vec<PathBuf> {
        self.state().writable.clone().unwrap_or_else(|| vec!["/workspace".into()])
    }

    async fn create(&self, id: SandboxId, spec: &SandboxSpec) -> Result<(), RuntimeError> {
        self.until_answered("create").await;
        let mut state = self.state();
        state.refuse_if_failing("create")?;
        state.created += 1;
        let fake = Fake {
            alive: watch::Sender::new(true),
            frozen: watch::Sender::new(false),
            usage: Usage::default(),
            template: spec.template.template.clone(),
            end: End::default(),
        };
        state.sandboxes.insert(id, fake);
        Ok(())
    }

    async fn connect(&self, id: SandboxId) -> Result<BoxedStream, RuntimeError> {
        self.operate("connect", id, |_| ())?;
        let (ours, agents) = tokio::io::duplex(PIPE);
        (self.agent)(id, agents);
        Ok(Box::new(ours))
    }

    async fn set_limits(&self, id: SandboxId, _limits: Limits) -> Result<(), RuntimeError> {
        self.operate("set_limits", id, |_| ())
    }

    async fn freeze(&self, id: SandboxId) -> Result<(), RuntimeError> {
        self.operate("freeze", id, |fake| {
            fake.frozen.send_replace(true);
        })
    }

    async fn thaw(&self, id: SandboxId) -> Result<(), RuntimeError> {
        self.operate("thaw", id, |fake| {
            fake.frozen.send_replace(false);
        })
    }

    async fn usage(&self, id: SandboxId) -> Result<Usage, RuntimeError> {
        let state = self.state();
        state.refuse_if_failing("usage")?;
        // also of one that has ended and is not destroyed yet
        state.sandboxes.get(&id).map(|fake| fake.usage).ok_or(RuntimeError::Gone(id))
    }

    /// A port of the host's loopback stands for one of the sandbox's.
    async fn listen(&self, id: SandboxId, _port: u16) -> Result<Port, RuntimeError> {
        let alive = self.operate("listen", id, |fake| fake.alive.subscribe())?;
        let bound = TcpListener::bind("127.0.0.1:0").await;
        let listener = bound.map_err(|error| RuntimeError::host("listen", error))?;
        let number = listener.local_addr().map_err(|error| RuntimeError::host("listen", error))?.port();
        Ok(Port { number, listener: Box::new(FakeListener { listener, alive }) })
    }

    fn walls(&self, _template: &Prepared) -> Vec<&'static str> {
        self.state().walls.clone()
    }

    async fn ended(&self, id: SandboxId) -> End {
        let alive = self.state().sandboxes.get(&id).map(|fake| fake.alive.subscribe());
        if let Some(mut alive) = alive {
            // an error means that the sandbox was destroyed: it has ended as well
            let _ = alive.wait_for(|alive| !alive).await;
        }
        self.state().sandboxes.get(&id).map(|fake| fake.end.clone()).unwrap_or_default()
    }

    async fn frozen_by_others(&self, id: SandboxId, known: bool) -> bool {
        let frozen = self.state().sandboxes.get(&id).map(|fake| fake.frozen.subscribe());
        let Some(mut frozen) = frozen else { return std::future::pending().await };
        match frozen.wait_for(|frozen| *frozen != known).await.map(|frozen| *frozen) {
            Ok(frozen) => frozen,
            // it was destroyed
            Err(_) => std::future::pending().await,
        }
    }

    async fn destroy(&self, id: SandboxId) -> Result<(), RuntimeError> {
        let mut state = self.state();
        state.refuse_if_failing("destroy")?;
        state.sandboxes.remove(&id);
        Ok(())
    }

    async fn reclaim(&self) -> Result<Vec<SandboxId>, RuntimeError> {
        let mut state = self.state();
        state.refuse_if_failing("reclaim")?;
        Ok(std::mem::take(&mut state.leftovers))
    }
}
