"""What etcd still has is told as if the watch had shown it: compared with a job that watched all the time."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import pytest

from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.bed.waiting import wait_until
from tests.fakes.api_faults import Delay, counts
from tests.fakes.api_proxy import ApiProxy
from tests.history.reference import Reference
from tests.history.scene import BETWEEN_RUNS, EXPIRY, PATIENCE, Watched, change_the_crd, refused, restart, under_load
from tests.history.truth import Message, differences, disorder, gaps, short_lived, untold_versions
from tests.history.writers import Writers
from tests.program import Program

LIFETIME = (2.0, 20.0)
"""Seconds that an object lives, unless it lives on."""
YOUNG = 75.0
"""Seconds for which the API server's ring of events keeps an event at least: it grows instead."""

log = logging.getLogger(__name__)
LONG = (pytest.mark.long, pytest.mark.timeout(1800))


@pytest.fixture(scope="module")
def reference_api(control_plane: ControlPlane) -> Iterator[str]:
    """An API server that is not restarted, and has a history of its own."""
    with control_plane.another_api() as url:
        yield url


@dataclass(frozen=True)
class Scene:
    """A job, and its reference, while the writers write."""

    control_plane: ControlPlane
    cluster: Cluster
    namespace: str
    writers: Writers
    watched: Watched
    reference: Reference

    def refused(self, version: int) -> bool:
        """Whether the API server refuses to watch from a version."""
        return refused(self.cluster, self.namespace, version)

    def wait_for_writes(self, count: int) -> None:
        """Return when the writers have written so often."""
        truth = self.writers.truth
        written = truth.writes
        wait_until(lambda: truth.writes >= written + count, PATIENCE, f"{count} writes")


@pytest.fixture
def scene(
    *,
    control_plane: ControlPlane,
    reference_api: str,
    program: Program,
    cluster: Cluster,
    namespace: str,
    tmp_path: Path,
) -> Iterator[Scene]:
    # A ring that other tests have filled would keep its events for longer.
    restart(control_plane, cluster)
    folder = tmp_path / "reference"
    folder.mkdir()
    other = Program(control_plane.kubeconfig(namespace=namespace, server=reference_api), folder)
    with (
        under_load(cluster, namespace, objects=60, seed=21, writes_per_second=20, lifetime=LIFETIME) as writers,
        Reference(other, cluster, namespace, writers.truth) as reference,
    ):
        yield Scene(control_plane, cluster, namespace, writers, Watched(program), reference)


def a_burst_after_a_quiet_spell(scene: Scene, version: int) -> None:
    """When some hundred events have gone through the ring, it has let go of all that was there before the spell."""
    with scene.writers.paused():
        time.sleep(YOUNG)
    wait_until(lambda: scene.refused(version), EXPIRY, "the ring to let go of the events before the spell")


def age(scene: Scene, version: int) -> None:
    """The ring has room for 1,600 events or, since it grew at the last moment, 3,200: for up to 160 seconds."""
    wait_until(lambda: scene.refused(version), EXPIRY, "the ring to let go of old events")


def a_restart(scene: Scene, version: int) -> None:
    restart(scene.control_plane, scene.cluster)
    wait_until(lambda: scene.refused(version), EXPIRY, "the restart to expire the history")


def a_new_definition(scene: Scene, version: int) -> None:
    """It ends the reference's watch too: nothing is written until there is another."""
    with scene.writers.paused():
        last = scene.reference.catch_up()
        change_the_crd(scene.control_plane, scene.cluster)
        wait_until(lambda: scene.refused(version), EXPIRY, "the new definition to expire the history")
        scene.reference.wait_for_another_watch(last)


def compared(scene: Scene) -> tuple[list[Message], list[Message]]:
    """What the reference told, which is everything, and what the job has told after one more run."""
    time.sleep(BETWEEN_RUNS)
    scene.writers.stop()
    reference = scene.reference.stop()
    assert {message["provenance"] for message in reference} <= {"initial", "observed"}
    assert untold_versions(scene.writers.truth, reference) == []
    scene.watched.run("0s")
    return reference, scene.watched.messages


