"""One run: load, probe, resume, recover or relist, watch, publish, commit, end.

**Theory of operation.** The checkpoint holds a version of the cluster's history and an inventory of what the sink has
acknowledged up to there. Where the API server still has the history behind that version, watching from it tells
everything. Where it has not, watching goes on from some later version N, and etcd may still have what lies between: it
is read back, and told as the watch would have told it (`recover`). What etcd has not either is told as the difference
of the state at N from the inventory (`listing`). Every change, however it is known, takes a position in one stream.
Lanes publish it to the sink, in any order between objects, in order for each; the version and the inventory of the
checkpoint move together over the acknowledged prefix of the stream, and are saved by compare-and-swap. So a run may be
killed between any two lines: what it has published beyond its last save is published again by the next one, under the
same ids, and nothing is lost.

Threads: the main one decides and queues; one reads the watch (`watch`); a few read history (`past`), a few publish
(`publish`); one saves (`commit`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import msgspec

from job import checkpoint as codec
from job.checkpoint import Checkpoint, RunRecord
from job.errors import (
    ActionNeeded,
    CheckpointUnusable,
    Stopped,
    Superseded,
    TemporaryError,
    Unavailable,
    UsageError,
    WatcherError,
)
from job.logs import event
from job.ports import Query, Sink, Source, Store, Stored
from job.run import resume
from job.run.background import in_background
from job.run.commit import Commit, Effect
from job.run.deadline import LOADING, Deadline
from job.run.resume import Current
from job.run.session import Session, timestamp
from job.run.summary import Summary
from job.run.window import Window
from job.settings import Settings

_ATTEMPT, _FIRST_PAUSE = 10.0, 0.25
"""Seconds for one load of the checkpoint, and before the second."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ports:
    """The outside of a run."""

    source: Source
    sink: Sink
    store: Store
    dead_letters: Sink | None = None


