"""Tests of `workflow-watcher consume`, between both Pub/Subs and a command."""

from __future__ import annotations

import json
import signal
import sys
import textwrap
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from google.pubsub_v1.types import PubsubMessage

from job.change import Change, Gap, Kind, Missing, Object, Provenance, Reason, Resource
from job.errors import ExitCode
from job.message import Envelope, Message, binary
from tests.bed.pubsub import PubSub, Subscription
from tests.bed.waiting import wait_until
from tests.program import Outcome, Program, Running
from tests.wire.told import SOON, Log

ENVELOPE = Envelope("lab", Resource("workflows", "v1alpha1", "argoproj.io"), "argo")
COMMAND = """
    import fcntl, json, os, sys, time
    from pathlib import Path

    folder, fails, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    event = json.load(sys.stdin)
    assert event["id"] == os.environ["CE_ID"] and event["subject"] == os.environ["CE_SUBJECT"]
    (folder / "began").open("a").write(event["id"] + "\\n")
    time.sleep(seconds)
    with (folder / "log").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        count = (folder / "log").read_text().count("\\n") + 1
        code = 1 if fails and count % fails == 0 else 0
        log.write(f"{event['id']} {code}\\n")
    sys.exit(code)
"""


def change(name: str, version: int, kind: Kind = Kind.MODIFIED) -> Message:
    data = json.dumps({"metadata": {"name": name, "resourceVersion": str(version)}}).encode()
    return ENVELOPE.change(
        Change(kind, Object(f"uid-{name}", "argo", name, version, "Running", data=data), Provenance.OBSERVED)
    )


class End:
    """A topic, a subscription to it, and programs that work it off."""

    def __init__(self, program: Program, pubsub: PubSub, name: str, *, ordered: bool = False) -> None:
        self.pubsub = pubsub
        self.topic = pubsub.create_topic(name)
        self.subscription: Subscription = pubsub.create_subscription(self.topic, ordered=ordered)
        self.folder = program.folder
        self._ordered = ordered
        self._program = program
        self._script = self.folder / "command.py"
        self._script.write_text(textwrap.dedent(COMMAND))

    def publish(self, messages: Sequence[Message]) -> None:
        for message in messages:  # one by one: their times of publication differ
            sent = PubsubMessage(
                data=message.data,
                attributes=binary(message.attributes),
                ordering_key=message.key if self._ordered else "",
            )
            self.pubsub.publisher.publish(topic=self.topic, messages=[sent], timeout=10)

    def start(self, *options: str, fails: int = 0, seconds: float = 0) -> Running:
        command = (sys.executable, str(self._script), str(self.folder), str(fails), str(seconds))
        return self._program.start(
            f"--subscription={self.subscription.name}",
            *options,
            "--",
            *command,
            command="consume",
            environment={"PUBSUB_EMULATOR_HOST": self.pubsub.address},
        )

    def run(self, *options: str, fails: int = 0, seconds: float = 0) -> Outcome:
        with self.start(*options, fails=fails, seconds=seconds) as running:
            return running.finish(timedelta(seconds=200))

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    @property
    def began(self) -> list[str]:
        """Whose command has begun."""
        return self._lines("began")

    @property
    def processed(self) -> list[str]:
        """Whose command has succeeded, in order."""
        return [line.removesuffix(" 0") for line in self._lines("log") if line.endswith(" 0")]

    @property
    def failures(self) -> int:
        return sum(line.endswith(" 1") for line in self._lines("log"))


@pytest.fixture(params=["official_pubsub", "pstest"])
def pubsub(request: pytest.FixtureRequest) -> PubSub:
    """Both of them."""
    found: PubSub = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """It needs no cluster."""
    return Program(None, tmp_path)


@pytest.fixture
def end(program: Program, pubsub: PubSub, request: pytest.FixtureRequest) -> End:
    return End(program, pubsub, f"consume-{abs(hash(request.node.nodeid))}")


def events(objects: int, versions: int) -> list[Message]:
    """The lives of some objects, in the order in which they are stored."""
    return [
        change(f"w{thing}", 100 + version * objects + thing) for version in range(versions) for thing in range(objects)
    ]


