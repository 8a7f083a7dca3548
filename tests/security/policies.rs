//! Policies of the network that nobody may have: each is refused with the field that is at fault.

use serde_json::{Value, json};

use crate::{attempt::attempts, inside::GOT_THROUGH, target::Target};

attempts![unlocks_the_metadata, means_nothing, is_anothers];

/// Asks for a policy, at acquire and later, that must be refused for one of its entries.
fn invalid(target: &Target, network: &Value, field: &str) {
    let walled = target.walled();
    let acquire = walled.wait(walled.api.post("/api/v1/sandbox/acquire", json!({"network": network})));
    let update =
        walled.api.request("PATCH", &format!("/api/v1/sandbox/{}", walled.id())).json(&json!({"network": network}));
    for (status, answer) in [acquire, walled.send(update)] {
        assert_eq!(
            (status, answer["error"]["status"].as_str()),
            (400, Some("INVALID_ARGUMENT")),
            "{network}: {answer}"
        );
        assert!(answer["error"]["details"].to_string().contains(field), "{field} is named in {answer}");
    }
}

fn unlocks_the_metadata(target: &Target) {
    for entry in [
        "169.254.169.254",
        "169.254.169.254:80",
        "169.254.0.0/16",
        "169.254.169.0/24",
        "160.0.0.0/4",
        "0.0.0.0/0",
        "::/0",
        "100.100.100.200",
        "100.64.0.0/10:80/x",
        "168.63.129.16",
        "[fd00:ec2::254]",
        "fd00:ec2::254",
        "[fd00:ec2::]/32",
        "metadata.google.internal",
        "metadata",
        "127.0.0.1",
        "127.0.0.0/8",
        "localhost",
        "*.localhost",
        "[::1]",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "224.0.0.0/4",
        "0.0.0.0",
        "255.255.255.255",
        "[fe80::]/10",
    ] {
        for mode in ["egress", "open"] {
            invalid(target, &json!({"mode": mode, "allow": [entry]}), "network.allow[0]");
        }
    }
}

fn means_nothing(target: &Target) {
    for entry in [
        "",
        " ",
        "allowed.test:",
        "allowed.test:0",
        "allowed.test:65536",
        "allowed.test:x",
        "-a.test",
        "a..test",
        "http://allowed.test",
        "allowed.test/path",
        "10.0.0.0/33",
        "10.0.0.1/8",
        "10.0.0.0/-1",
        "2001:db8::/129",
        "*.*",
        "a*.test",
        "x y",
        "a\u{0}b",
        "bücher.test",
        &"x".repeat(254),
        "[::1",
        "1.2.3",
    ] {
        for list in ["allow", "deny"] {
            invalid(target, &json!({"mode": "egress", list: [entry]}), &format!("network.{list}[0]"));
        }
    }
    let many: Vec<_> = (0..257).map(|n| format!("h{n}.test")).collect();
    invalid(target, &json!({"mode": "egress", "allow": many}), "network.allow");
    invalid(target, &json!({"mode": "egress", "deny": many}), "network.deny");
    invalid(target, &json!({"mode": "none", "allow": ["allowed.test"]}), "network.allow");
    invalid(target, &json!({"mode": "open", "allow": ["allowed.test"]}), "network.allow[0]");
    invalid(target, &json!({"mode": "everything"}), "network.mode");
}

fn is_anothers(target: &Target) {
    let walled = target.walled();
    let neighbour = walled.neighbour();
    let request = walled.api.request("PATCH", &format!("/api/v1/sandbox/{}", neighbour.id));
    let (status, answer) = walled.send(request.json(&json!({"network": {"mode": "egress", "allow": ["*"]}})));
    assert_eq!((status, answer["error"]["status"].as_str()), (404, Some("NOT_FOUND")), "{GOT_THROUGH}: {answer}");
    assert!(neighbour.python("print('HTTP_PROXY' in os.environ)").starts_with("False"));
}
