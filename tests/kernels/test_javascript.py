"""The JavaScript kernel, as a process of its own."""

import json
import signal
import socket
import tempfile
import time
import unittest
from pathlib import Path

from harness import CONTEXTS, KernelTest, node

RICH = """
class Rich {
  _repr_html_() { return '<b>x</b>'; }
  _toMd() { return '**x**'; }
  _toSvg() { return '<svg/>'; }
  _toPng() { return Buffer.from('png'); }
  _repr_latex_() { return '$x$'; }
  _repr_json_() { return { a: [1, null, 'é'] }; }
}
"""


@unittest.skipIf(node() is None, "node is not installed")
class JavaScriptTest(KernelTest):
    command = [node() or "node", str(CONTEXTS / "javascript.cjs")]


class Cells(JavaScriptTest):
    def test_ready_names_the_language(self) -> None:
        self.assertEqual((self.ready["type"], self.ready["language"]), ("ready", "javascript"))
        self.assertEqual(self.value("process.versions.node"), repr(self.ready["version"]))

    def test_variables_live_from_cell_to_cell(self) -> None:
        self.run_cell("let x = 1; const y = 2; function f() { return x + y } class A {}")
        self.assertEqual(self.value("let x = 40; const y = 2; f()"), "42")
        self.assertEqual(self.value("_ + 1"), "43")

    def test_only_a_last_value_is_a_result(self) -> None:
        self.assertEqual(self.value("1; 2;"), "2")
        for code in ("let q = 1", "undefined", "", "// nothing", "function g() {}"):
            self.assertEqual(self.run_cell(code).results, [])
        self.assertEqual(self.value("{a: 1}"), "{ a: 1 }")
        self.assertEqual(self.value("{ let b = 3; b }"), "3")

    def test_top_level_await(self) -> None:
        code = "const later = (v) => new Promise((r) => setTimeout(r, 10, v)); await later(3) + await later(4)"
        self.assertEqual(self.value(code), "7")
        self.assertEqual(self.value("Promise.resolve('awaited as well')"), "Promise { 'awaited as well' }")

    def test_modules_are_found_from_the_working_directory(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "one.cjs").write_text("exports.n = 1")
            Path(folder, "two.mjs").write_text("export const n = 2; export default 3")
            installed = Path(folder, "node_modules", "three")
            installed.mkdir(parents=True)
            (installed / "package.json").write_text('{"name": "three", "type": "module", "exports": "./index.js"}')
            (installed / "index.js").write_text("export const n = 4")
            code = """
import two, { n as second } from './two.mjs';
import * as three from "three"
import 'node:fs';
const text = `import(${'x'}) and ${`import y from 'z'`}`, ratio = 4 / 2 / 1, pattern = /import\\(['"`]/;
[require('./one.cjs').n, second, two, three.n, (await import('./two.mjs')).n, text, __dirname === process.cwd()].join()
"""
            outcome = self.run_cell(code, cwd=folder, env={"NEW": "é"})
            self.assertIsNone(outcome.error)
            self.assertEqual(outcome.text, "\"1,2,3,4,2,import(x) and import y from 'z',true\"")
            self.assertEqual(self.value("process.env.NEW"), "'é'")
        self.assertEqual((self.run_cell("1", cwd="/nowhere").error or {})["name"], "Error")

    def test_typescript_needs_a_node_that_strips_types(self) -> None:
        strips = self.value("typeof require('node:module').stripTypeScriptTypes") == "'function'"
        outcome = self.run_cell("const n: number = 5; n", language="typescript")
        if strips:
            self.assertEqual(outcome.text, "5")
        else:
            self.assertEqual((outcome.error or {})["name"], "LanguageUnavailable")
        self.assertEqual(bytes(self.kernel.output["stderr"]), b"")

    def test_protocol_takes_what_it_does_not_know(self) -> None:
        for document in ({"op": "dance"}, {}, [1], "text", None, 7):
            self.kernel.send(document)
        first, second = self.begin("await new Promise((r) => setTimeout(r, 200)); 1"), self.begin("2")
        self.assertEqual((self.finish(first).text, self.finish(second).text), ("1", "2"))


