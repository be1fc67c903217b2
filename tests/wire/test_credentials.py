"""Tests of the whole program where Google's credentials come late, are refused, or are not there.

The sink is the real Pub/Sub, which no test reaches: nothing happens in the namespace, and nothing is published.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError, TransportError

from job.credentials import passes
from job.errors import ExitCode
from tests.bed.cluster import Cluster
from tests.fakes.api_faults import lists, watches
from tests.fakes.api_proxy import ApiProxy
from tests.fakes.metadata_server import MetadataServer
from tests.program import Program
from tests.wire.told import SOON, Log, SinkFile

SINK = "--sink=pubsub://p/changes"
POD = {"KUBERNETES_SERVICE_HOST": "127.0.0.1"}
"""What google-auth's caller takes for a pod; without a token file the program still uses the kubeconfig."""
FOREIGN = ("GOOGLE_", "CLOUDSDK_", "GCE_", "NO_GCE_", "PUBSUB_", "STORAGE_", "AWS_")
"""Variables through which credentials of this machine could be found."""
BOTH_OPEN = """
from datetime import timedelta
from job import wiring
from job.access import Access
from job.credentials import GoogleCredentials
from job.run.deadline import Deadline
from job.settings import parse_address

access = Access(GoogleCredentials(Deadline(timedelta(seconds=55))))
wiring.store(parse_address("gs://bucket/checkpoint", "checkpoint", wiring.STORES), access).open()
wiring.sink(parse_address("pubsub://p/changes", "sink", wiring.SINKS), access).open()
"""
VENDORS_OF_A_RUN = """
import sys
from job.cli import main
sys.argv = ["workflow-watcher", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    print(end.code, *sorted(sys.modules), file=sys.stderr)
"""


@pytest.fixture
def metadata() -> Iterator[MetadataServer]:
    with MetadataServer() as server:
        yield server


def on_its_own(program: Program, metadata: MetadataServer) -> Program:
    """The program where there are no credentials but those of this metadata server."""
    for name in [name for name in program.environment if name.startswith(FOREIGN)]:
        del program.environment[name]
    program.environment |= {"GCE_METADATA_HOST": metadata.address, "GCE_METADATA_IP": metadata.address}
    return program


@pytest.fixture
def machine(proxied: Program, metadata: MetadataServer) -> Program:
    """The program outside a pod."""
    return on_its_own(proxied, metadata)


@pytest.fixture
def pod(machine: Program) -> Program:
    """The program in a pod."""
    machine.environment |= POD
    return machine


@pytest.fixture(scope="session")
def private_key() -> str:
    """An RSA key, PEM."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem.decode()


@pytest.fixture
def key_file(machine: Program, metadata: MetadataServer, private_key: str, tmp_path: Path) -> Path:
    """A service account's key that the program is told of, and that is exchanged at the fake."""
    key = {
        "type": "service_account",
        "project_id": "p",
        "private_key_id": "1",
        "private_key": private_key,
        "client_email": "watcher@p.iam.gserviceaccount.com",
        "token_uri": metadata.token_uri,
    }
    return name_credentials(machine, tmp_path, json.dumps(key))


def name_credentials(program: Program, folder: Path, content: str) -> Path:
    """Write a file of credentials, and tell the program of it."""
    file = folder / "credentials.json"
    file.write_text(content, encoding="utf-8")
    program.environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(file)
    return file


def test_the_credentials_are_fetched_before_the_watch_opens(
    pod: Program, metadata: MetadataServer, proxy: ApiProxy
) -> None:
    """One token, asked for before anything of the API server."""
    outcome = pod.run("--window=3s", SINK, pod.checkpoint)

    (token,) = metadata.tokens
    assert (outcome.code, outcome.summary["saved"]) == (0, True)
    assert all(request.at > token.at for request in proxy.wait_for(watches()))
    assert all(request.at > token.at for request in proxy.wait_for(lists()))


def test_sink_and_store_share_one_token(pod: Program, metadata: MetadataServer) -> None:
    """Both are opened with what was fetched once."""
    subprocess.run([sys.executable, "-c", BOTH_OPEN], env=pod.environment, timeout=60, check=True)

    assert len(metadata.tokens) == 1


