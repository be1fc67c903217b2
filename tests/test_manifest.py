"""Tests of cronjob.yaml: what the API server, the clocks and the program make of it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
import urllib3
import yaml
from typer.core import TyperGroup

from job import wiring
from job.checkpoint import Scope
from job.cli import app
from job.errors import ExitCode, UsageError
from job.logs import LogFormat
from job.payload import Payload
from job.ports import Identity
from job.run.deadline import CATCH_UP, DRAIN, LISTING, SAVE
from job.selector import Selector
from job.settings import (
    Initial,
    parse_address,
    parse_cluster,
    parse_duration,
    parse_resource,
    parse_window,
)
from job.sources.connection import SERVICE_ACCOUNT
from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.bed.waiting import wait_until
from tests.program import Program
from tests.wire.told import id_of, ids

Object = dict[str, Any]

MANIFEST = Path(__file__).parent.parent / "cronjob.yaml"
FILLED_IN = {
    "GOOGLE_SERVICE_ACCOUNT": "watcher@some-project.iam.gserviceaccount.com",
    "IMAGE_BY_DIGEST": f"workflow-watcher@sha256:{'0' * 64}",
    "CLUSTER_NAME": "prod-eu",
    "SINK_URL": "pubsub://some-project/workflow-changes",
    "CHECKPOINT_URL": "gs://some-bucket/workflow-watcher/",
}
NOT_IN_A_POD = {"WATCHER_KUBECONFIG", "WATCHER_CONTEXT"}
RBAC = "/apis/rbac.authorization.k8s.io/v1"
COLLECTIONS = {
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "Pod": "/api/v1/namespaces/{}/pods",
    "CronJob": "/apis/batch/v1/namespaces/{}/cronjobs",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "Role": RBAC + "/namespaces/{}/roles",
    "RoleBinding": RBAC + "/namespaces/{}/rolebindings",
    "ClusterRole": RBAC + "/clusterroles",
    "ClusterRoleBinding": RBAC + "/clusterrolebindings",
}

PERIOD = 60
START = 20
"""Seconds that a pod may take until the program runs: scheduling, pulling the image, importing."""
SLACK = 10
"""Seconds between what the program promises and what Kubernetes enforces."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server said to an object; nothing is kept of it."""

    status: int
    message: str
    warnings: list[str]


class Trial:
    """The API server's opinion, by dry run, in one namespace; unknown and doubled fields are errors."""

    def __init__(self, control_plane: ControlPlane, namespace: str, pool: urllib3.PoolManager) -> None:
        self.namespace = namespace
        self._url = control_plane.url
        self._token = control_plane.token("admin")
        self._pool = pool

    def create(self, body: Object) -> Answer:
        answer = self._pool.request(
            "POST",
            f"{self._url}{collection(body, self.namespace)}?dryRun=All&fieldValidation=Strict",
            json=body,
            headers={"Authorization": f"Bearer {self._token}"},
            retries=False,
        )
        return Answer(answer.status, answer.json().get("message", ""), answer.headers.getlist("Warning"))


@pytest.fixture
def trial(control_plane: ControlPlane, cluster: Cluster, namespace: str) -> Iterator[Trial]:
    """In a namespace that enforces the Pod Security Standard `restricted`, and warns of controllers against it."""
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    path, patch = f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": labels}}
    cluster.request("PATCH", path, patch, content_type="application/merge-patch+json")
    with urllib3.PoolManager(ca_certs=str(control_plane.ca_file)) as pool:
        yield Trial(control_plane, namespace, pool)


@pytest.fixture
def deployed(control_plane: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path) -> Program:
    return deploy(control_plane, cluster, namespace, tmp_path)


@pytest.fixture
def identified(deployed: Program, cluster: Cluster, namespace: str) -> Iterator[Program]:
    """The program with the optional rights, too."""
    bodies = optional_objects(namespace)
    for body in bodies:
        cluster.request("POST", collection(body, namespace), body)
    wait_for_right(cluster, namespace, {"verb": "get", "resource": "namespaces", "name": "kube-system"})
    yield deployed
    for body in bodies:
        cluster.request("DELETE", f"{collection(body, namespace)}/{body['metadata']['name']}")


