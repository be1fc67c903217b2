"""Tests of `workflow-watcher backfill` against a real API server."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from job.errors import ExitCode
from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.bed.waiting import wait_until
from tests.fakes.api_faults import EXPIRED_LIST
from tests.fakes.api_proxy import ApiProxy
from tests.fakes.publisher_server import POISON, PublisherServer, holding
from tests.fakes.receiver import Break, Receiver
from tests.manifest import backfill_job, deploy, started_by
from tests.program import Program
from tests.wire.cloud import TOPIC
from tests.wire.conftest import CreateMany
from tests.wire.told import SOON, Log, Message, SinkFile, id_of, ids, raw_data

MANY = 5_000
WRITERS = 8
SOME = 60
"""More than two pages."""


@pytest.fixture(scope="module")
def crowded(control_plane: ControlPlane) -> Iterator[tuple[str, set[str]]]:
    """A namespace with 5,000 Workflows, and the ids that a run gives them; gone afterwards."""
    name = "backfill-many"
    with control_plane.cluster() as cluster, ThreadPoolExecutor(WRITERS) as executor:
        cluster.create_namespace(name)
        created = executor.map(lambda number: id_of(cluster.create(name, f"w-{number:04}")), range(MANY))
        yield name, set(created)
        cluster.request("DELETE", f"/apis/argoproj.io/v1alpha1/namespaces/{name}/workflows")


@pytest.fixture
def in_the_crowd(control_plane: ControlPlane, crowded: tuple[str, set[str]], tmp_path: Path) -> Program:
    namespace, _ = crowded
    return Program(control_plane.kubeconfig(namespace=namespace), tmp_path)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_five_thousand_interrupted_and_run_again(
    in_the_crowd: Program, crowded: tuple[str, set[str]], sink_file: SinkFile, number: signal.Signals
) -> None:
    """All are told with the ids of a run; repeats are the same messages; the checkpoint of runs is not touched."""
    _, wanted = crowded
    first = in_the_crowd.run("--window=0s", sink_file.option, in_the_crowd.checkpoint)
    ran = {message["id"]: message["data"] for message in sink_file.messages}
    saved = in_the_crowd.checkpoint_file.read_bytes()
    sink_file.path.unlink()
    with in_the_crowd.start("--rate=300", sink_file.option, command="backfill") as running:
        sink_file.wait_for(lambda messages: len(messages) > 500, "five hundred to be told")
        running.send(number)
        interrupted = running.finish()
    told = len(set(ids(sink_file.messages)))
    again = in_the_crowd.run(sink_file.option, command="backfill")
    after = sink_file.messages

    assert (first.code, set(ran)) == (0, wanted)
    assert interrupted.code == (ExitCode.TEMPORARY if number is signal.SIGTERM else -signal.SIGKILL)
    assert 500 < told < MANY
    assert (again.code, again.summary["published"]) == (0, {"added": MANY})
    assert set(ids(after)) == wanted
    assert all(ran[message["id"]] == message["data"] for message in after)
    assert {message["provenance"] for message in after} == {"replay"}
    assert in_the_crowd.checkpoint_file.read_bytes() == saved
    assert [file.name for file in in_the_crowd.folder.iterdir() if "state" in file.name] == []


def test_five_thousand_by_a_job(
    control_plane: ControlPlane,
    cluster: Cluster,
    crowded: tuple[str, set[str]],
    sink_file: SinkFile,
    tmp_path: Path,
) -> None:
    """The Job of the manifest's comment, with its variables and rights only, is interrupted, and made again."""
    namespace, wanted = crowded
    deployed = deploy(control_plane, cluster, namespace, tmp_path)
    command, environment = started_by(backfill_job(WATCHER_RATE="300"))
    environment |= {"WATCHER_SINK": f"file:{sink_file.path}", "WATCHER_CHECKPOINT": f"file:{tmp_path}/none.json.gz"}
    with deployed.start(command=command, environment=environment) as running:
        sink_file.wait_for(lambda messages: len(messages) > 500, "five hundred to be told")
        running.send(signal.SIGTERM)
        interrupted = running.finish()
    told = len(set(ids(sink_file.messages)))
    again = deployed.run(command=command, environment=environment | {"WATCHER_RATE": ""})
    data = {message["id"]: message["data"] for message in sink_file.messages}

    assert (command, interrupted.code, again.code) == ("backfill", ExitCode.TEMPORARY, 0), again.stderr
    assert "run it again" in interrupted.summary["message"]
    assert 500 < told < MANY
    assert set(ids(sink_file.messages)) == wanted
    assert all(data[message["id"]] == message["data"] for message in sink_file.messages)
    assert not (tmp_path / "none.json.gz").exists()


