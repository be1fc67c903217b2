"""From acknowledgements in any order to the acknowledged prefix (pure).

Positions are entered in the order of the stream. An effect takes place when its position and all before it are done, so
that the checkpoint never runs ahead of the sink (P2). The shape is that of Kafka Connect's SubmittedRecords.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

Consequence = TypeVar("Consequence")


class Position(Generic[Consequence]):
    """A place in the stream."""

    __slots__ = ("done", "effect")

    def __init__(self, effect: Consequence, *, done: bool) -> None:
        self.effect = effect
        self.done = done


class Watermark(Generic[Consequence]):
    """The line below which everything is done."""

    def __init__(self) -> None:
        self._open: deque[Position[Consequence]] = deque()

    def __len__(self) -> int:
        """How many positions are not below the line."""
        return len(self._open)

    def enter(self, effect: Consequence, *, done: bool = False) -> Position[Consequence]:
        """The next position; `done` at once where nothing has to be stored for it."""
        position = Position(effect, done=done)
        self._open.append(position)
        return position

    def rise(self, done: Iterable[Position[Consequence]] = ()) -> Iterator[Consequence]:
        """Mark positions as done; gives the effects that are now below the line, in order."""
        for position in done:
            position.done = True
        while self._open and self._open[0].done:
            yield self._open.popleft().effect
