"""What becomes of a shard whose primary is in trouble."""

from collections.abc import Callable

import pytest

from pyproxy.control.failover.machine import Machine
from pyproxy.control.failover.transitions import (
    Answer,
    HandOver,
    PauseAsked,
    PersistentState,
    Phase,
    Promote,
    PromoteAsked,
    Promoted,
    PromoterCapabilities,
    PromotionRefused,
    Quiesce,
    Quiesced,
    QuiesceFailed,
    Reconfigure,
    ResumeAsked,
    Switch,
    Switched,
    Ticked,
)
from pyproxy.shard_map import Node
from tests.pyproxy.control.failover.simulated_shard import (
    CHECK_S,
    ELSEWHERE,
    FOLLOWS,
    NONE,
    P1,
    P2,
    P3,
    PROMOTES,
    SENTINEL,
    SimulatedShard,
    closed_gate,
    fail_over,
)

# --- the primary is killed --------------------------------------------------------------------------------------------


def test_a_killed_primary_is_replaced_by_the_most_complete_replica() -> None:
    shard = SimulatedShard()
    shard.change(P3, offset=501)
    shard.kill(P1)
    fail_over(shard, P3)
    assert shard.of(Promote) == [Promote(P3)]
    assert shard.of(Switch) == [Switch(P3, 5)]
    assert shard.logged == ["+suspect", "+odown", "+try-failover", "+verifying", "+switch-master", "+failover-end"]
    assert (shard.phase, shard.machine.primary, shard.machine.epoch) == (Phase.HEALTHY, P3, 5)
    assert not shard.is_closed


# --- the gate ---------------------------------------------------------------------------------------------------------


def test_the_gate_stays_closed_when_another_one_was_primary_for_a_moment_only() -> None:
    shard = SimulatedShard(SENTINEL)
    shard.make_master(P2)
    shard.check(CHECK_S)
    shard.announce(P2, 5)
    assert shard.phase is Phase.VERIFYING
    shard.silence(P2)
    shard.until(Phase.WAITING, 6.0)
    assert shard.is_closed


def test_the_gate_is_closed_when_an_operator_promotes_past_a_silent_primary() -> None:
    shard = SimulatedShard()
    shard.silence(P1)
    shard.check(CHECK_S)
    assert shard.phase is Phase.SUSPECT and not shard.is_closed
    shard.step(PromoteAsked(P2))
    assert shard.of(Promote) == [Promote(P2)]
    assert shard.is_closed


# --- an operator asks -------------------------------------------------------------------------------------------------


def hand_over(shard: SimulatedShard, to: Node | None = None) -> None:
    """Until the promoter is asked."""
    shard.step(PromoteAsked(to))
    assert shard.of(Quiesce) == [Quiesce()]
    shard.step(Quiesced())


def test_a_planned_promotion_holds_drains_and_switches_without_a_look() -> None:
    shard = SimulatedShard()
    hand_over(shard, P3)
    gate = shard.machine.gate()
    assert gate is not None and gate.hold
    assert shard.of(HandOver) == [HandOver(P3, named=True)]
    shard.step(Promoted())
    assert shard.of(Switch) == [Switch(P3, 5)]
    shard.step(Switched())
    assert (shard.phase, shard.machine.primary, shard.machine.epoch) == (Phase.HEALTHY, P3, 5)
    assert shard.answers == [True]


def test_the_promoter_is_asked_once_however_often_the_writes_are_quiesced() -> None:
    shard = SimulatedShard()
    hand_over(shard)
    shard.step(Quiesced())
    shard.step(QuiesceFailed("too late to say so"))
    assert len(shard.of(HandOver)) == 1
    assert shard.phase is Phase.HANDING_OVER


def test_an_outcome_of_before_is_not_that_of_a_planned_promotion() -> None:
    shard = SimulatedShard()
    shard.step(PromoteAsked(None))
    shard.step(Promoted())
    shard.step(PromotionRefused("long ago", True))
    assert shard.phase is Phase.HANDING_OVER and shard.of(Switch) == []


