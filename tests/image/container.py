"""A container of the image as a kubelet would run it under cronjob.yaml, but in the network of this machine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.bed.image import Image
from tests.program import Outcome, Running

NOBODY = 65532
FILES = Path("/etc/watcher")
"""Where a container finds the files of a test."""
_NEW_NAMESPACES = ("pid", "mount", "ipc", "uts")


class Containers:
    """Containers of one image, whose file system lies in `root`; each has its bundle in `folder`."""

    def __init__(self, image: Image, root: Path, folder: Path) -> None:
        self.image = image
        self.files = folder / "files"
        """What is put here is in every container at `FILES`; the account's is readable for its user."""
        self.files.mkdir()
        self.account: Path | None = None
        """The files of a service account, for where a kubelet puts them."""
        self.environment: dict[str, str] = {}
        """What every container has, beside what the image says."""
        self.user = NOBODY
        self._root, self._folder = root, folder

    def run(self, *arguments: str, environment: Mapping[str, str] | None = None, program: str = "") -> Outcome:
        """Run the image's entry point, or another program in it, to its end."""
        with self.running(*arguments, environment=environment, program=program) as running:
            return running.finish()

    @contextmanager
    def running(
        self, *arguments: str, environment: Mapping[str, str] | None = None, program: str = ""
    ) -> Iterator[Running]:
        """Start it; what is left of it at the end is killed."""
        name = f"image-{uuid4().hex[:12]}"
        bundle = self._folder / name
        bundle.mkdir()
        entry = [program] if program else self.image.settings["Entrypoint"]
        given = {**self.environment, **(environment or {})}
        variables = [*self.image.settings["Env"], *(f"{name}={text}" for name, text in given.items())]
        (bundle / "config.json").write_text(json.dumps(self._configuration([*entry, *arguments], variables)))
        runc = ["runc", "--root", str(self._folder / "runc")]
        command = [*runc, "run", "--bundle", str(bundle), name]
        try:
            with Running(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)) as running:
                yield running
        finally:
            subprocess.run([*runc, "delete", "--force", name], check=True, stderr=subprocess.PIPE)

    def _configuration(self, arguments: list[str], environment: list[str]) -> dict[str, Any]:
        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},
            _bind(self.files, FILES),
        ]
        if self.account:
            mounts.append(_bind(self.account, Path("/var/run/secrets/kubernetes.io/serviceaccount")))
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": self.user, "gid": self.user},
                "args": arguments,
                "env": environment,
                "cwd": self.image.settings["WorkingDir"],
                "noNewPrivileges": True,
                "capabilities": {},
            },
            "root": {"path": str(self._root), "readonly": True},
            "mounts": mounts,
            "linux": {"namespaces": [{"type": kind} for kind in _NEW_NAMESPACES]},
        }


def _bind(source: Path, inside: Path) -> dict[str, Any]:
    return {"destination": str(inside), "type": "bind", "source": str(source), "options": ["rbind", "ro"]}
