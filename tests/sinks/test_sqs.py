"""Tests of messages in Amazon SQS."""

from __future__ import annotations

import itertools
import json
import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
import trustme

from job.change import Gap, Missing, Reason
from job.errors import ActionNeeded, Forbidden, Refused, Unauthorized, Unavailable, UsageError, WatcherError
from job.message import Envelope, Message, structured
from job.ports import Partly, Sink
from job.settings import parse_address
from job.sinks.sqs import MOST_BYTES, SqsSink, deduplication
from tests.bed.moto import CREDENTIALS, Moto
from tests.contracts.sink import TIMEOUT, ReadBack, SinkContract, message, parsed
from tests.fakes.access import nobody
from tests.fakes.relay import TlsFront
from tests.fakes.source import WORKFLOWS
from tests.fakes.sqs_proxy import Body, Delay, Fault, LostAnswer, NoRole, Partial, Refusal, SqsProxy, Stall

KEY = "aws_access_key_id = a\naws_secret_access_key = b\n"
ROLE = "arn:aws:iam::123456789012:role/r"
SSO = """sso_session = s
sso_account_id = 123456789012
sso_role_name = r
[sso-session s]
sso_region = eu-west-1
sso_start_url = https://sso.example/start
"""
_names = (f"changes-{number}" for number in itertools.count(1))


def sink_to(url: str) -> SqsSink:
    sink = SqsSink.at(parse_address(f"sqs:{url}", "sink", ["sqs"]), nobody())
    sink.open()
    return sink


def batch(*numbers: int) -> list[Message]:
    """Messages of one object."""
    return [message(number) for number in numbers]


def of_many(*numbers: int) -> list[Message]:
    """Messages of as many objects."""
    return [msgspec.structs.replace(message(number), key=f"argo/w{number}") for number in numbers]


def ids(*numbers: int) -> list[str]:
    return [f"uid/{number}" for number in numbers]


