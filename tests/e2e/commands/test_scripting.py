"""Scripts and functions through the proxy: run where their keys are, loaded everywhere, and healed where they lack."""

import os
import signal
from collections.abc import Iterator

import hiredis
import pytest

from protocol.request import encode
from pyproxy.fleet import Fleet, Proxy, Server, Table, wait_until
from pyproxy.scripts import digest_of
from tests.e2e.rig import PATIENCE_S, PATIENT, Connection, Keys, error, killed, one_on_each_worker, wait_for_line
from tests.processes import command_line, family
from tests.wire import exchange

SET = "return redis.call('set', KEYS[1], ARGV[1])"
COUNT = "return redis.call('incr', KEYS[1])"


def sha(text: str) -> str:
    return digest_of(text.encode()).decode()


@pytest.fixture(autouse=True)
def clean(fleet: Fleet, server: Server, proxy: Proxy) -> None:
    for each in (*fleet.servers, server):
        wait_until("no script to run", lambda: "NOTBUSY" in stopped(each), lambda: str(each))  # noqa: B023
        each.ask("FLUSHALL")
        each.ask("FUNCTION", "FLUSH")
        each.ask("SCRIPT", "FLUSH")
    with Connection(proxy.port) as conn:
        assert conn.ask("SCRIPT", "FLUSH") == b"OK"


def stopped(server: Server) -> str:
    """What the server says to SCRIPT KILL."""
    try:
        return str(server.ask("SCRIPT", "KILL"))
    except hiredis.ReplyError as exc:
        return str(exc)


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet) as proxy:
        yield proxy


def replies(port: int, *lines: list[str], proto: int) -> bytes:
    """The bytes of all answers but that to HELLO."""
    hello = [["HELLO", str(proto)], ["ECHO", "it begins"]]
    answers = exchange(port, b"".join(encode([word.encode() for word in line]) for line in [*hello, *lines]))
    return answers.partition(b"it begins\r\n")[2]


SAME = [
    ["EVAL", "return {1, 'two', 3.7, false, true, {ok='fine'}, {err='NO no'}}", "0"],
    ["EVAL", "redis.setresp(3); return {double=3.5}", "0"],
    ["EVAL", "return {KEYS[1], KEYS[2], ARGV[1]}", "2", "k", "k", "a"],
    ["EVAL", SET, "1", "k", "v"],
    ["EVAL_RO", "return redis.call('get', KEYS[1])", "1", "k"],
    ["EVAL_RO", SET, "1", "k", "v"],
    ["EVALSHA", sha(SET), "1", "k", "w"],
    ["EVALSHA", sha(SET).upper(), "1", "k", "w"],
    ["EVALSHA_RO", sha(SET), "1", "k", "w"],
    ["EVALSHA", "0" * 40, "1", "k"],
    ["EVALSHA", "short", "1", "k"],
    ["EVAL", "return x x", "0"],
    ["EVAL", "error('thrown')", "1", "k"],
    ["EVAL", "return redis.error_reply('a\r\n+b')", "1", "k"],
    ["EVAL", "return redis.call('nosuch')", "1", "k"],
    ["EVAL", "return redis.call('incr', KEYS[1])", "1", "k"],
    ["EVAL", "return 1", "x"],
    ["EVAL", "return 1", "-1"],
    ["EVAL", "return 1", "2", "k"],
    ["EVAL", "return 1"],
    ["SCRIPT"],
    ["SCRIPT", "nosuch"],
    ["SCRIPT", "LOAD", "return 'loaded'"],
    ["SCRIPT", "LOAD", "return x x"],
    ["SCRIPT", "EXISTS", sha("return 'loaded'"), "0" * 40, sha(SET).upper()],
    ["SCRIPT", "EXISTS"],
    ["SCRIPT", "KILL"],
    ["SCRIPT", "SHOW", sha("return 'loaded'")],
    ["SCRIPT", "SHOW", "0" * 40],
    ["SCRIPT", "FLUSH", "NEVER"],
    ["SCRIPT", "FLUSH", "ASYNC"],
    ["SCRIPT", "FLUSH"],
    ["SCRIPT", "EXISTS", sha("return 'loaded'")],
    ["FUNCTION"],
    ["FUNCTION", "LIST"],
    ["FUNCTION", "LOAD", "#!lua name=lib\nredis.register_function('f', function(k, a) return {k, a} end)"],
    ["FUNCTION", "LOAD", "#!lua name=lib\nredis.register_function('f', function(k, a) return {k, a} end)"],
    ["FUNCTION", "LOAD", "REPLACE", "#!lua name=lib\nredis.register_function{function_name='f', callback="
     "function(k, a) return redis.call('get', k[1]) end, flags={'no-writes'}}"],
    ["FUNCTION", "LOAD", "no shebang"],
    ["FUNCTION", "LIST", "WITHCODE"],
    ["FUNCTION", "STATS"],
    ["FCALL", "f", "1", "k"],
    ["FCALL_RO", "f", "1", "k"],
    ["FCALL", "nosuch", "1", "k"],
    ["FCALL", "f", "x"],
    ["FCALL_RO", "f", "-1", "k"],
    ["FCALL", "f", "2", "k"],
    ["FUNCTION", "DUMP"],
    ["FUNCTION", "KILL"],
    ["FUNCTION", "DELETE", "lib"],
    ["FUNCTION", "DELETE", "lib"],
    ["FUNCTION", "RESTORE", "rubbish"],
    ["FUNCTION", "FLUSH", "SYNC"],
]  # fmt: skip


