"""A run between a real API server, a scripted broker and a Cloud Storage of ours."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from typing import Any

from job import checkpoint
from job.checkpoint import Checkpoint
from tests.bed.waiting import wait_until
from tests.fakes.gcs_server import GcsServer
from tests.fakes.publisher_server import PublisherServer
from tests.program import Outcome, Program, Running
from tests.wire.told import SOON, id_of

TOPIC = "projects/p/topics/changes"
SINK = "pubsub://p/changes"
BUCKET, NAME = "checkpoints", "prod.json.gz"
CHECKPOINT = f"--checkpoint=gs://{BUCKET}/{NAME}"
_NODES = b'{"a":{"id":"a","message":"%b"}}' % (b"x" * 11_000_000)
TOO_LARGE = {"nodes": None, "compressedNodes": base64.b64encode(gzip.compress(_NODES)).decode()}
"""The status of a Workflow whose summary Pub/Sub would not take, with nodes of more than 10 MB."""
MENDED = {"phase": "Running", "message": "", "compressedNodes": None}
"""What is to be patched onto it."""


def emulators(pubsub: str, gcs: str) -> dict[str, str]:
    """The environment of a program that finds these instead of Google Cloud."""
    return {"PUBSUB_EMULATOR_HOST": pubsub, "STORAGE_EMULATOR_HOST": gcs}


class Cloud:
    """The program with this sink and this store."""

    def __init__(self, program: Program, broker: PublisherServer, gcs: GcsServer) -> None:
        self.broker = broker
        self.gcs = gcs
        self._program = program
        self._environment = emulators(broker.address, gcs.url)

    def start(self, *options: str, sink: str = SINK, **environment: str) -> Running:
        """Start a run."""
        return self._program.start(
            f"--sink={sink}", CHECKPOINT, *options, environment={**self._environment, **environment}
        )

    def run(self, *options: str, sink: str = SINK, **environment: str) -> Outcome:
        """Run it to its end."""
        with self.start(*options, sink=sink, **environment) as running:
            return running.finish()

    @property
    def saved(self) -> Checkpoint:
        """The checkpoint as it is stored."""
        data = self.gcs.get(BUCKET, NAME)
        assert data is not None
        return checkpoint.decode(data)

    @property
    def generation(self) -> int:
        """That of the checkpoint."""
        return self.gcs.generation(BUCKET, NAME)

    @property
    def told(self) -> list[str]:
        """The ids of all stored messages, in order, as often as they were stored."""
        return [message.attributes["ce-id"] for message in self.broker.stored]

    def wait_for(self, answer: dict[str, Any]) -> None:
        """Return once the message of this object of the API server's is stored."""
        wait_until(lambda: id_of(answer) in self.told, SOON, f"{id_of(answer)} to be stored")

    def is_at_the_acknowledged_prefix(self, before: Checkpoint, changes: Sequence[dict[str, Any]]) -> bool:
        """Whether exactly what the broker has stored without a hole is saved: of `changes`, all after `before`."""
        version, told = before.version, set(self.told)
        for change in changes:
            if id_of(change) not in told:
                break
            version = int(change["metadata"]["resourceVersion"])
        known = {f"{uid}/{entry.version}" for uid, entry in self.saved.inventory.items() if uid not in before.inventory}
        prefix = {id_of(change) for change in changes if int(change["metadata"]["resourceVersion"]) <= version}
        return (self.saved.version, known) == (version, prefix)