def test_a_planned_promotion_whose_writes_are_not_quiesced_is_given_up() -> None:
    shard = SimulatedShard()
    shard.step(PromoteAsked(P2))
    shard.step(QuiesceFailed("worker 1 had writes in flight"))
    assert (shard.phase, shard.is_closed, shard.answers) == (Phase.HEALTHY, False, [False])
    assert shard.of(HandOver) == []
    assert shard.logged == ["+hand-over", "-hand-over"]


def test_a_planned_promotion_that_the_promoter_refuses_is_given_up() -> None:
    shard = SimulatedShard()
    hand_over(shard)
    shard.step(PromotionRefused("the replica did not catch up", True))
    assert (shard.phase, shard.is_closed, shard.answers) == (Phase.HEALTHY, False, [False])


def test_a_sentinel_that_chose_another_one_is_followed() -> None:
    shard = SimulatedShard(SENTINEL)
    hand_over(shard)
    assert shard.of(HandOver) == [HandOver(P2, named=False)]
    shard.announce(P3, 7)
    shard.step(Promoted())
    assert shard.of(Switch) == [Switch(P3, 7)]


def test_the_epoch_that_is_announced_in_the_middle_of_a_planned_promotion_is_not_undone() -> None:
    shard = SimulatedShard(SENTINEL, persistent=PersistentState(0, P1, "a"))
    hand_over(shard)
    shard.announce(P1, 5)
    shard.step(Promoted())
    assert shard.of(Switch) == [Switch(P2, 6)]
    shard.announce(P1, 8)
    shard.step(Switched())
    assert shard.machine.epoch == 6


def test_an_attempt_that_failed_is_answered_at_once_and_goes_on() -> None:
    shard = SimulatedShard()
    shard.kill(P1)
    shard.until(Phase.WAITING, 5.0)
    shard.step(PromoteAsked(P3))
    shard.step(PromotionRefused("it would not", True))
    assert shard.answers == [False]
    fail_over(shard, P2)
    assert shard.answers == [False]


def test_what_an_operator_asks_while_another_waits_is_answered_on_its_own() -> None:
    shard = SimulatedShard()
    shard.step(PromoteAsked(P2))
    assert [type(effect) for effect in shard.step(PauseAsked())] == [Answer]
    assert shard.answers == [False]
    shard.step(Quiesced())
    shard.step(Promoted())
    shard.step(Switched())
    assert shard.answers == [False, True]


def test_only_a_primary_without_its_keys_can_be_taken_as_it_is() -> None:
    shard = SimulatedShard(nodes=[P1])
    shard.change(P1, misconf="-MISCONF")
    shard.until(Phase.READONLY, 10.0)
    shard.step(PromoteAsked(P1))
    assert shard.answers == [False]


# --- failing ----------------------------------------------------------------------------------------------------------


def test_a_candidate_that_refuses_is_followed_by_the_next_and_the_last_by_a_pause() -> None:
    shard = SimulatedShard()
    shard.change(P3, offset=501)
    shard.kill(P1)
    shard.until(Phase.PROMOTING, 10.0)
    shard.step(PromotionRefused("no", True))
    shard.until(Phase.PROMOTING, 2.0)
    shard.step(PromotionRefused("no", True))
    assert shard.phase is Phase.READONLY and shard.is_closed
    assert shard.of(Promote) == [Promote(P3), Promote(P2)]
    gave_up = shard.now
    shard.until(Phase.PROMOTING, 10.0)
    assert shard.now - gave_up >= 1.0
    assert shard.of(Promote)[2:] == [Promote(P3)]


def test_the_pauses_between_attempts_become_longer() -> None:
    shard = SimulatedShard(nodes=[P1, P2])
    shard.kill(P1)
    pauses = []
    for _ in range(4):
        shard.until(Phase.PROMOTING, 20.0)
        refused = shard.now
        shard.step(PromotionRefused("no", True))
        shard.until(Phase.PROMOTING, 20.0)
        pauses.append(round(shard.now - refused))
        shard.step(PromotionRefused("no", True))
        shard.until(Phase.READONLY, 1.0)
    assert pauses == sorted(pauses) and pauses[-1] >= 15