def gap(start: int, end: int, namespace: str = "argo") -> Message:
    return Envelope("c", WORKFLOWS, namespace).gap(Gap(Reason.EXPIRED, start, end, "", Missing.INTERMEDIATE), 1)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file in which alone credentials may be found."""
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    return tmp_path / "config"


@pytest.fixture
def process(config: Path) -> Path:
    """A program that gives credentials which must soon be renewed."""
    end = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    found = {"Version": 1, "AccessKeyId": "test", "SecretAccessKey": "test", "Expiration": end}
    program = config.with_name("credentials.sh")
    program.write_text(f"#!/bin/sh\necho '{json.dumps(found)}'\n")
    program.chmod(0o700)
    config.write_text(f"[default]\ncredential_process = {program}\n")
    return program


@pytest.fixture
def role(monkeypatch: pytest.MonkeyPatch, config: Path, proxy: SqsProxy) -> None:
    """Credentials that the proxy gives, and which must soon be renewed."""
    token = config.with_name("token")
    token.write_text("a token")
    config.write_text(f"[default]\nrole_arn = {ROLE}\nweb_identity_token_file = {token}\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", proxy.url)


class _Contract(SinkContract):
    @pytest.fixture
    def sink(self, queue: str) -> Sink:
        return sink_to(queue)

    @pytest.fixture
    def broken(self, queue: str) -> Sink:
        return sink_to(queue.replace("changes-", "nothing-"))

    @pytest.fixture
    def stored(self, moto: Moto, queue: str) -> ReadBack:
        return lambda: parsed("\n".join(moto.drain(queue)).encode())


class TestSqsSink(_Contract):
    """Moto keeps the order of a standard queue, too."""

    @pytest.fixture
    def queue(self, moto: Moto) -> str:
        return moto.create_queue(next(_names))


class TestSqsFifoSink(_Contract):
    @pytest.fixture
    def queue(self, moto: Moto) -> str:
        return moto.create_queue(f"{next(_names)}.fifo")


@pytest.fixture(params=["standard", "fifo"])
def queue(request: pytest.FixtureRequest, moto: Moto) -> str:
    return moto.create_queue(next(_names) + (".fifo" if request.param == "fifo" else ""))


@pytest.fixture
def proxy(moto: Moto) -> Iterator[SqsProxy]:
    with SqsProxy(moto.url) as between:
        yield between


@pytest.fixture
def sink(proxy: SqsProxy, queue: str) -> SqsSink:
    return sink_to(proxy.queue(queue))


@pytest.fixture
def fifo(moto: Moto) -> str:
    return moto.create_queue(f"{next(_names)}.fifo")


def stored_in(moto: Moto, queue: str) -> list[str]:
    return [json.loads(body)["id"] for body in moto.drain(queue)]


def test_a_batch_is_one_request(sink: SqsSink, proxy: SqsProxy) -> None:
    """Of ten messages at most, each a structured event."""
    sink.publish(0, of_many(*range(10)), TIMEOUT)

    (request,) = proxy.requests
    assert [entry["MessageBody"] for entry in request.entries] == [
        structured(each).decode() for each in of_many(*range(10))
    ]


def test_the_versions_of_one_object_go_one_after_the_other_to_a_fifo_queue(
    moto: Moto, proxy: SqsProxy, fifo: str
) -> None:
    """An entry may fail while the next is stored: no request has two of one group."""
    mixed = [*batch(1), *of_many(2), *batch(3, 4), *of_many(5)]
    sink_to(proxy.queue(fifo)).publish(0, mixed, TIMEOUT)

    assert [request.ids for request in proxy.requests] == [("uid/1", "uid/2"), ("uid/3",), ("uid/4", "uid/5")]
    assert stored_in(moto, fifo) == ids(1, 2, 3, 4, 5)


def test_an_object_is_a_group_and_an_event_is_stored_once(moto: Moto, proxy: SqsProxy, fifo: str) -> None:
    """By names that fit and that clusters do not share; a repeat within five minutes is dropped by the service."""
    sink = sink_to(proxy.queue(fifo))
    elsewhere = message(1)
    elsewhere = msgspec.structs.replace(elsewhere, attributes=elsewhere.attributes | {"source": "/clusters/d"})
    sink.publish(0, [*batch(1), elsewhere, *of_many(2)], TIMEOUT)
    sink.publish(0, batch(1), TIMEOUT)

    entries = [entry for request in proxy.requests for entry in request.entries]
    groups = [entry["MessageGroupId"] for entry in entries]
    deduplications = [entry["MessageDeduplicationId"] for entry in entries]
    assert all(re.fullmatch("[0-9a-f]{64}", each) for each in (*groups, *deduplications))
    assert len(set(groups)) == len(set(deduplications)) == 3
    assert (groups[0], deduplications[0]) == (groups[3], deduplications[3])
    assert stored_in(moto, fifo) == ["uid/1", "uid/1", "uid/2"]


def test_a_repeat_of_another_run_is_dropped(moto: Moto, proxy: SqsProxy, fifo: str) -> None:
    """The id is made of the event: who was killed before its save is repeated, and the queue has it once."""
    for _ in range(2):
        sink_to(proxy.queue(fifo)).publish(0, batch(1), TIMEOUT)

    assert len(proxy.requests) == 2
    assert stored_in(moto, fifo) == ids(1)


def test_r18_what_is_told_again_behind_a_gap_is_stored_again(moto: Moto, proxy: SqsProxy, fifo: str) -> None:
    """Who is told of a gap takes for gone what is not told behind it: that is no repeat, and its own repeat is one."""
    told, again = message(1), msgspec.structs.replace(message(1), gaps=1)
    for each in (told, gap(1, 5), again, again):
        sink_to(proxy.queue(fifo)).publish(0, [each], TIMEOUT)

    assert len(proxy.requests) == 4
    assert stored_in(moto, fifo) == ["uid/1", "1-5/gap", "uid/1"]


def test_gaps_of_two_namespaces_are_two_messages() -> None:
    """Their ids and sources are the same, where the same versions were lost."""
    assert len({deduplication(gap(1, 5, namespace)) for namespace in ("argo", "dev", "")}) == 3


def test_characters_that_xml_has_not_are_escaped(sink: SqsSink, moto: Moto, queue: str) -> None:
    """As JSON escapes the others: the event says the same."""
    text = "\ufffe\uffff\ufffd\u0001\u2028\U0010ffff"
    data = json.dumps({"text": text}, ensure_ascii=False).encode()
    sink.publish(0, [message(1, data)], TIMEOUT)

    (body,) = moto.drain(queue)
    assert not re.search("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", body)
    assert json.loads(body)["data"] == {"text": text}


def test_what_is_no_text_is_refused(sink: SqsSink, proxy: SqsProxy) -> None:
    """The API server does not write it; the message is named, and nothing is sent."""
    with pytest.raises(Refused, match="uid/1: it is not UTF-8"):
        sink.publish(0, [message(1, b'"\xff"')], TIMEOUT)
    assert proxy.requests == ()


def test_the_limit_of_a_message_is_that_of_the_service(sink: SqsSink, proxy: SqsProxy, moto: Moto, queue: str) -> None:
    """One that just fits is taken, in a request of its own; one byte more is refused, and nothing is sent."""
    room = MOST_BYTES - len(structured(message(1, b'""')))
    sink.publish(0, [*of_many(0), message(1, b'"%b"' % (b"x" * room))], TIMEOUT)
    with pytest.raises(Refused, match="1048577 bytes") as refused:
        sink.publish(0, [message(2, b'"%b"' % (b"x" * (room + 1)))], TIMEOUT)

    assert refused.value.ids == ids(2)
    assert [request.ids for request in proxy.requests] == [("uid/0",), ("uid/1",)]
    assert stored_in(moto, queue) == ids(0, 1)


def test_the_queues_own_limit_is_found_by_the_service(moto: Moto) -> None:
    """A queue may be set to less: the batch is refused, and halved by the run."""
    small = moto.create_queue(next(_names), MaximumMessageSize="1024")
    with pytest.raises(Refused) as refused:
        sink_to(small).publish(0, [message(1, b'"%b"' % (b"x" * 2000)), *of_many(2)], TIMEOUT)

    assert refused.value.ids == ids(1, 2)


def test_what_has_failed_for_the_moment_is_left_over(sink: SqsSink, proxy: SqsProxy, moto: Moto, queue: str) -> None:
    """HTTP 200 is no acknowledgement: what was stored is told, and only the rest is published again."""
    proxy.inject(Partial(frozenset({1, 3})))
    with pytest.raises(Partly) as partly:
        sink.publish(0, of_many(*range(5)), TIMEOUT)
    sink.publish(0, of_many(1, 3), TIMEOUT)

    assert partly.value.stored == tuple(ids(0, 2, 4))
    assert isinstance(partly.value.reason, Unavailable)
    assert "2 of 5 messages: InternalError: said by the service" in str(partly.value.reason)
    assert stored_in(moto, queue) == ids(0, 2, 4, 1, 3)


def test_the_senders_fault_is_poison(sink: SqsSink, proxy: SqsProxy, moto: Moto, queue: str) -> None:
    """It is named; the others are stored."""
    proxy.inject(Partial(frozenset({2}), sender_fault=True, code="InvalidMessageContents"))
    with pytest.raises(Partly) as partly:
        sink.publish(0, of_many(*range(4)), TIMEOUT)

    reason = partly.value.reason
    assert isinstance(reason, Refused)
    assert reason.ids == ids(2)
    assert "message uid/2: InvalidMessageContents" in str(reason)
    assert partly.value.stored == tuple(ids(0, 1, 3))
    assert stored_in(moto, queue) == ids(0, 1, 3)


@pytest.mark.parametrize("code", ["KmsThrottled", "KMS.ThrottlingException", "RequestThrottled"])
def test_what_passes_is_no_poison(sink: SqsSink, proxy: SqsProxy, code: str) -> None:
    """Whoever is said to be at fault: too many requests for a key are told to be the sender's."""
    proxy.inject(Partial(frozenset({1}), sender_fault=True, code=code))
    with pytest.raises(Partly) as partly:
        sink.publish(0, of_many(1, 2), TIMEOUT)

    assert partly.value.stored == tuple(ids(1))
    assert isinstance(partly.value.reason, Unavailable)


