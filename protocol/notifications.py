"""The flags of `notify-keyspace-events`: which events of keys a server publishes.

Flags are brought into Redis' order, each once: keyspaceEventsStringToFlags and keyspaceEventsFlagsToString of notify.c,
which are the same in Redis 7.0 and Valkey 9.1.
"""

from __future__ import annotations

SETTING = "notify-keyspace-events"

INVALID = "Invalid event class character. Use 'Ag$lshzxeKEtmdn'."
"""Redis' error for any other character."""

_ALL = "g$lshzxetd"  # what A stands for: neither key misses (m) nor new keys (n)
_BESIDE = "nKEm"


def parse(text: bytes) -> str | None:
    """The flags in Redis' order; None if the text is invalid. A server treats both forms alike.

    Redis reads the text up to the first NUL.
    """
    flags = set(text.split(b"\0", 1)[0].decode("latin-1"))
    if not flags <= {"A", *_ALL, *_BESIDE}:
        return None
    is_all = "A" in flags or flags.issuperset(_ALL)
    return "".join(("A" if is_all else _in_order(_ALL, flags), _in_order(_BESIDE, flags)))


def shown(flags: str) -> str:
    """Flags of `parse` as CONFIG GET shows them: it leaves out n after A, though n is set."""
    return flags.replace("n", "") if flags.startswith("A") else flags


def _in_order(order: str, flags: set[str]) -> str:
    return "".join(flag for flag in order if flag in flags)
