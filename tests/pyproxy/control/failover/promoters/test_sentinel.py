"""What Sentinels say, and what is announced of it: first by scripted ones, at the end by three real ones."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import hiredis
import pytest

from pyproxy import events
from pyproxy.access import Access
from pyproxy.config import Config
from pyproxy.control.failover import promoters
from pyproxy.control.failover.promoters import Announcement, Promoter, PromotionFailed, PromotionPlan, sentinel
from pyproxy.fleet import HOST, Fleet, Sentinel, Sentinels, Server, ask, reserve_port
from pyproxy.messages import NodeHealth
from pyproxy.shard_map import Node, format_slots, split_slots
from tests.e2e.rig import Connection, error
from tests.faults import Hop
from tests.waiting import until

OLD, NEW, STRANGER = 7000, 7001, 7999
"""Ports of servers that nobody needs to run: they are only spoken of."""

SOON_S = 0.02


class Scripted:
    """A Sentinel that says what it is told to: (address, config-epoch) of each name it knows."""

    def __init__(self) -> None:
        self.says: dict[str, tuple[str, int, int]] = {}
        self.replies: dict[str, bytes] = {}  # in place of its own, by the words of the question
        self.polls = 0
        self.accepted = 0
        self._keeper = reserve_port()
        self.port: int = self._keeper.getsockname()[1]
        self._writers: set[asyncio.StreamWriter] = set()
        self._subscribers: set[asyncio.StreamWriter] = set()

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, self.port)

    async def leave(self) -> None:
        """End all connections; `listen` comes back on the same port."""
        self._server.close()
        for each in list(self._writers):
            each.transport.abort()

    @property
    def open(self) -> int:
        return len(self._writers)

    def publish(self) -> None:
        for each in self._subscribers:
            each.write(b"*3\r\n$7\r\nmessage\r\n$14\r\n+switch-master\r\n$2\r\ns0\r\n")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.add(writer)
        parser = hiredis.Reader()
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                parser.feed(data)
                while (argv := parser.gets()) is not False:
                    writer.write(self._answer([each.decode() for each in argv], writer))
        writer.close()
        self._writers.discard(writer)
        self._subscribers.discard(writer)

    def _answer(self, argv: list[str], writer: asyncio.StreamWriter) -> bytes:
        if (reply := self.replies.get(" ".join(argv[:2]))) is not None:
            return reply
        match argv:
            case ["SUBSCRIBE", "+switch-master"]:
                self._subscribers.add(writer)
                return b"*3\r\n$9\r\nsubscribe\r\n$14\r\n+switch-master\r\n:1\r\n"
            case ["SENTINEL", "MASTER", name] if name in self.says:
                host, port, epoch = self.says[name]
                return bulks("name", name, "ip", host, "port", port, "config-epoch", epoch)
            case ["SENTINEL", "MASTER", _]:
                return b"-ERR No such master with that name\r\n"
            case ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", name]:
                self.polls += 1
                return bulks(*self.says[name][:2]) if name in self.says else b"*-1\r\n"
        return b"-ERR unknown command\r\n"


def bulks(*values: object) -> bytes:
    """A list of bulk strings."""
    texts = [str(value).encode() for value in values]
    return b"*%d\r\n" % len(texts) + b"".join(b"$%d\r\n%b\r\n" % (len(text), text) for text in texts)


def config_of(sentinels: list[int], shards: int = 1, host: str = HOST, **options: str) -> Config:
    """Each shard has its primary at OLD + 10 * number, its replica at NEW + 10 * number."""
    lines = ["[sentinel]", f"nodes = {[f'{HOST}:{port}' for port in sentinels]}"]
    lines += [f'{name} = "{value}"' for name, value in options.items()]
    lines += ["[promotion]", 'promoter = "sentinel"']
    for number, slots in enumerate(split_slots(shards)):
        lines += ["[[shards]]", f'name = "s{number}"', f'slots = ["{format_slots(slots)}"]']
        lines += [f'primary = "{host}:{OLD + 10 * number}"', f'replicas = ["{host}:{NEW + 10 * number}"]']
    return Config.parse("\n".join(lines).encode())


class Following:
    """The promoters of all shards of a configuration, running, and what they announced."""

    def __init__(self, config: Config) -> None:
        self.announced: list[Announcement] = []
        access = Access(config.backend)
        self.promoters: list[Promoter] = [
            promoters.make(shard, config, access, self.announced.append) for shard in config.shards
        ]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def said(self) -> list[tuple[int, int]]:
        """The port and the epoch of each announcement."""
        return [(each.node.port, each.epoch) for each in self.announced]

    async def announces(self, *expected: tuple[int, int]) -> None:
        """Wait until these, and no others, are all the announcements."""
        await until(f"{expected}", lambda: len(self.said) >= len(expected), lambda: self.said)
        assert self.said == list(expected)

    async def __aenter__(self) -> Self:
        events.configure()  # in the test, so that `Log` hears it
        self._tasks = [asyncio.create_task(each.run()) for each in self.promoters]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended


@pytest.fixture
async def three() -> AsyncIterator[list[Scripted]]:
    """Three Sentinels that agree: OLD is the primary of s0, by epoch 1."""
    scripted = [Scripted() for _ in range(3)]
    for each in scripted:
        each.says["s0"] = (HOST, OLD, 1)
        await each.listen()
    yield scripted
    for each in scripted:
        await each.leave()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each Sentinel is asked again at once."""
    monkeypatch.setattr(sentinel, "POLL_S", SOON_S)


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> "Log":
    return Log(capsys)


