"""One server process: its log, its death with the test run, and the wait until it is ready."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from tests.bed import guard
from tests.bed.waiting import wait_until

_log = logging.getLogger(__name__)

_TAIL_LINES = 20
# Below the range from which Linux (32768) and macOS (49152) take the ports of outgoing connections: a port chosen there
# can be lost to any client of anything while its server restarts.
_PORTS = range(18_000, 30_000)


class ServerCrashedError(Exception):
    """The server ended by itself; the message carries the end of its log."""


class Server:
    """A server process that lives no longer than this process; start and stop it as often as needed, from any thread.

    Its output is appended to the log file. It runs in a session of its own, so that an interrupt from the keyboard
    reaches the test run first.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        """Prepare a server; nothing runs yet."""
        self.command = tuple(command)
        self.log = log
        self.pid = 0
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """The program's file name."""
        return Path(self.command[0]).name

    @property
    def running(self) -> bool:
        """Whether the process is there, ready or not."""
        return self._guard is not None and self._guard.poll() is None

    def start(self) -> None:
        """Start the process; it is not yet ready."""
        if self.running:
            message = f"{self.name} runs already, as {self.pid}"
            raise RuntimeError(message)
        with self.log.open("ab") as log:
            # -I -S: no site-packages, 10 ms instead of 40 (and no way for the tests' environment to break the guard).
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, *self.command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._guard.stdout is not None
        with self._guard.stdout as answer:
            first_line = answer.readline()
        if not first_line:
            self._reap()
            message = f"{self.name} did not start:\n{self.log_tail()}"
            raise ServerCrashedError(message)
        self.pid = int(first_line)
        _log.debug("bed.server.started name=%s pid=%d", self.name, self.pid)

    def wait_until_ready(self, ready: Callable[[], bool], within: timedelta = timedelta(seconds=60)) -> None:
        """Return once `ready` holds.

        Raises ServerCrashedError at once when the process ends before, TimeoutError when it takes too long; both show
        the end of the log.
        """

        def ready_or_crashed() -> bool:
            is_ready = ready()
            # Asked after the probe: what answered may be another server, which took the port that this one died for.
            if not self.running:
                self._reap()
                message = f"{self.name} ended by itself:\n{self.log_tail()}"
                raise ServerCrashedError(message)
            return is_ready

        try:
            wait_until(ready_or_crashed, within, f"{self.name} to be ready")
        except TimeoutError as error:
            message = f"{error}:\n{self.log_tail()}"
            raise TimeoutError(message) from None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, SIGSTOP and SIGCONT for a server that hangs; a server that is gone takes none."""
        if self._guard is None or self._guard.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError):
            os.write(self._guard.stdin.fileno(), bytes([number]))

    def stop(self, grace: timedelta = timedelta(seconds=5)) -> None:
        """End the process by SIGTERM, after `grace` by SIGKILL, and return when it is gone and its ports are free."""
        if self._guard is None:
            return
        self.send(signal.SIGTERM)
        try:
            self._guard.wait(grace.total_seconds())
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
        self._reap()

    def kill(self) -> None:
        """End the process by SIGKILL and return when it is gone and its ports are free."""
        self.send(signal.SIGKILL)
        self._reap()

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:])

    def _reap(self) -> None:
        if self._guard is None:
            return
        assert self._guard.stdin is not None
        self._guard.wait()
        self._guard.stdin.close()
        self._guard = None


def free_port() -> int:
    """Choose a free loopback port at random.

    Another process may take it before the server does: whoever starts the server tries again with another port.
    """
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe:
            # As servers do it: a port whose last connections are in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
