"""The promise itself: what several writers did to a real API server, and what the sink was told."""

import random
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.bed.gcs import FakeGcsServer
from tests.bed.pubsub import PubSub
from tests.bed.waiting import wait_until
from tests.fakes.gcs_server import GcsServer
from tests.fakes.publisher_server import PublisherServer
from tests.history.scene import (
    BETWEEN_RUNS,
    PATIENCE,
    Files,
    GoogleCloud,
    Place,
    SlowBroker,
    Watched,
    change_the_crd,
    restart,
    under_load,
)
from tests.history.truth import gaps, in_order, untold_versions, wrong_ends
from tests.history.writers import Writers
from tests.program import Program
from tests.wire.cloud import TOPIC


@pytest.fixture
def files(program: Program) -> Place:
    return Files(program)


@pytest.fixture
def a_subscription(pubsub: PubSub, fake_gcs_server: FakeGcsServer, namespace: str) -> Place:
    return GoogleCloud(pubsub, fake_gcs_server, namespace)


@pytest.fixture
def an_ordered_subscription(pubsub: PubSub, fake_gcs_server: FakeGcsServer, namespace: str) -> Place:
    return GoogleCloud(pubsub, fake_gcs_server, namespace, ordering=8)


@pytest.fixture
def a_slow_broker(gcs: GcsServer) -> Iterator[Place]:
    with PublisherServer(TOPIC) as broker:
        yield SlowBroker(broker, gcs)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Place:
    """Where the runs publish and save, by the name of a fixture."""
    found: Place = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("place", ["files", "a_subscription", "an_ordered_subscription"], indirect=True)
def test_five_runs_tell_every_version_in_order_and_every_deletion(
    program: Program, cluster: Cluster, namespace: str, place: Place
) -> None:
    """With 1,000 Workflows of 2-20 KB under load, nothing is missing, nothing is false, and no gap is announced."""
    watched = Watched(program, place)
    with under_load(cluster, namespace, objects=1000, seed=1) as writers:
        for _ in range(4):
            watched.run()
            time.sleep(BETWEEN_RUNS)
        wait_until(lambda: len(writers.truth.lives) >= 1000, PATIENCE, "1,000 Workflows to have lived")
        last = watched.start()
    watched.finish(last)
    messages = watched.messages if place.ordered else in_order(watched.messages)

    assert watched.starts == ["first", "resumed", "resumed", "resumed", "resumed"]
    assert untold_versions(writers.truth, messages) == []
    assert gaps(messages) == []
    assert len({message["id"] for message in messages}) == len(messages)


@pytest.fixture(params=[restart, change_the_crd])
def forgetting(
    request: pytest.FixtureRequest, control_plane: ControlPlane, program: Program, cluster: Cluster, namespace: str
) -> Callable[..., tuple[Watched, Writers]]:
    """Three runs under load; the API server forgets its history after the first one, the second one has options."""
    happen: Callable[[ControlPlane, Cluster], None] = request.param

    def live_through(*options: str) -> tuple[Watched, Writers]:
        watched = Watched(program)
        with under_load(cluster, namespace, objects=200, seed=2) as writers:
            watched.run()
            happen(control_plane, cluster)
            watched.run("5s", *options)
            last = watched.start()
        watched.finish(last)
        assert watched.starts == ["first", "expired", "resumed"]
        return watched, writers

    return live_through


def test_an_expired_version_costs_nothing(forgetting: Callable[..., tuple[Watched, Writers]]) -> None:
    """After the API server forgot its history between two runs, every version is told in order, without a gap."""
    watched, writers = forgetting("--recover=100s")  # more than any machine needs

    assert untold_versions(writers.truth, watched.messages) == []
    assert gaps(watched.messages) == []


def test_without_recovery_an_expired_version_costs_no_last_state_and_no_deletion(
    forgetting: Callable[..., tuple[Watched, Writers]],
) -> None:
    """After the history was lost between two runs, a gap says so, and the ends of all stories are told."""
    watched, writers = forgetting("--recover=0s")

    assert [message["data"]["reason"] for message in gaps(watched.messages)] == ["expired"]
    assert wrong_ends(writers.truth, watched.messages) == []


