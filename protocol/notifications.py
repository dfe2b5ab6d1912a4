"""The flags of `notify-keyspace-events`: which events of keys a server publishes.

What a client writes comes in; out goes the same in Redis' order, each flag once (notify.c, keyspaceEventsStringToFlags
and keyspaceEventsFlagsToString, of Redis 7.0 and Valkey 9.1, which agree).
"""

from __future__ import annotations

SETTING = "notify-keyspace-events"

INVALID = "Invalid event class character. Use 'Ag$lshzxeKEtmdn'."
"""What Redis says of any other character."""

_ALL = "g$lshzxetd"  # what A stands for: neither key misses (m) nor new keys (n)
_BESIDE = "nKEm"


def parse(text: bytes) -> str | None:
    """The flags, such that a server told them has the same ones as if told `text`; None if it is invalid.

    Redis reads up to the first NUL.
    """
    flags = set(text.split(b"\0", 1)[0].decode("latin-1"))
    if not flags <= {"A", *_ALL, *_BESIDE}:
        return None
    is_all = "A" in flags or flags.issuperset(_ALL)
    return "".join(("A" if is_all else _in_order(_ALL, flags), _in_order(_BESIDE, flags)))


def shown(flags: str) -> str:
    """What `parse` made, as CONFIG GET says it: behind A it leaves n out, though it is set."""
    return flags.replace("n", "") if flags.startswith("A") else flags


def _in_order(order: str, flags: set[str]) -> str:
    return "".join(flag for flag in order if flag in flags)
