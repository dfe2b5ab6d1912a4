"""How long a primary must be silent until it counts as down, on a clock that the test moves.

A server that stands still from some moment on, for some time, is checked as the health monitor does it: once a second
with a deadline, and again at once while its shard is in trouble. Both are drawn.
"""

import itertools
import math
from random import Random

import msgspec
import pytest

from pyproxy.control.failover.coordinator import TICK_S, URGENT
from pyproxy.control.failover.transitions import Effect, HealthChecked, Log, Phase, Ticked
from pyproxy.control.health import detector
from pyproxy.control.health.monitor import CHECK_EVERY_S, CHECK_GAP_S
from pyproxy.control.health.node_monitor import DEADLINE_S
from pyproxy.events import Event
from pyproxy.messages import NodeHealth, Work
from tests.pyproxy.control.failover.simulated_shard import P1, P2, P3, SimulatedShard

STEP_S = 0.01
DRAWS = 60


class Stall:
    """P1 stands still from `begins` for `lasts` s, and is looked at on the ticks of a clock that begins at `phase`."""

    def __init__(self, down_after_s: float, phase: float, begins: float, lasts: float) -> None:
        self.shard = SimulatedShard(down_after_s=down_after_s)
        self.began = self.shard.now + begins
        self.ends = self.began + lasts
        self.ticks = itertools.count(self.shard.now + phase, CHECK_EVERY_S)
        self.down_at = math.inf

    def run(self, for_s: float) -> "Stall":
        shard = self.shard
        due, asked_at, began = next(self.ticks), 0.0, -math.inf
        tick_at, until = shard.now, shard.now + for_s
        while shard.now < until:
            shard.now += STEP_S
            if asked_at and (shard.now >= asked_at + DEADLINE_S or not self.stands_still):
                self.looked(asked_at)
                asked_at = 0.0
            hasty = shard.phase in URGENT and shard.now >= began + CHECK_GAP_S
            if not asked_at and (shard.now >= due or hasty):
                asked_at = began = shard.now
                while due <= shard.now:
                    due = next(self.ticks)
            if shard.now >= tick_at:
                tick_at = shard.now + TICK_S
                self.note(shard.step(Ticked()))
        return self

    @property
    def stands_still(self) -> bool:
        return self.began <= self.shard.now < self.ends

    def looked(self, asked_at: float) -> None:
        shard = self.shard
        now, before = shard.now, shard.healths[P1]
        for node in (P2, P3):
            shard.change(node, at=now, answered_at=now)
        if self.stands_still:
            shard.healths[P1] = detector.failed(before, asked_at, now, "no reply within 1 s", silent=True)
        else:
            answered = {"reachable": True, "error": "", "silent": False, "unanswered_since": 0.0}
            shard.healths[P1] = msgspec.structs.replace(before, at=now, answered_at=now, **answered)
        self.note(shard.step(HealthChecked(dict(shard.healths))))

    def note(self, effects: list[Effect]) -> None:
        if any(isinstance(effect, Log) and effect.event is Event.ODOWN for effect in effects):
            self.down_at = min(self.down_at, self.shard.now)


@pytest.mark.parametrize("seed", range(DRAWS))
def test_a_primary_that_was_silent_for_less_than_down_after_is_not_replaced(seed: int) -> None:
    random = Random(seed)
    down_after_s = random.uniform(1.0, 4.0)
    lasts = down_after_s - random.choice([0.0, random.uniform(0.0, down_after_s)]) - 2 * STEP_S
    stall = Stall(down_after_s, random.random(), 3 + random.random(), lasts).run(12)
    assert stall.down_at == math.inf
    assert stall.shard.phase.value == "healthy"


@pytest.mark.parametrize("seed", range(DRAWS))
def test_a_primary_that_stays_silent_is_down_after_down_after_and_at_most_one_look_later(seed: int) -> None:
    random = Random(seed)
    down_after_s = random.uniform(1.0, 4.0)
    stall = Stall(down_after_s, random.random(), 3 + random.random(), math.inf).run(12)
    silent_s = stall.down_at - stall.began
    assert down_after_s <= silent_s <= down_after_s + CHECK_EVERY_S + TICK_S + 4 * STEP_S


# --- at work ----------------------------------------------------------------------------------------------------------


def test_silence_alone_of_a_primary_that_is_at_work_is_no_doubt_before_the_work_is_given_up() -> None:
    shard = SimulatedShard(down_after_s=2.0)
    shard.silence(P1)
    shard.change(P1, busy_until=shard.now + 10)
    shard.check_for(9.5)
    assert (shard.logged, shard.is_closed) == ([], False)
    shard.check_for(2.0)
    assert "+suspect" in shard.logged


