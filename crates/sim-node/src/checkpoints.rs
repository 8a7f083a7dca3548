//! What is inside the sandboxes, and its way into checkpoints and back.
//!
//! The content of a sandbox is lines of text. A checkpoint has a manifest, which names for each line the checkpoint in
//! whose pack it lies; lines that the base has lie there already. So a checkpoint needs the folders of others, as real
//! ones do, and notices when one of them is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use cloud_sandbox_model::{CheckpointId, ErrorKind, SandboxId, error::reason};
use cloud_sandbox_proto::{
    node::v1::{CheckpointRef, CheckpointSandboxRequest, CheckpointSandboxResponse, RestoreSandboxRequest},
    v1,
};
use cloud_sandbox_storage::WorkspaceStore;
use tonic::Status;

use crate::node::{SimNode, status, wanted};

const MANIFEST: &str = "manifest";
const PACK: &str = "pack-00000";

/// What is inside a sandbox.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inside {
    content: String,
    /// its processes stand still, though the sandbox is not frozen
    pub(crate) stopped: bool,
    /// when it was last in use; now when `None`
    pub(crate) last_active: Option<SystemTime>,
}

impl SimNode {
    /// Has the node keep checkpoints in `workspaces`.
    pub fn keep_checkpoints_in(&self, workspaces: Arc<dyn WorkspaceStore>) {
        self.state().workspaces = Some(workspaces);
    }

    /// Does work in a sandbox: its content is these lines from now on.
    pub fn set_content(&self, id: SandboxId, content: &str) {
        self.state().inside.entry(id).or_default().content = content.to_owned();
    }

    /// The content of a sandbox; empty when nothing was done in it.
    #[must_use]
    pub fn content(&self, id: SandboxId) -> String {
        self.inside(id).content
    }

    /// Whether the processes of a sandbox were left standing still.
    #[must_use]
    pub fn is_stopped(&self, id: SandboxId) -> bool {
        self.inside(id).stopped
    }

    /// Says when a sandbox was last in use. Until then it always is.
    pub fn leave_idle_since(&self, id: SandboxId, time: SystemTime) {
        self.state().inside.entry(id).or_default().last_active = Some(time);
    }

    pub(crate) fn inside(&self, id: SandboxId) -> Inside {
        self.state().inside.get(&id).cloned().unwrap_or_default()
    }

    fn workspaces(&self) -> Result<Arc<dyn WorkspaceStore>, Status> {
        let workspaces = self.state().workspaces.clone();
        workspaces.ok_or_else(|| Status::failed_precondition("the simulated node has no workspace store"))
    }

    pub(crate) async fn save(&self, request: &CheckpointSandboxRequest) -> Result<CheckpointSandboxResponse, Status> {
        let workspaces = self.workspaces()?;
        let sandbox: SandboxId = request.sandbox_id.parse().map_err(cloud_sandbox_rpc::to_status)?;
        let id: CheckpointId = request.checkpoint_id.parse().map_err(cloud_sandbox_rpc::to_status)?;
        let base = match &request.base {
            Some(base) => Manifest::read(workspaces.as_ref(), base).await?,
            None => Manifest::default(),
        };
        self.turn(&request.sandbox_id, v1::SandboxState::Acquired)?;
        let content = self.content(sandbox);
        let lines = content.lines().map(|line| (line.to_owned(), base.0.get(line).copied().unwrap_or(id)));
        let manifest = Manifest(lines.collect());
        let new: String =
            manifest.0.iter().filter(|(_, pack)| **pack == id).map(|(line, _)| format!("{line}\n")).collect();
        let text = manifest.text();
        if !new.is_empty() {
            workspaces.put(id, PACK, new.clone().into()).await.map_err(storage)?;
        }
        workspaces.put(id, MANIFEST, text.clone().into()).await.map_err(storage)?;
        self.state().inside.entry(sandbox).or_default().stopped = request.keep_stopped;
        let packs: BTreeSet<_> = manifest.0.values().map(ToString::to_string).collect();
        Ok(CheckpointSandboxResponse {
            checkpoint: Some(CheckpointRef { checkpoint_id: id.to_string(), digest: digest(text.as_bytes()) }),
            files: manifest.0.len() as u64,
            bytes: content.len() as u64,
            stored_bytes: (new.len() + text.len()) as u64,
            pack_checkpoint_ids: packs.into_iter().collect(),
        })
    }

    pub(crate) async fn restore(&self, request: &RestoreSandboxRequest) -> Result<v1::ResumeManifest, Status> {
        let workspaces = self.workspaces()?;
        let sandbox: SandboxId = request.sandbox_id.parse().map_err(cloud_sandbox_rpc::to_status)?;
        let reference = wanted(request.checkpoint.clone())?;
        let manifest = Manifest::read(workspaces.as_ref(), &reference).await?;
        let mut content = String::new();
        for (line, pack) in &manifest.0 {
            let pack = workspaces.get(*pack, PACK).await.map_err(storage)?.ok_or_else(|| damaged("a pack is gone"))?;
            if !String::from_utf8_lossy(&pack).lines().any(|stored| stored == line) {
                return Err(damaged("a pack is another one"));
            }
            content.push_str(line);
            content.push('\n');
        }
        self.set_content(sandbox, &content);
        Ok(v1::ResumeManifest {
            files: manifest.0.len() as u64,
            bytes: content.len() as u64,
            checkpoint_id: reference.checkpoint_id,
            ..Default::default()
        })
    }
}

/// The lines of a checkpoint, each with the checkpoint in whose pack it lies.
#[derive(Default)]
struct Manifest(BTreeMap<String, CheckpointId>);

impl Manifest {
    async fn read(workspaces: &dyn WorkspaceStore, reference: &CheckpointRef) -> Result<Self, Status> {
        let id: CheckpointId = reference.checkpoint_id.parse().map_err(cloud_sandbox_rpc::to_status)?;
        let stored = workspaces.get(id, MANIFEST).await.map_err(storage)?;
        let stored = stored.ok_or_else(|| damaged("its manifest is gone"))?;
        if digest(&stored) != reference.digest {
            return Err(damaged("its manifest was changed"));
        }
        let text = String::from_utf8_lossy(&stored).into_owned();
        let lines = text.lines().map(|line| {
            let (pack, line) = line.split_once(' ').ok_or_else(|| damaged("its manifest is none"))?;
            Ok((line.to_owned(), pack.parse().map_err(cloud_sandbox_rpc::to_status)?))
        });
        Ok(Self(lines.collect::<Result<_, Status>>()?))
    }

    fn text(&self) -> String {
        self.0.iter().map(|(line, pack)| format!("{pack} {line}\n")).collect()
    }
}

/// 32 bytes that tell manifests apart.
fn digest(manifest: &[u8]) -> Bytes {
    let part = |number: u8| {
        let mut hasher = DefaultHasher::new();
        (number, manifest).hash(&mut hasher);
        hasher.finish().to_be_bytes()
    };
    [part(0), part(1), part(2), part(3)].concat().into()
}

fn damaged(what: &str) -> Status {
    status(ErrorKind::DataLoss, reason::CHECKPOINT_DAMAGED, &format!("the checkpoint is damaged: {what}"))
}

fn storage(error: cloud_sandbox_storage::StorageError) -> Status {
    cloud_sandbox_rpc::to_status(error.into())
}
