//! Files through the node: what is checked here, and what goes through to an agent that is scripted.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use cloud_sandbox_agent::{Agent, Children, serve_agent};
use cloud_sandbox_model::SandboxId;
use cloud_sandbox_proto::{
    agent::v1::{
        CheckRequest, CheckResponse, CompareSnapshotRequest, CompareSnapshotResponse, ProveWallsRequest,
        ProveWallsResponse, RunRequest, RunResponse, SignalRequest, SignalResponse, TakeSnapshotRequest,
        TakeSnapshotResponse,
        agent_service_server::{AgentService, AgentServiceServer},
    },
    v1::{
        self, FileInfo, UploadCommit, WriteFileRequest,
        file_service_client::FileServiceClient,
        file_service_server::{FileService, FileServiceServer},
        upload_file_request::Part,
        write_file_request::Body,
    },
};
use cloud_sandbox_rpc::{Upstream, in_process};
use cloud_sandbox_runtime::FakeRuntime;
use futures::{Stream, StreamExt, future::BoxFuture, stream, stream::BoxStream};
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tokio::{
    io::{DuplexStream, copy_bidirectional_with_sizes},
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, codegen::Service};

use super::harness::*;

const MIB: usize = 1024 * 1024;

/// What the agents of a test do.
#[derive(Default)]
struct Play {
    /// every request, as it came
    asked: Mutex<Vec<String>>,
    /// what everything is refused with
    refusal: Mutex<Option<Status>>,
    /// bytes of the upload that came last, and whether it was committed
    uploaded: Mutex<(usize, Option<bool>)>,
    /// messages that were taken of a stream without an end
    taken: AtomicUsize,
}

#[derive(Clone)]
struct Fake(Arc<Play>);

type Answer<T> = Result<Response<T>, Status>;

impl Fake {
    fn answer<Q: std::fmt::Debug, A>(&self, request: Request<Q>, answer: A) -> Answer<A> {
        self.0.asked.lock().unwrap().push(format!("{:?}", request.into_inner()));
        match self.0.refusal.lock().unwrap().clone() {
            Some(refusal) => Err(refusal),
            None => Ok(Response::new(answer)),
        }
    }

    fn endless<T: Send + 'static>(
        &self,
        item: impl Fn() -> T + Send + 'static,
    ) -> BoxStream<'static, Result<T, Status>> {
        let play = Arc::clone(&self.0);
        stream::repeat_with(move || {
            play.taken.fetch_add(1, Ordering::SeqCst);
            Ok(item())
        })
        .boxed()
    }

    /// Takes an upload, and notes how it ended.
    async fn take<T>(
        &self,
        mut messages: Streaming<T>,
        part: impl Fn(T) -> Option<(usize, bool)>,
    ) -> Result<(), Status> {
        if let Some(refusal) = self.0.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        let note = |bytes, committed| *self.0.uploaded.lock().unwrap() = (bytes, committed);
        let mut all = 0;
        while let Some(message) = messages.message().await.inspect_err(|_| note(all, Some(false)))? {
            let Some((bytes, committed)) = part(message) else { continue };
            all += bytes;
            note(all, committed.then_some(true));
            if committed {
                return Ok(());
            }
        }
        note(all, Some(false));
        Err(Status::invalid_argument("it was not committed"))
    }
}

fn info() -> Option<FileInfo> {
    Some(FileInfo { name: "it".into(), ..Default::default() })
}

#[tonic::async_trait]
impl FileService for Fake {
    type DownloadFileStream = BoxStream<'static, Result<v1::DownloadFileResponse, Status>>;
    type WatchFilesStream = BoxStream<'static, Result<v1::WatchFilesResponse, Status>>;
    type DownloadArchiveStream = BoxStream<'static, Result<v1::DownloadArchiveResponse, Status>>;

    async fn read_file(&self, request: Request<v1::ReadFileRequest>) -> Answer<v1::ReadFileResponse> {
        self.answer(request, v1::ReadFileResponse { file: info(), ..Default::default() })
    }

    async fn download_file(&self, request: Request<v1::DownloadFileRequest>) -> Answer<Self::DownloadFileStream> {
        let data = Bytes::from(vec![7; 256 * 1024]);
        self.answer(request, self.endless(move || v1::DownloadFileResponse { file: None, data: data.clone() }))
    }

    async fn write_file(&self, request: Request<WriteFileRequest>) -> Answer<v1::WriteFileResponse> {
        self.answer(request, v1::WriteFileResponse { file: info() })
    }

