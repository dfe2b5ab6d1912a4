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
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    for package in ("protocol", "pyproxy"):
        (tmp_path / package).mkdir()
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


def test_what_it_starts_keeps_bytecode_where_the_environment_says_otherwise(checkout: Path) -> None:
    python, said = checkout / "python", checkout / "said"
    python.write_text(f"#!/bin/sh\necho ${{PYTHONDONTWRITEBYTECODE-kept}} >{said}\nexit 1\n")
    python.chmod(0o755)
    run(checkout, "demo", PYTHON=str(python), PYTHONDONTWRITEBYTECODE="1")
    assert said.read_text() == "kept\n"


@pytest.mark.slow
def test_when_pip_fails_its_words_are_shown(checkout: Path) -> None:
    (checkout / "requirements.lock").write_text("this is no requirement\n")
    status, said = run(checkout, "demo")
    assert status == 1
    assert "Invalid requirement: 'this is no requirement'" in said
    assert said.endswith("run: pip failed; all it said is in .venv/pip.log\n")
    assert not (checkout / ".venv" / ".stamp").exists()


@pytest.mark.slow
def test_nothing_is_installed_that_has_other_bytes_than_the_lock_says(checkout: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "wheels" / "pyproxy_nothing-1-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"other bytes")
    (checkout / "requirements.lock").write_text(f"pyproxy-nothing==1 --hash=sha256:{'0' * 64}\n")
    status, said = run(checkout, "demo", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheel.parent))
    assert status == 1
    assert "THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE" in said


@pytest.fixture
def broken_lock(checkout: Path) -> None:
    """`./run demo` makes .venv and goes no further: with this the interpreter can be seen, and nothing is installed."""
    (checkout / "requirements.lock").write_text("this is no requirement\n")


@pytest.fixture
def another_python(tmp_path: Path) -> Path:
    """The same Python as a program of its own elsewhere."""
    base = Path(sys._base_executable)  # type: ignore[attr-defined] # behind all environments
    program = tmp_path / "another" / "bin" / "python3"
    program.parent.mkdir(parents=True)
    shutil.copy(base.resolve(), program)
    for part in ("lib", "include"):
        (tmp_path / "another" / part).symlink_to(Path(sys.base_prefix) / part)
    return program


def base_of(checkout: Path) -> Path:
    """The program that .venv was made with."""
    ask = "import os, sys; print(os.path.realpath(sys._base_executable))"
    python = checkout / ".venv" / "bin" / "python"
    return Path(subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip())


@pytest.mark.slow
@pytest.mark.usefixtures("broken_lock")
def test_the_interpreter_that_is_asked_for_is_used_where_another_one_made_the_environment(
    checkout: Path, another_python: Path
) -> None:
    run(checkout, "demo")
    assert base_of(checkout) != another_python
    _, said = run(checkout, "demo", PYTHON=str(another_python))
    assert f"run: .venv is of another Python than {another_python}, and is made anew\n" in said
    assert base_of(checkout) == another_python


@pytest.mark.slow
@pytest.mark.usefixtures("broken_lock")
@pytest.mark.parametrize("asked", ["", ".venv/bin/python", "another/bin/link"])
def test_an_environment_of_the_interpreter_that_is_asked_for_is_kept_and_so_is_any_where_none_is(
    asked: str, checkout: Path, another_python: Path
) -> None:
    another_python.with_name("link").symlink_to(another_python)
    run(checkout, "demo", PYTHON=str(another_python))
    mark = checkout / ".venv" / "mark"
    mark.touch()
    run(checkout, "demo", PYTHON=asked)
    assert mark.exists()
    assert base_of(checkout) == another_python


@pytest.mark.slow
@pytest.mark.usefixtures("broken_lock")
def test_an_environment_whose_python_is_gone_is_made_anew(checkout: Path, another_python: Path) -> None:
    run(checkout, "demo", PYTHON=str(another_python))
    shutil.rmtree(another_python.parents[1])
    run(checkout, "demo")
    assert base_of(checkout).exists()


def test_an_unknown_task_is_answered_with_the_known_ones(checkout: Path) -> None:
    known = "demo, test, check, bench, faults, soak, simulate, pyproxy or lock"
    assert run(checkout, "dmeo") == (1, f"run: unknown task 'dmeo': {known}\n")


def test_what_runs_under_the_sanitizers_is_there() -> None:
    text = (ROOT / "run").read_text()
    function = text[text.index("storms() {") : text.index("# sanitize ARGUMENTS")]
    ended = subprocess.run(["sh", "-ec", f"{function}\nstorms"], capture_output=True, text=True, timeout=50, check=True)
    named = ended.stdout.split()
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


# --- .ci/run, with a ./run that only says what pytest would ---


CLOSING = {0: "== 8 passed, 1 skipped in 61.20s (0:01:01) ==", 1: "== 1 failed, 7 passed in 60.10s (0:01:00) ==", 2: ""}
"""By how a suite ends; the last one was killed."""


@pytest.mark.parametrize("check", [0, 1])
@pytest.mark.parametrize("serving", CLOSING)
@pytest.mark.parametrize("checked", CLOSING)
def test_the_check_and_both_suites_are_run_and_it_fails_if_any_does(
    tmp_path: Path, check: int, serving: int, checked: int
) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci")
    said = {name: f"FAILED tests/{name}.py\n{CLOSING[code]}" for name, code in (("s", serving), ("c", checked))}
    (tmp_path / "run").write_text(
        f'#!/bin/sh\ncase "$*" in\ncheck) echo a.py:1: wrong; exit {check} ;;\n'
        f'"test -k x") echo "{said["s"]}"; exit {serving} ;;\n'
        f'"test --checked -k x") echo "{said["c"]}"; exit {checked} ;;\n*) exit 3 ;;\nesac\n'
    )
    (tmp_path / "run").chmod(0o755)
    ended = subprocess.run(
        ["bash", ".ci/run", "-k", "x"], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert ended.returncode == (1 if check or serving or checked else 0)
    assert ended.stdout.startswith("a.py:1: wrong\n")
    assert ("--- ./run check failed; the last it said ---\na.py:1: wrong\n" in ended.stdout) == bool(check)
    shown = ended.stdout[ended.stdout.index("\n--- the serving build") :]
    first, second = shown.split("--- the checked build ---\n")
    for text, name, code in ((first, "s", serving), (second, "c", checked)):
        lines = text.strip().splitlines()
        assert f"FAILED tests/{name}.py" in lines
        assert lines[-1] == CLOSING[code] if CLOSING[code] else "before pytest's closing line" in text
