"""Recordings of a real API server: frames of a watch of Workflows, small and big, while they are being updated."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import urllib3

from tests.bed.cache import built_once, cache_folder
from tests.bed.cluster import WORKFLOWS, Cluster, workflows_path
from tests.bed.control_plane import ControlPlane

NAMESPACE, OBJECTS, WRITERS = "argo", 100, 8
TEMPLATES = 5
_BEGAN, _ENDED = "2026-01-01T00:00:00Z", "2026-01-01T00:01:40Z"


@dataclass(frozen=True)
class Corpus:
    """What is recorded: so many frames of Workflows with so many nodes."""

    name: str
    nodes: int
    frames: int

    def record(self) -> Path:
        """The file, a frame a line; recorded once."""
        made_by = hashlib.sha256(Path(__file__).read_bytes() + repr(self).encode()).hexdigest()[:12]
        return built_once(cache_folder() / f"corpus-{made_by}" / f"{self.name}.jsonl", self._record)

    def _record(self, target: Path) -> None:
        with tempfile.TemporaryDirectory() as folder, ControlPlane(Path(folder)) as plane, plane.cluster() as cluster:
            cluster.apply_crds()
            cluster.create_namespace(NAMESPACE)
            names = create_all(cluster, NAMESPACE, OBJECTS, self.nodes)
            version = cluster.list(limit=1)["metadata"]["resourceVersion"]
            with ThreadPoolExecutor(1) as pool:
                recorded = pool.submit(self._watch, plane, version, target)
                update_all(cluster, NAMESPACE, names, self.frames)
                recorded.result()

    def _watch(self, plane: ControlPlane, version: str, target: Path) -> None:
        answer = urllib3.PoolManager(ca_certs=str(plane.ca_file)).request(
            "GET",
            plane.url + WORKFLOWS,
            fields={"watch": "1", "resourceVersion": version},
            headers={"Authorization": f"Bearer {plane.token('admin')}"},
            preload_content=False,
        )
        with answer, target.open("wb") as file:
            file.writelines(islice(answer, self.frames))


def create_all(cluster: Cluster, namespace: str, objects: int, nodes: int) -> list[str]:
    """Create Workflows as they look while their controller runs them, 5 nodes are 6 KB, 40 are 30; their names."""
    names = [f"nightly-etl-{number:05}" for number in range(objects)]
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda name: cluster.request("POST", workflows_path(namespace), _workflow(name, nodes)), names))
    return names


def update_all(cluster: Cluster, namespace: str, names: Sequence[str], count: int) -> None:
    """Write so many statuses, of one Workflow after the other, as their controller does when a pod makes progress."""

    def update(number: int) -> None:
        status = {"message": f"update {number}", "progress": f"{number}/{number + 1}"}
        cluster.patch(namespace, names[number % len(names)], {"status": status})

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(update, range(count)))


def _workflow(name: str, nodes: int) -> dict[str, Any]:
    steps = [f"{name}-{hashlib.sha256(f'{name} {number}'.encode()).hexdigest()[:10]}" for number in range(nodes)]
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {
            "name": name,
            "annotations": {"workflows.argoproj.io/pod-name-format": "v2"},
            "labels": {
                "workflows.argoproj.io/completed": "false",
                "workflows.argoproj.io/phase": "Running",
                "team": "data",
            },
        },
        "spec": {
            "entrypoint": "main",
            "serviceAccountName": "etl",
            "templates": [_template(number) for number in range(TEMPLATES)],
        },
        "status": {
            "phase": "Running",
            "startedAt": _BEGAN,
            "finishedAt": None,
            "progress": f"0/{nodes}",
            "artifactRepositoryRef": {"artifactRepository": {}, "default": True},
            "conditions": [{"status": "True", "type": "PodRunning"}],
            "nodes": {step: _node(name, step, number) for number, step in enumerate(steps)},
        },
    }


def _template(number: int) -> dict[str, Any]:
    return {
        "name": f"step-{number}",
        "inputs": {"parameters": [{"name": "table"}]},
        "container": {
            "image": "registry.example/etl/loader:1.24.3",
            "command": ["python", "-m", "loader"],
            "args": ["--table", "{{inputs.parameters.table}}", "--since", "{{workflow.creationTimestamp}}", "--strict"],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        },
        "retryStrategy": {"limit": 2, "retryPolicy": "OnError"},
    }


def _node(name: str, step: str, number: int) -> dict[str, Any]:
    return {
        "id": step,
        "name": f"{name}.step-{number}",
        "displayName": f"step-{number}",
        "type": "Pod",
        "templateName": f"step-{number % TEMPLATES}",
        "templateScope": f"local/{name}",
        "boundaryID": name,
        "phase": "Succeeded",
        "startedAt": _BEGAN,
        "finishedAt": _ENDED,
        "estimatedDuration": 90,
        "progress": "1/1",
        "hostNodeName": "gke-batch-pool-1-7c2b",
        "inputs": {"parameters": [{"name": "table", "value": f"warehouse.sales_{number:03}"}]},
        "outputs": {
            "artifacts": [
                {"name": "main-logs", "gcs": {"bucket": "workflow-logs", "key": f"nightly/{name}/{step}/main.log"}}
            ],
            "exitCode": "0",
        },
        "resourcesDuration": {"cpu": 9, "memory": 90},
    }
