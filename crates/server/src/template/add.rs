//! `template add`: what is asked for, and waiting until it can be used.

use std::{
    io::{IsTerminal as _, Read as _},
    path::{Component, Path},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use cloud_sandbox_proto::v1::{
    CreateTemplateRequest, DockerImageSource, FolderSource, HostSource, PullPolicy, RegistrySource, ResourceLimits,
    StartCommand, TarballSource, Template, TemplateSource, TemplateState, WatchTemplateRequest,
    template_source::Source,
};

use super::{Client, failure, print, progress::Progress, reference};
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

/// Shows how far the nodes are until none is at it any more.
async fn wait(mut client: Client, reference: &str) -> anyhow::Result<ExitCode> {
    let request = WatchTemplateRequest { name: reference.to_owned() };
    let going_on = || format!("failed to hear more of {reference}, which goes on being prepared");
    let watch = client.watch_template(request).await.map_err(|status| failure(&status));
    let mut watch = watch.with_context(going_on)?.into_inner();
    let mut progress = Progress::new(reference, std::io::stderr().is_terminal());
    let mut last = None;
    loop {
        match watch.message().await {
            Ok(Some(message)) => {
                let Some(template) = message.template else { continue };
                progress.show(&template);
                last = Some(template);
            }
            Ok(None) => break,
            Err(status) => {
                progress.end();
                return Err(failure(&status)).with_context(going_on);
            }
        }
    }
    progress.end();
    Ok(report(reference, &last.with_context(going_on)?))
}

/// Says how it ended.
fn report(reference: &str, template: &Template) -> ExitCode {
    for node in template.nodes.iter().filter(|node| node.state() == TemplateState::Failed) {
        eprintln!("{reference} failed on node {}: {}", node.node_id, node.detail);
    }
    match template.state() {
        TemplateState::Ready => {
            let ready = template.nodes.iter().filter(|node| node.state() == TemplateState::Ready).count();
            eprintln!("{reference} is ready on {ready} of {} nodes", template.nodes.len());
            ExitCode::SUCCESS
        }
        TemplateState::Failed => ExitCode::FAILURE,
        TemplateState::Preparing | TemplateState::Unspecified => {
            eprintln!("no node is there to prepare {reference}; the next one will");
            ExitCode::FAILURE
        }
    }
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
    use super::*;
    use crate::cli::{Action, parse, template::TemplateAction};

    fn parsed(line: &str) -> AddArgs {
        let words = format!("cloud-sandbox template add {line}");
        let invocation = parse(words.split_whitespace().map(Into::into)).unwrap();
        let Some(Action::Template(template)) = invocation.cli.action else { panic!("not template") };
        let TemplateAction::Add(add) = template.action else { panic!("not add") };
        *add
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
