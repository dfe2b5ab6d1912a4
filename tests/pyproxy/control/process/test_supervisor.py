import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pyproxy import events
from pyproxy.config import Config, ShardTable
from pyproxy.control.process import supervisor as under_test
from pyproxy.control.process.listener import bind
from pyproxy.control.process.supervisor import Supervisor
from pyproxy.messages import (
    AtWork,
    Complaint,
    Configured,
    FleetHealth,
    Message,
    Script,
    ScriptsFlushed,
    Setup,
    Topology,
    Work,
)
from pyproxy.metrics import Page
from pyproxy.shard_map import Node
from tests.processes import alive, family
from tests.waiting import until

PATIENCE_S = 20.0

FAKE_WORKER = (sys.executable, "-m", "tests.pyproxy.control.process.fake_worker")

SHARD = ShardTable(name="s0", primary=Node("127.0.0.1", 7000), slots=((0, 16383),))
STATES: Sequence[Message] = (Topology(1, [SHARD], []), FleetHealth(7, 0.0, []))


class Run:
    """A supervisor with stand-ins for workers, and what they reported."""

    def __init__(self, mode: str, workers: int, directory: Path) -> None:
        self.page = Page.create(workers)
        self.listener: socket.socket = bind(Node("127.0.0.1", 0), "listen")
        self._report = directory / "report"
        self._report.touch()
        self.complaints: list[Complaint] = []
        self.work: list[tuple[int, AtWork | None]] = []
        self.configured: list[Configured] = []
        self.scripts: list[Script | ScriptsFlushed] = []
        self.supervisor = Supervisor(
            (*FAKE_WORKER, str(self._report), mode),
            self.listener,
            self.page,
            lambda index: Setup(index, workers, Config(shards=(SHARD,)), "127.0.0.1:1", "0", 0.0),
            lambda: STATES,
            self.complaints.append,
            lambda index, applied: self.work.append((index, applied)),
            self._configure,
            self.scripts.append,
        )

    def _configure(self, applied: Configured, settled: Callable[[], None]) -> None:
        self.configured.append(applied)
        settled()

    def reports(self, what: str, index: int | None = None) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._report.read_text().splitlines()]
        return [line for line in lines if line["what"] == what and index in (None, line["index"])]

    async def reported(self, what: str, times: int = 1, index: int | None = None) -> list[dict[str, Any]]:
        wanted = f"{times} times {what!r} of worker {index}"
        await until(wanted, lambda: len(self.reports(what, index)) >= times, lambda: self._report.read_text())
        return self.reports(what, index)


@asynccontextmanager
async def supervised(mode: str, directory: Path, workers: int = 1) -> AsyncIterator[Run]:
    """The supervisor runs until the block ends, which ends its workers too."""
    run = Run(mode, workers, directory)
    with run.listener:
        async with asyncio.TaskGroup() as group:
            group.create_task(run.supervisor.run(), name="supervisor")
            try:
                yield run
            finally:
                run.supervisor.kill()


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> "Log":
    return Log(capsys)


