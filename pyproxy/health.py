"""What follows from the last look at a shard, said in the same words and numbers by INFO and over HTTP.

Looks come in; states, numbers and the seconds to stay away go out. Pure: the time is an argument.
"""

import math
from collections.abc import Iterable

from pyproxy.messages import NodeLook, ShardLook

LEAST_BACKOFF_S = 1
"""The watcher looks once a second: nobody is told any sooner that a shard is back."""

MOST_BACKOFF_S = 30

LEAST_RETRY_S = 0.25


def state(look: ShardLook) -> str:
    """What its primary is, at worst.

    While the gate is closed, the phase of its promotion (machine.py); else ``busy``: it works on something slow, and
    answers nobody; ``down``: it cannot be reached;
    ``misplaced``: it holds keys of another shard; ``demoted``: it is a replica by now; ``restarted-empty``: it came
    back without its keys; ``misconf``: it cannot write its disk, and refuses writes; ``noreplicas``, ``oom``: it
    refuses writes, as it has too few replicas in step, or no memory left; else ``up``.
    """
    if look.closed and not look.misplaced:
        return look.phase
    if not look.reachable:
        return "busy" if not look.misplaced and any(primary.busy for primary in look.nodes[:1]) else "down"
    if look.misplaced:
        return "misplaced"
    for primary in look.nodes[:1]:
        if primary.role == "slave":
            return "demoted"
        if primary.misconf:
            return "misconf"
        if primary.noreplicas:
            return "noreplicas"
        if primary.oom:
            return "oom"
        if primary.lost_keys:
            return "restarted-empty"
    return "up"


def problem(look: ShardLook) -> str:
    """Why it is not up, for operators; empty while it is."""
    if look.closed and not look.misplaced:
        return f"it {look.closed}"
    primary = look.nodes[0] if look.nodes else None
    match state(look):
        case "down":
            return look.error
        case "busy":
            return "it is at work on a slow command, and answers nobody" if primary and primary.at_work else look.error
        case "misplaced":
            return look.misplaced
        case "demoted":
            return "its role is slave, and it refuses writes"
        case "misconf" if primary:
            return primary.misconf
        case "noreplicas" if primary:
            return primary.noreplicas
        case "oom" if primary:
            return primary.oom
        case "restarted-empty" if primary:
            return f"it restarted without its {primary.lost_keys:,} keys"
    return ""


def usable(look: ShardLook) -> bool:
    """Whether it serves anything, if only reads."""
    if look.closed and not look.misplaced:
        return any(node.reachable for node in look.nodes)
    return state(look) not in ("down", "misplaced")


def writable(look: ShardLook) -> bool:
    """Whether it takes writes. One that restarted empty does: that is for the operator, and not for clients."""
    return state(look) in ("up", "restarted-empty")


def replica_state(look: NodeLook) -> str:
    """``up``, ``loading``, ``busy``, ``down``, ``master`` (it is no replica any more), ``syncing`` or ``link-down``."""
    if not look.reachable:
        return "loading" if look.loading else "busy" if look.busy else "down"
    if look.role == "master":
        return "master"
    if look.syncing:
        return "syncing"
    return "up" if look.link == "up" else "link-down"


def unfenced(look: ShardLook) -> list[str]:
    """Its servers that would take writes without any replica; without replicas there is nobody to be fenced from."""
    return [node.node for node in look.nodes if node.unfenced] if len(look.nodes) > 1 else []


def backoff_s(looks: Iterable[ShardLook], now: float) -> int:
    """Whole seconds for which a client had better not come again; 0 while all of these shards are writable.

    The longest outage counts: nobody knows which shard the next request needs. `now` is CLOCK_MONOTONIC, s.
    """
    outages = [remaining_s(look.since, look.expected_at, now) for look in looks if not writable(look)]
    return max(LEAST_BACKOFF_S, math.ceil(max(outages))) if outages else 0


def remaining_s(since: float, expected_at: float, now: float) -> float:
    """How long an incident will last yet, as clients are told: the same number in errors, INFO and over HTTP.

    One that is overdue is expected to last as long again as it has lasted. All three are CLOCK_MONOTONIC, s.
    """
    left = expected_at - now if expected_at > now else now - since
    return min(max(LEAST_RETRY_S, left), MOST_BACKOFF_S)


def key_count(look: ShardLook) -> int:
    """Keys of all databases."""
    return sum(count.get("keys", 0) for count in look.keyspace.values())


def integer(text: str | None) -> int:
    """The 64-bit integer a server said; 0 for anything else."""
    try:
        said = int(text or 0)
    except ValueError:
        return 0
    return said if -(1 << 63) <= said < 1 << 63 else 0
