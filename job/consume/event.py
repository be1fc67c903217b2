"""A delivery as a CloudEvent, and what its attributes say about its place among others (pure).

What they mean is in docs/messages.md. Events of other origin are understood as far as they go: without a `subject` each
is an object of its own, and without a version those of an object are ordered by their time of publication.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

import msgspec

from job.message import GAP, Message, structured
from job.ports import Received

_REQUIRED = ("specversion", "id", "source", "type")
_PREFIX = "ce-"
_STRUCTURED = "application/cloudevents+json"
_EPOCH = re.compile(r"~([0-9]{1,18})$")
_VERSION = re.compile(r"[0-9]{1,39}")  # 128 bits
_JSON = re.compile(r"[^;]*[/+]json\s*(?:;.*)?", re.IGNORECASE)


class NotAnEvent(ValueError):
    """A message that is no CloudEvent."""


class Identity(NamedTuple):
    """What two copies of one event have in common; gaps of two namespaces may share an id."""

    source: str
    id: str
    subject: str = ""


class State(NamedTuple):
    """How late a state of one object is: a deletion beats every version in its epoch and before."""

    epoch: int
    deleted: bool
    version: int


class Event(msgspec.Struct, frozen=True):
    """A copy of an event."""

    attributes: Mapping[str, str]
    data: bytes
    published: datetime
    ordering_key: str = ""
    """As `Received` has it."""

    @property
    def gap(self) -> bool:
        """Whether it announces lost history."""
        return self.attributes.get("dataschema") == GAP

    @property
    def identity(self) -> Identity:
        """Equal for every copy of the event."""
        subject = self.attributes.get("subject", "") if self.gap else ""
        return Identity(self.attributes["source"], self.attributes["id"], subject)

    @property
    def object(self) -> tuple[str, ...]:
        """What it is about; events of one object are handed over one after another."""
        subject = self.attributes.get("subject")
        if subject is None and not self.gap:
            return (*self.identity, "")
        return self.attributes["source"], subject or ""

    @property
    def incarnation(self) -> tuple[str, str] | None:
        """Which object it is about, where several have had its name; None: unknown."""
        uid = self.attributes.get("k8suid")
        return (self.attributes["source"], uid) if uid else None

    @property
    def epoch(self) -> int:
        """How often the cluster had gone back to an older state."""
        found = _EPOCH.search(self.attributes["id"])
        return int(found[1]) if found else 0

    @property
    def version(self) -> int | None:
        """The object's version; None where it has none, as an inferred deletion."""
        text = self.attributes.get("resourceversion", "")
        return int(text) if _VERSION.fullmatch(text) else None

    @property
    def state(self) -> State | None:
        """For latest-wins; None where it cannot be compared."""
        if self.incarnation is None:
            return None
        if self.deleted:  # with or without a version, it is the same deletion
            return State(self.epoch, deleted=True, version=0)
        return None if self.version is None else State(self.epoch, deleted=False, version=self.version)

    @property
    def deleted(self) -> bool:
        """Whether it is the object's deletion."""
        return self.attributes["type"].endswith(".deleted")

    def json(self) -> bytes:
        """The event in structured JSON, on one line unless its data has several."""
        attributes = dict(self.attributes)
        if self._holds_json():
            return structured(Message(attributes, self.data, "")) + b"\n"
        data = {"data_base64": b64encode(self.data).decode()} if self.data else {}
        return msgspec.json.encode({**attributes, **data}) + b"\n"

    def _holds_json(self) -> bool:
        if not _JSON.fullmatch(self.attributes.get("datacontenttype", "application/json")):
            return False
        try:
            self.data.decode()
            msgspec.json.decode(self.data, type=msgspec.Raw)  # numbers of any size are left alone
        except (ValueError, RecursionError):
            return False
        return True


def event(received: Received) -> Event:
    """Read a delivery in binary or structured mode. Raises `NotAnEvent`.

    <https://github.com/googleapis/google-cloudevents/blob/main/docs/spec/pubsub.md>
    """
    content_type = next((value for name, value in received.attributes.items() if name.lower() == "content-type"), "")
    if content_type.lower().startswith(_STRUCTURED):
        attributes, data = _unpacked(received.data)
    else:
        named = received.attributes.items()
        attributes = {name.removeprefix(_PREFIX): value for name, value in named if name.startswith(_PREFIX)}
        data = received.data
        if content_type:
            attributes.setdefault("datacontenttype", content_type)
    missing = [name for name in _REQUIRED if not attributes.get(name)]
    if missing:
        message = f"it has no {' and no '.join(missing)}"
        raise NotAnEvent(message)
    return Event(attributes, data, received.published, received.ordering_key)


def in_order(events: Iterable[Event]) -> list[Event]:
    """Events of one object as they should be handed over.

    The name may have had several objects: an earlier one's deletion comes before the next one (R3), also where it was
    inferred and thus has no version of its own.
    """
    events = list(events)
    first: dict[object, int] = {}
    for each in events:
        known = first.get(each.incarnation)
        if each.version is not None and (known is None or each.version < known):
            first[each.incarnation] = each.version

    def place(each: Event) -> tuple[int, int, bool, int, datetime]:
        return each.epoch, first.get(each.incarnation, 0), each.deleted, each.version or 0, each.published

    return sorted(events, key=place)


def _unpacked(data: bytes) -> tuple[dict[str, str], bytes]:
    try:
        members = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        encoded, plain = members.pop("data_base64", None), members.pop("data", None)
        attributes = {
            name: text if isinstance(text := msgspec.json.decode(value), str) else bytes(value).decode()
            for name, value in members.items()
        }
        if encoded is not None:
            return attributes, b64decode(msgspec.json.decode(encoded, type=str), validate=True)
    except (ValueError, RecursionError) as error:
        message = f"its content type is {_STRUCTURED}, which it is not: {error}"
        raise NotAnEvent(message) from error
    return attributes, b"" if plain is None else bytes(plain)
