"""Calls of scripts and functions without keys: on which shards they are run, and how the answers are merged.

Such a call has no shard of its own, and the keys that it finds by itself (`KEYS *`, `DBSIZE`) are on all shards. The
answer of one shard would be wrong without a sign of it. So without a rule a call is run on one shard only if its text
surely uses no keys (protocol/lua.py). The operator gives rules for other calls: `[scripts]` of the configuration.

Pure: rules and merges. scripting.py and transaction.py run the calls.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence

from protocol import errors
from protocol.lua import may_use_keys
from protocol.reply import NILS, integer
from protocol.scan import ProtocolError, elements
from pyproxy.config import ScriptRule, ScriptRules
from pyproxy.scripts import Scripts, digest_of

AUTO, ONE, REFUSE, UNKNOWN = "auto", "one", "refuse", "unknown"
"""How a call is run, beside the names of MERGES; see Keyless.way."""

LONGEST = 64 * 1024
"""The most bytes of a text that is compared with patterns. A rule for a longer text must name its SHA-1."""

KEPT = 4096
"""The most texts whose way is cached."""


Frames = Mapping[str, bytes]
"""The reply frames of all shards, by the names of these."""


class Keyless:
    """How calls without keys are run, by the configuration. `scripts`: the known texts."""

    def __init__(self, config: ScriptRules, scripts: Scripts) -> None:
        self._scripts = scripts
        self._default = config.without_keys
        self._rules = [(_pattern(rule), rule) for rule in config.calls]
        self._known: dict[bytes, str] = {}  # by digest

    def way(self, argv: Sequence[bytes], shards: int) -> str:
        """How to run this call without keys: `one`, `refuse`, one of MERGES, `auto` or `unknown`.

        `auto`: a function, to be run on one shard if its library surely uses no keys. `unknown`: the client must send
        the text first.
        """
        if shards == 1:
            return ONE
        name = argv[0].lower()
        if name.startswith(b"fcall"):
            return self._of_function(argv[1])
        text = self._scripts.text(argv[1]) if name.startswith(b"evalsha") else argv[1]
        return self._of_digest(argv[1]) if text is None else self._of_text(text)

    def refusal(self, argv: Sequence[bytes]) -> bytes:
        """The error line for this call."""
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
        """The way of a text that is not known here."""
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
    """The merged answer of all shards to a call, by one of MERGES. `name`: its command.

    Errors are not merged. If all shards gave the same error, it is the answer. Else the answer is the first error, with
    the shards that may have applied something.
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
    """The elements of all arrays. A nil has none."""
    found = [each for frame in frames if frame not in NILS for each in elements(frame, True)]
    return b"*%d\r\n%b" % (len(found), b"".join(found))


def _first(frames: Sequence[bytes]) -> bytes:
    return next((frame for frame in frames if frame not in NILS), frames[0])


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
"""How the answers of all shards are merged. Raise ValueError or ProtocolError if that is impossible."""
