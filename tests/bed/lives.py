"""Whole lives of Workflows at the hands of the real controller, each from its creation to its end.

    with WorkflowController(plane, "argo", folder):
        final = lives.resumed(plane, "argo")

Each returns the Workflow as it was at the end. What people do to one is done as Argo's own command line does it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from tests.bed.api import ClusterError, Json
from tests.bed.cluster import Cluster, workflows_path
from tests.bed.control_plane import ControlPlane
from tests.bed.kubelet import Kubelet
from tests.bed.waiting import wait_until

Life = Callable[[ControlPlane, str], Json]
"""What becomes of one Workflow in a namespace; the functions of this module are such."""

COMPLETED = "workflows.argoproj.io/completed"
PHASE = "workflows.argoproj.io/phase"
RESUBMITTED_FROM = "workflows.argoproj.io/resubmitted-from-workflow"
COMPRESSING = {"MAX_WORKFLOW_SIZE": "5000"}
"""The controller's environment in which it compresses the nodes of `large`."""

_ENDS = frozenset({"Succeeded", "Failed", "Error"})
_PATIENCE = timedelta(seconds=90)
_NOT_FOUND = 404

_WAIT: Json = {"name": "wait", "suspend": {"duration": "1"}}
_HOLD: Json = {"name": "hold", "suspend": {}}
_POD: Json = {"name": "pod", "container": {"image": "none", "command": ["true"]}}


def dag(plane: ControlPlane, namespace: str) -> Json:
    """Three tasks, one after another, that wait for a second each."""
    tasks = [_task("a", "wait"), _task("b", "wait", "a"), _task("c", "wait", "a && b")]
    return _to_its_end(plane, namespace, "dag", [_dag(*tasks), _WAIT])


def steps(plane: ControlPlane, namespace: str) -> Json:
    """Two steps, and one beside the second that is skipped."""
    second = [{"name": "two", "template": "wait"}, {"name": "skipped", "template": "wait", "when": "1 == 2"}]
    main = {"name": "main", "steps": [[{"name": "one", "template": "wait"}], second]}
    return _to_its_end(plane, namespace, "steps", [main, _WAIT])


def resumed(plane: ControlPlane, namespace: str) -> Json:
    """A task that waits for somebody, who comes."""
    with plane.cluster() as cluster:
        _create(cluster, namespace, "resumed", [_dag(_task("a", "hold")), _HOLD])
        _until(cluster, namespace, "resumed", lambda workflow: bool(_held(workflow)))
        return _until(cluster, namespace, "resumed", lambda workflow: _ended(workflow) or _resume(cluster, workflow))


def terminated(plane: ControlPlane, namespace: str) -> Json:
    """Two tasks, the second of which is stopped by somebody."""
    with plane.cluster() as cluster:
        _create(cluster, namespace, "terminated", [_dag(_task("a", "wait"), _task("b", "hold", "a")), _WAIT, _HOLD])
        _until(cluster, namespace, "terminated", lambda workflow: bool(_held(workflow)))
        cluster.patch(namespace, "terminated", {"spec": {"shutdown": "Terminate"}})
        return _until(cluster, namespace, "terminated", _ended)


def late(plane: ControlPlane, namespace: str) -> Json:
    """A task that never ends, until the Workflow's deadline."""
    return _to_its_end(plane, namespace, "late", [_dag(_task("a", "hold")), _HOLD], activeDeadlineSeconds=2)


def invalid(plane: ControlPlane, namespace: str) -> Json:
    """A task of a template that is not defined."""
    return _to_its_end(plane, namespace, "invalid", [_dag(_task("a", "nosuch"))])


def without_template(plane: ControlPlane, namespace: str) -> Json:
    """A Workflow of a WorkflowTemplate that does not exist."""
    with plane.cluster() as cluster:
        _submit(cluster, namespace, "without-template", {"workflowTemplateRef": {"name": "nosuch"}})
        return _until(cluster, namespace, "without-template", _ended)


