"""What a test scripts a `GcsServer` to do wrong: requests, matchers for them, and faults.

    refused = server.inject(on=writes(), fault=UNAVAILABLE, times=2)
    ...
    assert refused.fired == 2

- At each moment of a request, the first armed injection that matches acts.
- What is not reached has not fired and stays armed: a fault in a download needs an object that is there, with a byte.
"""

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

from tests.fakes.gcs_api import INVALID_CREDENTIALS, Kind, Request
from tests.fakes.gcs_objects import CALLER, RefusedError, forbidden


@dataclass(frozen=True)
class Matcher:
    """Which requests are meant: those of these kinds, and with `name` somewhere in the object's name."""

    kinds: tuple[Kind, ...]
    name: str

    def __call__(self, request: Request) -> bool:
        """Whether this request is meant."""
        return request.kind in self.kinds and self.name in request.name


def anything(name: str = "") -> Matcher:
    """Match every request."""
    return Matcher(tuple(Kind), name)


def reads(name: str = "") -> Matcher:
    """Match downloads, and the further ones by which a client resumes one."""
    return Matcher((Kind.READ,), name)


def lookups(name: str = "") -> Matcher:
    """Match requests for the metadata of one object."""
    return Matcher((Kind.LOOKUP,), name)


def writes(name: str = "") -> Matcher:
    """Match requests that bring data: one for a multipart upload, one for each piece of a resumable one."""
    return Matcher((Kind.WRITE,), name)


def deletes(name: str = "") -> Matcher:
    """Match deletions."""
    return Matcher((Kind.DELETE,), name)


def lists(name: str = "") -> Matcher:
    """Match lists of objects, `name` being in their prefix."""
    return Matcher((Kind.LIST,), name)


class Moment(Enum):
    """When in a request a fault acts."""

    IN_UPLOAD = auto()
    """Half of the request's body is read, or more of a small one, which its head must be found in."""
    BEFORE = auto()
    """The request is read, and nothing is applied."""
    AFTER = auto()
    """All is applied, and nothing is answered."""
    IN_DOWNLOAD = auto()
    """The headers and half of an object's data are sent."""


@dataclass(frozen=True)
class Answer:
    """Answers instead of the server, which applies nothing."""

    error: RefusedError
    moment: ClassVar[Moment] = Moment.BEFORE


@dataclass(frozen=True)
class LostResponse:
    """Applies the request and closes the connection without an answer."""

    moment: ClassVar[Moment] = Moment.AFTER


@dataclass(frozen=True)
class Reset:
    """Resets the connection."""

    moment: Moment = Moment.BEFORE


@dataclass(frozen=True)
class Stall:
    """Goes silent for so many seconds, or until released, and then goes on."""

    moment: Moment = Moment.BEFORE
    seconds: float = math.inf


@dataclass(frozen=True)
class Truncated:
    """Sends half of an object's data and ends the connection cleanly."""

    moment: ClassVar[Moment] = Moment.IN_DOWNLOAD


@dataclass(frozen=True)
class Corrupted:
    """Sends half of an object's data, and the other half with every bit turned; the headers tell of the right data."""

    moment: ClassVar[Moment] = Moment.IN_DOWNLOAD


@dataclass(frozen=True)
class Drip:
    """Sends the other half of an object's data in pieces of so many bytes, with so many seconds before each."""

    seconds: float = 0.02
    size: int = 1
    moment: ClassVar[Moment] = Moment.IN_DOWNLOAD


Fault = Answer | LostResponse | Reset | Stall | Truncated | Corrupted | Drip


def refusal(code: int, message: str, reason: str, retry_after: int | None = None) -> Answer:
    """Answer with an error of Google's."""
    return Answer(RefusedError(code, message, reason, {} if retry_after is None else {"Retry-After": str(retry_after)}))


def denied(permission: str, caller: str = CALLER) -> Answer:
    """Answer with the 403 of IAM, which may come for minutes after a permission was given."""
    return Answer(forbidden(permission, caller))


# https://cloud.google.com/storage/docs/gcs429: more than one write of an object in a second.
RATE_LIMITED = refusal(
    429,
    "The object exceeded the rate limit for object mutation operations (create, update, and delete). Please reduce "
    "your request rate. See https://cloud.google.com/storage/docs/gcs429.",
    "rateLimitExceeded",
    1,
)
INTERNAL_ERROR = refusal(500, "We encountered an internal error. Please try again.", "internalError")
UNAVAILABLE = refusal(503, "We encountered an internal error. Please try again.", "backendError")
UNAUTHORIZED = Answer(INVALID_CREDENTIALS)
