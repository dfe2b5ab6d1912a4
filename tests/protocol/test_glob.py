"""Redis' glob patterns, compared with a server's KEYS."""

import random

from protocol import glob
from protocol.reply import decode
from protocol.request import encode
from pyproxy.fleet import Server
from tests.wire import exchange

NAMES = [b"a", b"ab", b"abc", b"aab", b"a-b", b"a]b", b"a\\b", b"b", b"*", b"^a", b"aaaa", b"abab", b"[a", b"?"]
SIGNS = [b"a", b"b", b"c", b"*", b"?", b"[", b"]", b"^", b"-", b"\\", b"[a-b]", b"[b-a]", b"[^a]"]


def test_the_empty_name_is_matched_by_the_empty_pattern_alone() -> None:
    """As a server has it for channels; KEYS has a way of its own for *."""
    assert [each for each in (b"", b"*", b"**", b"?", b"[^a]", b"a") if glob.matches(each, b"")] == [b""]


def test_a_pattern_matches_what_it_matches_for_keys(server: Server) -> None:
    chance = random.Random(20261122)
    patterns = [b"".join(chance.choices(SIGNS, k=chance.randrange(1, 7))) for _ in range(3000)]
    in_15 = [[b"SELECT", b"15"], [b"FLUSHDB"], [b"MSET", *[word for name in NAMES for word in (name, b"1")]]]
    asked = in_15 + [[b"KEYS", pattern] for pattern in patterns]
    reply = decode(b"*%d\r\n" % len(asked) + exchange(server.port, b"".join(map(encode, asked))))
    assert isinstance(reply, list)
    theirs = [set(names) for names in reply[len(in_15) :]]
    assert [{name for name in NAMES if glob.matches(pattern, name)} for pattern in patterns] == theirs
