"""One history from its steps, and many of them from their seeds, in processes that may die of it."""

import gc
import os
import pickle
import re
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.simulation.drawing import draw
from tests.simulation.oracle import Broken
from tests.simulation.rest import rest
from tests.simulation.setting import Setting
from tests.simulation.steps import Step, take
from tests.simulation.world import history

BATCH = 200
"""Histories that one process runs."""


@dataclass(slots=True)
class Failure:
    seed: int
    what: str


@dataclass(slots=True)
class Count:
    histories: int = 0
    steps: int = 0
    answers: int = 0
    failures: list[Failure] = field(default_factory=list)


def play(setting: Setting, steps: Sequence[Step], seed: int, says: bool = False) -> int:
    """One history, to its rest -> how many answers were judged. Raises Broken. `says`: everything that happens."""
    with history(setting, seed) as world:
        world.ledger.says = says
        for number, step in enumerate(steps):
            if says:
                print(f"{number:4} {world.loop.now:9.4f} {step}", flush=True)
            take(world, step)
        if says:
            print(f"     {world.loop.now:9.4f} rest", flush=True)
        rest(world)
        return world.oracle.answers


def failure_of(setting: Setting, steps: Sequence[Step], seed: int) -> str:
    """What goes wrong in it, an exception of the simulation included; empty: nothing."""
    try:
        play(setting, steps, seed)
    except Broken as broken:
        return str(broken)
    except Exception:
        return traceback.format_exc()
    return ""


def in_a_process(setting: Setting, steps: Sequence[Step], seed: int) -> str:
    """As `failure_of`, where the process may die of it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _hush()
        os.write(write, failure_of(setting, steps, seed).encode()[:60000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return f"the process died of signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else said


def _hush() -> None:
    """What Python says of its last moments is said by whoever finds it dead."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)


def batches(seeds: Iterable[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    for seed in seeds:
        batch.append(seed)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def run(batch: Sequence[int], count: Count) -> None:
    """All of a batch, in processes of their own: where one dies, another goes on behind the seed it died of."""
    left = list(batch)
    while left:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            _hush()
            _run_here(left, write)
            os._exit(0)
        os.close(write)
        begun: int | None = None
        with os.fdopen(read, "rb") as pipe:
            while True:
                try:
                    said = pickle.load(pipe)
                except EOFError:
                    break
                if isinstance(said, int):
                    begun = said
                    continue
                seed, steps, answers, what = said
                count.histories += 1
                count.steps += steps
                count.answers += answers
                if what:
                    count.failures.append(Failure(seed, what))
                left.remove(seed)
                begun = None
        _, status = os.waitpid(child, 0)
        if begun is not None:
            count.histories += 1
            count.failures.append(Failure(begun, f"the process died: wait status {status}"))
            left.remove(begun)
        elif status:
            raise RuntimeError(f"expected a batch of histories to end well, got wait status {status}")


def _run_here(seeds: Sequence[int], pipe: int) -> None:
    gc.freeze()  # a history is small beside what was imported
    gc.set_threshold(10_000, 20, 100)
    for seed in seeds:
        os.write(pipe, pickle.dumps(seed))
        setting, steps = draw(seed)
        answers, what = 0, ""
        try:
            answers = play(setting, steps, seed)
        except Broken as broken:
            what = str(broken)
        except Exception:
            what = traceback.format_exc()
        os.write(pipe, pickle.dumps((seed, len(steps), answers, what[:3000])))


def shrink(setting: Setting, steps: Sequence[Step], seed: int, until: float) -> list[Step]:
    """The same failure by fewer steps; the time is bounded (`until`, CLOCK_MONOTONIC)."""
    kept = list(steps)
    like = _kind(in_a_process(setting, kept, seed))
    size = max(1, len(kept) // 2)
    while size and time.monotonic() < until:
        start, shorter = 0, False
        while start < len(kept) and time.monotonic() < until:
            fewer = kept[:start] + kept[start + size :]
            if _kind(in_a_process(setting, fewer, seed)) == like:
                kept, shorter = fewer, True
            else:
                start += size
        if not shorter or size > 1:
            size //= 2
    return kept


def _kind(what: str) -> str:
    """A failure without its numbers; empty where there was none."""
    last = what.strip().rsplit("\n", 1)[-1]
    return " ".join(re.findall(r"[A-Za-z]{2,}", last))[:60]
