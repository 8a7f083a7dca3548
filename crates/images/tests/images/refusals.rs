//! What is no archive, or only a part of one, or too large.

use std::fs;

use cloud_sandbox_images::ImageError;
use cloud_sandbox_model::template::Source;

use crate::{
    pack::{gzip, pack, zstd},
    rig::Rig,
};

#[tokio::test]
async fn what_is_no_archive_is_told_by_what_it_is() {
    let rig = Rig::new().await;
    let text = b"#!/bin/sh\necho this is a long enough text\n".repeat(40);
    let cases: [(&[u8], &str); 7] = [
        (b"", "is no tar archive"),
        (b"short", "is no tar archive"),
        (&text, "is no tar archive"),
        (b"BZh91AY&SY and so on", "but bzip2; it may be plain or compressed by gzip or zstd"),
        (b"\xfd7zXZ\0 and so on", "but xz;"),
        (b"PK\x03\x04 and so on", "but zip;"),
        (&gzip(&text), "is damaged"),
    ];
    for (bytes, expected) in cases {
        let error = rig.unpack(bytes).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        assert!(error.to_string().contains("source.tar"), "{error}");
        rig.assert_empty();
    }
    for path in [rig.folder.path().join("missing.tar"), rig.outside(), "/dev/zero".into()] {
        let error = rig.prepare(&Source::Tarball { path: path.clone() }).await.unwrap_err();
        assert!(matches!(error, ImageError::Tarball { .. }), "{error:?}");
        assert!(error.chain().contains(&path.display().to_string()), "{}", error.chain());
    }
    rig.assert_empty();
}

#[tokio::test]
async fn an_archive_of_images_is_refused_with_what_to_do() {
    let rig = Rig::new().await;
    let saved = pack().file("manifest.json", r#"[{"Config":"x.json","Layers":["x/layer.tar"]}]"#).file("x.json", "{}");
    let layout = pack().file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#).file("index.json", "{}");
    for archive in [saved, layout] {
        let error = rig.unpack(&archive.bytes()).await.unwrap_err();
        assert!(matches!(error, ImageError::ImageArchive { .. }), "{error:?}");
        assert!(error.to_string().contains("docker export"), "{error}");
        rig.assert_empty();
    }
    let other = pack().file("manifest.json", r#"{"name":"an app"}"#).folder("oci-layout");
    rig.unpack(&other.bytes()).await.unwrap();
}

#[tokio::test]
async fn an_archive_that_is_cut_off_anywhere_leaves_nothing() {
    let content = "0123456789abcdef".repeat(200);
    let plain = pack().file("a", &content).folder("b").symlink("b/c", "../a").file("d", "1").bytes();
    let end = plain.len() - 1024;
    let rig = Rig::new().await;
    for bytes in [plain[..end].to_vec(), gzip(&plain), zstd(&plain)] {
        let last = if bytes.len() == end { end } else { bytes.len() - 1 };
        for length in (1..=last).step_by(if bytes.len() == end { 256 } else { 7 }).chain([last]) {
            let error = rig.unpack(&bytes[..length]).await.expect_err("a part is missing");
            let is_told = matches!(
                error,
                ImageError::Truncated { .. } | ImageError::NotAnArchive { .. } | ImageError::Damaged { .. }
            );
            assert!(is_told, "{length} of {}: {error:?}", bytes.len());
            if length > 1536 && bytes.len() == end {
                assert!(matches!(error, ImageError::Truncated { .. }), "{length}: {error:?}");
            }
            rig.assert_empty();
        }
    }
}

#[tokio::test]
async fn damage_is_found_by_checksums() {
    let rig = Rig::new().await;
    let mut packed = gzip(&pack().file("a", &"0123456789".repeat(1000)).bytes());
    let middle = packed.len() / 2;
    packed[middle] ^= 0x55;
    let error = rig.unpack(&packed).await.unwrap_err();
    assert!(matches!(error, ImageError::Damaged { .. } | ImageError::Truncated { .. }), "{error:?}");
    let mut packed = gzip(&pack().file("a", "1").bytes());
    let checksum = packed.len() - 8;
    packed[checksum] ^= 1;
    let error = rig.unpack(&packed).await.unwrap_err();
    assert!(matches!(error, ImageError::Damaged { .. }), "{error:?}");
    rig.assert_empty();
}

#[tokio::test]
async fn bombs_end_at_the_limits() {
    let rig = Rig::limited(1 << 20, 100).await;
    let zeros = String::from_utf8(vec![0; 8 << 20]).unwrap();
    let many = (0..101).fold(pack(), |pack, number| pack.file(&format!("{number}"), ""));
    // each entry makes many folders that have no entry
    let implied = (0..20).fold(pack(), |pack, number| pack.file(&format!("{number}/a/b/c/d/e/f/g"), ""));
    for (archive, limit) in [
        (pack().file("zeros", &zeros), "1048576 bytes"),
        (pack().file("a", &zeros[..600 << 10]).file("b", &zeros[..600 << 10]), "1048576 bytes"),
        (many, "100 entries"),
        (implied, "100 entries"),
    ] {
        let error = rig.unpack(&zstd(&archive.bytes())).await.unwrap_err();
        assert!(matches!(error, ImageError::TooLarge { .. }), "{error:?}");
        assert!(error.to_string().contains(limit), "{error}");
        rig.assert_empty();
    }
}

#[tokio::test]
async fn headers_are_held_in_memory_up_to_a_bound() {
    let rig = Rig::new().await;
    let long = vec![b'n'; 2 << 20];
    let archive = pack().entry(tar::EntryType::GNULongName, "././@LongLink", "", &long, 0o644).file("x", "1");
    let error = rig.unpack(&gzip(&archive.bytes())).await.unwrap_err();
    assert!(error.to_string().contains("a header"), "{error}");
    rig.assert_empty();
}

#[tokio::test]
async fn what_belongs_to_no_file_is_bounded_too() {
    let rig = Rig::limited(1 << 20, 100).await;
    let archive = pack().entry(tar::EntryType::Fifo, "pipe", "", &vec![0; 4 << 20], 0o644).file("x", "1");
    let some = (0..5).fold(pack(), |pack, number| {
        pack.entry(tar::EntryType::Char, &number.to_string(), "", &vec![0; 300 << 10], 0o644)
    });
    for archive in [archive, some] {
        let error = rig.unpack(&gzip(&archive.bytes())).await.unwrap_err();
        assert!(matches!(error, ImageError::TooLarge { .. }), "{error:?}");
    }
    let mut padded = pack().file("x", "1").bytes();
    padded.resize(20 << 20, 0);
    let error = rig.unpack(&gzip(&padded)).await.unwrap_err();
    assert!(matches!(error, ImageError::Damaged { .. }), "{error:?}");
    rig.assert_empty();
}

#[tokio::test]
async fn sparse_files_of_the_newer_forms_are_refused_by_name() {
    let rig = Rig::new().await;
    let sparse = rig.folder.path().join("sparse");
    fs::File::create(&sparse).unwrap().set_len(4 << 20).unwrap();
    let path = rig.folder.path().join("sparse.tar");
    let mut tar = std::process::Command::new("tar");
    tar.args(["--sparse", "--format=posix", "-cf"]).arg(&path).arg("-C").arg(rig.folder.path()).arg("sparse");
    assert!(tar.status().unwrap().success());
    let error = rig.prepare(&Source::Tarball { path }).await.unwrap_err();
    assert!(error.to_string().contains("without --sparse"), "{error}");
    rig.assert_empty();
}