    async fn upload_file(&self, request: Request<Streaming<v1::UploadFileRequest>>) -> Answer<v1::UploadFileResponse> {
        let part = |message: v1::UploadFileRequest| match message.part? {
            Part::Header(_) => None,
            Part::Data(data) => Some((data.len(), false)),
            Part::Commit(_) => Some((0, true)),
        };
        self.take(request.into_inner(), part).await?;
        Ok(Response::new(v1::UploadFileResponse { file: info() }))
    }

    async fn write_files(&self, request: Request<v1::WriteFilesRequest>) -> Answer<v1::WriteFilesResponse> {
        self.answer(request, v1::WriteFilesResponse { files: info().into_iter().collect() })
    }

    async fn delete_file(&self, request: Request<v1::DeleteFileRequest>) -> Answer<v1::DeleteFileResponse> {
        self.answer(request, v1::DeleteFileResponse { path: "/it".into(), deleted: true })
    }

    async fn list_files(&self, request: Request<v1::ListFilesRequest>) -> Answer<v1::ListFilesResponse> {
        self.answer(request, v1::ListFilesResponse { files: info().into_iter().collect(), next_page_token: "t".into() })
    }

    async fn stat_file(&self, request: Request<v1::StatFileRequest>) -> Answer<v1::StatFileResponse> {
        if request.get_ref().path == "/slow" {
            std::future::pending::<()>().await;
        }
        self.answer(request, v1::StatFileResponse { file: info() })
    }

    async fn make_folder(&self, request: Request<v1::MakeFolderRequest>) -> Answer<v1::MakeFolderResponse> {
        self.answer(request, v1::MakeFolderResponse { file: info() })
    }

    async fn change_mode(&self, request: Request<v1::ChangeModeRequest>) -> Answer<v1::ChangeModeResponse> {
        self.answer(request, v1::ChangeModeResponse { file: info() })
    }

    async fn move_file(&self, request: Request<v1::MoveFileRequest>) -> Answer<v1::MoveFileResponse> {
        self.answer(request, v1::MoveFileResponse { file: info() })
    }

    async fn copy_file(&self, request: Request<v1::CopyFileRequest>) -> Answer<v1::CopyFileResponse> {
        self.answer(request, v1::CopyFileResponse { file: info() })
    }

    async fn search_files(&self, request: Request<v1::SearchFilesRequest>) -> Answer<v1::SearchFilesResponse> {
        self.answer(request, v1::SearchFilesResponse { matches: Vec::new(), more: true })
    }

    async fn watch_files(&self, request: Request<v1::WatchFilesRequest>) -> Answer<Self::WatchFilesStream> {
        let first = stream::iter([Ok(v1::WatchFilesResponse { event: Some(Default::default()) })]);
        self.answer(request, first.chain(stream::pending()).boxed())
    }

    async fn download_archive(
        &self,
        request: Request<v1::DownloadArchiveRequest>,
    ) -> Answer<Self::DownloadArchiveStream> {
        let data = Bytes::from(vec![7; 256 * 1024]);
        self.answer(request, self.endless(move || v1::DownloadArchiveResponse { data: data.clone() }))
    }

    async fn upload_archive(
        &self,
        request: Request<Streaming<v1::UploadArchiveRequest>>,
    ) -> Answer<v1::UploadArchiveResponse> {
        use v1::upload_archive_request::Part;
        let part = |message: v1::UploadArchiveRequest| match message.part? {
            Part::Header(_) => None,
            Part::Data(data) => Some((data.len(), false)),
            Part::Commit(_) => Some((0, true)),
        };
        self.take(request.into_inner(), part).await?;
        Ok(Response::new(v1::UploadArchiveResponse { entries: 1, bytes: 2 }))
    }
}

#[tonic::async_trait]
impl AgentService for Fake {
    type RunStream = ReceiverStream<Result<RunResponse, Status>>;

    async fn check(&self, _: Request<CheckRequest>) -> Answer<CheckResponse> {
        Ok(Response::new(CheckResponse::default()))
    }

    async fn prove_walls(&self, _: Request<ProveWallsRequest>) -> Result<Response<ProveWallsResponse>, Status> {
        Ok(Response::new(ProveWallsResponse::default()))
    }

    async fn run(&self, _: Request<Streaming<RunRequest>>) -> Answer<Self::RunStream> {
        Err(Status::unimplemented("run"))
    }

    async fn signal(&self, _: Request<SignalRequest>) -> Answer<SignalResponse> {
        Err(Status::unimplemented("signal"))
    }

    async fn take_snapshot(&self, _: Request<TakeSnapshotRequest>) -> Answer<TakeSnapshotResponse> {
        Err(Status::unimplemented("take_snapshot"))
    }

