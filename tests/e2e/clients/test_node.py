import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pyproxy.fleet import Fleet, Proxy, Server, wait_until
from tests.e2e.clients import node
from tests.e2e.clients.node import LIBRARIES, Library, NodeClient, NodeError
from tests.processes import family

pytestmark = [pytest.mark.usefixtures("node_modules"), pytest.mark.timeout(180)]  # the first one installs

EVERY_BYTE = bytes(range(256))


@pytest.fixture(scope="module")
def client(library: Library, proxy10: Proxy) -> Iterator[NodeClient]:
    with NodeClient(library, proxy10.port) as connected:
        yield connected


@pytest.fixture(scope="module")
def filled(client: NodeClient, server: Server) -> Iterator[tuple[NodeClient, NodeClient]]:
    """Two clients of one library, at the proxy and at a plain server, that see the same keys."""
    with NodeClient(client.library, server.port) as plain:
        for call in FILL:
            for each in (client, plain):
                each.do("call", *call)
        yield client, plain


def spread(library: Library, count: int) -> list[str]:
    """So many keys that every shard gets some; their names belong to one library."""
    return [f"{library.name}:{number}" for number in range(count)]


def what_the_proxy_knows(client: NodeClient) -> dict[str, str]:
    line: str = client.do("call", "client", "info")
    return dict(field.split("=", 1) for field in line.split())


def test_it_becomes_ready_without_an_error(client: NodeClient) -> None:
    assert client.do("events") == ["ready"]


def test_it_speaks_the_protocol_that_is_its_default(client: NodeClient) -> None:
    assert what_the_proxy_knows(client)["resp"] == str(client.library.proto)


def test_its_name_is_known(client: NodeClient) -> None:
    assert what_the_proxy_knows(client)["lib-name"] == client.library.lib_name


def test_what_was_set_is_what_get_gives(client: NodeClient) -> None:
    assert client.do("set", "greeting", "grüß dich") == "OK"
    assert client.do("get", "greeting") == "grüß dich"


def test_a_key_that_is_not_there_is_null(client: NodeClient) -> None:
    assert client.do("get", "never-set") is None


@pytest.mark.parametrize("value", [EVERY_BYTE, b"", b"\r\n", EVERY_BYTE * 1024], ids=["all", "none", "crlf", "256K"])
def test_bytes_come_back_as_they_were(client: NodeClient, value: bytes) -> None:
    client.do("set", "binary", value)
    assert client.do("getBytes", "binary") == value


def test_mset_and_mget_keep_the_order_of_keys_over_all_shards(client: NodeClient) -> None:
    keys = spread(client.library, 50)
    assert client.do("mset", {key: f"value of {key}" for key in keys}) == "OK"
    asked = [*keys, "never-set", keys[0]]
    assert client.do("mget", asked) == [*(f"value of {key}" for key in keys), None, f"value of {keys[0]}"]


def test_del_counts_what_it_deleted_on_all_shards(client: NodeClient) -> None:
    keys = spread(client.library, 50)
    client.do("mset", dict.fromkeys(keys, "x"))
    assert client.do("del", [*keys, "never-set"]) == 50
    assert client.do("mget", keys) == [None] * 50


def test_hgetall_is_an_object(client: NodeClient) -> None:
    client.do("del", ["hash"])
    client.do("hset", "hash", {"a": "1", "b": "2", "empty": ""})
    assert client.do("hgetall", "hash") == {"a": "1", "b": "2", "empty": ""}


FILL = [
    ["del", "k:set", "k:zset", "k:list", "k:stream", "k:hash", "k:geo"],
    ["sadd", "k:set", "only"],
    ["zadd", "k:zset", "1.5", "a", "inf", "b"],
    ["rpush", "k:list", "x", "y", ""],
    ["xadd", "k:stream", "1-1", "field", "value"],
    ["hset", "k:hash", "field", "value"],
    ["geoadd", "k:geo", "13.361389", "38.115556", "Palermo"],
]
ASKED = [
    ["smembers", "k:set"],
    ["zscore", "k:zset", "a"],
    ["zrange", "k:zset", "0", "-1", "withscores"],
    ["lrange", "k:list", "0", "-1"],
    ["lpop", "k:never-set", "2"],
    ["xrange", "k:stream", "-", "+"],
    ["xread", "streams", "k:stream", "0"],
    ["hgetall", "k:hash"],
    ["hincrbyfloat", "k:hash", "number", "0.5"],
    ["geopos", "k:geo", "Palermo", "nowhere"],
    ["type", "k:zset"],
    ["object", "encoding", "k:set"],
]


@pytest.mark.parametrize("call", ASKED, ids=lambda call: call[0])
def test_replies_of_every_type_look_as_they_do_from_a_plain_server(
    filled: tuple[NodeClient, NodeClient], call: list[str]
) -> None:
    proxied, plain = filled
    assert proxied.do("call", *call) == plain.do("call", *call)


