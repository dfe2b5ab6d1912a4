"""What a server says of its limits, in either protocol, and what it says instead."""

import pytest

from protocol.reply import Value, encode
from pyproxy.worker.shard.server_limits import BULK, HEADROOM, MIB, MIN_LIMIT, QUERY_BUFFER, ServerLimits

DEFAULTS: dict[Value, Value] = {
    b"proto-max-bulk-len": b"536870912",
    b"client-query-buffer-limit": b"1073741824",
    b"client-output-buffer-limit": b"normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60",
    b"maxmemory-clients": b"0",
}


def said(*, proto: int = 2, **changed: str) -> bytes:
    settings: dict[Value, Value] = {**DEFAULTS}
    for name, value in changed.items():
        settings[name.replace("_", "-").encode()] = value.encode()
    return encode(settings, proto)


@pytest.mark.parametrize("proto", [2, 3])
def test_the_defaults_of_redis_bound_nothing_that_the_proxy_takes(proto: int) -> None:
    heard = ServerLimits().with_reply(said(proto=proto))
    assert heard == ServerLimits(BULK, QUERY_BUFFER - HEADROOM)
    assert heard.risks == ()


@pytest.mark.parametrize("proto", [2, 3])
def test_the_smaller_of_both_limits_of_a_request_bounds_an_argument(proto: int) -> None:
    heard = ServerLimits().with_reply(said(proto=proto, proto_max_bulk_len="3145728"))
    assert (heard.argument, heard.block) == (3 * MIB, QUERY_BUFFER - HEADROOM)
    heard = ServerLimits().with_reply(said(proto=proto, client_query_buffer_limit="2097152"))
    assert (heard.argument, heard.block) == (2 * MIB - HEADROOM, 2 * MIB - HEADROOM)


def test_no_limit_is_below_what_every_server_takes() -> None:
    heard = ServerLimits().with_reply(said(proto_max_bulk_len="1", client_query_buffer_limit="1"))
    assert (heard.argument, heard.block) == (MIN_LIMIT, MIN_LIMIT)


def test_the_timeout_is_another_question_and_changes_nothing_else() -> None:
    heard = ServerLimits().with_reply(said(proto_max_bulk_len="3145728"))
    later = heard.with_reply(encode({b"timeout": b"300"}, 2))
    assert (later.argument, later.idle_s) == (3 * MIB, 300)


def test_output_buffers_with_a_limit_and_evictions_are_risks() -> None:
    heard = ServerLimits().with_reply(said(client_output_buffer_limit="normal 0 8388608 60 slave 0 0 0 pubsub 0 0 0"))
    assert heard.risks == (("client-output-buffer-limit", "normal 0 8388608 60"),)
    heard = ServerLimits().with_reply(said(maxmemory_clients="5%"))
    assert heard.evicts and heard.risks == ()
    assert heard.with_eviction_risk(b"-NOPERM no\r\n").risks[0][0] == "maxmemory-clients"


@pytest.mark.parametrize(
    "frame",
    [
        b"-ERR unknown command 'CONFIG'\r\n",
        b"-NOPERM this user has no permissions to run the 'config|get' command\r\n",
        b"*0\r\n",
        b"%0\r\n",
        b"*-1\r\n",
        b":1\r\n",
        b"*3\r\n$1\r\na\r\n:1\r\n*0\r\n",
        b"*2\r\n$18\r\nproto-max-bulk-len\r\n$1\r\nx\r\n",
        b"*2\r\n$18\r\nproto-max-bulk-len\r\n$4\r\n-100\r\n",
        b"*2\r\n$18\r\nproto-max-bulk-len\r\n$5000\r\n" + b"9" * 5000 + b"\r\n",
        b"*2\r\n$26\r\nclient-output-buffer-limit\r\n$6\r\nnormal\r\n",
        b"*2\r\n$2\r\n\xff\xfe\r\n$1\r\nx\r\n",
    ],
    ids=lambda frame: repr(frame[:40]),
)
def test_whatever_else_it_answers_it_counts_as_one_with_the_limits_of_redis(frame: bytes) -> None:
    assert ServerLimits().with_reply(frame) == ServerLimits()


def test_an_answer_of_another_shape_says_nothing() -> None:
    assert ServerLimits().with_reply(b"*3\r\n*2\r\n+a\r\n+b\r\n:1\r\n-ERR\r\n") == ServerLimits()
