"""Tests of messages: what strangers parse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given, strategies as st

from job.change import Change, Gap, Kind, Missing, Object, Provenance, Reason, Resource
from job.message import DELETION, GAP, OBJECT, SUMMARY, TRANSITION, Envelope, Message, dead_letter, structured
from job.payload import Content, Payload
from job.payload.transition import Transition

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "messages"

WORKFLOWS = Envelope("prod", Resource("workflows", "v1alpha1", "argoproj.io"), "argo")
SUMMARIES = Envelope(
    "prod", Resource("workflows", "v1alpha1", "argoproj.io"), "argo", Content(Payload.SUMMARY, redact=("*TOKEN*",))
)
PODS = Envelope("prod", Resource("pods", "v1", ""))
UID = "5c9cb00a-99a4-4af0-a434-85d81c4403d1"


def workflow(version: int, phase: str | None) -> Object:
    status = f',"status":{{"phase":"{phase}","progress":"1/2","estimatedDuration":12}}' if phase else ""
    data = (
        '{"apiVersion":"argoproj.io/v1alpha1","kind":"Workflow","metadata":{"creationTimestamp":"2026-11-23T06:06:46Z",'
        f'"generation":2,"labels":{{"team":"a"}},"name":"nightly","namespace":"argo","resourceVersion":"{version}",'
        f'"uid":"{UID}"}},"spec":{{"entrypoint":"main","ttlStrategy":{{"secondsAfterCompletion":60}}}}{status}}}'
    )
    return Object(UID, "argo", "nightly", version, phase, {"team": "a"}, data.encode())


def pod() -> Object:
    data = (
        '{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web-0","namespace":"shop",'
        '"uid":"c0e45a0b-1d0c-4f4e-93a4-b5b8a9d0f0aa","resourceVersion":"901"},"status":{"phase":"Pending"}}'
    )
    return Object("c0e45a0b-1d0c-4f4e-93a4-b5b8a9d0f0aa", "shop", "web-0", 901, "Pending", {}, data.encode())


def with_nodes(version: int) -> Object:
    node = (
        '"nightly-1":{"id":"nightly-1","name":"nightly.build","displayName":"build","type":"Pod","templateName":"build",'
        '"phase":"Succeeded","startedAt":"2026-11-23T06:06:47Z","finishedAt":"2026-11-23T06:07:08Z","inputs":'
        '{"parameters":[{"name":"token","value":"hunter2"}]},"outputs":{"exitCode":"0"},"hostNodeName":"n1"}'
    )
    whole = workflow(version, "Succeeded")
    data = whole.data.replace(b'"progress"', b'"startedAt":"2026-11-23T06:06:46Z","finishedAt":"2026-11-23T06:07:09Z",'
        b'"nodes":{%b},"progress"' % node.encode())  # fmt: skip
    return msgspec.structs.replace(whole, data=data)


def trace() -> Object:
    data = (
        '{"apiVersion":"argoproj.io/v1alpha1","kind":"Workflow",'
        f'"metadata":{{"namespace":"argo","name":"nightly","uid":"{UID}"}}}}'
    )
    return Object(UID, "argo", "nightly", 0, None, {}, data.encode())


KINDS: dict[str, Message] = {
    "added-initial": WORKFLOWS.change(Change(Kind.ADDED, workflow(1232, None), Provenance.INITIAL)),
    "modified-observed": WORKFLOWS.change(Change(Kind.MODIFIED, workflow(1234, "Running"), Provenance.OBSERVED)),
    "modified-recovered": WORKFLOWS.change(Change(Kind.MODIFIED, workflow(1236, "Running"), Provenance.RECOVERED)),
    "modified-inferred": WORKFLOWS.change(Change(Kind.MODIFIED, workflow(1238, "Succeeded"), Provenance.INFERRED)),
    "deleted-observed": WORKFLOWS.change(Change(Kind.DELETED, workflow(1241, "Succeeded"), Provenance.OBSERVED)),
    "deleted-inferred": WORKFLOWS.change(Change(Kind.DELETED, trace(), Provenance.INFERRED)),
    "gap": WORKFLOWS.gap(Gap(Reason.EXPIRED, 1234, 1320, "2026-11-23T06:07:12Z", Missing.INTERMEDIATE)),
    "gap-short-lived": WORKFLOWS.gap(
        Gap(Reason.EXPIRED, 1234, 98320, "2026-11-23T06:07:12Z", Missing.SHORT_LIVED, spacing=17)
    ),
    "gap-forgotten": WORKFLOWS.gap(Gap(Reason.FORGOTTEN, 1234, 1320, "2026-11-23T06:07:12Z", Missing.ALL)),
    "core-resource": PODS.change(Change(Kind.ADDED, pod(), Provenance.OBSERVED)),
    "rewound": WORKFLOWS.change(Change(Kind.ADDED, workflow(1234, "Running"), Provenance.INFERRED, epoch=1)),
    "added-replay": WORKFLOWS.change(Change(Kind.ADDED, workflow(1238, "Succeeded"), Provenance.REPLAY)),
    "summary": SUMMARIES.change(Change(Kind.MODIFIED, with_nodes(1238), Provenance.OBSERVED)),
    "transition": WORKFLOWS.change(
        Change(Kind.MODIFIED, workflow(1238, "Succeeded"), Provenance.OBSERVED),
        transition=Transition("Running", "Succeeded", "2026-11-23T06:07:09Z"),
    ),
    "transition-without-time": WORKFLOWS.change(
        Change(Kind.MODIFIED, workflow(1233, "Pending"), Provenance.OBSERVED), transition=Transition(None, "Pending")
    ),
    "transition-deleted-observed": WORKFLOWS.change(
        Change(Kind.DELETED, workflow(1241, "Succeeded"), Provenance.OBSERVED),
        transition=Transition("Succeeded", final="Succeeded"),
    ),
    "transition-deleted-inferred": WORKFLOWS.change(
        Change(Kind.DELETED, trace(), Provenance.INFERRED), transition=Transition("Running")
    ),
    "dead-letter": dead_letter(
        WORKFLOWS.change(Change(Kind.MODIFIED, workflow(1238, "Succeeded"), Provenance.OBSERVED)),
        "pubsub://some-project/workflow-changes",
        "projects/some-project/topics/workflow-changes refused message …/1238: the schema does not\nallow it",
    ),
}
"""One message of each kind that there is."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_is_as_it_was(kind: str) -> None:
    """Golden files hold every kind of message to the byte: a difference is a break for somebody."""
    assert structured(KINDS[kind]) + b"\n" == (GOLDEN / f"{kind}.json").read_bytes()


