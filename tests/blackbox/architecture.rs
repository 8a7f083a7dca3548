//! Which crate may depend on which: the arrows of ARCHITECTURE.md.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

/// What each crate may depend on, of ours, outside of tests. `server` may depend on all.
const ARROWS: &[(&str, &[&str])] = &[
    ("agent", &["proto"]),
    ("auth", &["model", "rpc"]),
    ("checkpoint", &["model", "proto", "storage"]),
    ("egress", &["model", "runtime"]),
    ("embedded", &[]),
    ("exec", &["auth", "model", "node-client", "proto", "rpc", "storage"]),
    ("gateway-rest", &["auth", "model", "proto", "rpc"]),
    ("images", &["model"]),
    ("jailer", &[]),
    ("journal", &["model"]),
    ("model", &[]),
    ("node", &["auth", "checkpoint", "egress", "journal", "model", "proto", "rpc", "runtime", "storage"]),
    ("node-client", &["auth", "model", "proto", "rpc", "storage"]),
    ("proto", &[]),
    ("rpc", &["model", "proto"]),
    ("runtime", &["model"]),
    ("runtime-docker", &["images", "model", "runtime", "runtime-linux"]),
    ("runtime-linux", &["images", "jailer", "model", "runtime"]),
    ("scheduler", &["auth", "model", "node-client", "proto", "rpc", "storage"]),
    ("session", &["auth", "model", "node-client", "proto", "rpc", "storage"]),
    // used by tests only
    ("sim-node", &["auth", "model", "proto", "rpc", "storage"]),
    ("storage", &["model"]),
    ("telemetry", &["model"]),
];

fn dependencies() -> BTreeMap<String, Vec<String>> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline", "--manifest-path", manifest];
    let told = Command::new(env!("CARGO")).args(arguments).output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let metadata: Value = serde_json::from_slice(&told.stdout).unwrap();
    let ours = |name: &Value| name.as_str().unwrap().strip_prefix("cloud-sandbox-").map(str::to_owned);
    let packages = metadata["packages"].as_array().unwrap();
    let named = packages.iter().map(|package| {
        let needed = package["dependencies"].as_array().unwrap();
        // a dependency without a kind is a plain one
        let needed = needed.iter().filter(|dependency| dependency["kind"].is_null());
        (ours(&package["name"]).unwrap(), needed.filter_map(|dependency| ours(&dependency["name"])).collect())
    });
    named.collect()
}

#[test]
fn crates_depend_on_each_other_along_the_arrows_only() {
    let dependencies = dependencies();
    let allowed: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    for (name, needed) in &dependencies {
        if name == "server" {
            continue;
        }
        let allowed = allowed.get(name.as_str()).unwrap_or_else(|| panic!("{name} has no row"));
        for other in needed {
            assert!(allowed.contains(&other.as_str()), "{name} may not depend on {other}");
        }
    }
    for (name, needed) in &dependencies {
        assert!(!needed.contains(&"sim-node".to_owned()), "{name} is not a test");
    }
    for name in allowed.keys() {
        assert!(dependencies.contains_key(*name), "{name} is no crate");
    }
}
