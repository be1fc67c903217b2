"""What one run leaves to the next, and its form on disk (pure).

One gzip member holding one JSON object, made to be read by people: `gunzip -c FILE | jq`. Versions are strings in JSON,
since they may have 128 bits and most readers have 53.
"""

from __future__ import annotations

import gzip
import zlib
from datetime import datetime
from io import BytesIO
from itertools import islice
from typing import Annotated, cast

import msgspec

from job.change import Known
from job.errors import CheckpointUnusable
from job.payload import EVERYTHING, Content
from job.ports import Identity

SCHEMA = 1
KEPT_RUNS = 100


class Scope(msgspec.Struct, frozen=True):
    """What a checkpoint is about. Its version and inventory mean nothing for another scope (R6)."""

    cluster: str
    resource: str
    namespace: str
    """Empty for all namespaces."""
    selector: str
    sink: str
    """The sink's URL, without credentials."""


class RunRecord(msgspec.Struct, frozen=True):
    """One run, in a line."""

    run_id: str
    started_at: str
    seconds: float
    start: str
    """`resumed`, how a first run began, or why the watch could not go on from the saved version."""
    age_seconds: float | None
    """How old the version was, since it was last known to be the present; None on a first run."""
    exit_code: int
    published: dict[str, int]
    recovery: str = ""
    """How far history was read back, where the version had expired (`job.change.Recovery`)."""


class Checkpoint(msgspec.Struct, frozen=True):
    """The position in the history of one scope.

    Everything up to `version` is acknowledged by the sink. While `listed` is above it, a listing at `listed` was begun
    to be published, and the inventory says how far that came (R1, R17).
    """

    scope: Scope
    identity: Identity = Identity()
    epoch: int = 0
    version: int = 0
    listed: int = 0
    listed_for: str = ""
    """Why that listing was begun: the reason of its gap, empty where there is none. `drifted`: to compare (R9)."""
    announced: int = 0
    """Up to here nothing is left to be announced by a gap message; the next one begins here, or at `version`."""
    gaps: int = 0
    """How many gap messages were announced in all; counted before each is published."""
    inventory: dict[str, Known] = msgspec.field(default_factory=dict)
    whole: bool = True
    """False: the store could not take the inventory, which was left out."""
    content: Content = EVERYTHING
    """What messages carried, and which changes were told, up to here."""
    run_id: str = ""
    sequence: int = 0
    saved_at: str = ""
    current_at: str = ""
    """When `version` was last known to be the present, RFC 3339: since then something may be lost."""
    audited_at: str = ""
    """When the inventory was last found to agree with the server's own past (R9)."""
    runs: tuple[RunRecord, ...] = ()


_Row = tuple[str, str, str, str | None, bool, bool] | tuple[str, str, str, str | None, bool, bool, str]


