"""Redis' glob patterns: whether a name matches one.

Bytes in, yes or no out, by the rules of util.c, stringmatchlen: ``*``, ``?``, ``[a-z]``, ``[^a]``, a backslash before a
sign. Whoever wants to ignore case lowers both. Time grows with the product of both lengths: the caller bounds them.
"""

from __future__ import annotations


def matches(pattern: bytes, name: bytes) -> bool:
    """Whether the pattern matches the whole name; the empty one is matched by the empty pattern alone."""
    if not name:
        return not pattern
    at = here = 0
    star, resume = -1, 0  # the last * of the pattern, and what of the name it has not taken yet
    while here < len(name):
        if pattern[at : at + 1] == b"*":
            star, resume = at, here
            at += 1
            continue
        after = _one(pattern, at, name[here])
        if after >= 0:
            at, here = after, here + 1
        elif star >= 0:
            resume += 1
            at, here = star + 1, resume
        else:
            return False
    return not pattern[at:].strip(b"*")


def _one(pattern: bytes, at: int, byte: int) -> int:
    """The position behind the pattern's next element if that one matches this byte, else -1."""
    sign = pattern[at : at + 1]
    if not sign:
        return -1
    if sign == b"?":
        return at + 1
    if sign == b"[":
        return _one_of(pattern, at + 1, byte)
    if sign == b"\\" and at + 1 < len(pattern):
        at += 1
    return at + 1 if pattern[at] == byte else -1


def _one_of(pattern: bytes, at: int, byte: int) -> int:
    """As `_one`, for a class: ``at`` is behind its bracket, and an open one ends with the pattern."""
    negated = pattern[at : at + 1] == b"^"
    at += negated
    matched = False
    while at < len(pattern) and pattern[at : at + 1] != b"]":
        if pattern[at : at + 1] == b"\\" and at + 1 < len(pattern):
            at += 1
            matched |= pattern[at] == byte
        elif pattern[at + 1 : at + 2] == b"-" and at + 2 < len(pattern):
            low, high = sorted((pattern[at], pattern[at + 2]))
            matched |= low <= byte <= high
            at += 2
        else:
            matched |= pattern[at] == byte
        at += 1
    return min(at + 1, len(pattern)) if matched != negated else -1
