"""The checks for those who wait for keys of several shards; what they find is tested in tests/e2e/commands."""

from collections.abc import Iterator
from typing import Any

from pyproxy.worker.commands.cross_shard.ready_keys import ShardWaiters, Waiter


class Slices:
    """Keeps the work that it is given, for the test to do."""

    def __init__(self) -> None:
        self.work: list[Iterator[int]] = []

    def run(self, work: Iterator[int]) -> None:
        self.work.append(work)


class Conversation:
    """One that cannot ask anything: whoever does so finds no client."""

    def __init__(self) -> None:
        self.lane = type("Lane", (), {"slices": Slices()})
        self.is_over = False


def waiting() -> tuple[ShardWaiters, Any]:
    """A client that waits for one list, for which the shard is about to be asked."""
    conversation: Any = Conversation()
    waiter = Waiter(conversation)
    waiter.keys, waiter.size = {0: {b"k": None}}, b"LLEN"
    waiters = ShardWaiters(0, lambda: None, lambda: None)
    waiters.join(waiter)
    waiters.ask()
    return waiters, conversation


def test_nothing_is_asked_for_a_client_that_went_before_its_checks_are_sent() -> None:
    waiters, conversation = waiting()
    (work,) = conversation.lane.slices.work
    conversation.is_over = True
    for _ in work:
        pass
    assert waiters.in_flight == 0


def test_nothing_more_is_asked_for_a_client_that_went_before_an_answer() -> None:
    waiters, conversation = waiting()
    conversation.is_over = True
    waiters._is_there([(b"LLEN", b"k")], b":1\r\n")
    assert waiters.in_flight == 0