def run(
    settings: Settings,
    ports: Ports,
    deadline: Deadline,
    *,
    run_id: str,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Summary:
    """Do one run; what ended it early is in the summary. Only a bug raises."""
    summary = Summary(run_id, timestamp(now()), str(settings.checkpoint))
    try:
        with deadline.interruptible():
            ports.store.open()
            ports.sink.open()
            if ports.dead_letters:
                ports.dead_letters.open()
            stored = _load(ports.store, deadline)
            saved = _decoded(stored, settings)
            current = _probe(settings, ports.source, saved)
    except Stopped:
        summary.notes.append("A signal ended it before it began.")
    except CheckpointUnusable as error:
        summary.error = CheckpointUnusable(f"the checkpoint {settings.checkpoint} must not be used: {error}")
    except WatcherError as error:
        summary.error = error
    else:
        if saved and saved.content != settings.content:
            summary.notes.append(f"Messages carry {settings.content} from here on; before, {saved.content}.")
        known = msgspec.structs.replace(saved or Checkpoint(settings.scope), content=settings.content)
        commit = Commit(
            ports.store, stored, known, run_id=run_id, elapsed=lambda: deadline.elapsed, now=lambda: timestamp(now())
        )
        with ExitStack() as closing:
            session = Session(
                settings,
                ports.source,
                ports.sink,
                commit,
                dead_letters=ports.dead_letters,
                deadline=deadline,
                summary=summary,
                now=now,
            )
            closing.callback(session.publisher.close)
            _begin(session, known, current)
            try:
                _save(session, _drain(session, _read(session, known, current)))
            except Superseded as superseded:
                summary.error = None  # whatever it was, it is the winner's now
                summary.notes.append(f"{superseded}; this run stopped, and saved nothing more.")
            _conclude(session)
    summary.seconds = deadline.elapsed
    return summary


def _load(store: Store, deadline: Deadline) -> Stored | None:
    """The checkpoint's bytes, asked for again while the store is unavailable."""
    least_left, pause = max(0.0, deadline.left() - LOADING), _FIRST_PAUSE
    while True:
        left = deadline.left() - least_left
        try:
            return in_background("load", partial(store.load, min(_ATTEMPT, left))).result(left)
        except TimeoutError as error:
            message = f"the checkpoint could not be loaded within {LOADING:g} s"
            raise Unavailable(message) from error
        except Unavailable as error:
            if deadline.left() - least_left <= pause:
                raise
            log.warning("%s; trying again", error, extra=event("store.retry"))
            deadline.pause(pause)
            if deadline.left() <= least_left:
                raise
            pause *= 2


def _decoded(stored: Stored | None, settings: Settings) -> Checkpoint | None:
    """The checkpoint, fit for this scope."""
    if stored is None:
        return None
    saved = codec.decode(stored.data)
    resume.check_scope(saved.scope, settings.scope)
    return saved


def _probe(settings: Settings, source: Source, saved: Checkpoint | None) -> Current:
    """Ask who answers, and which version it is now; the consistent listing also makes bookmarks move."""
    identity = source.identity()
    page = source.list(Query(limit=1))
    if saved:
        resume.check_cluster(saved.identity, identity)
    if settings.resource_version and saved:
        message = f"--resource-version is for a first run, and the checkpoint {settings.checkpoint} exists already"
        raise UsageError(message)
    if settings.resource_version and settings.resource_version > page.version:
        message = f"--resource-version {settings.resource_version} is in the future: the cluster is at {page.version}"
        raise UsageError(message)
    if settings.scope.namespace and not page.objects and not (saved and (saved.inventory or not saved.whole)):
        _check_namespace(settings.scope.namespace, source)
    return Current(identity, page.version)


def _check_namespace(namespace: str, source: Source) -> None:
    exists = source.namespace_exists()
    if exists is None:
        log.warning(
            "Nothing is listed in namespace %s, and the credentials may not tell whether it exists",
            namespace,
            extra=event("namespace.unknown", namespace=namespace),
        )
    resume.check_namespace(namespace, exists)


def _begin(session: Session, known: Checkpoint, current: Current) -> None:
    session.proven = resume.proven(known.identity, current.identity)
    session.identity = resume.adopted(known.identity, current.identity)
    session.since = known.current_at
    session.summary.version_from = known.version
    if known.current_at:
        age = session.now() - datetime.fromisoformat(known.current_at)
        session.summary.age_seconds = age.total_seconds()


def _read(session: Session, known: Checkpoint, current: Current) -> WatcherError | None:
    """Steps 3 and 4 of the design: catch up, then watch; gives what ended it early."""
    watch = Window(session, known, current)
    try:
        watch.start()
        watch.until_the_end()
        session.enter(Effect(identity=session.identity))  # nothing has contradicted it
    except Stopped:
        session.summary.notes.append("A signal ended it early.")
    except WatcherError as error:
        return error
    finally:
        watch.close()
    return None


def _drain(session: Session, error: WatcherError | None) -> WatcherError | None:
    """Wait for what is in flight, 10 s at most after a signal; what stays behind is published by the next run."""
    try:
        session.settle()
    except Stopped:  # ends with what is acknowledged by then
        return error
    except TemporaryError as failed:
        # After a signal there is no time to try again: that is the signal's doing.
        return error if session.deadline.stopped else _to_tell(error, failed)
    except WatcherError as failed:
        return _to_tell(error, failed)
    return error


def _save(session: Session, error: WatcherError | None) -> None:
    """The last save. After a failure only if there is something new, and never before anything was acknowledged."""
    session.publisher.close()
    summary, commit, ledger = session.summary, session.commit, session.ledger
    ledger.close()
    summary.error = error
    if (error and not commit.moved) or not (ledger.version or ledger.listed or ledger.epoch):
        return
    record = RunRecord(
        run_id=summary.run_id,
        started_at=summary.started_at,
        seconds=round(session.deadline.elapsed, 3),
        start=summary.start,
        recovery=summary.recovery,
        age_seconds=summary.age_seconds,
        exit_code=int(summary.exit_code),
        published=dict(session.ledger.published),
    )
    try:
        commit.save(record)
        summary.saved = True
        summary.notes += [commit.note] if commit.note else []
    except WatcherError as failed:
        summary.error = _to_tell(error, failed)


def _to_tell(first: WatcherError | None, then: WatcherError) -> WatcherError:
    """Of two errors the one that a person must mend, else the first."""
    if first is None or (isinstance(then, ActionNeeded) and not isinstance(first, ActionNeeded)):
        return then
    return first


def _conclude(session: Session) -> None:
    summary, ledger = session.summary, session.ledger
    summary.version_to = ledger.version
    summary.objects = len(ledger.inventory())
    summary.published = dict(ledger.published)
    summary.notes += session.publisher.notes()
    summary.provenance = dict(ledger.provenances)
    summary.saves = session.commit.saves
    summary.saved = summary.saved or (session.commit.saves > 0 and not session.commit.moved)
