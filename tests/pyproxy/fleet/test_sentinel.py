import socket

import hiredis
import pytest

from pyproxy.fleet import HOST, Fleet, Sentinels, ask
from tests.processes import family, wait_until_gone


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
