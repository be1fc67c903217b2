"""What a run says to people: one line on stderr, and the same as a pod's termination message."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from job.errors import WatcherError
from job.logs import LogFormat, json_line
from job.run.summary import Summary

_TERMINATION_LOG = Path("/dev/termination-log")
_MOST_BYTES = 4096
"""Kubernetes keeps this much of a termination message."""


def default_format() -> LogFormat:
    """Lines for people where people look."""
    return LogFormat.CONSOLE if sys.stderr and sys.stderr.isatty() else LogFormat.JSON


def complain(message: str, log_format: LogFormat | None = None) -> None:
    """Say why nothing was done."""
    if (log_format or default_format()) is LogFormat.CONSOLE:
        _say(f"workflow-watcher: {message}")
    else:
        _say(json_line("ERROR", "run.refused", message))


def summarise(summary: Summary, log_format: LogFormat) -> None:
    """Print what a run did, or why it did nothing."""
    if not summary.start and summary.error:
        complain(str(summary.error), log_format)
        _leave(json_line("ERROR", "run.refused", str(summary.error)))
        return
    conclude("run.finished", summary.sentence(), summary.fields(), summary.error, log_format)


def conclude(
    name: str, sentence: str, fields: Mapping[str, object], error: WatcherError | None, log_format: LogFormat
) -> None:
    """Print a summary line, and leave it where Kubernetes looks for it."""
    line = json_line("ERROR" if error else "INFO", name, sentence, **fields)
    if error and log_format is LogFormat.CONSOLE:
        complain(str(error), log_format)
    _say(line)
    _leave(line)


def _leave(line: str) -> None:
    named = os.environ.get("WATCHER_TERMINATION_LOG")
    path = Path(named) if named else _TERMINATION_LOG
    if not named and not path.exists():
        return
    try:
        path.write_text(line.encode()[:_MOST_BYTES].decode(errors="ignore"))
    except OSError as error:  # the run is over and well; its message was printed above
        _say(json_line("WARNING", "termination.unwritten", f"{path} cannot be written: {error}"))


def _say(line: str) -> None:
    """Print on stderr; that nobody listens there changes no exit code."""
    with suppress(OSError, ValueError, AttributeError):
        print(line, file=sys.stderr, flush=True)
