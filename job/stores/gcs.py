"""A checkpoint in an object of Google Cloud Storage: compare-and-swap by the object's generation.

Every write names the generation that it replaces, 0 for none. The rights that suffice are storage.objects.get, create
and delete (overwriting needs it) on the one object; without list, Cloud Storage does not tell an absent object from a
forbidden one, and `load` finds it out by a write that only creates (R15).
"""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from http import HTTPStatus
from typing import TYPE_CHECKING, Self

from job.access import Access
from job.credentials import URL, GoogleCredentials, emulator, passes
from job.errors import ActionNeeded, Forbidden, Unauthorized, Unavailable, UsageError
from job.ports import Conflict, Stored
from job.settings import Address

if TYPE_CHECKING:  # importing it takes 0.2 s: only runs with this store pay for it
    from google.cloud.storage import Blob, Client

CONNECT_SECONDS, READ_SECONDS = 3.0, 10.0
_SHORTEST_SECONDS = 0.1
NOTHING_YET = b"workflow-watcher was here, and has saved nothing yet\n"
"""What `load` writes where it may not know whether there is an object."""
# https://cloud.google.com/storage/docs/buckets#naming and https://cloud.google.com/storage/docs/objects#naming
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_LONGEST_NAME = 1024
_LOCATION = re.compile(r"//(?P<bucket>[^/]+)/(?P<name>[^\r\n]+)")
_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS})
"""Refusals that pass by themselves."""
_LONGEST_REASON = 300


class GcsStore:
    """One object. The token of a value is its generation."""

    most_bytes: int | None = None

    def __init__(self, bucket: str, name: str, credentials: GoogleCredentials) -> None:
        self._bucket = bucket
        self._name = name
        self._credentials = credentials
        self._emulator = emulator("STORAGE_EMULATOR_HOST", URL)
        self._nothing = 0
        """The generation to replace where there is no value: that of `NOTHING_YET`, or 0 for no object."""

    @classmethod
    def at(cls, address: Address, access: Access) -> Self:
        """The store of `gs://BUCKET/OBJECT`. Raises `UsageError`."""
        address.allow()
        found = _LOCATION.fullmatch(address.path)
        if not found or not _BUCKET.fullmatch(found["bucket"]) or not _is_object(found["name"]):
            message = f"the checkpoint {str(address)!r} is not gs://BUCKET/OBJECT or gs://BUCKET/PREFIX/"
            raise UsageError(message)
        return cls(found["bucket"], found["name"], access.google)

    def open(self) -> None:
        """Fetch the credentials."""
        if not self._emulator:
            self._credentials.get()

    def load(self, timeout: float) -> Stored | None:
        """The object's bytes and generation, in one request where there is one."""
        from google.api_core import exceptions as google

        self._nothing = 0
        with self._translated("read"):
            try:
                return self._read(timeout)
            except google.NotFound:
                if self._bucket_is_there(timeout):
                    return None
            except google.Forbidden:
                pass
            with suppress(google.PreconditionFailed):  # there is one: perhaps another run has created it just now
                self._write(NOTHING_YET, 0, timeout)
            return self._read(timeout)

    def save(self, data: bytes, replacing: object | None, timeout: float) -> object:
        """Replace the object; plain gzip bytes, since Cloud Storage unpacks what is declared as encoded."""
        from google.api_core import exceptions as google

        with self._translated("written"):
            try:
                return self._write(data, self._nothing if replacing is None else replacing, timeout)
            except google.PreconditionFailed as error:
                raise Conflict from error

    def _read(self, timeout: float) -> Stored | None:
        from google_crc32c import Checksum

        blob = self._blob()
        data = blob.download_as_bytes(timeout=_attempt(timeout), retry=None)
        if b64encode(Checksum(data).digest()).decode() != blob.crc32c:
            # The client takes up a download that broke in the middle, and compares nothing at its end.
            message = f"{self} arrived with another checksum than it has"
            raise Unavailable(message)
        if data == NOTHING_YET:
            self._nothing = int(blob.generation)
            return None
        return Stored(data, int(blob.generation))

    def _write(self, data: bytes, generation: object, timeout: float) -> int:
        blob = self._blob()
        blob.upload_from_string(
            data,
            content_type="application/gzip",
            if_generation_match=generation,
            timeout=_attempt(timeout),
            # Left alone, the client repeats a write whose answer was lost. The run does, and then looks who has won.
            retry=None,
        )
        return int(blob.generation)

    def _bucket_is_there(self, timeout: float) -> bool:
        """Whether the object can be absent from it; False also where that may not be known."""
        from google.api_core import exceptions as google

        found = self._client.list_blobs(
            self._bucket, prefix=self._name, max_results=1, timeout=_attempt(timeout), retry=None
        )
        try:
            list(found)
        except google.Forbidden:
            return False
        return True

    @cached_property
    def _client(self) -> Client:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        # Else a thread of the client asks for the bucket, which needs one more right.
        os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
        if self._emulator:
            url = self._emulator if "://" in self._emulator else f"http://{self._emulator}"
            return Client(project="", credentials=AnonymousCredentials(), client_options={"api_endpoint": url})
        return Client(project="", credentials=self._credentials.get())

    def _blob(self) -> Blob:
        return self._client.bucket(self._bucket).blob(self._name)

    def __str__(self) -> str:
        return f"gs://{self._bucket}/{self._name}"

    @contextmanager
    def _translated(self, done: str) -> Iterator[None]:
        from google.api_core import exceptions as google
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage.exceptions import DataCorruption
        from requests import RequestException

        try:
            yield
        except google.NotFound as error:
            message = f"the bucket of {self} does not exist: create it, or correct --checkpoint"
            raise ActionNeeded(message) from error
        except google.Forbidden as error:
            message = f"{self} may not be {done}: grant storage.objects.get, create and delete on it ({_line(error)})"
            raise Forbidden(message) from error
        except google.Unauthorized as error:
            message = f"Cloud Storage refused the credentials for {self}: {_line(error)}"
            raise Unauthorized(message) from error
        except google.GoogleAPICallError as error:
            message = f"{self} cannot be {done}: {_line(error)}"
            lasting = isinstance(error, google.ClientError) and error.code not in _PASSING
            raise (ActionNeeded if lasting else Unavailable)(message) from error
        except GoogleAuthError as error:
            message = f"{self} cannot be {done}, since no access token could be had: {_line(error)}"
            raise (Unavailable if passes(error) else Unauthorized)(message) from error
        except (RequestException, DataCorruption, OSError) as error:
            message = f"{self} cannot be {done}: {_line(error)}"
            raise Unavailable(message) from error
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            message = f"{self} cannot be {done}: something else than Cloud Storage has answered ({_line(error)})"
            raise Unavailable(message) from error


def _is_object(name: str) -> bool:
    return len(name.encode()) <= _LONGEST_NAME and name not in {".", ".."}


def _attempt(timeout: float) -> tuple[float, float]:
    """The time-outs of one request: to connect, and for each read. A run that wakes up too late still gets one try."""
    timeout = max(timeout, _SHORTEST_SECONDS)
    return min(CONNECT_SECONDS, timeout), min(READ_SECONDS, timeout)


def _line(error: Exception) -> str:
    """What the service or a library said, on one line; the client's own text repeats the request and the answer."""
    from google.api_core.exceptions import GoogleAPICallError

    said: object = error
    if isinstance(error, GoogleAPICallError) and error.response is not None:
        with suppress(ValueError, LookupError, TypeError, RuntimeError):
            said = error.response.text
            said = error.response.json()["error"]["message"]
    return " ".join(str(said).split())[:_LONGEST_REASON]
