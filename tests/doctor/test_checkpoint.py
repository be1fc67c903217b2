"""Tests of what `doctor` says of the checkpoint: for whom it is, how old, and whether the schedule keeps up."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from msgspec.structs import replace

from job import checkpoint as codec
from job.change import Known, Reason, Recovery, Resource
from job.checkpoint import Checkpoint, RunRecord, Scope
from job.doctor import Brief, checkpoint, examine, schedule
from job.ports import Check, Identity, Verdict
from job.run import Ports
from job.selector import Selector
from job.settings import Address, Initial, Settings
from tests.doctor.seen import documented
from tests.fakes.sink import MemorySink
from tests.fakes.source import ModelCluster, ModelSource, Refusal
from tests.fakes.store import MemoryStore

WORKFLOWS = "workflows.v1alpha1.argoproj.io"
SCOPE = Scope("prod", WORKFLOWS, "argo", "", "file:/changes.jsonl")
NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
SETTINGS = Settings(
    scope=SCOPE,
    resource=Resource("workflows", "v1alpha1", "argoproj.io"),
    selector=Selector(""),
    sink=Address("file", "/changes.jsonl"),
    checkpoint=Address("file", "/c"),
    window=timedelta(),
)


@pytest.fixture
def cluster() -> ModelCluster:
    cluster = ModelCluster()
    cluster.create("a")
    return cluster


def saved(cluster: ModelCluster, *, seconds: float = 60, **fields: object) -> Checkpoint:
    """A checkpoint of now, whose version was the present so many seconds ago."""
    then = (NOW - timedelta(seconds=seconds)).isoformat()
    known = Checkpoint(SCOPE, cluster.identity, version=cluster.version, saved_at=then, current_at=then)
    return msgspec.structs.replace(known, **fields)


def look(
    data: bytes | Checkpoint | None, cluster: ModelCluster | None, settings: Settings = SETTINGS
) -> dict[str, Check]:
    content = codec.encode(data) if isinstance(data, Checkpoint) else data
    source = ModelSource(cluster) if cluster else None
    return {check.what: check for check in checkpoint(settings, MemoryStore(content), source, lambda: NOW)}


def failed(found: dict[str, Check]) -> list[str]:
    return [what for what, check in found.items() if check.verdict is Verdict.FAIL]


class TestRead:
    """Whether it can be used at all."""

    def test_none_yet(self, cluster: ModelCluster) -> None:
        """What a first run does is said, as far as that is known."""
        cluster.create("b")
        skipping = msgspec_replace(initial=Initial.SKIP)
        some = msgspec_replace(selector=Selector("a=b"), scope=msgspec.structs.replace(SCOPE, selector="a=b"))

        assert look(None, cluster)["checkpoint"].found == "there is none yet: a first run publishes about 2 objects"
        assert "skips about 2" in look(None, cluster, skipping)["checkpoint"].found
        assert look(None, cluster, some)["checkpoint"].found.endswith("those of them that match --selector")
        assert look(None, None)["checkpoint"].found == "there is none yet"

    def test_a_cluster_that_goes_away_before_the_first_run(self, cluster: ModelCluster) -> None:
        """That is not the store's fault."""
        cluster.while_listed.append(go_away)

        found = look(None, cluster)

        assert found["checkpoint"] == Check.ok("checkpoint", "there is none yet")
        assert (found["first run"].verdict, failed(found)) == (Verdict.WARN, [])

    def test_the_starting_point_of_a_first_run(self, cluster: ModelCluster) -> None:
        """One that the server still has is fine; one that it has not, or not yet, is not."""
        version = cluster.version
        assert "starting point" not in look(None, cluster, msgspec_replace(resource_version=version))
        cluster.change("a")
        cluster.compact()

        gone = look(None, cluster, msgspec_replace(resource_version=version))
        ahead = look(None, cluster, msgspec_replace(resource_version=cluster.version + 1))

        assert failed(gone) == failed(ahead) == ["starting point"]
        assert "no longer has" in gone["starting point"].found
        assert "is in the future" in ahead["starting point"].found

    def test_what_it_knows_is_counted(self, cluster: ModelCluster) -> None:
        """Neither tombstones, nor what a listing has yet to tell; when it was saved may be unknown."""
        known = Known("argo", "a", 1)
        inventory = {"1": known, "2": replace(known, deleted=True), "3": replace(known, told=False)}

        found = look(saved(cluster, inventory=inventory, saved_at=""), None)["checkpoint"].found

        assert "1 objects, saved nobody knows when" in found

    def test_one_without_its_inventory(self, cluster: ModelCluster) -> None:
        """Zero objects would be a lie (R20)."""
        check = look(saved(cluster, whole=False), cluster)["checkpoint"]

        assert (check.verdict, "without its inventory" in check.found) == (Verdict.WARN, True)

    @pytest.mark.parametrize("data", [b"", b"no gzip", gzip.compress(b"{}")])
    def test_one_that_cannot_be_read(self, cluster: ModelCluster, data: bytes) -> None:
        """It is never taken for none."""
        assert failed(look(data, cluster)) == ["checkpoint"]

    def test_a_store_that_does_not_answer(self, cluster: ModelCluster) -> None:
        """It was well a moment ago, when its own checks were made."""
        store = MemoryStore()
        store.unreachable = True
        (check,) = checkpoint(SETTINGS, store, ModelSource(cluster), lambda: NOW)

        assert (check.verdict, check.found) == (Verdict.FAIL, "the store cannot be reached")

    def test_a_starting_point_is_for_a_first_run(self, cluster: ModelCluster) -> None:
        """A run would refuse it as a usage error."""
        found = look(saved(cluster), cluster, msgspec_replace(resource_version=7))

        assert failed(found) == ["starting point"]
        assert documented("starting point", found["starting point"])


