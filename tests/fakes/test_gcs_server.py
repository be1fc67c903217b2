"""Two servers under the probes of one client, Google's: fsouza's, and ours with what that one does not keep."""

import gzip
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import pytest
import requests
import urllib3
from google.api_core.exceptions import (
    BadRequest,
    Conflict,
    Forbidden,
    InternalServerError,
    NotFound,
    NotModified,
    PreconditionFailed,
    ServiceUnavailable,
    TooManyRequests,
)
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Blob, Bucket, Client
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY
from google.oauth2.credentials import Credentials

from tests.bed.gcs import FakeGcsServer
from tests.bed.waiting import wait_until
from tests.fakes.gcs_faults import (
    INTERNAL_ERROR,
    RATE_LIMITED,
    UNAUTHORIZED,
    UNAVAILABLE,
    Corrupted,
    Drip,
    Fault,
    LostResponse,
    Moment,
    Reset,
    Stall,
    Truncated,
    anything,
    deletes,
    denied,
    lists,
    lookups,
    reads,
    writes,
)
from tests.fakes.gcs_objects import RefusedError
from tests.fakes.gcs_server import GcsServer

NAME = "checkpoints/argo.json"
BIG = bytes(range(256)) * 40_000
SOON = timedelta(seconds=10)
AGAIN = DEFAULT_RETRY.with_delay(initial=0.01, maximum=0.02).with_timeout(10)
_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def only_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the client asks for the bucket's metadata, once for each bucket, in a thread that outlives it."""
    monkeypatch.setenv("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")


def connect(url: str, token: str | None = None) -> Client:
    credentials = Credentials(token) if token else AnonymousCredentials()  # type: ignore[no-untyped-call]
    return Client(project="p", credentials=credentials, client_options={"api_endpoint": url})


