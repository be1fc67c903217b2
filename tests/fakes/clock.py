"""A clock that a test moves forward."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

_START = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)


class Clock:
    """Monotonic seconds that go by as they do, or faster, and jump when something is to have taken long."""

    def __init__(self, speed: int = 1) -> None:
        self._speed = speed
        self.jumped = 0.0

    def __call__(self) -> float:
        return self._speed * time.monotonic() + self.jumped

    def jump(self, seconds: float) -> None:
        self.jumped += seconds

    def now(self) -> datetime:
        """The time of day; only jumps move it, so that a history gives the same timestamps every time."""
        return _START + timedelta(seconds=self.jumped)
