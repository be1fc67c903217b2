"""The walk: every change of a name between two versions, given a way to look at the versions in between (pure).

An object's version is the one at which it was written, so what stood at the version before that is its predecessor: the
walk goes back from write to write (R11). What is gone at the end leaves no such trace: its deletion lies between a
version that still had it and one that had not, and is found by halving.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import msgspec

from job.change import Kind, Object
from job.ports import Event

State = Mapping[str, Object]
"""What existed at one version, by `Object.key`."""

_GROWTH = {Kind.ADDED: 1, Kind.MODIFIED: 0, Kind.DELETED: -1}


class Span(msgspec.Struct, frozen=True):
    """Who had one name at two versions."""

    start: int
    before: Object | None
    end: int
    after: Object | None

    @property
    def ended(self) -> bool:
        """Whether somebody had the name, and nobody has it any more."""
        return self.before is not None and self.after is None


class Piece(msgspec.Struct, frozen=True):
    """The state at two versions."""

    start: int
    before: State
    end: int
    after: State

    @property
    def uids(self) -> set[str]:
        """Who shows at its ends."""
        return {thing.uid for state in (self.before, self.after) for thing in state.values()}

    def falls(self, counts: Mapping[int, int], written: Mapping[int, Kind]) -> list[int]:
        """The versions at which something was deleted, where all were counted at which nothing known was written."""
        known = {**counts, self.end: len(self.after)}
        falls, now = [], len(self.before)
        for version in range(self.start + 1, self.end + 1):
            before = now
            now = before + _GROWTH[written[version]] if version in written else known[version]
            if now < before:
                falls.append(version)
        return falls


class Inexact(Exception):
    """The counts of a server and its objects do not agree."""


class Clues:
    """What tells where in a piece something was deleted, before anybody looks there."""

    def __init__(self, states: Mapping[int, State] = MappingProxyType({}), falls: Sequence[int] | None = None) -> None:
        self.states = states
        """The state at some versions within the piece: looks that cost nothing."""
        self._seen = sorted(states)
        self._falls = falls

    def deletion(self, start: int, end: int) -> int:
        """The only version in (start, end] at which it can have been; 0 while there are more. Raises `Inexact`."""
        if self._falls is None:
            return end if end == start + 1 else 0
        first, behind = bisect_right(self._falls, start), bisect_right(self._falls, end)
        if first == behind:
            message = f"something was deleted between versions {start} and {end}, and no count fell"
            raise Inexact(message)
        return self._falls[first] if behind == first + 1 else 0

    def middle(self, start: int, end: int) -> int:
        """The version to look at next, where there are more."""
        first, behind = bisect_right(self._seen, start), bisect_left(self._seen, end)
        if first < behind:
            return self._seen[(first + behind) // 2]
        if self._falls is None:
            return (start + end) // 2
        return self._falls[(bisect_right(self._falls, start) + bisect_right(self._falls, end) - 1) // 2]


class Look(Protocol):
    """Who had the name of a span at a version."""

    def __call__(self, version: int, *, whole: bool) -> Object | None:
        """With its data if `whole` and if there is room for them."""


NONE = Clues()


def spans(piece: Piece) -> Iterator[tuple[Object, Span]]:
    """What was written in a piece, as far as its ends show: an object that says the name, and who had it."""
    for key, thing in piece.after.items():
        was = piece.before.get(key)
        if was is None or was.version != thing.version:
            yield thing, Span(piece.start, was, piece.end, thing)
    for key in piece.before.keys() - piece.after.keys():
        yield piece.before[key], Span(piece.start, piece.before[key], piece.end, None)


def lives(piece: Piece, known: set[str], looks: Mapping[int, State]) -> Iterator[tuple[Object, Span]]:
    """What was written of those who only show at looks within a piece, on both sides of one; they are known then."""
    for version, state in looks.items():
        for key, thing in state.items():
            if thing.uid not in known:
                known.add(thing.uid)
                yield thing, Span(piece.start, piece.before.get(key), version, thing)
                yield thing, Span(version, thing, piece.end, piece.after.get(key))


def chain(span: Span, look: Look) -> tuple[list[Event], Span]:
    """What was written of a name, newest first, back to where nobody had it or to the start; and what is left."""
    start, before, end, after = span.start, span.before, span.end, span.after
    found = []
    while after is not None and after.version > start:
        end = after.version - 1
        earlier = before if end == start else look(end, whole=True)
        born = earlier is None or earlier.uid != after.uid
        found.append(Event(Kind.ADDED if born else Kind.MODIFIED, after))
        after = earlier
    return found, Span(start, before, end, after)


def events(span: Span, look: Look, clues: Clues = NONE) -> Iterator[Event]:
    """What the watch would have told of a span, newest first. Only who lived between two looks is missed.

    An object is given as it was found, so with or without its data; a deletion has its own version (R8).
    Raises `Inexact` where the clues mislead.
    """
    todo = [span]
    while todo:
        found, rest = chain(todo.pop(), look)
        yield from found
        if not rest.ended:
            continue
        start, before, end = rest.start, rest.before, rest.end
        if version := clues.deletion(start, end):
            last = before if version - 1 == start else look(version - 1, whole=True)
            if last is None or before is None or last.uid != before.uid:
                message = f"nothing known was deleted at version {version}, where alone it can have been"
                raise Inexact(message)
            yield Event(Kind.DELETED, msgspec.structs.replace(last, version=version))
            todo.append(Span(start, before, version - 1, last))
        else:
            middle = clues.middle(start, end)
            there = look(middle, whole=False)
            todo += [Span(start, before, middle, there), Span(middle, there, end, None)]


def crowded(counts: Mapping[int, int], alive: int, events: Iterable[Event]) -> list[int]:
    """Versions at which more existed than is known: of each stretch of them the one that shows most.

    `counts` are the server's, by version; `alive` is how many there were before the first event. Raises `Inexact`.
    """
    changes = deque(
        sorted((event.object.version, _GROWTH[event.kind]) for event in events if event.kind is not Kind.MODIFIED)
    )
    found: list[int] = []
    most = 0
    for version in sorted(counts):
        while changes and changes[0][0] <= version:
            alive += changes.popleft()[1]
        unknown = counts[version] - alive
        if unknown < 0:
            message = f"{counts[version]} objects are counted at version {version}, and {alive} are known"
            raise Inexact(message)
        if unknown > most:
            found[-1:] = [version] if most else [*found[-1:], version]
        most = max(most, unknown) if unknown else 0
    return found


def closer(piece: Piece, counted: Iterable[int], edges: Iterable[int]) -> list[int]:
    """The middles between those counts, or ends of the piece, that stand around these versions."""
    looks = sorted({piece.start, piece.end, *counted})
    around = {bisect_left(looks, edge) for edge in edges}
    return [(looks[place - 1] + looks[place]) // 2 for place in sorted(around) if looks[place] - looks[place - 1] > 1]
