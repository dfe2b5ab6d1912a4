"""What came out, in words and tables: samples -> medians, ratios, verdicts, RESULTS.md.

Comes in: samples and what is known of the run. Goes out: Markdown. Pure: no clock, no process, no file.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bench.fanout import Fanout
from bench.measure import IdleCost, Sample
from bench.scenarios import BASELINE, IDLE_BAR_KIB, SCENARIOS, Scenario

OURS = "pyproxy"
NOTHING = "-"  # in a cell that was not measured

One = TypeVar("One")


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and greatest of the rounds."""

    median: float
    low: float
    high: float

    def text(self, digits: int) -> str:
        """`0.85 (0.82..0.91)`."""
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}..{self.high:,.{digits}f})"


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """How one peer was run: `configuration` is its file, word for word."""

    name: str
    version: str
    command: str
    configuration: str


@dataclass(frozen=True, slots=True)
class Run:
    """Everything a report is made of. `facts` are (what, value) pairs for its head; `left_out`: peer -> reason."""

    samples: Sequence[Sample]
    idle: Sequence[IdleCost]
    peers: Sequence[PeerFacts]
    left_out: Mapping[str, str]
    facts: Sequence[tuple[str, str]]
    commands: Sequence[str]
    fanouts: Sequence[Fanout] = ()


def spread(values: Iterable[float]) -> Spread | None:
    """None for no values."""
    found = sorted(values)
    return Spread(statistics.median(found), found[0], found[-1]) if found else None


def spread_text(values: Iterable[float], digits: int) -> str:
    """As it stands in a table: one number where all are equal, `-` where there are none."""
    found = spread(values)
    if found is None:
        return NOTHING
    return found.text(digits) if found.low != found.high else f"{found.median:,.{digits}f}"


def total(results: Iterable[One], count: Callable[[One], int]) -> int:
    return sum(count(result) for result in results)


def of_peer(samples: Sequence[Sample], scenario: str, peer: str) -> list[Sample]:
    """The samples of one peer in one scenario, by round."""
    return sorted((s for s in samples if s.scenario == scenario and s.peer == peer), key=lambda s: s.round)


def ratio(
    samples: Sequence[Sample], scenario: str, peer: str, value: Callable[[Sample], float | None]
) -> Spread | None:
    """`value` of the peer divided by the baseline's, round by round: both numbers of a ratio are from the same minute.

    None if no round has both.
    """
    base = {s.round: value(s) for s in of_peer(samples, scenario, BASELINE)}
    ratios = []
    for s in of_peer(samples, scenario, peer):
        ours, theirs = value(s), base.get(s.round)
        if ours is not None and theirs:
            ratios.append(ours / theirs)
    return spread(ratios)


def verdict(bar: float | None, got: Spread | None) -> str:
    """What may be said of a bar: nothing beyond what was measured."""
    if bar is None:
        return "no bar"
    if got is None:
        return "not measured"
    if got.median > bar:
        return f"missed by {got.median - bar:.2f} ({got.median / bar - 1:.0%} over)"
    return "reached" if got.high <= bar else "reached by the median, not in every round"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown, the first column left, the others right."""
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (head, ruler, *rows)]


def describe(scenario: Scenario) -> str:
    """`GET, 32 B, pipeline 64`."""
    what = f"{scenario.command} of {scenario.each} keys" if scenario.each > 1 else scenario.command
    size = f"{scenario.value} B" if scenario.value < 1024 else f"{scenario.value // 1024} KB"
    return f"{what}, {size}, " + (f"pipeline {scenario.pipeline}" if scenario.pipeline > 1 else "no pipeline")


def measured(run: Run) -> list[Scenario]:
    """The scenarios with samples, in the order of SCENARIOS."""
    seen = {s.scenario for s in run.samples}
    return [scenario for scenario in SCENARIOS if scenario.name in seen]


def bars(run: Run, scenarios: Sequence[Scenario], idle: bool) -> list[str]:
    """The bars of these scenarios (and of the idle clients) and whether they were reached."""
    rows = []
    for scenario in scenarios:
        if scenario.bar is not None:
            got = ratio(run.samples, scenario.name, OURS, lambda s: s.cpu_us)
            rows.append(
                [describe(scenario), got.text(2) if got else NOTHING, f"{scenario.bar}", verdict(scenario.bar, got)]
            )
    if idle:
        ours = next((cost for cost in run.idle if cost.peer == OURS), None)
        shown = f"{ours.kib_per_client:.1f} KiB at {ours.clients:,}" if ours else NOTHING
        got = spread([ours.kib_per_client] if ours else [])
        rows.append(["memory per idle client", shown, f"{IDLE_BAR_KIB:.0f} KiB", verdict(IDLE_BAR_KIB, got)])
    return table([f"{OURS}'s CPU per request / {BASELINE}'s", "measured", "at most", ""], rows)


def cpu_table(run: Run) -> list[str]:
    """Microseconds of CPU per request, and the kernel's share of them."""
    peers = [p.name for p in run.peers if any(s.peer == p.name and s.cpu_us is not None for s in run.samples)]
    rows = []
    for scenario in measured(run):
        cells = [describe(scenario)]
        for peer in peers:
            found = of_peer(run.samples, scenario.name, peer)
            spent = spread(s.cpu_us for s in found if s.cpu_us is not None)
            kernel = spread(s.kernel_share for s in found if s.kernel_share is not None)
            cells.append((spent.text(2) if spent else NOTHING) + (f", {kernel.median:.0%}" if kernel else ""))
        rows.append(cells)
    return table(["CPU per request, us; the kernel's share", *peers], rows)


