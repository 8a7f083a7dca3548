//! ExecService.

use cloud_sandbox_proto::v1::{
    AttachExecutionRequest, AttachExecutionResponse, ExecEvent, ExecExited, ExecOutput, ExecRequest, ExecResponse,
    ExecStarted, ExecuteRequest, ExecuteResponse, ExecuteStreamRequest, ExecuteStreamResponse, Execution,
    GetExecutionRequest, GetExecutionResponse, GrepExecutionOutputRequest, GrepExecutionOutputResponse,
    ListExecutionsRequest, ListExecutionsResponse, ReadExecutionOutputRequest, ReadExecutionOutputResponse,
    ResizeExecutionTerminalRequest, ResizeExecutionTerminalResponse, SignalExecutionRequest, SignalExecutionResponse,
    StartExecutionRequest, StartExecutionResponse, WriteExecutionStdinRequest, WriteExecutionStdinResponse,
    exec_event::Event, exec_output::Content, exec_request::Input, exec_service_server::ExecService,
};
use futures::Stream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    FOREVER,
    node::{Events, SimNode, only, service, wanted},
};

const EXECUTION: &str = "ex1";

fn some(event: Event) -> Option<ExecEvent> {
    Some(ExecEvent { event: Some(event) })
}

fn started() -> Event {
    Event::Started(ExecStarted { execution_id: EXECUTION.into(), pid: 1 })
}

fn stdout(text: &str) -> Event {
    Event::Stdout(ExecOutput { offset: 0, content: Some(Content::Text(text.into())) })
}

fn exited() -> Event {
    Event::Exited(ExecExited::default())
}

/// The events of an execution that prints `code`.
fn output(code: String) -> impl Stream<Item = Event> + Send {
    async_stream::stream! {
        yield started();
        yield stdout(&code);
        if code == FOREVER {
            loop {
                tokio::task::yield_now().await;
                yield stdout(&code);
            }
        }
        yield exited();
    }
}

fn echo(
    node: SimNode,
    first: Input,
    mut input: Streaming<ExecRequest>,
) -> impl Stream<Item = Result<ExecResponse, Status>> + Send {
    async_stream::stream! {
        let mut first = Some(first);
        loop {
            let message = match first.take() {
                Some(first) => Some(first),
                None => input.message().await.ok().flatten().and_then(|message| message.input),
            };
            let Some(message) = message else {
                // neither an end nor a cancel says that standard input is closed
                node.state().input.push("end".into());
                std::future::pending::<()>().await;
                return;
            };
            let (note, answer) = match message {
                Input::Start(_) => ("start".to_owned(), Some(started())),
                Input::Attach(_) => ("attach".to_owned(), Some(started())),
                Input::Stdin(bytes) => {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    (format!("stdin {text}"), Some(stdout(&text)))
                }
                Input::CloseStdin(_) => ("close".to_owned(), Some(exited())),
                Input::Resize(_) => ("resize".to_owned(), None),
                Input::Signal(name) => (format!("signal {name}"), None),
            };
            node.state().input.push(note);
            let ends = matches!(answer, Some(Event::Exited(_)));
            if let Some(answer) = answer {
                yield Ok(ExecResponse { event: some(answer) });
            }
            if ends {
                return;
            }
        }
    }
}

service! {
    ExecService;
    readable "ListExecutions" list_executions(ListExecutionsRequest) -> ListExecutionsResponse;
    readable "GetExecution" get_execution(GetExecutionRequest) -> GetExecutionResponse;
    readable "ReadExecutionOutput"
        read_execution_output(ReadExecutionOutputRequest) -> ReadExecutionOutputResponse;
    readable "GrepExecutionOutput"
        grep_execution_output(GrepExecutionOutputRequest) -> GrepExecutionOutputResponse;
    usable "WriteExecutionStdin"
        write_execution_stdin(WriteExecutionStdinRequest) -> WriteExecutionStdinResponse;
    usable "SignalExecution" signal_execution(SignalExecutionRequest) -> SignalExecutionResponse;
    usable "ResizeExecutionTerminal"
        resize_execution_terminal(ResizeExecutionTerminalRequest) -> ResizeExecutionTerminalResponse;
    {
        async fn execute(&self, request: Request<ExecuteRequest>) -> Result<Response<ExecuteResponse>, Status> {
            let call = self.enter("Execute", &request).await?;
            let request = request.into_inner();
            self.usable(only(&request.sandbox_id, &request.session_id)?)?;
            call.reply(ExecuteResponse { stdout: request.code().to_owned(), ..ExecuteResponse::default() })
        }

        type ExecuteStreamStream = Events<ExecuteStreamResponse>;

        async fn execute_stream(
            &self,
            request: Request<ExecuteStreamRequest>,
        ) -> Result<Response<Self::ExecuteStreamStream>, Status> {
            let call = self.enter("ExecuteStream", &request).await?;
            let request = wanted(request.into_inner().request)?;
            self.usable(only(&request.sandbox_id, &request.session_id)?)?;
            let events = output(request.code().to_owned());
            call.stream(futures::StreamExt::map(events, |event| Ok(ExecuteStreamResponse { event: some(event) })))
        }

        type ExecStream = Events<ExecResponse>;

        async fn exec(&self, request: Request<Streaming<ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
            let call = self.enter("Exec", &request).await?;
            let mut input = request.into_inner();
            let first = wanted(wanted(input.message().await?)?.input)?;
            match &first {
                Input::Attach(it) => self.readable(only(&it.sandbox_id, &it.session_id)?)?,
                Input::Start(start) => {
                    let it = wanted(start.request.as_ref())?;
                    self.usable(only(&it.sandbox_id, &it.session_id)?)?;
                }
                _ => return Err(Status::invalid_argument("no start")),
            }
            call.stream(echo(self.clone(), first, input))
        }

        async fn start_execution(
            &self,
            request: Request<StartExecutionRequest>,
        ) -> Result<Response<StartExecutionResponse>, Status> {
            let call = self.enter("StartExecution", &request).await?;
            let request = wanted(request.into_inner().request)?;
            self.usable(only(&request.sandbox_id, &request.session_id)?)?;
            let execution = Execution { execution_id: EXECUTION.into(), ..Execution::default() };
            call.reply(StartExecutionResponse { execution: Some(execution) })
        }

        type AttachExecutionStream = Events<AttachExecutionResponse>;

        async fn attach_execution(
            &self,
            request: Request<AttachExecutionRequest>,
        ) -> Result<Response<Self::AttachExecutionStream>, Status> {
            let call = self.enter("AttachExecution", &request).await?;
            self.readable(only(&request.get_ref().sandbox_id, &request.get_ref().session_id)?)?;
            let events = output(request.into_inner().execution_id);
            call.stream(futures::StreamExt::map(events, |event| Ok(AttachExecutionResponse { event: some(event) })))
        }
    }
}
