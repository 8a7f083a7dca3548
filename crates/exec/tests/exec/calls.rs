//! What holds for every call of the three services.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    time::Duration,
};

use cloud_sandbox_auth::{Principal, Role};
use cloud_sandbox_model::{Error, ErrorKind, SandboxId, error::reason};
use cloud_sandbox_proto::v1::*;
use cloud_sandbox_rpc::from_status;
use cloud_sandbox_sim_node::{Fault, principal};
use cloud_sandbox_storage::Directory;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto};
use tonic::{Request, Response, Status, Streaming};

use crate::support::{Clients, World, code, error, header, ids, input, start, streamed};

/// Each call of the three services about `id` (see [`ids`]), with the error that it ends with.
pub async fn every_call(clients: Clients, id: &str) -> Vec<(&'static str, Option<Error>)> {
    let Clients { mut exec, mut contexts, mut files } = clients;
    let (sandbox_id, session_id) = ids(id);
    let mut made = Vec::new();
    macro_rules! about {
        ($request:ident) => {
            $request { sandbox_id: sandbox_id.clone(), session_id: session_id.clone(), ..$request::default() }
        };
    }
    macro_rules! plain {
        ($client:ident: $($name:literal $method:ident $request:ident,)*) => {$(
            let request = about!($request);
            made.push(($name, $client.$method(request).await.err().map(|status| from_status(&status))));
        )*};
    }
    plain! { exec:
        "Execute" execute ExecuteRequest,
        "ListExecutions" list_executions ListExecutionsRequest,
        "GetExecution" get_execution GetExecutionRequest,
        "ReadExecutionOutput" read_execution_output ReadExecutionOutputRequest,
        "GrepExecutionOutput" grep_execution_output GrepExecutionOutputRequest,
        "WriteExecutionStdin" write_execution_stdin WriteExecutionStdinRequest,
        "SignalExecution" signal_execution SignalExecutionRequest,
        "ResizeExecutionTerminal" resize_execution_terminal ResizeExecutionTerminalRequest,
    }
    plain! { contexts:
        "CreateContext" create_context CreateContextRequest,
        "GetContext" get_context GetContextRequest,
        "RestartContext" restart_context RestartContextRequest,
        "InterruptContext" interrupt_context InterruptContextRequest,
        "DeleteContext" delete_context DeleteContextRequest,
    }
    plain! { files:
        "ReadFile" read_file ReadFileRequest,
        "WriteFile" write_file WriteFileRequest,
        "WriteFiles" write_files WriteFilesRequest,
        "DeleteFile" delete_file DeleteFileRequest,
        "ListFiles" list_files ListFilesRequest,
        "StatFile" stat_file StatFileRequest,
        "MakeFolder" make_folder MakeFolderRequest,
        "ChangeMode" change_mode ChangeModeRequest,
        "MoveFile" move_file MoveFileRequest,
        "CopyFile" copy_file CopyFileRequest,
        "SearchFiles" search_files SearchFilesRequest,
    }
    let contexts = contexts
        .list_contexts(ListContextsRequest { sandbox_id: sandbox_id.clone(), session_id: session_id.clone() })
        .await;
    made.push(("ListContexts", contexts.err().map(|status| from_status(&status))));
    let background = StartExecutionRequest { request: Some(code(id, "1")) };
    made.push(("StartExecution", exec.start_execution(background).await.err().map(|status| from_status(&status))));
    let attach = about!(AttachExecutionRequest);
    made.push(("AttachExecution", opened(exec.attach_execution(attach).await).await));
    made.push(("ExecuteStream", opened(exec.execute_stream(streamed(id, "1")).await).await));
    made.push(("Exec", opened(exec.exec(tokio_stream::iter([start(id)])).await).await));
    let attach = input(exec_request::Input::Attach(about!(ExecAttach)));
    made.push(("Exec", opened(exec.exec(tokio_stream::iter([attach])).await).await));
    let download = about!(DownloadFileRequest);
    made.push(("DownloadFile", opened(files.download_file(download).await).await));
    let watch = about!(WatchFilesRequest);
    made.push(("WatchFiles", opened(files.watch_files(watch).await).await));
    let archive = about!(DownloadArchiveRequest);
    made.push(("DownloadArchive", opened(files.download_archive(archive).await).await));
    let uploaded = files.upload_file(tokio_stream::iter([header(id), crate::support::commit()])).await;
    made.push(("UploadFile", uploaded.err().map(|status| from_status(&status))));
    let into = about!(UploadArchiveHeader);
    let parts = [
        UploadArchiveRequest { part: Some(upload_archive_request::Part::Header(into)) },
        UploadArchiveRequest { part: Some(upload_archive_request::Part::Commit(UploadCommit {})) },
    ];
    let unpacked = files.upload_archive(tokio_stream::iter(parts)).await;
    made.push(("UploadArchive", unpacked.err().map(|status| from_status(&status))));
    made
}

