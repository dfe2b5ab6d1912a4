"""The commands that the proxy answers itself: what Redis says, and what they change."""

import time
from collections.abc import Callable, Iterator, Mapping

import pytest
from redis._parsers.helpers import parse_client_list

from protocol import errors
from protocol.commands import Command, Kind
from protocol.reply import decode
from protocol.request import encode, split_inline
from protocol.table import TABLE, lookup
from pyproxy.fleet import Server
from pyproxy.messages import Configured, FixedSetting, Script, ScriptsFlushed, Settings
from pyproxy.metrics import INDEX
from pyproxy.worker.commands import local
from pyproxy.worker.commands.context import Context
from tests.pyproxy.worker.commands.stand_ins import StandInClient, health, worker
from tests.wire import exchange

read_clients: Callable[[bytes], list[dict[str, str]]] = parse_client_list


@pytest.fixture
def context() -> Iterator[Context]:
    with worker(
        health("s0", {"redis_version": "7.2.4"}), health("s1", {"redis_version": "7.0.15"}), health("s2")
    ) as each:
        yield each


def say(client: StandInClient, context: Context, *lines: bytes) -> bytes:
    """All answers to these commands, written inline, as the worker gives them: the arity is checked before."""
    reply = b""
    for line in lines:
        argv = split_inline(line)
        assert argv
        command = lookup(argv)
        assert command is not None and command.kind is Kind.LOCAL, f"{line!r} is not answered by the proxy"
        if command.arity_ok(len(argv)):
            reply += local.answer(command.name, client, argv, context)
        elif not client.reply_mode:
            reply += errors.wrong_arity(command.name)
    return reply


def local_commands(commands: Mapping[bytes, Command]) -> set[bytes]:
    names = {each.name for each in commands.values() if each.kind is Kind.LOCAL}
    return names.union(*(local_commands(each.subcommands) for each in commands.values()))


def test_every_local_command_of_the_table_has_an_answer_and_no_other_has_one() -> None:
    containers = {b"client", b"config", b"function", b"pubsub", b"script"}  # without a subcommand their arity is wrong
    assert local_commands(TABLE) - containers == set(local.LOCAL)


FLAGS_OFF = b'CONFIG SET notify-keyspace-events ""'

