"""A reverse proxy in front of a real API server, which a test scripts to fail.

Everything passes byte for byte, watches frame by frame as they arrive, unless an injection matches the request:

    with ApiProxy(control_plane.url, control_plane.ca_file) as proxy:
        refused = proxy.inject(on=watches(), fault=STORAGE_INITIALISING, times=2)
        ...
        assert refused.fired == 2

- The first matching injection decides what happens to a request; every matching `Hook` and `Delay` acts beside it.
- A fault on a stream needs the server's 200. What was never reached (another status, a shorter stream) has not fired
  and stays armed for the next match.
- A server that is away or dies is passed on as well: the client's connection closes without an end.
- What a `Hook` raises, and a refused server certificate, are raised again when the proxy is left.
"""

from __future__ import annotations

import json
import math
import re
import socket
import ssl
import struct
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingTCPServer
from typing import TYPE_CHECKING, ClassVar, Self
from urllib.parse import parse_qsl, urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from urllib3 import HTTPResponse

TEXT = "text/plain; charset=utf-8"
COLLECTION = re.compile(r"/(api|apis/[^/]+)/[^/]+/(namespaces/[^/]+/)?[^/]+")


@dataclass(frozen=True)
class Request:
    """What a client asked for; `at` is `time.monotonic()` in seconds."""

    method: str
    path: str
    query: Mapping[str, str]
    accept: str
    at: float

    @property
    def watch(self) -> bool:
        """Whether it opens a watch."""
        return self.query.get("watch") in {"1", "true"}

    @property
    def list(self) -> bool:
        """Whether it lists a collection."""
        return self.method == "GET" and not self.watch and COLLECTION.fullmatch(self.path) is not None


@dataclass(frozen=True)
class Matcher:
    """Which requests are meant: those of a kind, and with `path` somewhere in their path."""

    kind: str
    path: str
    rule: Callable[[Request], bool] = field(repr=False)

    def __call__(self, request: Request) -> bool:
        """Whether this request is meant."""
        return self.path in request.path and self.rule(request)


def anything(path: str = "") -> Matcher:
    """Match every request."""
    return Matcher("anything", path, lambda _: True)


def watches(path: str = "") -> Matcher:
    """Match watches."""
    return Matcher("watches", path, lambda request: request.watch)


def lists(path: str = "") -> Matcher:
    """Match every list of a collection: first and continued pages, probes and exact lists."""
    return Matcher("lists", path, lambda request: request.list)


def first_pages(path: str = "") -> Matcher:
    """Match lists that start a listing of the state now: neither continued nor exact nor a probe."""
    others = (continued(), exact(), probes())
    return Matcher("first pages", path, lambda request: request.list and not any(other(request) for other in others))


def continued(path: str = "") -> Matcher:
    """Match lists that continue another; page n is `skip=n - 2` of these."""
    return Matcher("continued", path, lambda request: request.list and "continue" in request.query)


def probes(path: str = "") -> Matcher:
    """Match lists with `limit=1`, which ask for the current resourceVersion only."""
    return Matcher("probes", path, lambda request: request.list and request.query.get("limit") == "1")


def exact(path: str = "") -> Matcher:
    """Match lists of the state at one resourceVersion."""
    return Matcher("exact", path, lambda request: request.list and request.query.get("resourceVersionMatch") == "Exact")


def status(
    code: int,
    reason: str,
    message: str,
    retry_after: int | None = None,
    *,
    details: Mapping[str, object] | None = None,
    token: str = "",
) -> bytes:
    """Build a Status as the API server writes it, in its order of fields; `token` is `metadata.continue`."""
    content: dict[str, object] = {"kind": "Status", "apiVersion": "v1"}
    content |= {"metadata": {"continue": token} if token else {}, "status": "Failure", "message": message}
    if reason:
        content["reason"] = reason
    details = {**(details or {}), **({} if retry_after is None else {"retryAfterSeconds": retry_after})}
    if details:
        content["details"] = details
    return json.dumps(content | {"code": code}, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True)
