"""The two messages of Pub/Sub's Publish, as bytes (pure).

    message PublishRequest  { string topic = 1; repeated PubsubMessage messages = 2; }
    message PubsubMessage   { bytes data = 1; map<string, string> attributes = 2; string ordering_key = 5; }
    message PublishResponse { repeated string message_ids = 1; }

as far as they are used here, from
<https://github.com/googleapis/googleapis/blob/master/google/pubsub/v1/pubsub.proto>, encoded as
<https://protobuf.dev/programming-guides/encoding/> says: the tag of a field is eight times its number, plus 2 where it
has a length. The generated types take twice the CPU for a message, and their import alone as much as the rest of a
short run (docs/benchmarks.md); they are the tests' oracle.
"""

from __future__ import annotations

from collections.abc import Iterable

_MESSAGE_IDS = 0x0A
_SHORT = [bytes((number,)) for number in range(0x80)]


def publish_request(topic: str, messages: Iterable[tuple[bytes, bytes]], ordering_key: str) -> bytes:
    """A PublishRequest of messages, each its attributes and its data, all with one ordering key; empty: with none."""
    key = _field(b"\x2a", ordering_key.encode()) if ordering_key else b""
    parts = [_field(b"\x0a", topic.encode())]
    for attributes, data in messages:
        size = _varint(len(data))
        parts += (b"\x12", _varint(1 + len(size) + len(data) + len(attributes) + len(key)))
        parts += (b"\x0a", size, data, attributes, key)
    return b"".join(parts)


def attribute(name: str, value: str) -> bytes:
    """An entry of a message's attributes; the entries of a message follow one another, in any order."""
    key, text = name.encode(), value.encode()
    entry = b"\x0a%b%b\x12%b%b" % (_varint(len(key)), key, _varint(len(text)), text)
    return b"\x12%b%b" % (_varint(len(entry)), entry)


def stored(response: bytes) -> int:
    """How many message ids a PublishResponse has. Raises `ValueError` for what is none."""
    position = ids = 0
    while position < len(response):
        tag, position = _read_varint(response, position)
        if tag != _MESSAGE_IDS:
            message = f"a PublishResponse with the field {tag:#x}"
            raise ValueError(message)
        size, position = _read_varint(response, position)
        position += size
        ids += 1
    if position != len(response):
        message = "a PublishResponse that is cut off"
        raise ValueError(message)
    return ids


def _field(tag: bytes, value: bytes) -> bytes:
    return b"%b%b%b" % (tag, _varint(len(value)), value)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that another byte follows."""
    if number <= 0x7F:  # noqa: PLR2004
        return _SHORT[number]
    encoded = bytearray()
    while number > 0x7F:  # noqa: PLR2004
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The number that begins at a position, and the position behind it."""
    number = shift = 0
    while True:
        if position >= len(data):
            message = "a PublishResponse that is cut off"
            raise ValueError(message)
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:  # noqa: PLR2004
            return number, position
