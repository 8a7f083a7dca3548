//! `ExecService` of a node's own sandboxes.

use std::sync::Arc;

use bytes::Bytes;
use cloud_sandbox_journal::Position;
use cloud_sandbox_model::{
    error::{Error, ErrorKind, Result, reason},
    input::Violations,
};
use cloud_sandbox_proto::v1::{
    self, ExecEvent, ExecuteRequest, ExecutionState,
    exec_service_server::{self, ExecServiceServer},
    write_execution_stdin_request::Input,
};
use cloud_sandbox_rpc::{CallContext, from_status, to_status, upstream::MESSAGE_MAX};
use futures::{Stream, StreamExt};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Request, Response, Status, Streaming};
use tracing::instrument;

use super::{Addressed, Answer, Events, addressed};
use crate::{
    executions::{
        self, Caller, Execution, Place,
        spec::{self, Mode},
    },
    interactive,
    node::Shared,
};

/// The most input in one call.
const STDIN_MAX: usize = 1024 * 1024;

/// The `ExecService` of `cloud_sandbox.v1` for the sandboxes of one node, cheap to clone.
#[derive(Clone)]
pub struct ExecService {
    node: Arc<Shared>,
}

impl ExecService {
    pub(crate) fn server(node: &Arc<Shared>) -> ExecServiceServer<Self> {
        let server = ExecServiceServer::new(Self { node: Arc::clone(node) });
        server.max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
    }

    fn place(&self, request: &impl Addressed) -> Result<Place> {
        let place = self.node.place(addressed(request)?)?;
        // used by a call that is answered at once; longer ones say so themselves
        drop(place.executions().activity.begin());
        Ok(place)
    }

    fn find(&self, request: &impl Addressed, execution: &str) -> Result<Arc<Execution>> {
        self.place(request)?.execution(execution)
    }

    /// An execution that something may be done to.
    fn find_live(&self, request: &impl Addressed, execution: &str) -> Result<Arc<Execution>> {
        let sandbox = self.place(request)?.live()?;
        sandbox.usable()?;
        sandbox.executions.get(execution.parse()?)
    }

    fn begin(&self, request: ExecuteRequest, mode: Mode) -> Result<Caller> {
        let place = self.place(&request)?;
        executions::execute(&self.node, place, request, mode, mode == Mode::Background)
    }

    async fn run(&self, request: ExecuteRequest) -> Result<v1::ExecuteResponse> {
        let budget = spec::budget(&request);
        self.begin(request, Mode::Unary)?.response(budget).await
    }

    async fn start(&self, request: ExecuteRequest) -> Result<v1::Execution> {
        let caller = self.begin(request, Mode::Background)?;
        caller.execution.until_begun().await.map_err(|status| from_status(&status))?;
        caller.execution.tell_of();
        if caller.execution.state() == ExecutionState::Unknown {
            caller.end().await?;
        }
        Ok(caller.execution.describe())
    }

    async fn write(&self, request: v1::WriteExecutionStdinRequest) -> Result<u64> {
        let execution = self.find_live(&request, &request.execution_id)?;
        let (field, data) = match request.input {
            Some(Input::Text(text)) => ("text", text.into()),
            Some(Input::Data(data)) => ("data", data),
            None => ("data", Bytes::new()),
        };
        let mut violations = Violations::default();
        violations.check(data.len() <= STDIN_MAX, field, format!("must be at most {STDIN_MAX} bytes long"));
        violations.finish()?;
        execution.write_stdin(request.offset, data, request.close).await
    }

    async fn signal(&self, request: v1::SignalExecutionRequest) -> Result<()> {
        let name = if request.signal.is_empty() { "SIGTERM" } else { &request.signal };
        let number = interactive::signal_number(name)?;
        self.find_live(&request, &request.execution_id)?.signal(number).await
    }

    async fn resize(&self, request: v1::ResizeExecutionTerminalRequest) -> Result<()> {
        let size = request.terminal.ok_or_else(|| Error::invalid("terminal", "must be given"))?;
        let size = interactive::window(size, "terminal")?;
        self.find_live(&request, &request.execution_id)?.resize(size).await
    }
}

/// When a caller has asked to be answered at the latest.
fn deadline<T>(request: &Request<T>) -> Option<Instant> {
    CallContext::of(request).remaining().map(|left| Instant::now() + left)
}

fn too_late() -> Error {
    Error::new(ErrorKind::DeadlineExceeded, reason::DEADLINE_EXCEEDED, "the call's deadline passed")
}

/// The answer, unless the caller's time passes first: what was being done for it ends then.
async fn within<T>(deadline: Option<Instant>, answer: impl Future<Output = Result<T>>) -> Result<T, Status> {
    let answered = match deadline {
        Some(deadline) => timeout_at(deadline, answer).await.unwrap_or_else(|_| Err(too_late())),
        None => answer.await,
    };
    answered.map_err(to_status)
}

/// The events, with an error at the end when the caller's time passes first.
fn stream_within<T: Send + 'static>(
    deadline: Option<Instant>,
    events: impl Stream<Item = Result<ExecEvent, Status>> + Send + 'static,
    wrap: fn(ExecEvent) -> T,
) -> Events<T> {
    let events = events.map(move |event| event.map(wrap));
    let Some(deadline) = deadline else { return events.boxed() };
    let bounded = async_stream::stream! {
        let mut events = std::pin::pin!(events);
        loop {
            let event = tokio::select! {
                biased;
                () = sleep_until(deadline) => {
                    yield Err(to_status(too_late()));
                    return;
                }
                event = events.next() => event,
            };
            match event {
                Some(event) => yield event,
                None => return,
            }
        }
    };
    bounded.boxed()
}