@pytest.mark.parametrize(
    ("code", "error"),
    [("AccessDenied", Forbidden), ("KmsAccessDenied", Forbidden), ("InvalidClientTokenId", Unauthorized)],
)
def test_an_entry_that_is_no_messages_fault_is_no_poison(
    sink: SqsSink, proxy: SqsProxy, code: str, error: type[WatcherError]
) -> None:
    """Whoever the service says is at fault: no other message would be taken either, and a person must act."""
    proxy.inject(Partial(frozenset({1}), sender_fault=True, code=code))
    with pytest.raises(Partly) as partly:
        sink.publish(0, of_many(1, 2), TIMEOUT)

    assert type(partly.value.reason) is error
    assert partly.value.stored == tuple(ids(1))


@pytest.mark.parametrize(("sender_fault", "error"), [(True, Refused), (False, Unavailable)])
def test_a_batch_that_failed_whole_is_not_partly_stored(
    sink: SqsSink, proxy: SqsProxy, sender_fault: bool, error: type[WatcherError]
) -> None:
    """Entry by entry, as it would be at once."""
    proxy.inject(Partial(frozenset({0, 1}), sender_fault=sender_fault))
    with pytest.raises(error):
        sink.publish(0, of_many(1, 2), TIMEOUT)


def test_after_a_failure_nothing_more_is_sent(moto: Moto, proxy: SqsProxy, fifo: str) -> None:
    """What follows in the same group must not come before it."""
    proxy.inject(Partial(frozenset({0})), skip=1)
    with pytest.raises(Partly) as partly:
        sink_to(proxy.queue(fifo)).publish(0, batch(1, 2, 3), TIMEOUT)

    assert list(partly.value.stored) == stored_in(moto, fifo) == ids(1)