class _Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is known of a uid, as it is read; the last of it stands only where it is not empty."""

    namespace: str
    name: str
    resource_version: str
    phase: str | None
    deleted: bool
    told: bool
    at: str = ""


class _Stored(msgspec.Struct, kw_only=True):
    """The JSON object."""

    schema: int
    scope: Scope
    content: Content = EVERYTHING
    identity: Identity
    epoch: Annotated[int, msgspec.Meta(ge=0)]
    resourceVersion: str  # noqa: N815 - Kubernetes' own spelling, as a reader expects it
    listed: str
    listed_for: str
    announced: str
    gaps: Annotated[int, msgspec.Meta(ge=0)] = 0
    run_id: str
    sequence: int
    saved_at: str
    current_at: str
    audited_at: str
    runs: list[RunRecord]
    inventory: dict[str, _Entry] | None
    """uid -> what is known; null where it was left out."""


class _Schema(msgspec.Struct):
    schema: int


_decode_schema = msgspec.json.Decoder(_Schema).decode
_decode = msgspec.json.Decoder(_Stored).decode
_encode = msgspec.json.Encoder().encode
_PIECE = 1000
"""Entries that are encoded at a time."""


def encode(checkpoint: Checkpoint) -> bytes:
    """The bytes that a store keeps; the same checkpoint always gives the same bytes."""
    stored = _Stored(
        schema=SCHEMA,
        scope=checkpoint.scope,
        content=checkpoint.content,
        identity=checkpoint.identity,
        epoch=checkpoint.epoch,
        resourceVersion=str(checkpoint.version),
        listed=str(checkpoint.listed),
        listed_for=checkpoint.listed_for,
        announced=str(checkpoint.announced),
        gaps=checkpoint.gaps,
        run_id=checkpoint.run_id,
        sequence=checkpoint.sequence,
        saved_at=checkpoint.saved_at,
        current_at=checkpoint.current_at,
        audited_at=checkpoint.audited_at,
        runs=list(checkpoint.runs[-KEPT_RUNS:]),
        inventory={} if checkpoint.whole else None,
    )
    if not checkpoint.whole:
        return gzip.compress(_encode(stored), compresslevel=1, mtime=0)
    compressed = BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=compressed, compresslevel=1, mtime=0) as file:
        # Piece by piece, since an inventory may have 100,000 entries.
        file.write(_encode(stored).removesuffix(b"}}"))
        entries, separator = iter(checkpoint.inventory.items()), b""
        while piece := {uid: _entry(known) for uid, known in islice(entries, _PIECE)}:
            file.write(separator + _encode(piece)[1:-1])
            separator = b","
        file.write(b"}}")
    return compressed.getvalue()


def decode(data: bytes) -> Checkpoint:
    """The opposite of `encode`. Raises `CheckpointUnusable` for anything else: damaged is never the same as absent."""
    try:
        text = gzip.decompress(data)
        schema = _decode_schema(text).schema
    except (OSError, EOFError, zlib.error, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(data, error) from error
    if schema != SCHEMA:
        message = f"it has schema {schema}, and this version of workflow-watcher reads schema {SCHEMA}"
        raise CheckpointUnusable(message)
    try:
        stored = _decode(text)
        del text
        return Checkpoint(
            scope=stored.scope,
            content=stored.content,
            identity=stored.identity,
            epoch=stored.epoch,
            version=_version(stored.resourceVersion),
            listed=_version(stored.listed),
            listed_for=stored.listed_for,
            announced=_version(stored.announced),
            gaps=stored.gaps,
            inventory=_inventory(stored.inventory or {}),
            whole=stored.inventory is not None,
            run_id=stored.run_id,
            sequence=stored.sequence,
            saved_at=_time(stored.saved_at),
            current_at=_time(stored.current_at),
            audited_at=_time(stored.audited_at),
            runs=tuple(stored.runs),
        )
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _unreadable(data, error) from error


def _entry(known: Known) -> _Row:
    row = known.namespace, known.name, str(known.version), known.phase, known.deleted, known.told
    return (*row, known.at) if known.at else row


def _inventory(entries: dict[str, _Entry]) -> dict[str, Known]:
    """The entries, replaced in place, so that they are not all there twice; of equal strings one is kept."""
    inventory = cast("dict[str, Known]", entries)
    kept: dict[str, str] = {}
    for uid, entry in entries.items():
        inventory[uid] = Known(
            kept.setdefault(entry.namespace, entry.namespace),
            entry.name,
            _version(entry.resource_version),
            entry.phase and kept.setdefault(entry.phase, entry.phase),
            entry.deleted,
            entry.told,
            entry.at,
        )
    return inventory


def _version(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        message = f"{text!r} is not a resourceVersion"
        raise ValueError(message)
    return int(text)


def _time(text: str) -> str:
    if text and datetime.fromisoformat(text).tzinfo is None:
        message = f"{text!r} is a time without a zone"
        raise ValueError(message)
    return text


def _unreadable(data: bytes, error: Exception) -> CheckpointUnusable:
    return CheckpointUnusable(f"its {len(data)} bytes cannot be read ({error})")
