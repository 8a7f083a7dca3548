//! Registries that have not what was asked for, or something else.

use std::{fs, net::TcpListener};

use cloud_sandbox_images::ImageError;
use cloud_sandbox_model::template::PullPolicy;
use oci_client::manifest::{OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE};
use serde_json::{Value, json};

use crate::{
    layers::source,
    pack::pack,
    push::{Pusher, architecture, here, manifest, push},
    registry::{self, RegistryServer},
    rig::Rig,
};

/// A store, and a registry.
async fn both() -> Option<(Rig, RegistryServer)> {
    if registry::left_out() { None } else { Some((Rig::new().await, RegistryServer::start())) }
}

fn index(entries: &[(&str, &str)]) -> Value {
    let entry = |(digest, platform): &(&str, &str)| {
        let (os, architecture) = platform.split_once('/').unwrap();
        let platform = json!({ "os": os, "architecture": architecture });
        json!({ "mediaType": OCI_IMAGE_MEDIA_TYPE, "digest": digest, "size": 1, "platform": platform })
    };
    let manifests: Vec<_> = entries.iter().map(entry).collect();
    json!({ "schemaVersion": 2, "mediaType": OCI_IMAGE_INDEX_MEDIA_TYPE, "manifests": manifests })
}

#[tokio::test]
async fn of_several_images_that_of_this_machine_is_taken() {
    let Some((rig, server)) = both().await else { return };
    let foreign = json!({ "os": "linux", "architecture": "s390x" });
    let other = push(&server, "list", vec![pack().file("other", "1").bytes()], &foreign).await;
    let ours = push(&server, "list", vec![pack().file("ours", "1").bytes()], &here()).await;
    let platform = format!("linux/{}", architecture());
    let pusher = Pusher::new(&server, "list").await;
    pusher.manifest(&index(&[(&other.manifest, "linux/s390x"), (&ours.manifest, &platform)])).await;
    let image = rig.prepare(&source(&ours.image)).await.unwrap();
    assert!(image.root.join("ours").exists());
    assert_eq!(image.digest, ours.config);
    rig.store.remove(&image.reference).await.unwrap();

    pusher.manifest(&index(&[(&other.manifest, "linux/s390x"), (&ours.manifest, "windows/amd64")])).await;
    for (name, found) in
        [(&ours.image, "linux/s390x, windows/amd64"), (&format!("{}@{}", other.image, other.manifest), "linux/s390x")]
    {
        let error = rig.prepare(&source(name)).await.unwrap_err();
        assert!(matches!(error, ImageError::Platform { .. }), "{error:?}");
        assert!(error.to_string().contains(&format!("needs {platform}")), "{error}");
        assert!(error.to_string().ends_with(found), "{error}");
    }
    rig.assert_empty();
}

#[tokio::test]
async fn a_damaged_blob_is_found_and_nothing_is_left() {
    let Some((rig, server)) = both().await else { return };
    let layers = || vec![pack().file("a", "1").bytes(), pack().file("b", &"x".repeat(100_000)).bytes()];
    let changes: [fn(&mut Vec<u8>); 3] =
        [|bytes| bytes[60_000] ^= 1, |bytes| bytes.truncate(60_000), |bytes| bytes.extend([0; 512])];
    for (index, change) in changes.iter().enumerate() {
        let pushed = push(&server, &format!("damaged{index}"), layers(), &here()).await;
        let file = server.blob(&pushed.layers[1]);
        let good = fs::read(&file).unwrap();
        let mut bad = good.clone();
        change(&mut bad);
        fs::write(&file, bad).unwrap();
        let error = rig.prepare(&source(&pushed.image)).await.unwrap_err();
        assert!(matches!(error, ImageError::Blob { .. }), "{index}: {error:?}");
        assert!(error.to_string().contains(&pushed.layers[1]), "{error}");
        rig.assert_empty();
        fs::write(&file, good).unwrap();
        let image = rig.prepare(&source(&pushed.image)).await.unwrap();
        rig.store.remove(&image.reference).await.unwrap();
    }
}

