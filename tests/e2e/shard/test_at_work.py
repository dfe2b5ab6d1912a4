"""A server that stands still because of what clients have sent it through the proxy: busy, and not down."""

import contextlib
import datetime
import re
import time
from collections.abc import Callable, Iterator

import pytest

from pyproxy.fleet import Fleet, Proxy, Server, Table, wait_until
from pyproxy.messages import AtWork, Work
from tests.e2e.bare_worker import BareWorker
from tests.e2e.rig import PATIENCE_S, Connection, Keys, behind, error, of_a_worker, wait_for_info, wait_for_line
from tests.faults import Hop, Way

DOWN_AFTER_S = 1.0
REPLACED: Table = {"promoter": "replicaof", "down_after_s": DOWN_AFTER_S}
BUSY = 0
Words = tuple[str | int, ...]

SLOW_WORDS = 100_000
"""A command of more words is slow; see lane.pyx."""


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=2, replicas=1) as fleet:
        yield fleet


def test_a_primary_that_is_at_a_keys_of_ours_is_busy_until_it_answers_and_nobody_is_promoted(fleet: Fleet) -> None:
    """Every shard at once, as KEYS asks all of them: nothing is doubted, and nothing is down."""
    primary = fleet.shards[BUSY].primary
    with (
        Hop(primary.port, of_a_worker) as hop,
        behind(fleet, {BUSY: hop}, 2, promotion=REPLACED) as proxy,
        Connection(proxy.port) as conn,
        Connection(proxy.port) as other,
    ):
        key = Keys(proxy).one(BUSY)
        assert other.ask("SET", key, "v") == b"OK"
        hop.stall(Way.REPLIES)  # the KEYS is there before the server stands still, however slow this test is
        conn.send(("KEYS", "*"))
        wait_until("it to be asked", lambda: b"KEYS" in hop.requests, proxy.tail, PATIENCE_S)
        primary.pause()
        stopped = time.monotonic()
        wait_for_line(proxy, rf"\+busy shard=s{BUSY} node=\S+ role=master ")
        wait_for_info(other, "it to be busy", lambda info: "state=busy" in info[f"shard_s{BUSY}"])
        wait_until("the time in which it would be replaced", lambda: time.monotonic() > stopped + 3 * DOWN_AFTER_S, str)
        primary.resume()
        hop.heal()
        assert conn.read() == [key.encode()]
        wait_for_line(proxy, rf"-busy shard=s{BUSY} node=\S+ role=master ")
        said = proxy.log.read_text()
        assert not [event for event in ("+suspect", "+sdown", "+odown", "+switch-master") if f"{event} " in said]


def test_a_worker_says_what_its_server_is_at_work_on_and_when_that_is_over(fleet: Fleet) -> None:
    with BareWorker(fleet, timeouts={"slow_reply_s": PATIENCE_S}) as worker, Connection(worker.port) as conn:
        primary = fleet.shards[BUSY].primary
        assert conn.ask("DEL", Keys(worker).one(BUSY)) in (0, 1)  # so it is connected
        asked = time.monotonic()
        primary.pause()
        conn.send(("KEYS", "*"))
        worker.wait_for("the work to be told", lambda: bool(worker.of(AtWork)))
        said = worker.of(AtWork)[-1].nodes
        primary.resume()
        assert said.keys() == {primary.address}
        (work,) = said[primary.address]
        assert work.shard == "s0"
        assert asked <= work.since == work.until - PATIENCE_S
        assert conn.read() == []
        worker.wait_for("its end to be told", lambda: worker.of(AtWork)[-1] == AtWork({}))


def is_taken(said: AtWork) -> bool:
    return any(work.taken_at for works in said.nodes.values() for work in works)


def pings(server: Server) -> int:
    """How often the server was asked PING."""
    said = server.ask("INFO", "commandstats")
    assert isinstance(said, bytes)
    found = re.search(rb"cmdstat_ping:calls=(\d+)", said)
    return int(found[1]) if found else 0


def test_a_primary_that_hangs_while_a_pop_of_very_many_keys_waits_there_is_silent_and_not_busy(fleet: Fleet) -> None:
    """It has answered checks since it began to wait, so it is not at it."""
    primary = fleet.shards[BUSY].primary
    with (
        behind(fleet, {}, 1, promotion=REPLACED, timeouts={"slow_reply_s": 10 * PATIENCE_S}) as proxy,
        Connection(proxy.port) as waits,
        Connection(proxy.port) as other,
    ):
        key = Keys(proxy).one(BUSY)
        waits.send(very_large_pop(key))
        wait_for_info(other, "it to wait", lambda info: info["blocked_clients"] == "1")
        asked = pings(primary)
        wait_until("checks of it meanwhile", lambda: pings(primary) > asked + 4, proxy.tail, PATIENCE_S)
        primary.pause()
        wait_for_line(proxy, rf"\+switch-master shard=s{BUSY} ")
        assert "+busy " not in proxy.log.read_text()


