"""Tests of diff(known, listing)."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from job.change import Kind, Known, Object
from job.run.relist import Diff, Difference, WentBack
from job.selector import Selector

ANY = Selector()


def entry(name: str, version: int, *, deleted: bool = False) -> Known:
    return Known("argo", name, version, deleted=deleted)


def thing(uid: str, name: str, version: int, **labels: str) -> Object:
    return Object(uid, "argo", name, version, labels=labels)


def kinds(differences: list[Difference]) -> list[tuple[Kind, str]]:
    return [(found.kind, found.object.uid) for found in differences]


def test_a_first_run_differs_in_everything() -> None:
    """Against an empty inventory every object is added, in the order of the listing."""
    diff = Diff({}, ANY)

    assert kinds(diff.page([thing("1", "a", 5), thing("2", "b", 4)])) == [(Kind.ADDED, "1"), (Kind.ADDED, "2")]
    assert diff.rest() == []


def test_what_is_the_same_is_no_difference() -> None:
    """An object at the version that the inventory has is not told again (R2)."""
    diff = Diff({"1": entry("a", 5)}, ANY)

    assert diff.page([thing("1", "a", 5)]) == []
    assert diff.rest() == []


def test_a_higher_version_is_a_modification() -> None:
    """A known object that moved on is modified, as the listing has it."""
    moved = thing("1", "a", 6)

    assert Diff({"1": entry("a", 5)}, ANY).page([moved]) == [Difference(Kind.MODIFIED, moved)]


def test_r4_nothing_is_gone_before_the_last_page() -> None:
    """What no page had is deleted after the last one, with what the inventory knows of it."""
    diff = Diff({"1": entry("a", 5), "2": entry("b", 6), "3": entry("c", 7)}, ANY)

    assert diff.page([thing("2", "b", 6)]) == []
    assert diff.page([]) == []
    assert diff.rest() == [
        Difference(Kind.DELETED, thing("1", "a", 5)),
        Difference(Kind.DELETED, thing("3", "c", 7)),
    ]


def test_r17_what_was_about_to_be_told_is_added_or_deleted() -> None:
    """Nobody knows whether it was: it is told as new if it is there, and as gone if it is not."""
    foreseen = {"1": Known("argo", "a", 0, told=False), "2": Known("argo", "b", 0, told=False)}
    diff = Diff(foreseen, ANY)

    assert kinds(diff.page([thing("1", "a", 5)])) == [(Kind.ADDED, "1")]
    assert kinds(diff.rest()) == [(Kind.DELETED, "2")]


def test_r3_who_had_the_name_is_deleted_before_who_has_it_now() -> None:
    """A name under another uid: first the deletion of the old object, on the same page, and only once."""
    diff = Diff({"old": entry("a", 5)}, ANY)

    assert kinds(diff.page([thing("new", "a", 9)])) == [(Kind.DELETED, "old"), (Kind.ADDED, "new")]
    assert diff.rest() == []


def test_r3_a_name_taken_over_by_an_object_that_does_not_enter_is_gone_too() -> None:
    """The deletion is told though the labels of the new object do not match."""
    diff = Diff({"old": entry("a", 5)}, Selector("colour=blue"))

    assert kinds(diff.page([thing("new", "a", 9)])) == [(Kind.DELETED, "old")]


def test_r2_a_tombstone_stays_dead() -> None:
    """A uid whose deletion was told is neither added again by a listing that still has it, nor deleted again."""
    diff = Diff({"1": entry("a", 8, deleted=True)}, ANY)

    assert diff.page([thing("1", "a", 5)]) == []
    assert diff.rest() == []


def test_r3_a_name_lives_on_after_a_tombstone() -> None:
    """A new object under the name of a tombstone is added, and the tombstone is not deleted again."""
    diff = Diff({"old": entry("a", 8, deleted=True)}, ANY)

    assert kinds(diff.page([thing("new", "a", 9)])) == [(Kind.ADDED, "new")]


def test_r7_labels_decide_which_objects_enter_and_never_which_are_followed() -> None:
    """An unknown object needs matching labels; a known one is modified whatever its labels are now."""
    diff = Diff({"1": entry("a", 5)}, Selector("colour=blue"))

    found = diff.page([thing("1", "a", 6, colour="red"), thing("2", "b", 7), thing("3", "c", 8, colour="blue")])

    assert kinds(found) == [(Kind.MODIFIED, "1"), (Kind.ADDED, "3")]


def test_r9_a_lower_version_shows_that_the_cluster_was_rewound() -> None:
    """Versions of one object never go back in one history."""
    with pytest.raises(WentBack):
        Diff({"1": entry("a", 5)}, ANY).page([thing("1", "a", 4)])


def test_cluster_scoped_objects_are_told_apart_by_name_alone() -> None:
    """An empty namespace is a namespace like any other."""
    diff = Diff({"old": Known("", "a", 5)}, ANY)

    assert kinds(diff.page([Object("new", "", "a", 9)])) == [(Kind.DELETED, "old"), (Kind.ADDED, "new")]


inventories = st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(st.integers(1, 9), st.booleans()), max_size=8).map(
    lambda entries: {uid: entry(uid, version, deleted=dead) for uid, (version, dead) in entries.items()}
)
listings = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(10, 19), max_size=8)


@given(inventories, listings, st.integers(1, 4))
def test_the_difference_leads_from_the_inventory_to_the_listing(
    known: dict[str, Known], listed: dict[str, int], size: int
) -> None:
    """Applied to the inventory, the differences of any paging give the listing, each object once (tombstones stay)."""
    things = [thing(uid, uid, version) for uid, version in sorted(listed.items())]
    diff = Diff(known, ANY)
    found = [
        difference for start in range(0, len(things), size) for difference in diff.page(things[start : start + size])
    ]
    found += diff.rest()

    result = {uid: seen.version for uid, seen in known.items() if not seen.deleted}
    for difference in found:
        if difference.kind is Kind.DELETED:
            del result[difference.object.uid]
        else:
            result[difference.object.uid] = difference.object.version
    dead = {uid for uid, seen in known.items() if seen.deleted}

    assert result == {uid: version for uid, version in listed.items() if uid not in dead}
    assert len({difference.object.uid for difference in found}) == len(found)
