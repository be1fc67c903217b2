"""Tests of cronjob.yaml: what the API server, the clocks and the program make of it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import IPv4Network
from typing import Any

import pytest
import typer
import yaml
from typer.core import TyperGroup

from job import wiring
from job.checkpoint import Scope
from job.cli import app
from job.errors import ExitCode, UsageError
from job.logs import LogFormat
from job.payload import Payload
from job.ports import Identity
from job.run.deadline import DRAIN, SAVE
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
from tests.bed import binaries
from tests.bed.cluster import Cluster
from tests.manifest import (
    CREATED,
    FILLED_IN,
    MANIFEST,
    SHIPPED,
    START,
    Clocks,
    Object,
    Shape,
    Trial,
    backfill_job,
    collection,
    container,
    environment,
    in_the_bed,
    job,
    objects,
    one,
    optional_objects,
    pod,
    pod_spec,
    shapes,
    started_by,
    wait_for_right,
)
from tests.program import Program
from tests.wire.told import id_of, ids

NOT_IN_A_POD = {"WATCHER_KUBECONFIG", "WATCHER_CONTEXT"}
SLACK = 10
"""Seconds between what the program promises and what Kubernetes enforces."""
UNSCORED = {
    "container-cpu-requests-equal-limits": "a limit for the CPU would throttle the start, which the window pays for",
    "container-image-pull-policy": "what a digest names cannot change: a registry that is away would cost a run",
    "container-memory-requests-equal-limits": "the request is what runs take, the limit what the largest may take",
    "container-resource-requests-equal-limits": "the two above",
}
"""What kube-score asks for and does not get, and why."""


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

        assert answers == [CREATED] * 5

    def test_the_optional_objects_are_accepted(self, trial: Trial) -> None:
        """What is commented out is as valid as the rest."""
        bodies = optional_objects(trial.namespace)

        assert [body["kind"] for body in bodies] == ["ClusterRole", "ClusterRoleBinding"]
        assert [trial.create(body) for body in bodies] == [CREATED] * 2

    @pytest.mark.parametrize(("kind", "field"), [("CronJob", "startingDeadlineSecond"), ("NetworkPolicy", "egres")])
    def test_a_misspelt_field_would_be_refused(self, trial: Trial, kind: str, field: str) -> None:
        """The check above finds a field that does not exist."""
        body = one(kind)
        body["spec"][field] = []

        answer = trial.create(body)

        assert answer.status == 400
        assert f'unknown field "spec.{field}"' in answer.message

    def test_the_pod_is_admitted(self, trial: Trial) -> None:
        """The pod that a Job would create is admitted where `restricted` is enforced."""
        assert trial.create(pod(one("CronJob"))) == CREATED

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


@pytest.mark.parametrize("shape", [SHIPPED, *shapes()], ids=lambda shape: shape.name)
class TestTime:
    """The clocks of CronJob, Job, pod and program, as shipped and in each shape of the README's table."""

    def test_a_run_may_take_the_time_it_promises(self, shape: Shape) -> None:
        """The Job is killed only after a slow start and the longest run that the program allows itself."""
        clocks = Clocks.of(shape.cron_job)

        assert clocks.deadline == clocks.longest + START

    def test_a_killed_run_may_save(self, shape: Shape) -> None:
        """The grace after SIGTERM is enough for the drain and the save."""
        assert Clocks.of(shape.cron_job).grace >= DRAIN + SAVE + SLACK

    def test_no_tick_is_lost_to_the_run_before(self, shape: Shape) -> None:
        """A window ends before the next tick; after a run that was killed with all its grace, another starts, late."""
        clocks = Clocks.of(shape.cron_job)
        late = clocks.gone % clocks.period if clocks.gone > clocks.period else 0

        assert clocks.window < clocks.period
        assert late + SLACK <= clocks.late

    def test_never_more_than_one_run_is_owed(self, shape: Shape) -> None:
        """Late ticks do not pile up; and the controller, which looks every ten seconds, cannot miss one."""
        clocks = Clocks.of(shape.cron_job)

        assert 10 <= clocks.late < clocks.period
        assert shape.cron_job["spec"]["concurrencyPolicy"] == "Forbid"


def test_a_minute_that_had_to_be_killed_delays_one_other() -> None:
    """As shipped, a run is gone before the second tick after its own."""
    clocks = Clocks.of(one("CronJob"))

    assert clocks.period == 60
    assert clocks.gone < 2 * clocks.period


def test_what_is_over_goes_away() -> None:
    """Jobs that are done leave by number and by age."""
    spec = one("CronJob")["spec"]

    assert 0 < spec["successfulJobsHistoryLimit"] <= 5
    assert 0 < spec["failedJobsHistoryLimit"] <= 5
    assert job()["ttlSecondsAfterFinished"] > 0


