"""Tests of the command: what it prints and where, how it ends, and what it makes of what runs have saved."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from job.cli.doctor import in_time
from job.errors import Unavailable
from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.doctor.seen import Diagnosis, diagnose, documented, line
from tests.manifest import environment
from tests.program import Outcome, Program
from tests.wire.cloud import emulators

LONGEST_TERMINATION_MESSAGE = 4096


@pytest.fixture
def ran(program: Program, cluster: Cluster, namespace: str) -> Program:
    """The program, whose checkpoint a run has saved."""
    cluster.create(namespace, "a")
    program.run("--window=0s", program.checkpoint)
    return program


def of_schema_2(data: bytes) -> bytes:
    content = json.loads(gzip.decompress(data))
    return gzip.compress(json.dumps(content | {"schema": 2}).encode())


def without_clock(outcome: Outcome) -> list[str]:
    return [each for each in outcome.stdout.decode().splitlines() if " version " not in each]


def test_each_check_is_a_line_for_people_or_an_object(ran: Program) -> None:
    """With --json or its variable, in a pod, the same checks have the same content."""
    plain = ran.run(ran.checkpoint, command="doctor")
    by_option = diagnose(ran, ran.checkpoint)
    by_variable = Diagnosis(ran.run(ran.checkpoint, command="doctor", environment={"WATCHER_JSON": "true"}))

    shown = [line(check) for check in by_option.checks if " version " not in line(check)]
    assert without_clock(plain) == shown
    assert [check.what for check in by_variable.checks] == [check.what for check in by_option.checks]
    assert plain.stdout.startswith(b"ok   API server: ")


def test_stderr_has_a_summary(program: Program) -> None:
    """The last line counts the verdicts, and repeats what is not ok, as Kubernetes shows it of a pod."""
    outcome = program.run(program.checkpoint, "--namespace=nowhere", command="doctor")
    shown = outcome.stdout.decode().splitlines()
    bad = [each for each in shown if each.startswith("fail")]

    summary = outcome.summary
    assert (outcome.code, summary["exit_code"], summary["event"]) == (78, 78, "doctor.finished")
    assert (summary["severity"], summary["message"]) == (
        "ERROR",
        f"a run would not work: {len(shown) - 1} ok, 0 warn, 1 fail",
    )
    assert (summary["ok"], summary["warn"], summary["fail"], summary["checks"]) == (len(shown) - 1, 0, 1, bad)


def test_a_pod_leaves_it_as_its_termination_message(ran: Program) -> None:
    """The same line, as that of a run."""
    log = ran.folder / "termination-log"
    outcome = ran.run(ran.checkpoint, command="doctor", environment={"WATCHER_TERMINATION_LOG": str(log)})

    assert json.loads(log.read_text()) == outcome.summary
    assert log.stat().st_size <= LONGEST_TERMINATION_MESSAGE


def test_what_failed_stands_before_what_is_a_warning(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    """A termination message may be cut off at its end."""
    program = Program(control_plane.kubeconfig("nobody", namespace=namespace), tmp_path)

    checks = program.run(program.checkpoint, command="doctor").summary["checks"]

    verdicts = [each.split()[0] for each in checks]
    assert (verdicts[0], verdicts[-1]) == ("fail", "warn")
    assert verdicts == sorted(verdicts)


def test_the_variables_of_the_manifest_are_enough(ran: Program) -> None:
    """With WATCHER_COMMAND=doctor, the pod of cronjob.yaml looks at what its runs will use."""
    variables = environment() | {"WATCHER_SINK": "stdout:", "WATCHER_CHECKPOINT": f"file:{ran.folder}/other"}

    outcome = ran.run(command="doctor", environment=variables | {"WATCHER_COMMAND": "doctor", "WATCHER_CLUSTER": "bed"})

    assert (outcome.code, outcome.summary["fail"]) == (0, 0)


@pytest.mark.parametrize(
    ("options", "variables"),
    [
        (["--sink=nowhere:"], {}),
        (["--window=1s"], {}),
        (["--since=2026-11-27"], {}),
        ([], {"WATCHER_NAMESPAEC": "argo"}),
    ],
    ids=["sink", "window", "not its own", "variable"],
)
def test_usage_errors_are_those_of_a_run(program: Program, options: list[str], variables: dict[str, str]) -> None:
    """Nothing is looked at before the options can be meant."""
    outcome = program.run(*options, command="doctor", environment=variables)

    assert (outcome.code, outcome.stdout) == (2, b"")


def test_a_disk_that_is_full(program: Program) -> None:
    """It hides no failure either, and is no bug."""
    command = [sys.executable, "-m", "job", "doctor", program.checkpoint, "--namespace=nowhere"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command,
            env=program.environment,
            cwd=program.folder,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert (done.returncode, json.loads(done.stderr.splitlines()[-1])["fail"]) == (78, 1)


@pytest.mark.parametrize("options", [["--json"], []])
def test_paths_that_are_no_text(program: Program, options: list[str]) -> None:
    """A name may have bytes that are not UTF-8, and characters that no terminal should get."""
    checkpoint = f"--checkpoint=file:{program.folder}/\udcff\x1b[2J"
    outcome = program.run(checkpoint, *options, command="doctor")

    assert (outcome.code, b"\x1b" in outcome.stdout) == (0, False)
    assert b"udcff" in outcome.stdout


def test_a_log_in_that_hangs() -> None:
    """A plug-in may wait for somebody who is not there."""
    never = threading.Event()
    with pytest.raises(Unavailable):
        in_time(never.wait, 0.01)
    never.set()

    assert in_time(never.wait, 60) is True


def test_nobody_reads_it(program: Program) -> None:
    """A pipe that was closed, as by `head`, hides no failure."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "job", "doctor", program.checkpoint, "--namespace=nowhere"]
    done = subprocess.run(
        command,
        env=program.environment,
        cwd=program.folder,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)

    assert (done.returncode, json.loads(done.stderr.splitlines()[-1])["fail"]) == (78, 1)


