//! The node.v1 contract.

use std::pin::Pin;

use cloud_sandbox_model::{ErrorKind, SandboxId, error::reason};
use cloud_sandbox_proto::{
    node::v1::{
        AcquireSandboxRequest, AcquireSandboxResponse, DeleteFileRequest, DeleteFileResponse, ExecRequest,
        ExecResponse, ExecuteRequest, ExecuteResponse, ExecuteStreamRequest, ExecuteStreamResponse, GetSandboxRequest,
        GetSandboxResponse, KeepAliveSandboxRequest, KeepAliveSandboxResponse, PauseSandboxRequest,
        PauseSandboxResponse, ReadFileRequest, ReadFileResponse, ReleaseSandboxRequest, ReleaseSandboxResponse,
        ResumeSandboxRequest, ResumeSandboxResponse, WriteFileRequest, WriteFileResponse,
        node_service_server::NodeService,
    },
    v1::{self, exec_event::Event, exec_output::Content, exec_request::Input},
};
use futures::Stream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    FOREVER,
    node::{InFlight, SimNode, status},
};

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn event(event: Event) -> Option<v1::ExecEvent> {
    Some(v1::ExecEvent { event: Some(event) })
}

fn started() -> Event {
    Event::Started(v1::ExecStarted { execution_id: "ex1".into() })
}

fn stdout(text: &str) -> Event {
    Event::Stdout(v1::ExecOutput { offset: 0, content: Some(Content::Text(text.into())) })
}

fn wanted<T>(part: Option<T>) -> Result<T, Status> {
    part.ok_or_else(|| Status::invalid_argument("the request is missing"))
}

fn output(code: String, in_flight: InFlight) -> Events<ExecuteStreamResponse> {
    Box::pin(async_stream::stream! {
        let _in_flight = in_flight;
        yield Ok(ExecuteStreamResponse { event: event(started()) });
        yield Ok(ExecuteStreamResponse { event: event(stdout(&code)) });
        if code == FOREVER {
            loop {
                tokio::task::yield_now().await;
                yield Ok(ExecuteStreamResponse { event: event(stdout(&code)) });
            }
        }
        yield Ok(ExecuteStreamResponse { event: event(Event::Exited(v1::ExecExited::default())) });
    })
}

fn echo(node: SimNode, mut input: Streaming<ExecRequest>, in_flight: InFlight) -> Events<ExecResponse> {
    Box::pin(async_stream::stream! {
        let _in_flight = in_flight;
        loop {
            let message = input.message().await;
            let Ok(Some(ExecRequest { request: Some(v1::ExecRequest { input: Some(message) }) })) = message else {
                // neither an end nor a cancel says that standard input is closed
                node.state().input.push("end".into());
                std::future::pending::<()>().await;
                return;
            };
            let (note, answer) = match message {
                Input::Start(_) => ("start".to_owned(), Some(started())),
                Input::Stdin(bytes) => {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    (format!("stdin {text}"), Some(stdout(&text)))
                }
                Input::CloseStdin(_) => ("close".to_owned(), Some(Event::Exited(v1::ExecExited::default()))),
                Input::Resize(_) => ("resize".to_owned(), None),
                Input::Signal(name) => (format!("signal {name}"), None),
            };
            node.state().input.push(note);
            let ends = matches!(answer, Some(Event::Exited(_)));
            if let Some(answer) = answer {
                yield Ok(ExecResponse { event: event(answer) });
            }
            if ends {
                return;
            }
        }
    })
}

#[tonic::async_trait]
impl NodeService for SimNode {
    async fn acquire_sandbox(
        &self,
        request: Request<AcquireSandboxRequest>,
    ) -> Result<Response<AcquireSandboxResponse>, Status> {
        let call = self.enter("AcquireSandbox", &request).await?;
        let request = request.into_inner();
        let (owner, wanted) = (wanted(request.owner)?, wanted(request.request)?);
        let key = format!("{}/{}/{}", owner.tenant, owner.user_id, wanted.request_id);
        let answered = self.state().answers.get(&key).cloned();
        if let Some((first, sandbox)) = answered {
            if first != wanted {
                return Err(status(ErrorKind::AlreadyExists, reason::REQUEST_ID_REUSED, "other content"));
            }
            return call.reply(AcquireSandboxResponse { sandbox: Some(sandbox), warm: true });
        }
        let sandbox = self.make(&owner, &wanted).await?;
        if !wanted.request_id.is_empty() {
            self.state().answers.insert(key, (wanted, sandbox.clone()));
        }
        call.reply(AcquireSandboxResponse { sandbox: Some(sandbox), warm: true })
    }

