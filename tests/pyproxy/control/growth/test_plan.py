"""What a plan promises: about the same in every shard, and nothing moved that need not be."""

import itertools
import random

import pytest

from pyproxy.control.growth.plan import EVEN, CannotPlan, Plan, Sample, planned, weights
from pyproxy.hashing import SLOTS
from pyproxy.shard_map import Node, Shard, join_slots, split_slots

UNIFORM = [1000.0] * SLOTS


def shard(number: int, *slots: tuple[int, int]) -> Shard:
    return Shard(f"s{number}", Node("10.0.0.1", 7000 + number), (), slots)


def fleet(count: int) -> list[Shard]:
    return [shard(number, slots) for number, slots in enumerate(split_slots(count))]


def new(*numbers: int) -> list[Shard]:
    return [shard(number) for number in numbers]


def owners(shards: list[Shard], plan: Plan) -> list[str]:
    """After the moves; each is checked to come from the owner of before."""
    found = [""] * SLOTS
    for each in shards:
        for first, last in each.slots:
            found[first : last + 1] = [each.name] * (last + 1 - first)
    before = list(found)
    moved: set[int] = set()
    for move in plan.moves:
        for first, last in move.slots:
            for number in range(first, last + 1):
                assert before[number] == move.source and number not in moved
                moved.add(number)
                found[number] = move.destination
    assert "" not in found
    return found


def loads(found: list[str], slot_bytes: list[float], names: list[str]) -> dict[str, float]:
    held = dict.fromkeys(names, 0.0)
    for number, name in enumerate(found):
        held[name] += slot_bytes[number]
    return held


# --- growing ----------------------------------------------------------------------------------------------------------


def test_one_redis_with_all_slots_spreads_over_ten_new_shards() -> None:
    shards = [shard(0, (0, SLOTS - 1))]
    plan = planned(shards, UNIFORM, new(*range(1, 11)), ["s0"])
    assert len(plan.moves) == 10
    assert all(len(move.slots) == 1 for move in plan.moves)
    assert set(owners(shards, plan)) == {f"s{number}" for number in range(1, 11)}
    assert plan.after["s0"] == 0
    assert max(plan.after.values()) <= 1.001 * sum(plan.before.values()) / 10


def test_ten_shards_give_the_eleventh_a_part_of_each() -> None:
    shards = fleet(10)
    plan = planned(shards, UNIFORM, new(10))
    assert [(move.source, move.destination) for move in plan.moves] == [(f"s{n}", "s10") for n in range(10)]
    assert all(len(move.slots) == 1 for move in plan.moves)
    assert plan.bytes == pytest.approx(sum(UNIFORM) / 11, rel=0.01)


def test_ten_shards_give_half_of_what_they_have_to_ten_others() -> None:
    shards = fleet(10)
    plan = planned(shards, UNIFORM, new(*range(10, 20)))
    assert plan.bytes == pytest.approx(sum(UNIFORM) / 2, rel=0.01)
    assert len(plan.moves) <= 19


def test_a_hundred_shards_that_each_have_one_percent_too_much_still_fill_the_next_one() -> None:
    shards = fleet(100)
    plan = planned(shards, UNIFORM, new(100))
    part = sum(UNIFORM) / 101
    assert plan.after["s100"] == pytest.approx(part, rel=0.05)


# --- taking a shard away ----------------------------------------------------------------------------------------------


def test_a_shard_that_is_taken_away_keeps_nothing_and_the_others_get_the_same() -> None:
    shards = fleet(10)
    plan = planned(shards, UNIFORM, removed=["s3"])
    assert {move.source for move in plan.moves} == {"s3"}
    assert "s3" not in owners(shards, plan)
    assert plan.after["s3"] == 0
    assert max(plan.after.values()) <= 1.01 * sum(UNIFORM) / 9


def test_a_shard_can_take_the_place_of_another() -> None:
    shards = fleet(3)
    plan = planned(shards, UNIFORM, new(3), ["s1"])
    (move,) = plan.moves
    assert (move.source, move.destination, move.slots) == ("s1", "s3", shards[1].slots)


# --- nothing needless -------------------------------------------------------------------------------------------------


def test_what_is_even_stays_as_it_is() -> None:
    assert planned(fleet(10), UNIFORM).moves == ()


def test_a_shard_that_is_nearly_even_takes_no_part() -> None:
    slot_bytes = list(UNIFORM)
    for first, last in fleet(10)[0].slots:
        slot_bytes[first : last + 1] = [2000.0] * (last + 1 - first)
    plan = planned(fleet(10), slot_bytes)
    assert {move.source for move in plan.moves} == {"s0"}


