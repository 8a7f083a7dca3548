"""The Python kernel, as a process of its own."""

import base64
import importlib.util
import json
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

from harness import KernelTest, python_program

RICH = """
class Rich:
    def _repr_html_(self): return "<b>x</b>"
    def _repr_markdown_(self): return "**x**"
    def _repr_svg_(self): return "<svg/>"
    def _repr_png_(self): return b"png"
    def _repr_jpeg_(self): return (b"jpeg", {"width": 3})
    def _repr_latex_(self): return "$x$"
    def _repr_json_(self): return {"a": [1, None, "é"]}
    def _repr_pdf_(self): return b"pdf"
    def _repr_javascript_(self): return "x()"
    def __repr__(self): return "Rich()"
"""


class PythonTest(KernelTest):
    command = [sys.executable, python_program()]


class Cells(PythonTest):
    def test_ready_names_language_and_version(self) -> None:
        version = ".".join(map(str, sys.version_info[:3]))
        self.assertEqual(self.ready, {"type": "ready", "language": "python", "version": version})

    def test_variables_live_from_cell_to_cell(self) -> None:
        self.run_cell("import math\nx = 20\ndef double(n): return 2 * n")
        self.assertEqual(self.value("double(x) + int(math.pi)"), "43")

    def test_only_a_last_expression_is_a_result(self) -> None:
        self.assertEqual(self.value("1\n2\n(3,)"), "(3,)")
        for code in ("x = 1", "x;", "x  ;  # quiet", "(x\n);\n", "None", "", "# nothing", "for _ in range(3): _"):
            with self.subTest(code):
                self.run_cell("x = 1")
                self.assertEqual(self.run_cell(code).results, [])
        self.assertEqual(self.value("'a;'  # b;"), "'a;'")

    def test_underscore_is_the_last_result(self) -> None:
        self.run_cell("6 * 7")
        self.assertEqual(self.value("_ + 1"), "43")

    def test_namespace_is_a_clean_main_module(self) -> None:
        self.assertEqual(self.value("__name__, [n for n in dir() if not n.startswith('__')]"), "('__main__', [])")
        code = "import pickle, dataclasses\n@dataclasses.dataclass\nclass P:\n    x: 'int' = 1\n"
        self.assertEqual(self.value(code + "pickle.loads(pickle.dumps(P(3)))"), "P(x=3)")
        self.assertEqual(
            self.value("import sys; sys.argv, sys.path[0], sys.modules['__main__'].P is P"), "([''], '', True)"
        )

    def test_future_imports_hold(self) -> None:
        self.run_cell("from __future__ import annotations")
        self.assertEqual(self.value("def f(x: nobody): pass\nf.__annotations__"), "{'x': 'nobody'}")

    def test_environment_and_folder_are_set_before(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "neighbour.py").write_text("answer = 42\n")
            outcome = self.run_cell(
                "import os, neighbour; os.environ['NEW'], os.getcwd(), neighbour.answer", env={"NEW": "é"}, cwd=folder
            )
            self.assertEqual(outcome.text, repr(("é", os.path.realpath(folder), 42)))
        outcome = self.run_cell("print('not run')", cwd="/nowhere")
        assert outcome.error is not None
        self.assertEqual((outcome.error["name"], outcome.exit_code), ("FileNotFoundError", 1))
        self.assertEqual(bytes(self.kernel.output["stdout"]), b"")

    def test_second_execute_waits_for_the_first(self) -> None:
        first = self.begin("import time; time.sleep(0.2); 'first'")
        second = self.begin("'second'")
        self.assertEqual((self.finish(first).text, self.finish(second).text), ("'first'", "'second'"))

    def test_unknown_operations_and_fields_are_ignored(self) -> None:
        for document in ({"op": "dance"}, {}, [1], "text", None, 7):
            self.kernel.send(document)
        self.assertEqual(self.run_cell("1", unknown={"deep": [1.5]}).text, "1")

    def test_identifier_comes_back_as_it_was(self) -> None:
        for identifier in (7, 'a"b\\é\n', None, ["x", {"y": 1.5}]):
            self.kernel.send({"op": "execute", "id": identifier, "code": "pass"})
            self.assertEqual(self.kernel.receive(), {"type": "done", "id": identifier, "exit_code": 0})


