"""What an event means, given what is already known (pure)."""

from __future__ import annotations

from job.change import Change, Inventory, Kind, Provenance
from job.ports import Event
from job.selector import Selector


def observe(
    event: Event, known: Inventory, selector: Selector, epoch: int, provenance: Provenance = Provenance.OBSERVED
) -> Change | None:
    """The change to publish, or None where there is nothing to tell.

    Known is known (R2): what is not newer than the inventory was told before. Whether an object enters is decided once;
    from then on it is followed to its one deletion, whatever its labels become (R7), and after that it is dead (R3).
    """
    seen = event.object
    before = known.get(seen.uid)
    if before is None:
        # Without a selector a deletion of something unknown is told too: its ADDED may have been lost by the server.
        # With one, its labels may have begun to match in the very write that deleted it.
        if not selector.matches(seen.labels) or (selector and event.kind is Kind.DELETED):
            return None
    elif before.deleted or seen.version <= before.version:
        return None
    alive = Kind.MODIFIED if before and before.told else Kind.ADDED
    return Change(event.kind if event.kind is Kind.DELETED else alive, seen, provenance, epoch)
