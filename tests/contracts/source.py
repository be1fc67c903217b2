"""The contract of `job.ports.Source`."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

import pytest

from job.change import Kind, Object
from job.errors import Expired, OutOfTime, Unavailable
from job.ports import Bookmark, Event, Failure, Frame, Page, Query, Source, Verdict

SECONDS = 3
"""How long a watch is open: the least that is allowed."""
MANY = 500


class World(Protocol):
    """What a test does to the cluster that the source reads; a namespace of its own, empty at first."""

    namespace: str
    kind: str

    def create(self, name: str, **labels: str) -> None:
        """Create an object with these labels."""

    def change(self, name: str) -> None:
        """Make another version of it."""

    def delete(self, name: str) -> None:
        """Delete it."""

    def expire(self) -> None:
        """Let the server forget its history up to now, for watches and for lists."""


class SourceContract:
    """What every source does.

    A subclass has the fixtures `world`, `source`, a source of the world's namespace, and `broken`, one that cannot be
    used before somebody has mended something.
    """

    def test_a_list_is_the_state_now(self, world: World, source: Source) -> None:
        """Every object with its version and labels, and no data; the page's version is not older than any of them."""
        world.create("a", colour="blue")
        world.create("b")
        world.change("b")
        world.create("c")
        world.delete("c")

        page = source.list(Query(limit=MANY))

        assert [(thing.namespace, thing.name, thing.labels.get("colour")) for thing in by_name(page)] == [
            (world.namespace, "a", "blue"),
            (world.namespace, "b", None),
        ]
        assert all(thing.uid and 0 < thing.version <= page.version for thing in page.objects)
        assert [thing.data for thing in page.objects] == [b"", b""]
        assert page.token == ""

    def test_a_whole_list_has_the_data(self, world: World, source: Source) -> None:
        """JSON with kind and apiVersion, at the version that the object has."""
        world.create("a")

        (thing,) = source.list(Query(limit=MANY, whole=True)).objects

        document = json.loads(thing.data)
        assert document["kind"] == world.kind == source.kind()
        assert document["apiVersion"]
        assert document["metadata"]["resourceVersion"] == str(thing.version)
        assert "managedFields" not in document["metadata"]

    @pytest.mark.parametrize("whole", [False, True])
    def test_pages_have_one_version(self, world: World, source: Source, whole: bool) -> None:
        """Whatever happens between them: the state at the version of the first page, each object once."""
        for name in "abcde":
            world.create(name)
        first = source.list(Query(limit=2, whole=whole))
        world.delete("e")
        world.create("f")
        world.change("d")
        pages = [first]
        while pages[-1].token:
            pages.append(source.list(Query(limit=2, token=pages[-1].token, whole=whole)))

        assert [thing.name for page in pages for thing in page.objects] == list("abcde")
        assert {page.version for page in pages} == {first.version}
        assert all(thing.version <= first.version for page in pages for thing in page.objects)

    def test_a_list_at_a_version_is_the_state_then(self, world: World, source: Source) -> None:
        """What came later does not show, what was deleted later does."""
        world.create("a")
        world.create("b")
        then = source.list(Query(limit=MANY))
        world.change("a")
        world.delete("b")
        world.create("c")

        again = source.list(Query(limit=MANY, at=then.version))

        assert again.version == then.version
        assert by_name(again) == by_name(then)

    def test_a_list_by_name_has_one_object(self, world: World, source: Source) -> None:
        """As it was at that version; none where there was none."""
        world.create("a")
        world.create("b")
        page = source.list(Query(limit=MANY))
        world.change("a")

        named = Query(limit=1, at=page.version, namespace=world.namespace, name="a", whole=True)
        assert [thing.version for thing in source.list(named).objects] == [by_name(page)[0].version]
        absent = Query(limit=1, at=page.version, namespace=world.namespace, name="absent")
        assert list(source.list(absent).objects) == []

    def test_a_page_says_how_many_objects_the_later_pages_have(self, world: World, source: Source) -> None:
        """Where there are later pages, and where the server says it at all; of the present and of the past."""
        for name in "abcde":
            world.create(name)
        then = source.list(Query(limit=MANY)).version
        world.delete("e")

        for query, alive in ((Query(limit=1, at=then), 5), (Query(limit=3), 4)):
            page, told = source.list(query), 0
            while page.token:
                told += len(page.objects)
                assert page.remaining in {alive - told, None}
                page = source.list(Query(limit=1, token=page.token))
            assert page.remaining is None
            assert told + len(page.objects) == alive

    def test_lists_are_read_in_several_threads(self, world: World, source: Source) -> None:
        """Each gets its own answer."""
        versions = []
        for name in "abcdefgh":
            world.create(name)
            versions.append(source.list(Query(limit=MANY)).version)

        with ThreadPoolExecutor(4) as pool:
            pages = list(pool.map(lambda version: source.list(Query(limit=MANY, at=version)), versions * 3))

        assert [page.version for page in pages] == versions * 3
        assert [len(page.objects) for page in pages] == list(range(1, 9)) * 3

    def test_who_has_no_time_left_does_not_wait(self, world: World, source: Source) -> None:
        """A `patience` that is at its end: an answer if it comes at once, `Unavailable` if not, and nothing else."""
        world.create("a")
        began = time.monotonic()
        with suppress(Unavailable):
            assert len(source.list(Query(limit=1), _NoPatience()).objects) == 1

        assert time.monotonic() - began < SECONDS
        assert len(source.list(Query(limit=1)).objects) == 1

    def test_a_forgotten_version_is_expired(self, world: World, source: Source) -> None:
        """A list at it, and the rest of a list that began at it."""
        for name in "ab":
            world.create(name)
        page = source.list(Query(limit=1))
        assert page.token
        world.change("a")
        world.expire()

        with pytest.raises(Expired):
            source.list(Query(limit=1, at=page.version))
        with pytest.raises(Expired):
            source.list(Query(limit=1, token=page.token))

    def test_a_watch_tells_what_came_after_its_version(self, world: World, source: Source) -> None:
        """Every event, in the order of versions; a deletion with its own version and the last object."""
        world.create("a")
        version = source.list(Query(limit=1)).version
        world.change("a")
        world.create("b")
        world.delete("a")

        events = watched(source, version)

        assert [(event.kind, event.object.name) for event in events] == [
            (Kind.MODIFIED, "a"),
            (Kind.ADDED, "b"),
            (Kind.DELETED, "a"),
        ]
        versions = [event.object.version for event in events]
        assert versions == sorted(versions)
        assert version < versions[0]
        assert json.loads(events[2].object.data)["metadata"]["resourceVersion"] == str(versions[2])
        assert events[0].object.uid == events[2].object.uid

    def test_a_watch_and_a_list_have_the_same_bytes(self, world: World, source: Source) -> None:
        """One version of one object is one text, however it is read (R8)."""
        version = source.list(Query(limit=1)).version
        world.create("a", colour="blue")

        (listed,) = source.list(Query(limit=1, whole=True)).objects
        (event,) = watched(source, version)

        assert event.object.data == listed.data
        assert event.object == listed

    def test_bookmarks_only_go_forward(self, world: World, source: Source) -> None:
        """A bookmark says that nothing up to its version is still to come."""
        version = source.list(Query(limit=1)).version
        for name in "abc":
            world.create(name)
        told = version

        for frame in frames(source, version):
            assert not isinstance(frame, Failure)
            seen = frame.version if isinstance(frame, Bookmark) else frame.object.version
            assert seen >= told if isinstance(frame, Bookmark) else seen > told
            told = seen

    def test_a_watch_from_a_forgotten_version_is_refused(self, world: World, source: Source) -> None:
        """By `Expired`, by a failure with code 410, or by a close without a frame; never by silence about events."""
        world.create("a")
        version = source.list(Query(limit=1)).version
        world.change("a")
        world.expire()

        try:
            told = frames(source, version)
        except Expired:
            return
        assert told == [] or (isinstance(told[0], Failure) and told[0].code == 410)

    def test_a_watch_is_closed_from_another_thread(self, world: World, source: Source) -> None:
        """A blocked read ends at once, and without an error."""
        stream = source.watch(source.list(Query(limit=1)).version, 600)
        ended = threading.Event()
        errors: list[Exception] = []

        def read() -> None:
            try:
                for _ in stream:
                    pass
            except Unavailable as error:
                errors.append(error)
            ended.set()

        threading.Thread(target=read, daemon=True).start()
        stream.close()

        assert ended.wait(20)
        assert errors == []

    def test_the_identity_stays(self, source: Source) -> None:
        """Two questions have one answer."""
        assert source.identity() == source.identity()

    def test_the_namespace_exists(self, source: Source) -> None:
        """Where it can be known."""
        assert source.namespace_exists() in {True, None}

    def test_checks_change_nothing(self, world: World, source: Source) -> None:
        """With objects and without, what is listed stays as it is, and nothing is found that a run would fail at."""
        checks = list(source.checks())
        world.create("a")
        before = source.list(Query(limit=MANY)).objects
        checks += source.checks()

        assert [check for check in checks if check.verdict is Verdict.FAIL] == []
        assert checks
        assert list(source.list(Query(limit=MANY)).objects) == list(before)

    def test_what_is_broken_fails_a_check(self, broken: Source) -> None:
        """It raises nothing, and says what to do."""
        failed = [check for check in broken.checks() if check.verdict is Verdict.FAIL]

        assert failed
        assert all(check.found and check.remedy for check in failed)


class _NoPatience:
    """That of a run whose time for this is over."""

    def left(self) -> float:
        return 0.0

    def pause(self, seconds: float) -> None:
        raise OutOfTime


def by_name(page: Page) -> list[Object]:
    return sorted(page.objects, key=lambda thing: thing.name)


def frames(source: Source, version: int) -> list[Frame]:
    return [source.decode(line) for block in source.watch(version, SECONDS) for line in block]


def watched(source: Source, version: int) -> list[Event]:
    return [frame for frame in frames(source, version) if isinstance(frame, Event)]