class TopLevelAwait(PythonTest):
    def test_loop_lives_from_cell_to_cell(self) -> None:
        self.assertEqual(self.value("import sys; 'asyncio' in sys.modules"), "False")
        self.run_cell("import asyncio\nseen = []\nasync def work():\n    await asyncio.sleep(0.05)\n    seen.append(1)")
        self.run_cell("task = asyncio.create_task(work()); await asyncio.sleep(0)")
        self.assertEqual(self.value("await task; seen"), "[1]")
        self.assertEqual(
            self.value("[x async for x in (lambda: (i for i in []))()] if 0 else await asyncio.sleep(0, 5)"), "5"
        )
        self.assertEqual(self.value("asyncio.run(asyncio.sleep(0, 'own loop'))"), "'own loop'")
        self.assertEqual(self.value("await asyncio.sleep(0, 'again')"), "'again'")

    def test_error_shows_only_the_users_frames(self) -> None:
        outcome = self.run_cell("import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    1 / 0\nawait f()")
        assert outcome.error is not None
        self.assertEqual(outcome.error["traceback"].count("File "), 2)
        self.assertIn("    1 / 0\n", outcome.error["traceback"])
        self.assertEqual(bytes(self.kernel.output["stderr"]), b"")


class Errors(PythonTest):
    def test_name_value_and_traceback(self) -> None:
        self.run_cell("def fail():\n    raise ValueError('bad é')")
        outcome = self.run_cell("x = 1\nfail()")
        assert outcome.error is not None
        self.assertEqual((outcome.error["name"], outcome.error["value"]), ("ValueError", "bad é"))
        trace = outcome.error["traceback"]
        self.assertTrue(
            trace.startswith('Traceback (most recent call last):\n  File "<cell 2>", line 2, in <module>\n    fail()')
        )
        self.assertIn("    raise ValueError('bad é')\nValueError: bad é\n", trace)
        self.assertNotIn("python.py", trace)
        self.assertEqual(outcome.exit_code, 1)

    def test_syntax_error_shows_the_line(self) -> None:
        for code in ("x = = 1", "%magic", "a\0b", "  x = 1"):
            outcome = self.run_cell(code)
            assert outcome.error is not None
            self.assertIn(outcome.error["name"], ("SyntaxError", "ValueError", "IndentationError"))
            self.assertNotIn("python.py", outcome.error["traceback"])
        self.assertIn("    x = = 1\n", (self.run_cell("x = = 1").error or {})["traceback"])

    def test_chains_groups_and_recursion(self) -> None:
        chain = self.run_cell("try:\n    1/0\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e")
        self.assertIn("direct cause", (chain.error or {})["traceback"])
        deep = self.run_cell("def f(): f()\nf()")
        self.assertEqual((deep.error or {})["name"], "RecursionError")
        self.assertEqual(self.value("1"), "1")

    def test_errors_that_cannot_be_shown_end_the_cell_only(self) -> None:
        head = "class E({}):\n    def __str__(self): {}\nraise E"
        for base, body in (
            ("Exception", "raise ValueError"),
            ("Exception", "return 5"),
            ("Exception", "raise SystemExit(9)"),
            ("BaseException", "return str(self)"),
            ("BaseException", "raise KeyboardInterrupt"),
        ):
            with self.subTest(body):
                outcome = self.run_cell(head.format(base, body))
                self.assertIsNotNone(outcome.error)
                self.assertNotEqual(outcome.exit_code, 0)
        self.assertEqual(self.value("1"), "1")

    def test_exit_ends_the_cell_only(self) -> None:
        for code, expected in (
            ("import sys; sys.exit(7)", 7),
            ("sys.exit()", 0),
            ("sys.exit(256 + 3)", 3),
            ("sys.exit(-1)", 255),
            ("sys.exit('a reason')", 1),
            ("exit()", 0),
            ("import asyncio; await asyncio.sleep(0); sys.exit(4)", 4),
        ):
            with self.subTest(code):
                outcome = self.run_cell(code)
                self.assertEqual((outcome.exit_code, outcome.error), (expected, None))
        self.printed(b"a reason\n", "stderr")
        self.assertEqual((self.run_cell("input()").error or {})["name"], "EOFError")

    def test_sources_are_known_to_inspect_and_to_the_users_tracebacks(self) -> None:
        self.run_cell("def f():\n    return 'known'")
        self.assertIn("known", self.value("import inspect; inspect.getsource(f)") or "")
        self.run_cell("import traceback\ntry:\n    1 / 0  # here\nexcept Exception: traceback.print_exc()")
        self.contains(b"1 / 0  # here", "stderr")


