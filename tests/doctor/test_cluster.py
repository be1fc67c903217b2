"""Tests of what `doctor` says of the cluster: each with a set-up of its own that a real API server has."""

from __future__ import annotations

import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import yaml

from job.ports import Verdict
from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.bed.process import free_port
from tests.doctor.seen import diagnose, documented
from tests.fakes.api_faults import Answer, anything, refusal
from tests.fakes.api_proxy import ApiProxy
from tests.manifest import RBAC, as_service_account, collection, deploy, optional_objects, wait_for_right
from tests.program import Program

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
VERBS = ("get", "list", "watch")


def account(namespace: str) -> str:
    return f"system:serviceaccount:{namespace}:workflow-watcher"


def allowed(
    control_plane: ControlPlane, cluster: Cluster, namespace: str, folder: Path, verbs: tuple[str, ...]
) -> Program:
    """The program as a service account that may do this to Workflows, in its namespace."""
    if verbs:
        cluster.bind(account(namespace), namespace, verbs)
    return as_service_account(control_plane, namespace, folder)


def add(cluster: Cluster, namespace: str, remedy: str, name: str) -> None:
    """Do as the doctor has said: add the rule that it printed."""
    (rule,) = yaml.safe_load(remedy.partition(": ")[2])
    role = {"metadata": {"name": name}, "rules": [rule]}
    api = "rbac.authorization.k8s.io"
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": api, "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "workflow-watcher", "namespace": namespace}],
    }
    cluster.request("POST", f"{RBAC}/namespaces/{namespace}/roles", role)
    cluster.request("POST", f"{RBAC}/namespaces/{namespace}/rolebindings", binding)
    attributes: dict[str, Any] = {"namespace": namespace, "verb": rule["verbs"][0]}
    wait_for_right(cluster, namespace, {**attributes, "group": rule["apiGroups"][0], "resource": rule["resources"][0]})


