"""The scripted Pub/Sub at the wire, asked by the generated client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from types import MappingProxyType

import grpc
import pytest
from google.api_core.exceptions import (
    DeadlineExceeded,
    FailedPrecondition,
    GoogleAPICallError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ServiceUnavailable,
)
from google.pubsub_v1 import PublisherClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.types import PubsubMessage

from tests.bed.waiting import wait_until
from tests.fakes.publisher_server import (
    ANSWER_LOST,
    PERMISSION_DENIED,
    POISON,
    UNAVAILABLE,
    Disconnect,
    Published,
    PublisherServer,
    Stall,
    Status,
    holding,
)

TOPIC = "projects/p/topics/runs"
SOON = timedelta(seconds=60)
SHORT = 1.0
"""Seconds for a request over an open connection to arrive."""
Publish = Callable[..., list[str]]


@pytest.fixture
def server() -> Iterator[PublisherServer]:
    with PublisherServer(TOPIC) as running:
        yield running


@pytest.fixture
def publish(server: PublisherServer) -> Iterator[Publish]:
    """Publish messages in one attempt, and return their ids."""
    # Back at once after a refused connection: otherwise the channel fails by itself for a second and more.
    options = [("grpc.initial_reconnect_backoff_ms", 10), ("grpc.max_reconnect_backoff_ms", 10)]
    with grpc.insecure_channel(server.address, options) as channel:
        client = PublisherClient(transport=PublisherGrpcTransport(channel=channel))

        def call(*messages: PubsubMessage, topic: str = TOPIC, timeout: float = 10) -> list[str]:
            answer = client.publish(topic=topic, messages=list(messages), retry=None, timeout=timeout)
            return list(answer.message_ids)

        yield call


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def message(data: bytes = b"x", key: str = "", attributes: Mapping[str, str] = MappingProxyType({})) -> PubsubMessage:
    return PubsubMessage(data=data, attributes=dict(attributes), ordering_key=key)


def stored(server: PublisherServer) -> list[bytes]:
    return [each.data for each in server.stored]


def is_poison(published: Published) -> bool:
    return published.data == b"poison"


def test_messages_are_stored_as_they_came(server: PublisherServer, publish: Publish) -> None:
    """In order, with an id for each."""
    assert publish(message(b"1", "k", {"a": "ü"}), message(b"2", "k")) == ["1", "2"]
    assert publish(message(b"\x00\xff")) == ["3"]

    assert server.stored == [
        (TOPIC, "k", b"1", {"a": "ü"}),
        (TOPIC, "k", b"2", {}),
        (TOPIC, "", b"\x00\xff", {}),
    ]


def test_a_request_is_recorded(server: PublisherServer, publish: Publish) -> None:
    """What it was, when it was, and what became of it."""
    publish(message(b"x" * 1_000, "k"), message(b"y" * 1_000, "k"))
    [request] = server.requests

    assert (request.topic, request.messages, request.ordering_key) == (TOPIC, 2, "k")
    assert 2_000 < request.size < 2_100
    assert (request.stored, request.answer) == (True, grpc.StatusCode.OK)
    assert request.until is not None
    assert request.at < request.until


def test_an_unknown_topic_is_not_found(server: PublisherServer, publish: Publish) -> None:
    """In the service's words, until it is there."""
    with pytest.raises(NotFound, match=r"Resource not found \(resource=other\)\.$"):
        publish(message(), topic="projects/p/topics/other")
    server.topics.add("projects/p/topics/other")
    publish(message(), topic="projects/p/topics/other")

    assert len(server.stored) == 1


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([], "message_count is too small"),
        (
            [message()] * 1_001,
            "message_count is too large. You passed 1001 in the request, but the maximum value is 1000",
        ),
        ([message(b"x" * 10_000_000)], "request_size is too large"),
        ([message(b"")], "One or more messages in the publish request is empty"),
        ([message(key="k" * 1_025)], "ordering_key is too large"),
        ([message(attributes={f"a{number}": "" for number in range(101)})], "attributes is too large"),
        ([message(attributes={"ü" * 129: ""})], "key that is too long. The length is 258 characters"),
        (
            [message(attributes={"name": "ü" * 513})],
            'attribute "name" in the request has a value that is too long. The length is 1026',
        ),
        ([message(attributes={"googname": ""})], 'The attribute "googname" is reserved'),
    ],
    ids=["none", "too many", "10 MB", "empty", "ordering key", "attributes", "name", "value", "goog"],
)
def test_what_is_above_the_limits_is_refused(
    server: PublisherServer, publish: Publish, messages: list[PubsubMessage], text: str
) -> None:
    """In bytes, unless the server is told to be lenient."""
    with pytest.raises(InvalidArgument) as refused:
        publish(*messages)
    assert text in str(refused.value)
    assert server.stored == []
    server.strict = False

    assert len(publish(*messages)) == len(messages)


