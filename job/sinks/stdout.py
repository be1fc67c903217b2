"""Messages on standard output, one JSON object a line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Self

from job.access import Access
from job.errors import SinkClosed, Unavailable, UsageError
from job.message import Message, structured
from job.ports import Check, Limits
from job.settings import Address

_STDOUT = 1


class StdoutSink:
    """The pipe or terminal that standard output is. What it has taken counts as stored."""

    limits = Limits(lanes=1, messages=1000, bytes=1_000_000)

    def __init__(self) -> None:
        self._torn = False

    @classmethod
    def at(cls, address: Address, _: Access) -> Self:
        """The sink of `stdout:`. Raises `UsageError`."""
        if address.path:
            message = f"the sink {str(address)!r} has something behind `stdout:`"
            raise UsageError(message)
        return cls()

    def open(self) -> None:
        """Nothing to get ready."""

    def publish(self, lane: int, messages: Sequence[Message], timeout: float) -> None:  # noqa: ARG002 - a pipe has none
        """Write the lines; after one that was only half written, on a line of their own."""
        lines = b"".join(structured(message) + b"\n" for message in messages)
        data = memoryview(b"\n" + lines if self._torn else lines)
        self._torn = True
        try:
            while data:
                data = data[os.write(_STDOUT, data) :]
        except BrokenPipeError as error:
            message = "whoever read standard output has closed it"
            raise SinkClosed(message) from error
        except OSError as error:
            message = f"standard output cannot be written: {error.strerror}"
            raise Unavailable(message) from error
        self._torn = False

    def checks(self, timeout: float) -> Iterator[Check]:  # noqa: ARG002 - nothing is asked
        """That it is open."""
        what = "standard output"
        try:
            os.fstat(_STDOUT)
        except OSError as error:
            yield Check.fail(what, f"it cannot be written: {error.strerror}", "open it, or give --sink")
        else:
            yield Check.ok(what, "messages go there, and nowhere else")
