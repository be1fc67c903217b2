"""What the adapters for objects of Google Cloud Storage share: the client of a bucket, and what its errors mean.

Adapters make each request once, with `timeout=attempt(...)` and `retry=None`: whether there is time for another, the
run knows.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING

from job.credentials import URL, GoogleCredentials, emulator, passes
from job.errors import ActionNeeded, Forbidden, Unauthorized, Unavailable

if TYPE_CHECKING:  # importing it takes 0.2 s: only runs that need it pay for it
    from google.cloud.storage import Blob, Client

_CONNECT_SECONDS, _READ_SECONDS = 3.0, 10.0
_SHORTEST_SECONDS = 1.0
# https://cloud.google.com/storage/docs/buckets#naming and https://cloud.google.com/storage/docs/objects#naming
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_LONGEST_NAME = 1024
_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS})
"""Refusals that pass by themselves."""
_LONGEST_REASON = 300


class Bucket:
    """One bucket, for any number of threads. Raises `UsageError` for an emulator that cannot be."""

    def __init__(self, name: str, credentials: GoogleCredentials) -> None:
        self.name = name
        self._credentials = credentials
        self._emulator = emulator("STORAGE_EMULATOR_HOST", URL)
        self._making = threading.Lock()
        self._client: Client | None = None

    def open(self) -> None:
        """Fetch the credentials."""
        if not self._emulator:
            self._credentials.get()

    @property
    def emulated(self) -> bool:
        """Whether something stands in for Cloud Storage."""
        return bool(self._emulator)

    @property
    def credentials(self) -> GoogleCredentials:
        """With which it is asked, unless it is emulated."""
        return self._credentials

    @property
    def client(self) -> Client:
        """Google's client, which the first request makes."""
        with self._making:
            if not self._client:
                self._client = self._made()
            return self._client

    def blob(self, name: str) -> Blob:
        """One object, unread."""
        return self.client.bucket(self.name).blob(name)

    def _made(self) -> Client:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        # Else a thread of the client asks for the bucket, which needs one more right.
        os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
        if self._emulator:
            url = self._emulator if "://" in self._emulator else f"http://{self._emulator}"
            return Client(project="", credentials=AnonymousCredentials(), client_options={"api_endpoint": url})
        return Client(project="", credentials=self._credentials.get())


def is_bucket(name: str) -> bool:
    """Whether a bucket can be called so."""
    return _BUCKET.fullmatch(name) is not None


def is_object(name: str) -> bool:
    """Whether an object can be called so."""
    return len(name.encode()) <= _LONGEST_NAME and name not in {".", ".."}


def attempt(timeout: float) -> tuple[float, float]:
    """The time-outs of one request: to connect, and for each read. A run that wakes up too late still gets one try."""
    timeout = max(timeout, _SHORTEST_SECONDS)
    return min(_CONNECT_SECONDS, timeout), min(_READ_SECONDS, timeout)


@contextmanager
def translated(what: str, done: str, *, option: str, grant: str) -> Iterator[None]:
    """Raise `WatcherError` for what the client raises: `what` cannot be `done`.

    `option` is where a person corrects the bucket, `grant` the rights that suffice.
    """
    from google.api_core import exceptions as google
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption
    from requests import RequestException

    try:
        yield
    except google.NotFound as error:
        message = f"the bucket of {what} does not exist: create it, or correct {option}"
        raise ActionNeeded(message) from error
    except google.Forbidden as error:
        message = f"{what} may not be {done}: grant {grant} ({line(error)})"
        raise Forbidden(message) from error
    except google.Unauthorized as error:
        message = f"Cloud Storage refused the credentials for {what}: {line(error)}"
        raise Unauthorized(message) from error
    except google.GoogleAPICallError as error:
        message = f"{what} cannot be {done}: {line(error)}"
        lasting = isinstance(error, google.ClientError) and error.code not in _PASSING
        raise (ActionNeeded if lasting else Unavailable)(message) from error
    except GoogleAuthError as error:
        message = f"{what} cannot be {done}, since no access token could be had: {line(error)}"
        raise (Unavailable if passes(error) else Unauthorized)(message) from error
    except (RequestException, DataCorruption, OSError) as error:
        message = f"{what} cannot be {done}: {line(error)}"
        raise Unavailable(message) from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        message = f"{what} cannot be {done}: something else than Cloud Storage has answered ({line(error)})"
        raise Unavailable(message) from error


def line(error: Exception) -> str:
    """What the service or a library said, on one line; the client's own text repeats the request and the answer."""
    from google.api_core.exceptions import GoogleAPICallError

    said: object = error
    if isinstance(error, GoogleAPICallError) and error.response is not None:
        with suppress(ValueError, LookupError, TypeError, RuntimeError):
            said = error.response.text
            said = error.response.json()["error"]["message"]
    return " ".join(str(said).split())[:_LONGEST_REASON]
