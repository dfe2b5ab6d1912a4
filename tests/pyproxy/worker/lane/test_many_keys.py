"""Commands of very many keys, or bytes: cut and put together in slices, each of which is small; without a socket."""

import random
from collections.abc import Iterator, Sequence

import pytest

from bench.bare_lane import BareLane, End
from protocol.request import Request, encode
from protocol.scan import argv
from protocol.table import TABLE
from pyproxy.slices import BATCH, PARTS
from pyproxy.worker.lane.lane import Client, Route
from pyproxy.worker.lane.split import fan_out

KEYS, MANY = 20_000, 200_000
PIECE = 262_144
"""Bytes that a loop reads at once."""

KEYS_OF_PART = 32
"""At most so many are looked at in the time of a part, see many_keys.pyx."""

GET = encode([b"GET", b"bystander"])


class Beside:
    """A lane of ten shards with one client, and what its shards are sent."""

    def __init__(self) -> None:
        self.bare = BareLane(10)
        self.client, self.end = self.bare.client()

    def reads(self, sent: bytes, client: Client | None = None) -> None:
        for at in range(0, len(sent), PIECE):
            (client or self.client).data_received(sent[at : at + PIECE])

    def parts(self) -> list[list[bytes]]:
        """What each shard was sent since the last call, once all turns are over; [] for nothing."""
        self.bare.turns.settle()
        return [argv(sent) if sent else [] for sent in self.sent()]

    def ask_all(self, *words: bytes) -> None:
        fan_out(self.client, Route(TABLE[words[0].lower()]), Request(words))
        self.parts()

    def sent(self) -> list[bytes]:
        return [link.end.take() for link in self.bare.links]

    def turns(self) -> int:
        """How many turns there are until nothing is to be done any more."""
        count = 0
        while self.bare.turns.waits:
            self.bare.turns.turn()
            count += 1
        return count

    def answers(self, parts: Sequence[bytes]) -> None:
        for link, said in zip(self.bare.links, parts, strict=True):
            for at in range(0, len(said), PIECE):
                link.wire.data_received(said[at : at + PIECE])

    def echo(self) -> bytes:
        """Each shard answers an MGET with the names of its keys -> the answer to all of it, as the client gets it."""
        self.answers([array(part[1:]) if part else b"" for part in self.parts()])
        self.bare.turns.settle()
        return self.end.take()


def array(values: Sequence[bytes]) -> bytes:
    return encode(values) if values else b"*0\r\n"


def names(count: int) -> list[bytes]:
    """In no order, some of them twice."""
    rng = random.Random(count)
    return [b"key:%d" % rng.randrange(count) for _ in range(count)]


@pytest.fixture
def beside() -> Beside:
    return Beside()


def other(beside: Beside) -> tuple[Client, End]:
    return beside.bare.client()


# --- what is sent -----------------------------------------------------------------------------------------------------


def by_shard(beside: Beside, name: bytes, words: Sequence[bytes], step: int) -> list[list[bytes]]:
    """What each shard should be sent."""
    parts: list[list[bytes]] = [[] for _ in beside.bare.links]
    for at in range(0, len(words), step):
        parts[beside.bare.lane.shard_of(words[at])] += words[at : at + step]
    return [[name, *part] if part else [] for part in parts]


@pytest.mark.parametrize("name", [b"MGET", b"DEL", b"UNLINK", b"EXISTS", b"TOUCH"])
def test_each_shard_is_sent_its_keys_in_their_order_duplicates_included(beside: Beside, name: bytes) -> None:
    keys = names(KEYS)
    beside.reads(encode([name, *keys]))
    assert beside.parts() == by_shard(beside, name, keys, 1)


def test_each_key_goes_with_its_value_of_whatever_size(beside: Beside) -> None:
    rng = random.Random(1)
    sizes = [0, 1, 7, 100, *[rng.randrange(300) for _ in range(5000)], 3_000_000, 0, 600_000]
    words = [word for at, size in enumerate(sizes) for word in (b"key:%d" % at, bytes([65 + at % 26]) * size)]
    beside.reads(encode([b"MSET", *words]))
    assert beside.parts() == by_shard(beside, b"MSET", words, 2)


def test_few_keys_with_large_values_are_cut_in_slices_too(beside: Beside) -> None:
    words = [word for at in range(20) for word in (b"key:%d" % at, b"v" * 1_000_000)]
    beside.reads(encode([b"MSET", *words]))
    beside.bare.turns.turn()
    assert beside.sent() == [b""] * 10
    assert beside.turns() > 1
    assert [argv(sent) if sent else [] for sent in beside.sent()] == by_shard(beside, b"MSET", words, 2)


