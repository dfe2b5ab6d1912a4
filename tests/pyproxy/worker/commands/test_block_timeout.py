"""The timeout of a command that waits: read as the server reads it, and what is left of it."""

import time

import pytest

from protocol import errors
from pyproxy.worker.commands.block_timeout import BlockTimeout


def block_timeout(line: str) -> BlockTimeout:
    argv = line.encode().split()
    return BlockTimeout(argv[0], argv)


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        *(("blpop k 2", 2.0), ("brpop k 0.5", 0.5), ("bzpopmin a b .25", 0.25), ("bzpopmax k 1e1", 10.0)),
        *(("blmove a b LEFT RIGHT 3.", 3.0), ("brpoplpush a b +4", 4.0), ("blpop k 0x10", 16.0)),
        *(("brpop k 0x1p-1", 0.5), ("brpop k 0x.8", 0.5)),
        *(("blmpop 6 1 k LEFT", 6.0), ("bzmpop 7 2 a b MIN COUNT 3", 7.0)),
        *(("xread BLOCK 1500 STREAMS k $", 1.5), ("xread COUNT 1 block 20 STREAMS BLOCK $", 0.02)),
        *(("xread BLOCK 1 BLOCK 2000 STREAMS k $", 2.0), ("xreadgroup GROUP g c BLOCK 100 STREAMS k >", 0.1)),
    ],
)
def test_the_time_is_found_in_its_place_and_in_its_unit(line: str, seconds: float) -> None:
    left_s = block_timeout(line).left_s
    assert left_s is not None
    assert seconds - 1 < left_s <= seconds


@pytest.mark.parametrize(
    "line", ["blpop k 0", "blpop k 0.0", "blpop k -0", "blmpop 0 1 k LEFT", "xread BLOCK 0 STREAMS k $"]
)
def test_0_is_for_ever(line: str) -> None:
    assert block_timeout(line).left_s is None
    assert not block_timeout(line).is_over


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        *((f"blpop k {word}", errors.timeout_not_a_float()) for word in ("x", "nan", "1_0", "1e", "0x", "--1", "1,5")),
        *((f"blpop k {word}", errors.timeout_out_of_range()) for word in ("inf", "1e400", "9223372036854775")),
        *((f"blpop k {word}", errors.timeout_out_of_range()) for word in ("0x1p16383", "0x" + "f" * 400, "1e4931")),
        *((f"blpop k {word}", errors.timeout_not_a_float()) for word in ("0x1p99999", "0x1p16384", "-0x1p99999")),
        *((f"blpop k {word}", errors.timeout_not_a_float()) for word in ("1e5000", "1e-5000", "1" * 5120)),
        (f"blpop k 1e{'9' * 4000}", errors.timeout_not_a_float()),
        *((f"blpop k {word}", errors.timeout_negative()) for word in ("-1", "-0.001", "-inf", "-1e400", "-0x1p2000")),
        *((f"xread BLOCK {word} STREAMS k 0", errors.timeout_not_an_integer()) for word in ("1.5", "x", "01", "1e3")),
        ("xread BLOCK -1 STREAMS k 0", errors.timeout_negative()),
        (f"xread BLOCK {2**63 - 1} STREAMS k 0", errors.timeout_out_of_range()),
    ],
)
def test_a_timeout_that_is_none_is_refused_in_the_words_of_redis(line: str, refusal: bytes) -> None:
    assert block_timeout(line).refusal == refusal
    assert block_timeout(line).left_s is None, "it is the server's to refuse it"


@pytest.mark.parametrize("word", ["1e-400", "0x1p-2000", "1e-4940"])
def test_what_is_next_to_nothing_is_over_at_once_and_not_for_ever(word: str) -> None:
    assert block_timeout(f"blpop k {word}").left_s is not None
    assert block_timeout(f"blpop k {word}").is_over


def test_the_first_time_it_goes_as_it_came() -> None:
    assert list(block_timeout("blpop k 1e1").to_send()) == [b"blpop", b"k", b"1e1"]


def test_where_it_was_held_it_goes_with_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    held = block_timeout("blpop k 5")
    monkeypatch.setattr(time, "monotonic", lambda: now + 2)
    assert list(held.to_send()) == [b"blpop", b"k", b"3.000"]


def test_after_that_it_goes_with_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    seconds, millis, ever = map(block_timeout, ("blpop k 5", "xread BLOCK 5000 STREAMS k 0", "blpop k 0"))
    for each in (seconds, millis, ever):
        each.to_send()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3.5)
    assert list(seconds.to_send()) == [b"blpop", b"k", b"1.500"]
    assert list(millis.to_send()) == [b"xread", b"BLOCK", b"1500", b"STREAMS", b"k", b"0"]
    assert list(ever.to_send()) == [b"blpop", b"k", b"0"]


def test_what_is_left_is_never_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    seconds, millis = block_timeout("blpop k 1"), block_timeout("xread BLOCK 1000 STREAMS k 0")
    seconds.to_send(), millis.to_send()
    monkeypatch.setattr(time, "monotonic", lambda: now + 7)
    assert seconds.is_over
    assert list(seconds.to_send()) == [b"blpop", b"k", b"0.001"]
    assert list(millis.to_send()) == [b"xread", b"BLOCK", b"1", b"STREAMS", b"k", b"0"]
