"""What the README and docs/deploy-gke.md tell people to type: it is typed here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from job import checkpoint as codec, wiring
from job.change import Reason
from job.checkpoint import SCHEMA
from job.errors import ExitCode
from job.settings import parse_address, parse_cluster, parse_window
from tests.bed import binaries
from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.fakes.access import nobody
from tests.manifest import (
    CREATED,
    FILLED_IN,
    README,
    ROOT,
    SHIPPED,
    Object,
    Shape,
    Trial,
    environment,
    in_the_bed,
    period_of,
    pod,
    shapes,
    wait_for_right,
)
from tests.program import Program
from tests.wire.told import id_of, ids

PAGE = ROOT / "docs" / "deploy-gke.md"
MONTH_HOURS, MONTH_DAYS = 720, 30
DIGEST = f"sha256:{'1' * 64}"
GCLOUD = f"""\
#!/bin/bash
if [[ -n ${{GCLOUD:-}} ]]; then
  answer=$("$GCLOUD" "$@" 2>&1 < /dev/null) && code=0 || code=$?
  printf '%s gcloud %s: %s\\n' $code "$*" "${{answer//[[:space:]]/ }}" >> "$ANSWERS"
fi
case "$*" in
  *"images describe"*) echo {DIGEST} ;;
  *projectNumber*) echo 123456789012 ;;
  "storage cp gs://"*) for last; do :; done; [[ $last == gs://* ]] || cp "$STORED" "$last" ;;
esac
"""
"""Answers what the page asks Google for; a checkpoint that is fetched is the file `STORED`. `GCLOUD` is asked first."""
DOCKER = "#!/bin/bash\n"
KUBECTL = """\
#!/bin/bash
case "$*" in
  "create namespace"* | *"https://"*) ;; # it is there, and so are the definitions
  wait* | logs*) ;;                      # for what controllers would do
  diff*) "$KUBECTL" "$@"; [[ $? -le 1 ]] ;;
  *) exec "$KUBECTL" "$@" ;;
esac
"""
"""The real one, but for what needs the internet or controllers, which the bed has not; a difference is no failure."""
REFUSAL = b'{"error": {"code": 403, "message": "refused in a test", "status": "PERMISSION_DENIED"}}'
APIS = (
    *("ARTIFACTREGISTRY", "CLOUDRESOURCEMANAGER", "CONTAINER", "IAM", "LOGGING", "MONITORING", "PUBSUB"),
    *("SERVICEUSAGE", "STORAGE"),
)


class Shell:
    """Bash in a folder of its own, beside the manifest, with `kubectl`, and stand-ins for what is not here."""

    def __init__(self, control_plane: ControlPlane, namespace: str, folder: Path) -> None:
        self.folder, self._namespace = folder / "shell", namespace
        programs = folder / "bin"
        for each in (self.folder, programs):
            each.mkdir()
        for name, script in {"gcloud": GCLOUD, "docker": DOCKER, "kubectl": KUBECTL}.items():
            (programs / name).write_text(script)
            (programs / name).chmod(0o755)
        (self.folder / "cronjob.yaml").write_bytes((ROOT / "cronjob.yaml").read_bytes())
        self.stored = folder / "stored.json.gz"
        self._answers = folder / "answers"
        self.environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "KUBECTL": str(binaries.kubectl().path),
            "KUBECONFIG": str(control_plane.kubeconfig(namespace="default")),
            "STORED": str(self.stored),
            "ANSWERS": str(self._answers),
        }

    @property
    def answers(self) -> list[str]:
        """What `GCLOUD` made of each command: its exit code, the command, and what it said."""
        return self._answers.read_text().splitlines()

    def type(self, *blocks: str) -> str:
        """Run blocks of a page, in the test's namespace, up to the first command that fails."""
        script = "\n".join(["set -euo pipefail", *blocks])
        script = re.sub(r"(-n |NAMESPACE=|=|//)argo\b(?!\.)", rf"\g<1>{self._namespace}", script)
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def manifest(self, name: str) -> list[Object]:
        """A manifest that the commands have made."""
        return list(yaml.safe_load_all((self.folder / name).read_text()))


