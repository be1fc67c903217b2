"""Messages in a local file, one JSON object a line, appended and synced batch by batch."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from job.errors import ActionNeeded, Unavailable
from job.message import Message, structured
from job.ports import Limits

_BLOCK = 65536


class FileSink:
    """One file of JSON lines. Two runs may write to it at once: each batch is written under a lock."""

    limits = Limits(lanes=1, messages=1000, bytes=4_000_000)

    def __init__(self, path: Path) -> None:
        self._path = path

    def publish(self, lane: int, messages: Sequence[Message], timeout: float) -> None:  # noqa: ARG002 - a disk has no time-out
        """Append the lines, and sync them to disk; all of them or, if the disk refuses, none."""
        data = b"".join(structured(message) + b"\n" for message in messages)
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                _append(file, data)
            finally:
                os.close(file)
        except (PermissionError, FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            message = f"the sink file {self._path} cannot be opened: {error.strerror}"
            raise ActionNeeded(message) from error
        except OSError as error:
            message = f"the sink file {self._path} cannot be written: {error.strerror}"
            raise Unavailable(message) from error


def _append(file: int, data: bytes) -> None:
    end = _whole_lines(file)
    try:
        written = 0
        while written < len(data):
            written += os.pwrite(file, data[written:] if written else data, end + written)
        os.fsync(file)
    except OSError:
        os.ftruncate(file, end)
        raise


def _whole_lines(file: int) -> int:
    """The size of the file without a last line that a crash has torn; such a line is cut off."""
    size = end = os.fstat(file).st_size
    while end:
        start = max(0, end - _BLOCK)
        block = os.pread(file, end - start, start)
        newline = block.rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        os.ftruncate(file, end)
    return end
