"""The load comparison: `python -m bench.load`.

Starts ten servers for each sharding proxy and one more, then the peers in front of them, runs redis-benchmark against
each in interleaved rounds, and prints what came out; a full run also writes bench/RESULTS.md and bench/results.png.
Comes in: the command line. Never leaves a process behind, never writes a partial run's figures over a full one's.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import measure, peers, report
from bench.fanout import Fanout, fanout
from bench.measure import IdleCost, Sample
from bench.peers import Backends, Peer
from bench.scenarios import FANOUT, FANOUT_PEERS, IDLE, IDLE_CLIENTS, SCENARIOS, Scenario, choose, names
from pyproxy.fleet import FleetError

HERE = Path(__file__).resolve().parent
SHARDS = 10
FILES_WANTED = 20_000


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked: `scenarios` and `peers` are lists of known names afterwards."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.load",
        description="pyproxy and its peers under the same load.",
        epilog=f"scenarios: {', '.join(names())}",
    )
    parser.add_argument("--only", default="", help="scenarios, comma separated, * allowed (default: all)")
    parser.add_argument("--peers", default=",".join(peers.NAMES), help="comma separated (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help="measured rounds (default: 5, quick: 2)")
    parser.add_argument("--seconds", type=float, help="about how long one run lasts (default: 1.4, quick: 0.4)")
    parser.add_argument("--quick", action="store_true", help="a short look: figures are rough, nothing is written")
    parser.add_argument("--seed", type=int, help="of the order of peers in each round (default: drawn and printed)")
    parser.add_argument("--out", type=Path, help="write RESULTS.md and results.png there (a full run: bench/)")
    loads = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--perf", metavar="SCENARIO", choices=loads, help="instead: perf record of pyproxy's worker")
    options = parser.parse_args(given)
    partial = options.only or options.quick or options.rounds or options.seconds
    full = not partial and options.peers == ",".join(peers.NAMES)
    options.out = options.out or (HERE if full else None)
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.seconds = options.seconds or (0.4 if options.quick else 1.4)
    options.seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10_000)
    options.peers = options.peers.split(",")
    try:
        options.scenarios = choose([options.perf] if options.perf else [p for p in options.only.split(",") if p])
    except ValueError as problem:
        parser.error(str(problem))
    if unknown := [name for name in options.peers if name not in peers.NAMES]:
        parser.error(f"--peers: expected some of {', '.join(peers.NAMES)}, got {', '.join(unknown)}")
    return options


def main(given: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for; 0, or 1 with the reason on standard error."""
    options = arguments(given)
    if shutil.which("redis-benchmark") is None:
        print("redis-benchmark: expected on PATH (Debian: apt-get install redis-tools), got nothing", file=sys.stderr)
        return 1
    measure.raise_file_limit(FILES_WANTED)
    try:
        with peers.backends(SHARDS) as behind:
            if options.perf:
                return perf(options, behind)
            run = compare(options, behind)
    except (measure.LoadFailed, FleetError) as problem:
        print(problem, file=sys.stderr)
        return 1
    print(report.summary(run))
    if options.out:
        write(run, options.out)
    return 0


def compare(options: argparse.Namespace, behind: Backends) -> report.Run:
    """The whole comparison, idle clients last."""
    left_out = {name: why for name in options.peers if (why := peers.missing(name))}
    taking_part = [name for name in options.peers if name not in left_out]
    facts = [*machine(behind), ("order of the peers", f"shuffled in every round, seed {options.seed}")]
    facts += [("rounds", f"{options.rounds}, each run about {options.seconds} s")]
    for what, value in facts:
        print(f"{what}: {value}", flush=True)
    samples: list[Sample] = []
    idle: list[IdleCost] = []
    fanouts: list[Fanout] = []
    used: dict[str, Peer] = {}
    order = random.Random(options.seed)
    for name in options.scenarios:
        if name == IDLE:
            idle = idle_costs(taking_part, behind, used)
        elif name == FANOUT:
            fanouts = all_fanouts(options, behind, taking_part, order, used)
        else:
            (scenario,) = [each for each in SCENARIOS if each.name == name]
            samples += all_rounds(scenario, options, behind, taking_part, order, used)
    described = [report.PeerFacts(peer.name, peer.version, peer.command, peer.configuration) for peer in used.values()]
    return report.Run(samples, idle, described, left_out, facts, commands(options), fanouts)