def test_a_metadata_server_that_is_not_ready_is_waited_for(
    pod: Program, metadata: MetadataServer, proxy: ApiProxy
) -> None:
    """It refuses connections, as in the first seconds of a pod; once it answers, the run goes on and ends with 0."""
    metadata.down()
    with pod.start("--window=0s", SINK, pod.checkpoint) as running:
        log = Log(running)
        log.wait_for("credentials.retry")
        asked = proxy.requests
        metadata.up()
        outcome = log.finish()

    assert (outcome.code, outcome.summary["saved"], len(metadata.tokens), asked) == (0, True, 1, ())


@pytest.mark.parametrize(
    "status", [HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE], ids=str
)
def test_an_identity_that_is_not_ready_is_waited_for(
    pod: Program, metadata: MetadataServer, status: HTTPStatus
) -> None:
    """The metadata server is there and has no token yet; once it has, the run goes on and ends with 0."""
    metadata.token_status = status
    with pod.start("--window=0s", SINK, pod.checkpoint) as running:
        log = Log(running)
        retry = log.wait_for("credentials.retry")
        metadata.token_status = HTTPStatus.OK
        outcome = log.finish()

    assert (outcome.code, outcome.summary["saved"]) == (0, True)
    assert str(int(status)) in retry["message"]


def test_a_pod_without_a_metadata_server_is_for_a_person(
    pod: Program, metadata: MetadataServer, proxy: ApiProxy
) -> None:
    """78 after 20 seconds: no watch was opened, and the message names Workload Identity."""
    metadata.down()
    outcome = pod.run("--window=55s", SINK, pod.checkpoint)

    *retries, summary = outcome.lines
    assert (outcome.code, {line["event"] for line in retries}) == (ExitCode.ACTION_NEEDED, {"credentials.retry"})
    assert "Workload Identity" in summary["message"]
    assert (proxy.requests, pod.checkpoint_file.exists()) == ((), False)


def test_a_metadata_server_that_stays_out_of_order_is_left_to_the_next_run(
    pod: Program, metadata: MetadataServer, proxy: ApiProxy
) -> None:
    """75 after 20 seconds: there is one, and it may answer again."""
    metadata.token_status = HTTPStatus.SERVICE_UNAVAILABLE
    outcome = pod.run("--window=55s", SINK, pod.checkpoint)

    assert outcome.code == ExitCode.TEMPORARY
    assert "answered 503" in outcome.summary["message"]
    assert (proxy.requests, pod.checkpoint_file.exists()) == ((), False)


def test_a_signal_ends_the_wait_for_a_metadata_server(pod: Program, metadata: MetadataServer, proxy: ApiProxy) -> None:
    """SIGTERM ends the run long before its window, with 0; nothing was begun."""
    metadata.down()
    with pod.start("--window=120s", SINK, pod.checkpoint) as running:
        log = Log(running)
        log.wait_for("credentials.retry")
        running.send(signal.SIGTERM)
        outcome = log.finish(SOON)

    assert (outcome.code, outcome.summary["saved"]) == (0, False)
    assert "signal" in outcome.summary["message"]
    assert (proxy.requests, pod.checkpoint_file.exists()) == ((), False)


def test_a_machine_without_credentials_is_told_at_once(
    machine: Program, metadata: MetadataServer, proxy: ApiProxy
) -> None:
    """78 without another attempt, and one line, which names the command that gets credentials."""
    metadata.down()
    outcome = machine.run("--window=55s", SINK, machine.checkpoint)

    (line,) = outcome.lines
    assert (outcome.code, proxy.requests) == (ExitCode.ACTION_NEEDED, ())
    assert "gcloud auth application-default login" in line["message"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="missing"),
        pytest.param("", id="empty"),
        pytest.param('{"type": "service_', id="cut"),
        pytest.param("[]", id="a-list"),
        pytest.param("{}", id="no-type"),
        pytest.param('{"type": "service_account"}', id="no-key"),
        pytest.param('{"type": "external_account", "credential_source": []}', id="not-an-identity-pool"),
    ],
)
def test_a_file_of_credentials_that_is_none_is_for_a_person(
    machine: Program, tmp_path: Path, proxy: ApiProxy, content: str | None
) -> None:
    """78 at once, also in a pod, and one line, which names the file."""
    file = name_credentials(machine, tmp_path, content or "")
    if content is None:
        file.unlink()
    outcome = machine.run("--window=55s", SINK, machine.checkpoint, environment=POD)

    (line,) = outcome.lines
    assert (outcome.code, proxy.requests) == (ExitCode.ACTION_NEEDED, ())
    assert f"{file}, which GOOGLE_APPLICATION_CREDENTIALS names" in line["message"]


