//! Archives in and out.

use std::{
    ffi::OsStr,
    fs,
    io::Write,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    process::{Command, Stdio},
};

use bytes::Bytes;
use cloud_sandbox_proto::v1::{
    DownloadArchiveRequest, UploadArchiveHeader, UploadArchiveRequest, UploadArchiveResponse, UploadCommit,
    upload_archive_request::Part,
};
use tar::{Builder, EntryType, Header};
use tonic::{Code, Response, Status};

use crate::{
    files::{Files, code, fifo},
    rig::{Agent, eventually},
};

impl Files {
    async fn download_archive(&self, name: &str) -> Result<Vec<u8>, Status> {
        let request = DownloadArchiveRequest { path: self.path(name), ..Default::default() };
        let mut pieces = self.client.clone().download_archive(request).await?.into_inner();
        let mut archive = Vec::new();
        while let Some(piece) = pieces.message().await? {
            archive.extend_from_slice(&piece.data);
        }
        Ok(archive)
    }

    async fn upload_parts(&self, parts: Vec<Part>) -> Result<UploadArchiveResponse, Status> {
        let requests = tokio_stream::iter(parts.into_iter().map(|part| UploadArchiveRequest { part: Some(part) }));
        self.client.clone().upload_archive(requests).await.map(Response::into_inner)
    }

    async fn upload_archive(&self, name: &str, archive: &[u8]) -> Result<UploadArchiveResponse, Status> {
        let mut parts = vec![header(&self.path(name))];
        parts.extend(archive.chunks(100_000).map(|piece| Part::Data(Bytes::copy_from_slice(piece))));
        parts.push(Part::Commit(UploadCommit {}));
        self.upload_parts(parts).await
    }
}

fn header(path: &str) -> Part {
    Part::Header(UploadArchiveHeader { path: path.to_owned(), ..Default::default() })
}

/// An archive of entries as somebody hostile would write them.
fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, content) in entries {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o4755);
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        if is_link {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        let content = if is_link { "" } else { content };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn file<'a>(name: &'a str, content: &'a str) -> (EntryType, &'a str, &'a str) {
    (EntryType::Regular, name, content)
}

/// What GNU tar says to an archive, if it is here.
fn tar(arguments: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let mut child = Command::new("tar").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    Some(output.stdout)
}

#[tokio::test]
async fn a_tree_survives_the_round_trip() {
    let agent = Files::start().await;
    let long = format!("{}/{}", "l".repeat(120), "n".repeat(200));
    let root = agent.folder().join("tree");
    fs::create_dir_all(root.join(&long).parent().unwrap()).unwrap();
    fs::create_dir_all(root.join("empty")).unwrap();
    fs::write(root.join(&long), "long").unwrap();
    fs::write(root.join("\u{e9}"), vec![7; 300_001]).unwrap();
    fs::write(root.join(OsStr::from_bytes(b"\xff")), "raw").unwrap();
    fs::write(root.join(OsStr::from_bytes(&[b'\xfe'; 150])), "raw and long").unwrap();
    symlink("l".repeat(150), root.join("link")).unwrap();
    fs::set_permissions(root.join(&long), fs::Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o500)).unwrap();
    fifo(&agent, "tree/fifo");

    let archive = agent.download_archive("tree").await.unwrap();
    assert_eq!(archive.len() % 512, 0);
    let unpacked = agent.upload_archive("new/copy", &archive).await.unwrap();
    assert_eq!((unpacked.entries, unpacked.bytes), (7, 4 + 300_001 + 3 + 12));
    let copy = agent.folder().join("new/copy");
    assert_eq!(fs::read(copy.join(&long)).unwrap(), b"long");
    assert_eq!(fs::metadata(copy.join(&long)).unwrap().mode() & 0o7777, 0o751);
    assert_eq!(fs::metadata(copy.join("empty")).unwrap().mode() & 0o7777, 0o500);
    assert_eq!(fs::read(copy.join("\u{e9}")).unwrap(), vec![7; 300_001]);
    assert_eq!(fs::read(copy.join(OsStr::from_bytes(b"\xff"))).unwrap(), b"raw");
    assert_eq!(fs::read(copy.join(OsStr::from_bytes(&[b'\xfe'; 150]))).unwrap(), b"raw and long");
    assert_eq!(fs::read_link(copy.join("link")).unwrap().to_str().unwrap(), "l".repeat(150));
    let times = [&root, &copy].map(|root| fs::metadata(root.join("\u{e9}")).unwrap().mtime());
    assert_eq!(times[0], times[1]);
    assert!(!copy.join("fifo").exists());
    // The same again, over what is there.
    agent.upload_archive("new/copy", &archive).await.unwrap();
}