class Answer:
    """Answers instead of the server."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    after_frames: ClassVar[None] = None


@dataclass(frozen=True)
class ErrorFrame:
    """Ends a watch with an ERROR frame, after so many frames of the server's."""

    code: int
    reason: str
    message: str
    after_frames: int = 0


@dataclass(frozen=True)
class EndEarly:
    """Ends a stream cleanly after so many frames."""

    after_frames: int = 0


class SilentClose(EndEarly):
    """Answers 200 and ends the watch cleanly without a frame (kubernetes#104171)."""


@dataclass(frozen=True)
class CutFrame:
    """Lets through so many frames and half of the next, then ends the stream cleanly; a list is one frame."""

    after_frames: int = 0


@dataclass(frozen=True)
class Reset:
    """Resets the connection in mid-chunk, after so many frames; a list is one frame."""

    after_frames: int = 0


@dataclass(frozen=True)
class Stall:
    """Goes silent for so many seconds, or until released, and then goes on.

    `after_frames=None`: before the request is passed on; 0: after the response's headers; n: after n frames.
    """

    seconds: float = math.inf
    after_frames: int | None = None


@dataclass(frozen=True)
class Delay:
    """Waits before the request is passed on, or answered by another fault."""

    seconds: float
    after_frames: ClassVar[None] = None


@dataclass(frozen=True)
class Hook:
    """Calls the test's function, in a thread of the proxy, and goes on when it returns; else like `Stall`."""

    call: Callable[[], object]
    after_frames: int | None = None


Fault = Answer | ErrorFrame | EndEarly | CutFrame | Reset | Stall | Delay | Hook


