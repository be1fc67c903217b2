"""What recovery takes, for docs/recovery.md: `nox -s long -- tests/history/test_figures.py`."""

import logging
import random
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from job.checkpoint import Scope
from job.run import Ports, run
from job.run.deadline import Deadline
from job.run.summary import Summary
from job.selector import Selector
from job.settings import Address, Settings, parse_resource
from job.sources.connection import Connection, from_kubeconfig
from job.sources.http import Answer
from job.sources.kubernetes import KubernetesSource
from tests.bed.control_plane import ControlPlane
from tests.fakes.sink import MemorySink
from tests.fakes.store import MemoryStore

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

OBJECTS, WRITERS = 50, 8
RESOURCE = parse_resource("workflows.v1alpha1.argoproj.io")
log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path_factory.mktemp("figures")) as plane, plane.cluster() as cluster:
        cluster.apply_crds()
        yield plane


@dataclass
class Counted:
    """What a run asked the API server for."""

    requests: int = 0
    bytes: int = 0


@pytest.mark.parametrize("size", [6_000, 20_000])
@pytest.mark.parametrize("missed", [100, 1_000, 10_000])
def test_what_recovery_takes(plane: ControlPlane, missed: int, size: int) -> None:
    """So many missed versions come back one by one; beside it what the difference alone takes, and one full list."""
    namespace = f"missed-{missed}-{size}"
    with plane.cluster() as cluster:
        cluster.create_namespace(namespace)
        for number in range(OBJECTS):
            cluster.create(namespace, f"w-{number}", size_bytes=size)
    kubeconfig = plane.kubeconfig(namespace=namespace)
    store = MemoryStore()
    with store, MemorySink() as sink:
        resume(kubeconfig, namespace, sink, store, recover=timedelta())
        before = store.load(timeout=1)
        assert before
        write(plane, namespace, missed)
        plane.restart_api()
        told = len(sink.stored)

        walked, counted, seconds, cpu = resume(kubeconfig, namespace, sink, store, recover=timedelta(minutes=10))
        recovered = len(sink.stored) - told
        store.put(before.data)
        compared, compared_counted, compared_seconds, compared_cpu = resume(
            kubeconfig, namespace, sink, store, recover=timedelta()
        )
    full_seconds, full_bytes = full_list(kubeconfig, namespace)

    rows = (
        ("recovered", recovered, counted, seconds, cpu),
        ("compared", compared.published["modified"], compared_counted, compared_seconds, compared_cpu),
    )
    for what, messages, requested, wall, used in rows:
        log.info(
            "| %d x %d KB | %s | %d | %d | %.1f MB | %.1f s | %.1f s |",
            *(missed, size // 1000, what, messages, requested.requests, requested.bytes / 1e6, wall, used),
        )
    log.info("a full list of %d objects: %.1f MB, %.2f s", OBJECTS, full_bytes / 1e6, full_seconds)
    assert (walked.recovery, recovered) == ("complete", missed)
    assert (compared.recovery, compared.gaps) == ("", ["expired"])


def resume(
    kubeconfig: Path, namespace: str, sink: MemorySink, store: MemoryStore, *, recover: timedelta
) -> tuple[Summary, Counted, float, float]:
    """A run in this process, and what it took: requests and bytes, seconds, and seconds of CPU."""
    counted = Counted()
    window = timedelta()
    deadline = Deadline(window, recover=recover)
    settings = Settings(
        scope=Scope("bed", str(RESOURCE), namespace, "", "memory:"),
        resource=RESOURCE,
        selector=Selector(""),
        sink=Address("memory", ""),
        checkpoint=Address("memory", ""),
        window=window,
        recover=recover,
    )
    connection = counting(from_kubeconfig(str(kubeconfig), None), counted)
    sink.connect()
    began, used = time.monotonic(), time.process_time()
    ports = Ports(KubernetesSource(connection, RESOURCE, namespace, deadline), sink, store)
    summary = run(settings, ports, deadline, run_id=f"run-{random.randrange(10**9)}")
    assert not summary.error, summary.error
    return summary, counted, time.monotonic() - began, time.process_time() - used


def counting(connection: Connection, counted: Counted) -> Connection:
    """The same connection, without compression: that would say more about these objects than about others."""

    class CountingClient:
        url = connection.client.url

        def get(self, path: str, query: Mapping[str, str | int], headers: Mapping[str, str], seconds: float) -> Answer:
            answer = connection.client.get(path, query, {**headers, "Accept-Encoding": "identity"}, seconds)
            counted.requests += 1
            pieces = answer.pieces

            def counting() -> Iterator[bytes]:
                for piece in pieces():
                    counted.bytes += len(piece)
                    yield piece

            answer.pieces = counting  # type: ignore[method-assign]
            return answer

    return replace(connection, client=CountingClient())  # type: ignore[arg-type]


def full_list(kubeconfig: Path, namespace: str) -> tuple[float, int]:
    """What other watchers do after an expiry, as far as reading goes."""
    connection = from_kubeconfig(str(kubeconfig), None)
    path = f"/apis/{RESOURCE.api_version}/namespaces/{namespace}/{RESOURCE.plural}"
    began = time.monotonic()
    body = b"".join(connection.get(path, {}, "application/json", 60, live=False).pieces())
    return time.monotonic() - began, len(body)


def write(plane: ControlPlane, namespace: str, count: int) -> None:
    """Change the objects so many times in all."""

    def change(mine: range) -> None:
        with plane.cluster() as cluster:
            for number in mine:
                progress = f"{random.randrange(10**9)}/1"
                cluster.patch(namespace, f"w-{number % OBJECTS}", {"status": {"progress": progress}})

    # Writer n has the objects n, n + 8, ...; no two write to one at a time.
    with ThreadPoolExecutor(WRITERS) as threads:
        list(threads.map(change, [range(first, count, WRITERS) for first in range(WRITERS)]))
