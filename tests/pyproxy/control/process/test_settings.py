"""What becomes of a setting that a client was told is set: the parent's part, with real servers and no workers."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pyproxy import events
from pyproxy.access import Access
from pyproxy.config import Config
from pyproxy.control.failover.promoters import PromotionFailed
from pyproxy.control.health.monitor import HealthMonitor
from pyproxy.control.process import settings
from pyproxy.control.process.settings import NAME, FixedBy, SettingsReconciler
from pyproxy.fleet import Fleet, Server
from pyproxy.messages import FixedSetting, Settings
from tests.waiting import until


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Two shards with a replica each, for this module."""
    with Fleet(shards=2, replicas=1) as fleet:
        yield fleet


@pytest.fixture
def servers(fleet: Fleet) -> list[Server]:
    """All of them, running, and without events."""
    for server in fleet.servers:
        if not server.running:
            server.start()
        server.ask("ACL", "SETUSER", "default", "+@all")
        server.ask("CONFIG", "SET", NAME, "")
    return fleet.servers


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "RETRY_S", 0.05)
    monkeypatch.setattr(settings, "ASK_S", 0.05)
    monkeypatch.setattr(settings, "ASK_RETRY_S", 0.05)


async def not_fixed(_name: str) -> str | None:
    return None


@dataclasses.dataclass
class Group:
    """What a parameter group would say: a value; or nothing at all, as long as that is None."""

    value: str | None
    asked: int = 0

    async def setting(self, _name: str) -> str | None:
        self.asked += 1
        if self.value is None:
            raise PromotionFailed("the group was not read")
        return self.value


@dataclasses.dataclass
class Run:
    reconciler: SettingsReconciler
    told: list[Settings]

    async def until_set(self, servers: list[Server], value: str) -> None:
        def seen() -> list[object]:
            return [shown(each) for each in servers]

        await until(
            f"'{value}' everywhere", lambda: seen() == [value] * len(servers), lambda: (seen(), self.reconciler)
        )

    async def until_alarm(self, shard: str, words: str) -> None:
        await until(
            f"alarm: {words}",
            lambda: words in str(self.reconciler.alarms(shard)),
            lambda: self.reconciler.alarms(shard),
        )


def shown(server: Server) -> str:
    said = server.ask("CONFIG", "GET", NAME)
    assert isinstance(said, list)
    return str(said[1].decode())


@asynccontextmanager
async def keeping(
    fleet: Fleet, told: Mapping[str, str] | None = None, fixed: Mapping[str, Group] | None = None
) -> AsyncIterator[Run]:
    """A reconciler that learns what a health monitor sees. `fixed`: by shard; the others are not."""
    config = Config.parse(fleet.config().encode())
    access = Access(config.backend)
    monitor = HealthMonitor(
        config.shard_map(), access, lambda _replies: [], lambda _topology: None, lambda _health: None, every_s=0.1,
        on_seen=lambda shard, _is_news: reconciler.on_seen(shard),
    )  # fmt: skip
    fixed_by: dict[str, FixedBy] = {shard.name: not_fixed for shard in fleet.shards}
    fixed_by |= {name: group.setting for name, group in (fixed or {}).items()}
    states: list[Settings] = []
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[None]] = []

        def start(coroutine: Coroutine[Any, Any, None], name: str) -> None:
            tasks.append(group.create_task(coroutine, name=name))

        reconciler = SettingsReconciler(
            access, fixed_by, monitor.nodes, told or {}, lambda: states.append(reconciler.state), start
        )
        await monitor.check_health()
        start(monitor.run(), "watch")
        reconciler.begin()
        try:
            yield Run(reconciler, states)
        finally:
            for task in tasks:
                task.cancel()


async def test_what_a_client_sets_is_set_on_every_server_replicas_too(fleet: Fleet, servers: list[Server]) -> None:
    async with keeping(fleet) as run:
        run.reconciler.configure(NAME, "xE", lambda: None)
        assert run.told[-1].told == {NAME: "xE"}
        await run.until_set(servers, "xE")
    assert not run.reconciler.alarms("s0")


async def test_a_setting_is_settled_when_all_primaries_have_it(fleet: Fleet, servers: list[Server]) -> None:
    seen: list[list[str]] = []
    async with keeping(fleet) as run:
        await until("that it is not fixed", lambda: bool(run.told) and not run.told[-1].fixed, lambda: run.told)
        for value in ("xE", "AKE", "$K", "$K", ""):
            number = len(seen)
            run.reconciler.configure(NAME, value, lambda: seen.append([shown(each.primary) for each in fleet.shards]))
            await until(f"'{value}' settled", lambda: len(seen) > number, lambda: run.reconciler)  # noqa: B023
    assert seen == [[value] * len(fleet.shards) for value in ("xE", "AKE", "$K", "$K", "")]


async def test_a_primary_that_does_not_take_it_keeps_nobody_waiting(fleet: Fleet, servers: list[Server]) -> None:
    refuses, stands = (shard.primary for shard in fleet.shards[:2])
    refuses.ask("ACL", "SETUSER", "default", "-config")
    settled: list[str] = []
    async with keeping(fleet) as run:
        await until("that it is not fixed", lambda: bool(run.told) and not run.told[-1].fixed, lambda: run.told)
        stands.pause()
        try:
            run.reconciler.configure(NAME, "xE", lambda: settled.append("xE"))
            await until("settled", lambda: bool(settled), lambda: run.reconciler)
        finally:
            stands.resume()
            refuses.ask("ACL", "SETUSER", "default", "+config")


async def test_where_nobody_sets_anything_no_server_is_touched(fleet: Fleet, servers: list[Server]) -> None:
    before = [calls(each) for each in servers]
    async with keeping(fleet) as run:
        await until("that it is not fixed", lambda: bool(run.told) and not run.told[-1].fixed, lambda: run.told)
    assert [calls(each) for each in servers] == before


