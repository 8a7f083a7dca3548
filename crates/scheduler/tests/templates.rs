//! TemplateService, what becomes of a template's name in an acquire, and how nodes are told, against simulated nodes.

#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use cloud_sandbox_model::{Error, ErrorKind, error::reason};
use cloud_sandbox_proto::v1::{
    self, AcquireSandboxRequest, CreateTemplateRequest, DeleteTemplateRequest, DockerImageSource, FolderSource,
    GetTemplateRequest, ListSandboxesRequest, ListTemplatesRequest, ListTemplatesResponse, Sandbox, TemplateSource,
    TemplateState as State, WatchTemplateRequest, scheduler_service_server::SchedulerService as _,
    template_service_server::TemplateService as _, template_source::Source,
};
use cloud_sandbox_rpc::{LocalDial, from_status};
use cloud_sandbox_scheduler::{SchedulerService, TemplateOptions, TemplatePublisher, TemplateService, Templates};
use cloud_sandbox_sim_node::{Fault, SimNode, assert_eventually, by, by_admin};
use cloud_sandbox_storage::{MemoryDirectory, MemoryTemplates, TemplateState};
use futures::{Stream, StreamExt};
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::{Response, Status};

struct World {
    directory: Arc<MemoryDirectory>,
    dial: LocalDial,
    store: Arc<MemoryTemplates>,
    service: TemplateService,
    scheduler: SchedulerService,
    templates: Templates,
}

impl World {
    fn new() -> Self {
        let (directory, dial) = (Arc::new(MemoryDirectory::new()), LocalDial::new());
        let options = TemplateOptions { default_template: "host".into(), docker_image: "python:3.11-slim".into() };
        let store = Arc::new(MemoryTemplates::new());
        let templates = Templates::new(store.clone(), options);
        let service = TemplateService::new(templates.clone(), directory.clone());
        let scheduler = SchedulerService::new(directory.clone(), Arc::new(dial.clone()), templates.clone());
        Self { directory, dial, store, service, scheduler, templates }
    }

    async fn node(&self) -> SimNode {
        SimNode::start(self.directory.clone(), &self.dial, 1, 10).await
    }

    /// Keeps nodes told until the answer is dropped.
    fn publish(&self) -> (oneshot::Sender<()>, JoinHandle<()>) {
        let (stop, stopped) = oneshot::channel();
        let dial = Arc::new(self.dial.clone());
        let publisher = TemplatePublisher::new(self.templates.clone(), self.directory.clone(), dial);
        let run = publisher.run(async move {
            let _ = stopped.await;
        });
        (stop, tokio::spawn(run))
    }

    async fn create(&self, request: CreateTemplateRequest) -> Result<v1::Template, Error> {
        let answer = self.service.create_template(by_admin(request)).await;
        answer.map(|answer| answer.into_inner().template.unwrap()).map_err(|status| from_status(&status))
    }

    async fn get(&self, name: &str) -> Result<v1::Template, Error> {
        let answer = self.service.get_template(by("ada", GetTemplateRequest { name: name.into() })).await;
        answer.map(|answer| answer.into_inner().template.unwrap()).map_err(|status| from_status(&status))
    }

    async fn list(&self, request: ListTemplatesRequest) -> Result<ListTemplatesResponse, Error> {
        let answer = self.service.list_templates(by("ada", request)).await;
        answer.map(Response::into_inner).map_err(|status| from_status(&status))
    }

    async fn delete(&self, name: &str) -> Result<Vec<String>, Error> {
        let answer = self.service.delete_template(by_admin(DeleteTemplateRequest { name: name.into() })).await;
        answer.map(|answer| answer.into_inner().deleted).map_err(|status| from_status(&status))
    }

    async fn watch(&self, name: &str) -> impl Stream<Item = Result<v1::WatchTemplateResponse, Status>> + Unpin {
        let request = by("ada", WatchTemplateRequest { name: name.into() });
        self.service.watch_template(request).await.unwrap().into_inner()
    }

    async fn acquire(&self, template: &str, request_id: &str) -> Result<Sandbox, Error> {
        let request = AcquireSandboxRequest {
            template: template.into(),
            request_id: request_id.into(),
            ..AcquireSandboxRequest::default()
        };
        let answer = self.scheduler.acquire_sandbox(by("ada", request)).await;
        answer.map(|answer| answer.into_inner().sandbox.unwrap()).map_err(|status| from_status(&status))
    }
}

fn image(name: &str) -> CreateTemplateRequest {
    let source = DockerImageSource {
        image: "python:3.11-slim".into(),
        username: "ada".into(),
        password: "hunter2".into(),
        ..DockerImageSource::default()
    };
    CreateTemplateRequest {
        name: name.into(),
        source: Some(TemplateSource { source: Some(Source::DockerImage(source)) }),
        ..CreateTemplateRequest::default()
    }
}

