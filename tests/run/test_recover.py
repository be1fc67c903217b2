"""Tests of what is told after an expiry: what the watch would have told, from etcd's history."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from job.change import Kind, Reason, Recovery
from job.errors import ExitCode
from job.ports import Identity
from job.run import past
from job.run.recover import Plan
from tests.fakes.crash import STEPS, Crash, Killed, KilledWhileReading, Step
from tests.fakes.sink import Answer, MemorySink
from tests.fakes.source import PODS, ModelCluster, Refusal
from tests.run import promises
from tests.run.scene import RECOVER, Scene, Told, at_once, reading_back

PATIENT = settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
ARRIVAL = [lambda: None] * 2
"""The first lists of a run whose version has expired: the probe, and the version up to which it reads back."""


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene() as scene:
        yield scene


def happen(cluster: ModelCluster, *history: str) -> None:
    """`+a` creates or changes a, `-a` deletes it, a number is so many versions of others."""
    for what in history:
        sign, name = what[0], what[1:]
        alive = (cluster.namespace, name) in cluster.state()
        if what.isdigit():
            cluster.tick(int(what))
        elif sign == "+":
            (cluster.change if alive else cluster.create)(name)
        elif alive:
            cluster.delete(name)


def contents(scene: Scene, since: int = 0) -> list[tuple[dict[str, str], bytes]]:
    """What was told, whatever way it was known."""
    told = scene.messages[since:]
    return [
        ({name: value for name, value in message.attributes.items() if name != "provenance"}, message.data)
        for message in told
    ]


def provenances(scene: Scene, since: int = 0) -> set[str]:
    return {provenance for _, _, provenance in scene.told(since)}


def in_one_lane(*scenes: Scene) -> None:
    """Let the sinks store everything in the order in which it is told."""
    for scene in scenes:
        scene.sink = MemorySink(lanes=1, messages=3)


LIVELY = ("+a", "+b", "+c", "7")
HISTORY = ("+a", "3", "-b", "+short", "+short", "2", "-short", "+b", "1", "-b", "+b", "+a", "9", "+new", "-c", "2")


@pytest.mark.parametrize("resource", [None, PODS])
@pytest.mark.parametrize("pieces", [1_000, 3])
@pytest.mark.parametrize("says_remaining", [True, False])
def test_r11_what_expired_is_told_as_if_it_had_been_watched(resource: None, pieces: int, says_remaining: bool) -> None:
    """Short lives and names that are taken again included: the same messages in the same order, and no gap."""
    cluster = ModelCluster(resource=PODS, kind="Pod") if resource else ModelCluster()
    with Scene(cluster=cluster) as scene, Scene(cluster=cluster) as reference:
        in_one_lane(scene, reference)
        happen(cluster, *LIVELY)
        scene.run()
        reference.run()
        before = len(scene.messages)
        happen(cluster, *HISTORY)
        reference.run()
        cluster.expire()
        cluster.says_remaining = says_remaining

        with reading_back(pieces=pieces):
            summary = scene.run()

        assert contents(scene) == contents(reference)
        assert provenances(scene, before) == {"recovered"}
        assert (summary.start, summary.recovery, summary.gaps) == (Reason.EXPIRED, Recovery.COMPLETE, [])
        assert (scene.known, scene.saved.version) == (reference.known, reference.saved.version)
        assert scene.saved.runs[-1].recovery == "complete"
        assert scene.saved.runs[-1].age_seconds is not None


def test_r11_the_daily_comparison_was_made(scene: Scene) -> None:
    """The inventory was compared with the past, and what came after it is known."""
    happen(scene.cluster, *LIVELY)
    scene.run()
    scene.clock.jump(100_000)
    happen(scene.cluster, *HISTORY)
    scene.cluster.expire()
    scene.cluster.listable_from = scene.saved.version  # what the daily comparison would need is there
    began = scene.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    scene.run()

    assert scene.saved.audited_at == began


def test_r11_nothing_happened(scene: Scene) -> None:
    """Not even a version: there is nothing to read but the state."""
    happen(scene.cluster, *LIVELY)
    scene.run()
    scene.cluster.watchable_from = scene.cluster.version + 1
    scene.cluster.while_watched.append(lambda: scene.cluster.create("d"))
    asked = len(scene.cluster.lists)

    def remember() -> None:
        scene.cluster.watchable_from = 0

    scene.cluster.while_listed.extend([*ARRIVAL[:1], remember])

    summary = scene.run()

    assert (summary.recovery, summary.gaps) == (Recovery.COMPLETE, [])
    assert scene.told()[3:] == [("added", "d", "observed")]
    assert len(scene.cluster.lists) - asked == 3


colours = st.sampled_from(["red", "blue", "green", "blue"])
labelled = st.tuples(st.sampled_from("abcd"), st.sampled_from(["write", "write", "write", "delete", "tick"]), colours)


def write(cluster: ModelCluster, name: str, what: str, colour: str) -> None:
    alive = (cluster.namespace, name) in cluster.state()
    if what == "write":
        (cluster.change if alive else cluster.create)(name, labels={"colour": colour})
    elif what == "delete" and alive:
        cluster.delete(name)
    else:
        cluster.tick()


@PATIENT
@given(
    st.lists(labelled, max_size=8),
    st.lists(labelled, max_size=30),
    st.sampled_from(["colour=blue", "colour!=red", "colour in (red,blue)", ""]),
    st.sampled_from([2, 7, 1_000]),
    st.sampled_from([0, 500, past.ROOM]),
)
def test_r7_r11_selectors_mean_what_they_mean_while_watching(
    before: list[tuple[str, str, str]], history: list[tuple[str, str, str]], selector: str, pieces: int, room: int
) -> None:
    """Labels come and go: who has entered is followed, in the same order and with the same bytes."""
    cluster = ModelCluster()
    with Scene(cluster=cluster) as scene, Scene(cluster=cluster) as reference:
        in_one_lane(scene, reference)
        for each in before:
            write(cluster, *each)
        for each_scene in (scene, reference):
            each_scene.run(each_scene.settings(selector=selector))
        for each in history:
            write(cluster, *each)
        reference.run(reference.settings(selector=selector))
        cluster.expire()
        with reading_back(pieces=pieces), mock.patch.object(past, "ROOM", room):
            scene.run(scene.settings(selector=selector))

        assert contents(scene) == contents(reference)
        assert scene.known == reference.known


def test_r11_what_has_no_room_is_read_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is told in order, though nothing could be kept."""
    monkeypatch.setattr(past, "ROOM", 0)
    in_one_lane(scene)
    happen(scene.cluster, *LIVELY)
    scene.run()
    before = len(scene.messages)
    happen(scene.cluster, *HISTORY)
    scene.cluster.expire()

    scene.run()

    versions = [int(message.attributes["resourceversion"]) for message in scene.messages[before:]]
    assert versions == sorted(versions)
    assert promises.untold(scene) == []
    assert promises.gaps(scene.messages) == []


