//! The socket of a sandbox that its agent dials. The file is bound into the container; the folder that it is in is not.
//!
//! Anybody in the container may connect. Who does is told by the kernel (SO_PEERCRED), and the agent is the container's
//! first process: nobody else is let in.

use std::{
    fs::{self, File, Permissions},
    io,
    os::{
        fd::AsRawFd,
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use cloud_sandbox_model::SandboxId;
use nix::sys::socket::{Backlog, listen};
use tokio::{
    net::UnixStream,
    sync::{Mutex, mpsc, watch},
    task::AbortHandle,
    time::sleep,
};

/// Connections that the kernel keeps until they are looked at.
const BACKLOG: i32 = 8;
/// Connections of the agent that wait for a use. It has one waiting and dials again when that is taken.
const WAITING: usize = 1;
/// After a stranger, so that one who tries without end costs next to nothing.
const PAUSE: Duration = Duration::from_millis(10);

/// A sandbox's socket; dropped, it is gone.
pub struct Socket {
    path: PathBuf,
    agent: watch::Sender<Option<i32>>,
    dialled: watch::Receiver<bool>,
    waiting: Mutex<mpsc::Receiver<UnixStream>>,
    accepting: AbortHandle,
}

impl Socket {
    /// Listens in `folder`, and lets nobody in until [`expect`](Self::expect).
    pub fn create(folder: &Path, id: SandboxId) -> io::Result<Self> {
        let path = path(folder, id);
        // through a descriptor, because a socket's path has room for 108 bytes only
        let through = File::open(folder)?;
        let short = format!("/proc/self/fd/{}/{}", through.as_raw_fd(), file_name(id));
        let listener = UnixListener::bind(&short)?;
        let opened = fs::set_permissions(&path, Permissions::from_mode(0o666)).and_then(|()| {
            listener.set_nonblocking(true)?;
            listen(&listener, Backlog::new(BACKLOG)?)?;
            tokio::net::UnixListener::from_std(listener)
        });
        let listener = opened.inspect_err(|_| drop(fs::remove_file(&path)))?;
        let (agent, expected) = watch::channel(None);
        let (accepted, waiting) = mpsc::channel(WAITING);
        let (first, dialled) = watch::channel(false);
        let accepting = tokio::spawn(accept(listener, expected, first, accepted)).abort_handle();
        Ok(Self { path, agent, dialled, waiting: Mutex::new(waiting), accepting })
    }

    /// Where it is on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process that may connect, as the host numbers it.
    pub fn expect(&self, agent: i32) {
        self.agent.send_replace(Some(agent));
    }

    /// Resolves when the agent has been there.
    pub async fn dialled(&self) {
        // an error says that nobody listens any more, which is not what is waited for
        if self.dialled.clone().wait_for(|dialled| *dialled).await.is_err() {
            std::future::pending().await
        }
    }

    /// The next connection of the agent that has not been used.
    pub async fn connect(&self) -> io::Result<UnixStream> {
        let mut waiting = self.waiting.lock().await;
        waiting.recv().await.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Removes it; nobody can connect any more.
    pub fn close(&self) {
        self.accepting.abort();
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.close();
    }
}

/// Removes what a killed server left in `folder` of a sandbox.
pub fn remove(folder: &Path, id: SandboxId) {
    let _ = fs::remove_file(path(folder, id));
}

/// The sandboxes of which there is a socket in `folder`.
pub fn left_in(folder: &Path) -> Vec<SandboxId> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".sock")?.parse().ok()).collect()
}

fn file_name(id: SandboxId) -> String {
    format!("{id}.sock")
}

fn path(folder: &Path, id: SandboxId) -> PathBuf {
    folder.join(file_name(id))
}

async fn accept(
    listener: tokio::net::UnixListener,
    mut agent: watch::Receiver<Option<i32>>,
    dialled: watch::Sender<bool>,
    accepted: mpsc::Sender<UnixStream>,
) {
    let agent = match agent.wait_for(Option::is_some).await {
        Ok(agent) => *agent,
        // nobody will be expected any more
        Err(_) => return,
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) if is(&stream, agent) => {
                dialled.send_replace(true);
                if accepted.send(stream).await.is_err() {
                    return;
                }
            }
            Ok(_) => sleep(PAUSE).await,
            Err(error) => {
                tracing::warn!(%error, "a connection of an agent could not be accepted");
                sleep(PAUSE).await;
            }
        }
    }
}

fn is(stream: &UnixStream, agent: Option<i32>) -> bool {
    let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
    // 0 is somebody whom this process cannot see
    peer.is_some_and(|peer| peer > 0 && Some(peer) == agent)
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, time::timeout};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn agent_is_let_in_and_waits_for_a_use() {
        let folder = tempfile::tempdir().unwrap();
        let id = SandboxId::generate();
        let socket = Socket::create(folder.path(), id).unwrap();
        socket.expect(i32::try_from(std::process::id()).unwrap());
        let _agents = UnixStream::connect(socket.path()).await.unwrap();
        timeout(SOON, socket.dialled()).await.unwrap();
        timeout(SOON, socket.connect()).await.unwrap().unwrap();
        assert_eq!(left_in(folder.path()), [id]);
        drop(socket);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn peer_that_is_not_the_agent_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let socket = Socket::create(folder.path(), SandboxId::generate()).unwrap();
        socket.expect(1);
        for _ in 0..3 {
            let mut stranger = UnixStream::connect(socket.path()).await.unwrap();
            assert_eq!(timeout(SOON, stranger.read(&mut [0])).await.unwrap().unwrap(), 0, "it is closed");
        }
        assert!(timeout(Duration::from_millis(50), socket.connect()).await.is_err(), "nobody is let in");
    }

    #[tokio::test]
    async fn long_folder_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(150));
        fs::create_dir(&long).unwrap();
        let socket = Socket::create(&long, SandboxId::generate()).unwrap();
        assert!(socket.path().exists() && socket.path().as_os_str().len() > 108);
    }
}
