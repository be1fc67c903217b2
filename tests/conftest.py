"""A real control plane for the whole session, and a namespace and a program of its own for each test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.fakes.api_proxy import ApiProxy
from tests.program import Program

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd and kube-apiserver with the Argo CRDs. A test may restart them, and waits until they are back."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane")) as plane:
        with plane.cluster() as cluster:
            cluster.apply_crds()
        yield plane


@pytest.fixture
def own_control_plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """One for a test that rewinds the cluster or replaces its definitions."""
    with ControlPlane(tmp_path / "control-plane") as plane:
        with plane.cluster() as cluster:
            cluster.apply_crds()
            cluster.create_namespace("argo")
        yield plane


@pytest.fixture
def cluster(control_plane: ControlPlane) -> Iterator[Cluster]:
    """The administrator's connection."""
    with control_plane.cluster() as connection:
        yield connection


@pytest.fixture
def namespace(cluster: Cluster) -> str:
    """A namespace that no other test uses."""
    name = f"argo-{next(_numbers)}"
    cluster.create_namespace(name)
    return name


@pytest.fixture
def program(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Program:
    """The program with a kubeconfig whose current context is the test's namespace."""
    return Program(control_plane.kubeconfig(namespace=namespace), tmp_path)


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Iterator[ApiProxy]:
    """What a test puts between the program and the API server, to make it answer otherwise."""
    with ApiProxy(control_plane.url, control_plane.ca_file) as between:
        yield between


@pytest.fixture
def proxied(control_plane: ControlPlane, namespace: str, tmp_path: Path, proxy: ApiProxy) -> Program:
    """The program with a kubeconfig that leads through the proxy."""
    return Program(control_plane.kubeconfig(namespace=namespace, server=proxy.url), tmp_path)