class Log:
    """The events so far; made in the test, so that it hears what the test says."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._lines: list[str] = []

    def lines(self, event: str) -> list[str]:
        self._lines += self._capsys.readouterr().err.splitlines()
        return [line for line in self._lines if line.startswith(event + " ")]


async def test_every_worker_is_told_the_setup_first_and_then_the_present_states(tmp_path: Path) -> None:
    async with supervised("serve", tmp_path, workers=3) as run:
        await run.supervisor.all_ready.wait()
        await run.reported("FleetHealth", times=3)
    for index in range(3):
        told = [line for line in (tmp_path / "report").read_text().splitlines() if json.loads(line)["index"] == index]
        assert [json.loads(line)["what"] for line in told[1:4]] == ["Setup", "Topology", "FleetHealth"]


async def test_a_worker_that_slept_is_told_the_present_states_and_then_that_it_was(tmp_path: Path) -> None:
    async with supervised("sleep", tmp_path) as run:
        await run.reported("Confirmed")
    told = [json.loads(line)["what"] for line in (tmp_path / "report").read_text().splitlines()]
    assert told[-4:-1] == ["Topology", "FleetHealth", "Confirmed"] or told[-3:] == [
        "Topology",
        "FleetHealth",
        "Confirmed",
    ]


async def test_a_worker_inherits_the_listener_its_channel_and_no_other_socket(tmp_path: Path) -> None:
    async with supervised("serve", tmp_path, workers=2) as run:
        await run.supervisor.all_ready.wait()
        os.kill(run.reports("started", index=0)[0]["pid"], signal.SIGKILL)
        started = await run.reported("started", times=3)  # the last one while another one's channel was open
        assert {each["port"] for each in started} == {run.listener.getsockname()[1]}
        assert [each["other_sockets"] for each in started] == [[], [], []]
        assert {each["stdin"] for each in started} == {"/dev/null"}


async def test_a_worker_is_in_a_session_of_its_own_so_that_ctrl_c_is_the_parents(tmp_path: Path) -> None:
    async with supervised("serve", tmp_path) as run:
        (started,) = await run.reported("started")
        assert started["session"] == started["pid"]


async def test_a_broadcast_reaches_every_worker(tmp_path: Path) -> None:
    async with supervised("serve", tmp_path, workers=2) as run:
        await run.supervisor.all_ready.wait()
        run.supervisor.broadcast(FleetHealth(8, 0.0, []))
        await until(
            "the look at both",
            lambda: sorted(each["index"] for each in run.reports("FleetHealth") if each["version"] == 8) == [0, 1],
            lambda: run.reports("FleetHealth"),
        )


# --- the barrier ------------------------------------------------------------------------------------------------------


async def test_the_barrier_is_passed_when_every_worker_has_applied_the_version(tmp_path: Path) -> None:
    async with supervised("serve", tmp_path, workers=2) as run:
        await run.supervisor.all_ready.wait()
        run.supervisor.broadcast(Topology(2, [SHARD], []))
        assert await run.supervisor.all_applied(2, PATIENCE_S) == []
        assert await run.supervisor.all_applied(3, 0.05) == [0, 1], "which nobody was told of"


async def test_a_worker_that_owes_an_answer_to_a_write_holds_up_those_who_wait_for_its_shard(tmp_path: Path) -> None:
    async with supervised("busy", tmp_path) as run:
        await run.supervisor.all_ready.wait()
        assert await run.supervisor.all_applied(1, PATIENCE_S) == []
        assert await run.supervisor.all_applied(1, 0.05, "s0") == [0]
        await until("what it holds", lambda: run.supervisor.held("s0") == 2, lambda: run.supervisor.held("s0"))
        waiting = asyncio.create_task(run.supervisor.all_applied(3, PATIENCE_S, "s0"))
        await asyncio.sleep(0)
        run.supervisor.broadcast(Topology(3, [SHARD], []))
        assert await waiting == []
        await until("it to hold nothing", lambda: run.supervisor.held("s0") == 0, lambda: run.supervisor.held("s0"))


async def test_a_worker_that_is_not_subscribed_yet_holds_up_those_who_wait_for_that_alone(tmp_path: Path) -> None:
    async with supervised("unconfirmed", tmp_path) as run:
        await run.supervisor.all_ready.wait()
        assert await run.supervisor.all_applied(1, PATIENCE_S, "s0") == []
        assert await run.supervisor.all_subscribed("s0", 0.05) == [0]
        assert await run.supervisor.all_subscribed("s1", PATIENCE_S) == []
        waiting = asyncio.create_task(run.supervisor.all_subscribed("s0", PATIENCE_S))
        run.supervisor.broadcast(Topology(3, [SHARD], []))
        assert await waiting == []


async def test_a_worker_that_is_ended_holds_up_nobody_once_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "RESTART_MIN_S", 3600.0)
    async with supervised("slow", tmp_path, workers=2) as run:
        await run.supervisor.all_ready.wait()
        run.supervisor.broadcast(Topology(2, [SHARD], []))
        late = await run.supervisor.all_applied(2, 0.05)
        assert late == [0, 1]
        ended = family(run.reports("started", 0)[0]["pid"]) | family(run.reports("started", 1)[0]["pid"])
        for index in late:
            run.supervisor.kill_worker(index, "it is late")
        assert await run.supervisor.all_applied(2, PATIENCE_S) == []
        assert not any(map(alive, ended))


# --- death ------------------------------------------------------------------------------------------------------------


async def test_a_dead_worker_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    async with supervised("serve", tmp_path, workers=2) as run:
        await run.supervisor.all_ready.wait()
        await run.reported("FleetHealth", index=0)
        dead, stays = (run.reports("started", index=index)[0]["pid"] for index in (0, 1))
        os.kill(dead, signal.SIGKILL)
        await run.reported("FleetHealth", times=2, index=0)
        assert run.reports("started", index=0)[1]["pid"] != dead
        assert [each["pid"] for each in run.reports("started", index=1)] == [stays]


async def test_the_row_of_a_dead_worker_is_cleared_and_its_counters_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "RESTART_MIN_S", 3600.0)
    async with supervised("serve", tmp_path) as run:
        await run.supervisor.all_ready.wait()
        assert (run.page.total("clients"), run.page.total("commands")) == (1, 10)
        os.kill(run.page.get(0, "pid"), signal.SIGKILL)
        await until("it to be counted out", lambda: run.page.get(0, "pid") == 0, lambda: run.page)
        assert (run.page.total("clients"), run.page.total("commands")) == (0, 10)


async def test_a_worker_that_keeps_dying_is_started_ever_more_rarely(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "RESTART_MAX_S", 0.3)
    events.configure()
    async with supervised("crash", tmp_path) as run:
        await run.reported("started", times=5)
    deaths = log.lines("+worker-death")[:4]
    assert [line.split("restart_in_s=")[1].split()[0] for line in deaths] == ["0.1", "0.2", "0.3", "0.3"]
    assert all('status="exit 3"' in line for line in deaths)
    assert not run.supervisor.all_ready.is_set()


async def test_a_worker_that_lived_long_enough_is_started_again_soon(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "STEADY_S", 0.0)
    events.configure()
    async with supervised("crash", tmp_path) as run:
        await run.reported("started", times=4)
    assert all("restart_in_s=0.1 " in line for line in log.lines("+worker-death")[:3])


async def test_a_worker_that_does_not_get_ready_is_replaced(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "READY_S", 0.05)
    events.configure()
    async with supervised("late", tmp_path):
        await until("its end", lambda: bool(log.lines("+worker-death")), lambda: log.lines("+worker-start"))
    assert 'reason="not ready within 0.05 s"' in log.lines("+worker-kill")[0]
    assert 'status="signal 9"' in log.lines("+worker-death")[0]


async def test_a_worker_that_leaves_its_channel_and_stays_is_replaced(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "CLOSED_S", 0.05)
    events.configure()
    async with supervised("mute", tmp_path) as run:
        await run.reported("started", times=2)
    assert 'reason="left its channel and did not end"' in log.lines("+worker-kill")[0]


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_drained_workers_end_in_order_and_are_not_started_again(tmp_path: Path, log: Log) -> None:
    events.configure()
    async with supervised("serve", tmp_path, workers=2) as run:
        await run.supervisor.all_ready.wait()
        run.supervisor.drain(30.0)
        await run.reported("Drain", times=2)
        await until("the end of all", lambda: "Worker" not in repr(run.supervisor), lambda: run.supervisor)
    assert len(run.reports("started")) == 2
    assert log.lines("+worker-kill") == log.lines("+worker-death") == []


async def test_a_worker_that_does_not_drain_is_killed_after_the_deadline(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "DRAIN_SLACK_S", 0.05)
    events.configure()
    async with supervised("stubborn", tmp_path) as run:
        await run.supervisor.all_ready.wait()
        run.supervisor.drain(0.1)
        await until("its end", lambda: "Worker" not in repr(run.supervisor), lambda: run.supervisor)
    assert 'reason="not drained within 0.1 s"' in log.lines("+worker-kill")[0]


async def test_a_drain_does_not_wait_for_a_worker_that_is_waiting_to_be_started(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "RESTART_MIN_S", 3600.0)
    events.configure()
    run = Run("crash", 1, tmp_path)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(run.supervisor.run())
        await until("its death", lambda: bool(log.lines("+worker-death")), lambda: run.reports("started"))
        run.supervisor.drain(3600.0)
        await asyncio.wait_for(task, 10.0)


async def test_what_a_worker_complains_of_is_logged_and_handed_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events.configure()
    async with supervised("complain", tmp_path) as run:
        await until("the complaint", lambda: bool(run.complaints), lambda: run.supervisor)
    assert run.complaints == [Complaint("s0", "127.0.0.1:7000", "answered -READONLY")]
    assert '+complaint index=0 shard=s0 node=127.0.0.1:7000 what="answered -READONLY"' in capsys.readouterr().err


async def test_what_a_worker_has_servers_work_on_is_handed_on_and_so_is_its_end(tmp_path: Path) -> None:
    applied = AtWork({"127.0.0.1:7000": [Work("s0", 1.0, 31.0)]})
    async with supervised("complain", tmp_path) as run:
        await until("the work", lambda: bool(run.work), lambda: run.supervisor)
        assert run.work == [(0, applied)]
    assert run.work == [(0, applied), (0, None)]


async def test_killed_workers_end_at_once(tmp_path: Path) -> None:
    async with supervised("stubborn", tmp_path, workers=2) as run:
        await run.supervisor.all_ready.wait()
        started = time.monotonic()
        run.supervisor.drain(3600.0)
        run.supervisor.kill()
        await until("the end of all", lambda: "Worker" not in repr(run.supervisor), lambda: run.supervisor)
        assert time.monotonic() - started < 60


async def test_a_cancelled_supervisor_leaves_no_process(tmp_path: Path) -> None:
    run = Run("stubborn", 2, tmp_path)
    task = asyncio.get_running_loop().create_task(run.supervisor.run())
    await run.supervisor.all_ready.wait()
    workers = family(os.getpid()) & {process for each in run.reports("started") for process in family(each["pid"])}
    assert len(workers) == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(alive(worker) for worker in workers)


async def test_what_clients_have_set_is_handed_on(tmp_path: Path) -> None:
    async with supervised("complain", tmp_path) as run:
        await until("the setting", lambda: bool(run.configured), lambda: run.supervisor)
    assert run.configured == [Configured("notify-keyspace-events", "xE", 1)]


async def test_a_worker_hears_when_what_its_client_has_set_is_settled(tmp_path: Path) -> None:
    async with supervised("complain", tmp_path) as run:
        await until("the word", lambda: bool(run.reports("Settled")), lambda: run.supervisor)


async def test_what_scripts_clients_have_loaded_is_handed_on(tmp_path: Path) -> None:
    async with supervised("complain", tmp_path) as run:
        await until("the script", lambda: bool(run.scripts), lambda: run.supervisor)
    assert run.scripts == [Script(0, b"return 1")]


async def test_a_worker_hears_when_all_have_been_told_of_its_script(tmp_path: Path) -> None:
    async with supervised("complain", tmp_path) as run:
        await until("the word", lambda: bool(run.reports("ScriptKnown")), lambda: run.supervisor)