def calls(server: Server) -> str:
    said = server.ask("INFO", "commandstats")
    assert isinstance(said, bytes)
    return str([line for line in said.splitlines() if b"config|set" in line])


async def test_the_last_of_several_values_wins_on_all_servers(fleet: Fleet, servers: list[Server]) -> None:
    async with keeping(fleet) as run:
        for value in ("xE", "AKE", "", "$K") * 5:
            run.reconciler.configure(NAME, value, lambda: None)
            await asyncio.sleep(0)
        await run.until_set(servers, "$K")
        assert run.told[-1].told == {NAME: "$K"}
        assert [each.version for each in run.told] == sorted({each.version for each in run.told})


async def test_a_server_that_comes_back_is_told_again(fleet: Fleet, servers: list[Server]) -> None:
    async with keeping(fleet, {NAME: "xE"}) as run:
        await run.until_set(servers, "xE")
        for server in (servers[0], servers[-1]):
            server.kill()
            server.start()
        await run.until_set(servers, "xE")


async def test_a_server_that_gets_another_role_is_told_again(fleet: Fleet, servers: list[Server]) -> None:
    replica = fleet.shards[0].replicas[0]
    async with keeping(fleet, {NAME: "xE"}) as run:
        await run.until_set(servers, "xE")
        replica.ask("CONFIG", "SET", NAME, "")
        replica.ask("REPLICAOF", "NO", "ONE")
        try:
            await run.until_set(servers, "xE")
        finally:
            replica.ask("REPLICAOF", *fleet.shards[0].primary.address.split(":"))


async def test_what_was_changed_at_a_server_is_put_right_when_a_client_sets_it_again(
    fleet: Fleet, servers: list[Server]
) -> None:
    async with keeping(fleet, {NAME: "xE"}) as run:
        await run.until_set(servers, "xE")
        servers[1].ask("CONFIG", "SET", NAME, "KEA")
        run.reconciler.configure(NAME, "xE", lambda: None)
        await run.until_set(servers, "xE")


async def test_a_server_that_refuses_is_an_alarm_until_it_does_not_and_stops_no_other(
    fleet: Fleet, servers: list[Server], capsys: pytest.CaptureFixture[str]
) -> None:
    events.configure()
    first, *others = servers
    first.ask("ACL", "SETUSER", "default", "-config")
    async with keeping(fleet) as run:
        run.reconciler.configure(NAME, "xE", lambda: None)
        await run.until_set(others, "xE")
        await run.until_alarm("s0", f"{NAME} of {first.address} is not set to 'xE': NOPERM ")
        tried = first.ask("INFO", "errorstats")
        await until("more attempts", lambda: first.ask("INFO", "errorstats") != tried, lambda: tried)
        assert not run.reconciler.alarms("s1")
        first.ask("ACL", "SETUSER", "default", "+config")
        await run.until_set(servers, "xE")
        await until(
            "the end of the alarm", lambda: not run.reconciler.alarms("s0"), lambda: run.reconciler.alarms("s0")
        )
    lines = [line.split()[0] for line in capsys.readouterr().err.splitlines() if "config-set-failed" in line]
    assert lines == ["+config-set-failed", "-config-set-failed"]


async def test_a_server_that_is_away_is_no_alarm_of_its_settings(fleet: Fleet, servers: list[Server]) -> None:
    replica = fleet.shards[1].replicas[0]
    replica.ask("ACL", "SETUSER", "default", "-config")
    async with keeping(fleet, {NAME: "xE"}) as run:
        await run.until_alarm("s1", f"{NAME} of {replica.address} is not set")
        replica.kill()
        await until(
            "the end of the alarm", lambda: not run.reconciler.alarms("s1"), lambda: run.reconciler.alarms("s1")
        )
        replica.start()
        await run.until_set(servers, "xE")


async def test_until_it_is_known_whether_a_setting_is_fixed_no_server_is_touched_and_the_workers_know_it(
    fleet: Fleet, servers: list[Server]
) -> None:
    group = Group(None)
    mine, others = fleet.shards[0].servers, fleet.shards[1].servers
    async with keeping(fleet, {NAME: "xE"}, {"s0": group}) as run:
        assert run.reconciler.state.fixed == [FixedSetting("s0", NAME, None), FixedSetting("s1", NAME, None)]
        await run.until_set(list(others), "xE")
        assert run.reconciler.state.fixed == [FixedSetting("s0", NAME, None)]
        assert [shown(each) for each in mine] == ["", ""]
        group.value = "Ex"
        await until("it to be known", lambda: run.told[-1].fixed == [FixedSetting("s0", NAME, "xE")], lambda: run.told)
        assert not run.reconciler.alarms("s0")
        assert [shown(each) for each in mine] == ["", ""], "they are not asked, as they would refuse"


async def test_a_group_that_is_changed_to_something_else_than_clients_were_told_is_an_alarm(
    fleet: Fleet, servers: list[Server]
) -> None:
    group = Group("Ex")
    async with keeping(fleet, {NAME: "xE"}, {"s0": group}) as run:
        fixed = FixedSetting("s0", NAME, "xE")
        await until("it to be known", lambda: fixed in run.reconciler.state.fixed, lambda: run.told)
        assert not run.reconciler.alarms("s0")
        group.value = ""
        await run.until_alarm("s0", f"{NAME} is '' by its parameter group, and clients were told 'xE'")
        group.value = None
        asked = group.asked
        await until("it to be asked for again", lambda: group.asked > asked + 1, lambda: group)
        assert run.reconciler.alarms("s0"), "what was known stands while it cannot be read"
