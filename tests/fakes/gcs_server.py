"""A Google Cloud Storage of ours, whose preconditions are the real ones and which a test scripts to fail.

    with GcsServer() as server:
        server.create_bucket("b")
        lost = server.inject(on=writes(), fault=LostResponse())
        ...
        assert lost.fired == 1

- `gcs_api` says which requests it serves, `gcs_objects` what they do, `gcs_faults` what can be scripted.
- What `before_write` raises, and any mistake of this module, is raised again when the server is left.
"""

import math
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingTCPServer
from types import TracebackType
from typing import NoReturn, Self

from tests.fakes.gcs_api import Api, Request, Response, refused
from tests.fakes.gcs_faults import (
    Answer,
    Corrupted,
    Drip,
    Fault,
    Injection,
    LostResponse,
    Matcher,
    Moment,
    Reset,
    Script,
    Stall,
    Truncated,
)
from tests.fakes.gcs_objects import RefusedError

# Longer than the metadata at the head of an upload, which name the object.
_HEAD_BYTES = 4096


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # the head of an answer and its body are sent apart
    server: "_Server"

    def setup(self) -> None:
        super().setup()
        self.gcs = self.server.gcs
        self.server.live.add(self)
        if self.server.closing:
            self.cut()

    def finish(self) -> None:
        self.server.live.discard(self)
        super().finish()

    def cut(self) -> None:
        """End the connection, from any thread: what blocks on it returns."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def serve(self) -> None:
        """Handle one request."""
        try:
            self._serve()
        except OSError:
            # The client went away or its connection was ended, on purpose.
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve  # noqa: N815 -- the names that http.server looks for

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        head = self.rfile.read(max(size // 2, min(size - 1, _HEAD_BYTES), 0))
        request = self.gcs.api.understand(self.command, self.path, dict(self.headers), head, size)
        self.gcs.script.record(request)
        if size:
            self._reach(request, Moment.IN_UPLOAD)
        body = head + self.rfile.read(size - len(head))
        if len(body) < size:
            raise ConnectionAbortedError
        try:
            self._reach(request, Moment.BEFORE)
            response = self.gcs.api.apply(request, body)
        except RefusedError as error:
            response = refused(error, request.kind)
        self._reach(request, Moment.AFTER)
        self._send(request, response)

    def _reach(self, request: Request, moment: Moment) -> None:
        """Do what is scripted for this moment; what ends the exchange raises."""
        injection = self.gcs.script.claim(request, moment)
        match injection and injection.fault:
            case Answer(error):
                raise replace(error)
            case LostResponse():
                raise ConnectionAbortedError
            case Reset():
                self._reset()
            case Stall(_, seconds):
                assert injection
                self._wait(injection, seconds)

    def _send(self, request: Request, response: Response) -> None:
        injection = self.gcs.script.claim(request, Moment.IN_DOWNLOAD) if response.media and response.body else None
        self.send_response_only(response.status)
        headers = {"Date": self.date_time_string(), "Content-Type": response.content_type, **response.headers}
        if response.status not in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
            headers["Content-Length"] = str(len(response.body))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        half = len(response.body) // 2 if injection else len(response.body)
        self.wfile.write(response.body[:half])
        for piece in self._rest(injection, response.body[half:]) if injection else ():
            self.wfile.write(piece)

    def _rest(self, injection: Injection, rest: bytes) -> Iterable[bytes]:
        match injection.fault:
            case Truncated():
                raise ConnectionAbortedError
            case Corrupted():
                yield bytes(255 - value for value in rest)
            case Drip(seconds, size):
                for start in range(0, len(rest), size):
                    self._wait(injection, seconds)
                    yield rest[start : start + size]
            case Stall(_, seconds):
                self._wait(injection, seconds)
                yield rest
            case _:
                self._reset()

    def _wait(self, injection: Injection, seconds: float) -> None:
        # Not ended by a client that gives up: a write that was on its way is applied after that.
        injection.released.wait(None if math.isinf(seconds) else seconds)
        if self.server.closing:
            raise ConnectionAbortedError

    def _reset(self) -> NoReturn:
        # Closed with a linger of zero, and before the server's shutdown() can send a FIN, it sends a RST.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
        raise ConnectionAbortedError


class _Server(ThreadingTCPServer):  # not HTTPServer, whose bind looks its own name up in the DNS
    """The listening side; it refuses connections until `server_activate`."""

    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, port: int, gcs: "GcsServer") -> None:
        super().__init__(("127.0.0.1", port), _Handler, bind_and_activate=False)
        self.gcs = gcs
        self.live: set[_Handler] = set()
        self.closing = False
        self.server_bind()

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep what a test must hear of; a connection that broke between two requests is not."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            self.gcs.script.failures.append(error)


class GcsServer:
    """The server, as a context manager; `url` is where clients find it. Leaving it ends every connection and thread."""

    name = "a Google Cloud Storage of ours, in this process"

    def __init__(self, *, required_token: str | None = None) -> None:
        """`required_token` is the bearer token without which every request gets a 401."""
        self.script = Script()
        self.api = Api(required_token)
        self._servers: list[_Server] = []
        self._accepting: threading.Thread | None = None
        self._switching = threading.Lock()

    def __enter__(self) -> Self:
        """Open a free port."""
        self._servers.append(_Server(0, self))
        self.api.url = self.url
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything; raise the first failure of a handler, or add it as a note to what is being raised."""
        self.down()
        self.script.release()
        for server in self._servers:
            server.server_close()
        for failure in self.script.failures:
            if error is None:
                raise failure
            error.add_note(f"the server had failed: {failure!r}")

    @property
    def url(self) -> str:
        """The same also after `down` and `up`."""
        return f"http://127.0.0.1:{self._servers[-1].server_address[1]}"

    @property
    def denied(self) -> set[str]:
        """The permissions that the caller lacks, as `storage.objects.get`; add to it and take from it."""
        return self.api.store.denied

    @property
    def before_write(self) -> Callable[[], object]:
        """Called when a write has come and before its preconditions are checked; `put` and `delete` do not call it."""
        return self.api.before_write

    @before_write.setter
    def before_write(self, call: Callable[[], object]) -> None:
        self.api.before_write = call

    @property
    def requests(self) -> tuple[Request, ...]:
        """All requests so far, in the order they came, also those that were refused or broke off."""
        with self.script.changed:
            return tuple(self.script.requests)

    @property
    def objects(self) -> dict[tuple[str, str], bytes]:
        """The data of all objects, under the names of bucket and object."""
        return {
            (bucket, name): stored.data
            for bucket in self.api.store.buckets()
            for name, stored in self.api.store.bucket(bucket).items()
        }

    def create_bucket(self, name: str) -> None:
        """Create an empty bucket."""
        self.api.store.create_bucket(name)

    def put(self, bucket: str, name: str, data: bytes) -> int:
        """Somebody else writes the object; return its generation."""
        return self.api.store.put(bucket, name, data, {}).generation

    def get(self, bucket: str, name: str) -> bytes | None:
        """Return the object's data, None when there is no such object."""
        return self.objects.get((bucket, name))

    def generation(self, bucket: str, name: str) -> int:
        """Return the object's generation, 0 when there is no such object."""
        stored = self.api.store.bucket(bucket).get(name)
        return stored.generation if stored else 0

    def delete(self, bucket: str, name: str) -> None:
        """Somebody else deletes the object, if it is there."""
        self.api.store.remove(bucket, name)

    def inject(self, *, on: Matcher, fault: Fault, times: int | None = 1, skip: int = 0) -> Injection:
        """Script a fault for the next `times` matching requests (None: for all), after letting `skip` pass."""
        injection = Injection(on, fault, math.inf if times is None else times, skip)
        self.script.add(injection)
        return injection

    def wait_for(self, on: Matcher, count: int = 1, timeout: float = 10) -> tuple[Request, ...]:
        """Return the matching requests once there are `count`; raise TimeoutError after `timeout` seconds."""
        self.script.wait(lambda: sum(map(on, self.script.requests)), f"requests for {on}", count, timeout)
        return tuple(filter(on, self.requests))

    def wait_fired(self, injection: Injection, count: int = 1, timeout: float = 10) -> None:
        """Return once it has fired `count` times; raise TimeoutError after `timeout` seconds."""
        self.script.wait(lambda: injection.fired, f"firings of {injection}", count, timeout)

    def down(self) -> None:
        """Refuse connections and end those that are open, as a killed server does; the objects stay."""
        with self._switching:
            if self._accepting is None:
                return
            server = self._servers[-1]
            server.shutdown()
            self._accepting.join()
            self._accepting = None
            TCPServer.server_close(
                server
            )  # without joining the handlers' threads: `before_write` in one may have called
            server.closing = True
            for handler in tuple(server.live):
                handler.cut()
            # Bound but not listening, the port refuses, and nobody else is given it.
            self._servers.append(_Server(server.server_address[1], self))

    def up(self) -> None:
        """Accept connections again, on the same port."""
        with self._switching:
            if self._accepting is None:
                server = self._servers[-1]
                server.server_activate()
                self._accepting = threading.Thread(target=server.serve_forever, args=(0.02,), name="gcs-server")
                self._accepting.start()