def test_the_time_passes_in_log_lines(in_the_crowd: Program, sink_file: SinkFile) -> None:
    """Where stderr is no terminal, a line says every ten seconds how far it has come."""
    with in_the_crowd.start("--rate=200", sink_file.option, command="backfill") as running:
        log = Log(running)
        line = log.wait_for("backfill.progress")
        running.send(signal.SIGTERM)
        outcome = log.finish()

    assert 0 < line["messages"] < line["total"] == MANY
    assert outcome.summary["event"] == "backfill.finished"


def test_a_terminal_has_a_bar(in_the_crowd: Program, sink_file: SinkFile) -> None:
    """It moves, and the summary stands behind it."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "job", "backfill", sink_file.option],
        stderr=theirs,
        env=in_the_crowd.environment,
        cwd=in_the_crowd.folder,
    )
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 65536):
            shown += block
    except OSError:  # as Linux ends a terminal whose other side is gone
        pass
    finally:
        os.close(ours)

    assert process.wait() == 0
    percentages = [int(each) for each in re.findall(rb"(\d+)%", shown)]
    assert percentages == sorted(percentages)
    assert len(set(percentages)) > 5
    assert percentages[-1] == 100
    assert b"5000 messages" in shown


def test_a_dry_run_tells_the_truth(program: Program, cluster: Cluster, namespace: str, sink_file: SinkFile) -> None:
    """Nothing is published, and then exactly what it said, by the same filters."""
    for number in range(60):
        cluster.create(namespace, f"w-{number}", phase="Failed" if number % 3 else "Running")
    options = ("--phase=Failed", "--phase=Error", sink_file.option)
    dry = program.run("--dry-run", *options, command="backfill")
    nothing = sink_file.messages
    real = program.run(*options, command="backfill")

    assert (dry.code, nothing, dry.summary["published"]) == (0, [], {})
    assert (dry.summary["messages"], dry.summary["bytes"]) == (40, real.summary["bytes"])
    assert {message["phase"] for message in sink_file.messages} == {"Failed"}
    assert len(sink_file.messages) == 40
    assert dry.summary["bytes"] == sum(len(raw_data(line)) for line in sink_file.path.read_bytes().splitlines())


def test_a_dry_run_needs_no_sink(program: Program, namespace: str, create_many: CreateMany, tmp_path: Path) -> None:
    """Nobody listens there, and the summary is a pod's termination message all the same."""
    create_many(namespace, SOME)
    message = tmp_path / "termination-log"
    with Receiver() as gone:
        nowhere = {"WATCHER_SINK": gone.address, "WATCHER_DRY_RUN": "true", "WATCHER_TERMINATION_LOG": str(message)}

    outcome = program.run(command="backfill", environment=nowhere)

    assert (outcome.code, outcome.summary["messages"]) == (0, SOME)
    assert message.read_text() == outcome.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--payload=object",), id="object"),
        pytest.param(("--payload=summary",), id="summary"),
        pytest.param(("--transitions",), id="transitions"),
        pytest.param(("--redact=*token*", "--payload=summary", "-lteam=x"), id="redacted"),
    ],
)
def test_it_tells_what_a_first_run_tells(
    program: Program, cluster: Cluster, namespace: str, options: tuple[str, ...]
) -> None:
    """Message for message, whatever is carried, but for how it is known."""
    secret = {"arguments": {"parameters": [{"name": "a-token", "value": "hunter2"}]}}
    for name, phase, team in (("a", "Failed", "x"), ("b", "Running", "x"), ("c", "", "x"), ("d", "Succeeded", "y")):
        cluster.create(namespace, name, phase=phase, spec=secret, labels={"team": team})

    def told(*more: str, command: str) -> dict[str, Message]:
        outcome = program.run(*options, *more, command=command)
        assert outcome.code == 0, outcome.stderr
        return {each["id"]: each | {"provenance": ""} for each in outcome.messages}

    filled = told(command="backfill")
    assert filled == told("--window=0s", program.checkpoint, command="run")
    assert len(filled) >= 3


