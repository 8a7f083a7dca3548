//! A Docker Engine of one test alone, which the test may stop, kill and start again: `tests/setup/own_engine.py`.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::Value;

use crate::docker::Docker;

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/setup/own_engine.py");

/// An engine; dropped, also by a test that fails, it goes with all that it had.
pub struct OwnEngine {
    program: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// where it is; of the images it has the bare one alone
    pub docker: Docker,
    folder: PathBuf,
}

impl OwnEngine {
    /// An engine whose daemon has these settings beside the usual.
    pub fn start(settings: &Value) -> Self {
        let mut command = Command::new(PROGRAM);
        command.arg(settings.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        // a runner that ends the test by its group leaves this to remove the engine
        command.process_group(0);
        let mut program = command.spawn().expect("python3 runs");
        let input = program.stdin.take();
        let output = BufReader::new(program.stdout.take().expect("it is piped"));
        let of_this_run = Docker::of_this_run();
        let docker = Docker { image: of_this_run.bare_image.clone(), ..of_this_run };
        let mut engine = Self { program, input, output, docker, folder: PathBuf::new() };
        let told = engine.answer();
        let text = |name: &str| told[name].as_str().expect("it says where it is").to_owned();
        engine.docker.url = text("url");
        engine.folder = text("folder").into();
        engine
    }

    /// The path of its socket.
    pub fn socket(&self) -> &str {
        self.docker.url.trim_start_matches("unix://")
    }

    /// Does one of `stop`, `kill` and `start`, and returns when it is done.
    pub fn tell(&mut self, word: &str) {
        let input = self.input.as_mut().expect("it is open until the end");
        writeln!(input, "{word}").expect("it reads what it is told");
        assert_eq!(self.answer()["done"], word);
    }

    /// What it has on the host: cgroups of containers, in any hierarchy, and their mounts.
    pub fn left(&self) -> Vec<String> {
        let name = self.folder.file_name().expect("a folder has a name");
        let roots = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        let groups = roots.chain([PathBuf::from("/sys/fs/cgroup")]).map(|root| root.join(name));
        let inside = groups.flat_map(|group| fs::read_dir(group).into_iter().flatten().flatten());
        let inside = inside.filter(|entry| entry.path().is_dir()).map(|entry| entry.path().display().to_string());
        inside.chain(self.mounts()).collect()
    }

    /// How many processes a container of this id has.
    pub fn processes(&self, container: &Value) -> usize {
        let id = container.as_str().expect("a container has an id");
        let groups = self.left().into_iter().filter(|path| path.ends_with(id));
        let members = groups.filter_map(|group| fs::read_to_string(format!("{group}/cgroup.procs")).ok());
        // each process is in a group of each hierarchy
        members.map(|members| members.lines().count()).max().unwrap_or_default()
    }

    fn mounts(&self) -> Vec<String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("a process may read its own mounts");
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let inside =
            |point: &&str| Path::new(point).strip_prefix(&self.folder).is_ok_and(|rest| rest.components().count() > 1);
        points.filter(inside).map(str::to_owned).collect()
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it can be read");
        serde_json::from_str(&line)
            .expect("it answers, or has said why not (CLOUD_SANDBOX_TEST_SKIP=docker leaves this out)")
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.program.wait();
    }
}
