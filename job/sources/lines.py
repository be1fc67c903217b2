"""The lines of an HTTP body that arrives piece by piece, each as soon as it is whole (pure).

The standard library reads chunk by chunk, with some calls for each, and who splits that into lines copies it twice
more. Here a line is cut out of what was received, once. Linear in the bytes, also for lines of 1.5 MB in pieces.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

_LINE_END = b"\n"
_LONGEST_SIZE = 1024
"""Bytes of a chunk's size with its extensions."""


class Broken(Exception):
    """The body ended before its end, or is not what it says it is."""


def lines(read: Callable[[], bytes], *, chunked: bool) -> Iterator[list[bytes]]:
    """The lines that each `read` completes, without their ends; blank ones are left out.

    `read` gives b"" at the end of the connection. With `chunked` the body has an end of its own, and extensions and
    trailers are passed over (RFC 9112, section 7.1). Raises `Broken`.
    """
    begun: list[bytes] = []  # a line whose end has not come
    rest = b""  # a chunk's size of which not everything has come
    left = 0 if chunked else sys.maxsize
    first = True
    while data := read():
        data, rest = rest + data, b""
        position, whole = 0, list[bytes]()
        while position < len(data):
            if not left:
                if not (found := _size(data, position, first=first)):
                    rest = data[position:]
                    break
                left, position = found
                first = False
                if not left:
                    if whole:
                        yield whole
                    _check_end(begun)
                    return
            end = min(position + left, len(data))
            _cut(data, position, end, begun, whole)
            left -= end - position
            position = end
        if whole:
            yield whole
    if chunked:
        message = "it ended in the middle of the answer"
        raise Broken(message)
    _check_end(begun)


def _cut(data: bytes, start: int, end: int, begun: list[bytes], whole: list[bytes]) -> None:
    """Move the lines of `data[start:end]` to `whole`, and what is behind the last to `begun`."""
    while start < end:
        stop = data.find(_LINE_END, start, end)
        if stop < 0:
            begun.append(data[start:end])
            return
        line = data[start:stop]
        if begun:
            begun.append(line)
            line = b"".join(begun)
            begun.clear()
        if line.strip():
            whole.append(line)
        start = stop + 1


def _size(data: bytes, start: int, *, first: bool) -> tuple[int, int] | None:
    """The size of the chunk that begins here, and the position behind it; None while it is not there as a whole.

    The end of the line before it belongs to the chunk before.
    """
    begin = start if first else start + 2
    end = data.find(b"\r\n", begin)
    if end < 0:
        if len(data) - start > _LONGEST_SIZE:
            message = "a chunk without a size"
            raise Broken(message)
        return None
    said = data[begin:end].partition(b";")[0]
    try:
        size = int(said, 16)
    except ValueError:
        size = -1
    if size < 0:
        message = f"a chunk of the size {said[:16]!r}"
        raise Broken(message)
    return size, end + 2


def _check_end(begun: list[bytes]) -> None:
    if b"".join(begun).strip():
        message = "it ended in the middle of a line"
        raise Broken(message)
