"""Tests of what is handed over next, and of what is not."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from job.consume.event import Event, event
from job.consume.queue import TRIES, Needless, Queue, Recent
from tests.consume.events import an_event, attributes, deletion, delivered, gap

_ack_ids = (f"ack-{number}" for number in itertools.count(1))


def add(queue: Queue, *events: Event) -> None:
    for each in events:
        queue.add(each, next(_ack_ids))


def process(queue: Queue, *events: Event) -> None:
    """Deliver, run and succeed, one after the other."""
    for each in events:
        add(queue, each)
        assert queue.start() is each
        queue.succeeded(each)


def needless(queue: Queue) -> list[tuple[Needless, str]]:
    return [(why, each.event.identity.id) for why, each in queue.needless()]


def test_one_event_of_an_object_runs_at_a_time() -> None:
    """The oldest version first; another object runs beside it."""
    second, first, other = (
        an_event(attributes("a", 2)),
        an_event(attributes("a", 1), 1),
        an_event(attributes("b", 1), 2),
    )
    queue = Queue()
    add(queue, second, first, other)

    assert [queue.start(), queue.start(), queue.start()] == [first, other, None]
    queue.succeeded(first)
    assert queue.start() is second


def test_later_versions_wait_for_one_that_failed() -> None:
    """Until it comes back and succeeds; an earlier version that comes only now may run."""
    first, second, third = (an_event(attributes("a", version)) for version in (1, 2, 3))
    queue = Queue()
    add(queue, second, third)
    assert queue.start() is second
    queue.failed(second, 0)
    assert queue.start() is None

    add(queue, first)
    assert queue.start() is first
    queue.succeeded(first)
    assert queue.start() is None

    add(queue, second)
    assert queue.start() is second
    queue.succeeded(second)
    assert queue.start() is third


def test_what_does_not_come_back_is_not_waited_for_for_ever() -> None:
    """It may lie in a dead-letter topic, or be somebody else's by now."""
    first, second = an_event(attributes("a", 1)), an_event(attributes("a", 2))
    queue = Queue()
    add(queue, first, second)
    queue.start()
    queue.failed(first, 10)
    queue.forget_away(10)
    assert queue.start() is None

    queue.forget_away(11)
    assert queue.start() is second


@pytest.mark.parametrize("success", [True, False])
def test_all_copies_of_an_event_are_settled_together(*, success: bool) -> None:
    """Those that came while it waited, and those that came while it ran."""
    first = an_event(attributes("a", 1))
    queue = Queue()
    assert (queue.add(first, "one"), queue.add(first, "two")) == (True, False)
    assert queue.start() is first
    queue.add(first, "three")
    assert sorted(queue.ack_ids) == ["one", "three", "two"]

    told = queue.succeeded(first) if success else queue.failed(first, 0)
    told += [ack_id for _, each in queue.needless() for ack_id in each.ack_ids]

    assert sorted(told) == ["one", "three", "two"]
    assert (queue.ack_ids, len(queue), queue.bytes) == ([], 0, 0)


def test_a_repeat_is_needless() -> None:
    """Also one that was published later, and one whose object has moved on."""
    first, second = an_event(attributes("a", 1)), an_event(attributes("a", 2))
    queue = Queue()
    process(queue, first, second)
    assert queue.add(an_event(attributes("a", 1), at=9), "again") is False

    assert needless(queue) == [(Needless.REPEAT, "uid-a/1")]
    assert queue.start() is None


def test_a_repeat_behind_a_gap_is_handed_over() -> None:
    """It says that the object is still there (R18); a redelivery of what was told before the gap says nothing."""
    first, lost = an_event(attributes("a", 1), at=1), an_event(gap(1, 5), at=2)
    redelivered, again = an_event(attributes("a", 1), at=1), an_event(attributes("a", 1), at=3)
    queue = Queue()
    process(queue, first, lost)
    add(queue, redelivered)
    assert needless(queue) == [(Needless.REPEAT, "uid-a/1")]

    add(queue, again)
    assert needless(queue) == []
    assert queue.start() is again
    queue.succeeded(again)
    add(queue, an_event(attributes("a", 1), at=4))
    assert needless(queue) == [(Needless.REPEAT, "uid-a/1")]


