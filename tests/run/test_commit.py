"""Tests of what is acknowledged, and its saving."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import msgspec
import pytest

from job import checkpoint as codec
from job.change import Known
from job.checkpoint import Checkpoint, RunRecord, Scope
from job.errors import ActionNeeded, Superseded, Unavailable
from job.ports import Identity
from job.run.commit import SAVE_INTERVAL, Commit, Effect, Ledger
from tests.bed.waiting import wait_until
from tests.fakes.clock import Clock
from tests.fakes.store import MemoryStore, Save

START = Checkpoint(
    Scope("prod", "workflows.v1alpha1.argoproj.io", "argo", "", "stdout:"),
    identity=Identity("cluster"),
    version=10,
    inventory={"old": Known("argo", "old", 7)},
    run_id="earlier",
    sequence=3,
    saved_at="2026-11-23T07:00:00Z",
)
RECORD = RunRecord("ours", "2026-11-23T08:00:00Z", 55.0, "resumed", 60.0, 0, {"added": 1})
FOREIGN = codec.encode(msgspec.structs.replace(START, version=99, run_id="foreign", sequence=1))


class Desk:
    """A commit over a store in memory."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = MemoryStore(codec.encode(START))
        self.commit = Commit(
            self.store,
            self.store.load(timeout=1),
            START,
            run_id="ours",
            elapsed=self.clock,
            now=lambda: self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ"),
        )

    def acknowledge(self, version: int) -> None:
        self.commit.ledger.enter(Effect(version=version), done=True)
        self.commit.ledger.acknowledge()

    def tick_until(self, condition: Callable[[], bool]) -> None:
        """Tick as a run does, and wait for the background."""

        def ticked() -> bool:
            self.commit.tick()
            return condition()

        wait_until(ticked, timedelta(seconds=20), "a save in the background")

    @property
    def saved(self) -> Checkpoint:
        stored = self.store.load(timeout=1)
        assert stored is not None
        return codec.decode(stored.data)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_the_last_save_has_what_is_acknowledged(desk: Desk) -> None:
    """Version, inventory, who wrote it, and the record of the run; what is not touched stays as it was loaded."""
    desk.commit.ledger.acknowledge(
        [desk.commit.ledger.enter(Effect(version=12, uid="new", known=Known("argo", "new", 12)))]
    )
    desk.commit.save(RECORD)

    assert desk.saved == msgspec.structs.replace(
        START,
        version=12,
        inventory={"old": Known("argo", "old", 7), "new": Known("argo", "new", 12)},
        run_id="ours",
        sequence=1,
        saved_at="2026-11-23T08:00:00Z",
        current_at="2026-11-23T08:00:00Z",
        runs=(RECORD,),
    )
    assert not desk.commit.moved


def test_p2_what_is_in_flight_is_not_saved(desk: Desk) -> None:
    """A later position that is done does not count while an earlier one is open."""
    desk.commit.ledger.enter(Effect(version=11))
    desk.acknowledge(12)
    desk.commit.save(RECORD)

    assert desk.saved.version == 10


def test_the_version_and_the_inventory_move_together(desk: Desk) -> None:
    """Each prefix of the stream gives one pair of both."""
    ledger = desk.commit.ledger
    first = ledger.enter(Effect(version=11, uid="new", known=Known("argo", "new", 11)))
    second = ledger.enter(Effect(version=12, uid="old"))

    ledger.acknowledge([second])
    assert (ledger.version, set(ledger.inventory())) == (10, {"old"})
    ledger.acknowledge([first])
    assert (ledger.version, set(ledger.inventory())) == (12, {"new"})


def test_r17_what_a_listing_is_about_to_tell_of_is_saved_first(desk: Desk) -> None:
    """The version stays where it was, and `listed` says that it must not be watched from (R1)."""
    foreseen = Known("argo", "new", 0, told=False)
    desk.commit.ledger.foresee({"new": foreseen}, listed=20, listed_for="", announced=0)
    desk.commit.save()

    assert (desk.saved.version, desk.saved.listed) == (10, 20)
    assert desk.saved.inventory == {**START.inventory, "new": foreseen}
    assert desk.saved.runs == ()


