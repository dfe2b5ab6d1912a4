"""Servers that speak TLS and ask for a password: where they let the proxy in they are served, else they are down."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyproxy.fleet import VARIABLE, Fleet, FleetError, Proxy, Server, Table, reserve_port, wait_until
from tests.certificates import Authority
from tests.e2e.rig import Connection, Keys, behind, error, of_a_worker, proxy_info
from tests.faults import Hop
from tests.processes import command_line, family

QUICK = {"reconnect_max_s": 0.2, "connect_s": 5.0, "reply_s": 5.0, "silence_s": 5.0}
SECRET, SECOND, USER = "s3cret-of-the-first", "s3cret-of-the-second", "app"


@pytest.fixture(scope="module")
def servers() -> Iterator[Fleet]:
    with Fleet(shards=2, replicas=0) as fleet:
        yield fleet


@pytest.fixture
def fleet(servers: Fleet) -> Iterator[Fleet]:
    """Two primaries without a password, empty, and afterwards as they were."""
    yield servers
    for shard in servers.shards:
        shard.primary.ask("ACL", "DELUSER", USER)
        shard.primary.ask("FLUSHALL")


@contextlib.contextmanager
def requiring(password: str, *servers: Server) -> Iterator[None]:
    """Meanwhile these servers ask everybody for this password."""
    for each in servers:
        each.ask("CONFIG", "SET", "requirepass", password)
    try:
        yield
    finally:
        for each in servers:
            with Connection(each.port) as conn:
                conn.send(("AUTH", password), ("CONFIG", "SET", "requirepass", ""))
                assert conn.reads(2) == [b"OK", b"OK"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "passwords"
    path.touch(mode=0o600)
    path.write_text(f"{SECRET}\n")
    return path


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def add_user(fleet: Fleet, *passwords: str) -> None:
    """A user of the proxy's own, beside the default one, as which the tests look on."""
    for shard in fleet.shards:
        words = [f">{password}" for password in passwords]
        shard.primary.ask("ACL", "SETUSER", USER, "on", "resetpass", *words, "~*", "&*", "+@all")


def users(server: Server) -> set[str]:
    """Of the connections of proxies, as whom they were let in."""
    listed = server.ask("CLIENT", "LIST")
    assert isinstance(listed, bytes)
    lines = [dict(word.split("=", 1) for word in line.split()) for line in listed.decode().splitlines()]
    return {line["user"] for line in lines if "client" not in line["cmd"]}


def wait_for_error(conn: Connection, key: str, reason: str) -> str:
    """Until requests for this key are refused with this reason; it may take some attempts."""
    said = ""

    def refused() -> bool:
        nonlocal said
        said = error(conn.ask("GET", key))
        return reason in said

    wait_until(f"an error with {reason!r}", refused, lambda: said)
    return said


def wait_served(conn: Connection, key: str) -> None:
    reply: object = None

    def served() -> bool:
        nonlocal reply
        reply = conn.ask("SET", key, "v")
        return reply == b"OK"

    wait_until(f"{key} to be served", served, lambda: str(reply))


@contextlib.contextmanager
def serving(fleet: Fleet, hops: dict[int, Hop] | None = None, **access: str | bool) -> Iterator[Proxy]:
    table: Table = access
    with behind(fleet, hops or {}, timeouts=QUICK, backend=table) as proxy:
        yield proxy


# --- passwords --------------------------------------------------------------------------------------------------------


def test_with_the_password_all_protocols_and_databases_are_served(fleet: Fleet, file: Path) -> None:
    primaries = [shard.primary for shard in fleet.shards]
    with (
        requiring(SECRET, *primaries),
        serving(fleet, password_file=str(file)) as proxy,
        Connection(proxy.port) as conn,
    ):
        keys = [Keys(proxy).one(index) for index in (0, 1)]
        assert conn.ask("MSET", keys[0], "a", keys[1], "b") == b"OK"
        assert conn.ask("MGET", *keys) == [b"a", b"b"]
        conn.send(("HELLO", 3), ("SELECT", 5), ("SET", keys[0], "five"), ("GET", keys[0]))
        assert conn.reads(4)[1:] == [b"OK", b"OK", b"five"]


def test_workers_and_health_checks_connect_as_a_user_of_an_acl(fleet: Fleet, file: Path) -> None:
    add_user(fleet, SECRET)
    with serving(fleet, username=USER, password_file=str(file)) as proxy, Connection(proxy.port) as conn:
        for index, shard in enumerate(fleet.shards):
            wait_served(conn, Keys(proxy).one(index))
            assert users(shard.primary) == {USER}


