"""The object itself, byte for byte, less the API server's bookkeeping (pure).

Numbers, key order and unknown fields must pass through untouched, so the object is never parsed and printed again: the
two members that are dropped are cut out of its bytes. What makes the cut exact is that inside a JSON string every quote
is escaped: `"managedFields":[` outside a string is a key, and only metadata has one before its own.
"""

from __future__ import annotations

import re

import msgspec

MANAGED_FIELDS = b'"managedFields":'
LAST_APPLIED = b'"kubectl.kubernetes.io/last-applied-configuration":'

_USUAL_START = re.compile(rb'\{(?:"(?:apiVersion|kind)":"[^"]*",){0,2}"metadata":\{')
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def trim(
    text: bytes,
    managed_fields: msgspec.Raw | None,
    last_applied: msgspec.Raw | None,
    *,
    start: int = 0,
    end: int | None = None,
) -> bytes:
    """Cut both members out of the object that is `text[start:end]`; copies its bytes once.

    Each member is given as its value's own bytes, None where it is absent.
    """
    end = len(text) if end is None else end
    if managed_fields is None and last_applied is None:
        return text[start:end]
    metadata = _metadata(text, start, end)
    cuts: list[tuple[int, int]] = []
    if managed_fields is not None:
        cuts.append(_member(text, metadata, MANAGED_FIELDS, managed_fields))
    if last_applied is not None:
        # A label may have the same name; in built-in types labels come before annotations.
        annotations = text.index(b'"annotations":{', metadata)
        cuts.append(_member(text, annotations, LAST_APPLIED, last_applied))
    view, pieces = memoryview(text), []
    for first, last in sorted(cuts):
        pieces.append(view[start:first])
        start = last
    return b"".join((*pieces, view[start:end]))


def at_version(text: bytes, version: int) -> bytes:
    """The object with another resourceVersion, as the API server writes a deletion's into the last state (R8)."""
    first, last = _value(text, *_value(text, 0, len(text), "metadata"), "resourceVersion")
    return b'%b"%d"%b' % (text[:first], version, text[last:])


def _member(text: bytes, start: int, key: bytes, value: msgspec.Raw) -> tuple[int, int]:
    """Where the member stands, with one of the commas beside it.

    The first byte of the value tells it from a label or an annotation of the same name, whose values are strings.
    """
    held = memoryview(value)
    first = text.index(key + held[:1], start)
    last = first + len(key) + len(held)
    if text[last : last + 1] == b",":
        return first, last + 1
    return first - (text[first - 1 : first] == b","), last


def _metadata(text: bytes, start: int, end: int) -> int:
    """Where the value of the object's own `metadata` begins."""
    if usual := _USUAL_START.match(text, start):
        return usual.end()
    # A custom resource with a top-level key that sorts before "metadata".
    return _value(text, start, end, "metadata")[0]


def _value(text: bytes, start: int, end: int, wanted: str) -> tuple[int, int]:
    """Where the value of a member stands in the object that is `text[start:end]`, by a walk over those before it."""
    position = start + 1
    for name, value in _members(memoryview(text)[start:end]).items():
        position = _string_end(text, position) + 1
        behind = position + len(memoryview(value))
        if name == wanted:
            return position, behind
        position = behind + 1
    message = f"an object without {wanted}"
    raise ValueError(message)


def _string_end(data: bytes, start: int) -> int:
    """The position behind the string that begins at `start`."""
    position = start + 1
    while data[position : position + 1] != b'"':
        position += 2 if data[position : position + 1] == b"\\" else 1
    return position + 1
