"""Where a run starts, and why (pure)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from job.change import Reason
from job.checkpoint import Checkpoint, Scope
from job.errors import ActionNeeded, CheckpointUnusable
from job.ports import Identity

FEW = 20
"""Inventories below this size may be emptied without proof of the cluster's identity (R5)."""


@dataclass(frozen=True, slots=True)
class Current:
    """The cluster as the probe found it."""

    identity: Identity
    version: int


def differences(found: Scope, wanted: Scope) -> Iterator[str]:
    """What a checkpoint of another scope belongs to, and this run does not."""
    for name in Scope.__struct_fields__:
        theirs, ours = getattr(found, name), getattr(wanted, name)
        if theirs != ours:
            nothing = "all namespaces" if name == "namespace" else "(none)"
            yield f"it belongs to {name} {theirs or nothing}, and this run has {ours or nothing}"


def check_scope(found: Scope, wanted: Scope) -> None:
    """Refuse a checkpoint of another scope: its inventory would be told as this scope's own (R6)."""
    for difference in differences(found, wanted):
        message = (
            f"{difference}; "
            "use another --checkpoint for this scope, or remove that one to publish everything from the beginning"
        )
        raise CheckpointUnusable(message)


def check_cluster(saved: Identity, current: Identity) -> None:
    """Refuse a cluster that answers to the right name and is another one: all its objects would look deleted (R5)."""
    if saved.cluster and current.cluster and saved.cluster != current.cluster:
        message = (
            f"it was made with the cluster whose kube-system namespace has uid {saved.cluster}, and this cluster's has "
            f"{current.cluster}; use another --checkpoint or --cluster, or correct the context"
        )
        raise CheckpointUnusable(message)


def adopted(saved: Identity, current: Identity) -> Identity:
    """What is known of the cluster by now: what cannot be read at the moment stays as it was."""
    return Identity(current.cluster or saved.cluster, current.definition or saved.definition)


def history_lost(saved: Checkpoint, current: Current) -> Reason | None:
    """Why the saved version cannot be watched from, as far as that shows without asking; None: try it."""
    if current.version < max(saved.version, saved.listed):
        return Reason.REWOUND
    if saved.epoch and not saved.version and not saved.listed:
        return Reason.REWOUND  # noticed by an earlier run, and not listed yet
    if recreated(saved.identity, current.identity):
        return Reason.RECREATED
    if saved.listed > saved.version:
        return Reason.INTERRUPTED
    return None


def recreated(saved: Identity, current: Identity) -> bool:
    """Whether the CustomResourceDefinition is another one than it was."""
    known, found = saved.definition, current.definition
    return known is not None and found is not None and known != found


def proven(saved: Identity, current: Identity) -> bool:
    """Whether this is certainly the cluster of the checkpoint: one of the uids is known on both sides, and the same."""
    return any(
        known is not None and known == found
        for known, found in ((saved.cluster, current.cluster), (saved.definition, current.definition))
    )


def check_namespace(namespace: str, exists: bool | None) -> None:
    """Refuse a namespace that does not exist: that nothing is listed in it does not tell."""
    if exists is False:
        message = f"namespace {namespace} does not exist: correct --namespace, or create it"
        raise ActionNeeded(message)


def check_mass_deletion(known: int, gone: int) -> None:
    """Ask a person before telling that most objects are gone, if nothing proves that this is the same cluster (R5)."""
    if known >= FEW and gone * 2 > known:
        message = (
            f"{gone} of {known} known objects are missing, and the credentials may not read what would prove that this "
            "is still the same cluster: allow `get` on namespace kube-system, or remove the checkpoint if it is"
        )
        raise ActionNeeded(message)
