"""Tests of listings in a run: the first one, and those that replace lost history."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest

from job.change import Known, Reason
from job.errors import ExitCode
from job.message import DELETION
from job.run import listing
from job.settings import Initial
from tests.fakes.crash import Crash, Killed
from tests.fakes.sink import Answer
from tests.run.scene import Scene


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene(recover=timedelta()) as scene:
        yield scene


def create_many(scene: Scene, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        scene.cluster.create(f"w{number:04}")


def test_a_first_run_tells_what_exists(scene: Scene) -> None:
    """Every object is added, known from the listing; nothing is called a gap (R16)."""
    scene.cluster.create("a")
    scene.cluster.create("b", phase="Running")

    summary = scene.run()

    assert (summary.start, summary.exit_code) == ("first", ExitCode.DONE)
    assert scene.told() == [("added", "a", "initial"), ("added", "b", "initial")]
    assert scene.known == {"a": 101, "b": 102}
    assert scene.saved.version == scene.saved.listed == 102


def test_an_expired_version_is_replaced_by_the_difference(scene: Scene) -> None:
    """A gap message first; then what is new, what moved on, and what is gone, each inferred."""
    for name in ("same", "moved", "gone"):
        scene.cluster.create(name)
    scene.run()
    saved_at = scene.saved.saved_at
    scene.cluster.change("moved")
    scene.cluster.delete("gone")
    scene.cluster.create("new")
    scene.cluster.expire()
    before = len(scene.messages)

    summary = scene.run()

    assert summary.start == Reason.EXPIRED
    assert scene.told(before) == [
        ("gap", "argo", "inferred"),
        ("modified", "moved", "inferred"),
        ("added", "new", "inferred"),
        ("deleted", "gone", "inferred"),
    ]
    assert json.loads(scene.messages[before].data) == {
        "reason": "expired",
        "from": "103",
        "to": "106",
        "since": saved_at,
        "missing": "intermediate",
    }
    assert scene.known == {"same": 101, "moved": 104, "new": 106}


def test_an_inferred_deletion_says_only_what_is_certain(scene: Scene) -> None:
    """Kind and names, and no version: when and as what it was deleted is not known."""
    uid = scene.cluster.create("gone", phase="Running")
    scene.run()
    scene.cluster.delete("gone")
    scene.cluster.expire()
    scene.run()

    message = scene.messages[-1]
    assert message.id == f"{uid}/deleted"
    assert message.attributes["dataschema"] == DELETION
    assert not message.attributes.keys() & {"resourceversion", "phase"}
    assert json.loads(message.data) == {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"namespace": "argo", "name": "gone", "uid": uid},
    }


def test_r1_a_partial_listing_is_never_watched_from(scene: Scene) -> None:
    """After a kill in the middle of a listing the next run lists again, though the server would accept the watch."""
    scene.cluster.create("before")
    scene.run()
    saved = scene.saved
    create_many(scene, 2)
    scene.save(saved.version, dict(saved.inventory), listed=saved.version + 1)

    summary = scene.run()

    assert summary.start == Reason.INTERRUPTED
    assert scene.cluster.watches[-1][0] == scene.cluster.version
    assert scene.saved.version == scene.saved.listed == scene.cluster.version


def test_r1_a_listing_says_that_it_is_partial_with_its_first_message(scene: Scene) -> None:
    """The first save inside a listing has `listed` above the version."""
    scene.cluster.create("a")
    scene.run()
    old = scene.saved.version
    create_many(scene, 3)
    scene.cluster.expire()
    # The probe and the listing; then, when the objects are read, a signal.
    scene.cluster.while_listed.extend([lambda: None] * 2)
    scene.cluster.while_listed.append(scene.signal)

    scene.run()

    assert (scene.saved.version, scene.saved.listed) == (old, old + 3)


def test_r2_a_changed_object_is_read_at_the_version_of_the_listing(scene: Scene) -> None:
    """An object that moves on between the listing and the reading is told as it was at the listing's version."""
    create_many(scene, 30)
    scene.run()
    version = scene.cluster.change("w0003", phase="Running")
    scene.cluster.expire()
    before = len(scene.messages)
    # The probe, the listing, and then the object by its name.
    scene.cluster.while_listed.extend([lambda: None] * 2)
    scene.cluster.while_listed.append(lambda: scene.cluster.change("w0003", phase="Failed"))

    scene.run()

    assert [message.id for message in scene.messages[before + 1 :]] == [f"uid-4/{version}", f"uid-4/{version + 1}"]
    assert scene.told(before + 1) == [("modified", "w0003", "inferred"), ("modified", "w0003", "observed")]
    assert scene.messages[before + 1].attributes["phase"] == "Running"
    assert scene.cluster.lists[-1].at == version
    assert scene.cluster.lists[-1].name == "w0003"


