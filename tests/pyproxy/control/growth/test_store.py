"""What a store says: who owns which slots, and how far each move is; what cannot be is refused with the place."""

import msgspec
import pytest

from pyproxy.config import Config, ConfigErrors
from pyproxy.control.growth.store import (
    FORMAT,
    KEPT,
    Document,
    StoreError,
    check_seen,
    decoded,
    differences,
    effective,
    encoded,
    seeded,
)
from pyproxy.control.growth.transitions import OVER, Entry, Phase
from pyproxy.moves import Move
from pyproxy.shard_map import Node, Shard

CONFIG = Config.parse(
    b"""
    [[shards]]
    name = "s0"
    primary = "10.0.0.1:6379"
    slots = ["0-8191"]
    accept_misplaced = true
    [[shards]]
    name = "s1"
    primary = "10.0.0.2:6379"
    replicas = ["10.0.0.3:6379"]
    slots = ["8192-16383"]
    """
)
S2 = Shard("s2", Node("10.0.0.4", 6379), (), ())
MOVE = Move("m1", "s0", "s2", ((0, 99), (200, 299)))
ENTRY = Entry(move=MOVE)


def grown() -> Document:
    """With s2, which gets its first slots from s0."""
    return seeded(CONFIG).with_moves([ENTRY], 17.0, [S2])


def handed_over() -> Document:
    return grown().handed_over(Entry(move=MOVE, phase=Phase.SWITCHING), 18.0)


def slots_of(document: Document, name: str) -> tuple[tuple[int, int], ...]:
    shard = document.shard(name)
    assert shard is not None
    return shard.slots


# --- what it says -----------------------------------------------------------------------------------------------------


def test_the_first_document_is_the_configuration() -> None:
    document = seeded(CONFIG)
    assert (document.format, document.generation, document.journal) == (FORMAT, 1, ())
    assert document.shards == CONFIG.shard_map().shards
    assert document.id != seeded(CONFIG).id


def test_what_is_written_is_read() -> None:
    document = handed_over()
    assert decoded(encoded(document), "file:/x") == document


def test_a_hand_over_changes_the_owner_of_the_slots_and_the_journal_in_one_step() -> None:
    before, document = grown(), handed_over()
    assert slots_of(document, "s0") == ((100, 199), (300, 8191))
    assert slots_of(document, "s2") == ((0, 99), (200, 299))
    assert slots_of(document, "s1") == slots_of(before, "s1")
    (entry,) = document.journal
    assert (entry.phase, entry.times) == (Phase.SWITCHING, {"queued": 17.0, "switching": 18.0})
    assert document.generation == before.generation + 1
    assert document.problems() == []


def test_slots_that_are_not_the_sources_are_not_handed_over() -> None:
    with pytest.raises(StoreError, match="expected one owner for every slot, got s1 and s2 for 9000"):
        stolen = Entry(move=Move("m1", "s0", "s2", ((9000, 9000),)), phase=Phase.SWITCHING)
        grown().handed_over(stolen, 18.0)


def test_every_change_is_another_generation_of_the_same_store() -> None:
    document = grown()
    changed = document.with_entry(msgspec.structs.replace(ENTRY, paused=True), 18.0)
    assert (changed.id, changed.generation) == (document.id, document.generation + 1)
    assert changed.journal[0].times == {"queued": 17.0}, "no other phase"


def test_of_moves_that_are_over_the_latest_stay_in_the_journal() -> None:
    document = seeded(CONFIG)
    for number in range(KEPT + 5):
        entry = Entry(move=Move(f"m{number}", "s0", "s1", ((0, 0),)))
        document = document.with_moves([entry], 1.0)
        document = document.with_entry(msgspec.structs.replace(entry, phase=Phase.ABORTED), 2.0)
    document = document.with_moves([Entry(move=Move("last", "s0", "s1", ((0, 0),)))], 3.0)
    assert len(document.journal) == KEPT + 1
    assert [entry.move.id for entry in document.under_way] == ["last"]
    assert document.journal[0].move.id == "m5"


def test_a_shard_without_slots_can_be_taken_out_and_no_other() -> None:
    document = seeded(CONFIG).with_moves([], 1.0, [S2])
    assert [shard.name for shard in document.without_shard("s2").shards] == ["s0", "s1"]
    with pytest.raises(StoreError, match="expected s0 to have no slots, got 0-8191"):
        document.without_shard("s0")
    with pytest.raises(StoreError, match="expected one of the shards s0, s1, s2, got s9"):
        document.without_shard("s9")
    with pytest.raises(StoreError, match="expected a shard that is there for move m1, got s2"):
        grown().without_shard("s2")


