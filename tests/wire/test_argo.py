"""Tests of the whole program with Workflows of Argo's real controller: every life, through every payload."""

from __future__ import annotations

import base64
import gzip
import json
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.bed import lives
from tests.bed.control_plane import ControlPlane
from tests.bed.lives import Life
from tests.bed.workflow_controller import WorkflowController
from tests.program import Program
from tests.wire.told import Message, SinkFile

BESIDE_EACH_OTHER: tuple[Life, ...] = (
    lives.dag,
    lives.steps,
    lives.secretive,
    lives.resumed,
    lives.terminated,
    lives.resubmitted,  # which begins with one that is late
    lives.deleted,
    lives.blocked,
    lives.invalid,
    lives.without_template,
)
WITH_PODS: tuple[Life, ...] = (lives.failed, lives.flaky, lives.retried)
"""One after the other: there is one kubelet."""
ENDED: dict[str, list[str | None]] = {
    "dag": ["Succeeded"],
    "steps": ["Succeeded"],
    "secretive": ["Succeeded"],
    "resumed": ["Succeeded"],
    "terminated": ["Failed"],
    "late": ["Failed"],
    "late-again": ["Failed"],
    "deleted": ["Succeeded", None],
    "blocking": ["Succeeded"],
    "blocked": ["Succeeded"],
    "invalid": ["Failed"],
    "without-template": ["Error"],
    "failed": ["Failed"],
    "flaky": ["Succeeded"],
    "retried": ["Failed", "Succeeded"],
}
"""The ends of each life, None for its deletion."""
PREFIX = "workflows.argoproj.io"
ENDS = frozenset({"Succeeded", "Failed", "Error"})
PAYLOADS = {
    "object": (),
    "summary": ("--payload=summary",),
    "transitions": ("--transitions",),
    "summaries-of-transitions": ("--payload=summary", "--transitions"),
    "redacted": ("--redact=*PASSWORD*", "--redact=secret"),
    "redacted-summary": ("--payload=summary", "--redact=*password*"),
}


class Reading:
    """A program that watches with some options, into a file."""

    def __init__(self, program: Program, folder: Path, options: tuple[str, ...]) -> None:
        folder.mkdir()
        self.sink = SinkFile(folder)
        self.program = program
        self.options = (*options, self.sink.option, f"--checkpoint=file:{folder}/checkpoint.json.gz")

    @property
    def messages(self) -> list[Message]:
        return self.sink.messages


def name_of(message: Message) -> str:
    """What is resubmitted gets a name with a random end."""
    return re.sub(r"^late-.*", "late-again", message["subject"].rpartition("/")[2])


def live(control_plane: ControlPlane, namespace: str) -> None:
    """Lead all of them to their ends: those with pods by themselves, as the bed's own tests do."""
    with ThreadPoolExecutor(len(BESIDE_EACH_OTHER)) as executor:
        for each in [executor.submit(life, control_plane, namespace) for life in BESIDE_EACH_OTHER]:
            each.result()
    for life in WITH_PODS:
        life(control_plane, namespace)


def ends(messages: list[Message]) -> dict[str, list[str | None]]:
    """The ends that transitions tell of, and deletions."""
    told: dict[str, list[str | None]] = {}
    for message in messages:
        to = message["data"]["to"]
        if to is None or to in ENDS:
            told.setdefault(name_of(message), []).append(to)
    return told


@pytest.fixture(scope="module")
def readings(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Reading]]:
    """One run for each payload, all of which have seen the same lives, from before their beginning."""
    namespace, folder = "argo-lives", tmp_path_factory.mktemp("argo-lives")
    program = Program(control_plane.kubeconfig(namespace=namespace), folder)
    found = {name: Reading(program, folder / name, options) for name, options in PAYLOADS.items()}
    with ExitStack() as open_, control_plane.cluster() as cluster:
        cluster.create_namespace(namespace)
        for reading in found.values():
            assert program.run("--window=0s", *reading.options).code == 0
        running = [open_.enter_context(program.start("--window=200s", *each.options)) for each in found.values()]
        open_.enter_context(WorkflowController(control_plane, namespace, folder))
        live(control_plane, namespace)
        for name in ("transitions", "summaries-of-transitions"):
            found[name].sink.wait_for(lambda messages: ends(messages) == ENDED, "every end to be told")
        versions = {thing["metadata"]["resourceVersion"] for thing in cluster.list(namespace)["items"]}
        for name in PAYLOADS.keys() - {"transitions", "summaries-of-transitions"}:
            found[name].sink.wait_for(
                lambda messages: versions <= {message.get("resourceversion") for message in messages},
                "every object's last version to be told",
            )
        for each in running:
            each.send(signal.SIGTERM)
        assert [each.finish().code for each in running] == [0] * len(running)
        yield found


def by_id(reading: Reading) -> dict[str, Message]:
    return {message["id"]: message for message in reading.messages}


