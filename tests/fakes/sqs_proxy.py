"""What a test puts between the program and an SQS, to let it do what it never does there.

    with SqsProxy(moto.url) as proxy:
        proxy.inject(Partial({1, 3}))
        ...
        assert proxy.requests[0].ids == (...)

Only `SendMessageBatch` and `GetQueueAttributes` are looked at, in the JSON protocol:
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatch.html. And it plays the STS
where somebody asks it for the credentials of a role:
https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import urllib3

from tests.fakes.http_server import Handler, HttpServer, Listener

if TYPE_CHECKING:
    from tests.fakes.script import Injection

_TARGET, _ATTRIBUTES = "AmazonSQS.SendMessageBatch", "AmazonSQS.GetQueueAttributes"
_ROLE = """
<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>
  <AccessKeyId>test</AccessKeyId>
  <SecretAccessKey>test</SecretAccessKey>
  <SessionToken>test</SessionToken>
  <Expiration>{end:%Y-%m-%dT%H:%M:%SZ}</Expiration>
</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>
""".strip()


@dataclass(frozen=True)
class Request:
    """One batch."""

    entries: tuple[Mapping[str, str], ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """Those of the events in it."""
        return tuple(str(json.loads(entry["MessageBody"])["id"]) for entry in self.entries)


@dataclass(frozen=True)
class Partial:
    """Fails the entries in these places; the others are stored."""

    places: frozenset[int]
    sender_fault: bool = False
    code: str = "InternalError"
    message: str = "said by the service"


@dataclass(frozen=True)
class Poison:
    """Fails every entry whose event has one of these ids, as the sender's fault; the others are stored."""

    ids: frozenset[str]


@dataclass(frozen=True)
class Refusal:
    """Stores nothing, and answers this error."""

    status: int
    code: str
    message: str = "said by the service"


@dataclass(frozen=True)
class Body:
    """Stores nothing, and answers this with 200."""

    content: bytes


@dataclass(frozen=True)
class LostAnswer:
    """Stores everything, and closes the connection without an answer."""


@dataclass(frozen=True)
class Stall:
    """Stores nothing, and does not answer."""


@dataclass(frozen=True)
class Delay:
    """Stores everything, and answers only after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class NoRole:
    """Answers this error to who asks for credentials; otherwise they get some that must soon be renewed."""

    status: int
    code: str


@dataclass(frozen=True)
class NoAttributes:
    """Answers this error to who asks for those of a queue."""

    status: int
    code: str


Fault = Partial | Poison | Refusal | Body | LostAnswer | Stall | Delay | NoRole | NoAttributes


class _Handler(Handler):
    server: Listener[SqsProxy]

    def do_POST(self) -> None:  # noqa: N802 - the name that http.server looks for
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if body.startswith(b"Action=AssumeRoleWithWebIdentity"):
            self._give_role()
            return
        if self.headers.get("X-Amz-Target") == _ATTRIBUTES:
            self._give_attributes(body)
            return
        if self.headers.get("X-Amz-Target") != _TARGET:
            self._answer(*self._forward(body))
            return
        proxy, request = self.server.fake, Request(tuple(json.loads(body)["Entries"]))
        proxy.record(request)
        claimed = proxy.claim(request, lambda fault: not isinstance(fault, NoRole | NoAttributes))
        if not claimed:
            self._answer(*self._forward(body))
            return
        (injection,) = claimed
        proxy.count(injection)
        self._fail(injection, request, body)

    def _fail(self, injection: Injection[Request, Fault], request: Request, body: bytes) -> None:
        content = json.loads(body)
        match injection.fault:
            case Partial(places, sender_fault, code, message):
                self._partly(content, places, {"SenderFault": sender_fault, "Code": code, "Message": message})
            case Poison(ids):
                places = frozenset(place for place, each in enumerate(request.ids) if each in ids)
                self._partly(content, places, {"SenderFault": True, "Code": "InvalidMessageContents"})
            case Refusal(status, code, message):
                self._refuse(status, code, message)
            case Body(content_):
                self._answer(200, content_)
            case LostAnswer():
                self._forward(body)
                raise ConnectionAbortedError
            case Stall():
                self.stall(injection, math.inf)
                raise ConnectionAbortedError
            case Delay(seconds):
                answer = self._forward(body)
                self.stall(injection, seconds)
                self._answer(*answer)

    def _give_role(self) -> None:
        status, body = 200, _ROLE.format(end=datetime.now(UTC) + timedelta(seconds=60))
        for injection in self.server.fake.claim(Request(()), lambda fault: isinstance(fault, NoRole)):
            self.server.fake.count(injection)
            if isinstance(injection.fault, NoRole):
                status, code = injection.fault.status, injection.fault.code
                body = f"<ErrorResponse><Error><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"
        self._answer(status, body.encode())

    def _give_attributes(self, body: bytes) -> None:
        for injection in self.server.fake.claim(Request(()), lambda fault: isinstance(fault, NoAttributes)):
            self.server.fake.count(injection)
            if isinstance(injection.fault, NoAttributes):
                self._refuse(injection.fault.status, injection.fault.code, "said by the service")
                return
        self._answer(*self._forward(body))

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._answer(status, json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": message}).encode())

    def _partly(self, content: dict[str, Any], places: frozenset[int], reason: Mapping[str, object]) -> None:
        entries = content["Entries"]
        failed = [{"Id": entry["Id"], **reason} for place, entry in enumerate(entries) if place in places]
        content["Entries"] = [entry for place, entry in enumerate(entries) if place not in places]
        answer: dict[str, Any] = {}
        if content["Entries"]:
            _, stored = self._forward(json.dumps(content).encode())
            answer = json.loads(stored)
        self._answer(200, json.dumps(answer | {"Failed": failed}).encode())

    def _forward(self, body: bytes) -> tuple[int, bytes]:
        kept = ("X-Amz-Target", "Content-Type", "Authorization", "X-Amz-Date")
        headers = {name: self.headers[name] for name in kept if name in self.headers}
        answer = urllib3.request(
            "POST", self.server.fake.upstream + self.path, body=body, headers=headers, retries=False, timeout=30
        )
        return answer.status, answer.data

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class SqsProxy(HttpServer[Request, Fault]):
    """The proxy in front of one server."""

    def __init__(self, upstream: str) -> None:
        super().__init__(_Handler, "sqs-proxy")
        self.upstream = upstream

    def queue(self, url: str) -> str:
        """The URL of a queue of the server's, on the way through here."""
        return self.url + urlsplit(url).path
