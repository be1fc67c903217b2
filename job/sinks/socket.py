"""Messages on a socket, one JSON object a line, each acknowledged by a line: docs/socket.md has the protocol.

What was written is not received yet: a message counts as stored when the receiver has said so, by its id. What has no
answer when the connection ends is sent again on the next one.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Self

import msgspec

from job.access import Access
from job.errors import ActionNeeded, Refused, Unavailable, UsageError, WatcherError
from job.message import Message, structured
from job.ports import Check, Limits, Partly
from job.settings import HOST, Address, local_path

_CONNECT_SECONDS = 3.0
_LONGEST_ANSWER = 65_536
_PIECE = 65_536
_LONGEST_PATH = 107
"""Bytes of a path that fit into a `sockaddr_un`."""
_LOCATION = re.compile(rf"//(?P<host>{HOST}):(?P<port>[0-9]{{1,5}})")
_MOST_PORT = 65_535
_PAGE = "docs/socket.md"
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class _Answer(msgspec.Struct):
    """One line of the receiver's."""

    id: str
    error: str | None = None


class _Silence(Exception):
    """The connection ended before there was an answer."""


class SocketSink:
    """One connection, opened by the first message and again after it broke. In one lane: it keeps the order of all."""

    limits = Limits(lanes=1, messages=100, bytes=1_000_000)

    def __init__(self, name: str, *, host: str = "", port: int = 0, path: str = "", tls: bool = False) -> None:
        self._name = name
        self._host, self._port, self._path, self._tls = host, port, path, tls
        self._socket: socket.socket | None = None
        self._unsent, self._received = memoryview(b""), b""

    @classmethod
    def at(cls, address: Address, _: Access) -> Self:
        """The sink of `tcp://HOST:PORT`, `tls://HOST:PORT` or `unix:PATH`. Raises `UsageError`."""
        if address.scheme == "unix":
            path = local_path(address)
            if len(path.encode()) > _LONGEST_PATH:
                message = f"the sink {str(address)!r} is longer than the {_LONGEST_PATH} bytes that a socket's path has"
                raise UsageError(message)
            return cls(str(address), path=path)
        address.allow()
        found = _LOCATION.fullmatch(address.path)
        if not found or not 0 < int(found["port"]) <= _MOST_PORT:
            message = f"the sink {str(address)!r} is not {address.scheme}://HOST:PORT"
            raise UsageError(message)
        host, port = found["host"].strip("[]"), int(found["port"])
        return cls(str(address), host=host, port=port, tls=address.scheme == "tls")

    def open(self) -> None:
        """Nothing to get ready: a run in which nothing changes needs no receiver."""

    def publish(self, lane: int, messages: Sequence[Message], timeout: float) -> None:  # noqa: ARG002 - there is one
        """Write the lines, and take an answer for each."""
        until = time.monotonic() + timeout
        stored: list[str] = []
        done = False
        try:
            answers = self._answers(b"".join(structured(message) + b"\n" for message in messages), until)
            for message in messages:
                self._take(next(answers), message.id)
                stored.append(message.id)
            done = True
        except WatcherError as error:
            if stored:
                raise Partly(stored, error) from error
            raise
        except (_Silence, OSError) as error:
            reason = Unavailable(f"{self._name} did not take {len(messages) - len(stored)} messages: {_said(error)}")
            if stored:
                raise Partly(stored, reason) from error
            raise reason from error
        finally:
            if not done or self._unsent:
                self.close()

    def checks(self, timeout: float) -> Iterator[Check]:
        """That the receiver is there, and is trusted; it is told nothing."""
        what, remedy = "receiver", f"start it, or correct the address; it is to answer as {_PAGE} says"
        try:
            self._connected(min(_CONNECT_SECONDS, timeout)).close()
        except ActionNeeded as error:
            yield Check.fail(what, error, "let it be trusted, or reached, by this user")
        except OSError as error:
            yield Check.fail(what, f"{self._name} cannot be connected to: {_said(error)}", remedy)
        else:
            trusted = ", and its certificate is trusted" if self._tls else ""
            yield Check.ok(what, f"{self._name} takes connections{trusted}")

    def _answers(self, data: bytes, until: float) -> Iterator[bytes]:
        """The receiver's lines, read while the data are written: it may say a lot before it has read everything."""
        connection, self._unsent = self._ready(until), memoryview(data)
        failure: OSError | None = None
        while True:
            while b"\n" in self._received or len(self._received) >= _LONGEST_ANSWER:
                line, _, self._received = self._received.partition(b"\n")
                yield line
            try:
                self._unsent = self._unsent[_written(connection, self._unsent) :]
            except OSError as error:
                self._unsent, failure = self._unsent[:0], error  # what the receiver has said before is still to be read
            piece = _read(connection)
            if piece:
                self._received += piece
            elif piece is None:
                _wait(connection, until, writing=bool(self._unsent))
            else:
                raise failure or _Silence

    def _ready(self, until: float) -> socket.socket:
        """A connection that is open as far as anybody can know."""
        seconds = _left(until)
        if not self._socket or not self._is_open(self._socket):
            self.close()
            self._socket = self._connected(min(_CONNECT_SECONDS, seconds))
            self._socket.setblocking(False)
        return self._socket

    def _take(self, line: bytes, wanted: str) -> None:
        """Return if the receiver says that it has stored the message."""
        try:
            answer = msgspec.json.decode(line, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            answer = None
        if not answer or answer.id != wanted:
            shown = line[:100].decode(errors="backslashreplace")
            message = f"{self._name} answered {shown!r}, which does not acknowledge message {wanted} (docs/socket.md)"
            raise ActionNeeded(message)
        if answer.error is not None:
            refusal = f"{self._name} refused message {wanted}: {answer.error}"
            raise Refused(refusal, [wanted])

    def _is_open(self, idle: socket.socket) -> bool:
        """Whether nothing came while nothing was asked: else the receiver has closed it."""
        try:
            return not self._received and _read(idle) is None
        except OSError:
            return False

    def _connected(self, seconds: float) -> socket.socket:
        if self._path:
            return self._at_path(seconds)
        connection = socket.create_connection((self._host, self._port), seconds)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._tls:
                return ssl.create_default_context().wrap_socket(connection, server_hostname=self._host)
        except ssl.SSLCertVerificationError as error:
            connection.close()
            message = (
                f"{self._name} has a certificate that is not trusted: {error.verify_message}"
                " (SSL_CERT_FILE names other authorities)"
            )
            raise ActionNeeded(message) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _at_path(self, seconds: float) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(seconds)
            connection.connect(self._path)
        except PermissionError as error:
            connection.close()
            message = f"{self._name} may not be connected to: {error.strerror}"
            raise ActionNeeded(message) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """End the connection; what has no answer is not stored."""
        if self._socket:
            with suppress(OSError):
                self._socket.close()
        self._socket, self._unsent, self._received = None, memoryview(b""), b""


def _written(connection: socket.socket, data: memoryview) -> int:
    """How many bytes there was room for."""
    try:
        return connection.send(data[:_PIECE]) if data else 0
    except _NOT_NOW:
        return 0


def _read(connection: socket.socket) -> bytes | None:
    """What has come, empty at the end of the connection; None: nothing yet."""
    try:
        return connection.recv(_PIECE)
    except _NOT_NOW:
        return None


def _wait(connection: socket.socket, until: float, *, writing: bool) -> None:
    """Return once there is something to read, or, for who is `writing`, room."""
    poll = select.poll()
    poll.register(connection, select.POLLIN | (select.POLLOUT if writing else 0))
    if not poll.poll(1000 * _left(until)):
        raise TimeoutError


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _said(error: Exception) -> str:
    if isinstance(error, _Silence):
        return "the connection was closed"
    return "there was no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
