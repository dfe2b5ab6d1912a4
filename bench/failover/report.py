"""FAILOVER.md: what came out of the runs, in tables. Pure: results and facts in, Markdown out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from bench.failover.figures import Figures
from bench.failover.trial import Fault, Result
from bench.report import spread, spread_text, table, total

OTHERS_MAX_S = 0.25
"""No request to another shard may take longer."""

PEERS = ("kill", "nutcracker")
"""The same fault, side by side."""

Runs = Mapping[str, Sequence[Result]]


def failover(faults: Sequence[Fault], runs: Runs, failed: Mapping[str, Sequence[str]], facts: Sequence[str]) -> str:
    """The whole page. `failed`: what ended a run before it had a result."""
    known = [each for each in faults if runs.get(each.name)]
    lines = ["# Faults, and what clients saw of them", ""]
    lines += ["Written by `./run faults`; how it is done and measured stands in [failover/](failover/README.md).", ""]
    lines += [f"- {fact}" for fact in facts]
    lines += ["", "## The goals", "", *goals(known, runs), "", GOALS_NOTE, ""]
    lines += ["## What was not as expected", "", *problems(faults, runs, failed), ""]
    lines += ["## kill -9 of a primary, side by side", "", *side_by_side(runs), "", "![An incident](failover.png)", ""]
    lines += ["## What became of the writes", "", *writes(known, runs), "", WRITES_NOTE, ""]
    lines += ["## What clients of the shard saw", "", *clients(known, runs), "", CLIENTS_NOTE, ""]
    lines += ["## The other shards", "", *others(known, runs), "", OTHERS_NOTE, ""]
    lines += ["## What was done", "", *(f"- **{each.name}**: {each.what}" for each in faults)]
    return "\n".join(lines).rstrip() + "\n"


GOALS_NOTE = """\
Some faults are not counted in a goal that no proxy could reach in them. The tables below have what they cost.

- empty, in the four about unplanned faults: the replicas of a primary that comes back empty discard their copies before
  anybody can act.
- candidate, empty, all-die, in the one about reads: the replicas die, or copy another server.
- parent-dies, in the two about other shards: the proxy itself is killed."""

WRITES_NOTE = """All are sums over the runs. Lost: acknowledged, and not there in the end. Unconfirmed ones had not
been seen on a replica by PUBLISH and WAIT; replication is asynchronous, so the death of a primary may cost them."""

CLIENTS_NOTE = """Per run, the median; in brackets the least and the greatest. The gap is the longest time without an
acknowledged write. Held: acknowledged after more than 50 ms. Reads: served, of all that were tried in the incident;
stale ones showed less than was acknowledged before, as they may while a replica serves them."""

OTHERS_NOTE = """Of clients that ask no other shard: a client that has sent a write to the shard in trouble waits for
its answer before it gets the next, as replies are in order. p99 is the median of the runs', max the greatest of all."""


def goals(faults: Sequence[Fault], runs: Runs) -> list[str]:
    """Each goal of each kind of fault, and whether it was reached in all runs."""
    rows: list[list[str]] = []

    def row(goal: str, seen: object, reached: bool) -> None:
        rows.append([goal, str(seen), "reached" if reached else "**missed**"])

    own = [each for each in faults if each.needs.peer == "pyproxy"]
    planned = [result for each in own if each.name == "planned" for result in runs[each.name]]
    if planned:
        bad = total(planned, lambda r: r.lost + r.lost_for_no_reason + r.figures.uncertain + r.figures.rejected)
        bad += total(planned, lambda r: sum(r.figures.errors.values()) + r.figures.disconnects)
        row("planned: writes lost, uncertain or refused, errors, connections lost: 0", bad, bad == 0)
    unplanned = [
        result for each in own if not each.expect.planned and not each.expect.wiped for result in runs[each.name]
    ]
    for what, count in (
        ("confirmed writes lost", lambda r: r.lost_for_no_reason),
        ("writes applied twice", lambda r: r.duplicates),
        ("replies misrouted", lambda r: r.misrouted),
        ("out of order", lambda r: r.disordered),
    ):
        found = total(unplanned, count)
        row(f"unplanned: {what}: 0", f"{found} of {total(unplanned, lambda r: r.acknowledged):,} writes", found == 0)
    reading = [result for each in own if each.expect.reads for result in runs[each.name]]
    served = total(reading, lambda r: r.figures.reads_served) / max(1, total(reading, lambda r: r.figures.reads))
    row("reads of the shard served: more than 99 %", f"{served:.2%}", served > 0.99)
    for each in own:
        if each.expect.gap_s is not None:
            gap = spread(result.figures.gap for result in runs[each.name])
            assert gap is not None
            limit = each.expect.gap_s
            row(f"{each.name}: no write for at most {limit:g} s", gap.text(2), gap.high <= limit)
    every = [result for each in own if not each.expect.proxy_dies for result in runs[each.name]]
    failed = total(every, lambda r: r.figures.others_failed + r.figures.elsewhere_failed)
    row("requests to other shards that failed: 0", failed, failed == 0)
    slowest = max((result.figures.others_max for result in every), default=0.0)
    row("and took longer than 250 ms: none", f"{slowest * 1000:.0f} ms", slowest <= OTHERS_MAX_S)
    if blind := runs.get("cut-kill"):
        found = min(result.lost for result in blind)
        row("cut-kill: unconfirmed writes lost in every run: more than 0", f"{found} at least", found > 0)
    return table(["goal", "seen", ""], rows)


