"""Messages in a queue of Amazon SQS: structured CloudEvents, in batches that are acknowledged entry by entry.

A queue whose name ends in `.fifo` keeps the order of each object: its namespace and name make the message group. An
entry may fail while a later one of its batch is stored; so a batch for such a queue has at most one message of each
group. What is told again within five minutes it drops, unless a gap stands between: see `deduplication`.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import urlsplit

from job.access import Access, require, untrusted
from job.errors import ActionNeeded, Forbidden, Refused, Unauthorized, Unavailable, UsageError, WatcherError
from job.message import Message, structured
from job.ports import Check, Limits, Partly
from job.settings import Address

if TYPE_CHECKING:  # importing it takes 0.3 s
    from boto3.session import Session
    from botocore.config import Config
    from botocore.exceptions import ClientError
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import BatchResultErrorEntryTypeDef, SendMessageBatchRequestEntryTypeDef

LANES = 8
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
MOST_MESSAGES, MOST_BYTES = 10, 1_048_576
_CONNECT_SECONDS, _READ_SECONDS = 3.0, 10.0
# XML 1.0 has all characters of JSON but these two: JSON escapes the others.
_NOT_IN_XML = {"\ufffe": "\\ufffe", "\uffff": "\\uffff"}
_URL = re.compile(r"https?://[A-Za-z0-9.-]+(?::[0-9]{1,5})?/[0-9]{12}/(?P<name>[A-Za-z0-9_-]{1,80}(?:\.fifo)?)")
_REGION = re.compile(r"(?:^|\.)sqs(?:-fips)?\.(?P<region>[a-z]{2}[a-z0-9-]+-[0-9])\.|^(?P<old>[a-z0-9-]+)\.queue\.")
_MISSING = frozenset({"QueueDoesNotExist", "NonExistentQueue"})
_DENIED = frozenset({"AccessDenied", "AccessDeniedException", "KmsAccessDenied"})
_UNKNOWN = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "MissingAuthenticationToken",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_UNFIT = frozenset({"BatchRequestTooLong", "InvalidMessageContents", "InvalidParameterValue"})
_PASSING = frozenset(
    {
        "IDPCommunicationError",
        "KmsThrottled",
        "RequestThrottled",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_OPERATION = "SendMessageBatch"
_LONGEST_REASON = 300


class _Absent(ActionNeeded):
    """There is no such queue."""


class _Entry(NamedTuple):
    """A message as it is sent."""

    body: str
    group: str
    deduplication: str


def deduplication(message: Message) -> str:
    """The id by which a FIFO queue recognises, for five minutes, what it has stored.

    From those of the event. What is told again behind a gap is another message: who is told of a gap takes for gone
    what is not told again behind it (R18). And gaps have the namespace in their key alone.
    """
    return _hash(message.attributes["source"], message.key, message.id, str(message.gaps))


def arn(url: str) -> str:
    """The name of a queue in a policy; `REGION` stands for one that the URL does not tell."""
    address = urlsplit(url)
    found = _REGION.search(address.hostname or "")
    _, number, name = address.path.split("/")
    return f"arn:aws:sqs:{(found['region'] or found['old']) if found else 'REGION'}:{number}:{name}"


class SqsSink:
    """One queue."""

    limits = Limits(lanes=LANES, messages=MOST_MESSAGES, bytes=900_000)

    def __init__(self, url: str) -> None:
        self._url = url
        self._name = url.rpartition("/")[2]
        self._fifo = url.endswith(".fifo")
        self._making = threading.Lock()
        self._session: Session | None = None
        self._clients: dict[int, SQSClient] = {}
        """By their time-out in seconds, which a client has, and not a request."""

    @classmethod
    def at(cls, address: Address, _: Access) -> Self:
        """The sink of `sqs:QUEUE_URL`. Raises `UsageError`."""
        if not _URL.fullmatch(address.path):
            message = f"the sink {str(address)!r} is not sqs:https://sqs.REGION.amazonaws.com/ACCOUNT/NAME"
            raise UsageError(message)
        require("boto3", "sqs")
        return cls(address.path)

    def open(self) -> None:
        """Find the credentials and the region; boto3 renews credentials that end."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client(_READ_SECONDS)
            found = self._opened().get_credentials()
            if found:
                found.get_frozen_credentials()
        except (BotoCoreError, ClientError, OSError, ValueError) as error:
            raise self._cannot_send(error) from error
        if not found:
            message = (
                f"there are no AWS credentials for {self._name}: in a pod they come from a role that is bound to its "
                "service account, elsewhere from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws"
            )
            raise Unauthorized(message)

    def publish(self, lane: int, messages: Sequence[Message], timeout: float) -> None:  # noqa: ARG002 - a queue has none
        """Send the batch, in one request where it fits into one."""
        stored: list[str] = []
        until, left = monotonic() + timeout, timeout
        try:
            for part in self._requests(messages):
                if stored and left <= 0:
                    message = f"{self._name} took {len(stored)} of {len(messages)} messages, and so all the time"
                    raise Unavailable(message)
                self._send(part, stored, left)
                left = until - monotonic()
        except WatcherError as error:
            if stored:
                raise Partly(stored, error) from error
            raise

    def checks(self, timeout: float) -> Iterator[Check]:
        """The credentials, and the queue as far as it may be seen. Whether it may be sent to, only sending tells."""
        what = "AWS credentials"
        try:
            self.open()
            found = self._opened().get_credentials()
            yield Check.ok(what, f"found by {found.method}" if found else "")
            what = f"queue {self._name}"
            yield from self._seen(what, timeout)
        except WatcherError as error:
            remedy = "correct the address, or the environment that boto3 reads (docs/sinks.md)"
            if isinstance(error, _Absent):
                fifo = " --attributes FifoQueue=true" if self._fifo else ""
                remedy = f"aws sqs create-queue --queue-name {self._name}{fifo}"
            yield Check.fail(what, error, remedy)
            return
        simulate = (
            "aws iam simulate-principal-policy --policy-source-arn ROLE --action-names sqs:SendMessage "
            f"--resource-arns {arn(self._url)}"
        )
        unknown = "nothing but a message tells: SQS has no question for it"
        yield Check.warn("right to send", unknown, f"allow sqs:SendMessage; `{simulate}` says whether it is")

    def _seen(self, what: str, timeout: float) -> Iterator[Check]:
        from botocore.exceptions import ClientError

        kind = "FIFO, which keeps the order of each object" if self._fifo else "standard, without an order"
        try:
            with self._translated([]):
                try:
                    told = self._client(timeout).get_queue_attributes(QueueUrl=self._url, AttributeNames=["All"])
                except ClientError as error:
                    code, said = _code(error.response["Error"].get("Code")), _line(error)
                    message = f"{self._name} cannot be asked: {said}"
                    lasting = (Unavailable if _passes(error) else ActionNeeded)(message)
                    barred = self._barred(code, said) or lasting
                    raise (_Absent(str(barred)) if code in _MISSING else barred) from error
        except Forbidden as error:
            remedy = "allow sqs:GetQueueAttributes, which only doctor uses, or look with other credentials"
            yield Check.warn(what, f"it may not be seen: {error.__cause__}", remedy)
            return
        attributes = told.get("Attributes", {})
        days = int(attributes.get("MessageRetentionPeriod", 0)) / 86400
        yield Check.ok(what, f"{kind}; it keeps messages for {days:g} days")
        most = int(attributes.get("MaximumMessageSize", MOST_BYTES))
        if most < MOST_BYTES:
            remedy = (
                f"aws sqs set-queue-attributes --queue-url {self._url} --attributes MaximumMessageSize={MOST_BYTES}"
            )
            yield Check.warn("longest message", f"{most} bytes: what is longer is refused", remedy)

    def _requests(self, messages: Sequence[Message]) -> Iterator[dict[str, _Entry]]:
        """Consecutive parts of a batch that may go in one request each, by the ids of their messages."""
        part: dict[str, _Entry] = {}
        size, groups = 0, set[str]()
        for message in messages:
            body, group = self._body(message), _hash(message.attributes["source"], message.key)
            length = len(body.encode())
            if part and (size + length > MOST_BYTES or message.id in part or (self._fifo and group in groups)):
                yield part
                part, size, groups = {}, 0, set()
            part[message.id] = _Entry(body, group, deduplication(message))
            size += length
            groups.add(group)
        yield part

    def _body(self, message: Message) -> str:
        """The event as the text of a message. Refuses what the service would."""
        try:
            body = structured(message).decode()
        except UnicodeDecodeError as error:
            refusal = f"{self._name} cannot take message {message.id}: it is not UTF-8"
            raise Refused(refusal, [message.id]) from error
        for character, escaped in _NOT_IN_XML.items():
            body = body.replace(character, escaped)
        if (size := len(body.encode())) > MOST_BYTES:
            refusal = f"{self._name} cannot take message {message.id}: {size} bytes, and the most are {MOST_BYTES}"
            raise Refused(refusal, [message.id])
        return body

    def _send(self, part: dict[str, _Entry], stored: list[str], timeout: float) -> None:
        """One request; what it has stored is added, and what it has not raises."""
        ids = list(part)
        entries: list[SendMessageBatchRequestEntryTypeDef] = [
            {"Id": str(number), "MessageBody": entry.body} for number, entry in enumerate(part.values())
        ]
        if self._fifo:
            for sent, entry in zip(entries, part.values(), strict=True):
                sent["MessageGroupId"], sent["MessageDeduplicationId"] = entry.group, entry.deduplication
        with self._translated(ids):
            answer = self._client(timeout).send_message_batch(QueueUrl=self._url, Entries=entries)
            successful = {entry["Id"] for entry in answer.get("Successful", [])}
            failed = {entry["Id"]: entry for entry in answer.get("Failed", [])}
        told = [each for number, each in enumerate(ids) if str(number) in successful]
        stored += told
        for each in failed.values():
            if barred := self._barred(_code(each.get("Code")), _reason(each)):
                raise barred
        poison = {each: failed[str(number)] for number, each in enumerate(ids) if _is_poison(failed.get(str(number)))}
        if poison:
            said = "; ".join(f"message {each}: {_reason(entry)}" for each, entry in poison.items())
            refusal = f"{self._name} refused {said}"
            raise Refused(refusal, list(poison))
        if len(told) < len(ids):
            said = "; ".join(sorted({_reason(entry) for entry in failed.values()})) or "it says nothing of them"
            message = f"{self._name} did not take {len(ids) - len(told)} of {len(ids)} messages: {said}"
            raise Unavailable(message)

    def _opened(self) -> Session:
        """Where boto3 finds credentials: asked for once, with time-outs for those who give them."""
        if not self._session:
            import boto3.session
            import botocore.session

            core = botocore.session.get_session()
            core.set_default_client_config(_configuration(_READ_SECONDS))
            self._session = boto3.session.Session(botocore_session=core)
        return self._session

    def _client(self, timeout: float) -> SQSClient:
        """A client whose requests take so many seconds at most, for each read, and are not repeated."""
        seconds = max(1, int(min(timeout, _READ_SECONDS)))
        with self._making:
            if seconds not in self._clients:
                address = urlsplit(self._url)
                self._clients[seconds] = self._opened().client(
                    "sqs",
                    region_name=self._region(address.hostname or ""),
                    endpoint_url=f"{address.scheme}://{address.netloc}",
                    config=_configuration(seconds),
                )
            return self._clients[seconds]

    def _region(self, host: str) -> str:
        """The region that the host names, or else the environment."""
        found = _REGION.search(host)
        named = found and (found["region"] or found["old"])
        region = named or self._opened().region_name or os.environ.get("AWS_REGION")
        if not region:
            message = f"{self._url} does not name its region: set AWS_DEFAULT_REGION"
            raise UsageError(message)
        return region

    @contextmanager
    def _translated(self, ids: Sequence[str]) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        try:
            yield
        except ClientError as error:
            # Another operation has been asked for credentials: they are renewed when they are needed.
            sent = error.operation_name == _OPERATION
            raise (self._told(error, ids) if sent else self._cannot_send(error)) from error
        except (ResponseParserError, UnicodeDecodeError, LookupError, TypeError, AttributeError) as error:
            message = f"{self._name} did not take {len(ids)} messages: {_line(error)}"
            raise Unavailable(message) from error
        except (BotoCoreError, OSError, ValueError) as error:
            raise self._cannot_send(error) from error

    def _cannot_send(self, error: Exception) -> WatcherError:
        """Why nothing can be sent at all; what boto3 leaves as `OSError` or `ValueError` is in files and settings."""
        from botocore.exceptions import InvalidRegionError, ProfileNotFound

        if untrusted(error):
            message = f"{self._name} has a certificate that is not trusted: {_line(error)} (AWS_CA_BUNDLE names others)"
            return ActionNeeded(message)
        if _passes(error):
            return Unavailable(f"{self._name} cannot be sent to for the moment: {_line(error)}")
        if isinstance(error, (InvalidRegionError, ProfileNotFound)):
            return UsageError(f"{self._name} cannot be sent to as the environment says: {_line(error)}")
        return Unauthorized(f"no AWS credentials could be had for {self._name}: {_line(error)}")

    def _told(self, error: ClientError, ids: Sequence[str]) -> WatcherError:
        """What the service means by an error."""
        code, said = _code(error.response["Error"].get("Code")), _line(error)
        if code in _UNFIT:
            what = f"message {ids[0]}" if len(ids) == 1 else f"one of {len(ids)} messages"
            return Refused(f"{self._name} refused {what}: {said}", ids)
        if barred := self._barred(code, said):
            return barred
        if _passes(error):
            return Unavailable(f"{self._name} did not take {len(ids)} messages: {said}")
        return ActionNeeded(f"{self._name} cannot be sent to until somebody mends it: {said}")

    def _barred(self, code: str, said: str) -> ActionNeeded | None:
        """Why no message can be sent, whichever it is; None where that is not what the code says."""
        if code in _MISSING:
            return ActionNeeded(f"the queue {self._url} does not exist: create it, or correct the address ({said})")
        if code in _DENIED:
            return Forbidden(f"the credentials may not send to {self._name}: allow sqs:SendMessage on it ({said})")
        if code in _UNKNOWN:
            return Unauthorized(f"{self._name} refused the credentials: {said}")
        return None


