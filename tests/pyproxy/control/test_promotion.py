"""What becomes of a shard whose primary is in trouble."""



from pyproxy.control.happenings import (
    Answer,
    AwaitQuiet,
    HandOver,
    Known,
    Looked,
    NotQuiet,
    PauseAsked,
    Promote,
    PromoteAsked,
    Promoted,
    PromotionRefused,
    Quiet,
    Switch,
    Switched,
    Ticked,
)
from pyproxy.control.promotion import Phase
from pyproxy.shardmap import Node
from tests.pyproxy.control.drawn_shard import (
    ELASTICACHE,
    ELSEWHERE,
    FOLLOWS,
    LOOK_S,
    P1,
    P2,
    P3,
    SENTINEL,
    DrawnShard,
)


def fail_over(shard: DrawnShard, to: Node, within_s: float = 10.0) -> None:
    """The whole of it, with a promoter that does what it is told."""
    shard.until(Phase.PROMOTING, within_s)
    assert shard.of(Promote)[-1] == Promote(to)
    shard.make_master(to)
    shard.tell(Promoted())
    shard.until(Phase.SWITCHING, 2.0)
    shard.tell(Switched())


# --- the primary is killed --------------------------------------------------------------------------------------------


def test_a_killed_primary_is_replaced_by_the_most_complete_replica() -> None:
    shard = DrawnShard()
    shard.change(P3, offset=501)
    shard.kill(P1)
    fail_over(shard, P3)
    assert shard.of(Promote) == [Promote(P3)]
    assert shard.of(Switch) == [Switch(P3, 5)]
    assert shard.said == ["+suspect", "+odown", "+try-failover", "+verifying", "+switch-master", "+failover-end"]
    assert (shard.phase, shard.machine.primary, shard.machine.epoch) == (Phase.HEALTHY, P3, 5)
    assert not shard.shut


# --- the gate ---------------------------------------------------------------------------------------------------------


def test_the_gate_stays_closed_when_another_one_was_primary_for_a_moment_only() -> None:
    shard = DrawnShard(SENTINEL)
    shard.make_master(P2)
    shard.look(LOOK_S)
    shard.announce(P2, 5)
    assert shard.phase is Phase.VERIFYING
    shard.silence(P2)
    shard.until(Phase.WAITING, 6.0)
    assert shard.shut


def test_the_gate_is_closed_when_an_operator_promotes_past_a_silent_primary() -> None:
    shard = DrawnShard()
    shard.silence(P1)
    shard.look(LOOK_S)
    assert shard.phase is Phase.SUSPECT and not shard.shut
    shard.tell(PromoteAsked(P2))
    assert shard.of(Promote) == [Promote(P2)]
    assert shard.shut


# --- somebody else has the last word ----------------------------------------------------------------------------------


def test_a_primary_that_was_superseded_gets_no_writes_before_the_new_one_is_seen() -> None:
    shard = DrawnShard(SENTINEL)
    shard.announce(P2, 5)
    assert shard.shut
    assert shard.phase is Phase.SUSPECT


def test_a_superseded_primary_that_comes_back_is_not_well() -> None:
    shard = DrawnShard(SENTINEL)
    shard.kill(P1)
    shard.until(Phase.WAITING, 5.0)
    shard.silence(P2)
    shard.announce(P2, 5)
    shard.wake(P1)
    shard.watch(3.0)
    assert shard.shut and shard.machine.primary == P1
    shard.wake(P2)
    shard.make_master(P2)
    shard.until(Phase.SWITCHING, 2.0)
    assert shard.of(Switch) == [Switch(P2, 5)]


def test_an_announced_primary_that_is_seen_to_be_a_replica_changes_nothing() -> None:
    shard = DrawnShard(ELASTICACHE)
    shard.announce(P2)
    shard.watch(20.0)
    assert shard.phase is Phase.HEALTHY


def test_nobody_is_promoted_against_the_word_of_whoever_decides() -> None:
    shard = DrawnShard(ELASTICACHE)
    shard.announce(P2)
    shard.silence(P2)
    shard.watch(60.0)
    assert shard.phase is Phase.READONLY
    assert shard.of(Promote) == []


