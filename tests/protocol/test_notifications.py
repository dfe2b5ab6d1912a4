"""Flags as clients write them, beside what both kinds of server make of them."""

import hiredis
import pytest

from protocol import errors, notifications
from protocol.request import encode
from pyproxy.fleet import Server
from tests.wire import exchange

LETTERS = "Ag$lshzxetdKEmn"


def told_and_read(server: Server, values: list[bytes]) -> list[bytes]:
    """For each value what CONFIG GET says after CONFIG SET of it."""
    name = notifications.SETTING
    commands = [argv for value in [*values, b""] for argv in ((b"SET", name.encode(), value), (b"GET", name.encode()))]
    asked = b"".join(encode([b"CONFIG", *argv]) for argv in commands)
    reader = hiredis.Reader()
    reader.feed(exchange(server.port, asked))
    replies = [reader.gets() for _ in range(len(commands))]
    assert set(replies[::2]) == {b"OK"}
    return [reply[1] for reply in replies[1:-2:2]]


def test_every_set_of_flags_is_shown_as_the_server_shows_it(each_server: Server) -> None:
    for beginning in range(0, 1 << len(LETTERS), 2048):
        numbers = range(beginning, beginning + 2048)
        texts = ["".join(each for at, each in enumerate(LETTERS) if number >> at & 1).encode() for number in numbers]
        ours = [notifications.parse(text) for text in texts]
        assert None not in ours
        assert [notifications.shown(flags or "").encode() for flags in ours] == told_and_read(each_server, texts)
        assert [notifications.parse((flags or "").encode()) for flags in ours] == ours, "it is told in that spelling"


@pytest.mark.parametrize("text", [b"EEx", b"xE", b"nKA", b"E\0q", b"\0"])
def test_order_repetition_and_what_follows_a_nul_do_not_matter(each_server: Server, text: bytes) -> None:
    flags = notifications.parse(text)
    assert flags is not None
    assert [notifications.shown(flags).encode()] == told_and_read(each_server, [text])


def test_new_keys_are_not_forgotten_behind_all_where_they_are_not_shown() -> None:
    assert notifications.parse(b"AEn") == "AnE"
    assert notifications.parse(b"Eg$lshzxetd") == "AE"


def test_any_other_character_is_invalid_and_said_to_be_as_the_server_says_it(each_server: Server) -> None:
    expected = errors.config_set_failed(notifications.SETTING, notifications.INVALID)
    for byte in set(range(1, 256)) - set(LETTERS.encode()):
        text = b"E" + bytes([byte])
        assert notifications.parse(text) is None
        asked = encode([b"CONFIG", b"SET", notifications.SETTING.encode(), text])
        assert exchange(each_server.port, asked) == expected
