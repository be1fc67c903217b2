"""Tests of the program in its image, with every adapter: a real API server, and the servers of queues and stores."""

from __future__ import annotations

import base64
import itertools
import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from google.pubsub_v1.types import PubsubMessage

from job import checkpoint as codec
from job.message import binary
from job.stores.configmap import KEY
from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.bed.moto import CREDENTIALS, Moto
from tests.bed.pubsub import PubSub, cloud_event
from tests.bed.valkey import Valkey
from tests.bed.waiting import wait_until
from tests.fakes.gcs_server import GcsServer
from tests.fakes.receiver import Receiver
from tests.image.container import FILES, Containers
from tests.payload.test_nodes import COMPRESSORS, NODES, packed
from tests.wire.cloud import emulators
from tests.wire.told import SOON, id_of, ids

pytestmark = pytest.mark.cluster

ACCOUNT = "watcher"
BUCKET, NAME = "checkpoints", "prod.json.gz"
CATCH_UP = "--window=0s"
KUBECONFIG = f"--kubeconfig={FILES}/kubeconfig"
NO_STATE = "--checkpoint=file:/tmp/checkpoint.json.gz"
_topics = (f"image-{number}" for number in itertools.count(1))
_queues = (f"image-{number}" for number in itertools.count(1))


class Kubeconfig:
    """A kubeconfig in the container, with one login or another of the administrator."""

    def __init__(self, containers: Containers, control_plane: ControlPlane, namespace: str) -> None:
        self._plane, self._namespace, self._files = control_plane, namespace, containers.files
        self.log_in({"token": control_plane.token("admin")})

    def log_in(self, user: dict[str, Any]) -> None:
        """Replace the login."""
        config: dict[str, Any] = yaml.safe_load(self._plane.kubeconfig(namespace=self._namespace).read_text())
        authority = base64.b64encode(self._plane.ca_file.read_bytes()).decode()
        config["clusters"][0]["cluster"] = {"server": self._plane.url, "certificate-authority-data": authority}
        config["users"][0]["user"] = user
        (self._files / "kubeconfig").write_text(yaml.safe_dump(config))


@pytest.fixture
def kubeconfig(containers: Containers, control_plane: ControlPlane, namespace: str) -> Kubeconfig:
    return Kubeconfig(containers, control_plane, namespace)


@pytest.fixture
def pod(containers: Containers, control_plane: ControlPlane, cluster: Cluster, namespace: str) -> Iterator[Containers]:
    """Containers with the files of a service account, which may list and watch."""
    containers.account = containers.files.with_name("account")
    address = control_plane.pod_files(namespace, ACCOUNT, containers.account)
    containers.environment |= {**address, "WATCHER_CLUSTER": "bed"}
    user = f"system:serviceaccount:{namespace}:{ACCOUNT}"
    cluster.bind(user, namespace, ["list", "watch"])
    yield containers
    cluster.unbind(user, namespace)


def test_a_pod_publishes_to_pubsub_and_saves_to_cloud_storage(
    pod: Containers, cluster: Cluster, namespace: str, pstest: PubSub, gcs: GcsServer
) -> None:
    """With the variables of cronjob.yaml and nothing else; the second run goes on where the first one stopped."""
    topic = pstest.create_topic(next(_topics))
    subscription = pstest.create_subscription(topic)
    gcs.create_bucket(BUCKET)
    pod.environment |= {
        **emulators(pstest.address, gcs.url),
        "WATCHER_SINK": f"pubsub://p/{topic.rpartition('/')[2]}",
        "WATCHER_CHECKPOINT": f"gs://{BUCKET}/{NAME}",
        "WATCHER_WINDOW": "0s",
    }
    first = cluster.create(namespace, "first")
    started = pod.run("run")
    second = cluster.create(namespace, "second")
    resumed = pod.run("run")

    assert (started.code, started.summary["start"]) == (0, "first"), started.stderr
    assert (resumed.code, resumed.summary["start"]) == (0, "resumed")
    told = {cloud_event(received).attributes["id"] for received in subscription.pull(2)}
    assert told == {id_of(first), id_of(second)}


