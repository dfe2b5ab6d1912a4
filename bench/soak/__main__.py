"""`./run soak`: half the time with reads = "primary", half with "prefer-replica"."""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.load import here_and_now
from bench.measure import raise_file_limit
from bench.soak.trial import Result, run

FILES_WANTED = 4096
SHOWN = 20
READS = ("primary", "prefer-replica")


def main(given: Sequence[str] | None = None) -> int:
    """0, or 1 if anything was not as promised."""
    parser = argparse.ArgumentParser(prog="./run soak", description="Clients and faults of all kinds, all judged.")
    parser.add_argument("--minutes", type=float, default=15.0, help="of both halves together (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=30, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of what clients ask and what is done (default: a random one)")
    parser.add_argument("--logs", type=Path, help="a directory that keeps the logs of the proxy and the servers")
    options = parser.parse_args(given)
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    raise_file_limit(FILES_WANTED)
    print(*(f"{what}: {value}" for what, value in here_and_now()), f"seed: {seed}", sep="\n", flush=True)
    failed = False
    for reads in READS:
        logs = options.logs and options.logs / reads
        result = run(reads, options.minutes * 60 / len(READS), options.clients, seed, logs)
        print(*told(result), sep="\n", flush=True)
        failed = failed or bool(result.problems)
    return int(failed)


def told(result: Result) -> Iterable[str]:
    """The lines of the report."""
    tally, verdict = result.tally, result.verdict
    yield f'\n== reads = "{result.reads}", {result.seconds:g} s, seed {result.seed} =='
    yield f"requests: {tally.requests.total()}: {_counts(tally.requests)}"
    yield f"replies: {tally.replies.total()}: {_counts(tally.replies)}"
    yield f"errors: {tally.errors.total()}: {_counts(tally.errors)}"
    yield f"unanswered when their connection ended: {tally.lost.total()}: {_counts(tally.lost)}"
    yield f"connections: {_counts(result.comings)}; messages heard: {result.messages}"
    yield f"faults injected: {_counts(result.injected)}; primaries replaced unplanned: {result.switches}"
    yield f"writes: {result.writes.total() - result.writes['sure by WAIT']}: {_counts(result.writes)}"
    yield f"misrouted replies: {len(tally.misrouted) + len(verdict.misrouted)}"
    yield f"writes lost for no reason: {len(verdict.lost)}; lost to a replaced primary: {verdict.lost_to_switches}"
    yield f"writes doubled: {len(verdict.duplicates)}; refused, but applied: {len(verdict.refused_but_applied)}"
    stale = f"{len(verdict.stale)}; during a fault of their shard: {verdict.stale_by_fault}"
    yield f"contradicted reads: {len(verdict.contradicted)}; stale reads for no reason: {stale}"
    yield f"longest wait: {tally.longest[0]:.1f} s, {tally.longest[1]}"
    yield f"log: {_counts(result.events)}"
    yield f"at rest: {', '.join(f'{name}={value}' for name, value in result.final.items())}"
    yield from result.resources
    yield f"problems: {len(result.problems)}"
    yield from (f"  {each[:500]}" for each in result.problems[:SHOWN])


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "none"


if __name__ == "__main__":
    sys.exit(main())