@pytest.mark.parametrize("proto", [2, 3])
def test_each_command_answers_as_one_server_does_typed(proxy: Proxy, server: Server, proto: int) -> None:
    for line in SAME:
        assert replies(proxy.port, line, proto=proto) == replies(server.port, line, proto=proto), line


@pytest.mark.parametrize("proto", [2, 3])
def test_and_so_does_all_of_it_in_one_pipeline(proxy: Proxy, server: Server, proto: int) -> None:
    assert replies(proxy.port, *SAME, proto=proto) == replies(server.port, *SAME, proto=proto)


# --- where it runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", range(3))
def test_a_script_runs_on_the_shard_of_its_keys(conn: Connection, keys: Keys, fleet: Fleet, shard: int) -> None:
    key = keys.one(shard)
    assert conn.ask("EVAL", SET, 1, key, "v") == b"OK"
    assert conn.ask("EVALSHA", sha(SET), 1, key, "w") == b"OK"
    assert fleet.shards[shard].primary.ask("GET", key) == b"w"


@pytest.mark.parametrize("name", ["EVAL", "EVAL_RO", "EVALSHA", "EVALSHA_RO", "FCALL", "FCALL_RO"])
def test_keys_on_several_shards_are_refused(conn: Connection, keys: Keys, name: str) -> None:
    assert error(conn.ask(name, "return 1", 2, keys.one(0), keys.one(1))).startswith("CROSSSLOT ")


def test_the_database_is_the_clients(conn: Connection, keys: Keys, fleet: Fleet) -> None:
    key = keys.one(1)
    assert conn.ask("SELECT", 5) == b"OK"
    assert conn.ask("EVAL", SET, 1, key, "v") == b"OK"
    assert conn.ask("GET", key) == b"v"
    assert fleet.shards[1].primary.ask("GET", key) is None
    assert conn.ask("FLUSHDB") == b"OK"


def test_its_answer_stands_in_the_order_of_replies(conn: Connection, keys: Keys) -> None:
    key = keys.one(2)
    conn.send(("SET", key, 1), ("EVAL", COUNT, 1, key), ("GET", key), ("EVALSHA", sha(COUNT), 1, key), ("GET", key))
    assert conn.reads(5) == [b"OK", 2, b"2", 3, b"3"]


def test_many_scripts_of_many_clients_need_few_connections(proxy: Proxy, keys: Keys, fleet: Fleet) -> None:
    key, server = keys.one(0), fleet.shards[0].primary

    def connections() -> int:
        replies = server.ask("INFO", "stats")
        assert isinstance(replies, bytes)
        return int(replies.split(b"total_connections_received:")[1].split()[0])

    with Connection(proxy.port) as one, Connection(proxy.port) as other:
        assert one.ask("EVAL", COUNT, 1, key) == 1
        before = connections()
        for _ in range(3):
            for each in (one, other):
                each.send(*[("EVALSHA", sha(COUNT), 1, key)] * 100, ("EVAL", "return redis.error_reply('x')", 1, key))
            for each in (one, other):
                each.reads(101)
        # those that ask from here for INFO and GET are some of them
        assert connections() - before < 10
        assert server.ask("GET", key) == b"601"


