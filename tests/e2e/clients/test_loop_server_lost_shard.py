"""What loop-server needs of its endpoint while one shard of ten is lost, or replaced: nine points, with its own client
library and its profile. It ends itself on a reset, a refused connection, an error to INFO, SELECT or SUBSCRIBE; nil is
"no such session" to it; for a reply that does not come it waits for ever.

One fleet for all: each test loses another shard, and waits until that is well again.
"""

import http.client
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pyproxy.control.http import admin
from pyproxy.fleet import HOST, Fleet, LiveShard, Server, wait_until
from tests.e2e.clients.loop_server import MONTH_S, NEW_DB, OLD_DB, PATTERN, LoopProxy, expire, wait_received
from tests.e2e.clients.node import NODE_REDIS_0, NodeClient, NodeError
from tests.e2e.rig import PATIENCE_S, Keys

pytestmark = [pytest.mark.usefixtures("node_modules"), pytest.mark.timeout(180)]  # the first one installs

HEARTBEAT = "heartbeat"
"""The one key by which loop-server asks whether its storage is well."""

COUNTER = itertools.count()
LOST = 8  # so many shards are lost in turn; the others are handed over by a test


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=10, replicas=1) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[LoopProxy]:
    with LoopProxy(fleet) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def storage(node_modules: None, proxy: LoopProxy) -> Iterator[NodeClient]:
    """The one connection for all users."""
    with NodeClient(NODE_REDIS_0, proxy.port, db=NEW_DB) as client:
        yield client


@dataclass
class Lost:
    """The shard of a test, by its index, and how it is lost."""

    index: int
    shard: LiveShard
    keys: Keys
    paused: bool = False

    def key(self, prefix: str) -> str:
        """A key there."""
        return self.keys.one(self.index, prefix)

    def elsewhere(self, prefix: str) -> str:
        return self.keys.one((self.index + 1) % 10, prefix)

    def kill(self) -> None:
        """The primary ends; the replica will take over."""
        primary = self.shard.primary
        (primary if primary.running else self.shard.replicas[0]).kill()

    def pause(self) -> None:
        """Both accept connections and say nothing: nobody can take over."""
        self.paused = True
        for each in self.shard.servers:
            each.pause()


@pytest.fixture
def lost(fleet: Fleet, proxy: LoopProxy, storage: NodeClient, keys: Keys) -> Iterator[Lost]:
    index = next(COUNTER) % LOST
    lost = Lost(index, fleet.shards[index], keys)
    yield lost
    if lost.paused:
        # a loss that the parent has not noticed yet would be noticed in the next test
        wait_until("the loss to be seen", lambda: heartbeat(proxy) == 503, proxy.tail)
        for each in lost.shard.servers:
            if each.running:
                each.resume()
    dead = [each for each in lost.shard.servers if not each.running]
    if dead:  # the same of a loss by a kill
        wait_until("the replica to take over", lambda: lost.shard.present_primary() is not None, proxy.tail)
    wait_until("all shards to be well", lambda: heartbeat(proxy) == 200, proxy.tail)
    for each in dead:
        primary = lost.shard.present_primary()
        assert primary is not None
        each.revive(primary)
    until_done("its worker to know", lambda: storage.do("call", "set", lost.key("well"), "x"))


