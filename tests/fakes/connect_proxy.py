"""A proxy that passes on TLS connections: HTTP's CONNECT, and nothing else."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self

_PIECE = 65_536


class ConnectProxy:
    """Listens on a free port of 127.0.0.1."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked: list[str] = []
        """The HOST:PORT of each connection."""

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="connect-proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # A thread that waits in `accept` is not woken up by `close`.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            if not (piece := client.recv(_PIECE)):
                return
            request += piece
        target = request.split()[1].decode()
        self.asked.append(target)
        host, _, port = target.rpartition(":")
        with client, socket.create_connection((host, int(port))) as server:
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            there = threading.Thread(target=_pass_on, args=(client, server), daemon=True)
            there.start()
            _pass_on(server, client)
            there.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(_PIECE):
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
