"""Messages on a socket, one JSON object a line, each acknowledged by a line: docs/socket.md has the protocol.

What was written is not received yet: a message counts as stored when the receiver has said so, by its id. What has no
answer when the connection ends is sent again on the next one.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

import msgspec

from job.access import Access
from job.errors import ActionNeeded, Refused, Unavailable, UsageError
from job.message import Message, structured
from job.ports import Limits, Partly
from job.settings import Address, local_path

_CONNECT_SECONDS = 3.0
_LONGEST_ANSWER = 65_536
_PIECE = 65_536
_LONGEST_PATH = 107
"""Bytes of a path that fit into a `sockaddr_un`."""
_LOCATION = re.compile(r"//(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")
_MOST_PORT = 65_535


class _Answer(msgspec.Struct):
    """One line of the receiver's."""

    id: str
    error: str | None = None


class _Silence(Exception):
    """The connection ended, or the time, before there was an answer."""


class SocketSink:
    """One connection, opened by the first message and again after it broke. In one lane: it keeps the order of all."""

    # A hundred answers take some 10 KB, which fit into the buffers of both sides: they are read when all is written.
    limits = Limits(lanes=1, messages=100, bytes=1_000_000)

    def __init__(self, name: str, *, host: str = "", port: int = 0, path: str = "", tls: bool = False) -> None:
        self._name = name
        self._host, self._port, self._path, self._tls = host, port, path, tls
        self._socket: socket.socket | None = None
        self._received = b""

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
        """Write the lines, and wait for as many answers."""
        until = time.monotonic() + timeout
        stored: list[str] = []
        done = False
        try:
            self._send(b"".join(structured(message) + b"\n" for message in messages), until)
            for message in messages:
                self._wait_for(message.id, until)
                stored.append(message.id)
            done = True
        except (Unavailable, Refused) as error:
            if stored:
                raise Partly(stored, error) from error
            raise
        except (_Silence, OSError) as error:
            reason = Unavailable(f"{self._name} did not take {len(messages) - len(stored)} messages: {_said(error)}")
            if stored:
                raise Partly(stored, reason) from error
            raise reason from error
        finally:
            if not done:
                self.close()

    def _send(self, data: bytes, until: float) -> None:
        if not self._socket or not self._is_open(self._socket):
            self.close()
            self._socket = self._connected(until)
        self._socket.settimeout(_left(until))
        self._socket.sendall(data)

    def _wait_for(self, wanted: str, until: float) -> None:
        """Return once the receiver has said that it has stored the message."""
        line = self._line(until)
        try:
            answer = msgspec.json.decode(line, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            answer = None
        if not answer or answer.id != wanted:
            shown = line[:100].decode(errors="backslashreplace")
            message = f"{self._name} answered {shown!r}, which does not acknowledge message {wanted} (docs/socket.md)"
            raise ActionNeeded(message)
        if answer.error is not None:
            refusal = f"{self._name} refused message {wanted}: {answer.error}"
            raise Refused(refusal, [wanted])

    def _line(self, until: float) -> bytes:
        """The next line of the receiver's, or what there is of one that has no end."""
        assert self._socket  # something was sent  # noqa: S101
        while b"\n" not in self._received and len(self._received) < _LONGEST_ANSWER:
            self._socket.settimeout(_left(until))
            piece = self._socket.recv(_PIECE)
            if not piece:
                message = "the connection was closed"
                raise _Silence(message)
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _is_open(self, idle: socket.socket) -> bool:
        """Whether nothing came while nothing was asked: else the receiver has closed it."""
        idle.settimeout(0)
        try:
            self._received += idle.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return not self._received
        except OSError:
            pass
        return False

    def _connected(self, until: float) -> socket.socket:
        seconds = min(_CONNECT_SECONDS, _left(until))
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
        self._socket, self._received = None, b""


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _said(error: Exception) -> str:
    return "there was no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
