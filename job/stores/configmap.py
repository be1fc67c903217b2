"""A checkpoint in one key of a ConfigMap of the cluster that is watched: compare-and-swap by its resourceVersion.

The ConfigMap must be there before the first run, since the right to create cannot be limited to one name: `get` and
`patch` on it are all that is needed. A patch names the version of the ConfigMap that was compared, and touches nothing
else in it, so that labels and other keys are other people's.
"""

from __future__ import annotations

import re
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from http import HTTPStatus
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec

from job.access import Access
from job.errors import ActionNeeded, Forbidden, Unauthorized, Unavailable, UsageError, WatcherError
from job.ports import Check, Conflict, Stored, Verdict
from job.settings import Address

if TYPE_CHECKING:  # importing it takes half a second
    from kubernetes.client import ApiException, Configuration, CoreV1Api, V1ConfigMap

KEY = "checkpoint.json.gz"
MOST_BYTES = 1_048_576
"""Of all values of a ConfigMap: https://kubernetes.io/docs/concepts/configuration/configmap/."""
_CONNECT_SECONDS, _READ_SECONDS, _SHORTEST_SECONDS = 3.0, 10.0, 1.0
_LOCATION = re.compile(
    r"//(?P<namespace>[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)/(?P<name>[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?)"
)
_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
"""Refusals that pass by themselves, beside all that are the server's fault."""
_STARTING = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_STARTING_SECONDS, _STARTING_PAUSE = 2.0, 0.2
"""How long these may still come from a server that is starting, and knows no rights yet; and between two looks."""
_NO_REVIEWS = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})
"""Where nobody may ask what is allowed."""
_LONGEST_REASON = 300

Answer = TypeVar("Answer")


class _Status(msgspec.Struct):
    message: str


