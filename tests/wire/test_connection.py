"""Tests of how the program reaches an API server: by a kubeconfig, or by what a pod finds in its files."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from job import wiring
from job.access import Access
from job.checkpoint import Scope, decode
from job.credentials import GoogleCredentials
from job.ports import Event, Query
from job.run import Ports, run
from job.run.deadline import Deadline
from job.run.summary import Summary
from job.selector import Selector
from job.settings import Address, Settings, parse_resource
from job.sources.connection import from_kubeconfig, from_pod, in_pod
from job.sources.kubernetes import KubernetesSource
from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.fakes.relay import ConnectProxy
from tests.program import Program
from tests.wire.told import SinkFile, id_of, ids

ACCOUNT = "watcher"
RESOURCE = "workflows.v1alpha1.argoproj.io"


class Pod:
    """What a pod has: the files of its service account, an environment, and rights in its namespace."""

    def __init__(self, control_plane: ControlPlane, namespace: str, folder: Path) -> None:
        self.namespace = namespace
        self.files = folder / "serviceaccount"
        self.environment = control_plane.pod_files(namespace, ACCOUNT, self.files)
        self.checkpoint = folder / "checkpoint.json.gz"
        self.sink_file = SinkFile(folder)

    def run(self) -> Summary:
        """Catch up, in this process: only the command looks for these files where a kubelet puts them."""
        connection = from_pod(self.environment, self.files)
        sink, store = Address("file", str(self.sink_file.path)), Address("file", str(self.checkpoint))
        assert connection.namespace == self.namespace
        scope = Scope("bed", RESOURCE, self.namespace, "", str(sink))
        settings = Settings(scope, parse_resource(RESOURCE), Selector(), sink, store, timedelta())
        deadline = Deadline(settings.window)
        access = Access(GoogleCredentials(deadline))
        ports = Ports(
            wiring.source(settings.resource, scope.namespace, connection, deadline),
            wiring.sink(sink, access),
            wiring.store(store, access),
        )
        return run(settings, ports, deadline, run_id="in-process")


@pytest.fixture
def pod(control_plane: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Pod]:
    made = Pod(control_plane, namespace, tmp_path)
    user = f"system:serviceaccount:{namespace}:{ACCOUNT}"
    cluster.bind(user, namespace, ["list", "watch"])
    yield made
    cluster.unbind(user, namespace)


def test_a_pod_needs_its_files_and_two_rights(pod: Pod, cluster: Cluster) -> None:
    """With the service account's files, and `list` and `watch` in its namespace, a run tells what happens there."""
    first = cluster.create(pod.namespace, "first")
    started = pod.run()
    second = cluster.create(pod.namespace, "second")
    resumed = pod.run()

    assert (started.error, started.start, resumed.error, resumed.start) == (None, "first", None, "resumed")
    assert ids(pod.sink_file.messages) == [id_of(first), id_of(second)]
    assert decode(pod.checkpoint.read_bytes()).scope.namespace == pod.namespace


def test_a_pod_is_known_by_its_environment_and_its_token(pod: Pod, tmp_path: Path) -> None:
    """A process is in a pod where the API server's address and a token are given, and nowhere else."""
    assert in_pod(pod.environment, pod.files)
    assert not in_pod({}, pod.files)
    assert not in_pod(pod.environment, tmp_path / "absent")


def test_a_pod_uses_the_token_of_the_moment(pod: Pod, cluster: Cluster, control_plane: ControlPlane) -> None:
    """A token that the kubelet has replaced between two runs is used by the second."""
    (pod.files / "token").write_text("expired")
    refused = pod.run()
    control_plane.pod_files(pod.namespace, ACCOUNT, pod.files)
    accepted = pod.run()

    assert refused.exit_code == 78
    assert "credentials" in str(refused.error)
    assert accepted.error is None


