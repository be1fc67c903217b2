"""The subscription filters of docs/consuming.md let pass what the page says; tried with pstest, which obeys filters."""

from __future__ import annotations

import re

import pytest

from job.change import Change, Kind, Object, Provenance
from tests.bed.pubsub import PubSub, cloud_event
from tests.examples.test_consumer import ENVELOPE, GAP, ROOT, publish

FILTERS = re.findall(
    r"subscriptions create (\S+) --topic \S+ \\\n +--message-filter '(.+)'",
    (ROOT / "docs" / "consuming.md").read_text(),
)


def told(name: str, phase: str = "", kind: Kind = Kind.MODIFIED, known: Provenance = Provenance.OBSERVED) -> Change:
    namespace, _, _ = name.partition("/")
    return Change(kind, Object(name, namespace, name.partition("/")[2], 7, phase or None, data=b"{}"), known)


CHANGES = {
    "running": told("argo/running", "Running"),
    "succeeded": told("argo/succeeded", "Succeeded"),
    "failed": told("argo/failed", "Failed"),
    "error": told("argo/error", "Error"),
    "without a phase": told("argo/new", kind=Kind.ADDED),
    "deleted": told("argo/deleted", "Running", Kind.DELETED),
    "deletion inferred": told("argo/gone", kind=Kind.DELETED, known=Provenance.INFERRED),
    "replayed": told("argo/replayed", "Running", Kind.ADDED, Provenance.REPLAY),
    "listed first": told("argo/listed", "Running", Kind.ADDED, Provenance.INITIAL),
    "recovered": told("argo/recovered", "Running", known=Provenance.RECOVERED),
    "elsewhere": told("argo-events/running", "Running"),
}
PASS = {
    "workflow-ends": {"succeeded", "failed", "error"},
    "workflow-news": CHANGES.keys() - {"replayed", "listed first"},
    "workflows-of-argo": CHANGES.keys() - {"elsewhere"},
    "workflow-deletions": {"deleted", "deletion inferred"},
}


def test_there_are_four() -> None:
    """All those of the page are tried here."""
    assert [name for name, _ in FILTERS] == list(PASS)


@pytest.mark.parametrize(("name", "expression"), FILTERS, ids=[name for name, _ in FILTERS])
def test_a_filter_passes_what_the_page_says(
    name: str, expression: str, pstest: PubSub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gap messages, whatever else."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pstest.address)
    topic = pstest.create_topic(f"filtered-{name}")
    subscription = pstest.create_subscription(topic, filter=expression)
    names = {ENVELOPE.change(change).id: what for what, change in CHANGES.items()} | {GAP.id: "gap"}
    publish(topic, [*map(ENVELOPE.change, CHANGES.values()), GAP])
    expected = PASS[name] | {"gap"}

    received = subscription.pull(len(expected)) + subscription.drain()

    assert {names[cloud_event(each).id] for each in received} == expected


@pytest.mark.parametrize(("name", "expression"), FILTERS, ids=[name for name, _ in FILTERS])
def test_a_filter_is_short_enough(name: str, expression: str) -> None:
    """256 bytes, says https://cloud.google.com/pubsub/docs/subscription-message-filter; pstest does not."""
    assert len(expression.encode()) <= 256
