"""The bed keeps its own promises, on which the other tests build."""

import ssl
from collections.abc import Iterator
from datetime import timedelta
from itertools import takewhile
from pathlib import Path

import pytest
import urllib3

from tests.bed.api import ClusterError, Query
from tests.bed.cluster import WORKFLOWS, Cluster, workflows_path
from tests.bed.control_plane import ControlPlane
from tests.bed.waiting import wait_until

_SOON = timedelta(seconds=60)


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Start one control plane for this module, with the CRDs of Argo Workflows."""
    with ControlPlane(tmp_path_factory.mktemp("bed")) as control_plane:
        with control_plane.cluster() as cluster:
            cluster.apply_crds()
        yield control_plane


@pytest.fixture
def cluster(control_plane: ControlPlane) -> Iterator[Cluster]:
    """Connect as the administrator."""
    with control_plane.cluster() as cluster:
        yield cluster


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """Create a namespace of the test's own."""
    name = str(request.function.__name__).replace("_", "-")
    cluster.create_namespace(name)
    return name


def version(workflow: dict[str, dict[str, str]]) -> str:
    """Return the resourceVersion of an object or a list."""
    return workflow["metadata"]["resourceVersion"]


def refusal(cluster: Cluster, query: Query, *, path: str = WORKFLOWS) -> int | None:
    """Return the HTTP status with which a list, by default of all Workflows, is refused, None when it is not."""
    try:
        cluster.request("GET", path, query=query)
    except ClusterError as error:
        return error.status
    return None


def told(cluster: Cluster, namespace: str, since: str, *, by: Cluster | None = None) -> list[str]:
    """Return the types of the events that a watch from a version on tells until now; an ERROR, too, is the end."""
    cluster.create(namespace, "last")
    with (by or cluster).watch(workflows_path(namespace), resourceVersion=since, timeoutSeconds=60) as watch:
        events = list(takewhile(lambda event: event["object"]["metadata"].get("name") != "last", watch))
    cluster.delete(namespace, "last")
    return [event["type"] for event in events]


def test_certificate_is_verified(control_plane: ControlPlane) -> None:
    """The server's certificate holds against the bed's CA and against no other."""
    with control_plane.cluster() as cluster:
        assert cluster.request("GET", "/version")["major"] == "1"
    with Cluster(control_plane.url, token="") as stranger, pytest.raises(urllib3.exceptions.SSLError) as error:
        stranger.request("GET", "/version")
    assert isinstance(error.value.args[0], ssl.SSLCertVerificationError)


def test_workflow_life(cluster: Cluster, namespace: str) -> None:
    """A Workflow is created, listed, changed, watched and deleted."""
    before = version(cluster.list())
    cluster.create(namespace, "one", phase="Running")
    cluster.patch(namespace, "one", {"status": {"phase": "Succeeded"}})
    assert [item["status"]["phase"] for item in cluster.list(namespace)["items"]] == ["Succeeded"]
    cluster.delete(namespace, "one")

    assert told(cluster, namespace, before) == ["ADDED", "MODIFIED", "DELETED"]


def test_rights_are_granted_and_taken_back(control_plane: ControlPlane, cluster: Cluster, namespace: str) -> None:
    """A user may what it is bound to, where it is bound, for as long as it is bound."""
    with control_plane.cluster("nobody") as nobody:
        with pytest.raises(ClusterError, match="403"):
            nobody.list(namespace)
        cluster.bind("nobody", namespace, ["get", "list"])
        assert nobody.list(namespace)["items"] == []
        with pytest.raises(ClusterError, match="403"):
            nobody.list()
        cluster.unbind("nobody", namespace)
        with pytest.raises(ClusterError, match="403"):
            nobody.list(namespace)


def test_pod_files(control_plane: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    """What a pod sees is enough to reach the API server as its service account."""
    environment = control_plane.pod_files(namespace, "reader", tmp_path)
    cluster.bind(f"system:serviceaccount:{namespace}:reader", namespace, ["list"])

    url = f"https://{environment['KUBERNETES_SERVICE_HOST']}:{environment['KUBERNETES_SERVICE_PORT']}"
    with Cluster(url, token=(tmp_path / "token").read_text(), ca_file=tmp_path / "ca.crt") as pod:
        assert pod.list((tmp_path / "namespace").read_text())["items"] == []


def test_kubeconfig_never_changes(control_plane: ControlPlane) -> None:
    """The path of a kubeconfig stands for its content."""
    assert control_plane.kubeconfig("watcher") == control_plane.kubeconfig("watcher")
    assert control_plane.kubeconfig("watcher") != control_plane.kubeconfig("watcher2")
    assert "certificate-authority" not in control_plane.kubeconfig(server="http://127.0.0.1:1").read_text()


@pytest.mark.parametrize("kill", [True, False])
def test_restart_expires_older_versions(
    control_plane: ControlPlane, cluster: Cluster, namespace: str, *, kill: bool
) -> None:
    """A restart of the API server keeps the objects and expires a watch from an older version."""
    name = f"one-{kill}".lower()
    older = version(cluster.create(namespace, name))
    newer = version(cluster.patch(namespace, name, {"metadata": {"labels": {"changed": "true"}}}))
    control_plane.restart_api(kill=kill)

    assert version(cluster.get(namespace, name)) == newer
    with cluster.watch(WORKFLOWS, resourceVersion=older, timeoutSeconds=60) as watch:
        (event,) = watch
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)


