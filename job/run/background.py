"""Work that may hang, in threads that nobody waits for longer than is said (R19)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_TICK = 0.1


def in_background(name: str, work: Callable[[], Result]) -> Future[Result]:
    """Do it in a daemon thread: what hangs must not keep the process from ending."""
    future: Future[Result] = Future()

    def do() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=do, name=name, daemon=True).start()
    return future


def in_parallel(
    name: str, work: Callable[[Item], Result], items: Sequence[Item], *, threads: int, check: Callable[[], None]
) -> list[Result]:
    """The results for all items, in their order; the first error of any of them ends the others.

    `check` is called now and then, and may raise: then nobody waits for what is under way.
    """
    results: dict[int, Result] = {}
    todo = iter(enumerate(items))  # `next` of it is atomic
    ended = threading.Event()

    def take() -> None:
        for number, item in todo:
            if ended.is_set():
                return
            results[number] = work(item)

    futures = [in_background(f"{name}-{number}", take) for number in range(min(threads, len(items)))]
    try:
        while futures:
            done, _ = wait(futures, _TICK, FIRST_EXCEPTION)
            check()
            for future in done:
                future.result()
            futures = [future for future in futures if future not in done]
    finally:
        ended.set()
    return [results[number] for number in range(len(items))]
