"""Tests of an object in short."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from job.payload.summary import summary
from tests.bed.workflows import workflow
from tests.payload.test_nodes import COMPRESSORS, anything

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden" / "summaries"
IDENTITY = (
    "namespace",
    "name",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "labels",
    "ownerReferences",
)
PROGRESS = ("phase", "message", "startedAt", "finishedAt", "estimatedDuration", "progress")
OF_A_NODE = (
    "id",
    "name",
    "displayName",
    "type",
    "phase",
    "message",
    "startedAt",
    "finishedAt",
    "inputs",
    "outputs",
    "children",
)
ARTIFACTS = [
    {"name": "a", "path": "/tmp/a", kind: settings}
    for kind, settings in {
        "s3": {"key": "k", "secretKeySecret": {"name": "s", "key": "k"}},
        "gcs": {"bucket": "b", "key": "k"},
        "azure": {"container": "c", "blob": "b"},
        "oss": {"bucket": "b", "key": "k"},
        "hdfs": {"path": "/p"},
        "git": {"repo": "https://example.com/r.git", "depth": 1},
        "http": {"url": "https://example.com", "headers": [{"name": "h", "value": "v"}]},
        "artifactory": {"url": "https://example.com"},
        "raw": {"data": "text"},
        "plugin": {"name": "p", "configuration": "c"},
        "ofTomorrow": {"anything": [1.50, None]},
    }.items()
]
TEMPLATES = [
    "container",
    "containerSet",
    "script",
    "resource",
    "dag",
    "steps",
    "suspend",
    "data",
    "http",
    "plugin",
    "ofTomorrow",
]
TYPES = [
    "Pod",
    "Container",
    "Steps",
    "StepGroup",
    "DAG",
    "TaskGroup",
    "Retry",
    "Skipped",
    "Suspend",
    "HTTP",
    "Plugin",
    "OfTomorrow",
]
PHASES = ["", "Pending", "Running", "Succeeded", "Skipped", "Failed", "Error", "Omitted", "OfTomorrow"]


def written(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def recorded() -> Iterator[Any]:
    for file in sorted((TESTS / "recordings").glob("*.jsonl")):
        for number, line in enumerate(file.read_text().splitlines()):
            thing = json.loads(line)["e"]["object"]
            if "spec" in thing:  # a bookmark and an error have none
                yield pytest.param(thing, id=f"{file.stem}-{number}")


def last_of(recording: str) -> dict[str, Any]:
    """The last state of a recorded Workflow."""
    line = (TESTS / "recordings" / f"{recording}.jsonl").read_text().splitlines()[-1]
    thing: dict[str, Any] = json.loads(line)["e"]["object"]
    return thing


def every_kind() -> dict[str, Any]:
    """A Workflow with a node of each type, template and phase, and with artifacts of each kind."""
    nodes = {}
    for number in range(max(len(TYPES), len(TEMPLATES), len(PHASES))):
        kind = TYPES[number % len(TYPES)]
        name = f"wf-{2654435761 * (number + 1) % 2**32}"
        nodes[name] = {
            "id": name,
            "name": f"wf.{kind}(0:a,b)[{number}]",
            "displayName": kind,
            "type": kind,
            "templateName": TEMPLATES[number % len(TEMPLATES)],
            "templateRef": {"name": "t", "template": "t", "clusterScope": True},
            "phase": PHASES[number % len(PHASES)],
            "boundaryID": "wf",
            "message": 'a "quoted" line\n<&>é😀\u2028',
            "startedAt": "2026-01-01T00:00:00Z",
            "finishedAt": None,
            "progress": "0/1",
            "hostNodeName": "node-1",
            "inputs": {"parameters": [{"name": "p", "value": "1"}], "artifacts": ARTIFACTS},
            "outputs": {"parameters": [], "artifacts": ARTIFACTS, "result": "{}", "exitCode": "0"},
            "children": ["wf-1", "wf-2"],
            "outboundNodes": ["wf-2"],
            "nodeFlag": {"hooked": True},
        }
    templates = [{"name": template, template: {}} for template in TEMPLATES]
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {
            "namespace": "argo",
            "name": "wf",
            "uid": "u",
            "resourceVersion": str(2**127),
            "generation": 9,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "deletionTimestamp": "2026-01-02T00:00:00Z",
            "labels": {"a/b": "c"},
            "annotations": {"secret": "annotated"},
            "finalizers": ["workflows.argoproj.io/artifact-gc"],
            "ownerReferences": [{"kind": "CronWorkflow", "name": "c", "uid": "o"}],
        },
        "spec": {"templates": templates, "arguments": {"parameters": [{"name": "secret", "value": "specified"}]}},
        "status": {
            "phase": "Running",
            "startedAt": "2026-01-01T00:00:00Z",
            "finishedAt": None,
            "estimatedDuration": 12,
            "progress": "1/12",
            "message": "m",
            "nodes": nodes,
            "storedTemplates": {"t": {"secret": "stored"}},
            "storedWorkflowTemplateSpec": {"secret": "stored"},
            "conditions": [{"type": "PodRunning", "status": "False"}],
            "outputs": {"parameters": [{"name": "o", "value": "of the whole"}]},
        },
    }


def picked(members: tuple[str, ...], holder: dict[str, Any]) -> dict[str, Any]:
    return {name: holder[name] for name in members if name in holder}


def expected(thing: dict[str, Any]) -> dict[str, Any]:
    """A Workflow's summary, said once more."""
    status = thing.get("status", {})
    short = picked(("apiVersion", "kind"), thing)
    short |= {"metadata": picked(IDENTITY, thing["metadata"]), **picked(PROGRESS, status)}
    if "nodes" in status:
        short["nodes"] = [picked(OF_A_NODE, node) for node in status["nodes"].values()]
    elif "compressedNodes" in status:
        nodes = json.loads(gzip.decompress(base64.b64decode(status["compressedNodes"])))
        short["nodes"] = [picked(OF_A_NODE, node) for node in nodes.values()]
    elif "offloadNodeStatusVersion" in status:
        short["nodesOmitted"] = "offloaded"
    return short


