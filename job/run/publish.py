"""Messages on their way to the sink: lanes, batches in flight, retries.

A lane has one batch in flight, so that versions of one object are stored in the order they were put, with a sink that
keeps no order between requests too. A request costs as much as twenty messages, so a lane lingers until it has a whole
batch, though never for longer than `LINGER`, and not at all for the first message after a while of nothing.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import msgspec

from job.errors import ActionNeeded, OutOfTime, Refused, Stopped, TemporaryError, Unavailable, WatcherError
from job.logs import event
from job.message import Message, dead_letter
from job.ports import Limits, Partly, Sink
from job.run.commit import Effect, Ledger
from job.run.deadline import Deadline
from job.run.watermark import Position

MOST_BYTES = 12_000_000
"""In flight and waiting together; beyond that the reader has to wait."""
LINGER = 0.1
"""Seconds that a message may wait for others to go with it."""
ATTEMPT = 10.0
"""Seconds for one request to the sink."""
WORKERS = 8
_DEAD_LETTER = ("dead-lettered", "refused")
"""As what a message counts that the sink will never take: for the summary, in the place of kind and provenance."""
_OVERHEAD = 2_000
"""Bytes of a message beside its data, roughly: what is known of it takes more than what is sent."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 3.0
_TICK = 0.1

log = logging.getLogger(__name__)

Waiting = tuple[Position[Effect], Message]


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """Where messages go that the sink will never take."""

    sink: Sink
    place: str
    """Its address."""
    refused_by: str
    """The address of the sink that has refused them."""


class _Abandoned(Exception):
    """Another lane has failed: nothing more is tried."""