def test_a_primary_that_refuses_connections_while_it_is_at_work_is_down_all_the_same() -> None:
    shard = SimulatedShard(down_after_s=2.0)
    shard.change(P1, busy_until=shard.now + 30)
    shard.kill(P1)
    shard.until(Phase.PROMOTING, 3.0)


SILENT = ("no reply within 1 s", True)
KEYS = Work("s1", 10.0, 40.0)


def silent_at(before: NodeHealth, asked_at: float, work: Work | None) -> NodeHealth:
    return detector.failed(before, asked_at, asked_at + 1.0, *SILENT, work)


def test_what_was_sent_before_the_silence_began_excuses_it_until_it_is_given_up() -> None:
    health = silent_at(SimulatedShard().healths[P1], 10.5, KEYS)
    assert (health.at_work, health.busy_until) == (True, 40.0)
    for asked_at in range(12, 39, 2):
        health = silent_at(health, asked_at, KEYS)
        assert health.at_work
    assert not silent_at(health, 39.5, KEYS).at_work


def test_what_was_sent_to_a_server_that_was_silent_already_is_no_excuse() -> None:
    health = silent_at(SimulatedShard().healths[P1], 5.0, None)
    assert not silent_at(health, 7.0, Work("s1", 6.0, 36.0)).at_work


def test_a_silence_has_no_second_excuse() -> None:
    """Or clients that go on asking a server that is gone for its keys would keep it in its place."""
    health = silent_at(SimulatedShard().healths[P1], 10.5, KEYS)
    for asked_at in range(12, 80, 2):
        health = silent_at(health, asked_at, Work("s1", 10.0, asked_at + 30.0))
    assert not health.at_work


def test_silence_after_the_work_is_over_counts_from_then_on() -> None:
    health = silent_at(SimulatedShard().healths[P1], 10.5, KEYS)
    health = silent_at(silent_at(health, 12.0, KEYS), 20.0, None)
    assert (health.at_work, health.unanswered_since) == (False, 20.0)


def names(before: NodeHealth, *healths: NodeHealth) -> list[str]:
    said = []
    for now in healths:
        said += [event.value[0] for event, _ in detector.changes(before, now, "master")]
        before = now
    return said


def test_a_server_that_is_at_work_is_said_to_be_busy_and_not_down() -> None:
    up = msgspec.structs.replace(SimulatedShard().healths[P1], at=9.0, answered_at=9.0)
    busy = silent_at(up, 10.5, KEYS)
    again = silent_at(busy, 12.0, KEYS)
    done = msgspec.structs.replace(up, at=14.0, answered_at=14.0)
    assert names(up, busy, again, done) == ["+busy", "-busy"]
    assert names(up, busy, silent_at(again, 45.0, None), done) == ["+busy", "-busy", "+sdown", "-sdown"]


# --- the count --------------------------------------------------------------------------------------------------------


def test_silence_begins_when_it_was_asked_and_goes_on_until_it_answers() -> None:
    health = SimulatedShard().healths[P1]
    first = detector.failed(health, 10.5, 11.5, "no reply within 1 s", silent=True)
    second = detector.failed(first, 11.6, 12.6, "connection refused")
    assert (first.unanswered_since, second.unanswered_since) == (10.5, 10.5)


def test_a_server_that_answers_with_an_error_is_not_silent() -> None:
    """Or one that ran a script for a minute would count as silent for a minute as soon as it is."""
    silent = detector.failed(SimulatedShard().healths[P1], 10.5, 11.5, "no reply within 1 s", silent=True)
    busy = detector.refused(silent, 11.7, "BUSY Redis is busy running a script.")
    assert busy.unanswered_since == 0.0
    assert detector.failed(busy, 72.0, 73.0, "no reply within 1 s", silent=True).unanswered_since == 72.0


def test_a_time_in_which_nobody_asked_is_no_silence() -> None:
    """The parent was stopped, or its machine was."""
    silent = detector.failed(SimulatedShard().healths[P1], 10.5, 11.5, "no reply within 1 s", silent=True)
    assert detector.failed(silent, 60.0, 61.0, "no reply within 1 s", silent=True).unanswered_since == 60.0


def test_a_primary_that_loaded_for_long_and_falls_silent_is_given_down_after_of_silence() -> None:
    """Loading one large key, a server answers nobody for a while."""
    shard = SimulatedShard(down_after_s=3.0, loading_s=30.0)
    shard.change(P1, reachable=False, error="LOADING Redis is loading", loading=True)
    shard.check_for(10)
    shard.change(P1, error="no reply within 1 s", silent=True, loading=False)
    shard.check_for(2.5)
    assert "+odown" not in shard.logged
    shard.check_for(1.0)
    assert "+odown" in shard.logged