def test_a_gap_that_comes_late_counts_by_its_publication() -> None:
    """What was published before it, and processed after it, is in doubt all the same."""
    queue = Queue()
    process(queue, an_event(gap(1, 5), at=2), an_event(attributes("a", 1), at=1))
    add(queue, an_event(attributes("a", 1), at=3))

    assert needless(queue) == []


def test_a_copy_behind_a_gap_that_came_while_the_event_ran_is_handed_over() -> None:
    """The one that runs was told before the gap."""
    first, again = an_event(attributes("a", 1), at=1), an_event(attributes("a", 1), at=3)
    queue = Queue()
    add(queue, first)
    queue.start()
    add(queue, an_event(gap(1, 5), at=2), again)
    queue.succeeded(first)

    assert needless(queue) == []
    assert {each.published for each in (queue.start(), queue.start()) if each} == {
        again.published,
        an_event(gap(1, 5), at=2).published,
    }


def test_a_gap_of_another_source_changes_nothing() -> None:
    """Its history is another one."""
    queue = Queue()
    process(queue, an_event(attributes("a", 1), at=1), an_event(gap(1, 5) | {"source": "/else"}, at=2))
    add(queue, an_event(attributes("a", 1), at=3))

    assert needless(queue) == [(Needless.REPEAT, "uid-a/1")]


def test_with_latest_only_what_is_outdated_is_needless() -> None:
    """Older versions, and everything after a deletion, of the same object; numbers are compared as numbers."""
    queue = Queue(latest_only=True)
    process(queue, an_event(attributes("a", 10)), an_event(deletion("b")), an_event(attributes("c", 7)))
    add(queue, an_event(attributes("a", 9)), an_event(attributes("b", 99)), an_event(attributes("c", 8)))
    no_version = {name: value for name, value in attributes("b", 100).items() if name != "resourceversion"}
    add(queue, an_event(no_version))

    assert sorted(needless(queue)) == [
        (Needless.OUTDATED, "uid-a/9"),
        (Needless.OUTDATED, "uid-b/100"),
        (Needless.OUTDATED, "uid-b/99"),
    ]
    assert len(queue) == 1


def test_with_latest_only_these_are_handed_over() -> None:
    """A gap, another object of the same name, a later epoch, and what is told again behind a gap."""
    queue = Queue(latest_only=True)
    process(queue, an_event(attributes("a", 10), at=1), an_event(deletion("b"), at=2), an_event(gap(1, 9), at=3))
    add(queue, an_event(gap(2, 3), at=4), an_event(attributes("b", 20, uid="other"), at=5))
    add(queue, an_event(attributes("b", 5, epoch=1), at=6), an_event(attributes("a", 10), at=7))

    assert needless(queue) == []


def test_without_latest_only_an_older_version_is_handed_over() -> None:
    """Somebody may keep a history."""
    queue = Queue()
    process(queue, an_event(attributes("a", 10)), an_event(deletion("b")))
    add(queue, an_event(attributes("a", 9)), an_event(attributes("b", 99)))

    assert needless(queue) == []


def test_until_empty_an_event_is_tried_a_few_times() -> None:
    """And again when another one has succeeded: that may be what it needed; with a window it is tried for ever."""
    failing, other = an_event(attributes("a", 1)), an_event(attributes("b", 1))
    queue, endless = Queue(until_empty=True), Queue()
    for _ in range(TRIES):
        for each in (queue, endless):
            add(each, failing)
            assert each.start() is failing
            each.failed(failing, 0)
    add(queue, failing)
    add(endless, failing)
    assert (queue.start(), endless.start(), queue.failing) == (None, failing, 1)

    process(queue, other)
    assert queue.start() is failing
    queue.succeeded(failing)
    assert queue.failing == 0


def test_what_has_failed_least_comes_first() -> None:
    """Events that always fail, and come back at once, must not keep others from running."""
    failing, other = an_event(attributes("a", 1), at=1), an_event(attributes("b", 1), at=2)
    queue = Queue()
    add(queue, failing)
    queue.start()
    queue.failed(failing, 0)
    add(queue, failing, other)

    assert queue.start() is other