def test_nobody_else_is_promoted_before_a_look_has_told_what_became_of_the_last_attempt() -> None:
    shard = SimulatedShard()
    shard.kill(P1)
    shard.until(Phase.PROMOTING, 10.0)
    shard.step(PromotionRefused("no outcome within 10 s", True))
    shard.step(Ticked())
    assert len(shard.of(Promote)) == 1
    shard.make_master(P2)
    shard.until(Phase.SWITCHING, 2.0)
    assert shard.of(Switch) == [Switch(P2, 5)]
    assert len(shard.of(Promote)) == 1


def test_a_candidate_that_restarts_empty_before_it_was_seen_twice_is_not_the_primary() -> None:
    shard = SimulatedShard()
    shard.kill(P1)
    shard.until(Phase.PROMOTING, 10.0)
    shard.make_master(P2)
    shard.step(Promoted())
    shard.empty(P2)
    shard.until(Phase.WAITING, 6.0)
    fail_over(shard, P3)
    assert shard.machine.primary == P3


# --- when -------------------------------------------------------------------------------------------------------------


def test_silence_alone_closes_no_gate_before_down_after() -> None:
    shard = SimulatedShard()
    shard.silence(P1)
    shard.check_for(2.75)
    assert (shard.phase, shard.is_closed) == (Phase.SUSPECT, False)
    shard.check_for(0.5)
    assert shard.is_closed


def test_a_primary_that_is_slow_once_is_well_at_its_next_answer() -> None:
    shard = SimulatedShard()
    shard.silence(P1)
    shard.check(CHECK_S)
    shard.wake(P1)
    shard.check(CHECK_S)
    assert shard.logged == ["+suspect", "-suspect"]


def test_a_primary_that_refused_must_be_seen_well_twice() -> None:
    shard = SimulatedShard()
    shard.kill(P1)
    shard.check(CHECK_S)
    assert shard.is_closed
    shard.wake(P1)
    shard.check(CHECK_S)
    assert shard.is_closed
    shard.check(0.1)
    assert shard.is_closed
    shard.check(0.15)
    assert not shard.is_closed
    assert shard.logged == ["+suspect", "-suspect"]


def test_nothing_is_promoted_sooner_than_down_after_the_last_answer() -> None:
    shard = SimulatedShard(down_after_s=2.0)
    answered = shard.now
    shard.kill(P1)
    shard.until(Phase.PROMOTING, 5.0)
    assert 2.0 <= shard.now - answered <= 2.0 + 3 * CHECK_S


def test_the_offsets_are_read_twice_before_one_is_chosen() -> None:
    shard = SimulatedShard()
    shard.empty(P1)  # no patience: the first look decides
    shard.check(CHECK_S)
    shard.check(0.1)
    assert shard.of(Promote) == []
    shard.check(0.3)
    shard.check(0.1)
    assert shard.of(Promote) == []
    shard.check(0.1)
    assert shard.of(Promote) == [Promote(P2)]


def test_a_replica_that_fell_silent_with_the_primary_is_waited_for() -> None:
    shard = SimulatedShard()
    shard.change(P3, offset=600)
    shard.check(CHECK_S)
    shard.silence(P1, P3)
    shard.check_for(5.0)
    assert shard.of(Promote) == []
    shard.wake(P3)
    fail_over(shard, P3)


def test_a_replica_that_stays_silent_is_not_waited_for_longer_than_down_after() -> None:
    shard = SimulatedShard()
    shard.kill(P1, P3)
    shard.until(Phase.PROMOTING, 3.0 + 3.0 + 4 * CHECK_S)
    assert shard.of(Promote) == [Promote(P2)]


def test_a_loading_primary_has_more_time() -> None:
    shard = SimulatedShard(loading_s=10.0)
    shard.change(P1, reachable=False, error="LOADING Redis is loading the dataset in memory", loading=True)
    shard.check_for(9.5)
    assert shard.phase is Phase.SUSPECT and shard.is_closed
    shard.until(Phase.PROMOTING, 2.0)