fn once(name: &str, id: &str) -> CreateTemplateRequest {
    CreateTemplateRequest { request_id: id.into(), ..image(name) }
}

fn references(listed: &ListTemplatesResponse) -> Vec<String> {
    let reference = |template: &v1::Template| match template.version {
        0 => template.name.clone(),
        version => format!("{}@{version}", template.name),
    };
    listed.templates.iter().map(reference).collect()
}

async fn told(node: &SimNode, references: &[&str]) {
    assert_eventually("the node's list", || node.told().0 == references).await;
}

#[tokio::test]
async fn created_template_is_shown_with_its_version_and_without_its_password() {
    let world = World::new();
    let node = world.node().await;
    let created = world.create(image("python")).await.unwrap();
    assert_eq!(
        (created.version, created.state(), created.runtimes.as_slice()),
        (1, State::Preparing, &["docker".to_owned()][..])
    );
    assert_eq!(created.nodes[0].node_id, node.id().to_string());
    assert!(created.create_time.is_some());
    assert_eq!(world.create(image("python")).await.unwrap().version, 2);
    let (newest, first) = (world.get("python").await.unwrap(), world.get("python@1").await.unwrap());
    assert_eq!((newest.version, first), (2, created));
    for shown in [newest, world.list(ListTemplatesRequest::default()).await.unwrap().templates.remove(1)] {
        let text = format!("{shown:?}");
        assert!(text.contains("ada") && !text.contains("hunter2"), "{text}");
    }
}

#[tokio::test]
async fn every_broken_rule_of_a_create_is_named_by_its_field() {
    let world = World::new();
    let bad = CreateTemplateRequest {
        languages: vec!["python".into(), "cobol".into()],
        warm_size: 1001,
        request_id: "not an id".into(),
        ..image("Python")
    };
    let refused = world.create(bad).await.unwrap_err();
    let mut fields: Vec<_> = refused.violations().iter().map(|violation| violation.field.clone()).collect();
    fields.sort();
    assert_eq!(fields, ["languages[1]", "name", "request_id", "warm_size"]);
    let built_in = world.create(image("host")).await.unwrap_err();
    assert_eq!(built_in.violations()[0].field, "name");
    let nothing = world.create(CreateTemplateRequest { name: "a".into(), ..Default::default() }).await.unwrap_err();
    assert_eq!(nothing.violations()[0].field, "source");
}

#[tokio::test]
async fn request_id_gets_the_first_answer_and_refuses_another_content() {
    let world = World::new();
    let first = world.create(once("a", "r")).await.unwrap();
    assert_eq!(world.create(once("a", "r")).await.unwrap(), first);
    for other in [once("b", "r"), CreateTemplateRequest { warm_size: 1, ..once("a", "r") }] {
        let refused = world.create(other).await.unwrap_err();
        assert_eq!((refused.kind(), refused.reason()), (ErrorKind::AlreadyExists, reason::REQUEST_ID_REUSED));
    }
    assert_eq!(world.create(image("a")).await.unwrap().version, 2);
}