/// The error of a stream, or none when its first message came.
async fn opened<T: Debug>(call: Result<Response<Streaming<T>>, Status>) -> Option<Error> {
    let first = match call {
        Ok(stream) => stream.into_inner().message().await,
        Err(status) => Err(status),
    };
    first.err().map(|status| from_status(&status))
}

/// The public contracts.
fn contracts() -> Vec<FileDescriptorProto> {
    let set: FileDescriptorSet = prost::Message::decode(cloud_sandbox_proto::DESCRIPTOR_SET).unwrap();
    set.file.into_iter().filter(|file| file.package() == "cloud_sandbox.v1").collect()
}

/// The methods that the contracts of the three services have.
fn methods() -> Vec<MethodDescriptorProto> {
    let services = contracts().into_iter().flat_map(|file| file.service);
    let ours = services.filter(|service| ["ExecService", "ContextService", "FileService"].contains(&service.name()));
    ours.flat_map(|service| service.method).collect()
}

/// The fields of the message of this name, and of the messages in it, after the path that leads there.
fn fields(messages: &BTreeMap<String, DescriptorProto>, name: &str, path: &str) -> Vec<String> {
    let mut all = Vec::new();
    for field in messages.get(name.rsplit('.').next().unwrap()).into_iter().flat_map(|message| &message.field) {
        let path = format!("{path}.{}", field.name());
        all.extend(fields(messages, field.type_name(), &path));
        all.push(path);
    }
    all
}

#[test]
fn every_request_that_names_a_sandbox_may_name_a_session() {
    let messages = contracts().into_iter().flat_map(|file| file.message_type);
    let messages: BTreeMap<_, _> = messages.map(|message| (message.name().to_owned(), message)).collect();
    for method in methods() {
        let fields = fields(&messages, method.input_type(), method.name());
        let sandboxes: Vec<_> = fields.iter().filter_map(|field| field.strip_suffix("sandbox_id")).collect();
        assert!(!sandboxes.is_empty(), "{} is about no sandbox", method.name());
        for place in sandboxes {
            assert!(fields.contains(&format!("{place}session_id")), "{place}sandbox_id has no session_id beside it");
        }
    }
}

#[tokio::test]
async fn every_call_takes_a_session_in_place_of_its_sandbox_and_the_node_never_hears_of_it() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let session = world.sessions.running("ada", id);
    let made = every_call(world.ada(), &session).await;
    for (method, error) in &made {
        assert!(error.is_none(), "{method}: {error:?}");
    }
    let tried: Vec<_> = made.iter().map(|(method, _)| *method).collect();
    assert_eq!(world.node.calls(), tried);
    let all: BTreeSet<_> = methods().iter().map(|method| method.name().to_owned()).collect();
    assert_eq!(tried.iter().map(|method| (*method).to_owned()).collect::<BTreeSet<_>>(), all);
}

#[tokio::test]
async fn every_method_of_the_contracts_is_relayed_to_the_same_at_the_node() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let made = every_call(world.ada(), &id.to_string()).await;
    for (method, error) in &made {
        assert!(error.is_none(), "{method}: {error:?}");
    }
    let tried: Vec<_> = made.iter().map(|(method, _)| *method).collect();
    assert_eq!(world.node.calls(), tried);
    let all: BTreeSet<_> = methods().iter().map(|method| method.name().to_owned()).collect();
    assert_eq!(tried.iter().map(|method| (*method).to_owned()).collect::<BTreeSet<_>>(), all);
}

#[tokio::test]
async fn call_is_relayed_with_its_request_id_and_deadline() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let mut request = Request::new(code(id, "print(1)"));
    request.metadata_mut().insert("x-request-id", "r1".parse().unwrap());
    request.set_timeout(Duration::from_secs(9));
    let response = world.ada().exec.execute(request).await.unwrap().into_inner();
    assert_eq!(response.stdout, "print(1)");
    assert_eq!(world.node.last_context(), (Some("r1".into()), true));
}

