"""The window of a run: find a version to watch from, and watch until the time is over.

A watch may end for many reasons before that. While the history goes on, it is opened again where it ended; where it
does not, it goes on from now, and what lies between is recovered, or told as a difference.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from job.change import RECOVERABLE, Reason, Recovery
from job.checkpoint import Checkpoint
from job.errors import OutOfTime, Stopped, TemporaryError
from job.logs import event
from job.ports import Query
from job.run import listing, resume
from job.run.commit import Effect
from job.run.follow import follow
from job.run.recover import recover
from job.run.relist import WentBack
from job.run.resume import Current
from job.run.session import Session
from job.run.summary import FIRST, PINNED, RESUMED, SKIPPED
from job.run.watch import LONGEST, SHORTEST, Ended, Reader
from job.settings import Initial

AUDIT_INTERVAL = timedelta(days=1)
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.2, 3.0
"""Seconds before a watch that ended early is opened again, doubled while nothing comes."""

log = logging.getLogger(__name__)


class Window:
    """The watch of this run: opened, followed, and opened again from where it ended."""

    def __init__(self, session: Session, known: Checkpoint, current: Current) -> None:
        self._session = session
        self._known = known
        self._current = current
        self._begun_at = session.position
        self._pause = _SHORTEST_PAUSE
        self._reader_began = 0
        self._reader: Reader | None = None
        self._target = 0 if session.settings.window else current.version

    def start(self) -> None:
        """Find a version to watch from; without one, list."""
        session, settings = self._session, self._session.settings
        lost = resume.history_lost(self._known, self._current)
        if not self._known.whole and lost is not Reason.REWOUND:
            interrupted = lost or self._known.listed_for == Reason.DRIFTED
            if interrupted or not listing.remember(session):
                lost = Reason.FORGOTTEN
        if lost:
            session.summary.start = lost.value
            listing.relist(session, lost, self.open)
        elif self._known.version:
            session.summary.start = RESUMED
            self._audit()
        elif settings.resource_version:
            session.summary.start = PINNED
            listing.pin(session, settings.resource_version)
            session.summary.version_from = settings.resource_version
        elif settings.initial is Initial.SKIP:
            session.summary.start = SKIPPED
            listing.skip(session, self.open)
            session.summary.version_from = session.position
        else:
            session.summary.start = FIRST
            listing.relist(session, None, self.open)

    def until_the_end(self) -> None:
        """Follow watch after watch, until the window is over or, without one, the version of the probe is reached."""
        self._begun_at = self._session.position
        silent = 0
        while not self._over():
            if not self._reader:
                self.open(self._session.position)
            if not self._reader:
                return
            ended = follow(self._session, self._reader, target=self._target)
            self.close()
            if ended is None:
                return
            silent = silent + 1 if ended.silent else 0
            if ended.expired or silent > 1:
                self._lost(Reason.EXPIRED if ended.expired else Reason.SILENT)
                silent = 0
            elif ended.error or ended.early:
                self._interrupted(ended)

    def open(self, version: int) -> None:
        """Watch from `version` for the rest of the window. A rest that is too short for a watch is left alone (R10).

        But the first watch is always opened: a slow start must not keep run after run from getting anywhere.
        """
        self.close()
        if self._too_late or (self._target and version >= self._target):
            return
        left = self._session.deadline.watch_left
        seconds = SHORTEST if self._target else min(LONGEST, max(SHORTEST, round(left)))
        self._session.summary.watches += 1
        self._reader_began = version
        self._reader = Reader(self._session.source, version, seconds).start()

    def close(self) -> None:
        """End the watch that is open, if one is."""
        if self._reader:
            self._reader.close()
            self._reader = None

    def _over(self) -> bool:
        session, target = self._session, self._target
        if session.deadline.stopped:
            raise Stopped
        if target:
            if session.position < target and self._too_late:
                message = f"resourceVersion {target} was not reached in time; the next run goes on from here"
                raise OutOfTime(message)
            return session.position >= target
        return self._too_late and self._reader is None

    @property
    def _too_late(self) -> bool:
        """Whether the rest of the window is too short for another watch. For the first one it never is (R10)."""
        return self._session.deadline.watch_left < SHORTEST and self._session.summary.watches > 0

    def _lost(self, reason: Reason) -> None:
        session = self._session
        log.info(
            "The API server no longer has what followed version %d (%s)",
            session.position,
            reason,
            extra=event("history.lost", version=session.position, reason=reason),
        )
        began = session.position == self._begun_at
        if not began:
            if session.position >= self._current.version:  # else it was the past already when it came
                session.since = session.heard_at
            session.enter(Effect(version=session.position, since=session.since))
        elif session.summary.start == RESUMED:
            session.summary.start = reason.value
        with session.deadline.interruptible():
            found = session.source.identity()
        resume.check_cluster(session.identity, found)
        if resume.recreated(session.identity, found):
            reason = Reason.RECREATED
        session.identity = resume.adopted(session.identity, found)
        try:
            at = self._recover(reason, began=began)
        except WentBack:
            reason, at = Reason.REWOUND, 0
        if at is not None:
            listing.relist(session, reason, self.open, at=at)

    def _recover(self, reason: Reason, *, began: bool) -> int | None:
        """Read history back; gives the version to list at for what is left, 0 for that of now, None if nothing is."""
        session = self._session
        if reason not in RECOVERABLE or not session.settings.recover:
            return 0
        how, end = recover(session, reason, self.open)
        if began:
            session.summary.recovery = how.value
        if how in {Recovery.COMPLETE, Recovery.SAMPLED}:
            return None
        # Who gives no old versions would not give the state at that one, either.
        return 0 if how is Recovery.REFUSED else end

    def _interrupted(self, ended: Ended) -> None:
        """Before watching again: is it still the same history? A version of the future would be watched in silence."""
        session = self._session
        if ended.error and (not isinstance(ended.error, TemporaryError) or not ended.opened):
            raise ended.error
        log.info(
            "The watch ended early (%s); watching again from %d",
            ended.error or "closed by the server",
            session.position,
            extra=event("watch.ended", version=session.position, error=ended.error and str(ended.error)),
        )
        if self._too_late:
            return
        session.commit.tick()
        session.deadline.pause(self._pause)
        self._pause = (
            min(2 * self._pause, _LONGEST_PAUSE) if self._reader_began == session.position else _SHORTEST_PAUSE
        )
        with session.deadline.interruptible():
            version = session.source.list(Query(limit=1)).version
        if version < session.position:
            self._lost(Reason.REWOUND)

    def _audit(self) -> None:
        last = self._known.audited_at
        if last and self._session.now() - datetime.fromisoformat(last) < AUDIT_INTERVAL:
            return
        try:
            listing.audit(self._session)
        except WentBack:
            self._lost(Reason.REWOUND)
