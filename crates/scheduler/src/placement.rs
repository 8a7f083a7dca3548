//! Where a sandbox should be made: a pure function of what the nodes last reported.

use std::cmp::Reverse;

use cloud_sandbox_model::NodeId;
use cloud_sandbox_storage::{NodeEntry, TemplateState};

/// What is to be placed.
#[derive(Debug, Clone, Copy)]
pub struct PlacementRequest<'a> {
    /// the template the sandbox is made from
    pub template: &'a str,
    /// nodes that have been tried in vain
    pub excluded: &'a [NodeId],
}

/// The nodes that could host the sandbox, the best first: those with warm sandboxes before those without, then those
/// with more free room for their size, then by id.
///
/// A node that reports itself full is ranked last, not left out: a report is seconds old, and the node decides.
#[must_use]
pub fn place(nodes: &[NodeEntry], request: &PlacementRequest<'_>) -> Vec<NodeId> {
    let fits =
        |node: &&NodeEntry| !node.draining && !request.excluded.contains(&node.id) && offers(node, request.template);
    let mut ranked: Vec<_> = nodes.iter().filter(fits).collect();
    ranked.sort_by_key(|node| (Reverse(node.ready > 0), Reverse(free_millionths(node)), node.id));
    ranked.into_iter().map(|node| node.id).collect()
}

/// Whether the node can make sandboxes from `template`.
#[must_use]
pub fn offers(node: &NodeEntry, template: &str) -> bool {
    node.templates.iter().any(|own| own.reference == template && own.state == TemplateState::Ready)
}

/// The part of a node's capacity that nobody owns, in millionths. What is warm counts as free: it waits for owners.
fn free_millionths(node: &NodeEntry) -> u64 {
    let taken = u64::from(node.acquired) + u64::from(node.creating);
    let free = u64::from(node.capacity).saturating_sub(taken);
    (free * 1_000_000).checked_div(u64::from(node.capacity)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use cloud_sandbox_storage::NodeTemplate;

    use super::*;

    fn node(ready: u32, acquired: u32, capacity: u32) -> NodeEntry {
        NodeEntry {
            id: NodeId::generate(),
            address: String::new(),
            templates: vec![NodeTemplate::ready("host", "linux")],
            ready,
            acquired,
            paused: 0,
            creating: 0,
            capacity,
            draining: false,
            low_memory: false,
        }
    }

    fn placed(nodes: &[NodeEntry]) -> Vec<NodeId> {
        place(nodes, &PlacementRequest { template: "host", excluded: &[] })
    }

    #[test]
    fn warm_node_comes_before_an_emptier_cold_one() {
        let (cold, warm) = (node(0, 0, 10), node(1, 8, 10));
        assert_eq!(placed(&[cold.clone(), warm.clone()]), [warm.id, cold.id]);
    }

    #[test]
    fn of_two_warm_nodes_the_emptier_for_its_size_comes_first() {
        let (small, large) = (node(1, 1, 10), node(1, 40, 100));
        assert_eq!(placed(&[large.clone(), small.clone()]), [small.id, large.id]);
    }

    #[test]
    fn full_node_comes_last_and_node_without_capacity_does_no_harm() {
        let (full, none, free) = (node(0, 10, 10), node(0, 0, 0), node(0, 9, 10));
        let placed = placed(&[full, none, free.clone()]);
        assert_eq!((placed.len(), placed[0]), (3, free.id));
    }

    #[test]
    fn draining_excluded_and_unsuited_nodes_are_left_out() {
        let draining = NodeEntry { draining: true, ..node(1, 0, 9) };
        let unsuited = NodeEntry { templates: vec![NodeTemplate::ready("python@1", "linux")], ..node(1, 0, 9) };
        let (tried, good) = (node(1, 0, 9), node(0, 8, 9));
        let request = PlacementRequest { template: "host", excluded: &[tried.id] };
        assert_eq!(place(&[draining, unsuited, tried, good.clone()], &request), [good.id]);
    }

    prop_compose! {
        fn any_node()(
            (ready, acquired, creating, capacity) in (0_u32..5, any::<u32>(), 0_u32..5, any::<u32>()),
            (draining, suited) in any::<(bool, bool)>(),
        ) -> NodeEntry {
            let templates = if suited { vec![NodeTemplate::ready("host", "linux")] } else { vec![] };
            NodeEntry { creating, draining, templates, ..node(ready, acquired, capacity) }
        }
    }

    proptest! {
        #[test]
        fn exactly_the_nodes_that_fit_are_ranked_once(nodes in proptest::collection::vec(any_node(), 0..20)) {
            let mut ranked = placed(&nodes);
            ranked.sort();
            let mut fit: Vec<_> = nodes.iter().filter(|n| !n.draining && offers(n, "host")).map(|n| n.id).collect();
            fit.sort();
            prop_assert_eq!(ranked, fit);
        }

        #[test]
        fn order_of_the_reports_does_not_matter(
            nodes in proptest::collection::vec(any_node(), 0..20).prop_shuffle(),
        ) {
            let mut sorted = nodes.clone();
            sorted.sort_by_key(|node| node.id);
            prop_assert_eq!(placed(&nodes), placed(&sorted));
        }

        #[test]
        fn excluding_the_best_makes_the_second_the_best(nodes in proptest::collection::vec(any_node(), 0..20)) {
            let ranked = placed(&nodes);
            if let Some((best, rest)) = ranked.split_first() {
                let without = place(&nodes, &PlacementRequest { template: "host", excluded: &[*best] });
                prop_assert_eq!(without.as_slice(), rest);
            }
        }

        #[test]
        fn a_warm_node_never_comes_after_a_cold_one(nodes in proptest::collection::vec(any_node(), 0..20)) {
            let ready = |id: &NodeId| nodes.iter().any(|node| node.id == *id && node.ready > 0);
            prop_assert!(placed(&nodes).iter().map(ready).is_sorted_by(|first, then| first >= then));
        }
    }
}