class TestValues:
    """The five values to fill in."""

    def test_they_stand_once_in_their_order_before_everything_else(self) -> None:
        """Each value to fill in stands once, with its number, in the first two objects, before any other setting."""
        lines = MANIFEST.read_text().splitlines()

        found = [
            (token, number)
            for line in lines
            for token in FILLED_IN
            if token in line
            for number in re.findall(r"# \((\d)\)", line)
        ]
        last = max(number for number, line in enumerate(lines) if any(token in line for token in FILLED_IN))

        assert found == [(token, str(number)) for number, token in enumerate(FILLED_IN, start=1)]
        assert [MANIFEST.read_text().count(token) for token in FILLED_IN] == [1] * len(FILLED_IN)
        assert "\n".join(lines[:last]).count("\n---\n") == 1
        assert last < 48

    def test_they_go_where_they_are_read(self) -> None:
        """What is filled in is the annotation for Workload Identity, the image, and three options."""
        account, image, *options = FILLED_IN.values()

        assert one("ServiceAccount")["metadata"]["annotations"] == {"iam.gke.io/gcp-service-account": account}
        assert container()["image"] == image
        assert [environment()[f"WATCHER_{name}"] for name in ("CLUSTER", "SINK", "CHECKPOINT")] == options

    def test_a_forgotten_one_is_refused(self) -> None:
        """A sink or a checkpoint that nobody filled in is a usage error, and no run."""
        with pytest.raises(UsageError, match="SINK_URL"):
            parse_address("SINK_URL", "sink", wiring.SINKS)
        with pytest.raises(UsageError, match="CHECKPOINT_URL"):
            parse_address("CHECKPOINT_URL", "checkpoint", wiring.STORES)


class TestApiServer:
    """What a real API server says to the objects."""

    def test_every_object_is_accepted(self, trial: Trial) -> None:
        """All objects are accepted without a warning where `restricted` is enforced, unknown fields being errors."""
        answers = [trial.create(body) for body in objects()]

        assert answers == [Answer(201, "", [])] * 4

    def test_the_optional_objects_are_accepted(self, trial: Trial) -> None:
        """What is commented out is as valid as the rest."""
        bodies = optional_objects(trial.namespace)

        assert [body["kind"] for body in bodies] == ["ClusterRole", "ClusterRoleBinding"]
        assert [trial.create(body) for body in bodies] == [Answer(201, "", [])] * 2

    def test_a_misspelt_field_would_be_refused(self, trial: Trial) -> None:
        """The check above finds a field that does not exist."""
        body = one("CronJob")
        body["spec"]["startingDeadlineSecond"] = 45

        answer = trial.create(body)

        assert answer.status == 400
        assert 'unknown field "spec.startingDeadlineSecond"' in answer.message

    def test_the_pod_is_admitted(self, trial: Trial) -> None:
        """The pod that a Job would create is admitted where `restricted` is enforced."""
        assert trial.create(pod(one("CronJob"))) == Answer(201, "", [])

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("containers.0.securityContext.allowPrivilegeEscalation", None),
            ("containers.0.securityContext.capabilities", None),
            ("securityContext.runAsNonRoot", None),
            ("securityContext.runAsUser", 0),
            ("securityContext.seccompProfile", None),
            ("hostNetwork", True),
        ],
    )
    def test_a_weaker_pod_would_be_refused(self, trial: Trial, path: str, value: object) -> None:
        """Each hardening that `restricted` asks for is needed: without it the pod is refused, the CronJob warned of."""
        body = one("CronJob")
        *parents, field = path.split(".")
        target: Any = pod_spec(body)
        for parent in parents:
            target = target[int(parent)] if parent.isdigit() else target[parent]
        target.pop(field, None)
        if value is not None:
            target[field] = value

        refused, warned = trial.create(pod(body)), trial.create(body)

        assert refused.status == 403
        assert "PodSecurity" in refused.message
        assert (warned.status, len(warned.warnings)) == (201, 1)

    def test_the_root_file_system_is_read_only(self) -> None:
        """What `restricted` does not ask for is there, too: nothing can be written but a small /tmp."""
        spec = pod_spec(one("CronJob"))
        emptied = {volume["name"]: volume["emptyDir"] for volume in spec["volumes"] if "emptyDir" in volume}

        assert container()["securityContext"]["readOnlyRootFilesystem"] is True
        assert emptied == {"tmp": {"sizeLimit": "16Mi"}}
        assert {"name": "tmp", "mountPath": "/tmp"} in container()["volumeMounts"]

    def test_the_token_is_where_the_program_looks(self) -> None:
        """The short-lived token, the CA and the namespace replace what Kubernetes would mount by itself."""
        spec = pod_spec(one("CronJob"))
        (sources,) = [volume["projected"]["sources"] for volume in spec["volumes"] if "projected" in volume]
        files = [path for source in sources for path in re.findall(r"'path': '([^']*)'", str(source))]

        assert [one("ServiceAccount")["automountServiceAccountToken"], spec["automountServiceAccountToken"]] == [
            False
        ] * 2
        assert {"name": "token", "mountPath": str(SERVICE_ACCOUNT), "readOnly": True} in container()["volumeMounts"]
        assert sorted(files) == ["ca.crt", "namespace", "token"]


