"""Tests of a whole run: how it begins, what it refuses, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from job.change import Known, Reason
from job.errors import ExitCode, Refused, Unavailable
from job.ports import Identity
from job.run.summary import Summary
from job.settings import Initial
from tests.fakes.crash import Crash, Killed
from tests.fakes.sink import Answer
from tests.fakes.store import Save
from tests.run import promises
from tests.run.scene import Scene


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene() as scene:
        yield scene


def untouched(scene: Scene, values: int) -> bool:
    """Whether nothing was published, and nothing saved."""
    return scene.messages == [] and len(scene.store.values) == values


def test_r5_another_cluster_under_the_same_name_is_refused(scene: Scene) -> None:
    """Another uid of kube-system: 78, and nothing is published or saved."""
    scene.save(100)
    scene.cluster.create("a")
    scene.cluster.identity = Identity("cluster-2", "definition-1")

    summary = scene.run()

    assert summary.exit_code == ExitCode.ACTION_NEEDED
    assert untouched(scene, 1)


def test_r5_a_definition_that_was_created_anew_takes_its_objects_with_it(scene: Scene) -> None:
    """Another uid of the definition: a gap, a listing, and true deletions."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.recreate_definition()
    before = len(scene.messages)

    summary = scene.run()

    assert summary.start == Reason.RECREATED
    assert scene.told(before) == [("gap", "argo", "inferred"), ("deleted", "a", "inferred")]
    assert scene.saved.identity.definition == "definition-2"


def test_r5_a_new_definition_is_adopted_only_with_its_listing(scene: Scene) -> None:
    """A signal before anything of the listing is told must not make the next run believe that nothing happened."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.recreate_definition()
    scene.cluster.while_listed.extend([lambda: None, scene.signal])
    scene.run()

    assert scene.run().start == Reason.RECREATED


def test_r5_an_unknown_identity_is_adopted_when_it_is_first_seen(scene: Scene) -> None:
    """Rights that come later, or go, are no mismatch."""
    scene.cluster.identity = Identity()
    scene.cluster.create("a")
    scene.run()
    scene.cluster.identity = Identity("cluster-1", "definition-1")
    scene.run()
    assert scene.saved.identity == Identity("cluster-1", "definition-1")
    scene.cluster.identity = Identity()

    assert scene.run().start == "resumed"
    assert scene.saved.identity == Identity("cluster-1", "definition-1")


@pytest.mark.parametrize("identity", [Identity(), Identity("cluster-1", "definition-1")])
def test_r5_most_objects_are_not_deleted_without_proof(scene: Scene, identity: Identity) -> None:
    """More than half of 20 or more are missing: a person is asked, unless the cluster is proven."""
    scene.cluster.identity = identity
    for number in range(20):
        scene.cluster.create(f"w{number}")
    scene.run()
    before = len(scene.messages)
    for number in range(11):
        scene.cluster.delete(f"w{number}")
    scene.cluster.compact()

    summary = scene.run()

    if identity.cluster:
        assert summary.exit_code == ExitCode.DONE
        assert len(scene.messages) == before + 12
    else:
        assert summary.exit_code == ExitCode.ACTION_NEEDED
        assert len(scene.messages) == before
        assert len(scene.known) == 20


def test_r6_a_checkpoint_of_another_sink_is_refused(scene: Scene) -> None:
    """Shared by two topics it would give each a part: 78, naming both."""
    scene.cluster.create("a")
    scene.run()
    before, saves = len(scene.messages), len(scene.store.values)

    summary = scene.run(scene.settings(sink="memory:other"))

    assert summary.exit_code == ExitCode.ACTION_NEEDED
    assert "memory:other" in str(summary.error)
    assert len(scene.messages) == before
    assert len(scene.store.values) == saves


@pytest.mark.parametrize("data", [b"", b"not gzip", b"\x1f\x8b"])
def test_an_unreadable_checkpoint_is_never_a_first_run(scene: Scene, data: bytes) -> None:
    """Damaged is not absent: 78, nothing published, and the bytes are kept."""
    scene.store.put(data)
    scene.cluster.create("a")

    summary = scene.run()

    assert summary.exit_code == ExitCode.ACTION_NEEDED
    assert untouched(scene, 1)


def test_an_unreachable_store_is_never_a_first_run(scene: Scene) -> None:
    """What cannot be loaded now may be loaded by the next tick: 75."""
    scene.store.unreachable = True
    scene.cluster.create("a")

    summary = scene.run()

    assert summary.exit_code == ExitCode.TEMPORARY
    assert untouched(scene, 0)


def test_a_namespace_that_does_not_exist_is_for_a_person(scene: Scene) -> None:
    """An absent namespace is an empty list and a silent watch: a typo would be invisible."""
    scene.cluster.namespace_exists = False

    summary = scene.run()

    assert summary.exit_code == ExitCode.ACTION_NEEDED
    assert untouched(scene, 0)


@pytest.mark.parametrize("exists", [True, None])
def test_an_empty_namespace_is_watched(scene: Scene, exists: bool | None) -> None:
    """Also where the credentials may not tell whether it exists."""
    scene.cluster.namespace_exists = exists
    scene.cluster.while_watched.append(lambda: scene.cluster.create("a"))

    assert scene.run().exit_code == ExitCode.DONE
    assert scene.told() == [("added", "a", "observed")]


def test_r9_a_rewound_cluster_begins_another_epoch(scene: Scene) -> None:
    """Everything that is left is told anew, with the epoch in its id, since a version may now mean something else."""
    scene.cluster.create("a")
    scene.cluster.create("b")
    backup = scene.cluster.version
    scene.cluster.change("a")
    scene.cluster.create("c")
    scene.run()
    scene.cluster.rewind(backup)
    before = len(scene.messages)

    summary = scene.run()

    assert summary.start == Reason.REWOUND
    assert scene.told(before)[0] == ("gap", "argo", "inferred")
    assert [message.id for message in scene.messages[before:]] == [
        "104-102/gap~1",
        "uid-1/101~1",
        "uid-2/102~1",
        "uid-3/deleted~1",
    ]
    assert (scene.saved.epoch, scene.known) == (1, {"a": 101, "b": 102})


def test_r9_what_is_observed_after_a_rewind_belongs_to_the_new_epoch(scene: Scene) -> None:
    """The epoch stays in every id."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.rewind(100)
    scene.run()
    scene.cluster.create("b")
    scene.run()

    assert scene.messages[-1].id == "uid-2/101~1"


