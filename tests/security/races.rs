//! Folders that turn into links, and back, while the file API is on its way through them.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    archives::{Entry, tar},
    attempt::attempts,
    inside::GOT_THROUGH,
    target::{Target, Walled},
};

attempts![against_a_read, against_a_write, against_a_delete, against_a_copy, against_an_archive_that_is_unpacked,];

/// How long each race is run. What is lost in a race is found by many runs of it rather than by one long one.
const LONG_ENOUGH: Duration = Duration::from_millis(700);

/// Exchanges /workspace/d, a folder with a file `victim`, with a link to `to`, thousands of times a second, while `step` is
/// taken again and again. Faster, it would have all the time that the sandbox gets, and the agent none to be raced with. Whatever a step does, it must stay on the attacker's side.
fn race(target: &Target, to: &str, step: impl Fn(&Walled)) {
    let walled = target.walled();
    target.shell(&format!("mkdir d; printf mine > d/victim; ln -s {to} l"));
    let attack = format!(
        "import time\nos.chdir('/workspace')\nRENAME_EXCHANGE = 2\nend = time.monotonic() + 20\n\
         while time.monotonic() < end and not os.path.exists('/tmp/over'):\n    \
         time.sleep(0.0002)\n    \
         try: call('renameat2', -100, b'd\\0', -100, b'l\\0', RENAME_EXCHANGE)\n    \
         except OSError:\n        \
         if not os.path.lexists('l'): os.symlink({to:?}, 'l')\n        \
         try: os.mkdir('d')\n        except FileExistsError: pass"
    );
    let program = crate::inside::program(&attack);
    thread::scope(|scope| {
        let racer = scope.spawn(|| walled.execute(json!({"code": program})));
        let begun = Instant::now();
        while begun.elapsed() < LONG_ENOUGH {
            step(walled);
        }
        assert_eq!(walled.write("/tmp/over", "").0, 200);
        let raced = racer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert_eq!(raced["exit_code"], 0, "{raced}");
    });
    walled.assert_answers();
}

/// A folder that the agent may enter and the attacker may not, if it had rights of its own.
const ELSEWHERE: &str = "/proc/1/root/etc";

fn against_a_read(target: &Target) {
    let folder = target.host.folder().to_str().unwrap().to_owned();
    race(target, &folder, |walled| {
        for path in ["/workspace/d/victim", "/workspace/d/secret"] {
            let (status, answer) = walled.read(path);
            target.told_nothing(&answer.to_string());
            assert!(status != 200 || answer["content"] == "mine", "{GOT_THROUGH}: {answer}");
        }
    });
}

fn against_a_write(target: &Target) {
    let before = std::fs::read("/etc/hostname").ok();
    race(target, "/etc", |walled| {
        walled.write("/workspace/d/victim", "mine");
        walled.write("/workspace/d/hostname", "theirs");
    });
    assert_eq!(std::fs::read("/etc/hostname").ok(), before);
    assert_eq!(target.shell("cat /etc/hostname; find /etc/victim 2>/dev/null"), "sandbox\n");
}

fn against_a_delete(target: &Target) {
    // the link leads to a folder of the attacker's own, where a delete that follows it is seen
    target
        .shell("mkdir /tmp/kept; for i in $(seq 50); do echo kept > /tmp/kept/$i; done; echo kept > /tmp/kept/victim");
    race(target, "/tmp/kept", |walled| {
        walled.files("DELETE", "", &[("path", "/workspace/d"), ("recursive", "true")]);
        walled.write("/workspace/d/victim", "mine");
    });
    assert_eq!(target.shell("for i in $(seq 50); do cat /tmp/kept/$i; done | grep -c kept"), "50\n", "{GOT_THROUGH}");
}

fn against_a_copy(target: &Target) {
    race(target, ELSEWHERE, |walled| {
        walled.files_with(
            "POST",
            "/copy",
            json!({"source": "/workspace/d", "destination": "/tmp/copy", "recursive": true}),
        );
        walled.files("DELETE", "", &[("path", "/tmp/copy"), ("recursive", "true")]);
    });
}

fn against_an_archive_that_is_unpacked(target: &Target) {
    target.shell("mkdir /tmp/kept");
    let many: Vec<_> = (0..50).map(|n| Entry::file(format!("d/planted{n}"), "planted")).collect();
    let archive = tar(&many);
    race(target, "/tmp/kept", |walled| {
        walled.unpack("/workspace", archive.clone());
    });
    assert_eq!(
        target.shell("find /tmp/kept -mindepth 1"),
        "",
        "{GOT_THROUGH}: what was unpacked went through the link"
    );
}
