"""Every key that is there from the beginning to the end of a SCAN is returned, whatever else happens meanwhile."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.control.http import admin
from pyproxy.fleet import Fleet, Proxy, wait_until
from tests.e2e.rig import PATIENCE_S, Argument, Connection, Keys

JAVASCRIPT = 1 << 53
SLOW = {"reply_s": PATIENCE_S, "silence_s": PATIENCE_S}  # a busy machine is no lost shard
PROMOTION: dict[str, str | float] = {
    "promoter": "replicaof",
    "down_after_s": 0.5,
    "min_between_s": 0.0,
    "hold_again_s": 0.0,
    "on_promotion": "hold",
    "hold_s": PATIENCE_S,
    "hold_incident_s": PATIENCE_S,
}


def page(conn: Connection, cursor: Argument, count: int) -> tuple[bytes, list[bytes]]:
    reply = conn.ask("SCAN", cursor, "COUNT", count)
    assert isinstance(reply, list), reply
    assert int(reply[0]) < JAVASCRIPT
    return reply[0], reply[1]


def rest(conn: Connection, cursor: Argument, count: int = 10) -> list[bytes]:
    """All pages from this cursor on."""
    found: list[bytes] = []
    while cursor != b"0":
        cursor, more = page(conn, cursor, count)
        found += more
    return found


def store(conn: Connection, names: Sequence[str]) -> None:
    for some in range(0, len(names), 500):
        conn.ask("MSET", *itertools.chain.from_iterable((name, "v") for name in names[some : some + 500]))


# --- writers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talks(fleet: Fleet) -> Iterator[list[Connection]]:
    """Clients of two proxies, which know nothing of each other, one of them with two workers."""
    with Proxy(fleet, timeouts=SLOW) as one, Proxy(fleet, None, 2, timeouts=SLOW) as other:
        talks = [Connection(proxy.port) for proxy in (one, other, other)]
        yield talks
        for conn in talks:
            conn.close()


STEPS = st.lists(
    st.tuples(
        st.sampled_from([1, 10, 50, 300]),  # COUNT
        st.sampled_from([0, 0, 5, 100, 700]),  # keys that come: tables grow, and are rehashed
        st.sampled_from([0.0, 0.1, 0.9]),  # the part of those that came which goes
        st.integers(0, 2),  # who asks for the page
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=40)
@given(stable=st.integers(0, 400), steps=STEPS)
def test_keys_that_stay_are_returned_while_others_come_and_go(
    talks: list[Connection], stable: int, steps: list[tuple[int, int, float, int]]
) -> None:
    writer, draw, number = talks[0], random.Random(stable), itertools.count()
    writer.ask("FLUSHALL")
    store(writer, [f"stays{each}" for each in range(stable)])
    passing: list[str] = []
    found: set[bytes] = set()
    cursor = b"0"
    for count, come, part, who in itertools.chain(steps, itertools.cycle([(300, 0, 0.0, 1)])):
        cursor, keys = page(talks[who], cursor, count)
        found.update(keys)
        if cursor == b"0":
            break
        more = [f"passes{next(number)}" for _ in range(come)]
        store(writer, more)
        passing += more
        draw.shuffle(passing)
        gone = [passing.pop() for _ in range(int(part * len(passing)))]
        if gone:
            writer.ask("UNLINK", *gone)
    assert {b"stays%d" % each for each in range(stable)} <= found


# --- another process --------------------------------------------------------------------------------------------------


@pytest.fixture
def replicated() -> Iterator[Fleet]:
    """Two shards of this test's own, with two replicas each."""
    with Fleet(shards=2, replicas=2) as fleet:
        yield fleet


def killed(fleet: Fleet) -> None:
    fleet.shards[0].primary.kill()


def replaced(fleet: Fleet) -> None:
    """As planned."""
    answer = admin.Answer(False, "")

    def done() -> bool:
        nonlocal answer
        answer = admin.ask(str(fleet.directory / "admin.sock"), admin.Promote("s0", ""), PATIENCE_S)
        return answer.done

    wait_until("the promotion", done, lambda: answer.line)


@pytest.mark.parametrize("loses", [killed, replaced])
def test_a_shard_that_is_promoted_is_begun_again_and_no_key_is_missed(
    replicated: Fleet, loses: Callable[[Fleet], None]
) -> None:
    admin_at = {"admin": str(replicated.directory / "admin.sock")}
    proxy = Proxy(replicated, None, 1, promotion=PROMOTION, http=admin_at, timeouts=SLOW)
    with proxy, Connection(proxy.port) as conn:
        names = [name for shard in range(2) for name in Keys(proxy).on(shard, 400)]
        store(conn, names)
        assert conn.ask("WAIT", 2, int(PATIENCE_S * 1000)) == 2
        cursor, found = page(conn, 0, 100)
        cursor, more = page(conn, cursor, 100)
        loses(replicated)
        wait_until("the new primary", lambda: conn.ask("SET", names[0], "v") == b"OK", proxy.tail)
        again = rest(conn, cursor)
        assert {*found, *more, *again} == {name.encode() for name in names}
        assert set(names[:400]) <= {each.decode() for each in again}, "all of the shard is returned once more"


def test_a_promotion_of_a_shard_that_is_behind_repeats_nothing(replicated: Fleet) -> None:
    with Proxy(replicated, None, 1, promotion=PROMOTION, timeouts=SLOW) as proxy, Connection(proxy.port) as conn:
        names = [name for shard in range(2) for name in Keys(proxy).on(shard, 100)]
        store(conn, names)
        assert conn.ask("WAIT", 2, int(PATIENCE_S * 1000)) == 2
        cursor, found = page(conn, 0, 1000)
        killed(replicated)
        wait_until("the new primary", lambda: conn.ask("SET", names[0], "v") == b"OK", proxy.tail)
        assert sorted(found + rest(conn, cursor)) == sorted(name.encode() for name in names)


def test_a_server_that_restarts_with_its_keys_is_begun_again(fleet: Fleet) -> None:
    primary = fleet.shards[1].primary
    with Proxy(fleet) as proxy, Connection(proxy.port) as conn:
        conn.ask("FLUSHALL")
        names = Keys(proxy).on(1, 400)
        store(conn, names)
        cursor, found = page(conn, 0, 100)
        primary.ask("SAVE")
        primary.kill()
        primary.start()
        wait_until("the shard", lambda: conn.ask("GET", names[0]) == b"v", proxy.tail)
        assert {*found, *rest(conn, cursor)} == {name.encode() for name in names}
