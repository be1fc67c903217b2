"""Tests of messages in Pub/Sub."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import timedelta

import grpc
import msgspec
import pytest

from job.credentials import GoogleCredentials
from job.errors import ActionNeeded, Forbidden, Refused, Unauthorized, Unavailable, UsageError, WatcherError
from job.message import Message
from job.ports import Sink
from job.run.deadline import Deadline
from job.settings import Address
from job.sinks.pubsub import PubSubSink
from tests.bed.pubsub import PubSub, Subscription, cloud_event
from tests.bed.waiting import wait_until
from tests.contracts.sink import TIMEOUT, ReadBack, SinkContract, message
from tests.fakes.access import nobody
from tests.fakes.publisher_server import ANSWER_LOST, Disconnect, Fault, PublisherServer, Stall, Status

TOPIC = "projects/p/topics/changes"
KEYS = 4
SHORT = 2.0
SOON = timedelta(seconds=20)
Code = grpc.StatusCode
_topics = (f"changes-{number}" for number in itertools.count(1))


def sink_to(topic: str, address: str, monkeypatch: pytest.MonkeyPatch, *, ordering: int = 0) -> PubSubSink:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", address)
    sink = PubSubSink(topic, GoogleCredentials(Deadline(timedelta())), ordering=ordering)
    sink.open()
    return sink


@pytest.fixture
def topic(any_pubsub: PubSub) -> str:
    return any_pubsub.create_topic(next(_topics))


class TestPubSubSink(SinkContract):
    """With ordering keys: without them Pub/Sub has no order that could be asked for."""

    @pytest.fixture
    def subscription(self, any_pubsub: PubSub, topic: str) -> Subscription:
        return any_pubsub.create_subscription(topic, ordered=True)

    @pytest.fixture
    def sink(self, any_pubsub: PubSub, topic: str, subscription: Subscription, monkeypatch: pytest.MonkeyPatch) -> Sink:
        return sink_to(topic, any_pubsub.address, monkeypatch, ordering=KEYS)

    @pytest.fixture
    def broken(self, any_pubsub: PubSub, monkeypatch: pytest.MonkeyPatch) -> Sink:
        return sink_to("projects/p/topics/nothing", any_pubsub.address, monkeypatch)

    @pytest.fixture
    def stored(self, subscription: Subscription) -> ReadBack:
        return lambda: [cloud_event(received) for received in subscription.drain()]

    def test_a_lane_is_an_ordering_key(self, sink: Sink, subscription: Subscription) -> None:
        """Its name begins with the source, so that clusters that share a topic do not share keys."""
        sink.publish(3, [message(1)], TIMEOUT)

        (received,) = subscription.pull(1)
        assert received.ordering_key == "/clusters/c/apis/argoproj.io/v1alpha1/workflows/3"


def test_without_ordering_there_are_no_keys(any_pubsub: PubSub, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key would bind the throughput, and nobody has asked for one."""
    subscription = any_pubsub.create_subscription(topic)
    sink = sink_to(topic, any_pubsub.address, monkeypatch)
    sink.publish(3, [message(1), message(2)], TIMEOUT)

    assert sorted((found.ordering_key, cloud_event(found).id) for found in subscription.pull(2)) == [
        ("", "uid/1"),
        ("", "uid/2"),
    ]


