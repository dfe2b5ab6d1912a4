"""Replies that the proxy makes or reads itself: values to frames, and frames to values.

`encode` writes a value for the client's protocol (2 or 3). `decode` reads one whole frame of either, with hiredis. A
reply that is only passed on goes through neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TypeAlias

import hiredis

RESP3 = 3

OK = b"+OK\r\n"

NIL_BULK = {2: b"$-1\r\n", 3: b"_\r\n"}  # by the protocol
NIL_ARRAY = {2: b"*-1\r\n", 3: b"_\r\n"}
NILS = frozenset({*NIL_BULK.values(), *NIL_ARRAY.values()})


class Status(bytes):
    """A simple string (``+OK``): no CR or LF in it."""

    __slots__ = ()


class Verbatim(bytes):
    """Text for people: ``=…txt:`` in RESP3, a bulk string in RESP2."""

    __slots__ = ()


class Error(Exception):
    """An error reply as a value. ``line`` is its text without ``-`` and CRLF, ``code`` the first word of it."""

    def __init__(self, line: bytes) -> None:
        super().__init__(line)
        self.line = line

    @property
    def code(self) -> bytes:
        return self.line.split(b" ", 1)[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Error) and self.line == other.line

    def __hash__(self) -> int:
        return hash(self.line)


class BadFrame(ValueError):
    """The bytes are not exactly one reply, or one of an unexpected form."""


Value: TypeAlias = (
    bool | int | float | bytes | str | Error | Sequence["Value"] | Mapping["Value", "Value"] | Set["Value"] | None
)


def encode(value: Value, proto: int) -> bytes:
    """The reply frame for a value, as Redis writes it to a client of protocol ``proto``.

    A mapping is a map in RESP3 and a flat array in RESP2, a set a set or an array, a bool ``#t`` or ``:1``, a float
    ``,1.5`` or a bulk string, None ``_`` or the null bulk. ``str`` goes out as UTF-8. TypeError for anything else.
    """
    out: list[bytes] = []
    _write(value, proto, out)
    return b"".join(out)


def _write(value: Value, proto: int, out: list[bytes]) -> None:
    match value:
        case None:
            out.append(NIL_BULK[proto])
        case bool():
            out.append((b"#t\r\n" if value else b"#f\r\n") if proto == RESP3 else b":%d\r\n" % value)
        case int():
            out.append(b":%d\r\n" % value)
        case float():
            out.append(b",%b\r\n" % _double(value) if proto == RESP3 else _bulk(_double(value)))
        case Error():
            out.append(b"-%b\r\n" % value.line)
        case Status():
            out.append(b"+%b\r\n" % value)
        case Verbatim():
            out.append(b"=%d\r\ntxt:%b\r\n" % (len(value) + 4, value) if proto == RESP3 else _bulk(value))
        case bytes():
            out.append(_bulk(value))
        case str():
            out.append(_bulk(value.encode()))
        case _:
            _write_aggregate(value, proto, out)


def _write_aggregate(value: Value, proto: int, out: list[bytes]) -> None:
    items: list[Value]
    match value:
        case Mapping():
            out.append(b"%%%d\r\n" % len(value) if proto == RESP3 else b"*%d\r\n" % (2 * len(value)))
            items = [word for pair in value.items() for word in pair]
        case Set():
            out.append(b"%b%d\r\n" % (b"~" if proto == RESP3 else b"*", len(value)))
            items = list(value)
        case list() | tuple():
            out.append(b"*%d\r\n" % len(value))
            items = list(value)
        case _:
            raise TypeError(f"no reply can carry a {type(value).__name__}")
    for item in items:
        _write(item, proto, out)


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def _double(value: float) -> bytes:
    """The shortest text that reads back as the same double, whole numbers without a point.

    So do servers of today in the common range; in very small and very large ones they differ among themselves.
    """
    if abs(value) < 1e15 and value.is_integer():
        return b"%d" % int(value)
    return repr(value).encode()


_MORE = object()  # hiredis' default for "not a whole frame" is False, which is also the value of RESP3's #f


def decode(frame: bytes) -> Value:
    """The value of one whole reply frame of either protocol; errors, at the top or inside, are `Error` values.

    What hiredis does not tell apart stays so: a simple string, a bulk string and a verbatim string are ``bytes``, every
    kind of null is None, a set is a list. BadFrame if the bytes are less or more than one frame, or no frame at all;
    also for RESP3 maps with keys that have no hash, and for ``!`` and ``|``, which servers do not send today. Not for
    maps with a key twice: hiredis mixes up their values.
    """
    if frame[:1] == b"-" and frame.find(b"\n") == len(frame) - 1 and frame[-2:] == b"\r\n":
        return Error(frame[1:-2])  # hiredis would read it as UTF-8 and lose what is not
    reader = hiredis.Reader(notEnoughData=_MORE, replyError=_error)
    reader.feed(frame)
    try:
        value: Value = reader.gets()
    except (hiredis.ProtocolError, TypeError) as problem:
        raise BadFrame(f"expected one reply, got {frame[:64]!r}: {problem}") from problem
    if value is _MORE or reader.has_data():
        size = "less" if value is _MORE else "more"
        raise BadFrame(f"expected one reply, got {size}: {frame[:64]!r}")
    return value


def _error(line: str) -> Error:
    return Error(line.encode())


# --- the parts of a decoded reply, checked, as a server may send anything ---------------------------------------------


def listed(reply: Value) -> list[Value]:
    """A reply that must be an array. Raises BadFrame for anything else."""
    if not isinstance(reply, list):
        raise BadFrame(f"expected an array, got {reply!r:.64}")
    return reply


def fields(reply: Value) -> dict[bytes, Value]:
    """A reply that must be a map, or a flat array of names and values. Raises BadFrame for anything else."""
    if isinstance(reply, Mapping):
        pairs = list(reply.items())
    else:
        words = listed(reply)
        if len(words) % 2:
            raise BadFrame(f"expected names and values, got {len(words)} words")
        pairs = list(zip(words[::2], words[1::2], strict=True))
    found: dict[bytes, Value] = {}
    for name, value in pairs:
        if not isinstance(name, bytes):
            raise BadFrame(f"expected a name, got {name!r:.64}")
        found[name] = value
    return found


def text_of(reply: Mapping[bytes, Value], name: bytes) -> bytes:
    """The text of a field. Raises BadFrame if the field is missing or has no text."""
    text = reply.get(name)
    if not isinstance(text, bytes):
        raise BadFrame(f"expected a text as {name.decode()}, got {text!r:.64}")
    return text


def integer(frame: bytes) -> int:
    """The number in the frame of an integer. Raises BadFrame for anything else."""
    number = decode(frame)
    if not isinstance(number, int) or isinstance(number, bool):
        raise BadFrame(f"expected an integer, got {frame[:64]!r}")
    return number
