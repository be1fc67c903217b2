"""Tests of the real controller in the test bed: lives end as they do anywhere."""

from pathlib import Path

import pytest

from tests.bed import lives
from tests.bed.api import ClusterError
from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.bed.workflow_controller import WorkflowController


def test_lives_end_as_they_should(
    control_plane: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    """A DAG succeeds, what is terminated fails and can be retried; an invalid spec fails, a missing one is an error."""
    with WorkflowController(control_plane, namespace, tmp_path):
        for workflow in (lives.DAG, lives.RETRY, lives.INVALID, lives.NO_TEMPLATE):
            lives.create(cluster, namespace, workflow)
        lives.terminate(cluster, namespace, "retry")
        failed = lives.wait_for(cluster, namespace, "retry", lives.is_over)
        lives.retry(cluster, namespace, "retry")
        ended = {
            name: lives.wait_for(cluster, namespace, name, lives.is_over)["status"]["phase"]
            for name in ("dag", "retry", "invalid", "no-template")
        }

    assert failed["status"]["phase"] == "Failed"
    assert ended == {"dag": "Succeeded", "retry": "Succeeded", "invalid": "Failed", "no-template": "Error"}


def test_a_controller_that_cannot_start_says_why(control_plane: ControlPlane, tmp_path: Path) -> None:
    """A namespace that does not exist has no place for its settings."""
    with pytest.raises(ClusterError, match="nowhere"), WorkflowController(control_plane, "nowhere", tmp_path):
        pass
