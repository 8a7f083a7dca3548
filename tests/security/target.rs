//! What is attacked: a sandbox, of a server that the attacks of a theme share, or, to prove that an attack works, the bare
//! host.

use std::{
    process::Command,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    harness::{Api, BINARY, Server, left_of},
    host::Host,
    inside::{self, GOT_THROUGH, Tries},
    leftovers::Leftovers,
    runtimes::Runtime,
};

/// Who runs the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    Root,
    /// an ordinary user without a cgroup
    Somebody,
}

impl User {
    pub const ALL: [Self; 2] = [Self::Root, Self::Somebody];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Somebody => "user",
        }
    }

    /// The user's id on the host, of this test alone, so that its processes can be counted.
    fn uid(self) -> u32 {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        match self {
            Self::Root => 0,
            Self::Somebody => 200_000 + std::process::id() % 100_000 * 1_000 + NEXT.fetch_add(1, Ordering::Relaxed),
        }
    }
}

/// How long anything may take that is meant to answer in no time. Generous: it tells a hang from a busy machine.
pub const PROMPTLY: Duration = Duration::from_secs(40);

/// A host with a server, under one attack after the other.
pub struct Ground {
    host: Arc<Host>,
    tokio: Arc<tokio::runtime::Runtime>,
    server: Arc<Server>,
    attacked: u32,
}

/// What is attacked.
pub struct Target {
    /// what lies on the host
    pub host: Arc<Host>,
    walled: Option<Walled>,
}

/// Who attacks, from sandboxes of a server.
pub struct Walled {
    pub server: Arc<Server>,
    /// the attacker
    pub api: Api,
    id: OnceLock<String>,
    tokio: Arc<tokio::runtime::Runtime>,
    /// every sandbox of the attack, with whose it is
    acquired: Mutex<Vec<(Api, String)>>,
}

impl Ground {
    /// A new server.
    pub fn new(runtime: &Runtime, user: User) -> Self {
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let host = Host::of(user.uid());
        let server = tokio.block_on(async {
            let folder = tempfile::tempdir_in(host.folder()).unwrap();
            std::os::unix::fs::chown(folder.path(), Some(host.uid), Some(host.uid)).unwrap();
            let hosts = host.internet.hosts();
            let settings = [
                ("HOST_SECRET", host.secret.as_str()),
                ("POOL_MIN_SIZE", "0"),
                ("CLOUD_SANDBOX_TEST_UPSTREAM", hosts.as_str()),
            ];
            Server::launched_on(runtime.name, host.command(BINARY), folder, &settings).await
        });
        Self { host: Arc::new(host), tokio: Arc::new(tokio), server: Arc::new(server), attacked: 0 }
    }

    /// The sandboxes of an attacker who has not been there before.
    pub fn target(&mut self) -> Target {
        self.attacked += 1;
        self.host.internet.forget();
        let walled = Walled {
            api: self.tokio.block_on(self.server.user(&format!("eve-{}", self.attacked))),
            server: Arc::clone(&self.server),
            tokio: Arc::clone(&self.tokio),
            id: OnceLock::new(),
            acquired: Mutex::default(),
        };
        Target { host: Arc::clone(&self.host), walled: Some(walled) }
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// Fails unless the server ends well, and nothing of it is left.
    pub fn finish(self) {
        let leftovers = Leftovers::of(self.server.pid(), self.host.folder().to_owned(), self.host.uid);
        self.server.signal("TERM");
        let mut server = Arc::into_inner(self.server).expect("no attack goes on");
        let ended = server.wait();
        let log = server.log();
        assert!(ended.success() && !log.contains("panicked"), "the server ended with {ended}:\n{log}");
        leftovers.assert_gone(self.host.process());
    }
}

impl Target {
    /// The bare host, as root.
    pub fn unwalled() -> Self {
        Self { host: Arc::new(Host::of(0)), walled: None }
    }

    /// The sandbox, for attacks that are never run without one.
    pub fn walled(&self) -> &Walled {
        self.walled.as_ref().expect("this attack is not one of those that are proved without a sandbox")
    }

    /// Whether this is a sandbox rather than the bare host.
    pub fn has_walls(&self) -> bool {
        self.walled.is_some()
    }

    /// Tries something in Python, with what [`inside`] gives. Nothing that it prints may hold the secret.
    pub fn tries(&self, attack: &str) -> Tries {
        Tries::of(self.python(attack))
    }

    /// The same, which must be refused in every part.
    pub fn refused(&self, attack: &str) {
        self.tries(attack).all_refused();
    }

