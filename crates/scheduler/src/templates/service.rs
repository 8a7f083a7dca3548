//! TemplateService.

use std::{pin::Pin, sync::Arc, time::Duration};

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::{
    Error, ErrorKind, Result,
    error::reason,
    input::Violations,
    template::{DOCKER, HOST, check_name, split_reference},
};
use cloud_sandbox_proto::v1::{
    self, CreateTemplateRequest, CreateTemplateResponse, DeleteTemplateRequest, DeleteTemplateResponse,
    GetTemplateRequest, GetTemplateResponse, ListTemplatesRequest, ListTemplatesResponse, WatchTemplateRequest,
    WatchTemplateResponse, template_service_server::TemplateServiceServer,
};
use cloud_sandbox_rpc::{requested_template, template_message, to_status, upstream::MESSAGE_MAX};
use cloud_sandbox_storage::{
    Directory, NodeEntry, TemplateRecord,
    sessions::{from_millis, to_millis},
    templates::{BYTES_MAX, Created, TEMPLATES_MAX},
};
use futures::Stream;
use tonic::{Request, Response, Status};

use super::{
    Templates, is_reported_built_in, listing, not_found,
    state::{is_preparing, nodes_of, state_of},
};

/// How often a watch looks at what nodes report, which they do about once a second.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Keeps templates.
#[derive(Clone)]
pub struct TemplateService {
    templates: Templates,
    directory: Arc<dyn Directory>,
}

impl Templates {
    /// A template as callers see it.
    pub(super) fn message(record: &TemplateRecord, nodes: &[NodeEntry]) -> v1::Template {
        let create_time = Some(record.created_at.into());
        let message = template_message(&record.template, false);
        with_state(v1::Template { create_time, ..message }, &record.template.reference(), nodes)
    }

    /// The same of one that is built in.
    pub(super) fn built_in_message(&self, name: &str, nodes: &[NodeEntry]) -> v1::Template {
        let message = self.built_in(name).map(|template| template_message(&template, false));
        let message = message.unwrap_or_else(|| v1::Template { name: name.to_owned(), ..v1::Template::default() });
        with_state(message, name, nodes)
    }
}

fn with_state(message: v1::Template, reference: &str, nodes: &[NodeEntry]) -> v1::Template {
    let nodes = nodes_of(reference, nodes);
    v1::Template { state: state_of(&nodes).into(), nodes, ..message }
}

/// The name and the version in `reference`, by the rules of both.
pub(super) fn checked_name(reference: &str) -> Result<(&str, Option<u32>)> {
    let (name, version) = split_reference(reference)
        .ok_or_else(|| Error::invalid("name", "must be a name, or name@version with a whole number from 1"))?;
    let mut violations = Violations::default();
    check_name(&mut violations, "name", name);
    violations.finish()?;
    Ok((name, version))
}

impl TemplateService {
    /// A service over `templates` and the nodes in `directory`.
    #[must_use]
    pub fn new(templates: Templates, directory: Arc<dyn Directory>) -> Self {
        Self { templates, directory }
    }

    /// The gRPC service.
    #[must_use]
    pub fn grpc(self) -> TemplateServiceServer<Self> {
        TemplateServiceServer::new(self).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
    }

    async fn create(&self, request: Request<CreateTemplateRequest>) -> Result<v1::Template> {
        let principal = Principal::of(&request)?;
        let wanted = request.get_ref();
        let mut violations = Violations::default();
        violations.request_id("request_id", &wanted.request_id);
        let template = violations.take(requested_template(wanted, 0));
        violations.finish()?;
        let broken = || Error::internal("read a template", "it breaks a rule that no violation names");
        let template = template.ok_or_else(broken)?;
        let record = TemplateRecord {
            template,
            tenant: principal.tenant.clone(),
            user: principal.user.clone(),
            request_id: (!wanted.request_id.is_empty()).then(|| wanted.request_id.clone()),
            created_at: from_millis(to_millis(std::time::SystemTime::now())),
        };
        let record = match self.templates.store.create(&record).await? {
            Created::New(created) => {
                tracing::info!(template = created.template.reference(), user = created.user, "template created");
                self.templates.changed.notify_one();
                created
            }
            Created::Existing(existing) => again(existing, record)?,
            Created::Full => return Err(full()),
        };
        Ok(Templates::message(&record, &self.directory.nodes().await?))
    }

    /// A template and what nodes report of it.
    async fn look(&self, reference: &str) -> Result<v1::Template> {
        let nodes = self.directory.nodes().await?;
        if is_reported_built_in(reference, &nodes) {
            return Ok(self.templates.built_in_message(reference, &nodes));
        }
        Ok(Templates::message(&self.templates.record(reference).await?, &nodes))
    }

