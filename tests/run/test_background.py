"""Tests of work in threads that nobody waits for without a limit."""

from __future__ import annotations

import threading

import pytest

from job.errors import Stopped
from job.run.background import in_parallel

ITEMS = range(20)


def never() -> None:
    """The check of who is never in a hurry."""


def test_r19_results_come_in_the_order_of_their_items() -> None:
    """Whoever is ready first: here the first one waits for the last."""
    last = threading.Event()

    def work(item: int) -> int:
        if item == ITEMS[-1]:
            last.set()
        assert item or last.wait(10)
        return item * item

    assert in_parallel("test", work, ITEMS, threads=4, check=never) == [item * item for item in ITEMS]


@pytest.mark.parametrize(("count", "threads"), [(0, 4), (1, 4), (3, 4), (5, 4), (5, 1)])
def test_r19_no_more_threads_than_items(count: int, threads: int) -> None:
    """Each of them is a daemon; with nothing to do there is none."""
    workers = set()

    def work(item: int) -> int:
        workers.add(threading.current_thread())
        return item

    assert in_parallel("test", work, range(count), threads=threads, check=never) == list(range(count))
    assert len(workers) <= min(count, threads)
    assert all(worker.daemon for worker in workers)


def test_r19_items_are_worked_on_at_the_same_time() -> None:
    """As many as there are threads."""
    together = threading.Barrier(4, timeout=10)

    in_parallel("test", lambda _: together.wait(), range(8), threads=4, check=never)


def test_r19_the_first_error_ends_the_others() -> None:
    """Nothing more is begun, what is under way is not waited for, and the error is raised as it is."""
    hangs, begun = threading.Event(), list[int]()

    def work(item: int) -> None:
        begun.append(item)
        if item == 1:
            raise KeyError(item)
        hangs.wait(10)

    try:
        with pytest.raises(KeyError):
            in_parallel("test", work, ITEMS, threads=2, check=never)
    finally:
        hangs.set()

    assert begun[:2] == [0, 1]
    assert len(begun) == 2


def test_r19_an_error_that_ends_a_thread_is_not_lost() -> None:
    """Not even one that is no `Exception`."""

    def work(item: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        in_parallel("test", work, ITEMS, threads=4, check=never)


def test_r19_a_check_that_raises_ends_the_wait() -> None:
    """A signal, or a sink that has failed: the work that hangs is left alone, and no more of it is begun."""
    hangs, begun, checks = threading.Event(), list[int](), list[bool]()

    def work(item: int) -> None:
        begun.append(item)
        hangs.wait(10)

    def check() -> None:
        checks.append(True)
        if len(checks) > 2:
            raise Stopped

    try:
        with pytest.raises(Stopped):
            in_parallel("test", work, ITEMS, threads=4, check=check)
    finally:
        hangs.set()

    assert sorted(begun) == [0, 1, 2, 3]


def test_r19_what_the_check_raises_comes_before_an_error_of_the_work() -> None:
    """It says why the run ends; the work may have failed because of that."""

    def work(item: int) -> None:
        raise KeyError

    def check() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        in_parallel("test", work, ITEMS, threads=4, check=check)