def test_an_ordering_key_is_worked_off_in_its_order() -> None:
    """One event at a time; after a failure everything behind it is given back, for the broker delivers it again."""
    first, second, third = (an_event(attributes(name, 1), at, "key") for at, name in enumerate("abc"))
    queue = Queue()
    add(queue, first, second, third)
    assert (queue.start(), queue.start()) == (first, None)
    assert queue.blocked() == []

    queue.failed(first, 0)
    assert [each.event for each in queue.blocked()] == [second, third]
    add(queue, third, second, first)
    assert (queue.blocked(), queue.start()) == ([], first)


def test_of_an_ordering_key_a_repeat_is_acknowledged_in_its_turn() -> None:
    """The broker is told about deliveries in their order."""
    first, second = an_event(attributes("a", 1), 1, "key"), an_event(attributes("b", 1), 2, "key")
    queue = Queue()
    process(queue, second)
    add(queue, first, second)
    assert (needless(queue), queue.start()) == ([], first)
    queue.succeeded(first)

    assert needless(queue) == [(Needless.REPEAT, "uid-b/1")]


def test_what_is_given_back_is_the_last_of_each_object() -> None:
    """What has failed is remembered: what comes behind it waits for it still."""
    first, second, third = (an_event(attributes("a", version)) for version in (1, 2, 3))
    queue = Queue(until_empty=True)
    for _ in range(TRIES):
        add(queue, first)
        queue.start()
        queue.failed(first, 0)
    add(queue, third, second, first)

    assert [each.event for each in queue.give_back(1, 0)] == [third]
    assert [each.event for each in queue.give_back(9, 0)] == [second, first]
    add(queue, second)
    assert queue.start() is None


def test_what_was_given_back_untried_is_waited_for_too() -> None:
    """For want of room: later versions that come again first do not overtake it, and it is no news when it comes."""
    first, second, third = (an_event(attributes("a", version)) for version in (1, 2, 3))
    queue = Queue()
    add(queue, first, second)
    assert queue.start() is first
    queue.failed(first, 0)
    assert [each.event for each in queue.give_back(9, 0)] == [second]
    add(queue, third, first)
    assert queue.start() is first
    queue.succeeded(first)
    assert queue.start() is None

    assert not queue.add(second, "again")
    assert queue.start() is second


def test_a_repeat_that_was_given_back_is_not_waited_for() -> None:
    """The broker has heard of its success, and may not deliver it again: later versions go on."""
    first, second = an_event(attributes("a", 1)), an_event(attributes("a", 2))
    queue = Queue()
    add(queue, first)
    assert queue.start() is first
    add(queue, first)
    queue.succeeded(first)
    assert [each.event for each in queue.give_back(1, 0)] == [first]
    add(queue, second)

    assert queue.start() is second


def test_what_was_given_back_takes_no_memory() -> None:
    """Its data come again with it; an outage may last, and a backlog be large."""
    queue = Queue()
    tracemalloc.start()
    try:
        for number in range(50):
            queue.add(event(delivered(attributes(f"w{number}", 1), data=bytes(1_000_000))), str(number))
            running = queue.start()
            assert running
            queue.failed(running, 0)
        del running
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held < 5_000_000
    assert queue.bytes == 0


def test_an_object_in_two_ordering_keys_runs_once_at_a_time() -> None:
    """Their number was changed while messages were waiting."""
    first, second = an_event(attributes("a", 1), key="1"), an_event(attributes("a", 2), key="2")
    queue = Queue()
    add(queue, first, second)

    assert queue.start() is first
    assert queue.start() is None
    queue.succeeded(first)
    assert queue.start() is second


def test_what_is_remembered_has_an_end() -> None:
    """A window may be as long as one likes; what was noted first is forgotten."""
    recent: Recent[int, None] = Recent(most=2)
    for number in (1, 2, 1, 3):
        recent.note(number, None)

    assert list(recent) == [1, 3]


