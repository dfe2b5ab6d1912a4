import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.hashing import SLOTS, hash_tag, in_slots, slot


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        (b"user:1", b"user:1"),
        (b"{user1000}.following", b"user1000"),
        (b"foo{}{bar}", b"foo{}{bar}"),
        (b"foo{{bar}}zap", b"{bar"),
        (b"foo{bar}{zap}", b"bar"),
        (b"foo{bar", b"foo{bar"),
        (b"foo}bar{", b"foo}bar{"),
        (b"}{a}", b"a"),
        (b"{}", b"{}"),
        (b"", b""),
    ],
)
def test_hash_tag_is_what_the_cluster_specification_says(key: bytes, tag: bytes) -> None:
    assert hash_tag(key) == tag


@pytest.mark.parametrize(
    ("key", "murmur3"),
    [  # x86 32 bit, seed 0: the reference implementation's
        (b"", 0),
        (b"hello", 0x248BFA47),
        (b"hello, world", 0x149BBB7F),
        (b"The quick brown fox jumps over the lazy dog", 0x2E4FF723),
    ],
)
def test_slot_is_murmur3_with_seed_0_modulo_16384(key: bytes, murmur3: int) -> None:
    assert slot(key) == murmur3 % SLOTS


@given(tag=st.binary(min_size=1).filter(lambda tag: b"}" not in tag), before=st.binary(), after=st.binary())
def test_keys_of_one_tag_share_a_slot(tag: bytes, before: bytes, after: bytes) -> None:
    key = before.replace(b"{", b"") + b"{" + tag + b"}" + after
    assert slot(key) == slot(b"{" + tag + b"}")


@given(
    st.lists(st.binary(max_size=12) | st.sampled_from([b"{a}x", b"{a}y", b"{}", b"a"])),
    st.binary(min_size=1, max_size=9),
)
def test_those_of_many_keys_are_in_slots_that_are_so_one_by_one(keys: list[bytes], pattern: bytes) -> None:
    wanted = (pattern * SLOTS)[:SLOTS]
    assert in_slots(keys, wanted) == [key for key in keys if wanted[slot(key)]]
