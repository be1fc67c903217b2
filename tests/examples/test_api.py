"""examples/api.py is pushed to, and gets again what it could not process.

Google's emulator pushes. pstest keeps the endpoint of a subscription, and sends it nothing: there the tests pull, and
post what Pub/Sub would have posted.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
from google.auth import crypt, jwt

from job.message import Message, binary
from tests.bed.process import Server
from tests.bed.pubsub import PubSub
from tests.bed.waiting import wait_until
from tests.examples.test_consumer import GAP, ROOT, change, publish

LONG = timedelta(seconds=120)
AUDIENCE, ACCOUNT = "https://api.example.com/", "pusher@some-project.iam.gserviceaccount.com"
KEYS_HOST = "www.googleapis.com"
# The handler fails for each event when it is first seen.
FAILING = """
import uvicorn
from examples.api import application
from examples.consumer import show

seen = set()

def handle(event):
    show(event)
    if event["id"] not in seen:
        seen.add(event["id"])
        raise RuntimeError("the database is away")

uvicorn.run(application(handle), host="127.0.0.1", port=0)
"""
MESSAGES = [change("a", 1), change("b", 2), GAP]


class Api:
    """The running example."""

    def __init__(self, url: str, server: Server) -> None:
        self.url, self._server = url, server

    @property
    def tried(self) -> Counter[str]:
        """How often the handler was given each id."""
        return Counter(
            re.findall(r"^io\.argoproj\.workflows\.\w+ .* (\S+)$", self._server.log.read_text(), re.MULTILINE)
        )

    def post(self, message: Message, authorization: str = "") -> int:
        body = pushed(message.data, binary(message.attributes), "1", "2026-11-23T06:06:46.5Z")
        headers = {"Authorization": authorization} if authorization else {}
        return requests.post(self.url, json=body, headers=headers, timeout=60).status_code


def pushed(data: bytes, attributes: dict[str, str], message_id: str, published: str) -> dict[str, Any]:
    """https://cloud.google.com/pubsub/docs/push#receive_push"""
    message = {
        "data": base64.b64encode(data).decode(),
        "attributes": attributes,
        "messageId": message_id,
        "message_id": message_id,
        "publishTime": published,
        "publish_time": published,
    }
    return {"message": message, "subscription": "projects/p/subscriptions/s"}


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, folder: Path, **environment: str) -> Iterator[Api]:
    with monkeypatch.context() as patched:
        for name, value in {"PYTHONPATH": str(ROOT), **environment}.items():
            patched.setenv(name, value)
        server = Server([sys.executable, "-c", FAILING], folder / "api.log")
        server.start()
    said: list[str] = []

    def ready() -> bool:
        said[:] = re.findall(r"running on (http://127\.0\.0\.1:\d+)", server.log.read_text())
        return bool(said)

    try:
        server.wait_until_ready(ready, LONG)
        yield Api(said[0] + "/", server)
    finally:
        server.stop()


def test_what_failed_is_pushed_again_by_the_official_emulator(
    official_pubsub: PubSub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Until it is processed, and no longer: the handler sees each event twice."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", official_pubsub.address)
    topic = official_pubsub.create_topic("pushed")
    name = "projects/p/subscriptions/pushed"
    with serving(monkeypatch, tmp_path) as api:
        subscription = {"name": name, "topic": topic, "push_config": {"push_endpoint": api.url}}
        official_pubsub.subscriber.create_subscription(request=subscription, timeout=30)
        try:
            publish(topic, MESSAGES)
            expected = Counter({message.id: 2 for message in MESSAGES})
            wait_until(lambda: api.tried >= expected, LONG, "every event to be processed")

            assert api.tried == expected
        finally:
            official_pubsub.subscriber.delete_subscription(subscription=name, timeout=30)