    /// Runs Python, and gives what it printed on both streams.
    pub fn python(&self, attack: &str) -> String {
        let program = inside::program(attack);
        let printed = match &self.walled {
            Some(walled) => text(&walled.execute(json!({"code": program, "language": "python"}))),
            None => {
                let ran =
                    Command::new("python3").args(["-c", &program]).current_dir(self.host.folder()).output().unwrap();
                String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned()
            }
        };
        self.told_nothing(&printed);
        printed
    }

    /// Runs a shell line in the sandbox, and gives what it printed on both streams.
    pub fn shell(&self, line: &str) -> String {
        let printed = text(&self.walled().execute(json!({"command": line})));
        self.told_nothing(&printed);
        printed
    }

    /// Fails when what came from inside holds the secret.
    pub fn told_nothing(&self, text: &str) {
        assert!(!text.contains(&self.host.secret), "{GOT_THROUGH}: the secret was read\n{text:.3000}");
    }

    /// Fails unless nothing happened to the host, and nothing is left of the sandboxes once they are released.
    pub fn finish(self) {
        if let Some(walled) = self.walled {
            walled.finish();
        }
        self.host.assert_unharmed();
    }
}

/// Another tenant, whom nothing must happen to.
pub struct Neighbour<'a> {
    walled: &'a Walled,
    pub api: Api,
    pub id: String,
}

impl Walled {
    /// Waits for something asynchronous.
    pub fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        self.tokio.block_on(what)
    }

    /// The same, which must not take long.
    pub fn promptly<T>(&self, what: impl Future<Output = T>) -> T {
        self.wait(async { tokio::time::timeout(PROMPTLY, what).await }).expect("the server answers")
    }

    /// The sandbox that the attacker has, acquired when it is first asked for: not by what waits already.
    pub fn id(&self) -> &str {
        self.id.get_or_init(|| self.acquire(json!({})))
    }

    /// Runs something in the attacker's sandbox, which must have an answer.
    pub fn execute(&self, what: Value) -> Value {
        self.wait(self.api.execute(self.id(), what))
    }

    /// Gives the attacker another sandbox beside the one at hand.
    pub fn acquire(&self, request: Value) -> String {
        let id = self.wait(self.api.acquire_with(request));
        self.acquired.lock().unwrap().push((self.api.clone(), id.clone()));
        id
    }

    /// Releases a sandbox, of which then nothing is left.
    pub fn release(&self, id: &str) {
        self.wait(self.api.release(id));
        assert_eq!(left_of(id), Vec::<String>::new());
    }

    /// A sandbox of another user on the same node.
    pub fn neighbour(&self) -> Neighbour<'_> {
        let api = self.wait(self.server.user("ada"));
        let id = self.wait(api.acquire());
        self.acquired.lock().unwrap().push((api.clone(), id.clone()));
        Neighbour { walled: self, api, id }
    }

    /// Fails unless the sandbox still works.
    pub fn assert_answers(&self) {
        let answer = self.promptly(self.api.shell(self.id(), "echo fine"));
        assert_eq!(answer, "fine\n");
    }

    /// Releases what is still there: some attacks end or release their sandbox.
    fn finish(self) {
        for (api, id) in self.acquired.lock().unwrap().iter() {
            let released = api.post("/api/v1/sandbox/release", json!({"sandbox_id": id}));
            let (status, answer) = self.promptly(released);
            assert!([200, 404].contains(&status), "{status} {answer}");
            assert_eq!(left_of(id), Vec::<String>::new());
        }
    }
}

impl Neighbour<'_> {
    /// Runs Python in the neighbour's sandbox.
    pub fn python(&self, code: &str) -> String {
        let code = inside::program(code);
        self.walled.wait(self.api.python(&self.id, &code))
    }

    /// Fails unless the neighbour's sandbox and the API answer.
    pub fn assert_answers(&self) {
        self.walled.wait(async {
            let answer = tokio::time::timeout(PROMPTLY, self.api.shell(&self.id, "echo calm")).await;
            assert_eq!(answer.expect("the neighbour answers"), "calm\n");
            let ready = tokio::time::timeout(PROMPTLY, self.api.get("/readyz")).await;
            assert_eq!(ready.expect("the API answers").0, 200);
        });
    }

    /// Keeps asking while `bomb` goes off in another thread, at least once after it began.
    pub fn answers_during<T: Send>(&self, bomb: impl FnOnce() -> T + Send) -> T
    where
        Self: Sync,
    {
        thread::scope(|scope| {
            let bomb = scope.spawn(bomb);
            loop {
                let over = bomb.is_finished();
                self.assert_answers();
                if over {
                    return bomb.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                }
                thread::sleep(Duration::from_millis(100));
            }
        })
    }
}

/// What an execution printed on both streams.
pub fn text(answer: &Value) -> String {
    format!("{}{}", answer["stdout"].as_str().unwrap_or_default(), answer["stderr"].as_str().unwrap_or_default())
}
