"""The commands of docs/consuming.md, given to the real gcloud: Google's emulator does what they say.

It has no rights, so that those commands speak with a server of ours.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from google.pubsub_v1.types import Subscription as Settings

from tests.bed.pubsub import PubSub
from tests.examples.test_consumer import ROOT

LONG_S = 120
PROJECT = "my-project"
AGENT = "serviceAccount:service-1@gcp-sa-pubsub.iam.gserviceaccount.com"
GRANT = "add-iam-policy-binding"
CONSOLE = re.findall(r"^```console\n(.*?)^```", (ROOT / "docs" / "consuming.md").read_text(), re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^gcloud pubsub .*$", "\n".join(CONSOLE).replace("\\\n", ""), re.MULTILINE)
GRANTS = [command for command in COMMANDS if GRANT in command]


def gcloud(command: str, endpoint: str, folder: Path) -> None:
    """Run a line of the page as a shell does, without a network, credentials, or questions."""
    environment = os.environ | {
        "agent": AGENT,
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_PUBSUB": f"http://{endpoint}/",
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "true",
        "CLOUDSDK_CONFIG": str(folder),
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "true",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
        "CLOUDSDK_CORE_PROJECT": PROJECT,
    }
    done = subprocess.run(
        ["sh", "-c", command], env=environment, capture_output=True, text=True, check=False, timeout=LONG_S
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.fixture
def settings(official_pubsub: PubSub, tmp_path: Path) -> Iterator[dict[str, Settings]]:
    """Subscriptions by their names, after all commands, on the topic and the subscription of docs/sinks.md."""
    topic = f"projects/{PROJECT}/topics/workflow-changes"
    official_pubsub.publisher.create_topic(name=topic, timeout=30)
    mine = {"name": f"projects/{PROJECT}/subscriptions/my-api", "topic": topic}
    official_pubsub.subscriber.create_subscription(request=mine, timeout=30)
    for command in COMMANDS:
        if command not in GRANTS:
            gcloud(command, official_pubsub.address, tmp_path)
    found = list(official_pubsub.subscriber.list_subscriptions(project=f"projects/{PROJECT}", timeout=30))
    yield {subscription.name.rpartition("/")[2]: subscription for subscription in found}
    for subscription in found:
        official_pubsub.subscriber.delete_subscription(subscription=subscription.name, timeout=30)
    for left in official_pubsub.publisher.list_topics(project=f"projects/{PROJECT}", timeout=30):
        official_pubsub.delete_topic(left.name)


def test_the_commands_do_what_the_page_says(settings: dict[str, Settings]) -> None:
    """Four subscriptions with filters, and dead letters with a retry policy."""
    filters = dict(re.findall(r"subscriptions create (\S+) .*--message-filter '(.+)'", "\n".join(COMMANDS)))
    mine = settings["my-api"]

    assert {name: found.filter for name, found in settings.items() if found.filter} == filters
    assert len(filters) == 4
    assert mine.dead_letter_policy.dead_letter_topic == settings["my-api-dead"].topic
    assert mine.dead_letter_policy.max_delivery_attempts == 20
    assert mine.retry_policy.minimum_backoff == timedelta(seconds=10)
    assert mine.retry_policy.maximum_backoff == timedelta(seconds=600)


@contextmanager
def policies() -> Iterator[tuple[str, dict[str, Any]]]:
    """A server that knows no rights but those that it was told, by the name of what they are for."""
    told: dict[str, Any] = {}

    class Policies(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            resource, _, method = self.path.partition("?")[0].removeprefix("/v1/").partition(":")
            if method == "setIamPolicy":
                told[resource] = json.loads(body)["policy"]["bindings"]
            answer = b'{"etag":"ACAB"}'
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = answer  # noqa: N815 -- named for the methods

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Policies) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", told
        finally:
            server.shutdown()
            thread.join()


def test_the_service_agent_gets_its_two_rights(official_pubsub: PubSub, tmp_path: Path) -> None:
    """To publish dead letters, and to acknowledge what they were."""
    with policies() as (address, told):
        for command in GRANTS:
            gcloud(command, address, tmp_path)

    assert told == {
        f"projects/{PROJECT}/topics/my-api-dead": [{"role": "roles/pubsub.publisher", "members": [AGENT]}],
        f"projects/{PROJECT}/subscriptions/my-api": [{"role": "roles/pubsub.subscriber", "members": [AGENT]}],
    }
