"""The reading thread: whole frames until the server ends the stream, and how it ended.

It reads the socket promptly and does nothing else. A reader that falls a few seconds behind is closed by the API
server, so deciding and publishing happen elsewhere. What it has read but nobody has taken is bounded: beyond that it
stops reading, and watching again from the last frame taken loses nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Self

from job.errors import Expired
from job.ports import Source, Stream

SHORTEST = 3
"""The least timeoutSeconds with a closing bookmark; 0 would mean the server's own half hour (R10)."""
LONGEST = 3600
"""The most: a longer window is watched piece by piece, since a socket's time-out has an end too."""
CLOSED_EARLY = 1.0
"""Seconds before the asked end from which on an end is no longer the asked one (R10)."""
_BUFFER = 16_000_000
"""Bytes that may wait to be taken."""
_GATHER = 0.01
"""Seconds between the first frame and the taking of all that came: waking up for each costs more than deciding it."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a watch ended: by the server's clean close where `error` is None."""

    opened: bool
    """Whether the server accepted it."""
    frames: bool
    """Whether any frame came."""
    early: bool
    """Whether it ended well before the time asked for."""
    error: BaseException | None = None

    @property
    def expired(self) -> bool:
        """Whether the server no longer has the history."""
        return isinstance(self.error, Expired)

    @property
    def silent(self) -> bool:
        """A clean early close without a frame; twice in a row it is one of the forms of expiry."""
        return self.error is None and self.early and not self.frames


class Reader:
    """One watch, read in a thread of its own."""

    def __init__(self, source: Source, version: int, seconds: int) -> None:
        self.version = version
        self._source = source
        self._seconds = seconds
        self._blocks: deque[list[bytes]] = deque()
        self._ended: Ended | None = None
        self._announced = False
        self._announcements: SimpleQueue[None] = SimpleQueue()
        self._room = threading.Condition()
        self._buffered = 0
        self._closed = False
        self._stream: Stream | None = None
        self._thread = threading.Thread(target=self._read, name="watch", daemon=True)

    def start(self) -> Self:
        """Begin to read."""
        self._thread.start()
        return self

    def take(self, timeout: float) -> list[bytes]:
        """All frames that have come; waits up to `timeout` seconds for the first."""
        try:
            self._announcements.get(timeout=timeout)
        except Empty:
            return []
        if not self._ended:
            time.sleep(_GATHER)
        self._announced = False  # before emptying: what comes after that is announced again
        frames: list[bytes] = []
        while self._blocks:
            frames += self._blocks.popleft()
        with self._room:
            self._buffered -= sum(map(len, frames))
            self._room.notify()
        return frames

    @property
    def ended(self) -> Ended | None:
        """How the watch ended; None while it goes on, or has frames that nobody has taken."""
        return None if self._blocks else self._ended

    def wake(self) -> None:
        """Make a waiting `take` return; safe in a signal handler."""
        self._announcements.put(None)

    def close(self) -> None:
        """End the watch, also while the thread is blocked in a read."""
        with self._room:
            self._closed = True
            self._room.notify()
            stream = self._stream
        if stream:
            stream.close()

    def _read(self) -> None:
        error: BaseException | None = None
        frames = False
        began = time.monotonic()
        try:
            stream = self._source.watch(self.version, self._seconds)
            began = time.monotonic()
            with self._room:
                self._stream = stream
                closed = self._closed
            if closed:
                stream.close()
            for block in stream:
                frames = True
                self._keep(block)
                if self._closed:
                    break
            stream.close()
        except BaseException as caught:  # noqa: BLE001 - handed to the main thread, which decides or raises
            error = caught
        early = time.monotonic() - began < self._seconds - CLOSED_EARLY
        self._ended = Ended(opened=self._stream is not None, frames=frames, early=early, error=error)
        self.wake()

    def _keep(self, block: list[bytes]) -> None:
        with self._room:
            while self._buffered >= _BUFFER and not self._closed:
                self._room.wait()
            self._buffered += sum(map(len, block))
        self._blocks.append(block)
        if not self._announced:
            self._announced = True
            self.wake()
