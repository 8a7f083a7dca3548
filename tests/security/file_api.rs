//! The file API, led astray by what lies in the sandbox or by what it is asked.

use std::fs;

use serde_json::{Value, json};

use crate::{
    attempt::attempts,
    inside::GOT_THROUGH,
    target::{Target, Walled},
};

attempts![
    reads_through_a_planted_link,
    reads_through_the_links_of_proc,
    writes_through_a_planted_link,
    writes_into_the_systems_folders,
    deletes_through_a_planted_link,
    moves_and_copies_through_a_planted_link,
    changes_modes_through_a_planted_link,
    lists_and_searches_through_a_planted_link,
    watches_through_a_planted_link,
    links_to_itself,
    reads_a_device_without_end,
    reads_a_pipe_that_nobody_writes,
    writes_to_a_pipe_that_nobody_reads,
    has_the_memory_of_the_agent_read,
    reads_a_file_that_is_larger_than_everything,
    searches_a_file_that_is_larger_than_everything,
    goes_up_by_dots,
    names_files_with_bytes_that_end_names,
    names_files_to_confuse_lists,
    nests_folders_without_end,
    sets_the_user_id_bit,
    searches_with_a_pattern_that_takes_for_ever,
];

/// Plants links to the host's file and to its folder, and gives the walled sandbox.
fn planted(target: &Target) -> &Walled {
    let (file, folder) = (target.host.file(), target.host.folder());
    target.shell(&format!("ln -s {} /workspace/file; ln -s {} /workspace/folder", file.display(), folder.display()));
    target.walled()
}

/// Fails unless it was refused as something of the caller's making, and told nothing.
fn refused(target: &Target, what: &str, (status, answer): &(u16, Value)) {
    target.told_nothing(&answer.to_string());
    assert!((400..500).contains(status), "{GOT_THROUGH}: {what}: {status} {answer}");
}

fn reads_through_a_planted_link(target: &Target) {
    let walled = planted(target);
    for path in ["/workspace/file", "/workspace/folder/secret", "/workspace/folder"] {
        refused(target, path, &walled.read(path));
        refused(target, path, &walled.files("GET", "/stat", &[("path", path)]));
    }
}

fn reads_through_the_links_of_proc(target: &Target) {
    let walled = target.walled();
    let file = target.host.file();
    for root in [
        "/proc/1/root",
        "/proc/self/root",
        "/proc/self/cwd",
        "/proc/thread-self/root",
        "/proc/self/fd/0",
        "/proc/1/cwd",
    ] {
        refused(target, root, &walled.read(&format!("{root}{}", file.display())));
    }
    for path in
        ["/proc/1/environ", "/proc/self/environ", "/proc/1/fd/3", "/proc/self/exe", "/proc/1/exe", "/proc/1/maps"]
    {
        let (_, answer) = walled.read(path);
        target.told_nothing(&answer.to_string());
    }
}

fn writes_through_a_planted_link(target: &Target) {
    let walled = planted(target);
    for path in ["/workspace/file", "/workspace/folder/secret", "/workspace/folder/new"] {
        let (_, answer) = walled.write(path, "overwritten");
        target.told_nothing(&answer.to_string());
        walled.files_with("PUT", "", json!({"path": path, "content": "more", "append": true}));
    }
    walled.files_with("POST", "/folder", json!({"path": "/workspace/folder/made"}));
    for name in ["new", "made"] {
        assert!(!target.host.folder().join(name).exists(), "{GOT_THROUGH}: {name}");
    }
}

fn writes_into_the_systems_folders(target: &Target) {
    let walled = target.walled();
    for path in [
        "/usr/bin/env",
        "/usr/.attack",
        "/etc/passwd",
        "/etc/ld.so.preload",
        "/proc/sys/kernel/core_pattern",
        "/proc/sysrq-trigger",
        "/dev/new",
        "/new",
        "/sys/new",
        "/proc/1/oom_score_adj",
    ] {
        refused(target, path, &walled.write(path, "x"));
        refused(target, path, &walled.files("DELETE", "", &[("path", path), ("recursive", "true")]));
    }
    assert!(fs::exists("/usr/bin/env").unwrap());
}

