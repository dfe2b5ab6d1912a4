"""examples/backoff as its HTTP clients see it: HAProxy, the application, the proxy, real servers."""

import http.client
import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from pyproxy.fleet import HOST, Fleet, ListeningProcess, Managed, Proxy, Server, reserve_port, wait_until
from tests.e2e.clients import node
from tests.e2e.rig import PATIENCE_S, Keys
from tests.faults import End, Hop, Way

EXAMPLE = Path(__file__).parents[3] / "examples" / "backoff"
MODULES = node.ROOT / "build" / "backoff" / "node_modules"

# The primary is dead for long enough that a client comes by meanwhile.
PROMOTION: dict[str, str | float] = {"promoter": "replicaof", "on_promotion": "reject", "down_after_s": 1.5}

DEFAULT_S = 5  # of app.js


@dataclass(frozen=True)
class Got:
    status: int
    body: str
    headers: Message = field(compare=False, default_factory=Message)

    @property
    def backoff(self) -> int:
        """What both headers of a 503 say, in whole seconds."""
        assert self.status == 503, self
        assert self.headers["Retry-After"] == self.headers["Backoff"], self
        seconds: str = self.headers["Backoff"]
        assert seconds.isdecimal(), self
        return int(seconds)

    @property
    def applied(self) -> str:
        """What the body says became of the request."""
        body: dict[str, Any] = json.loads(self.body)
        assert f"applied={body['applied']}" in body["message"]
        return str(body["applied"])


class HttpProgram(ListeningProcess, Managed):
    """A program that serves HTTP on a port of its own, given by an environment variable."""

    def __init__(self, directory: Path, name: str, command: list[str], **environment: str | int) -> None:
        reservation = reserve_port()
        unique = f"{name}-{reservation.getsockname()[1]}"
        super().__init__(unique, directory / f"{unique}.log", reservation)
        port = {f"{'HTTP_' if name == 'haproxy' else ''}PORT": self.port}
        self._command = ["env", *(f"{key}={value}" for key, value in (port | environment).items()), *command]

    def command(self) -> list[str]:
        return self._command

    def start(self) -> None:
        """Return when somebody accepts there."""
        self.launch()
        wait_until(f"{self.name} to listen", self._accepts, self.tail)

    def _accepts(self) -> bool:
        with socket.socket() as connection:
            return connection.connect_ex((HOST, self.port)) == 0

    def ask(self, method: str, path: str, body: str | None = None) -> Got:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, None if body is None else body.encode())
            answer = connection.getresponse()
            return Got(answer.status, answer.read().decode(), answer.headers)
        finally:
            connection.close()

    def put(self, key: str, value: str = "v") -> Got:
        return self.ask("PUT", f"/{key}", value)

    def get(self, key: str) -> Got:
        return self.ask("GET", f"/{key}")

    def wait_for(self, method: str, path: str, status: int) -> Got:
        """The first answer with that status; FleetError with the last one if it does not come."""
        got: list[Got] = []

        def there() -> bool:
            got[:] = [self.ask(method, path, "v" if method == "PUT" else None)]
            return got[0].status == status

        wait_until(f"{method} {path} to be {status}", there, lambda: f"it is {got}\n{self.tail(30)}", PATIENCE_S)
        return got[0]


def application(directory: Path, redis_port: int, **environment: int) -> HttpProgram:
    command = ["node", str(EXAMPLE / "app.js")]
    return HttpProgram(directory, "app", command, REDIS_PORT=redis_port, NODE_PATH=str(MODULES), **environment)


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed")
    node.install(EXAMPLE / "package.json", MODULES)


@dataclass
class Site:
    """All of it; `http` is where clients go."""

    fleet: Fleet
    proxy: Proxy
    app: HttpProgram
    between: Hop  # HAProxy and the application
    http: HttpProgram

    def key(self, shard: int) -> str:
        return Keys(self.proxy).one(shard)

    def wait_for_checks(self, more: int) -> None:
        """Until HAProxy has looked at the application so often; each of its checks is a connection of its own."""
        seen = self.checks()
        wait_until(f"{more} checks", lambda: self.checks() >= seen + more, lambda: f"{seen} before", PATIENCE_S)

    def checks(self) -> int:
        return self.between.requests.count(b"GET /__lbheartbeat__ ")


