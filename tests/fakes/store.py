"""A store in memory that does what a test has written in its script."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Self

from job.errors import Unavailable
from job.ports import Check, Conflict, Stored


class Save(Enum):
    """What becomes of one save."""

    DONE = auto()
    UNAVAILABLE = auto()
    """Nothing is written, and the store says that it does not know."""
    LOST = auto()
    """The value is written, and the answer is lost."""
    HANGS = auto()
    """There is no answer until the store is left."""


class MemoryStore:
    """Keeps one value under a generation number, and remembers every value it ever had.

    A context manager: leaving it lets everything go that hangs.
    """

    def __init__(self, data: bytes | None = None, *, most_bytes: int | None = None) -> None:
        self.most_bytes = most_bytes
        self.values: list[bytes] = []
        """Every value that was written, the newest last."""
        self.on_write: Callable[[bytes], object] = lambda _: None
        """Called with a value just before it is written."""
        self.before_save: deque[Callable[[], object]] = deque()
        """What happens before the next saves, one for each."""
        self._generation = 0
        self._data: bytes | None = None
        self._script: deque[Save] = deque()
        self.otherwise = Save.DONE
        """What becomes of a save when the script is at its end."""
        self._lock = threading.RLock()
        self._released = threading.Event()
        self.unreachable = False
        """Whether loading fails."""
        if data is not None:
            self.put(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()

    def answer(self, *saves: Save) -> None:
        """What to do with the next saves."""
        self._script.extend(saves)

    def put(self, data: bytes | None) -> None:
        """Somebody else writes, or removes, the value."""
        with self._lock:
            self._generation += 1
            self._data = data
            if data is not None:
                self.values.append(data)

    def open(self) -> None:
        """Nothing to get ready."""

    def load(self, timeout: float) -> Stored | None:
        with self._lock:
            if self.unreachable:
                message = "the store cannot be reached"
                raise Unavailable(message)
            return None if self._data is None else Stored(self._data, self._generation)

    def look(self, timeout: float) -> Stored | None:
        return self.load(timeout)

    def checks(self, timeout: float) -> Iterator[Check]:
        if self.unreachable:
            yield Check.fail("store", "the store cannot be reached", "let it be reachable")
        else:
            yield Check.ok("store", "in memory")

    def save(self, data: bytes, replacing: object | None, timeout: float) -> object:
        with self._lock:
            outcome = self._script.popleft() if self._script else self.otherwise
            first = self.before_save.popleft() if self.before_save else None
        if first:
            first()
        if outcome is Save.HANGS:
            self._released.wait()
        with self._lock:
            if outcome in {Save.DONE, Save.LOST}:
                if replacing != (None if self._data is None else self._generation):
                    raise Conflict
                self.on_write(data)
                self.put(data)
            if outcome is not Save.DONE:
                message = f"the store was told: {outcome.name}"
                raise Unavailable(message)
            return self._generation