def msgspec_replace(**fields: object) -> Settings:
    from dataclasses import replace

    return replace(SETTINGS, **fields)  # type: ignore[arg-type]


class TestScope:
    """For whom it is (R6)."""

    @pytest.mark.parametrize("name", Scope.__struct_fields__)
    def test_each_difference_is_named(self, cluster: ModelCluster, name: str) -> None:
        """With what both have."""
        theirs = msgspec.structs.replace(SCOPE, **{name: "other"})

        found = look(saved(cluster, scope=theirs), cluster)

        assert failed(found) == ["scope"]
        assert f"it belongs to {name} other, and this run has" in found["scope"].found
        assert "age" not in found

    def test_all_differences_are_named(self, cluster: ModelCluster) -> None:
        """Where a run tells the first of them."""
        theirs = msgspec.structs.replace(SCOPE, namespace="", selector="a=b")

        found = look(saved(cluster, scope=theirs), cluster)

        assert (
            "namespace all namespaces, and this run has argo; it belongs to selector a=b, and this run has (none)"
            in (found["scope"].found)
        )

    def test_another_cluster_of_this_name(self, cluster: ModelCluster) -> None:
        """Its kube-system namespace has another uid (R5)."""
        found = look(saved(cluster, identity=Identity("cluster-0", None)), cluster)

        assert failed(found) == ["identity"]
        assert documented("another cluster", found["identity"])