def test_the_second_password_is_tried_where_the_first_is_refused(fleet: Fleet, file: Path) -> None:
    add_user(fleet, SECOND)
    file.write_text(f"{SECRET}\n{SECOND}\n")
    with serving(fleet, username=USER, password_file=str(file)) as proxy, Connection(proxy.port) as conn:
        wait_served(conn, Keys(proxy).one(0))
        assert users(fleet.shards[0].primary) == {USER}


def test_a_rotation_needs_no_restart(fleet: Fleet, file: Path) -> None:
    add_user(fleet, SECRET)
    with serving(fleet, username=USER, password_file=str(file)) as proxy, Connection(proxy.port) as conn:
        key = Keys(proxy).one(0)
        wait_served(conn, key)
        add_user(fleet, SECOND)
        file.write_text(f"{SECOND}\n")
        assert fleet.shards[0].primary.ask("CLIENT", "KILL", "USER", USER) != 0
        wait_served(conn, key)
        assert users(fleet.shards[0].primary) == {USER}


def test_a_wrong_password_is_a_shard_that_is_down_until_the_file_is_right(fleet: Fleet, file: Path) -> None:
    add_user(fleet, SECOND)
    with serving(fleet, username=USER, password_file=str(file)) as proxy, Connection(proxy.port) as conn:
        key = Keys(proxy).one(0)
        reason = "refused the password of backend.password_file (WRONGPASS)"
        said = wait_for_error(conn, key, reason)
        address = fleet.shards[0].primary.address
        assert said == f"TRYAGAIN shard s0 ({address}) is down: {reason}, applied=no; retry later"
        log = proxy.log.read_text()
        assert f'+link-down shard=s0 node={address} why="{reason}"' in log
        assert f'+sdown shard=s0 node={address} role=master error="{reason}"' in log
        file.write_text(f"{SECOND}\n")
        wait_served(conn, key)


def test_a_wrong_password_is_tried_again_with_back_off(fleet: Fleet, file: Path) -> None:
    """However many requests come: all that the server hears meanwhile is the health check, once a second."""
    add_user(fleet, SECOND)
    with (
        Hop(fleet.shards[0].primary.port) as hop,
        behind(
            fleet, {0: hop}, timeouts={"reconnect_min_s": 60.0, "reconnect_max_s": 60.0},
            backend={"username": USER, "password_file": str(file)},
        ) as proxy,
        Connection(proxy.port) as conn,
    ):  # fmt: skip
        key = Keys(proxy).one(0)
        wait_for_error(conn, key, "refused the password")
        before, since = hop.accepted, time.monotonic()
        while hop.accepted < before + 3:
            assert "is down: refused the password" in error(conn.ask("GET", key))
        assert time.monotonic() - since > 1.0, "three connections were made at once"


def test_a_wrong_password_for_one_more_database_leaves_the_connected_ones_served(fleet: Fleet, file: Path) -> None:
    add_user(fleet, SECRET)
    with serving(fleet, username=USER, password_file=str(file)) as proxy, Connection(proxy.port) as conn:
        key = Keys(proxy).one(0)
        wait_served(conn, key)
        file.write_text("wrong\n")
        with Connection(proxy.port) as other:
            assert other.ask("SELECT", 3) == b"OK"
            assert "is down: refused the password" in error(other.ask("GET", key))
            assert conn.ask("GET", key) == b"v"
            assert "+link-refused shard=s0 " in proxy.log.read_text()
            file.write_text(f"{SECRET}\n")
            wait_served(other, key)


def test_a_server_that_asks_where_no_password_is_configured_is_down_and_says_so(fleet: Fleet) -> None:
    with requiring(SECRET, fleet.shards[1].primary), serving(fleet) as proxy, Connection(proxy.port) as conn:
        keys = Keys(proxy)
        wait_for_error(conn, keys.one(1), "is down: asks for a password, and backend.password_file names none")
        assert conn.ask("SET", keys.one(0), "v") == b"OK"


def test_a_server_without_a_password_is_not_served_where_one_is_configured(fleet: Fleet, file: Path) -> None:
    with serving(fleet, password_file=str(file)) as proxy, Connection(proxy.port) as conn:
        wait_for_error(conn, Keys(proxy).one(0), "is down: asks for no password, and backend.password_file has one")


def test_a_file_that_became_readable_for_others_is_not_used(fleet: Fleet, file: Path) -> None:
    add_user(fleet, SECRET)
    with serving(fleet, username=USER, password_file=str(file)) as proxy, Connection(proxy.port) as conn:
        key = Keys(proxy).one(0)
        wait_served(conn, key)
        file.chmod(0o644)
        fleet.shards[0].primary.ask("CLIENT", "KILL", "USER", USER)
        wait_for_error(conn, key, "expected a file for its owner only (chmod 600), got mode 644")