@pytest.fixture(scope="module")
def fake_gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcsServer]:
    with FakeGcsServer(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture
def ours() -> Iterator[GcsServer]:
    with GcsServer() as server:
        yield server


@pytest.fixture(params=["fake_gcs_server", "ours"], ids=["fake-gcs-server", "ours"])
def server(request: pytest.FixtureRequest) -> FakeGcsServer | GcsServer:
    chosen: FakeGcsServer | GcsServer = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def bucket(server: FakeGcsServer | GcsServer) -> Iterator[Bucket]:
    """A bucket that no other test uses, on either server."""
    name = f"bucket-{next(_numbers)}"
    server.create_bucket(name)
    with connect(server.url) as client:
        yield client.bucket(name)


@pytest.fixture
def our_bucket(ours: GcsServer) -> Iterator[Bucket]:
    ours.create_bucket("b")
    with connect(ours.url) as client:
        yield client.bucket("b")


@pytest.fixture
def http() -> Iterator[urllib3.PoolManager]:
    """For what Google's client does not show."""
    pool = urllib3.PoolManager(retries=False, timeout=10)
    yield pool
    pool.clear()


def write(bucket: Bucket, data: bytes, replacing: int | None = None, name: str = NAME) -> int:
    blob = bucket.blob(name)
    blob.upload_from_string(data, if_generation_match=replacing, retry=None)
    return int(blob.generation)


def read(bucket: Bucket, name: str = NAME) -> bytes:
    return bytes(bucket.blob(name).download_as_bytes(retry=None))


def resumable(bucket: Bucket) -> Blob:
    blob = bucket.blob(NAME)
    blob.chunk_size = 256 * 1024
    return blob


def race(bucket: Bucket, replacing: int) -> list[bytes]:
    """Let 16 clients write at once, and return what those wrote who were told that they did."""
    start = threading.Barrier(16)

    def attempt(number: int) -> bytes | None:
        data = b"of racer %d" % number
        start.wait()
        with suppress(PreconditionFailed):
            write(bucket, data, replacing)
            return data
        return None

    with ThreadPoolExecutor(16) as racers:
        return [data for data in racers.map(attempt, range(16)) if data is not None]


# What both servers keep.


def test_a_write_with_the_current_generation_replaces_the_object(bucket: Bucket) -> None:
    """Generations grow, and the last write is what is read."""
    first = write(bucket, b"one", replacing=0)
    second = write(bucket, b"two", replacing=first)
    assert (second > first, read(bucket)) == (True, b"two")


def test_a_write_with_a_stale_generation_is_a_412(bucket: Bucket) -> None:
    """It changes nothing."""
    first = write(bucket, b"one")
    write(bucket, b"two", replacing=first)
    with pytest.raises(PreconditionFailed):
        write(bucket, b"three", replacing=first)
    assert read(bucket) == b"two"


def test_a_write_that_may_only_create_is_a_412_when_the_object_exists(bucket: Bucket) -> None:
    """Generation 0 means that there must be no object."""
    write(bucket, b"one", replacing=0)
    with pytest.raises(PreconditionFailed):
        write(bucket, b"two", replacing=0)
    assert read(bucket) == b"one"


def test_one_of_sixteen_wins_a_race_to_replace(bucket: Bucket) -> None:
    """The others get a 412, and the winner's data stay."""
    assert race(bucket, write(bucket, b"one")) == [read(bucket)]


def test_one_of_sixteen_wins_a_race_to_create(bucket: Bucket) -> None:
    """The others get a 412, and the winner's data stay."""
    assert race(bucket, 0) == [read(bucket)]


def test_one_download_tells_the_generation(bucket: Bucket) -> None:
    """No second request is needed to write by what was read."""
    generation = write(bucket, b"one")
    blob = bucket.blob(NAME)
    blob.download_as_bytes(retry=None)
    assert int(blob.generation) == generation


def test_metadata_tell_the_size_and_the_checksum(bucket: Bucket) -> None:
    """They are those of the data."""
    generation = write(bucket, b"hello")
    blob = bucket.get_blob(NAME)
    assert (blob.size, blob.crc32c, int(blob.generation)) == (5, "mnG7TA==", generation)


def test_a_missing_object_is_not_found(bucket: Bucket) -> None:
    """Reading and deleting it is a 404."""
    with pytest.raises(NotFound):
        read(bucket)
    with pytest.raises(NotFound):
        bucket.blob(NAME).delete(retry=None)


def test_a_missing_bucket_is_not_found(bucket: Bucket) -> None:
    """Reading from it and writing to it is a 404."""
    missing = bucket.client.bucket("missing")
    with pytest.raises(NotFound):
        read(missing)
    with pytest.raises(NotFound):
        write(missing, b"one")


def test_a_deleted_object_is_gone(bucket: Bucket) -> None:
    """Who reads it then gets a 404, and a write may create it again."""
    first = write(bucket, b"one")
    bucket.blob(NAME).delete(retry=None)
    with pytest.raises(NotFound):
        read(bucket)
    assert write(bucket, b"two", replacing=0) > first


def test_an_object_may_be_empty(bucket: Bucket) -> None:
    """It is there, without a byte."""
    assert (write(bucket, b"") > 0, read(bucket)) == (True, b"")


def test_a_wrong_checksum_is_a_400(bucket: Bucket) -> None:
    """Nothing is written."""
    blob = bucket.blob(NAME)
    blob.crc32c = "AAAAAA=="
    with pytest.raises(BadRequest):
        blob.upload_from_string(b"hello", checksum=None, retry=None)
    assert not bucket.blob(NAME).exists()


def test_a_resumable_upload_keeps_the_precondition(bucket: Bucket) -> None:
    """The second that may only create is a 412, and the first one's data stay."""
    resumable(bucket).upload_from_string(BIG, if_generation_match=0, retry=None)
    with pytest.raises(PreconditionFailed):
        resumable(bucket).upload_from_string(b"x" * len(BIG), if_generation_match=0, retry=None)
    assert read(bucket) == BIG


def test_gzip_bytes_pass_as_they_are(bucket: Bucket) -> None:
    """Without a Content-Encoding nobody unpacks them."""
    packed = gzip.compress(b"hello", mtime=0)
    write(bucket, packed)
    assert read(bucket) == packed


def test_data_may_hold_any_byte_and_line_ends(bucket: Bucket) -> None:
    """A multipart body is not taken apart within the data."""
    data = bytes(range(256)) + b"\r\n--boundary\r\n\r\n"
    write(bucket, data)
    assert read(bucket) == data


def test_a_name_may_hold_what_a_path_may_not(bucket: Bucket) -> None:
    """Slashes, spaces, percent signs and letters beyond ASCII come through."""
    name = 'a/b c%2Fd?#"ü.json'
    write(bucket, b"one", name=name)
    assert read(bucket, name) == b"one"


def test_a_list_is_of_a_prefix_and_in_pages(bucket: Bucket) -> None:
    """Names come in order."""
    for name in ("p/3", "p/1", "q", "p/2"):
        write(bucket, b"x", name=name)
    pages = bucket.client.list_blobs(bucket, prefix="p/", page_size=2).pages
    assert [[blob.name for blob in page] for page in pages] == [["p/1", "p/2"], ["p/3"]]


def test_a_bucket_is_created_once(bucket: Bucket) -> None:
    """It exists then, and creating it again is a 409."""
    assert bucket.exists()
    assert not bucket.client.bucket("missing").exists()
    with pytest.raises(Conflict):
        bucket.client.create_bucket(bucket.name)


def test_each_server_says_which_it_is(server: FakeGcsServer | GcsServer) -> None:
    """A failing test can tell which one served."""
    assert server.name.startswith(
        "fake-gcs-server (" if isinstance(server, FakeGcsServer) else "a Google Cloud Storage"
    )


# What fake-gcs-server ignores: preconditions of reads, deletions and patches, metageneration, and 304.


@pytest.mark.parametrize("method", ["download_as_bytes", "reload", "delete"])
def test_a_stale_generation_is_a_412_for_more_than_writes(our_bucket: Bucket, method: str) -> None:
    """Reading data or metadata and deleting keep the precondition too."""
    first = write(our_bucket, b"one")
    second = write(our_bucket, b"two")
    with pytest.raises(PreconditionFailed):
        getattr(our_bucket.blob(NAME), method)(if_generation_match=first, retry=None)
    getattr(our_bucket.blob(NAME), method)(if_generation_match=second, retry=None)


@pytest.mark.parametrize("method", ["download_as_bytes", "reload"])
def test_a_read_of_what_is_known_is_a_304(our_bucket: Bucket, method: str) -> None:
    """By `if_generation_not_match` with the current generation; with another, the object comes."""
    first = write(our_bucket, b"one")
    with pytest.raises(NotModified):
        getattr(our_bucket.blob(NAME), method)(if_generation_not_match=first, retry=None)
    getattr(our_bucket.blob(NAME), method)(if_generation_not_match=first - 1, retry=None)


def test_a_write_may_ask_for_an_object_to_replace(our_bucket: Bucket) -> None:
    """By `if_generation_not_match=0`, which no absent object meets."""
    with pytest.raises(NotModified):
        our_bucket.blob(NAME).upload_from_string(b"one", if_generation_not_match=0, retry=None)
    write(our_bucket, b"one")
    our_bucket.blob(NAME).upload_from_string(b"two", if_generation_not_match=0, retry=None)
    assert read(our_bucket) == b"two"


def test_a_patch_counts_metagenerations(our_bucket: Bucket) -> None:
    """The data and their generation stay; a stale metageneration is a 412 for patches, reads and writes."""
    generation = write(our_bucket, b"one")
    blob = our_bucket.get_blob(NAME)
    blob.metadata = {"lease": "a"}
    blob.patch(if_metageneration_match=1, retry=None)
    assert (int(blob.metageneration), int(blob.generation)) == (2, generation)
    assert our_bucket.get_blob(NAME).metadata == {"lease": "a"}
    blob.metadata = {"lease": "b"}
    for stale in (blob.patch, blob.download_as_bytes, blob.delete):
        with pytest.raises(PreconditionFailed):
            stale(if_metageneration_match=1, retry=None)
    with pytest.raises(PreconditionFailed):
        our_bucket.blob(NAME).upload_from_string(b"two", if_metageneration_match=1, retry=None)
    assert read(our_bucket) == b"one"


def test_an_old_generation_cannot_be_had(our_bucket: Bucket) -> None:
    """Without versioning it is a 404."""
    first = write(our_bucket, b"one")
    write(our_bucket, b"two")
    with pytest.raises(NotFound):
        our_bucket.blob(NAME, generation=first).download_as_bytes(retry=None)


def test_what_is_missing_is_named_in_googles_words(our_bucket: Bucket) -> None:
    """A missing object by its path, a missing bucket not."""
    with pytest.raises(NotFound, match=f"No such object: b/{NAME}"):
        read(our_bucket)
    with pytest.raises(NotFound, match=f"No such object: b/{NAME}"):
        our_bucket.blob(NAME).reload(retry=None)
    with pytest.raises(NotFound, match=r"The specified bucket does not exist\."):
        write(our_bucket.client.bucket("missing"), b"one")


def test_errors_are_text_for_data_and_json_for_all_else(ours: GcsServer, http: urllib3.PoolManager) -> None:
    """So Google answers, and so its client words them."""
    ours.create_bucket("b")
    data = http.request("GET", f"{ours.url}/download/storage/v1/b/b/o/x?alt=media")
    metadata = http.request("GET", f"{ours.url}/storage/v1/b/b/o/x")
    assert (data.status, data.data) == (404, b"No such object: b/x")
    message = "No such object: b/x"
    errors = [{"message": message, "domain": "global", "reason": "notFound"}]
    assert metadata.json() == {"error": {"code": 404, "message": message, "errors": errors}}
    assert http.request("GET", f"{ours.url}/elsewhere").status == 404


def test_a_part_of_an_object_can_be_read(our_bucket: Bucket) -> None:
    """Its headers tell of the whole."""
    write(our_bucket, b"hello")
    assert our_bucket.blob(NAME).download_as_bytes(start=1, end=3, retry=None) == b"ell"
    with pytest.raises(Exception, match="416"):
        our_bucket.blob(NAME).download_as_bytes(start=5, retry=None)


def test_a_wrong_checksum_of_a_resumable_upload_is_a_400(ours: GcsServer, our_bucket: Bucket) -> None:
    """Nothing is written."""
    blob = resumable(our_bucket)
    blob.md5_hash = "AAAAAA=="
    with pytest.raises(BadRequest):
        blob.upload_from_string(BIG, checksum=None, retry=None)
    assert ours.objects == {}


# What a test sees and does without a client.


def test_a_test_reads_and_writes_beside_the_client(ours: GcsServer, our_bucket: Bucket) -> None:
    """Both see the same objects and generations."""
    first = ours.put("b", NAME, b"one")
    assert (read(our_bucket), ours.generation("b", NAME)) == (b"one", first)
    second = write(our_bucket, b"two", replacing=first)
    assert (ours.get("b", NAME), ours.generation("b", NAME)) == (b"two", second)
    assert ours.objects == {("b", NAME): b"two"}
    ours.delete("b", NAME)
    assert (ours.get("b", NAME), ours.generation("b", NAME)) == (None, 0)


def test_somebody_else_writes_in_between(ours: GcsServer, our_bucket: Bucket) -> None:
    """The client, which had read before, gets a 412."""
    first = ours.put("b", NAME, b"one")
    ours.before_write = lambda: ours.put("b", NAME, b"of somebody else")
    with pytest.raises(PreconditionFailed):
        write(our_bucket, b"two", replacing=first)
    assert ours.get("b", NAME) == b"of somebody else"


def test_what_the_hook_raises_is_raised_when_the_server_is_left() -> None:
    """A test's own mistake is not lost in a thread."""

    def mistake() -> None:
        raise LookupError

    def use() -> None:
        with GcsServer() as server, connect(server.url) as client:
            server.create_bucket("b")
            server.before_write = mistake
            with pytest.raises(requests.ConnectionError):
                write(client.bucket("b"), b"one")

    with pytest.raises(LookupError):
        use()


def test_requests_can_be_counted(ours: GcsServer, our_bucket: Bucket) -> None:
    """Each has its kind, its object and the size of its body."""
    write(our_bucket, b"hello")
    read(our_bucket)
    our_bucket.get_blob(NAME)
    list(our_bucket.list_blobs(prefix="checkpoints/"))
    our_bucket.blob(NAME).delete()
    assert [len(ours.wait_for(kind("checkpoints/"))) for kind in (writes, reads, lookups, lists, deletes)] == [1] * 5
    assert len(ours.requests) == len(ours.wait_for(anything())) == 5
    put, got, *_ = ours.requests
    assert (put.bucket, put.name, put.method, put.query["uploadType"]) == ("b", NAME, "POST", "multipart")
    assert (put.size > 5, got.size, got.at >= put.at) == (True, 0, True)
    write(our_bucket, b"hello", name="other")
    assert len(ours.wait_for(writes())) == 2


# Permissions.


def test_without_get_a_read_is_a_403_in_googles_words(ours: GcsServer, our_bucket: Bucket) -> None:
    """Whether there is the object or not; given again, the permission works."""
    write(our_bucket, b"one")
    ours.denied.add("storage.objects.get")
    words = (
        r"does not have storage\.objects\.get access to the Google Cloud Storage object\. "
        r"Permission 'storage\.objects\.get' denied on resource \(or it may not exist\)\."
    )
    for name in (NAME, "missing"):
        with pytest.raises(Forbidden, match=words):
            read(our_bucket, name)
    ours.denied.clear()
    assert read(our_bucket) == b"one"


def test_without_list_a_missing_object_is_a_403(ours: GcsServer, our_bucket: Bucket) -> None:
    """An object that is there can be read; no list can be had."""
    write(our_bucket, b"one")
    ours.denied.add("storage.objects.list")
    assert read(our_bucket) == b"one"
    for attempt in (
        lambda: read(our_bucket, "missing"),
        lambda: our_bucket.blob("missing").reload(retry=None),
        lambda: our_bucket.blob("missing").delete(retry=None),
        lambda: list(our_bucket.list_blobs(retry=None)),
    ):
        with pytest.raises(Forbidden, match=r"storage\.objects\.list"):
            attempt()


def test_without_create_nothing_can_be_written(ours: GcsServer, our_bucket: Bucket) -> None:
    """Neither in one request nor in several."""
    ours.denied.add("storage.objects.create")
    for blob in (our_bucket.blob(NAME), resumable(our_bucket)):
        with pytest.raises(Forbidden, match=r"storage\.objects\.create"):
            blob.upload_from_string(BIG, retry=None)
    assert ours.objects == {}


def test_without_delete_an_object_can_be_created_and_not_replaced(ours: GcsServer, our_bucket: Bucket) -> None:
    """Nor can it be deleted."""
    ours.denied.add("storage.objects.delete")
    generation = write(our_bucket, b"one", replacing=0)
    with pytest.raises(Forbidden, match=r"storage\.objects\.delete"):
        write(our_bucket, b"two", replacing=generation)
    with pytest.raises(Forbidden, match=r"storage\.objects\.delete"):
        our_bucket.blob(NAME).delete(retry=None)
    assert read(our_bucket) == b"one"


def test_without_the_permission_the_bucket_is_not_shown(ours: GcsServer, our_bucket: Bucket) -> None:
    """Its objects are."""
    write(our_bucket, b"one")
    ours.denied.add("storage.buckets.get")
    with pytest.raises(Forbidden, match=r"storage\.buckets\.get access to the Google Cloud Storage bucket"):
        our_bucket.reload(retry=None)
    assert read(our_bucket) == b"one"


def test_without_update_nothing_can_be_patched(ours: GcsServer, our_bucket: Bucket) -> None:
    """It is a permission of its own."""
    write(our_bucket, b"one")
    ours.denied.add("storage.objects.update")
    with pytest.raises(Forbidden, match=r"storage\.objects\.update"):
        our_bucket.blob(NAME).patch(retry=None)


def test_who_has_no_token_gets_a_401(http: urllib3.PoolManager) -> None:
    """Nor who has another; with the right one all works."""
    with GcsServer(required_token="right") as server, connect(server.url, "right") as client:
        server.create_bucket("b")
        write(client.bucket("b"), b"one")
        url = f"{server.url}/storage/v1/b/b/o/checkpoints%2Fargo.json?alt=media"
        nobody = http.request("GET", url)
        other = http.request("GET", url, headers={"Authorization": "Bearer wrong"})
        assert (nobody.status, other.status, other.data) == (401, 401, b"Invalid Credentials")
        assert b"Anonymous caller does not have storage.objects.get access" in nobody.data
        assert read(client.bucket("b")) == b"one"


# Faults.


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (RATE_LIMITED, TooManyRequests),
        (INTERNAL_ERROR, InternalServerError),
        (UNAVAILABLE, ServiceUnavailable),
        (denied("storage.objects.create"), Forbidden),
    ],
)
def test_a_refused_write_changes_nothing(
    ours: GcsServer, our_bucket: Bucket, fault: Fault, error: type[Exception]
) -> None:
    """It fires as often as it was told, and then the server serves."""
    refused = ours.inject(on=writes(), fault=fault, times=2)
    for _ in range(2):
        with pytest.raises(error):
            write(our_bucket, b"one")
    assert (refused.fired, ours.objects) == (2, {})
    write(our_bucket, b"one")
    assert refused.fired == 2


