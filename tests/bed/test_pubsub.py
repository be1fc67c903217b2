"""Both Pub/Sub servers do what the bed promises of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from google.api_core.exceptions import DeadlineExceeded, InvalidArgument, NotFound, ServiceUnavailable
from google.pubsub_v1.types import PubsubMessage

from tests.bed.pubsub import PubSub, Received, cloud_event

_NOT_LONG = timedelta(seconds=3)


def prepared(kind: str, folder: Path) -> PubSub:
    if kind == "pstest":
        return PubSub.pstest(folder)
    official = PubSub.official(folder)
    if official is None:
        pytest.skip(
            "Google's Pub/Sub emulator is not here: it needs Java and gcloud with its component pubsub-emulator"
        )
    return official


@pytest.fixture(params=["official", "pstest"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["official", "pstest"])
def pubsub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PubSub]:
    with prepared(request.param, tmp_path_factory.mktemp("pubsub")) as running:
        yield running


@pytest.fixture
def topic(pubsub: PubSub, request: pytest.FixtureRequest) -> str:
    """A topic for the test alone."""
    return pubsub.create_topic(request.node.originalname)


def publish(pubsub: PubSub, topic: str, *messages: PubsubMessage) -> list[str]:
    return list(pubsub.publisher.publish(topic=topic, messages=list(messages), retry=None, timeout=10).message_ids)


def numbered(count: int, data: bytes = b"x", ordering_key: str = "") -> list[PubsubMessage]:
    return [
        PubsubMessage(data=data, attributes={"number": str(number)}, ordering_key=ordering_key)
        for number in range(count)
    ]


def numbers(received: list[Received]) -> list[int]:
    return [int(each.attributes["number"]) for each in received]


def test_a_message_is_received_as_it_was_published(pubsub: PubSub, topic: str) -> None:
    """Data, attributes and the id that the publisher was told."""
    subscription = pubsub.create_subscription(topic)
    [number] = publish(pubsub, topic, PubsubMessage(data=b"\x00\xff", attributes={"name": "ü"}))

    assert subscription.pull(1) == [Received(number, b"\x00\xff", {"name": "ü"}, "")]


def test_what_was_received_is_acknowledged(pubsub: PubSub, topic: str) -> None:
    """Neither pull nor drain gives it again."""
    subscription = pubsub.create_subscription(topic)
    publish(pubsub, topic, *numbered(2))
    subscription.pull(2)

    assert subscription.drain() == []


def test_every_subscription_gets_every_message(pubsub: PubSub, topic: str) -> None:
    """One does not take from another."""
    subscriptions = [pubsub.create_subscription(topic) for _ in range(2)]
    publish(pubsub, topic, *numbered(3))

    assert [sorted(numbers(each.drain())) for each in subscriptions] == [[0, 1, 2]] * 2


def test_too_few_messages_are_counted(pubsub: PubSub, topic: str) -> None:
    """The error says how many came, and from where."""
    subscription = pubsub.create_subscription(topic)
    publish(pubsub, topic, *numbered(1))

    with pytest.raises(TimeoutError, match=f"^1 of 2 messages after 3 s from {subscription.name}$"):
        subscription.pull(2, within=_NOT_LONG)


def test_a_missing_topic_is_not_found(pubsub: PubSub, topic: str) -> None:
    """Also one that was there before."""
    pubsub.delete_topic(topic)

    with pytest.raises(NotFound):
        publish(pubsub, topic, *numbered(1))


def test_an_ordered_subscription_keeps_the_order_of_each_key(pubsub: PubSub, topic: str) -> None:
    """Over many replies, since a key's next message may come only after the acknowledgement."""
    subscription = pubsub.create_subscription(topic, ordered=True)
    for number in range(50):
        for key in "abc":
            publish(pubsub, topic, PubsubMessage(data=b"x", attributes={"number": str(number)}, ordering_key=key))
    received = defaultdict(list)
    for each in subscription.drain():
        received[each.ordering_key].append(each)

    assert {key: numbers(messages) for key, messages in received.items()} == {key: [*range(50)] for key in "abc"}


