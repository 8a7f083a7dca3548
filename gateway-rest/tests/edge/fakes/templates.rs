//! Templates that are not there.

use super::*;

fn template(name: &str, state: TemplateState) -> Option<Template> {
    Some(Template { name: name.to_owned(), version: 1, state: state.into(), ..Default::default() })
}

#[async_trait]
impl TemplateService for Fake {
    type WatchTemplateStream = Events<WatchTemplateResponse>;

    async fn create_template(&self, request: Request<CreateTemplateRequest>) -> Answer<CreateTemplateResponse> {
        self.0.note(&request);
        let template = template(&request.into_inner().name, TemplateState::Preparing);
        Ok(Response::new(CreateTemplateResponse { template }))
    }

    async fn get_template(&self, request: Request<GetTemplateRequest>) -> Answer<GetTemplateResponse> {
        self.0.note(&request);
        let template = template(&request.into_inner().name, TemplateState::Ready);
        Ok(Response::new(GetTemplateResponse { template }))
    }

    async fn watch_template(&self, request: Request<WatchTemplateRequest>) -> Answer<Self::WatchTemplateStream> {
        self.0.note(&request);
        let name = request.into_inner().name;
        Ok(Response::new(Box::pin(stream! {
            for state in [TemplateState::Preparing, TemplateState::Ready] {
                yield Ok(WatchTemplateResponse { template: template(&name, state) });
            }
        })))
    }

    async fn list_templates(&self, request: Request<ListTemplatesRequest>) -> Answer<ListTemplatesResponse> {
        self.0.note(&request);
        Ok(Response::new(ListTemplatesResponse::default()))
    }

    async fn delete_template(&self, request: Request<DeleteTemplateRequest>) -> Answer<DeleteTemplateResponse> {
        self.0.note(&request);
        Ok(Response::new(DeleteTemplateResponse { deleted: vec![request.into_inner().name] }))
    }
}
