"""Whoever is measured, as a process in a pod's environment: what it took."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from tests.bed.waiting import wait_until

_MEASURED = Path(__file__).with_name("measured.py")
_LONGEST = timedelta(minutes=10)
# A pod's files stand where only root may write: here they do so in a mount namespace of the process alone.
_AS_POD = """
mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io && cp -r "$1" /run/secrets/kubernetes.io/serviceaccount
shift
exec "$@"
"""

Ending = Callable[[float], bool]
"""Whether to end who never ends, so many seconds after the start."""


@dataclass(frozen=True)
class Took:
    """What a process took."""

    cpu: float
    """Seconds of CPU, user and system."""
    peak: int
    """The most bytes of memory (RSS)."""
    began: float
    """Unix time."""
    seconds: float
    """From its start to its end."""
    stdout: str
    stderr: str


def pod_files(ca_file: Path, folder: Path) -> Path:
    """What a pod finds of its service account."""
    folder.mkdir()
    shutil.copy(ca_file, folder / "ca.crt")
    (folder / "token").write_text("token")
    (folder / "namespace").write_text("argo")
    return folder


def run(
    command: Sequence[str], environment: Mapping[str, str], service_account: Path, ending: Ending | None = None
) -> Took:
    """Run a command to its end, or until `ending` says so."""
    as_pod = ["unshare", "--map-root-user", "--mount", "sh", "-ec", _AS_POD, "sh", str(service_account)]
    with tempfile.TemporaryDirectory() as folder:
        result, stdout, stderr = (Path(folder) / name for name in ("result", "stdout", "stderr"))
        with stdout.open("wb") as out, stderr.open("wb") as errors:
            process = subprocess.Popen(
                [*as_pod, sys.executable, "-I", "-S", str(_MEASURED), str(result), *command],
                env={**os.environ, **environment},
                stdout=out,
                stderr=errors,
            )
            try:
                if ending:
                    began = time.monotonic()
                    wait_until(lambda: ending(time.monotonic() - began), _LONGEST, f"{command[0]} to be done")
                    process.send_signal(signal.SIGTERM)
                process.wait(_LONGEST.total_seconds())
            finally:
                process.kill()
                process.wait()
        took = json.loads(result.read_text()) if result.exists() else {"code": process.returncode}
        if took.pop("code") != (-signal.SIGKILL if ending else 0):
            message = f"{' '.join(command)} failed:\n{stderr.read_text(errors='replace')}"
            raise RuntimeError(message)
        return Took(**took, stdout=stdout.read_text(errors="replace"), stderr=stderr.read_text(errors="replace"))
