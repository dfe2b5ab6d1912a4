"""`./run faults`: every fault at full length, a few times; a full run writes bench/FAILOVER.md and failover.png.

Faults whose names begin with `move-` are made while slots move (move_catalogue.py); a full run of these writes
bench/GROWTH.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import hiredis
import msgspec

from bench.failover import growth_report, move_trial, report, trial
from bench.failover.catalogue import ALL
from bench.failover.move_catalogue import MOVES
from bench.failover.move_trial import MoveFault, MoveResult
from bench.failover.trial import Fault, Result
from bench.load import here_and_now
from bench.measure import raise_file_limit
from pyproxy.fleet import FleetError, find_backend

HERE = Path(__file__).resolve().parents[1]
FILES_WANTED = 20_000
MINUTE_LOAD_S = 2.0
KEYS = 20_000
"""Of the ballast of moves, in each of two databases, at full length."""


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    names = [*(each.name for each in ALL), *(each.name for each in MOVES)]
    parser = argparse.ArgumentParser(
        prog="./run faults", description="Faults made to real servers under load.", epilog=f"faults: {', '.join(names)}"
    )
    parser.add_argument("names", nargs="*", help="of faults, * allowed (default: all, but those while slots move)")
    parser.add_argument("--runs", type=int, default=3, help="of each (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of all times (default: %(default)s)")
    parser.add_argument("--shards", type=int, help="(default: 10; while slots move: 3, and as many join)")
    parser.add_argument("--seed", type=int, default=1, help="of the first run, the next has the next (default: 1)")
    parser.add_argument("--keep", type=Path, help="a file: results in it are reported, too, and new ones added to it")
    parser.add_argument("--out", type=Path, help="write FAILOVER.md and failover.png there (a full run: bench/)")
    options = parser.parse_args(given)
    options.faults, options.moves = (
        [each for each in catalogue if any(fnmatchcase(each.name, pattern) for pattern in patterns)]
        for catalogue, patterns in ((ALL, options.names or ["*"]), (MOVES, options.names))
    )
    if not options.faults and not options.moves:
        parser.error(f"expected some of {', '.join(names)}, got {', '.join(options.names)}")
    full = options.scale == 1 and options.shards is None
    whole = [found for found, catalogue in ((options.faults, ALL), (options.moves, MOVES)) if found]
    full = full and all(found in (ALL, MOVES) for found in whole)
    options.out = options.out or (HERE if full else None)
    return options


def main(given: Sequence[str] | None = None) -> int:
    """0, or 1 if anything was not as expected."""
    options = arguments(given)
    raise_file_limit(FILES_WANTED)
    facts = [f"{what}: {value}" for what, value in here_and_now()]
    facts.append(f"servers: two replicas for each shard, {find_backend().version}")
    facts.append(f"runs: {options.runs} of each fault{', and those kept before' if options.keep else ''}")
    facts.append(f"seeds: from {options.seed} on")
    if options.scale != 1:
        facts.append(f"times: all multiplied by {options.scale:g}")
    print(*facts, sep="\n", flush=True)
    runs: dict[str, list[Result | MoveResult]] = defaultdict(list)
    failed: dict[str, list[str]] = defaultdict(list)
    for result in kept(options.keep):
        runs[result.fault].append(result)
    for number in range(options.runs):
        for fault in (*options.faults, *options.moves):
            once(fault, options, options.seed + number, runs, failed)
    if options.out:
        write(options, runs, failed, facts)
    return int(bool(failed) or any(result.problems for results in runs.values() for result in results))


def once(
    fault: Fault | MoveFault,
    options: argparse.Namespace,
    seed: int,
    runs: dict[str, list[Result | MoveResult]],
    failed: dict[str, list[str]],
) -> None:
    """One run, into `runs` or `failed`; printed as it comes."""
    shards = {} if options.shards is None else {"shards": options.shards}
    try:
        result: Result | MoveResult
        if isinstance(fault, MoveFault):
            result = move_trial.run(fault, options.scale, seed, keys=round(KEYS * options.scale), **shards)
        else:
            result = trial.run(fault, options.scale, seed, **shards)
    except (FleetError, OSError, hiredis.HiredisError, subprocess.SubprocessError) as error:
        failed[fault.name].append(f"{type(error).__name__}: {error}")
        print(f"{fault.name:16} ended early: {error}", flush=True)
        return
    runs[fault.name].append(result)
    if options.keep:
        with options.keep.open("ab") as file:
            file.write(msgspec.json.encode(result) + b"\n")
    print(growth_report.line(result) if isinstance(result, MoveResult) else report.line(result), flush=True)
    time.sleep(MINUTE_LOAD_S * options.scale)  # what ended gives the cores back


def kept(file: Path | None) -> list[Result | MoveResult]:
    """What earlier runs left there; of one commit, if whoever says so takes care."""
    if file is None or not file.exists():
        return []
    return [msgspec.json.decode(line, type=Result | MoveResult) for line in file.read_bytes().splitlines()]


def write(
    options: argparse.Namespace,
    runs: dict[str, list[Result | MoveResult]],
    failed: dict[str, list[str]],
    facts: Sequence[str],
) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    if options.moves:
        of_moves = {name: [each for each in found if isinstance(each, MoveResult)] for name, found in runs.items()}
        (options.out / "GROWTH.md").write_text(growth_report.growth(options.moves, of_moves, failed, facts))
        print(f"written: GROWTH.md in {options.out.name}/")
    if options.faults:
        others = {name: [each for each in found if isinstance(each, Result)] for name, found in runs.items()}
        write_failover(options, others, failed, facts)


def write_failover(
    options: argparse.Namespace, runs: report.Runs, failed: dict[str, list[str]], facts: Sequence[str]
) -> None:
    from bench.failover.plot import draw  # matplotlib takes a second to import, and only this needs it

    (options.out / "FAILOVER.md").write_text(report.failover(options.faults, runs, failed, facts))
    names = {"kill": "pyproxy", "nutcracker": "nutcracker"}
    if incidents := {names[name]: results[0] for name, results in runs.items() if name in names}:
        draw(incidents, options.out / "failover.png")
    print(f"written: FAILOVER.md and failover.png in {options.out.name}/")


if __name__ == "__main__":
    sys.exit(main())
