"""The other end of the queue: pull for a window, hand each event to a command, acknowledge what it has processed.

    pull ──> Queue ──start──> command ──exit 0──> acknowledge
               │ needless: acknowledge   └─else──> give back: the broker says when it comes again

One thread decides everything and talks to the broker about what it has. Pulls and commands, which may take long, run in
threads of their own and report to its inbox. Every delivery is leased for a minute as it comes, and again long
before that is over, for as long as its event waits or runs.

The end, of the window or by a signal: nothing is pulled any more, what waits is given back, and commands that run have
10 s. Then they are sent SIGTERM, and SIGKILL 2 s later, and their events are given back. A second
signal kills them at once. 30 s is Kubernetes' grace period, and all this takes less.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from queue import Empty, SimpleQueue
from signal import SIGKILL, SIGTERM

from job.consume.commands import Commands
from job.consume.event import Event, NotAnEvent, event as read_event
from job.consume.leases import Leases
from job.consume.queue import Needless, Queue, Recent
from job.consume.summary import Counts, Summary
from job.errors import Stopped, Unavailable, WatcherError
from job.logs import event
from job.ports import Received, Subscription

AT_ONCE = 4
"""Commands at a time."""
_GRACE, _KILL, _LAST_WORDS = 10.0, 2.0, 5.0
_PULL = 3.0
"""Seconds for a pull: a signal waits for it, and a queue is empty that has brought nothing for so long."""
_MOST_EVENTS, _MOST_BYTES = 200, 64_000_000
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0
_UNREACHABLE = 20.0
"""How long a broker may be away while a queue is emptied."""
_LONGEST_BACK_OFF = 660.0
"""What was given back longer ago will not come again: a retry policy waits for 600 s at most."""
_LONGEST = 3600.0
"""A queue that is never empty is left after an hour."""
_TICK = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Pulled:
    began: float
    deliveries: Sequence[Received] = ()
    error: Exception | None = None


@dataclass(frozen=True)
class _Ended:
    event: Event
    exit_code: int
    killed: bool


class Consumer:
    """One window. `signal` may be called in a signal handler, at any time."""

    def __init__(
        self,
        subscription: Subscription,
        commands: Commands,
        *,
        window: timedelta,
        latest_only: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._subscription = subscription
        self._commands = commands
        self._until_empty = not window
        self._clock = clock
        self._queue = Queue(latest_only=latest_only, until_empty=self._until_empty)
        self._leases = Leases(subscription, clock)
        self._counts = Counts()
        self._inbox: SimpleQueue[_Pulled | _Ended | None] = SimpleQueue()
        self._signals = 0
        self._killing = False
        self._began = self._news_at = clock()
        self._ends = self._began + (window.total_seconds() or _LONGEST)
        self._pulling = self._asked = False
        """Whether a pull is under way, and whether there has been one: a window has at least that."""
        self._pull_at, self._pause = -math.inf, _FIRST_PAUSE
        self._answered: float | None = None
        """When the last pull began that the broker has answered; a window in which it never did has failed."""
        self._away: Unavailable | None = None
        """Why the last pull was not answered."""
        self._away_since = 0.0
        """Since when no pull was."""
        self._error: WatcherError | None = None
        self._unreadable: Recent[str, None] = Recent()

    def signal(self) -> None:
        """End soon; called again, at once."""
        self._signals += 1
        self._inbox.put(None)

    def run(self) -> Summary:
        """Consume until the end. What a person must mend, or the broker's absence, is in the summary."""
        try:
            self._consume()
            self._end()
            if self._answered is None and not self._signals:
                self._error = self._error or self._away
        finally:
            self._commands.send(SIGKILL)  # nobody will read how they end
        left = self._queue.failing or self._unreadable or self._clock() >= self._ends
        return Summary(
            counts=self._counts,
            seconds=self._clock() - self._began,
            error=self._error,
            unfinished=bool(self._until_empty and not self._signals and left),
        )

    def _consume(self) -> None:
        try:
            self._subscription.open()
            while not self._over():
                self._pull()
                self._receive(_TICK)
                self._drop_needless()
                for each in self._queue.blocked():
                    self._leases.refuse(each.ack_ids)
                self._start_commands()
                self._leases.tell()
                self._leases.renew(lambda: self._queue.ack_ids)
        except WatcherError as error:
            self._error = error
        except Stopped:  # while credentials were waited for
            pass

    def _over(self) -> bool:
        """Whether nothing more is to be pulled. Raises `Unavailable` where a queue cannot be emptied."""
        now = self._clock()
        if self._signals:
            return True
        if self._away and self._until_empty and now - self._away_since >= _UNREACHABLE:
            raise self._away
        quiet = self._answered is not None and self._answered >= self._news_at and now - self._news_at >= _PULL
        late = self._asked and now >= self._ends
        return late or (self._until_empty and quiet and not self._queue.running)

    def _pull(self) -> None:
        """Ask for more, if there is room; one pull at a time."""
        now = self._clock()
        if self._pulling or now < self._pull_at:
            return
        self._queue.forget_away(now - _LONGEST_BACK_OFF)
        room = _MOST_EVENTS - len(self._queue)
        if room <= 0 or self._queue.bytes >= _MOST_BYTES:
            if self._queue.running:
                return
            # All wait for something that was given back, and must have room to come.
            for each in self._queue.give_back(len(self._queue) // 2 + 1, now):
                self._leases.refuse(each.ack_ids)
            room = _MOST_EVENTS - len(self._queue)
        self._pulling = self._asked = True
        # A broker that has not answered yet is judged by a whole pull: a connection may take longer than what is left.
        timeout = _PULL if self._answered is None else min(_PULL, max(self._ends - now, _TICK))
        threading.Thread(target=self._pull_in_background, args=(now, room, timeout), name="pull", daemon=True).start()

    def _pull_in_background(self, began: float, most: int, timeout: float) -> None:
        try:
            self._inbox.put(_Pulled(began, self._subscription.pull(most, timeout)))
        except Exception as error:  # noqa: BLE001 - raised by who reads the inbox
            self._inbox.put(_Pulled(began, error=error))

    def _receive(self, timeout: float) -> None:
        """Take what has come, and wait for it if nothing has."""
        try:
            while True:
                self._take(self._inbox.get(timeout=timeout))
                timeout = 0.0
        except Empty:
            pass

    def _take(self, come: _Pulled | _Ended | None) -> None:
        if isinstance(come, _Ended):
            # Who was told to stop may say that all is well, and have processed nothing.
            if any(each is come.event for each in self._queue.running):  # else it was given up
                self._settle(come.event, (come.exit_code or -SIGTERM) if come.killed else come.exit_code)
        elif come:
            self._pulling = False
            if come.error:
                self._wait_for_the_broker(come.error)
                return
            self._away, self._pause, self._answered = None, _FIRST_PAUSE, come.began
            self._counts.pulled += len(come.deliveries)
            self._leases.take([each.ack_id for each in come.deliveries])
            events = [self._add(each) for each in come.deliveries]
            if not any(events):  # without a retry policy these come again at once
                self._pull_at = self._clock() + _FIRST_PAUSE

    def _add(self, delivery: Received) -> bool:
        """Take a delivery. Return whether it is an event."""
        readable = True
        try:
            news = self._queue.add(read_event(delivery), delivery.ack_id)
        except NotAnEvent as error:
            readable = False
            self._leases.refuse([delivery.ack_id])
            news = delivery.message_id not in self._unreadable
            if news:
                self._unreadable.note(delivery.message_id, None)
                self._counts.unreadable += 1
                fields = event("consume.unreadable", message_id=delivery.message_id)
                log.error("message %s is no CloudEvent: %s", delivery.message_id, error, extra=fields)  # noqa: TRY400
        if news:
            self._news_at = self._clock()
        return readable

    def _wait_for_the_broker(self, error: Exception) -> None:
        if not isinstance(error, Unavailable):
            raise error
        if not self._away:
            self._away_since = self._clock()
        self._away = error
        wait = random.uniform(self._pause / 2, self._pause)  # noqa: S311 - jitter
        self._pull_at, self._pause = self._clock() + wait, min(2 * self._pause, _LONGEST_PAUSE)
        log.warning("%s; trying again", error, extra=event("consume.retry"))

    def _drop_needless(self) -> None:
        while found := self._queue.needless():
            for why, each in found:
                self._leases.acknowledge(each.ack_ids)
                self._counts.repeats += why is Needless.REPEAT
                self._counts.outdated += why is Needless.OUTDATED

    def _start_commands(self) -> None:
        running = len(self._queue.running)
        while running < AT_ONCE and (chosen := self._queue.start()):
            running += 1
            self._commands.start(chosen, self._ended(chosen))

    def _ended(self, chosen: Event) -> Callable[[int], None]:
        return lambda exit_code: self._inbox.put(_Ended(chosen, exit_code, self._killing))

    def _settle(self, ended: Event, exit_code: int) -> None:
        self._news_at = self._clock()
        if exit_code == 0:
            self._counts.processed += 1
            self._leases.acknowledge(self._queue.succeeded(ended))
            return
        self._counts.failed += 1
        self._leases.refuse(self._queue.failed(ended, self._clock()))
        fields = event("command.failed", id=ended.identity.id, source=ended.identity.source, exit_code=exit_code)
        log.warning("%s: the command ended with %d", ended.identity.id, exit_code, extra=fields)

    def _end(self) -> None:
        """Let commands end, kill those that do not, and give everything back."""
        self._wait(_GRACE, lambda: not self._queue.running or self._signals > 1)
        self._killing = True
        for number in (SIGTERM, SIGKILL):
            if self._queue.running and (number is SIGKILL or self._signals <= 1):
                self._commands.send(number)
                self._wait(_KILL, lambda: not self._queue.running)
        for stuck in self._queue.running:
            self._settle(stuck, -SIGKILL)
        self._wait(_LAST_WORDS, lambda: self._leases.told and (not self._pulling or self._signals > 1))

    def _wait(self, seconds: float, over: Callable[[], bool]) -> None:
        """Settle what ends and give back what comes, until it is over, for so many seconds at most."""
        until = self._clock() + seconds
        while True:
            try:
                self._receive(0.0 if over() else min(_TICK, max(until - self._clock(), 0.0)))
                self._drop_needless()
                if not self._pulling or self._signals > 1:  # a pull that is under way would bring it again
                    for each in self._queue.give_back(len(self._queue), self._clock()):
                        self._leases.refuse(each.ack_ids)
                        self._counts.given_back += 1
                self._leases.tell()  # and renews none: they are longer than the end
            except WatcherError as error:
                self._error = self._error or error
            if over() or self._clock() >= until:
                return