@pytest.mark.parametrize("nth", [*range(1, 16, 2), 20, 25, 31, 40, 50])
@pytest.mark.parametrize("step", [step for step in STEPS if step not in {"load", "identity"}])
def test_r11_killed_anywhere_the_next_run_goes_on(scene: Scene, step: Step, nth: int) -> None:
    """Between two pieces and within one; what is saved is told, and nothing is called a gap."""
    happen(scene.cluster, *LIVELY)
    scene.run()
    happen(scene.cluster, *HISTORY)
    scene.cluster.expire()

    def check(data: bytes) -> None:
        assert promises.ahead(scene, data) == []

    scene.store.on_write = check
    scene.cluster.while_listed.extend([lambda: scene.clock.jump(0.7)] * 100)  # a save every now and then
    with reading_back(pieces=2):
        with suppress(Killed, KilledWhileReading):
            scene.run(scene.settings(recover=timedelta(seconds=1_000)), crash=Crash(step, nth))
        scene.cluster.while_listed.clear()
        scene.run()

    assert promises.gaps(scene.messages) == []
    assert promises.untold(scene) == []
    assert promises.disordered(scene.messages) == []
    assert promises.ambiguous(scene.messages) == []
    assert promises.diverged(scene) == []
    assert scene.known == {write.name: write.version for write in scene.cluster.state().values()}