def test_a_kubeconfig_is_reached_through_a_proxy(
    control_plane: ControlPlane, cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kubectl would: one connection through the proxy, with TLS from end to end, which is used again."""
    created = cluster.create(namespace, "a")
    with ConnectProxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        connection = from_kubeconfig(str(control_plane.kubeconfig(namespace=namespace)), None)
        source = KubernetesSource(connection, parse_resource(RESOURCE), namespace, Deadline(timedelta(seconds=20)))
        version = int(created["metadata"]["resourceVersion"])

        assert [thing.name for thing in source.list(Query(limit=5)).objects] == ["a"]
        events = [source.decode(line) for block in source.watch(version - 1, 3) for line in block]

        assert isinstance(events[0], Event)
        assert events[0].object.name == "a"
        assert proxy.asked == [control_plane.url.removeprefix("https://")]


@pytest.mark.parametrize("token", ["two\nlines", "ein-schl\u00fcssel"])
def test_a_token_that_cannot_be_one_is_named(pod: Pod, token: str) -> None:
    """It would be sent as it is, within the lines of a request."""
    (pod.files / "token").write_text(token, encoding="utf-8")
    refused = pod.run()

    assert refused.exit_code == 78
    assert f"{pod.files / 'token'} holds something else" in str(refused.error)


def test_a_pod_that_lacks_a_right_says_which(pod: Pod, cluster: Cluster) -> None:
    """A service account without rights is told which verb, resource and namespace it lacks."""
    cluster.unbind(f"system:serviceaccount:{pod.namespace}:{ACCOUNT}", pod.namespace)

    refused = pod.run()

    assert refused.exit_code == 78
    assert f"kubectl auth can-i list workflows.argoproj.io -n {pod.namespace}" in str(refused.error)


def test_a_pod_trusts_its_own_authority_only(pod: Pod) -> None:
    """A server whose certificate is not of the pod's CA is refused."""
    trustme.CA().cert_pem.write_to_path(pod.files / "ca.crt")

    refused = pod.run()

    assert refused.exit_code == 78
    assert "certificate" in str(refused.error)
    assert "not trusted" in str(refused.error)


class TestKubeconfig:
    """Kubeconfigs of different kinds."""

    def test_the_context_gives_namespace_and_cluster(
        self, control_plane: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path
    ) -> None:
        """Without options the namespace and the cluster's name are the current context's."""
        cluster.create(namespace, "a")
        program = Program(control_plane.kubeconfig(namespace=namespace, cluster_name="prod/eu"), tmp_path)

        outcome = program.run("--window=0s", program.checkpoint)

        assert outcome.code == 0
        assert (program.saved.scope.namespace, program.saved.scope.cluster) == (namespace, "prod/eu")
        assert outcome.messages[0]["source"] == "/clusters/prod%2Feu/apis/argoproj.io/v1alpha1/workflows"

    def test_options_win_over_the_environment_and_the_context(
        self, control_plane: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path
    ) -> None:
        """A flag wins over its variable, and both over the context."""
        program = Program(control_plane.kubeconfig(namespace="default"), tmp_path)

        outcome = program.run(
            "--window=0s",
            f"--namespace={namespace}",
            "--cluster=flag",
            program.checkpoint,
            environment={"WATCHER_CLUSTER": "variable", "WATCHER_ALL_NAMESPACES": "true", "WATCHER_WINDOW": "1h"},
        )

        assert outcome.code == 0
        assert (program.saved.scope.namespace, program.saved.scope.cluster) == (namespace, "flag")

    def test_a_foreign_certificate_is_refused(self, control_plane: ControlPlane, tmp_path: Path) -> None:
        """A server that the kubeconfig's CA did not sign is a matter for a person, told in one line."""
        foreign = tmp_path / "foreign-ca.crt"
        trustme.CA().cert_pem.write_to_path(foreign)
        config = _edited(control_plane.kubeconfig(), cluster={"certificate-authority": str(foreign)})
        program = _with(config, tmp_path)

        outcome = program.run("--window=3s", program.checkpoint)

        assert (outcome.code, outcome.stdout, len(outcome.lines)) == (78, b"", 1)
        assert f"the certificate of {control_plane.url} is not trusted" in outcome.summary["message"]
        assert not program.checkpoint_file.exists()

    def test_a_damaged_authority_is_refused(self, control_plane: ControlPlane, tmp_path: Path) -> None:
        """A CA that is no certificate is told as such, not as a server that is away."""
        nonsense = base64.b64encode(b"nonsense").decode()
        config = _edited(
            control_plane.kubeconfig(), cluster={"certificate-authority": None, "certificate-authority-data": nonsense}
        )

        outcome = _with(config, tmp_path).run("--window=3s")

        assert (outcome.code in (2, 78), outcome.stdout, len(outcome.lines)) == (True, b"", 1), outcome.stderr

    def test_a_client_certificate_logs_in(self, tmp_path: Path) -> None:
        """The client certificate and key of a kubeconfig are presented, and the server takes them for a login."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "clients.crt")
        certificate = authority.issue_cert("a@example.com", common_name="a", organization_name="system:masters")
        chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        login = {
            "client-certificate-data": base64.b64encode(chain).decode(),
            "client-key-data": base64.b64encode(certificate.private_key_pem.bytes()).decode(),
        }
        flags = ["--client-ca-file", str(tmp_path / "clients.crt")]
        with ControlPlane(tmp_path / "control-plane", api_flags=flags) as plane:
            program = _with(_edited(plane.kubeconfig("nobody"), user=login), tmp_path)

            outcome = program.run("--window=0s", "--resource=secrets.v1", "--all-namespaces")

        assert outcome.code == 0

    def test_a_plugin_logs_in(
        self, control_plane: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path
    ) -> None:
        """The token of an exec plugin is used, as clouds hand them out."""
        created = cluster.create(namespace, "a")
        credential = {
            "apiVersion": "client.authentication.k8s.io/v1",
            "kind": "ExecCredential",
            "status": {"token": control_plane.token("admin")},
        }
        (tmp_path / "credential.json").write_text(json.dumps(credential))
        config = _edited(
            control_plane.kubeconfig(namespace=namespace),
            user={"exec": _plugin("cat", str(tmp_path / "credential.json"))},
        )

        outcome = _with(config, tmp_path).run("--window=0s")

        assert (outcome.code, ids(outcome.messages)) == (0, [id_of(created)])

    def test_a_plugin_that_fails_is_named(self, control_plane: ControlPlane, tmp_path: Path) -> None:
        """A login that cannot be had is told as such, and not as a missing right of nobody's."""
        config = _edited(control_plane.kubeconfig(), user={"exec": _plugin("no-such-login-plugin")})

        outcome = _with(config, tmp_path).run("--window=3s")

        assert (outcome.code in (2, 78), outcome.stdout) == (True, b"")
        assert "no-such-login-plugin" in outcome.summary["message"]

    def test_a_context_without_a_server_is_refused(self, control_plane: ControlPlane, tmp_path: Path) -> None:
        """A cluster without a server is no server that is away for a while."""
        config = _edited(control_plane.kubeconfig(), cluster={"server": None})

        outcome = _with(config, tmp_path).run("--window=3s")

        assert (outcome.code, outcome.stdout, len(outcome.lines)) == (2, b"", 1)

    def test_a_context_with_an_unknown_user_is_refused(self, control_plane: ControlPlane, tmp_path: Path) -> None:
        """A user whom the kubeconfig does not have is named, as kubectl does, instead of trying without a login."""
        config = _edited(control_plane.kubeconfig())
        config["users"][0]["name"] = "somebody-else"

        outcome = _with(config, tmp_path).run("--window=3s")

        assert (outcome.code, outcome.stdout, len(outcome.lines)) == (2, b"", 1)
        assert "admin" in outcome.summary["message"]

    def test_a_skipped_verification_is_honoured(
        self, control_plane: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path
    ) -> None:
        """A kubeconfig that says not to verify is obeyed, with one warning and not one for every request."""
        created = cluster.create(namespace, "a")
        config = _edited(
            control_plane.kubeconfig(namespace=namespace),
            cluster={"certificate-authority": None, "insecure-skip-tls-verify": True},
        )

        outcome = _with(config, tmp_path).run("--window=0s")

        assert (outcome.code, ids(outcome.messages)) == (0, [id_of(created)])
        assert [line["event"] for line in outcome.lines] == ["api.unverified", "run.finished"]


def _plugin(command: str, *arguments: str) -> dict[str, Any]:
    return {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": command,
        "args": list(arguments),
        "interactiveMode": "Never",
    }


def _edited(
    kubeconfig: Path, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The kubeconfig with other fields of its cluster, or with another login of its user."""
    config: dict[str, Any] = yaml.safe_load(kubeconfig.read_text())
    merged = config["clusters"][0]["cluster"] | (cluster or {})
    config["clusters"][0]["cluster"] = {name: value for name, value in merged.items() if value is not None}
    if user:
        config["users"][0]["user"] = user
    return config


def _with(kubeconfig: dict[str, Any], folder: Path) -> Program:
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(kubeconfig))
    return Program(path, folder)
