"""The picture of one incident: requests a second, served and failed, of the dead shard and of the others."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.failover.figures import Moment
from bench.failover.trial import Result

SHOWN_S = (-3.0, 9.0)  # since the fault
SERVED, FAILED = "#2a78b8", "#c0392b"


def draw(incidents: dict[str, Result], path: Path) -> None:
    """Writes one column for each, named, to `path`."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    grid = figure.subplots(2, len(incidents), sharex="col", squeeze=False)
    for column, (name, result) in enumerate(incidents.items()):
        dead, others = grid[0][column], grid[1][column]
        moments = [moment for moment in result.moments if SHOWN_S[0] <= moment.at <= SHOWN_S[1]]
        _lines(dead, moments, [(m.served, m.failed) for m in moments])
        _lines(others, moments, [(m.others_served, m.others_failed) for m in moments])
        dead.set_title(f"{name}: kill -9 of a primary at 0 s", fontsize=9)
        dead.set_ylabel("its shard, requests/s")
        others.set_ylabel("the others, requests/s")
        others.set_xlabel("s")
        dead.legend(fontsize=8, loc="center right")
    figure.savefig(path, dpi=80)


def _lines(axes: Axes, moments: list[Moment], values: list[tuple[float, float]]) -> None:
    times = [moment.at for moment in moments]
    axes.plot(times, [served for served, _ in values], color=SERVED, linewidth=1, label="served")
    axes.plot(times, [failed for _, failed in values], color=FAILED, linewidth=1, label="errors")
    axes.axvline(0, color="black", linewidth=0.8, linestyle="dashed")
    axes.set_ylim(bottom=0)
