//! Images of a Docker Engine.

use std::{collections::HashMap, fs, os::unix::net::UnixListener, sync::Arc};

use bollard::{
    API_DEFAULT_VERSION, Docker as Client,
    models::ContainerCreateBody,
    query_parameters::{
        CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
        RemoveImageOptionsBuilder,
    },
};
use cloud_sandbox_images::{ImageError, ImageStore, Options};
use cloud_sandbox_model::template::{Credentials, Image as Wanted, PullPolicy, Source};

use crate::{
    docker::{self, Docker},
    layers,
    pack::pack,
    push::{here, push},
    registry::{self, RegistryServer},
    rig::{REFERENCE, Rig, eventually, give_up_while, names, options, tree},
};

const LABEL: &str = "cloud-sandbox.import";

fn source(image: &str, pull: PullPolicy) -> Source {
    Source::DockerImage(Wanted { image: image.to_owned(), pull, credentials: None })
}

/// A store that has a daemon.
async fn with(docker: &Docker) -> Rig {
    Rig::with(|options| options.docker_host = Some(docker.url.clone())).await
}

async fn client(docker: &Docker) -> Client {
    let client = Client::connect_with_unix(&docker.url, 120, API_DEFAULT_VERSION).unwrap();
    client.negotiate_version().await.unwrap()
}

/// How many containers of a store there are.
async fn containers(client: &Client, rig: &Rig) -> usize {
    let label = format!("{LABEL}={}", rig.path("").canonicalize().unwrap().display());
    let filters = HashMap::from([("label", vec![label.as_str()])]);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    client.list_containers(Some(options)).await.unwrap().len()
}

/// An image that is the daemon's as long as this is there.
struct Pulled<'a>(&'a Client, String);

impl Pulled<'_> {
    async fn remove(self) {
        let options = RemoveImageOptionsBuilder::new().force(true).build();
        self.0.remove_image(&self.1, Some(options), None).await.unwrap();
    }
}

#[tokio::test]
async fn an_image_of_the_daemon_becomes_a_tree_and_no_container_stays() {
    if docker::left_out() {
        return;
    }
    let docker = Docker::of_this_run();
    let rig = with(&docker).await;
    let image = rig.prepare(&source(&docker.bare_image, PullPolicy::Never)).await.unwrap();
    let tree = tree(&image.root);
    assert!(tree["busybox"].starts_with("755 "));
    assert!(tree["etc/passwd"].contains("user:x:1000"));
    assert!(!tree.contains_key(".dockerenv"));
    assert!(image.digest.starts_with("sha256:"));
    assert!(image.bytes > 100_000);
    assert_eq!(containers(&client(&docker).await, &rig).await, 0);
    rig.assert_holds(&[REFERENCE], 0);
}

