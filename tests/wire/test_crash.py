"""Tests of runs that are killed, and of runs that meet another one on the same checkpoint."""

from __future__ import annotations

import signal
from datetime import timedelta

from job.run.listing import WHOLE_PAGE
from tests.bed.cluster import Cluster
from tests.fakes.api_faults import EXPIRED_WATCH, Stall, continued, watches
from tests.fakes.api_proxy import ApiProxy
from tests.program import Program
from tests.wire.conftest import CreateMany
from tests.wire.told import SOON, SinkFile, changes, gaps, id_of, ids, last_states, same_data_under_one_id, unsaved

_LONGER_THAN_BETWEEN_SAVES = timedelta(seconds=25)


def test_r4_a_run_killed_in_mid_relist_is_repeated_by_the_next(
    *, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, sink_file: SinkFile, create_many: CreateMany
) -> None:
    """After a kill -9 in mid-listing the next run tells everything, and what was told before under the same ids."""
    gone = cluster.create(namespace, "gone")
    proxied.run("--window=0s", proxied.checkpoint, sink_file.option)
    objects = create_many(namespace, WHOLE_PAGE + 10)
    cluster.delete(namespace, "gone")
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)
    stalled = proxy.inject(on=continued(), fault=Stall(after_frames=0))
    with proxied.start("--window=60s", "--recover=0s", proxied.checkpoint, sink_file.option) as running:
        sink_file.wait_for(lambda messages: len(ids(messages)) > WHOLE_PAGE, "the first page to be stored")
        proxy.wait_fired(stalled)
        running.send(signal.SIGKILL)
        running.process.wait()
    stored = ids(sink_file.messages)

    outcome = proxied.run("--window=0s", proxied.checkpoint, sink_file.option)

    new = [id_of(thing) for thing in objects]
    assert (outcome.code, outcome.summary["start"]) == (0, "interrupted")
    assert stored == [id_of(gone), *new[:WHOLE_PAGE]]
    assert ids(sink_file.messages) == [*stored, *new, f"{gone['metadata']['uid']}/deleted"]
    assert same_data_under_one_id(sink_file)


def test_r17_what_a_killed_listing_told_is_not_forgotten(
    *, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, sink_file: SinkFile, create_many: CreateMany
) -> None:
    """An object that a killed run told from a listing, and that is gone by the next run, is told deleted by that."""
    objects = create_many(namespace, WHOLE_PAGE + 1)
    stalled = proxy.inject(on=continued(), fault=Stall(after_frames=0))
    with proxied.start("--window=60s", proxied.checkpoint, sink_file.option) as running:
        sink_file.wait_for(lambda messages: len(messages) == WHOLE_PAGE, "the first page to be stored")
        proxy.wait_fired(stalled)
        running.send(signal.SIGKILL)
        running.process.wait()
    told = len(sink_file.messages)
    cluster.delete(namespace, "w-0000")

    outcome = proxied.run("--window=0s", proxied.checkpoint, sink_file.option)

    alive = [id_of(thing) for thing in objects[1:]]
    assert outcome.code == 0
    assert ids(sink_file.messages[told:]) == [*alive, f"{objects[0]['metadata']['uid']}/deleted"]


def test_a_run_killed_in_mid_watch_loses_no_version(
    program: Program, cluster: Cluster, namespace: str, sink_file: SinkFile
) -> None:
    """After a kill -9 in the middle of a window every version is stored, and a repeat is recognised by its id."""
    program.run("--window=0s", program.checkpoint, sink_file.option)
    before = program.checkpoint_file.read_bytes()
    with unsaved(program), program.start("--window=60s", program.checkpoint, sink_file.option) as running:
        told = [cluster.create(namespace, "a"), cluster.create(namespace, "b")]
        told.append(cluster.patch(namespace, "a", {"metadata": {"labels": {"a": "b"}}}))
        sink_file.wait_for_id(told[-1])
        running.send(signal.SIGKILL)
        running.process.wait()
    saved = program.checkpoint_file.read_bytes()
    while_away = [cluster.patch(namespace, "b", {"metadata": {"labels": {"a": "b"}}}), cluster.create(namespace, "c")]

    outcome = program.run("--window=0s", program.checkpoint, sink_file.option)

    assert saved == before  # it was killed before its first save
    assert (outcome.code, outcome.summary["start"], gaps(sink_file.messages)) == (0, "resumed", [])
    versions = [id_of(thing) for thing in told]
    assert ids(sink_file.messages) == [*versions, *versions, *(id_of(thing) for thing in while_away)]
    assert same_data_under_one_id(sink_file)


