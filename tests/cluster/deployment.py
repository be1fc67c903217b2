"""cronjob.yaml in a namespace of its own, at the hands of an operator with kubectl; and what its runs left behind."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import urllib3

from job import checkpoint
from job.checkpoint import Checkpoint
from tests.bed import binaries
from tests.bed.api import Json
from tests.bed.gcs import FakeGcsServer
from tests.bed.image import Image
from tests.bed.node import Node
from tests.bed.pubsub import PubSub, cloud_event
from tests.bed.waiting import wait_until
from tests.history.truth import Message
from tests.manifest import FILLED_IN, MANIFEST
from tests.wire.told import id_of, ids

NAME = "workflow-watcher"
CLUSTER = "real"
BUCKET = "checkpoints"
# The schedule's minute, and a controller that looks every ten seconds.
A_TICK = timedelta(seconds=90)
A_RUN = timedelta(seconds=150)
_OWED_S = 58  # startingDeadlineSeconds
_SCHEDULED = "batch.kubernetes.io/cronjob-scheduled-timestamp"
COMPLETE = ("Complete", "CompletionsReached")
_ENDS = frozenset({"Complete", "Failed"})
OFTEN = timedelta(seconds=0.2)


@dataclass(frozen=True, slots=True)
class Ended:
    """A Job, and what it left behind; but for `is_over`, only of one that is."""

    job: Json
    pods: list[Json]
    log: str
    """Of all its pods, as they wrote it."""

    @property
    def name(self) -> str:
        return str(self.job["metadata"]["name"])

    @property
    def scheduled(self) -> datetime:
        """The minute that it is for."""
        return _time(self.job["metadata"]["annotations"][_SCHEDULED])

    @property
    def created(self) -> datetime:
        return _time(self.job["metadata"]["creationTimestamp"])

    @property
    def is_over(self) -> bool:
        return any(each["type"] in _ENDS for each in self.job["status"].get("conditions", []))

    @property
    def condition(self) -> Json:
        """The last word on it: type, reason and message."""
        return next(each for each in self.job["status"]["conditions"] if each["type"] in _ENDS)

    @property
    def verdict(self) -> tuple[str, str]:
        """Type and reason."""
        return self.condition["type"], self.condition["reason"]

    @property
    def finished(self) -> datetime:
        return _time(self.condition["lastTransitionTime"])

    @property
    def terminated(self) -> Json:
        """How the container of its only pod ended: exitCode, reason, message."""
        (pod,) = self.pods
        (status,) = pod["status"]["containerStatuses"]
        return dict(status["state"]["terminated"])

    @property
    def summary(self) -> Json:
        """The last line of the log."""
        return dict(json.loads(self.log.splitlines()[-1]))


class Logs:
    """What containers wrote, also of pods that are gone: a kubelet removes their files, of which these are links."""

    def __init__(self, pod_logs: Path, folder: Path) -> None:
        self._pod_logs = pod_logs
        self._folder = folder

    def of(self, pod: Json) -> str:
        """All that the pod's container has written; empty before its first word."""
        metadata = pod["metadata"]
        kept = self._folder / f"{metadata['uid']}.log"
        if not kept.exists():
            pod_folder = self._pod_logs / f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"
            with suppress(FileNotFoundError):
                kept.hardlink_to(pod_folder / "watcher" / "0.log")
        # TIME STREAM TAG LINE, where the tag of a line that is continued is P.
        # https://github.com/kubernetes/community/blob/master/contributors/design-proposals/node/kubelet-cri-logging.md
        entries = [entry.split(" ", 3) for entry in (kept.read_text() if kept.exists() else "").splitlines()]
        return "".join(text + ("" if tag == "P" else "\n") for _, _, tag, text in entries)


@dataclass(frozen=True, slots=True)
class Place:
    """A cluster, and what stands in for Google Cloud where its pods reach it."""

    node: Node
    image: Image
    pubsub: PubSub
    gcs: FakeGcsServer
    logs: Logs


