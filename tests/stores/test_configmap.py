"""Tests of a checkpoint in a ConfigMap, in a real cluster."""

from __future__ import annotations

import itertools
import re
import threading
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from job.access import Access
from job.errors import ActionNeeded, Forbidden, Unauthorized, Unavailable, WatcherError
from job.ports import Conflict, Store
from job.settings import Address
from job.sources.connection import from_kubeconfig, from_pod
from job.stores.configmap import KEY, MOST_BYTES, ConfigMapStore
from tests.bed.api import ClusterError
from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.bed.waiting import wait_until
from tests.contracts.store import MANY, TIMEOUT, StoreContract, loaded
from tests.fakes.access import nobody
from tests.fakes.api_faults import Answer, Fault, Matcher, Reset, Stall, refusal
from tests.fakes.api_proxy import ApiProxy
from tests.wire.told import SOON

PAGE = Path(__file__).parents[2] / "docs" / "stores.md"
NAME = "workflow-watcher"
SHORT = 2.0
RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/{}"
Connect = Callable[[], Store]
KEEPER = "watcher2"
"""A user without rights until a test grants some, in a namespace of its own."""


def path(namespace: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps/{name}".rstrip("/")


def opened(kubeconfig: Path, namespace: str, name: str = NAME) -> ConfigMapStore:
    access = Access(nobody().google, from_kubeconfig(str(kubeconfig), None).configuration)
    store = ConfigMapStore.at(Address("configmap", f"//{namespace}/{name}"), access)
    store.open()
    return store


def role_of_the_docs() -> dict[str, Any]:
    """The Role that docs/stores.md gives."""
    (role,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    found: dict[str, Any] = yaml.safe_load(role)
    return found


@pytest.fixture
def user(cluster: Cluster, namespace: str) -> str:
    """Somebody who has that Role, and no other."""
    user, role = KEEPER, role_of_the_docs()
    api = "rbac.authorization.k8s.io"
    name = role["metadata"]["name"]
    cluster.request("POST", RBAC.format(namespace, "roles"), role)
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": api, "kind": "Role", "name": name},
        "subjects": [{"apiGroup": api, "kind": "User", "name": user}],
    }
    cluster.request("POST", RBAC.format(namespace, "rolebindings"), binding)
    review = {"user": user, "resourceAttributes": {"namespace": namespace, "verb": "patch", "resource": "configmaps"}}
    review["resourceAttributes"] |= {"name": NAME}  # type: ignore[operator]
    wait_until(
        lambda: bool(
            cluster.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", {"spec": review})["status"][
                "allowed"
            ]
        ),
        SOON,
        f"{user} to have the Role",
    )
    return user


@pytest.fixture
def config_map(cluster: Cluster, namespace: str) -> str:
    cluster.request("POST", path(namespace), {"metadata": {"name": NAME, "labels": {"a": "b"}}})
    return path(namespace, NAME)


@pytest.fixture
def connect(control_plane: ControlPlane, namespace: str, user: str, config_map: str) -> Connect:
    kubeconfig = control_plane.kubeconfig(user, namespace=namespace)
    return lambda: opened(kubeconfig, namespace)


@pytest.fixture
def store(connect: Connect) -> Store:
    return connect()


@pytest.fixture
def proxied(control_plane: ControlPlane, namespace: str, proxy: ApiProxy, config_map: str) -> ConfigMapStore:
    return opened(control_plane.kubeconfig(namespace=namespace, server=proxy.url), namespace)


class TestConfigMapStore(StoreContract):
    """With the rights of the docs."""

    @pytest.fixture
    def connect(self, connect: Connect) -> Connect:
        return connect

    @pytest.fixture
    def broken(self, control_plane: ControlPlane, namespace: str) -> Store:
        return opened(control_plane.kubeconfig(namespace=namespace), namespace, "nothing")


def test_a_pod_uses_its_service_account(
    control_plane: ControlPlane, cluster: Cluster, namespace: str, config_map: str, tmp_path: Path
) -> None:
    """The files that a kubelet mounts are the credentials."""
    environment = control_plane.pod_files(namespace, "keeper", tmp_path)
    account = f"system:serviceaccount:{namespace}:keeper"
    cluster.bind(account, namespace, ["get", "patch"], resources=["configmaps"], api_groups=[""])
    access = Access(nobody().google, from_pod(environment, tmp_path).configuration)
    store = ConfigMapStore.at(Address("configmap", f"//{namespace}/{NAME}"), access)
    store.open()
    store.save(b"one", None, TIMEOUT)

    assert loaded(store).data == b"one"


