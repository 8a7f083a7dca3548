//! Templates: what sandboxes are made from.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{error::Result, input::Violations, limits::Limits};

/// The built-in template of the native runtime: the host's own `/usr`, read-only.
pub const HOST: &str = "host";
/// The built-in template of the Docker runtime: the image that the settings name.
pub const DOCKER: &str = "docker";

/// The longest name, in characters.
pub const NAME_MAX: usize = 63;
/// The longest image reference, in characters.
pub const IMAGE_MAX: usize = 512;
/// The longest name of a user inside, in characters.
pub const USER_MAX: usize = 32;
/// The longest command, in bytes.
pub const COMMAND_MAX: usize = 32 * 1024;
/// The most warm sandboxes of one template on a node.
pub const WARM_MAX: u32 = 1000;
/// How long a start command may take to be ready unless the template says otherwise, in seconds.
pub const READY_SECONDS_DEFAULT: u32 = 60;
/// The longest that a template may allow it, in seconds.
pub const READY_SECONDS_MAX: u32 = 3600;
/// The most runtimes and languages that a template may list.
pub const LISTED_MAX: usize = 16;
/// The languages that there are, by name.
pub const LANGUAGES: [&str; 10] =
    ["python", "javascript", "typescript", "go", "bash", "sh", "ruby", "perl", "php", "lua"];

/// A template, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// its name
    pub name: String,
    /// which one of its name, from 1; 0 of a built-in one
    pub version: u32,
    /// where its root file system comes from
    pub source: Source,
    /// the runtimes that it may run on, those that are preferred first; a sandbox of one can go on as one of another
    pub runtimes: Vec<RuntimeName>,
    /// limits of its sandboxes; what is zero is the node's default
    #[serde(default)]
    pub limits: Limits,
    /// the languages that may be run; empty for all that it has
    #[serde(default)]
    pub languages: Vec<String>,
    /// how many sandboxes of it each node keeps warm
    #[serde(default)]
    pub warm_size: u32,
    /// what is started in each of its sandboxes before anybody has it
    #[serde(default)]
    pub start: Option<StartCommand>,
    /// environment of all that runs in its sandboxes
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// the user inside, by name or number; empty for the sandbox's own
    #[serde(default)]
    pub user: String,
    /// everything in it can be written, not the writable folders alone
    #[serde(default)]
    pub writable_root: bool,
}

/// Where a root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Source {
    /// the host's own `/usr`
    Host,
    /// a folder on the node, which is copied
    Folder {
        /// its path
        path: PathBuf,
    },
    /// an archive on the node: tar, plain or compressed by gzip or zstd
    Tarball {
        /// its path
        path: PathBuf,
    },
    /// an image of the node's Docker Engine
    DockerImage(Image),
    /// an image of an OCI registry, without a daemon
    Registry {
        /// the image
        #[serde(flatten)]
        image: Image,
        /// speak HTTP without TLS, for a registry on the loopback or in a private network
        #[serde(default)]
        plain_http: bool,
    },
}

/// An image, and how it is fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// its reference: `python:3.11-slim`, `ghcr.io/owner/name@sha256:…`
    pub image: String,
    /// when it is fetched
    #[serde(default)]
    pub pull: PullPolicy,
    /// who asks the registry for it
    #[serde(default)]
    pub credentials: Option<Credentials>,
}

/// When an image is fetched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// unless the node has it
    #[default]
    Missing,
    /// whenever the template is prepared
    Always,
    /// not at all: the node must have it
    Never,
}

/// Who asks a registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// the user
    pub username: String,
    /// the password, or a token
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What is started in each sandbox of a template before anybody has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartCommand {
    /// a shell line; its process stays in the background
    pub command: String,
    /// a shell line that is run again and again until it ends with 0; without one, starting is enough
    pub ready_command: String,
    /// how long that may take
    pub ready_seconds: u32,
}

/// An isolation technology, by name: `linux`, `docker`, `docker+runsc`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuntimeName {
    /// nothing but the kernel
    Linux,
    /// containers of a Docker Engine, with its default OCI runtime or the one that is named
    Docker {
        /// its name as the daemon knows it: `runc`, `runsc`, `kata`
        oci_runtime: Option<String>,
    },
}

impl RuntimeName {
    /// Containers with the daemon's default OCI runtime.
    pub const DOCKER: Self = Self::Docker { oci_runtime: None };