def test_r18_what_was_told_and_never_saved_can_be_found_in_the_gap(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, sink_file: SinkFile
) -> None:
    """What a killed run told beyond its save lies in the next gap: what lives is told again, what is gone is not."""
    proxied.run("--window=0s", proxied.checkpoint, sink_file.option)
    with unsaved(proxied), proxied.start("--window=60s", proxied.checkpoint, sink_file.option) as running:
        gone, alive = cluster.create(namespace, "gone"), cluster.create(namespace, "alive")
        sink_file.wait_for_id(alive)
        running.send(signal.SIGKILL)
        running.process.wait()
    told = len(sink_file.messages)
    cluster.delete(namespace, "gone")
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)

    outcome = proxied.run("--window=0s", "--recover=0s", proxied.checkpoint, sink_file.option)

    (gap,) = gaps(sink_file.messages)
    assert outcome.code == 0
    assert int(gap["from"]) < int(gone["metadata"]["resourceVersion"]) <= int(gap["to"])
    assert ids(sink_file.messages[told:]) == [id_of(alive)]


def test_r13_who_finds_the_checkpoint_moved_stops_by_itself(
    program: Program, cluster: Cluster, namespace: str, sink_file: SinkFile
) -> None:
    """Of two runs on one checkpoint the first to save wins, and the other ends before its window does, and says why."""
    program.run("--window=0s", program.checkpoint, sink_file.option)
    with program.start("--window=60s", program.checkpoint, sink_file.option) as running:
        first = cluster.create(namespace, "first")
        sink_file.wait_for_id(first)
        running.send(signal.SIGSTOP)  # it saves ten seconds after its start, and must not be the first
        winner = program.run("--window=0s", program.checkpoint, sink_file.option)
        saved = program.saved
        running.send(signal.SIGCONT)
        loser = running.finish(_LONGER_THAN_BETWEEN_SAVES)
    second = cluster.create(namespace, "second")

    later = program.run("--window=0s", program.checkpoint, sink_file.option)

    assert (winner.code, loser.code, later.code) == (0, 0, 0)
    assert (winner.summary["saved"], loser.summary["saved"]) == (True, False)
    assert saved.run_id == winner.summary["run_id"]
    assert f"run {saved.run_id} has moved the checkpoint" in loser.summary["message"]
    assert ids(sink_file.messages) == [id_of(first), id_of(first), id_of(second)]


def test_r13_a_run_that_slept_changes_nothing_when_it_wakes(
    program: Program, cluster: Cluster, namespace: str, sink_file: SinkFile
) -> None:
    """A run that was stopped while its successor worked leaves the successor's checkpoint as it is."""
    program.run("--window=0s", program.checkpoint, sink_file.option)
    with program.start("--window=60s", program.checkpoint, sink_file.option) as running:
        first = cluster.create(namespace, "first")
        sink_file.wait_for_id(first)
        running.send(signal.SIGSTOP)
        second = cluster.create(namespace, "second")
        successor = program.run("--window=0s", program.checkpoint, sink_file.option)
        saved = program.checkpoint_file.read_bytes()
        running.send(signal.SIGTERM)  # waits until it wakes
        running.send(signal.SIGCONT)
        woken = running.finish(SOON)

    assert (successor.code, woken.code, woken.summary["saved"]) == (0, 0, False)
    assert "moved the checkpoint" in woken.summary["message"]
    assert program.checkpoint_file.read_bytes() == saved
    assert last_states(sink_file.messages) == {
        "first": first["metadata"]["resourceVersion"],
        "second": second["metadata"]["resourceVersion"],
    }


def test_r13_a_removed_checkpoint_is_not_written_again(
    program: Program, cluster: Cluster, namespace: str, sink_file: SinkFile
) -> None:
    """A checkpoint that somebody removes under a run stays removed, and the next run starts from the beginning."""
    program.run("--window=0s", program.checkpoint, sink_file.option)
    with program.start("--window=60s", program.checkpoint, sink_file.option) as running:
        created = cluster.create(namespace, "a")
        sink_file.wait_for_id(created)
        program.checkpoint_file.unlink()
        running.send(signal.SIGTERM)
        outcome = running.finish(SOON)
    exists = program.checkpoint_file.exists()

    later = program.run("--window=0s", program.checkpoint, sink_file.option)

    assert (outcome.code, exists) == (0, False)
    assert "removed" in outcome.summary["message"]
    assert (later.code, later.summary["start"]) == (0, "first")
    assert changes(sink_file.messages) == [("added", "a", "observed"), ("added", "a", "initial")]


def test_r13_two_first_runs_make_one_checkpoint(
    *, program: Program, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, sink_file: SinkFile
) -> None:
    """Of two first runs one creates the checkpoint; the other finds it there, keeps off it, and exits with 0."""
    created = cluster.create(namespace, "a")
    with proxied.start("--window=60s", proxied.checkpoint, sink_file.option) as running:
        proxy.wait_for(watches())
        sink_file.wait_for_id(created)
        running.send(signal.SIGSTOP)  # so that it saves after the other
        winner = program.run("--window=0s", program.checkpoint, sink_file.option)
        saved = program.checkpoint_file.read_bytes()
        running.send(signal.SIGTERM)  # waits until it wakes
        running.send(signal.SIGCONT)
        loser = running.finish(SOON)

    assert (winner.code, loser.code, winner.summary["saved"], loser.summary["saved"]) == (0, 0, True, False)
    assert program.checkpoint_file.read_bytes() == saved
    assert ids(sink_file.messages) == [id_of(created), id_of(created)]
