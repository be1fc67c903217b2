"""Tests of checkpoints that have outgrown their store."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from job.change import Reason
from job.run.commit import NEARLY, SAVE_INTERVAL
from job.run.window import AUDIT_INTERVAL
from job.settings import Initial
from tests.fakes.crash import Crash, Killed, Step
from tests.run import promises
from tests.run.scene import Scene, at_once

MANY = 60
WITHOUT = 500
"""Bytes that a checkpoint fits into, and its inventory does not."""


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene() as scene:
        for number in range(MANY):
            scene.cluster.create(f"w{number:02}")
        yield scene


@pytest.fixture
def left_out(scene: Scene) -> Scene:
    """After a first run whose inventory had no room."""
    scene.store.most_bytes = WITHOUT
    scene.run()
    return scene


def test_a_store_that_is_nearly_full_is_told_before(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """While everything still fits: in a warning, and in the summary; below that, not a word."""
    quiet = scene.run()
    size = len(scene.store.values[-1])
    scene.store.most_bytes = int(size / NEARLY)
    caplog.clear()
    summary = scene.run()

    assert (quiet.notes, scene.saved.whole, len(scene.known)) == ([], True, MANY)
    (note,) = summary.notes
    assert f"bytes, and its store takes {scene.store.most_bytes}: use another store" in note
    assert [record.levelname for record in caplog.records if record.getMessage() == note] == ["WARNING"]


def test_an_inventory_without_room_is_left_out(left_out: Scene) -> None:
    """The rest of the checkpoint is saved, the run ends with 0, and says what is lost."""
    summary = left_out.runs[-1]

    assert (summary.exit_code, summary.saved, summary.objects) == (0, True, MANY)
    assert (left_out.saved.whole, left_out.saved.inventory, left_out.saved.version) == (False, {}, summary.version_to)
    assert "the inventory was left out" in summary.notes[0]
    assert "deleted" in summary.notes[0]
    assert len(left_out.store.values[-1]) <= WITHOUT


def test_r20_it_is_read_back_from_the_servers_past(left_out: Scene) -> None:
    """While etcd has the saved version nothing is lost and nothing repeated: not even what the watch has lost."""
    told = len(left_out.messages)
    left_out.cluster.change("w00")
    left_out.cluster.delete("w01")
    watched = left_out.run()
    left_out.cluster.change("w02")
    left_out.cluster.delete("w03")
    left_out.cluster.expire()
    recovered = left_out.run()

    assert (watched.start, recovered.start, recovered.recovery) == ("resumed", "expired", "complete")
    assert left_out.told(told) == [
        ("modified", "w00", "observed"),
        ("deleted", "w01", "observed"),
        ("modified", "w02", "recovered"),
        ("deleted", "w03", "recovered"),
    ]
    assert recovered.objects == MANY - 2


def test_r20_a_run_that_is_stopped_before_it_is_read_back_saves_none(left_out: Scene) -> None:
    """An empty inventory in its place would be believed by the next run."""
    told = len(left_out.messages)
    left_out.cluster.delete("w01")
    # The first list asks for the version only.
    left_out.cluster.while_listed.extend([left_out.cluster.tick, left_out.signal])
    stopped = left_out.run()
    whole = left_out.saved.whole
    left_out.run()

    assert (stopped.exit_code, stopped.saved, whole) == (0, True, False)
    assert left_out.told(told) == [("deleted", "w01", "observed")]


def test_p4_where_that_is_gone_a_gap_says_that_anything_may_be_missing(left_out: Scene) -> None:
    """Nobody knows who was there: everything that lives is told again, and no deletion is."""
    told = len(left_out.messages)
    before = left_out.saved.version
    left_out.cluster.delete("w01")
    left_out.cluster.compact()
    summary = left_out.run()

    assert summary.start == Reason.FORGOTTEN
    assert summary.gaps == ["forgotten"]
    gap, *rest = left_out.messages[told:]
    assert (b'"missing":"all"' in gap.data, b'"from":"%d"' % before in gap.data) == (True, True)
    assert left_out.told(told + 1) == [("added", f"w{number:02}", "inferred") for number in range(MANY) if number != 1]
    assert {message.id for message in rest} < {message.id for message in left_out.messages[:told]}


def test_a_listing_that_was_killed_is_forgotten(scene: Scene) -> None:
    """What it has told beyond the saved version is not known to anybody: the next run says so."""
    scene.store.most_bytes = WITHOUT
    with pytest.raises(Killed):
        scene.run(crash=Crash("published", 2))
    told = len(scene.messages)
    scene.cluster.delete("w00")
    summary = scene.run()

    assert (summary.start, told > 0) == (Reason.FORGOTTEN, True)
    assert b'"missing":"all"' in scene.messages[told].data
    assert {name for _, name, _ in scene.told(told + 1)} == {f"w{number:02}" for number in range(1, MANY)}


def test_p4_a_forgotten_deletion_is_not_hidden_by_the_gap_of_a_killed_run(left_out: Scene) -> None:
    """The killed run has said less of the same versions: the next gap has another id, and all that lives follows it."""
    told = len(left_out.messages)
    left_out.cluster.delete("w01")
    left_out.cluster.expire()
    with pytest.raises(Killed):
        left_out.run(left_out.settings(recover=timedelta()), Crash("published", 2))
    killed = left_out.messages[told].id
    told = len(left_out.messages)
    left_out.run()

    assert left_out.messages[told].id == f"{killed}/forgotten"
    assert b'"missing":"all"' in left_out.messages[told].data
    assert left_out.told(told + 1) == [("added", f"w{number:02}", "inferred") for number in range(MANY) if number != 1]


def put_all_in_doubt(scene: Scene, why: Reason, room: int | None = None) -> None:
    """Let a run find many objects, and the next one learn that nobody knows which; with so much room from then on."""
    for number in range(1_000):
        scene.cluster.create(f"w{number:03}")
    scene.store.most_bytes = WITHOUT if why is Reason.FORGOTTEN else room
    scene.run()
    scene.store.most_bytes = room
    if why is Reason.FORGOTTEN:
        scene.cluster.delete("w001")
        scene.cluster.compact()
    else:
        scene.cluster.rewind(scene.saved.version - 10)


@pytest.mark.parametrize("why", [Reason.FORGOTTEN, Reason.REWOUND])
def test_r18_what_was_told_after_all_was_in_doubt_is_not_put_in_doubt_again(why: Reason) -> None:
    """A run that is stopped in the middle has saved half: the next gap is about what has happened since."""
    with Scene() as scene:
        put_all_in_doubt(scene, why)
        batches = iter([lambda: None, lambda: None, scene.signal])
        scene.sink.before = lambda _: next(batches, lambda: None)()
        stopped = scene.run()
        told = len(scene.messages)
        scene.cluster.change("w050")
        following = scene.run()

        assert (stopped.start, stopped.gaps, stopped.saved) == (why, [why], True)
        assert 0 < sum(stopped.published.values()) < 900
        assert (following.start, following.gaps) == ("interrupted", ["interrupted"])
        assert b'"missing":"intermediate"' in scene.messages[told].data
        assert promises.diverged(scene) == []
        assert promises.untold(scene) == []


@pytest.mark.parametrize("why", [Reason.FORGOTTEN, Reason.REWOUND])
@pytest.mark.parametrize("room", [None, WITHOUT], ids=["room", "none"])
def test_r18_a_listing_that_begins_again_after_all_was_in_doubt_goes_on_there(why: Reason, room: int | None) -> None:
    """Compacted while whole objects are read: what was told of it stays told, and the next gap is about the rest."""
    with Scene() as scene:
        put_all_in_doubt(scene, why, room)
        scene.cluster.while_listed.extend([lambda: None] * 20 + [at_once(scene.cluster.tick, scene.cluster.compact)])
        summary = scene.run()
        scene.run()

        assert (summary.start, summary.gaps, summary.exit_code) == (why, [why, "interrupted"], 0)
        assert promises.diverged(scene) == []
        assert promises.untold(scene) == []


def test_r18_a_forgotten_gap_that_was_not_told_is_told_by_the_next_run() -> None:
    """However much an earlier gap has announced: whoever was deleted meanwhile was known to nobody."""
    with Scene() as scene:
        for number in range(1_000):
            scene.cluster.create(f"w{number:03}")
        scene.store.most_bytes = WITHOUT
        scene.run()
        for number in range(900):
            scene.cluster.change(f"w{number:03}")
        scene.cluster.expire()
        batches = iter([lambda: None, lambda: None, scene.signal])
        scene.sink.before = lambda _: next(batches, lambda: None)()
        announced = scene.run(scene.settings(recover=timedelta()))
        assert scene.saved.announced > scene.saved.version
        for number in range(950, 1_000):
            scene.cluster.delete(f"w{number:03}")
        scene.cluster.tick()
        scene.store.most_bytes = None
        told = len(scene.messages)
        with pytest.raises(Killed):
            scene.run(crash=Crash("saved"))
        assert (scene.saved.whole, len(scene.messages)) == (True, told)
        scene.cluster.tick()
        following = scene.run()
        scene.run()

        assert announced.gaps == ["expired"]
        assert following.gaps == ["forgotten"]
        assert promises.diverged(scene) == []
        assert promises.untold(scene) == []


@pytest.mark.parametrize(("step", "nth"), [("saved", 1), ("publish", 2), ("published", 1), ("published", 2)])
def test_r9_an_audit_that_was_killed_says_the_same_again(scene: Scene, step: Step, nth: int) -> None:
    """Its gap is about all that has happened since the last comparison, and a repeat of it has the same content."""
    scene.run()
    compared = scene.saved.audited_at
    scene.cluster.create("overlooked")
    scene.clock.jump(AUDIT_INTERVAL.total_seconds())
    now = scene.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    scene.save(scene.cluster.version, scene.saved.inventory, audited_at=compared, current_at=now)
    with pytest.raises(Killed):
        scene.run(crash=Crash(step, nth))
    scene.run()

    told = [message.data for message in scene.messages if "k8suid" not in message.attributes]
    assert told
    assert all(b'"reason":"drifted"' in data and b'"since":"%b"' % compared.encode() in data for data in told)
    assert promises.ambiguous(scene.messages) == []
    assert promises.diverged(scene) == []


@pytest.mark.parametrize("step", ["save", "saved", "publish", "published"])
def test_r20_an_audit_that_was_killed_is_not_taken_for_what_was_told(scene: Scene, step: Step) -> None:
    """It has found that the watch had lost something, and the inventory fits no more: the next run says so."""
    scene.run()
    scene.cluster.create("overlooked")
    scene.cluster.delete("w03")
    scene.save(scene.cluster.version, scene.saved.inventory)
    scene.clock.jump(AUDIT_INTERVAL.total_seconds())
    scene.store.most_bytes = WITHOUT
    with pytest.raises(Killed):
        scene.run(crash=Crash(step))
    scene.run()
    scene.run()

    assert promises.diverged(scene) == []
    assert promises.untold(scene) == []


def test_r20_a_namespace_that_is_gone_had_objects(left_out: Scene) -> None:
    """Nothing is listed there, and nothing is known by heart: their deletions are told all the same."""
    for number in range(MANY):
        left_out.cluster.delete(f"w{number:02}")
    left_out.cluster.namespace_exists = False
    summary = left_out.run()

    assert (summary.exit_code, summary.published) == (0, {"deleted": MANY})


def test_what_is_said_of_the_room_is_about_the_last_save(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """A run warns of little room, and again when there is none; when there is enough at its end, it says nothing."""
    scene.run()
    size = len(scene.store.values[-1])
    scene.store.most_bytes = int(size / NEARLY)
    scene.store.before_save.append(lambda: setattr(scene.store, "most_bytes", size // 2))
    scene.cluster.while_watched.append(lambda: scene.clock.jump(SAVE_INTERVAL))
    scene.cluster.change("w00")
    caplog.clear()
    fuller = scene.run()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    scene.store.before_save.append(lambda: setattr(scene.store, "most_bytes", None))
    scene.cluster.while_watched.append(lambda: scene.clock.jump(SAVE_INTERVAL))
    scene.cluster.change("w00")
    emptier = scene.run()

    assert [warning.rpartition(": ")[2].partition(".")[0] for warning in warnings] == [
        "use another store before the inventory must be left out",
        "the inventory was left out",
    ]
    assert fuller.notes == warnings[1:]
    assert emptier.notes == []


def test_with_room_it_is_saved_again(left_out: Scene) -> None:
    """In a store without that limit the next save has it whole."""
    left_out.store.most_bytes = None
    summary = left_out.run()

    assert (summary.notes, left_out.saved.whole, len(left_out.known)) == ([], True, MANY)


def test_a_rewound_cluster_comes_first(left_out: Scene) -> None:
    """Versions mean nothing then, nor does what could be read back at one."""
    left_out.cluster.rewind(left_out.saved.version - 10)
    summary = left_out.run(left_out.settings(window=timedelta()))

    assert (summary.start, left_out.saved.epoch) == (Reason.REWOUND, 1)


def test_what_was_skipped_stays_skipped(scene: Scene) -> None:
    """`--initial skip` enters what exists as known; read back, it still is."""
    scene.store.most_bytes = WITHOUT
    scene.run(scene.settings(initial=Initial.SKIP))
    scene.cluster.change("w07")
    scene.run()

    assert scene.told() == [("modified", "w07", "observed")]