def test_every_golden_file_is_a_kind() -> None:
    """None is left over."""
    assert {file.stem for file in GOLDEN.iterdir()} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_is_a_cloudevent(kind: str) -> None:
    """The reference library accepts it, with every attribute and the same data."""
    message = KINDS[kind]
    event = JSONFormat().read(CloudEvent, structured(message))
    made_up = {"time"}  # the library's own, where an event has none

    assert {name: value for name, value in event.get_attributes().items() if name not in made_up} == message.attributes
    assert event.get_data() == json.loads(message.data)


@pytest.mark.parametrize("kind", KINDS)
def test_attribute_names_are_those_of_the_specification(kind: str) -> None:
    """Lower-case letters and digits, twenty at most; strings, and none of them empty."""
    for name, value in KINDS[kind].attributes.items():
        assert re.fullmatch(r"[a-z0-9]{1,20}", name)
        assert value


@pytest.mark.parametrize("kind", KINDS)
def test_the_id_is_what_the_design_says(kind: str) -> None:
    """UID and /VERSION, /PHASE/TIME or /deleted; FROM-TO/gap with /SPACING or /forgotten; ~EPOCH after a rewind."""
    expected = {
        "added-initial": f"{UID}/1232",
        "modified-observed": f"{UID}/1234",
        "modified-recovered": f"{UID}/1236",
        "modified-inferred": f"{UID}/1238",
        "deleted-observed": f"{UID}/deleted",
        "deleted-inferred": f"{UID}/deleted",
        "gap": "1234-1320/gap",
        "gap-short-lived": "1234-98320/gap/17",
        "gap-forgotten": "1234-1320/gap/forgotten",
        "core-resource": "c0e45a0b-1d0c-4f4e-93a4-b5b8a9d0f0aa/901",
        "rewound": f"{UID}/1234~1",
        "added-replay": f"{UID}/1238",
        "summary": f"{UID}/1238",
        "transition": f"{UID}/Succeeded/2026-11-23T06:07:09Z",
        "transition-without-time": f"{UID}/Pending/1233",
        "transition-deleted-observed": f"{UID}/deleted",
        "transition-deleted-inferred": f"{UID}/deleted",
        "dead-letter": f"{UID}/1238",
    }

    assert KINDS[kind].id == expected[kind]


def test_a_transition_of_another_resource_has_its_version_in_the_id() -> None:
    """Who enters a phase again may have the times of the first entry: nobody knows what they mean."""
    change = Change(Kind.MODIFIED, pod(), Provenance.OBSERVED)
    told = Envelope("prod", Resource("pods", "v1", "")).change(change, transition=Transition(None, "Pending", "2026"))

    assert told.id == f"{pod().uid}/Pending/901"


