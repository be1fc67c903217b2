"""Tests of `workflow-watcher consume` against both Pub/Sub servers: what a command gets, when, and how often."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.pubsub_v1.types import PubsubMessage

from job.consume.queue import TRIES
from job.errors import ExitCode
from job.message import DELETION, GAP, OBJECT, binary
from tests.bed.process import free_port
from tests.bed.pubsub import PubSub, Subscription
from tests.bed.waiting import wait_until
from tests.program import LONGEST, Outcome, Running

SOURCE = "/clusters/c/apis/argoproj.io/v1alpha1/workflows"
SOON = timedelta(seconds=60)
_topics = (f"consumed-{number}" for number in itertools.count(1))
RECORDER = Path(__file__).with_name("recorder.py")
"""The command: says what it was given, and ends as its arguments say."""


def attributes(name: str, version: int | str, kind: str = "modified", uid: str = "") -> dict[str, str]:
    uid = uid or f"uid-{name}"
    found = {
        "specversion": "1.0",
        "id": f"{uid}/{version}",
        "source": SOURCE,
        "type": f"io.argoproj.workflows.{kind}",
        "subject": f"argo/{name}",
        "datacontenttype": "application/json",
        "dataschema": DELETION if kind == "deleted" else OBJECT,
        "k8suid": uid,
    }
    return found if kind == "deleted" else found | {"resourceversion": str(version)}


def deletion(name: str) -> dict[str, str]:
    return attributes(name, "deleted", "deleted")


def gap(start: int, end: int) -> dict[str, str]:
    return {
        "specversion": "1.0",
        "id": f"{start}-{end}/gap",
        "source": SOURCE,
        "type": "io.argoproj.workflows.gap",
        "datacontenttype": "application/json",
        "dataschema": GAP,
    }


class Scene:
    """A subscription, and the program that consumes it with the recorder as its command."""

    def __init__(self, pubsub: PubSub, folder: Path, *, ordered: bool = False) -> None:
        self.pubsub = pubsub
        self.folder = folder
        self.ordered = ordered
        self.topic = pubsub.create_topic(next(_topics))
        self.subscription: Subscription = pubsub.create_subscription(self.topic, ordered=ordered)
        self.log = folder / "told.jsonl"
        self.prefix: Sequence[str] = ()
        """A command that runs the program."""

    def publish(self, *events: dict[str, str], data: bytes = b'{"a": 1.50}') -> None:
        for each in events:
            key = each["subject"][-1] if self.ordered else ""  # an object has one key, a key several objects
            message = PubsubMessage(data=data, attributes=binary(each), ordering_key=key)
            self.pubsub.publisher.publish(topic=self.topic, messages=[message], retry=None, timeout=10)

    def start(self, *options: str, command: Sequence[str] = (), environment: dict[str, str] | None = None) -> Running:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WATCHER_")}
        program = [*self.prefix, sys.executable, "-m", "job", "consume"]
        command = command or self.recorder("")
        return Running(
            subprocess.Popen(
                [*program, f"--subscription={self.subscription.name}", *options, "--", *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**kept, "PUBSUB_EMULATOR_HOST": self.pubsub.address, **(environment or {})},
                cwd=self.folder,
            )
        )

    def run(self, *options: str, behaviour: str = "", command: Sequence[str] = ()) -> Outcome:
        with self.start(*options, command=command or self.recorder(behaviour)) as running:
            return running.finish(LONGEST)

    def recorder(self, behaviour: str) -> list[str]:
        return [sys.executable, "-I", "-S", str(RECORDER), str(self.log), *filter(None, [behaviour])]

    @property
    def told(self) -> list[dict[str, Any]]:
        """What the command has recorded: `begun` and `ended`, in order."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    @property
    def processed(self) -> list[str]:
        """Ids of what ended well."""
        return [each["id"] for each in self.told if each["what"] == "ended" and each["code"] == 0]

    @property
    def begun(self) -> list[str]:
        """Ids of what the command was run for, as often as it was."""
        return [each["id"] for each in self.told if each["what"] == "begun"]

    def left(self) -> list[str]:
        """Ids of what is still in the subscription."""
        return [each.attributes["ce-id"] for each in self.subscription.drain()]


@pytest.fixture
def scene(any_pubsub: PubSub, tmp_path: Path) -> Scene:
    return Scene(any_pubsub, tmp_path)


