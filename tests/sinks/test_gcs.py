"""Tests of messages as objects of Google Cloud Storage."""

from __future__ import annotations

import itertools
import json
from datetime import timedelta

import msgspec
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client

from job.credentials import GoogleCredentials
from job.errors import ActionNeeded, Forbidden, Refused, Unauthorized, Unavailable, UsageError
from job.message import Message, structured
from job.ports import Partly, Sink
from job.run.deadline import Deadline
from job.settings import Address
from job.sinks.gcs import GcsSink
from tests.bed.gcs import FakeGcsServer
from tests.contracts.sink import TIMEOUT, ReadBack, SinkContract, message, parsed
from tests.fakes.access import nobody
from tests.fakes.gcs_faults import (
    INTERNAL_ERROR,
    RATE_LIMITED,
    UNAUTHORIZED,
    UNAVAILABLE,
    Fault,
    LostResponse,
    Moment,
    Reset,
    Stall,
    denied,
    refusal,
    writes,
)
from tests.fakes.gcs_server import GcsServer

BUCKET, PREFIX = "dead", "prod/argo/"
RIGHTS = {f"storage.objects.{verb}" for verb in ("get", "list", "update", "delete")} | {"storage.buckets.get"}
"""All that are not needed."""
SHORT = 2.0
"""Enough for a fault that is silence. What is answered or cut off may take its time."""
LARGE = b'"%b"' % (b"x" * 9_000_000)
"""More than goes up in one request."""
_buckets = (f"dead-{number}" for number in itertools.count(1))


def sink_in(bucket: str, prefix: str = PREFIX) -> GcsSink:
    sink = GcsSink(bucket, prefix, GoogleCredentials(Deadline(timedelta())))
    sink.open()
    return sink


def with_id(name: str) -> Message:
    plain = message(1)
    return msgspec.structs.replace(plain, attributes=plain.attributes | {"id": name})