LIKE_REDIS = [
    [b"PING"],
    [b'PING "a\\r\\nb"'],
    [b"PING a b"],
    [b'ECHO "a\\x00b"'],
    [b"AUTH x"],
    [b"AUTH default x"],
    [b"AUTH DEFAULT x"],
    [b"AUTH bob x"],
    [b"AUTH a b c"],
    [b"HELLO 4"],
    [b"HELLO 1"],
    [b"HELLO x"],
    [b"HELLO 03"],
    [b'HELLO "3 "'],
    [b"HELLO 99999999999999999999"],
    [b"HELLO 2 BAD"],
    [b"HELLO 2 AUTH x"],
    [b"HELLO 2 SETNAME"],
    [b"HELLO 2 AUTH bob x"],
    [b'HELLO 3 SETNAME "a b"', b"CLIENT GETNAME"],
    [b"SELECT 15"],
    [b"SELECT 16"],
    [b"SELECT -1"],
    [b"SELECT -0"],
    [b"SELECT 01"],
    [b"SELECT a"],
    [b"SELECT 3000000000"],
    [b"SELECT 99999999999999999999"],
    [b"RESET"],
    [b"CLIENT GETNAME"],
    [b"CLIENT SETNAME q", b"CLIENT GETNAME", b'CLIENT SETNAME ""', b"CLIENT GETNAME"],
    [b"CLIENT SETNAME q", b"RESET", b"CLIENT GETNAME"],
    [b'CLIENT SETNAME "a b"'],
    [b'CLIENT SETNAME "a\\n"'],
    [b'CLIENT SETNAME "\\x80"'],
    [b"CLIENT NO-EVICT ON", b"CLIENT NO-EVICT off", b"CLIENT NO-EVICT x"],
    [b"CLIENT LIST FOO"],
    [b"CLIENT LIST TYPE"],
    [b"CLIENT LIST TYPE bad"],
    [b"CLIENT LIST TYPE normal x"],
    [b"CLIENT LIST TYPE pubsub"],
    [b"CLIENT LIST TYPE Replica"],
    [b"CLIENT LIST ID"],
    [b"CLIENT LIST ID 999999"],
    [b"CLIENT REPLY x"],
    [b"CLIENT REPLY OFF", b"PING", b"CLIENT REPLY x", b"CLIENT REPLY ON", b"PING"],
    [b"CLIENT REPLY SKIP", b"PING", b"PING"],
    [b"CLIENT REPLY SKIP", b"CLIENT REPLY SKIP", b"PING", b"PING"],
    [b"CLIENT REPLY SKIP", b"CLIENT REPLY x", b"PING"],
    [b"CLIENT REPLY SKIP", b"RESET", b"PING"],
    [b"CLIENT REPLY OFF", b"PING", b"RESET", b"PING"],
    [b"CLIENT REPLY SKIP", b"CLIENT REPLY ON", b"PING"],
    [b"CLIENT REPLY OFF", b"CLIENT REPLY SKIP", b"PING", b"PING", b"CLIENT REPLY ON"],
    [b"CLIENT REPLY SKIP", b"CLIENT REPLY OFF", b"PING", b"CLIENT REPLY ON"],
    [b"CLIENT REPLY OFF", b"RESET", b"PING"],
    [b"CLIENT HELP x"],
    [b"CONFIG GET save"],
    [b"CONFIG GET DataBases databases"],
    [b"CONFIG GET nosuch"],
    [b"CONFIG GET sav\\\\e"],
    [b"CONFIG GET [^t]imeout"],
    [b"CONFIG GET [s-t]im?ou*"],
    [b"CONFIG SET notify-keyspace-events KEA", b"CONFIG GET notify-keyspace-events", FLAGS_OFF],
    [b"CONFIG SET Notify-Keyspace-EVENTS ngnE", b"CONFIG GET notify-*", FLAGS_OFF],
    [b'CONFIG SET notify-keyspace-events "xE\\0q"', b"CONFIG GET notify-keyspace-events", FLAGS_OFF],
    [b"CONFIG SET notify-keyspace-events E", b"CONFIG SET notify-keyspace-events q", b"CONFIG GET notify-*", FLAGS_OFF],
    [b'CONFIG SET notify-keyspace-events "E\\r\\n"'],
    [b"CONFIG SET notify-keyspace-events"],
    [b"CONFIG SET notify-keyspace-events E x"],
    [b"CONFIG SET notify-keyspace-events q notify-KEYSPACE-events E"],
    [b"TIME x"],
    [b"QUIT"],
]


@pytest.mark.parametrize("lines", LIKE_REDIS, ids=lambda lines: b"; ".join(lines).decode())
def test_the_answer_is_that_of_a_server_without_a_password(
    server: Server, context: Context, lines: list[bytes]
) -> None:
    assert say(StandInClient(), context, *lines) == exchange(server.port, b"".join(line + b"\r\n" for line in lines))


@pytest.mark.parametrize(
    "line",
    [
        b"CLIENT SETINFO lib-name x",
        b'CLIENT SETINFO LIB-NAME "x y"',
        b'CLIENT SETINFO lib-ver "x\\n"',
        b'CLIENT SETINFO LIB-VER ""',
        b"CLIENT SETINFO Bad x",
        b"CLIENT NO-TOUCH ON",
        b"CLIENT NO-TOUCH x",
        b"OBJECT HELP",
        b"XGROUP HELP",
        b"xinfo help",
    ],
)
def test_the_answer_is_that_of_a_newer_server_where_older_ones_have_none(
    server: Server, context: Context, line: bytes
) -> None:
    reply = exchange(server.port, line + b"\r\n")
    if any(word in reply for word in (b"unknown subcommand", b"cluster support disabled", b"Prints this help")):
        pytest.skip(f"this server is too old: {reply[:60]!r}")
    assert say(StandInClient(), context, line) == reply


# --- the connection ---------------------------------------------------------------------------------------------------


def test_hello_tells_what_clients_read_from_it(context: Context) -> None:
    assert decode(say(StandInClient(), context, b"HELLO 3")) == {
        b"server": b"redis",
        b"version": b"7.0.15",  # the lowest of the backends
        b"proto": 3,
        b"id": 7,
        b"mode": b"standalone",
        b"role": b"master",
        b"modules": [],
    }