def is_in_order(processed: Sequence[str]) -> bool:
    """Whether the versions of each object only grow."""
    last: dict[str, int] = {}
    for each in processed:
        uid, _, version = each.partition("/")
        if int(version) <= last.get(uid, 0):
            return False
        last[uid] = int(version)
    return True


@pytest.mark.parametrize("ordered", [False, True], ids=["in any order", "ordered"])
def test_a_command_that_fails_one_time_in_three(
    program: Program, pubsub: PubSub, request: pytest.FixtureRequest, *, ordered: bool
) -> None:
    """Every event is processed, none twice after success, and those of each object in their order."""
    end = End(program, pubsub, f"thirds-{abs(hash(request.node.nodeid))}", ordered=ordered)
    messages = events(objects=10, versions=6)
    end.publish(messages)
    with end.start("--window=150s", fails=3) as running:
        wait_until(lambda: len(end.processed) >= 60, timedelta(seconds=140), "all to be processed")
        running.send(signal.SIGTERM)
        outcome = running.finish()
    rest = end.run("--window=0s")

    assert sorted(end.processed) == sorted(message.id for message in messages)
    assert end.failures >= 20
    assert is_in_order(end.processed)
    assert (outcome.code, outcome.summary["processed"], outcome.summary["failed"]) == (0, 60, end.failures)
    assert (rest.code, rest.summary["processed"]) == (0, 0)


def test_until_nothing_is_left(end: End) -> None:
    """`0s` ends by itself once the subscription is empty; what was acknowledged does not come again."""
    messages = events(objects=5, versions=2)
    end.publish(messages)
    outcome = end.run("--window=0s")
    again = end.run("--window=0s")

    assert (outcome.code, sorted(end.processed)) == (0, sorted(message.id for message in messages))
    assert outcome.summary["event"] == "consume.finished"
    assert (again.code, again.summary["pulled"]) == (0, 0)


def test_until_nothing_is_left_but_what_fails(end: End) -> None:
    """It ends all the same, with 75, and what has failed comes again to the next one."""
    end.publish([change("a", 1), change("a", 2)])
    outcome = end.run("--window=0s", fails=1)
    later = end.run("--window=60s") if outcome.code == 0 else end.run("--window=0s")

    assert outcome.code == ExitCode.TEMPORARY
    assert end.failures > 0
    assert later.code == 0
    assert end.processed == ["uid-a/1", "uid-a/2"]


def test_a_lease_is_extended_while_the_command_runs(end: End) -> None:
    """Longer than the least deadline of a subscription, ten seconds: it is run once."""
    end.publish([change("a", 1)])
    outcome = end.run("--window=20s", seconds=13)

    assert (outcome.code, end.began) == (0, ["uid-a/1"])
    assert end.run("--window=0s").summary["pulled"] == 0


def test_repeats_are_acknowledged_without_a_command(end: End) -> None:
    """The same event published twice is handed over once."""
    end.publish([change("a", 1), change("a", 1), change("b", 2)])
    outcome = end.run("--window=0s")

    assert sorted(end.began) == ["uid-a/1", "uid-b/2"]
    assert (outcome.code, outcome.summary["processed"], outcome.summary["pulled"]) == (0, 2, 3)
    assert end.run("--window=0s").summary["pulled"] == 0


def test_what_is_told_again_behind_a_gap_is_no_repeat(end: End) -> None:
    """R18: it says that the object is still there."""
    gap = ENVELOPE.gap(Gap(Reason.EXPIRED, 0, 9, "", Missing.INTERMEDIATE), 1)
    end.publish([change("a", 1)])
    with end.start("--window=60s") as running:
        wait_until(lambda: end.processed == ["uid-a/1"], SOON, "the first copy")
        end.publish([gap])
        wait_until(lambda: "0-9/gap" in end.processed, SOON, "the gap")
        end.publish([change("a", 1)])
        wait_until(lambda: end.processed == ["uid-a/1", "0-9/gap", "uid-a/1"], SOON, "the second copy")
        running.send(signal.SIGTERM)
        assert running.finish().code == 0