def test_the_manifest_is_enough(control_plane: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    """With the rights of cronjob.yaml nothing fails; that the optional ones are missing is said."""
    program = deploy(control_plane, cluster, namespace, tmp_path)

    found = diagnose(program, program.checkpoint)

    assert (found.code, found.failed) == (0, [])
    assert found.warned == ["identity of the cluster", "identity of the definition"]
    assert documented("cluster identity", found["identity of the cluster"])
    assert documented("definition identity", found["identity of the definition"])
    # Nobody may read the namespace, and nothing is listed in it.
    assert found["namespace"].found == f"{namespace} exists, since there is a right that holds in it alone"


def test_with_the_optional_rights_there_is_nothing_to_say(
    control_plane: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    """Each check is ok, and none has anything to do next."""
    program = deploy(control_plane, cluster, namespace, tmp_path)
    bodies = optional_objects(namespace)
    for body in bodies:
        cluster.request("POST", collection(body, namespace), body)
    try:
        wait_for_right(cluster, namespace, {"verb": "get", "resource": "namespaces", "name": "kube-system"})
        cluster.create(namespace, "a")
        found = diagnose(program, program.checkpoint)
    finally:
        for body in bodies:
            cluster.request("DELETE", f"{collection(body, namespace)}/{body['metadata']['name']}")

    assert [check for check in found.checks if check.verdict is not Verdict.OK or check.remedy] == []
    assert (found.code, found["checkpoint"].found) == (0, "there is none yet: a first run publishes about 1 objects")


def test_nothing_is_asked_for_that_could_change_something(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """Requests that read, and reviews of rights, which are answered and not stored."""
    cluster.create(namespace, "a")
    proxied.run("--window=0s", proxied.checkpoint)
    before, asked = proxied.checkpoint_file.read_bytes(), len(proxy.requests)

    found = diagnose(proxied, proxied.checkpoint)

    requests = proxy.requests[asked:]
    assert found.code == 0
    assert {request.method for request in requests if request.path != REVIEWS} == {"GET"}
    assert {request.method for request in requests if request.path == REVIEWS} == {"POST"}
    assert proxied.checkpoint_file.read_bytes() == before
    assert [file.name for file in proxied.folder.iterdir()] == [proxied.checkpoint_file.name]


def test_an_api_server_that_is_away(control_plane: ControlPlane, tmp_path: Path) -> None:
    """It is named, and what does not need it is still looked at."""
    program = Program(control_plane.kubeconfig(server=f"https://127.0.0.1:{free_port()}"), tmp_path)

    found = diagnose(program, program.checkpoint)

    assert (found.code, found.failed) == (78, ["API server"])
    assert documented("no API server", found["API server"])
    assert [check.what for check in found.checks] == ["API server", "standard output", "checkpoint file", "checkpoint"]
    assert found["checkpoint"].found == "there is none yet"


def test_a_certificate_that_is_not_trusted(control_plane: ControlPlane, tmp_path: Path) -> None:
    """Nothing more is asked of whoever that is."""
    config = yaml.safe_load(control_plane.kubeconfig().read_text())
    del config["clusters"][0]["cluster"]["certificate-authority"]
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(yaml.safe_dump(config))

    found = diagnose(Program(kubeconfig, tmp_path), f"--checkpoint=file:{tmp_path}/c")

    assert (found.code, found.failed) == (78, ["API server"])
    assert "certificate" in found["API server"].found


def test_a_token_that_is_refused(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> None:
    """As the run tells it."""
    program = Program(control_plane.kubeconfig("nobody", namespace=namespace, token="expired"), tmp_path)

    found = diagnose(program, program.checkpoint)

    assert (found.code, found.failed) == (78, ["API server"])
    assert documented("wrong token", found["API server"])


def test_a_log_in_that_gives_nothing(control_plane: ControlPlane, tmp_path: Path) -> None:
    """A plug-in of the kubeconfig that fails is no usage error: a person must log in."""
    config = yaml.safe_load(control_plane.kubeconfig().read_text())
    plug_in = {"apiVersion": "client.authentication.k8s.io/v1", "command": "false", "interactiveMode": "Never"}
    config["users"][0]["user"] = {"exec": plug_in}
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(yaml.safe_dump(config))

    found = diagnose(Program(kubeconfig, tmp_path))

    assert (found.code, found.failed) == (78, ["log-in to the cluster"])


def test_a_definition_that_is_absent(proxied: Program, proxy: ApiProxy) -> None:
    """Argo Workflows are not installed: the rest of the cluster's checks would say nothing."""
    absent = Answer(404, b"404 page not found\n", content_type="text/plain")
    proxy.inject(absent, on=anything("/apis/argoproj.io/v1alpha1"), times=None)

    found = diagnose(proxied, proxied.checkpoint)

    assert (found.code, found.failed) == (78, ["resource"])
    assert documented("no definition", found["resource"])
    assert "right to list" not in [check.what for check in found.checks]


@pytest.mark.parametrize(
    ("options", "said", "remedy"),
    [
        (["--resource=widgets.v1.example.com"], "does not serve widgets.v1.example.com", "kubectl api-resources"),
        (["--resource=rollouts.v9.argoproj.io"], "does not serve rollouts.v9.argoproj.io", "kubectl api-resources"),
        (["--resource=nodes.v1"], "nodes.v1 belongs to no namespace", "use --all-namespaces"),
        (["-A", "--resource=tokenreviews.v1.authentication.k8s.io"], "does not list or watch", "correct --resource"),
    ],
)
def test_a_resource_that_cannot_be_watched(program: Program, options: list[str], said: str, remedy: str) -> None:
    """It is not served, not in a namespace, or has no history."""
    found = diagnose(program, program.checkpoint, *options)

    assert (found.code, found.failed) == (78, ["resource"])
    assert said in found["resource"].found
    assert found["resource"].remedy.startswith(remedy)


def test_built_in_groups_have_no_definition(program: Program) -> None:
    """Those with a dot neither: nobody is told to grant the right to read what cannot exist."""
    found = diagnose(program, program.checkpoint, "--resource=networkpolicies.v1.networking.k8s.io")

    assert (found.code, found.warned) == (0, [])
    assert "has no CustomResourceDefinition" in found["identity of the definition"].found


@pytest.mark.parametrize("verb", ["list", "watch"])
def test_a_verb_that_is_missing(
    control_plane: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path, verb: str
) -> None:
    """It is named, and the rule that is printed is the one to add: with it nothing fails."""
    rest = tuple(each for each in VERBS if each != verb)
    program = allowed(control_plane, cluster, namespace, tmp_path, rest)
    found = diagnose(program, program.checkpoint)

    assert (found.code, found.failed) == (78, [f"right to {verb}"])
    assert documented(f"no right to {verb}", found[f"right to {verb}"])
    add(cluster, namespace, found[f"right to {verb}"].remedy, "missing")
    assert diagnose(program, program.checkpoint).failed == []


def test_a_verb_that_no_run_needs(
    control_plane: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    """A run lists and watches; the manifest grants `get` besides, so that its lack is a warning."""
    program = allowed(control_plane, cluster, namespace, tmp_path, ("list", "watch"))

    found = diagnose(program, program.checkpoint)

    assert (found.code, found.failed) == (0, [])
    assert documented("no right to get", found["right to get"])
    assert program.run("--window=0s", program.checkpoint).code == 0


def test_all_namespaces_need_a_cluster_role(
    control_plane: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    """Rights in one namespace are none for all of them, and that is where the rule belongs."""
    program = allowed(control_plane, cluster, namespace, tmp_path, VERBS)

    found = diagnose(program, program.checkpoint, "--all-namespaces")

    assert found.failed == ["right to list", "right to watch"]
    assert documented("no right to list all", found["right to list"])
    assert "namespace" not in [check.what for check in found.checks]


@pytest.mark.parametrize("status", [403, 404])
def test_a_review_that_may_not_be_asked_for(proxied: Program, proxy: ApiProxy, status: int) -> None:
    """Then nobody can tell, which is said, and is no failure; the probe of a run is made all the same."""
    proxy.inject(refusal(status, "Refused", "no reviews here"), on=anything(REVIEWS), times=None)

    found = diagnose(proxied, proxied.checkpoint)

    assert (found.code, found.warned[:3]) == (0, [f"right to {verb}" for verb in VERBS])
    assert found["objects"].verdict is Verdict.OK


def test_a_namespace_that_does_not_exist(program: Program) -> None:
    """A listing of it is only empty."""
    found = diagnose(program, program.checkpoint, "--namespace=nowhere")

    assert (found.code, found.failed) == (78, ["namespace"])
    assert documented("no namespace", found["namespace"])


def test_a_namespace_that_cannot_be_known(
    control_plane: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    """Rights in every namespace say nothing of this one."""
    cluster.bind(account(namespace), None, VERBS)
    program = as_service_account(control_plane, namespace, tmp_path)
    try:
        found = diagnose(program, program.checkpoint, "--namespace=nowhere")
    finally:
        cluster.unbind(account(namespace), None)

    assert (found.code, found["namespace"].verdict) == (0, Verdict.WARN)
    assert documented("unknown namespace", found["namespace"])


@pytest.mark.parametrize(("seconds", "word"), [(3600, "behind"), (-3600, "ahead")])
def test_clocks_that_differ(proxied: Program, proxy: ApiProxy, seconds: int, word: str) -> None:
    """By the header that the API server sends: in either direction it is a warning, and says which."""
    date = {"Date": formatdate(time.time() + seconds, usegmt=True)}
    proxy.inject(Answer(200, b'{"gitVersion": "v1.37.2"}', date), on=anything("/version"), times=None)

    found = diagnose(proxied, proxied.checkpoint)

    assert (found.code, found.warned) == (0, ["clock"])
    assert documented(f"clock {word}", found["clock"])


def test_a_clock_that_says_nothing(proxied: Program, proxy: ApiProxy) -> None:
    """What is no date is told as it is; where there is none, there is nothing to compare."""
    answer = b'{"gitVersion": "v1.37.2"}'
    proxy.inject(Answer(200, answer, {"Date": "noon"}), on=anything("/version"))
    proxy.inject(Answer(200, answer), on=anything("/version"))

    assert "'noon'" in diagnose(proxied, proxied.checkpoint)["clock"].found
    assert "clock" not in [check.what for check in diagnose(proxied, proxied.checkpoint).checks]


def test_a_version_that_may_not_be_seen(proxied: Program, proxy: ApiProxy) -> None:
    """Some clusters tell it to nobody: that the server answers is enough."""
    proxy.inject(refusal(403, "Forbidden", "nothing for you"), on=anything("/version"), times=None)

    found = diagnose(proxied, proxied.checkpoint)

    assert (found.code, found["API server"].verdict) == (0, Verdict.OK)


def test_something_else_than_an_api_server(proxied: Program, proxy: ApiProxy) -> None:
    """A portal that answers everything with its log-in page is no cluster."""
    proxy.inject(Answer(200, b"<html>log in</html>", content_type="text/html"), on=anything(), times=None)

    found = diagnose(proxied, proxied.checkpoint)

    assert (found.code, found.failed) == (78, ["API server"])
    assert "something else than the Kubernetes API" in found["API server"].found
