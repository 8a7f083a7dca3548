//! From a request to what the agent is told: validated, with its defaults, its language and its environment.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use cloud_sandbox_model::{
    ExecutionId, SandboxId,
    error::{Error, ErrorKind, Result, reason},
    id::ContextId,
    input::Violations,
};
use cloud_sandbox_proto::{
    agent::v1::{CloseStdin, StagedFile, Start, WindowSize, run_request::Input},
    v1::{self, ExecuteRequest, OutputStrategy, TerminalSize},
};
use tonic::{Code, Status};

use super::{
    Budget, Job,
    environment::{CWD_DEFAULT, environment, leave_to_agent},
    record::Head,
};
use crate::{languages::Language, templates::Origin};

const CODE_MAX: usize = 1024 * 1024;
// the kernel takes words of up to 128 KiB (MAX_ARG_STRLEN, linux/binfmts.h)
const COMMAND_MAX: usize = 120 * 1024;
const ARGV_MAX: usize = 1024;
const STDIN_MAX: usize = 1024 * 1024;
const TIMEOUT_MAX_MS: u32 = 86_400_000;
const TIMEOUT_DEFAULT_MS: u32 = 60_000;
/// Somebody sits in front of an interactive execution; it also ends when they hang up.
const TIMEOUT_INTERACTIVE_MS: u32 = 3_600_000;
const OUTPUT_MAX: u32 = 8 * 1024 * 1024;
const OUTPUT_DEFAULT: u32 = 1024 * 1024;
const TERMINAL_MAX: u32 = 1000;
const TAG_MAX: usize = 128;
/// What a user name of Linux takes (useradd(8)), with room.
const USER_MAX: usize = 64;
const SUMMARY_MAX: usize = 256;
/// Stands for the default context of a language.
const DEFAULT_CONTEXT: &str = "default";

/// How an execution was asked for, as far as it makes a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// answered at its end
    Unary,
    /// its events are sent
    Stream,
    /// its events are sent and input comes
    Interactive,
    /// nobody waits for it
    Background,
}

/// How an execution was asked for, and how long it may take for that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) mode: Mode,
    /// the sandbox's limit of seconds, if the execution is bound by it
    pub(super) seconds: Option<u32>,
}

impl Bounds {
    /// The timeout of an execution whose caller does not say.
    fn timeout_default_ms(self) -> u32 {
        let own = match self.mode {
            Mode::Unary | Mode::Stream => TIMEOUT_DEFAULT_MS,
            Mode::Interactive => TIMEOUT_INTERACTIVE_MS,
            Mode::Background => TIMEOUT_MAX_MS,
        };
        own.min(self.timeout_max_ms())
    }

    fn timeout_max_ms(self) -> u32 {
        self.seconds.map_or(TIMEOUT_MAX_MS, |seconds| seconds.saturating_mul(1000).min(TIMEOUT_MAX_MS))
    }

    fn check_timeout(self, violations: &mut Violations, timeout_ms: u32) {
        violations.range("timeout_ms", &timeout_ms, &0, &TIMEOUT_MAX_MS);
        let max = self.timeout_max_ms();
        if timeout_ms <= TIMEOUT_MAX_MS {
            let rule = format!("must be from 0 to {max}: the sandbox's limits.execution_seconds is {}", max / 1000);
            violations.check(timeout_ms <= max, "timeout_ms", rule);
        }
    }
}

#[derive(Debug)]
enum Program {
    Code(&'static Language),
    Command,
    Exact,
}

/// A process to be started.
#[derive(Debug)]
pub(crate) struct Spec {
    program: Program,
    start: Start,
    stdin: Bytes,
    stdin_open: bool,
    template: String,
    pub(crate) timeout: Duration,
    pub(crate) changes: bool,
}

/// What is to be run.
#[derive(Debug)]
pub(super) enum What {
    Process(Box<Spec>),
    Context(Box<Job>),
}

impl What {
    /// How many bytes of input it is given first, and whether more may come.
    pub(super) fn stdin(&self) -> (u64, bool) {
        match self {
            Self::Process(spec) => (spec.stdin.len() as u64, spec.stdin_open),
            Self::Context(_) => (0, false),
        }
    }
}

/// A request, understood.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) what: What,
    /// what is told of it
    pub(super) head: Head,
}