def test_what_failed_comes_again_from_pstest(pstest: PubSub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """503 when the handler fails, 204 when it does not."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pstest.address)
    topic = pstest.create_topic("pushed")
    subscription = pstest.create_subscription(topic)
    publish(topic, MESSAGES)
    answers: Counter[int] = Counter()

    with serving(monkeypatch, tmp_path) as api:

        def delivered() -> bool:
            reply = pstest.subscriber.pull(subscription=subscription.name, max_messages=10, timeout=30)
            for received in reply.received_messages:
                found = received.message
                published = found.publish_time.rfc3339()
                body = pushed(found.data, dict(found.attributes), found.message_id, published)
                status = requests.post(api.url, json=body, timeout=60).status_code
                answers[status] += 1
                acknowledge = {"subscription": subscription.name, "ack_ids": [received.ack_id]}
                if status == 204:
                    pstest.subscriber.acknowledge(request=acknowledge, timeout=30)
                else:
                    pstest.subscriber.modify_ack_deadline(request=acknowledge | {"ack_deadline_seconds": 0}, timeout=30)
            return answers[204] >= len(MESSAGES)

        wait_until(delivered, LONG, "every event to be processed")

        assert api.tried == Counter({message.id: 2 for message in MESSAGES})
        assert answers == {503: 3, 204: 3}
    assert subscription.drain() == []


@pytest.fixture
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def signer() -> trustme.LeafCert:
    """The key that Google signs tokens with."""
    return trustme.CA().issue_cert("signer.example.com", key_type=trustme.KeyType.RSA)


@pytest.fixture
def keys(ca: trustme.CA, signer: trustme.LeafCert) -> Iterator[str]:
    """A proxy at whose other end stands the server of Google's keys, with a key of ours."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(KEYS_HOST).configure_cert(context)
    body = json.dumps({"1": signer.cert_chain_pems[0].bytes().decode()}).encode()

    class Keys(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.rfile.close()
            with context.wrap_socket(self.connection, server_side=True) as tunnel, tunnel.makefile("rb") as request:
                while request.readline().strip():
                    pass
                tunnel.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Keys) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def bearer(signer: trustme.LeafCert, **claims: object) -> str:
    key = crypt.RSASigner.from_string(signer.private_key_pem.bytes(), "1")
    now = int(time.time())
    payload = {
        "iss": "https://accounts.google.com",
        "aud": AUDIENCE,
        "email": ACCOUNT,
        "email_verified": True,
        "iat": now - 10,
        "exp": now + 600,
    }
    return f"Bearer {jwt.encode(key, payload | claims).decode()}"


def test_only_pub_sub_may_push_where_an_audience_is_set(
    keys: str, ca: trustme.CA, signer: trustme.LeafCert, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A token must be there, be Google's, be meant for this endpoint, and be that of the subscription's account."""
    with ca.cert_pem.tempfile(str(tmp_path)) as trusted:
        environment = {
            "PUSH_AUDIENCE": AUDIENCE,
            "PUSH_SERVICE_ACCOUNT": ACCOUNT,
            "HTTPS_PROXY": keys,
            "https_proxy": keys,
            "REQUESTS_CA_BUNDLE": trusted,
        }
        forger = trustme.CA().issue_cert("signer.example.com", key_type=trustme.KeyType.RSA)
        refused = {
            "none": "",
            "no token": "Bearer x",
            "another scheme": "Basic eDp5",
            "not Google's": bearer(forger),
            "another issuer": bearer(signer, iss="https://example.com"),
            "another audience": bearer(signer, aud="https://other.example.com/"),
            "another account": bearer(signer, email="other@some-project.iam.gserviceaccount.com"),
            "not verified": bearer(signer, email_verified=False),
            "over": bearer(signer, exp=int(time.time()) - 600, iat=int(time.time()) - 1200),
        }
        with serving(monkeypatch, tmp_path, **environment) as api:
            answers = {why: api.post(change("a", 1), token) for why, token in refused.items()}

            assert answers == dict.fromkeys(refused, 401)
            assert api.tried == {}
            assert [api.post(change("a", 1), bearer(signer)) for _ in range(2)] == [503, 204]


def test_without_an_audience_anybody_may_push(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which is for a network that only Pub/Sub comes from, and for emulators."""
    monkeypatch.delenv("PUSH_AUDIENCE", raising=False)
    with serving(monkeypatch, tmp_path) as api:
        assert [api.post(change("a", 1)) for _ in range(3)] == [503, 204, 204]
        assert api.tried == {"uid-a/1": 2}


def test_an_audience_without_an_account_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody could have Google sign for that audience."""
    from examples.api import application

    monkeypatch.setenv("PUSH_AUDIENCE", AUDIENCE)
    monkeypatch.delenv("PUSH_SERVICE_ACCOUNT", raising=False)

    with pytest.raises(KeyError, match="PUSH_SERVICE_ACCOUNT"):
        application()
