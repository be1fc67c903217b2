"""What a run does beside following a watch: a relist, the walk, and a large inventory."""

from __future__ import annotations

import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from job import checkpoint as codec
from tests.bed.cluster import Cluster, workflows_path
from tests.bed.control_plane import ControlPlane
from tests.benchmarks.corpus import create_all, update_all
from tests.benchmarks.processes import Took, run
from tests.benchmarks.replay import Replay
from tests.benchmarks.rounds import BUCKET, NAME, Bench
from tests.benchmarks.watchers import OTHERS, OURS, environment
from tests.fakes.gcs_server import GcsServer
from tests.fakes.relay import Relay

NAMESPACE, ACCOUNT = "argo", "watcher"
LISTED, LISTED_NODES, CHANGED = 10_000, 25, 100
WALKED, WALKED_NODES, WALKED_OBJECTS = 5_000, 5, 50
KNOWN = 100_000
SETTLED = 5
"""Seconds in which an API server that has just started is busy with itself."""
LONG_AGO = "2026-01-01T00:00:00Z"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Relist:
    """After an expiry, with 1 % changed; each less what the same process takes when there is nothing to do."""

    cpu: float
    bytes: int
    full_cpu: float
    """Of one list of everything, parsed with json."""
    full_bytes: int


@dataclass(frozen=True)
class Inventory:
    """A run that has nothing to do but its daily audit, less one that knows nothing."""

    cpu: float
    peak: int
    """The most bytes of memory, of all of it."""


class Real:
    """A real API server, our program as a pod of it, its checkpoint in Cloud Storage, and a sink that counts."""

    def __init__(self, plane: ControlPlane, cluster: Cluster, replay: Replay, gcs: GcsServer, folder: Path) -> None:
        self.plane, self.cluster, self.gcs, self._replay = plane, cluster, gcs, replay
        self._checkpoint = b""
        self._pod = folder / "pod"
        self._environment = plane.pod_files(NAMESPACE, ACCOUNT, self._pod)
        cluster.bind(f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}", NAMESPACE, ["get", "list", "watch"])

    def create(self, objects: int, nodes: int) -> list[str]:
        """Workflows, and a checkpoint that knows them; their names."""
        names = create_all(self.cluster, NAMESPACE, objects, nodes)
        self.ours()
        self._checkpoint = self.gcs.get(BUCKET, NAME) or b""
        return names

    def rewind(self) -> None:
        """Let the next run begin where the Workflows had just been created."""
        self.gcs.put(BUCKET, NAME, self._checkpoint)

    def restart(self) -> None:
        """Let the API server forget the history, and finish what it does after its start."""
        self.plane.restart_api()
        time.sleep(SETTLED)

    def ours(self, *options: str, server: str = "") -> Took:
        """One run of ours that catches up."""
        return self._run([*OURS.command(self._replay, 1), *options], server)

    def full_list(self, server: str = "", *, nothing: bool = False) -> Took:
        """A list of everything."""
        url = [] if nothing else [(server or self.plane.url) + workflows_path(NAMESPACE)]
        return self._run([sys.executable, str(OTHERS / "full_list.py"), *url], server)

    def _run(self, command: list[str], server: str) -> Took:
        address = urlsplit(server or self.plane.url)
        self._replay.begin(events=0)
        return run(
            command,
            {
                **environment(self._replay, self.gcs.url),
                **self._environment,
                "KUBERNETES_SERVICE_PORT": str(address.port),
                "WATCHER_ALL_NAMESPACES": "",
                "PEER_CA": str(self.plane.ca_file),
                "PEER_TOKEN": self.plane.token("admin"),
            },
            self._pod,
        )


@contextmanager
def real(corpus: Path) -> Iterator[Real]:
    """Everything that runs beside our program."""
    with ExitStack() as entered:
        folder = Path(entered.enter_context(tempfile.TemporaryDirectory()))
        gcs = entered.enter_context(GcsServer())
        gcs.create_bucket(BUCKET)
        replay = entered.enter_context(Replay(corpus, folder / "replay"))
        plane = entered.enter_context(ControlPlane(folder / "plane"))
        cluster = entered.enter_context(plane.cluster())
        cluster.apply_crds()
        cluster.create_namespace(NAMESPACE)
        yield Real(plane, cluster, replay, gcs, folder)


def relist(corpus: Path, rounds: int) -> Iterator[Relist]:
    """10,000 Workflows of 19 KB, of which 1 % changed before the history was lost."""
    with real(corpus) as place:
        names = place.create(LISTED, LISTED_NODES)
        quiet = statistics.median(place.ours().cpu for _ in range(rounds))
        nothing = statistics.median(place.full_list(nothing=True).cpu for _ in range(rounds))
        update_all(place.cluster, NAMESPACE, names, CHANGED)
        place.restart()
        for _ in range(rounds):
            place.rewind()
            with Relay(place.plane.url) as relay, Relay(place.plane.url) as full_relay:
                took = place.ours("--recover=0s", server=relay.url)
                full = place.full_list(full_relay.url)
            said = summary(took)
            assert (said["start"], said["published"]) == ("expired", {"modified": CHANGED, "gap": 1}), said
            assert int(full.stdout) == LISTED
            yield Relist(took.cpu - quiet, relay.received, full.cpu - nothing, full_relay.received)


def walk(corpus: Path, rounds: int) -> Iterator[float]:
    """5,000 versions of Workflows of 6 KB, after a restart of the API server: how many a second, without the start."""
    with real(corpus) as place:
        names = place.create(WALKED_OBJECTS, WALKED_NODES)
        quiet = statistics.median(place.ours().seconds for _ in range(rounds))
        update_all(place.cluster, NAMESPACE, names, WALKED)
        place.restart()
        for _ in range(rounds):
            place.rewind()
            took = place.ours("--recover=5m")
            said = summary(took)
            assert (said["recovery"], said["published"]) == ("complete", {"modified": WALKED}), said
            yield WALKED / (took.seconds - quiet)


def inventory(corpus: Path, rounds: int) -> Iterator[Inventory]:
    """100,000 known objects, all of them there, and the daily audit."""
    with Bench(corpus) as bench:
        quiet = statistics.median(bench.took(OURS, 0)[0].cpu for _ in range(rounds))
    with Bench(corpus, objects=KNOWN) as bench:
        bench.checkpoint = codec.encode(msgspec.structs.replace(codec.decode(bench.checkpoint), audited_at=LONG_AGO))
        for _ in range(rounds):
            took, _ = bench.took(OURS, 0)
            said = summary(took)
            assert (said["objects"], said["saved"], said["gaps"]) == (KNOWN, True, []), said
            yield Inventory(took.cpu - quiet, took.peak)


def summary(took: Took) -> dict[str, Any]:
    """What a run of ours said at its end."""
    said: dict[str, Any] = json.loads(took.stderr.splitlines()[-1])
    return said
