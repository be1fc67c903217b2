"""A checkpoint in an object of Google Cloud Storage: compare-and-swap by the object's generation.

Every write names the generation that it replaces, 0 for none. The rights that suffice are storage.objects.get, create
and delete (overwriting needs it) on the one object; without list, Cloud Storage does not tell an absent object from a
forbidden one, and `load` finds it out by a write that only creates (R15).
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from typing import Self

from job.access import Access
from job.credentials import GoogleCredentials
from job.errors import Unavailable, UsageError
from job.google_storage import Bucket, attempt, is_bucket, is_object, line, translated
from job.google_storage_checks import CREATE, DELETE, GET, OF_RIGHTS, Place, checks, permissions
from job.ports import Check, Conflict, Stored
from job.settings import Address

NOTHING_YET = b"workflow-watcher was here, and has saved nothing yet\n"
"""What `load` writes where it may not know whether there is an object."""
_LOCATION = re.compile(r"//(?P<bucket>[^/]+)/(?P<name>[^\r\n]+)")


class GcsStore:
    """One object. The token of a value is its generation."""

    most_bytes: int | None = None

    def __init__(self, bucket: str, name: str, credentials: GoogleCredentials) -> None:
        self._bucket = Bucket(bucket, credentials)
        self._name = name
        self._nothing = 0
        """The generation to replace where there is no value: that of `NOTHING_YET`, or 0 for no object."""

    @classmethod
    def at(cls, address: Address, access: Access) -> Self:
        """The store of `gs://BUCKET/OBJECT`. Raises `UsageError`."""
        address.allow()
        found = _LOCATION.fullmatch(address.path)
        if not found or not is_bucket(found["bucket"]) or not is_object(found["name"]):
            message = f"the checkpoint {str(address)!r} is not gs://BUCKET/OBJECT or gs://BUCKET/PREFIX/"
            raise UsageError(message)
        return cls(found["bucket"], found["name"], access.google)

    def open(self) -> None:
        """Fetch the credentials."""
        self._bucket.open()

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

    def look(self, timeout: float) -> Stored | None:
        """As `load`, but that an object which is not to be seen is none, where the right to read it is granted."""
        from google.api_core import exceptions as google

        with self._translated("read"):
            try:
                return self._read(timeout)
            except google.NotFound:
                self._bucket_is_there(timeout)
            except google.Forbidden as refused:
                # Who may read and not list is refused what is absent; Google does not promise by which of its words.
                said = line(refused)
                if OF_RIGHTS not in said or (
                    GET in said and GET not in (permissions(self._place, [GET], timeout) or ())
                ):
                    raise
        return None

    def save(self, data: bytes, replacing: object | None, timeout: float) -> object:
        """Replace the object; plain gzip bytes, since Cloud Storage unpacks what is declared as encoded."""
        from google.api_core import exceptions as google

        with self._translated("written"):
            try:
                return self._write(data, self._nothing if replacing is None else replacing, timeout)
            except google.PreconditionFailed as error:
                raise Conflict from error

    def checks(self, timeout: float) -> Iterator[Check]:
        """The credentials, the bucket, each right to the object, and what it costs to replace it."""
        return checks(self._place, [GET, CREATE, DELETE], timeout, replaced=True)

    @property
    def _place(self) -> Place:
        role, page = "projects/PROJECT/roles/checkpoints", "docs/stores.md"
        return Place(self._bucket, self._name, str(self), "--checkpoint", role, page)

    def _read(self, timeout: float) -> Stored | None:
        from google_crc32c import Checksum

        blob = self._bucket.blob(self._name)
        data = blob.download_as_bytes(timeout=attempt(timeout), retry=None)
        if b64encode(Checksum(data).digest()).decode() != blob.crc32c:
            # The client takes up a download that broke in the middle, and compares nothing at its end.
            message = f"{self} arrived with another checksum than it has"
            raise Unavailable(message)
        if data == NOTHING_YET:
            self._nothing = int(blob.generation)
            return None
        return Stored(data, int(blob.generation))

    def _write(self, data: bytes, generation: object, timeout: float) -> int:
        blob = self._bucket.blob(self._name)
        blob.upload_from_string(
            data,
            content_type="application/gzip",
            if_generation_match=generation,
            timeout=attempt(timeout),
            # Left alone, the client repeats a write whose answer was lost. The run does, and then looks who has won.
            retry=None,
        )
        return int(blob.generation)

    def _bucket_is_there(self, timeout: float) -> bool:
        """Whether the object can be absent from it; False also where that may not be known."""
        from google.api_core import exceptions as google

        found = self._bucket.client.list_blobs(
            self._bucket.name, prefix=self._name, max_results=1, timeout=attempt(timeout), retry=None
        )
        try:
            list(found)
        except google.Forbidden:
            return False
        return True

    def __str__(self) -> str:
        return f"gs://{self._bucket.name}/{self._name}"

    def _translated(self, done: str) -> AbstractContextManager[None]:
        grant = "storage.objects.get, create and delete on it"
        return translated(str(self), done, option="--checkpoint", grant=grant)
