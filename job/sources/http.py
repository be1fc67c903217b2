"""Requests on connections that are kept open.

urllib3 knows how to connect: TLS, names, proxies. To ask on what it has connected takes a third of the CPU of a request
of its own, and the walk makes one for each version of history; a watch is read by `job.sources.lines`.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.client import HTTPException, HTTPResponse, IncompleteRead
from socket import SHUT_RDWR, socket
from urllib.parse import urlencode, urlsplit

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError

from job.sources.lines import Broken, lines

ERRORS = (HTTPError, HTTPException, OSError, zlib.error, Broken)
"""What connecting, asking and reading may raise."""
CONNECT_SECONDS = 5.0
_KEPT = 8
"""Connections that are kept while nobody needs them: a watch, and those who read history at the same time."""
_PIECE = 65_536
_RECORD = 16_384
"""The most that TLS gives at a time."""
_OF_THE_POOL = ("cert_reqs", "ca_certs", "ca_cert_dir", "cert_file", "key_file", "assert_hostname")


class Client:
    """Asks one server, from any thread."""

    def __init__(self, url: str, manager: urllib3.PoolManager) -> None:
        """`manager` says how to connect; it opens no connection itself."""
        self.url = url.rstrip("/")
        self._pool = manager.connection_from_url(url)
        address = urlsplit(self.url)
        self._host = address.netloc
        # A proxy for plain HTTP is asked for the whole URL.
        self._prefix = self.url if self._pool.proxy and address.scheme == "http" else address.path
        self._idle: deque[HTTPConnection] = deque()

    def get(self, path: str, query: Mapping[str, str | int], headers: Mapping[str, str], seconds: float) -> Answer:
        """One GET, one request: any status is returned, its body unread. Raises some of `ERRORS`.

        `seconds` is how long the server may be silent; also while a connection is made, for which it has five at most.
        """
        return self._ask("GET", f"{path}?{urlencode(query)}" if query else path, headers, b"", seconds)

    def post(self, path: str, headers: Mapping[str, str], content: bytes, seconds: float) -> Answer:
        """One POST, as `get`."""
        return self._ask("POST", path, {**headers, "Content-Length": str(len(content))}, content, seconds)

    def _ask(self, method: str, path: str, headers: Mapping[str, str], content: bytes, seconds: float) -> Answer:
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\nHost: {self._host}\r\n{fields}\r\n".encode("latin-1")
        connection, open_socket = self._open(seconds)
        try:
            open_socket.settimeout(seconds)
            open_socket.sendall(head + content)
            response = HTTPResponse(open_socket, method=method)
            response.begin()
        except BaseException:
            connection.close()
            raise
        return Answer(self, connection, open_socket, response)

    def keep(self, connection: HTTPConnection) -> None:
        """Its answer was read to the end: another request may use it."""
        if len(self._idle) < _KEPT:
            self._idle.append(connection)
        else:
            connection.close()

    def _open(self, seconds: float) -> tuple[HTTPConnection, socket]:
        connection = self._waiting() or self._connect(min(CONNECT_SECONDS, seconds))
        assert connection.sock  # it was opened, and not closed  # noqa: S101
        return connection, connection.sock

    def _waiting(self) -> HTTPConnection | None:
        """One that is still open."""
        with suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if connection.is_connected:
                    return connection
                connection.close()
        return None

    def _connect(self, seconds: float) -> HTTPConnection:
        pool = self._pool
        tls = {name: getattr(pool, name) for name in _OF_THE_POOL} if pool.scheme == "https" else {}
        reached = pool.proxy or pool
        connection: HTTPConnection = pool.ConnectionCls(  # type: ignore[assignment] # it is one of urllib3's two
            host=reached.host or pool.host, port=reached.port, timeout=seconds, **tls, **pool.conn_kw
        )
        if pool.proxy and pool.scheme == "https":
            connection.set_tunnel(pool.host, pool.port, pool.proxy_headers, scheme=pool.proxy.scheme or "http")
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection


class Answer:
    """The answer to one request. Its body is read once, in one of the two ways."""

    def __init__(self, client: Client, connection: HTTPConnection, open_socket: socket, response: HTTPResponse) -> None:
        self.status = response.status
        self._client = client
        self._connection = connection
        self._socket = open_socket
        self._response = response

    def header(self, name: str) -> str | None:
        """A header's value."""
        return self._response.getheader(name)

    def pieces(self) -> Iterator[bytes]:
        """The body, uncompressed; the connection is kept for another request."""
        response = self._response
        compressed = response.getheader("Content-Encoding") == "gzip"
        expand = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress if compressed else None
        reusable = False
        try:
            while piece := response.read1(_PIECE):
                yield expand(piece) if expand else piece
            if response.length:
                raise IncompleteRead(piece, response.length)
            reusable = not response.will_close
        finally:
            response.close()
            if reusable:
                self._client.keep(self._connection)
            else:
                self._connection.close()

    def lines(self) -> Iterator[list[bytes]]:
        """The body's lines, as they arrive; the connection ends with it."""
        received = self._response.fp
        if not received:
            return
        try:
            yield from lines(lambda: received.read1(_RECORD), chunked=bool(self._response.chunked))
        finally:
            self.close()

    def shutdown(self) -> None:
        """End the connection from another thread, where a blocked read ends at once."""
        with suppress(OSError):  # it has ended already
            # Of the connection below TLS, which could not be shut down while it is read.
            socket.shutdown(self._socket, SHUT_RDWR)

    def close(self) -> None:
        """Read no more."""
        self._response.close()
        self._connection.close()
