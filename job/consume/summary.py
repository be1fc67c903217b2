"""What a window of consuming came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from job.errors import ExitCode, WatcherError


@dataclass
class Counts:
    """What became of the messages."""

    pulled: int = 0
    """Deliveries; the same message may be delivered several times."""
    processed: int = 0
    """Events whose command has succeeded."""
    failed: int = 0
    """Commands that have not."""
    repeats: int = 0
    """Events that were acknowledged since they had been processed before."""
    outdated: int = 0
    """Events that --latest-only has acknowledged."""
    unreadable: int = 0
    """Messages that are no CloudEvents."""
    given_back: int = 0
    """Events that still waited at the end."""


@dataclass(frozen=True)
class Summary:
    """The end of a window."""

    counts: Counts
    seconds: float
    error: WatcherError | None = None
    unfinished: bool = False
    """A queue that was to be emptied is not."""

    @property
    def exit_code(self) -> ExitCode:
        """What the process says to who started it."""
        if self.error:
            return self.error.exit_code
        return ExitCode.TEMPORARY if self.unfinished else ExitCode.DONE

    def sentence(self) -> str:
        """For people."""
        counts = self.counts
        told = f"{counts.processed} events processed, {counts.failed} commands failed, {counts.pulled} messages pulled"
        if self.error:
            return f"{self.error} ({told})"
        return f"{told}; some are left that failed" if self.unfinished else told

    def fields(self) -> dict[str, object]:
        """For programs."""
        return {**asdict(self.counts), "seconds": round(self.seconds, 1), "exit_code": int(self.exit_code)}
