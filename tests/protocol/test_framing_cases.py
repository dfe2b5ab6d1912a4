"""The table of framing cases says the truth about servers."""

import pytest

from pyproxy.fleet import Server
from tests.conversation import Conversation
from tests.protocol.framing_cases import CASES, GOOD, GOOD_ANSWER, Case, End, Outcome, kept


def promised(case: Case, version: str) -> Outcome:
    """What the table says of this server."""
    if version.startswith("redis 7.0."):
        return case.redis
    if version.startswith("valkey 9."):
        return case.valkey
    pytest.skip(f"the table speaks of redis 7.0 and valkey 9, not of {version}")


def version_of(server: Server) -> str:
    """As it says itself: "valkey 9.1.2", "redis 7.0.15"."""
    said = server.ask("INFO", "server")
    assert isinstance(said, bytes)
    fields = dict(line.split(":", 1) for line in said.decode().splitlines() if ":" in line)
    return f"valkey {fields['valkey_version']}" if "valkey_version" in fields else f"redis {fields['redis_version']}"


@pytest.mark.parametrize("name", CASES)
def test_a_server_answers_as_the_table_says(each_server: Server, name: str) -> None:
    case = CASES[name]
    expected = promised(case, version_of(each_server))
    with Conversation(each_server.port) as conn:
        conn.connection.sendall(case.sent)
        seen = conn.outcome(expected)
        if seen.end is End.RESET:  # servers close with bytes unread
            seen = Outcome(seen.answer, End.CLOSES)
        assert seen == expected
        if expected.end is End.KEEPS and b"subscribe" not in expected.answer:
            conn.connection.sendall(GOOD)
            assert conn.outcome(kept(GOOD_ANSWER)) == kept(GOOD_ANSWER)


def test_where_the_proxy_differs_from_a_server_the_table_says_why_and_nowhere_else() -> None:
    for name, case in CASES.items():
        assert bool(case.why) == (not case.redis == case.valkey == case.proxy), name


def test_each_case_stands_in_the_table_once() -> None:
    assert len({case.sent for case in CASES.values()}) == len(CASES)
