"""Ends the pods of Workflows as a node would, with the exit codes that a test wants."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Self

from tests.bed.api import ClusterError, Json
from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.bed.waiting import wait_until

_MERGE = "application/merge-patch+json"
_WORKFLOW = "workflows.argoproj.io/workflow"
_NODE_ID = "workflows.argoproj.io/node-id"
_PAUSE_S = 0.05
_SOON = timedelta(seconds=60)
_CONFLICT = 409


class Kubelet:
    """Runs the pods of one namespace, one after another; a context manager.

    The first pod ends with the first of `exit_codes`, and so on; those for which none is left do not run. Each runs
    until the controller has noticed, so that all of its states are seen. Leaving the block raises what went wrong.
    """

    def __init__(self, plane: ControlPlane, namespace: str, exit_codes: Iterable[int]) -> None:
        self._plane = plane
        self._namespace = namespace
        self._exit_codes = list(exit_codes)
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self._results = f"/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflowtaskresults"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="kubelet")
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            with self._plane.cluster() as cluster:
                while self._exit_codes and not self._stopped.wait(_PAUSE_S):
                    pods = cluster.request("GET", self._pods)["items"]
                    for pod in [pod for pod in pods if pod["status"]["phase"] == "Pending"][:1]:
                        self._run(cluster, pod, self._exit_codes.pop(0))
        except Exception as error:  # noqa: BLE001 - raised in the test's thread
            self._error = error

    def _run(self, cluster: Cluster, pod: Json, code: int) -> None:
        node, workflow = pod["metadata"]["annotations"][_NODE_ID], pod["metadata"]["labels"][_WORKFLOW]

        def noticed() -> bool:
            # The controller creates a pod before it first writes the status.
            nodes = cluster.get(self._namespace, workflow).get("status", {}).get("nodes", {})
            return node in nodes and nodes[node]["phase"] == "Running"

        began = _now()
        running = {"running": {"startedAt": began}}
        self._set_status(cluster, pod, "Running", {"main": running, "wait": running})
        wait_until(noticed, _SOON, f"the controller to see that {node} runs")
        self._report(cluster, workflow, node, code)
        ended = {"startedAt": began, "finishedAt": _now()}
        self._set_status(
            cluster,
            pod,
            "Failed" if code else "Succeeded",
            {"main": {"terminated": ended | {"exitCode": code}}, "wait": {"terminated": ended | {"exitCode": 0}}},
        )

    def _report(self, cluster: Cluster, workflow: str, node: str, code: int) -> None:
        """Tell the controller what the executor, a container beside the main one, tells it at the end."""
        labels = {_WORKFLOW: workflow, "workflows.argoproj.io/report-outputs-completed": "true"}
        body = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "WorkflowTaskResult",
            "metadata": {"name": node, "labels": labels},
            "outputs": {"exitCode": str(code)},
        }
        try:
            cluster.request("POST", self._results, body)
        except ClusterError as error:
            # Left by the same node before a retry.
            if error.status != _CONFLICT:
                raise
            cluster.request("PATCH", f"{self._results}/{node}", body, content_type=_MERGE)

    def _set_status(self, cluster: Cluster, pod: Json, phase: str, states: Mapping[str, Json]) -> None:
        containers = [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": False,
                "restartCount": 0,
                "state": states[container["name"]],
            }
            for container in pod["spec"]["containers"]
        ]
        cluster.request(
            "PATCH",
            f"{self._pods}/{pod['metadata']['name']}/status",
            {"status": {"phase": phase, "containerStatuses": containers}},
            content_type=_MERGE,
        )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
