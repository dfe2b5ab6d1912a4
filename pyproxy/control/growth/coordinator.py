"""What is done about the moves. What the mover says, what becomes of the shards and what operators ask come in; orders
to the mover, closed gates, the new map and the journal go out.

    mover     ── Progress ──▶   ┌─ machine m1 ─┐  effects ──▶ mover           (Orders)
    shards    ── phases   ──▶   │  machine m2  │          ──▶ failover's coordinator (gates, owners, the barrier)
    operators ── commands ──▶   └─ ...         ┘          ──▶ store, log

Every decision is a machine's (machine.py, pure). Each move has a task of its own, which takes its events one after
another and carries out what follows from each before the next. One move at a time hands over.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec

from pyproxy import __version__, moves
from pyproxy.access import Access
from pyproxy.control.failover.coordinator import Coordinator
from pyproxy.control.failover.transitions import Answer, Log, PauseAsked, ResumeAsked, Ticked
from pyproxy.control.growth import transitions
from pyproxy.control.growth.machine import HOLD_S, MoveMachine
from pyproxy.control.growth.mover_process import MoverProcess
from pyproxy.control.growth.opening import Opened
from pyproxy.control.growth.plan_file import PlanErrors, read_plan
from pyproxy.control.growth.store import Conflict, Document, NotSaved, StoreError, Unsure
from pyproxy.control.growth.transitions import (
    HANDED_OVER,
    HANDING_OVER,
    OVER,
    AbortAsked,
    AwaitDrained,
    DestinationUnwell,
    Drained,
    Entry,
    HoldWrites,
    MapNotWritten,
    MapWritten,
    MoveEffect,
    MoveEvent,
    MoverLost,
    Phase,
    Quiesce,
    Quiesced,
    QuiesceFailed,
    Record,
    ReleaseWrites,
    SourceUnwell,
    Started,
    Switch,
    Switched,
    TurnGiven,
    WriteMap,
    noticed,
)
from pyproxy.control.health.monitor import HealthMonitor
from pyproxy.control.health.primary import NoPrimary, primary_of
from pyproxy.control.http.admin import (
    MoveAbort,
    MoveCommand,
    MoveForget,
    MovePause,
    MoveResume,
    MoveStart,
    MoveStatus,
    MoveThrottle,
    Refused,
)
from pyproxy.events import Event, emit
from pyproxy.messages import ShardHealth
from pyproxy.moves import Move, MoverSetup, MoveState, Orders, Progress, Task
from pyproxy.shard_map import Shard, ShardMap

MOVER = (sys.executable, "-m", "pyproxy.mover")

SAVE_AGAIN_S = 0.1
"""Until another attempt to write to a store that cannot be written to."""


class MoveControl:
    """One move: its machine, and what is on its way to it."""

    def __init__(self, machine: MoveMachine) -> None:
        self.machine = machine
        self.events: asyncio.Queue[tuple[MoveEvent, asyncio.Future[Answer] | None]] = asyncio.Queue()
        self.asked: asyncio.Future[Answer] | None = None
        self.order: moves.Order | None = None  # what the mover is to do for it
        self.has_turn = False  # it was given to it, and not heard yet
        self.ordered_in = 0  # the version of the Orders since which its task and its servers have been these
        self._timer: asyncio.TimerHandle | None = None

    @property
    def move(self) -> Move:
        return self.machine.move

    def post(self, event: MoveEvent) -> None:
        self.events.put_nowait((event, None))

    def tick_in(self, due: float | None) -> None:
        """Post Ticked then (CLOCK_MONOTONIC, s); None: the time alone changes nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, due - time.monotonic()), self.post, Ticked())

    def __repr__(self) -> str:
        return f"<MoveControl {self.machine}>"


