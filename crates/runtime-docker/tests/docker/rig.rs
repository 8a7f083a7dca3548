//! A Docker Engine that the test command has started, runtimes over it, and what is asked of an agent.

use std::{
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use cloud_sandbox_model::{Limits, RuntimeName, SandboxId, Template, template::Progress};
use cloud_sandbox_proto::agent::v1::{
    CheckRequest, CloseStdin, RunRequest, Start, agent_service_client::AgentServiceClient, run_request::Input,
    run_response::Event,
};
use cloud_sandbox_runtime::{Prepared, Runtime, SandboxSpec};
use cloud_sandbox_runtime_docker::{DockerRuntime, Options};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::time::sleep;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::setup::Docker;

/// How long anything may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// The daemon's address.
pub fn host() -> String {
    Docker::of_this_run().url
}

/// An image with a shell and Python.
pub fn image() -> String {
    Docker::of_this_run().image
}

/// What the daemon's own tool does with these arguments, which has to succeed.
pub fn docker(arguments: &[&str]) -> String {
    let (succeeded, output) = try_docker(arguments);
    assert!(succeeded, "docker {arguments:?}: {output}");
    output
}

/// The same of what may fail.
pub fn try_docker(arguments: &[&str]) -> (bool, String) {
    let done = Command::new("docker").arg("-H").arg(host()).args(arguments).output().unwrap();
    let text = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8_lossy(&text).trim().to_owned())
}

/// A server's runtime, with a state folder of its own.
pub struct Rig {
    pub runtime: Arc<DockerRuntime>,
    pub instance: String,
    pub state: Arc<TempDir>,
}

impl Rig {
    pub fn new() -> Self {
        Self::at(&host())
    }

    /// One over another address of the daemon.
    pub fn at(host: &str) -> Self {
        let instance = SandboxId::generate().to_string();
        Self::with(host, &instance, Arc::new(tempfile::tempdir().unwrap()))
    }

    /// Another server of the same data folder.
    pub fn again(&self) -> Self {
        self.again_at(&host())
    }

    /// The same over another address of the daemon.
    pub fn again_at(&self, host: &str) -> Self {
        Self::with(host, &self.instance, Arc::clone(&self.state))
    }

    fn with(host: &str, instance: &str, state: Arc<TempDir>) -> Self {
        Self::with_agent(host, instance, state, cloud_sandbox_embedded::AGENT)
    }

    /// One whose agent is another program.
    pub fn of_agent(agent: &'static [u8]) -> Self {
        let instance = SandboxId::generate().to_string();
        Self::with_agent(&host(), &instance, Arc::new(tempfile::tempdir().unwrap()), agent)
    }

    fn with_agent(host: &str, instance: &str, state: Arc<TempDir>, agent: &'static [u8]) -> Self {
        let runtime = DockerRuntime::new(Options {
            docker_host: Some(host.to_owned()),
            state_dir: state.path().join("docker"),
            instance: instance.to_owned(),
            agent,
            jailer: cloud_sandbox_embedded::JAILER,
        });
        Self { runtime: Arc::new(runtime), instance: instance.to_owned(), state }
    }

    pub async fn prepared(&self, runtime: &str) -> Prepared {
        self.prepare(&Template::docker(&image()), runtime).await.unwrap()
    }

    pub async fn prepare(
        &self,
        template: &Template,
        runtime: &str,
    ) -> Result<Prepared, cloud_sandbox_runtime::RuntimeError> {
        let runtime: RuntimeName = runtime.parse().unwrap();
        self.runtime.prepare(template, &runtime, &Arc::new(Progress::default())).await
    }

    pub async fn create(&self, runtime: &str) -> SandboxId {
        let template = self.prepared(runtime).await;
        self.create_of(template, Limits::DEFAULT).await
    }

    pub async fn create_of(&self, template: Prepared, limits: Limits) -> SandboxId {
        let id = SandboxId::generate();
        self.runtime.create(id, &SandboxSpec { template, limits }).await.unwrap();
        id
    }

