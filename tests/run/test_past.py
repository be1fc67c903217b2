"""Tests of reading old versions."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from job.change import Kind, Object, Recovery
from job.errors import Forbidden, Stopped, Unavailable
from job.ports import Event, Page, Patience, Query, Source
from job.run import listing, past
from job.run.past import Past, Unreadable
from job.run.walk import Span
from tests.fakes.source import ModelCluster, ModelSource


class Time:
    """Patience for so many questions whether there is any."""

    def __init__(self, questions: int = 1_000_000) -> None:
        self._questions = questions

    def left(self) -> float:
        self._questions -= 1
        return float(self._questions > 0)

    def pause(self, seconds: float) -> None:
        pytest.fail("nothing here waits")


class Failing(ModelSource):
    """One that answers every list with an error."""

    def __init__(self, cluster: ModelCluster, error: BaseException) -> None:
        super().__init__(cluster)
        self._error = error

    def list(self, query: Query, patience: Patience | None = None) -> Page:
        raise self._error


@pytest.fixture
def cluster() -> ModelCluster:
    return ModelCluster()


def reading(
    cluster: ModelCluster,
    *,
    source: Source | None = None,
    patience: Patience | None = None,
    wanted: Callable[[Object], bool] = lambda _: True,
    check: Callable[[], None] = lambda: None,
) -> Past:
    return Past(source or ModelSource(cluster), patience or Time(), wanted=wanted, check=check)


def create_many(cluster: ModelCluster, count: int) -> None:
    for number in range(count):
        cluster.create(f"w{number:04}")


def test_r11_a_state_is_read_to_its_last_page(cluster: ModelCluster) -> None:
    """As it was, whatever came later."""
    create_many(cluster, listing.PAGE + 2)
    version = cluster.version
    cluster.delete("w0000")
    cluster.change("w0501")

    (state,) = reading(cluster).states([version], {})

    assert len(state) == listing.PAGE + 2
    assert state["argo/w0501"].version == version
    assert state["argo/w0000"].data == b""


def test_r11_what_did_not_change_is_kept_once(cluster: ModelCluster) -> None:
    """Of two states with many objects in common, the second one costs no more than its differences."""
    create_many(cluster, 3)
    before, after = cluster.version, cluster.change("w0001")
    past = reading(cluster)
    (first,) = past.states([before], {})
    (second,) = past.states([after], first)

    assert [first[key] is second[key] for key in first] == [True, False, True]


@pytest.mark.parametrize("says_remaining", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, listing.PAGE, listing.PAGE + 3])
def test_r11_a_count_is_exact(cluster: ModelCluster, says_remaining: bool, count: int) -> None:
    """With one request where the server says how many remain, by reading all of them where it does not."""
    cluster.says_remaining = says_remaining
    create_many(cluster, count)
    cluster.create("later")
    past = reading(cluster)

    counts, _ = past.counts([100 + count, 101 + count])

    assert counts == [count, count + 1]
    assert past.requests == 2 or not says_remaining


def test_r11_versions_are_read_in_any_order_and_given_in_theirs(cluster: ModelCluster) -> None:
    """Several at a time."""
    create_many(cluster, 40)

    counts, _ = reading(cluster).counts(range(100, 141))

    assert counts == list(range(41))
    assert len(cluster.lists) == 41


def spanned(cluster: ModelCluster, start: int, name: str) -> tuple[Object, Span]:
    """All of a name since then."""
    state = reading(cluster).states([start, cluster.version], {})
    before, after = (each.get(f"argo/{name}") for each in state)
    thing = after or before
    assert thing
    return thing, Span(start, before, cluster.version, after)


def test_r11_events_have_the_data_that_the_watch_would_give(cluster: ModelCluster) -> None:
    """A deletion has the last state, with its own version in it."""
    cluster.create("a")
    start = cluster.version
    cluster.change("a", phase="Succeeded")
    cluster.tick(3)
    cluster.delete("a")
    cluster.tick(3)
    cluster.create("a")
    cluster.change("a")
    source = ModelSource(cluster)
    watched = [source.decode(line) for line in next(iter(source.watch(start, 3)))]

    assert reading(cluster).events([spanned(cluster, start, "a")])[::-1] == watched


@pytest.mark.parametrize("room", [0, 400, 1_500])
def test_r11_data_without_room_is_read_again(cluster: ModelCluster, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is bounded, and what is told in the end is the same."""
    monkeypatch.setattr(past, "ROOM", room)
    cluster.create("a")
    start = cluster.version
    for _ in range(20):
        cluster.change("a")
    cluster.delete("a")
    source = ModelSource(cluster)
    watched = [source.decode(line) for line in next(iter(source.watch(start, 3)))]
    read = reading(cluster)

    kept = read.events([spanned(cluster, start, "a")])

    sizes = [len(each.object.data) for each in kept]
    largest = max(len(each.object.data) for each in watched if isinstance(each, Event))
    assert sum(sizes) <= room + 2 * largest
    assert 0 in sizes
    assert read.completed(kept)[::-1] == watched
    assert [read.complete(each) for each in kept][::-1] == watched


