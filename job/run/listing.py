"""Listings at one version: the first run, every loss of history, the daily audit, and starting points.

A listing is whole or it is nothing (R4): it begins when nothing is in flight, its marks belong to its version, and when
the server forgets that version half-way, another listing begins from the inventory as it is then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import msgspec

from job.change import UNKNOWN, Change, Kind, Known, Object, Provenance, Reason
from job.errors import ActionNeeded, Expired, TemporaryError, Unavailable
from job.logs import event
from job.payload.transition import entered
from job.ports import Page, Query
from job.run import resume
from job.run.commit import Effect
from job.run.relist import Diff, Difference, WentBack
from job.run.session import Session, timestamp

PAGE = 500
"""Objects of a metadata page."""
WHOLE_PAGE = 25
"""Objects of a page of whole objects, which may have 1.5 MB each."""
MOST_LISTINGS = 3
"""A run that needs more is chasing a history that vanishes faster than it can be read (R4)."""
FEW = 10
"""Up to one changed object in so many is read by its name, more by whole pages."""

Watch = Callable[[int], None]

log = logging.getLogger(__name__)


class Part(msgspec.Struct, frozen=True):
    """A page of a listing, compared: what is to be told of it, and how to read it again."""

    query: Query
    """Gives the same part of the same listing."""
    version: int
    count: int
    """Objects of the page."""
    differences: list[Difference]


def relist(session: Session, reason: Reason | None, watch: Watch, at: int = 0) -> None:
    """Publish how the cluster differs from the inventory, at some version N from now; `watch(N)` is called at once.

    `reason` is None on a first run, where no history was promised yet. `at` is an N that is watched from already.
    """
    rewound = False
    while True:
        session.settle()
        if reason is Reason.FORGOTTEN:
            session.ledger.announced = 0  # perhaps nothing was told behind that gap: this one is about all of it again
        if not rewound:
            start = max(session.ledger.version, session.ledger.announced)
        if reason is Reason.REWOUND and not rewound:
            if start or session.ledger.listed:  # else an earlier run has begun the epoch, and listed nothing in it
                session.rewind()
            rewound = True
        elif reason is None and any(entry.told for entry in session.seen.values()):
            reason = Reason.INTERRUPTED  # a first listing that has to begin again, after it has told something
        try:
            return _relist(session, reason, start, watch, at)
        except Expired:
            at = 0
            if reason in UNKNOWN and session.ledger.announced:
                # What was told since then stays told: the next gap begins where that one ended.
                reason, rewound = Reason.INTERRUPTED, False
            log.info("The listing expired before it was read; listing again", extra=event("listing.expired"))
        except WentBack:
            reason, rewound, at = Reason.REWOUND, False, 0


def audit(session: Session) -> bool:
    """Compare the inventory with the server's own past at its version: a watch may have lost an event (R9).

    Gives whether the server still has that past. Raises `WentBack`.
    """
    version = session.position
    try:
        parts, gone = _compare(session, _pages(session, Query(limit=PAGE, at=version)))
        if gone or any(part.differences for part in parts):
            log.warning("The inventory and the server's past differ at %d", version, extra=event("audit.drift"))
            _check_deletions(session, parts, gone)
            session.foresee(_new(parts), listed=version, listed_for=Reason.DRIFTED)
            session.announce(Reason.DRIFTED, version, version, since=session.ledger.audited_at or session.since)
            _tell(session, parts, gone)
    except Expired:
        log.info("The server no longer has version %d; the audit waits", version, extra=event("audit.expired"))
        return False
    session.enter(Effect(audited_at=timestamp(session.now())))
    return True


def skip(session: Session, watch: Watch) -> None:
    """Enter everything that exists as known, unpublished, in one save (R12)."""
    while True:
        try:
            return _adopt(session, _for_inventory(session), watch)
        except Expired:
            log.info("The listing expired before it was read; listing again", extra=event("listing.expired"))


def pin(session: Session, version: int) -> None:
    """Start at a version that the server still has, with the inventory of that time (R12)."""
    try:
        _adopt(session, _for_inventory(session, version), lambda _: None)
    except Expired as error:
        message = f"the API server no longer has resourceVersion {version}: start without --resource-version"
        raise ActionNeeded(message) from error


def remember(session: Session) -> bool:
    """Read back the inventory that was left out of the checkpoint; gives whether the server still has that version.

    Of no use after a killed listing, which told of more than there was at the version, nor after a killed audit, which
    had found that the sink knows something else. Who has left the selector since is not among it.
    """
    version = session.position
    try:
        session.seen = _entered(session, _pages(session, _for_inventory(session, version))) if version else {}
    except Expired:
        log.info("The server no longer has version %d, nor the inventory", version, extra=event("inventory.expired"))
        return False
    session.enter(Effect(inventory=dict(session.seen)))
    session.ledger.acknowledge()
    return version > 0


def _relist(session: Session, reason: Reason | None, start: int, watch: Watch, at: int) -> None:
    version, pages = _peek(_pages(session, Query(limit=PAGE, at=at) if at else _begin(session)))
    if version < max(session.ledger.version, session.ledger.listed):
        raise WentBack
    if not at:
        watch(version)
    parts, gone = _compare(session, pages)
    _check_deletions(session, parts, gone)
    # Versions of two epochs are not comparable.
    lost = reason if reason in UNKNOWN or version != start else None
    if lost is Reason.INTERRUPTED and session.ledger.listed_for:
        before = Reason(session.ledger.listed_for)
        if before not in UNKNOWN or start <= session.ledger.version:
            lost = before  # this listing takes the place of that one, and so does its gap
        # Else that gap is announced, and what was told after it must not be put in doubt again.
    if lost or session.first or gone or any(part.differences for part in parts):
        session.foresee(_new(parts), listed=version, listed_for=lost, announced=0 if lost else version)
    if lost:
        session.announce(lost, start, version, since=session.since)
    _tell(session, parts, gone, listed=version)
    session.since = timestamp(session.now())
    session.enter(Effect(version=version, audited_at=session.since, identity=session.identity))
    session.ledger.acknowledge()
    session.position = version


def _compare(session: Session, pages: Iterator[tuple[Query, Page]]) -> tuple[list[Part], list[Difference]]:
    """The whole listing against the inventory: what is to be told of each page, and what is gone."""
    diff = Diff(session.seen, session.settings.selector)
    parts = [Part(query, page.version, len(page.objects), diff.page(page.objects)) for query, page in pages]
    return parts, diff.rest()


def _new(parts: list[Part]) -> Iterator[Object]:
    return (found.object for part in parts for found in part.differences if found.kind is Kind.ADDED)


def _check_deletions(session: Session, parts: list[Part], gone: list[Difference]) -> None:
    """Unless this is certainly the same cluster, ask a person before most of what is known is told to be gone (R5)."""
    if not session.proven:
        known = sum(not entry.deleted for entry in session.seen.values())
        found = sum(found.kind is Kind.DELETED for part in parts for found in part.differences)
        resume.check_mass_deletion(known, found + len(gone))


def _tell(session: Session, parts: list[Part], gone: list[Difference], *, listed: int = 0) -> None:
    """Publish the differences: page by page, and then what is gone."""
    first = Provenance.INITIAL if session.first else Provenance.INFERRED
    for part in parts:
        _publish(session, part, first, listed)
    _publish_deletions(session, gone, listed)


def _adopt(session: Session, query: Query, watch: Watch) -> None:
    """Make a listing the inventory, in one effect: half of it saved would be published as new by the next run."""
    if not query.at:
        count(session)
    version, pages = _peek(_pages(session, query))
    watch(version)
    session.seen = _entered(session, pages)
    now = timestamp(session.now())
    session.since = "" if query.at else now  # nobody knows when an older version was the present
    session.enter(Effect(version=version, since=session.since, inventory=dict(session.seen), audited_at=now))
    session.ledger.acknowledge()
    session.commit.save()
    session.position = version


def _entered(session: Session, pages: Iterable[tuple[Query, Page]]) -> dict[str, Known]:
    """The inventory that a listing makes."""
    return {
        thing.uid: entered(thing)
        for _, page in pages
        for thing in page.objects
        if session.settings.selector.matches(thing.labels)
    }


def count(session: Session) -> None:
    """Note that a listing begins. Raises `TemporaryError` where there were too many (R4)."""
    if session.summary.listings >= MOST_LISTINGS:
        message = f"{MOST_LISTINGS} listings in one run expired before they could be used; the next run tries again"
        raise TemporaryError(message)
    session.summary.listings += 1


def _for_inventory(session: Session, version: int = 0) -> Query:
    """What to ask for to take it for told. Metadata do not say in which phase an object is."""
    whole = session.settings.content.transitions
    return Query(limit=WHOLE_PAGE if whole else PAGE, at=version, whole=whole)


def _begin(session: Session) -> Query:
    count(session)
    return Query(limit=PAGE)


def _pages(session: Session, query: Query) -> Iterator[tuple[Query, Page]]:
    version = query.at
    while True:
        page = _list(session, query)
        version = version or page.version
        if page.version != version:
            raise Expired  # the server went on with a later listing than the one that was begun
        yield query if query.token else msgspec.structs.replace(query, at=version), page
        if not page.token:
            return
        query = msgspec.structs.replace(query, at=0, token=page.token)


def _peek(pages: Iterator[tuple[Query, Page]]) -> tuple[int, Iterator[tuple[Query, Page]]]:
    """The version of a listing, and its pages."""
    first = next(pages)
    return first[1].version, chain([first], pages)


def _list(session: Session, query: Query) -> Page:
    with session.deadline.interruptible():
        return session.source.list(query)


def _publish(session: Session, part: Part, new: Provenance, listed: int) -> None:
    """Publish the differences of one page: who lost a name first (R3), then the objects as they were at its version."""
    _publish_deletions(session, [found for found in part.differences if found.kind is Kind.DELETED], listed)
    wanted = {found.object.uid: found for found in part.differences if found.kind is not Kind.DELETED}
    for thing in _whole(session, part, wanted):
        kind = wanted[thing.uid].kind
        provenance = new if kind is Kind.ADDED else Provenance.INFERRED
        session.publish(Change(kind, thing, provenance, session.ledger.epoch), listed=listed)
        session.commit.tick()


def _publish_deletions(session: Session, deletions: list[Difference], listed: int) -> None:
    for found in deletions:
        gone = msgspec.structs.replace(found.object, version=0, data=_last_trace(session, found.object))
        session.publish(Change(Kind.DELETED, gone, Provenance.INFERRED, session.ledger.epoch), listed=listed)


def _last_trace(session: Session, gone: Object) -> bytes:
    """All that is certain of an object whose deletion was not seen."""
    with session.deadline.interruptible():
        kind = session.source.kind()
    metadata = {"namespace": gone.namespace, "name": gone.name, "uid": gone.uid}
    return msgspec.json.encode(
        {
            "apiVersion": session.settings.resource.api_version,
            "kind": kind,
            "metadata": {name: value for name, value in metadata.items() if value},
        }
    )


def _whole(session: Session, part: Part, wanted: dict[str, Difference]) -> Iterator[Object]:
    """The wanted objects of a page, whole, at exactly the page's version (R2): by name where they are few."""
    missing = set(wanted)
    for page in _whole_pages(session, part, wanted):
        for thing in page.objects:
            if thing.uid in missing:
                missing.discard(thing.uid)
                yield thing
        if not missing:
            return
    if missing:
        message = f"the API server lists {len(missing)} objects at version {part.version} and does not give them"
        raise Unavailable(message)


def _whole_pages(session: Session, part: Part, wanted: dict[str, Difference]) -> Iterator[Page]:
    if len(wanted) * FEW <= part.count:
        for found in wanted.values():
            namespace, name = found.object.namespace, found.object.name
            yield _list(session, Query(limit=1, at=part.version, namespace=namespace, name=name, whole=True))
        return
    query = msgspec.structs.replace(part.query, limit=WHOLE_PAGE, whole=True)
    while True:
        page = _list(session, query)
        yield page
        if not page.token:
            return
        query = Query(limit=WHOLE_PAGE, token=page.token, whole=True)