def test_every_phase_is_told_once(readings: dict[str, Reading]) -> None:
    """Each life begins, but those that never run, and has exactly the ends that it had."""
    messages = readings["transitions"].messages

    assert ends(messages) == ENDED
    assert len({message["id"] for message in messages}) == len(messages)
    began = {name_of(message) for message in messages if message["data"]["to"] == "Running"}
    assert began == ENDED.keys() - {"invalid", "without-template"}
    waited = [(each["data"]["at"], each["id"]) for each in messages if each["data"]["to"] == "Pending"]
    assert [(at, identifier.count("/")) for at, identifier in waited] == [(None, 2)]
    deletion = next(message for message in messages if message["type"].endswith(".deleted"))
    assert (name_of(deletion), deletion["data"]["finalPhase"]) == ("deleted", "Succeeded")


def test_transitions_are_those_that_the_objects_show(readings: dict[str, Reading]) -> None:
    """P1, P3: computed once more from all versions of all objects; with the data of the version of each."""
    expected: dict[str, Message] = {}
    phases: dict[str, tuple[str, str] | None] = {}
    for message in sorted(readings["object"].messages, key=lambda message: int(message["resourceversion"])):
        status = message["data"].get("status") or {}
        phase = status.get("phase") or ""
        at = status.get("finishedAt" if phase in ENDS else "startedAt") or ""
        if message["type"].endswith(".deleted"):
            expected[message["id"]] = message["data"]
        elif phase and phases.get(message["k8suid"]) != (phase, at):
            phases[message["k8suid"]] = phase, at
            expected[f"{message['k8suid']}/{phase}/{at or message['resourceversion']}"] = message["data"]
    added = {"from", "to", "at", "finalPhase"}
    told = {
        message["id"]: {name: value for name, value in message["data"].items() if name not in added}
        for message in readings["transitions"].messages
    }

    assert told == expected


def test_both_ways_to_tell_transitions_agree(readings: dict[str, Reading]) -> None:
    """The same ids, and the same passages."""
    passages = [
        {each["id"]: (each["data"]["from"], each["data"]["to"]) for each in readings[name].messages}
        for name in ("transitions", "summaries-of-transitions")
    ]

    assert passages[0] == passages[1]


def test_a_summary_says_what_the_object_says(readings: dict[str, Reading]) -> None:
    """For every version of every object."""
    objects, summaries = by_id(readings["object"]), by_id(readings["summary"])

    assert objects.keys() == summaries.keys()
    for identifier, message in summaries.items():
        thing, told = objects[identifier]["data"], message["data"]
        status = thing.get("status") or {}
        assert {"spec", "status"}.isdisjoint(told)
        for member in ("phase", "message", "startedAt", "finishedAt", "progress"):
            assert told.get(member) == status.get(member)
        nodes = {node["id"]: node for node in told.get("nodes", [])}
        assert nodes.keys() == (status.get("nodes") or {}).keys()
        for key, node in nodes.items():
            assert node.items() <= status["nodes"][key].items()


def test_what_is_redacted_is_nowhere(readings: dict[str, Reading]) -> None:
    """The parameter's value stands in its own versions, and in none of the redacted ones."""
    texts = {name: reading.sink.path.read_text() for name, reading in readings.items()}

    assert "hunter2" in texts["object"]
    assert "hunter2" in texts["summary"]
    assert "hunter2" not in texts["redacted"]
    assert "hunter2" not in texts["redacted-summary"]
    assert by_id(readings["redacted"]).keys() == by_id(readings["object"]).keys()


def test_transitions_are_exact_over_many_short_runs(
    *, control_plane: ControlPlane, namespace: str, program: Program, sink_file: SinkFile, tmp_path: Path
) -> None:
    """Run after run while everything happens, with a restart of the API server before the last ones: each end once."""
    options = ("--window=0s", "--transitions", sink_file.option, program.checkpoint)
    assert program.run(*options).code == 0
    with WorkflowController(control_plane, namespace, tmp_path), ThreadPoolExecutor(1) as executor:
        living = executor.submit(live, control_plane, namespace)
        codes = [program.run(*options).code]
        while not living.done():
            codes.append(program.run(*options).code)
        living.result()
    with control_plane.cluster() as cluster:
        cluster.patch(namespace, "dag", {"metadata": {"labels": {f"{PREFIX}/workflow-archiving-status": "Archived"}}})
    control_plane.restart_api()
    restarted = program.run(*options)
    again = program.run(*options)

    assert set(codes) == {0}
    assert (restarted.code, restarted.summary["start"]) == (0, "expired")
    assert (again.code, again.summary["published"]) == (0, {})
    assert ends(sink_file.messages) == ENDED
    assert [message for message in sink_file.messages if message["type"].endswith(".gap")] == []
    assert len({message["id"] for message in sink_file.messages}) == len(sink_file.messages)


def test_compressed_nodes_are_unpacked(
    control_plane: ControlPlane, namespace: str, program: Program, tmp_path: Path
) -> None:
    """Real `compressedNodes`: the summary has every node, as the controller has packed them."""
    with WorkflowController(control_plane, namespace, tmp_path, **lives.COMPRESSING):
        last = lives.large(control_plane, namespace)
    nodes = json.loads(gzip.decompress(base64.b64decode(last["status"]["compressedNodes"])))
    outcome = program.run("--window=0s", "--payload=summary")

    assert "nodes" not in last["status"]
    (told,) = [message["data"] for message in outcome.messages]
    assert [node["id"] for node in told["nodes"]] == list(nodes)
    assert len(nodes) == 31
    assert all(node.items() <= nodes[node["id"]].items() for node in told["nodes"])
