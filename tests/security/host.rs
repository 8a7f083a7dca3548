//! What lies on the host for attacks to go for: a secret in a file, a process, and sockets of the server's own user.

use std::{
    fs,
    io::Write as _,
    net::{Ipv4Addr, TcpListener},
    os::{
        fd::AsRawFd,
        linux::net::SocketAddrExt,
        unix::{
            fs::{PermissionsExt, chown},
            net::{SocketAddr, UnixListener},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use tempfile::TempDir;

use crate::internet::Internet;

/// The host of one test, where one attack after the other goes for it.
pub struct Host {
    folder: TempDir,
    /// who the server is
    pub uid: u32,
    /// what must never be read inside
    pub secret: String,
    /// what a sandbox with a network may reach
    pub internet: Internet,
    process: Child,
}

/// The file with the secret, in the host's folder.
const FILE: &str = "secret";

impl Host {
    /// A host whose server will run as `uid`, to whom everything here belongs.
    pub fn of(uid: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let secret = format!("SECRET-{:032x}", rand::random::<u128>());
        let file = folder.path().join(FILE);
        fs::write(&file, &secret).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        for path in [folder.path(), &file] {
            chown(path, Some(uid), Some(uid)).expect("these tests run as root, to run servers as others");
        }
        let process = Command::new("sleep")
            .arg0(&secret)
            .arg("3600")
            .env("SECRET", &secret)
            .current_dir(folder.path())
            .uid(uid)
            .gid(uid)
            .spawn()
            .unwrap();
        Self { folder, uid, secret, internet: Internet::new(), process }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A file with the secret.
    pub fn file(&self) -> PathBuf {
        self.folder().join(FILE)
    }

    /// The id of a process that has the secret in its environment and in its name.
    pub fn process(&self) -> u32 {
        self.process.id()
    }

    /// A program that runs as the server does, from where that user may not go. Its descriptor stays open for good.
    pub fn command(&self, program: &str) -> Command {
        let program = fs::File::open(program).unwrap();
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        std::mem::forget(program);
        command.uid(self.uid).gid(self.uid).current_dir("/");
        command
    }

    /// Fails unless everything is as it was.
    pub fn assert_unharmed(&self) {
        assert_eq!(fs::read_to_string(self.file()).unwrap(), self.secret, "the host's file was changed");
        let mode = fs::metadata(self.file()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "the host's file is open to others");
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process())).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| &rest[..1]);
        assert_eq!(state, Some("S"), "the host's process was killed, stopped or traced: {stat}");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A listener on the host that tells the secret to whoever connects.
pub enum Bait {
    /// on all addresses of the host
    Tcp(u16),
    /// by a name in no file system
    Abstract(String),
    /// by a path
    Path(PathBuf),
}

impl Host {
    /// Listens on every address of the host.
    pub fn tcp_bait(&self) -> Bait {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let secret = self.secret.clone();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.write_all(secret.as_bytes());
            }
        });
        Bait::Tcp(port)
    }

    /// Listens on a socket with an abstract name.
    pub fn abstract_bait(&self) -> Bait {
        let name = format!("bait-{:032x}", rand::random::<u128>());
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        self.tell(listener);
        Bait::Abstract(name)
    }

    /// Listens on a socket with a path.
    pub fn path_bait(&self) -> Bait {
        let path = self.folder().join(format!("socket-{:08x}", rand::random::<u32>()));
        let listener = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        self.tell(listener);
        Bait::Path(path)
    }

    fn tell(&self, listener: UnixListener) {
        let secret = self.secret.clone();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.write_all(secret.as_bytes());
            }
        });
    }
}

/// The host's own addresses beside loopback.
pub fn addresses() -> Vec<String> {
    let output = Command::new("hostname").arg("-I").stderr(Stdio::null()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect()
}
