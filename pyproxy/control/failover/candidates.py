"""Which replica may become the primary, and which of them first.  Pure: looks come in, looks go out.

Sentinel's filters (sentinel.c, sentinelSelectSlave), but the offset comes before the priority: data before preference.
Offsets are numbers of one history only, so a replica of another one is no candidate, however great its offset.
"""

from collections.abc import Iterable

from pyproxy.messages import NodeLook

STALE_S = 5.0
"""A look older than this says nothing of now (Sentinel: no reply to INFO for 5 s)."""


def ranked(replicas: Iterable[NodeLook], lineage: str, now: float) -> list[NodeLook]:
    """The candidates, best first: the greatest offset, then the smallest priority, then the smallest run_id.

    `lineage` is the replication id of the primary that is to be replaced; `now` is CLOCK_MONOTONIC, s.
    """
    fit = [look for look in replicas if not unfit(look, lineage, now)]
    return sorted(fit, key=lambda look: (-look.offset, look.priority, look.run_id))


def unfit(look: NodeLook, lineage: str, now: float) -> str:
    """Why this server cannot become the primary; empty if it can."""
    if not look.reachable:
        return look.error or "it does not answer"
    if now - look.answered_at > STALE_S:
        return f"its last answer is {now - look.answered_at:.1f} s old"
    if look.role != "slave":
        return f"its role is {look.role or 'unknown'}"
    if look.loading:
        return "it is loading its data"
    if look.syncing:
        return "it is being sent the data"
    if look.priority == 0:
        return "its replica-priority is 0"
    if look.offset < 0:
        return "it has never had the data"
    if not descends(look, lineage):
        return "its data are of another history"
    return ""


def descends(look: NodeLook, lineage: str) -> bool:
    """Whether its data are those of this history, or go on from it."""
    return bool(lineage) and lineage in (look.replid, look.replid2)


def readable(look: NodeLook, lineage: str, now: float) -> bool:
    """Whether its data may be read while the primary cannot be used."""
    return (
        look.reachable
        and now - look.answered_at <= STALE_S
        and not look.loading
        and not look.syncing
        and look.offset >= 0
        and (not lineage or descends(look, lineage))
    )