class TestAge:
    """Its age, against what the API server and etcd remember."""

    def test_one_that_can_be_watched_from(self, cluster: ModelCluster) -> None:
        """However old it is: the API server itself is asked."""
        found = look(saved(cluster, seconds=7200), cluster)

        assert found["age"].verdict is Verdict.OK
        assert "was the present 2 h ago: the API server still has what came after it" in found["age"].found

    @pytest.mark.parametrize("refusal", [Refusal.FRAME, Refusal.HTTP, Refusal.SILENT])
    def test_one_that_only_etcd_has(self, cluster: ModelCluster, refusal: Refusal) -> None:
        """That is no loss, in whichever form the API server refuses it."""
        old = saved(cluster)
        cluster.refusal = refusal
        cluster.change("a")
        cluster.expire()

        found = look(old, cluster)

        assert found["age"].verdict is Verdict.OK
        assert "the API server has forgotten it, and etcd still has it" in found["age"].found

    def test_one_that_is_too_old(self, cluster: ModelCluster) -> None:
        """Neither has it: the next run tells a gap, and goes on."""
        old = saved(cluster, seconds=4000)
        cluster.change("a")
        cluster.compact()

        found = look(old, cluster)

        assert failed(found) == []
        assert documented("too old", found["age"])

    def test_one_of_the_future(self, cluster: ModelCluster) -> None:
        """Some clock is wrong."""
        found = look(saved(cluster, seconds=-3600), cluster)

        assert documented("from the future", found["clocks"])
        assert "the present 0 s ago" in found["age"].found

    def test_one_of_the_future_and_of_another_cluster(self, cluster: ModelCluster) -> None:
        """The clock hides nothing else."""
        found = look(saved(cluster, seconds=-3600, identity=Identity("cluster-0", None)), cluster)

        assert failed(found) == ["identity"]

    def test_a_cluster_that_was_restored(self, cluster: ModelCluster) -> None:
        """Its version is above that of the cluster (R9)."""
        found = look(saved(cluster, version=cluster.version + 10), cluster)

        assert documented("restored cluster", found["age"])

    def test_a_definition_that_was_created_again(self, cluster: ModelCluster) -> None:
        """In the same cluster (R5)."""
        old = saved(cluster)
        cluster.recreate_definition()

        assert documented("new definition", look(old, cluster)["age"])

    def test_a_listing_that_was_interrupted(self, cluster: ModelCluster) -> None:
        """The next run lists again (R1)."""
        found = look(saved(cluster, version=0, listed=cluster.version), cluster)

        assert found["age"].verdict is Verdict.OK
        assert "the next one lists again" in found["age"].found

    def test_without_a_cluster_it_is_only_told(self, cluster: ModelCluster) -> None:
        """Nobody can be asked."""
        old = f"version {cluster.version} was the present 60 s ago"

        assert look(saved(cluster), None)["age"] == Check.ok("age", old)

    def test_one_that_was_never_the_present(self, cluster: ModelCluster) -> None:
        """It has no age."""
        assert look(saved(cluster, current_at=""), None)["age"] == Check.ok("age", "it has no age yet")

    def test_a_cluster_that_goes_away_meanwhile(self, cluster: ModelCluster) -> None:
        """A warning: it answered a moment ago."""
        cluster.while_listed.append(go_away)

        assert look(saved(cluster), cluster)["age"].verdict is Verdict.WARN


def go_away() -> None:
    from job.errors import Unavailable

    message = "the API server went away"
    raise Unavailable(message)


def records(gap: float, ages: list[tuple[float, str, str]], *, start: datetime = NOW) -> tuple[RunRecord, ...]:
    """Runs so many seconds apart: the age of the version of each, how it began, and how far it read back."""
    return tuple(
        RunRecord(
            run_id=str(number),
            started_at=(start + timedelta(seconds=gap * number)).isoformat(),
            seconds=5,
            start=begun,
            age_seconds=age,
            exit_code=0,
            published={},
            recovery=recovery,
        )
        for number, (age, begun, recovery) in enumerate(ages)
    )


