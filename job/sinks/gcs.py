"""Messages as objects of Google Cloud Storage, one for each: where dead letters lie until somebody looks at them.

An object is named by its message's id, and only ever created. So a message that is told again finds itself stored, and
the one right that is needed is storage.objects.create.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Self
from urllib.parse import quote

from job.access import Access
from job.credentials import GoogleCredentials
from job.errors import Refused, Unavailable, UsageError, WatcherError
from job.google_storage import Bucket, attempt, is_bucket, is_object, line, translated
from job.google_storage_checks import CREATE, DELETE, Place, checks
from job.message import Message, structured
from job.ports import Check, Limits, Partly
from job.settings import Address

LANES = 8
_LOCATION = re.compile(r"//(?P<bucket>[^/]+)/(?P<prefix>(?:[^\r\n]*/)?)")
_NOBODYS = "doctor/nobodys.json"
"""Behind the prefix: no message has an id of two words."""


class GcsSink:
    """Objects of one bucket, whose names begin with `prefix`."""

    limits = Limits(lanes=LANES, messages=1, bytes=1_000_000)

    def __init__(self, bucket: str, prefix: str, credentials: GoogleCredentials) -> None:
        self._bucket = Bucket(bucket, credentials)
        self._prefix = prefix

    @classmethod
    def at(cls, address: Address, access: Access) -> Self:
        """The sink of `gs://BUCKET/PREFIX/`, or `gs://BUCKET/`. Raises `UsageError`."""
        address.allow()
        found = _LOCATION.fullmatch(address.path)
        if not found or not is_bucket(found["bucket"]) or not is_object(found["prefix"]):
            message = f"the dead-letter sink {str(address)!r} is not gs://BUCKET/PREFIX/, with the slash at its end"
            raise UsageError(message)
        return cls(found["bucket"], found["prefix"], access.google)

    def open(self) -> None:
        """Fetch the credentials."""
        self._bucket.open()

    def publish(self, lane: int, messages: Sequence[Message], timeout: float) -> None:  # noqa: ARG002 - all are alike
        """Create the objects one after the other."""
        names = [self._name(message) for message in messages]
        stored: list[str] = []
        until, left = monotonic() + timeout, timeout
        try:
            for name, message in zip(names, messages, strict=True):
                if stored and left <= 0:
                    late = f"{self} took {len(stored)} of {len(messages)} messages, and so all the time"
                    raise Unavailable(late)
                self._create(name, structured(message), left)
                stored.append(message.id)
                left = until - monotonic()
        except WatcherError as error:
            if stored:
                raise Partly(stored, error) from error
            raise

    def checks(self, timeout: float) -> Iterator[Check]:
        """The credentials, the bucket, and the right to create."""
        role, page = "projects/PROJECT/roles/deadLetters", "docs/sinks.md"
        place = Place(self._bucket, f"{self._prefix}{_NOBODYS}", str(self), "--dead-letter", role, page)
        return checks(place, [CREATE], timeout, replaced=False)

    def _name(self, message: Message) -> str:
        """Where a message lies: its id, in which only the slash keeps a meaning for those who copy objects to files."""
        name = f"{self._prefix}{'/'.join(map(_quoted, message.id.split('/')))}.json"
        if not is_object(name):
            refusal = f"{self} cannot take message {message.id}: its name would be too long for an object"
            raise Refused(refusal, [message.id])
        return name

    def _create(self, name: str, data: bytes, timeout: float) -> None:
        """One attempt; that there is such an object is as good, since its name is the message's id."""
        from google.api_core import exceptions as google

        what = f"gs://{self._bucket.name}/{name}"
        with translated(what, "created", option="--dead-letter", grant=f"{CREATE} on {self}"):
            blob = self._bucket.blob(name)
            try:
                blob.upload_from_string(
                    data,
                    content_type="application/cloudevents+json",
                    if_generation_match=0,
                    timeout=attempt(timeout),
                    retry=None,
                )
            except google.PreconditionFailed:
                return
            except google.Forbidden as error:
                # Only who would replace an object is asked for this right; which check is first, Google does not say.
                if DELETE not in line(error):
                    raise
            else:
                int(blob.generation)  # a proxy says 200 to everything: that stores nothing

    def __str__(self) -> str:
        return f"gs://{self._bucket.name}/{self._prefix}"


def _quoted(part: str) -> str:
    """A part of a name, never `.` or `..`, which would lead out of the folder that objects are copied to."""
    return quote(part, safe="") if part.strip(".") else part.replace(".", "%2E")
