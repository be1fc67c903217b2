"""The user's cache folder: what takes minutes to make is made once, also when two test runs begin at once."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_REPORT_EVERY_S = 15.0
_TAIL_LINES = 30


class BuildError(Exception):
    """A build failed; the message carries the end of the tool's output."""


def cache_folder() -> Path:
    """Where everything built for the bed is kept; safe to delete while no test runs."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "workflow-watcher"


def built_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Return `target`, built before or now.

    `build` gets the path of a new thing to make, a file or a folder, which becomes `target` by renaming once it is
    complete. A second process that wants the same waits for the first.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        _acquire(lock.fileno(), target.name)
        if target.exists():
            return target
        # What a run that was killed left behind: the lock says that nobody works on it.
        scratch = target.parent / f"{target.name}.partial"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        build(scratch / target.name)
        (scratch / target.name).rename(target)
        scratch.rmdir()
    return target


def run_with_progress(
    command: Sequence[str], what: str, *, note: str = "", cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a command that may take minutes, say so on standard error, and return its standard output.

    Raises BuildError with the end of what the command said when it fails.
    """
    began = time.monotonic()
    _say(f"building {what} ... {note}".rstrip())
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as output,
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
    ):
        with subprocess.Popen(command, cwd=cwd, env=env, stdout=output, stderr=errors) as process:
            try:
                while _still_running(process):
                    _say(f"still building {what}, {time.monotonic() - began:.0f} s")
            except BaseException:
                process.terminate()
                raise
        output.seek(0)
        errors.seek(0)
        answer, complaint = output.read(), errors.read()
    if process.returncode != 0:
        tail = "\n".join((answer + complaint).splitlines()[-_TAIL_LINES:])
        message = f"building {what} failed with code {process.returncode}:\n{' '.join(command)}\n{tail}"
        raise BuildError(message)
    _say(f"built {what} in {time.monotonic() - began:.0f} s")
    return answer


def _still_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_REPORT_EVERY_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _acquire(lock: int, name: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say(f"waiting for another run that builds {name}")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _say(text: str) -> None:
    sys.stderr.write(f"test bed: {text}\n")
    sys.stderr.flush()
