"""A server says what is no message where a worker listens: it is left with a line in the log, and asked again for all.

Else what is published would be taken for a part of it, and nobody would hear anything any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pyproxy.fleet import Fleet, Proxy, wait_until
from tests.e2e.rig import PATIENCE_S, Connection, Keys, behind, wait_for_line
from tests.faults import Hop

MIB = 1 << 20

TIMEOUTS = {"connect_s": PATIENCE_S, "reply_s": 0.5, "silence_s": 0.5, "reconnect_max_s": 0.2}

MESSAGE = b"*3\r\n$7\r\nmessage\r\n$1\r\nx\r\n"

NO_MESSAGE = {
    "an array of very many": (b"*1000000\r\n", "began to say what can be no message"),
    "an array of more than a server can": (b"*2000000000\r\n$1\r\nx\r\n", "began to say what can be no message"),
    "an array in an array": (b"*3\r\n*3\r\n*3\r\n", "began to say what can be no message"),
    "a bulk alone": (b"$1000000\r\nabc", "began to say what can be no message"),
    "a bulk that is beyond the budget": (MESSAGE + b"$9000000\r\n" + b"x" * 6 * MIB, "beyond the memory"),
    "a line without an end": (b"+" + b"x" * MIB, "invalid reply"),
    "a message without an end": (b"*3\r\n$7\r\nmessage\r\n$100000\r\nabc", "has not ended for 5 s"),
    "an answer to another question": (b"*3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n", "(nobody asked|something else)"),
    "a message of another form": (MESSAGE + b":1\r\n", "of another form"),
    "no reply": (b"@", "invalid reply"),
}  # fmt: skip


def listens(first: bytes) -> bool:
    """Whether it is the connection of a worker that listens, by its first bytes: its set-up asks for nothing else."""
    return first.startswith(b"*2\r\n$4\r\nECHO")


@contextmanager
def listened_to(fleet: Fleet) -> Iterator[tuple[Hop, Proxy]]:
    limits = {"memory_bytes": 4 * MIB, "bulk_bytes": MIB}
    with (
        Hop(fleet.shards[0].primary.port, listens) as hop,
        behind(fleet, {0: hop}, timeouts=TIMEOUTS, limits=limits) as proxy,
    ):
        yield hop, proxy


@pytest.mark.parametrize(("said", "why"), NO_MESSAGE.values(), ids=NO_MESSAGE.keys())
def test_what_is_no_message_ends_the_connection_and_all_is_subscribed_anew(fleet: Fleet, said: bytes, why: str) -> None:
    with listened_to(fleet) as (hop, proxy), Connection(proxy.port) as conn, Connection(proxy.port) as publisher:
        channel = Keys(proxy).one(0)
        assert conn.ask("SUBSCRIBE", channel) == [b"subscribe", channel.encode(), 1]
        assert publisher.ask("PUBLISH", channel, "before") == 1
        assert conn.read() == [b"message", channel.encode(), b"before"]
        accepted = hop.accepted
        hop.inject(said)
        wait_for_line(proxy, rf"\+pubsub-lost shard=s0 .*{why}")
        wait_until("to listen anew", lambda: hop.accepted > accepted, proxy.tail, PATIENCE_S)
        wait_for_line(proxy, r"-pubsub-lost shard=s0")
        server, one = fleet.shards[0].primary, [channel.encode(), 1]
        wait_until("a subscription", lambda: server.ask("PUBSUB", "NUMSUB", channel) == one, proxy.tail, PATIENCE_S)
        assert publisher.ask("PUBLISH", channel, "after") == 1
        assert conn.read() == [b"message", channel.encode(), b"after"]
        assert "+bug" not in proxy.log.read_text()


def test_a_large_message_comes_as_any_other(fleet: Fleet) -> None:
    with listened_to(fleet) as (_, proxy), Connection(proxy.port) as conn, Connection(proxy.port) as publisher:
        channel, large = Keys(proxy).one(0), b"x" * MIB
        assert conn.ask("SUBSCRIBE", channel) == [b"subscribe", channel.encode(), 1]
        for _ in range(5):
            assert publisher.ask("PUBLISH", channel, large) == 1
            assert conn.read() == [b"message", channel.encode(), large]
        assert "+pubsub-lost" not in proxy.log.read_text()
