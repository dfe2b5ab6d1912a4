"""The end of a conversation: what it may not do any more, and what its client is told; the rest is in tests/e2e."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from protocol import errors
from protocol.request import Request
from protocol.table import TABLE
from pyproxy.worker.commands.context import Here
from pyproxy.worker.commands.conversation import BATCH_PARTS, SLICE_S, Conversation, Refusal
from pyproxy.worker.shard.pool import Use
from tests.pyproxy.worker.commands.asker import worker


class Lane:
    """Of one shard, and whoever asks anything of it has done wrong."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.links: list[Any] = []


class Asker:
    """Stands in for the compiled client."""

    def __init__(self) -> None:
        self.lane = Lane()
        self.talk: Conversation | None = None
        self.transaction = None
        self.proto, self.db = 2, 0
        self.queued_bytes = 0
        self.said: list[bytes] = []
        self.closing = False

    def converse(self, talk: Conversation) -> None:
        self.talk = talk

    def answer(self, reply: bytes) -> None:
        self.talk = None
        self.said.append(reply)

    def queued(self, size: int) -> None:
        raise AssertionError("it is charged for nothing any more")

    def may_write(self, shard: int, size: int) -> object:
        raise AssertionError("nothing is written in its name any more")

    def finish(self) -> None:
        self.closing = True


class Lent:
    """A connection that was lent before."""

    link = type("Link", (), {"index": 0})
    lost = ""


LENT: Any = Lent()

Handler = Callable[[Conversation], Awaitable[bytes]]


async def begun(here: Here, handler: Handler) -> tuple[Asker, Conversation, "asyncio.Task[None]"]:
    client: Any = Asker()
    route: Any = None
    lender: Any = None
    talk = Conversation(client, route, TABLE[b"wait"], [b"WAIT", b"0", b"0"], here, lender)
    assert talk.begin(handler) is None
    task = talk._task
    assert task is not None
    await asyncio.sleep(0)
    return client, talk, task


async def lives_on(talk: Conversation) -> bytes:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def says_ok(talk: Conversation) -> bytes:
    return b"+OK\r\n"


async def charge(talk: Conversation) -> None:
    with talk.charged(100):
        pass


async def wait(talk: Conversation) -> None:
    with talk.waiting():
        pass


async def lend(talk: Conversation) -> None:
    async with talk.lend(0, Use.HELD):
        pass


WAYS: dict[str, Callable[[Conversation], Awaitable[object]]] = {
    "ask": lambda talk: talk.ask(0, b"GET", b"k"),
    "ask all": lambda talk: talk.ask_all(b"PING"),
    "ask blocks": lambda talk: talk.ask_blocks({0: [[b"GET", b"k"]]}),
    "ask on": lambda talk: talk.ask_on(LENT, Request([b"GET", b"k"]), write=False),
    "pass a gate": lambda talk: talk.pass_gate(0, 10),
    "lend": lend,
    "charge": charge,
    "wait": wait,
}

ENDS: dict[str, tuple[Handler, Callable[[Conversation], None]]] = {
    "answered": (says_ok, lambda talk: None),
    "refused": (lives_on, lambda talk: talk.refuse(b"-ERR no\r\n")),
    "its client has gone": (lives_on, lambda talk: talk.left()),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("way", WAYS)
async def test_what_lives_on_after_it_can_do_nothing_in_its_name(way: str, end: str) -> None:
    """Rule: a conversation that is over asks nothing."""
    handler, ended = ENDS[end]
    with worker() as here:
        _, talk, task = await begun(here, handler)
        ended(talk)
        with pytest.raises(asyncio.CancelledError, match="is over"):
            await WAYS[way](talk)
        await asyncio.wait([task])


async def test_a_bug_is_said_and_closes_the_connection_as_it_says() -> None:
    async def breaks(talk: Conversation) -> bytes:
        raise KeyError("nobody expected this")

    with worker() as here:
        client, _, task = await begun(here, breaks)
        await task
        assert client.said == [errors.internal_error()]
        assert b"the connection is closed" in client.said[0]
        assert client.closing


async def test_a_refusal_leaves_the_connection_open() -> None:
    async def refuses(talk: Conversation) -> bytes:
        raise Refusal(b"-ERR no\r\n")

    with worker() as here:
        client, _, task = await begun(here, refuses)
        await task
        assert (client.said, client.closing) == ([b"-ERR no\r\n"], False)


async def test_what_is_done_for_very_many_parts_is_done_between_the_turns_of_others() -> None:
    turns, done = 0, []

    def turn() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(turn)

    async def work(talk: Conversation) -> bytes:
        turn()
        async for some in talk.in_turns(range(20 * BATCH_PARTS)):
            done.append((turns, list(some)))
            ends_at = time.monotonic() + SLICE_S
            while time.monotonic() < ends_at:
                pass
        return b"+OK\r\n"

    with worker() as here:
        client, _, task = await begun(here, work)
        await task
    assert client.said == [b"+OK\r\n"]
    assert [part for _, some in done for part in some] == list(range(20 * BATCH_PARTS))
    assert len({at for at, _ in done}) == 20, "others had a turn after each"
