"""Tests of the whole program with Pub/Sub and Cloud Storage, when these do what the emulators never do."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import grpc
import pytest

from job.errors import ExitCode
from tests.bed.cluster import Cluster
from tests.bed.waiting import wait_until
from tests.fakes.gcs_faults import (
    RATE_LIMITED,
    UNAVAILABLE,
    Fault as StoreFault,
    LostResponse,
    Moment,
    Stall as Silence,
    reads,
    writes,
)
from tests.fakes.gcs_server import GcsServer
from tests.fakes.publisher_server import (
    PERMISSION_DENIED,
    POISON,
    UNAVAILABLE as BROKER_UNAVAILABLE,
    PublisherServer,
    Stall,
    Status,
    holding,
)
from tests.program import Program
from tests.wire.cloud import BUCKET, MENDED, NAME, TOO_LARGE, TOPIC, Cloud
from tests.wire.conftest import CreateMany
from tests.wire.told import SOON, Log, id_of

SLOW = 12.0
"""Seconds: more than one request to the sink may take."""
LONGER_THAN_BETWEEN_SAVES = timedelta(seconds=30)


@pytest.fixture
def broker() -> Iterator[PublisherServer]:
    with PublisherServer(TOPIC) as server:
        yield server


@pytest.fixture
def cloud(program: Program, broker: PublisherServer, gcs: GcsServer) -> Cloud:
    gcs.create_bucket(BUCKET)
    return Cloud(program, broker, gcs)


@pytest.fixture
def resumable(cloud: Cloud, cluster: Cluster, namespace: str) -> Cloud:
    """After a first run, so that the next one resumes."""
    cluster.create(namespace, "old")
    assert cloud.run("--window=0s").code == ExitCode.DONE
    return cloud


def test_with_the_least_rights_a_first_run_begins_and_the_next_resumes(
    cloud: Cloud, gcs: GcsServer, cluster: Cluster, namespace: str
) -> None:
    """get, create and delete on the object suffice, and nothing else is asked for."""
    gcs.denied.update({"storage.objects.list", "storage.buckets.get"})
    first = cluster.create(namespace, "first")
    started = cloud.run("--window=0s")
    second = cluster.create(namespace, "second")
    resumed = cloud.run("--window=0s")

    assert (started.code, started.summary["start"]) == (0, "first")
    assert (resumed.code, resumed.summary["start"]) == (0, "resumed")
    assert cloud.told == [id_of(first), id_of(second)]
    assert {request.name for request in gcs.requests} == {NAME}


@pytest.mark.parametrize("fault", [LostResponse(), Silence(Moment.AFTER)], ids=["closed", "silent"])
def test_r13_a_save_whose_answer_is_lost_has_happened(
    resumable: Cloud, gcs: GcsServer, cluster: Cluster, namespace: str, fault: StoreFault
) -> None:
    """The run finds its own bytes, ends with 0 and says that it saved; the next one resumes from there."""
    second = cluster.create(namespace, "second")
    lost = gcs.inject(on=writes(), fault=fault)
    outcome = resumable.run("--window=0s")
    third = cluster.create(namespace, "third")
    later = resumable.run("--window=0s")

    assert (lost.fired, outcome.code, outcome.summary["saved"]) == (1, 0, True)
    assert (later.code, later.summary["start"]) == (0, "resumed")
    assert resumable.told[1:] == [id_of(second), id_of(third)]


@pytest.mark.parametrize("fault", [RATE_LIMITED, UNAVAILABLE], ids=["429", "503"])
def test_a_save_that_fails_is_tried_again(
    resumable: Cloud, gcs: GcsServer, cluster: Cluster, namespace: str, fault: StoreFault
) -> None:
    """Twice refused for the moment, the third attempt saves."""
    second = cluster.create(namespace, "second")
    failed = gcs.inject(on=writes(), fault=fault, times=2)
    outcome = resumable.run("--window=0s")

    assert (failed.fired, outcome.code, outcome.summary["saved"]) == (2, 0, True)
    assert id_of(second) in {f"{uid}/{entry.version}" for uid, entry in resumable.saved.inventory.items()}


def test_a_store_that_cannot_be_written_costs_a_repeat(
    resumable: Cloud, gcs: GcsServer, cluster: Cluster, namespace: str
) -> None:
    """75; the checkpoint stays, and the next run publishes the same under the same ids."""
    before = resumable.generation
    second = cluster.create(namespace, "second")
    failed = gcs.inject(on=writes(), fault=UNAVAILABLE, times=None)
    outcome = resumable.run("--window=0s")
    stayed = resumable.generation
    failed.withdraw()
    later = resumable.run("--window=0s")

    assert (outcome.code, outcome.summary["saved"], stayed) == (ExitCode.TEMPORARY, False, before)
    assert (later.code, later.summary["start"]) == (0, "resumed")
    assert resumable.told[1:] == [id_of(second), id_of(second)]


def test_a_store_that_is_away_at_the_start_is_waited_for(
    resumable: Cloud, gcs: GcsServer, cluster: Cluster, namespace: str
) -> None:
    """For some seconds; nothing is published before the checkpoint is there."""
    second = cluster.create(namespace, "second")
    gcs.inject(on=reads(), fault=UNAVAILABLE, times=2)
    gcs.down()
    with resumable.start("--window=0s") as running:
        log = Log(running)
        log.wait_for("store.retry")
        told = resumable.told[1:]
        gcs.up()
        outcome = log.finish()

    assert (outcome.code, outcome.summary["start"], told) == (0, "resumed", [])
    assert resumable.told[1:] == [id_of(second)]


def test_a_missing_bucket_is_for_a_person_before_anything_is_published(
    program: Program, broker: PublisherServer, gcs: GcsServer, cluster: Cluster, namespace: str
) -> None:
    """78, and no message: nothing could be saved."""
    cluster.create(namespace, "first")
    outcome = Cloud(program, broker, gcs).run("--window=0s")

    assert outcome.code == ExitCode.ACTION_NEEDED
    assert "bucket of gs://checkpoints/prod.json.gz does not exist" in outcome.summary["message"]
    assert broker.requests == []


def test_r13_of_two_runs_one_wins_and_the_other_stops(resumable: Cloud, cluster: Cluster, namespace: str) -> None:
    """The loser finds out with its next save, publishes nothing more, and exits 0 long before its window is over."""
    with resumable.start("--window=120s") as losing:
        before = cluster.create(namespace, "before")
        resumable.wait_for(before)
        losing.send(signal.SIGSTOP)  # it saves ten seconds after its start, and must not be the first
        winner = resumable.run("--window=0s")
        generation = resumable.generation
        cluster.create(namespace, "meanwhile")
        losing.send(signal.SIGCONT)
        loser = losing.finish(LONGER_THAN_BETWEEN_SAVES)
    asked = len(resumable.broker.requests)
    after = cluster.create(namespace, "after")
    later = resumable.run("--window=0s")

    assert (winner.code, winner.summary["saved"]) == (0, True)
    assert (loser.code, loser.summary["saved"]) == (0, False)
    assert f"run {winner.summary['run_id']} has moved the checkpoint" in loser.summary["message"]
    assert resumable.saved.run_id == later.summary["run_id"]
    assert generation < resumable.generation
    assert id_of(after) not in [
        message.attributes["ce-id"] for request in resumable.broker.requests[:asked] for message in request.content
    ]
    assert (later.code, later.summary["start"]) == (0, "resumed")
    assert id_of(after) in resumable.told


def test_r13_a_run_that_wakes_up_after_its_successor_changes_nothing(
    resumable: Cloud, cluster: Cluster, namespace: str
) -> None:
    """A run that was stopped in mid-watch and goes on later repeats at most what its successor told, and exits 0."""
    with resumable.start("--window=120s") as stopped:
        before = cluster.create(namespace, "before")
        resumable.wait_for(before)
        stopped.send(signal.SIGSTOP)
        meanwhile = cluster.create(namespace, "meanwhile")
        successor = resumable.run("--window=0s")
        saved, told = resumable.gcs.get(BUCKET, NAME), set(resumable.told)
        stopped.send(signal.SIGCONT)
        outcome = stopped.finish(LONGER_THAN_BETWEEN_SAVES)

    assert (successor.code, successor.summary["saved"]) == (0, True)
    assert {id_of(before), id_of(meanwhile)} < told
    assert (outcome.code, outcome.summary["saved"]) == (0, False)
    assert resumable.gcs.get(BUCKET, NAME) == saved
    assert set(resumable.told) == told


@pytest.mark.parametrize(
    ("fault", "code", "complaint"),
    [
        pytest.param(BROKER_UNAVAILABLE, ExitCode.TEMPORARY, "did not take", id="unavailable"),
        pytest.param(PERMISSION_DENIED, ExitCode.ACTION_NEEDED, "roles/pubsub.publisher", id="permission-denied"),
        pytest.param(
            Status(grpc.StatusCode.NOT_FOUND, "Resource not found (resource=changes)."),
            ExitCode.ACTION_NEEDED,
            "projects/p/topics/changes does not exist",
            id="topic-missing",
        ),
        pytest.param(
            Status(grpc.StatusCode.FAILED_PRECONDITION, "The KMS key is disabled."),
            ExitCode.ACTION_NEEDED,
            "The KMS key is disabled.",
            id="key-disabled",
        ),
        pytest.param(
            Status(grpc.StatusCode.UNAUTHENTICATED, "The credentials are no longer valid."),
            ExitCode.ACTION_NEEDED,
            "refused the credentials",
            id="unauthenticated",
        ),
    ],
)
@pytest.mark.parametrize("skip", [0, 3], ids=["from-the-start", "in-mid-run"])
def test_what_the_broker_does_not_take_is_published_by_the_next_run(
    *,
    resumable: Cloud,
    create_many: CreateMany,
    namespace: str,
    fault: Status,
    code: ExitCode,
    complaint: str,
    skip: int,
) -> None:
    """The exit code says who must act; the checkpoint is exactly at the acknowledged prefix; nothing is lost."""
    before = resumable.saved
    created = ordered(create_many(namespace, 40))
    failing = resumable.broker.inject(fault, times=None, skip=skip)
    outcome = resumable.run("--window=3s")
    prefix = resumable.is_at_the_acknowledged_prefix(before, created)
    failing.withdraw()
    later = resumable.run("--window=0s")

    assert outcome.code == code
    assert complaint in outcome.summary["message"]
    assert prefix
    assert (later.code, later.summary["start"]) == (0, "resumed")
    assert set(resumable.told[1:]) == {id_of(thing) for thing in created}


def test_a_broker_that_dies_in_mid_run_and_comes_back_costs_repeats_only(
    resumable: Cloud, cluster: Cluster, namespace: str
) -> None:
    """The run goes on trying, and ends with 0."""
    with resumable.start("--window=60s") as running:
        log = Log(running)
        first = cluster.create(namespace, "first")
        resumable.wait_for(first)
        resumable.broker.down()
        second = cluster.create(namespace, "second")
        log.wait_for("sink.retry")
        resumable.broker.up()
        resumable.wait_for(second)
        running.send(signal.SIGTERM)
        outcome = log.finish(SOON)

    assert (outcome.code, outcome.summary["saved"]) == (0, True)
    assert set(resumable.told[1:]) == {id_of(first), id_of(second)}
    assert f"{second['metadata']['uid']}" in resumable.saved.inventory


def test_a_broker_that_dies_in_mid_run_and_stays_away_loses_nothing(
    resumable: Cloud, cluster: Cluster, namespace: str
) -> None:
    """75 at the deadline, with what it had taken; the next run publishes the rest."""
    before = resumable.saved
    with resumable.start("--window=20s") as running:
        first = cluster.create(namespace, "first")
        resumable.wait_for(first)
        resumable.broker.down()
        second = cluster.create(namespace, "second")
        outcome = running.finish()
    prefix = resumable.is_at_the_acknowledged_prefix(before, [first, second])
    resumable.broker.up()
    later = resumable.run("--window=0s")

    assert (outcome.code, prefix) == (ExitCode.TEMPORARY, True)
    assert (later.code, resumable.told[1:]) == (0, [id_of(first), id_of(second)])


def test_a_broker_that_is_slower_than_the_time_out_costs_repeats_only(
    resumable: Cloud, cluster: Cluster, namespace: str
) -> None:
    """A request without an answer is repeated, under the same ids; the run ends with 0."""
    slow = resumable.broker.inject(Stall(SLOW, stored=True))
    created = cluster.create(namespace, "created")
    outcome = resumable.run("--window=4s")

    assert (slow.fired, outcome.code, outcome.summary["saved"]) == (1, 0, True)
    assert resumable.told[1:] == [id_of(created)] * 2
    assert resumable.broker.max_concurrency(by=lambda request: request.content[0].attributes["ce-subject"]) <= 2


@pytest.mark.parametrize("who", ["we", "the-service"])
@pytest.mark.parametrize("sink", ["pubsub://p/changes", "pubsub://p/changes?ordering=1"], ids=["8-lanes", "1-key"])
def test_one_refused_message_in_a_hundred_is_named_and_nothing_is_lost(
    *, resumable: Cloud, create_many: CreateMany, cluster: Cluster, namespace: str, who: str, sink: str
) -> None:
    """78, and the message's id; what stood before it is stored, and the next run goes on behind the prefix."""
    before = resumable.saved
    created = ordered(create_many(namespace, 100))
    name = created[50]["metadata"]["name"]
    options = ("--window=0s", "--payload=summary") if who == "we" else ("--window=0s",)
    created.append(cluster.patch(namespace, name, {"status": TOO_LARGE if who == "we" else {"message": "poison"}}))
    created += [cluster.create(namespace, f"x-{number}") for number in range(20)]
    poison = resumable.broker.inject(POISON, times=None, on=holding(lambda message: b"poison" in message.data))
    outcome = resumable.run(*options, sink=sink)
    told = set(resumable.told)
    prefix = resumable.is_at_the_acknowledged_prefix(before, created)
    poison.withdraw()
    mended = cluster.patch(namespace, name, {"status": MENDED})
    later = resumable.run(*options, sink=sink)

    assert outcome.code == ExitCode.ACTION_NEEDED
    assert id_of(created[100]) in outcome.summary["message"]
    assert id_of(created[100]) not in told
    assert prefix
    if "ordering" in sink:  # everything is in one lane, in order
        assert {id_of(thing) for thing in created[:100]} <= told
    if who == "we":
        assert later.code == ExitCode.ACTION_NEEDED
    else:
        assert later.code == 0
        assert {id_of(thing) for thing in [*created, mended]} < set(resumable.told)


