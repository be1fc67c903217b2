"""fsouza's Google Cloud Storage as a process of this test run, on loopback and in memory.

It keeps the preconditions of uploads; those of reads, deletions and patches it ignores, where `tests.fakes.gcs_server`
keeps them.
"""

import contextlib
from pathlib import Path
from typing import Self

import urllib3

from tests.bed import binaries
from tests.bed.process import Server, ServerCrashedError, free_port

_PORT_ATTEMPTS = 4
_OK = 200


class FakeGcsServer:
    """The server with its log in `folder`; a context manager."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.url = ""
        self._host = host
        self._log = folder / "fake-gcs-server.log"
        self._binary = binaries.fake_gcs_server()
        self._server: Server | None = None
        self._pool = urllib3.PoolManager(retries=False, timeout=5)

    @property
    def name(self) -> str:
        """Which server serves, in words."""
        return f"fake-gcs-server ({self._binary.origin})"

    def __enter__(self) -> Self:
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            try:
                self._start(free_port())
            except ServerCrashedError:
                # Somebody may have taken the port meanwhile.
                if attempt == _PORT_ATTEMPTS:
                    raise
            else:
                break
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.stop()
        self._pool.clear()

    def create_bucket(self, name: str) -> None:
        """Create an empty bucket."""
        answer = self._pool.request("POST", f"{self.url}/storage/v1/b?project=p", json={"name": name})
        if answer.status != _OK:
            message = f"no bucket {name}: {answer.data!r}"
            raise RuntimeError(message)

    def _start(self, port: int) -> None:
        self.url = f"http://{self._host}:{port}"
        self._server = Server(
            [
                str(self._binary.path),
                *("-scheme", "http", "-host", self._host, "-port", str(port)),
                # Where it sends the further requests of a resumable upload.
                *("-external-url", self.url),
                *("-backend", "memory"),
            ],
            self._log,
        )
        try:
            self._server.start()
            self._server.wait_until_ready(self._serves)
        except BaseException:
            self._server.stop()
            raise

    def _serves(self) -> bool:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            return self._pool.request("GET", f"{self.url}/_internal/healthcheck").status == _OK
        return False
