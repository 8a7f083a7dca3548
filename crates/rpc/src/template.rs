//! Templates as messages.

use cloud_sandbox_model::{
    Error, Limits, Result, Template,
    input::Violations,
    template::{
        Credentials, Image, PullPolicy, READY_SECONDS_DEFAULT, RUNTIME_RULE, RuntimeName, Source, StartCommand,
    },
};
use cloud_sandbox_proto::v1;

use crate::limits::{limits_message, limits_of};

/// The template that a request describes, as version `version` of its name. The error names every broken rule.
pub fn requested_template(request: &v1::CreateTemplateRequest, version: u32) -> Result<Template> {
    let template = read(v1::Template {
        name: request.name.clone(),
        version,
        source: request.source.clone(),
        runtimes: request.runtimes.clone(),
        limits: request.limits,
        languages: request.languages.clone(),
        warm_size: request.warm_size,
        start: request.start.clone(),
        env: request.env.clone(),
        user: request.user.clone(),
        writable_root: request.writable_root,
        ..v1::Template::default()
    })?;
    template.check()?;
    Ok(template)
}

/// The template in a message of the control plane's own, which has checked it.
pub fn read(message: v1::Template) -> Result<Template> {
    let mut violations = Violations::default();
    let source = violations.take(source(message.source));
    let runtimes: Option<Vec<_>> = violations.take(runtimes(&message.runtimes));
    violations.finish()?;
    let (Some(source), Some(mut runtimes)) = (source, runtimes) else {
        return Err(Error::internal("read a template", "it breaks a rule that no violation names"));
    };
    if runtimes.is_empty() {
        runtimes.push(source.default_runtime());
    }
    Ok(Template {
        name: message.name,
        version: message.version,
        source,
        runtimes,
        limits: message.limits.map_or(Limits::UNSET, limits_of),
        languages: message.languages,
        warm_size: message.warm_size,
        start: message.start.map(start),
        env: message.env.into_iter().collect(),
        user: message.user,
        writable_root: message.writable_root,
    })
}

/// A template as the contract has it, without its password unless it is for a node.
#[must_use]
pub fn template_message(template: &Template, with_password: bool) -> v1::Template {
    v1::Template {
        name: template.name.clone(),
        version: template.version,
        source: Some(source_message(&template.source, with_password)),
        runtimes: template.runtimes.iter().map(ToString::to_string).collect(),
        limits: Some(limits_message(template.limits)),
        languages: template.languages.clone(),
        warm_size: template.warm_size,
        start: template.start.as_ref().map(|start| v1::StartCommand {
            command: start.command.clone(),
            ready_command: start.ready_command.clone(),
            ready_seconds: start.ready_seconds,
        }),
        env: template.env.clone().into_iter().collect(),
        user: template.user.clone(),
        writable_root: template.writable_root,
        ..v1::Template::default()
    }
}

fn start(message: v1::StartCommand) -> StartCommand {
    let v1::StartCommand { command, ready_command, ready_seconds } = message;
    let ready_seconds = if ready_seconds == 0 { READY_SECONDS_DEFAULT } else { ready_seconds };
    StartCommand { command, ready_command, ready_seconds }
}

fn runtimes(names: &[String]) -> Result<Vec<RuntimeName>> {
    let mut violations = Violations::default();
    let read = names.iter().enumerate().filter_map(|(index, name)| {
        let runtime = name.parse().map_err(|_| Error::invalid(format!("runtimes[{index}]"), RUNTIME_RULE));
        violations.take(runtime)
    });
    let read = read.collect();
    violations.finish()?;
    Ok(read)
}

fn source(message: Option<v1::TemplateSource>) -> Result<Source> {
    use v1::template_source::Source as Message;
    let rule = "must be one of host, folder, tarball, docker_image and registry";
    match message.and_then(|message| message.source).ok_or_else(|| Error::invalid("source", rule))? {
        Message::Host(_) => Ok(Source::Host),
        Message::Folder(folder) => Ok(Source::Folder { path: folder.path.into() }),
        Message::Tarball(tarball) => Ok(Source::Tarball { path: tarball.path.into() }),
        Message::DockerImage(v1::DockerImageSource { image, pull, username, password }) => {
            image_of("source.docker_image", image, pull, username, password).map(Source::DockerImage)
        }
        Message::Registry(v1::RegistrySource { image, pull, username, password, plain_http }) => {
            let image = image_of("source.registry", image, pull, username, password)?;
            Ok(Source::Registry { image, plain_http })
        }
    }
}