def test_the_rest_of_the_config_map_is_somebody_elses(
    store: Store, cluster: Cluster, namespace: str, config_map: str
) -> None:
    """Labels and other keys stay; changed between two saves, they are no reason to stop."""
    token = store.save(b"one", None, TIMEOUT)
    patch = {"metadata": {"labels": {"a": "c"}}, "data": {"other": "y"}}
    cluster.request("PATCH", config_map, patch, content_type="application/merge-patch+json")
    store.save(b"two", token, TIMEOUT)

    found = cluster.request("GET", config_map)
    assert (found["metadata"]["labels"], found["data"]) == ({"a": "c"}, {"other": "y"})
    assert found["binaryData"] == {KEY: b64encode(b"two").decode()}


def test_a_writer_who_is_never_at_rest_does_not_keep_it_from_saving(
    store: Store, cluster: Cluster, control_plane: ControlPlane, config_map: str
) -> None:
    """A version that was overtaken between the comparison and the patch is compared again."""
    done = threading.Event()

    def label() -> None:
        with control_plane.cluster() as other:
            for number in itertools.count():
                patch = {"metadata": {"labels": {"n": str(number)}}}
                other.request("PATCH", config_map, patch, content_type="application/merge-patch+json")
                if done.is_set():
                    return

    writer = threading.Thread(target=label)
    writer.start()
    token = None
    for number in range(20):
        token = store.save(b"%d" % number, token, TIMEOUT)
    done.set()
    writer.join()

    assert loaded(store).data == b"19"


@pytest.mark.parametrize("key", ["binaryData", "removed"])
def test_a_value_that_somebody_else_wrote_is_a_conflict(
    store: Store, cluster: Cluster, config_map: str, key: str
) -> None:
    """By hand or by another run: it stays as they left it."""
    token = store.save(b"one", None, TIMEOUT)
    theirs = b64encode(b"theirs").decode() if key == "binaryData" else None
    cluster.request("PATCH", config_map, {"binaryData": {KEY: theirs}}, content_type="application/merge-patch+json")
    with pytest.raises(Conflict):
        store.save(b"two", token, TIMEOUT)

    found = store.load(TIMEOUT)
    assert (found and found.data) == (b"theirs" if theirs else None)


def test_what_a_config_map_cannot_take_is_for_a_person(store: Store) -> None:
    """The limit itself is allowed; one byte more is refused, and nothing is changed."""
    assert store.most_bytes == MOST_BYTES == len(MANY)
    token = store.save(MANY, None, TIMEOUT)
    with pytest.raises(ActionNeeded, match="may not be more than 1048576 bytes"):
        store.save(MANY + b"x", token, TIMEOUT)

    assert loaded(store).data == MANY


def test_the_other_keys_take_some_of_the_room(store: Store, cluster: Cluster, config_map: str) -> None:
    """The limit is that of all values together: what is left is known as soon as they have been seen."""
    others = {"data": {"text": "ü" * 1000}, "binaryData": {"bytes": b64encode(b"x" * 500).decode()}}
    cluster.request("PATCH", config_map, others, content_type="application/merge-patch+json")
    assert store.load(TIMEOUT) is None
    assert store.most_bytes == MOST_BYTES - 2500
    token = store.save(MANY[2500:], None, TIMEOUT)
    with pytest.raises(ActionNeeded, match="may not be more than 1048576 bytes"):
        store.save(MANY[2499:], token, TIMEOUT)

    assert (store.most_bytes, len(loaded(store).data)) == (MOST_BYTES - 2500, MOST_BYTES - 2500)


def test_an_immutable_config_map_is_for_a_person(store: Store, cluster: Cluster, config_map: str) -> None:
    """It says so itself."""
    cluster.request("PATCH", config_map, {"immutable": True}, content_type="application/merge-patch+json")
    with pytest.raises(ActionNeeded, match="immutable"):
        store.save(b"one", None, TIMEOUT)


def test_a_missing_config_map_is_for_a_person(
    control_plane: ControlPlane, cluster: Cluster, namespace: str, user: str
) -> None:
    """It is no first run: nothing could be saved. How to create it is told."""
    store = opened(control_plane.kubeconfig(user, namespace=namespace), namespace)
    with pytest.raises(ActionNeeded, match=f"kubectl create configmap -n {namespace} {NAME}"):
        store.load(TIMEOUT)


