//! Archives with entries that lead out of the folder they are unpacked into, or claim what is not so.

use serde_json::Value;

use crate::{
    attempt::attempts,
    inside::GOT_THROUGH,
    target::{Target, Walled},
};

attempts![
    climbs_out_with_dots,
    climbs_out_by_an_absolute_name,
    climbs_out_through_a_link_of_its_own,
    climbs_out_through_a_link_that_lies_there,
    climbs_out_through_a_link_to_a_link,
    links_hard_to_a_file_outside,
    links_hard_to_a_link_that_leads_outside,
    overwrites_a_file_through_a_link_outside,
    brings_devices,
    brings_a_pipe_in_place_of_a_file,
    sets_the_user_id_bit,
    claims_to_be_larger_than_everything,
    names_an_entry_in_a_long_header,
    names_an_entry_with_bytes_that_end_names,
    ends_in_the_middle,
    is_no_archive,
    nests_folders_without_end,
];

/// An entry of an archive as an attacker writes it: nothing is checked.
pub struct Entry {
    name: Vec<u8>,
    kind: u8,
    link: Vec<u8>,
    mode: u32,
    size: Option<u64>,
    content: Vec<u8>,
}

impl Entry {
    fn new(name: impl Into<Vec<u8>>, kind: u8) -> Self {
        Self { name: name.into(), kind, link: Vec::new(), mode: 0o644, size: None, content: Vec::new() }
    }

    pub fn file(name: impl Into<Vec<u8>>, content: &str) -> Self {
        Self { content: content.into(), ..Self::new(name, b'0') }
    }

    fn link(name: &str, kind: u8, to: &str) -> Self {
        Self { link: to.into(), ..Self::new(name, kind) }
    }

    fn symbolic(name: &str, to: &str) -> Self {
        Self::link(name, b'2', to)
    }

    fn hard(name: &str, to: &str) -> Self {
        Self::link(name, b'1', to)
    }

