"""What a fault is made to while slots move: a fleet, as many shards again or more that join it, a proxy with a store.

The plan is what `pyproxy plan --add` proposes. The shards of the load are the ways that keys take in it, as `s0>s2`; of
keys that stay, the name of their shard. So the checker (history.py) knows nothing of moves: where a way ends is where
its keys must be in the end.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from bench.failover.ballast import Ballast
from bench.failover.history import Op, State, value_of
from bench.failover.load import CHANNEL, DEPTH, NAMES_PER_PROXY, packed
from bench.failover.rig import NEVER, Needs, Rig, take
from bench.failover.servers import asks, dump, info
from pyproxy.control.growth.plan_file import read_plan
from pyproxy.control.growth.transitions import OVER
from pyproxy.control.http.admin import MoveCommand, MoveStart, MoveStatus, MoveThrottle, Refused, ask
from pyproxy.fleet import FENCED, HOST, Fleet, FleetError, LiveShard, Proxy, Server, Table
from pyproxy.hashing import SLOTS, slot
from pyproxy.shard_map import split_slots
from tests.processes import command_line, family

ANSWER_S = 10.0
MOVED_S = 90.0
"""How long the moves of a run may take on a machine that does much else."""

DOWN_AFTER_S = 1.0
"""The least, whatever the scale."""

WATCH_S = 0.002
THROTTLE = 150_000
"""Bytes a second: the ballast takes many seconds then, so that a move is seen to copy."""

CHURNED = 20 * DEPTH
NEVER_OF_MOVES = ("-mover", "+stray-keys", "+stray-write", "+move-stray")
PROCESSES = {"mover": "pyproxy.mover", "worker": "pyproxy.worker"}

Move = dict[str, Any]


class MoveRig(Rig):
    """`added`: how many shards join. `keys`: of the ballast, in each database. `proxy`: to be run in place of it."""

    def __init__(
        self, needs: Needs, scale: float, seed: int, shards: int, rate: float, added: int, keys: int,
        proxy: type[Proxy] = Proxy,
    ) -> None:  # fmt: skip
        super().__init__(needs, scale, seed, shards, rate)
        self.joining = Fleet(added, 2, options=[*self.decider.options, *(FENCED if needs.fenced else ())])
        self.shards: dict[str, LiveShard] = {each.name: each for each in self.fleet.shards}
        self.shards |= {f"n{number}": each for number, each in enumerate(self.joining.shards)}
        self.hit: list[str] = []  # which phases the moves were in when the fault was made
        self.suffering: set[str] = set()  # shards whose servers something is done to
        self.moves: list[Move] = []  # as status says in the end
        self._proxy_type = proxy
        self._keys = keys
        self._destination = ""
        self._plan = self.fleet.directory / "plan.toml"
        self._way_of_slot: list[str] = []
        self._seen = 0  # bytes of the log, by `until_logged`

    # --- starting ---

    def _new_proxy(self, number: int) -> Proxy:
        return self._proxy_type(self.fleet, None, self.needs.workers, **self._tables(number))

    def _tables(self, number: int) -> dict[str, Table | str]:
        store = {"store": f"file:{self.fleet.directory / 'map.json'}", "transactions": "split"}
        return {**super()._tables(number), **store}

    def _promotion(self, number: int) -> dict[str, int | float | str]:
        """A server that a busy machine keeps from answering is not down yet: without a fault there is no error."""
        table = super()._promotion(number)
        if self.scale != 1:
            table["down_after_s"] = max(DOWN_AFTER_S, float(table["down_after_s"]))
        return table

    def _wait_for_replicas(self) -> None:
        self._stack.enter_context(self.joining)
        for shard in self.shards.values():
            self.wait_for_replicas(shard.primary, 2)

    def _start_load(self) -> None:
        large = int(10_000_000 * min(1.0, self.scale))
        self.ballast = Ballast(self.ports[0], self._keys, large)
        self.ballast.write()
        self._write_plan()
        self.ballast.write_large()  # only now, or the plan leaves its shard nothing else
        super()._start_load()

    def _write_plan(self) -> None:
        adds = []
        for name, shard in self.shards.items():
            if shard not in self.fleet.shards:
                adds += ["--add", f"{name}={','.join(f'{HOST}:{each.port}' for each in shard.servers)}"]
        done = self.admin("plan", *adds)
        if done.returncode:
            raise FleetError(f"pyproxy plan: {done.stdout}{done.stderr}")
        self._plan.write_text(done.stdout)
        plan = read_plan(done.stdout.encode())
        self._destination = next(move.destination for move in plan.moves if move.source == self.shard.name)
        owner = [""] * SLOTS
        for shard, (first, last) in zip(self.fleet.shards, split_slots(len(self.fleet.shards)), strict=True):
            owner[first : last + 1] = [shard.name] * (last + 1 - first)
        for move in plan.moves:
            for first, last in move.slots:
                owner[first : last + 1] = [f"{move.source}>{move.destination}"] * (last + 1 - first)
        self._way_of_slot = owner

    def _place(self) -> dict[str, list[str]]:
        wanted = NAMES_PER_PROXY * self.needs.proxies
        found: dict[str, list[str]] = defaultdict(list)
        for number in range(wanted * 100 * len(set(self._way_of_slot))):
            found[self._way(f"n{number}")].append(f"n{number}")
        (self._spare, *_) = found[self.shard.name][wanted:]
        self._moved = next(names for way, names in found.items() if way.startswith(f"{self.shard.name}>"))[wanted]
        return {way: names[:wanted] for way, names in sorted(found.items()) if len(names) >= wanted}

    def _fenced(self) -> dict[str, list[int]]:
        """A write may have been executed at either end of its way."""
        ends = {way: [self.shards[name] for name in way.split(">")] for way in set(self._way_of_slot)}
        return {way: [node.port for end in found for node in end.servers] for way, found in ends.items()}

    def _churned(self) -> list[tuple[str, str]]:
        return [(self._way(f"c{number}"), f"c{number}") for number in range(CHURNED)]

    def _way(self, name: str) -> str:
        return self._way_of_slot[slot(name.encode())]

    # --- what a scenario does ---

    @property
    def source(self) -> LiveShard:
        return self.shard

    @property
    def destination(self) -> LiveShard:
        return self.shards[self._destination]

    def ask_proxy(self, command: MoveCommand) -> str:
        """The first proxy, as `pyproxy move` does. Raises Refused."""
        answer = ask(str(self.fleet.directory / "admin-0.sock"), command, ANSWER_S)
        if not answer.done:
            raise Refused(answer.line)
        return answer.line

    def status(self) -> list[Move]:
        """As of `pyproxy move status --json`."""
        found: list[Move] = msgspec.json.decode(self.ask_proxy(MoveStatus()))
        return found

    def start_moves(self) -> None:
        self.ask_proxy(MoveStart(self._plan.read_text()))

    def throttle(self, bytes_per_s: int = THROTTLE) -> None:
        self.ask_proxy(MoveThrottle(bytes_per_s))

    def until_phase(self, *phases: str) -> None:
        """Until a move is in one of these."""

        def seen() -> bool:
            moves = self.status()
            if moves and all(each["phase"] in {phase.value for phase in OVER} for each in moves):
                raise FleetError(f"expected a move to be {' or '.join(phases)}, got {moves}")
            return any(each["phase"] in phases for each in moves)

        self.watch(f"a move to be {' or '.join(phases)}", seen)

    def watch(self, what: str, done: Callable[[], bool]) -> None:
        """As `wait`, but it looks so often that a phase of a move is hardly missed."""
        deadline = time.monotonic() + MOVED_S
        while not done():
            if time.monotonic() > deadline:
                raise FleetError(f"waited {MOVED_S:g} s for {what}; {self.tell()}")
            time.sleep(WATCH_S)

    def until_logged(self, *events: str) -> str:
        """Until one of these is logged that was not when it was asked for before -> its line."""
        found: list[str] = []

        def logged() -> bool:
            with self.log.open("rb") as file:
                file.seek(self._seen)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._seen += len(line)
                    if line.decode(errors="replace").split(" ", 1)[0].strip() in events:
                        found.append(line.decode(errors="replace"))
                        break
            return bool(found)

        self.watch(f"{' or '.join(events)} to be logged", logged)
        return found[0]

    def write_to_moved(self) -> None:
        """Some writes beside the clients', to keys that have moved from the source."""
        for client in (f"mover{number}" for number in range(8)):  # so many that each worker has some
            op = Op(client, 1, self._way(self._moved), "RPUSH", self._moved, value_of(self._moved, client, 1), 0.0)
            op.sent_at = time.monotonic()
            with socket.create_connection((HOST, self.ports[0]), 10) as wire:
                wire.sendall(packed(op))
                take(op, wire.recv(4096))
            self.beside.append(op)

    def note_hit(self) -> None:
        """The fault is made now: which phases does it find?"""
        self.hit = sorted({each["phase"] for each in self.status()})

    def until_over(self) -> None:
        """Until all moves are."""
        over = {phase.value for phase in OVER}

        def ended() -> bool:
            try:
                self.moves = self.status()
            except (OSError, ValueError):
                return False
            return bool(self.moves) and all(each["phase"] in over for each in self.moves)

        self.wait("all moves to be over", ended, MOVED_S)

    def process(self, kind: str) -> int:
        """The pid of the mover, or of a worker."""
        proxy = self.proxies[0]
        for pid, _ in sorted(family(proxy.pid)):
            if PROCESSES[kind] in command_line(pid):
                return pid
        raise FleetError(f"expected a {kind}, got none; {self.tell()}")

    def kill_process(self, kind: str) -> None:
        os.kill(self.process(kind), signal.SIGKILL)

    def stop_process(self, kind: str) -> int:
        """Its pid; for `resume_process`."""
        pid = self.process(kind)
        os.kill(pid, signal.SIGSTOP)
        return pid

    def resume_process(self, pid: int) -> None:
        with suppress(ProcessLookupError):  # the parent may have ended it
            os.kill(pid, signal.SIGCONT)

    def when_it_answers(self, command: MoveCommand) -> None:
        """Ask it, when a proxy that was restarted can be asked. That nothing is under way any more is no refusal."""

        def answered() -> bool:
            with suppress(Refused):
                try:
                    self.ask_proxy(command)
                except (OSError, ValueError):
                    return False
            return True

        self.wait("the proxy to be asked", answered)

    @property
    def log(self) -> Path:
        proxy = self.proxies[0]
        return self.fleet.directory / f"{proxy.name}.log"

    def primary_of(self, shard: LiveShard) -> Server:
        """The one that says it is, when there is one."""
        found: list[Server] = []

        def one() -> bool:
            found[:] = [each for each in shard.servers if each.running and each.says_master()]
            return len(found) == 1

        self.wait(f"{shard.name} to have one primary", one)
        return found[0]

    def suffers(self, shard: LiveShard) -> None:
        self.suffering |= {name for name, each in self.shards.items() if each is shard}

    def name_of(self, shard: LiveShard) -> str:
        return next(name for name, each in self.shards.items() if each is shard)

    @property
    def ways(self) -> dict[str, set[str]]:
        """Which shards each way of keys touches."""
        return {way: set(way.split(">")) for way in set(self._way_of_slot)}

    def owner(self, way: str) -> str:
        """Where its keys must be in the end."""
        source, _, destination = way.partition(">")
        done = any((each["source"], each["destination"], each["phase"]) == (source, destination, "done")
                   for each in self.moves)  # fmt: skip
        return destination if done else source

    def tell(self) -> str:
        try:
            moves = [(each["id"], each["phase"], each["why"], each["error"]) for each in self.status()]
        except (OSError, ValueError, Refused) as error:
            return f"moves: {error!r}; {super().tell()}"
        return f"moves: {moves}; {super().tell()}"

    # --- ending ---

    def finish(self) -> None:
        self.until_over()
        super().finish()
        self._check_placement()
        self._check_ballast()

    def _check_placement(self) -> None:
        done = self.admin("verify", "--misplaced")
        if done.returncode or not done.stdout.endswith("0 misplaced keys\n"):
            self.problems.append(f"pyproxy verify --misplaced: {(done.stdout + done.stderr)[-500:]}")

    def _check_ballast(self) -> None:
        found = self.ballast.differences()
        self.problems += [f"{len(found)} keys of the ballast are not as they were written: {found[0]}"] if found else []

    def _read_states(self, with_writes: bool) -> None:
        for shard in self.shards.values():
            for server in shard.servers:
                if server.running:
                    server.resume()
        for name, shard in self.shards.items():
            truth = self.primary_of(shard)
            following = b"connected_slaves:%d" % sum(each.running and each is not truth for each in shard.servers)
            self.wait(f"the replicas of {name}", lambda t=truth, f=following: f in info(t, "replication"))  # type: ignore[misc]
            asks(truth.port, [("PUBLISH", CHANNEL, "x"), ("WAIT", "2", "1000")])
            for server in shard.servers:
                if server.running:
                    self._read_state(name, server, server is truth)

    def _read_state(self, name: str, server: Server, is_primary: bool) -> None:
        """By way; what must not be here stays under the name of the shard, for the checker to find."""
        by_way: dict[str, dict[str, str | list[str]]] = defaultdict(dict)
        for way in self.ways:
            if self.owner(way) == name:
                by_way[way] = {}
        for key, value in dump(server.port, "[nc]*").items():
            way = self._way(key)
            by_way[way if self.owner(way) == name else f"{name}, wrongly,"][key] = value
        self.states += [State(way, server.address, is_primary, keys) for way, keys in by_way.items()]


def never_logged(but: Collection[str]) -> tuple[str, ...]:
    """The beginnings of lines that no fault excuses, but these."""
    return tuple(f"{each} " for each in (*NEVER, *NEVER_OF_MOVES) if each not in but)