def test_a_primary_that_is_busy_with_a_script_lives() -> None:
    shard = SimulatedShard()
    shard.change(P1, reachable=False, error="BUSY Redis is busy running a script.")
    shard.check_for(60.0)
    assert shard.phase is Phase.HEALTHY and not shard.is_closed


def test_a_primary_that_was_silent_until_it_said_busy_is_doubted_no_longer() -> None:
    shard = SimulatedShard()
    shard.silence(P1)
    shard.until(Phase.SUSPECT, 2.0)
    shard.change(P1, silent=False, error="BUSY Redis is busy running a script.")
    shard.check_for(20.0)
    assert shard.phase is Phase.HEALTHY and shard.of(Promote) == []


def test_misconf_is_no_reason_where_the_configuration_says_so() -> None:
    shard = SimulatedShard(misconf_after_s=0.0)
    shard.change(P1, misconf="-MISCONF")
    shard.check_for(20.0)
    assert shard.effects == []


def test_a_proxy_that_has_just_started_promotes_nothing() -> None:
    shard = SimulatedShard(seasoned=False, down_after_s=3.0)
    shard.check()
    shard.kill(P1)
    shard.check_for(5.75)
    assert shard.phase is Phase.WAITING  # it holds, as it will not be long
    shard.until(Phase.PROMOTING, 1.0)


def test_between_two_promotions_there_is_min_between() -> None:
    shard = SimulatedShard(min_between_s=60.0)
    shard.kill(P1)
    fail_over(shard, P2)
    done = shard.now
    shard.make_replica(P3, P2)
    shard.check_for(5.0)
    shard.kill(P2)
    shard.until(Phase.READONLY, 5.0)
    assert "min_between_s" in shard.machine.why
    shard.until(Phase.PROMOTING, 60.0)
    assert shard.of(Promote) == [Promote(P2), Promote(P3)]
    assert shard.now - done >= 60.0


def test_the_time_of_the_last_promotion_counts_over_a_restart() -> None:
    shard = SimulatedShard(seasoned=False, min_between_s=60.0)
    shard.machine = Machine(
        "s1", shard.options, PersistentState(4, P1, "a"), shard.now, PROMOTES, promoted_at=shard.now - 10.0
    )
    shard.kill(P1)
    shard.until(Phase.PROMOTING, 70.0)
    assert shard.now >= 1050.0


def test_a_shard_that_fails_again_soon_is_not_held_again() -> None:
    shard = SimulatedShard(hold_again_s=60.0)
    shard.kill(P1)
    shard.check(CHECK_S)
    assert closed_gate(shard).hold
    fail_over(shard, P2)
    shard.make_replica(P3, P2)
    shard.check_for(5.0)
    shard.kill(P2)
    shard.check(CHECK_S)
    assert not closed_gate(shard).hold


def test_on_promotion_reject_holds_nothing_but_what_was_planned() -> None:
    shard = SimulatedShard(on_promotion="reject")
    shard.kill(P1)
    shard.check(CHECK_S)
    assert not closed_gate(shard).hold
    shard = SimulatedShard(on_promotion="reject")
    shard.step(PromoteAsked(None))
    assert closed_gate(shard).hold


def test_after_three_promotions_in_ten_minutes_the_next_one_is_for_an_operator() -> None:
    shard = SimulatedShard(min_between_s=1.0)
    for old, new in [(P1, P2), (P2, P1), (P1, P2)]:
        shard.kill(old)
        fail_over(shard, new)
        shard.wake(old)
        for other in {P1, P2, P3} - {new}:
            shard.make_replica(other, new)
        shard.check_for(5.0)
    shard.kill(P2)
    shard.check_for(60.0)
    assert len(shard.of(Promote)) == 3
    assert "3 times" in shard.machine.why
    shard.step(PromoteAsked(P3))
    assert shard.of(Promote)[3:] == [Promote(P3)]


