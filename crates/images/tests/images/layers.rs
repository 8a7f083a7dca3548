//! Images of a registry, and what their layers become.

use std::{collections::BTreeMap, fs, sync::Arc};

use cloud_sandbox_images::{Image, ImageError, ImageStore};
use cloud_sandbox_model::template::{Credentials, Progress, PullPolicy, Source};

use crate::{
    pack::{Pack, gzip, pack, zstd},
    push::{Pushed, digest, here, push},
    registry::{self, RegistryServer},
    rig::{REFERENCE, Rig, eventually, give_up_while, inode, large, names, options, tree},
    small_disk::SmallDisk,
};

/// An image of a registry on the loopback.
pub fn source(image: &str) -> Source {
    let image =
        cloud_sandbox_model::template::Image { image: image.to_owned(), pull: PullPolicy::Missing, credentials: None };
    Source::Registry { image, plain_http: true }
}

/// A store, and a registry with an image of these layers.
async fn with(layers: Vec<Vec<u8>>) -> Option<(Rig, RegistryServer, Pushed)> {
    if registry::left_out() {
        return None;
    }
    let (rig, server) = (Rig::new().await, RegistryServer::start());
    let pushed = push(&server, "test/image", layers, &here()).await;
    Some((rig, server, pushed))
}

/// What becomes of layers.
async fn merged(layers: Vec<Pack>) -> Option<(Rig, Image)> {
    let (rig, _server, pushed) = with(layers.into_iter().map(Pack::bytes).collect()).await?;
    let image = rig.prepare(&source(&pushed.image)).await.unwrap();
    rig.assert_untouched();
    Some((rig, image))
}

/// The names and contents that are not those of every sandbox.
fn own(image: &Image) -> BTreeMap<String, String> {
    let everywhere = ["etc", "proc", "dev", "sys", "tmp", "var", "run", "workspace", "home"];
    let is_own = |path: &String| !everywhere.iter().any(|top| path.split('/').next() == Some(top));
    tree(&image.root).into_iter().filter(|(path, _)| is_own(path)).collect()
}

#[tokio::test]
async fn layers_replace_and_delete_what_is_below_them() {
    let below = pack()
        .folder("a")
        .file("a/kept", "1")
        .file("a/gone", "2")
        .file("a/changed", "3")
        .folder("b")
        .file("b/x", "4")
        .folder("b/deep")
        .file("b/deep/y", "5")
        .file("c", "6")
        .file("d/x", "7")
        .file("e", "8");
    let above = pack()
        .file("a/changed", "changed")
        .file("a/.wh.gone", "")
        .file("a/.wh.never", "")
        .file("b/new", "new")
        .file("b/.wh..wh..opq", "")
        .folder("c")
        .file("c/x", "a folder now")
        .file("d", "a file now")
        .file(".wh.e", "")
        .file(".wh..wh.plnk", "");
    let again = pack().file("e", "back");
    let Some((_rig, image)) = merged(vec![below, above, again]).await else { return };
    let expected = [
        ("a", "d755"),
        ("a/changed", "644 changed"),
        ("a/kept", "644 1"),
        ("b", "d755"),
        ("b/new", "644 new"),
        ("c", "d755"),
        ("c/x", "644 a folder now"),
        ("d", "644 a file now"),
        ("e", "644 back"),
    ];
    let expected = expected.map(|(path, about)| (path.to_owned(), about.to_owned()));
    assert_eq!(own(&image), BTreeMap::from(expected));
}

#[tokio::test]
async fn a_layer_goes_through_links_of_those_below() {
    let below =
        pack().folder("usr/bin").symlink("bin", "usr/bin").symlink("lib", "/usr/lib").symlink("sbin", "usr/sbin");
    // what has an entry is a folder of its own; what only has something in it is passed through
    let above = pack().file("bin/sh", "1").file("lib/deep/x", "2").folder("sbin").file("sbin/init", "3");
    let Some((_rig, image)) = merged(vec![below, above]).await else { return };
    let own = own(&image);
    assert_eq!([&own["bin"], &own["lib"]], ["-> usr/bin", "-> /usr/lib"]);
    assert_eq!([&own["usr/bin/sh"], &own["usr/lib/deep/x"]], ["644 1", "644 2"]);
    assert_eq!([&own["sbin"], &own["sbin/init"]], ["d755", "644 3"]);
    assert_eq!([&own["usr"], &own["usr/lib"], &own["usr/lib/deep"]], ["d755"; 3]);
}