class TestTime:
    """The clocks of CronJob, Job, pod and program."""

    def test_a_run_may_take_the_time_it_promises(self) -> None:
        """The Job is killed only after a slow start and the longest run that the program allows itself."""
        longest = window() + recover() + LISTING + DRAIN + SAVE

        assert job()["activeDeadlineSeconds"] >= longest + START

    def test_a_killed_run_may_save(self) -> None:
        """The grace after SIGTERM is enough for the drain and the save."""
        assert pod_spec(one("CronJob"))["terminationGracePeriodSeconds"] >= DRAIN + SAVE + SLACK

    def test_no_minute_is_lost_to_the_one_before(self) -> None:
        """Where a run had to be killed with all its grace, the next one still starts, late."""
        gone = job()["activeDeadlineSeconds"] + pod_spec(one("CronJob"))["terminationGracePeriodSeconds"]

        assert schedule()["schedule"] == "* * * * *"
        assert gone + SLACK <= PERIOD + schedule()["startingDeadlineSeconds"]

    def test_never_more_than_one_run_is_owed(self) -> None:
        """Late ticks do not pile up; and the controller, which looks every ten seconds, cannot miss one."""
        gone = job()["activeDeadlineSeconds"] + pod_spec(one("CronJob"))["terminationGracePeriodSeconds"]

        assert 10 <= schedule()["startingDeadlineSeconds"] < PERIOD
        assert gone < 2 * PERIOD
        assert schedule()["concurrencyPolicy"] == "Forbid"

    def test_what_is_over_goes_away(self) -> None:
        """Jobs that are done leave by number and by age."""
        assert 0 < schedule()["successfulJobsHistoryLimit"] <= 5
        assert 0 < schedule()["failedJobsHistoryLimit"] <= 5
        assert job()["ttlSecondsAfterFinished"] > 0


def test_the_exit_code_decides_who_acts() -> None:
    """The Job fails at once where a person must act, an eviction is no failure, and the next minute is the retry."""
    fail, ignore = job()["podFailurePolicy"]["rules"]

    assert fail == {
        "action": "FailJob",
        "onExitCodes": {
            "containerName": container()["name"],
            "operator": "In",
            "values": sorted([ExitCode.USAGE, ExitCode.ACTION_NEEDED]),
        },
    }
    assert ignore == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert (job()["backoffLimit"], pod_spec(one("CronJob"))["restartPolicy"]) == (0, "Never")


class TestRights:
    """What the service account may do."""

    def test_the_manifest_has_these_objects(self) -> None:
        """There is no Namespace, which would take the Workflows along, and no object names one, so that `-n` does."""
        assert [body["kind"] for body in objects()] == ["ServiceAccount", "CronJob", "Role", "RoleBinding"]
        assert {body["metadata"]["name"] for body in objects()} == {"workflow-watcher"}
        assert [body for body in objects() if "namespace" in body["metadata"]] == []

    def test_the_role_is_the_least(self) -> None:
        """The Role is get, list and watch on one resource, and it is given to the pod's service account alone."""
        binding = one("RoleBinding")

        assert one("Role")["rules"] == [
            {"apiGroups": ["argoproj.io"], "resources": ["workflows"], "verbs": ["get", "list", "watch"]}
        ]
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("Role", one("Role")["metadata"]["name"])
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": one("ServiceAccount")["metadata"]["name"]}]
        assert pod_spec(one("CronJob"))["serviceAccountName"] == one("ServiceAccount")["metadata"]["name"]

    def test_the_role_suffices(self, deployed: Program, cluster: Cluster, namespace: str) -> None:
        """With the manifest's rights and its environment, a run tells what is in its namespace, and ends well."""
        created = cluster.create(namespace, "a")
        resource = "workflows.v1alpha1.argoproj.io"

        outcome = deployed.run(environment=environment_in_the_bed(deployed))

        assert (outcome.code, ids(outcome.messages)) == (0, [id_of(created)]), outcome.stderr
        assert deployed.saved.scope == Scope(FILLED_IN["CLUSTER_NAME"], resource, namespace, "", "stdout:")
        assert deployed.saved.identity == Identity(None, None)

    def test_the_role_ends_with_the_namespace(self, deployed: Program) -> None:
        """The manifest's rights do not reach beyond its namespace."""
        everywhere = environment_in_the_bed(deployed) | {"WATCHER_ALL_NAMESPACES": "true"}

        outcome = deployed.run(environment=everywhere)

        assert outcome.code == 78
        assert "workflows.argoproj.io" in outcome.summary["message"]

    def test_the_optional_rights_prove_the_cluster(self, identified: Program) -> None:
        """With what is commented out, the checkpoint knows which cluster it is of, and which definition."""
        outcome = identified.run(environment=environment_in_the_bed(identified))

        assert outcome.code == 0
        assert None not in (identified.saved.identity.cluster, identified.saved.identity.definition)


