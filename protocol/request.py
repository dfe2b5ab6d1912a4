"""The request side in plain Python: inline commands to argv, argv to the canonical request.

Bytes come in, arguments go out, and the reverse. What is sent to a server is a `Request` or a `Block`: both know how
many answers will come, as whoever counts on another number takes the answers of others. Where an inline line or a
framed request *ends* is decided in ``scan``; nothing here waits for more bytes, checks a limit or says an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import ClassVar, Final, Self

from protocol.scan import Words, is_request

# C's isspace() separates arguments, but only four of its six characters end one that was begun (sds.c, sdssplitargs).
_UNLIKE_SPLIT = re.compile(rb"[\"'\v\f]")  # without these a line is split as by Python, many times faster
_BLANKS = re.compile(rb"[ \t\n\v\f\r]*")
_PLAIN = re.compile(rb"[^ \t\n\r\"']+")
_IN_DOUBLE = re.compile(rb"[^\"\\]+")
_IN_SINGLE = re.compile(rb"[^'\\]+")
_HEX_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")
_ISSPACE = b" \t\n\v\f\r"
_ENDS_ARGUMENT = b" \t\n\r"
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}


def split_inline(line: bytes) -> list[bytes] | None:
    """The arguments of an inline command, exactly as ``sdssplitargs`` of Redis 7.0 splits them.

    (Valkey 9.1 has a splitter of its own: there text may follow a closing quote, and a byte 0xff is lost.)

    ``line``: without its newline; as for C, it ends at the first NUL. An empty list means a blank line, to be ignored;
    ``None`` means unbalanced quotes, after which Redis closes the connection.
    """
    line = line.split(b"\0", 1)[0]
    if not _UNLIKE_SPLIT.search(line):
        return line.split()
    argv: list[bytes] = []
    position = _past(_BLANKS, line, 0)
    while position < len(line):
        argument, position = _argument(line, position)
        if argument is None:
            return None
        argv.append(argument)
        position = _past(_BLANKS, line, position)
    return argv


def encode(argv: Sequence[bytes]) -> bytes:
    """The one form in which the proxy writes a request: an array of bulk strings.

    ValueError for no argument at all: a server gives no answer to that.
    """
    if not argv:
        raise ValueError("expected a request with at least a name, got none")
    out = [b"*%d\r\n" % len(argv)]
    out += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in argv]
    return b"".join(out)


def size_of(argv: Sequence[bytes]) -> int:
    """About how many bytes it takes."""
    return len(argv.frame) if isinstance(argv, Words) else sum(map(len, argv))


class Request:
    """One request: `frame` is exactly one, so it is answered exactly once."""

    __slots__ = ("frame",)

    queued: ClassVar[int] = 0

    def __init__(self, argv: Sequence[bytes]) -> None:
        self.frame: Final = argv.frame if isinstance(argv, Words) else encode(argv)

    @classmethod
    def of_frame(cls, frame: bytes) -> Self:
        """Of bytes that were put together elsewhere. ValueError where they are not exactly one request."""
        if not is_request(frame):
            raise ValueError(f"expected exactly one request, got {frame[:64]!r}")
        made = cls.__new__(cls)
        made.frame = frame  # type: ignore[misc]  # the only other way to make one
        return made

    @classmethod
    def of_accepted(cls, frame: bytes) -> Self:
        """Of the bytes of one that was accepted, or that were cut out of it: nothing is looked at again."""
        made = cls.__new__(cls)
        made.frame = frame  # type: ignore[misc]
        return made

    @property
    def size(self) -> int:
        """Of its frame, in bytes."""
        return len(self.frame)


class Block:
    """Requests that a server runs as one transaction: `frame` is all of them, from MULTI to EXEC.

    `queued`: how many they are, at least one: a server's answer to none looks like a block that did nothing, and who
    sends one has mistaken something. It is answered `queued` + 2 times, and the last answer is that to EXEC.
    """

    __slots__ = ("_bytes", "queued")

    def __init__(self, requests: Iterable[Request]) -> None:
        """ValueError for none."""
        self._bytes = bytearray(_MULTI)
        self.queued = 0
        for each in requests:
            self.add(each)
        if not self.queued:
            raise ValueError("expected a block of at least one request, got none")

    def add(self, request: Request) -> None:
        """One more, behind the others."""
        self._bytes += request.frame
        self.queued += 1

    @property
    def frame(self) -> bytes:
        return b"".join((self._bytes, _EXEC))

    @property
    def size(self) -> int:
        """Of its frame, in bytes."""
        return len(self._bytes) + len(_EXEC)


Asked = Request | Block
"""What may be sent to a server: it knows how often it is answered. Bare bytes do not."""

_MULTI, _EXEC = encode([b"MULTI"]), encode([b"EXEC"])


def _past(pattern: re.Pattern[bytes], line: bytes, position: int) -> int:
    found = pattern.match(line, position)
    return found.end() if found else position


def _argument(line: bytes, position: int) -> tuple[bytes | None, int]:
    """One argument and where it ended; quotes may open anywhere in it, but must be followed by a space or the end."""
    parts: list[bytes] = []
    while position < len(line) and line[position] not in _ENDS_ARGUMENT:
        quote = line[position : position + 1]
        if quote not in (b'"', b"'"):
            end = _past(_PLAIN, line, position)
            parts.append(line[position:end])
            position = end
            continue
        position = _quoted(line, position + 1, quote, parts)
        if position < 0 or (position < len(line) and line[position] not in _ISSPACE):
            return None, position
        break
    return b"".join(parts), position


def _quoted(line: bytes, position: int, quote: bytes, parts: list[bytes]) -> int:
    """Append what stands in quotes to ``parts``; returns the position behind the closing one, -1 if there is none."""
    run = _IN_DOUBLE if quote == b'"' else _IN_SINGLE
    while position < len(line):
        character = line[position : position + 1]
        if character == quote:
            return position + 1
        if character != b"\\":
            end = _past(run, line, position)
            parts.append(line[position:end])
        else:
            text, end = _escape(line, position, quote)
            parts.append(text)
        position = end
    return -1


def _escape(line: bytes, position: int, quote: bytes) -> tuple[bytes, int]:
    """What the backslash at ``at`` stands for, and the position behind it."""
    following = line[position + 1 : position + 2]
    if quote == b"'":
        return (b"'", position + 2) if following == b"'" else (b"\\", position + 1)
    as_hex = _HEX_ESCAPE.match(line, position)
    if as_hex:
        return bytes([int(as_hex[1], 16)]), position + 4
    if not following:
        return b"\\", position + 1
    return _ESCAPED.get(following, following), position + 2