@pytest.mark.parametrize("restart", [True, False])
def test_compaction(control_plane: ControlPlane, cluster: Cluster, namespace: str, *, restart: bool) -> None:
    """After a compaction, lists at an older version and continue tokens are refused; only a restart refuses watches."""
    older = version(cluster.create(namespace, "one"))
    cluster.create(namespace, "two")
    rest = {"continue": cluster.list(limit=1)["metadata"]["continue"]}
    exactly = {"resourceVersion": older, "resourceVersionMatch": "Exact"}
    cluster.delete(namespace, "one")
    cluster.delete(namespace, "two")
    assert [refusal(cluster, query) for query in (exactly, rest)] == [None, None]

    control_plane.compact(restart=restart)

    assert [refusal(cluster, query) for query in (exactly, rest)] == [410, 410]
    assert told(cluster, namespace, older) == (["ERROR"] if restart else ["ADDED", "DELETED", "DELETED"])


def test_versions_pass(control_plane: ControlPlane, cluster: Cluster, namespace: str) -> None:
    """So many versions go by, and the objects stay as they are."""
    before = version(cluster.create(namespace, "one"))

    control_plane.pass_versions(600)

    assert version(cluster.get(namespace, "one")) == before
    assert int(cluster.list(namespace)["metadata"]["resourceVersion"]) >= int(before) + 600


def test_api_server_compacts(tmp_path: Path) -> None:
    """An API server with an interval of seconds soon refuses every list at an older version, and none at a new one."""
    # The second flag spares the wait for the API server's cache, which answers for up to 15 s after a compaction.
    flags = ["--etcd-compaction-interval=3s", "--feature-gates=ListFromCacheSnapshot=false"]
    with ControlPlane(tmp_path / "control-plane", api_flags=flags) as control_plane, control_plane.cluster() as cluster:
        cluster.apply_crds()
        cluster.create_namespace("argo")
        cluster.create("argo", "one")
        tried: list[str] = []

        def refusals(exactly: str) -> list[int | None]:
            query = {"resourceVersion": exactly, "resourceVersionMatch": "Exact"}
            by_name = query | {"fieldSelector": "metadata.name=one"}
            argo = workflows_path("argo")
            return [refusal(cluster, query), refusal(cluster, query, path=argo), refusal(cluster, by_name, path=argo)]

        def answers() -> bool:
            tried.append(version(cluster.list()))
            return refusals(tried[-1]) == [None, None, None]

        wait_until(answers, _SOON, "a new version to be answered")  # that is not compacted between two requests
        older = tried[-1]
        wait_until(lambda: refusals(older) == [410, 410, 410], _SOON, "the older version to be compacted")
        wait_until(answers, _SOON, "a new version to be answered")


def test_another_api(control_plane: ControlPlane, cluster: Cluster, namespace: str) -> None:
    """A second API server shows what is written through the first, and the other way round, until its block ends."""
    with control_plane.another_api() as url, control_plane.cluster(server=url) as other:
        before = version(other.list())
        cluster.create(namespace, "one")
        other.delete(namespace, "one")
        for reader in (cluster, other):
            assert reader.list(namespace)["items"] == []
            assert told(cluster, namespace, before, by=reader) == ["ADDED", "DELETED"]
        assert other.ready()
    assert not other.ready()
    assert cluster.ready()


def test_another_api_has_its_own_history(control_plane: ControlPlane, cluster: Cluster, namespace: str) -> None:
    """A version that a restart of the first API server expires for a watch is accepted by the second."""
    with control_plane.another_api() as url, control_plane.cluster(server=url) as other:
        older = version(cluster.create(namespace, "one"))
        cluster.delete(namespace, "one")
        control_plane.restart_api()

        with cluster.watch(workflows_path(namespace), resourceVersion=older, timeoutSeconds=60) as watch:
            (event,) = watch
        assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
        assert told(cluster, namespace, older, by=other) == ["DELETED"]


def test_restore_rewinds(control_plane: ControlPlane, cluster: Cluster, namespace: str) -> None:
    """A restored snapshot takes back objects and versions."""
    before = version(cluster.create(namespace, "early"))
    snapshot = control_plane.snapshot()
    cluster.create(namespace, "late")
    # More than the handful of writes of its own with which the API server begins.
    for number in range(20):
        late = version(cluster.patch(namespace, "late", {"metadata": {"labels": {"number": str(number)}}}))
    cluster.delete(namespace, "early")

    control_plane.restore(snapshot)

    assert [version(item) for item in cluster.list(namespace)["items"]] == [before]
    assert int(version(cluster.list())) < int(late)


def test_frozen_server_comes_back(control_plane: ControlPlane, cluster: Cluster) -> None:
    """A frozen API server says nothing, and answers once it is thawed."""
    with (
        control_plane.frozen_api(),
        urllib3.PoolManager(retries=False, timeout=0.5) as pool,
        pytest.raises(urllib3.exceptions.TimeoutError),
    ):
        pool.request("GET", f"{control_plane.url}/readyz")
    wait_until(cluster.ready, _SOON, "the thawed server")


def test_crd_comes_back_empty(cluster: Cluster, namespace: str) -> None:
    """A re-created CRD has another uid and no objects."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/workflows.argoproj.io"
    uid = cluster.request("GET", path)["metadata"]["uid"]
    cluster.create(namespace, "one")

    cluster.recreate_crd()

    assert cluster.request("GET", path)["metadata"]["uid"] != uid
    assert cluster.list()["items"] == []