# --- errors are the script's own --------------------------------------------------------------------------------------


@pytest.mark.parametrize("says", ["READONLY no", "NOSCRIPT No matching script.", "LOADING x", "MOVED 1 a:1"])
def test_a_script_that_wrote_and_says_otherwise_is_run_once(
    conn: Connection, keys: Keys, fleet: Fleet, says: str
) -> None:
    key = keys.one(0)
    script = f"redis.call('incr', KEYS[1]) return redis.error_reply('{says}')"
    assert says.split()[0] in error(conn.ask("EVAL", script, 1, key)) or says.startswith("MOVED")
    assert isinstance(conn.ask("EVALSHA", sha(script), 1, key), Exception)
    assert fleet.shards[0].primary.ask("GET", key) == b"2"


# --- texts that servers lack ------------------------------------------------------------------------------------------


def lose(fleet: Fleet) -> None:
    """The servers have none of the scripts any more, and the proxy does not know."""
    for server in fleet.servers:
        server.ask("SCRIPT", "FLUSH")


@pytest.mark.parametrize("by", [("SCRIPT", "LOAD", COUNT), ("EVAL", COUNT, 1, "k0")])
def test_a_text_that_was_seen_is_given_to_any_server_that_lacks_it(
    conn: Connection, keys: Keys, fleet: Fleet, by: tuple[str, ...]
) -> None:
    conn.ask(*by)
    lose(fleet)
    conn.ask("DEL", "k0")
    for shard in range(3):
        assert [conn.ask("EVALSHA", sha(COUNT), 1, keys.one(shard)) for _ in range(2)] == [1, 2]
    assert conn.ask("SCRIPT", "EXISTS", sha(COUNT)) == [1]


def test_what_nobody_has_seen_is_noscript_and_eval_makes_it_known(conn: Connection, keys: Keys) -> None:
    assert error(conn.ask("EVALSHA", sha(COUNT), 1, keys.one(0))).startswith("NOSCRIPT ")
    assert conn.ask("EVAL", COUNT, 1, keys.one(1)) == 1
    assert [conn.ask("EVALSHA", sha(COUNT), 1, keys.one(shard)) for shard in range(3)] == [1, 2, 1]


def test_a_text_that_no_server_takes_is_not_kept(conn: Connection, keys: Keys) -> None:
    assert error(conn.ask("EVAL", "return x x", 1, keys.one(0))).startswith("ERR Error compiling script")
    assert error(conn.ask("SCRIPT", "LOAD", "return y y")).startswith("ERR Error compiling script")
    assert conn.ask("SCRIPT", "EXISTS", sha("return x x"), sha("return y y")) == [0, 0]


def test_a_script_that_fails_is_known_all_the_same(conn: Connection, keys: Keys, fleet: Fleet) -> None:
    thrown = "error('thrown')"
    assert "thrown" in error(conn.ask("EVAL", thrown, 1, keys.one(0)))
    lose(fleet)
    assert "thrown" in error(conn.ask("EVALSHA", sha(thrown), 1, keys.one(1)))


def test_old_texts_go_and_are_loaded_again_as_with_redis(fleet: Fleet) -> None:
    with Proxy(fleet, limits={"scripts_bytes": 65536}) as proxy, Connection(proxy.port) as conn:
        key = Keys(proxy).one(0)
        assert conn.ask("EVAL", COUNT, 1, key) == 1
        for number in range(20):
            assert conn.ask("EVAL", f"return {number} --{'x' * 4000}", 1, key) == number
        lose(fleet)
        assert error(conn.ask("EVALSHA", sha(COUNT), 1, key)).startswith("NOSCRIPT ")
        assert conn.ask("EVALSHA", sha(f"return 19 --{'x' * 4000}"), 1, key) == 19
        assert conn.ask("SCRIPT", "EXISTS", sha(COUNT)) == [0]


# --- all workers know -------------------------------------------------------------------------------------------------


@pytest.fixture
def two(fleet: Fleet) -> Iterator[tuple[Proxy, Connection, Connection]]:
    """A proxy with two workers, and a client at each."""
    with Proxy(fleet, None, 2) as proxy:
        wait_until("both workers", lambda: "+ready " in proxy.log.read_text(), proxy.tail)
        with one_on_each_worker(proxy) as conns:
            yield proxy, conns["0"], conns["1"]


