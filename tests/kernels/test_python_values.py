"""What the Python kernel saves of its variables, and loads in another one."""

# programs in other languages are broken where they want to be
# ruff: noqa: E501

import importlib.util
import os
import signal
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

from harness import CONTEXTS, KernelTest, Message, python_program

PROGRAM = Path(CONTEXTS, "python_values.py").read_text()
LIMIT = 64 << 20
# for those that take none to speak of
SECONDS = 60


class ValuesTest(KernelTest):
    command = [sys.executable, python_program()]

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
        self.assertEqual(set(saved["lost"]), set(lost or {}))
        self.kernel = self.start()
        loaded = self.keep("load", **fields)
        self.assertEqual((loaded["variables"], loaded["lost"]), (saved["variables"], {}))
        self.assertFalse(self.file.exists())
        return saved

    def holds(self, *expressions: str) -> None:
        for expression in expressions:
            with self.subTest(expression):
                self.assertEqual(self.value(expression), "True")


class RoundTrips(ValuesTest):
    def test_plain_values(self) -> None:
        saved = self.move(
            "import datetime, decimal, fractions, collections, re, uuid, pathlib, array\n"
            "a = [1, 2.5, 3j, True, None, 'é', b'b', (1,), {1}, frozenset((2,)), {'k': [1]}, range(3), ...]\n"
            "b = [datetime.datetime(2020, 1, 2), decimal.Decimal('1.5'), fractions.Fraction(1, 3), slice(1, 2)]\n"
            "c = [collections.OrderedDict(a=1), collections.Counter('aab'), collections.deque([1], 5)]\n"
            "d = [re.compile('a+'), uuid.UUID(int=1), pathlib.Path('/a'), array.array('i', [1]), bytearray(b'x')]\n"
            "e = [NotImplemented, type(None), int, len, ValueError('bad', 1), 10**50]\n"
        )
        self.assertEqual(saved["variables"][-5:], ["a", "b", "c", "d", "e"])
        self.holds(
            "a == [1, 2.5, 3j, True, None, 'é', b'b', (1,), {1}, frozenset((2,)), {'k': [1]}, range(3), ...]",
            "b == [datetime.datetime(2020, 1, 2), decimal.Decimal('1.5'), fractions.Fraction(1, 3), slice(1, 2)]",
            "c == [collections.OrderedDict(a=1), collections.Counter('aab'), collections.deque([1], 5)]",
            "d[0].match('aa') is not None and d[1:] == [uuid.UUID(int=1), pathlib.Path('/a'), array.array('i', [1]), b'x']",
            "e[:4] == [NotImplemented, type(None), int, len] and e[4].args == ('bad', 1) and e[5] == 10**50",
        )

    def test_what_is_shared_stays_shared(self) -> None:
        self.move("a = []\nb = [a]\nc = {'a': a, 'b': b}\na.append(c)\nd = a")
        self.run_cell("d.append(1)")
        self.holds("a is d and b[0] is a and c['b'] is b and a[0] is c and a[1] == 1")

    def test_functions_closures_and_recursion(self) -> None:
        self.move(
            "import functools\nfactor = 3\n"
            "def times(n, *, by: int = 2, then=None):\n    'doc'\n    return n * by * factor\n"
            "times.note = ['kept']\nalias = times\n"
            "def fact(n): return 1 if n < 2 else n * fact(n - 1)\n"
            "def counter():\n    n = 0\n    def up():\n        nonlocal n\n        n += 1\n        return n\n"
            "    def look(): return n\n    return up, look\n"
            "up, look = counter()\nup()\n"
            "def even():\n    def inner(n): return n == 0 or not inner(n - 1)\n    return inner\n"
            "even = even()\n"
            "square = lambda x: x * x\n"
            "async def later(): return 5\n"
            "def several():\n    yield 1\n    yield 2\n"
            "half = functools.partial(times, by=1)\n"
            "@functools.lru_cache(maxsize=7)\ndef cached(n): return n + 1\n"
            "def unset():\n    def inner(): return late\n    if 0: late = 1\n    return inner\n"
            "unset = unset()\n"
            "exec('def foreign(n): return helper(n)\\ndef helper(n): return n + 40', place := {})\n"
            "foreign = place['foreign']"
        )
        self.holds(
            "alias is times and times(2) == 12 and times.__doc__ == 'doc' and times.note == ['kept']",
            "times.__annotations__ == {'by': int} and times.__module__ == '__main__'",
            "fact(5) == 120 and even(4) and square(4) == 16 and await later() == 5 and list(several()) == [1, 2]",
            "half(2) == 6 and cached(1) == 2 and cached.cache_parameters()['maxsize'] == 7",
            "(up(), look()) == (2, 2)",
            "foreign(2) == 42",
        )
        self.run_cell("factor = 1")
        self.holds("times(2) == 4")
        outcome = self.run_cell("unset()")
        assert outcome.error is not None
        self.assertEqual(outcome.error["name"], "NameError")

    def test_classes_with_all_that_they_have(self) -> None:
        self.move(
            "import abc, dataclasses, enum, typing, functools, collections\n"
            "class Base:\n    shared = []\n    def __init__(self, n): self.n = n\n    def name(self): return 'base'\n"
            "class Sub(Base):\n"
            "    def name(self): return 'sub of ' + super().name()\n"
            "    @property\n    def twice(self): return self.n * 2\n"
            "    @twice.setter\n    def twice(self, value): self.n = value // 2\n"
            "    @classmethod\n    def make(cls): return cls(7)\n"
            "    @staticmethod\n    def plain(): return 'plain'\n"
            "    @functools.cached_property\n    def once(self): return [self.n]\n"
            "    class Inner:\n        x = 1\n"
            "one = Sub(3)\nmethod = one.name\n"
            "class Slots:\n    __slots__ = ('a', 'b')\n"
            "slots = Slots(); slots.a = 1\n"
            "@dataclasses.dataclass(order=True)\nclass Point:\n    x: int\n    y: int = 2\n"
            "    tags: list = dataclasses.field(default_factory=list)\n"
            "@dataclasses.dataclass(frozen=True)\nclass Frozen(Point if 0 else object):\n    x: int = 1\n"
            "points = [Point(1), Point(2, 3)]\n"
            "class Shape(abc.ABC):\n    @abc.abstractmethod\n    def area(self): ...\n"
            "class Square(Shape):\n    def area(self): return 4\n"
            "class Colour(enum.Enum):\n    RED = 1\n    CRIMSON = 1\n    BLUE = 'b'\n    def low(self): return self.name.lower()\n"
            "class Planet(enum.Enum):\n    EARTH = (5, 6)\n    def __init__(self, mass, radius): self.mass = mass\n"
            "class Bits(enum.Flag):\n    A = enum.auto()\n    B = enum.auto()\n"
            "colours = [Colour.RED, Colour.BLUE, Bits.A | Bits.B]\n"
            "T = typing.TypeVar('T')\n"
            "class Box(typing.Generic[T]):\n    pass\n"
            "Pair = collections.namedtuple('Pair', 'left right')\npair = Pair(1, 2)\n"
            "class Typed(typing.NamedTuple):\n    a: int = 5\n"
            "typed = Typed()\n"
            "class Meta(type):\n    def __new__(m, name, bases, space): return super().__new__(m, name, bases, space)\n"
            "    def __len__(cls): return 9\n"
            "class Made(metaclass=Meta): pass\n"
            "class Bad(ValueError):\n    pass\n"
            "bad = Bad('x')\n"
            "class Odd:\n    def __eq__(self, other): return isinstance(other, Odd)\n    __hash__ = None\n"
            "class Self:\n    pass\nSelf.me = Self\nSelf.one = Self()"
        )
        self.holds(
            "type(one) is Sub and Sub.__mro__[1] is Base and one.name() == 'sub of base' and method() == one.name()",
            "method.__self__ is one and one.twice == 6 and Sub.make().n == 7 and Sub.plain() == 'plain'",
            "one.once is one.once and Sub.Inner.x == 1 and Sub.shared is Base.shared",
            "slots.a == 1 and not hasattr(slots, '__dict__') and not hasattr(slots, 'b')",
            "points == [Point(1, 2, []), Point(2, 3)] and points[0] < points[1] and Frozen() == Frozen(1)",
            "issubclass(Square, Shape) and Square().area() == 4 and isinstance(Square(), Shape)",
            "colours == [Colour.RED, Colour.BLUE, Bits.A | Bits.B] and colours[0] is Colour(1) and Colour.CRIMSON is Colour.RED",
            "Colour.BLUE.low() == 'blue' and Planet.EARTH.mass == 5 and list(Bits) == [Bits.A, Bits.B]",
            "Box[int]().__class__ is Box and Box.__parameters__ == (T,)",
            "type(pair) is Pair and pair._replace(left=3) == (3, 2) and type(typed) is Typed and typed.a == 5",
            "len(Made) == 9 and type(Made) is Meta",
            "isinstance(bad, Bad) and bad.args == ('x',) and Odd() == Odd() and Self.me is Self and type(Self.one) is Self",
        )
        self.run_cell("one.twice = 10\n@dataclasses.dataclass\nclass Deeper(Point):\n    z: int = 9")
        self.holds("one.n == 5", "Deeper(1) == Deeper(1, 2, [], 9)")
        for code in ("Shape()", "Point()", "hash(Odd())", "Frozen().x == 1 and setattr(Frozen(), 'x', 2)"):
            self.assertIsNotNone(self.run_cell(code).error, code)

    def test_modules_come_back_by_their_names(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "neighbour.py").write_text("value = []\nclass Thing: pass\n")
            code = "import sys, os.path as p, json\nfrom math import sqrt\nsys.path.append(FOLDER)\nimport neighbour as n\n"
            code += "thing = n.Thing(); mine = n.value; own = sys.modules['__main__']; show = display"
            self.move(f"FOLDER = {folder!r}\n{code}")
            self.holds(
                "p.join('a', 'b') == 'a/b' and json.dumps(1) == '1' and sqrt(4) == 2",
                "type(thing) is n.Thing and own is sys.modules['__main__'] and own.thing is thing and show is display",
            )

    def test_situation_is_what_it_was(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            code = "import os\nos.environ['SET'] = 'é'; del os.environ['GIVEN']; os.chdir(FOLDER)"
            self.environment = {"GIVEN": "1", "LEFT": "2"}
            self.kernel = self.start()
            self.run_cell("from __future__ import annotations")
            self.move(f"FOLDER = {folder!r}\n{code}\ndef fail():\n    raise ValueError")
            self.holds("os.getcwd() == os.path.realpath(FOLDER)", "os.environ['SET'] == 'é'")
            self.holds("'GIVEN' not in os.environ and os.environ['LEFT'] == '2'")
            self.run_cell("def f(x: nobody): pass")
            self.holds("f.__annotations__ == {'x': 'nobody'}")
            outcome = self.run_cell("fail()")
            assert outcome.error is not None
            self.assertIn("raise ValueError", outcome.error["traceback"])
            self.assertIn("raise ValueError", self.value("import inspect; inspect.getsource(fail)") or "")

    def test_saved_again_after_it_was_loaded(self) -> None:
        self.move("class A:\n    def f(self): return g()\ndef g(): return [1]\na = A()")
        self.move("b = a.f()")
        self.move("c = [b]")
        self.holds("a.f() == [1] and c[0] is b and type(a) is A")

    def test_interpreter_goes_on_with_its_variables_after_a_save(self) -> None:
        self.run_cell("x = [1]\nprint('before')")
        self.assertEqual(self.keep("save")["variables"], ["x"])
        self.assertEqual(self.file.stat().st_mode & 0o077 if self.file.parent.stat().st_mode & 0o077 else 0, 0)
        self.run_cell("x.append(2)\nprint('after')")
        self.assertEqual(self.value("x, [n for n in __import__('sys').modules if 'code_context' in n]"), "([1, 2], [])")
        self.printed(b"before\nafter\n")

    @unittest.skipIf(importlib.util.find_spec("numpy") is None, "numpy is not installed")
    def test_arrays_and_their_views(self) -> None:
        self.move("import numpy as np\na = np.arange(6.0).reshape(2, 3)\nb = [a]\nu = np.sqrt\nt = np.dtype('i4')")
        self.holds("a.sum() == 15.0 and b[0] is a and u(4.0) == 2.0 and t == np.dtype('int32')")

    @unittest.skipIf(importlib.util.find_spec("pandas") is None, "pandas is not installed")
    def test_data_frames(self) -> None:
        self.move("import pandas as pd\nf = pd.DataFrame({'a': [1, 2], 'b': ['x', 'y']})")
        self.holds("f.a.sum() == 3 and list(f.b) == ['x', 'y']")


class Lost(ValuesTest):
    def test_what_has_no_value_is_named_with_the_reason(self) -> None:
        code = (
            "import threading, socket, weakref, types\nkept = [1]\nshared = {'kept': kept}\n"
            "file = open('/etc/hostname')\nplug = socket.socket()\nsteps = (i for i in [])\n"
            "thread = threading.Thread()\nlock = threading.Lock()\nholder = {'deep': [lock], 'kept': kept}\n"
            "class C: pass\nc = C()\nref = weakref.ref(c)\nframe = __import__('sys')._getframe()\n"
            "made = types.ModuleType('made')\nlast = [kept]"
        )
        saved = self.move(
            code,
            {
                "file": "TextIOWrapper",
                "plug": "socket",
                "steps": "generator",
                "thread": "lock",
                "lock": "lock",
                "holder": "lock",
                "ref": "weakref",
                "frame": "frame",
                "made": "cannot be imported",
            },
        )
        self.assertTrue({"kept", "shared", "C", "c", "last"} <= set(saved["variables"]))
        self.holds("shared['kept'] is kept and last[0] is kept and type(c) is C")

    def test_largest_are_left_out_until_the_rest_fits(self) -> None:
        code = "a = b'a' * 400_000\nb = b'b' * 700_000\nc = b'c' * 300_000\nd = [c, c]\ne = 'x' * 2_000_000"
        saved = self.move(code, {"e": "too large", "b": "too large"}, limit=1_000_000)
        self.assertEqual(saved["variables"], ["a", "c", "d"])
        self.holds("d[0] is c and d[1] is c")

    def test_hostile_objects_cost_only_themselves(self) -> None:
        code = (
            "import time, os\nkept = ['kept']\n"
            "class Raises:\n    def __reduce__(self): raise ValueError('no\\n' * 1000)\n"
            "class Leaves:\n    def __getstate__(self): raise SystemExit(3)\n"
            "class Prints:\n    def __getstate__(self): print('out'); return {}\n"
            "class Hangs:\n    def __getstate__(self):\n        while True: time.sleep(0.01)\n"
            "class Stubborn:\n    def __getstate__(self):\n        try:\n            time.sleep(60)\n"
            "        except BaseException: pass\n        time.sleep(60)\n"
            "class Lies:\n    def __reduce__(self): return 7\n"
            "class Deletes:\n    def __getstate__(self): globals().pop('gone', None); return {}\n"
            "class Meta(type):\n    def __getattr__(cls, name): raise KeyError(name)\n"
            "class Str(Exception):\n    def __str__(self): raise ValueError\n"
            "class Deep:\n    def __reduce__(self): raise Str\n"
            "raises, leaves, prints, hangs, stubborn = Raises(), Leaves(), Prints(), Hangs(), Stubborn()\n"
            "lies, deletes, deep = Lies(), Deletes(), Deep()\n"
            "gone = 1\nnest = []\nfor _ in range(100_000): nest = [nest]\n"
            "last = [kept]"
        )
        lost = {
            "raises": "ValueError: no no",
            "leaves": "SystemExit",
            "hangs": "too long",
            "stubborn": "too long",
            "lies": "Error",
            "deep": "Str",
            "gone": "deleted",
            "nest": "RecursionError",
        }
        saved = self.move(code, lost)
        self.assertTrue(all(len(reason) < 250 and "\n" not in reason for reason in saved["lost"].values()))
        self.holds("last[0] is kept", "type(prints) is Prints")
        self.assertEqual((bytes(self.kernel.output["stdout"]), bytes(self.kernel.output["stderr"])), (b"", b""))

    def test_time_is_bounded_for_all_together(self) -> None:
        code = "import time\nclass Hangs:\n    def __getstate__(self): time.sleep(60)\n"
        self.run_cell(code + "kept = 1\nfor n in range(50): globals()[f'h{n}'] = Hangs()")
        saved = self.keep("save", seconds=8)
        self.assertEqual((saved["variables"], len(saved["lost"])), (["time", "Hangs", "kept", "n"], 50))
        self.assertEqual(set(saved["lost"].values()), {"it took too long", "no time was left for it"})

    def test_timer_and_streams_of_the_users_are_put_back(self) -> None:
        self.run_cell(
            "import signal, sys\nrung = []\nhandler = lambda *_: rung.append(1)\nsignal.signal(signal.SIGALRM, handler)\n"
            "signal.setitimer(signal.ITIMER_REAL, 0.3)\nout = sys.stdout\ndef same(): return sys.stdout is out"
        )
        self.keep("save")
        self.assertEqual(
            self.value("import time\ntime.sleep(0.6)\nrung, same(), signal.getsignal(14) is handler"),
            "([1], True, True)",
        )

    def test_names_are_bounded(self) -> None:
        self.run_cell("for n in range(10_050): globals()[f'v{n}'] = n\nglobals()['w' * 300] = 1")
        saved = self.keep("save")
        self.assertEqual(len(saved["variables"]), 10_000)
        self.assertTrue(all(len(name) <= 256 for name in saved["lost"]))

    def test_no_room_loses_the_variables_and_leaves_no_file(self) -> None:
        self.run_cell("x = 1")
        self.file = Path("/proc/nowhere/values")
        saved = self.keep("save")
        self.assertEqual(saved["variables"], [])
        self.assertIn("no file", saved["lost"]["x"])

    def test_interrupt_while_it_saves_does_nothing(self) -> None:
        self.run_cell(
            "import os, signal\nclass Kills:\n    def __getstate__(self): os.kill(os.getpid(), 2); return {}\nk = Kills()"
        )
        self.assertIn("k", self.keep("save")["variables"])
        self.assertEqual(self.value("1"), "1")
        self.assertEqual(signal.SIGINT, 2)


class LostOnLoading(ValuesTest):
    def test_what_cannot_be_loaded_takes_along_only_what_holds_it(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "fleeting.py").write_text("class Thing:\n    def __init__(self): self.name = 'n'\n")
            code = (
                "import sys, datetime\nsys.path.append(FOLDER)\nbefore = {'name': ['n']}\nimport fleeting\n"
                "thing = fleeting.Thing()\nholder = [thing, before]\nday = datetime.date(2020, 1, 2)\n"
                "class Fails:\n    def __setstate__(self, state): print('out'); raise ValueError('no')\n"
                "fails = Fails(); fails.part = part = ['name', 'n', 'Thing']; fails.day = datetime.date(2021, 1, 1)\n"
                "uses_part = [part]\nother = Fails\nfine = {'name': 'n', 'Thing': datetime.date(2022, 1, 1), 'b': before}\n"
                "again = [fine, fine]"
            )
            self.run_cell(f"FOLDER = {folder!r}\n{code}")
            saved = self.keep("save")
            self.assertEqual(saved["lost"], {})
            Path(folder, "fleeting.py").unlink()
        self.kernel = self.start()
        loaded = self.keep("load")
        self.assertIn("ModuleNotFoundError", loaded["lost"].pop("fleeting"))
        self.assertIn("ModuleNotFoundError", loaded["lost"].pop("thing"))
        self.assertIn("ValueError: no", loaded["lost"].pop("fails"))
        self.assertEqual(set(loaded["lost"].values()), {"it holds parts of a variable that is lost"})
        self.assertTrue({"holder"} <= set(loaded["lost"]) <= {"holder", "part", "uses_part"})
        self.holds(
            "before == {'name': ['n']} and day == datetime.date(2020, 1, 2) and other is Fails",
            "fine == {'name': 'n', 'Thing': datetime.date(2022, 1, 1), 'b': before} and fine['b'] is before",
            "again[0] is fine",
        )
        self.assertEqual(bytes(self.kernel.output["stdout"]), b"")

    def test_file_that_is_no_file_of_values_is_a_failure(self) -> None:
        for content in (b"", b"nonsense", os.urandom(1000)):
            self.file.parent.mkdir(exist_ok=True)
            self.file.write_bytes(content)
            request: Any = {"op": "load", "id": 1, "program": PROGRAM, "path": str(self.file), "seconds": SECONDS}
            self.kernel.send(request)
            answer = self.kernel.receive()
            assert answer is not None
            self.assertEqual((answer["type"], "failure" in answer), ("values", True))
        self.assertEqual(self.value("1"), "1")
