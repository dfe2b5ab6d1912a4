"""What a server says, in any pieces: never read beyond what is here, never believed beyond what is so."""

from collections.abc import Iterator

import pytest

from bench.bare_lane import BareLane, Up
from protocol.request import encode
from pyproxy.worker.lane.lane import Wire

GET = encode([b"GET", b"k"])
LARGE = 16384
"""From here on a bulk is received where it will stay, on the word of its header."""

DIGITS = {
    "twenty thousand digits": b"$" + b"9" * 20_000,
    "sixty thousand digits": b"$" + b"1" * 60_000,
    "digits that wrap around to a small number": b"$18446744073709551620" + b"\0" * 20_000,
    "a sign and digits": b"$-" + b"1" * 20_000,
    "no digits": b"$" + b"x" * 20_000,
    "many digits, and their end": b"$" + b"0" * 20_000 + b"\r\n",
    "an array of so many": b"*" + b"9" * 20_000,
    "a bulk in an array": b"*2\r\n$" + b"9" * 20_000,
    "a bulk whose header says less than there is": b"$20000\r\n" + b"x" * 30_000,
    "a bulk that ends in something else": b"$20000\r\n" + b"x" * 20_000 + b"xx",
    "a CR without its LF": b"$20000\rx" + b"x" * 20_000,
}
WHOLE = {
    f"a bulk of {size} bytes": b"$%d\r\n%b\r\n" % (size, b"x" * size)
    for size in (0, 99, 100, LARGE - 9, LARGE, LARGE + 1, 70_000)
}


def pieces(said: bytes, size: int) -> Iterator[bytes]:
    return (said[at : at + size] for at in range(0, len(said), size))


class Shard:
    """One server that says what it is told to, to one client that has asked one thing."""

    def __init__(self) -> None:
        self.bare = BareLane(1)
        self.client, self.end = self.bare.client()
        self.up: Up = self.bare.links[0]
        self.lost = ""
        self.wire = Wire(self.up.backends[2, 0], lambda frame: None, self._on_lost)
        self.wire.connection_made(self.up.end)  # type: ignore[arg-type]  # as much of a transport as is used
        self.wire.ready()
        self.client.data_received(GET)
        self.bare.turns.settle()

    def _on_lost(self, why: str) -> None:
        self.lost = why

    def says(self, said: bytes, size: int) -> tuple[bytes, str]:
        """In pieces of this size -> what the client got, and why the connection was given up."""
        for piece in pieces(said, size):
            self.wire.data_received(piece)
            if self.lost:
                break
        self.bare.turns.settle()
        return self.end.take(), self.lost


SIZES = [1, 7, 4096, LARGE, LARGE + 1, 1 << 20]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("said", DIGITS.values(), ids=DIGITS.keys())
def test_a_header_that_lies_ends_the_connection_in_any_pieces(said: bytes, size: int) -> None:
    assert Shard().says(said, size) == (b"", "broke the protocol: sent bytes that are not a reply")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("said", WHOLE.values(), ids=WHOLE.keys())
def test_a_reply_arrives_as_it_was_sent_in_any_pieces(said: bytes, size: int) -> None:
    assert Shard().says(said, size) == (said, "")


def test_of_a_header_nothing_is_reserved_before_its_end_is_here() -> None:
    shard = Shard()
    assert shard.says(b"$67108864", 1) == (b"", "")
    assert shard.says(b"\r\n" + b"x" * 100, 1) == (b"", "")


@pytest.mark.parametrize("owners", [[0] * 16383, [1] * 16384, [-1] * 16384], ids=["too few", "too high", "negative"])
def test_a_slot_without_a_shard_is_refused_before_anything_is_looked_up_by_it(owners: list[int]) -> None:
    bare = BareLane(1)
    with pytest.raises(ValueError, match="expected the owners of 16384 slots among 1 shards"):
        bare.lane.set_shards(bare.links, owners)