def test_r11_a_run_that_is_killed_leaves_a_version_to_go_on_from(scene: Scene) -> None:
    """It is as old as the one that it began with: nobody knows when it was the present (R16)."""
    happen(scene.cluster, *LIVELY)
    scene.run()
    first = scene.saved
    scene.clock.jump(300)
    happen(scene.cluster, *HISTORY)
    scene.cluster.expire()
    scene.cluster.while_listed.extend([lambda: scene.clock.jump(11)] * 100)  # it saves whenever there is something new
    with reading_back(pieces=4), pytest.raises(Killed):
        scene.run(scene.settings(recover=timedelta(hours=1)), crash=Crash("saved"))
    scene.cluster.while_listed.clear()
    killed = scene.saved
    assert first.version < killed.version < scene.cluster.version
    assert killed.current_at == first.current_at
    assert killed.saved_at > first.saved_at

    scene.cluster.tick()
    scene.cluster.compact()
    summary = scene.run()

    gap = json.loads(next(message.data for message in scene.messages if message.id.endswith("/gap")))
    assert (int(gap["from"]), gap["since"]) == (killed.version, first.current_at)
    assert summary.age_seconds is not None
    assert summary.age_seconds > 300


def test_r11_a_version_that_is_read_back_whole_is_as_old_as_the_run(scene: Scene) -> None:
    """It was the present when the reading began, not when it ended."""
    happen(scene.cluster, *LIVELY)
    scene.run()
    happen(scene.cluster, *HISTORY)
    scene.cluster.expire()
    began = scene.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    scene.cluster.while_listed.extend([*ARRIVAL, lambda: scene.clock.jump(15), lambda: None])

    scene.run(scene.settings(window=timedelta()))

    assert scene.saved.version == scene.cluster.version
    assert scene.saved.current_at == began
    assert scene.saved.audited_at == began


def many(count: int = 20) -> Iterator[str]:
    """Lives of 1 and of 12 versions."""
    for number in range(count):
        yield from (f"+long{number}", "4", f"+brief{number}", f"-brief{number}", "5", f"-long{number}")


def expired(scene: Scene, *history: str) -> int:
    """A scene whose checkpoint cannot be watched from any more; gives how many messages there are."""
    happen(scene.cluster, *LIVELY)
    scene.run()
    happen(scene.cluster, *history)
    scene.cluster.expire()
    return len(scene.messages)


def holes(scene: Scene) -> list[dict[str, str]]:
    """What the gap messages say."""
    return [json.loads(message.data) for message in scene.messages if message.attributes["type"].endswith(".gap")]


def test_r11_samples_are_announced_before_anything_that_they_show(scene: Scene) -> None:
    """A gap of short lives comes first, which says how short; what is told behind it is not inferred."""
    before = expired(scene, *many(), "+last")
    version = scene.saved.version
    with reading_back(counts=10):
        summary = scene.run()

    told = scene.told(before)
    assert told[0] == ("gap", "argo", "inferred")
    assert {provenance for _, _, provenance in told[1:]} == {"recovered"}
    assert (summary.start, summary.recovery, summary.gaps) == ("expired", "sampled", ["expired"])
    (gap,) = holes(scene)
    assert gap["missing"] == "short-lived"
    assert (gap["from"], gap["to"]) == (str(version), str(scene.cluster.version))
    assert 1 < int(gap["spacing"]) < scene.cluster.version - version
    assert promises.untold(scene) == []