def test_what_was_stored_before_an_error_counts(moto: Moto, proxy: SqsProxy, fifo: str) -> None:
    """Also where a person must mend it."""
    proxy.inject(Refusal(403, "AccessDeniedException"), skip=1)
    with pytest.raises(Partly) as partly:
        sink_to(proxy.queue(fifo)).publish(0, batch(1, 2, 3), TIMEOUT)

    assert isinstance(partly.value.reason, Forbidden)
    assert list(partly.value.stored) == stored_in(moto, fifo) == ids(1)


def test_the_time_is_that_of_all_requests_of_a_batch(proxy: SqsProxy, fifo: str) -> None:
    """The second has what the first has left of it, which is less than it needs."""
    proxy.inject(Delay(5), times=None)
    with pytest.raises(Partly) as partly:
        sink_to(proxy.queue(fifo)).publish(0, batch(1, 2, 3), 8)

    assert [request.ids for request in proxy.requests] == [("uid/1",), ("uid/2",)]
    assert partly.value.stored == tuple(ids(1))
    assert isinstance(partly.value.reason, Unavailable)


def test_without_time_only_the_first_request_is_sent(proxy: SqsProxy, fifo: str) -> None:
    """It is always tried; what follows it is not."""
    with pytest.raises(Partly, match="1 of 3 messages") as partly:
        sink_to(proxy.queue(fifo)).publish(0, batch(1, 2, 3), 0)

    assert [request.ids for request in proxy.requests] == [("uid/1",)]
    assert partly.value.stored == tuple(ids(1))


def test_a_lost_answer_leaves_it_unknown(sink: SqsSink, proxy: SqsProxy, moto: Moto, queue: str) -> None:
    """One request, no repeat of the client's own; published again, a FIFO queue has it once."""
    lost = proxy.inject(LostAnswer())
    with pytest.raises(Unavailable):
        sink.publish(0, batch(1), TIMEOUT)
    assert (lost.fired, len(proxy.requests)) == (1, 1)

    sink.publish(0, batch(1), TIMEOUT)
    assert stored_in(moto, queue) == ids(1) * (1 if queue.endswith(".fifo") else 2)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Refusal(400, "QueueDoesNotExist"), ActionNeeded),
        (Refusal(400, "AWS.SimpleQueueService.NonExistentQueue"), ActionNeeded),
        (Refusal(403, "AccessDeniedException"), Forbidden),
        (Refusal(400, "KmsAccessDenied"), Forbidden),
        (Refusal(400, "KmsDisabled"), ActionNeeded),
        (Refusal(400, "UnsupportedOperation"), ActionNeeded),
        (Refusal(403, "InvalidClientTokenId"), Unauthorized),
        (Refusal(403, "SignatureDoesNotMatch"), Unauthorized),
        (Refusal(400, "ExpiredTokenException"), Unauthorized),
        (Refusal(400, "UnrecognizedClientException"), Unauthorized),
        (Refusal(400, "BatchRequestTooLong"), Refused),
        (Refusal(400, "AWS.SimpleQueueService.BatchRequestTooLong"), Refused),
        (Refusal(400, "InvalidMessageContents"), Refused),
        (Refusal(400, "InvalidParameterValue"), Refused),
        (Refusal(400, "RequestThrottled"), Unavailable),
        (Refusal(400, "KmsThrottled"), Unavailable),
        (Refusal(429, "TooManyRequests"), Unavailable),
        (Refusal(500, "InternalFailure"), Unavailable),
        (Refusal(503, "ServiceUnavailable"), Unavailable),
    ],
    ids=lambda value: value.code if isinstance(value, Refusal) else "",
)
def test_every_error_says_who_can_mend_it(
    sink: SqsSink, proxy: SqsProxy, fault: Fault, error: type[WatcherError]
) -> None:
    """A person, nobody, or the message itself; one request, and what the service said is told."""
    proxy.inject(fault)
    with pytest.raises(WatcherError, match="said by the service") as raised:
        sink.publish(0, of_many(1, 2), TIMEOUT)

    assert (type(raised.value), len(proxy.requests)) == (error, 1)
    if isinstance(raised.value, Refused):
        assert raised.value.ids == ids(1, 2)


