"""The controller of Argo Workflows as a process of this test run, for one namespace of a control plane.

    with WorkflowController(control_plane, "argo", folder):
        ...

There is no node: templates of the types dag, steps and suspend run as they would anywhere, those with pods wait.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import urllib3

from tests.bed import binaries
from tests.bed.api import ClusterError
from tests.bed.control_plane import ControlPlane
from tests.bed.process import Server, ServerCrashedError, free_port

_PORT_ATTEMPTS = 4
_OK, _CONFLICT = 200, 409
_SETTINGS = {"metadata": {"name": "workflow-controller-configmap"}}
_ENVIRONMENT = {"DEFAULT_REQUEUE_TIME": "1s"}


class WorkflowController:
    """It looks after one namespace, which exists; a context manager."""

    def __init__(
        self, control_plane: ControlPlane, namespace: str, folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """`environment` has the controller's own settings, as MAX_WORKFLOW_SIZE, from which on nodes are compressed."""
        self._control_plane = control_plane
        self._namespace = namespace
        self._log = folder / "workflow-controller.log"
        self._environment = {**_ENVIRONMENT, **(environment or {})}
        self._binary = binaries.workflow_controller()
        self._server: Server | None = None
        self._pool = urllib3.PoolManager(retries=False, timeout=5)

    def __enter__(self) -> Self:
        with self._control_plane.cluster() as cluster:
            try:
                cluster.request("POST", f"/api/v1/namespaces/{self._namespace}/configmaps", _SETTINGS)
            except ClusterError as error:
                if error.status != _CONFLICT:
                    raise
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            try:
                self._start(free_port())
            except ServerCrashedError:
                # Somebody may have taken the port meanwhile.
                if attempt == _PORT_ATTEMPTS:
                    raise
            else:
                break
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.stop()
        self._pool.clear()

    def _start(self, port: int) -> None:
        address = f"127.0.0.1:{port}"
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        self._server = Server(
            [
                *("/usr/bin/env", *variables),
                str(self._binary.path),
                *("-kubeconfig", str(self._control_plane.kubeconfig(namespace=self._namespace))),
                *("-namespace", self._namespace, "-address", address),
            ],
            self._log,
        )
        try:
            self._server.start()
            self._server.wait_until_ready(lambda: self._is_well(address))
        except BaseException:
            self._server.stop()
            raise

    def _is_well(self, address: str) -> bool:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            return self._pool.request("GET", f"http://{address}/healthz").status == _OK
        return False