@pytest.mark.parametrize("counts", [1, 2, 3, 5, 10, 20, 40, 100])
def test_r11_no_life_is_missing_that_is_as_long_as_the_samples_are_apart(scene: Scene, counts: int) -> None:
    """Shorter ones may be, and with so few samples some are."""
    expired(scene, *many())
    with reading_back(counts=counts, pieces=50):
        scene.run()

    spacing = max(int(hole["spacing"]) for hole in holes(scene))
    ids = {message.id for message in scene.messages}
    created = [each for each in scene.cluster.writes if each.kind is Kind.ADDED]
    missing = {each.uid for each in created if f"{each.uid}/{each.version}" not in ids}
    lives = [[each.version for each in scene.cluster.writes if each.uid == uid] for uid in missing]
    assert lives
    assert all(life[-1] - life[0] < spacing for life in lives)
    assert promises.untold(scene) == []
    assert promises.diverged(scene) == []


def test_r17_r11_nothing_is_announced_before_it_is_saved(scene: Scene) -> None:
    """What was told before the gap is, and a run that was overtaken does not announce anything."""
    before = expired(scene, *many())
    saves: list[int] = []
    scene.sink.before = lambda _: saves.append(len(scene.store.values))
    saved = len(scene.store.values)
    foreign = scene.saved
    with reading_back(counts=10):
        scene.run()
    assert saves[0] == saved + 1

    scene.sink.before = lambda _: None
    before = len(scene.messages)
    scene.save(foreign.version, dict(foreign.inventory))
    scene.store.before_save.append(lambda: scene.save(scene.cluster.version, run_id="other"))
    with reading_back(counts=10):
        summary = scene.run()

    assert (summary.exit_code, scene.saved.run_id) == (ExitCode.DONE, "other")
    assert len(scene.messages) == before


def test_r11_samples_get_no_further_apart_than_was_announced(scene: Scene) -> None:
    """Where counting gets slow in the middle a gap says so, from there on, and then keeps its word."""
    expired(scene, *many(8))
    version, now = scene.saved.version, scene.cluster.version
    with reading_back(pieces=10), mock.patch.object(Plan, "spacing", side_effect=[1, 3, 3, 7, 2, 9, *[5] * 100]):
        summary = scene.run()

    assert [(hole["from"], hole["to"], hole["spacing"]) for hole in holes(scene)] == [
        (str(version + 10), str(now), "3")
    ]
    assert (summary.recovery, summary.gaps) == ("sampled", ["expired"])
    assert promises.untold(scene) == []
    assert promises.diverged(scene) == []


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_r11_deletions_at_one_version_are_all_told(scene: Scene, nth: int) -> None:
    """As when a lease of etcd's ends, which Events have; also where the run is killed between two of them."""
    in_one_lane(scene)
    uids = [scene.cluster.create(name) for name in "xyz"]
    scene.run()
    scene.cluster.tick(3)
    for name in "xyz":
        scene.cluster.delete(name)
        scene.cluster.version -= 1
    scene.cluster.tick(3)
    scene.cluster.expire()
    before = len(scene.messages)

    with suppress(Killed):
        scene.run(crash=Crash("published", nth))
    summary = scene.run()

    assert {message.id for message in scene.messages[before:]} == {f"{uid}/deleted" for uid in uids}
    assert {provenance for _, _, provenance in scene.told(before)} == {"recovered"}
    assert (summary.exit_code, scene.known, summary.gaps) == (ExitCode.DONE, {}, [])


@pytest.mark.parametrize("miscounted", [-1, 1])
def test_r11_counts_that_cannot_be_believed_are_not(scene: Scene, miscounted: int) -> None:
    """What they would have shown may be missing, and nothing else."""
    before = expired(scene, "+a", "3", "+short", "-short", "-b", "2")
    scene.cluster.miscounted = miscounted

    summary = scene.run()

    assert (summary.recovery, summary.gaps) == ("sampled", ["expired"])
    assert scene.told(before) == [
        ("gap", "argo", "inferred"),
        ("modified", "a", "recovered"),
        *([("added", "short", "recovered"), ("deleted", "short", "recovered")] if miscounted > 0 else []),
        ("deleted", "b", "recovered"),
    ]
    (gap,) = holes(scene)
    assert (gap["missing"], int(gap["spacing"])) == ("short-lived", int(gap["to"]) - int(gap["from"]))
    assert promises.untold(scene) == []