@pytest.mark.parametrize("many", [False, True])
def test_r2_a_version_that_is_forgotten_while_it_is_read_restarts_the_listing(scene: Scene, many: bool) -> None:
    """410 for the objects of a listing: another listing begins, and tells the newer state."""
    create_many(scene, 30)
    scene.run()
    scene.cluster.change("w0003")
    if many:
        for number in range(10, 20):
            scene.cluster.change(f"w{number:04}")
    scene.cluster.expire()

    def forget() -> None:
        scene.cluster.change("w0003")
        scene.cluster.compact()

    scene.cluster.while_listed.extend([lambda: None] * 2)
    scene.cluster.while_listed.append(forget)

    summary = scene.run()

    assert (summary.exit_code, summary.listings) == (ExitCode.DONE, 2)
    assert scene.known["w0003"] == scene.cluster.state()["argo", "w0003"].version
    assert scene.messages[-1].id != f"uid-4/{scene.known['w0003'] - 1}"


def test_r2_a_deletion_of_a_partial_listing_is_not_told_twice(scene: Scene) -> None:
    """A tombstone stays while the version is behind it, and drops what a later listing would infer again."""
    uid = scene.cluster.create("gone")
    scene.run()
    version = scene.saved.version
    scene.cluster.delete("gone")
    scene.save(version, {uid: Known("argo", "gone", version + 1, deleted=True)}, listed=version + 1)
    before = len(scene.messages)

    scene.run()

    assert [kind for kind, _, _ in scene.told(before)] == ["gap"]
    assert scene.saved.inventory == {}


def test_r3_the_deletion_comes_before_the_object_that_has_the_name_now(scene: Scene) -> None:
    """A name that lives on under another uid: first the old object's deletion, then the new object."""
    old = scene.cluster.create("a")
    scene.run()
    scene.cluster.delete("a")
    new = scene.cluster.create("a")
    scene.cluster.expire()

    scene.run()

    assert [message.id for message in scene.messages[-2:]] == [f"{old}/deleted", f"{new}/{scene.cluster.version}"]


def test_r4_deletions_wait_for_the_last_page(scene: Scene) -> None:
    """What the first page lacks may be on the second: nothing is deleted before that is read."""
    create_many(scene, listing.PAGE + 5)
    scene.run()
    scene.cluster.delete("w0000")
    scene.cluster.change("w0504")
    scene.cluster.expire()
    before = len(scene.messages)

    scene.run()

    assert scene.told(before) == [
        ("gap", "argo", "inferred"),
        ("modified", "w0504", "inferred"),
        ("deleted", "w0000", "inferred"),
    ]


def test_r4_a_restarted_listing_begins_without_marks(scene: Scene) -> None:
    """An object that was seen on the first page, and deleted before the listing had to begin again, is deleted."""
    create_many(scene, listing.PAGE + 5)
    scene.run()
    scene.cluster.change("w0001")
    scene.cluster.expire()

    def forget() -> None:
        scene.cluster.delete("w0000")
        scene.cluster.delete("w0504")
        scene.cluster.compact()

    # The probe, the first page, the object by its name; then the second page is not to be had any more.
    scene.cluster.while_listed.extend([lambda: None] * 3)
    scene.cluster.while_listed.append(forget)
    before = len(scene.messages)

    summary = scene.run()

    assert summary.listings == 2
    assert [told for told in scene.told(before) if told[0] == "deleted"] == [
        ("deleted", "w0000", "inferred"),
        ("deleted", "w0504", "inferred"),
    ]
    assert len([message for message in scene.messages if message.id.startswith("uid-2/")]) == 2


def test_r4_a_history_that_vanishes_faster_than_it_can_be_read_is_left_to_the_next_run(scene: Scene) -> None:
    """At most three listings a run; then 75, and what was acknowledged is saved."""
    create_many(scene, listing.PAGE + 5)

    def forget() -> None:
        scene.cluster.tick()
        scene.cluster.compact()

    scene.cluster.while_listed.append(lambda: None)
    scene.cluster.while_listed.extend([lambda: None, forget] * 10)

    summary = scene.run()

    assert summary.exit_code == ExitCode.TEMPORARY
    assert summary.listings == 3


def test_r4_a_listing_begins_when_nothing_is_in_flight(scene: Scene) -> None:
    """What a watch has told is acknowledged before its end is replaced by a listing."""
    scene.run()
    stored: list[int] = []
    scene.cluster.while_watched.extend(
        [
            lambda: scene.cluster.create("a"),
            lambda: scene.sink.answer(Answer.LOST),
            lambda: scene.cluster.create("b"),
            lambda: scene.cluster.while_listed.extend(
                [lambda: stored.append(len({message.id for message in scene.messages}))] * 2
            ),
            scene.cluster.expire_watches,
        ]
    )

    scene.run()

    assert stored[:1] == [2]


