"""Histories that take minutes: `nox -s long`."""

import logging
import random
import signal
import time

import pytest

from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.bed.waiting import wait_until
from tests.history.scene import BETWEEN_RUNS, PATIENCE, Watched, change_the_crd, restart, under_load
from tests.history.truth import gaps, untold_versions, wrong_ends
from tests.program import Program

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

log = logging.getLogger(__name__)
CHAOS_ROUNDS = 5


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