def test_r11_a_server_that_does_not_say_how_many_remain_is_read_whole(scene: Scene) -> None:
    """Nothing is missing."""
    expired(scene, *HISTORY)
    scene.cluster.says_remaining = False

    assert scene.run().recovery == "complete"
    assert promises.gaps(scene.messages) == []
    assert promises.untold(scene) == []


def test_r11_one_count_that_takes_long_says_nothing_of_the_others(scene: Scene) -> None:
    """A server that is away for a quarter of the time at one of the first counts costs time, and no history."""
    expired(scene, "+a", "200", "+short", "1", "-short")
    scene.cluster.while_listed.extend([*[lambda: None] * 5, lambda: scene.clock.jump(RECOVER.total_seconds() / 4)])

    assert scene.run().recovery == "complete"
    assert promises.gaps(scene.messages) == []
    assert promises.untold(scene) == []


INFERRED: list[Told] = [("gap", "argo", "inferred"), ("modified", "a", "inferred"), ("deleted", "b", "inferred")]
RECOVERED: list[Told] = [("modified", "a", "recovered"), ("deleted", "b", "recovered")]


def test_r11_a_server_that_ignores_the_version_is_not_believed(scene: Scene) -> None:
    """It answers with the present, which would be taken for the past: the history is inferred."""
    before = expired(scene, "+a", "3", "-b", "2")
    scene.cluster.matches_exactly = False
    scene.cluster.while_listed.extend([*ARRIVAL, lambda: None, lambda: None])
    version = scene.saved.version

    summary = scene.run()

    assert (summary.recovery, summary.gaps, summary.exit_code) == ("refused", ["expired"], ExitCode.DONE)
    assert scene.told(before) == INFERRED
    (gap,) = holes(scene)
    assert (gap["missing"], gap["from"], gap["to"]) == ("intermediate", str(version), str(scene.cluster.version))


def test_r11_a_compacted_history_is_inferred(scene: Scene) -> None:
    """Etcd has forgotten the version itself."""
    before = expired(scene, "+a", "3", "-b", "2")
    scene.cluster.compact()

    summary = scene.run()

    assert (summary.recovery, summary.gaps, summary.listings) == ("compacted", ["expired"], 1)
    assert scene.told(before) == INFERRED


def test_r11_without_time_for_it_nothing_is_read_back(scene: Scene) -> None:
    """`--recover 0s`: the history is inferred at once, and no old version asked for."""
    before = expired(scene, "+a", "3", "-b", "2")
    asked = len(scene.cluster.lists)

    summary = scene.run(scene.settings(recover=timedelta()))

    assert (summary.recovery, summary.gaps) == ("", ["expired"])
    assert scene.told(before) == INFERRED
    assert {query.at for query in scene.cluster.lists[asked:]} <= {0, scene.cluster.version}


def test_r11_nothing_is_read_back_of_a_definition_that_is_another_one(scene: Scene) -> None:
    """Its versions are not those of the objects that are known."""
    expired(scene, "+a")
    identity = scene.cluster.identity

    def recreated() -> None:
        scene.cluster.identity = Identity(identity.cluster, "definition-2")

    scene.cluster.while_listed.append(recreated)

    assert (scene.run().recovery, holes(scene)[0]["reason"]) == ("", "recreated")