def ways(messages: list[Message]) -> list[str]:
    """How the changes are known, one part of the history after the other."""
    changes = [message for message in messages if "k8suid" in message]
    return [provenance for provenance, _ in groupby(changes, lambda message: str(message["provenance"]))]


@pytest.mark.parametrize(
    ("expire", "seconds"),
    [
        (a_burst_after_a_quiet_spell, 0),
        (a_restart, 12),
        (a_new_definition, 12),
        pytest.param(age, 120, marks=LONG),
        pytest.param(a_restart, 120, marks=LONG),
        pytest.param(a_new_definition, 120, marks=LONG),
    ],
)
def test_r11_what_the_watch_has_lost_is_told_as_if_it_had_not(
    scene: Scene, program: Program, expire: Callable[[Scene, int], None], seconds: float
) -> None:
    """After an expired version come the messages of a job that watched, in order, and no gap."""
    watched = scene.watched
    watched.run()
    left = time.monotonic()
    expire(scene, program.saved.version)
    time.sleep(max(0.0, left + seconds - time.monotonic()))
    watched.run("5s", "--recover=100s")  # more than any machine needs
    summary = watched.outcomes[1].summary
    log.info("%s after %.0f s: %s", summary["recovery"], time.monotonic() - left, summary["provenance"])
    reference, messages = compared(scene)

    assert watched.starts == ["first", "expired", "resumed"]
    assert gaps(messages) == []
    assert differences(reference, messages) == []
    assert disorder(messages) == []
    assert ways(messages) == ["initial", "observed", "recovered", "observed"]


def test_r11_too_many_versions_are_sampled_and_only_brief_lives_may_be_missing(
    scene: Scene, proxied: Program, proxy: ApiProxy
) -> None:
    """Without the time to look at every version, a gap comes first, and what lived for long enough is told."""
    watched = Watched(proxied)
    scene = replace(scene, watched=watched)
    # On any machine then: 30 s, half of the time, suffice for 1,800 counts of 0.1 s by six connections, and no more.
    # The other half is for what was written, which is little: the writers wait while other versions pass.
    proxy.inject(on=counts(), fault=Delay(0.1), times=None)
    watched.run()
    left = time.monotonic()
    a_restart(scene, proxied.saved.version)
    for _ in range(20):
        with scene.writers.paused():
            scene.control_plane.pass_versions(1_000)
        scene.wait_for_writes(20)
    watched.run("5s", "--recover=60s")
    summary = watched.outcomes[1].summary
    log.info("%s after %.0f s: %s", summary["recovery"], time.monotonic() - left, summary["provenance"])
    reference, messages = compared(scene)

    assert watched.starts == ["first", "expired", "resumed"]
    (gap,) = gaps(messages)
    assert gap["data"]["missing"] == "short-lived"
    assert differences(reference, messages, excused=short_lived(reference, gap)) == []
    assert disorder(messages) == []
    assert ways(messages) == ["initial", "observed", "recovered", "observed"]


@pytest.mark.parametrize(("period", "seconds"), [(4, 24), pytest.param(20, 120, marks=LONG)])
def test_catching_up_now_and_then_tells_what_watching_tells(scene: Scene, period: float, seconds: float) -> None:
    """Runs without a window give the messages of a job that watched."""
    watched = scene.watched
    began = time.monotonic()
    for number in range(round(seconds / period) + 1):
        time.sleep(max(0.0, began + number * period - time.monotonic()))
        watched.run("0s")
    reference, messages = compared(scene)
    log.info("seconds: %s", [outcome.summary["seconds"] for outcome in watched.outcomes])

    assert watched.starts == ["first"] + ["resumed"] * (len(watched.outcomes) - 1)
    assert gaps(messages) == []
    assert differences(reference, messages) == []
    assert disorder(messages) == []
