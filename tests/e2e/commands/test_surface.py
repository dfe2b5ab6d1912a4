"""What the proxy answers itself, in right forms and in wrong ones, beside what one plain server answers: byte for byte.

In both protocols, against the backend, Valkey as a rule, and against the Redis of this machine, if there is one. What
may differ is what test_twin.py allows, and the few lines of `OTHERWISE`, each with its reason. Of commands that the
table refuses it is the form that is compared: what is wrong in it is said as a server says it.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import hiredis
import pytest

from protocol.commands import Kind
from protocol.table import lookup
from pyproxy.fleet import Fleet, Proxy, Server, ask, wait_until
from tests.e2e.rig import PATIENCE_S, PATIENT, killed
from tests.e2e.twin.allowed import may_differ
from tests.e2e.twin.connection import Connection, ask_all
from tests.e2e.twin.examples import EXAMPLES
from tests.servers import KINDS, servers_of

OPEN = "maxmemory-samples"
"""A setting that clients may set."""

# Steps stand between semicolons, words as a shell reads them.
ASKED = r"""
ping ; ping a ; ping a b ; PiNg a b
echo ; echo a b
quit a
reset ; reset a
time a
hello 2 setname ; hello 2 setname "a b" ; hello 4 ; hello 1 ; hello -2 ; hello 02 ; hello x ; hello 99999999999999999999
hello 2 auth default ; hello 2 auth other pw ; hello 2 foo ; hello setname x ; client getname
auth ; auth a ; auth default a ; auth other a ; auth a b c
select ; select a ; select 16 ; select -1 ; select 99999999999 ; select 99999999999999999999999 ; select 01 ; select 1 2
info nosuch
readonly ; readwrite ; readonly a ; readwrite a
unwatch ; unwatch a
role ; role a ; ROLE
lastsave a
client ; client foo ; CLIENT FOO ; client no-such a b ; client "a\r\nb"
client id a ; client info a ; client getname ; client getname a
client list type ; client list type foo ; client list type normal x ; client list id ; client list foo
client list id 999999999 ; client list type master ; client list type replica ; client list type pubsub
client setname ; client setname a ; client getname ; client setname "" ; client getname ; client setname "a b"
client setname "a\x01" ; client setname a b ; client setname "caf\xc3\xa9"
client setinfo lib-name x ; client setinfo lib-name "a b" ; client setinfo LIB-VER "a b" ; client setinfo foo bar
client setinfo lib-name ; client setinfo "foo bar" x
client no-evict ; client no-evict x ; client no-evict on ; client no-touch x ; client no-touch on ; client no-touch on a
client reply ; client reply x ; client reply on ; client reply on a
client help ; client help a ; client getredir ; client getredir a ; client trackinginfo ; client trackinginfo a
client capa ; client capa redirect ; client capa foo bar
client kill ; client unblock ; client pause ; client tracking ; client caching ; client unpause a
command foo ; command count a ; command docs nosuch ; command info nosuch ; command info "config|nosuch"
command list filterby ; command list filterby foo bar ; command list filterby module x ; command list foo
command list filterby pattern ; command list filterby pattern get* a ; command list filterby aclcat nosuch
command getkeys ; command getkeys get ; command getkeys get a ; command getkeys nosuch ; command getkeys ping
command getkeys mset a 1 b ; command getkeys mset a 1 b 2 ; command getkeys eval x 1 a
command getkeys zunionstore d 2 a ; command getkeys sort a store b ; command getkeysandflags set a b
command getkeysandflags get ; command getkeysandflags nosuch ; command getkeysandflags ping ; command getkeysandflags
config ; config foo ; config get ; config get nosuch ; config get databases ; config get DATABASES ; config get data*
config get databases databases ; config get databases DATABASES ; config get appendonly save ; config get "["
config get replica-read-only slave-read-only ; config get maxmemory-policy ; config get maxmemory ; config get timeout
config get cluster-enabled ; config get maxmemory-samples ; config get MaxMemory-Samples ; config get maxmemory-s*
config get maxmemory-samples timeout ; config get timeout maxmemory-sample?
config set ; config set a ; config set notify-keyspace-events foo ; config set notify-keyspace-events a b
config set notify-keyspace-events "" notify-keyspace-events ""
config set notify-keyspace-events Ex ; config get notify-keyspace-events ; config set notify-keyspace-events ""
config set notify-keyspace-events KEA ; config get notify-keyspace-events ; config set notify-keyspace-events ""
config set maxmemory-samples 7 ; config get maxmemory-samples ; config set maxmemory-samples 5
config set maxmemory-samples x
config resetstat ; config resetstat a ; config rewrite a ; config help ; config help a
object ; object foo ; object help a ; object encoding ; object encoding nosuch ; object nosuch a
xgroup ; xgroup foo ; xgroup help a ; xinfo ; xinfo foo ; xinfo help a
script ; script foo ; script help a ; function ; function foo ; function help a
pubsub ; pubsub foo ; pubsub help a ; pubsub channels ; pubsub channels a ; pubsub channels a b ; pubsub numsub
pubsub numsub a b ; pubsub numpat ; pubsub numpat a ; pubsub shardchannels ; pubsub shardchannels a b
pubsub shardnumsub ; pubsub shardnumsub a
memory ; memory foo ; memory help ; memory help a ; memory doctor a ; memory purge ; memory purge a ; memory stats a
memory usage ; memory usage nosuch ; memory usage a samples ; memory malloc-stats a
acl ; acl foo ; acl whoami ; acl whoami a ; slowlog ; slowlog foo ; latency ; latency foo ; cluster ; cluster foo
swapdb ; swapdb 0 ; swapdb 0 1 2 ; lastsave a b ; debug ; save a ; replicaof a ; monitor a ; psync ; migrate a
multi a ; exec ; exec a ; discard ; discard a ; watch
multi ; ping a b ; exec
multi ; client foo ; exec
multi ; get ; exec
multi ; time a ; exec
multi ; nosuch a ; exec
multi ; role ; acl whoami ; exec
nosuch ; nosuch a b ; NoSuch A "b c" ; "" a ; "a\r\nb" c ; "client\x00" a
get ; set a ; GET ; mget ; mset a ; mset a 1 b ; del ; exists ; unlink ; touch
wait a 0 ; wait 0 a ; wait 0 -1 ; wait ; waitaof 0 0 ; randomkey a ; dbsize a ; keys ; keys a b
flushall x ; flushall sync async ; flushdb a ; scan ; scan a ; scan 0 foo ; scan 0 count 0 ; scan 0 count a
unsubscribe ; unsubscribe a ; punsubscribe ; sunsubscribe ; subscribe ; publish a ; publish a b
subscribe a ; ping ; ping x ; get a ; unsubscribe a ; ping
subscribe a ; reset ; ping
"""

_OLDER = "Redis 7.0 asks for one argument more than later servers"
OTHERWISE = {
    "command getkeys get": _OLDER,
    "command getkeys nosuch": _OLDER,
    "command getkeys ping": _OLDER,
    "command getkeysandflags get": _OLDER,
    "command getkeysandflags nosuch": _OLDER,
    "command getkeysandflags ping": _OLDER,
    "config set maxmemory-samples x": "names the shard that does not take it",
}
LINES = [line for line in ASKED.splitlines() if line]


@dataclass(frozen=True)
class Place:
    """Three shards with the proxy in front, and one plain server of the same version."""

    proxy: Proxy
    server: Server

    def knows(self, argv: list[bytes]) -> bool:
        """Whether the server has the command; versions differ."""
        found = lookup(argv)
        name = found.name.decode() if found is not None else argv[0].decode("latin-1")
        return found is None or self.server.ask("COMMAND", "INFO", name) != [None]


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with (
        servers_of(request.param),
        Fleet(3, 0) as fleet,
        Fleet(1, 0) as alone,
        Proxy(fleet, timeouts=PATIENT, config_set=[OPEN]) as proxy,
    ):
        # what it says of the servers it has from the parent's first check of them
        wait_until("that", lambda: b"\r\nmem_allocator:\r\n" not in info(proxy), proxy.tail, PATIENCE_S)
        yield Place(proxy, alone.servers[0])


def info(proxy: Proxy) -> bytes:
    reply = ask(proxy.port, "INFO")
    assert isinstance(reply, bytes)
    return reply


def words(step: str) -> list[bytes]:
    return [word.encode().decode("unicode_escape").encode("latin-1") for word in shlex.split(step)]


@pytest.mark.parametrize("proto", [b"2", b"3"])
@pytest.mark.parametrize("line", LINES)
def test_what_the_proxy_answers_itself_is_what_a_server_answers(line: str, proto: bytes, place: Place) -> None:
    with Connection(place.proxy.port) as ours, Connection(place.server.port) as theirs:
        for conn in (ours, theirs):
            ask_all(conn, [[b"HELLO", proto]])
        for step in line.split(" ; "):
            argv = words(step)
            one, other = (ask_all(conn, [argv])[0] for conn in (ours, theirs))
            assert one == other or step in OTHERWISE or is_fine(place, argv, one, other), f"{step}: {one!r}, {other!r}"


def is_fine(place: Place, argv: list[bytes], ours: bytes, theirs: bytes) -> bool:
    command = lookup(argv)
    if command is None:
        return False
    is_refused = command.kind is Kind.REFUSED and command.arity_ok(len(argv))
    return is_refused or not place.knows(argv) or may_differ(command.name, argv, ours, theirs)


# Not called in a wrong form, by the first word. Why -> what.
_ONE_FORM = {
    "it waits, or what comes then is no answer to it": """
        wait waitaof blpop brpop blmove brpoplpush blmpop bzpopmin bzpopmax bzmpop xread xreadgroup
        subscribe psubscribe ssubscribe quit reset""",
    "a cursor that no server gave is any place in a hash table": "scan hscan sscan zscan",
    "it is the proxy's own": "lolwut",
}
ONE_FORM = {name.encode() for names in _ONE_FORM.values() for name in names.split()}
WRONG = (b"x", b"-1", b"", b"99999999999999999999")


def wrong_forms(call: list[bytes]) -> Iterator[list[bytes]]:
    """The call with one word too few, one too many, and with something else in the place of each of its words."""
    yield call[:-1]
    yield [*call, b"extra"]
    for position in range(1, len(call)):
        for word in WRONG:
            yield [*call[:position], word, *call[position + 1 :]]


def served(call: list[bytes]) -> bool:
    command = lookup(call)
    return command is not None and command.kind is not Kind.REFUSED


FORMS = {each.call[0].lower() for each in EXAMPLES if served(each.call)} - ONE_FORM - {b"client", b"config"}


@pytest.mark.parametrize("name", sorted(each.decode() for each in FORMS))
def test_a_wrong_form_of_a_command_is_answered_as_by_one_server(name: str, place: Place) -> None:
    """Whoever checks it, the proxy or a shard: the words are those of a server, and name the command that was sent."""
    compared = 0
    with Connection(place.proxy.port) as ours, Connection(place.server.port) as theirs:
        for example in EXAMPLES:
            if example.call[0].lower() != name.encode():
                continue
            for argv in filter(None, wrong_forms(example.call)):
                command = lookup(argv)
                if command is None or not served(argv) or not place.knows(argv):
                    continue
                both = [ask_all(conn, [[b"FLUSHALL"], *example.steps[:-1], argv])[-1] for conn in (ours, theirs)]
                alike = both[0] == both[1] or may_differ(command.name, argv, *both)
                assert alike or both[0].startswith(b"-CROSSSLOT "), f"{argv}: {both}"
                compared += 1
    assert compared or not place.knows([name.encode()])


def test_every_reason_to_differ_is_of_a_line_that_is_asked() -> None:
    steps = {step for line in LINES for step in line.split(" ; ")}
    assert OTHERWISE.keys() <= steps


# --- what a fleet says in place of one server -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet, timeouts=PATIENT, config_set=[OPEN, "no-such-setting"]) as proxy:
        yield proxy


def test_a_setting_that_differs_is_shown_with_all_its_values(fleet: Fleet, proxy: Proxy) -> None:
    fleet.shards[1].primary.ask("CONFIG", "SET", OPEN, "9")
    try:
        assert ask(proxy.port, "CONFIG", "GET", OPEN) == [OPEN.encode(), b"5/9"]
    finally:
        fleet.shards[1].primary.ask("CONFIG", "SET", OPEN, "5")
    assert ask(proxy.port, "CONFIG", "GET", OPEN) == [OPEN.encode(), b"5"]


def test_a_setting_that_no_server_has_is_left_out(proxy: Proxy) -> None:
    assert ask(proxy.port, "CONFIG", "GET", "no-such-setting") == []


def test_a_setting_is_shown_while_a_shard_is_down_as_the_others_have_it(fleet: Fleet, proxy: Proxy) -> None:
    with killed(fleet.shards[2].primary, proxy):
        assert ask(proxy.port, "CONFIG", "GET", OPEN, "databases") == [OPEN.encode(), b"5", b"databases", b"16"]


def test_a_setting_that_a_client_has_set_is_shown_as_it_was_set_whatever_the_servers_have(fleet: Fleet) -> None:
    with Proxy(fleet, config_set=[OPEN]) as proxy:
        assert ask(proxy.port, "CONFIG", "SET", OPEN, "6") == b"OK"
        assert ask(proxy.port, "CONFIG", "GET", "maxmemory-s*") == [OPEN.encode(), b"6"]
        assert ask(proxy.port, "CONFIG", "SET", OPEN, "5") == b"OK"


def test_resetstat_clears_the_numbers_of_the_proxy_and_not_those_of_the_servers(fleet: Fleet, proxy: Proxy) -> None:
    def number(port: int, name: str) -> int:
        reply = ask(port, "INFO", "stats")
        assert isinstance(reply, bytes)
        return int(dict(line.split(":") for line in reply.decode().splitlines() if ":" in line)[name])

    server = fleet.servers[0]
    for _ in range(50):
        ask(proxy.port, "PING")
    wait_until("the numbers", lambda: number(proxy.port, "total_commands_processed") >= 50, proxy.tail, PATIENCE_S)
    before = number(server.port, "total_commands_processed")

    def is_reset() -> bool:
        """What a worker had not published yet is counted afterwards: of 20 ms, or as long as it stood still."""
        assert ask(proxy.port, "CONFIG", "RESETSTAT") == b"OK"
        return number(proxy.port, "total_commands_processed") < 50

    wait_until("few to be counted", is_reset, proxy.tail, PATIENCE_S)
    assert number(server.port, "total_commands_processed") > before


def test_the_doctor_looks_at_every_shard(fleet: Fleet, proxy: Proxy) -> None:
    reply = ask(proxy.port, "MEMORY", "DOCTOR")
    assert isinstance(reply, bytes)
    diagnosis = fleet.servers[0].ask("MEMORY", "DOCTOR")
    assert isinstance(diagnosis, bytes)
    assert reply == b"".join(b"%b: %b\n" % (shard.name.encode(), diagnosis.rstrip()) for shard in fleet.shards)


@pytest.mark.parametrize("command", ["DOCTOR", "PURGE"])
def test_a_shard_that_is_down_is_an_error_for_the_whole_report(command: str, fleet: Fleet, proxy: Proxy) -> None:
    with killed(fleet.shards[2].primary, proxy), pytest.raises(hiredis.ReplyError, match="TRYAGAIN shard s2 "):
        raise_reply(proxy, "MEMORY", command)


def raise_reply(proxy: Proxy, *argv: str) -> None:
    reply = ask(proxy.port, *argv)
    raise AssertionError(f"expected an error, got {reply!r}")


@pytest.mark.parametrize("name", ["mem_allocator", "lazyfree_pending_objects", "number_of_cached_scripts"])
def test_info_has_what_clients_and_exporters_read(name: str, fleet: Fleet, proxy: Proxy) -> None:
    def of(port: int) -> str:
        reply = ask(port, "INFO", "memory")
        assert isinstance(reply, bytes)
        return dict(line.split(":") for line in reply.decode().splitlines() if ":" in line).get(name, "")

    theirs = of(fleet.servers[0].port)
    assert theirs
    wait_until(f"{name} of the servers", lambda: of(proxy.port) == theirs, lambda: of(proxy.port), PATIENCE_S)