#[tokio::test]
async fn links_between_layers_stay_inside() {
    if registry::left_out() {
        return;
    }
    let (rig, server) = (Rig::new().await, RegistryServer::start());
    let outside = rig.outside().display().to_string();
    let below = pack().symlink("way", &outside).symlink("up", "../../../../..");
    let above = pack().file("way/secret", "1").file(&format!("up{outside}/new"), "2").file("way/.wh.secret", "");
    let pushed = push(&server, "hostile", vec![below.bytes(), above.bytes()], &here()).await;
    let image = rig.prepare(&source(&pushed.image)).await.unwrap();
    assert_eq!(fs::read_to_string(image.root.join(&outside[1..]).join("new")).unwrap(), "2");
    rig.assert_untouched();
    rig.store.remove(REFERENCE).await.unwrap();

    for name in [".wh.", ".wh..", ".wh..."] {
        let pushed = push(&server, "nameless", vec![pack().file(name, "").bytes()], &here()).await;
        let error = rig.prepare(&source(&pushed.image)).await.unwrap_err();
        assert!(error.to_string().contains("whiteout without a name"), "{error}");
        rig.assert_empty();
    }
    let hostile = pack().file("../../outside/secret", "1");
    let pushed = push(&server, "out", vec![pack().file("a", "").bytes(), hostile.bytes()], &here()).await;
    let error = rig.prepare(&source(&pushed.image)).await.unwrap_err();
    assert!(error.to_string().contains("leads out"), "{error}");
    rig.assert_untouched();
    rig.assert_empty();
}

#[tokio::test]
async fn layers_may_be_compressed_and_images_say_how_they_run() {
    let plain = pack().file("a", "1").bytes();
    let (second, third) = (gzip(&pack().file("b", "2").bytes()), zstd(&pack().file("c", "3").bytes()));
    let Some((rig, _server, pushed)) = with(vec![plain, second, third]).await else { return };
    let image = rig.prepare(&source(&pushed.image)).await.unwrap();
    assert_eq!(own(&image).into_values().collect::<Vec<_>>(), ["644 1", "644 2", "644 3"]);
    assert_eq!(image.env, BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]));
    assert_eq!(image.digest, pushed.config);
    assert_eq!(image.bytes, 3);
    // by its digest it is the same
    let by_digest = format!("{}@{}", pushed.image, pushed.manifest);
    let other = rig.store.prepare("other@1", &source(&by_digest), &Arc::default()).await.unwrap();
    assert_eq!(other.digest, image.digest);
}

#[tokio::test]
async fn images_share_the_layers_that_they_have_in_common() {
    let common = gzip(&pack().file("etc/passwd", "root:x:0:0::/:/bin/sh\n").file("common", "1").bytes());
    let Some((rig, server, one)) = with(vec![common.clone(), pack().file("own", "1").bytes()]).await else { return };
    let two = push(&server, "test/other", vec![common.clone(), pack().file("own", "2").bytes()], &here()).await;
    let (progress, other_progress) = (Arc::default(), Arc::default());
    let (one, two) = (source(&one.image), source(&two.image));
    let both = futures::future::try_join(
        rig.store.prepare("one@1", &one, &progress),
        rig.store.prepare("two@1", &two, &other_progress),
    );
    let (one, two) = both.await.unwrap();
    assert_eq!(inode(&one.root.join("common")), inode(&two.root.join("common")));
    assert_ne!(inode(&one.root.join("etc/passwd")), inode(&two.root.join("etc/passwd")));
    assert_eq!(fs::read_to_string(two.root.join("own")).unwrap(), "2");
    assert_eq!(server.fetches(&digest(&common)), 1);
    rig.assert_holds(&["one@1", "two@1"], 3);

    let layer = rig.path("layers").join(digest(&common).replace(':', "-")).join("root/etc/passwd");
    assert_eq!(fs::read_to_string(&layer).unwrap(), "root:x:0:0::/:/bin/sh\n", "a tree's change is not its layer's");
    rig.store.remove("one@1").await.unwrap();
    rig.assert_holds(&["two@1"], 2);
    assert!(two.root.join("common").exists());
    rig.store.remove("two@1").await.unwrap();
    rig.assert_empty();
}

#[tokio::test]
async fn layers_are_kept_for_the_next_start_as_long_as_an_image_needs_them() {
    let Some((rig, server, pushed)) = with(vec![pack().file("a", "1").bytes()]).await else { return };
    let image = rig.prepare(&source(&pushed.image)).await.unwrap();
    let Rig { folder, store } = rig;
    drop(store);
    let store = ImageStore::open(options(&folder.path().join("store"))).await.unwrap();
    let rig = Rig { folder, store };
    rig.assert_holds(&[REFERENCE], 1);
    assert_eq!(rig.prepare(&source(&pushed.image)).await.unwrap(), image);
    drop(server);
    // nobody has to be asked for what is there
    assert_eq!(rig.prepare(&source(&pushed.image)).await.unwrap(), image);
}

