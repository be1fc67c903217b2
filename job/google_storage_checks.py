"""What `doctor` wants to know of a bucket: that it is there, and what may be done to the objects of one name.

The bucket is asked for all rights at once (testIamPermissions, which needs none). What it does not grant may still be
granted on a condition about the object's name, which only a request for that object meets. So it is asked for what it
must refuse, and the refusal tells: 403 is the lack of the right, anything else came after the right was looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from job.errors import ActionNeeded, Forbidden, Unauthorized, WatcherError
from job.google_storage import Bucket, attempt, line, translated
from job.ports import Check, Verdict

if TYPE_CHECKING:
    from google.api_core.exceptions import GoogleAPICallError

GET, CREATE, DELETE = "storage.objects.get", "storage.objects.create", "storage.objects.delete"
_NEVER = {"if_generation_match": 1, "if_metageneration_match": 2**62}
"""Holds for no object: generations count microseconds since 1970, and nobody changes metadata that often."""
OF_RIGHTS = "storage.objects."
"""In what a 403 says that is about rights; of an absent object it names the one to list, since that would tell."""
_NO_CHECKSUM = "AAAAAA=="
"""Not that of the data it is sent with: even a server that knew no preconditions would refuse them."""


@dataclass(frozen=True, slots=True)
class Place:
    """One object, or the objects of a prefix."""

    bucket: Bucket
    name: str
    """Of the object, or of one behind the prefix that nobody has."""
    shown: str
    """As a URL."""
    option: str
    """Where a person corrects it."""
    role: str
    """With the rights that suffice, as `page` makes it."""
    page: str


def checks(place: Place, wanted: Sequence[str], timeout: float, *, replaced: bool) -> Iterator[Check]:
    """The credentials, the bucket, each right that is wanted; and what is kept of objects, where they are replaced."""
    what, bucket = f"bucket {place.bucket.name}", place.bucket
    if not bucket.emulated:
        credentials = bucket.credentials.check()
        yield credentials
        if credentials.verdict is Verdict.FAIL:
            return
    try:
        granted = permissions(place, wanted, timeout)
    except ActionNeeded as error:
        create = f"gcloud storage buckets create gs://{bucket.name} --uniform-bucket-level-access"
        barred = isinstance(error, (Forbidden, Unauthorized))
        look = f"gcloud storage buckets describe gs://{bucket.name}, by somebody who may"
        yield Check.fail(what, error, look if barred else create)
        return
    except WatcherError as error:
        yield Check.fail(what, error, "ask again; then look whether the way to storage.googleapis.com is open")
        return
    yield Check.ok(what, f"gs://{bucket.name} is there")
    if granted is None:
        yield Check.ok("rights to objects", "what stands in for Cloud Storage here knows none")
    else:
        yield from _rights(place, wanted, granted, timeout)
    if replaced:
        yield from _kept(place, timeout)


def permissions(place: Place, wanted: Sequence[str], timeout: float) -> set[str] | None:
    """Which of them the bucket grants for all its objects; None where it knows no rights. Raises `WatcherError`."""
    from google.api_core import exceptions as google

    bucket = place.bucket
    with translated(place.shown, "looked at", option=place.option, grant=" and ".join(wanted)):
        found = bucket.client.bucket(bucket.name)
        try:
            return set(found.test_iam_permissions(list(wanted), timeout=attempt(timeout), retry=None))
        except (google.NotFound, google.MethodNotImplemented, google.MethodNotAllowed):
            if not bucket.emulated:
                raise
        # Not every emulator knows the question; what it knows is a list.
        list(bucket.client.list_blobs(bucket.name, max_results=1, timeout=attempt(timeout), retry=None))
        return None


def _kept(place: Place, timeout: float) -> Iterator[Check]:
    """Soft delete and versioning, where these credentials may read them: a run needs no right to that."""
    from google.api_core import exceptions as google

    what, name = "soft delete and versioning", place.bucket.name
    try:
        with translated(f"gs://{name}", "read", option=place.option, grant="storage.buckets.get"):
            try:
                bucket = place.bucket.client.get_bucket(name, timeout=attempt(timeout), retry=None)
            except google.Forbidden:
                described = f"gcloud storage buckets describe gs://{name}"
                yield Check.ok(what, f"not to be seen without storage.buckets.get, which runs do without; {described}")
                return
            days = int(bucket.soft_delete_policy.retention_duration_seconds or 0) / 86400
            versioned, rules = bool(bucket.versioning_enabled), list(bucket.lifecycle_rules)
            held, kept = bool(bucket.default_event_based_hold), int(bucket.retention_period or 0)
    except WatcherError as error:
        yield Check.warn(what, error, "ask again")
        return
    if held or kept:
        found = "new objects are held" if held else f"objects are kept for {kept} s"
        instead = "--no-default-event-based-hold" if held else "--clear-retention-period"
        remedy = f"gcloud storage buckets update gs://{name} {instead}, or another bucket"
        yield Check.fail("retention policy", f"{found}: no checkpoint can be replaced meanwhile", remedy)
    if days:
        found = f"on: every checkpoint that is replaced is kept, and billed, for {days:g} days"
        yield Check.warn("soft delete", found, f"gcloud storage buckets update gs://{name} --clear-soft-delete")
    else:
        yield Check.ok("soft delete", "off")
    if versioned and not rules:
        remedy = f"gcloud storage buckets update gs://{name} --lifecycle-file FILE, with numNewerVersions"
        yield Check.warn("versioning", "on, without a lifecycle rule: every checkpoint is kept for ever", remedy)
    else:
        yield Check.ok("versioning", "on, with a lifecycle rule" if versioned else "off")


def _rights(place: Place, wanted: Sequence[str], granted: set[str], timeout: float) -> Iterator[Check]:
    for right in wanted:
        try:
            yield _right(place, right, granted, timeout)
        except WatcherError as error:
            yield Check.fail(f"right {right}", error, f"gcloud storage buckets get-iam-policy gs://{place.bucket.name}")


def _right(place: Place, right: str, granted: set[str], timeout: float) -> Check:
    what = f"right {right}"
    if right in granted:
        return Check.ok(what, f"on gs://{place.bucket.name}")
    with translated(place.shown, "looked at", option=place.option, grant=right):
        refusal = _refusal(_ASKED[right], place, timeout)
    said = line(refusal) if refusal else ""
    if said and OF_RIGHTS not in said:
        return Check.fail(what, said, f"gcloud storage buckets describe gs://{place.bucket.name}")
    if right in said:
        remedy = (
            f"gcloud storage buckets add-iam-policy-binding gs://{place.bucket.name} "
            f"--member {place.bucket.credentials.member} --role {place.role}, with {right} in it ({place.page})"
        )
        return Check.fail(what, f"it is granted neither on gs://{place.bucket.name} nor on {place.shown}", remedy)
    return Check.ok(what, f"on {place.shown}, though not on all of gs://{place.bucket.name}")


def _refusal(ask: Callable[[Place, float], None], place: Place, timeout: float) -> GoogleAPICallError | None:
    """The lack of a right; None if there is an answer that comes after it was looked at."""
    from google.api_core import exceptions as google

    try:
        # 412 and 404: no such generation. 400: the checksum. All of them say that it would have been allowed.
        with suppress(google.PreconditionFailed, google.NotFound, google.BadRequest):
            ask(place, timeout)
    except google.Forbidden as refused:
        return refused
    return None


def _ask_to_read(place: Place, timeout: float) -> None:
    place.bucket.blob(place.name).reload(timeout=attempt(timeout), retry=None)


def _ask_to_create(place: Place, timeout: float) -> None:
    """Send what nobody can store."""
    blob = place.bucket.blob(place.name)
    blob.crc32c = _NO_CHECKSUM
    never = {**_NEVER, "timeout": attempt(timeout), "retry": None, "checksum": None}
    blob.upload_from_string(b"workflow-watcher doctor", **never)


def _ask_to_delete(place: Place, timeout: float) -> None:
    """Name a generation that no object has, in each of the ways there are."""
    blob = place.bucket.client.bucket(place.bucket.name).blob(place.name, generation=1)
    blob.delete(**_NEVER, timeout=attempt(timeout), retry=None)


_ASKED = {GET: _ask_to_read, CREATE: _ask_to_create, DELETE: _ask_to_delete}
