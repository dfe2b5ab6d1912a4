"""Mozilla's loop-server, which knows one host and one port and talks through node_redis 0.12.1: what it sends to its
storage, with the arguments it sends, and what its code relies on in the answers. The proxy is as its profile has it.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from pyproxy.fleet import wait_until
from tests.e2e.clients.loop_server import MONTH_S, NEW_DB, OLD_DB, USER, LoopProxy
from tests.e2e.clients.node import NODE_REDIS_0, NodeClient, NodeError
from tests.e2e.rig import Keys

pytestmark = [pytest.mark.usefixtures("node_modules"), pytest.mark.timeout(180)]  # the first one installs

SESSION = '{"id":"hawk","key":"ключ \\"quoted\\" \\r\\n"}'


@pytest.fixture(scope="module")
def connected(node_modules: None, loop_proxy: LoopProxy) -> Iterator[NodeClient]:
    with NodeClient(NODE_REDIS_0, loop_proxy.port, db=NEW_DB) as client:
        yield client


@pytest.fixture(scope="module")
def migrating(node_modules: None, loop_proxy: LoopProxy) -> Iterator[NodeClient]:
    """Its second connection, while it moves from one database to another."""
    with NodeClient(NODE_REDIS_0, loop_proxy.port, db=OLD_DB) as client:
        yield client


@pytest.fixture
def old(migrating: NodeClient) -> NodeClient:
    """The same, with nothing stored."""
    assert migrating.do("call", "flushdb") == "OK"
    return migrating


@pytest.fixture
def storage(connected: NodeClient) -> NodeClient:
    """Its one storage connection, and nothing stored."""
    assert connected.do("call", "flushdb") == "OK"
    return connected


def test_it_is_ready_by_what_info_says(loop_proxy: LoopProxy) -> None:
    with NodeClient(NODE_REDIS_0, loop_proxy.port) as client:
        said = client.do("infoAtConnect")
        assert said["loading"] == "0"
        assert client.do("events") == ["ready"]


Steps = list[tuple[list[Any], Any]]

# command -> what it does to a key and what is answered, step by step
COMMANDS: dict[str, Steps] = {
    "get": [(["get", "hawk.H"], None)],
    "set": [(["set", "hawk.H", SESSION], "OK"), (["get", "hawk.H"], SESSION)],
    "setex": [(["setex", "hawkuser.H", MONTH_S, SESSION], "OK"), (["get", "hawkuser.H"], SESSION)],
    "setex heartbeat": [(["setex", "heartbeat", 3600, 1447000000000], "OK")],
    "setex of a bad time": [
        (["setex", "callStateReason.I", -2, "x"], NodeError("ERR invalid expire time in 'setex' command")),
    ],
    "psetex": [(["psetex", "roomparticipant.T.H", 60000, SESSION], "OK"), (["get", "roomparticipant.T.H"], SESSION)],
    "psetex of nothing": [
        (["psetex", "roomparticipant_access_token.T.H", 60000, ""], "OK"),
        (["get", "roomparticipant_access_token.T.H"], ""),
    ],
    "expire": [(["setex", "hawk.H", 1, "x"], "OK"), (["expire", "hawk.H", MONTH_S], 1), (["ttl", "hawk.H"], MONTH_S)],
    "expire of a key that is gone": [(["expire", "hawk.H", MONTH_S], 0)],
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
    "hmget of nothing": [(["hmget", "spurls.U.H", "calls", "rooms"], [None, None])],
    "lrange of nothing": [(["lrange", "list", 0, -1], [])],
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


MOVED: dict[str, list[Any]] = {
    "a session": ["setex", "moves", 1000, SESSION],
    "nothing": ["psetex", "moves", 1000000, ""],
    "a call url for ever": ["set", "moves", "{}"],
    "rooms": ["sadd", "moves", *(f"room.{number}" for number in range(200))],
    "urls": ["hmset", "moves", "calls", "https://c", "rooms", "https://r"],
    "a list": ["rpush", "moves", "a", "b"],
    "more than a segment": ["set", "moves", "".join(chr(33 + number % 90) for number in range(300_000))],
}


@pytest.mark.parametrize("call", MOVED.values(), ids=MOVED)
def test_a_key_moves_between_databases_byte_by_byte(storage: NodeClient, old: NodeClient, call: list[Any]) -> None:
    old.do("call", *call)
    left = old.do("call", "pttl", "moves")
    assert left == -1 if call[0] in ("set", "sadd", "hmset", "rpush") else 990_000 < left <= 1_000_000
    dumped = old.do("callBytes", "dump", "moves")
    assert storage.do("call", "restore", "moves", max(left, 0), dumped) == "OK"  # bytes: it goes out piece by piece
    assert old.do("call", "del", "moves") == 1
    assert old.do("call", "exists", "moves") == 0
    assert storage.do("callBytes", "dump", "moves") == dumped
    after = storage.do("call", "pttl", "moves")
    assert after == -1 if left == -1 else 990_000 < after <= left


def test_a_key_is_not_moved_over_another(storage: NodeClient) -> None:
    storage.do("set", "hawk.moves", SESSION)
    dumped = storage.do("callBytes", "dump", "hawk.moves")
    with pytest.raises(NodeError, match="BUSYKEY Target key name already exists"):
        storage.do("call", "restore", "hawk.moves", 0, dumped)


def test_a_key_that_is_gone_has_nothing_to_move(old: NodeClient) -> None:
    assert old.do("call", "pttl", "moves") == -2
    assert old.do("callBytes", "dump", "moves") is None


@pytest.mark.parametrize("prefix", ["roomparticipants.", "key"])
def test_keys_finds_them_on_all_shards(storage: NodeClient, prefix: str) -> None:
    rooms = {f"{prefix}{number}" for number in range(30)}
    storage.do("mset", {**dict.fromkeys(rooms, "x"), "room.1": "x"})
    assert set(storage.do("call", "keys", f"{prefix}*")) == rooms


def test_scan_walks_all_keys_with_cursors_that_are_numbers_of_javascript(storage: NodeClient) -> None:
    keys = {f"scanned{number}" for number in range(100)}
    storage.do("mset", dict.fromkeys(keys, "x"))
    cursor, found = storage.do("call", "scan", 0)
    while cursor != "0":
        assert int(cursor) == int(float(cursor))
        cursor, more = storage.do("call", "scan", int(cursor))
        found += more
    assert keys <= set(found)


def test_info_is_asked_with_and_without_a_section(storage: NodeClient) -> None:
    storage.do("mset", {f"key{number}": "x" for number in range(30)})
    assert "redis_version:" in storage.do("call", "info")
    wait_until(
        "the keys to be counted",
        lambda: f"db{NEW_DB}:keys=30," in storage.do("call", "info", "keyspace"),
        lambda: storage.do("call", "info", "keyspace"),
    )


def test_a_key_is_gone_ten_milliseconds_after_pexpire_said_so(storage: NodeClient) -> None:
    storage.do("call", "sadd", "callstate.I", "init")
    assert storage.do("call", "pexpire", "callstate.I", 10) == 1
    wait_until("it to be gone", lambda: storage.do("call", "scard", "callstate.I") == 0, lambda: "it is there")


def test_flushdb_empties_its_database_and_no_other(storage: NodeClient, old: NodeClient) -> None:
    for each in (old, storage):
        each.do("mset", {f"key{number}": "x" for number in range(30)})
    assert storage.do("call", "flushdb") == "OK"
    assert storage.do("call", "dbsize") == 0
    assert old.do("mget", [f"key{number}" for number in range(30)]) == ["x"] * 30


def test_select_within_a_connection_changes_its_database(loop_proxy: LoopProxy, old: NodeClient) -> None:
    old.do("set", "hawk.H", "old")
    with NodeClient(NODE_REDIS_0, loop_proxy.port) as client:
        assert client.do("select", OLD_DB) == "OK"
        assert client.do("get", "hawk.H") == "old"


def test_it_is_told_that_expiry_events_are_on(storage: NodeClient) -> None:
    assert storage.do("call", "config", "set", "notify-keyspace-events", "Ex") == "OK"
    assert storage.do("call", "config", "get", "notify-keyspace-events") == ["notify-keyspace-events", "xE"]


# --- transactions, through the library's own multi() ------------------------------------------------------------------

Calls = list[list[Any]]

# what a transaction is of: what is there before, its commands, its answers
TRANSACTIONS: dict[str, tuple[Calls, Calls, list[Any]]] = {
    "a session is touched": (
        [["set", key, "x"] for key in USER[::2]],
        [["expire", key, MONTH_S] for key in USER],
        [1, 0] * 4,
    ),
    "a call and its state": (
        [["set", "call.I", SESSION], ["sadd", "callstate.I", "init", "alerting"]],
        [["get", "call.I"], ["scard", "callstate.I"]],
        [SESSION, 2],
    ),
    "a call that is not there": ([], [["get", "call.I"], ["scard", "callstate.I"]], [None, 0]),
    "a user's urls": (
        [],
        [
            ["hmset", "spurls.U.H", "calls", "https://c", "rooms", "https://r"],
            ["expire", "spurls.U.H", 60],
            ["sadd", "spurls.U", "spurls.U.H"],
            ["expire", "spurls.U", 60],
        ],
        ["OK", 1, 1, 1],
    ),
    "a call of a user": (
        [],
        [["setex", "call.I", 60, "{}"], ["sadd", "userCalls.U", "call.I"], ["expire", "userCalls.U", 60]],
        ["OK", 1, 1],
    ),
    "a room of a user": (
        [["sadd", "userRooms.U", "room.T"]],
        [["setex", "room.T", 60, "{}"], ["sadd", "userRooms.U", "room.T"], ["expire", "userRooms.U", 60]],
        ["OK", 0, 1],
    ),
    "a call url of a user": (
        [],
        [["setex", "callurl.T", 60, "{}"], ["sadd", "userUrls.U", "callurl.T"], ["expire", "userUrls.U", 60]],
        ["OK", 1, 1],
    ),
    "a participant": (
        [],
        [
            ["psetex", "roomparticipant.T.H", 60000, ""],
            ["sadd", "roomparticipants.T", "roomparticipant.T.H"],
            ["pexpire", "roomparticipants.T", 60000],
        ],
        ["OK", 1, 1],
    ),
    "a participant leaves": (
        [["sadd", "roomparticipants.T", "roomparticipant.T.H"], ["set", "roomparticipant.T.H", "{}"]],
        [
            ["srem", "roomparticipants.T", "roomparticipant.T.H"],
            ["del", "roomparticipant.T.H"],
            ["del", "roomparticipant_access_token.T.H"],
        ],
        [1, 1, 0],
    ),
    "rooms are deleted": (
        [["set", f"room.{room}", room] for room in "AC"],
        [
            call
            for room in "ABC"
            for call in (["get", f"room.{room}"], ["del", f"room.{room}"], ["del", f"roomparticipants.{room}"])
        ],
        ["A", 1, 0, None, 0, 0, "C", 1, 0],
    ),
    "three keys in one del": (
        [["set", "callurl.A", "x"], ["set", "callurl.C", "x"]],
        [["del", "callurl.A", "callurl.B", "callurl.C"], ["expire", "userUrls.U", 60]],
        [2, 0],
    ),
    "urls of devices": (
        [["hset", f"spurls.U.{device}", "calls", device] for device in "ABC"],
        [["hgetall", f"spurls.U.{device}"] for device in "ABCD"],
        [{"calls": "A"}, {"calls": "B"}, {"calls": "C"}, None],
    ),
    "one key: the urls of a device": ([["hset", "h", "f", "v"]], [["hgetall", "h"]], [{"f": "v"}]),
    "one key: a state": ([], [["sadd", "callstate.I", "init"], ["pexpire", "callstate.I", 60000]], [1, 1]),
    "one key: up": ([], [["incr", "call.devices.I.web"], ["expire", "call.devices.I.web", 60]], [1, 1]),
    "one key: down": ([], [["decr", "call.devices.I.web"], ["expire", "call.devices.I.web", 60]], [-1, 1]),
    "600 states": ([], [["scard", f"callstate.{number}"] for number in range(600)], [0] * 600),
    "nothing": ([], [], []),
}


@pytest.mark.parametrize(("before", "calls", "answers"), TRANSACTIONS.values(), ids=TRANSACTIONS)
def test_each_transaction_is_answered_in_the_order_of_its_commands(
    storage: NodeClient, before: Calls, calls: Calls, answers: list[Any]
) -> None:
    storage.do("pipeline", before)
    assert storage.do("multi", calls) == answers


def test_its_tool_counts_the_users_of_all_shards(storage: NodeClient, loop_proxy: LoopProxy) -> None:
    """By scripts without keys, in one transaction: all users, and those with an account."""
    users, accounts = [f"userid.{number}" for number in range(30)], [f"hawkuser.{number}" for number in range(12)]
    storage.do("mset", dict.fromkeys([*users, *accounts, "hawk.1"], "x"))
    assert len({Keys(loop_proxy).shard_of(key) for key in users}) > 1
    scripts = [f"return #redis.pcall('keys', '{kind}.*')" for kind in ("userid", "hawkuser")]
    assert storage.do("multi", [["eval", script, 0] for script in scripts]) == [30, 12]
    assert [storage.do("call", "eval", script, 0) for script in scripts] == [30, 12]


def test_the_eight_keys_of_a_user_are_on_several_shards(loop_proxy: LoopProxy) -> None:
    assert len({Keys(loop_proxy).shard_of(key) for key in USER}) > 1


def test_del_of_no_key_aborts_its_transaction(storage: NodeClient) -> None:
    with pytest.raises(NodeError, match="EXECABORT"):
        storage.do("multi", [["setex", "call.I", 60, "{}"], ["del"]])
    assert storage.do("get", "call.I") is None
