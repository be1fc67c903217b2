"""Tests of what is a transition."""

from __future__ import annotations

import json

import pytest

from job.change import Change, Kind, Known, Object, Provenance
from job.payload.transition import Transition, entered, passage
from job.ports import Event
from job.sources import frames

T1, T2 = "2026-11-27T08:00:00Z", "2026-11-27T08:01:00Z"


def change(status: object, kind: Kind = Kind.MODIFIED) -> Change:
    """As a watch has it."""
    metadata = {"uid": "uid", "namespace": "argo", "name": "a", "resourceVersion": "7"}
    thing = {"metadata": metadata, **({"status": status} if status is not None else {})}
    event = frames.frame(json.dumps({"type": "MODIFIED", "object": thing}).encode())
    assert isinstance(event, Event)
    return Change(kind, event.object, Provenance.OBSERVED)


def known(phase: str | None, at: str = "") -> Known:
    return Known("argo", "a", 5, phase, at=at)


@pytest.mark.parametrize(
    ("before", "status", "expected"),
    [
        (None, None, None),
        (None, {}, None),
        (None, {"phase": ""}, None),
        (None, {"phase": "Pending"}, Transition(None, "Pending")),
        (None, {"phase": "Running", "startedAt": T1}, Transition(None, "Running", T1)),
        (known("Pending"), {"phase": "Running", "startedAt": T1}, Transition("Pending", "Running", T1)),
        (known("Running", T1), {"phase": "Running", "startedAt": T1}, None),
        (known("Running", T1), {"phase": "Running", "startedAt": T2}, Transition("Running", "Running", T2)),
        (known("Running"), {"phase": "Error", "startedAt": T1, "finishedAt": T2}, Transition("Running", "Error", T2)),
        (known("Failed", T1), {"phase": "Failed", "finishedAt": T2}, Transition("Failed", "Failed", T2)),
        (known("Failed"), {"phase": "Failed", "finishedAt": T2}, None),
        (known("Failed", T1), {"phase": "Failed", "finishedAt": None}, None),
        (known("Bound"), {"phase": "Bound"}, None),
        (None, {"phase": "Running", "startedAt": None}, Transition(None, "Running")),
        (None, {"phase": "Running", "startedAt": 1764230400}, Transition(None, "Running")),
        (None, {"phase": "Running", "startedAt": "yesterday"}, Transition(None, "Running")),
        (None, {"phase": "Running", "startedAt": f"{T1}~7"}, Transition(None, "Running")),
        (None, {"phase": "Running", "startedAt": T1 * 50}, Transition(None, "Running")),
        (None, {"phase": "x" * 63}, Transition(None, "x" * 63)),
        (None, {"phase": "x" * 64}, None),
        (None, {"phase": 5}, None),
        (None, [{"phase": "Running"}], None),
        (None, "Running", None),
    ],
)  # fmt: skip
def test_a_transition_is_another_phase_or_time(
    before: Known | None, status: object, expected: Transition | None
) -> None:
    """Where a time is not known, the phase alone decides; a status of another form has no phase."""
    transition, _ = passage(change(status), before)

    assert transition == expected


def test_the_time_of_one_phase_is_not_that_of_the_next() -> None:
    """A phase without a time that gets one later is still the same phase."""
    _, after = passage(change({"phase": "Failed"}), known("Running", T1))

    assert (after.phase, after.at) == ("Failed", "")
    assert passage(change({"phase": "Failed", "finishedAt": T2}), after)[0] is None


def test_what_was_told_last_outlives_an_empty_phase() -> None:
    """A retry of Argo 4 empties the phase for a moment: the next one comes from the one before."""
    _, after = passage(change({"phase": ""}), known("Failed", T1))

    assert after == Known("argo", "a", 7, "Failed", at=T1)


@pytest.mark.parametrize(
    ("before", "status", "expected"),
    [
        (None, None, Transition(None)),
        (known("Running", T1), {"phase": "Running", "startedAt": T1}, Transition("Running")),
        (known("Running", T1), {"phase": "Failed", "finishedAt": T2}, Transition("Running", final="Failed")),
        (known("Succeeded", T1), None, Transition("Succeeded", final="Succeeded")),
    ],
)
def test_a_deletion_says_the_end(before: Known | None, status: object, expected: Transition) -> None:
    """That of the last object, or else the one that was told; None where none was seen."""
    transition, _ = passage(change(status, Kind.DELETED), before)

    assert transition == expected


def test_the_members_stand_before_the_object() -> None:
    """What the object has stays as it is, byte for byte."""
    assert Transition("Running", "Failed", T1).onto(b'{"a": 1.50}') == (
        b'{"from":"Running","to":"Failed","at":"2026-11-27T08:00:00Z","a": 1.50}'
    )
    assert Transition(None, final="Failed").onto(b'{"a":1}') == (
        b'{"from":null,"to":null,"at":null,"finalPhase":"Failed","a":1}'
    )


def test_what_is_taken_for_told_has_its_phase() -> None:
    """Where only metadata are known, there is none."""
    assert entered(change({"phase": "Failed", "finishedAt": T2}).object) == Known("argo", "a", 7, "Failed", at=T2)
    assert entered(Object("uid", "argo", "a", 7)) == Known("argo", "a", 7)
