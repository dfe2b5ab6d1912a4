"""One run of one fault: make it, check the history, say what is not as it was expected."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from bench.failover.figures import Figures, Moment, figures, timeline
from bench.failover.history import WRITES, Incident, Op, Verdict, check
from bench.failover.rig import Needs, Rig
from pyproxy.config import Promotion

REPLY_S = 1.5
"""More than the proxy waits for a server's answer."""


SLOW_S = 3.0
"""Beside the hold: a deadline before it and one behind it, and a machine that is busy."""

IN_FLIGHT = "closed the connection before it answered"
"""Of a read that was out when a server died, and is not tried elsewhere as its client had sent a write behind it."""


@dataclass(frozen=True)
class Expect:
    """What must be so afterwards, beside that nothing at all excuses a fault of the checker's (history.py)."""

    promoted: bool | None = True  # whether another server is the primary; None: either
    planned: bool = False  # no error, no lost write, no connection lost
    loses: bool = False  # acknowledged writes must be lost, or the checker is blind
    reads: bool = True  # more than 99 % of them are served
    silent: bool = False  # a server falls silent: the reads in flight at first are noticed at their deadline
    wiped: bool = False  # the servers may have thrown everything away, whatever the proxy does
    proxy_dies: bool = False  # then clients of all shards notice
    gap_s: float | None = None  # at full length, without writes: a goal of the report, as a time is no promise


@dataclass(frozen=True)
class Fault:
    name: str
    what: str
    act: Callable[[Rig], None]
    needs: Needs = field(default_factory=Needs)
    expect: Expect = field(default_factory=Expect)


class Result(msgspec.Struct, tag=True):
    """One run. `problems` is empty if all was as expected."""

    fault: str
    seed: int
    figures: Figures
    acknowledged: int  # writes, of all shards
    confirmed: int  # of the shard that suffered
    lost: int  # unconfirmed, in the incident
    lost_window_s: float
    lost_for_no_reason: int  # confirmed, or not in the incident
    duplicates: int
    misrouted: int
    disordered: int
    stale: int
    promoted: bool
    problems: list[str]
    moments: list[Moment]


def run(fault: Fault, scale: float = 1.0, seed: int = 1, shards: int = 10, rate: float = 25.0) -> Result:
    """Make the fault once. Raises FleetError if what must come does not."""
    with Rig(fault.needs, scale, seed, shards, rate) as rig:
        fault.act(rig)
        assert rig.since and rig.until, "a fault says when it begins and when it is over"
        rig.finish()
    incident = Incident(rig.shard.name, rig.since, rig.until, may_lose=not fault.expect.planned)
    ops = rig.record.ops
    verdict = check(ops, rig.states, rig.record.fences, [incident])
    seen = figures(rig.record, rig.shard.name, rig.since, rig.until)
    promoted = not any(each.is_primary and each.node == rig.first_primary.address for each in rig.states)
    return Result(
        fault=fault.name,
        seed=seed,
        figures=seen,
        acknowledged=sum(op.acknowledged for op in ops if op.verb in WRITES),
        confirmed=verdict.confirmed,
        lost=len(verdict.lost),
        lost_window_s=verdict.lost_window_s,
        lost_for_no_reason=len(verdict.lost_for_no_reason),
        duplicates=len(verdict.duplicates),
        misrouted=len(verdict.misrouted),
        disordered=len(verdict.disordered),
        stale=verdict.stale,
        promoted=promoted,
        problems=list(_problems(fault.expect, rig, verdict, seen, promoted)),
        moments=timeline(ops, rig.shard.name, rig.since),
    )


def _problems(expect: Expect, rig: Rig, verdict: Verdict, seen: Figures, promoted: bool) -> Iterator[str]:
    yield from rig.problems
    if not expect.wiped:
        yield from verdict.violations
    held = {value for state in rig.states for keys in state.keys.values() if isinstance(keys, list) for value in keys}
    yield from (f"{op} was never to be sent" for op in rig.never if op.value in held)
    if not verdict.confirmed:
        yield "not one write was confirmed: the fences did not work"
    if (seen.others_failed or seen.elsewhere_failed) and not expect.proxy_dies:
        failed = [op for op in rig.record.ops if op.shard not in (rig.shard.name, "") and not op.acknowledged]
        told = _told(failed, rig.since)
        yield f"{seen.others_failed} and {seen.elsewhere_failed} requests to other shards failed: {told}"
    if expect.promoted is not None and promoted != expect.promoted:
        yield f"expected {'another' if expect.promoted else 'the same'} primary, got the opposite"
    unserved = [op for op in rig.record.ops if op.shard == rig.shard.name and op.verb == "GET" and op.error]
    if expect.silent:
        unserved = [op for op in unserved if op.sent_at > rig.since + REPLY_S]
    excused = _behind_an_unresolved_write(rig.record.ops, rig.shard.name)
    unserved = [op for op in unserved if IN_FLIGHT not in op.error and op not in excused]
    if expect.reads and not expect.proxy_dies and len(unserved) > 0.01 * seen.reads:
        yield f"{len(unserved)} of {seen.reads} reads were not served: {_told(unserved, rig.since)}"
    options = Promotion()
    hold_s = options.hold_s if rig.needs.promotion.get("on_promotion") == "hold" else options.auto_hold_s
    if rig.needs.peer == "pyproxy" and seen.longest > hold_s + SLOW_S:
        yield f"an answer took {seen.longest:.2f} s, where a request is held for {hold_s:g} s at most"
    if expect.loses and not verdict.lost:
        yield "no write was lost, where some must be"
    if expect.planned:
        lost = len(verdict.lost) + len(verdict.lost_for_no_reason)
        bad = seen.rejected + seen.uncertain + sum(seen.errors.values()) + seen.disconnects + lost
        if bad:
            yield f"expected no error, loss or lost connection, got {seen}"


def _behind_an_unresolved_write(ops: Sequence[Op], shard: str) -> list[Op]:
    """Reads that only the primary may answer: of a client with an uncertain write there, until it is answered there."""
    unresolved: set[str] = set()
    found = []
    for op in sorted(ops, key=lambda op: op.sent_at):
        if op.shard != shard:
            continue
        if op.verb == "GET" and op.error and op.client in unresolved:
            found.append(op)
        elif op.error.startswith("UNCERTAIN"):
            unresolved.add(op.client)
        elif op.acknowledged:
            unresolved.discard(op.client)
    return found


def _told(ops: Sequence[Op], since: float) -> str:
    """The first of them, and when, since the fault began."""
    return "; ".join(f"{op} at {op.sent_at - since:.3f} s: {op.error}" for op in ops[:3])
