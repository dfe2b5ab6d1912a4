"""Scripts and functions that name no key: never the answer of one shard for that of all."""

from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Proxy, wait_until
from pyproxy.scripts import digest_of
from tests.e2e.rig import PATIENCE_S, PATIENT, Connection, Keys, error, killed

COUNT = "return #redis.pcall('keys', 'userid.*')"
NAMES = "return redis.call('keys', ARGV[1])"
CLEAR = "local n = 0 for _, k in ipairs(redis.call('keys', ARGV[1])) do n = n + redis.call('del', k) end return n"
PUBLISH = "return redis.call('publish', 'news', ARGV[1])"
FIND = "return redis.call('get', ARGV[1])"
SIZE = "return redis.call('dbsize')"

RULES = f"""
[[scripts.calls]]
text = "return #redis.pcall('keys', '*')"
without_keys = "all-sum"

[[scripts.calls]]
sha1 = "{digest_of(NAMES.encode()).decode()}"
without_keys = "all-concat"

[[scripts.calls]]
text = "local n = 0*'del'*"
without_keys = "all-sum"

[[scripts.calls]]
text = "return redis.call('get', ARGV*"
without_keys = "all-first"

[[scripts.calls]]
text = "return redis.call('dbsize')"
without_keys = "all-equal"

[[scripts.calls]]
text = "return 'nowhere'"
without_keys = "refuse"

[[scripts.calls]]
function = "count*"
without_keys = "all-sum"
"""

LIBRARY = """#!lua name=counting
redis.register_function('count_keys', function() return redis.call('dbsize') end)
redis.register_function('size', function() return redis.call('dbsize') end)
"""
CLOCK = "#!lua name=clock\nredis.register_function('now', function() return #redis.call('time') end)"


def sha(text: str) -> str:
    return digest_of(text.encode()).decode()


def ruled(fleet: Fleet, transactions: str) -> Proxy:
    """Not started yet, with RULES."""
    proxy = Proxy(fleet, timeouts=PATIENT, transactions=transactions)
    proxy.config.write_text(proxy.config.read_text() + RULES)
    return proxy


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet, timeouts=PATIENT) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def all_of_them(fleet: Fleet) -> Iterator[Proxy]:
    with ruled(fleet, "split") as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def users(conn: Connection, keys: Keys) -> list[str]:
    """Two on each shard."""
    conn.ask("FLUSHALL")
    conn.ask("SCRIPT", "FLUSH")
    conn.ask("FUNCTION", "FLUSH")
    names = [name for shard in range(3) for name in keys.on(shard, 2, "userid.")]
    assert conn.ask("MSET", *[word for name in names for word in (name, "v")]) == b"OK"
    return names


@pytest.fixture(params=[2, 3])
def ruler(request: pytest.FixtureRequest, all_of_them: Proxy) -> Iterator[Connection]:
    """A client of the proxy with rules."""
    with Connection(all_of_them.port) as conn:
        conn.ask("HELLO", request.param)
        conn.ask("SCRIPT", "FLUSH")
        yield conn


# --- by default -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [COUNT, NAMES, CLEAR, SIZE, "return redis.call(ARGV[1])"])
def test_what_may_use_keys_is_refused_and_the_error_names_the_option(
    conn: Connection, users: list[str], text: str
) -> None:
    for name in ("EVAL", "EVAL_RO"):
        line = error(conn.ask(name, text, 0, "*"))
        assert line.startswith(f"ERR command '{name.lower()}' names no key, ")
        assert f'[[scripts.calls]] with sha1 = "{sha(text)}", or scripts.without_keys' in line
    assert conn.ask("EXISTS", *users) == len(users)


def test_what_uses_none_runs_as_ever(conn: Connection) -> None:
    assert conn.ask("EVAL", "return {1, ARGV[1]}", 0, "a") == [1, b"a"]
    assert isinstance(conn.ask("EVAL", "return redis.call('time')[1]", 0), bytes)
    assert conn.ask("EVALSHA", sha("return {1, ARGV[1]}"), 0, "b") == [1, b"b"]


def test_what_publishes_does_so_once(proxy: Proxy, conn: Connection) -> None:
    with Connection(proxy.port) as listener:
        listener.ask("SUBSCRIBE", "news")
        for word in ("one", "two"):
            assert not isinstance(conn.ask("EVAL", PUBLISH, 0, word), Exception)
            assert conn.ask("PUBLISH", "news", f"behind {word}") == 1
        heard = [listener.read() for _ in range(2)]
        while heard[-1] != [b"message", b"news", b"behind two"]:
            heard.append(listener.read())
        for reply in (b"one", b"two"):
            assert heard.count([b"message", b"news", reply]) <= 1