class Errors(JavaScriptTest):
    def test_name_value_and_stack_of_the_users_frames(self) -> None:
        outcome = self.run_cell("const f = () => { throw new RangeError('bad') }\nf()")
        assert outcome.error is not None
        self.assertEqual((outcome.error["name"], outcome.error["value"]), ("RangeError", "bad"))
        self.assertEqual(outcome.error["traceback"], "RangeError: bad\n    at f (cell-1:1:25)\n    at cell-1:2:1\n")
        self.assertEqual(outcome.exit_code, 1)
        late = self.run_cell("await Promise.reject(new TypeError('t', { cause: new Error('c') }))")
        self.assertIn("[cause]: Error: c", (late.error or {})["traceback"])
        self.assertEqual((self.run_cell("throw 5").error or {})["value"], "5")
        self.assertEqual(bytes(self.kernel.output["stderr"]), b"")

    def test_syntax_error_shows_the_line(self) -> None:
        error = self.run_cell("let a = 1;\nlet b = = 2;").error
        self.assertEqual(
            (error or {})["traceback"], "cell-1:2\nlet b = = 2;\n        ^\nSyntaxError: Unexpected token '='\n"
        )
        self.assertIn("f(\n  ^\n", (self.run_cell("f(").error or {})["traceback"])

    def test_exit_ends_the_cell_only(self) -> None:
        for code, expected in (
            ("process.exit(7)", 7),
            ("process.exit()", 0),
            ("process.exit(259)", 3),
            ("await null; process.exit(4)", 4),
            ("setTimeout(() => process.exit(5), 5); await new Promise(() => {})", 5),
            ("(async () => { await null; process.exit(6) })(); await new Promise(() => {})", 6),
        ):
            with self.subTest(code):
                outcome = self.run_cell(code)
                self.assertEqual((outcome.exit_code, outcome.error), (expected, None))
        self.assertEqual(self.value("1"), "1")

    def test_stray_errors_are_printed(self) -> None:
        self.run_cell("setTimeout(() => { throw new Error('timer') }, 1); Promise.reject(new Error('rejected')); 0")
        self.contains(b"Uncaught Error: timer", "stderr")
        self.contains(b"Uncaught Error: rejected", "stderr")
        self.assertEqual(self.value("1"), "1")

    def test_errors_that_cannot_be_shown_end_the_cell_only(self) -> None:
        for code in (
            "throw Object.defineProperty(new Error('x'), 'message', { get() { throw 1 } })",
            "throw { get [Symbol.toStringTag]() { throw 1 } }",
            "throw new Proxy(new Error('p'), { get() { throw 2 } })",
            "throw Object.freeze(new Error('frozen'))",
            "throw null",
        ):
            with self.subTest(code):
                self.assertEqual(self.run_cell(code).exit_code, 1)
        self.assertEqual(self.value("1"), "1")


class Results(JavaScriptTest):
    def test_every_representation_arrives(self) -> None:
        data = self.run_cell(RICH + "new Rich()").main
        assert data is not None
        self.assertEqual(json.loads(data.pop("application/json")), {"a": [1, None, "é"]})
        self.assertEqual(
            data,
            {
                "text/plain": "Rich {}",
                "text/html": "<b>x</b>",
                "text/markdown": "**x**",
                "image/svg+xml": "<svg/>",
                "image/png": "cG5n",
                "text/latex": "$x$",
            },
        )
        for name in ("[Symbol.for('Jupyter.display')]", "_toMime", "_repr_mimebundle_"):
            outcome = self.run_cell(f"({{ {name}() {{ return {{ 'text/html': 'h' }} }} }})")
            self.assertEqual((outcome.main or {})["text/html"], "h")

    def test_display_sends_results_in_order(self) -> None:
        outcome = self.run_cell(RICH + "display(1, new Rich()); display({ 'text/html': 'raw' }); 'end'")
        self.assertEqual([data.get("text/html") for data in outcome.displays], [None, "<b>x</b>", "raw"])
        self.assertEqual(outcome.text, "'end'")

    def test_broken_values_are_told_in_the_text(self) -> None:
        for code, word in (
            ("({ _repr_html_() { throw new Error('no') } })", "_repr_html_ threw Error: no"),
            ("({ _toHtml() { return 5 } })", "_toHtml gave no text/html"),
            ("({ async _toPng() {} })", "a promise instead of text"),
            (
                "({ [Symbol.for('nodejs.util.inspect.custom')]() { throw new Error('no') } })",
                "cannot be shown: Error: no",
            ),
            ("({ get _repr_html_() { throw new Error('getter') } })", "threw Error: getter"),
            ("new Proxy({}, { get() { throw new Error('trap') } })", "{}"),
            ("'\\ud800' + String.fromCharCode(0xdc00)", "𐀀"),
        ):
            with self.subTest(code):
                self.assertIn(word, self.value(code) or "")

    def test_limits(self) -> None:
        text = self.value("'é'.repeat(100000)") or ""
        self.assertLessEqual(len(text.encode()), 64 << 10)
        self.assertIn("bytes left out", text)
        outcome = self.run_cell("({ _toPng: () => Buffer.alloc(10 << 20), _toHtml: () => 'h' })")
        self.assertEqual(outcome.results[0]["dropped"], ["image/png"])
        many = self.run_cell("for (let i = 0; i < 1000; i++) display(i); 'end'")
        self.assertEqual((len(many.displays), many.text), (256, "'end'"))
        self.assertIn("745 more", many.displays[-1]["text/plain"])
        failed = self.run_cell("throw new Error('x'.repeat(1000000))").error or {}
        self.assertLessEqual(len(failed["value"]), 16 << 10)
        self.assertLessEqual(len(failed["traceback"]), 64 << 10)

    def test_half_a_surrogate_becomes_a_replacement(self) -> None:
        outcome = self.run_cell("display({ 'text/html': 'a\\ud800b' })")
        self.assertEqual(outcome.displays[0]["text/html"], "a\ufffdb")


