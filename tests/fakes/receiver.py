"""The other end of a socket sink: keeps lines and acknowledges them, or does what a test has scripted instead.

    with Receiver() as receiver:
        receiver.inject(Break(stored=2, acknowledged=1))
        ...
        assert receiver.stored == [...]

A script is for connections: each takes the next step, and without one it is served well. Answers have members that
nobody knows.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_LONGEST_SECONDS = 60.0


@dataclass(frozen=True)
class Break:
    """Keeps so many lines of the connection, acknowledges so many of them, and closes it at once, as who is killed."""

    stored: int = 0
    acknowledged: int = 0


@dataclass(frozen=True)
class Leave:
    """Serves so many lines well, and ends the connection."""

    after: int


@dataclass(frozen=True)
class Refuse:
    """Refuses the line after so many good ones, and ends the connection."""

    after: int = 0
    reason: str = "the schema does not know it"


@dataclass(frozen=True)
class Say:
    """Answers this instead of an acknowledgement, after so many good ones, and closes if that is asked for."""

    answer: bytes
    after: int = 0
    close: bool = False


@dataclass(frozen=True)
class Silence:
    """Reads, and never answers."""


@dataclass(frozen=True)
class Early:
    """Says this before it has read a line, and reads no more."""

    answer: bytes


@dataclass(frozen=True)
class Stop:
    """Serves so many lines well, and then neither reads nor answers, but waits."""

    after: int = 0


@dataclass(frozen=True)
class Verbose:
    """Acknowledges with so many bytes that nobody needs."""

    bytes: int


@dataclass(frozen=True)
class Piecemeal:
    """Answers byte by byte, or, of so many lines, all together."""

    together: int = 0


Step = Break | Leave | Refuse | Say | Silence | Early | Stop | Verbose | Piecemeal


class Receiver:
    """Listens on a free port of 127.0.0.1, or at a path; a context manager."""

    def __init__(self, *, path: Path | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.stored: list[bytes] = []
        """Every line that was kept, in order."""
        self.connections = 0
        self.stopped = threading.Event()
        """Set when a line has come that a `Stop` leaves alone."""
        self.failures: list[BaseException] = []
        self._path, self._tls = path, tls
        self._port = 0
        self._script: deque[Step] = deque()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._leaving = threading.Event()

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self.down()
        for thread in self._threads:
            thread.join(10)
        for failure in self.failures:
            raise failure

    @property
    def address(self) -> str:
        """As `--sink` names it."""
        if self._path:
            return f"unix:{self._path}"
        return f"{'tls' if self._tls else 'tcp'}://127.0.0.1:{self._port}"

    @property
    def ids(self) -> list[str]:
        """Those of the stored lines."""
        return [json.loads(line)["id"] for line in self.stored]

    def inject(self, *steps: Step) -> None:
        """What to do with the next connections."""
        self._script.extend(steps)

    def forget(self) -> None:
        """Drop what is left of the script."""
        self._script.clear()

    def up(self) -> None:
        """Accept connections, on the same port or path as before."""
        if self._path:
            self._path.unlink(missing_ok=True)
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(self._path))
        else:
            self._listener = socket.socket()
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(("127.0.0.1", self._port))
            self._port = self._listener.getsockname()[1]
        self._listener.listen()
        self._start(self._accept, self._listener)

    def down(self) -> None:
        """Refuse connections, and end those that are open, as a killed process does."""
        if self._listener:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.hang_up()

    def hang_up(self) -> None:
        """End the connections that are open."""
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = listener.accept()
                self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self.connections += 1
            step = self._script.popleft() if self._script else None
        try:
            connection.settimeout(_LONGEST_SECONDS)
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
        except OSError:  # no TLS, or no trust
            connection.close()
            return
        with connection:
            with self._lock:
                self._open.add(connection)
            try:
                self._talk(connection, step)
            except OSError:  # the sender went away, or was sent away
                pass
            except BaseException as failure:  # noqa: BLE001 - raised again when the receiver is left
                self.failures.append(failure)
            finally:
                with self._lock:
                    self._open.discard(connection)

    def _talk(self, connection: socket.socket, step: Step | None) -> None:
        if isinstance(step, Early):
            connection.sendall(step.answer)
            self._leaving.wait()
            return
        with connection, connection.makefile("rb") as lines:
            whole = (line for line in lines if line.endswith(b"\n"))
            for number, line in enumerate(whole):
                if not self._answer(connection, line, number, step):
                    return

    def _answer(self, connection: socket.socket, line: bytes, number: int, step: Step | None) -> bool:
        """What becomes of one line; false: the connection ends here."""
        match step:
            case Leave(after) | Refuse(after) | Say(_, after) | Stop(after) if number == after:
                return self._otherwise(connection, line, step)
            case Break(stored, acknowledged):
                if number < stored:
                    self.stored.append(line)
                if number < acknowledged:
                    connection.sendall(_acknowledgement(line))
                return number + 1 < stored
            case Silence():
                return True
            case Piecemeal(together):
                self.stored.append(line)
                if number + 1 >= together:
                    _send(connection, b"".join(map(_acknowledgement, self.stored[-max(1, together) :])), together)
                return True
        self.stored.append(line)
        connection.sendall(_acknowledgement(line, "x" * step.bytes if isinstance(step, Verbose) else ""))
        return True

    def _otherwise(self, connection: socket.socket, line: bytes, step: Leave | Refuse | Say | Stop) -> bool:
        """The same, where the good lines are over."""
        match step:
            case Leave():
                _end(connection)
            case Refuse(_, reason):
                connection.sendall(json.dumps({"id": _id(line), "error": reason}).encode() + b"\n")
                _end(connection)
            case Say(answer, _, close):
                connection.sendall(answer)
                return not close
            case Stop():
                self.stopped.set()
                self._leaving.wait()
        return False


def _end(connection: socket.socket) -> None:
    """Close without taking the answers along, as a close with lines unread may."""
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(65_536):
        pass


def _send(connection: socket.socket, answers: bytes, together: int) -> None:
    for piece in [answers] if together else (answers[at : at + 1] for at in range(len(answers))):
        connection.sendall(piece)


def _id(line: bytes) -> str:
    return str(json.loads(line)["id"])


def _acknowledgement(line: bytes, more: str = "") -> bytes:
    return json.dumps({"at": 1, "id": _id(line), "by": {"a": [more]}}).encode() + b"\n"
