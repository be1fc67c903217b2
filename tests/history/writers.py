"""Writers that create, change and delete Workflows at a steady rate, and keep the truth about it."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Self

import urllib3

from tests.bed.api import ClusterError, Json
from tests.bed.cluster import Cluster
from tests.history.truth import Truth

_NOT_FOUND, _CONFLICT, _SERVER_ERROR = 404, 409, 500
_PHASES = ("Pending", "Running", "Succeeded", "Failed")
_COUNT = 4


class Writers:
    """Some threads, each with objects of its own. A context manager: leaving it stops them, and raises their errors.

    With a `lifetime`, the least and the most seconds, an object is deleted when its time has come, and one in three
    lives on; without one, any object may be deleted at any time.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        *,
        objects: int,
        writes_per_second: float,
        seed: int,
        lifetime: tuple[float, float] | None = None,
    ) -> None:
        self.truth = Truth()
        self._stopping = threading.Event()
        self._going_on = threading.Event()
        self._going_on.set()
        self._errors: list[BaseException] = []
        self._writers = [
            _Writer(
                cluster,
                namespace,
                self.truth,
                number=number,
                objects=objects // _COUNT,
                lifetime=lifetime,
                choice=random.Random(seed + number),
            )
            for number in range(_COUNT)
        ]
        pause = _COUNT / writes_per_second
        self._threads = [threading.Thread(target=self._work, args=(writer, pause)) for writer in self._writers]

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def rate(self) -> float:
        """Writes per second so far."""
        return self.truth.writes / (time.monotonic() - self._began)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Finish the writes under way, and begin no other inside the block."""
        # A writer that is late, as all are on a slow server, takes its lock again at once: it has to wait before that.
        self._going_on.clear()
        try:
            with ExitStack() as pauses:
                for writer in self._writers:
                    pauses.enter_context(writer.busy)
                yield
        finally:
            self._going_on.set()

    def stop(self) -> None:
        """Finish the writes under way."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _work(self, writer: _Writer, pause: float) -> None:
        due = time.monotonic()
        try:
            while not self._stopping.wait(max(0.0, due - time.monotonic())):
                due = max(due + pause, time.monotonic() - 1)
                self._going_on.wait()
                with writer.busy:
                    writer.write()
        except BaseException as error:  # noqa: BLE001 - raised by `stop`
            self._errors.append(error)


@dataclass(frozen=True, slots=True)
class _Owned:
    """An object that lives."""

    uid: str
    dies: float
    """When it is to be deleted, by the monotonic clock."""


class _Writer:
    """The objects of one thread."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        truth: Truth,
        *,
        number: int,
        objects: int,
        lifetime: tuple[float, float] | None,
        choice: random.Random,
    ) -> None:
        self.busy = threading.Lock()
        """Held during a write."""
        self._cluster = cluster
        self._namespace = namespace
        self._truth = truth
        self._number = number
        self._objects = objects
        self._lifetime = lifetime
        self._choice = choice
        self._alive: dict[str, _Owned] = {}
        self._free: list[str] = []
        self._born = 0

    def write(self) -> None:
        """Create, change or delete one object."""
        overdue = [name for name, owned in self._alive.items() if owned.dies <= time.monotonic()]
        some, chance = len(self._alive), self._choice.random()
        if overdue:
            self._delete(overdue[0])
        elif some < self._objects and (some < self._objects // 2 or chance < 0.3):
            self._create()
        elif self._lifetime is None and self._choice.random() < 0.2:
            self._delete(self._choice.choice(sorted(self._alive)))
        else:
            self._patch(self._choice.choice(sorted(self._alive)))

    def _create(self) -> None:
        self._born += 1
        # Every third object takes the name of the one that died last.
        again = self._free and self._born % 3 == 0
        name = self._free.pop() if again else f"wf-{self._number}-{self._born}"
        size = self._choice.randrange(2_000, 20_000)
        made = self._surely(
            lambda: self._cluster.create(self._namespace, name, size_bytes=size, phase="Running"), name, _CONFLICT
        )
        assert made is not None
        self._truth.wrote(made)
        self._alive[name] = _Owned(made["metadata"]["uid"], self._death())

    def _death(self) -> float:
        lasting = sum(owned.dies == math.inf for owned in self._alive.values())
        if self._lifetime is None or (lasting < self._objects // 3 and self._choice.random() < 1 / 3):
            return math.inf
        return time.monotonic() + self._choice.uniform(*self._lifetime)

    def _patch(self, name: str) -> None:
        patch = {
            "metadata": {"annotations": {"changed": str(self._choice.random())}},
            "status": {"phase": self._choice.choice(_PHASES), "progress": f"{self._choice.randrange(9)}/9"},
        }
        changed = self._surely(lambda: self._cluster.patch(self._namespace, name, patch), name)
        assert changed is not None
        self._truth.wrote(changed)

    def _delete(self, name: str) -> None:
        self._surely(lambda: self._cluster.delete(self._namespace, name), name, _NOT_FOUND, gone=True)
        self._truth.deleted(self._alive.pop(name).uid)
        self._free.append(name)

    def _surely(self, write, name: str, done: int = 0, *, gone: bool = False) -> Json | None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        """Write until the server has confirmed it: one that restarts may have done so without an answer.

        `done` is the status by which a second attempt learns that the first one had succeeded.
        """
        answer: Json
        attempts = 0
        while True:
            attempts += 1
            try:
                answer = write()
            except ClusterError as error:
                if attempts > 1 and error.status == done:
                    return None if gone else self._cluster.get(self._namespace, name)
                if error.status < _SERVER_ERROR and error.status not in {403, 429}:
                    raise
            except urllib3.exceptions.HTTPError:
                if done == 0 and self._lost_patch(name):
                    continue
            else:
                return answer
            time.sleep(0.05)

    def _lost_patch(self, name: str) -> bool:
        """Note the version that a patch without an answer may have made."""
        while True:
            try:
                self._truth.wrote(self._cluster.get(self._namespace, name))
            except (ClusterError, urllib3.exceptions.HTTPError):
                time.sleep(0.05)
            else:
                return True
