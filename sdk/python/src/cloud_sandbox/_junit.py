"""What a test run said: from pytest's JUnit XML, else from what it printed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Optional, Union
from xml.etree import ElementTree

from ._results import CommandResult

# what is read of a report at most, in bytes: it comes from the sandbox
REPORT_MAX = 16 * 1024 * 1024


@dataclass(frozen=True)
class TestCase:
    """One test."""

    __test__ = False  # not one of pytest's own

    name: str
    """Its name, with its class: `TestMath.test_add[1]`."""
    status: str
    """`passed`, `failed`, `error` (it could not be run), or `skipped`."""
    duration: float = 0.0
    """How long it took, in seconds."""
    file: str = ""
    """The file that it is in, relative to the folder of the run; empty when that is not known."""
    line: int = 0
    """The line that it begins at, from 1; 0 when that is not known."""
    message: str = ""
    """Why it did not pass, in a line."""
    details: str = ""
    """Its traceback, or why it was skipped."""

    def __str__(self) -> str:
        place = f" ({self.file}:{self.line})" if self.file else ""
        return f"{self.status} {self.name}{place}" + (f": {self.message}" if self.message else "")


@dataclass(frozen=True, repr=False)
class TestReport:
    """What a test run said."""

    __test__ = False

    tests: list[TestCase]
    """The tests; without a report of the runner those alone whose failure was seen in the output."""
    passed: int
    """How many passed."""
    failed: int
    """How many failed."""
    errors: int
    """How many could not be run."""
    skipped: int
    """How many were skipped."""
    duration: float
    """How long the run took, in seconds."""
    source: str
    """Where that is from: `junit`, `output` (read from what was printed), or `exit_code`: nothing else is known."""
    result: CommandResult = field(compare=False)
    """The run itself."""

    @property
    def ok(self) -> bool:
        """Whether the run succeeded, and no test failed."""
        return self.result.ok and not self.failed and not self.errors

    @property
    def total(self) -> int:
        """How many tests there were."""
        return self.passed + self.failed + self.errors + self.skipped

    @property
    def failures(self) -> list[TestCase]:
        """Those that failed or could not be run."""
        return [test for test in self.tests if test.status in ("failed", "error")]

    def __repr__(self) -> str:
        counts = f"passed={self.passed}, failed={self.failed}, errors={self.errors}, skipped={self.skipped}"
        return f"TestReport({counts}, duration={self.duration:.2f}, source={self.source!r})"

    def __str__(self) -> str:
        head = f"{self.passed} passed, {self.failed} failed, {self.errors} errors, {self.skipped} skipped"
        return "\n".join([f"{head} in {self.duration:.2f} s", *map(str, self.failures)])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(test.status)}</td><td>{escape(test.name)}</td><td>{test.duration:.3f}</td>"
            f"<td>{escape(test.message)}</td></tr>"
            for test in self.tests
        )
        head = "<tr><th>status</th><th>test</th><th>seconds</th><th>message</th></tr>"
        return f"<p>{escape(str(self).partition(chr(10))[0])}</p><table>{head}{rows}</table>"


def runs_pytest(command: Union[str, Sequence[str]]) -> bool:
    """Whether a command runs pytest, as far as its words say."""
    try:
        words = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError:
        words = str(command).split()
    return any(word.rpartition("/")[2] in ("pytest", "py.test") for word in words)


def read_report(xml: Optional[bytes], result: CommandResult) -> TestReport:
    """The report of a run: from its XML if there is any, else from its output, else from its exit code."""
    cases = None if xml is None else _cases(xml)
    if cases is not None:
        return _counted(cases, result, "junit")
    return _from_output(result) or _from_exit(result)


def _cases(xml: bytes) -> Optional[list[TestCase]]:
    # a document type could define entities that grow without bound, and no report has one
    if b"<!DOCTYPE" in xml or b"<!ENTITY" in xml:
        return None
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return None
    return [_case(element) for element in root.iter("testcase")]


def _case(element: ElementTree.Element) -> TestCase:
    status, message, details = "passed", "", ""
    for tag, word in (("skipped", "skipped"), ("failure", "failed"), ("error", "error")):
        found = element.find(tag)
        if found is not None:
            status, message, details = word, found.get("message") or "", found.text or ""
    file = element.get("file") or ""
    module = file.rpartition(".")[0].replace("/", ".")
    group = element.get("classname") or ""
    # the class alone: the module is in `file`
    group = group[len(module) :].lstrip(".") if module and group.startswith(module) else group
    name = element.get("name") or ""
    return TestCase(
        name=f"{group}.{name}" if group else name,
        status=status,
        duration=_number(element.get("time")),
        file=file,
        # pytest counts from 0
        line=int(_number(element.get("line"))) + 1 if element.get("line") else 0,
        message=" ".join(message.split("\n", 1)[0].split()),
        details=details,
    )


def _number(text: Optional[str]) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def _counted(cases: list[TestCase], result: CommandResult, source: str) -> TestReport:
    def count(status: str) -> int:
        return sum(case.status == status for case in cases)

    seconds = result.wall_time_ms / 1000
    return TestReport(
        cases, count("passed"), count("failed"), count("error"), count("skipped"), seconds, source, result
    )


_SUMMARY = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed)\b")
_SUMMARY_LINE = re.compile(r"^=* ?(?:\d+ \w+(?:, )?)+ in [\d.]+s", re.M)
_UNITTEST = re.compile(r"^Ran (\d+) tests? in ([\d.]+)s\n+(?:OK|FAILED)(?: \((.*)\))?", re.M)
_UNITTEST_CASE = re.compile(
    r"^(FAIL|ERROR): (\S+) \((\S+)\)\n(?:[^\n]*\n)?-{20,}\n(.*?)(?=\n={20,}|\n-{20,}\nRan )", re.M | re.S
)
_PYTEST_CASE = re.compile(r"^(FAILED|ERROR) ([^\s:]+)(?:::(\S+))?(?: - (.*))?$", re.M)


def _from_output(result: CommandResult) -> Optional[TestReport]:
    text = result.stdout + "\n" + result.stderr
    ran = _UNITTEST.search(text)
    if ran is not None:
        return _unittest(text, ran, result)
    lines = _SUMMARY_LINE.findall(text)
    if not lines:
        return None
    counts = {word.rstrip("s"): int(number) for number, word in _SUMMARY.findall(lines[-1])}
    cases = [
        TestCase(
            name=(name or file).replace("::", "."),
            status="failed" if kind == "FAILED" else "error",
            file=file,
            message=message or "",
        )
        for kind, file, name, message in _PYTEST_CASE.findall(text)
    ]
    passed = counts.get("passed", 0) + counts.get("xpassed", 0)
    skipped = counts.get("skipped", 0) + counts.get("xfailed", 0)
    seconds = result.wall_time_ms / 1000
    return TestReport(
        cases, passed, counts.get("failed", 0), counts.get("error", 0), skipped, seconds, "output", result
    )


def _unittest(text: str, ran: re.Match[str], result: CommandResult) -> TestReport:
    counts = {key: int(value) for key, value in re.findall(r"([a-z ]+)=(\d+)", ran.group(3) or "")}
    counts = {key.strip(): value for key, value in counts.items()}
    failed, errors, skipped = (counts.get(key, 0) for key in ("failures", "errors", "skipped"))
    cases = []
    for kind, name, group, details in _UNITTEST_CASE.findall(text):
        place = re.findall(r'File "(.*?)", line (\d+)', details)
        cases.append(
            TestCase(
                # Python 3.11 and newer say the whole name within the brackets
                name=group if group.endswith(name) else f"{group}.{name}",
                status="failed" if kind == "FAIL" else "error",
                file=place[-1][0] if place else "",
                line=int(place[-1][1]) if place else 0,
                message=details.strip().rpartition("\n")[2],
                details=details.strip(),
            )
        )
    passed = int(ran.group(1)) - failed - errors - skipped
    return TestReport(cases, max(passed, 0), failed, errors, skipped, float(ran.group(2)), "output", result)


def _from_exit(result: CommandResult) -> TestReport:
    return TestReport([], 0, 0, 0 if result.ok else 1, 0, result.wall_time_ms / 1000, "exit_code", result)