def test_hello_has_the_fields_of_redis_in_its_order(server: Server, context: Context) -> None:
    theirs, ours = decode(exchange(server.port, b"HELLO\r\n")), decode(say(StandInClient(), context, b"HELLO"))
    assert isinstance(theirs, list) and isinstance(ours, list)
    assert ours[::2] == theirs[::2]


def test_hello_answers_in_the_protocol_it_switches_to(context: Context) -> None:
    client = StandInClient(db=4)
    assert say(client, context, b"HELLO 3").startswith(b"%7\r\n")
    assert say(client, context, b"HELLO 2").startswith(b"*14\r\n")
    assert client.switches == [(3, 4), (2, 4)]


def test_hello_without_a_version_keeps_the_protocol(context: Context) -> None:
    client = StandInClient(proto=3)
    assert say(client, context, b"HELLO").startswith(b"%7\r\n")
    assert client.switches == []


def test_hello_takes_user_and_name(context: Context) -> None:
    client = StandInClient()
    assert say(client, context, b"HELLO 3 AUTH default any SETNAME app").startswith(b"%7\r\n")
    assert client.name == b"app"


@pytest.mark.parametrize("wrong", [b"SETNAME a AUTH bob x", b"SETNAME a BAD", b'SETNAME a SETNAME "b c"'])
def test_a_hello_that_fails_changes_nothing(context: Context, wrong: bytes) -> None:
    client = StandInClient()
    assert say(client, context, b"HELLO 3 " + wrong).startswith(b"-")
    assert client == StandInClient()


def test_select_switches_the_database_and_keeps_the_protocol(context: Context) -> None:
    client = StandInClient(proto=3)
    assert say(client, context, b"SELECT 15") == b"+OK\r\n"
    assert client.switches == [(3, 15)]


def test_a_select_that_fails_switches_nothing(context: Context) -> None:
    client = StandInClient()
    say(client, context, b"SELECT 16")
    assert client.switches == []


def test_reset_forgets_everything_but_the_library(context: Context) -> None:
    client = StandInClient(proto=3, db=5, name=b"app", lib_name=b"lib", reply_mode=1)
    assert say(client, context, b"RESET") == b"+RESET\r\n"
    assert client == StandInClient(lib_name=b"lib", switches=[(2, 0)])


def test_quit_says_ok_and_ends_the_connection(context: Context) -> None:
    client = StandInClient()
    assert say(client, context, b"QUIT") == b"+OK\r\n"
    assert client.closing


def test_time_is_the_wall_clock_in_seconds_and_microseconds(context: Context) -> None:
    before = time.time_ns() // 1000
    reply = decode(say(StandInClient(), context, b"TIME"))
    after = time.time_ns() // 1000
    assert isinstance(reply, list)
    seconds, micros = map(int, reply)
    assert before <= seconds * 1_000_000 + micros <= after
    assert 0 <= micros < 1_000_000


# --- CLIENT -----------------------------------------------------------------------------------------------------------


def test_client_info_tells_what_is_known_of_the_client(context: Context) -> None:
    client = StandInClient(proto=3, db=2, name=b"app", last_command=b"client|info", buffered_in=10, buffered_out=20)
    say(client, context, b"CLIENT SETINFO LIB-NAME lib", b"CLIENT SETINFO LIB-VER 1.0")
    text = decode(say(client, context, b"CLIENT INFO"))
    assert isinstance(text, bytes)
    (told,) = read_clients(text)
    expected = {
        "id": "7",
        "addr": "127.0.0.1:50000",
        "laddr": "127.0.0.1:6380",
        "name": "app",
        "age": "10",
        "idle": "2",
        "db": "2",
        "qbuf": "10",
        "omem": "20",
        "cmd": "client|info",
        "resp": "3",
        "lib-name": "lib",
        "lib-ver": "1.0",
    }
    assert {name: told[name] for name in expected} == expected


def test_client_info_has_the_fields_of_redis_in_its_order(server: Server, context: Context) -> None:
    def fields(frame: bytes) -> list[bytes]:
        text = decode(frame)
        assert isinstance(text, bytes)
        return [word.partition(b"=")[0] for word in text.split()]

    theirs, ours = (
        fields(exchange(server.port, b"CLIENT INFO\r\n")),
        fields(say(StandInClient(), context, b"CLIENT INFO")),
    )
    newer = {b"watch", b"lib-name", b"lib-ver", b"tot-cmds"}  # than Redis 7.0
    assert [name for name in ours if name in theirs or name not in newer] == [name for name in theirs if name in ours]