class Log:
    """What was logged, without its times."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._lines: list[str] = []

    def lines(self) -> list[str]:
        self._lines += self._capsys.readouterr().err.splitlines()
        return [re.sub(r" at=\S+$", "", line) for line in self._lines]


@asynccontextmanager
async def following(
    scripted: list[Scripted], shards: int = 1, host: str = HOST, **options: str
) -> AsyncIterator[Following]:
    async with Following(config_of([each.port for each in scripted], shards, host, **options)) as seen:
        yield seen


async def asked_again(*scripted: Scripted) -> None:
    """Return when each was asked twice more, so that what it says now was heard."""
    before = [each.polls for each in scripted]
    await until(
        "two more polls",
        lambda: all(each.polls >= count + 2 for each, count in zip(scripted, before, strict=True)),
        lambda: [each.polls for each in scripted],
    )


# --- who is announced -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("often")
async def test_what_sentinels_agree_on_is_announced_once(three: list[Scripted]) -> None:
    async with following(three) as seen:
        await seen.announces((OLD, 1))
        await asked_again(*three)
        assert seen.said == [(OLD, 1)]
        assert seen.announced[0].by in {f"sentinel {HOST}:{each.port}" for each in three}


@pytest.mark.usefixtures("often")
async def test_a_higher_epoch_wins_whichever_sentinel_says_it(three: list[Scripted]) -> None:
    async with following(three) as seen:
        await seen.announces((OLD, 1))
        three[2].says["s0"] = (HOST, NEW, 2)
        await seen.announces((OLD, 1), (NEW, 2))
        assert seen.announced[1].by == f"sentinel {HOST}:{three[2].port}"
        await asked_again(*three)  # two of which still say the old one
        assert seen.said == [(OLD, 1), (NEW, 2)]


@pytest.mark.usefixtures("often")
async def test_one_sentinel_alone_is_not_believed_at_first(three: list[Scripted]) -> None:
    await three[1].leave()
    await three[2].leave()
    async with following(three) as seen:
        await asked_again(three[0])
        assert seen.said == []


@pytest.mark.usefixtures("often")
async def test_the_first_of_a_majority_is_the_one_with_the_highest_epoch(three: list[Scripted]) -> None:
    await three[1].leave()
    await three[2].leave()
    three[1].says["s0"] = (HOST, NEW, 2)
    async with following(three) as seen:
        await asked_again(three[0])
        await three[1].listen()
        await seen.announces((NEW, 2))


@pytest.mark.usefixtures("often")
async def test_another_server_by_the_same_epoch_is_disregarded_and_logged_once(
    three: list[Scripted], logged: Log
) -> None:
    async with following(three) as seen:
        await seen.announces((OLD, 1))
        three[0].says["s0"] = (HOST, NEW, 1)
        await asked_again(three[0])
        await asked_again(three[0])
        assert seen.said == [(OLD, 1)]
    reason = f"{HOST}:{NEW} by epoch 1, by which it was {HOST}:{OLD}"
    line = f'+sentinel-disregarded sentinel={HOST}:{three[0].port} shard=s0 reason="{reason}"'
    assert logged.lines() == [line]


@pytest.mark.usefixtures("often")
async def test_a_server_that_the_configuration_does_not_name_is_an_error_and_not_announced(
    three: list[Scripted], logged: Log
) -> None:
    async with following(three) as seen:
        await seen.announces((OLD, 1))
        three[0].says["s0"] = (HOST, STRANGER, 2)
        await asked_again(three[0])
        await asked_again(three[0])
        three[1].says["s0"] = (HOST, NEW, 3)
        await seen.announces((OLD, 1), (NEW, 3))
    reason = f"{HOST}:{STRANGER} is no server of this shard in the configuration"
    assert logged.lines() == [f'+sentinel-disregarded sentinel={HOST}:{three[0].port} shard=s0 reason="{reason}"']


@pytest.mark.usefixtures("often")
async def test_the_sentinel_that_promotes_is_not_misunderstood(three: list[Scripted]) -> None:
    """For a second its MASTER has the new epoch with the old address."""
    async with following(three) as seen:
        await seen.announces((OLD, 1))
        three[0].replies["SENTINEL MASTER"] = bulks("name", "s0", "ip", HOST, "port", OLD, "config-epoch", 2)
        three[0].says["s0"] = (HOST, NEW, 2)
        await seen.announces((OLD, 1), (NEW, 2))


@pytest.mark.usefixtures("often")
async def test_a_server_is_known_by_the_address_of_its_configured_name(three: list[Scripted]) -> None:
    async with following(three, host="localhost") as seen:
        await seen.announces((OLD, 1))
        three[0].says["s0"] = (HOST, NEW, 2)
        await seen.announces((OLD, 1), (NEW, 2))
        assert [each.node.host for each in seen.announced] == ["localhost", "localhost"]


async def test_a_switch_that_is_published_is_not_left_to_the_next_poll(
    three: list[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinel, "POLL_S", 3600.0)
    async with following(three) as seen:
        await seen.announces((OLD, 1))
        three[1].says["s0"] = (HOST, NEW, 2)
        three[1].publish()
        await seen.announces((OLD, 1), (NEW, 2))


async def test_the_name_of_a_master_is_made_of_that_of_its_shard(three: list[Scripted]) -> None:
    for each in three:
        each.says = {"loop-s0": (HOST, OLD, 1)}
    async with following(three, name="loop-{shard}") as seen:
        await seen.announces((OLD, 1))


# --- sentinels that fail ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("question", "reply", "reason"),
    [
        ("SENTINEL MASTER", b"-ERR No such master with that name\r\n", "ERR No such master with that name"),
        ("SENTINEL MASTER", b"-NOPERM no permissions\r\n", "NOPERM no permissions"),
        ("SENTINEL MASTER", b"+OK\r\n", "its answer is not understood"),
        ("SENTINEL MASTER", bulks("config-epoch", "one"), "its answer is not understood"),
        ("SENTINEL MASTER", bulks("config-epoch"), "its answer is not understood"),
        ("SENTINEL GET-MASTER-ADDR-BY-NAME", b"*-1\r\n", "its answer is not understood"),
        ("SENTINEL GET-MASTER-ADDR-BY-NAME", bulks(HOST, "http"), "its answer is not understood"),
    ],
)
async def test_one_that_does_not_say_is_passed_over_and_logged_once(
    three: list[Scripted], logged: Log, question: str, reply: bytes, reason: str
) -> None:
    three[0].replies[question] = reply
    async with following(three) as seen:
        await seen.announces((OLD, 1))
        await until("the line", lambda: bool(logged.lines()), logged.lines)
        await asked_again(*three[1:])
        assert seen.said == [(OLD, 1)]
    assert logged.lines() == [f'+sentinel-disregarded sentinel={HOST}:{three[0].port} shard=s0 reason="{reason}"']


@pytest.mark.usefixtures("often")
async def test_one_that_is_gone_is_logged_once_and_followed_again_when_it_is_back(
    three: list[Scripted], logged: Log
) -> None:
    async with following(three) as seen:
        await seen.announces((OLD, 1))
        await three[0].leave()
        await asked_again(*three[1:])
        await until("the line", lambda: bool(logged.lines()), logged.lines)
        await three[0].listen()
        three[0].says["s0"] = (HOST, NEW, 2)
        await seen.announces((OLD, 1), (NEW, 2))
    lost, back = logged.lines()
    assert lost.startswith(f"+sentinel-lost sentinel={HOST}:{three[0].port} reason=")
    assert back == f"-sentinel-lost sentinel={HOST}:{three[0].port}"


@pytest.mark.parametrize("question", ["SENTINEL MASTER", "SUBSCRIBE +switch-master"])
async def test_one_that_is_silent_is_given_up_after_a_deadline(
    three: list[Scripted], logged: Log, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    monkeypatch.setattr(sentinel, "DEADLINE_S", 0.05)
    three[0].replies[question] = b""
    async with following(three) as seen:
        await seen.announces((OLD, 1))
        await until("the line", lambda: bool(logged.lines()), logged.lines)
    assert logged.lines() == [f'+sentinel-lost sentinel={HOST}:{three[0].port} reason="no reply within 0.05 s"']


@pytest.mark.usefixtures("often")
async def test_one_that_refuses_the_subscription_is_lost_and_its_reason_said_once(
    three: list[Scripted], logged: Log
) -> None:
    three[0].replies["SUBSCRIBE +switch-master"] = b"-NOPERM no channel permissions\r\n"
    async with following(three) as seen:
        await seen.announces((OLD, 1))
        await until("a third attempt", lambda: three[0].accepted >= 6, lambda: three[0].accepted)
    reason = "NOPERM no channel permissions"
    assert logged.lines() == [f'+sentinel-lost sentinel={HOST}:{three[0].port} reason="{reason}"']


# --- ten shards, three sentinels --------------------------------------------------------------------------------------


async def test_all_shards_share_two_connections_to_each_sentinel(three: list[Scripted]) -> None:
    for each in three:
        each.says |= {f"s{number}": (HOST, OLD + 10 * number, 1) for number in range(10)}
    async with following(three, shards=10) as seen:
        await until("all shards", lambda: len(seen.said) == 10, lambda: seen.said)
        assert sorted(seen.said) == [(OLD + 10 * number, 1) for number in range(10)]
        assert [each.accepted for each in three] == [2, 2, 2]
    await until("the connections to end", lambda: not any(each.open for each in three), lambda: "they do not")


@pytest.mark.usefixtures("often")
async def test_the_end_of_one_shard_leaves_the_others_followed(three: list[Scripted]) -> None:
    for each in three:
        each.says["s1"] = (HOST, OLD + 10, 1)
    async with following(three, shards=2) as seen:
        await until("both shards", lambda: len(seen.said) == 2, lambda: seen.said)
        async with following(three, shards=2):
            await asked_again(*three)
        three[0].says["s1"] = (HOST, NEW + 10, 2)
        await until("the switch", lambda: seen.said[-1] == (NEW + 10, 2), lambda: seen.said)


# --- planned ----------------------------------------------------------------------------------------------------------


def plan(config: Config, candidate: Node, named: bool = False) -> PromotionPlan:
    primary = NodeHealth(str(config.shards[0].primary))
    return PromotionPlan("s0", 2, primary, NodeHealth(str(candidate)), (), named)


async def test_nobody_is_promoted_here(three: list[Scripted]) -> None:
    config = config_of([each.port for each in three])
    promoter = promoters.make(config.shards[0], config, Access(config.backend), lambda _: None)
    with pytest.raises(PromotionFailed) as failed:
        await promoter.promote(plan(config, Node(HOST, NEW)))
    assert not failed.value.again
    assert (promoter.is_authority, promoter.acts, promoter.hands_over) == (True, False, True)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"-NOGOODSLAVE No suitable replica to promote\r\n", "NOGOODSLAVE No suitable replica to promote"),
        (b"+OK\r\n", r"no \+switch-master within 0\.2 s; it may come yet"),
    ],
)
async def test_a_planned_promotion_that_fails_says_why(three: list[Scripted], reply: bytes, reason: str) -> None:
    for each in three:
        each.replies["SENTINEL FAILOVER"] = reply
    config = Config.parse(CONFIG_WITH_DEADLINE.format(nodes=[f"{HOST}:{each.port}" for each in three]).encode())
    async with Following(config) as seen:
        await seen.announces((OLD, 1))
        with pytest.raises(PromotionFailed, match=reason) as failed:
            await seen.promoters[0].hand_over(plan(config, Node(HOST, NEW)))
    assert failed.value.again


CONFIG_WITH_DEADLINE = f"""
promotion = {{{{ promoter = "sentinel", deadline_s = 0.2 }}}}
sentinel = {{{{ nodes = {{nodes}} }}}}
shards = [{{{{ name = "s0", slots = ["0-16383"], primary = "{HOST}:{OLD}", replicas = ["{HOST}:{NEW}"] }}}}]
"""


@pytest.mark.usefixtures("often")
async def test_where_one_may_have_begun_no_other_is_asked(
    three: list[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinel, "DEADLINE_S", 0.05)
    three[0].replies["SENTINEL FAILOVER"] = b""  # as if the answer were lost
    config = config_of([each.port for each in three])
    async with Following(config) as seen:
        await seen.announces((OLD, 1))
        handing = asyncio.create_task(seen.promoters[0].hand_over(plan(config, Node(HOST, NEW))))
        await asked_again(*three)
        three[1].replies["SENTINEL FAILOVER"] = b"-ERR another was asked\r\n"
        three[0].says["s0"] = (HOST, NEW, 2)
        await handing
        assert seen.said == [(OLD, 1), (NEW, 2)]


# --- real ones --------------------------------------------------------------------------------------------------------


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """A primary and two replicas of this test's own."""
    with Fleet(shards=1, replicas=2) as fleet:
        yield fleet


