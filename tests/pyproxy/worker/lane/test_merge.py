"""The answers of several shards become one."""

from typing import Any

import pytest

from bench.bare_lane import BareLane
from protocol import errors
from pyproxy.worker.lane.merge import Assembly


def test_the_answers_to_very_many_commands_are_put_together_in_several_turns() -> None:
    count = 1_000_000  # no machine does that within one slice
    frames: list[bytes | None] = [
        b"*%d\r\n" % count + b"".join(b":%d\r\n" % number for number in range(shard, 2 * count, 2))
        for shard in range(2)
    ]
    assembly = Assembly(BareLane(2).lane, [number % 2 for number in range(2 * count)], frames, False)
    slices = 1
    while not assembly.step():
        slices += 1
    assert slices > 1
    assert assembly.reply == b"*%d\r\n" % (2 * count) + b"".join(b":%d\r\n" % number for number in range(2 * count))


@pytest.mark.parametrize(
    ("commands", "frames"),
    [
        ([0, 0], [b"*1\r\n:1\r\n"]),
        ([0], [b"*2\r\n:1\r\n:2\r\n"]),
        ([1], [b"*1\r\n:1\r\n", None]),
        ([0], [b"*1\r\n:1"]),
    ],
)
def test_answers_that_are_more_or_fewer_than_the_commands_are_an_error(
    commands: list[Any], frames: list[bytes | None]
) -> None:
    assembly = Assembly(BareLane(2).lane, commands, frames, False)
    assert assembly.step()
    assert assembly.reply == errors.unexpected_part(b"exec")
