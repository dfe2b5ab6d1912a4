"""Clients that do not read, or ask faster than servers answer, cost bounded memory, and nobody else's turn."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyproxy.fleet import Fleet, Proxy, Table, wait_until
from tests.e2e.rig import (
    PATIENCE_S,
    PATIENT,
    Connection,
    Keys,
    behind,
    error,
    of_a_worker,
    packed,
    proxy_info,
    wait_for_info,
)
from tests.faults import Hop, Way
from tests.processes import command_line, family

MIB = 1 << 20
BUDGET, MARGIN = 256 * MIB, 64 * MIB


@pytest.fixture
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    """Each test has its own: its memory is what is measured."""
    with Proxy(fleet, limits={"memory_bytes": BUDGET}, timeouts=PATIENT) as proxy:
        yield proxy


@pytest.fixture
def keys(proxy: Proxy) -> Keys:
    return Keys(proxy)


@pytest.fixture
def reader(proxy: Proxy, keys: Keys) -> Iterator[Connection]:
    """A client that reads. There is a value of 1 MiB on each shard."""
    with Connection(proxy.port) as reader:
        for key in large(keys):
            assert reader.ask("SET", key, b"x" * MIB) == b"OK"
        yield reader


def large(keys: Keys) -> list[str]:
    return [keys.one(shard, "large") for shard in range(3)]


class Memory:
    """The resident memory of a proxy's one worker, against what it was."""

    def __init__(self, proxy: Proxy) -> None:
        (self._pid,) = [pid for pid, _ in family(proxy.pid) if "pyproxy.worker" in command_line(pid)]
        self._before = self._now("VmRSS")

    def added(self) -> int:
        return self._now("VmRSS") - self._before

    def added_at_most(self) -> int:
        return self._now("VmHWM") - self._before

    def _now(self, field: str) -> int:
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def wait_until_served(reader: Connection, asked: int, before: dict[str, str]) -> dict[str, str]:
    """Wait until all that was asked since has been begun and has its answer, or nobody who waits for one."""
    commands = int(before["total_commands_processed"]) + asked

    def served(info: dict[str, str]) -> bool:
        return int(info["total_commands_processed"]) >= commands and info["inflight"] == "0"

    wait_for_info(reader, f"{asked} commands to be answered, or their clients shed", served)
    return proxy_info(reader)


def test_clients_that_never_read_cost_at_most_the_budget_and_the_memory_comes_back(
    proxy: Proxy, keys: Keys, reader: Connection
) -> None:
    """They ask for 1.2 GB; the budget is 256 MB, and 64 MB more are allowed for what is under way."""
    memory = Memory(proxy)
    names = large(keys)
    with contextlib.ExitStack() as clients:
        for _ in range(100):
            clients.enter_context(Connection(proxy.port, receive_buffer=4096)).send(
                *[("GET", name) for name in names] * 4
            )
        held = [0]

        def begins_nothing_more(info: dict[str, str]) -> bool:
            before, held[0] = held[0], int(info["buffered_bytes"])
            return info["inflight"] == "0" and held[0] == before > BUDGET // 4

        wait_for_info(reader, "no more to be begun", begins_nothing_more)
        assert held[0] <= BUDGET
        assert memory.added_at_most() < BUDGET + MARGIN
        assert reader.ask("GET", names[0]) == b"x" * MIB
    wait_for_info(reader, "nothing to be buffered", lambda info: info["buffered_bytes"] == "0")
    wait_until(
        "the memory to come back", lambda: memory.added() < MARGIN // 2, lambda: f"{memory.added() >> 20} MiB more"
    )


def test_the_largest_are_shed_first_and_by_fin(proxy: Proxy, keys: Keys, reader: Connection) -> None:
    name, before = large(keys)[0], proxy_info(reader)
    few, many = 6, 14
    with contextlib.ExitStack() as clients:
        modest = [clients.enter_context(Connection(proxy.port, receive_buffer=4096)) for _ in range(10)]
        greedy = [clients.enter_context(Connection(proxy.port, receive_buffer=4096)) for _ in range(40)]
        for each in modest:
            each.send(*[("GET", name)] * few)
        for each in greedy:
            each.send(*[("GET", name)] * many)
        shed = int(wait_until_served(reader, 10 * few + 40 * many, before)["shed"])
        assert shed > 0
        for each in modest:
            assert each.reads(few) == [b"x" * MIB] * few
            assert each.ask("PING") == b"PONG"
        assert sum(was_closed_by_fin(each, many) for each in greedy) == shed