fn deletes_through_a_planted_link(target: &Target) {
    let walled = planted(target);
    refused(target, "in the folder", &walled.files("DELETE", "", &[("path", "/workspace/folder/secret")]));
    for path in ["/workspace/file", "/workspace/folder"] {
        assert_eq!(walled.files("DELETE", "", &[("path", path), ("recursive", "true")]).0, 200, "the link itself goes");
    }
    target.shell("mkdir d; ln -s /usr/bin d/bin; ln -s / d/root");
    assert_eq!(walled.files("DELETE", "", &[("path", "/workspace/d"), ("recursive", "true")]).0, 200);
    assert!(target.host.folder().exists());
    assert_eq!(target.shell("find /usr/bin/env; find /workspace -mindepth 1"), "/usr/bin/env\n");
}

fn moves_and_copies_through_a_planted_link(target: &Target) {
    let walled = planted(target);
    for way in ["/copy", "/move"] {
        for source in ["/workspace/folder/secret", "/proc/1/root/etc/shadow", "/proc/1/mem"] {
            refused(
                target,
                source,
                &walled.files_with(
                    "POST",
                    way,
                    json!({"source": source, "destination": "/workspace/x", "recursive": true}),
                ),
            );
        }
        target.shell("echo planted > /workspace/mine");
        refused(
            target,
            way,
            &walled.files_with(
                "POST",
                way,
                json!({"source": "/workspace/mine", "destination": "/workspace/folder/new"}),
            ),
        );
        walled.files_with(
            "POST",
            way,
            json!({"source": "/workspace/mine", "destination": "/workspace/file", "overwrite": true}),
        );
    }
    assert!(!target.host.folder().join("new").exists());
    walled.files_with(
        "POST",
        "/copy",
        json!({"source": "/workspace/folder", "destination": "/workspace/copy", "recursive": true}),
    );
    refused(target, "a copied link", &walled.read("/workspace/copy/secret"));
}

fn changes_modes_through_a_planted_link(target: &Target) {
    let walled = planted(target);
    for path in ["/workspace/file", "/workspace/folder", "/usr/bin/env", "/dev/null", "/proc/self/mem"] {
        refused(target, path, &walled.files_with("POST", "/mode", json!({"path": path, "mode": 0o777})));
    }
    target.shell("mkdir d; ln -s /usr/bin/env d/env");
    walled.files_with("POST", "/mode", json!({"path": "/workspace/d", "mode": 0o777, "recursive": true}));
}

fn lists_and_searches_through_a_planted_link(target: &Target) {
    let walled = planted(target);
    let (_, list) = walled.files("GET", "/list", &[("path", "/workspace"), ("depth", "64")]);
    assert_eq!(list["files"].as_array().unwrap().len(), 2, "links are not followed: {list}");
    refused(target, "list", &walled.files("GET", "/list", &[("path", "/workspace/folder")]));
    let (_, found) = walled.files_with("POST", "/search", json!({"path": "/workspace", "pattern": "SECRET"}));
    assert_eq!(found["matches"], json!([]), "{GOT_THROUGH}");
    let archive = walled.files("GET", "/archive", &[("path", "/workspace")]);
    target.told_nothing(&archive.1.to_string());
}

fn watches_through_a_planted_link(target: &Target) {
    let walled = planted(target);
    refused(target, "watch", &walled.files("GET", "/watch", &[("path", "/workspace/folder")]));
    refused(target, "watch", &walled.files("GET", "/watch", &[("path", "/workspace/file")]));
}

fn links_to_itself(target: &Target) {
    let walled = target.walled();
    target.shell("ln -s loop loop; ln -s b a; ln -s a b; ln -s . here; ln -s ../workspace again");
    for path in ["/workspace/loop", "/workspace/a", "/workspace/loop/x"] {
        refused(target, path, &walled.read(path));
        refused(target, path, &walled.write(&format!("{path}/x"), "x"));
    }
    let deep = format!("/workspace{}/x", "/here".repeat(500));
    walled.read(&deep);
    assert_eq!(walled.files("GET", "/list", &[("path", "/workspace"), ("depth", "64")]).0, 200);
    walled.assert_answers();
}