class TestSchedule:
    """The last runs, against the horizons that they have seen."""

    def test_one_that_keeps_up(self) -> None:
        """Each run has resumed."""
        check = schedule(records(60, [(58.0, "resumed", "")] * 5))

        assert check == Check.ok("schedule", "5 runs, 60 s apart (median); 5 resumed, from versions of up to 58 s")

    def test_too_few_runs_say_nothing(self) -> None:
        """Which is said."""
        assert schedule(()).verdict is schedule(records(60, [(58.0, "resumed", "")] * 2)).verdict is Verdict.OK

    @pytest.mark.parametrize(
        ("number", "field", "value"),
        [
            (0, "started_at", ""),
            (1, "started_at", "yesterday"),
            (2, "started_at", "2026-11-27T12:00:00"),
            (3, "age_seconds", 1e300),
        ],
    )
    def test_records_that_make_no_sense(self, number: int, field: str, value: object) -> None:
        """The codec takes any text and any number for them, and a run does not look at them."""
        runs = list(records(60, [(58.0, "resumed", "")] * 4))
        runs[number] = replace(runs[number], **{field: value})

        assert schedule(runs).verdict is Verdict.WARN
        assert schedule(runs[number:][:1]).verdict is Verdict.OK

    def test_clocks_that_went_back(self) -> None:
        """Nothing is said of negative time."""
        runs = records(-60, [(-30.0, "resumed", "")] * 4)

        assert schedule(runs).found == "4 runs, 60 s apart (median); 4 resumed, from versions of up to 0 s"

    @pytest.mark.parametrize("recovery", ["", Recovery.REFUSED.value])
    def test_refusals_that_nothing_was_read_back_for(self, recovery: str) -> None:
        """As with --recover 0s."""
        check = schedule(records(240, [(235.0, Reason.EXPIRED.value, recovery)] * 4))

        assert (check.verdict, "4 of them lost history" in check.found) == (Verdict.WARN, True)

    def test_history_that_was_only_sampled(self) -> None:
        """A run announces that something may be missing, and so does this."""
        check = schedule(records(240, [(235.0, Reason.EXPIRED.value, Recovery.SAMPLED.value)] * 4))

        assert (check.verdict, "4 of them in samples" in check.found) == (Verdict.WARN, True)

    def test_advice_is_never_what_is_done_already(self) -> None:
        """Runs that are a minute apart are not told to start less than 75 s apart."""
        check = schedule(records(60, [(58.0, Reason.EXPIRED.value, Recovery.LATE.value)] * 5))

        assert check.remedy == "give them a longer --window or --recover"

    def test_an_outage_is_no_schedule(self) -> None:
        """One long pause among runs that keep up."""
        usual = [(58.0, "resumed", "")] * 9
        check = schedule(records(60, [*usual, (7200.0, Reason.EXPIRED.value, Recovery.COMPACTED.value), *usual]))

        assert check.verdict is Verdict.WARN
        assert check.found.endswith("no run had come so far for 2 h or more")
        assert check.remedy.startswith("look why runs were missing")

    def test_refusals_that_cost_nothing(self) -> None:
        """What the API server had forgotten was read back from etcd."""
        seen = [(230.0, Reason.EXPIRED.value, Recovery.COMPLETE.value), (100.0, "resumed", "")] * 3

        check = schedule(records(240, seen))

        assert check.verdict is Verdict.OK
        assert check.found.endswith("3 were refused, from 3 min 50 s on, and read the history back")

    def test_one_that_is_slower_than_the_history(self) -> None:
        """What etcd had forgotten, too, was lost: it is said from which age on, and what to do."""
        check = schedule(records(3600, [(3590.0, Reason.EXPIRED.value, Recovery.COMPACTED.value)] * 4))

        assert documented("slow schedule", check)

    def test_one_that_loses_without_being_slow(self) -> None:
        """The time for reading back did not suffice."""
        check = schedule(records(240, [(235.0, Reason.SILENT.value, Recovery.LATE.value)] * 4))

        assert documented("short recovery", check)

    def test_one_that_was_lucky(self) -> None:
        """Longer than etcd promises, although it has had the history so far."""
        check = schedule(records(400, [(395.0, Reason.EXPIRED.value, Recovery.COMPLETE.value)] * 4))

        assert documented("lucky schedule", check)

    def test_a_quiet_cluster_forgets_nothing(self) -> None:
        """An hour is no problem where no run was refused."""
        assert schedule(records(3600, [(3590.0, "resumed", "")] * 4)).verdict is Verdict.OK

    def test_only_the_last_ones_count(self) -> None:
        """An old schedule is not today's."""
        old = records(3600, [(3590.0, Reason.EXPIRED.value, Recovery.COMPACTED.value)] * 30)
        new = records(60, [(58.0, "resumed", "")] * 20, start=NOW + timedelta(days=3))

        assert schedule((*old, *new)).verdict is Verdict.OK

    def test_it_is_asked_of_the_checkpoint(self, cluster: ModelCluster) -> None:
        """Which keeps a record of each run."""
        runs = records(60, [(58.0, "resumed", "")] * 4)

        assert look(saved(cluster, runs=runs), cluster)["schedule"].found.startswith("4 runs, 60 s apart")


