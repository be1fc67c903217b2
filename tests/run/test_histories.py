"""The promises as properties: random histories of a cluster, runs that are killed anywhere, and the ground truth."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from unittest import mock

import pytest
from hypothesis import HealthCheck, assume, event, given, settings, strategies as st

from job.change import Reason
from job.run import past
from job.run.summary import FIRST, RESUMED
from tests.fakes.crash import STEPS, Crash, Killed, KilledWhileReading, Step
from tests.fakes.sink import Answer, MemorySink
from tests.fakes.source import Refusal
from tests.run import promises
from tests.run.scene import Scene, reading_back

PATIENT = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])

PLENTY = 10_000
NAMES = "abc"
WRITES = [*(f"{what} {name}" for name in NAMES for what in ("touch", "delete")), "tick"]
FORGETTING = ["expire", "compact"]
ENDINGS = ["end", "break", "fail", "expire watch", "wait", "signal"]

writes = st.sampled_from(WRITES)
happenings = st.one_of(writes, writes, writes, st.sampled_from([*FORGETTING, *ENDINGS]))


@dataclass(frozen=True, slots=True)
class Tick:
    """One run, and what happens before, in the middle of its listings, and while it watches."""

    before: list[str] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)
    watched: list[str] = field(default_factory=list)
    crash: tuple[Step, int] | None = None
    refusal: Refusal = Refusal.FRAME
    answers: list[Answer] = field(default_factory=list)
    window: int = 55
    recover: int = 20
    pieces: int = 1_000
    """Versions of a piece that is read back."""
    counts: int = PLENTY
    """How many counts there is time for."""
    says_remaining: bool = True
    room: int | None = None
    """Bytes that the store takes."""


def ticks(happening: st.SearchStrategy[str] = happenings) -> st.SearchStrategy[Tick]:
    return st.builds(
        Tick,
        before=st.lists(st.one_of(writes, writes, st.sampled_from(FORGETTING)), max_size=6),
        listed=st.lists(happening, max_size=4),
        watched=st.lists(happening, max_size=8),
        crash=st.none() | st.tuples(st.sampled_from(STEPS), st.integers(1, 4)),
        refusal=st.sampled_from([Refusal.FRAME, Refusal.FRAME, Refusal.HTTP, Refusal.SILENT]),
        answers=st.lists(
            st.sampled_from([Answer.STORED, Answer.STORED, Answer.HALF, Answer.LOST, Answer.PARTLY]), max_size=2
        ),
        window=st.sampled_from([55, 55, 0]),
        recover=st.sampled_from([20, 20, 20, 0]),
        pieces=st.sampled_from([1_000, 2, 3, 5]),
        counts=st.sampled_from([PLENTY, PLENTY, PLENTY, 2, 4]),
        says_remaining=st.sampled_from([True, True, False]),
        room=st.sampled_from([None, None, None, 1]),
    )


def forgets(tick: Tick) -> bool:
    """Whether some history is lost in it."""
    return not {*FORGETTING, "expire watch"}.isdisjoint((*tick.before, *tick.listed, *tick.watched))


def happen(scene: Scene, what: str) -> None:
    """Let one of the things in the lists above happen."""
    cluster = scene.cluster
    verb, _, name = what.partition(" ")
    alive = (cluster.namespace, name) in cluster.state()
    happenings: dict[str, Callable[[], object]] = {
        "touch": partial(cluster.change if alive else cluster.create, name),
        "delete": partial(cluster.delete, name) if alive else cluster.tick,
        "tick": cluster.tick,
        "expire": cluster.expire_watches if name else cluster.expire,
        "compact": cluster.compact,
        "end": cluster.end_watches,
        "break": cluster.break_watches,
        "fail": cluster.fail_watches,
        "wait": partial(scene.clock.jump, 11),
        "signal": scene.signal,
    }
    happenings[verb]()


def begin(scene: Scene) -> None:
    """Watch over the promises that must hold at every moment."""

    def on_write(data: bytes) -> None:
        assert promises.ahead(scene, data) == []

    scene.store.on_write = on_write


def live_through(scene: Scene, tick: Tick) -> str:
    """Do one run in its surroundings, and say in short what became of it."""
    with reading_back(pieces=tick.pieces, counts=tick.counts, seconds=tick.recover):
        return _live_through(scene, tick)


def _live_through(scene: Scene, tick: Tick) -> str:
    """The same at whatever pace history is read back."""
    for what in tick.before:
        happen(scene, what)
    if tick.counts < PLENTY:
        scene.cluster.tick()  # two gaps of samples never have the same end: a real cluster is never at rest
    scene.cluster.refusal = tick.refusal
    scene.cluster.says_remaining = tick.says_remaining
    scene.store.most_bytes = tick.room
    scene.cluster.while_listed.extend(partial(happen, scene, what) for what in tick.listed)
    scene.cluster.while_watched.extend(partial(happen, scene, what) for what in tick.watched)
    scene.sink.answer(*tick.answers)
    crash = Crash(*tick.crash) if tick.crash else Crash()
    outcome = f"killed at {tick.crash[0]}" if tick.crash else "killed"
    window, budget = timedelta(seconds=tick.window), timedelta(seconds=tick.recover)
    with suppress(Killed, KilledWhileReading):
        summary = scene.run(scene.settings(window=window, recover=budget), crash)
        outcome = f"start {summary.start or 'none'} {summary.recovery}, exit {summary.exit_code}"
    for left in (scene.cluster.while_listed, scene.cluster.while_watched):
        left.clear()
    scene.sink.forget()
    return outcome


def drop_repeats(scene: Scene) -> None:
    """Let the sink be a FIFO queue."""
    scene.sink = MemorySink(lanes=scene.sink.limits.lanes, clock=scene.clock)


def come_to_rest(scene: Scene) -> None:
    """Two quiet runs: the first may still meet what was forgotten."""
    scene.cluster.refusal = Refusal.FRAME
    scene.cluster.says_remaining = True
    scene.store.most_bytes = None
    for _ in range(2):
        summary = scene.run()
        assert summary.exit_code == 0
        assert summary.saved


@pytest.fixture(autouse=True, scope="module")
def one_reader() -> Iterator[None]:
    """One thread reads history back, so that what happens between two lists happens in one order every time."""
    with mock.patch.object(past, "CONNECTIONS", 1):
        yield


def all_is_kept(scene: Scene) -> None:
    """What must be true of everything that was told, whatever has happened."""
    assert promises.untold(scene) == []
    assert promises.disordered(scene.messages) == []
    assert promises.ambiguous(scene.messages) == []
    assert promises.diverged(scene) == []


@PATIENT
@given(st.lists(ticks(), min_size=1, max_size=5))
def test_nothing_is_lost_whatever_happens(history: list[Tick]) -> None:
    """Kill it anywhere, forget any history, run again: all is told, in order, once, and every hole is announced."""
    with Scene(lanes=4) as scene:
        begin(scene)
        for tick in history:
            event(live_through(scene, tick))
        come_to_rest(scene)

        all_is_kept(scene)
        assert scene.sink.broken == []


@settings(PATIENT, max_examples=40)
@given(st.lists(ticks(), min_size=1, max_size=5))
def test_r18_nothing_is_lost_where_repeats_are_dropped(history: list[Tick]) -> None:
    """The same, with a queue that drops what it has stored in the last five minutes."""
    with Scene(lanes=4) as scene:
        drop_repeats(scene)
        begin(scene)
        for tick in history:
            live_through(scene, tick)
        come_to_rest(scene)

        all_is_kept(scene)
        assert scene.sink.broken == []


@pytest.mark.parametrize("step", ["published", "save"])
def test_r18_what_a_killed_run_told_is_stored_again_after_the_gap(step: Step) -> None:
    """Also where repeats are dropped: a consumer takes what is not told behind a gap for gone."""
    with Scene(lanes=4) as scene:
        drop_repeats(scene)
        scene.run()
        scene.cluster.create("a")
        with suppress(Killed):
            scene.run(crash=Crash(step))
        scene.cluster.create("b")
        scene.cluster.expire()
        scene.cluster.compact()
        come_to_rest(scene)

        assert [name for _, name, _ in scene.told()] == ["a", "argo", "a", "b"]
        assert promises.diverged(scene) == []


def _samples_and_dies(scene: Scene) -> None:
    with reading_back(counts=4), suppress(Killed):
        scene.run(crash=Crash("published"))


def _lists_and_is_stopped(scene: Scene) -> None:
    scene.sink.before = lambda _: None if scene.deadline.stopped else scene.signal()
    scene.run(scene.settings(recover=timedelta()))
    scene.sink.before = lambda _: None


@pytest.mark.parametrize("announce", [_samples_and_dies, _lists_and_is_stopped])
def test_r18_what_is_told_by_the_run_after_the_gap_is_stored_again(announce: Callable[[Scene], None]) -> None:
    """The run that has told of a gap need not be the one that tells what follows it, and that one may have no gap."""
    with Scene(lanes=4) as scene:
        drop_repeats(scene)
        scene.run()
        scene.cluster.create("a")
        with suppress(Killed):
            scene.run(crash=Crash("published"))
        for _ in range(30):
            scene.cluster.tick()
        scene.cluster.expire()
        announce(scene)
        assert [name for _, name, _ in scene.told()] == ["a", "argo"]
        come_to_rest(scene)

        assert [name for _, name, _ in scene.told()] == ["a", "argo", "a"]
        assert promises.diverged(scene) == []


@PATIENT
@given(st.lists(ticks(st.one_of(writes, st.sampled_from(["end", "break", "wait"]))), min_size=1, max_size=5))
def test_no_gap_is_announced_where_none_was(history: list[Tick]) -> None:
    """While the server has the history, every version is told, and none of it is called a gap (P4, R16)."""
    with Scene(lanes=4) as scene:
        begin(scene)
        scene.run()
        for tick in history:
            remembering = [what for what in tick.before if what not in FORGETTING]
            live_through(scene, Tick(remembering, tick.listed, tick.watched, tick.crash, answers=tick.answers))
        come_to_rest(scene)

        assert promises.gaps(scene.messages) == []
        assert {summary.start for summary in scene.runs} <= {FIRST, RESUMED, ""}
        assert promises.untold(scene) == []
        assert promises.disordered(scene.messages) == []
        assert promises.ambiguous(scene.messages) == []


@PATIENT
@given(st.lists(ticks(), min_size=1, max_size=5))
def test_r11_nothing_is_lost_where_several_threads_read(history: list[Tick]) -> None:
    """The same, with as many as there are."""
    with mock.patch.object(past, "CONNECTIONS", 4), Scene(lanes=4) as scene:
        begin(scene)
        for tick in history:
            live_through(scene, tick)
        come_to_rest(scene)

        all_is_kept(scene)


@PATIENT
@given(
    st.lists(
        ticks(st.one_of(writes, st.sampled_from(["expire", "expire watch", "end", "break", "fail", "wait"]))),
        min_size=1,
        max_size=5,
    )
)
def test_r11_no_gap_is_announced_where_the_whole_history_is_read_back(history: list[Tick]) -> None:
    """What the watch forgets, as often as it will, is no loss while etcd has it and there is time for all of it."""
    with Scene(lanes=4) as scene:
        begin(scene)
        scene.run()
        for tick in history:
            remembering = ["expire" if what == "compact" else what for what in tick.before]
            event(live_through(scene, replace(tick, before=remembering, recover=1_000, counts=PLENTY)))
        come_to_rest(scene)

        assert promises.gaps(scene.messages) == []
        assert {provenance for _, _, provenance in scene.told()} <= {"initial", "observed", "recovered"}
        all_is_kept(scene)


@PATIENT
@given(
    st.lists(
        st.tuples(ticks(), st.lists(writes, min_size=3, max_size=25), st.sampled_from([1, 2, 3, 5, 8])),
        min_size=1,
        max_size=4,
    )
)
def test_r11_samples_miss_what_they_say_and_nothing_else(history: list[tuple[Tick, list[str], int]]) -> None:
    """Little time to count, and kills everywhere: only lives may be missing that are as short as a gap says."""
    with Scene(lanes=4) as scene:
        begin(scene)
        scene.run()
        for tick, busy, counts in history:
            before = [*("expire" if what == "compact" else what for what in tick.before), *busy, "expire"]
            listed = ["expire" if what == "compact" else what for what in tick.listed]
            event(live_through(scene, replace(tick, before=before, listed=listed, recover=1_000, counts=counts)))
        come_to_rest(scene)

        all_is_kept(scene)


@PATIENT
@given(
    st.lists(ticks(), min_size=1, max_size=3), ticks(), ticks(), st.sampled_from(["listed", "watched", "saved", "sink"])
)
def test_an_overtaken_run_does_no_harm(history: list[Tick], old: Tick, new: Tick, where: str) -> None:
    """A run that is overtaken by another, at any step, leaves the checkpoint alone and nothing is lost."""
    if any(map(forgets, (*history, old, new))):
        # What it has told of half when it ends, or late, may be gone since the winner's gap (docs/limits.md).
        old = replace(old, crash=None, watched=[what for what in old.watched if what != "signal"])
        assume(where != "sink")
    with Scene(lanes=4) as scene:
        begin(scene)
        for tick in history:
            live_through(scene, tick)
        overtaken = _Overtaking(scene, replace(new, recover=old.recover))  # two runs of one CronJob
        if where == "saved":
            scene.store.before_save.append(overtaken)
        elif where == "sink":
            scene.sink.before = lambda _: overtaken()
        elif where == "listed":
            scene.cluster.while_listed.append(overtaken)
        else:
            scene.cluster.while_watched.append(overtaken)
        live_through(scene, replace(old, listed=[], refusal=Refusal.FRAME, answers=[]))
        scene.store.before_save.clear()
        scene.sink.before = lambda _: None
        overtaken.wait()
        come_to_rest(scene)

        assert promises.untold(scene) == []
        assert promises.diverged(scene) == []


@PATIENT
@given(st.lists(ticks(), min_size=1, max_size=3), st.integers(1, 100), st.lists(ticks(), max_size=2))
def test_a_rewound_cluster_is_told_anew(before: list[Tick], back: int, after: list[Tick]) -> None:
    """After a restore everything that is left is told in a new epoch, which comes before the version (R9)."""
    with Scene(lanes=4) as scene:
        for tick in before:
            event(live_through(scene, tick))
        come_to_rest(scene)
        version = max(1, scene.saved.version - back)
        scene.cluster.rewind(version)
        scene.run()
        for tick in after:
            event(live_through(scene, tick))
        come_to_rest(scene)

        assert scene.saved.epoch == 1
        assert Reason.REWOUND in scene.runs[-3 - len(after)].gaps or after
        assert promises.untold(scene) == []
        assert promises.diverged(scene) == []
        assert promises.ambiguous(scene.messages) == []


class _Overtaking:
    """A run in the middle of another one, once."""

    def __init__(self, scene: Scene, tick: Tick) -> None:
        watched = [what for what in tick.watched if what != "signal"]
        self._tick = replace(tick, listed=[], watched=watched, refusal=Refusal.FRAME, answers=[], window=55)
        self._scene = scene
        self._begun = False
        self._over = threading.Event()

    def __call__(self) -> None:
        if self._begun:
            return
        self._begun, cluster, stopped = True, self._scene.cluster, self._scene.deadline
        to_watch, to_list = list(cluster.while_watched), list(cluster.while_listed)
        cluster.while_watched.clear()
        cluster.while_listed.clear()
        try:
            # In a thread of the other run, perhaps, which may end before this one: its pace is for both.
            _live_through(self._scene, self._tick)
        finally:
            cluster.while_watched.extend(to_watch)
            cluster.while_listed.extend(to_list)
            self._scene.deadline = stopped
            self._over.set()

    def wait(self) -> None:
        """Return when it is over: a run that is overtaken by its own sink may end before that."""
        if self._begun:
            assert self._over.wait(60)
