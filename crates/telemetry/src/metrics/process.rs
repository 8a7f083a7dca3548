//! The process's own use, under the names that Prometheus client libraries agree on. Read when somebody looks.

use std::{fs, time::UNIX_EPOCH};

use ::metrics::{counter, gauge};

/// `sysconf(_SC_CLK_TCK)`, which Linux fixes at 100 for user space (`man 5 proc`, `man 7 time`).
const TICKS_PER_SECOND: u64 = 100;

/// Takes the readings. One that cannot be had is left as it was.
pub(super) fn record() {
    if let Some(bytes) = resident_bytes() {
        gauge!("process_resident_memory_bytes").set(bytes);
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // one of them is the folder's own
        gauge!("process_open_fds").set(entries.count().saturating_sub(1) as f64);
    }
    let Some((cpu_ticks, threads)) = stat() else { return };
    counter!("process_cpu_seconds_total").absolute(cpu_ticks / TICKS_PER_SECOND);
    gauge!("process_threads").set(threads);
    // the folder of a process is as old as the process
    let started = fs::metadata("/proc/self").ok().and_then(|folder| folder.modified().ok());
    if let Some(since) = started.and_then(|time| time.duration_since(UNIX_EPOCH).ok()) {
        gauge!("process_start_time_seconds").set(since.as_secs_f64());
    }
}

fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some((kib * 1024) as f64)
}

/// CPU time in ticks, and threads: fields 14, 15 and 20 of `/proc/self/stat`.
fn stat() -> Option<(u64, f64)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // the name before the last parenthesis may hold anything
    let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    Some((number(11)? + number(12)?, number(17)? as f64))
}