impl Plan {
    /// What `request` means in a sandbox that was made from `origin` and whose owner gave it this environment.
    pub(super) fn new(
        request: ExecuteRequest,
        (sandbox, id): (SandboxId, ExecutionId),
        origin: &Origin,
        sandbox_env: &HashMap<String, String>,
        bounds: Bounds,
    ) -> Result<Self> {
        validate(&request, bounds)?;
        if request.code.is_some()
            && request.context_id.is_empty()
            && let Some(language) = Language::find(&request.language)
        {
            origin.allows(language.name)?;
        }
        let execution = describe(&request, sandbox, id);
        let timeout_ms = if request.timeout_ms == 0 { bounds.timeout_default_ms() } else { request.timeout_ms };
        let timeout = Duration::from_millis(timeout_ms.into());
        let what = if request.context_id.is_empty() {
            What::Process(Box::new(Spec::new(request, id, origin, sandbox_env, timeout)))
        } else {
            What::Context(Box::new(Job {
                context_id: request.context_id,
                language: request.language,
                code: request.code.unwrap_or_default(),
                cwd: Some(request.cwd).filter(|cwd| !cwd.is_empty()),
                env: request.env,
                timeout,
                changes: request.changes,
            }))
        };
        Ok(Self { what, head: Head { execution, fingerprint: Vec::new() } })
    }
}

impl Spec {
    fn new(
        request: ExecuteRequest,
        id: ExecutionId,
        origin: &Origin,
        sandbox_env: &HashMap<String, String>,
        timeout: Duration,
    ) -> Self {
        let cwd = if request.cwd.is_empty() { CWD_DEFAULT.to_owned() } else { request.cwd };
        let mut env = environment(&origin.env, sandbox_env, request.env);
        leave_to_agent(&mut env, origin, &request.user);
        let mut staged = None;
        let (program, argv) = if let Some(code) = request.code {
            let language = Language::find(&request.language).expect("validated");
            let path = format!("/tmp/.run-{id}/{}", language.file);
            let argv = language.argv(&path, &cwd);
            language.prepare(&mut env, &cwd);
            staged = Some(StagedFile { path, content: code.into() });
            (Program::Code(language), argv)
        } else if let Some(line) = request.command {
            (Program::Command, vec!["bash".to_owned(), "-c".to_owned(), line])
        } else {
            (Program::Exact, request.argv)
        };
        let terminal = request.terminal.map(|size| WindowSize { rows: size.rows, cols: size.cols });
        Self {
            program,
            start: Start { argv, env, cwd, terminal, staged, user: request.user, control: false },
            stdin: request.stdin.into(),
            stdin_open: request.stdin_open,
            template: origin.reference().to_owned(),
            timeout,
            changes: request.changes,
        }
    }

    /// The first messages of its run.
    pub(crate) fn messages(&self) -> Vec<Input> {
        let mut messages = vec![Input::Start(self.start.clone())];
        if !self.stdin.is_empty() {
            messages.push(Input::Stdin(self.stdin.clone()));
        }
        if !self.stdin_open {
            messages.push(Input::CloseStdin(CloseStdin {}));
        }
        messages
    }

    /// What is to be run first, to see whether the language is there.
    pub(crate) fn probe(&self) -> Option<Vec<Input>> {
        let Program::Code(language) = self.program else { return None };
        let argv = language.probe?.iter().map(|word| (*word).to_owned()).collect();
        let start = Start { argv, terminal: None, staged: None, ..self.start.clone() };
        Some(vec![Input::Start(start), Input::CloseStdin(CloseStdin {})])
    }

    /// Whether that also has to succeed.
    pub(crate) fn probe_decides(&self) -> bool {
        matches!(self.program, Program::Code(language) if language.probe_decides)
    }

    /// Turns to another program when the first choice is not there. Says whether there is another.
    pub(crate) fn fall_back(&mut self) -> bool {
        let program = &mut self.start.argv[0];
        let falls = matches!(self.program, Program::Command) && program == "bash";
        if falls {
            "sh".clone_into(program);
        }
        falls
    }