    /// A client of a sandbox's agent, which has answered.
    pub async fn agent(&self, id: SandboxId) -> AgentServiceClient<Channel> {
        let runtime = Arc::clone(&self.runtime);
        let connector = tower::service_fn(move |_: Uri| {
            let runtime = Arc::clone(&runtime);
            async move { runtime.connect(id).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://agent").connect_with_connector_lazy(connector);
        let mut client = AgentServiceClient::new(channel);
        let start = Instant::now();
        loop {
            match client.check(CheckRequest {}).await {
                Ok(_) => return client,
                Err(status) => assert!(start.elapsed() < SOON, "{status}"),
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Runs a shell line in a sandbox: how it ended, and what it printed.
    pub async fn run(&self, id: SandboxId, line: &str) -> (i32, String) {
        self.run_program(id, &["/bin/sh", "-c", line]).await
    }

    /// The same of a program with its arguments.
    pub async fn run_program(&self, id: SandboxId, argv: &[&str]) -> (i32, String) {
        let argv: Vec<_> = argv.iter().map(|&argument| argument.to_owned()).collect();
        let env = [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into();
        let start = Start { argv, env, cwd: "/".into(), ..Start::default() };
        let requests = [Input::Start(start), Input::CloseStdin(CloseStdin {})];
        let requests = requests.map(|input| RunRequest { input: Some(input) });
        let mut agent = self.agent(id).await;
        let mut events = agent.run(tokio_stream::iter(requests)).await.unwrap().into_inner();
        let mut printed = Vec::new();
        while let Some(event) = events.message().await.unwrap() {
            match event.event.unwrap() {
                Event::Stdout(bytes) | Event::Stderr(bytes) => printed.extend_from_slice(&bytes),
                Event::Exited(exited) => {
                    let status = if exited.signal > 0 { 128 + exited.signal } else { exited.exit_code };
                    return (status, String::from_utf8_lossy(&printed).trim().to_owned());
                }
                Event::Started(_) | Event::Control(_) => {}
            }
        }
        panic!("it has not ended")
    }

    /// The containers of this data folder, in whatever state, by their sandboxes.
    pub fn containers(&self) -> Vec<String> {
        let label = format!("label=cloud-sandbox.instance={}", self.instance);
        let format = "{{.Label \"cloud-sandbox.sandbox\"}}";
        let listed = docker(&["ps", "--all", "--filter", &label, "--format", format]);
        listed.lines().map(str::to_owned).collect()
    }

    /// Nothing is left of any sandbox: no container and no socket.
    pub fn assert_nothing_is_left(&self) {
        assert_eq!(self.containers(), Vec::<String>::new());
        let sockets = self.state.path().join("docker/sockets");
        let left: Vec<_> = std::fs::read_dir(sockets).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// A container's name.
pub fn name(id: SandboxId) -> String {
    format!("cloud-sandbox-{id}")
}

/// Waits until something holds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < SOON, "{what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// An image made of one archive, for as long as the test lives.
pub struct Image(pub String);

impl Image {
    /// Imports an archive with changes as a Dockerfile has them.
    pub fn import(archive: &Path, changes: &[&str]) -> Self {
        let name = format!("cloud-sandbox-test:{}", SandboxId::generate());
        let mut arguments = vec!["import"];
        for change in changes {
            arguments.extend(["--change", change]);
        }
        let path = archive.display().to_string();
        arguments.extend([path.as_str(), name.as_str()]);
        docker(&arguments);
        Self(name)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        try_docker(&["rmi", "--force", &self.0]);
    }
}

/// An archive with files of these contents.
pub fn archive(folder: &Path, files: &[(&str, &str)]) -> std::path::PathBuf {
    let root = folder.join("root");
    for (path, content) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let archive = folder.join("root.tar");
    let made = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".").status().unwrap();
    assert!(made.success());
    archive
}
