"""Tests of what `doctor` says of Google Cloud, with servers of ours that know rights: the emulators know none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from job.credentials import GoogleCredentials
from job.doctor import Brief
from job.google_storage_checks import CREATE, DELETE, GET
from job.ports import Check, Verdict
from job.sinks.gcs import GcsSink
from job.stores.gcs import GcsStore
from tests.bed.gcs import FakeGcsServer
from tests.bed.process import free_port
from tests.bed.pubsub import PubSub
from tests.doctor.seen import Diagnosis, diagnose, documented
from tests.fakes.access import nobody
from tests.fakes.gcs_api import Kind
from tests.fakes.gcs_faults import INTERNAL_ERROR, UNAUTHORIZED, Matcher, Stall, refusal
from tests.fakes.gcs_server import GcsServer
from tests.fakes.metadata_server import MetadataServer
from tests.fakes.publisher_server import PublisherServer
from tests.fakes.topic_rights import GET as SEE, PUBLISH
from tests.program import Program
from tests.wire.cloud import BUCKET, CHECKPOINT, NAME, SINK, TOPIC, emulators

SUBSCRIPTION = "projects/p/subscriptions/my-api"
DEAD_LETTER = "--dead-letter=gs://dead-letters/prod/"
OBJECT_RIGHTS = (GET, CREATE, DELETE)
LIST, BUCKETS = "storage.objects.list", "storage.buckets.get"
RIGHTS_QUESTION = Matcher((Kind.RIGHTS,), "")
SOFT_DELETE = {"softDeletePolicy": {"retentionDurationSeconds": "604800"}}


@pytest.fixture
def broker() -> Iterator[PublisherServer]:
    with PublisherServer(TOPIC) as server:
        server.rights.subscriptions[TOPIC] = [SUBSCRIPTION]
        yield server


@pytest.fixture(autouse=True)
def buckets(gcs: GcsServer) -> None:
    gcs.create_bucket(BUCKET)
    gcs.create_bucket("dead-letters")


class Cloud:
    """The program with a topic and a bucket."""

    def __init__(self, program: Program, broker: PublisherServer, gcs: GcsServer) -> None:
        self._program = program
        self._environment = emulators(broker.address, gcs.url)

    def diagnose(self, *options: str, **environment: str) -> Diagnosis:
        variables = {**self._environment, **environment}
        return diagnose(self._program, f"--sink={SINK}", CHECKPOINT, *options, environment=variables)


@pytest.fixture
def cloud(program: Program, broker: PublisherServer, gcs: GcsServer) -> Cloud:
    return Cloud(program, broker, gcs)


@pytest.fixture
def store(gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> GcsStore:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    return GcsStore(BUCKET, NAME, nobody().google)


@pytest.fixture
def dead_letters(gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> GcsSink:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    return GcsSink(BUCKET, "prod/", nobody().google)


def by_what(checks: Iterator[Check]) -> dict[str, Check]:
    return {check.what: check for check in checks}


def failed(checks: Iterator[Check]) -> list[str]:
    return [check.what for check in checks if check.verdict is Verdict.FAIL]


def test_nothing_is_published_and_nothing_is_stored(cloud: Cloud, broker: PublisherServer, gcs: GcsServer) -> None:
    """All is well, and the topic and both buckets are as they were: empty, also where a run would write to find out."""
    gcs.denied.add(LIST)
    found = cloud.diagnose(DEAD_LETTER)

    assert (found.code, found.failed, found.warned) == (0, [], [])
    assert documented("healthy", *found.checks)
    assert found["topic changes"].found == f"{TOPIC} exists"
    assert found["right to publish"].found == PUBLISH
    assert found["subscriptions"].found == "my-api"
    assert found["bucket dead-letters"].verdict is Verdict.OK
    assert (broker.stored, gcs.objects) == ([], {})


class TestTopic:
    """The sink."""

    def test_an_absent_one(self, cloud: Cloud, broker: PublisherServer) -> None:
        """Its subscriptions are not asked for."""
        broker.topics.clear()

        found = cloud.diagnose()

        assert (found.code, found.failed) == (78, ["topic changes"])
        assert documented("no topic", found["topic changes"])
        assert "subscriptions" not in [check.what for check in found.checks]

    def test_one_that_may_not_be_published_to(self, cloud: Cloud, broker: PublisherServer) -> None:
        """It is there, and the right is missing."""
        broker.rights.denied.add(PUBLISH)

        found = cloud.diagnose()

        assert (found.code, found.failed) == (78, ["right to publish"])
        assert documented("publish denied", found["right to publish"])

    def test_one_that_may_only_be_published_to(self, cloud: Cloud, broker: PublisherServer) -> None:
        """The role of a publisher sees nothing; but that it may publish implies that there is a topic."""
        broker.rights.denied.add(SEE)

        found = cloud.diagnose()

        assert (found.code, found.failed, found.warned) == (0, [], ["subscriptions"])
        assert documented("topic unseen", found["topic changes"])
        assert documented("subscriptions unseen", found["subscriptions"])

    def test_one_that_is_absent_or_forbidden(self, cloud: Cloud, broker: PublisherServer) -> None:
        """Without any right nobody can tell: it fails either way."""
        broker.rights.denied.update({SEE, PUBLISH})

        found = cloud.diagnose()

        assert (found.code, found.failed) == (78, ["topic changes"])
        assert documented("no right to a topic", found["topic changes"])

    def test_one_without_a_subscription(self, cloud: Cloud, broker: PublisherServer) -> None:
        """What is published is lost: a warning, since a run works."""
        broker.rights.subscriptions.clear()

        found = cloud.diagnose()

        assert (found.code, found.warned) == (0, ["subscriptions"])
        assert documented("no subscription", found["subscriptions"])

    def test_one_that_keeps_messages_itself(self, cloud: Cloud, broker: PublisherServer) -> None:
        """Then nothing is lost yet, and it is said for how long."""
        broker.rights.subscriptions.clear()
        broker.rights.retained_seconds = 86_400

        found = cloud.diagnose()

        assert "keeps messages for 24 h" in found["subscriptions"].found

    def test_many_subscriptions_are_counted(self, cloud: Cloud, broker: PublisherServer) -> None:
        """Some are named, so that it stays a line."""
        broker.rights.subscriptions[TOPIC] = [f"projects/p/subscriptions/s{number}" for number in range(5)]

        assert cloud.diagnose()["subscriptions"].found == "s0, s1, s2 and 2 more"

    def test_credentials_that_are_refused(self, cloud: Cloud, broker: PublisherServer) -> None:
        """By the service itself."""
        broker.rights.authenticated = False

        found = cloud.diagnose()

        assert (found.code, found.failed) == (78, ["topic changes"])
        assert "refused the credentials" in found["topic changes"].found

    def test_a_service_that_is_away(self, cloud: Cloud) -> None:
        """Nothing listens there."""
        found = cloud.diagnose(PUBSUB_EMULATOR_HOST=f"127.0.0.1:{free_port()}")

        assert (found.code, found.failed) == (78, ["topic changes"])
        assert "UNAVAILABLE" in found["topic changes"].found

    def test_emulators_know_no_rights(self, cloud: Cloud, any_pubsub: PubSub) -> None:
        """Which is said, and is no failure."""
        topic = any_pubsub.create_topic("doctors")
        any_pubsub.create_subscription(topic)
        try:
            found = cloud.diagnose("--sink=pubsub://p/doctors", PUBSUB_EMULATOR_HOST=any_pubsub.address)
        finally:
            any_pubsub.delete_topic(topic)

        assert (found.code, found.warned) == (0, [])
        assert found["right to publish"].found == "what stands in for Pub/Sub here knows no rights"


class TestBucket:
    """The store, and the dead letters."""

    def test_an_absent_one(self, cloud: Cloud) -> None:
        """Neither its rights nor its settings are asked for, nor the checkpoint in it."""
        found = cloud.diagnose("--checkpoint=gs://nowhere/prod.json.gz")

        assert (found.code, found.failed) == (78, ["bucket nowhere"])
        assert documented("no bucket", found["bucket nowhere"])
        assert "checkpoint" not in [check.what for check in found.checks]

    @pytest.mark.parametrize("right", OBJECT_RIGHTS)
    @pytest.mark.parametrize("there", [False, True], ids=["absent", "present"])
    @pytest.mark.parametrize("granted", ["on the bucket", "on a condition"])
    def test_a_right_that_is_missing(
        self, store: GcsStore, gcs: GcsServer, right: str, there: bool, granted: str
    ) -> None:
        """It is found, alone, with the object or before it is there, however the others are granted."""
        if there:
            gcs.put(BUCKET, NAME, b"one")
        gcs.denied.update({right, LIST, BUCKETS})
        if granted == "on a condition":
            gcs.conditional.update(OBJECT_RIGHTS)
        before = gcs.generation(BUCKET, NAME)

        found = by_what(store.checks(5))

        assert [what for what, check in found.items() if check.verdict is Verdict.FAIL] == [f"right {right}"]
        assert documented(f"no {right}", found[f"right {right}"])
        assert gcs.generation(BUCKET, NAME) == before

    @pytest.mark.parametrize("there", [False, True], ids=["absent", "present"])
    def test_rights_on_a_condition(self, store: GcsStore, gcs: GcsServer, there: bool) -> None:
        """The bucket does not grant them, and the object does: each is found without a change of anything."""
        if there:
            gcs.put(BUCKET, NAME, b"one")
        gcs.denied.update({LIST, BUCKETS})
        gcs.conditional.update(OBJECT_RIGHTS)
        before = gcs.generation(BUCKET, NAME), gcs.objects

        found = by_what(store.checks(5))

        assert [found[f"right {right}"].verdict for right in OBJECT_RIGHTS] == [Verdict.OK] * 3
        assert documented("right on a condition", found[f"right {CREATE}"])
        assert (gcs.generation(BUCKET, NAME), gcs.objects) == before

    def test_what_is_asked_for_can_never_be_done(self, store: GcsStore, gcs: GcsServer) -> None:
        """Both the write and the deletion name a generation and a metageneration that nothing has; and where a server
        looked at neither, the write has a checksum that is not its own, and the deletion is one of another version.
        """
        gcs.put(BUCKET, NAME, b"one")
        gcs.conditional.update(OBJECT_RIGHTS)
        list(store.checks(5))

        (write,) = [request for request in gcs.requests if request.kind is Kind.WRITE]
        (deletion,) = [request for request in gcs.requests if request.kind is Kind.DELETE]
        for request in (write, deletion):
            assert (request.query["ifGenerationMatch"], request.query["ifMetagenerationMatch"]) == ("1", str(2**62))
        assert deletion.query["generation"] == "1"

    def test_a_server_that_knows_no_preconditions_keeps_the_object(self, store: GcsStore, gcs: GcsServer) -> None:
        """As an emulator that is none: the write has the wrong checksum, and the deletion is one of another version."""
        generation = gcs.put(BUCKET, NAME, b"one")
        gcs.conditional.update(OBJECT_RIGHTS)
        gcs.keeps_preconditions = False
        list(store.checks(5))

        assert {Kind.WRITE, Kind.DELETE} <= {request.kind for request in gcs.requests}
        assert (gcs.generation(BUCKET, NAME), gcs.get(BUCKET, NAME)) == (generation, b"one")

    def test_rights_that_are_granted_are_not_tried(self, store: GcsStore, gcs: GcsServer) -> None:
        """Where the bucket says yes, no object is asked for."""
        list(store.checks(5))

        assert [request.kind for request in gcs.requests] == [Kind.RIGHTS, Kind.BUCKET]

    def test_a_403_that_is_not_about_rights(self, store: GcsStore, gcs: GcsServer) -> None:
        """A perimeter or an unpaid bill refuses everything, and is not taken for a granted right."""
        gcs.conditional.update(OBJECT_RIGHTS)
        said = "Request is prohibited by organization's policy. vpcServiceControlsUniqueIdentifier: x"
        gcs.inject(refusal(403, said, "vpcServiceControls"), on=lambda request: request.kind in _OF_OBJECTS, times=None)

        found = by_what(store.checks(5))

        assert [found[f"right {right}"].verdict for right in OBJECT_RIGHTS] == [Verdict.FAIL] * 3
        assert found[f"right {GET}"].found == said

    def test_a_403_for_the_question_itself(self, store: GcsStore, gcs: GcsServer) -> None:
        """The bucket is there, or not: somebody else must look."""
        gcs.inject(refusal(403, "Request is prohibited", "vpcServiceControls"), on=RIGHTS_QUESTION)

        (check,) = store.checks(5)

        assert (check.verdict, "create" in check.remedy) == (Verdict.FAIL, False)

    def test_a_lasting_trouble_with_one_right(self, store: GcsStore, gcs: GcsServer) -> None:
        """It fails, and the others are still looked at."""
        gcs.conditional.add(CREATE)
        gcs.inject(INTERNAL_ERROR, on=lambda request: request.kind is Kind.WRITE, times=None)

        assert failed(store.checks(5)) == [f"right {CREATE}"]

    @pytest.mark.parametrize("fault", [UNAUTHORIZED, INTERNAL_ERROR, Stall()], ids=["401", "500", "silence"])
    def test_a_service_that_does_not_answer(self, store: GcsStore, gcs: GcsServer, fault: Stall) -> None:
        """Or not as it should: one line says so."""
        gcs.inject(fault, on=RIGHTS_QUESTION, times=None)

        assert failed(store.checks(0.3)) == [f"bucket {BUCKET}"]

    def test_soft_delete(self, cloud: Cloud, gcs: GcsServer) -> None:
        """As buckets have it by default: it costs, and how to turn it off is said."""
        gcs.settings.update(SOFT_DELETE)

        found = cloud.diagnose()

        assert (found.code, found.warned) == (0, ["soft delete"])
        assert documented("soft delete", found["soft delete"])

    def test_versioning(self, store: GcsStore, gcs: GcsServer) -> None:
        """Without a lifecycle rule it keeps everything; with one it is a way back."""
        gcs.settings["versioning"] = {"enabled": True}
        bare = by_what(store.checks(5))["versioning"]
        gcs.settings["lifecycle"] = {
            "rule": [{"action": {"type": "Delete"}, "condition": {"numNewerVersions": 20, "isLive": False}}]
        }

        assert by_what(store.checks(5))["versioning"] == Check.ok("versioning", "on, with a lifecycle rule")
        assert documented("versioning", bare)

    @pytest.mark.parametrize(
        ("settings", "remedy"),
        [
            ({"retentionPolicy": {"retentionPeriod": "3600"}}, "--clear-retention-period"),
            ({"defaultEventBasedHold": True}, "--no-default-event-based-hold"),
        ],
    )
    def test_a_bucket_that_keeps_everything(
        self, store: GcsStore, gcs: GcsServer, settings: dict[str, object], remedy: str
    ) -> None:
        """The first save would be the last."""
        gcs.settings.update(settings)
        found = by_what(store.checks(5))

        assert failed(iter(found.values())) == ["retention policy"]
        assert remedy in found["retention policy"].remedy

    def test_settings_that_may_not_be_seen(self, store: GcsStore, gcs: GcsServer) -> None:
        """A run needs no right to them: that is no warning."""
        gcs.denied.add(BUCKETS)

        assert documented("settings unseen", by_what(store.checks(5))["soft delete and versioning"])

    def test_settings_that_cannot_be_read(self, store: GcsStore, gcs: GcsServer) -> None:
        """For the moment: a warning."""
        gcs.inject(INTERNAL_ERROR, on=lambda request: request.kind is Kind.BUCKET, times=None)

        assert by_what(store.checks(5))["soft delete and versioning"].verdict is Verdict.WARN

    def test_dead_letters_need_the_right_to_create(self, cloud: Cloud, gcs: GcsServer) -> None:
        """And no other; nothing is created."""
        gcs.denied.update({GET, DELETE, LIST, BUCKETS})
        found = cloud.diagnose(DEAD_LETTER, "--checkpoint=file:c")
        assert (found.code, found.failed) == (0, [])
        gcs.denied.add(CREATE)
        found = cloud.diagnose(DEAD_LETTER, "--checkpoint=file:c")

        assert (found.code, found.failed) == (78, [f"right {CREATE}"])
        assert documented("no dead letters", found[f"right {CREATE}"])
        assert gcs.objects == {}

    def test_dead_letters_on_a_condition(self, dead_letters: GcsSink, gcs: GcsServer) -> None:
        """As docs/sinks.md grants it: on the prefix."""
        gcs.denied.update({GET, DELETE, LIST, BUCKETS})
        gcs.conditional.add(CREATE)

        assert failed(dead_letters.checks(5)) == []
        assert gcs.objects == {}

    def test_emulators_know_no_rights(self, cloud: Cloud, fake_gcs_server: FakeGcsServer) -> None:
        """Which is said; a bucket that they do not have is found all the same."""
        fake_gcs_server.create_bucket("doctors")
        url = fake_gcs_server.url
        found = cloud.diagnose("--checkpoint=gs://doctors/c", STORAGE_EMULATOR_HOST=url)
        absent = cloud.diagnose("--checkpoint=gs://nowhere/c", STORAGE_EMULATOR_HOST=url)

        assert (found.code, found["rights to objects"].verdict) == (0, Verdict.OK)
        assert (absent.code, absent.failed) == (78, ["bucket nowhere"])


_OF_OBJECTS = {Kind.LOOKUP, Kind.WRITE, Kind.DELETE}


class TestLook:
    """The checkpoint, read by somebody who writes nothing."""

    def test_an_absent_object_stays_absent(self, store: GcsStore, gcs: GcsServer) -> None:
        """Where a run finds out by a write (R15), this one writes nothing."""
        gcs.denied.add(LIST)

        assert store.look(5) is None
        assert gcs.objects == {}

    def test_one_that_google_hides_by_the_right_to_read(self, store: GcsStore, gcs: GcsServer) -> None:
        """Whatever its 403 says: who is granted the right to read has met no object."""
        gcs.denied.add(LIST)
        said = f"watcher does not have {GET} access to the object (or it may not exist)."
        gcs.inject(refusal(403, said, "forbidden"), on=lambda request: request.kind is Kind.READ)

        assert store.look(5) is None

    @pytest.mark.parametrize("said", ["Permission denied on Cloud KMS key.", ""])
    def test_what_is_forbidden_for_another_reason(self, store: GcsStore, gcs: GcsServer, said: str) -> None:
        """Whoever has not spoken of rights to objects has not said that there is none."""
        from job.errors import Forbidden

        gcs.put(BUCKET, NAME, b"one")
        gcs.inject(refusal(403, said, "forbidden"), on=lambda request: request.kind is Kind.READ)

        with pytest.raises(Forbidden):
            store.look(5)

    def test_a_forbidden_one_is_an_error(self, store: GcsStore, gcs: GcsServer) -> None:
        """It is not taken for none."""
        from job.errors import Forbidden

        gcs.put(BUCKET, NAME, b"one")
        gcs.denied.add(GET)

        with pytest.raises(Forbidden):
            store.look(5)


class TestCredentials:
    """Google's, as a run finds them."""

    @pytest.fixture
    def metadata(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[MetadataServer]:
        with MetadataServer() as server:
            for name in ("GCE_METADATA_HOST", "GCE_METADATA_IP"):
                monkeypatch.setenv(name, server.address)
            monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
            monkeypatch.setenv("CLOUDSDK_CONFIG", "/nowhere")
            yield server

    @pytest.fixture
    def key(self, metadata: MetadataServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        content = {
            "type": "service_account",
            "project_id": "p",
            "private_key_id": "1",
            "private_key": pem.decode(),
            "client_email": "watcher@p.iam.gserviceaccount.com",
            "token_uri": metadata.token_uri,
        }
        (tmp_path / "key.json").write_text(json.dumps(content))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))

    def test_a_key_names_its_service_account(self, key: None) -> None:
        """So that who grants a right knows to whom; the commands have it, too."""
        credentials = GoogleCredentials(Brief())

        assert documented("credentials", credentials.check())
        assert credentials.member == "serviceAccount:watcher@p.iam.gserviceaccount.com"

    def test_a_metadata_server_may_know_no_name(self, metadata: MetadataServer) -> None:
        """Under Workload Identity without a service account of Google's."""
        credentials = GoogleCredentials(Brief())

        assert credentials.check().found == "those of the metadata server"
        assert credentials.member == "MEMBER"

    def test_a_key_that_is_refused(self, key: None, metadata: MetadataServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither the topic nor the bucket are asked with nothing."""
        from job.sinks.pubsub import PubSubSink

        monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
        monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
        metadata.token_status = HTTPStatus.BAD_REQUEST
        adapters: list[PubSubSink | GcsStore | GcsSink] = [
            PubSubSink(TOPIC, GoogleCredentials(Brief())),
            GcsStore(BUCKET, NAME, GoogleCredentials(Brief())),
            GcsSink(BUCKET, "prod/", GoogleCredentials(Brief())),
        ]
        checks = [list(adapter.checks(5)) for adapter in adapters]

        assert [[check.verdict for check in each] for each in checks] == [[Verdict.FAIL]] * 3
        assert "invalid_grant" in checks[0][0].found
        assert checks[0] == checks[1] == checks[2]


def test_the_broker_refuses_what_its_rights_say(broker: PublisherServer) -> None:
    """The fake is one thing: a right that TestIamPermissions does not have is none to publish with."""
    from google.pubsub_v1.types import PublishRequest, PublishResponse

    broker.rights.denied.add(PUBLISH)
    request = PublishRequest.pb()(topic=TOPIC, messages=[{"data": b"x"}])
    with grpc.insecure_channel(broker.address, (("grpc.enable_http_proxy", 0),)) as channel:
        publish = channel.unary_unary(
            "/google.pubsub.v1.Publisher/Publish",
            PublishRequest.pb().SerializeToString,
            PublishResponse.pb().FromString,
        )
        with pytest.raises(grpc.RpcError) as refused:
            publish(request, timeout=timedelta(seconds=5).total_seconds())

    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
