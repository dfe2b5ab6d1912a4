import asyncio
import socket
from collections.abc import AsyncIterator

import msgspec
import pytest

from pyproxy.channel import FRAME_LIMIT, Channel
from pyproxy.messages import Applied, Complaint, Configured, FleetHealth, Message, Ready, ShardHealth
from tests.waiting import until


class Peer:
    """One end of a channel, and what came out of it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.closed = 0

    def on_closed(self) -> None:
        self.closed += 1

    async def open(self, sock: socket.socket) -> Channel:
        return await Channel.open(sock, self.messages.append, self.on_closed)

    def __repr__(self) -> str:
        return f"{len(self.messages)} messages, closed {self.closed} times: {self.messages[-3:]}"


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Channel, socket.socket, Peer]]:
    """A channel, the bare socket at its other end, and what the channel received."""
    ours, theirs = socket.socketpair()
    peer = Peer()
    channel = await peer.open(ours)
    with theirs:
        theirs.setblocking(False)
        yield channel, theirs, peer
        channel.close()


def frame(message: Message) -> bytes:
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4) + body


def health(version: int, size: int) -> FleetHealth:
    return FleetHealth(version, 0.0, [ShardHealth("s0", "n:1", True, "", {"x": "y" * size}, {}, "")])


async def test_messages_arrive_in_their_order_in_both_directions() -> None:
    one, other = socket.socketpair()
    left, right = Peer(), Peer()
    a, b = await left.open(one), await right.open(other)
    for version in range(100):
        a.send(Applied(version))
        b.send(Ready(version))
    await until("all messages", lambda: len(left.messages) == len(right.messages) == 100, lambda: (left, right))
    assert right.messages == [Applied(version) for version in range(100)]
    assert left.messages == [Ready(version) for version in range(100)]
    a.close()
    await until("both ends closed", lambda: left.closed == right.closed == 1, lambda: (left, right))


async def test_a_message_may_arrive_byte_by_byte(ends: tuple[Channel, socket.socket, Peer]) -> None:
    _, bare, peer = ends
    for byte in frame(Applied(1)) + frame(Ready(2)):
        await asyncio.get_running_loop().sock_sendall(bare, bytes([byte]))
    await until("two messages", lambda: len(peer.messages) == 2, lambda: peer)
    assert peer.messages == [Applied(1), Ready(2)]


async def test_the_end_of_the_other_process_is_told_once(ends: tuple[Channel, socket.socket, Peer]) -> None:
    channel, bare, peer = ends
    bare.close()
    await until("the end", lambda: peer.closed > 0, lambda: peer)
    assert channel.closed
    channel.close()
    channel.send(Ready(1))  # to nobody, and without harm
    assert peer.closed == 1


@pytest.mark.parametrize(
    "garbage",
    [(FRAME_LIMIT + 1).to_bytes(4), (3).to_bytes(4) + b"\xc1xx", frame(Ready(1)).replace(b"Ready", b"Rexdy")],
    ids=["too long", "no MessagePack", "unknown message"],
)
async def test_what_is_no_message_closes_the_channel(ends: tuple[Channel, socket.socket, Peer], garbage: bytes) -> None:
    _, bare, peer = ends
    bare.send(garbage)
    await until("the end", lambda: peer.closed == 1, lambda: peer)
    assert peer.messages == []


async def test_a_peer_that_does_not_read_gets_the_newest_state_of_each_kind_when_it_does(
    ends: tuple[Channel, socket.socket, Peer],
) -> None:
    channel, bare, _ = ends
    for version in range(1000):  # far more than socket buffers take
        channel.send(health(version, 10_000))
        channel.send(Applied(version))
    for shard in ("s0", "s1"):
        channel.send(Complaint(shard, "n:1", "late"))
    for name in ("a", "b"):
        channel.send(Configured(name, "old", 1))
        channel.send(Configured(name, "new", 2))
    reader = Peer()
    other = await reader.open(bare.dup())

    def complete() -> bool:
        return any(isinstance(message, Configured) and message.name == "b" for message in reader.messages)

    await until("the last message", complete, lambda: reader)
    healths = [message.version for message in reader.messages if isinstance(message, FleetHealth)]
    assert healths == sorted(healths)
    assert healths[-1] == 999
    assert len(healths) < 500  # the others never waited in memory
    assert [message for message in reader.messages if isinstance(message, Applied)][-1] == Applied(999)
    assert {message.shard for message in reader.messages if isinstance(message, Complaint)} == {"s0", "s1"}
    configured = [message for message in reader.messages if isinstance(message, Configured)]
    assert configured == [Configured("a", "new", 2), Configured("b", "new", 2)]
    other.close()
