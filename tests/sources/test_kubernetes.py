"""The contract of a source, on the real API server."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import pytest

from job.ports import Source
from job.run.deadline import Deadline
from job.settings import parse_resource
from job.sources.connection import from_kubeconfig
from job.sources.kubernetes import KubernetesSource
from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.contracts.source import SourceContract, World

PATIENCE = timedelta(seconds=60)


@dataclass
class RealWorld:
    """Workflows in one namespace of the bed."""

    control_plane: ControlPlane
    cluster: Cluster
    namespace: str
    kind: str = "Workflow"

    def create(self, name: str, **labels: str) -> None:
        self.cluster.create(self.namespace, name, labels=labels)

    def change(self, name: str) -> None:
        self.cluster.patch(self.namespace, name, {"metadata": {"annotations": {"changed": "yes"}}})

    def delete(self, name: str) -> None:
        self.cluster.delete(self.namespace, name)

    def expire(self) -> None:
        self.control_plane.compact(restart=True)


class TestKubernetesSource(SourceContract):
    """With the credentials of a kubeconfig."""

    @pytest.fixture
    def world(self, control_plane: ControlPlane, cluster: Cluster, namespace: str) -> World:
        return RealWorld(control_plane, cluster, namespace)

    @pytest.fixture
    def source(self, control_plane: ControlPlane, namespace: str) -> Source:
        return source_in(control_plane, namespace)

    @pytest.fixture
    def broken(self, control_plane: ControlPlane) -> Source:
        return source_in(control_plane, "nowhere")


def source_in(control_plane: ControlPlane, namespace: str) -> KubernetesSource:
    connection = from_kubeconfig(str(control_plane.kubeconfig(namespace=namespace)), None)
    resource = parse_resource("workflows.v1alpha1.argoproj.io")
    return KubernetesSource(connection, resource, namespace, Deadline(PATIENCE))
