"""Histories that take minutes: `nox -s long`."""

import logging
import random
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pytest

from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.bed.waiting import wait_until
from tests.fakes.gcs_server import GcsServer
from tests.fakes.publisher_server import PublisherServer
from tests.history.scene import BETWEEN_RUNS, PATIENCE, Watched, change_the_crd, restart, under_load
from tests.history.truth import gaps, untold_versions, wrong_ends
from tests.program import Program
from tests.wire.cloud import BUCKET, TOPIC, Cloud

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

log = logging.getLogger(__name__)
CHAOS_ROUNDS = 5
EVENT_BYTES, WRITERS = 6_000, 8
# A process of its own, since Linux counts what the parent had at the fork as the child's: this one is large by then.
MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss * 1024, used.ru_utime + used.ru_stime)
sys.exit(code)
"""


def test_five_runs_with_the_default_window_tell_everything(program: Program, cluster: Cluster, namespace: str) -> None:
    """With 1,000 Workflows under load for five windows of 55 seconds, nothing is missing, and no gap is announced."""
    watched = Watched(program)
    with under_load(cluster, namespace, objects=1000, seed=11) as writers:
        for _ in range(4):
            watched.run("55s")
            time.sleep(BETWEEN_RUNS)
        last = watched.start("55s")
    watched.finish(last)
    messages = watched.messages

    assert watched.starts == ["first", "resumed", "resumed", "resumed", "resumed"]
    assert len(writers.truth.lives) >= 1000
    assert untold_versions(writers.truth, messages) == []
    assert gaps(messages) == []
    assert len({message["id"] for message in messages}) == len(messages)


def test_chaos_costs_no_last_state_and_no_deletion(
    control_plane: ControlPlane, program: Program, cluster: Cluster, namespace: str
) -> None:
    """Through kills, rivals, restarts and changed definitions in any order, the ends of all stories are told."""
    watched = Watched(program)
    choice = random.Random(12)
    happenings = ["kill", "rival", "restart", "definition", "between"] * CHAOS_ROUNDS
    choice.shuffle(happenings)
    with under_load(cluster, namespace, objects=300, seed=12) as writers:
        watched.run()
        for what in happenings:
            running = watched.start("8s")
            told, more = len(watched.messages), choice.randrange(400)
            wait_until(lambda: len(watched.messages) >= told + more, PATIENCE, "the run to publish")  # noqa: B023
            if what == "kill":
                with running:
                    running.send(signal.SIGKILL)
                continue
            if what == "rival":
                watched.run("4s")
            if what == "restart":
                restart(control_plane, cluster)
            if what == "definition":
                change_the_crd(control_plane, cluster)
            watched.finish(running)
            if what == "between":
                restart(control_plane, cluster)
        last = watched.start()
    watched.finish(last)
    watched.run()
    messages = watched.messages
    log.info("%s; gaps: %s", " ".join(happenings), " ".join(message["data"]["reason"] for message in gaps(messages)))

    assert wrong_ends(writers.truth, messages) == []


def test_memory_does_not_grow_with_the_number_of_events(
    *, control_plane: ControlPlane, program: Program, cluster: Cluster, namespace: str, gcs: GcsServer
) -> None:
    """20,000 events, into a broker that answers after 30 ms, take no more memory than 5,000, and all are stored."""
    with PublisherServer(TOPIC) as broker:
        gcs.create_bucket(BUCKET)
        cloud = Cloud(program, broker, gcs)
        names = [f"w-{number:03}" for number in range(500)]
        for name in names:
            cluster.create(namespace, name, size_bytes=EVENT_BYTES)
        assert cloud.run("--window=0s").code == 0
        program.prefix = [sys.executable, "-I", "-S", "-c", MEASURE]
        broker.latency = 0.03
        few = measured(cloud, partial(burst, control_plane, namespace, names, 5_000))
        many = measured(cloud, partial(burst, control_plane, namespace, names, 20_000))

    log.info("5,000 events: %s; 20,000 events: %s", few, many)
    assert (few.start, few.stored, many.start, many.stored) == ("resumed", 5_000, "resumed", 20_000)
    assert few.peak_bytes > 30_000_000  # less is no measurement
    assert many.peak_bytes - few.peak_bytes < 15_000 * EVENT_BYTES / 2


@dataclass(frozen=True)
class Measured:
    """What one run took."""

    start: str
    stored: int
    requests: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def measured(cloud: Cloud, happen: Callable[[], None]) -> Measured:
    """Let something happen, and catch up with it."""
    happen()
    stored, requests = len(cloud.broker.stored), len(cloud.broker.requests)
    outcome = cloud.run("--window=0s")
    assert outcome.code == 0, outcome.stderr
    peak_bytes, cpu_seconds = outcome.stdout.split()
    return Measured(
        start=outcome.summary["start"],
        stored=len(cloud.broker.stored) - stored,
        requests=len(cloud.broker.requests) - requests,
        seconds=outcome.summary["seconds"],
        cpu_seconds=round(float(cpu_seconds), 2),
        peak_bytes=int(peak_bytes),
    )


def burst(control_plane: ControlPlane, namespace: str, names: list[str], events: int) -> None:
    """Change so many times, as fast as the API server takes it: its ring has the last 75 seconds at least."""

    def write(mine: list[str]) -> None:
        with control_plane.cluster() as connection:
            for number in range(events // WRITERS):
                name = mine[number % len(mine)]
                connection.patch(namespace, name, {"status": {"progress": f"{random.randrange(10**9)}/1"}})

    with ThreadPoolExecutor(WRITERS) as threads:
        list(threads.map(write, [names[first::WRITERS] for first in range(WRITERS)]))
