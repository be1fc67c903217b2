"""Tests of subscriptions in Pub/Sub."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.pubsub_v1.types import (
    AcknowledgeRequest,
    ModifyAckDeadlineRequest,
    PubsubMessage,
    PullRequest,
)

from job.credentials import GoogleCredentials
from job.errors import ActionNeeded, Forbidden, Unauthorized, Unavailable, UsageError, WatcherError
from job.ports import Subscription
from job.run.deadline import Deadline
from job.subscriptions.pubsub import PubSubSubscription
from job.wiring import subscription as wired
from tests.bed.process import free_port
from tests.bed.pubsub import PubSub
from tests.contracts.subscription import LONG, SHORT, Publish, SubscriptionContract, pulled
from tests.fakes.access import nobody

NAME = "projects/p/subscriptions/changes"
Code = grpc.StatusCode
_topics = (f"subscribed-{number}" for number in itertools.count(1))


def subscription_to(name: str, address: str, monkeypatch: pytest.MonkeyPatch) -> PubSubSubscription:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", address)
    subscription = PubSubSubscription(name, GoogleCredentials(Deadline(timedelta())))
    subscription.open()
    return subscription


@pytest.fixture
def topic(any_pubsub: PubSub) -> str:
    return any_pubsub.create_topic(next(_topics))


class TestPubSubSubscription(SubscriptionContract):
    @pytest.fixture
    def subscription(self, any_pubsub: PubSub, topic: str, monkeypatch: pytest.MonkeyPatch) -> Subscription:
        return subscription_to(any_pubsub.create_subscription(topic).name, any_pubsub.address, monkeypatch)

    @pytest.fixture
    def publish(self, any_pubsub: PubSub, topic: str, subscription: Subscription) -> Publish:
        def publish(attributes: Mapping[str, str], data: bytes) -> None:
            message = PubsubMessage(data=data, attributes=dict(attributes))
            any_pubsub.publisher.publish(topic=topic, messages=[message], retry=None, timeout=10)

        return publish


def test_the_ordering_key_is_told(any_pubsub: PubSub, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who processes must know what the broker keeps in order."""
    name = any_pubsub.create_subscription(topic, ordered=True).name
    subscription = subscription_to(name, any_pubsub.address, monkeypatch)
    any_pubsub.publisher.publish(topic=topic, messages=[PubsubMessage(data=b"x", ordering_key="key")], timeout=10)

    assert [each.ordering_key for each in pulled(subscription, 1)] == ["key"]


def test_with_exactly_once_delivery_a_lost_lease_is_a_warning(
    official_pubsub: PubSub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a subscription refuses ids that are no longer valid: the message comes again, which is no error here."""
    topic = official_pubsub.create_topic(next(_topics))
    name = f"projects/p/subscriptions/once-{topic.rpartition('/')[2]}"
    official_pubsub.subscriber.create_subscription(
        request={"name": name, "topic": topic, "enable_exactly_once_delivery": True}, timeout=10
    )
    subscription = subscription_to(name, official_pubsub.address, monkeypatch)
    official_pubsub.publisher.publish(topic=topic, messages=[PubsubMessage(data=b"x")], timeout=10)
    (held,) = pulled(subscription, 1)
    subscription.acknowledge([held.ack_id])
    assert caplog.records == []

    subscription.acknowledge([held.ack_id])

    assert [record.__dict__["event"] for record in caplog.records] == ["subscription.lease_lost"]


def test_nobody_there_is_not_nothing_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pull that no broker has seen must not look like an empty subscription."""
    subscription = subscription_to(NAME, f"127.0.0.1:{free_port()}", monkeypatch)
    with pytest.raises(Unavailable, match=NAME):
        subscription.pull(1, SHORT)


@dataclass
class SubscriberServer:
    """Answers as it is told, and else as a subscription with nothing in it."""

    statuses: deque[grpc.StatusCode] = field(default_factory=deque)
    requests: list[Any] = field(default_factory=list)
    address: str = ""

    def serve(self, server: grpc.Server) -> None:
        kinds = {
            "Pull": PullRequest.pb(),
            "Acknowledge": AcknowledgeRequest.pb(),
            "ModifyAckDeadline": ModifyAckDeadlineRequest.pb(),
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(self._answer, kind.FromString) for name, kind in kinds.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("google.pubsub.v1.Subscriber", methods),))
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()

    def _answer(self, request: Any, context: grpc.ServicerContext) -> bytes:  # noqa: ANN401 -- protobuf
        self.requests.append(request)
        if self.statuses:
            context.abort(self.statuses.popleft(), "said by the service")
        return b""  # as an empty message of any kind is spelt