@asynccontextmanager
async def following_real(fleet: Fleet, nodes: list[str], **options: str) -> AsyncIterator[Following]:
    text = fleet.config(promotion={"promoter": "sentinel"}, sentinel={"nodes": nodes, **options})
    async with Following(Config.parse(text.encode())) as seen:
        yield seen


async def polled_again(hops: list[Hop]) -> None:
    """Return when the proxy has asked each behind a hop twice more."""

    def counts() -> list[int]:
        return [hop.requests.count(b"GET-MASTER-ADDR-BY-NAME") for hop in hops]

    before = counts()
    await until("more polls", lambda: all(now >= was + 2 for now, was in zip(counts(), before, strict=True)), counts)


async def test_a_killed_primary_is_replaced_once_though_a_sentinel_hangs_and_the_old_one_returns(fleet: Fleet) -> None:
    old, *replicas = fleet.shards[0].servers
    with contextlib.ExitStack() as room:
        sentinels = room.enter_context(Sentinels(fleet, down_after_s=1.5))
        hops = [room.enter_context(Hop(each.port)) for each in sentinels.all]
        hung = sentinels.all[2]
        hung.pause()
        async with following_real(fleet, [hop.address for hop in hops]) as seen:
            await seen.announces((old.port, 0))
            old.kill()
            await until("the switch", lambda: len(seen.said) == 2, lambda: seen.said)
            new, epoch = seen.said[1]
            assert new in [each.port for each in replicas]
            assert epoch > 0
            assert ask(new, "ROLE")[0] == b"master"  # type: ignore[index]
            assert seen.announced[1].by in [f"sentinel {hop.address}" for hop in hops[:2]]
            # One comes back that says it is a primary, another that has never heard of its successor.
            old.start()
            hung.resume()
            await polled_again(hops)
            assert old.says_master()
            assert seen.said[2:] == []