#[tokio::test]
async fn archives_are_those_of_tar() {
    let agent = Files::start().await;
    fs::create_dir_all(agent.path("d/sub")).unwrap();
    fs::write(agent.path(&format!("d/sub/{}", "n".repeat(180))), "content").unwrap();
    fs::write(agent.path("d/\u{e9}"), "").unwrap();
    fs::hard_link(agent.path("d/\u{e9}"), agent.path("d/hard")).unwrap();
    let Some(listed) = tar(&["-tf", "-"], &agent.download_archive("d").await.unwrap()) else {
        eprintln!("SKIPPED: no tar here");
        return;
    };
    assert_eq!(String::from_utf8(listed).unwrap().lines().count(), 4);
    for format in ["gnu", "pax", "ustar", "v7"] {
        let sparse = fs::File::create(agent.path("d/sparse")).unwrap();
        sparse.set_len(1 << 20).unwrap();
        let names = if matches!(format, "gnu" | "pax") { "sub" } else { "hard" };
        let sparse = if format == "gnu" { "--sparse" } else { "--no-recursion" };
        let format = format!("--format={format}");
        let archive =
            tar(&["-C", &agent.path("d"), &format, sparse, "-cf", "-", names, "sparse", "\u{e9}"], b"").unwrap();
        agent.upload_archive("unpacked", &archive).await.unwrap();
        assert_eq!(fs::metadata(agent.path("unpacked/sparse")).unwrap().len(), 1 << 20, "{format}");
        fs::remove_dir_all(agent.path("unpacked")).unwrap();
    }
}

#[tokio::test]
async fn a_file_is_an_archive_of_one() {
    let agent = Files::start().await;
    fs::write(agent.path("one"), "content").unwrap();
    let archive = agent.download_archive("one").await.unwrap();
    agent.upload_archive("d", &archive).await.unwrap();
    assert_eq!(agent.names("d"), ["one"]);
    fs::create_dir(agent.path("empty")).unwrap();
    let archive = agent.download_archive("empty").await.unwrap();
    assert_eq!(agent.upload_archive("e", &archive).await.unwrap(), UploadArchiveResponse::default());
    assert_eq!(code(agent.download_archive("none").await), Code::NotFound);
    assert_eq!(code(agent.download_archive("agent.sock").await), Code::FailedPrecondition);
    assert_eq!(code(agent.upload_archive("one", &archive).await), Code::FailedPrecondition);
}

#[tokio::test]
async fn entries_that_lead_out_are_refused() {
    let agent = Files::start().await;
    fs::create_dir(agent.path("outside")).unwrap();
    fs::write(agent.path("secret"), "secret").unwrap();
    let outside = agent.path("outside");
    let link = |name, to: &'static str| (EntryType::Symlink, name, to);
    let hard = |name, to: &'static str| (EntryType::Link, name, to);
    for entries in [
        vec![file("/tmp/x", "")],
        vec![file("../outside/x", "")],
        vec![file("a/../../outside/x", "")],
        vec![(EntryType::Symlink, "out", outside.as_str()), file("out/x", "")],
        vec![link("out", "../outside"), file("out/x", "")],
        vec![link("out", "../outside"), (EntryType::Directory, "out/x", "")],
        vec![link("a", "b"), link("b", ".."), file("a/outside/x", "")],
        vec![hard("x", "../secret")],
        vec![hard("x", "/etc/passwd")],
        vec![link("out", ".."), hard("x", "out/secret")],
        vec![link("secret", "../secret"), hard("x", "secret")],
        vec![(EntryType::Char, "null", "")],
        vec![(EntryType::Block, "disk", "")],
        vec![(EntryType::Fifo, "pipe", "")],
    ] {
        let entries: Vec<_> = [file("first", "1")].into_iter().chain(entries).collect();
        let error = agent.upload_archive("d", &archive(&entries)).await.unwrap_err();
        let wanted = [Code::InvalidArgument, Code::FailedPrecondition];
        assert!(wanted.contains(&error.code()), "{entries:?}: {error}");
        let unpacked = entries.len() - 1;
        assert!(error.message().contains(&format!("{unpacked} entr")), "{error}");
        assert_eq!((agent.names("outside").len(), agent.names("").len()), (0, 4), "{entries:?}");
        fs::remove_dir_all(agent.path("d")).unwrap();
    }
}