def test_the_rate_is_kept(program: Program, namespace: str, create_many: CreateMany) -> None:
    """From the first message to the last it is never more than so many a second."""
    create_many(namespace, SOME)
    rate = 20

    outcome = program.run(f"--rate={rate}", command="backfill")

    assert (outcome.code, len(outcome.messages)) == (0, SOME)
    assert outcome.summary["seconds"] >= (SOME - 1) / rate


def test_filters_by_time_and_label(program: Program, cluster: Cluster, namespace: str) -> None:
    """The server's own clock decides what is old; labels are looked at here."""
    made = [cluster.create(namespace, name, labels={"team": team}) for name, team in (("a", "x"), ("b", "y"))]
    born = min(thing["metadata"]["creationTimestamp"] for thing in made)

    def names(*options: str) -> list[str]:
        outcome = program.run(*options, command="backfill")
        assert outcome.code == 0, outcome.stderr
        return sorted(message["subject"].rpartition("/")[2] for message in outcome.messages)

    assert names(f"--since={born}") == ["a", "b"]
    assert names(f"--until={born}") == []
    assert names("--since=2020-01-01", "--until=2100-01-01", "-lteam=y") == ["b"]


def test_a_listing_that_expires_is_begun_again(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, sink_file: SinkFile
) -> None:
    """Each object is told once, though the server forgot the listing after its first page."""
    created = {id_of(cluster.create(namespace, f"w-{number}")) for number in range(60)}
    expired = proxy.inject(on=lambda request: "continue" in request.query, fault=EXPIRED_LIST)
    outcome = proxied.run(sink_file.option, command="backfill")

    assert (expired.fired, outcome.code) == (1, 0)
    assert sorted(ids(sink_file.messages)) == sorted(created)
    assert "listing.expired" in [line["event"] for line in outcome.lines]


def test_an_api_server_that_comes_back_is_waited_for(
    proxied: Program, proxy: ApiProxy, namespace: str, sink_file: SinkFile, create_many: CreateMany
) -> None:
    """What was told before it went is not told again."""
    created = {id_of(each) for each in create_many(namespace, SOME)}
    with proxied.start("--rate=5", sink_file.option, command="backfill") as running:
        log = Log(running)
        sink_file.wait_for(bool, "the first to be told")
        proxy.down()
        log.wait_for("api.retry")
        proxy.up()
        outcome = log.finish()

    assert outcome.code == 0
    assert sorted(ids(sink_file.messages)) == sorted(created)


def test_a_sink_that_comes_back_is_waited_for(
    program: Program, namespace: str, receiver: Receiver, create_many: CreateMany
) -> None:
    """A receiver that is killed twice in the middle has everything in the end."""
    created = {id_of(each) for each in create_many(namespace, SOME)}
    receiver.inject(Break(stored=10, acknowledged=5), Break(stored=1))

    outcome = program.run(f"--sink={receiver.address}", command="backfill")

    assert (outcome.code, outcome.summary["published"]) == (0, {"added": SOME})
    assert set(receiver.ids) == created


def test_a_signal_ends_it_while_the_sink_is_away(
    program: Program, namespace: str, receiver: Receiver, create_many: CreateMany
) -> None:
    """75, in the time of a drain; once the sink is there again, all of it is told."""
    created = {id_of(each) for each in create_many(namespace, SOME)}
    with program.start("--rate=5", f"--sink={receiver.address}", command="backfill") as running:
        log = Log(running)
        wait_until(lambda: bool(receiver.stored), SOON, "the first to be told")
        receiver.down()
        log.wait_for("sink.retry")
        running.send(signal.SIGTERM)
        interrupted = log.finish(SOON)
    told = set(receiver.ids)
    receiver.up()
    again = program.run(f"--sink={receiver.address}", command="backfill")

    assert (interrupted.code, again.code) == (ExitCode.TEMPORARY, 0)
    assert "run it again" in interrupted.summary["message"]
    assert interrupted.summary["notes"] != []
    assert told < created == set(receiver.ids)


