"""A Google Cloud Storage of ours, whose preconditions are the real ones and which a test scripts to fail.

    with GcsServer() as server:
        server.create_bucket("b")
        lost = server.inject(on=writes(), fault=LostResponse())
        ...
        assert lost.fired == 1

- `gcs_api` says which requests it serves, `gcs_objects` what they do, `gcs_faults` what can be scripted.
- What `before_write` raises, and any mistake of this module, is raised again when the server is left.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from http import HTTPStatus
from typing import Self, TypeAlias

from tests.fakes.gcs_api import Api, Request, Response, refused
from tests.fakes.gcs_faults import Answer, Corrupted, Drip, Fault, LostResponse, Moment, Reset, Stall, Truncated
from tests.fakes.gcs_objects import RefusedError
from tests.fakes.http_server import Handler, HttpServer, Listener
from tests.fakes.script import Injection

_Injection: TypeAlias = Injection[Request, Fault]
# Longer than the metadata at the head of an upload, which name the object.
_HEAD_BYTES = 4096


class _Handler(Handler):
    """One connection of a client."""

    server: Listener["GcsServer"]

    def serve(self) -> None:
        """Handle one request."""
        try:
            self._serve()
        except OSError:
            # The client went away or its connection was ended, on purpose.
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve  # noqa: N815 -- the names that http.server looks for

    def _serve(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        head = self.rfile.read(max(size // 2, min(size - 1, _HEAD_BYTES), 0))
        gcs = self.server.fake
        request = gcs.api.understand(self.command, self.path, dict(self.headers), head, size)
        gcs.record(request)
        if size:
            self._reach(request, Moment.IN_UPLOAD)
        body = head + self.rfile.read(size - len(head))
        if len(body) < size:
            raise ConnectionAbortedError
        try:
            self._reach(request, Moment.BEFORE)
            response = gcs.api.apply(request, body)
        except RefusedError as error:
            response = refused(error, request.kind)
        self._reach(request, Moment.AFTER)
        self._send(request, response)

    def _claim(self, request: Request, moment: Moment) -> _Injection | None:
        """Take what is to happen at this moment of the request, and count it."""
        injection = next(iter(self.server.fake.claim(request, lambda fault: fault.moment is moment)), None)
        if injection:
            self.server.fake.count(injection)
        return injection

    def _reach(self, request: Request, moment: Moment) -> None:
        """Do what is scripted for this moment; what ends the exchange raises."""
        injection = self._claim(request, moment)
        match injection and injection.fault:
            case Answer(error):
                raise replace(error)
            case LostResponse():
                raise ConnectionAbortedError
            case Reset():
                self.reset()
            case Stall(_, seconds):
                assert injection
                # Not ended by a client that gives up: a write that was on its way is applied after that.
                self.stall(injection, seconds)

    def _send(self, request: Request, response: Response) -> None:
        injection = self._claim(request, Moment.IN_DOWNLOAD) if response.media and response.body else None
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

    def _rest(self, injection: _Injection, rest: bytes) -> Iterable[bytes]:
        match injection.fault:
            case Truncated():
                raise ConnectionAbortedError
            case Corrupted():
                yield bytes(255 - value for value in rest)
            case Drip(seconds, size):
                for start in range(0, len(rest), size):
                    self.stall(injection, seconds)
                    yield rest[start : start + size]
            case Stall(_, seconds):
                self.stall(injection, seconds)
                yield rest
            case _:
                self.reset()


class GcsServer(HttpServer[Request, Fault]):
    """The server, as a context manager; `url` is where clients find it. Leaving it ends every connection and thread."""

    name = "a Google Cloud Storage of ours, in this process"

    def __init__(self, *, required_token: str | None = None) -> None:
        """`required_token` is the bearer token without which every request gets a 401."""
        super().__init__(_Handler, "gcs-server")
        self.api = Api(required_token)

    def __enter__(self) -> Self:
        """Open a free port."""
        super().__enter__()
        self.api.url = self.url
        return self

    @property
    def denied(self) -> set[str]:
        """The permissions that the caller lacks, as `storage.objects.get`; add to it and take from it."""
        return self.api.store.denied

    @property
    def conditional(self) -> set[str]:
        """The permissions that the caller has on a condition about the names of objects, as all here meet it."""
        return self.api.store.conditional

    @property
    def keeps_preconditions(self) -> bool:
        """Whether it looks at them, as not every emulator does."""
        return self.api.store.keeps_preconditions

    @keeps_preconditions.setter
    def keeps_preconditions(self, keeps: bool) -> None:
        self.api.store.keeps_preconditions = keeps

    @property
    def settings(self) -> dict[str, object]:
        """What every bucket says of itself, under the names of JSON, as `softDeletePolicy`."""
        return self.api.store.settings

    @property
    def before_write(self) -> Callable[[], object]:
        """Called when a write has come and before its preconditions are checked; `put` and `delete` do not call it."""
        return self.api.before_write

    @before_write.setter
    def before_write(self, call: Callable[[], object]) -> None:
        self.api.before_write = call

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
