"""Which replica may become the primary, and which of them first.  Pure: health checks come in, the candidates
among them go out.

Sentinel's filters (sentinel.c, sentinelSelectSlave), but the offset comes before the priority: data before preference.
Offsets are numbers of one history only, so a replica of another one is no candidate, however great its offset.
"""

from collections.abc import Iterable

from pyproxy.messages import NodeHealth

STALE_S = 5.0
"""A health check older than this says nothing of now (Sentinel: no reply to INFO for 5 s)."""


def ranked(replicas: Iterable[NodeHealth], lineage: str, now: float) -> list[NodeHealth]:
    """The candidates, best first: the greatest offset, then the smallest priority, then the smallest run_id.

    `lineage` is the replication id of the primary that is to be replaced; `now` is CLOCK_MONOTONIC, s.
    """
    fit = [health for health in replicas if not unfit(health, lineage, now)]
    return sorted(fit, key=lambda health: (-health.offset, health.priority, health.run_id))


def unfit(health: NodeHealth, lineage: str, now: float) -> str:
    """Why this server cannot become the primary; empty if it can."""
    if not health.reachable:
        return health.error or "it does not answer"
    if now - health.answered_at > STALE_S:
        return f"its last answer is {now - health.answered_at:.1f} s old"
    if health.role != "slave":
        return f"its role is {health.role or 'unknown'}"
    if health.loading:
        return "it is loading its data"
    if health.syncing:
        return "it is being sent the data"
    if health.priority == 0:
        return "its replica-priority is 0"
    if health.offset < 0:
        return "it has never had the data"
    if not descends(health, lineage):
        return "its data are of another history"
    return ""


def descends(health: NodeHealth, lineage: str) -> bool:
    """Whether its data are those of this history, or go on from it."""
    return bool(lineage) and lineage in (health.replid, health.replid2)


def readable(health: NodeHealth, lineage: str, now: float) -> bool:
    """Whether its data may be read while the primary cannot be used."""
    return (
        health.reachable
        and now - health.answered_at <= STALE_S
        and not health.loading
        and not health.syncing
        and health.offset >= 0
        and (not lineage or descends(health, lineage))
    )
