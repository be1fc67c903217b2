"""What a test scripts a `GcsServer` to do wrong: requests, matchers for them, and faults.

    refused = server.inject(on=writes(), fault=UNAVAILABLE, times=2)
    ...
    assert refused.fired == 2

- At each moment of a request, the first armed injection that matches acts.
- What is not reached has not fired and stays armed: a fault in a download needs an object that is there, with a byte.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
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
    """Goes silent for so many seconds, or until released or the server is left, and then goes on."""

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


@dataclass(eq=False)
class Injection:
    """One scripted fault; `fired` says how often it has really happened."""

    on: Matcher
    fault: Fault
    left: float
    skip: int
    fired: int = 0
    withdrawn: bool = False
    released: threading.Event = field(default_factory=threading.Event, repr=False)

    def release(self) -> None:
        """End its stalls and pauses, also those to come."""
        self.released.set()

    def withdraw(self) -> None:
        """Disarm it; what it is doing now goes on."""
        self.withdrawn = True


class Script:
    """What the test has scripted and what has happened, shared by all threads."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.requests: list[Request] = []
        self.failures: list[BaseException] = []
        self._injections: list[Injection] = []

    def add(self, injection: Injection) -> None:
        with self.changed:
            self._injections.append(injection)

    def record(self, request: Request) -> None:
        with self.changed:
            self.requests.append(request)
            self.changed.notify_all()

    def claim(self, request: Request, moment: Moment) -> Injection | None:
        """Take what is to happen at this moment of the request, and count it."""
        with self.changed:
            for injection in self._injections:
                reached = injection.fault.moment is moment and injection.on(request)
                if not reached or injection.withdrawn or not injection.left:
                    continue
                if injection.skip:
                    injection.skip -= 1
                    continue
                injection.left -= 1
                injection.fired += 1
                self.changed.notify_all()
                return injection
            return None

    def release(self) -> None:
        with self.changed:
            for injection in self._injections:
                injection.release()

    def wait(self, measure: Callable[[], int], what: str, count: int, timeout: float) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: measure() >= count, timeout):
                message = f"{measure()} of {count} {what} after {timeout} s; requests: {self.requests}"
                raise TimeoutError(message)
