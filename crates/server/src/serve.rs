//! What each serving mode is made of.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};
use cloud_sandbox_auth::{AuthLayer, Role, Tokens};
use cloud_sandbox_gateway_rest::{Check, Gateway, Options as GatewayOptions, Upstreams};
use cloud_sandbox_node::{Node, Runtimes};
use cloud_sandbox_rpc::{Upstream, connect, in_process};
use cloud_sandbox_session::Parts;
use cloud_sandbox_storage::{Directory, WorkspaceStore};
use cloud_sandbox_telemetry::Metrics;
use http::{
    HeaderMap, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use tonic::service::Routes;
use tower::ServiceExt;

use crate::{
    data_dir::DataDir,
    limits,
    listener::Port,
    machine::Machine,
    operational::{self, Services, Store},
    server::Server,
    settings::{Mode, Resolved, Settings},
    signals::Signals,
    system::{self, Database, Scheduling, Sessions},
    token,
};

/// The longest execution (86400 s) with time for the calls around it.
const CALL_MAX: Duration = Duration::from_secs(86_400 + 60);
/// The node's name in the directory when nobody else reads that.
const THIS_PROCESS: &str = "in-process";
/// The folder of what executions printed.
const JOURNAL_DIR: &str = "journal";
/// The file of sessions and templates.
const DATABASE_FILE: &str = "sessions.db";
/// The folder of checkpoints.
const WORKSPACES_DIR: &str = "workspaces";

/// Runs a serving mode until a signal ends it.
pub async fn serve(resolved: &Resolved, metrics: Metrics) -> anyhow::Result<()> {
    let signals = Signals::listen()?;
    let settings = &resolved.settings;
    let data_dir = DataDir::open(&settings.data_dir)?;
    // held until nothing of this process is left
    let _lock = match resolved.mode {
        Mode::Serve | Mode::Node => Some(data_dir.lock()?),
        _ => None,
    };
    let tokens = token::tokens(settings, &data_dir)?;
    let start = Start { resolved, settings, tokens, data_dir, metrics };
    let server = match resolved.mode {
        Mode::Gateway => start.gateway_alone().await?,
        Mode::Node => start.node_alone().await?,
        Mode::Scheduler | Mode::SessionManager | Mode::Exec => start.control_plane_role().await?,
        _ => start.everything().await?,
    };
    server.run(signals).await
}

/// What every mode starts from.
struct Start<'a> {
    resolved: &'a Resolved,
    settings: &'a Settings,
    tokens: Tokens,
    data_dir: DataDir,
    metrics: Metrics,
}

