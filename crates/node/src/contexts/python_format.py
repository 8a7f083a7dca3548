"""How the Python interpreter of a code context shows a value. Becomes a part of its program, where that imports it."""

import sys

if False:  # for the type checker alone
    from collections.abc import Callable

NAME_LIMIT = 256
MIME_LIMIT = 32

REPRESENTATIONS = (
    ("text/html", "_repr_html_"),
    ("text/markdown", "_repr_markdown_"),
    ("image/svg+xml", "_repr_svg_"),
    ("image/png", "_repr_png_"),
    ("image/jpeg", "_repr_jpeg_"),
    ("text/latex", "_repr_latex_"),
    ("application/json", "_repr_json_"),
    ("application/pdf", "_repr_pdf_"),
    ("application/javascript", "_repr_javascript_"),
)
PLAIN_TYPES = frozenset((int, float, complex, bool, str, bytes, list, tuple, dict, set, frozenset, type(len)))
BINARY = ("image/", "audio/", "video/", "application/pdf", "application/octet-stream")


def clean(text: str) -> str:
    """The text with U+FFFD for what has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def cut(text: str, limit: int, head: float = 1.0) -> str:
    """At most `limit` bytes: the share `head` from the start, the rest from the end, and what is missing in between."""
    raw = clean(text).encode()
    if len(raw) <= limit:
        return text
    room = limit - 64
    first = int(room * head)
    start, end = raw[:first].decode("utf-8", "ignore"), raw[len(raw) - (room - first) :].decode("utf-8", "ignore")
    return f"{start}\n[{len(raw) - room} bytes left out]\n{end}"


def plain(value: str) -> str:
    """An exact string, without the methods of a subclass."""
    return value if type(value) is str else str.__str__(value)


def describe_failure(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {cut(plain(str(error)), 1024)}"
    except Exception:
        return type(error).__name__


def text_of(value: object) -> str:
    try:
        return plain(repr(value))
    except Exception as error:
        return f"<{type(value).__name__} object: __repr__ raised {describe_failure(error)}>"


class Formatter:
    """Turns a value into its representations: MIME type to text, base64 where the type is binary."""

    def __init__(self, picture: "Callable[[object], bytes | None]") -> None:
        self.picture = picture

    def bundle(self, value: object) -> "dict[str, str]":
        data: dict[str, str] = {}
        notes: list[str] = []
        if type(value) not in PLAIN_TYPES and not isinstance(value, type):
            self.add_rich(value, data, notes)
        text = data["text/plain"] if "text/plain" in data else text_of(value)
        data["text/plain"] = "\n".join([text, *notes])
        return data

    def add_rich(self, value: object, data: "dict[str, str]", notes: "list[str]") -> None:
        self.add_figure(value, data, notes)
        several = self.method(value, "_repr_mimebundle_")
        if several is not None:
            offered = self.call(several, "_repr_mimebundle_", notes, include=None, exclude=None)
            if isinstance(offered, dict):
                self.add_all(offered, data, notes)
        for mime, name in REPRESENTATIONS:
            method = None if mime in data else self.method(value, name)
            if method is not None:
                offered = self.call(method, name, notes)
                if offered is not None:
                    self.add(mime, offered, name, data, notes)

    def add_all(self, offered: "dict[object, object]", data: "dict[str, str]", notes: "list[str]") -> None:
        for mime, item in list(offered.items())[:MIME_LIMIT]:
            if isinstance(mime, str) and len(mime) <= NAME_LIMIT and item is not None:
                self.add(plain(mime), item, "_repr_mimebundle_", data, notes)

    def method(self, value: object, name: str) -> object:
        """The method, unless the object would have offered any name at all, as mocks and proxies do."""
        try:
            found = getattr(value, name, None)
            if not callable(found) or callable(getattr(value, "_repr_which_nobody_has_", None)):
                return None
        except Exception:
            return None
        return found

    def call(self, method: object, name: str, notes: "list[str]", **options: object) -> object:
        try:
            offered = method(**options)  # type: ignore[operator]
        except NotImplementedError:
            return None
        except Exception as error:
            notes.append(f"[{name} raised {describe_failure(error)}]")
            return None
        # Data and metadata; nobody reads the latter.
        return offered[0] if isinstance(offered, tuple) and len(offered) == 2 else offered

    def add(self, mime: str, item: object, name: str, data: "dict[str, str]", notes: "list[str]") -> None:
        try:
            data[mime] = self.as_text(mime, item)
        except Exception as error:
            notes.append(f"[{name} gave no {mime}: {describe_failure(error)}]")

    def as_text(self, mime: str, item: object) -> str:
        if mime == "application/json" or mime.endswith("+json"):
            import json

            return plain(item) if isinstance(item, str) else json.dumps(item, allow_nan=False, ensure_ascii=False)
        if isinstance(item, str):
            return plain(item)
        if isinstance(item, (bytes, bytearray, memoryview)):
            if mime.startswith(BINARY) and mime != "image/svg+xml":
                import binascii

                return binascii.b2a_base64(item, newline=False).decode()
            return bytes(item).decode("utf-8", "replace")
        raise TypeError(f"a {type(item).__name__} instead of text")

    def add_figure(self, value: object, data: "dict[str, str]", notes: "list[str]") -> None:
        """A Matplotlib figure has no method for it: who displays one wants its picture."""
        module = sys.modules.get("matplotlib.figure")
        if module is None or not isinstance(value, getattr(module, "Figure", ())):
            return
        picture = self.call(lambda: self.picture(value), "savefig", notes)
        if picture is not None:
            self.add("image/png", picture, "savefig", data, notes)
