//! The program's other commands.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use cloud_sandbox_runtime::walls::{PROVED, UNIQUE_IDS};

use crate::harness::{BINARY, Server, Traces, command};

fn with_input(mut command: Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn out(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn run_takes_a_program_from_standard_input() {
    let ran = with_input(command(&["run", "--language", "python", "-"]), "print(6*7)");
    let (code, stdout, stderr) = out(&ran);
    assert_eq!((code, stdout.as_str()), (Some(0), "42\n"), "{stderr}");
}

#[test]
fn run_exits_with_the_programs_code_and_shows_its_traceback() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.py");
    fs::write(&file, "import sys\nprint('before')\nraise SystemExit(9) if len(sys.argv) > 5 else ValueError('bad')")
        .unwrap();
    let (code, stdout, stderr) = out(&command(&["run"]).arg(&file).output().unwrap());
    assert_eq!((code, stdout.as_str()), (Some(1), "before\n"));
    assert!(stderr.contains("Traceback") && stderr.contains("ValueError: bad"), "{stderr}");
    fs::write(&file, "exit(7)").unwrap();
    assert_eq!(out(&command(&["run"]).arg(&file).output().unwrap()).0, Some(7));
}

#[test]
fn run_passes_standard_input_on_to_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("upper.py");
    fs::write(&file, "print(input().upper())").unwrap();
    let mut command = command(&["run"]);
    command.arg(&file);
    assert_eq!(out(&with_input(command, "typed\n")).1, "TYPED\n");
}

#[tokio::test]
async fn run_works_against_a_server() {
    let server = Server::start().await;
    let ran =
        with_input(command(&["run", "--server", &server.url, "--language", "bash", "-"]), "echo over there; exit 3");
    assert_eq!(out(&ran).0, Some(3), "{:?}", out(&ran));
    assert_eq!(out(&ran).1, "over there\n");
    let api = server.user("ada").await;
    assert_eq!(api.get("/api/v1/sandbox").await.1["sandboxes"], serde_json::json!([]), "its sandbox was released");
}

#[test]
fn run_that_is_interrupted_leaves_nothing() {
    let mut running = command(&["run", "--language", "bash", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    running.stdin.take().unwrap().write_all(b"echo begun; sleep 60").unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(running.stdout.as_mut().unwrap()), &mut line).unwrap();
    assert_eq!(line, "begun\n");
    let traces = Traces::of(running.id());
    assert!(!traces.is_empty());
    Command::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap();
    let ended = running.wait().unwrap();
    assert_eq!(ended.code(), Some(130));
    traces.assert_gone();
}

#[test]
fn run_is_interrupted_also_while_the_server_says_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    for token in [&["--token", "t"][..], &[]] {
        let mut running = command(&["run", "--server", &url, "--language", "bash", "-"])
            .args(token)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let _connection = silent.accept().unwrap();
        Command::new("kill").args(["-TERM", &running.id().to_string()]).status().unwrap();
        assert_eq!(running.wait().unwrap().code(), Some(143), "{token:?}");
    }
}

#[test]
fn wrong_command_lines_say_what_is_wrong() {
    for (arguments, code, named) in [
        // 125 as of other programs that run programs: the fault is not the program's
        (&["run", "--language", "klingon", "-"][..], 125, "language"),
        (&["run", "/no/such/file.py"][..], 125, "/no/such/file.py"),
        (&["serve", "--pool-min-size", "9", "--pool-max-size", "3"][..], 2, "pool_min_size"),
        (&["serve", "--listen", "nowhere"][..], 2, "listen"),
        (&["token"][..], 2, "--user"),
        (&["fly"][..], 2, "fly"),
    ] {
        let ran = with_input(command(arguments), "");
        let (status, _, stderr) = out(&ran);
        assert_eq!(status, Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(named), "{arguments:?}: {stderr}");
    }
}

#[test]
fn effective_settings_are_printed_without_secrets() {
    let secret = "a-secret-that-is-long-enough-for-hs256";
    let printed =
        command(&["serve", "--print-config", "--pool-min-size", "3"]).env("JWT_SECRET", secret).output().unwrap();
    let (code, stdout, stderr) = out(&printed);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("pool_min_size = 3") && !stdout.contains(secret), "{stdout}");
}

#[test]
fn doctor_tells_what_the_host_offers() {
    let (code, stdout, stderr) = out(&command(&["doctor"]).output().unwrap());
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    for row in ["kernel", "cgroups", "network egress", "network open", "disk limit", "a sandbox", "language python"] {
        assert!(stdout.contains(row), "{row} in\n{stdout}");
    }
    // as root, on a kernel that is new enough for these tests, nothing that protects is missing
    for wall in [UNIQUE_IDS].into_iter().chain(PROVED) {
        assert!(stdout.contains(&format!("ok        {wall:<20}")), "{wall} in\n{stdout}");
    }
}

/// Runs as somebody who owns no cgroup: sandboxes work with less protection, and the doctor says which.
#[test]
fn ordinary_user_gets_sandboxes_and_is_told_what_they_lack() {
    // of this test run alone, so that its processes can be counted
    let somebody = 200_000 + std::process::id() % 100_000;
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = folder.path().join("cloud-sandbox");
    fs::copy(BINARY, &binary).unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    chown(&data, Some(somebody), Some(somebody)).expect("these tests run as root, to run this as another user");
    let as_somebody = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command.args(arguments).args(["--data-dir", data.to_str().unwrap()]).env_clear();
        command.env("PATH", "/usr/bin:/bin").current_dir("/").uid(somebody).gid(somebody);
        command
    };
    let (code, stdout, stderr) = out(&as_somebody(&["doctor"]).output().unwrap());
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    for lost in ["memory limit", "freezer", UNIQUE_IDS] {
        assert!(stdout.contains(&format!("degraded  {lost:<20}")), "{lost} in\n{stdout}");
    }
    let code = "import os, subprocess\nprint(os.getuid(), open('/proc/self/status').read().count('CapEff:\\t0000000000000000'))\n\
                print(subprocess.run(['touch', '/usr/x'], capture_output=True).returncode)";
    let ran = with_input(as_somebody(&["run", "--language", "python", "-"]), code);
    let (status, stdout, stderr) = out(&ran);
    assert_eq!((status, stdout.as_str()), (Some(0), "1000 1\n1\n"), "{stderr}");
    let bomb =
        with_input(as_somebody(&["run", "--language", "bash", "--timeout", "2", "-"]), "b() { b | b & }; b; sleep 30");
    assert_ne!(bomb.status.code(), Some(0));
    thread::sleep(Duration::from_millis(100));
    assert_eq!(processes_of(somebody), Vec::<String>::new(), "nothing of the bomb is left");
}

fn processes_of(uid: u32) -> Vec<String> {
    let found = Command::new("pgrep").args(["-u", &uid.to_string(), "-a"]).output().unwrap();
    String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect()
}
