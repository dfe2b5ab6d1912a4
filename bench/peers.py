"""Who is compared: the programs, how each is configured, started on a free port of 127.0.0.1, and ended.

Comes in: the servers behind. Goes out: `Peer`. Never measures.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyproxy
from pyproxy.fleet import HOST, Fleet, Process, Proxy, Server, ask, reserve_port, wait_until

NAMES = ("pyproxy", "nutcracker", "haproxy", "direct")


@dataclass(frozen=True, slots=True)
class Backends:
    """The real servers: a fleet for each sharding proxy, and one `alone` behind HAProxy and for the direct load.

    Two fleets, because the two hash differently, and pyproxy refuses a server that holds keys of another shard.
    """

    fleet: Fleet
    nutcracker_fleet: Fleet
    alone: Server

    @property
    def servers(self) -> list[Server]:
        return [*self.fleet.servers, *self.nutcracker_fleet.servers, self.alone]


@dataclass(frozen=True, slots=True)
class Peer:
    """A program that is up: `pid` is the process requests go through (None: no proxy), `parent` the one above it.

    `configuration` is its file word for word, `command` how it was started.
    """

    name: str
    port: int
    pid: int | None
    parent: int | None
    version: str
    command: str
    configuration: str


class Program(Process):
    """A peer that is neither ours nor a server: `argv` as it is run in the directory of its files."""

    def __init__(self, name: str, argv: Sequence[str], directory: Path) -> None:
        super().__init__(name, directory / f"{name}.log")
        self._argv = list(argv)

    def command(self) -> list[str]:
        return self._argv


@contextmanager
def backends(shards: int) -> Iterator[Backends]:
    """Two fleets of `shards` primaries without replicas and one server more, all answering; ended on leaving."""
    with Fleet(shards, replicas=0) as fleet, Fleet(shards, replicas=0) as other:
        alone = Server("alone", fleet.backend.path, fleet.directory)
        try:
            alone.start()
            yield Backends(fleet, other, alone)
        finally:
            alone.stop()
            alone.release()


def missing(name: str) -> str:
    """Why the peer cannot take part on this machine; empty if it can."""
    if name == "pyproxy" and importlib.util.find_spec("pyproxy.__main__") is None:
        return "this tree has no program yet"
    if name in ("nutcracker", "haproxy") and shutil.which(name) is None:
        return f"no {name} on PATH (Debian: apt-get install {name})"
    return ""


@contextmanager
def started(name: str, behind: Backends) -> Iterator[Peer]:
    """The peer, up and answering; ended on leaving. Raises FleetError with the end of its log if it does not answer."""
    if name == "direct":
        yield Peer(name, behind.alone.port, None, None, "", "", "the server HAProxy relays to, nothing in between")
        return
    with ExitStack() as stack:
        yield {"pyproxy": _pyproxy, "nutcracker": _nutcracker, "haproxy": _haproxy}[name](stack, behind)


def _pyproxy(stack: ExitStack, behind: Backends) -> Peer:
    proxy = stack.enter_context(Proxy(behind.fleet, workers=1, transactions="split"))
    _wait_for_get(proxy, proxy.port)
    (worker,) = _children(proxy.pid, b"pyproxy.worker")
    parts = [f"{package} {importlib.metadata.version(package)}" for package in ("uvloop", "hiredis", "mmh3")]
    version = f"{pyproxy.__version__} (Python {sys.version.split()[0]}, {', '.join(parts)})"
    return Peer(
        "pyproxy", proxy.port, worker, proxy.pid, version, "python -m pyproxy serve CONFIG", proxy.config.read_text()
    )


def _nutcracker(stack: ExitStack, behind: Backends) -> Peer:
    port, statistics = _port(stack), _port(stack)
    file = _file(behind, "nutcracker.yml", nutcracker_lines(port, behind.nutcracker_fleet))
    options = ["-a", HOST, "-s", str(statistics)]
    process = _run(stack, behind, ["nutcracker", "-c", str(file), *options], port)
    version = _first_line(["nutcracker", "-V"]).removeprefix("This is nutcracker-")
    command = f"nutcracker -c CONFIG {' '.join(options)}"
    return Peer("nutcracker", port, process.pid, None, version, command, file.read_text())


def nutcracker_lines(port: int, fleet: Fleet) -> list[str]:
    """Its configuration in front of the primaries of this fleet."""
    lines = ["bench:", f"  listen: {HOST}:{port}", "  hash: murmur", "  distribution: ketama", "  redis: true"]
    lines += ["  preconnect: true", "  auto_eject_hosts: false", "  timeout: 5000", "  backlog: 1024"]
    return [*lines, "  servers:", *(f"   - {shard.primary.address}:1" for shard in fleet.shards)]


def _haproxy(stack: ExitStack, behind: Backends) -> Peer:
    port = _port(stack)
    lines = ["global", "  nbthread 1", "  maxconn 8000", "defaults", "  mode tcp", "  timeout connect 5s"]
    lines += ["  timeout client 5m", "  timeout server 5m"]
    lines += ["listen bench", f"  bind {HOST}:{port}", f"  server alone {behind.alone.address}"]
    file = _file(behind, "haproxy.cfg", lines)
    process = _run(stack, behind, ["haproxy", "-db", "-f", str(file)], port)
    version = _first_line(["haproxy", "-v"]).split(" - ")[0].removeprefix("HAProxy version ")
    return Peer("haproxy", port, process.pid, None, version, "haproxy -db -f CONFIG", file.read_text())


def _port(stack: ExitStack) -> int:
    port: int = stack.enter_context(reserve_port()).getsockname()[1]
    return port


def _file(behind: Backends, name: str, lines: Sequence[str]) -> Path:
    file = behind.fleet.directory / name
    file.write_text("\n".join(lines) + "\n")
    return file


def _run(stack: ExitStack, behind: Backends, argv: Sequence[str], port: int) -> Process:
    process = Program(argv[0], argv, behind.fleet.directory)
    process.launch()
    stack.callback(process.stop)
    _wait_for_get(process, port)
    return process


def _wait_for_get(process: Process, port: int) -> None:
    """Waits until a GET comes back as a null: the proxy is up, and so is its way to a server."""

    def answers() -> bool:
        with suppress(OSError):
            return ask(port, "GET", "bench:hello", timeout=1.0) is None
        return False

    wait_until(f"{process.name} to answer GET at {HOST}:{port}", answers, lambda: f"its log ends: {process.tail()}")


def _children(parent: int, word: bytes) -> list[int]:
    """Process ids of the children of `parent` whose command line contains `word`."""
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in listed if word in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _first_line(command: Sequence[str]) -> str:
    """What a program says of its version, on whichever stream."""
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return (said.stdout + said.stderr).partition("\n")[0]
