//! A registry of images of one test alone, on the loopback and without TLS, in a folder that goes with it: Debian's
//! `docker-registry`.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Who may use a registry that asks.
pub const USER: &str = "ada";
/// The password; nothing that a test prints or logs may hold it.
pub const PASSWORD: &str = "hunter2-of-the-registry";
/// What the registry knows of the password.
const HASHED: &str = "$2b$04$at1ubcxs.YWSHHabV.Ns4.khClJOAHvSJSGi8xD.Aph./gwge4882";
const START_WITHIN: Duration = Duration::from_secs(60);
/// A port that was free may be taken a moment later.
const ATTEMPTS: usize = 5;

/// A registry; dropped, also by a test that fails, it ends. It ends with the test's process too.
pub struct RegistryServer {
    child: Child,
    port: u16,
    folder: TempDir,
}

/// Whether whoever runs the tests has asked to leave out what needs a registry.
pub fn left_out() -> bool {
    let skipped = std::env::var("CLOUD_SANDBOX_TEST_SKIP").unwrap_or_default();
    let skipped = skipped.split(',').any(|name| name.trim() == "registry");
    if skipped {
        eprintln!("skipped: CLOUD_SANDBOX_TEST_SKIP names registry");
    }
    skipped
}

impl RegistryServer {
    /// A new registry on a free port, for everybody.
    pub fn start() -> Self {
        Self::with("")
    }

    /// One that asks for a user and a password.
    pub fn with_users() -> Self {
        Self::with("auth:\n  htpasswd:\n    realm: test\n    path: users\n")
    }

    fn with(settings: &str) -> Self {
        for attempt in 1.. {
            let folder = tempfile::tempdir().expect("there is room for a folder");
            fs::write(folder.path().join("users"), format!("{USER}:{HASHED}\n")).expect("the folder can be written");
            let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has free ports");
            let port = listener.local_addr().expect("a bound listener has an address").port();
            drop(listener);
            let text = format!(
                "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: data\n  delete:\n    enabled: true\n\
                 http:\n  addr: 127.0.0.1:{port}\n{settings}"
            );
            fs::write(folder.path().join("config.yml"), text).expect("the folder can be written");
            let mut server = Self { child: spawn(folder.path()), port, folder };
            match server.wait_until_it_answers() {
                Ok(()) => return server,
                Err(error) if attempt == ATTEMPTS => panic!("{error}: {}", server.log()),
                Err(_) => {}
            }
        }
        unreachable!("the last attempt panics")
    }

    /// What the names of its images begin with: `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The file that holds a blob, by its digest.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let (kind, digits) = digest.split_once(':').expect("a digest has a kind");
        let blobs = self.folder.path().join("data/docker/registry/v2/blobs");
        blobs.join(kind).join(&digits[..2]).join(digits).join("data")
    }

    /// How often a blob has been asked for.
    pub fn fetches(&self, digest: &str) -> usize {
        let asked = format!("blobs/{digest} HTTP");
        self.log().lines().filter(|line| line.contains("\"GET ") && line.contains(&asked)).count()
    }

    fn wait_until_it_answers(&mut self) -> Result<(), String> {
        let start = Instant::now();
        while start.elapsed() < START_WITHIN {
            if self.child.try_wait().expect("it is a child of this process").is_some() {
                return Err("the registry ended".to_owned());
            }
            if self.answers() {
                return Ok(());
            }
            sleep(Duration::from_millis(20));
        }
        Err("the registry does not answer".to_owned())
    }

    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let mut answer = String::new();
        let asked = stream.write_all(b"GET /v2/ HTTP/1.0\r\n\r\n").and_then(|()| stream.read_to_string(&mut answer));
        asked.is_ok() && answer.contains("registry/2.0")
    }

    /// What the registry has to say.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for RegistryServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &Path) -> Child {
    let log = fs::File::create(folder.join("log")).expect("the folder can be written");
    let errors = log.try_clone().expect("a descriptor is free");
    // the registry goes when the test's thread does, however that ends
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "docker-registry", "serve", "config.yml"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .expect("docker-registry runs (CLOUD_SANDBOX_TEST_SKIP=registry leaves these tests out)")
}
