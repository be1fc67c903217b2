"""Tests of what a run does when the API server no longer has the history that it wants to go on with, and lists.

Where etcd is asked before that, see `test_recovery`.
"""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from job.change import Known
from job.run.session import timestamp
from tests.bed.cluster import WORKFLOW_CRD, Cluster
from tests.bed.control_plane import ControlPlane
from tests.fakes.api_faults import (
    EXPIRED_LIST,
    EXPIRED_WATCH,
    ErrorFrame,
    Fault,
    Hook,
    SilentClose,
    continued,
    exact,
    first_pages,
    watches,
)
from tests.fakes.api_proxy import ApiProxy
from tests.program import Program
from tests.wire.conftest import CreateMany
from tests.wire.told import SOON, SinkFile, changes, edit_checkpoint, gaps, id_of, ids, last_states

EXPIRED_AFTER_TWO = ErrorFrame(410, "Expired", "too old resource version: 294 (321)", after_frames=2)
READING_BACK_OR_NOT = pytest.mark.parametrize("recover", ["--recover=20s", "--recover=0s"])
_CRD = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{WORKFLOW_CRD}"


def test_r16_after_a_restart_of_the_api_server_the_difference_follows_a_gap(
    program: Program, cluster: Cluster, namespace: str, control_plane: ControlPlane
) -> None:
    """What happened before a restart is told as the difference from the inventory, behind a gap from there to now."""
    for name in ("kept", "changed", "gone", "reborn"):
        cluster.create(namespace, name)
    program.run("--window=0s", program.checkpoint)
    before = program.saved
    cluster.patch(namespace, "changed", {"metadata": {"labels": {"a": "b"}}})
    cluster.delete(namespace, "gone")
    cluster.delete(namespace, "reborn")
    cluster.create(namespace, "reborn")
    cluster.create(namespace, "new")
    control_plane.restart_api()

    after_restart = program.run("--window=0s", "--recover=0s", program.checkpoint)
    later = program.run("--window=0s", program.checkpoint)

    assert (after_restart.code, after_restart.summary["start"]) == (0, "expired")
    gap = after_restart.messages[0]
    assert gap["data"] == {
        "reason": "expired",
        "from": str(before.version),
        "to": gap["id"].partition("/")[0].partition("-")[2],
        "since": before.saved_at,
        "missing": "intermediate",
    }
    assert before.version < int(gap["data"]["to"]) <= program.saved.version
    told = changes(after_restart.messages)
    assert sorted(told) == [
        ("added", "new", "inferred"),
        ("added", "reborn", "inferred"),
        ("deleted", "gone", "inferred"),
        ("deleted", "reborn", "inferred"),
        ("modified", "changed", "inferred"),
    ]
    assert told.index(("deleted", "reborn", "inferred")) < told.index(("added", "reborn", "inferred"))
    assert (later.code, later.summary["start"], later.messages) == (0, "resumed", [])


