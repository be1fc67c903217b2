"""A change as a CloudEvent 1.0 (pure).

The attributes follow the CloudEvents specification,
<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md>: extension names are lower-case letters and
digits, and source + id is unique. Nothing of the present time goes in, so that a repeat of a change is the same message
(P3).
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

import msgspec

from job.change import Change, Gap, Kind, Provenance, Reason, Resource
from job.payload import EVERYTHING, WORKFLOWS, Content, Payload, renderer
from job.payload.transition import Transition

OBJECT, SUMMARY, TRANSITION, DELETION, GAP = (
    f"urn:workflow-watcher:{schema}:1" for schema in ("object", "summary", "transition", "deletion", "gap")
)
_CORE_GROUP = "k8s.io"
_LONGEST_REFUSAL = 250
"""Characters, so that it fits into what an attribute may have in Pub/Sub: 1,024 bytes."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """A CloudEvent: context attributes, extensions among them, and JSON data."""

    attributes: dict[str, str]
    data: bytes
    key: str
    """Messages of one key are stored in order."""
    gaps: int = 0
    """How many gaps were announced before: what is told again behind another one must be stored again (R18)."""

    @property
    def id(self) -> str:
        """Recognises a repeat, together with the source."""
        return self.attributes["id"]

    @property
    def size(self) -> int:
        """Bytes, roughly as a sink will count them."""
        return len(self.data) + 512


class Envelope:
    """Turns the changes of one resource of one cluster into messages."""

    def __init__(self, cluster: str, resource: Resource, namespace: str = "", content: Content = EVERYTHING) -> None:
        api = f"apis/{resource.api_version}" if resource.group else f"api/{resource.version}"
        self._source = f"/clusters/{quote(cluster, safe='')}/{api}/{resource.plural}"
        self._type = f"{_reversed_group(resource.group)}.{resource.plural}"
        self._types = {kind: f"{self._type}.{kind}" for kind in Kind}
        self._namespace = namespace
        self._schema = SUMMARY if content.payload is Payload.SUMMARY else OBJECT
        self._workflow = resource.group_resource == WORKFLOWS
        self._render = renderer(content, resource)

    def change(self, change: Change, gaps: int = 0, transition: Transition | None = None) -> Message:
        """The message of one change of one object, after so many gaps; of a transition, where only those are told."""
        seen = change.object
        inferred_deletion = change.kind is Kind.DELETED and change.provenance is Provenance.INFERRED
        schema, data = self._schema, seen.data
        if inferred_deletion:
            schema = DELETION
        elif self._render:
            data = self._render(data)
        if transition:
            schema = schema if inferred_deletion else TRANSITION
            data = transition.onto(data)
        attributes = {
            "specversion": "1.0",
            "id": f"{seen.uid}/{self._moment(change, transition)}{_suffix(change.epoch)}",
            "source": self._source,
            "type": self._types[change.kind],
            "subject": seen.key,
            "datacontenttype": "application/json",
            "dataschema": schema,
            "k8suid": seen.uid,
            "provenance": change.provenance.value,
        }
        if not inferred_deletion:
            attributes["resourceversion"] = str(seen.version)
            if seen.phase:
                attributes["phase"] = seen.phase
        return Message(attributes, data, seen.key, gaps)

    def gap(self, gap: Gap, gaps: int = 0) -> Message:
        """The message that says which history may never be told, itself among `gaps`."""
        attributes = {
            "specversion": "1.0",
            "id": f"{gap.start}-{gap.end}/gap{_which(gap)}{_suffix(gap.epoch)}",
            "source": self._source,
            "type": f"{self._type}.gap",
            **({"subject": self._namespace} if self._namespace else {}),
            "datacontenttype": "application/json",
            "dataschema": GAP,
            "provenance": Provenance.INFERRED.value,
        }
        data = {
            "reason": gap.reason.value,
            "from": str(gap.start),
            "to": str(gap.end),
            "since": gap.since or None,
            "missing": gap.missing.value,
            **({"spacing": str(gap.spacing)} if gap.spacing else {}),
        }
        return Message(attributes, msgspec.json.encode(data), f"{self._namespace}/", gaps)

    def _moment(self, change: Change, transition: Transition | None) -> str:
        """What the id of a change has behind the uid.

        The version tells a phase without a time apart, and any phase of a resource of which nobody knows whether its
        times move with its phases.
        """
        if change.kind is Kind.DELETED:
            return "deleted"
        if transition:
            return f"{transition.to}/{(self._workflow and transition.at) or change.object.version}"
        return str(change.object.version)


def dead_letter(message: Message, sink: str, refusal: str) -> Message:
    """The same message, with the address of the sink that will not take it, and what that has said."""
    said = " ".join(refusal.split())[:_LONGEST_REFUSAL]
    return msgspec.structs.replace(message, attributes={**message.attributes, "refusedby": sink, "refusal": said})


def structured(message: Message) -> bytes:
    """One JSON object, the data inside as it is: `application/cloudevents+json`, without a line end."""
    return msgspec.json.encode({**message.attributes, "data": msgspec.Raw(message.data)})


def binary(attributes: Mapping[str, str]) -> dict[str, str]:
    """Attributes in binary mode, as the Pub/Sub binding spells them; the data goes beside them as it is.

    <https://github.com/googleapis/google-cloudevents/blob/main/docs/spec/pubsub.md>. Readers look for `content-type` or
    for `ce-datacontenttype`: both are there.
    """
    carried = {f"ce-{name}": value for name, value in attributes.items()}
    if "datacontenttype" in attributes:
        carried["content-type"] = attributes["datacontenttype"]
    return carried


def _which(gap: Gap) -> str:
    """Tells gaps between the same versions apart."""
    if gap.reason is Reason.FORGOTTEN:  # perhaps an earlier run announced less, and was killed
        return f"/{gap.reason.value}"
    return f"/{gap.spacing}" if gap.spacing else ""


def _suffix(epoch: int) -> str:
    return f"~{epoch}" if epoch else ""


def _reversed_group(group: str) -> str:
    """`argoproj.io` -> `io.argoproj`; the core and the other built-in groups without a dot belong to `io.k8s`."""
    if "." not in group:
        return ".".join(filter(None, (*reversed(_CORE_GROUP.split(".")), group)))
    return ".".join(reversed(group.split(".")))
