"""Tests of a window of consuming, with a subscription in memory and commands that end as the test says."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest

from job.consume import AT_ONCE, Consumer
from job.consume.event import Event
from job.consume.leases import LEASE
from job.consume.summary import Summary
from job.errors import ActionNeeded, ExitCode, Stopped, Unavailable
from job.message import binary
from tests.bed.waiting import wait_until
from tests.consume.events import attributes
from tests.fakes.clock import Clock
from tests.fakes.subscription import MemorySubscription

SOON = timedelta(seconds=60)
AWAY, GONE = Unavailable("the broker is away"), ActionNeeded("the subscription is gone")
Decide = Callable[[Event], int | None]


def message(name: str, version: int) -> dict[str, str]:
    return binary(attributes(name, version))


def well(_: Event) -> int:
    return 0


faster = Clock(20)


class FakeCommands:
    """Each ends at once with what `decide` says; with None it runs until it is let go, or sent `ends_at`."""

    def __init__(self, decide: Decide = well, ends_at: signal.Signals | None = signal.SIGKILL) -> None:
        self._decide = decide
        self._ends_at = ends_at
        self._running: dict[str, Callable[[int], None]] = {}
        self.began: list[str] = []
        self.sent: list[signal.Signals] = []
        self.most = 0
        """At the same time."""

    def start(self, event: Event, ended: Callable[[int], None]) -> None:
        self.began.append(event.identity.id)
        exit_code = self._decide(event)
        if exit_code is None:
            self._running[event.identity.id] = ended
            self.most = max(self.most, len(self._running))
        else:
            ended(exit_code)

    def let_go(self, id_: str, exit_code: int = 0) -> None:
        if ended := self._running.pop(id_, None):
            ended(exit_code)

    def send(self, number: signal.Signals) -> None:
        self.sent.append(number)
        if number == self._ends_at:
            for id_ in list(self._running):
                self.let_go(id_, 0 if number is signal.SIGTERM else -number)


class Run:
    """A consumer in a thread of its own, as the test goes on beside it."""

    def __init__(
        self,
        subscription: MemorySubscription,
        commands: FakeCommands,
        *,
        window: float = 600,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.consumer = Consumer(subscription, commands, window=timedelta(seconds=window), clock=clock)
        self._summary: Summary | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._summary = self.consumer.run()
        except BaseException as error:  # noqa: BLE001 - raised where the test waits
            self._error = error

    def finish(self) -> Summary:
        self._thread.join(SOON.total_seconds())
        if self._error:
            raise self._error
        assert self._summary
        return self._summary

    def stop(self) -> Summary:
        self.consumer.signal()
        return self.finish()


@pytest.fixture
def subscription() -> MemorySubscription:
    return MemorySubscription()


def test_so_many_commands_run_at_a_time(subscription: MemorySubscription) -> None:
    """Of different objects; the next begins when one has ended."""
    for number in range(2 * AT_ONCE):
        subscription.publish(message(f"w{number}", 1))
    commands = FakeCommands(lambda _: None)
    run = Run(subscription, commands)
    wait_until(lambda: len(commands.began) == AT_ONCE, SOON, "the first commands")
    for number in range(2 * AT_ONCE):
        wait_until(lambda wanted=number: len(commands.began) > wanted, SOON, "the next command")  # type: ignore[misc]
        commands.let_go(f"uid-w{number}/1")
    wait_until(lambda: len(subscription.acknowledged) == 2 * AT_ONCE, SOON, "all to be acknowledged")

    assert run.stop().counts.processed == 2 * AT_ONCE
    assert commands.most == AT_ONCE


def test_a_lease_is_long_at_once_and_renewed_in_time() -> None:
    """For what runs and for what waits, as long as it takes."""
    subscription = MemorySubscription(faster)
    running, waiting = (subscription.publish(message("a", version)) for version in (1, 2))
    commands = FakeCommands(lambda event: None if event.identity.id == "uid-a/1" else 0)
    run = Run(subscription, commands, clock=faster, window=6000)
    wait_until(lambda: len(subscription.extended) >= 4, SOON, "the leases to be renewed")
    commands.let_go("uid-a/1")
    wait_until(lambda: len(subscription.acknowledged) == 2, SOON, "both to be acknowledged")

    assert [sorted(ids) for ids in subscription.extended[:4]] == [[running, waiting]] * 4
    assert run.stop().counts.pulled == 2
    assert LEASE == 60


def test_what_the_broker_has_not_heard_is_said_again(subscription: MemorySubscription) -> None:
    """Acknowledgements and refusals survive a moment without the broker, and so do pulls and leases."""
    good, bad = subscription.publish(message("a", 1)), subscription.publish(message("b", 1))
    for method in ("pull", "acknowledge", "refuse", "extend"):
        subscription.fail(method, AWAY, AWAY)
    tried: list[str] = []

    def decide(event: Event) -> int:
        tried.append(event.identity.id)
        return 1 if tried.count("uid-b/1") == 1 and event.identity.id == "uid-b/1" else 0

    run = Run(subscription, FakeCommands(decide))
    wait_until(lambda: set(subscription.acknowledged) == {good, bad}, SOON, "both to be acknowledged")

    assert run.stop().exit_code is ExitCode.DONE
    assert sorted(tried) == ["uid-a/1", "uid-b/1", "uid-b/1"]


def test_what_a_person_must_mend_ends_the_window(subscription: MemorySubscription) -> None:
    """Commands that run may end, and are acknowledged; the exit code is 78."""
    subscription.publish(message("a", 1))
    commands = FakeCommands(lambda _: None)
    run = Run(subscription, commands)
    wait_until(lambda: commands.began == ["uid-a/1"], SOON, "the command to begin")
    subscription.fail("pull", GONE)
    wait_until(lambda: not subscription._failures["pull"], SOON, "the pull to fail")  # noqa: SLF001
    commands.let_go("uid-a/1")

    summary = run.finish()
    assert (summary.exit_code, summary.error) == (ExitCode.ACTION_NEEDED, GONE)
    assert len(subscription.acknowledged) == 1


@pytest.mark.parametrize("method", ["open", "extend", "acknowledge"])
def test_wherever_a_person_is_needed_it_ends(method: str, subscription: MemorySubscription) -> None:
    """The first error is told."""
    subscription.publish(message("a", 1))
    subscription.fail(method, GONE, ActionNeeded("a later one"))

    assert Run(subscription, FakeCommands()).finish().error is GONE


def test_a_broker_that_comes_back_is_no_error(subscription: MemorySubscription) -> None:
    """Only one that was never there makes a window fail."""
    subscription.fail("pull", AWAY)
    subscription.publish(message("a", 1))
    clock = Clock()
    run = Run(subscription, FakeCommands(), clock=clock, window=600)
    wait_until(lambda: subscription.acknowledged != [], SOON, "the broker to have come back")
    clock.jump(600)

    assert run.finish().exit_code is ExitCode.DONE


def test_a_broker_that_is_never_there_is_temporary(subscription: MemorySubscription) -> None:
    """For the whole window."""
    subscription.fail("pull", *[AWAY] * 99)

    summary = Run(subscription, FakeCommands(), window=30, clock=faster).finish()

    assert (summary.exit_code, summary.error) == (ExitCode.TEMPORARY, AWAY)


def test_the_end_waits_for_a_pull_before_it_judges_the_broker(subscription: MemorySubscription) -> None:
    """The only pull of a short window is answered, or not, when the window is over."""
    for answer in (None, AWAY):
        asked, answered = threading.Event(), threading.Event()
        subscription.before_pull = lambda begun=asked, allowed=answered: begun.set() or allowed.wait(60)  # type: ignore[misc]
        if answer:
            subscription.fail("pull", answer)
        run = Run(subscription, FakeCommands(), window=0.1)
        assert asked.wait(60)
        wait_until(lambda ending=run.consumer: ending._killing, SOON, "the end")  # type: ignore[misc]  # noqa: SLF001
        answered.set()
        assert run.finish().error is answer


def test_a_window_may_be_shorter_than_a_connection_takes(subscription: MemorySubscription) -> None:
    """A broker is away when it has not answered a whole pull, however short the window is."""
    subscription.connects_in = 2.0

    assert Run(subscription, FakeCommands(), window=0.5).finish().exit_code is ExitCode.DONE


def test_a_window_that_has_passed_before_the_log_in_has_a_pull_all_the_same(subscription: MemorySubscription) -> None:
    """Else nobody would know that nothing is consumed at all."""
    clock = Clock()
    subscription.before_open = lambda: clock.jump(600)
    subscription.fail("pull", AWAY)
    first = Run(subscription, FakeCommands(), window=600, clock=clock).finish()
    subscription.publish(message("a", 1))
    second = Run(subscription, FakeCommands(), window=600, clock=clock).finish()

    assert (first.exit_code, first.error) == (ExitCode.TEMPORARY, AWAY)
    assert (second.exit_code, second.counts.pulled) == (ExitCode.DONE, 1)


def test_the_end_gives_back_what_waits_and_waits_for_what_runs(subscription: MemorySubscription) -> None:
    """Commands that end in time are heard."""
    first, second = (subscription.publish(message("a", version)) for version in (1, 2))
    commands = FakeCommands(lambda _: None)
    run = Run(subscription, commands)
    wait_until(lambda: commands.began == ["uid-a/1"], SOON, "the command to begin")
    run.consumer.signal()
    wait_until(lambda: subscription.left == [second], SOON, "what waits to be given back")
    commands.let_go("uid-a/1")

    summary = run.finish()
    assert (subscription.acknowledged, subscription.left) == ([first], [second])
    assert (summary.exit_code, summary.counts.given_back, commands.sent) == (ExitCode.DONE, 1, [signal.SIGKILL])


@pytest.mark.parametrize("ends_at", [signal.SIGTERM, signal.SIGKILL, None])
def test_the_end_is_an_end_for_commands_too(ends_at: signal.Signals | None, subscription: MemorySubscription) -> None:
    """SIGTERM, then SIGKILL; what was told to stop is given back, even if it says that all is well, or nothing."""
    only = subscription.publish(message("a", 1))
    commands = FakeCommands(lambda _: None, ends_at)
    clock = Clock(4)
    run = Run(subscription, commands, clock=clock, window=6000)
    wait_until(lambda: commands.began == ["uid-a/1"], SOON, "the command to begin")
    clock.jump(6000)

    summary = run.finish()
    asked = [signal.SIGTERM] if ends_at is signal.SIGTERM else [signal.SIGTERM, signal.SIGKILL]
    assert commands.sent == [*asked, signal.SIGKILL]
    assert (subscription.acknowledged, subscription.left) == ([], [only])
    assert (summary.exit_code, summary.counts.failed) == (ExitCode.DONE, 1)


def test_what_ends_before_anything_is_killed_has_succeeded(subscription: MemorySubscription) -> None:
    """Also where it is heard later, since the broker had to be told something that took long."""
    only = subscription.publish(message("a", 1))
    commands = FakeCommands(lambda _: None)
    run = Run(subscription, commands)
    wait_until(lambda: commands.began == ["uid-a/1"], SOON, "the command to begin")
    run.consumer.signal()
    commands.let_go("uid-a/1")
    run.consumer.signal()

    assert run.finish().counts.processed == 1
    assert subscription.acknowledged == [only]


def test_what_ends_after_it_was_given_up_is_not_heard() -> None:
    """Its event was given back by then; there is a summary all the same."""
    subscription = MemorySubscription(faster)
    only = subscription.publish(message("a", 1))
    commands = FakeCommands(lambda _: None, None)
    run = Run(subscription, commands, clock=faster)
    wait_until(lambda: commands.began == ["uid-a/1"], SOON, "the command to begin")
    subscription.before_refusal = lambda: commands.let_go("uid-a/1", -signal.SIGKILL)
    summary = run.stop()

    assert (summary.exit_code, summary.counts.failed, subscription.left) == (ExitCode.DONE, 1, [only])


def test_without_a_window_what_always_fails_does_not_lock_out_the_end(subscription: MemorySubscription) -> None:
    """More versions wait for it than can be held: what comes again unchanged is no news."""
    for version in range(1, 301):
        subscription.publish(message("a", version))
    commands = FakeCommands(lambda _: 1)
    summary = Run(subscription, commands, window=0).finish()

    assert set(commands.began) == {"uid-a/1"}
    assert summary.exit_code == ExitCode.TEMPORARY


def test_without_a_window_one_failed_pull_is_not_a_broker_that_is_away(subscription: MemorySubscription) -> None:
    """Though none was made for long, since there was no room while commands took their time."""
    for number in range(300):
        subscription.publish(message(f"w{number}", 1))
    began, clock = 0, Clock()

    def decide(_: Event) -> int:
        nonlocal began
        began += 1
        if began == 50:
            clock.jump(30)
            subscription.fail("pull", AWAY)
        return 0

    summary = Run(subscription, FakeCommands(decide), window=0, clock=clock).finish()

    assert (summary.exit_code, summary.counts.processed) == (ExitCode.DONE, 300)


def test_a_second_signal_kills_at_once(subscription: MemorySubscription) -> None:
    """Nobody is asked first."""
    subscription.publish(message("a", 1))
    commands = FakeCommands(lambda _: None)
    run = Run(subscription, commands)
    wait_until(lambda: commands.began == ["uid-a/1"], SOON, "the command to begin")
    run.consumer.signal()
    run.consumer.signal()
    summary = run.finish()

    assert commands.sent == [signal.SIGKILL] * 2
    assert (summary.counts.failed, subscription.acknowledged) == (1, [])


def test_a_signal_while_credentials_are_waited_for_ends_it(subscription: MemorySubscription) -> None:
    """Nothing has been pulled, and nothing is wrong."""
    subscription.fail("open", Stopped())
    subscription.publish(message("a", 1))

    summary = Run(subscription, FakeCommands()).finish()

    assert (summary.exit_code, summary.counts.pulled) == (ExitCode.DONE, 0)


def test_a_bug_kills_the_commands_and_is_told(subscription: MemorySubscription) -> None:
    """It is not taken for a broker that is away."""
    subscription.publish(message("a", 1))
    commands = FakeCommands(lambda _: None)
    run = Run(subscription, commands)
    wait_until(lambda: commands.began == ["uid-a/1"], SOON, "the command to begin")
    subscription.fail("pull", ZeroDivisionError())

    with pytest.raises(ZeroDivisionError):
        run.finish()
    assert commands.sent == [signal.SIGKILL]


def test_what_is_no_event_is_not_pulled_without_a_pause(subscription: MemorySubscription) -> None:
    """It comes again at once where there is no retry policy; others are processed meanwhile, and it is told once."""
    wrong = subscription.publish({"name": "value"})
    good = subscription.publish(message("a", 1))

    summary = Run(subscription, FakeCommands(), window=3).finish()
    assert (subscription.acknowledged, subscription.left) == ([good], [wrong])
    assert (summary.exit_code, summary.counts.unreadable) == (ExitCode.DONE, 1)
    assert summary.counts.pulled <= 10


def test_more_versions_than_can_be_held_do_not_lock_out_the_one_they_wait_for(
    subscription: MemorySubscription,
) -> None:
    """What fails goes to the end of the queue, behind 300 later versions of its object."""
    for version in range(1, 301):
        subscription.publish(message("a", version))
    failures = iter([1, 1])
    done: list[int] = []

    def decide(event: Event) -> int:
        version = event.version or 0
        if version == 1 and (code := next(failures, 0)):
            return code
        done.append(version)
        return 0

    run = Run(subscription, FakeCommands(decide))
    wait_until(lambda: len(subscription.acknowledged) == 300, SOON, "all to be acknowledged")

    assert run.stop().counts.failed == 2
    assert done == sorted(done)
