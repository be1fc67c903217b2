"""Tests of what a delivery says."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest

from job.consume.event import NotAnEvent, event, in_order
from job.ports import Received
from tests.consume.events import BEGAN, SOURCE, an_event, attributes, deletion, delivered, gap


def structured(members: dict[str, Any], content_type: str = "application/cloudevents+json; charset=utf-8") -> Received:
    return Received("ack", "1", {"content-type": content_type}, json.dumps(members).encode(), BEGAN)


def test_an_event_in_binary_mode_is_read() -> None:
    """Its attributes without their prefix; the data stays as it is."""
    read = event(delivered(attributes("a", 7), data=b'{"n": 1.50}'))

    assert (read.attributes, read.data) == (attributes("a", 7), b'{"n": 1.50}')
    assert read.identity == (SOURCE, "uid-a/7", "")


def test_an_event_in_structured_mode_is_the_same() -> None:
    """The data is not printed anew; attributes that are no strings are spelt as JSON has them."""
    raw = json.dumps({**attributes("a", 7), "count": 3, "flag": True})[:-1] + ',"data":{"n": 1.50}}'
    read = event(Received("ack", "1", {"Content-Type": "application/cloudevents+json"}, raw.encode(), BEGAN))

    assert (read.attributes, read.data) == ({**attributes("a", 7), "count": "3", "flag": "true"}, b'{"n": 1.50}')


def test_binary_data_in_structured_mode_is_decoded() -> None:
    """`data_base64` is the other way to carry data."""
    assert event(structured({**attributes("a", 7), "data_base64": "AP8="})).data == b"\x00\xff"


@pytest.mark.parametrize("missing", ["specversion", "id", "source", "type"])
def test_what_lacks_a_required_attribute_is_no_event(missing: str) -> None:
    """In either mode; the error names it."""
    wanting = {name: value for name, value in attributes("a", 7).items() if name != missing}
    for received in (delivered(wanting), structured(wanting)):
        with pytest.raises(NotAnEvent, match=f"no {missing}"):
            event(received)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b'{"id":"\xff"}', b'{"data_base64": "?"}', b"[" * 20_000])
def test_what_is_not_structured_is_no_event(data: bytes) -> None:
    """Whatever else it says."""
    with pytest.raises(NotAnEvent):
        event(Received("ack", "1", {"content-type": "application/cloudevents+json"}, data, BEGAN))


@pytest.mark.parametrize("data", [b'{"a": 1.50}', b"1e999", b'"\xc3\xbc"', b"123456789012345678901234567890"])
def test_json_is_handed_over_as_it_is(data: bytes) -> None:
    """Numbers of any size are not read on the way."""
    line = event(delivered(attributes("a", 7), data=data)).json()

    assert line.endswith(b',"data":' + data + b"}\n")
    assert msgspec.json.decode(line, type=dict[str, msgspec.Raw]).keys() == {*attributes("a", 7), "data"}


@pytest.mark.parametrize("data", [b"{", b'"\xff"', b"\x00", b"{} {}", b"plain", b"[" * 20_000])
def test_what_is_not_json_is_handed_over_in_base64(data: bytes) -> None:
    """Also where it says that it is JSON: what is handed over can always be read."""
    read = json.loads(event(delivered(attributes("a", 7), data=data)).json())
    again = event(structured(read))

    assert "data" not in read
    assert (again.attributes, again.data) == (attributes("a", 7), data)


def test_another_content_type_is_no_json() -> None:
    """A text that looks like a number stays a text."""
    given = attributes("a", 7) | {"datacontenttype": "text/plain"}
    read = json.loads(event(delivered(given, data=b"1")).json())

    assert (read["data_base64"], "data" in read) == ("MQ==", False)


def test_no_data_is_no_member() -> None:
    """An event may consist of attributes."""
    assert json.loads(event(delivered(attributes("a", 7), data=b"")).json()) == attributes("a", 7)


def test_the_content_type_of_the_message_is_that_of_the_data() -> None:
    """As the binding has it, where the event does not say it itself."""
    bare = {name: value for name, value in attributes("a", 7).items() if name != "datacontenttype"}
    carried = {f"ce-{name}": value for name, value in bare.items()} | {"content-type": "text/plain"}

    assert event(Received("ack", "1", carried, b"", BEGAN)).attributes["datacontenttype"] == "text/plain"


IN_ORDER = {
    "versions are numbers": [attributes("a", 9), attributes("a", 10), attributes("a", 100)],
    "versions of 128 bits": [attributes("a", 10**38), attributes("a", 10**38 + 1)],
    "a deletion is last": [attributes("a", 9), attributes("a", 10), deletion("a")],
    "a deletion that was observed, too": [attributes("a", 9), deletion("a", 11)],
    "an epoch comes before a version": [attributes("a", 9), deletion("a"), attributes("a", 5, epoch=1)],
    "an earlier object of the name": [
        attributes("a", 9, uid="one"),
        deletion("a", uid="one"),
        attributes("a", 12, uid="two"),
        attributes("a", 13, uid="two"),
        deletion("a", 14, uid="two"),
    ],
    "its deletion alone": [deletion("a", uid="one"), attributes("a", 12, uid="two")],
    "its observed deletion alone": [deletion("a", 11, uid="one"), attributes("a", 12, uid="two")],
}


@pytest.mark.parametrize("expected", IN_ORDER.values(), ids=IN_ORDER)
def test_events_of_an_object_are_put_in_order(expected: list[dict[str, str]]) -> None:
    """By what they say of themselves, whenever they came."""
    for given in itertools.permutations(expected):
        found = in_order([an_event(each, at) for at, each in enumerate(given)])
        assert [dict(each.attributes) for each in found] == expected


def test_events_without_a_version_are_ordered_by_their_publication() -> None:
    """Events of other origin have nothing else."""
    plain = {"specversion": "1.0", "source": "/s", "type": "t", "subject": "x"}
    later, earlier = an_event(plain | {"id": "1"}, at=2), an_event(plain | {"id": "2"}, at=1)

    assert in_order([later, earlier]) == [earlier, later]
    assert later.object == earlier.object


def test_without_a_subject_each_event_is_an_object_of_its_own() -> None:
    """Nothing says that they belong together; gap messages of a source do."""
    plain = {"specversion": "1.0", "source": "/s", "type": "t"}

    assert an_event(plain | {"id": "1"}).object != an_event(plain | {"id": "2"}).object
    assert an_event(gap(1, 2)).object == an_event(gap(2, 3)).object


def test_gaps_of_two_namespaces_may_share_an_id() -> None:
    """Their subject tells them apart; that of an object changes nothing."""
    assert an_event(gap(1, 2, "a")).identity != an_event(gap(1, 2, "b")).identity
    assert an_event(attributes("a", 7)).identity == an_event(attributes("a", 7) | {"subject": "x"}).identity
