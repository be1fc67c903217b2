"""What a run needs from the outside: where changes come from, where they go, and where the position is kept.

The docstrings are the contracts; `tests/contracts/` holds every adapter, and the fakes, to them. All three may raise
any `WatcherError`; of these, `Unavailable` is worth a retry.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Protocol, Self

import msgspec

from job.change import Kind, Object
from job.errors import WatcherError
from job.message import Message


class Patience(Protocol):
    """How long an adapter may go on trying."""

    def left(self) -> float:
        """Seconds until the work must be done; never negative."""

    def pause(self, seconds: float) -> None:
        """Wait between two attempts. Raises `OutOfTime` when there is no time for another, `Stopped` on a signal."""


class Verdict(StrEnum):
    """What a check has come to."""

    OK = "ok"
    WARN = "warn"
    """Runs work, and lose or cost something that a person may want to know of; or it cannot be known."""
    FAIL = "fail"
    """No run will work before a person has acted; a receiver that is away may come back by itself, and dead letters are
    needed by the first message that is refused."""


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at before a run (`doctor`)."""

    what: str
    verdict: Verdict
    found: str
    remedy: str = ""
    """What to do next; empty where all is well."""

    @classmethod
    def ok(cls, what: str, found: str) -> Self:
        """It is as a run needs it."""
        return cls(what, Verdict.OK, found)

    @classmethod
    def warn(cls, what: str, found: object, remedy: str) -> Self:
        """Runs go on without it."""
        return cls(what, Verdict.WARN, str(found), remedy)

    @classmethod
    def fail(cls, what: str, found: object, remedy: str) -> Self:
        """Runs do not; `found` may be the error that they end with."""
        return cls(what, Verdict.FAIL, str(found), remedy)


class Identity(msgspec.Struct, frozen=True):
    """Which cluster, and which CustomResourceDefinition in it; None where the credentials may not know (R5)."""

    cluster: str | None = None
    definition: str | None = None


class Query(msgspec.Struct, frozen=True):
    """One LIST request.

    Without `at` it is consistent: the state now, at the version the page names. With `at` it is the state at exactly
    that version. `token` continues a page, at the version of its first one. `name` narrows it to one object.
    Metadata only, unless `whole`.
    """

    limit: int
    at: int = 0
    token: str = ""
    namespace: str = ""
    name: str = ""
    whole: bool = False


class Page(msgspec.Struct, frozen=True):
    """Part of a listing. `version` is that of the whole listing; an empty `token` says that this is the last page."""

    version: int
    objects: Sequence[Object]
    token: str = ""
    remaining: int | None = None
    """How many objects the later pages have; None on the last page, and where the server does not say."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """A watch frame about one object. A deletion carries the last object, with the deletion's version."""

    kind: Kind
    object: Object


class Bookmark(msgspec.Struct, frozen=True):
    """A watch frame that says: nothing up to `version` is still to come."""

    version: int


class Failure(msgspec.Struct, frozen=True):
    """A watch frame that ends the stream with an error, as an HTTP status."""

    code: int
    message: str


Frame = Event | Bookmark | Failure


class Stream(Protocol):
    """An open watch."""

    def __iter__(self) -> Iterator[list[bytes]]:
        """Whole frames, undecoded, as they arrive; ends when the server ends the stream.

        Raises `Unavailable` when the connection broke or the last frame is cut off; all frames before it were given.
        """

    def close(self) -> None:
        """End the stream, also from another thread, where a blocked read ends at once."""


class Source(Protocol):
    """The changes of one resource in one scope. Reading never changes anything."""

    def identity(self) -> Identity:
        """Who is answering."""

    def namespace_exists(self) -> bool | None:
        """Whether the scope's namespace does; None where it cannot be known. An empty list does not tell."""

    def kind(self) -> str:
        """The resource's kind: `Workflow` for `workflows`."""

    def list(self, query: Query, patience: Patience | None = None) -> Page:
        """One page, from any thread. Raises `Expired` when the server's history no longer has the version or the token.

        `patience` may end the attempts earlier than those of the run.
        """

    def watch(self, version: int, seconds: int) -> Stream:
        """Everything after `version`, in the order of versions, until the server ends it after `seconds` (>= 3).

        Raises `Expired` when the server says so before the stream begins.
        """

    def decode(self, line: bytes) -> Frame:
        """What a frame of `watch` says."""

    def checks(self) -> Iterator[Check]:
        """Look at all that a run needs of it, and tell each as soon as it is known.

        Changes nothing, and works before the first run. What is wrong is a check that says so, and never an error;
        those that make no sense after it are left out. Takes as long as a request may take, for each.
        """