impl Start<'_> {
    /// Everything in one process. The parts call one another without a socket between them.
    async fn everything(&self) -> anyhow::Result<Server> {
        let settings = self.settings;
        let edge = Port::bind(settings.listen, "listen").await?;
        let grpc = Port::bind(settings.grpc_listen, "grpc_listen").await?;
        let directory = system::directory(settings).await?;
        let workspaces = self.workspaces().await?;
        let machine = Machine::open(settings, self.data_dir.path()).await?;
        let cgroups = machine.cgroups();
        let shared = settings.redis_url.is_some();
        let address = if shared { self.advertised(grpc.address()) } else { THIS_PROCESS.to_owned() };
        let node = self.node(address.clone(), machine.runtimes, &directory, &workspaces).await?;

        let of_services = AuthLayer::for_services(self.tokens.clone());
        let stores = vec![shared_in(&directory), saved_in(&workspaces)];
        let nodes = Services::new(system::node_routes(&node), of_services, stores);
        let services = |routes, stores| Services::new(routes, AuthLayer::new(self.tokens.clone()), stores);
        let own = in_process(nodes.router.clone());
        let dial = |name| system::dial(&self.tokens, name, Some((&address, own.clone())));
        let database = self.database().await?;
        let scheduling = Scheduling::new(settings, database.templates, Arc::clone(&directory), dial("scheduler"));
        let scheduler = services(scheduling.routes(), vec![shared_in(&directory), listed_in(&scheduling)]);
        let upstream = |services: &Services| in_process(services.router.clone());
        let sessions = self.sessions(Parts {
            store: database.sessions,
            workspaces: Arc::clone(&workspaces),
            directory: Arc::clone(&directory),
            dial: dial("session-manager"),
            scheduler: upstream(&scheduler),
        })?;
        let session = sessions.routes();
        let session = services(session, vec![shared_in(&directory), kept_in(&sessions), saved_in(&workspaces)]);
        let exec = system::exec_routes(Arc::clone(&directory), dial("exec"), upstream(&session));
        let exec = services(exec, vec![shared_in(&directory)]);

        let checks = [("scheduler", &scheduler), ("session-manager", &session), ("exec", &exec)]
            .map(|(name, services)| services.readiness.check(name));
        let upstreams =
            Upstreams { scheduler: upstream(&scheduler), session: upstream(&session), exec: upstream(&exec) };
        let gateway = self.gateway(upstreams, checks.to_vec())?;
        // other servers on the same Redis reach this node here
        let node_calls = shared.then(|| nodes.router.clone());
        self.announce(edge.address(), Some(grpc.address()), Some(cgroups));
        let readiness = [nodes, scheduler, session, exec].map(|services| services.readiness).to_vec();
        Ok(Server {
            ports: vec![(edge, gateway.router()), (grpc, grpc_only(&gateway, node_calls, &self.tokens))],
            gateway: Some(gateway),
            readiness,
            scheduling: Some(scheduling),
            sessions: Some(sessions),
            node: Some(node),
            drain_timeout: settings.drain_timeout(),
        })
    }

    fn sessions(&self, parts: Parts) -> anyhow::Result<Sessions> {
        Sessions::new(self.settings, parts)
    }

    /// Where sessions and templates lie.
    async fn database(&self) -> anyhow::Result<Database> {
        system::database(self.settings, &self.data_dir.join(DATABASE_FILE)).await
    }

    async fn gateway_alone(&self) -> anyhow::Result<Server> {
        let settings = self.settings;
        let port = Port::bind(settings.listen, "listen").await?;
        let upstreams = Upstreams {
            scheduler: remote(&settings.scheduler_url)?,
            session: remote(&settings.session_url)?,
            exec: remote(&settings.exec_url)?,
        };
        let checks =
            [("scheduler", &upstreams.scheduler), ("session-manager", &upstreams.session), ("exec", &upstreams.exec)]
                .map(|(name, upstream)| Check::grpc_health(name, upstream.clone()));
        let gateway = self.gateway(upstreams, checks.to_vec())?;
        self.announce(port.address(), None, None);
        Ok(Server {
            ports: vec![(port, gateway.router())],
            gateway: Some(gateway),
            readiness: Vec::new(),
            scheduling: None,
            sessions: None,
            node: None,
            drain_timeout: settings.drain_timeout(),
        })
    }

    async fn node_alone(&self) -> anyhow::Result<Server> {
        let settings = self.settings;
        let port = Port::bind(settings.grpc_listen, "grpc_listen").await?;
        let directory = system::directory(settings).await?;
        let workspaces = self.workspaces().await?;
        let machine = Machine::open(settings, self.data_dir.path()).await?;
        let cgroups = machine.cgroups();
        let address = self.advertised(port.address());
        let node = self.node(address, machine.runtimes, &directory, &workspaces).await?;
        let routes = system::node_routes(&node);
        self.announce(port.address(), None, Some(cgroups));
        let stores = vec![shared_in(&directory), saved_in(&workspaces)];
        let mut server = self.role(port, routes, AuthLayer::for_services(self.tokens.clone()), stores)?;
        server.node = Some(node);
        Ok(server)
    }

    async fn control_plane_role(&self) -> anyhow::Result<Server> {
        let settings = self.settings;
        let port = Port::bind(settings.grpc_listen, "grpc_listen").await?;
        let directory = system::directory(settings).await?;
        let dial = |name| system::dial(&self.tokens, name, None);
        let mut stores = vec![shared_in(&directory)];
        let (mut scheduling, mut sessions) = (None, None);
        let routes = match self.resolved.mode {
            Mode::Scheduler => {
                let templates = self.database().await?.templates;
                let own = Scheduling::new(settings, templates, Arc::clone(&directory), dial("scheduler"));
                stores.push(listed_in(&own));
                scheduling.insert(own).routes()
            }
            Mode::SessionManager => {
                let workspaces = self.workspaces().await?;
                let own = self.sessions(Parts {
                    store: self.database().await?.sessions,
                    workspaces: Arc::clone(&workspaces),
                    directory: Arc::clone(&directory),
                    dial: dial("session-manager"),
                    scheduler: remote(&settings.scheduler_url)?,
                })?;
                stores.extend([kept_in(&own), saved_in(&workspaces)]);
                sessions.insert(own).routes()
            }
            _ => {
                let session = remote(&settings.session_url)?;
                system::exec_routes(Arc::clone(&directory), dial("exec"), session)
            }
        };
        self.announce(port.address(), None, None);
        let server = self.role(port, routes, AuthLayer::new(self.tokens.clone()), stores)?;
        Ok(Server { scheduling, sessions, ..server })
    }

    /// A process that serves `routes` on one port.
    fn role(&self, port: Port, routes: Routes, auth: AuthLayer, stores: Vec<Store>) -> anyhow::Result<Server> {
        let services = Services::new(operational::with_reflection(routes)?, auth, stores);
        let router = operational::port(&services, self.metrics.clone());
        Ok(Server {
            ports: vec![(port, router)],
            gateway: None,
            readiness: vec![services.readiness],
            scheduling: None,
            sessions: None,
            node: None,
            drain_timeout: self.settings.drain_timeout(),
        })
    }

    fn gateway(&self, upstreams: Upstreams, readiness: Vec<Check>) -> anyhow::Result<Gateway> {
        let settings = self.settings;
        let metrics = self.metrics.clone();
        Gateway::new(GatewayOptions {
            tokens: self.tokens.clone(),
            issuer: token::issuer(self.resolved, &self.tokens),
            rate_limit: limits::rate(settings),
            shared_limits: limits::shared(settings)?,
            max_body_bytes: usize::try_from(settings.max_body_bytes).unwrap_or(usize::MAX),
            max_timeout: CALL_MAX,
            metrics: Arc::new(move || metrics.render()),
            upstreams,
            readiness,
        })
        .context("failed to build the gateway")
    }

    /// The node of this process.
    async fn node(
        &self,
        address: String,
        runtimes: Runtimes,
        directory: &Arc<dyn Directory>,
        workspaces: &Arc<dyn WorkspaceStore>,
    ) -> anyhow::Result<Node> {
        let journal = self.data_dir.join(JOURNAL_DIR);
        system::node(self.settings, address, journal, runtimes, Arc::clone(directory), Arc::clone(workspaces)).await
    }

    /// Where checkpoints lie.
    async fn workspaces(&self) -> anyhow::Result<Arc<dyn WorkspaceStore>> {
        system::workspaces(self.settings, &self.data_dir.join(WORKSPACES_DIR)).await
    }

    /// Where others reach the gRPC of this process.
    fn advertised(&self, listening: SocketAddr) -> String {
        self.settings.advertise_address.clone().unwrap_or_else(|| format!("http://{listening}"))
    }

    /// The line in the log by which an operator knows what runs.
    fn announce(&self, listening: SocketAddr, grpc: Option<SocketAddr>, cgroups: Option<String>) {
        let settings = self.settings;
        let data_dir = self.data_dir.path().display();
        let version = env!("CARGO_PKG_VERSION");
        let mode = self.resolved.mode.name();
        let grpc = grpc.map(tracing::field::display);
        let directory = if settings.redis_url.is_some() { "redis" } else { "memory" };
        let workspaces = if settings.s3.bucket.is_some() { "s3" } else { "files" };
        let (pool_min, pool_max) = (settings.pool_min_size, settings.pool_max_size);
        for (name, instead) in &self.resolved.unheeded {
            tracing::warn!("{name} has no effect: {instead}");
        }
        match cgroups {
            Some(cgroups) => tracing::info!(
                version, %data_dir, grpc, directory, workspaces, pool_min, pool_max,
                runtimes = settings.sandbox_runtimes.join(","),
                cgroups,
                "{mode} is ready on http://{listening}"
            ),
            None => tracing::info!(version, %data_dir, "{mode} is ready on http://{listening}"),
        }
    }
}