    /// Why it certainly did not start, from what the agent said; none when that is not certain.
    pub(crate) fn refusal(&self, status: &Status) -> Option<Error> {
        let message = status.message();
        let precondition = |reason: &str, message: String| Error::new(ErrorKind::FailedPrecondition, reason, message);
        Some(match (status.code(), &self.program) {
            (Code::NotFound, Program::Code(language)) => {
                let (name, program, template) = (language.name, language.program, &self.template);
                let message =
                    format!("language {name} is not available: template {template} has no {}", language.needs());
                precondition(reason::LANGUAGE_UNAVAILABLE, message)
                    .with_metadata("language", name)
                    .with_metadata("program", program)
                    .with_metadata("template", template)
            }
            (Code::NotFound, Program::Exact | Program::Command) => {
                let message = match self.program {
                    Program::Command => format!(
                        "template {} has no shell for command: neither bash nor sh; argv runs a program without one",
                        self.template
                    ),
                    Program::Code(_) | Program::Exact => message.to_owned(),
                };
                precondition(reason::PROGRAM_NOT_FOUND, message)
                    .with_metadata("program", &self.start.argv[0])
                    .with_metadata("template", &self.template)
            }
            (Code::FailedPrecondition | Code::PermissionDenied, _) => {
                precondition(reason::INVALID_REQUEST, message.to_owned())
            }
            (Code::InvalidArgument, _) => Error::new(ErrorKind::InvalidArgument, reason::INVALID_REQUEST, message),
            (Code::ResourceExhausted, _) => {
                Error::new(ErrorKind::ResourceExhausted, reason::EXECUTION_LIMIT, message.to_owned())
            }
            (Code::Unimplemented, _) => Error::internal("start the execution", status.clone()),
            _ => return None,
        })
    }
}

/// What is told of an execution from its beginning.
fn describe(request: &ExecuteRequest, sandbox: SandboxId, id: ExecutionId) -> v1::Execution {
    let cwd = if request.cwd.is_empty() && request.context_id.is_empty() { CWD_DEFAULT } else { &request.cwd };
    v1::Execution {
        execution_id: id.to_string(),
        sandbox_id: sandbox.to_string(),
        summary: summary(request),
        tag: request.tag.clone(),
        request_id: request.request_id.clone(),
        cwd: cwd.to_owned(),
        has_terminal: request.terminal.is_some(),
        context_id: request.context_id.clone(),
        create_time: Some(SystemTime::now().into()),
        ..v1::Execution::default()
    }
}

fn in_default_context(context_id: &str) -> bool {
    context_id.is_empty() || context_id == DEFAULT_CONTEXT
}

