"""A sink in memory that does what a test has written in its script."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from enum import Enum, auto
from typing import Self

from job.errors import Forbidden, Refused, Unavailable
from job.message import Message
from job.ports import Check, Limits, Partly
from job.sinks.sqs import deduplication

_REMEMBERS = 300.0
"""Seconds that a FIFO queue recognises a repeat."""


class Answer(Enum):
    """What becomes of one batch."""

    STORED = auto()
    UNAVAILABLE = auto()
    """Nothing is stored, and the sink says that it does not know."""
    LOST = auto()
    """Everything is stored, and the answer is lost."""
    HALF = auto()
    """The first half is stored, then the connection breaks."""
    PARTLY = auto()
    """The messages of the first key are stored, and the sink says so; it does not know about the others."""
    FIRST = auto()
    """Only the first message is stored, and the sink says so; it does not know about the others."""
    BARRED = auto()
    """The messages of the first key are stored; a person must act before any other is."""
    REFUSED = auto()
    """One of the messages is refused for ever, and it is not said which; nothing is stored."""
    HANGS = auto()
    """There is no answer until the sink is left."""


class MemorySink:
    """Keeps every message that it has stored, in order, also if its answer was lost.

    A context manager: leaving it lets everything go that hangs. What breaks the contract of its caller, two batches of
    one lane at the same time or a batch above the limits, is an `AssertionError` and stays in `broken`.

    With the `clock` of a FIFO queue it drops a repeat within five minutes, as SQS does, and says that it is stored.
    """

    def __init__(
        self,
        *,
        lanes: int = 4,
        messages: int = 10,
        most_bytes: int = 100_000,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.limits = Limits(lanes=lanes, messages=messages, bytes=most_bytes)
        self.batches: list[tuple[int, list[Message]]] = []
        self.broken: list[str] = []
        self.otherwise = Answer.STORED
        """The answer when the script is at its end."""
        self.poison: Callable[[Message], bool] = lambda _: False
        """Which messages are refused for ever, together with the batch that they are in."""
        self.before: Callable[[int], object] = lambda _: None
        """Called with the lane before a batch is looked at."""
        self._script: deque[Answer] = deque()
        self._lock = threading.Lock()
        self._under_way: Counter[int] = Counter()
        self._released = threading.Event()
        self._shut: dict[int, threading.Event] = {}
        self.asked = 0
        """How often a batch came, whatever became of it."""
        self._clock = clock
        self._taken: dict[str, float] = {}
        """When a deduplication id was first stored."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        for gate in self._shut.values():
            gate.set()

    @property
    def stored(self) -> list[Message]:
        """Every message, as often as it was stored."""
        return [message for _, batch in self.batches for message in batch]

    def connect(self) -> None:
        """Another process begins: what the one before has left under way is not its own."""
        self._under_way = Counter()

    def answer(self, *answers: Answer) -> None:
        """What to do with the next batches."""
        self._script.extend(answers)

    def forget(self) -> None:
        """Drop what is left of the script."""
        self._script.clear()

    def hold(self, lane: int) -> None:
        """Let the batches of a lane wait."""
        self._shut[lane] = threading.Event()

    def release(self, lane: int) -> None:
        """Let them go on."""
        self._shut.pop(lane).set()

    def open(self) -> None:
        """Nothing to get ready."""

    def checks(self, timeout: float) -> Iterator[Check]:
        if self.otherwise is Answer.STORED:
            yield Check.ok("sink", "in memory")
        else:
            yield Check.fail("sink", f"the sink was told: {self.otherwise.name}", "tell it otherwise")

    def publish(self, lane: int, messages: Sequence[Message], timeout: float) -> None:
        self.before(lane)
        with self._lock:
            self.asked += 1
            under_way = self._under_way
            self._check(lane, messages, timeout)
            under_way[lane] += 1
            answer = self._script.popleft() if self._script else self.otherwise
            if any(map(self.poison, messages)):
                answer = Answer.REFUSED
            names = [deduplication(message) if self._clock else "" for message in messages]
        try:
            gate = self._shut.get(lane)
            if gate:
                gate.wait()
            self._act(answer, lane, list(zip(names, messages, strict=True)))
        finally:
            with self._lock:
                under_way[lane] -= 1

    def _act(self, answer: Answer, lane: int, named: list[tuple[str, Message]]) -> None:
        message = f"the sink was told: {answer.name}"
        if answer is Answer.HANGS:
            self._released.wait()
        if answer is Answer.REFUSED:
            raise Refused(message, [each.id for _, each in named])
        first = [(name, each) for name, each in named if each.key == named[0][1].key]
        if answer is Answer.FIRST:
            first = first[:1]
        stored = {Answer.STORED: named, Answer.LOST: named, Answer.HALF: named[: len(named) // 2]}
        stored |= dict.fromkeys([Answer.PARTLY, Answer.FIRST, Answer.BARRED], first)
        with self._lock:
            if kept := [each for name, each in stored.get(answer, []) if self._is_new(name)]:
                self.batches.append((lane, kept))
        if answer in {Answer.PARTLY, Answer.FIRST}:
            raise Partly([each.id for _, each in first], Unavailable(message))
        if answer is Answer.BARRED:
            raise Partly([each.id for _, each in first], Forbidden(message))
        if answer is not Answer.STORED:
            raise Unavailable(message)

    def _is_new(self, name: str) -> bool:
        if self._clock is None:
            return True
        now = self._clock()
        if now - self._taken.get(name, -_REMEMBERS) < _REMEMBERS:
            return False
        self._taken[name] = now
        return True

    def _check(self, lane: int, messages: Sequence[Message], timeout: float) -> None:
        wrong = [
            what
            for what, happened in {
                f"two batches of lane {lane} at once": self._under_way[lane] > 0,
                f"lane {lane} of {self.limits.lanes}": not 0 <= lane < self.limits.lanes,
                "an empty batch": not messages,
                f"{len(messages)} messages at once": len(messages) > self.limits.messages,
                "too many bytes at once": len(messages) > 1
                and sum(message.size for message in messages) > self.limits.bytes,
                f"a time-out of {timeout}": timeout < 0,
            }.items()
            if happened
        ]
        self.broken += wrong
        assert not wrong
