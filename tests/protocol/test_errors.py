"""The proxy's error lines: Redis' own texts where Redis has one, and what the others promise."""

import inspect
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import errors
from protocol.request import encode
from pyproxy.fleet import Server
from tests.wire import exchange

NODE = "127.0.0.1:7003"
DOWN = errors.shard_down("s3", NODE, "connection refused")
SLOW_WRITE = errors.uncertain("s3", NODE, errors.no_reply(1.0))

SAID_BY_REDIS = [
    (b"GET", errors.wrong_arity("get")),
    (b"CLIENT ID x", errors.wrong_arity("client|id")),
    (b"CLIENT Foo x", errors.unknown_subcommand("client", b"Foo")),
    (b"SET a b c", errors.syntax_error()),
    (b"SELECT a", errors.not_an_integer()),
    (b"SELECT 3000000000", errors.not_a_c_int()),
    (b"SELECT 16", errors.db_index_out_of_range()),
    (b"HELLO 4", errors.unsupported_protocol()),
    (b"HELLO x", errors.protocol_version_not_an_integer()),
    (b"HELLO 2 Bad", errors.hello_option(b"Bad")),
    (b"AUTH x", errors.auth_without_password()),
    (b"AUTH bob x", errors.wrong_password()),
    (b"CLIENT SETNAME a\xe9", errors.bad_client_name()),
    (b"CLIENT LIST TYPE Bad", errors.unknown_client_type(b"Bad")),
    (b"COMMAND GETKEYS nosuch x", errors.getkeys_unknown_command()),
    (b"COMMAND GETKEYS get x y", errors.getkeys_wrong_arity()),
    (b"COMMAND GETKEYS ping x", errors.getkeys_no_keys()),
    (b"COMMAND GETKEYS zunionstore x 9 a", errors.getkeys_bad_arguments()),
    (b"RENAME nosuch x", errors.no_such_key()),
    (b'"', errors.unbalanced_quotes()),
]


@pytest.mark.parametrize(("request_line", "expected"), SAID_BY_REDIS)
def test_a_line_that_redis_has_is_redis_own(server: Server, request_line: bytes, expected: bytes) -> None:
    assert exchange(server.port, request_line + b"\r\n") == expected


@pytest.mark.parametrize(
    ("request_line", "expected"),
    [
        (b"CLIENT SETINFO LIB-NAME a\xe9", errors.bad_client_info("LIB-NAME")),
        (b"CLIENT SETINFO Bad x", errors.unknown_client_attribute(b"Bad")),
    ],
)
def test_a_line_that_only_newer_servers_have_is_theirs(server: Server, request_line: bytes, expected: bytes) -> None:
    reply = exchange(server.port, request_line + b"\r\n")
    if b"unknown subcommand" in reply:
        pytest.skip("CLIENT SETINFO came with Redis 7.2, this server is older")
    assert reply == expected


@pytest.mark.parametrize(
    "argv",
    [
        [b""],
        [b"foo", b"a", b"b"],
        [b"foo", b"a" * 100, b"b" * 100, b"c"],
        [b"foo", b"a" * 125, b"b"],
        [b"foo", b"a" * 126, b"b"],
        [b"foo", b"a" * 200, b"b"],
        [b"foo", *[b"x"] * 60],
        [b"f" * 200, b"a"],
        [b"fo\r\n-ERR x", b"a\r\nb", b"\0hidden", b"z\0y", b"\xff\x80"],
    ],
)
def test_an_unknown_command_is_told_as_redis_tells_it(server: Server, argv: list[bytes]) -> None:
    assert errors.unknown_command(argv) == exchange(server.port, encode(argv))


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=140), max_size=5))
def test_any_arguments_of_an_unknown_command_are_cut_where_redis_cuts_them(
    server: Server, arguments: list[bytes]
) -> None:
    argv = [b"nosuch", *arguments]
    assert errors.unknown_command(argv) == exchange(server.port, encode(argv))


def test_an_unknown_subcommand_is_cut_at_128_bytes(server: Server) -> None:
    sub = b"f\r\nX" + b"x" * 200
    assert errors.unknown_subcommand("client", sub) == exchange(server.port, encode([b"client", sub]))


WORDS = {"no_reply", "not_read", "garbled"}  # they make a reason, not a line
LINES = [
    line
    for name, line in inspect.getmembers(errors, inspect.isfunction)
    if name not in WORDS and not name.startswith("_")
]


def hostile(line: Callable[..., object]) -> object:
    """The line for arguments that try to break out of it."""
    kinds: dict[str, object] = {
        "float": 1.0,
        "int": 1,
        "bytes": b"-ERR x\r\n-ERR y\r\n",
        "Sequence[bytes]": [b"a\r\n", b"b\r\n"],
    }
    parameters = inspect.signature(line).parameters.values()
    return line(*(kinds.get(str(each.annotation), "x\r\n-ERR y") for each in parameters if each.default is each.empty))


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.__name__)
def test_every_line_is_one_line(line: Callable[..., object]) -> None:
    reply = hostile(line)
    assert isinstance(reply, bytes)
    assert reply.startswith(b"-") and reply.endswith(b"\r\n")
    assert not set(b"\r\n") & set(reply[1:-2])


