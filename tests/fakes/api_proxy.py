"""A reverse proxy in front of a real API server, which a test scripts to fail.

Everything passes byte for byte, watches frame by frame as they arrive, unless an injection matches the request:

    with ApiProxy(control_plane.url, control_plane.ca_file) as proxy:
        refused = proxy.inject(on=watches(), fault=STORAGE_INITIALISING, times=2)
        ...
        assert refused.fired == 2

- `api_faults` says what can be scripted.
- The first matching injection decides what happens to a request; every matching `Hook` and `Delay` acts beside it.
- A server that is away or dies is passed on as well: the client's connection closes without an end.
- What a `Hook` raises, and a refused server certificate, are raised again when the proxy is left.
"""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from tests.fakes.api_faults import (
    Answer,
    CutFrame,
    Delay,
    EndEarly,
    ErrorFrame,
    Fault,
    Hook,
    Request,
    Reset,
    Stall,
    status,
)
from tests.fakes.http_server import Handler, HttpServer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from urllib3 import HTTPResponse

    from tests.fakes.http_server import Listener
    from tests.fakes.script import Injection


class ProxyError(Exception):
    """The test's own mistake: its hook raised, or the server's certificate is not of the CA it gave."""


class _Handler(Handler):
    """One connection of a client, and the one to the server that belongs to it."""

    server: Listener[ApiProxy]
    _claimed: list[Injection[Request, Fault]]
    _upstream_socket: socket.socket | None = None

    def setup(self) -> None:
        self._proxy = self.server.fake
        self._upstream = self._proxy.upstream()
        super().setup()

    def finish(self) -> None:
        self._upstream.close()
        super().finish()

    def check_client(self) -> None:
        """End the server's side of a watch whose client went away."""
        if self.client_gone():
            self.cut()

    def cut(self) -> None:
        """End both connections, the client's first: `_ask` looks at it once there is a socket to the server."""
        super().cut()
        if self._upstream_socket is not None:
            with suppress(OSError):
                # Of the base class: SSLSocket.shutdown takes the TLS state away under the thread that reads.
                socket.socket.shutdown(self._upstream_socket, socket.SHUT_RDWR)

    def client_gone(self) -> bool:
        """Whether the client has closed its side; nothing is read."""
        try:
            return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def relay(self) -> None:
        """Handle one request."""
        target = urlsplit(self.path)
        query = dict(parse_qsl(target.query, keep_blank_values=True))
        accept = self.headers.get("Accept", "")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, target.path, query, accept, time.monotonic())
        with self._proxy.changed:
            self._proxy.record(request)
            self._claimed = self._proxy.claim(request)
        try:
            if not self._reach(None):
                self._pass_on(body)
        except ssl.SSLCertVerificationError as error:
            message = f"the server's certificate is not accepted: {error}"
            raise ProxyError(message) from error
        except (OSError, HTTPError, HTTPException):
            # One side went away, which is told to the other by closing. Nothing to report: tests do this on purpose.
            self.close_connection = True
        finally:
            self._give_back()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = relay  # noqa: N815 -- the names that http.server looks for

    def _give_back(self) -> None:
        self._proxy.give_back(self._claimed)
        self._claimed = []

    def _pass_on(self, body: bytes) -> None:
        with self._ask(body) as response:
            scripted = bool(self._claimed) and response.status == HTTPStatus.OK
            if not scripted:
                self._give_back()
            chunked = scripted or "Content-Length" not in response.headers
            dropped = {"transfer-encoding", "keep-alive"} | ({"content-length"} if chunked else set())
            headers = [(name, value) for name, value in response.headers.iteritems() if name.lower() not in dropped]
            if chunked:
                headers.append(("Transfer-Encoding", "chunked"))
            self._start(response.status, response.reason or "", headers)
            chunks = response.stream(65536, decode_content=False)
            if scripted:
                self._stream(_frames(chunks))
                self._upstream.close()
                return
            for chunk in chunks:
                self._send_chunk(chunk) if chunked else self.wfile.write(chunk)
            if chunked:
                self._end()

    def _ask(self, body: bytes) -> HTTPResponse:
        # Frames cannot be told apart in a gzip stream, so a request with a fault for its stream goes without.
        dropped = {"host", "connection", "keep-alive"} | ({"accept-encoding"} if self._claimed else set())
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        if not self._upstream.is_connected:
            self._upstream.close()
            self._upstream.timeout = 5  # of the connection and handshake only: a watch may be silent
            self._upstream.connect()
            self._upstream.timeout = None
            self._upstream_socket = self._upstream.sock
        if self.client_gone():  # also if `cut` came before there was a socket to the server
            raise ConnectionAbortedError
        self._upstream.request(
            self.command, self.path, body or None, headers, preload_content=False, decode_content=False
        )
        return self._upstream.getresponse()

    def _stream(self, frames: Iterator[bytes]) -> None:
        if self._reach(0):
            return
        for sent, frame in enumerate(frames):
            if self._reach(sent, frame):
                return
            self._send_chunk(frame)
            if self._reach(sent + 1):
                return
        self._give_back()
        self._end()

    def _reach(self, frames: int | None, following: bytes | None = None) -> bool:
        """Fire what is scripted after so many frames; True: that has ended the exchange.

        It is called again with the following frame once that has come, for those faults that need it.
        """
        due = [injection for injection in self._claimed if injection.fault.after_frames == frames]
        return any(
            self._fire(injection, following or b"")
            for injection in due
            if isinstance(injection.fault, CutFrame) == (following is not None)
        )

    def _fire(self, injection: Injection[Request, Fault], following: bytes) -> bool:
        fault = injection.fault
        if isinstance(fault, Hook):
            try:
                fault.call()
            except BaseException as error:
                message = f"a hook on {injection.on} raised {error!r}"
                raise ProxyError(message) from error
        # Counted, and the rest given back, before the client can see anything of it.
        self._claimed.remove(injection)
        self._proxy.count(injection)
        goes_on = isinstance(fault, Hook | Stall | Delay)
        if not goes_on:
            self._give_back()
        match fault:
            case Answer():
                headers = {"Content-Type": fault.content_type, "Content-Length": str(len(fault.body)), **fault.headers}
                self._start(fault.status, HTTPStatus(fault.status).phrase, headers.items())
                self.wfile.write(fault.body)
            case ErrorFrame():
                content = status(fault.code, fault.reason, fault.message).strip()
                self._send_chunk(b'{"type":"ERROR","object":' + content + b"}\n")
                self._end()
            case EndEarly():
                self._end()
            case CutFrame():
                self._send_chunk(following[: len(following) // 2])
                self._end()
            case Reset():
                self.wfile.write(b'3e8\r\n{"type":')
                self.reset()
            case Stall() | Delay():
                self.stall(injection, fault.seconds)
        return not goes_on

    def _start(self, code: int, reason: str, headers: Iterable[tuple[str, str]]) -> None:
        self.send_response_only(code, reason)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def _send_chunk(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))

    def _end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")


def _frames(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (frame + b"\n" for frame in whole)
    if rest:
        yield rest


class ApiProxy(HttpServer[Request, Fault]):
    """The proxy, as a context manager; `url` is where clients find it. Leaving it ends every connection and thread."""

    def __init__(self, upstream_url: str, ca_file: Path | str | None = None) -> None:
        """`upstream_url` is `http://` or `https://`, the latter checked against the CA file (PEM)."""
        super().__init__(_Handler, "api-proxy", Delay, Hook)
        self._target = urlsplit(upstream_url)
        self._ca_file = None if ca_file is None else str(ca_file)

    def upstream(self) -> HTTPConnection:
        """Prepare a connection to the server."""
        host, port = self._target.hostname or "", self._target.port
        if self._target.scheme == "https":
            return HTTPSConnection(host, port, ca_certs=self._ca_file, cert_reqs="CERT_REQUIRED")
        return HTTPConnection(host, port)