def load_table(run: Run) -> list[str]:
    """Throughput and latency of every peer in every scenario."""
    rows = []
    for scenario in measured(run):
        for peer in [p.name for p in run.peers]:
            found = of_peer(run.samples, scenario.name, peer)
            if rate := spread(s.rps / 1000 for s in found):
                share = ratio(run.samples, scenario.name, peer, lambda s: s.rps)
                p50, p99 = (statistics.median(s.p50_ms for s in found), statistics.median(s.p99_ms for s in found))
                row = [describe(scenario), peer, rate.text(1), share.text(2) if share else NOTHING]
                rows.append([*row, f"{p50:.2f}", f"{p99:.2f}", f"{found[0].requests:,}"])
    head = ["", "peer", "thousand requests/s", f"/ {BASELINE}", "p50 ms", "p99 ms", "requests per run"]
    return table(head, rows)


def idle_table(run: Run) -> list[str]:
    """Memory of the process before and after the idle clients came."""
    rows = [
        [
            cost.peer,
            f"{cost.clients:,}",
            f"{cost.before.pss_kib / 1024:.1f} / {cost.before.rss_kib / 1024:.1f}",
            f"{cost.after.pss_kib / 1024:.1f} / {cost.after.rss_kib / 1024:.1f}",
            f"{cost.kib_per_client:.1f}",
        ]
        for cost in run.idle
    ]
    return table(["", "idle clients", "before, MiB PSS / RSS", "after, MiB PSS / RSS", "KiB PSS per client"], rows)


def fanout_table(run: Run) -> list[str]:
    """One PUBLISH to many subscribers."""
    rows = []
    for peer in dict.fromkeys(each.peer for each in run.fanouts):
        found = [each for each in run.fanouts if each.peer == peer]
        spent, p50 = spread(each.cpu_us for each in found), spread(each.p50_ms for each in found)
        assert spent and p50
        many = f"{found[0].messages:,} to {found[0].subscribers:,}"
        rows.append([peer, many, spent.text(2), p50.text(2), f"{max(each.max_ms for each in found):.2f}"])
    head = ["PUBLISH", "messages to subscribers", "CPU us per message received", "p50 ms, to the last one", "max ms"]
    return table(head, rows)


def parent_line(run: Run) -> list[str]:
    """What the process above the worker spent, where there is one: it is not part of the CPU per request."""
    spent = [s.parent_cpu_us / s.cpu_us for s in run.samples if s.parent_cpu_us is not None and s.cpu_us]
    if not spent:
        return []
    middle, most = statistics.median(spent), max(spent)
    return [f"{OURS}'s parent process used {middle:.1%} of its worker's CPU in the median, {most:.1%} at most."]


def summary(run: Run) -> str:
    """The tables alone, for the screen."""
    parts = [cpu_table(run), load_table(run)] if run.samples else []
    parts += [fanout_table(run)] if run.fanouts else []
    parts += [idle_table(run)] if run.idle else []
    parts += [parent_line(run), bars(run, measured(run), bool(run.idle))]
    parts += [[f"{peer} left out: {why}" for peer, why in run.left_out.items()]]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def results(run: Run) -> str:
    """RESULTS.md."""
    left_out = [f"- **{peer}** was left out: {why}." for peer, why in run.left_out.items()]
    lines = ["# Results of one run", ""]
    lines += ["Written by `python -m bench.load`; how it measures stands in [README.md](README.md).", ""]
    lines += [f"- {what}: {value}" for what, value in run.facts]
    lines += left_out
    lines += ["", "Medians of the rounds; in brackets the least and the greatest. Ratios are taken round by round.", ""]
    lines += ["![CPU per request](results.png)", "", "## The bars", "", *bars(run, SCENARIOS, True), ""]
    if run.samples:
        lines += ["## CPU of the proxy process", "", *cpu_table(run), "", *parent_line(run), ""]
        lines += ["## Throughput and latency", "", *load_table(run), ""]
    if run.fanouts:
        lines += ["## Publish/subscribe", "", *fanout_table(run), ""]
    if run.idle:
        lines += ["## Idle clients", "", *idle_table(run), ""]
    lines += ["## What was run", "", "```", *run.commands, "```", ""]
    for peer in run.peers:
        lines += [f"**{peer.name}** {peer.version}".rstrip(), ""]
        lines += ["```", *([f"$ {peer.command}"] if peer.command else []), peer.configuration.rstrip(), "```", ""]
    return "\n".join(lines).rstrip() + "\n"
