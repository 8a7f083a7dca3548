//! The system in this process, for one run: a node without a warm pool, and what is needed to call it.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use cloud_sandbox_auth::{AuthLayer, Principal, Role, Tokens, principal::DEFAULT_TENANT};
use cloud_sandbox_model::{
    RuntimeName,
    template::{DOCKER, HOST},
};
use cloud_sandbox_node::Node;
use cloud_sandbox_rpc::in_process;
use cloud_sandbox_storage::MemoryTemplates;
use tempfile::TempDir;
use tonic::service::Routes;

use super::Api;
use crate::{
    machine::Machine,
    operational::Services,
    settings::{S3Settings, Settings},
    system::{self, DESTROY_PATIENCE, Scheduling},
};

const THIS_PROCESS: &str = "in-process";
/// Longer than any run.
const TOKEN_TTL: Duration = Duration::from_secs(2 * 86_400);

/// The node of this run.
pub(super) struct LocalNode {
    node: Node,
    _folder: TempDir,
}

impl LocalNode {
    /// Destroys what there still is.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        match self.node.shutdown(DESTROY_PATIENCE).await {
            0 => Ok(()),
            left => bail!("{left} sandboxes could not be destroyed"),
        }
    }
}

/// The runtimes that the run may need: that of a built-in template alone, so that nothing is pulled for the other one.
fn runtimes_of(settings: &Settings) -> Vec<String> {
    let needed = match settings.default_template.as_str() {
        HOST => RuntimeName::Linux,
        DOCKER => RuntimeName::DOCKER,
        _ => return settings.sandbox_runtimes.clone(),
    };
    settings.sandbox_runtimes.iter().filter(|name| *name == needed.family()).cloned().collect()
}

/// Starts the node and the services before it.
pub(super) async fn start(settings: &Settings) -> anyhow::Result<(Api, LocalNode)> {
    let folder = tempfile::tempdir().context("failed to make a temporary folder")?;
    let alone = Settings {
        pool_min_size: 0,
        pool_max_size: 1,
        redis_url: None,
        s3: S3Settings::default(),
        sandbox_runtimes: runtimes_of(settings),
        ..settings.clone()
    };
    let directory = system::directory(&alone).await?;
    let runtimes = Machine::open(&alone, folder.path()).await?.runtimes;
    let journal = folder.path().join("journal");
    let workspaces = system::workspaces(&alone, &folder.path().join("workspaces")).await?;
    let address = THIS_PROCESS.to_owned();
    let node = system::node(&alone, address, journal, runtimes, Arc::clone(&directory), workspaces).await?;

    let mut secret = [0_u8; 32];
    rand::fill(&mut secret);
    let tokens = Tokens::hs256(&secret);
    let services = |routes, auth| in_process(Services::new(routes, auth, Vec::new()).router);
    let own = services(system::node_routes(&node), AuthLayer::for_services(tokens.clone()));
    let services = |routes| services(routes, AuthLayer::new(tokens.clone()));
    let dial = |name| system::dial(&tokens, name, Some((THIS_PROCESS, own.clone())));
    let templates = Arc::new(MemoryTemplates::new());
    let scheduling = Scheduling::new(&alone, templates, Arc::clone(&directory), dial("scheduler"));
    let scheduler = services(scheduling.routes());
    // what runs here has a sandbox of its own
    let no_sessions = services(Routes::default());
    let exec = services(system::exec_routes(Arc::clone(&directory), dial("exec"), no_sessions));

    let user = Principal { tenant: DEFAULT_TENANT.to_owned(), user: "run".to_owned(), role: Role::User, grant: None };
    let api = Api::new(scheduler, exec, &tokens.mint(&user, TOKEN_TTL)?)?;
    Ok((api, LocalNode { node, _folder: folder }))
}