def test_refusals_have_googles_headers(ours: GcsServer, http: urllib3.PoolManager) -> None:
    """A 429 says when to come again, a 401 what is asked for."""
    ours.inject(on=anything(), fault=RATE_LIMITED)
    assert http.request("GET", f"{ours.url}/storage/v1/b/b").headers["Retry-After"] == "1"
    ours.inject(on=anything(), fault=UNAUTHORIZED)
    refused = http.request("GET", f"{ours.url}/storage/v1/b/b")
    assert (refused.status, refused.headers["WWW-Authenticate"][:6]) == (401, "Bearer")


def test_only_what_matches_is_hit(ours: GcsServer, our_bucket: Bucket) -> None:
    """By its kind, by the name, after letting some pass, and not once it is withdrawn."""
    refused = ours.inject(on=writes("argo"), fault=UNAVAILABLE, times=None, skip=1)
    write(our_bucket, b"one", name="other")
    write(our_bucket, b"one")
    assert (read(our_bucket), refused.fired) == (b"one", 0)
    with pytest.raises(ServiceUnavailable):
        write(our_bucket, b"two")
    refused.withdraw()
    write(our_bucket, b"two")
    assert refused.fired == 1


def test_a_lost_response_leaves_the_write_applied(ours: GcsServer, our_bucket: Bucket) -> None:
    """A client that repeats it gets a 412 for its own write."""
    lost = ours.inject(on=writes(), fault=LostResponse())
    with pytest.raises(PreconditionFailed):
        our_bucket.blob(NAME).upload_from_string(b"one", if_generation_match=0, retry=AGAIN)
    assert (lost.fired, ours.get("b", NAME), len(ours.wait_for(writes()))) == (1, b"one", 2)