@pytest.mark.parametrize("at", range(3, 60, 3))
@pytest.mark.parametrize("what", ["compacted", "late", "refused"])
def test_r11_what_is_lost_in_the_middle_is_inferred_from_there_on(scene: Scene, at: int, what: str) -> None:
    """Told up to a version M in order, then a gap from M to N, then the rest as a listing at N shows it."""
    in_one_lane(scene)
    before = expired(scene, *HISTORY)
    version, now = scene.saved.version, scene.cluster.version

    def lose() -> None:
        if what == "compacted":
            scene.cluster.compact()
        elif what == "late":
            scene.clock.jump(RECOVER.total_seconds())
        else:
            scene.cluster.matches_exactly = False

    scene.cluster.while_listed.extend([lambda: None] * (at - 1) + [at_once(lambda: scene.cluster.tick(2), lose)])
    if what == "refused":
        scene.cluster.while_watched.append(lambda: None)
    with reading_back(pieces=5), mock.patch.object(past, "CONNECTIONS", 1):
        summary = scene.run()
    scene.cluster.matches_exactly = True
    scene.run()

    assert summary.exit_code == ExitCode.DONE or what == "refused"
    if summary.recovery != "complete":
        assert summary.recovery == what
    assert promises.untold(scene) == []
    assert promises.diverged(scene) == []
    assert promises.disordered(scene.messages) == []
    told = scene.told(before)
    first = next((number for number, each in enumerate(told) if each[0] == "gap"), len(told))
    assert {provenance for _, _, provenance in told[:first]} <= {"recovered"}
    assert {provenance for _, _, provenance in told[first:]} <= {"inferred", "observed"}
    if what != "refused" and summary.recovery != "complete":
        assert [gap["missing"] for gap in holes(scene)] == ["intermediate"]
        assert all(version <= int(gap["from"]) < int(gap["to"]) and int(gap["to"]) >= now for gap in holes(scene))


def test_r11_the_rest_is_listed_at_the_version_that_is_watched_from(scene: Scene) -> None:
    """The watch is open since the reading began: what happened meanwhile is observed."""
    before = expired(scene, "+a", "3", "-b", "2")
    now = scene.cluster.version
    opened = len(scene.cluster.watches)

    def late() -> None:
        scene.cluster.change("c")
        scene.clock.jump(RECOVER.total_seconds())

    scene.cluster.while_listed.extend([*ARRIVAL, lambda: None, late])
    summary = scene.run()

    assert scene.told(before) == [*INFERRED, ("modified", "c", "observed")]
    assert [version for version, _ in scene.cluster.watches[opened:]] == [102 + 8, now]
    assert (summary.recovery, summary.listings) == ("late", 1)


@pytest.mark.parametrize("at", range(1, 60, 3))
def test_r11_a_signal_ends_it_and_the_next_run_goes_on(scene: Scene, at: int) -> None:
    """What was told is saved; nothing is inferred, and no gap announced."""
    expired(scene, *HISTORY)
    scene.cluster.while_listed.extend([*[lambda: None] * at, scene.signal])
    with reading_back(pieces=5), mock.patch.object(past, "ROOM", 0):
        summary = scene.run()
        assert summary.exit_code == ExitCode.DONE
        assert summary.recovery in {"", "complete"}
        assert summary.recovery or summary.saved or scene.saved.version == 110
        scene.cluster.while_listed.clear()
        scene.run()

    assert promises.gaps(scene.messages) == []
    assert promises.untold(scene) == []
    assert promises.diverged(scene) == []


@pytest.mark.parametrize("answer", [Answer.REFUSED, Answer.UNAVAILABLE])
def test_r11_a_sink_that_fails_ends_it(scene: Scene, answer: Answer) -> None:
    """Nobody goes on reading what cannot be stored; what was not is told by the next run."""
    expired(scene, *HISTORY)
    scene.sink.otherwise = answer
    scene.sink.before = lambda _: scene.clock.jump(15)
    asked = len(scene.cluster.lists)
    with reading_back(pieces=2):
        summary = scene.run(scene.settings(window=timedelta(seconds=3)))
    assert summary.exit_code == (ExitCode.ACTION_NEEDED if answer is Answer.REFUSED else ExitCode.TEMPORARY)
    assert max(query.at for query in scene.cluster.lists[asked:] if query.whole) < scene.cluster.version
    scene.sink.before = lambda _: None
    scene.sink.otherwise = Answer.STORED
    scene.run()

    assert promises.gaps(scene.messages) == []
    assert promises.untold(scene) == []


