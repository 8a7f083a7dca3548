//! How far nodes are with a template, made of what they report: pure.

use std::time::Duration;

use cloud_sandbox_model::{Error, ErrorKind, error::reason};
use cloud_sandbox_proto::v1;
use cloud_sandbox_storage::{NodeEntry, TemplateState};

const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The most characters of a node's reason that a caller is shown.
const REASON_MAX: usize = 500;

/// How far each node is. One that has not heard of a template that is to be everywhere has not begun.
pub(super) fn nodes_of(reference: &str, nodes: &[NodeEntry]) -> Vec<v1::TemplateNode> {
    let is_built_in = !reference.contains('@');
    let of = |node: &NodeEntry| {
        let node_id = node.id.to_string();
        if let Some(own) = node.templates.iter().find(|own| own.reference == reference) {
            return Some(v1::TemplateNode {
                node_id,
                state: word(own.state).into(),
                runtime: own.runtime.clone(),
                detail: own.detail.clone(),
                done_bytes: own.done_bytes,
                total_bytes: own.total_bytes,
            });
        }
        let will_be = !is_built_in && !node.draining;
        will_be.then(|| v1::TemplateNode {
            node_id,
            state: v1::TemplateState::Preparing.into(),
            ..v1::TemplateNode::default()
        })
    };
    nodes.iter().filter_map(of).collect()
}

const fn word(state: TemplateState) -> v1::TemplateState {
    match state {
        TemplateState::Preparing => v1::TemplateState::Preparing,
        TemplateState::Ready => v1::TemplateState::Ready,
        TemplateState::Failed => v1::TemplateState::Failed,
    }
}

/// Ready once any node has it ready, failed once each node has failed.
pub(super) fn state_of(nodes: &[v1::TemplateNode]) -> v1::TemplateState {
    let any = |state| nodes.iter().any(|node| node.state() == state);
    if any(v1::TemplateState::Ready) {
        v1::TemplateState::Ready
    } else if any(v1::TemplateState::Preparing) || nodes.is_empty() {
        v1::TemplateState::Preparing
    } else {
        v1::TemplateState::Failed
    }
}

/// Whether some node is still at it.
pub(super) fn is_preparing(nodes: &[v1::TemplateNode]) -> bool {
    nodes.iter().any(|node| node.state() == v1::TemplateState::Preparing)
}

/// Why no sandbox can be made from a template that there is and that no node has ready. Where a node lacks nothing but a
/// runtime, that may come back: this comes before what is wrong with the template on others.
pub(crate) fn why_not_ready(reference: &str, nodes: &[NodeEntry]) -> Error {
    if state_of(&nodes_of(reference, nodes)) == v1::TemplateState::Failed {
        let own: Vec<_> =
            nodes.iter().flat_map(|node| &node.templates).filter(|own| own.reference == reference).collect();
        if let Some(own) = own.iter().find(|own| own.runtime_unavailable) {
            let message = format!("no runtime of template {reference} is available: {}", shown(&own.detail));
            return Error::new(ErrorKind::Unavailable, reason::RUNTIME_UNAVAILABLE, message);
        }
        let why = own.iter().map(|own| shown(&own.detail)).find(|detail| !detail.is_empty());
        let why = why.as_deref().unwrap_or("its nodes do not say why");
        let message = format!("template {reference} could not be prepared: {why}");
        return Error::new(ErrorKind::FailedPrecondition, reason::TEMPLATE_FAILED, message);
    }
    let message = format!("template {reference} is still being prepared");
    Error::new(ErrorKind::Unavailable, reason::TEMPLATE_NOT_READY, message).with_retry_after(RETRY_AFTER)
}

/// A node's reason as callers see it.
fn shown(detail: &str) -> String {
    detail.chars().take(REASON_MAX).collect()
}

#[cfg(test)]
mod tests {
    use cloud_sandbox_model::NodeId;
    use cloud_sandbox_storage::NodeTemplate;

    use super::*;

    fn node(reported: &[(&str, TemplateState)]) -> NodeEntry {
        let template = |(reference, state): &(&str, TemplateState)| NodeTemplate {
            state: *state,
            detail: format!("{state:?}").to_lowercase(),
            ..NodeTemplate::ready(*reference, "linux")
        };
        NodeEntry {
            id: NodeId::generate(),
            address: String::new(),
            templates: reported.iter().map(template).collect(),
            ready: 0,
            acquired: 0,
            paused: 0,
            creating: 0,
            capacity: 9,
            draining: false,
            low_memory: false,
        }
    }

    #[test]
    fn ready_once_any_node_is_and_failed_once_all_are() {
        use TemplateState::{Failed, Preparing, Ready};
        for (states, whole) in [
            (&[Ready, Failed][..], v1::TemplateState::Ready),
            (&[Ready, Preparing], v1::TemplateState::Ready),
            (&[Failed, Preparing], v1::TemplateState::Preparing),
            (&[Failed, Failed], v1::TemplateState::Failed),
            (&[], v1::TemplateState::Preparing),
        ] {
            let nodes: Vec<_> = states.iter().map(|state| node(&[("a@1", *state)])).collect();
            let nodes = nodes_of("a@1", &nodes);
            assert_eq!(state_of(&nodes), whole, "{states:?}");
            assert_eq!(is_preparing(&nodes), states.contains(&Preparing), "{states:?}");
        }
    }

    #[test]
    fn node_that_has_not_heard_of_a_template_is_still_at_it_unless_it_drains() {
        let draining = NodeEntry { draining: true, ..node(&[]) };
        let nodes = [node(&[("a@1", TemplateState::Ready), ("host", TemplateState::Ready)]), node(&[]), draining];
        let states = |reference| -> Vec<_> { nodes_of(reference, &nodes).iter().map(|node| node.state()).collect() };
        assert_eq!(states("a@1"), [v1::TemplateState::Ready, v1::TemplateState::Preparing]);
        // one that is built in is where it is reported, and nowhere else
        assert_eq!(states("host"), [v1::TemplateState::Ready]);
        assert_eq!(states("a@2"), [v1::TemplateState::Preparing; 2]);
    }

    #[test]
    fn callers_hear_to_wait_or_why_it_failed() {
        let waiting = why_not_ready("a@1", &[node(&[("a@1", TemplateState::Failed)]), node(&[])]);
        assert_eq!((waiting.kind(), waiting.reason()), (ErrorKind::Unavailable, reason::TEMPLATE_NOT_READY));
        assert_eq!(waiting.retry_after(), Some(RETRY_AFTER));
        let failed = why_not_ready("a@1", &[node(&[("a@1", TemplateState::Failed)])]);
        assert_eq!((failed.kind(), failed.reason()), (ErrorKind::FailedPrecondition, reason::TEMPLATE_FAILED));
        assert!(failed.message().ends_with(": failed"), "{failed}");
        let mut away = node(&[("a@1", TemplateState::Failed), ("b@1", TemplateState::Failed)]);
        away.templates[0].runtime_unavailable = true;
        let nodes = [node(&[("a@1", TemplateState::Failed), ("b@1", TemplateState::Failed)]), away];
        let missing = why_not_ready("a@1", &nodes);
        assert_eq!((missing.kind(), missing.reason()), (ErrorKind::Unavailable, reason::RUNTIME_UNAVAILABLE));
        assert_eq!(why_not_ready("b@1", &nodes).reason(), reason::TEMPLATE_FAILED);
    }
}
