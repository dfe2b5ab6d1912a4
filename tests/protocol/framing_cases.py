"""How requests are framed: for each kind of request, good or bad, what servers do with it and what the proxy does.

Tests compare the compiled scanner, the running proxy and real servers with this table. docs/framing.md is written from
it. Where the proxy differs from a server, `why` gives the reason. There are no other differences.

The groups follow the layers: the array header, the argument header, the argument, the line. Then come requests in other
protocols, and commands whose form is wrong. The limits are the defaults of config.py.

Two things are not in the table, as no byte sequence alone shows them: passwords (clients of the proxy have none), and
lines of 64 KiB to 80 KiB that do end (a server takes or refuses them, depending on how its reads divide them).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from protocol import errors
from protocol.request import encode


class End(enum.Enum):
    """What becomes of the connection."""

    KEEPS = "stays open"
    CLOSES = "is closed"
    WAITS = "waits for more"
    RESET = "is reset"  # a test may see it; no case promises it


@dataclass(frozen=True, slots=True)
class Outcome:
    """The whole answer, and what becomes of the connection after it."""

    answer: bytes
    end: End


@dataclass(frozen=True, slots=True)
class Case:
    """One request or several. `kinds`: what the scanner finds in it before it waits or reports an error."""

    name: str
    sent: bytes
    kinds: tuple[str, ...]
    redis: Outcome  # Redis 7.0
    valkey: Outcome  # Valkey 9
    proxy: Outcome
    why: str  # the reason if the proxy differs from one of the servers
    behind: Outcome | None  # for a request that waits: what happens when GOOD arrives

    @property
    def with_good_behind(self) -> Outcome | None:
        """What the proxy does if GOOD follows at once; None if no case promises it."""
        if self.proxy.end is End.KEEPS:
            return Outcome(self.proxy.answer + GOOD_ANSWER, End.KEEPS)
        return self.proxy if self.proxy.end is End.CLOSES else self.behind


GOOD_KEY = b"framing:good"
GOOD = encode([b"SET", GOOD_KEY, b"1"]) + encode([b"ECHO", b"end"])
GOOD_ANSWER = b"+OK\r\n$3\r\nend\r\n"
GOOD_KINDS = ("frame", "frame")

_COMPLAINT = b"-ERR Protocol error: "
_PING = encode([b"PING"])
_PONG = b"+PONG\r\n"


def fault_in(outcome: Outcome) -> bytes:
    """The error of the scanner behind this outcome; empty if there is none. It does not check quotes."""
    last = outcome.answer.split(b"\r\n")[-2] if outcome.answer else b""
    if outcome.end is not End.CLOSES or not last.startswith(_COMPLAINT) or b"unbalanced" in last:
        return b""
    return last.removeprefix(_COMPLAINT)


def kept(answer: bytes = b"") -> Outcome:
    return Outcome(answer, End.KEEPS)


def waits() -> Outcome:
    return Outcome(b"", End.WAITS)


def closed(answer: bytes = b"") -> Outcome:
    return Outcome(answer, End.CLOSES)


def bad(text: str) -> Outcome:
    return closed(_COMPLAINT + text.encode("latin-1") + b"\r\n")


def unknown(*names: bytes) -> bytes:
    """The errors for these unknown commands without arguments."""
    return b"".join(b"-ERR unknown command '%b', with args beginning with: \r\n" % name for name in names)


def _case(
    name: str,
    sent: bytes,
    redis: Outcome,
    kinds: str = "",
    *,
    valkey: Outcome | None = None,
    proxy: Outcome | None = None,
    why: str = "",
    behind: Outcome | None = None,
) -> Case:
    """`kinds`: f is a frame, i an inline line, e an empty request. The default of `valkey` and `proxy` is `redis`."""
    words = {"f": "frame", "i": "inline", "e": "empty"}
    whole = tuple(words[each] for each in kinds)
    return Case(name, sent, whole, redis, valkey or redis, proxy or redis, why, behind)


# --- reasons ---------------------------------------------------------------------------------------------------------

NO_CRLF = bad("invalid CRLF in request")  # Valkey's words
NUL_IN_LINE = bad("unexpected NUL in inline request")

CRLF = (
    "Redis 7.0 skips two bytes after an argument, and one after a CR, without a check. Bytes that one reader skips, "
    "another may read as a command. So requests could be smuggled past one of the two. The proxy checks these bytes, "
    "as Valkey 9 does."
)
NUL = (
    "Redis does not see the rest of a line after a NUL, and waits in silence. No command line has a NUL in it, so the "
    "proxy answers with an error at once. The client may use TLS, or another binary protocol, on the wrong port."
)
NUL_HEADER = (
    "Redis 7.0 does not see the rest of a line after a NUL, and waits in silence. The proxy answers with an error at "
    "once, as the line does not begin with `$`."
)
ARGS = "`limits.args` is at most 1,048,576, so that one command cannot take the memory of many clients."
BULK = "`limits.bulk_bytes` is 64 MiB by default and at most 512 MiB, as the clients of a worker share its memory."
QUOTES = "Valkey 9 accepts text after a closing quote. The proxy refuses it, as Redis does."
HTTP = (
    "Redis drops the answers that it has not written yet, so the answers of a client depend on how its bytes arrived. "
    "The proxy answers the requests before, and then closes the connection."
)

BAD_COUNT = bad("invalid multibulk length")
BAD_BULK = bad("invalid bulk length")
UNBALANCED = bad("unbalanced quotes in request")
LONG = 65537  # one more than Redis' PROTO_INLINE_MAX_SIZE

# --- the table -------------------------------------------------------------------------------------------------------

GOOD_REQUESTS = [
    _case("an array of one argument", _PING, kept(_PONG), "f"),
    _case("a line", b"PING\r\n", kept(_PONG), "i"),
    _case("a line ended by LF alone", b"PING\n", kept(_PONG), "i"),
    _case("an empty line", b"\r\n", kept(), "i"),
    _case("an empty line, LF alone", b"\n", kept(), "i"),
    _case("a line of blanks", b"   \r\n", kept(), "i"),
    _case("an empty array", b"*0\r\n", kept(), "e"),
    _case("an array of -1", b"*-1\r\n", kept(), "e"),
    _case("an array of -10", b"*-10\r\n", kept(), "e"),
    _case("an array of the smallest number", b"*-9223372036854775808\r\n", kept(), "e"),
    _case("a name in mixed case", encode([b"pInG"]), kept(_PONG), "f"),
    _case("a name in mixed case, as a line", b"pInG\r\n", kept(_PONG), "i"),
    _case("all kinds, one after another", b"\r\n*0\r\nPING\r\n" + _PING + b"PING\n", kept(_PONG * 3), "ieifi"),
    _case("a key with NUL and CRLF", encode([b"GET", b"framing:a\0b\r\n"]), kept(b"$-1\r\n"), "f"),
    _case("an argument that looks like a frame", encode([b"ECHO", _PING]), kept(b"$14\r\n%b\r\n" % _PING), "f"),
]

ARRAY_HEADER = [
    _case("no number", b"*\r\n", BAD_COUNT),
    _case("letters", b"*abc\r\n", BAD_COUNT),
    _case("a digit and a letter", b"*1x\r\n", BAD_COUNT),
    _case("a plus sign", b"*+1\r\n", BAD_COUNT),
    _case("a leading zero", b"*01\r\n", BAD_COUNT),
    _case("a blank before the number", b"* 1\r\n", BAD_COUNT),
    _case("a blank after the number", b"*1 \r\n", BAD_COUNT),
    _case("minus zero", b"*-0\r\n", BAD_COUNT),
    _case("a minus alone", b"*-\r\n", BAD_COUNT),
    _case("2^31", b"*2147483648\r\n", BAD_COUNT),
    _case("3,000,000,000", b"*3000000000\r\n", BAD_COUNT),
    _case("2^63", b"*9223372036854775808\r\n", BAD_COUNT),
    _case("-2^63 - 1", b"*-9223372036854775809\r\n", BAD_COUNT),
    _case("30 digits", b"*" + b"9" * 30 + b"\r\n", BAD_COUNT),
    _case("2^31 - 1", b"*2147483647\r\n", waits(), proxy=BAD_COUNT, why=ARGS),
    _case("one argument more than the limit", b"*1048577\r\n", waits(), proxy=BAD_COUNT, why=ARGS),
    _case("as many arguments as the limit", b"*1048576\r\n", waits(), behind=bad("expected '$', got '*'")),
    _case("headers that end with LF alone", b"*1\n$4\nPING\n", waits(), behind=BAD_COUNT),
    _case("65,537 digits", b"*" + b"1" * LONG, bad("too big mbulk count string")),
    _case("NUL, then a line without end", b"*\0" + b"x" * LONG, bad("too big mbulk count string")),
    _case("CR without LF", b"*1\rX$4\rYPING\rZ", kept(_PONG), valkey=NO_CRLF, proxy=NO_CRLF, why=CRLF),
]

ARGUMENT_HEADER = [
    _case("no dollar", b"*1\r\nfoo\r\n", bad("expected '$', got 'f'")),
    _case("an array in the array", b"*1\r\n*1\r\n$4\r\nPING\r\n", bad("expected '$', got '*'")),
    *(
        _case(f"{sign!r} in place of the dollar", b"*1\r\n%b1\r\n" % sign.encode(), bad(f"expected '$', got '{sign}'"))
        for sign in "+:-%>~|_#,(=!"
    ),
    _case("a byte that is not ASCII", b"*1\r\n\xff\r\n", bad("expected '$', got '\xff'")),
    _case("an empty line", b"*1\r\n\r\n", bad("expected '$', got ' '")),
    _case("LF and an empty line", b"*1\r\n\n\r\n", bad("expected '$', got ' '")),
    _case(
        "NUL in place of the dollar",
        b"*1\r\n\0\r\n",
        waits(),
        valkey=bad("expected '$', got '\0'"),
        proxy=bad("expected '$', got '\0'"),
        why=NUL_HEADER,
    ),
    _case("-1", b"*1\r\n$-1\r\n", BAD_BULK),
    _case("-10", b"*1\r\n$-10\r\n", BAD_BULK),
    _case("no number", b"*1\r\n$\r\n", BAD_BULK),
    _case("letters", b"*1\r\n$abc\r\n", BAD_BULK),
    _case("a plus sign", b"*1\r\n$+4\r\n", BAD_BULK),
    _case("a leading zero", b"*1\r\n$04\r\n", BAD_BULK),
    _case("a digit and a letter", b"*1\r\n$4x\r\n", BAD_BULK),
    _case("a blank", b"*1\r\n$ 4\r\n", BAD_BULK),
    _case("a byte more than 512 MiB", b"*1\r\n$536870913\r\n", BAD_BULK),
    _case("2^63 - 1", b"*1\r\n$9223372036854775807\r\n", BAD_BULK),
    _case("2^63", b"*1\r\n$9223372036854775808\r\n", BAD_BULK),
    _case("512 MiB", b"*1\r\n$536870912\r\n", waits(), proxy=BAD_BULK, why=BULK),
    _case("a byte more than the limit", b"*1\r\n$67108865\r\n", waits(), proxy=BAD_BULK, why=BULK),
    _case("as many bytes as the limit", b"*1\r\n$67108864\r\n", waits(), behind=waits()),
    _case("65,537 digits", b"*1\r\n$" + b"1" * LONG, bad("too big bulk count string")),
    _case(
        "a bad second argument", encode([b"SET", b"framing:x", b"y"])[:-7] + b"fooz\r\n", bad("expected '$', got 'f'")
    ),
    _case("a bad length of a second argument", encode([b"SET", b"framing:x", b"y"])[:-7] + b"$-10\r\n", BAD_BULK),
]

ARGUMENT = [
    _case("an empty name", b"*1\r\n$0\r\n\r\n", kept(unknown(b"")), "f"),
    _case("other bytes in place of CRLF", b"*1\r\n$4\r\nPINGXX", kept(_PONG), valkey=NO_CRLF, proxy=NO_CRLF, why=CRLF),
    _case("another byte in place of CR", b"*1\r\n$4\r\nPINGX", waits(), proxy=NO_CRLF, why=CRLF),
    _case("CR without LF", b"*1\r\n$4\r\nPING\rX", kept(_PONG), valkey=NO_CRLF, proxy=NO_CRLF, why=CRLF),
    _case(
        "a length that is one byte too large",
        b"*1\r\n$5\r\nPING\r\n" + _PING,
        kept(unknown(b"PING ", b"1", b"$4") + _PONG),
        valkey=NO_CRLF,
        proxy=NO_CRLF,
        why=CRLF,
    ),
    _case(
        "a length that is one byte too small",
        b"*1\r\n$3\r\nPING\r\n",
        kept(unknown(b"PIN")),
        valkey=NO_CRLF,
        proxy=NO_CRLF,
        why=CRLF,
    ),
    _case("a name that ends with NUL", b"*1\r\n$5\r\nPING\0\r\n", kept(unknown(b"PING")), "f"),
    _case("a name with an error reply in it", encode([b"fo\r\n-ERR x"]), kept(unknown(b"fo  -ERR x")), "f"),
    _case("a name of a million bytes", encode([b"a" * 1_000_000]), kept(unknown(b"a" * 128)), "f"),
]

UNFINISHED = [
    _case("half an array header", b"*1\r", waits(), behind=NO_CRLF),
    _case("an argument header without its number", b"*1\r\n$", waits(), behind=BAD_BULK),
    _case("an argument header that begins with a wrong byte", b"*1\r\nf", waits(), behind=bad("expected '$', got 'f'")),
    _case("an argument without its bytes", b"*1\r\n$4\r\n", waits(), behind=NO_CRLF),
    _case("an argument without its LF", b"*1\r\n$4\r\nPING\r", waits(), behind=NO_CRLF),
    _case("a line without its end", b"PING", waits()),
]

LINE = [
    *(
        _case(f"a line that begins like a {what}", sent + b"\r\n", kept(unknown(sent)), "i")
        for what, sent in {
            "status": b"+PING",
            "number": b":1",
            "error": b"-x",
            "map": b"%1",
            "push": b">1",
            "boolean": b"#f",
        }.items()
    ),
    _case("an argument without its array", b"$4\r\nPING\r\n", kept(unknown(b"$4") + _PONG), "ii"),
    _case(
        "a byte order mark",
        b"\xef\xbb\xbf*1\r\n$4\r\nPING\r\n",
        kept(unknown(b"\xef\xbb\xbf*1", b"$4") + _PONG),
        "iii",
    ),
    _case("NUL", b"\0", waits(), proxy=NUL_IN_LINE, why=NUL),
    _case("NUL in a command", b"PI\0NG\r\n", waits(), proxy=NUL_IN_LINE, why=NUL),
    _case(
        "NUL, then a line without end",
        b"\0" + b"x" * LONG,
        bad("too big inline request"),
        proxy=NUL_IN_LINE,
        why=NUL,
    ),
    _case(
        "dollar, NUL, then a line without end",
        b"$\0" + b"x" * LONG,
        bad("too big inline request"),
        proxy=NUL_IN_LINE,
        why=NUL,
    ),
    _case("65,537 bytes without LF", b"x" * LONG, bad("too big inline request")),
    _case("quotes", b'SET framing:q "a b"\r\nGET framing:q\r\n', kept(b"+OK\r\n$3\r\na b\r\n"), "ii"),
    _case("single quotes", b"SET framing:q 'it\\'s'\r\nGET framing:q\r\n", kept(b"+OK\r\n$4\r\nit's\r\n"), "ii"),
    _case(
        "escapes in quotes",
        b'SET framing:q "\\x41\\r\\n\\t\\a\\b\\q"\r\nGET framing:q\r\n',
        kept(b"+OK\r\n$7\r\nA\r\n\t\a\bq\r\n"),
        "ii",
    ),
    _case("half an escape", b'ECHO "x\\x4"\r\n', kept(b"$3\r\nxx4\r\n"), "i"),
    _case("an escaped byte that is not ASCII", b'PING "ax\\xff"\r\n', kept(b"$3\r\nax\xff\r\n"), "i"),
    _case("an empty name in quotes", b'""\r\n', kept(unknown(b"")), "i"),
    _case(
        "text after a closing quote", b'SET framing:q "a"b\r\n', UNBALANCED, "i", valkey=kept(b"+OK\r\n"), why=QUOTES
    ),
    _case("an open quote", b'SET framing:q "abc\r\n', UNBALANCED, "i"),
    _case("an open single quote", b"SET framing:q 'x\r\n", UNBALANCED, "i"),
]

OTHER_PROTOCOLS = [
    _case("HTTP POST", b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", closed(), "iii"),
    _case("POST as an array", encode([b"PoSt"]), closed(), "f"),
    _case("Host: as an array", encode([b"host:"]), closed(), "f"),
    _case(
        "HTTP GET",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        closed(),
        "iii",
        proxy=closed(errors.wrong_arity("get")),
        why=HTTP,
    ),
    _case(
        "POST after a command",
        _PING + b"POST / HTTP/1.1\r\nHost: x\r\n\r\n",
        closed(),
        "fiii",
        proxy=closed(_PONG),
        why=HTTP,
    ),
    _case(
        "HTTP/2",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        kept(b"-ERR unknown command 'PRI', with args beginning with: '*' 'HTTP/2.0' \r\n" + unknown(b"SM")),
        "iiii",
    ),
    _case(
        "TLS",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(32)),
        waits(),
        proxy=NUL_IN_LINE,
        why=NUL,
    ),
    _case("memcached", b"set foo 0 0 3\r\nbar\r\n", kept(b"-ERR syntax error\r\n" + unknown(b"bar")), "ii"),
]

COMMANDS = [
    _case("QUIT before a command", encode([b"QUIT"]) + _PING, closed(b"+OK\r\n"), "ff"),
    _case("QUIT before a command, as lines", b"QUIT\r\nPING\r\n", closed(b"+OK\r\n"), "ii"),
    _case("too few arguments", encode([b"GET"]), kept(errors.wrong_arity("get")), "f"),
    _case("a container without a subcommand", encode([b"CONFIG"]), kept(errors.wrong_arity("config")), "f"),
    _case(
        "an unknown subcommand",
        encode([b"CONFIG", b"foo"]),
        kept(b"-ERR unknown subcommand 'foo'. Try CONFIG HELP.\r\n"),
        "f",
    ),
    _case(
        "a key without its value",
        encode([b"MSET", b"framing:1", b"1", b"framing:2"]) + encode([b"EXISTS", b"framing:1", b"framing:2"]),
        kept(errors.wrong_arity("mset") + b":0\r\n"),
        "ff",
    ),
    _case("MGET without a key", encode([b"MGET"]), kept(errors.wrong_arity("mget")), "f"),
    _case("DEL without a key", encode([b"DEL"]), kept(errors.wrong_arity("del")), "f"),
    *(
        _case(
            f"{name.decode()} of a key twice",
            encode([b"SET", b"framing:k", b"v"]) + encode([name, b"framing:k", b"framing:k"]),
            kept(b"+OK\r\n" + answer),
            "ff",
        )
        for name, answer in {
            b"MGET": b"*2\r\n$1\r\nv\r\n$1\r\nv\r\n",
            b"DEL": b":1\r\n",
            b"UNLINK": b":1\r\n",
            b"EXISTS": b":2\r\n",
            b"TOUCH": b":2\r\n",
        }.items()
    ),
    _case(
        "MSET of a key twice",
        encode([b"MSET", b"framing:k", b"1", b"framing:k", b"2"]) + encode([b"GET", b"framing:k"]),
        kept(b"+OK\r\n$1\r\n2\r\n"),
        "ff",
    ),
    _case("AUTH where no password is set", encode([b"AUTH", b"x"]), kept(errors.auth_without_password()), "f"),
    _case("AUTH of an unknown user", encode([b"AUTH", b"nobody", b"x"]), kept(errors.wrong_password()), "f"),
    _case("HELLO 4", encode([b"HELLO", b"4"]), kept(errors.unsupported_protocol()), "f"),
    _case("HELLO x", encode([b"HELLO", b"x"]), kept(errors.protocol_version_not_an_integer()), "f"),
    _case("HELLO with a bad option", encode([b"HELLO", b"2", b"BAD"]), kept(errors.hello_option("BAD")), "f"),
    _case("SELECT 16", encode([b"SELECT", b"16"]), kept(errors.db_index_out_of_range()), "f"),
    _case("SELECT a", encode([b"SELECT", b"a"]), kept(errors.not_an_integer()), "f"),
    *(
        _case(
            f"{name.decode()} without MULTI",
            encode([name]),
            kept(errors.without_multi(name)),
            "f",
        )
        for name in (b"EXEC", b"DISCARD")
    ),
    _case(
        "a command after SUBSCRIBE",
        encode([b"SUBSCRIBE", b"ch"]) + encode([b"GET", b"framing:none"]) + encode([b"RESET"]),
        kept(
            b"*3\r\n$9\r\nsubscribe\r\n$2\r\nch\r\n:1\r\n-ERR Can't execute 'get': only (P|S)SUBSCRIBE / "
            b"(P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context\r\n+RESET\r\n"
        ),
        "fff",
    ),
]

GROUPS: dict[str, list[Case]] = {
    "Good requests": GOOD_REQUESTS,
    "The header of the array": ARRAY_HEADER,
    "The header of an argument": ARGUMENT_HEADER,
    "The argument": ARGUMENT,
    "Unfinished requests": UNFINISHED,
    "Lines": LINE,
    "Other protocols": OTHER_PROTOCOLS,
    "Commands": COMMANDS,
}

CASES = {f"{group}: {case.name}": case for group, cases in GROUPS.items() for case in cases}
