"""Workflows that come, run and go at the hands of Argo's controller, and the truth about them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from tests.bed import lives
from tests.bed.api import Json
from tests.bed.cluster import workflows_path
from tests.bed.control_plane import ControlPlane
from tests.bed.workflow_controller import WorkflowController
from tests.history.truth import Message, Truth, in_order, untold_versions

_LAST = "the-last-one"
_NOBODYS = {"workflows.argoproj.io/controller-instanceid": "nobody"}
_LONGEST_S = 800


class Work:
    """What happens in a namespace until it is stopped; a context manager, which brings the controller, too."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path) -> None:
        self.truth = Truth()
        self._plane = plane
        self._namespace = namespace
        self._controller = WorkflowController(plane, namespace, folder)
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=each, name=each.__name__) for each in (self._work, self._record)]
        self._version = ""
        self._error: Exception | None = None
        self._complete = False

    def __enter__(self) -> Self:
        with self._plane.cluster() as cluster:
            self._version = cluster.list(self._namespace, limit=1)["metadata"]["resourceVersion"]
        self._controller.__enter__()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._controller.__exit__()

    def stop(self) -> None:
        """Let nothing happen any more, and know all that did. Raises what went wrong."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error
        assert self._complete, "the watch of the truth ended early"

    def create(self, name: str, *, size_bytes: int = 0) -> Json:
        """Create a Workflow that no controller touches, so that it has this one version; return what became of it."""
        with self._plane.cluster() as cluster:
            return cluster.create(self._namespace, name, labels=_NOBODYS, size_bytes=size_bytes)

    def untold(self, messages: Iterable[Message]) -> list[str]:
        """How the messages differ from all that happened, once it is stopped: every version and every deletion."""
        return untold_versions(self.truth, in_order(list(messages)))

    def _work(self) -> None:
        with self._plane.cluster() as cluster:
            try:
                for life in itertools.cycle((lives.deleted, lives.steps, lives.dag)):
                    name = life(self._plane, self._namespace)["metadata"]["name"]
                    if life is not lives.deleted:
                        cluster.delete(self._namespace, name)
                    if self._stopped.is_set():
                        break
            except Exception as error:  # noqa: BLE001 - raised in the test's thread
                self._error = error
        self.create(_LAST)  # nothing comes after it

    def _record(self) -> None:
        path = workflows_path(self._namespace)
        with (
            self._plane.cluster() as cluster,
            cluster.watch(path, resourceVersion=self._version, timeoutSeconds=_LONGEST_S) as watch,
        ):
            for event in watch:
                if event["type"] == "DELETED":
                    self.truth.deleted(event["object"]["metadata"]["uid"])
                else:
                    self.truth.wrote(event["object"])
                if event["object"]["metadata"]["name"] == _LAST:
                    self._complete = True
                    return