def test_r9_a_rewind_in_the_middle_of_a_window_is_noticed(scene: Scene) -> None:
    """The watch ends, and before it is opened again the probe shows a version of the past."""
    scene.cluster.create("a")
    scene.cluster.while_watched.extend([lambda: scene.cluster.change("a"), lambda: scene.cluster.rewind(101)])

    summary = scene.run()

    assert summary.gaps == [Reason.REWOUND]
    assert scene.messages[-1].id == "uid-1/101~1"
    assert scene.saved.epoch == 1


def test_r9_a_signal_in_the_listing_of_a_rewound_cluster_does_not_hide_the_rewind(scene: Scene) -> None:
    """Nothing was told of the new epoch yet: the next run finds the same, gap and all."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.rewind(100)
    scene.cluster.while_listed.extend([lambda: None, scene.signal])
    scene.run()

    assert scene.run().gaps == [Reason.REWOUND]


def test_r9_a_cluster_that_was_rewound_twice_has_two_epochs(scene: Scene) -> None:
    """Each restore counts."""
    scene.cluster.create("a")
    for _ in range(2):
        scene.run()
        scene.cluster.change("a")
        scene.run()
        scene.cluster.rewind(101)
    scene.run()

    assert scene.saved.epoch == 2
    assert scene.messages[-1].id == "uid-1/101~2"


def test_r17_nothing_of_a_listing_is_told_before_it_is_saved(scene: Scene) -> None:
    """The version of the listing, and the uids that are new."""
    foreseen: list[dict[str, Known]] = []
    scene.sink.before = lambda _: foreseen.append(dict(scene.saved.inventory))
    uid = scene.cluster.create("a")
    scene.run()

    assert foreseen[0] == {uid: Known("argo", "a", 0, told=False)}


@pytest.mark.parametrize("first", [True, False])
def test_r17_a_killed_listing_does_not_leave_anything_behind(scene: Scene, first: bool) -> None:
    """It told of an object that is gone when the next run lists: the deletion is told all the same."""
    if not first:
        scene.run()
        scene.cluster.tick()
    uid = scene.cluster.create("short")
    if not first:
        scene.cluster.compact()
    with pytest.raises(Killed):
        scene.run(crash=Crash("published", 1 if first else 2))
    assert scene.messages[-1].id == f"{uid}/{scene.cluster.version}"
    scene.cluster.delete("short")

    summary = scene.run()

    assert summary.start == Reason.INTERRUPTED
    assert scene.messages[-1].id == f"{uid}/deleted"
    assert promises.diverged(scene) == []


@pytest.mark.parametrize("initial", list(Initial))
def test_r17_a_first_run_saves_where_it_begins_before_it_watches(scene: Scene, initial: Initial) -> None:
    """Else, killed after it told what it saw, it is forgotten, and the next first run does not know what was told."""
    scene.cluster.while_watched.append(lambda: scene.cluster.create("short"))
    with pytest.raises(Killed):
        scene.run(scene.settings(initial=initial), crash=Crash("published"))
    scene.cluster.delete("short")

    scene.run(scene.settings(initial=initial))

    assert promises.diverged(scene) == []


def test_r18_gaps_do_not_overlap(scene: Scene) -> None:
    """A run that is stopped behind its gap message, and the next one: its gap begins where the first one ended."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.change("a")
    scene.cluster.compact()
    # The probe, the version of now, the state that is compacted, the listing; then, when the object is read, a signal.
    scene.cluster.while_listed.extend([*[lambda: None] * 4, scene.signal])
    scene.run()
    scene.cluster.change("a")
    scene.run()

    assert promises.gaps(scene.messages) == [(101, 102), (102, 103)]
    assert scene.messages[-1].id == "uid-1/103"


