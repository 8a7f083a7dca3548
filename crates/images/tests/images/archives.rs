use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    process::Command,
    time::{Duration, SystemTime},
};

use cloud_sandbox_model::template::Source;
use tar::EntryType;

use crate::{
    pack::{gzip, pack, zstd},
    rig::{Rig, inode, names, tree},
};

#[tokio::test]
async fn archives_are_told_by_what_they_begin_with() {
    let plain =
        pack().folder("usr/bin/").file_with_mode("usr/bin/sh", "shell", 0o700).symlink("bin", "usr/bin").bytes();
    let mut trees = Vec::new();
    for bytes in [plain.clone(), gzip(&plain), zstd(&plain)] {
        let rig = Rig::new().await;
        let image = rig.unpack(&bytes).await.unwrap();
        assert_eq!(image.bytes, 5);
        assert_eq!(image.digest.len(), "sha256:".len() + 64);
        trees.push(tree(&image.root));
    }
    assert_eq!(trees[0]["usr/bin/sh"], "755 shell");
    assert_eq!(trees[0]["bin"], "-> usr/bin");
    assert_eq!(trees[0], trees[1]);
    assert_eq!(trees[0], trees[2]);
}

#[tokio::test]
async fn a_tree_has_what_a_sandbox_needs() {
    let rig = Rig::new().await;
    let image = rig.unpack(&pack().file("x", "").bytes()).await.unwrap();
    let tree = tree(&image.root);
    for place in ["proc", "dev", "sys", "tmp", "var/tmp", "run", "workspace", "home/user", "etc"] {
        assert_eq!(tree[place], "d755", "{place}");
    }
    assert!(tree["etc/passwd"].contains("\nuser:x:1000:1000:"));
    assert!(tree["etc/group"].contains("\nuser:x:1000:\n"));
    assert_eq!(tree["etc/hostname"], "644 sandbox\n");
    assert_eq!(tree["etc/hosts"], "644 127.0.0.1 localhost sandbox\n::1 localhost\n");
    assert_eq!(tree["etc/resolv.conf"], "644 nameserver 10.0.0.1\n");
    assert!(tree["etc/nsswitch.conf"].contains("hosts: files dns"));
    let told = fs::metadata(&image.root).unwrap();
    assert_eq!(told.mode() & 0o7777, 0o755);
}

#[tokio::test]
async fn an_images_own_users_and_settings_stay() {
    let rig = Rig::new().await;
    let archive = pack()
        .file("etc/passwd", "root:x:0:0:root:/root:/bin/bash\nnode:x:1000:1000::/home/node:/bin/bash\n")
        .file("etc/nsswitch.conf", "hosts: dns\n")
        .file(".dockerenv", "")
        .folder("workspace")
        .file("workspace/kept", "");
    let image = rig.unpack(&archive.bytes()).await.unwrap();
    let tree = tree(&image.root);
    assert!(tree["etc/passwd"].contains("node:x:1000"));
    assert!(!tree["etc/passwd"].contains("user:x:1000"));
    assert_eq!(tree["etc/nsswitch.conf"], "644 hosts: dns\n");
    assert!(tree.contains_key("workspace/kept"));
    assert!(!tree.contains_key(".dockerenv"));
}

#[tokio::test]
async fn links_in_places_that_a_sandbox_needs_are_replaced_and_not_followed() {
    let rig = Rig::new().await;
    let outside = rig.outside().display().to_string();
    let secret = format!("{outside}/secret");
    let mut archive = pack().folder("etc");
    for place in ["proc", "dev", "sys", "tmp", "var", "run", "workspace", "home"] {
        archive = archive.symlink(place, &outside);
    }
    for file in ["passwd", "group", "hosts", "hostname", "resolv.conf"] {
        archive = archive.symlink(&format!("etc/{file}"), &secret);
    }
    let image = rig.unpack(&archive.bytes()).await.unwrap();
    let tree = tree(&image.root);
    for place in ["proc", "dev", "sys", "tmp", "var", "var/tmp", "run", "workspace", "home", "home/user"] {
        assert_eq!(tree[place], "d755", "{place}");
    }
    assert!(!tree["etc/passwd"].contains("untouched"));
    assert!(tree["etc/hosts"].starts_with("644 "));
    rig.assert_untouched();

    let rig = Rig::new().await;
    let image = rig.unpack(&pack().symlink("etc", &outside).bytes()).await.unwrap();
    assert!(image.root.join("etc/passwd").exists());
    rig.assert_untouched();
}

