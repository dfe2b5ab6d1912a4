"""Who is believed to be the primary of a shard, and who is believed to be dead."""

import pytest

from pyproxy.control.failover import lineage
from pyproxy.control.failover.transitions import (
    HealthChecked,
    PersistentState,
    Phase,
    Promote,
    PromoteAsked,
    Promoted,
    Quiesced,
    Switch,
    Switched,
    Ticked,
)
from pyproxy.messages import NodeHealth
from tests.pyproxy.control.failover.simulated_shard import (
    CHECK_S,
    ELASTICACHE,
    ELSEWHERE,
    FOLLOWS,
    NONE,
    P1,
    P2,
    P3,
    SENTINEL,
    SimulatedShard,
    closed_gate,
    fail_over,
)

# --- somebody else has the last word ----------------------------------------------------------------------------------


def test_a_primary_that_was_superseded_gets_no_writes_before_the_new_one_is_seen() -> None:
    shard = SimulatedShard(SENTINEL)
    shard.announce(P2, 5)
    assert shard.is_closed
    assert shard.phase is Phase.SUSPECT


def test_a_superseded_primary_that_comes_back_is_not_well() -> None:
    shard = SimulatedShard(SENTINEL)
    shard.kill(P1)
    shard.until(Phase.WAITING, 5.0)
    shard.silence(P2)
    shard.announce(P2, 5)
    shard.wake(P1)
    shard.check_for(3.0)
    assert shard.is_closed and shard.machine.primary == P1
    shard.wake(P2)
    shard.make_master(P2)
    shard.until(Phase.SWITCHING, 2.0)
    assert shard.of(Switch) == [Switch(P2, 5)]


def test_an_announced_primary_that_is_seen_to_be_a_replica_changes_nothing() -> None:
    shard = SimulatedShard(ELASTICACHE)
    shard.announce(P2)
    shard.check_for(20.0)
    assert shard.phase is Phase.HEALTHY


def test_nobody_is_promoted_against_the_word_of_whoever_decides() -> None:
    shard = SimulatedShard(ELASTICACHE)
    shard.announce(P2)
    shard.silence(P2)
    shard.check_for(60.0)
    assert shard.phase is Phase.READONLY
    assert shard.of(Promote) == []


def test_an_announcement_without_epoch_that_is_merely_repeated_does_not_undo_a_promotion() -> None:
    shard = SimulatedShard(ELASTICACHE)
    shard.announce(P1)
    shard.kill(P1)
    fail_over(shard, P2, 20.0)
    shard.forget()
    shard.wake(P1)
    for _ in range(20):
        shard.announce(P1)
        shard.check_for(1.0)
    assert shard.phase is Phase.HEALTHY and shard.machine.primary == P2
    assert shard.logged == []
    shard.announce(P2)
    shard.announce(P1)
    shard.until(Phase.SWITCHING, 2.0)
    assert shard.of(Switch) == [Switch(P1, 6)]


def test_an_announced_primary_that_is_no_server_of_the_shard_is_an_alarm() -> None:
    shard = SimulatedShard(SENTINEL)
    shard.announce(ELSEWHERE, 5)
    shard.check_for(1.0)
    assert shard.phase is Phase.HEALTHY
    assert str(ELSEWHERE) in shard.machine.alarms["unknown-primary"]


# --- is it really dead? -----------------------------------------------------------------------------------------------


def test_while_its_replicas_hear_of_the_primary_nothing_is_promoted() -> None:
    shard = SimulatedShard()
    shard.silence(P1)
    for _ in range(40):
        shard.write()
        shard.check(CHECK_S)
    assert shard.phase is Phase.READONLY
    assert shard.of(Promote) == []
    assert "still hears of it" in shard.machine.alarms["asymmetric"]
    fail_over(shard, P2)
    assert shard.machine.alarms == {}


def test_a_single_write_since_the_primary_fell_silent_is_a_sign_of_life() -> None:
    shard = SimulatedShard()
    shard.silence(P1)
    shard.check_for(2.0)
    shard.write()
    shard.check_for(2.0)
    assert shard.of(Promote) == []
    assert shard.machine.alarms.keys() == {"asymmetric"}


def test_a_primary_with_misconf_is_replaced_although_its_replicas_hear_of_it() -> None:
    shard = SimulatedShard()
    shard.change(P1, misconf="-MISCONF Redis is configured to save RDB snapshots")
    shard.until(Phase.WAITING, 6.0)
    assert shard.now >= 2005.0
    for _ in range(4):
        shard.write(1)
        shard.check(CHECK_S)
    assert shard.of(Promote) == [Promote(P2)]


