from pyproxy.control.health.key_sample import LEAST, SHOWN_BYTES, described, judged, shown
from pyproxy.hashing import slot
from pyproxy.shard_map import Node, Shard, ShardMap

HERE = Shard("s0", Node("a", 1), (), ((0, 8191),))
THERE = Shard("s1", Node("b", 1), (), ((8192, 16383),))
MAP = ShardMap(1, (HERE, THERE))


def keys(shard: Shard, count: int) -> list[tuple[int, bytes]]:
    return [(0, key) for key in (b"%d" % n for n in range(10_000)) if shard.owns(slot(key))][:count]


def test_mostly_keys_of_others_are_the_endpoint_of_another_shard() -> None:
    assert judged(HERE, keys(THERE, 20)).is_swapped
    assert judged(HERE, keys(THERE, 11) + keys(HERE, 10)).is_swapped


def test_less_than_half_or_very_few_are_astray() -> None:
    for sample in (judged(HERE, keys(THERE, 10) + keys(HERE, 10)), judged(HERE, keys(THERE, LEAST - 1))):
        assert not sample.is_swapped
        assert sample.foreign


def test_one_key_is_one_key_however_often_it_is_drawn() -> None:
    """RANDOMKEY of a server that has one says nothing else."""
    assert not judged(HERE, keys(THERE, 1) * 20).is_swapped


def test_an_operator_is_told_of_one_of_them_and_of_its_owner() -> None:
    (_, astray), (_, another) = keys(THERE, 2)
    sample = judged(HERE, [*keys(HERE, 3), (9, astray), (9, another)])
    assert described(sample, HERE, MAP) == (
        "shard s0 (a:1) holds 2 keys of other shards among 5 that were sampled, "
        f"such as {shown(astray)} of slot {slot(astray)} in database 9, which belongs to shard s1 (b:1)"
    )
    assert described(judged(HERE, keys(HERE, 3)), HERE, MAP) == ""


def test_a_key_is_shown_on_one_line_of_bounded_length() -> None:
    assert shown(b"a\r\nb") == r"'a\r\nb'"
    assert len(shown(b"k" * 10_000)) < SHOWN_BYTES + 10