@pytest.fixture
def server() -> Iterator[SubscriberServer]:
    running = SubscriberServer()
    server = grpc.server(ThreadPoolExecutor(4))
    running.serve(server)
    yield running
    server.stop(None).wait()


@pytest.fixture
def subscription(server: SubscriberServer, monkeypatch: pytest.MonkeyPatch) -> PubSubSubscription:
    return subscription_to(NAME, server.address, monkeypatch)


ERRORS: list[tuple[grpc.StatusCode, type[WatcherError]]] = [
    (Code.NOT_FOUND, ActionNeeded),
    (Code.PERMISSION_DENIED, Forbidden),
    (Code.UNAUTHENTICATED, Unauthorized),
    (Code.UNIMPLEMENTED, ActionNeeded),
    (Code.ABORTED, Unavailable),
    (Code.CANCELLED, Unavailable),
    (Code.INTERNAL, Unavailable),
    (Code.RESOURCE_EXHAUSTED, Unavailable),
    (Code.UNAVAILABLE, Unavailable),
    (Code.UNKNOWN, Unavailable),
    (Code.DATA_LOSS, Unavailable),
]


@pytest.mark.parametrize(
    ("code", "error"),
    [*ERRORS, (Code.FAILED_PRECONDITION, ActionNeeded), (Code.INVALID_ARGUMENT, ActionNeeded)],
)
def test_every_status_of_a_pull_says_who_can_mend_it(
    server: SubscriberServer, subscription: PubSubSubscription, code: grpc.StatusCode, error: type[WatcherError]
) -> None:
    """A person or nobody; one request, and what the service said is told."""
    server.statuses.append(code)
    with pytest.raises(WatcherError, match="said by the service") as raised:
        subscription.pull(1, LONG)

    assert type(raised.value) is error
    assert NAME in str(raised.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(("code", "error"), [*ERRORS, (Code.DEADLINE_EXCEEDED, Unavailable)])
@pytest.mark.parametrize("method", ["acknowledge", "refuse"])
def test_every_status_of_an_answer_says_so_too(
    method: str,
    server: SubscriberServer,
    subscription: PubSubSubscription,
    code: grpc.StatusCode,
    error: type[WatcherError],
) -> None:
    """As for a pull, but that time which runs out is no way to say that all is well."""
    server.statuses.append(code)
    with pytest.raises(WatcherError, match="said by the service") as raised:
        getattr(subscription, method)(["one"])

    assert type(raised.value) is error
    assert len(server.requests) == 1


def test_a_pull_that_ends_at_its_deadline_has_brought_nothing(
    server: SubscriberServer, subscription: PubSubSubscription
) -> None:
    """The service lets a pull wait until somebody gives up."""
    subscription.pull(1, SHORT)
    server.statuses.append(Code.DEADLINE_EXCEEDED)

    assert list(subscription.pull(1, SHORT)) == []


def test_many_ids_go_in_several_requests(server: SubscriberServer, subscription: PubSubSubscription) -> None:
    """A request has 512 KiB at most; every id is in one of them, once."""
    ack_ids = [f"{number:04}-{'x' * 195}" for number in range(6000)]
    subscription.acknowledge(ack_ids)

    assert [ack_id for request in server.requests for ack_id in request.ack_ids] == ack_ids
    assert len(server.requests) > 1
    assert max(request.ByteSize() for request in server.requests) < 512 * 1024


@pytest.mark.parametrize(
    "name",
    [
        "",
        "changes",
        "projects/p/topics/changes",
        "projects/P/subscriptions/changes",
        "projects/p/subscriptions/goog-changes",
        "projects/p/subscriptions/ab",
        "projects/p/subscriptions/changes/more",
        "pubsub://p/changes",
    ],
)
def test_what_is_no_name_is_a_usage_error(name: str) -> None:
    """It is told as it was written."""
    with pytest.raises(UsageError, match="is not projects/PROJECT/subscriptions/NAME"):
        wired(name, nobody())


def test_a_name_is_enough() -> None:
    """Nothing is opened yet."""
    assert isinstance(wired("projects/example.com:p/subscriptions/changes", nobody()), PubSubSubscription)
