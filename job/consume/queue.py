"""Which event is handed over next, which not at all, and which copies that settles (pure).

An event may be delivered as several copies, again and again. What is known of it here:

    add ──> waits ──start──> runs ──succeeded──> done: every later copy is a repeat, unless a gap lies between
              ^                └────failed─────> away: given back, and later versions of the object wait for it
              └──────────── add ──────────────────┘

One event of an object runs at a time, in the order of `event.in_order` among those that wait or are away; where the
broker keeps an order, one of its ordering key, so that it is told about them in that order. Between two
publications of an event may lie that of a gap message of its source. Then the later one says something: whoever keeps
state took what he was told before the gap for gone (R18 in docs/design.md).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

import msgspec

from job.consume.event import Event, Identity, State, in_order

REMEMBERED = 100_000
"""Events that are recognised when they come again; a window may be as long as one likes."""
TRIES = 3
_MOST_GAPS = 1000

Key = TypeVar("Key")
Value = TypeVar("Value")


class Needless(StrEnum):
    """Why an event is acknowledged without being handed over."""

    REPEAT = "repeat"
    OUTDATED = "outdated"


@dataclass
class Waiting:
    """An event with the ids of all its copies that were delivered and not settled."""

    event: Event
    ack_ids: list[str]


class _Away(NamedTuple):
    """An event that was given back, and when."""

    event: Event
    since: float


class _Tried(NamedTuple):
    """How often an event has failed, how often of that in vain, and how many events had succeeded when it did last."""

    failures: int
    in_vain: int
    successes: int


@dataclass
class _Lane:
    """The events of one object, or of one ordering key."""

    ordered: bool
    """By the broker."""
    waiting: dict[Identity, Waiting] = field(default_factory=dict)
    running: Waiting | None = None
    late: list[tuple[Event, str]] = field(default_factory=list)
    """Copies of the one that runs, delivered meanwhile."""
    away: dict[Identity, _Away] = field(default_factory=dict)

    def first(self) -> Waiting | None:
        """What comes next, if it is here: of the object that has waited for longest, its first event."""
        if self.running or not self.waiting:
            return None
        events = [each.event for each in self.waiting.values()] + [each.event for each in self.away.values()]
        longest = min(events, key=lambda each: each.published).object
        return self.waiting.get(in_order(each for each in events if each.object == longest)[0].identity)

    def last(self) -> Waiting:
        """What comes last of what waits."""
        events = [each.event for each in self.waiting.values()]
        latest = max(events, key=lambda each: each.published).object
        return self.waiting[in_order(each for each in events if each.object == latest)[-1].identity]


class Queue:
    """The events of one run.

    With `latest_only`, states older than one that was processed are needless, and all of an object after its deletion.
    With `until_empty`, an event that has failed `TRIES` times is tried again only when another one has succeeded since.
    """

    def __init__(self, *, latest_only: bool = False, until_empty: bool = False) -> None:
        self._latest_only = latest_only
        self._until_empty = until_empty
        self._lanes: dict[tuple[str, ...], _Lane] = {}
        self._done: Recent[Identity, datetime] = Recent()
        self._latest: Recent[tuple[str, str], State] = Recent()
        self._tried: Recent[Identity, _Tried] = Recent()
        self._gaps: dict[str, list[datetime]] = {}
        self._successes = 0
        self.bytes = 0
        """Data of all events that wait or run."""

    def __len__(self) -> int:
        """How many events wait or run."""
        return sum(len(lane.waiting) + (lane.running is not None) for lane in self._lanes.values())

    @property
    def running(self) -> list[Event]:
        """What runs."""
        return [lane.running.event for lane in self._lanes.values() if lane.running]

    @property
    def failing(self) -> int:
        """How many events have failed, and not succeeded since."""
        return len(self._tried)

    @property
    def ack_ids(self) -> list[str]:
        """The leases to be kept."""
        found: list[str] = []
        for lane in self._lanes.values():
            for each in (*lane.waiting.values(), *([lane.running] if lane.running else [])):
                found += each.ack_ids
            found += [ack_id for _, ack_id in lane.late]
        return found

    def add(self, event: Event, ack_id: str) -> bool:
        """Take a delivery. Return whether it is news: nothing of this event was delivered before."""
        lane = self._lanes.setdefault(_lane_of(event), _Lane(bool(event.ordering_key)))
        identity = event.identity
        if event.gap:
            self._note_gap(event)
        if lane.running and lane.running.event.identity == identity:
            lane.late.append((event, ack_id))
            return False
        was_away = lane.away.pop(identity, None) is not None
        if known := lane.waiting.get(identity):
            known.ack_ids.append(ack_id)
            if event.published > known.event.published:
                self.bytes += len(event.data) - len(known.event.data)
                known.event = event
            return False
        lane.waiting[identity] = Waiting(event, [ack_id])
        self.bytes += len(event.data)
        return not was_away and identity not in self._done and identity not in self._tried

    def needless(self) -> list[tuple[Needless, Waiting]]:
        """Take out what waits and need not be handed over; its copies are to be acknowledged. Called until it is empty.

        What the broker keeps in order it is told about in order: there only what comes first is looked at.
        """
        found = []
        for name, lane in list(self._lanes.items()):
            first = lane.first() if lane.ordered else None
            for each in list(lane.waiting.values()):
                why = self._why_needless(each.event)
                if why and (each is first or not lane.ordered):
                    self._take_out(lane, each)
                    self._tried.pop(each.event.identity, None)
                    found.append((why, each))
            self._close(name, lane)
        return found

    def start(self) -> Event | None:
        """Let the next event run, if there is one that may; those that have failed least come first."""
        busy = {each.object for each in self.running}  # perhaps in another lane: the number of keys was changed
        found = [
            (lane, each)
            for lane in self._lanes.values()
            if (each := lane.first()) and each.event.object not in busy and self._may_run(each.event)
        ]
        if not found:
            return None
        lane, chosen = min(found, key=lambda one: (self._failures(one[1].event), one[1].event.published))
        del lane.waiting[chosen.event.identity]
        lane.running = chosen
        return chosen.event

    def succeeded(self, event: Event) -> list[str]:
        """Note that it has been processed. Return the copies to be acknowledged."""
        lane, ended = self._end(event)
        identity = event.identity
        self._successes += 1
        self._done.note(identity, event.published)
        self._tried.pop(identity, None)
        if event.incarnation and (state := event.state):
            self._latest.note(event.incarnation, max(state, self._latest.get(event.incarnation, state)))
        late, lane.late = lane.late, []
        for copy, ack_id in late:
            self.add(copy, ack_id)
        self._close(_lane_of(event), lane)
        return ended.ack_ids

    def failed(self, event: Event, now: float) -> list[str]:
        """Note that it has not been processed. Return the copies to be given back."""
        lane, ended = self._end(event)
        before = self._tried.get(event.identity, _Tried(0, 0, self._successes))
        in_vain = before.in_vain if before.successes == self._successes else 0
        self._tried.note(event.identity, _Tried(before.failures + 1, in_vain + 1, self._successes))
        lane.away[event.identity] = _away(event, now)
        late, lane.late = lane.late, []
        return [*ended.ack_ids, *(ack_id for _, ack_id in late)]

    def give_back(self, most: int, now: float) -> list[Waiting]:
        """Take out what waits, the last of each object first, so many of them; its copies are to be given back."""
        found: list[Waiting] = []
        for name, lane in list(self._lanes.items()):
            while lane.waiting and len(found) < most:
                last = lane.last()
                found.append(last)
                self._take_out(lane, last)
                if not self._why_needless(last.event):  # else nothing waits for it, and it may never come again
                    lane.away[last.event.identity] = _away(last.event, now)
            self._close(name, lane)
        return found

    def blocked(self) -> list[Waiting]:
        """Take out what waits for one that is away, where the broker waits for these, too; they are to be given back.

        Elsewhere they stay, so that they need not be delivered again.
        """
        found: list[Waiting] = []
        for lane in self._lanes.values():
            if lane.ordered and lane.away and not lane.running and not lane.first():
                found += lane.waiting.values()
                for each in list(lane.waiting.values()):
                    self._take_out(lane, each)
        return found

    def forget_away(self, before: float) -> None:
        """Wait no longer for what was given back so long ago: somebody else may have taken it."""
        for name, lane in list(self._lanes.items()):
            for identity, away in list(lane.away.items()):
                if away.since < before:
                    del lane.away[identity]
            self._close(name, lane)

    def _why_needless(self, event: Event) -> Needless | None:
        done = self._done.get(event.identity)
        if done and not self._gap_between(event.identity.source, done, event.published):
            return Needless.REPEAT
        if self._latest_only and not event.gap and event.incarnation:
            latest = self._latest.get(event.incarnation)
            state = event.state or State(event.epoch, deleted=False, version=latest.version if latest else 0)
            if latest and state < latest:
                return Needless.OUTDATED
        return None

    def _may_run(self, event: Event) -> bool:
        tried = self._tried.get(event.identity)
        return not (self._until_empty and tried and tried.in_vain >= TRIES and tried.successes == self._successes)

    def _failures(self, event: Event) -> int:
        tried = self._tried.get(event.identity)
        return tried.failures if tried else 0

    def _end(self, event: Event) -> tuple[_Lane, Waiting]:
        lane = self._lanes[_lane_of(event)]
        ended = lane.running
        if ended is None or ended.event is not event:
            message = f"{event.identity} does not run"
            raise ValueError(message)
        lane.running = None
        self.bytes -= len(event.data)
        return lane, ended

    def _take_out(self, lane: _Lane, each: Waiting) -> None:
        del lane.waiting[each.event.identity]
        self.bytes -= len(each.event.data)

    def _close(self, name: tuple[str, ...], lane: _Lane) -> None:
        if not (lane.waiting or lane.running or lane.away):
            self._lanes.pop(name, None)

    def _note_gap(self, event: Event) -> None:
        gaps = self._gaps.setdefault(event.identity.source, [])
        if event.published not in gaps:
            insort(gaps, event.published)
            del gaps[:-_MOST_GAPS]

    def _gap_between(self, source: str, earlier: datetime, later: datetime) -> bool:
        gaps = self._gaps.get(source, [])
        return bisect_right(gaps, earlier) < bisect_left(gaps, later)


def _away(event: Event, now: float) -> _Away:
    """Without its data, which nobody needs until it comes back."""
    return _Away(msgspec.structs.replace(event, data=b""), now)


def _lane_of(event: Event) -> tuple[str, ...]:
    return (event.ordering_key,) if event.ordering_key else event.object


class Recent(dict[Key, Value], Generic[Key, Value]):
    """Forgets what was noted first."""

    def __init__(self, most: int = REMEMBERED) -> None:
        super().__init__()
        self._most = most

    def note(self, key: Key, value: Value) -> None:
        """Set a value, as the newest."""
        self.pop(key, None)
        self[key] = value
        if len(self) > self._most:
            del self[next(iter(self))]
