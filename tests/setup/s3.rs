//! An S3 server of one test alone: rclone over a folder that goes with it, in which each folder is a bucket. The tests of
//! the store and the black-box tests both take it in.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Whom the server lets in.
pub const KEY_ID: &str = "ada";
/// The key; nothing that a test prints or logs may hold it.
pub const KEY: &str = "hunter2-of-the-bucket";
/// The bucket that is there.
pub const BUCKET: &str = "workspaces";
const START_WITHIN: Duration = Duration::from_secs(60);

/// A server; dropped, also by a test that fails, it ends. It ends with the test's process too.
pub struct S3Server {
    child: Child,
    port: u16,
    folder: TempDir,
}

/// Whether whoever runs the tests has asked to leave out what needs an S3 server.
pub fn left_out() -> bool {
    let skipped = std::env::var("CLOUD_SANDBOX_TEST_SKIP").unwrap_or_default();
    let skipped = skipped.split(',').any(|name| name.trim() == "s3");
    if skipped {
        eprintln!("skipped: CLOUD_SANDBOX_TEST_SKIP names s3");
    }
    skipped
}

impl S3Server {
    /// A new server on a free port.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("there is room for a folder");
        fs::create_dir_all(folder.path().join("buckets").join(BUCKET)).expect("the folder can be written");
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has free ports");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        drop(listener);
        let child = spawn(folder.path(), port);
        let mut server = Self { child, port, folder };
        server.wait_until_it_answers();
        server
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// The server's URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// The bucket's folder, in which objects are files.
    pub fn bucket(&self) -> PathBuf {
        self.folder.path().join("buckets").join(BUCKET)
    }

    /// Ends the server without a word to those who are connected.
    pub fn kill(&mut self) {
        _ = self.child.kill();
        self.child.wait().expect("it is a child of this process");
    }

    /// Starts it again where it was, with what it holds.
    pub fn start_again(&mut self) {
        self.child = spawn(self.folder.path(), self.port);
        self.wait_until_it_answers();
    }

    fn wait_until_it_answers(&mut self) {
        let start = Instant::now();
        while TcpStream::connect(self.address()).is_err() {
            let ended = self.child.try_wait().expect("it is a child of this process");
            assert!(ended.is_none(), "rclone ended ({ended:?}): {}", self.log());
            assert!(start.elapsed() < START_WITHIN, "rclone does not answer: {}", self.log());
            sleep(Duration::from_millis(20));
        }
    }

    /// What the server has to say.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(folder: &Path, port: u16) -> Child {
    let log =
        fs::File::options().create(true).append(true).open(folder.join("log")).expect("the folder can be written");
    // the server goes when the test's thread does, however that ends
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(rclone()).args(["serve", "s3", "--addr"]);
    command.arg(format!("127.0.0.1:{port}")).arg("buckets").current_dir(folder);
    // nothing of whoever runs the tests; and the key is in no command line
    command.env_clear().env("HOME", folder).env("RCLONE_AUTH_KEY", format!("\"{KEY_ID},{KEY}\""));
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.args(["--config", "none", "--dir-cache-time", "1s"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("setpriv runs")
}

/// The program, as `make setup` installs it, or the machine's own.
fn rclone() -> PathBuf {
    let cache = std::env::var_os("CACHE").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache"));
    let installed = cache.join("venv/bin/rclone");
    if installed.exists() { installed } else { "rclone".into() }
}
