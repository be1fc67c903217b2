"""Publishes what exists now, once, through the run's own way to the sink, and without its checkpoint.

It is the one operation, `diff(known, listing)`, with nothing known: whole objects, page by page, at one version. Where
the API server forgets that version before the last page, which takes minutes, it lists again, and what was handed over
by then is known. Ids are those that the run gives, so whoever has processed a version recognises it; and a backfill
that was interrupted is simply run again.

It may take any time while it moves. What stands still for a minute, the sink or the API server, ends it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec

from job.change import Change, Kind, Known, Object, Provenance
from job.checkpoint import Checkpoint, Scope
from job.errors import ActionNeeded, ExitCode, Expired, OutOfTime, Stopped, TemporaryError, WatcherError
from job.logs import event
from job.message import Envelope
from job.payload import Content
from job.payload.transition import passage
from job.ports import Page, Query, Sink, Source
from job.run import resume
from job.run.commit import Effect, Ledger
from job.run.deadline import DRAIN, LISTING, Deadline
from job.run.listing import MOST_LISTINGS, WHOLE_PAGE
from job.run.publish import DeadLetters, Publisher
from job.run.relist import Diff, WentBack
from job.run.watermark import Position, Watermark
from job.selector import Selector
from job.settings import Address

IDLE = timedelta(minutes=1) - timedelta(seconds=LISTING + DRAIN)
"""The window that is begun anew with everything that moves: with the time behind it, the sink has a minute."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which objects, and how their messages are to be sent."""

    scope: Scope
    envelope: Envelope
    content: Content
    selector: Selector
    phases: frozenset[str] = frozenset()
    """Empty: any phase."""
    since: datetime | None = None
    """Created then or later."""
    until: datetime | None = None
    """Created before."""
    rate: int = 0
    """Messages a second at most; 0: as fast as it goes."""
    dry_run: bool = False
    dead_letter: Address | None = None

    def takes(self, thing: Object) -> bool:
        """Whether it is one of them; labels were looked at before."""
        if self.phases and thing.phase not in self.phases:
            return False
        if not (self.since or self.until):
            return True
        created = _created(thing.data)
        return (not self.since or created >= self.since) and (not self.until or created < self.until)


@dataclass(slots=True)
class Report:
    """What a backfill has done; filled in while it goes on, and true wherever it ends."""

    dry_run: bool = False
    version: int = 0
    """That of the last listing."""
    total: int = 0
    """Objects of the listing, whether they are wanted or not, as far as the server has said."""
    listed: int = 0
    messages: int = 0
    """Those that were made."""
    bytes: int = 0
    """Of their data."""
    published: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    error: WatcherError | None = None

    @property
    def exit_code(self) -> ExitCode:
        """What the process will say."""
        return self.error.exit_code if self.error else ExitCode.DONE

    def fields(self) -> dict[str, object]:
        """The fields of the summary line."""
        return {
            "exit_code": int(self.exit_code),
            "dry_run": self.dry_run,
            "version": str(self.version),
            "listed": self.listed,
            "messages": self.messages,
            "bytes": self.bytes,
            "published": dict(self.published),
            "seconds": round(self.seconds, 3),
            "notes": self.notes,
        }

    def sentence(self) -> str:
        """The same in plain words."""
        if self.error and not (self.listed or self.messages):
            return str(self.error)
        done = ", ".join(f"{count} {kind}" for kind, count in sorted(self.published.items())) or "nothing"
        what = f"{self.messages} messages of {self.bytes} bytes of data"
        parts = [
            f"Of {self.listed} objects at version {self.version}: {what}"
            + ("; nothing was published." if self.dry_run else f"; published: {done}, in {self.seconds:.1f} s."),
            *self.notes,
        ]
        if self.error:
            parts.append(f"It ended early: {self.error}")
        return " ".join(parts)


