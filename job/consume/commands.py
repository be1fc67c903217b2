"""The user's command, run once for an event: the event on its standard input, its attributes in its environment."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC
from typing import Protocol

from job.consume.event import Event
from job.errors import UsageError
from job.logs import event as log_event

_PREFIX = "CE_"
_PUBLISHED = "MESSAGE_PUBLISH_TIME"
"""When the broker was given the message: what a gap message puts in doubt was published before it."""
NOT_STARTED = 126
"""As shells say it of a program that is there and cannot be run."""

log = logging.getLogger(__name__)


class Commands(Protocol):
    """Runs a command for an event, several at a time."""

    def start(self, event: Event, ended: Callable[[int], None]) -> None:
        """Begin, and return at once. `ended` is called once, in any thread, with the exit code."""

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all that run."""


class Processes:
    """Each in a process group of its own: an interrupt at the terminal is ours to pass on, and reaches its children."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Raises `UsageError` where there is no such program."""
        self._command = list(command)
        found = shutil.which(command[0], path=environment.get("PATH", os.defpath)) if command else None
        if not found:
            missing = f"{command[0]!r} is no program that can be found" if command else "no command is given"
            message = f"{missing}: write it behind --, as in `consume --subscription NAME -- COMMAND ARGUMENT`"
            raise UsageError(message)
        self._program = found
        self._environment = {name: value for name, value in environment.items() if not name.startswith(_PREFIX)}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._changing = threading.Lock()

    def start(self, event: Event, ended: Callable[[int], None]) -> None:
        """Run it in a thread that nobody waits for: who reads its input may never end."""

        def run() -> None:
            try:
                ended(self._run(event))
            except (OSError, ValueError) as error:  # also what no environment can carry
                # What is not an OSError may quote what it was given.
                why = str(error) if isinstance(error, OSError) else type(error).__name__
                fields = log_event("command.unstarted", id=event.identity.id, source=event.identity.source)
                log.warning("%s: the command cannot be run: %s", event.identity.id, why, extra=fields)
                ended(NOT_STARTED)

        threading.Thread(target=run, name="command", daemon=True).start()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to their process groups."""
        with self._changing:
            for process in self._running:
                with suppress(ProcessLookupError, PermissionError):  # it has just ended
                    os.killpg(process.pid, number)

    def _run(self, event: Event) -> int:
        attributes = {f"{_PREFIX}{name.upper()}": value for name, value in event.attributes.items()}
        published = event.published.astimezone(UTC).isoformat().replace("+00:00", "Z")
        whole = event.json()
        with self._changing:
            process = subprocess.Popen(  # noqa: S603 - the user's own command
                self._command,
                executable=self._program,
                stdin=subprocess.PIPE,
                env={**self._environment, **attributes, _PUBLISHED: published},
                process_group=0,
            )
            self._running.add(process)
        try:
            process.communicate(whole)
        finally:
            with self._changing:
                self._running.discard(process)
        return process.returncode
