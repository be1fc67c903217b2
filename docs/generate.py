"""Write the examples of docs/messages.md and docs/doctor.md: they are the golden files of the tests.

python docs/generate.py            writes the pages
python docs/generate.py --print    prints the first
"""

import json
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("messages.md")
GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "messages"
MADE = "<!-- What follows is made from tests/golden/messages by `python docs/generate.py`. -->\n"

DOCTOR = Path(__file__).with_name("doctor.md")
DOCTOR_GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "doctor.json"
DOCTOR_MADE = "<!-- What follows is made from tests/golden/doctor.json by `python docs/generate.py`. -->\n"

EXAMPLES = {
    "added-initial": ("Added, initial", "The first run found it."),
    "modified-observed": ("Modified, observed", "The watch showed it."),
    "modified-recovered": ("Modified, recovered", "The watch had lost it, and etcd still had it."),
    "modified-inferred": (
        "Modified, inferred",
        "After a gap: versions between this one and the last may never be told.",
    ),
    "deleted-observed": ("Deleted, observed", "The last object, with the version of its deletion."),
    "deleted-inferred": ("Deleted, inferred", "It is gone: when, and in which state, is not known."),
    "gap": ("Gap", "It stands before what is inferred because of it."),
    "gap-short-lived": (
        "Gap, short-lived",
        "History was recovered, and every 17th version was counted: shorter lives may be missing.",
    ),
    "gap-forgotten": (
        "Gap, forgotten",
        "The store had no room for the inventory: what is there follows, and who is gone is not known.",
    ),
    "added-replay": ("Added, replay", "A backfill found it: the same id and data as those of the run."),
    "summary": ("Modified, a summary", "`--payload summary --redact '*token*'`"),
    "transition": ("A transition", "`--transitions`"),
    "transition-without-time": ("A transition without a time", "The id has the version in its place."),
    "transition-deleted-observed": ("A deletion among transitions", "The end was seen."),
    "transition-deleted-inferred": (
        "An inferred deletion among transitions",
        "`finalPhase` is null: an end was never seen, and nobody will tell it.",
    ),
    "dead-letter": ("A dead letter", "The message as the sink would not take it, and what that has said."),
    "core-resource": ("A resource of the core group", "`--resource pods.v1 --all-namespaces`"),
    "rewound": (
        "After a rewind",
        "The cluster was restored once: epoch 1. The same version may have other content than before.",
    ),
}

DIAGNOSES = {
    "All is well, before the first run": ("healthy",),
    "All is well, after some runs: the last lines": ("healthy checkpoint",),
    "The API server": ("no API server", "wrong token", "clock behind", "clock ahead", "hanging part"),
    "The resource, and the rights to it": (
        "no definition",
        "no right to list",
        "no right to watch",
        "no right to get",
        "no right to list all",
        "no namespace",
        "unknown namespace",
        "cluster identity",
        "definition identity",
    ),
    "Pub/Sub": (
        "credentials",
        "no topic",
        "publish denied",
        "no right to a topic",
        "topic unseen",
        "subscriptions unseen",
        "no subscription",
    ),
    "Cloud Storage": (
        "no bucket",
        "no storage.objects.get",
        "no storage.objects.create",
        "no storage.objects.delete",
        "right on a condition",
        "soft delete",
        "versioning",
        "settings unseen",
        "no dead letters",
    ),
    "The checkpoint": (
        "foreign checkpoint",
        "another cluster",
        "spoilt checkpoint",
        "newer checkpoint",
        "starting point",
        "too old",
        "from the future",
        "restored cluster",
        "new definition",
        "slow schedule",
        "short recovery",
        "lucky schedule",
    ),
    "Amazon SQS": ("no queue", "queue unseen", "sqs right unknown", "short messages", "no AWS credentials"),
    "Sockets and files": ("no receiver", "untrusted receiver", "no folder", "no folder for a checkpoint"),
    "A ConfigMap": ("no ConfigMap", "no right to get the ConfigMap", "no right to patch the ConfigMap"),
    "Redis": ("no Redis", "no log-in", "no right to save", "no persistence", "snapshots only", "eviction"),
}
"""Titles of docs/doctor.md -> the kinds of set-up that the tests make, under their names in the golden file."""


def page() -> str:
    """Keep what people have written, and put the examples behind it."""
    written, made, _ = PAGE.read_text().partition(MADE)
    parts = [written, made]
    for name, (title, sentence) in EXAMPLES.items():
        message = json.loads((GOLDEN / f"{name}.json").read_text())
        printed = json.dumps(message, indent=2, ensure_ascii=False)
        parts.append(f"\n### {title}\n\n{sentence}\n\n```json\n{printed}\n```\n")
    return "".join(parts)


def doctor_page() -> str:
    """Keep what people have written, and put behind it what the doctor says of each set-up of the tests."""
    written, made, _ = DOCTOR.read_text().partition(DOCTOR_MADE)
    golden = json.loads(DOCTOR_GOLDEN.read_text())
    parts = [written, made]
    for title, kinds in DIAGNOSES.items():
        lines = [line for kind in kinds for line in golden[kind].splitlines()]
        parts.append(f"\n### {title}\n\n```text\n" + "\n".join(lines) + "\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    if "--print" in sys.argv[1:]:
        sys.stdout.write(page())
    else:
        PAGE.write_text(page())
        DOCTOR.write_text(doctor_page())