def test_one_that_has_slept_looks_anew_before_it_judges() -> None:
    shard = SimulatedShard()
    shard.silence(P1)
    shard.check(CHECK_S)
    shard.step(Ticked(), after_s=30.0)
    shard.wake(P1)
    shard.check()
    assert shard.logged == ["+suspect", "-suspect"]


def test_one_that_has_slept_while_it_waited_looks_anew_before_it_promotes() -> None:
    shard = SimulatedShard()
    shard.kill(P1, P3)
    shard.until(Phase.WAITING, 5.0)
    shard.check_for(1.0)
    shard.step(Ticked(), after_s=30.0)
    assert shard.phase is Phase.WAITING


def test_the_primary_is_asked_once_more_before_another_one_is_promoted() -> None:
    shard = SimulatedShard()
    shard.kill(P1)
    shard.until(Phase.WAITING, 5.0)
    stale = shard.healths[P1]
    for _ in range(8):
        shard.now += CHECK_S
        for node in (P2, P3):
            shard.change(node, at=shard.now, answered_at=shard.now)
        assert shard.healths[P1] == stale
        shard.step(HealthChecked(dict(shard.healths)))
    assert shard.of(Promote) == []


def test_the_silence_of_a_primary_that_answered_misconf_counts_from_its_last_answer() -> None:
    shard = SimulatedShard(down_after_s=3.0)
    shard.change(P1, misconf="-MISCONF")
    shard.check_for(4.0)
    shard.silence(P1)
    shard.check_for(2.5)
    assert shard.phase is Phase.SUSPECT
    shard.check_for(1.0)
    assert shard.phase is not Phase.SUSPECT


def test_a_server_that_was_not_looked_at_yet_is_not_in_doubt() -> None:
    shard = SimulatedShard(seasoned=False)
    shard.step(Ticked(), after_s=1.0)
    assert shard.phase is Phase.HEALTHY and shard.logged == []


# --- others have promoted ---------------------------------------------------------------------------------------------


def test_a_replica_that_was_detached_does_not_take_over_because_the_primary_is_slow_once() -> None:
    shard = SimulatedShard()
    shard.make_master(P3)
    shard.check(CHECK_S)
    assert str(P3) in shard.machine.alarms["two-masters"]
    shard.silence(P1)
    shard.check(CHECK_S)
    assert shard.phase is Phase.SUSPECT


def test_a_replica_that_was_detached_in_peace_is_no_heir_while_there_is_a_better_one() -> None:
    shard = SimulatedShard()
    shard.make_master(P3)
    shard.check_for(1.0)
    shard.kill(P1)
    fail_over(shard, P2)
    assert shard.machine.primary == P2


def test_a_replica_that_was_detached_in_peace_is_the_heir_when_nobody_else_is_left() -> None:
    shard = SimulatedShard(FOLLOWS, nodes=[P1, P2])
    shard.make_master(P2)
    shard.check_for(1.0)
    shard.kill(P1)
    shard.until(Phase.SWITCHING, 10.0)
    assert shard.of(Switch) == [Switch(P2, 5)]


def test_nobody_reads_from_a_replica_that_was_detached() -> None:
    shard = SimulatedShard(nodes=[P1, P2])
    shard.make_master(P2)
    shard.check(CHECK_S)
    assert shard.machine.fallback(P2, shard.now) is None


def test_a_follower_that_lost_its_keys_raises_the_alarm_too() -> None:
    shard = SimulatedShard(SENTINEL)
    shard.empty(P1)
    shard.until(Phase.READONLY, 15.0)
    assert "data-loss" in shard.machine.alarms
    shard.step(PromoteAsked(P1))
    shard.check_for(1.0)
    assert (shard.phase, shard.answers) == (Phase.HEALTHY, [True])


def test_what_was_seen_before_a_planned_promotion_says_nothing_of_the_roles_after_it() -> None:
    shard = SimulatedShard()
    shard.step(PromoteAsked(P2))
    shard.step(Quiesced())
    shard.step(Promoted())
    shard.step(Switched(), after_s=0.1)
    shard.forget()
    shard.step(Ticked(), after_s=0.1)
    assert (shard.phase, shard.effects) == (Phase.HEALTHY, [])
    shard.make_master(P2)
    shard.make_replica(P1, P2)
    shard.make_replica(P3, P2)
    shard.check_for(2.0)
    assert (shard.phase, shard.effects, shard.machine.alarms) == (Phase.HEALTHY, [], {})


# --- whom to believe --------------------------------------------------------------------------------------------------


