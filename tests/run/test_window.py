"""Tests of a window: watch after watch, until the time is over or the history is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from job.change import Reason
from job.errors import ExitCode
from job.run.watch import SHORTEST
from tests.fakes.sink import Answer
from tests.fakes.source import ModelCluster, Refusal
from tests.run.scene import Scene, Told, at_once

CATCH_UP = timedelta()


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene() as scene:
        yield scene


def test_r16_a_resumed_run_tells_what_it_sees_and_no_gap(scene: Scene) -> None:
    """What happened between two runs is observed by the second one, in order."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.change("a")
    scene.cluster.delete("a")
    scene.cluster.create("a")
    before = len(scene.messages)

    summary = scene.run()

    assert (summary.start, summary.gaps, summary.exit_code) == ("resumed", [], ExitCode.DONE)
    assert scene.told(before) == [
        ("modified", "a", "observed"),
        ("deleted", "a", "observed"),
        ("added", "a", "observed"),
    ]


def test_an_observed_deletion_carries_the_last_object(scene: Scene) -> None:
    """With the version of the deletion written in, as the watch does."""
    uid = scene.cluster.create("a", phase="Succeeded")
    scene.run()
    version = scene.cluster.delete("a")
    scene.run()

    message = scene.messages[-1]
    assert message.id == f"{uid}/deleted"
    assert message.attributes["resourceversion"] == str(version)
    assert message.attributes["phase"] == "Succeeded"
    assert b'"resourceVersion":"%d"' % version in message.data


@pytest.mark.parametrize("ending", ["end_watches", "break_watches", "fail_watches"])
def test_r16_a_watch_that_ends_early_is_opened_where_it_ended(scene: Scene, ending: str) -> None:
    """A clean close, a broken connection, an internal error: the history goes on, and nothing is told twice."""
    scene.cluster.create("a")
    scene.run()
    before = len(scene.messages)
    scene.cluster.while_watched.extend(
        [
            lambda: scene.cluster.change("a"),
            getattr(scene.cluster, ending),
            lambda: scene.cluster.change("a"),
        ]
    )

    summary = scene.run()

    assert (summary.exit_code, summary.gaps, summary.watches) == (ExitCode.DONE, [], 2)
    assert [message.id for message in scene.messages[before:]] == ["uid-1/102", "uid-1/103"]


def test_watches_that_keep_failing_are_not_opened_without_a_pause(scene: Scene) -> None:
    """A server that answers each watch with an error is asked less and less often: the pause doubles up to 3 s."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.while_watched.extend([scene.cluster.fail_watches] * 20)

    summary = scene.run(scene.settings(window=timedelta(seconds=30)))

    opened = [asked for _, asked in scene.cluster.watches[-summary.watches :]]
    assert opened[:5] == [30, 30, 29, 29, 27]
    assert summary.watches == 12


@pytest.mark.parametrize("refusal", list(Refusal))
@pytest.mark.parametrize(
    ("forget", "told"),
    [
        (ModelCluster.expire, [("modified", "a", "recovered")]),
        (ModelCluster.compact, [("gap", "argo", "inferred"), ("modified", "a", "inferred")]),
    ],
)
def test_every_form_of_refusal_means_that_the_history_is_lost(
    scene: Scene, refusal: Refusal, forget: Callable[[ModelCluster], None], told: list[Told]
) -> None:
    """An ERROR frame, an HTTP 410, and two silent closes are one thing: read back what etcd has, or list."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.change("a")
    forget(scene.cluster)
    scene.cluster.refusal = refusal
    before = len(scene.messages)

    summary = scene.run()

    assert summary.exit_code == ExitCode.DONE
    assert summary.start == (Reason.SILENT if refusal is Refusal.SILENT else Reason.EXPIRED)
    assert scene.told(before) == told