def refusal(code: int, reason: str, message: str, retry_after: int | None = None) -> Answer:
    """Answer with a Status, and with the Retry-After header that the API server sends along."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Answer(code, status(code, reason, message, retry_after), headers)


def forbidden(verb: str = "watch", namespace: str = "", user: str = "system:serviceaccount:argo:watcher") -> Answer:
    """Answer with the 403 of RBAC, which a server that is starting also gives to users with every right."""
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    resource, group = "workflows", "argoproj.io"
    who = f'User "{user}" cannot {verb} resource "{resource}" in API group "{group}" {where}'
    message, details = f"{resource}.{group} is forbidden: {who}", {"group": group, "kind": resource}
    return Answer(403, status(403, "Forbidden", message, details=details))


def expired_page(token: str) -> Answer:
    """Answer with the 410 for an old `continue`, which offers `token` for pages of a *later* resourceVersion."""
    message = (
        "The provided continue parameter is too old to display a consistent list result. You can start a new list "
        "without the continue parameter, or use the continue token in this response to retrieve the remainder of the "
        "results. Continuing with the provided token results in an inconsistent list - objects that were created, "
        "modified, or deleted between the time the first chunk was returned and now may show up in the list."
    )
    return Answer(410, status(410, "Expired", message, token=token))


EXPIRED_WATCH = ErrorFrame(410, "Expired", "too old resource version: 294 (321)")
EXPIRED_LIST = refusal(410, "Expired", "The resourceVersion for the provided list is too old.")
STORAGE_INITIALISING = refusal(429, "TooManyRequests", "storage is (re)initializing", 1)
NOT_YET_INSTALLED = refusal(
    503,
    "ServiceUnavailable",
    "the request has been made before all known HTTP paths have been installed, please try again",
    5,
)
TOO_MANY_REQUESTS = Answer(429, b"Too many requests, please try again later.\n", {"Retry-After": "1"}, TEXT)
UNAUTHORIZED = refusal(401, "Unauthorized", "Unauthorized")
PAGE_NOT_FOUND = Answer(404, b"404 page not found\n", {"X-Content-Type-Options": "nosniff"}, TEXT)
INTERNAL_ERROR = refusal(500, "InternalError", "Internal error occurred: etcdserver: leader changed")


class ProxyError(Exception):
    """The test's own mistake: its hook raised, or the server's certificate is not of the CA it gave."""


@dataclass(eq=False)
class Injection:
    """One scripted fault; `fired` says how often it has really happened."""

    on: Matcher
    fault: Fault
    left: float
    skip: int
    fired: int = 0
    withdrawn: bool = False
    released: threading.Event = field(default_factory=threading.Event, repr=False)

    def release(self) -> None:
        """End its stalls and delays, also those to come."""
        self.released.set()

    def withdraw(self) -> None:
        """Disarm it; what it is doing now goes on."""
        self.withdrawn = True


class _Script:
    """What the test has scripted and what has happened, shared by all threads."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.requests: list[Request] = []
        self.injections: list[Injection] = []
        self.failures: list[BaseException] = []

    def claim(self, request: Request) -> list[Injection]:
        """Record the request and take what is to happen to it, the deciding fault last."""
        beside: list[Injection] = []
        deciding: list[Injection] = []
        with self.changed:
            self.requests.append(request)
            self.changed.notify_all()
            for injection in self.injections:
                if injection.withdrawn or not injection.on(request):
                    continue
                if injection.skip:
                    injection.skip -= 1
                    continue
                chosen = beside if isinstance(injection.fault, Delay | Hook) else deciding
                if injection.left and not (chosen is deciding and deciding):
                    injection.left -= 1
                    chosen.append(injection)
        return beside + deciding

    def give_back(self, unreached: Iterable[Injection]) -> None:
        with self.changed:
            for injection in unreached:
                injection.left += 1

    def count(self, injection: Injection) -> None:
        with self.changed:
            injection.fired += 1
            self.changed.notify_all()


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client, and the one to the server that belongs to it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a frame must not wait for the acknowledgement of the one before
    server: _Server
    _claimed: list[Injection]
    _upstream_socket: socket.socket | None = None

    def setup(self) -> None:
        super().setup()
        self._script = self.server.script
        self._upstream = self.server.upstream()
        self.server.live.add(self)
        if self.server.closing:
            self.cut()

    def finish(self) -> None:
        self.server.live.discard(self)
        self._upstream.close()
        super().finish()

    def cut(self) -> None:
        """End both connections, from any thread: what blocks on them returns."""
        for side in (self.connection, self._upstream_socket):
            if side is not None:
                with suppress(OSError):
                    # Of the base class: SSLSocket.shutdown takes the TLS state away under the thread that reads.
                    socket.socket.shutdown(side, socket.SHUT_RDWR)

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
        self._claimed = self._script.claim(request)
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

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _give_back(self) -> None:
        self._script.give_back(self._claimed)
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

    def _fire(self, injection: Injection, following: bytes) -> bool:
        fault = injection.fault
        if isinstance(fault, Hook):
            try:
                fault.call()
            except BaseException as error:
                message = f"a hook on {injection.on} raised {error!r}"
                raise ProxyError(message) from error
        # Counted, and the rest given back, before the client can see anything of it.
        self._claimed.remove(injection)
        self._script.count(injection)
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
                self._reset()
            case Stall() | Delay():
                self._wait(fault.seconds, injection.released)
        return not goes_on

    def _wait(self, seconds: float, released: threading.Event) -> None:
        deadline = time.monotonic() + seconds
        over = False
        while not over:
            left = deadline - time.monotonic()
            over = released.wait(min(max(left, 0), 0.02)) or left <= 0
            if self.client_gone():
                raise ConnectionAbortedError

    def _reset(self) -> None:
        self.wfile.write(b'3e8\r\n{"type":')
        # Closed with a linger of zero, and before the server's shutdown() can send a FIN, it sends a RST.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
        self.close_connection = True

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


