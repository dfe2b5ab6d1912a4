"""A gate is closed: writes wait in their order, within bounds, and are sent once or not at all."""

from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Server, wait_until
from tests.e2e.alone import Alone, node, promote
from tests.e2e.rig import Keys, Talk, error, packed

HELD = 1
"""The index of the shard whose gate is closed."""

PROMOTION = {"promoter": "replicaof", "on_promotion": "hold", "hold_s": 15.0}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=3, replicas=1) as fleet:
        yield fleet


@pytest.fixture
def alone(fleet: Fleet) -> Iterator[Alone]:
    with Alone(fleet, promotion=PROMOTION) as alone:
        with Talk(alone.port) as talk:
            assert talk.ask("FLUSHALL") == b"OK"
        yield alone


@pytest.fixture
def keys(alone: Alone) -> Keys:
    return Keys(alone)


@pytest.fixture
def talk(alone: Alone) -> Iterator[Talk]:
    with Talk(alone.port) as talk:
        yield talk


def primary(fleet: Fleet) -> Server:
    return fleet.shards[HELD].primary


# --- the hold ---------------------------------------------------------------------------------------------------------


def test_a_write_waits_until_the_gate_is_opened(alone: Alone, fleet: Fleet, keys: Keys, talk: Talk) -> None:
    key = keys.one(HELD)
    alone.close(HELD)
    talk.send(("SET", key, "v"))
    alone.wait_held(HELD, 1)
    assert primary(fleet).ask("EXISTS", key) == 0
    alone.open(HELD)
    assert talk.read() == b"OK"
    assert primary(fleet).ask("GET", key) == b"v"
    alone.wait_count("drained", 1)
    alone.wait_held(HELD, 0)
