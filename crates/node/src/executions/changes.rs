//! What became of the files while something ran: the agent looks before and after.

use std::time::Duration;

use cloud_sandbox_model::error::{Error, ErrorKind, Result, reason};
use cloud_sandbox_proto::{
    agent::v1::{CompareSnapshotRequest, TakeSnapshotRequest},
    v1::FileChanges,
};
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::sandbox::Sandbox;

/// The folder that is looked at.
const FOLDER: &str = "/workspace";
/// How long a look may take: it is bounded in files, on a disk that may be slow.
const PATIENCE: Duration = Duration::from_secs(30);

/// A look at the files before something ran.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Snapshot(u64);

/// Looks at the files before.
pub(crate) async fn take(sandbox: &Sandbox) -> Result<Snapshot> {
    let mut client = sandbox.agent.client();
    let taken = timeout(PATIENCE, client.take_snapshot(TakeSnapshotRequest { path: FOLDER.to_owned() })).await;
    match taken {
        Ok(Ok(taken)) => Ok(Snapshot(taken.into_inner().snapshot)),
        // what the user of the sandbox did to its own folder
        Ok(Err(status))
            if matches!(status.code(), Code::PermissionDenied | Code::FailedPrecondition | Code::NotFound) =>
        {
            let message = format!("changes cannot be told: {}", status.message());
            Err(Error::new(ErrorKind::FailedPrecondition, reason::FILE_REFUSED, message))
        }
        Ok(Err(status)) => Err(Error::internal("look at the files before the execution", status)),
        Err(elapsed) => Err(Error::internal("look at the files before the execution", elapsed)),
    }
}

/// Looks again and compares. What cannot be told is told as truncated: the execution itself has happened.
pub(crate) async fn compare(sandbox: &Sandbox, snapshot: Snapshot) -> FileChanges {
    let mut client = sandbox.agent.client();
    let compared = timeout(PATIENCE, client.compare_snapshot(CompareSnapshotRequest { snapshot: snapshot.0 })).await;
    let compared = compared.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
    match compared {
        Ok(compared) => compared.into_inner().changes.unwrap_or_default(),
        Err(status) => {
            tracing::warn!(error = %status, "failed to tell what an execution changed");
            FileChanges { files: Vec::new(), truncated: true }
        }
    }
}
