"""Old versions, read from etcd's history through the API server, a few at a time.

Whoever asks a server for the state at one version must look whether that is what came: one that does not know
`resourceVersionMatch` answers with what it has.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec

from job.change import Kind, Object, Recovery
from job.errors import Expired, TemporaryError, WatcherError
from job.payload.object import at_version
from job.ports import Event, Page, Patience, Query, Source
from job.run.background import in_parallel
from job.run.listing import PAGE
from job.run.walk import NONE, Clues, Look, Span, State, chain, events

CONNECTIONS = 6
ROOM = 16_000_000
"""Bytes of objects that are kept from the way back; what has no room is read again on the way forth."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Unreadable(Exception):
    """Old versions are not to be had, any longer or at all; `how` says which."""

    def __init__(self, how: Recovery, why: object) -> None:
        super().__init__(why)
        self.how = how


class Past:
    """Reads it for one run. `wanted` says of which objects the data will be needed."""

    def __init__(
        self, source: Source, patience: Patience, *, wanted: Callable[[Object], bool], check: Callable[[], None]
    ) -> None:
        self._source = source
        self._patience = patience
        self._wanted = wanted
        self._check = check
        self._lock = threading.Lock()
        self._room = ROOM
        self.requests = 0

    def states(self, versions: Sequence[int], like: State) -> list[State]:
        """What existed at these versions. What is as it was in `like` is the same value."""
        return self._each(lambda version: self._state(version, like), versions)

    def events(self, spans: Sequence[tuple[Object, Span]], clues: Clues = NONE) -> list[Event]:
        """What happened in these spans; some without their data where there is no room. Raises `Inexact`."""
        return [event for each in self._each(lambda named: self._span(*named, clues), spans) for event in each]

    def chains(self, spans: Sequence[tuple[Object, Span]]) -> tuple[list[Event], list[tuple[Object, Span]]]:
        """What was written of those who have the names at the ends; and the spans in which something was deleted."""
        found = self._each(lambda named: self._chain(*named), spans)
        rest = [(thing, rest) for (thing, _), (_, rest) in zip(spans, found, strict=True) if rest.ended]
        return [event for events, _ in found for event in events], rest

    def counts(self, versions: Sequence[int]) -> tuple[list[int], float]:
        """How many objects existed at these versions; and the seconds for one count, whatever held up a few of them."""
        counted = self._each(self._timed_count, versions)
        median = sorted(seconds for _, seconds in counted)[len(counted) // 2]
        return [count for count, _ in counted], median / min(CONNECTIONS, len(counted))

    def make_room(self) -> None:
        """Let the next events keep their data; nobody has those of the last ones any more."""
        self._room = ROOM

    def completed(self, some: Sequence[Event]) -> list[Event]:
        """The same events, with their data where those will be needed."""
        bare = [number for number, each in enumerate(some) if not each.object.data and self._wanted(each.object)]
        read = self._each(lambda number: self.complete(some[number]), bare)
        whole = dict(zip(bare, read, strict=True))
        return [whole.get(number, each) for number, each in enumerate(some)]

    def complete(self, event: Event) -> Event:
        """The event with its data."""
        thing = event.object
        if event.kind is not Kind.DELETED:
            return event if thing.data else Event(event.kind, self._read(thing, thing.version))
        last = thing if thing.data else self._read(thing, thing.version - 1)
        data = at_version(last.data, thing.version)
        return Event(Kind.DELETED, msgspec.structs.replace(last, version=thing.version, data=data))

    def _each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        def check() -> None:
            self._check()
            self._hurry()

        return in_parallel("past", work, items, threads=CONNECTIONS, check=check)

    def _hurry(self) -> None:
        if not self._patience.left():
            raise Unreadable(Recovery.LATE, "no time was left")

    def _state(self, version: int, like: State) -> State:
        state: dict[str, Object] = {}
        for page in self._pages(Query(limit=PAGE, at=version)):
            for thing in page.objects:
                key = thing.key
                same = like.get(key)
                state[key] = thing if same is None or same.version != thing.version else same
        return state

    def _timed_count(self, version: int) -> tuple[int, float]:
        began = self._patience.left()
        return self._count(version), began - self._patience.left()

    def _count(self, version: int) -> int:
        """By the number that the server says to remain behind one object: reading all of them takes much longer."""
        page = next(self._pages(Query(limit=1, at=version)))
        if page.token and page.remaining is None:
            return sum(len(page.objects) for page in self._pages(Query(limit=PAGE, at=version)))
        return len(page.objects) + (page.remaining or 0)

    def _chain(self, thing: Object, span: Span) -> tuple[list[Event], Span]:
        found, rest = chain(span, self._looking(thing, NONE))
        return self._filled(found), rest

    def _span(self, thing: Object, span: Span, clues: Clues) -> list[Event]:
        return self._filled(events(span, self._looking(thing, clues), clues))

    def _looking(self, thing: Object, clues: Clues) -> Look:
        def look(version: int, *, whole: bool) -> Object | None:
            if not whole and version in clues.states:
                return clues.states[version].get(thing.key)
            return self._look(thing, version, whole=whole and self._has_room(thing))

        return look

    def _filled(self, found: Iterable[Event]) -> list[Event]:
        """The events, with their data where there is room."""
        return [self.complete(each) if each.object.data or self._has_room(each.object) else each for each in found]

    def _has_room(self, thing: Object) -> bool:
        return self._room > 0 and self._wanted(thing)

    def _look(self, thing: Object, version: int, *, whole: bool) -> Object | None:
        query = Query(limit=1, at=version, namespace=thing.namespace, name=thing.name, whole=whole)
        found = next((each for page in self._pages(query) for each in page.objects if each.key == thing.key), None)
        if found and found.data:
            with self._lock:
                self._room -= len(found.data)
        return found

    def _read(self, thing: Object, version: int) -> Object:
        found = self._look(thing, version, whole=True)
        if found is None or found.uid != thing.uid:
            message = f"the API server lists {thing.key} at version {version}, and does not give it"
            raise Unreadable(Recovery.REFUSED, message)
        return found

    def _pages(self, query: Query) -> Iterator[Page]:
        version = query.at
        while True:
            page = self._page(query)
            newest = max((thing.version for thing in page.objects), default=0)
            if page.version != version or newest > version:
                answer = max(page.version, newest)
                message = f"the API server was asked for version {version}, and answered with {answer}"
                raise Unreadable(Recovery.REFUSED, message)
            yield page
            if not page.token:
                return
            query = msgspec.structs.replace(query, limit=PAGE, at=0, token=page.token)

    def _page(self, query: Query) -> Page:
        self._hurry()
        with self._lock:
            self.requests += 1
        try:
            return self._source.list(query, self._patience)
        except Expired as error:
            raise Unreadable(Recovery.COMPACTED, error) from error
        except TemporaryError as error:  # it was tried again, until there was no time for that
            raise Unreadable(Recovery.LATE, error) from error
        except WatcherError as error:
            raise Unreadable(Recovery.REFUSED, error) from error
