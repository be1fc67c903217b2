"""The replay server: what it serves is chosen before each measurement, what it counted is asked for afterwards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import urllib3

from tests.bed import binaries
from tests.bed.process import Server

BEGIN = 1000
"""The version before the first event."""


@dataclass(frozen=True)
class Counts:
    """What the sink has taken. Times are Unix seconds, 0 where nothing came."""

    requests: int
    messages: int
    bytes: int
    watched: float
    """When the first watch was asked for."""
    first: float
    last: float


class Replay:
    """One recorded corpus, replayed at any length."""

    def __init__(self, corpus: Path, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.ca_file = folder / "ca.crt"
        self._addresses = folder / "addresses.json"
        command = [str(binaries.replay().path), f"-corpus={corpus}", f"-ca={self.ca_file}"]
        self._server = Server([*command, f"-addresses={self._addresses}"], folder / "replay.log")
        self._pool = urllib3.PoolManager()
        self._control = self.api = self.sink = ""

    def __enter__(self) -> Self:
        self._server.start()
        self._server.wait_until_ready(self._addresses.exists)
        addresses = json.loads(self._addresses.read_text())
        self.api, self.sink = f"https://{addresses['api']}", addresses["sink"]
        self._control = f"http://{addresses['control']}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    def begin(self, *, events: int, version: int = BEGIN, objects: int = 0) -> None:
        """Serve so many events after version `BEGIN`, and lists of so many objects at `version`; count from zero."""
        query = f"events={events}&version={version}&objects={objects}"
        answer = self._pool.request("POST", f"{self._control}/begin?{query}")
        assert answer.status == 200, answer.data

    @property
    def counts(self) -> Counts:
        return Counts(**self._pool.request("GET", f"{self._control}/counts").json())
