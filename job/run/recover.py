"""After an expiry: what the watch would have told, from etcd's history (R11).

The API server refuses to watch from a version that is older than its ring of events, but LIST Exact reads that version
from etcd for some minutes more. So the history between the position and now is read in pieces, oldest first: what a
piece has at its two ends differs by what was written in it, and each difference is walked back. What comes out is told
as the watch would have told it, in the order of versions, so that it moves the checkpoint as the watch does: a run that
is killed here leaves a version to go on from.

What was both created and deleted within a piece shows at neither end, but it counted while it lived. So the objects are
counted at versions in between: where there are more than is known, a look at that version shows who. While there are
few versions, all of them are counted, and nothing is missing. With many, those that are counted stand at most `spacing`
apart, and a gap message says that shorter lives may be missing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from job.change import Kind, Provenance, Reason, Recovery
from job.logs import event
from job.ports import Event, Query
from job.run import listing
from job.run.commit import Effect
from job.run.deadline import Recovering
from job.run.listing import WHOLE_PAGE
from job.run.observe import observe
from job.run.past import Past, Unreadable
from job.run.relist import Diff, WentBack
from job.run.session import Session, timestamp
from job.run.walk import Clues, Inexact, Piece, State, closer, crowded, lives, spans

_PIECE = 1_000
"""Versions of a piece, at least: more where there are so many that the ends of pieces would take too long."""
_MOST_PIECES = 50
_FOR_STATES, _FOR_COUNTS = 0.2, 0.5
"""Shares of the time: for the states at the ends of the pieces, and for counting. The rest is for the walk."""
_OBJECTS_OF_STATES = 50_000
"""The states that are in memory at a time, but for the ends, have no more objects together."""
_TRIAL = 48
"""Counts, from which to know what one takes."""
_LEAST_SECONDS = 0.0001
"""What one count takes at least."""

_Events = dict[tuple[int, str], Event]
"""By version and uid."""

log = logging.getLogger(__name__)


def recover(session: Session, reason: Reason, watch: Callable[[int], None]) -> tuple[Recovery, int]:
    """Tell what happened since the session's position, up to some version N from now; `watch(N)` is called at once.

    Gives how far that came, and N. Short of `COMPLETE` and `SAMPLED` the rest is to be inferred, from the position on.
    Raises `WentBack`.
    """
    session.settle()
    listing.count(session)
    with session.deadline.recovering() as patience:
        with session.deadline.interruptible():
            end = session.source.list(Query(limit=1)).version
        if end < session.position:
            raise WentBack
        listed_at = timestamp(session.now())
        watch(end)
        walk = _Walk(session, reason, patience, end)
        try:
            walk.go()
        except Unreadable as error:
            return walk.ended(error.how, error), end
    session.since = listed_at
    session.enter(Effect(version=end, since=listed_at, audited_at=listed_at, identity=session.identity))
    session.ledger.acknowledge()
    return walk.ended(Recovery.SAMPLED if walk.announced else Recovery.COMPLETE), end


class Plan:
    """How far apart the versions are that are counted, by what the last counts took."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds * _FOR_COUNTS
        self.each = _LEAST_SECONDS
        """Seconds for one count, which is what a look at one name takes, too."""

    def spacing(self, distance: int, unknown: int) -> int:
        """How far to go from one count to the next, over a distance of versions of which so many need one.

        1 where there is time for all those. Otherwise half of the time is for even steps, the rest for closer looks.
        """
        affordable = int(self._left / self.each)
        if unknown <= affordable:
            return 1
        return -(-distance // max(1, affordable // 2))

    def hurry(self, left: float) -> None:
        """Note that there are no more than so many seconds left in all."""
        self._left = min(self._left, left * _FOR_COUNTS)

    def took(self, seconds: float, each: float) -> None:
        """Note what some counts took, in all and each of them."""
        self._left = max(0.0, self._left - seconds)
        self.each = max(each, self.each / 2, _LEAST_SECONDS)


class _Walk:
    """From the position to `end`."""

    def __init__(self, session: Session, reason: Reason, patience: Recovering, end: int) -> None:
        self.announced = 0
        """The spacing that a gap message has announced, which then is kept; 0: every version was counted so far."""
        self._session = session
        self._reason = reason
        self._patience = patience
        self._start = session.position
        self._end = end
        self._since = session.since
        self._time = patience.left()
        self._plan = Plan(self._time)
        self._state_seconds = _LEAST_SECONDS
        matches = session.settings.selector.matches
        self._past = Past(
            session.source,
            patience,
            wanted=lambda thing: thing.uid in session.seen or matches(thing.labels),
            check=self._check,
        )

    def go(self) -> None:
        """Tell everything."""
        session, began = self._session, self._session.deadline.elapsed
        at, (state,) = self._start, self._past.states([self._start], {})
        self._state_seconds = max(_LEAST_SECONDS, session.deadline.elapsed - began)
        self._audit(state)
        pieces = min(_MOST_PIECES, int(self._time * _FOR_STATES / self._state_seconds))
        size = max(_PIECE, -(-(self._end - at) // max(1, pieces)))
        self._counted(range(at + 1, self._end)[:_TRIAL])  # to know what a count takes
        while at < self._end:
            stop = min(at + size, self._end)
            piece = Piece(at, state, stop, *self._past.states([stop], state))
            events, spacing = self._read(piece)
            if spacing > max(1, self.announced):
                session.announce_samples(self._reason, at, self._end, spacing)
                self.announced = spacing
            self._tell(events)
            at, state = piece.end, piece.after
            session.enter(Effect(version=at, since=self._since))
            session.ledger.acknowledge()
            session.position = at

    def ended(self, how: Recovery, error: Exception | None = None) -> Recovery:
        """Say how it went."""
        log.info(
            "History from %d to %d was read back up to %d: %s%s",
            self._start,
            self._end,
            self._session.position,
            how,
            f" ({error})" if error else "",
            extra=event("history.recovered", requests=self._past.requests, spacing=self.announced or 1),
        )
        return how

    def _audit(self, state: State) -> None:
        """The inventory must be what the server's own past says it was; a difference is told as inferred (R9)."""
        session = self._session
        diff = Diff(session.seen, session.settings.selector)
        if diff.page(state.values()) or diff.rest():
            if not listing.audit(session):
                raise Unreadable(Recovery.COMPACTED, "the comparison with the inventory came too late")
            session.settle()

    def _read(self, piece: Piece) -> tuple[list[Event], int]:
        """What happened in a piece, by versions, and how far apart the counts are that say so."""
        self._past.make_room()
        try:
            events, spacing = self._explained(piece)
        except Inexact as error:
            spacing = self._give_up(piece, error)
            self._past.make_room()
            events = _collected(self._past.events(list(spans(piece))))
        return [events[key] for key in sorted(events)], spacing

    def _explained(self, piece: Piece) -> tuple[_Events, int]:
        """The events of a piece, that explain all counts, and how far apart those counts are. Raises `Inexact`."""
        past = self._past
        found, ended = past.chains(list(spans(piece)))
        events = _collected(found)
        spacing = self._spacing(piece, len(events))
        # Only deletions share a version, when a lease of etcd's ends: at that of a write nobody else came or went.
        written = {version: each.kind for (version, _), each in events.items()} if spacing == 1 else {}
        counts = self._counted(
            [each for each in range(piece.start + spacing, piece.end, spacing) if each not in written]
        )
        most = max(1, _OBJECTS_OF_STATES // max(1, len(piece.before), len(piece.after), *counts.values()))
        clues = self._clues(piece, len(ended), piece.falls(counts, written) if spacing == 1 else None, most)
        events |= _collected(past.events(ended, clues))
        known = piece.uids | {uid for _, uid in events}
        edges: set[int] = set()

        def add(looks: Mapping[int, State]) -> bool:
            """Walk those who only show at some looks; whether there are any."""
            new = _collected(past.events(list(lives(piece, known, looks)), clues))
            edges.update(version for (version, _), each in new.items() if each.kind is not Kind.MODIFIED)
            events.update(new)
            return bool(new)

        add(clues.states)
        allowance = len(counts) if spacing > 1 else 0
        while True:
            while versions := crowded(counts, len(piece.before), events.values())[:most]:
                if len(versions) * self._state_seconds > self._patience.left():
                    return events, self._give_up(piece, "there is no time to look who they were")
                if not add(dict(zip(versions, past.states(versions, piece.before), strict=True))):
                    return events, self._give_up(piece, f"{len(versions)} looks show nobody who was not known")
            more = closer(piece, counts, edges)[:allowance]
            if not more:
                return events, spacing
            counts |= self._counted(more)
            allowance -= len(more)

    def _give_up(self, piece: Piece, why: object) -> int:
        """Count nothing from here on: then lives of any length may be missing."""
        log.warning("Not all short lives can be found: %s", why, extra=event("history.uncounted"))
        self._plan = Plan(0)
        return self._end - piece.start

    def _spacing(self, piece: Piece, written: int) -> int:
        """As the plan has it, for the rest of the way, if that is as busy as this piece."""
        distance = self._end - piece.start
        unknown = distance - distance * written // (piece.end - piece.start)
        self._plan.hurry(self._patience.left())
        spacing = self._plan.spacing(distance, unknown)
        return min(spacing, self.announced) if self.announced else spacing

    def _clues(self, piece: Piece, ended: int, falls: Sequence[int] | None, most: int) -> Clues:
        """Some states within the piece, as many as they save looks at single names, which halve what is left over."""
        deleted = ended if falls is None else len(falls)
        most = min(most, int(deleted * self._plan.each / self._state_seconds / math.log(2)))
        parts = [(number, most + 1) for number in range(1, most + 1)]
        if falls is None:
            where = {piece.start + (piece.end - piece.start) * number // of for number, of in parts}
        else:
            where = {falls[len(falls) * number // of] for number, of in parts}
        versions = sorted(where - {piece.start, piece.end})
        return Clues(dict(zip(versions, self._past.states(versions, piece.before), strict=True)), falls)

    def _counted(self, versions: Sequence[int]) -> dict[int, int]:
        if not versions:
            return {}
        began = self._session.deadline.elapsed
        counts, each = self._past.counts(versions)
        self._plan.took(self._session.deadline.elapsed - began, each)
        return dict(zip(versions, counts, strict=True))

    def _tell(self, events: Sequence[Event]) -> None:
        """Tell the events of a piece. The version moves with the last of those that share one."""
        session = self._session
        for first in range(0, len(events), WHOLE_PAGE):
            for number, found in enumerate(self._past.completed(events[first : first + WHOLE_PAGE]), start=first + 1):
                version = found.object.version
                last = number == len(events) or events[number].object.version > version
                self._publish(found, last=last)
                if last:
                    session.position = version
                session.commit.tick()

    def _publish(self, found: Event, *, last: bool) -> None:
        session, version = self._session, found.object.version
        change = observe(found, session.seen, session.settings.selector, session.ledger.epoch, Provenance.RECOVERED)
        if change:
            if not found.object.data:  # it has entered by an event that was told together with this one
                (found,) = self._past.completed([found])
            change = msgspec.structs.replace(change, object=found.object)
            if last:
                session.publish(change, version=version, since=self._since)
            else:
                session.publish(change, listed=version)
        elif last:
            session.enter(Effect(version=version, since=self._since))

    def _check(self) -> None:
        """While others read."""
        self._session.deadline.check()
        self._session.publisher.check()
        self._session.ledger.acknowledge()
        self._session.commit.tick()


def _collected(events: Iterable[Event]) -> _Events:
    return {(each.object.version, each.object.uid): each for each in events}
