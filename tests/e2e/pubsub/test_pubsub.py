"""Publish/subscribe over all shards and workers as on one server: what is confirmed, what arrives, what is counted."""

import os
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest

from protocol import glob
from pyproxy.control.http import admin
from pyproxy.fleet import HOST, Fleet, Proxy, Server, Table, wait_until
from tests.e2e.rig import (
    PATIENCE_S,
    PATIENT,
    Connection,
    Keys,
    error,
    one_on_each_worker,
    packed,
    proxy_info,
    wait_for_info,
)
from tests.processes import command_line, family
from tests.wire import exchange

SUBSCRIBER_ONLY = (
    "ERR Can't execute 'get': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
)


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    """Two workers, and both serve: clients come to them in turn."""
    with Proxy(fleet, None, 2) as proxy:
        wait_until("both workers", lambda: "+ready " in proxy.log.read_text(), proxy.tail)
        yield proxy


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def proto(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def connected(proxy: Proxy, proto: int = 2) -> Connection:
    conn = Connection(proxy.port)
    if proto == 3:
        conn.ask("HELLO", "3")
    return conn


def subscribed(conn: Connection, *argv: str) -> None:
    """Send a (P|S)SUBSCRIBE, and have it confirmed."""
    verb, *names = argv
    conn.send(argv)
    said = conn.reads(len(names))
    assert [each[:2] for each in said if isinstance(each, list)] == [[verb.lower().encode(), n.encode()] for n in names]


def wait_told(conn: Connection, what: str, name: str, count: int) -> None:
    """The worker of this client knows of so many subscribers, of all workers."""

    def known() -> bool:
        return conn.ask("PUBSUB", what, name) == [name.encode(), count]

    wait_until(f"{count} of {name}", known, lambda: str(conn.ask("PUBSUB", what, name)), PATIENCE_S)


def upstream(fleet: Fleet, *argv: str) -> list[object]:
    """What each primary answers."""
    return [shard.primary.ask(*argv) for shard in fleet.shards]


# --- as one server ----------------------------------------------------------------------------------------------------

SCRIPTS = {
    "subscribing": ["SUBSCRIBE a b a", "UNSUBSCRIBE a", "PSUBSCRIBE p* p*", "SSUBSCRIBE s", "SUNSUBSCRIBE s"],
    "ending all of a kind": ["SUBSCRIBE a", "PSUBSCRIBE p", "UNSUBSCRIBE", "PUNSUBSCRIBE", "GET a"],
    "ending what was not begun": ["UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE", "UNSUBSCRIBE a b", "SUBSCRIBE a"],
    "other commands": ["SUBSCRIBE a", "GET a", "GETX", "GET", "MGET a b", "HELLO 9", "ECHO x", "PING x"],
    "one shard channel": ["SSUBSCRIBE s", "GET a", "SUNSUBSCRIBE", "GET a"],
    "reset": ["SUBSCRIBE a", "PSUBSCRIBE a*", "RESET", "PUBLISH a x", "PING"],
    "no reply": ["CLIENT REPLY OFF", "SUBSCRIBE a", "UNSUBSCRIBE a", "CLIENT REPLY ON"],
    "no next reply": ["CLIENT REPLY SKIP", "SUBSCRIBE a", "UNSUBSCRIBE a", "PING"],
    "numbers": ["SUBSCRIBE only", "PUBSUB NUMSUB only none", "PUBSUB NUMSUB", "PUBSUB SHARDNUMSUB only"],
    "wrong": ["SUBSCRIBE", "PUBLISH a", "PUBSUB", "PUBSUB FOO", "PUBSUB CHANNELS a b", "PUBSUB NUMPAT x"],
    "help": ["PUBSUB HELP", "pubsub help"],
    "nobody": ["PUBLISH nobody x", "SPUBLISH nobody x", "PUBSUB SHARDCHANNELS nobody"],
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_everything_is_answered_as_by_one_server(
    script: Sequence[str], proxy: Proxy, server: Server, proto: int
) -> None:
    hello = [packed("HELLO", "3")] if proto == 3 else []
    said = b"".join([*hello, *(packed(*line.split()) for line in script), packed("RESET")])
    ours, theirs = (without_greeting(exchange(port, said)) for port in (proxy.port, server.port))
    assert ours == theirs
    with Connection(proxy.port) as one, Connection(proxy.port) as other:  # who may be on different workers
        for conn in (one, other):
            wait_told(conn, "NUMSUB", "only", 0)
    assert without_greeting(byte_by_byte(proxy.port, said)) == theirs


def without_greeting(answer: bytes) -> bytes:
    """HELLO's answer names the server."""
    if not answer.startswith((b"%", b"*14")):
        return answer
    return answer[max(answer.find(b"modules\r\n*0\r\n"), answer.find(b"\r\n*0\r\n")) :].partition(b"*0\r\n")[2]


def byte_by_byte(port: int, request: bytes) -> bytes:
    """The answer when each byte is sent alone; the last command is RESET."""
    ends = request.count(b"RESET")
    with socket.create_connection((HOST, port), timeout=PATIENCE_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request:
            connection.send(bytes([byte]))
        received = b""
        while received.count(b"+RESET\r\n") < ends:
            more = connection.recv(65536)
            assert more, f"closed after {received[-200:]!r}"
            received += more
    return received


def test_a_subscriber_gets_each_message_once_and_once_for_each_of_its_patterns(proxy: Proxy, proto: int) -> None:
    with connected(proxy, proto) as conn, connected(proxy) as other, connected(proxy) as publisher:
        subscribed(conn, "SUBSCRIBE", "news", "more")
        subscribed(conn, "PSUBSCRIBE", "n*", "*s", "x*")
        subscribed(other, "PSUBSCRIBE", "n*")
        wait_until("three patterns", lambda: publisher.ask("PUBSUB", "NUMPAT") == 3, proxy.tail)
        wait_told(publisher, "NUMSUB", "news", 1)
        assert publisher.ask("PUBLISH", "news", b"\0\r\n\xff") == 4
        heard = conn.reads(3)
        assert heard[0] == [b"message", b"news", b"\0\r\n\xff"]
        assert sorted(heard[1:]) == [  # type: ignore[type-var]
            [b"pmessage", b"*s", b"news", b"\0\r\n\xff"],
            [b"pmessage", b"n*", b"news", b"\0\r\n\xff"],
        ]
        assert other.read() == [b"pmessage", b"n*", b"news", b"\0\r\n\xff"]
        assert conn.ask("UNSUBSCRIBE", "more") == [b"unsubscribe", b"more", 4]
        assert other.ask("PING") == [b"pong", b""]


def test_a_message_comes_as_an_array_in_resp2_and_as_a_push_in_resp3(proxy: Proxy) -> None:
    with Connection(proxy.port) as old, connected(proxy, 3) as new, Connection(proxy.port) as publisher:
        for conn in (old, new):
            subscribed(conn, "SUBSCRIBE", "form")
        publisher.ask("PUBLISH", "form", "x")
        assert [conn.socket.recv(100) for conn in (old, new)] == [
            start + b"3\r\n$7\r\nmessage\r\n$4\r\nform\r\n$1\r\nx\r\n" for start in (b"*", b">")
        ]


def test_the_empty_channel_is_matched_by_the_empty_pattern_alone(proxy: Proxy, server: Server) -> None:
    for port in (server.port, proxy.port):
        with Connection(port) as conn, Connection(port) as other, Connection(port) as publisher:
            subscribed(conn, "PSUBSCRIBE", "*", "**", "?", "[^a]")
            subscribed(other, "PSUBSCRIBE", "")
            subscribed(other, "SUBSCRIBE", "")
            wait_until("the patterns", lambda: publisher.ask("PUBSUB", "NUMPAT") == 5, proxy.tail)
            wait_told(publisher, "NUMSUB", "", 1)
            assert publisher.ask("PUBLISH", "", "x") == 2
            assert other.reads(2) == [[b"message", b"", b"x"], [b"pmessage", b"", b"", b"x"]]
            listed = [publisher.ask("PUBSUB", "CHANNELS", *pattern) for pattern in ([], [""], ["*"], ["**"], ["?"])]
            assert listed == [[b""], [b""], [], [], []]


def test_shard_channels_are_apart_from_channels(proxy: Proxy, proto: int) -> None:
    with connected(proxy, proto) as conn, connected(proxy) as publisher:
        subscribed(conn, "SSUBSCRIBE", "apart")
        wait_told(publisher, "SHARDNUMSUB", "apart", 1)
        assert publisher.ask("PUBLISH", "apart", "no") == 0
        assert publisher.ask("SPUBLISH", "apart", "yes") == 1
        assert conn.read() == [b"smessage", b"apart", b"yes"]


def test_in_resp3_everything_is_answered_between_messages_and_in_order(proxy: Proxy) -> None:
    with connected(proxy, 3) as conn:
        conn.send(("SET", "k", "1"), ("SUBSCRIBE", "mine"), ("GET", "k"), ("PUBLISH", "mine", "m"), ("MGET", "k", "q"))
        said, message = conn.reads(6), [b"message", b"mine", b"m"]
        assert said.index(message) > 1
        said.remove(message)
        assert said == [b"OK", [b"subscribe", b"mine", 1], b"1", 1, [b"1", None]]
        conn.send(("GET", "k"), ("HELLO", "2"), ("GET", "k"), ("UNSUBSCRIBE",), ("GET", "k"))
        first, _, limited, *rest = conn.reads(5)
        assert (first, error(limited), rest) == (b"1", SUBSCRIBER_ONLY, [[b"unsubscribe", b"mine", 0], b"1"])


@pytest.mark.parametrize("end", ["UNSUBSCRIBE mine:{}", "UNSUBSCRIBE", "RESET"])
def test_what_a_client_publishes_before_it_leaves_is_counted_and_comes(proxy: Proxy, end: str) -> None:
    """Nearly every time it would be lost if nobody took care."""
    for number in range(20):
        name = f"mine:{number}"
        message, confirmed = [b"message", name.encode(), b"m"], [b"subscribe", name.encode(), 1]
        with connected(proxy, 3) as conn:
            conn.send(("SUBSCRIBE", name), ("PUBLISH", name, "m"), end.format(number).split(), ("PING",))
            said = [conn.read()]
            while said[-1] != b"PONG":
                said.append(conn.read())
        assert sorted(map(str, said[1:3])) == sorted(map(str, [1, message]))
        left = b"RESET" if end == "RESET" else [b"unsubscribe", name.encode(), 0]
        assert said[:1] + said[3:] == [confirmed, left, b"PONG"]


@pytest.mark.parametrize("kind", ["", "P", "S"])
def test_what_is_published_before_somebody_leaves_comes_however_large(proxy: Proxy, proto: int, kind: str) -> None:
    """The publisher has its answer long before the last byte of the message has come."""
    payload, verb = b"x" * (8 << 20), kind.lower().encode()
    with connected(proxy, proto) as conn, connected(proxy) as publisher:
        subscribed(conn, kind + "SUBSCRIBE", "large")
        if kind == "P":
            wait_until("the pattern", lambda: publisher.ask("PUBSUB", "NUMPAT") == 1, proxy.tail)
        else:
            wait_told(publisher, "SHARDNUMSUB" if kind else "NUMSUB", "large", 1)
        assert publisher.ask("SPUBLISH" if kind == "S" else "PUBLISH", "large", payload) == 1
        names = [b"large", b"large"] if kind == "P" else [b"large"]
        assert conn.ask(kind + "UNSUBSCRIBE", "large") == [verb + b"message", *names, payload]
        assert conn.read() == [verb + b"unsubscribe", b"large", 0]


def test_many_that_leave_in_a_row_wait_once(fleet: Fleet, proxy: Proxy) -> None:
    def pings() -> int:
        said = b"".join(each for each in upstream(fleet, "INFO", "commandstats") if isinstance(each, bytes))
        return sum(int(calls) for calls in re.findall(rb"cmdstat_ping:calls=(\d+)", said))

    names = [f"row:{number}" for number in range(1000)]
    with connected(proxy) as conn:
        subscribed(conn, "SUBSCRIBE", *names)
        before = pings()
        conn.send(*[("UNSUBSCRIBE", name) for name in names])
        assert conn.reads(1000) == [[b"unsubscribe", f"row:{left}".encode(), 999 - left] for left in range(1000)]
        assert pings() - before < 100


def test_pipelined_publishes_arrive_in_order(proxy: Proxy, proto: int) -> None:
    with connected(proxy, proto) as conn, connected(proxy, proto) as publisher:
        subscribed(conn, "SUBSCRIBE", "row")
        wait_told(publisher, "NUMSUB", "row", 1)
        publisher.send(*[("PUBLISH", "row", number) for number in range(2000)])
        assert publisher.reads(2000) == [1] * 2000
        assert conn.reads(2000) == [[b"message", b"row", str(number).encode()] for number in range(2000)]


@pytest.mark.parametrize("watch", [[], [("WATCH", "task")]], ids=["alone", "behind a watch"])
def test_in_a_transaction_publish_counts_as_on_one_server_and_subscribe_is_not_served(
    proxy: Proxy, watch: list[tuple[str, str]]
) -> None:
    """As Celery does it: the channel is the key."""
    with connected(proxy) as conn, connected(proxy) as other, connected(proxy) as publisher:
        for each in (conn, other):
            subscribed(each, "SUBSCRIBE", "task")
        wait_told(publisher, "NUMSUB", "task", 2)
        publisher.send(*watch, ("MULTI",), ("SETEX", "task", 10, "v"), ("PUBLISH", "task", "done"), ("EXEC",))
        assert publisher.reads(len(watch) + 4)[len(watch) :] == [b"OK", b"QUEUED", b"QUEUED", [b"OK", 2]]
        assert [each.read() for each in (conn, other)] == [[b"message", b"task", b"done"]] * 2
        publisher.send(("MULTI",), ("SUBSCRIBE", "task"), ("EXEC",))
        _, refused, aborted = publisher.reads(3)
        assert error(refused).startswith("ERR command 'subscribe' is not served in a transaction: ")
        assert error(aborted).startswith("EXECABORT ")


# --- over shards and workers ------------------------------------------------------------------------------------------


def test_expiry_events_of_all_shards_come_in_one_stream(fleet: Fleet, proxy: Proxy, proto: int) -> None:
    keys = [key for shard in range(3) for key in Keys(proxy).on(shard, 2, f"e{proto}-")]
    with connected(proxy, proto) as conn, connected(proxy, proto) as exact, connected(proxy) as writer:
        assert writer.ask("CONFIG", "SET", "notify-keyspace-events", "Ex") == b"OK"
        subscribed(conn, "PSUBSCRIBE", "__keyevent@*__:expired")
        subscribed(exact, "SUBSCRIBE", "__keyevent@0__:expired")
        for shard in fleet.shards:
            shard.primary.ask("CONFIG", "SET", "notify-keyspace-events", "Ex")
        for key in keys:
            writer.ask("SET", key, "v", "PX", 1)
        expected = sorted(key.encode() for key in keys)
        channel = b"__keyevent@0__:expired"
        heard = [each for each in conn.reads(len(keys)) if isinstance(each, list)]
        assert sorted(each[3] for each in heard) == expected
        assert {tuple(each[:3]) for each in heard} == {(b"pmessage", b"__keyevent@*__:expired", channel)}
        heard = [each for each in exact.reads(len(keys)) if isinstance(each, list)]
        assert sorted(each[2] for each in heard) == expected
        assert exact.ask("UNSUBSCRIBE") == [b"unsubscribe", channel, 0]


def test_numbers_are_those_of_all_workers(proxy: Proxy) -> None:
    with Talks(proxy, 0) as talks:
        workers = talks.spread(proxy, 5)
        assert set(workers[:4]) == {"0", "1"}
        for conn in talks[:4]:
            subscribed(conn, "SUBSCRIBE", "sum:a")
        subscribed(talks[0], "SUBSCRIBE", "sum:b")
        subscribed(talks[0], "PSUBSCRIBE", "sum:*", "no*")
        subscribed(talks[1], "PSUBSCRIBE", "sum:*")
        asker = talks[4]
        numbers = [b"sum:a", 4, b"sum:b", 1, b"sum:c", 0]
        wait_until("the sums", lambda: asker.ask("PUBSUB", "NUMSUB", "sum:a", "sum:b", "sum:c") == numbers, proxy.tail)
        wait_until("the patterns", lambda: asker.ask("PUBSUB", "NUMPAT") == 2, proxy.tail)
        channels = asker.ask("PUBSUB", "CHANNELS", "sum:*")
        assert isinstance(channels, list) and sorted(channels) == [b"sum:a", b"sum:b"]
        wait_until("all to be counted", lambda: asker.ask("PUBLISH", "sum:a", "x") == 6, proxy.tail)
        wait_for_info(asker, "INFO", lambda info: (info["pubsub_clients"], info["pubsub_patterns"]) == ("4", "2"))
        lines = asker.ask("CLIENT", "LIST", "TYPE", "pubsub")
        assert isinstance(lines, bytes)
        assert lines and all(b" flags=P " in line for line in lines.splitlines())
        if workers[0] == workers[4]:  # the list is that of the worker that answers
            assert b" sub=2 psub=2 ssub=0 " in lines


class Talks(list[Connection]):
    """So many connections; a context manager."""

    def __init__(self, proxy: Proxy, count: int) -> None:
        super().__init__(Connection(proxy.port) for _ in range(count))

    def spread(self, proxy: Proxy, count: int) -> list[str]:
        """Open so many, half of them at each of two workers -> the worker of each. One that stood still gets none."""
        workers: list[str] = []

        def are_open() -> bool:
            conn = Connection(proxy.port)
            worker = proxy_info(conn)["worker"]
            if workers.count(worker) < (count + 1) // 2:
                self.append(conn)
                workers.append(worker)
            else:
                conn.close()
            return len(workers) == count

        wait_until(f"{count} connections at two workers", are_open, lambda: str(workers))
        return workers

    def __enter__(self) -> "Talks":
        return self

    def __exit__(self, *_: object) -> None:
        for conn in self:
            conn.close()


def test_there_is_one_subscription_per_shard_and_worker_and_none_when_nobody_is_left(
    fleet: Fleet, proxy: Proxy
) -> None:
    with Talks(proxy, 0) as talks:
        talks.spread(proxy, 9)
        for conn in talks:
            subscribed(conn, "SUBSCRIBE", "shared")
            subscribed(conn, "PSUBSCRIBE", "shared*")
            subscribed(conn, "SSUBSCRIBE", "shared")
        assert upstream(fleet, "PUBSUB", "NUMSUB", "shared") == [[b"shared", 2]] * 3
        numbers = upstream(fleet, "PUBSUB", "SHARDNUMSUB", "shared")
        assert sorted(each[1] for each in numbers if isinstance(each, list)) == [0, 0, 2]
        assert upstream(fleet, "PUBSUB", "NUMPAT") == [1] * 3
        talks[0].send(("UNSUBSCRIBE",), ("PUNSUBSCRIBE",), ("SUNSUBSCRIBE",))
        talks[0].reads(3)
        talks[1].ask("RESET")
        talks[2].reset()

        def left() -> bool:
            return talks[0].ask("PUBSUB", "NUMSUB", "shared") == [b"shared", 6]

        wait_until("three to be gone", left, proxy.tail)
    wait_until("none to be left", lambda: upstream(fleet, "PUBSUB", "CHANNELS") == [[]] * 3, proxy.tail)
    wait_until("no shard channel", lambda: upstream(fleet, "PUBSUB", "SHARDCHANNELS") == [[]] * 3, proxy.tail)
    wait_until("no pattern to be left", lambda: upstream(fleet, "PUBSUB", "NUMPAT") == [0] * 3, proxy.tail)


def test_a_thousand_subscribers_get_one_publish(proxy: Proxy) -> None:
    with Talks(proxy, 1000) as talks, Connection(proxy.port) as publisher:
        for conn in talks:
            conn.send(("SUBSCRIBE", "all"))
        for conn in talks:
            assert conn.read() == [b"subscribe", b"all", 1]
        wait_told(publisher, "NUMSUB", "all", 1000)
        assert publisher.ask("PUBLISH", "all", "x") == 1000
        assert all(conn.read() == [b"message", b"all", b"x"] for conn in talks)


def test_a_worker_that_dies_takes_its_numbers_along(fleet: Fleet) -> None:
    with Proxy(fleet, None, 2) as proxy:
        wait_until("both workers", lambda: "+ready " in proxy.log.read_text(), proxy.tail)
        with one_on_each_worker(proxy) as mine:
            subscribed(mine["0"], "SUBSCRIBE", "dies")
            asker = mine["1"]
            wait_until("the number", lambda: asker.ask("PUBSUB", "NUMSUB", "dies") == [b"dies", 1], proxy.tail)
            workers = [pid for pid, _ in family(proxy.pid) if "pyproxy.worker" in command_line(pid)]
            (first,) = [pid for pid in workers if argument(pid, "--index") == "0"]
            os.kill(first, signal.SIGKILL)
            wait_until("none", lambda: asker.ask("PUBSUB", "NUMSUB", "dies") == [b"dies", 0], proxy.tail)
            subscribed(asker, "SUBSCRIBE", "dies")

            def told() -> bool:  # the worker that was started in its place
                with Connection(proxy.port) as new:
                    return proxy_info(new)["worker"] == "0" and new.ask("PUBLISH", "dies", "x") == 1

            wait_until("the new worker", told, proxy.tail)


def argument(pid: int, name: str) -> str:
    line = command_line(pid)
    return line[line.index(name) + 1]


def test_who_has_its_confirmation_is_counted_by_a_publish_at_every_worker(fleet: Fleet) -> None:
    """Without the other workers' word this holds nearly always, and not on a machine that has much to do."""
    with Proxy(fleet, None, 2, timeouts=PATIENT) as proxy:
        wait_until("both workers", lambda: "+ready " in proxy.log.read_text(), proxy.tail)
        with Talks(proxy, 0) as talks:
            publishers = on_each_worker(proxy, talks)
            counts = Counter[object]()
            for number in range(300):
                with connected(proxy, 3) as mine:
                    subscribed(mine, "SUBSCRIBE", f"counted:{number}")
                    counts.update(each.ask("PUBLISH", f"counted:{number}", "x") for each in publishers.values())
            assert counts == {1: 600}


def on_each_worker(proxy: Proxy, talks: list[Connection]) -> dict[str, Connection]:
    """A connection to each of two workers, by their index; all that are made for it are added to `talks`."""
    found: dict[str, Connection] = {}

    def have() -> bool:
        talks.append(Connection(proxy.port))
        found[proxy_info(talks[-1])["worker"]] = talks[-1]
        return len(found) == 2

    wait_until("both workers", have, proxy.tail)
    return found


def test_a_subscription_does_not_wait_for_ever_for_a_worker_that_is_stuck(fleet: Fleet) -> None:
    with Proxy(fleet, None, 2, timeouts={"reply_s": 0.3}) as proxy:
        wait_until("both workers", lambda: "+ready " in proxy.log.read_text(), proxy.tail)
        with Talks(proxy, 0) as talks:
            mine = on_each_worker(proxy, talks)
            pids = [pid for pid, _ in family(proxy.pid) if "pyproxy.worker" in command_line(pid)]
            (stuck,) = [pid for pid in pids if argument(pid, "--index") == "1"]
            os.kill(stuck, signal.SIGSTOP)
            try:
                for name in ("stuck:1", "stuck:2"):
                    subscribed(mine["0"], "SUBSCRIBE", name)
                    assert mine["0"].ask("UNSUBSCRIBE", name) == [b"unsubscribe", name.encode(), 0]
            finally:
                os.kill(stuck, signal.SIGCONT)
            wait_until("both", lambda: proxy_info(mine["1"])["worker"] == "1", proxy.tail)


# --- scripts ----------------------------------------------------------------------------------------------------------

SCRIPT = "return redis.call('publish', ARGV[1], ARGV[2])"
LIBRARY = f"#!lua name=hub\nredis.register_function('say', function(KEYS, ARGV) {SCRIPT} end)"
BY_A_SCRIPT: dict[str, Callable[[Connection, str, str, str], object]] = {
    "EVAL": lambda conn, key, channel, text: conn.ask("EVAL", SCRIPT, 1, key, channel, text),
    "FCALL": lambda conn, key, channel, text: conn.ask("FCALL", "say", 1, key, channel, text),
    "EVAL in a transaction": lambda conn, key, channel, text: in_a_transaction(conn, key, channel, text),
}


def in_a_transaction(conn: Connection, key: str, channel: str, text: str) -> object:
    conn.send(("MULTI",), ("SET", key, "v"), ("EVAL", SCRIPT, 1, key, channel, text), ("EXEC",))
    executed = conn.reads(4)[-1]
    assert isinstance(executed, list)
    return executed[1]


@pytest.mark.parametrize("said", BY_A_SCRIPT.values(), ids=BY_A_SCRIPT.keys())
def test_what_a_script_publishes_is_heard_once_wherever_it_runs(
    fleet: Fleet, proxy: Proxy, proto: int, said: Callable[[Connection, str, str, str], object]
) -> None:
    """The answer in the script is the number of workers that have subscribers, as the server counts connections."""
    keys = [Keys(proxy).one(shard) for shard in range(3)]
    with connected(proxy, proto) as exact, connected(proxy, proto) as pattern, Connection(proxy.port) as publisher:
        publisher.ask("FUNCTION", "LOAD", "REPLACE", LIBRARY)
        subscribed(exact, "SUBSCRIBE", "scripted")
        subscribed(pattern, "PSUBSCRIBE", "scrip*")
        for number, key in enumerate(keys * 20):
            assert said(publisher, key, "scripted", str(number)) in (1, 2)
        by_exact = [exact.read() for _ in range(60)]
        by_pattern = [pattern.read() for _ in range(60)]
        numbers = [str(number).encode() for number in range(60)]
        for shard in range(3):  # those of one server come in order
            of_one = by_exact_numbers(by_exact, numbers[shard::3])
            assert of_one == [[b"message", b"scripted", number] for number in numbers[shard::3]]
        assert sorted(by_pattern) == sorted(  # type: ignore[type-var]
            [b"pmessage", b"scrip*", b"scripted", number] for number in numbers
        )
        for conn in (exact, pattern):  # and nothing more
            conn.send(("PING",))
            assert conn.read() == ([b"pong", b""] if proto == 2 else b"PONG")


def by_exact_numbers(heard: list[object], numbers: Sequence[bytes]) -> list[object]:
    return [each for each in heard if isinstance(each, list) and each[2] in numbers]


def test_a_script_without_keys_reaches_the_subscribers_of_any_channel(proxy: Proxy) -> None:
    """As Laravel broadcasts: to many channels by one EVAL with no keys."""
    channels = [Keys(proxy).one(shard, "laravel") for shard in range(3)]
    script = "for i = 2, #ARGV do redis.call('publish', ARGV[i], ARGV[1]) end"
    with connected(proxy) as conn, connected(proxy) as publisher:
        subscribed(conn, "SUBSCRIBE", *channels)
        assert publisher.ask("EVAL", script, 0, "x", *channels) is None
        assert conn.reads(3) == [[b"message", channel.encode(), b"x"] for channel in channels]


def test_a_subscription_does_not_wait_for_a_silent_server_that_is_not_the_home_of_the_channel(fleet: Fleet) -> None:
    """Not longer than a moment, and only once: deadlines that do not pass by themselves."""
    never = {"connect_s": 20.0, "reply_s": 30.0, "silence_s": 30.0}
    with Proxy(fleet, timeouts=never) as proxy, Connection(proxy.port) as conn, Connection(proxy.port) as publisher:
        channels = Keys(proxy).on(0, 200, "elsewhere")
        subscribed(conn, "SUBSCRIBE", "all")
        fleet.shards[1].primary.pause()
        try:
            for channel in channels:
                subscribed(conn, "SUBSCRIBE", channel)
            assert publisher.ask("PUBLISH", channels[-1], "x") == 1
            assert conn.read() == [b"message", channels[-1].encode(), b"x"]
        finally:
            fleet.shards[1].primary.resume()
        wait_subscribed(fleet.shards[1].primary, channels[-1])


# --- nothing is late --------------------------------------------------------------------------------------------------


def test_the_connections_to_listen_on_are_there_before_anybody_subscribes_and_stay(fleet: Fleet) -> None:
    """A SUBSCRIBE that made one first would be overtaken by a PUBLISH that is sent behind it on another connection."""

    def ids(server: Server) -> set[bytes]:
        listed = server.ask("CLIENT", "LIST")
        assert isinstance(listed, bytes)
        return set(re.findall(rb"^id=(\d+) ", listed, re.MULTILINE))

    with Proxy(fleet, timeouts=PATIENT) as proxy, Connection(proxy.port) as conn, Connection(proxy.port) as other:
        wait_for_info(other, "all connections", lambda info: int(info["backend_connections"]) == 2 * 3)
        server = fleet.shards[0].primary
        before = ids(server)
        for channel in Keys(proxy).on(0, 3, "early"):
            subscribed(conn, "SUBSCRIBE", channel)
            wait_subscribed(server, channel)
            listed = server.ask("CLIENT", "LIST", "TYPE", "pubsub")
            assert isinstance(listed, bytes)
            assert set(re.findall(rb"^id=(\d+) ", listed, re.MULTILINE)) <= before
            assert conn.ask("UNSUBSCRIBE", channel) == [b"unsubscribe", channel.encode(), 0]
        assert proxy_info(other)["backend_connections"] == "6"


@pytest.mark.parametrize("kind", ["", "P", "S"])
def test_what_is_published_before_the_confirmation_comes_right_behind_it(fleet: Fleet, kind: str, proto: int) -> None:
    """As the server has it: the home of the channel hears the client, and another server is silent."""
    timeouts = {"connect_s": 20.0, "reply_s": 30.0, "silence_s": 30.0}
    with Proxy(fleet, timeouts=timeouts) as proxy, connected(proxy, proto) as conn, Connection(proxy.port) as publisher:
        channel = Keys(proxy).one(0, "between")
        wait_for_info(publisher, "all connections", lambda info: int(info["backend_connections"]) >= 2 * 3)
        server = fleet.shards[0].primary
        fleet.shards[2].primary.pause()
        try:
            conn.send((f"{kind}SUBSCRIBE", channel))

            def heard() -> bool:
                """Straight to the server, as a client past the proxy would."""
                return server.ask("SPUBLISH" if kind == "S" else "PUBLISH", channel, "x") == 1

            wait_until("the subscription", heard, proxy.tail)
        finally:
            fleet.shards[2].primary.resume()
        verb = kind.lower().encode()
        assert conn.read() == [verb + b"subscribe", channel.encode(), 1]
        names = [channel.encode()] * (2 if kind == "P" else 1)
        assert conn.read() == [verb + b"message", *names, b"x"]


@pytest.mark.parametrize("end", ["UNSUBSCRIBE", "RESET", "close", "in the middle"])
def test_a_client_with_very_many_channels_comes_and_goes_and_nothing_of_it_stays(
    fleet: Fleet, proxy: Proxy, end: str
) -> None:
    names = [f"many:{number}" for number in range(20_000)]
    with connected(proxy) as other, connected(proxy) as conn:
        conn.send(("SUBSCRIBE", *names))
        if end == "in the middle":
            assert conn.read() == [b"subscribe", names[0].encode(), 1]
        else:
            confirmed = [[b"subscribe", name.encode(), number] for number, name in enumerate(names, 1)]
            assert conn.reads(len(names)) == confirmed
            assert other.ask("PUBLISH", names[-1], "x") == 1
            assert conn.read() == [b"message", names[-1].encode(), b"x"]
        match end:
            case "UNSUBSCRIBE":
                conn.send(("UNSUBSCRIBE",), ("ECHO", "end"))
                left = [[b"unsubscribe", name.encode(), 19_999 - number] for number, name in enumerate(names)]
                assert conn.reads(len(names)) == left
                assert conn.read() == b"end"
            case "RESET":
                assert conn.ask("RESET") == b"RESET"
            case _:
                conn.reset()
        wait_until("the servers", lambda: upstream(fleet, "PUBSUB", "CHANNELS") == [[]] * 3, proxy.tail, 60)
        wait_until("the workers", lambda: other.ask("PUBSUB", "CHANNELS") == [], proxy.tail, 60)
        wait_for_info(other, "no subscriber", lambda info: info["pubsub_clients"] == "0")


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_subscription_is_confirmed_though_its_shard_is_down_and_takes_effect_when_it_is_back(proto: int) -> None:
    with Fleet(shards=2, replicas=0) as fleet, Proxy(fleet, timeouts={"reconnect_max_s": 0.2}) as proxy:
        channel = Keys(proxy).one(1)
        fleet.shards[1].primary.kill()
        with connected(proxy, proto) as conn, Connection(proxy.port) as publisher:
            wait_until("down", lambda: "+link-down" in proxy.log.read_text(), proxy.tail)
            subscribed(conn, "SUBSCRIBE", channel)
            subscribed(conn, "PSUBSCRIBE", "k*")
            assert error(publisher.ask("PUBLISH", channel, "x")).startswith("TRYAGAIN shard s1 ")
            alive = Keys(proxy).one(0)
            assert publisher.ask("PUBLISH", alive, "x") == 1
            assert conn.read() == [b"pmessage", b"k*", alive.encode(), b"x"]
            fleet.shards[1].primary.start()
            wait_until("back", lambda: "-pubsub-lost" in proxy.log.read_text(), proxy.tail)
            wait_until("up", lambda: publisher.ask("PUBLISH", channel, "y") == 2, proxy.tail)
            wait_subscribed(fleet.shards[1].primary, channel)
            assert publisher.ask("PUBLISH", channel, "z") == 2
            heard = [conn.read()]
            while heard[-1] != [b"pmessage", b"k*", channel.encode(), b"z"]:
                heard.append(conn.read())
            assert [b"message", channel.encode(), b"z"] in heard


def wait_subscribed(server: Server, channel: str, count: int = 1) -> None:
    def done() -> bool:
        return server.ask("PUBSUB", "NUMSUB", channel) == [channel.encode(), count]

    wait_until(f"a subscription to {channel}", done, lambda: str(server.ask("PUBSUB", "CHANNELS")), PATIENCE_S)


def test_a_connection_that_is_lost_is_made_again_with_all_subscriptions(fleet: Fleet, proxy: Proxy) -> None:
    with connected(proxy) as conn, connected(proxy) as publisher:
        channels = Keys(proxy).on(0, 20, "again")
        subscribed(conn, "SUBSCRIBE", *channels)
        for channel in channels:
            wait_told(publisher, "NUMSUB", channel, 1)
        server = fleet.shards[0].primary
        server.ask("CLIENT", "KILL", "TYPE", "pubsub")
        for channel in channels:
            wait_subscribed(server, channel)
            assert publisher.ask("PUBLISH", channel, "x") == 1
            assert conn.read() == [b"message", channel.encode(), b"x"]


def test_a_server_that_falls_silent_is_left_and_a_subscription_does_not_wait_for_it(fleet: Fleet) -> None:
    timeouts = {"reply_s": 0.3, "silence_s": 0.6, "connect_s": 0.5, "reconnect_max_s": 0.2}
    with Proxy(fleet, timeouts=timeouts) as proxy, Connection(proxy.port) as conn, Connection(proxy.port) as publisher:
        channel, later = Keys(proxy).on(0, 2)
        server = fleet.shards[0].primary
        subscribed(conn, "SUBSCRIBE", channel)
        server.pause()
        try:
            subscribed(conn, "SUBSCRIBE", later)
            wait_until("the loss", lambda: "+pubsub-lost shard=s0" in proxy.log.read_text(), proxy.tail, PATIENCE_S)
        finally:
            server.resume()
        for each in (channel, later):
            wait_subscribed(server, each)
        wait_until("the link", lambda: publisher.ask("PUBLISH", later, "x") == 1, proxy.tail)
        assert conn.read() == [b"message", later.encode(), b"x"]


@pytest.mark.parametrize("end", ["UNSUBSCRIBE", "RESET"])
def test_leaving_does_not_wait_for_a_server_that_is_silent(fleet: Fleet, end: str) -> None:
    with Proxy(fleet, timeouts=PATIENT) as proxy, Connection(proxy.port) as conn:
        channels = Keys(proxy).on(0, 500)
        subscribed(conn, "SUBSCRIBE", *channels)
        fleet.shards[0].primary.pause()
        try:
            for left, channel in zip(range(499, 0, -1), channels, strict=False):
                assert conn.ask("UNSUBSCRIBE", channel) == [b"unsubscribe", channel.encode(), left]
            assert conn.ask(end) == (b"RESET" if end == "RESET" else [b"unsubscribe", channels[-1].encode(), 0])
        finally:
            fleet.shards[0].primary.resume()


def test_a_client_that_waits_for_its_subscription_is_listed(fleet: Fleet) -> None:
    with Proxy(fleet, timeouts=PATIENT) as proxy, Connection(proxy.port) as conn, Connection(proxy.port) as other:
        first, second = Keys(proxy).on(0, 2)
        subscribed(conn, "SUBSCRIBE", first)
        fleet.shards[0].primary.pause()
        try:
            conn.send(("SUBSCRIBE", second))
            for _ in range(2):  # the first may come before it
                listed = other.ask("CLIENT", "LIST")
                assert isinstance(listed, bytes) and listed.count(b"\n") == 2
        finally:
            fleet.shards[0].primary.resume()
        assert conn.read() == [b"subscribe", second.encode(), 2]


def test_what_a_server_refuses_is_its_error_and_nothing_is_subscribed(proto: int) -> None:
    with Fleet(shards=1, replicas=0) as fleet, Proxy(fleet) as proxy, connected(proxy, proto) as conn:
        fleet.shards[0].primary.ask("ACL", "SETUSER", "default", "resetchannels", "&good")
        assert error(conn.ask("SUBSCRIBE", "good", "bad")).startswith("NOPERM ")
        assert conn.ask("GET", "k") is None
        assert conn.ask("PUBSUB", "CHANNELS") == []
        subscribed(conn, "SUBSCRIBE", "good")


def test_a_subscriber_that_does_not_read_is_closed_and_the_others_get_everything(fleet: Fleet) -> None:
    with Proxy(fleet, limits={"pubsub_bytes": 1 << 20}) as proxy, Talks(proxy, 2) as (publisher, reader):
        sleeper = Connection(proxy.port, receive_buffer=4096)
        for conn in (sleeper, reader):
            subscribed(conn, "SUBSCRIBE", "much")
        payload, count = b"x" * 100_000, 0
        while "+pubsub-slow" not in proxy.log.read_text():
            assert publisher.ask("PUBLISH", "much", payload) in (1, 2)
            assert reader.read() == [b"message", b"much", payload]
            count += 1
            assert count < 1000, "nothing was closed"
        assert publisher.ask("PUBLISH", "much", "end") == 1
        assert reader.read() == [b"message", b"much", b"end"]
        sleeper.close()


# --- a promotion ------------------------------------------------------------------------------------------------------

MESSAGES, CHANNELS = 10_000, 20
PATTERNS = ["k*", *(f"k{number}*" for number in range(49))]
PROMOTION: Table = {
    "promoter": "replicaof", "down_after_s": 2.0, "on_promotion": "hold", "hold_s": PATIENCE_S,
    "hold_incident_s": PATIENCE_S,
}  # fmt: skip
Heard = dict[str, list[int]]


def test_ten_thousand_messages_and_fifty_patterns_over_a_promotion_come_once_and_in_order() -> None:
    """What the old primary took before it died may be lost, as on any Redis; nothing else is."""
    with (
        Fleet(shards=3, replicas=1) as fleet,
        Proxy(fleet, None, 2, promotion=PROMOTION, timeouts=PATIENT) as proxy,
    ):
        wait_until("both workers", lambda: "+ready " in proxy.log.read_text(), proxy.tail)
        by_shard = [Keys(proxy).on(shard, CHANNELS) for shard in range(3)]
        ends = [channels.pop() for channels in by_shard]
        channels = [channel for same in zip(*by_shard, strict=True) for channel in same][:CHANNELS]
        moved = set(by_shard[0])
        with Connection(proxy.port) as direct, Connection(proxy.port) as patterns, Connection(proxy.port) as publisher:
            subscribed(direct, "SUBSCRIBE", *channels, *ends)
            subscribed(patterns, "PSUBSCRIBE", *PATTERNS)
            half, uncertain = MESSAGES // 2, range(MESSAGES // 2, MESSAGES // 2 + 500)
            refused = publish(publisher, channels, range(half))
            assert not refused
            fleet.shards[0].primary.kill()
            publish(publisher, channels, uncertain)
            new, probe = fleet.shards[0].replicas[0], f"{{{ends[0]}}}probe"
            wait_until("the promotion", lambda: publisher.ask("PUBLISH", probe, "x") == 0, proxy.tail)
            wait_subscribed(new, ends[0])
            wait_until("the patterns", lambda: new.ask("PUBSUB", "NUMPAT") == len(PATTERNS), proxy.tail)
            refused |= publish(publisher, channels, range(uncertain.stop, MESSAGES))
            for end in ends:
                publisher.ask("PUBLISH", end, MESSAGES)
            heard = [(until(direct, ends, once), once), (until(patterns, ends, matching), matching)]
        for number, channel in enumerate(channels):
            published = range(number, MESSAGES, CHANNELS)
            for by_channel, times in heard:
                got = by_channel[channel]
                assert got == sorted(got)
                assert set(Counter(got).values()) == {times(channel)}
                lost = set(published) - set(got)
                assert lost <= (refused | set(uncertain) if channel in moved else set())
                assert len(lost) < 100


def test_nothing_is_lost_in_a_planned_promotion() -> None:
    """What is held meanwhile is published when every worker hears the new primary."""
    with Fleet(shards=1, replicas=1) as fleet:
        admin_socket, publishers = str(fleet.directory / "admin.sock"), 8
        with (
            Proxy(fleet, None, 2, promotion=PROMOTION, timeouts=PATIENT, http={"admin": admin_socket}) as proxy,
            Talks(proxy, 0) as listeners,
            Talks(proxy, 0) as talks,
        ):
            wait_until("both workers", lambda: "+ready " in proxy.log.read_text(), proxy.tail)
            listeners += Talks(proxy, 4)
            talks += Talks(proxy, publishers)
            assert {proxy_info(conn)["worker"] for conn in listeners} == {"0", "1"}
            for conn in listeners[:2]:
                subscribed(conn, "SUBSCRIBE", "plan", "end")
            for conn in listeners[2:]:
                subscribed(conn, "PSUBSCRIBE", "pl*", "end*")
            ended = threading.Event()
            published: list[list[object]] = [[] for _ in talks]

            def say(index: int) -> None:
                while not ended.is_set():
                    published[index].append(talks[index].ask("PUBLISH", "plan", f"{index}:{len(published[index])}"))

            threads = [threading.Thread(target=say, args=[index]) for index in range(publishers)]
            for thread in threads:
                thread.start()
            try:
                for _ in range(4):
                    wait_until("a fit candidate", lambda: handed_over(admin_socket), proxy.tail)
            finally:
                ended.set()
                for thread in threads:
                    thread.join(PATIENCE_S)
            assert all(type(each) is int for replies in published for each in replies)
            wait_until("the end", lambda: talks[0].ask("PUBLISH", "end", "") == 4, proxy.tail)
            said = {f"{index}:{number}" for index, replies in enumerate(published) for number in range(len(replies))}
            for conn in listeners:
                heard = [conn.read()]
                while heard[-1][-2] != b"end":  # type: ignore[index]
                    heard.append(conn.read())
                got = [each[-1].decode() for each in heard[:-1]]  # type: ignore[index]
                assert len(got) == len(set(got))
                assert said - set(got) == set()


def handed_over(admin_socket: str) -> bool:
    return admin.ask(admin_socket, admin.Promote("s0", ""), PATIENCE_S).done


def once(channel: str) -> int:
    return 1


def matching(channel: str) -> int:
    """How many of the patterns match it."""
    return sum(glob.matches(pattern.encode(), channel.encode()) for pattern in PATTERNS)


def publish(conn: Connection, channels: Sequence[str], numbers: range) -> set[int]:
    """Each number on the next channel, pipelined -> those that were refused, or are uncertain."""
    refused = set()
    for first in range(numbers.start, numbers.stop, 100):
        batch = range(first, min(first + 100, numbers.stop))
        conn.send(*[("PUBLISH", channels[number % len(channels)], number) for number in batch])
        for number, reply in zip(batch, conn.reads(len(batch)), strict=True):
            if not isinstance(reply, int):
                assert error(reply).startswith(("UNCERTAIN ", "TRYAGAIN "))
                refused.add(number)
    return refused


def until(conn: Connection, ends: Sequence[str], times: Callable[[str], int]) -> Heard:
    """All numbers by channel, in the order in which they came, up to the last ones, which come on these channels."""
    heard: Heard = {}
    while not all(len(heard.get(end, ())) == times(end) for end in ends):
        message = conn.read()
        assert isinstance(message, list)
        heard.setdefault(message[-2].decode(), []).append(int(message[-1]))
    return heard
