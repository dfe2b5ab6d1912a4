"""How long a command waits: its timeout, as the server reads it, and what is left of that when it is sent again."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from protocol import errors
from protocol.keyspecs import number, timeout_place
from protocol.request import Request

HELD_S = 0.1
"""A command that is sent so long after it came was held, and less of its time is left."""

_LARGEST = 2**63 - 1
# What strtold(3) reads, without the blanks before a number that Redis refuses.
_DECIMAL = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
_HEXADECIMAL = re.compile(rb"[+-]?0x([0-9a-f]+\.?[0-9a-f]*|\.[0-9a-f]+)(p[+-]?\d+)?", re.IGNORECASE)


class Patience:
    """How long a command waits; `argv`: the command.

    `refusal`: what the server says to its timeout; empty: nothing.
    """

    def __init__(self, name: bytes, argv: Sequence[bytes]) -> None:
        self.argv = list(argv)
        self._place = timeout_place(name, argv)
        self._in_ms = name in (b"xread", b"xreadgroup")
        read = _milliseconds if self._in_ms else _seconds
        wait_ms, self.refusal = read(argv[self._place])
        self.deadline = time.monotonic() + wait_ms / 1000 if wait_ms > 0 else None
        self._as_it_came_until = time.monotonic() + HELD_S

    @property
    def left_s(self) -> float | None:
        """None: it waits for ever."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    @property
    def is_over(self) -> bool:
        return self.left_s == 0.0

    def request(self) -> Request:
        """The command as it came; later, or from the second time on, with what is left; never 0, which is for ever."""
        late, self._as_it_came_until = time.monotonic() > self._as_it_came_until, 0.0
        if late and self.left_s is not None:
            left_ms = max(1, int(self.left_s * 1000))
            self.argv[self._place] = b"%d" % left_ms if self._in_ms else b"%.3f" % (left_ms / 1000)
        return Request(self.argv)


Read = tuple[float, bytes]
"""Milliseconds, 0: for ever; and what is wrong with them."""


def _seconds(word: bytes) -> Read:
    if _DECIMAL.fullmatch(word):
        return _in_range(float(word) * 1000)
    if _HEXADECIMAL.fullmatch(word):
        return _in_range(float.fromhex(word.decode()) * 1000)
    return 0.0, errors.timeout_not_a_float()


def _milliseconds(word: bytes) -> Read:
    value = number(word)
    return (0.0, errors.timeout_not_an_integer()) if value is None else _in_range(value)


def _in_range(milliseconds: float) -> Read:
    """As timeout.c has it (getTimeoutFromObjectOrReply): the moment of the end must be a 64-bit number too."""
    if milliseconds > _LARGEST - time.time() * 1000:
        return 0.0, errors.timeout_out_of_range()
    if milliseconds <= -1:  # the server rounds up
        return 0.0, errors.timeout_negative()
    return max(0.0, milliseconds), b""
