//! Requests that no honest client makes.

use serde_json::{Value, json};

use crate::{attempt::attempts, target::Target};

attempts![
    asks_for_limits_beyond_all_bounds,
    asks_for_a_template_by_a_path,
    names_sandboxes_by_paths,
    sets_variables_that_name_others,
    sends_arguments_larger_than_the_kernel_takes,
    sends_variables_larger_than_the_kernel_takes,
    starts_programs_by_strange_names,
    works_in_folders_that_are_not_there,
    sends_signals_that_do_not_exist,
    runs_as_another_user_by_its_environment,
];

fn assert_invalid(target: &Target, path: &str, request: Value, field: &str) {
    let walled = target.walled();
    let shown = request.to_string();
    let (status, answer) = walled.wait(walled.api.post(path, request));
    assert_eq!((status, answer["error"]["status"].as_str()), (400, Some("INVALID_ARGUMENT")), "{shown:.200}: {answer}");
    assert!(answer["error"]["details"].to_string().contains(field), "{field} is named in {answer}");
}

fn asks_for_limits_beyond_all_bounds(target: &Target) {
    for (field, values) in [
        ("memory_bytes", [1, u64::MAX]),
        ("pids", [1, 4_000_000_000]),
        ("disk_bytes", [1, u64::MAX]),
        ("cpu_millis", [1, 4_000_000_000]),
        ("open_files", [1, 4_000_000_000]),
    ] {
        for value in values {
            let request = json!({"limits": {field: value}});
            assert_invalid(target, "/api/v1/sandbox/acquire", request, &format!("limits.{field}"));
        }
    }
}

fn asks_for_a_template_by_a_path(target: &Target) {
    let walled = target.walled();
    for template in ["../../etc", "/", "host/../host", "\0", "host\n", "{{7*7}}"] {
        let (status, answer) = walled.wait(walled.api.post("/api/v1/sandbox/acquire", json!({"template": template})));
        assert!(status == 400 || status == 404, "{template:?}: {answer}");
    }
}

fn names_sandboxes_by_paths(target: &Target) {
    let walled = target.walled();
    for id in ["..", "../../etc/passwd", "sb_../..", "*", "'; DROP TABLE sandboxes; --", "\0", &"s".repeat(100_000)] {
        let (status, answer) =
            walled.wait(walled.api.post("/api/v1/execute", json!({"sandbox_id": id, "command": "id"})));
        assert!(status == 400 || status == 404, "{id:.40}: {answer:.300}");
    }
    walled.assert_answers();
}

fn sets_variables_that_name_others(target: &Target) {
    for name in ["A=B", "", "A\0", "A\nB", "1A", "LD PRELOAD"] {
        assert_invalid(
            target,
            "/api/v1/execute",
            json!({"sandbox_id": target.walled().id(), "command": "env", "env": {name: "x"}}),
            "env",
        );
    }
    // what a linker obeys is the caller's own to set: it holds for the caller's programs only, not for the agent
    target
        .walled()
        .execute(json!({"command": "true", "env": {"LD_PRELOAD": "/workspace/none.so", "BASH_ENV": "/nowhere"}}));
    target.walled().assert_answers();
}

fn sends_arguments_larger_than_the_kernel_takes(target: &Target) {
    let walled = target.walled();
    for argv in [
        vec!["echo".to_owned(), "x".repeat(3 << 20)],
        std::iter::once("echo".to_owned()).chain((0..200_000).map(|n| n.to_string())).collect(),
    ] {
        let (status, answer) =
            walled.wait(walled.api.post("/api/v1/execute", json!({"sandbox_id": walled.id(), "argv": argv})));
        assert!((400..500).contains(&status), "{answer:.300}");
    }
    let printed = target.python("attempt('E2BIG', lambda: in_child(lambda: os.execv('/bin/true', ['x' * (3 << 20)])))");
    assert!(printed.contains("E2BIG => E2BIG"), "{printed}");
    walled.assert_answers();
}

fn sends_variables_larger_than_the_kernel_takes(target: &Target) {
    let walled = target.walled();
    let many: serde_json::Map<_, _> = (0..300).map(|n| (format!("V{n}"), json!("x"))).collect();
    for env in [json!({"BIG": "x".repeat(1 << 20)}), Value::Object(many)] {
        assert_invalid(
            target,
            "/api/v1/execute",
            json!({"sandbox_id": walled.id(), "command": "true", "env": env.clone()}),
            "env",
        );
        assert_invalid(target, "/api/v1/sandbox/acquire", json!({"env": env}), "env");
    }
}

fn starts_programs_by_strange_names(target: &Target) {
    let walled = target.walled();
    for argv in [json!([""]), json!(["a\0b"]), json!(["/"]), json!(["/etc/passwd"]), json!(["/proc/1/exe"]), json!([])]
    {
        let (status, answer) =
            walled.wait(walled.api.post("/api/v1/execute", json!({"sandbox_id": walled.id(), "argv": argv})));
        let ran = status == 200 && answer["exit_code"] == 0;
        assert!(status < 500 && !ran, "{argv}: {status} {answer}");
    }
    walled.assert_answers();
}

fn works_in_folders_that_are_not_there(target: &Target) {
    let walled = target.walled();
    let host = target.host.folder().to_str().unwrap();
    for cwd in
        [host, "relative", "/workspace/../..", "/proc/1/root", "/proc/1/cwd", "/root", "/workspace/\0", "/etc/passwd"]
    {
        let (status, answer) = walled
            .wait(walled.api.post("/api/v1/execute", json!({"sandbox_id": walled.id(), "command": "pwd", "cwd": cwd})));
        let ran = status == 200 && answer["exit_code"] == 0;
        assert!(status < 500 && !ran, "{cwd:?}: {status} {answer}");
    }
    walled.assert_answers();
}

fn sends_signals_that_do_not_exist(target: &Target) {
    let walled = target.walled();
    let id = walled.id();
    walled.wait(async {
        let sleeping = json!({"sandbox_id": id, "command": "sleep 600"});
        let (status, started) = walled.api.post("/api/v1/executions", sleeping).await;
        assert_eq!(status, 200, "{started}");
        let path = format!("/api/v1/executions/{}/signal", started["execution_id"].as_str().unwrap());
        for signal in ["SIGNOTHING", "-1", "0", "9999", "KILL; reboot", "\0"] {
            let (status, answer) = walled.api.post(&path, json!({"sandbox_id": id, "signal": signal})).await;
            assert_eq!(status, 400, "{signal:?}: {answer}");
        }
    });
    walled.assert_answers();
}

fn runs_as_another_user_by_its_environment(target: &Target) {
    let walled = target.walled();
    let answer = walled.execute(json!({"command": "id -u", "env": {"USER": "root", "LOGNAME": "root", "HOME": "/root", "UID": "0", "SUDO_UID": "0"}}));
    assert!(!answer["stdout"].as_str().unwrap().starts_with("0\n"), "{answer}");
}
