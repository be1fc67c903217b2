"""A Pub/Sub that takes messages at the wire and does what no emulator does: refuses, loses answers, hangs, and breaks.

    with PublisherServer("projects/p/topics/runs") as server:
        lost = server.inject(ANSWER_LOST, on=holding(lambda message: b"x" in message.data), times=2)
        ...
        assert lost.fired == 2

- `stored` has every message that a publisher may have to answer for, also if the answer was lost.
- It keeps the limits of the service, which the emulators do not know, and refuses the whole request as the service
  does. Texts are the service's own where they could be found. `strict = False` turns the limits off.
- The first matching `Status` or `Disconnect` decides about a request; every matching `Stall` acts beside it.
- A fault that is `stored=True` comes after the messages were stored; a refused request has not reached it, and leaves
  it armed for the next match.
- The service does not take back what a client has stopped waiting for, nor does this server: after a stall the messages
  are stored although nobody listens any more.
- What a test's own predicate raises is raised again when the server is left.
"""

from __future__ import annotations

import math
import os
import socket
import stat
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

import grpc
from google.pubsub_v1.types import PublishRequest, PublishResponse

from tests.fakes.script import Injection, ScriptedServer
from tests.fakes.topic_rights import NOT_AUTHORIZED, PUBLISH, TopicRights

# https://cloud.google.com/pubsub/quotas#resource_limits
_MOST_MESSAGES = 1_000
_MOST_REQUEST_BYTES = 10_000_000
_MOST_ATTRIBUTES = 100
_MOST_NAME_BYTES = 256
_MOST_VALUE_BYTES = 1_024
_MOST_ORDERING_KEY_BYTES = 1_024

_Request, _Response = PublishRequest.pb(), PublishResponse.pb()
# A stalled request occupies a thread, also when its client has long begun another.
_THREADS = 256


class Published(NamedTuple):
    """A message as it came."""

    topic: str
    ordering_key: str
    data: bytes
    attributes: dict[str, str]


@dataclass(eq=False)
class Request:
    """One call of Publish and what became of it; `at` and `until` are `time.monotonic()` in seconds."""

    topic: str
    content: tuple[Published, ...] = field(repr=False)
    size: int
    """Bytes on the wire."""
    at: float
    until: float | None = None
    """When it was answered, or the server learnt that its client had gone; None while it is under way."""
    stored: bool = False
    answer: grpc.StatusCode | None = None
    """None while there is none, and for ever when nobody was there to get it."""

    @property
    def messages(self) -> int:
        """How many messages it carries."""
        return len(self.content)

    @property
    def ordering_key(self) -> str:
        """The key of its messages, which is one key."""
        return self.content[0].ordering_key if self.content else ""


def holding(predicate: Callable[[Published], bool]) -> Callable[[Request], bool]:
    """Match requests with such a message among theirs."""
    return lambda request: any(map(predicate, request.content))


@dataclass(frozen=True)
class Status:
    """Answers with an error; `stored`: although everything was stored."""

    code: grpc.StatusCode
    details: str = ""
    stored: bool = False


@dataclass(frozen=True)
class Disconnect:
    """Closes all connections without an answer, as a proxy does that dies."""

    stored: bool = False


@dataclass(frozen=True)
class Stall:
    """Goes silent for so many seconds, or until released, and then goes on, whether or not the client still waits."""

    seconds: float = math.inf
    stored: bool = False


Fault = Status | Disconnect | Stall
_Injection: TypeAlias = Injection[Request, Fault]

UNAVAILABLE = Status(
    grpc.StatusCode.UNAVAILABLE, "The service was unable to fulfill your request. Please try again. [code=8a75]"
)
PERMISSION_DENIED = Status(grpc.StatusCode.PERMISSION_DENIED, NOT_AUTHORIZED)
ANSWER_LOST = Status(
    grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline expired before operation could complete.", stored=True
)
POISON = Status(grpc.StatusCode.INVALID_ARGUMENT, "Request contains an invalid argument.")
"""What the service says to a message that a schema forbids, without saying which of them it was."""
_GONE = Status(grpc.StatusCode.UNAVAILABLE, "the connection was closed")