def ids(*events: dict[str, str]) -> list[str]:
    return [each["id"] for each in events]


def by_object(processed: Sequence[str]) -> dict[str, list[int]]:
    found = defaultdict(list)
    for each in processed:
        uid, _, version = each.partition("/")
        found[uid].append(int(version))
    return found


def test_a_command_gets_the_event_and_its_attributes(scene: Scene) -> None:
    """Structured JSON on stdin, the data byte for byte, and `CE_*` in the environment; exit 0 acknowledges it."""
    scene.publish(attributes("a", 7))

    outcome = scene.run("--window=0s", command=["sh", "-c", 'cat; echo "$CE_ID $CE_SUBJECT $CE_RESOURCEVERSION"'])

    line, said = outcome.stdout.decode().splitlines()
    assert json.loads(line) == {**attributes("a", 7), "data": {"a": 1.5}}
    assert '"data":{"a": 1.50}' in line
    assert said == "uid-a/7 argo/a 7"
    assert (outcome.code, outcome.summary["event"], outcome.summary["processed"]) == (0, "consume.finished", 1)
    assert scene.left() == []


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
def test_a_command_that_fails_one_time_in_three_processes_everything_once(
    *, any_pubsub: PubSub, tmp_path: Path, ordered: bool
) -> None:
    """Every event succeeds, none runs again after that, and the versions of each object succeed in their order."""
    scene = Scene(any_pubsub, tmp_path, ordered=ordered)
    events = [attributes(f"{letter}{key}", version) for version in range(1, 7) for letter in "ab" for key in range(5)]
    scene.publish(*events)

    with scene.start("--window=5m", command=scene.recorder("one-in-three")) as running:
        wait_until(lambda: len(set(scene.processed)) == len(events), LONGEST, "every event to be processed")
        running.send(signal.SIGTERM)
        outcome = running.finish(SOON)

    assert outcome.code == ExitCode.DONE
    assert sorted(scene.processed) == sorted(ids(*events))
    assert all(versions == sorted(versions) for versions in by_object(scene.processed).values())
    assert outcome.summary["processed"] == len(events)
    assert outcome.summary["failed"] == len(scene.begun) - len(events) > 0
    assert scene.left() == []


def test_an_empty_subscription_ends_a_run_without_a_window(scene: Scene) -> None:
    """`0s` is until empty; what has been processed is gone, and the exit code says that all is well."""
    scene.publish(*[attributes(f"w{number}", 1) for number in range(20)])

    outcome = scene.run("--window=0s")
    again = scene.run("--window=0s")

    assert (outcome.code, outcome.summary["processed"], len(scene.processed)) == (0, 20, 20)
    assert (again.code, again.summary["pulled"], again.summary["seconds"] < SOON.total_seconds()) == (0, 0, True)


def test_what_always_fails_ends_a_run_without_a_window_too(scene: Scene) -> None:
    """It is tried a few times, everything else is processed, later versions of the object wait, and 75 says so."""
    events = [attributes("a", 1), attributes("a", 2), attributes("b", 1)]
    scene.publish(*events)

    outcome = scene.run("--window=0s", behaviour="fail=uid-a/1")

    assert (outcome.code, scene.processed) == (ExitCode.TEMPORARY, ["uid-b/1"])
    assert 1 <= scene.begun.count("uid-a/1") <= 2 * TRIES
    assert {line["exit_code"] for line in outcome.lines if line["event"] == "command.failed"} == {3}
    assert sorted(scene.left()) == ["uid-a/1", "uid-a/2"]


def test_a_failure_is_one_whatever_the_parent_ignores(scene: Scene) -> None:
    """Who starts a program may have it ignore the ends of its children; then nobody would know how they ended."""
    ignore = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    scene.prefix = [sys.executable, "-c", f"import os, signal, sys; {ignore}; os.execv(sys.argv[1], sys.argv[1:])"]
    scene.publish(attributes("a", 1))
    outcome = scene.run("--window=0s", command=["false"])

    assert (outcome.code, outcome.summary["processed"]) == (ExitCode.TEMPORARY, 0)
    assert scene.left() == ["uid-a/1"]