class TestGcsSink(SinkContract):
    @pytest.fixture
    def bucket(self, any_gcs: GcsServer | FakeGcsServer, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", any_gcs.url)
        name = next(_buckets)
        any_gcs.create_bucket(name)
        return name

    @pytest.fixture
    def sink(self, bucket: str) -> Sink:
        return sink_in(bucket)

    @pytest.fixture
    def broken(self, bucket: str) -> Sink:
        return sink_in("nowhere")

    @pytest.fixture
    def stored(self, any_gcs: GcsServer | FakeGcsServer, bucket: str) -> ReadBack:
        """In the order of their generations: objects have no other."""
        client = Client("p", AnonymousCredentials(), client_options={"api_endpoint": any_gcs.url})

        def read() -> list[Message]:
            blobs = sorted(client.list_blobs(bucket, prefix=PREFIX), key=lambda blob: int(blob.generation))
            return [each for blob in blobs for each in parsed(blob.download_as_bytes())]

        return read

    def test_what_is_stored_stays(self, sink: Sink, stored: ReadBack) -> None:
        """A repeat has the same id: it is stored, as it was told first."""
        sink.publish(0, [message(1, b'"first"')], TIMEOUT)
        sink.publish(0, [message(1, b'"second"'), message(2)], TIMEOUT)

        assert [(found.id, found.data) for found in stored()] == [("uid/1", b'"first"'), ("uid/2", b"{}")]

    def test_a_large_one_stays_too(self, sink: Sink, stored: ReadBack) -> None:
        """What goes up in pieces is only created, as the rest."""
        sink.publish(0, [message(1, LARGE)], TIMEOUT)
        sink.publish(0, [message(1, LARGE.replace(b"x", b"y"))], TIMEOUT)

        assert [found.data == LARGE for found in stored()] == [True]

    def test_a_missing_bucket_is_for_a_person(self, bucket: str) -> None:
        """Nobody else will create it."""
        with pytest.raises(ActionNeeded, match=r"bucket of gs://nowhere/prod/argo/uid/1\.json .*--dead-letter"):
            sink_in("nowhere").publish(0, [message(1)], TIMEOUT)


@pytest.fixture
def sink(gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> GcsSink:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    gcs.create_bucket(BUCKET)
    return sink_in(BUCKET)


def names(gcs: GcsServer) -> list[str]:
    return [name for _, name in gcs.objects]


def test_an_object_is_a_structured_event(sink: GcsSink, gcs: GcsServer) -> None:
    """With its content type, so that whoever serves it says what it is."""
    sink.publish(0, [message(1, b'{"a": 1.50}')], TIMEOUT)

    found = gcs.api.store.bucket(BUCKET)["prod/argo/uid/1.json"]
    assert (found.data, found.content_type) == (
        structured(message(1, b'{"a": 1.50}')),
        "application/cloudevents+json",
    )
    assert json.loads(found.data)["data"] == {"a": 1.5}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("6f1c-4e/812", "6f1c-4e/812.json"),
        ("6f1c-4e/812~2", "6f1c-4e/812~2.json"),
        ("6f1c-4e/deleted", "6f1c-4e/deleted.json"),
        ("100-200/gap", "100-200/gap.json"),
        ("6f1c-4e/Succeeded/2026-01-02T03:04:05Z", "6f1c-4e/Succeeded/2026-01-02T03%3A04%3A05Z.json"),
        ("uid/a b?*[#\r\n\\\x00ü", "uid/a%20b%3F%2A%5B%23%0D%0A%5C%00%C3%BC.json"),
        ("uid/50%", "uid/50%25.json"),
        ("../.././x", "%2E%2E/%2E%2E/%2E/x.json"),
        ("uid/..", "uid/%2E%2E.json"),
        ("uid/a..b", "uid/a..b.json"),
    ],
)
def test_an_object_is_named_by_the_id(sink: GcsSink, gcs: GcsServer, name: str, expected: str) -> None:
    """A phase is whatever the object says: it neither leads out of the folder nor hides a wildcard."""
    sink.publish(0, [with_id(name)], TIMEOUT)

    assert names(gcs) == [PREFIX + expected]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (f"//{BUCKET}/", "uid/1.json"),
        (f"//{BUCKET}/letters/", "letters/uid/1.json"),
        (f"//{BUCKET}/a b/ü/", "a b/ü/uid/1.json"),
    ],
)
def test_the_address_names_the_bucket_and_the_prefix(
    gcs: GcsServer, monkeypatch: pytest.MonkeyPatch, url: str, name: str
) -> None:
    """The prefix may be empty, and is used as it is."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    gcs.create_bucket(BUCKET)
    sink = GcsSink.at(Address("gs", url), nobody())
    sink.open()
    sink.publish(0, [message(1)], TIMEOUT)

    assert names(gcs) == [name]


@pytest.mark.parametrize(
    "url",
    [
        "",
        BUCKET,
        f"//{BUCKET}",
        f"//{BUCKET}/letters",
        f"//{BUCKET}/letters/x.json",
        f"//{BUCKET}/a\nb/",
        "//Not_A_Bucket/letters/",
        "///letters/",
        f"//{BUCKET}/{'x' * 1024}/",
    ],
)
def test_an_address_that_cannot_be_is_a_usage_error(url: str) -> None:
    """It is named, with what it should be."""
    with pytest.raises(UsageError, match="gs://BUCKET/PREFIX/"):
        GcsSink.at(Address("gs", url), nobody())


def test_there_are_no_options() -> None:
    """What stands behind a `?` would be part of no name."""
    with pytest.raises(UsageError, match="no option 'region'"):
        GcsSink.at(Address("gs", f"//{BUCKET}/", {"region": "x"}), nobody())


@pytest.mark.parametrize("data", [b"{}", LARGE], ids=["short", "long"])
def test_the_right_to_create_suffices(sink: GcsSink, gcs: GcsServer, data: bytes) -> None:
    """For a repeat too, where Cloud Storage may miss the right to replace before it looks at the precondition."""
    gcs.denied.update(RIGHTS)
    sink.publish(0, [message(1, data)], TIMEOUT)
    first = gcs.objects
    sink.publish(0, [message(1, b'"another"'), message(2)], TIMEOUT)

    assert len(first) == 1
    assert gcs.objects == {**first, (BUCKET, "prod/argo/uid/2.json"): structured(message(2))}


def test_only_creations_are_asked_for(sink: GcsSink, gcs: GcsServer) -> None:
    """One request for each message, which nothing but a first one passes."""
    sink.publish(0, [message(1), message(2)], TIMEOUT)

    assert [(request.method, request.name, request.query["ifGenerationMatch"]) for request in gcs.requests] == [
        ("POST", "prod/argo/uid/1.json", "0"),
        ("POST", "prod/argo/uid/2.json", "0"),
    ]


def test_the_missing_right_is_named_with_its_place(sink: GcsSink, gcs: GcsServer) -> None:
    """Whoever reads it can grant it."""
    gcs.denied.add("storage.objects.create")
    with pytest.raises(
        Forbidden, match=r"uid/1\.json may not be created: grant storage\.objects\.create on gs://dead/prod/argo/ "
    ):
        sink.publish(0, [message(1)], TIMEOUT)

    assert gcs.objects == {}


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (UNAUTHORIZED, Unauthorized),
        (denied("storage.objects.create"), Forbidden),
        (refusal(400, "said by the service", "invalid"), ActionNeeded),
        (refusal(404, "The specified bucket does not exist.", "notFound"), ActionNeeded),
        (refusal(408, "said by the service", "requestTimeout"), Unavailable),
        (refusal(409, "said by the service", "conflict"), Unavailable),
        (RATE_LIMITED, Unavailable),
        (INTERNAL_ERROR, Unavailable),
        (UNAVAILABLE, Unavailable),
        (refusal(200, "a proxy says so to everything", "proxy"), Unavailable),
        (Reset(), Unavailable),
        (Reset(Moment.IN_UPLOAD), Unavailable),
    ],
    ids=str,
)
def test_every_failure_says_who_can_mend_it(
    sink: GcsSink, gcs: GcsServer, fault: Fault, error: type[Exception]
) -> None:
    """One attempt, which stores nothing; whether there is time for another, the run knows."""
    failed = gcs.inject(on=writes(), fault=fault, times=None if fault is UNAUTHORIZED else 1)
    with pytest.raises(error) as raised:
        sink.publish(0, [message(1)], TIMEOUT)
    failed.withdraw()

    assert type(raised.value) is error
    assert (failed.fired >= 1, gcs.objects) == (True, {})
    assert fault is UNAUTHORIZED or len(gcs.requests) == 1
    sink.publish(0, [message(1)], TIMEOUT)
    assert names(gcs) == ["prod/argo/uid/1.json"]


@pytest.mark.parametrize(("fault", "timeout"), [(LostResponse(), TIMEOUT), (Stall(Moment.AFTER), SHORT)], ids=str)
def test_a_lost_answer_leaves_it_unknown(sink: GcsSink, gcs: GcsServer, fault: Fault, timeout: float) -> None:
    """The next attempt finds its own object, and is done."""
    lost = gcs.inject(on=writes(), fault=fault)
    with pytest.raises(Unavailable):
        sink.publish(0, [message(1)], timeout)
    gcs.wait_fired(lost)
    generation = gcs.generation(BUCKET, "prod/argo/uid/1.json")
    assert generation

    sink.publish(0, [message(1)], TIMEOUT)
    assert gcs.generation(BUCKET, "prod/argo/uid/1.json") == generation


@pytest.mark.parametrize(
    ("fault", "error"), [(UNAVAILABLE, Unavailable), (denied("storage.objects.create"), Forbidden)], ids=str
)
def test_what_was_stored_before_a_failure_counts(
    sink: GcsSink, gcs: GcsServer, fault: Fault, error: type[Exception]
) -> None:
    """Nothing is tried behind it: the reason is that of all the others."""
    gcs.inject(on=writes("uid/2"), fault=fault)
    with pytest.raises(Partly) as partly:
        sink.publish(0, [message(1), message(2), message(3)], TIMEOUT)

    assert type(partly.value.reason) is error
    assert partly.value.stored == ("uid/1",)
    assert names(gcs) == ["prod/argo/uid/1.json"]


def test_the_time_is_that_of_the_whole_batch(sink: GcsSink, gcs: GcsServer) -> None:
    """The second message has what the first has left of it, which is less than it needs."""
    gcs.inject(on=writes(), fault=Stall(seconds=4), times=None)
    with pytest.raises(Partly) as partly:
        sink.publish(0, [message(1), message(2)], 7)

    assert partly.value.stored == ("uid/1",)
    assert isinstance(partly.value.reason, Unavailable)


def test_without_time_only_the_first_message_is_tried(sink: GcsSink, gcs: GcsServer) -> None:
    """It always is; what follows it is not."""
    with pytest.raises(Partly, match="1 of 2 messages") as partly:
        sink.publish(0, [message(1), message(2)], 0)

    assert partly.value.stored == ("uid/1",)
    assert isinstance(partly.value.reason, Unavailable)
    assert len(gcs.requests) == 1


def test_a_name_that_is_too_long_is_refused(sink: GcsSink, gcs: GcsServer) -> None:
    """By its bytes, percent signs and all, and before anything is stored."""
    longest = 1024 - len(f"{PREFIX}uid/.json")
    sink.publish(0, [with_id(f"uid/{'x' * longest}")], TIMEOUT)
    for too_long in (f"uid/{'x' * (longest + 1)}", f"uid/{'ü' * (longest // 6 + 1)}"):
        with pytest.raises(Refused, match="too long for an object") as refused:
            sink.publish(0, [message(1), with_id(too_long)], TIMEOUT)
        assert refused.value.ids == [too_long]

    assert [len(name) for name in names(gcs)] == [1024]


def test_a_server_that_is_away_is_unavailable(sink: GcsSink, gcs: GcsServer) -> None:
    """Nobody listens; the same sink goes on with the one that is up."""
    gcs.down()
    with pytest.raises(Unavailable):
        sink.publish(0, [message(1)], TIMEOUT)
    gcs.up()

    sink.publish(0, [message(1)], TIMEOUT)
    assert names(gcs) == ["prod/argo/uid/1.json"]


def test_without_credentials_nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the watch opens, and not with the first dead letter."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    with pytest.raises(Unauthorized, match=r"/nowhere/key\.json"):
        sink_in(BUCKET)