def test_an_api_server_restart_in_mid_run_costs_nothing(
    control_plane: ControlPlane, program: Program, cluster: Cluster, namespace: str
) -> None:
    """A run goes on through a restart of the API server, and every version is told in order."""
    watched = Watched(program)
    with under_load(cluster, namespace, objects=200, seed=3) as writers:
        watched.run()
        running = watched.start("300s", "--recover=100s")  # more than any machine needs
        told = len(watched.messages)
        wait_until(lambda: len(watched.messages) > told + 200, PATIENCE, "the run to be watching")
        control_plane.restart_api()
        told = len(watched.messages)
        wait_until(lambda: len(watched.messages) > told + 50, PATIENCE, "the run to be watching again")
        running.send(signal.SIGTERM)
        watched.finish(running)
        last = watched.start()
    watched.finish(last)
    messages = watched.messages

    assert watched.starts == ["first", "resumed", "resumed"]
    assert untold_versions(writers.truth, messages) == []
    assert gaps(messages) == []


@pytest.mark.parametrize("place", ["files", "a_slow_broker"], indirect=True)
def test_runs_that_are_killed_lose_nothing(program: Program, cluster: Cluster, namespace: str, place: Place) -> None:
    """After four runs that were killed -9 in mid-watch, the next one has told every version in order."""
    watched = Watched(program, place)
    moments = random.Random(4)
    with under_load(cluster, namespace, objects=200, seed=4) as writers:
        watched.run()
        for _ in range(4):
            with watched.start("30s") as running:
                told = len(watched.messages)
                more = moments.randrange(100, 400)
                wait_until(lambda: len(watched.messages) > told + more, PATIENCE, "the run to publish")  # noqa: B023
                running.send(signal.SIGKILL)
        last = watched.start()
    watched.finish(last)
    messages = watched.messages

    assert watched.starts == ["first", "resumed"]
    assert untold_versions(writers.truth, messages) == []
    assert gaps(messages) == []
    assert len({message["id"] for message in messages}) < len(messages)  # the kills did cost repeats


@pytest.mark.parametrize("place", ["files", "a_slow_broker"], indirect=True)
def test_two_runs_at_once_lose_nothing(program: Program, cluster: Cluster, namespace: str, place: Place) -> None:
    """Two runs on one checkpoint both tell the truth, one of them saves, and the other says that it was overtaken."""
    watched = Watched(program, place)
    with under_load(cluster, namespace, objects=200, seed=5) as writers:
        watched.run()
        both = [watched.start(), watched.start()]
        for running in both:
            watched.finish(running)
        last = watched.start()
    watched.finish(last)
    messages = watched.messages

    assert sorted(outcome.summary["saved"] for outcome in watched.outcomes[1:3]) == [False, True]
    assert untold_versions(writers.truth, messages) == []
    assert gaps(messages) == []


def test_r18_what_was_told_and_never_saved_lies_in_the_range_of_a_gap(
    control_plane: ControlPlane, program: Program, cluster: Cluster, namespace: str
) -> None:
    """An object that only a killed run told of, and that is gone when the history is, can be known from the gap."""
    watched = Watched(program)
    watched.run()
    with watched.start("30s") as running:
        version = int(cluster.create(namespace, "short-lived")["metadata"]["resourceVersion"])
        wait_until(lambda: len(watched.messages) == 1, PATIENCE, "the object to be told of")
        running.send(signal.SIGKILL)
    control_plane.restart_api()
    cluster.delete(namespace, "short-lived")
    watched.run("5s", "--recover=0s")
    told, gap = watched.messages

    assert (told["subject"], told["type"]) == (f"{namespace}/short-lived", "io.argoproj.workflows.added")
    assert int(gap["data"]["from"]) < version <= int(gap["data"]["to"])