async def test_without_a_majority_of_sentinels_nobody_is_announced(fleet: Fleet) -> None:
    primary = fleet.shards[0].primary
    with Sentinels(fleet, down_after_s=1.5) as sentinels, Hop(sentinels.all[0].port) as hop:
        nodes = [hop.address, *sentinels.addresses[1:]]
        async with following_real(fleet, nodes) as seen:
            await seen.announces((primary.port, 0))
            for each in sentinels.all[1:]:
                each.pause()
            primary.kill()
            await says_of_s0(sentinels, sentinels.all[0], "s_down")
            await polled_again([hop])
            assert seen.said == [(primary.port, 0)]


async def says_of_s0(sentinels: Sentinels, one: Sentinel, flag: str) -> None:
    """Return when this Sentinel has that flag on the master s0."""

    def flags() -> str:
        answer = sentinels.ask(one, "SENTINEL", "MASTER", "s0")
        assert isinstance(answer, list)
        said: bytes = answer[answer.index(b"flags") + 1]
        return said.decode()

    await until(flag, lambda: flag in flags().split(","), flags)


async def test_a_planned_promotion_loses_nothing_and_takes_the_choice_of_the_sentinels(fleet: Fleet) -> None:
    primary, chosen, other = fleet.shards[0].servers
    chosen.ask("CONFIG", "SET", "replica-priority", 10)  # offsets are as of when a Sentinel asked for them
    with Sentinels(fleet) as sentinels:
        sentinels.wait_connected()
        async with following_real(fleet, sentinels.addresses) as seen:
            await seen.announces((primary.port, 0))
            hand_over, health = seen.promoters[0].hand_over, NodeHealth(primary.address)
            with pytest.raises(PromotionFailed, match=f"would choose {chosen.address}: by replica-priority, ") as why:
                await hand_over(PromotionPlan("s0", 1, health, NodeHealth(other.address), (), named=True))
            assert not why.value.again
            await hand_over(PromotionPlan("s0", 1, health, NodeHealth(chosen.address), (), named=True))
            await seen.announces((primary.port, 0), (chosen.port, 1))
            assert primary.ask("ROLE")[0] == b"slave"  # type: ignore[index]