    async fn release_sandbox(
        &self,
        request: Request<ReleaseSandboxRequest>,
    ) -> Result<Response<ReleaseSandboxResponse>, Status> {
        let call = self.enter("ReleaseSandbox", &request).await?;
        let sandbox = self.hosted(&request.get_ref().sandbox_id)?;
        let id: SandboxId = sandbox.sandbox_id.parse().map_err(cloud_sandbox_rpc::to_status)?;
        self.forget(id);
        self.0.directory.remove_sandbox(id).await.expect("the directory forgets sandboxes");
        call.reply(ReleaseSandboxResponse {})
    }

    async fn keep_alive_sandbox(
        &self,
        request: Request<KeepAliveSandboxRequest>,
    ) -> Result<Response<KeepAliveSandboxResponse>, Status> {
        let call = self.enter("KeepAliveSandbox", &request).await?;
        let sandbox = self.hosted(&request.get_ref().sandbox_id)?;
        call.reply(KeepAliveSandboxResponse { sandbox: Some(sandbox) })
    }

    async fn get_sandbox(&self, request: Request<GetSandboxRequest>) -> Result<Response<GetSandboxResponse>, Status> {
        let call = self.enter("GetSandbox", &request).await?;
        let sandbox = self.hosted(&request.get_ref().sandbox_id)?;
        call.reply(GetSandboxResponse { sandbox: Some(sandbox) })
    }

    async fn pause_sandbox(
        &self,
        request: Request<PauseSandboxRequest>,
    ) -> Result<Response<PauseSandboxResponse>, Status> {
        let call = self.enter("PauseSandbox", &request).await?;
        let sandbox = self.turn(&request.get_ref().sandbox_id, v1::SandboxState::Paused)?;
        call.reply(PauseSandboxResponse { sandbox: Some(sandbox) })
    }

    async fn resume_sandbox(
        &self,
        request: Request<ResumeSandboxRequest>,
    ) -> Result<Response<ResumeSandboxResponse>, Status> {
        let call = self.enter("ResumeSandbox", &request).await?;
        let sandbox = self.turn(&request.get_ref().sandbox_id, v1::SandboxState::Acquired)?;
        call.reply(ResumeSandboxResponse { sandbox: Some(sandbox) })
    }

    async fn execute(&self, request: Request<ExecuteRequest>) -> Result<Response<ExecuteResponse>, Status> {
        let call = self.enter("Execute", &request).await?;
        let request = wanted(request.into_inner().request)?;
        self.hosted(&request.sandbox_id)?;
        let response = v1::ExecuteResponse { stdout: request.code().to_owned(), ..v1::ExecuteResponse::default() };
        call.reply(ExecuteResponse { response: Some(response) })
    }

    type ExecuteStreamStream = Events<ExecuteStreamResponse>;

    async fn execute_stream(
        &self,
        request: Request<ExecuteStreamRequest>,
    ) -> Result<Response<Self::ExecuteStreamStream>, Status> {
        let call = self.enter("ExecuteStream", &request).await?;
        let request = wanted(request.into_inner().request)?;
        self.hosted(&request.sandbox_id)?;
        Ok(Response::new(output(request.code().to_owned(), call.in_flight)))
    }

    type ExecStream = Events<ExecResponse>;

    async fn exec(&self, request: Request<Streaming<ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        let call = self.enter("Exec", &request).await?;
        Ok(Response::new(echo(self.clone(), request.into_inner(), call.in_flight)))
    }

    async fn read_file(&self, request: Request<ReadFileRequest>) -> Result<Response<ReadFileResponse>, Status> {
        let call = self.enter("ReadFile", &request).await?;
        let request = wanted(request.into_inner().request)?;
        self.hosted(&request.sandbox_id)?;
        let file = v1::FileInfo { path: request.path, ..v1::FileInfo::default() };
        call.reply(ReadFileResponse {
            response: Some(v1::ReadFileResponse { file: Some(file), ..v1::ReadFileResponse::default() }),
        })
    }

    async fn write_file(&self, request: Request<WriteFileRequest>) -> Result<Response<WriteFileResponse>, Status> {
        let call = self.enter("WriteFile", &request).await?;
        let request = wanted(request.into_inner().request)?;
        self.hosted(&request.sandbox_id)?;
        call.reply(WriteFileResponse { file: Some(v1::FileInfo { path: request.path, ..v1::FileInfo::default() }) })
    }

    async fn delete_file(&self, request: Request<DeleteFileRequest>) -> Result<Response<DeleteFileResponse>, Status> {
        let call = self.enter("DeleteFile", &request).await?;
        let request = wanted(request.into_inner().request)?;
        self.hosted(&request.sandbox_id)?;
        call.reply(DeleteFileResponse {})
    }
}

impl SimNode {
    fn turn(&self, id: &str, state: v1::SandboxState) -> Result<v1::Sandbox, Status> {
        let mut sandbox = self.hosted(id)?;
        sandbox.state = state.into();
        let parsed: SandboxId = id.parse().map_err(cloud_sandbox_rpc::to_status)?;
        if let Some((_, hosted)) = self.state().sandboxes.get_mut(&parsed) {
            hosted.state = state.into();
        }
        Ok(sandbox)
    }
}
