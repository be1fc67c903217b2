"""The contract of `job.ports.Sink`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from job.message import Message
from job.ports import Sink, Verdict

TIMEOUT = 10.0
ReadBack = Callable[[], list[Message]]
"""Every message that is stored, in the order of the sink; `key` may be lost."""


def message(number: int, data: bytes = b"{}") -> Message:
    attributes = {
        "specversion": "1.0",
        "id": f"uid/{number}",
        "source": "/clusters/c/apis/argoproj.io/v1alpha1/workflows",
        "type": "io.argoproj.workflows.modified",
        "subject": 'argo/ü \u2028 "name"',
        "datacontenttype": "application/json",
    }
    return Message(attributes, data, "argo/a")


class SinkContract:
    """What every sink does.

    A subclass has the fixtures `sink`, at first empty, `stored`, and `broken`, a sink that cannot be used before
    somebody has mended something.
    """

    def test_the_limits_allow_something(self, sink: Sink) -> None:
        """At least one lane, one message, and some bytes."""
        assert min(sink.limits.lanes, sink.limits.messages, sink.limits.bytes) >= 1

    def test_a_batch_is_stored_when_publish_returns(self, sink: Sink, stored: ReadBack) -> None:
        """Whole, in order, attributes and data as they are."""
        batch = [message(number, b'{"n":%d,"text":"\xc3\xbc\\n\\u2028"}' % number) for number in range(3)]
        sink.publish(0, batch, TIMEOUT)

        assert same(stored(), batch)

    def test_batches_follow_one_another(self, sink: Sink, stored: ReadBack) -> None:
        """What is published later stands behind."""
        for number in range(5):
            sink.publish(0, [message(number)], TIMEOUT)

        assert [found.id for found in stored()] == [f"uid/{number}" for number in range(5)]

    def test_data_passes_byte_for_byte(self, sink: Sink, stored: ReadBack) -> None:
        """Numbers, key order and escapes are not printed anew."""
        data = b'{"z":1.50,"a":12345678901234567890123,"z2":"\\u00e9\\/","e":1E5,"n":null}'
        sink.publish(0, [message(1, data)], TIMEOUT)

        assert stored()[0].data == data

    def test_publishing_again_is_allowed(self, sink: Sink, stored: ReadBack) -> None:
        """A repeat is stored, perhaps twice, and nothing else changes."""
        for _ in range(2):
            sink.publish(0, [message(1), message(2)], TIMEOUT)

        assert {found.id for found in stored()} == {"uid/1", "uid/2"}

    def test_a_single_message_may_be_larger_than_a_batch(self, sink: Sink, stored: ReadBack) -> None:
        """A batch above the limit of bytes is allowed where it is one message."""
        data = b'"%b"' % (b"x" * (sink.limits.bytes + 1))
        sink.publish(0, [message(1, data)], TIMEOUT)

        assert stored()[0].data == data

    def test_a_full_batch_is_taken(self, sink: Sink, stored: ReadBack) -> None:
        """As many messages as the limit says go in one request."""
        batch = [message(number) for number in range(sink.limits.messages)]
        sink.publish(0, batch, TIMEOUT)

        assert same(stored(), batch)

    def test_lanes_may_be_used_at_the_same_time(self, sink: Sink, stored: ReadBack) -> None:
        """From different threads; each lane keeps its own order."""
        lanes = range(min(sink.limits.lanes, 4))

        def fill(lane: int) -> None:
            for number in range(5):
                sink.publish(lane, [message(100 * lane + number)], TIMEOUT)

        with ThreadPoolExecutor(len(lanes)) as pool:
            list(pool.map(fill, lanes))
        found = [int(read.id.removeprefix("uid/")) for read in stored()]

        for lane in lanes:
            assert [number for number in found if number // 100 == lane] == [100 * lane + number for number in range(5)]

    def test_checks_publish_nothing(self, sink: Sink, stored: ReadBack) -> None:
        """What is stored stays as it is, and nothing is found that a run would fail at."""
        sink.publish(0, [message(1)], TIMEOUT)
        checks = list(sink.checks(TIMEOUT))

        assert [check for check in checks if check.verdict is Verdict.FAIL] == []
        assert checks
        assert same(stored(), [message(1)])

    def test_checks_come_before_the_first_message(self, sink: Sink, stored: ReadBack) -> None:
        """Nothing has to be there for them that a run would make."""
        assert [check for check in sink.checks(TIMEOUT) if check.verdict is Verdict.FAIL] == []
        sink.publish(0, [message(1)], TIMEOUT)

        assert same(stored(), [message(1)])

    def test_what_is_broken_fails_a_check(self, broken: Sink) -> None:
        """It raises nothing, and says what to do."""
        failed = [check for check in broken.checks(TIMEOUT) if check.verdict is Verdict.FAIL]

        assert failed
        assert all(check.found and check.remedy for check in failed)


def same(found: list[Message], published: list[Message]) -> bool:
    return [(read.attributes, read.data) for read in found] == [(put.attributes, put.data) for put in published]


def parsed(lines: bytes) -> list[Message]:
    """Messages from JSON lines."""
    found = []
    for line in lines.splitlines():
        members = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        data = bytes(members.pop("data"))
        found.append(Message({name: msgspec.json.decode(value) for name, value in members.items()}, data, ""))
    return found
