"""How it is measured: CPU time and memory of a process, one run of redis-benchmark, a crowd of idle clients.

Comes in: process ids and ports of 127.0.0.1. Goes out: Sample and IdleCost. Never decides what is compared.
"""

from __future__ import annotations

import csv
import ctypes
import os
import re
import resource
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import blocks
from bench.scenarios import Scenario
from pyproxy.fleet import HOST, Server

RUN_DEADLINE_S = 120.0
REPLY_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one scenario against one peer. CPU in microseconds per request; None without a proxy."""

    scenario: str
    peer: str
    round: int
    requests: int
    rps: float
    p50_ms: float
    p99_ms: float
    cpu_us: float | None
    kernel_share: float | None
    parent_cpu_us: float | None


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one process in KiB by /proc/PID/smaps_rollup: without what the kernel holds for its sockets."""

    rss_kib: int
    pss_kib: int


@dataclass(frozen=True, slots=True)
class IdleCost:
    """One peer's process before and after `clients` clients connected, asked one GET each, and fell silent."""

    peer: str
    clients: int
    before: Memory
    after: Memory

    @property
    def kib_per_client(self) -> float:
        """Growth of the proportional set size (PSS) per client, KiB."""
        return (self.after.pss_kib - self.before.pss_kib) / self.clients


class LoadFailed(Exception):
    """redis-benchmark gave no figures, or the keys it asked for were not there."""


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process, user and system, in nanoseconds.

    The process' own CPU clock, clock_getcpuclockid(3): exact, where /proc/PID/stat counts in ticks of 10 ms.
    """
    clock = ctypes.c_int()
    error = ctypes.CDLL(None).clock_getcpuclockid(ctypes.c_int(pid), ctypes.byref(clock))
    if error:
        raise ProcessLookupError(error, f"no CPU clock of process {pid}: {os.strerror(error)}")
    return time.clock_gettime_ns(clock.value)


def user_and_system_ticks(pid: int) -> tuple[int, int]:
    """utime and stime of /proc/PID/stat (proc(5), fields 14 and 15): good enough for the kernel's share of a run."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]), int(fields[12])


def memory(pid: int) -> Memory:
    """What the process holds now."""
    found = dict(re.findall(r"^(Rss|Pss):\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE))
    return Memory(int(found["Rss"]), int(found["Pss"]))


def parse_csv(output: str) -> tuple[float, float, float]:
    """Requests per second, p50 and p99 in milliseconds from `redis-benchmark --csv` (7.0: header line, one row).

    Raises LoadFailed if the row is missing, which is what redis-benchmark leaves after an error reply.
    """
    # A warning on standard output may stand before the header.
    lines = output.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"test"')), len(lines))
    rows = list(csv.DictReader(lines[start:]))
    if len(rows) != 1:
        raise LoadFailed(f"redis-benchmark: expected one row of figures, got {output.strip()[-400:]!r}")
    return float(rows[0]["rps"]), float(rows[0]["p50_latency_ms"]), float(rows[0]["p99_latency_ms"])


def benchmark_command(port: int, scenario: Scenario, requests: int) -> list[str]:
    """The redis-benchmark command line of one run."""
    return ["redis-benchmark", "-h", HOST, "-p", str(port), "-n", str(requests), *scenario.arguments()]


def run_load(port: int, scenario: Scenario, requests: int) -> tuple[float, float, float]:
    """Runs the load to its end; see `parse_csv` for what comes back and what is raised."""
    if scenario.is_block:
        return blocks.run(port, scenario, requests)
    done = subprocess.run(
        benchmark_command(port, scenario, requests), capture_output=True, text=True, timeout=RUN_DEADLINE_S, check=False
    )
    if done.returncode or "Error from server" in done.stderr:
        raise LoadFailed(f"redis-benchmark {scenario.name}: exit {done.returncode}, {done.stderr.strip()[-400:]}")
    return parse_csv(done.stdout)


def sample(
    peer: str, number: int, port: int, pid: int | None, parent: int | None, scenario: Scenario, requests: int
) -> Sample:
    """One measured run: redis-benchmark's figures, and what `pid` (and `parent`) spent from before it to after it."""
    before = cpu_ns(pid) if pid else 0
    ticks_before = user_and_system_ticks(pid) if pid else (0, 0)
    parent_before = cpu_ns(parent) if parent else 0
    rps, p50, p99 = run_load(port, scenario, requests)
    spent = cpu_ns(pid) - before if pid else None
    ticks = user_and_system_ticks(pid) if pid else (0, 0)
    user, system = ticks[0] - ticks_before[0], ticks[1] - ticks_before[1]
    return Sample(
        scenario.name,
        peer,
        number,
        requests,
        rps,
        p50,
        p99,
        spent / requests / 1000 if spent is not None else None,
        system / (user + system) if user + system else None,
        (cpu_ns(parent) - parent_before) / requests / 1000 if parent else None,
    )


def keyspace_misses(servers: Sequence[Server]) -> int:
    """Sum of the servers' keyspace_misses: a GET that found nothing is cheaper than the one that was to be measured."""
    total = 0
    for server in servers:
        info = server.ask("INFO", "stats")
        found = re.search(rb"keyspace_misses:(\d+)", info if isinstance(info, bytes) else b"")
        if found is None:
            raise LoadFailed(f"{server.name}: expected keyspace_misses in INFO stats, got {info!r}")
        total += int(found[1])
    return total


def preload(port: int, keys: int, value: int) -> None:
    """SETs key:000000000000 ... (as redis-benchmark -r names them) through the peer at `port`, 200 KB at a time."""
    batch = max(1, min(500, 200_000 // value))  # of keys
    payload = b"x" * value
    with socket.create_connection((HOST, port), REPLY_DEADLINE_S) as connection:
        for first in range(0, keys, batch):
            numbers = range(first, min(keys, first + batch))
            connection.sendall(
                b"".join(b"*3\r\n$3\r\nSET\r\n$16\r\nkey:%012d\r\n$%d\r\n%b\r\n" % (i, value, payload) for i in numbers)
            )
            expect(connection, b"+OK\r\n" * len(numbers))


def expect(connection: socket.socket, reply: bytes) -> None:
    """Reads exactly `reply`, or raises LoadFailed with what came instead."""
    got = b""
    while len(got) < len(reply):
        data = connection.recv(65536)
        got += data
        if not data or not reply.startswith(got):
            raise LoadFailed(f"expected {reply[:40]!r}, got {got[-200:]!r}")


def raise_file_limit(wanted: int) -> int:
    """Raises RLIMIT_NOFILE of this process (children inherit it) towards `wanted`; returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@contextmanager
def idle_clients(port: int, count: int) -> Iterator[None]:
    """Holds `count` connections that have asked one GET each and read its reply."""
    connections: list[socket.socket] = []
    try:
        for number in range(count):
            connection = socket.create_connection((HOST, port), REPLY_DEADLINE_S)
            connections.append(connection)
            connection.sendall(b"*2\r\n$3\r\nGET\r\n$16\r\nidle%012d\r\n" % number)
            expect(connection, b"$-1\r\n")
        yield
    finally:
        for connection in connections:
            connection.close()


def idle_cost(peer: str, port: int, pid: int, count: int) -> IdleCost:
    """Memory per idle client of the process `pid` behind `port`, which should be freshly started."""
    # The first hundred warm pools and allocators, so that what every process pays once is not charged to the clients.
    with idle_clients(port, 100):
        pass
    before = memory(pid)
    with idle_clients(port, count):
        after = memory(pid)
    return IdleCost(peer, count, before, after)