def test_r10_one_silent_close_is_not_yet_a_loss(scene: Scene) -> None:
    """A server that shuts down closes its watches without a word: only twice in a row means expiry."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.change("a")
    scene.cluster.expire()
    scene.cluster.refusal = Refusal.SILENT

    def remember() -> None:
        scene.cluster.watchable_from = 0

    scene.cluster.while_listed.extend([lambda: None, remember])  # the probe, and the look before watching again

    summary = scene.run()

    assert (summary.start, summary.gaps, summary.watches) == ("resumed", [], 2)
    assert scene.told()[-1] == ("modified", "a", "observed")


def lost_in_the_middle(scene: Scene) -> int:
    """Let the next run's watch expire after its first event; gives how many messages there are."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.while_watched.extend(
        [
            lambda: scene.cluster.change("a"),
            at_once(lambda: scene.cluster.change("a"), scene.cluster.expire_watches),
            lambda: scene.cluster.create("b"),
        ]
    )
    return len(scene.messages)


def test_a_history_that_is_lost_in_the_middle_is_listed_there(scene: Scene) -> None:
    """An ERROR 410 in an open stream, and etcd is not asked: a gap from the last frame on, then watching goes on."""
    before = lost_in_the_middle(scene)

    summary = scene.run(scene.settings(recover=timedelta()))

    assert (summary.start, summary.gaps, summary.recovery) == ("resumed", [Reason.EXPIRED], "")
    assert scene.told(before) == [
        ("modified", "a", "observed"),
        ("gap", "argo", "inferred"),
        ("modified", "a", "inferred"),
        ("added", "b", "observed"),
    ]


def test_r11_a_history_that_is_lost_in_the_middle_is_read_back_there(scene: Scene) -> None:
    """An ERROR 410 in an open stream, and etcd has it still: no gap, then watching goes on."""
    before = lost_in_the_middle(scene)

    summary = scene.run()

    assert (summary.start, summary.gaps, summary.recovery) == ("resumed", [], "")
    assert scene.told(before) == [
        ("modified", "a", "observed"),
        ("modified", "a", "recovered"),
        ("added", "b", "observed"),
    ]


