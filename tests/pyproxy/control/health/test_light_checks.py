"""Checks without a task: what one costs, what it must not take upon itself, and what ends it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import hiredis
import msgspec
import pytest

from protocol import table
from pyproxy.access import Access
from pyproxy.config import BackendAccess
from pyproxy.control.health import detector, monitor, node_monitor
from pyproxy.control.health.busy import BusyServers
from pyproxy.control.health.monitor import CheckSchedule, HealthMonitor, LightChecks
from pyproxy.control.health.node_monitor import DEADLINE_S, PING_BYTES, NodeMonitor
from pyproxy.fleet import HOST, Fleet
from pyproxy.hashing import SLOTS
from pyproxy.messages import NodeHealth
from pyproxy.shard_map import Node, Shard, ShardMap
from tests.waiting import until

PLAIN = Access(BackendAccess())
OFFSET = 1000
REPLICATION = {
    "role": "slave", "master_host": HOST, "master_port": "7000", "master_link_status": "up",
    "master_last_io_seconds_ago": "1", "master_sync_in_progress": "0", "slave_repl_offset": str(OFFSET),
    "slave_priority": "100", "master_replid": "a" * 40, "master_replid2": "0" * 40, "second_repl_offset": "-1",
}  # fmt: skip


class Answering:
    """A server that answers what the test has it answer: a replica."""

    def __init__(self) -> None:
        self.pong = b"+PONG\r\n"
        self.replication = dict(REPLICATION)
        self.info: bytes | None = None  # in place of the reply to INFO replication
        self.piece = 1 << 16  # bytes that it writes at once
        self.asked: list[tuple[str, ...]] = []
        self.writer: asyncio.StreamWriter | None = None
        self.port = 0

    async def __aenter__(self) -> "Answering":
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.close()

    def close(self) -> None:
        assert self.writer is not None
        self.writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        parser = hiredis.Reader()
        while data := await reader.read(1 << 16):
            parser.feed(data)
            while (argv := parser.gets()) is not False:
                self.asked.append(tuple(word.decode() for word in argv))
                reply = self._reply(self.asked[-1])
                for begin in range(0, len(reply), self.piece):
                    writer.write(reply[begin : begin + self.piece])
                    await asyncio.sleep(0)

    def _reply(self, argv: tuple[str, ...]) -> bytes:
        if argv == ("PING",):
            return self.pong
        section = "# Replication\r\n" + "".join(f"{name}:{value}\r\n" for name, value in self.replication.items())
        if argv == ("INFO", "replication"):
            return bulk(section) if self.info is None else self.info
        return bulk(f"# Server\r\nrun_id:{'b' * 40}\r\n\r\n{section}")


def bulk(text: str) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text.encode())


class LightlyChecked:
    """One server, the monitor of it, and what its light checks came to."""

    def __init__(self, server: Answering) -> None:
        self.server = server
        self.monitor = NodeMonitor("s0", Node(HOST, server.port), PLAIN, BusyServers(), "slave", b"")
        self.outcomes: list[bool] = []

    def begin(self) -> Callable[[], None] | None:
        self.server.asked.clear()
        return self.monitor.begin_light_check(self.outcomes.append)

    async def checked(self) -> bool:
        """What the next light check comes to."""
        self.outcomes.clear()
        assert self.begin() is not None
        await until("its outcome", lambda: bool(self.outcomes), lambda: self.server.asked)
        (outcome,) = self.outcomes
        return outcome


@asynccontextmanager
async def well(checks: int = 2) -> AsyncIterator[LightlyChecked]:
    """A server that was well, and of which nothing was new. After more checks than two its lines are known."""
    async with Answering() as server:
        subject = LightlyChecked(server)
        for _ in range(checks):
            await subject.monitor.check_once()
        assert subject.monitor.health.reachable
        yield subject
        subject.monitor.close()


# --- which server may be checked so -----------------------------------------------------------------------------------


async def test_a_server_that_was_well_is_asked_for_little_and_is_as_it_was_at_another_time() -> None:
    async with well() as subject:
        before = subject.monitor.health
        assert await subject.checked()
        now = subject.monitor.health
        assert subject.server.asked == [("PING",), ("INFO", "replication")]
        assert now.at == now.answered_at > before.at
        assert detector.timeless(now) == detector.timeless(before)


async def test_one_that_was_not_seen_yet_is_not() -> None:
    async with Answering() as server:
        subject = LightlyChecked(server)
        assert subject.begin() is None
        await subject.monitor.check_once()  # so there is something to close
        subject.monitor.close()


async def unreachable(subject: LightlyChecked) -> None:
    subject.server.pong = b"-LOADING it loads\r\n"
    subject.monitor.require_full_check()
    await subject.monitor.check_once()


async def complained_of(subject: LightlyChecked) -> None:
    subject.monitor.require_full_check()


async def being_checked(subject: LightlyChecked) -> None:
    assert subject.begin() is not None


async def talking(subject: LightlyChecked) -> None:
    assert subject.server.writer is not None and subject.monitor._connection is not None
    subject.server.writer.write(b"+what nobody asked for\r\n")
    connection = subject.monitor._connection
    await until("it to come", lambda: not connection.is_idle, lambda: connection)


async def closed(subject: LightlyChecked) -> None:
    subject.server.close()
    connection = subject.monitor._connection
    assert connection is not None
    await until("its end", lambda: not connection.is_idle, lambda: connection)


@pytest.mark.parametrize("disturb", [unreachable, complained_of, being_checked, talking, closed])
async def test_one_with_which_something_is_the_matter_is_not(disturb: Callable[[LightlyChecked], object]) -> None:
    async with well() as subject:
        await disturb(subject)  # type: ignore[misc]
        assert subject.begin() is None


async def test_one_of_which_all_is_to_be_asked_again_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async with well() as subject:
        monkeypatch.setattr(node_monitor, "FULL_CHECK_EVERY_S", 0.0)
        assert subject.begin() is None


# --- what is answered -------------------------------------------------------------------------------------------------

MISSING = ""

UNCHANGED = [
    ("nothing new", {}),
    ("heard of its primary later", {"master_last_io_seconds_ago": "3"}),
    ("no more written than a ping of its primary", {"slave_repl_offset": str(OFFSET + PING_BYTES)}),
]
CHANGED = [
    ("a write", {"slave_repl_offset": str(OFFSET + PING_BYTES + 1)}),
    ("less than it had", {"slave_repl_offset": str(OFFSET - 1)}),
    ("another role", {"role": "master"}),
    ("another primary", {"master_port": "7001"}),
    ("another history", {"master_replid": "c" * 40}),
    ("another history before", {"master_replid2": "c" * 40}),
    ("its link is down", {"master_link_status": "down"}),
    ("it is synchronised", {"master_sync_in_progress": "1"}),
    ("another priority", {"slave_priority": "0"}),
    ("a field more", {"slave0": "ip=127.0.0.1"}),
    ("a field less", {"slave_priority": MISSING}),
    ("a field in place of another", {"slave_priority": MISSING, "replica_priority": "100"}),
]


@pytest.mark.parametrize("piece", [1 << 16, 1], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("fields", [fields for _, fields in UNCHANGED], ids=[name for name, _ in UNCHANGED])
async def test_numbers_that_change_by_themselves_are_taken(fields: dict[str, str], piece: int) -> None:
    async with well() as subject:
        subject.server.replication.update(fields)
        subject.server.piece = piece
        assert await subject.checked()
        health = subject.monitor.health
        assert (health.offset, health.lag_s) == tuple(
            int(subject.server.replication[name]) for name in ("slave_repl_offset", "master_last_io_seconds_ago")
        )


@pytest.mark.parametrize("checks", [2, 4], ids=["by its fields", "by its lines"])
@pytest.mark.parametrize("fields", [fields for _, fields in CHANGED], ids=[name for name, _ in CHANGED])
async def test_whatever_else_is_another_has_all_of_it_asked(fields: dict[str, str], checks: int) -> None:
    async with well(checks) as subject:
        before = subject.monitor.health
        said = {**subject.server.replication, **fields}
        subject.server.replication = {name: value for name, value in said.items() if value is not MISSING}
        assert not await subject.checked()
        assert subject.monitor.health == before  # it is not the light check that says what it means
        await subject.monitor.check_once()
        assert subject.server.asked[-2:] == [("PING",), ("INFO",)]
        assert subject.monitor.health.reachable and subject.monitor.health.at > before.at
        assert subject.monitor.info == {"run_id": "b" * 40, **subject.server.replication}


NO_ANSWER = [
    ("PING is refused", b"-MISCONF it cannot save\r\n", None),
    ("it loads", b"-LOADING it loads\r\n", b"-LOADING it loads\r\n"),
    ("INFO is refused", b"+PONG\r\n", b"-ERR no\r\n"),
    ("INFO is nothing", b"+PONG\r\n", b"$-1\r\n"),
    ("INFO is empty", b"+PONG\r\n", b"$0\r\n\r\n"),
    ("PING is answered with something else", b"+PING\r\n", None),
    ("what is no reply", b"PONG\r\n", None),
    ("a reply too many", b"+PONG\r\n+PONG\r\n", None),
    ("a reply without end", b"+PONG\r\n", b"$131072\r\n" + b"x" * (1 << 17)),
]


@pytest.mark.parametrize(("pong", "info"), [each[1:] for each in NO_ANSWER], ids=[each[0] for each in NO_ANSWER])
async def test_an_answer_that_is_none_is_asked_for_again_in_full(pong: bytes, info: bytes | None) -> None:
    async with well() as subject:
        server, before = subject.server, subject.monitor.health
        server.pong, server.info = pong, info
        assert not await subject.checked()
        assert subject.monitor.health == before
        server.pong, server.info = b"+PONG\r\n", None
        await subject.monitor.check_once()
        assert server.asked[-1] == ("INFO",)
        assert subject.monitor.health.reachable


async def test_a_connection_that_ends_meanwhile_is_made_anew_before_anything_is_held_against_its_server() -> None:
    """It may have closed it for reasons of its own: CLIENT KILL, its `timeout`."""
    async with well() as subject:
        subject.server.info = b""
        assert subject.begin() is not None
        await until("it to be asked", lambda: len(subject.server.asked) == 2, lambda: subject.server.asked)
        subject.server.close()
        await until("its outcome", lambda: bool(subject.outcomes), lambda: subject.server.asked)
        assert subject.outcomes == [False]
        assert subject.monitor.health.reachable
        subject.server.info = None
        await subject.monitor.check_once()
        assert subject.monitor.health.reachable


async def test_one_that_says_nothing_until_it_is_given_up_is_silent_since_it_was_asked() -> None:
    async with well() as subject:
        subject.server.info = b""
        asked_at = time.monotonic()
        give_up = subject.begin()
        assert give_up is not None
        await until("it to be asked", lambda: len(subject.server.asked) == 2, lambda: subject.server.asked)
        given_up_at = time.monotonic()
        give_up()
        give_up()
        assert subject.outcomes == [True]  # it is known what came of it
        health = subject.monitor.health
        assert (health.reachable, health.silent) == (False, True)
        assert asked_at <= health.unanswered_since <= given_up_at <= health.at
        assert subject.begin() is None


async def test_one_that_has_answered_by_then_is_not_given_up() -> None:
    async with well() as subject:
        give_up = subject.begin()
        assert give_up is not None
        await until("its outcome", lambda: bool(subject.outcomes), lambda: subject.server.asked)
        give_up()
        assert subject.outcomes == [True]
        assert subject.monitor.health.reachable


async def test_what_was_refused_before_and_is_still_is_taken() -> None:
    async with well() as subject:
        subject.server.pong = b"-MISCONF it cannot save\r\n"
        for _ in range(2):
            subject.monitor.require_full_check()
            await subject.monitor.check_once()
        assert subject.monitor.health.misconf
        await subject.monitor.check_once()
        assert await subject.checked()
        assert subject.monitor.health.misconf
        subject.server.pong = b"+PONG\r\n"
        assert not await subject.checked()


# --- the checks of one moment -----------------------------------------------------------------------------------------


async def test_those_that_go_on_at_the_deadline_are_given_up_and_those_that_have_ended_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(monitor, "DEADLINE_S", 0.01)
    checks, said = LightChecks(), []
    schedules = [CheckSchedule(Node(HOST, port)) for port in (1, 2, 3)]

    def give_up(name: str, *, ends: CheckSchedule | None) -> Callable[[], None]:
        def call() -> None:
            said.append(f"{name} given up")
            if ends is not None:
                checks.remove(ends)

        return call

    ended, silent, stuck = schedules
    checks.add(ended, give_up("ended", ends=ended), lambda: said.append("ended failed"))
    checks.add(silent, give_up("silent", ends=silent), lambda: said.append("silent failed"))
    checks.add(stuck, give_up("stuck", ends=None), lambda: said.append("stuck failed"))
    checks.remove(ended)
    await until("the deadline", lambda: len(said) == 3, lambda: said)
    assert said == ["silent given up", "stuck given up", "stuck failed"]


@pytest.mark.parametrize("is_checked", [False, True], ids=["between two checks", "during one"])
async def test_a_server_that_is_asked_for_is_due_when_no_check_of_it_goes_on(is_checked: bool) -> None:
    schedule = CheckSchedule(Node(HOST, 1))
    if is_checked:
        schedule.begins()
    schedule.ask()
    schedule.ask()
    assert schedule.due.is_set() is not is_checked
    schedule.ends()
    assert schedule.due.is_set()
    schedule.due.clear()
    schedule.begins()
    schedule.ends()
    assert not schedule.due.is_set()  # it was asked for once


# --- all servers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=2, replicas=1) as fleet:
        yield fleet


class Checked:
    """All servers of a fleet, that no client uses, checked ten times a second."""

    def __init__(self, fleet: Fleet, on_seen: Callable[[], None] = lambda: None) -> None:
        ends = [0, SLOTS // 2, SLOTS]
        shards = tuple(
            Shard(
                f"s{index}",
                Node(HOST, each.primary.port),
                tuple(Node(HOST, replica.port) for replica in each.replicas),
                ((ends[index], ends[index + 1] - 1),),
            )
            for index, each in enumerate(fleet.shards)
        )
        self.seen = 0
        self._on_seen = on_seen
        self.monitor = HealthMonitor(
            ShardMap(1, shards), PLAIN, table.learn, lambda _: None, lambda _: None, 0.1,
            commands=lambda: 0, on_seen=self._checked,
        )  # fmt: skip

    def _checked(self, _shard: str, _is_news: bool) -> None:
        self.seen += 1
        self._on_seen()

    @property
    def silent(self) -> list[str]:
        healths = self.monitor.fleet_health.shards
        return [node.node for shard in healths for node in shard.nodes if node.at and not node.reachable]

    async def until(self, what: str, done: Callable[[], bool]) -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.monitor.run())
            await until(what, done, lambda: (self.seen, self.monitor.fleet_health), 60.0)
            task.cancel()


async def test_servers_that_are_healthy_and_idle_wake_no_task(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    by_tasks: list[str] = []
    check_once = NodeMonitor.check_once

    async def counted(self: NodeMonitor, *args: object) -> None:
        by_tasks.append(str(self.node))
        await check_once(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(NodeMonitor, "check_once", counted)
    monkeypatch.setattr(node_monitor, "FULL_CHECK_EVERY_S", 600.0)
    checked, before = Checked(fleet), (0, 0)

    def is_idle() -> bool:
        """Ten checks of each of the four servers in a row without a task: their primaries have told them each other."""
        nonlocal before
        if len(by_tasks) != before[0]:
            before = len(by_tasks), checked.seen
        return checked.seen - before[1] >= 40

    await checked.until("nothing but light checks", is_idle)


async def test_a_process_that_is_late_takes_nobody_for_silent(fleet: Fleet) -> None:
    """It stands still for longer than any server may take, in the middle of a round, again and again."""
    checked: Checked

    def stand_still() -> None:
        silent.extend(checked.silent)
        if checked.seen % 13 == 0:
            time.sleep(1.1 * DEADLINE_S)

    silent: list[str] = []
    checked = Checked(fleet, stand_still)
    await checked.until("four times", lambda: checked.seen > 4 * 13)
    assert silent == []


async def test_a_server_that_hangs_among_idle_ones_is_silent_and_they_are_not(fleet: Fleet) -> None:
    hangs = fleet.shards[0].replicas[0]
    checked = Checked(fleet)

    await checked.until("some checks", lambda: checked.seen >= 40)
    hangs.pause()
    await checked.until("its silence", lambda: bool(checked.silent))
    assert checked.silent == [hangs.address]
    hangs.resume()
    await checked.until("its answer", lambda: not checked.silent)


def test_a_health_is_compared_without_the_numbers_that_change_by_themselves() -> None:
    """What a light check may change of a health is no news."""
    health = detector.answered(NodeHealth("a:1"), 1.0, REPLICATION, {})
    later = msgspec.structs.replace(health, at=2.0, answered_at=2.0, offset=OFFSET + PING_BYTES, lag_s=3)
    assert detector.timeless(health) == detector.timeless(later)
    assert not detector.has_activity(health, later, PING_BYTES)