def test_a_shard_that_is_down_says_which_and_why_and_that_nothing_was_applied() -> None:
    assert DOWN == b"-TRYAGAIN shard s3 (127.0.0.1:7003) is down: connection refused, applied=no; retry later\r\n"


@pytest.mark.parametrize(
    "line",
    [
        DOWN,
        errors.not_applied("s3", NODE, errors.no_reply(0.25)),
        errors.not_applied("s3", NODE, errors.garbled("expected CRLF")),
    ],
)
def test_tryagain_promises_that_nothing_was_applied(line: bytes) -> None:
    assert line.startswith(b"-TRYAGAIN shard s3 (127.0.0.1:7003) ") and b"applied=no;" in line


@pytest.mark.parametrize("why", [errors.no_reply(0.25), errors.garbled("expected CRLF"), errors.LOST])
def test_uncertain_never_claims_to_know(why: str) -> None:
    line = errors.uncertain("s3", NODE, why)
    assert line.startswith(b"-UNCERTAIN shard s3 (127.0.0.1:7003) " + why.encode()) and b"applied=unknown;" in line


def test_a_refusal_names_the_command_and_gives_the_reason() -> None:
    reply = errors.refused("CLIENT|KILL", "connections end at the proxy")
    assert reply == b"-ERR command 'client|kill' is not served by this proxy: connections end at the proxy\r\n"


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        (
            DOWN,
            b"-UNCERTAIN shard s3: 127.0.0.1:7003 is down: connection refused; "
            b"other shards may have applied their part: s1, s5\r\n",
        ),
        (
            b"-OOM command not allowed; really\r\n",
            b"-UNCERTAIN shard s3: OOM command not allowed; really; "
            b"other shards may have applied their part: s1, s5\r\n",
        ),
        (
            b"-MOVED 3 10.0.0.9:6379\r\n",
            b"-UNCERTAIN shard s3: answered with a redirection (MOVED); "
            b"other shards may have applied their part: s1, s5\r\n",
        ),
    ],
)
def test_a_split_write_that_failed_in_part_names_the_shards_that_may_have_applied_theirs(
    part: bytes, whole: bytes
) -> None:
    assert errors.part_failed("s3", part, applied_by=["s1", "s5"]) == whole


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        (DOWN, b"-TRYAGAIN shard s3: 127.0.0.1:7003 is down: connection refused, applied=no; retry later\r\n"),
        (
            errors.gate_closed("s3", "127.0.0.1:7003", "is being promoted", 800),
            b"-TRYAGAIN shard s3: 127.0.0.1:7003 is being promoted, applied=no retry_after_ms=800; retry later\r\n",
        ),
        (b"-LOADING Redis is loading\r\n", b"-LOADING shard s3: Redis is loading\r\n"),
        (b"-ERR odd\r\n", b"-ERR shard s3: odd\r\n"),
        (b"-ASK 3 10.0.0.9:6379\r\n", b"-ERR shard s3: answered with a redirection (ASK)\r\n"),
        (b"-ODD\r\n", b"-ODD shard s3: \r\n"),
    ],
)
def test_a_split_command_that_was_applied_nowhere_keeps_the_code_and_names_the_shard(part: bytes, whole: bytes) -> None:
    assert errors.part_failed("s3", part) == whole


def test_a_split_write_whose_only_doubt_is_one_shard_is_uncertain_all_the_same() -> None:
    whole = errors.part_failed("s3", SLOW_WRITE)
    assert whole.startswith(b"-UNCERTAIN shard s3: 127.0.0.1:7003 did not answer within 1 s;")
    assert b"applied=no" not in whole


@pytest.mark.parametrize(
    ("line", "whole"),
    [
        (
            DOWN,
            b"-UNCERTAIN shard s3: 127.0.0.1:7003 is down: connection refused; "
            b"other shards may have applied their part: s1\r\n",
        ),
        (
            b"-OOM command not allowed\r\n",
            b"-UNCERTAIN OOM command not allowed; these shards have applied their part: s1\r\n",
        ),
    ],
)
def test_a_command_that_ends_half_done_is_uncertain_and_names_who_has_done_his_part(line: bytes, whole: bytes) -> None:
    assert errors.half_done(line, ["s1"]) == whole


def test_what_leaves_nothing_behind_may_be_asked_again_whatever_became_of_it() -> None:
    assert errors.leaves_nothing(SLOW_WRITE) == errors.not_applied("s3", NODE, errors.no_reply(1.0))
    assert errors.leaves_nothing(DOWN) == DOWN
