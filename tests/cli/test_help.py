"""Tests of `--help` and `--version`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

COMMANDS = ["run", "backfill", "consume", "doctor"]
COMMAND = Path(sys.executable).with_name("workflow-watcher")
VENDORS = {"kubernetes", "google", "grpc", "boto3", "botocore", "redis"}
IMPORTED = """
import sys
from job.cli import main
sys.argv = ["workflow-watcher", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    print(end.code, *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WATCHER_")}
    return subprocess.run(
        command, env={**environment, "COLUMNS": "80"}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("options", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_imports_no_vendor(options: list[str]) -> None:
    """Whoever asks for help waits for no vendor's library."""
    outcome = run(sys.executable, "-c", IMPORTED, *options)

    code, *modules = outcome.stderr.split()
    assert (code, outcome.stdout != "") == ("0", True)
    assert VENDORS & set(modules) == set()
    assert "job" in modules


def test_the_version_is_that_of_the_distribution() -> None:
    """`--version` prints the version and nothing else."""
    outcome = run(COMMAND, "--version")

    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, f"{version('workflow-watcher')}\n", "")


def test_help_is_shown_where_nothing_is_asked() -> None:
    """The bare command shows the same as `--help`, which says what the exit codes mean."""
    bare, asked = run(COMMAND), run(COMMAND, "--help")

    assert (bare.returncode, bare.stdout) == (asked.returncode, asked.stdout) == (0, asked.stdout)
    assert [code for code in ("0", "1", "2", "75", "78") if not re.search(rf"\b{code} ", asked.stdout)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_names_its_variable(command: str) -> None:
    """`kubectl create job --from` takes no arguments, so every option has a variable that its help names."""
    text = run(COMMAND, command, "--help").stdout
    options = {option for option in re.findall(r"^  (?:-\w, )?--([a-z-]+)", text, re.MULTILINE) if option != "help"}

    variables = set(re.findall(r"WATCHER_[A-Z_]+", text))

    assert variables == {f"WATCHER_{option.upper().replace('-', '_')}" for option in options}
    assert len(options) > 3


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_is_as_recorded(command: str) -> None:
    """It changes only on purpose; `workflow-watcher COMMAND --help` with COLUMNS=80 gives the new file."""
    golden = Path(__file__).with_name(f"{command}-help.txt")

    assert run(COMMAND, command, "--help").stdout == golden.read_text(encoding="utf-8")