def test_a_pod_saves_to_a_configmap_and_sends_to_a_socket(pod: Containers, cluster: Cluster, namespace: str) -> None:
    """The generated client reads and patches a ConfigMap, with the group of the API that was left."""
    user = f"system:serviceaccount:{namespace}:{ACCOUNT}"
    cluster.bind(user, namespace, ["get", "patch"], resources=["configmaps"], api_groups=[""])
    collection = f"/api/v1/namespaces/{namespace}/configmaps"
    cluster.request("POST", collection, {"metadata": {"name": "position"}, "data": {"other": "people's"}})
    created = cluster.create(namespace, "a")
    with Receiver() as receiver:
        checkpoint = f"--checkpoint=configmap://{namespace}/position"
        outcome = pod.run("run", CATCH_UP, f"--sink={receiver.address}", checkpoint)
        again = pod.run("run", CATCH_UP, f"--sink={receiver.address}", checkpoint)

    assert (outcome.code, receiver.ids) == (0, [id_of(created)]), outcome.stderr
    assert (again.code, again.summary["start"]) == (0, "resumed")
    stored = cluster.request("GET", f"{collection}/position")["binaryData"][KEY]
    assert list(codec.decode(base64.b64decode(stored)).inventory) == [created["metadata"]["uid"]]


def test_a_missing_configmap_is_told(pod: Containers, cluster: Cluster, namespace: str) -> None:
    """An error of the API server's is understood with what is left of the client."""
    user = f"system:serviceaccount:{namespace}:{ACCOUNT}"
    cluster.bind(user, namespace, ["get", "patch"], resources=["configmaps"], api_groups=[""])
    outcome = pod.run("run", CATCH_UP, "--sink=stdout:", f"--checkpoint=configmap://{namespace}/none")

    assert outcome.code == 78
    assert "kubectl create configmap" in outcome.summary["message"]


def test_a_pod_is_stopped_by_sigterm(pod: Containers, cluster: Cluster, namespace: str) -> None:
    """As the first process of its container, to which the kernel sends no signal that it has not asked for."""
    created = cluster.create(namespace, "a")
    with (
        Receiver() as receiver,
        pod.running("run", "--window=120s", f"--sink={receiver.address}", NO_STATE) as running,
    ):
        wait_until(lambda: receiver.ids == [id_of(created)], SOON, "the first message")
        running.send(signal.SIGTERM)
        outcome = running.finish()

    assert (outcome.code, outcome.summary["saved"]) == (0, True)


@pytest.mark.parametrize("web_identity", [False, True], ids=["keys", "web-identity"])
def test_amazons_queue_takes_messages(
    *, containers: Containers, kubeconfig: Kubeconfig, cluster: Cluster, namespace: str, moto: Moto, web_identity: bool
) -> None:
    """With keys of its own, or with those that a pod of Amazon's gets for its service account's token."""
    environment = dict(CREDENTIALS)
    if web_identity:
        (containers.files / "token").write_text("a.b.c")
        environment = {
            "AWS_DEFAULT_REGION": "eu-west-1",
            "AWS_ENDPOINT_URL_STS": moto.url,
            "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/watcher",
            "AWS_WEB_IDENTITY_TOKEN_FILE": f"{FILES}/token",
        }
    queue = moto.create_queue(next(_queues))
    created = cluster.create(namespace, "a")
    outcome = containers.run("run", CATCH_UP, KUBECONFIG, f"--sink=sqs:{queue}", NO_STATE, environment=environment)

    assert outcome.code == 0, outcome.stderr
    assert [json.loads(body)["id"] for body in moto.drain(queue)] == [id_of(created)]


def test_redis_keeps_the_position(
    containers: Containers, kubeconfig: Kubeconfig, cluster: Cluster, namespace: str, valkey: Valkey
) -> None:
    """The second run resumes, with nothing on its own disk."""
    options = ("run", CATCH_UP, KUBECONFIG, "--sink=stdout:", f"--checkpoint={valkey.url(f'image/{namespace}')}")
    first = cluster.create(namespace, "first")
    started = containers.run(*options)
    second = cluster.create(namespace, "second")
    resumed = containers.run(*options)

    assert (started.code, ids(started.messages)) == (0, [id_of(first)]), started.stderr
    assert (resumed.code, resumed.summary["start"], ids(resumed.messages)) == (0, "resumed", [id_of(second)])


