"""Tests of what is handed over next, and what not at all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings, strategies as st

from job.change import Change, Gap, Kind, Missing, Object, Provenance, Reason, Resource
from job.consume.event import Event, event
from job.consume.queue import Needless, Queue
from job.message import Envelope, Message, binary
from job.ports import Received

ENVELOPE = Envelope("lab", Resource("workflows", "v1alpha1", "argoproj.io"), "argo")
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def delivered(message: Message, second: int = 0, *, ordering_key: str = "") -> Event:
    published = NOON + timedelta(seconds=second)
    return event(Received("ack", "id", binary(message.attributes), message.data, published, ordering_key))


def change(name: str, version: int, second: int = 0, *, uid: str = "", epoch: int = 0, key: str = "") -> Event:
    thing = Object(uid or f"uid-{name}", "argo", name, version, data=b"{}")
    message = ENVELOPE.change(Change(Kind.MODIFIED, thing, Provenance.OBSERVED, epoch))
    return delivered(message, second or version, ordering_key=key)


def deletion(name: str, version: int, second: int = 0, *, uid: str = "") -> Event:
    thing = Object(uid or f"uid-{name}", "argo", name, version, data=b"{}")
    provenance = Provenance.OBSERVED if version else Provenance.INFERRED
    return delivered(ENVELOPE.change(Change(Kind.DELETED, thing, provenance)), second or version)


def gap(end: int, second: int) -> Event:
    return delivered(ENVELOPE.gap(Gap(Reason.EXPIRED, 0, end, "", Missing.INTERMEDIATE)), second)


def worked_off(queue: Queue) -> list[str]:
    """The ids in the order in which they are handed over, all of which succeed."""
    done: list[str] = []
    while True:
        list(queue.needless())
        chosen = queue.start()
        if chosen is None:
            return done
        done.append(chosen.identity.id)
        queue.succeeded(chosen)


def test_versions_of_one_object_come_in_order() -> None:
    """Epoch, then version as a number, then the deletion; whatever order they were delivered in."""
    queue = Queue()
    for each in (deletion("a", 0, 1), change("a", 10), change("a", 9), change("a", 2, epoch=1)):
        queue.add(each, "ack")

    assert worked_off(queue) == ["uid-a/9", "uid-a/10", "uid-a/deleted", "uid-a/2~1"]


def test_who_had_the_name_is_gone_before_who_has_it() -> None:
    """R3: the deletion of one incarnation comes before the next one, also where it has no version."""
    queue = Queue()
    for each in (change("a", 20, uid="new"), deletion("a", 0, 30, uid="old"), change("a", 10, uid="old")):
        queue.add(each, "ack")

    assert worked_off(queue) == ["old/10", "old/deleted", "new/20"]


def test_one_event_of_an_object_runs_at_a_time() -> None:
    """Others may run beside it."""
    queue = Queue()
    for each in (change("a", 1), change("a", 2), change("b", 3)):
        queue.add(each, "ack")
    first, second = queue.start(), queue.start()

    assert [each and each.identity.id for each in (first, second, queue.start())] == ["uid-a/1", "uid-b/3", None]


def test_what_follows_a_failure_waits_for_it() -> None:
    """Later versions are held until the one that failed has come again and succeeded; older ones are not."""
    queue = Queue()
    queue.add(change("a", 2), "2")
    queue.add(change("a", 3), "3")
    failed = queue.start()
    assert failed is not None
    assert queue.failed(failed, now=0) == ["2"]
    assert queue.start() is None
    queue.add(change("a", 1), "1")
    queue.add(change("a", 2), "2'")

    assert worked_off(queue) == ["uid-a/1", "uid-a/2", "uid-a/3"]


def test_what_never_comes_again_is_not_waited_for_for_ever() -> None:
    """A dead-letter topic, or another consumer, may have it."""
    queue = Queue()
    queue.add(change("a", 1), "1")
    queue.add(change("a", 2), "2")
    failed = queue.start()
    assert failed is not None
    queue.failed(failed, now=0)
    queue.forget_away(before=1)

    assert worked_off(queue) == ["uid-a/2"]


def test_an_ordered_subscription_gets_back_what_waits_for_a_failure() -> None:
    """It would not deliver the failed one again while we hold what comes after it."""
    queue = Queue()
    for version in (1, 2, 3):
        queue.add(change("a", version, key="k"), str(version))
    queue.add(change("b", 4), "4")
    failed = queue.start()
    assert failed is not None
    queue.failed(failed, now=0)

    assert [each.ack_ids for each in queue.give_back_blocked()] == [["2"], ["3"]]
    assert queue.give_back_blocked() == []
    assert len(queue) == 1


def test_all_copies_are_settled_together() -> None:
    """Those that came before, and those that came while it ran."""
    queue = Queue()
    queue.add(change("a", 1), "first")
    queue.add(change("a", 1), "second")
    running = queue.start()
    assert running is not None
    queue.add(change("a", 1), "late")
    assert queue.succeeded(running) == ["first", "second"]

    assert [(why, each.ack_ids) for why, each in queue.needless()] == [(Needless.REPEAT, ["late"])]
    assert queue.start() is None
    assert len(queue) == queue.bytes == 0


def test_a_failure_gives_all_copies_back() -> None:
    """Whatever is kept would not be delivered again."""
    queue = Queue()
    queue.add(change("a", 1), "first")
    running = queue.start()
    assert running is not None
    queue.add(change("a", 1), "late")

    assert queue.failed(running, now=0) == ["first", "late"]


def test_r18_a_copy_behind_a_gap_is_no_repeat() -> None:
    """By the times of publication, whichever is delivered first."""
    queue = Queue()
    queue.add(change("a", 1, second=1), "1")
    assert worked_off(queue) == ["uid-a/1"]
    queue.add(change("a", 1, second=3), "3")
    queue.add(gap(9, second=2), "gap")

    assert sorted(worked_off(queue)) == ["0-9/gap", "uid-a/1"]
    queue.add(change("a", 1, second=4), "4")
    assert [why for why, _ in queue.needless()] == [Needless.REPEAT]


def test_latest_only_leaves_out_what_is_old() -> None:
    """Older versions, and everything after a deletion; never a gap message, nor another incarnation."""
    queue = Queue(latest_only=True)
    queue.add(change("a", 5), "5")
    worked_off(queue)
    for each in (change("a", 4), gap(9, 9), change("a", 6)):
        queue.add(each, "ack")
    assert [why for why, _ in queue.needless()] == [Needless.OUTDATED]
    assert sorted(worked_off(queue)) == ["0-9/gap", "uid-a/6"]
    queue.add(deletion("a", 7), "7")
    worked_off(queue)
    queue.add(change("a", 8), "8")
    queue.add(change("a", 9, uid="next"), "9")

    assert worked_off(queue) == ["next/9"]


def test_what_is_off_by_default_drops_nothing() -> None:
    """An older version that comes later is handed over."""
    queue = Queue()
    queue.add(change("a", 5), "5")
    worked_off(queue)
    queue.add(change("a", 4), "4")

    assert worked_off(queue) == ["uid-a/4"]


Delivery = tuple[int, int]
"""The number of an object, and a version of it."""


@settings(max_examples=300, deadline=None)
@given(
    deliveries=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6)), min_size=1, max_size=30),
    outcomes=st.lists(st.sampled_from(["fails", "succeeds", "succeeds"]), max_size=60),
    ordered=st.booleans(),
)
def test_any_order_of_deliveries_and_failures(
    *, deliveries: list[Delivery], outcomes: list[str], ordered: bool
) -> None:
    """Every event succeeds once, and never after a later version of its object while it was here, or had failed."""
    queue = Queue()
    todo, given_back = list(deliveries), list[Delivery]()
    delivered, succeeded = set[Delivery](), list[Delivery]()
    while todo or given_back or len(queue):
        if not todo:
            todo, given_back = given_back, []
        for thing, version in todo[:3]:
            delivered.add((thing, version))
            queue.add(change(f"w{thing}", version, key="k" if ordered else ""), f"{thing}/{version}")
        del todo[:3]
        list(queue.needless())
        blocked = [_named(each.event) for each in queue.give_back_blocked()]
        given_back += blocked
        delivered.difference_update(blocked)  # in which order they come again is up to the broker
        while chosen := queue.start():
            thing, version = _named(chosen)
            earlier = {each for each in delivered if each[0] == thing and each[1] < version}
            assert earlier <= set(succeeded)
            if outcomes and outcomes.pop() == "fails":
                queue.failed(chosen, now=0)
                given_back.append((thing, version))
            else:
                queue.succeeded(chosen)
                succeeded.append((thing, version))

    assert sorted(succeeded) == sorted(set(deliveries))
    assert queue.bytes == 0


def _named(event: Event) -> Delivery:
    return int(event.attributes["subject"].removeprefix("argo/w")), int(event.attributes["resourceversion"])
