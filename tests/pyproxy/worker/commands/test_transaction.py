"""What a transaction does itself at EXEC: a slice of it in each turn."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from protocol.table import TABLE
from pyproxy.worker.commands.transaction import SLICE_S, Transaction
from pyproxy.worker.lane.lane import Route


class StandInClient:
    """Stands in for the compiled client."""

    lane: Any = SimpleNamespace(links=[])
    queued_bytes = 0

    def queued(self, size: int) -> None:
        self.queued_bytes += size


def test_what_the_proxy_answers_itself_is_done_once_and_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, done = [0.0], list[int]()

    def answer(name: bytes, client: object, argv: object) -> bytes:
        clock[0] += SLICE_S / 4
        done.append(len(done))
        return b":%d\r\n" % done[-1]

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    nobody: Any = None
    client: Any = StandInClient()
    transaction = Transaction(nobody, answer, nobody)
    for _ in range(10):
        assert transaction.take(client, Route(TABLE[b"ping"]), TABLE[b"ping"], [b"PING"]) == b"+QUEUED\r\n"
    assert not done, "not before EXEC"
    turns = 1
    while not transaction.answer_own():
        turns += 1
        assert len(done) == 4 * (turns - 1)
    assert turns == 3
    assert transaction.commands == [b":%d\r\n" % number for number in range(10)]
    assert transaction.answer_own() and len(done) == 10