def test_r9_r11_an_inventory_that_the_past_contradicts_is_mended_first(scene: Scene) -> None:
    """A deletion that never reached the watch: a drift is announced, and then everything is recovered."""
    happen(scene.cluster, *LIVELY)
    scene.run()
    scene.cluster.delete("b")
    scene.save(scene.cluster.version, dict(scene.saved.inventory), audited_at=scene.saved.audited_at)
    happen(scene.cluster, "+a", "-c")
    scene.cluster.expire()
    before = len(scene.messages)

    summary = scene.run()

    assert (summary.recovery, summary.gaps) == ("complete", ["drifted"])
    assert scene.told(before) == [
        ("gap", "argo", "inferred"),
        ("deleted", "b", "inferred"),
        ("modified", "a", "recovered"),
        ("deleted", "c", "recovered"),
    ]
    assert scene.known == {"a": 112}


def test_r9_r11_a_drift_is_not_forgotten_where_etcd_forgets_meanwhile(scene: Scene) -> None:
    """The version is compacted between the look that shows the drift and the comparison that would tell it."""
    happen(scene.cluster, *LIVELY)
    scene.run()
    uid = scene.cluster.state()["argo", "b"].uid
    version = scene.cluster.delete("b")
    scene.save(version, dict(scene.saved.inventory), audited_at=scene.saved.audited_at)
    happen(scene.cluster, "5")
    scene.cluster.expire()

    def compact() -> None:
        scene.cluster.listable_from = version + 1

    scene.cluster.while_listed.extend([*ARRIVAL, lambda: None, compact])
    scene.run()

    assert f"{uid}/deleted" in {message.id for message in scene.messages}


def test_r9_r11_a_past_that_went_back_is_a_rewind(scene: Scene) -> None:
    """A known object is older in the past than it was: the cluster was restored, and has counted on since."""
    happen(scene.cluster, *LIVELY)
    backup = scene.cluster.version
    scene.cluster.change("a")
    scene.run()
    scene.cluster.rewind(backup)
    happen(scene.cluster, "50", "+c")
    scene.cluster.expire()

    summary = scene.run()

    assert (scene.saved.epoch, summary.gaps) == (1, ["rewound"])
    assert promises.diverged(scene) == []


def test_r9_r11_a_cluster_that_is_behind_the_position_is_a_rewind(scene: Scene) -> None:
    """It was restored between the probe and the look for the version of now."""
    happen(scene.cluster, *LIVELY)
    backup = scene.cluster.version
    happen(scene.cluster, "+a", "3")
    scene.run()
    scene.cluster.watchable_from = scene.cluster.version + 1
    scene.cluster.while_listed.extend([lambda: None, lambda: scene.cluster.rewind(backup)])

    summary = scene.run()

    assert (scene.saved.epoch, summary.gaps) == (1, ["rewound"])
    assert promises.diverged(scene) == []


def test_r5_r11_most_objects_are_not_deleted_where_the_past_is_another_clusters(scene: Scene) -> None:
    """Nothing proves that this is the same cluster, and its past has nothing of what is known: a person is asked."""
    scene.cluster.identity = Identity()
    happen(scene.cluster, *(f"+w{number}" for number in range(20)))
    scene.run()
    other = ModelCluster(scene.clock)
    other.identity = Identity()
    other.tick(50)
    other.expire()
    scene.cluster = other
    before = len(scene.messages)

    assert scene.run().exit_code == ExitCode.ACTION_NEEDED
    assert len(scene.messages) == before


@pytest.mark.parametrize("identity", [Identity(), Identity("cluster-1", "definition-1")])
def test_r5_r11_true_deletions_need_no_proof(scene: Scene, identity: Identity) -> None:
    """The past has each object as it is known, and has its deletion: so it is the same cluster."""
    scene.cluster.identity = identity
    happen(scene.cluster, *(f"+w{number}" for number in range(20)))
    scene.run()
    happen(scene.cluster, *(f"-w{number}" for number in range(20)))
    scene.cluster.expire()

    assert (scene.run().exit_code, scene.known) == (ExitCode.DONE, {})


def test_r18_r11_what_a_killed_run_told_is_told_again(scene: Scene) -> None:
    """It is known to nobody, and its deletion is in the history."""
    happen(scene.cluster, "+known")
    scene.run()
    happen(scene.cluster, "+alive", "+dead")
    with pytest.raises(Killed):
        scene.run(crash=Crash("save"))
    happen(scene.cluster, "-dead")
    scene.cluster.expire()
    before = len(scene.messages)

    scene.run()

    assert scene.told(before) == [
        ("added", "alive", "recovered"),
        ("added", "dead", "recovered"),
        ("deleted", "dead", "recovered"),
    ]
    assert promises.ambiguous(scene.messages) == []
    assert promises.diverged(scene) == []