def test_r14_a_topic_that_refuses_everything_is_to_be_mended(
    resumable: Cloud, cluster: Cluster, namespace: str
) -> None:
    """Every message of a batch refused singly: it is the topic, and no message is blamed for it."""
    before = resumable.saved
    # So large that several go into a request, and by no means all of them.
    created = [cluster.create(namespace, f"w-{number}", size_bytes=100_000) for number in range(30)]
    resumable.broker.inject(Stall(seconds=5))  # while the first message is under way, the others gather
    poison = resumable.broker.inject(POISON, times=None, skip=1)
    outcome = resumable.run("--window=0s", sink="pubsub://p/changes?ordering=1")
    prefix = resumable.is_at_the_acknowledged_prefix(before, created)
    poison.withdraw()
    later = resumable.run("--window=0s")

    assert outcome.code == ExitCode.ACTION_NEEDED
    assert "it is the sink that must be mended" in outcome.summary["message"]
    assert prefix
    assert (later.code, set(resumable.told[1:])) == (0, {id_of(thing) for thing in created})


def test_a_stuck_broker_does_not_keep_a_signalled_run(resumable: Cloud, cluster: Cluster, namespace: str) -> None:
    """SIGTERM: ten seconds for what is in flight, then the prefix is saved, within the grace of Kubernetes."""
    before = resumable.saved
    stuck = resumable.broker.inject(Stall(), times=None)
    with resumable.start("--window=60s") as running:
        created = cluster.create(namespace, "created")
        wait_until(lambda: stuck.fired > 0, SOON, "the request to be stuck")
        running.send(signal.SIGTERM)
        outcome = running.finish(timedelta(seconds=20))
    stuck.release()
    later = resumable.run("--window=0s")

    assert outcome.code == 0
    assert resumable.saved.version > before.version
    assert (later.code, id_of(created) in resumable.told) == (0, True)