def test_an_empty_fleet_is_shared_out_by_slots() -> None:
    shards = fleet(2)
    empty = weights(shards, {"s0": Sample(0, 0), "s1": Sample(0, 0)})
    found = owners(shards, planned(shards, empty, new(2, 3)))
    assert [found.count(f"s{number}") for number in range(4)] == [4096] * 4


# --- slots that are large ---------------------------------------------------------------------------------------------


def test_a_slot_that_holds_more_than_a_part_stays_and_all_else_goes() -> None:
    slot_bytes = list(UNIFORM)
    slot_bytes[5000] = 0.3 * sum(UNIFORM) / 0.7
    shards = [shard(0, (0, SLOTS - 1))]
    plan = planned(shards, slot_bytes, new(*range(1, 10)))
    found = owners(shards, plan)
    assert found[5000] == "s0"
    held = loads(found, slot_bytes, [f"s{number}" for number in range(10)])
    others = [size for name, size in held.items() if name != "s0"]
    assert held["s0"] <= 1.01 * slot_bytes[5000]
    assert max(others) <= 1.01 * sum(UNIFORM) / 9


def test_a_slot_that_is_too_large_leaves_a_shard_that_is_taken_away() -> None:
    slot_bytes = list(UNIFORM)
    slot_bytes[0] = float(sum(UNIFORM))
    shards = fleet(4)
    plan = planned(shards, slot_bytes, removed=["s0"])
    found = owners(shards, plan)
    assert "s0" not in found
    held = loads(found, slot_bytes, ["s1", "s2", "s3"])
    assert max(held.values()) <= 1.01 * max(slot_bytes[0], sum(held.values()) / 3)


def test_large_slots_at_the_end_of_a_shard_keep_it_from_nothing() -> None:
    slot_bytes = list(UNIFORM)
    for number in (4095, 4094, 4093):
        slot_bytes[number] = 600_000.0
    shards = fleet(4)
    plan = planned(shards, slot_bytes)
    held = loads(owners(shards, plan), slot_bytes, ["s0", "s1", "s2", "s3"])
    part = sum(slot_bytes) / 4
    assert max(held.values()) <= 1.05 * part and min(held.values()) >= 0.95 * part


# --- what cannot be planned -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("added", "removed", "said"),
    [
        (new(1), [], "expected a shard of a name that is new, got s1"),
        (new(5, 5), [], "expected shards of different names, got one twice"),
        ([], ["s9"], "expected one of the shards s0, s1, got s9"),
        ([], ["s0", "s1"], "expected a shard that stays, got none"),
    ],
)
def test_what_does_not_fit_is_said(added: list[Shard], removed: list[str], said: str) -> None:
    with pytest.raises(CannotPlan) as caught:
        planned(fleet(2), UNIFORM, added, removed)
    assert str(caught.value) == said


# --- fleets drawn from a seed -----------------------------------------------------------------------------------------


def drawn(seed: int) -> tuple[list[Shard], list[float], list[Shard], list[str]]:
    """Slots in disorder, of different sizes; some shards come, some go."""
    chance = random.Random(seed)
    count = chance.randint(1, 12)
    cuts = sorted(chance.sample(range(1, SLOTS), chance.randint(count, 3 * count)))
    bounds = [0, *cuts, SLOTS]
    pieces = [(first, end - 1) for first, end in itertools.pairwise(bounds)]
    chance.shuffle(pieces)
    slots: list[list[int]] = [[] for _ in range(count)]
    for index, (first, last) in enumerate(pieces):
        slots[index % count] += range(first, last + 1)
    shards = [shard(number, *join_slots(sorted(own))) for number, own in enumerate(slots)]
    slot_bytes = [chance.choice((500.0, 1000.0, 1500.0)) * chance.random() for _ in range(SLOTS)]
    added = new(*range(100, 100 + chance.randint(0, 10)))
    most = min(count - (not added), 3)
    return shards, slot_bytes, added, chance.sample([each.name for each in shards], chance.randint(0, most))


@pytest.mark.parametrize("seed", range(100))
def test_every_slot_has_one_owner_and_all_shards_hold_the_same_within_five_percent(seed: int) -> None:
    shards, slot_bytes, added, removed = drawn(seed)
    plan = planned(shards, slot_bytes, added, removed)
    stay = [each.name for each in (*shards, *added) if each.name not in removed]
    held = loads(owners(shards, plan), slot_bytes, [each.name for each in (*shards, *added)])
    part = sum(slot_bytes) / len(stay)
    assert all(held[name] == 0.0 for name in removed)
    assert all(abs(held[name] - part) <= 0.05 * part for name in stay), {n: held[n] / part for n in stay}
    assert plan.after == {name: pytest.approx(size, abs=2.0) for name, size in held.items()}