fn image_of(field: &str, image: String, pull: i32, username: String, password: String) -> Result<Image> {
    let pull = match v1::PullPolicy::try_from(pull) {
        Ok(v1::PullPolicy::Unspecified | v1::PullPolicy::Missing) => PullPolicy::Missing,
        Ok(v1::PullPolicy::Always) => PullPolicy::Always,
        Ok(v1::PullPolicy::Never) => PullPolicy::Never,
        Err(_) => return Err(Error::invalid(format!("{field}.pull"), "must be missing, always or never")),
    };
    let given = !username.is_empty() || !password.is_empty();
    Ok(Image { image, pull, credentials: given.then_some(Credentials { username, password }) })
}

fn source_message(source: &Source, with_password: bool) -> v1::TemplateSource {
    use v1::template_source::Source as Message;
    let of = |image: &Image| {
        let pull = match image.pull {
            PullPolicy::Missing => v1::PullPolicy::Missing,
            PullPolicy::Always => v1::PullPolicy::Always,
            PullPolicy::Never => v1::PullPolicy::Never,
        };
        let (username, password) =
            image.credentials.clone().map_or_else(Default::default, |known| (known.username, known.password));
        (image.image.clone(), pull.into(), username, if with_password { password } else { String::new() })
    };
    let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let message = match source {
        Source::Host => Message::Host(v1::HostSource {}),
        Source::Folder { path: folder } => Message::Folder(v1::FolderSource { path: path(folder) }),
        Source::Tarball { path: archive } => Message::Tarball(v1::TarballSource { path: path(archive) }),
        Source::DockerImage(image) => {
            let (image, pull, username, password) = of(image);
            Message::DockerImage(v1::DockerImageSource { image, pull, username, password })
        }
        Source::Registry { image, plain_http } => {
            let (image, pull, username, password) = of(image);
            Message::Registry(v1::RegistrySource { image, pull, username, password, plain_http: *plain_http })
        }
    };
    v1::TemplateSource { source: Some(message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> v1::CreateTemplateRequest {
        let image = v1::DockerImageSource {
            image: "python:3.11-slim".into(),
            pull: v1::PullPolicy::Always.into(),
            username: "ada".into(),
            password: "hunter2".into(),
        };
        v1::CreateTemplateRequest {
            name: "python".into(),
            source: Some(v1::TemplateSource { source: Some(v1::template_source::Source::DockerImage(image)) }),
            runtimes: vec!["docker+runsc".into(), "linux".into()],
            limits: Some(v1::ResourceLimits { pids: 99, ..Default::default() }),
            languages: vec!["python".into()],
            warm_size: 3,
            start: Some(v1::StartCommand { command: "serve".into(), ..Default::default() }),
            env: [("A".to_owned(), "b".to_owned())].into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_template_is_the_same_after_its_way_to_a_node() {
        let template = requested_template(&request(), 7).unwrap();
        assert_eq!(template.reference(), "python@7");
        assert_eq!(template.start.as_ref().unwrap().ready_seconds, READY_SECONDS_DEFAULT);
        assert_eq!(read(template_message(&template, true)).unwrap(), template);
    }

    #[test]
    fn passwords_are_shown_to_nodes_alone() {
        let template = requested_template(&request(), 1).unwrap();
        assert!(format!("{:?}", template_message(&template, true)).contains("hunter2"));
        assert!(!format!("{:?}", template_message(&template, false)).contains("hunter2"));
    }

    #[test]
    fn every_broken_rule_is_named_by_its_field() {
        let bad = v1::CreateTemplateRequest { source: None, runtimes: vec!["docker".into(), "vm".into()], ..request() };
        let error = requested_template(&bad, 1).unwrap_err();
        let fields: Vec<_> = error.violations().iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["source", "runtimes[1]"]);
    }
}
