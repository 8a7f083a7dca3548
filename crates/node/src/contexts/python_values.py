"""Saves and loads the variables of a Python context.

Sent by the node with the request that needs it, so that no start pays for it, and executed as the module
`code_context_values`. Nothing here is trusted by the node, and nothing here trusts the user's objects: whatever one of
them raises, prints or waits for, it costs only the variables that hold it.

The file holds one pickle a variable, all of one memo, so that what two variables share they share afterwards, and at
its end an index. Functions and classes of the context are in it by value (code by `marshal`, which a Python of another
version refuses: then they are lost); everything that can be imported is in it by name.
"""

import _signal  # type: ignore[import-not-found]
import _thread
import builtins
import functools
import importlib
import io
import marshal
import os
import pickle
import pickletools
import sys
import time
import types

if False:  # for the type checker alone
    from collections.abc import Callable, Iterator
    from typing import Any

FORMAT = 1
NAMES_LIMIT = 10_000
LOST_LIMIT = 2_000
NAME_LIMIT = 256
REASON_LIMIT = 240
# Seconds for one variable at most.
ONE_SAVE = 2.0
ONE_LOAD = 20.0
# The share of all the time after which no variable is tried on its own, and what one may take of the rest of that.
TRYING = 0.6
SHARE = 0.25
HEAP_TYPE = 1 << 9
TOO_LARGE = "too large"
TOO_SLOW = "it took too long"
NO_TIME = "no time was left for it"
# What `enum` and `type` make anew for a class.
MADE_ANEW = frozenset(
    "__dict__ __weakref__ _abc_impl __static_attributes__ __firstlineno__ _member_names_ _member_map_ "
    "_value2member_map_ _member_type_ _value_repr_ _use_args_ _unhashable_values_ "
    "_unhashable_values_map_ _hashable_values_ _new_member_ __new_member__ _sort_order_ _flag_mask_ "
    "_singles_mask_ _all_bits_ _inverted_ _boundary_".split()
)

# The namespace and the kernel that is worked for.
space: "dict[str, Any]" = {}
kernel: "Any" = None


class Slow(BaseException):
    """Raised into what takes too long."""


class TooLarge(BaseException):
    """Raised out of a write beyond the bound."""


class Full(BaseException):
    """Raised out of a write that the disk refused."""


class Muted:
    """A standard stream that drops what this thread prints: it is not the user who runs."""

    def __init__(self, stream: object) -> None:
        self.stream, self.thread = stream, _thread.get_ident()

    def write(self, text: str) -> int:
        return len(text) if _thread.get_ident() == self.thread else self.stream.write(text)  # type: ignore

    def writelines(self, lines: "Any") -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