def deleted(plane: ControlPlane, namespace: str) -> Json:
    """One task, then gone as soon as the controller can delete it; returned as it was created."""
    with plane.cluster() as cluster:
        templates = [_dag(_task("a", "wait")), _WAIT]
        created = _create(cluster, namespace, "deleted", templates, ttlStrategy={"secondsAfterCompletion": 0})
        wait_until(lambda: _is_gone(cluster, namespace, "deleted"), _PATIENCE, "the Workflow to be deleted")
        return created


def blocked(plane: ControlPlane, namespace: str) -> Json:
    """A Workflow that waits for a mutex, which another one holds for a while."""
    mutex = {"mutexes": [{"name": "one"}]}
    with plane.cluster() as cluster:
        _create(cluster, namespace, "blocking", [_dag(_task("a", "hold")), _HOLD], synchronization=mutex)
        _until(cluster, namespace, "blocking", lambda workflow: bool(_held(workflow)))
        _create(cluster, namespace, "blocked", [_dag(_task("a", "wait")), _WAIT], synchronization=mutex)
        _until(cluster, namespace, "blocked", lambda workflow: _status(workflow).get("phase") == "Pending")
        _until(cluster, namespace, "blocking", lambda workflow: _ended(workflow) or _resume(cluster, workflow))
        return _until(cluster, namespace, "blocked", _ended)


def resubmitted(plane: ControlPlane, namespace: str) -> Json:
    """A Workflow that failed, submitted once more; returned is the second."""
    first = late(plane, namespace)
    labels = {name: value for name, value in first["metadata"]["labels"].items() if name not in {COMPLETED, PHASE}}
    name = f"{first['metadata']['name']}-{secrets.token_hex(3)[:5]}"
    with plane.cluster() as cluster:
        labels[RESUBMITTED_FROM] = first["metadata"]["name"]
        _submit(cluster, namespace, name, first["spec"], labels=labels)
        return _until(cluster, namespace, name, _ended)


def failed(plane: ControlPlane, namespace: str) -> Json:
    """A pod that succeeds, one that fails, and a task that is omitted therefore."""
    tasks = [_task("good", "pod"), _task("bad", "pod", "good"), _task("never", "pod", "bad.Succeeded")]
    with Kubelet(plane, namespace, [0, 1]):
        return _to_its_end(plane, namespace, "failed", [_dag(*tasks), _POD])


def flaky(plane: ControlPlane, namespace: str) -> Json:
    """A pod that the controller tries a second time."""
    pod = _POD | {"retryStrategy": {"limit": "2"}}
    with Kubelet(plane, namespace, [1, 0]):
        return _to_its_end(plane, namespace, "flaky", [_dag(_task("a", "pod")), pod])


def retried(plane: ControlPlane, namespace: str) -> Json:
    """A pod that fails, and with it the Workflow, which somebody runs again from there."""
    with Kubelet(plane, namespace, [0, 1, 0]), plane.cluster() as cluster:
        _create(cluster, namespace, "retried", [_dag(_task("good", "pod"), _task("bad", "pod", "good")), _POD])
        failure = _until(cluster, namespace, "retried", _completed)
        _retry(cluster, namespace, failure)
        return _until(cluster, namespace, "retried", _ended)


def secretive(plane: ControlPlane, namespace: str) -> Json:
    """A parameter that nobody should read, handed on to a task's node."""
    given = {"parameters": [{"name": "db-password", "value": "{{workflow.parameters.secret}}"}]}
    templates = [
        _dag(_task("a", "named") | {"arguments": given}),
        {"name": "named", "inputs": {"parameters": [{"name": "db-password"}]}, "suspend": {"duration": "1"}},
    ]
    arguments = {"parameters": [{"name": "secret", "value": "hunter2"}]}
    return _to_its_end(plane, namespace, "secretive", templates, arguments=arguments)


def large(plane: ControlPlane, namespace: str) -> Json:
    """Thirty tasks, which is too much for a controller with the environment COMPRESSING to keep in clear."""
    tasks = [_task(f"t{number}", "wait", f"t{number - 10}" if number >= 10 else "") for number in range(30)]
    return _to_its_end(plane, namespace, "large", [_dag(*tasks), _WAIT])


def _task(name: str, template: str, depends: str = "") -> Json:
    return {"name": name, "template": template} | ({"depends": depends} if depends else {})