def test_a_large_backlog_is_drained(pubsub: PubSub, topic: str) -> None:
    """3,000 messages of 6 KB, above what gRPC takes in one reply unless it is told."""
    subscription = pubsub.create_subscription(topic)
    batch = numbered(500, b"x" * 6_000)
    published = [number for _ in range(6) for number in publish(pubsub, topic, *batch)]

    assert sorted(each.message_id for each in subscription.drain()) == sorted(published)


def test_pstest_filters(tmp_path: Path) -> None:
    """A subscription gets what its filter lets through, and a filter that cannot be read is refused."""
    with PubSub.pstest(tmp_path) as pubsub:
        topic = pubsub.create_topic("filtered")
        subscription = pubsub.create_subscription(topic, filter='attributes.number = "1"')
        publish(pubsub, topic, *numbered(3))

        assert numbers(subscription.drain()) == [1]
        with pytest.raises(InvalidArgument):
            pubsub.create_subscription(topic, filter="nonsense ===")


def test_a_stopped_server_starts_anew(kind: str, tmp_path: Path) -> None:
    """What it knew is gone, and the address is that of the new one."""
    pubsub = prepared(kind, tmp_path)
    with pubsub:
        topic = pubsub.create_topic("gone")
        pubsub.start()

        with pytest.raises(NotFound):
            publish(pubsub, topic, *numbered(1))
        assert pubsub.create_topic("gone") == topic
    with pytest.raises(RuntimeError, match="start it first"):
        pubsub.create_topic("gone")


def test_a_server_hangs_and_goes_on(pubsub: PubSub, topic: str) -> None:
    """Frozen it says nothing; then it does what it was asked."""
    subscription = pubsub.create_subscription(topic)
    with pubsub.frozen(), pytest.raises(DeadlineExceeded):
        pubsub.publisher.publish(topic=topic, messages=numbered(1), retry=None, timeout=0.5)
    publish(pubsub, topic, PubsubMessage(data=b"after"))

    assert b"after" in [each.data for each in subscription.drain()]


def test_a_killed_server_is_away(kind: str, tmp_path: Path) -> None:
    """Its connections are refused."""
    with prepared(kind, tmp_path) as pubsub:
        topic = pubsub.create_topic("killed")
        pubsub.server.kill()

        with pytest.raises(ServiceUnavailable):
            publish(pubsub, topic, *numbered(1))


def test_a_drain_misses_nothing_that_a_slow_server_had_sent(tmp_path: Path) -> None:
    """Messages in a reply that came too late are waited for until they are delivered again."""
    with PubSub.pstest(tmp_path) as pubsub:
        topic = pubsub.create_topic("slow")
        subscription = pubsub.create_subscription(topic)
        publish(pubsub, topic, *numbered(3))
        with pubsub.frozen(), pytest.raises(TimeoutError):
            subscription.pull(3, within=_NOT_LONG)

        assert sorted(numbers(subscription.drain())) == [0, 1, 2]


def test_the_name_says_which_server_it_is(pubsub: PubSub) -> None:
    """In words, for a report."""
    assert pubsub.name.startswith(("Google's Pub/Sub emulator ", "pstest "))


def test_a_cloud_event_in_binary_mode_is_read() -> None:
    """The prefixed attributes are the event's, the others of Pub/Sub; the key is not there."""
    received = Received("7", b"{}", {"ce-specversion": "1.0", "ce-id": "u/1", "content-type": "application/json"}, "k")
    event = cloud_event(received)

    assert (event.attributes, event.data, event.key) == ({"specversion": "1.0", "id": "u/1"}, b"{}", "")


def test_what_is_no_cloud_event_is_not_read() -> None:
    """A message without ce-specversion is a mistake of the publisher's."""
    with pytest.raises(ValueError, match="no CloudEvent in binary mode"):
        cloud_event(Received("7", b"{}", {"content-type": "application/json"}, ""))