@pytest.fixture
def shell(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Shell:
    return Shell(control_plane, namespace, tmp_path)


class Refusing(BaseHTTPRequestHandler):
    """Google, to somebody without any right."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(403)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(REFUSAL)))
        self.end_headers()
        self.wfile.write(REFUSAL)

    do_DELETE = do_PATCH = do_POST = do_PUT = do_GET  # noqa: N815 - as the server looks for them

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture
def gcloud(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment for a real `gcloud`, with a configuration of its own, that reaches nobody but who refuses all."""
    program = shutil.which("gcloud")
    if program is None:
        pytest.skip("this machine has no gcloud")
    token = tmp_path / "token"
    token.write_text("nobody's")
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {
            "GCLOUD": program,
            "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(token),
            "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
            "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "true",
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
            "DOCKER_CONFIG": str(tmp_path / "docker"),
            **{f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{api}": f"http://127.0.0.1:{server.server_port}/" for api in APIS},
        }
        server.shutdown()


class TestShapes:
    """The README's table of other shapes."""

    def test_the_table_has_what_people_ask_for(self) -> None:
        """Windows, other schedules, all namespaces, SQS and a ConfigMap are there, and each changes something."""
        found = shapes()

        assert {tuple(shape.variables) for shape in found} == {
            (),
            ("WATCHER_WINDOW",),
            ("WATCHER_ALL_NAMESPACES",),
            ("WATCHER_SINK",),
            ("WATCHER_CHECKPOINT",),
        }
        assert all(shape.fields or shape.variables for shape in found)
        assert all(shape.objects() != SHIPPED.objects() for shape in found)

    @pytest.mark.parametrize("shape", shapes(), ids=lambda shape: shape.name)
    def test_the_api_server_accepts_it(self, shape: Shape, trial: Trial) -> None:
        """In each shape all objects and the pod are accepted, where `restricted` is enforced."""
        answers = [trial.create(body) for body in (*shape.objects(), pod(shape.cron_job))]

        assert answers == [CREATED] * 6

    @pytest.mark.parametrize("shape", shapes(), ids=lambda shape: shape.name)
    def test_the_program_reads_it(self, shape: Shape) -> None:
        """In each shape the program's own parsers accept the values."""
        values = environment(shape.cron_job)

        assert parse_window(values["WATCHER_WINDOW"]).total_seconds() >= 0
        assert parse_cluster(values["WATCHER_CLUSTER"])
        assert wiring.sink(parse_address(values["WATCHER_SINK"], "sink", wiring.SINKS), nobody())
        assert wiring.store(parse_address(values["WATCHER_CHECKPOINT"], "checkpoint", wiring.STORES), nobody())

    def test_what_is_measured_can_be_had(self) -> None:
        """Every schedule and window of the README's measurements is the shipped one, or one of the shapes."""
        measured = re.findall(r"^\| `(.*)`(?:, as shipped)? \| `(\d+s)` \|", README.read_text(), re.MULTILINE)
        offered = {
            (shape.cron_job["spec"]["schedule"], environment(shape.cron_job)["WATCHER_WINDOW"])
            for shape in (SHIPPED, *shapes())
        }

        assert len(measured) == 5
        assert set(measured) <= offered

    def test_all_namespaces(
        self, deployed: Program, shell: Shell, cluster: Cluster, namespace: str, request: pytest.FixtureRequest
    ) -> None:
        """With the README's ClusterRole the job sees all namespaces, and nothing else is needed."""
        created = cluster.create(namespace, "a")
        request.addfinalizer(lambda: shell.type("kubectl delete clusterrole,clusterrolebinding workflow-watcher"))

        shell.type(block(README, "kubectl create clusterrole "))
        wait_for_right(cluster, namespace, {"verb": "watch", "group": "argoproj.io", "resource": "workflows"})
        outcome = deployed.run(environment=in_the_bed(deployed, shape_called("all namespaces")))

        assert outcome.code == 0, outcome.stderr
        assert id_of(created) in ids(outcome.messages)
        assert deployed.saved.scope.namespace == ""

    def test_the_position_in_a_config_map(
        self, deployed: Program, shell: Shell, cluster: Cluster, namespace: str
    ) -> None:
        """With the README's ConfigMap and Role the second run resumes from the first one's position."""
        cluster.create(namespace, "a")
        variables = in_the_bed(deployed, shape_called("the position in a ConfigMap"))
        variables["WATCHER_CHECKPOINT"] = f"configmap://{namespace}/workflow-watcher"

        shell.type(block(README, "kubectl create configmap "))
        wait_for_right(cluster, namespace, right_to_the_config_map(namespace))
        starts = [deployed.run(environment=variables).summary["start"] for _ in range(2)]

        assert starts == ["first", "resumed"]


class TestPage:
    """docs/deploy-gke.md."""

    def test_every_command_works_in_its_order(
        self, deployed: Program, shell: Shell, cluster: Cluster, namespace: str
    ) -> None:
        """Typed from top to bottom, all succeed; what was moved to a ConfigMap is resumed, and comes back as it was."""
        cluster.create(namespace, "a")
        variables = in_the_bed(deployed) | {"WATCHER_CLUSTER": "prod"}
        assert deployed.run(environment=variables).code == 0
        shell.stored.write_bytes(deployed.checkpoint_file.read_bytes())
        pages = blocks(PAGE)
        (moved,) = [number for number, each in enumerate(pages) if "kubectl create configmap" in each]

        shell.type(*pages[: moved + 1])
        manifest, in_the_config_map = shell.manifest("workflow-watcher.yaml"), shell.manifest("moved.yaml")
        wait_for_right(cluster, namespace, right_to_the_config_map(namespace))
        url = environment(in_the_config_map[1])["WATCHER_CHECKPOINT"]
        outcome = deployed.run(environment=variables | {"WATCHER_CHECKPOINT": url})
        shell.type(pages[0], *(each for each in pages[moved:] if "kubectl create configmap" not in each))

        assert (outcome.code, outcome.summary["start"]) == (0, "resumed"), outcome.stderr
        assert codec.decode((shell.folder / "back.json.gz").read_bytes()).run_id == outcome.summary["run_id"]
        assert url == f"configmap://{namespace}/workflow-watcher"
        assert [one for token in FILLED_IN for one in manifest if token in str(one)] == []
        assert manifest[1] != in_the_config_map[1]
        assert environment(manifest[1])["WATCHER_CHECKPOINT"] == "gs://my-project-checkpoints/workflow-watcher/"
        assert DIGEST in str(manifest[1])

    @pytest.mark.long
    def test_gcloud_knows_every_command(self, shell: Shell, gcloud: dict[str, str]) -> None:
        """A real gcloud understands each of its commands on the page, up to the answer of somebody who refuses all."""
        shell.stored.write_bytes(b"some bytes")
        shell.environment |= gcloud

        shell.type(*blocks(PAGE), *re.findall(r"`(gcloud [^`]+)`", PAGE.read_text()))
        local = [answer for answer in shell.answers if answer.startswith("0 ")]

        assert [answer.split(":")[0] for answer in local] == [
            "0 gcloud config set project my-project",
            "0 gcloud auth configure-docker europe-west1-docker.pkg.dev",
        ]
        assert len(shell.answers) > 40
        assert [answer for answer in shell.answers if answer not in local and "refused in a test" not in answer] == []

    def test_the_suspended_manifest_starts_nothing(self, deployed: Program, shell: Shell, cluster: Cluster) -> None:
        """What is applied first has the schedule off, doctor's Job has its command, and what is applied later is on."""
        pages = blocks(PAGE)
        off = next(number for number, each in enumerate(pages) if each.startswith("sed 's/suspend"))
        on = next(number for number, each in enumerate(pages) if each.startswith("kubectl apply -n $NAMESPACE -f work"))
        look = "kubectl get cronjob -n $NAMESPACE workflow-watcher -o jsonpath='{.spec.suspend}'"
        job = "kubectl get job -n $NAMESPACE doctor -o jsonpath='{.spec.template.spec.containers[0].env}'"

        first = shell.type(*pages[: off + 1], look)
        doctor = shell.type(pages[0], pages[off + 1], job)
        last = shell.type(pages[0], *pages[off + 2 : on + 1], look)

        assert first.endswith("true")
        assert '{"name":"WATCHER_COMMAND","value":"doctor"}' in doctor
        assert last.endswith("false")

    def test_the_commands_of_the_manifest_work(self, deployed: Program, shell: Shell, namespace: str) -> None:
        """What its comments propose makes Jobs with other variables, and another deadline for a backfill."""
        lines = re.findall(r"^# {3,}(kubectl.*)$", (ROOT / "cronjob.yaml").read_text(), re.MULTILINE)
        typed = "\n".join(lines).replace("-n NAMESPACE", "-n $NAMESPACE")
        look = "kubectl get job -n argo {} -o jsonpath='{{.spec.activeDeadlineSeconds}} {{..env}}'"

        shell.type(blocks(PAGE)[0], *filling(), typed)

        assert re.search(r'78 .*"WATCHER_WINDOW","value":"10s"', shell.type(look.format("by-hand")))
        assert re.search(r'3600 .*"WATCHER_COMMAND","value":"backfill"', shell.type(look.format("backfill")))

    def test_the_costs_are_what_is_computed(self) -> None:
        """Each row is the README's hours, the pod's requests, and the page's prices."""
        text = PAGE.read_text()
        cpu, memory, writes, reads = (float(price) for price in re.findall(r"\*\*\$([\d.]+)\*\*", text))
        an_hour = 0.05 * cpu + 128 / 1024 * memory
        rows = re.findall(
            r"^\| (`.*) \| `(.*)` \| ([\d.]+) \| ([\d.]+) \| (\d) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE
        )
        always = f"| {MONTH_HOURS} | {MONTH_HOURS * an_hour:.2f} |"

        assert [(schedule, window, float(hours)) for schedule, window, hours, *_ in rows] == measured_hours()
        for schedule, _, hours, pod_cost, each, storage, both in rows:
            runs = MONTH_HOURS * 3600 / period_of(schedule.split("`")[1])
            pods, objects = float(hours) * an_hour, runs * (int(each) * writes + reads) / 1000
            assert [pod_cost, storage, both] == [f"{pods:.2f}", f"{objects:.2f}", f"{pods + objects:.2f}"]
        assert always in text

    def test_every_end_of_a_run_is_there(self) -> None:
        """Each exit code and each reason of a gap has its row, and the checkpoint's schema is the one that is told."""
        text = PAGE.read_text()

        assert [code for code in ExitCode if not re.search(rf"^\| {int(code)} \|", text, re.MULTILINE)] == []
        assert [reason for reason in Reason if f"| `{reason}` |" not in text] == []
        assert f"all versions so far have schema {SCHEMA}." in text


def blocks(page: Path) -> list[str]:
    """What a page shows to be typed."""
    return re.findall(r"^```console\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def block(page: Path, begins: str) -> str:
    (found,) = [each for each in blocks(page) if each.startswith(begins)]
    return found


def filling() -> list[str]:
    """The page's commands that fill the manifest in, and apply it with its schedule off."""
    found = blocks(PAGE)
    first = next(number for number, each in enumerate(found) if each.startswith("sed -e "))
    return ["DIGEST=sha256:" + "1" * 64, *found[first : first + 2]]


def shape_called(name: str) -> Shape:
    (shape,) = [each for each in shapes() if each.name == name]
    return shape


def right_to_the_config_map(namespace: str) -> dict[str, str]:
    return {"verb": "patch", "resource": "configmaps", "name": "workflow-watcher", "namespace": namespace}


def measured_hours() -> list[tuple[str, str, float]]:
    """Schedule, window, and hours a month, as the README has measured them for a day."""
    rows = re.findall(r"^\| (`.*) \| `(.*)` \| (?:less than )?([\d.]+) (h|min) \|", README.read_text(), re.MULTILINE)
    hours = {"h": 1.0, "min": 1 / 60}
    return [
        (schedule, window, round(float(number) * hours[unit] * MONTH_DAYS, 1))
        for schedule, window, number, unit in rows
    ]