def test_the_next_promotion_is_expected_to_take_what_the_last_ones_took() -> None:
    shard = SimulatedShard()
    assert shard.machine.usual_s == 1.0
    shard.kill(P1)
    shard.until(Phase.PROMOTING, 5.0)
    shard.make_master(P2)
    shard.step(Promoted(), after_s=3.0)
    shard.until(Phase.SWITCHING, 2.0)
    shard.step(Switched())
    assert shard.machine.usual_s == pytest.approx(3.75, abs=0.5)


# --- a primary without its keys ---------------------------------------------------------------------------------------


def test_a_replica_that_kept_the_keys_of_an_empty_primary_is_promoted_at_once() -> None:
    shard = SimulatedShard(nodes=[P1, P2])
    shard.empty(P1)
    shard.check(CHECK_S)
    assert shard.phase is Phase.WAITING and shard.is_closed
    fail_over(shard, P2, 1.5)


def test_where_nobody_kept_the_keys_of_an_empty_primary_an_operator_decides() -> None:
    shard = SimulatedShard()
    shard.empty(P1)
    for node in (P2, P3):
        shard.make_replica(node, P1)
    shard.check_for(60.0)
    assert shard.phase is Phase.READONLY
    assert "50 keys" in shard.machine.alarms["data-loss"]
    assert shard.of(Promote) == []
    shard.step(PromoteAsked(P1))
    shard.until(Phase.HEALTHY, 1.0)
    shard.check(CHECK_S)
    assert shard.machine.alarms == {} and not shard.is_closed


# --- the others -------------------------------------------------------------------------------------------------------


def test_where_nothing_may_be_done_no_gate_is_closed() -> None:
    for trouble in ("kill", "silence", "empty"):
        shard = SimulatedShard(NONE)
        getattr(shard, trouble)(P1)
        for _ in range(100):
            shard.check(CHECK_S)
            assert not shard.is_closed, trouble


def test_a_shard_of_which_nobody_answers_is_down_and_comes_back() -> None:
    shard = SimulatedShard()
    shard.kill(P1, P2, P3)
    shard.until(Phase.DOWN, 5.0)
    assert not closed_gate(shard).hold
    shard.wake(P1)
    shard.until(Phase.HEALTHY, 1.0)
    assert "+shard-down" in shard.logged and shard.logged[-1] == "-suspect"
    shard.kill(P1, P2, P3)
    shard.until(Phase.DOWN, 5.0)
    shard.wake(P2)
    shard.until(Phase.PROMOTING, 5.0)


def test_those_that_do_not_follow_the_new_primary_are_tidied() -> None:
    shard = SimulatedShard()
    shard.kill(P1)
    fail_over(shard, P2)
    shard.wake(P1)
    shard.check_for(1.0)
    assert shard.of(Reconfigure)[0] == Reconfigure((P1, P3))
    shard.make_replica(P3, P2)
    shard.make_replica(P1, P2)
    shard.check(CHECK_S)
    shard.forget()
    shard.check_for(5.0)
    assert shard.effects == []


def test_a_replica_of_a_replica_is_tidied_though_it_has_the_history_of_the_primary() -> None:
    """It was away when its primary was replaced, and follows that one still, which follows the new primary."""
    shard = SimulatedShard()
    shard.kill(P1)
    fail_over(shard, P2)
    shard.wake(P1)
    shard.make_replica(P1, P2)
    shard.make_replica(P3, P2)
    shard.change(P3, master=str(P1))
    shard.check(CHECK_S)
    shard.forget()
    shard.check_for(2.0)
    assert shard.of(Reconfigure)[0] == Reconfigure((P3,))


def test_a_server_that_was_never_primary_here_is_not_taken_back() -> None:
    shard = SimulatedShard(persistent=PersistentState(0, P1))
    shard.make_master(P3)
    shard.check_for(5.0)
    assert shard.of(Reconfigure) == []


def test_the_refuge_is_the_most_complete_replica_and_stays() -> None:
    shard = SimulatedShard()
    shard.change(P3, offset=600)
    shard.check(CHECK_S)
    fallback = shard.machine.fallback(None, shard.now)
    assert fallback == P3
    shard.change(P2, offset=700)
    shard.check(CHECK_S)
    assert shard.machine.fallback(fallback, shard.now) == P3
    shard.change(P3, syncing=True)
    shard.check(CHECK_S)
    assert shard.machine.fallback(fallback, shard.now) == P2


