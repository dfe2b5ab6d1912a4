"""The proxy with one fault of its own in how it moves slots: `python -m tests.e2e.failover.spoiled FAULT ...`, in place
of `python -m pyproxy ...` and, for its mover, of `python -m pyproxy.mover ...`. A checker that does not go red with it
is blind."""

import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pyproxy import cli
from pyproxy.control.growth import coordinator
from pyproxy.control.growth.coordinator import GrowthCoordinator, MoveControl
from pyproxy.control.growth.transitions import Entry, MapWritten, Phase
from pyproxy.control.process.supervisor import Supervisor
from pyproxy.fleet import Proxy
from pyproxy.messages import Applied, Message, Topology
from pyproxy.mover import copying, main
from pyproxy.mover.copier import Batch, Copier
from pyproxy.mover.dirty import Mark
from pyproxy.mover.feed import Feed

PATCH = pytest.MonkeyPatch()
LAG_S = 1.0
AWAY_S = 0.05


class Late(Copier):
    """A name leaves the dirty set when its RESTORE is answered, not when its DUMP is sent. To have that seen on a fast
    machine, too, the answers are far away."""

    def _on_sent(self, _batch: Batch) -> Mapping[bytes, Mark]:
        return {}

    async def _finish(self, number: int, batch: Batch, marks: Mapping[bytes, Mark], dumped: Any) -> None:
        await asyncio.sleep(AWAY_S)
        await super()._finish(number, batch, marks, dumped)
        self._dirty.sent(batch.names)


def mark_cleared_on_the_answer() -> None:
    PATCH.setattr(copying, "Copier", Late)


class Forgetful(Feed):
    """Of the pushes with names in the slots, one in a thousand is dropped."""

    def __init__(self, wanted: bytes, on_names: Callable[[list[bytes]], None], *others: Callable[[], None]) -> None:
        super().__init__(wanted, self._hear, *others)
        self._hears = on_names
        self._count = 0

    def _hear(self, names: list[bytes]) -> None:
        self._count += 1
        if self._count % 1000:
            self._hears(names)


def push_dropped() -> None:
    PATCH.setattr(copying, "Feed", Forgetful)


def last_worker_not_waited_for() -> None:
    """The slots change hands before the last worker says that it holds their writes, and that it knows the owner. To
    have that seen, it is told late."""
    broadcast, laggards = Supervisor.broadcast, Supervisor._laggards

    def tell_the_last_late(self: Supervisor, message: Message) -> None:
        last = max(self._workers, default=0)
        channel = self._workers[last].channel if last else None
        if not isinstance(message, Topology) or channel is None:
            broadcast(self, message)
            return
        for index, worker in self._workers.items():
            if index != last and worker.channel is not None:
                worker.channel.send(message)
        asyncio.get_running_loop().call_later(LAG_S, channel.send, message)

    async def all_but_the_last(self: Supervisor, is_late: Callable[[Applied], bool], deadline_s: float) -> list[int]:
        last = self._workers[max(self._workers)]
        return await laggards(self, lambda applied: applied is not last.applied and is_late(applied), deadline_s)

    PATCH.setattr(Supervisor, "broadcast", tell_the_last_late)
    PATCH.setattr(Supervisor, "_laggards", all_but_the_last)


def map_written_after_the_switch() -> None:
    save = GrowthCoordinator._save

    async def say_so(self: GrowthCoordinator, control: MoveControl, entry: Entry) -> None:
        self._saved(self._document.handed_over(entry, 0.0))
        control.post(MapWritten())

    async def late(self: GrowthCoordinator, change: Any) -> None:
        if any(control.machine.phase is Phase.DRAINING for control in self._under_way):
            await asyncio.Event().wait()  # so late that the parent has been killed by then
        await save(self, change)

    PATCH.setattr(GrowthCoordinator, "_write_map", say_so)
    PATCH.setattr(GrowthCoordinator, "_save", late)


FAULTS = {
    each.__name__: each
    for each in (mark_cleared_on_the_answer, push_dropped, last_worker_not_waited_for, map_written_after_the_switch)
}


def spoiled(fault: Callable[[], None]) -> type[Proxy]:
    """A proxy that has this fault."""

    class Spoiled(Proxy):
        def command(self) -> list[str]:
            return [sys.executable, "-m", __name__, fault.__name__, "serve", str(self.config)]

    return Spoiled


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    if rest[0] == "--channel-fd":
        FAULTS[name]()
        main.serve(int(rest[1]))
    else:
        served_before = Path(rest[-1]).with_suffix(".served")
        if not served_before.exists():  # one that is started again is well, and shows what became of it
            served_before.touch()
            FAULTS[name]()
        PATCH.setattr(coordinator, "MOVER", (sys.executable, "-m", "tests.e2e.failover.spoiled", name))
        sys.exit(cli.main(rest))