/// The directory as what a role cannot do without.
fn shared_in(directory: &Arc<dyn Directory>) -> Store {
    Store::Directory(Arc::clone(directory))
}

/// The same of the sessions.
fn kept_in(sessions: &Sessions) -> Store {
    Store::Sessions(Arc::clone(&sessions.store))
}

/// The same of templates.
fn listed_in(scheduling: &Scheduling) -> Store {
    Store::Templates(Arc::clone(&scheduling.store))
}

/// The same of checkpoints.
fn saved_in(workspaces: &Arc<dyn WorkspaceStore>) -> Store {
    Store::Workspaces(Arc::clone(workspaces))
}

/// A service of another process.
fn remote(url: &str) -> anyhow::Result<Upstream> {
    connect(url).map_err(|error| anyhow::anyhow!("{url} cannot be called: {error}"))
}

/// The edge for gRPC clients alone, and this node for the control plane of other servers where there are any.
fn grpc_only(gateway: &Gateway, nodes: Option<Router>, tokens: &Tokens) -> Router {
    let tokens = tokens.clone();
    gateway.router().layer(from_fn(move |request, next| grpc_call(nodes.clone(), tokens.clone(), request, next)))
}

async fn grpc_call(nodes: Option<Router>, tokens: Tokens, request: Request, next: Next) -> Response {
    let content_type = request.headers().get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    if !content_type.starts_with(b"application/grpc") {
        let text = "this port speaks gRPC alone; REST is on the other one\n";
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, text).into_response();
    }
    match nodes {
        Some(nodes) if is_of_a_service(request.headers(), &tokens) => {
            nodes.oneshot(request).await.unwrap_or_else(|never| match never {})
        }
        _ => next.run(request).await,
    }
}

/// Whether a call comes from a service of ours. The node's own layer looks at it again.
fn is_of_a_service(headers: &HeaderMap, tokens: &Tokens) -> bool {
    let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|header| header.split_once(' ')).map(|(_, token)| token.trim());
    token.is_some_and(|token| tokens.verify(token).is_ok_and(|principal| principal.role == Role::Service))
}
