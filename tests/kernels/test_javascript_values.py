"""What the JavaScript kernel saves of its variables, and loads in another one."""

# programs in other languages are broken where they want to be
# ruff: noqa: E501

import tempfile
import unittest
from pathlib import Path

from harness import CONTEXTS, KernelTest, Message, node

PROGRAM = Path(CONTEXTS, "javascript_values.cjs").read_text()
LIMIT = 64 << 20
# for those that take none to speak of
SECONDS = 60


@unittest.skipIf(node() is None, "node is not installed")
class ValuesTest(KernelTest):
    command = [node() or "node", str(CONTEXTS / "javascript.cjs")]

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file = Path(folder.name, "private", "values")
        super().setUp()

    def keep(self, operation: str, **fields: object) -> Message:
        request = {"op": operation, "id": operation, "program": PROGRAM, "path": str(self.file), "seconds": SECONDS}
        self.kernel.send({**request, "limit": LIMIT, **fields})
        answer = self.kernel.receive()
        assert answer is not None
        self.assertEqual((answer["type"], answer["id"]), ("values", operation))
        self.assertNotIn("failure", answer)
        answer["lost"] = {item["name"]: item["reason"] for item in answer["lost"]}
        return answer

    def move(self, code: str, lost: "dict[str, str] | None" = None, **fields: object) -> Message:
        """Runs code, and goes on in a new interpreter with what can be saved of it."""
        outcome = self.run_cell(code)
        self.assertIsNone(outcome.error, outcome.error)
        saved = self.keep("save", **fields)
        for name, part in (lost or {}).items():
            self.assertIn(part, saved["lost"].get(name, ""), saved)
        self.assertEqual(set(saved["lost"]), set(lost or {}), saved)
        self.kernel = self.start()
        loaded = self.keep("load", **fields)
        self.assertEqual((loaded["variables"], loaded["lost"]), (saved["variables"], {}))
        self.assertFalse(self.file.exists())
        return saved

    def holds(self, *expressions: str) -> None:
        for expression in expressions:
            with self.subTest(expression):
                self.assertEqual(self.value(expression), "true")