def test_the_refuge_is_the_candidate_once_there_is_one() -> None:
    shard = SimulatedShard()
    shard.kill(P1)
    shard.until(Phase.PROMOTING, 5.0)
    assert shard.machine.fallback(P3, shard.now) == P2


def test_a_pause_holds_the_writes_until_it_ends() -> None:
    shard = SimulatedShard()
    shard.step(PauseAsked())
    assert closed_gate(shard).hold
    shard.check_for(5.0)
    assert shard.phase is Phase.PAUSED
    shard.step(ResumeAsked())
    assert not shard.is_closed
    assert shard.answers == [True, True]


def test_what_happened_during_a_pause_is_seen_at_its_end() -> None:
    shard = SimulatedShard()
    shard.step(PauseAsked())
    shard.kill(P1)
    shard.check_for(10.0)
    assert shard.of(Promote) == []
    shard.step(ResumeAsked())
    assert shard.is_closed
    fail_over(shard, P2, 2.0)


@pytest.mark.parametrize(
    ("capabilities", "to", "why"),
    [
        (PROMOTES, ELSEWHERE, "no server of s1"),
        (PROMOTES, P1, "is the primary"),
        (FOLLOWS, P2, "nobody promotes s1 from here"),
        (NONE, None, "nobody promotes s1 from here"),
    ],
)
def test_what_cannot_be_promoted_is_refused_with_the_reason(
    capabilities: PromoterCapabilities, to: Node | None, why: str
) -> None:
    shard = SimulatedShard(capabilities)
    (answer,) = shard.step(PromoteAsked(to))
    assert isinstance(answer, Answer) and not answer.done and why in answer.text


def test_a_replica_that_cannot_be_primary_is_refused_in_peace() -> None:
    shard = SimulatedShard()
    shard.change(P2, priority=0)
    shard.change(P3, priority=0)
    shard.check()
    shard.step(PromoteAsked(P2))
    shard.step(PromoteAsked(None))
    assert shard.answers == [False, False]
    assert not shard.is_closed


def test_where_it_was_given_up_an_operator_may_name_any_server() -> None:
    shard = SimulatedShard(nodes=[P1, P2])
    shard.change(P2, priority=0)
    shard.kill(P1)
    shard.until(Phase.READONLY, 5.0)
    shard.step(PromoteAsked(P2))
    assert shard.of(Promote) == [Promote(P2)]
    shard.make_master(P2)
    shard.step(Promoted())
    shard.until(Phase.SWITCHING, 1.0)
    shard.step(Switched())
    assert shard.answers == [True]


# --- what time alone may do -------------------------------------------------------------------------------------------


def test_a_shard_that_is_well_waits_for_nothing() -> None:
    assert not SimulatedShard().machine.waits


@pytest.mark.parametrize(
    "happens",
    [
        lambda shard: shard.kill(P1),
        lambda shard: shard.kill(P2),
        lambda shard: shard.make_master(P3),
        lambda shard: shard.make_replica(P3, P2),
        lambda shard: shard.announce(P2, 9),
        lambda shard: shard.announce(ELSEWHERE, 9),
        lambda shard: shard.step(PauseAsked()),
    ],
    ids=["primary", "replica", "two masters", "copies a replica", "announced", "announced stranger", "paused"],
)
def test_a_shard_of_which_anything_is_to_be_expected_is_stepped_at_each_check(
    happens: Callable[[SimulatedShard], object],
) -> None:
    shard = SimulatedShard(SENTINEL)
    happens(shard)
    shard.check(CHECK_S)
    assert shard.machine.waits


def test_a_shard_that_is_well_again_waits_for_nothing_again() -> None:
    shard = SimulatedShard()
    shard.kill(P2)
    shard.check(CHECK_S)
    shard.wake(P2, link="up")
    shard.check(CHECK_S)
    assert not shard.machine.waits