def test_latest_only_leaves_out_what_is_old(end: End) -> None:
    """Older than a state that was processed, and everything after the deletion."""
    with end.start("--window=60s", "--latest-only") as running:
        end.publish([change("a", 5)])
        wait_until(lambda: end.processed == ["uid-a/5"], SOON, "the newer one")
        end.publish([change("a", 4), change("b", 7, Kind.DELETED)])
        wait_until(lambda: "uid-b/deleted" in end.processed, SOON, "the deletion")
        end.publish([change("b", 8), change("a", 6)])
        wait_until(lambda: "uid-a/6" in end.processed, SOON, "the newest")
        running.send(signal.SIGTERM)
        outcome = running.finish()
    rest = end.run("--window=0s")

    assert end.processed == ["uid-a/5", "uid-b/deleted", "uid-a/6"]
    assert outcome.code == 0
    assert outcome.summary["outdated"] + rest.summary["pulled"] == 2


def test_a_signal_ends_it_and_gives_everything_back(end: End) -> None:
    """A command that does not end is ended; its event and those that wait come again, none is lost."""
    messages = events(objects=8, versions=2)
    end.publish(messages)
    with end.start("--window=100s", seconds=60) as running:
        wait_until(lambda: len(end.began) >= 4, SOON, "four commands at a time")
        running.send(signal.SIGTERM)
        outcome = running.finish(timedelta(seconds=40))
    again = end.run("--window=0s")

    assert (outcome.code, outcome.summary["processed"], outcome.summary["failed"]) == (0, 0, 4)
    assert again.code == 0
    assert sorted(end.processed) == sorted(message.id for message in messages)
    assert is_in_order(end.processed)


def test_a_message_that_is_no_event_is_not_handed_over(end: End) -> None:
    """It is given back, for a dead-letter topic, and said; the others are processed."""
    sent = PubsubMessage(data=b"hunter2", attributes={"a": "b"})
    end.pubsub.publisher.publish(topic=end.topic, messages=[sent], timeout=10)
    end.publish([change("a", 1)])
    outcome = end.run("--window=0s")

    assert (outcome.code, end.processed) == (ExitCode.TEMPORARY, ["uid-a/1"])
    assert outcome.summary["unreadable"] == 1
    assert "hunter2" not in outcome.stderr


def test_a_subscription_that_does_not_exist_is_for_a_person(end: End) -> None:
    """78, and its name."""
    end.subscription = Subscription("projects/p/subscriptions/nowhere", end.pubsub)
    outcome = end.run("--window=5s")

    assert outcome.code == ExitCode.ACTION_NEEDED
    assert "projects/p/subscriptions/nowhere does not exist" in outcome.summary["message"]


def test_a_broker_that_is_away_is_waited_for(program: Program, pstest: PubSub) -> None:
    """It hangs for longer than a pull may take, and then everything is processed."""
    end = End(program, pstest, "away")
    end.publish([change("a", 1)])
    with pstest.frozen():
        running = end.start("--window=60s")
        log = Log(running)
        log.wait_for("consume.retry", timedelta(seconds=40))
    with running:
        wait_until(lambda: end.processed == ["uid-a/1"], SOON, "it to be processed")
        running.send(signal.SIGTERM)
        assert log.finish().code == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--subscription=projects/p/subscriptions/s"], "no command is given"),
        (["--subscription=projects/p/subscriptions/s", "--", "no-such-program"], "no program"),
        (["--subscription=s", "--", "true"], "is not projects/PROJECT/subscriptions/NAME"),
        (["--", "true"], "--subscription (WATCHER_SUBSCRIPTION) must be given"),
        (["--subscription=projects/p/subscriptions/s", "--window=soon", "--", "true"], "is not a duration"),
    ],
)
def test_bad_input_is_a_usage_error(program: Program, options: list[str], said: str) -> None:
    """2, before anything is pulled."""
    outcome = program.run(*options, command="consume")

    assert outcome.code == ExitCode.USAGE
    assert said in outcome.summary["message"]
