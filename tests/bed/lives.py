"""Lives of Workflows that the real controller leads to their end without a pod, and what people do to them meanwhile.

Each is a manifest, and what comes after its creation. Suspended steps go on by themselves after a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.bed.cluster import Cluster, workflows_path
from tests.bed.waiting import wait_until

Manifest = dict[str, Any]
ENDS = frozenset({"Succeeded", "Failed", "Error"})
_PATIENCE = timedelta(seconds=60)
_PREFIX = "workflows.argoproj.io"
_WAIT = {"name": "wait", "suspend": {"duration": "1"}}
_HOLD = {"name": "hold", "suspend": {}}


def manifest(name: str, *templates: Manifest, labels: Mapping[str, str] | None = None, **spec: object) -> Manifest:
    """A Workflow as a user writes it."""
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"name": name, "labels": dict(labels or {})},
        "spec": {"entrypoint": "main", "templates": list(templates), **spec},
    }


def dag(*tasks: tuple[str, str, str]) -> Manifest:
    """A template of tasks: name, template, and what it depends on."""
    return {
        "name": "main",
        "dag": {
            "tasks": [
                {"name": name, "template": template, **({"depends": depends} if depends else {})}
                for name, template, depends in tasks
            ]
        },
    }


def wide(name: str, tasks: int) -> Manifest:
    """A DAG with so many tasks, eight at a time."""
    rows = [(f"t{number:03}", "wait", f"t{number - 8:03}" if number > 7 else "") for number in range(tasks)]
    return manifest(name, dag(*rows), _WAIT)


DAG = manifest("dag", dag(("a", "wait", ""), ("b", "wait", "a"), ("c", "wait", "a && b")), _WAIT)
STEPS = manifest(
    "steps",
    {
        "name": "main",
        "steps": [
            [{"name": "one", "template": "wait"}],
            [
                {"name": "two", "template": "wait"},
                {"name": "skipped", "template": "wait", "when": "1 == 2"},
            ],
        ],
    },
    _WAIT,
)
PARAMETERS = manifest(
    "parameters",
    {
        "name": "main",
        "dag": {
            "tasks": [
                {
                    "name": "a",
                    "template": "named",
                    "arguments": {"parameters": [{"name": "db-password", "value": "{{workflow.parameters.secret}}"}]},
                }
            ]
        },
    },
    {"name": "named", "inputs": {"parameters": [{"name": "db-password"}]}, "suspend": {"duration": "1"}},
    arguments={"parameters": [{"name": "secret", "value": "hunter2"}]},
)
SUSPEND = manifest("suspend", dag(("a", "hold", "")), _HOLD)
FAILURE = manifest("failure", dag(("a", "wait", ""), ("b", "hold", "a")), _WAIT, _HOLD)
DEADLINE = manifest("deadline", dag(("a", "hold", "")), _HOLD, activeDeadlineSeconds=1)
RETRY = manifest("retry", dag(("a", "wait", ""), ("b", "hold", "a")), _WAIT, _HOLD)
RESUBMIT = manifest("dag-x7k2p", dag(("a", "wait", "")), _WAIT, labels={f"{_PREFIX}/resubmitted-from-workflow": "dag"})
TTL_ZERO = manifest("ttl-zero", dag(("a", "wait", "")), _WAIT, ttlStrategy={"secondsAfterCompletion": 0})
INVALID = manifest("invalid", dag(("a", "nosuch", "")))
NO_TEMPLATE: Manifest = {
    "apiVersion": "argoproj.io/v1alpha1",
    "kind": "Workflow",
    "metadata": {"name": "no-template"},
    "spec": {"workflowTemplateRef": {"name": "nosuch"}},
}


def create(cluster: Cluster, namespace: str, workflow: Manifest) -> Manifest:
    """Create it, and return what the server made of it."""
    return cluster.request("POST", workflows_path(namespace), workflow)


def wait_for(cluster: Cluster, namespace: str, name: str, condition: Callable[[Manifest], bool]) -> Manifest:
    """Return the Workflow once the condition holds."""
    found: list[Manifest] = []

    def holds() -> bool:
        found[:] = [cluster.get(namespace, name)]
        return condition(found[0])

    wait_until(holds, _PATIENCE, f"{name} to be so far")
    return found[0]


def is_over(workflow: Manifest) -> bool:
    """Whether the controller is done with it."""
    return workflow.get("status", {}).get("phase") in ENDS


def is_held(workflow: Manifest) -> bool:
    """Whether it waits for somebody in the template `hold`."""
    nodes = workflow.get("status", {}).get("nodes") or {}
    return any(node.get("templateName") == "hold" and node["phase"] == "Running" for node in nodes.values())


def resume(cluster: Cluster, namespace: str, name: str) -> None:
    """What `argo resume` does: the suspended nodes have succeeded."""
    held = wait_for(cluster, namespace, name, is_held)
    nodes = {
        key: {"phase": "Succeeded", "finishedAt": _now()}
        for key, node in held["status"]["nodes"].items()
        if node.get("templateName") == "hold"
    }
    cluster.patch(namespace, name, {"status": {"nodes": nodes}})


def terminate(cluster: Cluster, namespace: str, name: str) -> None:
    """What `argo terminate` does."""
    wait_for(cluster, namespace, name, is_held)
    cluster.patch(namespace, name, {"spec": {"shutdown": "Terminate"}})


def retry(cluster: Cluster, namespace: str, name: str) -> None:
    """What `argo retry` does: the same uid runs again, without the nodes that failed; and now nothing holds it."""
    failed = wait_for(cluster, namespace, name, is_over)
    metadata, spec, status = failed["metadata"], failed["spec"], failed["status"]
    metadata["labels"].pop(f"{_PREFIX}/completed", None)
    metadata["labels"][f"{_PREFIX}/phase"] = "Running"
    spec.pop("shutdown", None)
    for member in ("message", "conditions"):
        status.pop(member, None)
    status |= {"phase": "Running", "startedAt": _now(), "finishedAt": None}
    status["nodes"] = {
        key: node | ({"phase": "Running", "finishedAt": None, "message": ""} if node["type"] == "DAG" else {})
        for key, node in status["nodes"].items()
        if node["type"] == "DAG" or node["phase"] not in ENDS - {"Succeeded"}
    }
    stored = status.get("storedWorkflowTemplateSpec", {})
    stored.pop("shutdown", None)
    for template in [*spec["templates"], *stored.get("templates", [])]:
        if template["name"] == "hold":
            template["suspend"] = {"duration": "1"}
    cluster.request("PUT", workflows_path(namespace, name), failed)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
