//! The tests that these programs leave out on a runtime, since it cannot do what they are about. This is the one list of
//! them: nothing else returns early.

/// A test that is left out.
pub struct LeftOut {
    /// its module and name
    pub test: &'static str,
    /// the row of the table in docs/runtimes.md that is the reason
    pub row: &'static str,
    /// the test of `lacks.rs` that asserts what happens instead
    pub instead: &'static str,
}

const fn row(row: &'static str, instead: &'static str, test: &'static str) -> LeftOut {
    LeftOut { test, row, instead }
}

const MEMORY: &str = "a program that needs more memory than there is";
const PROCESSES: &str = "more processes than the limit";
const COUNT: &str = "`usage.pids`, `usage.pids_refused`, `pids_limit`";
const OUTPUT: &str = "a lot of output";
const PRIORITY: &str = "priority and processors of the agent";

/// Of the versions of Debian 12 and 13.
pub const OF_GVISOR: &[LeftOut] = &[
    row(
        "resize of a terminal",
        "terminal_that_is_resized_is_not_told",
        "executions::terminal_is_resized_where_there_is_one",
    ),
    row(
        OUTPUT,
        "output_is_cut_and_counted_without_growing_the_server",
        "hostile::quarter_of_a_gigabyte_of_output_is_cut_and_counted_without_growing_the_server",
    ),
    row(
        MEMORY,
        "sandbox_that_runs_out_of_memory_ends_or_its_program_and_no_other",
        "hostile::memory_hog_is_killed_and_told_so",
    ),
    row(
        MEMORY,
        "limits_beside_memory_and_processes_are_told_as_themselves",
        "resources::each_limit_is_told_as_itself_and_the_sandbox_goes_on",
    ),
    row(
        PROCESSES,
        "processes_without_end_are_ended_with_or_without_their_sandbox",
        "hostile::fork_bomb_hits_its_limit_and_dies_at_the_timeout",
    ),
    row(
        PRIORITY,
        "priority_of_the_agent_can_be_changed_and_signals_cannot_be_sent_to_it",
        "hostile::crowd_that_starves_the_agent_is_released_all_the_same",
    ),
    row(COUNT, "count_of_processes_is_not_told", "resources::turn_of_an_interpreter_tells_what_it_ran_into"),
    row(COUNT, "count_of_processes_is_not_told", "resources::usage_of_a_sandbox_is_told"),
];

/// What this program leaves out.
pub fn all() -> &'static [LeftOut] {
    if crate::RUNTIME == "docker+runsc" { OF_GVISOR } else { &[] }
}

/// Whether the test that runs now is left out; says so where it is.
pub fn left_out() -> bool {
    let thread = std::thread::current();
    let name = thread.name().expect("tests run on threads with their names");
    let found = all().iter().find(|left_out| left_out.test == name);
    if let Some(LeftOut { test, row, instead }) = found {
        println!("{test} is left out on {}: {row}. See lacks::{instead}", crate::RUNTIME);
    }
    found.is_some()
}
