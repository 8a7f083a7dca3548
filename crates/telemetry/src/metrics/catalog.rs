//! Every metric by its name and what it says. A name is published: dashboards and alerts are written against it.

use ::metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

enum Kind {
    Counter,
    Gauge,
    Histogram,
}

use Kind::{Counter, Gauge, Histogram};

const CATALOG: &[(Kind, &str, &str)] = &[
    (Gauge, "cloud_sandbox_build_info", "Always 1; the label says which version runs."),
    (Counter, "cloud_sandbox_grpc_server_requests_total", "gRPC calls served, by service, method and code."),
    (Histogram, "cloud_sandbox_grpc_server_duration_seconds", "Time from a gRPC call's arrival to its end."),
    (Gauge, "cloud_sandbox_grpc_server_active", "gRPC calls being served."),
    (Counter, "cloud_sandbox_http_requests_total", "HTTP requests at the edge, by method, route and status."),
    (Histogram, "cloud_sandbox_http_request_duration_seconds", "Time to the last byte of an HTTP answer."),
    (Counter, "cloud_sandbox_grpc_requests_total", "gRPC calls at the edge, by service, method and code."),
    (Histogram, "cloud_sandbox_grpc_request_duration_seconds", "Time to the status of a gRPC call at the edge."),
    (Gauge, "cloud_sandbox_requests_in_flight", "Requests being served at the edge."),
    (Counter, "cloud_sandbox_acquire_total", "Acquires, by outcome."),
    (Counter, "cloud_sandbox_acquire_node_total", "Acquires at a node, by path: warm or cold."),
    (Histogram, "cloud_sandbox_acquire_duration_seconds", "Time to acquire a sandbox."),
    (Counter, "cloud_sandbox_create_total", "Sandboxes made, by outcome."),
    (Histogram, "cloud_sandbox_create_duration_seconds", "Time to make a sandbox, until its agent answers."),
    (Counter, "cloud_sandbox_execute_total", "Executions, by kind and outcome."),
    (Histogram, "cloud_sandbox_execute_duration_seconds", "Time from an execution's call to its end, by kind."),
    (Counter, "cloud_sandbox_executions_total", "Executions on a node, by outcome."),
    (Counter, "cloud_sandbox_limit_hits_total", "Executions that ran into a limit of their sandbox, by limit."),
    (Gauge, "cloud_sandbox_journal_bytes", "Disk that the journal of executions takes, in bytes."),
    (Counter, "cloud_sandbox_journal_dropped_bytes_total", "Output that the journal did not keep, in bytes, by cause."),
    (Counter, "cloud_sandbox_context_starts_total", "Interpreters started, by language and outcome."),
    (Histogram, "cloud_sandbox_context_start_duration_seconds", "Time until an interpreter takes code, by language."),
    (
        Counter,
        "cloud_sandbox_context_output_dropped_bytes_total",
        "Output of idle interpreters that nobody took, in bytes.",
    ),
    (Gauge, "cloud_sandbox_pool_sandboxes", "Sandboxes of a node, by state."),
    (Gauge, "cloud_sandbox_leases", "Leases in force on a node."),
    (Counter, "cloud_sandbox_sandbox_ended_total", "Sandboxes that ended, by cause."),
    (
        Counter,
        "cloud_sandbox_wall_breaches_total",
        "Walls that did not hold in a new sandbox, which was destroyed, by wall.",
    ),
    (Counter, "cloud_sandbox_destroy_failed_total", "Destroys that failed and are tried again."),
    (Counter, "cloud_sandbox_reclaimed_total", "Sandboxes of an earlier process that were destroyed at the start."),
    (
        Counter,
        "cloud_sandbox_network_connections_total",
        "Connections of sandboxes to the network, by decision and mode.",
    ),
    (Counter, "cloud_sandbox_network_bytes_total", "Bytes over connections of sandboxes to the network, by direction."),
    (Counter, "process_cpu_seconds_total", "CPU time of this process, user and system, in seconds."),
    (Gauge, "process_open_fds", "Open file descriptors of this process."),
    (Gauge, "process_resident_memory_bytes", "Resident memory of this process in bytes."),
    (Gauge, "process_start_time_seconds", "When this process began, in seconds since the epoch."),
    (Gauge, "process_threads", "Threads of this process."),
];

/// Describes every metric to the recorder.
pub(super) fn describe() {
    for (kind, name, text) in CATALOG {
        match kind {
            Counter => describe_counter!(*name, *text),
            Gauge => describe_gauge!(*name, *text),
            Histogram if name.ends_with("_bytes") => describe_histogram!(*name, Unit::Bytes, *text),
            Histogram => describe_histogram!(*name, Unit::Seconds, *text),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_described_once_and_follow_the_conventions() {
        let names: HashSet<_> = CATALOG.iter().map(|(_, name, _)| name).collect();
        assert_eq!(names.len(), CATALOG.len());
        for (kind, name, text) in CATALOG {
            assert!(name.starts_with("cloud_sandbox_") || name.starts_with("process_"), "{name}");
            assert_eq!(name.ends_with("_total"), matches!(kind, Counter), "{name}");
            assert!(text.ends_with('.'), "{name}");
        }
    }
}