    /// A ustar header (POSIX.1-1988) and the content.
    fn bytes(&self) -> Vec<u8> {
        let mut head = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, format!("{:07o}\0{:07o}\0{:07o}\0", self.mode, 0, 0).as_bytes());
        put(124, format!("{:011o}\0", self.size.unwrap_or(self.content.len() as u64)).as_bytes());
        put(136, b"00000000000\0        ");
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
        head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut bytes = head.to_vec();
        bytes.extend(&self.content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

/// An archive of these entries.
pub fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut bytes: Vec<u8> = entries.iter().flat_map(Entry::bytes).collect();
    bytes.extend([0; 1024]);
    bytes
}

impl Walled {
    /// Unpacks an archive by the API.
    pub fn unpack(&self, folder: &str, archive: Vec<u8>) -> (u16, Value) {
        let url = format!("/api/v1/files/archive?sandbox_id={}&path={folder}", self.id());
        self.send(self.api.request("PUT", &url).header("content-type", "application/x-tar").body(archive))
    }
}

/// Where nothing may come to lie: a folder beside the one that is unpacked into.
const OUTSIDE: &str = "/tmp/outside";
const INTO: &str = "/workspace/into";

/// Unpacks what must be refused, and looks that nothing outside was made or changed.
fn refused(target: &Target, entries: &[Entry]) {
    target.shell(&format!("mkdir -p {OUTSIDE}; echo untouched > {OUTSIDE}/file"));
    let (status, answer) = target.walled().unpack(INTO, tar(entries));
    assert_eq!(status, 400, "{GOT_THROUGH}: {answer}");
    nothing_outside(target);
}

fn nothing_outside(target: &Target) {
    let seen = target.shell(&format!("cat {OUTSIDE}/file; find /tmp -mindepth 1 -printf '%P %y %n %m\\n' | sort"));
    assert!(seen.starts_with("untouched\noutside d "), "{GOT_THROUGH}: {seen}");
    assert!(seen.ends_with(" 755\noutside/file f 1 644\n") && seen.lines().count() == 3, "{GOT_THROUGH}: {seen}");
    target.walled().assert_answers();
}

fn climbs_out_with_dots(target: &Target) {
    for name in [
        "../../tmp/outside/new",
        "a/../../../tmp/outside/new",
        "..",
        "./../../tmp/outside/file",
        "a/b/../../../../tmp/outside/file",
    ] {
        refused(target, &[Entry::file(name, "planted")]);
    }
}

fn climbs_out_by_an_absolute_name(target: &Target) {
    target.shell(&format!("mkdir -p {OUTSIDE}; echo untouched > {OUTSIDE}/file"));
    for name in ["/tmp/outside/new", "//tmp/outside/new", "/tmp/outside/file"] {
        // refused, or taken as one below the folder
        let (status, answer) = target.walled().unpack(INTO, tar(&[Entry::file(name, "planted")]));
        assert!(status == 400 || status == 200, "{answer}");
        nothing_outside(target);
    }
}

fn climbs_out_through_a_link_of_its_own(target: &Target) {
    for to in [OUTSIDE, "../../tmp/outside", "/", "/proc/1/root/tmp/outside"] {
        refused(target, &[Entry::symbolic("link", to), Entry::file("link/new", "planted")]);
        refused(target, &[Entry::symbolic("link", to), Entry::new("link/new", b'5')]);
    }
}

fn climbs_out_through_a_link_that_lies_there(target: &Target) {
    target.shell(&format!("mkdir -p {INTO}; ln -s {OUTSIDE} {INTO}/link; ln -s /proc/self/cwd {INTO}/cwd"));
    refused(target, &[Entry::file("link/new", "planted")]);
    refused(target, &[Entry::file("link/file", "planted")]);
}

fn climbs_out_through_a_link_to_a_link(target: &Target) {
    refused(
        target,
        &[Entry::symbolic("a", "."), Entry::symbolic("a/b", "../../tmp/outside"), Entry::file("b/new", "planted")],
    );
    refused(target, &[Entry::symbolic("x", "y"), Entry::symbolic("y", OUTSIDE), Entry::file("x/new", "planted")]);
}

fn links_hard_to_a_file_outside(target: &Target) {
    for to in ["/tmp/outside/file", "../../tmp/outside/file", "/etc/passwd", "/usr/bin/env"] {
        refused(target, &[Entry::hard("linked", to), Entry::file("linked", "planted")]);
    }
}

fn links_hard_to_a_link_that_leads_outside(target: &Target) {
    target.shell(&format!("mkdir -p {OUTSIDE}; echo untouched > {OUTSIDE}/file"));
    let entries = [Entry::symbolic("a", "/tmp/outside/file"), Entry::hard("b", "a"), Entry::file("b", "planted")];
    target.walled().unpack(INTO, tar(&entries));
    nothing_outside(target);
}

fn overwrites_a_file_through_a_link_outside(target: &Target) {
    target.shell(&format!(
        "mkdir -p {OUTSIDE}; echo untouched > {OUTSIDE}/file; mkdir -p {INTO}; ln -s {OUTSIDE}/file {INTO}/here"
    ));
    let entries =
        [Entry::file("here", "planted"), Entry::symbolic("own", "/tmp/outside/file"), Entry::file("own", "planted")];
    target.walled().unpack(INTO, tar(&entries));
    nothing_outside(target);
}

fn brings_devices(target: &Target) {
    for kind in [b'3', b'4'] {
        refused(target, &[Entry::new("device", kind)]);
    }
    assert_eq!(target.shell("find /workspace -type b -o -type c"), "");
}

fn brings_a_pipe_in_place_of_a_file(target: &Target) {
    let (status, answer) =
        target.walled().unpack(INTO, tar(&[Entry::new("pipe", b'6'), Entry::file("pipe", "content")]));
    assert!(status == 200 || status == 400, "{answer}");
    target.walled().assert_answers();
}

fn sets_the_user_id_bit(target: &Target) {
    target.walled().unpack(INTO, tar(&[Entry { mode: 0o6755, ..Entry::file("own", "#!/bin/sh\nid\n") }]));
    assert_eq!(target.shell("find /workspace -perm /7000"), "", "{GOT_THROUGH}");
}

fn claims_to_be_larger_than_everything(target: &Target) {
    for size in [0o77_777_777_777, 1 << 30, 4096] {
        let (status, answer) =
            target.walled().unpack(INTO, tar(&[Entry { size: Some(size), ..Entry::file("big", "small") }]));
        assert!((400..500).contains(&status), "{size}: {answer}");
    }
    target.walled().assert_answers();
}

fn names_an_entry_in_a_long_header(target: &Target) {
    // pax, then GNU
    let record = |key: &str, value: &str| {
        let body = format!(" {key}={value}\n");
        let length = (body.len() + 1..).find(|length| length.to_string().len() + body.len() == *length).unwrap();
        format!("{length}{body}")
    };
    let pax = |text: String| Entry { kind: b'x', ..Entry::file("pax", &text) };
    refused(target, &[pax(record("path", "../../tmp/outside/new")), Entry::file("harmless", "planted")]);
    refused(
        target,
        &[
            pax(record("linkpath", "/tmp/outside")),
            Entry::symbolic("link", "harmless"),
            Entry::file("link/new", "planted"),
        ],
    );
    refused(
        target,
        &[Entry { kind: b'L', ..Entry::file("././@LongLink", "../../tmp/outside/new\0") }, Entry::file("x", "planted")],
    );
    let (status, answer) =
        target.walled().unpack(INTO, tar(&[pax(record("size", "18446744073709551615")), Entry::file("x", "planted")]));
    assert!((400..500).contains(&status), "{answer}");
    let (status, answer) =
        target.walled().unpack(INTO, tar(&[pax(record("path", &"d/".repeat(300_000))), Entry::file("x", "")]));
    assert!((400..500).contains(&status), "{answer}");
    nothing_outside(target);
}

fn names_an_entry_with_bytes_that_end_names(target: &Target) {
    let (status, answer) =
        target.walled().unpack(INTO, tar(&[Entry::file(&b"\xff\x01\n\x1b[2J"[..], "x"), Entry::file("", "x")]));
    assert!(status == 200 || status == 400, "{answer}");
    target.walled().assert_answers();
}

fn ends_in_the_middle(target: &Target) {
    let whole = tar(&[Entry::file("a", &"x".repeat(5000)), Entry::file("b", "y")]);
    for length in [1, 511, 512, 2000, 6143] {
        let (status, answer) = target.walled().unpack(INTO, whole[..length].to_vec());
        assert_eq!(status, 400, "{length}: {answer}");
    }
}

fn is_no_archive(target: &Target) {
    for bytes in
        [vec![0xff; 4096], b"PK\x03\x04".repeat(300), b"\x1f\x8b\x08".repeat(400), b"\x28\xb5\x2f\xfd".repeat(300)]
    {
        let (status, answer) = target.walled().unpack(INTO, bytes);
        assert_eq!(status, 400, "{answer}");
    }
    target.walled().assert_answers();
}

fn nests_folders_without_end(target: &Target) {
    let entries: Vec<_> = (1..50).map(|depth| Entry { mode: 0o755, ..Entry::new("d/".repeat(depth), b'5') }).collect();
    assert_eq!(target.walled().unpack(INTO, tar(&entries)).0, 200);
    for round in 0..10 {
        let into = format!("{INTO}{}", "/d".repeat(round * 40));
        let (status, answer) = target.walled().unpack(&into, tar(&entries));
        assert!(status == 200 || status == 400, "{answer}");
    }
    let (status, answer) = target.walled().files("DELETE", "", &[("path", INTO), ("recursive", "true")]);
    assert_eq!(status, 200, "{answer}");
}