@pytest.mark.parametrize("data", [b"one", BIG], ids=["small", "big"])
@pytest.mark.parametrize("moment", [Moment.IN_UPLOAD, Moment.BEFORE])
def test_a_reset_before_the_end_of_an_upload_applies_nothing(
    ours: GcsServer, our_bucket: Bucket, moment: Moment, data: bytes
) -> None:
    """Whether the data are small or big."""
    reset = ours.inject(on=writes("argo"), fault=Reset(moment))
    with pytest.raises(requests.ConnectionError):
        write(our_bucket, data)
    assert (reset.fired, ours.objects) == (1, {})


def test_a_resumable_upload_goes_on_after_a_reset(ours: GcsServer, our_bucket: Bucket) -> None:
    """The client asks how far it is, and sends the rest."""
    reset = ours.inject(on=writes(), fault=Reset(Moment.IN_UPLOAD), skip=1)
    resumable(our_bucket).upload_from_string(BIG, if_generation_match=0, retry=AGAIN)
    assert (reset.fired, ours.get("b", NAME) == BIG) == (1, True)


def test_a_reset_download_is_an_error(ours: GcsServer, our_bucket: Bucket) -> None:
    """Half of the data were sent."""
    write(our_bucket, BIG)
    reset = ours.inject(on=reads(), fault=Reset(Moment.IN_DOWNLOAD))
    with pytest.raises(requests.RequestException):
        read(our_bucket)
    assert reset.fired == 1


