//! Archives that want out of their folder, or too much of it.

use cloud_sandbox_images::ImageError;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tar::EntryType;

use crate::{
    pack::{Pack, pack},
    rig::Rig,
};

/// A name that begins outside, each time another way.
fn ways_out(outside: &str) -> Vec<(&'static str, Pack)> {
    let secret = format!("{outside}/secret");
    vec![
        ("leads out", pack().file("../../outside/secret", "1")),
        ("leads out", pack().file("a/../../../outside/secret", "1")),
        ("leads out", pack().file("a/..", "1")),
        ("leads out", pack().folder("../../outside/new")),
        ("leads out", pack().symlink("../../outside/new", "x")),
        ("leads out", pack().file("a", "1").hard_link("../../outside/new", "a")),
        ("leads out", pack().hard_link("a", "../../outside/secret")),
        ("not there", pack().hard_link("a", &secret)),
        ("not there", pack().symlink("s", outside).hard_link("a", "s/secret")),
        ("not there", pack().hard_link("a", "b")),
        ("no file", pack().folder("d").hard_link("a", "d")),
        ("no file", pack().hard_link("a", "./")),
        ("link to nothing", pack().entry(EntryType::Symlink, "a", "", b"", 0o777)),
        ("link to nothing", pack().entry(EntryType::Link, "a", "", b"", 0o777)),
        ("too many links", pack().symlink("a", "b").symlink("b", "a").file("a/x", "1")),
        ("too many links", pack().symlink("a", "a/a/a").file("a/x", "1")),
        ("a folder that is a file", pack().file("a", "1").file("a/b", "2")),
        ("no name", pack().file("./", "1").symlink(".", "x")),
        ("not understood", pack().entry(EntryType::new(b'Z'), "a", "", b"", 0o644)),
        ("nested too deep", pack().deep_file(&"d/".repeat(200), "")),
        ("nested too deep", nested_through_links()),
        ("a name that is too long", pack().deep_file(&"n".repeat(300), "1")),
    ]
}

/// Folders whose names are short, and that are far down.
fn nested_through_links() -> Pack {
    let far = "d/".repeat(45);
    pack().folder(&far).symlink("l", &far).file("l/d/x", "1").deep_file(&format!("l/{far}{far}x"), "1")
}

#[tokio::test]
async fn no_entry_gets_out_and_nothing_is_left() {
    let rig = Rig::new().await;
    let outside = rig.outside().display().to_string();
    for (index, (expected, archive)) in ways_out(&outside).into_iter().enumerate() {
        let error = rig.unpack(&archive.bytes()).await.expect_err(expected);
        assert!(matches!(error, ImageError::Entry { .. }), "{index}: {error:?}");
        assert!(error.to_string().contains(expected), "{index}: {error}");
        rig.assert_untouched();
        rig.assert_empty();
    }
}

#[tokio::test]
async fn links_to_the_outside_are_the_images_own_business() {
    let rig = Rig::new().await;
    let outside = rig.outside().display().to_string();
    let archive = pack()
        .symlink("a", &outside)
        .file("a/secret", "inside")
        .symlink("b", "../../../../../../../../../..")
        .file(&format!("b/{}", &outside[1..]), "inside")
        .symlink("c", &format!("{outside}/secret"))
        .file("c", "inside")
        .symlink("d", &format!("{outside}/secret"))
        .hard_link("e", "d");
    let image = rig.unpack(&archive.bytes()).await.unwrap();
    // the folder that the first file made there is replaced by a file
    assert_eq!(std::fs::read_to_string(image.root.join(&outside[1..])).unwrap(), "inside");
    assert_eq!(std::fs::read_to_string(image.root.join("c")).unwrap(), "inside");
    rig.assert_untouched();
    rig.store.remove(&image.reference).await.unwrap();

    let archive = pack().symlink("a", &outside).file("a/secret", "inside").symlink("d", &outside).hard_link("e", "d");
    let image = rig.unpack(&archive.bytes()).await.unwrap();
    let inside = image.root.join(outside.trim_start_matches('/')).join("secret");
    assert_eq!(std::fs::read_to_string(inside).unwrap(), "inside");
    rig.assert_untouched();
}

#[tokio::test]
async fn entries_replace_what_the_way_to_them_leads_through() {
    let rig = Rig::new().await;
    let source = |archive: Pack| archive.folder("a").symlink("b", "a/..");
    let file = rig.unpack(&source(pack()).file("b/a", "inside").bytes()).await.unwrap();
    assert_eq!(std::fs::read_to_string(file.root.join("a")).unwrap(), "inside");
    rig.store.remove(&file.reference).await.unwrap();
    let link = rig.unpack(&source(pack()).symlink("b/a", "c").bytes()).await.unwrap();
    assert_eq!(link.root.join("a").read_link().unwrap(), std::path::Path::new("c"));
    rig.store.remove(&link.reference).await.unwrap();
    let same = rig.unpack(&source(pack()).file("c", "inside").hard_link("b/a", "c").bytes()).await.unwrap();
    assert_eq!(std::fs::read_to_string(same.root.join("a")).unwrap(), "inside");
}

#[derive(Debug, Clone)]
enum Made {
    File(String),
    Folder(String),
    Symlink(String, String),
    HardLink(String, String),
}

/// Names of few parts, so that entries meet.
fn name() -> impl Strategy<Value = String> {
    let part =
        prop_oneof![6 => "[abc]", 1 => Just("..".to_owned()), 1 => Just("etc".to_owned()), 1 => Just("tmp".to_owned())];
    (prop::bool::weighted(0.1), prop::collection::vec(part, 1..4))
        .prop_map(|(absolute, parts)| format!("{}{}", if absolute { "/" } else { "" }, parts.join("/")))
}

fn target() -> impl Strategy<Value = String> {
    prop_oneof![name(), Just("OUTSIDE".to_owned()), Just("../../../../outside".to_owned()), Just("/".to_owned())]
}

fn entry() -> impl Strategy<Value = Made> {
    prop_oneof![
        name().prop_map(Made::File),
        name().prop_map(Made::Folder),
        (name(), target()).prop_map(|(name, target)| Made::Symlink(name, target)),
        (name(), target()).prop_map(|(name, target)| Made::HardLink(name, target)),
    ]
}

#[test]
fn no_mix_of_entries_gets_out() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let rig = runtime.block_on(Rig::new());
    let outside = rig.outside().display().to_string();
    let mut runner = TestRunner::new(Config { cases: 400, failure_persistence: None, ..Config::default() });
    let entries = prop::collection::vec(entry(), 1..12);
    let unpacked = std::cell::Cell::new(0);
    let result = runner.run(&entries, |entries| {
        let archive = entries.iter().fold(pack(), |archive, entry| match entry {
            Made::File(name) => archive.file(name, "inside"),
            Made::Folder(name) => archive.folder(name),
            Made::Symlink(name, target) => archive.symlink(name, &target.replace("OUTSIDE", &outside)),
            Made::HardLink(name, target) => archive.hard_link(name, &target.replace("OUTSIDE", &outside)),
        });
        match runtime.block_on(rig.unpack(&archive.bytes())) {
            Ok(image) => {
                assert!(image.root.join("etc/passwd").is_file());
                runtime.block_on(rig.store.remove(&image.reference)).unwrap();
                unpacked.set(unpacked.get() + 1);
            }
            Err(ImageError::Entry { .. }) => {}
            Err(error) => panic!("{}", error.chain()),
        }
        rig.assert_untouched();
        rig.assert_empty();
        Ok(())
    });
    result.unwrap();
    assert!(unpacked.get() > 20, "only {} could be unpacked", unpacked.get());
}
