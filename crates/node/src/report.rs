//! Tells the directory how the node is, so that callers find it: regularly, and soon after a change.

use std::{sync::Arc, time::Duration};

use cloud_sandbox_model::error::chain;
use cloud_sandbox_storage::{NodeEntry, NodeTemplate, TemplateState};
use tokio::time::{sleep, timeout};

use crate::node::Shared;

/// Changes come in bursts; one report for all of them is enough, and the node's own word counts in the end.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// How often it is told how far the preparing of templates has come.
const PROGRESS: Duration = Duration::from_millis(500);
/// Reports that may be lost before the node counts as dead.
const REPORTS_PER_TTL: u32 = 3;

const MEMINFO: &str = "/proc/meminfo";
/// One part in so many is left of the machine's memory: the kernel begins to look for what it can kill.
const LOW_PART: u64 = 20;

/// Runs until the node stops. A report that fails is made up for by the next.
pub(crate) async fn reporter(node: Arc<Shared>) {
    let mut failing = false;
    loop {
        let entry = entry(&node);
        failing = report(&node, &entry, failing).await;
        tokio::select! {
            () = node.stop.cancelled() => return,
            () = sleep(node.options.report_interval) => continue,
            () = progress(&node, &entry.templates) => continue,
            () = node.pool.changed.notified() => {}
        }
        tokio::select! {
            () = node.stop.cancelled() => return,
            () = sleep(DEBOUNCE) => {}
        }
    }
}

/// Resolves when a template that is being prepared has come further than what was reported.
async fn progress(node: &Shared, reported: &[NodeTemplate]) {
    // one that begins to be prepared is a change, of which a report tells
    if reported.iter().all(|template| template.state != TemplateState::Preparing) {
        return std::future::pending().await;
    }
    loop {
        sleep(PROGRESS).await;
        if node.templates.report() != reported {
            return;
        }
    }
}

async fn report(node: &Shared, entry: &NodeEntry, was_failing: bool) -> bool {
    let ttl = node.options.report_interval * REPORTS_PER_TTL;
    let error = match timeout(node.options.directory_deadline, node.directory.put_node(entry, ttl)).await {
        Ok(Ok(())) => {
            if was_failing {
                tracing::info!("node is reported to the directory again");
            }
            return false;
        }
        Ok(Err(error)) => chain(&error),
        Err(_) => "no answer in time".to_owned(),
    };
    if !was_failing {
        tracing::warn!(error, "failed to report the node to the directory; trying again");
    }
    true
}

fn entry(node: &Shared) -> NodeEntry {
    let counts = node.pool.counts();
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    NodeEntry {
        id: node.options.id,
        address: node.options.address.clone(),
        templates: node.templates.report(),
        ready: number(counts.ready),
        acquired: number(counts.acquired + counts.paused),
        paused: number(counts.paused),
        creating: number(counts.creating),
        capacity: number(node.options.pool_max),
        draining: node.is_draining(),
        low_memory: std::fs::read_to_string(MEMINFO).is_ok_and(|text| is_low(&text)),
    }
}

/// Whether a machine with this meminfo (proc_meminfo(5)) is short of memory. One that cannot be read is not.
fn is_low(meminfo: &str) -> bool {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    matches!((kib("MemAvailable"), kib("MemTotal")), (Some(left), Some(all)) if left < all / LOW_PART)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_low_when_a_twentieth_is_left() {
        let meminfo = |left: u64| format!("MemTotal:       100000 kB\nMemFree:  1 kB\nMemAvailable:   {left} kB\n");
        assert!(is_low(&meminfo(4999)));
        assert!(!is_low(&meminfo(5000)));
        assert!(!is_low("") && !is_low("MemTotal: x kB\nMemAvailable: 1 kB"));
    }
}
