"""The timeout of a blocking command: how the server reads it, and how much is left when the command is sent again."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from typing import overload

from protocol import errors
from protocol.keyspecs import number, timeout_place

HELD_S = 0.1
"""A command that is sent later than this after it came was held, so its timeout is shortened."""

_LARGEST = 2**63 - 1
_LONGEST = 5 * 1024 - 1  # bytes of a number (util.h, MAX_LONG_DOUBLE_CHARS)
# The numbers of strtold(3), without blanks before them, which Redis refuses.
_INFINITE = re.compile(rb"[+-]?inf(inity)?", re.IGNORECASE)
_DECIMAL = re.compile(rb"[+-]?(?:(\d+)\.?(\d*)|()\.(\d+))(?:e([+-]?)(\d+))?", re.IGNORECASE)
_HEXADECIMAL = re.compile(rb"[+-]?0x(?:([0-9a-f]+)\.?([0-9a-f]*)|()\.([0-9a-f]+))(?:p([+-]?)(\d+))?", re.IGNORECASE)
_EXPONENTS = (
    -16445,
    16384,
)  # to base 2, of x87's extended precision: its smallest number, and the first above its largest
_SMALLEST = 5e-324


class BlockTimeout:
    """How long a command may block. `argv`: the command, with the words that were replaced.

    `refusal`: the server's error line for the timeout; empty if it is right.
    """

    def __init__(self, name: bytes, argv: Sequence[bytes]) -> None:
        self._argv = WithReplaced(argv)
        self._place = timeout_place(name, argv)
        self._in_ms = name in (b"xread", b"xreadgroup")
        read = _milliseconds if self._in_ms else _seconds
        wait_ms, self.refusal = read(argv[self._place])
        self.deadline = time.monotonic() + wait_ms / 1000 if wait_ms > 0 else None
        self._as_it_came_until = time.monotonic() + HELD_S

    @property
    def argv(self) -> Sequence[bytes]:
        return self._argv if self._argv.replaced else self._argv.words

    def replace_word(self, place: int, word: bytes) -> None:
        """Put another word at this position of `argv`."""
        self._argv.replaced[place] = word

    @property
    def left_s(self) -> float | None:
        """None: without an end."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    @property
    def is_over(self) -> bool:
        return self.left_s == 0.0

    def to_send(self) -> Sequence[bytes]:
        """The command as it came. Later, or from the second call on, with what is left of its timeout, never 0."""
        late, self._as_it_came_until = time.monotonic() > self._as_it_came_until, 0.0
        if late and self.left_s is not None:
            left_ms = max(1, int(self.left_s * 1000))
            self.replace_word(self._place, b"%d" % left_ms if self._in_ms else b"%.3f" % (left_ms / 1000))
        return self.argv


class WithReplaced(Sequence[bytes]):
    """Words of which some are replaced. There may be very many, so the others are not copied."""

    def __init__(self, words: Sequence[bytes]) -> None:
        self.words = words
        self.replaced: dict[int, bytes] = {}

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index if index >= 0 else index + len(self)
        return self.replaced[place] if place in self.replaced else self.words[index]

    def __len__(self) -> int:
        return len(self.words)


Read = tuple[float, bytes]
"""Milliseconds (0: without an end), and the error line if they are wrong."""


def _seconds(word: bytes) -> Read:
    value = _long_double(word)
    return (0.0, errors.timeout_not_a_float()) if value is None else _in_range(value * 1000)


def _long_double(word: bytes) -> float | None:
    """A number as strtold(3) reads it. One beyond the range of a double becomes infinite or the smallest double.

    None: it is no number, or beyond the range of a long double.
    """
    if len(word) > _LONGEST:
        return None
    if _INFINITE.fullmatch(word):
        return float(word)
    if found := _DECIMAL.fullmatch(word):
        base, bits = 10, math.log2(10)
    elif found := _HEXADECIMAL.fullmatch(word):
        base, bits = 16, 1.0
    else:
        return None
    whole, fraction = found[1] or b"", found[2] or found[4] or b""
    digits = (whole + fraction).lstrip(b"0")
    if not digits:
        return 0.0
    exponent = int(found[6].lstrip(b"0")[:9] or b"0") * (-1 if found[5] == b"-" else 1) if found[6] else 0
    shown = digits[:12]
    size = math.log2(int(shown, base)) + (len(digits) - len(shown) - len(fraction)) * math.log2(base) + exponent * bits
    if not _EXPONENTS[0] <= size < _EXPONENTS[1]:
        return None
    sign = -1.0 if word.startswith(b"-") else 1.0
    if size >= 1024:
        return sign * math.inf
    return (float(word) if base == 10 else float.fromhex(word.decode())) or sign * _SMALLEST


def _milliseconds(word: bytes) -> Read:
    value = number(word)
    return (0.0, errors.timeout_not_an_integer()) if value is None else _in_range(value)


def _in_range(milliseconds: float) -> Read:
    """The checks of timeout.c (getTimeoutFromObjectOrReply). The moment of the end must be a 64-bit number, too."""
    if milliseconds > _LARGEST - time.time() * 1000:
        return 0.0, errors.timeout_out_of_range()
    if milliseconds <= -1:  # the server rounds up
        return 0.0, errors.timeout_negative()
    return max(0.0, milliseconds), b""