def _dag(*tasks: Json) -> Json:
    return {"name": "main", "dag": {"tasks": list(tasks)}}


def _to_its_end(plane: ControlPlane, namespace: str, name: str, templates: list[Json], **spec: object) -> Json:
    with plane.cluster() as cluster:
        _create(cluster, namespace, name, templates, **spec)
        return _until(cluster, namespace, name, _ended)


def _create(cluster: Cluster, namespace: str, name: str, templates: list[Json], **spec: object) -> Json:
    return _submit(cluster, namespace, name, {"entrypoint": "main", "templates": templates} | spec)


def _submit(cluster: Cluster, namespace: str, name: str, spec: Json, labels: dict[str, str] | None = None) -> Json:
    body = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"name": name} | ({"labels": labels} if labels else {}),
        "spec": spec,
    }
    return cluster.request("POST", workflows_path(namespace), body)


def _until(cluster: Cluster, namespace: str, name: str, condition: Callable[[Json], bool]) -> Json:
    """Return the Workflow as it is when the condition holds for it."""
    seen: list[Json] = []

    def holds() -> bool:
        seen[:] = [cluster.get(namespace, name)]
        return condition(seen[0])

    try:
        wait_until(holds, _PATIENCE, f"Workflow {name} to go on")
    except TimeoutError as error:
        message = f"{error}; its status is {_status(seen[0])}"
        raise TimeoutError(message) from None
    return seen[0]


def _status(workflow: Json) -> Json:
    status: Json = workflow.get("status", {})
    return status


def _ended(workflow: Json) -> bool:
    return _status(workflow).get("phase") in _ENDS


def _completed(workflow: Json) -> bool:
    """Whether the controller is done with it: after a failure the label may come later than the phase."""
    return _ended(workflow) and workflow["metadata"]["labels"].get(COMPLETED) == "true"


def _held(workflow: Json) -> list[str]:
    """Return the ids of the nodes that wait for somebody."""
    nodes = _status(workflow).get("nodes", {})
    return [key for key, node in nodes.items() if node.get("templateName") == "hold" and node.get("phase") == "Running"]


def _resume(cluster: Cluster, workflow: Json) -> bool:
    """Let a Workflow that waits for somebody go on, as `argo resume` does; it has not ended by that.

    Asked for again, since the controller may write over it what it has just decided itself.
    """
    done = {"phase": "Succeeded", "finishedAt": _now()}
    if held := _held(workflow):
        metadata, nodes = workflow["metadata"], dict.fromkeys(held, done)
        cluster.patch(metadata["namespace"], metadata["name"], {"status": {"nodes": nodes}})
    return False


def _retry(cluster: Cluster, namespace: str, failure: Json) -> None:
    """Run a Workflow again as `argo retry` does where one pod failed that hangs directly on the root.

    https://github.com/argoproj/argo-workflows/blob/v3.7.16/workflow/util/util.go: FormulateRetryWorkflow
    """
    metadata, status = failure["metadata"], failure["status"]
    nodes: dict[str, Json] = status["nodes"]
    root = nodes[metadata["name"]]
    del metadata["labels"][COMPLETED]
    metadata["labels"][PHASE] = "Running"
    again = {"phase": "Running", "startedAt": _now(), "finishedAt": None}
    completed = {"type": "Completed", "status": "False"}
    others = [condition for condition in status["conditions"] if condition["type"] != "Completed"]
    status.pop("message", None)
    kept = {key: node for key, node in nodes.items() if node["phase"] == "Succeeded"}
    root.pop("message", None)
    status |= again | {"conditions": [*others, completed], "nodes": kept | {root["id"]: root | again}}
    pods = f"/api/v1/namespaces/{namespace}/pods"
    for pod in cluster.request("GET", pods)["items"]:
        if pod["status"]["phase"] == "Failed":
            cluster.request("DELETE", f"{pods}/{pod['metadata']['name']}")
    cluster.request("PUT", workflows_path(namespace, metadata["name"]), failure)


def _is_gone(cluster: Cluster, namespace: str, name: str) -> bool:
    try:
        cluster.get(namespace, name)
    except ClusterError as error:
        if error.status != _NOT_FOUND:
            raise
        return True
    return False


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
