"""What a fault is made to: a fleet of real servers, proxies in front of it, clients, and hops between them.

A scenario says which of these it needs (`Needs`), and gets a `Rig` with all of it running and all clients connected.
The rig knows which shard is the one that suffers (`shard`), makes times shorter by `scale`, notes when the fault
began and ended, and reads in the end what every server holds.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Self

import hiredis
import msgspec

from bench.failover.deciders import decider
from bench.failover.history import Op, State, value_of
from bench.failover.load import CHANNEL, NAMES_PER_PROXY, READY, Plan, Record, packed
from bench.failover.servers import asks, dump, fields, info, place, role_of
from bench.peers import Program, nutcracker_lines
from pyproxy.config import Promotion
from pyproxy.fleet import (
    HOST,
    Fleet,
    FleetError,
    Process,
    Proxy,
    Server,
    Table,
    ask,
    reserve_port,
    wait_until,
)
from tests.faults import Hop

TARGET = 1
"""The index of the shard that suffers."""

NEVER = ("+bug", "+worker-death", "+worker-kill")
"""Events that no fault excuses."""

PATIENCE_S = 40.0  # for what must come in the end
SCALED = ("down_after_s", "misconf_after_s", "hold_again_s", "min_between_s")
"""Options that are times of a fault. How long a promotion takes, and may be waited for, does not scale."""

PEACE_S = 5.0  # before the fault, and
TAIL_S = 3.0  # after it is over; full length
POLL_S = 0.02


# By the first bytes of a connection: a replica begins with a PING, and waits for the answer.
_REPLICA = b"*1\r\n$4\r\nPING\r\n"
WHOM: dict[str, Callable[[bytes], bool]] = {
    "all": lambda first: True,
    "replicas": lambda first: first == _REPLICA,
    "clients": lambda first: first not in (b"", _REPLICA),
}


@dataclass(frozen=True)
class Needs:
    """What a scenario stands on. `promotion`: options that are not as by default."""

    promotion: Mapping[str, int | float | str] = field(default_factory=dict)
    proxies: int = 1
    workers: int = 1
    hops: str = ""  # "primary" or "replicas": which nodes of the shard everybody reaches through one
    cut: str = "all"  # "clients" (and health checks), "replicas": whom a cut in a hop concerns
    fenced: bool = True  # min-replicas-to-write, on every server
    peer: str = "pyproxy"  # or nutcracker


class Rig:
    """A context manager: everything is up inside, nothing is left afterwards."""

    never_logged: tuple[str, ...] = NEVER

    def __init__(self, needs: Needs, scale: float, seed: int, shards: int, rate: float) -> None:
        self.needs = needs
        self.scale = scale
        self.since = 0.0
        self.until = 0.0
        self.problems: list[str] = []
        self.said = ""  # the last error that was answered
        self.never: list[Op] = []  # sent beside the clients, and must stand nowhere
        self.revive: list[Server] = []  # to be started again when the clients have ended
        self.beside: list[Op] = []  # sent beside the clients
        self.record = Record([], [], [])
        self.states: list[State] = []
        self.hops: dict[Server, Hop] = {}
        self.proxies: list[Process] = []
        self.ports: list[int] = []
        self._seed = seed
        self._rate = rate
        self._stack = ExitStack()
        self.decider = decider(str(needs.promotion.get("promoter", "")), needs.fenced)
        self.fleet = Fleet(shards, 2, options=self.decider.options)
        self.shard = self.fleet.shards[min(TARGET, shards - 1)]
        self.servers = [self.shard.primary, *self.shard.replicas]
        self.first_primary = self.shard.primary

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(self.fleet)
            self._start_hops()
            self.decider.start(self._stack, self.fleet, self.hops, self.scale)
            for number in range(self.needs.proxies):
                self._start_proxy(number)
            self._wait_for_replicas()  # only now, as the proxies start meanwhile
            self._start_load()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # --- what a scenario does ---

    def cut(self) -> None:
        """Silently, whom `Needs` says from the nodes that have hops."""
        for hop in self.hops.values():
            hop.part()

    def heal(self) -> None:
        for hop in self.hops.values():
            hop.heal()

    def restart_proxy(self) -> None:
        """kill -9 of the first one's parent; started again when its workers have gone."""
        proxy = self.proxies[0]
        proxy.kill()

        def gone() -> bool:
            return self.try_read() == "ConnectionRefusedError"

        self.wait("the workers to go", gone)
        assert isinstance(proxy, Proxy)
        proxy.start()

    def crowd(self, count: int) -> list[socket.socket]:
        """So many clients more."""
        return [self._stack.enter_context(socket.create_connection((HOST, self.ports[0]), 30)) for _ in range(count)]

    def each_writes(self, crowd: Sequence[socket.socket]) -> list[Op]:
        """One write of each; returns when all are answered."""
        said: list[Op] = []
        for number, wire in enumerate(crowd):
            op = self.op(f"crowd{number}", "RPUSH", self._crowd)
            wire.sendall(packed(op))
            said.append(op)
        for op, wire in zip(said, crowd, strict=True):
            wire.settimeout(PATIENCE_S)
            take(op, wire.recv(4096))
        self.beside += said
        return said

    def leave_held(self) -> None:
        """A client whose write is held leaves after a second."""
        op = self.op("leaver", "RPUSH", self._crowd)
        self.never.append(op)
        with socket.create_connection((HOST, self.ports[0]), 10) as wire:
            wire.sendall(packed(op))
            self.sleep(1)
            wire.setblocking(False)
            with suppress(BlockingIOError):
                self.problems.append(f"a write that was to be held was answered {wire.recv(100)!r}")

    def sleep(self, seconds: float) -> None:
        """So long, at full length."""
        time.sleep(seconds * self.scale)

    def fault_begins(self) -> None:
        """It begins now."""
        self.since = time.monotonic()

    def fault_ends(self) -> None:
        """It ended by now."""
        self.until = time.monotonic()

    def until_written(self) -> None:
        """Until a write to the shard succeeds, through every proxy."""
        for port in self.ports:
            self.wait("a write to succeed", lambda port=port: self.try_write(port) == "OK")  # type: ignore[misc]

    def try_write(self, port: int = 0) -> str:
        """What a write to the shard is answered: OK, or the first word of its error."""
        return self._try(port, "SET", self._spare, str(time.monotonic()))

    def try_read(self, port: int = 0) -> str:
        """What a read of the shard is answered: OK, or the first word of its error."""
        return self._try(port, "GET", self._spare)

    def _try(self, port: int, *argv: str) -> str:
        try:
            ask(port or self.ports[0], *argv, timeout=5.0)
        except (hiredis.ReplyError, OSError) as error:
            self.said = f"{type(error).__name__}: {error}"
            return str(error).split()[0] if isinstance(error, hiredis.ReplyError) else type(error).__name__
        return "OK"

    def wait(self, what: str, done: Callable[[], bool], timeout: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + timeout
        while not done():
            if time.monotonic() > deadline:
                raise FleetError(f"waited {timeout:g} s for {what}; {self.tell()}")
            time.sleep(POLL_S)

    def primaries(self) -> list[Server]:
        """The servers of the shard that hold themselves for its primary."""
        return [each for each in self.servers if role_of(each) == "master"]

    def primary(self) -> Server:
        """The one that clients' writes go to."""
        for each in self.primaries():
            if each.ask("GET", self._spare) is not None:
                return each
        raise FleetError(f"no primary has {self._spare}; {self.tell()}")

    def wait_for_replicas(self, primary: Server, count: int) -> None:
        """Until so many follow it; one that is linked may still hear of nothing for a second, until its first ACK."""

        def follow() -> bool:
            return asks(primary.port, [("PUBLISH", CHANNEL, "x"), ("WAIT", str(count), "100")])[1] == count

        self.wait(f"{primary.name} to have {count} replicas", follow)

    def admin(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`pyproxy WORDS --config ...` of the first proxy."""
        proxy = self.proxies[0]
        assert isinstance(proxy, Proxy)
        argv = [sys.executable, "-m", "pyproxy", *words, "--config", str(proxy.config)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)

    def op(self, client: str, verb: str, key: str) -> Op:
        """A write to the shard beside the clients."""
        return Op(client, 1, self.shard.name, verb, key, value_of(key, client, 1), time.monotonic())

    def tell(self) -> str:
        """Roles, and the ends of the proxies' logs."""
        roles = ", ".join(f"{each.name} {role_of(each)}" for each in self.servers)
        logs = [line for each in self.proxies for line in each.tail(200).splitlines() if "+complaint" not in line]
        return "\n".join([f"roles: {roles}; last error: {self.said}", *logs[-20:]])

    # --- starting ---

    def _start_hops(self) -> None:
        hopped = {"primary": [self.shard.primary], "replicas": self.shard.replicas}.get(self.needs.hops, [])
        for server in hopped:
            hop = self.hops[server] = self._stack.enter_context(Hop(server.port, WHOM[self.needs.cut]))
            self.decider.command(server, "CONFIG", "SET", "replica-announce-port", str(hop.port))
        for replica in self.shard.replicas:  # a primary's name is its hop's, and what a replica announces is said anew
            hop_of_primary = self.hops.get(self.shard.primary)
            if self.hops:
                port = hop_of_primary.port if hop_of_primary else self.shard.primary.port
                self.decider.command(replica, "REPLICAOF", "NO", "ONE")
                self.decider.command(replica, "REPLICAOF", HOST, str(port))
        if self.hops:
            self._wait_for_replicas()  # before Sentinels see them by their names of before

    def _wait_for_replicas(self) -> None:
        for shard in self.fleet.shards:
            self.wait_for_replicas(shard.primary, 2)

    def _start_proxy(self, number: int) -> None:
        if self.needs.peer == "nutcracker":
            self._start_nutcracker()
            return
        proxy = self._new_proxy(number)
        text = proxy.config.read_text()
        for server, hop in self.hops.items():
            text = text.replace(f'"{server.address}"', f'"{hop.address}"')
        proxy.config.write_text(text)
        self.decider.configure(proxy.config)
        self._stack.enter_context(proxy)
        self.proxies.append(proxy)
        self.ports.append(proxy.port)

    def _new_proxy(self, number: int) -> Proxy:
        return Proxy(self.fleet, None, self.needs.workers, **self._tables(number))

    def _tables(self, number: int) -> dict[str, Table | str]:
        """All of its configuration but the shards."""
        promotion, http = self._promotion(number), {"admin": str(self.fleet.directory / f"admin-{number}.sock")}
        return {"promotion": promotion, "http": http, **self.decider.tables(self.scale)}

    def _promotion(self, number: int) -> dict[str, int | float | str]:
        """The table; at full length all that is not said is as it is by default."""
        table: dict[str, int | float | str] = {"promoter": "replicaof", **self.needs.promotion}
        if self.scale != 1:
            table |= {name: round(getattr(Promotion(), name) * self.scale, 4) for name in SCALED}
        table.setdefault("hold_requests", round(2000 * self.scale))
        table.setdefault("state_file", str(self.fleet.directory / f"state-{number}.json"))
        if table["promoter"] == "replicaof":
            table["promote"] = number == 0
        return table

    def _start_nutcracker(self) -> None:
        port, statistics = (self._stack.enter_context(reserve_port()).getsockname()[1] for _ in range(2))
        file = self.fleet.directory / "nutcracker.yml"
        file.write_text("\n".join(nutcracker_lines(port, self.fleet)) + "\n")
        argv = ["nutcracker", "-c", str(file), "-a", HOST, "-s", str(statistics)]
        program = Program("nutcracker", argv, self.fleet.directory)
        program.launch()
        self._stack.callback(program.stop)
        self.proxies.append(program)
        self.ports.append(port)
        wait_until("nutcracker to answer", lambda: self._try(port, "GET", "hello") == "OK", program.tail)

    def _start_load(self) -> None:
        self._out = self.fleet.directory / "record"
        plan = Plan(
            ports=self.ports,
            names=self._place(),
            nodes=self._fenced(),
            churned=self._churned(),
            out=str(self._out),
            rate=self._rate / self.needs.proxies,
            batches=4.0 / self.needs.proxies,
            echo=self.needs.peer != "nutcracker",
            patience_s=15.0,
            seed=self._seed,
        )
        file = self.fleet.directory / "plan.json"
        file.write_bytes(msgspec.json.encode(plan))
        argv = [sys.executable, "-m", "bench.failover.load", str(file)]
        self._load = Program("load", argv, self.fleet.directory)
        self._load.launch()
        self._stack.callback(self._load.stop)
        wait_until("all clients to be connected", lambda: READY in self._load.tail(), self._load.tail)
        self.sleep(PEACE_S)

    def _place(self) -> dict[str, list[str]]:
        """Keys for the clients, by shard."""
        wanted = NAMES_PER_PROXY * self.needs.proxies
        names = place(self.ports[0], self.fleet, wanted + 2)
        self._spare, self._crowd = names[self.shard.name][wanted:]
        return {shard: found[:wanted] for shard, found in names.items()}

    def _fenced(self) -> dict[str, list[int]]:
        """The ports of the nodes that are asked what their replicas have, by shard."""
        return {self.shard.name: [each.port for each in self.servers]}

    def _churned(self) -> list[tuple[str, str]]:
        """Shards, and keys that one more client writes to."""
        return []

    # --- ending ---

    def finish(self) -> None:
        """The clients end; `record` and `states` are there afterwards."""
        self.sleep(TAIL_S)
        with_writes = self.try_write() == "OK"
        self._end_load()
        self._read_states(with_writes)

    def _end_load(self) -> None:
        self._load.terminate()
        self._load.join(PATIENCE_S)
        if not self._out.exists():
            raise FleetError(f"the clients left no record: {self._load.tail()}")
        self.record = msgspec.msgpack.decode(self._out.read_bytes(), type=Record)
        self.record.ops += self.beside
        for proxy in self.proxies:
            self.problems += [line for line in proxy.tail(10_000).splitlines() if line.startswith(self.never_logged)]

    def _read_states(self, with_writes: bool) -> None:
        for server in self.servers:
            if server.running:
                server.resume()
        for server in self.revive:
            server.start()
        truth = self.primary() if with_writes else self._furthest()
        for shard in self.fleet.shards:
            for server in (shard.primary, *shard.replicas):
                if server.running:
                    is_primary = server is (truth if shard is self.shard else shard.primary)
                    self.states.append(State(shard.name, server.address, is_primary, dump(server.port)))

    def _furthest(self) -> Server:
        """Where nothing can be written in the end: the server that has most."""

        def offset(server: Server) -> int:
            said = fields(info(server, "replication"))
            return int(said.get("slave_repl_offset", said["master_repl_offset"]))

        return max((each for each in self.servers if each.running), key=offset)


def take(op: Op, data: bytes) -> None:
    """The answer to it."""
    op.answered_at = time.monotonic()
    reader = hiredis.Reader()
    reader.feed(data)
    reply = reader.gets()
    if isinstance(reply, int) and reply is not False:
        op.reply = reply
    elif isinstance(reply, hiredis.ReplyError):
        op.error = str(reply)
    else:
        op.answered_at, op.error = 0.0, f"got {data!r}"
