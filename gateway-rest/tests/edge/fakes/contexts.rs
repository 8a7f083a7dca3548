//! Code contexts that are not there.

use super::*;

fn context(id: &str) -> Option<CodeContext> {
    Some(CodeContext { context_id: id.to_owned(), state: ContextState::Idle.into(), ..Default::default() })
}

#[async_trait]
impl ContextService for Fake {
    async fn create_context(&self, request: Request<CreateContextRequest>) -> Answer<CreateContextResponse> {
        self.0.note(&request);
        Ok(Response::new(CreateContextResponse { context: context("cx1") }))
    }

    async fn list_contexts(&self, request: Request<ListContextsRequest>) -> Answer<ListContextsResponse> {
        self.0.note(&request);
        Ok(Response::new(ListContextsResponse { contexts: context("cx1").into_iter().collect() }))
    }

    async fn get_context(&self, request: Request<GetContextRequest>) -> Answer<GetContextResponse> {
        self.0.note(&request);
        Ok(Response::new(GetContextResponse { context: context(&request.into_inner().context_id) }))
    }

    async fn restart_context(&self, request: Request<RestartContextRequest>) -> Answer<RestartContextResponse> {
        self.0.note(&request);
        Ok(Response::new(RestartContextResponse { context: context(&request.into_inner().context_id) }))
    }

    async fn interrupt_context(&self, request: Request<InterruptContextRequest>) -> Answer<InterruptContextResponse> {
        self.0.note(&request);
        Ok(Response::new(InterruptContextResponse { running: true, interrupted: true }))
    }

    async fn delete_context(&self, request: Request<DeleteContextRequest>) -> Answer<DeleteContextResponse> {
        self.0.note(&request);
        let context_id = request.into_inner().context_id;
        Ok(Response::new(DeleteContextResponse { context_id, deleted: true }))
    }
}
