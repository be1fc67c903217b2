"""Tests of what `doctor` says of the other sinks and stores, each broken in its own way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from redis import Redis

from job.ports import Check, Verdict
from job.settings import parse_address
from job.sinks.file import FileSink
from job.sinks.sqs import arn
from job.stores.file import FileStore
from job.stores.redis import PASSWORD, USERNAME, RedisStore
from tests.bed.cluster import Cluster
from tests.bed.control_plane import ControlPlane
from tests.bed.moto import CREDENTIALS, Moto
from tests.bed.process import free_port
from tests.bed.valkey import Valkey
from tests.doctor.seen import Diagnosis, diagnose, documented, same
from tests.fakes.access import nobody
from tests.fakes.api_faults import anything, refusal
from tests.fakes.api_proxy import ApiProxy
from tests.fakes.receiver import Receiver
from tests.fakes.sqs_proxy import NoAttributes, SqsProxy
from tests.manifest import as_service_account
from tests.program import Program
from tests.sinks.test_socket import certified

NAME = "workflow-watcher"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


class TestSqs:
    """Amazon's queues, which have no question about rights."""

    def look(self, program: Program, queue: str, **environment: str) -> Diagnosis:
        variables = {**CREDENTIALS, **environment}
        return diagnose(program, program.checkpoint, f"--sink=sqs:{queue}", environment=variables)

    def test_what_can_be_known(self, program: Program, moto: Moto) -> None:
        """The credentials and the queue; that the right to send cannot, is a warning."""
        queue = moto.create_queue("doctors.fifo")

        found = self.look(program, queue)

        assert (found.code, found.warned) == (0, ["right to send"])
        assert documented("sqs right unknown", found["right to send"])
        assert found["AWS credentials"].found == "found by env"
        assert found["queue doctors.fifo"].found.startswith("FIFO")
        assert moto.drain(queue) == []

    @pytest.mark.parametrize(
        ("host", "region"),
        [
            ("sqs.eu-west-1.amazonaws.com", "eu-west-1"),
            ("us-east-2.queue.amazonaws.com", "us-east-2"),
            ("localhost", "REGION"),
        ],
    )
    def test_the_arn_of_a_queue(self, host: str, region: str) -> None:
        """A simulation without it answers for no queue."""
        assert arn(f"https://{host}:443/123456789012/doctors.fifo") == f"arn:aws:sqs:{region}:123456789012:doctors.fifo"

    def test_an_absent_queue(self, program: Program, moto: Moto) -> None:
        """With the command that creates it."""
        queue = moto.create_queue("doctors").replace("doctors", "nothing.fifo")

        found = self.look(program, queue)

        assert (found.code, found.failed) == (78, ["queue nothing.fifo"])
        assert found["queue nothing.fifo"].remedy.startswith(
            "aws sqs create-queue --queue-name nothing.fifo --attributes FifoQueue=true"
        )

    def test_the_docs_show_it(self, program: Program, moto: Moto) -> None:
        """One without an order."""
        queue = moto.create_queue("doctors").replace("doctors", "changes")

        assert documented("no queue", self.look(program, queue)["queue changes"])

    def test_a_queue_that_may_not_be_seen(self, program: Program, moto: Moto) -> None:
        """A run needs no right but to send: that is a warning."""
        queue = moto.create_queue("doctors")
        with SqsProxy(moto.url) as proxy:
            proxy.inject(NoAttributes(403, "AccessDenied"))
            found = self.look(program, proxy.queue(queue))

        assert (found.code, found.warned) == (0, ["queue doctors", "right to send"])
        assert documented("queue unseen", found["queue doctors"])

    def test_a_queue_for_short_messages(self, program: Program, moto: Moto) -> None:
        """What is longer would be refused one by one."""
        queue = moto.create_queue("doctors-short", MaximumMessageSize="1024")

        assert documented("short messages", self.look(program, queue)["longest message"])

    def test_no_credentials(self, program: Program, moto: Moto) -> None:
        """As the run tells it."""
        queue = moto.create_queue("doctors")
        environment = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}

        found = self.look(program, queue, **environment)

        assert (found.code, found.failed) == (78, ["AWS credentials"])
        assert documented("no AWS credentials", found["AWS credentials"])

    def test_a_service_that_is_away(self, program: Program) -> None:
        """Nothing listens there."""
        found = self.look(program, f"http://127.0.0.1:{free_port()}/123456789012/changes")

        assert (found.code, found.failed) == (78, ["queue changes"])


