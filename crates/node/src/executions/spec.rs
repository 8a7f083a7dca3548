//! From a request to what the agent is told: validated, with its defaults, its language and its environment.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use cloud_sandbox_model::{
    ExecutionId,
    error::{Error, ErrorKind, Result, reason},
    input::Violations,
};
use cloud_sandbox_proto::{
    agent::v1::{CloseStdin, StagedFile, Start, WindowSize, run_request::Input},
    v1::ExecuteRequest,
};
use tonic::{Code, Status};

use crate::languages::Language;

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
const CWD_DEFAULT: &str = "/workspace";
const BASE_ENV: [(&str, &str); 6] = [
    // where a Go from go.dev lies comes last: nothing else is there
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin"),
    ("HOME", "/home/user"),
    ("USER", "user"),
    ("LOGNAME", "user"),
    ("LANG", "C.UTF-8"),
    ("TMPDIR", "/tmp"),
];

/// What of it makes a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// runs to its end; its output is kept
    Kept,
    /// its output goes to whoever started it
    Interactive,
}

#[derive(Debug)]
enum What {
    Code(&'static Language),
    Command,
    Program,
}

/// A process to be started.
#[derive(Debug)]
pub(crate) struct Spec {
    what: What,
    start: Start,
    stdin: Bytes,
    template: String,
    pub(crate) timeout: Duration,
    pub(crate) max_output: usize,
}

impl Spec {
    /// What `request` means in a sandbox with this environment and template.
    pub(crate) fn new(
        request: ExecuteRequest,
        id: ExecutionId,
        sandbox_env: &HashMap<String, String>,
        template: &str,
        mode: Mode,
    ) -> Result<Self> {
        validate(&request, mode)?;
        let cwd = if request.cwd.is_empty() { CWD_DEFAULT.to_owned() } else { request.cwd };
        let mut env: HashMap<_, _> = BASE_ENV.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        env.extend(sandbox_env.clone());
        env.extend(request.env);

        let mut staged = None;
        let (what, argv) = if let Some(code) = request.code {
            let language = Language::find(&request.language).expect("validated");
            let path = format!("/tmp/.run-{id}/{}", language.file);
            let argv = language.argv(&path, &cwd);
            language.prepare(&mut env, &cwd);
            staged = Some(StagedFile { path, content: code.into() });
            (What::Code(language), argv)
        } else if let Some(line) = request.command {
            (What::Command, vec!["bash".to_owned(), "-c".to_owned(), line])
        } else {
            (What::Program, request.argv)
        };

        let default_ms = if mode == Mode::Interactive { TIMEOUT_INTERACTIVE_MS } else { TIMEOUT_DEFAULT_MS };
        let timeout_ms = if request.timeout_ms == 0 { default_ms } else { request.timeout_ms };
        let max_output = if request.max_output_bytes == 0 { OUTPUT_DEFAULT } else { request.max_output_bytes };
        Ok(Self {
            what,
            start: Start { argv, env, cwd, terminal: None, staged },
            stdin: request.stdin.into(),
            template: template.to_owned(),
            timeout: Duration::from_millis(timeout_ms.into()),
            max_output: max_output as usize,
        })
    }

    /// Runs it on a terminal.
    pub(crate) fn on_terminal(mut self, size: WindowSize) -> Self {
        self.start.terminal = Some(size);
        self
    }

    /// The first messages of its run: all of its input.
    pub(crate) fn messages(&self) -> Vec<Input> {
        let mut messages = self.open_messages();
        if !self.stdin.is_empty() {
            messages.push(Input::Stdin(self.stdin.clone()));
        }
        messages.push(Input::CloseStdin(CloseStdin {}));
        messages
    }

    /// The first message of its run: input follows.
    pub(crate) fn open_messages(&self) -> Vec<Input> {
        vec![Input::Start(self.start.clone())]
    }

    /// What is to be run first, to see whether the language is there.
    pub(crate) fn probe(&self) -> Option<Vec<Input>> {
        let What::Code(language) = self.what else { return None };
        let argv = language.probe?.iter().map(|word| (*word).to_owned()).collect();
        let start = Start { argv, terminal: None, staged: None, ..self.start.clone() };
        Some(vec![Input::Start(start), Input::CloseStdin(CloseStdin {})])
    }

    /// Turns to another program when the first choice is not there. Says whether there is another.
    pub(crate) fn fall_back(&mut self) -> bool {
        let program = &mut self.start.argv[0];
        let falls = matches!(self.what, What::Command) && program == "bash";
        if falls {
            "sh".clone_into(program);
        }
        falls
    }

    /// Why it did not start, from what the agent said.
    pub(crate) fn start_error(&self, status: &Status) -> Error {
        let message = status.message();
        let precondition = |reason: &str, message: String| Error::new(ErrorKind::FailedPrecondition, reason, message);
        match (status.code(), &self.what) {
            (Code::NotFound, What::Code(language)) => {
                let (name, program, template) = (language.name, language.program, &self.template);
                let message = format!("language {name} is not available: template {template} has no {program}");
                precondition(reason::LANGUAGE_UNAVAILABLE, message)
                    .with_metadata("language", name)
                    .with_metadata("program", program)
                    .with_metadata("template", template)
            }
            (Code::NotFound, What::Program | What::Command) => {
                precondition(reason::PROGRAM_NOT_FOUND, message.to_owned())
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
            _ => Error::internal("start the execution", status.clone()),
        }
    }
}

fn validate(request: &ExecuteRequest, mode: Mode) -> Result<()> {
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
    violations.range("timeout_ms", &request.timeout_ms, &0, &TIMEOUT_MAX_MS);
    violations.range("max_output_bytes", &request.max_output_bytes, &0, &OUTPUT_MAX);
    violations.request_id("request_id", &request.request_id);
    if mode == Mode::Interactive {
        let why = "must be empty in an interactive execution";
        violations.check(request.stdin.is_empty(), "stdin", why);
        violations.check(request.max_output_bytes == 0, "max_output_bytes", why);
        violations.check(request.request_id.is_empty(), "request_id", why);
    }
    violations.finish()
}

fn validate_argv(violations: &mut Violations, argv: &[String]) {
    violations.check(argv.len() <= ARGV_MAX, "argv", format!("must have at most {ARGV_MAX} words"));
    let bytes: usize = argv.iter().map(String::len).sum();
    violations.check(bytes <= COMMAND_MAX, "argv", format!("must have at most {COMMAND_MAX} bytes in all"));
    violations.check(!argv.iter().any(|word| word.contains('\0')), "argv", "must not contain NUL");
    violations.check(argv.first().is_none_or(|word| !word.is_empty()), "argv", "must name a program first");
}
