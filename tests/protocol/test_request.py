"""Inline commands to argv as Redis splits them, and argv to the one form of a request."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.request import Block, Request, encode, split_inline
from pyproxy.fleet import Server
from tests.wire import exchange

LINES: list[tuple[bytes, list[bytes] | None]] = [
    (b"", []),
    (b"   ", []),
    (b"\r", []),
    (b"PING\r", [b"PING"]),
    (b"  get \t k\r", [b"get", b"k"]),
    (b'SET k "a b"', [b"SET", b"k", b"a b"]),
    (b'SET k "a"b', None),
    (b'SET k a"b"c', None),
    (b'SET k "abc', None),
    (b"SET k 'x", None),
    (b'SET k "abc\\', None),
    (b'SET k "abc\\"', None),
    (b"SET k 'it\\'s'", [b"SET", b"k", b"it's"]),
    (b"SET k 'a\\nb\\\\ '", [b"SET", b"k", b"a\\nb\\\\ "]),
    (b"SET k 'a\\\\'", None),
    (b'SET k "\\x41\\r\\n\\t\\a\\b\\q\\\\\\""', [b"SET", b"k", b'A\r\n\t\a\bq\\"']),
    (b'GET "x\\x4"', [b"GET", b"xx4"]),
    (b'GET "x\\xg1"', [b"GET", b"xxg1"]),
    (b'PING "ax\\xff"', [b"PING", b"ax\xff"]),
    (b'PING a"b c"', [b"PING", b"ab c"]),
    (b'""', [b""]),
    (b"'' \"\"", [b"", b""]),
    (b"a\vb\fc", [b"a\vb\fc"]),
    (b'"a"\v"b"\f', [b"a", b"b"]),
    (b"GET k\0rest", [b"GET", b"k"]),
    (b'GET "k\0"', None),
    (b"\xff\xfe \x80", [b"\xff\xfe", b"\x80"]),
]


@pytest.mark.parametrize(("line", "argv"), LINES)
def test_a_line_is_split_by_the_rules_of_redis(line: bytes, argv: list[bytes] | None) -> None:
    assert split_inline(line) == argv


def seen_by(port: int, line: bytes) -> list[bytes] | None:
    """What a server makes of the line as arguments; None if it complains about the quotes."""
    frame = exchange(port, b'EVAL "return ARGV" 0 ' + line + b"\n")
    if frame == b"-ERR Protocol error: unbalanced quotes in request\r\n":
        return None
    reader = hiredis.Reader()
    reader.feed(frame)
    argv: list[bytes] = reader.gets()
    return argv


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Redis itself: Valkey 9 has another splitter, which lets text follow a closing quote and loses bytes 0xff."""
    binary: str | None = shutil.which("redis-server")
    if binary is None or "valkey" in str(Path(binary).resolve()):
        pytest.skip("no redis-server on PATH (apt-get install redis-server)")
    server = Server("redis", binary, tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()
    server.release()


def test_random_lines_are_split_as_redis_splits_them(redis_server: Server) -> None:
    signs = [b" ", b"\t", b"\v", b"\f", b"\r", b'"', b"'", b"\\", b"x", b"4", b"F", b"n", b"a", b"q", b"\xff", b"\\x41"]
    chance = random.Random(20261122)
    lines = [b"".join(chance.choices(signs, k=chance.randrange(12))) for _ in range(2000)]
    ours = {line: split_inline(line) for line in lines}
    assert ours == {line: seen_by(redis_server.port, line) for line in lines}


def in_double_quotes(argument: bytes) -> bytes:
    return b'"' + b"".join(b"\\x%02x" % byte for byte in argument) + b'"'


def in_single_quotes(argument: bytes) -> bytes:
    return b"'" + argument.replace(b"'", b"\\'") + b"'"


PRINTABLE = st.binary(max_size=12).map(lambda raw: bytes(32 + byte % 95 for byte in raw))
QUOTED = st.binary(max_size=12).map(lambda raw: (raw, in_double_quotes(raw))) | PRINTABLE.filter(
    lambda text: b"\\" not in text
).map(lambda text: (text, in_single_quotes(text)))
SEPARATOR = st.sampled_from([b" ", b"\t", b"  ", b" \r"])


@given(st.lists(st.tuples(QUOTED, SEPARATOR), max_size=6))
def test_every_argument_can_be_quoted(pieces: list[tuple[tuple[bytes, bytes], bytes]]) -> None:
    line = b"".join(quoted + separator for (_, quoted), separator in pieces)
    assert split_inline(line) == [argument for (argument, _), _ in pieces]


@settings(max_examples=50)
@given(st.lists(st.tuples(QUOTED, SEPARATOR), max_size=6))
def test_quoted_arguments_are_what_the_server_sees(
    server: Server, pieces: list[tuple[tuple[bytes, bytes], bytes]]
) -> None:
    line = b"".join(quoted + separator for (_, quoted), separator in pieces)
    assert seen_by(server.port, line) == split_inline(line)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=8))
def test_a_request_is_an_array_of_bulk_strings(argv: list[bytes]) -> None:
    assert encode(argv) == hiredis.pack_command(tuple(argv))  # type: ignore[arg-type]  # typed for one word


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=8))
def test_an_encoded_request_is_read_as_its_arguments(argv: list[bytes]) -> None:
    reader = hiredis.Reader()
    reader.feed(encode(argv))
    assert reader.gets() == argv
    assert not reader.has_data()


def test_a_block_is_its_requests_between_multi_and_exec() -> None:
    inside = [Request([b"GET", b"k"]), Request([b"DEL", b"k"])]
    block = Block(inside)
    assert block.frame == encode([b"MULTI"]) + inside[0].frame + inside[1].frame + encode([b"EXEC"])
    assert block.queued == 2
    block.add(Request([b"INCR", b"k"]))
    assert block.queued == 3
    assert block.frame.endswith(encode([b"INCR", b"k"]) + encode([b"EXEC"]))
    assert block.size == len(block.frame)


def test_a_block_of_nothing_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="expected a block of at least one request, got none"):
        Block([])
    with pytest.raises(ValueError, match="expected a block of at least one request, got none"):
        Block(iter(()))


def test_a_request_of_nothing_cannot_be_made_as_no_server_answers_it() -> None:
    for make in (encode, Request):
        with pytest.raises(ValueError, match="expected a request with at least a name, got none"):
            make([])


WHOLE = encode([b"SET", b"k", b"\r\n*0\r\n"])


@pytest.mark.parametrize(
    "frame", [b"", b"*0\r\n", b"PING\r\n", b"\r\n", WHOLE[:-1], WHOLE + WHOLE, WHOLE + b"*0\r\n", b"*1\r\n$01\r\nx\r\n"]
)
def test_a_request_is_made_of_exactly_one_frame(frame: bytes) -> None:
    assert (Request.of_frame(WHOLE).frame, Request.of_frame(WHOLE).size) == (WHOLE, len(WHOLE))
    with pytest.raises(ValueError, match="expected exactly one request"):
        Request.of_frame(frame)
