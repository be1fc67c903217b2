"""A server process does what the bed needs of one, above all: it goes when the test run goes."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from tests.bed.etcd import Etcd
from tests.bed.process import Server, ServerCrashedError
from tests.bed.waiting import wait_until

_SOON = timedelta(seconds=10)
_NEVER_READY = "import time; print('not yet', flush=True); time.sleep(600)"
_ETCD_FOREVER = """
import pathlib, sys, time
from tests.bed.etcd import Etcd
etcd = Etcd(pathlib.Path(sys.argv[1]))
etcd.start()
print(etcd.pid, flush=True)
time.sleep(600)
"""


def python(program: str, tmp_path: Path) -> Server:
    """Prepare a server that is a Python program."""
    return Server([sys.executable, "-c", program], tmp_path / "log")


def exists(pid: int) -> bool:
    """Whether a process has this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_server_dies_with_the_test_run(tmp_path: Path) -> None:
    """A server goes when the process that started it is killed with -9."""
    command = [sys.executable, "-c", _ETCD_FOREVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as test_run:
        assert test_run.stdout is not None
        pid = int(test_run.stdout.readline())
        assert exists(pid)
        test_run.kill()
    wait_until(lambda: not exists(pid), _SOON, f"etcd, {pid}, to be gone")


def test_server_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """A server goes on when the thread that started it ends."""
    etcd = Etcd(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(etcd.start).result()
    try:
        assert exists(etcd.pid)
        assert etcd.compact(None) > 0
    finally:
        etcd.stop()
    assert not exists(etcd.pid)


def test_crash_fails_at_once_and_shows_the_log(tmp_path: Path) -> None:
    """Who waits for a server that crashes learns of it at once, with the end of its log."""
    server = python("raise SystemExit('no such flag')", tmp_path)
    server.start()
    with pytest.raises(ServerCrashedError, match="no such flag"):
        server.wait_until_ready(lambda: False, timedelta(minutes=10))
    server.stop()


def test_slow_server_shows_the_log(tmp_path: Path) -> None:
    """Who waits in vain for a server that lives sees the end of its log."""
    server = python(_NEVER_READY, tmp_path)
    server.start()
    wait_until(lambda: "not yet" in server.log_tail(), _SOON, "the server's log")
    with pytest.raises(TimeoutError, match="not yet"):
        server.wait_until_ready(lambda: False, timedelta(0))
    server.kill()


def test_missing_program(tmp_path: Path) -> None:
    """A program that cannot be started is an error that names it."""
    with pytest.raises(ServerCrashedError, match="no-such-program"):
        Server([str(tmp_path / "no-such-program")], tmp_path / "log").start()


def test_stubborn_server_is_killed(tmp_path: Path) -> None:
    """A server that ignores SIGTERM is killed after the grace."""
    server = python("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + _NEVER_READY, tmp_path)
    server.start()
    wait_until(lambda: "not yet" in server.log_tail(), _SOON, "the server's log")
    server.stop(timedelta(seconds=0.1))
    assert not exists(server.pid)


def test_stopping_twice_and_what_is_gone(tmp_path: Path) -> None:
    """Stopping, killing or signalling a server that is not there does nothing."""
    server = python("pass", tmp_path)
    server.stop()
    server.start()
    wait_until(lambda: not server.running, _SOON, "the server's end")
    server.send(signal.SIGTERM)
    server.stop()
    server.kill()
