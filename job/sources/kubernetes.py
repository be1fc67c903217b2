"""The Kubernetes API as a `Source`.

What is normal while an API server starts is waited for here, as long as the run allows: refused connections, 429 and
503 with their Retry-After, 500 and 504, and for a moment also a 401, 403 or 404, since a server that has just started
answers so before it has loaded its tokens, rules and definitions. Everything else is translated into `job.errors`.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import TypeVar

import msgspec

from job.access import untrusted
from job.change import Resource
from job.errors import ActionNeeded, Expired, Forbidden, NotServed, OutOfTime, Unauthorized, Unavailable
from job.logs import event
from job.ports import Check, Frame, Identity, Page, Patience, Query, Stream
from job.sources import frames
from job.sources.connection import Connection
from job.sources.http import ERRORS, Answer

_WHOLE = "application/json"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_READ_SECONDS = 10.0
_WATCH_SLACK = 15.0
"""A quiet watch may be silent for its whole time; only beyond that is the peer dead."""
_UNKNOWN = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN})
"""What the optional reads may be answered with."""
_STARTING = _UNKNOWN | {HTTPStatus.UNAUTHORIZED}
_STARTING_SECONDS = 2.0
"""How long a 401, 403 or 404 may still be a server that is starting (60 ms were seen)."""
_FIRST_CONTACT_SECONDS = 20.0
"""How long a server that has never answered is asked."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.1, 3.0
_TRANSIENT = frozenset({429, 500, 502, 503, 504})

_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError)
_NEEDS_ESCAPE, _ESCAPED = re.compile(r"[\\,=]"), r"\\\g<0>"
"""In field selectors; names of some resources may have these."""

Taken = TypeVar("Taken")
Decoded = TypeVar("Decoded")
log = logging.getLogger(__name__)