def _configuration(seconds: float) -> Config:
    from botocore.config import Config

    return Config(
        connect_timeout=min(_CONNECT_SECONDS, seconds),
        read_timeout=seconds,
        retries={"total_max_attempts": 1},  # the run tries again
        max_pool_connections=LANES,
    )


def _passes(error: Exception) -> bool:
    """Whether the next attempt may succeed."""
    from botocore.exceptions import (
        ClientError,
        ConnectionError as BotoConnectionError,
        CredentialRetrievalError,
        HTTPClientError,
        IncompleteReadError,
        MetadataRetrievalError,
    )

    if not isinstance(error, ClientError):
        broken = (BotoConnectionError, HTTPClientError, IncompleteReadError, ConnectionError, TimeoutError)
        return isinstance(error, (*broken, CredentialRetrievalError, MetadataRetrievalError))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    throttled = _code(error.response["Error"].get("Code")) in _PASSING
    lasting = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    return throttled or not lasting or status in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}


def _is_poison(entry: BatchResultErrorEntryTypeDef | None) -> bool:
    return entry is not None and bool(entry.get("SenderFault")) and _code(entry.get("Code")) not in _PASSING


def _code(code: str | None) -> str:
    """The last part of `KMS.ThrottlingException`."""
    return (code or "").rpartition(".")[2]


def _hash(*names: str) -> str:
    return sha256("\n".join(names).encode()).hexdigest()


def _reason(entry: BatchResultErrorEntryTypeDef) -> str:
    return f"{entry.get('Code')}: {entry.get('Message', '')}".removesuffix(": ")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST_REASON]
