"""One run of moves with one fault: make it, check the history, say what is not as it was expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from bench.failover.figures import percentile, word
from bench.failover.history import WRITES, Incident, Op, Verdict, check
from bench.failover.move_rig import MoveRig, never_logged
from bench.failover.rig import Needs
from pyproxy.config import Promotion
from pyproxy.fleet import Proxy

SLOW_S = 3.0
"""Beside the hold, an answer may take so long: as in trial.py."""


@dataclass(frozen=True)
class MoveExpect:
    """What may be so, beside that nothing at all excuses a fault of the checker's (history.py)."""

    ends: str = "done"  # the phase of each move in the end
    clean: bool = False  # no error and no lost connection, of any client
    loses: bool = False  # unconfirmed writes of the shards that suffer may be lost
    process_dies: bool = False  # clients of all shards may notice
    logged: tuple[str, ...] = ()  # events that come with the fault


@dataclass(frozen=True)
class MoveFault:
    """`to`: how many shards join for each that there is."""

    name: str
    what: str
    act: Callable[[MoveRig], None]
    expect: MoveExpect = field(default_factory=MoveExpect)
    grows: Callable[[int], tuple[int, int]] = lambda shards: (shards, shards)  # shards at first, and how many join


class MoveResult(msgspec.Struct, tag=True):
    """One run. `problems` is empty if all was as expected. Times in s."""

    fault: str
    seed: int
    shards: int
    added: int
    hit: list[str]  # the phases in which the fault found the moves
    length: float  # from the start of the moves until all were over
    keys: int  # copied, each counted every time
    bytes: int
    restarts: int
    attempts: int
    moves: int
    longest_hold: float
    acknowledged: int  # writes
    confirmed: int
    lost: int  # unconfirmed, of a shard that suffered
    lost_for_no_reason: int
    duplicates: int
    misrouted: int
    disordered: int
    refused_but_applied: int
    errors: dict[str, int]  # by the first word; "" for no answer at all
    disconnects: int
    p99_before: float
    p99: float
    longest: float  # that a client waited for any answer
    problems: list[str]


def run(
    fault: MoveFault, scale: float = 1.0, seed: int = 1, shards: int = 3, rate: float = 10.0, keys: int = 1000,
    proxy: type[Proxy] = Proxy,
) -> MoveResult:  # fmt: skip
    """Make the fault once. Raises FleetError if what must come does not."""
    first, added = fault.grows(shards)
    with MoveRig(Needs(workers=2), scale, seed, first, rate, added, keys, proxy) as rig:
        rig.never_logged = never_logged(fault.expect.logged)
        fault.act(rig)
        rig.finish()
    verdict = check(rig.record.ops, rig.states, rig.record.fences, list(_incidents(fault.expect, rig)))
    ops = [op for op in rig.record.ops if op.answered_at or op.error]
    failed = [op for op in ops if not op.acknowledged]
    alone = [op for op in ops if op.acknowledged and op.client.endswith(("-writer", "-reader"))]
    confirmed = verdict.confirmed
    return MoveResult(
        fault=fault.name,
        seed=seed,
        shards=first,
        added=added,
        hit=rig.hit,
        length=rig.until - rig.since,
        keys=sum(each["copied_keys"] for each in rig.moves),
        bytes=sum(each["copied_bytes"] for each in rig.moves),
        restarts=sum(each["restarts"] for each in rig.moves),
        attempts=sum(each["attempts"] for each in rig.moves),
        moves=len(rig.moves),
        longest_hold=max(each["longest_hold_ms"] for each in rig.moves) / 1000,
        acknowledged=sum(op.acknowledged for op in ops if op.verb in WRITES),
        confirmed=confirmed,
        lost=len(verdict.lost),
        lost_for_no_reason=len(verdict.lost_for_no_reason),
        duplicates=len(verdict.duplicates),
        misrouted=len(verdict.misrouted),
        disordered=len(verdict.disordered),
        refused_but_applied=len(verdict.refused_but_applied),
        errors=dict(Counter(word(op) for op in failed)),
        disconnects=len(rig.record.disconnects),
        p99_before=percentile((op.answered_at - op.sent_at for op in alone if op.answered_at < rig.since), 0.99),
        p99=percentile(
            (op.answered_at - op.sent_at for op in alone if op.answered_at >= rig.since and op.sent_at <= rig.until),
            0.99,
        ),
        longest=max((op.answered_at - op.sent_at for op in ops if op.answered_at), default=0.0),
        problems=list(_problems(fault.expect, rig, verdict, failed)),
    )


def _incidents(expect: MoveExpect, rig: MoveRig) -> Iterator[Incident]:
    """Every way has one, so that its confirmed writes are counted. Only where a server suffers may any be lost."""
    for way, touched in rig.ways.items():
        suffers = bool(touched & rig.suffering)
        yield Incident(way, rig.since, rig.until if suffers else rig.since, may_lose=expect.loses and suffers)


def _problems(expect: MoveExpect, rig: MoveRig, verdict: Verdict, failed: Sequence[Op]) -> Iterator[str]:
    yield from rig.problems
    yield from verdict.violations
    for each in rig.moves:
        if each["phase"] != expect.ends:
            yield f"expected the move {each['id']} to be {expect.ends}, got {each['phase']}: {each['why']}"
        if each["alarm"]:
            yield f"the move {each['id']} raised an alarm: {each['alarm']}"
    if not verdict.confirmed:
        yield "not one write was confirmed: the fences did not work"
    if not expect.process_dies:
        if rig.record.disconnects:
            yield f"{len(rig.record.disconnects)} connections were lost, as that of {rig.record.disconnects[0][0]}"
        unharmed = {way for way, touched in rig.ways.items() if not touched & rig.suffering}
        others = failed if expect.clean else [op for op in failed if op.shard in unharmed]
        if others:
            told = "; ".join(f"{op} at {op.sent_at - rig.since:.3f} s: {op.error}" for op in others[:3])
            yield f"{len(others)} requests failed: {told}"
    longest = max((op.answered_at - op.sent_at for op in rig.record.ops if op.answered_at), default=0.0)
    if longest > Promotion().auto_hold_s + SLOW_S:
        yield f"an answer took {longest:.2f} s, where a request is held for {Promotion().auto_hold_s:g} s at most"