class RoundTrips(ValuesTest):
    def test_plain_values(self) -> None:
        self.move(
            "let a = [1, -0, NaN, 10n, 'é', true, null, undefined, Infinity]; const b = {x: {y: [1, , 3]}, 'odd key': 1};\n"
            "var c = new Map([[{k: 1}, 'v'], ['s', new Set([1, 2])]]); let d = new Date(5), bad = new Date(NaN);\n"
            "let e = /a(b)/gi, f = new Uint16Array([1, 65535]), g = Buffer.from('buffer'), h = new Error('bad', {cause: a});\n"
            "let i = Symbol.for('s'), j = Symbol('own'), k = {[j]: 1, [Symbol.iterator]: 2}, l = Object.create(null), m = Object.freeze({z: 1});\n"
            "let n = new ArrayBuffer(8), o = new DataView(n, 4, 2), p = new URL('http://a/b?c=d'), q = Object.create({up: 1}), late; l.x = 1"
        )
        self.holds(
            "a.length === 9 && Object.is(a[1], -0) && Number.isNaN(a[2]) && a[3] === 10n && a[4] === 'é' && a[8] === Infinity",
            "b.x.y.length === 3 && !(1 in b.x.y) && b['odd key'] === 1",
            "[...c.keys()][0].k === 1 && c.get('s').has(2) && d.getTime() === 5 && isNaN(bad)",
            "e.test('AB') && e.flags === 'gi' && f[1] === 65535 && f instanceof Uint16Array && g.toString() === 'buffer'",
            "h instanceof Error && h.message === 'bad' && h.cause === a && h.stack.includes('bad')",
            "i === Symbol.for('s') && k[j] === 1 && k[Symbol.iterator] === 2 && Object.getPrototypeOf(l) === null && l.x === 1",
            "Object.isFrozen(m) && m.z === 1 && o.buffer === n && o.byteOffset === 4 && o.byteLength === 2",
            "p.searchParams.get('c') === 'd' && q.up === 1 && !Object.hasOwn(q, 'up') && late === undefined",
        )

    def test_kinds_of_declarations_stay(self) -> None:
        self.move("let a = 1; const b = [2]; var c = 3; d = 4; let unused")
        self.holds("a === 1 && b[0] === 2 && c === 3 && globalThis.c === 3 && d === 4 && !('a' in globalThis)")
        self.run_cell("a = 5")
        outcome = self.run_cell("b = 6")
        assert outcome.error is not None
        self.assertEqual(outcome.error["name"], "TypeError")
        self.holds("a === 5 && b[0] === 2")

    def test_what_is_shared_stays_shared(self) -> None:
        self.move(
            "const a = []; let b = [a]; var c = {a, b}; a.push(c); let u = new Uint8Array(4), v = new Uint8Array(u.buffer, 1)"
        )
        self.run_cell("u[1] = 7")
        self.holds("b[0] === a && c.a === a && a[0] === c && c.b === b && v[0] === 7")

    def test_functions_and_classes(self) -> None:
        self.move(
            "let factor = 3; function times(n, by = 2) { return n * by * factor }\n"
            "const square = (x) => x * x, later = async () => 5, steps = function* () { yield 1 };\n"
            "function fact(n) { return n < 2 ? 1 : n * fact(n - 1) }\n"
            "const tools = { add(a, b) { return a + b }, 'odd name'() { return 1 }, async wait() { return 2 }, times };\n"
            "times.note = ['kept'];\n"
            "let early = []; class Base { static made = 0; constructor(n) { this.n = n } name() { return 'base' } static plain() { return 1 } }\n"
            "class Sub extends Base { kind = 'sub'; name() { return 'sub of ' + super.name() } get twice() { return this.n * 2 } }\n"
            "Sub.made = 4; const one = new Sub(3); early.push(one); let same = one;\n"
            "class Stack extends Array { top() { return this[this.length - 1] } } const stack = Stack.from([1, 2]);\n"
            "class Bad extends Error { constructor(m) { super(m); this.name = 'Bad' } } const bad = new Bad('x');\n"
            "function Old(n) { this.n = n } Old.prototype.get = function () { return this.n }; const old = new Old(9);\n"
            "const max = Math.max, log = console.log"
        )
        self.holds(
            "times(2) === 12 && times.note[0] === 'kept' && tools.times === times && square(4) === 16 && fact(5) === 120",
            "await later() === 5 && [...steps()][0] === 1",
            "tools.add(1, 2) === 3 && tools['odd name']() === 1 && await tools.wait() === 2",
            "one instanceof Sub && one instanceof Base && one.name() === 'sub of base' && one.twice === 6 && one.kind === 'sub'",
            "early[0] === one && same === one && Sub.made === 4 && Base.made === 0 && Sub.plain() === 1 && new Sub(1).n === 1",
            "stack instanceof Stack && stack.top() === 2 && stack.length === 2",
            "bad instanceof Bad && bad instanceof Error && bad.message === 'x' && bad.name === 'Bad'",
            "old instanceof Old && old.get() === 9 && max === Math.max && log === console.log",
        )
        self.run_cell("factor = 1")
        self.holds("times(2) === 4")

    def test_modules_come_back_by_their_names(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "one.cjs").write_text(
                "exports.n = [1]; exports.Thing = class { constructor() { this.x = 1 } }"
            )
            Path(folder, "two.mjs").write_text("export const n = [2]; export default class Two {}")
            outcome = self.run_cell("", cwd=folder)
            self.move(
                "const fs = require('fs'), { join } = require('node:path'), own = require('./one.cjs'), thing = new own.Thing();\n"
                "import two, { n } from './two.mjs'; import * as all from './two.mjs'; import os from 'os'; let held = own.n"
            )
            self.assertIsNone(outcome.error)
            self.holds(
                "typeof fs.readFileSync === 'function' && fs === require('fs') && join('a', 'b') === 'a/b' && os === require('os')",
                "own === require('./one.cjs') && thing instanceof own.Thing && thing.x === 1 && held === own.n",
                "all.n[0] === 2 && all.default === two && n === all.n",
            )

    def test_situation_is_what_it_was(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.environment = {"GIVEN": "1", "LEFT": "2"}
            self.kernel = self.start()
            self.move(f"process.env.SET = 'é'; delete process.env.GIVEN; process.chdir({folder!r}); var x = 1")
            self.holds("process.cwd() === require('fs').realpathSync(__dirname) && process.env.SET === 'é'")
            self.holds("process.env.GIVEN === undefined && process.env.LEFT === '2'")
            self.assertIn(folder, self.value("process.cwd()") or "")

    def test_saved_again_after_it_was_loaded(self) -> None:
        self.move("class A { f() { return g() } } function g() { return [1] } let a = new A()")
        self.move("const b = a.f()")
        self.move("let c = [b]")
        self.holds("a.f()[0] === 1 && c[0] === b && a instanceof A")

    def test_interpreter_goes_on_with_its_variables_after_a_save(self) -> None:
        self.run_cell("let x = [1]; console.log('before')")
        self.assertEqual(self.keep("save")["variables"], ["x"])
        self.run_cell("x.push(2); console.log('after')")
        self.holds("x.length === 2")
        self.assertEqual(self.value("_"), "true")
        self.printed(b"before\nafter\n")


class Lost(ValuesTest):
    def test_what_has_no_value_is_named_with_the_reason(self) -> None:
        code = (
            "const kept = [1]; let shared = {kept};\n"
            "let promise = Promise.resolve(1), weak = new WeakMap(), steps = (function* () {})(), timer = setTimeout(() => {}, 1);\n"
            "let counter = (() => { let n = 0; return () => ++n })(), proxy = new Proxy({}, { get() { throw 1 }, ownKeys() { throw 2 } });\n"
            "class Hidden { #x = 1; get() { return this.#x } } const hidden = new Hidden(); let holder = {deep: [promise], kept};\n"
            "const emitter = new (require('net').Socket)(), getter = { get x() { throw 3 } }, bound = shared.toString.bind(1);\n"
            "const last = [kept]"
        )
        saved = self.move(
            code,
            {
                "promise": "a promise",
                "weak": "WeakMap",
                "steps": "generator",
                "timer": "closes over",
                "counter": "closes over n",
                "proxy": "proxy",
                "hidden": "private fields",
                "holder": "a promise",
                "emitter": "Socket",
                "getter": "computed",
                "bound": "no name",
            },
        )
        self.assertTrue({"kept", "shared", "Hidden", "last"} <= set(saved["variables"]))
        self.holds("shared.kept === kept && last[0] === kept && new Hidden().get() === 1")

    def test_largest_are_left_out_until_the_rest_fits(self) -> None:
        code = "let a = 'a'.repeat(400000), b = Buffer.alloc(700000), c = new Uint8Array(300000), d = [c, c], e = 'x'.repeat(2e6)"
        saved = self.move(code, {"e": "too large", "b": "too large"}, limit=1_000_000)
        self.assertEqual(saved["variables"], ["a", "c", "d"])
        self.holds("d[0] === c && d[1] === c && a.length === 400000")

    def test_deep_and_many_objects_are_no_problem(self) -> None:
        self.move(
            "let deep = []; for (let n = 0; n < 100000; n++) deep = [deep]; let many = Array.from({length: 100000}, (_, n) => ({n}))"
        )
        self.holds(
            "(() => { let n = 0; for (let d = deep; d.length; d = d[0]) n++; return n === 100000 })() && many[99999].n === 99999"
        )

    def test_time_is_bounded(self) -> None:
        self.run_cell("let many = Array.from({length: 3e5}, (_, n) => [n, {n}]), little = 1")
        saved = self.keep("save", seconds=0)
        self.assertEqual((saved["variables"], set(saved["lost"])), (["little"], {"many"}))
        self.assertEqual(self.value("little"), "1")

    def test_what_cannot_be_loaded_takes_along_only_what_holds_it(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "fleeting.cjs").write_text("exports.Thing = class {}")
            self.run_cell("", cwd=folder)
            code = "const fleeting = require('./fleeting.cjs'), thing = new fleeting.Thing(), fine = {a: [1]}, holder = {thing, fine}"
            code += "; class Prints { static { if (globalThis.loaded) { console.log('out'); throw new Error('no') } } } var loaded = 1"
            self.run_cell("var loaded; " + code)
            self.assertEqual(self.keep("save")["lost"], {})
            Path(folder, "fleeting.cjs").unlink()
        self.kernel = self.start()
        loaded = self.keep("load")
        self.assertEqual(set(loaded["lost"]), {"fleeting", "thing", "holder"})
        self.assertIn("fleeting.cjs", loaded["lost"]["thing"])
        self.holds("fine.a[0] === 1")
        self.assertEqual(bytes(self.kernel.output["stdout"]), b"")

    def test_file_that_is_no_file_of_values_is_a_failure(self) -> None:
        for content in (b"", b"nonsense"):
            self.file.parent.mkdir(exist_ok=True)
            self.file.write_bytes(content)
            self.kernel.send({"op": "load", "id": 1, "program": PROGRAM, "path": str(self.file), "seconds": SECONDS})
            answer = self.kernel.receive()
            assert answer is not None
            self.assertEqual((answer["type"], "failure" in answer), ("values", True))
        self.assertEqual(self.value("1"), "1")

    def test_no_room_loses_the_variables(self) -> None:
        self.run_cell("let x = 1")
        self.file = Path("/proc/nowhere/values")
        saved = self.keep("save")
        self.assertEqual(saved["variables"], [])
        self.assertIn("no file", saved["lost"]["x"])
