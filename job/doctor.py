"""Look at everything that a run needs, with its credentials and options, and change nothing.

Each adapter knows what it needs, and how to ask for it (`checks` of the ports). What only a run makes of their answers
is here: whether the checkpoint is for it, and whether its next run will find the history that it goes on from.

Every part has its own time, in a thread that nobody waits for longer: with all of them hanging it takes a minute.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import median

from job import checkpoint as codec
from job.change import Reason, Recovery
from job.checkpoint import Checkpoint, RunRecord, Scope
from job.errors import CheckpointUnusable, Expired, OutOfTime, WatcherError
from job.ports import Check, Failure, Query, Source, Store, Verdict
from job.run import Ports, resume
from job.run.background import in_background
from job.run.resume import Current
from job.settings import Initial, Settings

RING = timedelta(seconds=75)
"""What the API server remembers on a busy cluster: its watch cache evicts nothing younger."""
HISTORY = timedelta(minutes=5)
"""What etcd remembers where Kubernetes' defaults compact it."""
PART = 12.0
"""Seconds for each part, whatever hangs in it."""
REQUEST = 5.0
_PATIENCE = 8.0
_WATCH = 3
_TOLD_BEFORE = {
    Reason.REWOUND: (
        "the cluster is at an earlier version: it was restored from a backup",
        "nothing: the next run says so in a gap message, and publishes everything that exists again",
    ),
    Reason.RECREATED: (
        "the CustomResourceDefinition was deleted and created again since",
        "nothing: the next run says so in a gap message, and tells the deletion of what is gone",
    ),
}
"""What a run finds without asking for history -> what that means for it."""
_MINUTES = 10
"""From here on seconds are not told any more."""
_LAST, _FEW = 20, 3
"""Runs that are looked at for the schedule, and so many that they say nothing of one yet."""


