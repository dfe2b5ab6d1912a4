"""The places of one use at one server: who gets one, in what order, and that none is ever lost."""

import asyncio

import pytest

from pyproxy.worker.shard.pool import NoLease, Share, Turn
from tests.waiting import until

LONG_S = 20.0
LINE = b"-TRYAGAIN it is over\r\n"


class Waiter:
    """Somebody who waits for a place of a share; `got`: what came of it."""

    def __init__(self, share: Share, wait_s: float = LONG_S) -> None:
        self.turn = Turn(gated=False)
        self.got: list[object] = []
        self.began = False
        self.task = asyncio.create_task(self._wait(share, wait_s))

    async def _wait(self, share: Share, wait_s: float) -> None:
        self.began = True
        try:
            self.got.append(await share.wait(self.turn, wait_s))
        except NoLease as exc:
            self.got.append(exc.line)

    async def ended(self) -> list[object]:
        await asyncio.wait([self.task], timeout=LONG_S)
        assert self.task.done(), f"it still waits, and got {self.got}"
        return self.got


async def waiters(share: Share, count: int) -> list[Waiter]:
    """So many, who wait in this order."""
    made = [Waiter(share) for _ in range(count)]
    await until("all to wait", lambda: all(each.began for each in made), lambda: made)
    return made


def free(share: Share) -> int:
    """How many places can be taken; they are taken then."""
    return sum(share.take() for _ in range(share.most + 1))


def full(most: int) -> Share:
    share = Share(most)
    assert free(share) == most
    return share


async def test_a_place_goes_to_the_one_who_waited_longest() -> None:
    share = full(2)
    first, second, third = await waiters(share, 3)
    share.give()
    assert await first.ended() == [True]
    assert (second.got, third.got) == ([], [])
    share.give()
    assert await second.ended() == [True]
    share.give()
    assert await third.ended() == [True]
    assert not share.take(), "no place was free in between"
    share.give()
    share.give()
    assert free(share) == 2


async def test_who_waits_in_vain_takes_no_place() -> None:
    share = full(1)
    assert await Waiter(share, wait_s=0.001).ended() == [False]
    share.give()
    assert free(share) == 1


async def test_who_leaves_makes_room_for_the_next() -> None:
    share = full(1)
    leaver, stayer = await waiters(share, 2)
    leaver.task.cancel()
    share.give()
    assert await stayer.ended() == [True]
    assert await leaver.ended() == []
    share.give()
    assert free(share) == 1


@pytest.mark.parametrize("next_one", [True, False])
async def test_who_leaves_as_the_turn_comes_loses_no_place(next_one: bool) -> None:
    share = full(1)
    leaver, *others = await waiters(share, 1 + next_one)
    share.give()
    leaver.task.cancel()
    assert await leaver.ended() == []
    assert [await other.ended() for other in others] == [[True]] * len(others)
    assert free(share) == 1 - next_one


async def test_who_is_called_off_is_told_why_and_takes_no_place() -> None:
    share = full(1)
    gone, stayer = await waiters(share, 2)
    gone.turn.call_off(LINE)
    share.give()
    assert await gone.ended() == [LINE]
    assert await stayer.ended() == [True]
    stayer.turn.call_off(LINE)
    assert stayer.got == [True], "it was its turn before"
