"""Tests of what is watched: any resource, byte for byte, from a chosen point, for a chosen time."""

from __future__ import annotations

import json

import pytest
import urllib3

from tests.bed.cluster import Cluster, workflows_path
from tests.bed.control_plane import ControlPlane
from tests.fakes.api_faults import EXPIRED_LIST, exact, probes
from tests.fakes.api_proxy import ApiProxy
from tests.program import Program
from tests.wire.told import Message, changes, id_of, ids, raw_data

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
AWKWARD = {
    "float": 1.50,
    "exponent": 1e21,
    "large": 9_007_199_254_740_993,
    "text": 'a "quoted" line\n<&> \u2028 \U0001f600 \\u0041',
    "managedFields": [{"not": "the server's"}],
    "empty": {},
    "none": None,
}


class TestBytes:
    """What a message carries is what the API server sent."""

    @pytest.mark.parametrize("resource", ["configmaps.v1", "workflows.v1alpha1.argoproj.io"])
    def test_r8_a_listed_object_has_the_bytes_of_a_watched_one(
        self, resource: str, program: Program, cluster: Cluster, namespace: str
    ) -> None:
        """An object at one version has the same data whether a listing or the watch showed it."""
        program.run("--window=0s", f"--resource={resource}", program.checkpoint)
        if resource == "configmaps.v1":
            cluster.request("POST", _configmaps(namespace), {"metadata": {"name": "a"}, "data": {"key": "value"}})
        else:
            cluster.create(namespace, "a", spec={"arguments": AWKWARD})
        watched = program.run("--window=0s", f"--resource={resource}", program.checkpoint)
        program.checkpoint_file.unlink()

        listed = program.run("--window=0s", f"--resource={resource}", program.checkpoint)

        assert [changes(watched.messages), changes(listed.messages)] == [
            [("added", "a", "observed")],
            [("added", "a", "initial")],
        ]
        assert ids(listed.messages) == ids(watched.messages)
        assert raw_data(listed.stdout) == raw_data(watched.stdout)
        assert {"kind", "apiVersion", "metadata"} < set(listed.messages[0]["data"])

    def test_an_object_passes_byte_for_byte(
        self, program: Program, cluster: Cluster, namespace: str, control_plane: ControlPlane
    ) -> None:
        """Numbers, escapes and the order of keys are as the API server writes them; only its bookkeeping is cut out."""
        cluster.create(
            namespace,
            "a",
            annotations={"first": "kept", LAST_APPLIED: '{"apiVersion":"argoproj.io/v1alpha1"}\n', "zuletzt": "kept"},
            spec={"arguments": AWKWARD},
            labels={"managedFields": "kept", LAST_APPLIED: "kept"},
        )
        raw = _raw(control_plane, workflows_path(namespace, "a"))

        outcome = program.run("--window=0s")

        expected = _without(_without(raw.decode(), "managedFields", "[{"), LAST_APPLIED, '"')
        assert raw_data(outcome.stdout).decode() == expected.rstrip("\n")
        assert "kept" in outcome.messages[0]["data"]["metadata"]["annotations"]["first"]
        assert outcome.messages[0]["data"]["spec"]["arguments"] == json.loads(raw)["spec"]["arguments"]

    def test_an_applied_object_loses_the_marks_of_server_side_apply(
        self, program: Program, cluster: Cluster, namespace: str, control_plane: ControlPlane
    ) -> None:
        """An object of `kubectl apply --server-side` comes without the server's notes on who owns which field."""
        path = f"{_configmaps(namespace)}/applied"
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"key": "value"}}
        cluster.request(
            "PATCH", path, body, content_type="application/apply-patch+yaml", query={"fieldManager": "test"}
        )

        outcome = program.run("--window=0s", "--resource=configmaps.v1")

        assert raw_data(outcome.stdout).decode() == _without(
            _raw(control_plane, path).decode(), "managedFields", "[{"
        ).rstrip("\n")
        assert "managedFields" not in outcome.messages[0]["data"]["metadata"]

    def test_a_deletion_carries_the_last_object_with_the_version_of_the_deletion(
        self, program: Program, cluster: Cluster, namespace: str
    ) -> None:
        """An observed deletion has the whole object, and the id that every deletion of its uid has."""
        created = cluster.create(namespace, "a")
        program.run("--window=0s", program.checkpoint)
        cluster.delete(namespace, "a")

        outcome = program.run("--window=0s", program.checkpoint)

        (message,) = outcome.messages
        assert message["id"] == f"{created['metadata']['uid']}/deleted"
        assert message["dataschema"] == "urn:workflow-watcher:object:1"
        assert message["data"]["spec"] == created["spec"]
        assert message["data"]["metadata"]["resourceVersion"] == message["resourceversion"]
        assert int(message["resourceversion"]) > int(created["metadata"]["resourceVersion"])


