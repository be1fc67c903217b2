"""A subscription of Google Cloud Pub/Sub, pulled request by request.

A window ends, so there is no streaming pull: what it has fetched ahead would have to be given back. The generated
client makes each request once (`retry=None`); whether there is time for another, its caller knows.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from job.access import Access
from job.credentials import HOST_AND_PORT, GoogleCredentials, emulator
from job.errors import ActionNeeded, Forbidden, Unauthorized, Unavailable, UsageError
from job.logs import event
from job.ports import Received

if TYPE_CHECKING:  # importing it takes half a second
    from google.pubsub_v1 import SubscriberClient

_NAME = re.compile(r"projects/[^/]+/subscriptions/[A-Za-z][A-Za-z0-9._~+%-]{2,254}")
_CALL_SECONDS = 10.0
_MOST_IDS = 500
"""Of one request, which may have 512 KiB: https://cloud.google.com/pubsub/quotas#resource_limits."""

log = logging.getLogger(__name__)


class PubSubSubscription:
    """One subscription."""

    def __init__(self, name: str, credentials: GoogleCredentials) -> None:
        self._name = name
        self._credentials = credentials
        self._emulator = emulator("PUBSUB_EMULATOR_HOST", HOST_AND_PORT)
        self._making = threading.Lock()
        self._made: SubscriberClient | None = None

    @classmethod
    def at(cls, name: str, access: Access) -> Self:
        """The subscription `projects/PROJECT/subscriptions/NAME`. Raises `UsageError`."""
        if not _NAME.fullmatch(name):
            message = f"the subscription {name!r} is not projects/PROJECT/subscriptions/NAME"
            raise UsageError(message)
        return cls(name, access.google)

    def open(self) -> None:
        """Fetch the credentials."""
        if not self._emulator:
            self._credentials.get()

    def pull(self, most: int, timeout: float) -> Sequence[Received]:
        """One request; that nothing came in time is no error."""
        from google.api_core.exceptions import DeadlineExceeded

        request = {"subscription": self._name, "max_messages": most}
        with self._translated("pulled from"):
            try:
                answer = self._client.pull(request=request, timeout=timeout, retry=None)
            except DeadlineExceeded:
                return []
        return [
            Received(
                ack_id=each.ack_id,
                message_id=each.message.message_id,
                attributes=dict(each.message.attributes),
                data=each.message.data,
                published=each.message.publish_time,
                ordering_key=each.message.ordering_key,
            )
            for each in answer.received_messages
        ]

    def extend(self, ack_ids: Sequence[str], seconds: int) -> None:
        """Set their deadlines to so many seconds from now; 0 gives them back."""
        for some in _parts(ack_ids):
            request = {"subscription": self._name, "ack_ids": some, "ack_deadline_seconds": seconds}
            with self._translated("told which leases are kept"), self._late():
                self._client.modify_ack_deadline(request=request, timeout=_CALL_SECONDS, retry=None)

    def acknowledge(self, ack_ids: Sequence[str]) -> None:
        """Acknowledge them."""
        for some in _parts(ack_ids):
            request = {"subscription": self._name, "ack_ids": some}
            with self._translated("told what is processed"), self._late():
                self._client.acknowledge(request=request, timeout=_CALL_SECONDS, retry=None)

    def refuse(self, ack_ids: Sequence[str]) -> None:
        """Give them back: the subscription's retry policy says when they come again."""
        self.extend(ack_ids, 0)

    @property
    def _client(self) -> SubscriberClient:
        with self._making:
            if not self._made:
                self._made = self._connected()
            return self._made

    def _connected(self) -> SubscriberClient:
        import grpc
        from google.pubsub_v1 import SubscriberClient
        from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

        if self._emulator:
            options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
            channel = grpc.insecure_channel(self._emulator, options)
            return SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        return SubscriberClient(credentials=self._credentials.get())

    @contextmanager
    def _translated(self, done: str) -> Iterator[None]:
        from google.api_core import exceptions as google

        name = self._name
        try:
            yield
        except google.NotFound as error:
            message = f"{name} does not exist: create it, or correct --subscription ({error.message})"
            raise ActionNeeded(message) from error
        except google.PermissionDenied as error:
            message = f"the credentials may not use {name}: grant roles/pubsub.subscriber ({error.message})"
            raise Forbidden(message) from error
        except google.Unauthenticated as error:
            message = f"{name} refused the credentials: {error.message}"
            raise Unauthorized(message) from error
        except (google.FailedPrecondition, google.InvalidArgument, google.MethodNotImplemented) as error:
            message = f"{name} cannot be {done} until somebody mends it: {error.message}"
            raise ActionNeeded(message) from error
        except google.GoogleAPICallError as error:
            message = f"{name} cannot be {done}: {error.message}"
            raise Unavailable(message) from error

    @contextmanager
    def _late(self) -> Iterator[None]:
        """Take it that leases have ended, as a subscription with exactly-once delivery says of an acknowledgement.

        What they were of is delivered again, and recognised. What is wrong with the subscription, a pull finds out.
        """
        from google.api_core import exceptions as google

        try:
            yield
        except (google.FailedPrecondition, google.InvalidArgument) as error:
            log.warning("%s: leases have ended: %s", self._name, error.message, extra=event("consume.late"))


def _parts(ack_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ack_ids), _MOST_IDS):
        yield ack_ids[start : start + _MOST_IDS]
