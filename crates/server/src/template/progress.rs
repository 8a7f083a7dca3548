//! How far nodes are, on one line that is written anew on a terminal, and as a line for each step elsewhere.

use std::{
    collections::HashMap,
    io::{IsTerminal as _, Write as _, stderr},
};

use cloud_sandbox_proto::v1::{Template, TemplateNode, TemplateState};

use super::show::plain;

/// Goes to the line's begin and clears it (ECMA-48: EL).
const ANEW: &str = "\r\x1b[K";

/// Shows how far the nodes are with a template.
pub(super) struct Progress {
    reference: String,
    on_terminal: bool,
    /// the last line of each node, where each step has a line of its own
    told: HashMap<String, String>,
}

impl Progress {
    pub(super) fn new(reference: &str, on_terminal: bool) -> Self {
        Self { reference: reference.to_owned(), on_terminal, told: HashMap::new() }
    }

    /// Shows the template as it is now. A terminal that is gone is not worth an error.
    pub(super) fn show(&mut self, template: &Template) {
        let text = if self.on_terminal {
            format!("{ANEW}{}", line(&self.reference, &template.nodes))
        } else {
            self.steps(&template.nodes)
        };
        _ = stderr().write_all(text.as_bytes());
        _ = stderr().flush();
    }

    /// Clears the line.
    pub(super) fn end(&self) {
        if self.on_terminal {
            _ = stderr().write_all(ANEW.as_bytes());
        }
    }

    /// A line for each node that does something else than before.
    fn steps(&mut self, nodes: &[TemplateNode]) -> String {
        let mut text = String::new();
        for node in nodes {
            let step = step(node);
            if self.told.insert(node.node_id.clone(), step.clone()).as_ref() != Some(&step) {
                text.push_str(&format!("{}: node {}: {step}\n", self.reference, node.node_id));
            }
        }
        text
    }
}

/// Leaves the line as it is and begins the next one.
pub(super) fn end_line() {
    if stderr().is_terminal() {
        _ = stderr().write_all(b"\n");
    }
}

/// The nodes that have ended, and what the one that is furthest among the others does.
fn line(reference: &str, nodes: &[TemplateNode]) -> String {
    let at_it = nodes.iter().filter(|node| node.state() == TemplateState::Preparing);
    let furthest = at_it.max_by_key(|node| node.done_bytes);
    let now = furthest.map(|node| {
        let bytes = match (node.done_bytes, node.total_bytes) {
            (0, 0) => String::new(),
            (done, 0) => format!(" {}", mebibytes(done)),
            (done, total) => {
                let percent = u128::from(done.min(total)) * 100 / u128::from(total);
                format!(" {} of {} ({percent} %)", mebibytes(done), mebibytes(total))
            }
        };
        format!("{}{bytes}", step(node))
    });
    let ready = nodes.iter().filter(|node| node.state() == TemplateState::Ready).count();
    let ended = if nodes.len() > 1 { format!(", ready on {ready} of {} nodes", nodes.len()) } else { String::new() };
    // no longer than a line of an ordinary terminal: what wraps cannot be cleared
    let text = format!("{reference}: {}{ended}", now.as_deref().unwrap_or("done"));
    text.chars().filter(|c| !c.is_control()).take(79).collect()
}

fn step(node: &TemplateNode) -> String {
    match node.state() {
        TemplateState::Ready if node.runtime.is_empty() => "ready".to_owned(),
        TemplateState::Ready => format!("ready on {}", node.runtime),
        TemplateState::Failed => format!("failed: {}", plain(&node.detail)),
        TemplateState::Preparing | TemplateState::Unspecified if node.detail.is_empty() => "waiting".to_owned(),
        TemplateState::Preparing | TemplateState::Unspecified => plain(&node.detail),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, state: TemplateState, detail: &str, done: u64, total: u64) -> TemplateNode {
        TemplateNode {
            node_id: id.into(),
            state: state.into(),
            runtime: if state == TemplateState::Ready { "docker".into() } else { String::new() },
            detail: detail.into(),
            done_bytes: done,
            total_bytes: total,
        }
    }

    #[test]
    fn line_tells_what_the_furthest_node_does_and_how_many_are_ready() {
        use TemplateState::{Preparing, Ready};
        assert_eq!(line("a@1", &[node("x", Preparing, "", 0, 0)]), "a@1: waiting");
        assert_eq!(line("a@1", &[node("x", Preparing, "pulling", 1_572_864, 0)]), "a@1: pulling 1.5 MiB");
        let nodes = [
            node("x", Preparing, "pulling", 1, 9),
            node("y", Preparing, "unpacking", 1 << 20, 4 << 20),
            node("z", Ready, "", 0, 0),
        ];
        assert_eq!(line("a@1", &nodes), "a@1: unpacking 1.0 MiB of 4.0 MiB (25 %), ready on 1 of 3 nodes");
        let long = line("a@1", &[node("x", Preparing, &"long\u{1b}[2J".repeat(99), 0, 0)]);
        assert!(long.len() < 80 && !long.contains('\u{1b}'), "{long}");
    }

    #[test]
    fn each_step_of_a_node_is_one_line() {
        use TemplateState::{Failed, Preparing, Ready};
        let mut progress = Progress::new("a@1", false);
        assert_eq!(progress.steps(&[node("x", Preparing, "pulling", 0, 9)]), "a@1: node x: pulling\n");
        assert_eq!(progress.steps(&[node("x", Preparing, "pulling", 5, 9)]), "");
        let ended = [node("x", Ready, "", 0, 0), node("y", Failed, "no\u{1b}[2J such\nimage", 0, 0)];
        let told = progress.steps(&ended);
        assert_eq!(told, "a@1: node x: ready on docker\na@1: node y: failed: no [2J such image\n");
    }
}