fn reads_a_device_without_end(target: &Target) {
    let walled = target.walled();
    target.shell("ln -s /dev/zero zero");
    for path in [
        "/dev/zero",
        "/dev/urandom",
        "/dev/random",
        "/dev/full",
        "/dev/tty",
        "/dev/ptmx",
        "/dev/stdin",
        "/workspace/zero",
        "/proc/kmsg",
    ] {
        refused(target, path, &walled.read(path));
        // a link is copied as the link that it is
        let (_, copied) =
            walled.files_with("POST", "/copy", json!({"source": path, "destination": "/workspace/copied"}));
        assert_ne!(copied["type"], "file", "{GOT_THROUGH}: {copied}");
    }
}

fn reads_a_pipe_that_nobody_writes(target: &Target) {
    let walled = target.walled();
    target.shell(
        "mkfifo pipe; ln -s pipe link; python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('socket')\"",
    );
    for path in ["/workspace/pipe", "/workspace/link", "/workspace/socket"] {
        refused(target, path, &walled.read(path));
        assert_eq!(walled.files("GET", "/stat", &[("path", path)]).0, 200);
    }
    assert_eq!(
        walled.files_with("POST", "/search", json!({"path": "/workspace", "pattern": "x"})).1["matches"],
        json!([])
    );
    assert_eq!(walled.files("GET", "/archive", &[("path", "/workspace")]).0, 200);
}

fn writes_to_a_pipe_that_nobody_reads(target: &Target) {
    let walled = target.walled();
    target.shell("mkfifo pipe");
    refused(
        target,
        "append",
        &walled.files_with("PUT", "", json!({"path": "/workspace/pipe", "content": "x", "append": true})),
    );
    // a whole file takes the pipe's place or is refused; it never waits
    walled.write("/workspace/pipe", "x");
    refused(target, "below it", &walled.write("/workspace/pipe/x", "x"));
}

fn has_the_memory_of_the_agent_read(target: &Target) {
    let walled = target.walled();
    for path in ["/proc/self/mem", "/proc/1/mem", "/proc/thread-self/mem", "/proc/self/pagemap"] {
        refused(target, path, &walled.read(path));
        let at = walled.files("GET", "", &[("path", path), ("offset", "4194304"), ("limit", "4096")]);
        refused(target, path, &at);
        refused(target, path, &walled.write(path, "x"));
    }
    walled.assert_answers();
}

fn reads_a_file_that_is_larger_than_everything(target: &Target) {
    let walled = target.walled();
    target.shell("truncate -s 4T big || truncate -s 1G big");
    refused(target, "whole", &walled.read("/workspace/big"));
    let part = walled.files("GET", "", &[("path", "/workspace/big"), ("offset", "1000000000"), ("limit", "16")]);
    assert!(part.0 == 200, "{} {}", part.0, part.1);
    refused(target, "far", &walled.files("GET", "", &[("path", "/workspace/big"), ("offset", "18446744073709551615")]));
    refused(
        target,
        "copy",
        &walled.files_with("POST", "/copy", json!({"source": "/workspace/big", "destination": "/dev/null"})),
    );
    walled.assert_answers();
}

fn searches_a_file_that_is_larger_than_everything(target: &Target) {
    let walled = target.walled();
    target.shell("for i in 1 2 3 4 5 6 7 8; do truncate -s 4T big$i || truncate -s 1G big$i; done");
    assert_eq!(walled.files_with("POST", "/search", json!({"path": "/workspace", "pattern": "x"})).0, 200);
    walled.assert_answers();
}

fn goes_up_by_dots(target: &Target) {
    let walled = target.walled();
    let file = target.host.file();
    for path in [
        format!("/workspace/../..{}", file.display()),
        format!("/../../../..{}", file.display()),
        "/workspace/..".into(),
        "workspace/x".into(),
        "../x".into(),
        String::new(),
        "~/x".into(),
        "file:///etc/passwd".into(),
        format!("/{}", "x".repeat(5000)),
        format!("/workspace/{}", "x".repeat(256)),
    ] {
        for (status, answer) in
            [walled.read(&path), walled.write(&path, "x"), walled.files("DELETE", "", &[("path", &path)])]
        {
            assert_eq!(
                (status, answer["error"]["status"].as_str()),
                (400, Some("INVALID_ARGUMENT")),
                "{path:.80}: {answer}"
            );
        }
    }
}

