"""What a server says that is no answer: one error or one close, for the client that asked, and for nobody else.

A hop speaks in the place of one server. Beside it, another client of the same proxy talks all the time to the other
shards, and behind each fault a client that comes later must get its own answers, from a new connection.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import hiredis
import pytest

from protocol.reply import Value, encode
from pyproxy.fleet import Fleet, Proxy, wait_until
from tests.e2e.rig import PATIENCE_S, PATIENT, Connection, Keys, behind, error, of_a_worker, packed, wait_for_line
from tests.faults import End, Hop, Way

FAULTY = 1
"""The index of the shard behind the hop."""

REPLY_S, SILENCE_S = 0.5, 0.8


@pytest.fixture(scope="module")
def hop(fleet: Fleet) -> Iterator[Hop]:
    with Hop(fleet.shards[FAULTY].primary.port, of_a_worker) as hop:
        yield hop


@pytest.fixture(scope="module")
def proxy(fleet: Fleet, hop: Hop) -> Iterator[Proxy]:
    timeouts = {"connect_s": 2.0, "reply_s": REPLY_S, "silence_s": SILENCE_S, "reconnect_max_s": 0.1}
    with behind(fleet, {FAULTY: hop}, timeouts=timeouts) as proxy:
        yield proxy


@dataclass
class Scene:
    """One client that is served by the faulty server, and one that is not."""

    hop: Hop
    port: int
    key: str  # lives on the faulty server; its value is "mine"
    keys: Keys
    victim: Connection
    other: Connection

    def others_are_well(self) -> None:
        here, there = self.keys.one(0, "other"), self.keys.one(2, "other")
        self.other.send(("SET", here, "a"), ("APPEND", there, "b"), ("MGET", here, there), ("DEL", there), ("PING",))
        assert self.other.reads(5) == [b"OK", 1, [b"a", b"b"], 1, b"PONG"]

    def connection_is_replaced(self, accepted: int) -> None:
        """By one more than there were, and what is said on it is right, in its order."""
        self.hop.heal()
        with Connection(self.port) as later:
            wait_until("the shard to be served", lambda: later.ask("GET", self.key) == b"mine", lambda: "", PATIENCE_S)
            assert self.hop.accepted > accepted
            later.send(("GET", self.key), ("STRLEN", self.key), ("ECHO", "x"), ("EXISTS", self.key))
            assert later.reads(4) == [b"mine", 4, b"x", 1]


@pytest.fixture
def scene(hop: Hop, proxy: Proxy, keys: Keys) -> Iterator[Scene]:
    key = keys.one(FAULTY)
    with Connection(proxy.port) as victim, Connection(proxy.port) as other:
        wait_until("the shard to be served", lambda: other.ask("SET", key, "mine") == b"OK", lambda: "", PATIENCE_S)
        yield Scene(hop, proxy.port, key, keys, victim, other)
    hop.heal()


NO_REPLY = {
    "a byte that begins no reply": b"@",
    "a NUL": b"\0",
    "an SSH banner": b"SSH-2.0-OpenSSH_9.2\r\n",
    "an HTTP response": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a bulk longer than any": b"$9000000000000000000\r\n",
    "a bulk of negative length": b"$-2\r\n",
    "a length of twenty thousand digits": b"$" + b"9" * 20_000,
    "a length of many digits that wrap around": b"$" + b"18446744073709551620" * 1000,
    "an array longer than any": b"*4294967296\r\n",
    "a length that is no number": b"*x\r\n",
    "a bulk whose end is not where its header says": b"$3\r\nabcdef\r\n",
    "a line without end": b"+" + b"x" * 70_000,
    "a line that ends in CR alone": b"+OK\rX",
    "a push": b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n",
    "a map, in RESP2": b"%1\r\n$1\r\na\r\n$1\r\nb\r\n",
    "an attribute, in RESP2": b"|1\r\n$1\r\na\r\n$1\r\nb\r\n+OK\r\n",
    "a boolean, in RESP2": b"#t\r\n",
    "a number of letters": b":abc\r\n",
    "a number beyond 64 bits": b":9223372036854775808\r\n",
}


@pytest.mark.parametrize("said", NO_REPLY.values(), ids=NO_REPLY.keys())
def test_what_is_no_reply_ends_the_connection_and_is_an_error_for_who_asked(scene: Scene, said: bytes) -> None:
    accepted = scene.hop.accepted
    scene.hop.answer(b"APPEND", said)
    assert error(scene.victim.ask("APPEND", scene.key, "")).startswith(f"UNCERTAIN shard s{FAULTY} (")
    scene.others_are_well()
    scene.connection_is_replaced(accepted)


@pytest.mark.parametrize("end", [End.FIN, End.RST, End.SILENCE])
@pytest.mark.parametrize(
    "said", [b"", b"$10\r\nabc", b"*2\r\n$1\r\na\r\n"], ids=["nothing", "half a bulk", "half an array"]
)
def test_half_a_reply_is_no_reply(scene: Scene, said: bytes, end: End) -> None:
    accepted = scene.hop.accepted
    scene.hop.answer(b"LPOP", said, end)
    assert error(scene.victim.ask("LPOP", scene.key)).startswith(f"UNCERTAIN shard s{FAULTY} (")
    scene.others_are_well()
    if end is End.SILENCE:
        wait_until("the connection to be dropped", lambda: scene.hop.accepted > accepted, lambda: "", PATIENCE_S)
    scene.connection_is_replaced(accepted)


def test_all_requests_that_garbage_answers_get_their_one_error_in_order(scene: Scene) -> None:
    scene.hop.answer(b"INCR", b"@")
    scene.victim.send(*[command for number in range(8) for command in (("INCR", scene.key), ("ECHO", number))])
    replies = scene.victim.reads(16)
    assert replies[1::2] == [b"%d" % number for number in range(8)]
    assert {error(reply).split()[0] for reply in replies[::2]} == {"UNCERTAIN"}


def test_a_reply_that_nobody_asked_for_ends_the_connection(scene: Scene) -> None:
    accepted = scene.hop.accepted
    scene.hop.inject(b"+surprise\r\n")
    wait_until("the connection to be replaced", lambda: scene.hop.accepted > accepted, lambda: "", PATIENCE_S)
    scene.connection_is_replaced(accepted)


def test_of_two_replies_to_one_request_the_second_goes_to_nobody(scene: Scene) -> None:
    accepted = scene.hop.accepted
    scene.hop.answer(b"GET", b"$4\r\nmine\r\n$6\r\nsecret\r\n")
    assert scene.victim.ask("GET", scene.key) == b"mine"
    scene.others_are_well()
    scene.connection_is_replaced(accepted)


def test_an_error_with_a_line_break_in_it_cannot_forge_the_next_reply(scene: Scene) -> None:
    accepted = scene.hop.accepted
    scene.hop.answer(b"GET", b"-ERR said by a script\r\n+forged\r\n")
    assert error(scene.victim.ask("GET", scene.key)) == "ERR said by a script"
    scene.others_are_well()
    scene.connection_is_replaced(accepted)


def test_a_reply_may_come_before_the_request_is_sent_to_its_end(scene: Scene) -> None:
    scene.hop.answer(b"SETRANGE", b"-ERR string exceeds maximum allowed size\r\n", End.SILENCE)
    large = b"x" * (16 << 20)
    assert error(scene.victim.ask("SETRANGE", scene.key, 0, large)) == "ERR string exceeds maximum allowed size"
    scene.others_are_well()


@pytest.mark.parametrize("redirection", [b"-MOVED 5 10.0.0.1:6379\r\n", b"-ASK 5 10.0.0.1:6379\r\n"])
def test_no_client_is_sent_to_an_address_that_a_server_names(scene: Scene, redirection: bytes) -> None:
    scene.hop.answer(b"GET", redirection)
    said = error(scene.victim.ask("GET", scene.key))
    assert said.startswith(f"TRYAGAIN shard s{FAULTY} (")
    assert "10.0.0.1" not in said
    scene.hop.answer(b"MGET", redirection)
    assert "10.0.0.1" not in error(scene.victim.ask("MGET", scene.key, scene.keys.one(0)))


@pytest.mark.parametrize("line", ["LOADING Redis is loading", "MISCONF disk", "OOM command not allowed", "BUSY script"])
def test_an_error_of_the_server_is_passed_on_as_it_came(scene: Scene, line: str) -> None:
    accepted = scene.hop.accepted
    scene.hop.answer(b"APPEND", f"-{line}\r\n".encode())
    assert error(scene.victim.ask("APPEND", scene.key, "x")) == line
    assert scene.victim.ask("GET", scene.key) == b"mine"
    assert scene.hop.accepted == accepted


def test_a_drip_is_answered_at_the_deadline_however_often_a_byte_comes(scene: Scene) -> None:
    scene.hop.drip(REPLY_S / 5, Way.REPLIES)
    assert error(scene.victim.ask("GET", scene.key)).startswith(f"TRYAGAIN shard s{FAULTY} (")
    scene.others_are_well()
    scene.hop.heal()
    wait_until("the shard to be served", lambda: scene.victim.ask("GET", scene.key) == b"mine", lambda: "", PATIENCE_S)


# --- parts of a split -------------------------------------------------------------------------------------------------

PARTS = {
    "MGET, a status": ("MGET", b"+OK\r\n"),
    "MGET, a number": ("MGET", b":1\r\n"),
    "MGET, a bulk": ("MGET", b"$1\r\nx\r\n"),
    "MGET, no array": ("MGET", b"*-1\r\n"),
    "MGET, too few": ("MGET", b"*0\r\n"),
    "MGET, too many": ("MGET", b"*2\r\n$1\r\na\r\n$1\r\nb\r\n"),
    "DEL, a bulk": ("DEL", b"$1\r\n1\r\n"),
    "DEL, negative": ("DEL", b":-5\r\n"),
    "DEL, no number": ("DEL", b":x\r\n"),
    "DEL, a sum beyond 64 bits": ("DEL", b":9223372036854775807\r\n"),
    "EXISTS, no integer type": ("EXISTS", b"+1\r\n"),
    "MSET, a number": ("MSET", b":1\r\n"),
    "KEYS, a status": ("KEYS", b"+OK\r\n"),
    "DBSIZE, beyond 64 bits": ("DBSIZE", b":99999999999999999999\r\n"),
    "FLUSHDB, a bulk": ("FLUSHDB", b"$2\r\nOK\r\n"),
}


@pytest.mark.parametrize(("command", "said"), PARTS.values(), ids=PARTS.keys())
def test_a_part_that_does_not_fit_makes_the_whole_an_error(scene: Scene, command: str, said: bytes) -> None:
    here, there = scene.keys.on(0, 1, "part")[0], scene.key
    assert scene.victim.ask("SET", here, "v") == b"OK"
    arguments = {"MSET": (here, "v", there, "mine"), "KEYS": ("*",), "DBSIZE": (), "FLUSHDB": ()}
    scene.hop.answer(packed(command)[4:], said)
    assert isinstance(scene.victim.ask(command, *arguments.get(command, (here, there))), hiredis.ReplyError)
    scene.others_are_well()


IN_MULTI = ["MULTI", "MSET", "EXEC"]
WRITES = {
    "MSET, a number": (b"MSET", b":1\r\n", ["MSET"]),
    "DEL, a bulk": (b"DEL", b"$1\r\n1\r\n", ["DEL"]),
    "MSETNX, a bulk": (b"MSETNX", b"$1\r\n1\r\n", ["MSETNX"]),
    "EXEC, too few": (b"EXEC", b"+OK\r\n+QUEUED\r\n*0\r\n", IN_MULTI),
    "EXEC, too many": (b"EXEC", b"+OK\r\n+QUEUED\r\n*2\r\n+OK\r\n+OK\r\n", IN_MULTI),
    "EXEC, an answer that does not fit": (b"EXEC", b"+OK\r\n+QUEUED\r\n*1\r\n:1\r\n", IN_MULTI),
}


@pytest.mark.parametrize(("asked", "said", "commands"), WRITES.values(), ids=WRITES.keys())
def test_a_write_whose_parts_do_not_fit_is_uncertain(
    fleet: Fleet, hop: Hop, asked: bytes, said: bytes, commands: list[str]
) -> None:
    with (
        behind(fleet, {FAULTY: hop}, cross_shard="emulate", transactions="split", timeouts=PATIENT) as proxy,
        Connection(proxy.port) as victim,
    ):
        here, there = Keys(proxy).one(0, "unsure"), Keys(proxy).one(FAULTY, "unsure")
        arguments = dict.fromkeys(("MSET", "MSETNX"), (here, "v", there, "v")) | {"DEL": (here, there)}
        wait_until("the shard to be served", lambda: isinstance(victim.ask("DEL", here, there), int), lambda: "")
        hop.answer(asked, said)
        reply = [victim.ask(name, *arguments.get(name, ())) for name in commands][-1]
        hop.heal()
    assert error(reply[0] if isinstance(reply, list) else reply).startswith("UNCERTAIN ")


def test_an_error_of_one_part_names_its_shard_and_who_applied_theirs(scene: Scene) -> None:
    here = scene.keys.one(0, "oom")
    scene.hop.answer(b"MSET", b"-OOM command not allowed when used memory > 'maxmemory'.\r\n")
    said = error(scene.victim.ask("MSET", here, "v", scene.key, "new"))
    assert said.startswith(f"UNCERTAIN shard s{FAULTY}: OOM ")
    assert said.endswith("; other shards may have applied their part: s0")
    assert scene.victim.ask("MGET", here, scene.key) == [b"v", b"mine"]


# --- before anything was asked ----------------------------------------------------------------------------------------

GREETINGS = {
    "a status": (b"+hello\r\n", End.STAY),
    "an SSH banner": (b"SSH-2.0-OpenSSH_9.2\r\n", End.STAY),
    "an error": (b"-NOAUTH Authentication required.\r\n", End.STAY),
    "FIN": (b"", End.FIN),
    "RST": (b"", End.RST),
    "half a reply, then FIN": (b"$16\r\nabc", End.FIN),
}


@pytest.mark.parametrize(("said", "end"), GREETINGS.values(), ids=GREETINGS.keys())
def test_nothing_is_sent_to_who_does_not_answer_the_set_up(scene: Scene, said: bytes, end: End) -> None:
    scene.hop.greet(said, end)
    requests = len(scene.hop.requests)
    scene.hop.cut()
    wait_until("the shard to be down", lambda: "is down" in str(scene.victim.ask("GET", scene.key)), lambda: "")
    assert error(scene.victim.ask("SET", scene.key, "never sent")).startswith(f"TRYAGAIN shard s{FAULTY} (")
    scene.others_are_well()
    assert b"never sent" not in scene.hop.requests[requests:]
    scene.connection_is_replaced(scene.hop.accepted)


def test_a_database_that_a_server_refuses_is_an_error_only_for_who_chose_it(scene: Scene) -> None:
    scene.hop.answer(packed("SELECT", 9), b"-ERR DB index is out of range\r\n")
    assert scene.victim.ask("SELECT", 9) == b"OK"
    assert "DB index is out of range" in error(scene.victim.ask("GET", scene.key))
    assert scene.other.ask("GET", scene.key) == b"mine"
    scene.others_are_well()


# --- what a server says of its commands -------------------------------------------------------------------------------

NONSENSE = (
    ("far.arity", 1 << 40, 1, 1),
    ("no.step", -2, 1, 0),
    ("no.index", -2, 0, 1),
    ("far.index", -2, 1 << 40, 1),
)
"""Name, arity, the position of its key, the step."""


def said_of(name: str, arity: int, index: int, step: int) -> bytes:
    begin: Value = [b"type", b"index", b"spec", [b"index", index]]
    find: Value = [b"type", b"range", b"spec", [b"lastkey", 0, b"keystep", step, b"limit", 0]]
    spec: Value = [b"flags", [b"RO"], b"begin_search", begin, b"find_keys", find]
    return encode([name.encode(), arity, [b"readonly"], 1, 1, 1, [b"@read"], [], [spec], []], 2)


def test_commands_that_cannot_be_are_passed_over_with_a_line_and_every_worker_serves() -> None:
    rows = [said_of(*each) for each in (*NONSENSE, ("good.get", -2, 1, 1))]
    with Fleet(shards=1, replicas=0) as fleet, Hop(fleet.shards[0].primary.port) as hop:
        hop.answer(packed("COMMAND"), b"*%d\r\n" % len(rows) + b"".join(rows), times=1000)
        with behind(fleet, {0: hop}, 2) as proxy, Connection(proxy.port) as conn:
            assert conn.ask("SET", "key", "value") == b"OK"
            for name in ("good.get", *(each[0] for each in NONSENSE)):
                assert error(conn.ask(name, "key")).startswith("ERR unknown command")
            assert b"good.get" in hop.requests.lower(), "it was learned, and the server asked"
            assert not [name for name, *_ in NONSENSE if name.encode() in hop.requests.lower()]
            said = proxy.log.read_text()
            for name, *_ in NONSENSE:
                assert said.count(f"+command-ignored shard=s0 node={hop.address} command={name} ") == 1
            assert "+worker-death" not in said


def test_more_commands_than_a_server_can_have_are_not_looked_at() -> None:
    """Each costs the parent some time, in which it looks after no other shard."""
    with Fleet(shards=2, replicas=0) as fleet, Hop(fleet.shards[0].primary.port) as hop:
        hop.answer(packed("COMMAND"), b"*100000\r\n" + b"*0\r\n" * 100_000, times=1000)
        with behind(fleet, {0: hop}) as proxy, Connection(proxy.port) as conn:
            wait_for_line(
                proxy, r"\+command-ignored shard=s0 \S+ command=\* why=.expected at most 10000 commands, got 100000"
            )
            assert conn.ask("SET", Keys(proxy).one(1), "value") == b"OK"