def test_a_text_that_is_only_named_is_asked_for_first(conn: Connection, fleet: Fleet) -> None:
    """Else it could not be looked at: it may have been loaded past the proxy, or before it was started."""
    for server in fleet.servers:
        for text in (COUNT, "return 'harmless'"):
            server.ask("SCRIPT", "LOAD", text)
    for text in (COUNT, "return 'harmless'"):
        assert error(conn.ask("EVALSHA", sha(text), 0)) == "NOSCRIPT No matching script. Please use EVAL."
        assert conn.ask("SCRIPT", "LOAD", text) == sha(text).encode()
    assert conn.ask("EVALSHA", sha("return 'harmless'"), 0) == b"harmless"
    assert "names no key" in error(conn.ask("EVALSHA", sha(COUNT), 0))


@pytest.mark.parametrize("proto", [2, 3])
def test_a_function_runs_if_its_library_uses_no_keys(conn: Connection, proto: int) -> None:
    conn.ask("HELLO", proto)
    assert conn.ask("FUNCTION", "LOAD", "REPLACE", CLOCK) == b"clock"
    assert conn.ask("FUNCTION", "LOAD", "REPLACE", LIBRARY) == b"counting"
    assert conn.ask("FCALL", "now", 0) == 2
    assert conn.ask("FCALL", "NOW", 0) == 2
    line = error(conn.ask("FCALL", "size", 0))
    assert line.startswith("ERR command 'fcall' names no key, ") and 'function = "size"' in line
    assert error(conn.ask("FCALL", "nosuch", 0)) == "ERR Function not found"
    conn.send(("MULTI",), ("FCALL", "now", 0), ("EXEC",), ("MULTI",), ("FCALL", "size", 0), ("EXEC",))
    replies = conn.reads(6)
    assert replies[2] == [2]
    assert "names no key" in error(replies[5])


def test_in_a_transaction_it_is_refused_when_it_is_queued(conn: Connection, keys: Keys) -> None:
    conn.send(("MULTI",), ("SET", keys.one(0), "v"), ("EVAL", COUNT, 0), ("EXEC",))
    begun, queued, refused, aborted = conn.reads(4)
    assert (begun, queued) == (b"OK", b"QUEUED")
    assert "names no key" in error(refused)
    assert error(aborted).startswith("EXECABORT ")
    assert conn.ask("EXISTS", keys.one(0)) == 0


def test_in_a_transaction_a_text_that_is_only_named_is_asked_for_too(conn: Connection) -> None:
    conn.send(("MULTI",), ("EVALSHA", sha(COUNT), 0), ("EVAL", "return 7", 0), ("EXEC",))
    answers = conn.reads(4)[3]
    assert isinstance(answers, list)
    assert error(answers[0]).startswith("NOSCRIPT ")
    assert answers[1] == 7


def test_before_one_shard_nothing_is_refused() -> None:
    with Fleet(shards=1, replicas=0) as fleet, Proxy(fleet) as proxy, Connection(proxy.port) as conn:
        conn.ask("MSET", "userid.1", "v", "userid.2", "v", "other", "v")
        assert conn.ask("EVAL", COUNT, 0) == 2
        assert conn.ask("FUNCTION", "LOAD", LIBRARY) == b"counting"
        assert conn.ask("FCALL", "size", 0) == 3
        conn.send(("MULTI",), ("EVAL", CLEAR, 0, "userid.*"), ("EXEC",))
        assert conn.reads(3)[2] == [2]


# --- as the configuration says ----------------------------------------------------------------------------------------


def test_on_one_shard_if_that_is_what_is_meant(fleet: Fleet) -> None:
    with Proxy(fleet, scripts={"without_keys": "one"}) as proxy, Connection(proxy.port) as conn:
        assert [conn.ask("EVAL", COUNT, 0) for _ in range(5)] == [2] * 5
        assert [conn.ask("EVAL", "return redis.call('incr', 'n')", 0) for _ in range(5)] == [1, 2, 3, 4, 5]
        assert conn.ask("DEL", "n") in (0, 1)
        conn.ask("EVAL", "return redis.call('del', 'n')", 0)
        assert conn.ask("SCRIPT", "LOAD", SIZE) == sha(SIZE).encode()
        assert conn.ask("EVALSHA", sha(SIZE), 0) == 2


def test_on_all_if_nothing_else_is_said(fleet: Fleet) -> None:
    with Proxy(fleet, scripts={"without_keys": "all-sum"}) as proxy, Connection(proxy.port) as conn:
        assert conn.ask("EVAL", SIZE, 0) == 6
        assert conn.ask("EVALSHA", sha(SIZE), 0) == 6
        assert conn.ask("EVAL", CLEAR, 0, "*") == 6


