//! `template add`: what is asked for, and waiting until it can be used.

use std::{
    io::{IsTerminal as _, Read as _},
    path::{Component, Path},
    pin::pin,
    process::ExitCode,
};

use anyhow::{Context as _, anyhow, bail};
use cloud_sandbox_model::ErrorKind;
use cloud_sandbox_proto::v1::{
    CreateTemplateRequest, DockerImageSource, FolderSource, HostSource, PullPolicy, RegistrySource, ResourceLimits,
    StartCommand, TarballSource, Template, TemplateSource, TemplateState, WatchTemplateRequest, WatchTemplateResponse,
    template_source::Source,
};
use cloud_sandbox_rpc::from_status;
use futures::{Stream, StreamExt as _};
use tonic::Status;

use super::{Client, failure, print, progress::Progress, reference, show::plain};
use crate::cli::template::{AddArgs, LimitArgs};

/// The longest password or token that is read.
const PASSWORD_MAX: u64 = 64 * 1024;

/// Creates the template, says what it is called now, and waits for it.
pub(super) async fn add(mut client: Client, wanted: &AddArgs) -> anyhow::Result<ExitCode> {
    let password = if wanted.password_stdin { read_password(std::io::stdin().lock())? } else { String::new() };
    let request = request(wanted, password)?;
    let created = client.create_template(request).await.map_err(|status| failure(&status))?.into_inner();
    let template = created.template.context("the server answered without a template")?;
    print(&format!("{}\n", reference(&template)))?;
    if wanted.no_wait {
        return Ok(ExitCode::SUCCESS);
    }
    wait(client, &reference(&template)).await
}

/// Shows how far the nodes are until sandboxes can be made, or none is at it any more.
async fn wait(mut client: Client, reference: &str) -> anyhow::Result<ExitCode> {
    let request = WatchTemplateRequest { name: reference.to_owned() };
    let watch = client.watch_template(request).await.map_err(|status| lost(reference, &status))?;
    let mut progress = Progress::new(reference, std::io::stderr().is_terminal());
    let ended = follow(watch.into_inner(), reference, |template| progress.show(template)).await;
    progress.end();
    let (text, code) = report(reference, &ended?);
    eprint!("{text}");
    Ok(code)
}

/// How it ended. Nodes that are slower than the first go on by themselves.
async fn follow(
    watch: impl Stream<Item = Result<WatchTemplateResponse, Status>>,
    reference: &str,
    mut show: impl FnMut(&Template),
) -> anyhow::Result<Template> {
    let mut watch = pin!(watch);
    let mut last = None;
    while let Some(seen) = watch.next().await {
        let Some(template) = seen.map_err(|status| lost(reference, &status))?.template else { continue };
        show(&template);
        if template.state() == TemplateState::Ready {
            return Ok(template);
        }
        last = Some(template);
    }
    last.with_context(|| format!("the server says nothing of {reference}"))
}

/// Why there is no more to hear of a template.
fn lost(reference: &str, status: &Status) -> anyhow::Error {
    if from_status(status).kind() == ErrorKind::NotFound {
        return anyhow!("{reference} was deleted before it was ready");
    }
    failure(status).context(format!("failed to hear more of {reference}, which goes on being prepared"))
}

/// Says how it ended.
fn report(reference: &str, template: &Template) -> (String, ExitCode) {
    let count = |state| template.nodes.iter().filter(|node| node.state() == state).count();
    let failed = template.nodes.iter().filter(|node| node.state() == TemplateState::Failed);
    let mut text: String =
        failed.map(|node| format!("{reference} failed on node {}: {}\n", node.node_id, plain(&node.detail))).collect();
    let code = match template.state() {
        TemplateState::Ready => {
            let rest = if count(TemplateState::Preparing) > 0 { "; the others go on" } else { "" };
            let (ready, all) = (count(TemplateState::Ready), template.nodes.len());
            text.push_str(&format!("{reference} is ready on {ready} of {all} nodes{rest}\n"));
            ExitCode::SUCCESS
        }
        TemplateState::Failed => ExitCode::FAILURE,
        TemplateState::Preparing | TemplateState::Unspecified => {
            text.push_str(&format!("no node is there to prepare {reference}; the next one will\n"));
            ExitCode::FAILURE
        }
    };
    (text, code)
}

fn request(wanted: &AddArgs, password: String) -> anyhow::Result<CreateTemplateRequest> {
    let start = wanted.start.as_ref().map(|command| StartCommand {
        command: command.clone(),
        ready_command: wanted.ready.clone().unwrap_or_default(),
        ready_seconds: wanted.ready_seconds.unwrap_or_default(),
    });
    Ok(CreateTemplateRequest {
        name: wanted.name.clone(),
        source: Some(TemplateSource { source: source(wanted, password)? }),
        runtimes: wanted.runtimes.clone(),
        limits: Some(limits(&wanted.limits)),
        languages: wanted.languages.clone(),
        warm_size: wanted.warm,
        start,
        env: wanted.env.iter().cloned().collect(),
        user: wanted.user.clone().unwrap_or_default(),
        writable_root: wanted.writable_root,
        request_id: String::new(),
    })
}

