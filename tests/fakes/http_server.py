"""What the HTTP servers that a test scripts have in common: a port that refuses or accepts, and its connections."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingTCPServer
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar

from tests.fakes.script import FaultT, RequestT, ScriptedServer

if TYPE_CHECKING:
    from tests.fakes.script import Injection

FakeT = TypeVar("FakeT", bound="HttpServer[Any, Any]")


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # what is sent in parts must not wait for the acknowledgement of the part before
    server: Listener[Any]
    _was_cut = False

    def setup(self) -> None:
        super().setup()
        self.server.live.add(self)
        if self.server.closing:
            self.cut()

    def finish(self) -> None:
        self.server.live.discard(self)
        super().finish()

    def check_client(self) -> None:
        """Look whether the client is still there; called at every turn of `serve_forever`, in its thread."""

    def cut(self) -> None:
        """End the connection, from any thread: what blocks on it returns, and no stall goes on."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        with self.server.fake.changed:
            self._was_cut = True
            self.server.fake.changed.notify_all()

    def stall(self, injection: Injection[Any, Any], seconds: float) -> None:
        """Wait so many seconds, or until it is released; raise when the connection is cut."""
        self.server.fake.pause(seconds, lambda: injection.released or self._was_cut)
        if self._was_cut:
            raise ConnectionAbortedError

    def reset(self) -> NoReturn:
        """End the connection with a RST."""
        # Closed with a linger of zero, and before the server's shutdown() can send a FIN, it sends a RST.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
        raise ConnectionAbortedError

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Listener(ThreadingTCPServer, Generic[FakeT]):  # not HTTPServer, whose bind looks its own name up in the DNS
    """The listening side; it refuses connections until `server_activate`."""

    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, port: int, handler: type[Handler], fake: FakeT) -> None:
        super().__init__(("127.0.0.1", port), handler, bind_and_activate=False)
        self.fake = fake
        self.live: set[Handler] = set()
        self.closing = False
        self.server_bind()

    def service_actions(self) -> None:
        for handler in tuple(self.live):
            handler.check_client()

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep what a test must hear of; a connection that broke between two requests is not."""
        del request, client_address
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            self.fake.failures.append(error)


class HttpServer(ScriptedServer[RequestT, FaultT]):
    """The server; `url` is where clients find it. Leaving it ends every connection and thread."""

    def __init__(self, handler: type[Handler], name: str, *beside: type) -> None:
        """`name` is that of the thread that accepts connections."""
        super().__init__(*beside)
        self._handler, self._name = handler, name
        self._listeners: list[Listener[Any]] = []
        self._accepting: threading.Thread | None = None
        self._switching = threading.Lock()

    def __enter__(self) -> Self:
        """Open a free port."""
        self._listeners.append(Listener(0, self._handler, self))
        self.up()
        return self

    @property
    def url(self) -> str:
        """The same also after `down` and `up`."""
        return f"http://127.0.0.1:{self._port}"

    def up(self) -> None:
        """Accept connections again, on the same port."""
        with self._switching:
            if self._accepting is None:
                listener = self._listeners[-1]
                listener.server_activate()
                self._accepting = threading.Thread(target=listener.serve_forever, args=(0.02,), name=self._name)
                self._accepting.start()

    def down(self) -> None:
        """Refuse connections and end those that are open, as a killed server does."""
        with self._switching:
            if self._accepting is None:
                return
            listener = self._listeners[-1]
            listener.shutdown()
            self._accepting.join()
            self._accepting = None
            TCPServer.server_close(listener)  # without joining the handlers' threads: one of them may have called
            listener.closing = True
            for handler in tuple(listener.live):
                handler.cut()
            # Bound but not listening, the port refuses, and nobody else is given it.
            self._listeners.append(Listener(self._port, self._handler, self))

    def close(self) -> None:
        """Wait for every thread and give up the port."""
        for listener in self._listeners:
            listener.server_close()

    @property
    def _port(self) -> int:
        return int(self._listeners[-1].server_address[1])
