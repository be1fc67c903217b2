"""Tests of deliveries as events."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from job.consume.event import NotAnEvent, event
from job.ports import Received

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
BINARY = {
    "ce-specversion": "1.0",
    "ce-id": "uid/7~2",
    "ce-source": "/clusters/lab/api/v1/pods",
    "ce-type": "io.k8s.pods.modified",
    "ce-subject": "shop/web",
    "ce-datacontenttype": "application/json",
    "ce-k8suid": "uid",
    "ce-resourceversion": "7",
    "content-type": "application/json",
    "googclient_schemaencoding": "JSON",
}


def received(attributes: dict[str, str], data: bytes) -> Received:
    return Received("ack", "message-1", attributes, data, NOON)


def test_binary_mode() -> None:
    """Attributes without their prefix, the data byte for byte; what is no CloudEvent's stays out."""
    read = event(received(BINARY, b'{"n": 1.50}'))

    assert read.json() == (
        b'{"specversion":"1.0","id":"uid/7~2","source":"/clusters/lab/api/v1/pods","type":"io.k8s.pods.modified",'
        b'"subject":"shop/web","datacontenttype":"application/json","k8suid":"uid","resourceversion":"7",'
        b'"data":{"n": 1.50}}\n'
    )
    assert (read.epoch, read.version, read.deleted, read.gap) == (2, 7, False, False)


def test_structured_mode() -> None:
    """The same event, all of it in the data."""
    whole = event(received(BINARY, b'{"n": 1.50}'))
    attributes = {"content-type": "application/cloudevents+json; charset=utf-8"}

    assert event(received(attributes, whole.json())) == whole


@pytest.mark.parametrize(
    ("kind", "data"), [("text/plain", b"hello"), ("application/json", b"no json"), ("application/json", b"\xff")]
)
def test_data_that_are_no_json_are_encoded(kind: str, data: bytes) -> None:
    """As structured mode has it: base64."""
    read = event(received(BINARY | {"ce-datacontenttype": kind}, data))

    assert set(json.loads(read.json())) >= {"data_base64", "id"}


@pytest.mark.parametrize(
    ("attributes", "data"),
    [
        ({}, b"{}"),
        ({"ce-id": "1"}, b"{}"),
        (BINARY | {"ce-id": ""}, b"{}"),
        ({"content-type": "application/cloudevents+json"}, b"no json"),
        ({"content-type": "application/cloudevents+json"}, b"[]"),
        ({"content-type": "application/cloudevents+json"}, b'{"specversion":"1.0"}'),
    ],
)
def test_what_is_no_event_is_said(attributes: dict[str, str], data: bytes) -> None:
    """It lacks what every event has, or cannot be read."""
    with pytest.raises(NotAnEvent):
        event(received(attributes, data))