    async fn compare_snapshot(&self, _: Request<CompareSnapshotRequest>) -> Answer<CompareSnapshotResponse> {
        Err(Status::unimplemented("compare_snapshot"))
    }

    async fn stop_processes(
        &self,
        _: Request<cloud_sandbox_proto::agent::v1::StopProcessesRequest>,
    ) -> Result<Response<cloud_sandbox_proto::agent::v1::StopProcessesResponse>, Status> {
        Err(Status::unimplemented("stop_processes"))
    }

    async fn continue_processes(
        &self,
        _: Request<cloud_sandbox_proto::agent::v1::ContinueProcessesRequest>,
    ) -> Result<Response<cloud_sandbox_proto::agent::v1::ContinueProcessesResponse>, Status> {
        Err(Status::unimplemented("continue_processes"))
    }

    type SaveTreeStream = stream::Empty<Result<cloud_sandbox_proto::agent::v1::SaveTreeResponse, Status>>;

    async fn save_tree(
        &self,
        _: Request<Streaming<cloud_sandbox_proto::agent::v1::SaveTreeRequest>>,
    ) -> Result<Response<Self::SaveTreeStream>, Status> {
        Err(Status::unimplemented("save_tree"))
    }

    async fn restore_tree(
        &self,
        _: Request<Streaming<cloud_sandbox_proto::agent::v1::RestoreTreeRequest>>,
    ) -> Result<Response<cloud_sandbox_proto::agent::v1::RestoreTreeResponse>, Status> {
        Err(Status::unimplemented("restore_tree"))
    }

    type ListenStream = stream::Empty<Result<cloud_sandbox_proto::agent::v1::ListenResponse, Status>>;

    async fn listen(
        &self,
        _: Request<cloud_sandbox_proto::agent::v1::ListenRequest>,
    ) -> Result<Response<Self::ListenStream>, Status> {
        Err(Status::unimplemented("listen"))
    }

    type AcceptStream = stream::Empty<Result<cloud_sandbox_proto::agent::v1::AcceptResponse, Status>>;

    async fn accept(
        &self,
        _: Request<Streaming<cloud_sandbox_proto::agent::v1::AcceptRequest>>,
    ) -> Result<Response<Self::AcceptStream>, Status> {
        Err(Status::unimplemented("accept"))
    }
}

fn serve(play: Arc<Play>, stream: DuplexStream) {
    let agent = AgentServiceServer::new(Fake(Arc::clone(&play)));
    let files = FileServiceServer::new(Fake(play)).max_decoding_message_size(32 * MIB);
    let both = tower::service_fn(move |request: hyper::Request<Incoming>| {
        let is_file = request.uri().path().starts_with("/cloud_sandbox.v1.FileService/");
        let (mut agent, mut files) = (agent.clone(), files.clone());
        let answer: BoxFuture<'static, _> = if is_file {
            Box::pin(async move { files.call(request).await })
        } else {
            Box::pin(async move { agent.call(request).await })
        };
        answer
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(both));
    tokio::spawn(connection);
}

struct Bench {
    world: World,
    play: Arc<Play>,
    id: SandboxId,
}

impl Bench {
    async fn start() -> Self {
        let play = Arc::new(Play::default());
        let playing = Arc::clone(&play);
        let runtime = Arc::new(FakeRuntime::new(move |_, stream| serve(Arc::clone(&playing), stream)));
        let world = World::start_on(options(1, 2), runtime, Arc::default()).await;
        let id = world.acquire().await;
        Self { world, play, id }
    }

    fn files(&self) -> FileServiceClient<Upstream> {
        let client = FileServiceClient::new(in_process(self.world.node.file_service()));
        client.max_decoding_message_size(32 * MIB).max_encoding_message_size(32 * MIB)
    }

    fn sandbox_id(&self) -> String {
        self.id.to_string()
    }

    async fn stat(&self, path: &str) -> Result<v1::StatFileResponse, Failure> {
        let request = v1::StatFileRequest { sandbox_id: self.sandbox_id(), path: path.into(), ..Default::default() };
        self.files().stat_file(request).await.map(Response::into_inner).map_err(|status| Failure::of(&status))
    }

    fn header(&self) -> v1::UploadFileRequest {
        let header = v1::UploadFileHeader { sandbox_id: self.sandbox_id(), path: "/a".into(), ..Default::default() };
        v1::UploadFileRequest { part: Some(Part::Header(header)) }
    }

