"""Tests of what the benchmarks stand on. They measure nothing: that is `nox -s bench`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from job.credentials import GoogleCredentials
from job.message import Message
from job.ports import Event
from job.run.deadline import Deadline
from job.settings import parse_resource
from job.sinks.pubsub import PubSubSink
from job.sources.connection import from_pod
from job.sources.kubernetes import KubernetesSource
from tests.benchmarks import report
from tests.benchmarks.processes import pod_files
from tests.benchmarks.replay import BEGIN, Replay
from tests.benchmarks.rounds import Row
from tests.benchmarks.scenarios import Inventory, Relist
from tests.benchmarks.watchers import CURL, OURS, OURS_ORDERED

FRAMES = 3


@pytest.fixture
def replay(tmp_path: Path) -> Iterator[Replay]:
    corpus = tmp_path / "corpus.jsonl"
    with corpus.open("w") as file:
        for number in range(FRAMES):
            metadata = {
                "name": f"w-{number}",
                "namespace": "argo",
                "resourceVersion": f"{number + 1}",
                "uid": f"uid-{number}",
            }
            thing = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": metadata}
            print(json.dumps({"type": "MODIFIED", "object": thing}, separators=(",", ":")), file=file)
    with Replay(corpus, tmp_path / "replay") as server:
        yield server


def test_a_recording_is_replayed_as_often_as_asked(replay: Replay, tmp_path: Path) -> None:
    """Again and again, with versions that go on, until so many frames are sent; our own source reads them."""
    replay.begin(events=2 * FRAMES + 1)
    address = urlsplit(replay.api)
    environment = {"KUBERNETES_SERVICE_HOST": str(address.hostname), "KUBERNETES_SERVICE_PORT": str(address.port)}
    connection = from_pod(environment, pod_files(replay.ca_file, tmp_path / "pod"))
    resource = parse_resource("workflows.v1alpha1.argoproj.io")
    source = KubernetesSource(connection, resource, "", Deadline(timedelta(seconds=20)))

    frames = [source.decode(line) for block in source.watch(BEGIN, 3) for line in block]
    objects = [frame.object for frame in frames if isinstance(frame, Event)]

    assert [thing.version for thing in objects] == list(range(BEGIN + 1, BEGIN + 2 + 2 * FRAMES))
    assert [thing.name for thing in objects] == ["w-1", "w-2", "w-0", "w-1", "w-2", "w-0", "w-1"]
    assert all(json.loads(thing.data)["metadata"]["resourceVersion"] == str(thing.version) for thing in objects)
    assert replay.counts.watched


def test_the_sink_counts_what_is_published(replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests, messages and their bytes, from zero after each `begin`."""
    replay.begin(events=0)
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", replay.sink)
    sink = PubSubSink("projects/p/topics/t", GoogleCredentials(Deadline(timedelta(seconds=20))))
    sink.publish(0, [Message({"id": f"uid/{number}"}, b"{}", "argo/a") for number in range(5)], timeout=10)
    sink.publish(1, [Message({"id": "uid/5"}, b"{}", "argo/b")], timeout=10)

    counts = replay.counts
    assert (counts.requests, counts.messages) == (2, 6)
    assert counts.first <= counts.last
    replay.begin(events=0)
    assert replay.counts.messages == 0


def results(cpu_of_others: float) -> report.Results:
    """Everybody takes so much, and ours a millisecond."""

    def row(cpu: float) -> Row:
        return Row(cpu_per_event=cpu, rate=1 / cpu, first=cpu, quiet_cpu=cpu, quiet_peak=50_000_000, peak=80_000_000)

    rows = {
        (watcher.name, corpus): [row(0.001 if watcher in (OURS, OURS_ORDERED) else cpu_of_others)] * 3
        for watcher in report.ORDER
        for corpus in ("small", "big")
    }
    for corpus in ("small", "big"):
        rows[CURL.name, corpus] = [row(0.0005)] * 3
    return report.Results(
        rows,
        few=80_000_000,
        many=80_000_000,
        relists=[Relist(0.01, 1000, 1.0, 100_000)],
        walks=[4000.0],
        inventories=[Inventory(0.5, 90_000_000)],
    )


def test_a_bound_is_met_or_not() -> None:
    """All of them where the others take thirty times as much; those against others, where they take the same."""
    assert [bound.what for bound in report.bounds(results(0.03)) if not bound.met] == []
    missed = [bound.what for bound in report.bounds(results(0.001)) if not bound.met]

    assert missed
    assert all("against" in what for what in missed)
    assert all("**not met**" in line for line in list(report.bounds_table(report.bounds(results(0.001))))[2:3])


def test_the_page_keeps_what_stands_around_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the part between the marks is written anew, and the plot."""
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{report.BEGIN}old\n{report.END}after\n")
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "PLOT", tmp_path / "benchmarks.svg")
    measured = results(0.03)
    for _ in range(2):
        report.write(measured, list(report.bounds(measured)), "a machine")

    text = page.read_text()
    assert text.startswith(f"before\n{report.BEGIN}")
    assert text.endswith(f"{report.END}after\n")
    assert "old" not in text
    assert text.count("a machine") == 1
    assert (tmp_path / "benchmarks.svg").read_text().startswith("<?xml")
