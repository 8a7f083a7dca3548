//! `AgentService`: takes requests apart and hands them to `process`, `snapshot` and `tree`.

use std::{io, sync::Arc};

use cloud_sandbox_proto::agent::v1::{
    AcceptRequest, AcceptResponse, CheckRequest, CheckResponse, CompareSnapshotRequest, CompareSnapshotResponse,
    ContinueProcessesRequest, ContinueProcessesResponse, ListenRequest, ListenResponse, ProveWallsRequest,
    ProveWallsResponse, RestoreTreeRequest, RestoreTreeResponse, RunRequest, RunResponse, SaveTreeRequest,
    SignalRequest, SignalResponse, StopProcessesRequest, StopProcessesResponse, TakeSnapshotRequest,
    TakeSnapshotResponse, agent_service_server::AgentService, run_request::Input,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    disk::Disk,
    ports::Ports,
    process,
    process::{Children, Standstill},
    snapshot::Snapshots,
    tree, walls,
};

/// The service, cheap to clone.
#[derive(Clone)]
pub struct Agent {
    children: Arc<Children>,
    snapshots: Arc<Snapshots>,
    standstill: Arc<Standstill>,
    ports: Arc<Ports>,
}

impl Agent {
    /// Makes the service and starts to reap `children`.
    ///
    /// # Errors
    /// When signals cannot be watched.
    ///
    /// # Panics
    /// Outside a tokio runtime with its I/O driver enabled.
    pub fn new(children: Children) -> io::Result<Self> {
        let children = Arc::new(children);
        process::keep_reaped(&children)?;
        let standstill = Arc::new(Standstill::of(Arc::clone(&children)));
        Ok(Self { children, snapshots: Arc::default(), standstill, ports: Arc::default() })
    }
}

#[tonic::async_trait]
impl AgentService for Agent {
    type RunStream = ReceiverStream<Result<RunResponse, Status>>;

    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let Disk { used, full } = Disk::now();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Response::new(CheckResponse { version, disk_used_bytes: used, disk_full: full }))
    }

    async fn prove_walls(&self, request: Request<ProveWallsRequest>) -> Result<Response<ProveWallsResponse>, Status> {
        Ok(Response::new(ProveWallsResponse { proofs: walls::prove(request.get_ref()) }))
    }

    async fn run(&self, request: Request<Streaming<RunRequest>>) -> Result<Response<Self::RunStream>, Status> {
        let mut input = request.into_inner();
        let first = input.message().await?.and_then(|message| message.input);
        let Some(Input::Start(start)) = first else {
            return Err(Status::invalid_argument("the first message of a run must be start"));
        };
        self.standstill.refuse()?;
        let events = process::run(Arc::clone(&self.children), start, input)?;
        Ok(Response::new(ReceiverStream::new(events)))
    }

    async fn signal(&self, request: Request<SignalRequest>) -> Result<Response<SignalResponse>, Status> {
        let SignalRequest { pid, signal } = request.into_inner();
        let leader = i32::try_from(pid).ok().filter(|pid| *pid > 0);
        let leader = leader.ok_or_else(|| Status::invalid_argument(format!("{pid} is no process id")))?;
        if !(0..=libc::SIGRTMAX()).contains(&signal) {
            return Err(Status::invalid_argument(format!("{signal} is no signal")));
        }
        if signal == libc::SIGCONT {
            self.standstill.refuse()?;
        }
        let running = process::signal(&self.children, leader, signal).await;
        Ok(Response::new(SignalResponse { running }))
    }

    async fn take_snapshot(
        &self,
        request: Request<TakeSnapshotRequest>,
    ) -> Result<Response<TakeSnapshotResponse>, Status> {
        self.snapshots.take(request.into_inner()).await.map(Response::new)
    }

    async fn compare_snapshot(
        &self,
        request: Request<CompareSnapshotRequest>,
    ) -> Result<Response<CompareSnapshotResponse>, Status> {
        self.snapshots.compare(request.into_inner()).await.map(Response::new)
    }

    type SaveTreeStream = tree::Saved;

    async fn stop_processes(
        &self,
        _: Request<StopProcessesRequest>,
    ) -> Result<Response<StopProcessesResponse>, Status> {
        let processes = self.standstill.stop().await?;
        Ok(Response::new(StopProcessesResponse { processes }))
    }

    async fn continue_processes(
        &self,
        _: Request<ContinueProcessesRequest>,
    ) -> Result<Response<ContinueProcessesResponse>, Status> {
        self.standstill.end().await;
        Ok(Response::new(ContinueProcessesResponse {}))
    }

    async fn save_tree(
        &self,
        request: Request<Streaming<SaveTreeRequest>>,
    ) -> Result<Response<Self::SaveTreeStream>, Status> {
        tree::save(request.into_inner()).await.map(Response::new)
    }

    async fn restore_tree(
        &self,
        request: Request<Streaming<RestoreTreeRequest>>,
    ) -> Result<Response<RestoreTreeResponse>, Status> {
        tree::restore(request.into_inner()).await.map(Response::new)
    }

    type ListenStream = ReceiverStream<Result<ListenResponse, Status>>;

    async fn listen(&self, request: Request<ListenRequest>) -> Result<Response<Self::ListenStream>, Status> {
        let events = self.ports.listen(request.into_inner().port).await?;
        Ok(Response::new(ReceiverStream::new(events)))
    }

    type AcceptStream = ReceiverStream<Result<AcceptResponse, Status>>;

    async fn accept(&self, request: Request<Streaming<AcceptRequest>>) -> Result<Response<Self::AcceptStream>, Status> {
        let parts = self.ports.accept(request.into_inner()).await?;
        Ok(Response::new(ReceiverStream::new(parts)))
    }
}