def listed(context: Context, line: bytes) -> list[str]:
    text = decode(say(StandInClient(), context, line))
    assert isinstance(text, bytes)
    return [each["id"] for each in read_clients(text)]


@pytest.mark.parametrize(
    ("line", "ids"),
    [
        (b"CLIENT LIST", ["1", "2", "3"]),
        (b"CLIENT LIST TYPE normal", ["1", "2", "3"]),
        (b"CLIENT LIST TYPE pubsub", []),
        (b"CLIENT LIST ID 3 1 99", ["1", "3"]),
    ],
)
def test_client_list_shows_the_clients_of_this_worker(context: Context, line: bytes, ids: list[str]) -> None:
    context.clients = lambda: [StandInClient(id=number) for number in (1, 2, 3)]
    assert listed(context, line) == ids


def test_an_id_that_is_none_is_refused(context: Context) -> None:
    assert say(StandInClient(), context, b"CLIENT LIST ID 1 x") == b"-ERR Invalid client ID\r\n"


def test_client_help_names_every_subcommand_that_is_answered(context: Context) -> None:
    text = say(StandInClient(), context, b"CLIENT HELP")
    named = {name.partition(b"|")[2].upper() for name in local.LOCAL if name.startswith(b"client|")}
    assert all(b"\r\n+" + name in text for name in named)


# --- the server -------------------------------------------------------------------------------------------------------


def config(context: Context, *patterns: str) -> dict[bytes, bytes]:
    line = " ".join(["CONFIG GET", *patterns]).encode()
    told = decode(say(StandInClient(proto=3), context, line))
    assert isinstance(told, dict)
    return told


def test_config_get_tells_limits_of_the_proxy_and_not_of_a_backend(context: Context) -> None:
    told = config(context, "maxclients", "proto-max-bulk-len", "port", "bind")
    assert told == {
        b"maxclients": b"10000",
        b"proto-max-bulk-len": b"67108864",
        b"port": b"6380",
        b"bind": b"127.0.0.1",
    }


@pytest.mark.parametrize(
    ("versions", "reply"),
    [
        (["9.1.2", "8.0.1"], b"+OK\r\n"),
        (["9.1.2", ""], errors.no_cluster()),  # one of them is a Redis
        (["7.2.4"], errors.no_cluster()),
        ([], errors.no_cluster()),
    ],
)
@pytest.mark.parametrize("line", [b"READONLY", b"READWRITE"])
def test_readonly_is_answered_as_by_servers_without_a_cluster(versions: list[str], reply: bytes, line: bytes) -> None:
    healths = [health(f"s{n}", {"valkey_version": each} if each else {}) for n, each in enumerate(versions)]
    with worker(*healths) as context:
        assert say(StandInClient(), context, line) == reply


def test_the_last_save_is_that_of_the_shard_that_has_not_saved_for_longest() -> None:
    with worker(health("s0", {"rdb_last_save_time": 30}), health("s1", {"rdb_last_save_time": 20})) as context:
        assert say(StandInClient(), context, b"LASTSAVE") == b":20\r\n"


def test_resetstat_clears_the_numbers_of_all_workers_and_not_what_is_so_now(context: Context) -> None:
    for index in range(2):
        row = context.page.row(index)
        row[INDEX["commands"]], row[INDEX["clients"]] = 5, 1
        row.release()
    assert say(StandInClient(), context, b"CONFIG RESETSTAT") == b"+OK\r\n"
    reply = say(StandInClient(), context, b"INFO stats clients")
    assert b"total_commands_processed:0\r\n" in reply
    assert b"connected_clients:2\r\n" in reply


def test_config_get_adds_up_the_memory_of_all_shards() -> None:
    with worker(health("s0", {"maxmemory": 100}), health("s1", {"maxmemory": 50})) as context:
        assert config(context, "maxmemory") == {b"maxmemory": b"150"}


def test_config_get_names_each_setting_once_however_often_it_matches(context: Context) -> None:
    assert say(StandInClient(), context, b"CONFIG GET save s* *ave SAVE").startswith(b"*4\r\n$4\r\nsave\r\n")