class PublisherServer(ScriptedServer[Request, Fault]):
    """The server, as a context manager; `address` is where clients find it, also after `down` and `up`."""

    def __init__(self, *topics: str) -> None:
        """Take the full names of topics; there are no others."""
        super().__init__(Stall)
        self.topics = set(topics)
        self.rights = TopicRights(self.topics)
        """Of the caller; and who subscribes. What a test takes away here is refused, too, when it is published to."""
        self.latency = 0.0
        """Seconds before anything is done with a request."""
        self.strict = True
        self._stored: list[Published] = []
        self._switching = threading.Lock()
        self._running: tuple[grpc.Server, ThreadPoolExecutor] | None = None
        self._life = 0
        self._port = 0
        self._holder: socket.socket | None = None

    def __enter__(self) -> Self:
        """Open a free port."""
        # Bound but not listening: while the server is down the port refuses, and nobody else is given it.
        self._holder = socket.socket()
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._holder.bind(("127.0.0.1", 0))
        self._port = self._holder.getsockname()[1]
        self.up()
        return self

    def close(self) -> None:
        """Give up the port."""
        if self._holder is not None:
            self._holder.close()

    @property
    def address(self) -> str:
        """Host and port, for an insecure channel."""
        return f"127.0.0.1:{self._port}"

    @property
    def stored(self) -> list[Published]:
        """Every message, in order, as often as it was stored."""
        with self.changed:
            return list(self._stored)

    @property
    def requests(self) -> list[Request]:
        """All requests so far, in the order they came; what is under way still changes."""
        with self.changed:
            return list(self._requests)

    def max_concurrency(self, by: Callable[[Request], Hashable] = lambda _: None) -> int:
        """The most requests of one group that were under way at a time; without `by`, all are one group."""
        steps: defaultdict[Hashable, list[tuple[float, int]]] = defaultdict(list)
        for request in self.requests:
            # An end sorts before a beginning at the same moment.
            steps[by(request)] += [(request.at, 1), (math.inf if request.until is None else request.until, -1)]
        return max((max(accumulate(step for _, step in sorted(group))) for group in steps.values()), default=0)

    def down(self) -> None:
        """Close every connection without an answer and refuse new ones; what was not yet stored never will be."""
        with self._switching:
            if self._running is None:
                return
            server, threads = self._running
            self._running = None
            with self.changed:
                self._life += 1
            # First, since gRPC's own stop says goodbye (GOAWAY), which no killed server does.
            _cut_connections(self._port)
            server.stop(None).wait()
            with self.changed:
                self.changed.notify_all()
            threads.shutdown()

    def up(self) -> None:
        """Serve again on the same port, with the same state and script."""
        with self._switching:
            if self._running is not None:
                return
            threads = ThreadPoolExecutor(_THREADS, "publisher-server")
            publish = grpc.unary_unary_rpc_method_handler(
                partial(self._publish, self._life), _parse, _Response.SerializeToString
            )
            # The service's own limit is checked by us, and answered otherwise than that of gRPC.
            options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 1)]
            server = grpc.server(threads, self.rights.services(publish), options=options)
            server.add_insecure_port(self.address)
            server.start()
            self._running = server, threads

    def _publish(self, life: int, wire: tuple[int, Any], context: grpc.ServicerContext) -> Any:  # noqa: ANN401 -- protobuf
        size, message = wire
        content = tuple(
            Published(message.topic, each.ordering_key, each.data, dict(each.attributes)) for each in message.messages
        )
        request = Request(message.topic, content, size, time.monotonic())
        if not context.add_callback(partial(self._ended, request)):
            self._ended(request)
        ids: list[str] = []
        try:
            failure = self._deal(life, request, ids)
        except BaseException as error:
            self.failures.append(error)
            raise
        self._ended(request)
        if failure is not _GONE and context.is_active():
            request.answer = grpc.StatusCode.OK if failure is None else failure.code
        if failure is not None:
            context.abort(failure.code, failure.details)
        return _Response(message_ids=ids)

    def _ended(self, request: Request) -> None:
        with self.changed:
            if request.until is None:
                request.until = time.monotonic()
                self.changed.notify_all()

    def _deal(self, life: int, request: Request, ids: list[str]) -> Status | None:
        """Do with the request what is scripted; the ids of what was stored, and the error to answer with, if any."""
        with self.changed:
            self.record(request)
            claimed = self.claim(request)
        deciding = next((injection for injection in claimed if not isinstance(injection.fault, Stall)), None)
        if not self._wait(life, self.latency) or not self._stall(life, claimed, stored=False):
            return _GONE
        if deciding and not deciding.fault.stored:
            return self._decide(deciding)
        refusal = _refusal(request, self.topics, strict=self.strict)
        if PUBLISH in self.rights.denied:
            refusal = PERMISSION_DENIED
        with self.changed:
            if refusal:
                self.give_back(injection for injection in claimed if injection.fault.stored)
                return refusal
            self._stored += request.content
            ids += map(str, range(len(self._stored) - request.messages + 1, len(self._stored) + 1))
            request.stored = True
        if not self._stall(life, claimed, stored=True):
            return _GONE
        return self._decide(deciding) if deciding else None

    def _stall(self, life: int, claimed: Iterable[_Injection], *, stored: bool) -> bool:
        for injection in claimed:
            if isinstance(injection.fault, Stall) and injection.fault.stored == stored:
                self.count(injection)
                if not self._wait(life, injection.fault.seconds, injection):
                    return False
        return True

    def _decide(self, injection: _Injection) -> Status:
        # Counted before the client can see anything of it.
        self.count(injection)
        if isinstance(injection.fault, Status):
            return injection.fault
        _cut_connections(self._port)
        return _GONE

    def _wait(self, life: int, seconds: float, injection: _Injection | None = None) -> bool:
        """Wait as long as the server is up; False: it went down."""
        self.pause(seconds, lambda: self._life != life or (injection is not None and injection.released))
        return self._life == life


