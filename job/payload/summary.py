"""An object in short: what it is, how far it has come, and for a Workflow its nodes (pure).

What it was made from stays out: spec, stored templates, annotations. Each value that stays is the bytes that the API
server wrote, so that numbers, and types and phases of a later Argo, pass through as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from job.payload.nodes import Held, Node, Omitted, hydrated


class _Thing(Struct, rename="camel"):
    api_version: Raw | UnsetType = UNSET
    kind: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    status: Raw | UnsetType = UNSET


class _Metadata(Struct, rename="camel"):
    namespace: Raw | UnsetType = UNSET
    name: Raw | UnsetType = UNSET
    uid: Raw | UnsetType = UNSET
    resource_version: Raw | UnsetType = UNSET
    generation: Raw | UnsetType = UNSET
    creation_timestamp: Raw | UnsetType = UNSET
    deletion_timestamp: Raw | UnsetType = UNSET
    labels: Raw | UnsetType = UNSET
    owner_references: Raw | UnsetType = UNSET


class _Status(Held, rename="camel"):
    phase: Raw | UnsetType = UNSET
    message: Raw | UnsetType = UNSET
    started_at: Raw | UnsetType = UNSET
    finished_at: Raw | UnsetType = UNSET
    estimated_duration: Raw | UnsetType = UNSET
    progress: Raw | UnsetType = UNSET


class _Other(Struct, rename="camel"):
    api_version: Raw | UnsetType
    kind: Raw | UnsetType
    metadata: _Metadata | UnsetType
    status: Raw | UnsetType


class _Workflow(Struct, rename="camel"):
    api_version: Raw | UnsetType
    kind: Raw | UnsetType
    metadata: _Metadata | UnsetType
    phase: Raw | UnsetType
    message: Raw | UnsetType
    started_at: Raw | UnsetType
    finished_at: Raw | UnsetType
    estimated_duration: Raw | UnsetType
    progress: Raw | UnsetType
    nodes: Sequence[Node] | UnsetType
    nodes_omitted: Omitted | UnsetType


_thing = msgspec.json.Decoder(_Thing).decode
_metadata = msgspec.json.Decoder(_Metadata).decode
_status = msgspec.json.Decoder(_Status).decode
_written = msgspec.json.Encoder().encode


def summary(data: bytes, *, workflow: bool) -> bytes:
    """The summary of the object whose JSON is `data`.

    A Workflow's has its nodes as an array, in the order of the status, or `nodesOmitted`; any other object's has its
    whole status. Members that the object has not are left out, and so is what hangs on a member of another type.
    """
    thing = _thing(data)
    metadata = _metadata_of(thing)
    if not workflow:
        return _written(_Other(thing.api_version, thing.kind, metadata, thing.status))
    status = _status_of(thing)
    nodes = hydrated(status)
    return _written(
        _Workflow(
            thing.api_version,
            thing.kind,
            metadata,
            status.phase,
            status.message,
            status.started_at,
            status.finished_at,
            status.estimated_duration,
            status.progress,
            UNSET if nodes is None or isinstance(nodes, Omitted) else nodes,
            nodes if isinstance(nodes, Omitted) else UNSET,
        )
    )


def _metadata_of(thing: _Thing) -> _Metadata | UnsetType:
    if thing.metadata is UNSET:
        return UNSET
    try:
        return _metadata(thing.metadata)
    except msgspec.ValidationError:
        return UNSET


def _status_of(thing: _Thing) -> _Status:
    if thing.status is UNSET:
        return _Status()
    try:
        return _status(thing.status)
    except msgspec.ValidationError:
        return _Status()
