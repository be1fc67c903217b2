"""What is built for the bed is built once, also by two test runs at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bed.cache import BuildError, built_once, run_with_progress

_BUILD = """
import pathlib, sys, time
from tests.bed.cache import built_once

def build(path):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    time.sleep(0.5)
    path.write_text("complete")

print(built_once(pathlib.Path(sys.argv[1]), build).read_text())
"""


def test_two_runs_build_once(tmp_path: Path) -> None:
    """Of two runs that want the same, one builds and both get it complete."""
    command = [sys.executable, "-c", _BUILD, str(tmp_path / "cache" / "thing"), str(tmp_path / "log")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(2)]
    assert [run.communicate()[0] for run in runs] == ["complete\n", "complete\n"]
    assert (tmp_path / "log").read_text() == "built\n"


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    """After a build that failed, or was killed, the next run builds anew."""
    target = tmp_path / "thing"

    def fail(path: Path) -> None:
        path.write_text("half")
        raise BuildError

    with pytest.raises(BuildError):
        built_once(target, fail)
    assert not target.exists()
    assert built_once(target, lambda path: path.mkdir()).is_dir()


def test_failure_shows_what_the_tool_said(capfd: pytest.CaptureFixture[str]) -> None:
    """A failed command is reported with its code and the end of its output, both streams."""
    program = "import sys; print('to out'); sys.exit('to err')"
    with pytest.raises(BuildError, match=r"(?s)code 1.*to out.*to err"):
        run_with_progress([sys.executable, "-c", program], "a thing")
    assert "building a thing" in capfd.readouterr().err
