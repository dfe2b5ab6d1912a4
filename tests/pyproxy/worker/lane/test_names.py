"""Which command a name is, for a lane that has met others before."""

import random

from bench.bare_lane import BareLane
from protocol.request import encode
from protocol.table import TABLE

SEED = 7
PLAIN = sorted(name for name, command in TABLE.items() if command.kind == 1)
NEARLY = [b"ge", b"gett", b"get\0", b"\0get", b"g\0et", b"teg", b"get   ", b"\xe7et", b"g", b"\0", b""]


def whole(name: bytes, command: bytes) -> bytes:
    """A request with as many arguments as the command needs."""
    return encode([name, *[b"1"] * (abs(TABLE[command].arity) - 1)])


def test_a_name_is_its_command_in_any_case_whatever_was_asked_before() -> None:
    bare = BareLane(1)
    client, _ = bare.client()
    drawn = random.Random(SEED)
    for _ in range(4000):
        command = drawn.choice(PLAIN)
        name = bytes(drawn.choice((byte, byte ^ 32)) if chr(byte).isalpha() else byte for byte in command)
        client.data_received(whole(name, command))
        assert client.last_command == command, name
        bare.turns.settle()
        bare.links[0].wire.data_received(b"+OK\r\n")
        bare.turns.settle()


def test_a_name_that_is_nearly_one_that_was_asked_is_not_it() -> None:
    routes: list[object] = []

    def taken(client: object, route: object, argv: object) -> bytes:
        routes.append(route)
        return b"-ERR unknown\r\n"

    client, _ = BareLane(1, taken).client()
    for name in NEARLY:
        client.data_received(encode([b"get", b"k"]))
        client.data_received(encode([name, b"k"]))
    assert routes == [None] * len(NEARLY)


def test_a_table_that_is_taken_into_use_later_holds_for_names_that_were_asked_before() -> None:
    bare = BareLane(1)
    client, _ = bare.client()
    client.data_received(encode([b"get", b"k"]))
    assert client.last_command == b"get"
    bare.lane.set_table({**TABLE, b"get": TABLE[b"strlen"]})
    client.data_received(encode([b"get", b"k"]))
    assert client.last_command == b"strlen"
