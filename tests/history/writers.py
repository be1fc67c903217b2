"""Writers that create, change and delete Workflows at a steady rate, and keep the truth about it."""

from __future__ import annotations

import random
import threading
import time
from typing import Self

import urllib3

from tests.bed.api import ClusterError, Json
from tests.bed.cluster import Cluster
from tests.history.truth import Truth

_NOT_FOUND, _CONFLICT, _SERVER_ERROR = 404, 409, 500
_PHASES = ("Pending", "Running", "Succeeded", "Failed")


class Writers:
    """Some threads, each with objects of its own. A context manager: leaving it stops them, and raises their errors."""

    def __init__(self, cluster: Cluster, namespace: str, *, objects: int, writes_per_second: float, seed: int) -> None:
        self.truth = Truth()
        self._cluster = cluster
        self._namespace = namespace
        self._stopping = threading.Event()
        self._errors: list[BaseException] = []
        count = 4
        self._threads = [
            threading.Thread(
                target=self._work,
                args=(number, objects // count, count / writes_per_second, random.Random(seed + number)),
                name=f"writer-{number}",
            )
            for number in range(count)
        ]

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

    def stop(self) -> None:
        """Finish the writes under way."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _work(self, number: int, objects: int, pause: float, choice: random.Random) -> None:
        alive: dict[str, str] = {}
        born = 0
        due = time.monotonic()
        try:
            while not self._stopping.wait(max(0.0, due - time.monotonic())):
                due = max(due + pause, time.monotonic() - 1)
                if len(alive) < objects and (len(alive) < objects // 2 or choice.random() < 0.3):
                    # Every third name is used again after its owner's death.
                    name = f"wf-{number}-{born}" if born % 3 else f"wf-{number}-again-{choice.randrange(20)}"
                    born += 1
                    if name not in alive:
                        self._create(alive, name, choice)
                elif choice.random() < 0.2:
                    self._delete(alive, choice.choice(sorted(alive)))
                else:
                    self._patch(choice.choice(sorted(alive)), choice)
        except BaseException as error:  # noqa: BLE001 - raised by `stop`
            self._errors.append(error)

    def _create(self, alive: dict[str, str], name: str, choice: random.Random) -> None:
        size = choice.randrange(2_000, 20_000)
        made = self._surely(
            lambda: self._cluster.create(self._namespace, name, size_bytes=size, phase="Running"), name, _CONFLICT
        )
        assert made is not None
        alive[name] = made["metadata"]["uid"]
        self.truth.wrote(made)

    def _patch(self, name: str, choice: random.Random) -> None:
        patch = {
            "metadata": {"annotations": {"changed": str(choice.random())}},
            "status": {"phase": choice.choice(_PHASES), "progress": f"{choice.randrange(9)}/9"},
        }
        changed = self._surely(lambda: self._cluster.patch(self._namespace, name, patch), name)
        assert changed is not None
        self.truth.wrote(changed)

    def _delete(self, alive: dict[str, str], name: str) -> None:
        self._surely(lambda: self._cluster.delete(self._namespace, name), name, _NOT_FOUND, gone=True)
        self.truth.deleted(alive.pop(name))

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
                self.truth.wrote(self._cluster.get(self._namespace, name))
            except (ClusterError, urllib3.exceptions.HTTPError):
                time.sleep(0.05)
            else:
                return True
