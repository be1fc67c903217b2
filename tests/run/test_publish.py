"""Tests of messages on their way to the sink."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from unittest import mock
from zlib import crc32

import pytest
from hypothesis import given, settings, strategies as st

from job.change import Known
from job.checkpoint import Checkpoint, Scope
from job.errors import Forbidden, OutOfTime, Refused, Stopped, Unavailable
from job.message import Message
from job.run import publish
from job.run.commit import Effect, Ledger
from job.run.deadline import Deadline
from job.run.publish import DeadLetters, Publisher
from tests.bed.waiting import wait_until
from tests.fakes.clock import Clock
from tests.fakes.sink import Answer, MemorySink

SOON = timedelta(seconds=20)


def message(key: str, version: int, size: int = 10) -> Message:
    return Message({"id": f"{key}/{version}"}, b"x" * size, key)


def effect(key: str, version: int) -> Effect:
    return Effect(version=version, uid=key, known=Known("argo", key, version))


class Line:
    """A publisher between a ledger and a sink."""

    def __init__(self, sink: MemorySink, kept: MemorySink | None = None) -> None:
        self.clock = Clock()
        self.sink = sink
        self.deadline = Deadline(timedelta(seconds=55), self.clock)
        self.ledger = Ledger(Checkpoint(Scope("", "", "", "", "")))
        dead_letters = DeadLetters(kept, "memory:dead", "memory:") if kept else None
        self.publisher = Publisher(sink, self.ledger, self.deadline, dead_letters)

    def put(self, key: str, version: int, size: int = 10) -> None:
        self.publisher.put(message(key, version, size), effect(key, version))

    def lane(self, key: str) -> int:
        return crc32(key.encode()) % self.sink.limits.lanes

    @property
    def ids(self) -> list[str]:
        return [stored.id for stored in self.sink.stored]

    @property
    def known(self) -> dict[str, int]:
        return {uid: entry.version for uid, entry in self.ledger.inventory().items()}


@pytest.fixture
def line() -> Iterator[Line]:
    with MemorySink() as sink:
        line = Line(sink)
        yield line
        line.publisher.close()


def two_lanes(line: Line) -> tuple[str, str]:
    """Two keys that do not share a lane."""
    return "a", next(key for key in "bcdefgh" if line.lane(key) != line.lane("a"))


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from("abcdef"), max_size=60),
    st.integers(1, 5),
    st.integers(1, 7),
    st.lists(st.sampled_from([Answer.STORED, Answer.STORED, Answer.LOST, Answer.HALF, Answer.PARTLY]), max_size=1),
)
def test_messages_of_one_key_are_stored_in_order(keys: list[str], lanes: int, most: int, answers: list[Answer]) -> None:
    """Whatever the lanes, the batches and what the sink loses: first occurrences of each key come as they were put."""
    with MemorySink(lanes=lanes, messages=most, most_bytes=3000) as sink:
        sink.answer(*answers)
        line = Line(sink)
        for version, key in enumerate(keys, 1):
            line.put(key, version)
        assert line.publisher.drain()
        line.publisher.close()

        for key in set(keys):
            first = list(dict.fromkeys(stored.id for stored in sink.stored if stored.key == key))
            assert first == [f"{key}/{version}" for version, put in enumerate(keys, 1) if put == key]
        assert line.ledger.version == len(keys)
        assert sink.broken == []


def test_a_drained_publisher_has_acknowledged_everything(line: Line) -> None:
    """After `drain` the ledger is where the stream is."""
    line.put("a", 1)
    line.put("b", 2)

    assert line.publisher.drain()
    assert line.known == {"a": 1, "b": 2}
    assert line.ledger.version == 2


def test_p2_the_ledger_waits_for_the_oldest_message(line: Line) -> None:
    """What a quick lane has stored counts only when the slow lane before it has."""
    slow, quick = two_lanes(line)
    line.sink.hold(line.lane(slow))
    line.put(slow, 1)
    line.put(quick, 2)
    wait_until(lambda: f"{quick}/2" in line.ids, SOON, "the quick lane")

    assert line.ledger.version == 0
    assert line.known == {}

    line.sink.release(line.lane(slow))
    assert line.publisher.drain()
    assert line.ledger.version == 2


def test_what_is_stored_of_a_batch_counts_where_a_person_must_act() -> None:
    """The others are not tried again, and the error is the one that says who must."""
    with MemorySink(lanes=1) as sink:
        sink.answer(Answer.STORED, Answer.BARRED)
        line = Line(sink)
        sink.hold(0)
        line.put("a", 1)
        wait_until(lambda: sink.asked == 1, SOON, "the first batch")
        for key, version in (("a", 2), ("b", 3), ("c", 4)):
            line.put(key, version)
        sink.release(0)
        with pytest.raises(Forbidden):
            line.publisher.drain()
        line.publisher.close()

        assert (line.ids, line.known, line.ledger.version, sink.asked) == (["a/1", "a/2"], {"a": 2}, 2, 2)


def test_what_gathers_behind_a_slow_request_goes_out_in_one(line: Line) -> None:
    """A lane has one batch in flight; the rest waits, and is the next batch."""
    line.sink.hold(line.lane("a"))
    line.put("a", 1)
    wait_until(lambda: line.sink.asked == 1, SOON, "the first batch")
    for version in range(2, 6):
        line.put("a", version)
    line.sink.release(line.lane("a"))
    assert line.publisher.drain()

    assert [[stored.id for stored in batch] for _, batch in line.sink.batches] == [
        ["a/1"],
        ["a/2", "a/3", "a/4", "a/5"],
    ]


def test_the_first_message_does_not_linger(line: Line) -> None:
    """There is nothing for it to wait for, and whoever waits for a message at the start of a run waits for nothing."""
    with mock.patch.object(publish, "LINGER", 3600):
        line.publisher = Publisher(line.sink, line.ledger, line.deadline)
        line.put("a", 1)
        wait_until(lambda: line.ids == ["a/1"], SOON, "the message")


def test_a_whole_batch_does_not_linger(line: Line) -> None:
    """What follows on the first waits until there are as many as the sink takes in one request."""
    with mock.patch.object(publish, "LINGER", 3600):
        line.publisher = Publisher(line.sink, line.ledger, line.deadline)
        for version in range(1, 1 + line.sink.limits.messages):
            line.put("a", version)
        wait_until(lambda: line.ids == ["a/1"], SOON, "the first message")
        line.put("a", 1 + line.sink.limits.messages)
        wait_until(lambda: len(line.ids) == 1 + line.sink.limits.messages, SOON, "the batch")

        assert [len(batch) for _, batch in line.sink.batches] == [1, line.sink.limits.messages]


def test_what_is_no_whole_batch_goes_after_a_while(line: Line) -> None:
    """Nobody has to ask for it, in any lane."""
    for version, key in enumerate(("a", *two_lanes(line)), 1):
        line.put(key, version)

    wait_until(lambda: len(line.ids) == 3, SOON, "all of them")
    assert line.publisher.drain()


def test_a_drained_publisher_lingers_no_more(line: Line) -> None:
    """At the end of a window, and before a gap, everything goes at once; after that messages gather again."""
    with mock.patch.object(publish, "LINGER", 3600):
        line.publisher = Publisher(line.sink, line.ledger, line.deadline)
        for version in range(1, 6):
            line.put("a", version)
        assert line.publisher.drain()
        line.put("a", 6)
        line.put("a", 7)

        assert "a/7" not in line.ids
        assert line.publisher.drain()
        assert line.ids == [f"a/{version}" for version in range(1, 8)]


def test_a_message_above_the_limit_goes_alone(line: Line) -> None:
    """A batch has at least one message, however large."""
    line.sink.hold(line.lane("a"))
    line.put("a", 1)
    wait_until(lambda: line.sink.asked == 1, SOON, "the first batch")
    line.put("a", 2)
    line.put("a", 3, size=line.sink.limits.bytes + 1)
    line.put("a", 4)
    line.sink.release(line.lane("a"))
    assert line.publisher.drain()

    assert [len(batch) for _, batch in line.sink.batches] == [1, 1, 1, 1]


@pytest.mark.parametrize("answer", [Answer.UNAVAILABLE, Answer.LOST, Answer.HALF])
def test_an_unavailable_sink_is_tried_again(line: Line, answer: Answer) -> None:
    """It is unknown what was stored, so the whole batch goes out again, under the same ids."""
    line.sink.answer(answer)
    line.put("a", 1)

    assert line.publisher.drain()
    assert set(line.ids) == {"a/1"}
    assert line.sink.asked == 2


def test_what_a_sink_has_stored_for_certain_is_acknowledged_at_once(line: Line) -> None:
    """Only the rest of the batch goes out again, and the ledger does not wait for it."""
    line.sink.hold(line.lane("a"))
    line.put("a", 1)
    wait_until(lambda: line.sink.asked == 1, SOON, "the first batch")
    other = next(key for key in map(str, range(100)) if line.lane(key) == line.lane("a"))
    for version, key in enumerate(["a", other, "a", other], 2):
        line.put(key, version)
    line.sink.answer(Answer.PARTLY, Answer.UNAVAILABLE)
    line.sink.before = lambda _: known.append(line.known)
    known: list[dict[str, int]] = []
    line.sink.release(line.lane("a"))

    assert line.publisher.drain()
    assert line.ids == ["a/1", "a/2", "a/4", f"{other}/3", f"{other}/5"]
    assert known[:2] == [{"a": 1}, {"a": 2}]  # the fourth waits for the third
    assert line.ledger.version == 5


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40),
    st.sets(st.integers(1, 40)),
    st.integers(1, 3),
    st.integers(1, 9),
)
def test_refused_messages_cost_nothing_but_themselves(keys: list[str], bad: set[int], lanes: int, most: int) -> None:
    """P2: what is refused, and what follows it for its key, stays behind; the ledger waits before the first."""
    with MemorySink(lanes=lanes, messages=most) as sink:
        sink.poison = lambda message: int(message.id.partition("/")[2]) in bad
        line = Line(sink)
        blamed: set[int] = set()
        try:
            for version, key in enumerate(keys, 1):
                line.put(key, version)
            assert line.publisher.drain()
        except Refused as refusal:
            blamed = {int(each.partition("/")[2]) for each in refusal.ids}
        line.publisher.close()
        stored = {int(each.partition("/")[2]) for each in line.ids}

        assert stored.isdisjoint(bad)
        assert blamed <= bad
        for key in set(keys):
            mine = [version for version, put in enumerate(keys, 1) if put == key]
            told = [version for version in mine if version in stored]
            assert told == mine[: len(told)]
        untold = [version for version in range(1, len(keys) + 1) if version not in stored]
        assert line.ledger.version == (untold[0] - 1 if untold else len(keys))
        assert sink.broken == []


def test_p2_of_two_messages_with_one_id_each_is_acknowledged_by_itself(line: Line) -> None:
    """Two ends of a Workflow within one second: that the first is stored says nothing of the second."""
    key = "a"
    line.sink.answer(Answer.STORED, Answer.FIRST, Answer.FIRST)
    line.sink.hold(line.lane(key))
    line.put(key, 1)
    wait_until(lambda: line.sink.asked == 1, SOON, "the first batch")
    for version, size in ((2, 10), (3, 20), (4, 30)):
        line.publisher.put(message(key, 2, size), effect(key, version))
    line.sink.release(line.lane(key))

    assert line.publisher.drain()
    assert [len(each.data) for each in line.sink.stored] == [10, 10, 20, 30]
    assert line.ledger.version == 4


def test_r14_a_batch_refused_whole_and_singly_is_the_sinks_fault(line: Line) -> None:
    """Nobody is blamed by name; a batch of one, or with one that is stored, has a message to blame."""
    line.sink.hold(line.lane("a"))
    line.put("a", 1)
    wait_until(lambda: line.sink.asked == 1, SOON, "the first batch")
    same_lane = [key for key in map(str, range(100)) if line.lane(key) == line.lane("a")][:3]
    for version, key in enumerate(same_lane, 2):
        line.put(key, version)
    line.sink.poison = lambda message: not message.id.startswith("a/")
    line.sink.release(line.lane("a"))
    with pytest.raises(Refused, match="each of 3 messages was refused") as refused:
        line.publisher.drain()

    assert refused.value.ids == [f"{key}/{version}" for version, key in enumerate(same_lane, 2)]
    assert line.ledger.version == 1


def test_a_refusal_outweighs_an_unavailable_sink(line: Line) -> None:
    """Halved, one message was refused before the sink went away: a person must act, whatever else is wrong."""
    line.sink.hold(line.lane("a"))
    line.put("a", 1)
    wait_until(lambda: line.sink.asked == 1, SOON, "the first batch")
    other = next(key for key in map(str, range(100)) if line.lane(key) == line.lane("a"))
    line.put("a", 2)
    line.put(other, 3)
    line.sink.poison = lambda message: message.id == "a/2"

    def leave(_: int) -> None:
        if line.sink.asked == 3:
            line.sink.otherwise = Answer.UNAVAILABLE
            line.publisher.close()  # nothing is tried again

    line.sink.before = leave
    line.sink.release(line.lane("a"))
    with pytest.raises(Refused) as refused:
        line.publisher.drain()

    assert refused.value.ids == ["a/2"]


def test_a_refusal_in_one_lane_outweighs_an_unavailable_other(line: Line) -> None:
    """Both fail, the unavailable one first: a person must act, whatever else is wrong."""
    bad, away = two_lanes(line)
    line.sink.hold(line.lane(bad))
    line.sink.answer(Answer.REFUSED)
    line.sink.otherwise = Answer.UNAVAILABLE
    line.put(bad, 1)
    wait_until(lambda: line.sink.asked == 1, SOON, "the bad batch")
    line.put(away, 2)
    wait_until(lambda: line.sink.asked == 2, SOON, "the other batch")
    line.publisher.close()
    wait_until(lambda: len(workers()) == 1, SOON, "the other lane to give up")
    line.sink.release(line.lane(bad))

    with pytest.raises(Refused):
        line.publisher.drain()


def test_p2_after_a_failure_what_is_under_way_still_counts(line: Line) -> None:
    """A lane that is being answered when another fails is waited for: it need not be told again."""
    slow, bad = two_lanes(line)
    line.sink.hold(line.lane(slow))
    line.put(slow, 1)
    wait_until(lambda: line.sink.asked == 1, SOON, "the slow batch")
    line.sink.poison = lambda message: message.id == f"{bad}/2"
    line.put(bad, 2)
    wait_until(lambda: line.sink.asked == 2, SOON, "the bad batch")
    threading.Timer(0.2, line.sink.release, [line.lane(slow)]).start()
    with pytest.raises(Refused):
        line.publisher.drain()

    assert line.ledger.version == 1


def test_a_run_that_was_stopped_for_long_sends_nothing_when_it_wakes_up(line: Line) -> None:
    """Its deadline has passed, and it may have a successor."""
    line.clock.jump(1000)
    line.put("a", 1)

    with pytest.raises(OutOfTime):
        line.publisher.drain()
    assert line.sink.asked == 0


def test_a_refused_message_ends_the_publishing(line: Line) -> None:
    """Nothing behind it is acknowledged, and everybody who asks is told why."""
    line.sink.answer(Answer.REFUSED)
    line.put("a", 1)
    with pytest.raises(Refused) as refused:
        line.publisher.drain()

    assert refused.value.ids == ["a/1"]
    assert line.ledger.version == 0
    with pytest.raises(Refused):
        line.put("b", 2)
    with pytest.raises(Refused):
        line.publisher.check()


def test_p2_what_was_stored_behind_a_failure_is_not_counted(line: Line) -> None:
    """A failed batch stops the prefix before it, however many later ones succeeded."""
    bad, good = two_lanes(line)
    line.sink.hold(line.lane(bad))
    line.sink.answer(Answer.REFUSED)
    line.put(bad, 1)
    wait_until(lambda: line.sink.asked == 1, SOON, "the bad batch")
    line.put(good, 2)
    wait_until(lambda: line.ids == [f"{good}/2"], SOON, "the good lane")
    line.sink.release(line.lane(bad))
    with pytest.raises(Refused):
        line.publisher.drain()

    assert line.ledger.version == 0


def test_a_sink_that_stays_away_ends_the_publishing_at_the_deadline(line: Line) -> None:
    """The retries end with the time for them, and the last error is told."""
    line.sink.otherwise = Answer.UNAVAILABLE
    line.sink.before = lambda _: line.clock.jump(20)
    line.put("a", 1)

    with pytest.raises(Unavailable):
        line.publisher.drain()
    assert line.sink.asked > 1


def test_r19_a_sink_that_hangs_is_given_up(line: Line) -> None:
    """A sink that hangs does not keep the run beyond its deadline."""
    line.sink.answer(Answer.HANGS)
    line.put("a", 1)
    line.clock.jump(1000)

    assert line.publisher.drain() is False
    assert {thread.daemon for thread in threading.enumerate() if thread.name.startswith("publish-")} == {True}


def test_a_closed_publisher_sends_nothing_more(line: Line) -> None:
    """What waits stays behind for the next run."""
    line.sink.hold(line.lane("a"))
    line.put("a", 1)
    wait_until(lambda: line.sink.asked == 1, SOON, "the first batch")
    line.put("a", 2)
    line.publisher.close()
    line.sink.release(line.lane("a"))
    wait_until(lambda: line.ids == ["a/1"], SOON, "what was in flight")
    wait_until(lambda: not workers(), SOON, "the workers' end")

    assert line.ids == ["a/1"]


def test_too_much_in_flight_makes_the_reader_wait(line: Line) -> None:
    """Beyond the limit `put` blocks until the sink has taken something."""
    line.sink.hold(line.lane("a"))
    size = publish.MOST_BYTES // 4
    for version in range(1, 5):
        line.put("a", version, size)
    fifth = threading.Thread(target=line.put, args=("a", 5, size), daemon=True)
    fifth.start()
    fifth.join(timeout=0.3)
    assert fifth.is_alive()

    line.sink.release(line.lane("a"))
    fifth.join(timeout=SOON.total_seconds())
    assert not fifth.is_alive()
    assert line.publisher.drain()
    assert line.ledger.version == 5


def test_a_signal_frees_who_waits_for_the_sink(line: Line) -> None:
    """`put` does not outlast a SIGTERM."""
    line.sink.answer(Answer.HANGS)
    line.put("a", 1, publish.MOST_BYTES)
    line.deadline.signal()

    with pytest.raises(Stopped):
        line.put("a", 2)


def test_the_deadline_frees_who_waits_for_the_sink(line: Line) -> None:
    """`put` does not outlast the drain."""
    line.sink.answer(Answer.HANGS)
    line.put("a", 1, publish.MOST_BYTES)
    line.clock.jump(1000)

    with pytest.raises(OutOfTime):
        line.put("a", 2)


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("publish-")]


@pytest.fixture
def kept() -> Iterator[MemorySink]:
    with MemorySink(lanes=1, messages=1) as sink:
        yield sink


@pytest.fixture
def careful(line: Line, kept: MemorySink) -> Line:
    """A line with a place for dead letters."""
    return Line(line.sink, kept)


def in_one_batch(line: Line, keys: list[str]) -> None:
    """Put messages of one lane while it is busy, so that they go together; the first of all is `a/1`."""
    line.sink.hold(line.lane("a"))
    line.put("a", 1)
    wait_until(lambda: line.sink.asked == 1, SOON, "the first batch")
    for version, key in enumerate(keys, 2):
        line.put(key, version)
    line.sink.release(line.lane("a"))


def neighbours(line: Line, count: int) -> list[str]:
    """Keys of the lane of `a`."""
    return [key for key in map(str, range(1000)) if line.lane(key) == line.lane("a")][:count]


def test_a_refused_message_is_kept_and_the_others_are_stored(careful: Line, kept: MemorySink) -> None:
    """P1: one refused in a batch; what follows it for its key is stored after it is kept."""
    bad, good = neighbours(careful, 2)
    careful.sink.poison = lambda message: message.id == f"{bad}/2"
    in_one_batch(careful, [bad, good, bad])

    assert careful.publisher.drain()
    assert sorted(careful.ids) == sorted(["a/1", f"{good}/3", f"{bad}/4"])
    assert careful.ids.index(f"{bad}/4") == 2
    (letter,) = kept.stored
    assert letter.attributes == {
        "id": f"{bad}/2",
        "refusedby": "memory:",
        "refusal": "the sink was told: REFUSED",
    }
    assert letter.data == b"x" * 10
    assert careful.ledger.version == 4
    assert careful.ledger.published["dead-lettered"] == 1


def test_a_lone_refused_message_is_kept(careful: Line, kept: MemorySink) -> None:
    """In a quiet run there is nothing beside it; the first one has the benefit of the doubt."""
    careful.sink.answer(Answer.REFUSED)
    careful.put("a", 1)

    assert careful.publisher.drain()
    assert [each.id for each in kept.stored] == ["a/1"]
    assert careful.ledger.version == 1


def test_r14_a_batch_refused_whole_and_singly_is_not_kept(careful: Line, kept: MemorySink) -> None:
    """It is the sink that must be mended: nothing of it is a dead letter, and nothing is lost."""
    keys = neighbours(careful, 3)
    careful.sink.poison = lambda message: not message.id.startswith("a/")
    in_one_batch(careful, keys)
    with pytest.raises(Refused, match="each of 3 messages was refused"):
        careful.publisher.drain()

    assert kept.stored == []
    assert careful.ledger.version == 1


def test_r14_one_after_the_other_from_the_beginning_is_the_sinks_fault(careful: Line, kept: MemorySink) -> None:
    """A sink that has taken nothing in this run gets no second message kept."""
    careful.sink.otherwise = Answer.REFUSED
    careful.put("a", 1)
    assert careful.publisher.drain()
    careful.put("a", 2)
    with pytest.raises(Refused, match="one message after the other"):
        careful.publisher.drain()

    assert [each.id for each in kept.stored] == ["a/1"]
    assert careful.ledger.version == 1


def test_one_after_the_other_is_kept_where_the_sink_takes_others(careful: Line, kept: MemorySink) -> None:
    """What it has taken in this run says that it is well."""
    careful.put("b", 1)
    assert careful.publisher.drain()
    careful.sink.poison = lambda message: message.key == "a"
    for version in (2, 3, 4):
        careful.put("a", version)
        assert careful.publisher.drain()

    assert [each.id for each in kept.stored] == ["a/2", "a/3", "a/4"]
    assert careful.ledger.version == 4


def test_objects_that_are_always_refused_do_not_stop_a_batch_of_others(careful: Line, kept: MemorySink) -> None:
    """R14: the sink took something of the batch, so it is well, however many versions of them follow."""
    one, two, good = neighbours(careful, 3)
    careful.sink.poison = lambda message: message.key in {one, two}
    in_one_batch(careful, [good, one, two, one, two, one])

    assert careful.publisher.drain()
    assert careful.ids == ["a/1", f"{good}/2"]
    assert sorted(each.id for each in kept.stored) == sorted(
        [f"{one}/3", f"{two}/4", f"{one}/5", f"{two}/6", f"{one}/7"]
    )
    assert careful.ledger.version == 7


def test_what_is_behind_refused_messages_is_asked_for_before_the_sink_is_blamed(
    careful: Line, kept: MemorySink
) -> None:
    """R14: it was not refused, only kept back for the order."""
    one, two = neighbours(careful, 2)
    careful.sink.poison = lambda message: message.id in {f"{one}/2", f"{two}/3"}
    in_one_batch(careful, [one, two, one, two])

    assert careful.publisher.drain()
    assert careful.ids == ["a/1", f"{one}/4", f"{two}/5"]
    assert [each.id for each in kept.stored] == [f"{one}/2", f"{two}/3"]


def test_r14_a_batch_of_which_nothing_is_taken_in_the_end_is_the_sinks_fault(careful: Line, kept: MemorySink) -> None:
    """What was behind the refused messages is refused as well."""
    one, two = neighbours(careful, 2)
    careful.sink.poison = lambda message: message.key in {one, two}
    in_one_batch(careful, [one, two, one])
    with pytest.raises(Refused, match="so it is the sink that must be mended") as refused:
        careful.publisher.drain()

    assert refused.value.ids == [f"{one}/4"]
    assert [each.id for each in kept.stored] == [f"{one}/2", f"{two}/3"]
    assert careful.ledger.version == 3


def test_versions_of_one_object_say_nothing_about_the_sink(careful: Line, kept: MemorySink) -> None:
    """A batch of nothing else is refused singly, and kept: it was well before."""
    (one,) = neighbours(careful, 1)
    careful.sink.poison = lambda message: message.key == one
    in_one_batch(careful, [one, one, one])

    assert careful.publisher.drain()
    assert [each.id for each in kept.stored] == [f"{one}/2", f"{one}/3", f"{one}/4"]


@pytest.mark.parametrize("signalled", [False, True])
def test_a_refused_message_that_can_be_kept_does_not_outweigh_an_unavailable_sink(
    *, careful: Line, kept: MemorySink, signalled: bool
) -> None:
    """The next run finds it again, and keeps it; nobody has to do anything."""
    bad, good = neighbours(careful, 2)
    careful.sink.poison = lambda message: message.id == f"{bad}/2"

    def leave(_: int) -> None:
        if careful.sink.asked == 3:
            if signalled:
                careful.deadline.signal()
            careful.sink.otherwise = Answer.UNAVAILABLE
            careful.sink.before = lambda _: careful.clock.jump(4 if signalled else 30)

    careful.sink.before = leave
    in_one_batch(careful, [bad, good])
    with pytest.raises(Unavailable):
        careful.publisher.drain()

    assert (kept.stored, careful.ledger.version) == ([], 1)


def test_a_place_for_dead_letters_that_was_never_asked_needs_nobody(careful: Line, kept: MemorySink) -> None:
    """The refusal came when the time was over: the next run goes on."""
    careful.sink.before = lambda _: careful.clock.jump(1000)
    careful.sink.answer(Answer.REFUSED)
    careful.put("a", 1)
    with pytest.raises(OutOfTime):
        careful.publisher.drain()

    assert (kept.asked, careful.ledger.version) == (0, 0)


@pytest.mark.parametrize("answer", [Answer.REFUSED, Answer.BARRED])
def test_a_dead_letter_that_cannot_be_kept_is_not_gone_past(careful: Line, kept: MemorySink, answer: Answer) -> None:
    """P2: the version stays before it, and a person must act."""
    kept.otherwise = answer
    kept.poison = lambda _: answer is Answer.BARRED
    careful.sink.answer(Answer.REFUSED)
    careful.put("a", 1)
    with pytest.raises(Refused, match="cannot be kept in memory:dead") as refused:
        careful.publisher.drain()

    assert refused.value.ids == ["a/1"]
    assert careful.ledger.version == 0
    assert careful.ledger.published == {}


def test_a_place_for_dead_letters_that_is_away_is_asked_again(careful: Line, kept: MemorySink) -> None:
    """As the sink is, while there is time."""
    kept.answer(Answer.UNAVAILABLE, Answer.LOST)
    careful.sink.answer(Answer.REFUSED)
    careful.put("a", 1)

    assert careful.publisher.drain()
    assert [each.id for each in kept.stored] == ["a/1", "a/1"]
    assert careful.ledger.version == 1


def test_a_place_for_dead_letters_that_stays_away_needs_a_person(careful: Line, kept: MemorySink) -> None:
    """When the time is over: not written is not gone past."""
    kept.otherwise = Answer.UNAVAILABLE
    kept.before = lambda _: careful.clock.jump(40)
    careful.sink.answer(Answer.REFUSED)
    careful.put("a", 1)
    with pytest.raises(Refused, match="cannot be kept"):
        careful.publisher.drain()

    assert careful.ledger.version == 0


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from("abcdef"), min_size=2, max_size=40),
    st.sets(st.integers(2, 40), max_size=10),
    st.integers(1, 3),
    st.integers(2, 9),
)
def test_what_is_refused_is_kept_once_and_in_its_place(keys: list[str], bad: set[int], lanes: int, most: int) -> None:
    """P1: every message is stored or kept, or the run stops before it; those of a key in their order.

    One object alone never stops it: the sink has taken the first message of all.
    """
    with MemorySink(lanes=lanes, messages=most) as sink, MemorySink(lanes=1, messages=1) as kept:
        sink.poison = lambda message: int(message.id.partition("/")[2]) in bad
        line = Line(sink, kept)
        stopped = False
        try:
            for version, key in enumerate(keys, 1):
                line.put(key, version)
                assert version > 1 or line.publisher.drain()
            assert line.publisher.drain()
        except Refused:
            stopped = True
        line.publisher.close()
        bad_ones = bad & set(range(len(keys) + 1))
        stored = {int(each.partition("/")[2]) for each in line.ids}
        letters = [int(each.id.partition("/")[2]) for each in kept.stored]

        assert stored.isdisjoint(bad)
        assert len(letters) == len(set(letters))
        assert set(letters) <= bad
        done = stored | set(letters)
        assert done == set(range(1, len(keys) + 1)) or (stopped and len({keys[each - 1] for each in bad_ones}) > 1)
        untold = [version for version in range(1, len(keys) + 1) if version not in done]
        assert line.ledger.version == (untold[0] - 1 if untold else len(keys))
        for key in set(keys):
            mine = [version for version, put in enumerate(keys, 1) if put == key]
            told = [version for version in mine if version in done]
            assert told == mine[: len(told)]
        assert sink.broken == kept.broken == []
