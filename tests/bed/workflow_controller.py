"""Argo's own workflow-controller as a process of this test run: what it writes is what the product is to read.

It is upstream's controller with a main of ours, see `argo/controller/main.go`. Templates of the kinds dag, steps and
suspend run for real; for pods there is `tests.bed.kubelet`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import urllib3

from tests.bed import binaries
from tests.bed.api import ClusterError
from tests.bed.control_plane import ControlPlane
from tests.bed.process import Server, ServerCrashedError, free_port

_CONFIG = "workflow-controller-configmap"
_PORT_ATTEMPTS = 4
_OK = 200
_CONFLICT = 409


class WorkflowController:
    """The controller of one namespace, which must exist, with its log in `folder`; a context manager.

    The environment is the controller's own: with MAX_WORKFLOW_SIZE=2000 it compresses the nodes of all but the smallest
    Workflows.
    """

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path, **environment: str) -> None:
        self._plane = plane
        self._namespace = namespace
        self._folder = folder
        # Served by nobody: that is for upstream's main to do.
        self._config = {"config": "metricsConfig: {enabled: false}"}
        # A Workflow that runs is looked at every 10 s by default.
        self._environment = {"DEFAULT_REQUEUE_TIME": "1s"} | environment
        self._server: Server | None = None

    def __enter__(self) -> Self:
        self._configure()
        for _ in range(_PORT_ATTEMPTS - 1):
            try:
                self._start(free_port())
            except ServerCrashedError as error:
                if "address already in use" not in str(error):
                    raise
            else:
                return self
        self._start(free_port())
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.stop()

    def _configure(self) -> None:
        collection = f"/api/v1/namespaces/{self._namespace}/configmaps"
        body = {"metadata": {"name": _CONFIG}, "data": self._config}
        with self._plane.cluster() as admin:
            try:
                admin.request("POST", collection, body)
            except ClusterError as error:
                # A controller before this one left it.
                if error.status != _CONFLICT:
                    raise
                admin.request("PUT", f"{collection}/{_CONFIG}", body)

    def _start(self, port: int) -> None:
        address = f"127.0.0.1:{port}"
        self._server = Server(
            [
                "env",
                *(f"{name}={value}" for name, value in self._environment.items()),
                str(binaries.workflow_controller().path),
                *("-kubeconfig", str(self._plane.kubeconfig())),
                *("-namespace", self._namespace),
                *("-listen", address),
            ],
            self._folder / "workflow-controller.log",
        )
        self._server.start()
        try:
            self._server.wait_until_ready(lambda: _healthy(f"http://{address}/healthz"))
        except BaseException:
            self._server.stop()
            raise


def _healthy(url: str) -> bool:
    try:
        return urllib3.request("GET", url, retries=False, timeout=5).status == _OK
    except urllib3.exceptions.HTTPError:
        return False
