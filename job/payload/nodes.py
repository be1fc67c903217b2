"""The nodes of a Workflow, wherever its status keeps them (pure).

Argo writes them as `nodes`, and once the object grows too large as `compressedNodes`, or into a database; each update
decides anew. It reads them back as here: `nodes` count unless they are empty, then the first bytes of `compressedNodes`
tell how they were compressed: <https://argo-workflows.readthedocs.io/en/latest/offloading-large-workflows/>.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from enum import StrEnum

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

MOST_BYTES = 16_000_000
"""Decoded. Argo keeps the whole object below 1 MiB, and nodes shrink to a twelfth: this is more than fits into one."""
MOST_VALUES = 500_000
"""Lists, objects and what follows a comma, decoded: each takes much more memory than its bytes."""
_MOST_WINDOW = 1 << 25  # the largest window of the library that Argo compresses with; it is reserved before it is used
_ZSTD, _GZIP = b"\x28\xb5\x2f\xfd", b"\x1f\x8b"

UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""What msgspec raises for JSON that is malformed, of another shape, not UTF-8, or nested too deeply."""


class Omitted(StrEnum):
    """Why the nodes of a Workflow are not known."""

    OFFLOADED = "offloaded"
    """They are in Argo's database."""
    TOO_LARGE = "too-large"
    """They are more than `MOST_BYTES`, or `MOST_VALUES`."""
    UNREADABLE = "unreadable"
    """They are damaged, or not what Argo writes."""


class CannotUnpack(Exception):
    """Compressed nodes that cannot be had, and why."""

    def __init__(self, why: Omitted) -> None:
        super().__init__(why)
        self.why = why


class Node(Struct, rename="camel", gc=False):
    """What a summary says of a node: each member's own bytes."""

    id: Raw | UnsetType = UNSET
    name: Raw | UnsetType = UNSET
    display_name: Raw | UnsetType = UNSET
    type: Raw | UnsetType = UNSET
    phase: Raw | UnsetType = UNSET
    message: Raw | UnsetType = UNSET
    started_at: Raw | UnsetType = UNSET
    finished_at: Raw | UnsetType = UNSET
    inputs: Raw | UnsetType = UNSET
    outputs: Raw | UnsetType = UNSET
    children: Raw | UnsetType = UNSET


class Held(Struct, rename="camel"):
    """The members of a status that say where its nodes are."""

    nodes: Raw | UnsetType = UNSET
    compressed_nodes: Raw | UnsetType = UNSET
    offload_node_status_version: Raw | UnsetType = UNSET


_nodes = msgspec.json.Decoder(dict[str, Node] | None).decode
_text = msgspec.json.Decoder(str | None).decode


def hydrated(status: Held) -> Sequence[Node] | Omitted | None:
    """The nodes in the order of the status, or why they are not known; None where there are none yet."""
    try:
        nodes = None if status.nodes is UNSET else _nodes(status.nodes)
        if not nodes and (packed := _string(status.compressed_nodes)):
            nodes = _nodes(unpacked(packed))
        elif not nodes and _string(status.offload_node_status_version):
            return Omitted.OFFLOADED
    except CannotUnpack as failed:
        return failed.why
    except UNREADABLE:
        return Omitted.UNREADABLE
    return None if nodes is None else list(nodes.values())


def unpacked(packed: str) -> bytes:
    """The UTF-8 text in `compressedNodes`; never takes much more memory than `MOST_BYTES`. Raises `CannotUnpack`."""
    try:
        data = _decompressed(base64.b64decode(packed, validate=True))
        if len(data) <= MOST_BYTES:
            if sum(map(data.count, (b",", b"[", b"{"))) > MOST_VALUES:
                raise CannotUnpack(Omitted.TOO_LARGE)
            data.decode()  # values are passed on unread, and must be text for whoever reads them
    except ValueError as error:
        raise CannotUnpack(Omitted.UNREADABLE) from error
    if len(data) > MOST_BYTES:
        raise CannotUnpack(Omitted.TOO_LARGE)
    return data


def _string(member: Raw | UnsetType) -> str | None:
    return None if member is UNSET else _text(member)


def _decompressed(data: bytes) -> bytes:
    """What was compressed, or the first bytes of it where that is more than `MOST_BYTES`."""
    if data.startswith(_ZSTD):
        return _from_zstd(data)
    if data.startswith(_GZIP):
        return _from_gzip(data)
    return _from_brotli(data)  # which has no bytes to know it by


def _from_zstd(data: bytes) -> bytes:
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW)
    try:
        with decompressor.stream_reader(data, read_across_frames=True) as stream:
            return stream.read(MOST_BYTES + 1)
    except zstandard.ZstdError as error:
        raise CannotUnpack(Omitted.UNREADABLE) from error


def _from_gzip(data: bytes) -> bytes:
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        text = stream.decompress(data, MOST_BYTES + 1)
    except zlib.error as error:
        raise CannotUnpack(Omitted.UNREADABLE) from error
    if len(text) <= MOST_BYTES and (not stream.eof or stream.unused_data):
        raise CannotUnpack(Omitted.UNREADABLE)
    return text


def _from_brotli(data: bytes) -> bytes:
    import brotli  # type: ignore[import-untyped] # it has none

    stream = brotli.Decompressor()
    try:
        text: bytes = stream.process(data, output_buffer_limit=MOST_BYTES + 1)
    except brotli.error as error:
        raise CannotUnpack(Omitted.UNREADABLE) from error
    if len(text) <= MOST_BYTES and not stream.is_finished():
        raise CannotUnpack(Omitted.UNREADABLE)
    return text