def test_an_announcement_without_epoch_that_is_merely_repeated_does_not_undo_a_promotion() -> None:
    shard = DrawnShard(ELASTICACHE)
    shard.announce(P1)
    shard.kill(P1)
    fail_over(shard, P2, 20.0)
    shard.forget()
    shard.wake(P1)
    for _ in range(20):
        shard.announce(P1)
        shard.watch(1.0)
    assert shard.phase is Phase.HEALTHY and shard.machine.primary == P2
    assert shard.said == []
    shard.announce(P2)
    shard.announce(P1)
    shard.until(Phase.SWITCHING, 2.0)
    assert shard.of(Switch) == [Switch(P1, 6)]


def test_an_announced_primary_that_is_no_server_of_the_shard_is_an_alarm() -> None:
    shard = DrawnShard(SENTINEL)
    shard.announce(ELSEWHERE, 5)
    shard.watch(1.0)
    assert shard.phase is Phase.HEALTHY
    assert str(ELSEWHERE) in shard.machine.alarms["unknown-primary"]


# --- is it really dead? -----------------------------------------------------------------------------------------------


def test_while_its_replicas_hear_of_the_primary_nothing_is_promoted() -> None:
    shard = DrawnShard()
    shard.silence(P1)
    for _ in range(40):
        shard.write()
        shard.look(LOOK_S)
    assert shard.phase is Phase.READONLY
    assert shard.of(Promote) == []
    assert "still hears of it" in shard.machine.alarms["asymmetric"]
    fail_over(shard, P2)
    assert shard.machine.alarms == {}


def test_a_single_write_since_the_primary_fell_silent_is_a_sign_of_life() -> None:
    shard = DrawnShard()
    shard.silence(P1)
    shard.watch(2.0)
    shard.write()
    shard.watch(2.0)
    assert shard.of(Promote) == []
    assert shard.machine.alarms.keys() == {"asymmetric"}


def test_a_primary_with_misconf_is_replaced_although_its_replicas_hear_of_it() -> None:
    shard = DrawnShard()
    shard.change(P1, misconf="-MISCONF Redis is configured to save RDB snapshots")
    shard.until(Phase.WAITING, 6.0)
    assert shard.now >= 2005.0
    shard.write(1)
    shard.look(LOOK_S)
    shard.write(1)
    fail_over(shard, P2)


def test_one_that_has_slept_looks_anew_before_it_judges() -> None:
    shard = DrawnShard()
    shard.silence(P1)
    shard.look(LOOK_S)
    shard.tell(Ticked(), after_s=30.0)
    shard.wake(P1)
    shard.look()
    assert shard.said == ["+suspect", "-suspect"]


def test_one_that_has_slept_while_it_waited_looks_anew_before_it_promotes() -> None:
    shard = DrawnShard()
    shard.kill(P1, P3)
    shard.until(Phase.WAITING, 5.0)
    shard.watch(1.0)
    shard.tell(Ticked(), after_s=30.0)
    assert shard.phase is Phase.WAITING


def test_the_primary_is_asked_once_more_before_another_one_is_promoted() -> None:
    shard = DrawnShard()
    shard.kill(P1)
    shard.until(Phase.WAITING, 5.0)
    stale = shard.looks[P1]
    for _ in range(8):
        shard.now += LOOK_S
        for node in (P2, P3):
            shard.change(node, at=shard.now, answered_at=shard.now)
        assert shard.looks[P1] == stale
        shard.tell(Looked(dict(shard.looks)))
    assert shard.of(Promote) == []


def test_the_silence_of_a_primary_that_answered_misconf_counts_from_its_last_answer() -> None:
    shard = DrawnShard(down_after_s=3.0)
    shard.change(P1, misconf="-MISCONF")
    shard.watch(4.0)
    shard.silence(P1)
    shard.watch(2.5)
    assert shard.phase is Phase.SUSPECT
    shard.watch(1.0)
    assert shard.phase is not Phase.SUSPECT


def test_a_server_that_was_not_looked_at_yet_is_not_in_doubt() -> None:
    shard = DrawnShard(seasoned=False)
    shard.tell(Ticked(), after_s=1.0)
    assert shard.phase is Phase.HEALTHY and shard.said == []


# --- an operator asks -------------------------------------------------------------------------------------------------


def hand_over(shard: DrawnShard, to: Node | None = None) -> None:
    """Until the promoter is asked."""
    shard.tell(PromoteAsked(to))
    assert shard.of(AwaitQuiet) == [AwaitQuiet()]
    shard.tell(Quiet())