#[tokio::test]
async fn a_blob_of_another_size_than_its_manifest_says_is_refused() {
    let Some((rig, server)) = both().await else { return };
    let pusher = Pusher::new(&server, "sizes").await;
    let config = pusher.blob(here().to_string().as_bytes()).await;
    let layer = pusher.blob(&pack().file("a", &"x".repeat(100_000)).bytes()).await;
    let with = |mut blob: Value, size: u64| {
        blob["size"] = size.into();
        blob
    };
    for (manifest, kind) in [
        (manifest(&config, &[with(layer.clone(), 10_000)]), "has more than 10000 bytes"),
        (manifest(&config, &[with(layer.clone(), 1_000_000)]), "its manifest says 1000000"),
        (manifest(&with(config.clone(), 10), std::slice::from_ref(&layer)), "has more than 10 bytes"),
        (manifest(&with(config.clone(), 1 << 40), std::slice::from_ref(&layer)), "its configuration has"),
    ] {
        pusher.manifest(&manifest).await;
        let error = rig.prepare(&source(&pusher.reference.whole())).await.unwrap_err();
        assert!(matches!(error, ImageError::Blob { .. } | ImageError::NotAnImage { .. }), "{error:?}");
        assert!(error.to_string().contains(kind), "{error}");
        rig.assert_empty();
    }
}

#[tokio::test]
async fn what_does_not_exist_is_missing_at_its_registry() {
    let Some((rig, server)) = both().await else { return };
    let pushed = push(&server, "there", vec![pack().file("a", "1").bytes()], &here()).await;
    for image in [format!("{}/nowhere", server.host()), format!("{}/there:other", server.host())] {
        let error = rig.prepare(&source(&image)).await.unwrap_err();
        assert!(matches!(error, ImageError::Missing { .. }), "{error:?}");
        assert!(error.to_string().contains(&image) && error.to_string().contains(&server.host()), "{error}");
    }
    fs::remove_file(server.blob(&pushed.layers[0])).unwrap();
    let error = rig.prepare(&source(&pushed.image)).await.unwrap_err();
    assert!(matches!(error, ImageError::Blob { .. }), "{error:?}");
    assert!(error.to_string().contains("does not have it"), "{error}");
    rig.assert_empty();
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_unreachable() {
    let rig = Rig::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let error = rig.prepare(&source(&format!("{closed}/image"))).await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error:?}");
    assert!(error.chain().contains(&closed.to_string()), "{}", error.chain());
    assert!(error.chain().contains("refused"), "{}", error.chain());
    rig.assert_empty();
}

#[tokio::test]
async fn a_registry_without_tls_must_be_said_to_be_one() {
    let Some((rig, server)) = both().await else { return };
    let pushed = push(&server, "plain", vec![pack().file("a", "1").bytes()], &here()).await;
    let mut source = source(&pushed.image);
    if let cloud_sandbox_model::template::Source::Registry { plain_http, .. } = &mut source {
        *plain_http = false;
    }
    let error = rig.prepare(&source).await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error:?}");
    rig.assert_empty();
}

#[tokio::test]
async fn an_image_that_may_not_be_pulled_is_not() {
    let Some((rig, server)) = both().await else { return };
    let pushed = push(&server, "there", vec![pack().file("a", "1").bytes()], &here()).await;
    let mut never = source(&pushed.image);
    never.image_mut().unwrap().pull = PullPolicy::Never;
    let error = rig.prepare(&never).await.unwrap_err();
    assert!(matches!(error, ImageError::NeverPulled { .. }), "{error:?}");
    let image = rig.prepare(&source(&pushed.image)).await.unwrap();
    assert_eq!(rig.prepare(&never).await.unwrap(), image);
}

#[tokio::test]
async fn what_is_no_image_is_said_to_be_none() {
    let Some((rig, server)) = both().await else { return };
    let layer = || vec![pack().file("a", "1").bytes()];
    let chart = push(&server, "chart", layer(), &json!({ "name": "a chart" })).await;
    let text = push(&server, "text", vec![b"not an archive, but long enough to be one ".repeat(30)], &here()).await;
    let error = rig.prepare(&source(&chart.image)).await.unwrap_err();
    assert!(matches!(error, ImageError::NotAnImage { .. }), "{error:?}");
    let error = rig.prepare(&source(&text.image)).await.unwrap_err();
    assert!(matches!(error, ImageError::NotAnArchive { .. }), "{error:?}");
    assert!(error.to_string().contains(&text.layers[0]), "{error}");
    for bad in ["a:b:c", ":tag", ""] {
        let error = rig.prepare(&source(bad)).await.unwrap_err();
        assert!(matches!(error, ImageError::NotAnImage { .. }), "{bad}: {error:?}");
    }
    rig.assert_empty();
}
