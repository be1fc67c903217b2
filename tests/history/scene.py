"""Runs of the program under load, and what happens to a control plane meanwhile."""

import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from tests.bed.api import ClusterError
from tests.bed.cluster import WORKFLOW_CRD, Cluster, workflows_path
from tests.bed.control_plane import ControlPlane
from tests.bed.gcs import FakeGcsServer
from tests.bed.pubsub import Carried, PubSub, cloud_event
from tests.fakes.gcs_server import GcsServer
from tests.fakes.publisher_server import PublisherServer
from tests.history.truth import Message, stored
from tests.history.writers import Writers
from tests.program import Outcome, Program, Running
from tests.wire.cloud import BUCKET, CHECKPOINT, SINK, emulators

LOAD = 130.0
"""Writes per second that the writers aim at; what they reach is logged, not asserted."""
BETWEEN_RUNS = 3.0
"""Seconds without a run, while the writers go on."""
PATIENCE = timedelta(seconds=120)
EXPIRY = timedelta(seconds=240)
"""How long a version may stay watchable."""
GONE, TOO_MANY_REQUESTS = 410, 429

log = logging.getLogger(__name__)


class Place(Protocol):
    """A sink and a checkpoint."""

    options: Sequence[str]
    environment: Mapping[str, str]
    ordered: bool
    """Whether the versions of one object come in their order."""

    @property
    def messages(self) -> list[Message]:
        """What is stored, in the order of the sink."""


class Files:
    """Both in files."""

    def __init__(self, program: Program) -> None:
        self.sink = program.folder / "changes.jsonl"
        self.options: Sequence[str] = [f"--sink=file:{self.sink}", program.checkpoint]
        self.environment: Mapping[str, str] = {}
        self.ordered = True

    @property
    def messages(self) -> list[Message]:
        return stored(self.sink)


class GoogleCloud:
    """A topic with one subscription, and an object in a bucket."""

    def __init__(self, pubsub: PubSub, gcs: FakeGcsServer, name: str, *, ordering: int = 0) -> None:
        self.ordered = ordering > 0
        topic = pubsub.create_topic(name)
        self._subscription = pubsub.create_subscription(topic, ordered=self.ordered)
        self._pulled: list[Message] = []
        gcs.create_bucket(name)
        self.options: Sequence[str] = [
            f"--sink=pubsub://p/{name}" + (f"?ordering={ordering}" if ordering else ""),
            f"--checkpoint=gs://{name}/checkpoints/",
        ]
        self.environment: Mapping[str, str] = emulators(pubsub.address, gcs.url)

    @property
    def messages(self) -> list[Message]:
        self._pulled += map(_read, self._subscription.drain())
        return self._pulled


class SlowBroker:
    """Servers of ours, which show at once what is stored; with several requests under way at any moment."""

    def __init__(self, broker: PublisherServer, gcs: GcsServer) -> None:
        self._broker = broker
        self.ordered = True
        broker.latency = 0.05
        gcs.create_bucket(BUCKET)
        self.options: Sequence[str] = [f"--sink={SINK}", CHECKPOINT]
        self.environment: Mapping[str, str] = emulators(broker.address, gcs.url)

    @property
    def messages(self) -> list[Message]:
        return list(map(_read, self._broker.stored))


def _read(carried: Carried) -> Message:
    event = cloud_event(carried)
    return {**event.attributes, "data": json.loads(event.data)}


class Watched:
    """Runs of the program, one after the other, into one sink."""

    def __init__(self, program: Program, place: Place | None = None) -> None:
        self._program = program
        self._place = place or Files(program)
        self.outcomes: list[Outcome] = []

    @property
    def messages(self) -> list[Message]:
        """What the sink has stored."""
        return self._place.messages

    @property
    def starts(self) -> list[str]:
        """How each finished run started."""
        return [outcome.summary["start"] for outcome in self.outcomes]

    def start(self, window: str = "5s", *options: str) -> Running:
        """Start a run."""
        return self._program.start(
            *self._place.options, f"--window={window}", *options, environment=self._place.environment
        )

    def finish(self, running: Running) -> None:
        """Wait for a run, which must end well."""
        with running:
            outcome = running.finish()
        assert outcome.code == 0, outcome.stderr
        log.info("%s", outcome.summary["message"])
        self.outcomes.append(outcome)

    def run(self, window: str = "5s", *options: str) -> None:
        """One run, from start to end."""
        self.finish(self.start(window, *options))


@contextmanager
def under_load(
    cluster: Cluster,
    namespace: str,
    *,
    objects: int,
    seed: int,
    writes_per_second: float = LOAD,
    lifetime: tuple[float, float] | None = None,
) -> Iterator[Writers]:
    """Writers at work."""
    with Writers(
        cluster, namespace, objects=objects, writes_per_second=writes_per_second, seed=seed, lifetime=lifetime
    ) as writers:
        yield writers
        log.info("%d writes to %d objects, %.0f a second", writers.truth.writes, len(writers.truth.lives), writers.rate)


def restart(control_plane: ControlPlane, cluster: Cluster) -> None:
    """Expire every version that was ever given out."""
    control_plane.restart_api()


def change_the_crd(control_plane: ControlPlane, cluster: Cluster) -> None:
    """Change the CRD's spec, as an upgrade of Argo does."""
    column = {"name": f"C{random.randrange(10**9)}", "type": "string", "jsonPath": ".status.phase"}
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{WORKFLOW_CRD}"
    change = [{"op": "add", "path": "/spec/versions/0/additionalPrinterColumns/-", "value": column}]
    cluster.request("PATCH", path, change, content_type="application/json-patch+json")


def refused(cluster: Cluster, namespace: str, version: int) -> bool:
    """Whether the API server's history does not reach back to a version; takes a second where it does."""
    nothing = "metadata.name=nobody"  # else the whole history would come with the answer
    path = workflows_path(namespace)
    try:
        with cluster.watch(path, resourceVersion=version, timeoutSeconds=1, fieldSelector=nothing) as events:
            return any(frame["type"] == "ERROR" and frame["object"]["code"] == GONE for frame in events)
    except ClusterError as error:
        if error.status != TOO_MANY_REQUESTS:
            raise
        return False
