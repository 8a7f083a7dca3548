//! Limits of real sandboxes: what is asked for holds, and what runs into one is told so.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    harness::{Api, BINARY, Server},
    left_out::left_out,
};

async fn limited(api: &Api, limits: Value) -> String {
    api.acquire_with(json!({"limits": limits})).await
}

/// Starts processes until one cannot be started, and ends them all.
const FORKS: &str = "import os, time
try:
    while os.fork(): pass
    time.sleep(60)
except OSError:
    os.killpg(0, 9)
";

/// Which limits an answer says were met.
pub fn met(answer: &Value) -> Vec<&'static str> {
    let all = ["timed_out", "oom_killed", "disk_limit", "pids_limit", "stdout_truncated"];
    all.into_iter().filter(|name| answer[*name] == true).collect()
}

#[tokio::test]
async fn each_limit_is_told_as_itself_and_the_sandbox_goes_on() {
    if left_out() {
        return;
    }
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = limited(&api, json!({"memory_bytes": 64 << 20, "pids": 32, "disk_bytes": 4 << 20})).await;
    for (what, told) in [
        (json!({"command": "exit 1"}), vec![]),
        (json!({"code": "x = bytearray(512 << 20)"}), vec!["oom_killed"]),
        (json!({"command": "exit 1"}), vec![]),
        (json!({"code": FORKS}), vec!["pids_limit"]),
        (json!({"command": "exit 1"}), vec![]),
        (json!({"command": "head -c 8M /dev/zero > big"}), vec!["disk_limit"]),
        (json!({"command": "rm big; exit 1"}), vec![]),
        (json!({"command": "cd /tmp; for i in $(seq 100000); do : > $i || exit 1; done"}), vec!["disk_limit"]),
        (json!({"command": "rm -r /tmp/*; exit 1"}), vec![]),
        (json!({"command": "head -c 2M /dev/zero", "max_output_bytes": 1000}), vec!["stdout_truncated"]),
        (json!({"command": "sleep 60", "timeout_ms": 100}), vec!["timed_out"]),
    ] {
        let answer = api.execute(&id, what.clone()).await;
        assert_eq!(met(&answer), told, "{what} gave {answer}");
    }
    let (_, text) = api.get("/metrics").await;
    let text = text.as_str().unwrap();
    for limit in ["memory", "pids", "disk", "execution_seconds"] {
        assert!(text.contains(&format!("cloud_sandbox_limit_hits_total{{limit=\"{limit}\"}}")), "{limit} in\n{text}");
    }
    assert_eq!(api.shell(&id, "echo fine").await, "fine\n");
}

#[tokio::test]
async fn turn_of_an_interpreter_tells_what_it_ran_into() {
    if left_out() {
        return;
    }
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = limited(&api, json!({"pids": 32, "disk_bytes": 4 << 20})).await;
    let turn = |code: &str| api.execute(&id, json!({"code": code, "context_id": "default"}));
    let filled = turn("f = open('big', 'wb'); f.write(bytes(8 << 20))").await;
    assert_eq!((met(&filled), filled["error"]["name"].as_str()), (vec!["disk_limit"], Some("OSError")), "{filled}");
    let room = turn("import os\ntry: f.close()\nexcept OSError: pass\nos.remove('big'); raise KeyError").await;
    assert_eq!(met(&room), Vec::<&str>::new(), "{room}");
    let bomb = "import subprocess\nall = [subprocess.Popen(['sleep', '60']) for _ in range(64)]";
    let bombed = turn(bomb).await;
    assert_eq!(met(&bombed), ["pids_limit"], "{bombed}");
}

#[tokio::test]
async fn files_output_and_time_are_bounded_as_was_asked_for() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let limits = json!({"open_files": 64, "output_bytes": 65_536, "execution_seconds": 60, "cpu_weight": 50});
    let id = limited(&api, limits.clone()).await;
    let (_, told) = api.get(&format!("/api/v1/sandbox/{id}")).await;
    for (name, value) in limits.as_object().unwrap() {
        let told = &told["limits"][name];
        assert!(told == value || told.as_str() == Some(&value.to_string()), "{name} is {told}");
    }
    assert_eq!(api.shell(&id, "ulimit -n; ulimit -Hn").await, "64\n64\n");
    let code = "held = []\ntry:\n    while True: held.append(open('/dev/null'))\nexcept OSError as error: print(len(held) < 64, error.errno)";
    assert_eq!(api.python(&id, code).await, "True 24\n");

    let flood = api.execute(&id, json!({"command": "head -c 1M /dev/zero | tr '\\0' x"})).await;
    assert_eq!((&flood["stdout_bytes"], met(&flood)), (&json!(1 << 20), vec!["stdout_truncated"]), "{flood}");
    assert!(flood["stdout"].as_str().unwrap().len() <= 65_536);

    let hasty = limited(&api, json!({"execution_seconds": 2})).await;
    let asked = |timeout_ms| json!({"sandbox_id": hasty, "command": "sleep 60", "timeout_ms": timeout_ms});
    let (status, refused) = api.post("/api/v1/execute", asked(2001)).await;
    assert_eq!(status, 400, "{refused}");
    let text = refused["error"]["details"].to_string();
    assert!(text.contains("timeout_ms") && text.contains("limits.execution_seconds is 2"), "{refused}");
    let ended = api.execute(&hasty, json!({"command": "sleep 60"})).await;
    assert_eq!(met(&ended), ["timed_out"], "{ended}");
}

