"""examples/consumer.py works a subscription off, and knows what is a repeat."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from examples.consumer import Event, Memory, read
from job.change import Change, Gap, Kind, Missing, Object, Provenance, Reason, Resource
from job.credentials import GoogleCredentials
from job.message import Envelope, Message, binary
from job.run.deadline import Deadline
from job.sinks.pubsub import PubSubSink
from tests.bed.pubsub import PubSub
from tests.bed.waiting import wait_until

ROOT = Path(__file__).parents[2]
ENVELOPE = Envelope("prod", Resource("workflows", "v1alpha1", "argoproj.io"), "argo")
LONG = timedelta(seconds=120)
FIRST, LATER = (datetime(2026, 11, 23, 6, minute, tzinfo=UTC) for minute in (6, 7))
# Of three events, the handler fails for one, when it is first seen.
FAILING = """
import logging, sys
from examples.consumer import consume, show

failed = set()

def handle(event):
    if int(event.get("resourceversion", 0)) % 3 == 0 and event["id"] not in failed:
        failed.add(event["id"])
        raise RuntimeError("the database is away")
    show(event)

logging.basicConfig(level=logging.INFO)
consume(sys.argv[1], handle)
"""


def change(
    name: str,
    version: int,
    kind: Kind = Kind.MODIFIED,
    provenance: Provenance = Provenance.OBSERVED,
    epoch: int = 0,
) -> Message:
    data = json.dumps({"metadata": {"name": name}}).encode()
    return ENVELOPE.change(Change(kind, Object(f"uid-{name}", "argo", name, version, data=data), provenance, epoch))


GAP = ENVELOPE.gap(Gap(Reason.EXPIRED, 100, 200, "2026-11-23T06:06:30Z", Missing.INTERMEDIATE))


def event(message: Message) -> Event:
    return read(binary(message.attributes), message.data)


@pytest.fixture(params=["official_pubsub", "pstest"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PubSub:
    found: PubSub = request.getfixturevalue(request.param)
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", found.address)
    return found


def publish(topic: str, messages: Sequence[Message], ordering: int = 0) -> None:
    sink = PubSubSink(topic, GoogleCredentials(Deadline(timedelta())), ordering=ordering)
    sink.open()
    for message in messages:
        sink.publish(sum(message.key.encode()) % sink.limits.lanes, [message], 30)


class Consumer:
    """The running example."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path, log: Path) -> None:
        self._process, self._output, self._log = process, output, log

    @property
    def handled(self) -> list[str]:
        """Ids, in the order in which the handler had them."""
        return [line.split()[-1] for line in self._output.read_text().splitlines()]

    @property
    def skipped(self) -> int:
        return len(re.findall("skipped ", self._log.read_text()))

    @property
    def failed(self) -> int:
        return len(re.findall("failed: message", self._log.read_text()))

    def wait_until_settled(self, published: int) -> None:
        """Everything that was published has come to its end."""

        def settled() -> bool:
            assert self._process.poll() is None, self._log.read_text()
            return len(self.handled) + self.skipped >= published

        wait_until(settled, LONG, f"{published} messages to be handled or skipped")

    @property
    def ended(self) -> int | None:
        return self._process.poll()

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(LONG.total_seconds())


@contextmanager
def running(command: Sequence[str], server: PubSub, folder: Path) -> Iterator[Consumer]:
    environment = os.environ | {
        "PUBSUB_EMULATOR_HOST": server.address,
        "PYTHONPATH": str(ROOT),
        "no_grpc_proxy": "127.0.0.1",
    }
    output, log = folder / "output", folder / "log"
    with output.open("wb") as stdout, log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=stdout, stderr=stderr)
    try:
        yield Consumer(process, output, log)
    finally:
        process.kill()
        process.wait()


def test_every_event_is_processed_though_the_handler_fails_at_times(server: PubSub, tmp_path: Path) -> None:
    """Once each, however often it was published, and the consumer ends well when it is told to."""
    topic = server.create_topic("failing-handler")
    subscription = server.create_subscription(topic)
    messages = [change(f"w{number}", number) for number in range(60)]
    publish(topic, [*messages, *messages, GAP])

    with running(["-c", FAILING, subscription.name], server, tmp_path) as consumer:
        consumer.wait_until_settled(2 * len(messages) + 1)

        assert Counter(consumer.handled) == Counter(message.id for message in [*messages, GAP])
        assert consumer.failed >= 20
        assert consumer.stop() == 0


def test_the_latest_of_each_object_wins(server: PubSub, tmp_path: Path) -> None:
    """And a deletion beats all. The next of an ordering key comes only when the one before is acknowledged."""
    topic = server.create_topic("latest-wins")
    subscription = server.create_subscription(topic, ordered=True)
    versions = [change(f"w{number % 8}", number) for number in range(1, 49)]
    deletions = [change(f"w{number}", 100 + number, Kind.DELETED) for number in range(0, 8, 2)]
    late = [change(f"w{number}", 49 + number) for number in range(8)]
    published = [*versions, *deletions, *late]
    publish(topic, published, ordering=4)

    with running(["-c", FAILING, subscription.name], server, tmp_path) as consumer:
        consumer.wait_until_settled(len(published))
        handled = consumer.handled

        assert consumer.stop() == 0
    told = defaultdict(list)
    for identity in handled:
        uid, _, version = identity.partition("/")
        told[uid].append(version)
    assert {uid: versions[-1] for uid, versions in told.items()} == {
        f"uid-w{number}": str(49 + number) if number % 2 else "deleted" for number in range(8)
    }
    for each in told.values():
        numbers = [int(version) for version in each if version != "deleted"]
        assert numbers == sorted(set(numbers))