def test_what_one_worker_has_seen_all_know(two: tuple[Proxy, Connection, Connection], fleet: Fleet) -> None:
    proxy, one, other = two
    keys = Keys(proxy)
    assert one.ask("SCRIPT", "LOAD", COUNT) == sha(COUNT).encode()
    assert [other.ask("EVALSHA", sha(COUNT), 1, keys.one(shard)) for shard in range(3)] == [1, 1, 1]
    assert one.ask("EVAL", SET, 1, keys.one(0), "v") == b"OK"
    wait_until("the other worker", lambda: other.ask("SCRIPT", "EXISTS", sha(SET)) == [1], proxy.tail)
    lose(fleet)
    assert [other.ask("EVALSHA", sha(SET), 1, keys.one(shard), "w") for shard in range(3)] == [b"OK"] * 3


def test_a_text_that_was_answered_is_known_to_all_at_once(two: tuple[Proxy, Connection, Connection]) -> None:
    proxy, one, other = two
    key = Keys(proxy).one(0)
    texts = [f"return {number}" for number in range(100)]
    for text in texts[:50]:
        assert one.ask("EVAL", text, 1, key) == int(text.split()[1])
        assert other.ask("SCRIPT", "EXISTS", sha(text)) == [1]
    for text in texts[50:]:
        one.send(("MULTI",), ("EVAL", text, 1, key), ("EXEC",))
        assert one.reads(3)[2] == [int(text.split()[1])]
        assert other.ask("SCRIPT", "EXISTS", sha(text)) == [1]


def test_a_flush_makes_all_forget_and_what_is_loaded_after_it_stays(
    two: tuple[Proxy, Connection, Connection], fleet: Fleet
) -> None:
    proxy, one, other = two
    key = Keys(proxy).one(0)
    assert one.ask("SCRIPT", "LOAD", COUNT) == sha(COUNT).encode()
    wait_until("the other worker", lambda: other.ask("SCRIPT", "EXISTS", sha(COUNT)) == [1], proxy.tail)
    assert other.ask("SCRIPT", "FLUSH") == b"OK"
    assert other.ask("SCRIPT", "LOAD", SET) == sha(SET).encode()

    def forgotten() -> bool:
        lose(fleet)
        return isinstance(one.ask("EVALSHA", sha(COUNT), 1, key), Exception)

    wait_until("the first worker", forgotten, proxy.tail)
    lose(fleet)
    for each in (one, other):
        assert each.ask("SCRIPT", "EXISTS", sha(COUNT), sha(SET)) == [0, 1]
        assert each.ask("EVALSHA", sha(SET), 1, key, "v") == b"OK"


def test_a_worker_that_is_started_again_knows_them(fleet: Fleet) -> None:
    with Proxy(fleet) as proxy:
        with Connection(proxy.port) as conn:
            assert conn.ask("SCRIPT", "LOAD", COUNT) == sha(COUNT).encode()
        worker = next(pid for pid, _ in family(proxy.pid) if "pyproxy.worker" in command_line(pid))
        os.kill(worker, signal.SIGKILL)
        lose(fleet)
        proxy.wait_for_pong(proxy.port)
        with Connection(proxy.port) as conn:
            assert conn.ask("EVALSHA", sha(COUNT), 1, Keys(proxy).one(1)) == 1


# --- when a server is lost, or slow -----------------------------------------------------------------------------------

PROMOTION: Table = {
    "promoter": "replicaof", "down_after_s": 0.5, "on_promotion": "hold", "hold_s": PATIENCE_S,
    "hold_incident_s": PATIENCE_S, "min_between_s": 0.0, "hold_again_s": 0.0,
}  # fmt: skip