def test_a_truncated_download_is_an_error(ours: GcsServer, our_bucket: Bucket) -> None:
    """The client sees that bytes are missing."""
    write(our_bucket, b"hello")
    truncated = ours.inject(on=reads(), fault=Truncated())
    with pytest.raises(requests.RequestException):
        read(our_bucket)
    assert truncated.fired == 1


def test_a_truncated_download_is_resumed(ours: GcsServer, our_bucket: Bucket) -> None:
    """The client asks for the rest of the same generation, so that no mixture of two comes out."""
    generation = write(our_bucket, BIG)
    ours.inject(on=reads(), fault=Truncated())
    assert our_bucket.blob(NAME).download_as_bytes(retry=AGAIN) == BIG
    _, rest = ours.wait_for(reads(), 2)
    assert (rest.headers["range"], rest.query["generation"]) == (f"bytes={len(BIG) // 2}-", str(generation))


def test_a_corrupted_download_is_noticed_by_the_checksum(ours: GcsServer, our_bucket: Bucket) -> None:
    """It has the right length."""
    write(our_bucket, b"hello")
    corrupted = ours.inject(on=reads(), fault=Corrupted())
    with pytest.raises(DataCorruption):
        read(our_bucket)
    assert (corrupted.fired, read(our_bucket)) == (1, b"hello")