def was_closed_by_fin(client: Connection, asked: int) -> bool:
    """False if all that was asked for comes; a reset raises."""
    try:
        assert client.reads(asked) == [b"x" * MIB] * asked
    except AssertionError as closed:
        assert "was closed" in str(closed)
        return True
    return False


def test_what_waits_for_the_last_part_of_a_split_counts(fleet: Fleet, keys: Keys) -> None:
    with Hop(fleet.shards[1].primary.port, of_a_worker) as hop, behind(fleet, {1: hop}, timeouts=PATIENT) as proxy:
        names = large(keys)
        with Connection(proxy.port) as looking, Connection(proxy.port) as waiting:
            for name in names:
                assert looking.ask("SET", name, b"x" * MIB) == b"OK"
            hop.stall(Way.REPLIES)
            waiting.send(("MGET", names[0], names[2], names[1]))
            wait_for_info(looking, "two parts to be buffered", lambda info: int(info["buffered_bytes"]) >= 2 * MIB)
            hop.heal()
            assert waiting.read() == [b"x" * MIB] * 3
            wait_for_info(looking, "nothing to be buffered", lambda info: info["buffered_bytes"] == "0")


def test_a_client_that_only_sends_is_not_read_further(fleet: Fleet) -> None:
    """It pipelines ECHOs and never reads: what it may send ends, and what it costs is bounded."""
    with (
        Proxy(fleet, limits={"client_output_bytes": 4 * MIB}, timeouts=PATIENT) as proxy,
        Connection(proxy.port) as reader,
    ):
        memory = Memory(proxy)
        send_only(proxy, reader, memory)


def send_only(proxy: Proxy, reader: Connection, memory: Memory) -> None:
    with Connection(proxy.port, receive_buffer=4096) as sender:
        sender.socket.settimeout(1.0)
        block = packed("ECHO", b"x" * 1000) * 1000
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 1000:
                sender.socket.sendall(block)
                sent += 1
        assert sent < 100, "MB were taken"
        assert int(proxy_info(reader)["buffered_bytes"]) < 8 * MIB
        assert memory.added() < 32 * MIB
        assert reader.ask("PING") == b"PONG"


def test_a_server_that_does_not_read_costs_bounded_memory(
    fleet: Fleet, proxy: Proxy, keys: Keys, reader: Connection
) -> None:
    """Clients are not read any further once enough waits for their server; the others do not notice."""
    memory = Memory(proxy)
    slow, key, other = fleet.shards[1].primary, keys.one(1, "slow"), keys.one(0, "other")
    blob = b"x" * 100_000
    block = packed("SET", key, blob) * 10
    slow.pause()
    try:
        with contextlib.ExitStack() as clients:
            senders = [clients.enter_context(Connection(proxy.port)) for _ in range(50)]
            for sender in senders:
                sender.socket.setblocking(False)
            taken = [0]

            def nothing_is_taken_any_more() -> bool:
                before = taken[0]
                for sender in senders:
                    with contextlib.suppress(BlockingIOError):
                        for _ in range(20):
                            taken[0] += sender.socket.send(block)
                return taken[0] == before and reader.ask("SET", other, taken[0]) == b"OK"

            wait_until("the proxy to read no further", nothing_is_taken_any_more, lambda: f"{taken[0]} B", PATIENCE_S)
            assert memory.added() < 192 * MIB
            assert reader.ask("GET", other) == b"%d" % taken[0]
            assert proxy_info(reader)["shed"] == "0"
    finally:
        slow.resume()


