"""loop-server's events: keys that expire, and the states of calls, as node_redis 0.12.1 subscribes to them; and again
after its connection or a primary was lost. The proxy is as its profile has it.
"""

import os
import signal
from collections.abc import Iterator

import pytest

from pyproxy.fleet import wait_until
from tests.e2e.clients.loop_server import NEW_DB, OLD_DB, PATTERN, LoopProxy, expire, wait_received
from tests.e2e.clients.node import NODE_REDIS_0, NodeClient, NodeError
from tests.e2e.rig import PATIENCE_S, Keys
from tests.processes import command_line, family

pytestmark = [pytest.mark.usefixtures("node_modules"), pytest.mark.timeout(180)]  # the first one installs

SHARDS = 10


@pytest.fixture(scope="module")
def storage(node_modules: None, loop_proxy: LoopProxy) -> Iterator[NodeClient]:
    with NodeClient(NODE_REDIS_0, loop_proxy.port, db=NEW_DB) as client:
        yield client


@pytest.fixture
def notifications(node_modules: None, loop_proxy: LoopProxy) -> Iterator[NodeClient]:
    """Its connection for keys that expire."""
    with NodeClient(NODE_REDIS_0, loop_proxy.port) as client:
        assert client.do("expired") == PATTERN
        yield client


@pytest.fixture
def calls(node_modules: None, loop_proxy: LoopProxy) -> Iterator[NodeClient]:
    """Its connection for the states of calls, as a web socket has it."""
    with NodeClient(NODE_REDIS_0, loop_proxy.port) as client:
        assert client.do("call", "config", "set", "notify-keyspace-events", "Ex") == "OK"
        yield client


def test_a_key_that_expires_on_any_shard_is_one_event(
    loop_proxy: LoopProxy, storage: NodeClient, notifications: NodeClient
) -> None:
    keys = [key for shard in range(SHARDS) for key in Keys(loop_proxy).on(shard, 3, "call.")]
    wait_received(notifications, expire(storage, keys))


def test_events_of_both_databases_arrive(loop_proxy: LoopProxy, storage: NodeClient, notifications: NodeClient) -> None:
    with NodeClient(NODE_REDIS_0, loop_proxy.port, db=OLD_DB) as old:
        events = expire(old, ["call.old"], OLD_DB) + expire(storage, ["call.new"])
        wait_received(notifications, events)


def test_a_state_of_a_call_reaches_who_subscribed_to_that_call(storage: NodeClient, calls: NodeClient) -> None:
    ids = [f"call{number}" for number in range(30)]
    for each in ids:
        assert calls.do("subscribe", each) == each  # one by one, and never taken back
    wait_heard(storage, ids, 1)
    states = ["alerting", "connecting", "half-connected", "connected", "terminated:closed"]
    for each in ids:
        for state in states:
            assert storage.do("publish", each, state) == 1
    wait_received(calls, [[each, state] for each in ids for state in states])
    of_one = [state for each, state in calls.do("received") if each == ids[0]]
    assert of_one == states


def test_a_call_that_nobody_listens_to_is_heard_by_nobody(storage: NodeClient) -> None:
    assert storage.do("publish", "nobody", "alerting") == 0


def test_each_process_hears_of_a_call(loop_proxy: LoopProxy, storage: NodeClient, calls: NodeClient) -> None:
    with NodeClient(NODE_REDIS_0, loop_proxy.port) as other:
        for each in (calls, other):
            each.do("subscribe", "of-two-devices")
        wait_heard(storage, ["of-two-devices"], 2)
        assert storage.do("publish", "of-two-devices", "connected") == 2
        for each in (calls, other):
            wait_received(each, [["of-two-devices", "connected"]])


def test_after_a_reconnect_it_has_its_database_and_its_subscriptions_again(
    loop_proxy: LoopProxy, notifications: NodeClient, calls: NodeClient
) -> None:
    """CONFIG SET is not said again."""
    calls.do("subscribe", "lasting")
    with NodeClient(NODE_REDIS_0, loop_proxy.port, db=NEW_DB) as storage:
        for pid, _ in family(loop_proxy.pid):
            if "pyproxy.worker" in command_line(pid):
                os.kill(pid, signal.SIGKILL)
        for each in (storage, notifications, calls):
            wait_ready_again(each)
        wait_until("its worker to be confirmed", lambda: tried(storage, "set", "in5", "x") == "OK", loop_proxy.tail)
        wait_received(notifications, expire(storage, Keys(loop_proxy).on(3, 2, "call.")))
        wait_until("it to be heard", lambda: tried(storage, "publish", "lasting", "connected") == 1, loop_proxy.tail)
        wait_received(calls, [["lasting", "connected"]])
        assert storage.do("call", "client", "info").count(f" db={NEW_DB} ") == 1


def wait_heard(client: NodeClient, channels: list[str], subscribers: int) -> None:
    """Until its worker counts so many on each: those of other workers are some milliseconds old."""
    wanted = [each for channel in channels for each in (channel, subscribers)]
    seen: list[object] = []

    def heard() -> bool:
        seen[:] = client.do("call", "pubsub", "numsub", *channels)
        return seen == wanted

    wait_until("all to be counted", heard, lambda: f"counted {seen}", PATIENCE_S)


def tried(client: NodeClient, *step: str) -> object:
    """None where it was refused, as by a worker that has not been told yet what is true now."""
    try:
        return client.do(*step)
    except NodeError:
        return None


def wait_ready_again(client: NodeClient) -> None:
    seen: list[str] = []

    def ready() -> bool:
        seen[:] = client.do("events")
        return seen.count("ready") == 2

    wait_until("it to be ready again", ready, lambda: f"its events: {seen}", PATIENCE_S)
