"""Tests of the whole program with every store outside of a disk: killed in the middle, and when the store fails."""

from __future__ import annotations

import itertools
import signal
import uuid
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import pytest

from job import checkpoint as codec
from job.change import Known
from job.checkpoint import Checkpoint
from job.errors import ExitCode
from job.run.commit import NEARLY
from job.stores.configmap import KEY, MOST_BYTES
from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.bed.valkey import Valkey
from tests.bed.waiting import wait_until
from tests.fakes.gcs_server import GcsServer
from tests.program import Outcome, Program, Running
from tests.wire.conftest import CreateMany
from tests.wire.told import SOON, Log, SinkFile, gaps, id_of, ids, same_data_under_one_id

NAME = "workflow-watcher"
BUCKET = "checkpoints"
_keys = (f"runs/{number}" for number in itertools.count(1))


class Place(Protocol):
    """Where the checkpoint is kept."""

    option: str
    environment: dict[str, str]

    @property
    def data(self) -> bytes | None:
        """What is there."""


@dataclass
class ConfigMap:
    """A ConfigMap in the namespace of the test."""

    cluster: Cluster
    namespace: str

    def __post_init__(self) -> None:
        self.environment: dict[str, str] = {}
        self.option = f"--checkpoint=configmap://{self.namespace}/{NAME}"
        self._collection = f"/api/v1/namespaces/{self.namespace}/configmaps"
        self.cluster.request("POST", self._collection, {"metadata": {"name": NAME}})

    @property
    def data(self) -> bytes | None:
        found = self.cluster.request("GET", f"{self._collection}/{NAME}").get("binaryData", {}).get(KEY)
        return None if found is None else b64decode(found)

    @property
    def saved(self) -> Checkpoint:
        assert self.data
        return codec.decode(self.data)

    def patch(self, **change: object) -> None:
        """Somebody else writes."""
        self.cluster.request("PATCH", f"{self._collection}/{NAME}", change, content_type="application/merge-patch+json")

    def put(self, checkpoint: Checkpoint) -> None:
        """Somebody else writes the checkpoint."""
        self.patch(binaryData={KEY: b64encode(codec.encode(checkpoint)).decode()})


@dataclass
class Redis:
    """A key of a server."""

    server: Valkey

    def __post_init__(self) -> None:
        self.environment: dict[str, str] = {}
        self._key = next(_keys)
        self.option = f"--checkpoint={self.server.url(self._key)}"

    @property
    def data(self) -> bytes | None:
        with self.server.client() as client:
            found = client.get(self._key)
        assert found is None or isinstance(found, bytes)
        return found


@dataclass
class Gcs:
    """An object."""

    server: GcsServer

    def __post_init__(self) -> None:
        self.server.create_bucket(BUCKET)
        self.environment = {"STORAGE_EMULATOR_HOST": self.server.url}
        self.option = f"--checkpoint=gs://{BUCKET}/{NAME}"

    @property
    def data(self) -> bytes | None:
        return self.server.get(BUCKET, NAME)


@pytest.fixture
def config_map(cluster: Cluster, namespace: str) -> ConfigMap:
    return ConfigMap(cluster, namespace)


@pytest.fixture
def redis(valkey: Valkey) -> Redis:
    return Redis(valkey)


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """For a test that kills it."""
    with Valkey(tmp_path) as server:
        yield server


@pytest.fixture(params=["configmap", "redis", "gs"])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "gs":
        return Gcs(request.getfixturevalue("gcs"))
    found: Place = request.getfixturevalue("config_map" if request.param == "configmap" else "redis")
    return found


def start(program: Program, place: Place, sink_file: SinkFile, *options: str) -> Running:
    return program.start(place.option, sink_file.option, *options, environment=place.environment)


def run(program: Program, place: Place, sink_file: SinkFile, *options: str) -> Outcome:
    with start(program, place, sink_file, *options or ["--window=0s"]) as running:
        return running.finish()