fn source(wanted: &AddArgs, password: String) -> anyhow::Result<Option<Source>> {
    let pull = match wanted.pull.as_deref() {
        Some("always") => PullPolicy::Always,
        Some("never") => PullPolicy::Never,
        _ => PullPolicy::Missing,
    };
    let (pull, username) = (pull.into(), wanted.username.clone().unwrap_or_default());
    let source = &wanted.source;
    if let Some(folder) = &source.folder {
        return Ok(Some(Source::Folder(FolderSource { path: absolute(folder)? })));
    }
    if let Some(archive) = &source.tarball {
        return Ok(Some(Source::Tarball(TarballSource { path: absolute(archive)? })));
    }
    if let Some(image) = source.docker_image.clone() {
        return Ok(Some(Source::DockerImage(DockerImageSource { image, pull, username, password })));
    }
    if let Some(image) = source.registry.clone() {
        let plain_http = wanted.plain_http;
        return Ok(Some(Source::Registry(RegistrySource { image, pull, username, password, plain_http })));
    }
    Ok(source.host.then_some(Source::Host(HostSource {})))
}

fn limits(wanted: &LimitArgs) -> ResourceLimits {
    ResourceLimits {
        memory_bytes: wanted.memory.unwrap_or_default(),
        cpu_millis: wanted.cpu_millis.unwrap_or_default(),
        pids: wanted.pids.unwrap_or_default(),
        disk_bytes: wanted.disk.unwrap_or_default(),
        open_files: wanted.open_files.unwrap_or_default(),
        output_bytes: wanted.output.unwrap_or_default(),
        execution_seconds: wanted.execution_seconds.unwrap_or_default(),
        cpu_weight: wanted.cpu_weight.unwrap_or_default(),
    }
}

/// The path as nodes are told it: from the root on, without a way up. It may be on another machine.
fn absolute(path: &Path) -> anyhow::Result<String> {
    let climbs = path.components().any(|part| part == Component::ParentDir);
    // where a way up leads depends on links, which only the file system knows
    let absolute = if climbs { path.canonicalize() } else { std::path::absolute(path) };
    let absolute = absolute.with_context(|| format!("failed to find {}", path.display()))?;
    let text = absolute.to_str().map(str::to_owned);
    text.with_context(|| format!("{} is not UTF-8 text", absolute.display()))
}

/// All of standard input, without the end of its line.
fn read_password(input: impl std::io::Read) -> anyhow::Result<String> {
    let mut text = String::new();
    input.take(PASSWORD_MAX + 1).read_to_string(&mut text).context("failed to read the password")?;
    if text.len() as u64 > PASSWORD_MAX {
        bail!("the password is longer than {PASSWORD_MAX} bytes");
    }
    let password = text.trim_end_matches(['\n', '\r']);
    if password.is_empty() {
        bail!("the password on standard input is empty");
    }
    Ok(password.to_owned())
}

#[cfg(test)]
mod tests {
    use cloud_sandbox_proto::v1::TemplateNode;
    use futures::stream;

    use super::*;
    use crate::cli::{Action, parse, template::TemplateAction};

    fn parsed(line: &str) -> AddArgs {
        let words = format!("cloud-sandbox template add {line}");
        let invocation = parse(words.split_whitespace().map(Into::into)).unwrap();
        let Some(Action::Template(template)) = invocation.cli.action else { panic!("not template") };
        let TemplateAction::Add(add) = template.action else { panic!("not add") };
        *add
    }

    fn template(state: TemplateState, nodes: &[(TemplateState, &str)]) -> Template {
        let node = |(state, detail): &(TemplateState, &str)| TemplateNode {
            node_id: "n".into(),
            state: (*state).into(),
            detail: (*detail).to_owned(),
            ..TemplateNode::default()
        };
        Template { state: state.into(), nodes: nodes.iter().map(node).collect(), ..Template::default() }
    }

    async fn followed(seen: Vec<Result<Template, Status>>) -> anyhow::Result<Template> {
        let seen = seen.into_iter().map(|seen| seen.map(|template| WatchTemplateResponse { template: Some(template) }));
        // the server has more to say, and takes its time
        follow(stream::iter(seen).chain(stream::pending()), "a@1", |_| {}).await
    }