class _Server(ThreadingTCPServer):  # not HTTPServer, whose bind looks its own name up in the DNS
    """The listening side; it refuses connections until `server_activate`."""

    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, port: int, script: _Script, upstream: Callable[[], HTTPConnection]) -> None:
        super().__init__(("127.0.0.1", port), _Handler, bind_and_activate=False)
        self.script, self.upstream = script, upstream
        self.live: set[_Handler] = set()
        self.closing = False
        self.server_bind()

    def service_actions(self) -> None:
        """End the server's side of watches whose client went away; called at every turn of `serve_forever`."""
        for handler in tuple(self.live):
            if handler.client_gone():
                handler.cut()

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep what a test must hear of; a connection that broke between two requests is not."""
        del request, client_address
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            self.script.failures.append(error)


class ApiProxy:
    """The proxy, as a context manager; `url` is where clients find it. Leaving it ends every connection and thread."""

    def __init__(self, upstream_url: str, ca_file: Path | str | None = None) -> None:
        """`upstream_url` is `http://` or `https://`, the latter checked against the CA file (PEM)."""
        self._target = urlsplit(upstream_url)
        self._ca_file = None if ca_file is None else str(ca_file)
        self._script = _Script()
        self._servers: list[_Server] = []
        self._accepting: threading.Thread | None = None
        self._switching = threading.Lock()

    def __enter__(self) -> Self:
        """Open a free port."""
        self._servers.append(_Server(0, self._script, self._upstream))
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything; raise the first failure of a handler, or add it as a note to what is being raised."""
        self.down()
        for server in self._servers:
            server.server_close()
        for failure in self._script.failures:
            if error is None:
                raise failure
            error.add_note(f"the proxy had failed: {failure}")

    @property
    def url(self) -> str:
        """The same also after `down` and `up`."""
        return f"http://127.0.0.1:{self._servers[-1].server_address[1]}"

    @property
    def requests(self) -> tuple[Request, ...]:
        """All requests so far, in the order they came."""
        with self._script.changed:
            return tuple(self._script.requests)

    @property
    def fired(self) -> tuple[int, ...]:
        """How often each injection has fired, in the order of the `inject` calls."""
        with self._script.changed:
            return tuple(injection.fired for injection in self._script.injections)

    def inject(self, *, on: Matcher, fault: Fault, times: int | None = 1, skip: int = 0) -> Injection:
        """Script a fault for the next `times` matching requests (None: for all), after letting `skip` pass."""
        injection = Injection(on, fault, math.inf if times is None else times, skip)
        with self._script.changed:
            self._script.injections.append(injection)
        return injection

    def wait_for(self, on: Matcher, count: int = 1, timeout: float = 10) -> tuple[Request, ...]:
        """Return the matching requests once there are `count`; raise TimeoutError after `timeout` seconds."""
        self._wait(lambda: sum(map(on, self._script.requests)), f"requests for {on}", count, timeout)
        return tuple(filter(on, self.requests))

    def wait_fired(self, injection: Injection, count: int = 1, timeout: float = 10) -> None:
        """Return once it has fired `count` times; raise TimeoutError after `timeout` seconds."""
        self._wait(lambda: injection.fired, f"firings of {injection}", count, timeout)

    def down(self) -> None:
        """Refuse connections and end those that are open, as a killed server does."""
        with self._switching:
            if self._accepting is None:
                return
            server = self._servers[-1]
            server.shutdown()
            self._accepting.join()
            self._accepting = None
            TCPServer.server_close(server)  # without joining the handlers' threads: a Hook in one may have called
            server.closing = True
            for handler in tuple(server.live):
                handler.cut()
            # Bound but not listening, the port refuses, and nobody else is given it.
            self._servers.append(_Server(server.server_address[1], self._script, self._upstream))

    def up(self) -> None:
        """Accept connections again, on the same port."""
        with self._switching:
            if self._accepting is None:
                server = self._servers[-1]
                server.server_activate()
                self._accepting = threading.Thread(target=server.serve_forever, args=(0.02,), name="api-proxy")
                self._accepting.start()

    def _upstream(self) -> HTTPConnection:
        host, port = self._target.hostname or "", self._target.port
        if self._target.scheme == "https":
            return HTTPSConnection(host, port, ca_certs=self._ca_file, cert_reqs="CERT_REQUIRED")
        return HTTPConnection(host, port)

    def _wait(self, measure: Callable[[], int], what: str, count: int, timeout: float) -> None:
        with self._script.changed:
            if not self._script.changed.wait_for(lambda: measure() >= count, timeout):
                message = f"{measure()} of {count} {what} after {timeout} s; requests: {self._script.requests}"
                raise TimeoutError(message)
