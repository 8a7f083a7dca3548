//! A PostgreSQL server of one test alone, in a folder that goes with it. The tests of the store and the black-box tests
//! both take it in.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Whom the server's database belongs to.
const USER: &str = "ada";
/// The password; nothing that a test prints or logs may hold it.
pub const PASSWORD: &str = "hunter2-of-the-database";
const START_WITHIN: Duration = Duration::from_secs(30);
/// Whom the server runs as where the tests run as root, which PostgreSQL refuses to.
const UNPRIVILEGED: [&str; 2] = ["postgres", "nobody"];

/// A server; dropped, also by a test that fails, it ends. It ends with the test's process too.
pub struct PostgresServer {
    child: Child,
    port: u16,
    /// the user and the group to run as
    owner: Option<(u32, u32)>,
    settings: Vec<String>,
    folder: TempDir,
}

/// Whether whoever runs the tests has asked to leave out what needs PostgreSQL.
pub fn left_out() -> bool {
    let skipped = std::env::var("CLOUD_SANDBOX_TEST_SKIP").unwrap_or_default();
    let skipped = skipped.split(',').any(|name| name.trim() == "postgres");
    if skipped {
        eprintln!("skipped: CLOUD_SANDBOX_TEST_SKIP names postgres");
    }
    skipped
}

impl PostgresServer {
    /// A new server on a free port.
    pub fn start() -> Self {
        Self::with(|_| Vec::new())
    }

    /// A new server with settings (`name=value`) of its own; their files may be put into the folder that they are given.
    pub fn with(settings: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().expect("there is room for a folder");
        let root = id(&["-u"]) == Some(0);
        let owner = root.then(|| {
            let user = UNPRIVILEGED.into_iter().find(|user| id(&["-u", user]).is_some());
            let user = user.expect("PostgreSQL does not run as root, and there is no user postgres or nobody");
            (id(&["-u", user]).expect("it has an id"), id(&["-g", user]).expect("it has a group"))
        });
        let settings = settings(folder.path());
        fs::write(folder.path().join("password"), PASSWORD).expect("the folder can be written");
        for path in fs::read_dir(folder.path()).expect("it is there").flatten().map(|entry| entry.path()) {
            own(&path, owner);
        }
        own(folder.path(), owner);
        let made = program("initdb", folder.path(), owner)
            .args(["--pgdata=data", "--username", USER, "--pwfile=password", "--auth=scram-sha-256"])
            .args(["--encoding=UTF8", "--no-locale", "--no-sync"])
            .output()
            .expect("initdb runs (CLOUD_SANDBOX_TEST_SKIP=postgres leaves these tests out)");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has free ports");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        drop(listener);
        let child = spawn(folder.path(), owner, port, &settings);
        let mut server = Self { child, port, owner, settings, folder };
        server.wait_until_it_answers();
        server
    }

    /// The URL of a database; `postgres` is always there.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// Ends the server without a word to those who are connected.
    pub fn kill(&mut self) {
        signal(self.child.id(), "QUIT");
        self.child.wait().expect("it is a child of this process");
    }

    /// Starts it again where it was, with what it holds.
    pub fn start_again(&mut self) {
        self.launch();
        self.wait_until_it_answers();
    }

    /// Starts it again and does not wait for it.
    pub fn launch(&mut self) {
        self.child = spawn(self.folder.path(), self.owner, self.port, &self.settings);
    }

    /// Stops (`STOP`) or lets go on (`CONT`) all of its processes at once: a server that hangs.
    pub fn signal_all(&self, name: &str) {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()).chain([pid]) {
            signal(pid, name);
        }
    }

    fn wait_until_it_answers(&mut self) {
        let start = Instant::now();
        let port = self.port.to_string();
        loop {
            let asked = program("pg_isready", self.folder.path(), None)
                .args(["--quiet", "--host=127.0.0.1", "--port", &port])
                .status();
            if asked.expect("pg_isready runs").success() {
                return;
            }
            let ended = self.child.try_wait().expect("it is a child of this process");
            assert!(ended.is_none(), "postgres ended ({ended:?}): {}", self.log());
            assert!(start.elapsed() < START_WITHIN, "postgres does not answer: {}", self.log());
            sleep(Duration::from_millis(20));
        }
    }

    /// What the server has to say.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal_all("CONT");
            self.kill();
        }
    }
}

fn spawn(folder: &Path, owner: Option<(u32, u32)>, port: u16, settings: &[String]) -> Child {
    let log =
        fs::File::options().create(true).append(true).open(folder.join("log")).expect("the folder can be written");
    let mut command = program("postgres", folder, owner);
    command.args(["-D", "data", "-p", &port.to_string(), "-k", "", "-h", "127.0.0.1", "-F"]);
    for setting in settings {
        command.args(["-c", setting]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("postgres runs")
}

/// A program of PostgreSQL's, in a folder, as its owner. Debian keeps them apart from the others.
fn program(name: &str, folder: &Path, owner: Option<(u32, u32)>) -> Command {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|version| version.path().join("bin").join(name)).collect();
    found.retain(|path| path.exists());
    found.sort_by_key(|path| path.iter().nth(4).and_then(|version| version.to_str()?.parse::<u32>().ok()));
    let path = found.pop().unwrap_or_else(|| name.into());
    // the server goes when the test's thread does, however that ends
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "QUIT"]).current_dir(folder);
    if let Some((user, group)) = owner {
        command.args(["--clear-groups", &format!("--reuid={user}"), &format!("--regid={group}")]);
    }
    command.arg("--").arg(path).env("LC_ALL", "C");
    command
}

fn own(path: &Path, owner: Option<(u32, u32)>) {
    if let Some((user, group)) = owner {
        chown(path, Some(user), Some(group)).expect("root may give files away");
    }
}

fn id(arguments: &[&str]) -> Option<u32> {
    let output = Command::new("id").args(arguments).stderr(Stdio::null()).output().ok()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}

fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).stderr(Stdio::null()).status();
}
