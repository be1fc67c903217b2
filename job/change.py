"""The frozen values that everything else talks about.

A resourceVersion is an `int`: versions of one resource are comparable integers of up to 128 bits (KEP-5504), 0 stands
for "none". They are never compared across resources or clusters. A difference says nothing of time, or of how much was
written, only how many versions there are to look at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec


class Kind(StrEnum):
    """What happened to an object, from the point of view of who reads the sink."""

    ADDED = "added"
    MODIFIED = "modified"
    DELETED = "deleted"


class Provenance(StrEnum):
    """How a change is known."""

    INITIAL = "initial"
    """It existed when the first run looked."""
    OBSERVED = "observed"
    """The watch showed it."""
    RECOVERED = "recovered"
    """The watch had lost it, and etcd's history still had it (R11)."""
    REPLAY = "replay"
    """It exists, and somebody has asked for all that does."""
    INFERRED = "inferred"
    """A listing differed from the inventory; what lay in between is unknown."""


class Reason(StrEnum):
    """Why the watch could not go on from a version, and something else had to take its place."""

    EXPIRED = "expired"
    """The API server refused to watch from the version (410, in any of its forms)."""
    SILENT = "silent"
    """The API server closed the watch twice without a frame, well before its end."""
    INTERRUPTED = "interrupted"
    """An earlier run stopped in the middle of a listing."""
    REWOUND = "rewound"
    """The cluster's versions went back: it was restored from an older state."""
    RECREATED = "recreated"
    """The CustomResourceDefinition was deleted and created again."""
    FORGOTTEN = "forgotten"
    """The inventory did not fit into the store, and could not be read back as it was."""
    DRIFTED = "drifted"
    """The inventory and the server's own past disagree: an event never reached the watch (kubernetes#123072)."""


RECOVERABLE = frozenset({Reason.EXPIRED, Reason.SILENT})
"""The watch's history is lost, and etcd's may still go on from the same version."""


UNKNOWN = frozenset({Reason.REWOUND, Reason.FORGOTTEN})
"""What was told before is no measure for what is missing."""


class Recovery(StrEnum):
    """How far etcd's history replaced that of the watch, where it was asked."""

    COMPLETE = "complete"
    """Every version was looked at."""
    SAMPLED = "sampled"
    """Some versions were looked at: objects that lived between two of them may be missing."""
    LATE = "late"
    """The time for it ran out."""
    COMPACTED = "compacted"
    """Etcd no longer had it."""
    REFUSED = "refused"
    """The API server does not give old versions: no right to them, or another answer than was asked for."""


class Missing(StrEnum):
    """What a gap may hide."""

    SHORT_LIVED = "short-lived"
    """Objects that were both created and deleted within fewer versions than the gap's spacing."""
    INTERMEDIATE = "intermediate"
    """Versions between the published ones, and objects that were both created and deleted inside the gap."""
    ALL = "all"
    """Anything: the history itself was replaced."""


class Resource(msgspec.Struct, frozen=True):
    """A resource as kubectl spells it: `plural.version.group`, the group empty for the core."""

    plural: str
    version: str
    group: str

    def __str__(self) -> str:
        return f"{self.plural}.{self.version}.{self.group}".rstrip(".")

    @property
    def api_version(self) -> str:
        """`group/version`, or the version alone for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def group_resource(self) -> str:
        """`plural.group`, as RBAC messages and CustomResourceDefinitions name it."""
        return f"{self.plural}.{self.group}".rstrip(".")


class Object(msgspec.Struct, frozen=True, gc=False):
    """One object at one version.

    `data` is its JSON byte for byte as the API server wrote it, less the server's bookkeeping (managedFields and the
    last-applied annotation); empty where only metadata were asked for.
    """

    uid: str
    namespace: str
    name: str
    version: int
    phase: str | None = None
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    data: bytes = b""

    @property
    def key(self) -> str:
        """`namespace/name`, the name alone for cluster-scoped objects. Versions of one key share a lane."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Known(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the sink has acknowledged of one uid."""

    namespace: str
    name: str
    version: int
    phase: str | None = None
    deleted: bool = False
    """A tombstone: the deletion was acknowledged, but the checkpoint's version has not passed it yet (R2)."""
    told: bool = True
    """False: a listing was about to tell of it, and nothing says yet that it did (R17)."""
    at: str = ""
    """When it entered the phase, as its status says; kept where only transitions are told."""


Inventory = Mapping[str, Known]
"""uid -> what is known of it."""


class Change(msgspec.Struct, frozen=True, gc=False):
    """One thing that happened to one object."""

    kind: Kind
    object: Object
    provenance: Provenance
    epoch: int = 0
    """How often the cluster was rewound before this change (R9)."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Versions in (start, end] of which something may never be told."""

    reason: Reason
    start: int
    end: int
    since: str
    """When `start` was last known to be current, RFC 3339; empty where nobody knows."""
    missing: Missing
    spacing: int = 0
    """A missing object has lived for fewer versions than that, where it can be told; else 0."""
    epoch: int = 0
