"""The request side in plain Python: inline commands to argv, argv to the canonical request.

Bytes come in, arguments go out, and the reverse. Where an inline line or a framed request *ends* is decided in
``scan``; nothing here waits for more bytes, checks a limit or says an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# C's isspace() separates arguments, but only four of its six characters end one that was begun (sds.c, sdssplitargs).
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
    argv: list[bytes] = []
    at = _past(_BLANKS, line, 0)
    while at < len(line):
        argument, at = _argument(line, at)
        if argument is None:
            return None
        argv.append(argument)
        at = _past(_BLANKS, line, at)
    return argv


def encode(argv: Sequence[bytes]) -> bytes:
    """The one form in which the proxy writes a request: an array of bulk strings."""
    out = [b"*%d\r\n" % len(argv)]
    out += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in argv]
    return b"".join(out)


def block(frames: Iterable[bytes]) -> bytes:
    """These requests as one transaction, from MULTI to EXEC."""
    return b"".join((_MULTI, *frames, _EXEC))


_MULTI, _EXEC = encode([b"MULTI"]), encode([b"EXEC"])


def _past(pattern: re.Pattern[bytes], line: bytes, at: int) -> int:
    found = pattern.match(line, at)
    return found.end() if found else at


def _argument(line: bytes, at: int) -> tuple[bytes | None, int]:
    """One argument and where it ended; quotes may open anywhere in it, but must be followed by a space or the end."""
    parts: list[bytes] = []
    while at < len(line) and line[at] not in _ENDS_ARGUMENT:
        quote = line[at : at + 1]
        if quote not in (b'"', b"'"):
            end = _past(_PLAIN, line, at)
            parts.append(line[at:end])
            at = end
            continue
        at = _quoted(line, at + 1, quote, parts)
        if at < 0 or (at < len(line) and line[at] not in _ISSPACE):
            return None, at
        break
    return b"".join(parts), at


def _quoted(line: bytes, at: int, quote: bytes, parts: list[bytes]) -> int:
    """Append what stands in quotes to ``parts``; returns the position behind the closing one, -1 if there is none."""
    run = _IN_DOUBLE if quote == b'"' else _IN_SINGLE
    while at < len(line):
        here = line[at : at + 1]
        if here == quote:
            return at + 1
        if here != b"\\":
            end = _past(run, line, at)
            parts.append(line[at:end])
        else:
            text, end = _escape(line, at, quote)
            parts.append(text)
        at = end
    return -1


def _escape(line: bytes, at: int, quote: bytes) -> tuple[bytes, int]:
    """What the backslash at ``at`` stands for, and the position behind it."""
    following = line[at + 1 : at + 2]
    if quote == b"'":
        return (b"'", at + 2) if following == b"'" else (b"\\", at + 1)
    as_hex = _HEX_ESCAPE.match(line, at)
    if as_hex:
        return bytes([int(as_hex[1], 16)]), at + 4
    if not following:
        return b"\\", at + 1
    return _ESCAPED.get(following, following), at + 2