def test_p1_a_run_that_is_killed_in_the_middle_loses_nothing(
    *, program: Program, cluster: Cluster, namespace: str, place: Place, sink_file: SinkFile, create_many: CreateMany
) -> None:
    """After a kill -9 the next run goes on from the last save, which was not ahead of the sink, and tells the rest."""
    first = cluster.create(namespace, "first")
    began = run(program, place, sink_file)
    before = place.data
    with start(program, place, sink_file, "--window=100s") as running:
        created = create_many(namespace, 10)
        wait_until(lambda: place.data != before, SOON, "a save in the middle of the run")
        created += [cluster.create(namespace, f"later-{number}") for number in range(10)]
        sink_file.wait_for_id(created[-1])
        running.send(signal.SIGKILL)
        running.process.wait()
    assert place.data
    killed = codec.decode(place.data)
    told = {message["id"] for message in sink_file.messages}
    cluster.delete(namespace, "first")
    resumed = run(program, place, sink_file)

    saved = [each for each in (first, *created) if int(each["metadata"]["resourceVersion"]) <= killed.version]
    assert {id_of(each) for each in saved} <= told
    assert len(saved) > 1
    assert (began.code, resumed.code, resumed.summary["start"]) == (0, 0, "resumed")
    assert resumed.summary["from"] == str(killed.version)
    told = set(ids(sink_file.messages))
    assert told == {id_of(first), f"{first['metadata']['uid']}/deleted", *map(id_of, created)}
    assert same_data_under_one_id(sink_file)
    assert gaps(sink_file.messages) == []


def test_r13_of_two_runs_one_wins_and_the_other_stops(
    program: Program, cluster: Cluster, namespace: str, place: Place, sink_file: SinkFile
) -> None:
    """The loser exits 0, and changes nothing."""
    run(program, place, sink_file)
    with start(program, place, sink_file, "--window=60s") as losing:
        created = cluster.create(namespace, "a")
        sink_file.wait_for_id(created)
        losing.send(signal.SIGSTOP)  # however long the winner takes, this one does not save before it
        winner = run(program, place, sink_file)
        saved = place.data
        losing.send(signal.SIGCONT)
        losing.send(signal.SIGTERM)
        loser = losing.finish()

    assert (winner.code, winner.summary["saved"]) == (0, True)
    assert (loser.code, loser.summary["saved"]) == (0, False)
    assert f"run {winner.summary['run_id']} has moved the checkpoint" in loser.summary["message"]
    assert place.data == saved


def test_a_config_map_that_somebody_else_labels_is_saved_all_the_same(
    program: Program, cluster: Cluster, namespace: str, config_map: ConfigMap, sink_file: SinkFile
) -> None:
    """It has another version then, and still the value that is replaced."""
    run(program, config_map, sink_file)
    with start(program, config_map, sink_file, "--window=60s") as running:
        created = cluster.create(namespace, "a")
        sink_file.wait_for_id(created)
        config_map.patch(metadata={"labels": {"a": "b"}})
        running.send(signal.SIGTERM)
        outcome = running.finish()

    assert (outcome.code, outcome.summary["saved"]) == (0, True)
    assert created["metadata"]["uid"] in config_map.saved.inventory


def test_a_missing_config_map_is_for_a_person(
    program: Program, cluster: Cluster, namespace: str, sink_file: SinkFile
) -> None:
    """78, and nothing is published: nothing could be saved."""
    cluster.create(namespace, "a")
    outcome = program.run(f"--checkpoint=configmap://{namespace}/{NAME}", sink_file.option, "--window=0s")

    assert outcome.code == ExitCode.ACTION_NEEDED
    assert f"kubectl create configmap -n {namespace} {NAME}" in outcome.summary["message"]
    assert sink_file.messages == []


def test_a_config_map_that_is_nearly_full_is_told_before_it_bites(
    program: Program, cluster: Cluster, namespace: str, config_map: ConfigMap, sink_file: SinkFile
) -> None:
    """Each run says how many bytes there are; when they are too many the inventory is left out, and read back."""
    first = cluster.create(namespace, "first")
    run(program, config_map, sink_file)
    config_map.put(filled(config_map.saved, NEARLY * MOST_BYTES))
    warned = run(program, config_map, sink_file)
    config_map.put(filled(config_map.saved, MOST_BYTES - 1000))
    cluster.create(namespace, "w")
    for number in range(60):
        cluster.create(namespace, f"w-{number}")
    left_out = run(program, config_map, sink_file)
    without = config_map.saved
    cluster.delete(namespace, "first")
    changed = cluster.patch(namespace, "w", {"metadata": {"labels": {"a": "b"}}})
    told = len(sink_file.messages)
    after = run(program, config_map, sink_file)

    assert [outcome.code for outcome in (warned, left_out, after)] == [0, 0, 0]
    assert "use another store before the inventory must be left out" in warned.summary["message"]
    assert "the inventory was left out" in left_out.summary["message"]
    assert "store.full" in [line["event"] for line in left_out.lines]
    assert (without.whole, without.inventory, left_out.summary["saved"]) == (False, {}, True)
    assert ids(sink_file.messages[told:]) == [f"{first['metadata']['uid']}/deleted", id_of(changed)]
    assert (after.summary["start"], after.summary["gaps"]) == ("resumed", [])
    assert (config_map.saved.whole, len(config_map.saved.inventory)) == (True, 61)


