"""Which processes there are, as /proc tells it: for tests that promise to leave none behind."""

from pathlib import Path

from pyproxy.fleet import wait_until

Identity = tuple[int, str]
"""A pid and when it started, in clock ticks since boot: the number alone may come again."""


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat behind the name: state, ppid, ...; None if there is no such process, or a dead one.

    A dead process whose parent has not asked for its status (a container may have no init that does) is gone as well.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields


def family(pid: int) -> set[Identity]:
    """The process and all that descend from it."""
    stats = {int(each.name): _stat(int(each.name)) for each in Path("/proc").iterdir() if each.name.isdigit()}
    found: set[int] = set()
    new = {pid}
    while new:
        found |= new
        new = {each for each, stat in stats.items() if stat and int(stat[1]) in new}
    return {(each, stat[19]) for each in found if (stat := stats.get(each))}


def session(number: int) -> set[Identity]:
    """All processes of a session, whoever is their parent by now."""
    stats = {int(each.name): _stat(int(each.name)) for each in Path("/proc").iterdir() if each.name.isdigit()}
    return {(pid, stat[19]) for pid, stat in stats.items() if stat and int(stat[3]) == number}


def alive(identity: Identity) -> bool:
    """Whether that very process is there."""
    stat = _stat(identity[0])
    return stat is not None and stat[19] == identity[1]


def command_line(pid: int) -> list[str]:
    """The arguments a process was started with; none if it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def wait_until_gone(processes: set[Identity], timeout: float = 10.0) -> None:
    """Return when none of them is left; FleetError with those that are."""

    def left() -> str:
        return "left: " + "; ".join(" ".join(command_line(each[0])) for each in processes if alive(each))

    wait_until("all processes to be gone", lambda: not any(alive(each) for each in processes), left, timeout)