def test_p3_how_a_change_is_known_is_not_a_part_of_its_id() -> None:
    """The same version told twice, in two ways, is one change with one data."""
    added = WORKFLOWS.change(Change(Kind.ADDED, workflow(7, "Running"), Provenance.INITIAL))
    modified = WORKFLOWS.change(Change(Kind.MODIFIED, workflow(7, "Running"), Provenance.OBSERVED))

    assert (added.id, added.data, added.key) == (modified.id, modified.data, modified.key)


@pytest.mark.parametrize(
    ("resource", "source", "kind"),
    [
        (
            "workflows.v1alpha1.argoproj.io",
            "/clusters/c/apis/argoproj.io/v1alpha1/workflows",
            "io.argoproj.workflows.added",
        ),
        ("pods.v1.", "/clusters/c/api/v1/pods", "io.k8s.pods.added"),
        ("deployments.v1.apps", "/clusters/c/apis/apps/v1/deployments", "io.k8s.apps.deployments.added"),
        (
            "ingresses.v1.networking.k8s.io",
            "/clusters/c/apis/networking.k8s.io/v1/ingresses",
            "io.k8s.networking.ingresses.added",
        ),
    ],
)
def test_source_and_type_name_the_resource(resource: str, source: str, kind: str) -> None:
    """The source as the API server's path, the type with the group reversed; groups without a dot are io.k8s."""
    plural, version, group = resource.split(".", 2)
    message = Envelope("c", Resource(plural, version, group)).change(Change(Kind.ADDED, pod(), Provenance.OBSERVED))

    assert (message.attributes["source"], message.attributes["type"]) == (source, kind)


def test_a_clusters_name_stays_one_part_of_the_source() -> None:
    """Whatever a context is called: the source is a URI reference."""
    message = Envelope("arn:aws:eks:eu-1:123:cluster/prod ü", Resource("pods", "v1", "")).change(
        Change(Kind.ADDED, pod(), Provenance.OBSERVED)
    )

    assert (
        message.attributes["source"] == "/clusters/arn%3Aaws%3Aeks%3Aeu-1%3A123%3Acluster%2Fprod%20%C3%BC/api/v1/pods"
    )


def test_a_cluster_scoped_object_is_its_name() -> None:
    """The subject has no slash."""
    node = Object("u", "", "node-1", 7, None, {}, b"{}")
    message = PODS.change(Change(Kind.ADDED, node, Provenance.OBSERVED))

    assert message.attributes["subject"] == message.key == "node-1"


def test_a_gap_of_all_namespaces_has_no_subject() -> None:
    """An attribute is absent rather than empty."""
    assert "subject" not in PODS.gap(Gap(Reason.SILENT, 1, 2, "", Missing.ALL)).attributes


def test_a_phase_that_is_not_known_is_absent() -> None:
    """Null and empty are both no phase."""
    for phase in (None, ""):
        change = Change(Kind.ADDED, Object("u", "n", "a", 7, phase, {}, b"{}"), Provenance.OBSERVED)
        assert "phase" not in WORKFLOWS.change(change).attributes


def test_versions_of_one_object_share_a_key() -> None:
    """So does the object that takes its name over: a lane keeps their order."""
    other = Object("another", "argo", "nightly", 2000, None, {}, b"{}")

    assert (
        len(
            {WORKFLOWS.change(Change(Kind.ADDED, seen, Provenance.OBSERVED)).key for seen in (workflow(1, None), other)}
        )
        == 1
    )


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.text(min_size=1), json_values)
def test_structured_json_carries_data_as_it_is(subject: str, value: object) -> None:
    """One line of JSON, the data inside byte for byte."""
    data = json.dumps(value).encode()
    line = structured(Message({"id": "1", "subject": subject}, data, ""))

    assert b"\n" not in line
    assert line.endswith(b'"data":' + data + b"}")
    assert json.loads(line) == {"id": "1", "subject": subject, "data": value}


def page() -> str:
    return (ROOT / "docs" / "messages.md").read_text()


def test_the_page_about_messages_is_made_from_the_golden_files() -> None:
    """`python docs/generate.py` writes it, and the page that is committed is the one that it writes."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--print"], capture_output=True, check=True, text=True
    )

    assert done.stdout == page()


def test_every_attribute_and_schema_is_explained() -> None:
    """The page's tables have each of them."""
    described = set(re.findall(r"^\| `([a-z0-9]+)` \|", page(), re.MULTILINE))

    assert described == {name for message in KINDS.values() for name in message.attributes}
    assert all(f"`{schema}`" in page() for schema in (OBJECT, SUMMARY, TRANSITION, DELETION, GAP))


@pytest.mark.parametrize("word", [*Provenance, *Reason, *Missing])
def test_every_word_that_a_message_may_carry_is_explained(word: str) -> None:
    """Provenances, reasons, and what may be missing."""
    assert f"`{word}`" in page()