def test_two_hundred_commands_in_one_pipeline_are_answered_in_order(client: NodeClient) -> None:
    keys = spread(client.library, 100)
    calls = [call for key in keys for call in (["set", key, f"of {key}"], ["get", key])]
    assert client.do("pipeline", calls) == [reply for key in keys for reply in ("OK", f"of {key}")]


def test_an_error_in_a_pipeline_belongs_to_its_command_alone(client: NodeClient) -> None:
    calls = [["set", "text", "x"], ["lpush", "text", "y"], ["get", "text"]]
    ok, wrong, text = client.do("pipeline", calls)
    assert (ok, text) == ("OK", "x")
    assert wrong["error"].removeprefix("ReplyError: ").startswith("WRONGTYPE ")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (["lpush", "text", "y"], "WRONGTYPE Operation against a key holding the wrong kind of value"),
        (["getx", "a"], "ERR unknown command 'getx', with args beginning with: 'a' "),
        (["get"], "ERR wrong number of arguments for 'get' command"),
        (["debug", "sleep", "0"], "ERR command 'debug' is not served by this proxy: "),
    ],
    ids=["of-a-server", "unknown", "arity", "refused"],
)
def test_an_error_reply_is_thrown_with_its_text_and_the_connection_stays(
    client: NodeClient, call: list[str], error: str
) -> None:
    client.do("set", "text", "x")
    with pytest.raises(NodeError) as thrown:
        client.do("call", *call)
    assert str(thrown.value).startswith(error)
    assert client.do("get", "text") == "x"
    assert client.do("events") == ["ready"]


def test_a_transaction_is_queued_and_run_as_a_whole(client: NodeClient) -> None:
    client.do("del", ["in-multi"])
    calls = [["multi"], ["set", "in-multi", "x"], ["append", "in-multi", "y"], ["exec"], ["get", "in-multi"]]
    assert client.do("pipeline", calls) == ["OK", "QUEUED", "QUEUED", ["OK", 2], "xy"]


def test_a_script_runs_wherever_its_key_is(client: NodeClient) -> None:
    """node_redis 0.12 asks by its digest first, and sends the text where that is not known."""
    count = "return redis.call('incrby', KEYS[1], ARGV[1])"
    keys = [f"script:{key}" for key in spread(client.library, 50)]
    client.do("del", keys)
    assert [client.do("eval", count, [key], ["2"]) for key in keys] == [2] * 50


def test_info_is_text_with_the_sections_of_redis(client: NodeClient) -> None:
    text: str = client.do("info")
    assert {"# Server", "# Clients", "# Memory", "# Stats", "# Replication", "# Keyspace"} <= set(text.split("\r\n"))


def test_a_database_asked_for_at_connect_is_the_database_it_works_in(library: Library, proxy10: Proxy) -> None:
    with NodeClient(library, proxy10.port, db=5) as client:
        client.do("set", f"{library.name}:in5", "five")
        assert client.do("events") == ["ready"]
        assert client.do("select", 0) == "OK"
        assert client.do("get", f"{library.name}:in5") is None
        assert client.do("select", 5) == "OK"
        assert client.do("get", f"{library.name}:in5") == "five"


def test_a_resp3_double_is_a_number(proxy10: Proxy) -> None:
    (shows_it,) = [each for each in LIBRARIES if each.name == "redis"]  # the others make a string of it
    if not node.runs(shows_it):
        pytest.skip(f"it needs node {shows_it.node}")
    with NodeClient(shows_it, proxy10.port) as client:
        client.do("call", "zadd", "scores", "1.5", "member")
        assert client.do("call", "zscore", "scores", "member") == 1.5


@pytest.fixture(scope="module")
def bereaved(node_modules: None, fleet10: Fleet) -> Iterator[dict[str, NodeClient]]:
    """A client of each library, in database 5, whose worker was killed after each had set a key of its own name."""
    with Proxy(fleet10) as proxy, ExitStack() as stack:
        clients = {}
        for library in filter(node.runs, LIBRARIES):
            clients[library.name] = stack.enter_context(NodeClient(library, proxy.port, db=5))
            clients[library.name].do("set", library.name, "kept")
        (worker,) = [pid for pid, _ in family(proxy.pid) if pid != proxy.pid]
        os.kill(worker, signal.SIGKILL)
        yield clients


def test_it_connects_again_and_to_its_database_after_its_worker_was_killed(
    library: Library, bereaved: dict[str, NodeClient]
) -> None:
    client = bereaved[library.name]
    seen: list[str] = []

    def ready_again() -> bool:
        seen[:] = client.do("events")
        return seen.count("ready") == 2

    wait_until(f"{library.name} to be ready again", ready_again, lambda: f"its events: {seen}")
    assert client.do("get", library.name) == "kept"