@contextmanager
def running(shards: int, **promotion: str | float) -> Iterator[Site]:
    with ExitStack() as stack:
        fleet = stack.enter_context(Fleet(shards=shards, replicas=1))
        proxy = stack.enter_context(Proxy(fleet, promotion=promotion))
        app = stack.enter_context(application(fleet.directory, proxy.port))
        between = stack.enter_context(Hop(app.port))
        haproxy = ["haproxy", "-db", "-f", str(EXAMPLE / "haproxy.cfg")]
        http = stack.enter_context(HttpProgram(fleet.directory, "haproxy", haproxy, APP_PORT=between.port))
        http.wait_for("GET", "/__heartbeat__", 200)
        yield Site(fleet, proxy, app, between, http)


# Each test has a shard of its own to hurt; nobody hurts s2.
KILLED, STOPPED, BYSTANDER = 0, 1, 2


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running(3, **PROMOTION) as site:
        yield site


def test_what_was_put_is_got(site: Site) -> None:
    key = site.key(BYSTANDER)
    assert site.http.put(key, "wörth") == Got(204, "")
    assert site.http.get(key) == Got(200, "wörth")
    assert site.http.put(key, "") == Got(204, "")
    assert site.http.get(key) == Got(200, "")
    assert site.http.get(key + "-never").status == 404


def test_a_killed_primary_is_503_with_both_headers_and_then_it_is_written_to_again(site: Site) -> None:
    key, other = site.key(KILLED), site.key(BYSTANDER)
    site.http.wait_for("PUT", f"/{key}", 204)
    site.fleet.shards[KILLED].primary.kill()
    refused = site.http.wait_for("PUT", f"/{key}", 503)
    assert 1 <= refused.backoff <= 10
    assert refused.applied == "no"
    assert site.http.put(other) == Got(204, "")
    assert site.http.get("__lbheartbeat__").status == 200
    site.http.wait_for("PUT", f"/{key}", 204)
    assert site.http.put(key, "after") == Got(204, "")
    assert site.http.get(key) == Got(200, "after")
    assert site.fleet.shards[KILLED].replicas[0].ask("GET", key) == b"after"


def test_a_write_that_may_have_been_applied_is_503_and_says_so(site: Site) -> None:
    key = site.key(STOPPED)
    site.http.wait_for("PUT", f"/{key}", 204)
    site.fleet.shards[STOPPED].primary.pause()
    uncertain = site.http.put(key)
    assert (uncertain.backoff, uncertain.applied) == (DEFAULT_S, "unknown")
    site.http.wait_for("PUT", f"/{key}", 204)


def test_a_shard_that_nobody_can_take_over_is_in_the_heartbeat_and_not_in_that_of_the_load_balancer() -> None:
    with running(1, **PROMOTION) as site:
        for server in (*site.fleet.shards[0].replicas, site.fleet.shards[0].primary):
            server.kill()
        unwell = site.http.wait_for("GET", "/__heartbeat__", 503)
        assert 1 <= unwell.backoff <= 30
        assert json.loads(unwell.body) == {"storage": False}
        site.wait_for_checks(3)
        assert site.http.get("__lbheartbeat__").status == 200
        site.http.wait_for("GET", f"/{site.key(0)}", 503)


def test_the_application_outlives_the_proxy(site: Site) -> None:
    key, app = site.key(BYSTANDER), site.app.pid
    site.proxy.kill()
    gone = site.http.wait_for("PUT", f"/{key}", 503)
    assert gone.backoff == DEFAULT_S
    assert site.http.get(key).applied == "no"
    site.proxy.start()
    site.http.wait_for("PUT", f"/{key}", 204)
    assert site.app.running and site.app.pid == app


def test_without_an_application_haproxy_says_503_with_both_headers_itself(site: Site) -> None:
    site.app.kill()
    gone = site.http.wait_for("GET", "/__lbheartbeat__", 503)
    assert (gone.backoff, gone.applied) == (DEFAULT_S, "no")
    site.app.start()
    site.http.wait_for("GET", "/__heartbeat__", 200)