# --- beside the configuration -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shard", "found"),
    [
        (Shard("s3", Node("10.0.0.2", 6379), (), ()), "expected servers of its own for s3, got 10.0.0.2:6379 of s1"),
        (
            Shard("s3", Node("10.0.0.9", 6379), (Node("10.0.0.3", 6379),), ()),
            "expected servers of its own for s3, got 10.0.0.3:6379 of s1",
        ),
        (Shard("s2", Node("10.0.0.9", 6379), (), ()), "expected s2 at 10.0.0.4:6379, where it is, got 10.0.0.9:6379"),
    ],
)
def test_an_added_shard_has_servers_of_its_own_and_a_known_one_those_that_it_had(shard: Shard, found: str) -> None:
    with pytest.raises(StoreError) as refused:
        grown().without_known([shard])
    assert str(refused.value) == found


def test_a_plan_may_name_a_known_shard_again_though_its_replica_was_promoted() -> None:
    promoted = Shard("s1", Node("10.0.0.3", 6379), (Node("10.0.0.2", 6379),), ())
    added = Shard("s3", Node("10.0.0.5", 6379), (), ())
    assert grown().without_known([promoted, S2, added]) == [added]


def test_the_slots_and_the_added_shards_are_those_of_the_store_and_all_else_of_the_configuration() -> None:
    config = effective(CONFIG, handed_over())
    assert [(table.name, table.slots) for table in config.shards] == [
        ("s0", ((100, 199), (300, 8191))), ("s1", ((8192, 16383),)), ("s2", ((0, 99), (200, 299)))
    ]  # fmt: skip
    assert config.shards[0].accept_misplaced
    assert config.shards[2].primary == Node("10.0.0.4", 6379)


def test_a_shard_that_only_the_configuration_has_gets_no_slots() -> None:
    document = seeded(CONFIG)
    s0 = msgspec.structs.replace(document.shards[0], slots=((0, 16383),))
    assert [table.slots for table in effective(CONFIG, msgspec.structs.replace(document, shards=(s0,))).shards] == [
        ((0, 16383),), ()
    ]  # fmt: skip


def test_a_server_that_the_configuration_gives_to_one_shard_and_the_store_to_another_is_refused() -> None:
    twice = msgspec.structs.replace(S2, primary=Node("10.0.0.3", 6379))
    document = seeded(CONFIG).with_moves([], 1.0, [twice])
    with pytest.raises(ConfigErrors) as caught:
        effective(CONFIG, document)
    assert caught.value.problems == [
        'shards[2].primary: expected a node of its own, got "10.0.0.3:6379" of shards[1].replicas[0] '
        "(with the shards of the store)"
    ]


def test_each_difference_is_said_with_both_sides() -> None:
    document = handed_over()
    elsewhere = msgspec.structs.replace(document.shards[1], primary=Node("10.9.9.9", 6379), replicas=())
    document = msgspec.structs.replace(document, shards=(document.shards[0], elsewhere, document.shards[2]))
    assert differences(CONFIG, document) == [
        "shard s0: the store says slots 100-199, 300-8191; the configuration says slots 0-8191",
        "shard s1: the store says 10.9.9.9:6379; the configuration says 10.0.0.2:6379, 10.0.0.3:6379",
        "shard s2: the store says slots 0-99, 200-299; the configuration has no such shard",
    ]
    without_s1 = msgspec.structs.replace(document, shards=(document.shards[0], document.shards[2]))
    assert differences(CONFIG, without_s1)[1] == (
        "shard s1: the store has no such shard; the configuration says slots 8192-16383"
    )


def test_a_store_as_it_was_seeded_does_not_differ_even_where_roles_have_changed() -> None:
    document = seeded(CONFIG)
    s0, s1 = document.shards
    promoted = msgspec.structs.replace(s1, primary=s1.replicas[0], replicas=(s1.primary,))
    assert differences(CONFIG, msgspec.structs.replace(document, shards=(s0, promoted))) == []


def test_other_servers_in_the_configuration_are_taken_over_by_name() -> None:
    document = seeded(CONFIG)
    assert document.with_nodes(CONFIG) is document
    moved = msgspec.structs.replace(CONFIG.shards[0], primary=Node("10.8.8.8", 6379))
    changed = document.with_nodes(msgspec.structs.replace(CONFIG, shards=(moved, CONFIG.shards[1])))
    assert changed.shards[0].primary == Node("10.8.8.8", 6379)
    assert changed.generation == document.generation + 1


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "store file:/x: expected JSON, got: Input data was truncated"),
        (b"{", "store file:/x: expected JSON, got: Input data was truncated"),
        (b"\xff\xfe", "store file:/x: expected JSON, got: JSON is malformed: invalid character (byte 0)"),
        (b"[" * 100_000, "store file:/x: expected JSON, got: "),
        (b"[]", "store file:/x: expected format 1, got none"),
        (b'{"shards": []}', "store file:/x: expected format 1, got none"),
        (b'{"format": 2}', "store file:/x: expected format 1, got 2: a newer pyproxy has written it"),
        (b'{"format": 0}', "store file:/x: expected format 1, got 0"),
        (b'{"format": "1"}', "store file:/x: expected format 1, got '1'"),
        (b'{"format": 1, "id": "a"}', "store file:/x: object missing required field `generation`"),
        (
            b'{"format": 1, "id": "a", "generation": 1, "shards": [{"name": 7}]}',
            "store file:/x: expected `str`, got `int` - at `$.shards[0].name`",
        ),
        (
            b'{"format": 1, "id": "a", "generation": 1, "shards": [], "more": 1}',
            "store file:/x: object contains unknown field `more`",
        ),
    ],
)
def test_what_is_no_document_is_refused_with_what_it_is(raw: bytes, said: str) -> None:
    with pytest.raises(StoreError) as caught:
        decoded(raw, "file:/x")
    assert str(caught.value).startswith(said)