def test_r2_a_tombstone_stays_until_the_version_has_passed_it() -> None:
    """A listed deletion leaves a tombstone, and the save that moves the version over it drops it."""
    ledger = Ledger(START)
    ledger.acknowledge([ledger.enter(Effect(uid="old", known=Known("argo", "old", 20, deleted=True)))])
    assert ledger.inventory() == {"old": Known("argo", "old", 20, deleted=True)}
    ledger.acknowledge([ledger.enter(Effect(version=19))])
    assert set(ledger.inventory()) == {"old"}
    ledger.acknowledge([ledger.enter(Effect(version=20))])
    assert ledger.inventory() == {}


def test_r2_a_tombstone_of_an_earlier_run_is_buried_too() -> None:
    """Tombstones are known from the inventory that was loaded."""
    ledger = Ledger(msgspec.structs.replace(START, inventory={"old": Known("argo", "old", 20, deleted=True)}))
    ledger.acknowledge([ledger.enter(Effect(version=20))])
    assert ledger.inventory() == {}


def test_r12_a_whole_inventory_is_one_effect() -> None:
    """Half of an adopted listing is never saved."""
    ledger = Ledger(START)
    ledger.acknowledge([ledger.enter(Effect(version=30, inventory={"a": Known("argo", "a", 30)}))])
    assert ledger.inventory() == {"a": Known("argo", "a", 30)}
    assert ledger.version == 30


def test_it_saves_now_and_then(desk: Desk) -> None:
    """While something moves, a save is made every ten seconds, in the background."""
    desk.acknowledge(11)
    desk.commit.tick()
    assert desk.store.values == [codec.encode(START)]
    desk.clock.jump(SAVE_INTERVAL)
    desk.tick_until(lambda: desk.saved.version == 11)
    assert desk.commit.saves == 1


def test_it_does_not_save_what_did_not_move(desk: Desk) -> None:
    """Unchanged bytes are not written again."""
    desk.clock.jump(SAVE_INTERVAL)
    desk.commit.tick()
    assert desk.store.values == [codec.encode(START)]


def test_an_unreachable_store_is_tried_again_with_a_later_tick(desk: Desk) -> None:
    """One save that fails does not end the run."""
    desk.store.answer(Save.UNAVAILABLE)
    desk.acknowledge(11)
    desk.store.before_save.append(lambda: desk.clock.jump(SAVE_INTERVAL))
    desk.clock.jump(SAVE_INTERVAL)
    desk.tick_until(lambda: desk.saved.version == 11)

    assert desk.commit.saves == 1


def test_r13_a_foreign_checkpoint_is_left_alone(desk: Desk) -> None:
    """A conflict whose re-read shows another run: that run is named, and nothing is written."""
    desk.store.put(FOREIGN)
    desk.acknowledge(11)
    with pytest.raises(Superseded, match="foreign"):
        desk.commit.save(RECORD)

    assert desk.saved.run_id == "foreign"
    assert desk.store.values[-1] == FOREIGN


def test_r13_a_removed_checkpoint_is_not_brought_back(desk: Desk) -> None:
    """A person may have removed it to begin anew."""
    desk.store.put(None)
    desk.acknowledge(11)
    with pytest.raises(Superseded, match="removed"):
        desk.commit.save(RECORD)

    assert desk.store.load(timeout=1) is None


def test_r13_unreadable_bytes_are_left_alone(desk: Desk) -> None:
    """Something else was written there, by whom is unknown."""
    desk.store.put(b"something else")
    desk.acknowledge(11)
    with pytest.raises(Superseded):
        desk.commit.save(RECORD)

    assert desk.store.values[-1] == b"something else"


def test_r13_the_own_write_is_recognised_though_its_answer_was_lost(desk: Desk) -> None:
    """The repeat finds its own run, adopts that generation, and goes on."""
    desk.store.answer(Save.LOST)
    desk.acknowledge(11)
    desk.commit.save(RECORD)

    assert desk.saved.version == 11
    assert desk.saved.run_id == "ours"
    desk.acknowledge(12)
    desk.commit.save(RECORD)
    assert desk.saved.version == 12


