"""examples/haproxy-backoff as HTTP clients see it: the real HAProxy in front of an application that answers as
loop-server does, which knows one constant Retry-After and no Backoff; behind it the proxy and real servers."""

import http.client
import http.server
import shutil
import socketserver
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from pyproxy.fleet import HOST, Fleet, Proxy, reserve_port, wait_until
from tests.e2e.process.test_backoff import Got, HttpProgram
from tests.e2e.rig import PATIENCE_S, Connection, wait_for_line

EXAMPLE = Path(__file__).parents[3] / "examples" / "haproxy-backoff"

CONSTANT = "30"  # loop-server's retryAfter
EXPOSED = "Access-Control-Expose-Headers"


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed")


@dataclass
class Answers:
    """A server of HTTP that answers by a function of the path: status and headers."""

    answer: Any
    asked: list[str] = field(default_factory=list)

    @contextmanager
    def serving(self) -> Iterator[int]:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                status, headers = outer.answer(self.path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True
            request_queue_size = 128

        with Server((HOST, 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            try:
                yield server.server_address[1]
            finally:
                server.shutdown()


def loop_server(redis_port: int) -> Any:
    """Any error of Redis is a 503 with its one constant; /__lbheartbeat__ and what it does not know never ask Redis."""

    def answer(path: str) -> tuple[int, dict[str, str]]:
        if path == "/__lbheartbeat__":
            return 200, {}
        if path == "/too-many":
            return 429, {"Retry-After": CONSTANT}
        with Connection(redis_port) as conn:
            if conn.ask("SETEX", path, 3600, "now") == b"OK":
                return 200, {EXPOSED: "Hawk-Session-Token"}
        return 503, {"Retry-After": CONSTANT, EXPOSED: "Hawk-Session-Token"}

    return answer


@contextmanager
def haproxy(directory: Path, app_port: int, status_port: int) -> Iterator[HttpProgram]:
    command = ["haproxy", "-db", "-f", str(EXAMPLE / "haproxy.cfg")]
    where: dict[str, str | int] = {"APP_PORT": app_port, "STATUS_PORT": status_port}
    where["LUA"] = str(EXAMPLE / "backoff.lua")
    with HttpProgram(directory, "haproxy", command, **where) as http:
        yield http


@dataclass
class Site:
    fleet: Fleet
    proxy: Proxy
    status: int  # the port where the proxy tells how it is
    http: HttpProgram

    def heartbeat(self) -> tuple[int, str]:
        """The status and the seconds that the proxy tells itself."""
        connection = http.client.HTTPConnection(HOST, self.status, timeout=PATIENCE_S)
        try:
            connection.request("GET", "/__heartbeat__")
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.getheader("Backoff", "")
        finally:
            connection.close()


@contextmanager
def running(replicas: int = 0, **promotion: str | float) -> Iterator[Site]:
    with ExitStack() as stack:
        fleet = stack.enter_context(Fleet(shards=1, replicas=replicas))
        keeper = stack.enter_context(reserve_port())
        status: int = keeper.getsockname()[1]
        proxy = stack.enter_context(Proxy(fleet, http={"listen": f"{HOST}:{status}"}, promotion=promotion))
        app = stack.enter_context(Answers(loop_server(proxy.port)).serving())
        yield Site(fleet, proxy, status, stack.enter_context(haproxy(fleet.directory, app, status)))


@pytest.fixture
def site() -> Iterator[Site]:
    with running() as site:
        yield site


def exposed(headers: Message) -> set[str]:
    """The headers that a page of another origin may read."""
    return {name.strip() for line in headers.get_all(EXPOSED, []) for name in line.split(",")}


def test_its_503s_say_the_seconds_of_the_proxy_and_not_its_constant_and_end_with_the_outage(site: Site) -> None:
    well = site.http.wait_for("GET", "/", 200)
    assert well.headers["Retry-After"] is well.headers["Backoff"] is None
    site.fleet.shards[0].primary.kill()
    wait_until("the proxy to know", lambda: site.heartbeat()[0] == 503, site.proxy.tail, PATIENCE_S)
    before = int(site.heartbeat()[1])
    refused = site.http.wait_for("GET", "/", 503)
    after = int(site.heartbeat()[1])
    assert before <= refused.backoff <= after  # without replicas: as long again as it has lasted
    assert exposed(refused.headers) == {"Hawk-Session-Token", "Retry-After", "Backoff"}
    site.fleet.shards[0].primary.start()
    back = site.http.wait_for("GET", "/", 200)
    assert back.headers["Retry-After"] is back.headers["Backoff"] is None
    assert exposed(back.headers) == {"Hawk-Session-Token"}


def test_where_writes_are_held_a_primary_that_is_killed_costs_no_http_client_an_error() -> None:
    """As examples/loop-server.toml says of "hold". The bounds of the time it may take are those of a busy machine."""
    profile = tomllib.loads((EXAMPLE.parent / "loop-server.toml").read_text())["promotion"]
    hold = {"on_promotion": "hold", "state_file": "", "hold_s": PATIENCE_S, "hold_incident_s": PATIENCE_S}
    with running(replicas=1, **{**profile, **hold}) as site:
        site.http.wait_for("GET", "/", 200)
        site.fleet.shards[0].primary.kill()
        wait_for_line(site.proxy, r"\+link-lost ")  # one that is in flight when it dies is -UNCERTAIN
        assert site.http.ask("GET", "/").status == 200
        assert site.fleet.shards[0].replicas[0].ask("GET", "/") == b"now"


def test_what_is_no_503_passes_as_it_is(site: Site) -> None:
    busy = site.http.ask("GET", "/too-many")
    assert (busy.status, busy.headers["Retry-After"], busy.headers["Backoff"]) == (429, CONSTANT, None)
    assert site.http.ask("GET", "/__lbheartbeat__") == Got(200, "")


# --- with an application and a proxy that say what they are told to say -----------------------------------------------


@contextmanager
def told(directory: Path, headers: dict[str, str], status: int, **said: str) -> Iterator[tuple[HttpProgram, Answers]]:
    """HAProxy in front of 503s with these headers, with this heartbeat."""
    proxy = Answers(lambda _path: (status, said))
    app = Answers(lambda path: (200, {}) if path == "/__lbheartbeat__" else (503, headers))
    with proxy.serving() as status_port, app.serving() as app_port, haproxy(directory, app_port, status_port) as http:
        yield http, proxy


@pytest.mark.parametrize(
    ("status", "said", "seconds"),
    [
        pytest.param(503, {"Backoff": "7", "Retry-After": "7"}, 7, id="a shard is down"),
        pytest.param(503, {"backoff": "12"}, 12, id="in other letters"),
        pytest.param(200, {}, 1, id="all are well"),
        pytest.param(404, {}, 30, id="somebody else listens there"),
    ],
)
def test_the_seconds_are_those_of_the_heartbeat(
    tmp_path: Path, status: int, said: dict[str, str], seconds: int
) -> None:
    with told(tmp_path, {"Retry-After": CONSTANT}, status, **said) as (http, _):
        assert http.wait_for("GET", "/", 503).backoff == seconds


@pytest.mark.parametrize(("own", "seconds"), [({"Retry-After": "17"}, 17), ({}, 30)])
def test_a_proxy_that_cannot_be_asked_leaves_the_applications_own_word(
    tmp_path: Path, own: dict[str, str], seconds: int
) -> None:
    app = Answers(lambda path: (200, {}) if path == "/__lbheartbeat__" else (503, own))
    with ExitStack() as stack:
        silent: int = stack.enter_context(reserve_port()).getsockname()[1]
        http = stack.enter_context(haproxy(tmp_path, stack.enter_context(app.serving()), silent))
        assert http.wait_for("GET", "/", 503).backoff == seconds


def test_without_an_application_haproxy_says_503_with_both_headers_itself(tmp_path: Path) -> None:
    with reserve_port() as gone, haproxy(tmp_path, gone.getsockname()[1], 1) as http:
        refused = http.wait_for("GET", "/", 503)
        assert refused.backoff == 5
        assert exposed(refused.headers) == {"Retry-After", "Backoff"}


def test_many_503s_ask_the_proxy_no_more_than_four_times_a_second(tmp_path: Path) -> None:
    with told(tmp_path, {}, 503, Backoff="3") as (http, proxy):
        began = time.monotonic()
        assert {http.ask("GET", "/").backoff for _ in range(300)} == {3}
        assert 1 <= len(proxy.asked) <= (time.monotonic() - began) / 0.25 + 1
    assert set(proxy.asked) == {"/__heartbeat__"}