def test_a_slow_download_arrives(ours: GcsServer, our_bucket: Bucket) -> None:
    """Its pieces come one by one."""
    write(our_bucket, b"hello")
    slow = ours.inject(on=reads(), fault=Drip(seconds=0.001, size=2))
    assert (read(our_bucket), slow.fired) == (b"hello", 1)


@pytest.mark.parametrize("seconds", [0.001, 3600])
def test_a_stalled_download_goes_on(ours: GcsServer, our_bucket: Bucket, seconds: float) -> None:
    """When its time is over, or when it is released."""
    write(our_bucket, b"hello")
    stalled = ours.inject(on=reads(), fault=Stall(Moment.IN_DOWNLOAD, seconds))
    with ThreadPoolExecutor(1) as other:
        reading = other.submit(read, our_bucket)
        ours.wait_fired(stalled)
        if seconds > 1:
            assert not reading.done()
            stalled.release()
        assert reading.result(10) == b"hello"


@pytest.mark.parametrize(("moment", "applied"), [(Moment.BEFORE, None), (Moment.AFTER, b"one")])
def test_a_stalled_write_is_applied_or_not(
    ours: GcsServer, our_bucket: Bucket, moment: Moment, applied: bytes | None
) -> None:
    """The client gives up and cannot know; released, the request is applied even then."""
    stalled = ours.inject(on=writes(), fault=Stall(moment))
    with pytest.raises(requests.Timeout):
        our_bucket.blob(NAME).upload_from_string(b"one", timeout=(5, 0.2), retry=None)
    ours.wait_fired(stalled)
    assert ours.get("b", NAME) == applied
    stalled.release()
    wait_until(lambda: ours.get("b", NAME) == b"one", SOON, "the write that was on its way")


