"""Some histories in every run of the suite; as many as are wanted by `./run simulate`."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.drawing import draw
from tests.simulation.run import failure_of, play, shrink
from tests.simulation.server import Server
from tests.simulation.setting import Setting
from tests.simulation.steps import Step

SEEDS = "0..400"


@pytest.mark.slow
def test_drawn_histories_break_no_promise() -> None:
    """In processes of their own, as a history may be the end of one."""
    command = [sys.executable, "-m", "tests.simulation", "--seeds", SEEDS]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("seed", [42736], ids=["a read overtook a refused write of the same moment"])
def test_a_history_that_once_broke_a_promise_breaks_none(seed: int) -> None:
    assert not failure_of(*draw(seed), seed)


@pytest.mark.parametrize("seed", [3, 17])
def test_a_seed_is_one_history(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Or a failure could not be looked at again."""
    said = []
    for _ in range(2):
        play(*draw(seed), seed, says=True)
        said.append([line for line in capsys.readouterr().out.splitlines() if "ECHO" not in line])  # of random words
    assert said[0] == said[1]


def test_a_failure_is_shrunk_to_the_steps_that_make_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a server that gives a wrong answer, to one command."""
    monkeypatch.setattr(Server, "_append", lambda *_: b":999\r\n")
    idle = [Step("flow", 0, 0)] * 5
    setting, steps = Setting(), [Step("open", 0, 2), *idle, Step("ask", 0, 5), *idle, Step("time", 0, 3)]
    assert "b':999\\r\\n' is not its answer" in failure_of(setting, steps, 1)
    assert [step.name for step in shrink(setting, steps, 1, float("inf"))] == ["open", "ask"]
