"""The names that the sources define, Python and Cython alike: what a page or a docstring may name."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("protocol", "pyproxy", "tests", "tools", "bench")

_CLASS = re.compile(r"(?:cdef (?:public |api )?class|cdef enum|cdef struct|class) (\w+)")
_FUNCTION = re.compile(r"(?:def|cdef|cpdef)\b[^(=#]*?(\w+)\(")
_ATTRIBUTE = re.compile(r"cdef (?:readonly |public )?(?:const )?(?:unsigned )?(?:long long|[\w.]+) \*?(\w+)")
_CONSTANT = re.compile(r"(?:DEF |cdef \w+ )?([A-Z][A-Z0-9_]+)\b")


@dataclass
class Symbols:
    """`members`: of each class, by its name; `modules`: what each module has at its top, by the module's name."""

    members: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    modules: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    bases: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def has(self, name: str, member: str) -> bool:
        """Whether a class, with those that it is made of, or a module has this member."""
        if member in self.members.get(name, ()) or member in self.modules.get(name, ()):
            return True
        return any(self.has(base, member) for base in self.bases.get(name, ()) if base != name)

    def knows(self, name: str) -> bool:
        return name in self.members or name in self.modules


def symbols_of(root: Path) -> Symbols:
    found = Symbols()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.p*")):
            if path.suffix == ".py":
                _read_python(found, path)
            elif path.suffix in (".pyx", ".pxi", ".pxd"):
                _read_cython(found, path)
    return found


def _read_python(found: Symbols, path: Path) -> None:
    module = path.parent.name if path.stem == "__init__" else path.stem
    tree = ast.parse(path.read_text())
    found.modules[module].update(_bound(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            found.members[node.name].update(_bound(node), _set_on_self(node))
            found.bases[node.name].update(ast.unparse(base).rpartition(".")[2] for base in node.bases)


def _bound(scope: ast.Module | ast.ClassDef) -> Iterator[str]:
    """The names that a module or the body of a class binds."""
    for node in scope.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name))


def _set_on_self(scope: ast.ClassDef) -> Iterator[str]:
    for node in ast.walk(scope):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def _read_cython(found: Symbols, path: Path) -> None:
    current: set[str] | None = None
    for line in re.sub(r'"""(?:.|\n)*?"""', "", path.read_text()).splitlines():
        if line and not line[0].isspace():
            match = _CLASS.match(line)
            current = found.members[match[1]] if match else None
            found.modules[path.stem].update([match[1]] if match else _named_by(line))
        elif current is not None and re.match(r" {4}\S", line):  # what is further in is a function's own
            current.update(_named_by(line.strip()))


def _named_by(line: str) -> Iterator[str]:
    """The names that a line of Cython declares."""
    for pattern in (_FUNCTION, _ATTRIBUTE, _CONSTANT):
        if match := pattern.match(line):
            yield match[1]
