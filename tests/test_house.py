"""The rules of the project: which way imports point, what the pure part may know, how long a file may be.

They hold for the sources as they stand, read but not run, the compiled ones included.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("protocol", "pyproxy")
TOO_LONG = 1000  # lines

# What a package may not import. The rest of "protocol <- what is shared <- worker | control <- cli" follows.
IO_AND_CLOCKS = ("asyncio", "uvloop", "socket", "select", "selectors", "ssl", "threading", "subprocess", "signal", "os")
DEMOS = ("pyproxy.demo", "pyproxy.demo_import")
FORBIDDEN = {
    "protocol": ("pyproxy", *IO_AND_CLOCKS, "time", "datetime", "random", "secrets", "logging"),
    "pyproxy.worker": ("pyproxy.control", "pyproxy.mover", "pyproxy.cli", *DEMOS, "pyproxy.fleet"),
    "pyproxy.control": ("pyproxy.worker", "pyproxy.mover", "pyproxy.cli", *DEMOS, "pyproxy.fleet"),
    "pyproxy.mover": ("pyproxy.worker", "pyproxy.control", "pyproxy.cli", *DEMOS, "pyproxy.fleet"),
}
# The packages of each process. A package may import those before it. What is beside them, as main.py, imports all.
LAYERS = {
    "pyproxy.worker": ("lane", "shard", "pubsub", "commands"),
    "pyproxy.control": ("health", "failover.promoters", "process", "http", "failover", "growth"),
}
# Above the shared words: they start the others, so they may import what they start.
PROGRAMS = ("pyproxy.__main__", "pyproxy.cli", *DEMOS, "pyproxy.move_commands")

WRITTEN = (".py", ".pyx", ".pxd", ".pxi", ".pyi", ".sh")
MADE = (".c", ".o", ".so", ".pyc", ".png", ".log")
GENERATED = {"protocol/rows.py": "one row for each command of the servers"}

# Sources without a test file of the same name, and where they are tested.
TESTED_ELSEWHERE = {
    "protocol/rows.py": "generated; tests/protocol/test_table.py compares it with a live server",
    "pyproxy/__main__.py": "runs cli.main; every test that starts the program runs it",
    "pyproxy/worker/__main__.py": "runs main.serve; every worker is started by it",
    "pyproxy/demo.py": "tests/e2e/process/test_demo.py runs it as a user does",
    "pyproxy/demo_import.py": "tests/e2e/process/test_demo_import.py runs it as a user does",
    "pyproxy/demo_load.py": "tests/e2e/process/test_demo_import.py, with a server",
    "pyproxy/fleet/interrupts.py": "tests/e2e/process/test_demo.py",
    "pyproxy/fleet/proxy.py": "every e2e test starts a proxy with it",
    "protocol/helps.py": "texts; tests/pyproxy/worker/commands/test_local.py asks for them",
    "pyproxy/control/growth/coordinator.py": "tests/e2e/process/test_moves.py",
    "pyproxy/control/growth/mover_process.py": "tests/e2e/process/test_moves.py",
    "pyproxy/worker/commands/context.py": "declarations only",
    "pyproxy/worker/lane/outcome.py": "declarations only",
    "pyproxy/worker/commands/handlers.py": "a table of names; every e2e test of a conversation goes through it",
    "pyproxy/worker/commands/local_client.py": "tests/pyproxy/worker/commands: test_local, test_client_list",
    "pyproxy/worker/commands/local_config.py": "tests/pyproxy/worker/commands/test_local.py",
    "pyproxy/worker/commands/local_connection.py": "tests/pyproxy/worker/commands/test_local.py",
    "pyproxy/worker/commands/local_server.py": "tests/pyproxy/worker/commands/test_local.py",
    "pyproxy/worker/commands/placing.py": "tests/pyproxy/worker/lane/test_words.py",
    "pyproxy/worker/lane/lane.pyx": "tests/e2e/lane, and test_lost_connection, test_slow_shard in tests/e2e/shard",
    "pyproxy/worker/lane/sending.pyx": "tests/pyproxy/worker/lane/test_split.py",
    "pyproxy/worker/lane/share.pyx": "tests/pyproxy/worker/lane: test_split, test_many_keys",
    "pyproxy/worker/shard/router.py": "tests/e2e: test_hold, test_switch",
    "pyproxy/worker/pubsub/connection.py": "tests/e2e/pubsub: test_pubsub, test_hostile_pubsub",
    "pyproxy/worker/pubsub/delivery.py": "tests/pyproxy/worker/pubsub/test_hub.py",
    "pyproxy/worker/pubsub/interest.py": "tests/pyproxy/worker/pubsub/test_hub.py",
    "pyproxy/worker/pubsub/pending.py": "tests/pyproxy/worker/pubsub/test_hub.py",
    "pyproxy/worker/pubsub/upstream.py": "tests/e2e/pubsub/test_pubsub.py",
    "pyproxy/worker/commands/blocking.py": "tests/e2e: test_blocking, test_blocking_promotion",
    "pyproxy/worker/commands/cross_shard/polling.py": "tests/e2e/commands/test_blocking_over_shards.py",
    "pyproxy/worker/commands/cross_shard/ready_keys.py": "tests/e2e/commands/test_waiting_together.py",
    "pyproxy/worker/commands/executing.py": "tests/e2e/commands/test_scripting.py",
    "pyproxy/worker/commands/script_admin.py": "tests/e2e/commands/test_scripting.py",
    "pyproxy/worker/commands/script_texts.py": "tests/e2e/commands: test_scripting, test_keyless_scripts",
    "pyproxy/worker/commands/scripting.py": "tests/e2e/commands/test_scripting.py",
    "pyproxy/worker/commands/keyspace.py": "tests/e2e: test_keyspace, test_scan_completeness",
    "pyproxy/worker/commands/wait.py": "tests/e2e/commands/test_wait.py",
    "pyproxy/worker/commands/memory.py": "tests/e2e/commands/test_surface.py",
    "pyproxy/worker/commands/cross_shard/per_key.py": "tests/e2e/commands/test_cross_shard.py",
    "pyproxy/worker/commands/cross_shard/operands.py": "tests/e2e/commands/test_cross_shard.py",
    "pyproxy/worker/commands/watch.py": "tests/e2e/commands/test_watch.py",
    "pyproxy/worker/commands/settings.py": "tests/e2e/commands/test_settings.py",
    "pyproxy/worker/shard/handshake.py": "tests/e2e: test_access, test_hostile_backend",
    "pyproxy/worker/shard/link.py": "tests/e2e: test_down_shard, test_lost_connection, test_hostile_backend",
    "pyproxy/worker/acceptor.py": "tests/e2e/process: test_processes, test_listening",
    "pyproxy/worker/heap.py": "tests/e2e/lane: test_bulk, test_hostile_memory",
    "pyproxy/worker/main.py": "tests/e2e/process/test_processes.py",
    "pyproxy/control/failover/transitions.py": "declarations only",
    "pyproxy/control/failover/shard_state.py": "tests/pyproxy/control/failover: test_machine, test_lineage",
    "pyproxy/control/failover/unplanned.py": "tests/pyproxy/control/failover: test_machine, test_machine_always",
    "pyproxy/control/http/server.py": "tests/e2e/process/test_status.py",
    "pyproxy/moves.py": "declarations only",
    "pyproxy/mover/connection.py": "tests/pyproxy/mover: test_feed, test_copying",
    "pyproxy/mover/__main__.py": "runs main.serve; tests/pyproxy/mover/test_main.py starts it",
    "pyproxy/mover/means.py": "tests/pyproxy/mover/test_copying.py",
    "pyproxy/mover/pages.py": "tests/pyproxy/mover/test_copying.py",
    "pyproxy/mover/server_info.py": "tests/pyproxy/mover/test_copying.py",
    "pyproxy/config_reading.py": "tests/pyproxy/test_config.py reads files; nobody else uses it",
}


def modules(root: Path) -> dict[str, Path]:
    """Every source file by its dotted name; a package by the name of its directory."""
    found = {}
    for top in SOURCES:
        for path in sorted((root / top).rglob("*")):
            if path.suffix in (".py", ".pyx"):
                parts = path.relative_to(root).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """The dotted names a file imports, anywhere in it; of `from a import b` both a and a.b, as b may be a module."""
    if path.suffix == ".py":
        return set(_python_imports(path.read_text()))
    parts = [path, path.with_suffix(".pxd"), *(path.parent / name for name in included(path))]
    return {name for part in parts if part.exists() for name in _cython_imports(part.read_text())}


def included(path: Path) -> list[str]:
    """The files that a compiled source is cut into, beside it."""
    return re.findall(r"""^include\s+["'](.+)["']""", path.read_text(), re.MULTILINE)


def _python_imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _cython_imports(source: str) -> Iterator[str]:
    # Cython's grammar is not Python's, so by lines; names in parentheses may go on over several.
    for found in re.finditer(r"^\s*from\s+([\w.]+)\s+c?import\s+(\([^)]*\)|[^\n#]*)", source, re.MULTILINE):
        yield found[1]
        yield from (f"{found[1]}.{name}" for name in re.findall(r"(\w+)(?:\s+as\s+\w+)?", found[2]))
    for found in re.finditer(r"^\s*c?import\s+([^\n#]*)", source, re.MULTILINE):
        yield from (name.split()[0] for name in found[1].split(",") if name.strip())


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def wrong_ways(root: Path) -> list[str]:
    """Imports that a package may not have, as "importer -> imported"."""
    return [
        f"{name} -> {imported}"
        for name, path in modules(root).items()
        for imported in sorted(imports(path))
        if any(within(imported, forbidden) for forbidden in _forbidden_to(name))
    ]


def _forbidden_to(name: str) -> tuple[str, ...]:
    for package, forbidden in FORBIDDEN.items():
        if within(name, package):
            return forbidden
    return () if name in PROGRAMS else ("pyproxy.worker", "pyproxy.control", "pyproxy.mover", *PROGRAMS)


def against_layers(root: Path) -> list[str]:
    """Imports of a package that comes later, as "importer -> imported"."""
    return [
        f"{name} -> {imported}"
        for top, packages in LAYERS.items()
        for name, path in modules(root).items()
        if within(name, top)
        for imported in sorted(imports(path))
        if within(imported, top) and imported != top and _layer(imported, top, packages) > _layer(name, top, packages)
    ]


def _layer(name: str, top: str, packages: tuple[str, ...]) -> int:
    """The position of the innermost package that a module is in; beyond the last one if it is in none."""
    found = [package for package in packages if within(name, f"{top}.{package}")]
    return packages.index(max(found, key=len)) if found else len(packages)


def cycle(root: Path) -> list[str]:
    """Modules that import each other in a circle; empty if there are none."""
    known = modules(root)
    graph = {name: (imports(path) & known.keys()) - {name} for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def text_files(root: Path) -> Iterator[Path]:
    """Every file that somebody wrote."""
    skipped = {"build", "__pycache__", "node_modules"}
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        hidden = any(part.startswith(".") and part not in (".ci", ".gitignore", ".dockerignore") for part in parts)
        made = path.suffix in MADE or any(part.endswith(".egg-info") for part in parts)
        if path.is_file() and not hidden and not made and skipped.isdisjoint(parts):
            yield path


def machine_paths(root: Path) -> list[str]:
    """Lines that name a place of one person's machine, as "file:line"."""
    home = re.compile(r"(?<![\w.}-])/(?:home|root|work|Users)/\w")
    return [
        f"{path.relative_to(root)}:{number}"
        for path in text_files(root)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if home.search(line)
    ]


def untested(root: Path) -> list[str]:
    """Sources (but empty packages) without tests/<same path>/test_<name>.py and without a reason."""
    found = []
    for path in modules(root).values():
        name = path.relative_to(root)
        test = root / "tests" / name.parent / f"test_{path.stem}.py"
        if path.name != "__init__.py" and not test.exists() and str(name) not in TESTED_ELSEWHERE:
            found.append(f"{name}: no {test.relative_to(root)}")
    return found


# --- the project ------------------------------------------------------------------------------------------------------


def test_there_is_a_house() -> None:
    assert {"protocol", "pyproxy", "pyproxy.worker", "pyproxy.control", "protocol.scan"} <= modules(ROOT).keys()


def test_imports_point_one_way() -> None:
    assert wrong_ways(ROOT) == []


def test_the_packages_of_a_process_import_only_those_before_them() -> None:
    assert against_layers(ROOT) == []


def test_every_package_of_a_process_has_its_layer() -> None:
    for top, packages in LAYERS.items():
        folders = {path.parent for name, path in modules(ROOT).items() if within(name, top)}
        folder = ROOT / top.replace(".", "/")
        assert {each.relative_to(folder).parts[0] for each in folders if each != folder} == {
            package.split(".")[0] for package in packages
        }


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert cycle(ROOT) == []


def test_no_file_has_a_thousand_lines() -> None:
    written = [path for path in text_files(ROOT) if path.suffix in WRITTEN]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in written}
    assert {name: length for name, length in lengths.items() if length >= TOO_LONG and name not in GENERATED} == {}


def test_no_file_names_a_place_of_one_machine() -> None:
    assert machine_paths(ROOT) == []


def test_every_source_has_its_test_file() -> None:
    assert untested(ROOT) == []


def test_every_reason_for_having_no_test_file_is_still_needed() -> None:
    sources = {str(path.relative_to(ROOT)) for path in modules(ROOT).values()}
    assert TESTED_ELSEWHERE.keys() <= sources
    assert GENERATED.keys() <= sources


def test_every_compiled_module_is_built_and_required() -> None:
    extensions = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    compiled = {name: path for name, path in modules(ROOT).items() if path.suffix == ".pyx"}
    assert {each["name"]: ROOT / each["sources"][0] for each in extensions} == compiled
    assert [each["name"] for each in extensions if each.get("optional")] == []


# --- and the rules do find what breaks them ---------------------------------------------------------------------------


def house(root: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("protocol/a.py", "def f():\n    import time", "protocol.a -> time"),
        ("protocol/a.py", "from pyproxy import hashing", "protocol.a -> pyproxy"),
        ("protocol/a.pyx", "from cpython.bytes cimport x\ncimport pyproxy.hashing", "protocol.a -> pyproxy.hashing"),
        ("pyproxy/worker/a.py", "from pyproxy.control import main", "pyproxy.worker.a -> pyproxy.control"),
        ("pyproxy/worker/a.pyx", "from pyproxy import (hashing,\n  control)", "pyproxy.worker.a -> pyproxy.control"),
        ("pyproxy/worker/a.pyx", 'include "b.pxi"', "pyproxy.worker.a -> pyproxy.control"),
        ("pyproxy/control/a.py", "import pyproxy.worker.main as w", "pyproxy.control.a -> pyproxy.worker.main"),
        ("pyproxy/hashing.py", "from pyproxy import worker", "pyproxy.hashing -> pyproxy.worker"),
        ("pyproxy/mover/a.py", "from pyproxy.control import main", "pyproxy.mover.a -> pyproxy.control"),
        ("pyproxy/control/a.py", "from pyproxy import mover", "pyproxy.control.a -> pyproxy.mover"),
    ],
)
def test_an_import_the_wrong_way_is_found(tmp_path: Path, file: str, source: str, found: str) -> None:
    included = {"pyproxy/worker/b.pxi": "from pyproxy.control cimport watcher"}
    assert found in wrong_ways(house(tmp_path, {file: source} | included))


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("lane/a.pyx", "from pyproxy.worker.shard.gate cimport x", ["lane.a -> pyproxy.worker.shard.gate"]),
        ("pubsub/a.py", "import pyproxy.worker.commands.b", ["pubsub.a -> pyproxy.worker.commands.b"]),
        ("shard/a.py", "import pyproxy.worker.main", ["shard.a -> pyproxy.worker.main"]),
        ("shard/a.py", "import pyproxy.worker.lane.lane", []),
        ("commands/cross_shard/a.py", "import pyproxy.worker.commands.b", []),
        ("main.py", "import pyproxy.worker.commands.b", []),
    ],
)
def test_an_import_of_a_later_package_is_found(tmp_path: Path, file: str, source: str, found: list[str]) -> None:
    root = house(tmp_path, {f"pyproxy/worker/{file}": source})
    assert [each for each in against_layers(root) if each.endswith(source.split()[1])] == [
        f"pyproxy.worker.{each}" for each in found
    ]


