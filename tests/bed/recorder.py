"""Records what the API server tells of Workflows while the real controller works on them.

`python -m tests.bed.recorder` makes the recordings of the controller's lives again, under tests/recordings: a line for
each event, {"t": seconds since the start, "e": the event}, without managedFields.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bed import lives
from tests.bed.api import Json
from tests.bed.cluster import workflows_path
from tests.bed.control_plane import ControlPlane
from tests.bed.lives import Life
from tests.bed.workflow_controller import WorkflowController
from tests.bed.workflows import compact_json

_RECORDINGS = Path(__file__).parents[1] / "recordings"
_NAMESPACE = "argo"
_LAST = "the-recording-ends-here"
_NOBODYS = {"workflows.argoproj.io/controller-instanceid": "nobody"}
_LONGEST_S = 300
_LIVES: dict[str, tuple[Life, Mapping[str, str]]] = {
    "suspend_resume": (lives.resumed, {}),
    "invalid": (lives.invalid, {}),
    "without_template": (lives.without_template, {}),
    "ttl_zero": (lives.deleted, {}),
    "mutex": (lives.blocked, {}),
    "pod_fail": (lives.failed, {}),
    "pod_retry": (lives.flaky, {}),
    "manual_retry": (lives.retried, {}),
    "resubmit": (lives.resubmitted, {}),
    "suspend_dag": (lives.dag, {}),
    "compressed": (lives.large, lives.COMPRESSING),
}
"""The recordings by name, and the controller's environment for each."""


def recorded(plane: ControlPlane, namespace: str, life: Life) -> tuple[list[Json], Json]:
    """Let a Workflow live in a namespace; return the lines of the recording, and what became of it."""

    def live() -> Json:
        with plane.cluster() as admin:
            try:
                return life(plane, namespace)
            finally:
                # No controller touches it, and no event of the life comes after it.
                admin.create(namespace, _LAST, phase="", labels=_NOBODYS)

    with plane.cluster() as cluster, ThreadPoolExecutor(1) as others:
        version = cluster.list(namespace, limit=1)["metadata"]["resourceVersion"]
        with cluster.watch(workflows_path(namespace), resourceVersion=version, timeoutSeconds=_LONGEST_S) as watch:
            began = time.monotonic()
            future = others.submit(live)
            lines = []
            for event in watch:
                if event["object"]["metadata"]["name"] == _LAST:
                    break
                del event["object"]["metadata"]["managedFields"]
                lines.append({"t": round(time.monotonic() - began, 3), "e": event})
        cluster.delete(namespace, _LAST)
        return lines, future.result()


def main() -> int:
    """Write all the recordings and print the size of each."""
    with tempfile.TemporaryDirectory() as folder, ControlPlane(Path(folder)) as plane, plane.cluster() as cluster:
        cluster.apply_crds()
        cluster.create_namespace(_NAMESPACE)
        for name, (life, environment) in _LIVES.items():
            with WorkflowController(plane, _NAMESPACE, plane.folder, **environment):
                lines, _ = recorded(plane, _NAMESPACE, life)
            text = "".join(f"{compact_json(line)}\n" for line in lines)
            (_RECORDINGS / f"{name}.jsonl").write_text(text, encoding="utf-8")
            sys.stdout.write(f"{name}: {len(lines)} events, {len(text.encode())} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