/// What runs, on one line.
pub(super) fn summary(request: &ExecuteRequest) -> String {
    let text = if request.code.is_some() && request.language.is_empty() && !in_default_context(&request.context_id) {
        // the context knows its language, this call does not
        "code".to_owned()
    } else if request.code.is_some() {
        Language::find(&request.language).map_or("", |language| language.name).to_owned()
    } else if let Some(line) = &request.command {
        line.clone()
    } else {
        request.argv.join(" ")
    };
    let mut line: String = text.chars().take(SUMMARY_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.truncate(line.floor_char_boundary(SUMMARY_MAX));
    line
}

fn validate(request: &ExecuteRequest, bounds: Bounds) -> Result<()> {
    let mode = bounds.mode;
    let mut violations = Violations::default();
    let given = [request.code.is_some(), request.command.is_some(), !request.argv.is_empty()];
    let one = given.iter().filter(|given| **given).count() == 1;
    violations.check(one, "code", "must be given, or command, or argv: exactly one of them");
    let short = request.code().len() <= CODE_MAX;
    violations.check(short, "code", format!("must be at most {CODE_MAX} bytes long"));
    let short = request.command().len() <= COMMAND_MAX;
    violations.check(short, "command", format!("must be at most {COMMAND_MAX} bytes long"));
    violations.check(!request.command().contains('\0'), "command", "must not contain NUL");
    validate_argv(&mut violations, &request.argv);
    if !request.language.is_empty() {
        let known = Language::find(&request.language).is_some();
        violations.check(known, "language", format!("must be one of {}", Language::known()));
        violations.check(given[0], "language", "must be given with code only");
    }
    if !request.cwd.is_empty() {
        violations.path("cwd", &request.cwd);
    }
    violations.env("env", &request.env);
    violations.check(request.stdin.len() <= STDIN_MAX, "stdin", format!("must be at most {STDIN_MAX} bytes long"));
    bounds.check_timeout(&mut violations, request.timeout_ms);
    violations.range("max_output_bytes", &request.max_output_bytes, &0, &OUTPUT_MAX);
    violations.request_id("request_id", &request.request_id);
    if let Some(size) = request.terminal {
        validate_size(&mut violations, size, "terminal");
    }
    validate_labels(&mut violations, request);
    validate_mode(&mut violations, request, mode);
    if !request.context_id.is_empty() {
        validate_in_context(&mut violations, request, mode);
    }
    violations.finish()
}

fn validate_labels(violations: &mut Violations, request: &ExecuteRequest) {
    let good = |c: char| c.is_ascii_alphanumeric() || "._:/@-".contains(c);
    let tagged = request.tag.len() <= TAG_MAX && request.tag.chars().all(good);
    violations.check(tagged, "tag", format!("must be up to {TAG_MAX} characters of [A-Za-z0-9._:/@-]"));
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let named = request.user.len() <= USER_MAX && request.user.chars().all(good);
    violations.check(named, "user", format!("must be up to {USER_MAX} characters of [A-Za-z0-9._-]"));
}

fn validate_mode(violations: &mut Violations, request: &ExecuteRequest, mode: Mode) {
    let strategy = OutputStrategy::try_from(request.output_strategy);
    violations.check(strategy.is_ok(), "output_strategy", "must be head, tail, head_tail or errors");
    let head = matches!(strategy, Ok(OutputStrategy::Unspecified | OutputStrategy::Head) | Err(_));
    let given = request.max_output_bytes != 0;
    match mode {
        Mode::Unary => {}
        Mode::Stream => violations.check(head, "output_strategy", "must be head in a streamed execution"),
        Mode::Interactive => {
            violations.check(!given, "max_output_bytes", "must be empty in an interactive execution");
            let given = request.output_strategy != 0;
            violations.check(!given, "output_strategy", "must be empty in an interactive execution");
        }
        Mode::Background => {
            let why = "must be empty in the background";
            violations.check(!given, "max_output_bytes", why);
            violations.check(request.output_strategy == 0, "output_strategy", why);
            violations.check(!request.changes, "changes", why);
        }
    }
}

fn validate_in_context(violations: &mut Violations, request: &ExecuteRequest, mode: Mode) {
    let id = &request.context_id;
    let named = id == DEFAULT_CONTEXT || id.parse::<ContextId>().is_ok();
    violations.check(named, "context_id", format!("must be a context's id, or {DEFAULT_CONTEXT}"));
    let why = "must be empty in a code context";
    violations.check(request.command.is_none(), "command", why);
    violations.check(request.argv.is_empty(), "argv", why);
    violations.check(request.stdin.is_empty(), "stdin", why);
    violations.check(request.terminal.is_none(), "terminal", why);
    // an interactive call has its input open without having asked for it
    violations.check(!request.stdin_open || mode == Mode::Interactive, "stdin_open", why);
    violations.check(request.user.is_empty(), "user", why);
}

/// Checks a terminal's size.
pub(crate) fn validate_size(violations: &mut Violations, size: TerminalSize, field: &str) {
    violations.range(&format!("{field}.rows"), &size.rows, &1, &TERMINAL_MAX);
    violations.range(&format!("{field}.cols"), &size.cols, &1, &TERMINAL_MAX);
}

/// How much output a unary or streamed call returns, and which part of it.
pub(crate) fn budget(request: &ExecuteRequest) -> Budget {
    let bytes = if request.max_output_bytes == 0 { OUTPUT_DEFAULT } else { request.max_output_bytes };
    Budget::new(bytes as usize, request.output_strategy())
}

fn validate_argv(violations: &mut Violations, argv: &[String]) {
    violations.check(argv.len() <= ARGV_MAX, "argv", format!("must have at most {ARGV_MAX} words"));
    let bytes: usize = argv.iter().map(String::len).sum();
    violations.check(bytes <= COMMAND_MAX, "argv", format!("must have at most {COMMAND_MAX} bytes in all"));
    violations.check(!argv.iter().any(|word| word.contains('\0')), "argv", "must not contain NUL");
    violations.check(argv.first().is_none_or(|word| !word.is_empty()), "argv", "must name a program first");
}