fn names_files_with_bytes_that_end_names(target: &Target) {
    let walled = target.walled();
    for path in ["/workspace/a\0b", "/etc/passwd\0.txt", "\0"] {
        let (status, answer) = walled.write(path, "x");
        assert_eq!((status, answer["error"]["status"].as_str()), (400, Some("INVALID_ARGUMENT")), "{answer}");
        assert_eq!(walled.read(path).0, 400);
    }
    for name in ["a\nb", "\u{1b}[2J", "\r", "a\\..\\b", "..%2f..", " ", "-rf", "*", "\u{202e}cod"] {
        let path = format!("/workspace/{name}");
        assert_eq!(walled.write(&path, "mine").0, 200, "{name:?}");
        assert_eq!(walled.read(&path).1["content"], "mine", "{name:?}");
    }
    assert_eq!(target.shell("find /workspace -mindepth 1 | wc -l; find / -maxdepth 1 -name '*rf*' | wc -l"), "10\n0\n");
}

fn names_files_to_confuse_lists(target: &Target) {
    let walled = target.walled();
    target.python("os.chdir('/workspace')\nfor name in (b'\\xff\\xfe', b'a\\nb', b'\"},{\"path\":\"x', b'\\x01', b'<script>'): open(name, 'w').close()");
    let (status, list) = walled.files("GET", "/list", &[("path", "/workspace")]);
    assert_eq!((status, list["files"].as_array().unwrap().len()), (200, 5), "{list}");
    assert_eq!(walled.files("GET", "/archive", &[("path", "/workspace")]).0, 200);
    assert_eq!(walled.files_with("POST", "/search", json!({"path": "/workspace", "glob": "*"})).0, 200);
}

fn nests_folders_without_end(target: &Target) {
    let walled = target.walled();
    let made = target.python("os.chdir('/workspace')\nn = 0\ntry:\n    for n in range(3000):\n        os.mkdir('d')\n        os.chdir('d')\nexcept OSError as error: print(error)\nprint('depth', n)");
    assert!(made.contains("depth 2999"), "{made}");
    assert_eq!(walled.files("GET", "/list", &[("path", "/workspace"), ("depth", "64")]).0, 200);
    assert_eq!(walled.files_with("POST", "/search", json!({"path": "/workspace", "glob": "*.x"})).0, 200);
    for way in ["/copy", "/mode"] {
        walled.files_with("POST", way, json!({"path": "/workspace/d", "mode": 448, "recursive": true}));
    }
    walled.files("GET", "/archive", &[("path", "/workspace/d")]);
    let (status, answer) = walled.files("DELETE", "", &[("path", "/workspace/d"), ("recursive", "true")]);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(target.shell("find /workspace -mindepth 1"), "");
}

fn sets_the_user_id_bit(target: &Target) {
    let walled = target.walled();
    for mode in [0o4755, 0o2755, 0o1777] {
        let (status, answer) =
            walled.files_with("PUT", "", json!({"path": "/workspace/x", "content": "x", "mode": mode}));
        assert_eq!(status, 400, "{answer}");
        target.shell("touch /workspace/y");
        let (status, answer) = walled.files_with("POST", "/mode", json!({"path": "/workspace/y", "mode": mode}));
        assert_eq!(status, 400, "{answer}");
    }
}

fn searches_with_a_pattern_that_takes_for_ever(target: &Target) {
    let walled = target.walled();
    target.shell("python3 -c \"print('a' * 100000)\" > a");
    for pattern in ["(a+)+$b", "(a|a)*b", "^(([a-z])+.)+[A-Z]([a-z])+$", "((a{1000}){1000}){1000}", "(", "a{99999999}"]
    {
        let (status, answer) = walled.files_with("POST", "/search", json!({"path": "/workspace", "pattern": pattern}));
        assert!(status == 200 || status == 400, "{pattern}: {answer}");
        let (status, answer) = walled.files_with("POST", "/search", json!({"path": "/workspace", "glob": pattern}));
        assert!(status == 200 || status == 400, "{pattern}: {answer}");
    }
    walled.assert_answers();
}