@pytest.mark.parametrize("seed", range(100))
def test_no_more_is_moved_than_must_be_and_nobody_gives_and_takes(seed: int) -> None:
    shards, slot_bytes, added, removed = drawn(seed)
    plan = planned(shards, slot_bytes, added, removed)
    stay = [each.name for each in (*shards, *added) if each.name not in removed]
    before = loads(owners(shards, Plan(())), slot_bytes, [each.name for each in (*shards, *added)])
    part = sum(slot_bytes) / len(stay)
    must = sum(size if name in removed else max(0.0, size - part) for name, size in before.items())
    assert plan.bytes <= must * 1.001 + len(plan.moves) * max(slot_bytes)
    givers, takers = ({getattr(move, end) for move in plan.moves} for end in ("source", "destination"))
    assert not givers & takers
    assert not takers & set(removed)
    assert len(plan.moves) <= len(givers) + len(takers)
    assert {name: round(size) for name, size in before.items()} == plan.before


@pytest.mark.parametrize("seed", range(20))
def test_a_second_plan_after_the_first_moves_next_to_nothing(seed: int) -> None:
    shards, slot_bytes, added, removed = drawn(seed)
    found = owners(shards, planned(shards, slot_bytes, added, removed))
    again = [
        Shard(each.name, each.primary, (), tuple(join_slots(n for n in range(SLOTS) if found[n] == each.name)))
        for each in (*shards, *added)
        if each.name not in removed
    ]
    assert planned(again, slot_bytes).bytes <= EVEN * sum(slot_bytes)


# --- what is known of the slots ---------------------------------------------------------------------------------------


def test_without_a_sample_the_bytes_of_a_shard_are_those_of_all_of_its_slots() -> None:
    found = weights([shard(0, (0, 99)), shard(1, (100, SLOTS - 1))], {"s0": Sample(1, 1000), "s1": Sample(0, 0)})
    assert found[:100] == [10.0] * 100
    assert 0.0 < found[100] < 1.0


@pytest.mark.parametrize("seed", range(10))
def test_a_hash_tag_with_a_tenth_of_all_keys_is_seen_in_a_sample(seed: int) -> None:
    chance = random.Random(seed)
    drawn = [(7 if chance.random() < 0.1 else chance.randrange(SLOTS), 100) for _ in range(10_000)]
    found = weights([shard(0, (0, SLOTS - 1))], {"s0": Sample(10**6, 10**8, tuple(drawn))})
    assert sum(found) == pytest.approx(10**8, rel=0.01)
    assert found[7] == pytest.approx(10**7, rel=0.1)


@pytest.mark.parametrize("seed", range(10))
def test_a_sample_evens_out_what_it_does_not_show(seed: int) -> None:
    """Ten shards of keys of one size: what the sample says of a tenth of the slots is right within some percent."""
    chance = random.Random(seed)
    sizes = [chance.choice((100, 200, 5000)) for _ in range(1000)]
    drawn = [(chance.randrange(SLOTS), chance.choice(sizes)) for _ in range(20_000)]
    shards = [shard(0, (0, SLOTS - 1))]
    slot_bytes = weights(shards, {"s0": Sample(10**6, 10**9, tuple(drawn))})
    plan = planned(shards, slot_bytes, new(*range(1, 10)))
    counts = [owners(shards, plan).count(f"s{number}") for number in range(10)]
    assert max(counts) <= 1.12 * SLOTS / 10 and min(counts) >= 0.88 * SLOTS / 10


def test_one_large_key_that_was_drawn_does_not_stand_for_its_slot() -> None:
    drawn = [(number, 100) for number in range(2000)] + [(5, 10_000_000)]
    found = weights([shard(0, (0, SLOTS - 1))], {"s0": Sample(10**6, 10**8, tuple(drawn))})
    assert found[5] <= 0.6 * 10**8


def test_stray_keys_say_nothing_of_a_shard() -> None:
    own = [shard(0, (0, 9)), shard(1, (10, SLOTS - 1))]
    samples = {"s0": Sample(10, 1000, tuple((500, 10**6) for _ in range(50))), "s1": Sample(0, 0)}
    assert weights(own, samples)[:10] == [100.0] * 10