#[tokio::test]
async fn an_image_is_the_same_by_the_daemon_and_by_its_registry() {
    if docker::left_out() || registry::left_out() {
        return;
    }
    let docker = Docker::of_this_run();
    let client = client(&docker).await;
    let (rig, server) = (with(&docker).await, RegistryServer::start());
    let below = pack().folder("a").file("a/x", "1").file("gone", "2").symlink("link", "a");
    let above = pack().file("a/y", "3").file(".wh.gone", "");
    let mut config = here();
    // what the daemon makes a volume of when it makes a container
    config["config"]["Volumes"] = serde_json::json!({ "/data": {} });
    config["config"]["ExposedPorts"] = serde_json::json!({ "80/tcp": {} });
    let pushed = push(&server, "same", vec![below.bytes(), above.bytes()], &config).await;
    let error = rig.prepare(&source(&pushed.image, PullPolicy::Never)).await.unwrap_err();
    assert!(matches!(error, ImageError::NeverPulled { .. }), "{error:?}");
    let imported = rig.prepare(&source(&pushed.image, PullPolicy::Missing)).await.unwrap();
    let pulled = Pulled(&client, pushed.image.clone());
    let other = rig.store.prepare("other@1", &layers::source(&pushed.image), &Arc::default()).await.unwrap();
    assert_eq!(imported.env, other.env);
    assert_eq!(imported.digest, other.digest);
    let own = |root| {
        let mut tree = tree(root);
        tree.retain(|path, _| ["a", "gone", "link"].contains(&path.split('/').next().unwrap()));
        tree
    };
    assert_eq!(own(&imported.root), own(&other.root));
    assert_eq!(own(&imported.root).len(), 4);

    // what the daemon has is taken, until the template wants to know better
    let newer = push(&server, "same", vec![pack().file("newer", "1").bytes()], &config).await;
    let same = rig.store.prepare("same@2", &source(&newer.image, PullPolicy::Missing), &Arc::default()).await.unwrap();
    assert!(!same.root.join("newer").exists());
    let always = rig.store.prepare("same@3", &source(&newer.image, PullPolicy::Always), &Arc::default()).await.unwrap();
    assert!(always.root.join("newer").exists());
    assert_eq!(containers(&client, &rig).await, 0);
    pulled.remove().await;
}

#[tokio::test]
async fn a_daemon_passes_on_what_its_registry_says() {
    if docker::left_out() || registry::left_out() {
        return;
    }
    let docker = Docker::of_this_run();
    let (rig, server) = (with(&docker).await, RegistryServer::with_users());
    let pushed = push(&server, "private", vec![pack().file("a", "1").bytes()], &here()).await;
    let with = |image: &str, password: &str| {
        let mut source = source(image, PullPolicy::Missing);
        source.image_mut().unwrap().credentials =
            Some(Credentials { username: registry::USER.to_owned(), password: password.to_owned() });
        source
    };
    let refused = rig.prepare(&with(&pushed.image, "wrong")).await.unwrap_err();
    assert!(matches!(refused, ImageError::Refused { .. }), "{refused:?}");
    let missing = rig.prepare(&with(&format!("{}/nowhere", server.host()), registry::PASSWORD)).await.unwrap_err();
    assert!(matches!(missing, ImageError::Missing { .. }), "{missing:?}");
    rig.assert_empty();
    rig.prepare(&with(&pushed.image, registry::PASSWORD)).await.unwrap();
    let client = client(&docker).await;
    Pulled(&client, pushed.image.clone()).remove().await;
    drop(server);
    let unreachable = rig.store.prepare("other@1", &with(&pushed.image, "x"), &Arc::default()).await.unwrap_err();
    assert!(matches!(unreachable, ImageError::Daemon { .. }), "{unreachable:?}");
    assert!(unreachable.chain().contains("refused"), "{}", unreachable.chain());
}

#[tokio::test]
async fn an_image_of_another_machine_is_refused() {
    if docker::left_out() {
        return;
    }
    let docker = Docker::of_this_run();
    let rig = with(&docker).await;
    let error = rig.prepare(&source(&docker.foreign_image, PullPolicy::Never)).await.unwrap_err();
    assert!(matches!(error, ImageError::Platform { .. }), "{error:?}");
    rig.assert_empty();
}

#[tokio::test]
async fn without_a_daemon_the_socket_is_named() {
    let rig = Rig::new().await;
    let stale = rig.folder.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    for socket in ["/nonexistent/docker.sock".to_owned(), stale.display().to_string()] {
        let folder = rig.folder.path().join("other");
        let options = Options { docker_host: Some(format!("unix://{socket}")), ..options(&folder) };
        // a store is opened without one: other sources need none
        let store = ImageStore::open(options).await.unwrap();
        let error = store.prepare(REFERENCE, &source("x", PullPolicy::Missing), &Arc::default()).await.unwrap_err();
        assert!(matches!(error, ImageError::NoDaemon { .. }), "{error:?}");
        assert!(error.to_string().contains(&socket), "{error}");
    }
    // nobody listens at port 1
    for (host, told) in
        [("tcp://127.0.0.1:1", "no Docker daemon answers at tcp://127.0.0.1:1"), ("ssh://host", "DOCKER_HOST must be")]
    {
        let folder = rig.folder.path().join(&told[..2]);
        let options = Options { docker_host: Some(host.to_owned()), ..options(&folder) };
        let store = ImageStore::open(options).await.unwrap();
        let error = store.prepare(REFERENCE, &source("x", PullPolicy::Missing), &Arc::default()).await.unwrap_err();
        assert!(error.to_string().contains(told), "{error}");
    }
}

