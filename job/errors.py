"""Every way a run ends before its window is over, and who can mend it.

    WatcherError
    ├── UsageError               2   the caller: an option, a URL or an environment variable is wrong
    ├── TemporaryError          75   nobody: the next tick goes on
    │   ├── Unavailable              a server did not answer, or asked to be asked later
    │   ├── OutOfTime                the deadline came before the work was done
    │   └── SinkClosed               whoever read our output went away
    └── ActionNeeded            78   a person: rights, a missing resource, a checkpoint that must not be used
        ├── Forbidden                the credentials do not allow it
        ├── Unauthorized             the credentials themselves were refused
        ├── NotServed                the API server does not know the resource
        ├── CheckpointUnusable       unreadable, of a newer schema, of another scope or another cluster
        └── Refused                  the sink will never take this message

    Expired, Stopped, Superseded     not errors but turns a run takes; they never reach the exit code

Adapters translate what their libraries raise into this tree, at the edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What the process says to who started it; `cronjob.yaml` decides by it."""

    DONE = 0
    BUG = 1
    USAGE = 2
    TEMPORARY = 75
    ACTION_NEEDED = 78


class WatcherError(Exception):
    """Something a person can read: what happened, to what, and what to do next, in one or two lines."""

    exit_code: ClassVar[ExitCode] = ExitCode.BUG


class UsageError(WatcherError):
    """An option, a URL or an environment variable is wrong."""

    exit_code = ExitCode.USAGE


class TemporaryError(WatcherError):
    """The next tick goes on where this one stopped."""

    exit_code = ExitCode.TEMPORARY


class Unavailable(TemporaryError):
    """A server did not answer, or asked to be asked later. Worth a retry."""


class OutOfTime(TemporaryError):
    """The deadline came before the work was done."""


class SinkClosed(TemporaryError):
    """Whoever read our output went away; a retry cannot help."""


class ActionNeeded(WatcherError):
    """A person must act before another run can succeed."""

    exit_code = ExitCode.ACTION_NEEDED


class Forbidden(ActionNeeded):
    """The credentials do not allow it."""


class Unauthorized(ActionNeeded):
    """The credentials were refused."""


class NotServed(ActionNeeded):
    """The API server does not know the resource."""


class CheckpointUnusable(ActionNeeded):
    """The checkpoint cannot be read, or must not be used for this run."""


class Refused(ActionNeeded):
    """The sink will never take these messages; `ids` are their ce-ids, all of a batch where it does not say which."""

    def __init__(self, message: str, ids: Sequence[str]) -> None:
        super().__init__(message)
        self.ids = ids


class Expired(Exception):
    """The API server no longer has the history that was asked for (410)."""


class Stopped(BaseException):
    """A signal asked the run to end. As KeyboardInterrupt, it must not be taken for an error on its way up."""


class Superseded(Exception):
    """Another run has moved the checkpoint meanwhile (R13)."""