def test_a_fault_that_is_not_reached_stays_armed(ours: GcsServer, our_bucket: Bucket) -> None:
    """A missing object has no download to truncate."""
    truncated = ours.inject(on=reads(), fault=Truncated())
    with pytest.raises(NotFound):
        read(our_bucket)
    assert truncated.fired == 0
    write(our_bucket, b"one")
    with pytest.raises(requests.RequestException):
        read(our_bucket)
    assert truncated.fired == 1


def test_a_server_that_is_down_refuses_until_it_is_up(ours: GcsServer, our_bucket: Bucket) -> None:
    """It comes back on the same port, with its objects."""
    write(our_bucket, b"one")
    url = ours.url
    ours.down()
    with pytest.raises(requests.ConnectionError):
        read(our_bucket)
    ours.up()
    assert (read(our_bucket), ours.url) == (b"one", url)


def test_a_server_that_goes_down_ends_what_is_open(ours: GcsServer, our_bucket: Bucket) -> None:
    """A client that waits for an answer does not wait on, and its write is not applied."""
    stalled = ours.inject(on=writes(), fault=Stall())
    with ThreadPoolExecutor(1) as other:
        writing = other.submit(write, our_bucket, b"one")
        ours.wait_fired(stalled)
        ours.down()
        with pytest.raises(requests.ConnectionError):
            writing.result(10)
    stalled.release()
    ours.up()
    assert ours.objects == {}


def test_leaving_the_server_ends_what_stalls() -> None:
    """The write is not applied, and no thread is left."""
    with ThreadPoolExecutor(1) as other:
        with GcsServer() as server, connect(server.url) as client:
            server.create_bucket("b")
            stalled = server.inject(on=writes(), fault=Stall())
            writing = other.submit(write, client.bucket("b"), b"one")
            server.wait_fired(stalled)
        with pytest.raises(requests.ConnectionError):
            writing.result(10)
    assert server.objects == {}
    names = [thread.name for thread in threading.enumerate()]
    assert [name for name in names if name == "gcs-server" or "process_request_thread" in name] == []


def test_waiting_in_vain_names_what_was_waited_for(ours: GcsServer) -> None:
    """A test that hangs says why."""
    armed = ours.inject(on=reads(), fault=Truncated())
    with pytest.raises(TimeoutError, match="0 of 1 requests for"):
        ours.wait_for(reads(), timeout=0.01)
    with pytest.raises(TimeoutError, match="0 of 1 firings of"):
        ours.wait_fired(armed, timeout=0.01)


def test_a_test_that_writes_to_no_bucket_is_told(ours: GcsServer) -> None:
    """As a client is."""
    with pytest.raises(RefusedError, match="bucket does not exist"):
        ours.put("missing", NAME, b"one")