#[tokio::test]
async fn unknown_and_malformed_names_are_told_apart() {
    let world = World::new();
    world.create(image("a")).await.unwrap();
    for name in ["b", "a@2", "docker", "host", "host@1"] {
        let missing = world.get(name).await.unwrap_err();
        assert_eq!((missing.kind(), missing.reason()), (ErrorKind::NotFound, reason::TEMPLATE_NOT_FOUND), "{name}");
    }
    for name in ["", "A", "a@", "a@0", "a@x", "../etc", "a@1@2"] {
        let malformed = world.get(name).await.unwrap_err();
        assert_eq!(malformed.violations()[0].field, "name", "{name}");
        assert_eq!(world.delete(name).await.unwrap_err().violations()[0].field, "name", "{name}");
    }
    assert_eq!(world.delete("b").await.unwrap_err().reason(), reason::TEMPLATE_NOT_FOUND);
    assert_eq!(world.delete("host").await.unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn list_has_the_built_in_ones_first_and_pages_through_the_rest() {
    let world = World::new();
    let _node = world.node().await;
    for name in ["b", "a", "c", "a", "a"] {
        world.create(image(name)).await.unwrap();
    }
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = ListTemplatesRequest { page_size: 1, page_token, ..Default::default() };
        let page = world.list(page).await.unwrap();
        seen.extend(references(&page));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["host", "a@3", "b@1", "c@1"]);
    let whole = world.list(ListTemplatesRequest::default()).await.unwrap();
    assert_eq!((references(&whole), whole.next_page_token.as_str()), (seen, ""));
    assert_eq!(whole.templates[0].state(), State::Ready);

    let versions = |page_size, page_token| ListTemplatesRequest { name: "a".into(), page_size, page_token };
    let first = world.list(versions(2, String::new())).await.unwrap();
    assert_eq!(references(&first), ["a@3", "a@2"]);
    assert_eq!(references(&world.list(versions(2, first.next_page_token)).await.unwrap()), ["a@1"]);
    for (name, found) in [("host", &["host"][..]), ("nobody", &[])] {
        let listed = world.list(ListTemplatesRequest { name: name.into(), ..Default::default() }).await.unwrap();
        assert_eq!(references(&listed), found, "{name}");
    }
    let bad = [
        ("name", ListTemplatesRequest { name: "a@1".into(), ..Default::default() }),
        ("page_size", ListTemplatesRequest { page_size: 1001, ..Default::default() }),
        ("page_token", ListTemplatesRequest { page_token: "?".into(), ..Default::default() }),
        ("page_token", ListTemplatesRequest { name: "a".into(), page_token: "eA".into(), ..Default::default() }),
    ];
    for (field, request) in bad {
        assert_eq!(world.list(request).await.unwrap_err().violations()[0].field, field);
    }
}

#[tokio::test]
async fn nodes_are_told_at_once_with_passwords_and_when_they_come_late_or_forget() {
    let world = World::new();
    let early = world.node().await;
    world.create(image("a")).await.unwrap();
    let publishing = world.publish();
    told(&early, &["a@1"]).await;
    let password = match early.told_templates()[0].source.clone().unwrap().source.unwrap() {
        Source::DockerImage(image) => image.password,
        other => panic!("{other:?}"),
    };
    assert_eq!(password, "hunter2");
    let (_, first) = early.told();
    let before = tokio::time::Instant::now();
    world.create(image("a")).await.unwrap();
    told(&early, &["a@1", "a@2"]).await;
    assert!(before.elapsed() < Duration::from_secs(30) && early.told().1 > first);

    let late = world.node().await;
    told(&late, &["a@1", "a@2"]).await;
    world.delete("a@1").await.unwrap();
    told(&early, &["a@2"]).await;
    told(&late, &["a@2"]).await;
    drop(publishing);
}

#[tokio::test]
async fn node_that_cannot_be_told_holds_up_no_other_and_is_told_later() {
    let world = World::new();
    let (silent, deaf, well) = (world.node().await, world.node().await, world.node().await);
    silent.fail("SetTemplates", Fault::Hang);
    deaf.fail("SetTemplates", Fault::Refuse(ErrorKind::Internal));
    let publishing = world.publish();
    world.create(image("a")).await.unwrap();
    told(&well, &["a@1"]).await;
    assert_eventually("the try that fails", || deaf.called("SetTemplates") > 0).await;
    deaf.heal("SetTemplates");
    told(&deaf, &["a@1"]).await;
    // nothing changes, and so nothing is told
    let calls = well.called("SetTemplates");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(well.called("SetTemplates"), calls);
    drop(publishing.0);
    publishing.1.await.unwrap();
}

#[tokio::test]
async fn templates_of_another_scheduler_reach_the_nodes_too() {
    let world = World::new();
    let node = world.node().await;
    let _publishing = world.publish();
    let options = TemplateOptions { default_template: "host".into(), docker_image: String::new() };
    let other = TemplateService::new(Templates::new(world.store.clone(), options), world.directory.clone());
    other.create_template(by_admin(image("a"))).await.unwrap();
    told(&node, &["a@1"]).await;
}

#[tokio::test]
async fn watch_tells_what_changes_and_ends_when_no_node_is_at_it() {
    let world = World::new();
    let (first, second) = (world.node().await, world.node().await);
    for node in [&first, &second] {
        node.set_template("a@1", TemplateState::Preparing, "pulling").await;
    }
    let _publishing = world.publish();
    world.create(image("a")).await.unwrap();
    let mut watch = world.watch("a").await;
    let mut next = async || {
        let answer = tokio::time::timeout(Duration::from_secs(30), watch.next()).await.expect("it goes on");
        answer.map(|answer| answer.unwrap().template.unwrap())
    };
    while !next().await.unwrap().nodes.iter().all(|node| node.detail == "pulling") {}
    // a newer version is not what is watched
    world.create(image("a")).await.unwrap();
    first.set_template("a@1", TemplateState::Failed, "no such image").await;
    let failed = next().await.unwrap();
    assert_eq!((failed.version, failed.state()), (1, State::Preparing));
    assert!(failed.nodes.iter().any(|node| node.state() == State::Failed && node.detail == "no such image"));
    second.set_template("a@1", TemplateState::Ready, "").await;
    assert_eq!(next().await.unwrap().state(), State::Ready);
    assert_eq!(next().await, None);
}

#[tokio::test]
async fn watch_of_a_deleted_template_ends_with_not_found_and_of_a_built_in_one_at_once() {
    let world = World::new();
    let _node = world.node().await;
    world.create(image("a")).await.unwrap();
    let mut watch = world.watch("a").await;
    assert!(watch.next().await.unwrap().is_ok());
    world.delete("a").await.unwrap();
    let gone = from_status(&watch.next().await.unwrap().unwrap_err());
    assert_eq!(gone.reason(), reason::TEMPLATE_NOT_FOUND);
    let mut host = world.watch("host").await;
    assert_eq!(host.next().await.unwrap().unwrap().template.unwrap().state(), State::Ready);
    assert!(host.next().await.is_none());
    let unknown = world.service.watch_template(by("ada", WatchTemplateRequest { name: "b".into() })).await;
    assert_eq!(from_status(&unknown.err().unwrap()).reason(), reason::TEMPLATE_NOT_FOUND);
}

#[tokio::test]
async fn acquire_means_the_newest_version_and_tells_the_node_which() {
    let world = World::new();
    let node = world.node().await;
    let _publishing = world.publish();
    for _ in 0..2 {
        world.create(image("a")).await.unwrap();
    }
    told(&node, &["a@1", "a@2"]).await;
    for template in ["a", "a@1", "", "host"] {
        world.acquire(template, "").await.unwrap();
    }
    assert_eq!(node.acquired_templates(), ["a@2", "a@1", "host", "host"]);
    for (template, found) in [("a", 2), ("a@1", 1), ("host", 2), ("b", 0)] {
        let request = ListSandboxesRequest { template: template.into(), ..Default::default() };
        let listed = world.scheduler.list_sandboxes(by("ada", request)).await.unwrap().into_inner();
        assert_eq!(listed.sandboxes.len(), found, "{template}");
    }
}

#[tokio::test]
async fn retry_of_an_acquire_gets_its_sandbox_though_a_newer_version_was_created() {
    let world = World::new();
    let node = world.node().await;
    let _publishing = world.publish();
    world.create(image("a")).await.unwrap();
    told(&node, &["a@1"]).await;
    let first = world.acquire("a", "r").await.unwrap();
    world.create(image("a")).await.unwrap();
    world.create(image("b")).await.unwrap();
    told(&node, &["a@1", "a@2", "b@1"]).await;
    assert_eq!(world.acquire("a", "r").await.unwrap(), first);
    let other = world.acquire("b", "r").await.unwrap_err();
    assert_eq!(other.reason(), reason::REQUEST_ID_REUSED);
}

#[tokio::test]
async fn template_that_no_node_has_ready_says_whether_to_wait() {
    let world = World::new();
    let (first, second) = (world.node().await, world.node().await);
    let _publishing = world.publish();
    first.set_template("a@1", TemplateState::Failed, "manifest unknown").await;
    second.set_template("a@1", TemplateState::Preparing, "pulling").await;
    world.create(image("a")).await.unwrap();
    told(&second, &["a@1"]).await;
    let waiting = world.acquire("a", "").await.unwrap_err();
    assert_eq!((waiting.kind(), waiting.reason()), (ErrorKind::Unavailable, reason::TEMPLATE_NOT_READY));
    assert_eq!(waiting.retry_after(), Some(Duration::from_secs(1)));
    told(&first, &["a@1"]).await;
    second.set_template("a@1", TemplateState::Failed, "no space left on device").await;
    let failed = world.acquire("a", "").await.unwrap_err();
    assert_eq!((failed.kind(), failed.reason()), (ErrorKind::FailedPrecondition, reason::TEMPLATE_FAILED));
    assert!(failed.message().contains("manifest unknown") || failed.message().contains("no space"), "{failed}");
    second.set_template("a@1", TemplateState::Ready, "").await;
    assert_eq!(world.acquire("a", "").await.unwrap().node_id, second.id().to_string());

    world.delete("a").await.unwrap();
    let deleted = world.acquire("a@1", "").await.unwrap_err();
    assert_eq!((deleted.kind(), deleted.reason()), (ErrorKind::NotFound, reason::TEMPLATE_NOT_FOUND));
    for name in ["nobody", "a@", "../etc", "a@1@2"] {
        assert_eq!(world.acquire(name, "").await.unwrap_err().reason(), reason::TEMPLATE_NOT_FOUND, "{name}");
    }
}

#[tokio::test]
async fn folder_on_docker_is_refused_by_field() {
    let world = World::new();
    let source = Source::Folder(FolderSource { path: "relative".into() });
    let request = CreateTemplateRequest {
        name: "a".into(),
        source: Some(TemplateSource { source: Some(source) }),
        runtimes: vec!["docker".into(), "linux".into()],
        ..Default::default()
    };
    let refused = world.create(request).await.unwrap_err();
    let fields: Vec<_> = refused.violations().iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, ["source.folder.path", "runtimes[0]"]);
}
