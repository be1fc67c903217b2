"""Everyone against the replay server, back to back, in rounds."""

from __future__ import annotations

import logging
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.benchmarks.processes import Ending, Took, pod_files, run
from tests.benchmarks.replay import BEGIN, Counts, Replay
from tests.benchmarks.watchers import CHECKPOINT, OURS, QUIET, Watcher, environment
from tests.fakes.gcs_server import GcsServer

BUCKET, NAME = CHECKPOINT.removeprefix("gs://").split("/")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """What one round says of one watcher and one corpus."""

    cpu_per_event: float
    """Seconds of CPU, start-up not included."""
    rate: float
    """Events per second, from the opening of the watch to the last acknowledgement; 0 for who publishes nothing."""
    first: float
    """Seconds from the start of the process to the first acknowledgement; 0 for who publishes nothing."""
    quiet_cpu: float
    """Seconds of CPU of a run in which nothing happens."""
    quiet_peak: int
    """The most bytes of memory of that run."""
    peak: int
    """The most bytes of memory under load."""


class Bench:
    """The servers for one corpus."""

    def __init__(self, corpus: Path, objects: int = 0) -> None:
        self.checkpoint = b""
        """Where each run of ours begins: all objects are known, and nothing has happened yet."""
        self._corpus = corpus
        self._objects = objects
        self._servers = ExitStack()
        self._gcs = GcsServer()

    def __enter__(self) -> Self:
        with ExitStack() as entered:
            folder = Path(entered.enter_context(tempfile.TemporaryDirectory()))
            entered.enter_context(self._gcs)
            self._gcs.create_bucket(BUCKET)
            self._replay = entered.enter_context(Replay(self._corpus, folder / "replay"))
            self._pod = pod_files(self._replay.ca_file, folder / "pod")
            self.took(OURS, 0)
            self.checkpoint = self._gcs.get(BUCKET, NAME) or b""
            self._servers = entered.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._servers.close()

    def round(self, watcher: Watcher, events: int) -> Row:
        """Nothing, one event, and many."""
        quiet, _ = self.took(watcher, 0)
        one, at_first = self.took(watcher, 1) if watcher.publishes else (quiet, None)
        many, counted = self.took(watcher, events)
        lasted = counted.last - counted.watched
        return Row(
            cpu_per_event=(many.cpu - one.cpu) / (events - 1),
            rate=events / lasted if watcher.publishes else 0.0,
            first=at_first.first - one.began if at_first else 0.0,
            quiet_cpu=quiet.cpu,
            quiet_peak=quiet.peak,
            peak=many.peak,
        )

    def took(self, watcher: Watcher, events: int) -> tuple[Took, Counts]:
        """What a watcher takes for so many events, all of which must arrive. Ours has a checkpoint from before them."""
        if self.checkpoint:
            self._gcs.put(BUCKET, NAME, self.checkpoint)
        version = BEGIN + events if watcher.catches_up else BEGIN
        self._replay.begin(events=events, version=version, objects=self._objects)
        ending = None if watcher.ends else self._ending(events)
        places = environment(self._replay, self._gcs.url)
        took = run(watcher.command(self._replay, events), places, self._pod, ending)
        counts = self._replay.counts
        if watcher.publishes and counts.messages != events:
            message = f"{watcher.name} published {counts.messages} of {events} events:\n{took.stderr}"
            raise RuntimeError(message)
        log.info(
            "%-32s %6d events: %.3f CPU-s, %.0f MB, %.2f s",
            *(watcher.name, events, took.cpu, took.peak / 1e6, took.seconds),
        )
        return took, counts

    def _ending(self, events: int) -> Ending:
        return lambda seconds: self._replay.counts.messages >= events if events else seconds > QUIET
