"""The objects of a Google Cloud Storage in memory, with the preconditions and permissions of the real service.

https://cloud.google.com/storage/docs/request-preconditions
https://cloud.google.com/storage/docs/access-control/iam-permissions
"""

import base64
import hashlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import google_crc32c

CALLER = "watcher@project.iam.gserviceaccount.com"


@dataclass(eq=False)
class RefusedError(Exception):
    """What the service answers instead; the message is the one that Google gives."""

    code: int
    message: str
    reason: str
    headers: Mapping[str, str] = field(default_factory=dict)


def no_such_bucket() -> RefusedError:
    return RefusedError(404, "The specified bucket does not exist.", "notFound")


def no_such_object(bucket: str, name: str) -> RefusedError:
    return RefusedError(404, f"No such object: {bucket}/{name}", "notFound")


def forbidden(permission: str, caller: str = CALLER) -> RefusedError:
    """It tells nobody without the permission whether there is such an object or bucket."""
    on_bucket = permission.startswith("storage.buckets.") or permission == "storage.objects.list"
    resource = "bucket" if on_bucket else "object"
    message = (
        f"{caller} does not have {permission} access to the Google Cloud Storage {resource}. "
        f"Permission '{permission}' denied on resource (or it may not exist)."
    )
    return RefusedError(403, message, "forbidden")


@dataclass(frozen=True)
class StoredObject:
    """One generation of an object; `properties` are those that a client may set, under their JSON names."""

    bucket: str
    name: str
    data: bytes
    generation: int
    properties: Mapping[str, object]
    metageneration: int = 1
    updated: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    @property
    def crc32c(self) -> str:
        return base64.b64encode(google_crc32c.value(self.data).to_bytes(4, "big")).decode()

    @property
    def md5(self) -> str:
        return base64.b64encode(hashlib.md5(self.data).digest()).decode()

    @property
    def content_type(self) -> str:
        return str(self.properties.get("contentType", "application/octet-stream"))

    def resource(self) -> dict[str, object]:
        """Its metadata, where 64-bit numbers are strings as in all of Google's JSON."""
        return {
            **self.properties,
            "kind": "storage#object",
            "id": f"{self.bucket}/{self.name}/{self.generation}",
            "bucket": self.bucket,
            "name": self.name,
            "generation": str(self.generation),
            "metageneration": str(self.metageneration),
            "contentType": self.content_type,
            "storageClass": "STANDARD",
            "size": str(len(self.data)),
            "crc32c": self.crc32c,
            "md5Hash": self.md5,
            "etag": f"{self.generation:x}/{self.metageneration}",
            "updated": self.updated,
        }


