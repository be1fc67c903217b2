"""Tests of what the API server's JSON says."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from job.change import Kind, Object
from job.ports import Bookmark, Event, Failure
from job.sources import frames

RECORDINGS = sorted((Path(__file__).parents[1] / "recordings").glob("*.jsonl"))
THING = (
    b'{"apiVersion":"argoproj.io/v1alpha1","kind":"Workflow","metadata":{"labels":{"a":"b"},"name":"a","namespace":"argo",'
    b'"resourceVersion":"7","uid":"u"},"status":{"phase":"Running"}}'
)


def frame(kind: str, thing: bytes) -> bytes:
    return b'{"type":"%b","object":%b}' % (kind.encode(), thing)


@pytest.mark.parametrize("kind", list(Kind))
def test_an_event_has_its_object_and_the_objects_bytes(kind: Kind) -> None:
    """Uid, names, version, phase and labels are read; the data are a slice of the frame."""
    seen = Object("u", "argo", "a", 7, "Running", {"a": "b"}, THING)

    assert frames.frame(frame(kind.value.upper(), THING)) == Event(kind, seen)


def test_the_order_of_a_frames_members_does_not_matter() -> None:
    """JSON objects have no order, and blanks mean nothing."""
    assert frames.frame(b'{ "object": %b, "type": "ADDED" }' % THING) == frames.frame(frame("ADDED", THING))


def test_a_bookmark_is_a_version() -> None:
    """Also with the annotation that ends the initial events."""
    bookmark = b'{"metadata":{"resourceVersion":"439","annotations":{"k8s.io/initial-events-end":"true"}}}'

    assert frames.frame(frame("BOOKMARK", bookmark)) == Bookmark(439)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ('{"code":410,"reason":"Expired","message":"too old resource version: 294 (321)"}', 410),
        ('{"code":410,"message":"The resourceVersion for the provided watch is too old."}', 410),
        ('{"reason":"Expired","message":"m"}', 410),
        ('{"reason":"Gone","message":"m"}', 410),
        ('{"code":500,"reason":"InternalError","message":"m"}', 500),
        ('{"code":504,"reason":"Timeout","message":"m"}', 504),
        ('{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure"}', 0),
        ('{"code":429,"reason":"TooManyRequests","details":{"retryAfterSeconds":1}}', 429),
    ],
)
def test_an_error_is_a_failure_with_its_code(status: str, code: int) -> None:
    """By its code, by the reason of old servers, or by nothing but its being there."""
    failed = frames.frame(frame("ERROR", status.encode()))

    assert isinstance(failed, Failure)
    assert failed.code == code
    assert failed.message == json.loads(status).get("message", "")


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        ("{}", None),
        ('{"phase":"Succeeded"}', "Succeeded"),
        ('{"phase":""}', ""),
        ('{"phase":null}', None),
        (f'{{"phase":"{"x" * 63}"}}', "x" * 63),
        (f'{{"phase":"{"x" * 64}"}}', None),
        ('{"phase":3}', None),
        ('{"phase":{"a":"b"}}', None),
        ('"done"', None),
        ("[1]", None),
        ("null", None),
        ("7", None),
    ],
)
def test_a_phase_is_a_string_in_an_object(status: str, phase: str | None) -> None:
    """Any resource may have any status; what is not a phase is none, and the object passes all the same."""
    thing = b'{"metadata":{"uid":"u","resourceVersion":"7"},"status":%b}' % status.encode()
    event = frames.frame(frame("ADDED", thing))

    assert event == Event(Kind.ADDED, Object("u", "", "", 7, phase, {}, thing))


@pytest.mark.parametrize("labels", ["null", "{}"])
def test_no_labels_are_none_of_them(labels: str) -> None:
    """Written out or not."""
    thing = b'{"metadata":{"uid":"u","resourceVersion":"7","labels":%b}}' % labels.encode()
    event = frames.frame(frame("ADDED", thing))

    assert isinstance(event, Event)
    assert event.object.labels == {}


def test_a_version_may_have_128_bits() -> None:
    """KEP-5504."""
    thing = b'{"metadata":{"uid":"u","resourceVersion":"%d"}}' % (2**128 - 1)
    event = frames.frame(frame("ADDED", thing))

    assert isinstance(event, Event)
    assert event.object.version == 2**128 - 1


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"null",
        b"<html>",
        b'{"type":"ADDED"}',
        b'{"type":"RENAMED","object":{"metadata":{}}}',
        b'{"type":"ADDED","object":{"metadata":{"resourceVersion":"abc"}}}',
        b'{"type":"ADDED","object":[]}',
        frame("ADDED", THING)[:-20],
        b"\xff\xfe",
    ],
)
def test_what_is_no_frame_is_an_error(line: bytes) -> None:
    """It is never taken for a frame, and never skipped."""
    with pytest.raises((msgspec.MsgspecError, ValueError)):
        frames.frame(line)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_every_recorded_frame_is_read(recording: Path) -> None:
    """Streams of a real API server, with a real Argo controller behind them."""
    for line in recording.read_bytes().splitlines():
        recorded = bytes(msgspec.json.decode(line, type=dict[str, msgspec.Raw])["e"])
        document = json.loads(recorded)
        read = frames.frame(recorded)

        match read:
            case Event():
                about = document["object"]["metadata"]
                assert read.kind.value.upper() == document["type"]
                assert (read.object.uid, str(read.object.version)) == (about["uid"], about["resourceVersion"])
                assert read.object.phase == document["object"].get("status", {}).get("phase")
                assert json.loads(read.object.data) == document["object"]
            case Bookmark():
                assert str(read.version) == document["object"]["metadata"]["resourceVersion"]
            case Failure():
                assert read == Failure(410, "too old resource version: 1 (263)")


def test_a_metadata_page_has_no_data() -> None:
    """Its version, its objects, and the token of the next page."""
    body = (
        b'{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"9",'
        b'"continue":"next"},"items":[{"metadata":{"uid":"u","name":"a","namespace":"n","resourceVersion":"7",'
        b'"managedFields":[{}],"labels":{"a":"b"}}}]}'
    )
    page = frames.metadata_page(body)

    assert (page.version, page.token) == (9, "next")
    assert list(page.objects) == [Object("u", "n", "a", 7, None, {"a": "b"}, b"")]


@pytest.mark.parametrize("items", ["null", "[]"])
def test_an_empty_page_has_a_version(items: str) -> None:
    """With or without a list of items, and perhaps with a token."""
    page = frames.metadata_page(b'{"metadata":{"resourceVersion":"9","continue":"next"},"items":%b}' % items.encode())

    assert (page.version, list(page.objects), page.token) == (9, [], "next")


def test_r8_items_of_built_in_resources_get_the_kind_and_api_version_of_a_watch_frame() -> None:
    """Their lists leave both out; a watch frame begins with them."""
    item = b'{"metadata":{"name":"a","namespace":"n","uid":"u","resourceVersion":"7"},"spec":{}}'
    watched = b'{"kind":"Pod","apiVersion":"v1",' + item[1:]
    body = b'{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":[%b]}' % item
    event = frames.frame(frame("ADDED", watched))

    assert isinstance(event, Event)
    assert event.object.data == watched
    assert list(frames.whole_page(body).objects) == [event.object]


def test_r8_items_of_custom_resources_are_those_of_a_watch_frame() -> None:
    """Byte for byte, as they come."""
    body = (
        b'{"apiVersion":"argoproj.io/v1alpha1","items":[%b],"kind":"WorkflowList","metadata":{"resourceVersion":"9"}}'
        % THING
    )
    event = frames.frame(frame("ADDED", THING))

    assert isinstance(event, Event)
    assert list(frames.whole_page(body).objects) == [event.object]


@pytest.mark.parametrize("body", [b"", b"404 page not found", b"[]", b"\xff", b'{"code":"x"}'])
def test_what_is_no_status_is_none(body: bytes) -> None:
    """A proxy or a load balancer may have answered."""
    assert frames.status(body) is None


def test_a_status_has_code_reason_and_message() -> None:
    """Kubernetes' own answer to a failed request."""
    read = frames.status(b'{"kind":"Status","code":403,"reason":"Forbidden","message":"no"}')

    assert read is not None
    assert (read.code, read.reason, read.message) == (403, "Forbidden", "no")
