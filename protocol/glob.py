"""Redis' glob patterns: whether a name matches one.

The rules are those of stringmatchlen in util.c: `*`, `?`, `[a-z]`, `[^a]`, a backslash before a character. To ignore
case, the caller makes both lower case. Time grows with the product of both lengths, so the caller limits them.
"""

from __future__ import annotations


def matches(pattern: bytes, name: bytes) -> bool:
    """Whether the pattern matches the whole name. Only the empty pattern matches the empty name."""
    if not name:
        return not pattern
    index = position = 0
    star, resume = -1, 0  # the last * of the pattern, and the first byte of the name that it does not cover
    while position < len(name):
        if pattern[index : index + 1] == b"*":
            star, resume = index, position
            index += 1
            continue
        after = _one(pattern, index, name[position])
        if after >= 0:
            index, position = after, position + 1
        elif star >= 0:
            resume += 1
            index, position = star + 1, resume
        else:
            return False
    return not pattern[index:].strip(b"*")


def _one(pattern: bytes, index: int, byte: int) -> int:
    """The position after the next element of the pattern if it matches this byte, else -1."""
    sign = pattern[index : index + 1]
    if not sign:
        return -1
    if sign == b"?":
        return index + 1
    if sign == b"[":
        return _one_of(pattern, index + 1, byte)
    if sign == b"\\" and index + 1 < len(pattern):
        index += 1
    return index + 1 if pattern[index] == byte else -1


def _one_of(pattern: bytes, index: int, byte: int) -> int:
    """As `_one`, for a class whose bracket is before `index`. A class without `]` ends with the pattern."""
    negated = pattern[index : index + 1] == b"^"
    index += negated
    matched = False
    while index < len(pattern) and pattern[index : index + 1] != b"]":
        if pattern[index : index + 1] == b"\\" and index + 1 < len(pattern):
            index += 1
            matched |= pattern[index] == byte
        elif pattern[index + 1 : index + 2] == b"-" and index + 2 < len(pattern):
            low, high = sorted((pattern[index], pattern[index + 2]))
            matched |= low <= byte <= high
            index += 2
        else:
            matched |= pattern[index] == byte
        index += 1
    return min(index + 1, len(pattern)) if matched != negated else -1
