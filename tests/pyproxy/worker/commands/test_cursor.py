import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pyproxy.worker.commands.cursor import GENERATIONS, LIMIT, Position, generation, places, read, write

positions = st.integers(1, 1000).flatmap(
    lambda shards: st.tuples(
        st.just(shards),
        st.builds(
            Position,
            st.integers(0, shards - 1),
            st.integers(0, GENERATIONS - 1),
            st.integers(0, (1 << 40) // places(shards) - 1),
        ),
    )
)


@given(positions)
def test_what_was_written_is_read_again_and_a_number_of_javascript(drawn: tuple[int, Position]) -> None:
    shards, position = drawn
    text = write(position, shards)
    assert text is not None and int(text) < LIMIT
    assert read(text, shards) == position


@given(st.integers(1, 1000), st.integers(0, LIMIT - 1))
def test_every_number_below_the_limit_is_a_position(shards: int, number: int) -> None:
    position = read(b"%d" % number, shards)
    assert position is not None and position.shard < shards
    is_there = number % places(shards) < shards
    assert write(position, shards) == (b"%d" % number if is_there else b"0")


@given(positions, st.integers(0, 1000))
def test_a_cursor_means_the_same_when_shards_are_added_as_long_as_there_are_places(
    drawn: tuple[int, Position], added: int
) -> None:
    shards, position = drawn
    assume(places(shards + added) == places(shards))
    text = write(position, shards)
    assert text is not None and read(text, shards + added) == position


@given(positions)
def test_only_the_beginning_and_the_end_are_0(drawn: tuple[int, Position]) -> None:
    shards, position = drawn
    assert (write(position, shards) == b"0") == (position == Position(0))


@pytest.mark.parametrize("text", [b"", b"x", b"-1", b"+1", b" 1", b"1 ", b"1.0", b"1_0", b"%d" % LIMIT, b"9" * 5000])
def test_what_no_proxy_has_written_is_no_cursor(text: bytes) -> None:
    assert read(text, 10) is None


def test_a_cursor_that_does_not_fit_is_not_cut_off() -> None:
    assert write(Position(9, GENERATIONS - 1, (1 << 40) // 64 - 1), 10) is not None
    assert write(Position(9, GENERATIONS - 1, (1 << 40) // 64 + 1), 10) is None
    assert write(Position(0, 0, (1 << 64) - 1), 1) is None


def test_the_generation_of_a_process_is_the_same_everywhere() -> None:
    """All workers and proxies must agree on it, those of another version too."""
    assert generation(b"3a4e5c1f0b8d7e6f5a4b3c2d1e0f9a8b7c6d5e4f") == 4755
    assert len({generation(b"%d" % number) for number in range(1000)}) > 900