def test_p4_an_inventory_that_cannot_be_read_back_is_a_gap(
    own_control_plane: ControlPlane, tmp_path: Path, sink_file: SinkFile
) -> None:
    """Left out, and compacted before the next run: everything is told again, after a gap message that says so."""
    program = Program(own_control_plane.kubeconfig(namespace="argo"), tmp_path)
    with own_control_plane.cluster() as cluster:
        place = ConfigMap(cluster, "argo")
        for name in ("stays", "goes"):
            cluster.create("argo", name)
        run(program, place, sink_file)
        place.put(msgspec.structs.replace(place.saved, inventory={}, whole=False))
        cluster.delete("argo", "goes")
        stays = cluster.get("argo", "stays")
        own_control_plane.compact(restart=True)
        told = len(sink_file.messages)
        outcome = run(program, place, sink_file)

    (gap,) = gaps(sink_file.messages[told:])
    assert (outcome.code, outcome.summary["start"]) == (0, "forgotten")
    assert (gap["reason"], gap["missing"]) == ("forgotten", "all")
    assert ids(sink_file.messages[told:]) == [id_of(stays)]


def filled(saved: Checkpoint, size: float) -> Checkpoint:
    """The same with as many entries as make so many bytes; a run never meets their objects."""
    entries = {str(uuid.uuid4()): Known("elsewhere", f"w{number}", 1) for number in range(40_000)}
    low, high = 0, len(entries)
    while low < high - 1:
        middle = (low + high) // 2
        made = _with(saved, entries, middle)
        low, high = (low, middle) if len(codec.encode(made)) > size else (middle, high)
    return _with(saved, entries, high if size < MOST_BYTES * NEARLY + 1 else low)


def _with(saved: Checkpoint, entries: dict[str, Known], count: int) -> Checkpoint:
    some = dict(itertools.islice(entries.items(), count))
    kept = {uid: known for uid, known in saved.inventory.items() if known.namespace != "elsewhere"}
    return msgspec.structs.replace(saved, inventory=some | kept)


def test_a_redis_that_restarts_costs_nothing(
    program: Program, cluster: Cluster, namespace: str, own_valkey: Valkey, sink_file: SinkFile
) -> None:
    """Killed in the middle of a run and back before its end: the run saves, and ends with 0."""
    place = Redis(own_valkey)
    run(program, place, sink_file)
    with start(program, place, sink_file, "--window=60s") as running:
        log = Log(running)
        created = cluster.create(namespace, "a")
        sink_file.wait_for_id(created)
        own_valkey.kill()
        running.send(signal.SIGTERM)
        log.wait_for("store.retry", SOON)
        own_valkey.start()
        outcome = log.finish()
    later = run(program, place, sink_file)

    assert (outcome.code, outcome.summary["saved"]) == (0, True)
    assert (later.code, later.summary["start"], ids(sink_file.messages)) == (0, "resumed", [id_of(created)])


def test_a_redis_that_stays_away_costs_a_repeat(
    program: Program, cluster: Cluster, namespace: str, own_valkey: Valkey, sink_file: SinkFile
) -> None:
    """75, at its end as at its start; the next run goes on from what is on disk, and repeats."""
    place = Redis(own_valkey)
    run(program, place, sink_file)
    with start(program, place, sink_file, "--window=60s") as running:
        created = cluster.create(namespace, "a")
        sink_file.wait_for_id(created)
        own_valkey.kill()
        running.send(signal.SIGTERM)
        ended = running.finish()
    away = run(program, place, sink_file)
    told = len(sink_file.messages)
    own_valkey.start()
    later = run(program, place, sink_file)

    assert (ended.code, ended.summary["saved"], away.code, told) == (ExitCode.TEMPORARY, False, ExitCode.TEMPORARY, 1)
    assert (later.code, later.summary["start"], ids(sink_file.messages)) == (0, "resumed", [id_of(created)] * 2)
