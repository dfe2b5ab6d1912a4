"""Commands of very many words, or large ones, that leave the lane: looked through in slices before they are taken."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from bench.bare_lane import BareLane
from protocol.commands import Command
from protocol.request import Request, encode
from protocol.scan import Words, argv
from pyproxy.slices import BATCH, PARTS
from pyproxy.worker.commands.placing import shards_of
from pyproxy.worker.lane.check import Broken
from pyproxy.worker.lane.lane import Client, Route
from pyproxy.worker.lane.outcome import NOT_NOW, PLACED, Outcome
from pyproxy.worker.lane.split import cut
from tests.pyproxy.worker.lane.test_many_keys import PIECE, Steps

KEYS, MANY = 20_000, 200_000
WORDS_OF_PART = 64
"""At most so many are looked at in the time of a part, see words.pyx."""


class Talk:
    """A conversation that nobody goes on with."""

    def go_on(self) -> None:
        pass

    def left(self) -> None:
        pass


class Taken:
    """A lane of ten shards with one client, and what left it."""

    def __init__(self) -> None:
        self.bare = BareLane(10, self._take)
        self.lane = self.bare.lane
        self.client, self.end = self.bare.client()
        self.commands: list[tuple[Route, Any]] = []
        self.refusals = 0
        self.converses = False
        self.charged = 0
        """What the client was charged when its last command was taken."""

    def _take(self, client: Client, route: Route, words: Sequence[bytes]) -> Outcome:
        if self.refusals:
            self.refusals -= 1
            client.later()
            return NOT_NOW
        self.commands.append((route, words))
        self.charged = client.buffered
        if self.converses:
            client.converse(Talk())
            return PLACED
        return b"+taken\r\n"

    def reads(self, sent: bytes) -> None:
        for at in range(0, len(sent), PIECE):
            self.client.data_received(sent[at : at + PIECE])

    def settle(self) -> None:
        """All turns; all sums hold after each."""
        while self.bare.turns.waits:
            self.bare.turns.turn()
            self.lane.check()

    def one(self, words: Sequence[bytes]) -> Words:
        """What the command of these words is taken as."""
        self.reads(encode(words))
        self.settle()
        ((_, taken),) = self.commands
        assert isinstance(taken, Words)
        return taken


@pytest.fixture
def taken() -> Taken:
    return Taken()


def keys(count: int) -> list[bytes]:
    rng = random.Random(count)
    return [b"key:%d" % rng.randrange(count) for _ in range(count)]


def tagged(count: int) -> list[bytes]:
    return [b"{tag}%d" % number for number in range(count)]


COMMANDS = {
    "SUNION": [b"SUNION", *keys(KEYS)],
    "SUNIONSTORE": [b"SUNIONSTORE", b"to", *keys(KEYS)],
    "PFCOUNT": [b"pfcount", *tagged(KEYS)],
    "XREAD": [b"XREAD", b"COUNT", b"1", b"STREAMS", *keys(KEYS), *[b"0"] * KEYS],
    "EVAL": [b"EVAL", b"return 1", b"%d" % KEYS, *keys(KEYS), b"an argument"],
    "BLPOP": [b"BLPOP", *keys(KEYS), b"0"],
    "WATCH": [b"WATCH", *tagged(KEYS)],
    "SINTERCARD": [b"SINTERCARD", b"%d" % KEYS, *keys(KEYS), b"LIMIT", b"1"],
    "ZUNION": [b"ZUNION", b"%d" % KEYS, *keys(KEYS), b"WITHSCORES"],
    "BITOP": [b"BITOP", b"AND", b"to", *keys(KEYS)],
    "keys that cannot be found": [b"EVAL", b"return 1", b"%d" % (KEYS + 1), *keys(KEYS)],
    "a large argument": [b"EVAL", b"return 1", b"1", b"key", b"x" * 3_000_000],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS.keys())
def test_it_is_taken_with_its_words_as_they_came(taken: Taken, words: list[bytes]) -> None:
    said = taken.one(words)
    assert len(said) == len(words)
    assert list(said) == words
    assert (said[1:7], said[-1], said[-3:]) == (words[1:7], words[-1], words[-3:])
    assert Request(said).frame == encode(words)


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS.keys())
def test_the_shards_of_its_keys_are_known(taken: Taken, words: list[bytes]) -> None:
    said = taken.one(words)
    ((route, _),) = taken.commands
    if words[0] == b"EVAL" and words[2] == b"%d" % (KEYS + 1):
        assert said.placed.shards == frozenset()
        return
    positions = route.command.keys(words)
    assert list(route.command.keys(said)) == list(positions)
    assert said.placed.shards == {taken.lane.shard_of(words[place]) for place in positions}
    assert shards_of(taken.lane, said, route.command.keys(said)) is said.placed.shards


@pytest.mark.parametrize(
    "words", [[b"MGET", *keys(KEYS)], [b"MSET", *[w for k in keys(KEYS) for w in (k, b"v" + k)]]], ids=["MGET", "MSET"]
)
def test_in_a_transaction_it_is_cut_as_a_short_one(taken: Taken, words: list[bytes]) -> None:
    taken.client.transaction = object()
    said = taken.one(words)
    ((route, _),) = taken.commands
    owners, parts = cut(taken.lane, route, said)
    plain_owners, plain_parts = cut(taken.lane, route, words)
    assert owners == plain_owners
    assert {shard: part.frame for shard, part in parts.items()} == {
        shard: part.frame for shard, part in plain_parts.items()
    }
    taken.client.transaction = None


def test_what_comes_behind_it_is_taken_behind_it(taken: Taken) -> None:
    words = [b"SUNION", *keys(KEYS)]
    taken.reads(encode(words) + encode([b"PING"]) + encode(words) + encode([b"TIME"]))
    taken.bare.turns.settle()
    assert [list(each) for _, each in taken.commands] == [words, [b"PING"], words, [b"TIME"]]
    assert taken.end.take() == b"+taken\r\n" * 4


def test_one_that_has_to_wait_is_offered_again_with_its_words(taken: Taken) -> None:
    taken.refusals = 3
    words = [b"SUNION", *keys(KEYS)]
    assert list(taken.one(words)) == words
    assert taken.refusals == 0


# --- memory -----------------------------------------------------------------------------------------------------------

PLACE = 8
"""Bytes of what is known of where a word stands."""


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS.keys())
def test_its_bytes_the_copy_of_them_and_its_words_count_as_its_clients(taken: Taken, words: list[bytes]) -> None:
    taken.one(words)
    assert taken.charged >= 2 * len(encode(words)) + PLACE * len(words)
    assert (taken.client.buffered, taken.lane.buffered) == (0, 0)


def test_the_copy_counts_from_when_it_is_made(taken: Taken) -> None:
    sent = encode([b"SUNION", *keys(MANY)])
    taken.reads(sent)
    assert taken.client.buffered >= 2 * len(sent)
    taken.lane.check()


def test_the_parts_of_what_is_cut_count_too(taken: Taken) -> None:
    taken.client.transaction = object()
    words = [b"MGET", *keys(KEYS)]
    taken.one(words)
    assert taken.charged >= 3 * len(encode(words)) + (PLACE + 2) * KEYS
    assert taken.lane.buffered == 0
    taken.client.transaction = None


def test_a_change_of_the_shards_in_the_middle_counts_nothing_twice(taken: Taken) -> None:
    taken.client.transaction = object()
    words = [b"MGET", *keys(MANY)]
    taken.reads(encode(words))
    for _ in range(12):
        taken.bare.turns.turn()
        taken.lane.set_shards(list(taken.bare.links), [number % 10 for number in range(16384)])
        taken.lane.check()
    taken.settle()
    assert taken.charged < 3.2 * len(encode(words)) + (PLACE + 2) * MANY
    assert taken.lane.buffered == 0
    taken.client.transaction = None


def test_it_counts_while_it_has_to_wait(taken: Taken) -> None:
    taken.refusals = 1
    sent = encode([b"SUNION", *keys(KEYS)])
    taken.reads(sent)
    while taken.refusals:
        taken.bare.turns.turn()
    assert taken.client.buffered >= 2 * len(sent)
    taken.settle()
    assert taken.lane.buffered == 0


@pytest.mark.parametrize("leaves", [False, True], ids=["answered", "left"])
def test_it_counts_until_its_conversation_is_over(taken: Taken, leaves: bool) -> None:
    taken.converses = True
    words = [b"BLPOP", *keys(KEYS), b"0"]
    taken.one(words)
    assert taken.client.buffered >= len(encode(words)) + PLACE * len(words)
    taken.client.connection_lost(None) if leaves else taken.client.answer(b"*-1\r\n")
    taken.settle()
    assert (taken.client.buffered, taken.lane.buffered) == (0, 0)


def test_a_large_command_of_few_words_counts_until_its_conversation_is_over(taken: Taken) -> None:
    taken.converses = True
    sent = encode([b"EVAL", b"return 1", b"1", b"key", b"x" * 500_000])
    taken.reads(sent)
    taken.settle()
    assert taken.client.buffered >= len(sent)
    taken.client.answer(b"*-1\r\n")
    taken.settle()
    assert taken.lane.buffered == 0


@pytest.mark.parametrize("after", range(0, 20, 3))
def test_a_client_that_leaves_meanwhile_leaves_nothing(taken: Taken, after: int) -> None:
    taken.reads(encode([b"SUNION", *keys(MANY)]))
    for _ in range(after):
        taken.bare.turns.turn()
    assert taken.client.buffered > 0
    taken.client.connection_lost(None)
    taken.lane.check()
    taken.settle()
    assert not taken.commands
    assert taken.lane.buffered == 0


@pytest.mark.parametrize("after", range(0, 20, 3))
def test_nothing_is_left_of_it_where_the_worker_drains(taken: Taken, after: int) -> None:
    taken.reads(encode([b"SUNION", *keys(MANY)]))
    for _ in range(after):
        taken.bare.turns.turn()
    taken.lane.drain()
    taken.settle()
    assert not taken.commands
    assert taken.lane.buffered == 0


@pytest.mark.parametrize("fault", [RuntimeError, MemoryError])
def test_nothing_is_left_of_it_after_a_fault_of_ours(
    taken: Taken, fault: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise fault

    monkeypatch.setattr(Command, "keys", fails)
    taken.reads(encode([b"SUNION", *keys(MANY)]))
    taken.settle()
    assert taken.end.take().startswith(b"-ERR ")
    assert taken.lane.buffered == 0


def test_nothing_is_left_of_it_where_who_takes_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Outcome:
        raise RuntimeError

    monkeypatch.setattr(Taken, "_take", fails)
    taken = Taken()
    taken.reads(encode([b"SUNION", *keys(KEYS)]))
    taken.settle()
    assert taken.end.take().startswith(b"-ERR ")
    assert taken.lane.buffered == 0


def test_what_is_charged_for_no_command_is_found(taken: Taken) -> None:
    taken.client.charge_command(10)
    with pytest.raises(Broken, match="it is charged for a command that nobody is at"):
        taken.lane.check()


def test_what_is_charged_for_more_than_there_is_is_found(taken: Taken) -> None:
    taken.reads(encode([b"SUNION", *keys(KEYS)]))
    taken.client.charge_command(10)
    with pytest.raises(Broken, match="expected bytes of the command that is looked through to be"):
        taken.lane.check()


# --- what it rests on -------------------------------------------------------------------------------------------------


def test_a_change_of_the_shards_is_noticed(taken: Taken) -> None:
    """What was known of the keys is of no use then."""
    said = taken.one([b"SUNION", *keys(KEYS)])
    positions = range(1, KEYS + 1)
    owners = [0] * 16384
    taken.lane.set_shards(list(taken.bare.links), owners)
    assert shards_of(taken.lane, said, positions) == {0}


@pytest.mark.parametrize("name", ["SUNION", "EVAL", "XREAD", "MGET in a transaction"])
def test_no_step_has_more_than_its_share(name: str) -> None:
    many = keys(MANY)
    words = {
        "SUNION": [b"SUNION", *many], "EVAL": [b"EVAL", b"return 1", b"%d" % MANY, *many],
        "XREAD": [b"XREAD", b"STREAMS", *many, *[b"0"] * MANY], "MGET in a transaction": [b"MGET", *many],
    }[name]  # fmt: skip
    taken, steps = Taken(), Steps()
    if name == "MGET in a transaction":
        taken.client.transaction = object()
    taken.lane.slices = steps
    taken.reads(encode(words))
    taken.bare.turns.turn()
    done = list(steps.done())
    assert max(done) <= BATCH
    assert len(done) >= len(encode(words)) / (BATCH * 8192)
    assert len(done) >= len(words) / (BATCH * WORDS_OF_PART)
    assert sum(done) > PARTS, "it was so little that one turn would have done"


def test_words_are_those_of_the_request(taken: Taken) -> None:
    words = [b"EVAL", b"", b"\r\n$5\r\n", *[b"x" * size for size in range(5000)]]
    assert list(taken.one(words)) == argv(encode(words))
