"""Tests of messages in a file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from job.errors import ActionNeeded, Unavailable
from job.message import Message, structured
from job.ports import Sink
from job.sinks.file import FileSink
from tests.contracts.sink import TIMEOUT, SinkContract, message, parsed


class TestFileSink(SinkContract):
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "changes.jsonl"

    @pytest.fixture
    def sink(self, path: Path) -> Sink:
        return FileSink(path)

    @pytest.fixture
    def broken(self, path: Path) -> Sink:
        return FileSink(path / "changes.jsonl")

    @pytest.fixture
    def stored(self, path: Path) -> Callable[[], list[Message]]:
        return lambda: parsed(path.read_bytes())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "changes.jsonl"


@pytest.mark.parametrize("torn", [b"{", b'{"id":"uid/1","da', b"x" * 200_000])
def test_a_torn_last_line_is_cut_off(path: Path, torn: bytes) -> None:
    """What a crash has left unfinished goes before the next batch, however long; whole lines stay."""
    path.write_bytes(structured(message(1)) + b"\n" + torn)
    FileSink(path).publish(0, [message(2)], TIMEOUT)

    assert [found.id for found in parsed(path.read_bytes())] == ["uid/1", "uid/2"]


def test_a_file_of_one_torn_line_begins_anew(path: Path) -> None:
    """There is no whole line before it."""
    path.write_bytes(b"torn")
    FileSink(path).publish(0, [message(1)], TIMEOUT)

    assert path.read_bytes() == structured(message(1)) + b"\n"


def test_a_batch_is_appended(path: Path) -> None:
    """What was there is not touched."""
    path.write_bytes(b'{"other":1}\n')
    FileSink(path).publish(0, [message(1)], TIMEOUT)

    assert path.read_bytes() == b'{"other":1}\n' + structured(message(1)) + b"\n"


def test_a_full_disk_takes_all_or_nothing(path: Path) -> None:
    """A write that ends in the middle is taken back, and the sink counts as unavailable."""
    script = (
        "import resource, sys; from pathlib import Path; from job.errors import Unavailable\n"
        "from job.sinks.file import FileSink; from tests.contracts.sink import message\n"
        "sink = FileSink(Path(sys.argv[1])); sink.publish(0, [message(1)], 10)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try: sink.publish(0, [message(n) for n in range(2, 30)], 10)\n"
        "except Unavailable as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)

    assert "File too large" in done.stdout
    assert path.read_bytes() == structured(message(1)) + b"\n"


def test_a_device_without_space_says_so() -> None:
    """The reason is the one of the write, not that of the cleaning up after it."""
    with pytest.raises(Unavailable, match="No space left"):
        FileSink(Path("/dev/full")).publish(0, [message(1)], TIMEOUT)


def test_two_processes_keep_whole_lines(path: Path) -> None:
    """Batches of two runs alternate; no line is torn, none is lost."""
    script = (
        "import sys; from pathlib import Path; from job.sinks.file import FileSink\n"
        "from tests.contracts.sink import message\n"
        "sink = FileSink(Path(sys.argv[1])); start = int(sys.argv[2])\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for n in range(start, start + 50, 2): sink.publish(0, [message(n), message(n + 1)], 10)\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path), str(start)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for start in (0, 1000)
    ]
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
    numbers = [int(found.id.removeprefix("uid/")) for found in parsed(path.read_bytes())]

    assert [number for number in numbers if number < 1000] == list(range(50))
    assert [number for number in numbers if number >= 1000] == list(range(1000, 1050))
    assert all(second == first + 1 for first, second in zip(numbers[::2], numbers[1::2], strict=True))


@pytest.mark.parametrize("place", ["absent/changes.jsonl", "folder.jsonl", "file.jsonl/changes.jsonl"])
def test_a_place_that_cannot_hold_a_file_is_for_a_person(tmp_path: Path, place: str) -> None:
    """No folder, a folder in its place, a file in place of a folder."""
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file.jsonl").touch()

    with pytest.raises(ActionNeeded):
        FileSink(tmp_path / place).publish(0, [message(1)], TIMEOUT)