#[tokio::test]
async fn somebody_elses_sandbox_is_not_found_by_any_call_and_its_node_is_not_asked() {
    let world = World::new().await;
    let id = world.node.host("ada").await.to_string();
    let other = Principal { tenant: "other".into(), ..principal("ada", Role::Admin) };
    let mut heard = every_call(world.by("bob"), &id).await;
    heard.extend(every_call(world.as_principal(other), &id).await);
    heard.extend(every_call(world.ada(), &SandboxId::generate().to_string()).await);
    for (method, error) in heard {
        let error = error.unwrap();
        assert_eq!((error.kind(), error.reason()), (ErrorKind::NotFound, reason::SANDBOX_NOT_FOUND), "{method}");
    }
    assert_eq!(world.node.calls(), [""; 0]);
}

#[tokio::test]
async fn admin_runs_in_its_tenants_sandboxes() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    assert!(world.as_principal(principal("root", Role::Admin)).exec.execute(code(id, "1")).await.is_ok());
}

#[tokio::test]
async fn missing_sandbox_id_is_named_by_every_call() {
    let world = World::new().await;
    for (method, error) in every_call(world.ada(), "").await {
        let error = error.unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{method}");
        assert_eq!(error.violations()[0].field, "sandbox_id", "{method}");
        assert!(error.message().contains("session_id"), "{method}: {error}");
    }
}

#[tokio::test]
async fn unreachable_node_is_unavailable_to_every_call() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    world.node.cut_off();
    for (method, error) in every_call(world.ada(), &id.to_string()).await {
        let error = error.unwrap();
        assert_eq!((error.kind(), error.reason()), (ErrorKind::Unavailable, reason::NODE_UNREACHABLE), "{method}");
    }
    assert!(world.directory.sandbox(id).await.unwrap().is_some(), "its lease goes on");
}

#[tokio::test]
async fn sandbox_that_its_node_does_not_know_is_not_found_though_its_entry_was_just_read() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let mut client = world.ada().exec;
    client.execute(code(id, "1")).await.unwrap();
    world.node.forget(id);
    assert_eq!(error(client.execute(code(id, "1")).await).reason(), reason::SANDBOX_NOT_FOUND);
    assert_eq!(world.directory.sandbox(id).await.unwrap(), None);
}

#[tokio::test]
async fn what_an_ended_sandbox_printed_is_read_and_all_else_is_gone() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let clients = world.ada();
    // the copy of its entry is of when it lived
    clients.exec.clone().execute(code(id, "1")).await.unwrap();
    world.node.end(id).await;
    let read = ["ListExecutions", "GetExecution", "ReadExecutionOutput", "GrepExecutionOutput", "AttachExecution"];
    for (method, error) in every_call(clients, &id.to_string()).await {
        match error {
            None => assert!(read.contains(&method) || method == "Exec", "{method} is not refused"),
            Some(error) => {
                assert_eq!((error.kind(), error.reason()), (ErrorKind::NotFound, reason::SANDBOX_GONE), "{method}");
                assert!(!read.contains(&method), "{method}");
            }
        }
    }
    assert!(world.directory.sandbox(id).await.unwrap().unwrap().ended, "it is not forgotten");
    let bob = every_call(world.by("bob"), &id.to_string()).await;
    assert!(bob.iter().all(|(_, error)| error.as_ref().unwrap().reason() == reason::SANDBOX_NOT_FOUND));
}

#[tokio::test]
async fn missing_file_does_not_make_the_sandbox_forgotten() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    world.node.fail("ReadFile", Fault::Refuse(ErrorKind::NotFound));
    let request = ReadFileRequest { sandbox_id: id.to_string(), path: "/a".into(), ..ReadFileRequest::default() };
    let refused = error(world.ada().files.read_file(request).await);
    assert_eq!((refused.kind(), refused.reason()), (ErrorKind::NotFound, "SIMULATED"));
    assert!(world.directory.sandbox(id).await.unwrap().is_some());
}

#[tokio::test]
async fn what_the_node_says_reaches_the_caller_as_it_is() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    for kind in [ErrorKind::FailedPrecondition, ErrorKind::AlreadyExists, ErrorKind::DataLoss, ErrorKind::OutOfRange] {
        world.node.fail("Execute", Fault::Refuse(kind));
        let refused = error(world.ada().exec.execute(code(id, "1")).await);
        assert_eq!((refused.kind(), refused.reason()), (kind, "SIMULATED"));
    }
}
