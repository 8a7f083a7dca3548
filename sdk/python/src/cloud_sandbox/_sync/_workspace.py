# Made from cloud_sandbox/_async/_workspace.py by `make sdk`; do not edit.
"""What can be done in a sandbox, whether it is one itself or a session has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Optional, Union, overload

from .._files import Data, FileInfo, LocalPath, Progress, Source
from .._junit import TestReport
from .._local import Wanted
from .._metrics import PROBE, read_metrics
from .._models import CodeContext, Metrics, SandboxInfo, Usage
from .._requests import Stdin, bound, code_request, complete, split_stdin
from .._results import CodeError, CommandResult, Execution, Output, Result
from .._wire import Place, SandboxPath
from ..v1 import scheduler_pb2
from ._commands import Commands, Pty, run
from ._contexts import Contexts
from ._files import Files
from ._io import Callback
from ._testing import run_tests
from ._transport import Transport


class Workspace(Contexts):
    """A place to run code in. `Sandbox` and `Session` are ones."""

    def __init__(self, transport: Transport, place: Place) -> None:
        super().__init__(transport, place)
        self.commands = Commands(transport, place)
        """Runs commands, and finds those that run."""
        self.files = Files(transport, place)
        """Reads, writes and watches files."""
        self.pty = Pty(transport, place)
        """Opens terminals."""

    def run_code(
        self,
        code: str,
        *,
        language: Optional[str] = None,
        context: Union[CodeContext, str, None] = "default",
        cwd: Optional[SandboxPath] = None,
        envs: Optional[Mapping[str, str]] = None,
        stdin: Stdin = None,
        timeout: Optional[float] = 60.0,
        on_stdout: Optional[Callback[Output]] = None,
        on_stderr: Optional[Callback[Output]] = None,
        on_result: Optional[Callback[Result]] = None,
        on_error: Optional[Callback[CodeError]] = None,
        max_output_bytes: Optional[int] = None,
        output_strategy: Optional[str] = None,
        changes: bool = False,
        check: bool = False,
        tag: Optional[str] = None,
        request_id: Optional[str] = None,
    ) -> Execution:
        """Runs code to its end.

        Python, JavaScript and TypeScript run in the sandbox's default context of the language: variables live from call
        to call, and the value of the last expression is a result. Other languages run in a process of their own.

        An interrupt (Ctrl-C, a cancelled task) and an exception in a callback end what runs; a context's variables stay
        if its code lets itself be interrupted.

        Args:
            code: the source code.
            language: `python`, `javascript`, `typescript`, `go`, `bash`, `sh`, `ruby`, `perl`, `php`, `lua`.
                Default: that of the context, else `python`.
            context: where it runs: a context of `create_code_context()`, or its id; `None` for a process of its own.
            cwd: the folder to run in. Default: the context's, else `/workspace`.
            envs: environment on top of the sandbox's.
            stdin: what it reads from standard input; for a process of its own only.
            timeout: seconds after which it is ended, up to 86400; `None` for that.
            on_stdout: is called with each piece of standard output as it comes.
            on_stderr: is called with each piece of standard error as it comes.
            on_result: is called with each result as it comes.
            on_error: is called with the error that ends the code.
            max_output_bytes: how much of each stream the result has, up to 8 MiB. Default: 1 MiB.
            output_strategy: which part that is: `head`, `tail`, `head_tail` or `errors`. Default: `head`.
            changes: report what became of the files under `/workspace`.
            check: raise unless it ends well.
            tag: a label to find it by.
            request_id: an id of your own, by which a repeated call finds the first run instead of running again.

        Returns:
            Output, results and error. An error of the code itself is in there; it is not raised.

        Raises:
            ExecutionError: `check` was asked for, and it did not end well.
            LanguageUnavailableError: the template lacks the language.
            SandboxGoneError: the sandbox has ended.
            OutcomeUnknownError: the sandbox or its node ended under it.
        """
        request = code_request(self._place, code, language=language, context=context)
        timeout = 86_400.0 if timeout is None else timeout
        complete(request, cwd=cwd, envs=envs, user=None, tag=tag, timeout=timeout, request_id=request_id)
        bound(request, max_output_bytes, output_strategy)
        request.changes = changes
        rest = split_stdin(request, stdin)
        result = run(
            self._transport,
            self._place,
            request,
            rest=rest,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            on_result=on_result,
            on_error=on_error,
        )
        if check:
            result.check()
        return result

    def run_command(
        self,
        command: Union[str, Sequence[str]],
        *,
        cwd: Optional[SandboxPath] = None,
        envs: Optional[Mapping[str, str]] = None,
        stdin: Stdin = None,
        timeout: Optional[float] = None,
        check: bool = False,
    ) -> CommandResult:
        """Runs a command to its end: `commands.run()` with the arguments that are wanted most."""
        return self.commands.run(command, cwd=cwd, envs=envs, stdin=stdin, timeout=timeout, check=check)

    def run_tests(
        self,
        command: Union[str, Sequence[str]] = "pytest -q",
        *,
        cwd: Optional[SandboxPath] = None,
        envs: Optional[Mapping[str, str]] = None,
        timeout: float = 300.0,
    ) -> TestReport:
        """Runs tests and reads what they said.

        pytest is asked for its JUnit report, which tells of every test; of `unittest`, and of pytest where that did not
        come, the output is read; of any other runner the exit code.

        Args:
            command: a line for the shell, or the words of a program: `pytest -q tests`, `python3 -m unittest`.
            cwd: the folder to run in. Default: `/workspace`.
            envs: environment on top of the sandbox's.
            timeout: seconds after which the run is killed, up to 86400.

        Returns:
            The counts, and each test with its place, message and duration.
        """
        return run_tests(self.commands, self.files, command, cwd=cwd, envs=envs, timeout=timeout)

    @overload
    def read_file(self, path: SandboxPath, *, format: Literal["text"] = "text") -> str: ...

    @overload
    def read_file(self, path: SandboxPath, *, format: Literal["bytes"]) -> bytes: ...

    def read_file(self, path: SandboxPath, *, format: Literal["text", "bytes"] = "text") -> Union[str, bytes]:
        """Reads a file: see `files.read()`."""
        if format == "bytes":
            return self.files.read(path, format="bytes")
        return self.files.read(path)

    def write_file(self, path: SandboxPath, data: Source, *, mode: Optional[int] = None) -> FileInfo:
        """Writes a file: see `files.write()`."""
        return self.files.write(path, data, mode=mode)

    def write_files(self, files: Mapping[str, Data]) -> list[FileInfo]:
        """Writes many files: see `files.write_many()`."""
        return self.files.write_many(files)

    def list_files(self, path: SandboxPath = "/workspace") -> list[FileInfo]:
        """Lists a folder: see `files.list()`."""
        return self.files.list(path)

    def upload_dir(
        self,
        local: LocalPath,
        path: SandboxPath = "/workspace",
        *,
        wanted: Optional[Wanted] = None,
        progress: Optional[Progress] = None,
    ) -> int:
        """Writes a local folder into the sandbox: see `files.upload_dir()`."""
        return self.files.upload_dir(local, path, wanted=wanted, progress=progress)

    def download_dir(self, path: SandboxPath, local: LocalPath, *, progress: Optional[Progress] = None) -> int:
        """Reads a folder of the sandbox into a local one: see `files.download_dir()`."""
        return self.files.download_dir(path, local, progress=progress)

    def metrics(self) -> Metrics:
        """Measures what the sandbox takes, from inside: it runs a short command there."""
        result = self.commands.run(["sh", "-c", PROBE], timeout=30, tag="metrics", check=True)
        request = scheduler_pb2.GetSandboxRequest(sandbox_id=self.files._sandbox_id())
        answer = self._transport.unary(request, scheduler_pb2.GetSandboxResponse)
        return read_metrics(result.stdout, SandboxInfo._read(answer.sandbox).limits)

    def usage(self) -> Usage:
        """Asks the node what the sandbox uses and has used: nothing is run in it, and one that is paused tells, too."""
        request = scheduler_pb2.GetSandboxRequest(sandbox_id=self.files._sandbox_id())
        answer = self._transport.unary(request, scheduler_pb2.GetSandboxResponse)
        return Usage._read(answer.sandbox.usage)