#[tokio::test]
async fn operator_caps_what_may_be_asked_for() {
    let server = Server::with(&[
        ("SANDBOX_OPEN_FILES_MAX", "5000"),
        ("SANDBOX_PIDS_MAX", "300"),
        ("SANDBOX_MEMORY_BYTES_MAX", "2147483648"),
        ("JOURNAL_EXECUTION_BYTES", "1048576"),
    ])
    .await;
    let api = server.user("ada").await;
    let limits = json!({
        "open_files": 5001, "pids": 301, "memory_bytes": 3_u64 << 30, "output_bytes": 1_048_577,
        "execution_seconds": 86_401, "cpu_weight": 10_001,
    });
    let (status, refused) = api.post("/api/v1/sandbox/acquire", json!({"limits": limits})).await;
    assert_eq!(status, 400, "{refused}");
    let text = refused["error"]["details"].to_string();
    for rule in [
        "from 64 to 5000",
        "from 4 to 300",
        "from 16777216 to 2147483648",
        "from 65536 to 1048576",
        "from 1 to 86400",
        "from 1 to 10000",
    ] {
        assert!(text.contains(rule), "{rule} in {text}");
    }
    let id = limited(&api, json!({"open_files": 5000, "pids": 300})).await;
    assert_eq!(api.shell(&id, "ulimit -n").await, "5000\n", "also where the host cannot raise what a warm one has");
}

#[tokio::test]
async fn usage_of_a_sandbox_is_told() {
    if left_out() {
        return;
    }
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = limited(&api, json!({"memory_bytes": 64 << 20})).await;
    api.shell(&id, "head -c 3M /dev/zero > file; sleep 600 >/dev/null 2>&1 &").await;
    api.execute(&id, json!({"code": "x = bytearray(512 << 20)"})).await;
    let (_, told) = api.get(&format!("/api/v1/sandbox/{id}")).await;
    let number = |name: &str| {
        let value = &told["usage"][name];
        value.as_f64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_else(|| panic!("{name} in {told}"))
    };
    assert!(number("disk_bytes") >= 3.0 * 1_048_576.0 && number("memory_bytes") >= 3.0 * 1_048_576.0, "{told}");
    assert!(number("pids") >= 2.0 && number("cpu_time_ms") > 0.0 && number("oom_kills") >= 1.0, "{told}");
    let (_, all) = api.get("/api/v1/sandbox").await;
    assert_eq!(all["sandboxes"][0].get("usage").and_then(Value::as_object), None, "{all}");
}

#[test]
fn command_says_what_it_ran_into_also_as_an_ordinary_user() {
    // of this test run alone
    let somebody = 300_000 + std::process::id() % 100_000;
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = folder.path().join("cloud-sandbox");
    fs::copy(BINARY, &binary).unwrap();
    for user in [0, somebody] {
        let data = folder.path().join(user.to_string());
        fs::create_dir(&data).unwrap();
        chown(&data, Some(user), Some(user)).expect("these tests run as root, to run this as another user");
        let code = folder.path().join("code");
        fs::write(&code, "ulimit -n; head -c 8M /dev/zero > big").unwrap();
        let mut command = Command::new(&binary);
        command.args(["run", "--language", "bash", "--data-dir"]).arg(&data).arg(&code).env_clear();
        command.env("PATH", "/usr/bin:/bin").current_dir("/").uid(user).gid(user);
        command.env("SANDBOX_OPEN_FILES", "100").env("SANDBOX_DISK_BYTES", "2097152");
        let ran = command.output().unwrap();
        let told = String::from_utf8_lossy(&ran.stderr);
        assert_eq!((ran.status.code(), ran.stdout.as_slice()), (Some(1), &b"100\n"[..]), "as {user}: {told}");
        assert!(told.contains("cloud-sandbox: the sandbox's disk is full"), "as {user}: {told}");
    }
}