def all_rounds(
    scenario: Scenario,
    options: argparse.Namespace,
    behind: Backends,
    taking_part: Sequence[str],
    order: random.Random,
    used: dict[str, Peer],
) -> list[Sample]:
    """One scenario: every peer freshly started, then rounds in which each has its turn; they are noted in `used`.

    Fresh, because a proxy keeps the memory an earlier load stretched, and a scenario chosen alone must give the same.
    """
    with ExitStack() as stack:
        able = [name for name in taking_part if scenario.may_be_asked_of(name)]
        up = [stack.enter_context(peers.started(name, behind)) for name in able]
        for peer in up:
            used.setdefault(peer.name, peer)
        fill(behind, up, scenario.keys, scenario.value)
        requests = {peer.name: requests_for(peer, scenario, options.seconds) for peer in up}
        return [
            one_run(behind, peer, number, scenario, requests[peer.name])
            for number in range(1, options.rounds + 1)
            for peer in order.sample(up, len(up))
        ]


def fill(behind: Backends, up: Sequence[Peer], keys: int, value: int) -> None:
    """Empties the servers and preloads the keys through every peer (HAProxy and the direct load share one server)."""
    for server in behind.servers:
        server.ask("FLUSHALL")
    for peer in up:
        measure.preload(peer.port, keys, value)


def requests_for(peer: Peer, scenario: Scenario, seconds: float) -> int:
    """How many requests fill `seconds`, from a first run that is not counted (and warms everything up)."""
    rate, _, _ = measure.run_load(peer.port, scenario, scenario.first_guess())
    step = 100 * scenario.pipeline
    return max(1, round(rate * seconds / step)) * step


def one_run(behind: Backends, peer: Peer, number: int, scenario: Scenario, requests: int) -> Sample:
    """One sample, printed as it comes. Raises LoadFailed if a key that was preloaded was not found."""
    misses = measure.keyspace_misses(behind.servers)
    got = measure.sample(peer.name, number, peer.port, peer.pid, peer.parent, scenario, requests)
    missed = measure.keyspace_misses(behind.servers) - misses
    if missed and scenario.command != "SET":
        raise measure.LoadFailed(f"{scenario.name} through {peer.name}: expected no key missing, got {missed}")
    spent = f"{got.cpu_us:.2f} us" if got.cpu_us is not None else "-"
    told = f"{got.rps:12,.0f}/s  p99 {got.p99_ms:7.2f} ms  {spent:>11}"
    print(f"  round {number} {scenario.name:11} {peer.name:11} {told}", flush=True)
    return got


def all_fanouts(
    options: argparse.Namespace,
    behind: Backends,
    taking_part: Sequence[str],
    order: random.Random,
    used: dict[str, Peer],
) -> list[Fanout]:
    """One PUBLISH to a thousand subscribers, in rounds; of the server itself the CPU is the server's."""
    found = []
    with ExitStack() as stack:
        up = [stack.enter_context(peers.started(name, behind)) for name in taking_part if name in FANOUT_PEERS]
        for peer in up:
            used.setdefault(peer.name, peer)
        for number in range(1, options.rounds + 1):
            for peer in order.sample(up, len(up)):
                got = fanout(peer.name, number, peer.port, peer.pid or behind.alone.pid)
                told = f"{got.cpu_us:.2f} us  p50 {got.p50_ms:7.2f} ms"
                print(f"  round {number} {FANOUT:11} {peer.name:11} {told}", flush=True)
                found.append(got)
    return found