def test_r11_what_is_left_of_a_chain_is_where_something_was_deleted(cluster: ModelCluster) -> None:
    """The others need no look for that."""
    cluster.create("kept")
    cluster.create("gone")
    cluster.create("new")
    cluster.delete("new")
    start = cluster.version
    cluster.change("kept")
    cluster.delete("gone")
    cluster.create("new")
    cluster.create("gone")
    cluster.tick(5)
    read = reading(cluster)

    found, rest = read.chains([spanned(cluster, start, name) for name in ("kept", "gone", "new")])

    assert [(each.kind, each.object.name, bool(each.object.data)) for each in found] == [
        (Kind.MODIFIED, "kept", True),
        (Kind.ADDED, "gone", True),
        (Kind.ADDED, "new", True),
    ]
    assert [(thing.name, span.end) for thing, span in rest] == [("gone", start + 3)]


def test_r11_room_is_made_for_the_next_events(cluster: ModelCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """When those before are told."""
    monkeypatch.setattr(past, "ROOM", 100)
    start = cluster.version
    cluster.create("a")
    cluster.create("b")
    read = reading(cluster)
    first, second = (spanned(cluster, start, name) for name in "ab")

    assert [bool(each.object.data) for each in read.events([first])] == [True]
    assert [bool(each.object.data) for each in read.events([second])] == [False]
    read.make_room()
    assert [bool(each.object.data) for each in read.events([second])] == [True]


def test_r11_data_that_nobody_wants_are_not_read(cluster: ModelCluster) -> None:
    """Where a selector has let in only a few."""
    cluster.create("a", labels={"colour": "red"})
    start = cluster.version
    cluster.change("a", labels={"colour": "blue"})
    cluster.change("a", labels={"colour": "red"})
    cluster.change("a")
    cluster.delete("a")

    read = reading(cluster, wanted=lambda thing: thing.labels.get("colour") == "blue")
    kept = read.events([spanned(cluster, start, "a")])

    for events in (kept, read.completed(kept)):
        assert [(each.kind, bool(each.object.data)) for each in events][::-1] == [
            (Kind.MODIFIED, True),
            (Kind.MODIFIED, False),
            (Kind.MODIFIED, False),
            (Kind.DELETED, False),
        ]


@pytest.mark.parametrize(
    ("error", "how"),
    [(Unavailable("away"), Recovery.LATE), (Forbidden("no right to list"), Recovery.REFUSED)],
)
def test_r11_an_error_is_tried_again_until_it_is_late_or_else_a_refusal(
    cluster: ModelCluster, error: Exception, how: Recovery
) -> None:
    """What a source raises as temporary it has tried again while there was time."""
    with pytest.raises(Unreadable) as unreadable:
        reading(cluster, source=Failing(cluster, error)).states([100], {})

    assert (unreadable.value.how, str(unreadable.value)) == (how, str(error))


def test_r11_a_version_that_is_compacted_is_gone(cluster: ModelCluster) -> None:
    """In all of several threads; the others end with the first."""
    cluster.tick(20)
    cluster.compact()
    with pytest.raises(Unreadable) as refused:
        reading(cluster).counts(range(100, 120))

    assert refused.value.how is Recovery.COMPACTED
    assert len(cluster.lists) <= past.CONNECTIONS


def test_r11_a_rest_of_a_page_that_is_compacted_is_gone(cluster: ModelCluster) -> None:
    """The state was half read."""
    create_many(cluster, listing.PAGE + 1)
    version = cluster.version
    cluster.tick()
    cluster.while_listed.extend([lambda: None, cluster.compact])
    with pytest.raises(Unreadable) as refused:
        reading(cluster).states([version], {})

    assert refused.value.how is Recovery.COMPACTED


def test_r11_without_time_nothing_more_is_asked(cluster: ModelCluster) -> None:
    """It is late."""
    cluster.tick(20)
    with pytest.raises(Unreadable) as late:
        reading(cluster, patience=Time(5)).states(range(100, 120), {})

    assert late.value.how is Recovery.LATE
    assert len(cluster.lists) == 4


def test_r11_another_version_than_was_asked_for_is_no_answer(cluster: ModelCluster) -> None:
    """It would be taken for the past."""
    cluster.create("a")
    cluster.tick()
    cluster.matches_exactly = False
    read = reading(cluster)
    for ask in (read.counts, lambda versions: read.states(versions, {})):
        with pytest.raises(Unreadable) as refused:
            ask([101])
        assert refused.value.how is Recovery.REFUSED
    assert read.counts([102])[0] == [1]


def test_r11_an_object_that_is_listed_and_not_given_is_no_answer(cluster: ModelCluster) -> None:
    """What it was cannot be told then."""
    cluster.create("a")
    read = reading(cluster)
    for thing in (Object("another", "argo", "a", 101), Object("uid-1", "argo", "b", 101)):
        with pytest.raises(Unreadable) as refused:
            read.complete(Event(Kind.ADDED, thing))
        assert refused.value.how is Recovery.REFUSED


def test_r11_who_reads_is_interrupted(cluster: ModelCluster) -> None:
    """By a signal, or a sink that has failed."""

    def check() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        reading(cluster, check=check).counts([100])


def test_r11_an_error_of_ours_is_not_taken_for_the_servers(cluster: ModelCluster) -> None:
    """It is a bug."""
    with pytest.raises(ZeroDivisionError):
        reading(cluster, source=Failing(cluster, ZeroDivisionError())).counts([100])
