"""What runs have told, in words that tests can compare."""

from __future__ import annotations

import fcntl
import json
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from job import checkpoint as codec
from tests.bed.waiting import wait_until
from tests.program import LONGEST, Outcome, Program, Running

Message = dict[str, Any]
SOON = timedelta(seconds=30)


def changes(messages: Iterable[Message]) -> list[tuple[str, str, str]]:
    """Change, name and provenance of each message that is not a gap."""
    return [
        (_change(message), message["subject"].rpartition("/")[2], message["provenance"])
        for message in messages
        if _change(message) != "gap"
    ]


def gaps(messages: Iterable[Message]) -> list[dict[str, str]]:
    """The data of the gap messages, without `since`, which depends on the clock."""
    return [
        {name: value for name, value in message["data"].items() if name != "since"}
        for message in messages
        if _change(message) == "gap"
    ]


def ids(messages: Iterable[Message]) -> list[str]:
    """The ids of the messages that are not gaps."""
    return [message["id"] for message in messages if _change(message) != "gap"]


def id_of(answer: Message) -> str:
    """The id that the message of this object of the API server's has."""
    return f"{answer['metadata']['uid']}/{answer['metadata']['resourceVersion']}"


def last_states(messages: Iterable[Message]) -> dict[str, str | None]:
    """What a consumer ends up with: name -> resourceVersion of the objects that are there, by latest wins."""
    dead = set()
    newest: dict[str, tuple[int, str]] = {}
    for message in messages:
        if _change(message) == "gap":
            continue
        uid = message["k8suid"]
        if _change(message) == "deleted":
            dead.add(uid)
        elif int(message["resourceversion"]) > newest.get(uid, (0, ""))[0]:
            newest[uid] = int(message["resourceversion"]), message["subject"].rpartition("/")[2]
    return {name: str(version) for uid, (version, name) in newest.items() if uid not in dead}


def raw_data(line: bytes) -> bytes:
    """The bytes of a message's data."""
    return line.rstrip(b"\n").partition(b',"data":')[2][:-1]


def _change(message: Message) -> str:
    return str(message["type"]).rpartition(".")[2]


def acknowledged(program: Program) -> list[str]:
    """The uids that the checkpoint says were told, in the order they were."""
    return [uid for uid, known in program.saved.inventory.items() if known.told]


def edit_checkpoint(program: Program, **fields: object) -> None:
    """Replace fields of the checkpoint, as no run would leave them."""
    edited = msgspec.structs.replace(program.saved, **fields)
    program.checkpoint_file.write_bytes(codec.encode(edited))


@contextmanager
def unsaved(program: Program) -> Iterator[None]:
    """Keep every run from saving meanwhile, however long that takes: it waits for the lock of its store."""
    folder = os.open(program.checkpoint_file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


class SinkFile:
    """The file of a `file:` sink: the truth about what was stored, whatever the program believes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "changes.jsonl"

    @property
    def option(self) -> str:
        return f"--sink=file:{self.path}"

    @property
    def messages(self) -> list[Message]:
        """Every whole line."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    def wait_for(self, condition: Callable[[list[Message]], bool], what: str) -> list[Message]:
        """Return the messages once the condition holds for them."""
        wait_until(lambda: condition(self.messages), SOON, what)
        return self.messages

    def wait_for_id(self, answer: Message) -> None:
        """Return once the message of this object of the API server's is stored, and its batch synced."""
        self.wait_for(lambda messages: id_of(answer) in ids(messages), f"{id_of(answer)} to be stored")
        self.wait_until_free()

    def wait_until_free(self) -> None:
        """Return once the last batch is synced."""
        with self.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # which the run holds until then: stopped before, it would keep it


class Log:
    """The log lines of a run, read while it goes on."""

    def __init__(self, running: Running) -> None:
        assert running.process.stderr
        self._running = running
        self._file = running.process.stderr.fileno()
        self._read = b""

    def wait_for(self, event: str, within: timedelta = SOON) -> dict[str, Any]:
        """Return the first line of this event as soon as it is there."""
        deadline = time.monotonic() + within.total_seconds()
        while True:
            *whole, _ = self._read.split(b"\n")
            for line in map(json.loads, whole):
                if line["event"] == event:
                    return dict(line)
            ready, _, _ = select.select([self._file], [], [], max(0.0, deadline - time.monotonic()))
            block = os.read(self._file, 65536) if ready else b""
            assert block, f"no line {event} among {self._read.decode()}"
            self._read += block

    def finish(self, within: timedelta = LONGEST) -> Outcome:
        """Wait for the end of the run; the outcome has the lines that were read before, too."""
        rest = self._running.finish(within)
        return Outcome(rest.code, rest.stdout, self._read.decode() + rest.stderr)


def same_data_under_one_id(sink: SinkFile) -> bool:
    """Whether every repeat says what the first one said."""
    data: dict[tuple[str, str], object] = {}
    return all(
        data.setdefault((message["id"], message["type"]), message["data"]) == message["data"]
        for message in sink.messages
    )
