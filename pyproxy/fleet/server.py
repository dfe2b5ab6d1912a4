"""Real Redis servers: primaries with their replicas, and the configuration that tells a proxy about them."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import hiredis

from pyproxy.fleet.binary import find_backend
from pyproxy.fleet.process import HOST, STOP_S, ListeningProcess, Managed, ask, wait_until
from pyproxy.shard_map import format_slots, split_slots

FENCED = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "2")
"""Options by which a server whose replicas have left takes no writes. With one replica each it refuses all of them
after a promotion, until the old primary is a replica: that takes two."""

Value = int | float | str | Sequence[str]
Table = Mapping[str, Value]
"""A table of the proxy's configuration. JSON writes a number, a truth, a plain text or a list as TOML does."""


class Server(ListeningProcess):
    """One Redis server on a port of its own, without persistence; a replica if `primary` is given."""

    def __init__(
        self, name: str, binary: str, directory: Path, primary: Server | None = None, options: Sequence[str] = ()
    ) -> None:
        super().__init__(name, directory / f"{name}.log")
        self.primary = primary
        self._binary = binary
        self._directory = directory
        self._options = tuple(options)

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


class Fleet(Managed):
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

    close = stop

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
