"""Messages in a Google Cloud Pub/Sub topic, in the binary mode of CloudEvents.

One request for each batch, on a gRPC channel. The batching client of google-cloud-pubsub waits without a limit when the
broker is away, fails a whole batch for one message without saying which, and needs a thread for each ordering key; the
generated client below it is built for other needs than a process that starts every minute (`pubsub_wire`).
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Self
from urllib.parse import urlencode

from job.access import Access
from job.credentials import HOST_AND_PORT, GoogleCredentials, emulator
from job.errors import ActionNeeded, Forbidden, Refused, Unauthorized, Unavailable, UsageError
from job.message import Message, binary
from job.ports import Check, Limits
from job.settings import Address
from job.sinks import pubsub_wire

if TYPE_CHECKING:  # importing it takes 0.1 s and 15 MB: a run in which nothing changes goes without
    from grpc import Channel, RpcError, UnaryUnaryMultiCallable

LANES = 8
"""Requests at the same time, without ordering keys."""
MOST_KEYS = 1000
# https://cloud.google.com/pubsub/quotas#resource_limits
_MOST_BYTES = 10_000_000
_MOST_ATTRIBUTES, _LONGEST_NAME, _LONGEST_VALUE, _LONGEST_KEY = 100, 256, 1024, 1024
_RESERVED = "goog"
_REMEMBERED = 4096
"""Encoded attributes."""
# https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names
_TOPIC = re.compile(r"[A-Za-z][A-Za-z0-9._~+%-]{2,254}")
_PROJECT = re.compile(r"[a-z](?:[a-z0-9.:-]{0,98}[a-z0-9])?")
_REGION = re.compile(r"[a-z]+(?:-[a-z]+)+[0-9]+")
_LOCATION = re.compile(r"//(?P<project>[^/]+)/(?P<topic>[^/]+)")
_METHOD = "/google.pubsub.v1.Publisher/Publish"
_CHANNEL = (("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 3000))
"""A broker that comes back is found again within the drain; the default waits up to two minutes."""
_TO_EMULATOR = (*_CHANNEL, ("grpc.enable_http_proxy", 0))


class PubSubSink:
    """One topic. With `ordering`, messages carry one of so many ordering keys, by namespace and name."""

    def __init__(self, topic: str, credentials: GoogleCredentials, *, ordering: int = 0, region: str = "") -> None:
        # 100 messages, so that halving a refused batch down to each of them fits into a run.
        self.limits = Limits(lanes=ordering or LANES, messages=100, bytes=1_000_000)
        self._topic = topic
        self._credentials = credentials
        self._ordering = ordering > 0
        self._host = f"{region}-pubsub.googleapis.com:443" if region else "pubsub.googleapis.com:443"
        self._emulator = emulator("PUBSUB_EMULATOR_HOST", HOST_AND_PORT)
        self._connecting = threading.Lock()
        self._call: UnaryUnaryMultiCallable[bytes, bytes] | None = None
        self._routing = (("x-goog-request-params", urlencode({"topic": topic}, safe="/")),)
        # gRPC's core writes lines of its own to stderr, about connections that a server closes; read at its import.
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

    @classmethod
    def at(cls, address: Address, access: Access) -> Self:
        """The sink of `pubsub://PROJECT/TOPIC[?ordering=N&region=R]`. Raises `UsageError`."""
        found = _LOCATION.fullmatch(address.path)
        if not found or not _PROJECT.fullmatch(found["project"]) or not _is_topic(found["topic"]):
            message = f"the sink {str(address)!r} is not pubsub://PROJECT/TOPIC"
            raise UsageError(message)
        address.allow("ordering", "region")
        region = address.options.get("region", "")
        if region and not _REGION.fullmatch(region):
            message = f"the sink {str(address)!r} has a region that is not one, as europe-west1 is"
            raise UsageError(message)
        topic = f"projects/{found['project']}/topics/{found['topic']}"
        return cls(topic, access.google, ordering=_ordering(address), region=region)

    def open(self) -> None:
        """Fetch the credentials."""
        if not self._emulator:
            self._credentials.get()

    def publish(self, lane: int, messages: Sequence[Message], timeout: float) -> None:
        """Send one request; the topic stores all of it or nothing."""
        import grpc

        key = f"{messages[0].attributes['source']}/{lane}" if self._ordering else ""
        request = pubsub_wire.publish_request(self._topic, [self._carried(message, key) for message in messages], key)
        try:
            answer = self._connected()(request, timeout=timeout, metadata=self._routing)
        except grpc.RpcError as error:
            raise self._translated(error, messages) from error
        if (count := _stored(answer)) != len(messages):
            message_ = f"{self._topic} has stored {count} of {len(messages)} messages"
            raise Unavailable(message_)

    def checks(self, timeout: float) -> Iterator[Check]:
        """The credentials, the topic, the right to publish, and that somebody subscribes."""
        from job.sinks import pubsub_checks

        if not self._emulator:
            credentials = self._credentials.check()
            yield credentials
            if credentials.remedy:
                return
        with self._channel() as channel:
            yield from pubsub_checks.of(self._topic, channel, self._credentials, timeout)

    def _connected(self) -> UnaryUnaryMultiCallable[bytes, bytes]:
        """Publish on the channel, which the first thread that publishes opens."""
        with self._connecting:
            if not self._call:
                self._call = self._channel().unary_unary(_METHOD, None, None)
            return self._call

    def _channel(self) -> Channel:
        import grpc

        if self._emulator:
            return grpc.insecure_channel(self._emulator, _TO_EMULATOR)
        from google.auth.transport.grpc import secure_authorized_channel
        from google.auth.transport.requests import Request

        channel: Channel = secure_authorized_channel(
            self._credentials.get(),
            Request(),
            self._host,
            ssl_credentials=grpc.ssl_channel_credentials(),
            options=_CHANNEL,
        )
        return channel

    def _carried(self, message: Message, key: str) -> tuple[bytes, bytes]:
        """A message's attributes and data. Refuses what the service would: it would fail the batch, and name none."""
        try:
            _check(message, key)
            return b"".join([_attribute(name, value) for name, value in message.attributes.items()]), message.data
        except _Unfit as unfit:
            refusal = f"{self._topic} cannot take message {message.id}: {unfit}"
            raise Refused(refusal, [message.id]) from unfit

    def _translated(self, error: RpcError, messages: Sequence[Message]) -> Exception:
        from grpc import StatusCode

        topic, status, said = self._topic, error.code(), error.details()
        if status in {StatusCode.INVALID_ARGUMENT, StatusCode.OUT_OF_RANGE}:
            ids = [message.id for message in messages]
            what = f"message {ids[0]}" if len(ids) == 1 else f"one of {len(ids)} messages"
            return Refused(f"{topic} refused {what}: {said}", ids)
        if status is StatusCode.NOT_FOUND:
            return ActionNeeded(f"{topic} does not exist: create it, or correct the address ({said})")
        if status is StatusCode.PERMISSION_DENIED:
            return Forbidden(f"the credentials may not publish to {topic}: grant roles/pubsub.publisher ({said})")
        if status is StatusCode.UNAUTHENTICATED:
            return Unauthorized(f"{topic} refused the credentials: {said}")
        if status in {StatusCode.FAILED_PRECONDITION, StatusCode.UNIMPLEMENTED}:
            return ActionNeeded(f"{topic} cannot be published to until somebody mends it: {said}")
        return Unavailable(f"{topic} did not take {len(messages)} messages: {status.name}: {said}")