@pytest.mark.parametrize(
    "fault", [pytest.param(EXPIRED_WATCH, id="error-frame"), pytest.param(EXPIRED_LIST, id="http-410")]
)
def test_a_refused_watch_is_replaced_by_a_listing(
    fault: Fault, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """A 410 for the saved version, whether as a frame or as the status, leads to a gap and the difference."""
    cluster.create(namespace, "changed")
    proxied.run("--window=0s", proxied.checkpoint)
    before = proxied.saved
    cluster.patch(namespace, "changed", {"metadata": {"labels": {"a": "b"}}})
    refused = proxy.inject(on=watches(), fault=fault)

    outcome = proxied.run("--window=0s", "--recover=0s", proxied.checkpoint)

    assert (outcome.code, refused.fired, outcome.summary["start"], outcome.summary["listings"]) == (0, 1, "expired", 1)
    assert gaps(outcome.messages) == [
        {
            "reason": "expired",
            "from": str(before.version),
            "to": str(proxied.saved.listed),
            "missing": "intermediate",
        }
    ]
    assert changes(outcome.messages) == [("modified", "changed", "inferred")]


def test_an_expiry_in_mid_stream_keeps_what_was_observed(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """What a watch told before its 410 stays told, and the gap begins behind it."""
    proxied.run("--window=0s", proxied.checkpoint)
    created = [cluster.create(namespace, name) for name in ("a", "b", "c", "d")]
    cut_off = proxy.inject(on=watches(), fault=EXPIRED_AFTER_TWO)

    outcome = proxied.run("--window=0s", "--recover=0s", proxied.checkpoint)

    assert (outcome.code, cut_off.fired, outcome.summary["start"]) == (0, 1, "resumed")
    assert changes(outcome.messages) == [
        ("added", "a", "observed"),
        ("added", "b", "observed"),
        ("added", "c", "inferred"),
        ("added", "d", "inferred"),
    ]
    assert gaps(outcome.messages) == [
        {
            "reason": "expired",
            "from": created[1]["metadata"]["resourceVersion"],
            "to": str(proxied.saved.listed),
            "missing": "intermediate",
        }
    ]


def test_r10_one_silent_close_is_no_expiry(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, sink_file: SinkFile
) -> None:
    """A watch that is closed once without a frame is opened again at the same version, and no gap is announced."""
    proxied.run("--window=0s", proxied.checkpoint, sink_file.option)
    before = proxied.saved
    created = cluster.create(namespace, "new")
    closed = proxy.inject(on=watches(), fault=SilentClose())

    with proxied.start("--window=60s", proxied.checkpoint, sink_file.option) as running:
        sink_file.wait_for_id(created)
        running.send(signal.SIGTERM)
        outcome = running.finish(SOON)

    assert (outcome.code, closed.fired, outcome.summary["listings"]) == (0, 1, 0)
    assert [request.query["resourceVersion"] for request in proxy.requests if request.watch] == 2 * [
        str(before.version)
    ]
    assert (changes(sink_file.messages), gaps(sink_file.messages)) == ([("added", "new", "observed")], [])


def test_r10_two_silent_closes_are_an_expiry(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, sink_file: SinkFile
) -> None:
    """A watch that is closed twice in a row without a frame is given up for a listing, behind a gap that says so."""
    proxied.run("--window=0s", proxied.checkpoint, sink_file.option)
    before = proxied.saved
    created = cluster.create(namespace, "new")
    closed = proxy.inject(on=watches(), fault=SilentClose(), times=2)

    with proxied.start("--window=60s", "--recover=0s", proxied.checkpoint, sink_file.option) as running:
        sink_file.wait_for_id(created)
        running.send(signal.SIGTERM)
        outcome = running.finish(SOON)

    assert (outcome.code, closed.fired, outcome.summary["start"]) == (0, 2, "silent")
    assert changes(sink_file.messages) == [("added", "new", "inferred")]
    assert gaps(sink_file.messages) == [
        {"reason": "silent", "from": str(before.version), "to": str(proxied.saved.listed), "missing": "intermediate"}
    ]


def test_r4_a_listing_whose_token_expires_is_begun_again_without_its_marks(
    *,
    proxied: Program,
    proxy: ApiProxy,
    cluster: Cluster,
    namespace: str,
    control_plane: ControlPlane,
    sink_file: SinkFile,
    create_many: CreateMany,
) -> None:
    """An object that the first page of an expired listing had, and that is gone by the next one, is told deleted."""
    objects = create_many(namespace, 501)
    skipped = proxied.run("--window=0s", "--initial=skip", proxied.checkpoint, sink_file.option)
    assert (skipped.code, sink_file.messages, len(proxied.saved.inventory)) == (0, [], 501)
    before = proxied.saved
    cluster.patch(namespace, "w-0500", {"metadata": {"labels": {"a": "b"}}})

    def forget() -> None:
        cluster.delete(namespace, "w-0000")
        control_plane.compact(restart=True)

    refused = proxy.inject(on=watches(), fault=EXPIRED_WATCH)
    between_pages = proxy.inject(on=continued(), fault=Hook(forget))

    with proxied.start("--window=60s", "--recover=0s", proxied.checkpoint, sink_file.option) as running:
        deleted = f"{objects[0]['metadata']['uid']}/deleted"
        sink_file.wait_for(lambda messages: deleted in ids(messages), "the deletion to be stored")
        sink_file.wait_for_id(cluster.create(namespace, "later"))  # by which the listing is over
        running.send(signal.SIGTERM)
        outcome = running.finish(SOON)

    assert (outcome.code, refused.fired, between_pages.fired) == (0, 1, 1)
    assert outcome.summary["listings"] >= 2
    assert sorted(change for change in changes(sink_file.messages) if change[1] != "later") == [
        ("deleted", "w-0000", "inferred"),
        ("modified", "w-0500", "inferred"),
    ]
    told = gaps(sink_file.messages)  # one for each listing, and none of them overlaps another (R18)
    assert [gap["from"] for gap in told] == [str(before.version), *(gap["to"] for gap in told[:-1])]
    assert len(proxied.saved.inventory) == len(objects)  # one of them is gone, and one came later


def test_r4_an_object_that_can_no_longer_be_read_restarts_the_listing(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, create_many: CreateMany
) -> None:
    """When the server forgets the listing's version while objects are read by name, a second one tells the change."""
    create_many(namespace, 12)
    proxied.run("--window=0s", "--initial=skip", proxied.checkpoint)
    changed = cluster.patch(namespace, "w-0007", {"metadata": {"labels": {"a": "b"}}})
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)
    forgotten = proxy.inject(on=exact(), fault=EXPIRED_LIST)

    outcome = proxied.run("--window=0s", "--recover=0s", proxied.checkpoint)

    assert (outcome.code, forgotten.fired, outcome.summary["listings"]) == (0, 1, 2)
    assert changes(outcome.messages) == [("modified", "w-0007", "inferred")]
    assert last_states(outcome.messages) == {"w-0007": changed["metadata"]["resourceVersion"]}


def test_r2_a_changed_object_is_read_as_the_listing_had_it(
    *, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, create_many: CreateMany
) -> None:
    """An object that changes again before it is read is told at the listing's version, and then at the later one."""
    create_many(namespace, 12)
    proxied.run("--window=0s", "--initial=skip", proxied.checkpoint)
    listed = cluster.patch(namespace, "w-0007", {"metadata": {"labels": {"a": "b"}}})
    later = []
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)
    between = proxy.inject(
        on=exact(),
        fault=Hook(lambda: later.append(cluster.patch(namespace, "w-0007", {"metadata": {"labels": {"a": "c"}}}))),
    )

    outcome = proxied.run("--window=0s", "--recover=0s", proxied.checkpoint)
    resumed = proxied.run("--window=0s", proxied.checkpoint)

    assert (outcome.code, between.fired, resumed.code, gaps(resumed.messages)) == (0, 1, 0, [])
    assert ids(outcome.messages) == [id_of(listed)]
    assert ids(resumed.messages) == [id_of(thing) for thing in later]