class TestSocket:
    """A receiver of one's own."""

    def test_one_that_is_there_is_told_nothing(self, program: Program) -> None:
        """It is connected to, and left."""
        with Receiver() as receiver:
            found = diagnose(program, program.checkpoint, f"--sink={receiver.address}")
            received = receiver.stored

        assert (found.code, found["receiver"].verdict, received) == (0, Verdict.OK, [])

    def test_one_that_is_away(self, program: Program) -> None:
        """Nothing listens there."""
        found = diagnose(program, program.checkpoint, f"--sink=tcp://127.0.0.1:{free_port()}")

        assert (found.code, found.failed) == (78, ["receiver"])
        assert documented("no receiver", found["receiver"])

    def test_a_certificate_that_is_not_trusted(self, program: Program) -> None:
        """TLS is verified as a run does it."""
        with Receiver(tls=certified(trustme.CA())) as receiver:
            found = diagnose(program, program.checkpoint, f"--sink={receiver.address}")

        assert (found.code, found.failed) == (78, ["receiver"])
        assert documented("untrusted receiver", found["receiver"])

    def test_a_certificate_that_is_trusted(self, program: Program, tmp_path: Path) -> None:
        """It is said."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        with Receiver(tls=certified(authority)) as receiver:
            trusted = {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
            found = diagnose(program, program.checkpoint, f"--sink={receiver.address}", environment=trusted)

        assert found["receiver"].found.endswith("its certificate is trusted")


class TestFiles:
    """On this machine. (Tests may run as root, who may write everywhere: a folder of /proc is one where nobody may.)"""

    def test_a_sink_without_its_folder(self, program: Program, tmp_path: Path) -> None:
        """A run does not make it."""
        found = diagnose(program, program.checkpoint, f"--sink=file:{tmp_path}/absent/changes.jsonl")

        assert (found.code, found.failed) == (78, ["file"])
        assert documented("no folder", found["file"])
        assert not (tmp_path / "absent").exists()

    def test_a_sink_that_may_not_be_written(self, tmp_path: Path) -> None:
        """By this user."""
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o555)

        assert "may not be written" in as_nobody("job.sinks.file:FileSink", folder / "changes.jsonl")

    @pytest.mark.parametrize("adapter", [FileSink, FileStore])
    @pytest.mark.parametrize("name", ["x" * 300, "loop/changes.jsonl", "loop"], ids=["long", "in a loop", "loop"])
    def test_a_name_that_nobody_can_use(self, adapter: type[FileSink | FileStore], name: str, tmp_path: Path) -> None:
        """It is a finding, as a run ends with 78, and no bug."""
        (tmp_path / "loop").symlink_to("loop")

        (check,) = adapter(tmp_path / name).checks(5)

        assert check.verdict is Verdict.FAIL

    @pytest.mark.parametrize("adapter", ["job.sinks.file:FileSink", "job.stores.file:FileStore"])
    @pytest.mark.parametrize("mode", [0o700, 0o766])
    def test_a_folder_that_may_not_be_searched(self, adapter: str, mode: int, tmp_path: Path) -> None:
        """Nobody else can look whether the file is there."""
        folder = tmp_path / "locked"
        folder.mkdir()
        folder.chmod(mode)
        (folder / "changes.jsonl").touch(0o666)

        assert "cannot be looked at" in as_nobody(adapter, folder / "changes.jsonl")

    def test_a_sink_that_is_a_folder(self, tmp_path: Path) -> None:
        """To make that folder is no help."""
        (check,) = FileSink(tmp_path).checks(5)

        assert (check.verdict, check.remedy) == (Verdict.FAIL, "name a file")

    def test_a_file_that_is_there_needs_no_right_to_its_folder(self, tmp_path: Path) -> None:
        """But the one to search it."""
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o555)
        (folder / "changes.jsonl").touch()
        (folder / "changes.jsonl").chmod(0o666)

        assert ask_as_nobody("job.sinks.file:FileSink", folder / "changes.jsonl").startswith("ok ")

    def test_dead_letters_are_not_called_a_sink(self, program: Program, tmp_path: Path) -> None:
        """Nobody is sent to the wrong option."""
        found = diagnose(program, program.checkpoint, f"--dead-letter=file:{tmp_path}/absent/dead.jsonl")

        assert found.failed == ["file"]
        assert "sink" not in found["file"].remedy

    def test_a_checkpoint_whose_folder_is_a_file(self, program: Program, tmp_path: Path) -> None:
        """Nothing can be made there."""
        (tmp_path / "file").touch()
        found = diagnose(program, f"--checkpoint=file:{tmp_path}/file/checkpoint")

        assert (found.code, found.failed) == (78, ["checkpoint file"])
        assert documented("no folder for a checkpoint", found["checkpoint file"])

    def test_a_checkpoint_whose_folder_can_be_made(self, program: Program, tmp_path: Path) -> None:
        """A run makes it, and the doctor does not."""
        found = diagnose(program, f"--checkpoint=file:{tmp_path}/a/b/checkpoint")

        assert (found.code, (tmp_path / "a").exists()) == (0, False)

    def test_a_checkpoint_that_may_not_be_written(self, tmp_path: Path) -> None:
        """By this user."""
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o555)

        assert "may not be written" in as_nobody("job.stores.file:FileStore", folder / "checkpoint")


def as_nobody(adapter: str, path: Path) -> str:
    """What fails for the adapter of a file, asked by somebody who owns nothing."""
    found = ask_as_nobody(adapter, path)
    assert found.startswith("fail"), found
    return found


def ask_as_nobody(adapter: str, path: Path) -> str:
    module, _, name = adapter.partition(":")
    script = (
        "import os, sys; from pathlib import Path\n"
        f"from {module} import {name} as Adapter\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(*(f'{check.verdict} {check.found}' for check in Adapter(Path(sys.argv[1])).checks(5)))\n"
    )
    for folder in path.parents:  # those that pytest has made are for its user alone
        if folder.name.startswith("pytest-") or folder.parent.name.startswith("pytest-"):
            folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    return done.stdout


class TestConfigMap:
    """In the cluster that is watched."""

    @pytest.fixture
    def watcher(self, control_plane: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path) -> Program:
        """A service account that may watch, and nothing else."""
        cluster.bind(account(namespace), namespace, ["get", "list", "watch"])
        return as_service_account(control_plane, namespace, tmp_path)

    def look(self, program: Program, namespace: str) -> Diagnosis:
        return diagnose(program, f"--checkpoint=configmap://{namespace}/{NAME}")

    def create(self, cluster: Cluster, namespace: str) -> str:
        path = f"/api/v1/namespaces/{namespace}/configmaps"
        cluster.request("POST", path, {"metadata": {"name": NAME}})
        return f"{path}/{NAME}"

    def grant(self, cluster: Cluster, namespace: str, *verbs: str) -> None:
        cluster.bind(account(namespace), namespace, verbs, resources=["configmaps"], api_groups=[""])

    def test_one_that_is_there(self, watcher: Program, cluster: Cluster, namespace: str) -> None:
        """It stays as it is."""
        path = self.create(cluster, namespace)
        self.grant(cluster, namespace, "get", "patch")
        before = cluster.request("GET", path)

        found = self.look(watcher, namespace)

        assert (found.code, found.failed, found["ConfigMap"].verdict) == (0, [], Verdict.OK)
        assert cluster.request("GET", path) == before

    def test_an_absent_one(self, watcher: Program, cluster: Cluster, namespace: str) -> None:
        """With the command that creates it."""
        self.grant(cluster, namespace, "get", "patch")

        found = self.look(watcher, namespace)

        assert (found.code, found.failed) == (78, ["ConfigMap"])
        assert documented("no ConfigMap", found["ConfigMap"])

    @pytest.mark.parametrize("verb", ["get", "patch"])
    def test_a_right_that_is_missing(self, watcher: Program, cluster: Cluster, namespace: str, verb: str) -> None:
        """With the rule to add."""
        self.create(cluster, namespace)
        self.grant(cluster, namespace, *{"get", "patch"} - {verb})

        found = self.look(watcher, namespace)

        assert (found.code, found.failed) == (78, [f"right to {verb} the ConfigMap"])
        assert documented(f"no right to {verb} the ConfigMap", found[f"right to {verb} the ConfigMap"])

    @pytest.mark.parametrize("status", [403, 404])
    def test_a_review_that_is_refused(
        self, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, status: int
    ) -> None:
        """Then rights cannot be known, which is said; that the ConfigMap is there still is."""
        self.create(cluster, namespace)
        proxy.inject(refusal(status, "Refused", "no reviews here"), on=anything(REVIEWS), times=None)

        found = self.look(proxied, namespace)

        assert (found.code, found["ConfigMap"].verdict) == (0, Verdict.OK)
        assert [what for what in found.warned if "ConfigMap" in what] == [
            "right to get the ConfigMap",
            "right to patch the ConfigMap",
        ]

    @pytest.mark.parametrize("reviews", [True, False])
    def test_one_that_may_not_be_read(
        self, proxied: Program, proxy: ApiProxy, cluster: Cluster, namespace: str, *, reviews: bool
    ) -> None:
        """Whatever the reviews say: as a run, it fails."""
        self.create(cluster, namespace)
        if not reviews:
            proxy.inject(refusal(403, "Forbidden", "no reviews here"), on=anything(REVIEWS), times=None)
        proxy.inject(refusal(403, "Forbidden", "not for you"), on=anything("/configmaps/"), times=None)

        found = self.look(proxied, namespace)

        assert (found.code, found.failed) == (78, ["ConfigMap"])

    def test_an_api_server_that_is_away(self, control_plane: ControlPlane, tmp_path: Path) -> None:
        """It fails for both that need it."""
        program = Program(control_plane.kubeconfig(server=f"https://127.0.0.1:{free_port()}"), tmp_path)

        assert self.look(program, "argo").failed == ["API server", "ConfigMap"]


def account(namespace: str) -> str:
    return f"system:serviceaccount:{namespace}:workflow-watcher"


class TestRedis:
    """A Redis of this test's own, whose users and settings it changes."""

    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[Valkey]:
        with Valkey(tmp_path) as server:
            yield server

    @pytest.fixture
    def admin(self, server: Valkey) -> Iterator[Redis]:
        with server.client() as client:
            yield client

    def look(self, server: Valkey) -> dict[str, Check]:
        store = RedisStore.at(parse_address(server.url("checkpoint"), "checkpoint", ["redis"]), nobody())
        return {check.what.partition(" at ")[0]: check for check in store.checks(5)}

    def failed(self, server: Valkey) -> list[str]:
        return [what for what, check in self.look(server).items() if check.verdict is Verdict.FAIL]

    def log_in(self, admin: Redis, monkeypatch: pytest.MonkeyPatch, *rules: str) -> None:
        user = ("watcher", "on", ">secret", "resetkeys", "~checkpoint", "-@all")
        admin.execute_command("ACL", "SETUSER", *user, *rules)  # type: ignore[no-untyped-call]
        monkeypatch.setenv(USERNAME, "watcher")
        monkeypatch.setenv(PASSWORD, "secret")

    def test_one_that_is_there(self, server: Valkey, admin: Redis) -> None:
        """The key can be set, each change goes to disk, and nothing was set."""
        found = self.look(server)

        assert [check.verdict for check in found.values()] == [Verdict.OK] * 3
        assert "appendfsync always" in found["persistence"].found
        assert admin.keys() == []

    def test_by_the_program(self, program: Program, server: Valkey) -> None:
        """As one of its stores."""
        found = diagnose(program, f"--checkpoint={server.url('checkpoint')}")

        assert (found.code, found.warned, found["right to save"].verdict) == (0, [], Verdict.OK)

    def test_one_that_is_away(self, program: Program, server: Valkey) -> None:
        """Nothing listens there."""
        url = server.url("checkpoint")
        server.kill()

        found = diagnose(program, f"--checkpoint={url}")

        (what,) = found.failed
        assert found.code == 78
        assert documented("no Redis", found[what])

    def test_a_replica_takes_no_checkpoint(self, server: Valkey, admin: Redis) -> None:
        """It may be read, and scripts are run; but the one that saves would be refused."""
        admin.config_set("replica-serve-stale-data", "yes")
        admin.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]

        assert self.failed(server) == ["right to save"]

    def test_keys_without_an_expiry_are_spared(self, server: Valkey, admin: Redis) -> None:
        """A volatile policy drops others."""
        admin.config_set("maxmemory", "100mb")
        admin.config_set("maxmemory-policy", "volatile-lru")

        assert self.look(server)["persistence"].verdict is Verdict.OK

    def test_one_that_wants_a_password(self, server: Valkey, admin: Redis) -> None:
        """It says NOAUTH."""
        admin.config_set("requirepass", "secret")

        (check,) = self.look(server).values()
        assert documented("no log-in", check)

    def test_the_rights_of_the_docs_are_enough(
        self, server: Valkey, admin: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who has no others cannot see how the server persists, which is no failure."""
        self.log_in(admin, monkeypatch, "+get", "+set", "+eval", "+select")

        assert [check.verdict for check in self.look(server).values()] == [Verdict.OK] * 3

    @pytest.mark.parametrize(
        ("rules", "what"),
        [
            (["+set", "+eval", "+select"], "Redis"),
            (["+get", "+eval", "+select"], "right to save"),
            (["+get", "+set", "+select"], "right to save"),
        ],
        ids=["get", "set", "eval"],
    )
    def test_a_right_that_is_missing(
        self, server: Valkey, admin: Redis, monkeypatch: pytest.MonkeyPatch, rules: list[str], what: str
    ) -> None:
        """A script that changes nothing finds it out."""
        self.log_in(admin, monkeypatch, *rules)

        assert self.failed(server) == [what]

    def test_the_docs_show_it(self, server: Valkey, admin: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        """For the right to set."""
        self.log_in(admin, monkeypatch, "+get", "+eval", "+select")

        assert documented("no right to save", self.look(server)["right to save"])

    @pytest.mark.parametrize(
        ("settings", "kind"),
        [
            ({"appendonly": "no", "save": ""}, "no persistence"),
            ({"appendonly": "no", "save": "60 1"}, "snapshots only"),
            ({"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}, "eviction"),
        ],
        ids=["none", "snapshots", "eviction"],
    )
    def test_one_that_may_lose_the_key(self, server: Valkey, admin: Redis, settings: dict[str, str], kind: str) -> None:
        """It works, and is a warning."""
        for name, value in settings.items():
            admin.config_set(name, value)

        found = self.look(server)

        assert found["persistence"].verdict is Verdict.WARN
        assert documented(kind, found["persistence"])


def test_what_differs_is_made_the_same() -> None:
    """Ports, uids and temporary folders are not what is documented."""
    assert (
        same(f"https://127.0.0.1:1234 in {os.sep}tmp/x/y/z, argo-12") == "https://10.0.0.1 in /var/lib/watcher/z, argo"
    )
