"""A plan as TOML: what is written can be read, and what is wrong in it is said with its place."""

from pathlib import Path

import pytest

from pyproxy.config import Config
from pyproxy.control.growth.plan import Plan, PlannedMove
from pyproxy.control.growth.plan_file import PlanErrors, lasting, load_plan, read_plan, sized, write_plan
from pyproxy.shard_map import Node, Shard

MOVES = (
    PlannedMove("s0", "s2", ((0, 99), (200, 200)), 1_500_000_000),
    PlannedMove("s1", "s2", tuple((number, number) for number in range(1000, 1040, 2)), 500_000_000),
)
ADDED = (Shard("s2", Node("10.0.0.3", 6379), (Node("::1", 6380),), ()),)
PLAN = Plan(MOVES, ADDED, (), {"s0": 6 * 10**9, "s1": 10**9, "s2": 0}, {"s0": 4 * 10**9, "s1": 10**9, "s2": 2 * 10**9})


def problems(text: str) -> list[str]:
    with pytest.raises(PlanErrors) as caught:
        read_plan(text.encode())
    return caught.value.problems


def test_what_is_written_is_read() -> None:
    read = read_plan(write_plan(PLAN, 50e6).encode())
    assert (read.moves, read.added, read.removed) == (MOVES, ADDED, ())
    gone = Plan(MOVES[:1], (), ("s0", "s1"))
    read = read_plan(write_plan(gone, 50e6).encode())
    assert (read.moves, read.added, read.removed) == (MOVES[:1], (), ("s0", "s1"))


def test_the_figures_are_above_it_as_comments() -> None:
    assert write_plan(PLAN, 50e6).splitlines()[:9] == [
        "# Written by `pyproxy plan`. All bytes are about right: they come from a sample of the keys.",
        "#",
        "# shard      before       after       gives       takes",
        "# s0         6.0 GB      4.0 GB      1.5 GB           -",
        "# s1         1.0 GB      1.0 GB      500 MB           -",
        "# s2            0 B      2.0 GB           -      2.0 GB",
        "#",
        "# To move: 2 moves, 121 slots, 2.0 GB; 40 s at 50.0 MB a second",
        "",
    ]


def test_a_plan_without_moves_says_so() -> None:
    text = write_plan(Plan((), (), (), {"s0": 10}, {"s0": 10}), 50e6)
    assert "# Nothing has to be moved.\n" in text
    assert read_plan(text.encode()).moves == ()


def test_the_added_shards_can_be_pasted_into_a_configuration_once_they_have_their_slots() -> None:
    table = write_plan(PLAN, 50e6).split("[[moves]]")[0] + 'slots = ["0-16383"]'
    assert Config.parse(table.encode()).shards[0].replicas == ADDED[0].replicas


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "[[moves]",
            ["syntax: expected TOML, got: expected ']]' at the end of an array declaration (at line 1, column 8)"],
        ),
        ("move = 1", ["move: expected a known option (moves?), got an unknown one"]),
        (
            "[[moves]]",
            [
                "moves[0].source: expected a name of 1 to 64 letters, digits and _ . -, got nothing",
                "moves[0].destination: expected a name of 1 to 64 letters, digits and _ . -, got nothing",
                "moves[0].slots: expected an array, got nothing",
            ],
        ),
        (
            '[[moves]]\nsource = "s0"\ndestination = "s0"\nslots = ["5-4"]\nbytes = -1',
            [
                'moves[0].slots[0]: expected slots such as "0-1638" or "5", at most 16383, got "5-4"',
                "moves[0].bytes: expected a whole number from 0 to 1152921504606846976, got -1",
                'moves[0].destination: expected another shard than the source, got "s0"',
            ],
        ),
        (
            '[[moves]]\nsource = "s0"\ndestination = "s1"\nslots = []',
            ["moves[0].slots: expected one or more, got none"],
        ),
        (
            '[[moves]]\nsource = "s0"\ndestination = "s1"\nslots = ["0-9"]\n'
            '[[moves]]\nsource = "s2"\ndestination = "s1"\nslots = ["20", "9-12"]',
            ['moves[1].slots: expected slots that no other has, got "9-12" of moves[0]'],
        ),
        (
            'remove = ["s1"]\n[[moves]]\nsource = "s0"\ndestination = "s1"\nslots = ["0-9"]',
            ['moves[0].destination: expected a shard that stays, got "s1" of remove'],
        ),
        (
            '[[shards]]\nname = "a"\nprimary = "h:1"\n[[shards]]\nname = "a"\nprimary = "nowhere"',
            [
                'shards[1].primary: expected host:port, got "nowhere"',
                'shards[1].name: expected a name of its own, got "a" of shards[0]',
            ],
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, found: list[str]) -> None:
    assert problems(text) == found


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(PlanErrors, match="expected a readable file, got no such file or directory"):
        load_plan(tmp_path / "none.toml")
    (tmp_path / "plan.toml").write_text(write_plan(PLAN, 50e6))
    assert load_plan(tmp_path / "plan.toml").moves == MOVES


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (123_456, "123 KB"), (5.6e9, "5.6 GB"), (2.5e12, "2.5 TB")],
)
def test_sizes_are_for_people(size: float, shown: str) -> None:
    assert sized(size) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0.1, "1 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")])
def test_times_are_for_people(seconds: float, shown: str) -> None:
    assert lasting(seconds) == shown
