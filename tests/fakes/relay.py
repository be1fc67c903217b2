"""Servers in between that pass on bytes, TLS and all: one that counts them, and HTTP's CONNECT."""

from __future__ import annotations

import socket
import ssl
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

_PIECE = 262_144


class _Between(ABC):
    """Listens on a free port of 127.0.0.1, and connects each client with the server that it is for."""

    def __init__(self, scheme: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self.received = 0
        """Bytes that servers have sent."""
        self._counting = threading.Lock()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="relay", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # A thread that waits in `accept` is not woken up by `close`.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @abstractmethod
    def _reach(self, client: socket.socket) -> socket.socket:
        """Connect to the server that a client is for."""

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, self._reach(client) as server:
            there = threading.Thread(target=self._pass_on, args=(client, server), daemon=True)
            there.start()
            self._pass_on(server, client, answers=True)
            there.join()

    def _pass_on(self, source: socket.socket, target: socket.socket, *, answers: bool = False) -> None:
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                if answers:
                    with self._counting:
                        self.received += len(piece)
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


class Relay(_Between):
    """For connections to one server."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url)
        super().__init__(self._address.scheme)

    def _reach(self, client: socket.socket) -> socket.socket:
        return socket.create_connection((self._address.hostname, self._address.port))


class TlsFront(Relay):
    """The same for clients that speak TLS to a server that does not."""

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__(url)

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            super()._serve(self._context.wrap_socket(client, server_side=True))


class DeafRelay(Relay):
    """Cuts a connection when the answer comes to a request with a certain word, one connection at a time."""

    def __init__(self, url: str) -> None:
        self.word = b""
        """Empty: every answer is passed on."""
        self.cut = 0
        self._deaf = False
        super().__init__(url)

    def _pass_on(self, source: socket.socket, target: socket.socket, *, answers: bool = False) -> None:
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                if answers and self._deaf:
                    self._deaf = False
                    self.cut += 1
                    break
                self._deaf |= not answers and bool(self.word) and self.word in piece
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


class ConnectProxy(_Between):
    """For connections to whom a client asks for."""

    def __init__(self) -> None:
        super().__init__("http")
        self.asked: list[str] = []
        """The HOST:PORT of each connection."""

    def _reach(self, client: socket.socket) -> socket.socket:
        request = b""
        while b"\r\n\r\n" not in request:
            piece = client.recv(_PIECE)
            if not piece:
                raise ConnectionAbortedError
            request += piece
        target = request.split()[1].decode()
        self.asked.append(target)
        host, _, port = target.rpartition(":")
        server = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        return server