def test_the_promoters_come_before_the_processes_and_these_before_the_failover(tmp_path: Path) -> None:
    files = {
        "pyproxy/control/process/a.py": "import pyproxy.control.failover.promoters.none",
        "pyproxy/control/process/b.py": "import pyproxy.control.failover.machine",
        "pyproxy/control/failover/promoters/a.py": "import pyproxy.control.failover.machine",
    }
    assert sorted(each.split(" -> ")[0] for each in against_layers(house(tmp_path, files))) == [
        "pyproxy.control.failover.promoters.a",
        "pyproxy.control.process.b",
    ]


def test_a_circle_is_found(tmp_path: Path) -> None:
    root = house(
        tmp_path,
        {
            "pyproxy/a.py": "from pyproxy import b",
            "pyproxy/b.py": "import pyproxy.c",
            "pyproxy/c.pyx": "",
            "pyproxy/c.pxd": "from pyproxy.a cimport x",
        },
    )
    assert set(cycle(root)) == {"pyproxy.a", "pyproxy.b", "pyproxy.c"}


def test_a_place_of_one_machine_is_found(tmp_path: Path) -> None:
    place = "/".join(("", "home", "somebody", "x"))
    assert machine_paths(house(tmp_path, {"pyproxy/a.py": f"PATH = '{place}'"})) == ["pyproxy/a.py:1"]