class TestScope:
    """Namespaces, all of them, none of them, and selectors."""

    def test_a_cluster_scoped_resource(self, program: Program, cluster: Cluster, namespace: str) -> None:
        """A resource without namespaces is watched with --all-namespaces, and its subjects are names alone."""
        options = ["--window=0s", "--resource=namespaces.v1", "--all-namespaces", program.checkpoint]
        program.run(*options, "--initial=skip")
        cluster.create_namespace(f"{namespace}-new")

        outcome = program.run(*options)

        (message,) = outcome.messages
        assert (message["type"], message["subject"]) == ("io.k8s.namespaces.added", f"{namespace}-new")
        assert message["source"] == "/clusters/bed/api/v1/namespaces"
        assert message["phase"] == "Active"

    def test_a_built_in_group(self, program: Program, cluster: Cluster, namespace: str) -> None:
        """A resource of a built-in group with a dot in its name has that group, reversed, in its type."""
        rbac = "rbac.authorization.k8s.io"
        options = ["--window=0s", f"--resource=roles.v1.{rbac}", program.checkpoint]
        cluster.request("POST", f"/apis/{rbac}/v1/namespaces/{namespace}/roles", {"metadata": {"name": "a"}})

        outcome = program.run(*options)

        (message,) = outcome.messages
        assert message["type"] == "io.k8s.authorization.rbac.roles.added"
        assert message["source"] == f"/clusters/bed/apis/{rbac}/v1/roles"
        assert (message["data"]["kind"], message["data"]["apiVersion"]) == ("Role", f"{rbac}/v1")

    def test_all_namespaces(self, program: Program, cluster: Cluster, namespace: str) -> None:
        """With --all-namespaces one run tells of every namespace."""
        other = f"{namespace}-other"
        cluster.create_namespace(other)
        options = ["--window=0s", "--all-namespaces", program.checkpoint]
        program.run(*options, "--initial=skip")
        created = [cluster.create(namespace, "a"), cluster.create(other, "a")]

        outcome = program.run(*options)

        assert [message["subject"] for message in outcome.messages] == [f"{namespace}/a", f"{other}/a"]
        assert ids(outcome.messages) == [id_of(thing) for thing in created]

    def test_r7_what_has_entered_is_followed_to_its_end(
        self, program: Program, cluster: Cluster, namespace: str
    ) -> None:
        """A selector decides which objects enter; one that stops matching is followed to its one deletion."""
        options = ["--window=0s", "--selector=team=a", program.checkpoint]
        for name, team in (("in", "a"), ("out", "b"), ("later", "b")):
            cluster.create(namespace, name, labels={"team": team})
        first = program.run(*options)
        _label(cluster, namespace, "in", "b")
        _label(cluster, namespace, "later", "a")
        _label(cluster, namespace, "out", "c")
        second = program.run(*options)
        _label(cluster, namespace, "in", "c")
        cluster.delete(namespace, "in")
        cluster.delete(namespace, "out")
        third = program.run(*options)

        assert changes(first.messages) == [("added", "in", "initial")]
        assert changes(second.messages) == [("modified", "in", "observed"), ("added", "later", "observed")]
        assert changes(third.messages) == [("modified", "in", "observed"), ("deleted", "in", "observed")]

    def test_r7_the_server_never_sees_the_selector(
        self, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
    ) -> None:
        """No request carries a label selector: to the server, leaving it would look like a deletion."""
        cluster.create(namespace, "in", labels={"team": "a"})
        for _ in range(2):
            proxied.run("--window=0s", "--selector=team=a", proxied.checkpoint)
            _label(cluster, namespace, "in", "b")

        assert not any("labelSelector" in request.query for request in proxy.requests)


