"""The compiled scanner: every case of the table, random bytes in random cuts, and hiredis as the second opinion."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import hiredis
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.request import encode
from protocol.scan import ProtocolError, Replies, Requests, argv, elements
from tests.protocol.framing_cases import CASES, GOOD, GOOD_KINDS, Outcome, closed, fault_in, kept

Scanned = tuple[list[tuple[str, bytes]], bytes]
"""What was cut, with its kind; and the fault, b"" if there was none."""

_MORE = object()


def scan(pieces: Iterable[bytes], requests: Requests | None = None) -> Scanned:
    """Feed the pieces until the end or a fault; what was cut in the same feed as the fault is lost."""
    requests = requests or Requests()
    found: list[tuple[str, bytes]] = []
    for piece in pieces:
        try:
            found += requests.feed(piece)
        except ProtocolError as fault:
            return found, fault.args[0]
    return found, b""


def one_by_one(sent: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in sent]


def cut(sent: bytes, at: Iterable[int]) -> list[bytes]:
    ends = [0, *sorted(min(each, len(sent)) for each in at), len(sent)]
    return [sent[begin:end] for begin, end in itertools.pairwise(ends)]


def read_by_hiredis(sent: bytes) -> list[object]:
    """All that hiredis reads of these bytes; ValueError if it wants more or finds them bad."""
    reader = hiredis.Reader(notEnoughData=_MORE, protocolError=ValueError, encoding=None)
    reader.feed(sent)
    values = []
    while reader.has_data():
        value = reader.gets()
        if value is _MORE:
            raise ValueError("hiredis wants more")
        values.append(value)
    return values


# --- requests: the table ----------------------------------------------------------------------------------------------


def hold(sent: bytes, scanned: Scanned, outcome: Outcome, kinds: tuple[str, ...], whole: bool = False) -> None:
    found, fault = scanned
    assert fault == fault_in(outcome)
    if not (whole and fault):
        assert tuple(kind for kind, _ in found) == kinds
        assert sent.startswith(b"".join(frame for _, frame in found))


@pytest.mark.parametrize("name", CASES)
def test_a_request_in_one_piece_is_cut_as_the_table_says(name: str) -> None:
    case = CASES[name]
    hold(case.sent, scan([case.sent]), case.proxy, case.kinds, whole=True)


@pytest.mark.parametrize("name", CASES)
def test_a_request_byte_by_byte_is_cut_the_same(name: str) -> None:
    case = CASES[name]
    # a million single bytes of a good argument would only take time
    pieces = one_by_one(case.sent) if len(case.sent) < 100_000 else cut(case.sent, range(0, len(case.sent), 1009))
    hold(case.sent, scan(pieces), case.proxy, case.kinds)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.with_good_behind])
def test_good_commands_behind_are_cut_unless_the_request_is_bad_or_swallows_them(name: str) -> None:
    case, outcome = CASES[name], CASES[name].with_good_behind
    assert outcome is not None
    good = () if fault_in(outcome) or case.behind else GOOD_KINDS
    hold(case.sent + GOOD, scan([case.sent + GOOD]), outcome, case.kinds + good, whole=True)
    hold(case.sent + GOOD, scan([case.sent, *one_by_one(GOOD)]), outcome, case.kinds + good)


# --- requests: any bytes ----------------------------------------------------------------------------------------------

ARGV = st.lists(st.binary(max_size=40), min_size=1, max_size=8)
CUTS = st.lists(st.integers(0, 200), max_size=8)
# mostly framing, seldom right: what plain random bytes would hardly ever hit
TOKENS = st.one_of(
    st.sampled_from(
        [b"*", b"$", b"\r\n", b"\r", b"\n", b"\0", b"0", b"1", b"2", b"-1", b"01", b"+1", b" ", b"x", b"PING"]
    ),
    st.sampled_from(
        [b"*1\r\n", b"*2\r\n", b"$0\r\n", b"$1\r\n", b"$4\r\n", b"$4\r\nPING\r\n", b"*1\r\n$4\r\nPING\r\n"]
    ),
    st.binary(max_size=4),
)
BYTES = st.one_of(st.binary(max_size=60), st.lists(TOKENS, max_size=12).map(b"".join))


@given(st.lists(ARGV, min_size=1, max_size=4), CUTS)
def test_an_encoded_request_is_one_frame_of_the_same_bytes_in_any_cut(
    requests: list[list[bytes]], at: list[int]
) -> None:
    frames = [encode(argv) for argv in requests]
    assert scan(cut(b"".join(frames), at)) == ([("frame", frame) for frame in frames], b"")
    assert read_by_hiredis(b"".join(frames)) == requests
    assert [argv(frame) for frame in frames] == requests


@settings(max_examples=400)
@given(BYTES, CUTS)
@example(b"*1\r\n$5\r\nPING\r\n*1\r\n$4\r\nPING\r\n", [])
def test_any_bytes_are_cut_the_same_in_any_pieces(sent: bytes, at: list[int]) -> None:
    found, fault = scan(one_by_one(sent))
    in_pieces, same_fault = scan(cut(sent, at))
    assert same_fault == fault
    assert in_pieces == found[: len(in_pieces)]
    assert fault or in_pieces == found
    assert b"".join(frame for _, frame in found) == sent[: sum(len(frame) for _, frame in found)]


@settings(max_examples=400)
@given(BYTES)
def test_what_is_accepted_is_canonical_and_hiredis_reads_the_same(sent: bytes) -> None:
    for kind, frame in scan(one_by_one(sent))[0]:
        if kind == "frame":
            (arguments,) = read_by_hiredis(frame)
            assert isinstance(arguments, list)
            assert arguments and all(type(argument) is bytes for argument in arguments)
            assert argv(frame) == arguments
            assert encode(arguments) == frame


@pytest.mark.parametrize("sent", [b"", b"*0\r\n", b"PING\r\n", b"*1\r\n$4\r\nPIN", b"*1\r\n$1\r\nx\r\n*0\r\n"])
def test_only_one_whole_request_has_arguments(sent: bytes) -> None:
    with pytest.raises(ProtocolError, match="expected a request"):
        argv(sent)


@settings(max_examples=200)
@given(ARGV, st.data())
def test_a_frame_with_one_byte_changed_is_refused_or_still_canonical(argv: list[bytes], data: st.DataObject) -> None:
    frame = bytearray(encode(argv))
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.sampled_from(b"\r\n*$0129-+ \0x"))
    found, fault = scan(one_by_one(bytes(frame)))
    if not fault:
        assert all(encode(read_by_hiredis(each)[0]) == each for kind, each in found if kind == "frame")  # type: ignore[arg-type]


# --- requests: limits -------------------------------------------------------------------------------------------------


def test_as_many_arguments_as_the_limit_are_taken_and_no_more() -> None:
    assert scan([encode([b"x"] * 3)], Requests(args=3))[0] != []
    assert scan([b"*4\r\n"], Requests(args=3)) == ([], b"invalid multibulk length")


def test_as_many_bytes_of_an_argument_as_the_limit_are_taken_and_no_more() -> None:
    assert scan([encode([b"x" * 10, b"y" * 10])], Requests(bulk=10))[0] != []
    assert scan([b"*1\r\n$11\r\n"], Requests(bulk=10)) == ([], b"invalid bulk length")


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_line_as_long_as_the_limit_is_taken_and_no_longer(ending: bytes) -> None:
    longest = b"x" * (101 - len(ending)) + ending  # a hundred bytes, CR included, and the LF
    for pieces in ([longest], one_by_one(longest)):
        assert scan(pieces, Requests(inline_bytes=100)) == ([("inline", longest)], b"")
    for pieces in ([b"x" + longest], one_by_one(b"x" + longest)):
        assert scan(pieces, Requests(inline_bytes=100)) == ([], b"too big inline request")


@pytest.mark.parametrize(
    ("begun", "fault"), [(b"*", b"too big mbulk count string"), (b"*1\r\n$", b"too big bulk count string")]
)
def test_a_header_without_end_is_refused_one_byte_past_the_limit(begun: bytes, fault: bytes) -> None:
    longest = begun + b"1" * 99  # a hundred bytes of this header
    for pieces in ([longest], one_by_one(longest)):
        assert scan(pieces, Requests(inline_bytes=100)) == ([], b"")
    for pieces in ([longest + b"1"], one_by_one(longest + b"1")):
        assert scan(pieces, Requests(inline_bytes=100)) == ([], fault)


def test_a_header_reserves_no_memory() -> None:
    def size() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * 4096

    before = size()
    scanners = [Requests() for _ in range(2000)]
    for scanner in scanners:
        assert scanner.feed(b"*1048576\r\n$67108864\r\n") == []
    assert size() - before < 8 << 20, "2,000 headers of 64 MiB each"


# --- replies ----------------------------------------------------------------------------------------------------------


def bulk(kind: bytes, value: bytes) -> bytes:
    return b"%b%d\r\n%b\r\n" % (kind, len(value), value)


def aggregate(kind: bytes, parts: list[bytes], per_element: int = 1) -> bytes:
    return b"%b%d\r\n" % (kind, len(parts) // per_element) + b"".join(parts)


TEXT = st.text("abcXYZ 0123-:*$", max_size=12).map(str.encode)
NUMBER = st.integers(-(1 << 63), (1 << 63) - 1).map(lambda number: b"%d" % number)
SCALAR2 = st.one_of(
    TEXT.map(lambda text: b"+%b\r\n" % text),
    TEXT.map(lambda text: b"-ERR %b\r\n" % text),
    NUMBER.map(lambda number: b":%b\r\n" % number),
    st.binary(max_size=30).map(lambda value: bulk(b"$", value)),
    st.sampled_from([b"$-1\r\n", b"*-1\r\n", b"*0\r\n"]),
)
SCALAR3 = st.one_of(
    SCALAR2,
    st.sampled_from([b"_\r\n", b"#t\r\n", b"#f\r\n", b",1.5\r\n", b",inf\r\n", b",-2\r\n", b"~0\r\n", b"%0\r\n"]),
    st.integers(0, 1 << 200).map(lambda number: b"(%d\r\n" % number),
    TEXT.map(lambda text: bulk(b"=", b"txt:" + text)),
)


def maps(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    # hiredis mixes up the values of a key that comes twice, and takes no keys without a hash
    pairs = st.lists(values, max_size=3).map(lambda found: [b":%d\r\n" % i + each for i, each in enumerate(found)])
    return pairs.map(lambda found: aggregate(b"%", found))


REPLY2 = st.recursive(SCALAR2, lambda inner: st.lists(inner, max_size=4).map(lambda found: aggregate(b"*", found)))
REPLY3 = st.recursive(
    SCALAR3,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda found: aggregate(b"*", found)),
        st.lists(inner, max_size=4).map(lambda found: aggregate(b"~", found)),
        maps(inner),
    ),
)


def frames_of(pieces: Iterable[bytes], resp3: bool, line_bytes: int = 65536) -> tuple[list[bytes], bool]:
    """The frames cut, and whether a fault was found."""
    replies, found = Replies(resp3, line_bytes), []
    for piece in pieces:
        try:
            found += replies.feed(piece)
        except ProtocolError:
            return found, True
    return found, False


@pytest.mark.parametrize(("resp3", "reply"), [(False, REPLY2), (True, REPLY3)])
def test_replies_are_cut_where_hiredis_ends_them_in_any_cut(resp3: bool, reply: st.SearchStrategy[bytes]) -> None:
    @given(st.lists(reply, min_size=1, max_size=4), CUTS)
    def agree(sent: list[bytes], at: list[int]) -> None:
        whole = b"".join(sent)
        assert frames_of(cut(whole, at), resp3) == (sent, False)
        assert frames_of(one_by_one(whole), resp3) == (sent, False)
        assert list(map(repr, read_by_hiredis(whole))) == [repr(read_by_hiredis(frame)[0]) for frame in sent]

    agree()


@pytest.mark.parametrize("behind", [b":1\r\n:2\r\n", b"$-1\r\n+OK\r\n", b"_\r\n#t\r\n", b"*0\r\n*-1\r\n"])
def test_a_header_in_two_pieces_leaves_nothing_behind_for_the_element_after_its_own(behind: bytes) -> None:
    """What was searched of it in vain is not left out of the next line, or that would end where a later reply does."""
    reply, others = b"*3\r\n$10\r\n0123456789\r\n" + behind, [b"+OK\r\n", b":7\r\n"]
    for cut in range(1, len(reply)):
        machine = Replies(True)
        assert machine.feed(reply[:cut]) + machine.feed(reply[cut:] + b"".join(others)) == [reply, *others], reply[:cut]


REPLY_TOKENS = st.one_of(
    st.sampled_from(
        [b"+", b"-", b":", b"$", b"*", b"%", b"~", b"_", b"#", b",", b"(", b"=", b"!", b"|", b">", b"\r\n"]
    ),
    st.sampled_from([b"0", b"1", b"2", b"-1", b"-2", b"01", b"\r", b"\n", b"\0", b"a", b"txt:", b"*1\r\n", b":1\r\n"]),
    SCALAR3,
)


@pytest.mark.parametrize("resp3", [False, True])
def test_no_bytes_are_cut_where_hiredis_goes_on(resp3: bool) -> None:
    @settings(max_examples=300)
    @given(st.lists(REPLY_TOKENS, max_size=10).map(b"".join), CUTS)
    def agree(sent: bytes, at: list[int]) -> None:
        found, fault = frames_of(one_by_one(sent), resp3)
        in_pieces, same_fault = frames_of(cut(sent, at), resp3)
        assert same_fault == fault
        assert in_pieces == found[: len(in_pieces)]
        assert fault or in_pieces == found
        for frame in found:
            if b"|" not in frame and b"!" not in frame:  # hiredis does not know these
                assert ends_within(frame), frame

    agree()


LONG = b"x" * 200_000


@pytest.mark.parametrize("step", [1 << 20, 65536, 1009])
@pytest.mark.parametrize(
    "reply",
    [b"-ERR " + LONG + b"\r\n", b"+" + LONG + b"\r\n", b"*2\r\n-ERR " + LONG + b"\r\n:1\r\n"],
    ids=["an error", "a status", "an error in an array"],
)
def test_a_line_of_text_may_be_as_long_as_its_bound_in_any_cut(reply: bytes, step: int) -> None:
    sent = reply + b"$1\r\na\r\n"
    pieces = cut(sent, range(0, len(sent), step))
    assert frames_of(pieces, False, len(LONG) + 10) == ([reply, b"$1\r\na\r\n"], False)
    assert frames_of(pieces, False, len(LONG) - 10) == ([], True)


def test_the_two_bytes_that_end_a_long_line_may_come_apart() -> None:
    pieces = [b"-" + LONG, b"\r", b"\n+OK\r", b"\n"]
    assert frames_of(pieces, False, 2 * len(LONG)) == ([b"-" + LONG + b"\r\n", b"+OK\r\n"], False)
    assert frames_of([b"-" + LONG, b"\r", b"X"], False, 2 * len(LONG)) == ([], True)


@pytest.mark.parametrize("kind", [b"$", b"*", b":", b",", b"%"])
def test_a_number_without_end_is_refused_however_long_a_text_may_be(kind: bytes) -> None:
    assert frames_of(one_by_one(kind + b"1" * 100), True, len(LONG)) == ([], True)


def test_what_cannot_become_a_reply_is_refused_at_its_first_byte() -> None:
    for byte in set(range(256)) - set(b"+-:$*_#,(!=%~|"):
        assert frames_of([bytes([byte])], True) == ([], True)
    for byte in b"_#,(!=%~|":
        assert frames_of([bytes([byte])], False) == ([], True)


def ends_within(frame: bytes) -> bool:
    """Whether hiredis is content with these bytes: one value and nothing left, or a value that it takes for bad."""
    reader = hiredis.Reader(notEnoughData=_MORE, encoding=None)
    reader.feed(frame)
    try:
        return reader.gets() is not _MORE and not reader.has_data()
    except (hiredis.ProtocolError, TypeError):
        return True


@pytest.mark.parametrize(
    "sent",
    [
        b"@\r\n",
        b"PONG\r\n",
        b"\0\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"$\r\n",
        b"$-2\r\n",
        b"$01\r\na\r\n",
        b"$+1\r\na\r\n",
        b"$1\r\naXX",
        b"$2\r\na\r\n:1\r\n",
        b"$2147483648\r\n",
        b"*\r\n",
        b"*-2\r\n",
        b"*x\r\n",
        b"*2147483648\r\n",
        b"*1\r\n@\r\n",
        b"$" + b"1" * 21,
        b"$" + b"0" * 20_000,
        b"*" + b"1" * 20_000,
        b"*1\r\n$" + b"1" * 20_000,
        b"+a\rb\r\n",
        b"+OK\n+OK\r\n",
        b"-ERR a\nb\r\n",
        b">1\r\n:1\r\n",
        b"+" + b"a" * 70_000,
        b"*2147483647\r\n" * 600,
    ],
    ids=lambda sent: repr(sent[:24]),
)
@pytest.mark.parametrize("resp3", [False, True])
def test_what_is_no_reply_is_refused(sent: bytes, resp3: bool) -> None:
    assert frames_of([sent], resp3) == ([], True)
    assert frames_of(cut(sent, range(0, len(sent), 7)), resp3) == ([], True)


@pytest.mark.parametrize("sent", [b"_\r\n", b"#t\r\n", b",1\r\n", b"(1\r\n", b"=5\r\ntxt:a\r\n", b"~0\r\n", b"%0\r\n"])
def test_what_resp3_adds_is_refused_on_a_connection_that_speaks_resp2(sent: bytes) -> None:
    assert frames_of([sent], resp3=True) == ([sent], False)
    assert frames_of([sent], resp3=False) == ([], True)


@pytest.mark.parametrize(
    "sent", [b"!5\r\nERR x\r\n", b"|1\r\n+ttl\r\n:9\r\n$1\r\na\r\n", b"*2\r\n|1\r\n+a\r\n:1\r\n:2\r\n:3\r\n"]
)
def test_an_attribute_belongs_to_the_element_behind_it_and_an_error_may_have_a_length(sent: bytes) -> None:
    assert frames_of(one_by_one(sent + b":1\r\n"), resp3=True) == ([sent, b":1\r\n"], False)


def test_nesting_costs_nothing_however_deep() -> None:
    sent = b"*1\r\n" * 100_000 + b":1\r\n"
    assert frames_of([sent], resp3=False) == ([sent], False)


@given(st.lists(REPLY3, max_size=5))
def test_the_elements_of_an_array_are_the_frames_it_was_made_of(parts: list[bytes]) -> None:
    assert elements(aggregate(b"*", parts), resp3=True) == parts


@pytest.mark.parametrize(
    "frame",
    [b"", b":1\r\n", b"*-1\r\n", b"*x\r\n", b"*2\r\n:1\r\n", b"*1\r\n:1\r\n:2\r\n", b"*1\r\n:1\r", b"*0\rX", b"*0\r"],
)
def test_what_is_not_exactly_one_array_has_no_elements(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        elements(frame)


# --- the table itself -------------------------------------------------------------------------------------------------


def test_the_fault_of_an_outcome_is_what_the_scanner_said_in_it() -> None:
    assert fault_in(closed(b"+PONG\r\n-ERR Protocol error: invalid bulk length\r\n")) == b"invalid bulk length"
    assert fault_in(closed(b"+OK\r\n")) == fault_in(closed()) == fault_in(kept(b"-ERR x\r\n")) == b""


@settings(max_examples=200)
@given(st.lists(REPLY2), CUTS)
def test_whole_replies_come_as_the_bytes_that_they_are_in_any_pieces(frames: list[bytes], at: list[int]) -> None:
    sent, machine, found = b"".join(frames) + b"*3\r\n:1\r\n", Replies(), b""
    for piece in cut(sent, at):
        found += machine.whole(piece)
    assert found == b"".join(frames)
    assert machine.unfinished == 8
    assert machine.begins == b"*3\r\n:1\r\n"


PUSH3 = st.lists(st.one_of(SCALAR3, maps(SCALAR3)), min_size=1, max_size=3).map(lambda found: aggregate(b">", found))


@settings(max_examples=200)
@given(st.lists(st.one_of(REPLY3, PUSH3), min_size=1, max_size=5), CUTS)
def test_pushes_between_replies_are_cut_as_these_are_where_they_are_asked_for(sent: list[bytes], at: list[int]) -> None:
    for pieces in (cut(b"".join(sent), at), one_by_one(b"".join(sent))):
        machine = Replies(True, pushes=True)
        assert [frame for piece in pieces for frame in machine.feed(piece)] == sent


def test_a_push_within_a_reply_is_refused_and_so_is_any_where_none_was_asked_for() -> None:
    for machine, sent in ((Replies(True, pushes=True), b"*1\r\n>1\r\n:1\r\n"), (Replies(True), b">1\r\n:1\r\n")):
        with pytest.raises(ProtocolError, match="invalid reply"):
            machine.feed(sent)


def test_what_is_behind_whole_replies_and_is_none_is_refused() -> None:
    machine = Replies()
    with pytest.raises(ProtocolError, match="invalid reply"):
        machine.whole(b"+OK\r\n@")


NO_VALUES = [b":", b":abc", b":+1", b":01", b":-0", b":9223372036854775808", b":-9223372036854775809"]
NO_VALUES3 = [b"#", b"#x", b"#tt", b"#true", b"_x", b"_ ", b",", b",zz", b",1x", b",e", b",-", b",infinity",
              b"=3\r\ntxt", b"=0\r\n", b"=5\r\ntxt-x"]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "resp3"), [*((each, False) for each in NO_VALUES), *((each, True) for each in NO_VALUES3)]
)
@pytest.mark.parametrize("within", [b"", b"*2\r\n$1\r\nx\r\n"])
def test_a_line_that_is_no_value_of_its_type_is_no_reply(line: bytes, within: bytes, resp3: bool) -> None:
    assert frames_of([within + line + b"\r\n"], resp3) == ([], True)
    assert frames_of(one_by_one(within + line + b"\r\n"), resp3) == ([], True)


VALUES = """
    :0 :-1 :9223372036854775807 :-9223372036854775808 #t #f _ ,0 ,-0 ,1.5 ,1e+20 ,-1.5E-7 ,inf ,-inf ,nan ,-nan
    ,3.141592653589793 (12345678901234567890 =4|txt:
"""


@pytest.mark.parametrize("line", [each.replace("|", "\r\n").encode() for each in VALUES.split()])
def test_what_servers_say_of_each_type_is_a_reply(line: bytes) -> None:
    assert frames_of(one_by_one(line + b"\r\n"), True) == ([line + b"\r\n"], False)


def test_a_big_number_is_what_a_script_says_that_it_is() -> None:
    """Servers pass it on as it is, so it says nothing against them."""
    assert frames_of([b"(what a script returned\r\n"], True) == ([b"(what a script returned\r\n"], False)
