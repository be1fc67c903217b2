"""A real Pub/Sub: Google's emulator where the machine has it, and `pstest`, which Google's Go client is tested with.

    with PubSub.pstest(folder) as pubsub:
        topic = pubsub.create_topic("runs")
        subscription = pubsub.create_subscription(topic)
        ...
        received = subscription.pull(3)

Neither is the service. The official emulator ignores the filters of subscriptions; pstest takes an empty message; both
take what is above the service's limits. `tests.fakes.publisher_server` is strict. Both keep everything in memory.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar
from uuid import uuid4

import grpc
from google.api_core.exceptions import DeadlineExceeded, NotFound
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import PullResponse

from job.message import Message
from tests.bed import binaries
from tests.bed.process import Server, ServerCrashedError, free_port
from tests.bed.waiting import wait_until

_log = logging.getLogger(__name__)

_PROJECT = "p"
_CALL_S = 10.0
_ACK_DEADLINE_S = 10  # the least there is
_MOST_MESSAGES = 1_000
# An empty subscription answers after half a second: pstest always, the emulator one second before the deadline.
_QUIET_S = 1.5
_HANGS_S = 0.5
_STARTS = 3
_PREFIX = "ce-"
_GO_MOD = Path(__file__).parent / "cloud" / "go.mod"
_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Received:
    """A message as a subscriber gets it."""

    message_id: str
    data: bytes
    attributes: dict[str, str]
    ordering_key: str


class Carried(Protocol):
    """What any Pub/Sub keeps of a message."""

    @property
    def data(self) -> bytes: ...

    @property
    def attributes(self) -> dict[str, str]: ...


def cloud_event(received: Carried) -> Message:
    """Read a CloudEvent in binary mode; its key is lost.

    https://github.com/googleapis/google-cloudevents/blob/main/docs/spec/pubsub.md
    """
    attributes = {
        name.removeprefix(_PREFIX): value for name, value in received.attributes.items() if name.startswith(_PREFIX)
    }
    if "specversion" not in attributes:
        message = f"no CloudEvent in binary mode: {received.attributes}"
        raise ValueError(message)
    return Message(attributes, received.data, "")


def official_emulator() -> Path | None:
    """Find the program of Google's emulator, a jar; None where it or Java is missing."""
    if shutil.which("java") is None:
        return None
    for sdk in _sdk_folders():
        jars = sorted(sdk.glob("platform/pubsub-emulator/lib/*-all.jar"))
        if jars:
            return jars[-1]
    return None


def _sdk_folders() -> Iterator[Path]:
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        return
    # Mostly SDK/bin/gcloud, through links. Asking takes a second, so only where the program is a wrapper elsewhere.
    yield Path(gcloud).resolve().parent.parent
    asked = subprocess.run(
        [gcloud, "info", "--format=value(installation.sdk_root)"], stdout=subprocess.PIPE, text=True, check=False
    )
    if asked.returncode == 0 and asked.stdout.strip():
        yield Path(asked.stdout.strip())


