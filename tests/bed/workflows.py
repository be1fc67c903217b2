"""Builds Workflow objects as the controller would write them, of any size, the same from the same arguments."""

import json
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
_FINISHED = frozenset({"Succeeded", "Failed", "Error"})
_MESSAGE_BYTES = 200
_FILLER = "the main container wrote this line; "


class WorkflowFields(TypedDict, total=False):
    """What `workflow` takes besides the name."""

    size_bytes: int
    phase: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    finalizers: list[str]
    spec: Mapping[str, Any]
    status: Mapping[str, Any]


def workflow(
    name: str,
    *,
    size_bytes: int = 0,
    phase: str = "Running",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    finalizers: list[str] | None = None,
    spec: Mapping[str, Any] | None = None,
    status: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build a Workflow in `phase`; as the controller leaves it, one without a phase ("") has neither labels nor status.

    `size_bytes` is the length as compact JSON before the server adds its metadata: status.nodes are added until that is
    reached exactly; an object that is larger already stays as it is. `labels` come on top of the controller's; the
    fields of `spec` and `status` replace those of the same name.
    """
    metadata: dict[str, Any] = {"name": name, "labels": _controller_labels(phase) | dict(labels or {})}
    if annotations:
        metadata["annotations"] = dict(annotations)
    if finalizers:
        metadata["finalizers"] = list(finalizers)
    body: dict[str, Any] = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": metadata,
        "spec": _spec() | dict(spec or {}),
    }
    if phase or size_bytes or status:
        body["status"] = _status(name, phase) | dict(status or {})
        _fill(body, name, size_bytes)
    return body


def compact_json(value: object) -> str:
    """Encode as the server stores it: no spaces, nothing escaped that need not be."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _controller_labels(phase: str) -> dict[str, str]:
    if not phase:
        return {}
    labels = {"workflows.argoproj.io/phase": phase}
    return labels | {"workflows.argoproj.io/completed": "true"} if phase in _FINISHED else labels


def _spec() -> dict[str, Any]:
    template = {"name": "main", "inputs": {}, "outputs": {}, "metadata": {}}
    container = {"name": "", "image": "alpine:3", "command": ["true"], "resources": {}}
    return {"entrypoint": "main", "arguments": {}, "templates": [template | {"container": container}]}


def _status(name: str, phase: str) -> dict[str, Any]:
    status: dict[str, Any] = {
        "phase": phase or "Pending",
        "startedAt": _time(0),
        "finishedAt": _time(60) if phase in _FINISHED else None,
        "progress": "1/1" if phase in _FINISHED else "0/1",
        "nodes": {name: _node(name, name, phase or "Pending", "DAG")},
    }
    return status


def _node(name: str, node_id: str, phase: str, kind: str) -> dict[str, Any]:
    return {
        "id": node_id,
        "name": name,
        "displayName": name,
        "type": kind,
        "templateName": "main",
        "templateScope": f"local/{name.partition('.')[0]}",
        "phase": phase,
        "startedAt": _time(0),
        "finishedAt": _time(60) if phase in _FINISHED else None,
        "message": "",
    }


def _fill(body: dict[str, Any], name: str, size_bytes: int) -> None:
    """Add nodes until the object has `size_bytes`, the last one's message making up the rest."""
    nodes: dict[str, Any] = body["status"].setdefault("nodes", {})
    length = len(compact_json(body).encode())
    while length < size_bytes:
        step = f"{name}.step-{len(nodes)}"
        # The controller's node ids are the workflow's name and a hash of the node's.
        node_id = f"{name}-{zlib.crc32(step.encode())}"
        node = _node(step, node_id, "Succeeded", "Pod")
        added = len(compact_json({node_id: node}).encode()) - len("{}") + (len(",") if nodes else 0)
        missing = size_bytes - length - added
        if missing < 0 and nodes:
            # Too little for another node: the last one's message takes it.
            nodes[next(reversed(nodes))]["message"] += _filler(size_bytes - length)
            return
        message = _filler(max(0, min(missing, _MESSAGE_BYTES)))
        nodes[node_id] = node | {"message": message}
        length += added + len(message)


def _filler(length: int) -> str:
    return (_FILLER * (length // len(_FILLER) + 1))[:length]


def _time(seconds: int) -> str:
    return (_BEGAN + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