def test_r16_a_first_listing_that_begins_again_loses_nothing(scene: Scene) -> None:
    """Before anything is told there was no history to lose."""
    create_many(scene, listing.PAGE + 5)

    def forget() -> None:
        scene.cluster.tick()
        scene.cluster.compact()

    # The probe and the first page; then the second page is not to be had any more.
    scene.cluster.while_listed.extend([lambda: None, lambda: None, forget])

    summary = scene.run()

    assert summary.listings == 2
    assert summary.gaps == []
    assert {provenance for _, _, provenance in scene.told()} == {"initial"}


def test_r12_skip_enters_what_exists_unpublished_and_in_one_save(scene: Scene) -> None:
    """A first run that skips knows everything and tells nothing; what comes after is told."""
    scene.cluster.create("a")
    scene.cluster.while_watched.extend([lambda: scene.cluster.change("a"), lambda: scene.cluster.create("b")])

    summary = scene.run(scene.settings(initial=Initial.SKIP))

    assert summary.start == "skipped"
    assert scene.told() == [("modified", "a", "observed"), ("added", "b", "observed")]
    assert scene.known == {"a": 102, "b": 103}


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_r12_half_of_a_skipped_listing_is_never_saved(scene: Scene, nth: int) -> None:
    """Killed in the middle, a skipping first run leaves nothing behind, and the next one skips again."""
    create_many(scene, listing.PAGE + 5)
    with pytest.raises(Killed):
        scene.run(scene.settings(initial=Initial.SKIP), crash=Crash("list", nth))
    assert scene.store.values == []

    scene.run(scene.settings(initial=Initial.SKIP))

    assert scene.messages == []
    assert len(scene.known) == listing.PAGE + 5


def test_r12_a_given_version_loads_the_inventory_of_its_time(scene: Scene) -> None:
    """`--resource-version`: what existed then is known, what happened since is observed."""
    scene.cluster.create("a")
    scene.cluster.create("b")
    version = scene.cluster.version
    scene.cluster.delete("a")
    scene.cluster.create("c")

    summary = scene.run(scene.settings(resource_version=version))

    assert (summary.start, summary.version_from) == ("pinned", version)
    assert scene.told() == [("deleted", "a", "observed"), ("added", "c", "observed")]
    assert scene.known == {"b": 102, "c": 104}


def test_r12_a_given_version_that_is_gone_is_for_a_person(scene: Scene) -> None:
    """410 for the version that was asked for: 78, nothing told, nothing saved."""
    scene.cluster.create("a")
    scene.cluster.tick()
    scene.cluster.compact()

    summary = scene.run(scene.settings(resource_version=101))

    assert summary.exit_code == ExitCode.ACTION_NEEDED
    assert scene.messages == []
    assert scene.store.values == []


def test_r12_a_given_version_is_for_a_first_run_only(scene: Scene) -> None:
    """Where there is a checkpoint it would be ambiguous: a usage error."""
    scene.cluster.create("a")
    scene.run()

    summary = scene.run(scene.settings(resource_version=101))

    assert summary.exit_code == ExitCode.USAGE


def test_r12_a_given_version_of_the_future_is_a_usage_error(scene: Scene) -> None:
    """A watch from there would swallow everything in silence."""
    summary = scene.run(scene.settings(resource_version=scene.cluster.version + 1))

    assert summary.exit_code == ExitCode.USAGE


def test_r12_a_signal_before_the_inventory_is_loaded_leaves_nothing_behind(scene: Scene) -> None:
    """The next run with the same options is a first run still."""
    scene.cluster.create("a")
    scene.cluster.while_listed.extend([lambda: None, scene.signal])
    scene.run(scene.settings(resource_version=101))

    assert scene.run(scene.settings(resource_version=101)).exit_code == ExitCode.DONE


def test_r7_a_listing_follows_who_lost_the_label(scene: Scene) -> None:
    """After an expiry a known object is modified and deleted as before, whatever its labels are."""
    blue = scene.settings(selector="colour=blue")
    scene.cluster.create("in", labels={"colour": "blue"})
    scene.cluster.create("out", labels={"colour": "red"})
    scene.run(blue)
    scene.cluster.change("in", labels={"colour": "red"})
    scene.cluster.change("out")
    scene.cluster.expire()
    scene.run(blue)
    scene.cluster.delete("in")
    scene.cluster.delete("out")
    scene.cluster.expire()
    scene.run(blue)

    assert [told for told in scene.told() if told[0] != "gap"] == [
        ("added", "in", "initial"),
        ("modified", "in", "inferred"),
        ("deleted", "in", "inferred"),
    ]


