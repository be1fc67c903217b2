"""Messages in a local file, one JSON object a line, appended and synced batch by batch."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec

from job.access import Access
from job.errors import ActionNeeded, Unavailable, UsageError
from job.message import Message, structured
from job.ports import Check, Limits
from job.settings import Address, local_path

_BLOCK = 65536


class FileSink:
    """One file of JSON lines. Two runs may write to it at once: each batch is written under a lock."""

    limits = Limits(lanes=1, messages=1000, bytes=4_000_000)

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def at(cls, address: Address, _: Access) -> Self:
        """The sink of `file:PATH.jsonl`. Raises `UsageError`."""
        path = local_path(address)
        if not path.endswith(".jsonl"):
            message = f"the sink {str(address)!r} must name a file that ends in .jsonl, as in file:changes.jsonl"
            raise UsageError(message)
        return cls(Path(path))

    def open(self) -> None:
        """Nothing to get ready: the file is opened for each batch."""

    def publish(self, lane: int, messages: Sequence[Message], timeout: float) -> None:  # noqa: ARG002 - a disk has no time-out
        """Append the lines, and sync them to disk; all of them or, if the disk refuses, none."""
        data = b"".join(structured(message) + b"\n" for message in messages)
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                new = not os.fstat(file).st_size
                _append(file, data)
                if new:
                    _sync_folder(self._path.parent)
            finally:
                os.close(file)
        except (PermissionError, FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            message = f"the sink file {self._path} cannot be opened: {error.strerror}"
            raise ActionNeeded(message) from error
        except OSError as error:
            message = f"the sink file {self._path} cannot be written: {error.strerror}"
            raise Unavailable(message) from error

    def checks(self, timeout: float) -> Iterator[Check]:  # noqa: ARG002 - a disk has no time-out
        """That the file, or else one in its folder, can be written."""
        what = "file"  # of messages, or of dead letters
        try:
            yield self._check(what)
        except (OSError, RuntimeError) as error:  # a folder that may not be searched, a name too long; a loop of links
            remedy = "name another file, or let this user search the folders on the way there"
            said = getattr(error, "strerror", None) or error
            yield Check.fail(what, f"{self._path} cannot be looked at: {said}", remedy)

    def _check(self, what: str) -> Check:
        folder = self._path.parent
        if self._path.is_dir():
            return Check.fail(what, f"{self._path} is a folder", "name a file")
        if not folder.is_dir():
            return Check.fail(what, f"the folder {folder} does not exist", f"mkdir -p {folder}, or name another file")
        try:
            state = f"has {self._path.stat().st_size} bytes"
            writable = os.access(self._path, os.R_OK | os.W_OK)
        except FileNotFoundError:
            state = "is not there yet"
            writable = os.access(folder, os.R_OK | os.W_OK | os.X_OK)
        if not writable:
            return Check.fail(what, f"{self._path} may not be written", f"let this user write to {folder}")
        return Check.ok(what, f"{self._path} can be written, and {state}")


def _append(file: int, data: bytes) -> None:
    end = os.fstat(file).st_size
    whole, data = _after_a_torn_line(file, end, data)
    try:
        if whole != end:
            os.ftruncate(file, whole)
        written = 0
        while written < len(data):
            written += os.pwrite(file, data[written:] if written else data, whole + written)
        os.fsync(file)
    except OSError:
        with suppress(OSError):  # a device has no length
            os.ftruncate(file, whole)
        raise


def _after_a_torn_line(file: int, end: int, data: bytes) -> tuple[int, bytes]:
    """Where to write, and what, so that a last line without its end stays, if it is whole, or is cut off."""
    start, tail = end, b""
    while start and b"\n" not in tail:
        step = min(_BLOCK, start)
        start -= step
        tail = os.pread(file, step, start) + tail
    torn = tail.rpartition(b"\n")[2]
    if not torn:
        return end, data
    try:
        msgspec.json.decode(torn, type=msgspec.Raw)
    except msgspec.DecodeError:
        return end - len(torn), data
    return end, b"\n" + data


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