def test_the_answers_of_all_shards_become_one(ruler: Connection, users: list[str]) -> None:
    assert ruler.ask("EVAL", COUNT, 0) == len(users)
    assert ruler.ask("EVALSHA", sha(COUNT), 0) == len(users)
    names = ruler.ask("EVAL_RO", NAMES, 0, "userid.*")
    assert isinstance(names, list)
    assert sorted(names) == sorted(user.encode() for user in users)
    assert [ruler.ask("EVAL", FIND, 0, name) for name in (*users, "none")] == [b"v"] * len(users) + [None]
    assert ruler.ask("EVAL", SIZE, 0) == 2
    assert ruler.ask("FUNCTION", "LOAD", LIBRARY) == b"counting"
    assert ruler.ask("FCALL", "count_keys", 0) == len(users)
    assert ruler.ask("EVAL", CLEAR, 0, "*") == len(users)
    assert ruler.ask("DBSIZE") == 0


def test_answers_that_cannot_be_merged_are_an_error(ruler: Connection, users: list[str]) -> None:
    assert ruler.ask("DEL", users[0]) == 1
    assert "cannot be merged by all-equal" in error(ruler.ask("EVAL", SIZE, 0))


def test_a_script_may_be_refused_alone(ruler: Connection) -> None:
    assert "names no key" in error(ruler.ask("EVAL", "return 'nowhere'", 0))
    assert ruler.ask("EVAL", "return 'somewhere'", 0) == b"somewhere"


def test_in_a_transaction_over_shards_too(ruler: Connection, users: list[str]) -> None:
    hawk = "return #redis.pcall('keys', 'hawkuser.*')"
    ruler.send(("MULTI",), ("EVAL", COUNT, 0), ("DEL", users[0]), ("EVAL", COUNT, 0), ("EVAL", hawk, 0), ("EXEC",))
    assert ruler.reads(6)[5] == [len(users), 1, len(users) - 1, 0]
    assert ruler.ask("WATCH", users[1]) == b"OK"
    ruler.send(("MULTI",), ("EVALSHA", sha(COUNT), 0), ("EVAL", SIZE, 0), ("SET", users[0], "v"), ("EXEC",))
    answers = ruler.reads(5)[4]
    assert isinstance(answers, list)
    assert answers[::2] == [len(users) - 1, b"OK"]
    assert "cannot be merged by all-equal" in error(answers[1])


def test_in_a_transaction_of_one_shard_it_is_refused(fleet: Fleet, users: list[str]) -> None:
    with ruled(fleet, "shard") as proxy, Connection(proxy.port) as conn:
        conn.send(("MULTI",), ("EVAL", CLEAR, 0, "*"), ("EXEC",))
        assert error(conn.reads(3)[2]).startswith("CROSSSLOT ")
        assert conn.ask("EXISTS", *users) == len(users)


def test_where_a_shard_is_down_nothing_is_run_on_the_others(
    users: list[str], fleet: Fleet, proxy: Proxy, all_of_them: Proxy
) -> None:
    with ruled(fleet, "split") as own, Connection(own.port) as conn:
        lost = fleet.shards[1].primary
        with killed(lost, proxy, all_of_them):
            for reply in (conn.ask("EVAL", CLEAR, 0, "*"), executed(conn, ("EVAL", CLEAR, 0, "*"))):
                line = error(reply)
                assert line.startswith(("TRYAGAIN ", "EXECABORT ")) and "s1" in line and "applied=no" in line
            for shard in (0, 2):
                assert fleet.shards[shard].primary.ask("DBSIZE") == 2
        wait_until("the shard", lambda: conn.ask("EVAL", CLEAR, 0, "*") == 4, own.tail, PATIENCE_S)


def executed(conn: Connection, *commands: tuple[str | int, ...]) -> object:
    conn.send(("MULTI",), *commands, ("EXEC",))
    return conn.reads(len(commands) + 2)[-1]


def test_where_one_says_an_error_those_before_it_are_named(ruler: Connection, fleet: Fleet, keys: Keys) -> None:
    text = (
        "local n = 0 redis.call('incr', ARGV[1]) if redis.call('exists', ARGV[2]) == 1 then return "
        "redis.error_reply('MY error') end return n -- 'del'"
    )
    line = error(ruler.ask("EVAL", text, 0, "{n}", keys.one(1, "userid.")))
    assert line == "UNCERTAIN shard s1: MY error; other shards may have applied their part: s0"
    assert [server.ask("EXISTS", "{n}") for server in fleet.servers] == [1, 1, 0]