    #[tokio::test]
    async fn waiting_ends_as_soon_as_one_node_is_ready() {
        use TemplateState::{Failed, Preparing, Ready};
        let begun = template(Preparing, &[(Preparing, ""), (Preparing, ""), (Preparing, "")]);
        let ready = template(Ready, &[(Ready, ""), (Preparing, ""), (Failed, "no\u{1b}[2J\nroom")]);
        let ended = followed(vec![Ok(begun), Ok(ready.clone())]).await.unwrap();
        assert_eq!(ended, ready);
        let (text, code) = report("a@1", &ended);
        assert_eq!(text, "a@1 failed on node n: no [2J room\na@1 is ready on 1 of 3 nodes; the others go on\n");
        assert_eq!(code, ExitCode::SUCCESS);
    }

    #[tokio::test]
    async fn template_that_is_deleted_meanwhile_is_not_said_to_go_on() {
        let begun = || Ok(template(TemplateState::Preparing, &[]));
        let error = followed(vec![begun(), Err(Status::not_found("template a@1 does not exist"))]).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "a@1 was deleted before it was ready");
        let error = followed(vec![begun(), Err(Status::unavailable("gone"))]).await.unwrap_err();
        assert!(format!("{error:#}").contains("goes on being prepared: gone"), "{error:#}");
    }

    #[test]
    fn every_word_of_the_command_line_reaches_the_request() {
        let line = "web --registry localhost:5000/web:1 --runtime docker+runsc --runtime linux --pull always \
                    --username ada --password-stdin --plain-http --memory 512MiB --cpu-millis 500 --pids 99 --disk 1GiB \
                    --open-files 64 --output 1MiB --execution-seconds 60 --cpu-weight 7 --warm 2 --start serve --ready check \
                    --ready-seconds 9 --env A=b=c --env D= --language python --user web --writable-root";
        let request = request(&parsed(line), "hunter2".into()).unwrap();
        let source = RegistrySource {
            image: "localhost:5000/web:1".into(),
            pull: PullPolicy::Always.into(),
            username: "ada".into(),
            password: "hunter2".into(),
            plain_http: true,
        };
        let limits = ResourceLimits {
            memory_bytes: 512 << 20,
            cpu_millis: 500,
            pids: 99,
            disk_bytes: 1 << 30,
            open_files: 64,
            output_bytes: 1 << 20,
            execution_seconds: 60,
            cpu_weight: 7,
        };
        let start = StartCommand { command: "serve".into(), ready_command: "check".into(), ready_seconds: 9 };
        let wanted = CreateTemplateRequest {
            name: "web".into(),
            source: Some(TemplateSource { source: Some(Source::Registry(source)) }),
            runtimes: vec!["docker+runsc".into(), "linux".into()],
            limits: Some(limits),
            languages: vec!["python".into()],
            warm_size: 2,
            start: Some(start),
            env: [("A".to_owned(), "b=c".to_owned()), ("D".to_owned(), String::new())].into(),
            user: "web".into(),
            writable_root: true,
            request_id: String::new(),
        };
        assert_eq!(request, wanted);
    }

    #[test]
    fn paths_are_told_from_the_root_on() {
        let folder = |line: &str| match source(&parsed(line), String::new()).unwrap() {
            Some(Source::Folder(folder)) => folder.path,
            Some(Source::Tarball(tarball)) => tarball.path,
            other => panic!("{other:?}"),
        };
        let here = std::env::current_dir().unwrap();
        assert_eq!(folder("a --folder rootfs"), here.join("rootfs").to_str().unwrap());
        assert_eq!(folder("a --tarball /srv/a.tar"), "/srv/a.tar");
        assert_eq!(folder("a --folder .."), here.parent().unwrap().to_str().unwrap());
        assert!(source(&parsed("a --folder ../nowhere"), String::new()).is_err());
    }

    #[test]
    fn contradictions_are_refused_before_anybody_is_asked() {
        for bad in [
            "a",
            "--folder /a",
            "a --folder /a --tarball /b",
            "a --folder /a --pull always",
            "a --docker-image x --plain-http",
            "a --docker-image x --username ada",
            "a --docker-image x --password-stdin",
            "a --docker-image x --ready true",
            "a --docker-image x --env A",
            "a --docker-image x --memory lots",
            "a --docker-image x --pull sometimes",
            "a --host --warm -1",
        ] {
            let words = format!("cloud-sandbox template add {bad}");
            assert!(parse(words.split_whitespace().map(Into::into)).is_err(), "{bad}");
        }
    }

    #[test]
    fn password_is_all_of_the_input_but_its_line_end() {
        assert_eq!(read_password(&b" hunter 2 \r\n"[..]).unwrap(), " hunter 2 ");
        for bad in [&b"\n"[..], b"", &vec![b'x'; 70_000], b"\xff"] {
            assert!(read_password(bad).is_err());
        }
    }
}
