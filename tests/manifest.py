"""cronjob.yaml, filled in, as the objects that it is; what it becomes in another shape; and an API server's opinion."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import urllib3
import yaml

from job.run.deadline import CATCH_UP, DRAIN, LISTING, SAVE
from job.settings import parse_duration, parse_window
from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.bed.waiting import wait_until
from tests.program import Program

Object = dict[str, Any]

ROOT = Path(__file__).parent.parent
MANIFEST = ROOT / "cronjob.yaml"
README = ROOT / "README.md"
FILLED_IN = {
    "GOOGLE_SERVICE_ACCOUNT": "watcher@some-project.iam.gserviceaccount.com",
    "IMAGE_BY_DIGEST": f"workflow-watcher@sha256:{'0' * 64}",
    "CLUSTER_NAME": "prod-eu",
    "SINK_URL": "pubsub://some-project/workflow-changes",
    "CHECKPOINT_URL": "gs://some-bucket/workflow-watcher/",
}
RBAC = "/apis/rbac.authorization.k8s.io/v1"
COLLECTIONS = {
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "Pod": "/api/v1/namespaces/{}/pods",
    "CronJob": "/apis/batch/v1/namespaces/{}/cronjobs",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "Role": RBAC + "/namespaces/{}/roles",
    "RoleBinding": RBAC + "/namespaces/{}/rolebindings",
    "ClusterRole": RBAC + "/clusterroles",
    "ClusterRoleBinding": RBAC + "/clusterrolebindings",
}

START = 20
"""Seconds that a pod may take until the program runs: scheduling, pulling the image, importing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server said to an object; nothing is kept of it."""

    status: int
    message: str
    warnings: list[str]


CREATED = Answer(201, "", [])


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


@contextmanager
def under_restricted(control_plane: ControlPlane, cluster: Cluster, namespace: str) -> Iterator[Trial]:
    """In a namespace that enforces the Pod Security Standard `restricted`, and warns of controllers against it."""
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    path, patch = f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": labels}}
    cluster.request("PATCH", path, patch, content_type="application/merge-patch+json")
    with urllib3.PoolManager(ca_certs=str(control_plane.ca_file)) as pool:
        yield Trial(control_plane, namespace, pool)


@dataclass(frozen=True, slots=True)
class Clocks:
    """The times of a CronJob, its Job, pod and program, in seconds."""

    period: int
    window: float
    """That of 0s is the time that the program gives itself to catch up."""
    recover: float
    deadline: int
    """activeDeadlineSeconds."""
    grace: int
    late: int
    """startingDeadlineSeconds."""

    @classmethod
    def of(cls, cron_job: Object) -> Self:
        spec, variables = cron_job["spec"], environment(cron_job)
        return cls(
            period=period_of(spec["schedule"]),
            window=parse_window(variables["WATCHER_WINDOW"]).total_seconds() or CATCH_UP,
            recover=parse_duration(variables["WATCHER_RECOVER"]).total_seconds(),
            deadline=spec["jobTemplate"]["spec"]["activeDeadlineSeconds"],
            grace=pod_spec(cron_job)["terminationGracePeriodSeconds"],
            late=spec["startingDeadlineSeconds"],
        )

    @property
    def longest(self) -> float:
        """What the program allows itself."""
        return self.window + self.recover + LISTING + DRAIN + SAVE

    @property
    def gone(self) -> int:
        """When the pod of a run that had to be killed is gone, counted from its tick."""
        return self.deadline + self.grace


@dataclass(frozen=True, slots=True)
class Shape:
    """A row of the README's table: what is changed in the manifest."""

    name: str
    fields: dict[str, Any]
    variables: dict[str, str]

    def objects(self) -> list[Object]:
        """The manifest in this shape."""
        bodies = objects()
        account, cron_job = bodies[0], bodies[1]
        spec: Object = cron_job["spec"]
        places: dict[str, Object] = {"activeDeadlineSeconds": spec["jobTemplate"]["spec"]}
        for field, value in self.fields.items():
            if "/" in field:
                account["metadata"]["annotations"] = {field: value}
            else:
                place = places.get(field, spec)
                assert field in place
                place[field] = value
        for variable in container(cron_job)["env"]:
            if variable["name"] in self.variables:
                variable["value"] = self.variables[variable["name"]]
        assert self.variables.items() <= environment(cron_job).items()
        return bodies

    @property
    def cron_job(self) -> Object:
        return self.objects()[1]


SHIPPED = Shape("as shipped", {}, {})


def shapes() -> list[Shape]:
    """The README's table."""
    (table,) = re.findall(r"^\| shape \|.*\n\|[-|]+\n((?:\|.*\n)+)", README.read_text(), re.MULTILINE)
    return [_shape(*[cell.strip() for cell in row.split("|")[1:-1]]) for row in table.splitlines()]


def _shape(name: str, fields: str, variables: str, _besides: str) -> Shape:
    quoted = dict(re.findall(r"`([\w./-]+): ([^`]+)`", fields))
    return Shape(
        name,
        {field: yaml.safe_load(value) for field, value in quoted.items()},
        dict(re.findall(r"`(WATCHER_\w+)=([^`]+)`", variables)),
    )


def period_of(cron: str) -> int:
    """How far apart a schedule's ticks are, of the three forms that are in use here."""
    every = re.fullmatch(r"(\*|0)(?:/(\d+))? \* \* \* \*", cron)
    assert every, cron
    return 3600 if every[1] == "0" else 60 * int(every[2] or 1)


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


def job() -> Object:
    spec: Object = one("CronJob")["spec"]["jobTemplate"]["spec"]
    return spec


def pod_spec(cron_job: Object) -> Object:
    spec: Object = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return spec


def pod(cron_job: Object) -> Object:
    """A pod as the Job's controller makes it."""
    template = copy.deepcopy(cron_job["spec"]["jobTemplate"]["spec"]["template"])
    metadata = {**template["metadata"], "generateName": "workflow-watcher-"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def container(cron_job: Object | None = None) -> Object:
    (found,) = pod_spec(cron_job or one("CronJob"))["containers"]
    return dict(found)


def environment(cron_job: Object | None = None) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in container(cron_job)["env"]}


def in_the_bed(program: Program, shape: Shape = SHIPPED) -> dict[str, str]:
    """The environment of a shape, with what the bed has in place of Google's services."""
    return environment(shape.cron_job) | {
        "WATCHER_SINK": "stdout:",
        "WATCHER_CHECKPOINT": f"file:{program.checkpoint_file}",
    }


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
