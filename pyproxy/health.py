"""What follows from the last health check of a shard, in the same words and numbers for INFO and HTTP.

Health checks come in; states, numbers and the seconds to stay away go out. Pure: the time is an argument.
"""

import math
from collections.abc import Iterable

from pyproxy.messages import NodeHealth, ShardHealth

LEAST_BACKOFF_S = 1
"""Servers are checked once a second: nobody learns any sooner that a shard is back."""

MOST_BACKOFF_S = 30

LEAST_RETRY_S = 0.25


def state(health: ShardHealth) -> str:
    """What its primary is, at worst.

    While the gate is closed, the phase of its promotion (machine.py); else ``busy``: it works on something slow, and
    answers nobody; ``down``: it cannot be reached;
    ``misplaced``: it holds keys of another shard; ``demoted``: it is a replica by now; ``restarted-empty``: it came
    back without its keys; ``misconf``: it cannot write its disk, and refuses writes; ``noreplicas``, ``oom``: it
    refuses writes, as it has too few replicas in step, or no memory left; else ``up``.
    """
    if health.closed and not health.misplaced:
        return health.phase
    if not health.reachable:
        return "busy" if not health.misplaced and any(primary.busy for primary in health.nodes[:1]) else "down"
    if health.misplaced:
        return "misplaced"
    for primary in health.nodes[:1]:
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


def problem(health: ShardHealth) -> str:
    """Why it is not up, for operators; empty while it is."""
    if health.closed and not health.misplaced:
        return f"it {health.closed}"
    primary = health.nodes[0] if health.nodes else None
    match state(health):
        case "down":
            return health.error
        case "busy":
            return (
                "it is at work on a slow command, and answers nobody" if primary and primary.at_work else health.error
            )
        case "misplaced":
            return health.misplaced
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


def usable(health: ShardHealth) -> bool:
    """Whether it serves anything, if only reads."""
    if health.closed and not health.misplaced:
        return any(node.reachable for node in health.nodes)
    return state(health) not in ("down", "misplaced")


def writable(health: ShardHealth) -> bool:
    """Whether it takes writes. One that restarted empty does: that is for the operator, and not for clients."""
    return state(health) in ("up", "restarted-empty")


def replica_state(health: NodeHealth) -> str:
    """``up``, ``loading``, ``busy``, ``down``, ``master`` (it is no replica any more), ``syncing`` or ``link-down``."""
    if not health.reachable:
        return "loading" if health.loading else "busy" if health.busy else "down"
    if health.role == "master":
        return "master"
    if health.syncing:
        return "syncing"
    return "up" if health.link == "up" else "link-down"


def unfenced(health: ShardHealth) -> list[str]:
    """Its servers that would take writes without any replica; without replicas there is nobody to be fenced from."""
    return [node.node for node in health.nodes if node.unfenced] if len(health.nodes) > 1 else []


def backoff_s(healths: Iterable[ShardHealth], now: float) -> int:
    """Whole seconds for which a client had better not come again; 0 while all of these shards are writable.

    The longest outage counts: nobody knows which shard the next request needs. `now` is CLOCK_MONOTONIC, s.
    """
    outages = [remaining_s(health.since, health.expected_at, now) for health in healths if not writable(health)]
    return max(LEAST_BACKOFF_S, math.ceil(max(outages))) if outages else 0


def remaining_s(since: float, expected_at: float, now: float) -> float:
    """How long an incident will last yet, as clients are told: the same number in errors, INFO and over HTTP.

    One that is overdue is expected to last as long again as it has lasted. All three are CLOCK_MONOTONIC, s.
    """
    left = expected_at - now if expected_at > now else now - since
    return min(max(LEAST_RETRY_S, left), MOST_BACKOFF_S)


def key_count(health: ShardHealth) -> int:
    """Keys of all databases."""
    return sum(count.get("keys", 0) for count in health.keyspace.values())


def integer(text: str | None) -> int:
    """The 64-bit integer a server said; 0 for anything else."""
    try:
        number = int(text or 0)
    except ValueError:
        return 0
    return number if -(1 << 63) <= number < 1 << 63 else 0
