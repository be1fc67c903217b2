"""Tests of runs that only tell transitions: each once, with one id, whatever comes between the runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from job.errors import ExitCode
from job.message import DELETION, TRANSITION, Message
from job.payload import Content, Payload
from job.settings import Initial
from tests.fakes.crash import STEPS, Crash, Killed, KilledWhileReading, Step
from tests.run.scene import Scene

RECORDINGS = Path(__file__).parents[1] / "recordings"
T1, T2, T3 = (f"2026-11-27T08:0{minute}:00Z" for minute in range(3))
TRANSITIONS = Content(transitions=True)
Passage = tuple[str | None, str | None, str | None]


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene() as scene:
        yield scene


def run(scene: Scene, initial: Initial = Initial.PUBLISH, pinned: int | None = None) -> None:
    chosen = scene.settings(content=TRANSITIONS, initial=initial, resource_version=pinned)
    assert scene.run(chosen).exit_code == ExitCode.DONE


def passages(messages: Sequence[Message]) -> list[Passage]:
    """From, to and at of the messages that are not gaps."""
    data = [json.loads(each.data) for each in messages if not each.attributes["type"].endswith(".gap")]
    return [(each["from"], each["to"], each["at"]) for each in data]


def ids(messages: Sequence[Message]) -> list[str]:
    """The ids of the messages that are not gaps."""
    return [each.id for each in messages if not each.attributes["type"].endswith(".gap")]


def end(scene: Scene, name: str, phase: str, at: str) -> None:
    scene.cluster.change(name, phase=phase, finishedAt=at)


def live(scene: Scene) -> str:
    """A Workflow begins, goes on, and ends; then its archiving changes a label."""
    uid = scene.cluster.create("a")
    scene.cluster.change("a", phase="Running", startedAt=T1)
    scene.cluster.change("a", progress="1/2")
    end(scene, "a", "Succeeded", T2)
    scene.cluster.change("a", labels={"workflows.argoproj.io/workflow-archiving-status": "Archived"})
    return uid


def test_a_watched_life_is_told_by_its_phases(scene: Scene) -> None:
    """Neither the creation, nor progress, nor archiving is a transition; the deletion says that the end was seen."""

    def happen() -> None:
        live(scene)
        scene.cluster.delete("a")

    scene.cluster.while_watched.append(happen)
    run(scene)

    assert ids(scene.messages) == [f"uid-1/Running/{T1}", f"uid-1/Succeeded/{T2}", "uid-1/deleted"]
    assert passages(scene.messages) == [(None, "Running", T1), ("Running", "Succeeded", T2), ("Succeeded", None, None)]
    assert {each.attributes["dataschema"] for each in scene.messages} == {TRANSITION}
    assert json.loads(scene.messages[-1].data)["finalPhase"] == "Succeeded"
    assert scene.messages[0].attributes["phase"] == "Running"


def test_the_data_are_those_of_the_version_of_the_transition(scene: Scene) -> None:
    """Three members stand before the object, which is otherwise byte for byte the one that entered the phase."""
    scene.cluster.while_watched.append(lambda: live(scene))
    run(scene)
    with Scene() as other:
        other.cluster.while_watched.append(lambda: live(other))
        other.run()

        whole = {each.attributes["resourceversion"]: each.data for each in other.messages}
    for each in scene.messages:
        _, _, rest = each.data.partition(b'Z",')
        assert b"{" + rest == whole[each.attributes["resourceversion"]]


@pytest.mark.parametrize("between", ["nothing", "expired", "compacted"])
def test_what_comes_between_two_runs_repeats_nothing(scene: Scene, between: str) -> None:
    """After a restart, a recovery and a relist: the archiving of what has ended is no second end."""
    scene.cluster.while_watched.append(lambda: scene.cluster.create("a", phase="Running", startedAt=T1))
    run(scene)
    scene.cluster.change("a", progress="1/2")
    scene.cluster.while_watched.append(lambda: end(scene, "a", "Succeeded", T2))
    if between != "nothing":
        scene.cluster.expire()
    if between == "compacted":
        scene.cluster.compact()
    run(scene)
    scene.cluster.change("a", labels={"workflows.argoproj.io/workflow-archiving-status": "Archived"})
    if between != "nothing":
        scene.cluster.expire()
    if between == "compacted":
        scene.cluster.compact()
    run(scene)

    assert ids(scene.messages) == [f"uid-1/Running/{T1}", f"uid-1/Succeeded/{T2}"]
    assert [summary.start for summary in scene.runs[1:]] == ["resumed" if between == "nothing" else "expired"] * 2


def test_a_recovered_life_has_every_transition(scene: Scene) -> None:
    """What the watch had lost and etcd still has is told under the same ids, in order."""
    run(scene)
    live(scene)
    scene.cluster.expire()
    run(scene)

    assert ids(scene.messages) == [f"uid-1/Running/{T1}", f"uid-1/Succeeded/{T2}"]
    assert scene.told() == [("modified", "a", "recovered"), ("modified", "a", "recovered")]


def test_an_inferred_transition_has_the_same_id(scene: Scene) -> None:
    """A listing shows the last phase only, from the one that was told before."""
    scene.cluster.while_watched.append(lambda: scene.cluster.create("a", phase="Pending"))
    run(scene)
    scene.cluster.change("a", phase="Running", startedAt=T1)
    end(scene, "a", "Failed", T2)
    scene.cluster.compact()
    run(scene)

    assert passages(scene.messages) == [(None, "Pending", None), ("Pending", "Failed", T2)]
    assert ids(scene.messages) == ["uid-1/Pending/101", f"uid-1/Failed/{T2}"]


@pytest.mark.parametrize("reopened", ["Running", ""], ids=["with a phase", "without one"])
def test_a_retry_opens_the_same_uid_again(scene: Scene, reopened: str) -> None:
    """Two ends of one uid are two transitions; a phase that is empty for a while is none (Argo 4)."""
    scene.cluster.while_watched += [
        lambda: scene.cluster.create("a", phase="Running", startedAt=T1),
        lambda: end(scene, "a", "Failed", T1),
        lambda: scene.cluster.change("a", phase=reopened, startedAt=T2, finishedAt=None),
        lambda: scene.cluster.change("a", phase="Running"),
        lambda: end(scene, "a", "Failed", T3),
    ]
    run(scene)

    assert passages(scene.messages) == [
        (None, "Running", T1),
        ("Running", "Failed", T1),
        ("Failed", "Running", T2),
        ("Running", "Failed", T3),
    ]


def test_a_second_end_is_told_though_its_retry_was_lost(scene: Scene) -> None:
    """The same phase at another time is another end, which the inventory can tell apart."""
    scene.cluster.while_watched.append(lambda: scene.cluster.create("a", phase="Failed", finishedAt=T1))
    run(scene)
    scene.cluster.change("a", phase="Running", startedAt=T2, finishedAt=None)
    end(scene, "a", "Failed", T3)
    scene.cluster.compact()
    run(scene)

    assert ids(scene.messages) == [f"uid-1/Failed/{T1}", f"uid-1/Failed/{T3}"]
    assert passages(scene.messages)[1] == ("Failed", "Failed", T3)


@pytest.mark.parametrize("lost", [False, True], ids=["observed", "inferred"])
def test_a_deletion_whose_end_was_never_seen_says_so(scene: Scene, lost: bool) -> None:
    """Nobody will tell more of it, and what it came to is unknown."""
    scene.cluster.while_watched.append(lambda: scene.cluster.create("a", phase="Running", startedAt=T1))
    run(scene)
    if lost:
        end(scene, "a", "Succeeded", T2)
    scene.cluster.delete("a")
    if lost:
        scene.cluster.compact()
    run(scene)

    deletion = scene.messages[-1]
    assert (deletion.id, deletion.attributes["dataschema"]) == ("uid-1/deleted", DELETION if lost else TRANSITION)
    told = json.loads(deletion.data)
    assert (told["from"], told["to"], told["at"], told["finalPhase"]) == ("Running", None, None, None)


@pytest.mark.parametrize("pinned", [False, True])
def test_r12_what_was_skipped_has_a_phase(scene: Scene, pinned: bool) -> None:
    """A starting point enters phases, too: what has ended long ago does not end when a label changes."""
    scene.cluster.create("old", phase="Succeeded", finishedAt=T1)
    scene.cluster.create("new", phase="Running", startedAt=T1)
    version = scene.cluster.version
    scene.cluster.while_watched += [
        lambda: scene.cluster.change("old", labels={"seen": "yes"}),
        lambda: end(scene, "new", "Error", T2),
    ]
    run(scene, Initial.SKIP, version if pinned else None)

    assert ids(scene.messages) == [f"uid-2/Error/{T2}"]
    assert passages(scene.messages) == [("Running", "Error", T2)]


def test_r6_from_every_change_to_transitions(scene: Scene) -> None:
    """The change is allowed, is said, and holds from there on; the phases are known already."""
    scene.cluster.while_watched.append(lambda: scene.cluster.create("a", phase="Running", startedAt=T1))
    scene.run()
    scene.cluster.while_watched += [
        lambda: scene.cluster.change("a", progress="1/2"),
        lambda: end(scene, "a", "Succeeded", T2),
    ]
    run(scene)

    assert passages(scene.messages[1:]) == [("Running", "Succeeded", T2)]
    assert [note for note in scene.runs[-1].notes if "transitions" in note] != []
    assert scene.saved.content == TRANSITIONS
    run(scene)
    assert scene.runs[-1].notes == []


def test_r9_a_new_epoch_tells_every_phase_again(scene: Scene) -> None:
    """After a rewind what is left is told anew, under the ids of its epoch."""
    scene.cluster.while_watched.append(lambda: scene.cluster.create("a", phase="Running", startedAt=T1))
    run(scene)
    version = scene.cluster.version
    scene.cluster.tick(10)
    run(scene)
    scene.cluster.rewind(version)
    run(scene)

    assert ids(scene.messages) == [f"uid-1/Running/{T1}", f"uid-1/Running/{T1}~1"]


def test_the_summary_may_be_told_at_transitions(scene: Scene) -> None:
    """Both options together: what a message has of the object is its summary."""
    scene.cluster.while_watched.append(lambda: scene.cluster.create("a", phase="Running", startedAt=T1))
    scene.run(scene.settings(content=Content(Payload.SUMMARY, transitions=True)))

    told = msgspec.json.decode(scene.messages[0].data)
    assert (told["from"], told["to"], told["phase"], told["startedAt"]) == (None, "Running", "Running", T1)
    assert "spec" not in told


LIVES: dict[str, list[str | None]] = {
    "archived": ["Running", "Succeeded"],
    "compressed": ["Running", "Succeeded"],
    "fail_terminate": ["Running", "Failed"],
    "invalid": ["Failed"],
    "manual_retry": ["Running", "Failed", "Running", "Succeeded"],
    "offload": ["Running", "Succeeded"],
    "pod_fail": ["Running", "Failed"],
    "pod_retry": ["Running", "Succeeded"],
    "steps": ["Running", "Succeeded"],
    "suspend_dag": ["Running", "Succeeded"],
    "suspend_resume": ["Running", "Succeeded"],
    "ttl_delete": ["Running", "Succeeded", None],
    "ttl_zero": ["Running", "Succeeded", None],
    "without_template": ["Error"],
}


@pytest.mark.parametrize("recording", LIVES)
def test_the_lives_of_a_real_controller(scene: Scene, recording: str) -> None:
    """Recorded streams of Argo's own controller, replayed as a watch."""
    scene.cluster.while_watched.append(lambda: scene.cluster.replay(RECORDINGS / f"{recording}.jsonl"))
    run(scene)

    assert [to for _, to, _ in passages(scene.messages)] == LIVES[recording]
    assert [at for _, to, at in passages(scene.messages) if to and not at] == []