class Limits(msgspec.Struct, frozen=True):
    """How a sink wants its batches."""

    lanes: int
    """Batches of different lanes may be published at the same time, from different threads; those of one lane never."""
    messages: int
    """The most messages of a batch."""
    bytes: int
    """The most data of a batch, unless a single message is larger."""


class Partly(Exception):
    """Some messages of a batch are stored, and `reason` says what became of all the others.

    Where the sink keeps an order, what is stored of each key comes before what is not.
    """

    def __init__(self, stored: Collection[str], reason: WatcherError) -> None:
        """`stored` are ids of messages; of two with the same one the first is stored before the second."""
        super().__init__(str(reason))
        self.stored = tuple(stored)
        self.reason = reason


class Sink(Protocol):
    """Stores messages."""

    limits: Limits

    def open(self) -> None:
        """Get ready, once, before the watch opens: find out what can be known without publishing, as credentials."""

    def publish(self, lane: int, messages: Sequence[Message], timeout: float) -> None:
        """Return when every message is stored, in this order; `timeout` in seconds.

        One attempt. Raises `Unavailable` when it is unknown which of them were, `Refused` when none were and some never
        will be, and `Partly` when some were, with the error that the others would have raised alone.
        Publishing the same messages again is allowed and may store them twice.
        """

    def checks(self, timeout: float) -> Iterator[Check]:
        """As those of a `Source`, instead of `open`; nothing is published. `timeout` in seconds, for each request."""


class Conflict(Exception):
    """The stored bytes are not the ones to be replaced."""


class Stored(msgspec.Struct, frozen=True):
    """Bytes and the token that names them."""

    data: bytes
    token: object
    """Only the store that made it can read it."""


class Store(Protocol):
    """Keeps one small value."""

    @property
    def most_bytes(self) -> int | None:
        """The largest value that it takes, as far as its last answer said; None: larger than any checkpoint."""

    def open(self) -> None:
        """Get ready, once, before the first load: find the credentials."""

    def load(self, timeout: float) -> Stored | None:
        """The value, or None if there is none; unreadable is an error, never None. One attempt, of `timeout` > 0 s."""

    def look(self, timeout: float) -> Stored | None:
        """As `load`, by somebody who will not save: nothing is ever written.

        None also where there may be a value that the credentials may not know of.
        """

    def save(self, data: bytes, replacing: object | None, timeout: float) -> object:
        """Replace the value that `replacing` names (None: there must be none) and return the new token. One attempt.

        Raises `Conflict`, and changes nothing, when another value is stored. After `Unavailable` it is unknown whether
        the value was replaced.
        """

    def checks(self, timeout: float) -> Iterator[Check]:
        """As those of a `Sink`, instead of `open`: that the value can be read and replaced. It is not looked into."""


class Received(msgspec.Struct, frozen=True):
    """One delivery of a message. The same message, delivered again, may have another `ack_id`."""

    ack_id: str
    message_id: str
    """Given by the broker, for people; a message that was published twice has two."""
    attributes: Mapping[str, str]
    data: bytes
    published: datetime
    ordering_key: str = ""
    """Whose order the broker keeps: after one that was refused it delivers all later ones of the key again, and that
    only when it has been told about all that it had delivered before. Empty: it keeps none."""


class Subscription(Protocol):
    """Messages that wait until somebody has processed them.

    Each method is one attempt, and may be called in any thread. `acknowledge`, `refuse` and `extend` take ids that are
    no longer valid, as that of a lease that has ended: such a message is delivered again.
    """

    def open(self) -> None:
        """Get ready, once, before the first pull: find the credentials."""

    def pull(self, most: int, timeout: float) -> Sequence[Received]:
        """Up to so many deliveries, as soon as there are some; none after `timeout` seconds, or earlier.

        Each is leased to the caller for ten seconds or more, and delivered again when that is over.
        """

    def extend(self, ack_ids: Sequence[str], seconds: int) -> None:
        """Lease these deliveries for so many seconds from now."""

    def acknowledge(self, ack_ids: Sequence[str]) -> None:
        """Say that they are processed: they are not delivered again, as a rule."""

    def refuse(self, ack_ids: Sequence[str]) -> None:
        """Give them back: they are delivered again, when the broker finds it right."""
