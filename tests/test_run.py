"""What ./run says on a machine that lacks something. That it works on one that has all is the suite's own proof."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
APT = "apt-get install gcc python3-dev libc6-dev"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The repository as just cloned, but for the sources."""
    shutil.copy(ROOT / "run", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for room in ("protocol", "pyproxy"):
        (tmp_path / room).mkdir()
    return tmp_path


def run(checkout: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """The exit status and what was said on stderr."""
    ended = subprocess.run(
        ["sh", "./run", *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


@pytest.fixture
def cc(tmp_path: Path) -> Path:
    """A compiler that finds no header."""
    program = tmp_path / "cc"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    return program


def test_without_a_compiler_it_stops_with_the_line_that_helps(checkout: Path) -> None:
    problem = f"run: the hot path is compiled, and this machine lacks a C compiler (no-such-cc): {APT}\n"
    assert run(checkout, "demo", CC="no-such-cc") == (1, problem)
    assert not (checkout / ".venv").exists()


def test_without_python_h_it_stops_with_the_line_that_helps(checkout: Path, cc: Path) -> None:
    problem = f"run: the hot path is compiled, and this machine lacks Python.h or the C library's headers: {APT}\n"
    assert run(checkout, "demo", CC=str(cc)) == (1, problem)


@pytest.mark.parametrize("python", ["no-such-python", "false"])
def test_without_a_new_python_it_says_which_it_needs(checkout: Path, python: str) -> None:
    problem = f"run: needs Python 3.11 or newer, and {python} is not (PYTHON=... chooses another)\n"
    assert run(checkout, "demo", PYTHON=python) == (1, problem)


def test_when_pip_fails_its_words_are_shown(checkout: Path) -> None:
    (checkout / "pyproject.toml").write_text("this is no TOML")
    status, said = run(checkout, "demo")
    assert status == 1
    assert "xpected '=' after a key" in said  # tomllib's words, which pip passes on
    assert said.endswith("run: pip failed; all it said is in .venv/pip.log\n")
    assert not (checkout / ".venv" / ".stamp").exists()


def test_an_unknown_task_is_answered_with_the_known_ones(checkout: Path) -> None:
    assert run(checkout, "dmeo") == (1, "run: unknown task 'dmeo': demo, test, check, bench, faults or pyproxy\n")