#[tokio::test]
async fn hard_links_and_repeated_layers_are_merged() {
    let below = pack().file("a", "1").hard_link("b", "a").symlink("s", "a").hard_link("t", "s");
    let Some((_rig, image)) =
        merged(vec![below, pack().file("a", "2"), pack().file("c", "3"), pack().file("a", "2")]).await
    else {
        return;
    };
    let own = own(&image);
    assert_eq!([&own["a"], &own["b"], &own["s"], &own["t"]], ["644 2", "644 1", "-> a", "-> a"]);
}

#[tokio::test]
async fn limits_hold_for_all_layers_together() {
    if registry::left_out() {
        return;
    }
    let (rig, server) = (Rig::limited(1000, 100).await, RegistryServer::start());
    let layer = |name: &str| gzip(&pack().file(name, &"x".repeat(400)).bytes());
    let pushed = push(&server, "large", vec![layer("a"), layer("b"), layer("c")], &here()).await;
    let error = rig.prepare(&source(&pushed.image)).await.unwrap_err();
    assert!(error.to_string().contains("more than 1000 bytes"), "{error}");
    rig.assert_empty();
    // before all of them are on the disk, also where some already are
    let (mut common, progress) = (vec![layer("a")], Arc::new(Progress::default()));
    let one = push(&server, "one", common.clone(), &here()).await;
    rig.store.prepare("one@1", &source(&one.image), &progress).await.unwrap();
    common.extend([layer("b"), layer("c")]);
    let three = push(&server, "three", common, &here()).await;
    for image in [&pushed.image, &three.image] {
        rig.store.prepare(REFERENCE, &source(image), &progress).await.unwrap_err();
        assert_eq!(progress.now().0, "pulling");
    }
    rig.store.remove("one@1").await.unwrap();
    rig.assert_empty();
    // known before anything is fetched
    let pushed = push(&server, "larger", vec![pack().file("a", &"x".repeat(4000)).bytes()], &here()).await;
    let error = rig.prepare(&source(&pushed.image)).await.unwrap_err();
    assert!(error.to_string().contains("more than 1000 bytes"), "{error}");
    assert_eq!(server.fetches(&pushed.layers[0]), 0);
}

#[tokio::test]
async fn a_call_that_is_given_up_leaves_nothing_that_is_half_made() {
    let Some((rig, _server, pushed)) = with(vec![large()]).await else { return };
    give_up_while(&rig, &source(&pushed.image), "pulling").await;
    eventually("the threads end", async || names(&rig.path("work")).is_empty()).await;
    assert_eq!(names(&rig.path("trees")), [""; 0]);
    let progress = Arc::new(Progress::default());
    rig.store.prepare(REFERENCE, &source(&pushed.image), &progress).await.unwrap();
    rig.assert_holds(&[REFERENCE], 1);
}

#[tokio::test]
async fn a_full_disk_is_said_and_nothing_is_left() {
    if registry::left_out() {
        return;
    }
    let Some(disk) = SmallDisk::mount("4m") else { return };
    let server = RegistryServer::start();
    let store = ImageStore::open(options(&disk.path().join("store"))).await.unwrap();
    let plain = pack().file("a", &"x".repeat(6 << 20)).bytes();
    // one is too large as it comes, the other when it is unpacked
    for layer in [plain.clone(), gzip(&plain)] {
        let pushed = push(&server, "large", vec![pack().file("b", "1").bytes(), layer], &here()).await;
        let error = store.prepare(REFERENCE, &source(&pushed.image), &Arc::default()).await.unwrap_err();
        assert!(matches!(error, ImageError::DiskFull(_)), "{error:?}");
        for part in ["trees", "layers", "work"] {
            assert_eq!(names(&disk.path().join("store").join(part)), [""; 0]);
        }
    }
}

#[tokio::test]
async fn a_registry_that_asks_is_told_the_credentials() {
    if registry::left_out() {
        return;
    }
    let (rig, server) = (Rig::new().await, RegistryServer::with_users());
    let pushed = push(&server, "private", vec![pack().file("a", "1").bytes()], &here()).await;
    let with = |password: Option<&str>| {
        let mut source = source(&pushed.image);
        source.image_mut().unwrap().credentials =
            password.map(|password| Credentials { username: registry::USER.to_owned(), password: password.to_owned() });
        source
    };
    for wrong in [None, Some("wrong")] {
        let error = rig.prepare(&with(wrong)).await.unwrap_err();
        assert!(matches!(error, ImageError::Refused { .. }), "{error:?}");
        assert!(error.chain().contains(&server.host()), "{}", error.chain());
        assert!(error.chain().contains("check the template's credentials"), "{}", error.chain());
        rig.assert_empty();
    }
    rig.prepare(&with(Some(registry::PASSWORD))).await.unwrap();
    let record = fs::read_to_string(rig.path("trees").join(REFERENCE).join("record.json")).unwrap();
    assert!(!record.contains(registry::PASSWORD));
}
