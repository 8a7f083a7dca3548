//! The runtimes under attack, and what each cannot do by design.

use std::os::unix::fs::MetadataExt;

use serde_json::json;

use crate::{
    attempt::Need,
    docker,
    harness::{BINARY, reason},
    target::{Target, User},
};

/// What is tested in place of an attack that needs what a runtime has not got: that it says so.
type Instead = fn(&Target);

/// A runtime under attack.
pub struct Runtime {
    /// its name in templates
    pub name: &'static str,
    /// who runs servers that have it
    pub users: &'static [User],
    /// the themes that are run on it; all of them where it names none
    themes: &'static [&'static str],
    except: &'static [(User, Need, Lacks, Instead)],
}

/// Whether the host lacks it.
type Lacks = fn() -> bool;

pub const RUNTIMES: &[Runtime] = &[
    Runtime {
        name: "linux",
        users: &User::ALL,
        themes: &[],
        except: &[
            (User::Somebody, Need::MemoryLimit, || true, doctor_names_the_memory_limit),
            (User::Somebody, Need::Interface, is_tun_for_root_alone, interface_is_refused),
        ],
    },
    Runtime { name: "docker+runc", users: &[User::Root], themes: &[], except: &[] },
    // what of its walls is the kernel's of its own, and what the server does; the rest is the same code as above
    Runtime {
        name: "docker+runsc",
        users: &[User::Root],
        themes: &["agent", "files", "kernel", "namespaces", "neighbours", "network"],
        except: &[],
    },
];

impl Runtime {
    /// Whether attacks of a theme are run on it, here and now.
    pub fn has(&self, theme: &str) -> bool {
        let in_containers = self.name.starts_with("docker");
        (self.themes.is_empty() || self.themes.contains(&theme)) && !(in_containers && docker::left_out())
    }

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
