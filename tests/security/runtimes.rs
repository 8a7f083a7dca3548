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
    /// what gets through by design, as docs/runtimes.md says, or is refused in other words: theme, attempt, and why
    left_out: &'static [(&'static str, &'static str, &'static str)],
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
        left_out: &[],
    },
    Runtime {
        name: "docker+runc",
        users: &[User::Root],
        themes: &[],
        except: &[],
        left_out: &[
            ("agent", "finds_its_socket", "the file is there, and its node answers the first process alone"),
            ("agent", "makes_it_the_first_to_die", "the agent is seen among the processes"),
            ("bombs", "fills_the_disk", "each writable folder has the limit, and memory has them all"),
            ("egress", "opens_tunnels_without_end", "the agent closes what is too much, before the proxy sees it"),
            ("files", "finds_the_old_root_among_the_mounts", "mounts name the folders of the daemon"),
            ("kernel", "takes_descriptors_in_flight_that_its_user_has_few_of", "containers share a user of the host"),
            ("kernel", "takes_contexts_that_the_host_has_few_of", "there are no quotas without a user namespace"),
            ("kernel", "takes_watches_that_the_host_has_few_of", "there are no quotas without a user namespace"),
            ("kernel", "writes_sysctls", "what is masked is a device that takes everything and keeps nothing"),
            ("namespaces", "finds_the_agent_among_the_processes", "its /proc hides nobody"),
            ("namespaces", "reads_the_number_of_host_ids_by_the_map", "there is no user namespace"),
            ("neighbours", "has_the_same_ids_on_the_host", "containers share a user of the host"),
            ("neighbours", "searches_all_files_for_theirs", "what it searches includes /sys, which is not hidden"),
            ("network", "finds_another_interface", "/sys is there, and names the loopback once more"),
            ("privileges", "runs_programs_that_set_the_user_id", "no_new_privs keeps them from it, not the mount"),
        ],
    },
    // What says something of its own kernel, or goes through its agent: not what the node does alone, nor the host's kernel,
    // which is never asked. What bombs do to it, the black-box tests hold.
    Runtime {
        name: "docker+runsc",
        users: &[User::Root],
        themes: &[
            "agent",
            "archives",
            "egress",
            "file_api",
            "files",
            "namespaces",
            "neighbours",
            "network",
            "policies",
            "privileges",
            "races",
        ],
        except: &[],
        left_out: &[
            (
                "agent",
                "makes_it_the_first_to_die",
                "the agent is seen among the processes, and its kernel kills nobody",
            ),
            ("agent", "reads_where_its_memory_is", "its kernel shows that of anybody; the memory itself stays closed"),
            ("agent", "starves_it", "its kernel takes note of priorities and processors, and does not go by them"),
            ("egress", "opens_tunnels_without_end", "the agent closes what is too much, before the proxy sees it"),
            (
                "file_api",
                "reads_a_file_that_is_larger_than_everything",
                "beyond the end of everything it reads nothing, and refuses nothing",
            ),
            ("files", "finds_the_old_root_among_the_mounts", "/sys is there, its kernel's own"),
            (
                "files",
                "lists_the_descriptors_of_the_first_process",
                "its kernel lists those of anybody, and opens none that is not the user's",
            ),
            ("files", "reads_the_memory_of_the_kernel", "what it shows are addresses of its own kernel"),
            ("namespaces", "clones_into_each_kind", "what can be made are namespaces of its own kernel"),
            (
                "namespaces",
                "clones_with_flags_behind_a_pointer",
                "what can be made are namespaces of its own kernel, where it knows this call",
            ),
            ("namespaces", "finds_the_agent_among_the_processes", "its /proc hides nobody"),
            ("namespaces", "reads_the_number_of_host_ids_by_the_map", "its ids are its own kernel's"),
            ("namespaces", "unshares_each_kind", "what can be made are namespaces of its own kernel"),
            ("neighbours", "has_the_same_ids_on_the_host", "its ids are its own kernel's"),
            ("neighbours", "searches_all_files_for_theirs", "what it searches includes /sys, which is not hidden"),
            ("network", "finds_another_interface", "/sys is there, and names the loopback once more"),
            ("network", "reaches_the_metadata_of_clouds", "its kernel calls the host unreachable, not the network"),
            ("network", "reaches_public_addresses", "its kernel says nothing of link-local ones until the timeout"),
            ("privileges", "protects_itself_from_the_memory_limit", "its kernel kills nobody for memory"),
            ("privileges", "runs_programs_that_set_the_user_id", "no_new_privs keeps them from it, not the mount"),
            ("privileges", "takes_off_the_filter_of_system_calls", "in place of a filter it has a kernel"),
            (
                "privileges",
                "takes_the_processor_for_itself",
                "its kernel takes note of priorities, and does not go by them",
            ),
        ],
    },
];

impl Runtime {
    /// Whether attacks of a theme are run on it, here and now.
    pub fn has(&self, theme: &str) -> bool {
        let in_containers = self.name.starts_with("docker");
        (self.themes.is_empty() || self.themes.contains(&theme)) && !(in_containers && docker::left_out())
    }

    /// Whether an attempt is not made on it.
    pub fn leaves_out(&self, theme: &str, attempt: &str) -> bool {
        self.left_out.iter().any(|(its_theme, name, _)| (*its_theme, *name) == (theme, attempt))
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
