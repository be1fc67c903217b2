"""A second job, which watches all the time: what the one in question is compared with."""

from __future__ import annotations

import signal
from typing import Self

from tests.bed.cluster import Cluster
from tests.bed.waiting import wait_until
from tests.history.scene import PATIENCE, Files
from tests.history.truth import Message, Truth
from tests.program import Program


class Reference:
    """One run without an end. A context manager: entering it returns when it watches, leaving it kills it."""

    def __init__(self, program: Program, cluster: Cluster, namespace: str, truth: Truth) -> None:
        self._program = program
        self._cluster = cluster
        self._namespace = namespace
        self._truth = truth
        self._place = Files(program)
        self._marks = 0

    def __enter__(self) -> Self:
        self._running = self._program.start(*self._place.options, "--window=1h")
        try:
            self.catch_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._running.__exit__()

    @property
    def messages(self) -> list[Message]:
        """What it has told."""
        return self._place.messages

    def catch_up(self) -> int:
        """Create one more object, and return its version when it was told, and so everything before it."""
        self._marks += 1
        mark = self._cluster.create(self._namespace, f"mark-{self._marks}")["metadata"]
        self._truth.wrote({"metadata": mark})
        uid, sink = mark["uid"].encode(), self._place.sink
        wait_until(lambda: sink.exists() and uid in sink.read_bytes(), PATIENCE, "the reference to tell what it saw")
        return int(mark["resourceVersion"])

    def wait_for_another_watch(self, version: int) -> None:
        """Return when it has saved a later version than that of the last event: it has listed, and watches again."""
        saved = self._program.checkpoint_file
        wait_until(
            lambda: saved.exists() and self._program.saved.version > version, PATIENCE, "the reference to list again"
        )

    def stop(self) -> list[Message]:
        """End it as Kubernetes would, after one more object, and return what it has told."""
        self.catch_up()
        self._running.send(signal.SIGTERM)
        outcome = self._running.finish()
        assert outcome.code == 0, outcome.stderr
        return self.messages