def test_what_is_just_within_the_limits_is_taken(publish: Publish) -> None:
    """A thousand messages; the longest names and values; attributes without data."""
    publish(*[message()] * 1_000)
    publish(message(b"", attributes={"ü" * 128: "ü" * 512, **{f"a{number}": "" for number in range(99)}}))
    publish(message(b"x" * 9_990_000, "k" * 1_024))


def test_several_ordering_keys_in_a_request_are_refused(server: PublisherServer, publish: Publish) -> None:
    """As a failed precondition, unlike the other limits; no key is a key, too."""
    with pytest.raises(FailedPrecondition, match="must all have the same ordering key"):
        publish(message(key="k"), message())

    assert server.stored == []


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
@pytest.mark.parametrize("applied", [False, True])
def test_a_request_fails_with_any_status(
    server: PublisherServer, publish: Publish, code: grpc.StatusCode, applied: bool
) -> None:
    """Stored or not, as often as was said."""
    fault = server.inject(Status(code, "as the test says", stored=applied))
    with pytest.raises(GoogleAPICallError) as failed:
        publish(message(b"1"))
    publish(message(b"2"))

    assert failed.value.grpc_status_code is code
    assert failed.value.message == "as the test says"
    assert fault.fired == 1
    assert stored(server) == ([b"1", b"2"] if applied else [b"2"])
    assert [(request.stored, request.answer) for request in server.requests] == [
        (applied, code),
        (True, grpc.StatusCode.OK),
    ]


def test_a_fault_meets_the_requests_it_is_meant_for(server: PublisherServer, publish: Publish) -> None:
    """After some were let through, and never another."""
    fault = server.inject(UNAVAILABLE, times=None, on=lambda request: request.ordering_key == "k", skip=1)
    publish(message(key="k"))
    for _ in range(2):
        publish(message(key="other"))
        with pytest.raises(ServiceUnavailable):
            publish(message(key="k"))

    assert fault.fired == 2


def test_the_first_fault_decides(server: PublisherServer, publish: Publish) -> None:
    """The next one is left for the next request."""
    server.inject(UNAVAILABLE)
    server.inject(PERMISSION_DENIED)
    with pytest.raises(ServiceUnavailable):
        publish(message())
    with pytest.raises(PermissionDenied):
        publish(message())


def test_one_poison_message_fails_its_request(server: PublisherServer, publish: Publish) -> None:
    """The answer does not say which it was."""
    poison = server.inject(POISON, times=None, on=holding(is_poison))
    with pytest.raises(InvalidArgument, match=r"400 Request contains an invalid argument\.$"):
        publish(message(b"1"), message(b"poison"), message(b"2"))
    publish(message(b"1"), message(b"2"))

    assert poison.fired == 1
    assert stored(server) == [b"1", b"2"]


def test_a_refused_request_has_lost_no_answer(server: PublisherServer, publish: Publish) -> None:
    """A fault that comes after storing waits for a request that is stored."""
    lost = server.inject(ANSWER_LOST)
    stall = server.inject(Stall(0, stored=True))
    with pytest.raises(InvalidArgument):
        publish(message(b""))
    assert (lost.fired, stall.fired) == (0, 0)
    with pytest.raises(DeadlineExceeded):
        publish(message())

    assert (lost.fired, stall.fired) == (1, 1)


@pytest.mark.parametrize("applied", [False, True])
def test_a_connection_is_closed(server: PublisherServer, publish: Publish, applied: bool) -> None:
    """Without an answer, and clients may open another."""
    fault = server.inject(Disconnect(stored=applied))
    with pytest.raises(ServiceUnavailable):
        publish(message(b"1"))
    # The next call may still be given to the connection that is breaking.
    wait_until(lambda: succeeds(publish, message(b"2")), SOON, "the channel to connect again")

    assert fault.fired == 1
    assert stored(server) == ([b"1", b"2"] if applied else [b"2"])
    assert [request.answer for request in server.requests] == [None, grpc.StatusCode.OK]


@pytest.mark.parametrize("applied", [False, True])
def test_a_stall_lasts_until_it_is_released(
    server: PublisherServer, publish: Publish, threads: ThreadPoolExecutor, applied: bool
) -> None:
    """Before the messages are stored, or after."""
    stall = server.inject(Stall(stored=applied))
    call = threads.submit(publish, message())
    wait_until(lambda: stall.fired == 1, SOON, "the stall")
    assert (len(server.stored), call.done()) == (int(applied), False)
    stall.release()

    assert call.result() == ["1"]


