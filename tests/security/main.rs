//! Attacks from inside a sandbox, for every runtime of the table in `runtimes.rs`: against a server that runs as root, and on
//! the native runtime against one that an ordinary user runs, too. A theme of them is a test: one server, and for each
//! attempt another user with a sandbox of its own. `CLOUD_SANDBOX_TEST_RUNTIME` chooses a runtime by name, and
//! `CLOUD_SANDBOX_TEST_ATTEMPT` an attempt.
//!
//! An attack states what must not happen. Inside, each try must end in an error; outside, the host's secret must not have
//! been read, and its files and processes must be as they were; after it, nothing of its sandboxes may be left, and in the
//! end nothing of the server. What is harmless on a bare host is run there too, without a sandbox, and must get through: so
//! each of those is known to fail where there is no wall.
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

use std::{
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{
    attempt::Attempt,
    inside::GOT_THROUGH,
    runtimes::{RUNTIMES, Runtime},
    target::{Ground, Target, User},
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
    let chosen = |variable: &str| std::env::var(variable).ok();
    let (runtime, attempt) = (chosen("CLOUD_SANDBOX_TEST_RUNTIME"), chosen("CLOUD_SANDBOX_TEST_ATTEMPT"));
    let is_chosen = |choice: &Option<String>, name: &str| choice.as_deref().is_none_or(|choice| choice == name);
    let mut trials = Vec::new();
    for (theme, all) in THEMES {
        let all: Vec<_> = all.iter().filter(|it| is_chosen(&attempt, it.name)).collect();
        for runtime in RUNTIMES.iter().filter(|it| is_chosen(&runtime, it.name) && it.has(theme)) {
            let attempts: Vec<_> = all.iter().copied().filter(|it| !runtime.leaves_out(theme, it.name)).collect();
            for &user in runtime.users {
                let name = format!("{}::{}::{theme}", runtime.name, user.name());
                trials.extend(trial(name, attempts.clone(), move |attempts| defended(attempts, runtime, user)));
            }
        }
        let proven = all.into_iter().filter(|it| it.proved).collect();
        trials.extend(trial(format!("unwalled::{theme}"), proven, proved));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test of these attempts, if there are any. The run tells which of them failed, and why.
fn trial(
    name: String,
    attempts: Vec<&'static Attempt>,
    run: impl FnOnce(&[&Attempt]) -> Vec<String> + Send + 'static,
) -> Option<Trial> {
    let is_any = !attempts.is_empty();
    let test = move || {
        let failures = run(&attempts);
        if failures.is_empty() { Ok(()) } else { Err(Failed::from(failures.join("\n\n"))) }
    };
    is_any.then(|| Trial::test(name, test))
}

/// The attacks on sandboxes: the walls must hold.
fn defended(attempts: &[&Attempt], runtime: &Runtime, user: User) -> Vec<String> {
    let mut ground = Ground::new(runtime, user);
    let mut failures = Vec::new();
    for attempt in attempts {
        let run = runtime.instead(user, attempt.needs).unwrap_or(attempt.run);
        let logged = ground.log().len();
        let tried = caught(|| {
            let target = ground.target();
            run(&target);
            target.finish();
        });
        if let Err(why) = tried {
            eprintln!("--- the server's log of {} ---\n{}", attempt.name, &ground.log()[logged..]);
            failures.push(format!("{}: {why}", attempt.name));
        }
    }
    failures.extend(caught(|| ground.finish()).err());
    failures
}

/// The same on the bare host: they must get through, or they would prove nothing where they do not.
fn proved(attempts: &[&Attempt]) -> Vec<String> {
    let stopped = |attempt: &&Attempt| match caught(|| (attempt.run)(&Target::unwalled())) {
        Err(why) if why.starts_with(GOT_THROUGH) => None,
        Err(why) => Some(format!("{}: {why}", attempt.name)),
        Ok(()) => Some(format!("{}: it was stopped where there is no wall", attempt.name)),
    };
    attempts.iter().filter_map(stopped).collect()
}

/// Runs something, and gives what it panicked with.
fn caught(run: impl FnOnce()) -> Result<(), String> {
    panic::catch_unwind(AssertUnwindSafe(run)).map_err(|panic| match panic.downcast::<String>() {
        Ok(why) => *why,
        Err(panic) => panic.downcast_ref::<&str>().copied().unwrap_or("it panicked").to_owned(),
    })
}
