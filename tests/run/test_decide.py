"""Tests of where a run starts, and why: `job.run.resume`."""

from __future__ import annotations

import msgspec
import pytest

from job.change import Reason
from job.checkpoint import Checkpoint, Scope
from job.errors import ActionNeeded, CheckpointUnusable
from job.ports import Identity
from job.run import resume
from job.run.resume import Current

SCOPE = Scope("prod", "workflows.v1alpha1.argoproj.io", "argo", "", "stdout:")


def saved(version: int, listed: int = 0, identity: Identity | None = None) -> Checkpoint:
    return Checkpoint(SCOPE, identity or Identity(), version=version, listed=listed)


def current(version: int, definition: str | None = None) -> Current:
    return Current(Identity("cluster", definition), version)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cluster", "test"),
        ("resource", "cronworkflows.v1alpha1.argoproj.io"),
        ("namespace", ""),
        ("selector", "a=b"),
        ("sink", "file:/changes.jsonl"),
    ],
)
def test_r6_every_part_of_the_scope_counts(field: str, value: str) -> None:
    """A checkpoint of another scope is refused, and both values are named; the sink is a part of the scope."""
    other = msgspec.structs.replace(SCOPE, **{field: value})

    with pytest.raises(CheckpointUnusable) as refused:
        resume.check_scope(other, SCOPE)

    assert field in str(refused.value)
    nothing = "all namespaces" if field == "namespace" else "(none)"
    assert (value or nothing) in str(refused.value)
    assert (getattr(SCOPE, field) or nothing) in str(refused.value)


def test_r6_the_same_scope_is_accepted() -> None:
    """Equal scopes pass."""
    resume.check_scope(SCOPE, msgspec.structs.replace(SCOPE))


def test_r5_another_cluster_under_the_same_name_is_refused() -> None:
    """A different uid of kube-system is a different cluster: 78, naming both uids."""
    with pytest.raises(CheckpointUnusable, match=r"one.*other"):
        resume.check_cluster(Identity("one"), Identity("other"))


@pytest.mark.parametrize(("before", "now"), [(None, "one"), ("one", None), (None, None), ("one", "one")])
def test_r5_unknown_is_never_a_mismatch(before: str | None, now: str | None) -> None:
    """What cannot be read on one side proves nothing."""
    resume.check_cluster(Identity(before), Identity(now))


def test_r5_an_identity_is_adopted_when_it_is_first_seen_and_kept_while_it_cannot_be_read() -> None:
    """Each uid is the newest one that could be read."""
    assert resume.adopted(Identity("one", None), Identity(None, "crd")) == Identity("one", "crd")


@pytest.mark.parametrize(
    ("before", "now", "sure"),
    [
        (Identity("one", "crd"), Identity("one", None), True),
        (Identity(None, "crd"), Identity("one", "crd"), True),
        (Identity("one", None), Identity(None, "crd"), False),
        (Identity(), Identity(), False),
    ],
)
def test_r5_one_equal_uid_proves_the_cluster(before: Identity, now: Identity, sure: bool) -> None:
    """The cluster is proven by a uid that is known on both sides, and the same."""
    assert resume.proven(before, now) is sure


@pytest.mark.parametrize(
    ("known", "gone", "refused"), [(19, 19, False), (20, 10, False), (20, 11, True), (1000, 501, True), (0, 0, False)]
)
def test_r5_more_than_half_of_twenty_is_not_deleted_without_proof(known: int, gone: int, refused: bool) -> None:
    """While nothing proves the cluster, a person is asked before most of a grown inventory is told to be gone."""
    if refused:
        with pytest.raises(ActionNeeded, match=f"{gone} of {known}"):
            resume.check_mass_deletion(known, gone)
    else:
        resume.check_mass_deletion(known, gone)


def test_r1_a_version_behind_a_partial_listing_cannot_be_watched_from() -> None:
    """While `listed` is above the version, the history counts as lost without asking the server."""
    assert resume.history_lost(saved(5, listed=8), current(9)) is Reason.INTERRUPTED
    assert resume.history_lost(saved(8, listed=8), current(9)) is None
    assert resume.history_lost(saved(9, listed=8), current(9)) is None


def test_r1_no_listing_older_than_the_partial_one_is_compared() -> None:
    """A cluster that is behind `listed` is a rewound one, though it is past the version."""
    assert resume.history_lost(saved(5, listed=8), current(7)) is Reason.REWOUND


def test_r9_a_cluster_behind_the_saved_version_was_rewound() -> None:
    """A watch from a version of the future would be silent, so it is not tried."""
    assert resume.history_lost(saved(5), current(4)) is Reason.REWOUND
    assert resume.history_lost(saved(5), current(5)) is None


def test_r5_a_definition_that_was_created_anew_loses_the_history() -> None:
    """Another uid of the CustomResourceDefinition in the same cluster; unknown is no difference."""
    before = saved(5, identity=Identity("cluster", "old"))
    assert resume.history_lost(before, current(9, "new")) is Reason.RECREATED
    assert resume.history_lost(before, current(9, "old")) is None
    assert resume.history_lost(before, current(9)) is None


def test_versions_of_more_than_64_bits_are_compared_exactly() -> None:
    """KEP-5504 allows 128 bits."""
    assert resume.history_lost(saved(2**127 + 1), current(2**127)) is Reason.REWOUND
    assert resume.history_lost(saved(2**127), current(2**127 + 1)) is None
