"""The picture of a run: CPU per request by scenario, and how it grows with the size of the values.

Comes in: a Run. Goes out: a PNG. Never computes a number that is not in RESULTS.md.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report import OURS, Run, measured, of_peer, ratio, spread
from bench.scenarios import BASELINE, Scenario

COLOURS = {"pyproxy": "#2a78b8", "nutcracker": "#d98a2b", "haproxy": "#8a8a8a"}


def draw(run: Run, path: Path) -> None:
    """Writes the picture to `path`."""
    peers = [p.name for p in run.peers if p.name in COLOURS]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _bars(left, run, peers, [s for s in measured(run) if s.value == 32])
    _sweep(right, run, peers, [s for s in measured(run) if s.sweep and s.command == "GET"])
    figure.savefig(path, dpi=80)


def _bars(axes: Axes, run: Run, peers: list[str], scenarios: list[Scenario]) -> None:
    width = 0.8 / max(1, len(peers))
    for number, peer in enumerate(peers):
        for position, scenario in enumerate(scenarios):
            got = spread(s.cpu_us for s in of_peer(run.samples, scenario.name, peer) if s.cpu_us is not None)
            if got is None:
                continue
            x = position + (number - (len(peers) - 1) / 2) * width
            error = [[got.median - got.low], [got.high - got.median]]
            axes.bar(x, got.median, width, yerr=error, color=COLOURS[peer], label=peer if position == 0 else None)
            share = ratio(run.samples, scenario.name, peer, lambda s: s.cpu_us) if peer == OURS else None
            if share:
                axes.annotate(f"{share.median:.2f}", (x, got.high), ha="center", va="bottom", fontsize=8)
    for position, scenario in enumerate(scenarios):
        base = spread(s.cpu_us for s in of_peer(run.samples, scenario.name, BASELINE) if s.cpu_us is not None)
        if base and scenario.bar:
            axes.hlines(base.median * scenario.bar, position - 0.45, position + 0.45, "black", "dashed", linewidth=1)
    axes.set_yscale("log")
    axes.set_yticks([0.3, 1, 3, 10, 30, 100], ["0.3", "1", "3", "10", "30", "100"])
    axes.minorticks_off()
    axes.set_xticks(range(len(scenarios)), [s.name for s in scenarios], rotation=30, ha="right")
    axes.set_ylabel("CPU of the proxy per request, us (log)")
    axes.set_title(f"32 B values; figures: {OURS} / {BASELINE}; dashed: the bar", fontsize=9)
    axes.legend(fontsize=8)


def _sweep(axes: Axes, run: Run, peers: list[str], scenarios: list[Scenario]) -> None:
    for peer in peers:
        points = []
        for scenario in scenarios:
            got = spread(s.cpu_us for s in of_peer(run.samples, scenario.name, peer) if s.cpu_us is not None)
            if got:
                points.append((scenario.value, got.median))
        if points:
            axes.plot([x for x, _ in points], [y for _, y in points], "o-", color=COLOURS[peer], label=peer)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_yticks([10, 20, 50, 100], ["10", "20", "50", "100"])
    axes.minorticks_off()
    axes.set_xlabel("size of the value, bytes (log)")
    axes.set_title("GET, no pipeline, by size of the value", fontsize=9)