@pytest.mark.parametrize("thing", [*recorded(), pytest.param(every_kind(), id="every kind")])
def test_a_workflow_is_its_identity_its_progress_and_its_nodes(thing: dict[str, Any]) -> None:
    """Each state of real Workflows; and every type, template, phase and artifact that there is."""
    assert summary(written(thing), workflow=True) == written(expected(thing))


GOLDEN_OBJECTS: dict[str, tuple[dict[str, Any], bool]] = {
    **{name: (last_of(name), True) for name in ("archived", "fail_terminate", "steps", "ttl_delete")},
    "every-kind": (every_kind(), True),
    "other": (
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"annotations": {"a": "b"}, "labels": {"a": "b"}, "name": "p", "namespace": "d", "uid": "u"},
            "spec": {"containers": []},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "phase": "Running",
                "qosClass": "Burstable",
            },
        },
        False,
    ),
}


@pytest.mark.parametrize("name", GOLDEN_OBJECTS)
def test_golden_summaries_are_what_strangers_parse(name: str) -> None:
    """Byte for byte."""
    thing, is_workflow = GOLDEN_OBJECTS[name]

    assert summary(written(thing), workflow=is_workflow) == (GOLDEN / f"{name}.json").read_bytes().rstrip(b"\n")


def test_every_golden_summary_is_made() -> None:
    """None is left from another time."""
    assert sorted(file.stem for file in GOLDEN.iterdir()) == sorted(GOLDEN_OBJECTS)


@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
def test_compressed_nodes_make_the_same_summary(compress: Callable[[bytes], bytes]) -> None:
    """The form may change from one update to the next, what is said of the nodes does not."""
    plain = every_kind()
    small = every_kind()
    nodes = small["status"].pop("nodes")
    small["status"]["compressedNodes"] = base64.b64encode(compress(written(nodes))).decode()

    assert summary(written(small), workflow=True) == summary(written(plain), workflow=True)


@pytest.mark.parametrize("secret", ["annotated", "specified", "stored", "finalizers", "of the whole"])
def test_what_a_workflow_was_made_from_stays_out(secret: str) -> None:
    """Spec, stored templates and annotations, where most secrets are."""
    whole = written(every_kind())

    assert secret.encode() in whole
    assert secret.encode() not in summary(whole, workflow=True)


def test_a_fresh_workflow_has_neither_phase_nor_nodes() -> None:
    """Nor is anything omitted."""
    short = json.loads(summary(written(workflow("wf", phase="")), workflow=True))

    assert sorted(short) == ["apiVersion", "kind", "metadata"]


