//! The template of a session: kept as it was named, and looked up whenever a sandbox is acquired.

use std::{sync::Arc, time::SystemTime};

use cloud_sandbox_model::{ErrorKind, Template, error::reason};
use cloud_sandbox_proto::v1::{CreateSessionRequest, PauseDepth};
use cloud_sandbox_scheduler::TemplatePublisher;
use cloud_sandbox_session::Options;
use cloud_sandbox_sim_node::assert_eventually;
use cloud_sandbox_storage::{TemplateRecord, TemplateStore, sessions::from_millis, sessions::to_millis};

use crate::world::{World, anything};

/// The next version of the template `a`, which the node has heard of.
async fn create_template(world: &World) {
    let record = TemplateRecord {
        template: Template { name: "a".into(), ..Template::docker("python:3.11-slim") },
        tenant: "default".into(),
        user: "root".into(),
        request_id: None,
        created_at: from_millis(to_millis(SystemTime::now())),
    };
    world.templates.create(&record).await.unwrap();
    let count = world.templates.all().await.unwrap().templates.len();
    let dial = Arc::new(world.dial.clone());
    let publisher = TemplatePublisher::new(world.named.clone(), world.directory.clone(), dial);
    let publishing = tokio::spawn(publisher.run(std::future::pending()));
    assert_eventually("the node hears of it", || world.node.told().0.len() == count).await;
    publishing.abort();
}

fn of(template: &str) -> CreateSessionRequest {
    CreateSessionRequest { template: template.into(), ..anything() }
}

#[tokio::test]
async fn template_is_kept_as_it_was_named_and_means_the_newest_at_each_acquire() {
    let world = World::new().await;
    create_template(&world).await;
    let newest = world.create("ada", of("a")).await.unwrap();
    let first = world.create("ada", of("a@1")).await.unwrap();
    assert_eq!((newest.template.as_str(), first.template.as_str()), ("a", "a@1"));
    create_template(&world).await;
    for session in [&newest, &first] {
        world.pause(&session.session_id, PauseDepth::Checkpointed).await.unwrap();
        world.resume(&session.session_id).await.unwrap();
    }
    assert_eq!(world.node.acquired_templates(), ["a@1", "a@1", "a@2", "a@1"]);
    assert_eq!(world.get(&newest.session_id).await.unwrap().template, "a");
}

#[tokio::test]
async fn session_without_a_template_has_the_default_one() {
    let world = World::with(Options { default_template: "a".into(), ..Options::default() }).await;
    create_template(&world).await;
    assert_eq!(world.create("ada", anything()).await.unwrap().template, "a");
    assert_eq!(world.node.acquired_templates(), ["a@1"]);
}

#[tokio::test]
async fn session_of_an_unknown_template_is_not_made() {
    let world = World::new().await;
    for template in ["nobody", "host@1", "a@"] {
        let refused = world.create("ada", of(template)).await.unwrap_err();
        assert_eq!((refused.kind(), refused.reason()), (ErrorKind::NotFound, reason::TEMPLATE_NOT_FOUND), "{template}");
    }
    assert!(world.all().await.is_empty());
}
