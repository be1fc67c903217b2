"""A subscription of Google Cloud Pub/Sub, by the generated client: one request for each call, no retries inside.

The streaming client of google-cloud-pubsub keeps threads, leases and a schedule of its own, and does not end when it is
told to.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC
from typing import TYPE_CHECKING, Any, Self

from job.access import Access
from job.credentials import HOST_AND_PORT, GoogleCredentials, emulator
from job.errors import ActionNeeded, Forbidden, Unauthorized, Unavailable, UsageError, WatcherError
from job.logs import event
from job.ports import Received

if TYPE_CHECKING:  # importing it takes 0.8 s
    from google.pubsub_v1 import SubscriberClient

# https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names
_NAME = re.compile(
    r"projects/[a-z](?:[a-z0-9.:-]{0,98}[a-z0-9])?/subscriptions/(?!goog)[A-Za-z][A-Za-z0-9._~+%-]{2,254}"
)
_CALL_SECONDS = 3.0
"""For what is told, so that all that must be told at the end fits into the grace of Kubernetes."""
_MOST_BYTES = 400_000
"""Of ack ids in a request, whose limit is 512 KiB. <https://cloud.google.com/pubsub/quotas#resource_limits>"""
_MOST_PER_PULL = 1000
_TO_EMULATOR = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1))

log = logging.getLogger(__name__)


class PubSubSubscription:
    """One subscription, by its full name."""

    def __init__(self, name: str, credentials: GoogleCredentials) -> None:
        self._name = name
        self._credentials = credentials
        self._emulator = emulator("PUBSUB_EMULATOR_HOST", HOST_AND_PORT)
        self._client: SubscriberClient | None = None
        self._connected = False
        # gRPC's core writes lines of its own to stderr, about connections that a server closes; read at its import.
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

    @classmethod
    def at(cls, name: str, access: Access) -> Self:
        """The subscription `projects/PROJECT/subscriptions/NAME`. Raises `UsageError`."""
        if not _NAME.fullmatch(name):
            message = f"the subscription {name!r} is not projects/PROJECT/subscriptions/NAME"
            raise UsageError(message)
        return cls(name, access.google)

    def open(self) -> None:
        """Fetch the credentials, and make the client."""
        import grpc
        from google.pubsub_v1 import SubscriberClient
        from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

        if self._emulator:
            channel = grpc.insecure_channel(self._emulator, _TO_EMULATOR)
            transport = SubscriberGrpcTransport(channel=channel)
        else:
            transport = SubscriberGrpcTransport(credentials=self._credentials.get())
        self._client = SubscriberClient(transport=transport)

        def note(state: grpc.ChannelConnectivity) -> None:
            if state in {grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE}:
                self._connected = state is grpc.ChannelConnectivity.READY

        transport.grpc_channel.subscribe(note, try_to_connect=True)

    def pull(self, most: int, timeout: float) -> Sequence[Received]:
        """Send one request; that nothing comes is told by the deadline, or by an empty answer."""
        from google.api_core.exceptions import DeadlineExceeded
        from google.pubsub_v1.types import PullResponse

        try:
            answer = self._call("pull", max_messages=min(most, _MOST_PER_PULL), timeout=timeout)
        except Unavailable as error:
            if isinstance(error.__cause__, DeadlineExceeded) and self._connected:
                return []
            raise
        return [
            Received(
                each.ack_id,
                each.message.message_id,
                dict(each.message.attributes),
                each.message.data,
                each.message.publish_time.ToDatetime(UTC),
                each.message.ordering_key,
            )
            for each in PullResponse.pb(answer).received_messages
        ]

    def extend(self, ack_ids: Sequence[str], seconds: int) -> None:
        """Move their ack deadline."""
        for some in _requests(ack_ids):
            self._tell("modify_ack_deadline", ack_ids=some, ack_deadline_seconds=seconds)

    def acknowledge(self, ack_ids: Sequence[str]) -> None:
        """Acknowledge them."""
        for some in _requests(ack_ids):
            self._tell("acknowledge", ack_ids=some)

    def refuse(self, ack_ids: Sequence[str]) -> None:
        """Let their ack deadline end now, which is what a nack is: the retry policy says when they come again."""
        self.extend(ack_ids, 0)

    def _tell(self, method: str, **parameters: Any) -> None:  # noqa: ANN401 - of the generated client
        from google.api_core.exceptions import FailedPrecondition, InvalidArgument

        try:
            self._call(method, timeout=_CALL_SECONDS, **parameters)
        except ActionNeeded as error:
            # A subscription with exactly-once delivery refuses ids whose lease has ended; the valid ones are taken.
            if not isinstance(error.__cause__, (FailedPrecondition, InvalidArgument)):
                raise
            log.warning("%s; these messages come again", error, extra=event("subscription.lease_lost"))

    def _call(self, method: str, **parameters: Any) -> Any:  # noqa: ANN401 - of the generated client
        from google.api_core.exceptions import GoogleAPICallError

        request: Callable[..., object] = getattr(self._client, method)
        timeout = parameters.pop("timeout")
        try:
            return request(request={"subscription": self._name, **parameters}, timeout=timeout, retry=None)
        except GoogleAPICallError as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> WatcherError:
        from google.api_core import exceptions as google

        name, said = self._name, getattr(error, "message", "")
        if isinstance(error, google.NotFound):
            return ActionNeeded(f"{name} does not exist: create it, or correct --subscription ({said})")
        if isinstance(error, google.PermissionDenied):
            return Forbidden(f"the credentials may not consume {name}: grant roles/pubsub.subscriber ({said})")
        if isinstance(error, google.Unauthenticated):
            return Unauthorized(f"{name} refused the credentials: {said}")
        if isinstance(error, (google.FailedPrecondition, google.InvalidArgument, google.MethodNotImplemented)):
            return ActionNeeded(f"{name} cannot be consumed until somebody mends it: {said}")
        return Unavailable(f"{name} did not answer: {type(error).__name__}: {said}")


def _requests(ack_ids: Sequence[str]) -> Iterator[list[str]]:
    """Parts that fit into a request."""
    part: list[str] = []
    size = 0
    for ack_id in ack_ids:
        if part and size + len(ack_id) > _MOST_BYTES:
            yield part
            part, size = [], 0
        part.append(ack_id)
        size += len(ack_id) + 4
    if part:
        yield part
