"""Which tests start real servers: read from their code, so that nobody has to say it, or can forget to."""

import inspect
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType

import pytest

from pyproxy.fleet import Fleet, Proxy, Server, find_backend

E2E = Path(__file__).parent / "e2e"
STARTERS = (Fleet, Proxy, Server, find_backend)
PACKAGES = ("tests", "bench")
"""Where a name is followed to what it stands for. The proxy itself starts no server."""

NO_SERVER = "no-server-for-a-test-that-is-not-marked-servers"
"""The program that is all there is to start for them."""


def starts_servers(item: pytest.Function) -> bool:
    """Whether the test, or a fixture that it is given, reaches what starts servers."""
    fixtures = [definitions[-1].func for definitions in item._fixtureinfo.name2fixturedefs.values()]
    return any(reaches_a_server(function) for function in (item.function, *fixtures))


@cache
def reaches_a_server(function: Callable[..., object]) -> bool:
    """Whether a function names what starts servers, or names a function or class of these packages that does."""
    seen: set[object] = set()
    ahead: list[object] = [function]
    while ahead:
        here = ahead.pop()
        if here in STARTERS:
            return True
        if here not in seen:
            seen.add(here)
            ahead += [each for function in _functions(here) for each in _named_by(function)]
    return False


def _functions(of: object) -> Iterator[FunctionType]:
    """The function itself, or those of a class with its bases; none of what belongs to another package."""
    if inspect.isclass(of):
        members = [member for base in of.__mro__ for member in vars(base).values()]
        for member in members:
            plain = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if isinstance(plain, FunctionType):
                yield from _functions(plain)
        return
    plain = inspect.unwrap(of) if callable(of) else of
    if isinstance(plain, FunctionType) and plain.__module__.partition(".")[0] in PACKAGES:
        yield plain


def _named_by(function: FunctionType) -> Iterator[object]:
    """What the names in its code, that of inner functions included, are in its module: functions and classes."""
    codes = [function.__code__]
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        for name in code.co_names:
            meant = function.__globals__.get(name)
            if callable(meant) and getattr(meant, "__hash__", None) is not None:
                yield meant
            elif inspect.ismodule(meant):  # then the name behind the dot is among the names too
                yield from (each for each in (vars(meant).get(name) for name in code.co_names) if callable(each))
