"""A run in this process, between a model cluster, a sink and a store in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Self
from unittest import mock

import msgspec

from job import checkpoint
from job.change import Known, Resource
from job.checkpoint import Checkpoint, Scope
from job.message import Message
from job.payload import EVERYTHING, Content
from job.ports import Identity
from job.run import Ports, recover, run
from job.run.deadline import Deadline
from job.run.summary import Summary
from job.selector import Selector
from job.settings import Address, Initial, Settings
from tests.fakes.crash import Crash, MortalSink, MortalSource, MortalStore
from tests.fakes.sink import MemorySink
from tests.fakes.source import WORKFLOWS, ModelCluster, ModelSource, Step
from tests.fakes.store import MemoryStore

WINDOW, RECOVER = timedelta(seconds=55), timedelta(seconds=20)
Told = tuple[str, str, str]
"""The kind of a message, the name of its object, and its provenance."""


class Scene:
    """One cluster, one sink and one store, and runs between them. A context manager: leaving it frees what hangs.

    `recover` is what its runs have for that, where they have no settings of their own; with 0 an expiry is inferred.
    """

    def __init__(
        self,
        *,
        resource: Resource = WORKFLOWS,
        namespace: str = "argo",
        recover: timedelta = RECOVER,
        cluster: ModelCluster | None = None,
        lanes: int = 1,
    ) -> None:
        """With one lane messages are stored in the order in which they are told; with more, only those of each key."""
        self.cluster = cluster or ModelCluster(resource=resource)
        self.clock = self.cluster.clock
        self.sink = MemorySink(lanes=lanes)
        self.store = MemoryStore()
        self.dead_letters: MemorySink | None = None
        self.namespace = namespace
        self.recover = recover
        self.runs: list[Summary] = []
        self._started = 0
        self.deadline = Deadline(WINDOW, self.clock, self.clock.jump)
        """That of the last run; a step of the cluster may send a signal."""

    def __enter__(self) -> Self:
        self.sink.__enter__()
        self.store.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.sink.__exit__()
        self.store.__exit__()

    def settings(
        self,
        *,
        window: timedelta = WINDOW,
        recover: timedelta | None = None,
        selector: str = "",
        sink: str = "memory:",
        initial: Initial = Initial.PUBLISH,
        resource_version: int | None = None,
        content: Content = EVERYTHING,
    ) -> Settings:
        matching = Selector(selector)
        resource = self.cluster.resource
        return Settings(
            scope=Scope("lab", str(resource), self.namespace, matching.text, sink),
            resource=resource,
            selector=matching,
            sink=Address("memory", ""),
            checkpoint=Address("memory", ""),
            window=window,
            recover=self.recover if recover is None else recover,
            content=content,
            dead_letter=Address("memory", "dead") if self.dead_letters else None,
            initial=initial,
            resource_version=resource_version,
        )

    def run(self, settings: Settings | None = None, crash: Crash | None = None) -> Summary:
        """One run; the next one starts with the clock where this one leaves it."""
        settings = settings or self.settings()
        crash = crash or Crash()
        ports = Ports(
            MortalSource(ModelSource(self.cluster, self.namespace), crash),
            MortalSink(self.sink, crash),
            MortalStore(self.store, crash),
            self.dead_letters,
        )
        self.deadline = Deadline(settings.window, self.clock, self.clock.jump, recover=settings.recover)
        self._started += 1
        self.sink.connect()
        try:
            summary = run(settings, ports, self.deadline, run_id=f"run-{self._started}", now=self.clock.now)
        finally:
            # A process that is killed has no thread left that saves.
            for thread in set(threading.enumerate()) - {threading.current_thread()}:
                if thread.name == "save":
                    thread.join(timeout=5)
        self.runs.append(summary)
        return summary

    def signal(self) -> None:
        """Send the run that is under way a SIGTERM."""
        self.deadline.signal()

    @property
    def saved(self) -> Checkpoint:
        """The checkpoint as it is stored."""
        stored = self.store.load(timeout=1)
        assert stored is not None
        return checkpoint.decode(stored.data)

    @property
    def known(self) -> dict[str, int]:
        """The names and versions of the saved inventory, without tombstones."""
        return {entry.name: entry.version for entry in self.saved.inventory.values() if not entry.deleted}

    def save(self, version: int, inventory: dict[str, Known] | None = None, **about: object) -> None:
        """Put a checkpoint where the next run finds it."""
        made = Checkpoint(
            scope=self.settings().scope,
            identity=Identity("cluster-1", "definition-1"),
            version=version,
            inventory=inventory or {},
            run_id="earlier",
            saved_at=self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ"),
            audited_at=self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        for name, value in about.items():
            made = _replaced(made, name, value)
        self.store.put(checkpoint.encode(made))

    @property
    def messages(self) -> list[Message]:
        """What the sink has stored."""
        return self.sink.stored

    def told(self, since: int = 0) -> list[Told]:
        """The same in short, from the message number `since` on."""
        return [
            (
                message.attributes["type"].rpartition(".")[2],
                message.attributes.get("subject", "").rpartition("/")[2],
                message.attributes["provenance"],
            )
            for message in self.messages[since:]
        ]


@contextmanager
def reading_back(
    *, pieces: int = 1_000, counts: int = 10_000, seconds: float = RECOVER.total_seconds()
) -> Iterator[None]:
    """Let history be read back in pieces of so many versions, and as if there were time for so many counts."""
    share = 0.5
    with ExitStack() as patched:
        for name, value in {
            "_PIECE": pieces,
            "_FOR_STATES": 1_000,
            "_FOR_COUNTS": share,
            "_LEAST_SECONDS": seconds * share / counts,
            "_TRIAL": 2,
            "WHOLE_PAGE": 3,
        }.items():
            patched.enter_context(mock.patch.object(recover, name, value))
        yield


def at_once(*steps: Step) -> Step:
    """Several steps of a cluster as one."""

    def step() -> None:
        for each in steps:
            each()

    return step


def _replaced(made: Checkpoint, name: str, value: object) -> Checkpoint:
    return msgspec.structs.replace(made, **{name: value})
