"""Canaries: a server that answers out of step is noticed before a client is given what another asked for.

The lane alone, between clients and one server that is a list of bytes and slips by one answer: it leaves one out or
gives one twice. In each run it is another answer.
"""

from __future__ import annotations

from typing import Any, cast

import pytest

from bench.bare_lane import BareLane, Up
from protocol import scan
from protocol.request import encode
from pyproxy.worker.lane.lane import Backend, Client, Lane, Wire
from tests.pyproxy.worker.lane.test_faults import Socket, answer

CLIENTS, REQUESTS = 3, 4


class Slipping(Up):
    """A server whose `at`th answer slips; its connection is made anew when it is lost, and is in order then."""

    def __init__(self, lane: Lane, index: int, bare: BareLane, at: int, twice: bool) -> None:
        super().__init__(lane, index)
        self._turns = bare.turns
        self._at, self._twice = at, twice
        self.answered = 0
        self.echoes: list[bytes] = []
        self.lost: list[str] = []
        self.backend(2, 0).canary = True
        self._connect()

    def connect(self, backend: Backend) -> None:
        backend.connecting()
        self._turns.call_soon(self._connect)

    def _connect(self) -> None:
        self.end: Socket = Socket()
        self._requests = scan.Requests()
        self.wire = wire = Wire(self.backends[2, 0], lambda frame: None, self._on_lost)
        wire.connection_made(cast(Any, self.end))
        wire.ready()

    def on_refusal(self, code: str) -> None: ...

    def _on_lost(self, why: str) -> None:
        self.lost.append(why)
        if self.backends[2, 0].lost(why):
            self.connect(self.backends[2, 0])

    def answers(self) -> list[bytes]:
        """To all that came since the last call, one for each: as far as it is in step."""
        said = []
        for _, frame in self._requests.feed(self.end.take()):
            self.answered += 1
            times = 1 if self.answered != self._at else 2 if self._twice else 0
            said += [self._answer(scan.argv(frame))] * times
        return said

    def _answer(self, argv: list[bytes]) -> bytes:
        if argv[0] == b"ECHO":
            self.echoes.append(argv[1])
            return answer(b"GET", argv[1:])
        return answer(argv[0], argv[1:])


class Scene:
    def __init__(self, at: int = 0, twice: bool = False) -> None:
        self.bare = BareLane(1)
        self.server = Slipping(self.bare.lane, 0, self.bare, at, twice)
        self.bare.lane.set_shards([self.server], [0] * 16384)
        self.clients = [self._client() for _ in range(CLIENTS)]

    def _client(self) -> tuple[Client, Socket]:
        client, end = Client(self.bare.lane), Socket()
        client.connection_made(cast(Any, end))
        return client, end

    def ask(self) -> list[list[tuple[bytes, ...]]]:
        """Each client's requests, one of each in turn, so that those of different clients are next to each other."""
        asked: list[list[tuple[bytes, ...]]] = [[] for _ in self.clients]
        for number in range(REQUESTS):
            for index, (client, _) in enumerate(self.clients):
                key = b"%d:%d" % (index, number)
                request = (b"GET", key) if number % 2 == 0 else (b"SET", key, b"v")
                asked[index].append(request)
                client.data_received(encode(request))
        return asked

    def go_on(self) -> None:
        for _ in range(12):
            self.bare.turns.turn()
            for said in self.server.answers():
                self.server.wire.data_received(said)

    def replies(self, index: int) -> list[bytes]:
        return scan.Replies().feed(self.clients[index][1].take())


ANSWERS = 2 * CLIENTS * REQUESTS
"""A canary's and its request's for each request."""


@pytest.mark.parametrize("twice", [False, True], ids=["left out", "given twice"])
@pytest.mark.parametrize("at", range(1, ANSWERS))
def test_no_client_gets_what_another_asked_for_when_an_answer_slips(at: int, twice: bool) -> None:
    scene = Scene(at, twice)
    asked = scene.ask()
    scene.go_on()
    for index, requests in enumerate(asked):
        replies = scene.replies(index)
        assert len(replies) == len(requests)
        for reply, (name, *keys) in zip(replies, requests, strict=True):
            refused = b"-UNCERTAIN " if name == b"SET" else b"-TRYAGAIN "
            assert reply == answer(name, keys) or reply.startswith(refused), (index, name, keys, reply)
    assert len(scene.server.lost) == 1
    assert scene.server.lost[0].startswith("broke the protocol: answered ")
    assert scene.bare.lane.out_of_step == 1


def test_an_answer_too_many_at_the_end_ends_the_connection_and_is_nobodys() -> None:
    scene = Scene(ANSWERS, twice=True)
    scene.ask()
    scene.go_on()
    assert scene.server.lost == ["broke the protocol: sent a reply that nobody asked for"]


def test_nothing_is_seen_of_canaries_while_the_answers_are_in_step() -> None:
    scene = Scene()
    asked = scene.ask()
    backend = scene.server.backend(2, 0)
    assert backend.waiting_requests == CLIENTS * REQUESTS
    scene.bare.turns.settle()
    assert backend.has_unanswered_write
    scene.go_on()
    for index, requests in enumerate(asked):
        assert scene.replies(index) == [answer(name, keys) for name, *keys in requests]
    assert (backend.waiting_requests, backend.has_unanswered_write, scene.server.lost) == (0, False, [])
    assert (scene.bare.lane.inflight, scene.bare.lane.buffered, scene.bare.lane.commands) == (0, 0, CLIENTS * REQUESTS)


def test_no_two_canaries_are_alike() -> None:
    scene = Scene()
    for _ in range(30):
        scene.ask()
        scene.go_on()
    assert len(set(scene.server.echoes)) == len(scene.server.echoes) == 30 * CLIENTS * REQUESTS


def test_a_value_that_looks_like_a_canary_is_a_value() -> None:
    scene = Scene()
    scene.ask()
    scene.go_on()
    for _, end in scene.clients:
        end.take()
    former = scene.server.echoes[-1]
    for each in (former, b"pyproxy-canary-" + b"0" * 32):
        client, end = scene.clients[0]
        client.data_received(encode([b"GET", each]) * 2)
        scene.go_on()
        assert end.take() == answer(b"GET", [each]) * 2
    assert scene.server.lost == []


@pytest.mark.parametrize("line", [b"LOADING Redis is loading", b"MASTERDOWN Link is down", b"BUSY Redis is busy"])
def test_a_server_that_answers_nothing_now_is_not_out_of_step(line: bytes) -> None:
    scene = Scene()
    client, end = scene.clients[0]
    client.data_received(encode([b"GET", b"k"]))
    scene.bare.turns.settle()
    scene.server.wire.data_received(b"-%b\r\n" % line * 2)
    scene.bare.turns.settle()
    assert end.take() == b"-%b\r\n" % line
    assert scene.server.lost == []


def test_without_the_option_there_are_none() -> None:
    scene = Scene()
    scene.server.backend(2, 0).canary = False
    scene.ask()
    scene.go_on()
    assert scene.server.echoes == []
