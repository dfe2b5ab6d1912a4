import asyncio
import re
from types import SimpleNamespace

import pytest

from pyproxy import events
from pyproxy.events import Event, emit


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return re.sub(r" at=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\n", "\n", capsys.readouterr().err)


def test_a_line_is_the_event_its_fields_and_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    events.configure()
    emit(Event.WORKER_START, index=1, pid=4711)
    assert re.fullmatch(r"\+worker-start index=1 pid=4711 at=[0-9-]+T[0-9:.]+Z\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("connection refused", '"connection refused"'),
        ("", '""'),
        ('say "no"', '"say \\"no\\""'),
        ("a\r\n+ready b=c", '"a\\r\\n+ready b=c"'),
        ("\x1b[2J", '"\\u001b[2J"'),
        ("127.0.0.1:7000", "127.0.0.1:7000"),
    ],
)
def test_one_event_is_one_line_whatever_is_in_its_values(
    value: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    events.configure()
    emit(Event.NODE_DOWN, error=value)
    assert said(capsys) == f"+sdown error={shown}\n"


def test_below_the_level_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    events.configure(level=30)  # logging.WARNING
    emit(Event.WORKER_START, index=1)
    emit(Event.WORKER_DEATH, index=1)
    assert said(capsys) == "+worker-death index=1\n"


def test_configured_twice_a_line_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    events.configure()
    events.configure()
    emit(Event.READY)
    assert said(capsys) == "+ready\n"


def test_every_event_has_a_name_of_its_own_that_begins_or_ends_something() -> None:
    names = [event.value[0] for event in Event]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[+-][a-z]+(-[a-z]+)*", name) for name in names)


# --- floods -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the lines, which the test moves."""
    now = [1000.0]
    monkeypatch.setattr(events, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_what_comes_too_often_is_said_so_often_and_then_counted(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    events.configure()
    for number in range(events.LINES + 4711):
        emit(Event.LINK_LOST, shard="s0", node="n:1", requests=number)
    assert said(capsys).count("\n") == events.LINES
    clock[0] += events.WINDOW_S
    emit(Event.LINK_LOST, shard="s0", node="n:1", requests=7)
    lines = said(capsys)
    assert lines == "+link-lost shard=s0 node=n:1 suppressed=4711\n+link-lost shard=s0 node=n:1 requests=7\n"


def test_what_is_counted_is_said_with_the_next_line_of_any_kind(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    events.configure()
    for _ in range(events.LINES + 1):
        emit(Event.BUG, where="a task", trace="...")
    said(capsys)
    clock[0] += events.WINDOW_S
    emit(Event.READY)
    assert said(capsys) == '+bug where="a task" suppressed=1\n+ready\n'


def test_a_flood_of_one_hides_no_other(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    events.configure()
    for _ in range(events.LINES * 2):
        emit(Event.LINK_LOST, shard="s0", node="n:1")
    said(capsys)
    emit(Event.LINK_LOST, shard="s1", node="n:2")
    emit(Event.LINK_DOWN, shard="s0", node="n:1")
    assert said(capsys) == "+link-lost shard=s1 node=n:2\n+link-down shard=s0 node=n:1\n"


async def test_an_error_that_only_the_loop_sees_is_an_event_like_others(capsys: pytest.CaptureFixture[str]) -> None:
    events.configure()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(events.on_loop_error)
    done = loop.create_future()
    done.set_result(None)
    loop.call_soon(done.set_result, None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    (line,) = said(capsys).splitlines()
    assert line.startswith("+bug where=") and "InvalidStateError" in line