#[tokio::test]
async fn entries_follow_links_as_they_will_be_followed_inside() {
    let rig = Rig::new().await;
    let archive = pack()
        .folder("usr")
        .symlink("lib", "/usr/lib")
        .file("lib/a", "1")
        .symlink("up", "../../../usr")
        .file("up/b", "2")
        .file("/absolute", "3")
        .hard_link("lib/c", "up/b");
    let image = rig.unpack(&archive.bytes()).await.unwrap();
    let tree = tree(&image.root);
    assert_eq!(tree["usr/lib/a"], "644 1");
    assert_eq!(tree["usr/b"], "644 2");
    assert_eq!(tree["absolute"], "644 3");
    assert_eq!(inode(&image.root.join("usr/lib/c")), inode(&image.root.join("usr/b")));
    rig.assert_untouched();
}

#[tokio::test]
async fn later_entries_replace_earlier_ones() {
    let rig = Rig::new().await;
    let archive = pack()
        .file("a/x", "1")
        .file("a", "2")
        .symlink("b", "a")
        .file("b", "3")
        .file("c", "4")
        .folder("c")
        .symlink("d", "c")
        .folder("d")
        .file("d/y", "5")
        .file("a", "6")
        .hard_link("c", "a")
        .hard_link("c", "c");
    let image = rig.unpack(&archive.bytes()).await.unwrap();
    let tree = tree(&image.root);
    assert_eq!([&tree["a"], &tree["b"], &tree["c"]], ["644 6", "644 3", "644 6"]);
    assert_eq!([&tree["d"], &tree["d/y"]], ["d755", "644 5"]);
}

#[tokio::test]
async fn files_give_no_rights_and_keep_their_times() {
    let rig = Rig::new().await;
    let archive = pack()
        .file_with_mode("root", "", 0o6755)
        .file_with_mode("secret", "", 0o000)
        .file_with_mode("shared", "", 0o666)
        .entry(EntryType::Char, "null", "", b"", 0o666)
        .entry(EntryType::Block, "disk", "", b"", 0o666)
        .entry(EntryType::Fifo, "pipe", "", b"", 0o666)
        .entry(EntryType::Continuous, "continuous", "", b"1", 0o644)
        .entry(EntryType::XGlobalHeader, "global", "", b"", 0o644);
    let image = rig.unpack(&archive.bytes()).await.unwrap();
    let tree = tree(&image.root);
    assert_eq!([&tree["root"], &tree["secret"], &tree["shared"]], ["755 ", "644 ", "644 "]);
    assert_eq!(tree["continuous"], "644 1");
    for gone in ["null", "disk", "pipe", "global"] {
        assert!(!tree.contains_key(gone), "{gone}");
    }
    let told = fs::metadata(image.root.join("shared")).unwrap();
    assert_eq!(told.modified().unwrap(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000));
    assert_eq!(told.uid(), fs::metadata(rig.folder.path()).unwrap().uid());
}

#[tokio::test]
async fn long_names_and_sparse_files_are_unpacked() {
    let rig = Rig::new().await;
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
    let image = rig.unpack(&pack().deep_file(&long, "1").bytes()).await.unwrap();
    assert_eq!(fs::read_to_string(image.root.join(&long)).unwrap(), "1");

    let sparse = rig.folder.path().join("sparse");
    fs::File::create(&sparse).unwrap().set_len(4 << 20).unwrap();
    let archive = rig.folder.path().join("sparse.tar");
    let mut tar = Command::new("tar");
    tar.args(["--sparse", "--format=gnu", "-cf"]).arg(&archive).arg("-C").arg(rig.folder.path()).arg("sparse");
    assert!(tar.status().unwrap().success());
    let image = rig.prepare(&Source::Tarball { path: archive }).await.unwrap();
    let told = fs::metadata(image.root.join("sparse")).unwrap();
    assert_eq!(told.len(), 4 << 20);
    assert!(told.blocks() * 512 < 1 << 20, "{} blocks", told.blocks());
}

#[tokio::test]
async fn a_tarball_may_be_reached_through_a_link() {
    let rig = Rig::new().await;
    let path = rig.write("real.tar", &pack().file("x", "1").bytes());
    let link = rig.folder.path().join("link.tar");
    symlink(path, &link).unwrap();
    let image = rig.prepare(&Source::Tarball { path: link }).await.unwrap();
    assert!(names(&image.root).contains(&"x".to_owned()));
}
