//! What templates are made from, and what is wrong with some.

use std::sync::Arc;

use cloud_sandbox_model::{
    Limits, SandboxId, Template,
    template::{Progress, PullPolicy, Source},
};
use cloud_sandbox_runtime::{Root, Runtime, RuntimeError, SandboxSpec};

use crate::{
    rig::{Image, Rig, archive, docker, image, name, try_docker},
    setup::{Docker, left_out},
};

/// Why a template cannot be prepared.
fn why<T: std::fmt::Debug>(result: Result<T, RuntimeError>) -> String {
    match result.unwrap_err() {
        RuntimeError::Template { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn image_with_nothing_in_it_but_a_file_is_a_sandbox() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    let folder = tempfile::tempdir().unwrap();
    let bare = Image::import(&archive(folder.path(), &[("hello", "world")]), &["ENV COLOR=blue", "VOLUME /data"]);
    let template = rig.prepare(&Template::docker(&bare.0), "docker").await.unwrap();
    assert_eq!(template.env.get("COLOR").map(String::as_str), Some("blue"));
    assert_eq!(template.runtime.to_string(), "docker+runc", "the default is named");
    let id = rig.create_of(template, Limits::DEFAULT).await;
    rig.agent(id).await;
    let mounts = docker(&["inspect", "--format", "{{range .Mounts}}{{.Type}} {{.Destination}} {{end}}", &name(id)]);
    assert!(!mounts.contains("volume"), "nothing limits a volume of the daemon: {mounts}");
    rig.runtime.destroy(id).await.unwrap();
    rig.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn archive_is_imported_once_and_discarded() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    let folder = tempfile::tempdir().unwrap();
    let path = archive(folder.path(), &[("etc/passwd", "root:x:0:0::/:\nweb:x:33:34::/:\n"), ("file", "content")]);
    let template = Template {
        name: "mine".into(),
        version: 2,
        source: Source::Tarball { path },
        user: "web".into(),
        ..Template::docker("unused")
    };
    let prepared = rig.prepare(&template, "docker+runc").await.unwrap();
    assert_eq!(prepared.user, "33:34", "folders have to be given to numbers");
    assert_eq!(rig.prepare(&template, "docker+runc").await.unwrap(), prepared, "it is there already");
    let Root::Image(imported) = prepared.root.clone() else { panic!("{prepared:?}") };
    let id = rig.create_of(prepared.clone(), Limits::DEFAULT).await;
    rig.agent(id).await;
    rig.runtime.destroy(id).await.unwrap();
    archive(folder.path(), &[("etc/passwd", "root:x:0:0::/:\nweb:x:35:36::/:\n")]);
    let other = rig.prepare(&template, "docker+runc").await.unwrap();
    assert_eq!(other.user, "35:36", "another archive took the place of the first");
    assert!(!try_docker(&["image", "inspect", &imported]).0, "it has gone at once");
    let Root::Image(other) = other.root else { panic!("{other:?}") };
    assert_eq!(rig.runtime.prepared_templates().await.unwrap(), ["mine@2"]);
    assert!(Rig::new().runtime.prepared_templates().await.unwrap().is_empty(), "another server has others");
    rig.runtime.discard("mine@2").await.unwrap();
    rig.runtime.discard("mine@2").await.unwrap();
    assert!(rig.runtime.prepared_templates().await.unwrap().is_empty());
    assert!(!try_docker(&["image", "inspect", &other]).0);
    let spec = SandboxSpec { template: prepared, limits: Limits::DEFAULT };
    let gone = why(rig.runtime.create(SandboxId::generate(), &spec).await);
    assert!(gone.contains("not there any more"), "{gone}");
    rig.assert_nothing_is_left();
    let nobody = Template { user: "nobody-at-all".into(), ..template.clone() };
    let nobody = why(rig.prepare(&nobody, "docker+runc").await);
    assert_eq!(nobody, "its image has no user nobody-at-all in /etc/passwd");
    rig.runtime.discard("mine@2").await.unwrap();
    rig.assert_nothing_is_left();
    let missing = Template { source: Source::Tarball { path: folder.path().join("none.tar") }, ..template };
    assert!(why(rig.prepare(&missing, "docker").await).contains("none.tar cannot be read"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_static_program_is_image_enough_for_every_runtime() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    for runtime in ["docker+runc", "docker+runsc"] {
        let template = rig.prepare(&Template::docker(&Docker::of_this_run().bare_image), runtime).await.unwrap();
        let id = rig.create_of(template, Limits::DEFAULT).await;
        rig.agent(id).await;
        rig.runtime.destroy(id).await.unwrap();
    }
    rig.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn root_file_system_is_imported_with_progress() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    let path = Docker::of_this_run().rootfs;
    let size = std::fs::metadata(&path).unwrap().len();
    let template =
        Template { name: "system".into(), version: 1, source: Source::Tarball { path }, ..Template::docker("-") };
    let progress = Arc::new(Progress::default());
    let prepared = rig.runtime.prepare(&template, &"docker+runc".parse().unwrap(), &progress).await.unwrap();
    assert_eq!(progress.now(), ("importing", size, size));
    let id = rig.create_of(prepared, Limits::DEFAULT).await;
    assert_eq!(rig.run(id, "python3 -c 'print(6 * 7)'").await, (0, "42".to_owned()));
    rig.runtime.destroy(id).await.unwrap();
    rig.runtime.discard("system@1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn archive_that_is_none_is_refused_with_the_daemons_reason() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.tar");
    std::fs::write(&path, "this is no archive at all").unwrap();
    let template = Template { source: Source::Tarball { path }, ..Template::docker("unused") };
    let refused = why(rig.prepare(&template, "docker").await);
    assert!(refused.contains("bad.tar cannot be imported: "), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn image_that_is_not_there_is_named() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    let mut template = Template::docker("cloud-sandbox-test/none:at-all");
    template.source.image_mut().unwrap().pull = PullPolicy::Never;
    let never = why(rig.prepare(&template, "docker").await);
    assert!(never.contains("no image cloud-sandbox-test/none:at-all, and it is never to be pulled"), "{never}");
    // nobody listens at port 1
    let unreachable = why(rig.prepare(&Template::docker("127.0.0.1:1/none:1"), "docker").await);
    assert!(unreachable.contains("image 127.0.0.1:1/none:1 cannot be pulled: "), "{unreachable}");
}

#[tokio::test(flavor = "multi_thread")]
async fn image_of_another_architecture_is_refused() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    let refused = why(rig.prepare(&Template::docker(&Docker::of_this_run().foreign_image), "docker").await);
    assert!(refused.contains("its image is for "), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn runtime_that_the_daemon_does_not_have_is_named() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    let absent = "docker+nonesuch".parse().unwrap();
    let error = rig.runtime.available(&absent).await.unwrap_err().to_string();
    assert!(error.contains("no OCI runtime nonesuch, it has ") && error.contains("runc"), "{error}");
    for there in ["docker", "docker+runc", "docker+runsc"] {
        rig.runtime.available(&there.parse().unwrap()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn name_that_somebody_else_has_is_left_to_them() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    let template = rig.prepared("docker+runc").await;
    let spec = SandboxSpec { template, limits: Limits::DEFAULT };
    let id = SandboxId::generate();
    let taken = name(id);
    docker(&["create", "--name", &taken, "--network", "none", &image(), "true"]);
    let error = rig.runtime.create(id, &spec).await.unwrap_err();
    let chain = cloud_sandbox_model::error::chain(&error);
    assert!(chain.contains(&format!("the name {taken} is there already")), "{chain}");
    docker(&["rm", &taken]);
    let label = format!("cloud-sandbox.instance={}", rig.instance);
    docker(&["create", "--name", &taken, "--label", &label, "--network", "none", &image(), "true"]);
    rig.runtime.create(id, &spec).await.unwrap();
    rig.agent(id).await;
    rig.runtime.destroy(id).await.unwrap();
    rig.assert_nothing_is_left();
}