async def test_sentinels_that_know_no_coordinated_failover_hand_over_while_writes_wait(fleet: Fleet) -> None:
    primary, *replicas = fleet.shards[0].servers
    with contextlib.ExitStack() as room:
        sentinels = room.enter_context(Sentinels(fleet))
        hop = room.enter_context(Hop(sentinels.all[0].port))
        # as those of Redis and of Valkey 8 answer
        hop.answer(b"COORDINATED", b"-ERR wrong number of arguments for 'sentinel|failover' command\r\n")
        async with following_real(fleet, [hop.address, *sentinels.addresses[1:]]) as seen:
            await seen.announces((primary.port, 0))
            healths = [NodeHealth(each.address, reachable=True, role="slave") for each in replicas]
            handing = seen.promoters[0].hand_over(
                PromotionPlan("s0", 1, NodeHealth(primary.address), healths[0], (healths[1],))
            )
            primary.ask("SET", "number", 0)
            writing = asyncio.to_thread(write_until_refused, primary)
            _, (written, refusal) = await asyncio.gather(handing, writing)
            assert refusal.startswith("READONLY")
            new = next(each for each in replicas if each.port == seen.said[1][0])
            assert new.ask("GET", "number") == b"%d" % written
            assert primary.ask("ROLE")[:3] == [b"slave", HOST.encode(), new.port]  # type: ignore[index]