@pytest.mark.parametrize(
    "content",
    [
        b"<h1>Please log in</h1>",
        b"\xff",
        b"{}",
        b"[]",
        b"null",
        b'{"Successful": 5}',
        b'{"Successful": [{"Id": "7"}, {"Id": "8"}]}',
        b'{"Failed": [{"Id": "7"}]}',
    ],
)
def test_what_is_no_answer_of_sqs_is_unavailable(sink: SqsSink, proxy: SqsProxy, content: bytes) -> None:
    """A proxy says 200 to everything: no message is stored by that."""
    proxy.inject(Body(content))
    with pytest.raises(Unavailable):
        sink.publish(0, of_many(1, 2), TIMEOUT)


def test_a_missing_queue_is_for_a_person(moto: Moto) -> None:
    """Nobody else will create it."""
    with pytest.raises(ActionNeeded, match="nowhere does not exist"):
        sink_to(f"{moto.url}/123456789012/nowhere").publish(0, batch(1), TIMEOUT)


def test_a_server_that_is_away_or_silent_is_unavailable(sink: SqsSink, proxy: SqsProxy) -> None:
    """Nobody listens, or nobody answers in time, of which a second is the least."""
    stuck = proxy.inject(Stall())
    with pytest.raises(Unavailable):
        sink.publish(0, batch(1), 0.3)
    stuck.release()
    proxy.down()
    with pytest.raises(Unavailable):
        sink.publish(0, batch(1), TIMEOUT)
    proxy.up()

    sink.publish(0, batch(1), TIMEOUT)


def test_a_certificate_that_is_not_trusted_is_for_a_person(
    moto: Moto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent to whoever that is; the variable that names other authorities is told, and works."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    queue = moto.create_queue(next(_names))
    with TlsFront(moto.url, context) as front:
        url = front.url.replace("http:", "https:") + urlsplit(queue).path
        with pytest.raises(ActionNeeded, match="AWS_CA_BUNDLE"):
            sink_to(url).publish(0, batch(1), TIMEOUT)
        assert stored_in(moto, queue) == []
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        sink_to(url).publish(0, batch(1), TIMEOUT)

    assert stored_in(moto, queue) == ids(1)


def test_without_credentials_nothing_begins(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the watch opens: where they would come from is told."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(Unauthorized, match="no AWS credentials"):
        sink_to(f"{moto.url}/123456789012/changes")


def test_half_a_set_of_credentials_is_for_a_person(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    """The missing half is named."""
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(Unauthorized, match="AWS_SECRET_ACCESS_KEY"):
        sink_to(f"{moto.url}/123456789012/changes")


@pytest.mark.parametrize(
    ("profile", "error"),
    [
        ("no settings", Unauthorized),
        (f"{KEY}retry_mode = no mode", Unauthorized),
        (SSO, Unauthorized),
        (f"role_arn = {ROLE}\nsource_profile = nowhere", Unauthorized),
        (f"role_arn = {ROLE}\nweb_identity_token_file = /nowhere", Unauthorized),
        ("credential_process = /nowhere", Unauthorized),
        ("credential_process = echo no credentials", Unauthorized),
        ("credential_process = false", Unavailable),
    ],
)
def test_a_configuration_that_cannot_be_used_is_for_a_person(
    config: Path, profile: str, error: type[WatcherError]
) -> None:
    """Before the watch opens; only of a program that fails nobody knows whether it will again."""
    config.write_text(f"[default]\n{profile}\n")
    with pytest.raises(WatcherError) as raised:
        sink_to("https://sqs.internal.example/123456789012/changes")

    assert type(raised.value) is error


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("AWS_PROFILE", "nowhere", UsageError),
        ("AWS_DEFAULT_REGION", "no region", UsageError),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://sts.example/", Unauthorized),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/", Unavailable),
    ],
)
def test_an_environment_that_gives_no_credentials_says_who_can_mend_it(
    monkeypatch: pytest.MonkeyPatch, config: Path, name: str, value: str, error: type[WatcherError]
) -> None:
    """A person, unless it is a server that is away."""
    monkeypatch.setenv(name, value)
    with pytest.raises(WatcherError) as raised:
        sink_to("https://sqs.internal.example/123456789012/changes")

    assert type(raised.value) is error


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (NoRole(400, "IDPCommunicationError"), Unavailable),
        (NoRole(503, "ServiceUnavailable"), Unavailable),
        (NoRole(403, "AccessDenied"), Unauthorized),
        (NoRole(400, "InvalidParameterValue"), Unauthorized),
        (NoRole(400, "InvalidIdentityToken"), Unauthorized),
    ],
    ids=lambda value: value.code if isinstance(value, NoRole) else "",
)
@pytest.mark.usefixtures("role")
def test_a_role_that_is_not_given_says_who_can_mend_it(
    fifo: str, proxy: SqsProxy, fault: NoRole, error: type[WatcherError]
) -> None:
    """When the credentials are renewed as before the watch opens: it is no error of a message."""
    sink = sink_to(proxy.queue(fifo))
    sink.publish(0, batch(1), TIMEOUT)
    proxy.inject(fault, times=None)
    with pytest.raises(WatcherError, match=fault.code) as renewing:
        sink.publish(0, of_many(1, 2), TIMEOUT)
    with pytest.raises(WatcherError, match=fault.code) as opening:
        sink_to(proxy.queue(fifo))

    assert (type(renewing.value), type(opening.value), len(proxy.requests)) == (error, error, 1)


