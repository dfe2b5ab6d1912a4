"""Calls of scripts and functions that name no key: on how many shards they are run, and what their answers become.

Such a call has no shard of its own, and what it finds by itself (`KEYS *`, `DBSIZE`) is on all of them. One shard's
answer for that of all would be wrong without a word, so by itself the proxy runs a call on one shard only if its text
is seen to use no keys (protocol/lua.py). Else the operator says what is meant: `[scripts]` of the configuration.

Pure: what a rule says, and how answers are merged. Who runs what is in scripting.py and transaction.py.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence

from protocol import errors
from protocol.lua import may_use_keys
from protocol.reply import integer
from protocol.scan import ProtocolError, elements
from pyproxy.config import ScriptRule, ScriptRules
from pyproxy.scripts import Scripts, digest_of

AUTO, ONE, REFUSE, UNKNOWN = "auto", "one", "refuse", "unknown"
"""Ways of a call beside the names of MERGES; see Keyless.way."""

LONGEST = 64 * 1024
"""Bytes of a text that is compared with patterns; a longer one is only known by its SHA-1."""

KEPT = 4096
"""How many texts it is remembered of what they are."""

NIL = (b"*-1\r\n", b"$-1\r\n", b"_\r\n")

Frames = Mapping[str, bytes]
"""The reply frames of all shards, by the names of these."""


class Keyless:
    """What calls without keys are, by the configuration; `scripts`: the texts that are known."""

    def __init__(self, config: ScriptRules, scripts: Scripts) -> None:
        self._scripts = scripts
        self._default = config.without_keys
        self._rules = [(_pattern(rule), rule) for rule in config.calls]
        self._known: dict[bytes, str] = {}  # by digest

    def way(self, argv: Sequence[bytes], shards: int) -> str:
        """What this call without keys is, before so many shards: `one`, `refuse`, one of MERGES, `auto` or `unknown`.

        `auto`: a function; on one shard, if its library is seen to use no keys. `unknown`: its text must be sent first.
        """
        if shards == 1:
            return ONE
        name = argv[0].lower()
        if name.startswith(b"fcall"):
            return self._of_function(argv[1])
        text = self._scripts.text(argv[1]) if name.startswith(b"evalsha") else argv[1]
        return self._of_digest(argv[1]) if text is None else self._of_text(text)

    def refusal(self, argv: Sequence[bytes]) -> bytes:
        """The line to refuse this call with."""
        name = argv[0].lower()
        if name.startswith(b"fcall"):
            what = b'function = "%b"' % argv[1]
        else:
            what = b'sha1 = "%b"' % (argv[1].lower() if name.startswith(b"evalsha") else digest_of(argv[1]))
        return errors.script_without_keys(name, what)

    def _of_text(self, text: bytes) -> str:
        digest = digest_of(text)
        way = self._known.get(digest)
        if way is None:
            if len(self._known) >= KEPT:
                self._known.clear()
            way = self._known[digest] = self._find(digest, text)
        return way

    def _of_digest(self, digest: bytes) -> str:
        """Of a text that is not known here."""
        way: str = self._default
        for _, rule in self._rules:
            if rule.text or rule.sha1.lower().encode() == digest.lower():
                way = UNKNOWN if rule.text else rule.without_keys
                break
        return UNKNOWN if way == AUTO else way

    def _of_function(self, name: bytes) -> str:
        for pattern, rule in self._rules:
            if rule.function and pattern.fullmatch(name[:LONGEST]):
                return rule.without_keys
        return self._default

    def _find(self, digest: bytes, text: bytes) -> str:
        for pattern, rule in self._rules:
            if rule.sha1:
                found = rule.sha1.lower().encode() == digest.lower()
            else:
                found = bool(rule.text) and len(text) <= LONGEST and pattern.fullmatch(text) is not None
            if found:
                return _certain(rule.without_keys, text)
        return _certain(self._default, text)


def _pattern(rule: ScriptRule) -> re.Pattern[bytes]:
    return re.compile(fnmatch.translate(rule.text or rule.function).encode())


def _certain(way: str, text: bytes) -> str:
    if way != AUTO:
        return way
    return REFUSE if may_use_keys(text) else ONE


# --- answers ----------------------------------------------------------------------------------------------------------


def merged(name: bytes, way: str, frames: Frames, write: bool) -> bytes:
    """The one answer of all shards to a call (`name`: its command), by one of MERGES.

    Errors are never merged: the same of all is the answer; else it says which shards may have done something.
    """
    failed = {shard: frame for shard, frame in frames.items() if frame.startswith(b"-")}
    if failed:
        if len(failed) == len(frames) and len(set(failed.values())) == 1:
            return next(iter(failed.values()))
        shard, line = next(iter(failed.items()))
        others = [other for other in frames if other != shard] if write else []
        return errors.part_failed(shard, line, others)
    try:
        return MERGES[way](list(frames.values()))
    except (ValueError, ProtocolError):
        return errors.script_answers_differ(name, way)


def _sum(frames: Sequence[bytes]) -> bytes:
    total = sum(integer(frame) for frame in frames)
    if not -(1 << 63) <= total < 1 << 63:
        raise ValueError(total)
    return b":%d\r\n" % total


def _concat(frames: Sequence[bytes]) -> bytes:
    """The elements of all arrays; a nil stands for none."""
    found = [each for frame in frames if frame not in NIL for each in elements(frame, True)]
    return b"*%d\r\n%b" % (len(found), b"".join(found))


def _first(frames: Sequence[bytes]) -> bytes:
    return next((frame for frame in frames if frame not in NIL), frames[0])


def _equal(frames: Sequence[bytes]) -> bytes:
    if len(set(frames)) != 1:
        raise ValueError(frames)
    return frames[0]


MERGES: Mapping[str, Callable[[Sequence[bytes]], bytes]] = {
    "all-sum": _sum,
    "all-concat": _concat,
    "all-first": _first,
    "all-equal": _equal,
}
"""How the answers of all shards become one. Raise ValueError or ProtocolError where they do not."""