def test_a_promotion_goes_unnoticed(server: Server) -> None:
    """A replica has none of the scripts that its primary had."""
    with (
        Fleet(shards=2, replicas=2) as fleet,
        Proxy(fleet, promotion=PROMOTION) as proxy,
        Connection(proxy.port) as conn,
    ):
        key, primary = Keys(proxy).one(0), fleet.shards[0].primary
        assert conn.ask("SCRIPT", "LOAD", COUNT) == sha(COUNT).encode()
        assert conn.ask("EVALSHA", sha(COUNT), 1, key) == 1
        library = "#!lua name=l\nredis.register_function('f', function(k) return redis.call('incr', k[1]) end)"
        assert conn.ask("FUNCTION", "LOAD", library) == b"l"
        for replica in fleet.shards[0].replicas:
            wait_until("the replica", lambda: replica.ask("GET", key) == b"1", lambda: str(replica))  # noqa: B023
            wait_until("its library", lambda: replica.ask("FUNCTION", "LIST") != [], lambda: str(replica))  # noqa: B023
            assert replica.ask("SCRIPT", "EXISTS", sha(COUNT)) == [0]
        primary.kill()
        wait_for_line(proxy, r"\+link-lost ")  # one that is in flight when it dies is -UNCERTAIN
        assert [conn.ask("EVALSHA", sha(COUNT), 1, key) for _ in range(3)] == [2, 3, 4]
        assert [conn.ask("EVAL", COUNT, 1, key), conn.ask("FCALL", "f", 1, key)] == [5, 6]
        promoted = next(each for each in fleet.shards[0].replicas if each.says_master())
        assert promoted.ask("GET", key) == b"6"


def test_a_lost_shard_is_an_error_and_the_others_go_on(fleet: Fleet, proxy: Proxy) -> None:
    with Proxy(fleet) as own, Connection(own.port) as conn:
        keys, lost = Keys(own), fleet.shards[1].primary
        assert conn.ask("EVAL", COUNT, 1, keys.one(1)) == 1
        with killed(lost, proxy):
            for line in (("EVAL", COUNT, 1, keys.one(1)), ("EVALSHA_RO", sha(COUNT), 1, keys.one(1))):
                reply = error(conn.ask(*line))
                assert reply.startswith("TRYAGAIN shard s1 ") and "applied=no" in reply
            for words in ("SCRIPT EXISTS nosuch", "FUNCTION STATS", "FUNCTION DELETE lib", "SCRIPT FLUSH"):
                assert error(conn.ask(*words.split())).startswith("TRYAGAIN shard s1")
            assert error(conn.ask("SCRIPT", "LOAD", SET)).startswith("TRYAGAIN shard s1")
            assert conn.ask("FUNCTION", "LIST") == []
            assert [conn.ask("EVALSHA", sha(COUNT), 1, keys.one(shard)) for shard in (0, 2)] == [1, 1]
            assert conn.ask("EVALSHA", sha(SET), 1, keys.one(0), "v") == b"OK"


def test_a_text_is_kept_though_the_gate_of_one_shard_is_closed() -> None:
    doubting: Table = {**PROMOTION, "down_after_s": 60.0, "on_promotion": "reject"}
    with (
        Fleet(shards=2, replicas=1) as fleet,
        Proxy(fleet, promotion=doubting) as proxy,
        Connection(proxy.port) as conn,
    ):
        fleet.shards[1].primary.kill()
        wait_until("the doubt", lambda: "+suspect " in proxy.log.read_text(), proxy.tail)
        assert error(conn.ask("SCRIPT", "LOAD", SET)).startswith("TRYAGAIN shard s1 ")
        assert conn.ask("EVALSHA", sha(SET), 1, Keys(proxy).one(0), "v") == b"OK"


FOREVER = "while true do end"


def test_a_script_that_takes_too_long_is_uncertain_and_can_be_killed(fleet: Fleet) -> None:
    quick: Table = {"reply_s": 0.5, "silence_s": 0.5}
    busy = fleet.shards[0].primary
    busy.ask("CONFIG", "SET", "busy-reply-threshold", "50")
    with Proxy(fleet, timeouts=quick) as proxy, Connection(proxy.port) as conn, Connection(proxy.port) as other:
        key, elsewhere = Keys(proxy).one(0), Keys(proxy).one(1)
        conn.send(("EVAL", FOREVER, 1, key), ("SET", elsewhere, "v"))
        assert error(conn.read()).startswith("UNCERTAIN shard s0 ")
        assert conn.read() == b"OK"
        assert "-BUSY " in error(other.ask("EVAL", COUNT, 1, key))
        running = other.ask("FUNCTION", "STATS")
        assert (isinstance(running, list) and running[1] is None) or isinstance(running, Exception)
        assert other.ask("SCRIPT", "KILL") == b"OK"
        wait_until("the shard", lambda: other.ask("EVAL", COUNT, 1, key) == 1, proxy.tail, PATIENCE_S)