def test_r9_the_daily_comparison_finds_an_event_that_the_watch_never_had(scene: Scene) -> None:
    """Once a day the inventory is compared with LIST Exact at its version (kubernetes#123072)."""
    scene.cluster.create("kept")
    uid = scene.cluster.create("lost")
    scene.run()
    scene.cluster.delete("lost")
    scene.save(scene.cluster.version, dict(scene.saved.inventory), audited_at=scene.saved.audited_at)
    before = len(scene.messages)

    scene.run()
    assert scene.told(before) == []

    scene.clock.jump(timedelta(days=1).total_seconds())
    summary = scene.run()

    assert summary.gaps == [Reason.DRIFTED]
    assert scene.told(before) == [("gap", "argo", "inferred"), ("deleted", "lost", "inferred")]
    assert scene.messages[-1].id == f"{uid}/deleted"
    assert scene.known == {"kept": 101}


def test_r9_a_comparison_without_a_difference_is_silent(scene: Scene) -> None:
    """Nothing drifted, nothing is told, and the next comparison is a day later."""
    scene.cluster.create("a")
    scene.run()
    scene.clock.jump(timedelta(days=1).total_seconds())
    before = len(scene.messages)

    summary = scene.run()

    assert (summary.start, summary.gaps, scene.told(before)) == ("resumed", [], [])
    assert scene.saved.audited_at > scene.runs[0].started_at


def test_r9_a_comparison_waits_where_the_history_is_gone(scene: Scene) -> None:
    """410 for the old version: the run goes on, and the next one asks again."""
    scene.cluster.create("a")
    scene.run()
    audited = scene.saved.audited_at
    scene.clock.jump(timedelta(days=1).total_seconds())
    scene.cluster.listable_from = scene.cluster.version + 1
    scene.cluster.while_listed.append(scene.cluster.tick)

    summary = scene.run()

    assert (summary.exit_code, summary.start) == (ExitCode.DONE, "resumed")
    assert scene.saved.audited_at == audited


def test_r9_a_known_object_with_a_lower_version_shows_that_the_cluster_was_rewound(scene: Scene) -> None:
    """Its counter has passed the saved version again; an object that went back proves it."""
    scene.cluster.create("a")
    scene.cluster.create("b")
    before_backup = scene.cluster.version
    scene.cluster.change("a")
    scene.run()
    scene.cluster.rewind(before_backup)
    scene.cluster.tick(50)
    scene.cluster.expire()
    told = len(scene.messages)

    scene.run()

    assert scene.saved.epoch == 1
    assert scene.told(told)[0] == ("gap", "argo", "inferred")
    ids = [message.id for message in scene.messages[told:]]
    assert {"uid-1/101~1", "uid-2/102~1"} <= set(ids)


def test_r9_the_comparison_may_find_that_the_cluster_was_rewound(scene: Scene) -> None:
    """The saved version is accepted and means other things: the daily comparison finds an object that went back."""
    scene.cluster.create("a")
    before_backup = scene.cluster.version
    scene.cluster.change("a")
    scene.run()
    scene.cluster.rewind(before_backup)
    scene.cluster.tick(50)
    scene.cluster.watchable_from = 0
    scene.clock.jump(timedelta(days=1).total_seconds())

    summary = scene.run()

    assert (summary.exit_code, scene.saved.epoch) == (ExitCode.DONE, 1)
    assert Reason.REWOUND in summary.gaps
    assert scene.messages[-1].id == "uid-1/101~1"


def test_an_object_that_the_server_lists_and_does_not_give_is_not_skipped(scene: Scene) -> None:
    """The run ends with 75, and the version stays behind it."""
    create_many(scene, 30)
    scene.run()
    version = scene.cluster.change("w0003")
    scene.cluster.expire()

    def vanish() -> None:
        scene.cluster.writes = [write for write in scene.cluster.writes if write.uid != "uid-4"]

    scene.cluster.while_listed.extend([lambda: None] * 2)
    scene.cluster.while_listed.append(vanish)

    summary = scene.run()

    assert summary.exit_code == ExitCode.TEMPORARY
    assert scene.saved.version < version


def test_r9_a_cluster_that_is_rewound_again_before_the_first_gap_begins_another_epoch(scene: Scene) -> None:
    """A listing that was foreseen in an epoch, and never told, does not keep a second rewind from being told."""
    scene.cluster.create("a")
    scene.save(0, epoch=1, listed=10_000, listed_for="rewound")

    summary = scene.run()

    assert (summary.exit_code, scene.saved.epoch) == (0, 2)
    assert scene.told() == [("gap", "argo", "inferred"), ("added", "a", "inferred")]