def test_r13_the_losing_save_in_the_background_stops_the_run(desk: Desk) -> None:
    """The next tick tells that the race is lost."""
    desk.store.put(FOREIGN)
    desk.acknowledge(11)
    desk.clock.jump(SAVE_INTERVAL)
    with pytest.raises(Superseded):
        desk.tick_until(lambda: False)


def test_r13_a_race_that_is_lost_between_the_two_looks_is_lost(desk: Desk) -> None:
    """Our own lost write is adopted, and before it is replaced another run is quicker: that is a loser, not a bug."""
    desk.store.answer(Save.LOST)
    # The save that is lost, its repeat, which finds our own earlier write, and what that repeat would write.
    desk.store.before_save.extend([lambda: None, lambda: None, lambda: desk.store.put(FOREIGN)])
    desk.acknowledge(11)
    with pytest.raises(Superseded, match="foreign"):
        desk.commit.save(RECORD)

    assert desk.store.values[-1] == FOREIGN


def test_a_store_that_stays_away_is_given_up_in_time(desk: Desk) -> None:
    """The last save is tried again for eight seconds, then the next run has to go on from the earlier one."""
    desk.store.otherwise = Save.UNAVAILABLE
    desk.store.before_save.extend([lambda: desk.clock.jump(5)] * 5)
    desk.acknowledge(11)
    with pytest.raises(Unavailable):
        desk.commit.save(RECORD)

    assert desk.commit.moved


def test_r19_a_store_that_hangs_is_given_up_in_time() -> None:
    """A save without an answer is not waited for, and no thread of it keeps the process."""
    seconds = iter([0.0, 0.0])  # when the run began, and when its last save did; after that its time is over
    with MemoryStore() as store:
        store.otherwise = Save.HANGS
        commit = Commit(store, None, START, run_id="ours", elapsed=lambda: next(seconds, 100.0), now=lambda: "")
        with pytest.raises(Unavailable):
            commit.save(RECORD)

        assert {thread.daemon for thread in threading.enumerate() if thread.name == "save"} == {True}


def test_a_first_save_must_be_the_first() -> None:
    """Without a stored value the save is create-only."""
    store = MemoryStore()
    commit = Commit(store, None, START, run_id="ours", elapsed=Clock(), now=lambda: "")
    store.put(FOREIGN)
    with pytest.raises(Superseded):
        commit.save(RECORD)
    assert store.values == [FOREIGN]


def test_only_the_last_hundred_runs_are_kept(desk: Desk) -> None:
    """The record does not grow for ever."""
    for _ in range(codec.KEPT_RUNS + 5):
        desk.commit.save(RECORD)
    assert len(desk.saved.runs) == codec.KEPT_RUNS


def test_what_a_person_must_mend_ends_the_save(desk: Desk) -> None:
    """It is not tried again."""
    tries: list[int] = []

    def forbidden() -> None:
        tries.append(1)
        message = "no right to write"
        raise ActionNeeded(message)

    desk.store.before_save.extend([forbidden] * 3)
    with pytest.raises(ActionNeeded):
        desk.commit.save(RECORD)
    assert tries == [1]


def test_a_closed_ledger_counts_nothing_more(desk: Desk) -> None:
    """What is acknowledged during the last save is not in it: the summary must not say so."""
    desk.acknowledge(101)
    desk.commit.ledger.close()
    desk.acknowledge(102)
    desk.commit.save()

    assert (desk.commit.ledger.version, desk.saved.version) == (101, 101)


def test_a_run_that_wakes_up_after_its_time_finds_its_successor(desk: Desk) -> None:
    """Stopped in the middle of its last save for an hour: one attempt is left, and it loses."""
    desk.acknowledge(101)
    desk.store.answer(Save.UNAVAILABLE)

    def overtaken() -> None:
        desk.clock.jump(3600)
        desk.store.put(FOREIGN)

    desk.store.before_save.append(overtaken)
    with pytest.raises((Superseded, Unavailable)):
        desk.commit.save()

    assert desk.saved.run_id == "foreign"