def broken(*slots: tuple[tuple[int, int], ...], journal: tuple[Entry, ...] = ()) -> list[str]:
    shards = tuple(Shard(f"s{number}", Node("10.0.0.1", 7000 + number), (), each) for number, each in enumerate(slots))
    document = Document(FORMAT, "a", 1, shards, journal)
    with pytest.raises(StoreError) as caught:
        decoded(encoded(document), "file:/x")
    return str(caught.value).splitlines()


def test_slots_that_nobody_or_two_own_are_refused() -> None:
    assert broken(((0, 99), (200, 8191)), ((8190, 16383),)) == [
        "store file:/x: expected one owner for every slot, got nobody for 100-199",
        "store file:/x: expected one owner for every slot, got s0 and s1 for 8190-8191",
    ]
    assert broken(((0, 16384),)) == ["store file:/x: expected slots from 0 to 16383, got 0-16384 of s0"]
    assert broken(((5, 4),)) == ["store file:/x: expected slots from 0 to 16383, got 5-4 of s0"]


ALL = ((0, 16383),)


@pytest.mark.parametrize(
    ("journal", "said"),
    [
        ((Entry(move=Move("m", "s0", "s9", ((0, 9),))),), "expected a shard that is there for move m, got s9"),
        ((Entry(move=Move("m", "s0", "s0", ((0, 9),))),), "expected two shards for move m, got s0 twice"),
        ((Entry(move=Move("m", "s0", "s1", ())),), "expected slots from 0 to 16383 for move m, got none"),
        (
            (Entry(move=Move("m", "s1", "s0", ((0, 9),)), phase=Phase.COPYING),),
            "expected s1 to own the slots of move m, which is copying, got others for 0-9",
        ),
        (
            (Entry(move=Move("m", "s0", "s1", ((0, 9),)), phase=Phase.SWITCHING),),
            "expected s1 to own the slots of move m, which is switching, got others for 0-9",
        ),
        (
            (Entry(move=Move("m", "s0", "s1", ((0, 9),))), Entry(move=Move("n", "s0", "s1", ((5, 20),)))),
            "expected slots that no other move has for move n, got 5-9 of m",
        ),
        (
            (Entry(move=Move("m", "s0", "s1", ((0, 9),))), Entry(move=Move("m", "s0", "s1", ((10, 20),)))),
            "expected moves of different ids, got m 2 times",
        ),
    ],
)
def test_a_journal_that_does_not_fit_the_map_is_refused(journal: tuple[Entry, ...], said: str) -> None:
    assert broken(ALL, (), journal=journal) == [f"store file:/x: {said}"]


@pytest.mark.parametrize("phase", OVER, ids=lambda phase: phase.value)
def test_a_move_that_is_over_says_nothing_of_who_owns_the_slots_now(phase: Phase) -> None:
    entry = Entry(move=Move("m", "gone", "s1", ((0, 9),)), phase=phase)
    document = Document(FORMAT, "a", 1, (Shard("s0", Node("10.0.0.1", 1), (), ALL),), (entry,))
    assert document.problems() == []


def test_moves_that_cannot_be_are_not_taken() -> None:
    with pytest.raises(StoreError, match="expected slots that no other move has for move m2, got 0-9 of m1"):
        grown().with_moves([Entry(move=Move("m2", "s0", "s1", ((0, 9),)))], 1.0)
    with pytest.raises(StoreError, match="expected shards of different names, got s1 2 times"):
        grown().with_moves([], 1.0, [msgspec.structs.replace(S2, name="s1")])


def test_an_older_generation_than_one_that_was_seen_is_refused_and_so_is_none() -> None:
    document = grown()
    check_seen(None, 0, "file:/x")
    check_seen((document, 2), 2, "file:/x")
    with pytest.raises(StoreError, match="expected generation 3 or a later one, as it was seen, got 2: an old copy"):
        check_seen((document, 2), 3, "file:/x")
    with pytest.raises(StoreError, match="expected generation 3 or a later one, as it was seen, got no store"):
        check_seen(None, 3, "file:/x")