def test_the_schedule_is_on() -> None:
    """Who applies the file as it is starts the schedule; the word that suspends it stands there once, for sed."""
    assert one("CronJob")["spec"]["suspend"] is False
    assert MANIFEST.read_text().count("suspend: false") == 1


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
        kinds = ["ServiceAccount", "CronJob", "Role", "RoleBinding", "NetworkPolicy"]

        assert [body["kind"] for body in objects()] == kinds
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

        outcome = deployed.run(environment=in_the_bed(deployed))

        assert (outcome.code, ids(outcome.messages)) == (0, [id_of(created)]), outcome.stderr
        assert deployed.saved.scope == Scope(FILLED_IN["CLUSTER_NAME"], resource, namespace, "", "stdout:")
        assert deployed.saved.identity == Identity(None, None)

    def test_the_role_ends_with_the_namespace(self, deployed: Program) -> None:
        """The manifest's rights do not reach beyond its namespace."""
        everywhere = in_the_bed(deployed) | {"WATCHER_ALL_NAMESPACES": "true"}

        outcome = deployed.run(environment=everywhere)

        assert outcome.code == 78
        assert "workflows.argoproj.io" in outcome.summary["message"]

    def test_the_optional_rights_prove_the_cluster(self, identified: Program) -> None:
        """With what is commented out, the checkpoint knows which cluster it is of, and which definition."""
        outcome = identified.run(environment=in_the_bed(identified))

        assert outcome.code == 0
        assert None not in (identified.saved.identity.cluster, identified.saved.identity.definition)


class TestNetwork:
    """With whom the pod may speak."""

    def test_the_policy_is_about_the_pods(self) -> None:
        """It selects what the CronJob starts, and every other object has the same label."""
        labels = one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
        template = one("CronJob")["spec"]["jobTemplate"]

        assert labels.items() <= pod(one("CronJob"))["metadata"]["labels"].items()
        assert template["metadata"]["labels"] == labels
        assert [body["metadata"]["labels"] for body in objects()] == [labels] * 5

    def test_nobody_may_call(self) -> None:
        """Both directions are restricted, and of those who come in nobody is let in."""
        spec = one("NetworkPolicy")["spec"]

        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert "ingress" not in spec

    def test_a_run_reaches_what_it_needs(self) -> None:
        """Names, HTTPS and the API server are open to all addresses, the metadata server's ports to its two alone."""
        assert reachable() == {
            ("0.0.0.0/0", "UDP", 53),
            ("0.0.0.0/0", "TCP", 53),
            ("0.0.0.0/0", "TCP", 443),
            ("0.0.0.0/0", "TCP", 6443),
            ("169.254.169.254/32", "TCP", 80),
            ("169.254.169.252/32", "TCP", 988),
        }
        assert all(IPv4Network(network) for network, *_ in reachable())


class TestScore:
    """What kube-score, a linter of manifests, makes of it."""

    def test_nothing_is_left_to_improve_without_a_reason(self) -> None:
        """All checks pass, the optional ones too, but for those that have a reason here."""
        assert scored([*objects(), backfill_job()]) == set(UNSCORED)

    @pytest.mark.parametrize(
        ("kind", "check"),
        [("NetworkPolicy", "pod-networkpolicy"), ("CronJob", "networkpolicy-targets-pod")],
    )
    def test_what_is_missing_would_be_found(self, kind: str, check: str) -> None:
        """The check above finds a manifest that lacks an object."""
        assert check in scored([body for body in objects() if body["kind"] != kind])

    def test_a_pod_without_limits_would_be_found(self) -> None:
        """The check above finds what belongs into a container and is not there."""
        bodies = objects()
        (found,) = pod_spec(bodies[1])["containers"]
        del found["resources"]["limits"]

        assert {"container-resources", "container-ephemeral-storage-request-and-limit"} <= scored(bodies)


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

        assert accepted == CREATED
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


def reachable() -> set[tuple[str, str, int]]:
    """What the policy allows: networks, protocols and ports."""
    return {
        (peer["ipBlock"]["cidr"], port["protocol"], port["port"])
        for rule in one("NetworkPolicy")["spec"]["egress"]
        for peer in rule.get("to", [{"ipBlock": {"cidr": "0.0.0.0/0"}}])
        for port in rule["ports"]
    }


def scored(bodies: list[Object]) -> set[str]:
    """The checks of kube-score that something in the manifest does not pass."""
    # The right grade for the CPU's limit would be that for the memory's, which this leaves on.
    options = ["--all-default-optional", "--ignore-container-cpu-limit", "--kubernetes-version=v1.31"]
    answer = subprocess.run(
        [str(binaries.kube_score().path), "score", "--output-format=json", *options, "-"],
        input=yaml.safe_dump_all(bodies),
        capture_output=True,
        text=True,
        check=False,  # 1 is the answer that something is found
    )
    passed = 10
    return {
        check["check"]["id"]
        for body in json.loads(answer.stdout)
        for check in body["checks"]
        if not check["skipped"] and check["grade"] < passed
    }


def commands() -> dict[str, Any]:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return dict(group.commands)


def options_of(command: str) -> set[str]:
    return {option.envvar for option in commands()[command].params if isinstance(option.envvar, str)}
