"""A bare lane: between clients and shards that are only lists of bytes, in one process and without a socket."""

from __future__ import annotations

from asyncio import AbstractEventLoop, BaseTransport
from collections.abc import Callable
from functools import cache
from typing import Any, cast

from protocol import table
from pyproxy.config import Config
from pyproxy.metrics import Page
from pyproxy.shard_map import format_slots, split_slots
from pyproxy.slices import Slices
from pyproxy.worker.lane import split
from pyproxy.worker.lane.lane import Backend, Client, Lane, Wire
from pyproxy.worker.lane.outcome import Outcome


class Turns:
    """The event loop as the lane sees it: what is to be called in the next turn."""

    def __init__(self) -> None:
        self._soon: list[Callable[[], object]] = []

    def call_soon(self, callback: Callable[[], object]) -> None:
        self._soon.append(callback)

    def turn(self) -> None:
        """One turn; what is asked for in it is for the next one."""
        soon, self._soon = self._soon, []
        for callback in soon:
            callback()

    @property
    def waits(self) -> bool:
        """Whether anything is asked for."""
        return bool(self._soon)

    def settle(self) -> None:
        """As many as are asked for."""
        while self._soon:
            self.turn()


class End:
    """A transport that keeps what it is given; its descriptor takes nothing, so all of it comes here."""

    def __init__(self) -> None:
        self._written: list[bytes] = []
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True

    def write(self, data: bytes) -> None:
        self._written.append(data)

    def pause_reading(self) -> None:
        """Whoever calls `data_received` may go on: what comes is kept."""

    def resume_reading(self) -> None:
        """As before."""

    def take(self) -> bytes:
        """What was written since the last call."""
        written, self._written = self._written, []
        return b"".join(written)

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> Any:
        return self if name == "socket" else ("127.0.0.1", 1)

    def fileno(self) -> int:
        return -1


class Up:
    """A link whose only backend is connected."""

    def __init__(self, lane: Lane, index: int) -> None:
        self.index = index
        self.name = f"s{index}"
        self.node = f"127.0.0.1:{index}"
        self.end = End()
        self._backend = Backend(lane, self, index, 2, 0)
        self.wire = Wire(self._backend, lambda frame: None, lambda why: None)
        self.wire.connection_made(cast(BaseTransport, self.end))
        self.wire.ready()
        self.backends = {(2, 0): self._backend}

    def backend(self, proto: int, db: int) -> Backend:
        return self.backends[proto, db]

    def bulk(self, first: Backend) -> Backend:
        """What is large goes on the same connection: there is no other."""
        return first


def never_dispatched(client: object, route: object, argv: object) -> Outcome:
    raise AssertionError("only commands that stay in the lane are known here")


@cache
def _config(shards: int) -> Config:
    ranges = [format_slots(slots) for slots in split_slots(shards)]
    text = "".join(
        f'[[shards]]\nname = "s{i}"\nprimary = "127.0.0.1:{7000 + i}"\nslots = ["{ranges[i]}"]\n' for i in range(shards)
    )
    return Config.parse(text.encode())


class BareLane:
    """Its clients come by `client`; its shards are `links`, in equal parts of the slots."""

    def __init__(self, shards: int, dispatch: Callable[[Any, Any, Any], Outcome] = never_dispatched) -> None:
        config = _config(shards)
        self.turns = Turns()
        self.lane = Lane(cast(AbstractEventLoop, self.turns), dispatch, Page.create(1).row(0), config, 0, 1)
        split.install(self.lane, Slices(cast(AbstractEventLoop, self.turns)))
        self.lane.set_table(table.TABLE)
        self.links = [Up(self.lane, index) for index in range(shards)]
        self.lane.set_shards(self.links, config.shard_map().owners())

    def client(self) -> tuple[Client, End]:
        """A new one, and what it is sent."""
        client, end = Client(self.lane), End()
        client.connection_made(cast(BaseTransport, end))
        return client, end