def test_a_request_that_is_told_to_authenticate_is_not_and_was_not_applied(fleet: Fleet) -> None:
    """The connection was let in, and is not any more: the next one may be."""
    with Hop(fleet.shards[0].primary.port, of_a_worker) as hop, serving(fleet, {0: hop}) as proxy:
        key = Keys(proxy).one(0)
        with Connection(proxy.port) as conn:
            wait_served(conn, key)
            hop.answer(b"APPEND", b"-NOAUTH Authentication required.\r\n")
            said = error(conn.ask("APPEND", key, "x"))
            assert said.startswith("TRYAGAIN shard s0 ")
            assert said.endswith(" asks for a password again, applied=no; retry later")
            wait_served(conn, key)


def test_a_server_that_repeats_the_password_is_not_repeated(fleet: Fleet, file: Path) -> None:
    said = f"-ERR unknown command 'AUTH', with args beginning with: '{SECRET}'\r\n".encode()
    with Hop(fleet.shards[0].primary.port) as hop:
        hop.answer(b"AUTH", said, times=1000)
        with serving(fleet, {0: hop}, username=USER, password_file=str(file)) as proxy, Connection(proxy.port) as conn:
            assert SECRET not in wait_for_error(conn, Keys(proxy).one(0), "is down: did not accept AUTH (ERR)")
            assert SECRET not in proxy.log.read_text()