class Deployment:
    """The manifest with its values, suspended; whoever wants a tick asks for it.

    A CronJob that is not suspended any more starts the minute that it missed last, if that is not longer ago than
    startingDeadlineSeconds.
    """

    def __init__(self, place: Place, namespace: str) -> None:
        self.namespace = namespace
        self.topic = place.pubsub.create_topic(namespace)
        self._subscription = place.pubsub.create_subscription(self.topic)
        self._place = place
        self._pods: dict[str, dict[str, Json]] = {}
        self._messages: list[Message] = []
        self._path = f"/apis/batch/v1/namespaces/{namespace}"
        self._kubeconfig = place.node.plane.kubeconfig(namespace=namespace)
        self._kubectl = [str(binaries.kubectl().path), "--kubeconfig", str(self._kubeconfig)]
        self.admin = place.node.plane.cluster()
        self.admin.create_namespace(namespace)
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self._merge(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": labels}})
        self._values = FILLED_IN | {
            "IMAGE_BY_DIGEST": place.image.pinned,
            "CLUSTER_NAME": CLUSTER,
            "SINK_URL": f"pubsub://p/{namespace}",
            "CHECKPOINT_URL": f"gs://{BUCKET}/workflow-watcher/",
            "suspend: false": "suspend: true",
        }
        self.apply()

    def apply(self, **environment: str) -> None:
        """Apply the manifest with its values, the addresses of the emulators, and further variables."""
        text = MANIFEST.read_text(encoding="utf-8")
        for word, value in self._values.items():
            assert text.count(word) == 1, word
            text = text.replace(word, value)
        self.kubectl("apply", "-f", "-", input_=text)
        emulators = {"PUBSUB_EMULATOR_HOST": self._place.pubsub.address, "STORAGE_EMULATOR_HOST": self._place.gcs.url}
        self.set_environment(**emulators, **environment)

    def set_environment(self, **environment: str) -> None:
        """Change variables of the runs to come."""
        self.kubectl("set", "env", f"cronjob/{NAME}", *(f"{name}={value}" for name, value in environment.items()))

    def change_job(self, **fields: object) -> None:
        """Change fields of the Jobs to come."""
        self._merge(f"{self._path}/cronjobs/{NAME}", {"spec": {"jobTemplate": {"spec": fields}}})

    def kubectl(self, *arguments: str, input_: str = "") -> str:
        """Run kubectl as the administrator, in this namespace, and return what it says."""
        done = subprocess.run([*self._kubectl, *arguments], input=input_, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
        return done.stdout

    @contextmanager
    def drained(self, node: str) -> Iterator[None]:
        """Drain a node, which takes as long as its pods take to end, and take it back after the block."""
        command = [*self._kubectl, "drain", node, "--delete-emptydir-data", "--force"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as drain:
            try:
                yield
            finally:
                said, _ = drain.communicate()
                self.kubectl("uncordon", node)
        assert drain.returncode == 0, said

    def shell(self, script: str) -> str:
        """Run what the manifest or a page tells people to type."""
        folder = binaries.kubectl().path.parent
        environment = os.environ | {"KUBECONFIG": str(self._kubeconfig), "PATH": f"{folder}:{os.environ['PATH']}"}
        command = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout

    @contextmanager
    def scheduled(self, *, owing: bool = True) -> Iterator[None]:
        """Let the schedule go on inside the block, with the tick that was missed last, or with none that is owed."""
        if not owing:
            wait_until(lambda: datetime.now(UTC).second >= _OWED_S, A_TICK, "the end of the minute", every=OFTEN)
        self._suspend(value=False)
        try:
            yield
        finally:
            self._suspend(value=True)

    @contextmanager
    def ticking(self) -> Iterator[str]:
        """Let the schedule start one Job, and yield its name as soon as it is there."""
        known = set(self.jobs())
        with self.scheduled():
            wait_until(lambda: bool(self.jobs() - known), A_TICK, "a Job of the schedule", every=OFTEN)
        (name,) = self.jobs() - known
        yield name

    def tick(self) -> Ended:
        """Let the schedule start one Job, and wait for its end."""
        with self.ticking() as name:
            return self.ended(name)

    def jobs(self) -> set[str]:
        """The names of the Jobs that are there."""
        return {job["metadata"]["name"] for job in self.admin.request("GET", f"{self._path}/jobs")["items"]}

    def ended(self, name: str) -> Ended:
        """Wait for the end of a Job."""
        wait_until(lambda: self.look_at(name).is_over, A_RUN, f"{name} to end", every=OFTEN)
        return self.look_at(name)

    def wait_for(self, answer: Json) -> None:
        """Wait until the message of this object of the API server's is in the queue."""
        wait_until(lambda: id_of(answer) in ids(self.messages()), A_RUN, f"{id_of(answer)} to be told")

    def messages(self) -> list[Message]:
        """All that the topic was given so far, in the order in which it gave it to a subscriber."""
        for received in self._subscription.drain():
            event = cloud_event(received)
            self._messages.append({**event.attributes, "data": json.loads(event.data)})
        return list(self._messages)

    @property
    def saved(self) -> Checkpoint:
        """The checkpoint as it is stored."""
        return checkpoint.decode(self._object("?alt=media").data)

    @property
    def generation(self) -> int:
        """That of the checkpoint."""
        return int(self._object("").json()["generation"])

    def _object(self, query: str) -> urllib3.BaseHTTPResponse:
        name = f"workflow-watcher/{CLUSTER}/{self.namespace}/workflows.argoproj.io.json.gz"
        return urllib3.request("GET", f"{self._place.gcs.url}/storage/v1/b/{BUCKET}/o/{quote(name, safe='')}{query}")

    def look_at(self, name: str) -> Ended:
        """What is there of a Job, with what was seen before of pods that are gone."""
        job = self.admin.request("GET", f"{self._path}/jobs/{name}")
        path, selector = f"/api/v1/namespaces/{self.namespace}/pods", {"labelSelector": f"job-name={name}"}
        pods = self._pods.setdefault(name, {})
        for pod in self.admin.request("GET", path, query=selector)["items"]:
            pods[pod["metadata"]["uid"]] = pod
        return Ended(job, list(pods.values()), "".join(self._place.logs.of(pod) for pod in pods.values()))

    def _suspend(self, *, value: bool) -> None:
        self._merge(f"{self._path}/cronjobs/{NAME}", {"spec": {"suspend": value}})

    def _merge(self, path: str, patch: Json) -> None:
        self.admin.request("PATCH", path, patch, content_type="application/merge-patch+json")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