def test_a_lease_is_longer_than_the_broker_gives(scene: Scene) -> None:
    """A command that takes longer than the subscription's ack deadline of 10 s runs once."""
    scene.publish(attributes("a", 1))

    outcome = scene.run("--window=0s", behaviour="sleep=13")

    assert (outcome.code, outcome.summary["pulled"], scene.begun) == (0, 1, ["uid-a/1"])
    assert scene.left() == []


def test_a_signal_ends_it_when_commands_have_ended(scene: Scene) -> None:
    """SIGTERM: what runs is processed and acknowledged, what waits is given back."""
    scene.publish(*[attributes("a", version) for version in (1, 2)])
    with scene.start("--window=5m", command=scene.recorder("sleep=3")) as running:
        wait_until(lambda: scene.begun == ["uid-a/1"], SOON, "the command to begin")
        running.send(signal.SIGTERM)
        outcome = running.finish(SOON)

    assert (outcome.code, scene.processed, scene.begun) == (0, ["uid-a/1"], ["uid-a/1"])
    assert scene.left() == ["uid-a/2"]


def test_a_command_that_does_not_end_is_killed(scene: Scene) -> None:
    """With all that it has started, within the grace period of a pod; its event is given back at once."""
    scene.publish(attributes("a", 1))
    stubborn = ["sh", "-c", "trap '' TERM INT; sleep 1000 & echo $! $$; wait; wait; sleep 1000"]
    with scene.start("--window=5m", command=stubborn) as running:
        assert running.process.stdout is not None
        pids = [int(pid) for pid in running.process.stdout.readline().split()]
        running.send(signal.SIGINT)
        outcome = running.finish(SOON)

    assert (outcome.code, outcome.summary["failed"], outcome.summary["processed"]) == (0, 1, 0)
    wait_until(lambda: not any(map(alive, pids)), SOON, "the command's processes to be gone")
    assert scene.left() == ["uid-a/1"]


def test_latest_only_runs_nothing_for_what_is_outdated(pstest: PubSub, tmp_path: Path) -> None:
    """An older version after a newer one, and anything after a deletion, is acknowledged without running."""
    scene = Scene(pstest, tmp_path)
    with scene.start("--window=5m", "--latest-only", command=scene.recorder("")) as running:
        scene.publish(attributes("a", 10))
        wait_until(lambda: scene.processed == ["uid-a/10"], SOON, "the newest version")
        scene.publish(attributes("a", 9), deletion("b"), gap(1, 2))
        wait_until(lambda: "uid-b/deleted" in scene.processed, SOON, "the deletion")
        scene.publish(attributes("b", 11), attributes("a", 11))
        wait_until(lambda: len(scene.processed) == 4, SOON, "the rest")
        running.send(signal.SIGTERM)
        outcome = running.finish(SOON)

    assert set(scene.processed) == {"uid-a/10", "uid-b/deleted", "1-2/gap", "uid-a/11"}
    assert (outcome.code, outcome.summary["outdated"]) == (0, 2)
    assert scene.left() == []


def test_without_latest_only_everything_runs(pstest: PubSub, tmp_path: Path) -> None:
    """An older version may be news to somebody who keeps a history."""
    scene = Scene(pstest, tmp_path)
    with scene.start("--window=5m"):
        scene.publish(attributes("a", 10))
        wait_until(lambda: scene.processed == ["uid-a/10"], SOON, "the newest version")
        scene.publish(attributes("a", 9))
        wait_until(lambda: scene.processed == ["uid-a/10", "uid-a/9"], SOON, "the older version")


def test_a_repeat_is_acknowledged_without_running_unless_a_gap_lies_between(scene: Scene) -> None:
    """What is told again behind a gap message says that the object is still there (R18)."""
    with scene.start("--window=5m", command=scene.recorder("")) as running:
        scene.publish(attributes("a", 1))
        wait_until(lambda: len(scene.processed) == 1, SOON, "the first copy")
        scene.publish(attributes("a", 1), attributes("b", 1))
        wait_until(lambda: len(scene.processed) == 2, SOON, "another object")
        scene.publish(gap(1, 2))
        wait_until(lambda: len(scene.processed) == 3, SOON, "the gap")
        scene.publish(attributes("a", 1))
        wait_until(lambda: len(scene.processed) == 4, SOON, "the copy behind the gap")
        running.send(signal.SIGTERM)
        outcome = running.finish(SOON)

    assert scene.processed == ["uid-a/1", "uid-b/1", "1-2/gap", "uid-a/1"]
    assert outcome.summary["repeats"] == 1
    assert scene.left() == []


