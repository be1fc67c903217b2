"""Deliveries and events for the tests of consuming."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from job.consume.event import Event, event
from job.message import DELETION, GAP, OBJECT, binary
from job.ports import Received

SOURCE = "/clusters/c/apis/argoproj.io/v1alpha1/workflows"
TYPE = "io.argoproj.workflows"
BEGAN = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)


def attributes(name: str, version: int, *, epoch: int = 0, uid: str = "") -> dict[str, str]:
    uid = uid or f"uid-{name}"
    return {
        "specversion": "1.0",
        "id": f"{uid}/{version}{f'~{epoch}' if epoch else ''}",
        "source": SOURCE,
        "type": f"{TYPE}.modified",
        "subject": f"argo/{name}",
        "datacontenttype": "application/json",
        "dataschema": OBJECT,
        "k8suid": uid,
        "resourceversion": str(version),
    }


def deletion(name: str, version: int | None = None, *, epoch: int = 0, uid: str = "") -> dict[str, str]:
    """Inferred, unless it has a version."""
    uid = uid or f"uid-{name}"
    found = attributes(name, version or 0, uid=uid) | {
        "id": f"{uid}/deleted{f'~{epoch}' if epoch else ''}",
        "type": f"{TYPE}.deleted",
    }
    if version is None:
        found["dataschema"] = DELETION
        del found["resourceversion"]
    return found


def gap(start: int, end: int, namespace: str = "") -> dict[str, str]:
    return {
        "specversion": "1.0",
        "id": f"{start}-{end}/gap",
        "source": SOURCE,
        "type": f"{TYPE}.gap",
        **({"subject": namespace} if namespace else {}),
        "datacontenttype": "application/json",
        "dataschema": GAP,
    }


def delivered(given: dict[str, str], at: int = 0, data: bytes = b"{}", key: str = "") -> Received:
    return Received("ack", "1", binary(given), data, BEGAN + timedelta(seconds=at), key)


def an_event(given: dict[str, str], at: int = 0, key: str = "") -> Event:
    return event(delivered(given, at, key=key))