def backfill(
    wanted: Wanted,
    source: Source,
    sink: Sink,
    deadline: Deadline,
    *,
    dead_letters: Sink | None = None,
    progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Publish what exists now; what ended it early is in the report. Only a bug raises."""
    report = Report(wanted.dry_run)
    work = _Backfill(wanted, source, sink, deadline, dead_letters=dead_letters, report=report, progress=progress)
    try:
        if not wanted.dry_run:
            with deadline.interruptible():
                sink.open()
                if dead_letters:
                    dead_letters.open()
        work.go()
    except Stopped:
        report.error = TemporaryError("a signal ended it before the last page: run it again, repeats have the same ids")
    except WentBack:
        report.error = TemporaryError("the cluster went back to an older state meanwhile: run it again")
    except WatcherError as error:
        report.error = error
    work.end()
    report.seconds = deadline.elapsed
    return report


class _NoLine(Watermark[Effect]):
    """Where there is no checkpoint, an effect takes place as soon as its own position is done."""

    def enter(self, effect: Effect, *, done: bool = False) -> Position[Effect]:
        return Position(effect, done=done)

    def rise(self, done: Iterable[Position[Effect]] = ()) -> Iterator[Effect]:
        return (position.effect for position in done)


class _MovingLedger(Ledger):
    """A ledger of no checkpoint. Whatever the sink has stored gives the backfill more time."""

    def __init__(self, scope: Scope, deadline: Deadline) -> None:
        super().__init__(Checkpoint(scope))
        self._watermark = _NoLine()
        self._deadline = deadline

    def acknowledge(self, positions: Iterable[Position[Effect]] = ()) -> None:
        super().acknowledge(positions)
        self._deadline.renew()


class _Backfill:
    """One backfill under way."""

    def __init__(
        self,
        wanted: Wanted,
        source: Source,
        sink: Sink,
        deadline: Deadline,
        *,
        dead_letters: Sink | None,
        report: Report,
        progress: Callable[[Report], None],
    ) -> None:
        self._wanted = wanted
        self._source = source
        self._deadline = deadline
        self._report = report
        self._progress = progress
        self._ledger = _MovingLedger(wanted.scope, deadline)
        kept = DeadLetters(dead_letters, str(wanted.dead_letter), wanted.scope.sink) if dead_letters else None
        self._publisher = Publisher(sink, self._ledger, deadline, kept)
        self._told: dict[str, Known] = {}
        """What was handed over: where the listing must begin again, it is known."""
        self._next = 0.0
        """When the next message may go, where there is a rate."""

    def go(self) -> None:
        """Publish everything, and wait until it is stored."""
        for kind, thing in self._objects():
            if self._wanted.takes(thing):
                self._publish(Change(kind, thing, Provenance.REPLAY))
            self._progress(self._report)
        if not self._publisher.drain():
            self._deadline.check()
            message = "the sink did not acknowledge everything in time"
            raise OutOfTime(message)
        self._progress(self._report)

    def end(self) -> None:
        """Give what is in flight its time, send nothing more, and report what has become of it."""
        report = self._report
        try:
            if not self._publisher.drain():
                report.notes.append("The sink did not acknowledge in time what was sent last.")
        except (WatcherError, Stopped) as error:
            # A person must act, whatever else has ended it.
            if isinstance(error, ActionNeeded):
                report.error = error
            report.notes.append("Not everything that was sent was acknowledged.")
        self._publisher.close()
        self._ledger.close()
        report.published = Counter(self._ledger.published)
        report.notes += self._publisher.notes()

    def _objects(self) -> Iterator[tuple[Kind, Object]]:
        """What exists and has matching labels, each version once.

        As long as listings that expire come further each time, there may be any number of them.
        """
        furthest = fruitless = 0
        while fruitless < MOST_LISTINGS:
            told = len(self._told)
            try:
                yield from self._listing()
            except Expired:
                log.info("The listing expired before its last page; listing again", extra=event("listing.expired"))
            else:
                return
            further = len(self._told) > told or self._report.listed > furthest
            fruitless = 0 if further else fruitless + 1
            furthest = max(furthest, self._report.listed)
        message = (
            f"{MOST_LISTINGS} listings expired and came no further than those before: "
            "try a higher --rate, or one namespace after the other"
        )
        raise TemporaryError(message)

    def _listing(self) -> Iterator[tuple[Kind, Object]]:
        diff = Diff(self._told, self._wanted.selector)
        query, version = Query(limit=WHOLE_PAGE, whole=True), 0
        self._report.listed = 0
        while True:
            with self._deadline.interruptible():
                page = self._source.list(query)
            self._deadline.renew()
            version = version or page.version
            if page.version != version:
                raise Expired  # the server went on with a later listing than the one that was begun
            if not query.token:
                self._begin(page)
            for found in diff.page(page.objects):
                if found.kind is not Kind.DELETED:
                    self._deadline.check()
                    yield found.kind, found.object
            self._report.listed += len(page.objects)
            self._progress(self._report)  # perhaps nothing of the page was wanted
            if not page.token:
                return
            query = Query(limit=WHOLE_PAGE, token=page.token, whole=True)

    def _begin(self, page: Page) -> None:
        """Note what the first page says. That nothing exists in a namespace does not say that this one does."""
        self._report.version = page.version
        self._report.total = len(page.objects) + (page.remaining or 0)
        namespace = self._wanted.scope.namespace
        if namespace and not page.objects:
            with self._deadline.interruptible():
                exists = self._source.namespace_exists()
            resume.check_namespace(namespace, exists)

    def _publish(self, change: Change) -> None:
        thing = change.object
        transition, known = None, Known(thing.namespace, thing.name, thing.version)
        if self._wanted.content.transitions:
            transition, known = passage(change, self._told.get(thing.uid))
            if transition is None:
                return
        message = self._wanted.envelope.change(change, transition=transition)
        if not self._wanted.dry_run:
            self._wait_for_turn()
            counted = (change.kind.value, change.provenance.value)
            self._publisher.put(message, Effect(counted=counted))
        self._told[thing.uid] = known
        self._report.messages += 1
        self._report.bytes += len(message.data)

    def _wait_for_turn(self) -> None:
        if self._wanted.rate:
            now = self._deadline.elapsed
            if self._next > now:
                self._deadline.pause(self._next - now)
            self._next = max(self._next, now) + 1 / self._wanted.rate


class _Metadata(msgspec.Struct, rename="camel"):
    creation_timestamp: datetime


class _Created(msgspec.Struct):
    metadata: _Metadata


_decode_created = msgspec.json.Decoder(_Created).decode


def _created(data: bytes) -> datetime:
    """When an object was created, which the API server writes into each."""
    return _decode_created(data).metadata.creation_timestamp
