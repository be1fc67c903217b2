"""A slow reader loses the end of its window: `nox -s long -- tests/benchmarks/test_busy.py`."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.benchmarks.corpus import Corpus, update_all
from tests.benchmarks.scenarios import NAMESPACE, real, summary

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

OBJECTS, NODES, EVENTS, WINDOW, RUNS = 100, 5, 5_000, 4, 5
log = logging.getLogger(__name__)


@contextmanager
def busy_cores() -> Iterator[None]:
    """As many loops as there are cores."""
    with ExitStack() as loops:
        for _ in range(os.cpu_count() or 1):
            loop = loops.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            loops.callback(loop.kill)
        yield


def test_a_busy_window_is_delivered_in_that_window() -> None:
    """5,000 changes of 6 KB that wait for a window of 4 s, on a machine whose cores have other work: five of five."""
    with real(Corpus("small", nodes=NODES, frames=4_000).record()) as place:
        names = place.create(OBJECTS, NODES)
        update_all(place.cluster, NAMESPACE, names, EVENTS)
        with busy_cores():
            for _ in range(RUNS):
                place.rewind()
                took = place.ours(f"--window={WINDOW}s")
                said = summary(took)
                log.info("%s in %.2f s, %.2f CPU-s: %s", said["published"], took.seconds, took.cpu, said["start"])
                assert (said["start"], said["published"], said["gaps"]) == ("resumed", {"modified": EVENTS}, [])
                assert said["exit_code"] == 0