def test_the_role_of_the_docs_allows_nothing_else(
    control_plane: ControlPlane, namespace: str, user: str, store: Store
) -> None:
    """No other name, no list, no creation, no deletion."""
    other = opened(control_plane.kubeconfig(user, namespace=namespace), namespace, "other")
    with pytest.raises(Forbidden, match="grant get and patch"):
        other.load(TIMEOUT)
    with control_plane.cluster(user) as theirs:
        for method, place, body in (
            ("GET", path(namespace), None),
            ("POST", path(namespace), {"metadata": {"name": "third"}}),
            ("DELETE", path(namespace, NAME), None),
        ):
            with pytest.raises(ClusterError, match="forbidden"):
                theirs.request(method, place, body)


def test_refused_credentials_are_for_a_person(control_plane: ControlPlane, namespace: str) -> None:
    """A token that the API server does not know."""
    store = opened(control_plane.kubeconfig(token="expired", namespace=namespace), namespace)
    with pytest.raises(Unauthorized):
        store.load(TIMEOUT)


PATCHES = Matcher("patches", "configmaps", lambda request: request.method == "PATCH")
READS = Matcher("reads", "configmaps", lambda request: request.method == "GET")


def test_a_save_without_an_answer_may_have_happened(proxied: ConfigMapStore, proxy: ApiProxy) -> None:
    """It is unavailable; who looks finds the value."""
    lost = proxy.inject(on=PATCHES, fault=Reset())
    with pytest.raises(Unavailable):
        proxied.save(b"one", None, TIMEOUT)

    assert lost.fired == 1
    assert loaded(proxied).data == b"one"


@pytest.mark.parametrize(("status", "reason"), [(401, "Unauthorized"), (403, "Forbidden")])
def test_a_server_that_has_just_started_refuses_for_a_moment(
    proxied: ConfigMapStore, proxy: ApiProxy, status: int, reason: str
) -> None:
    """It knows no rights yet: reading and saving look again, and a person is not called."""
    fault = refusal(status, reason, "not yet")
    refused = [proxy.inject(on=READS, fault=fault, times=2), proxy.inject(on=PATCHES, fault=fault, times=2)]
    assert proxied.load(TIMEOUT) is None
    proxied.save(b"one", None, TIMEOUT)

    assert [each.fired for each in refused] == [2, 2]
    assert loaded(proxied).data == b"one"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (refusal(429, "TooManyRequests", "later"), Unavailable),
        (refusal(500, "InternalError", "etcdserver: request timed out"), Unavailable),
        (refusal(503, "ServiceUnavailable", "later"), Unavailable),
        (refusal(413, "RequestEntityTooLarge", "limit is 3145728"), ActionNeeded),
        (Answer(200, b"<h1>Please log in</h1>", content_type="text/html"), Unavailable),
        (Answer(200, b"[]"), Unavailable),
        (Answer(200, b'{"metadata": {}, "binaryData": {"checkpoint.json.gz": "%"}}'), Unavailable),
        (Stall(), Unavailable),
    ],
    ids=["429", "500", "503", "413", "html", "list", "no base64", "silence"],
)
def test_every_answer_says_who_can_mend_it(
    proxied: ConfigMapStore, proxy: ApiProxy, fault: Fault, error: type[WatcherError]
) -> None:
    """Nobody, or a person; one request, and no value is taken from what is none."""
    injected = proxy.inject(on=READS, fault=fault, times=None)
    with pytest.raises(WatcherError) as raised:
        proxied.load(SHORT)

    assert (type(raised.value), injected.fired, len(proxy.requests)) == (error, 1, 1)
    injected.release()


def test_a_server_that_is_away_is_unavailable(proxied: ConfigMapStore, proxy: ApiProxy) -> None:
    """Nobody listens."""
    proxy.down()

    with pytest.raises(Unavailable):
        proxied.load(TIMEOUT)
    with pytest.raises(Unavailable):
        proxied.save(b"one", None, TIMEOUT)


@pytest.mark.parametrize("timeout", [0.0, -3600.0])
def test_a_run_that_wakes_up_too_late_still_gets_one_try(connect: Connect, timeout: float) -> None:
    """So that it finds out that it has a successor."""
    store = connect()
    token = store.save(b"one", None, TIMEOUT)
    connect().save(b"two", token, TIMEOUT)

    with pytest.raises(Conflict):
        store.save(b"three", token, timeout)
    assert loaded(store).data == b"two"