def test_a_primary_that_others_demoted_is_followed_to_the_one_that_it_copies() -> None:
    shard = SimulatedShard(NONE)
    shard.make_master(P3)
    shard.make_replica(P1, P3)
    shard.check(CHECK_S)
    assert shard.phase is Phase.VERIFYING and shard.is_closed
    shard.check(CHECK_S)
    assert shard.of(Switch) == [Switch(P3, 5)]


def test_a_server_is_verified_on_two_looks_far_enough_apart() -> None:
    shard = SimulatedShard(FOLLOWS)
    shard.make_master(P3)
    shard.make_replica(P1, P3)
    shard.check(CHECK_S)
    shard.check(0.1)
    assert shard.of(Switch) == []
    shard.check(0.1)
    assert shard.of(Switch) == [Switch(P3, 5)]


def test_a_primary_whose_replicas_have_gone_to_its_heir_is_the_past() -> None:
    shard = SimulatedShard(FOLLOWS)
    shard.make_master(P2)
    shard.make_replica(P3, P2)
    shard.until(Phase.SWITCHING, 1.0)
    assert shard.of(Switch) == [Switch(P2, 5)]


def test_a_master_of_another_history_is_not_believed() -> None:
    shard = SimulatedShard(FOLLOWS)
    shard.kill(P1)
    shard.check(CHECK_S)
    shard.empty(P3)
    shard.change(P3, lost_keys=0)
    shard.check_for(30.0)
    assert shard.phase is Phase.READONLY and shard.of(Switch) == []


def test_who_follows_waits_then_says_so_and_still_follows() -> None:
    shard = SimulatedShard(FOLLOWS, deadline_s=10.0)
    shard.kill(P1)
    shard.until(Phase.WAITING, 5.0)
    waits = shard.now
    shard.until(Phase.READONLY, 11.0)
    assert shard.now - waits >= 10.0
    assert not closed_gate(shard).hold
    shard.make_master(P2)
    shard.make_replica(P3, P2)
    shard.until(Phase.SWITCHING, 1.0)
    assert shard.of(Promote) == []


def test_with_an_authority_only_what_it_announced_is_believed() -> None:
    shard = SimulatedShard(SENTINEL)
    shard.kill(P1)
    shard.make_master(P2)
    shard.make_replica(P3, P2)
    shard.check_for(20.0)
    assert shard.of(Switch) == []
    shard.announce(P2, 9)
    shard.until(Phase.SWITCHING, 1.0)
    assert shard.of(Switch) == [Switch(P2, 9)]


def test_an_announcement_of_an_epoch_that_is_over_is_ignored() -> None:
    shard = SimulatedShard(SENTINEL)
    shard.make_master(P2)
    shard.announce(P2, 4)
    shard.check_for(5.0)
    shard.announce(P2, 3)
    shard.check_for(5.0)
    assert shard.machine.primary == P1 and shard.logged == []


def test_an_announcement_that_was_overtaken_is_ignored() -> None:
    shard = SimulatedShard(SENTINEL)
    shard.make_master(P2)
    shard.make_master(P3)
    shard.announce(P3, 6)
    shard.announce(P2, 5)
    shard.until(Phase.SWITCHING, 1.0)
    assert shard.of(Switch) == [Switch(P3, 6)]


def test_a_newer_announcement_wins_over_the_one_that_is_verified() -> None:
    shard = SimulatedShard(SENTINEL)
    shard.make_master(P2)
    shard.check()
    shard.announce(P2, 5)
    shard.make_master(P3)
    shard.check(0.1)
    shard.announce(P3, 6)
    shard.until(Phase.SWITCHING, 2.0)
    assert shard.of(Switch) == [Switch(P3, 6)]


def test_an_old_primary_that_comes_back_as_master_is_not_believed() -> None:
    shard = SimulatedShard(SENTINEL)
    shard.kill(P1)
    shard.make_master(P2)
    shard.announce(P2, 5)
    shard.until(Phase.SWITCHING, 5.0)
    shard.step(Switched())
    shard.wake(P1)
    shard.check_for(5.0)
    assert shard.machine.primary == P2 and shard.phase is Phase.HEALTHY
    assert str(P1) in shard.machine.alarms["two-masters"]


def test_an_authority_tells_its_epoch_to_one_that_has_none() -> None:
    shard = SimulatedShard(SENTINEL, persistent=PersistentState(0, P1))
    shard.announce(P1, 17)
    assert shard.machine.epoch == 17 and shard.effects == []


# --- restarted in the middle ------------------------------------------------------------------------------------------


