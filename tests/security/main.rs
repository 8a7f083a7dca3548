//! Attacks from inside a sandbox, each a test of its own, for every runtime of the table in `runtimes.rs`: against a server
//! that runs as root, and on the native runtime against one that an ordinary user runs, too. `CLOUD_SANDBOX_TEST_RUNTIME`
//! chooses one by name.
//!
//! An attack states what must not happen. Inside, each try must end in an error; outside, the host's secret must not have
//! been read, and its files and processes must be as they were; after it, nothing of the server may be left. What is
//! harmless on a bare host is run there too, without a sandbox, and must get through: so each of those is known to fail
//! where there is no wall.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod agent;
mod api;
mod archives;
mod attempt;
mod bombs;
#[expect(dead_code, reason = "the black-box tests need more of it")]
#[path = "../setup/docker.rs"]
mod docker;
mod egress;
mod file_api;
mod files;
mod files_client;
#[expect(dead_code, reason = "the black-box tests need more of it")]
#[path = "../blackbox/harness.rs"]
mod harness;
mod host;
mod inside;
mod internet;
mod kernel;
mod leftovers;
mod namespaces;
mod neighbours;
mod network;
mod open;
mod policies;
mod privileges;
mod races;
mod runtimes;
mod target;

use std::{panic, process::ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{
    attempt::Attempt,
    inside::GOT_THROUGH,
    runtimes::{RUNTIMES, Runtime},
    target::{Target, User},
};

/// What the sandboxes are made by, where a test says nothing else.
const RUNTIME: &str = "linux";

const THEMES: &[(&str, &[Attempt])] = &[
    ("agent", agent::ATTEMPTS),
    ("api", api::ATTEMPTS),
    ("archives", archives::ATTEMPTS),
    ("bombs", bombs::ATTEMPTS),
    ("egress", egress::ATTEMPTS),
    ("file_api", file_api::ATTEMPTS),
    ("files", files::ATTEMPTS),
    ("kernel", kernel::ATTEMPTS),
    ("namespaces", namespaces::ATTEMPTS),
    ("neighbours", neighbours::ATTEMPTS),
    ("network", network::ATTEMPTS),
    ("open", open::ATTEMPTS),
    ("policies", policies::ATTEMPTS),
    ("privileges", privileges::ATTEMPTS),
    ("races", races::ATTEMPTS),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let chosen = std::env::var("CLOUD_SANDBOX_TEST_RUNTIME").ok();
    let mut trials = Vec::new();
    for (theme, attempt) in THEMES.iter().flat_map(|(theme, all)| all.iter().map(move |attempt| (theme, attempt))) {
        let wanted = |runtime: &&Runtime| {
            let named = chosen.as_deref().is_none_or(|name| name == runtime.name);
            named && runtime.has(theme) && !runtime.leaves_out(theme, attempt.name)
        };
        for runtime in RUNTIMES.iter().filter(wanted) {
            for &user in runtime.users {
                let name = format!("{}::{}::{theme}::{}", runtime.name, user.name(), attempt.name);
                trials.push(Trial::test(name, move || defended(attempt, runtime, user)));
            }
        }
        if attempt.proved {
            trials.push(Trial::test(format!("unwalled::{theme}::{}", attempt.name), move || proved(attempt)));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The attack on a sandbox: the walls must hold.
fn defended(attempt: &Attempt, runtime: &'static Runtime, user: User) -> Result<(), Failed> {
    let target = Target::sandbox(runtime, user);
    match runtime.instead(user, attempt.needs) {
        None => (attempt.run)(&target),
        Some(instead) => instead(&target),
    }
    target.finish();
    Ok(())
}

/// The same on the bare host: it must get through, or it would prove nothing where it does not.
fn proved(attempt: &Attempt) -> Result<(), Failed> {
    let tried = panic::catch_unwind(|| (attempt.run)(&Target::unwalled()));
    let why = match &tried {
        Ok(()) => "the attack was stopped where there is no wall".into(),
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "it panicked".into()),
    };
    if why.starts_with(GOT_THROUGH) { Ok(()) } else { Err(why.into()) }
}