def test_what_was_handed_to_a_server_that_hangs_counts_in_the_budget(fleet: Fleet, keys: Keys) -> None:
    """Clients send it nearly a megabyte each, in both protocols and many databases, and again once answered."""
    limits: Table = {"memory_bytes": 64 * MIB, "bulk_bytes": 16 * MIB, "long_leases": 10}
    timeouts: Table = {"reply_s": 0.3, "silence_s": PATIENCE_S, "connect_s": PATIENCE_S}
    slow, key, other = fleet.shards[1].primary, keys.one(1, "hangs"), keys.one(0, "other")
    with (
        Proxy(fleet, limits=limits, timeouts=timeouts) as proxy,
        Connection(proxy.port) as reader,
        contextlib.ExitStack() as clients,
    ):
        senders = [clients.enter_context(Connection(proxy.port)) for _ in range(50)]
        for number, each in enumerate(senders):
            each.send(("HELLO", 2 + number % 2), ("SELECT", number % 10), ("GET", key))
            each.reads(3)
        memory, told = Memory(proxy), []
        slow.pause()
        try:
            for _ in range(6):
                for each in senders:
                    each.send(("SET", key, b"x" * (MIB - 1000)))
                told += [error(each.read()) for each in senders]
                assert int(proxy_info(reader)["buffered_bytes"]) <= 64 * MIB
            assert memory.added_at_most() < 64 * MIB + MARGIN
            assert {line.split()[0] for line in told} == {"TRYAGAIN", "UNCERTAIN"}
            assert any("limits.memory_bytes" in line for line in told)
            assert reader.ask("SET", other, "v") == b"OK"
            assert proxy_info(reader)["shed"] == "0", "they are told rather than closed"
        finally:
            slow.resume()
        wait_for_info(reader, "nothing to be buffered", lambda info: info["buffered_bytes"] == "0")
        for each in senders:
            wait_until("it to be served", lambda: each.ask("SET", key, "v") == b"OK", lambda: "")  # noqa: B023


def test_a_million_pings_of_one_client_are_served_between_those_of_others(proxy: Proxy, reader: Connection) -> None:
    """They are read and answered in slices: another's request comes to its turn long before they are through."""
    count = 1_000_000
    memory = Memory(proxy)
    with Connection(proxy.port) as flood:
        flood.socket.setblocking(False)
        pings = memoryview(b"*1\r\n$4\r\nPING\r\n" * count)
        answered, turns = 0, 0
        sent = 0
        while answered < count * len(b"+PONG\r\n"):
            with contextlib.suppress(BlockingIOError):
                while sent < len(pings):
                    sent += flood.socket.send(pings[sent:])
            assert reader.ask("ECHO", turns) == b"%d" % turns
            turns += 1
            with contextlib.suppress(BlockingIOError):
                while more := flood.socket.recv(MIB):
                    answered += len(more)
        assert answered == count * len(b"+PONG\r\n")
        assert turns > 10, "each turn lets in and out what the kernel's buffers hold, not all of it"
    assert memory.added_at_most() < 32 * MIB


def test_a_pipeline_of_what_the_proxy_answers_is_served_between_those_of_others(
    proxy: Proxy, reader: Connection
) -> None:
    """However long each of them takes: a client has a share of time."""
    count = 600
    with Connection(proxy.port) as flood:
        flood.send(*[("COMMAND", "DOCS")] * count)
        flood.socket.setblocking(False)
        turns = 0
        commands = int(proxy_info(reader)["total_commands_processed"])
        while int(proxy_info(reader)["total_commands_processed"]) - commands - turns < count - 100:
            turns += 1
            with contextlib.suppress(BlockingIOError):
                while flood.socket.recv(MIB):
                    pass
        assert turns > 20


def test_what_the_proxy_answers_itself_has_a_bound(reader: Connection) -> None:
    commands = (("COMMAND", "DOCS"), ("COMMAND", "GETKEYS", "MGET"), ("CLIENT", "LIST", "ID"), ("INFO",), ("HELLO", 3))
    for command in commands:
        assert "too many arguments" in error(reader.ask(*command, *["get"] * 100_000))
    assert reader.ask("MULTI") == b"OK"
    assert "too many arguments" in error(reader.ask("COMMAND", "INFO", *["get"] * 100_000))
    assert error(reader.ask("EXEC")).startswith("EXECABORT ")
