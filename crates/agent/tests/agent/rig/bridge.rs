//! Makes an agent that is reached by its standard streams look like one that listens on a socket.
//!
//! It has a thread of its own, so that a test may wait for what its agent says of `/proc` while it does nothing else.

use std::{
    future::pending,
    io,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout},
    sync::mpsc,
    thread,
};

use cloud_sandbox_proto::v1::{
    ListFilesRequest, ReadFileRequest, file_service_client::FileServiceClient, read_file_response::Body,
};
use cloud_sandbox_runtime::multiplex::{Streams, multiplex};
use tokio::{
    io::{copy_bidirectional, join},
    net::{
        UnixListener,
        unix::pipe::{Receiver, Sender},
    },
    runtime::Handle,
};
use tonic::transport::Channel;

use super::agent::channel;

/// A socket whose connections are streams of a session with an agent.
pub struct Bridge {
    handle: Handle,
    socket: PathBuf,
}

impl Bridge {
    /// Leads from `socket` to the agent at the ends of `process`'s pipes; closes with the agent.
    pub fn to(process: &mut Child, socket: &Path) -> Self {
        let (stdin, stdout) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (started, bridge) = mpsc::channel();
        let path = socket.to_owned();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = UnixListener::bind(&path).unwrap();
                started.send(Handle::current()).unwrap();
                carry(listener, stdin, stdout).await;
            });
        });
        Self { handle: bridge.recv().unwrap(), socket: socket.to_owned() }
    }

    /// What `work` makes of the agent's files, awaited by a thread that does nothing else meanwhile.
    fn ask<T, F>(&self, work: impl FnOnce(FileServiceClient<Channel>) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (sender, answer) = mpsc::channel();
        let channel = channel(tonic::transport::Endpoint::from_static("http://agent"), self.socket.clone());
        self.handle.spawn(async move { sender.send(work(FileServiceClient::new(channel.await)).await) });
        answer.recv().unwrap()
    }

    /// The start of a file of the agent's place; none where it is not.
    pub fn read(&self, path: String) -> Option<String> {
        self.ask(|mut files| async move {
            let request = ReadFileRequest { path, limit: 64 * 1024, ..Default::default() };
            let answer = files.read_file(request).await.ok()?.into_inner();
            match answer.body? {
                Body::Content(text) => Some(text),
                Body::Data(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            }
        })
    }

    /// The names in a folder of the agent's place, and where those lead that are links.
    pub fn list(&self, path: String) -> Vec<(String, String)> {
        self.ask(|mut files| async move {
            let request = ListFilesRequest { path, ..Default::default() };
            let answer = files.list_files(request).await.map(|answer| answer.into_inner().files);
            answer.unwrap_or_default().into_iter().map(|file| (file.name, file.target)).collect()
        })
    }
}

async fn carry(listener: UnixListener, stdin: ChildStdin, stdout: ChildStdout) {
    let to = |stdin: ChildStdin| -> io::Result<Sender> { Sender::from_owned_fd(stdin.into()) };
    let from = |stdout: ChildStdout| -> io::Result<Receiver> { Receiver::from_owned_fd(stdout.into()) };
    let (streams, session) = multiplex(join(from(stdout).unwrap(), to(stdin).unwrap()));
    tokio::select! {
        _ = session => {}
        () = accept(listener, streams) => {}
    }
}

async fn accept(listener: UnixListener, streams: Streams) {
    while let Ok((mut accepted, _)) = listener.accept().await {
        let Ok(mut stream) = streams.connect().await else { pending().await };
        // both are dropped with the first that is cut
        tokio::spawn(async move { copy_bidirectional(&mut accepted, &mut stream).await });
    }
}
