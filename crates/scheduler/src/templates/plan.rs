//! Which nodes have to be told the templates: pure, but for the time that it is given.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use cloud_sandbox_model::NodeId;
use cloud_sandbox_storage::NodeEntry;
use tokio::time::Instant;

/// How long a node that was told may take to report what it was told.
const REPORT_WITHIN: Duration = Duration::from_secs(10);
const AGAIN_AFTER: Duration = Duration::from_secs(1);
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(30);

/// What nodes have been told.
#[derive(Debug, Default)]
pub(super) struct Plan(HashMap<NodeId, Told>);

#[derive(Debug)]
struct Told {
    /// the revision that it has taken; none yet when `None`
    revision: Option<u64>,
    /// it is being told now
    in_flight: bool,
    /// not to be told again before
    not_before: Instant,
    /// how often in a row it could not be told
    failures: u32,
}

impl Plan {
    /// The nodes to tell now, at most `room` of them, which count as being told from here on.
    pub(super) fn due(
        &mut self,
        nodes: &[NodeEntry],
        revision: u64,
        references: &BTreeSet<String>,
        now: Instant,
        room: usize,
    ) -> Vec<NodeId> {
        self.0.retain(|id, told| told.in_flight || nodes.iter().any(|node| node.id == *id));
        let mut due = Vec::new();
        for node in nodes.iter().filter(|node| !node.draining) {
            if due.len() >= room {
                break;
            }
            let first = Told { revision: None, in_flight: false, not_before: now, failures: 0 };
            let told = self.0.entry(node.id).or_insert(first);
            let is_new = told.revision != Some(revision);
            // after a failure each has its pause; else only what was told already has to show first
            let waits = told.in_flight || (now < told.not_before && (told.failures > 0 || !is_new));
            if !waits && (is_new || !reports(node, references)) {
                told.in_flight = true;
                due.push(node.id);
            }
        }
        due
    }

    /// Notes that a node has taken a revision, or could not be told. Whether it is the first failure in a row.
    pub(super) fn told(&mut self, node: NodeId, revision: Option<u64>, now: Instant) -> bool {
        let Some(told) = self.0.get_mut(&node) else { return false };
        told.in_flight = false;
        match revision {
            Some(revision) => {
                told.revision = Some(revision);
                told.failures = 0;
                told.not_before = now + REPORT_WITHIN;
                false
            }
            None => {
                let pause = AGAIN_AFTER.saturating_mul(1 << told.failures.min(8));
                told.failures = told.failures.saturating_add(1);
                told.not_before = now + pause.min(AGAIN_AFTER_MAX);
                told.failures == 1
            }
        }
    }
}

/// Whether a node reports these templates beside those that are built in, and no others.
fn reports(node: &NodeEntry, references: &BTreeSet<String>) -> bool {
    let own = node.templates.iter().map(|own| &own.reference).filter(|reference| reference.contains('@'));
    own.collect::<BTreeSet<_>>().into_iter().eq(references)
}

#[cfg(test)]
mod tests {
    use cloud_sandbox_storage::NodeTemplate;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn node(references: &[&str]) -> NodeEntry {
        NodeEntry {
            id: NodeId::generate(),
            address: String::new(),
            templates: references.iter().map(|reference| NodeTemplate::ready(*reference, "linux")).collect(),
            ready: 0,
            acquired: 0,
            paused: 0,
            creating: 0,
            capacity: 9,
            draining: false,
            low_memory: false,
        }
    }

    fn list(references: &[&str]) -> BTreeSet<String> {
        references.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn node_is_told_once_and_again_only_when_something_changes() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        let mut node = node(&["host"]);
        let all = list(&["a@1"]);
        let due = |plan: &mut Plan, node: &NodeEntry, revision, now| {
            plan.due(std::slice::from_ref(node), revision, &all, now, 9).len()
        };
        assert_eq!(due(&mut plan, &node, 1, now), 1);
        assert_eq!(due(&mut plan, &node, 2, now), 0, "it is being told");
        assert!(!plan.told(node.id, Some(1), now));
        assert_eq!(due(&mut plan, &node, 2, now), 1, "the list has changed meanwhile");
        plan.told(node.id, Some(2), now);
        assert_eq!(due(&mut plan, &node, 2, now + SECOND), 0, "it has time to report");
        assert_eq!(due(&mut plan, &node, 2, now + 11 * SECOND), 1, "it reports something else");
        plan.told(node.id, Some(2), now);
        node.templates.push(NodeTemplate::ready("a@1", "linux"));
        assert_eq!(due(&mut plan, &node, 2, now + 99 * SECOND), 0);
    }

    #[test]
    fn node_that_cannot_be_told_is_tried_less_and_less_often() {
        let (mut plan, mut now) = (Plan::default(), Instant::now());
        let node = node(&[]);
        let due = |plan: &mut Plan, now| plan.due(std::slice::from_ref(&node), 1, &list(&[]), now, 9).len();
        for (failures, pause) in [1, 2, 4, 8, 16, 30, 30].into_iter().enumerate() {
            assert_eq!(due(&mut plan, now), 1);
            assert_eq!(plan.told(node.id, None, now), failures == 0);
            assert_eq!(due(&mut plan, now + SECOND * pause - Duration::from_millis(1)), 0);
            now += SECOND * pause;
        }
        assert_eq!(due(&mut plan, now), 1);
        plan.told(node.id, Some(1), now);
        assert_eq!(due(&mut plan, now + 99 * SECOND), 0);
    }

    #[test]
    fn draining_nodes_are_left_alone_and_only_so_many_are_told_at_once() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        let draining = NodeEntry { draining: true, ..node(&[]) };
        let nodes = [draining, node(&[]), node(&[]), node(&[])];
        assert_eq!(plan.due(&nodes, 1, &list(&[]), now, 2), [nodes[1].id, nodes[2].id]);
        assert_eq!(plan.due(&nodes, 1, &list(&[]), now, 2), [nodes[3].id]);
        assert_eq!(plan.due(&nodes, 1, &list(&[]), now, 0), []);
    }
}