def test_r3_who_takes_over_a_name_is_told_after_the_deletion_of_who_had_it(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """Between a deletion and a new object of the same name the order holds, in a watch as in a listing."""
    old = cluster.create(namespace, "reborn")
    proxied.run("--window=0s", proxied.checkpoint)
    cluster.delete(namespace, "reborn")
    second = cluster.create(namespace, "reborn")
    watched = proxied.run("--window=0s", proxied.checkpoint)
    cluster.delete(namespace, "reborn")
    third = cluster.create(namespace, "reborn")
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)

    listed = proxied.run("--window=0s", "--recover=0s", proxied.checkpoint)

    assert ids(watched.messages) == [f"{old['metadata']['uid']}/deleted", id_of(second)]
    assert ids(listed.messages) == [f"{second['metadata']['uid']}/deleted", id_of(third)]


@READING_BACK_OR_NOT
def test_r4_three_listings_are_enough(
    recover: str, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """A run that is refused again and again gives up after three listings, saves what it told, and exits with 75."""
    cluster.create(namespace, "a")
    refused = proxy.inject(on=watches(), fault=EXPIRED_WATCH, times=None)

    outcome = proxied.run("--window=30s", recover, proxied.checkpoint)

    assert (outcome.code, refused.fired, outcome.summary["listings"]) == (75, 3, 3)
    assert changes(outcome.messages) == [("added", "a", "initial")]
    assert outcome.summary["saved"]
    assert {known.name for known in proxied.saved.inventory.values()} == {"a"}


def test_r7_a_listing_follows_what_has_entered(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """A listing, too, lets in only what the selector matches, and tells on of what has entered and matches no more."""
    options = ["--window=0s", "--selector=team=a", proxied.checkpoint]
    for name, team in (("in", "a"), ("gone", "a"), ("out", "b"), ("later", "b")):
        cluster.create(namespace, name, labels={"team": team})
    proxied.run(*options)
    for name, team in (("in", "b"), ("out", "c"), ("later", "a")):
        cluster.patch(namespace, name, {"metadata": {"labels": {"team": team}}})
    cluster.delete(namespace, "gone")
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)

    outcome = proxied.run(*options, "--recover=0s")

    assert sorted(changes(outcome.messages)) == [
        ("added", "later", "inferred"),
        ("deleted", "gone", "inferred"),
        ("modified", "in", "inferred"),
    ]


def test_r9_a_rewound_cluster_is_told_anew_in_another_epoch(own_control_plane: ControlPlane, tmp_path: Path) -> None:
    """After a restore everything that survives is told again under new ids, behind a gap that may hide anything."""
    program = Program(own_control_plane.kubeconfig(namespace="argo"), tmp_path)
    with own_control_plane.cluster() as cluster:
        kept = cluster.create("argo", "kept")
        forgotten = cluster.create("argo", "deleted-later")
        snapshot = own_control_plane.snapshot()
        for number in range(200):
            cluster.patch("argo", "kept", {"metadata": {"labels": {"number": str(number)}}})
        cluster.delete("argo", "deleted-later")
        lost = cluster.create("argo", "lost")
        program.run("--window=0s", program.checkpoint)
        before = program.saved
        own_control_plane.restore(snapshot)

        outcome = program.run("--window=0s", program.checkpoint)
        later = program.run("--window=0s", program.checkpoint)

    assert (outcome.code, outcome.summary["start"]) == (0, "rewound")
    assert gaps(outcome.messages) == [
        {"reason": "rewound", "from": str(before.version), "to": str(program.saved.listed), "missing": "all"}
    ]
    assert outcome.messages[0]["id"].endswith("/gap~1")
    assert sorted(changes(outcome.messages)) == [
        ("added", "deleted-later", "inferred"),
        ("deleted", "lost", "inferred"),
        ("modified", "kept", "inferred"),
    ]
    assert sorted(ids(outcome.messages)) == sorted(
        [f"{id_of(kept)}~1", f"{id_of(forgotten)}~1", f"{lost['metadata']['uid']}/deleted~1"]
    )
    assert program.saved.epoch == 1
    assert (later.code, later.summary["start"], later.messages) == (0, "resumed", [])


@READING_BACK_OR_NOT
def test_r9_a_known_object_with_a_lower_version_is_a_rewind(
    recover: str, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """A listing that shows a known object at a lower version begins a new epoch, although the counter is higher."""
    created = [cluster.create(namespace, name) for name in ("a", "b")]
    proxied.run("--window=0s", proxied.checkpoint)
    before = proxied.saved
    edit_checkpoint(proxied, inventory=_at(before.inventory, before.version))
    created.append(cluster.create(namespace, "c"))
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)

    outcome = proxied.run("--window=0s", recover, proxied.checkpoint)

    assert (outcome.code, proxied.saved.epoch) == (0, 1)
    assert [(gap["reason"], gap["missing"]) for gap in gaps(outcome.messages)][-1] == ("rewound", "all")
    assert gaps(outcome.messages)[-1]["to"] == str(proxied.saved.listed)
    assert ids(outcome.messages) == [f"{id_of(thing)}~1" for thing in created]


def test_r9_an_audit_that_shows_a_lower_version_is_a_rewind(program: Program, cluster: Cluster, namespace: str) -> None:
    """The daily audit finds a rewind, too, after which the counter has passed the saved version unnoticed."""
    for name in ("a", "b"):
        cluster.create(namespace, name)
    program.run("--window=0s", program.checkpoint)
    before = program.saved
    edit_checkpoint(program, inventory=_at(before.inventory, before.version), audited_at=_two_days_ago())

    outcome = program.run("--window=0s", program.checkpoint)

    assert (outcome.code, program.saved.epoch) == (0, 1)
    assert [gap["reason"] for gap in gaps(outcome.messages)] == ["rewound"]


def test_r9_the_audit_tells_what_the_watch_never_had(program: Program, cluster: Cluster, namespace: str) -> None:
    """Once a day the inventory is compared with the server's own past, and a difference is told behind a gap."""
    cluster.create(namespace, "known")
    program.run("--window=0s", program.checkpoint)
    before = program.saved
    phantom = {"11111111-1111-1111-1111-111111111111": Known(namespace, "phantom", before.version - 1)}
    edit_checkpoint(program, inventory={**before.inventory, **phantom}, audited_at=_two_days_ago())

    outcome = program.run("--window=0s", program.checkpoint)
    later = program.run("--window=0s", program.checkpoint)

    assert (outcome.code, outcome.summary["start"], outcome.summary["gaps"]) == (0, "resumed", ["drifted"])
    assert [(gap["reason"], gap["to"], gap["missing"]) for gap in gaps(outcome.messages)] == [
        ("drifted", str(before.version), "intermediate")
    ]
    assert changes(outcome.messages) == [("deleted", "phantom", "inferred")]
    assert program.saved.inventory == before.inventory
    assert later.messages == []


def test_r9_no_audit_is_due_within_a_day(proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str) -> None:
    """A run that resumes soon after the last audit asks for nothing of the past."""
    cluster.create(namespace, "a")
    proxied.run("--window=0s", proxied.checkpoint)
    before = len(proxy.requests)

    outcome = proxied.run("--window=0s", proxied.checkpoint)

    assert (outcome.code, outcome.summary["start"], outcome.messages) == (0, "resumed", [])
    assert not any(map(exact(), proxy.requests[before:]))


def test_r5_a_recreated_definition_is_a_gap_with_true_deletions(
    own_control_plane: ControlPlane, tmp_path: Path
) -> None:
    """When the CRD was deleted and created again, its objects are told deleted, and those that came later added."""
    program = Program(own_control_plane.kubeconfig(namespace="argo"), tmp_path)
    with own_control_plane.cluster() as cluster:
        old = [cluster.create("argo", name) for name in ("a", "b")]
        program.run("--window=0s", program.checkpoint)
        before = program.saved
        cluster.recreate_crd()
        cluster.create("argo", "a")

        outcome = program.run("--window=0s", program.checkpoint)
        later = program.run("--window=0s", program.checkpoint)

    assert (outcome.code, outcome.summary["start"]) == (0, "recreated")
    assert gaps(outcome.messages) == [
        {
            "reason": "recreated",
            "from": str(before.version),
            "to": str(program.saved.listed),
            "missing": "intermediate",
        }
    ]
    told = changes(outcome.messages)
    assert sorted(told) == [("added", "a", "inferred"), ("deleted", "a", "inferred"), ("deleted", "b", "inferred")]
    assert told.index(("deleted", "a", "inferred")) < told.index(("added", "a", "inferred"))
    assert {f"{thing['metadata']['uid']}/deleted" for thing in old} < set(ids(outcome.messages))
    assert program.saved.identity.definition not in (None, before.identity.definition)
    assert (later.code, later.summary["start"], later.messages) == (0, "resumed", [])


def test_a_changed_definition_is_an_expiry_like_any_other(program: Program, cluster: Cluster, namespace: str) -> None:
    """A new spec of the CRD between two runs, as Argo's upgrades bring it, expires the history and loses nothing."""
    cluster.create(namespace, "a")
    program.run("--window=0s", program.checkpoint)
    changed = cluster.patch(namespace, "a", {"metadata": {"labels": {"a": "b"}}})
    definition = cluster.request("GET", _CRD)
    columns = [
        *definition["spec"]["versions"][0].get("additionalPrinterColumns", []),
        {"name": "Uid", "type": "string", "jsonPath": ".metadata.uid"},
    ]
    version = {**definition["spec"]["versions"][0], "additionalPrinterColumns": columns}
    cluster.request("PATCH", _CRD, {"spec": {"versions": [version]}}, content_type="application/merge-patch+json")

    outcome = program.run("--window=0s", program.checkpoint)

    assert outcome.code == 0
    assert last_states(outcome.messages) == {"a": changed["metadata"]["resourceVersion"]}
    assert gaps(outcome.messages) == []
    assert changes(outcome.messages) in (
        [("modified", "a", "recovered")],
        [("modified", "a", "observed")],  # the watch was quicker than the server's own reaction to the new spec
    )


def test_r1_a_half_published_listing_is_never_watched_from(
    proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str
) -> None:
    """While a listing is published in part, the version before it is not watched from, although the server has it."""
    cluster.create(namespace, "a")
    proxied.run("--window=0s", proxied.checkpoint)
    before = proxied.saved
    cluster.patch(namespace, "a", {"metadata": {"labels": {"a": "b"}}})
    proxied.run("--window=0s", proxied.checkpoint)
    edit_checkpoint(proxied, version=before.version, listed=proxied.saved.version)
    seen = len(proxy.requests)

    outcome = proxied.run("--window=3s", proxied.checkpoint)

    assert (outcome.code, outcome.summary["start"]) == (0, "interrupted")
    assert len([request for request in proxy.requests[seen:] if first_pages()(request)]) == 1
    assert [int(request.query["resourceVersion"]) for request in proxy.requests[seen:] if request.watch] == [
        proxied.saved.listed
    ]
    assert (changes(outcome.messages), [gap["reason"] for gap in gaps(outcome.messages)]) == ([], ["interrupted"])


def _at(inventory: dict[str, Known], version: int) -> dict[str, Known]:
    return {uid: Known(known.namespace, known.name, version) for uid, known in inventory.items()}


def _two_days_ago() -> str:
    return timestamp(datetime.now(UTC) - timedelta(days=2))
