"""Runs tests in a sandbox and reads what they said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Optional, Union

from .._junit import REPORT_MAX, TestReport, read_report, runs_pytest
from .._wire import SandboxPath, new_request_id
from ..errors import FileMissingError
from ._commands import AsyncCommands
from ._files import AsyncFiles


async def run_tests(
    commands: AsyncCommands,
    files: AsyncFiles,
    command: Union[str, Sequence[str]],
    *,
    cwd: Optional[SandboxPath],
    envs: Optional[Mapping[str, str]],
    timeout: float,
) -> TestReport:
    """Runs `command`; pytest is asked for a report by its environment, so that the command stays as it is."""
    if not runs_pytest(command):
        result = await commands.run(command, cwd=cwd, envs=envs, timeout=timeout, output_strategy="tail")
        return read_report(None, result)
    path = f"/tmp/.report-{new_request_id()}.xml"
    envs = dict(envs or {})
    # xunit1 has the file and line of each test
    options = f"--junitxml={path} -o junit_family=xunit1"
    envs["PYTEST_ADDOPTS"] = f"{envs.get('PYTEST_ADDOPTS', '')} {options}".strip()
    result = await commands.run(command, cwd=cwd, envs=envs, timeout=timeout, output_strategy="tail")
    try:
        # one that is larger does not parse, and the output is read instead
        xml = await files.read(path, format="bytes", length=REPORT_MAX)
        await files.remove(path)
    except FileMissingError:  # it did not get that far
        return read_report(None, result)
    return read_report(xml, result)