def test_a_folder_of_credentials_is_for_a_person(machine: Program, tmp_path: Path) -> None:
    """78 also where the file cannot be read, as one that is a folder."""
    outcome = machine.run(SINK, machine.checkpoint, environment={"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path)})

    (line,) = outcome.lines
    assert outcome.code == ExitCode.ACTION_NEEDED
    assert f"{tmp_path}, which GOOGLE_APPLICATION_CREDENTIALS names" in line["message"]


def test_a_key_is_exchanged_for_a_token(machine: Program, metadata: MetadataServer, key_file: Path) -> None:
    """Once, where its file says, and no metadata server is asked."""
    outcome = machine.run("--window=0s", SINK, machine.checkpoint)

    assert (outcome.code, outcome.summary["saved"]) == (0, True)
    assert (len(metadata.tokens), metadata.requests) == (1, metadata.tokens)


def test_a_key_that_is_refused_is_for_a_person(
    machine: Program, metadata: MetadataServer, key_file: Path, proxy: ApiProxy
) -> None:
    """78 after one attempt, with what was answered and the name of the key's file."""
    metadata.token_status = HTTPStatus.BAD_REQUEST
    outcome = machine.run("--window=55s", SINK, machine.checkpoint)

    (line,) = outcome.lines
    assert (outcome.code, len(metadata.tokens), proxy.requests) == (ExitCode.ACTION_NEEDED, 1, ())
    assert "invalid_grant: Invalid JWT Signature." in line["message"]
    assert str(key_file) in line["message"]


def test_a_token_endpoint_that_is_away_is_asked_again(
    machine: Program, metadata: MetadataServer, key_file: Path
) -> None:
    """It answers 503, then a token: the run ends with 0."""
    metadata.token_status = HTTPStatus.SERVICE_UNAVAILABLE
    with machine.start("--window=0s", SINK, machine.checkpoint) as running:
        log = Log(running)
        log.wait_for("credentials.retry")
        metadata.token_status = HTTPStatus.OK
        outcome = log.finish()

    assert (outcome.code, outcome.summary["saved"]) == (0, True)


def test_a_token_endpoint_that_stays_away_is_for_the_next_run(
    machine: Program, metadata: MetadataServer, key_file: Path, proxy: ApiProxy
) -> None:
    """75 after some attempts: nobody needs to act."""
    metadata.down()
    outcome = machine.run("--window=55s", SINK, machine.checkpoint)

    assert (outcome.code, proxy.requests) == (ExitCode.TEMPORARY, ())
    assert {line["event"] for line in outcome.lines[:-1]} == {"credentials.retry"}


def test_an_emulator_needs_no_credentials(pod: Program, metadata: MetadataServer) -> None:
    """Nobody is asked for a token for `PUBSUB_EMULATOR_HOST`."""
    outcome = pod.run("--window=0s", SINK, pod.checkpoint, environment={"PUBSUB_EMULATOR_HOST": metadata.address})

    assert (outcome.code, metadata.requests) == (0, [])


@pytest.mark.parametrize("sink", ["file", "stdout"])
def test_a_run_without_the_cloud_knows_nothing_of_it(
    *, pod: Program, metadata: MetadataServer, cluster: Cluster, namespace: str, sink_file: SinkFile, sink: str
) -> None:
    """Runs with local sinks and stores ask for no credentials, and import nothing of Pub/Sub and Cloud Storage."""
    cluster.create(namespace, "first")
    option = sink_file.option if sink == "file" else "--sink=stdout:"
    outcome = subprocess.run(
        [sys.executable, "-c", VENDORS_OF_A_RUN, "run", "--window=0s", option, pod.checkpoint],
        env=pod.environment,
        cwd=pod.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    code, *modules = outcome.stderr.splitlines()[-1].split()
    assert (code, metadata.requests) == ("0", [])
    assert {"grpc", "google.pubsub_v1", "google.cloud.storage", "google.auth.compute_engine"} & set(modules) == set()
    assert "job.credentials" in modules


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TransportError("connection refused"), True),
        (RefreshError(TransportError("connection refused")), True),
        (RefreshError("unavailable", retryable=True), True),
        (RefreshError("invalid_grant"), False),
        (DefaultCredentialsError("there are none"), False),
    ],
    ids=repr,
)
def test_a_connection_that_failed_may_be_tried_again(error: GoogleAuthError, expected: bool) -> None:
    """Wherever it shows: google-auth itself calls only some of these retryable."""
    assert passes(error) is expected
