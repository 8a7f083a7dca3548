//! Where the tests have their agents: beside them, or in containers of a Docker Engine.
//!
//! `CLOUD_SANDBOX_TEST_AGENT_IN` names the place: nothing for a process of this machine, reached by a socket; `stdio` for
//! one that is reached by its standard streams; `docker`, `docker+runsc` and so on for containers, which are reached in the
//! same way, of the engine that `tests/setup/docker.py` starts. For those, `CLOUD_SANDBOX_TEST_AGENT` is the path of an agent
//! that runs in its image; the one that was built for the tests need not.

use std::{env, path::Path, process::Command, sync::LazyLock};

#[expect(dead_code, reason = "whoever leaves out the engine does not name containers as the place")]
#[path = "../../../../../tests/setup/engine.rs"]
mod engine;

static PLACE: LazyLock<Place> = LazyLock::new(|| match variable("CLOUD_SANDBOX_TEST_AGENT_IN").as_deref() {
    None => Place::Here,
    Some("stdio") => Place::Stdio,
    Some("docker") => Place::Docker(None),
    Some(other) => match other.strip_prefix("docker+") {
        Some(runtime) => Place::Docker(Some(runtime.to_owned())),
        None => panic!("CLOUD_SANDBOX_TEST_AGENT_IN must be stdio, docker or docker+RUNTIME, not {other}"),
    },
});

/// Tests that say nothing about agents in containers, by the reason. Every other test holds everywhere.
const NOT_IN_CONTAINERS: &[(&str, &[&str])] = &[
    (
        "it starts a process on this machine by itself, and tells of it alone",
        &[
            "start::an_inherited_socket_is_taken_over_and_kept_from_processes",
            "start::an_agent_that_cannot_listen_says_so",
            "start::within_another_process_only_its_own_children_are_reaped",
            "ways_in::one_connection_waits_until_it_is_taken_up_and_then_the_next",
            "ways_in::a_connection_that_is_closed_unused_is_made_again",
            "ways_in::an_agent_whose_node_is_gone_ends",
            "ways_in::standard_streams_carry_many_connections",
            "ways_in::what_users_run_has_nothing_of_the_standard_streams",
            "ways_in::the_end_of_standard_input_ends_the_agent",
            "ways_in::nonsense_on_standard_input_ends_the_agent_with_an_error",
            "ways_in::standard_streams_that_cannot_be_waited_for_are_refused",
            "ways_in::standard_streams_are_one_socket_as_well",
        ],
    ),
    ("a container has walls, which is what is asserted there instead", &["walls::missing_walls_are_found"]),
];

/// Tests that need a daemon, by the reason.
const IN_CONTAINERS_ALONE: &[(&str, &[&str])] =
    &[("it is about containers", &["walls::containers_have_the_walls_that_their_runtime_claims"])];

/// Tests of what gVisor does not have, by the reason; all of it was tried with 0.0~20221219 of Debian 12.
const NOT_UNDER_GVISOR: &[(&str, &[&str])] = &[
    (
        "what happens to a mounted folder from outside is not told; what_programs_do_is_told holds",
        &[
            "file_watch::a_file_that_stays_open_is_told_at_most_once_a_second",
            "file_watch::a_slow_reader_is_told_that_it_missed_something",
            "file_watch::a_watch_ends_when_its_folder_is_gone",
            "file_watch::new_folders_are_watched_and_nothing_in_them_is_missed_or_told_twice",
            "file_watch::one_file_is_watched_until_it_is_gone",
            "file_watch::the_agents_own_writes_are_told_as_what_they_are",
            "file_watch::what_comes_from_or_goes_elsewhere_is_created_or_removed",
            "file_watch::what_happens_to_a_file_is_told",
        ],
    ),
    (
        "FIFOs and sockets that lie in a mounted folder cannot be looked at",
        &[
            "file_trees::a_move_to_another_file_system_is_a_copy_and_a_delete",
            "trees::a_nasty_tree_comes_back_as_it_was",
            "trees::sockets_are_lost_and_named",
        ],
    ),
    (
        "no file tells its holes: they are read as zeros, so that what is huge and empty takes time",
        &["file_trees::holes_stay_holes_and_large_files_are_copied_whole", "trees::holes_are_neither_sent_nor_made"],
    ),
    (
        "each folder of a mounted one takes a descriptor on the host, which has not as many for it",
        &["file_trees::twenty_thousand_levels_are_deleted"],
    ),
    ("a terminal sends no signals for control characters", &["terminals::control_c_interrupts_the_foreground"]),
    ("a terminal has no end of file within a line", &["terminals::closed_input_is_end_of_file_also_within_a_line"]),
    (
        "a file of a mounted folder takes many times as long to look at",
        &["snapshots::a_small_tree_takes_little_time_and_many_snapshots_little_memory"],
    ),
];

pub enum Place {
    Here,
    Stdio,
    Docker(Option<String>),
}

impl Place {
    pub fn of_agents() -> &'static Self {
        &PLACE
    }
}

/// Whether agents are in containers.
pub fn in_container() -> bool {
    matches!(Place::of_agents(), Place::Docker(_))
}

/// Whether agents are in containers with a kernel of their own.
pub fn is_gvisor() -> bool {
    matches!(Place::of_agents(), Place::Docker(Some(runtime)) if runtime.starts_with("runsc"))
}

/// Whether the test that runs now says nothing about the place of its agents; says so where it is.
pub fn left_out() -> bool {
    let thread = std::thread::current();
    let test = thread.name().expect("tests run on threads with their names").to_owned();
    let mut tables = Vec::new();
    match Place::of_agents() {
        Place::Docker(_) => tables.extend(NOT_IN_CONTAINERS),
        Place::Here | Place::Stdio => tables.extend(IN_CONTAINERS_ALONE),
    }
    if is_gvisor() {
        tables.extend(NOT_UNDER_GVISOR);
    }
    let reason = tables.iter().find(|(_, tests)| tests.contains(&test.as_str())).map(|(reason, _)| *reason);
    if let Some(reason) = reason {
        println!("{test} is left out: {reason}");
    }
    reason.is_some()
}

/// Starts an agent as the first process of a container, in which `folder` lies where it lies here.
pub fn container(runtime: Option<&str>, folder: &Path, options: &[&str]) -> Command {
    let program = variable("CLOUD_SANDBOX_TEST_AGENT").unwrap_or(env!("CARGO_BIN_EXE_cloud-sandbox-agent").to_owned());
    let mut command = Command::new("docker");
    command.args(["--host", &engine::variable("DOCKER")]);
    let unique = folder.file_name().and_then(|name| name.to_str()).unwrap().trim_start_matches('.');
    command.args(["run", "--rm", "--interactive", "--network=none", "--security-opt=no-new-privileges"]);
    command.arg(format!("--name=cloud-sandbox-test-{unique}"));
    command.args(runtime.map(|runtime| format!("--runtime={runtime}")));
    command.arg(format!("--volume={0}:{0}", folder.display()));
    command.arg(format!("--volume={program}:/.cloud-sandbox/agent:ro"));
    command.args(["--volume=/dev/shm:/dev/shm", "--entrypoint=/.cloud-sandbox/agent"]).args(options);
    command.arg(engine::variable("IMAGE"));
    command.arg("--stdio");
    command
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