def test_it_starts_with_nothing_but_the_subscription(server: PubSub, tmp_path: Path) -> None:
    """`python -m examples.consumer` prints what it handles."""
    topic = server.create_topic("started")
    subscription = server.create_subscription(topic)
    publish(topic, [change("nightly", 7), GAP])

    with running(["-m", "examples.consumer", subscription.name], server, tmp_path) as consumer:
        consumer.wait_until_settled(2)

        assert sorted(consumer.handled) == sorted([change("nightly", 7).id, GAP.id])
        assert consumer.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_the_first_event_ends_it_well(server: PubSub, number: signal.Signals) -> None:
    """While threads are still starting, a signal may wake nobody; four times, since that is a matter of luck."""
    topic = server.create_topic(f"ended-early-{number.name}")
    for _ in range(4):
        subscription = server.create_subscription(topic)
        publish(topic, [change("nightly", 7)])
        command = [sys.executable, "-m", "examples.consumer", subscription.name]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            try:
                assert process.stdout
                assert process.stdout.readline()  # at once, and not when a test next looks
                process.send_signal(number)

                assert process.wait(LONG.total_seconds()) == 0
            finally:
                process.kill()


def test_a_subscription_that_is_not_there_ends_it(server: PubSub, tmp_path: Path) -> None:
    """It does not wait for ever."""
    with running(["-m", "examples.consumer", "projects/p/subscriptions/none"], server, tmp_path) as consumer:
        wait_until(lambda: consumer.ended is not None, LONG, "the consumer to end")

        assert consumer.ended == 1


class Handler:
    """Keeps the ids of what it was given."""

    def __init__(self, size: int = 100) -> None:
        self.handled: list[str] = []
        self._memory = Memory(size)

    def gets(self, message: Message, published: datetime = FIRST) -> bool:
        before = len(self.handled)
        self._memory.process(event(message), published, lambda found: self.handled.append(found["id"]))
        return len(self.handled) > before


def test_what_is_told_again_behind_a_gap_is_no_repeat() -> None:
    """It says that the object is still there; the gap itself may arrive after it."""
    handler = Handler()
    handler.gets(change("a", 150))

    assert handler.gets(change("a", 150, provenance=Provenance.RECOVERED), LATER)
    assert handler.gets(GAP)


def test_a_message_that_is_delivered_again_is_a_repeat() -> None:
    """Also one that follows from a gap, and the gap itself: Pub/Sub's time of publishing is the same."""
    handler = Handler()
    messages = [
        change("a", 150, provenance=Provenance.RECOVERED),
        change("b", 151, provenance=Provenance.INFERRED),
        GAP,
    ]

    assert [handler.gets(message) for message in messages * 2] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("provenance", ["observed", "initial", "replay"])
def test_what_is_published_again_without_a_gap_is_a_repeat(provenance: str) -> None:
    """A backfill of what a consumer remembers is nothing new to it."""
    handler = Handler()
    handler.gets(change("a", 7))

    assert not handler.gets(change("a", 7, provenance=Provenance(provenance)), LATER)


def test_gaps_of_two_namespaces_are_two() -> None:
    """Though their ids are the same."""
    handler = Handler()
    handler.gets(GAP)
    other = Message({**GAP.attributes, "subject": "other"}, GAP.data, "other/")

    assert handler.gets(other)


@pytest.mark.parametrize("provenance", [Provenance.OBSERVED, Provenance.INFERRED])
def test_nothing_comes_after_a_deletion(provenance: Provenance) -> None:
    """Not even what has a higher version: an inferred deletion has none."""
    handler = Handler()
    handler.gets(change("a", 7, Kind.DELETED, provenance))

    assert not handler.gets(change("a", 9))
    assert handler.gets(change("b", 9))


def test_a_new_epoch_beats_the_deletion_and_every_version_of_the_one_before() -> None:
    """The versions of a cluster that was rewound are lower, and its objects may be back."""
    handler = Handler()
    handler.gets(change("a", 90, Kind.DELETED))

    assert handler.gets(change("a", 7, epoch=1))
    assert not handler.gets(change("a", 95))


def test_versions_are_compared_as_integers() -> None:
    """10 is later than 9, and 2^100 is not 2^100 + 1."""
    handler = Handler()

    assert [handler.gets(change("a", version)) for version in (9, 10, 2**100, 2**100 + 1, 2**100)] == [True] * 4 + [
        False
    ]


def test_what_failed_comes_again() -> None:
    """It counts as done only when the handler has returned."""
    memory = Memory()

    def fails(_: Event) -> None:
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 -- the handler's own
        memory.process(event(change("a", 7)), FIRST, fails)
    again: list[Event] = []
    memory.process(event(change("a", 7)), FIRST, again.append)

    assert [each["id"] for each in again] == ["uid-a/7"]
    assert again[0]["data"] == {"metadata": {"name": "a"}}


def test_the_memory_is_bounded() -> None:
    """The oldest is forgotten first."""
    handler = Handler(size=4)
    for number in range(5):
        handler.gets(change(f"w{number}", number))

    assert [handler.gets(change(f"w{number}", number)) for number in (4, 0)] == [False, True]


def test_it_is_short() -> None:
    """At most 80 lines, to be copied."""
    assert len((ROOT / "examples" / "consumer.py").read_text().splitlines()) <= 80
