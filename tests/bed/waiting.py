"""Waiting for a condition with a deadline, the only kind of waiting the tests do."""

import time
from collections.abc import Callable
from datetime import timedelta

_PAUSE = timedelta(seconds=0.02)


def wait_until(condition: Callable[[], bool], within: timedelta, what: str, *, every: timedelta = _PAUSE) -> None:
    """Return as soon as `condition` holds, which is asked every so often.

    Raises TimeoutError, which names `what`, when it does not hold `within` the time given; what `condition` raises goes
    through.
    """
    deadline = time.monotonic() + within.total_seconds()
    while not condition():
        if time.monotonic() > deadline:
            message = f"waited {within.total_seconds():g} s in vain for {what}"
            raise TimeoutError(message)
        time.sleep(every.total_seconds())
