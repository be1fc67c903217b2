"""Tests of the whole program with every queue but Pub/Sub: killed in the middle, and when the queue fails."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest
import trustme

from job.errors import ExitCode
from tests.bed.cluster import Cluster
from tests.bed.moto import CREDENTIALS, Moto
from tests.bed.waiting import wait_until
from tests.fakes.receiver import Break, Receiver, Refuse, Stop
from tests.fakes.sqs_proxy import LostAnswer, Partial, Poison, Refusal, SqsProxy, Stall
from tests.program import Outcome, Program, Running
from tests.sinks.test_socket import certified
from tests.wire.conftest import CreateMany
from tests.wire.told import SOON, id_of

MANY = 120
_names = (f"runs-{number}" for number in itertools.count(1))


class Queue(Protocol):
    """Where the messages go, and what has come there."""

    url: str
    environment: Mapping[str, str]

    @property
    def ids(self) -> Sequence[str]:
        """Those of every message that was stored, as often as it was."""

    def hold(self) -> None:
        """Take a few messages more, and then none, nor answer."""

    def wait_held(self) -> None:
        """Return once somebody waits for an answer."""

    def release(self) -> None:
        """Serve everybody again."""


@dataclass
class SqsQueue:
    """A queue of moto's, through the proxy."""

    moto: Moto
    proxy: SqsProxy
    name: str
    environment: Mapping[str, str] = field(default_factory=lambda: CREDENTIALS)
    _taken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._queue = self.moto.create_queue(self.name)
        self.url = f"sqs:{self.proxy.queue(self._queue)}"

    @property
    def ids(self) -> Sequence[str]:
        self._taken += [json.loads(body)["id"] for body in self.moto.drain(self._queue)]
        return self._taken

    def hold(self) -> None:
        self._stall = self.proxy.inject(Stall(), skip=1, times=None)

    def wait_held(self) -> None:
        self.proxy.wait_fired(self._stall)

    def release(self) -> None:
        self._stall.withdraw()
        self._stall.release()


@dataclass
class Socket:
    """A receiver."""

    receiver: Receiver
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.url = self.receiver.address

    @property
    def ids(self) -> Sequence[str]:
        return self.receiver.ids

    def hold(self) -> None:
        self.receiver.inject(Stop(after=3))
        self.receiver.hang_up()

    def wait_held(self) -> None:
        assert self.receiver.stopped.wait(SOON.total_seconds())

    def release(self) -> None:
        """Only one connection is held."""


@pytest.fixture
def proxy(moto: Moto) -> Iterator[SqsProxy]:
    with SqsProxy(moto.url) as between:
        yield between


@pytest.fixture
def sqs(moto: Moto, proxy: SqsProxy) -> SqsQueue:
    return SqsQueue(moto, proxy, next(_names))


@pytest.fixture
def fifo(moto: Moto, proxy: SqsProxy) -> SqsQueue:
    return SqsQueue(moto, proxy, f"{next(_names)}.fifo")


@pytest.fixture
def tcp() -> Iterator[Socket]:
    with Receiver() as receiver:
        yield Socket(receiver)


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[Socket]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with Receiver(tls=certified(authority)) as receiver:
        yield Socket(receiver, {"SSL_CERT_FILE": str(tmp_path / "ca.pem")})


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[Socket]:
    with Receiver(path=tmp_path / "receiver.sock") as receiver:
        yield Socket(receiver)


@pytest.fixture(params=["sqs", "fifo", "tcp", "tls", "unix"])
def queue(request: pytest.FixtureRequest) -> Queue:
    found: Queue = request.getfixturevalue(request.param)
    return found


def start(program: Program, queue: Queue, *options: str) -> Running:
    return program.start(f"--sink={queue.url}", program.checkpoint, *options, environment=queue.environment)


def run(program: Program, queue: Queue, *options: str) -> Outcome:
    with start(program, queue, *options or ["--window=0s"]) as running:
        return running.finish()