@pytest.mark.parametrize("moved", [False, True])
def test_a_gap_in_the_middle_begins_when_its_version_was_last_current(scene: Scene, moved: bool) -> None:
    """`since` is the time of the last frame, not that of the refusal: whatever is missing happened after the former."""
    scene.cluster.create("a")
    scene.run()
    last_seen: list[str] = []

    def lose_the_connection() -> None:
        last_seen.append(scene.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ"))
        scene.cluster.break_watches()
        scene.cluster.change("a")
        scene.cluster.expire()

    if moved:
        scene.cluster.while_watched.append(lambda: scene.cluster.change("a"))
    scene.cluster.while_watched.append(lose_the_connection)
    # The API server is away for 20 s, then answers the look before watching again.
    scene.cluster.while_listed.extend([lambda: None, lambda: scene.clock.jump(20)])

    summary = scene.run(scene.settings(recover=timedelta()))

    assert summary.gaps == [Reason.EXPIRED]
    gap = next(message for message in scene.messages if message.id.endswith("/gap"))
    assert b'"since":"%b"' % last_seen[0].encode() in gap.data


def test_r10_a_watch_is_never_shorter_than_three_seconds(scene: Scene) -> None:
    """timeoutSeconds 0 would mean half an hour, and below 3 there is no closing bookmark."""
    scene.cluster.create("a")
    for window in (3, 4, 55):
        scene.run(scene.settings(window=timedelta(seconds=window)))
    scene.cluster.while_watched.append(at_once(lambda: scene.clock.jump(51), scene.cluster.end_watches))
    scene.run()

    assert min(seconds for _, seconds in scene.cluster.watches) >= SHORTEST


def test_r10_a_rest_that_is_too_short_is_left_alone(scene: Scene) -> None:
    """With less than 3 s left, a watch that ended early is not opened again."""
    scene.cluster.create("a")
    scene.run()
    opened = len(scene.cluster.watches)
    scene.cluster.while_watched.append(at_once(lambda: scene.clock.jump(53), scene.cluster.end_watches))

    summary = scene.run()

    assert (summary.exit_code, len(scene.cluster.watches) - opened) == (ExitCode.DONE, 1)


@pytest.mark.parametrize(("window", "late"), [(timedelta(seconds=55), 54), (CATCH_UP, 9)], ids=["55s", "0s"])
def test_r10_a_slow_start_still_has_its_first_watch(scene: Scene, window: timedelta, late: float) -> None:
    """Else run after run would get nowhere."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.change("a")
    scene.cluster.while_listed.append(lambda: scene.clock.jump(late))

    summary = scene.run(scene.settings(window=window))

    assert (summary.exit_code, summary.watches) == (ExitCode.DONE, 1)
    assert scene.cluster.watches[-1][1] == SHORTEST
    assert scene.known == {"a": 102}


def test_r10_no_window_ends_at_the_version_of_the_probe(scene: Scene) -> None:
    """`0s` catches up with what was there when it began, and waits for nothing more."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.change("a")
    scene.cluster.while_watched.append(lambda: scene.cluster.change("a"))
    began = scene.clock.jumped

    summary = scene.run(scene.settings(window=CATCH_UP))

    assert (summary.exit_code, scene.known) == (ExitCode.DONE, {"a": 102})
    assert scene.cluster.watches[-1][1] == SHORTEST
    assert scene.clock.jumped == began


def test_r10_no_window_and_nothing_new_opens_no_watch(scene: Scene) -> None:
    """The probe says that the checkpoint is current."""
    scene.cluster.create("a")
    scene.run(scene.settings(window=CATCH_UP))
    scene.run(scene.settings(window=CATCH_UP))

    assert scene.cluster.watches == []
    assert scene.saved.version == 101


def test_r10_no_window_is_not_without_limit(scene: Scene) -> None:
    """Who does not reach the version of the probe in ten seconds leaves the rest to the next run: 75."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.change("a")
    scene.cluster.while_listed.append(lambda: None)
    scene.cluster.while_watched.extend([at_once(lambda: scene.clock.jump(4), scene.cluster.end_watches)] * 5)
    scene.cluster.deaf = True

    summary = scene.run(scene.settings(window=CATCH_UP))

    assert summary.exit_code == ExitCode.TEMPORARY
    assert scene.saved.version == 101


def test_a_bookmark_moves_the_version(scene: Scene) -> None:
    """A quiet resource does not keep the checkpoint back while others are written."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.tick(40)
    scene.run()

    assert scene.saved.version == 141


def test_a_version_that_is_told_by_filtered_events_moves_too(scene: Scene) -> None:
    """What does not enter needs no acknowledgement."""
    blue = scene.settings(selector="colour=blue")
    scene.run(blue)
    scene.cluster.create("red", labels={"colour": "red"})
    scene.cluster.while_watched.append(lambda: scene.cluster.create("red2", labels={"colour": "red"}))
    scene.run(blue)

    assert scene.messages == []
    assert scene.saved.version == 102


def test_r19_a_watch_that_never_ends_does_not_outlast_the_window(scene: Scene) -> None:
    """A dead peer, or a proxy that ignores timeoutSeconds: the run leaves it, and ends in time."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.endless = True
    scene.cluster.while_watched.append(lambda: scene.clock.jump(75))
    running = threading.Thread(target=scene.run, daemon=True)
    running.start()
    running.join(timeout=5)
    ended = not running.is_alive()
    scene.cluster.end_watches()
    running.join(timeout=5)

    assert ended


def test_a_signal_ends_the_watch_and_saves(scene: Scene) -> None:
    """SIGTERM in the window: what was told is drained and saved, and the exit code is 0."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.while_watched.extend([lambda: scene.cluster.change("a"), scene.signal])

    summary = scene.run()

    assert (summary.exit_code, summary.saved) == (ExitCode.DONE, True)
    assert scene.known == {"a": 102}


def test_p1_a_refused_message_stops_the_run_before_it(scene: Scene) -> None:
    """Without a place for dead letters nothing is skipped: 78, and the version stays behind."""
    scene.cluster.create("a")
    scene.run()
    scene.cluster.while_watched.extend(
        [lambda: scene.sink.answer(Answer.REFUSED), lambda: scene.cluster.change("a"), scene.cluster.tick]
    )

    summary = scene.run()

    assert summary.exit_code == ExitCode.ACTION_NEEDED
    assert scene.saved.version == 101