class PubSub:
    """One server with the administrator's hand on it; a context manager. What it knew is gone when it is stopped."""

    def __init__(
        self, name: str, host: str, command: Callable[[int], list[str]], says: re.Pattern[str], log: Path
    ) -> None:
        """`command` is given a free port; `says` finds the port in the log of a server that is ready."""
        self.name = name
        """Which server it is, for people."""
        self.address = ""
        """Host and port, for an insecure channel; another after each start."""
        self._host, self._command, self._says, self._log = host, command, says, log
        self._server: Server | None = None
        self._channels: list[grpc.Channel] = []
        self._publisher: PublisherClient | None = None
        self._subscriber: SubscriberClient | None = None

    @classmethod
    def official(cls, folder: Path, host: str = "127.0.0.1") -> Self | None:
        """Prepare Google's emulator, with its log in `folder`; None where the machine has none."""
        jar = official_emulator()
        if jar is None:
            return None
        version = re.sub(r"^cloud-pubsub-emulator-|-all$", "", jar.stem)

        def command(port: int) -> list[str]:
            return ["java", "-jar", str(jar), f"--host={host}", f"--port={port}"]

        says = re.compile(r"Server started, listening on (\d+)\n")
        return cls(f"Google's Pub/Sub emulator {version}", host, command, says, folder / "pubsub-emulator.log")

    @classmethod
    def pstest(cls, folder: Path, host: str = "127.0.0.1") -> Self:
        """Prepare pstest, with its log in `folder`."""
        program = binaries.pstest()
        # Of a program from elsewhere the version is not known.
        version = f" {_pinned_version()}" if "pinned" in program.origin else ""
        return cls(
            f"pstest{version} ({program.origin})",
            host,
            lambda _: [str(program.path), host],  # it chooses the port itself
            re.compile(rf"^{re.escape(host)}:(\d+)\n"),
            folder / "pstest.log",
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def server(self) -> Server:
        """The running process, for signals."""
        return _started(self._server)

    @property
    def publisher(self) -> PublisherClient:
        """The administrator's client for topics, which can also publish."""
        return _started(self._publisher)

    @property
    def subscriber(self) -> SubscriberClient:
        """The administrator's client for subscriptions."""
        return _started(self._subscriber)

    def start(self) -> None:
        """Start, with nothing in it, and return when it serves."""
        self.stop()
        for attempt in range(1, _STARTS + 1):
            try:
                self._start_on(free_port())
            except ServerCrashedError:
                # Perhaps another process took the port.
                if attempt == _STARTS:
                    raise
            else:
                break
        self._publisher = PublisherClient(transport=PublisherGrpcTransport(channel=self._open_channel()))
        self._subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=self._open_channel()))
        _log.info("bed.pubsub.started name=%r address=%s", self.name, self.address)

    def stop(self) -> None:
        """Stop; topics, subscriptions and messages are gone."""
        while self._channels:
            self._channels.pop().close()
        self._publisher = self._subscriber = None
        if self._server is not None:
            self._server.stop()
            self._server = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Let the server hang inside the block: it holds its connections open and says nothing."""
        self.server.send(signal.SIGSTOP)
        try:
            wait_until(self._hangs, timedelta(seconds=10), f"{self.name} to hang")
            yield
        finally:
            self.server.send(signal.SIGCONT)

    def create_topic(self, topic: str) -> str:
        """Create a topic and return its full name; the official emulator wants at least three characters."""
        name = f"projects/{_PROJECT}/topics/{topic}"
        self.publisher.create_topic(name=name, timeout=_CALL_S)
        return name

    def delete_topic(self, topic: str) -> None:
        """Delete a topic by its full name."""
        self.publisher.delete_topic(topic=topic, timeout=_CALL_S)

    def create_subscription(self, topic: str, *, ordered: bool = False, filter: str = "") -> Subscription:  # noqa: A002 -- Pub/Sub's word
        """Subscribe to what is published from now on to the topic, given by its full name."""
        name = f"projects/{_PROJECT}/subscriptions/{topic.rpartition('/')[2]}-{uuid4().hex[:8]}"
        subscription = {
            "name": name,
            "topic": topic,
            "enable_message_ordering": ordered,
            "filter": filter,
            "ack_deadline_seconds": _ACK_DEADLINE_S,
        }
        self.subscriber.create_subscription(request=subscription, timeout=_CALL_S)
        return Subscription(name, self)

    def _hangs(self) -> bool:
        try:
            self.publisher.get_topic(topic=f"projects/{_PROJECT}/topics/none", timeout=_HANGS_S, retry=None)
        except DeadlineExceeded:
            return True
        except NotFound:
            return False
        return False

    def _start_on(self, port: int) -> None:
        server = Server(self._command(port), self._log)
        before = self._log.stat().st_size if self._log.exists() else 0

        def ready() -> bool:
            said = self._says.search(self._log.read_bytes()[before:].decode(errors="replace"))
            if said:
                self.address = f"{self._host}:{said[1]}"
            return said is not None

        server.start()
        try:
            server.wait_until_ready(ready)
        except BaseException:
            server.stop()
            raise
        self._server = server

    def _open_channel(self) -> grpc.Channel:
        # A reply may be larger than the 4 MB that gRPC takes, and a proxy of the environment does not lead here.
        options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
        self._channels.append(grpc.insecure_channel(self.address, options))
        return self._channels[-1]


class Subscription:
    """What a subscriber has not yet got; whatever is returned has been acknowledged, and is not returned again."""

    def __init__(self, name: str, pubsub: PubSub) -> None:
        """Take the full name of one that exists."""
        self.name = name
        self._pubsub = pubsub
        self._unsure_until = 0.0
        self._seen: set[str] = set()

    def pull(self, count: int, within: timedelta = timedelta(seconds=30)) -> list[Received]:
        """Return messages once there are `count`, perhaps more; raise TimeoutError when there are not `within` it."""
        deadline = time.monotonic() + within.total_seconds()
        found: list[Received] = []
        while len(found) < count:
            left = deadline - time.monotonic()
            if left < 0:
                message = f"{len(found)} of {count} messages after {within.total_seconds():g} s from {self.name}"
                raise TimeoutError(message)
            found += self._take(min(max(left, _QUIET_S), _CALL_S))
        return found

    def drain(self, within: timedelta = timedelta(seconds=60)) -> list[Received]:
        """Return all that is there, once nothing comes any more; raise TimeoutError when that is not so `within` it."""
        deadline = time.monotonic() + within.total_seconds()
        found: list[Received] = []
        while True:
            taken = self._take(_QUIET_S)
            found += taken
            if not taken and time.monotonic() >= self._unsure_until:
                return found
            if time.monotonic() > deadline:
                message = f"after {len(found)} messages and {within.total_seconds():g} s, {self.name} was not empty"
                raise TimeoutError(message)

    def _take(self, seconds: float) -> list[Received]:
        """Return and acknowledge what one reply holds, which may be a part; the server waits for a first message."""
        subscriber = self._pubsub.subscriber
        found: list[Received] = []
        try:
            reply = subscriber.pull(subscription=self.name, max_messages=_MOST_MESSAGES, timeout=seconds, retry=None)
            received = PullResponse.pb(reply).received_messages
            found = [_received(each.message) for each in received if each.message.message_id not in self._seen]
            self._seen.update(each.message_id for each in found)
            if received:
                ids = [each.ack_id for each in received]
                subscriber.acknowledge(subscription=self.name, ack_ids=ids, timeout=_CALL_S)
        except DeadlineExceeded:
            # A reply that came too late may have held messages. They come again when they have not been acknowledged in
            # time; so do those whose acknowledgement failed.
            self._unsure_until = time.monotonic() + _ACK_DEADLINE_S + _QUIET_S
        return found


def _received(message: Any) -> Received:  # noqa: ANN401 -- protobuf
    return Received(message.message_id, message.data, dict(message.attributes), message.ordering_key)


def _started(part: _Part | None) -> _Part:
    if part is None:
        message = "this Pub/Sub is not running: start it first"
        raise RuntimeError(message)
    return part


def _pinned_version() -> str:
    pinned = re.search(r"cloud\.google\.com/go/pubsub/v2 v(\S+)", _GO_MOD.read_text())
    return pinned[1] if pinned else "of an unknown version"
