"""All that is made of a large request counts in the memory budget: its copy, its words, the parts of it."""

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from protocol.request import encode
from pyproxy.fleet import HOST, Fleet, Proxy, Table
from tests.e2e.lane.test_back_pressure import Memory
from tests.e2e.rig import PATIENCE_S, PATIENT, Connection, error, proxy_info, wait_for_info

MIB = 1 << 20
BUDGET, MARGIN = 128 * MIB, 48 * MIB
CLIENTS = 12
KEYS = 50_000
PLACE = 8
"""Bytes of what is known of where a word stands."""

BUSY: Table = {**PATIENT, "slow_reply_s": 2 * PATIENCE_S}


@pytest.fixture
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    """Each test has its own: its memory is what is measured."""
    with Proxy(
        fleet, limits={"memory_bytes": BUDGET}, timeouts=BUSY, cross_shard="emulate", transactions="split"
    ) as proxy:
        yield proxy


@pytest.fixture
def looking(proxy: Proxy) -> Iterator[Connection]:
    with Connection(proxy.port) as looking:
        yield looking


def tagged(client: int, count: int) -> list[bytes]:
    return [b"{large%d}%d" % (client, number) for number in range(count)]


def spread(client: int, count: int) -> list[bytes]:
    return [b"large%d:%d" % (client, number) for number in range(count)]


@pytest.mark.parametrize("leaves", [False, True], ids=["answered", "left"])
def test_a_command_that_waits_counts_until_it_is_over(proxy: Proxy, looking: Connection, leaves: bool) -> None:
    names = tagged(0, KEYS)
    sent = encode([b"BLPOP", *names, b"0"])
    with Connection(proxy.port) as waiting:
        waiting.socket.sendall(sent)
        wait_for_info(looking, "it to wait", lambda info: info["blocked_clients"] == "1" and info["inflight"] == "1")
        assert int(proxy_info(looking)["buffered_bytes"]) >= len(sent) + PLACE * KEYS
        if not leaves:
            assert looking.ask("RPUSH", names[-1], "element") == 1
            assert waiting.read() == [names[-1], b"element"]
            wait_for_info(looking, "nothing to be buffered", lambda info: info["buffered_bytes"] == "0")
    wait_for_info(looking, "nothing to be buffered", lambda info: info["buffered_bytes"] == "0")


def test_what_is_queued_counts_until_exec(proxy: Proxy, looking: Connection) -> None:
    words = [b"MGET", *spread(0, KEYS)]
    with Connection(proxy.port) as asking:
        asking.send(("MULTI",), words)
        assert asking.reads(2) == [b"OK", b"QUEUED"]
        wait_for_info(
            looking,
            "what is queued to be held",
            lambda info: int(info["buffered_bytes"]) >= len(encode(words)) + PLACE * KEYS,
        )
        assert asking.ask("EXEC") == [[None] * KEYS]
        wait_for_info(looking, "nothing to be buffered", lambda info: info["buffered_bytes"] == "0")


def script(client: int, count: int) -> list[list[bytes]]:
    return [[b"EVAL", b"return 1", b"%d" % count, *tagged(client, count)]]


def block(client: int, count: int) -> list[list[bytes]]:
    return [[b"MULTI"], [b"MGET", *spread(client, count)], [b"EXEC"]]


def union(client: int, count: int) -> list[list[bytes]]:
    return [[b"SUNION", *spread(client, count)]]


Commands = Callable[[int, int], list[list[bytes]]]
REQUESTS: dict[str, Commands] = {"EVAL": script, "MGET in a transaction": block, "SUNION over shards": union}


def test_a_command_over_shards_that_does_not_fit_into_the_budget_is_refused_and_nobody_is_closed(
    proxy: Proxy, looking: Connection
) -> None:
    """What is kept of a key that is waited for is half a kilobyte."""
    names = [name for client in range(6) for name in tagged(client, KEYS)]
    with Connection(proxy.port) as asking:
        for _ in range(2):
            assert error(asking.ask("BLPOP", *names, "0")) == (
                f"ERR 'blpop' needs more memory than the proxy has left (limits.memory_bytes, {BUDGET})"
            )
        asking.send(["BLPOP", *names[: 2 * KEYS], "0"])
        wait_for_info(looking, "it to wait", lambda info: info["blocked_clients"] == "1")
        assert looking.ask("RPUSH", names[KEYS], "element") == 1
        assert asking.read() == [names[KEYS], b"element"]
    assert proxy_info(looking)["shed"] == "0"
    wait_for_info(looking, "nothing to be buffered", lambda info: info["buffered_bytes"] == "0")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("commands", REQUESTS.values(), ids=REQUESTS.keys())
def test_beyond_the_budget_clients_are_refused_or_closed_and_the_memory_stays_within_it(
    fleet: Fleet, proxy: Proxy, looking: Connection, commands: Commands
) -> None:
    """Twelve ask with 6 to 18 MB each, and the servers answer nobody before that is too much.

    Beside the budget of 128 MiB, 48 MiB are allowed for what is under way.
    """
    requests = [commands(client, 400_000 + 200_000 * (client % 4)) for client in range(CLIENTS)]
    before = proxy_info(looking)
    memory = Memory(proxy)
    with ThreadPoolExecutor(CLIENTS) as clients:
        with contextlib.ExitStack() as paused:
            for server in fleet.servers:
                server.pause()
                paused.callback(server.resume)
            replies = [clients.submit(last_reply, proxy.port, each) for each in requests]
            wait_for_info(looking, "one to be refused or closed", lambda _: any(reply.done() for reply in replies))
        said = [reply.result() for reply in replies]
    closed = said.count(b"")
    refused = sum(b"limits.memory_bytes" in each for each in said)
    answered = sum(each[:1] in (b":", b"*") for each in said)
    assert closed + refused > 0, said
    assert answered > 0, said
    assert closed + refused + answered == CLIENTS, said
    wait_for_info(looking, "nothing to be buffered", lambda info: info["buffered_bytes"] == "0")
    assert int(proxy_info(looking)["shed"]) - int(before["shed"]) == closed
    assert memory.added_at_most() < BUDGET + MARGIN


def last_reply(port: int, commands: Sequence[Sequence[bytes]]) -> bytes:
    """How the last reply to these begins; b"" where the connection was closed before it."""
    said = b""
    with contextlib.suppress(ConnectionError), socket.create_connection((HOST, port), 3 * PATIENCE_S) as connection:
        connection.sendall(b"".join(map(encode, commands)))
        while more := connection.recv(MIB):
            said += more[:400]
            last = said.removeprefix(b"+OK\r\n").removeprefix(b"+QUEUED\r\n")
            if b"\r\n" in last:
                return last
    return b""
