import re

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