class TestStart:
    """Where a first run begins (R12)."""

    def test_r12_skip_begins_with_what_changes(self, program: Program, cluster: Cluster, namespace: str) -> None:
        """With --initial skip what exists is known and not told, and everything after it is."""
        cluster.create(namespace, "old")
        cluster.create(namespace, "gone")
        first = program.run("--window=0s", "--initial=skip", program.checkpoint)
        names = {known.name for known in program.saved.inventory.values()}
        changed = cluster.patch(namespace, "old", {"metadata": {"labels": {"a": "b"}}})
        cluster.delete(namespace, "gone")

        second = program.run("--window=0s", "--initial=skip", program.checkpoint)

        assert (first.code, first.messages, first.summary["start"], names) == (0, [], "skipped", {"old", "gone"})
        assert second.summary["start"] == "resumed"
        assert changes(second.messages) == [("modified", "old", "observed"), ("deleted", "gone", "observed")]
        assert ids(second.messages)[0] == id_of(changed)

    def test_r12_a_version_begins_with_the_inventory_of_its_time(
        self, program: Program, cluster: Cluster, namespace: str
    ) -> None:
        """With --resource-version a first run tells what came after that version, and knows what there was."""
        cluster.create(namespace, "old")
        cluster.create(namespace, "same")
        version = cluster.list(namespace)["metadata"]["resourceVersion"]
        changed = cluster.patch(namespace, "old", {"metadata": {"labels": {"a": "b"}}})
        created = cluster.create(namespace, "new")

        outcome = program.run("--window=0s", f"--resource-version={version}", program.checkpoint)

        assert (outcome.code, outcome.summary["start"], outcome.summary["from"]) == (0, "pinned", version)
        assert changes(outcome.messages) == [("modified", "old", "observed"), ("added", "new", "observed")]
        assert ids(outcome.messages) == [id_of(changed), id_of(created)]
        assert {known.name for known in program.saved.inventory.values()} == {"old", "same", "new"}

    def test_r12_a_version_of_the_past_is_refused(
        self, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
    ) -> None:
        """A version that the server no longer has needs a person: nothing is told, nothing saved."""
        cluster.create(namespace, "a")
        forgotten = proxy.inject(on=exact(), fault=EXPIRED_LIST)

        outcome = proxied.run("--window=3s", "--resource-version=1", proxied.checkpoint)

        assert (outcome.code, forgotten.fired, outcome.stdout) == (78, 1, b"")
        assert "no longer has resourceVersion 1" in outcome.summary["message"]
        assert not proxied.checkpoint_file.exists()

    def test_r12_a_version_of_the_future_is_refused(self, program: Program, cluster: Cluster, namespace: str) -> None:
        """A version that the cluster has not reached is a usage error, not a silent wait."""
        current = cluster.list(namespace)["metadata"]["resourceVersion"]

        outcome = program.run("--window=3s", "--resource-version=999999999", program.checkpoint)

        assert (outcome.code, outcome.stdout) == (2, b"")
        assert "999999999 is in the future" in outcome.summary["message"]
        assert int(outcome.summary["message"].rpartition(" ")[2]) >= int(current)
        assert not program.checkpoint_file.exists()


class TestCatchingUp:
    """`--window 0s` (R10)."""

    def test_r10_it_reaches_the_version_of_the_probe(
        self, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
    ) -> None:
        """A run without a window ends at or behind the version that was current when it began."""
        options = ["--window=0s", proxied.checkpoint]
        proxied.run(*options)
        created = cluster.create(namespace, "a")
        cluster.create_namespace(f"{namespace}-other")  # a later version, which is no event of this resource
        current = int(cluster.list(namespace)["metadata"]["resourceVersion"])

        outcome = proxied.run(*options)

        assert (outcome.code, outcome.summary["start"], ids(outcome.messages)) == (0, "resumed", [id_of(created)])
        assert proxied.saved.version >= current
        assert proxied.saved.listed < current  # by watching, not by another listing

    def test_r10_no_watch_is_shorter_than_three_seconds(
        self, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
    ) -> None:
        """timeoutSeconds is 3 or more, without a window and with the shortest one: less would get no bookmark."""
        for window in ("0s", "3s"):
            cluster.create(namespace, f"in-{window}")
            assert proxied.run(f"--window={window}", proxied.checkpoint).code == 0

        timeouts = [int(request.query["timeoutSeconds"]) for request in proxy.requests if request.watch]
        assert timeouts
        assert min(timeouts) >= 3

    def test_r10_nothing_new_needs_no_watch(self, proxied: Program, proxy: ApiProxy, namespace: str) -> None:
        """A run without a window whose version is current already ends after the probe."""
        proxied.run("--window=0s", proxied.checkpoint)
        seen = len(proxy.requests)

        outcome = proxied.run("--window=0s", proxied.checkpoint)

        asked = proxy.requests[seen:]
        assert (outcome.code, outcome.summary["saved"]) == (0, True)
        assert len([request for request in asked if probes()(request)]) == 1
        assert [request.query for request in asked if request.list and not probes()(request)] == []


def _configmaps(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps"


def _label(cluster: Cluster, namespace: str, name: str, team: str) -> Message:
    return cluster.patch(namespace, name, {"metadata": {"labels": {"team": team}}})


def _raw(control_plane: ControlPlane, path: str) -> bytes:
    """The answer of the API server to a GET, as it is."""
    headers = {"Authorization": f"Bearer {control_plane.token('admin')}"}
    with urllib3.PoolManager(ca_certs=str(control_plane.ca_file)) as pool:
        return pool.request("GET", control_plane.url + path, headers=headers).data


def _without(text: str, name: str, value_begins: str) -> str:
    """The JSON text without the first member of this name whose value begins so, and without one comma beside it.

    The end of the value is found by Python's own decoder.
    """
    start = text.index(f'"{name}":{value_begins}')
    _, end = json.JSONDecoder().raw_decode(text, start + len(name) + 3)
    if text[end] == ",":
        return text[:start] + text[end + 1 :]
    return text[: start - (text[start - 1] == ",")] + text[end:]