@pytest.mark.parametrize(
    ("then", "error"), [("exit 1", Unavailable), ("echo no credentials", Unauthorized), (None, Unauthorized)]
)
def test_credentials_that_cannot_be_renewed_say_who_can_mend_it(
    fifo: str, proxy: SqsProxy, process: Path, then: str | None, error: type[WatcherError]
) -> None:
    """As those that cannot be found."""
    sink = sink_to(proxy.queue(fifo))
    if then:
        process.write_text(f"#!/bin/sh\n{then}\n")
    else:
        process.unlink()
    with pytest.raises(WatcherError) as raised:
        sink.publish(0, batch(1), TIMEOUT)

    assert (type(raised.value), proxy.requests) == (error, ())


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("sqs.eu-central-1.amazonaws.com", "eu-central-1"),
        ("sqs.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("sqs-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("vpce-0a1-b2.sqs.ap-southeast-2.vpce.amazonaws.com", "ap-southeast-2"),
        ("sqs.us-east-1.api.aws", "us-east-1"),
        ("eu-west-3.queue.amazonaws.com", "eu-west-3"),
        ("sqs.internal.example", "eu-west-1"),
    ],
)
def test_the_region_is_in_the_host(host: str, region: str) -> None:
    """And in the environment where it is not."""
    sink = sink_to(f"https://{host}/123456789012/changes")

    assert sink._client(TIMEOUT).meta.region_name == region  # noqa: SLF001


def test_without_a_region_it_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is named; that of the containers of AWS is one, too."""
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(UsageError, match="AWS_DEFAULT_REGION"):
        sink_to("https://sqs.internal.example/123456789012/changes")
    monkeypatch.setenv("AWS_REGION", "eu-west-2")

    assert sink_to("https://sqs.internal.example/123456789012/changes")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "changes",
        "//sqs.eu-west-1.amazonaws.com/123456789012/changes",
        "https://sqs.eu-west-1.amazonaws.com/changes",
        "https://sqs.eu-west-1.amazonaws.com/123/changes",
        "https://sqs.eu-west-1.amazonaws.com/123456789012/changes.txt",
        "https://sqs.eu-west-1.amazonaws.com/123456789012/changes?a=b",
        f"https://sqs.eu-west-1.amazonaws.com/123456789012/{'x' * 81}",
        "arn:aws:sqs:eu-west-1:123456789012:changes",
    ],
)
def test_an_address_that_cannot_be_is_a_usage_error(url: str) -> None:
    """It is named, with what it should be."""
    with pytest.raises(UsageError, match="ACCOUNT/NAME"):
        sink_to(url)
