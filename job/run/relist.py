"""diff(known, listing): what a listing says that the inventory does not, page by page (pure).

One operation serves the first run, where nothing is known, and every loss of history. It takes metadata only; the
objects themselves are read when a difference is to be published.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import msgspec

from job.change import Inventory, Kind, Known, Object
from job.selector import Selector


class Difference(msgspec.Struct, frozen=True):
    """One object of which the listing and the inventory do not agree. A deleted one is as the inventory has it."""

    kind: Kind
    object: Object


class WentBack(Exception):
    """A known object has a lower version than it had: the cluster was rewound (R9)."""


class Diff:
    """Compares the pages of one listing with the inventory.

    `known` must be what was acknowledged before the listing began, and is not looked at again (R4).
    """

    def __init__(self, known: Inventory, selector: Selector) -> None:
        self._dead = {uid for uid, entry in known.items() if entry.deleted}
        self._unseen = {uid: entry for uid, entry in known.items() if not entry.deleted}
        self._selector = selector

    @cached_property
    def _names(self) -> dict[tuple[str, str], str]:
        """Who is unseen when the first unknown object comes: of 100,000 they take 13 MB, and mostly there is none."""
        return {(entry.namespace, entry.name): uid for uid, entry in self._unseen.items()}

    def page(self, objects: Iterable[Object]) -> list[Difference]:
        """The differences of one page. Who takes a name over comes right after the deletion of who had it (R3)."""
        found: list[Difference] = []
        for seen in objects:
            before = self._unseen.pop(seen.uid, None)
            if before is not None:
                if seen.version < before.version:
                    raise WentBack
                if seen.version > before.version:
                    found.append(_difference(Kind.MODIFIED if before.told else Kind.ADDED, seen))
                continue
            namesake = self._names.get((seen.namespace, seen.name), "")
            if namesake in self._unseen:
                found.append(_deletion(namesake, self._unseen.pop(namesake)))
            if seen.uid not in self._dead and self._selector.matches(seen.labels):
                found.append(_difference(Kind.ADDED, seen))
        return found

    def rest(self) -> list[Difference]:
        """After the last page: what no page had is gone."""
        return [_deletion(uid, entry) for uid, entry in self._unseen.items()]


def _difference(kind: Kind, seen: Object) -> Difference:
    """Without the labels, which have done their work: a large listing keeps many of these."""
    return Difference(kind, msgspec.structs.replace(seen, labels={}) if seen.labels else seen)


def _deletion(uid: str, entry: Known) -> Difference:
    return Difference(Kind.DELETED, Object(uid, entry.namespace, entry.name, entry.version))