def test_a_stuck_store_does_not_keep_a_signalled_run(
    resumable: Cloud, gcs: GcsServer, cluster: Cluster, namespace: str
) -> None:
    """SIGTERM while the checkpoint is being loaded ends the run at once, and nothing was done."""
    cluster.create(namespace, "second")
    before, asked = resumable.generation, len(resumable.broker.requests)
    stuck = gcs.inject(on=reads(), fault=Silence())
    with resumable.start("--window=60s") as running:
        gcs.wait_fired(stuck)
        running.send(signal.SIGTERM)
        outcome = running.finish(timedelta(seconds=8))  # less than any time-out of the program's own

    assert outcome.code == ExitCode.DONE
    assert (resumable.generation, len(resumable.broker.requests)) == (before, asked)


def test_a_store_that_hangs_at_the_end_does_not_keep_the_run(
    resumable: Cloud, gcs: GcsServer, cluster: Cluster, namespace: str
) -> None:
    """75 after the eight seconds that a save has; the next run repeats, and loses nothing."""
    second = cluster.create(namespace, "second")
    stuck = gcs.inject(on=writes(), fault=Silence(), times=None)
    outcome = resumable.run("--window=0s")
    stuck.withdraw()
    later = resumable.run("--window=0s")

    assert (outcome.code, outcome.summary["saved"]) == (ExitCode.TEMPORARY, False)
    assert (later.code, resumable.told[1:]) == (0, [id_of(second)] * 2)


def test_a_run_in_which_nothing_changes_does_not_load_the_client_of_the_broker(resumable: Cloud) -> None:
    """Most runs of a quiet night go without; gRPC alone comes with Cloud Storage's client."""
    quiet = resumable.run("--window=0s", PYTHONPROFILEIMPORTTIME="1")

    imported = {line.rpartition("|")[2].strip() for line in quiet.stderr.splitlines()}
    assert quiet.code == 0
    assert "google.cloud.storage" in imported
    assert "google.pubsub_v1" not in imported


def ordered(created: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By version: threads have created them."""
    return sorted(created, key=lambda thing: int(thing["metadata"]["resourceVersion"]))
