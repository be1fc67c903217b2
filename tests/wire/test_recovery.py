"""Tests of the history that the API server has forgotten and etcd has not: it is told as a watch would have (R11)."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import groupby, islice
from pathlib import Path

import pytest

from job.change import Known
from job.checkpoint import Checkpoint
from tests.bed.api import Json
from tests.bed.cluster import Cluster, workflows_path
from tests.bed.control_plane import ControlPlane
from tests.fakes.api_faults import (
    EXPIRED_LIST,
    EXPIRED_WATCH,
    TOO_MANY_REQUESTS,
    Answer,
    Delay,
    ErrorFrame,
    Hook,
    Matcher,
    SilentClose,
    Stall,
    counts,
    exact,
    forbidden,
    refusal,
    watches,
)
from tests.fakes.api_proxy import ApiProxy
from tests.history.scene import Watched, under_load
from tests.history.truth import wrong_ends
from tests.program import Program, Running
from tests.wire.conftest import CreateMany
from tests.wire.told import (
    SOON,
    Log,
    Message,
    SinkFile,
    changes,
    edit_checkpoint,
    gaps,
    id_of,
    ids,
    last_states,
    same_data_under_one_id,
    unsaved,
)

PIECE = 1_000
"""Versions that are read before any of them is told."""
PATIENT = {"WATCHER_RECOVER": "100s"}
"""More than any machine needs. Who needs less does not wait for it."""
BUSY = refusal(429, "TooManyRequests", "Too many requests, please try again later.", retry_after=1)
TIMED_OUT = refusal(504, "Timeout", "request did not complete within the allotted timeout")
EXPIRED_AFTER_TWO = ErrorFrame(410, "Expired", "too old resource version: 294 (321)", after_frames=2)
Witness = Callable[..., list[bytes]]


@pytest.fixture(autouse=True)
def patient(program: Program, proxied: Program) -> None:
    """Give every run the time to read history back, but where a test says otherwise."""
    for each in (program, proxied):
        each.environment.update(PATIENT)


@pytest.fixture(scope="module")
def other_api(control_plane: ControlPlane) -> Iterator[str]:
    """An API server beside the first one, that has forgotten nothing since."""
    with control_plane.another_api() as url:
        yield url


@pytest.fixture
def witnessed(control_plane: ControlPlane, namespace: str, other_api: str, tmp_path: Path) -> Witness:
    """What the same job tells, from the same checkpoint, where nothing is forgotten; but for the provenance."""
    other = Program(control_plane.kubeconfig(namespace=namespace, server=other_api), tmp_path / "witness")

    def tell(program: Program, *options: str) -> list[bytes]:
        other.folder.mkdir()
        shutil.copy(program.checkpoint_file, other.checkpoint_file)
        outcome = other.run("--window=0s", other.checkpoint, *options)
        assert (outcome.code, outcome.summary["start"], outcome.summary["gaps"]) == (0, "resumed", [])
        assert set(outcome.summary["provenance"]) == {"observed"}
        return outcome.stdout.replace(b'"provenance":"observed"', b'"provenance":"recovered"').splitlines()

    return tell


def test_r11_what_came_before_a_restart_is_told_in_order_and_without_a_gap(
    program: Program, cluster: Cluster, namespace: str, control_plane: ControlPlane
) -> None:
    """After a restart of the API server everything since the saved version is told, brief lives and reuse included."""
    old = {name: cluster.create(namespace, name) for name in ("kept", "changed", "gone", "reborn")}
    program.run("--window=0s", program.checkpoint)
    before = program.saved
    history = cluster.watch(workflows_path(namespace), resourceVersion=before.version, timeoutSeconds=60)
    cluster.create(namespace, "new")
    for number in "12":
        cluster.patch(namespace, "changed", {"metadata": {"labels": {"number": number}}})
    cluster.delete(namespace, "gone")
    cluster.delete(namespace, "reborn")
    cluster.create(namespace, "reborn")
    cluster.create(namespace, "brief")
    cluster.patch(namespace, "brief", {"metadata": {"labels": {"a": "b"}}})
    cluster.delete(namespace, "brief")
    with history:
        events = list(islice(history, 9))
    control_plane.restart_api()

    outcome = program.run("--window=0s", program.checkpoint)
    later = program.run("--window=0s", program.checkpoint)

    assert (outcome.code, outcome.summary["start"], outcome.summary["recovery"]) == (0, "expired", "complete")
    assert gaps(outcome.messages) == []
    assert changes(outcome.messages) == [
        ("added", "new", "recovered"),
        ("modified", "changed", "recovered"),
        ("modified", "changed", "recovered"),
        ("deleted", "gone", "recovered"),
        ("deleted", "reborn", "recovered"),
        ("added", "reborn", "recovered"),
        ("added", "brief", "recovered"),
        ("modified", "brief", "recovered"),
        ("deleted", "brief", "recovered"),
    ]
    assert [message["data"] for message in outcome.messages] == [_bare(event["object"]) for event in events]
    assert [message["resourceversion"] for message in outcome.messages] == [
        event["object"]["metadata"]["resourceVersion"] for event in events
    ]
    assert ids(outcome.messages) == [
        f"{event['object']['metadata']['uid']}/deleted" if event["type"] == "DELETED" else id_of(event["object"])
        for event in events
    ]
    assert {known.name for known in program.saved.inventory.values()} == {"kept", "changed", "reborn", "new"}
    assert old["reborn"]["metadata"]["uid"] not in program.saved.inventory
    assert (later.code, later.summary["start"], later.messages) == (0, "resumed", [])


@pytest.mark.parametrize("resource", ["workflows.v1alpha1.argoproj.io", "configmaps.v1", "pods.v1"])
@pytest.mark.parametrize("everywhere", [pytest.param(False, id="namespace"), pytest.param(True, id="all-namespaces")])
def test_r11_the_messages_are_those_of_a_watch_byte_for_byte(
    *,
    resource: str,
    everywhere: bool,
    proxied: Program,
    proxy: ApiProxy,
    cluster: Cluster,
    namespace: str,
    witnessed: Witness,
) -> None:
    """But for the provenance, whoever watched all the time has told the same lines in the same order."""
    other = f"{namespace}-other"
    cluster.create_namespace(other)
    options = [f"--resource={resource}", *(["--all-namespaces"] if everywhere else [])]
    things = [_Things(cluster, resource, each) for each in ((namespace, other) if everywhere else (namespace,))]
    for each in things:
        each.create_some()
    proxied.run("--window=0s", "--initial=skip", proxied.checkpoint, *options)
    for each in things:
        each.live()
    expected = witnessed(proxied, *options)
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)

    outcome = proxied.run("--window=0s", proxied.checkpoint, *options)

    assert (outcome.code, outcome.summary["recovery"]) == (0, "complete")
    assert len(expected) >= 13 * len(things)
    assert outcome.stdout.splitlines() == expected


def test_r11_a_selector_lets_in_what_matched_for_a_while(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, witnessed: Witness
) -> None:
    """An object that matched in some forgotten versions only is added by the first, and followed to its deletion."""
    options = ["--selector=team=a"]
    for name, team in (("in", "a"), ("out", "b"), ("later", "b"), ("gone", "a")):
        cluster.create(namespace, name, labels={"team": team})
    proxied.run("--window=0s", proxied.checkpoint, *options)
    for name, team in (("later", "c"), ("later", "a"), ("later", "b"), ("in", "b"), ("out", "c"), ("in", "c")):
        _label(cluster, namespace, name, team)
    for name in ("later", "out", "gone"):
        cluster.delete(namespace, name)
    for name, team in (("brief", "b"), ("brief-out", "b"), ("out", "b"), ("gone", "b")):
        cluster.create(namespace, name, labels={"team": team})
    for name, team in (("brief", "a"), ("brief", "c"), ("brief-out", "d")):
        _label(cluster, namespace, name, team)
    for name in ("brief", "brief-out"):
        cluster.delete(namespace, name)
    expected = witnessed(proxied, *options)
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)

    outcome = proxied.run("--window=0s", proxied.checkpoint, *options)

    assert (outcome.code, outcome.summary["recovery"]) == (0, "complete")
    assert changes(outcome.messages) == [
        ("added", "later", "recovered"),
        ("modified", "later", "recovered"),
        ("modified", "in", "recovered"),
        ("modified", "in", "recovered"),
        ("deleted", "later", "recovered"),
        ("deleted", "gone", "recovered"),
        ("added", "brief", "recovered"),
        ("modified", "brief", "recovered"),
        ("deleted", "brief", "recovered"),
    ]
    assert outcome.stdout.splitlines() == expected


def test_r11_large_objects_and_awkward_names_keep_their_bytes(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, witnessed: Witness
) -> None:
    """Objects of over 1 MB, more than are kept in memory, and such that call other things resourceVersion too."""
    awkward: Json = {"resourceVersion": "1", '"resourceVersion":"1"': "1", "metadata": '{"resourceVersion":"1"}'}
    spec = {"arguments": {"metadata": {"resourceVersion": "1"}, "resourceVersion": "1"}}
    cluster.create(namespace, "large", size_bytes=1_200_000, annotations={"resourceVersion": "1"}, spec=spec)
    proxied.run("--window=0s", "--initial=skip", proxied.checkpoint)
    for number in range(15):
        cluster.patch(namespace, "large", {"metadata": {"annotations": {"resourceVersion": str(number)}}})
    cluster.delete(namespace, "large")
    cluster.create(namespace, "brief", size_bytes=1_200_000, annotations={"resourceVersion": "1"}, spec=spec)
    cluster.delete(namespace, "brief")
    cluster.create(namespace, "awkward", spec={"arguments": awkward}, status={"resourceVersion": "1", "metadata": {}})
    cluster.delete(namespace, "awkward")
    expected = witnessed(proxied)
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)

    outcome = proxied.run("--window=0s", proxied.checkpoint)

    assert (outcome.code, outcome.summary["recovery"]) == (0, "complete")
    assert len(expected) == 20
    assert outcome.stdout.splitlines() == expected


def test_r11_a_collection_of_several_pages(
    *,
    proxied: Program,
    proxy: ApiProxy,
    cluster: Cluster,
    namespace: str,
    create_many: CreateMany,
    witnessed: Witness,
) -> None:
    """More objects than a page has are read whole at each version, and nothing is taken for gone that is not."""
    create_many(namespace, 510)
    proxied.run("--window=0s", "--initial=skip", proxied.checkpoint)
    for name in ("w-0000", "w-0499", "w-0500", "w-0509"):
        cluster.patch(namespace, name, {"metadata": {"labels": {"a": "b"}}})
        cluster.create(namespace, f"{name}-brief")
        cluster.delete(namespace, f"{name}-brief")
    for name in ("w-0000", "w-0001", "w-0499", "w-0500", "w-0509"):
        cluster.delete(namespace, name)
    cluster.create(namespace, "w-0000")
    expected = witnessed(proxied)
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)

    outcome = proxied.run("--window=0s", proxied.checkpoint)

    assert (outcome.code, outcome.summary["recovery"], outcome.summary["objects"]) == (0, "complete", 506)
    assert len(expected) == 18
    assert outcome.stdout.splitlines() == expected


def test_r11_history_of_many_versions_is_told_whole(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, witnessed: Witness
) -> None:
    """Pieces of history join without a seam: lives that begin in one and end in another are told once."""
    cluster.create(namespace, "kept")
    proxied.run("--window=0s", proxied.checkpoint)
    for number in range(3):
        cluster.create(namespace, f"over-{number}")
        cluster.patch(namespace, "kept", {"metadata": {"labels": {"number": str(number)}}})
        _pass(cluster, namespace, PIECE - 50)
        cluster.create(namespace, f"brief-{number}")
        cluster.delete(namespace, f"over-{number}")
        cluster.delete(namespace, f"brief-{number}")
    expected = witnessed(proxied)
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)

    outcome = proxied.run("--window=0s", proxied.checkpoint)

    assert (outcome.code, outcome.summary["recovery"]) == (0, "complete")
    assert outcome.stdout.splitlines() == expected


def test_r11_the_run_says_how_far_it_came(proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str) -> None:
    """The record of the run and its summary have why history was lost, how old it was, and how it came back."""
    proxied.run("--window=0s", proxied.checkpoint)
    before = proxied.saved
    cluster.create(namespace, "a")
    time.sleep(2)
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)

    outcome = proxied.run("--window=0s", proxied.checkpoint)

    record, summary = proxied.saved.runs[-1], outcome.summary
    assert (record.start, record.recovery, record.exit_code) == ("expired", "complete", 0)
    assert (summary["recovery"], summary["from"], summary["gaps"]) == ("complete", str(before.version), [])
    assert record.age_seconds == summary["age_seconds"]
    assert record.age_seconds is not None
    assert 2 <= record.age_seconds < 30
    assert (summary["provenance"], summary["published"]) == ({"recovered": 1}, {"added": 1})
    assert "read back from etcd, whole" in summary["message"]
    assert proxied.saved.runs[0].recovery == ""


def test_r11_what_happens_meanwhile_is_observed(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, sink_file: SinkFile
) -> None:
    """The watch is opened before history is read back, and what it has waits until that is told."""
    proxied.run("--window=0s", proxied.checkpoint, sink_file.option)
    before = cluster.create(namespace, "before")
    meanwhile: list[Json] = []

    def happen() -> None:
        proxy.wait_for(watches(), count=2)  # the one that expires, and the next
        meanwhile.append(cluster.create(namespace, "meanwhile"))

    proxy.inject(on=watches(), fault=EXPIRED_WATCH)
    held = proxy.inject(on=exact(), fault=Hook(happen))

    with proxied.start("--window=60s", proxied.checkpoint, sink_file.option) as running:
        sink_file.wait_for(lambda messages: len(messages) == 2, "both to be told")
        running.send(signal.SIGTERM)
        outcome = running.finish(SOON)
    asked = [request for request in proxy.requests if request.watch or exact()(request)]
    later = proxied.run("--window=0s", proxied.checkpoint, sink_file.option)

    assert (outcome.code, outcome.summary["recovery"], later.summary["start"]) == (0, "complete", "resumed")
    assert [(thing["k8suid"], thing["provenance"]) for thing in sink_file.messages] == [
        (before["metadata"]["uid"], "recovered"),
        (meanwhile[0]["metadata"]["uid"], "observed"),
    ]
    assert held.fired == 1
    assert [request.watch for request in asked[:3]].count(True) == 2
    assert len([request for request in asked if request.watch]) == 2


def test_r11_a_watch_that_expires_in_mid_stream(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """What a watch told before its 410 stays told, and history is read back from there."""
    proxied.run("--window=0s", proxied.checkpoint)
    created = [cluster.create(namespace, name) for name in ("a", "b", "c", "d")]
    cluster.delete(namespace, "c")
    cut_off = proxy.inject(on=watches(), fault=EXPIRED_AFTER_TWO)

    outcome = proxied.run("--window=0s", proxied.checkpoint)

    assert (outcome.code, cut_off.fired, outcome.summary["start"]) == (0, 1, "resumed")
    assert ids(outcome.messages) == [*map(id_of, created), f"{created[2]['metadata']['uid']}/deleted"]
    assert [provenance for _, _, provenance in changes(outcome.messages)] == ["observed"] * 2 + ["recovered"] * 3
    assert gaps(outcome.messages) == []


def test_r11_a_watch_that_is_closed_in_silence(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """After two silent closes, too, history is read back, and no gap is announced."""
    proxied.run("--window=0s", proxied.checkpoint)
    cluster.create(namespace, "brief")
    cluster.delete(namespace, "brief")
    closed = proxy.inject(on=watches(), fault=SilentClose(), times=2)

    with proxied.start("--window=60s", proxied.checkpoint) as running:
        log = Log(running)
        log.wait_for("history.recovered")
        running.send(signal.SIGTERM)
        outcome = log.finish()

    assert closed.fired == 2

    assert (outcome.code, outcome.summary["start"], outcome.summary["recovery"]) == (0, "silent", "complete")
    assert changes(outcome.messages) == [("added", "brief", "recovered"), ("deleted", "brief", "recovered")]
    assert gaps(outcome.messages) == []


def test_r11_without_time_for_it_nothing_is_read_back(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """With --recover=0s no older version is asked for, and the difference is told behind a gap."""
    proxied.run("--window=0s", proxied.checkpoint)
    before = proxied.saved
    cluster.create(namespace, "a")
    cluster.create(namespace, "brief")
    cluster.delete(namespace, "brief")
    now = _version(cluster, namespace)
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)

    outcome = proxied.run("--window=0s", "--recover=0s", proxied.checkpoint)

    assert (outcome.code, outcome.summary["start"], outcome.summary["recovery"]) == (0, "expired", None)
    assert not any(map(_before(now), proxy.requests))
    assert _reach(gaps(outcome.messages)) == [(before.version, proxied.saved.listed, "intermediate")]
    assert changes(outcome.messages) == [("added", "a", "inferred")]


def test_r11_what_etcd_no_longer_has_is_inferred(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """A 410 for the saved version itself leads to a gap from there, and to the difference."""
    changed = _something_expires(proxied, proxy, cluster, namespace)
    before = proxied.saved
    gone = proxy.inject(on=exact(), fault=EXPIRED_LIST)

    outcome = proxied.run("--window=0s", proxied.checkpoint)

    assert (outcome.code, gone.fired) == (0, 1)
    assert (outcome.summary["start"], outcome.summary["recovery"]) == ("expired", "compacted")
    assert _reach(gaps(outcome.messages)) == [(before.version, proxied.saved.listed, "intermediate")]
    assert gaps(outcome.messages)[0]["reason"] == "expired"
    assert changes(outcome.messages) == [("modified", "changed", "inferred"), ("deleted", "gone", "inferred")]
    assert ids(outcome.messages)[0] == id_of(changed)


@pytest.mark.parametrize("really", [pytest.param(True, id="compacted"), pytest.param(False, id="http-410")])
def test_r11_what_was_read_back_stays_told(
    *,
    really: bool,
    proxied: Program,
    proxy: ApiProxy,
    cluster: Cluster,
    namespace: str,
    control_plane: ControlPlane,
    witnessed: Witness,
) -> None:
    """When etcd forgets in the middle, what was told stays, and the gap and the difference begin where it ended."""
    for name in ("kept", "changed", "gone"):
        cluster.create(namespace, name)
    proxied.run("--window=0s", proxied.checkpoint)
    before = proxied.saved
    cluster.create(namespace, "brief")
    cluster.delete(namespace, "brief")
    cluster.patch(namespace, "changed", {"metadata": {"labels": {"a": "b"}}})
    read_back = witnessed(proxied)
    _pass(cluster, namespace, PIECE)
    changed = cluster.patch(namespace, "changed", {"metadata": {"labels": {"a": "c"}}})
    created = cluster.create(namespace, "new")
    cluster.delete(namespace, "gone")
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)
    compaction = Hook(lambda: control_plane.compact(before.version + PIECE + 5, restart=True))
    forgotten = proxy.inject(on=_after(before.version + PIECE), fault=compaction if really else EXPIRED_LIST)

    outcome = proxied.run("--window=0s", proxied.checkpoint)
    later = proxied.run("--window=0s", proxied.checkpoint)

    assert (outcome.code, forgotten.fired, outcome.summary["recovery"]) == (0, 1, "compacted")
    assert outcome.stdout.splitlines()[:3] == read_back
    assert outcome.messages[3]["id"] == f"{before.version + PIECE}-{proxied.saved.listed}/gap"
    assert _reach(gaps(outcome.messages)) == [
        (before.version + PIECE, proxied.saved.listed, "intermediate"),
    ]
    assert sorted(changes(outcome.messages[4:])) == [
        ("added", "new", "inferred"),
        ("deleted", "gone", "inferred"),
        ("modified", "changed", "inferred"),
    ]
    assert {id_of(changed), id_of(created)} < set(ids(outcome.messages))
    assert outcome.summary["listings"] == 1
    assert (later.code, later.messages) == (0, [])


@pytest.mark.parametrize("answer", [pytest.param(TIMED_OUT, id="504"), pytest.param(BUSY, id="429")])
def test_r11_a_server_that_is_too_slow_costs_no_more_than_the_time_for_it(
    *, answer: Answer, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """Where old versions are never answered in time, the difference is told when that is over, exit code 0."""
    changed = _something_expires(proxied, proxy, cluster, namespace)
    before = proxied.saved
    slow = proxy.inject(on=_before(_version(cluster, namespace)), fault=answer, times=None)

    outcome = proxied.run("--window=0s", "--recover=6s", proxied.checkpoint)

    assert slow.fired > 1
    assert (outcome.code, outcome.summary["recovery"]) == (0, "late")
    assert outcome.summary["seconds"] < 6 + 10
    assert _reach(gaps(outcome.messages)) == [(before.version, proxied.saved.listed, "intermediate")]
    assert changes(outcome.messages) == [("modified", "changed", "inferred"), ("deleted", "gone", "inferred")]
    assert ids(outcome.messages)[0] == id_of(changed)


def test_r11_a_server_that_hangs_costs_no_more_than_the_time_for_it(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """An old version that is never answered at all is given up when the time for it is over."""
    _something_expires(proxied, proxy, cluster, namespace)
    before = proxied.saved
    silent = proxy.inject(on=_before(_version(cluster, namespace)), fault=Stall(), times=None)

    outcome = proxied.run("--window=0s", "--recover=3s", proxied.checkpoint)

    assert silent.fired >= 1
    assert (outcome.code, outcome.summary["recovery"]) == (0, "late")
    assert outcome.summary["seconds"] < 3 + 10
    assert _reach(gaps(outcome.messages)) == [(before.version, proxied.saved.listed, "intermediate")]
    assert changes(outcome.messages) == [("modified", "changed", "inferred"), ("deleted", "gone", "inferred")]


def test_r11_a_server_that_is_busy_is_given_the_time_it_asks_for(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """A 429 with Retry-After is obeyed, and nothing is missing for it."""
    _something_expires(proxied, proxy, cluster, namespace)
    busy = proxy.inject(on=exact(), fault=TOO_MANY_REQUESTS)
    seen = len(proxy.requests)

    outcome = proxied.run("--window=0s", proxied.checkpoint)

    first, second = islice(filter(exact(), proxy.requests[seen:]), 2)
    assert (outcome.code, busy.fired, outcome.summary["recovery"]) == (0, 1, "complete")
    assert second.query == first.query
    assert second.at - first.at >= 1
    assert changes(outcome.messages) == [("modified", "changed", "recovered"), ("deleted", "gone", "recovered")]


def test_r11_a_restart_in_mid_walk_is_waited_for(
    *,
    proxied: Program,
    proxy: ApiProxy,
    cluster: Cluster,
    namespace: str,
    control_plane: ControlPlane,
    witnessed: Witness,
) -> None:
    """An API server that restarts while history is read back costs time, and no history."""
    _something_expires(proxied, proxy, cluster, namespace)
    expected = witnessed(proxied)
    restarted = proxy.inject(on=exact(), fault=Hook(control_plane.restart_api), skip=2)

    outcome = proxied.run("--window=0s", "--recover=60s", proxied.checkpoint)

    assert (outcome.code, restarted.fired, outcome.summary["recovery"]) == (0, 1, "complete")
    assert outcome.stdout.splitlines() == expected


@pytest.mark.parametrize("kind", ["another-version", "forbidden"])
def test_r11_a_server_that_gives_no_old_versions(
    kind: str, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """Where old versions are answered with other ones, or not allowed, the difference is told behind a gap."""
    changed = _something_expires(proxied, proxy, cluster, namespace)
    before, now = proxied.saved, _version(cluster, namespace)
    fault = forbidden("list", namespace) if kind == "forbidden" else _answer_of(now)
    refused = proxy.inject(on=_before(now), fault=fault, times=None)

    outcome = proxied.run("--window=0s", proxied.checkpoint)

    assert refused.fired >= 1
    assert (outcome.code, outcome.summary["recovery"]) == (0, "refused")
    assert _reach(gaps(outcome.messages)) == [(before.version, proxied.saved.listed, "intermediate")]
    assert changes(outcome.messages) == [("modified", "changed", "inferred"), ("deleted", "gone", "inferred")]
    assert ids(outcome.messages)[0] == id_of(changed)


def test_r11_other_counts_than_objects_are_no_reason_to_invent_or_to_hide(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """A server that counts wrong has its objects told as they are, behind a gap that says what may be missing."""
    proxied.run("--window=0s", proxied.checkpoint)
    before = proxied.saved
    created = [cluster.create(namespace, name) for name in ("a", "b")]
    brief = int(cluster.create(namespace, "brief")["metadata"]["resourceVersion"])
    cluster.delete(namespace, "brief")
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)
    # The version is right, and the collection empty, when three had been created.
    miscounted = proxy.inject(on=counts(at=brief), fault=_answer_of(brief), times=None)

    outcome = proxied.run("--window=0s", proxied.checkpoint)

    assert (outcome.code, outcome.summary["recovery"]) == (0, "sampled")
    assert miscounted.fired
    assert [(gap["missing"], gap["from"]) for gap in gaps(outcome.messages)] == [("short-lived", str(before.version))]
    assert set(map(id_of, created)) <= set(ids(outcome.messages))


def test_r11_many_versions_and_little_time_are_sampled(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """Without the time to count at every version, a gap says first how long a life may have been that is missing."""
    cluster.create(namespace, "changed")
    proxied.run("--window=0s", proxied.checkpoint)
    before = proxied.saved
    cluster.create(namespace, "brief")
    cluster.delete(namespace, "brief")
    long = cluster.create(namespace, "long")
    _pass(cluster, namespace, 2 * PIECE)
    cluster.delete(namespace, "long")
    changed = cluster.patch(namespace, "changed", {"metadata": {"labels": {"a": "b"}}})
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)
    # On any machine then, what is counted together takes 0.25 s: 83 s for all of it, where counting may take 10 s.
    proxy.inject(on=counts(), fault=Delay(0.25), times=None)

    outcome = proxied.run("--window=0s", "--recover=20s", proxied.checkpoint)
    later = proxied.run("--window=0s", proxied.checkpoint)

    (gap,) = gaps(outcome.messages)
    assert (outcome.code, outcome.summary["recovery"], outcome.summary["gaps"]) == (0, "sampled", ["expired"])
    assert (gap["missing"], gap["reason"], gap["from"]) == ("short-lived", "expired", str(before.version))
    assert 1 < int(gap["spacing"]) <= 2 * PIECE
    assert outcome.messages[0]["id"] == f"{gap['from']}-{gap['to']}/gap/{gap['spacing']}"
    told = [change for change in changes(outcome.messages) if change[1] != "brief"]
    assert told == [
        ("added", "long", "recovered"),
        ("deleted", "long", "recovered"),
        ("modified", "changed", "recovered"),
    ]
    assert {id_of(long), id_of(changed)} < set(ids(outcome.messages))
    assert (later.summary["start"], later.messages) == ("resumed", [])


def test_r11_after_a_compaction_the_difference_is_told(
    program: Program, cluster: Cluster, namespace: str, control_plane: ControlPlane
) -> None:
    """When etcd has dropped the history too, last states and deletions are told behind a gap."""
    cluster.create(namespace, "changed")
    gone = cluster.create(namespace, "gone")
    program.run("--window=0s", program.checkpoint)
    before = program.saved
    cluster.patch(namespace, "changed", {"metadata": {"labels": {"a": "b"}}})
    changed = cluster.patch(namespace, "changed", {"metadata": {"labels": {"a": "c"}}})
    cluster.delete(namespace, "gone")
    control_plane.compact(restart=True)

    outcome = program.run("--window=0s", program.checkpoint)
    later = program.run("--window=0s", program.checkpoint)

    assert (outcome.code, outcome.summary["start"], outcome.summary["recovery"]) == (0, "expired", "compacted")
    assert _reach(gaps(outcome.messages)) == [(before.version, program.saved.listed, "intermediate")]
    assert ids(outcome.messages) == [id_of(changed), f"{gone['metadata']['uid']}/deleted"]
    assert (later.summary["start"], later.messages) == ("resumed", [])


def test_r11_compactions_in_mid_walk_lose_and_invent_nothing(tmp_path: Path) -> None:
    """Under load, and with an etcd that forgets within seconds, last states and deletions come out right."""
    with (
        ControlPlane(tmp_path / "control-plane", api_flags=["--etcd-compaction-interval=3s"]) as plane,
        plane.cluster() as cluster,
        ApiProxy(plane.url, plane.ca_file) as proxy,
    ):
        cluster.apply_crds()
        cluster.create_namespace("argo")
        watched = Watched(Program(plane.kubeconfig(namespace="argo", server=proxy.url), tmp_path, **PATIENT))
        with under_load(cluster, "argo", objects=40, seed=1, lifetime=(0.5, 8.0)) as writers:
            watched.run("3s")
            for away in (2, 8, 5):
                time.sleep(away)
                proxy.inject(on=watches(), fault=EXPIRED_WATCH)
                watched.run("3s")
            writers.stop()
        watched.run("0s")
        wrong = wrong_ends(writers.truth, watched.messages)

    ways = [outcome.summary["recovery"] for outcome in watched.outcomes[1:-1]]
    assert wrong == []
    assert watched.starts == ["first", *["expired"] * 3, "resumed"]
    assert "compacted" in ways
    assert set(ways) <= {"complete", "compacted"}
    missing = [gap["missing"] for gap in gaps(watched.messages)]
    assert missing == ["intermediate"] * ways.count("compacted")


def test_r11_a_killed_walk_begins_again(
    *,
    proxied: Program,
    proxy: ApiProxy,
    cluster: Cluster,
    namespace: str,
    sink_file: SinkFile,
    witnessed: Witness,
) -> None:
    """Runs that are killed at several points of the walk lose nothing, and repeat themselves under the same ids."""
    before, whole = _two_pieces_behind(proxied, cluster, namespace, sink_file, witnessed)
    second_piece = before.version + PIECE
    points = [
        (exact(), 0, 0),  # at the saved version
        (counts(), 500, 0),
        (_after(second_piece), 0, 4),  # the first piece is told
        (_after(second_piece), 8, 4),
    ]
    parts = []
    for on, skip, told_by_then in points:
        proxy.inject(on=watches(), fault=EXPIRED_WATCH)
        stalled = proxy.inject(on=on, fault=Stall(), skip=skip)
        told = len(sink_file.messages)
        with unsaved(proxied), proxied.start("--window=60s", proxied.checkpoint, sink_file.option) as running:
            proxy.wait_fired(stalled)
            _wait_for_more(sink_file, told + told_by_then)
            running.send(signal.SIGKILL)
            running.process.wait()
        parts.append(ids(sink_file.messages[told:]))
    told = len(sink_file.messages)

    proxy.inject(on=watches(), fault=EXPIRED_WATCH)
    outcome = proxied.run("--window=0s", proxied.checkpoint, sink_file.option)

    assert (outcome.code, outcome.summary["recovery"]) == (0, "complete")
    assert parts == [[], [], ids(whole)[:4], ids(whole)[:4]]
    assert sink_file.messages[told:] == whole
    assert gaps(sink_file.messages) == []
    assert same_data_under_one_id(sink_file)


def test_r11_a_signal_in_mid_walk_saves_how_far_it_came(
    *,
    proxied: Program,
    proxy: ApiProxy,
    cluster: Cluster,
    namespace: str,
    sink_file: SinkFile,
    witnessed: Witness,
) -> None:
    """A run that is stopped in the middle of the walk ends at once, and the next one goes on with the walk."""
    before, whole = _two_pieces_behind(proxied, cluster, namespace, sink_file, witnessed)
    told = len(sink_file.messages)
    with _stalled_behind(before.version + PIECE, proxied, proxy, sink_file) as running:
        running.send(signal.SIGTERM)
        stopped = running.finish(SOON)
    stored, saved = ids(sink_file.messages[told:]), proxied.saved
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)

    outcome = proxied.run("--window=0s", proxied.checkpoint, sink_file.option)

    assert (stopped.code, stopped.summary["saved"]) == (0, True)
    assert (saved.version, saved.listed) == (before.version + PIECE, before.listed)
    assert stored == ids(whole)[:4]
    assert (outcome.code, outcome.summary["start"], outcome.summary["recovery"]) == (0, "expired", "complete")
    assert sink_file.messages[told:] == whole


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_r11_another_server_that_has_forgotten_nothing_is_watched(
    *,
    number: signal.Signals,
    proxied: Program,
    proxy: ApiProxy,
    cluster: Cluster,
    namespace: str,
    control_plane: ControlPlane,
    other_api: str,
    sink_file: SinkFile,
    witnessed: Witness,
    tmp_path: Path,
) -> None:
    """After a walk that broke off, a run whose API server still has the history watches from where that had come."""
    before, whole = _two_pieces_behind(proxied, cluster, namespace, sink_file, witnessed)
    told = len(sink_file.messages)
    with ExitStack() as lock:
        lock.enter_context(unsaved(proxied))
        with _stalled_behind(before.version + PIECE, proxied, proxy, sink_file) as running:
            _wait_for_more(sink_file, told + 4)
            running.send(number)
            lock.close()  # a run that is killed cannot make use of it any more
            running.process.wait(SOON.total_seconds())
    elsewhere = Program(control_plane.kubeconfig(namespace=namespace, server=other_api), tmp_path)

    outcome = elsewhere.run("--window=0s", elsewhere.checkpoint, sink_file.option)

    repeated = 4 if number == signal.SIGKILL else 0
    assert (outcome.code, outcome.summary["start"]) == (0, "resumed")
    assert ids(sink_file.messages[told:]) == [*ids(whole)[:repeated], *ids(whole)]
    ways = [key for key, _ in groupby(message["provenance"] for message in sink_file.messages[told:])]
    assert ways == ["recovered", "observed"]
    assert gaps(sink_file.messages) == []
    assert same_data_under_one_id(sink_file)


def test_r13_who_finds_in_mid_walk_that_another_was_faster_stops(
    *, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, program: Program, sink_file: SinkFile
) -> None:
    """A run that reads history back while another one has done so changes nothing, and exits with 0."""
    cluster.create(namespace, "gone")
    proxied.run("--window=0s", proxied.checkpoint, sink_file.option)
    before, told = proxied.saved, len(sink_file.messages)
    _two_pieces(cluster, namespace)
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)
    stalled = proxy.inject(on=_after(before.version + PIECE), fault=Stall())
    with proxied.start("--window=60s", proxied.checkpoint, sink_file.option) as running:
        proxy.wait_fired(stalled)
        _wait_for_more(sink_file, told + 4)
        sink_file.wait_until_free()
        running.send(signal.SIGSTOP)  # it saves ten seconds after its start, and must not be the first
        proxy.inject(on=watches(), fault=EXPIRED_WATCH)
        winner = proxied.run("--window=0s", proxied.checkpoint, sink_file.option)
        saved = proxied.checkpoint_file.read_bytes()
        stalled.release()
        running.send(signal.SIGCONT)
        loser = running.finish(SOON)
    after = proxied.checkpoint_file.read_bytes()

    later = program.run("--window=0s", program.checkpoint, sink_file.option)

    assert (winner.code, winner.summary["recovery"]) == (0, "complete")
    assert (loser.code, loser.summary["saved"]) == (0, False)
    assert "moved the checkpoint" in loser.summary["message"]
    assert after == saved
    assert (later.code, later.summary["start"]) == (0, "resumed")
    assert gaps(sink_file.messages) == []
    assert same_data_under_one_id(sink_file)


def test_r9_an_inventory_that_differs_from_the_past_is_mended_before(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """What the inventory lacks of the saved version, or has too much, is inferred behind a gap; the rest is told."""
    untold = cluster.create(namespace, "untold")
    cluster.create(namespace, "changed")
    proxied.run("--window=0s", proxied.checkpoint)
    before = proxied.saved
    phantom = {"11111111-1111-1111-1111-111111111111": Known(namespace, "phantom", before.version - 1)}
    known = {uid: entry for uid, entry in before.inventory.items() if entry.name != "untold"}
    edit_checkpoint(proxied, inventory=known | phantom)
    cluster.patch(namespace, "changed", {"metadata": {"labels": {"a": "b"}}})
    cluster.delete(namespace, "untold")
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)

    outcome = proxied.run("--window=0s", proxied.checkpoint)

    assert (outcome.code, outcome.summary["start"], outcome.summary["recovery"]) == (0, "expired", "complete")
    assert [gap["reason"] for gap in gaps(outcome.messages)] == ["drifted"]
    assert _reach(gaps(outcome.messages)) == [(before.version, before.version, "intermediate")]
    assert changes(outcome.messages) == [
        ("added", "untold", "inferred"),
        ("deleted", "phantom", "inferred"),
        ("modified", "changed", "recovered"),
        ("deleted", "untold", "recovered"),
    ]
    assert ids(outcome.messages)[0] == id_of(untold)
    assert [known.name for known in proxied.saved.inventory.values()] == ["changed"]


def test_r18_what_was_told_and_never_saved_is_told_to_its_end(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, sink_file: SinkFile
) -> None:
    """What a killed run told beyond its save, and is gone since, is repeated and told deleted: no gap hides it."""
    proxied.run("--window=0s", proxied.checkpoint, sink_file.option)
    with unsaved(proxied), proxied.start("--window=60s", proxied.checkpoint, sink_file.option) as running:
        created = [cluster.create(namespace, name) for name in ("gone", "alive")]
        sink_file.wait_for_id(created[-1])
        running.send(signal.SIGKILL)
        running.process.wait()
    told = len(sink_file.messages)
    cluster.delete(namespace, "gone")
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)

    outcome = proxied.run("--window=0s", proxied.checkpoint, sink_file.option)

    assert (outcome.code, outcome.summary["recovery"]) == (0, "complete")
    assert gaps(sink_file.messages) == []
    assert ids(sink_file.messages[told:]) == [*map(id_of, created), f"{created[0]['metadata']['uid']}/deleted"]
    assert last_states(sink_file.messages) == {"alive": created[1]["metadata"]["resourceVersion"]}
    assert same_data_under_one_id(sink_file)


class _Things:
    """Objects of some kind in one namespace, and what may happen to them."""

    def __init__(self, cluster: Cluster, resource: str, namespace: str) -> None:
        self._cluster = cluster
        self._path = {
            "workflows.v1alpha1.argoproj.io": workflows_path(namespace),
            "configmaps.v1": f"/api/v1/namespaces/{namespace}/configmaps",
            "pods.v1": f"/api/v1/namespaces/{namespace}/pods",
        }[resource]
        bodies: dict[str, Json] = {
            "workflows.v1alpha1.argoproj.io": {
                "apiVersion": "argoproj.io/v1alpha1",
                "kind": "Workflow",
                "spec": {"entrypoint": "main", "templates": [{"name": "main", "inputs": {}, "outputs": {}}]},
            },
            "configmaps.v1": {"data": {"metadata": '{"resourceVersion":"1"}', "text": "<&> \u2028 \U0001f600"}},
            "pods.v1": {"spec": {"containers": [{"name": "main", "image": "alpine:3"}]}},
        }
        self._body = bodies[resource]

    def create_some(self) -> None:
        """What `live` needs."""
        for name in ("changed", "gone", "reborn", "untouched", "held"):
            self._create(name, finalizers=["test/hold"] if name == "held" else [])

    def live(self) -> None:
        """13 events at least: a pod is marked before it is deleted."""
        self._create("new")
        self._patch("changed", {"annotations": {"number": "1"}})
        self._patch("changed", {"annotations": {"number": "2", "resourceVersion": "3"}})
        self._delete("gone")
        self._delete("reborn")
        self._create("reborn")
        self._patch("reborn", {"labels": {"a": "b"}})
        self._create("brief")
        self._patch("brief", {"labels": {"a": "b"}})
        self._delete("brief")
        self._delete("held")
        self._patch("held", {"finalizers": None})
        self._delete("new")

    def _create(self, name: str, **metadata: object) -> None:
        self._cluster.request("POST", self._path, {**self._body, "metadata": {"name": name, **metadata}})

    def _patch(self, name: str, metadata: Json) -> None:
        body = {"metadata": metadata}
        self._cluster.request("PATCH", f"{self._path}/{name}", body, content_type="application/merge-patch+json")

    def _delete(self, name: str) -> None:
        self._cluster.request("DELETE", f"{self._path}/{name}")


def _something_expires(proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str) -> Json:
    """A first run, and after it a change of one object, which is returned, and the end of another."""
    for name in ("changed", "gone"):
        cluster.create(namespace, name)
    proxied.run("--window=0s", proxied.checkpoint)
    changed = cluster.patch(namespace, "changed", {"metadata": {"labels": {"a": "b"}}})
    cluster.delete(namespace, "gone")
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)
    return changed


def _two_pieces(cluster: Cluster, namespace: str) -> None:
    """Four events in the first piece of the history, and three in the second."""
    cluster.create(namespace, "long")
    cluster.create(namespace, "brief")
    cluster.delete(namespace, "brief")
    cluster.delete(namespace, "gone")
    _pass(cluster, namespace, PIECE)
    cluster.patch(namespace, "long", {"metadata": {"labels": {"a": "b"}}})
    cluster.delete(namespace, "long")
    cluster.create(namespace, "gone")


def _two_pieces_behind(
    program: Program, cluster: Cluster, namespace: str, sink_file: SinkFile, witnessed: Witness
) -> tuple[Checkpoint, list[Message]]:
    """A checkpoint, and what a run must tell that goes on from it, after two pieces of history."""
    cluster.create(namespace, "gone")
    program.run("--window=0s", program.checkpoint, sink_file.option)
    _two_pieces(cluster, namespace)
    return program.saved, _told_by_witness(witnessed, program, sink_file)


@contextmanager
def _stalled_behind(version: int, program: Program, proxy: ApiProxy, sink_file: SinkFile) -> Iterator[Running]:
    """A run that reads history back, and hangs at the first state behind a version."""
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)
    stalled = proxy.inject(on=_after(version), fault=Stall())
    with program.start("--window=60s", program.checkpoint, sink_file.option) as running:
        proxy.wait_fired(stalled)
        yield running


def _told_by_witness(witnessed: Witness, program: Program, sink_file: SinkFile) -> list[Message]:
    """What a watch tells of the two pieces, as a run with this sink must."""
    copy = sink_file.path.with_suffix(".copy")
    shutil.copy(sink_file.path, copy)
    told = len(sink_file.messages)
    witnessed(program, sink_file.option)
    messages = sink_file.messages[told:]
    shutil.copy(copy, sink_file.path)
    assert len(messages) == 7
    return [message | {"provenance": "recovered"} for message in messages]


def _wait_for_more(sink_file: SinkFile, count: int) -> None:
    sink_file.wait_for(lambda messages: len(messages) >= count, f"{count} messages to be stored")


def _pass(cluster: Cluster, namespace: str, versions: int) -> None:
    """Let so many versions pass that are no event of what is watched."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    with ThreadPoolExecutor(4) as executor:
        list(
            executor.map(lambda _: cluster.request("POST", path, {"metadata": {"generateName": "a-"}}), range(versions))
        )


