import signal
import socket
import subprocess
import sys
from pathlib import Path

import hiredis
import pytest

from pyproxy.config import Config
from pyproxy.fleet import FENCED, HOST, Fleet, LiveShard, Server, wait_until
from tests.processes import family, wait_until_gone


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
