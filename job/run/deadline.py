"""One monotonic clock for everything a run waits for.

    start ──────── window ────────┤ the watch ends
                                  ├── 10 s ──┤ a listing that is under way ends
                                             ├── 10 s ──┤ the sink has drained
                                                        ├─ 8 s ─┤ the checkpoint is saved

So a run takes its window and less than 30 s more (P5). 30 s is also Kubernetes' grace period after SIGTERM: a signal
moves the run straight to a drain of at most 10 s, a second one straight to the save.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from job.errors import OutOfTime, Stopped

LOADING = 20.0
"""Seconds for which a store that is not there is asked for the checkpoint, within the time for reading."""
LISTING = 10.0
DRAIN = 10.0
SAVE = 8.0
CATCH_UP = 10.0
"""The own deadline of a run without a window: time to read up to the version of the probe."""
_TICK = 0.1
"""How late, in seconds, a waiting thread may notice a signal."""


class Deadline:
    """How much time is left, for whom; and whether a signal has cut it short."""

    def __init__(
        self,
        window: timedelta,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._began = clock()
        self._window = window.total_seconds() or CATCH_UP
        self._drained_by = self._began + self._window + LISTING + DRAIN
        self._signals = 0
        self._interruptible = False
        self.on_signal: Callable[[], None] = lambda: None
        """Called by the signal handler: must not take a lock."""

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._began

    @property
    def stopped(self) -> bool:
        """Whether a signal came."""
        return self._signals > 0

    @property
    def watch_left(self) -> float:
        """Seconds left of the window."""
        return 0.0 if self.stopped else max(0.0, self._window - self.elapsed)

    @property
    def publish_left(self) -> float:
        """Seconds until the sink must have drained."""
        return 0.0 if self._signals > 1 else max(0.0, self._drained_by - self._clock())

    def left(self) -> float:
        """Seconds left for reading from the API server, a listing included."""
        return 0.0 if self.stopped else max(0.0, self._window + LISTING - self.elapsed)

    def pause(self, seconds: float) -> None:
        """Wait between two attempts."""
        self.check()
        if seconds >= self.left():
            message = "no time is left for another attempt"
            raise OutOfTime(message)
        until = self._clock() + seconds
        while (rest := until - self._clock()) > 0:
            self._sleep(min(rest, _TICK))
            self.check()

    def check(self) -> None:
        """Raise what ends the reading, if anything does."""
        if self.stopped:
            raise Stopped
        if not self.left():
            message = "the deadline of the run has passed"
            raise OutOfTime(message)

    def signal(self) -> None:
        """Note a SIGTERM or SIGINT; called by the signal handler, in the main thread."""
        self._signals += 1
        self._drained_by = min(self._drained_by, self._clock() + DRAIN)
        self.on_signal()
        if self._interruptible:
            self._interruptible = False
            raise Stopped

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A stretch of the main thread that only reads: a signal ends it at once, also in a socket read."""
        self.check()
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False