def test_keys_of_one_shard_go_as_they_came(beside: Beside) -> None:
    frame = encode([b"mget", *[b"{tag}%d" % number for number in range(KEYS)]])
    beside.reads(frame)
    beside.bare.turns.settle()
    assert [sent for sent in beside.sent() if sent] == [frame]


def test_a_large_read_that_could_not_be_sent_is_not_sent_again(beside: Beside) -> None:
    """No copy of it is kept for that."""
    for link in beside.bare.links:
        link.wire.pause_writing()
    beside.reads(encode([b"MGET", *[b"{tag}%d" % number for number in range(MANY)]]))
    beside.bare.turns.settle()
    for link in beside.bare.links:
        link.backends[2, 0].requeue_unsent()
        link.wire.resume_writing()
    beside.bare.turns.settle()
    assert beside.end.take().startswith(b"-TRYAGAIN ")
    assert beside.sent() == [b""] * 10
    beside.bare.lane.check()


def test_what_comes_in_the_same_piece_behind_it_is_sent_behind_it(beside: Beside) -> None:
    keys = [b"{tag}%d" % number for number in range(5000)]
    beside.client.data_received(encode([b"MGET", *keys]) + encode([b"GET", b"{tag}last"]))
    beside.bare.turns.settle()
    (sent,) = [sent for sent in beside.sent() if sent]
    assert sent == encode([b"MGET", *keys]) + encode([b"GET", b"{tag}last"])


def test_what_was_asked_before_is_answered_before(beside: Beside) -> None:
    shard = beside.bare.lane.shard_of(b"first")
    keys = names(KEYS)
    beside.reads(encode([b"GET", b"first"]) + encode([b"MGET", *keys]))
    beside.bare.turns.settle()
    assert [bool(sent) for sent in beside.sent()] == [index == shard for index in range(10)]
    beside.bare.links[shard].wire.data_received(b"$-1\r\n")
    assert beside.echo() == b"$-1\r\n" + array(keys)


def test_a_value_that_is_missing_is_said_as_for_a_short_one(beside: Beside) -> None:
    beside.reads(encode([b"MSET", *names(10_001)]))
    beside.bare.turns.settle()
    assert beside.end.take() == b"-ERR wrong number of arguments for 'mset' command\r\n"
    assert beside.sent() == [b""] * 10


# --- what is answered -------------------------------------------------------------------------------------------------


def test_values_come_in_the_order_of_the_keys(beside: Beside) -> None:
    keys = names(KEYS)
    beside.reads(encode([b"MGET", *keys]))
    assert beside.echo() == array(keys)


@pytest.mark.parametrize("sizes", [[0, 3_000_000, 5, 70_000, 99, 100], [400_000] * 30], ids=["unlike", "alike"])
def test_large_values_of_few_keys_come_in_their_order(beside: Beside, sizes: Sequence[int]) -> None:
    keys = [b"key:%d" % number for number in range(len(sizes))]
    value = {key: key[-1:] * size for key, size in zip(keys, sizes, strict=True)}
    beside.reads(encode([b"MGET", *keys]))
    parts = beside.parts()
    steps = beside.bare.lane.slices = Steps()
    beside.answers([array([value[key] for key in part[1:]]) if part else b"" for part in parts])
    assert len(list(steps.done())) >= sum(sizes) / (BATCH * 8192)
    beside.bare.turns.settle()
    assert beside.end.take() == array([value[key] for key in keys])


def test_all_of_many_answers_follow_each_other_in_slices(beside: Beside) -> None:
    values = [[b"%d:%d" % (shard, number) for number in range(20_000)] for shard in range(10)]
    values[3] = values[9] = []
    beside.ask_all(b"KEYS", b"*")
    steps = beside.bare.lane.slices = Steps()
    beside.answers([array(each) for each in values])
    assert len(list(steps.done())) > 1
    beside.bare.turns.settle()
    assert beside.end.take() == array([value for each in values for value in each])


def test_an_answer_of_too_few_elements_is_an_error_and_the_next_one_is_well(beside: Beside) -> None:
    keys = names(KEYS)
    beside.reads(encode([b"MGET", *keys]))
    beside.answers([array(part[2:]) if part else b"" for part in beside.parts()])
    beside.bare.turns.settle()
    assert beside.end.take().startswith(b"-ERR ")
    beside.reads(encode([b"MGET", *keys]))
    assert beside.echo() == array(keys)


def test_an_answer_that_is_no_array_of_elements_is_an_error(beside: Beside) -> None:
    beside.reads(encode([b"MGET", *names(KEYS)]))
    beside.answers([b":%d\r\n" % len(part) if part else b"" for part in beside.parts()])
    beside.bare.turns.settle()
    assert beside.end.take().startswith(b"-ERR ")


