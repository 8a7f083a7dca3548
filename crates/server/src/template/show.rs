//! Templates for people to read.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use cloud_sandbox_proto::v1::{
    PullPolicy, ResourceLimits, Template, TemplateNode, TemplateState, template_source::Source,
};

use super::reference;

/// One line for each.
pub(super) fn table(templates: &[Template]) -> String {
    let mut rows = vec![["TEMPLATE", "STATE", "NODES", "RUNTIMES", "SOURCE"].map(str::to_owned)];
    rows.extend(templates.iter().map(|template| {
        let ready = template.nodes.iter().filter(|node| node.state() == TemplateState::Ready).count();
        [
            reference(template),
            word(template.state()).to_owned(),
            format!("{ready}/{}", template.nodes.len()),
            template.runtimes.join(","),
            source(template),
        ]
    }));
    aligned(&rows)
}

/// All of one.
pub(super) fn whole(template: &Template) -> String {
    let mut lines = vec![
        ("template", reference(template)),
        ("state", word(template.state()).to_owned()),
        ("source", source(template)),
        ("runtimes", template.runtimes.join(", ")),
    ];
    lines.extend(limits(template.limits.unwrap_or_default()));
    let mut more = |name, text: String| {
        if !text.is_empty() {
            lines.push((name, text));
        }
    };
    more("languages", template.languages.join(", "));
    more("warm", if template.warm_size == 0 { String::new() } else { template.warm_size.to_string() });
    if let Some(start) = &template.start {
        more("start", start.command.clone());
        more("ready", start.ready_command.clone());
        more("ready within", format!("{} s", start.ready_seconds));
    }
    let mut env: Vec<_> = template.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    env.sort();
    more("env", env.join(" "));
    more("user", template.user.clone());
    more("writable root", if template.writable_root { "yes".to_owned() } else { String::new() });
    more("created", template.create_time.map(|time| created(time.seconds)).unwrap_or_default());
    let mut text = String::new();
    for (name, value) in lines {
        // writing to a String does not fail
        _ = writeln!(text, "{name:<18}{}", plain(&value));
    }
    if !template.nodes.is_empty() {
        let mut rows = vec![["NODE", "STATE", "RUNTIME", "DETAIL"].map(str::to_owned)];
        rows.extend(
            template
                .nodes
                .iter()
                .map(|node| [node.node_id.clone(), word(node.state()).to_owned(), node.runtime.clone(), detail(node)]),
        );
        _ = write!(text, "\n{}", aligned(&rows));
    }
    text
}

fn detail(node: &TemplateNode) -> String {
    match (node.done_bytes, node.total_bytes) {
        (0, 0) => node.detail.clone(),
        (done, 0) => format!("{} ({done} bytes)", node.detail),
        (done, total) => format!("{} ({done} of {total} bytes)", node.detail),
    }
}

const fn word(state: TemplateState) -> &'static str {
    match state {
        TemplateState::Ready => "ready",
        TemplateState::Failed => "failed",
        TemplateState::Preparing => "preparing",
        TemplateState::Unspecified => "unknown",
    }
}

fn source(template: &Template) -> String {
    let of_image = |kind: &str, image: &str, pull: i32, username: &str| {
        let pull = match PullPolicy::try_from(pull) {
            Ok(PullPolicy::Always) => ", pulled always",
            Ok(PullPolicy::Never) => ", never pulled",
            _ => "",
        };
        let by = if username.is_empty() { String::new() } else { format!(", as {username}") };
        format!("{kind} {image}{pull}{by}")
    };
    match template.source.as_ref().and_then(|source| source.source.as_ref()) {
        Some(Source::Host(_)) => "host".to_owned(),
        Some(Source::Folder(folder)) => format!("folder {}", folder.path),
        Some(Source::Tarball(archive)) => format!("tarball {}", archive.path),
        Some(Source::DockerImage(image)) => of_image("docker image", &image.image, image.pull, &image.username),
        Some(Source::Registry(image)) => of_image("registry", &image.image, image.pull, &image.username),
        None => "-".to_owned(),
    }
}

fn limits(limits: ResourceLimits) -> impl Iterator<Item = (&'static str, String)> {
    let known = [
        ("memory_bytes", limits.memory_bytes),
        ("cpu_millis", limits.cpu_millis.into()),
        ("pids", limits.pids.into()),
        ("disk_bytes", limits.disk_bytes),
        ("open_files", limits.open_files.into()),
        ("output_bytes", limits.output_bytes),
        ("execution_seconds", limits.execution_seconds.into()),
        ("cpu_weight", limits.cpu_weight.into()),
    ];
    known.into_iter().filter(|(_, limit)| *limit > 0).map(|(name, limit)| (name, limit.to_string()))
}

/// How long ago, in the largest unit that says enough.
fn created(seconds: i64) -> String {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let ago = SystemTime::now().duration_since(then).unwrap_or_default().as_secs();
    match ago {
        0..120 => format!("{ago} seconds ago"),
        120..7200 => format!("{} minutes ago", ago / 60),
        7200..172_800 => format!("{} hours ago", ago / 3600),
        _ => format!("{} days ago", ago / 86_400),
    }
}

/// What came from outside must not steer a terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Rows in columns, two blanks between.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<_> = rows.iter().map(|row| row.each_ref().map(|cell| plain(cell))).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use cloud_sandbox_proto::v1::{DockerImageSource, TemplateSource};

    use super::*;

    fn template() -> Template {
        let image = DockerImageSource {
            image: "python:3.11-slim".into(),
            pull: PullPolicy::Always.into(),
            username: "ada".into(),
            ..Default::default()
        };
        let node = |id: &str, state: TemplateState| TemplateNode {
            node_id: id.into(),
            state: state.into(),
            runtime: "docker".into(),
            detail: "a\u{1b}[2Jb".into(),
            ..Default::default()
        };
        Template {
            name: "python".into(),
            version: 3,
            source: Some(TemplateSource { source: Some(Source::DockerImage(image)) }),
            runtimes: vec!["docker+runsc".into(), "linux".into()],
            limits: Some(ResourceLimits { pids: 99, ..Default::default() }),
            env: [("B".to_owned(), "2".to_owned()), ("A".to_owned(), "1".to_owned())].into(),
            state: TemplateState::Ready.into(),
            nodes: vec![node("nd1", TemplateState::Ready), node("nd2", TemplateState::Failed)],
            ..Default::default()
        }
    }

    #[test]
    fn list_is_a_table() {
        let host = Template { name: "host".into(), runtimes: vec!["linux".into()], ..Default::default() };
        assert_eq!(
            table(&[host, template()]),
            "TEMPLATE  STATE    NODES  RUNTIMES            SOURCE\n\
             host      unknown  0/0    linux               -\n\
             python@3  ready    1/2    docker+runsc,linux  docker image python:3.11-slim, pulled always, as ada\n"
        );
    }

    #[test]
    fn whole_template_is_told_line_by_line_and_steers_no_terminal() {
        let text = whole(&template());
        assert!(text.starts_with("template          python@3\nstate             ready\n"), "{text}");
        assert!(text.contains("\npids              99\nenv               A=1 B=2\n\nNODE"), "{text}");
        assert!(text.contains("nd2   failed  docker   a [2Jb\n") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn age_is_told_in_a_unit_that_says_enough() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let ago = |seconds: u64| created(i64::try_from(now - seconds).unwrap());
        assert_eq!(ago(600), "10 minutes ago");
        assert_eq!(ago(3 * 86_400 + 60), "3 days ago");
        assert!(ago(0).ends_with("seconds ago"));
    }
}
