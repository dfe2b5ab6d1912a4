"""The quota of one kind of lease at one server: who is served, in what order, and that no lease is ever lost."""

import asyncio

import pytest

from pyproxy.worker.shard.pool import LeaseWaiter, NoLease, Quota
from tests.waiting import until

LONG_S = 20.0
LINE = b"-TRYAGAIN it is over\r\n"


class Waiter:
    """A task that waits for a lease. `got`: what came of it."""

    def __init__(self, quota: Quota, wait_s: float = LONG_S) -> None:
        self.waiter = LeaseWaiter(past_gate=False)
        self.got: list[object] = []
        self.began = False
        self.task = asyncio.create_task(self._wait(quota, wait_s))

    async def _wait(self, quota: Quota, wait_s: float) -> None:
        self.began = True
        try:
            self.got.append(await quota.acquire(self.waiter, wait_s))
        except NoLease as exc:
            self.got.append(exc.line)

    async def ended(self) -> list[object]:
        await asyncio.wait([self.task], timeout=LONG_S)
        assert self.task.done(), f"it still waits, and got {self.got}"
        return self.got


async def waiters(quota: Quota, count: int) -> list[Waiter]:
    """So many tasks, which wait in this order."""
    made = [Waiter(quota) for _ in range(count)]
    await until("all to wait", lambda: all(each.began for each in made), lambda: made)
    return made


def free(quota: Quota) -> int:
    """How many leases can be acquired. They are acquired then."""
    return sum(quota.try_acquire() for _ in range(quota.limit + 1))


def full(most: int) -> Quota:
    quota = Quota(most)
    assert free(quota) == most
    return quota


async def test_a_lease_goes_to_the_task_that_waited_longest() -> None:
    quota = full(2)
    first, second, third = await waiters(quota, 3)
    quota.release()
    assert await first.ended() == [True]
    assert (second.got, third.got) == ([], [])
    quota.release()
    assert await second.ended() == [True]
    quota.release()
    assert await third.ended() == [True]
    assert not quota.try_acquire(), "no lease was free in between"
    quota.release()
    quota.release()
    assert free(quota) == 2


async def test_a_task_that_waits_in_vain_takes_no_lease() -> None:
    quota = full(1)
    assert await Waiter(quota, wait_s=0.001).ended() == [False]
    quota.release()
    assert free(quota) == 1


async def test_a_task_that_leaves_makes_room_for_the_next() -> None:
    quota = full(1)
    leaver, stayer = await waiters(quota, 2)
    leaver.task.cancel()
    quota.release()
    assert await stayer.ended() == [True]
    assert await leaver.ended() == []
    quota.release()
    assert free(quota) == 1


@pytest.mark.parametrize("next_one", [True, False])
async def test_a_task_that_leaves_as_its_turn_comes_loses_no_lease(next_one: bool) -> None:
    quota = full(1)
    leaver, *others = await waiters(quota, 1 + next_one)
    quota.release()
    leaver.task.cancel()
    assert await leaver.ended() == []
    assert [await other.ended() for other in others] == [[True]] * len(others)
    assert free(quota) == 1 - next_one


async def test_a_task_that_is_refused_is_told_why_and_takes_no_lease() -> None:
    quota = full(1)
    gone, stayer = await waiters(quota, 2)
    gone.waiter.refuse(LINE)
    quota.release()
    assert await gone.ended() == [LINE]
    assert await stayer.ended() == [True]
    stayer.waiter.refuse(LINE)
    assert stayer.got == [True], "it was its turn before"