def test_r18_what_is_alive_in_a_gap_is_told_after_it(scene: Scene) -> None:
    """A killed run told of two objects that no save knows: the living one is told again, so that the other is gone."""
    scene.cluster.create("known")
    scene.run()
    scene.cluster.create("alive")
    scene.cluster.create("dead")
    with pytest.raises(Killed):
        scene.run(crash=Crash("save"))
    scene.cluster.delete("dead")
    scene.cluster.compact()
    before = len(scene.messages)

    scene.run()

    assert scene.told(before) == [("gap", "argo", "inferred"), ("added", "alive", "inferred")]
    assert promises.diverged(scene) == []


def test_r13_an_overtaken_run_ends_well_and_says_so(scene: Scene) -> None:
    """Another run has moved the checkpoint: exit 0, nothing written, and the summary names that run."""
    scene.cluster.create("a")
    scene.run()
    foreign = scene.saved
    scene.cluster.while_watched.extend(
        [lambda: scene.cluster.change("a"), lambda: scene.save(101, dict(foreign.inventory), run_id="other")]
    )

    summary = scene.run()

    assert (summary.exit_code, summary.saved) == (ExitCode.DONE, False)
    assert "other" in summary.sentence()
    assert scene.saved.run_id == "other"


@pytest.mark.parametrize("answer", [Answer.HANGS, Answer.UNAVAILABLE, Answer.REFUSED])
def test_r13_an_overtaken_run_ends_well_whatever_else_went_wrong(scene: Scene, answer: Answer) -> None:
    """Its sink was away, too: that is the winner's now."""
    scene.cluster.create("a")
    scene.cluster.create("b")
    scene.run()
    foreign = scene.saved

    def away() -> None:
        scene.sink.otherwise = answer

    scene.cluster.while_watched.extend(
        [
            lambda: scene.cluster.change("a"),
            away,
            lambda: scene.cluster.change("b"),
            lambda: scene.save(scene.cluster.version, dict(foreign.inventory), run_id="other"),
        ]
    )

    summary = scene.run()

    assert (summary.exit_code, summary.saved, scene.saved.run_id) == (ExitCode.DONE, False, "other")
    assert "ended early" not in summary.sentence()


def test_r13_a_run_that_is_overtaken_in_its_window_stops_at_once(scene: Scene) -> None:
    """It does not go on to publish what the other run publishes as well."""
    scene.cluster.create("a")
    scene.run()
    foreign = scene.saved

    def overtaken() -> None:
        scene.save(101, dict(foreign.inventory), run_id="other")
        scene.clock.jump(11)

    def noticed() -> None:
        import time

        time.sleep(0)

    scene.cluster.while_watched.extend([lambda: scene.cluster.change("a"), overtaken, *[noticed] * 20])
    scene.cluster.while_watched.append(lambda: scene.cluster.create("late"))

    summary = scene.run()

    assert summary.exit_code == ExitCode.DONE
    assert ("added", "late", "observed") not in scene.told()


