//! ContextService.

use cloud_sandbox_proto::v1::{
    CreateContextRequest, CreateContextResponse, DeleteContextRequest, DeleteContextResponse, GetContextRequest,
    GetContextResponse, InterruptContextRequest, InterruptContextResponse, ListContextsRequest, ListContextsResponse,
    RestartContextRequest, RestartContextResponse, context_service_server::ContextService,
};
use tonic::{Request, Response, Status};

use crate::node::{SimNode, service};

service! {
    ContextService;
    hosted "CreateContext" create_context(CreateContextRequest) -> CreateContextResponse;
    hosted "ListContexts" list_contexts(ListContextsRequest) -> ListContextsResponse;
    hosted "GetContext" get_context(GetContextRequest) -> GetContextResponse;
    hosted "RestartContext" restart_context(RestartContextRequest) -> RestartContextResponse;
    hosted "InterruptContext" interrupt_context(InterruptContextRequest) -> InterruptContextResponse;
    hosted "DeleteContext" delete_context(DeleteContextRequest) -> DeleteContextResponse;
    {}
}
