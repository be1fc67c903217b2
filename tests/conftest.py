"""A real control plane for the whole session, and a namespace and a program of its own for each test.

Google Cloud is there as several servers, none of which is the service: what served which tests is told at the end.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.bed.gcs import FakeGcsServer
from tests.bed.moto import Moto
from tests.bed.pubsub import PubSub
from tests.bed.valkey import Valkey
from tests.bed.workflow_controller import WorkflowController
from tests.contracts.matrix import Matrix
from tests.fakes.api_proxy import ApiProxy
from tests.fakes.gcs_server import GcsServer
from tests.manifest import Trial, deploy, under_restricted
from tests.program import Program

# Times are never asserted, Hypothesis' own included.
hypothesis.settings.register_profile("untimed", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("untimed")

_numbers = itertools.count(1)
SERVED = pytest.StashKey[Counter[str]]()
"""How many tests each of the servers of queues and stores has served."""
CONTRACTS = pytest.StashKey[Matrix]()
"""Which clauses of the ports' contracts each adapter has passed."""


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count."""
    config.stash[SERVED] = Counter()
    config.stash[CONTRACTS] = Matrix()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Enter what has become of the clauses of contracts."""
    report = yield
    item.config.stash[CONTRACTS].add(item, report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Tell which servers have served, and which adapters keep their contracts."""
    for line in config.stash[CONTRACTS].lines():
        terminalreporter.write_line(line)
    for name, count in sorted(config.stash[SERVED].items()):
        terminalreporter.write_line(f"served {count} tests: {name}")


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd and kube-apiserver with the Argo CRDs. A test may restart them, and waits until they are back."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane")) as plane:
        with plane.cluster() as cluster:
            cluster.apply_crds()
        yield plane


@pytest.fixture
def own_control_plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """One for a test that rewinds the cluster or replaces its definitions."""
    with ControlPlane(tmp_path / "control-plane") as plane:
        with plane.cluster() as cluster:
            cluster.apply_crds()
            cluster.create_namespace("argo")
        yield plane


@pytest.fixture
def cluster(control_plane: ControlPlane) -> Iterator[Cluster]:
    """The administrator's connection."""
    with control_plane.cluster() as connection:
        yield connection


@pytest.fixture
def namespace(cluster: Cluster) -> str:
    """A namespace that no other test uses."""
    name = f"argo-{next(_numbers)}"
    cluster.create_namespace(name)
    return name


@pytest.fixture
def workflow_controller(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[WorkflowController]:
    """The controller of Argo Workflows, at work in the test's namespace."""
    with WorkflowController(control_plane, namespace, tmp_path) as controller:
        yield controller


@pytest.fixture
def program(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Program:
    """The program with a kubeconfig whose current context is the test's namespace."""
    return Program(control_plane.kubeconfig(namespace=namespace), tmp_path)


@pytest.fixture
def trial(control_plane: ControlPlane, cluster: Cluster, namespace: str) -> Iterator[Trial]:
    """The API server's opinion of objects, in a namespace that enforces `restricted`."""
    with under_restricted(control_plane, cluster, namespace) as opened:
        yield opened


@pytest.fixture
def deployed(control_plane: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path) -> Program:
    """The program as the manifest's service account, in the test's namespace."""
    return deploy(control_plane, cluster, namespace, tmp_path)


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Iterator[ApiProxy]:
    """What a test puts between the program and the API server, to make it answer otherwise."""
    with ApiProxy(control_plane.url, control_plane.ca_file) as between:
        yield between


@pytest.fixture
def proxied(control_plane: ControlPlane, namespace: str, tmp_path: Path, proxy: ApiProxy) -> Program:
    """The program with a kubeconfig that leads through the proxy."""
    return Program(control_plane.kubeconfig(namespace=namespace, server=proxy.url), tmp_path)


@pytest.fixture(scope="session")
def _official_pubsub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PubSub | None]:
    server = PubSub.official(tmp_path_factory.mktemp("pubsub-emulator"))
    if server is None:
        yield None
        return
    with server:
        yield server


@pytest.fixture(scope="session")
def _pstest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PubSub]:
    with PubSub.pstest(tmp_path_factory.mktemp("pstest")) as server:
        yield server


@pytest.fixture
def official_pubsub(_official_pubsub: PubSub | None, pytestconfig: pytest.Config) -> PubSub:
    """Google's emulator of Pub/Sub; a test that needs it is left out where the machine has none."""
    if _official_pubsub is None:
        pytest.skip("this machine has no Pub/Sub emulator of Google's, which is a component of gcloud and needs Java")
    pytestconfig.stash[SERVED][_official_pubsub.name] += 1
    return _official_pubsub


@pytest.fixture
def pstest(_pstest: PubSub, pytestconfig: pytest.Config) -> PubSub:
    """The Pub/Sub that Google's Go client is tested with."""
    pytestconfig.stash[SERVED][_pstest.name] += 1
    return _pstest


@pytest.fixture(params=["official_pubsub", "pstest"])
def any_pubsub(request: pytest.FixtureRequest) -> PubSub:
    """Both, one after the other."""
    server: PubSub = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def pubsub(_official_pubsub: PubSub | None, request: pytest.FixtureRequest) -> PubSub:
    """The better Pub/Sub of the two that the machine has."""
    found: PubSub = request.getfixturevalue("official_pubsub" if _official_pubsub else "pstest")
    return found


@pytest.fixture(scope="session")
def _fake_gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcsServer]:
    with FakeGcsServer(tmp_path_factory.mktemp("fake-gcs-server")) as server:
        yield server


@pytest.fixture
def fake_gcs_server(_fake_gcs_server: FakeGcsServer, pytestconfig: pytest.Config) -> FakeGcsServer:
    """Somebody else's Google Cloud Storage."""
    pytestconfig.stash[SERVED][_fake_gcs_server.name] += 1
    return _fake_gcs_server


@pytest.fixture(scope="session")
def _moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    with Moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture
def moto(_moto: Moto, pytestconfig: pytest.Config) -> Moto:
    """Amazon's queues."""
    pytestconfig.stash[SERVED][_moto.name] += 1
    return _moto


@pytest.fixture(scope="session")
def _valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def valkey(_valkey: Valkey, pytestconfig: pytest.Config) -> Valkey:
    """A Redis."""
    pytestconfig.stash[SERVED][_valkey.name] += 1
    return _valkey


@pytest.fixture
def gcs(pytestconfig: pytest.Config) -> Iterator[GcsServer]:
    """A Google Cloud Storage of ours, with the service's preconditions and rights, and faults on demand."""
    with GcsServer() as server:
        pytestconfig.stash[SERVED][server.name] += 1
        yield server


@pytest.fixture(params=["gcs", "fake_gcs_server"], ids=["ours", "fake-gcs-server"])
def any_gcs(request: pytest.FixtureRequest) -> GcsServer | FakeGcsServer:
    """Both, one after the other."""
    server: GcsServer | FakeGcsServer = request.getfixturevalue(request.param)
    return server
