"""Messages in a Google Cloud Pub/Sub topic, in the binary mode of CloudEvents.

The generated client is used, one request for each batch, and not the batching one of the same package: that waits
without a limit when the broker is away, fails a whole batch for one message without saying which, and needs a thread
for each ordering key.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from job.credentials import HOST_AND_PORT, GoogleCredentials, emulator
from job.errors import ActionNeeded, Forbidden, Refused, Unauthorized, Unavailable, UsageError
from job.message import Message, binary
from job.ports import Limits
from job.settings import Address

if TYPE_CHECKING:  # importing it takes 0.3 s and 45 MB: a run in which nothing changes goes without
    from google.pubsub_v1 import PublisherClient

LANES = 8
"""Requests at the same time, without ordering keys."""
MOST_KEYS = 1000
# https://cloud.google.com/pubsub/quotas#resource_limits
_MOST_BYTES = 10_000_000
_MOST_ATTRIBUTES, _LONGEST_NAME, _LONGEST_VALUE, _LONGEST_KEY = 100, 256, 1024, 1024
_RESERVED = "goog"
# https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names
_TOPIC = re.compile(r"[A-Za-z][A-Za-z0-9._~+%-]{2,254}")
_PROJECT = re.compile(r"[a-z](?:[a-z0-9.:-]{0,98}[a-z0-9])?")
_REGION = re.compile(r"[a-z]+(?:-[a-z]+)+[0-9]+")
_LOCATION = re.compile(r"//(?P<project>[^/]+)/(?P<topic>[^/]+)")
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
        self._client: PublisherClient | None = None
        self._known_names: set[str] = set()
        # gRPC's core writes lines of its own to stderr, about connections that a server closes; read at its import.
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

    @classmethod
    def at(cls, address: Address, credentials: GoogleCredentials) -> Self:
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
        return cls(topic, credentials, ordering=_ordering(address), region=region)

    def open(self) -> None:
        """Fetch the credentials."""
        if not self._emulator:
            self._credentials.get()

    def publish(self, lane: int, messages: Sequence[Message], timeout: float) -> None:
        """Send one request; the topic stores all of it or nothing."""
        from google.pubsub_v1.types import PublishRequest, PubsubMessage

        key = f"{messages[0].attributes['source']}/{lane}" if self._ordering else ""
        carried = [binary(message) for message in messages]
        self._check(messages, carried, key)
        request = PublishRequest.pb()(
            topic=self._topic,
            messages=[
                PubsubMessage.pb()(data=message.data, attributes=attributes, ordering_key=key)
                for message, attributes in zip(messages, carried, strict=True)
            ],
        )
        with self._translated(messages):
            answer = self._connected().publish(request=PublishRequest.wrap(request), retry=None, timeout=timeout)
        if len(answer.message_ids) != len(messages):
            message_ = f"{self._topic} has stored {len(answer.message_ids)} of {len(messages)} messages"
            raise Unavailable(message_)

    def _connected(self) -> PublisherClient:
        """The client, made by the first thread that publishes."""
        with self._connecting:
            if not self._client:
                import grpc
                from google.pubsub_v1 import PublisherClient
                from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport as Transport

                channel = (
                    grpc.insecure_channel(self._emulator, options=_TO_EMULATOR)
                    if self._emulator
                    else Transport.create_channel(self._host, credentials=self._credentials.get(), options=_CHANNEL)
                )
                self._client = PublisherClient(transport=Transport(channel=channel))
            return self._client

    def _check(self, messages: Sequence[Message], carried: Sequence[dict[str, str]], key: str) -> None:
        """Refuse what the service would refuse: it fails the whole batch for one message, and does not say which."""
        for message, attributes in zip(messages, carried, strict=True):
            if wrong := self._wrong(message, attributes, key):
                refusal = f"{self._topic} cannot take message {message.id}: {wrong}"
                raise Refused(refusal, [message.id])

    def _wrong(self, message: Message, attributes: dict[str, str], key: str) -> str:
        if len(attributes) > _MOST_ATTRIBUTES:
            return f"{len(attributes)} attributes, and the most are {_MOST_ATTRIBUTES}"
        if not attributes.keys() <= self._known_names:
            for name in attributes:
                if len(name.encode()) > _LONGEST_NAME or name.startswith(_RESERVED):
                    return f"an attribute cannot be called {name[:64]}"
            self._known_names |= attributes.keys()
        for name, value in attributes.items():
            # A character has four bytes at most: most values need not be encoded to be known as short enough.
            if len(value) > _LONGEST_VALUE // 4 and len(value.encode()) > _LONGEST_VALUE:
                return f"{name} has {len(value.encode())} bytes, and the most are {_LONGEST_VALUE}"
        if len(key.encode()) > _LONGEST_KEY:
            return f"an ordering key of {len(key.encode())} bytes, and the most are {_LONGEST_KEY}"
        if message.size > _MOST_BYTES:
            return f"{message.size} bytes, and the most are {_MOST_BYTES}"
        return ""

    @contextmanager
    def _translated(self, messages: Sequence[Message]) -> Iterator[None]:
        from google.api_core import exceptions as google
        from google.auth.exceptions import GoogleAuthError

        topic = self._topic
        try:
            yield
        except (google.InvalidArgument, google.OutOfRange) as error:
            ids = [message.id for message in messages]
            what = f"message {ids[0]}" if len(ids) == 1 else f"one of {len(ids)} messages"
            refusal = f"{topic} refused {what}: {error.message}"
            raise Refused(refusal, ids) from error
        except google.NotFound as error:
            message = f"{topic} does not exist: create it, or correct --sink ({error.message})"
            raise ActionNeeded(message) from error
        except google.PermissionDenied as error:
            message = f"the credentials may not publish to {topic}: grant roles/pubsub.publisher ({error.message})"
            raise Forbidden(message) from error
        except google.Unauthenticated as error:
            message = f"{topic} refused the credentials: {error.message}"
            raise Unauthorized(message) from error
        except (google.FailedPrecondition, google.MethodNotImplemented) as error:
            message = f"{topic} cannot be published to until somebody mends it: {error.message}"
            raise ActionNeeded(message) from error
        except (google.GoogleAPIError, GoogleAuthError) as error:
            message = f"{topic} did not take {len(messages)} messages: {error}"
            raise Unavailable(message) from error


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
