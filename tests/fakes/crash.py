"""Ports of a process that is killed: at a chosen step, and from then on nothing that it does has an effect."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from job.message import Message
from job.ports import Check, Frame, Identity, Page, Patience, Query, Sink, Source, Store, Stored, Stream

Step = Literal["load", "identity", "list", "watch", "frames", "decode", "publish", "published", "save", "saved"]
STEPS: tuple[Step, ...] = (
    "load", "identity", "list", "watch", "frames", "decode", "publish", "published", "save", "saved",
)  # fmt: skip


class Killed(BaseException):
    """SIGKILL, as far as one process can show it to itself."""


class KilledWhileReading(Exception):
    """The same in the reading thread, which hands on what is an `Exception`."""


class Crash:
    """Kills at the `nth` time that a step is come to, in whatever thread; never, by default."""

    def __init__(self, step: Step | None = None, nth: int = 1) -> None:
        self.fired = False
        self.counts: Counter[Step] = Counter()
        self._step = step
        self._nth = nth
        self._lock = threading.Lock()

    def at(self, step: Step) -> None:
        with self._lock:
            self.counts[step] += 1
            self.fired = self.fired or (step == self._step and self.counts[step] >= self._nth)
            if self.fired:
                raise KilledWhileReading if step in {"watch", "frames"} else Killed


class MortalSource:
    """A source until the crash."""

    def __init__(self, source: Source, crash: Crash) -> None:
        self._source = source
        self._crash = crash

    def identity(self) -> Identity:
        self._crash.at("identity")
        return self._source.identity()

    def namespace_exists(self) -> bool | None:
        return self._source.namespace_exists()

    def kind(self) -> str:
        return self._source.kind()

    def list(self, query: Query, patience: Patience | None = None) -> Page:
        self._crash.at("list")
        return self._source.list(query, patience)

    def watch(self, version: int, seconds: int) -> Stream:
        self._crash.at("watch")
        return _MortalStream(self._source.watch(version, seconds), self._crash)

    def decode(self, line: bytes) -> Frame:
        self._crash.at("decode")
        return self._source.decode(line)

    def checks(self) -> Iterator[Check]:
        return self._source.checks()


class _MortalStream:
    def __init__(self, stream: Stream, crash: Crash) -> None:
        self._stream = stream
        self._crash = crash

    def __iter__(self) -> Iterator[list[bytes]]:
        for block in self._stream:
            self._crash.at("frames")
            yield block

    def close(self) -> None:
        self._stream.close()


class MortalSink:
    """A sink until the crash; what was under way then is stored without an answer, or not at all."""

    def __init__(self, sink: Sink, crash: Crash) -> None:
        self.limits = sink.limits
        self._sink = sink
        self._crash = crash

    def open(self) -> None:
        self._sink.open()

    def publish(self, lane: int, messages: Sequence[Message], timeout: float) -> None:
        self._crash.at("publish")
        self._sink.publish(lane, messages, timeout)
        self._crash.at("published")

    def checks(self, timeout: float) -> Iterator[Check]:
        return self._sink.checks(timeout)


class MortalStore:
    """A store until the crash."""

    def __init__(self, store: Store, crash: Crash) -> None:
        self._store = store
        self._crash = crash

    @property
    def most_bytes(self) -> int | None:
        return self._store.most_bytes

    def open(self) -> None:
        self._store.open()

    def load(self, timeout: float) -> Stored | None:
        self._crash.at("load")
        return self._store.load(timeout)

    def look(self, timeout: float) -> Stored | None:
        return self._store.look(timeout)

    def checks(self, timeout: float) -> Iterator[Check]:
        return self._store.checks(timeout)

    def save(self, data: bytes, replacing: object | None, timeout: float) -> object:
        self._crash.at("save")
        token = self._store.save(data, replacing, timeout)
        self._crash.at("saved")
        return token