@pytest.mark.parametrize("login", ["exec", "oidc", "gcp"])
def test_a_kubeconfig_logs_in(
    *,
    containers: Containers,
    kubeconfig: Kubeconfig,
    control_plane: ControlPlane,
    cluster: Cluster,
    namespace: str,
    login: str,
) -> None:
    """By a plug-in, or by what older kubeconfigs have in its place."""
    token = control_plane.token("admin")
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": token}}
    if login == "exec":
        (containers.files / "plugin.py").write_text(f"print({json.dumps(credential)!r})")
        plugin = {"command": "python3", "args": [f"{FILES}/plugin.py"], "interactiveMode": "Never"}
        kubeconfig.log_in({"exec": {"apiVersion": credential["apiVersion"], **plugin}})
    elif login == "oidc":
        # Any token with a time in it: the API server's own for a service account.
        files = containers.files.with_name("account")
        control_plane.pod_files(namespace, ACCOUNT, files)
        cluster.bind(f"system:serviceaccount:{namespace}:{ACCOUNT}", namespace, ["list", "watch"])
        provider = {"name": "oidc", "config": {"id-token": (files / "token").read_text()}}
        kubeconfig.log_in({"auth-provider": provider})
    else:
        config = {"access-token": token, "expiry": "2999-01-01T00:00:00Z"}
        kubeconfig.log_in({"auth-provider": {"name": "gcp", "config": config}})
    created = cluster.create(namespace, "a")
    outcome = containers.run("run", CATCH_UP, KUBECONFIG, NO_STATE)

    assert (outcome.code, ids(outcome.messages)) == (0, [id_of(created)]), outcome.stderr


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_a_summary_has_compressed_nodes(
    *, containers: Containers, kubeconfig: Kubeconfig, cluster: Cluster, namespace: str, compression: str
) -> None:
    """However Argo has compressed them."""
    cluster.create(namespace, "a")
    compressed = packed(NODES.encode(), COMPRESSORS[compression])
    cluster.patch(namespace, "a", {"status": {"nodes": None, "compressedNodes": compressed}})
    outcome = containers.run("run", CATCH_UP, KUBECONFIG, NO_STATE, "--payload=summary")

    assert outcome.code == 0, outcome.stderr
    assert "hunter2" in outcome.stdout.decode()


def test_what_exists_is_published_once_more(
    containers: Containers, kubeconfig: Kubeconfig, cluster: Cluster, namespace: str, gcs: GcsServer
) -> None:
    """By a backfill, with a bucket for dead letters."""
    gcs.create_bucket("dead")
    created = cluster.create(namespace, "a")
    options = ("--sink=stdout:", "--dead-letter=gs://dead/letters/")
    outcome = containers.run("backfill", KUBECONFIG, *options, environment={"STORAGE_EMULATOR_HOST": gcs.url})

    assert (outcome.code, ids(outcome.messages)) == (0, [id_of(created)]), outcome.stderr


def test_events_are_consumed(containers: Containers, pstest: PubSub) -> None:
    """By a command that somebody who builds on the image has added."""
    topic = pstest.create_topic(next(_topics))
    subscription = pstest.create_subscription(topic)
    event = {
        "specversion": "1.0",
        "id": "uid-a/1",
        "source": "/clusters/c/apis/argoproj.io/v1alpha1/workflows",
        "type": "io.argoproj.workflows.modified",
        "subject": "argo/a",
        "k8suid": "uid-a",
        "resourceversion": "1",
    }
    message = PubsubMessage(data=b"{}", attributes=binary(event))
    pstest.publisher.publish(topic=topic, messages=[message], retry=None, timeout=10)
    (containers.files / "command.py").write_text("import json, sys\nprint(json.load(sys.stdin)['id'], file=sys.stderr)")
    options = (f"--subscription={subscription.name}", CATCH_UP, "--", "python3", f"{FILES}/command.py")
    outcome = containers.run("consume", *options, environment={"PUBSUB_EMULATOR_HOST": pstest.address})

    assert outcome.code == 0, outcome.stderr
    assert "uid-a/1" in outcome.stderr
    assert subscription.drain() == []