def test_a_reader_that_goes_away_ends_it(program: Program, namespace: str, create_many: CreateMany) -> None:
    """Nobody can be told any more: 75, at once."""
    create_many(namespace, SOME)
    ours, theirs = os.pipe()
    os.close(ours)
    process = subprocess.run(
        [sys.executable, "-m", "job", "backfill"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=program.environment,
        check=False,
        timeout=SOON.total_seconds(),
    )
    os.close(theirs)

    assert process.returncode == ExitCode.TEMPORARY
    assert json.loads(process.stderr.splitlines()[-1])["published"] == {}


def test_a_refused_message_ends_it_or_is_kept(
    program: Program, cluster: Cluster, namespace: str, create_many: CreateMany, tmp_path: Path
) -> None:
    """As in a run: without a place for it 78, else it is kept there, and all others are told."""
    created = {id_of(each) for each in create_many(namespace, SOME)}
    bad = id_of(cluster.create(namespace, "bad", status={"message": "poison"}))
    letters = SinkFile(tmp_path)
    with PublisherServer(TOPIC) as broker:
        broker.inject(POISON, times=None, on=holding(lambda message: b"poison" in message.data))
        environment = {"PUBSUB_EMULATOR_HOST": broker.address, "WATCHER_SINK": "pubsub://p/changes"}
        without = program.run(command="backfill", environment=environment)
        before = len(broker.stored)
        kept = program.run(f"--dead-letter=file:{letters.path}", command="backfill", environment=environment)
        told = {message.attributes["ce-id"] for message in broker.stored[before:]}

    assert (without.code, kept.code) == (ExitCode.ACTION_NEEDED, 0), kept.stderr
    assert bad in without.summary["message"]
    assert (ids(letters.messages), told) == ([bad], created)
    assert kept.summary["published"] == {"added": SOME, "dead-lettered": 1}
    assert str(letters.path) in kept.summary["message"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--since=yesterday"], "is not a time"),
        (["--until=2026-11-27T08:00:00"], "is not a time"),
        (["--rate=0"], "rate"),
        (["--sink=nowhere:"], "does not begin with"),
        (["--window=5s"], "window"),
    ],
)
def test_bad_input_is_a_usage_error(program: Program, options: list[str], said: str) -> None:
    """2, and what is wrong."""
    outcome = program.run(*options, command="backfill")

    assert outcome.code == ExitCode.USAGE
    assert said in json.loads(outcome.stderr.splitlines()[-1])["message"]


def test_what_is_missing_is_for_a_person(program: Program, control_plane: ControlPlane, tmp_path: Path) -> None:
    """No rights, no such resource, and no such namespace: 78, as in a run."""
    nobody = Program(control_plane.kubeconfig("nobody", namespace="default"), tmp_path)
    answers: list[Any] = [
        nobody.run(command="backfill").code,
        program.run("--resource=things.v1.example.com", command="backfill").code,
        program.run("--namespace=absent", command="backfill").code,
    ]

    assert answers == [ExitCode.ACTION_NEEDED] * 3


def test_variables_may_have_several_values(program: Program, cluster: Cluster, namespace: str) -> None:
    """Separated by blanks, as a manifest gives them; an empty one is none."""
    secrets = {"arguments": {"parameters": [{"name": name, "value": "hunter2"} for name in ("db-password", "TOKEN")]}}
    for name, phase in (("a", "Failed"), ("b", "Error"), ("c", "Running")):
        cluster.create(namespace, name, phase=phase, spec=secrets)
    variables = {"WATCHER_PHASE": "Failed Error", "WATCHER_REDACT": "*token* *password*"}
    chosen = program.run(command="backfill", environment=variables)
    everything = program.run(command="backfill", environment=dict.fromkeys(variables, ""))

    assert sorted(message["phase"] for message in chosen.messages) == ["Error", "Failed"]
    assert (b"hunter2" in chosen.stdout, b"hunter2" in everything.stdout) == (False, True)
    assert len(everything.messages) == 3
