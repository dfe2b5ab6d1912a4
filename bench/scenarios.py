"""What is measured: the loads, by name, and the bars set for them.

Comes in: nothing. Goes out: `SCENARIOS` and `choose`. Never starts or measures anything.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

CLIENTS = 50
IDLE = "idle"
FANOUT = "publish-1000"  # one PUBLISH to a thousand subscribers; see fanout.py
FANOUT_PEERS = ("pyproxy", "direct")  # nutcracker knows no PUBLISH, and a relay has nothing to fan out
IDLE_CLIENTS = 5000
IDLE_BAR_KIB = 16.0
BASELINE = "nutcracker"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load: `command` on random ones of `keys` preloaded keys, `each` of them, with values of `value` bytes.

    `bar` is the most CPU per request pyproxy may use, as a share of nutcracker's in the same run; None: no bar is set.
    """

    name: str
    command: str
    pipeline: int
    value: int = 32
    keys: int = 100_000
    bar: float | None = None
    sweep: bool = False
    each: int = 1

    @property
    def is_block(self) -> bool:
        """Whether one request is a whole transaction, which redis-benchmark cannot send; blocks.py does."""
        return self.command == "MULTI"

    def may_be_asked_of(self, peer: str) -> bool:
        """nutcracker closes the connection of who sends MULTI."""
        return not (self.is_block and peer == "nutcracker")

    def arguments(self) -> list[str]:
        """The redis-benchmark arguments of this load, without address and number of requests."""
        common = ["-c", str(CLIENTS), "-P", str(self.pipeline), "-r", str(self.keys), "--csv"]
        if self.each > 1:
            words = ["key:__rand_int__", "x" * self.value] if self.command == "MSET" else ["key:__rand_int__"]
            return [*common, self.command, *words * self.each]
        return [*common, "-d", str(self.value), "-t", self.command.lower()]

    def first_guess(self) -> int:
        """Requests for the unmeasured first run, which finds out how many fill a measured one."""
        return max(4000 if self.value < 10_000 and self.each < 100 else 1500, 1500 * self.pipeline)


def _sweep(label: str, value: int, keys: int) -> tuple[Scenario, Scenario]:
    return (
        Scenario(f"get-{label}", "GET", 1, value, keys, sweep=True),
        Scenario(f"set-{label}", "SET", 1, value, keys, sweep=True),
    )


SCENARIOS: tuple[Scenario, ...] = (
    Scenario("get-p64", "GET", 64, bar=0.35),
    Scenario("set-p64", "SET", 64, bar=0.35),
    Scenario("get-p16", "GET", 16, bar=0.9),
    Scenario("set-p16", "SET", 16, bar=0.9),
    Scenario("get-p1", "GET", 1, bar=1.05, sweep=True),
    Scenario("set-p1", "SET", 1, bar=1.05, sweep=True),
    Scenario("mget10-p1", "MGET", 1, bar=0.6, each=10),
    Scenario("mget10-p16", "MGET", 16, each=10),
    Scenario("mget100-p1", "MGET", 1, bar=0.6, each=100),
    Scenario("mset10-p1", "MSET", 1, each=10),
    Scenario("mset100-p1", "MSET", 1, each=100),
    Scenario("del10-p1", "DEL", 1, each=10),
    Scenario("del100-p1", "DEL", 1, each=100),
    Scenario("multi8-p1", "MULTI", 1, each=8),
    # Fewer keys for the larger values: every target holds at most about 100 MB.
    *_sweep("1k", 1024, 100_000),
    *_sweep("10k", 10 * 1024, 10_000),
    *_sweep("100k", 100 * 1024, 1000),
)


def names() -> list[str]:
    """Every name `--only` accepts, in the order of measuring."""
    return [scenario.name for scenario in SCENARIOS] + [FANOUT, IDLE]


def choose(patterns: Sequence[str]) -> list[str]:
    """The names that match any of the shell patterns; all of them for no pattern.

    Raises ValueError with the known names if a pattern matches nothing.
    """
    if not patterns:
        return names()
    for pattern in patterns:
        if not fnmatch.filter(names(), pattern):
            raise ValueError(f"--only: expected some of {', '.join(names())}, got {pattern}")
    return [name for name in names() if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
