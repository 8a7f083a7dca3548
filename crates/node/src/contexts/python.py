"""The Python interpreter of a code context: executes cells one after another in one namespace.

Started as `python3 <this file>` inside a sandbox, with one end of a Unix stream socketpair as descriptor 3. Both
directions carry one JSON document a line: `execute` and `interrupt` come in, `ready`, `result`, `error` and `done` go
out; `save` and `load` come in with a program that does it, and are answered by `values`. Descriptors 0, 1 and 2 belong
to the user's code.

Invariant: every `execute` is answered by exactly one `done`, sent after all that the cell printed was flushed, and
nothing but whole lines is ever written to the control channel. There is one thread: what the host sends while a cell
runs arrives by a signal (SIGURG, whose default is to be ignored, so neither children nor `fork` notice it).

Only what the interpreter has loaded anyway is imported here; the rest waits until it is needed, since the time to the
first answer is what a user sees.
"""

import _ast
import _signal  # type: ignore[import-not-found]
import _socket
import _thread
import builtins
import fcntl
import gc
import os
import sys
import time

try:
    from _json import encode_basestring, make_scanner
except ImportError:  # an interpreter without the C accelerator
    from json.encoder import py_encode_basestring as encode_basestring
    from json.scanner import py_make_scanner as make_scanner  # type: ignore[attr-defined,no-redef]

# Put in here by whoever makes a program of the parts: there is one file inside the sandbox.
from python_format import NAME_LIMIT, Formatter, clean, cut, describe_failure, plain, text_of

if False:  # for the type checker alone
    from collections.abc import Callable
    from types import CodeType

CONTROL = 3
BAD_LINE = 70
INTERRUPTED = 130
LINE_LIMIT = 12 << 20
TEXT_LIMIT = 64 << 10
VALUE_LIMIT = 16 << 10
RESULT_LIMIT = 256
# Sources kept for tracebacks, in characters.
SOURCE_LIMIT = 16 << 20
# Seconds in which an interrupt by signal and one by message are taken for the same one.
PAIRED = 1.0

AWAITABLE = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
CO_COROUTINE = 0x80
CO_FUTURES = 0x1FE0000  # `from __future__` in one cell holds for the next ones
HERE = (lambda: None).__code__.co_filename
FIGURES = "code_context_figures"