def write_until_refused(server: Server) -> tuple[int, str]:
    """The last number that the server took, and how it refused the next."""
    with Connection(server.port) as conn:
        for number in range(1, 1_000_000):
            answer = conn.ask("SET", "number", number)
            if answer != b"OK":
                return number - 1, error(answer)
    raise AssertionError("it took them all")


async def test_sentinels_with_a_password_are_asked_with_it(fleet: Fleet, tmp_path: Path) -> None:
    with Sentinels(fleet, password="s3cret") as sentinels:
        async with following_real(fleet, sentinels.addresses, password_file=secret(tmp_path, "s3cret")) as seen:
            await seen.announces((fleet.shards[0].primary.port, 0))


async def test_a_wrong_password_is_said_once_by_the_name_of_its_option(
    fleet: Fleet, tmp_path: Path, logged: Log
) -> None:
    with Sentinels(fleet, password="s3cret") as sentinels:
        async with following_real(fleet, sentinels.addresses, password_file=secret(tmp_path, "wrong")) as seen:
            await until("three lines", lambda: len(logged.lines()) == 3, logged.lines)
            assert seen.said == []
    reason = "refused the password of sentinel.password_file (WRONGPASS)"
    expected = [f'+sentinel-lost sentinel={each} reason="{reason}"' for each in sentinels.addresses]
    assert sorted(logged.lines()) == sorted(expected)


def secret(directory: Path, password: str) -> str:
    """A file with this password."""
    file = directory / "password"
    file.write_text(password)
    file.chmod(0o600)
    return str(file)