    /// The name of the runtime as a whole, whatever its OCI runtime.
    #[must_use]
    pub const fn family(&self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Docker { .. } => "docker",
        }
    }

    /// The OCI runtime that is named.
    #[must_use]
    pub fn oci_runtime(&self) -> Option<&str> {
        match self {
            Self::Docker { oci_runtime } => oci_runtime.as_deref(),
            Self::Linux => None,
        }
    }
}

impl fmt::Display for RuntimeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.oci_runtime() {
            Some(oci_runtime) => write!(f, "{}+{oci_runtime}", self.family()),
            None => f.write_str(self.family()),
        }
    }
}

/// What a runtime's name has to look like.
pub const RUNTIME_RULE: &str = "must be linux, docker, or docker+NAME with an OCI runtime of the Docker Engine";

impl FromStr for RuntimeName {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        match text.split_once('+') {
            None if text == "linux" => Ok(Self::Linux),
            None if text == "docker" => Ok(Self::DOCKER),
            Some(("docker", name)) if (1..=NAME_MAX).contains(&name.len()) && name.chars().all(good) => {
                Ok(Self::Docker { oci_runtime: Some(name.to_owned()) })
            }
            _ => Err(RUNTIME_RULE),
        }
    }
}

impl Serialize for RuntimeName {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RuntimeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Source {
    /// The word for its kind.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Folder { .. } => "folder",
            Self::Tarball { .. } => "tarball",
            Self::DockerImage(_) => "docker_image",
            Self::Registry { .. } => "registry",
        }
    }

    /// The runtime of a template that names none.
    #[must_use]
    pub const fn default_runtime(&self) -> RuntimeName {
        match self {
            Self::DockerImage(_) => RuntimeName::DOCKER,
            Self::Host | Self::Folder { .. } | Self::Tarball { .. } | Self::Registry { .. } => RuntimeName::Linux,
        }
    }

    /// Whether a runtime can make sandboxes of it.
    #[must_use]
    pub const fn suits(&self, runtime: &RuntimeName) -> bool {
        match runtime {
            RuntimeName::Linux => true,
            RuntimeName::Docker { .. } => !matches!(self, Self::Host | Self::Folder { .. }),
        }
    }

    /// The image, where it is one.
    #[must_use]
    pub const fn image(&self) -> Option<&Image> {
        match self {
            Self::DockerImage(image) | Self::Registry { image, .. } => Some(image),
            Self::Host | Self::Folder { .. } | Self::Tarball { .. } => None,
        }
    }

    /// The same, to be changed.
    pub const fn image_mut(&mut self) -> Option<&mut Image> {
        match self {
            Self::DockerImage(image) | Self::Registry { image, .. } => Some(image),
            Self::Host | Self::Folder { .. } | Self::Tarball { .. } => None,
        }
    }
}

impl Template {
    /// The built-in template `host`.
    #[must_use]
    pub fn host() -> Self {
        Self::built_in(HOST, Source::Host)
    }

    /// The built-in template `docker`, of an image.
    #[must_use]
    pub fn docker(image: &str) -> Self {
        let image = Image { image: image.to_owned(), pull: PullPolicy::Missing, credentials: None };
        Self::built_in(DOCKER, Source::DockerImage(image))
    }

    fn built_in(name: &str, source: Source) -> Self {
        Self {
            name: name.to_owned(),
            version: 0,
            runtimes: vec![source.default_runtime()],
            source,
            limits: Limits::UNSET,
            languages: Vec::new(),
            warm_size: 0,
            start: None,
            env: BTreeMap::new(),
            user: String::new(),
            writable_root: false,
        }
    }

    /// What names it and no other: `python@3`; a built-in one's name alone.
    #[must_use]
    pub fn reference(&self) -> String {
        if self.version == 0 { self.name.clone() } else { format!("{}@{}", self.name, self.version) }
    }

    /// Every rule that a template from outside breaks, by its field.
    pub fn check(&self) -> Result<()> {
        let mut violations = Violations::default();
        check_name(&mut violations, "name", &self.name);
        let taken = [HOST, DOCKER].contains(&self.name.as_str());
        violations.check(!taken, "name", "must not be that of a built-in template: host, docker");
        self.check_source(&mut violations);
        self.check_runtimes(&mut violations);
        violations.take(Limits::DEFAULT.overlaid(self.limits, Limits::MAX));
        self.check_languages(&mut violations);
        violations.range("warm_size", &self.warm_size, &0, &WARM_MAX);
        violations.env("env", &self.env);
        self.check_user(&mut violations);
        if let Some(start) = &self.start {
            start.check(&mut violations);
        }
        violations.finish()
    }