def test_a_promotion_that_was_cut_short_by_the_end_of_the_proxy_is_finished() -> None:
    shard = SimulatedShard(seasoned=False)  # P1, epoch 4, history a: what the state file says
    shard.kill(P1)
    shard.make_master(P2)
    shard.until(Phase.SWITCHING, 5.0)
    assert shard.of(Promote) == []
    assert shard.of(Switch) == [Switch(P2, 5)]


def test_a_promotion_that_was_cut_short_is_not_undone_by_the_old_primary_coming_back() -> None:
    shard = SimulatedShard(FOLLOWS, seasoned=False)
    shard.make_master(P2)
    shard.make_replica(P3, P2)
    shard.until(Phase.SWITCHING, 2.0)
    assert shard.of(Switch) == [Switch(P2, 5)]


def test_without_a_state_file_the_history_is_that_of_the_replicas() -> None:
    shard = SimulatedShard(seasoned=False, persistent=PersistentState(0, P1))
    shard.healths[P1] = NodeHealth(str(P1))
    shard.kill(P1)
    fail_over(shard, P2)
    assert shard.machine.persistent_state.epoch == 1


def test_what_is_known_is_what_a_successor_begins_with() -> None:
    shard = SimulatedShard()
    shard.kill(P1)
    fail_over(shard, P2)
    shard.make_replica(P3, P2)
    shard.check_for(2.0)
    assert shard.machine.persistent_state == PersistentState(5, P2, shard.healths[P2].replid)


# --- who follows whom -------------------------------------------------------------------------------------------------


def test_a_follower_is_told_by_its_history_whatever_it_calls_the_primary() -> None:
    shard = SimulatedShard()
    shard.change(P3, master="redis-1.internal:6379")
    assert lineage.followers(shard.healths, P1) == [P2, P3]


def test_who_is_out_of_touch_follows_nobody() -> None:
    shard = SimulatedShard()
    shard.change(P2, link="down")
    shard.silence(P3)
    assert lineage.followers(shard.healths, P1) == []


def test_those_of_unknown_history_follow_nobody() -> None:
    shard = SimulatedShard()
    for node in (P1, P2, P3):
        shard.change(node, replid="")
    assert lineage.followers(shard.healths, P1) == []
    assert lineage.guessed(shard.healths) == ""


def test_one_that_is_being_sent_the_data_of_the_primary_is_no_stray() -> None:
    shard = SimulatedShard()
    shard.change(P2, replid="b", syncing=True)
    shard.change(P3, replid="b", master=str(ELSEWHERE))
    assert lineage.not_following(shard.healths, P1) == (P3,)


def test_the_history_of_most_replicas_is_guessed() -> None:
    shard = SimulatedShard(nodes=[P1, P2, P3, ELSEWHERE])
    shard.change(P2, replid="b")
    assert lineage.guessed(shard.healths) == "a"


def test_while_one_replica_follows_the_primary_they_have_not_gone_over() -> None:
    shard = SimulatedShard(nodes=[P1, P2, P3, ELSEWHERE])
    shard.make_master(P2)
    shard.make_replica(P3, P2)
    assert not lineage.have_gone_over(shard.healths, P1, P2)
    shard.change(ELSEWHERE, link="down")
    assert lineage.have_gone_over(shard.healths, P1, P2)


@pytest.mark.parametrize(
    ("field", "value"), [("reachable", False), ("role", "slave"), ("loading", True), ("lost_keys", 5)]
)
def test_one_that_cannot_be_used_is_not_the_primary(field: str, value: object) -> None:
    shard = SimulatedShard()
    assert lineage.is_primary(shard.healths[P1], "")
    shard.change(P1, **{field: value})
    assert not lineage.is_primary(shard.healths[P1], "")


def test_one_without_its_keys_is_the_primary_where_an_operator_took_it_as_it_is() -> None:
    shard = SimulatedShard()
    shard.change(P1, lost_keys=5)
    assert lineage.is_primary(shard.healths[P1], "r1")
    assert not lineage.is_primary(shard.healths[P1], "r2")


def test_signs_of_life_are_complete_when_each_replica_was_looked_at_anew() -> None:
    shard = SimulatedShard(nodes=[P1, P2])
    life = lineage.ReplicationProgress()
    life.note(shard.healths, P1)
    shard.check(1.0)
    asked = shard.now + 1.0
    assert life.are_complete(shard.healths, P1, shard.now - 1.0)
    shard.change(P1, at=asked)
    assert not life.are_complete(shard.healths, P1, asked)
    shard.change(P2, answered_at=asked)
    assert life.are_complete(shard.healths, P1, asked)
