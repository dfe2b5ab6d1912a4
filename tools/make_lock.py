"""Writes requirements.lock: the exact version, and the hashes, of all that ./run and the Dockerfile install.

    ./run lock

One resolution for every Python from 3.11 on, so what differs between them stands side by side with its marker. `uv`
makes it, which has to be on PATH; `./run lock` sees to that. tests/test_lock.py says when pyproject.toml has changed.

The file has sections, each of what the ones before it lack; `./run` and the Dockerfile cut it at their headers:

    [build]  what the compiled modules are made with
    [serve]  what the proxy runs with, ElastiCache included
    [demo]   and the demo
    [test]   and the suite
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements.lock"

EXTRAS = {"serve": ("elasticache",), "demo": ("elasticache", "demo"), "test": ("elasticache", "demo", "test")}
SECTIONS = ("build", *EXTRAS)
OLDEST = "3.11"
PLATFORM = "platform_python_implementation == 'CPython' and sys_platform == 'linux'"  # in the order of uv

HEAD = """\
# What ./run and the Dockerfile install, with the hashes of its files. Written by ./run lock; do not edit.
# pyproject.toml: {digest}
"""


def digest(pyproject: str) -> str:
    """Changes with all that the lock follows from, and with nothing else of the file's text."""
    read = tomllib.loads(pyproject)
    project = read["project"]
    asked = [
        project["requires-python"],
        sorted(project["dependencies"]),
        sorted((extra, sorted(wanted)) for extra, wanted in project["optional-dependencies"].items()),
        sorted(read["build-system"]["requires"]),
    ]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def entries(text: str) -> dict[str, str]:
    """Each requirement of such a text with its hashes, by its first line: `name==version ; marker`, no backslash."""
    found = re.findall(r"^(\S.*?) \\\n((?:    --hash=\S+(?: \\)?\n)+)", text, re.MULTILINE)
    return {requirement: f"{requirement} \\\n{hashes}" for requirement, hashes in found}


def lock(pyproject: str) -> str:
    """The whole file. RuntimeError with the words of uv if there is no such set of versions."""
    build = tomllib.loads(pyproject)["build-system"]["requires"]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "pyproject.toml").write_text(f'{pyproject}\n[tool.uv]\nenvironments = ["{PLATFORM}"]\n')
        (directory / "build.in").write_text("".join(f"{each}\n" for each in build))
        (directory / "all.lock").write_text("")
        everything = _compiled(directory, "build.in", "pyproject.toml", *_options(EXTRAS["test"]))
        (directory / "all.lock").write_text(everything)  # a part has the versions of the whole
        parts = {"build": _compiled(directory, "build.in")}
        for section, extras in EXTRAS.items():
            parts[section] = _compiled(directory, "build.in", "pyproject.toml", *_options(extras))
    left = entries(everything)
    written = HEAD.format(digest=digest(pyproject))
    for section in SECTIONS:
        names = {_name(requirement) for requirement in entries(parts[section])}
        mine = [requirement for requirement in left if _name(requirement) in names]
        written += f"\n# [{section}]\n" + "".join(left.pop(requirement) for requirement in mine)
    if left:
        raise RuntimeError(f"expected every requirement in a section, got none for {', '.join(left)}")
    return written


def _options(extras: tuple[str, ...]) -> list[str]:
    return [option for extra in extras for option in ("--extra", extra)]


def _compiled(directory: Path, *arguments: str) -> str:
    command = ["uv", "pip", "compile", *arguments, "--universal", "--python-version", OLDEST, "--generate-hashes"]
    command += ["--constraints", "all.lock", "--no-header", "--no-annotate", "--quiet"]
    ended = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"uv: {ended.stderr.strip()}")
    return re.sub(rf" (?:;|and) {PLATFORM}(?= \\$)", "", ended.stdout, flags=re.MULTILINE)  # it is so for all


def _name(requirement: str) -> str:
    return requirement.partition("==")[0]


def main() -> int:
    try:
        written = lock((ROOT / "pyproject.toml").read_text())
    except (RuntimeError, FileNotFoundError) as exc:
        print(f"make_lock: {exc}", file=sys.stderr)
        return 1
    LOCK.write_text(written)
    print(f"{LOCK.name}: {len(entries(written))} requirements")
    return 0


if __name__ == "__main__":
    sys.exit(main())