def test_p1_a_run_that_is_killed_in_the_middle_loses_nothing(
    program: Program, cluster: Cluster, namespace: str, queue: Queue, create_many: CreateMany
) -> None:
    """After a kill -9 with batches under way the next run tells the rest; the last save was not ahead of the queue."""
    first = cluster.create(namespace, "first")
    began = run(program, queue)
    before = program.saved.version
    with start(program, queue, "--window=100s") as running:
        created = create_many(namespace, MANY // 2)
        wait_until(lambda: program.saved.version > before, SOON, "a save in the middle of the run")
        queue.hold()
        created += [cluster.create(namespace, f"later-{number}") for number in range(MANY // 2)]
        queue.wait_held()
        running.send(signal.SIGKILL)
        running.process.wait()
    told, saved = set(queue.ids), program.saved.version
    queue.release()
    created += [cluster.patch(namespace, "w-0000", {"metadata": {"labels": {"a": "b"}}})]

    resumed = run(program, queue)

    everything = {id_of(each) for each in (first, *created)}
    assert {id_of(each) for each in (first, *created) if int(each["metadata"]["resourceVersion"]) <= saved} <= told
    assert before < saved
    assert told < everything
    assert (began.code, resumed.code, resumed.summary["start"]) == (0, 0, "resumed")
    assert set(queue.ids) == everything
    assert program.saved.version >= int(created[-1]["metadata"]["resourceVersion"])


def test_a_queue_that_is_away_is_waited_for_and_then_left_to_the_next_run(
    program: Program, cluster: Cluster, namespace: str, tcp: Socket
) -> None:
    """75 at the deadline, and nothing is lost."""
    run(program, tcp)
    created = cluster.create(namespace, "a")
    tcp.receiver.down()
    away = run(program, tcp)
    tcp.receiver.up()
    later = run(program, tcp)

    assert (away.code, later.code, tcp.ids) == (ExitCode.TEMPORARY, 0, [id_of(created)])


@pytest.mark.parametrize("name", ["tcp", "tls", "unix"])
def test_a_socket_that_breaks_before_the_acknowledgement_costs_a_repeat(
    name: str, program: Program, request: pytest.FixtureRequest, namespace: str, create_many: CreateMany
) -> None:
    """What was acknowledged is not sent again, what was only stored is there twice, and the run ends with 0."""
    socket: Socket = request.getfixturevalue(name)
    run(program, socket)
    created = create_many(namespace, 20)
    socket.receiver.inject(Break(), Break(stored=1), Break(stored=3, acknowledged=2))
    outcome = run(program, socket)

    repeated = len(socket.ids) - len(created)
    assert (outcome.code, outcome.summary["saved"], repeated) == (0, True, 2)
    assert set(socket.ids) == {id_of(each) for each in created}
    assert [line["event"] for line in outcome.lines].count("sink.retry") == 3


def test_a_refusing_receiver_needs_a_person(
    program: Program, namespace: str, tcp: Socket, create_many: CreateMany
) -> None:
    """78, the message is named, what stood before it is stored and saved; accepted later, nothing is missing."""
    run(program, tcp)
    created = sorted(create_many(namespace, 10), key=lambda each: int(each["metadata"]["resourceVersion"]))
    tcp.receiver.inject(*[Refuse(reason="too blue")] * 20)
    refused = run(program, tcp)
    tcp.receiver.forget()
    later = run(program, tcp)

    assert refused.code == ExitCode.ACTION_NEEDED
    assert "too blue" in refused.summary["message"]
    assert id_of(created[0]) in refused.summary["message"]
    assert (later.code, set(tcp.ids)) == (0, {id_of(each) for each in created})


@pytest.mark.parametrize("name", ["sqs", "fifo"])
def test_a_part_of_a_batch_that_failed_is_sent_again_and_nothing_else(
    name: str, program: Program, request: pytest.FixtureRequest, namespace: str, create_many: CreateMany
) -> None:
    """HTTP 200 with failed entries: the run ends with 0, and every message is there once."""
    queue: SqsQueue = request.getfixturevalue(name)
    run(program, queue)
    created = create_many(namespace, 60)
    failing = queue.proxy.inject(Partial(frozenset({0, 2, 5})), times=4)
    outcome = run(program, queue)

    assert (failing.fired, outcome.code, outcome.summary["saved"]) == (4, 0, True)
    assert sorted(queue.ids) == sorted(id_of(each) for each in created)
    assert outcome.summary["published"] == {"added": 60}


def test_an_entry_that_is_the_senders_fault_needs_a_person(
    program: Program, namespace: str, sqs: SqsQueue, create_many: CreateMany
) -> None:
    """78, it alone is named, and everything before it is saved; when the queue is mended, nothing is missing."""
    run(program, sqs)
    created = sorted(create_many(namespace, 40), key=lambda each: int(each["metadata"]["resourceVersion"]))
    bad = id_of(created[20])
    poison = sqs.proxy.inject(Poison(frozenset({bad})), on=lambda request: bad in request.ids, times=None)
    outcome = run(program, sqs)
    saved, told = program.saved.version, set(sqs.ids)
    poison.withdraw()
    later = run(program, sqs)

    assert outcome.code == ExitCode.ACTION_NEEDED
    assert f"message {bad}: InvalidMessageContents" in outcome.summary["message"]
    assert bad not in told
    assert {id_of(each) for each in created if int(each["metadata"]["resourceVersion"]) <= saved} <= told
    assert saved < int(created[20]["metadata"]["resourceVersion"])
    assert (later.code, set(sqs.ids)) == (0, {id_of(each) for each in created})


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (LostAnswer(), 0),
        (Refusal(503, "ServiceUnavailable"), 0),
        (Refusal(403, "AccessDeniedException"), ExitCode.ACTION_NEEDED),
        (Refusal(400, "QueueDoesNotExist"), ExitCode.ACTION_NEEDED),
    ],
    ids=["lost", "503", "denied", "missing"],
)
def test_a_failed_request_to_sqs_loses_nothing(
    *, program: Program, cluster: Cluster, namespace: str, sqs: SqsQueue, fault: LostAnswer | Refusal, code: int
) -> None:
    """What may pass is tried again; for the rest the exit code says who must act, and the next run goes on."""
    run(program, sqs)
    created = cluster.create(namespace, "a")
    sqs.proxy.inject(fault)
    outcome = run(program, sqs)
    later = run(program, sqs)

    assert (outcome.code, later.code) == (code, 0)
    assert set(sqs.ids) == {id_of(created)}


def test_without_credentials_nothing_begins(program: Program, cluster: Cluster, namespace: str, sqs: SqsQueue) -> None:
    """78 before the cluster is asked for anything."""
    cluster.create(namespace, "a")
    nobody = {**dict.fromkeys(CREDENTIALS, ""), "AWS_DEFAULT_REGION": "eu-west-1", "AWS_EC2_METADATA_DISABLED": "true"}
    with program.start(f"--sink={sqs.url}", program.checkpoint, "--window=0s", environment=nobody) as running:
        outcome = running.finish()

    assert outcome.code == ExitCode.ACTION_NEEDED
    assert "no AWS credentials" in outcome.summary["message"]
    assert not program.checkpoint_file.exists()
