//! The runtimes under attack, and what each cannot do by design.

use std::os::unix::fs::MetadataExt;

use serde_json::json;

use crate::{
    attempt::Need,
    harness::{BINARY, reason},
    target::{Target, User},
};

/// What is tested in place of an attack that needs what a runtime has not got: that it says so.
type Instead = fn(&Target);

/// A runtime under attack.
pub struct Runtime {
    /// its name in the settings
    pub name: &'static str,
    except: &'static [(User, Need, Lacks, Instead)],
}

/// Whether the host lacks it.
type Lacks = fn() -> bool;

pub const RUNTIMES: &[Runtime] = &[Runtime {
    name: "linux",
    except: &[
        (User::Somebody, Need::MemoryLimit, || true, doctor_names_the_memory_limit),
        (User::Somebody, Need::Interface, is_tun_for_root_alone, interface_is_refused),
    ],
}];

impl Runtime {
    /// What is tested in place of an attack that needs what the runtime does not have for this user.
    pub fn instead(&self, user: User, need: Need) -> Option<Instead> {
        let about = |(who, what, lacks, _): &&(User, Need, Lacks, Instead)| (*who, *what) == (user, need) && lacks();
        self.except.iter().find(about).map(|(.., instead)| *instead)
    }
}

fn is_tun_for_root_alone() -> bool {
    const EVERYBODY: u32 = 0o006;
    std::fs::metadata("/dev/net/tun").map_or(true, |device| device.mode() & EVERYBODY != EVERYBODY)
}

/// Who may not make an interface is told so, and nothing is left of the sandbox.
fn interface_is_refused(target: &Target) {
    let walled = target.walled();
    let request = json!({"network": {"mode": "open"}});
    let (status, answer) = walled.wait(walled.api.post("/api/v1/sandbox/acquire", request));
    assert_eq!((status, reason(&answer)), (400, "UNSUPPORTED_BY_HOST"), "{answer}");
    assert!(answer.to_string().contains("/dev/net/tun"), "{answer}");
}

/// Without cgroups, memory is limited for each process alone. Whoever runs it so is told.
fn doctor_names_the_memory_limit(target: &Target) {
    let doctor =
        target.host.command(BINARY).arg("doctor").arg("--data-dir").arg(target.host.folder()).output().unwrap();
    let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(told.lines().any(|line| line.contains("memory limit") && !line.contains("ok")), "{told}");
}