def test_config_get_of_everything_names_only_settings_that_redis_has(server: Server, context: Context) -> None:
    theirs = decode(exchange(server.port, b"CONFIG GET *\r\n"))
    assert isinstance(theirs, list)
    assert set(config(context, "*")) <= set(theirs[::2])


@pytest.mark.parametrize(
    "line", [b"maxmemory 1", b"notify-keyspace-events E save x", b"save x notify-keyspace-events E"]
)
def test_config_set_of_anything_else_is_refused_with_the_reason_and_sets_nothing(context: Context, line: bytes) -> None:
    reply = b"-ERR command 'config|set' is not served by this proxy: the proxy is configured by its own file, and each"
    assert say(StandInClient(), context, b"CONFIG SET " + line) == reply + b" server at that server\r\n"
    assert context.settings.told == {}


def test_what_was_set_is_told_to_the_parent_in_one_spelling(context: Context) -> None:
    told: list[Configured | Script | ScriptsFlushed] = []
    context.tell = told.append
    say(StandInClient(), context, b"CONFIG SET notify-keyspace-events xxE", b"CONFIG SET notify-keyspace-events y")
    assert told == [Configured("notify-keyspace-events", "xE", 1)]


FIXED = FixedSetting("s1", "notify-keyspace-events", "xE")


@pytest.mark.parametrize("flags", [b"Ex", b"xxE"])
def test_what_is_fixed_may_be_set_to_the_same(context: Context, flags: bytes) -> None:
    context.settings = Settings(1, {}, [FIXED])
    assert say(StandInClient(), context, b"CONFIG SET notify-keyspace-events " + flags) == b"+OK\r\n"


def test_what_is_fixed_cannot_be_set_to_anything_else(context: Context) -> None:
    context.settings = Settings(1, {}, [FIXED])
    assert say(StandInClient(), context, b"CONFIG SET notify-keyspace-events KEA") == (
        b"-ERR notify-keyspace-events of shard s1 is 'xE' by its parameter group, and cannot be set by CONFIG SET; "
        b"change it in the parameter group\r\n"
    )
    assert context.settings.told == {}


def test_while_it_is_not_known_whether_it_is_fixed_clients_shall_come_again(context: Context) -> None:
    context.settings = Settings(1, {}, [FixedSetting("s1", "notify-keyspace-events", None)])
    reply = say(StandInClient(), context, b"CONFIG SET notify-keyspace-events Ex")
    assert reply.startswith(b"-TRYAGAIN notify-keyspace-events of shard s1: ")
    assert reply.endswith(b", applied=no; retry later\r\n")
    assert context.settings.told == {}


def test_config_get_says_what_is_fixed_until_somebody_has_set_it(context: Context) -> None:
    context.settings = Settings(1, {}, [FIXED])
    assert config(context, "notify-keyspace-events") == {b"notify-keyspace-events": b"xE"}
    context.settings = Settings(2, {"notify-keyspace-events": "AnKE"}, [FIXED])
    assert config(context, "notify-keyspace-events") == {b"notify-keyspace-events": b"AKE"}


def test_config_get_is_bounded(context: Context) -> None:
    many = encode([b"CONFIG", b"GET", *[b"*a*"] * 129])
    argv = decode(many)
    assert isinstance(argv, list)
    reply = local.answer(b"config|get", StandInClient(), argv, context)
    assert reply == b"-ERR too many patterns for 'config|get' command: expected at most 128\r\n"


def test_a_pattern_longer_than_any_name_matches_nothing(context: Context) -> None:
    assert local.answer(b"config|get", StandInClient(), [b"CONFIG", b"GET", b"*" * 10_000_000], context) == b"*0\r\n"


def test_texts_for_people_are_verbatim_in_resp3(context: Context) -> None:
    for line in (b"INFO", b"LOLWUT", b"CLIENT INFO", b"CLIENT LIST"):
        assert say(StandInClient(proto=3), context, line).startswith(b"=")
        assert say(StandInClient(proto=2), context, line).startswith(b"$")


def test_lolwut_ends_in_the_version(context: Context) -> None:
    assert say(StandInClient(), context, b"LOLWUT VERSION 5").endswith(b"pyproxy ver. 1.2.3\n\r\n")


def test_command_speaks_of_the_table_of_this_worker(context: Context) -> None:
    context.table = {name: TABLE[name] for name in (b"get", b"command")}
    assert say(StandInClient(), context, b"COMMAND COUNT") == b":2\r\n"
