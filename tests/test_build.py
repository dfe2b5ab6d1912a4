"""The builds that find faults: that each differs from the one that serves as it says, and in nothing else."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest

from pyproxy.demo import HOT_PATH
from pyproxy.worker.lane.lane import BUILD
from tools import make_build

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(BUILD != "", reason="of the repository, not of a copy that was made of it")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """What of a copy decides how the modules are compiled."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in ("protocol", "pyproxy"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns(*make_build.MADE))
    return tmp_path


def modules(directory: Path) -> list[dict[str, list[str]]]:
    text = (directory / "pyproject.toml").read_text()
    found: list[dict[str, list[str]]] = tomllib.loads(text)["tool"]["setuptools"]["ext-modules"]
    return found


def test_the_demo_asks_for_each_module_that_is_compiled() -> None:
    assert set(HOT_PATH) == {str(each["name"]) for each in modules(ROOT)}


def test_each_compiled_source_is_a_module_of_the_project() -> None:
    sources = {str(path.relative_to(ROOT)) for top in ("protocol", "pyproxy") for path in (ROOT / top).rglob("*.pyx")}
    assert sources == {source for each in modules(ROOT) for source in each["sources"]}


@pytest.mark.parametrize("kind", make_build.BUILDS)
def test_every_module_is_compiled_as_its_build_says(copied: Path, kind: str) -> None:
    build = make_build.BUILDS[kind]
    make_build.turn_into(build, copied)
    assert {tuple(each["extra-compile-args"]) for each in modules(copied)} == {build.compile}
    assert {tuple(each["extra-link-args"]) for each in modules(copied)} == {build.link}


def test_in_the_checked_build_no_module_leaves_out_a_check(copied: Path) -> None:
    make_build.turn_into(make_build.BUILDS["checked"], copied)
    for source in make_build.sources(copied, (".pyx",)):
        first = source.read_text().splitlines()[0]
        found = dict(re.findall(r"(\w+)=(\w+)", first))
        checks = ("nonecheck", "boundscheck", "wraparound", "overflowcheck", "initializedcheck")
        assert {found.pop(name) for name in checks} == {"True"}, source
        assert found == {"language_level": "3", "cdivision": "False"}


@pytest.mark.parametrize("kind", make_build.BUILDS)
def test_but_for_that_the_sources_are_the_same(copied: Path, kind: str) -> None:
    make_build.turn_into(make_build.BUILDS[kind], copied)
    for source in make_build.sources(copied):
        lines, served = source.read_text().splitlines(), (ROOT / source.relative_to(copied)).read_text().splitlines()
        assert lines[1:] == served[1:]


def test_no_module_switches_a_check_off_elsewhere_than_in_its_first_line() -> None:
    switched = re.compile(r"boundscheck|wraparound|nonecheck|cdivision|initializedcheck|overflowcheck")
    for source in make_build.sources(ROOT):
        assert not switched.search("\n".join(source.read_text().splitlines()[1:])), source


def test_another_source_or_another_build_is_another_stamp() -> None:
    stamps = {make_build.stamp(kind) for kind in make_build.BUILDS}
    assert len(stamps) == len(make_build.BUILDS)