def test_a_script_that_runs_for_longer_than_down_after_costs_no_promotion() -> None:
    long = "local began = os.clock() while os.clock() - began < 2 do end return 'done'"
    options = ("--busy-reply-threshold", "50")
    with (
        Fleet(shards=1, replicas=1, options=options) as fleet,
        Proxy(fleet, promotion=PROMOTION, timeouts=PATIENT) as proxy,
        Connection(proxy.port) as conn,
    ):
        assert conn.ask("EVAL", long, 1, "k") == b"done"
        assert conn.ask("SET", "k", "v") == b"OK"
        log = proxy.log.read_text()
        assert 'error="BUSY ' in log
        assert "+odown" not in log and "+promoted-slave" not in log


def test_a_client_that_leaves_takes_its_connection_along(fleet: Fleet) -> None:
    """What its script answers then is nobody's."""
    busy = fleet.shards[0].primary
    busy.ask("CONFIG", "SET", "busy-reply-threshold", "50")
    with Proxy(fleet, timeouts=PATIENT) as proxy, Connection(proxy.port) as conn:
        key = Keys(proxy).one(0)
        with Connection(proxy.port) as leaver:
            assert leaver.ask("EVAL", "return 'first'", 1, key) == b"first"
            leaver.send(("EVAL", FOREVER, 1, key))
            wait_until("it to run", lambda: "BUSY" in str(conn.ask("EVAL", "return 1", 1, key)), proxy.tail)
        wait_until("it to end", lambda: conn.ask("SCRIPT", "KILL") == b"OK", proxy.tail)
        wait_until("another to run", lambda: conn.ask("EVAL", "return 'x'", 1, key) == b"x", proxy.tail)
        assert [conn.ask("EVAL", f"return {number}", 1, key) for number in range(20)] == list(range(20))


# --- functions --------------------------------------------------------------------------------------------------------

LIBRARY = "#!lua name=lib\nredis.register_function('count', function(k) return redis.call('incr', k[1]) end)"


def test_a_library_is_on_all_shards_until_it_is_deleted(conn: Connection, keys: Keys, fleet: Fleet) -> None:
    assert conn.ask("FUNCTION", "LOAD", LIBRARY) == b"lib"
    assert [conn.ask("FCALL", "count", 1, keys.one(shard)) for shard in range(3)] == [1, 1, 1]
    dump = conn.ask("FUNCTION", "DUMP")
    assert isinstance(dump, bytes)
    assert conn.ask("FUNCTION", "DELETE", "lib") == b"OK"
    assert error(conn.ask("FCALL", "count", 1, keys.one(1))) == "ERR Function not found"
    assert conn.ask("FUNCTION", "RESTORE", dump) == b"OK"
    assert [conn.ask("FCALL", "count", 1, keys.one(shard)) for shard in range(3)] == [2, 2, 2]
    assert all(server.ask("FUNCTION", "LIST") != [] for server in fleet.servers)


def test_where_shards_differ_the_error_names_those_that_did_their_part(conn: Connection, fleet: Fleet) -> None:
    fleet.shards[1].primary.ask("FUNCTION", "LOAD", LIBRARY)
    answer = error(conn.ask("FUNCTION", "LOAD", LIBRARY))
    assert answer == (
        "UNCERTAIN shard s1: Library 'lib' already exists; other shards may have applied their part: s0, s2"
    )
    assert conn.ask("FUNCTION", "LOAD", "REPLACE", LIBRARY) == b"lib"


@pytest.mark.parametrize("name", ["SCRIPT", "FUNCTION"])
def test_help_is_in_the_words_of_valkey_whatever_the_servers_are(conn: Connection, name: str) -> None:
    lines = conn.ask(name, "HELP")
    assert isinstance(lines, list)
    assert (lines[0], lines[-1]) == (
        f"{name} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:".encode(),
        b"    Print this help.",
    )


def test_a_debugger_is_refused(conn: Connection) -> None:
    reply = error(conn.ask("SCRIPT", "DEBUG", "YES"))
    assert reply.startswith("ERR command 'script|debug' is not served by this proxy: ")


# --- in transactions --------------------------------------------------------------------------------------------------