class _Lane:
    """Messages of some objects, in order."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.waiting: deque[Waiting] = deque()
        self.bytes = 0
        """Of what is waiting."""
        self.due = 0.0
        """When what is waiting goes, though it is no whole batch; 0 if it is one."""
        self.queued = self.in_flight = False

    def take(self, limits: Limits) -> list[Waiting]:
        """The next batch: as much as the sink takes in one request, at least one message."""
        batch = [self.waiting.popleft()]
        size = batch[0][1].size
        while self.waiting and len(batch) < limits.messages:
            following = self.waiting[0][1].size
            if size + following > limits.bytes:
                break
            size += following
            batch.append(self.waiting.popleft())
        self.bytes -= size
        return batch

    def full(self, limits: Limits) -> bool:
        """Whether a whole batch is waiting."""
        return len(self.waiting) >= limits.messages or self.bytes >= limits.bytes


class Publisher:
    """Brings messages to the sink and tells the ledger which are stored."""

    def __init__(self, sink: Sink, ledger: Ledger, deadline: Deadline, dead_letters: DeadLetters | None = None) -> None:
        self._sink = sink
        self._dead_letters = dead_letters
        self._keeping = threading.Lock()
        """Held while dead letters are written: one after the other, whatever lane they are of."""
        self._done = self._kept = 0
        """How many messages are stored, and how many of them as dead letters."""
        self._ledger = ledger
        self._deadline = deadline
        self._limits = sink.limits
        self._lanes = [_Lane(number) for number in range(sink.limits.lanes)]
        self._lock = threading.Lock()
        self._todo = threading.Condition(self._lock)
        """For the workers: there is another lane to look after."""
        self._progress = threading.Condition(self._lock)
        """For the main thread: something is stored, or has failed."""
        self._queue: deque[_Lane] = deque()
        """Lanes with something to send, and nothing in flight; those that must not linger first."""
        self._flushing = False
        self._took_at = -LINGER
        self._messages = self._bytes = self._requests = 0
        self._failure: BaseException | None = None
        self._workers: list[threading.Thread] = []
        self._closing = threading.Event()

    def put(self, message: Message, effect: Effect) -> None:
        """Queue a message; waits while too much is in flight. Raises what made the sink fail, and `Stopped`."""
        lane = self._lanes[crc32(message.key.encode()) % len(self._lanes)]
        with self._lock:
            if self._failure or self._bytes >= MOST_BYTES:
                self._wait_for_room()
            lane.waiting.append((self._ledger.enter(effect), message))
            lane.bytes += message.size
            self._messages += 1
            self._bytes += message.size + _OVERHEAD
            if not lane.in_flight:
                self._gather(lane)
        if len(self._workers) < min(WORKERS, len(self._lanes)):
            self._start_worker()

    def drain(self) -> bool:
        """Wait until nothing is in flight; False if the time for it ran out. Raises what made the sink fail.

        After a failure nothing more is sent, but what is under way may still be answered: that is worth waiting for.
        """
        with self._lock:
            self._flush()
            while self._messages:
                if not self._requests:
                    self.check()
                if not self._deadline.publish_left:
                    self.check()
                    return False
                self._progress.wait(_TICK)
            self._flushing = False
        self._ledger.acknowledge()
        return True

    def close(self) -> None:
        """Send nothing more. What is in flight may still be stored, and is then found again by the next run."""
        self._closing.set()
        with self._lock:
            self._todo.notify_all()

    def check(self) -> None:
        """Raise what made the sink fail, if it did."""
        if self._failure:
            raise self._failure

    def notes(self) -> list[str]:
        """What a person should know of refused messages, as far as they are acknowledged."""
        kind, _ = _DEAD_LETTER
        if not (self._dead_letters and (kept := self._ledger.published[kind])):
            return []
        return [f"Refused messages, {kept} of them, are kept in {self._dead_letters.place}."]

    def _wait_for_room(self) -> None:
        self._flush()
        while self._failure or self._bytes >= MOST_BYTES:
            self.check()
            if self._deadline.stopped:
                raise Stopped
            if not self._deadline.publish_left:
                message = "the sink did not keep up until the deadline"
                raise OutOfTime(message)
            self._progress.wait(_TICK)
        self._flushing = False

    def _flush(self) -> None:
        """Let nothing linger."""
        self._flushing = True
        self._todo.notify_all()

    def _gather(self, lane: _Lane) -> None:
        """Something waits in a lane that has nothing in flight: see that it goes in time."""
        if lane.full(self._limits):
            if lane.queued:
                if not lane.due:
                    return
                self._queue.remove(lane)
            lane.due = 0.0
            self._queue.appendleft(lane)
        elif lane.queued:
            return
        else:
            now = time.monotonic()
            busy = self._requests or self._queue or now - self._took_at < LINGER
            lane.due = now + LINGER if busy else now
            self._queue.append(lane)
        lane.queued = True
        self._todo.notify()

    def _start_worker(self) -> None:
        # A daemon: a sink that hangs must not keep the process from ending.
        worker = threading.Thread(target=self._work, name=f"publish-{len(self._workers)}", daemon=True)
        self._workers.append(worker)
        worker.start()

    def _work(self) -> None:
        while batch := self._next():
            lane, waiting = batch
            failure: BaseException | None = None
            try:
                self._deliver(lane.number, waiting)
            except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
                failure = error
            with self._lock:
                self._requests -= 1
                # A person must act, whatever else is wrong.
                if not self._failure or isinstance(failure, ActionNeeded):
                    self._failure = failure
                if self._failure:
                    self._todo.notify_all()
                lane.in_flight = False
                if lane.waiting:
                    self._gather(lane)
                self._progress.notify_all()

    def _next(self) -> tuple[_Lane, list[Waiting]] | None:
        """The next batch, once there is one; None when nothing more is to be sent."""
        with self._lock:
            while not self._closing.is_set() and not self._failure:
                lingering = None
                if self._queue:
                    now = time.monotonic()
                    lingering = self._queue[0].due - now
                    if self._flushing or lingering <= 0:
                        return self._take(now)
                self._todo.wait(lingering)
            return None

    def _take(self, now: float) -> tuple[_Lane, list[Waiting]]:
        lane = self._queue.popleft()
        lane.queued, lane.in_flight = False, True
        self._requests += 1
        self._took_at = now
        if self._queue:
            self._todo.notify()  # somebody else must look after the rest
        return lane, lane.take(self._limits)

    def _deliver(self, lane: int, batch: list[Waiting]) -> None:
        """Publish a batch, past the messages that the sink will never take, where those can be kept elsewhere."""
        took, keys = False, set[str]()
        while batch:
            refused, behind = self._bisect(lane, batch)
            if not refused:
                return
            took = took or len(refused) + len(behind) < len(batch)
            keys |= {message.key for (_, message), _ in refused}
            with self._keeping:
                # It may be the sink that must be mended, and not they (R14).
                several, fresh = len(keys) > 1, self._done <= self._kept  # it has taken nothing in this run
                at_fault = (several or self._kept > 0) if fresh else (several and not behind)
                everything = at_fault and not took
                if not self._dead_letters or everything:
                    raise _refusal([error for _, error in refused], everything=everything)
                for waiting, error in refused:
                    self._keep(self._dead_letters, waiting, error)
            batch = behind

    def _bisect(self, lane: int, batch: list[Waiting]) -> tuple[list[tuple[Waiting, Refused]], list[Waiting]]:
        """Publish a batch. One that is refused is halved again and again, until only refused messages are left over.

        What comes after a refused message of its key is left over too: it must not be stored before it.
        """
        parts, refused, keys, behind = [batch], list[tuple[Waiting, Refused]](), set[str](), list[Waiting]()
        while parts:
            part = parts.pop()
            behind += [each for each in part if each[1].key in keys]
            part = [each for each in part if each[1].key not in keys]
            if not part:
                continue
            try:
                left, error = self._send(self._sink, lane, part)
            except (WatcherError, _Abandoned) as failure:
                if refused and not self._dead_letters:
                    raise _refusal([each for _, each in refused]) from failure
                raise  # those that are refused are found, and kept, by the next run
            if error and len(left) == 1:
                refused.append((left[0], error))
                keys.add(left[0][1].key)
            elif error:
                parts += [left[len(left) // 2 :], left[: len(left) // 2]]
        return refused, behind

    def _keep(self, dead_letters: DeadLetters, refused: Waiting, refusal: Refused) -> None:
        """Store a refused message as a dead letter, which is as good as stored. Raises `Refused` where that fails."""
        position, message = refused
        position.effect = msgspec.structs.replace(position.effect, counted=_DEAD_LETTER)
        letter = dead_letter(message, dead_letters.refused_by, str(refusal))
        self._kept += 1
        try:
            _, error = self._send(dead_letters.sink, 0, [(position, letter)])
            if error:
                raise error
        except WatcherError as failure:
            # Of no fault of the place: it was never asked, or a signal has cut it short.
            if isinstance(failure, OutOfTime) or (self._deadline.stopped and isinstance(failure, TemporaryError)):
                raise
            text = f"{refusal}; and it cannot be kept in {dead_letters.place}: {failure}"
            raise Refused(text, [message.id]) from failure
        log.error(
            "Message %s is kept in %s: %s",
            message.id,
            dead_letters.place,
            refusal,
            extra=event("message.refused", id=message.id),
        )

    def _send(self, sink: Sink, lane: int, part: list[Waiting]) -> tuple[list[Waiting], Refused | None]:
        """One request, again and again while the sink is unavailable and there is time.

        Gives what the sink will not take as it is, and what it has said of that.
        """
        pause = _FIRST_PAUSE
        while True:
            if self._failure:
                raise _Abandoned
            if not self._deadline.publish_left:  # perhaps this process was stopped for long, and has a successor
                message = "the deadline of the run has passed"
                raise OutOfTime(message)
            part, error = self._attempt(sink, lane, part)
            if not isinstance(error, Unavailable):
                return part, error
            log.warning("%s; trying again", error, extra=event("sink.retry", lane=lane, messages=len(part)))
            wait = random.uniform(pause / 2, pause)  # noqa: S311 - jitter
            if self._failure or wait >= self._deadline.publish_left or self._closing.wait(wait):
                raise error
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _attempt(
        self, sink: Sink, lane: int, part: list[Waiting]
    ) -> tuple[list[Waiting], Unavailable | Refused | None]:
        """One request. Gives what it has left over, and why."""
        try:
            sink.publish(lane, [message for _, message in part], min(ATTEMPT, self._deadline.publish_left))
        except (Unavailable, Refused) as error:
            return part, error
        except Partly as partly:
            told, stored, left = Counter(partly.stored), list[Waiting](), list[Waiting]()
            for each in part:  # one by one: two ends of a Workflow within one second share an id
                taken = told[each[1].id] > 0
                told[each[1].id] -= taken
                (stored if taken else left).append(each)
            self._stored(stored)
            reason = partly.reason
            if not left:
                return [], None
            if isinstance(reason, (Unavailable, Refused)):
                return left, reason
            raise reason from partly
        self._stored(part)
        return [], None

    def _stored(self, part: Sequence[Waiting]) -> None:
        self._ledger.acknowledge(position for position, _ in part)
        with self._lock:
            self._done += len(part)
            self._messages -= len(part)
            self._bytes -= sum(message.size + _OVERHEAD for _, message in part)
            self._progress.notify_all()


def _refusal(refused: Sequence[Refused], *, everything: bool = False) -> Refused:
    """What to tell of messages that were refused singly."""
    message = "; ".join(dict.fromkeys(map(str, refused)))
    if everything:  # R14
        what = f"each of {len(refused)} messages" if len(refused) > 1 else "one message after the other"
        message = f"{what} was refused, so it is the sink that must be mended: {refused[0]}"
    return Refused(message, [each for error in refused for each in error.ids])