def test_a_body_that_is_left_out_is_an_empty_value(site: Site) -> None:
    key = site.key(BYSTANDER)
    connection = http.client.HTTPConnection(HOST, site.http.port, timeout=PATIENCE_S)
    connection.putrequest("PUT", f"/{key}")  # request() would send a Content-Length
    connection.endheaders()
    assert connection.getresponse().status == 204
    connection.close()
    assert site.http.get(key) == Got(200, "")


# --- what errors become, whoever says them ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hop(server: Server) -> Iterator[Hop]:
    with Hop(server.port) as hop:
        yield hop


@pytest.fixture(scope="module")
def app(server: Server, hop: Hop) -> Iterator[HttpProgram]:
    """In front of one server that says what it is told to say."""
    with application(server.log.parent, hop.port) as app:
        app.wait_for("GET", "/__heartbeat__", 200)
        yield app


PROMOTED = "TRYAGAIN shard s3 (127.0.0.1:7003) is being promoted, applied=no"


@pytest.mark.parametrize(
    ("line", "seconds", "applied"),
    [
        (f"{PROMOTED} retry_after_ms=800; retry later", 1, "no"),
        (f"{PROMOTED} retry_after_ms=1000; retry later", 1, "no"),
        (f"{PROMOTED} retry_after_ms=1001; retry later", 2, "no"),
        (f"{PROMOTED} retry_after_ms=0; retry later", 1, "no"),
        (f"{PROMOTED}; retry later", DEFAULT_S, "no"),
        ("UNCERTAIN shard s3 (127.0.0.1:7003) hangs, applied=unknown; read the key", DEFAULT_S, "unknown"),
        ("UNCERTAIN shard s3: as retry_after_ms=800 had it, applied=no", DEFAULT_S, "unknown"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", DEFAULT_S, "unknown"),
        ("LOADING Redis is loading the dataset in memory", DEFAULT_S, "unknown"),
    ],
)
def test_an_error_becomes_503_with_whole_seconds(
    line: str, seconds: int, applied: str, hop: Hop, app: HttpProgram
) -> None:
    hop.answer(b"set", f"-{line}\r\n".encode())
    refused = app.put("key")
    assert (refused.backoff, refused.applied) == (seconds, applied)
    assert "127.0.0.1" not in refused.body
    assert app.put("key") == Got(204, "")


@pytest.mark.parametrize("line", ["WRONGTYPE Operation against a key", "ERR syntax error"])
def test_a_request_that_is_wrong_is_no_reason_to_come_back(line: str, hop: Hop, app: HttpProgram) -> None:
    hop.answer(b"get", f"-{line}\r\n".encode())
    refused = app.get("key")
    assert (refused.status, refused.applied) == (500, "no")
    assert "Retry-After" not in refused.headers


def test_a_connection_that_is_lost_with_a_write_out_is_503_and_the_write_unknown(hop: Hop, app: HttpProgram) -> None:
    hop.answer(b"set", b"", End.RST)
    lost = app.put("key")
    assert (lost.backoff, lost.applied) == (DEFAULT_S, "unknown")
    app.wait_for("PUT", "/key", 204)


def test_a_reply_that_does_not_come_is_503_and_a_late_one_is_nobodys(hop: Hop, server: Server) -> None:
    with application(server.log.parent, hop.port, ANSWER_MS=200) as app:
        app.wait_for("PUT", "/key", 204)
        hop.stall(Way.REPLIES)
        for refused in (app.put("key", "late"), app.get("key")):
            assert (refused.backoff, refused.applied) == (DEFAULT_S, "unknown")
        hop.heal()
        wait_until("the next", lambda: app.get("key") == Got(200, "late"), app.tail, PATIENCE_S)
        assert app.running


def test_seconds_that_the_proxy_tells_in_its_info_are_in_the_heartbeat(hop: Hop, app: HttpProgram) -> None:
    told = b"# Proxy\r\nproxy_backoff_seconds:7\r\n"
    hop.answer(b"proxy", b"$%d\r\n%s\r\n" % (len(told), told))
    assert app.get("__heartbeat__").backoff == 7
    assert app.get("__heartbeat__").status == 200
