"""What the data of a message is made of: the object itself or a summary, whole or redacted (pure)."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import msgspec

from job.change import Resource

WORKFLOWS = "workflows.argoproj.io"


class Payload(StrEnum):
    """What of an object is sent."""

    OBJECT = "object"
    SUMMARY = "summary"


class Content(msgspec.Struct, frozen=True):
    """What messages carry, and which changes are told. A run may have another one than the run before."""

    payload: Payload = Payload.OBJECT
    transitions: bool = False
    """Only changes of a phase, and deletions."""
    redact: tuple[str, ...] = ()
    """Globs of the names whose values are not sent."""

    def __str__(self) -> str:
        parts = [f"the {self.payload}", "at transitions" if self.transitions else "at every change"]
        if self.redact:
            parts.append(f"without the values of {' and '.join(self.redact)}")
        return ", ".join(parts)


EVERYTHING = Content()


def renderer(content: Content, resource: Resource) -> Callable[[bytes], bytes] | None:
    """What makes an object's bytes a message's data; None where they are the same."""
    steps: list[Callable[[bytes], bytes]] = []
    if content.payload is Payload.SUMMARY:
        from job.payload.summary import summary

        workflow = resource.group_resource == WORKFLOWS
        steps.append(lambda data: summary(data, workflow=workflow))
    if content.redact:
        from job.payload.redact import Redaction

        steps.append(Redaction(content.redact))
    if not steps:
        return None

    def render(data: bytes) -> bytes:
        for step in steps:
            data = step(data)
        return data

    return render
