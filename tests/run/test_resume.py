"""Tests of where a run starts."""

from __future__ import annotations

from tests.bed.cluster import Cluster
from tests.program import Program


def test_a_second_run_tells_what_happened_in_between(program: Program, cluster: Cluster, namespace: str) -> None:
    """A resumed run publishes exactly the changes since the first one, as observed, without a gap."""
    cluster.create(namespace, "old")
    first = program.run("--window=3s")
    cluster.patch(namespace, "old", {"metadata": {"labels": {"a": "b"}}})
    cluster.create(namespace, "new")
    cluster.delete(namespace, "new")

    second = program.run("--window=3s")

    assert [(first.code, first.summary["start"]), (second.code, second.summary["start"])] == [
        (0, "first"),
        (0, "resumed"),
    ]
    assert [(message["type"], message["subject"], message["provenance"]) for message in second.messages] == [
        ("io.argoproj.workflows.modified", f"{namespace}/old", "observed"),
        ("io.argoproj.workflows.added", f"{namespace}/new", "observed"),
        ("io.argoproj.workflows.deleted", f"{namespace}/new", "observed"),
    ]