def idle_costs(taking_part: Sequence[str], behind: Backends, used: dict[str, Peer]) -> list[IdleCost]:
    """Memory per idle client of every proxy, freshly started: a heap stretched by a load would hide the growth."""
    costs = []
    for name in taking_part:
        with peers.started(name, behind) as peer:
            used.setdefault(peer.name, peer)
            if peer.pid is not None:
                costs.append(measure.idle_cost(name, peer.port, peer.pid, IDLE_CLIENTS))
    return costs


def perf(options: argparse.Namespace, behind: Backends) -> int:
    """Where pyproxy's worker spends its time under one load: `perf report`, all symbols of at least half a percent."""
    (scenario,) = [s for s in SCENARIOS if s.name in options.scenarios]
    with peers.started("pyproxy", behind) as peer:
        fill(behind, [peer], scenario.keys, scenario.value)
        load = measure.benchmark_command(peer.port, scenario, requests_for(peer, scenario, 5.0))
        data = str(behind.fleet.directory / "perf.data")
        record = ["perf", "record", "-q", "-F", "1999", "-g", "-p", str(peer.pid), "-o", data, "--", *load]
        subprocess.run(record, stdout=subprocess.DEVNULL, check=True)
        shown = ["perf", "report", "-q", "--stdio", "--no-children", "-g", "none", "--percent-limit", "0.5", "-i", data]
        subprocess.run(shown, check=True)
    return 0


def machine(behind: Backends) -> list[tuple[str, str]]:
    """What the figures depend on: processor, system, versions, commit, how busy the machine was before."""
    return [
        *here_and_now(),
        ("servers", f"{SHARDS} for each sharding proxy and one alone, {behind.fleet.backend.version}"),
        ("load", f"{said(['redis-benchmark', '--version'])}, on the same machine as servers and proxies"),
    ]


def here_and_now() -> list[tuple[str, str]]:
    """The part that has nothing to do with what is measured."""
    models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    processor = f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"
    return [
        ("date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("commit", commit()),
        ("machine", f"{processor}; load average of the minute before: {os.getloadavg()[0]:.2f}"),
    ]


def commit() -> str:
    """The commit of the tree measured, and whether files differed from it."""
    revision = said(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"])
    made = ("RESULTS.md", "results.png", "FAILOVER.md", "failover.png")
    results = [f":(exclude)bench/{name}" for name in made]
    changed = said(["git", "-C", str(HERE), "status", "--porcelain", "--untracked-files=no", "--", ":/", *results])
    return (revision or "none") + (" with uncommitted changes" if changed else "")


def said(command: Sequence[str]) -> str:
    """The first line a command prints; empty if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0].strip() if done.returncode == 0 else ""


def commands(options: argparse.Namespace) -> list[str]:
    """What a reader types to do it again, and what that ran."""
    again = ["python -m bench.load", f"--seed {options.seed}"]
    if options.scenarios != names():
        again.append(f"--only {shlex.quote(','.join(options.scenarios))}")
    again += [f"--peers {','.join(options.peers)}", f"--rounds {options.rounds}", f"--seconds {options.seconds}"]
    lines = [" ".join(again), ""]
    for scenario in SCENARIOS:
        if scenario.name in options.scenarios:
            if scenario.is_block:
                lines.append(f"python -m bench.blocks PORT {scenario.name} REQUESTS")
                continue
            run = measure.benchmark_command(0, scenario, 0)
            run[run.index("-p") + 1], run[run.index("-n") + 1] = "PORT", "REQUESTS"
            if scenario.each > 1:  # the keys, or keys and values, are all alike
                run = [*run[: run.index(scenario.command) + 2], f"... ({scenario.each} keys)"]
            lines.append(" ".join(run))
    return lines


def write(run: report.Run, directory: Path) -> None:
    """RESULTS.md and results.png."""
    from bench.plot import draw  # matplotlib takes a second to import, and only this needs it

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "RESULTS.md").write_text(report.results(run))
    draw(run, directory / "results.png")
    print(f"written: RESULTS.md and results.png in {directory.name}/")


if __name__ == "__main__":
    sys.exit(main())
