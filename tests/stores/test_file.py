"""Tests of checkpoints in local files."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from job.errors import ActionNeeded, Unavailable
from job.ports import Conflict, Store
from job.stores.file import FileStore
from tests.contracts.store import TIMEOUT, StoreContract, loaded

NOBODY = 65534


class TestFileStore(StoreContract):
    @pytest.fixture
    def connect(self, tmp_path: Path) -> Callable[[], Store]:
        return lambda: FileStore(tmp_path / "checkpoint.json.gz")

    @pytest.fixture
    def broken(self, tmp_path: Path) -> Store:
        return FileStore(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "checkpoint.json.gz"


def test_folders_are_made(path: Path) -> None:
    """A checkpoint completed with the scope lies some folders deep."""
    FileStore(path).save(b"one", None, TIMEOUT)

    assert path.read_bytes() == b"one"


def test_nothing_else_is_left_in_the_folder(path: Path) -> None:
    """The file that is renamed over the old one has gone with that."""
    store = FileStore(path)
    store.save(b"two", store.save(b"one", None, TIMEOUT), TIMEOUT)
    with pytest.raises(Conflict):
        store.save(b"three", None, TIMEOUT)

    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_failed_save_leaves_the_old_value_whole(path: Path) -> None:
    """A disk that takes only a part: the old file stays, and the part is removed."""
    script = (
        "import resource, signal, sys; from pathlib import Path; from job.errors import Unavailable\n"
        "from job.stores.file import FileStore\n"
        "store = FileStore(Path(sys.argv[1])); token = store.save(b'old', None, 10)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: store.save(b'n' * 5000, token, 10)\n"
        "except Unavailable as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)

    assert "cannot be read or written" in done.stdout
    assert path.read_bytes() == b"old"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_killed_save_leaves_the_old_value_whole(path: Path) -> None:
    """SIGKILL between the writing and the renaming: the next run loads what was there, and can replace it."""
    script = (
        "import os, signal, sys; from pathlib import Path; from job.stores.file import FileStore\n"
        "store = FileStore(Path(sys.argv[1])); token = store.save(b'old', None, 10)\n"
        "sys.addaudithook(lambda name, _: name == 'os.rename' and os.kill(os.getpid(), signal.SIGKILL))\n"
        "store.save(b'new', token, 10)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    store = FileStore(path)

    assert killed.returncode == -9
    assert loaded(store).data == b"old"
    store.save(b"new", loaded(store).token, TIMEOUT)
    assert path.read_bytes() == b"new"


def test_a_save_waits_for_the_lock_as_long_as_it_may(path: Path) -> None:
    """Another process that is just saving holds it; when the time is over the store counts as unavailable."""
    store = FileStore(path)
    token = store.save(b"one", None, TIMEOUT)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="lock"):
            store.save(b"two", token, 0.0)
    finally:
        os.close(folder)

    store.save(b"two", token, TIMEOUT)
    assert path.read_bytes() == b"two"


def test_one_of_many_savers_wins(path: Path) -> None:
    """Processes that save over one value at the same time: one replaces it, the others conflict."""
    FileStore(path).save(b"start", None, TIMEOUT)
    script = (
        "import sys; from pathlib import Path; from job.ports import Conflict; from job.stores.file import FileStore\n"
        "store = FileStore(Path(sys.argv[1])); token = store.load(10).token\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try: store.save(sys.argv[2].encode(), token, 10); print('won')\n"
        "except Conflict: print('lost')\n"
    )
    savers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path), f"saver {number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for saver in savers:
        assert saver.stdout
        assert saver.stdout.readline() == "ready\n"
    results = [saver.communicate("go\n", timeout=60)[0].strip() for saver in savers]

    assert sorted(results) == ["lost", "lost", "lost", "won"]
    assert path.read_bytes().decode() == f"saver {results.index('won')}"


def test_a_folder_in_its_place_is_for_a_person(path: Path) -> None:
    """It will not become a file by itself."""
    path.mkdir(parents=True)

    with pytest.raises(ActionNeeded):
        FileStore(path).load(TIMEOUT)


@pytest.mark.parametrize("verb", ["load", "save"])
def test_a_file_in_place_of_a_folder_is_for_a_person(path: Path, verb: str) -> None:
    """Neither will it become a folder."""
    path.parent.write_text("a file")

    with pytest.raises(ActionNeeded):
        FileStore(path).load(TIMEOUT) if verb == "load" else FileStore(path).save(b"one", None, TIMEOUT)


@pytest.mark.parametrize("verb", ["load", "save"])
def test_denied_permission_is_for_a_person(path: Path, verb: str) -> None:
    """Whether the folder or the file may not be read or written; the path and the reason are named."""
    path.parent.mkdir(mode=0o700)
    os.chmod(path.parent.parent, 0o755)  # noqa: PTH101
    script = (
        "import os, sys; from pathlib import Path; from job.errors import ActionNeeded\n"
        "from job.stores.file import FileStore\n"
        f"if os.getuid() == 0: os.setuid({NOBODY})\n"
        "else: os.chmod(Path(sys.argv[1]).parent, 0)\n"
        "store = FileStore(Path(sys.argv[1]))\n"
        "try: store.load(10) if sys.argv[2] == 'load' else store.save(b'one', None, 10)\n"
        "except ActionNeeded as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path), verb], capture_output=True, text=True, check=True)

    assert "Permission denied" in done.stdout
    assert str(path) in done.stdout
