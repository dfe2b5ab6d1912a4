"""What `pyproxy move` takes and shows."""

import argparse
from typing import Any

import pytest

from pyproxy.move_commands import rate, shown

MOVE: dict[str, Any] = {
    "id": "m1", "source": "s0", "destination": "s10", "slots": 1638, "phase": "copying", "why": "", "paused": False,
    "keys": 1000, "keys_done": 250, "dirty": 7, "error": "", "copied_keys": 250, "copied_bytes": 12345, "restarts": 0,
    "attempts": 2, "longest_hold_ms": 21.5, "alarm": "", "times": {"copying": 100.0},
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "bytes_per_s"), [("20MB/s", 20_000_000), ("5KB", 5000), ("1GB/s", 10**9), ("7", 7), ("0", 0)]
)
def test_a_rate_is_in_bytes_a_second(text: str, bytes_per_s: int) -> None:
    assert rate(text) == bytes_per_s


@pytest.mark.parametrize("text", ["", "fast", "-1", "1.5MB/s", "20 MB/s", "20mb/s", "20MB/h"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected a rate such as 20MB/s"):
        rate(text)


def test_a_move_is_one_line_with_a_bar_and_what_is_left() -> None:
    assert shown(MOVE, 110.0) == (
        "  m1  s0 -> s10  [#####---------------]  copying  1638 slots, 250 keys and 12345 bytes copied"
        "  250 of 1000, 30 s left  7 changed since  longest hold 21.5 ms in 2 attempts"
    )


@pytest.mark.parametrize(("phase", "filled"), [("queued", 0), ("checking", 0), ("following", 20), ("done", 20)])
def test_the_bar_is_empty_before_the_copy_and_full_after_it(phase: str, filled: int) -> None:
    assert f"[{'#' * filled}{'-' * (20 - filled)}]" in shown({**MOVE, "phase": phase}, 110.0)


def test_what_an_operator_must_know_is_in_the_line() -> None:
    line = shown({**MOVE, "phase": "failed", "why": "no room", "error": "OOM", "alarm": "strays"}, 110.0)
    assert line.endswith("OOM  strays  no room")