def test_what_is_no_event_is_told_and_given_back(scene: Scene) -> None:
    """It is never run, its content is not logged, and `0s` says that something is left."""
    message = PubsubMessage(data=b"secret", attributes={"name": "hidden"})
    scene.pubsub.publisher.publish(topic=scene.topic, messages=[message], retry=None, timeout=10)

    outcome = scene.run("--window=0s")

    assert (outcome.code, scene.begun, outcome.summary["unreadable"]) == (ExitCode.TEMPORARY, [], 1)
    assert [line["event"] for line in outcome.lines] == ["consume.unreadable", "consume.finished"]
    assert "secret" not in outcome.stderr
    assert "hidden" not in outcome.stderr
    assert [received.data for received in scene.subscription.drain()] == [b"secret"]


def test_a_missing_subscription_is_for_a_person(scene: Scene) -> None:
    """78, and the name is told."""
    scene.subscription.name += "-none"

    outcome = scene.run("--window=5m")

    assert (outcome.code, outcome.summary["severity"]) == (ExitCode.ACTION_NEEDED, "ERROR")
    assert f"{scene.subscription.name} does not exist" in outcome.summary["message"]


@pytest.mark.parametrize("window", ["0s", "10s"])
def test_a_broker_that_is_away_is_temporary(window: str, pstest: PubSub, tmp_path: Path) -> None:
    """It is asked for the whole window, with pauses, and not for ever where there is none."""
    scene = Scene(pstest, tmp_path)
    nobody = {"PUBSUB_EMULATOR_HOST": f"127.0.0.1:{free_port()}"}

    with scene.start(f"--window={window}", environment=nobody) as running:
        outcome = running.finish(SOON)

    assert (outcome.code, outcome.summary["event"]) == (ExitCode.TEMPORARY, "consume.finished")
    assert 1 < len([line for line in outcome.lines if line["event"] == "consume.retry"]) < 30


def test_the_summary_is_left_for_kubernetes(pstest: PubSub, tmp_path: Path) -> None:
    """The last line, in the file that WATCHER_TERMINATION_LOG names."""
    scene = Scene(pstest, tmp_path)
    file = tmp_path / "termination-log"

    with scene.start("--window=1s", environment={"WATCHER_TERMINATION_LOG": str(file)}) as running:
        outcome = running.finish(SOON)

    assert json.loads(file.read_text()) == outcome.summary


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "no subscription is given"),
        (["--subscription=projects/p/topics/t", "true"], "is not projects/PROJECT/subscriptions/NAME"),
        (["--subscription=s", "true"], "is not projects/PROJECT/subscriptions/NAME"),
        (["--subscription=projects/p/subscriptions/sub"], "no command is given"),
        (["--subscription=projects/p/subscriptions/sub", "--", "no-such-program"], "'no-such-program' is no program"),
        (["--subscription=projects/p/subscriptions/sub", "--window=soon", "true"], "'soon' is not a duration"),
        (["--subscription=projects/p/subscriptions/sub", "--option", "true"], "No such option"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value) or "nothing",
)
def test_what_cannot_be_meant_is_refused(options: list[str], complaint: str) -> None:
    """Before anything is pulled, with exit code 2."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WATCHER_")}
    command = [sys.executable, "-m", "job", "consume", *options]
    ended = subprocess.run(command, capture_output=True, text=True, env=kept, check=False, timeout=60)

    assert (ended.returncode, ended.stdout) == (ExitCode.USAGE, "")
    assert complaint in json.loads(ended.stderr)["message"]


def test_an_unknown_variable_is_refused(pstest: PubSub, tmp_path: Path) -> None:
    """As by `run`: misspelt, it must not turn into a default; those of other commands may be there."""
    scene = Scene(pstest, tmp_path)
    with scene.start("--window=1s", environment={"WATCHER_LATEST": "true"}) as running:
        wrong = running.finish(SOON)
    with scene.start(environment={"WATCHER_WINDOW": "1s", "WATCHER_SINK": "stdout:"}) as running:
        right = running.finish(SOON)

    assert (wrong.code, right.code) == (ExitCode.USAGE, ExitCode.DONE)


def alive(pid: int) -> bool:
    """Whether a process is there and is no zombie, which nobody may have waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
