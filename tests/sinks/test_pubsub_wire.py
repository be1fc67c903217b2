"""Tests of Publish's messages as bytes; Google's generated types say what they mean."""

from __future__ import annotations

import pytest
from google.pubsub_v1.types import PublishRequest, PublishResponse
from hypothesis import example, given, strategies as st

from job.sinks import pubsub_wire

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
MESSAGES = st.lists(st.tuples(st.dictionaries(TEXTS, TEXTS, max_size=4), st.binary(max_size=400)), max_size=4)


@given(TEXTS, MESSAGES, TEXTS)
@example("t", [({"a" * 127: "b" * 128}, b"x" * 16_384), ({}, b""), ({"": ""}, b"x" * 2_097_152)], "k")
def test_a_request_is_what_the_generated_types_read(
    topic: str, messages: list[tuple[dict[str, str], bytes]], key: str
) -> None:
    """Whatever the texts and the sizes: a size takes one byte up to 127, two up to 16,383, then more."""
    encoded = [
        (b"".join(pubsub_wire.attribute(name, value) for name, value in attributes.items()), data)
        for attributes, data in messages
    ]
    read = PublishRequest.deserialize(pubsub_wire.publish_request(topic, encoded, key))

    assert read.topic == topic
    assert [(dict(message.attributes), message.data) for message in read.messages] == messages
    assert all(message.ordering_key == key for message in read.messages)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=200), max_size=300))
def test_the_ids_of_a_response_are_counted(ids: list[str]) -> None:
    """Each stands for a message that is stored."""
    assert pubsub_wire.stored(PublishResponse.serialize(PublishResponse(message_ids=ids))) == len(ids)


@given(st.lists(st.text("0123456789", min_size=1, max_size=200), min_size=1, max_size=5), st.data())
def test_a_response_that_is_cut_off_is_none(ids: list[str], data: st.DataObject) -> None:
    """But where it is cut between two ids: then it has fewer of them than there were messages."""
    whole = PublishResponse.serialize(PublishResponse(message_ids=ids))
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        assert pubsub_wire.stored(cut) < len(ids)
    except ValueError as error:
        assert "cut off" in str(error)  # noqa: PT017


@pytest.mark.parametrize("response", [b"\x08\x01", b"\x12\x01x", b"\x0a\x01x\x10\x01"])
def test_another_message_is_none(response: bytes) -> None:
    """A field that a PublishResponse has not."""
    with pytest.raises(ValueError, match="with the field"):
        pubsub_wire.stored(response)
