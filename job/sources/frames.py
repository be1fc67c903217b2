"""The JSON of the API server, as far as it is looked into (pure).

An object is decoded in one pass into the few members that decide, while its bytes stay a slice of what was received.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, field

from job.change import Kind, Object
from job.payload.object import trim
from job.ports import Bookmark, Event, Failure, Frame, Page

_LONGEST_PHASE = 63
"""Characters: those of a label, as Argo writes one with it. What is longer is none, since attributes have a limit."""


class _Annotations(Struct, gc=False):
    last_applied: Raw | UnsetType = field(default=UNSET, name="kubectl.kubernetes.io/last-applied-configuration")


class _Metadata(Struct, rename="camel", gc=False):
    uid: str = ""
    name: str = ""
    namespace: str = ""
    resource_version: str = "0"
    labels: dict[str, str] | None = None
    annotations: _Annotations | None = None
    managed_fields: Raw | UnsetType = UNSET


class _Status(Struct, gc=False):
    phase: str | None = None


class _Thing(Struct, rename="camel", gc=False):
    metadata: _Metadata
    kind: str = ""
    api_version: str = ""
    status: _Status | None = None


class _Phaseless(Struct, rename="camel"):
    """A resource whose `status` is not an object, or whose phase is not a string."""

    metadata: _Metadata
    kind: str = ""
    api_version: str = ""
    status: Raw | UnsetType = UNSET


class _Watched(Struct, gc=False):
    type: str
    object: _Thing


class _Envelope(Struct):
    type: str
    object: Raw


class Status(Struct):
    """Kubernetes' own answer to a request that failed."""

    code: int = 0
    reason: str = ""
    message: str = ""


class _ListMetadata(Struct, rename="camel"):
    resource_version: str = "0"
    next: str = field(default="", name="continue")
    remaining_item_count: int | None = None


class _MetadataList(Struct):
    metadata: _ListMetadata
    items: Sequence[_Thing] | None = None


class _WholeList(Struct, rename="camel"):
    metadata: _ListMetadata
    kind: str
    api_version: str
    items: Sequence[Raw] | None = None


class ApiResource(Struct):
    """What discovery says of one resource."""

    name: str
    kind: str
    namespaced: bool
    verbs: Sequence[str] = ()


class _Version(Struct, rename="camel"):
    git_version: str


class _ReviewStatus(Struct):
    allowed: bool


class _Review(Struct):
    status: _ReviewStatus


class _ApiResources(Struct):
    resources: Sequence[ApiResource]


_watched = msgspec.json.Decoder(_Watched).decode
_envelope = msgspec.json.Decoder(_Envelope).decode
_thing = msgspec.json.Decoder(_Thing).decode
_phaseless = msgspec.json.Decoder(_Phaseless).decode
_status = msgspec.json.Decoder(Status).decode
_metadata_list = msgspec.json.Decoder(_MetadataList).decode
_api_resources = msgspec.json.Decoder(_ApiResources).decode
_version = msgspec.json.Decoder(_Version).decode
_review = msgspec.json.Decoder(_Review).decode
_whole_list = msgspec.json.Decoder(_WholeList).decode

_KINDS = {"ADDED": Kind.ADDED, "MODIFIED": Kind.MODIFIED, "DELETED": Kind.DELETED}
_STARTS = {name: b'{"type":"%b","object":' % name.encode() for name in _KINDS}


def frame(line: bytes) -> Frame:
    """What one line of a watch says. Raises `msgspec.MsgspecError` for what is not a watch frame."""
    try:
        watched = _watched(line)
    except msgspec.ValidationError:
        return _unusual_frame(line)
    kind = _KINDS.get(watched.type)
    if kind is None:
        return _unusual_frame(line)
    start = _STARTS[watched.type]
    if not (line.startswith(start) and line.endswith(b"}}")):
        return _unusual_frame(line)
    return Event(kind, _object(watched.object, line, len(start), len(line) - 1))


def status(body: bytes) -> Status | None:
    """The Status of a failed request; None where something other than the API server answered."""
    try:
        return _status(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def uid(body: bytes) -> str:
    """The uid of an object."""
    return _phaseless(body).metadata.uid


def api_resources(body: bytes) -> Sequence[ApiResource]:
    """What discovery says of one group and version."""
    return _api_resources(body).resources


def server_version(body: bytes) -> str:
    """What a server calls itself at /version."""
    return _version(body).git_version


def allowed(body: bytes) -> bool:
    """What a SelfSubjectAccessReview has come to."""
    return _review(body).status.allowed


def metadata_page(body: bytes) -> Page:
    """A page of a PartialObjectMetadataList."""
    page = _metadata_list(body)
    return _page(page.metadata, [_object(thing, b"") for thing in page.items or ()])


def whole_page(body: bytes) -> Page:
    """A page of whole objects, each with the kind and apiVersion that a watch frame of it would have (R8)."""
    page = _whole_list(body)
    kind = page.kind.removesuffix("List")
    missing = b'{"kind":"%b","apiVersion":"%b",' % (kind.encode(), page.api_version.encode())
    objects = []
    for item in page.items or ():
        data = bytes(item)
        thing = _decoded(data)
        if not thing.kind and not thing.api_version:  # items of built-in resources have neither
            data = missing + data[1:]
        objects.append(_object(thing, data))
    return _page(page.metadata, objects)


def _page(about: _ListMetadata, objects: Sequence[Object]) -> Page:
    return Page(int(about.resource_version), objects, about.next, about.remaining_item_count)


def _unusual_frame(line: bytes) -> Frame:
    envelope = _envelope(line)
    data = bytes(envelope.object)
    if envelope.type == "ERROR":
        failed = _status(data)
        return Failure(failed.code or (410 if failed.reason in {"Expired", "Gone"} else 0), failed.message)
    thing = _decoded(data)
    if envelope.type == "BOOKMARK":
        return Bookmark(int(thing.metadata.resource_version))
    if envelope.type not in _KINDS:
        message = f"a watch frame of the unknown type {envelope.type!r}"
        raise msgspec.ValidationError(message)
    return Event(_KINDS[envelope.type], _object(thing, data))


def _decoded(data: bytes) -> _Thing | _Phaseless:
    try:
        return _thing(data)
    except msgspec.ValidationError:
        return _phaseless(data)


def _object(thing: _Thing | _Phaseless, text: bytes, start: int = 0, end: int | None = None) -> Object:
    """The object whose JSON is `text[start:end]`; empty where only metadata were asked for."""
    about = thing.metadata
    phase = thing.status.phase if isinstance(thing.status, _Status) else None
    if phase and len(phase) > _LONGEST_PHASE:
        phase = None
    data = b""
    if text:
        managed = None if about.managed_fields is UNSET else about.managed_fields
        annotations = about.annotations
        applied = None if annotations is None or annotations.last_applied is UNSET else annotations.last_applied
        data = trim(text, managed, applied, start=start, end=end)
    return Object(about.uid, about.namespace, about.name, int(about.resource_version), phase, about.labels or {}, data)