class Brief:
    """A patience that begins anew with each part. For the main thread, and one that it waits for."""

    def __init__(self, seconds: float = _PATIENCE) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Begin."""
        self._until = time.monotonic() + self._seconds

    def left(self) -> float:
        """Seconds left."""
        return max(0.0, self._until - time.monotonic())

    def pause(self, seconds: float) -> None:
        """Wait between two attempts."""
        if seconds >= self.left():
            message = "no time is left for another attempt"
            raise OutOfTime(message)
        time.sleep(seconds)


def examine(
    settings: Settings,
    ports: Ports,
    patience: Brief,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    part_seconds: float = PART,
) -> Iterator[Check]:
    """Every check, as soon as it is known. Only a bug raises."""
    parts: dict[str, Callable[[], Iterator[Check]]] = {
        "cluster": ports.source.checks,
        "sink": lambda: ports.sink.checks(REQUEST),
    }
    if ports.dead_letters:
        dead_letters = ports.dead_letters
        parts["dead letters"] = lambda: dead_letters.checks(REQUEST)
    parts["store"] = lambda: ports.store.checks(REQUEST)
    told, fine = set[Check](), dict[str, bool]()
    for part, checks in parts.items():
        patience.renew()
        fine[part] = True
        for check in _in_time(part, checks, part_seconds):
            fine[part] &= check.verdict is not Verdict.FAIL
            if check not in told:  # two of them may have the same credentials
                told.add(check)
                yield check
    patience.renew()
    if fine["store"]:
        source = ports.source if fine["cluster"] else None
        yield from _in_time("checkpoint", lambda: checkpoint(settings, ports.store, source, now), part_seconds)


def checkpoint(settings: Settings, store: Store, source: Source | None, now: Callable[[], datetime]) -> Iterator[Check]:
    """What the saved position is worth for this run; without a source, as far as it says so itself."""
    what = "checkpoint"
    try:
        stored = store.look(REQUEST)
        if stored is None:
            yield _first(settings, source)
            return
        saved = codec.decode(stored.data)
    except CheckpointUnusable as error:
        unusable = f"the checkpoint {settings.checkpoint} must not be used: {error}"
        remedy = "use the version that wrote it, or another --checkpoint; remove that one to publish everything anew"
        yield Check.fail(what, unusable, remedy)
        return
    except WatcherError as error:
        yield Check.fail(what, error, "see the checks of the store")
        return
    at = f"version {saved.version}, {len(saved.inventory)} objects, saved {saved.saved_at}"
    yield Check.ok(what, f"{settings.checkpoint} can be read: {at}")
    mismatch = _scope(saved.scope, settings.scope)
    yield mismatch
    if settings.resource_version:
        unfit = f"--resource-version is for a first run, and the checkpoint {settings.checkpoint} exists already"
        yield Check.fail("starting point", unfit, "leave --resource-version out")
    if not mismatch.remedy:
        yield from _position(saved, source, now())
        yield schedule(saved.runs)


def schedule(runs: Sequence[RunRecord]) -> Check:
    """How far apart the last runs began, and what the API server and etcd still had when they did."""
    what, runs = "schedule", runs[-_LAST:]
    starts = [datetime.fromisoformat(run.started_at) for run in runs]
    if len(runs) < _FEW:
        return Check.ok(what, f"{len(runs)} runs so far: too few to tell")
    gap = timedelta(seconds=median((then - first).total_seconds() for first, then in pairwise(starts)))
    aged = [(run, timedelta(seconds=run.age_seconds)) for run in runs if run.age_seconds is not None]
    resumed = [age for run, age in aged if run.start == "resumed"]
    refused = [age for run, age in aged if run.start in {Reason.EXPIRED, Reason.SILENT}]
    lost = [run for run, _ in aged if run.recovery in {Recovery.COMPACTED, Recovery.LATE, Recovery.REFUSED}]
    found = f"{len(runs)} runs, {_shown(gap)} apart (median)"
    if resumed:
        found += f"; {len(resumed)} resumed, from versions of up to {_shown(max(resumed))}"
    if refused:
        found += f"; {len(refused)} were refused, from {_shown(min(refused))} on"
        found += f", and {len(lost)} of them lost history" if lost else ", and read the history back"
    if lost:
        most = min(refused, default=HISTORY) if gap <= HISTORY else HISTORY
        remedy = (
            f"let them start less than {_shown(max(most, RING))} apart, or give them a longer --window or --recover"
        )
        return Check.warn(what, found, remedy)
    if gap > HISTORY and refused:
        return Check.warn(what, f"{found}; etcd promises {_shown(HISTORY)}", "let them start every four minutes")
    return Check.ok(what, found)


def _in_time(part: str, checks: Callable[[], Iterator[Check]], seconds: float) -> Iterator[Check]:
    """The checks of a part, as they come; what hangs is left."""
    answers: queue.SimpleQueue[Check | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            for check in checks():
                answers.put(check)
        finally:
            answers.put(None)

    asked = in_background(f"doctor-{part}", ask)
    until = time.monotonic() + seconds
    while True:
        try:
            check = answers.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            yield Check.fail(
                part, f"nothing more was heard within {seconds:g} s", "look at the network on the way there"
            )
            return
        if check is None:
            asked.result()  # a bug raises
            return
        yield check


def _first(settings: Settings, source: Source | None) -> Check:
    about = ""
    if source:
        page = source.list(Query(limit=1))
        count = len(page.objects) + (page.remaining or 0)
        does = "publishes" if settings.initial is Initial.PUBLISH and not settings.resource_version else "skips"
        matching = ", those of them that match --selector" if settings.scope.selector else ""
        about = f": a first run {does} about {count} objects{matching}"
    return Check.ok("checkpoint", f"there is none yet{about}")


def _scope(found: Scope, wanted: Scope) -> Check:
    """All that differs, where a run tells the first of it (R6)."""
    what, differences = "scope", []
    for name in Scope.__struct_fields__:
        theirs, ours = getattr(found, name), getattr(wanted, name)
        if theirs != ours:
            nothing = "all namespaces" if name == "namespace" else "(none)"
            differences.append(f"it belongs to {name} {theirs or nothing}, and this run has {ours or nothing}")
    if not differences:
        return Check.ok(what, f"the checkpoint is for this cluster, {wanted.resource}, namespace, selector and sink")
    remedy = (
        "use another --checkpoint for this scope (one that ends in / is completed with it), go back to these options, "
        "or remove that one to publish everything from the beginning"
    )
    return Check.fail(what, "; ".join(differences), remedy)


def _position(saved: Checkpoint, source: Source | None, now: datetime) -> Iterator[Check]:
    """Whether the history behind the saved version is still there, and where."""
    what = "age"
    age = now - datetime.fromisoformat(saved.current_at) if saved.current_at else None
    old = f"version {saved.version} was the present {_shown(age)} ago" if age is not None else "it has no age yet"
    if age is not None and age < -RING:
        ahead = f"version {saved.version} is from {_shown(-age)} in the future"
        yield Check.warn(what, ahead, "compare the clocks of the machines that run this")
        return
    if not source:
        yield Check.ok(what, old)
        return
    try:
        current = Current(source.identity(), source.list(Query(limit=1)).version)
        resume.check_cluster(saved.identity, current.identity)
        lost = resume.history_lost(saved, current)
        if lost in _TOLD_BEFORE:
            found, remedy = _TOLD_BEFORE[lost]
            yield Check.warn(what, f"{old}: {found}", remedy)
        elif lost:
            yield Check.ok(what, f"{old}: a run ended in the middle of a listing, and the next one lists again")
        else:
            yield _history(what, old, _is_watchable(source, saved.version), _is_listable(source, saved.version))
    except CheckpointUnusable as error:
        yield Check.fail("identity", error, "kubectl config get-contexts shows which clusters there are")
    except WatcherError as error:
        yield Check.warn(what, f"{old}; whether its history is still there, cannot be told: {error}", "ask again")


def _history(what: str, old: str, watchable: bool, listable: bool) -> Check:
    if watchable:
        return Check.ok(what, f"{old}: the API server still has what came after it (on a busy cluster {_shown(RING)})")
    if listable:
        return Check.ok(
            what, f"{old}: the API server has forgotten it, and etcd still has it ({_shown(HISTORY)} or more)"
        )
    return Check.warn(
        what,
        f"{old}: neither the API server nor etcd ({_shown(HISTORY)}) has what came after it",
        "nothing for now: the next run compares a listing with what it knows, behind a gap; let runs start more often",
    )


def _is_watchable(source: Source, version: int) -> bool:
    """Whether a watch from there is accepted: its first frame says so, at the latest its last bookmark."""
    began = time.monotonic()
    try:
        stream = source.watch(version, _WATCH)
    except Expired:
        return False
    try:
        for block in stream:
            for line in block:
                frame = source.decode(line)
                return not (isinstance(frame, Failure) and frame.code == 410)  # noqa: PLR2004 - HTTP's Gone
    finally:
        stream.close()
    return time.monotonic() - began > _WATCH - 1  # closed early, and without a word, is a refusal, too (R10)


def _is_listable(source: Source, version: int) -> bool:
    try:
        source.list(Query(limit=1, at=version))
    except Expired:
        return False
    return True


def _shown(age: timedelta) -> str:
    """As people say it."""
    seconds = round(age.total_seconds())
    minutes, rest = divmod(seconds, 60)
    if seconds < 2 * 60:
        return f"{seconds} s"
    if minutes < _MINUTES:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    unit, name = (60, "min") if seconds < 2 * 3600 else (3600, "h") if seconds < 48 * 3600 else (86400, "d")
    return f"{round(seconds / unit)} {name}"
