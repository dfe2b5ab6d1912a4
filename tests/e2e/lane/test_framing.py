"""Framing at the running proxy: every case in every cut, how bad requests end, what unfinished ones cost."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from protocol.request import encode
from pyproxy.fleet import Fleet, Proxy, ask, wait_until
from tests.conversation import Conversation, connect, read_line, read_to_end
from tests.processes import command_line, family
from tests.protocol.framing_cases import CASES, GOOD, GOOD_ANSWER, GOOD_KEY, End, Outcome, closed, kept

BYTE_BY_BYTE = 100  # of the first and the last bytes of a request; what lies between goes out in pieces of 8 KiB
PIECE = 8192


def pieces(sent: bytes) -> list[bytes]:
    """The bytes one by one."""
    head, middle, tail = sent[:BYTE_BY_BYTE], sent[BYTE_BY_BYTE:-BYTE_BY_BYTE], sent[BYTE_BY_BYTE:][-BYTE_BY_BYTE:]
    chunks = [middle[at : at + PIECE] for at in range(0, len(middle), PIECE)]
    return [bytes([byte]) for byte in head] + chunks + [bytes([byte]) for byte in tail]


def hold(conn: Conversation, expected: Outcome) -> None:
    """What comes is what is expected, and a connection that is kept takes more commands."""
    assert conn.outcome(expected) == expected
    if expected.end is End.KEEPS:
        conn.connection.sendall(GOOD)
        assert conn.outcome(kept(GOOD_ANSWER)) == kept(GOOD_ANSWER)


def worker_pid(proxy: Proxy) -> int:
    return next(pid for pid, _ in family(proxy.pid) if "pyproxy.worker" in command_line(pid))


def status(pid: int, field: str) -> int:
    """A figure of /proc/PID/status, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_request_in_one_piece_is_answered_as_the_table_says(proxy10: Proxy, name: str) -> None:
    with Conversation(proxy10.port) as conn:
        conn.connection.sendall(CASES[name].sent)
        hold(conn, CASES[name].proxy)


@pytest.mark.parametrize("name", CASES)
def test_a_request_byte_by_byte_is_answered_the_same(proxy10: Proxy, name: str) -> None:
    with Conversation(proxy10.port) as conn:
        conn.say(pieces(CASES[name].sent))
        hold(conn, CASES[name].proxy)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.with_good_behind])
def test_with_good_commands_behind_the_answer_is_the_same(proxy10: Proxy, name: str) -> None:
    case, expected = CASES[name], CASES[name].with_good_behind
    assert expected is not None
    ask(proxy10.port, "DEL", GOOD_KEY)
    with Conversation(proxy10.port) as conn:
        conn.connection.sendall(case.sent + GOOD)
        hold(conn, expected)
    if expected.end is not End.KEEPS:
        assert ask(proxy10.port, "GET", GOOD_KEY) is None, "nothing behind a bad request is done"


def test_commands_that_must_wait_are_read_again_from_their_first_byte(proxy10: Proxy) -> None:
    ask(proxy10.port, "SET", "framing:k", "v")
    get, select = encode([b"GET", b"framing:k"]), encode([b"SELECT", b"1"])
    behind = encode([b"EXISTS", b"framing:k"]) + get  # waits until the first GET is answered
    sent = get + select + behind
    expected = kept(b"$1\r\nv\r\n+OK\r\n:0\r\n$-1\r\n")
    for cut in range(len(get + select), len(sent)):
        with Conversation(proxy10.port) as conn:
            conn.say([sent[:cut], sent[cut:]])
            assert conn.outcome(expected) == expected, f"cut at {cut}"


# --- how a bad request ends -------------------------------------------------------------------------------------------


def test_what_was_asked_before_a_bad_request_is_answered_before_its_error(proxy10: Proxy) -> None:
    ask(proxy10.port, "SET", "framing:k", "v")
    with Conversation(proxy10.port) as conn:
        bad = CASES["The argument: other bytes in place of CRLF"]
        conn.connection.sendall(encode([b"GET", b"framing:k"]) * 1500 + bad.sent + GOOD)
        expected = closed(b"$1\r\nv\r\n" * 1500 + bad.proxy.answer)
        assert conn.outcome(expected) == expected


def test_a_client_that_goes_on_sending_reads_the_error_and_then_the_end(proxy10: Proxy) -> None:
    case = CASES["The header of the array: letters"]
    with connect(proxy10.port) as client:
        client.sendall(case.sent + GOOD * 20_000)
        assert read_to_end(client) == case.proxy


def test_half_a_request_of_a_client_that_leaves_is_not_done(proxy10: Proxy) -> None:
    ask(proxy10.port, "DEL", "framing:half")
    whole = encode([b"SET", b"framing:half", b"abcde"])
    for cut in range(1, len(whole)):
        with connect(proxy10.port) as client:
            client.sendall(whole[:cut])
            client.shutdown(socket.SHUT_WR)
            assert read_to_end(client) == closed()
    assert ask(proxy10.port, "GET", "framing:half") is None


def test_a_browser_can_set_nothing(proxy10: Proxy) -> None:
    ask(proxy10.port, "DEL", "framing:http")
    with connect(proxy10.port) as client:
        client.sendall(b"POST / HTTP/1.1\r\nSET framing:http 1\r\nHost: x\r\n\r\nSET framing:http 2\r\n")
        assert read_to_end(client) == closed()
    assert ask(proxy10.port, "GET", "framing:http") is None