class TestParts:
    """How the parts come together."""

    def ports(self, cluster: ModelCluster, store: MemoryStore | None = None) -> Ports:
        return Ports(ModelSource(cluster), MemorySink(), store or MemoryStore())

    def test_they_come_one_after_the_other(self, cluster: ModelCluster) -> None:
        """The cluster, the sink, the store, the checkpoint."""
        found = [check.what for check in examine(SETTINGS, self.ports(cluster), Brief())]

        assert found == ["namespace", "sink", "store", "checkpoint"]

    def test_what_two_of_them_say_is_said_once(self, cluster: ModelCluster) -> None:
        """As a sink and its dead letters, with the same credentials."""
        ports = Ports(ModelSource(cluster), MemorySink(), MemoryStore(), MemorySink())

        assert [check.what for check in examine(SETTINGS, ports, Brief())].count("sink") == 1

    def test_a_cluster_that_fails_is_not_asked_about_the_checkpoint(self, cluster: ModelCluster) -> None:
        """What the checkpoint says itself is told."""
        store = MemoryStore(codec.encode(saved(cluster)))
        cluster.namespace_exists = False
        asked = len(cluster.lists)

        found = [check.what for check in examine(SETTINGS, self.ports(cluster, store), Brief(), now=lambda: NOW)]

        assert found == ["namespace", "sink", "store", "checkpoint", "scope", "age", "schedule"]
        assert len(cluster.lists) == asked

    def test_a_store_that_fails_is_not_read(self, cluster: ModelCluster) -> None:
        """One line says so."""
        store = MemoryStore()
        store.unreachable = True

        assert [check.what for check in examine(SETTINGS, self.ports(cluster, store), Brief())][-1] == "store"

    def test_what_hangs_is_left(self, cluster: ModelCluster) -> None:
        """What it has said by then is told, and the other parts are looked at."""
        sink = Hanging()

        found = list(examine(SETTINGS, Ports(ModelSource(cluster), sink, MemoryStore()), Brief(), part_seconds=3.0))
        sink.go_on()

        assert [(check.what, check.verdict) for check in found] == [
            ("namespace", Verdict.OK),
            ("sink", Verdict.OK),
            ("sink", Verdict.FAIL),
            ("store", Verdict.OK),
            ("checkpoint", Verdict.OK),
        ]
        assert documented("hanging part", found[2])

    def test_each_check_has_a_patience_of_its_own(self, cluster: ModelCluster) -> None:
        """A slow server that answers is asked to the end."""
        patience = Brief(60)
        left = []

        class Slow(MemorySink):
            def checks(self, timeout: float) -> Iterator[Check]:
                for number in range(3):
                    patience._until -= 50  # noqa: SLF001 - so long it has taken
                    left.append(patience.left())
                    yield Check.ok("sink", str(number))

        list(examine(SETTINGS, Ports(ModelSource(cluster), Slow(), MemoryStore()), patience))

        assert [round(each) for each in left] == [10, 10, 10]

    @pytest.mark.parametrize(("scheme", "least"), [("file", 0), ("pubsub", 20), ("gs", 20)])
    def test_google_s_credentials_are_waited_for(self, cluster: ModelCluster, scheme: str, least: float) -> None:
        """As long as a run waits for them in a young pod, and only once."""
        patience, left = Brief(), []

        class Sink(MemorySink):
            def checks(self, timeout: float) -> Iterator[Check]:
                left.append(patience.left())
                yield Check.ok("sink", "")

        settings = msgspec_replace(sink=Address(scheme, ""), dead_letter=Address("gs", "") if least else None)
        ports = Ports(ModelSource(cluster), Sink(), MemoryStore(), Sink() if least else None)

        list(examine(settings, ports, patience))

        assert least <= left[0] < least + 10
        assert all(each < 10 for each in left[1:])

    def test_a_bug_is_one(self, cluster: ModelCluster) -> None:
        """What no adapter has translated is not a finding."""
        with pytest.raises(ZeroDivisionError):
            list(examine(SETTINGS, Ports(ModelSource(cluster), Buggy(), MemoryStore()), Brief()))

    def test_a_patience_ends(self) -> None:
        """And begins anew."""
        from job.errors import OutOfTime

        patience = Brief(0.0)
        with pytest.raises(OutOfTime):
            patience.pause(1)
        assert patience.left() == 0
        patience = Brief(60)
        patience.pause(0.001)
        patience.renew()

        assert patience.left() > 59


class Hanging(MemorySink):
    """It says something, and then nothing more."""

    def checks(self, timeout: float) -> Iterator[Check]:
        import threading

        self._gone_on = threading.Event()
        yield Check.ok("sink", "begun")
        self._gone_on.wait()

    def go_on(self) -> None:
        self._gone_on.set()


class Buggy(MemorySink):
    def checks(self, timeout: float) -> Iterator[Check]:
        yield Check.ok("sink", str(1 / 0))
