"""When a Workflow entered the phase that it is in, and what is told of that (pure).

The time is what makes two entries into one phase different: a Workflow that fails, is retried under the same uid and
fails again has two ends. It is that of the status, so a repeat says the same (P3).
"""

from __future__ import annotations

import re

import msgspec

from job.change import Change, Kind, Known, Object

ENDS = frozenset({"Succeeded", "Failed", "Error"})
_RFC_3339 = re.compile(rb'"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d))"')


class Transition(msgspec.Struct, frozen=True):
    """From one phase to another."""

    before: str | None
    """The phase that was told last; None where none was, or nobody knows."""
    to: str | None = None
    """None for a deletion."""
    at: str = ""
    """When it entered the phase: startedAt, or finishedAt of an end; empty where the status does not say."""
    final: str | None = None
    """Of a deletion: the phase in which the Workflow had ended; None where no end was ever seen."""

    def onto(self, data: bytes) -> bytes:
        """The data of a message, an object, that says so in front of its other members."""
        members: dict[str, str | None] = {"from": self.before, "to": self.to, "at": self.at or None}
        if self.to is None:
            members["finalPhase"] = self.final
        return msgspec.json.encode(members)[:-1] + b"," + data[1:]


class _Status(msgspec.Struct, rename="camel", gc=False):
    started_at: msgspec.Raw = msgspec.Raw()
    """Of a resource that is not Argo's it may be anything."""
    finished_at: msgspec.Raw = msgspec.Raw()


class _Thing(msgspec.Struct, gc=False):
    status: _Status | None = None


_thing = msgspec.json.Decoder(_Thing).decode


def passage(change: Change, before: Known | None) -> tuple[Transition | None, Known]:
    """The transition that a change is, None if it is none; and what is known of the object then.

    An object without a phase has none: nothing has looked at it yet, or it is being retried. It is in the phase that
    was told last until it enters another one, or the same one at another time.
    """
    thing, last = change.object, before or Known("", "", 0)
    phase, at = _moment(thing)
    if change.kind is Kind.DELETED:
        final = phase or last.phase
        transition: Transition | None = Transition(last.phase, final=final if final in ENDS else None)
    elif not phase or (phase == last.phase and (at == last.at or not at or not last.at)):
        transition = None
    else:
        transition = Transition(last.phase, phase, at)
    same = not phase or phase == last.phase
    known = Known(thing.namespace, thing.name, thing.version, phase or last.phase, at=at or (last.at if same else ""))
    return transition, known


def entered(thing: Object) -> Known:
    """What is known of an object that is taken for told."""
    phase, at = _moment(thing)
    return Known(thing.namespace, thing.name, thing.version, phase or None, at=at)


def _moment(thing: Object) -> tuple[str, str]:
    """The phase that an object is in, and since when; empty where its status does not say, or in another form."""
    if not thing.phase:
        return "", ""
    status = _thing(thing.data).status or _Status()
    at = _RFC_3339.fullmatch(status.finished_at if thing.phase in ENDS else status.started_at)
    return thing.phase, at[1].decode() if at else ""
