"""A subscription in memory, which keeps the contract and does what a test scripts it to do."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from job.errors import Unavailable
from job.ports import Received

_LEASE = 10.0
_MOMENT = 0.02
"""Between two looks at a clock that may be a test's own."""
_BEGAN = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)


class MemorySubscription:
    """Delivers what was published first, and what was refused last."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._numbers = itertools.count(1)
        self._queue: list[Received] = []
        self._leased: dict[str, tuple[Received, float]] = {}
        self._failures: dict[str, list[BaseException]] = {}
        self.connects_in = 0.0
        """Seconds; a pull that has less fails as one that no broker has seen."""
        self.before_open: Callable[[], object] = lambda: None
        self.before_pull: Callable[[], object] = lambda: None
        self.before_refusal: Callable[[], object] = lambda: None
        """Called before a message is given back."""
        self.acknowledged: list[str] = []
        """Ids of messages."""
        self.extended: list[list[str]] = []
        """Ids of messages, request by request."""

    def publish(self, attributes: Mapping[str, str], data: bytes = b"{}") -> str:
        """Add a message, a second later than the one before. Return its id."""
        with self._changed:
            number = next(self._numbers)
            published = _BEGAN + timedelta(seconds=number)
            self._queue.append(Received("", str(number), attributes, data, published))
            self._changed.notify_all()
        return str(number)

    def fail(self, method: str, *errors: BaseException) -> None:
        """Have the next calls of a method fail."""
        self._failures.setdefault(method, []).extend(errors)

    @property
    def left(self) -> list[str]:
        """Ids of messages that are to be delivered."""
        with self._changed:
            return [each.message_id for each in self._queue]

    def open(self) -> None:
        self.before_open()
        self._perhaps_fail("open")

    def pull(self, most: int, timeout: float) -> Sequence[Received]:
        self.before_pull()
        self._perhaps_fail("pull")
        if timeout < self.connects_in:
            message = "no connection in time"
            raise Unavailable(message)
        with self._changed:
            until = self._clock() + timeout
            while not self._take_back() and self._clock() < until:
                self._changed.wait(_MOMENT)
            now = self._queue[:most]
            del self._queue[:most]
            given = [
                Received(f"ack-{next(self._numbers)}", each.message_id, each.attributes, each.data, each.published)
                for each in now
            ]
            self._leased |= {each.ack_id: (each, self._clock() + _LEASE) for each in given}
            return given

    def extend(self, ack_ids: Sequence[str], seconds: int) -> None:
        self._perhaps_fail("extend")
        with self._changed:
            self._take_back()
            held = self._held(ack_ids)
            self._leased |= {ack_id: (self._leased[ack_id][0], self._clock() + seconds) for ack_id in held}
            self.extended.append([self._leased[ack_id][0].message_id for ack_id in held])

    def acknowledge(self, ack_ids: Sequence[str]) -> None:
        self._perhaps_fail("acknowledge")
        with self._changed:
            self._take_back()
            self.acknowledged += [self._leased.pop(ack_id)[0].message_id for ack_id in self._held(ack_ids)]
            self._changed.notify_all()

    def refuse(self, ack_ids: Sequence[str]) -> None:
        self._perhaps_fail("refuse")
        self.before_refusal()
        with self._changed:
            self._take_back()
            self._queue += [self._leased.pop(ack_id)[0] for ack_id in self._held(ack_ids)]
            self._changed.notify_all()

    def _held(self, ack_ids: Iterable[str]) -> list[str]:
        return [ack_id for ack_id in ack_ids if ack_id in self._leased]

    def _take_back(self) -> bool:
        """Queue what was leased for too short, and say whether there is something to deliver."""
        now = self._clock()
        for ack_id in [ack_id for ack_id, (_, until) in self._leased.items() if until < now]:
            self._queue.append(self._leased.pop(ack_id)[0])
        return bool(self._queue)

    def _perhaps_fail(self, method: str) -> None:
        if failures := self._failures.get(method):
            raise failures.pop(0)
