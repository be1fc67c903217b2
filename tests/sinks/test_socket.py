"""Tests of messages on a socket, at the wire."""

from __future__ import annotations

import json
import os
import re
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import trustme

from job.errors import ActionNeeded, Refused, Unavailable, UsageError
from job.message import Message, structured
from job.ports import Partly, Sink
from job.settings import parse_address
from job.sinks.socket import SocketSink
from tests.bed.process import free_port
from tests.bed.waiting import wait_until
from tests.contracts.sink import TIMEOUT, ReadBack, SinkContract, message, parsed
from tests.fakes.access import nobody
from tests.fakes.receiver import Break, Early, Leave, Piecemeal, Receiver, Refuse, Say, Silence, Stop, Verbose

PAGE = Path(__file__).parents[2] / "docs" / "socket.md"
SHORT = 2.0
SOON = timedelta(seconds=20)


_made: list[SocketSink] = []


def sink_to(address: str) -> SocketSink:
    sink = SocketSink.at(parse_address(address, "sink", ["tcp", "tls", "unix"]), nobody())
    sink.open()
    _made.append(sink)
    return sink


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while _made:
        _made.pop().close()


def batch(*numbers: int, data: bytes = b"{}") -> list[Message]:
    return [message(number, data) for number in numbers]


def ids(*numbers: int) -> list[str]:
    return [f"uid/{number}" for number in numbers]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The authority is one that the sink trusts."""
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(file)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    return file


def certified(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


class _Contract(SinkContract):
    @pytest.fixture
    def sink(self, receiver: Receiver) -> Sink:
        return sink_to(receiver.address)

    @pytest.fixture
    def broken(self, tmp_path: Path) -> Sink:
        return sink_to(f"unix:{tmp_path}/nobody.sock")

    @pytest.fixture
    def stored(self, receiver: Receiver) -> ReadBack:
        return lambda: parsed(b"".join(receiver.stored))


class TestTcpSink(_Contract):
    @pytest.fixture
    def receiver(self) -> Iterator[Receiver]:
        with Receiver() as receiver:
            yield receiver


class TestTlsSink(_Contract):
    @pytest.fixture
    def receiver(self, authority: trustme.CA, trusted: Path) -> Iterator[Receiver]:
        with Receiver(tls=certified(authority)) as receiver:
            yield receiver


class TestUnixSink(_Contract):
    @pytest.fixture
    def receiver(self, tmp_path: Path) -> Iterator[Receiver]:
        with Receiver(path=tmp_path / "receiver.sock") as receiver:
            yield receiver


@pytest.fixture(params=["tcp", "tls", "unix"])
def receiver(request: pytest.FixtureRequest, authority: trustme.CA, tmp_path: Path) -> Iterator[Receiver]:
    if request.param == "tls":
        request.getfixturevalue("trusted")
    path = tmp_path / "receiver.sock" if request.param == "unix" else None
    with Receiver(path=path, tls=certified(authority) if request.param == "tls" else None) as receiver:
        yield receiver


@pytest.fixture
def sink(receiver: Receiver) -> SocketSink:
    return sink_to(receiver.address)


@pytest.fixture(params=[b"{}", b'"%b"' % (b"x" * 10_000)], ids=["small", "large"])
def many(request: pytest.FixtureRequest) -> list[Message]:
    """Ninety messages that fit into the buffers on the way, or do not."""
    return batch(*range(90), data=request.param)


def test_a_line_is_an_event_in_structured_mode(receiver: Receiver, sink: SocketSink) -> None:
    """With its data inside, byte for byte."""
    sink.publish(0, [message(1, b'{"a": 1.50}')], TIMEOUT)

    assert receiver.stored == [structured(message(1, b'{"a": 1.50}')) + b"\n"]


def test_many_batches_use_one_connection(receiver: Receiver, sink: SocketSink) -> None:
    """Which stays open over quiet times."""
    for number in range(5):
        sink.publish(0, batch(number), TIMEOUT)

    assert receiver.connections == 1


def test_what_was_acknowledged_counts_however_much_was_written(
    receiver: Receiver, sink: SocketSink, many: list[Message]
) -> None:
    """The receiver ends the connection while the sender still writes: what it had said before is heard."""
    receiver.inject(Leave(after=20))
    with pytest.raises(Partly) as partly:
        sink.publish(0, many, TIMEOUT)
    sink.publish(0, many[20:], TIMEOUT)

    assert isinstance(partly.value.reason, Unavailable)
    assert partly.value.stored == tuple(ids(*range(20)))
    assert receiver.ids == ids(*range(90))


def test_a_refusal_is_heard_however_much_was_written(receiver: Receiver, sink: SocketSink, many: list[Message]) -> None:
    """The receiver ends the connection behind it, and nothing that follows is stored."""
    receiver.inject(Refuse(after=40, reason="too blue"))
    with pytest.raises(Partly) as partly:
        sink.publish(0, many, TIMEOUT)

    reason = partly.value.reason
    assert isinstance(reason, Refused)
    assert (reason.ids, receiver.ids) == (ids(40), ids(*range(40)))
    assert partly.value.stored == tuple(ids(*range(40)))


def test_a_receiver_that_stops_in_the_middle_has_stored_the_rest(
    receiver: Receiver, sink: SocketSink, many: list[Message]
) -> None:
    """It neither reads nor answers any more: what it has said counts when the time is over."""
    receiver.inject(Stop(after=20))
    with pytest.raises(Partly, match="no answer in time") as partly:
        sink.publish(0, many, SHORT)

    assert partly.value.stored == tuple(ids(*range(20)))


def test_something_else_than_an_answer_does_not_undo_the_answers_before(receiver: Receiver, sink: SocketSink) -> None:
    """What was acknowledged is stored, and a person must act."""
    receiver.inject(Say(b"HTTP/1.1 400 Bad Request\n", after=2))
    with pytest.raises(Partly) as partly:
        sink.publish(0, batch(1, 2, 3), TIMEOUT)

    assert partly.value.stored == tuple(ids(1, 2))
    assert type(partly.value.reason) is ActionNeeded


def test_an_event_is_never_glued_to_a_cut_one(receiver: Receiver, sink: SocketSink) -> None:
    """A receiver that acknowledges what it has not read whole is asked again on another connection."""
    large = message(1, b'"%b"' % (b"x" * 20_000_000))
    receiver.inject(Early(b'{"id": "uid/1"}\n'))
    sink.publish(0, [large], TIMEOUT)
    sink.publish(0, batch(2), TIMEOUT)

    assert (receiver.ids, receiver.connections) == (ids(2), 2)


def test_answers_may_be_longer_than_any_buffer(receiver: Receiver, sink: SocketSink, many: list[Message]) -> None:
    """They are read while events are written: neither side waits for the other for ever."""
    receiver.inject(Verbose(60_000))
    sink.publish(0, many, TIMEOUT)

    assert receiver.ids == ids(*range(90))


def test_what_was_acknowledged_before_it_broke_is_stored(receiver: Receiver, sink: SocketSink) -> None:
    """The rest is sent again on another connection; what was stored without an answer is there twice."""
    receiver.inject(Break(stored=3, acknowledged=2))
    with pytest.raises(Partly) as partly:
        sink.publish(0, batch(1, 2, 3, 4), TIMEOUT)
    sink.publish(0, batch(3, 4), TIMEOUT)

    assert isinstance(partly.value.reason, Unavailable)
    assert partly.value.stored == tuple(ids(1, 2))
    assert (receiver.ids, receiver.connections) == (ids(1, 2, 3, 3, 4), 2)


@pytest.mark.parametrize("step", [Break(), Break(stored=1), Say(b'{"id": "ui', close=True)], ids=str)
def test_a_connection_that_breaks_before_any_acknowledgement(
    receiver: Receiver, sink: SocketSink, step: Break | Say
) -> None:
    """It is unknown what was stored, and the same batch may be published again."""
    receiver.inject(step)
    with pytest.raises(Unavailable):
        sink.publish(0, batch(1, 2), TIMEOUT)
    sink.publish(0, batch(1, 2), TIMEOUT)

    assert receiver.ids[-2:] == ids(1, 2)


def test_a_connection_that_was_closed_while_idle_is_replaced(receiver: Receiver, sink: SocketSink) -> None:
    """Without an error: nothing was under way."""
    sink.publish(0, batch(1), TIMEOUT)
    receiver.hang_up()
    wait_until(lambda: not receiver._open, SOON, "the connection to end")  # noqa: SLF001
    sink.publish(0, batch(2), TIMEOUT)

    assert (receiver.ids, receiver.connections) == (ids(1, 2), 2)


def test_a_receiver_that_is_away_is_found_again(receiver: Receiver, sink: SocketSink) -> None:
    """Nobody listens, perhaps not even at a path; then somebody does."""
    sink.publish(0, batch(1), TIMEOUT)
    receiver.down()
    for _ in range(2):
        with pytest.raises(Unavailable):
            sink.publish(0, batch(2), TIMEOUT)
    receiver.up()
    sink.publish(0, batch(2), TIMEOUT)

    assert receiver.ids == ids(1, 2)


def test_a_refused_message_is_named(receiver: Receiver, sink: SocketSink) -> None:
    """Alone it is refused; after good ones these are stored, and what follows it is not."""
    receiver.inject(Refuse(reason="too blue"), Refuse(after=2))
    with pytest.raises(Refused, match="message uid/1: too blue") as refused:
        sink.publish(0, batch(1, 2), TIMEOUT)
    with pytest.raises(Partly) as partly:
        sink.publish(0, batch(1, 2, 3, 4), TIMEOUT)

    assert refused.value.ids == ids(1)
    reason = partly.value.reason
    assert isinstance(reason, Refused)
    assert partly.value.stored == tuple(ids(1, 2))
    assert (reason.ids, receiver.ids) == (ids(3), ids(1, 2))


def test_a_receiver_that_never_answers_is_unavailable(receiver: Receiver, sink: SocketSink) -> None:
    """When the time is over, which was for all messages together."""
    receiver.inject(Silence())
    began = time.monotonic()
    with pytest.raises(Unavailable, match="no answer in time"):
        sink.publish(0, batch(1, 2, 3), SHORT)

    assert time.monotonic() - began < TIMEOUT


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_without_time_nothing_is_sent(receiver: Receiver, sink: SocketSink, timeout: float) -> None:
    """It is unavailable."""
    with pytest.raises(Unavailable):
        sink.publish(0, batch(1), timeout)
    assert receiver.stored == []


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"ok\n",
        b'"uid/1"\n',
        b"[]\n",
        b"{}\n",
        b'{"id": 1}\n',
        b'{"id": "uid/2"}\n',
        b'{"id": "uid/1", "error": 5}\n',
        b"\xff\xfe\n",
        b"\n",
        b'{"a": %b\n' % (b"[" * 60_000),
        b"x" * 70_000,
    ],
    ids=lambda answer: answer[:20].decode(errors="replace").strip(),
)
def test_what_is_no_answer_is_for_a_person(receiver: Receiver, sink: SocketSink, answer: bytes) -> None:
    """Something else listens there; what it said is told."""
    receiver.inject(Say(answer))
    with pytest.raises(ActionNeeded, match="does not acknowledge message uid/1"):
        sink.publish(0, batch(1), TIMEOUT)


@pytest.mark.parametrize("together", [0, 7])
def test_answers_come_in_any_pieces(receiver: Receiver, sink: SocketSink, together: int) -> None:
    """Byte by byte or all at once; members that nobody knows are passed over."""
    receiver.inject(Piecemeal(together=together))
    sink.publish(0, batch(*range(7)), TIMEOUT)

    assert receiver.ids == ids(*range(7))


def test_a_large_message_passes(receiver: Receiver, sink: SocketSink) -> None:
    """Larger than any buffer on the way."""
    data = b'"%b"' % (b"x" * 5_000_000)
    sink.publish(0, [message(1, data), message(2)], TIMEOUT)

    assert receiver.ids == ids(1, 2)


@pytest.mark.parametrize("name", ["elsewhere.example", "127.0.0.1"])
def test_a_certificate_that_is_not_trusted_is_for_a_person(
    name: str, authority: trustme.CA, request: pytest.FixtureRequest
) -> None:
    """Of another name, or of an unknown authority: nothing is sent to whoever that is."""
    if name != "127.0.0.1":
        request.getfixturevalue("trusted")
    with Receiver(tls=certified(authority, name)) as receiver:
        with pytest.raises(ActionNeeded, match="SSL_CERT_FILE"):
            sink_to(receiver.address).publish(0, batch(1), TIMEOUT)
        assert receiver.stored == []


def test_a_receiver_without_tls_is_no_receiver_with_it() -> None:
    """It may be that it is not ready yet."""
    with Receiver() as receiver:
        receiver.inject(Say(b"hello\n", close=True))
        with pytest.raises(Unavailable):
            sink_to(receiver.address.replace("tcp:", "tls:")).publish(0, batch(1), SHORT)


def test_a_path_that_is_forbidden_is_for_a_person(tmp_path: Path) -> None:
    """And one that does not exist, or where nobody listens, is not: the receiver may come."""
    absent = tmp_path / "receiver.sock"
    with pytest.raises(Unavailable):
        sink_to(f"unix:{absent}").publish(0, batch(1), TIMEOUT)
    absent.touch()
    with pytest.raises(Unavailable):
        sink_to(f"unix:{absent}").publish(0, batch(1), TIMEOUT)
    script = (
        "import os, sys\n"
        "from job.errors import ActionNeeded\n"
        "from tests.sinks.test_socket import batch, sink_to\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: sink_to(sys.argv[1]).publish(0, batch(1), 5)\n"
        "except ActionNeeded as error: print(error)\n"
    )
    folder = Path("/tmp") / f"workflow-watcher-{os.getpid()}"  # the others are below folders of root's
    folder.mkdir()
    try:
        with Receiver(path=folder / "receiver.sock") as receiver:
            (folder / "receiver.sock").chmod(0)
            done = subprocess.run(
                [sys.executable, "-c", script, receiver.address], capture_output=True, text=True, check=True
            )
    finally:
        (folder / "receiver.sock").unlink(missing_ok=True)
        folder.rmdir()

    assert "may not be connected to: Permission denied" in done.stdout


@pytest.mark.parametrize(
    "address",
    [
        "tcp:localhost:9000",
        "tcp://localhost",
        "tcp://localhost:0",
        "tcp://localhost:65536",
        "tcp://localhost:port",
        "tcp://:9000",
        "tcp://localhost:9000/path",
        "tcp://my..host:9000",
        "tcp://.host:9000",
        f"tcp://{'x' * 64}.example:9000",
        "unix:",
        "unix://host/path",
        f"unix:/{'x' * 107}",
    ],
)
def test_an_address_that_cannot_be_is_a_usage_error(address: str) -> None:
    """It is named."""
    with pytest.raises(UsageError, match=re.escape(address)):
        sink_to(address)


@pytest.mark.parametrize(("address", "host"), [("tcp://[::1]:9000", "::1"), ("tls://my-api.argo:1", "my-api.argo")])
def test_a_host_is_a_name_or_an_address(address: str, host: str) -> None:
    """As in any URL."""
    assert sink_to(address)._host == host  # noqa: SLF001


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The receiver of docs/socket.md."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code.splitlines()) == 10
    file = tmp_path / "receiver.py"
    file.write_text(code)
    return file


def test_the_receiver_of_the_docs_loses_nothing(script: Path, tmp_path: Path) -> None:
    """Killed in the middle and started again, it has every event, each once."""
    kept, port, kills, after = tmp_path / "events.db", free_port(), 0, 0
    sink = sink_to(f"tcp://127.0.0.1:{port}")
    sent: list[Message] = []
    left: list[Message] = []
    process = started(script, port, kept)
    while left or after < 5:
        if not left:
            after += kills
            first = len(sent)
            left = [message(number, b'{"n":%d}' % number) for number in range(first, first + 20)]
            sent += left
            if first == 60:
                threading.Timer(0.01, process.kill).start()
        try:
            sink.publish(0, left, TIMEOUT)
            left = []
        except Partly as partly:
            left = [each for each in left if each.id not in partly.stored]
        except Unavailable:
            pass
        if process.poll() is not None:
            kills += 1
            process = started(script, port, kept)
    process.kill()
    process.wait()

    assert kills == 1
    assert sorted(in_database(kept)) == sorted((each.id, json.loads(each.data)) for each in sent)


def test_the_receiver_of_the_docs_serves_two_senders(script: Path, tmp_path: Path) -> None:
    """Runs for two namespaces at the same time, each with a connection that it keeps."""
    kept, port = tmp_path / "events.db", free_port()
    process = started(script, port, kept)
    senders = [sink_to(f"tcp://127.0.0.1:{port}") for _ in range(2)]
    for number in range(4):
        senders[number % 2].publish(0, batch(number), TIMEOUT)
    process.kill()
    process.wait()

    assert sorted(in_database(kept)) == [(name, {}) for name in ids(*range(4))]


def in_database(kept: Path) -> list[tuple[str, object]]:
    with closing(sqlite3.connect(kept)) as events:
        return [(name, json.loads(event)["data"]) for name, event in events.execute("SELECT id, event FROM events")]


def started(script: Path, port: int, kept: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, str(script), str(port), str(kept)], stderr=subprocess.DEVNULL)
    wait_until(lambda: is_listening(port), SOON, "the receiver to listen")
    return process


def is_listening(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
