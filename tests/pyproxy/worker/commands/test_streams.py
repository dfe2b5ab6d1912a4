"""How the answers of shards to XREAD become one. The commands themselves: tests/e2e/commands/test_streams.py."""

import pytest

from protocol.reply import NIL_ARRAY, encode
from protocol.scan import ProtocolError
from pyproxy.worker.commands.streams import InOrder

STREAMS = [(b"a", 0), (b"b", 1), (b"c", 0)]


def in_order(frames: dict[int, bytes], proto: int) -> bytes:
    answer = InOrder(frames, proto)
    answer.take(STREAMS[:2])
    answer.take(STREAMS[2:])
    return answer.frame


def frame(proto: int, *names: str) -> bytes:
    """What a shard says that has entries of these streams."""
    entries: list[list[object]] = [["1-1", ["field", "value"]]]
    if not names:
        return NIL_ARRAY[proto]
    if proto == 3:
        return encode(dict.fromkeys(names, entries), 3)  # type: ignore[arg-type]
    return encode([[name, entries] for name in names], 2)  # type: ignore[list-item]


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize(
    ("first", "second", "whole"),
    [("ac", "b", "abc"), ("c", "b", "bc"), ("ac", "", "ac"), ("", "b", "b"), ("", "", "")],
)
def test_streams_come_in_the_order_in_which_they_were_asked_for(
    proto: int, first: str, second: str, whole: str
) -> None:
    assert in_order({0: frame(proto, *first), 1: frame(proto, *second)}, proto) == frame(proto, *whole)


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize("reply", ["b", "ca", "ad"])
def test_a_stream_that_nobody_asked_that_shard_for_is_no_answer(proto: int, reply: str) -> None:
    with pytest.raises(ProtocolError):
        in_order({0: frame(proto, *reply), 1: frame(proto, "b")}, proto)


def test_what_is_no_answer_to_xread_is_none() -> None:
    with pytest.raises(ProtocolError):
        in_order({0: b":1\r\n", 1: b"_\r\n"}, 3)


@pytest.mark.parametrize("proto", [2, 3])
def test_a_shard_without_an_answer_has_nothing(proto: int) -> None:
    assert in_order({1: frame(proto, "b")}, proto) == frame(proto, "b")
