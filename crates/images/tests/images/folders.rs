use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::Path,
    process::Command,
    sync::Arc,
};

use cloud_sandbox_images::{ImageError, ImageStore};
use cloud_sandbox_model::template::Source;

use crate::rig::{REFERENCE, Rig, inode, names, options, tree};

fn system(rig: &Rig) -> Source {
    let folder = rig.folder.path().join("system");
    fs::create_dir_all(folder.join("usr/bin")).unwrap();
    fs::write(folder.join("usr/bin/program"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(folder.join("usr/bin/program"), Permissions::from_mode(0o6750)).unwrap();
    fs::hard_link(folder.join("usr/bin/program"), folder.join("usr/bin/other")).unwrap();
    fs::write(folder.join("private"), "1").unwrap();
    fs::set_permissions(folder.join("private"), Permissions::from_mode(0o600)).unwrap();
    symlink("usr/bin", folder.join("bin")).unwrap();
    symlink(rig.outside(), folder.join("away")).unwrap();
    let made = Command::new("mkfifo").arg(folder.join("pipe")).status().unwrap();
    assert!(made.success());
    Source::Folder { path: folder }
}

#[tokio::test]
async fn a_folder_is_copied_for_readers_and_stays_as_it_was() {
    let rig = Rig::new().await;
    let source = system(&rig);
    let image = rig.prepare(&source).await.unwrap();
    let copied = tree(&image.root);
    assert_eq!(copied["usr/bin/program"], "755 #!/bin/sh\n");
    assert_eq!(copied["private"], "644 1");
    assert_eq!(copied["bin"], "-> usr/bin");
    assert!(copied["away"].starts_with("-> /"));
    assert!(!copied.contains_key("pipe"));
    assert!(!copied.contains_key("away/secret"));
    assert_eq!(inode(&image.root.join("usr/bin/program")), inode(&image.root.join("usr/bin/other")));
    assert_eq!(image.bytes, 11);

    fs::write(rig.folder.path().join("system/private"), "changed").unwrap();
    let again = rig.prepare(&source).await.unwrap();
    assert_eq!(again, image);
    assert_eq!(fs::read_to_string(image.root.join("private")).unwrap(), "1");
    let other = rig.store.prepare("python@4", &source, &Arc::default()).await.unwrap();
    assert_eq!(fs::read_to_string(other.root.join("private")).unwrap(), "changed");
    assert_ne!(other.digest, image.digest);
    rig.assert_holds(&["python@3", "python@4"], 0);
    rig.assert_untouched();
}

#[tokio::test]
async fn equal_folders_have_equal_digests() {
    let rig = Rig::new().await;
    let source = system(&rig);
    let one = rig.prepare(&source).await.unwrap();
    let other = rig.store.prepare("other@1", &source, &Arc::default()).await.unwrap();
    assert_eq!(one.digest, other.digest);
    assert!(one.digest.starts_with("sha256:"));
}

#[tokio::test]
async fn a_store_within_the_folder_and_what_is_mounted_there_are_left_out() {
    let rig = Rig::new().await;
    let root = rig.folder.path().to_path_buf();
    fs::create_dir(root.join("mounted")).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(root.join("mounted")).status().unwrap();
    if mounted.success() {
        fs::write(root.join("mounted/file"), "").unwrap();
    }
    let image = rig.prepare(&Source::Folder { path: root.clone() }).await;
    if mounted.success() {
        assert!(Command::new("umount").arg("-l").arg(root.join("mounted")).status().unwrap().success());
    }
    let found = names(&image.unwrap().root);
    assert!(found.contains(&"outside".to_owned()));
    assert!(!found.contains(&"store".to_owned()));
    assert!(!mounted.success() || !found.contains(&"mounted".to_owned()));
}

#[tokio::test]
async fn what_is_no_folder_is_an_error_that_names_it() {
    let rig = Rig::new().await;
    for path in [rig.folder.path().join("missing"), rig.outside().join("secret")] {
        let error = rig.prepare(&Source::Folder { path: path.clone() }).await.unwrap_err();
        assert!(matches!(error, ImageError::Folder { .. }), "{error:?}");
        assert!(error.chain().contains(&path.display().to_string()), "{}", error.chain());
        assert!(error.chain().contains("os error"), "{}", error.chain());
    }
    let host = rig.prepare(&Source::Host).await.unwrap_err();
    assert!(matches!(host, ImageError::NotAnImage { .. }));
    rig.assert_empty();
}

#[tokio::test]
async fn limits_hold_for_folders() {
    let rig = Rig::limited(10, 100).await;
    let error = rig.prepare(&system(&rig)).await.unwrap_err();
    assert!(error.to_string().contains("more than 10 bytes"), "{error}");
    rig.assert_empty();
    let rig = Rig::limited(1 << 20, 3).await;
    let error = rig.prepare(&system(&rig)).await.unwrap_err();
    assert!(error.to_string().contains("more than 3 entries"), "{error}");
    rig.assert_empty();
}

#[tokio::test]
async fn images_are_listed_found_and_removed() {
    let rig = Rig::new().await;
    let source = system(&rig);
    assert!(rig.store.references().unwrap().is_empty());
    let image = rig.prepare(&source).await.unwrap();
    assert_eq!(rig.store.references().unwrap(), [REFERENCE]);
    assert_eq!(rig.prepare(&source).await.unwrap(), image);
    rig.store.remove(REFERENCE).await.unwrap();
    rig.store.remove(REFERENCE).await.unwrap();
    assert!(rig.store.references().unwrap().is_empty());
    rig.assert_empty();
    for bad in ["", "../x", "a/b", ".x@1", "x@0", "x@", "a b@1"] {
        let refused = rig.store.prepare(bad, &source, &Arc::default()).await;
        assert!(matches!(refused, Err(ImageError::Reference(_))), "{bad}");
        assert!(matches!(rig.store.remove(bad).await, Err(ImageError::Reference(_))), "{bad}");
    }
}

#[tokio::test]
async fn another_source_of_a_reference_replaces_its_image() {
    let rig = Rig::new().await;
    let first = rig.prepare(&system(&rig)).await.unwrap();
    let other = rig.prepare(&Source::Folder { path: rig.outside() }).await.unwrap();
    assert_ne!(first.digest, other.digest);
    assert!(other.root.join("secret").exists());
    assert!(!other.root.join("private").exists());
    rig.assert_holds(&[REFERENCE], 0);
}

#[tokio::test]
async fn what_a_killed_process_left_goes_when_the_store_is_opened() {
    let rig = Rig::new().await;
    let source = system(&rig);
    let image = rig.prepare(&source).await.unwrap();
    let Rig { folder, store } = rig;
    drop(store);
    let path = |name: &str| folder.path().join("store").join(name);
    fs::create_dir_all(path("work/7/root")).unwrap();
    fs::write(path("work/blob-3"), "half").unwrap();
    fs::create_dir_all(path("trees/half@1/root")).unwrap();
    fs::create_dir_all(path("layers/sha256-half/root")).unwrap();
    fs::create_dir_all(path("layers/sha256-unneeded/root")).unwrap();
    fs::write(path("layers/sha256-unneeded/record.json"), r#"{"bytes":1,"entries":1}"#).unwrap();
    let store = ImageStore::open(options(&folder.path().join("store"))).await.unwrap();
    let rig = Rig { folder, store };
    rig.assert_holds(&[REFERENCE], 0);
    assert_eq!(rig.prepare(&source).await.unwrap(), image);
    let mode = fs::metadata(rig.path("")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn a_store_is_used_by_one_process_at_a_time() {
    let rig = Rig::new().await;
    let second = ImageStore::open(options(&rig.path(""))).await;
    assert!(matches!(second.err(), Some(ImageError::InUse(_))));
    let unwritable = ImageStore::open(options(Path::new("/proc/images"))).await.err().unwrap();
    assert!(unwritable.chain().contains("failed to open the store"), "{}", unwritable.chain());
}

/// Makes something in a folder.
type Make<'a> = &'a dyn Fn(&Path);

#[tokio::test]
async fn what_is_at_the_top_must_be_text_and_not_too_much() {
    let rig = Rig::new().await;
    let odd = OsStr::from_bytes(b"odd\xff");
    let kinds: [(&str, Make<'_>); 4] = [
        ("\"odd\u{fffd}\" has a name", &|top| fs::create_dir(top.join(odd)).unwrap()),
        ("\"link\" has a name, or leads to one", &|top| symlink(odd, top.join("link")).unwrap()),
        ("may take 32 KiB", &|top| (0..500).for_each(|n| fs::write(top.join(format!("file-{n:03}")), "").unwrap())),
        ("may take 32 KiB", &|top| {
            (0..20).for_each(|n| symlink("far/".repeat(500), top.join(n.to_string())).unwrap());
        }),
    ];
    for (number, (expected, make)) in kinds.into_iter().enumerate() {
        let path = rig.folder.path().join(number.to_string());
        fs::create_dir(&path).unwrap();
        make(&path);
        let error = rig.prepare(&Source::Folder { path }).await.unwrap_err();
        assert!(matches!(error, ImageError::Entry { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
        rig.assert_empty();
    }
    // further down it is the image's own business
    let path = rig.folder.path().join("deep");
    fs::create_dir_all(path.join("usr").join(odd)).unwrap();
    rig.prepare(&Source::Folder { path }).await.unwrap();
}