def test_whatever_clients_ask_of_a_primary_that_hangs_it_is_waited_for_no_longer_than_for_the_first(
    fleet: Fleet,
) -> None:
    """One more each second, of which each alone would excuse a silence of `slow_reply_s`."""
    primary = fleet.shards[BUSY].primary
    slow_reply_s = 4.0
    timeouts = {"slow_reply_s": slow_reply_s, "reply_s": 1.0}
    with behind(fleet, {}, 1, promotion=REPLACED, timeouts=timeouts) as proxy, contextlib.ExitStack() as room:
        other = room.enter_context(Connection(proxy.port))
        conns = [room.enter_context(Connection(proxy.port)) for _ in range(10)]
        key = Keys(proxy).one(BUSY)
        for conn in conns:  # so the proxy has a connection for each of them already
            conn.send(("BLPOP", key, 0))
        wait_for_info(other, "them to wait", lambda info: info["blocked_clients"] == str(len(conns)))
        assert other.ask("RPUSH", key, *range(len(conns))) == len(conns)
        for conn in conns:
            conn.read()
        primary.pause()
        conns[0].send(very_large_pop(key))
        wait_for_info(other, "the first to be sent", lambda info: info["blocked_clients"] == "1")
        first = time.time()  # as the log's
        send_in_turn(conns[1:], very_large_pop(key), lambda: f"+switch-master shard=s{BUSY} " in proxy.log.read_text())
        (until_at_most,) = (moment + for_s for moment, for_s in excuses(proxy))
        assert until_at_most <= first + slow_reply_s + 0.1


def excuses(proxy: Proxy) -> list[tuple[float, float]]:
    """When the log said that the primary is busy, by the clock of the day, and for how many seconds at most."""
    found = re.findall(rf"\+busy shard=s{BUSY} .* for_s_at_most=(\S+) at=(\S+)", proxy.log.read_text())
    return [(datetime.datetime.fromisoformat(at).timestamp(), float(for_s)) for for_s, at in found]


def send_in_turn(conns: list[Connection], command: Words, is_over: Callable[[], bool]) -> None:
    """Send it on one connection after the other, one each second, until it is over."""
    turns, due = iter(conns), time.monotonic()

    def sent() -> bool:
        nonlocal due
        if time.monotonic() >= due and (conn := next(turns, None)) is not None:
            due += 1.0
            conn.send(command)
        return is_over()

    wait_until("it to be over", sent, str, PATIENCE_S)


def very_large_pop(key: str) -> Words:
    return ("BLPOP", *(f"{{{key}}}{number}" for number in range(SLOW_WORDS + 1)), 0)


@pytest.mark.parametrize("keys_of", [1_000, 150_000], ids=["of some keys", "of very many keys"])
def test_a_command_of_very_many_words_is_work_and_one_of_few_is_none(fleet: Fleet, keys_of: int) -> None:
    """A BLPOP keeps its server busy for 3 s at a million keys; and when it only waits, that is told for a while."""
    slow_reply_s = 2.0
    timeouts = {"slow_reply_s": slow_reply_s, "reply_s": 1.0}
    with (
        BareWorker(fleet, timeouts=timeouts) as worker,
        Connection(worker.port) as waits,
        Connection(worker.port) as asks,
    ):
        key = Keys(worker).one(BUSY)
        assert waits.ask("DEL", key) in (0, 1)
        began = time.monotonic()
        waits.send(("BLPOP", *(f"{{{key}}}{number}" for number in range(keys_of)), 0))
        wait_until("it to wait", lambda: worker.count("blocked_clients") == 1, worker.tail, PATIENCE_S)
        if keys_of > SLOW_WORDS:
            worker.wait_for("the work to be told", lambda: bool(worker.of(AtWork)))
            ((work,),) = worker.of(AtWork)[0].nodes.values()
            assert began <= work.since == work.until - slow_reply_s
            worker.wait_for("that its server has it", lambda: any(is_taken(said) for said in worker.of(AtWork)))
            worker.wait_for("its end to be told", lambda: worker.of(AtWork)[-1] == AtWork({}))
        else:
            asks.send(("KEYS", "*"))
            assert asks.read() == []
            wait_until("the time to pass", lambda: time.monotonic() > began + slow_reply_s, str, PATIENCE_S)
            assert worker.of(AtWork) == []


def test_what_waits_behind_the_work_of_another_worker_is_waited_for(fleet: Fleet) -> None:
    """The parent says so; at a shard of which it says nothing the deadlines pass meanwhile."""
    timeouts = {"reply_s": 0.3, "slow_reply_s": PATIENCE_S, "silence_s": PATIENCE_S}
    with (
        BareWorker(fleet, timeouts=timeouts) as worker,
        Connection(worker.port) as conn,
        Connection(worker.port) as other,
    ):
        keys = Keys(worker)
        here, there = keys.one(BUSY), keys.one(1)
        assert (conn.ask("SET", here, "v"), other.ask("SET", there, "v")) == (b"OK", b"OK")
        primaries = [shard.primary for shard in fleet.shards]
        for primary in primaries:
            primary.pause()
        now = time.monotonic()
        worker.send(AtWork({primaries[BUSY].address: [Work("s0", now, now + PATIENCE_S)]}))
        conn.send(("APPEND", here, "w"))
        for _ in range(3):
            assert error(other.ask("GET", there)).startswith("TRYAGAIN ")
        for primary in primaries:
            primary.resume()
        assert conn.read() == 2
