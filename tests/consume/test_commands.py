"""Tests of the command that is run for an event."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue

import msgspec
import pytest

from job.consume.commands import NOT_STARTED, Processes
from job.consume.event import Event
from job.errors import UsageError
from tests.bed.waiting import wait_until
from tests.consume.events import an_event, attributes

SECONDS = 60
SOON = timedelta(seconds=SECONDS)


def run(command: Sequence[str], event: Event, environment: dict[str, str] | None = None) -> int:
    ended: SimpleQueue[int] = SimpleQueue()
    Processes(command, {**os.environ, **(environment or {})}).start(event, ended.put)
    return ended.get(timeout=SECONDS)


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def test_it_gets_the_event_on_stdin(tmp_path: Path) -> None:
    """As one line of JSON."""
    event = an_event(attributes("a", 7))
    file = tmp_path / "stdin"

    assert run(shell(f"read -r line && printf %s \"$line\" > '{file}'"), event) == 0
    assert json.loads(file.read_text()) == {**attributes("a", 7), "data": {}}


def test_it_gets_the_attributes_in_its_environment(tmp_path: Path) -> None:
    """Those of this event alone, when it was published, and all that was there before."""
    file = tmp_path / "environment"
    inherited = {"CE_PHASE": "of another event", "OTHER": "kept"}
    run(shell(f"env > '{file}'"), an_event(attributes("a", 7), at=3), inherited)
    found = dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)

    assert {name: value for name, value in found.items() if name.startswith("CE_")} == {
        f"CE_{name.upper()}": value for name, value in attributes("a", 7).items()
    }
    assert (found["OTHER"], found["MESSAGE_PUBLISH_TIME"]) == ("kept", "2026-11-23T06:00:03Z")


@pytest.mark.parametrize(("script", "exit_code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", -9)])
def test_its_exit_code_is_told(script: str, exit_code: int) -> None:
    """A signal that has killed it as a negative number."""
    assert run(shell(script), an_event(attributes("a", 7))) == exit_code


def test_it_need_not_read_what_it_gets() -> None:
    """More than a pipe holds is no hindrance."""
    large = msgspec.structs.replace(an_event(attributes("a", 7)), data=b'"%b"' % (b"x" * 1_000_000))

    assert run(shell("exit 0"), large) == 0


@pytest.mark.parametrize("value", ["\x00", "x" * 1_000_000], ids=["NUL", "size"])
def test_what_no_environment_can_carry_fails(value: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is told, without the value."""
    event = an_event(attributes("a", 7) | {"extension": f"secret{value}"})

    assert run(["true"], event) == NOT_STARTED
    assert [record.__dict__["event"] for record in caplog.records] == ["command.unstarted"]
    assert "secret" not in caplog.text


def test_a_program_that_is_gone_by_then_fails(tmp_path: Path) -> None:
    """It was there when the window began."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    processes = Processes([str(program)], os.environ)
    program.unlink()
    ended: SimpleQueue[int] = SimpleQueue()
    processes.start(an_event(attributes("a", 7)), ended.put)

    assert ended.get(timeout=SECONDS) == NOT_STARTED


def test_a_signal_reaches_its_children_and_nobody_else(tmp_path: Path) -> None:
    """Each command is a process group of its own, so that Ctrl-C does not reach it before its time."""
    file = tmp_path / "pids"
    processes = Processes(shell(f"sleep 1000 & echo $! > '{file}'; wait"), os.environ)
    ended: SimpleQueue[int] = SimpleQueue()
    processes.start(an_event(attributes("a", 7)), ended.put)
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), SOON, "the command to begin")
    child = int(file.read_text())
    assert os.getpgid(child) != os.getpgid(0)

    processes.send(signal.SIGKILL)

    assert ended.get(timeout=SECONDS) == -signal.SIGKILL
    wait_until(lambda: not alive(child), SOON, "the child to be gone")
    processes.send(signal.SIGKILL)  # to nobody


def alive(pid: int) -> bool:
    """Whether a process is there and is no zombie, which nobody may have waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("command", [[], ["no-such-program"], ["/etc/passwd"], [""]])
def test_what_is_no_program_is_a_usage_error(command: list[str]) -> None:
    """Before anything is pulled."""
    with pytest.raises(UsageError, match="COMMAND"):
        Processes(command, os.environ)


def test_the_path_is_that_of_the_environment(tmp_path: Path) -> None:
    """As a shell finds it."""
    program = tmp_path / "my-program"
    program.write_text("#!/bin/sh\nexit 4\n")
    program.chmod(0o755)

    assert run(["my-program"], an_event(attributes("a", 7)), {"PATH": f"{tmp_path}:{os.environ['PATH']}"}) == 4
