"""Tests of messages on standard output."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from job.errors import SinkClosed, Unavailable
from job.message import Message
from job.ports import Check, Sink
from job.sinks.stdout import StdoutSink
from tests.contracts.sink import TIMEOUT, SinkContract, message, parsed


@contextmanager
def standard_output(file: int) -> Iterator[None]:
    """Let descriptor 1 be `file`."""
    before = os.dup(1)
    os.dup2(file, 1)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)


class Closed:
    """The sink, without a standard output while it is looked at."""

    limits, open, publish = StdoutSink.limits, StdoutSink.open, StdoutSink.publish

    def checks(self, timeout: float) -> Iterator[Check]:
        before = os.dup(1)
        os.close(1)
        try:
            found = list(StdoutSink().checks(timeout))
        finally:
            os.dup2(before, 1)
            os.close(before)
        return iter(found)


class IntoFile:
    """The sink, with a file as standard output while it is used: between the phases of a test, pytest changes it."""

    limits = StdoutSink.limits

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self) -> None:
        """Nothing to get ready."""

    def publish(self, lane: int, messages: Sequence[Message], timeout: float) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with standard_output(file):
            StdoutSink().publish(lane, messages, timeout)
        os.close(file)

    def checks(self, timeout: float) -> Iterator[Check]:
        return StdoutSink().checks(timeout)


class TestStdoutSink(SinkContract):
    @pytest.fixture
    def sink(self, tmp_path: Path) -> Sink:
        return IntoFile(tmp_path / "stdout")

    @pytest.fixture
    def broken(self) -> Sink:
        return Closed()

    @pytest.fixture
    def stored(self, tmp_path: Path) -> Callable[[], list[Message]]:
        return lambda: parsed((tmp_path / "stdout").read_bytes())


def test_a_reader_that_went_away_is_no_reason_to_try_again() -> None:
    """A closed pipe: the run ends, and the next one goes on."""
    reading, writing = os.pipe()
    os.close(reading)
    with standard_output(writing), pytest.raises(SinkClosed):
        StdoutSink().publish(0, [message(1)], TIMEOUT)
    os.close(writing)


def test_a_full_device_is_unavailable() -> None:
    """Standard output may be a file on a disk."""
    device = os.open("/dev/full", os.O_WRONLY)
    with standard_output(device), pytest.raises(Unavailable, match="No space left"):
        StdoutSink().publish(0, [message(1)], TIMEOUT)
    os.close(device)


def test_a_slow_reader_gets_everything() -> None:
    """A pipe takes as much as it has room for; the rest follows."""
    script = (
        "from job.sinks.stdout import StdoutSink; from tests.contracts.sink import message\n"
        "StdoutSink().publish(0, [message(1, b'\"' + b'x' * 1000000 + b'\"'), message(2)], 10)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)

    assert [found.id for found in parsed(done.stdout)] == ["uid/1", "uid/2"]