#[tokio::test]
async fn containers_that_a_killed_process_left_go_when_the_store_is_opened() {
    if docker::left_out() {
        return;
    }
    let docker = Docker::of_this_run();
    let client = client(&docker).await;
    let rig = with(&docker).await;
    let make = async |name: &str, owner: &str| {
        let body = ContainerCreateBody {
            image: Some(docker.bare_image.clone()),
            entrypoint: Some(vec!["/".to_owned()]),
            labels: Some(HashMap::from([(LABEL.to_owned(), owner.to_owned())])),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        client.create_container(Some(options), body).await.unwrap();
    };
    let unique = rig.folder.path().file_name().unwrap().to_str().unwrap().replace('.', "");
    let (ours, others) = (format!("cloud-sandbox-import-0-{unique}"), format!("cloud-sandbox-import-1-{unique}"));
    make(&ours, rig.path("").canonicalize().unwrap().to_str().unwrap()).await;
    make(&others, "/another/store").await;
    assert_eq!(containers(&client, &rig).await, 1);
    let Rig { folder, store } = rig;
    drop(store);
    let mut options = options(&folder.path().join("store"));
    options.docker_host = Some(docker.url.clone());
    let rig = Rig { store: ImageStore::open(options).await.unwrap(), folder };
    assert_eq!(containers(&client, &rig).await, 0);
    let forced = RemoveContainerOptionsBuilder::new().force(true).build();
    client.remove_container(&others, Some(forced)).await.expect("that of another store is still there");
}

#[tokio::test]
async fn an_import_that_is_given_up_or_fails_leaves_no_container() {
    if docker::left_out() {
        return;
    }
    let docker = Docker::of_this_run();
    let client = client(&docker).await;
    let rig = with(&docker).await;
    give_up_while(&rig, &source(&docker.image, PullPolicy::Never), "unpacking").await;
    eventually("the container is removed", async || containers(&client, &rig).await == 0).await;
    eventually("the thread ends", async || names(&rig.path("work")).is_empty()).await;
    rig.assert_empty();

    let rig = Rig::with(|options| {
        options.docker_host = Some(docker.url.clone());
        options.limits.bytes = 1 << 20;
    });
    let rig = rig.await;
    let error = rig.prepare(&source(&docker.image, PullPolicy::Never)).await.unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error:?}");
    assert_eq!(containers(&client, &rig).await, 0);
    rig.assert_empty();
}

#[tokio::test]
async fn a_tarball_of_a_whole_system_is_unpacked() {
    if docker::left_out() {
        return;
    }
    let docker = Docker::of_this_run();
    let rig = Rig::new().await;
    let image = rig.prepare(&Source::Tarball { path: docker.rootfs.clone() }).await.unwrap();
    assert!(image.root.join("usr/bin/env").exists());
    let ran = std::process::Command::new("chroot").arg(&image.root).args(["/bin/sh", "-c", "id -un 1000"]).output();
    let ran = ran.unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "user\n", "{}", String::from_utf8_lossy(&ran.stderr));
    let passwd = fs::metadata(image.root.join("usr/bin/passwd"));
    if let Ok(passwd) = passwd {
        use std::os::unix::fs::MetadataExt;
        assert_eq!(passwd.mode() & 0o6000, 0);
    }
}