    fn check_source(&self, violations: &mut Violations) {
        match &self.source {
            Source::Host => {}
            Source::Folder { path } => check_host_path(violations, "source.folder.path", path),
            Source::Tarball { path } => check_host_path(violations, "source.tarball.path", path),
            Source::DockerImage(image) => image.check(violations, "source.docker_image"),
            Source::Registry { image, .. } => image.check(violations, "source.registry"),
        }
    }

    fn check_runtimes(&self, violations: &mut Violations) {
        let count = (1..=LISTED_MAX).contains(&self.runtimes.len());
        violations.check(count, "runtimes", format!("must be 1 to {LISTED_MAX}"));
        for (index, runtime) in self.runtimes.iter().enumerate() {
            let field = format!("runtimes[{index}]");
            let rule = format!("must be one that a source of kind {} can be run on, not {runtime}", self.source.kind());
            violations.check(self.source.suits(runtime), &field, rule);
            violations.check(!self.runtimes[..index].contains(runtime), &field, "must not be listed twice");
        }
        let in_containers = !self.runtimes.contains(&RuntimeName::Linux);
        violations.check(
            in_containers || self.user.is_empty(),
            "user",
            "must be empty on the runtime linux, which has one user",
        );
        violations.check(
            in_containers || !self.writable_root,
            "writable_root",
            "must be false on the runtime linux, whose root is read-only",
        );
    }

    fn check_languages(&self, violations: &mut Violations) {
        let listed = self.languages.len() <= LISTED_MAX;
        violations.check(listed, "languages", format!("must be at most {LISTED_MAX}"));
        for (index, language) in self.languages.iter().enumerate().take(LISTED_MAX) {
            let field = format!("languages[{index}]");
            let rule = format!("must be one of {}", LANGUAGES.join(", "));
            violations.check(LANGUAGES.contains(&language.as_str()), &field, rule);
            violations.check(!self.languages[..index].contains(language), &field, "must not be listed twice");
        }
    }

    fn check_user(&self, violations: &mut Violations) {
        let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let holds = self.user.len() <= USER_MAX && self.user.chars().all(good);
        violations.check(holds, "user", format!("must be up to {USER_MAX} characters of [A-Za-z0-9._-]"));
    }
}

impl Image {
    fn check(&self, violations: &mut Violations, field: &str) {
        let good = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
        let holds = (1..=IMAGE_MAX).contains(&self.image.len())
            && self.image.chars().all(good)
            && self.image.starts_with(|c: char| c.is_ascii_alphanumeric());
        let rule = format!("must be an image reference like python:3.11-slim, of up to {IMAGE_MAX} characters");
        violations.check(holds, &format!("{field}.image"), rule);
        if let Some(credentials) = &self.credentials {
            let named = !credentials.username.is_empty() && !credentials.username.contains([':', '\n', '\r']);
            violations.check(named, &format!("{field}.username"), "must be given with a password, and without a colon");
        }
    }
}

impl StartCommand {
    fn check(&self, violations: &mut Violations) {
        for (field, text) in [("start.command", &self.command), ("start.ready_command", &self.ready_command)] {
            let holds = text.len() <= COMMAND_MAX && !text.contains('\0');
            violations.check(holds, field, format!("must be up to {COMMAND_MAX} bytes without NUL"));
        }
        violations.check(!self.command.is_empty(), "start.command", "must be given");
        violations.range("start.ready_seconds", &self.ready_seconds, &1, &READY_SECONDS_MAX);
    }
}

fn check_host_path(violations: &mut Violations, field: &str, path: &Path) {
    violations.path(field, &path.to_string_lossy());
}

/// The name of a template.
pub fn check_name(violations: &mut Violations, field: &str, name: &str) {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    let holds = (1..=NAME_MAX).contains(&name.len())
        && name.chars().all(good)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let rule = format!("must be 1 to {NAME_MAX} characters of [a-z0-9._-], a letter or digit first");
    violations.check(holds, field, rule);
}

