"""Tests of SIGTERM and SIGINT: what is acknowledged is saved, and the next run goes on behind it."""

from __future__ import annotations

import fcntl
import json
import resource
import signal
import sys
import termios
from collections.abc import Iterable
from datetime import timedelta

import pytest

from job.run.listing import WHOLE_PAGE
from tests.bed.cluster import Cluster
from tests.bed.waiting import wait_until
from tests.fakes.api_faults import EXPIRED_WATCH, Stall, continued, first_pages, watches
from tests.fakes.api_proxy import ApiProxy
from tests.program import Program, Running
from tests.wire.conftest import CreateMany
from tests.wire.told import SOON, Log, Message, SinkFile, acknowledged, edit_checkpoint, gaps, id_of, ids

BOTH = [pytest.param(signal.SIGTERM, id="SIGTERM"), pytest.param(signal.SIGINT, id="SIGINT")]


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_in_mid_watch_ends_the_run_with_what_is_acknowledged(
    number: signal.Signals, program: Program, cluster: Cluster, namespace: str, sink_file: SinkFile
) -> None:
    """A signal ends a window long before its time, exit code 0, and the next run goes on behind the last change."""
    first = cluster.create(namespace, "first")
    with program.start("--window=60s", program.checkpoint, sink_file.option) as running:
        sink_file.wait_for_id(first)
        second = cluster.create(namespace, "second")
        sink_file.wait_for_id(second)
        running.send(number)
        outcome = running.finish(SOON)
    stopped_at = program.saved
    third = cluster.create(namespace, "third")

    later = program.run("--window=0s", program.checkpoint, sink_file.option)

    assert (outcome.code, outcome.summary["saved"]) == (0, True)
    assert "signal" in outcome.summary["message"]
    assert str(stopped_at.version) == second["metadata"]["resourceVersion"]
    assert (later.code, later.summary["start"], gaps(sink_file.messages)) == (0, "resumed", [])
    assert ids(sink_file.messages) == [id_of(thing) for thing in (first, second, third)]


def test_r1_a_signal_in_mid_relist_saves_the_published_part(
    *, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, sink_file: SinkFile, create_many: CreateMany
) -> None:
    """A run stopped in the middle of a listing saves its part of it, and the next run lists again for the rest."""
    proxied.run("--window=0s", proxied.checkpoint, sink_file.option)
    before = proxied.saved
    objects = create_many(namespace, WHOLE_PAGE + 10)
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)
    stalled = proxy.inject(on=continued(), fault=Stall(after_frames=0))
    with proxied.start("--window=60s", "--recover=0s", proxied.checkpoint, sink_file.option) as running:
        sink_file.wait_for(lambda messages: len(ids(messages)) == WHOLE_PAGE, "the first page to be stored")
        proxy.wait_fired(stalled)
        running.send(signal.SIGTERM)
        outcome = running.finish(SOON)
    stopped_at, told = proxied.saved, acknowledged(proxied)
    stored = ids(sink_file.messages)
    seen = len(proxy.requests)

    later = proxied.run("--window=0s", proxied.checkpoint, sink_file.option)

    assert (outcome.code, outcome.summary["saved"]) == (0, True)
    assert (stopped_at.version, len(told)) == (before.version, WHOLE_PAGE)
    assert stopped_at.listed > stopped_at.version
    assert (later.code, later.summary["start"]) == (0, "interrupted")
    assert stored == [id_of(thing) for thing in objects[:WHOLE_PAGE]]
    assert ids(sink_file.messages) == [id_of(thing) for thing in objects]
    assert str(before.version) not in [request.query.get("resourceVersion") for request in proxy.requests[seen:]]


