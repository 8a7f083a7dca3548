//! The runtimes under attack, and what each cannot do by design.

use crate::{
    attempt::Need,
    harness::BINARY,
    target::{Target, User},
};

/// What is tested in place of an attack that needs what a runtime has not got: that it says so.
type Instead = fn(&Target);

/// A runtime under attack.
pub struct Runtime {
    /// its name in the settings
    pub name: &'static str,
    except: &'static [(User, Need, Instead)],
}

pub const RUNTIMES: &[Runtime] =
    &[Runtime { name: "linux", except: &[(User::Somebody, Need::MemoryLimit, doctor_names_the_memory_limit)] }];

impl Runtime {
    /// What is tested in place of an attack that needs what the runtime does not have for this user.
    pub fn lacks(&self, user: User, need: Need) -> Option<Instead> {
        self.except.iter().find(|(who, what, _)| (*who, *what) == (user, need)).map(|(_, _, instead)| *instead)
    }
}

/// Without cgroups, memory is limited for each process alone. Whoever runs it so is told.
fn doctor_names_the_memory_limit(target: &Target) {
    let doctor =
        target.host.command(BINARY).arg("doctor").arg("--data-dir").arg(target.host.folder()).output().unwrap();
    let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(told.lines().any(|line| line.contains("memory limit") && !line.contains("ok")), "{told}");
}
