"""Listings at one version: the first run, every loss of history, the daily audit, and starting points.

A listing is whole or it is nothing (R4): it begins when nothing is in flight, its marks belong to its version, and when
the server forgets that version half-way, another listing begins from the inventory as it is then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

import msgspec

from job.change import Change, Kind, Known, Object, Provenance, Reason
from job.errors import ActionNeeded, Expired, TemporaryError, Unavailable
from job.logs import event
from job.ports import Page, Query
from job.run import resume
from job.run.commit import Effect
from job.run.relist import Diff, Difference, WentBack, vanished
from job.run.session import Session, timestamp

PAGE = 500
"""Objects of a metadata page."""
WHOLE_PAGE = 50
"""Objects of a page of whole objects, which may have 1.5 MB each."""
MOST_LISTINGS = 3
"""A run that needs more is chasing a history that vanishes faster than it can be read (R4)."""
FEW = 10
"""Up to one changed object in so many is read by its name, more by whole pages."""

Watch = Callable[[int], None]
Listed = tuple[Query, Page]
"""A page, and the query that gives the same part of the same listing again."""

log = logging.getLogger(__name__)


def relist(session: Session, reason: Reason | None, watch: Watch) -> None:
    """Publish how the cluster differs from the inventory, at some version N from now; `watch(N)` is called at once.

    `reason` is None on a first run, where no history was promised yet.
    """
    rewound = False
    while True:
        session.settle()
        if not rewound:
            # What lies below `listed` was the gap of the listing that was interrupted there.
            start = max(session.ledger.version, session.ledger.listed)
        if reason is Reason.REWOUND and not rewound:
            session.rewind()
            rewound = True
        elif reason is None and start:
            reason = Reason.INTERRUPTED
        try:
            return _relist(session, reason, start, watch)
        except Expired:
            log.info("The listing expired before it was read; listing again", extra=event("listing.expired"))
        except WentBack:
            reason, rewound = Reason.REWOUND, False


def audit(session: Session, since: str) -> None:
    """Compare the inventory with the server's own past at its version: a watch may have lost an event (R9).

    `since` is when they last agreed. Raises `WentBack`.
    """
    version = session.position
    diff = Diff(session.seen, session.settings.selector)
    announced = False
    try:
        for query, page in _pages(session, Query(limit=PAGE, at=version)):
            differences = diff.page(page.objects)
            announced = announced or _drifted(session, differences, version, since)
            _publish(session, query, page, differences)
        rest = diff.rest()
        announced = announced or _drifted(session, rest, version, since)
        _publish_deletions(session, rest)
    except Expired:
        log.info("The server no longer has version %d; the audit waits", version, extra=event("audit.expired"))
        return
    session.enter(Effect(audited_at=timestamp(session.now())))


def skip(session: Session, watch: Watch) -> None:
    """Enter everything that exists as known, unpublished, in one save (R12)."""
    while True:
        try:
            return _adopt(session, Query(limit=PAGE), watch)
        except Expired:
            log.info("The listing expired before it was read; listing again", extra=event("listing.expired"))


def pin(session: Session, version: int) -> None:
    """Start at a version that the server still has, with the inventory of that time (R12)."""
    try:
        _adopt(session, Query(limit=PAGE, at=version), lambda _: None)
    except Expired as error:
        message = f"the API server no longer has resourceVersion {version}: start without --resource-version"
        raise ActionNeeded(message) from error


def _relist(session: Session, reason: Reason | None, start: int, watch: Watch) -> None:
    pages: Iterable[Listed]
    version, pages = _peek(_pages(session, _begin(session)))
    if version < max(session.ledger.version, session.ledger.listed):
        raise WentBack
    watch(version)
    if not session.proven and len(session.seen) >= resume.FEW:
        pages = list(pages)
        gone = vanished(session.seen, (thing for _, page in pages for thing in page.objects))
        resume.check_mass_deletion(len(session.seen), gone)
    if reason:
        session.announce(reason, start, version, since=session.since, listed=version)
    diff = Diff(session.seen, session.settings.selector)
    new = Provenance.INITIAL if session.first else Provenance.INFERRED
    for query, page in pages:
        _publish(session, query, page, diff.page(page.objects), listed=version, new=new)
    _publish_deletions(session, diff.rest(), listed=version)
    session.enter(Effect(version=version, listed=version, audited_at=timestamp(session.now())))
    session.ledger.acknowledge()
    session.position = version


def _adopt(session: Session, query: Query, watch: Watch) -> None:
    """Make a listing the inventory, in one effect: half of it saved would be published as new by the next run."""
    version, pages = _peek(_pages(session, query if query.at else _begin(session)))
    watch(version)
    session.seen = {
        thing.uid: Known(thing.namespace, thing.name, thing.version)
        for _, page in pages
        for thing in page.objects
        if session.settings.selector.matches(thing.labels)
    }
    now = timestamp(session.now())
    session.enter(Effect(version=version, listed=version, inventory=dict(session.seen), audited_at=now))
    session.ledger.acknowledge()
    session.position = version


def _begin(session: Session) -> Query:
    if session.summary.listings >= MOST_LISTINGS:
        message = f"{MOST_LISTINGS} listings in one run expired before they could be used; the next run tries again"
        raise TemporaryError(message)
    session.summary.listings += 1
    return Query(limit=PAGE)


def _pages(session: Session, query: Query) -> Iterator[Listed]:
    version = query.at
    while True:
        page = _list(session, query)
        version = version or page.version
        if page.version != version:
            raise Expired  # the server went on with a later listing than the one that was begun
        yield query if query.token else Query(limit=PAGE, at=version), page
        if not page.token:
            return
        query = Query(limit=PAGE, token=page.token)


def _peek(pages: Iterator[Listed]) -> tuple[int, Iterator[Listed]]:
    """The version of a listing, and its pages."""
    first = next(pages)

    def again() -> Iterator[Listed]:
        yield first
        yield from pages

    return first[1].version, again()


def _list(session: Session, query: Query) -> Page:
    with session.deadline.interruptible():
        return session.source.list(query)


def _publish(
    session: Session,
    query: Query,
    page: Page,
    differences: list[Difference],
    *,
    listed: int = 0,
    new: Provenance = Provenance.INFERRED,
) -> None:
    """Publish the differences of one page: who lost a name first (R3), then the objects as they were at its version."""
    _publish_deletions(session, [gone for gone in differences if gone.kind is Kind.DELETED], listed=listed)
    kinds = {found.object.uid: found.kind for found in differences if found.kind is not Kind.DELETED}
    wanted = [found.object for found in differences if found.kind is not Kind.DELETED]
    for thing in _whole(session, query, page, wanted):
        kind = kinds[thing.uid]
        provenance = new if kind is Kind.ADDED else Provenance.INFERRED
        session.publish(Change(kind, thing, provenance, session.commit.epoch), listed=listed)
        session.commit.tick()


def _publish_deletions(session: Session, deletions: list[Difference], *, listed: int = 0) -> None:
    for found in deletions:
        gone = msgspec.structs.replace(found.object, version=0, data=_last_trace(session, found.object))
        session.publish(Change(Kind.DELETED, gone, Provenance.INFERRED, session.commit.epoch), listed=listed)


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


def _whole(session: Session, query: Query, page: Page, wanted: list[Object]) -> Iterator[Object]:
    """The wanted objects of a page, whole, at exactly the page's version (R2): by name where they are few."""
    missing = {thing.uid for thing in wanted}
    for some in _whole_pages(session, query, page, wanted):
        for thing in some.objects:
            if thing.uid in missing:
                missing.discard(thing.uid)
                yield thing
        if not missing:
            return
    if missing:
        message = f"the API server lists {len(missing)} objects at version {page.version} and does not give them"
        raise Unavailable(message)


def _whole_pages(session: Session, query: Query, page: Page, wanted: list[Object]) -> Iterator[Page]:
    if len(wanted) * FEW <= len(page.objects):
        for thing in wanted:
            named = Query(limit=1, at=page.version, namespace=thing.namespace, name=thing.name, whole=True)
            yield _list(session, named)
        return
    whole = msgspec.structs.replace(query, limit=WHOLE_PAGE, whole=True)
    while True:
        some = _list(session, whole)
        yield some
        if not some.token:
            return
        whole = Query(limit=WHOLE_PAGE, token=some.token, whole=True)


def _drifted(session: Session, differences: list[Difference], version: int, since: str) -> bool:
    """Announce that events were lost, before the first difference that shows it."""
    if not differences:
        return False
    log.warning(
        "The inventory and the server's own past differ at version %d",
        version,
        extra=event("audit.drift", version=version),
    )
    session.announce(Reason.DRIFTED, version, version, since=since)
    return True