NAMES, VERSIONS = "ab", range(1, 5)
EVENTS = [(name, version) for name in NAMES for version in VERSIONS]


class Broker:
    """What a broker and a command may do to a queue, in any order, and what must hold all the time."""

    def __init__(self, *, ordered: bool, latest_only: bool) -> None:
        self.queue = Queue(latest_only=latest_only)
        times = {(name, version): at for at, (version, name) in enumerate(itertools.product(VERSIONS, NAMES))}
        self.events = {each: an_event(attributes(*each), times[each], "key" if ordered else "") for each in EVENTS}
        self.names = {event.identity: each for each, event in self.events.items()}
        self.delivered: set[str] = set()
        self.told: Counter[str] = Counter()
        self.pending: set[tuple[str, int]] = set()
        """Delivered, not processed, and not given back untried."""
        self.running: list[Event] = []
        self.successes: list[tuple[str, int]] = []
        self.settled: set[tuple[str, int]] = set()
        """Acknowledged."""

    def deliver(self, number: int) -> None:
        ack_id = next(_ack_ids)
        self.delivered.add(ack_id)
        each = EVENTS[number % len(EVENTS)]
        self.queue.add(self.events[each], ack_id)
        if each not in self.settled:
            self.pending.add(each)

    def turn(self) -> None:
        while found := self.queue.needless():
            for _, each in found:
                self.told.update(each.ack_ids)
                self._acknowledged(self.names[each.event.identity])
        for each in self.queue.blocked():
            self.told.update(each.ack_ids)
            self._given_back(each.event)

    def start(self, _: int) -> None:
        self.turn()
        if event := self.queue.start():
            name, version = self.names[event.identity]
            assert (name, version) not in self.successes, "run again after its success"
            assert name not in {self.names[each.identity][0] for each in self.running}, "two at a time"
            assert version == min(other for of, other in self.pending if of == name), "overtaken"
            self.running.append(event)

    def succeed(self, number: int) -> None:
        if self.running:
            event = self.running.pop(number % len(self.running))
            self.told.update(self.queue.succeeded(event))
            self.successes.append(self.names[event.identity])
            self._acknowledged(self.names[event.identity])

    def fail(self, number: int) -> None:
        if self.running:
            event = self.running.pop(number % len(self.running))
            self.told.update(self.queue.failed(event, 0))

    def give_back(self, number: int) -> None:
        for each in self.queue.give_back(number, 0):
            self.told.update(each.ack_ids)
            self._given_back(each.event)

    def check(self) -> None:
        held = self.queue.ack_ids
        assert sorted([*held, *self.told.elements()]) == sorted(self.delivered), "each delivery is settled once"
        assert self.queue.bytes == 2 * len(self.queue)

    def _acknowledged(self, each: tuple[str, int]) -> None:
        self.settled.add(each)
        self.pending.discard(each)

    def _given_back(self, event: Event) -> None:
        each = self.names[event.identity]
        if event.identity not in self.queue._tried:  # noqa: SLF001 - what has failed is still waited for
            self.pending.discard(each)


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(
                [Broker.deliver] * 4 + [Broker.start] * 3 + [Broker.succeed, Broker.fail, Broker.give_back]
            ),
            st.integers(0, 7),
        ),
        max_size=80,
    ),
    ordered=st.booleans(),
    latest_only=st.booleans(),
)
def test_any_order_of_deliveries_and_failures(
    steps: list[tuple[Callable[[Broker, int], None], int]], *, ordered: bool, latest_only: bool
) -> None:
    """Nothing runs again after its success, an object's versions keep their order, and in the end all are settled."""
    broker = Broker(ordered=ordered, latest_only=latest_only)
    for step, number in steps:
        step(broker, number)
        broker.check()
    for _ in range(4 * len(EVENTS)):
        for number, each in enumerate(EVENTS):
            if each not in broker.settled:
                broker.deliver(number)
        broker.start(0)
        broker.succeed(0)
        broker.turn()
        broker.check()

    assert broker.settled == set(EVENTS)
    assert len(broker.successes) == len(set(broker.successes))
    assert latest_only or set(broker.successes) == set(EVENTS)