def test_the_password_is_in_no_log_line_command_line_or_answer(fleet: Fleet, file: Path) -> None:
    add_user(fleet, SECRET)
    with serving(fleet, username=USER, password_file=str(file)) as proxy, Connection(proxy.port) as conn:
        wait_served(conn, Keys(proxy).one(0))
        seen = str(proxy_info(conn)) + proxy.log.read_text() + proxy.config.read_text()
        seen += str([command_line(pid) for pid, _ in family(proxy.pid)])
        seen += str([Path(f"/proc/{pid}/environ").read_bytes() for pid, _ in family(proxy.pid)])
        assert SECRET not in seen


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["redis", "in front of a plain server"])
def tls(request: pytest.FixtureRequest, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy whose two servers speak TLS: a redis-server that can, and, as not every machine has one, another's."""
    with contextlib.ExitStack() as stack:
        if request.param == "redis":
            fleet, ports = stack.enter_context(redis_with_tls(authority, monkeypatch))
        else:
            fleet = stack.enter_context(Fleet(shards=2, replicas=0))
            context = authority.server("127.0.0.1")
            ports = [stack.enter_context(Hop(shard.primary.port, tls=context)).port for shard in fleet.shards]
        proxy = Proxy(fleet, None, timeouts=QUICK, backend={"tls": True, "tls_ca": str(authority.file)})
        text = proxy.config.read_text()
        for shard, port in zip(fleet.shards, ports, strict=True):
            text = text.replace(shard.primary.address, f"127.0.0.1:{port}")
        proxy.config.write_text(text)
        yield stack.enter_context(proxy)


@contextlib.contextmanager
def redis_with_tls(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Fleet, list[int]]]:
    """A fleet of redis-server, and the ports where they speak TLS."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on PATH")
    monkeypatch.setenv(VARIABLE, binary)
    certificate, key = authority.server_files("127.0.0.1")
    options = ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    options += ["--tls-ca-cert-file", str(authority.file), "--tls-auth-clients", "no"]
    with contextlib.ExitStack() as stack:
        try:
            fleet = stack.enter_context(Fleet(shards=2, replicas=0, options=options))
        except FleetError as exc:
            if "Bad directive" in str(exc):
                pytest.skip("this redis-server was built without TLS")
            raise
        ports = []
        for shard in fleet.shards:
            keeper = stack.enter_context(reserve_port())
            ports.append(keeper.getsockname()[1])
            shard.primary.ask("CONFIG", "SET", "tls-port", ports[-1])
        yield fleet, ports


def test_over_tls_single_and_split_commands_are_served(tls: Proxy) -> None:
    keys = [Keys(tls).one(index) for index in (0, 1)]
    with Connection(tls.port) as conn:
        assert conn.ask("SET", keys[0], "a") == b"OK"
        assert conn.ask("GET", keys[0]) == b"a"
        assert conn.ask("MSET", keys[0], "b", keys[1], "c") == b"OK"
        assert conn.ask("MGET", *keys) == [b"b", b"c"]
        assert conn.ask("DBSIZE") == 2
        conn.send(("HELLO", 3), ("SELECT", 1), ("GET", keys[0]))
        assert conn.reads(3)[1:] == [b"OK", None]


def test_over_tls_large_values_keep_every_byte_and_their_order(tls: Proxy) -> None:
    key, other = Keys(tls).on(0, 2)
    large = bytes(range(256)) * 4096
    with Connection(tls.port) as conn:
        conn.send(("SET", key, large), ("SET", other, "small"), ("GET", key), ("GET", other), ("APPEND", key, large))
        assert conn.reads(5) == [b"OK", b"OK", large, b"small", 2 * len(large)]
        assert conn.ask("GET", key) == 2 * large


def test_over_tls_a_thousand_requests_at_once_keep_their_order(tls: Proxy) -> None:
    key = Keys(tls).one(1)
    with Connection(tls.port) as conn:
        conn.send(*[("INCR", key)] * 1000)
        assert conn.reads(1000) == list(range(1, 1001))


def test_a_connection_that_is_lost_is_made_again_over_tls(fleet: Fleet, authority: Authority) -> None:
    with (
        Hop(fleet.shards[0].primary.port, tls=authority.server("127.0.0.1")) as first,
        Hop(fleet.shards[1].primary.port, tls=authority.server("127.0.0.1")) as second,
        serving(fleet, {0: first, 1: second}, tls=True, tls_ca=str(authority.file)) as proxy,
        Connection(proxy.port) as conn,
    ):
        key = Keys(proxy).one(0)
        wait_served(conn, key)
        first.cut(reset=True)
        wait_served(conn, key)


def test_tls_and_a_password_together(fleet: Fleet, authority: Authority, file: Path) -> None:
    add_user(fleet, SECRET)
    with (
        Hop(fleet.shards[0].primary.port, tls=authority.server("127.0.0.1")) as hop,
        serving(fleet, {0: hop}, tls=True, tls_ca=str(authority.file), username=USER, password_file=str(file)) as proxy,
        Connection(proxy.port) as conn,
    ):
        wait_served(conn, Keys(proxy).one(0))
        assert users(fleet.shards[0].primary) == {USER}


@pytest.mark.parametrize(
    ("trusted", "names", "reason"),
    [
        (True, ["127.0.0.2"], "ip address mismatch, certificate is not valid for '127.0.0.1'"),
        (True, ["other.example"], "ip address mismatch, certificate is not valid for '127.0.0.1'"),
        (False, ["127.0.0.1"], "unable to get local issuer certificate"),
    ],
    ids=["another address", "a name", "an unknown authority"],
)
def test_a_certificate_that_is_not_right_is_a_shard_that_is_down_and_says_why(
    fleet: Fleet, authority: Authority, tmp_path: Path, trusted: bool, names: list[str], reason: str
) -> None:
    issuer = authority if trusted else Authority(tmp_path, "unknown")
    with (
        Hop(fleet.shards[0].primary.port, tls=issuer.server(*names)) as hop,
        serving(fleet, {0: hop}, tls=True, tls_ca=str(authority.file)) as proxy,
        Connection(proxy.port) as conn,
    ):
        said = wait_for_error(conn, Keys(proxy).one(0), "certificate not accepted")
        assert reason in said.lower()
        assert hop.requests == b"", "nothing is said to a stranger"
        lines = [line for line in proxy.log.read_text().splitlines() if "certificate not accepted" in line]
        assert {line.split()[0] for line in lines} >= {"+link-down", "+sdown"}


def test_a_plain_server_is_never_spoken_to_in_plain_text(fleet: Fleet, authority: Authority) -> None:
    with (
        Hop(fleet.shards[0].primary.port) as hop,
        behind(
            fleet, {0: hop}, timeouts={"connect_s": 0.5, "reconnect_max_s": 0.2},
            backend={"tls": True, "tls_ca": str(authority.file)},
        ) as proxy,
        Connection(proxy.port) as conn,
    ):  # fmt: skip
        wait_for_error(conn, Keys(proxy).one(0), "no tls connection within 0.5 s")
        assert b"ECHO" not in hop.requests and b"PING" not in hop.requests


def test_a_server_that_answers_tls_with_something_else_is_down_and_says_so(fleet: Fleet, authority: Authority) -> None:
    with Hop(fleet.shards[0].primary.port) as hop:
        hop.greet(b"-ERR max number of clients reached\r\n")
        with serving(fleet, {0: hop}, tls=True, tls_ca=str(authority.file)) as proxy, Connection(proxy.port) as conn:
            wait_for_error(conn, Keys(proxy).one(0), "is down: tls: ")


def test_a_server_that_wants_tls_is_down_where_it_is_not_configured(fleet: Fleet, authority: Authority) -> None:
    with (
        Hop(fleet.shards[0].primary.port, tls=authority.server("127.0.0.1")) as hop,
        serving(fleet, {0: hop}) as proxy,
        Connection(proxy.port) as conn,
    ):
        wait_for_error(conn, Keys(proxy).one(0), "is down: ")
        assert conn.ask("SET", Keys(proxy).one(1), "v") == b"OK"
