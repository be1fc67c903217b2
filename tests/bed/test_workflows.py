"""The Workflows that the bed builds are of the size that was asked for, and always the same."""

from tests.bed.workflows import compact_json, workflow


def test_size_is_exact() -> None:
    """A Workflow has exactly the size asked for, once that is more than the least."""
    sizes = [*range(1_000, 3_000), 100_000, 1_400_000]
    assert [len(compact_json(workflow("w", size_bytes=size))) for size in sizes] == sizes


def test_least_size() -> None:
    """A Workflow that cannot be as small as asked for is as small as can be."""
    assert workflow("w", size_bytes=10) == workflow("w")


def test_same_arguments_same_object() -> None:
    """Two Workflows built from the same arguments are equal, and those of another name are not."""
    assert workflow("w", size_bytes=5_000) == workflow("w", size_bytes=5_000)
    assert workflow("w")["status"] != workflow("v")["status"]


def test_new_workflow_has_no_status() -> None:
    """A Workflow without a phase is as its author submits it."""
    assert "status" not in workflow("w", phase="")
    assert workflow("w", phase="")["metadata"]["labels"] == {}


def test_finished_workflow_is_labelled() -> None:
    """A finished Workflow carries the controller's labels, with the author's beside them."""
    labels = workflow("w", phase="Failed", labels={"team": "a"})["metadata"]["labels"]
    assert labels == {"workflows.argoproj.io/phase": "Failed", "workflows.argoproj.io/completed": "true", "team": "a"}


def test_fields_replace_those_built() -> None:
    """Fields of spec and status given by the test win, and a nodeless status is filled all the same."""
    made = workflow("w", size_bytes=4_000, spec={"suspend": True}, status={"phase": "Odd", "nodes": {}})
    assert (made["spec"]["suspend"], made["status"]["phase"]) == (True, "Odd")
    assert len(compact_json(made)) == 4_000
