"""What a test scripts an `ApiProxy` to do wrong: requests, matchers for them, and faults.

    refused = proxy.inject(on=watches(), fault=STORAGE_INITIALISING, times=2)
    ...
    assert refused.fired == 2

A fault on a stream needs the server's 200. What was never reached (another status, a shorter stream) has not fired and
stays armed for the next match.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TEXT = "text/plain; charset=utf-8"
COLLECTION = re.compile(r"/(api|apis/[^/]+)/[^/]+/(namespaces/[^/]+/)?[^/]+")


@dataclass(frozen=True)
class Request:
    """What a client asked for; `at` is `time.monotonic()` in seconds."""

    method: str
    path: str
    query: Mapping[str, str]
    accept: str
    at: float

    @property
    def watch(self) -> bool:
        """Whether it opens a watch."""
        return self.query.get("watch") in {"1", "true"}

    @property
    def list(self) -> bool:
        """Whether it lists a collection."""
        return self.method == "GET" and not self.watch and COLLECTION.fullmatch(self.path) is not None


@dataclass(frozen=True)
class Matcher:
    """Which requests are meant: those of a kind, and with `path` somewhere in their path."""

    kind: str
    path: str
    rule: Callable[[Request], bool] = field(repr=False)

    def __call__(self, request: Request) -> bool:
        """Whether this request is meant."""
        return self.path in request.path and self.rule(request)


def anything(path: str = "") -> Matcher:
    """Match every request."""
    return Matcher("anything", path, lambda _: True)


def watches(path: str = "") -> Matcher:
    """Match watches."""
    return Matcher("watches", path, lambda request: request.watch)


def lists(path: str = "") -> Matcher:
    """Match every list of a collection: first and continued pages, probes and exact lists."""
    return Matcher("lists", path, lambda request: request.list)


def first_pages(path: str = "") -> Matcher:
    """Match lists that start a listing of the state now: neither continued nor exact nor a probe."""
    others = (continued(), exact(), probes())
    return Matcher("first pages", path, lambda request: request.list and not any(other(request) for other in others))


def continued(path: str = "") -> Matcher:
    """Match lists that continue another; page n is `skip=n - 2` of these."""
    return Matcher("continued", path, lambda request: request.list and "continue" in request.query)


def probes(path: str = "") -> Matcher:
    """Match lists with `limit=1`, which ask for the current resourceVersion only."""
    return Matcher("probes", path, lambda request: request.list and request.query.get("limit") == "1")


def exact(path: str = "") -> Matcher:
    """Match lists of the state at one resourceVersion."""
    return Matcher("exact", path, lambda request: request.list and request.query.get("resourceVersionMatch") == "Exact")


def counts(at: int = 0) -> Matcher:
    """Match lists that ask how many objects there were, at any version or at one."""
    return Matcher(
        "counts",
        "",
        lambda request: (
            exact()(request)
            and request.query.get("limit") == "1"
            and "fieldSelector" not in request.query
            and (not at or request.query["resourceVersion"] == str(at))
        ),
    )


def status(
    code: int,
    reason: str,
    message: str,
    retry_after: int | None = None,
    *,
    details: Mapping[str, object] | None = None,
    token: str = "",
) -> bytes:
    """Build a Status as the API server writes it, in its order of fields; `token` is `metadata.continue`."""
    content: dict[str, object] = {"kind": "Status", "apiVersion": "v1"}
    content |= {"metadata": {"continue": token} if token else {}, "status": "Failure", "message": message}
    if reason:
        content["reason"] = reason
    details = {**(details or {}), **({} if retry_after is None else {"retryAfterSeconds": retry_after})}
    if details:
        content["details"] = details
    return json.dumps(content | {"code": code}, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True)
class Answer:
    """Answers instead of the server."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    after_frames: ClassVar[None] = None


@dataclass(frozen=True)
class ErrorFrame:
    """Ends a watch with an ERROR frame, after so many frames of the server's."""

    code: int
    reason: str
    message: str
    after_frames: int = 0


@dataclass(frozen=True)
class EndEarly:
    """Ends a stream cleanly after so many frames."""

    after_frames: int = 0


class SilentClose(EndEarly):
    """Answers 200 and ends the watch cleanly without a frame (kubernetes#104171)."""


@dataclass(frozen=True)
class CutFrame:
    """Lets through so many frames and half of the next, then ends the stream cleanly; a list is one frame."""

    after_frames: int = 0


@dataclass(frozen=True)
class Reset:
    """Resets the connection in mid-chunk, after so many frames; a list is one frame."""

    after_frames: int = 0


@dataclass(frozen=True)
class Stall:
    """Goes silent for so many seconds, or until released, and then goes on.

    `after_frames=None`: before the request is passed on; 0: after the response's headers; n: after n frames.
    """

    seconds: float = math.inf
    after_frames: int | None = None


@dataclass(frozen=True)
class Delay:
    """Waits before the request is passed on, or answered by another fault."""

    seconds: float
    after_frames: ClassVar[None] = None


@dataclass(frozen=True)
class Hook:
    """Calls the test's function, in a thread of the proxy, and goes on when it returns; else like `Stall`."""

    call: Callable[[], object]
    after_frames: int | None = None


Fault = Answer | ErrorFrame | EndEarly | CutFrame | Reset | Stall | Delay | Hook


def refusal(code: int, reason: str, message: str, retry_after: int | None = None) -> Answer:
    """Answer with a Status, and with the Retry-After header that the API server sends along."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Answer(code, status(code, reason, message, retry_after), headers)


def forbidden(verb: str = "watch", namespace: str = "", user: str = "system:serviceaccount:argo:watcher") -> Answer:
    """Answer with the 403 of RBAC, which a server that is starting also gives to users with every right."""
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    resource, group = "workflows", "argoproj.io"
    who = f'User "{user}" cannot {verb} resource "{resource}" in API group "{group}" {where}'
    message, details = f"{resource}.{group} is forbidden: {who}", {"group": group, "kind": resource}
    return Answer(403, status(403, "Forbidden", message, details=details))


def expired_page(token: str) -> Answer:
    """Answer with the 410 for an old `continue`, which offers `token` for pages of a *later* resourceVersion."""
    message = (
        "The provided continue parameter is too old to display a consistent list result. You can start a new list "
        "without the continue parameter, or use the continue token in this response to retrieve the remainder of the "
        "results. Continuing with the provided token results in an inconsistent list - objects that were created, "
        "modified, or deleted between the time the first chunk was returned and now may show up in the list."
    )
    return Answer(410, status(410, "Expired", message, token=token))


EXPIRED_WATCH = ErrorFrame(410, "Expired", "too old resource version: 294 (321)")
EXPIRED_LIST = refusal(410, "Expired", "The resourceVersion for the provided list is too old.")
STORAGE_INITIALISING = refusal(429, "TooManyRequests", "storage is (re)initializing", 1)
NOT_YET_INSTALLED = refusal(
    503,
    "ServiceUnavailable",
    "the request has been made before all known HTTP paths have been installed, please try again",
    5,
)
TOO_MANY_REQUESTS = Answer(429, b"Too many requests, please try again later.\n", {"Retry-After": "1"}, TEXT)
UNAUTHORIZED = refusal(401, "Unauthorized", "Unauthorized")
PAGE_NOT_FOUND = Answer(404, b"404 page not found\n", {"X-Content-Type-Options": "nosniff"}, TEXT)
INTERNAL_ERROR = refusal(500, "InternalError", "Internal error occurred: etcdserver: leader changed")
