"""Tests of what a run goes through as a matter of course: servers that start, streams and connections that break."""

from __future__ import annotations

import signal

import pytest

from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.fakes.api_faults import (
    INTERNAL_ERROR,
    STORAGE_INITIALISING,
    TOO_MANY_REQUESTS,
    CutFrame,
    EndEarly,
    ErrorFrame,
    Fault,
    Matcher,
    Reset,
    forbidden,
    lists,
    probes,
    refusal,
    watches,
)
from tests.fakes.api_proxy import ApiProxy
from tests.program import Program
from tests.wire.told import SOON, Log, SinkFile, changes, gaps, id_of, ids, last_states

NOT_YET_INSTALLED = refusal(
    503,
    "ServiceUnavailable",
    "the request has been made before all known HTTP paths have been installed, please try again",
    1,
)


@pytest.mark.parametrize(
    ("on", "fault", "times"),
    [
        pytest.param(watches(), STORAGE_INITIALISING, 2, id="429-storage-initialising"),
        pytest.param(watches(), TOO_MANY_REQUESTS, 1, id="429-in-plain-text"),
        pytest.param(probes(), NOT_YET_INSTALLED, 1, id="503-at-start-up"),
        pytest.param(probes(), forbidden("list"), 1, id="403-once-on-a-list"),
        pytest.param(watches(), forbidden("watch"), 1, id="403-once-on-a-watch"),
        pytest.param(lists(), INTERNAL_ERROR, 2, id="500-while-etcd-elects"),
    ],
)
def test_a_refusal_of_a_server_that_starts_is_waited_out(
    *, on: Matcher, fault: Fault, times: int, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """What a starting server refuses for a moment is asked again, and the run resumes as if nothing had been."""
    cluster.create(namespace, "old")
    proxied.run("--window=0s", proxied.checkpoint)
    created = cluster.create(namespace, "new")
    refused = proxy.inject(on=on, fault=fault, times=times)

    outcome = proxied.run("--window=0s", proxied.checkpoint)

    assert (outcome.code, refused.fired, outcome.summary["start"]) == (0, times, "resumed")
    assert (ids(outcome.messages), gaps(outcome.messages)) == ([id_of(created)], [])


def test_a_run_that_starts_before_the_api_server_loses_nothing(
    program: Program, cluster: Cluster, namespace: str, control_plane: ControlPlane, sink_file: SinkFile
) -> None:
    """A run that finds the API server away waits for it, through all that a real one says while it starts."""
    cluster.create(namespace, "old")
    program.run("--window=0s", program.checkpoint, sink_file.option)
    created = cluster.create(namespace, "new")
    control_plane.stop_api()

    with program.start("--window=60s", program.checkpoint, sink_file.option) as running:
        log = Log(running)
        log.wait_for("api.retry")
        control_plane.start_api()
        sink_file.wait_for_id(created)
        running.send(signal.SIGTERM)
        outcome = log.finish()

    assert outcome.code == 0
    assert ids(sink_file.messages)[1:] == [id_of(created)]


def test_a_connection_refused_for_seconds_is_waited_out(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """A run whose API server cannot be reached for some seconds says so, and resumes as soon as it can."""
    proxied.run("--window=0s", proxied.checkpoint)
    created = cluster.create(namespace, "new")
    proxy.down()

    with proxied.start("--window=0s", proxied.checkpoint) as running:
        log = Log(running)
        complaint = log.wait_for("api.retry")
        proxy.up()
        outcome = log.finish()

    assert "cannot be reached" in complaint["message"]
    assert (outcome.code, ids(outcome.messages), gaps(outcome.messages)) == (0, [id_of(created)], [])


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(EndEarly(2), id="clean-end"),
        pytest.param(CutFrame(2), id="truncated-frame"),
        pytest.param(Reset(2), id="reset-in-mid-chunk"),
        pytest.param(ErrorFrame(500, "InternalError", "etcdserver: no leader", after_frames=2), id="error-500-frame"),
    ],
)
def test_a_stream_that_breaks_is_taken_up_where_it_broke(
    *, fault: Fault, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, sink_file: SinkFile
) -> None:
    """However a watch breaks, the next one begins behind the last whole frame: no change is lost, none told twice."""
    proxied.run("--window=0s", proxied.checkpoint, sink_file.option)
    created = [cluster.create(namespace, f"w-{number}") for number in range(6)]
    broken = proxy.inject(on=watches(), fault=fault, times=2)
    seen = len(proxy.requests)

    with proxied.start("--window=60s", proxied.checkpoint, sink_file.option) as running:
        sink_file.wait_for_id(created[-1])
        running.send(signal.SIGTERM)
        outcome = running.finish(SOON)

    assert (outcome.code, broken.fired, outcome.summary["start"]) == (0, 2, "resumed")
    assert ids(sink_file.messages) == [id_of(thing) for thing in created]
    assert gaps(sink_file.messages) == []
    versions = [request.query["resourceVersion"] for request in proxy.requests[seen:] if request.watch]
    assert versions[1:] == [created[number]["metadata"]["resourceVersion"] for number in (1, 3)]


def test_a_window_outlives_the_api_server(
    program: Program, cluster: Cluster, namespace: str, control_plane: ControlPlane, sink_file: SinkFile
) -> None:
    """A run in whose window the API server is killed and started again tells the last state of everything."""
    cluster.create(namespace, "gone")
    changed = cluster.create(namespace, "changed")

    with program.start("--window=60s", program.checkpoint, sink_file.option) as running:
        sink_file.wait_for_id(changed)
        before = cluster.create(namespace, "before")
        sink_file.wait_for_id(before)
        control_plane.stop_api()
        control_plane.start_api()
        cluster.delete(namespace, "gone")
        changed = cluster.patch(namespace, "changed", {"metadata": {"labels": {"a": "b"}}})
        after = cluster.create(namespace, "after")
        sink_file.wait_for_id(after)
        running.send(signal.SIGTERM)
        outcome = running.finish()

    assert outcome.code == 0
    assert last_states(sink_file.messages) == {
        "changed": changed["metadata"]["resourceVersion"],
        "before": before["metadata"]["resourceVersion"],
        "after": after["metadata"]["resourceVersion"],
    }
    assert changes(sink_file.messages).count(("added", "before", "observed")) == 1


def test_a_quiet_window_moves_the_checkpoint(
    program: Program, cluster: Cluster, namespace: str, control_plane: ControlPlane
) -> None:
    """A window in which only other resources change ends at a later version, so that the next run need not relist."""
    program.run("--window=0s", program.checkpoint)
    before = program.saved
    cluster.create_namespace(f"{namespace}-other")

    outcome = program.run("--window=8s", program.checkpoint)

    assert (outcome.code, outcome.messages, outcome.summary["start"]) == (0, [], "resumed")
    assert program.saved.version > before.version