@settings(max_examples=60)
@given(
    st.sampled_from(STEPS),
    st.integers(1, 12),
    st.sampled_from(["kept", "expired"]),
)
def test_killed_anywhere_every_transition_is_told(step: Step, nth: int, history: str) -> None:
    """P1, P3: what a killed run told is told again with the same id and data, and nothing is left out."""
    with Scene(recover=timedelta(seconds=20)) as scene:
        run(scene)
        scene.cluster.while_watched += [
            lambda: scene.cluster.create("a"),
            lambda: scene.cluster.change("a", phase="Running", startedAt=T1),
            lambda: scene.cluster.change("a", progress="1/2"),
            lambda: end(scene, "a", "Failed", T2),
            lambda: scene.cluster.change("a", phase="Running", startedAt=T2, finishedAt=None),
        ]
        crash = Crash(step, nth)
        with suppress(Killed, KilledWhileReading):
            scene.run(scene.settings(content=TRANSITIONS), crash)
        while scene.cluster.while_watched:
            scene.cluster.while_watched.popleft()()
        if history == "expired":
            scene.cluster.expire()
        end(scene, "a", "Succeeded", T3)
        scene.cluster.delete("a")
        run(scene)

        first = list(dict.fromkeys(ids(scene.messages)))
        assert first == [
            f"uid-1/Running/{T1}",
            f"uid-1/Failed/{T2}",
            f"uid-1/Running/{T2}",
            f"uid-1/Succeeded/{T3}",
            "uid-1/deleted",
        ]
        assert len({(each.id, each.data) for each in scene.messages}) == len(first)