class TestBackfill:
    """A Job for all that exists, made from the CronJob by variables only."""

    def test_a_job_by_variables_publishes_what_exists(
        self, deployed: Program, trial: Trial, cluster: Cluster, namespace: str
    ) -> None:
        """The API server accepts the Job; what its container runs, with its rights, tells what is asked for."""
        created = [cluster.create(namespace, name, phase=phase) for name, phase in (("a", "Failed"), ("b", "Running"))]
        body = backfill_job(WATCHER_PHASE="Failed", WATCHER_RATE="200")
        accepted = trial.create(body)
        command, variables = started_by(body)

        outcome = deployed.run(command=command, environment=variables | {"WATCHER_SINK": "stdout:"})

        assert accepted == Answer(201, "", [])
        assert command == "backfill"
        assert (outcome.code, ids(outcome.messages)) == (0, [id_of(created[0])]), outcome.stderr
        assert [message["provenance"] for message in outcome.messages] == ["replay"]

    def test_the_comment_shows_the_command(self) -> None:
        """What the manifest proposes changes variables that the program reads, and the Job's deadline."""
        text = MANIFEST.read_text()

        assert "WATCHER_COMMAND=backfill" in text
        assert "backfill" in commands()
        assert {"WATCHER_PHASE", "WATCHER_SINCE", "WATCHER_RATE"} <= options_of("backfill")
        assert '"activeDeadlineSeconds":3600' in text


class TestEnvironment:
    """The command and its options, which `kubectl create job --from` can change by variables only."""

    def test_every_option_of_a_run_has_its_variable(self) -> None:
        """The manifest has all options of `run` but two that mean nothing in a pod; the command; one of malloc's."""
        variables = list(environment())

        assert set(variables) == {*options_of("run"), "WATCHER_COMMAND", "MALLOC_ARENA_MAX"} - NOT_IN_A_POD
        assert len(variables) == len(container()["env"])

    def test_the_command_is_a_variable(self) -> None:
        """The arguments are one variable that the container has, and the image's entry point is kept."""
        expanded = [
            re.sub(r"\$\((\w+)\)", lambda match: environment()[match[1]], argument) for argument in container()["args"]
        ]

        assert container()["args"] == ["$(WATCHER_COMMAND)"]
        assert expanded == ["run"]
        assert "run" in commands()
        assert "command" not in container()

    def test_no_variable_comes_from_elsewhere(self) -> None:
        """Neither Services nor other objects add variables that would be taken for options."""
        assert pod_spec(one("CronJob"))["enableServiceLinks"] is False
        assert "envFrom" not in container()
        assert all(set(variable) <= {"name", "value"} for variable in container()["env"])

    def test_every_value_can_be_read(self) -> None:
        """The program's own parsers accept the values, with the sink and the checkpoint that the comments propose."""
        values = environment()

        assert parse_window(values["WATCHER_WINDOW"]) == timedelta()
        assert parse_duration(values["WATCHER_RECOVER"]) == timedelta(seconds=20)
        assert parse_cluster(values["WATCHER_CLUSTER"]) == FILLED_IN["CLUSTER_NAME"]
        assert Selector(values["WATCHER_SELECTOR"]).text == ""
        assert Initial(values["WATCHER_INITIAL"]) is Initial.PUBLISH
        assert LogFormat(values["WATCHER_LOG_FORMAT"]) is LogFormat.JSON
        assert Payload(values["WATCHER_PAYLOAD"]) is Payload.OBJECT
        assert values["WATCHER_TRANSITIONS"] == values["WATCHER_ALL_NAMESPACES"] == "false"
        assert values["WATCHER_REDACT"] == values["WATCHER_DEAD_LETTER"] == ""
        assert parse_resource(values["WATCHER_RESOURCE"]).group_resource == "workflows.argoproj.io"
        assert parse_address(values["WATCHER_SINK"], "sink", wiring.SINKS).scheme == "pubsub"
        assert parse_address(values["WATCHER_CHECKPOINT"], "checkpoint", wiring.STORES).scheme == "gs"