class Objects:
    """Buckets of objects; every method is one atomic step and raises RefusedError as the service would refuse.

    A permission is looked at before a precondition; Google does not say in which order it does so. `query` holds the
    parameters of the request.
    """

    def __init__(self) -> None:
        self.denied: set[str] = set()
        """The permissions that the caller lacks, as `storage.objects.get`."""
        self.conditional: set[str] = set()
        """The permissions that the caller has on every object, and the bucket would not say so."""
        self.keeps_preconditions = True
        """Whether it looks at them, as not every emulator does."""
        self.settings: dict[str, object] = {}
        """Of every bucket: softDeletePolicy, versioning, lifecycle."""
        self._buckets: dict[str, dict[str, StoredObject]] = {}
        self._last_generation = 0
        self._lock = threading.RLock()

    def need(self, permission: str) -> None:
        if permission in self.denied:
            raise forbidden(permission)

    def create_bucket(self, name: str) -> None:
        with self._lock:
            if name in self._buckets:
                message = "Your previous request to create the named bucket succeeded and you already own it."
                raise RefusedError(409, message, "conflict")
            self._buckets[name] = {}

    def bucket(self, name: str) -> dict[str, StoredObject]:
        with self._lock:
            if name not in self._buckets:
                raise no_such_bucket()
            return dict(self._buckets[name])

    def buckets(self) -> list[str]:
        with self._lock:
            return list(self._buckets)

    def read(self, bucket: str, name: str, query: Mapping[str, str]) -> StoredObject:
        with self._lock:
            objects = self.bucket(bucket)
            self.need("storage.objects.get")
            if name not in objects:
                self._hide_absence()
            return self._current(bucket, name, query)

    def check_write(self, bucket: str, name: str, query: Mapping[str, str]) -> None:
        """Whether a write would be refused as things are."""
        with self._lock:
            current = self.bucket(bucket).get(name)
            self.need("storage.objects.create")
            if current is not None:
                # What replaces an object deletes its old generation.
                self.need("storage.objects.delete")
            self._check_preconditions(current, query)

    def write(
        self, bucket: str, name: str, data: bytes, properties: Mapping[str, object], query: Mapping[str, str]
    ) -> StoredObject:
        """Create or replace an object, if the checksums among the properties are those of the data."""
        with self._lock:
            self.check_write(bucket, name, query)
            stored = StoredObject(bucket, name, data, 0, {})
            for key, label, actual in (("crc32c", "CRC32C", stored.crc32c), ("md5Hash", "MD5 hash", stored.md5)):
                given = properties.get(key, actual)
                if given != actual:
                    message = f'Provided {label} "{given}" doesn\'t match calculated {label} "{actual}".'
                    raise RefusedError(400, message, "invalid")
            return self.put(bucket, name, data, properties)

    def put(self, bucket: str, name: str, data: bytes, properties: Mapping[str, object]) -> StoredObject:
        """Create or replace an object, whoever may do so."""
        own = {key: value for key, value in properties.items() if key not in {"name", "crc32c", "md5Hash"}}
        with self._lock:
            self.bucket(bucket)
            stored = StoredObject(bucket, name, data, self._next_generation(), own)
            self._buckets[bucket][name] = stored
            return stored

    def remove(self, bucket: str, name: str) -> None:
        """Delete an object, whoever may do so."""
        with self._lock:
            self.bucket(bucket)
            self._buckets[bucket].pop(name, None)

    def patch(self, bucket: str, name: str, changes: Mapping[str, object], query: Mapping[str, str]) -> StoredObject:
        """Change the properties: a value of None removes one, and the data's generation stays."""
        with self._lock:
            self.bucket(bucket)
            self.need("storage.objects.update")
            current = self._current(bucket, name, query)
            merged = {key: value for key, value in {**current.properties, **changes}.items() if value is not None}
            stored = replace(current, properties=merged, metageneration=current.metageneration + 1)
            self._buckets[bucket][name] = stored
            return stored

    def delete(self, bucket: str, name: str, query: Mapping[str, str]) -> None:
        with self._lock:
            objects = self.bucket(bucket)
            self.need("storage.objects.delete")
            if name not in objects:
                self._hide_absence()
            self._current(bucket, name, query)
            del self._buckets[bucket][name]

    def list(self, bucket: str, prefix: str) -> list[StoredObject]:
        with self._lock:
            objects = self.bucket(bucket)
            self.need("storage.objects.list")
            return [objects[name] for name in sorted(objects) if name.startswith(prefix)]

    def _hide_absence(self) -> None:
        # Who may not list may not learn by a 404 that an object is absent.
        self.need("storage.objects.list")

    def _current(self, bucket: str, name: str, query: Mapping[str, str]) -> StoredObject:
        current = self._buckets[bucket].get(name)
        # Without versioning, no generation but the last one can be had.
        if current is None or query.get("generation", str(current.generation)) != str(current.generation):
            raise no_such_object(bucket, name)
        self._check_preconditions(current, query)
        return current

    def _check_preconditions(self, current: StoredObject | None, query: Mapping[str, str]) -> None:
        if self.keeps_preconditions:
            _check_preconditions(current, query)

    def _next_generation(self) -> int:
        # Google's are microseconds too, by all appearances; only that they grow is promised.
        self._last_generation = max(self._last_generation + 1, time.time_ns() // 1000)
        return self._last_generation


def _check_preconditions(current: StoredObject | None, query: Mapping[str, str]) -> None:
    """An absent object has the generation 0."""
    for name, value in (
        ("Generation", current.generation if current else 0),
        ("Metageneration", current.metageneration if current else 0),
    ):
        if query.get(f"if{name}NotMatch") == str(value):
            raise RefusedError(304, "", "notModified")
        if query.get(f"if{name}Match", str(value)) != str(value):
            message = "At least one of the pre-conditions you specified did not hold."
            raise RefusedError(412, message, "conditionNotMet")
