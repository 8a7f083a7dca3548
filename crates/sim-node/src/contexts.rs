//! ContextService.

use cloud_sandbox_proto::v1::{
    CreateContextRequest, CreateContextResponse, DeleteContextRequest, DeleteContextResponse, GetContextRequest,
    GetContextResponse, InterruptContextRequest, InterruptContextResponse, ListContextsRequest, ListContextsResponse,
    RestartContextRequest, RestartContextResponse, context_service_server::ContextService,
};
use tonic::{Request, Response, Status};

use crate::node::{SimNode, only, service};

service! {
    ContextService;
    usable "CreateContext" create_context(CreateContextRequest) -> CreateContextResponse;
    usable "ListContexts" list_contexts(ListContextsRequest) -> ListContextsResponse;
    usable "GetContext" get_context(GetContextRequest) -> GetContextResponse;
    usable "RestartContext" restart_context(RestartContextRequest) -> RestartContextResponse;
    usable "InterruptContext" interrupt_context(InterruptContextRequest) -> InterruptContextResponse;
    usable "DeleteContext" delete_context(DeleteContextRequest) -> DeleteContextResponse;
    {}
}
