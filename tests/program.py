"""The program, started as a user starts it: a process, its two output streams, and its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from job import checkpoint
from job.checkpoint import Checkpoint

LONGEST = timedelta(seconds=120)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished run left behind."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The CloudEvents on stdout."""
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log lines on stderr, which is no terminal, so that all of them are JSON."""
        return [json.loads(line) for line in self.stderr.splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        """The summary line: the last one."""
        return self.lines[-1]


class Program:
    """`workflow-watcher`, with a state folder of its own in `folder`."""

    def __init__(self, kubeconfig: Path | None, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.prefix: Sequence[str] = ()
        """A command that runs the program, where that is not this process."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("WATCHER_", "KUBE"))}
        self.environment = {**kept, "XDG_STATE_HOME": str(folder / "state"), "HOME": str(folder), **environment}
        if kubeconfig:
            self.environment["KUBECONFIG"] = str(kubeconfig)

    @property
    def checkpoint_file(self) -> Path:
        """The file that the option `self.checkpoint` names."""
        return self.folder / "checkpoint.json.gz"

    @property
    def checkpoint(self) -> str:
        """An option that puts the checkpoint where `saved` reads it."""
        return f"--checkpoint=file:{self.checkpoint_file}"

    @property
    def saved(self) -> Checkpoint:
        """The checkpoint as it is on disk."""
        return checkpoint.decode(self.checkpoint_file.read_bytes())

    def start(self, *options: str, command: str = "run", environment: Mapping[str, str] | None = None) -> Running:
        """Start `workflow-watcher run`, or another command, with these options."""
        return Running(
            subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "job", command, *options],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**self.environment, **(environment or {})},
                cwd=self.folder,
            )
        )

    def run(self, *options: str, command: str = "run", environment: Mapping[str, str] | None = None) -> Outcome:
        """Run it to its end."""
        with self.start(*options, command=command, environment=environment) as running:
            return running.finish()


class Running:
    """A run under way. A context manager: leaving it kills what is still there."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def finish(self, within: timedelta = LONGEST) -> Outcome:
        """Wait for its end."""
        stdout, stderr = self.process.communicate(timeout=within.total_seconds())
        return Outcome(self.process.returncode, stdout, stderr.decode())

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)