class Output(JavaScriptTest):
    def test_output_is_complete_and_in_order_before_done(self) -> None:
        self.run_cell("for (let i = 0; i < 200000; i++) console.log(i)")
        self.eventually(
            lambda: self.kernel.output["stdout"].endswith(b"\n199999\n"), lambda: len(self.kernel.output["stdout"])
        )
        self.assertEqual(self.kernel.output["stdout"].count(b"\n"), 200000)

    def test_lines_arrive_while_the_cell_is_busy(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            mark = Path(folder, "mark")
            execution = self.begin(f"console.log('early'); while (!require('fs').existsSync({str(mark)!r}));")
            self.printed(b"early\n")
            mark.touch()
            self.finish(execution)

    def test_binary_passes_and_streams_stay_open(self) -> None:
        self.run_cell("process.stdout.write(Buffer.from([0, 255, 10])); console.error('e %d', 5); process.stdout.end()")
        self.run_cell("process.stdout.destroy(); console.log('still')")
        self.printed(b"\x00\xff\nstill\n")
        self.printed(b"e 5\n", "stderr")

    def test_patched_json_and_closed_control_descriptor_do_no_harm(self) -> None:
        self.run_cell("JSON.stringify = JSON.parse = null; Array.prototype.map = null")
        self.run_cell("require('fs').closeSync(3)")
        self.assertEqual(self.value("1 + 1"), "2")


class Interrupts(JavaScriptTest):
    def interrupted(self, code: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            mark = Path(folder, "mark")
            execution = self.begin(f"require('fs').writeFileSync({str(mark)!r}, '');\n{code}")
            self.wait_for_file(mark)
            time.sleep(0.1)
            self.kernel.interrupt()
            outcome = self.finish(execution)
        self.assertEqual(((outcome.error or {})["name"], outcome.exit_code), ("InterruptedError", 130))
        self.assertEqual(self.value("1 + 1"), "2")

    def test_busy_and_waiting_cells(self) -> None:
        for code in (
            "await new Promise((r) => setTimeout(r, 60000))",
            "while (true) {}",
            "await null; while (true) {}",
            "await new Promise((r) => setTimeout(r, 5)); while (true) {}",
            "setTimeout(() => { while (true) {} }, 5); await new Promise(() => {})",
            "try { while (true) {} } catch {} finally { }",
            "({ [Symbol.for('nodejs.util.inspect.custom')]() { while (true) {} } })",
        ):
            with self.subTest(code):
                self.interrupted(code)

    def test_idle_kernels_do_not_notice(self) -> None:
        for _ in range(50):
            self.kernel.interrupt()
        self.assertEqual(self.value("1 + 1"), "2")

    def test_interrupts_at_any_time_never_lose_an_answer(self) -> None:
        for round_ in range(40):
            busy = (round_ % 8) * 20
            execution = self.begin(f"for (const t = Date.now(); Date.now() < t + {busy};); display(1); 'x'")
            time.sleep(0.002 * (round_ % 7))
            self.kernel.interrupt()
            self.assertIn(self.finish(execution).exit_code, (0, 130))
        self.assertEqual(self.value("1 + 1"), "2")

    def test_interrupt_that_comes_before_the_cell_has_begun_is_not_lost(self) -> None:
        for code in ("await new Promise(() => {})", "while (true) {}") * 5:
            outcome = self.finish(self.begin_interrupted(code))
            self.assertEqual(((outcome.error or {})["name"], outcome.exit_code), ("InterruptedError", 130))
        self.assertEqual(self.value("1 + 1"), "2")


class Processes(JavaScriptTest):
    def test_children_do_not_hold_the_channel(self) -> None:
        code = "const { spawn } = require('child_process'); const p = spawn('sleep', ['60'], { detached: true }); p.pid"
        pid = int(self.value(code) or "0")
        held = [link for link in Path(f"/proc/{pid}/fd").iterdir() if int(link.name) > 2]
        self.assertEqual(held, [])

    def test_hanging_up_ends_idle_and_busy_kernels(self) -> None:
        self.assertEqual(self.kernel.close(), 0)
        self.kernel = self.start()
        self.begin("console.log(1); while (true) {}")
        self.contains(b"1\n")
        self.kernel.control.shutdown(socket.SHUT_RDWR)
        self.assertIn(self.kernel.wait(), (0, -signal.SIGKILL))

    def test_a_line_that_is_no_json_ends_the_kernel(self) -> None:
        for line in (b"nonsense", b"", b'{"a":"\xff"}', b"{} {}"):
            self.kernel = self.start()
            self.kernel.send_line(line)
            self.assertEqual(self.kernel.wait(), 70)

    def test_death_ends_the_channel(self) -> None:
        self.begin("process.kill(process.pid, 'SIGKILL')")
        self.assertIsNone(self.kernel.receive())