def _parse(wire: bytes) -> tuple[int, Any]:
    return len(wire), _Request.FromString(wire)


def _refusal(request: Request, topics: Iterable[str], *, strict: bool) -> Status | None:
    wrong = next(_excesses(request), None) if strict else None
    if wrong:
        return Status(grpc.StatusCode.INVALID_ARGUMENT, wrong)
    if strict and len({message.ordering_key for message in request.content}) > 1:
        # Not INVALID_ARGUMENT: https://github.com/yoshidan/google-cloud-rust/issues/226
        return Status(
            grpc.StatusCode.FAILED_PRECONDITION,
            "In a single publish request, all messages must have no ordering key or they must all have the same "
            "ordering key. [code=539b]",
        )
    if request.topic not in topics:
        return Status(grpc.StatusCode.NOT_FOUND, f"Resource not found (resource={request.topic.rpartition('/')[2]}).")
    return None


def _excesses(request: Request) -> Iterator[str]:
    """What the service refuses, in its own words where they are known."""
    if not request.content:
        yield "The value for message_count is too small. You passed 0 in the request, but the minimum value is 1."
    yield from _too_large("message_count", request.messages, _MOST_MESSAGES)
    yield from _too_large("request_size", request.size, _MOST_REQUEST_BYTES)
    for message in request.content:
        yield from _excesses_of_message(message)


def _excesses_of_message(message: Published) -> Iterator[str]:
    if not message.data and not message.attributes:
        yield (
            "One or more messages in the publish request is empty. Each message must contain either non-empty data, or "
            "at least one attribute."
        )
    yield from _too_large("ordering_key", len(message.ordering_key.encode()), _MOST_ORDERING_KEY_BYTES)
    yield from _too_large("attributes", len(message.attributes), _MOST_ATTRIBUTES)
    for name, value in message.attributes.items():
        if name.startswith("goog"):
            yield f'The attribute "{name}" is reserved: keys must not begin with goog.'
        yield from _too_long("", "key", name, _MOST_NAME_BYTES)
        yield from _too_long(name, "value", value, _MOST_VALUE_BYTES)


def _too_large(what: str, value: int, most: int) -> Iterator[str]:
    if value > most:
        yield f"The value for {what} is too large. You passed {value} in the request, but the maximum value is {most}."


def _too_long(attribute: str, part: str, text: str, most: int) -> Iterator[str]:
    # It says characters and counts bytes: https://github.com/googleapis/java-pubsub/issues/2312
    length = len(text.encode())
    if length > most:
        yield (
            f'The attribute "{attribute}" in the request has a {part} that is too long. The length is {length} '
            f"characters, but the maximum allowed is {most}. Refer to https://cloud.google.com/pubsub/quotas for more "
            "information."
        )


def _cut_connections(port: int) -> None:
    """Shut the server's side of every connection; gRPC keeps them to itself, so they are looked up by their port."""
    for entry in Path("/dev/fd").iterdir():
        # Every descriptor may be closed by its owner in the meantime.
        with suppress(OSError):
            number = int(entry.name)
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as connection:
                inet = connection.family in {socket.AF_INET, socket.AF_INET6}
                # What listens has no peer, and says so by an OSError.
                if inet and connection.getsockname()[1] == port and connection.getpeername():
                    connection.shutdown(socket.SHUT_RDWR)