def block(*commands: tuple[str | int, ...]) -> list[tuple[str | int, ...]]:
    return [("MULTI",), *commands, ("EXEC",)]


def executed(conn: Connection, *commands: tuple[str | int, ...]) -> object:
    conn.send(*block(*commands))
    return conn.reads(len(commands) + 2)[-1]


IN_A_BLOCK = [
    [["SET", "k", "1"], ["EVAL", COUNT, "1", "k"], ["EVALSHA", sha(COUNT), "1", "k"], ["GET", "k"]],
    [["EVALSHA", "0" * 40, "1", "k"], ["EVAL", "return x x", "1", "k"], ["INCR", "k"]],
    [["EVAL", "return redis.error_reply('READONLY no')", "1", "k"], ["EVAL_RO", SET, "1", "k", "v"]],
    [["EVAL", "return 7", "0"], ["EVAL", "return {1, 'a', false}", "0"]],
    [["FCALL", "nosuch", "1", "k"]],
    [["EVAL", "return 1"], ["INCR", "k"]],
]


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize("commands", IN_A_BLOCK)
def test_a_block_with_scripts_is_answered_as_by_one_server(
    proxy: Proxy, server: Server, commands: list[list[str]], proto: int
) -> None:
    lines = [["DEL", "k"], ["MULTI"], *commands, ["EXEC"], ["GET", "k"]]
    assert replies(proxy.port, *lines, proto=proto) == replies(server.port, *lines, proto=proto)


def test_a_block_finds_the_texts_that_its_server_lacks(conn: Connection, keys: Keys, fleet: Fleet) -> None:
    assert executed(conn, ("EVAL", COUNT, 1, keys.one(0))) == [1]
    lose(fleet)
    for shard in range(3):
        key = keys.one(shard, "b")
        assert executed(conn, ("SET", key, 5), ("EVALSHA", sha(COUNT), 1, key)) == [b"OK", 6]


def test_a_block_that_watches_does_so_too(conn: Connection, keys: Keys, fleet: Fleet) -> None:
    key = keys.one(1)
    assert conn.ask("SCRIPT", "LOAD", COUNT) == sha(COUNT).encode()
    lose(fleet)
    assert conn.ask("WATCH", key) == b"OK"
    assert executed(conn, ("EVALSHA", sha(COUNT), 1, key)) == [1]
    assert conn.ask("WATCH", key) == b"OK"
    fleet.shards[1].primary.ask("INCR", key)
    assert executed(conn, ("EVALSHA", sha(COUNT), 1, key)) is None


def test_a_block_with_scripts_over_shards_is_refused_and_nothing_is_run(conn: Connection, keys: Keys) -> None:
    one, other = keys.one(0), keys.one(1)
    assert error(executed(conn, ("EVAL", COUNT, 1, one), ("INCR", other))).startswith("CROSSSLOT ")
    assert conn.ask("EXISTS", one, other) == 0
    conn.send(("MULTI",), ("EVAL", COUNT, 2, one, other), ("EXEC",))
    begun, refused, aborted = conn.reads(3)
    assert (begun, error(refused)[:9], error(aborted)[:9]) == (b"OK", "CROSSSLOT", "EXECABORT")


def test_where_blocks_are_split_each_script_runs_on_its_shard(fleet: Fleet) -> None:
    with Proxy(fleet, transactions="split") as proxy, Connection(proxy.port) as conn:
        keys = Keys(proxy)
        commands = [("EVAL", COUNT, 1, keys.one(shard)) for shard in (2, 0, 1)]
        answer = executed(conn, ("MSET", keys.one(0), 10, keys.one(1), 20), *commands, ("EVAL", "return 'none'", 0))
        assert answer == [b"OK", 1, 11, 21, b"none"]


def test_a_block_with_scripts_on_a_lost_shard_is_discarded(fleet: Fleet, proxy: Proxy) -> None:
    with Proxy(fleet) as own, Connection(own.port) as conn:
        key, lost = Keys(own).one(1), fleet.shards[1].primary
        with killed(lost, proxy):
            answer = error(executed(conn, ("EVAL", COUNT, 1, key)))
            assert answer.startswith("EXECABORT ") and "applied=no" in answer
        wait_until("the shard", lambda: executed(conn, ("EVAL", COUNT, 1, key)) == [1], own.tail, PATIENCE_S)