#[tokio::test]
async fn links_that_stay_inside_are_kept_and_followed() {
    let agent = Files::start().await;
    let entries = [
        (EntryType::Directory, "./real/", ""),
        (EntryType::Symlink, "way", "real"),
        (EntryType::Symlink, "python", "/usr/bin/python3"),
        file("way/file", "content"),
        (EntryType::Link, "hard", "real/file"),
    ];
    let unpacked = agent.upload_archive("d", &archive(&entries)).await.unwrap();
    assert_eq!((unpacked.entries, unpacked.bytes), (5, 7));
    assert_eq!(fs::read(agent.path("d/hard")).unwrap(), b"content");
    assert_eq!(agent.mode_of("d/real/file"), 0o755, "no set-user-id bit");
    assert!(agent.folder().join("d/way").is_symlink());
    assert_eq!(agent.names("d/real"), ["file"]);
}

#[tokio::test]
async fn a_damaged_archive_says_what_is_wrong_and_how_far_it_came() {
    let agent = Files::start().await;
    let big = "x".repeat(10_000);
    let whole = archive(&[file("one", "1"), file("two", &big)]);
    for cut in [whole.len() - 1024, whole.len() - 2000, 1024, 1100, 1536, 100, 0] {
        let error = agent.upload_archive("d", &whole[..cut]).await.unwrap_err();
        assert_eq!(
            (error.code(), error.message().contains("cut off")),
            (Code::InvalidArgument, true),
            "{cut}: {error}"
        );
        assert!(error.message().contains("unpacked"), "{error}");
    }
    assert!(fs::metadata(agent.path("d/two")).unwrap().len() == 10_000);
    assert_eq!(agent.names("d"), ["one", "two"]);

    let mut wrong = whole.clone();
    wrong[1024] ^= 1;
    let error = agent.upload_archive("d", &wrong).await.unwrap_err();
    assert!(error.message().contains("damaged") && error.message().contains("1 entry was unpacked"), "{error}");
    let mut zipped = vec![0x1f, 0x8b, 8, 0];
    zipped.extend_from_slice(&[7; 2000]);
    let error = agent.upload_archive("e", &zipped).await.unwrap_err();
    assert!(error.message().contains("gzip"), "{error}");
    assert!(!agent.folder().join("e").exists());
}

#[tokio::test]
async fn half_an_archive_upload_fails_and_says_what_is_there() {
    let agent = Files::start().await;
    let whole = archive(&[file("one", "1"), file("two", &"x".repeat(10_000))]);
    for sent in [whole.len(), 2000] {
        let data = Part::Data(Bytes::copy_from_slice(&whole[..sent]));
        let error = agent.upload_parts(vec![header(&agent.path("d")), data]).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains("without commit") && error.message().contains("unpacked"), "{error}");
    }
    assert_eq!(code(agent.upload_parts(vec![Part::Commit(UploadCommit {})]).await), Code::InvalidArgument);
}

#[tokio::test]
async fn long_names_cannot_fill_the_memory() {
    let agent = Files::start().await;
    let before = agent.memory_kib();
    let name = "n".repeat(64 << 20);
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(name.len() as u64);
    header.set_cksum();
    builder.append(&header, name.as_bytes()).unwrap();
    let archive = builder.into_inner().unwrap();
    assert_eq!(code(agent.upload_archive("d", &archive).await), Code::InvalidArgument);
    let grown = agent.memory_kib().saturating_sub(before);
    assert!(grown < 12 * 1024, "{grown} KiB");
}

#[tokio::test]
async fn an_archive_that_does_not_fit_leaves_no_half_file() {
    let Some(agent) = Agent::start_with_small_disk().await else {
        eprintln!("SKIPPED: this host does not let us mount");
        return;
    };
    let agent = Files::of(agent).await;
    let big = "x".repeat(2 << 20);
    let entries = [file("one", "1"), file("two", &big)];
    let error = agent.upload_archive("full/d", &archive(&entries)).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("no space left; 1 entry was unpacked"), "{error}");
    assert_eq!(code(agent.stat(&agent.path("full/d/two")).await), Code::NotFound);
}

#[tokio::test]
async fn archives_that_nobody_reads_are_bounded_and_end_with_their_calls() {
    let agent = Files::start().await;
    // where the agent itself has to look, that takes one more
    let threads = || agent.proc_names(&format!("{}/task", agent.pid())).len();
    let quiet = threads();
    fs::create_dir(agent.path("d")).unwrap();
    fs::File::create(agent.path("d/big")).unwrap().set_len(1 << 30).unwrap();
    fs::write(agent.path("d/small"), "content").unwrap();
    let open = || DownloadArchiveRequest { path: agent.path("d"), ..Default::default() };
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(agent.client.clone().download_archive(open()).await.unwrap().into_inner());
    }
    assert_eq!(code(agent.client.clone().download_archive(open()).await), Code::ResourceExhausted);
    // Other work goes on.
    agent.chmod(&agent.path("d"), 0o755, true).await.unwrap();
    drop(streams);
    eventually("the threads end", || threads() <= quiet).await;
    agent.download_archive("d/small").await.unwrap();
}
