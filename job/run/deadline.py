"""One monotonic clock for everything a run waits for.

    start ──────── window ────────┤ the watch ends
                                  ├── 10 s ──┤ a listing that is under way ends
                                             ├── 10 s ──┤ the sink has drained
                                                        ├─ 8 s ─┤ the checkpoint is saved

So a run takes its window and less than 30 s more (P5), and what it spends on reading lost history back: that moves
everything but the end of the watch. 30 s is also Kubernetes' grace period after SIGTERM: a signal moves the run
straight to a drain of at most 10 s, a second one straight to the save.
"""

from __future__ import annotations

import math
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
        *,
        recover: timedelta = timedelta(),
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._began = self._since = clock()
        self._window = window.total_seconds() or CATCH_UP
        self._recover = recover.total_seconds()
        self._recovered = 0.0
        self._recovering_since: float | None = None
        self._signals = 0
        self._signalled_at = math.inf
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
        return 0.0 if self.stopped else max(0.0, self._window - (self._clock() - self._since))

    @property
    def publish_left(self) -> float:
        """Seconds until the sink must have drained."""
        drained_by = min(self._since + self._window + self._granted + LISTING, self._signalled_at) + DRAIN
        return 0.0 if self._signals > 1 else max(0.0, drained_by - self._clock())

    @property
    def recover_left(self) -> float:
        """Seconds left for reading lost history back; 0 but while that is done."""
        if self.stopped or self._recovering_since is None:
            return 0.0
        return max(0.0, self._recover - self._recovered - (self._clock() - self._recovering_since))

    @property
    def _granted(self) -> float:
        """Seconds by which reading lost history back moves the ends."""
        return self._recovered if self._recovering_since is None else self._recover

    def left(self) -> float:
        """Seconds left for reading from the API server, a listing included."""
        until = self._since + self._window + self._granted + LISTING
        return 0.0 if self.stopped else max(0.0, until - self._clock())

    def renew(self) -> None:
        """Begin the window anew, from any thread: for what may take any time while it moves."""
        self._since = self._clock()

    def pause(self, seconds: float) -> None:
        """Wait between two attempts."""
        self.wait(seconds, self.left)

    def wait(self, seconds: float, left: Callable[[], float]) -> None:
        """Wait, if more than that is left."""
        self.check()
        if seconds >= left():
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
        self._signalled_at = min(self._signalled_at, self._clock())
        self.on_signal()
        if self._interruptible:
            self._interruptible = False
            raise Stopped

    @contextmanager
    def recovering(self) -> Iterator[Recovering]:
        """Read lost history back, for as long as there is time for that in this run."""
        since = self._recovering_since = self._clock()
        try:
            yield Recovering(self)
        finally:
            self._recovered = min(self._recover, self._recovered + self._clock() - since)
            self._recovering_since = None

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A stretch of the main thread that only reads: a signal ends it at once, also in a socket read."""
        self.check()
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False


class Recovering:
    """The patience of those who read lost history back. Safe in several threads."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline

    def left(self) -> float:
        """Seconds left."""
        return self._deadline.recover_left

    def pause(self, seconds: float) -> None:
        """Wait between two attempts."""
        self._deadline.wait(seconds, self.left)
