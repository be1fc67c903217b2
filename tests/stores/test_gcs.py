"""Tests of a checkpoint in Google Cloud Storage."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from job.credentials import GoogleCredentials
from job.errors import ActionNeeded, Forbidden, Unauthorized, Unavailable, UsageError
from job.ports import Conflict, Store, Stored
from job.run.deadline import Deadline
from job.settings import Address
from job.stores.gcs import NOTHING_YET, GcsStore
from tests.bed.gcs import FakeGcsServer
from tests.contracts.store import MANY, TIMEOUT, StoreContract, loaded
from tests.fakes.access import nobody
from tests.fakes.gcs_faults import (
    INTERNAL_ERROR,
    RATE_LIMITED,
    UNAUTHORIZED,
    UNAVAILABLE,
    Corrupted,
    Fault,
    LostResponse,
    Moment,
    Reset,
    Stall,
    Truncated,
    reads,
    writes,
)
from tests.fakes.gcs_server import GcsServer

BUCKET = "checkpoints"
NAME = "prod/argo/workflows.argoproj.io.json.gz"
OBJECTS = {"storage.objects.get", "storage.objects.list", "storage.objects.create", "storage.objects.delete"}
LEAST = OBJECTS - {"storage.objects.list"}
SHORT = 2.0
"""Enough for a fault that is silence. What is answered or cut off may take its time."""
_buckets = (f"bucket-{number}" for number in itertools.count(1))

Connect = Callable[[], Store]


class TestGcsStore(StoreContract):
    @pytest.fixture
    def connect(self, any_gcs: GcsServer | FakeGcsServer, monkeypatch: pytest.MonkeyPatch) -> Connect:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", any_gcs.url)
        bucket = next(_buckets)
        any_gcs.create_bucket(bucket)
        return lambda: store_in(bucket)

    @pytest.fixture
    def broken(self, connect: Connect) -> Store:
        return store_in("nowhere")

    def test_a_missing_bucket_is_for_a_person(self, connect: Connect) -> None:
        """It is no first run: nothing could be saved at its end."""
        store = store_in("nowhere")
        with pytest.raises(ActionNeeded, match=r"bucket of gs://nowhere/.* does not exist"):
            store.load(TIMEOUT)
        with pytest.raises(ActionNeeded, match=r"bucket of gs://nowhere/.* does not exist"):
            store.save(b"one", None, TIMEOUT)


class TestGcsLeastRightsStore(StoreContract):
    """The whole contract without the right to list, where an absent object looks like a forbidden one."""

    @pytest.fixture
    def connect(self, gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> Connect:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
        gcs.create_bucket(BUCKET)
        gcs.denied.update({"storage.buckets.get", "storage.objects.list"})
        return lambda: store_in(BUCKET)

    @pytest.fixture
    def broken(self, connect: Connect, gcs: GcsServer) -> Store:
        gcs.denied.add("storage.objects.create")
        return store_in(BUCKET)

    def test_r15_nothing_else_is_asked_for(self, connect: Connect, gcs: GcsServer) -> None:
        """One request reads, one writes; none of them needs more than get, create and delete on the object."""
        store = connect()
        token = store.save(b"one", None, TIMEOUT)
        store.save(b"two", token, TIMEOUT)
        store.load(TIMEOUT)

        assert [request.method for request in gcs.requests] == ["POST", "POST", "GET"]


@pytest.fixture
def store(gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> GcsStore:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    gcs.create_bucket(BUCKET)
    return store_in(BUCKET)


def store_in(bucket: str) -> GcsStore:
    return GcsStore(bucket, NAME, GoogleCredentials(Deadline(timedelta())))


def test_r15_an_absent_object_that_may_not_be_listed_is_a_first_run(store: GcsStore, gcs: GcsServer) -> None:
    """A write that only creates finds out; what it wrote is nothing, also to the next run, and is replaced."""
    gcs.denied.add("storage.objects.list")

    assert store.load(TIMEOUT) is None
    assert gcs.get(BUCKET, NAME) == NOTHING_YET
    assert store_in(BUCKET).load(TIMEOUT) is None
    store.save(b"one", None, TIMEOUT)
    assert loaded(store_in(BUCKET)).data == b"one"


def test_r15_a_listable_bucket_is_not_written_to(store: GcsStore, gcs: GcsServer) -> None:
    """Where absence can be seen, nothing is left behind by looking."""
    assert store.load(TIMEOUT) is None
    assert gcs.objects == {}


def test_r15_an_object_that_may_not_be_read_is_no_first_run(store: GcsStore, gcs: GcsServer) -> None:
    """It would be started over, and everything told again: 78, and the right is named."""
    gcs.put(BUCKET, NAME, b"one")
    gcs.denied.update({"storage.objects.list", "storage.objects.get"})

    with pytest.raises(Forbidden, match=r"storage\.objects\.get"):
        store.load(TIMEOUT)
    assert gcs.get(BUCKET, NAME) == b"one"


def test_r15_a_first_run_that_could_not_be_followed_by_a_second_is_refused(store: GcsStore, gcs: GcsServer) -> None:
    """It may create, and not read: 78 before anything is told, and not with the second run."""
    gcs.denied.update({"storage.objects.list", "storage.objects.get"})

    with pytest.raises(Forbidden, match=r"storage\.objects\.get"):
        store.load(TIMEOUT)
    gcs.denied.clear()
    assert store.load(TIMEOUT) is None


def test_r15_an_object_that_appears_meanwhile_is_loaded(store: GcsStore, gcs: GcsServer) -> None:
    """Two first runs look at the same time: the later one finds what the earlier one wrote."""
    gcs.denied.add("storage.objects.list")
    gcs.before_write = lambda: gcs.put(BUCKET, NAME, b"one")

    stored = store.load(TIMEOUT)

    assert stored == Stored(b"one", gcs.generation(BUCKET, NAME))


@pytest.mark.parametrize("lacking", sorted(LEAST - {"storage.objects.get"}))
def test_a_missing_right_to_write_is_named(store: GcsStore, gcs: GcsServer, lacking: str) -> None:
    """Overwriting needs delete, too."""
    gcs.put(BUCKET, NAME, b"one")
    gcs.denied.add(lacking)

    with pytest.raises(Forbidden, match=lacking):
        store.save(b"two", loaded(store).token, TIMEOUT)
    assert gcs.get(BUCKET, NAME) == b"one"


@pytest.mark.parametrize("fault", [RATE_LIMITED, UNAVAILABLE, INTERNAL_ERROR, Reset(), Reset(Moment.IN_UPLOAD)])
def test_a_write_that_fails_changes_nothing_and_may_be_tried_again(
    store: GcsStore, gcs: GcsServer, fault: Fault
) -> None:
    """One attempt: whether there is time for another, the run knows."""
    failed = gcs.inject(on=writes(), fault=fault)

    with pytest.raises(Unavailable):
        store.save(b"one", None, TIMEOUT)
    assert (failed.fired, len(gcs.wait_for(writes())), gcs.objects) == (1, 1, {})
    store.save(b"one", None, TIMEOUT)
    assert gcs.get(BUCKET, NAME) == b"one"


@pytest.mark.parametrize(("fault", "timeout"), [(LostResponse(), TIMEOUT), (Stall(Moment.AFTER), SHORT)])
def test_a_write_whose_answer_is_lost_is_a_conflict_when_it_is_repeated(
    store: GcsStore, gcs: GcsServer, fault: Fault, timeout: float
) -> None:
    """The client does not repeat it unasked, and a load shows whose bytes are there."""
    lost = gcs.inject(on=writes(), fault=fault)

    with pytest.raises(Unavailable):
        store.save(b"one", None, timeout)
    gcs.wait_fired(lost)
    assert lost.fired == 1
    with pytest.raises(Conflict):
        store.save(b"one", None, TIMEOUT)
    assert loaded(store).data == b"one"


@pytest.mark.parametrize(
    ("fault", "timeout"),
    [
        *((fault, TIMEOUT) for fault in (UNAVAILABLE, RATE_LIMITED, Reset(), Reset(Moment.IN_DOWNLOAD))),
        *((fault, SHORT) for fault in (Stall(), Stall(Moment.IN_DOWNLOAD))),
    ],
)
def test_a_read_that_fails_may_be_tried_again(store: GcsStore, gcs: GcsServer, fault: Fault, timeout: float) -> None:
    """It is no absent value."""
    gcs.put(BUCKET, NAME, b"one")
    failed = gcs.inject(on=reads(), fault=fault, times=None)

    with pytest.raises(Unavailable):
        store.load(timeout)
    gcs.wait_fired(failed)
    failed.withdraw()
    assert loaded(store).data == b"one"


@pytest.mark.parametrize("data", [b"short", MANY], ids=["short", "long"])
@pytest.mark.parametrize("faults", [[Truncated()], [Corrupted()], [Truncated(), Corrupted()]])
def test_a_damaged_download_is_never_taken_for_the_value(
    store: GcsStore, gcs: GcsServer, data: bytes, faults: list[Fault]
) -> None:
    """Cut off or with turned bits: what is returned is the value, or nothing is."""
    gcs.put(BUCKET, NAME, data)
    injected = [gcs.inject(on=reads(), fault=fault) for fault in faults]

    try:
        stored = store.load(TIMEOUT)
    except Unavailable:
        stored = None
    assert injected[0].fired == 1
    assert stored is None or stored.data == data
    for injection in injected:
        injection.withdraw()
    assert loaded(store_in(BUCKET)).data == data


def test_refused_credentials_are_for_a_person(store: GcsStore, gcs: GcsServer) -> None:
    """A 401 that a new token does not mend."""
    gcs.inject(on=reads(), fault=UNAUTHORIZED, times=None)

    with pytest.raises(Unauthorized):
        store.load(TIMEOUT)


def test_a_server_that_is_away_is_unavailable(store: GcsStore, gcs: GcsServer) -> None:
    """Nobody listens."""
    gcs.down()

    with pytest.raises(Unavailable):
        store.load(TIMEOUT)
    with pytest.raises(Unavailable):
        store.save(b"one", None, TIMEOUT)


def test_a_value_above_the_size_of_one_request_is_replaced_at_once(store: GcsStore, gcs: GcsServer) -> None:
    """More than 8 MiB goes up in pieces, and counts when the last one is there."""
    large = MANY * 9
    token = store.save(b"one", None, TIMEOUT)
    broken = gcs.inject(on=writes(), fault=Reset())
    with pytest.raises(Unavailable):
        store.save(large, token, TIMEOUT)
    assert (broken.fired, gcs.get(BUCKET, NAME)) == (1, b"one")

    store.save(large, token, TIMEOUT)
    assert loaded(store).data == large
    with pytest.raises(Conflict):
        store.save(large, token, TIMEOUT)


def test_an_emulator_may_be_named_without_a_scheme(gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the emulators of Google's other clients are."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url.removeprefix("http://"))
    gcs.create_bucket(BUCKET)

    assert store_in(BUCKET).load(TIMEOUT) is None


@pytest.mark.parametrize("timeout", [0.0, -3600.0])
def test_a_run_that_wakes_up_too_late_still_gets_one_try(store: GcsStore, gcs: GcsServer, timeout: float) -> None:
    """So that it finds out that it has a successor."""
    token = store.save(b"one", None, timeout)
    gcs.put(BUCKET, NAME, b"two")

    with pytest.raises(Conflict):
        store.save(b"three", token, timeout)
    assert loaded(store).data == b"two"


@pytest.mark.parametrize("emulator", ["http://", "ftp://localhost", "localhost:port", "http://a b", "//localhost"])
def test_an_emulator_that_cannot_be_is_a_usage_error(emulator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be tried again for ever."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    with pytest.raises(UsageError, match="STORAGE_EMULATOR_HOST"):
        GcsStore.at(Address("gs", f"//{BUCKET}/{NAME}"), nobody())


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "text/html"}, b"<h1>Please log in</h1>"),
        ({"Content-Type": "application/json"}, b"{}"),
        ({}, b"[]"),
        ({}, b"null"),
        ({}, b'{"generation": "many"}'),
        ({"X-Goog-Hash": "crc32c", "X-Goog-Generation": "1"}, b"abc"),
        ({"X-Goog-Hash": "crc32c=Nks7Ng==", "X-Goog-Generation": "many"}, b"abc"),
        ({"X-Goog-Hash": "crc32c=Nks7Ng=="}, b"abc"),
        ({"X-Goog-Stored-Content-Length": "many"}, b"abc"),
        ({"Content-Encoding": "gzip"}, b"abc"),
    ],
)
def test_what_is_no_answer_of_cloud_storage_is_unavailable(
    headers: dict[str, str], body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy says 200 to everything: no bug of ours, and no value."""
    with proxy_that_answers(headers, body) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        with pytest.raises(Unavailable):
            store_in(BUCKET).load(TIMEOUT)
        with pytest.raises(Unavailable):
            store_in(BUCKET).save(b"one", None, TIMEOUT)


@contextmanager
def proxy_that_answers(headers: dict[str, str], body: bytes) -> Iterator[str]:
    """Whatever is asked."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with HTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
