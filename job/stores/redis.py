"""A checkpoint under one key of Redis: compare-and-set in one script, which the server runs as a whole.

The value is a plain string. What is compared is its SHA-1, which the server computes: that cannot get out of step with
the value, whoever writes it, and no two saves have the same bytes. It names them, and protects nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from typing import TYPE_CHECKING, Self

from job.access import Access, require, untrusted
from job.errors import ActionNeeded, Forbidden, Unauthorized, Unavailable, UsageError, WatcherError
from job.ports import Check, Conflict, Stored
from job.settings import HOST, Address

if TYPE_CHECKING:  # importing it takes 0.3 s
    from redis import Redis

USERNAME, PASSWORD = "REDIS_USERNAME", "REDIS_PASSWORD"
_CONNECT_SECONDS, _READ_SECONDS, _SHORTEST_SECONDS = 3.0, 10.0, 1.0
_LOCATION = re.compile(rf"//(?P<host>{HOST})(?::(?P<port>[0-9]{{1,5}}))?/(?P<database>[0-9]{{1,4}})")
_PORT = 6379
_SAVE = """
local stored = redis.call('GET', KEYS[1])
if (stored and redis.sha1hex(stored) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
_MAY_SAVE = """
if not redis.acl_check_cmd then return -1 end
return redis.acl_check_cmd('SET', KEYS[1], '') and 1 or 0
"""
"""A script that changes nothing: whether this user may save. Servers before Redis 7 cannot say."""
_AS_ONE_THAT_WRITES = "#!lua\nreturn 1"
"""One that says nothing of itself is refused where a write would be, as by a replica, before it is run (Redis 7)."""
_PASSING = ("NOREPLICAS", "BUSY ", "READONLY")
"""What the server says of a state that passes, where the client has no class for it; before Redis 7 not in a script."""
_LONGEST_REASON = 300


class RedisStore:
    """One key. The token of a value is the SHA-1 of its bytes."""

    most_bytes: int | None = None

    def __init__(self, host: str, port: int, database: int, key: str, *, tls: bool = False) -> None:
        self._host, self._port, self._database, self._tls = host, port, database, tls
        self._key = key

    @classmethod
    def at(cls, address: Address, _: Access) -> Self:
        """The store of `redis://HOST[:PORT]/DB?key=NAME`, with TLS as `rediss:`. Raises `UsageError`."""
        address.allow("key")
        found, key = _LOCATION.fullmatch(address.path), address.options.get("key", "")
        if not found or not key:
            message = f"the checkpoint {str(address)!r} is not {address.scheme}://HOST:PORT/DB?key=NAME"
            raise UsageError(message)
        require("redis", "redis")
        port = int(found["port"] or _PORT)
        return cls(found["host"].strip("[]"), port, int(found["database"]), key, tls=address.scheme == "rediss")

    def open(self) -> None:
        """Nothing to get ready: there is a connection for each request."""

    def load(self, timeout: float) -> Stored | None:
        """The value of the key."""
        with self._asked("read", timeout) as server:
            data = server.get(self._key)
        return Stored(data, _token(data)) if isinstance(data, bytes) else None

    def look(self, timeout: float) -> Stored | None:
        """As `load`."""
        return self.load(timeout)

    def checks(self, timeout: float) -> Iterator[Check]:
        """That the key can be read and may be set, and what the server's disk makes of that."""
        what = f"Redis at {self._host}:{self._port}"
        remedy = f"start it, or correct --checkpoint, {USERNAME} or {PASSWORD}"
        try:
            self.load(timeout)
            yield Check.ok(what, f"{self} can be read")
            what = "right to save"
            remedy = "redis-cli ACL SETUSER USER +get +set +eval +select '~KEY' (docs/stores.md)"
            with self._asked("written", timeout) as server:
                may = server.eval(_MAY_SAVE, 1, self._key)
            if may == 1:
                remedy = "correct the address, or let this server take writes (redis-cli ROLE, redis-cli INFO memory)"
                with self._asked("written", timeout) as server:
                    server.eval(_AS_ONE_THAT_WRITES, 1, self._key)
            if may == 0:
                yield Check.fail(what, f"{self} may not be written: allow GET, SET, EVAL and SELECT on it", remedy)
            elif may == 1:
                yield Check.ok(what, f"{self} may be set by a script")
            else:
                yield Check.ok(what, "scripts are allowed; whether they may SET, a server before Redis 7 does not tell")
        except WatcherError as error:
            yield Check.fail(what, error, remedy)
            return
        yield self._persistence(timeout)

    def _persistence(self, timeout: float) -> Check:
        what, page = "persistence", "docs/stores.md says what a crash then loses"
        try:
            with self._asked("read", timeout) as server:
                told = {
                    name: str(value)
                    for each in ("appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy")
                    for name, value in server.config_get(each).items()
                }
        except WatcherError:
            unseen = "not to be seen by this user; with appendonly and appendfsync always, a crash loses nothing"
            return Check.ok(what, unseen)
        policy = told.get("maxmemory-policy", "")
        if told.get("maxmemory", "0") != "0" and policy.startswith("allkeys"):  # volatile-* spare what does not expire
            return Check.warn(what, f"a full server drops keys ({policy})", _set("maxmemory-policy noeviction"))
        if told.get("appendonly") == "yes":
            return Check.ok(what, f"each change is written to a log, appendfsync {told.get('appendfsync')}; {page}")
        if told.get("save"):
            return Check.warn(what, f"snapshots only: a crash loses minutes; {page}", _set("appendonly yes"))
        return Check.warn(what, "none: a restart loses the checkpoint", _set("appendonly yes"))

    def save(self, data: bytes, replacing: object | None, timeout: float) -> object:
        """Set the key, if it still has the value that is replaced."""
        with self._asked("written", timeout) as server:
            done = server.eval(_SAVE, 1, self._key, str(replacing or ""), data)
        if done != 1:
            raise Conflict
        return _token(data)

    def __str__(self) -> str:
        return f"the key {self._key} of Redis at {self._host}:{self._port}/{self._database}"

    @contextmanager
    def _asked(self, done: str, timeout: float) -> Iterator[Redis]:
        """A connection for one request; what goes wrong with it is translated."""
        from redis import Redis, exceptions
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        seconds = max(timeout, _SHORTEST_SECONDS)
        try:
            with Redis(
                host=self._host,
                port=self._port,
                db=self._database,
                username=os.environ.get(USERNAME) or None,
                password=os.environ.get(PASSWORD) or None,
                ssl=self._tls,
                socket_connect_timeout=min(_CONNECT_SECONDS, seconds),
                socket_timeout=min(_READ_SECONDS, seconds),
                retry=Retry(NoBackoff(), 0),  # the run tries again
                driver_info=None,
            ) as server:
                yield server
        except exceptions.AuthenticationError as error:
            message = f"{self} cannot be {done}: {_said(error)} ({PASSWORD} and {USERNAME} are the log-in)"
            raise Unauthorized(message) from error
        except exceptions.NoPermissionError as error:
            message = f"{self} may not be {done}: allow GET, SET, EVAL and SELECT on it ({_said(error)})"
            raise Forbidden(message) from error
        except (
            exceptions.ConnectionError,
            exceptions.TimeoutError,
            exceptions.ReadOnlyError,
            exceptions.ClusterDownError,  # a replica without its master is one
            exceptions.TryAgainError,
            OSError,
        ) as error:
            if untrusted(error):
                message = f"{self} has a certificate that is not trusted: {_said(error)} (SSL_CERT_FILE names others)"
                raise ActionNeeded(message) from error
            message = f"{self} cannot be {done}: {_said(error)}"
            raise Unavailable(message) from error
        except exceptions.RedisError as error:
            message, said = f"{self} cannot be {done}: {_said(error)}", str(error)
            raise (Unavailable if any(word in said for word in _PASSING) else ActionNeeded)(message) from error


def _set(setting: str) -> str:
    """As lasts beyond a restart."""
    return f"redis-cli CONFIG SET {setting} && redis-cli CONFIG REWRITE, or in redis.conf"


def _token(data: bytes) -> str:
    return sha1(data, usedforsecurity=False).hexdigest()


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
