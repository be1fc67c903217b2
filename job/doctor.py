"""Look at everything that a run needs, with its credentials and options, and change nothing.

Each adapter knows what it needs, and how to ask for it (`checks` of the ports). What only a run makes of their answers
is here: whether the checkpoint is for it, and whether its next run will find the history that it goes on from.

Every part has its own time, in a thread that nobody waits for longer: with all of them hanging, and the log-in before
them, it takes a minute and a half.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from statistics import median

from job import checkpoint as codec
from job.change import RECOVERABLE, Reason, Recovery
from job.checkpoint import Checkpoint, RunRecord, Scope
from job.errors import CheckpointUnusable, Expired, OutOfTime, WatcherError
from job.ports import Check, Failure, Query, Source, Store, Verdict
from job.run import Ports, resume
from job.run.background import in_background
from job.run.resume import Current
from job.run.summary import RESUMED
from job.settings import Initial, Settings

RING = timedelta(seconds=75)
"""What the API server remembers on a busy cluster: its watch cache evicts nothing younger."""
HISTORY = timedelta(minutes=5)
"""What etcd remembers where Kubernetes' defaults compact it."""
PART = 12.0
"""Seconds for each part, whatever hangs in it."""
_YOUNG = 18.0
"""And for the first that needs Google's credentials, for which a run waits in a young pod."""
_GOOGLE = {"pubsub", "gs"}
REQUEST = 5.0
_PATIENCE = 8.0
_WATCH = 3
_START = "starting point"
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
    """A patience that begins anew with each check. For the main thread, and one that it waits for."""

    def __init__(self, seconds: float = _PATIENCE) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self, more: float = 0.0) -> None:
        """Begin."""
        self._until = time.monotonic() + self._seconds + more

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
    addresses = {"sink": settings.sink, "dead letters": settings.dead_letter, "store": settings.checkpoint}
    google = [part for part, address in addresses.items() if address and address.scheme in _GOOGLE]
    told, fine = set[Check](), dict[str, bool]()
    for part, checks in parts.items():
        more = _YOUNG if part in google[:1] else 0.0  # the others have the same credentials
        fine[part] = True
        for check in _in_time(part, checks, part_seconds + more, patience, more):
            fine[part] &= check.verdict is not Verdict.FAIL
            if check not in told:
                told.add(check)
                yield check
    if fine["store"]:
        source = ports.source if fine["cluster"] else None
        last = partial(checkpoint, settings, ports.store, source, now)
        yield from _in_time("checkpoint", last, part_seconds, patience)


def checkpoint(settings: Settings, store: Store, source: Source | None, now: Callable[[], datetime]) -> Iterator[Check]:
    """What the saved position is worth for this run; without a source, as far as it says so itself."""
    what = "checkpoint"
    try:
        stored = store.look(REQUEST)
        if stored is None:
            yield from _first(settings, source)
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
    yield _read(settings, saved)
    mismatch = _scope(saved.scope, settings.scope)
    yield mismatch
    if settings.resource_version:
        unfit = f"--resource-version is for a first run, and the checkpoint {settings.checkpoint} exists already"
        yield Check.fail(_START, unfit, "leave --resource-version out")
    if mismatch.verdict is not Verdict.FAIL:
        yield from _position(saved, source, now())
        yield schedule(saved.runs)


def schedule(runs: Sequence[RunRecord]) -> Check:
    """How far apart the last runs began, and what the API server and etcd still had when they did."""
    what, runs = "schedule", runs[-_LAST:]
    if len(runs) < _FEW:
        return Check.ok(what, f"{len(runs)} runs so far: too few to tell")
    try:
        starts = sorted(datetime.fromisoformat(run.started_at) for run in runs)
        gap = timedelta(seconds=median((then - first).total_seconds() for first, then in pairwise(starts)))
        aged = [(run, timedelta(seconds=max(0.0, run.age_seconds))) for run in runs if run.age_seconds is not None]
    except (ValueError, TypeError, OverflowError) as error:  # the codec takes any text and any number for these
        unreadable = f"the records of the last runs cannot be read: {error}"
        return Check.warn(what, unreadable, f"nothing: {_LAST} further runs replace them")
    resumed = [age for run, age in aged if run.start == RESUMED]
    refused = [(run.recovery, age) for run, age in aged if run.start in RECOVERABLE]
    sampled = [age for recovery, age in refused if recovery == Recovery.SAMPLED]
    # With --recover 0s nothing is read back, and nothing is said of it.
    lost = [age for recovery, age in refused if recovery not in {Recovery.COMPLETE, Recovery.SAMPLED}]
    found = f"{len(runs)} runs, {_shown(gap)} apart (median)"
    if resumed:
        found += f"; {len(resumed)} resumed, from versions of up to {_shown(max(resumed))}"
    if refused:
        found += f"; {len(refused)} were refused, from {_shown(min(age for _, age in refused))} on"
        found += f", and {len(lost)} of them lost history" if lost else ", and read the history back"
    if sampled:
        found += f", {len(sampled)} of them in samples: what lived for a moment may be missing"
    if lost:
        return _losing(what, found, gap, lost)
    if gap > HISTORY and refused:
        return Check.warn(what, f"{found}; etcd promises {_shown(HISTORY)}", "let them start every four minutes")
    if sampled:
        return Check.warn(what, found, "let them start more often, or give them a longer --window or --recover")
    return Check.ok(what, found)


