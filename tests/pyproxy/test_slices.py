"""Work in slices: no turn of the loop has more than its share, all is done, and in order where that is asked for."""

import asyncio
from collections.abc import Iterator

from pyproxy.slices import BATCH, PARTS, QUANTUM, Line, Slices, batches
from tests.waiting import until


class Turns:
    """Counts what is done in each turn of the loop, from now on, until `over`."""

    def __init__(self) -> None:
        self.parts = [0]
        self.over = False
        self._next()

    def _next(self) -> None:
        if not self.over:
            self.parts.append(0)
            asyncio.get_running_loop().call_soon(self._next)


def many(parts: int, turns: Turns, done: list[str], name: str) -> Iterator[int]:
    for some in batches(range(parts)):
        turns.parts[-1] += len(some)
        yield len(some)
    done.append(name)


async def test_no_turn_has_more_than_its_share_however_much_work_there_is() -> None:
    slices, turns, done = Slices(), Turns(), list[str]()
    for number in range(20):
        slices.run(many(10 * PARTS, turns, done, str(number)))
    await until("all to be done", lambda: len(done) == 20, lambda: done)
    turns.over = True
    assert max(turns.parts) <= 2 * PARTS  # what is left of one turn's share may be spent before the next one's
    assert sum(turns.parts) == 200 * PARTS


async def test_a_little_work_is_done_at_once_and_before_much_that_came_earlier() -> None:
    slices, turns, done = Slices(), Turns(), list[str]()
    slices.run(many(1, turns, done, "at once"))
    assert done == ["at once"]
    slices.run(many(100 * PARTS, turns, done, "much"))
    slices.run(many(1, turns, done, "little"))
    await until("all to be done", lambda: len(done) == 3, lambda: done)
    turns.over = True
    assert done == ["at once", "little", "much"]


async def test_a_work_that_fails_ends_no_other() -> None:
    slices, turns, done = Slices(), Turns(), list[str]()

    def failing() -> Iterator[int]:
        yield QUANTUM
        raise ValueError("a bug")

    slices.run(many(2 * PARTS, turns, done, "first"))
    slices.run(failing())
    slices.run(many(2 * PARTS, turns, done, "last"))
    await until("both to be done", lambda: len(done) == 2, lambda: done)
    turns.over = True


async def test_in_a_line_one_is_done_after_the_other_also_behind_one_that_fails() -> None:
    slices, turns, done = Slices(), Turns(), list[str]()
    line = Line(slices)

    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("a bug")

    line.run(many(3 * PARTS, turns, done, "first"))
    line.run(failing())
    line.run(many(1, turns, done, "last"))
    await until("both to be done", lambda: len(done) == 2, lambda: done)
    turns.over = True
    assert done == ["first", "last"]


def test_batches_have_all_parts_in_order() -> None:
    assert [each for some in batches(range(3 * BATCH + 1)) for each in some] == list(range(3 * BATCH + 1))
    assert [len(some) for some in batches(range(BATCH + 1))] == [BATCH, 1]
