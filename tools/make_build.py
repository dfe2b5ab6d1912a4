"""Builds the compiled modules for finding faults instead of for serving, in a copy of the whole repository.

    python -m tools.make_build checked      .checked: checks each index, attribute and sum, and after a turn all queues
    python -m tools.make_build sanitized    .sanitized: as for serving, but under AddressSanitizer and UBSan

A copy, as modules built otherwise would have the names of those that serve. `./run test --checked` and `./run check
--sanitize` make it and run the suite in it, by the interpreter that runs this, which has setuptools and Cython. What is
compiled is compiled again only if its sources have changed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

SERVING = 'extra-compile-args = ["-O3", "-g0"]'
"""As in pyproject.toml."""

HIDDEN = (".ci", ".gitignore", ".dockerignore")
MADE = ("build", "dist", "node_modules", "__pycache__", "*.egg-info", "*.so", "*.c", "*.o", ".*")
COMPILED = (".pyx", ".pxd", ".pxi")


@dataclass(frozen=True)
class Build:
    """`directives`: what each module's first line says; empty: as it stands. `link`: options for the linker."""

    directives: str
    compile: tuple[str, ...]
    link: tuple[str, ...] = ()

    @property
    def arguments(self) -> str:
        """In place of SERVING."""
        lines = [f"extra-compile-args = {list(self.compile)}", f"extra-link-args = {list(self.link)}"]
        return "\n".join(lines).replace("'", '"')


SANITIZE = "-fsanitize=address,undefined"

BUILDS = {
    "checked": Build(
        "nonecheck=True, boundscheck=True, wraparound=True, overflowcheck=True, initializedcheck=True, cdivision=False",
        ("-O1", "-g0", "-DPYPROXY_CHECKED", "-Wno-int-conversion"),  # checked differences of pointers
    ),
    "sanitized": Build("", ("-O1", "-g", "-fno-omit-frame-pointer", SANITIZE, "-DPYPROXY_SANITIZED"), (SANITIZE,)),
}


def make(kind: str) -> Path:
    """The directory of a build, up to date. Raises subprocess.CalledProcessError where it cannot be compiled."""
    directory, former = ROOT / f".{kind}", ROOT / f".{kind}.former"
    wanted = stamp(kind)
    shutil.rmtree(former, ignore_errors=True)
    if directory.exists():
        directory.rename(former)
    copy(directory)
    turn_into(BUILDS[kind], directory)
    if (former / ".stamp").exists() and (former / ".stamp").read_text() == wanted:
        for module in former.rglob("*.so"):
            module.rename(directory / module.relative_to(former))
    else:
        compile_in(directory)
    (directory / ".stamp").write_text(wanted)
    shutil.rmtree(former, ignore_errors=True)
    return directory


def copy(directory: Path) -> None:
    directory.mkdir()
    for path in ROOT.iterdir():
        if path.is_dir() and (not path.name.startswith(".") or path.name in HIDDEN) and path.name not in MADE:
            shutil.copytree(path, directory / path.name, ignore=shutil.ignore_patterns(*MADE))
        elif path.is_file() and (not path.name.startswith(".") or path.name in HIDDEN):
            shutil.copy2(path, directory)


def turn_into(build: Build, directory: Path) -> None:
    """Changes what decides how the modules are compiled, and nothing else."""
    project = directory / "pyproject.toml"
    project.write_text(project.read_text().replace(SERVING, build.arguments))
    if build.directives:
        for source in sources(directory, (".pyx",)):
            text = re.sub(r"\A# cython: [^\n]*", f"# cython: language_level=3, {build.directives}", source.read_text())
            source.write_text(text)


def compile_in(directory: Path) -> None:
    command = [sys.executable, "-c", "from setuptools import setup; setup()", "build_ext", "--inplace", "--force"]
    ended = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.stderr.write(ended.stdout + ended.stderr)
        ended.check_returncode()
    shutil.rmtree(directory / "build", ignore_errors=True)


def sources(directory: Path, suffixes: tuple[str, ...] = COMPILED) -> Iterator[Path]:
    for package in ("protocol", "pyproxy"):
        yield from sorted(path for path in (directory / package).rglob("*") if path.suffix in suffixes)


def stamp(kind: str) -> str:
    """Of all that decides what the modules are."""
    found = hashlib.sha256(f"{sys.version} {os.environ.get('CFLAGS', '')} {BUILDS[kind]}".encode())
    for path in (*sources(ROOT), ROOT / "pyproject.toml", ROOT / "requirements.lock"):
        found.update(path.read_bytes())
    return found.hexdigest()


if __name__ == "__main__":
    print(make(sys.argv[1]))