def test_no_bytes_end_more_than_the_connection_they_come_on(proxy10: Proxy) -> None:
    random, worker = Random(3), worker_pid(proxy10)
    short = [case.sent for case in CASES.values() if len(case.sent) < 200]
    with Conversation(proxy10.port) as bystander:
        for _ in range(300):
            garbage = bytearray(b"".join(random.choices(short, k=3)))
            for _ in range(random.randrange(4)):
                garbage[random.randrange(len(garbage))] = random.choice(b"\0\r\n*$19 -\"'x\xff")
            with connect(proxy10.port) as client:
                client.sendall(garbage)
                client.shutdown(socket.SHUT_WR)
                assert read_to_end(client).end is End.CLOSES, bytes(garbage)
            bystander.connection.sendall(GOOD)
            assert bystander.outcome(kept(GOOD_ANSWER)) == kept(GOOD_ANSWER), bytes(garbage)
    assert worker_pid(proxy10) == worker
    assert "client-exception" not in proxy10.log.read_text()


# --- what unfinished requests cost ------------------------------------------------------------------------------------


def test_headers_reserve_no_memory(proxy10: Proxy) -> None:
    pid, count = worker_pid(proxy10), 500
    with Conversation(proxy10.port) as conn:
        clients = [connect(proxy10.port) for _ in range(count)]
        conn.answered()
        resident, reserved = status(pid, "VmRSS"), status(pid, "VmSize")
        for client in clients:
            client.sendall(b"*1048576\r\n$67108864\r\n")
        conn.answered()
        grown, asked_for = status(pid, "VmRSS") - resident, status(pid, "VmSize") - reserved
        for client in clients:
            client.close()
    assert grown < 4 << 20, f"{count} headers made the worker grow by {grown:,} bytes"
    assert asked_for < 64 << 20, f"{count} headers made the worker ask for {asked_for:,} bytes"


@pytest.fixture(scope="module")
def impatient(fleet10: Fleet) -> Iterator[Proxy]:
    """A proxy that waits 0.2 s for the rest of a request."""
    with Proxy(fleet10, timeouts={"unfinished_s": 0.2}) as proxy:
        yield proxy


def test_unfinished_requests_of_all_clients_together_keep_the_budget(fleet10: Fleet) -> None:
    budget = 4 << 20
    begun = encode([b"SET", b"framing:big", bytes(2 << 20)])[: 1 << 20]
    limits = {"bulk_bytes": 2 << 20, "memory_bytes": budget}
    with Proxy(fleet10, limits=limits) as proxy, Conversation(proxy.port) as bystander:
        clients = [connect(proxy.port) for _ in range(6)]
        for client in clients:
            client.sendall(begun)
        bystander.answered()
        for client in clients:
            client.setblocking(False)

        def kept_bytes() -> int:
            return sum(len(begun) for client in clients if is_open(client))

        wait_until(
            "clients to be closed until the rest keeps the budget",
            lambda: kept_bytes() <= budget,
            lambda: f"{kept_bytes():,} bytes are kept",
        )
        assert kept_bytes() >= budget // 2, "no more clients are closed than must be"
        bystander.connection.sendall(GOOD)
        assert bystander.outcome(kept(GOOD_ANSWER)) == kept(GOOD_ANSWER)
        for client in clients:
            client.close()


def is_open(client: socket.socket) -> bool:
    """Whether the other side has not closed; for a socket that does not block."""
    try:
        return client.recv(1) != b""
    except BlockingIOError:
        return True


def test_an_unfinished_request_is_closed_when_it_is_too_old(impatient: Proxy) -> None:
    clients = {begun: connect(impatient.port) for begun in (b"*1\r\n$4\r\nPI", b"*", b"PIN")}
    for begun, client in clients.items():
        client.sendall(begun)
    for client in clients.values():
        with client:
            assert read_to_end(client) == closed()


def test_a_drip_of_bytes_does_not_make_a_request_younger(impatient: Proxy) -> None:
    with Conversation(impatient.port) as conn:
        conn.connection.sendall(b"*1\r\n$1000000\r\n")
        began, dripped = time.monotonic(), 0
        conn.connection.settimeout(0.02)
        while time.monotonic() - began < 10:
            try:
                assert conn.connection.recv(1) == b""
                break
            except TimeoutError:
                conn.connection.sendall(b"x")
                dripped += 1
        else:
            pytest.fail(f"still open after {dripped} bytes in 10 s, at an unfinished_s of 0.2")
        assert dripped > 5, "bytes came all the time"


@pytest.mark.parametrize("last", [(b"PI", b"NG\r\n"), (b"*1\r\n$4\r\nPI", b"NG\r\n"), (b"*1\r\n$4\r\nPING\r\n",)])
def test_an_idle_client_is_not_closed_whatever_the_age_of_its_last_request(
    impatient: Proxy, last: tuple[bytes, ...]
) -> None:
    with connect(impatient.port) as silent, connect(impatient.port) as served:
        for part in last:
            served.sendall(part)
        assert read_line(served) == b"+PONG\r\n"
        for _ in range(2):  # both were there before the second of these is closed for its age
            with connect(impatient.port) as unfinished:
                unfinished.sendall(b"*")
                assert read_to_end(unfinished) == closed()
        for client in (silent, served):
            client.sendall(b"PING\r\n")
            assert read_line(client) == b"+PONG\r\n"
