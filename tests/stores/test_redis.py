"""Tests of a checkpoint in Redis."""

from __future__ import annotations

import itertools
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import create_server

import pytest
import trustme

from job.errors import ActionNeeded, Forbidden, Unauthorized, Unavailable, UsageError, WatcherError
from job.ports import Conflict, Store
from job.settings import parse_address
from job.stores.redis import PASSWORD, USERNAME, RedisStore
from tests.bed.valkey import Valkey
from tests.contracts.store import MANY, TIMEOUT, StoreContract, loaded
from tests.fakes.access import nobody
from tests.fakes.relay import DeafRelay, TlsFront

SHORT = 0.3
PAGE = Path(__file__).parents[2] / "docs" / "stores.md"
Connect = Callable[[], Store]
_keys = (f"checkpoint-{number}" for number in itertools.count(1))


def store_at(url: str) -> RedisStore:
    store = RedisStore.at(parse_address(url, "checkpoint", ["redis", "rediss"]), nobody())
    store.open()
    return store


@pytest.fixture
def key() -> str:
    return next(_keys)


@pytest.fixture
def store(valkey: Valkey, key: str) -> RedisStore:
    return store_at(valkey.url(key))


class TestRedisStore(StoreContract):
    @pytest.fixture
    def connect(self, valkey: Valkey, key: str) -> Connect:
        return lambda: store_at(valkey.url(key, database=3))

    @pytest.fixture
    def broken(self, valkey: Valkey, key: str) -> Store:
        return store_at(valkey.url(key, database=9999))


class TestRedisTlsStore(StoreContract):
    @pytest.fixture
    def connect(self, valkey: Valkey, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        with tls_front(valkey, authority) as url:
            yield lambda: store_at(f"{url}/0?key={key}")

    @pytest.fixture
    def broken(self, valkey: Valkey, key: str) -> Iterator[Store]:
        with tls_front(valkey, trustme.CA()) as url:  # whom nobody trusts
            yield store_at(f"{url}/0?key={key}")


@contextmanager
def tls_front(valkey: Valkey, authority: trustme.CA, name: str = "127.0.0.1") -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    with TlsFront(f"redis://127.0.0.1:{valkey.port}", context) as front:
        yield front.url.replace("redis:", "rediss:")


def test_the_value_is_a_plain_string_that_does_not_expire(store: RedisStore, valkey: Valkey, key: str) -> None:
    """So that `redis-cli` reads it, and the server keeps it."""
    store.save(MANY, None, TIMEOUT)
    with valkey.client() as client:
        assert client.get(key) == MANY
        assert client.ttl(key) == -1


def test_what_somebody_else_has_set_is_a_conflict(store: RedisStore, valkey: Valkey, key: str) -> None:
    """By hand, or restored: the comparison is with the value itself."""
    token = store.save(b"one", None, TIMEOUT)
    with valkey.client() as client:
        client.set(key, b"theirs")
    with pytest.raises(Conflict):
        store.save(b"two", token, TIMEOUT)

    assert loaded(store).data == b"theirs"


def test_a_save_without_an_answer_may_have_happened(valkey: Valkey, key: str) -> None:
    """It is unavailable, once and without a repeat; who looks finds the value."""
    with DeafRelay(f"redis://127.0.0.1:{valkey.port}") as relay:
        store = store_at(f"{relay.url}/0?key={key}")
        relay.word = b"EVAL"
        with pytest.raises(Unavailable):
            store.save(b"one", None, TIMEOUT)
        assert relay.cut == 1

        assert loaded(store).data == b"one"


def test_what_was_saved_outlives_the_server(tmp_path: Path) -> None:
    """Killed at once and started again, it has it: with `appendfsync always` an answer means that it is on disk."""
    with Valkey(tmp_path) as server:
        store = store_at(server.url("key"))
        token = store.save(b"one", None, TIMEOUT)
        server.kill()
        with pytest.raises(Unavailable):
            store.load(TIMEOUT)
        with pytest.raises(Unavailable):
            store.save(b"two", token, TIMEOUT)
        server.start()

        assert loaded(store).data == b"one"
        store.save(b"two", token, TIMEOUT)


@pytest.mark.parametrize("timeout", [SHORT, 0.0, -5.0])
def test_a_server_that_never_answers_is_unavailable(timeout: float) -> None:
    """When the time is over; without any there is still one try."""
    with create_server(("127.0.0.1", 0)) as silent:
        store = store_at(f"redis://127.0.0.1:{silent.getsockname()[1]}/0?key=key")
        with pytest.raises(Unavailable):
            store.load(timeout)


def test_something_else_that_answers_is_no_bug() -> None:
    """A web server, for example: nobody can tell whether it is there for good."""
    with create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises((Unavailable, ActionNeeded)):
            store_at(f"redis://127.0.0.1:{listener.getsockname()[1]}/0?key=key").load(TIMEOUT)
        thread.join()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A server with the user of docs/stores.md, and nobody else."""
    (command,) = re.findall(r"redis-cli (ACL SETUSER .*)", PAGE.read_text())
    with Valkey(tmp_path_factory.mktemp("guarded")) as server:
        with server.client() as client:
            client.execute_command(*command.replace("'", "").split())
            client.execute_command("ACL SETUSER default off")
        yield server


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(USERNAME, "watcher")
    monkeypatch.setenv(PASSWORD, "SECRET")


@pytest.mark.parametrize("database", [0, 3])
def test_the_rights_of_the_docs_suffice(guarded: Valkey, logged_in: None, database: int) -> None:
    """For the key that they name, in any database, and for no other."""
    store = store_at(guarded.url("workflow-watcher", database=database))
    token = store.save(b"one", None, TIMEOUT)
    store.save(b"two", token, TIMEOUT)

    assert loaded(store).data == b"two"
    other = store_at(guarded.url("other"))
    attempts: list[Callable[[], object]] = [lambda: other.load(TIMEOUT), lambda: other.save(b"one", None, TIMEOUT)]
    for attempt in attempts:
        with pytest.raises(Forbidden, match="allow GET, SET, EVAL and SELECT"):
            attempt()


@pytest.mark.parametrize(("user", "password"), [("watcher", "WRONG"), ("", "SECRET"), ("watcher", ""), ("", "")])
def test_a_wrong_log_in_is_for_a_person(
    guarded: Valkey, user: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables are named, and not their values."""
    monkeypatch.setenv(USERNAME, user)
    monkeypatch.setenv(PASSWORD, password)
    with pytest.raises(Unauthorized, match=PASSWORD) as raised:
        store_at(guarded.url("workflow-watcher")).load(TIMEOUT)

    assert "SECRET" not in str(raised.value)


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [("maxmemory", "1", ActionNeeded), ("replicaof", "127.0.0.1 1", Unavailable)],
    ids=["full", "replica"],
)
def test_a_server_that_does_not_write(tmp_path: Path, setting: str, value: str, error: type[WatcherError]) -> None:
    """One that is full needs a person; one that has become a replica is followed by another."""
    with Valkey(tmp_path) as server:
        store = store_at(server.url("key"))
        token = store.save(b"one", None, TIMEOUT)
        with server.client() as client:
            if setting == "replicaof":
                client.execute_command("REPLICAOF", *value.split())
            else:
                client.config_set(setting, value)
        with pytest.raises(WatcherError) as raised:
            store.save(b"two", token, TIMEOUT)

    assert type(raised.value) is error