class Results(PythonTest):
    def test_every_representation_arrives(self) -> None:
        self.assertEqual(self.value(RICH + "Rich()"), "Rich()")
        data = self.run_cell("Rich()").main
        assert data is not None
        self.assertEqual(json.loads(data.pop("application/json")), {"a": [1, None, "é"]})
        encoded = {kind: base64.b64encode(kind.encode()).decode() for kind in ("png", "jpeg", "pdf")}
        self.assertEqual(
            data,
            {
                "text/plain": "Rich()",
                "text/html": "<b>x</b>",
                "text/markdown": "**x**",
                "image/svg+xml": "<svg/>",
                "image/png": encoded["png"],
                "image/jpeg": encoded["jpeg"],
                "text/latex": "$x$",
                "application/pdf": encoded["pdf"],
                "application/javascript": "x()",
            },
        )

    def test_bundle_comes_first_and_may_have_metadata(self) -> None:
        code = """
class B:
    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/html": "bundle", "application/vnd.x+json": {"a": 1}, "image/png": b"p", "text/plain": "T"}, {}
    def _repr_html_(self): return "method"
B()
"""
        expected = {"text/html": "bundle", "application/vnd.x+json": '{"a": 1}', "image/png": "cA==", "text/plain": "T"}
        self.assertEqual(self.run_cell(code).main, expected)

    def test_display_sends_results_in_order(self) -> None:
        outcome = self.run_cell(RICH + "display(1, Rich())\ndisplay({'text/html': 'raw'}, raw=True)\n'end'")
        self.assertEqual([data.get("text/html") for data in outcome.displays], [None, "<b>x</b>", "raw"])
        self.assertEqual(outcome.text, "'end'")

    def test_display_without_a_cell_prints(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            go = Path(folder, "go")
            self.run_cell(f"""
import os, threading, time
def late():
    while not os.path.exists({str(go)!r}): time.sleep(0.01)
    display("late")
threading.Thread(target=late).start()
""")
            go.touch()
            self.printed(b"'late'\n")

    def test_broken_representations_are_told_in_the_text(self) -> None:
        head = "class B:\n    def {}(self): {}\nB()"
        for name, body, word in (
            ("__repr__", "raise ValueError('no')", "__repr__ raised ValueError: no"),
            ("__repr__", "return 5", "__repr__ raised TypeError"),
            ("__repr__", "return repr(self)", "__repr__ raised RecursionError"),
            ("_repr_html_", "raise ValueError('no')", "_repr_html_ raised ValueError: no"),
            ("_repr_html_", "return 5", "_repr_html_ gave no text/html"),
            ("_repr_json_", "return {1: object()}", "_repr_json_ gave no application/json"),
            ("_repr_json_", "return float('nan')", "_repr_json_ gave no application/json"),
        ):
            with self.subTest(body):
                self.assertIn(word, self.value(head.format(name, body)) or "")
        self.assertIsNotNone(self.value("10 ** 5000 - 1"))

    def test_odd_objects_are_shown_by_their_text(self) -> None:
        self.assertEqual(
            list(self.run_cell("from unittest.mock import MagicMock\nMagicMock()").main or {}), ["text/plain"]
        )
        self.assertEqual(list(self.run_cell(RICH + "Rich").main or {}), ["text/plain"])
        self.value("class A:\n    def __getattr__(self, n): raise ValueError\nA()")
        self.assertEqual(
            self.value(
                "class S(str):\n    def encode(self, *a): 1/0\nclass R:\n    def __repr__(self): return S('s')\nR()"
            ),
            "s",
        )

    def test_invalid_unicode_becomes_a_replacement(self) -> None:
        self.assertEqual(
            self.value("class R:\n    def __repr__(self): return 'a\\ud800b\\udc80\\U0001f600'\nR()"),
            "a\ufffdb\ufffd😀",
        )
        self.assertEqual((self.run_cell("raise ValueError('\\udcff')").error or {})["value"], "\ufffd")

    def test_blocking_repr_is_interrupted(self) -> None:
        execution = self.begin("import time\nclass B:\n    def __repr__(self): time.sleep(60)\nprint(1)\nB()")
        self.contains(b"1\n")
        time.sleep(0.1)
        self.kernel.interrupt()
        self.assertEqual(self.finish(execution).exit_code, 130)


class Limits(PythonTest):
    def test_texts_are_cut(self) -> None:
        text = self.value("'é' * 100_000") or ""
        self.assertLessEqual(len(text.encode()), 64 << 10)
        self.assertIn("bytes left out", text)
        outcome = self.run_cell("raise ValueError('x' * 1_000_000)")
        assert outcome.error is not None
        self.assertLessEqual(len(outcome.error["value"]), 16 << 10)
        self.assertLessEqual(len(outcome.error["traceback"]), 64 << 10)

    def test_largest_representations_are_dropped(self) -> None:
        code = "class B:\n    def _repr_png_(self): return bytes(10 << 20)\n    def _repr_html_(self): return 'h'\nB()"
        outcome = self.run_cell(code)
        self.assertEqual(outcome.results[0]["dropped"], ["image/png"])
        self.assertEqual((outcome.main or {})["text/html"], "h")

    def test_results_are_counted_and_the_last_expression_is_kept(self) -> None:
        outcome = self.run_cell("for i in range(1000): display(i)\n'end'")
        self.assertEqual(len(outcome.displays), 256)
        self.assertEqual(outcome.text, "'end'")
        self.assertIn("745 more", outcome.displays[-1]["text/plain"])
        self.assertEqual(len(self.run_cell("for i in range(255): display(i)\n'end'").results), 256)

    def test_big_code_is_taken(self) -> None:
        self.assertEqual(self.value("x = '" + "a" * (9 << 20) + "'; len(x)"), str(9 << 20))


class Output(PythonTest):
    def test_lines_arrive_as_they_are_printed(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            mark = Path(folder, "mark")
            code = f"import os\nprint('early')\nwhile not os.path.exists({str(mark)!r}): pass\nprint('late', end='')"
            execution = self.begin(code)
            self.printed(b"early\n")
            mark.touch()
            self.finish(execution)
        self.printed(b"early\nlate")

    def test_binary_and_escaped_bytes_pass(self) -> None:
        self.run_cell("import sys; sys.stdout.buffer.write(bytes(range(256))); print('\\udcff')")
        self.printed(bytes(range(256)) + b"\xff\n")

    def test_a_million_lines_are_complete_before_done(self) -> None:
        self.run_cell("for i in range(1_000_000): print(i)")
        self.eventually(
            lambda: self.kernel.output["stdout"].endswith(b"\n999999\n"), lambda: len(self.kernel.output["stdout"])
        )

    def test_replaced_and_closed_streams(self) -> None:
        self.run_cell("import io, sys; print('kept', end=''); sys.stdout = io.StringIO()")
        self.run_cell("print('captured')")
        self.printed(b"kept")
        self.assertEqual(self.value("sys.stdout.getvalue()"), "'captured\\n'")
        self.run_cell("sys.stdout.close(); sys.stdin.close(); sys.stderr.close()")
        self.run_cell("print('back')")
        self.run_cell("sys.stdout = None; sys.stderr = 5; del sys.stdin")
        self.run_cell("print('again')")
        self.printed(b"keptback\nagain\n")

    def test_patched_json_and_closed_control_descriptor_do_no_harm(self) -> None:
        self.run_cell("import json, os\njson.dumps = json.loads = None")
        self.run_cell("try: os.close(3)\nexcept OSError: pass")
        self.assertEqual(self.value("1 + 1"), "2")


class Interrupts(PythonTest):
    def interrupted(self, code: str, **means: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            mark = Path(folder, "mark")
            execution = self.begin(f"open({str(mark)!r}, 'w').close()\n{code}")
            self.wait_for_file(mark)
            time.sleep(0.1)
            self.kernel.interrupt(**means)
            outcome = self.finish(execution)
        assert outcome.error is not None
        self.assertEqual((outcome.error["name"], outcome.exit_code), ("KeyboardInterrupt", 130))
        self.assertNotIn("python.py", outcome.error["traceback"])
        self.assertEqual(self.value("1 + 1"), "2")
        self.assertEqual(bytes(self.kernel.output["stderr"]), b"")

    def test_sleep_busy_loop_and_await(self) -> None:
        for code in (
            "import time; time.sleep(60)",
            "while True: pass",
            "import asyncio; await asyncio.sleep(60)",
            "import asyncio; await asyncio.sleep(0)\nwhile True: pass",
            "import asyncio\nasync def b():\n  while True: pass\nt = asyncio.create_task(b())\nawait asyncio.sleep(9)",
            "import threading; threading.Event().wait(60)",
            "import subprocess; subprocess.run(['sleep', '60'])",
        ):
            for means in ({}, {"by_signal": False}, {"by_message": False}):
                if "subprocess" in code and means:
                    continue
                with self.subTest(code, **means):
                    self.interrupted(code, **means)

    def test_a_pair_is_one_interrupt(self) -> None:
        code = """
import time
caught = 0
try: print('go'); time.sleep(60)
except KeyboardInterrupt: caught += 1
time.sleep(0.5)
caught
"""
        execution = self.begin(code)
        self.contains(b"go")
        time.sleep(0.1)
        self.kernel.interrupt()
        outcome = self.finish(execution)
        self.assertEqual((outcome.text, outcome.exit_code), ("1", 0))

    def test_idle_kernels_do_not_notice(self) -> None:
        for _ in range(50):
            self.kernel.interrupt()
        self.assertEqual(self.value("1 + 1"), "2")
        self.run_cell("import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)")
        for _ in range(5):
            self.kernel.interrupt()
            time.sleep(0.01)
        self.assertEqual(self.value("1 + 1"), "2")

    def test_interrupts_at_any_time_never_lose_an_answer(self) -> None:
        for round_ in range(150):
            execution = self.begin("for i in range(20): display(i)\nsum(range(20000))")
            time.sleep((round_ % 30) * 0.0002)
            self.kernel.interrupt()
            self.assertIn(self.finish(execution).exit_code, (0, 130))

    def test_interrupt_that_comes_before_the_cell_has_begun_is_not_lost(self) -> None:
        for code in ("import time; time.sleep(60)", "import asyncio; await asyncio.sleep(60)", "while True: pass") * 5:
            outcome = self.finish(self.begin_interrupted(code))
            self.assertEqual(((outcome.error or {})["name"], outcome.exit_code), ("KeyboardInterrupt", 130))
        self.assertEqual(self.value("1 + 1"), "2")

    def test_own_handler_is_kept_from_cell_to_cell(self) -> None:
        self.run_cell("import signal, os\nseen = []\nsignal.signal(signal.SIGINT, lambda *_: seen.append(1));")
        self.run_cell("os.kill(os.getpid(), signal.SIGINT)")
        self.assertEqual(self.value("seen"), "[1]")


class Processes(PythonTest):
    def test_fork_child_that_leaves_the_cell_exits_silently(self) -> None:
        code = "import os\npid = os.fork()\nif pid == 0: display('child'); 1/0\nos.waitpid(pid, 0)[1] if pid else 0"
        outcome = self.run_cell(code)
        self.assertEqual((outcome.text, outcome.displays), ("256", []))
        self.contains(b"ZeroDivisionError", "stderr")
        self.printed(b"'child'\n")
        self.assertEqual(
            self.value("pid = os.fork()\nif pid == 0: raise SystemExit(5)\nos.waitpid(pid, 0)[1] >> 8"), "5"
        )

    def test_children_do_not_hold_the_channel(self) -> None:
        self.run_cell(
            "import os, subprocess, sys, multiprocessing\n"
            "p = subprocess.Popen(['sleep', '60'], close_fds=False)\n"
            "if os.fork() == 0:\n    import time; time.sleep(60)"
        )
        self.assertEqual(self.value("len([f for f in os.listdir(f'/proc/{p.pid}/fd') if int(f) > 2])"), "0")
        self.assertEqual(self.kernel.close(), 0)

    def test_multiprocessing_works_without_warnings(self) -> None:
        self.run_cell("import multiprocessing as m\ndef f(x): return x * x")
        self.assertEqual(
            self.value("with m.get_context('fork').Pool(2) as pool: r = pool.map(f, [1, 2, 3])\nr"), "[1, 4, 9]"
        )
        self.assertEqual(self.value("with m.get_context('spawn').Pool(1) as pool: r = pool.map(abs, [-1])\nr"), "[1]")
        self.assertEqual(bytes(self.kernel.output["stderr"]), b"")

    def test_threads_may_display(self) -> None:
        code = (
            "import threading as t\nts = [t.Thread(target=lambda: [display(0) for _ in range(20)]) for _ in range(8)]\n"
        )
        outcome = self.run_cell(code + "[t.start() for t in ts]; [t.join() for t in ts];")
        self.assertEqual(len(outcome.displays), 160)

    def test_death_ends_the_channel(self) -> None:
        for code, expected in (("import os; os._exit(9)", 9), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL)):
            self.kernel = self.start()
            self.begin(code)
            self.assertIsNone(self.kernel.receive())
            self.assertEqual(self.kernel.wait(), expected)

    def test_hanging_up_ends_idle_and_busy_kernels(self) -> None:
        self.assertEqual(self.kernel.close(), 0)
        for code in ("while True: pass", "import time; time.sleep(60)", "import asyncio; await asyncio.sleep(60)"):
            self.kernel = self.start()
            self.begin(f"print(1)\n{code}")
            self.contains(b"1\n")
            self.kernel.control.shutdown(socket.SHUT_RDWR)
            self.assertEqual(self.kernel.wait(), 0)

    def test_a_line_that_is_no_json_ends_the_kernel(self) -> None:
        for line in (b"nonsense", b"", b'{"op":', b'{"a":"\xff"}', b"{} {}"):
            with self.subTest(line):
                self.kernel = self.start()
                self.kernel.send_line(line)
                self.assertEqual(self.kernel.wait(), 70)
        self.kernel = self.start()
        self.begin("while True: pass")
        self.kernel.send_line(b"nonsense")
        self.assertEqual(self.kernel.wait(), 70)


PLOT = "import matplotlib.pyplot as plt\n"


class Figures(PythonTest):
    def setUp(self) -> None:
        if importlib.util.find_spec("matplotlib") is None:
            self.skipTest("matplotlib is not installed")
        super().setUp()

    def pictures(self, code: str, **fields: object) -> int:
        outcome = self.run_cell(code, **fields)
        self.assertIsNone(outcome.error)
        found = [result["data"]["image/png"] for result in outcome.results if "image/png" in result["data"]]
        for picture in found:
            self.assertTrue(base64.b64decode(picture).startswith(b"\x89PNG"))
        return len(found)

    def test_open_figures_are_sent_and_closed(self) -> None:
        self.assertEqual(self.pictures(PLOT + "plt.plot([1, 2]);"), 1)
        self.assertEqual(self.value("plt.get_fignums()"), "[]")
        self.assertEqual(
            self.pictures("plt.figure(); plt.plot([1]); plt.show(); plt.figure(); plt.plot([2]); plt.show()"), 2
        )
        self.assertEqual(self.pictures("fig, ax = plt.subplots(); ax.plot([1])\nfig"), 1)
        self.assertEqual(self.pictures("plt.figure();"), 0)

    def test_a_choice_of_the_users_is_kept(self) -> None:
        self.assertEqual(self.pictures("import matplotlib; matplotlib.use('svg')\n" + PLOT + "plt.plot([1]);"), 0)
        self.kernel = self.start()
        self.assertEqual(self.pictures(PLOT + "plt.plot([1]);", env={"MPLBACKEND": "agg"}), 0)

    def test_programs_do_not_inherit_the_backend(self) -> None:
        self.assertEqual(self.value(PLOT + "import os; 'MPLBACKEND' in os.environ"), "False")


class Notebooks(PythonTest):
    def test_display_of_ipython_sends_results(self) -> None:
        if importlib.util.find_spec("IPython") is None:
            self.skipTest("IPython is not installed")
        outcome = self.run_cell("from IPython.display import display, HTML\ndisplay(HTML('<i>'))\nHTML('<b>')")
        self.assertEqual([data.get("text/html") for data in outcome.displays], ["<i>"])
        self.assertEqual((outcome.main or {})["text/html"], "<b>")