def test_a_planned_promotion_holds_drains_and_switches_without_a_look() -> None:
    shard = DrawnShard()
    hand_over(shard, P3)
    gate = shard.machine.gate()
    assert gate is not None and gate.hold
    assert shard.of(HandOver) == [HandOver(P3, named=True)]
    shard.tell(Promoted())
    assert shard.of(Switch) == [Switch(P3, 5)]
    shard.tell(Switched())
    assert (shard.phase, shard.machine.primary, shard.machine.epoch) == (Phase.HEALTHY, P3, 5)
    assert shard.answers == [True]


def test_the_promoter_is_asked_once_however_often_all_is_quiet() -> None:
    shard = DrawnShard()
    hand_over(shard)
    shard.tell(Quiet())
    shard.tell(NotQuiet("too late to say so"))
    assert len(shard.of(HandOver)) == 1
    assert shard.phase is Phase.HANDING_OVER


def test_an_outcome_of_before_is_not_that_of_a_planned_promotion() -> None:
    shard = DrawnShard()
    shard.tell(PromoteAsked(None))
    shard.tell(Promoted())
    shard.tell(PromotionRefused("long ago", True))
    assert shard.phase is Phase.HANDING_OVER and shard.of(Switch) == []


def test_a_planned_promotion_that_does_not_get_quiet_is_given_up() -> None:
    shard = DrawnShard()
    shard.tell(PromoteAsked(P2))
    shard.tell(NotQuiet("worker 1 had writes out"))
    assert (shard.phase, shard.shut, shard.answers) == (Phase.HEALTHY, False, [False])
    assert shard.of(HandOver) == []
    assert shard.said == ["+hand-over", "-hand-over"]


def test_a_planned_promotion_that_the_promoter_refuses_is_given_up() -> None:
    shard = DrawnShard()
    hand_over(shard)
    shard.tell(PromotionRefused("the replica did not catch up", True))
    assert (shard.phase, shard.shut, shard.answers) == (Phase.HEALTHY, False, [False])


def test_a_sentinel_that_chose_another_one_is_followed() -> None:
    shard = DrawnShard(SENTINEL)
    hand_over(shard)
    assert shard.of(HandOver) == [HandOver(P2, named=False)]
    shard.announce(P3, 7)
    shard.tell(Promoted())
    assert shard.of(Switch) == [Switch(P3, 7)]


def test_the_epoch_that_is_announced_in_the_middle_of_a_planned_promotion_is_not_undone() -> None:
    shard = DrawnShard(SENTINEL, known=Known(0, P1, "a"))
    hand_over(shard)
    shard.announce(P1, 5)
    shard.tell(Promoted())
    assert shard.of(Switch) == [Switch(P2, 6)]
    shard.announce(P1, 8)
    shard.tell(Switched())
    assert shard.machine.epoch == 6


def test_an_attempt_that_failed_is_answered_at_once_and_goes_on() -> None:
    shard = DrawnShard()
    shard.kill(P1)
    shard.until(Phase.WAITING, 5.0)
    shard.tell(PromoteAsked(P3))
    shard.tell(PromotionRefused("it would not", True))
    assert shard.answers == [False]
    fail_over(shard, P2)
    assert shard.answers == [False]


def test_what_an_operator_asks_while_another_waits_is_answered_on_its_own() -> None:
    shard = DrawnShard()
    shard.tell(PromoteAsked(P2))
    assert [type(effect) for effect in shard.tell(PauseAsked())] == [Answer]
    assert shard.answers == [False]
    shard.tell(Quiet())
    shard.tell(Promoted())
    shard.tell(Switched())
    assert shard.answers == [False, True]


def test_only_a_primary_without_its_keys_can_be_taken_as_it_is() -> None:
    shard = DrawnShard(nodes=[P1])
    shard.change(P1, misconf="-MISCONF")
    shard.until(Phase.READONLY, 10.0)
    shard.tell(PromoteAsked(P1))
    assert shard.answers == [False]


# --- failing ----------------------------------------------------------------------------------------------------------


def test_a_candidate_that_refuses_is_followed_by_the_next_and_the_last_by_a_pause() -> None:
    shard = DrawnShard()
    shard.change(P3, offset=501)
    shard.kill(P1)
    shard.until(Phase.PROMOTING, 10.0)
    shard.tell(PromotionRefused("no", True))
    shard.until(Phase.PROMOTING, 2.0)
    shard.tell(PromotionRefused("no", True))
    assert shard.phase is Phase.READONLY and shard.shut
    assert shard.of(Promote) == [Promote(P3), Promote(P2)]
    gave_up = shard.now
    shard.until(Phase.PROMOTING, 10.0)
    assert shard.now - gave_up >= 1.0
    assert shard.of(Promote)[2:] == [Promote(P3)]