def test_a_message_is_a_cloud_event_in_binary_mode(
    any_pubsub: PubSub, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attribute under its name with `ce-`, the content type under both of its names, the data as it is."""
    subscription = any_pubsub.create_subscription(topic)
    sink = sink_to(topic, any_pubsub.address, monkeypatch)
    sink.publish(0, [message(1, b'{"a": 1.50}')], TIMEOUT)

    (received,) = subscription.pull(1)
    assert received.data == b'{"a": 1.50}'
    assert received.attributes == {
        "ce-specversion": "1.0",
        "ce-id": "uid/1",
        "ce-source": "/clusters/c/apis/argoproj.io/v1alpha1/workflows",
        "ce-type": "io.argoproj.workflows.modified",
        "ce-subject": 'argo/ü \u2028 "name"',
        "ce-datacontenttype": "application/json",
        "content-type": "application/json",
    }


def test_a_filter_finds_a_phase(pstest: PubSub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attributes are what subscriptions can choose by."""
    topic = pstest.create_topic(next(_topics))
    failed = pstest.create_subscription(topic, filter='attributes.ce-phase = "Failed"')
    sink = sink_to(topic, pstest.address, monkeypatch)
    sink.publish(0, [with_attribute(1, "phase", "Succeeded"), with_attribute(2, "phase", "Failed")], TIMEOUT)

    assert [cloud_event(found).id for found in failed.drain()] == ["uid/2"]


def test_a_missing_topic_is_for_a_person(any_pubsub: PubSub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else will create it; its name is told."""
    sink = sink_to("projects/p/topics/nowhere", any_pubsub.address, monkeypatch)
    with pytest.raises(ActionNeeded, match="projects/p/topics/nowhere does not exist"):
        sink.publish(0, [message(1)], TIMEOUT)


@pytest.fixture
def server() -> Iterator[PublisherServer]:
    with PublisherServer(TOPIC) as running:
        yield running


@pytest.fixture
def sink(server: PublisherServer, monkeypatch: pytest.MonkeyPatch) -> PubSubSink:
    return sink_to(TOPIC, server.address, monkeypatch)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (Code.NOT_FOUND, ActionNeeded),
        (Code.PERMISSION_DENIED, Forbidden),
        (Code.UNAUTHENTICATED, Unauthorized),
        (Code.FAILED_PRECONDITION, ActionNeeded),
        (Code.UNIMPLEMENTED, ActionNeeded),
        (Code.INVALID_ARGUMENT, Refused),
        (Code.OUT_OF_RANGE, Refused),
        (Code.ABORTED, Unavailable),
        (Code.CANCELLED, Unavailable),
        (Code.DEADLINE_EXCEEDED, Unavailable),
        (Code.INTERNAL, Unavailable),
        (Code.RESOURCE_EXHAUSTED, Unavailable),
        (Code.UNAVAILABLE, Unavailable),
        (Code.UNKNOWN, Unavailable),
        (Code.DATA_LOSS, Unavailable),
        (Code.ALREADY_EXISTS, Unavailable),
    ],
)
def test_every_status_says_who_can_mend_it(
    server: PublisherServer, sink: PubSubSink, code: grpc.StatusCode, error: type[WatcherError]
) -> None:
    """A person, nobody, or the message itself; one request, and what the service said is told."""
    server.inject(Status(code, "said by the service"))
    with pytest.raises(WatcherError, match="said by the service") as raised:
        sink.publish(0, [message(1), message(2)], TIMEOUT)

    assert type(raised.value) is error
    assert TOPIC in str(raised.value)
    assert len(server.requests) == 1
    assert server.stored == []


def test_a_refused_batch_names_all_its_messages(server: PublisherServer, sink: PubSubSink) -> None:
    """The service does not say which one it was."""
    server.inject(Status(Code.INVALID_ARGUMENT, "wrong"))
    with pytest.raises(Refused) as refused:
        sink.publish(0, [message(1), message(2)], TIMEOUT)

    assert refused.value.ids == ["uid/1", "uid/2"]


@pytest.mark.parametrize(
    "fault", [ANSWER_LOST, Disconnect(), Disconnect(stored=True), Stall(), Stall(stored=True)], ids=str
)
def test_without_an_answer_it_is_unknown_what_was_stored(
    server: PublisherServer, sink: PubSubSink, fault: Fault
) -> None:
    """It is unavailable, and the same batch may be published again."""
    broken = server.inject(fault)
    with pytest.raises(Unavailable):
        sink.publish(0, [message(1)], SHORT)
    assert broken.fired == 1
    broken.release()

    wait_until(lambda: is_taken(sink, message(1)), SOON, "the sink to be available again")
    assert {stored.attributes["ce-id"] for stored in server.stored} == {"uid/1"}


def test_a_broker_that_comes_back_is_found_again(server: PublisherServer, sink: PubSubSink) -> None:
    """Refused at once while it is down; the same client goes on with the one that is up."""
    server.down()
    for _ in range(3):
        with pytest.raises(Unavailable):
            sink.publish(0, [message(1)], SHORT)
    server.up()

    wait_until(lambda: is_taken(sink, message(1)), SOON, "the sink to be available again")
    assert [stored.attributes["ce-id"] for stored in server.stored] == ["uid/1"]


def is_taken(sink: PubSubSink, wanted: Message) -> bool:
    """Right after a connection was cut, gRPC may fail another request."""
    try:
        sink.publish(0, [wanted], TIMEOUT)
    except Unavailable:
        return False
    return True


def with_attribute(number: int, name: str, value: str) -> Message:
    plain = message(number)
    return msgspec.structs.replace(plain, attributes=plain.attributes | {name: value})


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (with_attribute(7, "phase", "x" * 1025), "ce-phase has 1025 bytes"),
        (with_attribute(7, "phase", "ü" * 513), "ce-phase has 1026 bytes"),
        (with_attribute(7, "x" * 254, "value"), "cannot be called ce-xxx"),
        (
            msgspec.structs.replace(
                message(7),
                attributes={"id": "uid/7", "source": "/c"}
                | dict.fromkeys((f"a{number}" for number in range(100)), "value")
                | {"datacontenttype": "application/json"},
            ),
            "104 attributes",
        ),
        (message(7, b"x" * 10_000_001), "10000513 bytes"),
    ],
    ids=["value", "value in bytes", "name", "attributes", "size"],
)
def test_what_the_service_would_refuse_is_refused_here(
    server: PublisherServer, sink: PubSubSink, wrong: Message, complaint: str
) -> None:
    """The service refuses it, without saying which message it was: here nothing is sent, and the message is named."""
    with pytest.raises(Refused, match=complaint) as refused:
        sink.publish(0, [message(1), wrong, message(2)], TIMEOUT)
    assert refused.value.ids == ["uid/7"]
    assert server.requests == []

    sink.publish(0, [message(1), message(2)], TIMEOUT)
    assert len(server.stored) == 2


def test_the_limits_themselves_are_allowed(server: PublisherServer, sink: PubSubSink) -> None:
    """By us as by the service."""
    sink.publish(0, [with_attribute(1, "phase", "x" * 1024), with_attribute(2, "x" * 253, "value")], TIMEOUT)

    assert len(server.stored) == 2


def test_an_ordering_key_has_a_limit(server: PublisherServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that just fits leaves no room for the lane."""
    sink = sink_to(TOPIC, server.address, monkeypatch, ordering=KEYS)
    with pytest.raises(Refused, match="ordering key"):
        sink.publish(0, [with_attribute(1, "source", "/" * 1024)], TIMEOUT)
    assert server.requests == []


@pytest.mark.parametrize("emulator", ["localhost", "http://localhost:8085", ":8085", "localhost:port"])
def test_an_emulator_that_cannot_be_is_a_usage_error(emulator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be tried again for ever."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", emulator)
    with pytest.raises(UsageError, match="PUBSUB_EMULATOR_HOST"):
        PubSubSink.at(Address("pubsub", "//p/changes"), nobody())
