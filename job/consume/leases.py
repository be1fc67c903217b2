"""What the broker is to be told about deliveries, until it has heard it.

When it is away for a moment, the same is said again after a pause. What it never hears makes it deliver a message
again, which the next run, or this one, can stand.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence

from job.errors import Unavailable
from job.logs import event
from job.ports import Subscription

LEASE = 60
"""Seconds."""
_RENEWED_AFTER = 20.0
_PAUSE = 1.0

log = logging.getLogger(__name__)


class Leases:
    """Those of one run; used by one thread."""

    def __init__(self, subscription: Subscription, clock: Callable[[], float]) -> None:
        self._subscription = subscription
        self._clock = clock
        self._processed: list[str] = []
        self._given_back: list[str] = []
        self._tell_at = -math.inf
        self._renew_at = clock() + _RENEWED_AFTER

    def acknowledge(self, ack_ids: Iterable[str]) -> None:
        """Have these acknowledged."""
        self._processed += ack_ids

    def refuse(self, ack_ids: Iterable[str]) -> None:
        """Have these given back."""
        self._given_back += ack_ids

    def take(self, ack_ids: Sequence[str]) -> None:
        """Lease what has just come."""
        self._extend(ack_ids)

    def renew(self, ack_ids: Callable[[], Sequence[str]]) -> None:
        """Lease what is held for longer, if it is time."""
        if self._clock() >= self._renew_at:
            self._renew_at = self._clock() + _RENEWED_AFTER
            self._extend(ack_ids())

    def tell(self) -> None:
        """Tell the broker what it has not heard yet, if it is time. Raises `WatcherError` where a person must act."""
        if self._clock() < self._tell_at:
            return
        try:
            if self._processed:
                self._subscription.acknowledge(self._processed)
                self._processed = []
            if self._given_back:
                self._subscription.refuse(self._given_back)
                self._given_back = []
        except Unavailable as error:
            self._tell_at = self._clock() + _PAUSE
            log.warning("%s; trying again", error, extra=event("consume.untold"))

    @property
    def told(self) -> bool:
        """Whether the broker has heard everything."""
        return not (self._processed or self._given_back)

    def _extend(self, ack_ids: Sequence[str]) -> None:
        if not ack_ids:
            return
        try:
            self._subscription.extend(ack_ids, LEASE)
        except Unavailable as error:
            self._renew_at = self._clock() + _PAUSE
            log.warning("%s; trying again", error, extra=event("consume.unleased"))