#[tonic::async_trait]
impl exec_service_server::ExecService for ExecService {
    type ExecuteStreamStream = Events<v1::ExecuteStreamResponse>;
    type ExecStream = Events<v1::ExecResponse>;
    type AttachExecutionStream = Events<v1::AttachExecutionResponse>;

    #[instrument(skip_all, fields(sandbox_id))]
    async fn execute(&self, request: Request<ExecuteRequest>) -> Answer<v1::ExecuteResponse> {
        let deadline = deadline(&request);
        within(deadline, self.run(request.into_inner())).await.map(Response::new)
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn execute_stream(&self, request: Request<v1::ExecuteStreamRequest>) -> Answer<Self::ExecuteStreamStream> {
        let deadline = deadline(&request);
        let request = request.into_inner().request.unwrap_or_default();
        let budget = spec::budget(&request).bytes as u64;
        let caller = self.begin(request, Mode::Stream).map_err(to_status)?;
        let execution = Arc::clone(&caller.execution);
        let events = executions::events(caller, Position::default(), Some(budget));
        // why something does not start is the status of the call
        within(deadline, async { Ok(execution.until_begun().await) }).await??;
        let wrap = |event| v1::ExecuteStreamResponse { event: Some(event) };
        Ok(Response::new(stream_within(deadline, events, wrap)))
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn exec(&self, request: Request<Streaming<v1::ExecRequest>>) -> Answer<Self::ExecStream> {
        let deadline = deadline(&request);
        let mut messages = request.into_inner();
        // a caller that hangs up before it has said anything gets no answer
        let first = within(deadline, async { Ok(messages.message().await.ok().flatten()) }).await?;
        let Some(first) = first.and_then(|request| request.input) else {
            return Err(to_status(Error::invalid("start", "must be the first message, or attach")));
        };
        let (execution, events) = interactive::exec(&self.node, first, messages).map_err(to_status)?;
        within(deadline, async { Ok(execution.until_begun().await) }).await??;
        let wrap = |event| v1::ExecResponse { event: Some(event) };
        Ok(Response::new(stream_within(deadline, events, wrap)))
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn start_execution(&self, request: Request<v1::StartExecutionRequest>) -> Answer<v1::StartExecutionResponse> {
        let deadline = deadline(&request);
        let request = request.into_inner().request.unwrap_or_default();
        let execution = Some(within(deadline, self.start(request)).await?);
        Ok(Response::new(v1::StartExecutionResponse { execution }))
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn list_executions(&self, request: Request<v1::ListExecutionsRequest>) -> Answer<v1::ListExecutionsResponse> {
        let request = request.get_ref();
        let listed = self.place(request).and_then(|place| executions::list(place.executions(), request));
        listed.map(Response::new).map_err(to_status)
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn get_execution(&self, request: Request<v1::GetExecutionRequest>) -> Answer<v1::GetExecutionResponse> {
        let request = request.get_ref();
        let found = self.find(request, &request.execution_id).map_err(to_status)?;
        Ok(Response::new(v1::GetExecutionResponse { execution: Some(found.describe()) }))
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn attach_execution(
        &self,
        request: Request<v1::AttachExecutionRequest>,
    ) -> Answer<Self::AttachExecutionStream> {
        let deadline = deadline(&request);
        let request = request.get_ref();
        let found = self.find(request, &request.execution_id).map_err(to_status)?;
        let from = Position { stdout: request.stdout_offset, stderr: request.stderr_offset };
        let events = executions::events(Caller::attached(found), from, None);
        let wrap = |event| v1::AttachExecutionResponse { event: Some(event) };
        Ok(Response::new(stream_within(deadline, events, wrap)))
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn read_execution_output(
        &self,
        request: Request<v1::ReadExecutionOutputRequest>,
    ) -> Answer<v1::ReadExecutionOutputResponse> {
        let request = request.get_ref();
        let found = self.find(request, &request.execution_id).map_err(to_status)?;
        executions::read(&found, request).await.map(Response::new).map_err(to_status)
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn grep_execution_output(
        &self,
        request: Request<v1::GrepExecutionOutputRequest>,
    ) -> Answer<v1::GrepExecutionOutputResponse> {
        let deadline = deadline(&request);
        let request = request.into_inner();
        let found = self.find(&request, &request.execution_id).map_err(to_status)?;
        within(deadline, executions::grep(found, request)).await.map(Response::new)
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn write_execution_stdin(
        &self,
        request: Request<v1::WriteExecutionStdinRequest>,
    ) -> Answer<v1::WriteExecutionStdinResponse> {
        let deadline = deadline(&request);
        let stdin_bytes = within(deadline, self.write(request.into_inner())).await?;
        Ok(Response::new(v1::WriteExecutionStdinResponse { stdin_bytes }))
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn signal_execution(
        &self,
        request: Request<v1::SignalExecutionRequest>,
    ) -> Answer<v1::SignalExecutionResponse> {
        let deadline = deadline(&request);
        within(deadline, self.signal(request.into_inner())).await?;
        Ok(Response::new(v1::SignalExecutionResponse {}))
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn resize_execution_terminal(
        &self,
        request: Request<v1::ResizeExecutionTerminalRequest>,
    ) -> Answer<v1::ResizeExecutionTerminalResponse> {
        let deadline = deadline(&request);
        within(deadline, self.resize(request.into_inner())).await?;
        Ok(Response::new(v1::ResizeExecutionTerminalResponse {}))
    }
}