class GrowthCoordinator:
    """All moves of a proxy that has a store."""

    def __init__(self, opened: Opened, failover: Coordinator, monitor: HealthMonitor) -> None:
        self._store = opened.store
        self._document = opened.document
        self._revision = opened.revision
        self._access = Access(opened.config.backend)
        self._failover = failover
        self._monitor = monitor
        self._moves: dict[str, MoveControl] = {}
        self._saving = asyncio.Lock()
        self._starting = asyncio.Lock()
        self._version = 0  # of the orders
        self._bytes_per_s = 0
        self._mover = MoverProcess(MOVER, MoverSetup(opened.config, __version__), self._on_progress, self._on_lost)
        self._tasks: set[asyncio.Task[None]] = set()
        failover.on_changed = self._on_shard_changed

    @staticmethod
    def moving(document: Document) -> set[str]:
        """The shards that have keys of slots on their way from or to them."""
        return {name for entry in document.under_way for name in (entry.move.source, entry.move.destination)}

    # --- the life of it ---

    @contextlib.asynccontextmanager
    async def coordinating(self) -> AsyncIterator[None]:
        """Go on with the moves of the journal, until the block ends."""
        async with asyncio.TaskGroup() as group:
            self._spawn = group.create_task
            self._failover.have_foreign(self.moving(self._document))
            self._start(self._mover.run(), "mover")
            for entry in self._document.under_way:
                self._begin(entry)
            try:
                yield
            finally:
                for task in self._tasks:
                    task.cancel()

    def _start(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = self._spawn(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _begin(self, entry: Entry) -> None:
        control = MoveControl(MoveMachine(entry, time.monotonic()))
        self._moves[entry.move.id] = control
        control.post(Started())
        self._start(self._run(control), f"move {entry.move.id}")

    async def _run(self, control: MoveControl) -> None:
        """One move, from its first event to its last."""
        machine = control.machine
        while machine.phase not in OVER:
            event, asked = await control.events.get()
            if isinstance(event, TurnGiven):
                control.has_turn = False  # its phase says it from the step below on
            control.asked = asked
            for effect in machine.step(event, time.monotonic()):
                await self._carry_out(control, effect)
            control.tick_in(machine.due)
            self._give_turn()
        while not control.events.empty():  # who has asked while it came to its end
            _, asked = control.events.get_nowait()
            if asked is not None:
                asked.set_result(Answer(False, f"{control.move.id} is {machine.phase.value}"))
        self._follow()

    # --- what comes in ---

    def _on_progress(self, progress: Progress) -> None:
        for each in progress.moves:
            control = self._moves.get(each.id)
            is_of_now = control is not None and control.order is not None and each.of >= control.ordered_in
            if control is not None and is_of_now:
                for event in noticed(each):
                    control.post(event)

    def _on_lost(self) -> None:
        for control in self._under_way:
            control.post(MoverLost())

    def _on_shard_changed(self, shard: str) -> None:
        """It has left `healthy`, is healthy again, or has another primary, to which no order has been made yet."""
        why, (_, epoch) = self._failover.trouble(shard), self._failover.primary(shard)
        changed = why or f"has another primary, of epoch {epoch}"
        for control in self._under_way:
            move, order = control.move, control.order
            if shard == move.source and (why or (order is not None and order.source_epoch != epoch)):
                control.post(SourceUnwell(changed))
            if shard == move.destination and (why or (order is not None and order.destination_epoch != epoch)):
                control.post(DestinationUnwell(changed))
        self._give_turn()

    @property
    def _under_way(self) -> list[MoveControl]:
        return [control for control in self._moves.values() if control.machine.phase not in OVER]

    def _give_turn(self) -> None:
        """To the first move that is ready, if no other one hands over and its shards are healthy."""
        if any(control.has_turn or control.machine.phase in HANDING_OVER for control in self._under_way):
            return
        for control in self._under_way:
            move = control.move
            is_ready = control.machine.phase is Phase.READY and control.events.empty()
            if is_ready and not self._failover.trouble(move.source) and not self._failover.trouble(move.destination):
                control.has_turn = True
                control.post(TurnGiven())
                return

    # --- what follows ---

    async def _carry_out(self, control: MoveControl, effect: MoveEffect) -> None:
        move = control.move
        match effect:
            case transitions.Order(task, sync):
                self._order(control, task, sync)
            case HoldWrites(shard):
                self._failover.hold_writes(shard)
            case ReleaseWrites(shard):
                self._failover.release_writes(shard)
            case Quiesce(attempt):
                self._start(self._quiesce(control, attempt), f"quiet {move.source}")
            case WriteMap(entry):
                self._start(self._write_map(control, entry), f"map of {move.id}")
            case Switch():
                self._start(self._switch(control), f"switch {move.id}")
            case AwaitDrained():
                self._start(self._await_drained(control), f"drain {move.source}")
            case Record(entry):
                await self._record(entry)
            case Log(event, fields):
                emit(event, **fields)
            case Answer() if control.asked is not None and not control.asked.done():
                control.asked.set_result(effect)

    def _order(self, control: MoveControl, task: Task | None, sync: int) -> None:
        """Have the mover do this for a move, at the primaries of now; None: nothing."""
        before, control.order = control.order, None
        if task is not None:
            source, source_epoch = self._failover.primary(control.move.source)
            destination, destination_epoch = self._failover.primary(control.move.destination)
            entry = control.machine.entry
            control.order = moves.Order(
                control.move, task, source, source_epoch, destination, destination_epoch, sync, entry.replace,
                entry.accept_eviction,
            )  # fmt: skip
        if before is None or control.order is None or msgspec.structs.replace(before, sync=sync) != control.order:
            control.ordered_in = self._version + 1
        self._send_orders()

    def _send_orders(self) -> None:
        """All that the mover is to do. What is paused is only followed."""
        self._version += 1
        orders = [control.order for control in self._under_way if control.order is not None]
        paused = any(control.machine.paused for control in self._under_way)
        self._mover.order(Orders(self._version, orders, self._bytes_per_s, paused), needed=bool(self._under_way))

    async def _quiesce(self, control: MoveControl, attempt: int) -> None:
        why = await self._failover.until_quiesced(control.move.source, HOLD_S)
        control.post(QuiesceFailed(attempt, f"{why} after {HOLD_S:g} s") if why else Quiesced(attempt))

    async def _switch(self, control: MoveControl) -> None:
        await self._failover.give_slots(self._document.shards, control.move.destination)
        self._follow()
        control.post(Switched())

    async def _await_drained(self, control: MoveControl) -> None:
        await self._failover.until_drained(control.move.source)
        control.post(Drained())

    def _follow(self) -> None:
        """Have the keys of each server judged by the map of now."""
        moving = self.moving(self._document)
        self._monitor.follow(ShardMap(self._document.generation, self._document.shards), moving)
        self._failover.have_foreign(moving)

    # --- the store ---

    async def _write_map(self, control: MoveControl, entry: Entry) -> None:
        """Until it is known whether it is written: a map that may be written must not be given up."""
        async with self._saving:
            try:
                why = await self._try_to_save(self._document.handed_over(entry, time.time()))
            except StoreError as exc:  # the slots are not the source's: nothing was saved
                why = str(exc)
        control.post(MapNotWritten(why) if why else MapWritten())

    async def _record(self, entry: Entry) -> None:
        await self._save(lambda document: document.with_entry(entry, time.time()))

    async def _save(self, change: Callable[[Document], Document]) -> None:
        """Until it is written: what follows may only be done when it is. Others may try meanwhile: a map that cannot be
        written is to be given up at once, as writes of clients are held for it."""
        told = ""
        while True:
            async with self._saving:
                why = await self._try_to_save(change(self._document))
            if not why:
                return
            if why != told:
                emit(Event.STORE_FAILED, store=self._store.where, why=why)
            told = why
            await asyncio.sleep(SAVE_AGAIN_S)

    async def _try_to_save(self, document: Document) -> str:
        """Why nothing was saved; empty: it is. Until it is known which."""
        while True:
            try:
                self._revision = await self._store.save(document, self._revision)
            except (Conflict, NotSaved) as exc:
                return str(exc)
            except Unsure as exc:
                emit(Event.STORE_FAILED, store=self._store.where, why=exc)
                await asyncio.sleep(SAVE_AGAIN_S)
                continue
            self._saved(document)
            return ""

    def _saved(self, document: Document) -> None:
        self._document = document
        self._failover.store_generation = document.generation

    # --- what operators ask ---

    async def do(self, command: MoveCommand) -> str:
        """What was done. Raises Refused."""
        match command:
            case MoveStart(plan, replace, accept_eviction):
                return await self.start(plan, replace, accept_eviction)
            case MoveStatus():
                return self.status()
            case MovePause():
                return await self._ask(self._under_way, PauseAsked())
            case MoveResume():
                return await self._ask(self._under_way, ResumeAsked())
            case MoveThrottle(bytes_per_s):
                return self.throttle(bytes_per_s)
            case MoveAbort(ident):
                return await self.abort(ident)
            case MoveForget(shard):
                return await self.forget(shard)

    async def start(self, plan: str, replace: bool, accept_eviction: bool) -> str:
        """Begin the moves of a plan -> their ids. Raises Refused."""
        async with self._starting:
            return await self._begin_all(plan, replace, accept_eviction)

    async def _begin_all(self, plan: str, replace: bool, accept_eviction: bool) -> str:
        if under_way := [entry.move.id for entry in self._document.under_way]:
            raise Refused(f"expected no moves under way, got {', '.join(under_way)}; wait for them, or abort them")
        try:
            wanted = read_plan(plan.encode())
            if not wanted.moves:
                raise Refused("expected a plan with moves, got none")
            added = self._document.without_known(wanted.added)
            if left := {shard.name for shard in added} & {shard.name for shard in self._failover.shards}:
                raise Refused(f"expected shards of new names, got {', '.join(left)}, which a restart lets go of first")
            taken = {entry.move.id for entry in self._document.journal}
            entries, number = [], 0
            for each in wanted.moves:
                while f"m{(number := number + 1)}" in taken:
                    pass
                move = Move(f"m{number}", each.source, each.destination, each.slots)
                entries.append(Entry(move=move, replace=replace, accept_eviction=accept_eviction))
            self._document.with_moves(entries, time.time(), added)  # raises for what cannot be
        except (StoreError, PlanErrors) as exc:
            raise Refused("; ".join(str(exc).splitlines())) from None
        await self._reach(added)
        await self._save(lambda document: document.with_moves(entries, time.time(), added))
        self._follow()
        for shard in added:
            self._failover.add(msgspec.structs.replace(shard, slots=()))
        for entry in entries:
            self._begin(entry)
        begun = f"{', '.join(entry.move.id for entry in entries)}: begun; `pyproxy move status` shows how far they are"
        forget = "".join(f"; `pyproxy move forget {name}` when they are done" for name in wanted.removed)
        return begun + forget

    async def forget(self, shard: str) -> str:
        """Take a shard without slots out of the store. Raises Refused."""
        async with self._starting:  # no move to it begins meanwhile
            try:
                self._document.without_shard(shard)  # raises for what cannot be
            except StoreError as exc:
                raise Refused(str(exc)) from None
            await self._save(lambda document: document.without_shard(shard))
        return f"{shard} is not in the store any more; this process lets go of its servers when it is started again"

    async def _reach(self, added: list[Shard]) -> None:
        """From the moment it is added a shard is asked what all shards are asked, such as DBSIZE. Raises Refused."""
        for shard in added:
            try:
                await primary_of(shard, self._access)
            except NoPrimary as exc:
                raise Refused(f"expected a new shard that can be used, got: {exc}") from None

    def status(self) -> str:
        """JSON, on one line: all moves of the journal, newest last."""
        return msgspec.json.encode([self._shown(entry) for entry in self._document.journal]).decode()

    @property
    def states(self) -> list[MoveState]:
        """Of the moves that are under way."""
        return [_state(control.machine) for control in self._under_way]

    def _shown(self, entry: Entry) -> dict[str, object]:
        control = self._moves.get(entry.move.id)
        machine = control.machine if control is not None else None
        # a move is over once that is written: until then no other one can begin
        is_ahead = machine is not None and machine.phase in OVER and entry.phase not in OVER
        now = machine.entry if machine is not None and not is_ahead else entry
        progress = machine.progress if machine is not None else None
        return {
            "id": entry.move.id,
            "source": entry.move.source,
            "destination": entry.move.destination,
            "slots": sum(last - first + 1 for first, last in entry.move.slots),
            "phase": now.phase.value,
            "why": now.why,
            "paused": now.paused,
            "keys": progress.keys if progress is not None else 0,
            "keys_done": progress.keys_done if progress is not None else 0,
            "dirty": progress.dirty if progress is not None else 0,
            "error": progress.error if progress is not None else "",
            "copied_keys": now.totals.keys,
            "copied_bytes": now.totals.bytes,
            "restarts": now.totals.restarts,
            "attempts": now.totals.attempts,
            "longest_hold_ms": round(now.totals.longest_hold_s * 1000, 1),
            "alarm": machine.alarm if machine is not None else "",
            "times": entry.times,
        }

    def throttle(self, bytes_per_s: int) -> str:
        """0: as fast as the servers bear."""
        self._bytes_per_s = bytes_per_s
        self._send_orders()
        return f"moves copy at most {bytes_per_s} bytes a second" if bytes_per_s else "moves copy as fast as they may"

    async def abort(self, ident: str) -> str:
        """One move, or all (empty) that have not handed over. Raises Refused."""
        if ident:
            control = self._moves.get(ident)
            if control is None or control not in self._under_way:
                raise Refused(f"expected a move that is under way, got {ident}")
            return await self._ask([control], AbortAsked())
        may = [each for each in self._under_way if each.machine.phase not in HANDED_OVER]
        return await self._ask(may, AbortAsked())

    async def _ask(self, controls: list[MoveControl], event: MoveEvent) -> str:
        if not controls:
            raise Refused("expected a move under way, got none")
        asked = []
        for control in controls:
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            control.events.put_nowait((event, answer))
            asked.append(answer)
        answers = await asyncio.gather(*asked)
        self._send_orders()
        if not any(answer.done for answer in answers):
            raise Refused("; ".join(answer.text for answer in answers))
        return "; ".join(answer.text for answer in answers)

    def complete(self, health: ShardHealth) -> ShardHealth:
        """The health of a shard, with what an operator must know of its moves."""
        alarms = tuple(
            f"move {control.move.id}: {control.machine.alarm}"
            for control in self._moves.values()
            if control.machine.alarm and health.name in (control.move.source, control.move.destination)
        )
        return msgspec.structs.replace(health, alarms=(*health.alarms, *alarms)) if alarms else health

    def __repr__(self) -> str:
        return f"<GrowthCoordinator {list(self._moves.values())}>"


def _state(machine: MoveMachine) -> MoveState:
    move, progress, phase = machine.move, machine.progress, machine.phase.value
    keys, done = (progress.keys, progress.keys_done) if progress is not None else (0, 0)
    share, hold_ms = moves.share(phase, keys, done), machine.totals.longest_hold_s * 1000
    return MoveState(move.id, move.source, move.destination, phase, round(share, 3), machine.paused, round(hold_ms, 1))