def problems(faults: Sequence[Fault], runs: Runs, failed: Mapping[str, Sequence[str]]) -> list[str]:
    lines = []
    for each in faults:
        said = Counter(problem for result in runs.get(each.name, ()) for problem in result.problems[:5])
        said.update(text.splitlines()[0] for text in failed.get(each.name, ()))
        lines += [f"- {each.name}, {times} times: {problem}" for problem, times in said.items()]
    return lines or ["Nothing."]


def side_by_side(runs: Runs) -> list[str]:
    rows = []
    for name in PEERS:
        if results := runs.get(name):
            who = "pyproxy" if name == "kill" else name
            rows.append([who, *_seen(results), str(total(results, lambda r: r.figures.disconnects))])
    return table(["", *SEEN, "connections lost"], rows)


SEEN = ("runs", "gap, s", "held", "hold, s: median; max", "refused", "uncertain", "other errors", "reads", "stale")


def clients(faults: Sequence[Fault], runs: Runs) -> list[str]:
    return table(["", *SEEN], [[each.name, *_seen(runs[each.name])] for each in faults])


def _seen(results: Sequence[Result]) -> list[str]:
    reads = total(results, lambda r: r.figures.reads)
    errors = sum((Counter(result.figures.errors) for result in results), Counter[str]())
    held = [result.figures for result in results if result.figures.held]
    longest = max((each.hold_max for each in held), default=0.0)
    return [
        str(len(results)),
        spread_text((result.figures.gap for result in results), 2),
        spread_text((result.figures.held for result in results), 0),
        f"{_middle(each.hold_median for each in held):.2f}; {longest:.2f}" if held else "-",
        spread_text((result.figures.rejected for result in results), 0),
        spread_text((result.figures.uncertain for result in results), 0),
        ", ".join(f"{count} {word or 'no answer'}" for word, count in sorted(errors.items())) or "0",
        f"{total(results, lambda r: r.figures.reads_served) / reads:.1%} of {reads:,}" if reads else "-",
        str(total(results, lambda r: r.stale)),
    ]


def writes(faults: Sequence[Fault], runs: Runs) -> list[str]:
    head = ["", "runs", "acknowledged", "confirmed, of the shard", "lost, unconfirmed", "over s", "lost else", "twice"]
    head += ["misrouted", "out of order", "promoted"]
    rows = []
    for each in faults:
        results = runs[each.name]
        row = [each.name, str(len(results))]
        row += [f"{total(results, lambda r: r.acknowledged):,}", f"{total(results, lambda r: r.confirmed):,}"]
        row += [str(total(results, lambda r: r.lost)), f"{max(result.lost_window_s for result in results):.2f}"]
        row += [str(total(results, lambda r: r.lost_for_no_reason)), str(total(results, lambda r: r.duplicates))]
        row += [str(total(results, lambda r: r.misrouted)), str(total(results, lambda r: r.disordered))]
        ours = each.needs.peer == "pyproxy"
        rows.append([*row, f"{total(results, lambda r: r.promoted)} times" if ours else "-"])
    return table(head, rows)


def others(faults: Sequence[Fault], runs: Runs) -> list[str]:
    head = ["", "requests", "failed", "failed, of clients of all shards", "p99 before, ms", "p99, ms", "max, ms"]
    rows = []
    for each in faults:
        seen: list[Figures] = [result.figures for result in runs[each.name]]
        row = [each.name, f"{sum(one.others for one in seen):,}", str(sum(one.others_failed for one in seen))]
        row += [str(sum(one.elsewhere_failed for one in seen))]
        row += [f"{_middle(one.others_p99_before for one in seen) * 1000:.1f}"]
        row += [f"{_middle(one.others_p99 for one in seen) * 1000:.1f}"]
        rows.append([*row, f"{max(one.others_max for one in seen) * 1000:.1f}"])
    return table(head, rows)


def line(result: Result) -> str:
    """One run, for the screen."""
    seen = result.figures
    told = f"gap {seen.gap:5.2f} s, held {seen.held}, refused {seen.rejected}, uncertain {seen.uncertain}"
    told += f", reads {seen.reads_served} of {seen.reads}, lost {result.lost}"
    told += f", others max {seen.others_max * 1000:.0f} ms"
    return "\n".join([f"{result.fault:16} {told}", *(f"  ! {problem}" for problem in result.problems[:8])])


def _middle(values: Iterable[float]) -> float:
    found = spread(values)
    return found.median if found else 0.0
