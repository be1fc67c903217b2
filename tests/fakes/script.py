"""What a test scripts a server of ours to do wrong, and what has come of it; the same for all of them.

- An injection meets the requests that it matches: it lets the first `skip` of them pass, and acts on the next `times`.
- What was claimed for a request and then not reached has not fired; given back, it is armed for the next match.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

RequestT = TypeVar("RequestT")
FaultT = TypeVar("FaultT")


def anything(_: object) -> bool:
    """Match every request."""
    return True


@dataclass(eq=False)
class Injection(Generic[RequestT, FaultT]):
    """One scripted fault; `fired` says how often it has really happened."""

    on: Callable[[RequestT], bool]
    fault: FaultT
    left: float
    skip: int
    changed: threading.Condition = field(repr=False)
    fired: int = 0
    withdrawn: bool = False
    released: bool = False

    def release(self) -> None:
        """End its stalls and delays, also those to come."""
        with self.changed:
            self.released = True
            self.changed.notify_all()

    def withdraw(self) -> None:
        """Disarm it; what it is doing now goes on."""
        self.withdrawn = True


class ScriptedServer(ABC, Generic[RequestT, FaultT]):
    """A server, its script and what has happened to it, shared by all threads; leaving it ends everything.

    Of the matching injections the first decides about a request; every one with a fault `beside` acts as well.
    """

    def __init__(self, *beside: type) -> None:
        self.changed = threading.Condition()
        self.failures: list[BaseException] = []
        self._beside = beside
        self._requests: list[RequestT] = []
        self._injections: list[Injection[RequestT, FaultT]] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything; raise the first failure of a handler, or add it as a note to what is being raised."""
        self.down()
        self.close()
        for failure in self.failures:
            if error is None:
                raise failure
            error.add_note(f"the server had failed: {failure!r}")

    @abstractmethod
    def down(self) -> None:
        """Refuse connections and end those that are open, as a killed server does."""

    @abstractmethod
    def close(self) -> None:
        """Give up the port of a server that is down."""

    @property
    def requests(self) -> Sequence[RequestT]:
        """All requests so far, in the order they came, also those that were refused or broke off."""
        with self.changed:
            return tuple(self._requests)

    @property
    def fired(self) -> tuple[int, ...]:
        """How often each injection has fired, in the order of the `inject` calls."""
        with self.changed:
            return tuple(injection.fired for injection in self._injections)

    def inject(
        self, fault: FaultT, *, on: Callable[[RequestT], bool] = anything, times: int | None = 1, skip: int = 0
    ) -> Injection[RequestT, FaultT]:
        """Script a fault for the next `times` matching requests (None: for all), after letting `skip` pass."""
        injection = Injection(on, fault, math.inf if times is None else times, skip, self.changed)
        with self.changed:
            self._injections.append(injection)
        return injection

    def wait_for(self, on: Callable[[RequestT], bool], count: int = 1, timeout: float = 60) -> tuple[RequestT, ...]:
        """Return the matching requests once there are `count`; raise TimeoutError after `timeout` seconds."""
        self._wait_until(lambda: sum(map(on, self._requests)), f"requests for {on}", count, timeout)
        return tuple(filter(on, self.requests))

    def wait_fired(self, injection: Injection[RequestT, FaultT], count: int = 1, timeout: float = 60) -> None:
        """Return once it has fired `count` times; raise TimeoutError after `timeout` seconds."""
        self._wait_until(lambda: injection.fired, f"firings of {injection}", count, timeout)

    def record(self, request: RequestT) -> None:
        """Keep the request for the test."""
        with self.changed:
            self._requests.append(request)
            self.changed.notify_all()

    def claim(self, request: RequestT, among: Callable[[FaultT], bool] = anything) -> list[Injection[RequestT, FaultT]]:
        """Take what is to happen to the request, the deciding fault last."""
        beside: list[Injection[RequestT, FaultT]] = []
        deciding: list[Injection[RequestT, FaultT]] = []
        with self.changed:
            for injection in self._injections:
                if injection.withdrawn or not among(injection.fault) or not injection.on(request):
                    continue
                if injection.skip:
                    injection.skip -= 1
                    continue
                chosen = beside if isinstance(injection.fault, self._beside) else deciding
                if injection.left and not (chosen is deciding and deciding):
                    injection.left -= 1
                    chosen.append(injection)
        return beside + deciding

    def give_back(self, unreached: Iterable[Injection[RequestT, FaultT]]) -> None:
        """Arm what was claimed and has not fired."""
        with self.changed:
            for injection in unreached:
                injection.left += 1

    def count(self, injection: Injection[RequestT, FaultT]) -> None:
        """Say that it has fired."""
        with self.changed:
            injection.fired += 1
            self.changed.notify_all()

    def pause(self, seconds: float, over: Callable[[], bool]) -> None:
        """Wait so many seconds, or until it is over."""
        with self.changed:
            self.changed.wait_for(over, None if math.isinf(seconds) else seconds)

    def _wait_until(self, measure: Callable[[], int], what: str, count: int, timeout: float) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: measure() >= count, timeout):
                message = f"{measure()} of {count} {what} after {timeout} s; requests: {self._requests}"
                raise TimeoutError(message)