def until_done(what: str, attempt: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Repeat until it is answered; the answer, and the errors before it."""
    errors: list[str] = []
    answers: list[Any] = []

    def done() -> bool:
        try:
            answers.append(attempt())
        except NodeError as error:
            errors.append(str(error))
        return bool(answers)

    wait_until(what, done, lambda: f"errors: {errors[-1:]}", PATIENCE_S)
    return answers[0], errors


def touch(user: list[str]) -> list[list[Any]]:
    """What each authenticated request does."""
    return [["expire", key, MONTH_S] for key in user]


def assert_not_applied(errors: list[str]) -> None:
    assert errors, "nothing was refused"
    for each in errors:
        assert "TRYAGAIN shard s" in each and "applied=no" in each, each


def test_1_no_connection_ends_while_a_primary_is_replaced(storage: NodeClient, lost: Lost) -> None:
    key, before = lost.key("hawk."), storage.do("call", "client", "id")
    storage.do("call", "setex", key, MONTH_S, "session")
    wait_replicated(lost.shard)
    lost.kill()
    (answer, errors) = until_done("a promotion", lambda: storage.do("call", "setex", key, MONTH_S, "renewed"))
    assert (answer, storage.do("get", key)) == ("OK", "renewed")
    assert_not_applied(errors)
    assert storage.do("events") == ["ready"]
    assert storage.do("call", "client", "id") == before


def wait_replicated(shard: LiveShard) -> None:
    """Its replica has all that was written so far."""
    written = offset(shard.primary)
    wait_until("the replica", lambda: offset(shard.replicas[0]) >= written, shard.replicas[0].tail)


def offset(server: Server) -> int:
    role = server.ask("ROLE")  # ["master", offset, replicas], ["slave", host, port, state, offset]
    assert isinstance(role, list)
    return int(role[1] if role[0] == b"master" else role[4])


def test_2_a_process_can_start_whatever_the_servers_do(proxy: LoopProxy, lost: Lost) -> None:
    lost.pause()
    with NodeClient(NODE_REDIS_0, proxy.port, db=OLD_DB) as client:
        assert client.do("infoAtConnect")["loading"] == "0"
        assert client.do("select", NEW_DB) == "OK"
        assert client.do("call", "config", "set", "notify-keyspace-events", "Ex") == "OK"
        assert client.do("call", "set", lost.elsewhere("k"), "x") == "OK"
        assert client.do("expired") == PATTERN
        for channel in (lost.key("call"), lost.elsewhere("call")):
            assert client.do("subscribe", channel) == channel
        assert client.do("events") == ["ready"]


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_3_each_command_for_it_is_an_error_in_its_place(storage: NodeClient, lost: Lost, how: str) -> None:
    here, there = lost.key("here"), lost.elsewhere("there")
    getattr(lost, how)()
    calls = [["set", there, "1"], ["set", here, "x"], ["get", there], ["sadd", here, "x"], ["set", there, "2"]]
    for _ in range(5):
        first, no, second, neither, third = storage.do("pipeline", calls)
        assert (first, second, third) == ("OK", "1", "OK")
        for each in (no["error"], neither["error"]):
            assert "TRYAGAIN shard s" in each or "UNCERTAIN shard s" in each, each
    assert storage.do("get", there) == "2"


def test_4_what_was_out_is_an_error_and_is_not_done_again(storage: NodeClient, lost: Lost) -> None:
    key = lost.key("call.devices.")
    assert storage.do("call", "incr", key) == 1
    wait_replicated(lost.shard)
    lost.shard.primary.pause()
    storage.begin("call", "incr", key)  # it reaches the server's socket, and no further
    with pytest.raises(NodeError, match=r"UNCERTAIN shard s\d"):
        storage.answer()
    lost.kill()
    assert until_done("a promotion", lambda: storage.do("call", "incr", key))[0] == 2


def test_5_a_transaction_fails_as_a_whole_and_is_never_nil(storage: NodeClient, lost: Lost) -> None:
    here, there = lost.key("userCalls."), lost.elsewhere("call.")
    calls = [["setex", there, 60, "{}"], ["sadd", here, there], ["expire", here, 60]]
    lost.kill()
    with pytest.raises(NodeError, match="TRYAGAIN"):
        storage.do("call", "set", here, "x")  # from now on it is known
    with pytest.raises(NodeError, match=r"EXECABORT .*applied=no"):
        storage.do("multi", calls)
    assert storage.do("get", there) is None
    assert until_done("a promotion", lambda: storage.do("multi", calls))[0] == ["OK", 1, 1]


def test_5_a_transaction_that_was_sent_is_one_error_that_says_it_may_have_been_applied(
    storage: NodeClient, lost: Lost
) -> None:
    here, there = lost.key("userCalls."), lost.elsewhere("call.")
    lost.pause()
    with pytest.raises(NodeError, match=rf"UNCERTAIN .*s{lost.index}"):
        storage.do("multi", [["setex", there, 60, "{}"], ["sadd", here, there], ["get", there]])


EMPTY: list[list[Any]] = [
    ["get", "K"], ["hgetall", "K"], ["smembers", "K"], ["scard", "K"], ["ttl", "K"], ["pttl", "K"], ["expire", "K", 1],
    ["del", "K"], ["del", "A", "K", "B"], ["mget", "A", "K"], ["keys", "nothing*"],
]  # fmt: skip
"""What would be nil, empty or 0 for a key that is not there."""


def test_6_a_lost_shard_is_never_nil_empty_or_zero(storage: NodeClient, lost: Lost) -> None:
    keys = {"K": lost.key("K"), "A": lost.elsewhere("A"), "B": lost.elsewhere("B")}
    lost.pause()
    for call in EMPTY:
        with pytest.raises(NodeError, match=rf"shard s{lost.index} |shards? .*s{lost.index}"):
            storage.do("call", *(keys.get(each, each) for each in call))
    with pytest.raises(NodeError, match=f"s{lost.index}"):
        storage.do("scan", "")
    assert storage.do("call", "mget", keys["A"], keys["B"]) == [None, None]


def test_7_events_go_on_after_a_promotion_and_none_comes_twice(
    storage: NodeClient, proxy: LoopProxy, lost: Lost
) -> None:
    channel, keys = lost.key("call"), [lost.key("before"), lost.elsewhere("before")]
    with NodeClient(NODE_REDIS_0, proxy.port) as events, NodeClient(NODE_REDIS_0, proxy.port) as calls:
        events.do("expired")
        expected = expire(storage, keys)
        wait_received(events, expected)
        wait_replicated(lost.shard)
        lost.kill()
        assert calls.do("subscribe", channel) == channel
        until_done("a promotion", lambda: storage.do("call", "set", lost.key("k"), "x"))
        wait_until("the call to be heard of", lambda: publish(storage, channel) == 1, proxy.tail, PATIENCE_S)
        expected += expire(storage, [lost.key("after"), lost.elsewhere("after")])
        wait_received(events, expected)
        assert events.do("events") == calls.do("events") == ["ready"]
    new = lost.shard.replicas[0].ask("CONFIG", "GET", "notify-keyspace-events")
    assert new == [b"notify-keyspace-events", b"xE"]


def publish(storage: NodeClient, channel: str) -> int:
    """How many heard it; 0 while its shard does not answer."""
    try:
        return int(storage.do("publish", channel, "alerting"))
    except NodeError:
        return 0


def test_8_all_users_without_a_key_there_notice_nothing(storage: NodeClient, lost: Lost) -> None:
    digits = random.Random(8)
    users = [renewed(f"{digits.getrandbits(128):032x}", f"{digits.getrandbits(128):032x}") for _ in range(40)]
    concerned = [any(lost.keys.shard_of(key) == lost.index for key in user) for user in users]
    assert 15 < sum(concerned) < 30, "of eight keys over ten shards one is there for 57 users of 100"
    lost.pause()
    for user, is_concerned in zip(users, concerned, strict=True):
        if is_concerned:
            with pytest.raises(NodeError, match=rf"(EXECABORT|UNCERTAIN) .*s{lost.index}"):
                storage.do("multi", touch(user))
        else:
            assert storage.do("multi", touch(user)) == [0] * 8


def renewed(user: str, device: str) -> list[str]:
    """The keys of one session."""
    of_device = [f"{name}.{device}" for name in ("userid", "hawk", "hawkuser")]
    of_user = [f"{name}.{user}" for name in ("spurls", "userUrls", "userCalls", "userRooms")]
    return [*of_device, *of_user, f"spurls.{user}.{device}"]


def test_9_its_heartbeat_sees_one_shard_and_the_proxys_sees_all(
    storage: NodeClient, proxy: LoopProxy, lost: Lost
) -> None:
    assert lost.keys.shard_of(HEARTBEAT) != lost.index
    seen = [heartbeat(proxy)]
    assert seen == [200]
    lost.pause()

    def is_lost() -> bool:
        seen.append(heartbeat(proxy))
        return seen[-1] == 503

    wait_until("the proxy's heartbeat to fail", is_lost, lambda: f"it said {seen[-1]}")
    assert storage.do("call", "setex", HEARTBEAT, 3600, 1447000000000) == "OK"


def heartbeat(proxy: LoopProxy) -> int:
    connection = http.client.HTTPConnection(HOST, proxy.http_port, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/__heartbeat__")
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_planned_promotion_costs_no_request(storage: NodeClient, proxy: LoopProxy, fleet: Fleet, keys: Keys) -> None:
    user, ended, answers = [keys.one(shard, "user") for shard in (9, 8)], threading.Event(), list[Any]()

    def work() -> None:
        while not ended.is_set():
            try:
                answers.append(storage.do("multi", [["incr", key] for key in user]))
            except NodeError as error:
                answers.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_until("requests", lambda: len(answers) > 20, lambda: str(answers[-1:]))
        for shard in ("s9", "s8"):
            wait_until("a fit candidate", lambda shard=shard: promoted(proxy, shard), proxy.tail)  # type: ignore[misc]
        before = len(answers)
        wait_until("requests", lambda: len(answers) > before + 20, lambda: str(answers[-1:]))
    finally:
        ended.set()
        thread.join(PATIENCE_S)
    assert answers == [[number, number] for number in range(1, len(answers) + 1)]
    assert storage.do("events") == ["ready"]


def promoted(proxy: LoopProxy, shard: str) -> bool:
    return admin.ask(str(proxy.admin), admin.Promote(shard, ""), PATIENCE_S).done