def filled(text: str) -> str:
    for token, value in FILLED_IN.items():
        text = text.replace(token, value)
    return text


def objects() -> list[Object]:
    """The manifest, filled in; every call makes new ones."""
    return list(yaml.safe_load_all(filled(MANIFEST.read_text())))


def optional_objects(namespace: str) -> list[Object]:
    """What is commented out, as a reader takes it in: from the first `#---` on, without the `#` of each line."""
    _, marker, commented = MANIFEST.read_text().partition("\n#---\n")
    text = re.sub("^#", "", marker + commented, flags=re.MULTILINE).replace("NAMESPACE", namespace)
    return [body for body in yaml.safe_load_all(text) if body]


def one(kind: str) -> Object:
    (found,) = [body for body in objects() if body["kind"] == kind]
    return found


def backfill_job(**variables: str) -> Object:
    """The Job that the manifest's comment makes, with these variables besides."""
    spec = copy.deepcopy(job())
    (made,) = spec["template"]["spec"]["containers"]
    wanted = {"WATCHER_COMMAND": "backfill", **variables}
    made["env"] = [each for each in made["env"] if each["name"] not in wanted]
    made["env"] += [{"name": name, "value": value} for name, value in wanted.items()]
    spec["activeDeadlineSeconds"] = 3600
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "backfill"}, "spec": spec}


def started_by(made: Object) -> tuple[str, dict[str, str]]:
    """The command and the variables of a Job's container, as Kubernetes starts it."""
    (only,) = made["spec"]["template"]["spec"]["containers"]
    variables = {each["name"]: each.get("value", "") for each in only["env"]}
    (command,) = [re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], each) for each in only["args"]]
    return command, variables


def schedule() -> Object:
    spec: Object = one("CronJob")["spec"]
    return spec


def job() -> Object:
    spec: Object = schedule()["jobTemplate"]["spec"]
    return spec


def pod_spec(cron_job: Object) -> Object:
    spec: Object = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return spec


def pod(cron_job: Object) -> Object:
    """A pod as the Job's controller makes it."""
    template = copy.deepcopy(cron_job["spec"]["jobTemplate"]["spec"]["template"])
    metadata = {**template["metadata"], "generateName": "workflow-watcher-"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def container() -> Object:
    (found,) = pod_spec(one("CronJob"))["containers"]
    return dict(found)


def environment() -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in container()["env"]}


def environment_in_the_bed(program: Program) -> dict[str, str]:
    """The manifest's environment, with what the bed has in place of Google's services."""
    return environment() | {
        "WATCHER_SINK": "stdout:",
        "WATCHER_CHECKPOINT": f"file:{program.checkpoint_file}",
    }


def window() -> float:
    return parse_window(environment()["WATCHER_WINDOW"]).total_seconds() or CATCH_UP


def recover() -> float:
    return parse_duration(environment()["WATCHER_RECOVER"]).total_seconds()


def commands() -> dict[str, Any]:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return dict(group.commands)


def options_of(command: str) -> set[str]:
    return {option.envvar for option in commands()[command].params if isinstance(option.envvar, str)}


def collection(body: Object, namespace: str) -> str:
    return COLLECTIONS[body["kind"]].format(namespace)


def deploy(control_plane: ControlPlane, cluster: Cluster, namespace: str, folder: Path) -> Program:
    """The program as the manifest's service account, with the rights that the manifest gives it."""
    for body in objects():
        if body["kind"] in {"ServiceAccount", "Role", "RoleBinding"}:
            cluster.request("POST", collection(body, namespace), body)
    verb, group, resource = "watch", "argoproj.io", "workflows"
    wait_for_right(cluster, namespace, {"verb": verb, "group": group, "resource": resource, "namespace": namespace})
    return as_service_account(control_plane, namespace, folder)


def as_service_account(control_plane: ControlPlane, namespace: str, folder: Path) -> Program:
    control_plane.pod_files(namespace, "workflow-watcher", folder / "serviceaccount")
    token = (folder / "serviceaccount" / "token").read_text()
    return Program(control_plane.kubeconfig("workflow-watcher", namespace=namespace, token=token), folder)


def wait_for_right(cluster: Cluster, namespace: str, attributes: dict[str, str]) -> None:
    """Return when the authorizer, which reads bindings from a watch, knows the manifest's."""
    user = f"system:serviceaccount:{namespace}:workflow-watcher"
    review = {"spec": {"user": user, "resourceAttributes": attributes}}

    def allowed() -> bool:
        answer = cluster.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        return bool(answer["status"]["allowed"])

    wait_until(allowed, timedelta(seconds=30), f"{user} to be allowed {json.dumps(attributes)}")