class Grammar:
    """What the scanner of `json` wants to be told."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: "dict[str, str]" = {}


scan = make_scanner(Grammar())  # type: ignore[arg-type]


def parse(line: bytes) -> object:
    """The document in one line; any exception means that there is none."""
    text = line.decode().strip()
    value, end = scan(text, 0)
    if end != len(text):
        raise ValueError("more than one document in a line")
    return value


def encode(value: object) -> str:
    if isinstance(value, str):
        return encode_basestring(clean(value))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ",".join([encode(key) + ":" + encode(item) for key, item in value.items()]) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([encode(item) for item in value]) + "]"
    return repr(value)


class Control:
    """The host's end of the channel. Moved away from descriptor 3, and never inherited by a program."""

    def __init__(self) -> None:
        try:
            moved = fcntl.fcntl(CONTROL, fcntl.F_DUPFD_CLOEXEC, 512)
        except OSError:  # a lower limit of descriptors
            moved = fcntl.fcntl(CONTROL, fcntl.F_DUPFD_CLOEXEC, CONTROL + 1)
        os.close(CONTROL)
        self.socket = _socket.socket(fileno=moved)
        self.lock = _thread.allocate_lock()  # threads of the user's may display something
        self.buffer = bytearray()

    def announce_input(self) -> None:
        """Asks for SIGURG when the host sends or hangs up."""
        descriptor = self.socket.fileno()
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(descriptor, getattr(fcntl, "F_SETSIG", 10), _signal.SIGURG)
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | fcntl.FASYNC)

    def receive(self, wait: bool) -> "list[dict[str, object]]":
        """The requests that have come, or none; ends the process where the host hung up or sent what is no JSON."""
        try:
            chunk = self.socket.recv(1 << 16, 0 if wait else _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError:
            chunk = b""
        if not chunk:
            os._exit(0)
        self.buffer += chunk
        if b"\n" not in chunk:
            return []
        *lines, rest = bytes(self.buffer).split(b"\n")
        self.buffer = bytearray(rest)
        try:
            documents = [parse(line) for line in lines]
        except BaseException:
            os._exit(BAD_LINE)
        return [document for document in documents if isinstance(document, dict)]

    def send(self, line: str) -> None:
        with self.lock:
            try:
                self.socket.sendall(line.encode() + b"\n")
            except OSError:
                os._exit(0)

    def abandon(self) -> None:
        """In the child of a fork: only the parent speaks."""
        self.socket.close()


class Sources:
    """What the cells said, so that tracebacks and `inspect` show lines of them."""

    def __init__(self) -> None:
        self.cells: dict[str, str] = {}
        self.size = 0

    def add(self, name: str, code: str) -> None:
        self.cells[name] = code
        self.size += len(code)
        while self.size > SOURCE_LIMIT and len(self.cells) > 1:
            oldest = next(iter(self.cells))
            self.size -= len(self.cells.pop(oldest))
            cached = sys.modules.get("linecache")
            if cached is not None:
                cached.cache.pop(oldest, None)
        if "linecache" in sys.modules:
            self.publish(sys.modules["linecache"], (name,))

    def publish(self, linecache: object, names: "tuple[str, ...] | None" = None) -> None:
        cache = linecache.cache  # type: ignore[attr-defined]
        for name in self.cells if names is None else names:
            code = self.cells[name]
            cache[name] = (len(code), None, code.splitlines(True), name)


class Figures:
    """Sends the figures that `pyplot` holds, as the backend it is given where the user has named none."""

    def choose_backend(self, matplotlib: object) -> None:
        # before what a matplotlibrc names, which is for programs with a screen
        if not os.environ.get("MPLBACKEND"):
            matplotlib.rcParams["backend"] = "module://" + FIGURES  # type: ignore[attr-defined]

    def fill_backend(self, module: object) -> None:
        from matplotlib.backends import backend_agg  # type: ignore[import-not-found]

        for name in ("FigureCanvas", "FigureManager", "new_figure_manager", "new_figure_manager_given_figure"):
            if hasattr(backend_agg, name):
                setattr(module, name, getattr(backend_agg, name))
        module.show = self.show  # type: ignore[attr-defined]

    def picture(self, figure: object) -> "bytes | None":
        import io

        if not (figure.axes or figure.lines or figure.texts or figure.images or figure.patches):  # type: ignore[attr-defined]
            return None
        target = io.BytesIO()
        colour = figure.get_facecolor()  # type: ignore[attr-defined]
        figure.savefig(target, format="png", bbox_inches="tight", facecolor=colour)  # type: ignore[attr-defined]
        figure._code_context_shown = True  # type: ignore[attr-defined]
        return target.getvalue()

    def managers(self) -> "list[object]":
        helpers, matplotlib = sys.modules.get("matplotlib._pylab_helpers"), sys.modules.get("matplotlib")
        if helpers is None or dict.get(getattr(matplotlib, "rcParams", {}), "backend") != "module://" + FIGURES:
            return []
        return list(helpers.Gcf.get_all_fig_managers())

    def show(self, *_: object, **__: object) -> None:
        self.emit(again=True)

    def emit(self, again: bool = False, send: bool = True) -> None:
        """Sends the open figures and closes them; `again` those too that the cell has displayed."""
        managers = self.managers()
        try:
            for manager in managers:
                figure = manager.canvas.figure  # type: ignore[attr-defined]
                if send and (again or not getattr(figure, "_code_context_shown", False)):
                    picture = self.picture(figure)
                    if picture is not None:
                        import binascii

                        image = binascii.b2a_base64(picture, newline=False).decode()
                        kernel.publish({"text/plain": text_of(figure), "image/png": image})
        finally:
            if managers:
                sys.modules["matplotlib._pylab_helpers"].Gcf.destroy_all()


class Finder:
    """Notices the first import of a few modules, since loading them early would cost every context."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name == FIGURES:
            from importlib.machinery import ModuleSpec

            return ModuleSpec(name, self)  # type: ignore[arg-type]
        after = self.after().get(name)
        if after is None:
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path)  # type: ignore[arg-type]
        loader = getattr(spec, "loader", None)
        if loader is not None and hasattr(loader, "exec_module"):
            load = loader.exec_module

            def exec_module(module: object) -> None:
                load(module)
                try:
                    after(module)
                except Exception as error:
                    print(f"{name} was not adapted: {describe_failure(error)}", file=sys.stderr)

            loader.exec_module = exec_module
        return spec

    def after(self) -> "dict[str, Callable[[object], None]]":
        return {
            "linecache": sources.publish,
            "matplotlib": figures.choose_backend,
            "IPython.core.display_functions": adopt_display,
        }

    def create_module(self, spec: object) -> None:
        return None

    def exec_module(self, module: object) -> None:
        figures.fill_backend(module)


def adopt_display(module: object) -> None:
    """Outside of its own shell IPython's `display` would only print."""
    module.display = display  # type: ignore[attr-defined]


def display(*objects: object, raw: bool = False, **_: object) -> None:
    """Sends each object as a result. With `raw`, an object is a dict of MIME types already.

    The other options of IPython's `display` are taken and ignored.
    """
    for item in objects:
        if raw and isinstance(item, dict):
            data: dict[str, str] = {}
            notes: list[str] = []
            formatter.add_all(item, data, notes)
            if notes:
                data["text/plain"] = "\n".join([data.get("text/plain", ""), *notes]).lstrip("\n")
            kernel.publish(data)
        else:
            kernel.publish(formatter.bundle(item))


class Kernel:
    """Runs the cells, and says what came of them."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.queue: list[dict[str, object]] = []
        self.count = 0
        self.flags = AWAITABLE
        self.id: object = None
        self.running = False  # a cell runs: what the host sends is read by the signal's handler
        self.interruptible = False
        self.masked = 0
        self.pending = False
        self.expected = {"signal": 0.0, "message": 0.0}
        self.sent = 0
        self.left_out = 0
        self.loop: object = None
        self.task: object = None
        self.cancelled = False
        self.forked = False
        self.thread = _thread.get_ident()
        self.user_handler: object = None
        self.streams = {1: open_stream(1, "<stdout>"), 2: open_stream(2, "<stderr>")}
        self.sources = sources
        self.module = type(sys)("__main__")
        self.module.__dict__["__builtins__"] = builtins

    def serve(self) -> None:
        self.restore_streams(all_of_them=True)
        sys.modules["__main__"] = self.module
        _signal.signal(_signal.SIGINT, self.on_interrupt_signal)
        _signal.signal(_signal.SIGURG, self.on_input)
        try:
            self.control.announce_input()
        except OSError:
            pass  # then a message, or the end, is noticed only between two cells
        os.register_at_fork(after_in_child=self.after_fork)
        version = ".".join([str(part) for part in sys.version_info[:3]])
        self.control.send(encode({"type": "ready", "language": "python", "version": version}))
        while True:
            try:
                while not self.queue:
                    self.accept(self.control.receive(wait=True))
                request = self.queue.pop(0)
                self.execute(request) if request["op"] == "execute" else self.keep(request)
            except KeyboardInterrupt:
                pass  # cannot be: nothing is interruptible here

    # What the host sends

    def accept(self, requests: "list[dict[str, object]]") -> None:
        for request in requests:
            operation = request.get("op")
            if operation in ("execute", "save", "load"):
                self.queue.append(request)
            elif operation == "interrupt" and self.queue:
                self.queue[-1]["interrupted"] = True  # it is meant for what has not begun yet
            elif operation == "interrupt":
                self.interrupt("message", "signal")

    def on_input(self, *_: object) -> None:
        if self.running:
            self.without_interrupts(lambda: self.accept(self.control.receive(wait=False)))

    def without_interrupts(self, act: "Callable[[], None]") -> None:
        """An exception in the midst of a line would spoil the channel: it waits until `act` has returned."""
        if _thread.get_ident() != self.thread:
            act()
            return
        self.masked += 1
        try:
            act()
        finally:
            self.masked -= 1
        if self.pending and self.interruptible and not self.masked:
            self.raise_interrupt()

    def on_interrupt_signal(self, *_: object) -> None:
        self.interrupt("signal", "message")

    def interrupt(self, means: str, other: str) -> None:
        """Raises KeyboardInterrupt in the cell; the host interrupts by both means, and the second one does nothing."""
        if not self.interruptible:
            return
        now = time.monotonic()
        if now < self.expected[means]:
            self.expected[means] = 0.0
            return
        self.expected[other] = now + PAIRED
        if self.masked:
            self.pending = True
            return
        self.raise_interrupt()

    def raise_interrupt(self) -> None:
        self.pending = False
        if self.task is not None and not self.cancelled:
            import asyncio

            if asyncio.current_task(self.loop) is None:  # type: ignore[arg-type]
                # Nothing of the cell is on the stack, only the loop: raising would break that.
                self.cancelled = True
                self.loop.call_soon_threadsafe(self.task.cancel)  # type: ignore[attr-defined]
                return
        raise KeyboardInterrupt

    def after_fork(self) -> None:
        self.forked = True
        self.control.abandon()
        _signal.signal(_signal.SIGURG, _signal.SIG_DFL)
        if _signal.getsignal(_signal.SIGINT) == self.on_interrupt_signal:
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)

    # One cell

    def execute(self, request: "dict[str, object]") -> None:
        self.id = request.get("id")
        self.sent = self.left_out = 0
        self.expected = {"signal": 0.0, "message": 0.0}
        self.cancelled = self.pending = False
        error = None
        try:
            self.enter()
            if request.get("interrupted"):
                raise KeyboardInterrupt
            error, code = self.attempt(request)
            self.leave()
        except KeyboardInterrupt:  # came so late that the cell had ended, or while its error was put into words
            self.leave()
            error, code = {"name": "KeyboardInterrupt", "value": "", "traceback": "KeyboardInterrupt\n"}, INTERRUPTED
        except BaseException as raised:  # out of the user's `__str__`, for one
            self.leave()
            name = cut(type(raised).__name__, NAME_LIMIT)
            error, code = {"name": name, "value": "", "traceback": name + "\n"}, 1
        if self.forked:
            self.end_child(error, code)
        if self.left_out:
            note = f"{self.left_out} more results were left out: an execution has at most {RESULT_LIMIT}"
            self.post(False, {"text/plain": note})
        if error is not None:
            self.control.send(encode({"type": "error", "id": self.id, **error}))
        self.flush()
        self.running = False
        self.control.send(encode({"type": "done", "id": self.id, "exit_code": code}))

    def enter(self) -> None:
        self.restore_streams()
        if self.user_handler is not None:
            _signal.signal(_signal.SIGINT, self.user_handler)
        self.interruptible = True  # first, so that no request is read that then does nothing
        self.running = True
        self.on_input()  # what came before `running` was set

    def leave(self) -> None:
        self.interruptible = False
        if self.forked:
            return
        # Between cells a signal must do nothing; a handler of the user's is back with the next cell.
        handler = _signal.getsignal(_signal.SIGINT)
        self.user_handler = None if handler == self.on_interrupt_signal else handler
        if self.user_handler is not None:
            _signal.signal(_signal.SIGINT, self.on_interrupt_signal)

    def attempt(self, request: "dict[str, object]") -> "tuple[dict[str, str] | None, int]":
        """What is to be said of the cell's error, and its exit code."""
        error, code = None, 0
        try:
            self.prepare(request)
            self.run(request)
        except SystemExit as leaving:
            code = exit_code(leaving)
        except BaseException as raised:
            error, code = explain(raised)
        if not self.forked:
            try:
                figures.emit(send=code != INTERRUPTED)
            except Exception as raised:
                error, code = (explain(raised)) if error is None else (error, code)
        return error, code

    def prepare(self, request: "dict[str, object]") -> None:
        environment = request.get("env")
        if isinstance(environment, dict):
            for name, value in environment.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = str(value)
        folder = request.get("cwd")
        if isinstance(folder, str) and folder:
            os.chdir(folder)

    def run(self, request: "dict[str, object]") -> None:
        source = request.get("code")
        source = source if isinstance(source, str) else ""
        self.count += 1
        name = f"<cell {self.count}>"
        sources.add(name, source)
        tree = parse_cell(source, name, self.flags)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
        steps = [compile(tree, name, "exec", self.flags, True)] if tree.body else []
        for code in steps:
            self.flags |= code.co_flags & CO_FUTURES
        if last is not None:
            ending = _ast.Expression(last.value)  # type: ignore[attr-defined]
            steps.append(compile(ending, name, "eval", self.flags, True))
        value = self.evaluate(steps)
        if last is None:
            return
        if value is None or self.forked or followed_by_semicolon(source, last):
            return
        builtins._ = value  # type: ignore[attr-defined]
        self.post(True, formatter.bundle(value))

    def evaluate(self, steps: "list[CodeType]") -> object:
        """The value of the last step; all of them run in the event loop where one of them awaits something."""
        space = self.module.__dict__
        if not any([code.co_flags & CO_COROUTINE for code in steps]):
            value = None
            for code in steps:
                value = eval(code, space)
            return value

        async def run() -> object:
            value = None
            for code in steps:
                value = eval(code, space)
                if code.co_flags & CO_COROUTINE:
                    value = await value
            return value

        return self.wait_for(run())

    def wait_for(self, coroutine: object) -> object:
        """The result of a cell with `await`, in the one event loop of the context."""
        import asyncio

        if self.loop is None or self.loop.is_closed():  # type: ignore[attr-defined]
            self.loop = asyncio.new_event_loop()
            self.loop.set_exception_handler(complain)
        asyncio.set_event_loop(self.loop)  # type: ignore[arg-type]
        run = self.loop.run_until_complete  # type: ignore[attr-defined]
        task = self.task = self.loop.create_task(coroutine)  # type: ignore[attr-defined]
        try:
            return run(task)
        except asyncio.CancelledError:
            if self.cancelled:
                raise KeyboardInterrupt from None
            raise
        except BaseException:
            self.task = None
            if not task.done():  # another task was interrupted, or left
                task.cancel()
                run(asyncio.wait([task], timeout=1))
            if task.done() and not task.cancelled():
                task.exception()  # or the loop complains that nobody has asked for it
            raise
        finally:
            self.task = None

    def end_child(self, error: "dict[str, str] | None", code: int) -> None:
        """A child that `fork` made in a cell came to the cell's end: it is no kernel."""
        try:
            if error is not None:
                print(error["traceback"], file=sys.stderr)
            self.flush()
        finally:
            os._exit(code)

    def keep(self, request: "dict[str, object]") -> None:
        """Saves or loads the variables by the program that came with the request."""
        name = "code_context_values"
        said: dict[str, object] = {}
        try:
            self.restore_streams()
            module = sys.modules[name] = type(sys)(name)
            exec(compile(str(request.get("program")), f"<{name}>", "exec"), module.__dict__)
            said = getattr(module, str(request["op"]))(self, request)
        except BaseException as raised:
            said = {"failure": describe_failure(raised)}
        finally:
            sys.modules.pop(name, None)
        self.flush()
        self.control.send(encode({"type": "values", "id": request.get("id"), **said}))

    # What the host is told

    def publish(self, data: "dict[str, str]") -> None:
        """A display: counted, and printed where there is no execution to give it to."""
        if self.forked or not self.running:
            print(data.get("text/plain", ""))
        elif self.sent >= RESULT_LIMIT - 1:  # one is kept for the last expression
            self.left_out += 1
        else:
            self.sent += 1
            self.post(False, data)

    def post(self, main: bool, data: "dict[str, str]") -> None:
        if "text/plain" in data:
            data["text/plain"] = cut(data["text/plain"], TEXT_LIMIT)
        items = {mime: encode(mime) + ":" + encode(value) for mime, value in data.items()}
        sizes = {mime: len(item.encode()) + 1 for mime, item in items.items()}
        dropped: list[str] = []
        while sum(sizes.values()) > LINE_LIMIT - (64 << 10):
            largest = max(sizes, key=sizes.__getitem__)
            dropped.append(largest)
            del items[largest], sizes[largest]
        line = f'{{"type":"result","id":{encode(self.id)},"main":{encode(main)},"data":{{{",".join(items.values())}}}'
        line += f',"dropped":{encode(dropped)}}}' if dropped else "}"
        self.without_interrupts(lambda: self.control.send(line))

    # The user's streams

    def restore_streams(self, all_of_them: bool = False) -> None:
        """Puts back what the user's code closed; `exit()` closes stdin, for example."""
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            try:
                closed = getattr(sys, name).closed
            except AttributeError:
                closed = not hasattr(getattr(sys, name, None), "write")
            if all_of_them or closed is True:
                if getattr(self.streams[descriptor], "closed", True):
                    self.streams[descriptor] = open_stream(descriptor, f"<{name}>")
                setattr(sys, name, self.streams[descriptor])
        if all_of_them or getattr(getattr(sys, "stdin", None), "closed", True) is True:
            sys.stdin = open_stream(0, "<stdin>")

    def flush(self) -> None:
        for stream in (sys.stdout, sys.stderr, *self.streams.values()):
            try:
                stream.flush()  # type: ignore[union-attr]
            except BaseException:
                pass  # not ours: the user may have put anything there


def open_stream(descriptor: int, name: str) -> object:
    """A standard stream that does not close its descriptor; bytes that are no UTF-8 pass through unchanged."""
    errors = "backslashreplace" if descriptor == 2 else "surrogateescape"
    try:
        stream = open(descriptor, "w" if descriptor else "r", 1 if descriptor else -1, "utf-8", errors, None, False)
        stream.buffer.raw.name = name  # type: ignore[attr-defined]
    except (OSError, AttributeError):
        return getattr(sys, name.strip("<>"))
    return stream


def parse_cell(source: str, name: str, flags: int) -> "_ast.Module":
    """The syntax tree; a finalizer that ran meanwhile would make some Pythons fail (CPython's issue 106905)."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        return compile(source, name, "exec", flags | _ast.PyCF_ONLY_AST, True)  # type: ignore[no-any-return]
    finally:
        if collecting:
            gc.enable()


def followed_by_semicolon(source: str, last: object) -> bool:
    """Whether a semicolon after the last expression asks for silence, as in IPython."""
    lines = source.splitlines(True) if "\f" not in source else source.split("\n")
    if last.end_lineno > len(lines):  # type: ignore[attr-defined]
        return False
    tail = lines[last.end_lineno - 1].encode()[last.end_col_offset :]  # type: ignore[attr-defined]
    return tail.lstrip(b" \t\\\r\n").startswith(b";")


def complain(loop: object, context: "dict[str, object]") -> None:
    """What a loop says of a forgotten task; an interrupt or an exit in one has been reported by its cell."""
    if not isinstance(context.get("exception"), (KeyboardInterrupt, SystemExit)):
        loop.default_exception_handler(context)  # type: ignore[attr-defined]


def exit_code(leaving: SystemExit) -> int:
    if leaving.code is None:
        return 0
    if isinstance(leaving.code, int):
        return leaving.code & 0xFF
    try:
        print(leaving.code, file=sys.stderr)
    except Exception:
        pass
    return 1


def explain(raised: BaseException) -> "tuple[dict[str, str], int]":
    """Name, value and traceback without the frames of this file, and the exit code."""
    code = INTERRUPTED if isinstance(raised, KeyboardInterrupt) else 1
    name = cut(plain(type(raised).__name__), NAME_LIMIT)
    try:
        value = plain(str(raised))
    except Exception as error:
        value = f"<{name} object: __str__ raised {describe_failure(error)}>"
    try:
        trace = format_traceback(raised)
    except Exception as error:
        trace = f"{name}: {value}\n[the traceback cannot be shown: {describe_failure(error)}]\n"
    return {"name": name, "value": cut(value, VALUE_LIMIT), "traceback": cut(trace, TEXT_LIMIT, head=0.25)}, code


def format_traceback(raised: BaseException) -> str:
    import linecache
    import traceback

    sources.publish(linecache)
    shown = traceback.TracebackException(type(raised), raised, raised.__traceback__)
    trim(shown, set())
    return "".join(shown.format() if shown.stack else shown.format_exception_only())


def trim(shown: object, seen: "set[int]") -> None:
    """Removes what is not the user's: this file's frames, and all before the first cell (the event loop's)."""
    if shown is None or id(shown) in seen:
        return
    seen.add(id(shown))
    stack = shown.stack  # type: ignore[attr-defined]
    frames = [frame for frame in stack if frame.filename != HERE]
    cells = [index for index, frame in enumerate(frames) if frame.filename.startswith("<cell ")]
    stack[:] = frames[cells[0] if cells else 0 :]
    for other in (shown.__cause__, shown.__context__, *(getattr(shown, "exceptions", None) or ())):  # type: ignore[attr-defined]
        trim(other, seen)


sources = Sources()
figures = Figures()
formatter = Formatter(figures.picture)


def main() -> Kernel:
    folder = os.path.dirname(os.path.abspath(__file__))
    if sys.path and sys.path[0] == folder:
        sys.path[0] = ""
    elif "" not in sys.path:
        sys.path.insert(0, "")
    sys.argv = [""]
    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
    if "linecache" in sys.modules:
        sources.publish(sys.modules["linecache"])
    builtins.display = display  # type: ignore[attr-defined]
    return Kernel(Control())


kernel = main()
kernel.serve()