def test_every_value_stays_as_it_is_written() -> None:
    """Numbers, escapes and blanks are not printed anew."""
    data = (
        b'{"kind":"Work\\u0066low","metadata":{"labels":{"a": "\\u003c"},"uid":"u","generation":1.0},"status":{'
        b'"estimatedDuration":1E5,"message":-0,"phase":123456789012345678901234567890,'
        b'"nodes":{"a":{"outputs":{"x":[0.10, 1e400]}}}}}'
    )

    assert summary(data, workflow=True) == (
        b'{"kind":"Work\\u0066low","metadata":{"uid":"u","generation":1.0,"labels":{"a": "\\u003c"}},'
        b'"phase":123456789012345678901234567890,"message":-0,"estimatedDuration":1E5,'
        b'"nodes":[{"outputs":{"x":[0.10, 1e400]}}]}'
    )


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ('"x"', ""),
        ("null", ""),
        ("[1]", ""),
        ('{"message":5,"phase":null}', ',"phase":null,"message":5'),
        ('{"phase":"Running","nodes":[]}', ',"phase":"Running","nodesOmitted":"unreadable"'),
        ('{"phase":"Running","nodes":{}}', ',"phase":"Running","nodes":[]'),
        ('{"phase":"Running","nodes":{"a":{"outputs":5}}}', ',"phase":"Running","nodes":[{"outputs":5}]'),
        ('{"offloadNodeStatusVersion":"fnv:1"}', ',"nodesOmitted":"offloaded"'),
    ],
)
def test_members_of_another_type_pass_or_are_left_out(status: str, said: str) -> None:
    """A Workflow of which no controller has heard."""
    data = f'{{"metadata":{{"uid":"u"}},"status":{status}}}'

    assert summary(data.encode(), workflow=True).decode() == f'{{"metadata":{{"uid":"u"}}{said}}}'


@pytest.mark.parametrize("status", ['{"conditions":[{"type":"Ready"}],"n":1.50}', '"x"', "null", "[]", "5"])
def test_another_resource_has_its_status_whole(status: str) -> None:
    """With its conditions in it; its spec and its annotations stay out."""
    data = '{"apiVersion":"v1","data":{},"kind":"Pod","metadata":{"annotations":{},"uid":"u"},"spec":{},"status":%s}'
    short = '{"apiVersion":"v1","kind":"Pod","metadata":{"uid":"u"},"status":%s}'

    assert summary((data % status).encode(), workflow=False) == (short % status).encode()


@given(
    thing=st.dictionaries(
        st.sampled_from(["apiVersion", "kind", "metadata", "spec", "status"]),
        anything | st.dictionaries(st.sampled_from([*IDENTITY, *PROGRESS, "nodes", "compressedNodes"]), anything),
    ),
    is_workflow=st.booleans(),
)
def test_a_summary_of_anything_is_json(thing: dict[str, Any], is_workflow: bool) -> None:
    """Without a member that a summary has not, and the same again."""
    data = json.dumps(thing).encode()

    short = summary(data, workflow=is_workflow)

    own = ("status",) if not is_workflow else (*PROGRESS, "nodes", "nodesOmitted")
    assert set(json.loads(short)) <= {"apiVersion", "kind", "metadata", *own}
    assert set(json.loads(short).get("metadata", ())) <= set(IDENTITY)
    assert summary(data, workflow=is_workflow) == short


DEEP = """
import sys
from job.payload.summary import summary

sys.setrecursionlimit(15_000)
deep = b"[" * 9_990 + b"]" * 9_990
for data in (
    b'{"metadata":{"uid":"u"},"spec":%b,"status":{"phase":"Running"}}',
    b'{"metadata":{"uid":"u","labels":%b},"status":{"phase":"Running"}}',
    b'{"metadata":{"uid":"u"},"status":{"nodes":{"a":{"inputs":%b}}}}',
):
    for workflow in (True, False):
        print(len(summary(data % deep, workflow=workflow)))
"""


def test_an_object_as_deep_as_the_api_server_takes_it_has_a_summary() -> None:
    """Ten thousand levels, in a process that allows for them as the program does."""
    done = subprocess.run([sys.executable, "-c", DEEP], capture_output=True, text=True, check=True)

    deep = 2 * 9_990
    assert [int(length) - deep * (int(length) > deep) for length in done.stdout.split()] == [
        len('{"metadata":{"uid":"u"},"phase":"Running"}'),
        len('{"metadata":{"uid":"u"},"status":{"phase":"Running"}}'),
        len('{"metadata":{"uid":"u","labels":},"phase":"Running"}'),
        len('{"metadata":{"uid":"u","labels":},"status":{"phase":"Running"}}'),
        len('{"metadata":{"uid":"u"},"nodes":[{"inputs":}]}'),
        len('{"metadata":{"uid":"u"},"status":{"nodes":{"a":{"inputs":}}}}'),
    ]
