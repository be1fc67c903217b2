"""What a run did, in one line: for a person, a log, and the termination message of a pod."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from job.change import RECOVERABLE, Reason, Recovery
from job.errors import ExitCode, WatcherError

FIRST, SKIPPED, PINNED, RESUMED = "first", "skipped", "pinned", "resumed"


@dataclass(slots=True)
class Summary:
    """Filled in while the run goes on; complete, and true, wherever the run ends."""

    run_id: str
    started_at: str
    checkpoint: str
    start: str = ""
    """`resumed`, `first`, `skipped` (first, unpublished), `pinned` (--resource-version), or why history was lost."""
    recovery: str = ""
    """How far history was read back, where the saved version had expired."""
    age_seconds: float | None = None
    """How old the saved version was: since it was last known to be the present."""
    version_from: int = 0
    version_to: int = 0
    objects: int = 0
    """In the inventory at the end."""
    published: Mapping[str, int] = field(default_factory=dict)
    provenance: Mapping[str, int] = field(default_factory=dict)
    gaps: list[str] = field(default_factory=list)
    listings: int = 0
    watches: int = 0
    saves: int = 0
    saved: bool = False
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    """What a careful reader would want to know besides."""
    error: WatcherError | None = None

    @property
    def exit_code(self) -> ExitCode:
        """What the process will say."""
        return self.error.exit_code if self.error else ExitCode.DONE

    def fields(self) -> dict[str, object]:
        """The fields of the summary line."""
        return {
            "run_id": self.run_id,
            "exit_code": int(self.exit_code),
            "start": self.start or None,
            "recovery": self.recovery or None,
            "age_seconds": self.age_seconds,
            "seconds": round(self.seconds, 3),
            "from": str(self.version_from),
            "to": str(self.version_to),
            "published": dict(self.published),
            "provenance": dict(self.provenance),
            "gaps": self.gaps,
            "objects": self.objects,
            "listings": self.listings,
            "watches": self.watches,
            "saves": self.saves,
            "saved": self.saved,
            "checkpoint": self.checkpoint,
            "notes": self.notes,
        }

    def sentence(self) -> str:
        """The same in plain words."""
        if not self.start:
            return str(self.error) if self.error else " ".join(self.notes)
        done = ", ".join(f"{count} {kind}" for kind, count in sorted(self.published.items())) or "nothing changed"
        saved = f"saved at {self.version_to}" if self.saved else "not saved"
        parts = [f"{self._beginning()}; {done} in {self.seconds:.1f} s; {saved}.", *self.notes]
        if self.error:
            parts.append(f"It ended early: {self.error}")
        return " ".join(parts)

    def _beginning(self) -> str:
        age = f", {self.age_seconds:.0f} s old" if self.age_seconds is not None else ""
        known = {
            FIRST: "First run: listed what exists, then watched",
            SKIPPED: f"First run: skipped what exists, watched from {self.version_from}",
            PINNED: f"Started at {self.version_from}, as asked",
            RESUMED: f"Resumed from {self.version_from}{age}",
        }
        began = known.get(self.start) or f"Could not resume from {self.version_from}{age}: {self._why()}"
        later = [WHY[Reason(gap)] for gap in self.gaps if gap != self.start]
        return "; then ".join((began, *later))

    def _why(self) -> str:
        reason = Reason(self.start)
        return f"{WHY[reason]}, {READ_BACK[self.recovery]}" if reason in RECOVERABLE else WHY[reason]


WHY: Mapping[Reason, str] = {
    Reason.EXPIRED: "the API server no longer has that history",
    Reason.SILENT: "the API server closed the watch without a word, twice",
    Reason.INTERRUPTED: "an earlier listing was not published whole, so everything was listed and compared again",
    Reason.REWOUND: "the cluster went back in time, so everything was listed and published in a new epoch",
    Reason.RECREATED: "the CustomResourceDefinition was created anew, so everything was listed and compared",
    Reason.FORGOTTEN: "the store had no room for the inventory, so everything was listed and published again",
    Reason.DRIFTED: "the comparison with the server's own past found events that the watch never had",
}
READ_BACK: Mapping[str, str] = {
    "": "so everything was listed and compared",
    Recovery.COMPLETE: "so it was read back from etcd, whole",
    Recovery.SAMPLED: "so it was read back from etcd, where short lives may have been overlooked",
    Recovery.LATE: "so it was read back from etcd while there was time, and the rest was listed and compared",
    Recovery.COMPACTED: "nor has etcd the whole of it, so what is missing was listed and compared",
    Recovery.REFUSED: "and gives no old versions, so everything was listed and compared",
}
