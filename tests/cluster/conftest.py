"""One node for the whole session, and a deployment in a namespace of its own for each test.

What was seen is told at the end: a line for each test, with the seconds that it took.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.bed import image
from tests.bed.gcs import FakeGcsServer
from tests.bed.image import Image
from tests.bed.node import ADDRESS, Node
from tests.bed.pubsub import PubSub
from tests.cluster.audit import Audit
from tests.cluster.deployment import BUCKET, Deployment, Logs, Place
from tests.cluster.work import Work

_SEEN = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin to take notes."""
    config.stash[_SEEN] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note what has become of a test, in the words of its docstring."""
    report = yield
    if call.when == "call" and isinstance(item, pytest.Function):
        said = " ".join((item.function.__doc__ or item.name).split())
        item.config.stash[_SEEN].append(f"{report.outcome} after {call.duration:5.1f} s: {said}")
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Tell it."""
    for line in config.stash[_SEEN]:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def watcher_image() -> Image:
    """What the Dockerfile makes: built before, since there is no way out of this network."""
    return image.watcher_image()


@pytest.fixture(scope="session")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """What service accounts ask the API server for."""
    return Audit(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory, watcher_image: Image, audit: Audit) -> Iterator[Node]:
    """A cluster of one node, with the image and the Argo CRDs."""
    folder = tmp_path_factory.mktemp("node")
    with Node(folder, [image.pause_image(), watcher_image], api_flags=audit.flags) as started:
        with started.plane.cluster() as cluster:
            cluster.apply_crds()
        yield started


@pytest.fixture(scope="session")
def pubsub(tmp_path_factory: pytest.TempPathFactory, node: Node) -> Iterator[PubSub]:
    """Google's emulator where the machine has it, else pstest; where pods reach it."""
    folder = tmp_path_factory.mktemp("pubsub")
    with PubSub.official(folder, ADDRESS) or PubSub.pstest(folder, ADDRESS) as server:
        yield server


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory, node: Node) -> Iterator[FakeGcsServer]:
    """A Cloud Storage with one bucket, where pods reach it."""
    with FakeGcsServer(tmp_path_factory.mktemp("gcs"), ADDRESS) as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture(scope="session")
def place(
    tmp_path_factory: pytest.TempPathFactory, node: Node, watcher_image: Image, pubsub: PubSub, gcs: FakeGcsServer
) -> Place:
    """All of it."""
    return Place(node, watcher_image, pubsub, gcs, Logs(node.pod_logs, tmp_path_factory.mktemp("logs")))


@pytest.fixture(scope="session")
def _deployments(place: Place, request: pytest.FixtureRequest) -> list[Deployment]:
    """One for each test, made early: a CronJob owes no tick before its first minute is over."""
    wanted = [item for item in request.session.items if "deployment" in getattr(item, "fixturenames", [])]
    return [Deployment(place, f"argo-{number}") for number, _ in enumerate(wanted)]


@pytest.fixture
def deployment(_deployments: list[Deployment]) -> Deployment:
    """The manifest in a namespace that no other test uses; nothing is started yet."""
    return _deployments.pop()


@pytest.fixture
def work(node: Node, deployment: Deployment, tmp_path: Path) -> Iterator[Work]:
    """Workflows come, run and go in the deployment's namespace."""
    with Work(node.plane, deployment.namespace, tmp_path) as begun:
        yield begun
