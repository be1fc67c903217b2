"""Those who are compared: what starts them, and how many events each is given."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bed import binaries
from tests.benchmarks.replay import BEGIN, Replay

OTHERS = Path(__file__).with_name("others")
QUIET = 3
"""Seconds of a window in which nothing happens: ours has none that is shorter."""
SINK, CHECKPOINT = "pubsub://proj-x/topic-x", "gs://checkpoints/ours"


Command = Callable[[Replay, int], Sequence[str]]
"""What to start, given the server and the number of events."""


@dataclass(frozen=True)
class Watcher:
    """One of those who are compared."""

    name: str
    command: Command
    small: int
    """Events of the small corpus that it is given: as many as take some seconds."""
    big: int
    """Events of the big one; 0: it is not measured with those."""
    ends: bool = True
    """Whether it ends by itself."""
    publishes: bool = True
    catches_up: bool = False
    """Whether it asks which version it is now, and reads up to that."""


def environment(replay: Replay, gcs: str) -> Mapping[str, str]:
    """Where everything is, for all of them."""
    host, port = replay.api.removeprefix("https://").split(":")
    return {
        "PUBSUB_EMULATOR_HOST": replay.sink,
        "STORAGE_EMULATOR_HOST": gcs,
        "PEER_API": replay.api,
        "PEER_CA": str(replay.ca_file),
        "PEER_WINDOW": str(QUIET),
        "KUBERNETES_SERVICE_HOST": host,
        "KUBERNETES_SERVICE_PORT": port,
        "WATCHER_CLUSTER": "bench",
        "WATCHER_ALL_NAMESPACES": "true",
        "WATCHER_CHECKPOINT": CHECKPOINT,
        "WATCHER_INITIAL": "skip",
        "MALLOC_ARENA_MAX": "1",  # as cronjob.yaml has it
        "PYTHONPATH": os.pathsep.join(filter(None, (str(OTHERS.parents[2]), os.environ.get("PYTHONPATH")))),
    }


def _ours(sink: str = SINK) -> Command:
    def command(_: Replay, events: int) -> Sequence[str]:
        window = "0s" if events else f"{QUIET}s"  # stock watches for so long when nothing comes
        return [sys.executable, "-m", "job", "run", f"--window={window}", f"--sink={sink}"]

    return command


def _stock(*arguments: str) -> Command:
    return lambda *_: [sys.executable, str(OTHERS / "stock.py"), *arguments]


def _informer(replay: Replay, _: int) -> Sequence[str]:
    return [str(binaries.informer().path), f"-api={replay.api}", f"-ca={replay.ca_file}"]


def _kopf(*_: object) -> Sequence[str]:
    return [sys.executable, "-m", "kopf", "run", "--quiet", "--all-namespaces", str(OTHERS / "kopf_handler.py")]


def _curl(replay: Replay, _: int) -> Sequence[str]:
    query = f"watch=true&allowWatchBookmarks=true&resourceVersion={BEGIN}&timeoutSeconds={QUIET}"
    url = f"{replay.api}/apis/argoproj.io/v1alpha1/workflows?{query}"
    return ["curl", "-sN", "--cacert", str(replay.ca_file), "-H", "Authorization: Bearer token", url, "-o", "/dev/null"]


OURS = Watcher("workflow-watcher", _ours(), small=20_000, big=10_000, catches_up=True)
STOCK = Watcher("stock Python", _stock(), small=20_000, big=5_000)
INFORMER = Watcher("Go informer", _informer, small=10_000, big=3_000, ends=False)
KOPF = Watcher("kopf", _kopf, small=4_000, big=2_000, ends=False)
CURL = Watcher("curl", _curl, small=20_000, big=10_000, publishes=False)
OURS_ORDERED = Watcher(f"{OURS.name}, ordering keys", _ours(f"{SINK}?ordering=32"), 20_000, big=0, catches_up=True)
STOCK_ORDERED = Watcher(f"{STOCK.name}, ordering keys", _stock("key"), small=5_000, big=0)