def test_r9_a_signal_in_a_rewound_listing_does_not_hide_the_gap(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """A run stopped before it could tell that the cluster was rewound leaves that to the next one."""
    created = cluster.create(namespace, "a")
    proxied.run("--window=0s", proxied.checkpoint)
    future = 10**9
    edit_checkpoint(proxied, version=future, listed=future)
    stalled = proxy.inject(on=first_pages(), fault=Stall())
    with proxied.start("--window=60s", proxied.checkpoint) as running:
        proxy.wait_fired(stalled)
        running.send(signal.SIGTERM)
        outcome = running.finish(SOON)

    later = proxied.run("--window=0s", proxied.checkpoint)

    assert (outcome.code, outcome.messages) == (0, [])
    assert [(gap["reason"], gap["missing"]) for gap in gaps(later.messages)] == [("rewound", "all")]
    assert ids(later.messages) == [f"{id_of(created)}~1"]
    assert (later.code, proxied.saved.epoch) == (0, 1)


def test_a_signal_while_the_api_server_is_away_ends_the_run(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """A run that waits for its API server ends at once when it is told to, exit code 0, and changes nothing."""
    proxied.run("--window=0s", proxied.checkpoint)
    before = proxied.checkpoint_file.read_bytes()
    created = cluster.create(namespace, "a")
    proxy.down()
    with proxied.start("--window=60s", proxied.checkpoint) as running:
        log = Log(running)
        log.wait_for("api.retry")
        running.send(signal.SIGTERM)
        outcome = log.finish(SOON)
    after = proxied.checkpoint_file.read_bytes()
    proxy.up()

    later = proxied.run("--window=0s", proxied.checkpoint)

    assert (outcome.code, outcome.stdout) == (0, b"")
    assert "signal" in outcome.summary["message"]
    assert after == before
    assert ids(later.messages) == [id_of(created)]


def test_a_signal_while_the_api_server_hangs_ends_the_run(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """A signal ends a run also in the middle of a read from a server that has gone silent."""
    stalled = proxy.inject(on=first_pages(), fault=Stall(after_frames=0))

    with proxied.start("--window=60s", proxied.checkpoint) as running:
        proxy.wait_fired(stalled)
        running.send(signal.SIGTERM)
        outcome = running.finish(timedelta(seconds=8))  # less than any time-out of the program's own

    assert (outcome.code, outcome.stdout) == (0, b"")


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param([signal.SIGTERM], id="one-signal"),
        pytest.param([signal.SIGTERM, signal.SIGINT], id="two-signals"),
    ],
)
def test_a_sink_that_hangs_does_not_keep_a_signalled_run(
    numbers: list[signal.Signals], program: Program, cluster: Cluster, namespace: str
) -> None:
    """With a sink that hangs a signalled run drains 10 s and a twice signalled one not at all; both save the prefix."""
    created = [cluster.create(namespace, f"w-{number}", size_bytes=40_000) for number in range(5)]
    with program.start("--window=60s", program.checkpoint) as running:
        wait_until(lambda: _is_full(running), SOON, "the pipe to be full")
        for number in numbers:
            running.send(number)
        running.process.wait(20 if len(numbers) == 1 else 8)  # nobody has read standard output yet
        outcome = running.finish()
    whole_lines = outcome.stdout[: outcome.stdout.rfind(b"\n") + 1]
    stored = _uids(json.loads(line) for line in whole_lines.splitlines())
    saved = acknowledged(program)

    later = program.run("--window=0s", program.checkpoint)

    assert (outcome.code, later.code) == (0, 0)
    assert saved == stored[: len(saved)]
    assert [*saved, *_uids(later.messages)] == [thing["metadata"]["uid"] for thing in created]


def _uids(messages: Iterable[Message]) -> list[str]:
    return [uid for uid, _, _ in (id_.partition("/") for id_ in ids(messages))]


def _is_full(running: Running) -> bool:
    """Whether the pipe behind standard output takes less than another page, so that whoever writes more waits."""
    assert running.process.stdout
    pipe = running.process.stdout.fileno()
    unread = int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
    return unread > fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) - resource.getpagesize()