def _losing(what: str, found: str, gap: timedelta, lost: Sequence[timedelta]) -> Check:
    """What to do where runs lose history; a number only where it changes something."""
    if min(lost) > max(2 * gap, HISTORY):  # it is no matter of the schedule
        missing = f"before each of these no run had come so far for {_shown(min(lost))} or more"
        return Check.warn(what, f"{found}; {missing}", "look why runs were missing, or failed (kubectl get jobs)")
    most, longer = HISTORY if gap > HISTORY else max(min(lost), RING), "a longer --window or --recover"
    if most < gap:
        return Check.warn(what, found, f"let them start less than {_shown(most)} apart, or give them {longer}")
    return Check.warn(what, found, f"give them {longer}")


def _in_time(
    part: str, checks: Callable[[], Iterator[Check]], seconds: float, patience: Brief, more: float = 0.0
) -> Iterator[Check]:
    """The checks of a part, as they come, with `more` patience for the first; what hangs is left."""
    answers: queue.SimpleQueue[Check | None] = queue.SimpleQueue()
    patience.renew(more)

    def ask() -> None:
        try:
            for check in checks():
                patience.renew()  # before the next is asked for
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


def _read(settings: Settings, saved: Checkpoint) -> Check:
    known = sum(known.told and not known.deleted for known in saved.inventory.values())
    objects = f"{known} objects" if saved.whole else "without its inventory"
    at = f"version {saved.version}, {objects}, saved {saved.saved_at or 'nobody knows when'}"
    found = f"{settings.checkpoint} can be read: {at}"
    if saved.whole:
        return Check.ok("checkpoint", found)
    small = f"{found}, for which the store had no room: after a gap a run cannot tell what is gone"
    return Check.warn("checkpoint", small, "use a store that takes more (docs/stores.md)")


def _first(settings: Settings, source: Source | None) -> Iterator[Check]:
    what, found = "checkpoint", "there is none yet"
    if not source:
        yield Check.ok(what, found)
        return
    start = settings.resource_version
    try:
        page = source.list(Query(limit=1))
        kept = not start or start > page.version or _is_listable(source, start)
    except WatcherError as error:
        yield Check.ok(what, found)
        yield Check.warn("first run", f"what it begins with, cannot be told: {error}", "ask again")
        return
    count = len(page.objects) + (page.remaining or 0)
    does = "publishes" if settings.initial is Initial.PUBLISH and not start else "skips"
    matching = ", those of them that match --selector" if settings.scope.selector else ""
    yield Check.ok(what, f"{found}: a first run {does} about {count} objects{matching}")
    if start and start > page.version:
        ahead = f"--resource-version {start} is in the future: the cluster is at {page.version}"
        yield Check.fail(_START, ahead, "correct --resource-version, or leave it out")
    elif not kept:
        gone = f"the API server no longer has --resource-version {start}"
        yield Check.fail(_START, gone, "start without --resource-version")


def _scope(found: Scope, wanted: Scope) -> Check:
    """All that differs, where a run tells the first of it (R6)."""
    what, differences = "scope", "; ".join(resume.differences(found, wanted))
    if not differences:
        return Check.ok(what, f"the checkpoint is for this cluster, {wanted.resource}, namespace, selector and sink")
    remedy = (
        "use another --checkpoint for this scope (one that ends in / is completed with it), go back to these options, "
        "or remove that one to publish everything from the beginning"
    )
    return Check.fail(what, differences, remedy)


def _position(saved: Checkpoint, source: Source | None, now: datetime) -> Iterator[Check]:
    """Whether the history behind the saved version is still there, and where."""
    what = "age"
    age = now - datetime.fromisoformat(saved.current_at) if saved.current_at else None
    ago = _shown(max(age, timedelta())) if age is not None else ""
    old = f"version {saved.version} was the present {ago} ago" if ago else "it has no age yet"
    if age is not None and age < -RING:
        ahead = f"version {saved.version} is from {_shown(-age)} in the future"
        yield Check.warn("clocks", ahead, "compare the clocks of the machines that run this")
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