def _label(cluster: Cluster, namespace: str, name: str, team: str) -> None:
    cluster.patch(namespace, name, {"metadata": {"labels": {"team": team}}})


def _version(cluster: Cluster, namespace: str) -> int:
    """The current one."""
    return int(cluster.list(namespace, limit=1)["metadata"]["resourceVersion"])


def _bare(thing: Json) -> Json:
    """Without what is the server's own bookkeeping."""
    metadata = {name: value for name, value in thing["metadata"].items() if name != "managedFields"}
    return {**thing, "metadata": metadata}


def _reach(told: list[dict[str, str]]) -> list[tuple[int, int, str]]:
    return [(int(gap["from"]), int(gap["to"]), gap["missing"]) for gap in told]


def _before(version: int) -> Matcher:
    """Match lists of older states than this."""
    return Matcher(
        f"exact before {version}",
        "",
        lambda request: exact()(request) and int(request.query["resourceVersion"]) < version,
    )


def _after(version: int) -> Matcher:
    """Match lists of the states at one later version than this."""
    return Matcher(
        f"exact after {version}",
        "",
        lambda request: exact()(request) and int(request.query["resourceVersion"]) > version,
    )


def _answer_of(version: int) -> Answer:
    """An empty list of some version."""
    about = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"}
    return Answer(200, json.dumps({**about, "metadata": {"resourceVersion": str(version)}, "items": []}).encode())
