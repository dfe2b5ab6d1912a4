"""GROWTH.md: what came out of faults that were made while slots moved, in tables. Pure: results and facts in, Markdown
out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from bench.failover.move_trial import MoveFault, MoveResult
from bench.report import spread_text, table, total

Runs = Mapping[str, Sequence[MoveResult]]


def growth(faults: Sequence[MoveFault], runs: Runs, failed: Mapping[str, Sequence[str]], facts: Sequence[str]) -> str:
    """The whole page. `failed`: what ended a run before it had a result."""
    known = [each for each in faults if runs.get(each.name)]
    lines = ["# Moves of slots, and what clients saw of them", ""]
    lines += ["Written by `./run faults 'move-*'`; how it is done and measured stands in"]
    lines += ["[failover/](failover/README.md#moves-of-slots).", ""]
    lines += [f"- {fact}" for fact in facts]
    lines += ["", "## The goals", "", *goals(known, runs), ""]
    lines += ["## What was not as expected", "", *problems(faults, runs, failed), ""]
    lines += ["## What became of the writes", "", *writes(known, runs), "", WRITES_NOTE, ""]
    lines += ["## What clients saw", "", *clients(known, runs), "", CLIENTS_NOTE, ""]
    lines += ["## What was done", "", *(f"- **{each.name}**: {each.what}" for each in faults)]
    return "\n".join(lines).rstrip() + "\n"


WRITES_NOTE = """All are sums over the runs. Hit: the phases in which the fault found the moves. Lost: acknowledged, not
seen on a replica by PUBLISH and WAIT, and of a shard whose primary was replaced unplanned. Anything else that is lost
is a violation."""

CLIENTS_NOTE = """Per run, the median; in brackets the least and the greatest. The hold is the longest one of any
attempt to hand over; p99 is that of clients with one request at a time, before the moves begin and until they are over.
The longest answer is the greatest of all runs, of any client."""


def goals(faults: Sequence[MoveFault], runs: Runs) -> list[str]:
    rows: list[list[str]] = []

    def row(goal: str, seen: object, reached: bool) -> None:
        rows.append([goal, str(seen), "reached" if reached else "**missed**"])

    every = [result for each in faults for result in runs[each.name]]
    count = f"of {total(every, lambda r: r.acknowledged):,} writes"
    for what, violations in (
        ("confirmed writes, or writes of a healthy shard, lost", lambda r: r.lost_for_no_reason),
        ("writes applied twice", lambda r: r.duplicates),
        ("replies misrouted, or keys on the wrong shard", lambda r: r.misrouted),
        ("out of order", lambda r: r.disordered),
        ("refused, but applied", lambda r: r.refused_but_applied),
    ):
        found = total(every, violations)
        row(f"{what}: 0", f"{found} {count}", found == 0)
    clean = [result for each in faults if each.expect.clean for result in runs[each.name]]
    bad = total(clean, lambda r: sum(r.errors.values()) + r.disconnects + r.lost)
    names = [each for each in faults if each.expect.clean]
    row(
        f"errors, lost connections and lost writes, where no server or worker dies ({len(names)} faults): 0",
        bad,
        not bad,
    )
    ends = {each.name: each.expect.ends for each in faults}
    wrong = sum(1 for result in every if any("expected the move" in problem for problem in result.problems))
    row(
        f"all moves come to their end ({', '.join(sorted(set(ends.values())))})",
        f"in {len(every) - wrong} of {len(every)} runs",
        not wrong,
    )
    return table(["goal", "seen", ""], rows)


def problems(faults: Sequence[MoveFault], runs: Runs, failed: Mapping[str, Sequence[str]]) -> list[str]:
    lines = []
    for each in faults:
        said = Counter(problem for result in runs.get(each.name, ()) for problem in result.problems[:5])
        said.update(text.splitlines()[0] for text in failed.get(each.name, ()))
        lines += [f"- {each.name}, {times} times: {problem}" for problem, times in said.items()]
    return lines or ["Nothing."]


def writes(faults: Sequence[MoveFault], runs: Runs) -> list[str]:
    head = ["", "runs", "shards", "hit", "acknowledged", "confirmed", "lost, unconfirmed", "lost else", "twice"]
    head += ["misrouted", "out of order"]
    rows = []
    for each in faults:
        results = runs[each.name]
        hit = sorted({phase for result in results for phase in result.hit})
        row = [each.name, str(len(results)), f"{results[0].shards} to {results[0].shards + results[0].added}"]
        row += [", ".join(hit) or "-"]
        row += [f"{total(results, lambda r: r.acknowledged):,}", f"{total(results, lambda r: r.confirmed):,}"]
        row += [str(total(results, lambda r: r.lost)), str(total(results, lambda r: r.lost_for_no_reason))]
        row += [str(total(results, lambda r: r.duplicates)), str(total(results, lambda r: r.misrouted))]
        rows.append([*row, str(total(results, lambda r: r.disordered))])
    return table(head, rows)


def clients(faults: Sequence[MoveFault], runs: Runs) -> list[str]:
    head = ["", "moves, s", "keys copied", "copies begun anew", "attempts for each move", "longest hold, ms"]
    head += ["p99 before, ms", "p99, ms", "longest answer, ms", "errors", "connections lost"]
    rows = []
    for each in faults:
        results = runs[each.name]
        errors = sum((Counter(result.errors) for result in results), Counter[str]())
        rows.append([
            each.name,
            spread_text((result.length for result in results), 1),
            spread_text((result.keys for result in results), 0),
            spread_text((result.restarts for result in results), 0),
            f"{total(results, lambda r: r.attempts) / total(results, lambda r: r.moves):.1f}",
            spread_text((result.longest_hold * 1000 for result in results), 0),
            spread_text((result.p99_before * 1000 for result in results), 1),
            spread_text((result.p99 * 1000 for result in results), 1),
            f"{max(result.longest for result in results) * 1000:.0f}",
            ", ".join(f"{count} {word or 'no answer'}" for word, count in sorted(errors.items())) or "0",
            str(total(results, lambda r: r.disconnects)),
        ])  # fmt: skip
    return table(head, rows)


def line(result: MoveResult) -> str:
    """One run, for the screen."""
    told = f"{result.length:5.1f} s, hold {result.longest_hold * 1000:.0f} ms in {result.attempts} attempts"
    told += f", p99 {result.p99_before * 1000:.1f} -> {result.p99 * 1000:.1f} ms, errors {sum(result.errors.values())}"
    told += f", connections lost {result.disconnects}, lost {result.lost}, hit {', '.join(result.hit) or '-'}"
    return "\n".join([f"{result.fault:34} {told}", *(f"  ! {problem[:400]}" for problem in result.problems[:8])])