def test_p2_a_lost_answer_of_the_store_is_not_a_lost_race(scene: Scene) -> None:
    """The save is repeated, finds itself, and the run is done."""
    scene.cluster.create("a")
    scene.store.answer(Save.LOST)

    summary = scene.run()

    assert (summary.exit_code, summary.saved) == (ExitCode.DONE, True)
    assert scene.known == {"a": 101}


def test_p1_what_the_store_did_not_take_is_told_again(scene: Scene) -> None:
    """A run whose save failed for good ends with 75; the next one publishes the same messages under the same ids."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.change("a")
    scene.store.otherwise = Save.UNAVAILABLE
    scene.store.before_save.append(lambda: scene.clock.jump(30))
    assert scene.run().exit_code == ExitCode.TEMPORARY
    scene.store.otherwise = Save.DONE
    scene.run()

    assert [message.id for message in scene.messages] == ["uid-1/101", "uid-1/102", "uid-1/102"]
    assert scene.messages[1] == scene.messages[2]


def test_p1_what_the_sink_did_not_take_is_told_by_the_next_run(scene: Scene) -> None:
    """A sink that hangs at the deadline: 75, saved up to before it, and nothing is lost."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.while_watched.extend(
        [
            lambda: scene.sink.answer(Answer.HANGS),
            lambda: scene.cluster.change("a"),
            lambda: scene.clock.jump(100),
        ]
    )
    summary = scene.run()
    assert (summary.exit_code, scene.saved.version) == (ExitCode.TEMPORARY, 101)
    scene.run()

    assert "uid-1/102" in {message.id for message in scene.messages}
    assert scene.saved.version == 102


def test_what_a_person_must_mend_outweighs_what_passes_by_itself(scene: Scene) -> None:
    """The API server goes away, and then a message is refused: 78, though the first alone would be 75."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.create("refused")
    scene.sink.poison = lambda message: message.attributes["subject"] == "argo/refused"
    gone = threading.Event()
    scene.sink.before = lambda _: gone.wait(60)

    def leave() -> None:
        if scene.cluster.watches:
            gone.set()
            message = "the API server is away"
            raise Unavailable(message)

    scene.cluster.watches.clear()
    scene.cluster.while_watched.append(scene.cluster.break_watches)
    scene.cluster.while_listed.extend([leave] * 20)
    summary = scene.run()

    assert (summary.exit_code, type(summary.error)) == (ExitCode.ACTION_NEEDED, Refused)


def test_p6_all_namespaces_are_one_scope() -> None:
    """With an empty namespace every namespace's objects are told, each under its own."""
    with Scene(namespace="") as scene:
        scene.cluster.create("a", namespace="one")
        scene.cluster.create("a", namespace="two")
        scene.run()

        assert [message.attributes["subject"] for message in scene.messages] == ["one/a", "two/a"]


def test_other_namespaces_are_not_told(scene: Scene) -> None:
    """Neither by the listing nor by the watch; their writes still move the version."""
    scene.cluster.create("a", namespace="other")
    scene.cluster.while_watched.append(lambda: scene.cluster.create("b", namespace="other"))
    scene.run()

    assert scene.messages == []
    assert scene.saved.version == 102


def test_a_run_that_is_stopped_before_it_begins_says_so() -> None:
    """A signal during the first request: the summary is a sentence, and the exit code is 0."""
    with Scene() as scene:
        scene.cluster.while_listed.append(scene.signal)

        summary = scene.run()

        assert summary.exit_code == ExitCode.DONE
        assert "signal" in summary.sentence()


def test_a_summary_without_a_beginning_is_still_a_sentence() -> None:
    """Nothing was loaded, nothing went wrong."""
    assert Summary("run", "2026-11-23T08:00:00Z", "file:/c", notes=["A signal ended it before it began."]).sentence()


@pytest.mark.parametrize("field", ["saved_at", "audited_at"])
def test_a_checkpoint_with_an_unreadable_time_is_for_a_person(scene: Scene, field: str) -> None:
    """It is unreadable, as a checkpoint with any other damage: 78, not a bug."""
    scene.save(100, {"uid-1": Known("argo", "a", 50)}, **{field: "yesterday"})

    assert scene.run().exit_code == ExitCode.ACTION_NEEDED
