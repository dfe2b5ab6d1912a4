"""Processes that this one starts, the ports that they listen on, and how they are asked and waited for. Linux only.

A port is reserved for a process by a bound socket that never listens. Linux lets a second socket with SO_REUSEADDR bind
and listen there, but it gives the port to nobody who asks for a free one. So there is no race, and a process that was
killed finds its port again.

Every child asks the kernel for SIGKILL at its parent's death. SIGTERM would leave a stopped (SIGSTOP) process behind.
The kernel means the parent *thread*, so processes are started from the main thread only.
"""

import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import hiredis

from pyproxy.fleet.interrupts import raise_if_interrupted

HOST = "127.0.0.1"
START_S = 15.0  # a server that does not answer by then never will; a loaded machine needs more than the usual 0.1 s
STOP_S = 5.0  # from SIGTERM to SIGKILL
POLL_S = 0.005

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None, use_errno=True)


class FleetError(Exception):
    """A server could not be found, started or linked; the text says which, why, and where its log is."""


def reserve_port(port: int = 0) -> socket.socket:
    """A bound socket that keeps `port` (0: a free one) for a server of ours until it is closed; OSError if busy."""
    reservation = socket.socket()
    try:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind((HOST, port))
    except OSError:
        reservation.close()
        raise
    return reservation


def ask(port: int, *argv: str | bytes | int, timeout: float = 5.0, password: str = "") -> object:
    """Send one command on a connection of its own and return the parsed reply (RESP2, bytes).

    Raises hiredis.ReplyError for an error reply, OSError if nobody answers within `timeout` seconds.
    """
    commands = [("AUTH", password), argv] if password else [argv]
    reader = hiredis.Reader()
    replies: list[object] = []
    with socket.create_connection((HOST, port), timeout=timeout) as connection:
        connection.sendall(b"".join(map(hiredis.pack_command, commands)))  # type: ignore[arg-type]  # its stub: no str
        while len(replies) < len(commands):
            received = connection.recv(65536)
            if not received:
                raise ConnectionError(f"{HOST}:{port} closed the connection without an answer")
            reader.feed(received)
            while (reply := reader.gets()) is not False:
                replies.append(reply)
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise reply
    return replies[-1]


def wait_until(what: str, done: Callable[[], bool], seen: Callable[[], str], timeout: float = START_S) -> None:
    """Return once `done()` is true; after `timeout` seconds raise FleetError with what was waited for and `seen()`."""
    deadline = time.monotonic() + timeout
    while not done():
        raise_if_interrupted()
        if time.monotonic() > deadline:
            raise FleetError(f"waited {timeout:g} s for {what}; {seen()}")
        time.sleep(POLL_S)


class Managed:
    """A context manager: it starts with the block and ends with it, and also where the start fails."""

    def start(self) -> None:
        """Start; return when it serves."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop, and give back what was reserved."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Process:
    """One child process with a log file; it dies with the thread that started it, however that one ends."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._child: subprocess.Popen[bytes] | None = None

    inherits: Sequence[int] = ()
    """The file descriptors it gets."""

    def command(self) -> list[str]:
        """The command line `start` runs."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """The process id; FleetError if it was never started."""
        return self._started().pid

    @property
    def running(self) -> bool:
        """Whether the process is there, stopped (SIGSTOP) or not."""
        return self._child is not None and self._child.poll() is None

    def launch(self) -> None:
        """Start the process and return at once, without waiting until it serves."""
        if threading.current_thread() is not threading.main_thread():
            raise FleetError(f"{self.name}: start it from the main thread, or it dies with the thread that did")
        raise_if_interrupted()
        if self.running:
            raise FleetError(f"{self.name} is running already, as process {self.pid}")
        parent = os.getpid()

        def die_with_parent() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the request was made
                os._exit(1)

        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # a Ctrl-C is for the launcher alone, which then stops its children in order
                preexec_fn=die_with_parent,
                pass_fds=self.inherits,
            )

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM), also when it is stopped."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def stop(self, timeout: float = STOP_S) -> None:
        """End the process in order, and by SIGKILL if it has not ended after `timeout` seconds."""
        if self.running:
            self.terminate()
        self.join(timeout)

    def join(self, timeout: float) -> None:
        """Wait for the end of a process that was asked to end; SIGKILL after `timeout` seconds."""
        if self._child is None:
            return
        try:
            self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def wait(self) -> int:
        """Wait for the process to end by itself, however long; its exit status, negative for a signal."""
        return self._started().wait()

    def kill(self) -> None:
        """End the process by SIGKILL, and return when it is gone."""
        self._signal(signal.SIGKILL)
        self._started().wait()

    def pause(self) -> None:
        """Stop the process (SIGSTOP): its port still accepts, nobody answers. Returns when it stands still."""
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def wait_for_pong(self, port: int, password: str = "") -> None:
        """Wait until somebody answers PING at `port`; FleetError if this process ends, or after a deadline."""
        saw = "nothing was tried"

        def answers() -> bool:
            nonlocal saw
            if not self.running:
                raise FleetError(f"{self.name} ended with status {self._started().returncode}:\n{self.tail()}")
            try:
                saw = f"the answer was {ask(port, 'PING', timeout=1.0, password=password)!r}"
            except (OSError, hiredis.HiredisError) as error:
                saw = f"the error was: {error}"
            return saw == "the answer was b'PONG'"

        wait_until(f"{self.name} to answer PING at {HOST}:{port}", answers, lambda: f"{saw}\n{self.tail()}")

    def tail(self, lines: int = 8) -> str:
        """The last lines of its log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise FleetError(f"{self.name} was never started")
        return self._child

    def _signal(self, number: signal.Signals) -> None:
        self._started().send_signal(number)


class ListeningProcess(Process):
    """A process with a port of its own. `reservation` is the reserved port, if it is reserved already."""

    def __init__(self, name: str, log: Path, reservation: socket.socket | None = None) -> None:
        super().__init__(name, log)
        self._reservation = reservation or reserve_port()
        self.port: int = self._reservation.getsockname()[1]

    @property
    def address(self) -> str:
        """ "127.0.0.1:PORT"."""
        return f"{HOST}:{self.port}"

    def release(self) -> None:
        """Give the port back, at the end of the life of the process."""
        self._reservation.close()

    def close(self) -> None:
        """Stop the process, and give the port back."""
        self.stop()
        self.release()
