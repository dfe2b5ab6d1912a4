"""Mozilla's loop-server, which knows one host and one port and talks through node_redis 0.12.1: what it sends, with the
arguments it sends, and what its code relies on in the answers.

Its transactions need `transactions = "split"`, as their keys are on several shards. Publish/subscribe and SCAN are
refused, and its connection lives on.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from pyproxy.fleet import Fleet, Proxy
from tests.e2e.clients.node import NODE_REDIS_0, NodeClient, NodeError

pytestmark = [pytest.mark.usefixtures("node_modules"), pytest.mark.timeout(180)]  # the first one installs

OLD_DB, NEW_DB = 4, 5
SESSION = '{"id":"hawk","key":"ключ \\"quoted\\" \\r\\n"}'


@pytest.fixture(scope="module")
def connected(node_modules: None, proxy10: Proxy) -> Iterator[NodeClient]:
    with NodeClient(NODE_REDIS_0, proxy10.port, db=NEW_DB) as client:
        yield client


@pytest.fixture
def storage(connected: NodeClient) -> NodeClient:
    """Its one storage connection, and nothing stored."""
    assert connected.do("call", "flushdb") == "OK"
    return connected


def test_it_is_ready_by_what_info_says(proxy10: Proxy, node_modules: None) -> None:
    with NodeClient(NODE_REDIS_0, proxy10.port) as client:
        said = client.do("infoAtConnect")
        assert said["loading"] == "0"
        assert client.do("events") == ["ready"]


Steps = list[tuple[list[Any], Any]]

# command -> what it does to a key and what is answered, step by step
COMMANDS: dict[str, Steps] = {
    "get": [(["get", "hawk.H"], None)],
    "set": [(["set", "hawk.H", SESSION], "OK"), (["get", "hawk.H"], SESSION)],
    "setex": [(["setex", "hawkuser.H", 2592000, SESSION], "OK"), (["get", "hawkuser.H"], SESSION)],
    "setex heartbeat": [(["setex", "heartbeat", 3600, 1447000000000], "OK")],
    "setex of a bad time": [
        (["setex", "callStateReason.I", -2, "x"], NodeError("ERR invalid expire time in 'setex' command")),
    ],
    "psetex of nothing": [(["psetex", "roomparticipant_access_token.T.H", 60000, ""], "OK")],
    "expire": [(["setex", "hawk.H", 1, "x"], "OK"), (["expire", "hawk.H", 2592000], 1), (["ttl", "hawk.H"], 2592000)],
    "expire of a key that is gone": [(["expire", "hawk.H", 2592000], 0)],
    "expire at once": [(["set", "k", "v"], "OK"), (["expire", "k", 0], 1), (["get", "k"], None)],
    "ttl": [(["ttl", "call.I"], -2), (["set", "call.I", "{}"], "OK"), (["ttl", "call.I"], -1)],
    "pttl": [(["pttl", "call.I"], -2), (["set", "call.I", "{}"], "OK"), (["pttl", "call.I"], -1)],
    "pexpire": [(["sadd", "callstate.I", "init"], 1), (["pexpire", "callstate.I", 90000], 1)],
    "del": [(["set", "room.T", "{}"], "OK"), (["del", "room.T"], 1), (["del", "room.T"], 0)],
    "incr": [(["incr", "call.devices.I.web"], 1), (["incr", "call.devices.I.web"], 2)],
    "decr": [(["decr", "call.devices.I.web"], -1)],
    "sadd": [(["sadd", "userCalls.U", "call.I"], 1), (["sadd", "userCalls.U", "call.I"], 0)],
    "scard": [(["scard", "callstate.I"], 0), (["sadd", "callstate.I", "a"], 1), (["scard", "callstate.I"], 1)],
    "smembers": [(["sadd", "userUrls.U", "callurl.T"], 1), (["smembers", "userUrls.U"], ["callurl.T"])],
    "smembers of nothing": [(["smembers", "userUrls.U"], [])],
    "sismember": [(["sadd", "s", "m"], 1), (["sismember", "s", "m"], 1), (["sismember", "s", "other"], 0)],
    "srem": [(["sadd", "userRooms.U", "room.T"], 1), (["srem", "userRooms.U", 0, 1, 2], 0)],
    "hmset": [(["hmset", "spurls.U.H", "calls", "https://c", "rooms", "https://r"], "OK")],
    "hmget": [(["hset", "spurls.U.H", "calls", "url"], 1), (["hmget", "spurls.U.H", "calls", "x"], ["url", None])],
    "hsetnx": [(["hsetnx", "room.deleted.U", "T", 1], 1), (["hsetnx", "room.deleted.U", "T", 2], 0)],
    "hset": [(["hset", "userUrls.U", "callurl.T", "x"], 1), (["hset", "userUrls.U", "callurl.T", "y"], 0)],
    "hdel": [(["hset", "h", "f", "v"], 1), (["hdel", "h", "f"], 1), (["hdel", "h", "f"], 0)],
}


@pytest.mark.parametrize("steps", COMMANDS.values(), ids=COMMANDS)
def test_each_command_on_one_key_does_what_redis_does(storage: NodeClient, steps: Steps) -> None:
    for call, reply in steps:
        if isinstance(reply, NodeError):
            with pytest.raises(NodeError, match=str(reply)):
                storage.do("call", *call)
        else:
            assert storage.do("call", *call) == reply


def test_the_urls_of_a_user_come_as_an_object(storage: NodeClient) -> None:
    urls = {"calls": "https://push.example/calls", "rooms": "https://push.example/rooms"}
    assert storage.do("hset", "spurls.U.H", urls) == "OK"
    assert storage.do("hgetall", "spurls.U.H") == urls


def test_no_urls_of_a_user_are_null(storage: NodeClient) -> None:
    assert storage.do("hgetall", "spurls.U.H") is None


@pytest.mark.parametrize("count", [1, 2, 3, 4, 40])
def test_mget_gives_calls_in_the_order_it_asked(storage: NodeClient, count: int) -> None:
    keys = [f"call.{number}" for number in range(count)]
    for key in keys[1:]:
        storage.do("call", "setex", key, 60, f'{{"callId":"{key}"}}')
    assert storage.do("mget", keys) == [None, *(f'{{"callId":"{key}"}}' for key in keys[1:])]


def test_del_of_three_keys_counts_those_that_were_there(storage: NodeClient) -> None:
    storage.do("mset", {"callurl.A": "a", "callurl.B": "b", "callurl.C": "c"})
    assert storage.do("del", ["callurl.A", "callurl.B", "callurl.never"]) == 2
    assert storage.do("mget", ["callurl.A", "callurl.B", "callurl.C"]) == [None, None, "c"]


def test_del_of_no_key_is_an_error(storage: NodeClient) -> None:
    with pytest.raises(NodeError, match="ERR wrong number of arguments for 'del' command"):
        storage.do("del", [])


def test_a_session_is_touched_by_eight_expires_in_one_go(storage: NodeClient) -> None:
    keys = ["userid.H", "hawk.H", "hawkuser.H", "spurls.U", "spurls.U.H", "userUrls.U", "userCalls.U", "userRooms.U"]
    storage.do("mset", dict.fromkeys(keys[:3], "x"))
    assert storage.do("pipeline", [["expire", key, 2592000] for key in keys]) == [1, 1, 1, 0, 0, 0, 0, 0]


def test_a_key_moves_between_databases_byte_by_byte(storage: NodeClient, proxy10: Proxy) -> None:
    with NodeClient(NODE_REDIS_0, proxy10.port, db=OLD_DB) as old:
        old.do("call", "flushdb")
        old.do("call", "setex", "hawk.moves", 1000, SESSION)
        assert 990_000 < old.do("call", "pttl", "hawk.moves") <= 1_000_000
        dumped = old.do("callBytes", "dump", "hawk.moves")
        assert storage.do("call", "restore", "hawk.moves", 1_000_000, dumped) == "OK"
        assert old.do("call", "del", "hawk.moves") == 1
        assert old.do("get", "hawk.moves") is None
    assert storage.do("get", "hawk.moves") == SESSION


def test_a_key_is_not_moved_over_another(storage: NodeClient) -> None:
    storage.do("set", "hawk.moves", SESSION)
    dumped = storage.do("callBytes", "dump", "hawk.moves")
    with pytest.raises(NodeError, match="BUSYKEY Target key name already exists"):
        storage.do("call", "restore", "hawk.moves", 0, dumped)


def test_keys_finds_them_on_all_shards(storage: NodeClient) -> None:
    rooms = {f"roomparticipants.{number}" for number in range(30)}
    storage.do("mset", {**dict.fromkeys(rooms, "x"), "room.1": "x"})
    assert set(storage.do("call", "keys", "roomparticipants.*")) == rooms


def test_flushdb_empties_its_database_and_no_other(storage: NodeClient, proxy10: Proxy) -> None:
    with NodeClient(NODE_REDIS_0, proxy10.port, db=OLD_DB) as old:
        for each in (old, storage):
            each.do("mset", {f"key{number}": "x" for number in range(30)})
        assert storage.do("call", "flushdb") == "OK"
        assert storage.do("call", "dbsize") == 0
        assert old.do("mget", [f"key{number}" for number in range(30)]) == ["x"] * 30


@pytest.mark.parametrize(
    "call",
    [
        ["scan", 0],
        ["publish", "callId", "alerting"],
        ["eval", "return #redis.pcall('keys', 'userid.*')", 0],
        ["config", "resetstat"],
    ],
    ids=lambda call: call[0],
)
def test_what_is_not_served_is_an_error_that_names_it_and_the_connection_stays(
    storage: NodeClient, call: list[str | int]
) -> None:
    before = storage.do("events")
    with pytest.raises(NodeError, match=rf"^ERR command '{str(call[0]).lower()}\S*' is not served by this proxy: "):
        storage.do("call", *call)
    assert storage.do("set", "after", "x") == "OK"
    assert storage.do("events") == before


def test_it_is_told_that_expiry_events_are_on(storage: NodeClient) -> None:
    assert storage.do("call", "config", "set", "notify-keyspace-events", "Ex") == "OK"
    assert storage.do("call", "config", "get", "notify-keyspace-events") == ["notify-keyspace-events", "xE"]


# --- transactions, through the library's own multi() ------------------------------------------------------------------

USER = ["userid.H", "hawk.H", "hawkuser.H", "spurls.U", "spurls.U.H", "userUrls.U", "userCalls.U", "userRooms.U"]

# what a transaction is of, and its answers
TRANSACTIONS: dict[str, tuple[list[list[Any]], list[Any]]] = {
    "a session is touched": ([["expire", key, 2592000] for key in USER], [0] * 8),
    "a call and its state": ([["get", "call.I"], ["scard", "callstate.I"]], [None, 0]),
    "a user's urls": (
        [
            ["hmset", "spurls.U.H", "calls", "https://c", "rooms", "https://r"],
            ["expire", "spurls.U.H", 60],
            ["sadd", "spurls.U", "spurls.U.H"],
            ["expire", "spurls.U", 60],
        ],
        ["OK", 1, 1, 1],
    ),
    "a call of a user": (
        [["setex", "call.I", 60, "{}"], ["sadd", "userCalls.U", "call.I"], ["expire", "userCalls.U", 60]],
        ["OK", 1, 1],
    ),
    "a participant": (
        [
            ["psetex", "roomparticipant.T.H", 60000, ""],
            ["sadd", "roomparticipants.T", "roomparticipant.T.H"],
            ["pexpire", "roomparticipants.T", 60000],
        ],
        ["OK", 1, 1],
    ),
    "rooms are deleted": (
        [[name, key] for room in "ABC" for name, key in (("get", f"room.{room}"), ("del", f"roomparticipants.{room}"))],
        [None, 0] * 3,
    ),
    "one key": ([["incr", "call.devices.I.web"], ["expire", "call.devices.I.web", 60]], [1, 1]),
    "states of calls": ([["scard", f"callstate.{number}"] for number in range(600)], [0] * 600),
    "nothing": ([], []),
}


@pytest.fixture(scope="module")
def over_shards(node_modules: None, fleet10: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet10, transactions="split") as proxy:
        yield proxy


@pytest.fixture
def transacting(over_shards: Proxy) -> Iterator[NodeClient]:
    with NodeClient(NODE_REDIS_0, over_shards.port, db=NEW_DB) as client:
        client.do("call", "flushdb")
        yield client


@pytest.mark.parametrize(("calls", "answers"), TRANSACTIONS.values(), ids=TRANSACTIONS)
def test_each_transaction_is_answered_in_the_order_of_its_commands(
    transacting: NodeClient, calls: list[list[Any]], answers: list[Any]
) -> None:
    assert transacting.do("multi", calls) == answers


def test_del_of_no_key_aborts_its_transaction(transacting: NodeClient) -> None:
    with pytest.raises(NodeError, match="EXECABORT"):
        transacting.do("multi", [["setex", "call.I", 60, "{}"], ["del"]])
    assert transacting.do("get", "call.I") is None


def test_a_script_aborts_its_transaction(transacting: NodeClient) -> None:
    with pytest.raises(NodeError, match="EXECABORT"):
        transacting.do("multi", [["set", "userid.H", "x"], ["eval", "return #redis.pcall('keys', 'userid.*')", 0]])
    assert transacting.do("get", "userid.H") is None


def test_by_default_keys_on_several_shards_are_an_error_and_nothing_is_applied(storage: NodeClient) -> None:
    with pytest.raises(NodeError, match="CROSSSLOT"):
        storage.do("multi", [["set", key, "x"] for key in USER])
    assert storage.do("call", "dbsize") == 0


@pytest.mark.parametrize("call", [["subscribe", "callId"], ["psubscribe", "__keyevent*__:expired"]])
def test_a_subscription_is_an_error_that_names_it(proxy10: Proxy, call: list[str]) -> None:
    with NodeClient(NODE_REDIS_0, proxy10.port) as subscriber:
        with pytest.raises(NodeError, match=rf"^ERR command '{call[0]}' is not served by this proxy: "):
            subscriber.do("call", *call)
        assert subscriber.do("events") == ["ready"]