class KubernetesSource:
    """One resource, in one namespace or in all."""

    def __init__(self, connection: Connection, resource: Resource, namespace: str, patience: Patience) -> None:
        self.resource = resource
        self.namespace = namespace
        self._connection = connection
        self._patience = patience
        self._api = f"/apis/{resource.api_version}" if resource.group else f"/api/{resource.version}"
        self._kind = ""
        self._answered = False

    def identity(self) -> Identity:
        """The uids of namespace kube-system and of the CustomResourceDefinition, as far as they may be read."""
        cluster = self._uid("/api/v1/namespaces/kube-system")
        # Groups without a dot are built in.
        definition = (
            self._uid(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{self.resource.group_resource}")
            if "." in self.resource.group
            else None
        )
        return Identity(cluster, definition)

    def namespace_exists(self) -> bool | None:
        """Whether the scope's namespace does; None where the credentials may not read it."""
        path = f"/api/v1/namespaces/{self.namespace}"
        status, _ = self._request(path, {}, _METADATA, "get", self._body, accepted=_UNKNOWN)
        return {HTTPStatus.OK: True, HTTPStatus.NOT_FOUND: False}.get(HTTPStatus(status))

    def kind(self) -> str:
        """The resource's kind, from discovery, which every authenticated user may read."""
        if not self._kind:
            self._kind = self.discovered().kind
        return self._kind

    def list(self, query: Query, patience: Patience | None = None) -> Page:
        """One page."""
        # One object needs no limit, with which the API server takes a sixth longer.
        parameters: dict[str, str | int] = {} if query.name else {"limit": query.limit}
        if query.token:
            parameters["continue"] = query.token
        elif query.at:
            parameters |= {"resourceVersion": query.at, "resourceVersionMatch": "Exact"}
        if query.name:
            parameters["fieldSelector"] = f"metadata.name={_NEEDS_ESCAPE.sub(_ESCAPED, query.name)}"
        path = self._path(query.namespace or self.namespace)
        try:
            accept = _WHOLE if query.whole else _METADATA_LIST
            _, answer = self._request(path, parameters, accept, "list", self._body, patience=patience)
        except Expired as error:
            if query.at or query.token:
                raise
            message = f"{self._connection.host} has no state of now: {error}"
            raise Unavailable(message) from error
        return self._decoded(answer, frames.whole_page if query.whole else frames.metadata_page)

    def watch(self, version: int, seconds: int) -> Stream:
        """Open a watch."""
        parameters: dict[str, str | int] = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": seconds,
        }
        path = self._path(self.namespace)
        silence = seconds + _WATCH_SLACK
        return self._request(path, parameters, _WHOLE, "watch", _Watch, read_seconds=silence)[1]

    def decode(self, line: bytes) -> Frame:
        """What a frame says."""
        try:
            return frames.frame(line)
        except _UNREADABLE as error:
            message = f"a watch frame cannot be read: {error}"
            raise Unavailable(message) from error

    def checks(self) -> Iterator[Check]:
        """The API server, its clock, the resource, each right, the namespace, the objects, the identity."""
        from job.sources import checks

        return checks.of(self)

    @property
    def host(self) -> str:
        """The server's URL."""
        return self._connection.host

    def server(self) -> tuple[str, str | None]:
        """What the server calls itself, empty where that may not be known; and what its clock says."""
        status, (date, body) = self._request("/version", {}, _WHOLE, "get", self._dated, accepted=_UNKNOWN)
        return self._decoded(body, frames.server_version) if status == HTTPStatus.OK else "", date

    def discovered(self) -> frames.ApiResource:
        """What discovery says of the resource. Raises `NotServed`."""
        found = self._discovered()
        if not found:
            raise self._not_served()
        return found

    def allowed(self, verb: str, group: str, resource: str, *, name: str = "", namespace: str = "") -> bool | None:
        """Whether these credentials may do that, an empty namespace being all; None where they may not even ask.

        The review that is posted for it is answered, and not stored.
        """
        attributes = {"verb": verb, "group": group, "resource": resource, "name": name, "namespace": namespace}
        review = msgspec.json.encode({"spec": {"resourceAttributes": attributes}})
        accepted = _UNKNOWN | {HTTPStatus.CREATED}
        ask = partial(self._connection.post, _REVIEWS, review)
        status, body = self._attempts(ask, "get", self._body, accepted=accepted)
        return None if status in _UNKNOWN else self._decoded(body, frames.allowed)

    def _path(self, namespace: str) -> str:
        scope = f"/namespaces/{namespace}" if namespace else ""
        return f"{self._api}{scope}/{self.resource.plural}"

    def _uid(self, path: str) -> str | None:
        status, body = self._request(path, {}, _METADATA, "get", self._body, accepted=_UNKNOWN)
        return self._decoded(body, frames.uid) if status == HTTPStatus.OK else None

    def _discovered(self) -> frames.ApiResource | None:
        status, body = self._request(self._api, {}, _WHOLE, "get", self._body, accepted=_UNKNOWN)
        resources = self._decoded(body, frames.api_resources) if status == HTTPStatus.OK else ()
        return next((found for found in resources if found.name == self.resource.plural), None)

    def _decoded(self, body: bytes, decode: Callable[[bytes], Decoded]) -> Decoded:
        try:
            return decode(body)
        except _UNREADABLE as error:
            message = f"{self._connection.host} answered with something else than the Kubernetes API: {error}"
            raise Unavailable(message) from error

    def _body(self, answer: Answer, patience: Patience) -> bytes:
        """The whole body; a time-out of each read does not bound a server that sends it drop by drop."""
        pieces = []
        for piece in answer.pieces():
            pieces.append(piece)
            if not patience.left():
                answer.close()
                message = f"{self._connection.host} did not finish its answer in time"
                raise Unavailable(message)
        return b"".join(pieces)

    def _dated(self, answer: Answer, patience: Patience) -> tuple[str | None, bytes]:
        return answer.header("Date"), self._body(answer, patience)

    def _request(
        self,
        path: str,
        parameters: Mapping[str, str | int],
        accept: str,
        verb: str,
        take: Callable[[Answer, Patience], Taken],
        *,
        patience: Patience | None = None,
        read_seconds: float = _READ_SECONDS,
        accepted: frozenset[int] = frozenset(),
    ) -> tuple[int, Taken]:
        """A GET."""
        ask = partial(self._connection.get, path, parameters, accept, live=verb == "watch")
        return self._attempts(ask, verb, take, patience=patience, read_seconds=read_seconds, accepted=accepted)

    def _attempts(
        self,
        ask: Callable[[float], Answer],
        verb: str,
        take: Callable[[Answer, Patience], Taken],
        *,
        patience: Patience | None = None,
        read_seconds: float = _READ_SECONDS,
        accepted: frozenset[int] = frozenset(),
    ) -> tuple[int, Taken]:
        """What is answered with 200 or an accepted status, after as many attempts as there is time for.

        `ask` is one, for which the server may be silent for so many seconds. `take` gets the answer, its body unread.
        """
        patience = patience or self._patience
        began, pause = time.monotonic(), 0.0
        while True:
            waited = time.monotonic() - began
            pause = min(max(2 * pause, _SHORTEST_PAUSE), _LONGEST_PAUSE)
            wait = random.uniform(pause / 2, pause)  # noqa: S311 - jitter
            try:
                silence = read_seconds if verb == "watch" else min(read_seconds, max(1.0, patience.left()))
                answer = ask(silence)
                self._answered = True
                status = answer.status
                if status == HTTPStatus.OK or status in accepted:
                    return status, take(answer, patience)
                refusal = self._body(answer, patience)
            except ERRORS as error:
                if untrusted(error):
                    message = f"the certificate of {self._connection.host} is not trusted: {_plain(error)}"
                    raise ActionNeeded(message) from error
                trouble = f"{self._connection.host} cannot be reached: {_plain(error)}"
                if not self._answered and waited > _FIRST_CONTACT_SECONDS:
                    raise Unavailable(trouble) from error
            else:
                failed = frames.status(refusal)
                said = (failed and failed.message) or refusal[:200].decode(errors="replace").strip()
                trouble = f"{self._connection.host} answered {status}: {said}"
                starting = status in _STARTING and waited < _STARTING_SECONDS
                if status not in _TRANSIENT and not starting:
                    raise self._translated(status, said, verb)
                wait = max(wait, _retry_after(answer))
            log.log(
                logging.DEBUG if waited < _STARTING_SECONDS else logging.WARNING,
                "%s; trying again",
                trouble,
                extra=event("api.retry", verb=verb),
            )
            try:
                patience.pause(wait)
            except OutOfTime as error:
                raise Unavailable(trouble) from error

    def _translated(self, status: int, said: str, verb: str) -> Exception:
        resource, scope = self.resource.group_resource, f"-n {self.namespace}" if self.namespace else "-A"
        if status == HTTPStatus.GONE and verb != "get":
            return Expired(said)
        if status == HTTPStatus.UNAUTHORIZED:
            return Unauthorized(
                f"{self._connection.host} refused the credentials ({said}): they are expired, or for another cluster; "
                f"`kubectl get {resource} {scope}` with the same kubeconfig shows it"
            )
        if status == HTTPStatus.FORBIDDEN:
            return Forbidden(
                f"no right to {verb} {resource} {scope}: {said}\n"
                f"`kubectl auth can-i {verb} {resource} {scope}` with the same credentials shows it"
            )
        if status == HTTPStatus.NOT_FOUND:
            return self._not_served()
        return ActionNeeded(f"{self._connection.host} answered {status} to {verb} {resource}: {said}")

    def _not_served(self) -> NotServed:
        with suppress(Exception):
            found = self._discovered()
            if found and self.namespace and not found.namespaced:
                return NotServed(f"{self.resource} belongs to no namespace: use --all-namespaces")
        return NotServed(
            f"the API server does not serve {self.resource}: install its CustomResourceDefinition, or correct "
            "--resource (`kubectl api-resources` lists what there is)"
        )


class _Watch:
    """An open watch: each line is a frame."""

    def __init__(self, answer: Answer, _: Patience) -> None:
        self._answer = answer
        self._closed = False

    def __iter__(self) -> Iterator[list[bytes]]:
        try:
            yield from self._answer.lines()
        except ERRORS as error:
            if not self._closed:
                message = f"the connection to the API server broke: {_plain(error)}"
                raise Unavailable(message) from error

    def close(self) -> None:
        """End the watch, from any thread."""
        self._closed = True
        self._answer.shutdown()


def _retry_after(answer: Answer) -> float:
    """Seconds that the server asks to wait; a date instead of a number, which Kubernetes never sends, counts as 1."""
    value = answer.header("Retry-After")
    if value is None:
        return 0.0
    return float(value) if value.isdigit() else 1.0


def _plain(error: Exception) -> str:
    """urllib3's message without the object it begins with."""
    return str(error).rpartition(">: ")[2] or str(error)
