"""The request side in plain Python: inline commands to argv, argv to the canonical request.

What is sent to a server is a `Request` or a `Block`. Both know how many replies they get: a connection with a wrong
count would give replies to the wrong clients. `scan` decides where an inline line or a framed request *ends*. Nothing
here waits for more bytes, checks a limit or makes an error line.
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
    """A request in the form that the proxy writes: an array of bulk strings.

    Raises ValueError for an empty argv: a server does not answer an empty array.
    """
    if not argv:
        raise ValueError("expected a request with at least a name, got none")
    out = [b"*%d\r\n" % len(argv)]
    out += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in argv]
    return b"".join(out)


def size_of(argv: Sequence[bytes]) -> int:
    """About how many bytes a request of this argv has."""
    return len(argv.frame) if isinstance(argv, Words) else sum(map(len, argv))


class Request:
    """One request. `frame` is exactly one request, so it gets exactly one reply."""

    __slots__ = ("frame",)

    queued: ClassVar[int] = 0
    timeout_class: ClassVar[int] = -1

    def __init__(self, argv: Sequence[bytes]) -> None:
        self.frame: Final = argv.frame if isinstance(argv, Words) else encode(argv)

    @classmethod
    def of_frame(cls, frame: bytes) -> Self:
        """A request of bytes that were made elsewhere. Raises ValueError if they are not exactly one request."""
        if not is_request(frame):
            raise ValueError(f"expected exactly one request, got {frame[:64]!r}")
        made = cls.__new__(cls)
        made.frame = frame  # type: ignore[misc]  # the only other way to make one
        return made

    @classmethod
    def of_accepted(cls, frame: bytes) -> Self:
        """A request of bytes that the scanner has accepted, or of parts of them. They are not checked again."""
        made = cls.__new__(cls)
        made.frame = frame  # type: ignore[misc]
        return made

    @property
    def size(self) -> int:
        """Of its frame, in bytes."""
        return len(self.frame)


class Block:
    """Requests that a server runs as one transaction. `frame` has them all, from MULTI to EXEC.

    `queued`: how many requests they are, at least one. A block gets `queued` + 2 replies; the last is that to EXEC.
    """

    __slots__ = ("_bytes", "_frame", "queued", "timeout_class")

    def __init__(self, requests: Iterable[Request]) -> None:
        """Raises ValueError if there is no request: an empty block is a mistake of the caller."""
        self._bytes = bytearray(_MULTI)
        self._frame: bytes | None = None
        self.queued = 0
        self.timeout_class = -1
        """That of its slowest request, see Lane.timeout_class_of; -1: nobody has looked for it."""
        for each in requests:
            self.add(each)
        if not self.queued:
            raise ValueError("expected a block of at least one request, got none")

    def add(self, request: Request) -> None:
        """Append a request."""
        if self._frame is not None:
            self._bytes, self._frame = bytearray(self._frame[: -len(_EXEC)]), None
        self._bytes += request.frame
        self.queued += 1
        self.timeout_class = -1

    @property
    def frame(self) -> bytes:
        if self._frame is None:
            self._frame = b"".join((self._bytes, _EXEC))
            self._bytes = bytearray()  # a large one is kept once
        return self._frame

    @property
    def size(self) -> int:
        """Of its frame, in bytes."""
        return len(self._bytes) + len(_EXEC) if self._frame is None else len(self._frame)


Asked = Request | Block
"""What may be sent to a server. Unlike bytes, it knows how many replies it gets."""

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
    """Append the quoted text to `parts`; returns the position after the closing quote, -1 if there is none."""
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
    """The text that the backslash at this position stands for, and the position after the escape."""
    following = line[position + 1 : position + 2]
    if quote == b"'":
        return (b"'", position + 2) if following == b"'" else (b"\\", position + 1)
    as_hex = _HEX_ESCAPE.match(line, position)
    if as_hex:
        return bytes([int(as_hex[1], 16)]), position + 4
    if not following:
        return b"\\", position + 1
    return _ESCAPED.get(following, following), position + 2