def test_a_key_of_another_type_is_for_a_person(store: RedisStore, valkey: Valkey, key: str) -> None:
    """It is somebody else's."""
    with valkey.client() as client:
        client.rpush(key, "theirs")
    attempts: list[Callable[[], object]] = [lambda: store.load(TIMEOUT), lambda: store.save(b"one", None, TIMEOUT)]
    for attempt in attempts:
        with pytest.raises(ActionNeeded, match="WRONGTYPE"):
            attempt()


def test_a_database_that_does_not_exist_is_for_a_person(valkey: Valkey, key: str) -> None:
    """The server says so."""
    with pytest.raises(ActionNeeded, match="DB index"):
        store_at(valkey.url(key, database=9999)).load(TIMEOUT)


@pytest.mark.parametrize("trusted", [True, False], ids=["another name", "unknown authority"])
def test_a_certificate_that_is_not_trusted_is_for_a_person(
    valkey: Valkey, key: str, trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent to whoever that is."""
    authority = trustme.CA()
    if trusted:
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    name = "elsewhere.example" if trusted else "127.0.0.1"
    with tls_front(valkey, authority, name) as url, pytest.raises(ActionNeeded, match="SSL_CERT_FILE"):
        store_at(f"{url}/0?key={key}").load(TIMEOUT)


@pytest.mark.parametrize(
    "url",
    [
        "redis:localhost/0?key=a",
        "redis://localhost:6379/0",
        "redis://localhost:6379?key=a",
        "redis://localhost:6379/x?key=a",
        "redis://localhost:port/0?key=a",
        "redis://my..host/0?key=a",
        "rediss:///0?key=a",
    ],
)
def test_an_address_that_cannot_be_is_a_usage_error(url: str) -> None:
    """It is named."""
    with pytest.raises(UsageError, match=re.escape(url)):
        store_at(url)