class Watch:
    """Raises `Slow` where something takes longer than it may, with the user's own timer put aside."""

    def __enter__(self) -> "Watch":
        self.armed = False
        self.streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = Muted(sys.stdout), Muted(sys.stderr)
        self.began = time.monotonic()
        self.handler = _signal.signal(_signal.SIGALRM, self.ring)
        self.timer = _signal.setitimer(_signal.ITIMER_REAL, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self.armed = False
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        _signal.signal(_signal.SIGALRM, _signal.SIG_DFL if self.handler is None else self.handler)
        left, interval = self.timer
        if left > 0:
            _signal.setitimer(_signal.ITIMER_REAL, max(left - (time.monotonic() - self.began), 0.001), interval)
        sys.stdout, sys.stderr = self.streams

    def ring(self, *_: object) -> None:
        if self.armed:
            raise Slow

    def run(self, act: "Callable[[], Any]", seconds: float) -> "tuple[Any, str]":
        """What `act` returns, or why it did not, in words."""
        try:
            # again and again: the first may be swallowed
            _signal.setitimer(_signal.ITIMER_REAL, max(seconds, 0.001), 0.1)
            self.armed = True
            value = act()
            self.armed = False
            return value, ""
        except Slow:
            return None, TOO_SLOW
        except TooLarge:
            return None, TOO_LARGE
        except Full:
            raise
        except BaseException as error:
            self.armed = False
            return None, in_words(error)
        finally:
            self.armed = False
            _signal.setitimer(_signal.ITIMER_REAL, 0)


def in_words(error: BaseException) -> str:
    name = type(error).__name__
    try:
        text = str.__str__(str(error))
    except BaseException:
        text = ""
    line = " ".join((f"{name}: {text}" if text else name).split())
    line = line.encode("utf-8", "replace").decode()
    return line if len(line) <= REASON_LIMIT else line[:REASON_LIMIT] + "…"


class Sink:
    """Counts what is written, and keeps it where there is a file."""

    def __init__(self, limit: int, file: "io.BufferedWriter | None" = None) -> None:
        self.limit, self.file, self.size = limit, file, 0

    def write(self, data: "Any") -> int:
        length = data.nbytes if isinstance(data, memoryview) else len(data)
        if self.size + length > self.limit:
            raise TooLarge
        if self.file is not None:
            try:
                self.file.write(data)
            except OSError as error:
                raise Full(in_words(error)) from None
        self.size += length
        return int(length)


class Pickler(pickle.Pickler):
    """Pickles by value what lives in the context alone."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink, 5)
        self.codes: dict[int, bytes] = {}
        self.spaces: dict[int, Space] = {}
        self.cells: set[str] = set()
        self.reducers: dict[type, Callable[[Any], Any]] = {
            types.FunctionType: self.of_function,
            types.CodeType: lambda code: (marshal.loads, (self.marshalled(code),)),
            types.CellType: lambda cell: (make_cell, ()),
            types.ModuleType: self.of_module,
            types.MappingProxyType: lambda proxy: (types.MappingProxyType, (dict(proxy),)),
            property: lambda it: (property, (it.fget, it.fset, it.fdel, it.__doc__)),
            staticmethod: lambda it: (staticmethod, (it.__func__,)),
            classmethod: lambda it: (classmethod, (it.__func__,)),
            Space: lambda it: (make_space, (), None, None, it.items()),
            functools.cached_property: lambda it: (make_cached_property, (it.func, it.attrname)),
            type(functools.lru_cache(len)): self.of_cached,
        }
        fields = sys.modules.get("dataclasses")
        for name in ("MISSING", "KW_ONLY", "_HAS_DEFAULT_FACTORY", "_FIELD", "_FIELD_CLASSVAR", "_FIELD_INITVAR"):
            # each is known by its identity
            sentinel = getattr(fields, name, None)
            if sentinel is not None and type(sentinel).__name__ != "_FIELD_BASE":
                self.reducers[type(sentinel)] = lambda it, name=name: (getattr, (fields, name))  # type: ignore
            elif sentinel is not None:
                self.reducers[type(sentinel)] = lambda it: (getattr, (fields, it.name))
        typing = sys.modules.get("typing")
        if typing is not None:
            self.reducers[typing.TypeVar] = self.of_type_variable

    def reducer_override(self, value: "Any") -> "Any":
        reduce = self.reducers.get(type(value))
        if reduce is not None:
            return reduce(value)
        return self.of_class(value) if isinstance(value, type) else NotImplemented

    def marshalled(self, code: types.CodeType) -> bytes:
        self.cells.add(code.co_filename)
        return self.codes.setdefault(id(code), marshal.dumps(code))

    def of_function(self, function: types.FunctionType) -> "Any":
        if is_named(function):
            return NotImplemented
        if function is getattr(builtins, "display", None):
            return getattr, (builtins, "display")
        arguments = self.marshalled(function.__code__), self.place_of(function), function.__name__, function.__closure__
        state = {name: getattr(function, name) for name in FUNCTION_STATE if hasattr(function, name)}
        filled = [(cell, cell.cell_contents) for cell in function.__closure__ or () if is_filled(cell)]
        return make_function, arguments, (state, dict(function.__dict__), filled), None, None, fill_function

    def place_of(self, function: types.FunctionType) -> "Any":
        """Its globals: nothing for the context's own, a module's name, or a namespace of its own."""
        names = function.__globals__
        if names is space:
            return None
        module = names.get("__name__")
        if isinstance(module, str) and getattr(sys.modules.get(module), "__dict__", None) is names:
            return module
        return self.spaces.setdefault(id(names), Space(names))

    def of_module(self, module: types.ModuleType) -> "Any":
        if module.__dict__ is space:
            return importlib.import_module, ("__main__",)
        if sys.modules.get(module.__name__) is not module:
            raise pickle.PicklingError(f"module {module.__name__} cannot be imported")
        return importlib.import_module, (module.__name__,)

    def of_cached(self, function: "Any") -> "Any":
        if is_named(function):
            return NotImplemented
        return make_cached, (function.__wrapped__, function.cache_parameters())

    def of_type_variable(self, variable: "Any") -> "Any":
        if is_named(variable, variable.__name__):
            return NotImplemented
        bounds = variable.__bound__, variable.__covariant__, variable.__contravariant__
        return make_type_variable, (variable.__name__, variable.__constraints__, *bounds)

    def of_class(self, cls: type) -> "Any":
        if cls in (type(None), type(NotImplemented), type(...)) or is_named(cls):
            return NotImplemented
        if not cls.__flags__ & HEAP_TYPE:
            known = [name for name, item in vars(types).items() if item is cls]
            return (getattr, (types, known[0])) if known else NotImplemented
        names = {name: item for name, item in cls.__dict__.items() if not is_made_anew(name, item)}
        members = None
        enum = sys.modules.get("enum")
        if enum is not None and isinstance(cls, enum.EnumMeta):
            listed: Any = cls.__members__.items()
            members = [(name, member._value_) for name, member in listed]
            names = {name: item for name, item in names.items() if name not in cls.__members__}
            names.pop("__new__", None)
            kept = {name: {key: it for key, it in vars(member).items() if key[:1] != "_"} for name, member in listed}
        start = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        # `typing` looks for the latter when a subclass is made
        start.update((name, names.pop(name)) for name in ("__slots__", "__orig_bases__") if name in names)
        arguments = type(cls), cls.__name__, cls.__bases__, start, members
        return make_class, arguments, (names, kept if members is not None else {}), None, None, fill_class


FUNCTION_STATE = ("__defaults__", "__kwdefaults__", "__annotations__", "__doc__", "__module__", "__qualname__")


class Space:
    """The globals of a function that live in no module, without what Python puts there."""

    def __init__(self, names: "dict[str, Any]") -> None:
        self.names = names

    def items(self) -> "Iterator[tuple[str, Any]]":
        return iter([item for item in self.names.items() if item[0] != "__builtins__"])


def is_named(value: "Any", name: "str | None" = None) -> bool:
    """Whether it is found again by its module and its name."""
    module, found = getattr(value, "__module__", None), None
    if not isinstance(module, str) or module == "__main__":
        return False
    found = sys.modules.get(module)
    for part in (name or value.__qualname__).split("."):
        found = getattr(found, part, None)
    return found is value


def is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def is_made_anew(name: str, item: object) -> bool:
    return name in MADE_ANEW or isinstance(item, (types.MemberDescriptorType, types.GetSetDescriptorType))


# What pickles call


def make_cell() -> types.CellType:
    return types.CellType()


def make_space() -> "dict[str, Any]":
    return {"__builtins__": builtins}


def make_function(code: bytes, place: "Any", name: str, closure: "Any") -> types.FunctionType:
    if isinstance(place, str):
        place = importlib.import_module(place).__dict__
    return types.FunctionType(marshal.loads(code), space if place is None else place, name, None, closure)


def fill_function(function: types.FunctionType, state: "Any") -> None:
    attributes, names, cells = state
    for name, value in attributes.items():
        setattr(function, name, value)
    function.__dict__.update(names)
    for cell, value in cells:
        cell.cell_contents = value


def make_cached(function: "Any", parameters: "dict[str, Any]") -> object:
    return functools.lru_cache(**parameters)(function)


def make_cached_property(function: "Any", name: "str | None") -> object:
    made: Any = functools.cached_property(function)
    if name is not None:
        made.__set_name__(None, name)
    return made


def make_type_variable(name: str, constraints: "Any", bound: "Any", covariant: bool, contravariant: bool) -> object:
    import typing

    options: Any = {"bound": bound, "covariant": covariant, "contravariant": contravariant}
    return typing.TypeVar(name, *constraints, **options)


def make_class(meta: "Any", name: str, bases: "Any", start: "dict[str, Any]", members: "Any") -> type:
    """An empty class; what its metaclass once did to it comes with its state."""
    if members is not None:
        names = meta.__prepare__(name, bases)
        for key, value in (*start.items(), *members):
            names[key] = value
        return meta.__new__(meta, name, bases, names)  # type: ignore[no-any-return]
    abc = sys.modules["abc"].ABCMeta
    make: Any = abc.__new__ if issubclass(meta, abc) else type.__new__
    return make(meta, name, bases, dict(start))  # type: ignore[no-any-return]


def fill_class(cls: type, state: "Any") -> None:
    names, members = state
    for name, value in names.items():
        try:
            type.__setattr__(cls, name, value)
        except (AttributeError, TypeError):
            if name[:2] != "__":  # one that this Python sets itself
                raise
    for name, attributes in members.items():
        vars(cls.__members__[name]).update(attributes)  # type: ignore[attr-defined]


# Saving


class Saver:
    """Writes as many variables as can be, and knows why each other one cannot."""

    def __init__(self, watch: Watch, limit: int, seconds: float) -> None:
        self.watch, self.limit = watch, limit
        began = time.monotonic()
        self.deadline = began + seconds
        self.trying = began + seconds * TRYING
        self.lost: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.segments: list[tuple[str, int]] = []
        self.cells: set[str] = set()

    def save(self, file: "io.BufferedWriter", names: "list[str]") -> None:
        """Writes all at once, which is how it usually goes; else only those that could be written on their own."""
        failure = self.attempt(file, names)
        if failure is None:
            return
        self.sizes.update(self.segments)
        if failure[1] != TOO_LARGE:  # which is said of all together: it need not be this one
            self.lost[failure[0]] = failure[1]
        self.try_each([name for name in names if name not in self.lost and name not in self.sizes])
        while failure is not None:
            names = [name for name in names if name not in self.lost]
            failure = self.attempt(file, names)
            if failure is not None and failure[1] == TOO_LARGE:
                self.drop_largest(names)
            elif failure is not None:
                self.lost[failure[0]] = failure[1]
            if self.deadline < time.monotonic() and failure is not None:
                self.lost.update((name, NO_TIME) for name in names if name not in self.lost)

    def attempt(self, file: "io.BufferedWriter", names: "list[str]") -> "tuple[str, str] | None":
        """Writes all of them, or says which one cannot be written."""
        file.seek(0)
        file.truncate()
        sink, self.segments = Sink(self.limit, file), []
        pickler = Pickler(sink)
        for name in names:
            begun = sink.size
            failure = self.dump(pickler, name, self.deadline - time.monotonic())
            if failure:
                return name, failure
            self.segments.append((name, sink.size - begun))
        self.cells = pickler.cells
        return None

    def dump(self, pickler: Pickler, name: str, seconds: float) -> str:
        """Pickles one; says why it cannot be."""
        if name not in space:  # what another object's method did, or another thread
            return "it was deleted meanwhile"
        return self.watch.run(lambda: pickler.dump(space[name]), min(ONE_SAVE, seconds))[1]

    def try_each(self, names: "list[str]") -> None:
        for name in names:
            left = self.trying - time.monotonic()
            if left < 0.05:
                self.lost[name] = NO_TIME
                continue
            sink = Sink(self.limit)
            failure = self.dump(Pickler(sink), name, left * SHARE)
            self.sizes[name] = sink.size
            if failure:
                self.lost[name] = failure

    def drop_largest(self, names: "list[str]") -> None:
        """Leaves out the largest, and so many that half of what is too much goes: what is shared counts twice."""
        by_size = sorted(names, key=lambda name: self.sizes.get(name, 0))
        excess = sum(self.sizes.get(name, 0) for name in names) - self.limit
        gone = 0
        while by_size and (gone == 0 or gone < excess / 2):
            largest = by_size.pop()
            self.lost[largest] = TOO_LARGE
            gone += max(self.sizes.get(largest, 0), 1)


def environment() -> "dict[str, str | None]":
    """What the code has changed of the environment that the interpreter was started with."""
    with open("/proc/self/environ", "rb") as file:
        given = dict([os.fsdecode(item).split("=", 1) for item in file.read().split(b"\0") if b"=" in item])
    changed: dict[str, str | None] = {key: value for key, value in os.environ.items() if given.get(key) != value}
    changed.update((name, None) for name in given if name not in os.environ)
    return changed


def situation(cells: "set[str]") -> "dict[str, Any]":
    """What variables rest on."""
    known = kernel.sources.cells
    return {
        "format": FORMAT,
        "cwd": os.getcwd(),
        "path": [entry for entry in sys.path if isinstance(entry, str)],
        "env": environment(),
        "count": kernel.count,
        "flags": kernel.flags,
        "cells": {name: known[name] for name in cells if name in known},
    }


def save(of: "Any", request: "dict[str, Any]") -> "dict[str, Any]":
    """Saves the variables to a file, in a folder that is made for it."""
    global kernel, space
    kernel, space = of, of.module.__dict__
    path = str(request["path"])
    names = [name for name in space if isinstance(name, str) and not (name[:2] == "__" and name[-2:] == "__")]
    with Watch() as watch:
        saver = Saver(watch, int(request["limit"]), float(request["seconds"]))
        for name in names[NAMES_LIMIT:]:
            saver.lost[name] = f"more than {NAMES_LIMIT} variables"
        for name in names[:NAMES_LIMIT]:
            if len(name.encode("utf-8", "replace")) > NAME_LIMIT:
                saver.lost[name] = "its name is too long"
        try:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            with open(path, "wb") as file:
                saver.save(file, [name for name in names[:NAMES_LIMIT] if name not in saver.lost])
                file.seek(0, 2)
                index = pickle.dumps({**situation(saver.cells), "segments": saver.segments})
                file.write(index + len(index).to_bytes(8, "little"))
        except (OSError, Full) as error:
            remove(path)
            saver.lost.update((name, f"no file for it: {error}"[:REASON_LIMIT]) for name, _ in saver.segments)
            saver.lost.update((name, f"no file for it: {error}"[:REASON_LIMIT]) for name in names[:NAMES_LIMIT])
            saver.segments = []
    return answer([name for name, _ in saver.segments], saver.lost)


def answer(names: "list[str]", lost: "dict[str, str]") -> "dict[str, Any]":
    told = [(name, reason) for name, reason in lost.items()][:LOST_LIMIT]
    if len(lost) > LOST_LIMIT:
        told.append(("…", f"{len(lost) - LOST_LIMIT} more variables are lost"))
    return {"variables": names, "lost": [{"name": name[:NAME_LIMIT], "reason": reason} for name, reason in told]}


def remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


# Loading


class Survey:
    """What the pickle of a variable adds to the memo, and what of earlier ones it takes from there."""

    def __init__(self, data: bytes, begin: int, memo: "dict[int, Any]") -> None:
        self.added: dict[int, Any] = {}
        self.taken: set[int] = set()
        recent: list[Any] = ["", ""]
        last: Any = LOST
        for code, argument, _ in pickletools.genops(data):
            if code.name == "MEMOIZE":
                self.added[begin + len(self.added)] = last
                continue
            last = argument if isinstance(argument, str) and "UNICODE" in code.name else LOST
            if code.name in ("BINGET", "LONG_BINGET"):
                number = int(argument or 0)
                self.taken.add(number)
                last = self.added.get(number, memo.get(number, LOST))
            elif code.name == "STACK_GLOBAL":
                last = found(*recent)
            if isinstance(last, str):
                recent = [recent[1], last]


# Stands in the memo for an object that could not be made.
LOST = object()


def found(module: str, name: str) -> object:
    try:
        value = importlib.import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
    except BaseException:
        return LOST
    return value


class Unpickler(pickle.Unpickler):
    """Begins with a memo, which CPython's does not take by itself: it is filled by a pickle that names its objects."""

    def __init__(self, loader: "Loader", memo: "dict[int, Any]") -> None:
        super().__init__(loader)
        self.known = memo
        if memo:
            steps = [b"J" + index.to_bytes(4, "little") + b"Q\x940" for index in range(len(memo))]
            loader.source = io.BytesIO(b"".join((b"\x80\x04", *steps, b"N.")))
            self.load()
            self.known = {}

    def persistent_load(self, index: "Any") -> "Any":
        return self.known[index]


class Loader:
    """Loads one variable after the other; one that fails takes along only what holds parts of it."""

    def __init__(self, watch: Watch, data: bytes, seconds: float) -> None:
        self.watch, self.data, self.deadline = watch, data, time.monotonic() + seconds
        self.source = io.BytesIO()
        self.unpickler = Unpickler(self, {})
        self.loaded: list[str] = []
        self.lost: dict[str, str] = {}
        # how long the memo was before a variable, once that matters
        self.length: int | None = None
        self.gone: set[int] = set()

    def read(self, size: int = -1) -> bytes:
        return self.source.read(size)

    def readline(self) -> bytes:
        return self.source.readline()

    def readinto(self, target: "Any") -> int:
        return self.source.readinto(target)

    def load(self, name: str, begin: int, end: int) -> None:
        data, survey = self.data[begin:end], None
        if self.length is not None:
            survey = Survey(data, self.length, self.memo())
            if survey.taken & self.gone:
                self.lose(name, "it holds parts of a variable that is lost", survey)
                return
        self.source = io.BytesIO(data)
        value, failure = self.watch.run(self.unpickler.load, min(ONE_LOAD, self.deadline - time.monotonic()))
        if not failure:
            space[name] = value
            self.loaded.append(name)
        else:
            if self.length is None:
                self.length = self.added_before(begin)
                survey = Survey(data, self.length, self.memo())
            self.lose(name, failure, survey)
            return
        if survey is not None:
            self.length = (self.length or 0) + len(survey.added)

    def added_before(self, end: int) -> int:
        """How many objects the pickles up to here have put into the memo."""
        source, count = io.BytesIO(self.data[:end]), 0
        while source.tell() < end:
            count += sum(1 for code, _, _ in pickletools.genops(source) if code.name == "MEMOIZE")
        return count

    def memo(self) -> "dict[int, Any]":
        return self.unpickler.memo.copy()

    def lose(self, name: str, reason: str, survey: "Any") -> None:
        """Goes on as if the pickle had been loaded, with nothing in the places of its objects."""
        self.lost[name] = reason
        length = self.length or 0
        memo = {index: value for index, value in self.memo().items() if index < length}
        # a new one: the other is in the midst of what it has read
        self.unpickler = Unpickler(self, {**memo, **survey.added})
        self.gone.update(index for index, value in survey.added.items() if value is LOST)
        self.length = length + len(survey.added)


def settle(index: "dict[str, Any]") -> None:
    """Makes the situation what it was, as far as it can be."""
    for name, value in index["env"].items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    try:
        os.chdir(index["cwd"])
    except OSError:
        pass  # not every folder is saved
    sys.path.extend(entry for entry in index["path"] if entry not in sys.path)
    kernel.count = max(kernel.count, int(index["count"]))
    kernel.flags |= int(index["flags"])
    for name, text in index["cells"].items():
        kernel.sources.add(name, text)


def load(of: "Any", request: "dict[str, Any]") -> "dict[str, Any]":
    """Loads what `save` has saved, and removes its file."""
    global kernel, space
    kernel, space = of, of.module.__dict__
    path = str(request["path"])
    with Watch() as watch:
        with open(path, "rb") as file:
            data = file.read()
        remove(path)
        end = len(data) - 8
        begin = end - int.from_bytes(data[end:], "little")
        index, failure = watch.run(lambda: pickle.loads(data[begin:end]), ONE_LOAD)
        if failure or index["format"] != FORMAT:
            raise ValueError(failure or "another format")
        settle(index)
        loader, at = Loader(watch, data, float(request["seconds"])), 0
        for name, length in index["segments"]:
            loader.load(name, at, at + length)
            at += length
    return answer(loader.loaded, loader.lost)