    async fn get(&self, request: Request<GetTemplateRequest>) -> Result<v1::Template> {
        Principal::of(&request)?;
        let name = request.into_inner().name;
        checked_name(&name)?;
        self.look(&name).await
    }

    async fn list(&self, request: Request<ListTemplatesRequest>) -> Result<ListTemplatesResponse> {
        Principal::of(&request)?;
        listing::list(&self.templates, &self.directory.nodes().await?, request.get_ref()).await
    }

    async fn delete(&self, request: Request<DeleteTemplateRequest>) -> Result<Vec<String>> {
        let user = &Principal::of(&request)?.user;
        let reference = &request.get_ref().name;
        let (name, version) = checked_name(reference)?;
        if [HOST, DOCKER].contains(&name) {
            return Err(Error::invalid("name", "must not be that of a built-in template: host, docker"));
        }
        let gone = self.templates.store.delete(name, version).await?;
        if gone.is_empty() {
            return Err(not_found(reference));
        }
        let gone: Vec<_> = gone.iter().map(|version| format!("{name}@{version}")).collect();
        tracing::info!(templates = gone.join(" "), user, "templates deleted");
        self.templates.changed.notify_one();
        Ok(gone)
    }

    /// The template at first, then whenever something about it has changed, until no node is at it any more.
    async fn watch(&self, request: Request<WatchTemplateRequest>) -> Result<Watch> {
        Principal::of(&request)?;
        let name = request.into_inner().name;
        checked_name(&name)?;
        let mut seen = self.look(&name).await?;
        // the version that is the newest now, whatever is created meanwhile
        let reference = if seen.version == 0 { name } else { format!("{name}@{}", seen.version, name = seen.name) };
        let service = self.clone();
        Ok(Box::pin(async_stream::try_stream! {
            yield WatchTemplateResponse { template: Some(seen.clone()) };
            while is_preparing(&seen.nodes) {
                tokio::time::sleep(LOOK_EVERY).await;
                let now = service.look(&reference).await.map_err(to_status)?;
                if now != seen {
                    seen = now;
                    yield WatchTemplateResponse { template: Some(seen.clone()) };
                }
            }
        }))
    }
}

/// The first answer to a request that was made before.
fn again(existing: TemplateRecord, wanted: TemplateRecord) -> Result<TemplateRecord> {
    let mut same = wanted.template;
    same.version = existing.template.version;
    if existing.template == same {
        return Ok(existing);
    }
    let message = "another request with this request_id made a template before";
    Err(Error::new(ErrorKind::AlreadyExists, reason::REQUEST_ID_REUSED, message))
}

fn full() -> Error {
    let message = format!(
        "there are as many templates as there may be: {TEMPLATES_MAX}, or {} MiB in all; delete old versions",
        BYTES_MAX >> 20
    );
    Error::new(ErrorKind::ResourceExhausted, reason::TEMPLATE_LIMIT, message)
}

/// What a watch answers.
type Watch = Pin<Box<dyn Stream<Item = Result<WatchTemplateResponse, Status>> + Send>>;

#[tonic::async_trait]
impl v1::template_service_server::TemplateService for TemplateService {
    type WatchTemplateStream = Watch;

    async fn create_template(
        &self,
        request: Request<CreateTemplateRequest>,
    ) -> Result<Response<CreateTemplateResponse>, Status> {
        let template = self.create(request).await.map_err(to_status)?;
        Ok(Response::new(CreateTemplateResponse { template: Some(template) }))
    }

    async fn get_template(
        &self,
        request: Request<GetTemplateRequest>,
    ) -> Result<Response<GetTemplateResponse>, Status> {
        let template = self.get(request).await.map_err(to_status)?;
        Ok(Response::new(GetTemplateResponse { template: Some(template) }))
    }

    async fn watch_template(&self, request: Request<WatchTemplateRequest>) -> Result<Response<Watch>, Status> {
        self.watch(request).await.map(Response::new).map_err(to_status)
    }

    async fn list_templates(
        &self,
        request: Request<ListTemplatesRequest>,
    ) -> Result<Response<ListTemplatesResponse>, Status> {
        self.list(request).await.map(Response::new).map_err(to_status)
    }

    async fn delete_template(
        &self,
        request: Request<DeleteTemplateRequest>,
    ) -> Result<Response<DeleteTemplateResponse>, Status> {
        let deleted = self.delete(request).await.map_err(to_status)?;
        Ok(Response::new(DeleteTemplateResponse { deleted }))
    }
}