def test_r4_r11_a_history_that_is_lost_again_and_again_is_read_back_three_times(scene: Scene) -> None:
    """Each time counts as a listing; then 75, and the next run goes on."""
    expired(scene, "+a")
    scene.cluster.while_watched.extend([at_once(lambda: scene.cluster.change("a"), scene.cluster.expire_watches)] * 5)

    summary = scene.run()

    assert (summary.exit_code, summary.listings, summary.gaps) == (ExitCode.TEMPORARY, 3, [])
    scene.cluster.while_watched.clear()
    scene.run()
    assert promises.gaps(scene.messages) == []
    assert promises.untold(scene) == []


def test_r10_r11_a_run_without_a_window_ends_where_it_has_read_to(scene: Scene) -> None:
    """That is not before the version of the probe."""
    before = expired(scene, "+a", "3", "-b", "2")
    opened = len(scene.cluster.watches)

    summary = scene.run(scene.settings(window=timedelta()))

    assert (summary.exit_code, summary.recovery) == (ExitCode.DONE, "complete")
    assert scene.told(before) == RECOVERED
    assert len(scene.cluster.watches) - opened == 1
    assert scene.saved.version == scene.cluster.version


@pytest.mark.parametrize("seconds", [1.0, 10.0, 54.0])
def test_p5_r11_a_slow_server_does_not_keep_a_run_for_longer(scene: Scene, seconds: float) -> None:
    """However slow its past is: the window, the time for reading back, and less than 30 s."""
    expired(scene, *many())
    scene.cluster.while_listed.extend([lambda: scene.clock.jump(seconds)] * 1_000)

    summary = scene.run()

    assert summary.seconds < 55 + RECOVER.total_seconds() + 30 + seconds
    scene.cluster.while_listed.clear()
    scene.run()
    assert promises.untold(scene) == []


def test_r16_r11_the_gap_of_samples_has_the_reason_of_its_listing(scene: Scene) -> None:
    """What the summary says of the beginning is not said twice."""
    expired(scene, *many())
    scene.cluster.refusal = Refusal.SILENT
    with reading_back(counts=10):
        summary = scene.run()

    assert (summary.start, summary.gaps) == ("silent", ["silent"])
    assert "; then" not in summary.sentence()


class TestPlan:
    """Of counting."""

    @pytest.mark.parametrize(
        ("distance", "unknown", "spacing"),
        [
            (1, 1, 1),
            (100_000, 100_000, 1),
            (100_001, 100_001, 3),
            (150_001, 100_000, 1),
            (150_000, 100_001, 3),
            (150_001, 100_001, 4),
            (10**30, 10**30, 2 * 10**25),
        ],
    )
    def test_r11_all_versions_or_even_steps_in_half_of_the_time(
        self, distance: int, unknown: int, spacing: int
    ) -> None:
        """Up to as many counts as there is time for, then half of them; a version has up to 128 bits."""
        assert Plan(20).spacing(distance, unknown) == spacing

    def test_r11_it_follows_what_counting_takes(self) -> None:
        """Slower at once; faster by and by, since few counts may have been lucky."""
        plan = Plan(20)
        plan.took(1.0, 0.01)
        assert plan.spacing(900, 900) == 1
        assert plan.spacing(901, 901) == 3
        plan.took(1.0, 0.0001)
        assert plan.spacing(1_600, 1_600) == 1
        assert plan.spacing(1_601, 1_601) == 3

    def test_r11_without_time_it_is_one_step(self) -> None:
        """From one end to the other, unless everything is known."""
        assert Plan(0).spacing(5, 5) == 5
        assert Plan(0).spacing(5, 0) == 1
        plan = Plan(1)
        plan.took(2.0, 0.001)
        assert plan.spacing(700, 1) == 700
