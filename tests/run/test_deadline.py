"""Tests of the one clock."""

from __future__ import annotations

from datetime import timedelta

import pytest

from job.errors import OutOfTime, Stopped
from job.run.deadline import CATCH_UP, DRAIN, LISTING, SAVE, Deadline

WINDOW = timedelta(seconds=55)


class Seconds:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


@pytest.fixture
def deadline(clock: Seconds) -> Deadline:
    return Deadline(WINDOW, clock, clock.sleep)


def budgets(deadline: Deadline) -> tuple[float, float, float]:
    return deadline.watch_left, deadline.left(), deadline.publish_left


def test_the_budgets_follow_one_another(deadline: Deadline, clock: Seconds) -> None:
    """The watch has the window, a listing 10 s more, the sink another 10 s; none is ever negative."""
    assert budgets(deadline) == (55, 55 + LISTING, 55 + LISTING + DRAIN)
    clock.now += 60
    assert budgets(deadline) == (0, 5, 15)
    clock.now += 60
    assert budgets(deadline) == (0, 0, 0)
    assert deadline.elapsed == 120


def test_no_window_has_a_deadline_of_its_own(clock: Seconds) -> None:
    """`0s` is not without limit: catching up has ten seconds (R10)."""
    assert Deadline(timedelta(), clock).watch_left == CATCH_UP


def test_everything_fits_into_window_and_thirty_seconds() -> None:
    """Listing, drain and save come to less than 30 s, Kubernetes' own grace period (P5)."""
    assert LISTING + DRAIN + SAVE < 30


def test_a_signal_leaves_only_a_short_drain(deadline: Deadline, clock: Seconds) -> None:
    """After SIGTERM nothing is read, and the sink has 10 s; after a second one it has none."""
    clock.now += 5
    deadline.signal()
    assert budgets(deadline) == (0, 0, DRAIN)
    clock.now += 3
    assert budgets(deadline) == (0, 0, DRAIN - 3)
    deadline.signal()
    assert budgets(deadline) == (0, 0, 0)


def test_a_late_signal_does_not_lengthen_the_drain(deadline: Deadline, clock: Seconds) -> None:
    """The drain ends when it would have ended without the signal."""
    clock.now += 55 + LISTING + 8
    deadline.signal()
    assert deadline.publish_left == DRAIN - 8


def test_a_signal_wakes_who_waits(deadline: Deadline) -> None:
    """What waits for a frame is told at once."""
    woken: list[bool] = []
    deadline.on_signal = lambda: woken.append(True)
    deadline.signal()
    assert woken == [True]


def test_a_signal_ends_a_stretch_that_only_reads(deadline: Deadline) -> None:
    """Inside `interruptible` the handler itself raises, so that a blocked read ends; outside it does not."""
    with pytest.raises(Stopped), deadline.interruptible():
        deadline.signal()
    deadline.signal()


def test_a_stretch_that_only_reads_is_not_begun_after_a_signal(deadline: Deadline) -> None:
    """The signal may have come before."""
    deadline.signal()
    with pytest.raises(Stopped), deadline.interruptible():
        pytest.fail("it was begun")


def test_a_pause_takes_its_time(deadline: Deadline, clock: Seconds) -> None:
    """The wait between two attempts is as long as it says."""
    deadline.pause(2.5)
    assert clock.now == pytest.approx(1002.5)


def test_a_pause_that_would_outlast_the_run_is_not_begun(deadline: Deadline, clock: Seconds) -> None:
    """There would be no time for the attempt after it."""
    with pytest.raises(OutOfTime):
        deadline.pause(55 + LISTING)
    assert clock.now == 1000


def test_a_signal_ends_a_pause(clock: Seconds) -> None:
    """A pause is a row of short sleeps, and a signal in one of them is noticed after it."""

    def sleep(seconds: float) -> None:
        clock.now += seconds
        stopped.signal()

    stopped = Deadline(WINDOW, clock, sleep)
    with pytest.raises(Stopped):
        stopped.pause(30)
    assert clock.now < 1001


def test_reading_ends_with_its_budget(deadline: Deadline, clock: Seconds) -> None:
    """Past window and listing, nothing more is read."""
    clock.now += 55 + LISTING
    with pytest.raises(OutOfTime):
        deadline.check()


RECOVER = timedelta(seconds=20)


@pytest.fixture
def recovering(clock: Seconds) -> Deadline:
    return Deadline(WINDOW, clock, clock.sleep, recover=RECOVER)


def test_r11_reading_back_moves_every_end_but_that_of_the_watch(recovering: Deadline, clock: Seconds) -> None:
    """While it goes on the ends are those of a run that needs all the time for it."""
    clock.now += 5
    with recovering.recovering() as patience:
        assert patience.left() == recovering.recover_left == 20
        assert budgets(recovering) == (50, 50 + 20 + LISTING, 50 + 20 + LISTING + DRAIN)
        clock.now += 12
        assert patience.left() == 8
        assert budgets(recovering) == (38, 38 + 20 + LISTING, 38 + 20 + LISTING + DRAIN)


def test_r11_time_that_reading_back_did_not_take_is_not_granted(recovering: Deadline, clock: Seconds) -> None:
    """Nothing of it goes to a listing or to the sink."""
    with recovering.recovering() as patience:
        clock.now += 12

    assert patience.left() == recovering.recover_left == 0
    assert budgets(recovering) == (43, 43 + 12 + LISTING, 43 + 12 + LISTING + DRAIN)


def test_r11_a_second_time_has_what_the_first_has_left(recovering: Deadline, clock: Seconds) -> None:
    """A run that loses its history again and again does not take longer and longer."""
    for left in (20, 8):
        with recovering.recovering() as patience:
            assert patience.left() == left
            clock.now += 12
    with recovering.recovering() as patience:
        assert patience.left() == 0

    assert recovering.publish_left == 55 + 20 + LISTING + DRAIN - 24


@pytest.mark.parametrize("late", [0, 55, 64])
def test_p5_a_run_takes_no_more_than_its_window_its_recovery_and_thirty_seconds(
    recovering: Deadline, clock: Seconds, late: float
) -> None:
    """Whenever the history is lost, and however long one read of it hangs."""
    clock.now += late
    with recovering.recovering():
        clock.now += 1000
        assert recovering.recover_left == 0

    clock.now = 1000 + 55 + 20 + LISTING + DRAIN
    assert recovering.publish_left == 0
    assert LISTING + DRAIN + SAVE < 30


def test_r11_a_signal_ends_reading_back(recovering: Deadline, clock: Seconds) -> None:
    """No time is left for it, who waits is woken, and the drain does not get its rest."""
    with recovering.recovering() as patience:
        clock.now += 3
        recovering.signal()
        assert patience.left() == 0
        with pytest.raises(Stopped):
            patience.pause(1)
        assert budgets(recovering) == (0, 0, DRAIN)
    assert budgets(recovering) == (0, 0, DRAIN)


def test_r11_a_pause_that_would_outlast_reading_back_is_not_begun(recovering: Deadline, clock: Seconds) -> None:
    """Though the run has more time."""
    with recovering.recovering() as patience:
        patience.pause(5)
        assert clock.now == pytest.approx(1005)
        with pytest.raises(OutOfTime):
            patience.pause(15)
    assert clock.now == pytest.approx(1005)


def test_r11_an_error_ends_reading_back_too(recovering: Deadline, clock: Seconds) -> None:
    """What it has taken is granted, and no more."""

    def fail() -> None:
        with recovering.recovering():
            clock.now += 7
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert recovering.recover_left == 0
    assert recovering.left() == 55 - 7 + 7 + LISTING
