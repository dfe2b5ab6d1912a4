"""What clients saw of an incident, in numbers. Pure: operations in, Figures out."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from bench.failover.history import WRITES, Op
from bench.failover.load import Record

HELD_S = 0.05
"""An acknowledged write that took longer was held; in peace they take a few milliseconds at most."""

BIN_S = 0.25
"""As often as the client with the pipeline sends, so that each has one batch of it."""


class Figures(msgspec.Struct):
    """Of the shard that suffered, from the fault until it was over, unless it says otherwise. Times in s."""

    length: float  # from the fault until it was over
    gap: float  # the longest time without an acknowledged write
    writes: int
    held: int
    hold_median: float
    hold_max: float
    rejected: int  # -TRYAGAIN
    uncertain: int  # -UNCERTAIN
    errors: dict[str, int]  # any other, by its first word; "" for no answer at all
    reads: int
    reads_served: int
    disconnects: int  # of all clients
    others: int  # requests of clients that never ask the shard that suffered
    others_failed: int
    others_p99_before: float
    others_p99: float
    others_max: float
    elsewhere_failed: int  # requests to other shards by clients that ask all
    longest: float = 0.0  # that a client of the shard waited for any answer


class Moment(msgspec.Struct):
    """What was answered in one BIN_S, a second: of the shard that suffered, and of the others."""

    at: float  # s since the fault
    served: float
    failed: float
    others_served: float
    others_failed: float


def figures(record: Record, shard: str, since: float, until: float) -> Figures:
    """All of them."""
    of_shard = [op for op in record.ops if op.shard == shard]
    during = [op for op in of_shard if _overlaps(op, since, until)]
    writes = [op for op in during if op.verb in WRITES]
    reads = [op for op in during if op.verb == "GET"]
    words = Counter(word(op) for op in writes if not op.acknowledged)
    waits = sorted(_took(op) for op in writes if op.acknowledged and _took(op) > HELD_S)
    sufferers = {op.client for op in record.ops if op.shard == shard}
    beside = [op for op in record.ops if op.client not in sufferers]
    others = [op for op in beside if _overlaps(op, since, until)]
    answered = [_took(op) for op in others if op.answered_at]
    elsewhere = [op for op in record.ops if op.client in sufferers and op.shard != shard and op.verb != "MGET"]
    return Figures(
        length=until - since,
        gap=longest_gap([op for op in of_shard if op.verb in WRITES], since, until),
        writes=len(writes),
        held=len(waits),
        hold_median=statistics.median(waits) if waits else 0.0,
        hold_max=waits[-1] if waits else 0.0,
        rejected=words.pop("TRYAGAIN", 0),
        uncertain=words.pop("UNCERTAIN", 0),
        errors=dict(words),
        reads=len(reads),
        reads_served=sum(op.acknowledged for op in reads),
        disconnects=sum(since <= at <= until for _, at in record.disconnects),
        others=len(others),
        others_failed=sum(not op.acknowledged for op in others),
        others_p99_before=percentile((_took(op) for op in beside if op.answered_at and op.answered_at < since), 0.99),
        others_p99=percentile(answered, 0.99),
        others_max=max(answered, default=0.0),
        elsewhere_failed=sum(not op.acknowledged for op in elsewhere if _overlaps(op, since, until)),
        longest=max((_took(op) for op in during if op.answered_at), default=0.0),
    )


def timeline(ops: Sequence[Op], shard: str, since: float) -> list[Moment]:
    """By BIN_S, when each was answered; an operation without an answer counts as failed when it was sent."""
    counts: dict[int, list[int]] = {}
    for op in ops:
        if op.verb in (*WRITES, "GET"):
            at = int(((op.answered_at or op.sent_at) - since) // BIN_S)
            counts.setdefault(at, [0, 0, 0, 0])[2 * (op.shard != shard) + (not op.acknowledged)] += 1
    if not counts:
        return []
    span = range(min(counts) + 1, max(counts))  # the first and the last are not whole
    return [Moment(round(at * BIN_S, 3), *(each / BIN_S for each in counts.get(at, [0] * 4))) for at in span]


def longest_gap(writes: Iterable[Op], since: float, until: float) -> float:
    """Between acknowledgements, or the last of them and the end, where it overlaps the incident."""
    times = sorted(op.answered_at for op in writes if op.acknowledged and op.answered_at < until)
    pairs = itertools.pairwise([*times, until])
    return max((later - earlier for earlier, later in pairs if later >= since), default=until - since)


def percentile(values: Iterable[float], part: float) -> float:
    """0 for no values."""
    found = sorted(values)
    return found[min(len(found) - 1, int(len(found) * part))] if found else 0.0


def word(op: Op) -> str:
    """The first word of its error; empty if no answer came."""
    return op.error.partition(" ")[0] if op.answered_at else ""


def _took(op: Op) -> float:
    return op.answered_at - op.sent_at


def _overlaps(op: Op, since: float, until: float) -> bool:
    return op.sent_at <= until and (op.answered_at or until) >= since
