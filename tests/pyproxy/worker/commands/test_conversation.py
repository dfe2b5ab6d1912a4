"""The end of a conversation: what it may not do any more, and what its client is told; the rest is in tests/e2e."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from protocol import errors
from protocol.request import Request
from protocol.table import TABLE
from pyproxy.worker.commands.context import Context
from pyproxy.worker.commands.conversation import BATCH_PARTS, SLICE_S, Conversation, Refusal
from pyproxy.worker.lane.outcome import PLACED, Later
from pyproxy.worker.shard.pool import LeaseKind
from tests.pyproxy.worker.commands.stand_ins import worker
from tests.waiting import until


class Lane:
    """Of one shard, and whoever asks anything of it has done wrong."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.links: list[Any] = []


class StandInClient:
    """Stands in for the compiled client."""

    def __init__(self) -> None:
        self.lane = Lane()
        self.conversation: Conversation | None = None
        self.transaction = None
        self.proto, self.db = 2, 0
        self.reply: list[bytes] = []
        self.closing = False

    def converse(self, conversation: Conversation) -> Later:
        self.conversation = conversation
        return PLACED

    def answer(self, reply: bytes) -> None:
        self.conversation = None
        self.reply.append(reply)

    def charge_command(self, size: int) -> None:
        raise AssertionError("it is charged for nothing any more")

    def may_write(self, shard: int, size: int) -> object:
        raise AssertionError("nothing is written in its name any more")

    def finish(self) -> None:
        self.closing = True


class OldLease:
    """A connection that was leased before."""

    link = type("Link", (), {"index": 0})
    lost = ""


OLD_LEASE: Any = OldLease()

Handler = Callable[[Conversation], Awaitable[bytes]]


async def begun(context: Context, handler: Handler) -> tuple[StandInClient, Conversation, "asyncio.Task[None]"]:
    client: Any = StandInClient()
    route: Any = None
    lease_pool: Any = None
    conversation = Conversation(client, route, TABLE[b"wait"], [b"WAIT", b"0", b"0"], context, lease_pool)
    assert conversation.begin(handler) is PLACED
    task = conversation._task
    assert task is not None
    await asyncio.sleep(0)
    return client, conversation, task


async def lives_on(conversation: Conversation) -> bytes:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def says_ok(conversation: Conversation) -> bytes:
    return b"+OK\r\n"


async def charge(conversation: Conversation) -> None:
    with conversation.charged(100):
        pass


async def wait(conversation: Conversation) -> None:
    with conversation.waiting():
        pass


async def lease(conversation: Conversation) -> None:
    async with conversation.lease(0, LeaseKind.LONG):
        pass


WAYS: dict[str, Callable[[Conversation], Awaitable[object]]] = {
    "ask": lambda conversation: conversation.ask(0, b"GET", b"k"),
    "ask all": lambda conversation: conversation.ask_all(b"PING"),
    "ask blocks": lambda conversation: conversation.ask_blocks({0: [[b"GET", b"k"]]}),
    "ask on": lambda conversation: conversation.ask_on(OLD_LEASE, Request([b"GET", b"k"]), write=False),
    "pass a gate": lambda conversation: conversation.pass_gate(0, 10),
    "lease": lease,
    "charge": charge,
    "wait": wait,
}

ENDS: dict[str, tuple[Handler, Callable[[Conversation], None]]] = {
    "answered": (says_ok, lambda conversation: None),
    "refused": (lives_on, lambda conversation: conversation.refuse(b"-ERR no\r\n")),
    "its client has gone": (lives_on, lambda conversation: conversation.left()),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("way", WAYS)
async def test_what_lives_on_after_it_can_do_nothing_in_its_name(way: str, end: str) -> None:
    """Rule: a conversation that is over asks nothing."""
    handler, ended = ENDS[end]
    with worker() as context:
        _, conversation, task = await begun(context, handler)
        ended(conversation)
        with pytest.raises(asyncio.CancelledError, match="is over"):
            await WAYS[way](conversation)
        await asyncio.wait([task])


async def test_a_bug_is_said_and_closes_the_connection_as_it_says() -> None:
    async def breaks(conversation: Conversation) -> bytes:
        raise KeyError("nobody expected this")

    with worker() as context:
        client, _, task = await begun(context, breaks)
        await task
        assert client.reply == [errors.internal_error()]
        assert b"the connection is closed" in client.reply[0]
        assert client.closing


async def test_a_refusal_leaves_the_connection_open() -> None:
    async def refuses(conversation: Conversation) -> bytes:
        raise Refusal(b"-ERR no\r\n")

    with worker() as context:
        client, _, task = await begun(context, refuses)
        await task
        assert (client.reply, client.closing) == ([b"-ERR no\r\n"], False)


async def test_what_is_done_for_very_many_parts_is_done_between_the_turns_of_others() -> None:
    turns, done = 0, []

    def turn() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(turn)

    async def work(conversation: Conversation) -> bytes:
        turn()
        async for some in conversation.in_turns(range(20 * BATCH_PARTS)):
            done.append((turns, list(some)))
            ends_at = time.monotonic() + SLICE_S
            while time.monotonic() < ends_at:
                pass
        return b"+OK\r\n"

    with worker() as context:
        client, _, task = await begun(context, work)
        await task
    assert client.reply == [b"+OK\r\n"]
    assert [part for _, some in done for part in some] == list(range(20 * BATCH_PARTS))
    assert len({at for at, _ in done}) == 20, "others had a turn after each"


# --- the client has closed its half -----------------------------------------------------------------------------------


async def test_a_client_that_has_waited_for_long_is_given_up_as_soon_as_it_closes_its_half(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or an element that comes in the moment after would be popped for nobody."""
    monkeypatch.setattr("pyproxy.worker.commands.conversation.MOMENT_S", 3600.0)
    with worker() as context:
        _, conversation, _ = await begun(context, lives_on)
        conversation._begun_at -= 3600.0
        conversation.half_closed()
        await until("it to be given up", lambda: conversation.stopped, lambda: conversation)
        conversation.left()


async def test_a_client_that_closes_its_half_at_once_is_given_a_moment() -> None:
    with worker() as context:
        _, conversation, _ = await begun(context, lives_on)
        conversation.half_closed()
        assert not conversation.stopped
        conversation.left()


# --- nonsense ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([b"XREAD", b"BLOCK", b"0", b"STREAMS", b"k", b"0"], b"-ERR "),
        ([b"BLPOP", b"k", b"0"], b"-UNCERTAIN "),
        ([b"EVAL", b"return 1", b"0"], b"-UNCERTAIN "),
    ],
    ids=["XREAD", "BLPOP", "EVAL"],
)
async def test_nonsense_makes_uncertain_what_may_have_written(argv: list[bytes], line: bytes) -> None:
    client: Any = StandInClient()
    nothing: Any = None
    with worker() as context:
        conversation = Conversation(client, nothing, TABLE[argv[0].lower()], argv, context, nothing)
        conversation.wrote = True
        assert conversation.unexpected().startswith(line)