class ConfigMapStore:
    """One key of one ConfigMap. The token of a value is the hash of its bytes."""

    most_bytes: int | None = MOST_BYTES
    """What the other keys leave over."""

    def __init__(self, namespace: str, name: str, cluster: Callable[[], Configuration]) -> None:
        self._namespace = namespace
        self._name = name
        self._cluster = cluster
        self._api: CoreV1Api | None = None

    @classmethod
    def at(cls, address: Address, access: Access) -> Self:
        """The store of `configmap://NAMESPACE/NAME`. Raises `UsageError`."""
        address.allow()
        found = _LOCATION.fullmatch(address.path)
        if not found:
            message = f"the checkpoint {str(address)!r} is not configmap://NAMESPACE/NAME"
            raise UsageError(message)
        return cls(found["namespace"], found["name"], access.kubernetes)

    def open(self) -> None:
        """Get the credentials ready that the cluster is watched with."""
        from kubernetes.client import ApiClient, CoreV1Api

        configuration = self._cluster()
        configuration.retries = False  # the run tries again
        self._api = CoreV1Api(ApiClient(configuration))

    def load(self, timeout: float) -> Stored | None:
        """The value of the key."""
        data, _ = self._read(time.monotonic() + timeout)
        return None if data is None else Stored(data, _token(data))

    def look(self, timeout: float) -> Stored | None:
        """As `load`."""
        return self.load(timeout)

    def checks(self, timeout: float) -> Iterator[Check]:
        """Both rights, by SelfSubjectAccessReview; that the ConfigMap is there, and how much room it has."""
        what, told = "ConfigMap", False
        create = f"kubectl create configmap -n {self._namespace} {self._name}"
        try:
            self.open()
            for verb in ("get", "patch"):
                right = self._right(verb, timeout)
                told |= verb == "get" and right.verdict is Verdict.FAIL
                yield right
            self._read(time.monotonic() + timeout)
        except Forbidden as error:
            if not told:
                yield Check.fail(what, error, f"add to a Role in namespace {self._namespace}: {self._rule('get')}")
        except Unavailable as error:
            yield Check.fail(what, error, "ask again; then look whether the API server answers")
        except WatcherError as error:
            if getattr(error.__cause__, "status", None) == HTTPStatus.NOT_FOUND:
                yield Check.fail(what, f"{self} does not exist", create)
            else:
                yield Check.fail(what, error, "log in again, or correct --kubeconfig and --context")
        else:
            yield Check.ok(what, f"{self._namespace}/{self._name} is there, with room for {self.most_bytes} bytes")

    def _right(self, verb: str, timeout: float) -> Check:
        from kubernetes.client import ApiException, AuthorizationV1Api

        what = f"right to {verb} the ConfigMap"
        wanted = {"verb": verb, "resource": "configmaps", "name": self._name, "namespace": self._namespace}
        ask = AuthorizationV1Api(self._opened.api_client).create_self_subject_access_review
        with self._translated("asked about"):
            try:
                review = ask(
                    {"spec": {"resourceAttributes": wanted}}, _request_timeout=_attempt(time.monotonic() + timeout)
                )
            except ApiException as error:
                if error.status not in _NO_REVIEWS:
                    raise
                look = f"kubectl auth can-i {verb} configmaps/{self._name} -n {self._namespace}"
                return Check.warn(what, f"it may not be asked whether it is allowed: {_said(error)}", look)
            allowed = bool(review.status.allowed)
        if allowed:
            return Check.ok(what, f"{self._namespace}/{self._name}")
        found = f"no right to {verb} {self}"
        return Check.fail(what, found, f"add to a Role in namespace {self._namespace}: {self._rule(verb)}")

    def _rule(self, verb: str) -> str:
        return f'- {{apiGroups: [""], resources: [configmaps], resourceNames: [{self._name}], verbs: [{verb}]}}'

    def save(self, data: bytes, replacing: object | None, timeout: float) -> object:
        """Patch the key, unless the ConfigMap has changed since its value was compared: then it is compared again."""
        until = time.monotonic() + timeout
        while True:
            stored, version = self._read(until)
            if (None if stored is None else _token(stored)) != replacing:
                raise Conflict
            if self._patched(data, version, until):
                return _token(data)
            if time.monotonic() >= until:
                message = f"{self} was changed by somebody else again and again"
                raise Unavailable(message)

    def _read(self, until: float) -> tuple[bytes | None, str]:
        """The value, None if there is none, and the version of the ConfigMap."""
        read = self._opened.read_namespaced_config_map
        with self._translated("read"):
            found: V1ConfigMap = self._asked(partial(read, self._name, self._namespace), until)
            values = {key: b64decode(value, validate=True) for key, value in (found.binary_data or {}).items()}
            data = values.pop(KEY, None)
            others = [*values.values(), *(text.encode() for text in (found.data or {}).values())]
            self.most_bytes = max(0, MOST_BYTES - sum(map(len, others)))
            return data, str(found.metadata.resource_version)

    def _patched(self, data: bytes, version: str, until: float) -> bool:
        """Whether the key was replaced; it is not when the ConfigMap has another version by now."""
        from kubernetes.client import ApiException

        body = {"metadata": {"resourceVersion": version}, "binaryData": {KEY: b64encode(data).decode()}}
        patch = self._opened.patch_namespaced_config_map
        with self._translated("written"):
            try:
                self._asked(partial(patch, self._name, self._namespace, body), until)
            except ApiException as error:
                if error.status != HTTPStatus.CONFLICT:
                    raise
                return False
        return True

    @property
    def _opened(self) -> CoreV1Api:
        assert self._api  # noqa: S101 - `open` comes first
        return self._api

    def _asked(self, request: Callable[..., Answer], until: float) -> Answer:
        """The answer to a request; a refusal is looked at again for a moment, since it has changed nothing."""
        from kubernetes.client import ApiException

        patient = min(until, time.monotonic() + _STARTING_SECONDS) - _STARTING_PAUSE
        while True:
            try:
                return request(_request_timeout=_attempt(until))
            except ApiException as error:
                if error.status not in _STARTING or time.monotonic() >= patient:
                    raise
            time.sleep(_STARTING_PAUSE)

    def __str__(self) -> str:
        return f"the ConfigMap {self._namespace}/{self._name}"

    @contextmanager
    def _translated(self, done: str) -> Iterator[None]:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            said = _said(error)
            match error.status:
                case HTTPStatus.NOT_FOUND:
                    message = f"{self} does not exist: kubectl create configmap -n {self._namespace} {self._name}"
                    raise ActionNeeded(message) from error
                case HTTPStatus.FORBIDDEN:
                    message = f"{self} may not be {done}: grant get and patch on it ({said})"
                    raise Forbidden(message) from error
                case HTTPStatus.UNAUTHORIZED:
                    message = f"the API server refused the credentials for {self}: {said}"
                    raise Unauthorized(message) from error
            message = f"{self} cannot be {done}: {error.status}: {said}"
            lasting = 400 <= int(error.status or 0) < 500 and error.status not in _PASSING  # noqa: PLR2004
            raise (ActionNeeded if lasting else Unavailable)(message) from error
        except (HTTPError, OSError) as error:
            message = f"{self} cannot be {done}: {error}"
            raise Unavailable(message) from error
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            message = f"{self} cannot be {done}: something else than an API server has answered ({error})"
            raise Unavailable(message) from error


def _said(error: ApiException) -> str:
    """What the API server said, on one line."""
    said = error.body or error.reason
    with suppress(msgspec.DecodeError, TypeError):
        said = msgspec.json.decode(said, type=_Status).message
    return " ".join(str(said).split())[:_LONGEST_REASON]


def _token(data: bytes) -> str:
    return sha256(data).hexdigest()


def _attempt(until: float) -> tuple[float, float]:
    """The time-outs of one request: to connect, and for each read. A run that wakes up too late still gets one try."""
    left = max(until - time.monotonic(), _SHORTEST_SECONDS)
    return min(_CONNECT_SECONDS, left), min(_READ_SECONDS, left)
