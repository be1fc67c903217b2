"""Tests of the whole program where the broker refuses messages, and there is a place for them."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from job.errors import ExitCode
from tests.bed.cluster import Cluster
from tests.bed.waiting import wait_until
from tests.fakes.gcs_faults import LostResponse, Stall as Silence, writes
from tests.fakes.gcs_server import GcsServer
from tests.fakes.publisher_server import POISON, PublisherServer, holding
from tests.program import Program
from tests.wire.cloud import BUCKET, MENDED, TOO_LARGE, TOPIC, Cloud
from tests.wire.conftest import CreateMany
from tests.wire.told import SOON, id_of

LETTERS = "letters"
TO_BUCKET = f"--dead-letter=gs://{LETTERS}/prod/"


@pytest.fixture
def broker() -> Iterator[PublisherServer]:
    with PublisherServer(TOPIC) as server:
        yield server


@pytest.fixture
def cloud(program: Program, broker: PublisherServer, gcs: GcsServer, cluster: Cluster, namespace: str) -> Cloud:
    """After a first run, so that the next one resumes."""
    gcs.create_bucket(BUCKET)
    gcs.create_bucket(LETTERS)
    cloud = Cloud(program, broker, gcs)
    cluster.create(namespace, "old")
    assert cloud.run("--window=0s").code == ExitCode.DONE
    return cloud


def letters(gcs: GcsServer) -> dict[str, dict[str, Any]]:
    """The dead letters in the bucket, by the names of their objects."""
    return {name: json.loads(data) for (bucket, name), data in gcs.objects.items() if bucket == LETTERS}


def poisoned(cloud: Cloud) -> None:
    """Let the topic refuse every message that has the word in it."""
    cloud.broker.inject(POISON, times=None, on=holding(lambda message: b"poison" in message.data))


@pytest.mark.parametrize("who", ["we", "the-service"])
@pytest.mark.parametrize("sink", ["pubsub://p/changes", "pubsub://p/changes?ordering=1"], ids=["8-lanes", "1-key"])
def test_one_refused_message_in_a_hundred_is_kept_and_ninety_nine_are_stored(
    *, cloud: Cloud, gcs: GcsServer, create_many: CreateMany, cluster: Cluster, namespace: str, who: str, sink: str
) -> None:
    """P1: exit code 0, one dead letter named by its id, and everything else in the topic, what follows it too."""
    created = create_many(namespace, 98)
    options = ("--window=0s", "--payload=summary") if who == "we" else ("--window=0s",)
    bad = cluster.create(namespace, "bad", status=TOO_LARGE if who == "we" else {"message": "poison"})
    created.append(cluster.patch(namespace, "bad", {"status": MENDED}))
    poisoned(cloud)
    outcome = cloud.run(*options, TO_BUCKET, sink=sink)

    assert (outcome.code, outcome.summary["saved"]) == (ExitCode.DONE, True)
    assert sorted(cloud.told[1:]) == sorted(id_of(thing) for thing in created)
    assert len(created) == 99
    ((name, letter),) = letters(gcs).items()
    assert name == f"prod/{id_of(bad)}.json"
    assert (letter["id"], letter["refusedby"]) == (id_of(bad), "pubsub://p/changes")
    assert "refused" in letter["refusal"] or "cannot take" in letter["refusal"]
    assert letter["data"]["metadata"]["name"] == "bad"
    assert outcome.summary["published"]["dead-lettered"] == 1
    assert [line["id"] for line in outcome.lines if line["event"] == "message.refused"] == [id_of(bad)]
    assert cloud.run(*options, TO_BUCKET).summary["published"] == {}


def test_any_sink_may_keep_dead_letters(cloud: Cloud, cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    """A file has one line for each."""
    bad = cluster.create(namespace, "bad", status={"message": "poison"})
    good = cluster.create(namespace, "good")
    poisoned(cloud)
    outcome = cloud.run("--window=0s", f"--dead-letter=file:{tmp_path}/letters.jsonl")

    assert (outcome.code, cloud.told[1:]) == (ExitCode.DONE, [id_of(good)])
    assert [json.loads(line)["id"] for line in (tmp_path / "letters.jsonl").read_bytes().splitlines()] == [id_of(bad)]


def test_what_cannot_be_kept_is_not_gone_past(cloud: Cloud, gcs: GcsServer, cluster: Cluster, namespace: str) -> None:
    """P2: 78, and the version stays before it; once there is a place, the next run goes on."""
    before = cloud.saved
    bad = cluster.create(namespace, "bad", status={"message": "poison"})
    good = cluster.create(namespace, "good")
    poisoned(cloud)
    outcome = cloud.run("--window=0s", "--dead-letter=gs://nowhere/prod/")
    after = cloud.saved
    later = cloud.run("--window=0s", TO_BUCKET)

    assert outcome.code == ExitCode.ACTION_NEEDED
    assert "gs://nowhere/prod/" in outcome.summary["message"]
    assert id_of(bad) in outcome.summary["message"]
    assert after.version < int(bad["metadata"]["resourceVersion"])
    assert before.version <= after.version
    assert later.code == ExitCode.DONE
    assert (set(cloud.told[1:]), len(letters(gcs))) == ({id_of(good)}, 1)


def test_r14_a_broken_topic_fills_no_bucket(cloud: Cloud, gcs: GcsServer, cluster: Cluster, namespace: str) -> None:
    """Every message of a batch refused singly: 78, none of them is kept, and nothing is lost."""
    created = [cluster.create(namespace, f"w-{number}") for number in range(20)]
    poison = cloud.broker.inject(POISON, times=None)
    outcome = cloud.run("--window=0s", TO_BUCKET, sink="pubsub://p/changes?ordering=1")
    poison.withdraw()
    later = cloud.run("--window=0s", TO_BUCKET, sink="pubsub://p/changes?ordering=1")

    assert outcome.code == ExitCode.ACTION_NEEDED
    assert "it is the sink that must be mended" in outcome.summary["message"]
    kept = {letter["id"] for letter in letters(gcs).values()}
    assert len(kept) <= 1  # a batch of one cannot tell
    assert (later.code, {*cloud.told[1:], *kept}) == (ExitCode.DONE, {id_of(thing) for thing in created})


def test_a_run_that_is_killed_behind_a_dead_letter_keeps_it_once(
    cloud: Cloud, gcs: GcsServer, cluster: Cluster, namespace: str
) -> None:
    """Written, but its answer never came: the next run finds it there, which is as good."""
    bad = cluster.create(namespace, "bad", status={"message": "poison"})
    poisoned(cloud)
    silent = gcs.inject(Silence(), on=writes(f"prod/{id_of(bad)}.json"))
    with cloud.start("--window=60s", TO_BUCKET) as running:
        wait_until(lambda: silent.fired > 0, SOON, "the dead letter to be written")
        running.send(signal.SIGKILL)
    silent.withdraw()
    outcome = cloud.run("--window=0s", TO_BUCKET)

    assert outcome.code == ExitCode.DONE
    assert [letter["id"] for letter in letters(gcs).values()] == [id_of(bad)]
    assert cloud.saved.version >= int(bad["metadata"]["resourceVersion"])


def test_a_lost_answer_is_not_a_lost_letter(cloud: Cloud, gcs: GcsServer, cluster: Cluster, namespace: str) -> None:
    """The object was made, and the connection broke: asked again, it is there."""
    bad = cluster.create(namespace, "bad", status={"message": "poison"})
    poisoned(cloud)
    lost = gcs.inject(LostResponse(), on=writes(f"prod/{id_of(bad)}.json"))
    outcome = cloud.run("--window=0s", TO_BUCKET)

    assert (lost.fired, outcome.code, len(letters(gcs))) == (1, ExitCode.DONE, 1)


def test_a_dead_letter_is_redacted(cloud: Cloud, gcs: GcsServer, cluster: Cluster, namespace: str) -> None:
    """Nothing leaves as it was: neither to the topic, nor to the dead letters, nor to the log."""
    parameters = {"arguments": {"parameters": [{"name": "db-password", "value": "hunter2"}]}}
    cluster.create(namespace, "good", spec=parameters)
    cluster.create(namespace, "bad", spec=parameters, status={"message": "poison"})
    poisoned(cloud)
    outcome = cloud.run("--window=0s", TO_BUCKET, "--redact=*PASSWORD*")

    (letter,) = letters(gcs).values()
    assert outcome.code == ExitCode.DONE
    assert letter["data"]["spec"]["arguments"]["parameters"] == [{"name": "db-password", "value": "REDACTED"}]
    assert b'"db-password","value":"REDACTED"' in cloud.broker.stored[-1].data
    assert b"hunter2" not in b"".join([*(message.data for message in cloud.broker.stored[1:]), *gcs.objects.values()])
    assert "hunter2" not in outcome.stderr
