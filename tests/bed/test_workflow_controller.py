"""The real controller gives Workflows the lives that the product is made for."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
from pathlib import Path

import pytest

from tests.bed import lives
from tests.bed.api import Json
from tests.bed.control_plane import ControlPlane
from tests.bed.lives import Life
from tests.bed.recorder import recorded
from tests.bed.workflow_controller import WorkflowController

PHASES: dict[Life, list[str]] = {
    lives.dag: ["", "Running", "Succeeded"],
    lives.steps: ["", "Running", "Succeeded"],
    lives.resumed: ["", "Running", "Succeeded"],
    lives.terminated: ["", "Running", "Failed"],
    lives.late: ["", "Running", "Failed"],
    lives.invalid: ["", "Failed"],
    lives.without_template: ["", "Error"],
    lives.deleted: ["", "Running", "Succeeded"],
    lives.blocked: ["", "Pending", "Running", "Succeeded"],
    lives.resubmitted: ["", "Running", "Failed"],
    lives.failed: ["", "Running", "Failed"],
    lives.flaky: ["", "Running", "Succeeded"],
    lives.retried: ["", "Running", "Failed", "Running", "Succeeded"],
}


@pytest.mark.usefixtures("workflow_controller")
@pytest.mark.parametrize("life", PHASES)
def test_phases(control_plane: ControlPlane, namespace: str, life: Life) -> None:
    """A watch tells every phase of a life, each in its turn."""
    lines, final = recorded(control_plane, namespace, life)

    assert phases_of(lines, final) == PHASES[life]


@pytest.mark.usefixtures("workflow_controller")
def test_a_skipped_step(control_plane: ControlPlane, namespace: str) -> None:
    """It is a node like the others, and does not keep the Workflow from succeeding."""
    final = lives.steps(control_plane, namespace)

    assert nodes(final)["skipped"]["phase"] == "Skipped"
    assert nodes(final)["two"]["phase"] == "Succeeded"


@pytest.mark.usefixtures("workflow_controller")
def test_a_deletion_is_the_last_event(control_plane: ControlPlane, namespace: str) -> None:
    """It carries the Workflow in its last phase."""
    lines, _ = recorded(control_plane, namespace, lives.deleted)

    assert lines[-1]["e"]["type"] == "DELETED"
    assert lines[-1]["e"]["object"]["status"] == lines[-2]["e"]["object"]["status"]


@pytest.mark.usefixtures("workflow_controller")
def test_a_failing_pod(control_plane: ControlPlane, namespace: str) -> None:
    """Its exit code is in its node, and what depends on it is omitted."""
    final = lives.failed(control_plane, namespace)

    assert nodes(final)["bad"]["outputs"]["exitCode"] == "1"
    assert {name: node["phase"] for name, node in nodes(final).items()} == {
        "failed": "Failed",
        "good": "Succeeded",
        "bad": "Failed",
        "never": "Omitted",
    }


@pytest.mark.usefixtures("workflow_controller")
def test_a_second_attempt(control_plane: ControlPlane, namespace: str) -> None:
    """Each attempt is a node below one of the type Retry."""
    final = nodes(lives.flaky(control_plane, namespace))

    assert final["a"]["type"] == "Retry"
    assert (final["a(0)"]["phase"], final["a(1)"]["phase"]) == ("Failed", "Succeeded")


@pytest.mark.usefixtures("workflow_controller")
def test_a_mutex(control_plane: ControlPlane, namespace: str) -> None:
    """Who waits for it says so."""
    lines, final = recorded(control_plane, namespace, lives.blocked)

    pending = [status for status in statuses(lines, final) if status.get("phase") == "Pending"]
    assert "Waiting for" in pending[0]["message"]


@pytest.mark.usefixtures("workflow_controller")
def test_resubmitted(control_plane: ControlPlane, namespace: str) -> None:
    """It is another Workflow, which names the first."""
    lines, final = recorded(control_plane, namespace, lives.resubmitted)

    assert final["metadata"]["labels"][lives.RESUBMITTED_FROM] == "late"
    assert len({line["e"]["object"]["metadata"]["uid"] for line in lines}) == 2


def test_compressed(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> None:
    """What is too large for the controller has its nodes in compressedNodes, and nowhere else."""
    with WorkflowController(control_plane, namespace, tmp_path, **lives.COMPRESSING):
        lines, final = recorded(control_plane, namespace, lives.large)

    assert phases_of(lines, final) == ["", "Running", "Succeeded"]
    assert "nodes" not in final["status"]
    decoded = json.loads(gzip.decompress(base64.b64decode(final["status"]["compressedNodes"])))
    assert len(decoded) == 31


def phases_of(lines: list[Json], final: Json) -> list[str]:
    """Return the phases of one Workflow as they follow each other."""
    return [phase for phase, _ in itertools.groupby(status.get("phase", "") for status in statuses(lines, final))]


def statuses(lines: list[Json], final: Json) -> list[Json]:
    """Return every status of one Workflow."""
    objects = [line["e"]["object"] for line in lines]
    uid = final["metadata"]["uid"]
    return [found.get("status", {}) for found in objects if found["metadata"]["uid"] == uid]


def nodes(workflow: Json) -> dict[str, Json]:
    """Return the nodes by the names that people gave them."""
    return {node["displayName"]: node for node in workflow["status"]["nodes"].values()}