class _Unfit(Exception):
    """What the service would refuse."""


def _check(message: Message, key: str) -> None:
    most, count = _MOST_ATTRIBUTES, len(message.attributes)
    if count >= most and (count := len(binary(message.attributes))) > most:
        unfit = f"{count} attributes, and the most are {most}"
        raise _Unfit(unfit)
    if message.size > _MOST_BYTES:
        unfit = f"{message.size} bytes, and the most are {_MOST_BYTES}"
        raise _Unfit(unfit)
    if (size := len(key.encode())) > _LONGEST_KEY:
        unfit = f"an ordering key of {size} bytes, and the most are {_LONGEST_KEY}"
        raise _Unfit(unfit)


@lru_cache(_REMEMBERED)
def _attribute(name: str, value: str) -> bytes:
    """What a CloudEvent's attribute becomes in a request. Most repeat from message to message."""
    encoded = b""
    for carried, text in binary({name: value}).items():
        if len(carried.encode()) > _LONGEST_NAME or carried.startswith(_RESERVED):
            unfit = f"an attribute cannot be called {carried[:64]}"
            raise _Unfit(unfit)
        if (size := len(text.encode())) > _LONGEST_VALUE:
            unfit = f"{carried} has {size} bytes, and the most are {_LONGEST_VALUE}"
            raise _Unfit(unfit)
        encoded += pubsub_wire.attribute(carried, text)
    return encoded


def _stored(answer: bytes) -> int:
    try:
        return pubsub_wire.stored(answer)
    except ValueError as error:
        raise Unavailable(str(error)) from error


def _is_topic(name: str) -> bool:
    return _TOPIC.fullmatch(name) is not None and not name.startswith(_RESERVED)


def _ordering(address: Address) -> int:
    text = address.options.get("ordering")
    if text is None:
        return 0
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text) or int(text) > MOST_KEYS:
        message = f"the sink {str(address)!r} has ordering={text}, where a number of keys from 1 to {MOST_KEYS} belongs"
        raise UsageError(message)
    return int(text)
