//! Connections that the node makes to a socket of the agent.

use std::io;

use tokio::net::UnixListener;

use super::{PAUSE, serve_connection};
use crate::{Agent, Children};

/// Serves on `listener` for as long as the process lives, within a process that has other children of its own.
pub async fn serve(listener: UnixListener) -> io::Result<()> {
    serve_agent(listener, Agent::new(Children::own())?).await
}

/// Serves `agent` on `listener` for as long as the process lives.
pub async fn serve_agent(listener: UnixListener, agent: Agent) -> io::Result<()> {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A connection that fails takes its runs along, as the node expects; nobody else is affected.
                tokio::spawn(serve_connection(Box::new(stream), agent.clone()));
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