def test_the_pauses_between_attempts_become_longer() -> None:
    shard = DrawnShard(nodes=[P1, P2])
    shard.kill(P1)
    pauses = []
    for _ in range(4):
        shard.until(Phase.PROMOTING, 20.0)
        refused = shard.now
        shard.tell(PromotionRefused("no", True))
        shard.until(Phase.PROMOTING, 20.0)
        pauses.append(round(shard.now - refused))
        shard.tell(PromotionRefused("no", True))
        shard.until(Phase.READONLY, 1.0)
    assert pauses == sorted(pauses) and pauses[-1] >= 15


def test_nobody_else_is_promoted_before_a_look_has_told_what_became_of_the_last_attempt() -> None:
    shard = DrawnShard()
    shard.kill(P1)
    shard.until(Phase.PROMOTING, 10.0)
    shard.tell(PromotionRefused("no outcome within 10 s", True))
    shard.tell(Ticked())
    assert len(shard.of(Promote)) == 1
    shard.make_master(P2)
    shard.until(Phase.SWITCHING, 2.0)
    assert shard.of(Switch) == [Switch(P2, 5)]
    assert len(shard.of(Promote)) == 1


def test_a_candidate_that_restarts_empty_before_it_was_seen_twice_is_not_the_primary() -> None:
    shard = DrawnShard()
    shard.kill(P1)
    shard.until(Phase.PROMOTING, 10.0)
    shard.make_master(P2)
    shard.tell(Promoted())
    shard.empty(P2)
    shard.until(Phase.WAITING, 6.0)
    fail_over(shard, P3)
    assert shard.machine.primary == P3


# --- others have promoted ---------------------------------------------------------------------------------------------


def test_a_replica_that_was_detached_does_not_take_over_because_the_primary_is_slow_once() -> None:
    shard = DrawnShard()
    shard.make_master(P3)
    shard.look(LOOK_S)
    assert str(P3) in shard.machine.alarms["two-masters"]
    shard.silence(P1)
    shard.look(LOOK_S)
    assert shard.phase is Phase.SUSPECT


def test_a_replica_that_was_detached_in_peace_is_no_heir_while_there_is_a_better_one() -> None:
    shard = DrawnShard()
    shard.make_master(P3)
    shard.watch(1.0)
    shard.kill(P1)
    fail_over(shard, P2)
    assert shard.machine.primary == P2


def test_a_replica_that_was_detached_in_peace_is_the_heir_when_nobody_else_is_left() -> None:
    shard = DrawnShard(FOLLOWS, nodes=[P1, P2])
    shard.make_master(P2)
    shard.watch(1.0)
    shard.kill(P1)
    shard.until(Phase.SWITCHING, 10.0)
    assert shard.of(Switch) == [Switch(P2, 5)]


def test_nobody_reads_from_a_replica_that_was_detached() -> None:
    shard = DrawnShard(nodes=[P1, P2])
    shard.make_master(P2)
    shard.look(LOOK_S)
    assert shard.machine.refuge(P2, shard.now) is None


def test_a_follower_that_lost_its_keys_raises_the_alarm_too() -> None:
    shard = DrawnShard(SENTINEL)
    shard.empty(P1)
    shard.until(Phase.READONLY, 15.0)
    assert "data-loss" in shard.machine.alarms
    shard.tell(PromoteAsked(P1))
    shard.watch(1.0)
    assert (shard.phase, shard.answers) == (Phase.HEALTHY, [True])


def test_what_was_seen_before_a_planned_promotion_says_nothing_of_the_roles_after_it() -> None:
    shard = DrawnShard()
    shard.tell(PromoteAsked(P2))
    shard.tell(Quiet())
    shard.tell(Promoted())
    shard.tell(Switched(), after_s=0.1)
    shard.forget()
    shard.tell(Ticked(), after_s=0.1)
    assert (shard.phase, shard.effects) == (Phase.HEALTHY, [])
    shard.make_master(P2)
    shard.make_replica(P1, P2)
    shard.make_replica(P3, P2)
    shard.watch(2.0)
    assert (shard.phase, shard.effects, shard.machine.alarms) == (Phase.HEALTHY, [], {})
