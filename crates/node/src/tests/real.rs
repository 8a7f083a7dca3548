//! The node with the real agent, which starts real processes of this machine: no isolation, real time. What a language
//! needs may be missing here; then the node must say so.

use std::{path::Path, sync::Arc, time::Duration};

use cloud_sandbox_agent::{Agent, Children, serve_agent};
use cloud_sandbox_model::SandboxId;
use cloud_sandbox_proto::v1::{AcquireSandboxRequest, ExecuteRequest, ExecuteResponse};
use cloud_sandbox_runtime::FakeRuntime;
use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{UnixListener, UnixStream},
    time::{Instant, sleep, timeout},
};

use super::harness::*;

/// A sandbox that is a folder.
struct Bench {
    world: World,
    id: SandboxId,
    folder: TempDir,
}

impl Bench {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        tokio::spawn(serve_agent(UnixListener::bind(&socket).unwrap(), Agent::new(Children::own()).unwrap()));
        let runtime = Arc::new(FakeRuntime::new(move |_, mut ours| {
            let socket = socket.clone();
            tokio::spawn(async move {
                let mut agents = UnixStream::connect(socket).await.unwrap();
                copy_bidirectional(&mut ours, &mut agents).await
            });
        }));
        let world = World::start_on(options(1, 1), runtime, Arc::default()).await;
        let env = [("HOME".to_owned(), folder.path().join("home").to_str().unwrap().to_owned())].into();
        let id = id_of(&world.try_acquire(AcquireSandboxRequest { env, ..Default::default() }).await.unwrap());
        std::fs::create_dir(folder.path().join("workspace")).unwrap();
        Self { world, id, folder }
    }

    fn workspace(&self) -> String {
        self.folder.path().join("workspace").to_str().unwrap().to_owned()
    }

    async fn run(&self, request: ExecuteRequest) -> Result<ExecuteResponse, Failure> {
        self.world.execute(ExecuteRequest { cwd: self.workspace(), ..request }).await
    }

    async fn code(&self, language: &str, text: &str) -> Result<ExecuteResponse, Failure> {
        self.run(code(self.id, language, text)).await
    }

    async fn command(&self, line: &str) -> ExecuteResponse {
        self.run(self.line(line)).await.unwrap()
    }

    fn line(&self, line: &str) -> ExecuteRequest {
        ExecuteRequest { sandbox_id: self.id.to_string(), command: Some(line.into()), ..Default::default() }
    }

    fn write(&self, name: &str, text: &str) {
        let path = Path::new(&self.workspace()).join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// The process id that a line has written to a file.
    fn pid_in(&self, name: &str) -> Option<String> {
        let text = std::fs::read_to_string(Path::new(&self.workspace()).join(name)).ok()?;
        text.strip_suffix('\n').map(str::to_owned)
    }

    /// Waits until a process has ended: it is not there, or only its remains are.
    async fn until_ended(pid: &str) {
        let runs = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
        };
        let began = Instant::now();
        while runs() {
            assert!(began.elapsed() < Duration::from_secs(30), "{pid} goes on");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Runs code that must print `out` and exit with `exit_code`, or be refused because `program` is not here.
    async fn check(&self, language: &str, program: &str, text: &str, out: &str, exit_code: i32) {
        let here = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/go/bin"]
            .iter()
            .any(|folder| Path::new(folder).join(program).exists());
        match self.code(language, text).await {
            Ok(answer) => {
                assert_eq!((answer.stdout.as_str(), answer.exit_code), (out, exit_code), "{language}: {answer:?}");
                let staged = format!("/tmp/.run-{}", answer.execution_id);
                assert!(!Path::new(&staged).exists(), "{staged} is left");
            }
            Err(failure) => {
                assert_eq!(failure.words(), ("FAILED_PRECONDITION", "LANGUAGE_UNAVAILABLE"), "{failure:?}");
                assert!(!here, "{program} is here: {failure:?}");
                assert!(failure.message.contains(program));
            }
        }
    }
}

#[tokio::test]
async fn scripts_run_where_they_are_told_and_exit_as_they_will() {
    let bench = Bench::start().await;
    bench.write("helper.py", "value = 'helped'");
    let python = "import helper, os, sys\nprint(helper.value, os.getcwd() == os.environ['PYTHONPATH'])\nsys.exit(3)";
    bench.check("python", "python3", python, "helped True\n", 3).await;
    bench.check("bash", "bash", "a=(1 2)\necho ${#a[@]}\nexit 4", "2\n", 4).await;
    bench.check("sh", "sh", "echo $0 | grep -c main.sh\nexit 5", "1\n", 5).await;
    bench.check("perl", "perl", "print 6*7; exit 6;", "42", 6).await;
    bench.check("ruby", "ruby", "puts 6*7; exit 7", "42\n", 7).await;
    bench.check("php", "php", "<?php echo 6*7; exit(8);", "42", 8).await;
    bench.check("lua", "lua", "print(6*7) os.exit(9)", "42\n", 9).await;
    let go = "package main\nimport (\"fmt\"; \"os\")\nfunc main() { fmt.Println(6*7); os.Exit(10) }";
    bench.check("go", "go", go, "42\n", 10).await;
}

#[tokio::test]
async fn javascript_runs_as_a_script_or_as_a_module() {
    let bench = Bench::start().await;
    bench.write("helper.js", "module.exports = 'helped'");
    bench.write("node_modules/found/index.js", "module.exports = 'found'");
    let script = "const fs = require('fs'), file = 1;
        if (require.main === module) console.log(require('./helper'), require('found'), process.argv.length);
        console.log(__dirname === process.cwd());
        process.exit(3)";
    bench.check("javascript", "node", script, "helped found 2\ntrue\n", 3).await;
    let module = "import fs from 'fs'; import found from 'found';
        console.log(typeof fs.readFileSync, await Promise.resolve(found)); process.exitCode = 4";
    bench.check("node", "node", module, "function found\n", 4).await;
    if let Ok(answer) = bench.code("js", "\nthrow new Error('boom')").await {
        assert_eq!(answer.exit_code, 1);
        assert!(answer.stderr.contains("main.js:2") && answer.stderr.contains("boom"), "{}", answer.stderr);
    }
    if let Ok(answer) = bench.code("js", "import('fs').then(() => console.log('later'))").await {
        assert_eq!((answer.stdout.as_str(), answer.stderr.as_str()), ("later\n", ""));
    }
}

#[tokio::test]
async fn shell_line_has_its_input_signal_and_bounds() {
    let bench = Bench::start().await;
    let answer = bench.command("pwd; echo err >&2; exit 7").await;
    assert_eq!((answer.stdout.trim_end(), answer.stderr.as_str()), (bench.workspace().as_str(), "err\n"));
    assert_eq!(answer.exit_code, 7);

    let answer = bench.command("kill -9 $$").await;
    assert_eq!((answer.exit_code, answer.signal.as_str()), (137, "SIGKILL"));

    let stdin = "x".repeat(1024 * 1024);
    let answer = bench.run(ExecuteRequest { stdin, ..bench.line("wc -c") }).await.unwrap();
    assert_eq!(answer.stdout.trim(), "1048576");

    let answer = bench.command("head -c 20000000 /dev/zero").await;
    assert_eq!((answer.stdout.len(), answer.stdout_bytes, answer.stdout_truncated), (1_048_576, 20_000_000, true));
    assert!(answer.wall_time_ms > 0.0 && answer.peak_memory_bytes > 0);
}

#[tokio::test]
async fn timeout_ends_everything_that_was_started() {
    let bench = Bench::start().await;
    let began = Instant::now();
    let line = "sleep 600 & echo $! > child; sh -c 'sleep 600 & echo $! > grandchild; wait' & echo $$ > own; sleep 600";
    let stdin = "unread".repeat(100_000);
    let request = ExecuteRequest { timeout_ms: 5000, stdin, ..bench.line(line) };
    let answer = bench.run(request).await.unwrap();
    assert!(answer.timed_out && answer.signal == "SIGKILL", "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(60));
    for name in ["child", "grandchild", "own"] {
        Bench::until_ended(&bench.pid_in(name).expect(name)).await;
    }
}

#[tokio::test]
async fn hang_up_ends_everything_that_was_started() {
    let bench = Bench::start().await;
    let begun = async {
        loop {
            if let (Some(child), Some(own)) = (bench.pid_in("child"), bench.pid_in("own")) {
                return [child, own];
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let pids = tokio::select! {
        answer = bench.run(bench.line("sleep 600 & echo $! > child; echo $$ > own; sleep 600")) => panic!("{answer:?}"),
        pids = timeout(Duration::from_secs(30), begun) => pids.unwrap(),
    };
    for pid in pids {
        Bench::until_ended(&pid).await;
    }
}

/// Not a test but a measurement: `cargo nextest run -p cloud-sandbox-node --run-ignored only measure --no-capture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn measure_what_an_execution_and_a_line_take() {
    let bench = Bench::start().await;
    let median = |mut times: Vec<Duration>| {
        times.sort();
        (times[times.len() / 2], times[times.len() * 99 / 100])
    };
    let mut times = Vec::new();
    for _ in 0..500 {
        let began = Instant::now();
        bench.run(argv(bench.id, &["/bin/true"])).await.unwrap();
        times.push(began.elapsed());
    }
    println!("execute /bin/true: p50, p99 = {:?}", median(times));

    let request = ExecuteRequest { cwd: bench.workspace(), ..argv(bench.id, &["cat"]) };
    let mut talk = super::interactive::Talk::start(&bench.world, request, None).await;
    let mut times = Vec::new();
    for number in 0..500 {
        let began = Instant::now();
        talk.send(cloud_sandbox_proto::v1::exec_request::Input::Stdin(format!("{number}\n").into())).await;
        talk.text().await;
        times.push(began.elapsed());
    }
    println!("line through cat and back: p50, p99 = {:?}", median(times));
    drop(talk);

    let request = ExecuteRequest { cwd: bench.workspace(), ..bench.line("head -c 268435456 /dev/zero | tr '\\0' x") };
    let began = Instant::now();
    let name = bench.world.begin(request).await.unwrap().execution_id;
    let (events, exited) = bench.world.attach(bench.id, &name, (0, 0)).await.unwrap().all().await;
    let rate = 256.0 / began.elapsed().as_secs_f64();
    println!("256 MiB streamed: {rate:.0} MiB/s, {} events, {:?}", events.len(), exited.unwrap().stdout_bytes);
}
