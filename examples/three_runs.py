"""Three runs against a real control plane on this machine: a first one, a resumed one, and one that is refused.

Brings up etcd and kube-apiserver, creates the Argo CRDs and a few dozen Workflows that change all the time, and starts
`workflow-watcher run` as a user would, with nothing but a kubeconfig: every option has its default, the window of 55
seconds too.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane

NAMESPACE = "argo"
WORKFLOWS = 36
CHANGES_PER_SECOND = 2.0
UNWATCHED = 8
"""Seconds between two runs."""
SHOWN = 3
_WIDTH = 100


def main() -> None:
    """Run the three of them and say what each one did."""
    with tempfile.TemporaryDirectory(prefix="workflow-watcher-") as name:
        folder = Path(name)
        say("Bringing up etcd and kube-apiserver (the first time they are built, which takes some minutes) …")
        with ControlPlane(folder / "control-plane") as plane, plane.cluster() as cluster:
            cluster.apply_crds()
            cluster.create_namespace(NAMESPACE)
            for number in range(WORKFLOWS):
                cluster.create(NAMESPACE, f"build-{number:02}", size_bytes=4000)
            say(f"A real control plane is up at {plane.url}, with {WORKFLOWS} Workflows that begin to change.")
            environment = {
                **{variable: value for variable, value in os.environ.items() if not variable.startswith("WATCHER_")},
                "KUBECONFIG": str(plane.kubeconfig(namespace=NAMESPACE)),
                "XDG_STATE_HOME": str(folder / "state"),
            }
            with changing(cluster):
                run("1. The first run: there is no checkpoint.", environment)
                say(f"Nobody watches for {UNWATCHED} seconds; the Workflows go on changing.")
                time.sleep(UNWATCHED)
                run("2. The second run: it resumes where the first one ended.", environment)
                say("The API server restarts, and forgets which changes it had seen. Nobody watches meanwhile.")
                plane.restart_api()
                time.sleep(UNWATCHED)
                run("3. The third run: its version is refused, so it must read history back.", environment)


def run(title: str, environment: dict[str, str]) -> None:
    """Start the program, and tell what it did."""
    heading(title)
    print("$ workflow-watcher run            (this takes 55 seconds)", flush=True)
    done = subprocess.run([sys.executable, "-m", "job", "run"], env=environment, capture_output=True, check=False)
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    for message in messages[:SHOWN]:
        print(shortened(message))
    if len(messages) > SHOWN:
        print(f"… and {len(messages) - SHOWN} more lines like these")
    *_, last = done.stderr.decode().splitlines()
    summary = json.loads(last)
    print()
    say(f"Exit code {done.returncode}. {summary['message']}")
    explain(summary, messages)
    if done.returncode:
        sys.exit(done.returncode)


def explain(summary: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    """Say in plain words what it did, and why."""
    known = Counter(message["provenance"] for message in messages if not message["type"].endswith(".gap"))
    if summary["start"] == "first":
        say(
            f"Nothing was known, so all {known['initial']} Workflows that existed were published as `added`. After "
            f"that the watch showed {known['observed']} changes, each published as it happened."
        )
    elif summary["start"] == "resumed":
        say(
            f"The API server still had everything since version {summary['from']}, so the watch told all "
            f"{known['observed']} changes, those of the unwatched seconds too. Nothing can be missing, so no gap is "
            "announced."
        )
    else:
        gaps = [message["data"]["missing"] for message in messages if message["type"].endswith(".gap")]
        missing = f"What may be missing is announced: {', '.join(gaps)}." if gaps else "Nothing can be missing."
        say(
            f"The API server had forgotten what followed version {summary['from']}. Etcd had not: {known['recovered']} "
            "changes were read back from it, with the ids and the data that the watch would have given them, deletions "
            f"included. {missing} After that the watch showed {known['observed']} changes."
        )
    say(f"The checkpoint, with {summary['objects']} Workflows in its inventory, is in {summary['checkpoint']}.")


@contextmanager
def changing(cluster: Cluster) -> Iterator[None]:
    """Keep the Workflows changing, ending, and beginning."""
    stopping = threading.Event()
    choice = random.Random(1)
    born = WORKFLOWS

    def work() -> None:
        nonlocal born
        names = [f"build-{number:02}" for number in range(WORKFLOWS)]
        while not stopping.wait(1 / CHANGES_PER_SECOND):
            name = choice.choice(names)
            try:
                if choice.random() < 0.2:  # noqa: PLR2004
                    cluster.delete(NAMESPACE, name)
                    names.remove(name)
                    names.append(f"build-{born:02}")
                    cluster.create(NAMESPACE, names[-1], size_bytes=4000)
                    born += 1
                else:
                    phase = choice.choice(("Running", "Succeeded", "Failed"))
                    cluster.patch(NAMESPACE, name, {"status": {"phase": phase, "progress": f"{choice.randrange(9)}/9"}})
            except Exception as error:  # noqa: BLE001 - the API server restarts in between
                print(f"  (a change had to wait: {type(error).__name__})", file=sys.stderr)
                stopping.wait(1)

    worker = threading.Thread(target=work, name="changes", daemon=True)
    worker.start()
    try:
        yield
    finally:
        stopping.set()
        worker.join()


def heading(title: str) -> None:
    """Print a heading."""
    print(f"\n{title}\n{'─' * len(title)}")


def say(text: str) -> None:
    """Print a paragraph."""
    print(textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False), flush=True)


def shortened(message: dict[str, Any]) -> str:
    """A line of output, cut to the width of a terminal."""
    line = json.dumps(message, separators=(",", ":"))
    return line if len(line) <= _WIDTH else f"{line[:_WIDTH]}…"


if __name__ == "__main__":
    main()