    async fn upload<S>(&self, messages: S) -> Result<v1::UploadFileResponse, Failure>
    where
        S: Stream<Item = v1::UploadFileRequest> + Send + 'static,
    {
        self.files().upload_file(messages).await.map(Response::into_inner).map_err(|status| Failure::of(&status))
    }

    fn uploaded(&self) -> (usize, Option<bool>) {
        *self.play.uploaded.lock().unwrap()
    }
}

fn data(bytes: usize) -> v1::UploadFileRequest {
    v1::UploadFileRequest { part: Some(Part::Data(vec![1; bytes].into())) }
}

fn commit() -> v1::UploadFileRequest {
    v1::UploadFileRequest { part: Some(Part::Commit(UploadCommit {})) }
}

fn failed<T: std::fmt::Debug>(answer: Result<Response<T>, Status>) -> Failure {
    Failure::of(&answer.unwrap_err())
}

/// Calls every unary method of one request and one answer with the same fields.
macro_rules! each {
    ($bench:ident, $act:expr, $($method:ident $request:ident { $($field:ident: $value:expr),* })*) => {$(
        let request = v1::$request { sandbox_id: $bench.sandbox_id(), $($field: $value.into(),)* ..Default::default() };
        $act(stringify!($method), format!("{request:?}"), $bench.files().$method(request).await.map(drop));
    )*};
}

macro_rules! each_method {
    ($bench:ident, $path:expr, $act:expr) => {
        each! { $bench, $act,
            read_file ReadFileRequest { path: $path }
            write_file WriteFileRequest { path: $path }
            delete_file DeleteFileRequest { path: $path }
            list_files ListFilesRequest { path: $path }
            stat_file StatFileRequest { path: $path }
            make_folder MakeFolderRequest { path: $path }
            change_mode ChangeModeRequest { path: $path }
            search_files SearchFilesRequest { path: $path }
            download_file DownloadFileRequest { path: $path }
            watch_files WatchFilesRequest { path: $path }
            download_archive DownloadArchiveRequest { path: $path }
            move_file MoveFileRequest { source: $path, destination: "/b" }
            copy_file CopyFileRequest { source: $path, destination: "/b" }
        }
    };
}

