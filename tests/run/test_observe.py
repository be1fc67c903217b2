"""Tests of what a watch frame means."""

from __future__ import annotations

import pytest

from job.change import Change, Kind, Known, Object, Provenance
from job.ports import Event
from job.run.observe import observe
from job.selector import Selector

ANY = Selector()
BLUE = Selector("colour=blue")


def seen(kind: Kind, version: int, **labels: str) -> Event:
    return Event(kind, Object("uid", "argo", "a", version, labels=labels))


def known(version: int, *, deleted: bool = False) -> dict[str, Known]:
    return {"uid": Known("argo", "a", version, deleted=deleted)}


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("version", [4, 5])
def test_r2_what_is_not_newer_than_the_inventory_is_dropped(kind: Kind, version: int) -> None:
    """An event at or below the version that the inventory has for its uid was told before."""
    assert observe(seen(kind, version), known(5), ANY, 0) is None


@pytest.mark.parametrize("kind", list(Kind))
def test_r3_nothing_is_told_of_a_uid_after_its_deletion(kind: Kind) -> None:
    """A tombstone drops every later event of its uid."""
    assert observe(seen(kind, 9), known(5, deleted=True), ANY, 0) is None


@pytest.mark.parametrize(
    ("kind", "told"), [(Kind.ADDED, Kind.MODIFIED), (Kind.MODIFIED, Kind.MODIFIED), (Kind.DELETED, Kind.DELETED)]
)
def test_a_known_object_is_modified_or_deleted(kind: Kind, told: Kind) -> None:
    """What is known is never added again, whatever the server calls it."""
    event = seen(kind, 6)

    assert observe(event, known(5), ANY, 2) == Change(told, event.object, Provenance.OBSERVED, epoch=2)


@pytest.mark.parametrize(
    ("kind", "told"), [(Kind.ADDED, Kind.ADDED), (Kind.MODIFIED, Kind.ADDED), (Kind.DELETED, Kind.DELETED)]
)
def test_an_unknown_object_is_added_or_deleted(kind: Kind, told: Kind) -> None:
    """What is not known is added, also by a modification; its deletion is told, since its beginning may be lost."""
    event = seen(kind, 6)

    assert observe(event, {}, ANY, 0) == Change(told, event.object, Provenance.OBSERVED)


def test_r7_labels_decide_which_objects_enter() -> None:
    """An unknown object enters with the first event in which its labels match."""
    assert observe(seen(Kind.ADDED, 6, colour="red"), {}, BLUE, 0) is None
    entered = observe(seen(Kind.MODIFIED, 7, colour="blue"), {}, BLUE, 0)
    assert entered is not None
    assert entered.kind is Kind.ADDED


@pytest.mark.parametrize("kind", [Kind.MODIFIED, Kind.DELETED])
def test_r7_a_known_object_is_followed_whatever_its_labels_become(kind: Kind) -> None:
    """Losing the label is a modification, and the true deletion is told later."""
    told = observe(seen(kind, 6, colour="red"), known(5), BLUE, 0)
    assert told is not None
    assert told.kind is kind


def test_r7_the_deletion_of_what_never_entered_is_not_told() -> None:
    """Labels may begin to match in the very write that deletes: nobody was told of the object."""
    assert observe(seen(Kind.DELETED, 6, colour="blue"), {}, BLUE, 0) is None