def test_everything_hangs(control_plane: ControlPlane, tmp_path: Path) -> None:
    """It ends, with a line for each part that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        program = Program(control_plane.kubeconfig(server=f"https://{address}"), tmp_path)
        options = ["--sink=pubsub://p/changes", "--dead-letter=gs://dead-letters/", "--checkpoint=gs://checkpoints/c"]
        found = diagnose(program, *options, environment=emulators(address, f"http://{address}"))

    assert (found.code, found.failed) == (
        78,
        ["API server", "topic changes", "bucket dead-letters", "bucket checkpoints"],
    )


class TestCheckpoint:
    """Those that runs have saved, and somebody has spoilt."""

    def test_one_that_is_well(self, ran: Program) -> None:
        """It was read, is for this run, its history is there, and the runs so far have found it."""
        for _ in range(2):
            ran.run("--window=0s", ran.checkpoint)

        found = diagnose(ran, ran.checkpoint)

        assert (found.code, found.failed, found.warned) == (0, [], [])
        assert [check.what for check in found.checks][-4:] == ["checkpoint", "scope", "age", "schedule"]
        assert documented("healthy checkpoint", *found.checks[-4:])

    def test_one_of_another_sink(self, ran: Program) -> None:
        """With what to do about it."""
        found = diagnose(ran, ran.checkpoint, f"--sink=file:{ran.folder}/changes.jsonl")

        assert (found.code, found.failed) == (78, ["scope"])
        assert documented("foreign checkpoint", found["scope"])

    @pytest.mark.parametrize(
        ("spoil", "kind"),
        [(lambda data: data[:20], "spoilt checkpoint"), (of_schema_2, "newer checkpoint")],
        ids=["spoilt", "newer"],
    )
    def test_one_that_cannot_be_read(self, ran: Program, spoil: Callable[[bytes], bytes], kind: str) -> None:
        """It stays as it is."""
        spoilt = spoil(ran.checkpoint_file.read_bytes())
        ran.checkpoint_file.write_bytes(spoilt)

        found = diagnose(ran, ran.checkpoint)

        assert (found.code, found.failed) == (78, ["checkpoint"])
        assert documented(kind, found["checkpoint"])
        assert ran.checkpoint_file.read_bytes() == spoilt