#[tokio::test(start_paused = true)]
async fn requests_reach_the_agent_as_they_are() {
    let bench = Bench::start().await;
    each_method!(bench, "/a", |method, request: String, answer: Result<(), Status>| {
        answer.unwrap_or_else(|status| panic!("{method}: {status}"));
        assert_eq!(bench.play.asked.lock().unwrap().last().unwrap(), &request, "{method}");
    });
    let files = vec![WriteFileRequest { path: "/a".into(), ..Default::default() }];
    let request = v1::WriteFilesRequest { sandbox_id: bench.sandbox_id(), files, ..Default::default() };
    assert_eq!(bench.files().write_files(request).await.unwrap().into_inner().files.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn every_method_refuses_bad_paths_and_names_the_field() {
    let bench = Bench::start().await;
    for path in ["", "a", "/a/../b", "/a\0", &format!("/{}", "n".repeat(256)), &"/n".repeat(2048)] {
        each_method!(bench, path, |method: &str, _, answer: Result<(), Status>| {
            let failure = Failure::of(&answer.unwrap_err());
            let field = if ["move_file", "copy_file"].contains(&method) { "source" } else { "path" };
            assert_eq!((failure.kind, failure.fields[0].as_str()), ("INVALID_ARGUMENT", field), "{method} {path:?}");
        });
    }
    assert!(bench.play.asked.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn path_is_given_as_text_or_as_bytes() {
    let bench = Bench::start().await;
    let ask = async |path: &str, raw: &[u8]| {
        let (sandbox_id, path, raw_path) = (bench.sandbox_id(), path.to_owned(), raw.to_vec().into());
        bench
            .files()
            .stat_file(v1::StatFileRequest { sandbox_id, path, raw_path, no_follow: false, ..Default::default() })
            .await
    };
    ask("", b"/\xFF").await.unwrap();
    assert_eq!(failed(ask("/a", b"/a").await).fields, ["path"]);
    let long = [b"/".as_slice(), &[b'n'; 256]].concat();
    for raw in [b"a".as_slice(), b"/..", b"/a\0", &long] {
        assert_eq!(failed(ask("", raw).await).fields, ["raw_path"]);
    }
    let request = v1::MoveFileRequest {
        sandbox_id: bench.sandbox_id(),
        raw_source: Bytes::from_static(b"x"),
        destination: "/a".into(),
        raw_destination: Bytes::from_static(b"/a"),
        ..Default::default()
    };
    assert_eq!(failed(bench.files().move_file(request).await).fields, ["raw_source", "destination"]);
}

#[tokio::test(start_paused = true)]
async fn every_bad_field_is_named() {
    let bench = Bench::start().await;
    let (sandbox_id, path) = (bench.sandbox_id(), "/a".to_owned());
    let token = "t".repeat(17 * 1024);
    let request = v1::ReadFileRequest {
        sandbox_id: sandbox_id.clone(),
        path: path.clone(),
        limit: 8 * MIB as u32 + 1,
        page_size: 1001,
        page_token: token.clone(),
        ..Default::default()
    };
    assert_eq!(failed(bench.files().read_file(request).await).fields, ["limit", "page_size", "page_token"]);

    let body = Some(Body::Data(vec![0; 8 * MIB + 1].into()));
    let request = WriteFileRequest {
        sandbox_id: sandbox_id.clone(),
        path: path.clone(),
        mode: 0o1777,
        body,
        ..Default::default()
    };
    assert_eq!(failed(bench.files().write_file(request).await).fields, ["mode", "content"]);

    let request = v1::ListFilesRequest {
        sandbox_id: sandbox_id.clone(),
        path: path.clone(),
        depth: 65,
        glob: "g".repeat(4096),
        page_size: 1001,
        page_token: token,
        ..Default::default()
    };
    let fields = ["depth", "glob", "page_size", "page_token"];
    assert_eq!(failed(bench.files().list_files(request).await).fields, fields);

    let request = v1::SearchFilesRequest {
        sandbox_id: sandbox_id.clone(),
        path: path.clone(),
        glob: "\0".into(),
        pattern: "p".repeat(1025),
        max_matches: 1001,
        ..Default::default()
    };
    assert_eq!(failed(bench.files().search_files(request).await).fields, ["glob", "pattern", "max_matches"]);

    let request =
        v1::MakeFolderRequest { sandbox_id: sandbox_id.clone(), path: path.clone(), mode: 512, ..Default::default() };
    assert_eq!(failed(bench.files().make_folder(request).await).fields, ["mode"]);
    let request = v1::ChangeModeRequest { sandbox_id, path, mode: 0o4755, ..Default::default() };
    assert_eq!(failed(bench.files().change_mode(request).await).fields, ["mode"]);
}

#[tokio::test(start_paused = true)]
async fn files_of_a_batch_are_checked_one_by_one() {
    let bench = Bench::start().await;
    let ask = async |files| {
        let request = v1::WriteFilesRequest { sandbox_id: bench.sandbox_id(), files, ..Default::default() };
        failed(bench.files().write_files(request).await)
    };
    let file = |path: &str| WriteFileRequest { path: path.into(), ..Default::default() };
    assert_eq!(ask(Vec::new()).await.fields, ["files"]);
    assert_eq!(ask(vec![file("/a"); 1001]).await.fields, ["files"]);
    let large = WriteFileRequest { body: Some(Body::Data(vec![0; 5 * MIB].into())), ..file("/a") };
    assert_eq!(ask(vec![large; 2]).await.fields, ["files"]);
    let files = vec![
        file("/a"),
        file("b"),
        WriteFileRequest { sandbox_id: bench.sandbox_id(), mode: 512, ..file("/c") },
        WriteFileRequest { raw_path: Bytes::from_static(b"d"), ..file("") },
    ];
    let fields = ["files[1].path", "files[2].sandbox_id", "files[2].mode", "files[3].raw_path"];
    assert_eq!(ask(files).await.fields, fields);
}

#[tokio::test(start_paused = true)]
async fn refusals_of_the_agent_keep_their_words_and_name_the_path() {
    let bench = Bench::start().await;
    let cases = [
        (Status::not_found("failed to read /a: no such file"), "NOT_FOUND", "FILE_NOT_FOUND"),
        (Status::permission_denied("permission denied"), "FAILED_PRECONDITION", "FILE_REFUSED"),
        (Status::failed_precondition("it is a folder"), "FAILED_PRECONDITION", "FILE_REFUSED"),
        (Status::already_exists("it is there"), "ALREADY_EXISTS", "FILE_EXISTS"),
        (Status::aborted("the file has changed"), "ABORTED", "FILE_CHANGED"),
        (Status::resource_exhausted("no space left"), "RESOURCE_EXHAUSTED", "FILE_REFUSED"),
        (Status::out_of_range("it has 9 bytes"), "OUT_OF_RANGE", "FILE_TOO_LARGE"),
        (Status::invalid_argument("the name is too long"), "INVALID_ARGUMENT", "FILE_REFUSED"),
        (Status::internal("odd"), "INTERNAL", "INTERNAL"),
    ];
    for (status, kind, reason) in cases {
        *bench.play.refusal.lock().unwrap() = Some(status.clone());
        let failure = bench.stat("/a").await.unwrap_err();
        assert_eq!(failure.words(), (kind, reason));
        if kind == "INTERNAL" {
            assert!(!failure.message.contains("odd"), "{}", failure.message);
        } else {
            assert!(
                failure.message.contains("/a") && failure.message.contains(status.message()),
                "{}",
                failure.message
            );
        }
    }
    *bench.play.refusal.lock().unwrap() = Some(Status::invalid_argument("pattern must be a regular expression"));
    let failure = bench.stat("/a").await.unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.fields), ("INVALID_REQUEST", vec!["pattern".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn sandbox_that_is_paused_or_unknown_or_ends_is_told_of() {
    let bench = Bench::start().await;
    bench.world.pause(bench.id).await.unwrap();
    assert_eq!(bench.stat("/a").await.unwrap_err().reason, "SANDBOX_PAUSED");
    assert_eq!(bench.upload(stream::iter([bench.header()])).await.unwrap_err().reason, "SANDBOX_PAUSED");
    bench.world.resume(bench.id).await.unwrap();
    let unknown = v1::StatFileRequest {
        sandbox_id: "sb01jd8z4n00000000000000000a".into(),
        path: "/a".into(),
        ..Default::default()
    };
    assert_eq!(failed(bench.files().stat_file(unknown).await).reason, "SANDBOX_NOT_FOUND");

    let (slow, ()) = tokio::join!(bench.stat("/slow"), async {
        bench.world.settle().await;
        bench.world.release(bench.id).await.unwrap();
    });
    assert_eq!(slow.unwrap_err().reason, "SANDBOX_GONE");
}

#[tokio::test]
async fn stream_that_nobody_reads_is_not_taken_and_ends_with_the_sandbox() {
    let bench = Bench::start().await;
    let request = v1::DownloadFileRequest { sandbox_id: bench.sandbox_id(), path: "/a".into(), ..Default::default() };
    let mut pieces = bench.files().download_file(request).await.unwrap().into_inner();
    for _ in 0..20 {
        assert_eq!(pieces.message().await.unwrap().unwrap().data.len(), 256 * 1024);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let taken = bench.play.taken.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bench.play.taken.load(Ordering::SeqCst), taken, "nothing is taken that is not read");
    assert!(taken < 20 + 16, "{taken} pieces of 256 KiB were taken");

    let request = v1::WatchFilesRequest { sandbox_id: bench.sandbox_id(), path: "/a".into(), ..Default::default() };
    let mut events = bench.files().watch_files(request).await.unwrap().into_inner();
    assert!(events.message().await.unwrap().is_some());
    bench.world.release(bench.id).await.unwrap();
    let ended = timeout(Duration::from_secs(30), events.message()).await.unwrap().unwrap_err();
    assert_eq!(Failure::of(&ended).reason, "SANDBOX_GONE");
    let ended = timeout(Duration::from_secs(30), async {
        loop {
            if let Err(status) = pieces.message().await {
                return status;
            }
        }
    });
    assert_eq!(Failure::of(&ended.await.unwrap()).reason, "SANDBOX_GONE");
}

#[tokio::test(start_paused = true)]
async fn downloads_that_nobody_reads_hold_up_nothing_else() {
    let bench = Bench::start().await;
    let mut held = Vec::new();
    for _ in 0..10 {
        let request =
            v1::DownloadFileRequest { sandbox_id: bench.sandbox_id(), path: "/a".into(), ..Default::default() };
        held.push(bench.files().download_file(request).await.unwrap().into_inner());
    }
    bench.world.settle().await;
    timeout(Duration::from_secs(5), bench.stat("/a")).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn lease_that_ends_ends_a_stream() {
    let bench = Bench::start().await;
    bench.world.keep_alive(bench.id, 10).await.unwrap();
    let request = v1::WatchFilesRequest { sandbox_id: bench.sandbox_id(), path: "/a".into(), ..Default::default() };
    let mut events = bench.files().watch_files(request).await.unwrap().into_inner();
    events.message().await.unwrap();
    let ended = timeout(Duration::from_secs(20), events.message()).await.unwrap().unwrap_err();
    assert_eq!(Failure::of(&ended).reason, "LEASE_ENDED");
}

#[tokio::test(start_paused = true)]
async fn upload_is_relayed_and_committed() {
    let bench = Bench::start().await;
    let messages = [bench.header(), data(3 * MIB), data(4 * MIB), commit(), data(1)];
    assert_eq!(bench.upload(stream::iter(messages)).await.unwrap().file, info());
    assert_eq!(bench.uploaded(), (7 * MIB, Some(true)));

    let header = v1::UploadArchiveHeader { sandbox_id: bench.sandbox_id(), path: "/a".into(), ..Default::default() };
    let part = |part| v1::UploadArchiveRequest { part: Some(part) };
    let messages = [
        part(v1::upload_archive_request::Part::Header(header)),
        part(v1::upload_archive_request::Part::Data(vec![1; 5].into())),
        part(v1::upload_archive_request::Part::Commit(UploadCommit {})),
    ];
    let answer = bench.files().upload_archive(stream::iter(messages)).await.unwrap().into_inner();
    assert_eq!((answer.entries, answer.bytes, bench.uploaded()), (1, 2, (5, Some(true))));
}

#[tokio::test(start_paused = true)]
async fn upload_that_is_not_what_it_should_be_is_never_committed() {
    let bench = Bench::start().await;
    let cases = [
        (vec![], "header"),
        (vec![data(1), commit()], "header"),
        (vec![v1::UploadFileRequest::default(), commit()], "header"),
        (vec![bench.header(), data(5)], "commit"),
        (vec![bench.header()], "commit"),
        (vec![bench.header(), bench.header(), commit()], "header"),
        (vec![bench.header(), data(4 * MIB + 1), commit()], "data"),
    ];
    for (messages, field) in cases {
        let failure = bench.upload(stream::iter(messages)).await.unwrap_err();
        assert_eq!((failure.kind, failure.fields), ("INVALID_ARGUMENT", vec![field.to_owned()]));
        bench.world.settle().await;
        assert_ne!(bench.uploaded().1, Some(true), "{field}");
    }
    let bad =
        v1::UploadFileHeader { sandbox_id: bench.sandbox_id(), path: "a".into(), mode: 512, ..Default::default() };
    let bad = v1::UploadFileRequest { part: Some(Part::Header(bad)) };
    assert_eq!(bench.upload(stream::iter([bad])).await.unwrap_err().fields, ["path", "mode"]);
}

#[tokio::test(start_paused = true)]
async fn upload_whose_caller_leaves_is_never_committed() {
    let bench = Bench::start().await;
    let messages = stream::iter([bench.header(), data(5)]).chain(stream::pending());
    assert!(timeout(Duration::from_millis(200), bench.upload(messages)).await.is_err());
    bench.world.settle().await;
    assert_eq!(bench.uploaded(), (5, Some(false)));
}

#[tokio::test(start_paused = true)]
async fn upload_that_the_agent_refuses_or_whose_sandbox_ends_ends_at_once() {
    let bench = Bench::start().await;
    let endless = || stream::iter([bench.header(), data(5)]).chain(stream::pending());
    *bench.play.refusal.lock().unwrap() = Some(Status::resource_exhausted("no space left"));
    let failure = timeout(Duration::from_secs(5), bench.upload(endless())).await.unwrap().unwrap_err();
    assert_eq!(failure.words(), ("RESOURCE_EXHAUSTED", "FILE_REFUSED"));
    *bench.play.refusal.lock().unwrap() = None;

    let (failure, ()) = tokio::join!(bench.upload(endless()), async {
        bench.world.settle().await;
        bench.world.release(bench.id).await.unwrap();
    });
    assert_eq!(failure.unwrap_err().reason, "SANDBOX_GONE");
}

/// A node with the real agent, whose files are a folder's.
async fn real() -> (World, SandboxId, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    tokio::spawn(serve_agent(UnixListener::bind(&socket).unwrap(), Agent::new(Children::own()).unwrap()));
    let runtime = Arc::new(FakeRuntime::new(move |_, mut ours| {
        let socket = socket.clone();
        tokio::spawn(async move {
            let mut agents = UnixStream::connect(socket).await.unwrap();
            copy_bidirectional_with_sizes(&mut ours, &mut agents, MIB, MIB).await
        });
    }));
    let world = World::start_on(options(1, 1), runtime, Arc::default()).await;
    let id = world.acquire().await;
    (world, id, folder)
}

#[tokio::test]
async fn large_file_goes_through_to_the_real_agent_and_back() {
    const PIECES: usize = 128;
    let (world, id, folder) = real().await;
    let files = FileServiceClient::new(in_process(world.node.file_service()));
    let path = folder.path().join("large").to_str().unwrap().to_owned();
    let piece = |number: usize| Bytes::from(vec![number as u8; MIB / 2]);
    let header = v1::UploadFileHeader { sandbox_id: id.to_string(), path: path.clone(), ..Default::default() };
    let messages = stream::iter([Part::Header(header)])
        .chain(stream::iter((0..PIECES).map(move |number| Part::Data(piece(number)))))
        .chain(stream::iter([Part::Commit(UploadCommit {})]))
        .map(|part| v1::UploadFileRequest { part: Some(part) });
    let began = Instant::now();
    let file = files.clone().upload_file(messages).await.unwrap().into_inner().file.unwrap();
    let uploaded = began.elapsed();
    assert_eq!(file.size as usize, PIECES * MIB / 2);

    let began = Instant::now();
    let request = v1::DownloadFileRequest { sandbox_id: id.to_string(), path, ..Default::default() };
    let mut download = files.clone().download_file(request).await.unwrap().into_inner();
    let mut read = 0;
    while let Some(message) = download.message().await.unwrap() {
        for byte in message.data.iter().step_by(4099) {
            assert!(usize::from(*byte) < PIECES);
        }
        read += message.data.len();
    }
    assert_eq!(read, PIECES * MIB / 2);
    let rate = |time: Duration| (read / MIB) as f64 / time.as_secs_f64();
    println!("up {:.0} MiB/s, down {:.0} MiB/s", rate(uploaded), rate(began.elapsed()));
}

#[tokio::test]
async fn real_agents_answers_mean_what_the_contract_says() {
    let (world, id, folder) = real().await;
    let mut files = FileServiceClient::new(in_process(world.node.file_service()));
    let (sandbox_id, root) = (id.to_string(), folder.path().to_str().unwrap().to_owned());
    let write = |path: &str, if_etag: &str| WriteFileRequest {
        sandbox_id: sandbox_id.clone(),
        path: format!("{root}/{path}"),
        body: Some(Body::Content("é".into())),
        if_etag: if_etag.into(),
        ..Default::default()
    };
    let file = files.write_file(write("d/a", "*none")).await.unwrap().into_inner().file.unwrap();
    assert_eq!(failed(files.write_file(write("d/a", "*none")).await).words(), ("ABORTED", "FILE_CHANGED"));
    files.write_file(write("d/a", &file.etag)).await.unwrap();
    assert_eq!(failed(files.write_file(write("d/a", &file.etag)).await).words(), ("ABORTED", "FILE_CHANGED"));
    assert_eq!(failed(files.write_file(write("d", "")).await).words(), ("FAILED_PRECONDITION", "FILE_REFUSED"));

    let stat = |path: &str| v1::StatFileRequest {
        sandbox_id: sandbox_id.clone(),
        path: format!("{root}/{path}"),
        ..Default::default()
    };
    assert_eq!(failed(files.stat_file(stat("none")).await).words(), ("NOT_FOUND", "FILE_NOT_FOUND"));
    files.write_file(write("d/b", "")).await.unwrap();
    let moving = v1::MoveFileRequest {
        sandbox_id: sandbox_id.clone(),
        source: format!("{root}/d/a"),
        destination: format!("{root}/d/b"),
        ..Default::default()
    };
    assert_eq!(failed(files.move_file(moving).await).words(), ("ALREADY_EXISTS", "FILE_EXISTS"));

    std::fs::write(folder.path().join("large"), vec![0; 8 * MIB + 1]).unwrap();
    let read =
        v1::ReadFileRequest { sandbox_id: sandbox_id.clone(), path: format!("{root}/large"), ..Default::default() };
    let failure = failed(files.read_file(read).await);
    assert_eq!(failure.words(), ("OUT_OF_RANGE", "FILE_TOO_LARGE"));
    assert!(failure.message.contains("8388609"), "{}", failure.message);

    let list = v1::ListFilesRequest { sandbox_id: sandbox_id.clone(), path: format!("{root}/d"), ..Default::default() };
    let names = files.list_files(list.clone()).await.unwrap().into_inner().files;
    assert_eq!(names.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let bad = v1::ListFilesRequest { glob: "[".into(), ..list.clone() };
    assert_eq!(failed(files.list_files(bad).await).fields, ["glob"]);
    let bad = v1::ListFilesRequest { page_token: "?".into(), ..list };
    assert_eq!(failed(files.list_files(bad).await).fields, ["page_token"]);
    let bad = v1::SearchFilesRequest { sandbox_id, path: root.clone(), pattern: "(".into(), ..Default::default() };
    assert_eq!(failed(files.search_files(bad).await).fields, ["pattern"]);
}
