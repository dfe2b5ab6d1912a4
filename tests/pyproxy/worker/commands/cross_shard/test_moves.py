"""How a value is put down on another shard. The commands themselves: tests/e2e/commands/test_cross_shard.py."""

import pytest

from pyproxy.worker.commands.conversation import Refusal
from pyproxy.worker.commands.cross_shard.moves import copy_options, restore


@pytest.mark.parametrize(
    ("left_ms", "ttl"), [(-1, b"0"), (0, b"1"), (1, b"1"), (90_000, b"90000")]
)  # PTTL says -1 of a key that stays, and 0 of one with less than a millisecond; RESTORE takes 0 as forever
def test_a_key_that_ends_also_ends_on_the_other_shard(left_ms: int, ttl: bytes) -> None:
    assert restore(b"k", b"payload", left_ms, replace=False) == [b"RESTORE", b"k", ttl, b"payload"]


def test_what_is_there_is_replaced_only_where_that_was_asked_for() -> None:
    assert restore(b"k", b"payload", -1, replace=True)[4:] == [b"REPLACE"]


@pytest.mark.parametrize(
    ("reply", "options"),
    [("", (False, None)), ("replace", (True, None)), ("DB 4", (False, 4)), ("REPLACE db 0 REPLACE", (True, 0))],
)
def test_the_options_of_copy_are_understood(reply: str, options: tuple[bool, int | None]) -> None:
    assert copy_options([b"COPY", b"a", b"b", *reply.encode().split()]) == options


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        ("DB", b"-ERR syntax error\r\n"),
        ("NOW", b"-ERR syntax error\r\n"),
        ("DB x", b"-ERR value is not an integer or out of range\r\n"),
        ("DB 16", b"-ERR DB index is out of range\r\n"),
        ("DB -1", b"-ERR DB index is out of range\r\n"),
        ("DB 2147483648", b"-ERR value is out of range, value must between -2147483648 and 2147483647\r\n"),
    ],
)
def test_wrong_options_of_copy_get_redis_words(reply: str, line: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        copy_options([b"COPY", b"a", b"b", *reply.encode().split()])
    assert refused.value.line == line
