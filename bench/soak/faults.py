"""The faults of servers, connections and workers that a soak injects, drawn from a seed: one at a time for each shard.

Each fault is a generator: it yields what it waits for, and ends when its shard has recovered. So at most one server of
a shard is faulty by our doing at any time, and what WAIT has confirmed must survive.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

import hiredis

from bench.failover.servers import fields, info, role_of
from pyproxy.fleet import Fleet, LiveShard, Proxy, Server

Steps = Iterator["Callable[[], bool] | float"]
"""Conditions to wait for, or seconds."""

POLL_S = 0.1
HEAL_S = 60.0
WORKER_EVERY_S = 45.0
LAG_S = 2
OPERATOR_S = 6.0  # longer than a promotion takes
OPERATOR_TRIES = 8


class FaultInjector:
    """Inject them by `run`. `spans`: shard, since, until. `problems`: what did not recover."""

    def __init__(self, fleet: Fleet, proxy: Proxy, workers: int, seed: int) -> None:
        self.injected: Counter[str] = Counter()
        self.spans: list[tuple[int, float, float]] = []
        self.others: list[tuple[int, float, float]] = []  # the part of them that concerns replicas
        self.killed: set[int] = set()  # workers
        self.problems: list[str] = []
        self._fleet = fleet
        self._proxy = proxy
        self._workers = workers
        self._random = Random(seed)  # for workers; each shard has its own, as each takes its time
        self._randoms = [Random(seed * 100 + index) for index in range(len(fleet.shards))]
        self._running: dict[int, Steps] = {}
        self._awaited: dict[int, tuple[Callable[[], bool], float]] = {}
        self._begun: dict[int, tuple[float, str]] = {}

    def run(self, seconds: float) -> None:
        """For so long, and until all is well again."""
        until = time.monotonic() + seconds
        next_ = {index: time.monotonic() + random.random() * 3 for index, random in enumerate(self._randoms)}
        worker_at = time.monotonic() + min(WORKER_EVERY_S, seconds) * self._random.random()
        while (now := time.monotonic()) < until or self._running:
            for index in list(next_):
                if index in self._running:
                    self._step(index)
                    if index not in self._running:
                        next_[index] = now + self._randoms[index].random() * 4
                elif next_[index] <= now < until:
                    self._begin(index)
            if worker_at <= now < until:
                self._kill_worker()
                worker_at = now + WORKER_EVERY_S * (0.5 + self._random.random())
            time.sleep(POLL_S)

    def worker_pids(self) -> dict[int, int]:
        """By their index, as the log says."""
        found = {}
        for line in self._proxy.tail(1_000_000).splitlines():
            if line.startswith("+worker-start "):
                said = dict(word.split("=", 1) for word in line.split()[1:] if "=" in word)
                found[int(said["index"])] = int(said["pid"])
        return found

    # --- one after the other ---

    def _begin(self, index: int) -> None:
        shard, random = self._fleet.shards[index], self._randoms[index]
        primary = shard.present_primary()
        if primary is None:
            return
        replica = random.choice([each for each in shard.servers if each is not primary])
        kinds: dict[str, tuple[int, Steps]] = {
            "kill -9 of a primary": (4, self._kill_primary(shard, primary, random)),
            "kill -9 of a replica": (2, self._kill(shard, replica, random)),
            "SIGSTOP of a primary": (4, self._pause(primary, random)),
            "SIGSTOP of a replica": (2, self._pause(replica, random)),
            "connections of the proxy cut": (3, self._cut(primary, "normal", random)),
            "connections of replicas cut": (2, self._cut(primary, "replica", random)),
            "pyproxy promote": (2, self._promote(shard)),
        }
        (name,) = random.choices(list(kinds), [weight for weight, _ in kinds.values()])
        self.injected[name] += 1
        self._begun[index] = (time.monotonic(), name)
        self._running[index] = self._until_well(shard, kinds[name][1])
        self._await(index, lambda: True)

    def _await(self, index: int, what: Callable[[], bool]) -> None:
        self._awaited[index] = (what, time.monotonic() + HEAL_S)

    def _step(self, index: int) -> None:
        done, deadline = self._awaited[index]
        since, name = self._begun[index]
        if not done():
            if time.monotonic() < deadline:
                return
            shard = self._fleet.shards[index]
            roles = ", ".join(f"{each.name} {role_of(each)}" for each in shard.servers)
            self.problems.append(f"{shard.name} was not well {HEAL_S:g} s after {name} at {since:.3f}: {roles}")
            self._running.pop(index)
        else:
            try:
                said = next(self._running[index])
            except StopIteration:
                self._running.pop(index)
            else:
                until = time.monotonic() + said if isinstance(said, float) else 0.0
                self._await(index, (lambda: time.monotonic() >= until) if isinstance(said, float) else said)
                return
        span = (index, since, time.monotonic())
        self.spans.append(span)
        if "replica" in name:
            self.others.append(span)

    def _until_well(self, shard: LiveShard, steps: Steps) -> Steps:
        yield from steps
        yield lambda: self._is_well(shard)

    def _is_well(self, shard: LiveShard) -> bool:
        """One primary, and all others follow it closely."""
        if not all(each.running for each in shard.servers):
            return False
        primary = shard.present_primary()
        if primary is None:
            return False
        said = fields(info(primary, "replication"))
        lines = [said.get(f"slave{number}", "") for number in range(len(shard.replicas))]
        lags = [dict(word.split("=", 1) for word in line.split(",") if "=" in word) for line in lines]
        return all(each.get("state") == "online" and int(each.get("lag", 9)) < LAG_S for each in lags)

    def _kill_primary(self, shard: LiveShard, primary: Server, random: Random) -> Steps:
        primary.kill()
        yield from self._until_replaced(shard)
        yield random.random()
        yield from self._revive(shard, primary)

    def _until_replaced(self, shard: LiveShard) -> Steps:
        """After some promotions in ten minutes the proxy leaves the next one to an operator: then we are that one."""
        for _ in range(OPERATOR_TRIES):
            until = time.monotonic() + OPERATOR_S
            yield lambda until=until: shard.present_primary() is not None or time.monotonic() > until  # type: ignore[misc]
            if shard.present_primary() is not None:
                return
            self.injected["pyproxy promote of a dead one"] += 1
            yield from self._promote(shard)

    def _kill(self, shard: LiveShard, replica: Server, random: Random) -> Steps:
        replica.kill()
        yield random.random() * 2
        yield from self._revive(shard, replica)

    def _revive(self, shard: LiveShard, server: Server) -> Steps:
        yield from self._until_replaced(shard)
        server.primary = shard.present_primary()
        if server.primary is not None:
            server.launch()

    def _pause(self, server: Server, random: Random) -> Steps:
        server.pause()
        yield 0.2 + random.random() * 4.8
        server.resume()
        yield 1.0  # whoever was promoted meanwhile is seen by then

    def _cut(self, primary: Server, kind: str, random: Random) -> Steps:
        for _ in range(random.choice((1, 1, 3))):
            try:
                primary.ask("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            except (OSError, hiredis.HiredisError):
                return
            yield random.random() * 0.5

    def _promote(self, shard: LiveShard) -> Steps:
        argv = [sys.executable, "-m", "pyproxy", "promote", shard.name, "--config", str(self._proxy.config)]
        command = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        yield lambda: command.poll() is not None
        command.communicate()
        if command.returncode:
            self.injected["pyproxy promote was refused"] += 1

    def _kill_worker(self) -> None:
        pids = self.worker_pids()
        pid = pids[self._random.randrange(self._workers)]
        if pid in self.killed:
            return
        self.killed.add(pid)
        self.injected["kill -9 of a worker"] += 1
        os.kill(pid, signal.SIGKILL)
