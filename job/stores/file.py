"""A checkpoint in a local file: compare-and-swap under a lock, and whole after a crash at any moment."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Self

from job.access import Access
from job.errors import ActionNeeded, Unavailable
from job.ports import Check, Conflict, Stored
from job.settings import Address, local_path

_LOCK_POLL = 0.05


class FileStore:
    """One file. The token of a value is the hash of its bytes."""

    most_bytes: int | None = None

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def at(cls, address: Address, _: Access) -> Self:
        """The store of `file:PATH`. Raises `UsageError`."""
        return cls(Path(local_path(address)))

    def open(self) -> None:
        """Nothing to get ready."""

    def load(self, timeout: float) -> Stored | None:  # noqa: ARG002 - a disk has no time-out
        """The file's bytes."""
        with _translated(self._path):
            try:
                data = self._path.read_bytes()
            except FileNotFoundError:
                return None
        return Stored(data, _token(data))

    def look(self, timeout: float) -> Stored | None:
        """As `load`."""
        return self.load(timeout)

    def checks(self, timeout: float) -> Iterator[Check]:  # noqa: ARG002 - a disk has no time-out
        """That the file can be replaced, in a folder that is there or can be made."""
        what = "checkpoint file"
        try:
            yield self._check(what)
        except (OSError, RuntimeError) as error:  # a folder that may not be searched, a name too long; a loop of links
            remedy = "correct --checkpoint, or let this user search the folders on the way there"
            said = getattr(error, "strerror", None) or error
            yield Check.fail(what, f"the checkpoint {self._path} cannot be looked at: {said}", remedy)

    def _check(self, what: str) -> Check:
        with suppress(FileNotFoundError, NotADirectoryError):
            self._path.stat()  # what follows says nothing of some of its errors, from Python 3.13 on
        folder = self._path.resolve().parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir() or self._path.is_dir():
            wrong = f"{self._path if self._path.is_dir() else folder} is no {'file' if folder.is_dir() else 'folder'}"
            return Check.fail(what, f"the checkpoint {self._path} cannot be used: {wrong}", "correct --checkpoint")
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            remedy = f"let this user write to {folder}, or correct --checkpoint"
            return Check.fail(what, f"the checkpoint {self._path} cannot be used: {folder} may not be written", remedy)
        return Check.ok(what, f"{self._path} can be written")

    def save(self, data: bytes, replacing: object | None, timeout: float) -> object:
        """Replace the file by renaming a complete one over it."""
        with _translated(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # The folder is locked, not the file, which the rename replaces.
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _lock(folder, timeout, self._path)
                stored = self.load(timeout)
                if (stored.token if stored else None) != replacing:
                    raise Conflict
                self._replace(data)
                os.fsync(folder)
            finally:
                os.close(folder)
        return _token(data)

    def _replace(self, data: bytes) -> None:
        # One fixed name, under the lock: what a killed run left of it is written over.
        path = self._path.resolve()
        written = path.with_name(f".{path.name}.new")
        try:
            with written.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            written.replace(path)
        except BaseException:
            with suppress(OSError):
                written.unlink()
            raise


def _token(data: bytes) -> str:
    return sha256(data).hexdigest()


def _lock(folder: int, timeout: float, path: Path) -> None:
    until = time.monotonic() + timeout
    while True:
        try:
            return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= until:
                message = f"another process holds the lock of {path}"
                raise Unavailable(message) from error
            time.sleep(_LOCK_POLL)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        message = f"the checkpoint {path} cannot be used: {error.strerror}"
        raise ActionNeeded(message) from error
    except OSError as error:
        message = f"the checkpoint {path} cannot be read or written: {error.strerror}"
        raise (ActionNeeded if error.errno == errno.EROFS else Unavailable)(message) from error