def test_a_client_that_left_is_not_asked(server: PublisherServer, publish: Publish) -> None:
    """What it sent is stored all the same, later."""
    publish(message(b"first"))  # connects
    stall = server.inject(Stall())
    with pytest.raises(DeadlineExceeded):
        publish(message(b"late"), timeout=SHORT)
    server.wait_fired(stall)
    publish(message(b"early"))
    stall.release()
    wait_until(lambda: len(server.stored) == 3, SOON, "the message of the client that left")

    assert stored(server) == [b"first", b"early", b"late"]
    assert [request.answer for request in server.requests] == [grpc.StatusCode.OK, None, grpc.StatusCode.OK]


def test_a_slow_failure_is_a_stall_and_a_status(server: PublisherServer, publish: Publish) -> None:
    """Both happen."""
    faults = [server.inject(fault) for fault in (Stall(0.01), UNAVAILABLE)]
    with pytest.raises(ServiceUnavailable):
        publish(message())

    assert [fault.fired for fault in faults] == [1, 1]


def test_every_request_takes_the_latency(server: PublisherServer, publish: Publish) -> None:
    """At least that."""
    server.latency = 0.05
    publish(message())
    [request] = server.requests

    assert request.until is not None
    assert request.until - request.at >= server.latency


@pytest.mark.parametrize("fault", [Stall(), Stall(stored=True)])
def test_a_server_that_goes_down_breaks_what_is_under_way(
    server: PublisherServer, publish: Publish, threads: ThreadPoolExecutor, fault: Stall
) -> None:
    """What was not stored never will be."""
    stall = server.inject(fault)
    call = threads.submit(publish, message())
    wait_until(lambda: stall.fired == 1, SOON, "the stall")
    server.down()

    assert isinstance(call.exception(), ServiceUnavailable)
    assert len(server.stored) == int(fault.stored)
    assert [request.answer for request in server.requests] == [None]


def test_a_server_that_is_down_refuses_and_comes_back(server: PublisherServer, publish: Publish) -> None:
    """On the same port, with what it had stored."""
    publish(message(b"1"))
    address = server.address
    server.down()
    server.down()
    with pytest.raises(ServiceUnavailable):
        publish(message(b"2"))
    server.up()
    server.up()
    wait_until(lambda: succeeds(publish, message(b"3")), SOON, "the channel to connect again")

    assert server.address == address
    assert stored(server) == [b"1", b"3"]


def test_the_most_requests_under_way_are_known(
    server: PublisherServer, publish: Publish, threads: ThreadPoolExecutor
) -> None:
    """In all, and of any group."""
    assert server.max_concurrency() == 0
    stall = server.inject(Stall(), times=3)
    calls = [threads.submit(publish, message(key=key)) for key in ("a", "a", "b")]
    wait_until(lambda: stall.fired == 3, SOON, "three requests")
    assert server.max_concurrency() == 3
    stall.release()
    for call in calls:
        call.result()

    assert server.max_concurrency() == 3
    assert server.max_concurrency(by=lambda request: request.ordering_key) == 2


def test_one_after_the_other_is_not_at_the_same_time(server: PublisherServer, publish: Publish) -> None:
    """Neither after an answer, nor after a client has given up on one."""
    publish(message())
    stall = server.inject(Stall())
    with pytest.raises(DeadlineExceeded):
        publish(message(), timeout=SHORT)
    server.wait_fired(stall)
    wait_until(lambda: server.requests[-1].until is not None, SOON, "the server to learn of it")
    publish(message())

    assert server.max_concurrency() == 1


def test_a_mistake_of_the_test_is_raised_when_the_server_is_left() -> None:
    """The client gets an error of the server's, which could pass for a fault."""
    with ExitStack() as stack:
        server = stack.enter_context(PublisherServer(TOPIC))
        channel = stack.enter_context(grpc.insecure_channel(server.address))
        client = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        server.inject(UNAVAILABLE, on=lambda request: request.content[7].data == b"")
        with pytest.raises(GoogleAPICallError):
            client.publish(topic=TOPIC, messages=[message()], retry=None, timeout=10)

        with pytest.raises(IndexError):
            stack.close()


def succeeds(publish: Publish, *messages: PubsubMessage) -> bool:
    try:
        publish(*messages)
    except ServiceUnavailable:
        return False
    return True
