"""The comparisons find what they are to find."""

import copy

import pytest

from tests.history.truth import Message, Truth, differences, disorder, short_lived

HISTORY = ["a1", "a2", "b3", "a4", "b5", "b6-", "c7", "a8", "c9", "c10-"]
"""Objects with their versions, and a - behind a deletion's."""


def told(*changes: str, provenance: str = "observed") -> list[Message]:
    """The messages about some changes."""
    return [message(change, provenance) for change in changes]


def message(change: str, provenance: str = "observed") -> Message:
    uid, version, deleted = change[0], change[1:].rstrip("-"), change.endswith("-")
    return {
        "id": f"{uid}/deleted" if deleted else f"{uid}/{version}",
        "type": "io.argoproj.workflows.deleted" if deleted else "io.argoproj.workflows.modified",
        "subject": f"argo/{uid}",
        "dataschema": "urn:workflow-watcher:object:1",
        "k8suid": uid,
        "provenance": provenance,
        "resourceversion": version,
        "phase": "Running",
        "data": {"metadata": {"resourceVersion": version}},
    }


def changed(messages: list[Message], name: str, **attributes: object) -> list[Message]:
    """A copy in which one message has other attributes, or with None one less."""
    changed = copy.deepcopy(messages)
    one = next(each for each in changed if each["id"] == name)
    for attribute, value in attributes.items():
        if value is None:
            del one[attribute]
        else:
            one[attribute] = value
    return changed


def without(*names: str) -> list[Message]:
    return [each for each in told(*HISTORY) if each["id"] not in names]


def test_the_same_messages_differ_in_nothing() -> None:
    """Nor do they when one job knows otherwise what the other has observed, or when there are gaps."""
    gap = {"id": "2-7/gap", "type": "io.argoproj.workflows.gap", "provenance": "inferred", "data": {}}
    recovered = [*told(*HISTORY[:2]), gap, *told(*HISTORY[2:6], provenance="recovered"), *told(*HISTORY[6:])]

    assert differences(told(*HISTORY), told(*HISTORY)) == []
    assert differences(told(*HISTORY), recovered) == []


def test_what_lies_before_the_first_listing_is_not_asked_for() -> None:
    """Neither older versions of a listed object nor a life that was over; and a listing has types of its own."""
    late = [*told("a4", provenance="initial"), *told(*HISTORY[6:])]

    assert differences(told(*HISTORY), changed(late, "a/4", type="io.argoproj.workflows.added")) == []


@pytest.mark.parametrize(
    ("messages", "finding"),
    [
        (without("a/4"), "a: not told: a/4"),
        (without("a/8"), "a: not told: a/8"),
        (without("b/deleted"), "b: not told: b/deleted"),
        (without("c/7", "c/9", "c/deleted"), "c: not told: c/7, c/9, c/deleted"),
        (told(*HISTORY, "a11"), "a: told, and unknown to the reference: a/11"),
        (told(*HISTORY, "d11"), "d: told, and unknown to the reference"),
        (told(*HISTORY, "a4"), "a/4: told 2 times"),
        (told("a2", "a1", *HISTORY[2:]), "a: told out of order: a/2, a/1, a/4, a/8"),
        (told(*HISTORY[:7], "c10-", "a8", "c9"), "c: told out of order: c/7, c/deleted, c/9"),
        (changed(told(*HISTORY), "b/5", data={"metadata": {"resourceVersion": "3"}}), "b/5: differs in data"),
        (changed(told(*HISTORY), "b/5", phase=None), "b/5: differs in phase"),
        (changed(told(*HISTORY), "b/5", type="io.argoproj.workflows.added"), "b/5: differs in type"),
        (
            changed(told(*HISTORY), "b/deleted", resourceversion="7", dataschema="urn:workflow-watcher:deletion:1"),
            "b/deleted: differs in dataschema, resourceversion",
        ),
    ],
)
def test_a_difference_is_found(messages: list[Message], finding: str) -> None:
    """Whatever is lost, new, repeated, out of order or otherwise said."""
    assert differences(told(*HISTORY), messages) == [finding]


@pytest.mark.parametrize("told_of_c", [[], ["c7"], ["c7", "c9"], ["c9"], ["c9", "c10-"], ["c10-"]])
def test_an_excused_life_may_be_told_in_part(told_of_c: list[str]) -> None:
    """It may be missing as a whole, and its beginning or its end may be missing."""
    assert differences(told(*HISTORY), told(*HISTORY[:6], "a8", *told_of_c), excused={"c"}) == []


@pytest.mark.parametrize(
    ("told_of_c", "finding"),
    [
        (["c7", "c10-"], "c: not told: c/9"),
        (["c9", "c7"], "c: told out of order: c/9, c/7"),
        (["c7", "c8"], "c: told, and unknown to the reference: c/8"),
        (["c7", "c7"], "c/7: told 2 times"),
    ],
)
def test_an_excused_life_that_is_told_is_told_truly(told_of_c: list[str], finding: str) -> None:
    """It has no hole, and is in order."""
    assert differences(told(*HISTORY), told(*HISTORY[:6], "a8", *told_of_c), excused={"c"}) == [finding]


def test_order_is_looked_at_over_all_objects() -> None:
    """An older version behind a newer one is found; a listing keeps no order."""
    listed = told("c7", "a4", provenance="initial")
    recovered = told("a8", "c9", provenance="recovered")

    assert disorder([*listed, *recovered, *told("c10-")]) == []
    assert disorder([*recovered, *told("b6-")]) == ["b/deleted at 6 comes after c/9 at 9"]


@pytest.mark.parametrize(
    ("start", "end", "spacing", "lives"),
    [(6, 10, 4, {"c"}), (6, 10, 3, set()), (7, 10, 4, set()), (6, 9, 4, set())],
    ids=["short", "as long as the spacing", "there before", "there after"],
)
def test_short_lived_is_what_a_gap_says(start: int, end: int, spacing: int, lives: set[str]) -> None:
    """By versions: inside the gap, from the creation to the deletion, and fewer than its spacing."""
    gap = {"data": {"from": str(start), "to": str(end), "spacing": str(spacing)}}

    assert short_lived(told("c7", "c9", "c10-", "d8"), gap) == lives


def test_truth_knows_when_a_life_is_over() -> None:
    """When its deletion was confirmed."""
    truth = Truth()
    for uid in ("a", "b"):
        truth.wrote({"metadata": {"uid": uid, "resourceVersion": "1"}})
    truth.deleted("a")

    assert [life.deleted for life in truth.lives.values()] == [True, False]