def test_a_source_without_a_test_file_is_found(tmp_path: Path) -> None:
    assert untested(house(tmp_path, {"pyproxy/a.py": ""})) == ["pyproxy/a.py: no tests/pyproxy/test_a.py"]


# Pauses, and a client's own patience. Anywhere else who is waited for is a server or another process.
PAUSES = {
    "pyproxy/control/failover/promoters/elasticache.py": 1,
    "pyproxy/control/process/supervisor.py": 1,
    "pyproxy/worker/commands/cross_shard/polling.py": 1,
    "pyproxy/worker/pubsub/upstream.py": 1,
    "pyproxy/worker/shard/link.py": 1,
}


def own_timers(source: str) -> int:
    """How often a source has asyncio itself end a wait."""
    return len(re.findall(r"asyncio\.timeout(?:_at)?\(|\bwait_for\(|\bwait\(.*\btimeout=", source))


def test_whoever_waits_for_another_process_has_a_deadline_that_is_not_used_up_by_its_own_lateness() -> None:
    """See deadline.py."""
    paths = [path for top in ("worker", "control", "mover") for path in (ROOT / "pyproxy" / top).rglob("*.py")]
    found = {str(path.relative_to(ROOT)): own_timers(path.read_text()) for path in paths}
    assert {path: count for path, count in found.items() if count} == PAUSES


@pytest.mark.parametrize(
    "line", ["asyncio.timeout(1)", "asyncio.timeout_at(1)", "asyncio.wait_for(it, 1)", "asyncio.wait([it], timeout=1)"]
)
def test_a_timer_of_asyncio_is_seen(line: str) -> None:
    assert own_timers(f"    async with {line}:") == 1
