"""Tests of the backfill, between a model cluster and a sink in memory."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import msgspec
import pytest

from job.backfill import IDLE, Report, Wanted, backfill
from job.checkpoint import Scope
from job.errors import ExitCode, Expired
from job.message import Envelope
from job.payload import EVERYTHING, Content
from job.ports import Page, Patience, Query
from job.run.deadline import DRAIN, LISTING, Deadline
from job.run.listing import MOST_LISTINGS
from job.selector import Selector
from job.settings import Address
from tests.bed.waiting import wait_until
from tests.fakes.sink import Answer, MemorySink
from tests.fakes.source import ModelCluster, ModelSource
from tests.run.scene import Scene

SOON = timedelta(seconds=60)


class Forgetful(ModelSource):
    """Has forgotten every listing when its second page is asked for."""

    def list(self, query: Query, patience: Patience | None = None) -> Page:
        if query.token:
            raise Expired
        return super().list(query, patience)


class Unsteady(ModelSource):
    """Goes on with a later listing than the one that was begun, once."""

    steady = False

    def list(self, query: Query, patience: Patience | None = None) -> Page:
        page = super().list(query, patience)
        if not query.token or self.steady:
            return page
        self.steady = True
        return msgspec.structs.replace(page, version=page.version + 1)


class Door(MemorySink):
    """Knows whether it was opened."""

    opened = False

    def open(self) -> None:
        self.opened = True


class Bench:
    """A model cluster, a sink, and backfills between them."""

    def __init__(self) -> None:
        self.cluster = ModelCluster()
        self.clock = self.cluster.clock
        self.sink = Door()
        self.kept: Door | None = None
        self.deadline = Deadline(IDLE, self.clock, self.clock.jump)
        self.progress: list[int] = []

    def wanted(self, content: Content = EVERYTHING, selector: str = "", **about: object) -> Wanted:
        resource = self.cluster.resource
        everything = Wanted(
            scope=Scope("lab", str(resource), "argo", selector, "memory:"),
            envelope=Envelope("lab", resource, "argo", content),
            content=content,
            selector=Selector(selector),
            dead_letter=Address("memory", "dead") if self.kept else None,
        )
        return replace(everything, **about)  # type: ignore[arg-type] # what each test names

    def run(
        self,
        wanted: Wanted | None = None,
        source: ModelSource | None = None,
        progress: Callable[[Report], object] = lambda _: None,
    ) -> Report:
        def shown(report: Report) -> None:
            self.progress.append(report.listed)
            progress(report)

        self.deadline = Deadline(IDLE, self.clock, self.clock.jump)
        return backfill(
            wanted or self.wanted(),
            source or ModelSource(self.cluster),
            self.sink,
            self.deadline,
            dead_letters=self.kept,
            progress=shown,
        )

    def signal(self) -> None:
        """Send the backfill that is under way a SIGTERM."""
        self.deadline.signal()

    @property
    def ids(self) -> list[str]:
        return sorted(message.id for message in self.sink.stored)

    @property
    def names(self) -> list[str]:
        return sorted(message.attributes["subject"].removeprefix("argo/") for message in self.sink.stored)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    with bench.sink:
        yield bench


def create(bench: Bench, count: int) -> None:
    for number in range(count):
        bench.cluster.create(f"w-{number:03}")


def test_what_exists_is_told_as_a_run_would_tell_it(bench: Bench) -> None:
    """The same ids and data as those of a run; how it is known is `replay`."""
    create(bench, 60)
    bench.cluster.change("w-007", phase="Running")
    report = bench.run()
    with Scene(cluster=bench.cluster) as scene:
        scene.run()
        ran = {message.id: message.data for message in scene.messages}

    assert (report.exit_code, report.listed, report.messages, report.published) == (0, 60, 60, {"added": 60})
    assert {message.id: message.data for message in bench.sink.stored} == ran
    assert {message.attributes["provenance"] for message in bench.sink.stored} == {"replay"}
    assert report.bytes == sum(map(len, ran.values()))
    assert report.total == bench.progress[-1] == 60


def test_what_is_stored_is_counted_wherever_it_ends(bench: Bench) -> None:
    """A refused message ends it: what was put behind that one and is stored is published all the same."""
    create(bench, 60)
    bench.sink.poison = lambda message: message.attributes["subject"] == "argo/w-000"
    calls = itertools.count()

    def others_first(_: int) -> None:
        if next(calls) == 0:
            wait_until(lambda: len(bench.sink.stored) >= 20, SOON, "others to be stored")

    bench.sink.before = others_first
    report = bench.run()

    assert report.exit_code == ExitCode.ACTION_NEEDED
    assert report.published == {"added": len(bench.sink.stored)}
    assert len(bench.sink.stored) >= 20


def test_progress_is_told_of_pages_that_have_nothing_wanted(bench: Bench) -> None:
    """Who waits sees that it goes on."""
    create(bench, 60)
    bench.run(bench.wanted(phases=frozenset({"Failed"}), selector="team=data"))

    assert set(bench.progress) >= {25, 50, 60}


def test_an_empty_namespace_is_no_error(bench: Bench) -> None:
    """Nothing is told, and that is said."""
    report = bench.run()

    assert (report.exit_code, report.messages, bench.sink.stored) == (0, 0, [])
    assert "published: nothing" in report.sentence()


def test_filters_choose(bench: Bench) -> None:
    """Labels, phases and the time of creation; since is included, until is not."""
    for name, labels, phase in (("a", {"t": "1"}, "Failed"), ("b", {"t": "1"}, "Running"), ("c", {}, "Failed")):
        bench.cluster.create(name, labels=labels, phase=phase)
    bench.run(bench.wanted(selector="t=1", phases=frozenset({"Failed", "Error"})))

    assert bench.names == ["a"]


@pytest.mark.parametrize(
    ("since", "until", "names"),
    [(2, None, ["c", "d"]), (None, 2, ["a", "b"]), (1, 3, ["b", "c"]), (1, 1, [])],
)
def test_the_time_of_creation_chooses(bench: Bench, since: int | None, until: int | None, names: list[str]) -> None:
    """Since is included, until is not."""
    for number, name in enumerate("abcd"):
        bench.cluster.create(name, created=f"2026-11-0{number + 1}T00:00:00Z")
    days = [day if day is None else datetime(2026, 11, 1 + day, tzinfo=UTC) for day in (since, until)]
    bench.run(bench.wanted(since=days[0], until=days[1]))

    assert bench.names == names


def test_a_dry_run_says_what_would_be(bench: Bench) -> None:
    """The same counts and bytes, and the sink is not even asked."""
    create(bench, 30)
    dry = bench.run(bench.wanted(dry_run=True))
    asked, opened = bench.sink.asked, bench.sink.opened
    real = bench.run()

    assert (asked, opened, bench.sink.opened) == (0, False, True)
    assert (dry.messages, dry.bytes, dry.published) == (real.messages, real.bytes, {})
    assert "nothing was published" in dry.sentence()


def test_transitions_are_those_into_the_present_phase(bench: Bench) -> None:
    """With the id of the run, from nowhere; what has no phase has none."""
    bench.cluster.create("a", phase="Failed", finishedAt="2026-11-01T00:00:00Z")
    bench.cluster.create("b")
    report = bench.run(bench.wanted(Content(transitions=True)))

    assert bench.ids == ["uid-1/Failed/2026-11-01T00:00:00Z"]
    assert json.loads(bench.sink.stored[0].data)["from"] is None
    assert (report.listed, report.messages) == (2, 1)


def test_an_expired_listing_begins_again_and_repeats_nothing(bench: Bench) -> None:
    """What was handed over and has not changed is not told twice; what has is told as it is now; no deletions."""
    create(bench, 60)

    def forget() -> None:
        bench.cluster.change("w-001")
        bench.cluster.delete("w-002")
        bench.cluster.delete("w-003")
        bench.cluster.create("w-003")
        bench.cluster.create("w-100")
        bench.cluster.compact()

    bench.cluster.while_listed += [lambda: None, forget]
    report = bench.run()

    assert report.exit_code == ExitCode.DONE
    assert len(bench.ids) == len(set(bench.ids)) == 63
    assert [bench.names.count(name) for name in ("w-001", "w-002", "w-003")] == [2, 1, 2]
    assert report.published == {"added": 62, "modified": 1}


def test_what_was_not_wanted_is_looked_at_again(bench: Bench) -> None:
    """When the listing begins again, an object that has come into the wanted phase is new, and its labels count."""
    create(bench, 60)
    for name in ("w-001", "w-002"):
        bench.cluster.change(name, labels={"t": "1"}, phase="Running")

    def end() -> None:
        bench.cluster.change("w-001", phase="Failed")
        bench.cluster.change("w-002", phase="Failed", labels={})
        bench.cluster.compact()

    bench.cluster.while_listed += [lambda: None, end]
    report = bench.run(bench.wanted(selector="t=1", phases=frozenset({"Failed"})))

    assert (bench.names, report.published) == (["w-001"], {"added": 1})


def test_an_expired_listing_repeats_no_transition(bench: Bench) -> None:
    """What has changed since, and not its phase, is not told again; what has, is told from the phase before."""
    create(bench, 60)
    bench.cluster.change("w-001", phase="Running", startedAt="2026-11-01T00:00:00Z")
    bench.cluster.change("w-002", phase="Running", startedAt="2026-11-01T00:00:00Z")

    def go_on() -> None:
        bench.cluster.change("w-001", message="it goes on")
        bench.cluster.change("w-002", phase="Failed", finishedAt="2026-11-01T00:01:00Z")
        bench.cluster.compact()

    bench.cluster.while_listed += [lambda: None, go_on]
    bench.run(bench.wanted(Content(transitions=True)))

    assert [bench.names.count(name) for name in ("w-001", "w-002")] == [1, 2]
    assert len(bench.ids) == 3
    assert json.loads(bench.sink.stored[-1].data)["from"] == "Running"


def expire(bench: Bench) -> None:
    bench.cluster.tick()
    bench.cluster.compact()


@pytest.mark.parametrize("phases", [frozenset[str](), frozenset({"Failed"})], ids=["told", "passed-over"])
def test_listings_that_come_further_may_be_many(bench: Bench, phases: frozenset[str]) -> None:
    """Each has a page more before it expires, whether there is something to tell of it or not."""
    create(bench, 200)
    pages = range(1, 8)
    for count in pages:
        bench.cluster.while_listed += [*[lambda: None] * count, lambda: expire(bench)]
    report = bench.run(bench.wanted(phases=phases))

    assert len(pages) > MOST_LISTINGS
    assert (report.exit_code, report.listed, len(bench.ids)) == (ExitCode.DONE, 200, 0 if phases else 200)


def test_listings_that_find_something_new_may_be_many(bench: Bench) -> None:
    """What was told is gone when the next one begins: as long as before, it is about others."""
    create(bench, 200)

    def go_by(first: int) -> None:
        for number in range(first, first + 25):
            bench.cluster.delete(f"w-{number:03}")
        expire(bench)

    for count in range(6):
        bench.cluster.while_listed += [lambda: None, partial(go_by, count * 25)]
    report = bench.run()

    assert (report.exit_code, len(bench.ids)) == (ExitCode.DONE, 200)


def test_listings_that_come_no_further_end_it(bench: Bench) -> None:
    """A server that forgets faster than it is read is not asked for ever; what it gave is told once."""
    create(bench, 60)
    report = bench.run(source=Forgetful(bench.cluster))

    assert (report.exit_code, len(bench.ids)) == (ExitCode.TEMPORARY, 25)
    assert len(bench.cluster.lists) == 1 + MOST_LISTINGS
    assert "expired" in report.sentence()


def test_pages_of_two_listings_are_not_mixed(bench: Bench) -> None:
    """A page at another version belongs to another listing, which is read from its beginning."""
    create(bench, 60)
    report = bench.run(source=Unsteady(bench.cluster))

    assert (report.exit_code, report.version) == (ExitCode.DONE, bench.cluster.version)
    assert len(bench.ids) == len(set(bench.ids)) == 60
    assert len(bench.cluster.lists) == 2 + 3


def test_a_namespace_that_does_not_exist_is_for_a_person(bench: Bench) -> None:
    """A mistyped name is not taken for an empty namespace; where nobody may know, it is one."""
    bench.cluster.namespace_exists = False
    absent = bench.run()
    bench.cluster.namespace_exists = None
    unknown = bench.run()

    assert (absent.exit_code, unknown.exit_code) == (ExitCode.ACTION_NEEDED, ExitCode.DONE)
    assert absent.sentence().startswith("namespace argo does not exist")


def test_a_cluster_that_went_back_ends_it(bench: Bench) -> None:
    """The rest would be of another history."""
    create(bench, 60)
    version = bench.cluster.version
    for number in range(60):
        bench.cluster.change(f"w-{number:03}")

    def go_back() -> None:
        bench.cluster.rewind(version)
        bench.cluster.tick(1000)
        bench.cluster.compact()

    bench.cluster.while_listed += [lambda: None, go_back]
    report = bench.run()

    assert report.exit_code == ExitCode.TEMPORARY
    assert "older state" in report.sentence()
    assert report.published == {"added": 25}


def test_a_signal_ends_it_with_what_is_stored(bench: Bench) -> None:
    """75, since it is not whole; run again, it is, and repeats say so."""
    create(bench, 60)
    bench.cluster.while_listed += [lambda: None, bench.signal]
    report = bench.run()
    first = bench.ids
    again = bench.run()

    assert (report.exit_code, len(first)) == (ExitCode.TEMPORARY, 25)
    assert "run it again" in report.sentence()
    assert again.exit_code == ExitCode.DONE
    assert len(set(bench.ids)) == 60
    assert len({(message.id, message.data) for message in bench.sink.stored}) == 60


def test_a_signal_between_two_objects_ends_it(bench: Bench) -> None:
    """Not only one while the API server is asked."""
    create(bench, 60)
    report = bench.run(progress=lambda report: bench.signal() if report.messages == 7 else None)

    assert (report.exit_code, len(bench.ids)) == (ExitCode.TEMPORARY, 7)


def test_a_signal_does_not_hide_what_a_person_must_mend(bench: Bench) -> None:
    """A message that is refused while the sink drains, or just before, is told, as in a run: 78."""
    create(bench, 60)
    bench.sink.poison = lambda message: message.id.startswith("uid-7/")
    bench.cluster.while_listed += [lambda: None, bench.signal]
    report = bench.run()

    assert report.exit_code == ExitCode.ACTION_NEEDED


def test_a_signal_while_the_sink_is_away_is_the_reason(bench: Bench) -> None:
    """75, run it again; and that something is open is noted."""
    create(bench, 60)
    bench.sink.otherwise = Answer.UNAVAILABLE
    bench.cluster.while_listed += [lambda: None, bench.signal]
    bench.sink.before = lambda _: bench.clock.jump(3)
    report = bench.run()

    assert report.exit_code == ExitCode.TEMPORARY
    assert "a signal ended it" in str(report.error)
    assert ["acknowledged" in note for note in report.notes] == [True]


def test_time_is_given_anew_only_while_it_moves(bench: Bench) -> None:
    """What has passed stays passed for the summary, and after a signal nothing is given any more."""
    deadline = Deadline(IDLE, bench.clock, bench.clock.jump)
    window = IDLE.total_seconds()
    bench.clock.jump(50)
    deadline.renew()
    renewed = deadline.watch_left, deadline.left(), deadline.publish_left, deadline.elapsed
    bench.clock.jump(20)
    deadline.signal()
    deadline.renew()

    assert renewed == pytest.approx((window, window + LISTING, window + LISTING + DRAIN, 50), abs=5)
    assert (deadline.left(), deadline.watch_left) == (0, 0)
    assert deadline.publish_left == pytest.approx(DRAIN, abs=5)


def test_it_may_take_any_time_while_it_moves(bench: Bench) -> None:
    """Each batch takes half a minute, and an hour passes."""
    create(bench, 300)
    bench.sink.limits = type(bench.sink.limits)(lanes=1, messages=3, bytes=100_000)
    bench.sink.before = lambda _: bench.clock.jump(36)
    report = bench.run()

    assert (report.exit_code, len(bench.ids)) == (ExitCode.DONE, 300)
    assert report.seconds > 3000


def test_what_stands_still_ends_it(bench: Bench) -> None:
    """A sink that is away is asked for a minute, then it is 75."""
    create(bench, 3)
    bench.sink.otherwise = Answer.UNAVAILABLE
    bench.sink.before = lambda _: bench.clock.jump(10)
    report = bench.run()

    assert report.exit_code == ExitCode.TEMPORARY
    assert 50 < report.seconds < 75


def test_the_rate_is_kept(bench: Bench) -> None:
    """Ten a second, by the clock that waits."""
    create(bench, 30)
    report = bench.run(bench.wanted(rate=10))

    assert report.messages == 30
    assert report.seconds >= 2.9


def test_a_refused_message_ends_it_or_is_kept(bench: Bench) -> None:
    """As in a run."""
    create(bench, 30)
    bench.sink.poison = lambda message: message.id.startswith("uid-7/")
    without = bench.run()
    with Door(lanes=1) as bench.kept:
        report = bench.run()
        opened = bench.kept.opened
        letters = [message.id for message in bench.kept.stored]

    assert without.exit_code == ExitCode.ACTION_NEEDED
    assert (report.exit_code, letters, opened) == (ExitCode.DONE, ["uid-7/107"], True)
    assert report.published == {"added": 29, "dead-lettered": 1}
    assert [("1 of them" in note, "memory:dead" in note) for note in report.notes] == [(True, True)]
