import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.hashing import SLOTS, slot
from pyproxy.shard_map import Node, Shard, ShardMap, format_slots, join_slots, parse_slots, split_slots


def shard(name: str, *slots: tuple[int, int]) -> Shard:
    return Shard(name, Node("127.0.0.1", 7000), (), slots)


@pytest.mark.parametrize("text", ["127.0.0.1:6379", "redis-1.example.org:1", "[::1]:6380", "localhost:0"])
def test_a_node_reads_and_writes_as_host_and_port(text: str) -> None:
    assert str(Node.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "redis", ":6379", "redis:", "redis:x", "redis:65536", "::1:6379", "a b:1", "r:1\n", "redis:-1", "r:\u0661"],
)
def test_what_is_no_host_and_port_is_no_node(text: str) -> None:
    with pytest.raises(ValueError, match="expected host:port, got"):
        Node.parse(text)


@pytest.mark.parametrize(("text", "slots"), [("0-1638", (0, 1638)), ("5", (5, 5)), ("16383", (16383, 16383))])
def test_slots_are_a_range_or_a_single_slot(text: str, slots: tuple[int, int]) -> None:
    assert parse_slots(text) == slots
    assert format_slots(slots) == text


@pytest.mark.parametrize("text", ["", "-", "1-", "-1", "5-3", "0-16384", "16384", "1-2-3", " 1", "1 - 2", "\u0663"])
def test_what_is_no_range_of_slots_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected slots such as 0-1638, got"):
        parse_slots(text)


@given(st.integers(1, SLOTS))
def test_a_split_gives_every_slot_once_and_sizes_that_differ_by_one_at_most(shards: int) -> None:
    ranges = split_slots(shards)
    assert [number for first, last in ranges for number in range(first, last + 1)] == list(range(SLOTS))
    sizes = [last - first + 1 for first, last in ranges]
    assert len(sizes) == shards
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


@pytest.mark.parametrize("shards", [0, -1, SLOTS + 1])
def test_no_split_for_no_shard_or_more_shards_than_slots(shards: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 16384 shards"):
        split_slots(shards)


def test_joined_slots_are_the_fewest_ranges() -> None:
    assert join_slots([0, 1, 2, 5, 7, 8]) == [(0, 2), (5, 5), (7, 8)]


def test_owners_name_the_shard_of_every_slot() -> None:
    shards = (shard("a", (0, 9), (20, SLOTS - 1)), shard("b", (10, 19)))
    assert ShardMap(1, shards).owners() == [0] * 10 + [1] * 10 + [0] * (SLOTS - 20)


def test_a_slot_without_a_shard_has_no_owner() -> None:
    assert ShardMap(1, (shard("a", (1, SLOTS - 1)),)).owners()[:2] == [-1, 0]


@given(st.binary())
def test_the_shard_of_a_key_owns_its_slot(key: bytes) -> None:
    shard_map = ShardMap(1, tuple(shard(f"s{i}", slots) for i, slots in enumerate(split_slots(10))))
    found = shard_map.shard_of(key)
    assert found.owns(slot(key))
    assert shard_map.shards[shard_map.owners()[slot(key)]] == found


def test_a_key_of_a_slot_without_a_shard_is_an_error() -> None:
    with pytest.raises(KeyError, match="no shard owns slot"):
        ShardMap(1, ()).shard_of(b"k")
