"""python -m tests.simulation: histories by the thousand, or one of them again, step by step."""

import argparse
import itertools
import sys
import time

from tests.simulation.drawing import draw
from tests.simulation.run import Count, batches, in_a_process, play, run, shrink

SHRINK_S = 60.0
"""So long a failure is made smaller, at most."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run simulate", description=__doc__)
    parser.add_argument("--seeds", default="0..2000", metavar="A..B", help="A to B - 1 (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="from A on, for so long")
    parser.add_argument("--replay", type=int, metavar="SEED", help="this one, and say each step")
    parser.add_argument("--shrink", type=int, metavar="SEED", help="this one, by as few steps as it takes to fail")
    parser.add_argument("--most", type=int, default=5, metavar="N", help="failures, then it ends (%(default)s)")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    if args.replay is not None:
        setting, steps = draw(args.replay)
        print(setting)
        play(setting, steps, args.replay, says=True)
        print("nothing was broken")
        return 0
    if args.shrink is not None:
        setting, steps = draw(args.shrink)
        fewer = shrink(setting, steps, args.shrink, time.monotonic() + SHRINK_S)
        print(setting, *fewer, in_a_process(setting, fewer, args.shrink), "", sep="\n")
        play(setting, fewer, args.shrink, says=True)
        return 0
    first, _, behind = args.seeds.partition("..")
    seeds = range(int(first), int(behind)) if args.minutes is None else itertools.count(int(first))
    count, began = Count(), time.monotonic()
    for batch in batches(seeds):
        seen = len(count.failures)
        run(batch, count)
        for failure in count.failures[seen:]:
            print(f"seed {failure.seed}: {failure.what}\n    again: ./run simulate --replay {failure.seed}", flush=True)
        if len(count.failures) >= args.most:
            break
        if args.minutes is not None and time.monotonic() - began > args.minutes * 60:
            break
    took = time.monotonic() - began
    print(
        f"{count.histories} histories, {count.steps} steps, {count.answers} answers judged in {took:.1f} s "
        f"({count.histories / took * 60:.0f} histories a minute); {len(count.failures)} failures"
    )
    return 1 if count.failures else 0


if __name__ == "__main__":
    sys.exit(main())