# --- nobody waits -----------------------------------------------------------------------------------------------------

WIDE = {
    "MGET": [b"MGET", *names(MANY)],
    "MSET": [b"MSET", *names(MANY)],
    "DEL": [b"DEL", *names(MANY)],
    "large values": [b"MSET", *[word for at in range(60) for word in (b"key:%d" % at, b"v" * 1_000_000)]],
}


@pytest.mark.parametrize("words", WIDE.values(), ids=WIDE.keys())
def test_what_others_ask_leaves_and_is_answered_in_the_turns_between(beside: Beside, words: Sequence[bytes]) -> None:
    client, end = other(beside)
    link = beside.bare.links[beside.bare.lane.shard_of(b"bystander")]
    beside.reads(encode(words))
    answered = 0
    while beside.bare.turns.waits:
        client.data_received(GET)
        beside.bare.turns.turn()
        sent = link.end.take()
        while not sent:  # it may wait a little for others to leave with it
            beside.bare.turns.turn()
            sent = link.end.take()
        if sent != GET:
            break  # the large one's part is among it
        link.wire.data_received(b"$2\r\nhi\r\n")
        beside.bare.turns.turn()
        assert end.take() == b"$2\r\nhi\r\n"
        answered += 1
    assert answered >= 2, "all was done before anybody else had a turn"


@pytest.mark.parametrize("words", WIDE.values(), ids=WIDE.keys())
def test_no_step_has_more_than_its_share(words: Sequence[bytes]) -> None:
    beside, steps = Beside(), Steps()
    beside.bare.lane.slices = steps
    beside.reads(encode(words))
    beside.bare.turns.turn()
    done = list(steps.done())
    assert max(done) <= BATCH
    assert len(done) >= sum(map(len, words)) / (BATCH * 8192)
    assert len(done) >= (len(words) - 1) / 2 / (BATCH * KEYS_OF_PART)
    assert sum(done) > PARTS, "it was so little that one turn would have done"


class Steps:
    """Stands in for what runs the works: does them when it is told to."""

    def __init__(self) -> None:
        self.works: list[Iterator[int]] = []

    def run(self, work: Iterator[int]) -> None:
        self.works.append(work)

    def done(self) -> Iterator[int]:
        for work in self.works:
            yield from work


def test_many_commands_of_many_keys_are_not_begun_in_one_turn(beside: Beside) -> None:
    """Each is small enough to be begun at once, but not all that fit into what is read at once."""
    frame = encode([b"EXISTS", *[b"%d" % (number % 10) for number in range(4000)]])
    beside.client.data_received(frame * (PIECE // len(frame)))
    beside.bare.turns.turn()
    (first, *_) = [sent for sent in beside.sent() if sent]
    assert first.count(b"EXISTS") < PIECE // len(frame)


def test_long_inline_lines_are_not_all_begun_in_one_turn(beside: Beside) -> None:
    line = b'SET k "' + b"\\x41" * 15_000 + b'"\r\n'
    beside.client.data_received(line * 4)
    beside.bare.turns.turn()
    (first,) = [sent for sent in beside.sent() if sent]
    assert first.count(b"SET") < 4
    beside.bare.turns.settle()
    (others,) = [sent for sent in beside.sent() if sent]
    assert first + others == encode([b"SET", b"k", b"A" * 15_000]) * 4


# --- memory, and who leaves -------------------------------------------------------------------------------------------


def test_all_that_it_costs_counts_as_its_clients_and_nothing_is_left_of_it(beside: Beside) -> None:
    keys = names(KEYS)
    frame = encode([b"MGET", *keys])
    beside.reads(frame)
    assert beside.client.buffered >= len(frame)
    beside.echo()
    assert (beside.client.buffered, beside.bare.lane.buffered, beside.bare.lane.inflight) == (0, 0, 0)


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_of_a_client_that_leaves_nothing_is_sent_and_nothing_is_kept(beside: Beside, after: int) -> None:
    beside.reads(encode([b"MSET", *names(MANY)]))
    for _ in range(after):
        beside.bare.turns.turn()
    beside.client.connection_lost(None)
    assert beside.parts() == [[]] * 10
    assert (beside.bare.lane.buffered, beside.bare.lane.inflight) == (0, 0)


def test_one_that_leaves_while_its_answer_is_made_costs_nothing_any_more(beside: Beside) -> None:
    beside.reads(encode([b"MGET", *names(MANY)]))
    beside.answers([array(part[1:]) if part else b"" for part in beside.parts()])
    beside.bare.turns.turn()
    assert beside.client.buffered > 0
    beside.client.connection_lost(None)
    beside.bare.turns.settle()
    assert (beside.bare.lane.buffered, beside.bare.lane.inflight) == (0, 0)
