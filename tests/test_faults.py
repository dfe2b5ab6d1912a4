import socket
from collections.abc import Iterator

import pytest

from pyproxy.fleet import HOST, Server, reserve_port
from tests.faults import End, Hop, Way

PING, PONG = b"PING\r\n", b"+PONG\r\n"


@pytest.fixture
def hop(server: Server) -> Iterator[Hop]:
    with Hop(server.port) as hop:
        yield hop


@pytest.fixture
def wire(hop: Hop) -> Iterator[socket.socket]:
    with socket.create_connection((HOST, hop.port), timeout=10) as wire:
        wire.sendall(PING)
        assert wire.recv(100) == PONG, "it starts as a plain wire"
        yield wire


def silent(wire: socket.socket) -> bool:
    """Whether nothing comes for a while, long against what a loopback needs."""
    wire.settimeout(0.1)
    try:
        return not wire.recv(1)
    except TimeoutError:
        return True
    finally:
        wire.settimeout(10)


@pytest.mark.parametrize("way", Way)
def test_what_is_stalled_waits_until_it_is_healed(hop: Hop, wire: socket.socket, way: Way) -> None:
    hop.stall(way)
    wire.sendall(PING)
    assert silent(wire)
    hop.heal()
    assert wire.recv(100) == PONG


@pytest.mark.parametrize("way", Way)
def test_what_is_swallowed_never_comes(hop: Hop, wire: socket.socket, way: Way) -> None:
    hop.swallow(way)
    wire.sendall(b"ECHO lost\r\n")
    assert silent(wire)
    hop.heal()
    wire.sendall(PING)
    assert wire.recv(100) == PONG


def test_a_drip_is_one_byte_at_a_time(hop: Hop, wire: socket.socket) -> None:
    hop.drip(0.01, Way.REPLIES)
    wire.sendall(PING)
    pieces = [wire.recv(100) for _ in PONG]
    assert pieces == [b"+", b"P", b"O", b"N", b"G", b"\r", b"\n"]


def test_a_delayed_piece_comes_whole(hop: Hop, wire: socket.socket) -> None:
    hop.delay(0.2)
    wire.sendall(PING)
    assert silent(wire)
    assert wire.recv(100) == PONG


def test_a_cut_is_a_fin(hop: Hop, wire: socket.socket) -> None:
    hop.cut()
    assert wire.recv(100) == b""


def test_a_cut_by_reset_is_a_reset(hop: Hop, wire: socket.socket) -> None:
    hop.cut(reset=True)
    with pytest.raises(ConnectionResetError):
        wire.recv(100)


def test_injected_bytes_come_unasked(hop: Hop, wire: socket.socket) -> None:
    hop.inject(b"surprise")
    assert wire.recv(100) == b"surprise"


def test_a_scripted_answer_takes_the_place_of_the_servers_once(hop: Hop, wire: socket.socket) -> None:
    hop.answer(b"PING", b"+other\r\n")
    wire.sendall(PING)
    assert wire.recv(100) == b"+other\r\n"
    wire.sendall(PING)
    assert wire.recv(100) == PONG


def test_after_a_scripted_answer_it_may_close(hop: Hop, wire: socket.socket) -> None:
    hop.answer(b"PING", b"+PO", End.FIN)
    wire.sendall(PING)
    assert wire.recv(100) == b"+PO"
    assert wire.recv(100) == b""


def test_a_greeting_is_the_first_that_is_heard(hop: Hop) -> None:
    hop.greet(b"SSH-2.0-x\r\n")
    with socket.create_connection((HOST, hop.port), timeout=10) as wire:
        assert wire.recv(100) == b"SSH-2.0-x\r\n"


def test_connections_that_are_not_meant_pass_unharmed(server: Server) -> None:
    with Hop(server.port, affects=lambda first: b"ECHO" in first) as hop:
        hop.swallow()
        with socket.create_connection((HOST, hop.port), timeout=10) as wire:
            wire.sendall(PING)
            assert wire.recv(100) == PONG
        assert hop.accepted == 0


def test_it_tells_what_was_asked_and_how_many_are_open(hop: Hop, wire: socket.socket) -> None:
    assert (hop.requests, hop.open, hop.accepted) == (PING, 1, 1)


@pytest.mark.parametrize("way", Way)
def test_in_a_network_that_is_cut_bytes_wait_until_it_is_healed(hop: Hop, wire: socket.socket, way: Way) -> None:
    hop.part(way)
    wire.sendall(PING)
    assert silent(wire)
    hop.heal()
    assert wire.recv(100) == PONG


def test_in_a_network_that_is_cut_nobody_hears_of_an_end(hop: Hop, wire: socket.socket, server: Server) -> None:
    hop.part()
    server.ask("CLIENT", "KILL", "TYPE", "normal")
    wire.settimeout(0.1)
    with pytest.raises(TimeoutError):
        wire.recv(1)
    hop.heal()
    wire.settimeout(10)
    assert wire.recv(1) == b""


def test_in_a_network_that_is_cut_nobody_is_refused() -> None:
    with reserve_port() as nobody, Hop(nobody.getsockname()[1]) as hop:
        hop.part()
        with socket.create_connection((HOST, hop.port), timeout=0.1) as wire:
            with pytest.raises(TimeoutError):
                wire.recv(1)
            hop.heal()
            wire.settimeout(10)
            assert wire.recv(1) == b""