/// A name, and a version where one is given: `python`, `python@3`.
#[must_use]
pub fn split_reference(reference: &str) -> Option<(&str, Option<u32>)> {
    match reference.split_once('@') {
        None => Some((reference, None)),
        Some((name, version)) => match version.parse() {
            Ok(version) if version > 0 => Some((name, Some(version))),
            _ => None,
        },
    }
}

/// How far something that takes long has come; read while it goes on.
#[derive(Debug, Default)]
pub struct Progress {
    phase: Mutex<&'static str>,
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// A new phase, `pulling` for example, of `total` bytes; 0 where that is not known.
    pub fn begin(&self, phase: &'static str, total: u64) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// So many more bytes of it are done.
    pub fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes are done, of so many.
    pub fn set(&self, done: u64, total: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// The phase, and the bytes that are done and that there are.
    #[must_use]
    pub fn now(&self) -> (&'static str, u64, u64) {
        let phase = *self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        (phase, self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> Template {
        let mut template = Template::docker("python:3.11-slim");
        template.name = "python".into();
        template.version = 3;
        template
    }

    #[test]
    fn runtimes_are_read_and_written_by_name() {
        for name in ["linux", "docker", "docker+runsc", "docker+io.containerd.runc.v2"] {
            assert_eq!(name.parse::<RuntimeName>().unwrap().to_string(), name);
        }
        for name in ["", "Linux", "linux+runc", "docker+", "docker+a b", "podman", "docker+runc+x"] {
            assert!(name.parse::<RuntimeName>().is_err(), "{name}");
        }
    }

    #[test]
    fn references_are_a_name_with_or_without_a_version() {
        assert_eq!(split_reference("python"), Some(("python", None)));
        assert_eq!(split_reference("python@12"), Some(("python", Some(12))));
        for bad in ["python@", "python@0", "python@x", "python@1@2", "python@-1"] {
            assert_eq!(split_reference(bad), None, "{bad}");
        }
        assert_eq!(template().reference(), "python@3");
        assert_eq!(Template::host().reference(), "host");
    }

    #[test]
    fn each_broken_rule_is_named_by_its_field() {
        assert!(template().check().is_ok());
        let broken = |change: &dyn Fn(&mut Template)| {
            let mut template = template();
            change(&mut template);
            let error = template.check().expect_err("it breaks a rule");
            error.violations()[0].field.clone()
        };
        assert_eq!(broken(&|template| template.name = "Python".into()), "name");
        assert_eq!(broken(&|template| template.name = "host".into()), "name");
        assert_eq!(broken(&|template| template.name = "-x".into()), "name");
        assert_eq!(broken(&|template| template.source = Source::Host), "runtimes[0]");
        assert_eq!(broken(&|template| template.runtimes.clear()), "runtimes");
        assert_eq!(broken(&|template| template.runtimes.push(RuntimeName::DOCKER)), "runtimes[1]");
        assert_eq!(
            broken(&|template| template.source = Source::Tarball { path: "x.tar".into() }),
            "source.tarball.path"
        );
        assert_eq!(
            broken(&|template| template.source.image_mut().unwrap().image = "a b".into()),
            "source.docker_image.image"
        );
        assert_eq!(broken(&|template| template.limits.pids = 1), "limits.pids");
        assert_eq!(broken(&|template| template.languages = vec!["cobol".into()]), "languages[0]");
        assert_eq!(broken(&|template| template.languages = vec!["go".into(), "go".into()]), "languages[1]");
        assert_eq!(broken(&|template| template.languages = vec!["go".into(); 17]), "languages");
        assert_eq!(broken(&|template| template.warm_size = 1001), "warm_size");
        assert_eq!(broken(&|template| template.user = "a:b".into()), "user");
        let native = |template: &mut Template| template.runtimes = vec![RuntimeName::Linux];
        assert_eq!(
            broken(&|template| {
                native(template);
                template.user = "root".into();
            }),
            "user"
        );
        let start = StartCommand { command: String::new(), ready_command: String::new(), ready_seconds: 60 };
        assert_eq!(broken(&|template| template.start = Some(start.clone())), "start.command");
    }

    #[test]
    fn passwords_are_not_printed() {
        let credentials = Credentials { username: "ada".into(), password: "hunter2".into() };
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
