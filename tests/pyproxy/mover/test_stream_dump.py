"""The number of groups in the DUMP of streams of real servers."""

from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Server
from pyproxy.mover.stream_dump import groups
from tests.servers import KINDS, servers_of


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest) -> Iterator[Server]:
    with servers_of(request.param), Fleet(shards=1, replicas=0) as fleet:
        yield fleet.shards[0].primary


def dumped(server: Server, name: str) -> bytes:
    dump = server.ask("DUMP", name)
    assert isinstance(dump, bytes)
    return dump


@pytest.mark.parametrize("compressed", ["yes", "no"])
@pytest.mark.parametrize("entries", [0, 1, 99, 5000])
async def test_it_is_found_behind_entries_of_any_number(source: Server, entries: int, compressed: str) -> None:
    source.ask("CONFIG", "SET", "rdbcompression", compressed)
    source.ask("XADD", "a", "1-1", "x", "y")
    source.ask("XDEL", "a", "1-1")
    fill = "for i=1,{} do redis.call('XADD', 'a', '*', 'f' .. i, string.rep('v', i % 300), 'n', i) end"
    source.ask("EVAL", fill.format(entries), "0")
    for count in range(4):
        assert groups(dumped(source, "a"), 0) == count
        assert groups(b"$9999\r\n" + dumped(source, "a"), 7) == count
        source.ask("XGROUP", "CREATE", "a", f"group {count}", "0")
        source.ask("XREADGROUP", "GROUP", f"group {count}", "me", "COUNT", "10", "STREAMS", "a", ">")


async def test_of_what_is_no_stream_or_not_whole_nothing_is_known(source: Server) -> None:
    source.ask("SET", "a", "x")
    assert groups(dumped(source, "a"), 0) is None
    source.ask("XADD", "b", "*", "x", "y" * 1000)
    dump = dumped(source, "b")
    assert groups(dump[:40], 0) is None
    assert groups(b"\xff" + dump[1:], 0) is None
