"""A worker of which nobody wants anything looks seldom at what could have expired, and soon when something begins."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyproxy.fleet import Fleet, Proxy, wait_until
from pyproxy.metrics import HUNG_S
from pyproxy.worker.main import REST_S, TICK_S
from tests.e2e.bare_worker import BareWorker
from tests.e2e.rig import PATIENCE_S, Connection, Keys, error

COUNTED_S = 2.0


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=2, replicas=0) as fleet:
        yield fleet


def heartbeats(worker: BareWorker, for_s: float) -> set[int]:
    """When it looked, in so many seconds."""
    seen, until = set(), time.monotonic() + for_s
    while time.monotonic() < until:
        seen.add(worker.count("heartbeat_us"))
        time.sleep(TICK_S / 4)
    return seen


def test_at_rest_it_looks_seldom_and_still_often_enough_to_be_seen_alive(fleet: Fleet) -> None:
    """A client that is connected and asks nothing changes nothing; a busy machine makes it look less often still."""
    assert REST_S < HUNG_S
    with BareWorker(fleet) as worker, Connection(worker.port) as conn:
        assert conn.ask("PING") == b"PONG"
        most = COUNTED_S / REST_S * 2
        wait_until("it to rest", lambda: len(heartbeats(worker, COUNTED_S)) <= most, worker.tail, PATIENCE_S * 2)


def wakes(worker: BareWorker, for_s: float) -> int:
    """How often it waited for the world, in so many seconds."""

    def waits() -> int:
        said = Path(f"/proc/{worker.pid}/status").read_text()
        return int(said.partition("\nvoluntary_ctxt_switches:")[2].split(None, 1)[0])

    before, until = waits(), time.monotonic() + for_s
    wait_until("the time to pass", lambda: time.monotonic() > until, str, for_s + PATIENCE_S)
    return waits() - before


def test_at_rest_it_wakes_for_its_looks_alone(fleet: Fleet) -> None:
    """Beside that it wakes for the answers to its PINGs: not in all windows of this length, as nobody is subscribed."""
    with BareWorker(fleet) as worker, Connection(worker.port) as conn:
        assert conn.ask("PING") == b"PONG"
        most = COUNTED_S / REST_S + 1
        wait_until("it to rest", lambda: wakes(worker, COUNTED_S) <= most, worker.tail, PATIENCE_S * 2)


@pytest.mark.parametrize(
    "asks", [("SUBSCRIBE", "news"), ("BLPOP", "key", "0"), ("BLPOP", "a", "b", "c", "d", "0")], ids=str
)
def test_a_client_that_waits_for_what_may_never_come_lets_it_rest(fleet: Fleet, asks: tuple[str, ...]) -> None:
    with BareWorker(fleet, cross_shard="emulate") as worker, Connection(worker.port) as conn:
        conn.send(asks)
        waiting = "subscribers" if asks[0] == "SUBSCRIBE" else "blocked_clients"
        wait_until("it to wait", lambda: worker.count(waiting) == 1, worker.tail, PATIENCE_S)
        most = COUNTED_S / REST_S * 2
        wait_until("it to rest", lambda: len(heartbeats(worker, COUNTED_S)) <= most, worker.tail, PATIENCE_S * 2)


def test_what_begins_while_it_is_at_rest_has_its_deadline(fleet: Fleet) -> None:
    with (
        BareWorker(fleet, timeouts={"reply_s": 0.1, "silence_s": PATIENCE_S}) as worker,
        Connection(worker.port) as conn,
    ):
        key, primary = Keys(worker).one(0), fleet.shards[0].primary
        assert conn.ask("SET", key, "v") == b"OK"
        wait_until("it to rest", lambda: len(heartbeats(worker, 0.5)) <= 5, worker.tail, PATIENCE_S * 2)
        primary.pause()
        try:
            assert error(conn.ask("GET", key)).startswith("TRYAGAIN ")
        finally:
            primary.resume()


def test_a_check_for_a_client_that_waits_has_its_deadline_though_it_rests(fleet: Fleet) -> None:
    """Ten such checks a second are not something that begins, as long as they are answered."""
    timeouts = {"reply_s": 0.1, "silence_s": PATIENCE_S}
    with BareWorker(fleet, cross_shard="emulate", timeouts=timeouts) as worker, Connection(worker.port) as conn:
        keys, primary = Keys(worker), fleet.shards[0].primary
        conn.send(("BLPOP", keys.one(1, "list"), keys.one(0, "list"), "0"))
        wait_until("it to wait", lambda: worker.count("blocked_clients") == 1, worker.tail, PATIENCE_S)
        wait_until("it to rest", lambda: len(heartbeats(worker, 0.5)) <= 5, worker.tail, PATIENCE_S * 2)
        primary.pause()
        try:
            assert error(conn.read()).split()[0] in ("TRYAGAIN", "UNCERTAIN")
        finally:
            primary.resume()


def test_while_nobody_asks_a_server_says_little_to_the_parent(fleet: Fleet) -> None:
    """Less than half of what it would if it were asked for all of INFO at each look."""
    primary = fleet.shards[0].primary

    def stat(name: str) -> int:
        said = primary.ask("INFO", "stats")
        assert isinstance(said, bytes)
        return int(said.partition(name.encode() + b":")[2].split(b"\r\n")[0])

    whole = primary.ask("INFO", "everything")
    assert isinstance(whole, bytes)

    def said_per_check() -> float:
        commands, sent, until = stat("total_commands_processed"), stat("total_net_output_bytes"), time.monotonic() + 4.0
        wait_until("looks", lambda: time.monotonic() > until, str, PATIENCE_S)
        healths = (stat("total_commands_processed") - commands - 3) / 2  # without these questions; each has a PING
        return (stat("total_net_output_bytes") - sent) / max(1, healths)

    with Proxy(fleet):
        wait_until("little", lambda: said_per_check() < len(whole) / 2, lambda: str(said_per_check()), PATIENCE_S * 2)
