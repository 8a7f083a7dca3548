//! ExecService.

use std::sync::Arc;

use cloud_sandbox_node_client::{Answer, ExecClient};
use cloud_sandbox_proto::v1::{
    self, AttachExecutionRequest, AttachExecutionResponse, ExecRequest, ExecResponse, ExecuteRequest, ExecuteResponse,
    ExecuteStreamRequest, ExecuteStreamResponse, GetExecutionRequest, GetExecutionResponse, GrepExecutionOutputRequest,
    GrepExecutionOutputResponse, ListExecutionsRequest, ListExecutionsResponse, ReadExecutionOutputRequest,
    ReadExecutionOutputResponse, ResizeExecutionTerminalRequest, ResizeExecutionTerminalResponse,
    SignalExecutionRequest, SignalExecutionResponse, StartExecutionRequest, StartExecutionResponse,
    WriteExecutionStdinRequest, WriteExecutionStdinResponse, exec_service_server::ExecServiceServer,
};
use cloud_sandbox_rpc::{Dial, Upstream, upstream::MESSAGE_MAX};
use cloud_sandbox_storage::Directory;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    output::Events,
    relay::{Relay, relayed},
};

/// Runs code in sandboxes, wherever they are.
#[derive(Clone)]
pub struct ExecService {
    relay: Relay,
}

impl ExecService {
    /// A service that finds sandboxes in `directory`, those of sessions by the session manager `session`, and calls their
    /// nodes through `dial`.
    #[must_use]
    pub fn new(directory: Arc<dyn Directory>, dial: Arc<dyn Dial>, session: Upstream) -> Self {
        Self { relay: Relay::new(directory, dial, session) }
    }

    /// The gRPC service.
    #[must_use]
    pub fn grpc(self) -> ExecServiceServer<Self> {
        ExecServiceServer::new(self).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
    }
}

relayed! {
    v1::exec_service_server::ExecService, ExecService, ExecClient;
    unary {
        execute(ExecuteRequest) -> ExecuteResponse;
        start_execution(StartExecutionRequest) -> StartExecutionResponse;
        list_executions(ListExecutionsRequest) -> ListExecutionsResponse;
        get_execution(GetExecutionRequest) -> GetExecutionResponse;
        read_execution_output(ReadExecutionOutputRequest) -> ReadExecutionOutputResponse;
        grep_execution_output(GrepExecutionOutputRequest) -> GrepExecutionOutputResponse;
        write_execution_stdin(WriteExecutionStdinRequest) -> WriteExecutionStdinResponse;
        signal_execution(SignalExecutionRequest) -> SignalExecutionResponse;
        resize_execution_terminal(ResizeExecutionTerminalRequest) -> ResizeExecutionTerminalResponse;
    }
    server_stream {
        execute_stream(ExecuteStreamRequest) -> ExecuteStreamResponse as ExecuteStreamStream;
        attach_execution(AttachExecutionRequest) -> AttachExecutionResponse as AttachExecutionStream;
    }
    client_stream {}
    both_streams {
        exec(ExecRequest) -> ExecResponse as ExecStream;
    }
}
