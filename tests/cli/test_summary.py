"""Tests of the summary line: the last line on stderr, and the termination message of a pod."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import uuid
from datetime import datetime
from pathlib import Path

import pytest

from tests.bed.cluster import Cluster
from tests.fakes.api_faults import probes, refusal
from tests.fakes.api_proxy import ApiProxy
from tests.program import Program

MOST_BYTES_OF_A_TERMINATION_MESSAGE = 4096


def test_the_last_line_says_what_a_run_did(program: Program, cluster: Cluster, namespace: str) -> None:
    """The summary of a run has every field, as people, logs and dashboards read them."""
    cluster.create(namespace, "a")
    cluster.create(namespace, "b")
    program.run("--window=0s", program.checkpoint)
    before = program.saved
    cluster.create(namespace, "c")
    cluster.delete(namespace, "a")

    outcome = program.run("--window=0s", program.checkpoint)

    summary = outcome.summary
    assert summary == {
        "severity": "INFO",
        "time": summary["time"],
        "event": "run.finished",
        "message": summary["message"],
        "run_id": program.saved.run_id,
        "exit_code": 0,
        "start": "resumed",
        "recovery": None,
        "age_seconds": summary["age_seconds"],
        "seconds": summary["seconds"],
        "from": str(before.version),
        "to": str(program.saved.version),
        "published": {"added": 1, "deleted": 1},
        "provenance": {"observed": 2},
        "gaps": [],
        "objects": 2,
        "listings": 0,
        "watches": 1,
        "saves": 1,
        "saved": True,
        "checkpoint": f"file:{program.checkpoint_file}",
        "notes": [],
    }
    assert uuid.UUID(summary["run_id"])
    assert datetime.fromisoformat(summary["time"]).tzinfo
    assert summary["age_seconds"] >= 0
    assert summary["seconds"] > 0
    assert re.sub(r"[\d.]+ s\b", "SECONDS", summary["message"]) == (
        f"Resumed from {before.version}, SECONDS old; 1 added, 1 deleted in SECONDS; saved at {program.saved.version}."
    )


def test_a_first_run_says_so(program: Program, namespace: str) -> None:
    """The summary of a first run has no age, and says that what existed was published."""
    summary = program.run("--window=0s", program.checkpoint).summary

    assert (summary["start"], summary["age_seconds"], summary["listings"]) == ("first", None, 1)
    assert summary["message"].startswith("First run: listed what exists")


def test_every_run_is_recorded_in_the_checkpoint(program: Program, namespace: str) -> None:
    """The checkpoint remembers the runs that saved it, with what the summaries said."""
    summaries = [program.run("--window=0s", program.checkpoint).summary for _ in range(2)]

    assert [(run.run_id, run.start, run.exit_code, run.published) for run in program.saved.runs] == [
        (summary["run_id"], summary["start"], summary["exit_code"], summary["published"]) for summary in summaries
    ]


def test_the_termination_message_is_the_last_line(program: Program, namespace: str, tmp_path: Path) -> None:
    """What Kubernetes shows of an ended pod is the summary line."""
    message = tmp_path / "termination-log"

    outcome = program.run("--window=0s", environment={"WATCHER_TERMINATION_LOG": str(message)})

    assert message.read_text() == outcome.stderr.splitlines()[-1]
    assert json.loads(message.read_text())["event"] == "run.finished"


def test_a_refusal_is_a_termination_message_too(program: Program, namespace: str, tmp_path: Path) -> None:
    """Who looks at a failed pod reads why."""
    message = tmp_path / "termination-log"

    outcome = program.run("--window=3s", "--namespace=absent", environment={"WATCHER_TERMINATION_LOG": str(message)})

    assert outcome.code == 78
    assert json.loads(message.read_text())["message"] == outcome.summary["message"]


@pytest.mark.parametrize("said", ["\u00e4" * 4000, "x" + "\u00e4" * 4000], ids=["even", "odd"])
def test_a_termination_message_fits(
    said: str, proxied: Program, proxy: ApiProxy, namespace: str, tmp_path: Path
) -> None:
    """Kubernetes keeps 4,096 bytes of a termination message; a longer one is cut between two characters."""
    message = tmp_path / "termination-log"
    proxy.inject(on=probes(), fault=refusal(422, "Invalid", said))

    outcome = proxied.run("--window=3s", environment={"WATCHER_TERMINATION_LOG": str(message)})

    assert outcome.code == 78
    assert 3000 < len(message.read_bytes()) <= MOST_BYTES_OF_A_TERMINATION_MESSAGE
    assert message.read_bytes().decode("utf-8")


def test_a_termination_message_that_cannot_be_written_is_a_warning(program: Program, namespace: str) -> None:
    """A run that went well does not fail because nobody can be told."""
    path = f"{program.folder}/absent/termination-log"

    outcome = program.run("--window=0s", environment={"WATCHER_TERMINATION_LOG": path})

    assert outcome.code == 0
    assert [line["event"] for line in outcome.lines] == ["run.finished", "termination.unwritten"]
    assert path in outcome.lines[-1]["message"]


def test_lines_for_people_are_no_json(program: Program, tmp_path: Path) -> None:
    """With --log-format console a refusal is a plain line that begins with the program's name."""
    outcome = program.run("--log-format=console", "--window=3s", "--namespace=absent")

    assert outcome.code == 78
    assert outcome.stderr.startswith("workflow-watcher: namespace absent does not exist")


def test_a_terminal_gets_lines_for_people(program: Program) -> None:
    """Where stderr is a terminal, lines are for people without being asked for."""
    reader, terminal = pty.openpty()
    with os.fdopen(reader, "rb", buffering=0) as screen:
        try:
            code = subprocess.run(
                [sys.executable, "-m", "job", "run", "--window=2s"],
                env=program.environment,
                stderr=terminal,
                stdout=subprocess.DEVNULL,
                timeout=60,
                check=False,
            ).returncode
            shown = screen.read(4096).decode()
        finally:
            os.close(terminal)

    assert code == 2
    assert shown.startswith("workflow-watcher: a window of 2s is too short")
